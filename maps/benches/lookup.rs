//! Lookups: in a server's snapshot, once in a file, and while the map is being replaced; libdb and LMDB in the same run.
//!
//! `cargo bench -p diligence-maps --bench lookup`. ENTRIES (1000000) and ROUNDS (5) may be set. Rounds are interleaved,
//! and the median of each is printed, with the latency of this machine's memory beside it, since a lookup in a large map
//! is one or two cache misses. libdb is timed by `libdb.c`, compiled here when libdb5.3-dev is installed; LMDB through lmdb-rkv,
//! in this process. Writes `maps/benches/lookup.svg`. Asserts no time.

#![allow(clippy::unwrap_used, reason = "a bench may panic")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "numbers for printing"
)]

mod support;

use diligence_maps::{
    DuplicatePolicy, HandleOptions, LoadOptions, Map, MapBuilder, MapHandle, MapKind, MapSpec,
    PublishOptions, load, open_direct,
};
use lmdb::{Environment, EnvironmentFlags, Transaction};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::{Bar, Rng, absent_key, entry, median, number, svg};

/// Lookups timed in one round.
const LOOKUPS: usize = 400_000;
/// Openings timed in one round.
const OPENINGS: usize = 2_000;
const WAIT: Duration = Duration::from_secs(10);

struct Files {
    hash: PathBuf,
    lmdb: PathBuf,
    libdb: Option<PathBuf>,
    dir: PathBuf,
}

fn main() {
    let entries = number("ENTRIES", 1_000_000);
    let rounds = number("ROUNDS", 5);
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let files = Files {
        hash: scratch.path().join("bench.db"),
        lmdb: scratch.path().join("bench.lmdb"),
        libdb: compile(scratch.path()),
        dir: scratch.path().to_path_buf(),
    };
    for (kind, path) in [(MapKind::Hash, &files.hash), (MapKind::Lmdb, &files.lmdb)] {
        build(kind, entries, path, 0);
    }
    println!("{entries} entries, {rounds} rounds, medians");
    println!(
        "memory latency of this machine: {:.0} ns a dependent miss",
        memory_latency()
    );
    let bars = lookups(&files, entries, rounds);
    let once = one_shots(&files, entries, rounds);
    reload(&files, entries);
    let title =
        format!("One lookup among {entries} entries, ns (median of {rounds} interleaved rounds)");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/lookup.svg");
    std::fs::write(
        &path,
        svg(&title, &bars, "open + lookup + close, ns", &once),
    )
    .unwrap();
    println!("plot: {}", path.display());
}

fn build(kind: MapKind, entries: usize, path: &Path, generation: usize) {
    let mut builder = MapBuilder::new(kind, DuplicatePolicy::KeepFirst).unwrap();
    for i in 0..entries {
        let (key, value) = entry(i, generation);
        builder.insert(key.as_bytes(), value.as_bytes()).unwrap();
    }
    builder.publish(path, &PublishOptions::default()).unwrap();
}

/// The helper for libdb, if it can be compiled here.
fn compile(dir: &Path) -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/libdb.c");
    let program = dir.join("libdb");
    let done = Command::new("cc")
        .args(["-O2", "-o"])
        .arg(&program)
        .arg(source)
        .arg("-ldb")
        .output();
    match done {
        Ok(done) if done.status.success() => Some(program),
        _ => {
            println!("libdb is left out: libdb5.3-dev or a C compiler is missing");
            None
        }
    }
}

fn libdb(files: &Files, keys: &[String], mode: &str, found: usize) -> Option<f64> {
    let program = files.libdb.as_ref()?;
    let list = files.dir.join("keys");
    std::fs::write(&list, keys.join("\n") + "\n").unwrap();
    let done = Command::new(program)
        .arg(&files.hash)
        .arg(&list)
        .arg(mode)
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let text = String::from_utf8(done.stdout).unwrap();
    let (ns, count) = text.trim().split_once(' ').unwrap();
    assert_eq!(count.parse(), Ok(found));
    ns.parse().ok()
}

/// Nanoseconds of a load that depends on the one before, in a buffer far larger than any cache.
fn memory_latency() -> f64 {
    const WORDS: usize = 1 << 25;
    let mut next: Vec<u32> = (0..WORDS as u32).collect();
    let mut rng = Rng(7);
    // One cycle through all words (Sattolo).
    for i in (1..WORDS).rev() {
        next.swap(i, rng.below(i));
    }
    let mut at = 0_u32;
    let steps = 4_000_000;
    let start = Instant::now();
    for _ in 0..steps {
        at = next[at as usize];
    }
    black_box(at);
    start.elapsed().as_nanos() as f64 / f64::from(steps)
}

fn time(keys: &[String], expect: bool, mut find: impl FnMut(&[u8]) -> bool) -> f64 {
    let start = Instant::now();
    let mut found = 0;
    for key in keys {
        found += usize::from(find(key.as_bytes()));
    }
    let ns = start.elapsed().as_nanos() as f64 / keys.len() as f64;
    assert_eq!(found, if expect { keys.len() } else { 0 });
    ns
}

