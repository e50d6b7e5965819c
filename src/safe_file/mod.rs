//! Files that users and operators name in aliases and `.forward`s: read and appended to by Sendmail's safety rules (L1).
//!
//! Guarantees: what is opened is a regular file, reached step by step from the root with each directory held open, and the
//! very file that was looked at, so that nothing can be put in its place meanwhile; nobody who may not could have written
//! to what is read, nor put it where it is. With root's rights all is looked up and opened with the rights of the user it
//! is opened for ([`as_user`]). Opening never blocks on a FIFO or a device. What is wrong is told in Sendmail's words
//! ([`Refusal`]); what an operator allows all the same is in [`Lenience`].
//! Touches: the files named, and the group database. Blocks: disk.
//! Limits: [`READ_BYTES_MAX`], [`STEPS_MAX`](walk::STEPS_MAX), [`LINKS_MAX`](walk::LINKS_MAX).
//! Source: Sendmail's safefile() and safedirpath() by their effects, transcripts 02, 04 and 62, op.me 4.9.5.

#![deny(clippy::indexing_slicing)]

mod walk;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::fs::{FileType, Mode, OFlags, openat};
use serde::{Deserialize, Serialize};

use crate::status::Verdict;
use walk::{Step, Walk};

/// The longest file that is read, in bytes.
pub const READ_BYTES_MAX: u64 = 32 << 20;
/// The one device that mail may be appended to, where it vanishes.
const NULL_DEVICE: &str = "/dev/null";
/// Most groups of a user that count. Source: Linux's NGROUPS_MAX is 65,536; nobody's are as many.
const GROUPS_MAX: usize = 4096;

/// Whose rights count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Who {
    /// Numeric user id.
    pub uid: u32,
    /// Numeric group id.
    pub gid: u32,
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It is a symbolic link, or one leads to it, where none may.
    #[error("Symbolic links not allowed")]
    SymbolicLink,
    /// It has another name as well, where it may not.
    #[error("Hard links not allowed")]
    HardLink,
    /// It is a directory, a FIFO, a device or the like.
    #[error("Regular files only")]
    NotRegular,
    /// It is to be written to and has an execute bit.
    #[error("Executable files not allowed")]
    Executable,
    /// It is to be written to and runs as its owner or group.
    #[error("Set-id files not allowed")]
    SetId,
    /// Its group could have written it.
    #[error("Group writable file")]
    GroupWritableFile,
    /// Anybody could have written it.
    #[error("World writable file")]
    WorldWritableFile,
    /// The group of a directory on the way could have put it there.
    #[error("Group writable directory")]
    GroupWritableDirectory(PathBuf),
    /// Anybody could have put it there.
    #[error("World writable directory")]
    WorldWritableDirectory(PathBuf),
    /// It was replaced while it was opened.
    #[error("File changed after open")]
    Changed,
    /// It belongs to somebody else than who it speaks for.
    #[error("Permission denied")]
    NotOwner,
    /// Its path does not begin at the root.
    #[error("Permission denied")]
    Relative,
    /// It is longer than [`READ_BYTES_MAX`].
    #[error("File too large")]
    TooLarge,
    /// The system refused.
    #[error("{}", words(.0))]
    Io(#[source] io::Error),
}

