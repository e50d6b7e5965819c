//! The way to a file, one step at a time, each directory held open so that nobody can change the way behind us.
//!
//! Symbolic links are followed by hand, so that the directories they lead through are looked at as well. Blocks: disk.
//! Limits: [`STEPS_MAX`], [`LINKS_MAX`].

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, openat, readlinkat};
use rustix::io::Errno;

use super::Refusal;

/// Most names on a way, those of links included.
pub(super) const STEPS_MAX: usize = 256;
/// Most symbolic links on a way. Source: Linux follows 40.
pub(super) const LINKS_MAX: usize = 40;

/// What comes next on the way.
pub(super) enum Step {
    /// A directory, entered.
    Directory(Directory),
    /// A symbolic link on the way, followed.
    Link,
    /// A symbolic link in the place of the file, followed.
    LastLink,
    /// The end: the file, or the place where it would be.
    Last(Entry),
}

/// A directory on the way.
pub(super) struct Directory {
    path: PathBuf,
    mode: Mode,
    is_trusted: bool,
}

impl Directory {
    /// What is wrong with it, if others than its owner may write to it.
    pub(super) fn writable_by_others(self, may_be_sticky: bool) -> Option<Refusal> {
        if self.is_trusted || (may_be_sticky && self.mode.contains(Mode::SVTX)) {
            return None;
        }
        if self.mode.contains(Mode::WOTH) {
            return Some(Refusal::WorldWritableDirectory(self.path));
        }
        self.mode
            .contains(Mode::WGRP)
            .then_some(Refusal::GroupWritableDirectory(self.path))
    }
}

/// The end of a way.
pub(super) struct Entry {
    directory: OwnedFd,
    name: OsString,
    /// Kept open, so that what has its number is the same file. What is missing has its directory's.
    found: Option<OwnedFd>,
    stat: Stat,
}

impl Entry {
    pub(super) fn exists(&self) -> bool {
        self.found.is_some()
    }

    pub(super) fn stat(&self) -> &Stat {
        &self.stat
    }

    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.stat().st_mode)
    }

    pub(super) fn mode(&self) -> Mode {
        Mode::from_raw_mode(self.stat().st_mode)
    }

    #[expect(
        clippy::useless_conversion,
        reason = "the type differs between architectures"
    )]
    pub(super) fn links(&self) -> u64 {
        self.stat().st_nlink.into()
    }

    /// Opens what was found, and nothing else.
    pub(super) fn open(&self, flags: OFlags) -> Result<File, Refusal> {
        let file = self.open_with(flags, Mode::empty())?;
        let (opened, seen) = (fstat(&file)?, self.stat());
        let is_same = (opened.st_dev, opened.st_ino, opened.st_uid, opened.st_mode)
            == (seen.st_dev, seen.st_ino, seen.st_uid, seen.st_mode);
        if is_same {
            Ok(file)
        } else {
            Err(Refusal::Changed)
        }
    }

    /// Makes the file that was missing.
    pub(super) fn create(&self, flags: OFlags, mode: Mode) -> Result<File, Refusal> {
        match self.open_with(flags | OFlags::CREATE | OFlags::EXCL, mode) {
            Err(Refusal::Io(error)) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                Err(Refusal::Changed)
            }
            result => result,
        }
    }

    /// The directory it is in, held but not open for reading.
    pub(super) fn into_directory(self) -> OwnedFd {
        self.directory
    }

    fn open_with(&self, flags: OFlags, mode: Mode) -> Result<File, Refusal> {
        let safe = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        Ok(File::from(openat(
            &self.directory,
            &self.name,
            flags | safe,
            mode,
        )?))
    }
}

/// A way to a file.
pub(super) struct Walk {
    here: OwnedFd,
    path: PathBuf,
    /// The names still to come, the next one last.
    names: Vec<OsString>,
    trusted: Option<PathBuf>,
    /// Set until the directory we are in has been told of.
    is_new_here: bool,
    steps: usize,
    links: usize,
}

impl Walk {
    /// Begins at the root. Directories above `trusted` count as safe.
    pub(super) fn new(path: &Path, trusted: Option<&Path>) -> Result<Self, Refusal> {
        let mut walk = Self {
            here: root()?,
            path: PathBuf::from("/"),
            names: Vec::new(),
            trusted: trusted.map(Path::to_owned),
            is_new_here: true,
            steps: 0,
            links: 0,
        };
        walk.push(path.as_os_str())?;
        Ok(walk)
    }

    fn push(&mut self, path: &OsStr) -> Result<(), Refusal> {
        let names = path.as_bytes().split(|byte| *byte == b'/');
        let names: Vec<OsString> = names
            .filter(|name| !name.is_empty() && *name != b".")
            .map(|name| OsString::from_vec(name.to_vec()))
            .collect();
        self.steps += names.len();
        if self.steps > STEPS_MAX {
            return Err(Errno::NAMETOOLONG.into());
        }
        self.names.extend(names.into_iter().rev());
        Ok(())
    }

    /// One step on. After [`Step::Last`] there is none.
    pub(super) fn next(&mut self) -> Result<Step, Refusal> {
        if self.is_new_here {
            return self.arrived();
        }
        let Some(name) = self.names.last() else {
            // The way ended in a directory: `/`, or a link to one.
            return Err(Refusal::NotRegular);
        };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = match openat(&self.here, name, flags, Mode::empty()) {
            Ok(found) => found,
            Err(Errno::NOENT) if self.names.len() == 1 => return self.last(None),
            Err(error) => return Err(error.into()),
        };
        let stat = fstat(&found)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                self.links += 1;
                if self.links > LINKS_MAX {
                    return Err(Errno::LOOP.into());
                }
                self.follow(&found)
            }
            FileType::Directory if self.names.len() > 1 => {
                if name == ".." {
                    self.path.pop();
                } else {
                    self.path.push(name);
                }
                self.here = found;
                self.names.pop();
                self.arrived()
            }
            _ if self.names.len() > 1 => Err(Errno::NOTDIR.into()),
            _ => self.last(Some(found)),
        }
    }

    /// Tells of the directory we are in.
    fn arrived(&mut self) -> Result<Step, Refusal> {
        self.is_new_here = false;
        let stat = fstat(&self.here)?;
        let is_above = |trusted: &PathBuf| trusted.starts_with(&self.path) && *trusted != self.path;
        Ok(Step::Directory(Directory {
            path: self.path.clone(),
            mode: Mode::from_raw_mode(stat.st_mode),
            is_trusted: self.trusted.as_ref().is_some_and(is_above),
        }))
    }

    /// Puts what a link says in its place.
    fn follow(&mut self, link: &OwnedFd) -> Result<Step, Refusal> {
        let target = readlinkat(link, "", Vec::new())?;
        self.names.pop();
        let target = OsStr::from_bytes(target.as_bytes());
        if target.as_bytes().starts_with(b"/") {
            self.here = root()?;
            self.path = PathBuf::from("/");
            self.is_new_here = true;
        }
        let before = self.names.len();
        self.push(target)?;
        Ok(if before == 0 {
            Step::LastLink
        } else {
            Step::Link
        })
    }

    fn last(&mut self, found: Option<OwnedFd>) -> Result<Step, Refusal> {
        let name = self.names.pop().unwrap_or_default();
        Ok(Step::Last(Entry {
            directory: self.here.try_clone().map_err(Refusal::Io)?,
            stat: fstat(found.as_ref().unwrap_or(&self.here))?,
            name,
            found,
        }))
    }
}

fn root() -> Result<OwnedFd, Refusal> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open("/", flags, Mode::empty())?)
}
