//! A simulated disk for the spool: it keeps "written" apart from "durable", for bytes and for names (SPOOL 10).
//!
//! For each file there are the durable bytes and a list of unsynced 512-byte sectors in the order they were written;
//! for each folder (the queue's and that of drop files) the durable names and a list of unsynced changes. A failed
//! sync drops what it should have made durable, yet reads go on showing it until the crash, as Linux does. What a power
//! cut may leave is made by `crash_tests/moment.rs`. Bytes and names are shared between copies of a disk until they are
//! written to, so that a copy costs a few pointers. Deterministic: randomness is a counter hashed with the seed.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::spool::drop_file::{DropError, DropFolder};
use crate::spool::storage::{Storage, StorageFile};

/// What a disk writes whole.
pub(super) const SECTOR: usize = 512;

/// A change of a folder that is not durable yet. Renames are atomic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NameChange {
    /// A name for a new file.
    Link(String, usize),
    /// The old name goes, the file has the new one.
    Rename(String, String, usize),
    /// The name goes.
    Unlink(String),
}

/// Names and the files they stand for.
pub(super) type Names = BTreeMap<String, usize>;

impl NameChange {
    /// Makes the change.
    pub(super) fn apply(&self, names: &mut Names) {
        match self {
            Self::Link(name, inode) => {
                names.insert(name.clone(), *inode);
            }
            Self::Rename(from, to, inode) => {
                names.remove(from);
                names.insert(to.clone(), *inode);
            }
            Self::Unlink(name) => {
                names.remove(name);
            }
        }
    }
}

/// Something written and not synced.
#[derive(Debug, Clone)]
pub(super) enum Unsynced {
    /// Zeros from the start up to this length: one item, as a file with the length but without the zeros does not
    /// differ; holes read as zeros.
    Fill(usize),
    /// Whole sectors from this offset on (the last one may end with the file).
    Sectors(usize, Arc<Vec<u8>>),
}

/// A file.
#[derive(Debug, Clone, Default)]
pub(super) struct Inode {
    /// What reads see.
    pub(super) written: Arc<Vec<u8>>,
    /// What survives.
    pub(super) durable: Arc<Vec<u8>>,
    /// What may survive, in order.
    pub(super) unsynced: Vec<Unsynced>,
    /// A sync has failed: part of `written` is neither durable nor will it ever be.
    has_dropped: bool,
}

/// Writes into a file's bytes, which grow as needed.
pub(super) fn put(bytes: &mut Arc<Vec<u8>>, offset: usize, new: &[u8]) {
    let end = offset + new.len();
    let bytes = Arc::make_mut(bytes);
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[offset..end].copy_from_slice(new);
}

impl Inode {
    /// A file all of whose bytes are durable.
    pub(super) fn durable(bytes: Arc<Vec<u8>>) -> Self {
        Self {
            written: Arc::clone(&bytes),
            durable: bytes,
            ..Self::default()
        }
    }

    fn write(&mut self, offset: usize, pieces: &[&[u8]]) {
        let end = offset + pieces.iter().map(|piece| piece.len()).sum::<usize>();
        let mut at = offset;
        for piece in pieces {
            put(&mut self.written, at, piece);
            at += piece.len();
        }
        let start = offset - offset % SECTOR;
        let whole = end.next_multiple_of(SECTOR).min(self.written.len());
        if start < whole {
            let sectors = Arc::new(self.written[start..whole].to_vec());
            self.unsynced.push(Unsynced::Sectors(start, sectors));
        }
    }

    fn sync(&mut self) {
        let unsynced = std::mem::take(&mut self.unsynced);
        if !self.has_dropped {
            self.durable = Arc::clone(&self.written);
            return;
        }
        for item in unsynced {
            match item {
                Unsynced::Fill(len) => self.durable = Arc::new(vec![0; len]),
                Unsynced::Sectors(offset, bytes) => put(&mut self.durable, offset, &bytes),
            }
        }
    }
}

