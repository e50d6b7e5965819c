//! A simulated disk for the spool: it keeps "written" apart from "durable", for bytes and for names (SPOOL 10).
//!
//! For each file there are the durable bytes and a list of unsynced 512-byte sectors in the order they were written;
//! for the folder the durable names and a list of unsynced changes. [`SimStorage::crash`] yields the disk after a
//! power cut: the durable part plus a chosen subset of what was not synced. A failed sync drops what it should have
//! made durable, yet reads go on showing it until the crash, as Linux does. Deterministic: randomness is a counter
//! hashed with the seed.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::spool::storage::{Storage, StorageFile};

const SECTOR: usize = 512;

/// A change of the folder that is not durable yet. Renames are atomic.
#[derive(Debug, Clone, PartialEq, Eq)]
enum NameChange {
    Link(String, usize),
    Rename(String, String),
    Unlink(String),
}

#[derive(Debug, Clone, Default)]
struct SimInode {
    /// What reads see.
    written: Vec<u8>,
    /// What survives.
    durable: Vec<u8>,
    /// Sectors written and not synced: offset and bytes, in order.
    unsynced: Vec<(usize, Vec<u8>)>,
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

#[derive(Debug, Default)]
struct Disk {
    inodes: Vec<SimInode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    unsynced_names: Vec<NameChange>,
    is_locked: bool,
    seed: u64,
    random_calls: u64,
    /// Calls so far, and the one that fails.
    calls: u64,
    fail_at: Option<(u64, io::ErrorKind)>,
    last_calls: Vec<Call>,
    /// From this call on nothing reaches the disk: the power is gone.
    cut_at: Option<u64>,
    free_bytes: u64,
}

/// See the module's documentation.
#[derive(Clone)]
pub(super) struct SimStorage {
    disk: Arc<Mutex<Disk>>,
}

fn guard(disk: &Mutex<Disk>) -> MutexGuard<'_, Disk> {
    disk.lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Disk {
    /// Counts a call; an error if it is the one that fails, or if the power is gone.
    fn call(&mut self, call: Call) -> io::Result<()> {
        self.calls += 1;
        if self.last_calls.len() < 100_000 {
            self.last_calls.push(call);
        }
        if self.cut_at.is_some_and(|at| self.calls >= at) {
            return Err(io::Error::other("power is gone"));
        }
        match self.fail_at {
            Some((at, kind)) if at == self.calls => Err(kind.into()),
            _ => Ok(()),
        }
    }

    fn write(&mut self, inode: usize, offset: usize, bytes: &[u8]) {
        let Some(file) = self.inodes.get_mut(inode) else {
            return;
        };
        let end = offset + bytes.len();
        if file.written.len() < end {
            file.written.resize(end, 0);
        }
        file.written[offset..end].copy_from_slice(bytes);
        let mut at = offset;
        while at < end {
            let sector = at - at % SECTOR;
            let sector_end = (sector + SECTOR).min(file.written.len());
            file.unsynced
                .push((sector, file.written[sector..sector_end].to_vec()));
            at = sector + SECTOR;
        }
    }
}

/// Which of the unsynced items survive a power cut.
pub(super) trait Choice {
    /// Whether item `at` of `of` survives.
    fn survives(&mut self, at: usize, of: usize) -> bool;
    /// What a sector that survives is replaced with, if it is torn into garbage.
    fn garbage(&mut self, _at: usize, _of: usize) -> bool {
        false
    }
}

impl<F: FnMut(usize, usize) -> bool> Choice for F {
    fn survives(&mut self, at: usize, of: usize) -> bool {
        self(at, of)
    }
}

impl SimStorage {
    /// An empty disk.
    #[must_use]
    pub(super) fn new(seed: u64) -> Self {
        let disk = Disk {
            seed,
            free_bytes: u64::MAX,
            ..Disk::default()
        };
        Self {
            disk: Arc::new(Mutex::new(disk)),
        }
    }

    /// Calls made so far.
    #[must_use]
    pub(super) fn calls(&self) -> u64 {
        guard(&self.disk).calls
    }

    /// What call number `at` (counted from 1) was.
    #[must_use]
    pub(super) fn call_at(&self, at: u64) -> Option<Call> {
        guard(&self.disk)
            .last_calls
            .get(usize::try_from(at).ok()?.checked_sub(1)?)
            .copied()
    }