impl Refusal {
    /// Temporary if it may be otherwise later. Source: Sendmail's transienterror().
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let error = match self {
            // At a limit, and when something was just being replaced, another time may do.
            Self::Changed | Self::TooLarge => return Verdict::Temporary,
            Self::Io(error) => error,
            _ => return Verdict::Permanent,
        };
        match error.raw_os_error().map(Errno::from_raw) {
            Some(
                Errno::ENOENT
                | Errno::ENOTDIR
                | Errno::EACCES
                | Errno::EPERM
                | Errno::ELOOP
                | Errno::ENAMETOOLONG
                | Errno::EINVAL
                | Errno::ENXIO
                | Errno::EISDIR
                | Errno::EROFS,
            ) => Verdict::Permanent,
            _ => Verdict::Temporary,
        }
    }

    /// Whether there is no such file.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Io(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory))
    }

    /// The directory that is to blame, if one is.
    #[must_use]
    pub fn directory(&self) -> Option<&Path> {
        match self {
            Self::GroupWritableDirectory(path) | Self::WorldWritableDirectory(path) => Some(path),
            _ => None,
        }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<rustix::io::Errno> for Refusal {
    fn from(error: rustix::io::Errno) -> Self {
        Self::Io(error.into())
    }
}

/// The system's words for an error, without its number.
fn words(error: &io::Error) -> String {
    let text = error.to_string();
    match text.split_once(" (os error ") {
        Some((words, _)) => words.to_owned(),
        None => text,
    }
}

/// What an operator lets pass that is refused otherwise: the names of Sendmail's DontBlameSendmail, for one kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Lenience {
    /// `GroupWritableForwardFile`, `GroupWritableIncludeFile`.
    pub group_writable_file: bool,
    /// `GroupWritableForwardFileSafe`, `GroupWritableIncludeFileSafe`: such a file may act for its user.
    pub group_writable_file_is_safe: bool,
    /// `WorldWritableForwardFile`, `WorldWritableIncludeFile`.
    pub world_writable_file: bool,
    /// `ForwardFileInGroupWritableDirPath`, `IncludeFileInGroupWritableDirPath`, `GroupWritableDirPathSafe`.
    pub group_writable_directory: bool,
    /// `ForwardFileInUnsafeDirPath`, `IncludeFileInUnsafeDirPath`: every directory will do.
    pub unsafe_directory: bool,
    /// `ForwardFileInUnsafeDirPathSafe`, `IncludeFileInUnsafeDirPathSafe`: a file in such a directory may act for its user.
    pub unsafe_directory_is_safe: bool,
    /// `LinkedForwardFileInWritableDir`, `LinkedIncludeFileInWritableDir`: links in directories that others may write to,
    /// where those are let pass.
    pub link_in_writable_directory: bool,
    /// `FileDeliveryToSymLink`.
    pub symbolic_link: bool,
    /// `FileDeliveryToHardLink`.
    pub hard_link: bool,
    /// `TrustStickyBit`: a directory that others may write to is safe if it is sticky.
    pub sticky_directory: bool,
}

/// What a file is read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// A user's `.forward`: it must be that user's or root's.
    Forward,
    /// The list of an `:include:`: anybody's.
    Include,
    /// The words of a class: anybody's.
    Class,
}

/// A file to be read whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadRequest<'a> {
    /// Its path, absolute.
    pub path: &'a Path,
    /// What for.
    pub purpose: Purpose,
    /// With whose rights; `None`: with its owner's.
    pub who: Option<Who>,
    /// What is let pass.
    pub lenience: Lenience,
    /// Directories above this one, such as those above a sandbox, are not looked at.
    pub trusted: Option<&'a Path>,
}

/// What a file says, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// All of it.
    pub bytes: Vec<u8>,
    /// Its owner.
    pub owner: Who,
    /// Whether others may write to it, or put another in its place, which was let pass: what it names must not act with
    /// the owner's rights.
    pub is_writable_by_others: bool,
}

/// Does something with a user's rights on files, and its own group's, where the process has root's; elsewhere as it is.
/// Only this thread's rights change, and come back before this returns.
pub fn as_user<T>(who: Who, work: impl FnOnce() -> T) -> T {
    as_member(who, &[], work)
}

/// As [`as_user`], with the rights of more groups than the user's own.
fn as_member<T>(who: Who, groups: &[u32], work: impl FnOnce() -> T) -> T {
    if !Uid::effective().is_root() || who.uid == 0 {
        return work();
    }
    struct Back(Uid, Gid, Option<Vec<rustix::fs::Gid>>);
    impl Drop for Back {
        fn drop(&mut self) {
            setfsuid(self.0);
            setfsgid(self.1);
            if let Some(groups) = &self.2 {
                let restored = rustix::thread::set_thread_groups(groups);
                assert!(restored.is_ok(), "a thread's groups could not be restored");
            }
        }
    }
    let own = rustix::process::getgroups().ok();
    let wanted: Vec<_> = [who.gid]
        .iter()
        .chain(groups)
        .map(|gid| rustix::fs::Gid::from_raw(*gid))
        .collect();
    let changed = own.filter(|_| rustix::thread::set_thread_groups(&wanted).is_ok());
    let _back = Back(Uid::effective(), Gid::effective(), changed);
    // The group first: without root's rights it could no longer be changed.
    setfsgid(Gid::from_raw(who.gid));
    setfsuid(Uid::from_raw(who.uid));
    work()
}