/// A folder.
#[derive(Debug, Clone, Default)]
pub(super) struct Folder {
    /// What is seen.
    pub(super) names: Arc<Names>,
    /// What survives.
    pub(super) durable: Arc<Names>,
    /// What may survive, in order.
    pub(super) unsynced: Vec<NameChange>,
}

impl Folder {
    fn change(&mut self, change: NameChange) {
        change.apply(Arc::make_mut(&mut self.names));
        self.unsynced.push(change);
    }
}

/// A call that may be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the calls of the trait by name")]
pub(super) enum Call {
    Create,
    Open,
    Rename,
    Unlink,
    List,
    SyncDir,
    Write,
    Sync,
    Fill,
}

/// Folders of a disk: the queue's, and that of drop files.
pub(super) const FOLDERS: usize = 2;

/// All there is of a disk.
#[derive(Debug, Clone, Default)]
pub(super) struct Disk {
    /// Files by number; none where no name leads any more.
    pub(super) inodes: Vec<Option<Inode>>,
    pub(super) folders: [Folder; FOLDERS],
    is_locked: bool,
    pub(super) seed: u64,
    pub(super) random_calls: u64,
    pub(super) free_bytes: u64,
    /// Nobody can tell how much that is.
    is_free_unknown: bool,
    /// Calls so far, the one that fails, and what each was.
    calls: u64,
    fail_at: Option<(u64, io::ErrorKind)>,
    last_calls: Vec<Call>,
    /// From this call on nothing reaches the disk: the power is gone.
    cut_at: Option<u64>,
    /// A file of zeros, to be shared by all that are filled to the same length.
    zeros: Arc<Vec<u8>>,
}

impl Disk {
    /// Counts a call; an error if it is the one that fails, or if the power is gone.
    fn call(&mut self, call: Call) -> io::Result<()> {
        self.calls += 1;
        if self.fail_at.is_some() {
            self.last_calls.push(call);
        }
        if self.is_cut() {
            return Err(io::Error::other("power is gone"));
        }
        match self.fail_at {
            Some((at, kind)) if at == self.calls => Err(kind.into()),
            _ => Ok(()),
        }
    }

    fn is_cut(&self) -> bool {
        self.cut_at.is_some_and(|at| self.calls >= at)
    }

    fn inode(&mut self, inode: usize) -> io::Result<&mut Inode> {
        self.inodes
            .get_mut(inode)
            .and_then(Option::as_mut)
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// A disk with these files and names for another process to start on.
    pub(super) fn successor(&self, inodes: Vec<Option<Inode>>, folders: [Folder; FOLDERS]) -> Self {
        Self {
            inodes,
            folders,
            seed: self.seed,
            random_calls: self.random_calls + 1,
            free_bytes: self.free_bytes,
            zeros: Arc::clone(&self.zeros),
            ..Self::default()
        }
    }
}

/// Told of each call that changes the disk, before it is made.
type Observer = Box<dyn FnMut() + Send>;

#[derive(Default)]
struct Shared {
    disk: Mutex<Disk>,
    observer: Mutex<Option<Observer>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.disk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the disk for a call that changes it.
    fn change(&self) -> MutexGuard<'_, Disk> {
        let mut observer = self.observer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(observer) = observer.as_mut() {
            observer();
        }
        drop(observer);
        self.lock()
    }
}

/// One folder of a simulated disk.
#[derive(Clone)]
pub(super) struct SimStorage {
    shared: Arc<Shared>,
    folder: usize,
}

impl SimStorage {
    /// The queue's folder on an empty disk.
    pub(super) fn new(seed: u64) -> Self {
        Self::on(Disk {
            seed,
            free_bytes: u64::MAX,
            ..Disk::default()
        })
    }

    /// The queue's folder on a disk.
    pub(super) fn on(disk: Disk) -> Self {
        let shared = Shared {
            disk: Mutex::new(disk),
            observer: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
            folder: 0,
        }
    }