    /// Makes call number `at` fail, counted from the storage's first.
    pub(super) fn fail_at(&self, at: u64, kind: io::ErrorKind) {
        guard(&self.disk).fail_at = Some((at, kind));
    }

    /// From call number `at` on nothing happens any more: every call fails.
    pub(super) fn cut_at(&self, at: u64) {
        guard(&self.disk).cut_at = Some(at);
    }

    /// Sets what [`Storage::free_bytes`] answers, and the room that fills may take.
    pub(super) fn set_free_bytes(&self, bytes: u64) {
        guard(&self.disk).free_bytes = bytes;
    }

    /// The numbers of unsynced items: sectors over all files, then name changes.
    #[must_use]
    pub(super) fn unsynced(&self) -> (usize, usize) {
        let disk = guard(&self.disk);
        (
            disk.inodes.iter().map(|inode| inode.unsynced.len()).sum(),
            disk.unsynced_names.len(),
        )
    }

    /// The disk after a power cut now: sectors as `sectors` says; of the name changes the first `names` in order, as
    /// a journaling file system keeps them.
    #[must_use]
    pub(super) fn crash(&self, sectors: &mut dyn Choice, names: usize) -> Self {
        let disk = guard(&self.disk);
        let total: usize = disk.inodes.iter().map(|inode| inode.unsynced.len()).sum();
        let mut at = 0;
        let mut inodes = Vec::with_capacity(disk.inodes.len());
        for inode in &disk.inodes {
            let mut durable = inode.durable.clone();
            for (offset, bytes) in &inode.unsynced {
                if sectors.survives(at, total) {
                    let end = offset + bytes.len();
                    if durable.len() < end {
                        durable.resize(end, 0);
                    }
                    if sectors.garbage(at, total) {
                        durable[*offset..end].fill(0xa5);
                    } else {
                        durable[*offset..end].copy_from_slice(bytes);
                    }
                }
                at += 1;
            }
            inodes.push(SimInode {
                written: durable.clone(),
                durable,
                unsynced: Vec::new(),
            });
        }
        let mut durable_names = disk.durable_names.clone();
        for change in disk.unsynced_names.iter().take(names) {
            apply(&mut durable_names, change);
        }
        let new = Disk {
            inodes,
            names: durable_names.clone(),
            durable_names,
            seed: disk.seed,
            random_calls: disk.random_calls + 1,
            free_bytes: disk.free_bytes,
            ..Disk::default()
        };
        Self {
            disk: Arc::new(Mutex::new(new)),
        }
    }

    /// The disk as it is after the process ends without a power cut: what was written is there and stays unsynced.
    #[must_use]
    pub(super) fn kill(&self) -> Self {
        let disk = guard(&self.disk);
        let new = Disk {
            inodes: disk.inodes.clone(),
            names: disk.names.clone(),
            durable_names: disk.durable_names.clone(),
            unsynced_names: disk.unsynced_names.clone(),
            seed: disk.seed,
            random_calls: disk.random_calls + 1,
            free_bytes: disk.free_bytes,
            ..Disk::default()
        };
        Self {
            disk: Arc::new(Mutex::new(new)),
        }
    }

