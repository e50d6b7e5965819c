//! What it costs to accept a message durably, by the number of committers, against one and two files a message.
//!
//! Sections, each chosen by its name: `throughput` (1, 10, 50 and 200 committers, 4 KiB; with the least a write and
//! flush costs here, for latency and efficiency), `slow_flush` (5 ms a flush, flushes queued one behind the other),
//! `mixed` (small mail beside two streams of 50 MB/s), `segment_kind` (zero-written against reserved and growing
//! files). "growth" means that no emptied file is used again, so that each segment is zero-written first.
//!
//! `cargo bench --bench commit [-- SECTION...]`; `--plot` writes `benches/commit.svg`. Settings: `measure/mod.rs`.

#![expect(
    clippy::cast_possible_truncation,
    reason = "sizes of batches are small numbers"
)]

mod measure;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use diligence::clock::{Clock, SystemClock};
use diligence::spool::SpoolOptions;

use measure::disk::{Disk, Room};
use measure::engines::Batched;
use measure::plot::{Panel, svg};
use measure::ways::{Accept, FilePerMessage, Journal, TwoFilesPerMessage};
use measure::{Figures, RawFile, Rounds, Settings, compare, load, print_bar};

const MESSAGE_BYTES: usize = 4096;
/// What the batch of one message takes.
const ONE_MESSAGE_BATCH_BYTES: usize = 8192;
const COMMITTERS: [usize; 4] = [1, 10, 50, 200];
/// Bars by number of committers: times one file, times two files.
const BARS: [(f64, f64); 4] = [(4.0, 6.0), (7.0, 10.0), (20.0, 40.0), (15.0, 30.0)];
const SLOW_FLUSH: Duration = Duration::from_millis(5);

fn main() {
    let settings = Settings::read("commit");
    let mut rounds = Rounds::new(&settings);
    let mut panels = Vec::new();
    if settings.wants("throughput") {
        panels.push(throughput(&settings, &mut rounds));
    }
    if settings.wants("slow_flush") {
        panels.push(slow_flush(&settings, &mut rounds));
    }
    if settings.wants("mixed") {
        mixed(&settings, &mut rounds);
    }
    if settings.wants("segment_kind") {
        segment_kind(&settings, &mut rounds);
    }
    println!();
    rounds.print();
    if settings.is_smoke {
        assert!(svg(&panels).ends_with("</svg>\n"));
    }
    if std::env::args().any(|arg| arg == "--plot") {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/commit.svg");
        std::fs::write(path, svg(&panels)).expect("the plot is written");
    }
}

/// As shipped; with small segments where it is only to be seen that it works.
fn steady_options(settings: &Settings) -> SpoolOptions {
    let mut options = SpoolOptions::default();
    if settings.is_smoke {
        options.segment_bytes = 4 << 20;
    }
    options
}

/// No emptied file is used again.
fn growing_options(settings: &Settings) -> SpoolOptions {
    SpoolOptions {
        spares_max: 0,
        ..steady_options(settings)
    }
}

/// A spool whose emptied segments come back as spares.
fn steady_journal(settings: &Settings) -> Journal {
    let options = steady_options(settings);
    let enough = 3 * options.checkpoint_bytes;
    let journal = Journal::open(
        &settings.make_folder("journal"),
        &Disk::real(),
        Room::Zeroed,
        options,
    );
    while !settings.is_smoke && journal.spool.stats().bytes_written < enough {
        load(&journal, 50, 0.2, &[b'x'; MESSAGE_BYTES]);
    }
    journal
}