    /// The folder of drop files on the same disk.
    pub(super) fn drops(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            folder: 1,
        }
    }

    /// The disk, to be looked at.
    pub(super) fn disk(&self) -> MutexGuard<'_, Disk> {
        self.shared.lock()
    }

    /// Has `observer` called before each call that changes the disk.
    pub(super) fn observe(&self, observer: Option<Observer>) {
        let mut place = self.shared.observer.lock().unwrap();
        *place = observer;
    }

    /// Calls made so far.
    pub(super) fn calls(&self) -> u64 {
        self.disk().calls
    }

    /// What call number `at` (counted from 1) was, if one was to fail.
    pub(super) fn call_at(&self, at: u64) -> Option<Call> {
        let at = usize::try_from(at).ok()?.checked_sub(1)?;
        self.disk().last_calls.get(at).copied()
    }

    /// Makes call number `at` fail, counted from the storage's first. With `WriteZero` a write does its first half.
    pub(super) fn fail_at(&self, at: u64, kind: io::ErrorKind) {
        self.disk().fail_at = Some((at, kind));
    }

    /// Whether the call that was to fail has failed.
    pub(super) fn has_failed(&self) -> bool {
        let disk = self.disk();
        disk.fail_at.is_some_and(|(at, _)| disk.calls >= at)
    }

    /// From call number `at` on nothing happens any more: every call fails.
    pub(super) fn cut_at(&self, at: u64) {
        self.disk().cut_at = Some(at);
    }

    /// Sets what [`Storage::free_bytes`] answers, and the room that fills may take.
    pub(super) fn set_free_bytes(&self, bytes: u64) {
        self.disk().free_bytes = bytes;
    }

    /// Lets [`Storage::free_bytes`] fail.
    pub(super) fn hide_free_bytes(&self) {
        self.disk().is_free_unknown = true;
    }

    /// The disk as it is after the process ends without a power cut: what was written is there and stays unsynced.
    pub(super) fn kill(&self) -> Self {
        let disk = self.disk();
        Self::on(disk.successor(disk.inodes.clone(), disk.folders.clone()))
    }

    /// Lets go of the lock, as the end of a process does.
    pub(super) fn unlock(&self) {
        self.disk().is_locked = false;
    }

    /// The bytes of a file, to be changed by a test, durably.
    pub(super) fn with_bytes(&self, name: &str, change: impl FnOnce(&mut [u8])) {
        let mut disk = self.disk();
        let inode = disk.folders[self.folder].names.get(name).copied();
        if let Some(file) = inode.and_then(|inode| disk.inodes.get_mut(inode)?.as_mut()) {
            change(Arc::make_mut(&mut file.written).as_mut_slice());
            file.durable = Arc::clone(&file.written);
        }
    }
}

