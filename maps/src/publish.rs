//! Putting a finished map file in place of the old one: whole, on disk, or not at all.
//!
//! A new file `NAME.tmp-PID` beside the old one (created exclusively, mode 0600); an exclusive flock on the old one,
//! which keeps off stock tools that rebuild in place; write; read back a sample; owner and mode; sync the file; rename;
//! sync the directory (I5). On any error the new file is removed and the old one stays. A crash leaves the old or the
//! new map, never half of one; a leftover `.tmp-PID` is harmless.
//!
//! Blocks: on disk, and up to [`PublishOptions::lock_wait`] on the old file's lock.

use crate::lock::{self, Mode};
use crate::patience::Patience;
use crate::{MapError, io_text};
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How often the old file may be replaced by others while we wait for its lock.
const REPLACED_MAX: u32 = 100;
/// Permission bits of which a map that is replaced has to have one.
const WRITABLE: u32 = 0o222;

/// Who shall own a published map, and how long to wait for it.
#[derive(Debug, Clone)]
pub struct PublishOptions {
    /// Permission bits of a new map; one that exists keeps its own, less write permission for group and others.
    pub mode: u32,
    /// Owner of the file (Sendmail's TrustedUser); `None`: root keeps the old map's owner, others are the owner.
    pub owner_uid: Option<u32>,
    /// How long to wait for a program that holds the old file's lock.
    pub lock_wait: Duration,
    /// Whether a map that is a symbolic link, or has several names, is refused. If not, a symbolic link is followed and
    /// the file behind it replaced, and the other names of a file keep its old contents.
    pub refuses_links: bool,
}

impl Default for PublishOptions {
    fn default() -> Self {
        Self {
            mode: 0o640,
            owner_uid: None,
            lock_wait: Duration::from_secs(30),
            refuses_links: true,
        }
    }
}

/// A map that is in place and on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The map's file.
    pub path: PathBuf,
    /// Number of different keys.
    pub keys: u64,
}

/// A map that could not be published; the old one, if any, is as it was.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The system refused a step.
    #[error("{}: cannot {operation}: {}", path.display(), io_text(source))]
    Io {
        /// The file.
        path: PathBuf,
        /// What was being done.
        operation: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The place of the map is taken by something that is not replaced, for safety.
    #[error("{}: {reason}", path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// Sendmail's words for it.
        reason: &'static str,
    },
    /// The old map is locked, or what was written does not read back.
    #[error(transparent)]
    Map(#[from] MapError),
}

impl PublishError {
    /// Publishing again later may work in every case: nothing was changed. A refusal wants the operator first.
    pub fn verdict(&self) -> crate::Verdict {
        match self {
            Self::Refused { .. } => crate::Verdict::Permanent,
            Self::Io { .. } => crate::Verdict::Temporary,
            Self::Map(error) => error.verdict(),
        }
    }

    /// The text without the path, as Sendmail's tools print it after the map's name.
    pub fn detail(&self) -> String {
        match self {
            Self::Io { source, .. } => io_text(source),
            Self::Refused { reason, .. } => (*reason).to_owned(),
            Self::Map(error) => error.detail().to_owned(),
        }
    }
}

/// The calls that decide what a power cut leaves, so that tests can cut at each of them.
pub(crate) trait Disk {
    /// Creates a file that was not there.
    fn create(&self, path: &Path) -> io::Result<File>;
    /// Makes a file's bytes durable.
    fn sync_file(&self, file: &File, path: &Path) -> io::Result<()>;
    /// Gives a file the name of another, which it replaces.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_directory(&self, path: &Path) -> io::Result<()>;
    /// Removes a name.
    fn remove(&self, path: &Path) -> io::Result<()>;
}

/// The file system.
pub(crate) struct RealDisk;

impl Disk for RealDisk {
    fn create(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)
    }

    fn sync_file(&self, file: &File, _path: &Path) -> io::Result<()> {
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_all()
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }
}

/// Removes the temporary file unless it was renamed.
struct Temporary<'d> {
    disk: &'d dyn Disk,
    path: PathBuf,
    is_published: bool,
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.is_published {
            // The error that led here is the one to report.
            let _ = self.disk.remove(&self.path);
        }
    }
}

/// How programs that share a map lock its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Locking {
    /// With flock(2).
    Flock,
    /// With flock(2) or with fcntl(2).
    FlockAndRecord,
}

