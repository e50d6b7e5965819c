//! The disk that a bench's files lie on: as it is, or with slow flushes; and files made in other ways than the spool's.
//!
//! All flushes are real and go through std or libc, so that a preloaded shim can slow and count them as well.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate};

use diligence::spool::storage::{OsStorage, Storage, StorageFile};

/// What every flush goes through.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    /// Held while a slow flush runs: they queue one behind the other.
    turn: Mutex<()>,
    delay: Duration,
    syncs: AtomicU64,
}

impl Disk {
    /// The disk as it is.
    pub(crate) fn real() -> Arc<Self> {
        Arc::default()
    }

    /// Each flush takes this much longer, one behind the other.
    pub(crate) fn slow(delay: Duration) -> Arc<Self> {
        Arc::new(Self {
            delay,
            ..Self::default()
        })
    }

    /// Flushes so far.
    pub(crate) fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    /// Goes through with a flush.
    pub(crate) fn flush<T>(&self, sync: impl FnOnce() -> T) -> T {
        self.flush_times(1, sync)
    }

    /// Goes through with an action that flushes so many times.
    pub(crate) fn flush_times<T>(&self, times: u32, sync: impl FnOnce() -> T) -> T {
        self.syncs.fetch_add(u64::from(times), Ordering::Relaxed);
        if self.delay.is_zero() {
            return sync();
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        std::thread::sleep(self.delay * times);
        sync()
    }
}

/// How a file gets the room that it is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Room {
    /// Zeros are written from end to end, as the spool wants it.
    Zeroed,
    /// Blocks are reserved and not written.
    Reserved,
    /// None: each write makes it longer, up to so many bytes.
    Growing(u64),
}

/// A folder whose flushes go through [`Disk`].
pub(crate) struct BenchStorage {
    below: OsStorage,
    folder: PathBuf,
    disk: Arc<Disk>,
    room: Room,
}

struct BenchFile {
    below: Arc<dyn StorageFile>,
    path: PathBuf,
    disk: Arc<Disk>,
    room: Room,
}

impl BenchStorage {
    /// Opens a folder.
    pub(crate) fn open(folder: &Path, disk: &Arc<Disk>, room: Room) -> Arc<Self> {
        Arc::new(Self {
            below: OsStorage::open(folder).expect("the folder opens"),
            folder: folder.to_owned(),
            disk: Arc::clone(disk),
            room,
        })
    }

    fn wrap(&self, name: &str, below: Arc<dyn StorageFile>) -> Arc<dyn StorageFile> {
        Arc::new(BenchFile {
            below,
            path: self.folder.join(name),
            disk: Arc::clone(&self.disk),
            room: self.room,
        })
    }
}

impl Storage for BenchStorage {
    fn create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        self.below.create(name).map(|file| self.wrap(name, file))
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        self.below.open(name).map(|file| self.wrap(name, file))
    }
    fn open_read(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        self.below.open_read(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.below.rename(from, to)
    }
    fn unlink(&self, name: &str) -> io::Result<()> {
        self.below.unlink(name)
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.below.list()
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.disk.flush(|| self.below.sync_dir())
    }
    fn lock(&self) -> io::Result<bool> {
        self.below.lock()
    }
    fn free_bytes(&self) -> io::Result<u64> {
        self.below.free_bytes()
    }
    fn random(&self) -> u64 {
        self.below.random()
    }
}

impl StorageFile for BenchFile {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        self.below.read_at(offset, into)
    }
    fn write_at(&self, offset: u64, pieces: &[&[u8]]) -> io::Result<()> {
        self.below.write_at(offset, pieces)
    }
    fn sync(&self) -> io::Result<()> {
        self.disk.flush(|| self.below.sync())
    }
    fn fill_zero(&self, len: u64) -> io::Result<()> {
        match self.room {
            Room::Zeroed => self.below.fill_zero(len),
            Room::Reserved => {
                let file = std::fs::File::options().write(true).open(&self.path)?;
                Ok(fallocate(&file, FallocateFlags::empty(), 0, len)?)
            }
            Room::Growing(_) => Ok(()),
        }
    }
    fn len(&self) -> io::Result<u64> {
        match self.room {
            Room::Growing(bytes) => Ok(bytes),
            Room::Zeroed | Room::Reserved => self.below.len(),
        }
    }
}
