//! Reading a map file whole, without ever taking a half-built one for a good one.
//!
//! Stock tools (makemap, newaliases, postmap) rebuild Berkeley DB files in place under an exclusive flock; ours
//! replace them by rename. So: open, take the shared lock (waiting out a rebuild, up to a deadline), read everything,
//! check that neither the file nor its name changed meanwhile, verify, and only then hand out a snapshot.
//!
//! Blocks: on disk, and on the lock up to [`LoadOptions::lock_wait`]. Limits: [`FILE_BYTES_MAX`],
//! [`LoadOptions::lock_wait`], [`ATTEMPTS_MAX`].

#![deny(clippy::indexing_slicing)]

use crate::direct::MapFile;
use crate::file_access::FileAccess;
use crate::fixed::load_fixed;
use crate::lock::{self, Mode};
use crate::patience::Patience;
use crate::redb_file::load_redb;
use crate::region::Region;
use crate::spec::TextColumns;
use crate::{MapError, MapKind, Safety, Snapshot, SnapshotBuilder, text};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

/// Largest map file read into memory, in bytes.
pub const FILE_BYTES_MAX: u64 = 8 << 30;
/// How often a file that changes while it is read is read again.
pub const ATTEMPTS_MAX: u32 = 16;

/// The first bytes of a file that are read at once: a page of a usual map, which holds its header.
const HEAD_LEN: usize = 4096;
/// Permission bits of which a file has to have one to be read.
const READABLE: u32 = 0o444;
/// Bytes that tell a file whose users take record locks from others.
const RECORD_HEAD_LEN: usize = 32;

/// What identifies one state of a map file: any rebuild, in place or by rename, changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Stamp {
    /// Device number.
    pub device: u64,
    /// Inode number.
    pub inode: u64,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Time of last modification, in nanoseconds since 1970.
    pub mtime_ns: i128,
    /// Time of last status change, in nanoseconds since 1970.
    pub ctime_ns: i128,
}

impl Stamp {
    /// The stamp of a file's state.
    pub fn of(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size_bytes: meta.size(),
            mtime_ns: i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()),
            ctime_ns: i128::from(meta.ctime()) * 1_000_000_000 + i128::from(meta.ctime_nsec()),
        }
    }

    /// The stamp of what a path names now. Blocks: one `stat`.
    ///
    /// # Errors
    /// What `stat` says.
    pub fn of_path(path: &Path) -> io::Result<Self> {
        // The system's plain call: this is made for each transaction, and std's asks for more.
        let stat = rustix::fs::stat(path)?;
        let time_ns = |seconds: i128, nanos: i128| seconds * 1_000_000_000 + nanos;
        Ok(Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
            mtime_ns: time_ns(stat.st_mtime.into(), stat.st_mtime_nsec.into()),
            ctime_ns: time_ns(stat.st_ctime.into(), stat.st_ctime_nsec.into()),
        })
    }
}

/// How to load a map.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// How long to wait for a program that is rebuilding the file.
    pub lock_wait: Duration,
    /// Columns of a text map.
    pub columns: TextColumns,
    /// Whether keys of a text map are put in lower case.
    pub folds_text_keys: bool,
    /// Which files are refused because others could have written them. Nothing is, unless the caller says so.
    pub safety: Safety,
    /// How the file is opened.
    pub files: FileAccess,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            lock_wait: Duration::from_secs(10),
            columns: TextColumns::default(),
            folds_text_keys: true,
            safety: Safety::UNCHECKED,
            files: FileAccess::default(),
        }
    }
}

/// Reads and verifies the map file `path` of class `kind`.
///
/// # Errors
/// [`MapError::Open`], [`MapError::Locked`] at the deadline, [`MapError::Damaged`], [`MapError::Unsupported`].
pub fn load(kind: MapKind, path: &Path, options: &LoadOptions) -> Result<Snapshot, MapError> {
    let access = Access {
        files: options.files.clone(),
        ..Access::checked(options.lock_wait, options.safety)
    };
    if kind == MapKind::Text {
        let (bytes, stamp) = read_locked(path, &access, Emptiness::Allowed)?;
        let (columns, folds_keys) = (&options.columns, options.folds_text_keys);
        return text::load(path, &bytes, columns, folds_keys, stamp);
    }
    let (bytes, stamp) = read_locked(path, &access, Emptiness::BeingCreated)?;
    match MapKind::of_content(&bytes, bytes.len() as u64) {
        Some(MapKind::Redb) => return load_redb(path, &bytes, stamp),
        Some(MapKind::Fixed) => return load_fixed(path, bytes, stamp),
        _ => {}
    }
    // By the content, not by the class: a btree file named by a hash map is read all the same.
    let file = MapFile::open(&*bytes, kind, path)?;
    let mut builder = SnapshotBuilder::new(path, bytes.len() / 64, bytes.len());
    let mut trouble = None;
    file.each(&mut |key, value| match builder.add(key, value) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            trouble = Some(error);
            ControlFlow::Break(())
        }
    })?;
    drop(file);
    drop(bytes);
    match trouble {
        Some(error) => Err(error),
        None => Ok(builder.finish(stamp)),
    }
}

