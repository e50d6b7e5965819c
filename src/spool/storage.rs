//! The only door from the spool to the file system (SPOOL 10).
//!
//! [`OsStorage`] is a folder; the simulated one of the tests keeps "written" apart from "durable", for names as well
//! as bytes. There is no append and no truncate: what is not there need not be simulated. Syncs go through std, so
//! that a preloaded shim can slow and count them. All calls block.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};

use super::file_system::{self, Footing, MOUNTINFO_BYTES_MAX};

/// Zeros are written in pieces of this many bytes.
const ZERO_PIECE_BYTES: usize = 1 << 20;
/// Most bytes of /proc/locks that are read.
const LOCKS_BYTES_MAX: u64 = 16 << 20;
/// Permission bits of the files made, unless [`OsStorage::with_file_mode`] says others.
const FILE_MODE: u32 = 0o600;
/// Most slices in one vectored write (IOV_MAX on Linux).
const SLICES_MAX: usize = 1024;

/// A folder of files, as the spool sees it. Names have no `/`.
pub trait Storage: Send + Sync {
    /// Makes a new file; fails if the name exists.
    ///
    /// # Errors
    /// The system's.
    fn create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>>;

    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    /// The system's.
    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>>;

    /// Opens an existing file for reading alone.
    ///
    /// # Errors
    /// The system's.
    fn open_read(&self, name: &str) -> io::Result<Arc<dyn StorageFile>>;

    /// Renames a file; one that has the new name is replaced. Atomic; durable after [`Storage::sync_dir`].
    ///
    /// # Errors
    /// The system's.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file. Durable after [`Storage::sync_dir`].
    ///
    /// # Errors
    /// The system's.
    fn unlink(&self, name: &str) -> io::Result<()>;

    /// The names in the folder, in no order.
    ///
    /// # Errors
    /// The system's.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Makes creations, renames and removals durable (I5).
    ///
    /// # Errors
    /// The system's.
    fn sync_dir(&self) -> io::Result<()>;

    /// Takes the writing process's lock, held until the storage is dropped. `false` if another process has it.
    ///
    /// # Errors
    /// The system's.
    fn lock(&self) -> io::Result<bool>;

    /// Bytes that may still be written to the file system.
    ///
    /// # Errors
    /// The system's.
    fn free_bytes(&self) -> io::Result<u64>;

    /// A number nobody can foretell, for marks and ids.
    fn random(&self) -> u64;

    /// What the file system under it is worth (SPOOL 2).
    ///
    /// # Errors
    /// The system's.
    fn footing(&self) -> io::Result<Footing> {
        Ok(Footing::Firm)
    }
}

/// One file of a [`Storage`].
pub trait StorageFile: Send + Sync {
    /// Reads up to `into.len()` bytes at `offset`; 0 at the end of the file.
    ///
    /// # Errors
    /// The system's.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize>;

    /// Writes all of `pieces`, one after another, at `offset`.
    ///
    /// # Errors
    /// The system's; some of it may then have been written.
    fn write_at(&self, offset: u64, pieces: &[&[u8]]) -> io::Result<()>;

    /// Makes what was written durable (fdatasync). Never tried again after a failure (I3).
    ///
    /// # Errors
    /// The system's.
    fn sync(&self) -> io::Result<()>;

    /// Writes zeros from the start up to `len` bytes, so that later writes change no metadata (SPOOL 2).
    ///
    /// # Errors
    /// The system's.
    fn fill_zero(&self, len: u64) -> io::Result<()>;

    /// The file's length in bytes.
    ///
    /// # Errors
    /// The system's.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file has no bytes.
    ///
    /// # Errors
    /// The system's.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// Reads exactly `into.len()` bytes at `offset`.
///
/// # Errors
/// The system's; `UnexpectedEof` if the file ends before.
pub fn read_exact_at(file: &dyn StorageFile, offset: u64, into: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(offset + done as u64, rest)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => done += n,
        }
    }
    Ok(())
}

/// A folder of the operating system.
pub struct OsStorage {
    folder: PathBuf,
    handle: File,
    lock: std::sync::Mutex<Option<File>>,
    file_mode: u32,
}

