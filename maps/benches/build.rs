//! Building a map of a million alias-like lines, as a whole program: makemap beside other systems' tools, interleaved.
//!
//! `cargo build --release --workspace && .ci/peers && cargo bench -p diligence-maps --bench build`. ENTRIES (1000000) and
//! ROUNDS (3) may be set. Needs makemap built for release; of the others, those that `.ci/peers` could unpack take part.
//! Prints medians of the wall time, and the peak memory as the kernel counted it; writes `maps/benches/build.svg`. Asserts
//! no time.

#![allow(clippy::unwrap_used, reason = "a bench may panic")]
#![allow(clippy::cast_precision_loss, reason = "numbers for printing")]

mod support;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::{Bar, entry, median, number, svg};

/// How often the kernel is asked for the peak of a running program.
const PROBE: Duration = Duration::from_millis(2);

struct Contender {
    name: &'static str,
    program: PathBuf,
    arguments: &'static [&'static str],
    seconds: Vec<f64>,
    peak_kib: u64,
}

fn main() {
    let entries = number("ENTRIES", 1_000_000);
    let rounds = number("ROUNDS", 3);
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let peers = root.join("target/peers/bin");
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let source = scratch.path().join("m");
    let mut out = BufWriter::new(File::create(&source).unwrap());
    for i in 0..entries {
        let (key, value) = entry(i, 0);
        writeln!(out, "{key}\t{value}").unwrap();
    }
    out.flush().unwrap();
    drop(out);

    let ours = root.join("target/release/makemap");
    let contender = |name, program: PathBuf, arguments| Contender {
        name,
        program,
        arguments,
        seconds: Vec::new(),
        peak_kib: 0,
    };
    let mut all = vec![
        contender("makemap hash", ours.clone(), &["hash", "ours"]),
        contender("makemap btree", ours.clone(), &["btree", "ours"]),
        contender("makemap cdb", ours.clone(), &["cdb", "ours"]),
        contender("makemap lmdb", ours.clone(), &["lmdb", "ours"]),
        contender("makemap fixed", ours, &["fixed", "ours"]),
        contender(
            "Sendmail makemap hash",
            peers.join("sendmail-makemap"),
            &["hash", "sendmail"],
        ),
        contender("postmap hash:", peers.join("postmap"), &["hash:m"]),
        contender("postmap lmdb:", peers.join("postmap"), &["lmdb:m"]),
    ];
    all.retain(|one| {
        let is_there = one.program.exists();
        if !is_there {
            println!(
                "left out, as {} is missing: {}",
                one.program.display(),
                one.name
            );
        }
        is_there
    });
    for _ in 0..rounds {
        for one in &mut all {
            for name in [
                "ours.db",
                "ours.cdb",
                "ours.lmdb",
                "ours.fix",
                "sendmail.db",
                "m.db",
                "m.lmdb",
            ] {
                let _ = std::fs::remove_file(scratch.path().join(name));
            }
            let (seconds, peak_kib) = run(one, scratch.path(), &source);
            one.seconds.push(seconds);
            one.peak_kib = one.peak_kib.max(peak_kib);
        }
    }
    println!(
        "{entries} lines, {rounds} interleaved rounds, medians; files synced where the tool does so"
    );
    let base = median(&mut all[0].seconds);
    let (mut times, mut peaks) = (Vec::new(), Vec::new());
    for one in &mut all {
        let seconds = median(&mut one.seconds);
        let is_ours = one.name.starts_with("makemap");
        times.push(Bar::new(one.name.into(), seconds * 1000.0, is_ours));
        peaks.push(Bar::new(
            one.name.into(),
            (one.peak_kib / 1024) as f64,
            is_ours,
        ));
        println!(
            "{:24} {seconds:8.3} s  {:5.1} times makemap hash  peak {:4} MB",
            one.name,
            seconds / base,
            one.peak_kib / 1024
        );
    }
    let title =
        format!("Building a map of {entries} lines, ms (median of {rounds} interleaved rounds)");
    let path = root.join("maps/benches/build.svg");
    let text = svg(&title, &times, "memory at the peak, MB", &peaks);
    std::fs::write(&path, text).unwrap();
    println!("plot: {}", path.display());
}

/// Runs a tool on the source, as its standard input for those that read it; wall seconds and peak KiB.
fn run(one: &Contender, dir: &Path, source: &Path) -> (f64, u64) {
    let start = Instant::now();
    let mut child = Command::new(&one.program)
        .args(one.arguments)
        .current_dir(dir)
        .stdin(File::open(source).unwrap())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let status = PathBuf::from(format!("/proc/{}/status", child.id()));
    let mut peak = 0;
    loop {
        if let Some(done) = child.try_wait().unwrap() {
            assert!(done.success(), "{}: {done}", one.name);
            return (start.elapsed().as_secs_f64(), peak);
        }
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let now = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = now.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok());
        peak = peak.max(kib.unwrap_or(0));
        std::thread::sleep(PROBE);
    }
}
