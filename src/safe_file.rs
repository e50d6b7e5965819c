//! Files that users and operators name in aliases and `.forward`s: read and appended to by Sendmail's safety rules (L1).
//!
//! Guarantees: what is opened is a regular file with one link, reached by no symbolic link of its own, and the very file
//! that was looked at; nobody but its owner and root could have written to it, nor put it where it is. With root's rights
//! the file is opened with the rights of the user it is opened for ([`as_user`]). Opening never blocks on a FIFO or a
//! device. What is wrong is told in Sendmail's words ([`Refusal`]). A directory that everybody may write to counts as safe
//! if it is sticky and root's, as `/tmp` is: nobody replaces another's file there.
//! Touches: the files named. Blocks: disk. Limits: [`READ_BYTES_MAX`], [`PATH_DEPTH_MAX`].
//! Source: Sendmail's safefile() and safedirpath() by their effects, transcripts 02, 04 and 62, op.me 4.9.5.

#![deny(clippy::indexing_slicing)]

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::libc;
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};

use crate::status::Verdict;

/// The longest file that is read, in bytes.
pub const READ_BYTES_MAX: u64 = 32 << 20;
/// The deepest path that is looked at.
const PATH_DEPTH_MAX: usize = 128;

/// Whose rights count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Who {
    /// Numeric user id.
    pub uid: u32,
    /// Numeric group id.
    pub gid: u32,
}

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It or the way to it is not safe; the words are Sendmail's.
    #[error("{0}")]
    Unsafe(&'static str),
    /// It is longer than [`READ_BYTES_MAX`].
    #[error("File too large")]
    TooLarge,
    /// The system refused.
    #[error("{}", Errno::from_raw(.0.raw_os_error().unwrap_or(0)).desc())]
    Io(#[source] io::Error),
}

impl Refusal {
    /// Temporary if the system may answer otherwise later. Source: Sendmail's transienterror().
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        let Self::Io(error) = self else {
            return Verdict::Permanent;
        };
        match error.raw_os_error().map(Errno::from_raw) {
            Some(
                Errno::ENOENT
                | Errno::ENOTDIR
                | Errno::EACCES
                | Errno::EPERM
                | Errno::ELOOP
                | Errno::ENAMETOOLONG
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
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn denied() -> Refusal {
    Refusal::Io(io::Error::from_raw_os_error(libc::EACCES))
}

/// What a file says, and whose it is.
#[derive(Debug)]
pub struct Text {
    /// All of it.
    pub bytes: Vec<u8>,
    /// Its owner.
    pub owner: Who,
}

/// What a file is read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A user's `.forward`: it must be that user's or root's.
    Forward,
    /// The list of an `:include:`: anybody's.
    Include,
}

/// Does something with a user's rights on files, where the process has root's; elsewhere as it is. Only this thread's
/// rights change, and come back before this returns; supplementary groups stay the process's.
pub fn as_user<T>(who: Who, work: impl FnOnce() -> T) -> T {
    if !Uid::effective().is_root() || who.uid == 0 {
        return work();
    }
    struct Back(Uid, Gid);
    impl Drop for Back {
        fn drop(&mut self) {
            setfsuid(self.0);
            setfsgid(self.1);
        }
    }
    let _back = Back(Uid::effective(), Gid::effective());
    // The group first: without root's rights it could no longer be changed.
    setfsgid(Gid::from_raw(who.gid));
    setfsuid(Uid::from_raw(who.uid));
    work()
}

/// Reads a whole file for a user; `None` reads a list with this process's own rights. Directories above `trusted`, such
/// as those above a sandbox, are not looked at.
///
/// # Errors
/// [`Refusal`]; its verdict says whether it is worth trying again.
pub fn read(
    path: &Path,
    purpose: Purpose,
    who: Option<Who>,
    trusted: Option<&Path>,
) -> Result<Text, Refusal> {
    let open = || -> Result<Text, Refusal> {
        if !path.is_absolute() {
            return Err(denied());
        }
        let seen = path.symlink_metadata()?;
        if seen.is_symlink() {
            return Err(Refusal::Unsafe("Symbolic links not allowed"));
        }
        let is_null = path == Path::new("/dev/null");
        if !seen.is_file() && !is_null {
            return Err(Refusal::Unsafe("Regular files only"));
        }
        if is_null {
            return Ok(Text {
                bytes: Vec::new(),
                owner: owner_of(&seen),
            });
        }
        if seen.nlink() > 1 {
            return Err(Refusal::Unsafe("Hard links not allowed"));
        }
        if seen.mode() & 0o020 != 0 {
            return Err(Refusal::Unsafe("Group writable file"));
        }
        if seen.mode() & 0o002 != 0 {
            return Err(Refusal::Unsafe("World writable file"));
        }
        let owners = who.map_or(seen.uid(), |who| who.uid);
        if purpose == Purpose::Forward && seen.uid() != owners && seen.uid() != 0 {
            return Err(denied());
        }
        check_directories(path, seen.uid(), trusted)?;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(path)?;
        let opened = file.metadata()?;
        if (opened.dev(), opened.ino(), opened.uid()) != (seen.dev(), seen.ino(), seen.uid()) {
            return Err(Refusal::Unsafe("File changed after open"));
        }
        let mut bytes = Vec::new();
        file.take(READ_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > READ_BYTES_MAX {
            return Err(Refusal::TooLarge);
        }
        Ok(Text {
            bytes,
            owner: owner_of(&opened),
        })
    };
    match who {
        Some(who) => as_user(who, open),
        None => open(),
    }
}

/// Opens a file that mail is appended to, for a user, and makes it with mode 0600 if it is missing; says whether it was
/// made. `/dev/null` is taken as it is.
///
/// # Errors
/// [`Refusal`], whose [`Refusal::verdict`] says whether it is worth trying again.
///
/// # Durability
/// None: the caller syncs the file and, if it was made, its directory.
pub fn open_append(path: &Path, who: Who) -> Result<(File, bool), Refusal> {
    as_user(who, || {
        if !path.is_absolute() {
            return Err(denied());
        }
        let mut options = OpenOptions::new();
        options
            .read(true)
            .append(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC);
        let seen = match path.symlink_metadata() {
            Ok(seen) => seen,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Only one of two who make it at once makes it; the other finds it.
                return match options.clone().create_new(true).open(path) {
                    Ok(file) => Ok((file, true)),
                    Err(error) => Err(error.into()),
                };
            }
            Err(error) => return Err(error.into()),
        };
        let is_null = path == Path::new("/dev/null") && seen.file_type().is_char_device();
        if !is_null {
            if seen.is_symlink() {
                return Err(Refusal::Unsafe("Symbolic links not allowed"));
            }
            if !seen.is_file() {
                return Err(Refusal::Unsafe("Regular files only"));
            }
            if seen.nlink() > 1 {
                return Err(Refusal::Unsafe("Hard links not allowed"));
            }
            if seen.mode() & 0o111 != 0 {
                return Err(Refusal::Unsafe("Executable files not allowed"));
            }
            if seen.mode() & 0o6000 != 0 {
                return Err(Refusal::Unsafe("Set-id files not allowed"));
            }
        }
        let file = options.open(path)?;
        let opened = file.metadata()?;
        if (opened.dev(), opened.ino()) != (seen.dev(), seen.ino()) {
            return Err(Refusal::Unsafe("File changed after open"));
        }
        Ok((file, false))
    })
}

/// The directories that lead to a file, from the root on: nobody but root and `owner` may have written to them.
fn check_directories(path: &Path, owner: u32, trusted: Option<&Path>) -> Result<(), Refusal> {
    let mut so_far = PathBuf::new();
    let parent = path.parent().unwrap_or(Path::new("/"));
    for (depth, component) in parent.components().enumerate() {
        if depth > PATH_DEPTH_MAX || component == Component::ParentDir {
            return Err(denied());
        }
        so_far.push(component);
        if trusted.is_some_and(|trusted| trusted != so_far && trusted.starts_with(&so_far)) {
            continue;
        }
        // A symbolic link on the way counts as what it leads to, as its target's own way was made by who may write here.
        let seen = fs::metadata(&so_far)?;
        let is_sticky = seen.mode() & 0o1000 != 0 && seen.uid() == 0;
        if is_sticky {
            continue;
        }
        if seen.mode() & 0o020 != 0 && seen.gid() != 0 {
            return Err(Refusal::Unsafe("Group writable directory"));
        }
        if seen.mode() & 0o002 != 0 {
            return Err(Refusal::Unsafe("World writable directory"));
        }
        if seen.uid() != 0 && seen.uid() != owner && !is_ours(seen.uid()) {
            return Err(denied());
        }
    }
    Ok(())
}

/// Whether it is this process's own user: in a sandbox everything is.
fn is_ours(uid: u32) -> bool {
    Uid::effective().as_raw() == uid
}

fn owner_of(metadata: &Metadata) -> Who {
    Who {
        uid: metadata.uid(),
        gid: metadata.gid(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn me() -> Who {
        Who {
            uid: Uid::effective().as_raw(),
            gid: Gid::effective().as_raw(),
        }
    }

    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }
        fn file(&self, name: &str, mode: u32) -> PathBuf {
            let path = self.0.path().join(name);
            fs::write(&path, "bob\n").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        }
        fn read(&self, path: &Path) -> Result<Vec<u8>, String> {
            read(path, Purpose::Forward, Some(me()), Some(self.0.path()))
                .map(|text| text.bytes)
                .map_err(|error| error.to_string())
        }
    }

    #[test]
    fn what_others_could_have_written_is_not_read() {
        let place = Place::new();
        let good = place.file("good", 0o644);
        assert_eq!(place.read(&good).unwrap(), b"bob\n");
        let refused = |path: &Path, why: &str| assert_eq!(place.read(path).unwrap_err(), why);
        refused(&place.file("group", 0o664), "Group writable file");
        refused(&place.file("world", 0o646), "World writable file");
        let link = place.0.path().join("link");
        symlink(&good, &link).unwrap();
        refused(&link, "Symbolic links not allowed");
        fs::hard_link(&good, place.0.path().join("hard")).unwrap();
        refused(&good, "Hard links not allowed");
        refused(place.0.path(), "Regular files only");
        let fifo = place.0.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        refused(&fifo, "Regular files only");
        refused(Path::new("relative"), "Permission denied");
        refused(&place.0.path().join("missing"), "No such file or directory");
    }

    #[test]
    fn a_directory_that_others_may_write_to_is_not_safe() {
        let place = Place::new();
        let sub = place.0.path().join("sub");
        fs::create_dir(&sub).unwrap();
        let path = place.file("sub/forward", 0o600);
        assert!(place.read(&path).is_ok());
        fs::set_permissions(&sub, fs::Permissions::from_mode(0o757)).unwrap();
        assert_eq!(place.read(&path).unwrap_err(), "World writable directory");
    }

    #[test]
    fn files_that_are_programs_or_not_files_are_not_appended_to() {
        let place = Place::new();
        let refused = |path: &Path, why: &str| {
            assert_eq!(open_append(path, me()).unwrap_err().to_string(), why);
        };
        refused(&place.file("exec", 0o755), "Executable files not allowed");
        refused(&place.file("suid", 0o4644), "Set-id files not allowed");
        refused(place.0.path(), "Regular files only");
        let (_, is_new) = open_append(&place.0.path().join("new"), me()).unwrap();
        assert!(is_new);
        let (_, is_new) = open_append(&place.file("old", 0o644), me()).unwrap();
        assert!(!is_new);
        assert!(open_append(Path::new("/dev/null"), me()).is_ok());
        refused(Path::new("/dev/zero"), "Regular files only");
    }

    #[test]
    fn with_roots_rights_a_file_is_opened_with_its_users() {
        if !Uid::effective().is_root() {
            eprintln!("SKIPPED: needs root");
            return;
        }
        let place = Place::new();
        fs::set_permissions(place.0.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let path = place.file("roots", 0o600);
        let nobody = Who {
            uid: 65534,
            gid: 65534,
        };
        let error = open_append(&path, nobody).unwrap_err();
        assert_eq!(error.to_string(), "Permission denied");
        assert!(matches!(error.verdict(), Verdict::Permanent));
        // The rights are back.
        assert!(open_append(&path, me()).is_ok());
    }
}
