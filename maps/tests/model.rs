//! Whatever is put into a map comes out of it: files of every kind against a plain model.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use diligence_maps::{LoadOptions, Map, MapKind, load, open_direct};
use proptest::prelude::*;
use std::time::Duration;
use support::{
    Model, Rng, add_duplicates, assert_same, awkward, fitting, listed, read, seed, write,
};

const WAIT: Duration = Duration::from_secs(5);

fn check(kind: MapKind, model: &Model) {
    let model = &fitting(kind, model);
    let dir = tempfile::tempdir().unwrap();
    let path = kind.file_of(&dir.path().join("m"));
    write(kind, model, &path);
    // By its content, whatever the class.
    let snapshot = read(&path).unwrap();
    assert_same(&listed(&snapshot).unwrap(), model, kind.name());
    // As its own class, which maps a constant file.
    let snapshot = load(kind, &path, &LoadOptions::default()).unwrap();
    assert_eq!(snapshot.len(), model.len() as u64);
    let direct = open_direct(&path, WAIT).unwrap();
    assert_eq!(direct.kind(), kind);
    for (key, values) in model {
        let found = snapshot
            .get(key)
            .unwrap_or_else(|| panic!("{kind}: a key of {} bytes is missing", key.len()));
        assert!(found == values[0], "{kind}: another value in the snapshot");
        let found = direct
            .lookup(key)
            .unwrap()
            .unwrap_or_else(|| panic!("{kind}: a key of {} bytes is missing", key.len()));
        assert!(*found == *values[0], "{kind}: another value in the file");
        let mut absent = key.clone();
        absent.push(b'~');
        if !model.contains_key(&absent) {
            assert_eq!(snapshot.get(&absent), None);
            assert_eq!(direct.lookup(&absent).unwrap(), None);
        }
    }
    assert_same(&listed(&direct).unwrap(), model, kind.name());
}

#[test]
fn awkward_maps_read_back() {
    let mut rng = Rng(seed());
    for count in [0, 1, 2, 40, 1000, 6000] {
        for long_keys in [false, true] {
            let model = awkward(count, long_keys, &mut rng);
            for &kind in MapKind::writable() {
                check(kind, &model);
            }
        }
    }
}

#[test]
fn maps_with_many_values_a_key_read_back() {
    let mut rng = Rng(seed());
    for count in [20, 3000] {
        let mut model = awkward(count, true, &mut rng);
        add_duplicates(&mut model, &mut rng);
        for &kind in MapKind::writable() {
            check(kind, &model);
        }
    }
}

#[test]
fn a_tree_of_duplicates_may_have_several_levels() {
    let values: Vec<Vec<u8>> = (0..60_000)
        .map(|i| format!("value {i} of one key").into_bytes())
        .collect();
    let mut model = Model::new();
    model.insert(b"many".to_vec(), values);
    model.insert(b"other".to_vec(), vec![b"x".to_vec()]);
    for &kind in MapKind::writable() {
        check(kind, &model);
    }
}

#[test]
fn long_separators_go_off_page() {
    // Neighbouring leaves whose keys agree in the first thousand bytes.
    let mut model = Model::new();
    for i in 0..300_u32 {
        let mut key = vec![b'k'; 1000 + (i as usize % 3) * 600];
        key.extend_from_slice(&i.to_be_bytes());
        model.insert(key, vec![vec![b'v'; 900]]);
    }
    for &kind in MapKind::writable() {
        check(kind, &model);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]
    #[test]
    fn any_pairs_read_back(pairs in prop::collection::vec(
        (prop::collection::vec(0_u8..3, 0..1200), prop::collection::vec(any::<u8>(), 0..6000)), 0..60)) {
        let mut model = Model::new();
        for (key, value) in pairs {
            model.entry(key).or_default().push(value);
        }
        for &kind in MapKind::writable() {
            check(kind, &model);
        }
    }
}
