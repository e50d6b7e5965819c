//! SMTP dialogues against the session's state machine: every file of `tests/transcripts`, however its bytes are cut.

#![expect(clippy::unwrap_used, reason = "a test ends with its first surprise")]

#[path = "support/transcript.rs"]
mod transcript;

use std::fs;
use std::path::Path;

use transcript::{Cut, Script};

/// Random ways of cutting each transcript, besides whole and by bytes.
const RANDOM_CUTS: u64 = 20;

fn scripts() -> Vec<Script> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let mut names: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "smtp"))
        .collect();
    names.sort();
    assert!(!names.is_empty());
    names
        .iter()
        .map(|path| {
            let name = path.file_name().unwrap().to_string_lossy();
            Script::parse(&name, &fs::read_to_string(path).unwrap())
        })
        .collect()
}

#[test]
fn transcripts_hold_with_bytes_as_written() {
    for script in scripts() {
        script.play(Cut::Whole);
    }
}

#[test]
fn transcripts_hold_byte_by_byte() {
    for script in scripts().iter().filter(|script| !script.is_whole()) {
        script.play(Cut::Bytes);
    }
}

#[test]
fn transcripts_hold_cut_at_random() {
    let seed: u64 = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(0x5eed);
    println!("SEED={seed}");
    for script in scripts().iter().filter(|script| !script.is_whole()) {
        for round in 0..RANDOM_CUTS {
            let seed = (seed + round).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            script.play(Cut::Random(seed));
        }
    }
}
