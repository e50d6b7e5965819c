//! Durable accepts a second: the journal against one file a message with fsync of file and folder.
//!
//! 4 KiB a message, 1, 10, 50 and 200 committers, on the real disk and with 5 ms a flush, flushes queued one behind
//! the other. The alternatives take turns in one run (A B A B); printed are the median rate of the rounds, the
//! slowest and the fastest, the p99 over all rounds, syncs a message, and the ratio. Messages are removed as others
//! come (steady state). Syncs go through std, so that a preloaded shim can slow and count them.
//!
//! `cargo bench --bench commit [-- real|slow]`; `COMMIT_SECONDS` (default 1) a round, `COMMIT_ROUNDS` (default 5).

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "settings are small numbers"
)]

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use diligence::address::ReversePath;
use diligence::clock::{Clock, SystemClock};
use diligence::envelope::{Delivery, Envelope, Outcome, Recipient, RecipientId};
use diligence::spool::storage::{OsStorage, Storage, StorageFile};
use diligence::spool::{Spool, SpoolOptions, Update};
use diligence::status::Status;

const MESSAGE_BYTES: usize = 4096;

/// What every flush goes through: as it is, or 5 ms more, one behind the other.
#[derive(Default)]
struct Disk {
    queue: Option<Mutex<()>>,
    syncs: AtomicU64,
}

impl Disk {
    fn flush(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::Relaxed);
        let _turn = self.queue.as_ref().map(|queue| {
            let turn = queue
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            std::thread::sleep(Duration::from_millis(5));
            turn
        });
        sync()
    }
}

/// A folder whose flushes go through [`Disk`].
struct BenchStorage {
    below: OsStorage,
    disk: Arc<Disk>,
}

struct BenchFile {
    below: Arc<dyn StorageFile>,
    disk: Arc<Disk>,
}

impl BenchStorage {
    fn wrap(&self, below: Arc<dyn StorageFile>) -> Arc<dyn StorageFile> {
        Arc::new(BenchFile {
            below,
            disk: Arc::clone(&self.disk),
        })
    }
}

impl Storage for BenchStorage {
    fn create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        self.below.create(name).map(|file| self.wrap(file))
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        self.below.open(name).map(|file| self.wrap(file))
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
        self.below.fill_zero(len)
    }
    fn len(&self) -> io::Result<u64> {
        self.below.len()
    }
}

/// One way to accept a message durably.
trait Accept: Sync {
    fn accept(&self, content: &[u8]);
}

struct Journal {
    spool: Spool,
}

impl Accept for Journal {
    fn accept(&self, content: &[u8]) {
        let mut transaction = self.spool.begin().expect("the spool accepts");
        transaction
            .append_content(content)
            .expect("the spool takes content");
        let envelope = Envelope::new(ReversePath::Null, vec![Recipient::new("bob@lab.test")]);
        let id = transaction
            .commit(envelope)
            .wait()
            .expect("the commit is durable");
        let lease = self
            .spool
            .lease_message(id, Duration::from_secs(60))
            .expect("nobody else leases it");
        let sent = Outcome::new(Delivery::Delivered, Status::OK, "local", "Sent");
        let update = Update {
            outcomes: vec![(RecipientId(0), sent)],
            ..Update::default()
        };
        drop(self.spool.finish(lease, update).expect("the lease stands"));
    }
}

struct FilePerMessage {
    folder: PathBuf,
    handle: File,
    disk: Arc<Disk>,
    next: AtomicU64,
}

impl Accept for FilePerMessage {
    fn accept(&self, content: &[u8]) {
        let path = self
            .folder
            .join(self.next.fetch_add(1, Ordering::Relaxed).to_string());
        let mut file = File::create_new(&path).expect("the name is new");
        file.write_all(content).expect("the disk has room");
        self.disk
            .flush(|| file.sync_all())
            .expect("the file is synced");
        self.disk
            .flush(|| self.handle.sync_all())
            .expect("the folder is synced");
        std::fs::remove_file(&path).expect("the file is there");
    }
}

#[derive(Default)]
struct Measured {
    rates: Vec<f64>,
    latencies: Vec<Duration>,
    messages: u64,
    syncs: u64,
}

impl Measured {
    fn median(&self) -> f64 {
        let mut rates = self.rates.clone();
        rates.sort_by(f64::total_cmp);
        rates.get(rates.len() / 2).copied().unwrap_or(0.0)
    }

    fn p99(&mut self) -> Duration {
        self.latencies.sort_unstable();
        self.latencies
            .get(self.latencies.len() * 99 / 100)
            .copied()
            .unwrap_or_default()
    }