/// Writes a file by `write`, which is given it and its name, and puts it in the place of `dest`.
///
/// # Errors
/// [`PublishError`]; `dest` is then untouched, unless only the directory's sync failed, which is said.
///
/// # Durability
/// When this returns, the new file and its name are on disk.
pub(crate) fn publish<T>(
    disk: &dyn Disk,
    dest: &Path,
    options: &PublishOptions,
    locking: Locking,
    write: impl FnOnce(&File, &Path) -> Result<T, PublishError>,
) -> Result<T, PublishError> {
    let fail = |operation: &'static str, path: &Path| {
        let path = path.to_path_buf();
        move |source| PublishError::Io {
            path,
            operation,
            source,
        }
    };
    let followed = check_place(dest, options)?;
    let dest = followed.as_path();
    let (file, mut temporary) = create_temporary(disk, dest)?;
    let old = lock_old(dest, options.lock_wait, locking)?;
    let result = write(&file, &temporary.path)?;
    let path = &temporary.path;
    let mode = match &old {
        Some(old) => {
            let meta = old.metadata().map_err(fail("stat", dest))?;
            // Owner and group are kept where the process may; where not, the file is the builder's, as one rebuilt by
            // removing and creating it would be, and its mode still keeps strangers out.
            let uid = rustix::process::geteuid().is_root().then(|| meta.uid());
            let _ = std::os::unix::fs::fchown(&file, uid, Some(meta.gid()));
            meta.mode() & 0o755
        }
        None => options.mode,
    };
    if let Some(uid) = options.owner_uid {
        std::os::unix::fs::fchown(&file, Some(uid), None)
            .map_err(fail("set the owner of", path))?;
    }
    file.set_permissions(Permissions::from_mode(mode))
        .map_err(fail("set the mode of", path))?;
    disk.sync_file(&file, path).map_err(fail("sync", path))?;
    disk.rename(path, dest).map_err(fail("rename", path))?;
    temporary.is_published = true;
    disk.sync_directory(directory_of(dest))
        .map_err(fail("sync the directory of", dest))?;
    drop(old);
    Ok(result)
}

/// Writes a text map to `dest`, whole and on disk, or leaves the old one.
///
/// # Errors
/// [`PublishError`]; `dest` is then what it was.
///
/// # Durability
/// When this returns, the text and its name are on disk.
pub fn publish_text(
    dest: &Path,
    text: &[u8],
    options: &PublishOptions,
) -> Result<(), PublishError> {
    publish(&RealDisk, dest, options, Locking::Flock, |mut file, _| {
        file.write_all(text).map_err(|source| PublishError::Io {
            path: dest.to_path_buf(),
            operation: "write",
            source,
        })
    })
}

/// Checks that a map can be put in place before anything is read for it: its directory is there and may be written,
/// and nothing is in its place that Sendmail refuses (links, anything but a regular file). Answers the file that will
/// be replaced: `dest`, or what it links to where that is allowed. Blocks on disk.
///
/// # Errors
/// [`PublishError`], as publishing would give it.
pub fn check_place(dest: &Path, options: &PublishOptions) -> Result<PathBuf, PublishError> {
    let refused = |reason| {
        Err(PublishError::Refused {
            path: dest.to_path_buf(),
            reason,
        })
    };
    let fail = |source| PublishError::Io {
        path: dest.to_path_buf(),
        operation: "create",
        source,
    };
    let mut place = dest.to_path_buf();
    match std::fs::symlink_metadata(dest) {
        Ok(meta) if meta.file_type().is_symlink() => {
            if options.refuses_links {
                return refused("Symbolic links not allowed");
            }
            place = std::fs::canonicalize(dest).map_err(fail)?;
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    match std::fs::symlink_metadata(&place) {
        Ok(meta) if !meta.is_file() => return refused("Regular files only"),
        Ok(meta) if meta.nlink() > 1 && options.refuses_links => {
            return refused("Hard links not allowed");
        }
        // Root may all the same, and so may who owns the directory; who took the right to write away meant it.
        Ok(meta) if meta.mode() & WRITABLE == 0 => {
            return Err(fail(rustix::io::Errno::ACCESS.into()));
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    rustix::fs::access(
        directory_of(&place),
        rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK,
    )
    .map_err(|errno| fail(errno.into()))?;
    Ok(place)
}

fn create_temporary<'d>(
    disk: &'d dyn Disk,
    dest: &Path,
) -> Result<(File, Temporary<'d>), PublishError> {
    let mut name = dest.as_os_str().to_os_string();
    name.push(format!(".tmp-{}", std::process::id()));
    let path = PathBuf::from(name);
    let create = || disk.create(&path);
    let file = match create() {
        // Left by a process of the same number that crashed: no other can be at work under our number.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            disk.remove(&path).and_then(|()| create())
        }
        other => other,
    };
    let file = file.map_err(|source| PublishError::Io {
        path: dest.to_path_buf(),
        operation: "create",
        source,
    })?;
    Ok((
        file,
        Temporary {
            disk,
            path,
            is_published: false,
        },
    ))
}

/// Takes the exclusive lock of the file `dest` names, if there is one.
fn lock_old(dest: &Path, wait: Duration, locking: Locking) -> Result<Option<File>, PublishError> {
    let fail = |operation: &'static str| {
        let path = dest.to_path_buf();
        move |source| PublishError::Io {
            path,
            operation,
            source,
        }
    };
    let mut patience = Patience::new(wait);
    for _ in 0..REPLACED_MAX {
        let has_record = locking == Locking::FlockAndRecord;
        let opened = OpenOptions::new().read(true).write(has_record).open(dest);
        let file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fail("open")(error)),
        };
        loop {
            let is_locked = lock::try_flock(&file, Mode::Exclusive).map_err(fail("lock"))?
                && (!has_record
                    || lock::try_record(&file, Mode::Exclusive).map_err(fail("lock"))?);
            if is_locked {
                break;
            }
            if !patience.wait() {
                let detail = format!(
                    "another program uses the map (waited {} ms)",
                    wait.as_millis()
                );
                return Err(MapError::locked(dest, detail).into());
            }
        }
        let locked = file.metadata().map_err(fail("stat"))?;
        match std::fs::metadata(dest) {
            Ok(named) if (named.dev(), named.ino()) == (locked.dev(), locked.ino()) => {
                return Ok(Some(file));
            }
            // Replaced while we waited: the new one is the one to lock.
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(fail("stat")(error)),
        }
    }
    Err(MapError::locked(dest, "the map is replaced again and again").into())
}

