//! Damaged files: no panic, no hang, and no key that silently goes missing where the damage can be known.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use diligence_maps::{Map, MapError, MapKind, open_direct};
use std::path::Path;
use std::time::Duration;
use support::{Model, Rng, add_duplicates, awkward, listed, read, seed, write};

const KINDS: [MapKind; 2] = [MapKind::Hash, MapKind::Btree];
const PAGE: usize = 4096;
const HEADER: usize = 26;

/// A map with every kind of page: several leaves or buckets, overflow chains, duplicates on and off their page.
fn sample(rng: &mut Rng) -> Model {
    let mut model = awkward(30, true, rng);
    model.retain(|key, values| key.len() < 1500 && values[0].len() < 5000);
    add_duplicates(&mut model, rng);
    model.insert(
        b"tree".to_vec(),
        (0..300)
            .map(|i| format!("value {i}").into_bytes())
            .collect(),
    );
    model
}

/// Whether the byte at `at` is part of a stored copy of `key`, where a change cannot be told from another key: no
/// checksum covers it.
fn is_key_byte(file: &[u8], at: usize, key: &[u8]) -> bool {
    let page = at / PAGE * PAGE;
    if file.get(page + 25) == Some(&7) && at >= page + HEADER {
        return true;
    }
    let from = at.saturating_sub(key.len().saturating_sub(1));
    (from..=at).any(|start| file.get(start..start + key.len()) == Some(key))
}

/// Whether the byte is the length of a btree key, and the changed length takes the same space with its padding: the
/// file is then well-formed and holds a key that is a byte longer or shorter. libdb leaves rubbish in the padding, so
/// that it cannot tell either.
fn is_length_within_padding(kind: MapKind, file: &[u8], at: usize, flip: u8, key: &[u8]) -> bool {
    let span = |len: u8| (usize::from(len) + 3).next_multiple_of(4);
    kind == MapKind::Btree
        && file.get(at + 3..at + 3 + key.len()) == Some(key)
        && span(file[at]) == span(file[at] ^ flip)
}

/// Whether the change makes a btree item a deleted one, which is a legal state of a file.
fn is_deletion(kind: MapKind, byte: u8, flip: u8) -> bool {
    kind == MapKind::Btree && flip == 0x80 && (1..=3).contains(&byte)
}

fn lookup_all(path: &Path, model: &Model) {
    if let Ok(direct) = open_direct(path, Duration::ZERO) {
        for key in model.keys().step_by(7) {
            let _ = direct.lookup(key);
        }
    }
}

#[test]
fn a_flipped_byte_never_hides_a_key() {
    let mut rng = Rng(seed());
    let model = sample(&mut rng);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.db");
    for kind in KINDS {
        write(kind, &model, &path);
        let good = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let mut refused = 0_u32;
        let mut tried = 0_u32;
        // Headers and the index of each page byte by byte, the rest by samples.
        let positions = (0..good.len()).filter(|at| at % PAGE < 48 || at % 131 == 0);
        for at in positions {
            for flip in [0x01_u8, 0x80] {
                tried += 1;
                let mut bad = good.clone();
                bad[at] ^= flip;
                std::fs::write(&path, &bad).unwrap();
                match read(&path) {
                    Err(MapError::Damaged { .. } | MapError::Unsupported { .. }) => refused += 1,
                    Err(error) => panic!("{kind}: byte {at}: {error}"),
                    Ok(snapshot) => {
                        for key in model.keys() {
                            assert!(
                                snapshot.get(key).is_some()
                                    || is_key_byte(&good, at, key)
                                    || is_deletion(kind, good[at], flip)
                                    || is_length_within_padding(kind, &good, at, flip, key),
                                "{kind}: byte {at} (page {}, offset {}) xor {flip:#x} hides a key",
                                at / PAGE,
                                at % PAGE
                            );
                        }
                    }
                }
                if tried.is_multiple_of(20) {
                    lookup_all(&path, &model);
                }
            }
        }
        println!("{kind}: {refused} of {tried} damaged files were refused");
        assert!(refused > tried / 10);
    }
}

#[test]
fn a_file_cut_off_anywhere_is_damaged() {
    let mut rng = Rng(seed());
    let model = sample(&mut rng);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.db");
    for kind in KINDS {
        write(kind, &model, &path);
        let good = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        for len in (1..good.len())
            .step_by(509)
            .chain([511, 512, 513, PAGE, good.len() - 1])
        {
            std::fs::write(&path, &good[..len]).unwrap();
            assert!(
                matches!(read(&path), Err(MapError::Damaged { .. })),
                "{kind}: cut to {len} bytes"
            );
            assert!(matches!(
                open_direct(&path, Duration::ZERO),
                Err(MapError::Damaged { .. })
            ));
        }
        let mut longer = good.clone();
        longer.extend_from_slice(&[0; 100]);
        std::fs::write(&path, &longer).unwrap();
        assert!(matches!(read(&path), Err(MapError::Damaged { .. })));
    }
}

#[test]
fn a_page_that_was_lost_is_damage() {
    let mut rng = Rng(seed());
    let model = sample(&mut rng);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.db");
    for kind in KINDS {
        write(kind, &model, &path);
        let good = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        for page in 1..good.len() / PAGE {
            // Another page in its place, as a misdirected write leaves it.
            let mut bad = good.clone();
            let other = if page == 1 { 2 } else { 1 };
            bad.copy_within(other * PAGE..(other + 1) * PAGE, page * PAGE);
            std::fs::write(&path, &bad).unwrap();
            assert!(read(&path).is_err(), "{kind}: page {page}");
            lookup_all(&path, &model);
        }
    }
}

#[test]
fn rubbish_is_refused_without_panic_or_hang() {
    let mut rng = Rng(seed());
    let model = sample(&mut rng);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.db");
    for kind in KINDS {
        write(kind, &model, &path);
        let good = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        for _ in 0..400 {
            let mut bad = good.clone();
            for _ in 0..1 + rng.below(30) {
                let at = rng.below(bad.len());
                let len = (1 + rng.below(64)).min(bad.len() - at);
                let noise = rng.bytes(len);
                bad[at..at + len].copy_from_slice(&noise);
            }
            std::fs::write(&path, &bad).unwrap();
            if let Ok(snapshot) = read(&path) {
                let _ = listed(&snapshot);
            }
            lookup_all(&path, &model);
        }
    }
}