fn throughput(settings: &Settings, rounds: &mut Rounds) -> Panel {
    let journal = steady_journal(settings);
    let growing = Journal::open(
        &settings.make_folder("growth"),
        &Disk::real(),
        Room::Zeroed,
        growing_options(settings),
    );
    let one = FilePerMessage::open(&settings.make_folder("one"), &Disk::real());
    let two = FilePerMessage::open(&settings.make_folder("two"), &Disk::real());
    let two = TwoFilesPerMessage(two);
    let redb = Batched::redb(&settings.make_folder("redb"), &Disk::real());
    let lmdb = Batched::lmdb(&settings.make_folder("lmdb"), &Disk::real());
    let mut raw = RawFile::new(&settings.folder.join("raw"), 64 << 20);
    let content = [b'x'; MESSAGE_BYTES];
    let names = [
        "journal",
        "journal, growth",
        "one file",
        "two files",
        "redb",
        "LMDB",
    ];
    let mut lines: Vec<(String, Vec<(f64, f64)>)> = names
        .iter()
        .map(|name| ((*name).to_owned(), Vec::new()))
        .collect();
    for (n, (bar_one, bar_two)) in COMMITTERS.into_iter().zip(BARS) {
        let seconds = settings.seconds;
        let bytes = AtomicU64::new(ONE_MESSAGE_BATCH_BYTES as u64);
        let mut ours = || {
            let before = journal.spool.stats();
            let mut result = load(&journal, n, seconds, &content);
            let after = journal.spool.stats();
            let batches = (after.batches - before.batches).max(1);
            let written = after.bytes_written - before.bytes_written;
            bytes.store(
                (written / batches).next_multiple_of(4096),
                Ordering::Relaxed,
            );
            // Batches a second, to compare with raw writes a second.
            result.units = batches as f64 / (result.latencies.len() as f64 / result.rate);
            result
        };
        let mut at_same_size = || {
            let size = bytes.load(Ordering::Relaxed) as usize;
            raw.load(&vec![b'r'; size], seconds / 2.0)
        };
        let figures = compare(
            rounds,
            &format!("throughput_{n}: 4 KiB, {n} committers, steady state; the disk as it is"),
            &mut [
                (names[0], &mut ours),
                ("raw write+flush, same batch", &mut at_same_size),
                (names[1], &mut || load(&growing, n, seconds, &content)),
                (names[2], &mut || load(&one, n, seconds, &content)),
                (names[3], &mut || load(&two, n, seconds, &content)),
                (names[4], &mut || load(&redb, n, seconds, &content)),
                (names[5], &mut || load(&lmdb, n, seconds, &content)),
            ],
        );
        let [ours, raw, growth, one, two, redb, lmdb] = figures.as_slice() else {
            continue;
        };
        for (line, figures) in lines.iter_mut().zip([ours, growth, one, two, redb, lmdb]) {
            line.1.push((n as f64, figures.rate));
        }
        against(ours, one, bar_one);
        against(ours, two, bar_two);
        // What the disk would allow: the same batches, written and flushed with nothing between them.
        let ceiling = raw.rate * ours.rate / ours.units.max(1e-9);
        println!(
            "  with nothing but its writes and flushes {:>17.3} times one file, {:.3} times two",
            ceiling / one.rate.max(1e-9),
            ceiling / two.rate.max(1e-9)
        );
        if n == 1 {
            let p50 = ours.p50.as_secs_f64() / raw.p50.as_secs_f64().max(1e-9);
            print_bar(
                "latency_1: p50 to raw write and flush",
                p50,
                "1.5",
                p50 <= 1.5,
            );
        }
        if n == 50 {
            against(ours, redb, 1.8);
            against(ours, lmdb, 1.3);
            for theirs in [redb, lmdb] {
                let p99 = ours.p99.as_secs_f64() / theirs.p99.as_secs_f64().max(1e-9);
                print_bar(&format!("p99 to {}", theirs.name), p99, "1.0", p99 <= 1.0);
            }
            print_bar("syncs a message", ours.syncs, "0.03", ours.syncs <= 0.03);
        }
        if n == 1 || n == 50 {
            let bar = if n == 1 { 0.7 } else { 0.4 };
            let share = ours.units / raw.rate.max(1e-9);
            let what = format!(
                "efficiency_{n}: share of raw, {} KiB a write",
                bytes.load(Ordering::Relaxed) / 1024
            );
            print_bar(&what, share, &bar.to_string(), share >= bar);
        }
    }
    Panel {
        title: "Durable accepts of 4 KiB, the disk as it is".to_owned(),
        axes: ("committers", "messages a second"),
        lines,
    }
}

fn against(ours: &Figures, theirs: &Figures, bar: f64) {
    let ratio = ours.rate / theirs.rate.max(1e-9);
    print_bar(
        &format!("times {}", theirs.name),
        ratio,
        &bar.to_string(),
        ratio >= bar,
    );
}