impl OsStorage {
    /// Opens a folder, which must exist.
    ///
    /// # Errors
    /// The system's.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let handle = File::open(folder)?;
        if !handle.metadata()?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Self {
            folder: folder.to_owned(),
            handle,
            lock: std::sync::Mutex::new(None),
            file_mode: FILE_MODE,
        })
    }

    /// Gives the files that are made from now on these permission bits, whatever the umask; those that are there keep
    /// theirs. Without it only their owner reads and writes them.
    #[must_use]
    pub fn with_file_mode(mut self, mode: u32) -> Self {
        self.file_mode = mode;
        self
    }

    /// The process that holds the spool's lock; `None` also where /proc/locks does not tell. Takes no lock itself, so
    /// that it is in nobody's way. Source: proc_locks(5).
    #[must_use]
    pub fn owner(&self) -> Option<u32> {
        use std::os::unix::fs::MetadataExt;
        let meta = std::fs::metadata(self.folder.join("lock")).ok()?;
        let (major, minor) = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
        let file = format!("{major:02x}:{minor:02x}:{}", meta.ino());
        let mut locks = String::new();
        File::open("/proc/locks")
            .and_then(|file| file.take(LOCKS_BYTES_MAX).read_to_string(&mut locks))
            .ok()?;
        locks.lines().find_map(|line| {
            // `1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF`
            let mut words = line.split_ascii_whitespace().skip(1);
            let is_flock = words.next() == Some("FLOCK");
            let pid = words.nth(2)?;
            (is_flock && words.next() == Some(&file)).then(|| pid.parse().unwrap_or(0))
        })
    }

    /// Takes the lock if its file is there, and makes none. `false` if another process has it.
    ///
    /// # Errors
    /// The system's.
    pub fn lock_if_there(&self) -> io::Result<bool> {
        match File::open(self.folder.join("lock")) {
            Ok(file) => self.lock_file(file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn lock_file(&self, file: File) -> io::Result<bool> {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                *self
                    .lock
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(file);
                Ok(true)
            }
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The id that /proc/self/mountinfo gives the folder's mount; `None` without /proc. Source: proc_pid_fdinfo(5).
    fn mount_id(&self) -> Option<u64> {
        let fd = std::os::fd::AsRawFd::as_raw_fd(&self.handle);
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
        let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?;
        id.trim().parse().ok()
    }

    fn open_with(&self, options: &OpenOptions, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let file = options.open(self.folder.join(name))?;
        Ok(Arc::new(OsFile { file }))
    }

    /// Makes a file with the permission bits asked for; the umask has taken none of them away.
    fn make(&self, options: &mut OpenOptions, name: &str) -> io::Result<File> {
        let file = options
            .read(true)
            .write(true)
            .create_new(true)
            .mode(FILE_MODE & self.file_mode)
            .open(self.folder.join(name))?;
        if self.file_mode != FILE_MODE {
            file.set_permissions(std::fs::Permissions::from_mode(self.file_mode))?;
        }
        Ok(file)
    }
}

impl Storage for OsStorage {
    fn create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let no_follow = i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0);
        let file = self.make(OpenOptions::new().custom_flags(no_follow), name)?;
        Ok(Arc::new(OsFile { file }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        self.open_with(OpenOptions::new().read(true).write(true), name)
    }

    fn open_read(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        self.open_with(OpenOptions::new().read(true), name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.folder.join(from), self.folder.join(to))
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.folder.join(name))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            // A name that is not UTF-8 is none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.handle.sync_all()
    }

    fn lock(&self) -> io::Result<bool> {
        let file = match self.make(&mut OpenOptions::new(), "lock") {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => OpenOptions::new()
                .read(true)
                .write(true)
                .open(self.folder.join("lock"))?,
            made => made?,
        };
        self.lock_file(file)
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstatvfs(&self.handle)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn random(&self) -> u64 {
        let mut bytes = [0; 8];
        // Up to 256 bytes come whole, without waiting once the system is up (getrandom(2)).
        while rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
            != Ok(bytes.len())
        {}
        u64::from_le_bytes(bytes)
    }

    fn footing(&self) -> io::Result<Footing> {
        let stat = rustix::fs::fstatfs(&self.handle)?;
        // Signed here, unsigned there, of 32 or 64 bits: the number is the low 32 bits, which come first.
        let magic = stat
            .f_type
            .to_le_bytes()
            .first_chunk::<4>()
            .map_or(0, |low| u64::from(u32::from_le_bytes(*low)));
        // Without /proc the number alone decides.
        let mut mountinfo = String::new();
        let _ = File::open("/proc/self/mountinfo").and_then(|file| {
            file.take(MOUNTINFO_BYTES_MAX)
                .read_to_string(&mut mountinfo)
        });
        Ok(file_system::judge(magic, &mountinfo, self.mount_id()))
    }
}

/// An open file of the operating system.
pub(super) struct OsFile {
    pub(super) file: File,
}

impl StorageFile for OsFile {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.file.read_at(into, offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }

    fn write_at(&self, offset: u64, pieces: &[&[u8]]) -> io::Result<()> {
        let mut slices: Vec<IoSlice<'_>> = pieces
            .iter()
            .filter(|p| !p.is_empty())
            .map(|p| IoSlice::new(p))
            .collect();
        let mut rest = slices.as_mut_slice();
        let mut at = offset;
        while !rest.is_empty() {
            let now = rest.get(..rest.len().min(SLICES_MAX)).unwrap_or_default();
            match rustix::io::pwritev(&self.file, now, at) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    at += n as u64;
                    IoSlice::advance_slices(&mut rest, n);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn fill_zero(&self, len: u64) -> io::Result<()> {
        let zeros = vec![0; ZERO_PIECE_BYTES];
        let mut at = 0;
        while at < len {
            let piece = usize::try_from(len - at)
                .unwrap_or(usize::MAX)
                .min(ZERO_PIECE_BYTES);
            self.file
                .write_all_at(zeros.get(..piece).unwrap_or_default(), at)?;
            at += piece as u64;
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode_of(folder: &Path, name: &str) -> u32 {
        let meta = std::fs::metadata(folder.join(name)).unwrap();
        meta.permissions().mode() & 0o7777
    }

    #[test]
    fn files_have_the_mode_that_is_asked_for_whatever_the_umask() {
        for mode in [0o600, 0o640, 0o660] {
            let folder = tempfile::tempdir().unwrap();
            let storage = OsStorage::open(folder.path()).unwrap();
            let storage = storage.with_file_mode(mode);
            assert!(storage.lock().unwrap());
            storage.create("spare-0000000000000001").unwrap();
            assert_eq!(mode_of(folder.path(), "lock"), mode);
            assert_eq!(mode_of(folder.path(), "spare-0000000000000001"), mode);
            // What is there keeps its own, and is still locked and used.
            drop(storage);
            let storage = OsStorage::open(folder.path()).unwrap();
            assert!(storage.lock().unwrap());
            assert_eq!(mode_of(folder.path(), "lock"), mode);
            assert!(storage.create("spare-0000000000000001").is_err());
        }
    }
}