    fn print(&mut self, name: &str, committers: usize) {
        let low = self.rates.iter().copied().fold(f64::MAX, f64::min);
        let high = self.rates.iter().copied().fold(0.0, f64::max);
        let p99 = self.p99();
        println!(
            "{name:<18} {committers:>4} {:>9.0} {low:>9.0} {high:>9.0} {:>10.2} {:>9.4}",
            self.median(),
            p99.as_secs_f64() * 1e3,
            self.syncs as f64 / self.messages.max(1) as f64,
        );
    }
}

fn round(way: &dyn Accept, committers: usize, seconds: f64, disk: &Disk, into: &mut Measured) {
    let clock = SystemClock::new();
    let content = vec![b'x'; MESSAGE_BYTES];
    let is_over = AtomicBool::new(false);
    let (syncs, start) = (disk.syncs.load(Ordering::Relaxed), clock.monotonic());
    let latencies: Vec<Duration> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..committers)
            .map(|_| {
                scope.spawn(|| {
                    let mut mine = Vec::new();
                    while !is_over.load(Ordering::Relaxed) {
                        let before = clock.monotonic();
                        way.accept(&content);
                        mine.push(clock.monotonic() - before);
                    }
                    mine
                })
            })
            .collect();
        std::thread::sleep(Duration::from_secs_f64(seconds));
        is_over.store(true, Ordering::Relaxed);
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("no committer fails"))
            .collect()
    });
    let took = clock.monotonic() - start;
    into.rates.push(latencies.len() as f64 / took.as_secs_f64());
    into.messages += latencies.len() as u64;
    into.syncs += disk.syncs.load(Ordering::Relaxed) - syncs;
    into.latencies.extend(latencies);
}

fn compare(base: &Path, is_slow: bool, seconds: f64, rounds: usize) {
    let disk = || {
        Arc::new(Disk {
            queue: is_slow.then(Mutex::default),
            ..Disk::default()
        })
    };
    let (journal_disk, file_disk) = (disk(), disk());
    let name = if is_slow { "slow" } else { "real" };
    let journal_folder = base.join(format!("{name}-journal"));
    let file_folder = base.join(format!("{name}-files"));
    std::fs::create_dir_all(&journal_folder).expect("a folder for the journal");
    std::fs::create_dir_all(&file_folder).expect("a folder for files");
    let storage = BenchStorage {
        below: OsStorage::open(&journal_folder).expect("the folder opens"),
        disk: Arc::clone(&journal_disk),
    };
    let clock = Arc::new(SystemClock::new());
    let (spool, writer, _) =
        Spool::open(Arc::new(storage), clock, SpoolOptions::default()).expect("the spool opens");
    let thread = std::thread::spawn(move || writer.run());
    let journal = Journal { spool };
    let files = FilePerMessage {
        handle: File::open(&file_folder).expect("the folder opens"),
        folder: file_folder,
        disk: Arc::clone(&file_disk),
        next: AtomicU64::new(0),
    };
    println!(
        "\n{}",
        if is_slow {
            "each flush 5 ms more, one behind the other; syncs are real"
        } else {
            "the disk as it is; syncs are real"
        }
    );
    println!(
        "{:<18} {:>4} {:>9} {:>9} {:>9} {:>10} {:>9}",
        "", "n", "msgs/s", "slowest", "fastest", "p99 ms", "syncs/msg"
    );
    for committers in [1, 10, 50, 200] {
        let mut warm = Measured::default();
        round(
            &journal,
            committers,
            seconds / 4.0,
            &journal_disk,
            &mut warm,
        );
        round(&files, committers, seconds / 4.0, &file_disk, &mut warm);
        let (mut ours, mut theirs) = (Measured::default(), Measured::default());
        for _ in 0..rounds {
            round(&journal, committers, seconds, &journal_disk, &mut ours);
            round(&files, committers, seconds, &file_disk, &mut theirs);
        }
        ours.print("journal", committers);
        theirs.print("one file a message", committers);
        println!(
            "{:<18} {committers:>4} {:>8.1}x",
            "ratio",
            ours.median() / theirs.median().max(1e-9)
        );
    }
    journal.spool.close();
    thread.join().expect("the writer ends cleanly");
}

fn setting(name: &str, default: f64) -> f64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

fn main() {
    let seconds = setting("COMMIT_SECONDS", 1.0);
    let rounds = setting("COMMIT_ROUNDS", 5.0).clamp(1.0, 100.0) as usize;
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with('-'))
        .collect();
    let base =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("commit-{}", std::process::id()));
    for (name, is_slow) in [("real", false), ("slow", true)] {
        if wanted.is_empty() || wanted.iter().any(|w| w == name) {
            compare(&base, is_slow, seconds, rounds);
        }
    }
    std::fs::remove_dir_all(&base).expect("the folder goes");
}
