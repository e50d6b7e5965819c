//! What reclaiming costs and saves: eight simulated days of relay traffic.
//!
//! Most messages are delivered at once. A few in a hundred wait: of those most go within hours, the rest stay until
//! they are given up after five days; deferred ones are tried again after 5 minutes, doubled up to 4 hours. Contents
//! have sizes as mail has, from 2 to 60 KB. Files lie in memory and a clock is moved by hand; segments are small, so
//! that an hour fills as many as on a busy server with large ones, and checkpoints come every 15 minutes.
//!
//! Printed: bytes of batches against bytes of content and envelopes accepted; bytes of segments and spares against
//! what lives, hourly from the third day on; and beside it what the same traffic would hold if nothing were ever
//! copied, and each segment stayed until all in it has gone. What a minute brings is one batch, so that little of what
//! is written is padding, as on a busy server.
//!
//! `cargo bench --bench reclaim`; `RECLAIM_DAYS` (8), `RECLAIM_A_DAY` (40000) messages a day.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts of messages are small numbers"
)]

mod measure;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use diligence::clock::{Clock, ManualClock};
use diligence::envelope::{Delivery, MessageId, Outcome, RecipientId};
use diligence::spool::{Lease, Spool, SpoolOptions, Update, Writer};
use diligence::status::Status;

use measure::memory::MemoryStorage;
use measure::ways::envelope;
use measure::{Settings, print_bar, setting};

const SEGMENT_BYTES: u64 = 512 << 10;
/// How far the clock moves at once.
const TICK: Duration = Duration::from_secs(60);
/// Ticks between two samples.
const SAMPLE_TICKS: u64 = 60;
const HOUR: u64 = 3_600_000;
/// What an envelope of one recipient takes, about.
const ENVELOPE_BYTES: u64 = 160;
/// Waits between attempts, as the queue has them.
const WAIT_FIRST: u64 = 300_000;
const WAIT_LONGEST: u64 = 4 * HOUR;

/// A sequence of numbers that look like chance, the same at each run (splitmix64).
struct Chance(u64);

impl Chance {
    /// Between 0 and 1.
    fn share(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Bytes of a message: most are small, a few are large.
    fn size(&mut self) -> usize {
        (2000.0 * 30f64.powf(self.share().powi(2))) as usize
    }

    /// How long a message lives, in milliseconds.
    fn lifetime(&mut self) -> u64 {
        match self.share() {
            s if s < 0.94 => 0,
            s if s < 0.98 => (-self.share().max(1e-9).ln() * 4.0 * HOUR as f64) as u64,
            _ => 120 * HOUR,
        }
    }
}

/// What the bench itself knows of a live message.
struct Live {
    ends_at: u64,
    bytes: u64,
    tries: u32,
    /// Segment of a journal that never copies.
    uncopied: u64,
}

/// The same traffic in a journal that never copies: live messages by segment.
#[derive(Default)]
struct Uncopied {
    live: BTreeMap<u64, u64>,
    bytes: u64,
}

impl Uncopied {
    fn add(&mut self, bytes: u64) -> u64 {
        self.bytes += bytes;
        let segment = self.bytes / SEGMENT_BYTES;
        *self.live.entry(segment).or_default() += 1;
        segment
    }

    fn remove(&mut self, segment: u64) {
        if let Some(count) = self.live.get_mut(&segment) {
            *count -= 1;
            if *count == 0 {
                self.live.remove(&segment);
            }
        }
    }
}

struct Days {
    clock: Arc<ManualClock>,
    spool: Spool,
    writer: Writer,
    chance: Chance,
    live: HashMap<MessageId, Live>,
    live_bytes: u64,
    accepted_bytes: u64,
    accepted: u64,
    attempts: u64,
    uncopied: Uncopied,
    block: Vec<u8>,
}

impl Days {
    /// Accepts so many messages in one batch.
    fn accept(&mut self, count: usize) {
        let mut tickets = Vec::new();
        for _ in 0..count {
            let size = self.chance.size();
            let mut transaction = self.spool.begin().expect("the spool accepts");
            let content = &self.block[..size];
            transaction
                .append_content(content)
                .expect("the spool takes content");
            let bytes = size as u64 + ENVELOPE_BYTES;
            let live = Live {
                ends_at: self.clock.unix_ms() + self.chance.lifetime(),
                bytes,
                tries: 0,
                uncopied: self.uncopied.add(bytes),
            };
            self.live.insert(transaction.id(), live);
            self.live_bytes += bytes;
            self.accepted_bytes += bytes;
            self.accepted += 1;
            tickets.push(transaction.commit(envelope()));
        }
        while tickets.iter().any(|ticket| ticket.try_result().is_none()) {
            self.writer.step();
        }
        for ticket in tickets {
            ticket.wait().expect("the commit is durable");
        }
    }

