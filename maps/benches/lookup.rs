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
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::ThreadId;
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
    reload(&files, entries, rounds);
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

/// The stages of a run with a reload, as its readers see them.
const BEFORE: u8 = 0;
const RELOADING: u8 = 1;
const AFTER: u8 = 2;

/// Replaces the map under a handle that two threads read: one of them finds the new file and loads it, as in a server,
/// while the other goes on. How long the loading took, and what the other's lookups took meanwhile.
fn reload(files: &Files, entries: usize, rounds: usize) {
    let mut rng = Rng(44);
    let keys: Vec<String> = (0..LOOKUPS)
        .map(|_| entry(rng.below(entries), 0).0)
        .collect();
    let mut took = Vec::new();
    let mut figures: [Vec<u32>; 4] = Default::default();
    for round in 0..rounds {
        let stage = Arc::new(AtomicU8::new(BEFORE));
        let loader = Arc::new(OnceLock::new());
        let at_event = (Arc::clone(&stage), Arc::clone(&loader));
        let options = HandleOptions {
            report: Arc::new(move |_| {
                let (stage, loader) = &at_event;
                loader.set(std::thread::current().id()).unwrap();
                stage.store(AFTER, Ordering::SeqCst);
            }),
            ..HandleOptions::default()
        };
        let handle = MapHandle::open(&MapSpec::new(MapKind::Hash, &files.hash), options).unwrap();
        std::thread::scope(|scope| {
            let read = |from: usize| {
                let (handle, stage, loader, keys) = (&handle, &*stage, &*loader, &keys[..]);
                scope.spawn(move || read_on(handle, stage, loader, keys, from))
            };
            let readers = [read(0), read(LOOKUPS / 2)];
            build(MapKind::Hash, entries, &files.hash, round + 1);
            // Unless it has been found and loaded already.
            let _ = stage.compare_exchange(BEFORE, RELOADING, Ordering::SeqCst, Ordering::SeqCst);
            for reader in readers {
                let seen = reader.join().unwrap();
                for (all, some) in figures.iter_mut().zip(seen.figures) {
                    all.extend(some);
                }
                took.extend(seen.loaded);
            }
        });
    }
    assert_eq!(took.len(), rounds);
    println!("reload {:.3} s", median(&mut took));
    for (what, mut figures) in [
        "lookups while a new file was built",
        "looks at the file, one for eight lookups, then",
        "lookups while it was loaded",
        "looks at the file then",
    ]
    .into_iter()
    .zip(figures)
    {
        figures.sort_unstable();
        let at = |thousandths: usize| figures[(figures.len() - 1) * thousandths / 1000];
        println!(
            "       {what}: p50 {} ns, p99 {} ns, p99.9 {} ns, {} of them",
            at(500),
            at(990),
            at(999),
            figures.len()
        );
    }
}

/// What one reader saw: its lookups' nanoseconds by stage, and the seconds of the reload if it was its own.
struct Seen {
    /// Before the reload: lookups, looks at the file; during it: the same.
    figures: [Vec<u32>; 4],
    loaded: Option<f64>,
}

/// Looks up in transactions of eight, as an RCPT makes, each after a look at the file, until the new map is in use. The
/// look that finds a new file loads it, which is told apart.
fn read_on(
    handle: &MapHandle,
    stage: &AtomicU8,
    loader: &OnceLock<ThreadId>,
    keys: &[String],
    from: usize,
) -> Seen {
    let me = std::thread::current().id();
    const MOST: usize = 4_000_000;
    let mut seen = Seen {
        figures: std::array::from_fn(|_| Vec::with_capacity(MOST)),
        loaded: None,
    };
    let mut next = from;
    loop {
        let now = stage.load(Ordering::Relaxed);
        if now == AFTER {
            return seen;
        }
        let mut start = Instant::now();
        let view = handle.reader();
        if loader.get() == Some(&me) {
            seen.loaded = Some(start.elapsed().as_secs_f64());
            return seen;
        }
        let [before, looks_before, during, looks_during] = &mut seen.figures;
        let (lookups, looks) = match now {
            BEFORE => (before, looks_before),
            _ => (during, looks_during),
        };
        if lookups.len() + 8 > MOST {
            continue;
        }
        let mut end = Instant::now();
        looks.push((end - start).as_nanos() as u32);
        for _ in 0..8 {
            start = end;
            let key = keys[next % keys.len()].as_bytes();
            next += 1;
            assert!(black_box(view.lookup(key)).unwrap().is_some());
            end = Instant::now();
            lookups.push((end - start).as_nanos() as u32);
        }
    }
}