    /// The bytes of a file, to be changed by a test.
    pub(super) fn with_bytes(&self, name: &str, change: impl FnOnce(&mut [u8])) {
        let mut disk = guard(&self.disk);
        let Some(inode) = disk.names.get(name).copied() else {
            return;
        };
        if let Some(file) = disk.inodes.get_mut(inode) {
            change(&mut file.written);
            file.durable = file.written.clone();
        }
    }
}

fn apply(names: &mut BTreeMap<String, usize>, change: &NameChange) {
    match change {
        NameChange::Link(name, inode) => {
            names.insert(name.clone(), *inode);
        }
        NameChange::Rename(from, to) => {
            if let Some(inode) = names.remove(from) {
                names.insert(to.clone(), inode);
            }
        }
        NameChange::Unlink(name) => {
            names.remove(name);
        }
    }
}

impl Storage for SimStorage {
    fn create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let mut disk = guard(&self.disk);
        disk.call(Call::Create)?;
        if disk.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = disk.inodes.len();
        disk.inodes.push(SimInode::default());
        disk.names.insert(name.to_owned(), inode);
        disk.unsynced_names
            .push(NameChange::Link(name.to_owned(), inode));
        Ok(Arc::new(SimFile {
            disk: Arc::clone(&self.disk),
            inode,
        }))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        let mut disk = guard(&self.disk);
        disk.call(Call::Open)?;
        let inode = disk
            .names
            .get(name)
            .copied()
            .ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimFile {
            disk: Arc::clone(&self.disk),
            inode,
        }))
    }

    fn open_read(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        self.open(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut disk = guard(&self.disk);
        disk.call(Call::Rename)?;
        if !disk.names.contains_key(from) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let change = NameChange::Rename(from.to_owned(), to.to_owned());
        apply(&mut disk.names, &change);
        disk.unsynced_names.push(change);
        Ok(())
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        let mut disk = guard(&self.disk);
        disk.call(Call::Unlink)?;
        if disk.names.remove(name).is_none() {
            return Err(io::ErrorKind::NotFound.into());
        }
        disk.unsynced_names
            .push(NameChange::Unlink(name.to_owned()));
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut disk = guard(&self.disk);
        disk.call(Call::List)?;
        Ok(disk.names.keys().cloned().collect())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut disk = guard(&self.disk);
        let result = disk.call(Call::SyncDir);
        if result.is_ok() {
            // After a failure the changes stay pending: file systems commit names in order through one journal, so
            // a later sync that succeeds includes them. Only data pages are dropped by a failed sync.
            let changes = std::mem::take(&mut disk.unsynced_names);
            for change in &changes {
                apply(&mut disk.durable_names, change);
            }
        }
        result
    }

    fn lock(&self) -> io::Result<bool> {
        let mut disk = guard(&self.disk);
        Ok(!std::mem::replace(&mut disk.is_locked, true))
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(guard(&self.disk).free_bytes)
    }

    fn random(&self) -> u64 {
        let mut disk = guard(&self.disk);
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

struct SimFile {
    disk: Arc<Mutex<Disk>>,
    inode: usize,
}

impl StorageFile for SimFile {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let disk = guard(&self.disk);
        let bytes = &disk.inodes[self.inode].written;
        let offset = usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        let count = into.len().min(bytes.len() - offset);
        into[..count].copy_from_slice(&bytes[offset..offset + count]);
        Ok(count)
    }

    fn write_at(&self, offset: u64, pieces: &[&[u8]]) -> io::Result<()> {
        let mut disk = guard(&self.disk);
        let result = disk.call(Call::Write);
        if disk.cut_at.is_some() && result.is_err() {
            return result;
        }
        let mut bytes = pieces.concat();
        if result.is_err() {
            bytes.truncate(bytes.len() / 2); // A short write.
        }
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        disk.write(self.inode, offset, &bytes);
        result
    }

    fn sync(&self) -> io::Result<()> {
        let mut disk = guard(&self.disk);
        let result = disk.call(Call::Sync);
        if disk.cut_at.is_some() && result.is_err() {
            return result;
        }
        let file = &mut disk.inodes[self.inode];
        let sectors = std::mem::take(&mut file.unsynced);
        if result.is_ok() {
            for (offset, bytes) in sectors {
                let end = offset + bytes.len();
                if file.durable.len() < end {
                    file.durable.resize(end, 0);
                }
                file.durable[offset..end].copy_from_slice(&bytes);
            }
        }
        result
    }

    fn fill_zero(&self, len: u64) -> io::Result<()> {
        let mut disk = guard(&self.disk);
        disk.call(Call::Fill)?;
        if len > disk.free_bytes {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if disk.free_bytes != u64::MAX {
            disk.free_bytes -= len;
        }
        let len = usize::try_from(len).map_err(io::Error::other)?;
        let file = &mut disk.inodes[self.inode];
        file.written = vec![0; len];
        // One item for the whole: either the length and zeros are there after a crash or they are not. A file with
        // the length but without the zeros does not differ, as holes read as zeros.
        file.unsynced = vec![(0, vec![0; len])];
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(guard(&self.disk).inodes[self.inode].written.len() as u64)
    }
}