/// What a file of length 0 means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Emptiness {
    /// A database file somebody is about to write.
    BeingCreated,
    /// A list without entries.
    Allowed,
}

/// How a map file is opened for reading: what is waited for, and what is refused. Each check looks at the file that was
/// opened, never at the name a second time.
#[derive(Debug, Clone)]
pub struct Access {
    /// How long to wait for a program that is rebuilding the file.
    pub lock_wait: Duration,
    /// Which files are refused because others could have written them.
    pub safety: Safety,
    /// Whether a symbolic link, and a file with several names, is refused.
    pub refuses_links: bool,
    /// How it is opened where the process itself may not.
    pub files: FileAccess,
}

impl Access {
    /// Refuses what `safety` refuses, and follows links.
    pub fn checked(lock_wait: Duration, safety: Safety) -> Self {
        Self {
            lock_wait,
            safety,
            refuses_links: false,
            files: FileAccess::default(),
        }
    }
}

/// Waits so long and refuses nothing: for programs whose user chose the file.
impl From<Duration> for Access {
    fn from(lock_wait: Duration) -> Self {
        Self::checked(lock_wait, Safety::UNCHECKED)
    }
}

/// Opens a map file for reading: a regular file only, never waiting on a FIFO.
fn open_file(path: &Path, access: &Access) -> Result<File, MapError> {
    let failed = |error: io::Error| MapError::open(path, &error);
    // So that opening a FIFO cannot hang; without effect on regular files.
    let mut flags = OFlags::NONBLOCK;
    flags.set(OFlags::NOFOLLOW, access.refuses_links);
    let opened = access.files.open_with(path, flags);
    let file = match opened {
        Err(error)
            if access.refuses_links && error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) =>
        {
            return Err(MapError::unsafe_file(path, "Symbolic links not allowed"));
        }
        opened => opened.map_err(failed)?,
    };
    let meta = file.metadata().map_err(failed)?;
    if !meta.is_file() {
        let kind = io::ErrorKind::InvalidInput;
        return Err(failed(io::Error::new(kind, "Regular files only")));
    }
    // Root reads everything; who took the right to read away meant it.
    if meta.mode() & READABLE == 0 {
        return Err(failed(Errno::ACCESS.into()));
    }
    if access.refuses_links && meta.nlink() > 1 {
        return Err(MapError::unsafe_file(path, "Hard links not allowed"));
    }
    access.safety.check(path, &meta)?;
    Ok(file)
}

/// Opens a map file and takes its shared lock, making sure that the path still names the file when the lock is ours
/// and that it is not a database about to be created.
pub(crate) fn open_locked(
    path: &Path,
    access: &Access,
    empty: Emptiness,
) -> Result<(File, Stamp), MapError> {
    open_with_head(path, access, empty).map(|(file, stamp, _)| (file, stamp))
}

/// As [`open_locked`], with the file's first bytes, up to [`HEAD_LEN`]; none where text is read.
///
/// A file that was replaced between its opening and its lock is whole all the same, and what it says was true a moment
/// ago; one that somebody was rebuilding is opened anew after the wait.
pub(crate) fn open_with_head(
    path: &Path,
    access: &Access,
    empty: Emptiness,
) -> Result<(File, Stamp, Vec<u8>), MapError> {
    let wait = access.lock_wait;
    let mut patience = Patience::new(wait);
    loop {
        let file = open_file(path, access)?;
        let failed = |error| MapError::open(path, &error);
        let mut head = Vec::new();
        let is_locked = lock::try_flock(&file, Mode::Shared).map_err(failed)?
            && (empty == Emptiness::Allowed || {
                head = head_of(&file).map_err(failed)?;
                !has_record_lock(&head) || lock::try_record(&file, Mode::Shared).map_err(failed)?
            });
        let trouble = if is_locked {
            let stamp = Stamp::of(&file.metadata().map_err(failed)?);
            if stamp.size_bytes == 0 && empty == Emptiness::BeingCreated {
                "the file is empty: somebody is creating it, or a build was broken off"
            } else {
                return Ok((file, stamp, head));
            }
        } else {
            "another program is rebuilding the file"
        };
        drop(file);
        if !patience.wait() {
            let waited = format!("{trouble} (waited {} ms)", wait.as_millis());
            return Err(MapError::locked(path, waited));
        }
    }
}

/// The first bytes of a file.
fn head_of(file: &File) -> io::Result<Vec<u8>> {
    let mut head = vec![0; HEAD_LEN];
    let len = file.read_at(&mut head, 0)?;
    head.truncate(len);
    Ok(head)
}