fn lookups(files: &Files, entries: usize, rounds: usize) -> Vec<Bar> {
    let snapshot = load(MapKind::Hash, &files.hash, &LoadOptions::default()).unwrap();
    let environment = Environment::new()
        .set_flags(
            EnvironmentFlags::NO_SUB_DIR | EnvironmentFlags::NO_LOCK | EnvironmentFlags::READ_ONLY,
        )
        .open(&files.lmdb)
        .unwrap();
    let database = environment.open_db(None).unwrap();
    let transaction = environment.begin_ro_txn().unwrap();
    let mut rng = Rng(42);
    let hits: Vec<String> = (0..LOOKUPS)
        .map(|_| entry(rng.below(entries), 0).0)
        .collect();
    let misses: Vec<String> = (0..LOOKUPS)
        .map(|_| absent_key(rng.below(entries)))
        .collect();
    let mut bars = Vec::new();
    for (what, keys, expect) in [("hit", &hits, true), ("miss", &misses, false)] {
        let (mut ours, mut lmdb, mut bdb) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            ours.push(time(keys, expect, |key| {
                black_box(snapshot.get(key)).is_some()
            }));
            lmdb.push(time(keys, expect, |key| {
                black_box(transaction.get(database, &key)).is_ok()
            }));
            bdb.extend(libdb(
                files,
                keys,
                "warm",
                if expect { keys.len() } else { 0 },
            ));
        }
        let base = median(&mut ours);
        println!("{what:4}  snapshot {base:7.1} ns");
        bars.push(Bar::new(format!("{what}: snapshot"), base, true));
        for (name, figures) in [("LMDB", &mut lmdb), ("libdb", &mut bdb)] {
            if !figures.is_empty() {
                let other = median(figures);
                println!(
                    "      {name:8} {other:7.1} ns  {:4.1} times as long",
                    other / base
                );
                bars.push(Bar::new(format!("{what}: {name}"), other, false));
            }
        }
    }
    bars
}

fn one_shots(files: &Files, entries: usize, rounds: usize) -> Vec<Bar> {
    let mut rng = Rng(43);
    let keys: Vec<String> = (0..OPENINGS)
        .map(|_| entry(rng.below(entries), 0).0)
        .collect();
    let (mut ours, mut bdb) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        ours.push(time(&keys, true, |key| {
            open_direct(&files.hash, WAIT)
                .unwrap()
                .lookup(key)
                .unwrap()
                .is_some()
        }));
        bdb.extend(libdb(files, &keys, "once", keys.len()));
    }
    let base = median(&mut ours);
    println!("once  ours     {base:7.0} ns");
    let mut bars = vec![Bar::new("once: ours".into(), base, true)];
    if !bdb.is_empty() {
        let other = median(&mut bdb);
        println!(
            "      libdb    {other:7.0} ns  {:4.1} times as long",
            other / base
        );
        bars.push(Bar::new("once: libdb".into(), other, false));
    }
    bars
}

/// Replaces the map under a handle: how long the new one takes to come into use, and what lookups see meanwhile.
fn reload(files: &Files, entries: usize) {
    let handle = MapHandle::open(
        &MapSpec::new(MapKind::Hash, &files.hash),
        HandleOptions::default(),
    )
    .unwrap();
    let is_done = AtomicBool::new(false);
    let (mut took, mut latencies) = (Duration::ZERO, Vec::new());
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut rng = Rng(44);
            let mut latencies = Vec::with_capacity(20_000_000);
            while !is_done.load(Ordering::Relaxed) {
                // A transaction of eight lookups, as an RCPT makes; the first pays for the look at the file, and one of
                // all for the reload, if this thread notices the new file first.
                let mut start = Instant::now();
                let view = handle.reader();
                for _ in 0..8 {
                    let key = entry(rng.below(entries), 0).0;
                    assert!(black_box(view.lookup(key.as_bytes())).unwrap().is_some());
                    let now = Instant::now();
                    latencies.push((now - start).as_nanos() as u64);
                    start = now;
                }
            }
            latencies
        });
        build(MapKind::Hash, entries, &files.hash, 1);
        let start = Instant::now();
        // Loads the new file, or waits for the reader that has begun to.
        handle.refresh().unwrap();
        took = start.elapsed();
        is_done.store(true, Ordering::Relaxed);
        latencies = reader.join().unwrap();
    });
    latencies.sort_unstable();
    let at = |thousandths: usize| latencies[(latencies.len() - 1) * thousandths / 1000];
    println!(
        "reload {:.3} s; transactions' lookups meanwhile and while the file was built, making the key included: p50 {} ns, p99 {} ns, p99.9 {} ns, {} of them",
        took.as_secs_f64(),
        at(500),
        at(990),
        at(999),
        latencies.len()
    );
}