fn slow_flush(settings: &Settings, rounds: &mut Rounds) -> Panel {
    let disk = || Disk::slow(SLOW_FLUSH);
    let options = steady_options(settings);
    let folder = |name: &str| settings.make_folder(&format!("slow-{name}"));
    let journal = Journal::open(&folder("journal"), &disk(), Room::Zeroed, options);
    let one = FilePerMessage::open(&folder("one"), &disk());
    let redb = Batched::redb(&folder("redb"), &disk());
    let lmdb = Batched::lmdb(&folder("lmdb"), &disk());
    let content = [b'x'; MESSAGE_BYTES];
    let ways: [(&str, &dyn Accept); 4] = [
        ("journal", &journal),
        ("one file", &one),
        ("redb", &redb),
        ("LMDB", &lmdb),
    ];
    let mut lines: Vec<(String, Vec<(f64, f64)>)> = ways
        .iter()
        .map(|(name, _)| ((*name).to_owned(), Vec::new()))
        .collect();
    for n in COMMITTERS {
        let mut loads: Vec<_> = ways
            .iter()
            .map(|(name, way)| (*name, move || load(*way, n, settings.seconds, &content)))
            .collect();
        let mut variants: Vec<(&str, &mut dyn FnMut() -> measure::Load)> = loads
            .iter_mut()
            .map(|(name, measure)| (*name, measure as _))
            .collect();
        let title = format!("slow_flush_{n}: each flush 5 ms more, one behind the other");
        let figures = compare(rounds, &title, &mut variants);
        for (line, figures) in lines.iter_mut().zip(&figures) {
            line.1.push((n as f64, figures.rate));
        }
        let [ours, one, redb, lmdb] = figures.as_slice() else {
            continue;
        };
        match n {
            10 => against(ours, one, 10.0),
            50 => against(ours, one, 40.0),
            _ => continue,
        }
        against(ours, redb, 1.0);
        against(ours, lmdb, 1.0);
    }
    Panel {
        title: "The same, each flush 5 ms slower".to_owned(),
        axes: ("committers", "messages a second"),
        lines,
    }
}

/// Bytes of one message of a stream, and of the pieces in which it comes.
const STREAM_MESSAGE_BYTES: usize = 5_000_000;
const STREAM_PIECE_BYTES: usize = 64 << 10;
const STREAM_BYTES_A_SECOND: f64 = 50e6;

/// Sends large messages at a fixed pace until it is over.
fn stream(journal: &Journal, is_over: &AtomicBool) {
    let clock = SystemClock::new();
    let piece = vec![b's'; STREAM_PIECE_BYTES];
    let start = clock.monotonic();
    let mut sent = 0.0;
    while !is_over.load(Ordering::Relaxed) {
        journal.accept_stream(
            &mut (0..STREAM_MESSAGE_BYTES / STREAM_PIECE_BYTES).map(|_| {
                sent += STREAM_PIECE_BYTES as f64;
                let due = start + Duration::from_secs_f64(sent / STREAM_BYTES_A_SECOND);
                std::thread::sleep(due.saturating_sub(clock.monotonic()));
                piece.as_slice()
            }),
        );
    }
}

fn mixed(settings: &Settings, rounds: &mut Rounds) {
    let journal = Journal::open(
        &settings.make_folder("mixed"),
        &Disk::real(),
        Room::Zeroed,
        steady_options(settings),
    );
    let content = [b'x'; MESSAGE_BYTES];
    let figures = compare(
        rounds,
        "mixed: small mail of 10 committers, beside two streams of 50 MB/s in messages of 5 MB",
        &mut [
            ("alone", &mut || {
                load(&journal, 10, settings.seconds, &content)
            }),
            ("beside two streams", &mut || {
                let is_over = Arc::new(AtomicBool::new(false));
                std::thread::scope(|scope| {
                    for _ in 0..2 {
                        scope.spawn(|| stream(&journal, &is_over));
                    }
                    let result = load(&journal, 10, settings.seconds, &content);
                    is_over.store(true, Ordering::Relaxed);
                    result
                })
            }),
        ],
    );
    if let [alone, beside] = figures.as_slice() {
        let ratio = beside.p999.as_secs_f64() / alone.p999.as_secs_f64().max(1e-9);
        print_bar("p99.9 to that without", ratio, "3.0", ratio <= 3.0);
    }
}

fn segment_kind(settings: &Settings, rounds: &mut Rounds) {
    let open = |name: &str, room: Room| {
        let folder = settings.make_folder(&format!("kind-{name}"));
        Journal::open(&folder, &Disk::real(), room, growing_options(settings))
    };
    let bytes = growing_options(settings).segment_bytes;
    let zeroed = open("zeroed", Room::Zeroed);
    let reserved = open("reserved", Room::Reserved);
    let growing = open("growing", Room::Growing(bytes));
    let content = [b'x'; MESSAGE_BYTES];
    for n in [1, 10] {
        let figures = compare(
            rounds,
            &format!("segment_kind: {n} committers"),
            &mut [
                ("zero-written", &mut || {
                    load(&zeroed, n, settings.seconds, &content)
                }),
                ("reserved", &mut || {
                    load(&reserved, n, settings.seconds, &content)
                }),
                ("growing", &mut || {
                    load(&growing, n, settings.seconds, &content)
                }),
            ],
        );
        if let [zeroed, reserved, growing] = figures.as_slice() {
            against(zeroed, reserved, 1.3);
            against(zeroed, growing, 1.3);
        }
    }
}
