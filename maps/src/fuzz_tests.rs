//! Every reader on damaged bytes: no panic, no hang, no unbounded memory, and no key of a checksummed file changed.
//!
//! Valid files of every kind are mutated: bits, bytes, integers of interest, blocks moved, cut and extended. A run in the
//! test suite lasts FUZZ_SECONDS (4); for a long one:
//!
//! ```text
//! FUZZ_SECONDS=3600 SEED=7 cargo test --release -p diligence-maps --lib fuzz_tests -- --nocapture
//! ```
//!
//! The seed is printed; the input that fails is left in the directory for temporary files, under the name that is printed.

use crate::direct::MapFile;
use crate::fixed::load_fixed;
use crate::records::hash64;
use crate::region::Region;
use crate::{DuplicatePolicy, Map, MapBuilder, MapKind, PublishOptions, Stamp};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest time one input may take; far above what any takes on a busy machine.
const INPUT_TIME_MAX: Duration = Duration::from_secs(20);
/// Most memory the whole run may take, in KiB: the largest input is a redb file of some megabytes.
const PEAK_KIB_MAX: u64 = 600 * 1024;

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(1);
        hash64(0x6675_7a7a, &self.0.to_le_bytes())
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit.max(1) as u64).unwrap()
    }
}

/// A file of a kind with long items, many values a key where it takes them, and several pages.
fn seed_file(kind: MapKind, entries: usize, dir: &Path) -> Vec<u8> {
    let policy = match kind.keeps_duplicates() {
        true => DuplicatePolicy::KeepAll,
        false => DuplicatePolicy::KeepFirst,
    };
    let mut builder = MapBuilder::new(kind, policy).unwrap();
    for i in 0..entries {
        let key = format!(
            "user{}{}",
            i / 2,
            "k".repeat(if i % 17 == 3 { 300 } else { i % 9 })
        );
        let value = "v".repeat(if i % 13 == 5 { 5000 } else { i % 50 });
        builder.insert(key.as_bytes(), value.as_bytes()).unwrap();
    }
    if kind.keeps_duplicates() {
        for i in 0..200 {
            builder
                .insert(b"many", format!("value {i}").as_bytes())
                .unwrap();
        }
        if kind != MapKind::Cdb {
            builder.insert(&[b'L'; 2000], b"long key").unwrap();
        }
    }
    let path = kind.file_of(&dir.join(format!("seed{entries}")));
    builder.publish(&path, &PublishOptions::default()).unwrap();
    std::fs::read(path).unwrap()
}

fn mutate(bytes: &mut Vec<u8>, rng: &mut Rng) {
    const INTERESTING: [u32; 10] = [
        0,
        1,
        2,
        26,
        0x7F,
        0xFFFF,
        0x7FFF_FFFF,
        0x8000_0000,
        u32::MAX - 1,
        u32::MAX,
    ];
    for _ in 0..1 + rng.below(6) {
        let len = bytes.len();
        if len < 16 {
            return;
        }
        // Headers, which lie at the start of the file and of pages, are hit as often as all the rest.
        let at = match rng.below(3) {
            0 => rng.below(len.min(512)),
            1 => (rng.below(len) / 4096 * 4096 + rng.below(64)).min(len - 1),
            _ => rng.below(len),
        };
        match rng.below(9) {
            0 | 1 => bytes[at] ^= 1 << rng.below(8),
            2 => bytes[at] = rng.next().to_le_bytes()[0],
            3 | 4 => {
                let value = INTERESTING[rng.below(INTERESTING.len())];
                let value = if rng.below(4) == 0 {
                    value.swap_bytes()
                } else {
                    value
                };
                let at = (at & !3).min(len - 4);
                bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
            }
            5 => {
                let at = (at & !1).min(len - 2);
                let value = u16::from_le_bytes([bytes[at], bytes[at + 1]]);
                let value = value
                    .wrapping_add(u16::try_from(rng.below(9)).unwrap())
                    .wrapping_sub(4);
                bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
            }
            6 => {
                let size = 1 << rng.below(13);
                let (from, to) = (rng.below(len), rng.below(len));
                let size = size.min(len - from).min(len - to);
                bytes.copy_within(from..from + size, to);
            }
            7 => bytes.truncate(if rng.below(2) == 0 {
                at
            } else {
                len / 4096 * 4096
            }),
            _ => bytes.resize(len + rng.below(5000), 0),
        }
    }
}