    /// One attempt: the message goes if its time has come, or waits longer.
    fn attempt(&mut self, lease: Lease) {
        let now = self.clock.unix_ms();
        self.attempts += 1;
        let Some(live) = self.live.get_mut(&lease.id()) else {
            return;
        };
        let update = if live.ends_at <= now {
            let sent = Outcome::new(Delivery::Delivered, Status::OK, "esmtp", "Sent");
            Update {
                outcomes: vec![(RecipientId(0), sent)],
                ..Update::default()
            }
        } else {
            let wait = (WAIT_FIRST << live.tries.min(10)).min(WAIT_LONGEST);
            live.tries += 1;
            let later = Outcome::new(
                Delivery::Deferred,
                Status::new(4, 4, 1),
                "esmtp",
                "Deferred: Connection timed out with mx.example.net.",
            );
            Update {
                outcomes: vec![(RecipientId(0), later)],
                next_due_unix_ms: Some(now + wait),
                ..Update::default()
            }
        };
        if live.ends_at <= now {
            let (bytes, segment) = (live.bytes, live.uncopied);
            self.live.remove(&lease.id());
            self.live_bytes -= bytes;
            self.uncopied.remove(segment);
        }
        drop(self.spool.finish(lease, update).expect("the lease stands"));
    }
}

fn main() {
    let settings = Settings::read("reclaim");
    let days = setting("RECLAIM_DAYS", if settings.is_smoke { 0.05 } else { 8.0 });
    let a_tick = setting("RECLAIM_A_DAY", 40_000.0) / (86_400.0 / TICK.as_secs_f64());
    let storage = Arc::new(MemoryStorage::default());
    let clock = Arc::new(ManualClock::at(1_700_000_000_000));
    let options = SpoolOptions {
        segment_bytes: SEGMENT_BYTES,
        checkpoint_bytes: 64 << 20,
        checkpoint_interval: Duration::from_secs(900),
        ..SpoolOptions::default()
    };
    let opened = Spool::open(Arc::clone(&storage) as _, Arc::clone(&clock) as _, options);
    let (spool, writer, _) = opened.expect("the spool opens");
    let mut run = Days {
        clock: Arc::clone(&clock),
        spool,
        writer,
        chance: Chance(1),
        live: HashMap::new(),
        live_bytes: 0,
        accepted_bytes: 0,
        accepted: 0,
        attempts: 0,
        uncopied: Uncopied::default(),
        block: vec![b'x'; 64 << 10],
    };
    let ticks = (days * 86_400.0 / TICK.as_secs_f64()) as u64;
    let mut samples: Vec<[f64; 3]> = Vec::new();
    let mut to_come = 0.0;
    for tick in 0..ticks {
        to_come += a_tick;
        run.accept(to_come as usize);
        to_come -= to_come.floor();
        while let Some(lease) = run.spool.lease_due(Duration::from_secs(600)) {
            run.attempt(lease);
        }
        run.writer.step();
        run.spool.keep();
        run.writer.step();
        clock.advance(TICK);
        if tick % SAMPLE_TICKS == 0 && (tick > ticks / 4 || settings.is_smoke) {
            let held = storage.held("segment-") + storage.held("spare-");
            let live = run.live_bytes as f64;
            let uncopied = run.uncopied.live.len() as u64 * SEGMENT_BYTES;
            samples.push([held as f64, live, uncopied as f64]);
        }
    }
    let stats = run.spool.stats();
    assert_eq!(stats.messages, run.live.len() as u64, "nothing is lost");
    let mean = |at: usize| samples.iter().map(|s| s[at]).sum::<f64>() / samples.len() as f64;
    let worst = samples.iter().map(|s| s[0] / s[1]).fold(0.0, f64::max);
    println!(
        "reclaim: {days} days, {} messages of {:.1} KB, {} attempts; {} live at the end",
        run.accepted,
        run.accepted_bytes as f64 / 1e3 / run.accepted as f64,
        run.attempts,
        stats.messages
    );
    println!(
        "{:<44} {:>10.1} MB accepted, {:>8.1} MB live, {:>8.1} MB held",
        "",
        run.accepted_bytes as f64 / 1e6,
        mean(1) / 1e6,
        mean(0) / 1e6
    );
    println!(
        "{:<44} {:>10.3} times what was accepted",
        "all writes, checkpoints too",
        storage.written() as f64 / run.accepted_bytes as f64
    );
    println!(
        "{:<44} {:>10.3} times what lives",
        "held if nothing were copied",
        mean(2) / mean(1)
    );
    println!("{:<44} {worst:>10.3} times what lives", "held at worst");
    let written = stats.bytes_written as f64 / run.accepted_bytes as f64;
    print_bar("written to accepted", written, "1.15", written <= 1.15);
    let held = mean(0) / mean(1);
    print_bar("held to live", held, "2.0", held <= 2.0);
}