/// As [`as_user`]; what is denied is tried again with the user's other groups, whose lookup is spared most of the time.
fn as_user_or_groups<T>(who: Who, work: impl Fn() -> Result<T, Refusal>) -> Result<T, Refusal> {
    let is_denied = |refusal: &Refusal| matches!(refusal, Refusal::Io(error) if error.raw_os_error() == Some(Errno::EACCES as i32));
    match as_user(who, &work) {
        Err(refusal) if is_denied(&refusal) && Uid::effective().is_root() => {
            let groups = groups_of(who);
            if groups.is_empty() {
                return Err(refusal);
            }
            as_member(who, &groups, work)
        }
        result => result,
    }
}

/// The groups of a user besides its own; none if the system does not tell. Blocks: as NSS does.
fn groups_of(who: Who) -> Vec<u32> {
    let Ok(Some(user)) = nix::unistd::User::from_uid(Uid::from_raw(who.uid)) else {
        return Vec::new();
    };
    let Ok(name) = std::ffi::CString::new(user.name) else {
        return Vec::new();
    };
    let groups = nix::unistd::getgrouplist(&name, Gid::from_raw(who.gid)).unwrap_or_default();
    groups
        .into_iter()
        .map(Gid::as_raw)
        .filter(|gid| *gid != who.gid)
        .take(GROUPS_MAX)
        .collect()
}

/// Reads a whole file.
///
/// # Errors
/// [`Refusal`]; its verdict says whether it is worth trying again.
pub fn read(request: &ReadRequest<'_>) -> Result<Text, Refusal> {
    if !request.path.is_absolute() {
        return Err(Refusal::Relative);
    }
    let who = match request.who {
        Some(who) => who,
        // Looked up with our own rights, opened with the owner's: that it is still the owner's is checked then.
        None => owner_of(&rustix::fs::stat(request.path)?),
    };
    let text = as_user_or_groups(who, || read_as(request, who))?;
    if request.who.is_none() && text.owner.uid != who.uid {
        return Err(Refusal::Changed);
    }
    Ok(text)
}

