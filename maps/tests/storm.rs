//! A rebuild storm: a map replaced again and again, by stock tools in place and by ours, under four reading threads.
//!
//! Every generation gives all keys one value, so a reader can tell at once a half-built file, a mixture or a missing key.
//! STORM_ROUNDS (40) rebuilds by each of them; `.ci/run proofs` makes a thousand. Needs db5.3_load and flock(1); without
//! them the rebuilds are ours only, and that is said.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use diligence_maps::{
    DuplicatePolicy, HandleOptions, MapBuilder, MapHandle, MapKind, MapSpec, PublishOptions,
};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const KEYS: usize = 300;
const READERS: usize = 4;
/// A file of this kind has megabytes however little it holds.
const REDB_ROUNDS_MAX: u64 = 100;
/// How long the last generation may take to be seen.
const SEEN_WITHIN: Duration = Duration::from_secs(20);

fn rounds() -> u64 {
    let text = std::env::var("STORM_ROUNDS").ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(40)
}

fn build(kind: MapKind, path: &Path, generation: u64) {
    let mut builder = MapBuilder::new(kind, DuplicatePolicy::KeepFirst).unwrap();
    for i in 0..KEYS {
        let key = format!("user{i}");
        builder
            .insert(key.as_bytes(), generation.to_string().as_bytes())
            .unwrap();
    }
    builder.publish(path, &PublishOptions::default()).unwrap();
}

/// As makemap and postmap do it: the lock, the file cut to nothing, the entries written one after the other.
fn rebuild_in_place(kind: MapKind, path: &Path, generation: u64) {
    let input = path.with_extension("input");
    let mut text = String::new();
    for i in 0..KEYS {
        let _ = writeln!(text, "user{i}\n{generation}");
    }
    std::fs::write(&input, text).unwrap();
    let done = Command::new("flock")
        .arg(path)
        .args([
            "sh",
            "-c",
            ": >\"$2\" && exec db5.3_load -T -t \"$0\" -f \"$1\" \"$2\"",
            kind.name(),
        ])
        .arg(&input)
        .arg(path)
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

fn storm(kind: MapKind, in_place: bool) {
    let dir = tempfile::tempdir().unwrap();
    let path = kind.file_of(&dir.path().join("m"));
    build(kind, &path, 0);
    let handle = MapHandle::open(&MapSpec::new(kind, &path), HandleOptions::default()).unwrap();
    // By turns, so many by each.
    let rounds = match kind {
        MapKind::Redb => rounds().min(REDB_ROUNDS_MAX),
        _ if in_place => 2 * rounds(),
        _ => rounds(),
    };
    let (is_done, lookups) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                let mut last = 0;
                while !is_done.load(Ordering::Relaxed) {
                    let view = handle.reader();
                    let value = |i: usize| {
                        let found = view.lookup(format!("user{i}").as_bytes()).unwrap();
                        let found = found.unwrap_or_else(|| panic!("{kind}: user{i} is missing"));
                        std::str::from_utf8(&found).unwrap().parse::<u64>().unwrap()
                    };
                    let first = value(0);
                    assert!(first >= last, "{kind}: generation {first} after {last}");
                    last = first;
                    for i in (0..KEYS).step_by(7) {
                        assert_eq!(value(i), first, "{kind}: a mixture of generations");
                    }
                    assert_eq!(view.lookup(b"nobody").unwrap(), None);
                    lookups.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for generation in 1..=rounds {
            if in_place && generation % 2 == 1 {
                rebuild_in_place(kind, &path, generation);
            } else {
                build(kind, &path, generation);
            }
        }
        let deadline = Instant::now() + SEEN_WITHIN;
        let wanted = rounds.to_string();
        while handle.lookup(b"user1").unwrap().as_deref() != Some(wanted.as_bytes()) {
            assert!(
                Instant::now() < deadline,
                "{kind}: the last generation is not seen"
            );
            std::thread::yield_now();
        }
        is_done.store(true, Ordering::Relaxed);
    });
    println!("{kind}: {rounds} rebuilds, {} looks", lookups.into_inner());
}

#[test]
fn readers_see_whole_generations_only() {
    let has_tools = ["db5.3_load", "flock"]
        .iter()
        .all(|tool| Command::new(tool).arg("-V").output().is_ok());
    if !has_tools {
        println!("SKIPPED: rebuilds in place, as db5.3_load or flock is missing");
    }
    storm(MapKind::Hash, has_tools);
    storm(MapKind::Btree, has_tools);
}

#[test]
fn the_other_kinds_are_replaced_whole_as_well() {
    for kind in [MapKind::Cdb, MapKind::Lmdb, MapKind::Fixed, MapKind::Redb] {
        storm(kind, false);
    }
}

#[test]
fn a_file_cut_off_in_place_harms_nobody() {
    for &kind in MapKind::writable() {
        let dir = tempfile::tempdir().unwrap();
        let path = kind.file_of(&dir.path().join("m"));
        build(kind, &path, 1);
        let handle = MapHandle::open(&MapSpec::new(kind, &path), HandleOptions::default()).unwrap();
        for len in [100, 4096, 0] {
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(len).unwrap();
            for i in 0..KEYS {
                let found = handle.lookup(format!("user{i}").as_bytes()).unwrap();
                assert_eq!(
                    found.as_deref(),
                    Some(&b"1"[..]),
                    "{kind}: the old map is in force"
                );
            }
        }
        build(kind, &path, 2);
        assert_eq!(
            handle.lookup(b"user1").unwrap().as_deref(),
            Some(&b"2"[..]),
            "{kind}"
        );
    }
}