/// Whether the file is of a kind whose users lock it with fcntl as well.
fn has_record_lock(head: &[u8]) -> bool {
    let head = head.get(..RECORD_HEAD_LEN).unwrap_or(head);
    MapKind::of_content(head, head.len() as u64).is_some_and(MapKind::has_record_lock)
}

/// The bytes of a file in one consistent state, and the stamp of that state.
pub(crate) fn read_locked(
    path: &Path,
    access: &Access,
    empty: Emptiness,
) -> Result<(Region, Stamp), MapError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::OutOfMemory => MapError::unsupported(path, "not enough memory for the file"),
        _ => MapError::open(path, &error),
    };
    for _ in 0..ATTEMPTS_MAX {
        let (file, before) = open_locked(path, access, empty)?;
        if before.size_bytes > FILE_BYTES_MAX {
            return Err(MapError::unsupported(path, "the file is larger than 8 GiB"));
        }
        let len = usize::try_from(before.size_bytes).unwrap_or(usize::MAX);
        // One byte more, to see the file grow.
        let bytes = Region::try_zeroed(len.saturating_add(1));
        let mut bytes = bytes.ok_or_else(|| failed(io::ErrorKind::OutOfMemory.into()))?;
        let is_whole = read_into(&file, &mut bytes).map_err(failed)? == len;
        let after = file.metadata().map_err(failed)?;
        // An unlink or chmod in between moves ctime only; the bytes are then still one state, but a rename over the
        // file cannot be told from a write by ctime alone, so read again.
        if is_whole && Stamp::of(&after) == before {
            bytes.truncate(len);
            return Ok((bytes, before));
        }
    }
    Err(MapError::locked(
        path,
        "the file changes whenever it is read",
    ))
}

/// Reads until the buffer is full or the file ends; answers the number of bytes.
fn read_into(mut file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while let Some(rest) = buffer.get_mut(len..)
        && !rest.is_empty()
    {
        match file.read(rest) {
            Ok(0) => break,
            Ok(read) => len += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const SOON: Duration = Duration::from_millis(30);

    #[test]
    fn a_file_held_exclusively_is_locked_not_absent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.db");
        let mut file = File::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        file.lock().unwrap();
        let error = read_locked(&path, &SOON.into(), Emptiness::Allowed).unwrap_err();
        assert!(matches!(error, MapError::Locked { .. }), "{error}");
        drop(file);
        let (bytes, _) = read_locked(&path, &SOON.into(), Emptiness::Allowed).unwrap();
        assert_eq!(bytes[..], *b"half");
    }

    #[test]
    fn an_empty_database_is_being_created() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.db");
        File::create(&path).unwrap();
        let error = load(
            MapKind::Hash,
            &path,
            &LoadOptions {
                lock_wait: SOON,
                ..LoadOptions::default()
            },
        );
        assert!(matches!(error, Err(MapError::Locked { .. })));
    }

    #[test]
    fn directories_and_missing_files_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let access = Access::from(SOON);
        assert!(open_file(dir.path(), &access).is_err());
        let error = open_file(&dir.path().join("nothing"), &access).unwrap_err();
        assert!(error.is_missing());
    }

    #[test]
    fn what_is_refused_is_told_by_the_file_that_was_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.db");
        let (link, hard) = (dir.path().join("link.db"), dir.path().join("hard.db"));
        std::fs::write(&path, "x").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let mut access = Access::from(SOON);
        let detail = |path: &Path, access: &Access| match open_file(path, access) {
            Ok(_) => String::new(),
            Err(error) => error.detail().to_owned(),
        };
        assert_eq!(detail(&link, &access), "");
        access.refuses_links = true;
        assert_eq!(detail(&link, &access), "Symbolic links not allowed");
        assert_eq!(detail(&path, &access), "");
        std::fs::hard_link(&path, &hard).unwrap();
        assert_eq!(detail(&path, &access), "Hard links not allowed");
        assert_eq!(detail(&path, &SOON.into()), "");
        let mode = |mode| std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(&path, mode(0)).unwrap();
        assert_eq!(detail(&hard, &SOON.into()), "Permission denied");
        assert_eq!(detail(dir.path(), &SOON.into()), "Regular files only");
        // A group that may write the file, seen on the open file while another name would do.
        std::fs::set_permissions(&path, mode(0o664)).unwrap();
        let access = Access::checked(SOON, Safety::default());
        assert_eq!(detail(&path, &access), "Group writable file");
    }

    #[test]
    fn stamps_differ_after_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        std::fs::write(&path, "a").unwrap();
        let before = Stamp::of_path(&path).unwrap();
        assert_eq!(before, Stamp::of_path(&path).unwrap());
        assert_eq!(before, Stamp::of(&std::fs::metadata(&path).unwrap()));
        std::fs::write(&path, "ab").unwrap();
        assert_ne!(before, Stamp::of_path(&path).unwrap());
    }
}
