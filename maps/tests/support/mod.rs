//! Data sets and files for the tests of Berkeley DB maps.

#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]
#![allow(clippy::cast_possible_truncation, reason = "numbers from a generator")]

use diligence_maps::{
    DuplicatePolicy, LoadOptions, Map, MapBuilder, MapError, MapKind, PublishOptions, Snapshot,
    load,
};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

/// Keys and their values in order of insertion.
pub type Model = BTreeMap<Vec<u8>, Vec<Vec<u8>>>;

/// A small generator that repeats itself from a seed.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// The seed from the environment, or a fixed one; printed, so that a failure can be repeated.
pub fn seed() -> u64 {
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0x9E37_79B9_7F4A_7C15);
    println!("SEED={seed}");
    seed
}

/// What makes maps hard: families of keys that are prefixes of one another, binary bytes, empty and long values, values
/// of several pages, and, if asked for, long keys.
pub fn awkward(count: usize, long_keys: bool, rng: &mut Rng) -> Model {
    let mut model = Model::new();
    for i in 0..count {
        let key = match i % 11 {
            0 => format!("list{}", i / 11).into_bytes(),
            1 => format!("list{}-owner", i / 11).into_bytes(),
            2 => format!("list{}-owner-request", i / 11).into_bytes(),
            3 => {
                let len = 1 + rng.below(9);
                rng.bytes(len)
            }
            4 => vec![b'p'; 1 + i % 700],
            5 => format!("user{i}@example{}.test\0", i % 13).into_bytes(),
            6 if long_keys => {
                let mut key = vec![b'L'; 900 + rng.below(5000)];
                key.extend_from_slice(&(i as u32).to_be_bytes());
                key
            }
            7 => format!("\u{fc}ser{i}").into_bytes(),
            _ => format!("user{i}").into_bytes(),
        };
        let value = match i % 13 {
            0 => Vec::new(),
            1 => {
                let len = 900 + rng.below(300);
                rng.bytes(len)
            }
            2 if i % 5 == 0 => {
                let len = 3000 + rng.below(30_000);
                rng.bytes(len)
            }
            _ => format!("value of {i}, {}", "x".repeat(i % 60)).into_bytes(),
        };
        model.entry(key).or_insert_with(|| vec![value]);
    }
    model
        .entry(Vec::new())
        .or_insert_with(|| vec![b"empty key".to_vec()]);
    model
}

/// Gives some keys more values: a few short ones, many, and long ones.
pub fn add_duplicates(model: &mut Model, rng: &mut Rng) {
    for (at, values) in model.values_mut().enumerate() {
        let more = match at % 9 {
            0 => 1 + rng.below(4),
            1 if at % 5 == 0 => 400,
            2 if at % 7 == 0 => 3,
            _ => 0,
        };
        for i in 0..more {
            let len = if more == 3 {
                800 + rng.below(2000)
            } else {
                rng.below(30)
            };
            let mut value = format!("dup {i} ").into_bytes();
            value.extend(rng.bytes(len));
            values.push(value);
        }
    }
}

/// What of a model a file of this kind can hold: keys it takes, and one value a key where it keeps no more.
pub fn fitting(kind: MapKind, model: &Model) -> Model {
    model
        .iter()
        .filter(|(key, _)| kind.refusal_of(key).is_none())
        .map(|(key, values)| {
            let kept = if kind.keeps_duplicates() {
                values.len()
            } else {
                1
            };
            (key.clone(), values[..kept].to_vec())
        })
        .collect()
}

/// Writes a model as a map file.
pub fn write(kind: MapKind, model: &Model, path: &Path) {
    let has_duplicates = model.values().any(|values| values.len() > 1);
    let policy = if has_duplicates {
        DuplicatePolicy::KeepAll
    } else {
        DuplicatePolicy::KeepFirst
    };
    let mut builder = MapBuilder::new(kind, policy).unwrap();
    for (key, values) in model {
        for value in values {
            builder.insert(key, value).unwrap();
        }
    }
    let published = builder.publish(path, &PublishOptions::default()).unwrap();
    assert_eq!(published.keys, model.len() as u64);
}

/// Loads a file by its magic.
pub fn read(path: &Path) -> Result<Snapshot, MapError> {
    load(MapKind::Hash, path, &LoadOptions::default())
}

/// Every pair of a map, grouped by key.
pub fn listed(map: &dyn Map) -> Result<Model, MapError> {
    let mut model = Model::new();
    map.each(&mut |key, value| {
        model.entry(key.to_vec()).or_default().push(value.to_vec());
        ControlFlow::Continue(())
    })?;
    Ok(model)
}

/// Asserts that two models are equal without printing megabytes.
pub fn assert_same(found: &Model, expected: &Model, what: &str) {
    for (key, values) in expected {
        let shown = String::from_utf8_lossy(&key[..key.len().min(40)]).into_owned();
        match found.get(key) {
            None => panic!("{what}: key {shown:?} ({} bytes) is missing", key.len()),
            Some(there) => assert!(
                there == values,
                "{what}: key {shown:?}: {} values instead of {}, or other ones",
                there.len(),
                values.len()
            ),
        }
    }
    assert_eq!(
        found.len(),
        expected.len(),
        "{what}: more keys than were written"
    );
}
