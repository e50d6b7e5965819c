//! What else could keep a queue: redb and LMDB, each behind a writer of its own that makes one durable transaction of
//! all that waits, as the spool's writer makes one batch.
//!
//! The hand-over is the same for both: a bounded batch, greedily taken, tickets released after the commit. A message
//! accepted is removed in the next transaction, so that the table stays small and pages are used again. Defaults of
//! the libraries, durable commits; values are a message's content and envelope in one.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use lmdb::{DatabaseFlags, EnvironmentFlags, Transaction, WriteFlags};
use redb::backends::FileBackend;
use redb::{StorageBackend, TableDefinition};

use super::disk::Disk;
use super::ways::Accept;

/// Most bytes of one transaction, as the spool's batches.
const BATCH_BYTES_MAX: usize = 4 << 20;
/// What an envelope adds to the value.
const ENVELOPE_BYTES: usize = 200;

/// A table that makes a transaction of several changes durable.
trait Engine: Send {
    /// Puts and removes, durably. Blocks: disk.
    fn apply(&mut self, puts: &[(u64, Vec<u8>)], removed: &[u64]);
}

#[derive(Default)]
struct Ticket {
    is_done: Mutex<bool>,
    done: Condvar,
}

/// A message under its key, and who waits for it.
type Put = ((u64, Vec<u8>), Arc<Ticket>);

#[derive(Default)]
struct Queue {
    puts: VecDeque<Put>,
    removed: Vec<u64>,
    next: u64,
    is_closed: bool,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
}

impl Shared {
    /// Waits for messages and takes what one transaction may hold; `None` at the end.
    fn take(&self) -> Option<(Vec<Put>, Vec<u64>)> {
        let mut queue = lock(&self.queue);
        while queue.puts.is_empty() {
            if queue.is_closed {
                return None;
            }
            queue = self
                .work
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while let Some(((_, value), _)) = queue.puts.front() {
            bytes += value.len();
            if bytes > BATCH_BYTES_MAX && !taken.is_empty() {
                break;
            }
            taken.extend(queue.puts.pop_front());
        }
        Some((taken, std::mem::take(&mut queue.removed)))
    }
}

/// An engine with its writer.
pub(crate) struct Batched {
    shared: Arc<Shared>,
    disk: Arc<Disk>,
    writer: Option<JoinHandle<()>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Batched {
    /// redb, in a new file.
    pub(crate) fn redb(folder: &Path, disk: &Arc<Disk>) -> Self {
        Self::start(Redb::open(folder, disk), disk)
    }

    /// LMDB, in a new file.
    pub(crate) fn lmdb(folder: &Path, disk: &Arc<Disk>) -> Self {
        Self::start(Lmdb::open(folder, disk), disk)
    }

    fn start(mut engine: impl Engine + 'static, disk: &Arc<Disk>) -> Self {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let writer = std::thread::spawn(move || {
            while let Some((batch, removed)) = theirs.take() {
                let (puts, tickets): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
                engine.apply(&puts, &removed);
                for ticket in tickets {
                    *lock(&ticket.is_done) = true;
                    ticket.done.notify_one();
                }
            }
        });
        Self {
            shared,
            disk: Arc::clone(disk),
            writer: Some(writer),
        }
    }
}

impl Accept for Batched {
    fn accept(&self, content: &[u8]) {
        let mut value = Vec::with_capacity(content.len() + ENVELOPE_BYTES);
        value.extend_from_slice(content);
        value.resize(content.len() + ENVELOPE_BYTES, b'e');
        let ticket = Arc::new(Ticket::default());
        let key = {
            let mut queue = lock(&self.shared.queue);
            queue.next += 1;
            let key = queue.next;
            queue.puts.push_back(((key, value), Arc::clone(&ticket)));
            key
        };
        self.shared.work.notify_one();
        let mut is_done = lock(&ticket.is_done);
        while !*is_done {
            is_done = ticket
                .done
                .wait(is_done)
                .unwrap_or_else(PoisonError::into_inner);
        }
        lock(&self.shared.queue).removed.push(key);
    }

    fn syncs(&self) -> u64 {
        self.disk.syncs()
    }
}

impl Drop for Batched {
    fn drop(&mut self) {
        lock(&self.shared.queue).is_closed = true;
        self.shared.work.notify_all();
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

const TABLE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("messages");

struct Redb(redb::Database);

impl Redb {
    fn open(folder: &Path, disk: &Arc<Disk>) -> Self {
        let file = std::fs::File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(folder.join("redb"))
            .expect("a file for redb");
        let backend = FlushedBackend {
            below: FileBackend::new(file).expect("redb takes the file"),
            disk: Arc::clone(disk),
        };
        let database = redb::Database::builder().create_with_backend(backend);
        Self(database.expect("redb opens"))
    }
}

impl Engine for Redb {
    fn apply(&mut self, puts: &[(u64, Vec<u8>)], removed: &[u64]) {
        // Durable by default.
        let transaction = self.0.begin_write().expect("redb begins");
        {
            let mut table = transaction.open_table(TABLE).expect("redb has a table");
            for key in removed {
                table.remove(key).expect("redb removes");
            }
            for (key, value) in puts {
                table.insert(key, value.as_slice()).expect("redb puts");
            }
        }
        transaction.commit().expect("redb commits");
    }
}

/// redb's own file, its flushes through [`Disk`].
#[derive(Debug)]
struct FlushedBackend {
    below: FileBackend,
    disk: Arc<Disk>,
}

impl StorageBackend for FlushedBackend {
    fn len(&self) -> io::Result<u64> {
        self.below.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.below.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.below.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.disk.flush(|| self.below.sync_data())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.below.write(offset, data)
    }
}

struct Lmdb {
    environment: lmdb::Environment,
    database: lmdb::Database,
    disk: Arc<Disk>,
}

/// Room for what 200 committers of 100 KiB have in flight, many times over.
const LMDB_MAP_BYTES: usize = 4 << 30;
/// LMDB syncs the data pages, then writes the meta page through a descriptor opened with `O_DSYNC`.
const LMDB_FLUSHES: u32 = 2;

impl Lmdb {
    fn open(folder: &Path, disk: &Arc<Disk>) -> Self {
        let environment = lmdb::Environment::new()
            .set_flags(EnvironmentFlags::NO_SUB_DIR)
            .set_map_size(LMDB_MAP_BYTES)
            .open(&folder.join("lmdb"))
            .expect("LMDB opens");
        let database = environment
            .create_db(None, DatabaseFlags::INTEGER_KEY)
            .expect("LMDB has a table");
        Self {
            environment,
            database,
            disk: Arc::clone(disk),
        }
    }
}

impl Engine for Lmdb {
    fn apply(&mut self, puts: &[(u64, Vec<u8>)], removed: &[u64]) {
        let mut transaction = self.environment.begin_rw_txn().expect("LMDB begins");
        for key in removed {
            transaction
                .del(self.database, &key.to_ne_bytes(), None)
                .expect("LMDB removes");
        }
        for (key, value) in puts {
            transaction
                .put(
                    self.database,
                    &key.to_ne_bytes(),
                    value,
                    WriteFlags::empty(),
                )
                .expect("LMDB puts");
        }
        self.disk
            .flush_times(LMDB_FLUSHES, || transaction.commit())
            .expect("LMDB commits");
    }
}
