//! Files in memory, for benches that count bytes and not time: simulated days pass in seconds.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use diligence::spool::storage::{Storage, StorageFile};

/// A folder in memory.
#[derive(Default)]
pub(crate) struct MemoryStorage {
    files: Mutex<BTreeMap<String, Arc<MemoryFile>>>,
    written: Arc<AtomicU64>,
    random: AtomicU64,
}

/// A file in memory.
pub(crate) struct MemoryFile {
    bytes: Mutex<Vec<u8>>,
    written: Arc<AtomicU64>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn position(at: u64) -> io::Result<usize> {
    usize::try_from(at).map_err(|_| io::ErrorKind::InvalidInput.into())
}

impl MemoryStorage {
    /// Bytes of all files whose names begin so.
    pub(crate) fn held(&self, prefix: &str) -> u64 {
        lock(&self.files)
            .range(prefix.to_owned()..)
            .take_while(|(name, _)| name.starts_with(prefix))
            .map(|(_, file)| lock(&file.bytes).len() as u64)
            .sum()
    }

    /// Bytes written so far, those of zeros left out.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    fn find(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let files = lock(&self.files);
        let file = files.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::clone(file) as Arc<dyn StorageFile>)
    }
}

impl Storage for MemoryStorage {
    fn create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let file = Arc::new(MemoryFile {
            bytes: Mutex::default(),
            written: Arc::clone(&self.written),
        });
        let mut files = lock(&self.files);
        if files.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        files.insert(name.to_owned(), Arc::clone(&file));
        Ok(file)
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        self.find(name)
    }
    fn open_read(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        self.find(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = lock(&self.files);
        let file = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }
    fn unlink(&self, name: &str) -> io::Result<()> {
        let gone = lock(&self.files).remove(name);
        gone.map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(lock(&self.files).keys().cloned().collect())
    }
    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }
    fn lock(&self) -> io::Result<bool> {
        Ok(true)
    }
    fn free_bytes(&self) -> io::Result<u64> {
        Ok(u64::MAX)
    }
    fn random(&self) -> u64 {
        // Weyl's sequence: marks must differ, and nobody here guesses them.
        self.random
            .fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed)
            .rotate_left(17)
            | 1
    }
}

impl StorageFile for MemoryFile {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let bytes = lock(&self.bytes);
        let rest = bytes.get(position(offset)?..).unwrap_or_default();
        let count = rest.len().min(into.len());
        into[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }
    fn write_at(&self, offset: u64, pieces: &[&[u8]]) -> io::Result<()> {
        let mut bytes = lock(&self.bytes);
        let mut at = position(offset)?;
        for piece in pieces {
            let end = at + piece.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[at..end].copy_from_slice(piece);
            at = end;
            self.written
                .fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn fill_zero(&self, len: u64) -> io::Result<()> {
        let mut bytes = lock(&self.bytes);
        bytes.clear();
        bytes.resize(position(len)?, 0);
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.bytes).len() as u64)
    }
}
