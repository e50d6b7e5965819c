//! Memory that the spool keeps for each live message.
//!
//! Bytes asked of the allocator, counted by one that passes everything on to the system's, after a million messages
//! of one recipient were accepted, and again after each was deferred once; beside what as many envelopes would take if
//! they were kept whole. The process's resident memory is printed as well, which has the allocator's own losses.
//!
//! `cargo bench --bench index`; `INDEX_MESSAGES` (1000000). Needs about 700 MB of disk.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts of messages are small numbers"
)]

mod measure;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use diligence::address::ReversePath;
use diligence::clock::SystemClock;
use diligence::envelope::{Delivery, Envelope, Outcome, Recipient, RecipientId};
use diligence::spool::storage::OsStorage;
use diligence::spool::{CommitTicket, Spool, SpoolOptions, Update, Writer};
use diligence::status::Status;

use measure::{Settings, print_bar, setting};

/// Messages handed to the writer between two steps.
const BATCH_MESSAGES: usize = 1000;

/// The system's allocator, counted.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

#[expect(unsafe_code, reason = "an allocator is unsafe by its trait")]
// SAFETY: each call is passed on unchanged to the system's allocator; counting touches an atomic and nothing else.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps to `GlobalAlloc::alloc`'s contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: `block` came from `alloc` above, that is from the system's allocator, with this layout.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes allocated and resident at one moment.
#[derive(Clone, Copy)]
struct Memory {
    allocated: f64,
    resident: f64,
}

impl Memory {
    fn now() -> Self {
        let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|rest| rest.trim().split(' ').next()?.parse::<f64>().ok());
        Self {
            allocated: ALLOCATED.load(Ordering::Relaxed) as f64,
            resident: kib.unwrap_or(0.0) * 1024.0,
        }
    }

    /// Prints what was added since, for each message.
    fn print_since(self, before: Self, messages: usize, what: &str) -> f64 {
        let each = (self.allocated - before.allocated) / messages as f64;
        let resident = (self.resident - before.resident) / messages as f64;
        println!("{what:<44} {each:>8.1} bytes a message, {resident:>8.1} resident");
        each
    }
}

fn main() {
    let settings = Settings::read("index");
    let default = if settings.is_smoke { 2e3 } else { 1e6 };
    let messages = setting("INDEX_MESSAGES", default) as usize;
    let folder = settings.make_folder("spool");
    let storage = Arc::new(OsStorage::open(&folder).expect("the folder opens"));
    let options = SpoolOptions::default();
    let opened = Spool::open(storage, Arc::new(SystemClock::new()), options);
    let (spool, mut writer, _) = opened.expect("the spool opens");
    spool.keep();
    // The writer's own buffers have their size after one full batch.
    accept(&spool, &mut writer, BATCH_MESSAGES);
    println!("index: {messages} live messages of one recipient");
    let before = Memory::now();
    accept(&spool, &mut writer, messages);
    let accepted = Memory::now().print_since(before, messages, "accepted");
    defer(&spool, &mut writer, messages);
    Memory::now().print_since(before, messages, "each deferred once");
    assert_eq!(spool.stats().messages, (messages + BATCH_MESSAGES) as u64);
    drop((spool, writer));
    let before = Memory::now();
    let whole: std::collections::BTreeMap<usize, Envelope> =
        (0..messages).map(|at| (at, envelope(at))).collect();
    Memory::now().print_since(before, whole.len(), "envelopes kept whole in a map");
    print_bar("bytes a message", accepted, "100", accepted <= 100.0);
}

fn envelope(at: usize) -> Envelope {
    let recipient = format!("user{at}@host{}.example.net", at % 5000);
    Envelope::new(ReversePath::Null, vec![Recipient::new(&recipient)])
}

/// Steps the writer until all tickets are released.
fn write(writer: &mut Writer, tickets: &[CommitTicket]) {
    while tickets.iter().any(|ticket| ticket.try_result().is_none()) {
        writer.step();
    }
}

fn accept(spool: &Spool, writer: &mut Writer, messages: usize) {
    for start in (0..messages).step_by(BATCH_MESSAGES) {
        let tickets: Vec<_> = (start..messages.min(start + BATCH_MESSAGES))
            .map(|at| {
                let mut transaction = spool.begin().expect("the spool accepts");
                transaction
                    .append_content(b"x")
                    .expect("the spool takes content");
                transaction.commit(envelope(at))
            })
            .collect();
        write(writer, &tickets);
    }
}

fn defer(spool: &Spool, writer: &mut Writer, messages: usize) {
    for start in (0..messages).step_by(BATCH_MESSAGES) {
        let tickets: Vec<_> = (start..messages.min(start + BATCH_MESSAGES))
            .filter_map(|_| spool.lease_due(Duration::from_secs(3600)))
            .map(|lease| {
                let later = Outcome::new(
                    Delivery::Deferred,
                    Status::new(4, 0, 0),
                    "esmtp",
                    "Deferred",
                );
                let update = Update {
                    outcomes: vec![(RecipientId(0), later)],
                    next_due_unix_ms: Some(u64::MAX),
                    ..Update::default()
                };
                spool.finish(lease, update).expect("the lease stands")
            })
            .collect();
        write(writer, &tickets);
    }
}