fn read_as(request: &ReadRequest<'_>, who: Who) -> Result<Text, Refusal> {
    let lenience = &request.lenience;
    // Most `.forward`s that are asked for are not there: that costs one call.
    rustix::fs::lstat(request.path)?;
    let mut others_may_write = false;
    let mut is_replaceable = false;
    let mut walk = Walk::new(request.path, request.trusted)?;
    let entry = loop {
        match walk.next()? {
            Step::Directory(directory) => {
                if let Some(refusal) = directory.writable_by_others(lenience.sticky_directory) {
                    let is_the_groups = lenience.group_writable_directory
                        && matches!(refusal, Refusal::GroupWritableDirectory(_));
                    if !is_the_groups && !lenience.unsafe_directory {
                        return Err(refusal);
                    }
                    others_may_write = true;
                    is_replaceable |= !is_the_groups && !lenience.unsafe_directory_is_safe;
                }
            }
            Step::Link | Step::LastLink => {
                if others_may_write && !lenience.link_in_writable_directory {
                    return Err(Refusal::SymbolicLink);
                }
            }
            Step::Last(entry) => break entry,
        }
    };
    let mode = entry.mode();
    if entry.kind() != FileType::RegularFile {
        return Err(Refusal::NotRegular);
    }
    if mode.contains(Mode::WGRP) && !lenience.group_writable_file {
        return Err(Refusal::GroupWritableFile);
    }
    if mode.contains(Mode::WOTH) && !lenience.world_writable_file {
        return Err(Refusal::WorldWritableFile);
    }
    if others_may_write && entry.links() > 1 && !lenience.link_in_writable_directory {
        return Err(Refusal::HardLink);
    }
    let owner = owner_of(entry.stat());
    if request.purpose == Purpose::Forward && owner.uid != who.uid && owner.uid != 0 {
        return Err(Refusal::NotOwner);
    }
    let file = entry.open(OFlags::RDONLY)?;
    let mut bytes = Vec::new();
    file.take(READ_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > READ_BYTES_MAX {
        return Err(Refusal::TooLarge);
    }
    Ok(Text {
        bytes,
        owner,
        is_writable_by_others: is_replaceable
            || mode.contains(Mode::WOTH)
            || (mode.contains(Mode::WGRP) && !lenience.group_writable_file_is_safe),
    })
}

/// Opens a file that mail is appended to, for a user, and makes it with mode 0600 if it is missing; gives its directory as
/// well if it was made, which the user need not be able to read. `/dev/null` is taken as it is. Directories may be anybody's, as the file's rights decide; never call it for root
/// on a path that somebody else chose.
///
/// # Errors
/// [`Refusal`], whose [`Refusal::verdict`] says whether it is worth trying again.
///
/// # Durability
/// None: the caller syncs the file and, if it was made, its directory.
pub fn open_append(
    path: &Path,
    who: Who,
    lenience: &Lenience,
) -> Result<(File, Option<File>), Refusal> {
    if !path.is_absolute() {
        return Err(Refusal::Relative);
    }
    let (file, made_in) = as_user_or_groups(who, || open_append_as(path, lenience))?;
    let directory = made_in.map(|held| open_held(&held, who)).transpose()?;
    Ok((file, directory))
}

/// Opens a directory that is held, to be synced: with our own rights, or the user's where a server does not heed them.
/// The file is there by now, so that whatever goes wrong is trouble for now.
fn open_held(held: &OwnedFd, who: Who) -> Result<File, Refusal> {
    let open = || {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(File::from(openat(held, ".", flags, Mode::empty())?))
    };
    open()
        .or_else(|_| as_user_or_groups(who, open))
        .map_err(|refusal| Refusal::Io(io::Error::other(format!("its directory: {refusal}"))))
}

/// With the directory, held, if the file was made.
fn open_append_as(path: &Path, lenience: &Lenience) -> Result<(File, Option<OwnedFd>), Refusal> {
    let flags = OFlags::RDWR | OFlags::APPEND;
    let mut walk = Walk::new(path, None)?;
    let entry = loop {
        match walk.next()? {
            Step::LastLink if !lenience.symbolic_link => return Err(Refusal::SymbolicLink),
            // On the way links lead where they lead; the file itself may be none.
            Step::Directory(_) | Step::Link | Step::LastLink => {}
            Step::Last(entry) => break entry,
        }
    };
    if !entry.exists() {
        // Only one of two who make it at once makes it; the other finds it when it tries again.
        let file = entry.create(flags, Mode::RUSR | Mode::WUSR)?;
        return Ok((file, Some(entry.into_directory())));
    }
    let mode = entry.mode();
    if path == Path::new(NULL_DEVICE) && entry.kind() == FileType::CharacterDevice {
        return Ok((entry.open(flags)?, None));
    }
    if entry.kind() != FileType::RegularFile {
        return Err(Refusal::NotRegular);
    }
    if mode.intersects(Mode::XUSR | Mode::XGRP | Mode::XOTH) {
        return Err(Refusal::Executable);
    }
    if mode.intersects(Mode::SUID | Mode::SGID) {
        return Err(Refusal::SetId);
    }
    if entry.links() > 1 && !lenience.hard_link {
        return Err(Refusal::HardLink);
    }
    Ok((entry.open(flags)?, None))
}

fn owner_of(stat: &rustix::fs::Stat) -> Who {
    Who {
        uid: stat.st_uid,
        gid: stat.st_gid,
    }
}

#[cfg(test)]
mod tests;