/// Gives a constant file the checksums of what it holds now, so that its reader gets beyond them.
fn sum_again(bytes: &mut Vec<u8>) {
    let word = |at: usize| {
        let word = bytes.get(at..)?.first_chunk::<8>()?;
        usize::try_from(u64::from_le_bytes(*word)).ok()
    };
    let end = word(24)
        .zip(word(32))
        .and_then(|(buckets, body)| buckets.checked_mul(64)?.checked_add(64)?.checked_add(body));
    let Some(end) = end.filter(|&end| end <= bytes.len()) else {
        return;
    };
    bytes.truncate(end);
    let sums: Vec<u8> = bytes
        .chunks(1 << 16)
        .flat_map(|block| crc32fast::hash(block).to_le_bytes())
        .collect();
    bytes.extend_from_slice(&sums);
    bytes.extend_from_slice(&crc32fast::hash(&sums).to_le_bytes());
}

/// A constant file as a server has it: whole, in memory.
fn read_fixed(bytes: &[u8]) {
    let mut memory = Region::zeroed(bytes.len());
    memory.copy_from_slice(bytes);
    let Ok(table) = load_fixed(Path::new("fuzz"), memory, Stamp::default()) else {
        return;
    };
    for key in [&b"user1k"[..], b"many", b"", b"nobody", &[b'L'; 2000]] {
        let _ = table.get(key);
    }
    let mut seen = 0;
    let _ = table.each(&mut |_, _| {
        seen += 1;
        ControlFlow::Continue(())
    });
    assert!(seen <= bytes.len(), "{seen} pairs in {} bytes", bytes.len());
}

/// Everything a reader does: opening, lookups, a walk.
fn read(kind: MapKind, bytes: &[u8]) {
    if kind == MapKind::Fixed {
        read_fixed(bytes);
    }
    let Ok(file) = MapFile::open(bytes, kind, Path::new("fuzz")) else {
        return;
    };
    for key in [&b"user1k"[..], b"many", b"", b"nobody", &[b'L'; 2000]] {
        let _ = file.lookup(key);
    }
    let mut seen = 0_u64;
    let _ = file.each(&mut |_, _| {
        seen += 1;
        ControlFlow::Continue(())
    });
    // A pair takes at least one byte of the file, or a node of some bytes.
    assert!(
        seen <= bytes.len() as u64 + 1,
        "{seen} pairs in {} bytes",
        bytes.len()
    );
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

fn peak_kib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok())
        .unwrap_or(0)
}

#[test]
fn damaged_bytes_are_read_without_panic_hang_or_waste() {
    let seed = number("SEED", 1);
    let time = Duration::from_secs(number("FUZZ_SECONDS", 4));
    println!("SEED={seed}");
    let dir = tempfile::tempdir().unwrap();
    let mut rng = Rng(seed << 32);
    let mut seeds = Vec::new();
    for &kind in MapKind::writable() {
        for entries in [0, 3, 400] {
            seeds.push((kind, seed_file(kind, entries, dir.path())));
        }
    }
    let before = peak_kib();
    let start = Instant::now();
    let mut inputs = 0_u64;
    while start.elapsed() < time {
        let (kind, valid) = &seeds[rng.below(seeds.len())];
        // Four megabytes a time: a few of these among thousands of others.
        if *kind == MapKind::Redb && rng.below(30) != 0 {
            continue;
        }
        let mut bytes = valid.clone();
        mutate(&mut bytes, &mut rng);
        if *kind == MapKind::Fixed && rng.below(4) != 0 {
            sum_again(&mut bytes);
        }
        let input =
            std::env::temp_dir().join(format!("fuzz-{}-{seed}-{inputs}", std::process::id()));
        let began = Instant::now();
        let done = std::panic::catch_unwind(|| read(*kind, &bytes));
        if done.is_err() || began.elapsed() > INPUT_TIME_MAX {
            std::fs::write(&input, &bytes).unwrap();
            panic!(
                "{kind}: {} took {:?}, or panicked",
                input.display(),
                began.elapsed()
            );
        }
        inputs += 1;
    }
    let peak = peak_kib();
    println!("{inputs} inputs; peak memory {before} KiB before, {peak} KiB after");
    assert!(inputs > 10);
    assert!(
        peak < PEAK_KIB_MAX.max(before * 2),
        "memory grew from {before} to {peak} KiB"
    );
}