/// The directory a file lies in; `.` for a bare name.
fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(dest: &Path, text: &str, options: &PublishOptions) -> Result<(), PublishError> {
        publish_text(dest, text.as_bytes(), options)
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_new_map_has_the_asked_for_mode_and_an_old_one_keeps_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("m.db");
        put(&dest, "one", &PublishOptions::default()).unwrap();
        assert_eq!(std::fs::metadata(&dest).unwrap().mode() & 0o777, 0o640);
        std::fs::set_permissions(&dest, Permissions::from_mode(0o664)).unwrap();
        put(&dest, "two", &PublishOptions::default()).unwrap();
        assert_eq!(std::fs::metadata(&dest).unwrap().mode() & 0o777, 0o644);
        assert_eq!(std::fs::read_to_string(&dest).unwrap(), "two");
        assert_eq!(names(dir.path()), ["m.db"]);
    }

    #[test]
    fn a_failed_build_leaves_the_old_map_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("m.db");
        put(&dest, "old", &PublishOptions::default()).unwrap();
        let failed: Result<(), _> = publish(
            &RealDisk,
            &dest,
            &PublishOptions::default(),
            Locking::Flock,
            |mut file, _| {
                file.write_all(b"half").unwrap();
                Err(MapError::damaged(&dest, "on purpose").into())
            },
        );
        assert!(failed.is_err());
        assert_eq!(std::fs::read_to_string(&dest).unwrap(), "old");
        assert_eq!(names(dir.path()), ["m.db"]);
    }

    #[test]
    fn links_are_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("m.db");
        std::os::unix::fs::symlink("target.db", &dest).unwrap();
        let error = put(&dest, "x", &PublishOptions::default()).unwrap_err();
        assert_eq!(error.detail(), "Symbolic links not allowed");
        std::fs::remove_file(&dest).unwrap();
        std::fs::write(&dest, "x").unwrap();
        std::fs::hard_link(&dest, dir.path().join("hard.db")).unwrap();
        let error = put(&dest, "x", &PublishOptions::default()).unwrap_err();
        assert_eq!(error.detail(), "Hard links not allowed");
        std::fs::create_dir(dir.path().join("d.db")).unwrap();
        assert!(put(&dir.path().join("d.db"), "x", &PublishOptions::default()).is_err());
    }

    #[test]
    fn a_map_in_use_by_a_stock_tool_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("m.db");
        std::fs::write(&dest, "x").unwrap();
        let held = File::open(&dest).unwrap();
        held.lock().unwrap();
        let options = PublishOptions {
            lock_wait: Duration::from_millis(20),
            ..PublishOptions::default()
        };
        let error = put(&dest, "y", &options).unwrap_err();
        assert!(matches!(error, PublishError::Map(MapError::Locked { .. })));
        drop(held);
        put(&dest, "y", &options).unwrap();
        assert_eq!(names(dir.path()), ["m.db"]);
    }
}