impl Storage for SimStorage {
    fn create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let mut disk = self.shared.change();
        disk.call(Call::Create)?;
        if disk.folders[self.folder].names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = disk.inodes.len();
        disk.inodes.push(Some(Inode::default()));
        disk.folders[self.folder].change(NameChange::Link(name.to_owned(), inode));
        Ok(Arc::new(SimFile {
            shared: Arc::clone(&self.shared),
            inode,
        }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let mut disk = self.shared.lock();
        disk.call(Call::Open)?;
        let inode = disk.folders[self.folder].names.get(name).copied();
        Ok(Arc::new(SimFile {
            shared: Arc::clone(&self.shared),
            inode: inode.ok_or(io::ErrorKind::NotFound)?,
        }))
    }

    fn open_read(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        Storage::open(self, name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = self.shared.change();
        disk.call(Call::Rename)?;
        let folder = &mut disk.folders[self.folder];
        let inode = *folder.names.get(from).ok_or(io::ErrorKind::NotFound)?;
        folder.change(NameChange::Rename(from.to_owned(), to.to_owned(), inode));
        Ok(())
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        let mut disk = self.shared.change();
        disk.call(Call::Unlink)?;
        let folder = &mut disk.folders[self.folder];
        let inode = *folder.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        folder.change(NameChange::Unlink(name.to_owned()));
        let len = disk.inode(inode)?.written.len() as u64;
        disk.free_bytes = disk.free_bytes.saturating_add(len);
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut disk = self.shared.lock();
        disk.call(Call::List)?;
        Ok(disk.folders[self.folder].names.keys().cloned().collect())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut disk = self.shared.change();
        disk.call(Call::SyncDir)?;
        // After a failure the changes stay pending: file systems commit names in order through one journal, so a later
        // sync that succeeds includes them. Only data pages are dropped by a failed sync.
        let folder = &mut disk.folders[self.folder];
        folder.unsynced.clear();
        folder.durable = Arc::clone(&folder.names);
        Ok(())
    }

    fn lock(&self) -> io::Result<bool> {
        Ok(!std::mem::replace(&mut self.disk().is_locked, true))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let disk = self.disk();
        match disk.is_free_unknown {
            true => Err(io::ErrorKind::PermissionDenied.into()),
            false => Ok(disk.free_bytes),
        }
    }

    fn random(&self) -> u64 {
        let mut disk = self.disk();
        disk.random_calls += 1;
        // splitmix64 over seed and counter.
        let mut z = disk
            .seed
            .wrapping_add(disk.random_calls.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl DropFolder for SimStorage {
    fn open(&self, name: &str) -> Result<(Arc<dyn StorageFile>, u32, u32), DropError> {
        let file = self.open_read(name).map_err(|source| DropError::Io {
            name: name.to_owned(),
            source,
        })?;
        Ok((file, 1000, 1000))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        self.list()
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        Storage::unlink(self, name)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_dir()
    }
}

struct SimFile {
    shared: Arc<Shared>,
    inode: usize,
}

impl StorageFile for SimFile {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let mut disk = self.shared.lock();
        let bytes = &disk.inode(self.inode)?.written;
        let offset = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        let count = into.len().min(bytes.len() - offset);
        into[..count].copy_from_slice(&bytes[offset..offset + count]);
        Ok(count)
    }

    fn write_at(&self, offset: u64, pieces: &[&[u8]]) -> io::Result<()> {
        let mut disk = self.shared.change();
        let result = disk.call(Call::Write);
        let is_short = matches!(&result, Err(e) if e.kind() == io::ErrorKind::WriteZero);
        if result.is_err() && (disk.is_cut() || !is_short) {
            return result;
        }
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let file = disk.inode(self.inode)?;
        if is_short {
            let bytes = pieces.concat();
            file.write(offset, &[&bytes[..bytes.len() / 2]]);
        } else {
            file.write(offset, pieces);
        }
        result
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = self.shared.change();
        let result = disk.call(Call::Sync);
        if result.is_err() && disk.is_cut() {
            return result;
        }
        let file = disk.inode(self.inode)?;
        if result.is_ok() {
            file.sync();
        } else {
            file.has_dropped |= !file.unsynced.is_empty();
            file.unsynced.clear();
        }
        result
    }

    fn fill_zero(&self, len: u64) -> io::Result<()> {
        let mut disk = self.shared.change();
        disk.call(Call::Fill)?;
        if len > disk.free_bytes {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if disk.free_bytes != u64::MAX {
            disk.free_bytes -= len;
        }
        let len = usize::try_from(len).map_err(io::Error::other)?;
        if disk.zeros.len() != len {
            disk.zeros = Arc::new(vec![0; len]);
        }
        let zeros = Arc::clone(&disk.zeros);
        let file = disk.inode(self.inode)?;
        file.written = zeros;
        file.unsynced = vec![Unsynced::Fill(len)];
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.shared.lock().inode(self.inode)?.written.len() as u64)
    }
}
