//! Files of ours read by other mail systems' tools, files of theirs read by us: Postfix, Sendmail, Exim, tinycdb.
//!
//! The programs are those `.ci/peers` unpacks under target/peers/bin, and cdb(1). A test whose program is not there prints
//! that it is skipped. PEER_ENTRIES (10000) is the size of the larger of the two maps, STORM_ROUNDS (20, and 100
//! at most) how often one is rebuilt while others look up in it.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use diligence_maps::{
    DuplicatePolicy, HandleOptions, Map, MapBuilder, MapHandle, MapKind, MapSpec, PublishOptions,
    open_direct,
};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use support::{Model, assert_same, listed, read, write};

const WAIT: Duration = Duration::from_secs(5);
/// Keys of a map that is rebuilt while others look up in it.
const SHARED_KEYS: usize = 300;
/// postmap waits for readers that come without end, so that a rebuild beside them takes its time.
const SHARED_ROUNDS_MAX: u64 = 100;
/// How long the last of many rebuilds may take to be seen.
const SEEN_WITHIN: Duration = Duration::from_secs(20);

/// A program of `.ci/peers`, if it is there.
fn peer(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../target/peers/bin")
        .join(name);
    if path.exists() {
        return Some(path);
    }
    println!("SKIPPED: {} is not there (.ci/peers)", path.display());
    None
}

fn sizes() -> [usize; 2] {
    let text = std::env::var("PEER_ENTRIES").ok();
    [1, text.and_then(|text| text.parse().ok()).unwrap_or(10_000)]
}

/// Text keys and values, as a source file can hold them; with `nul`, as Postfix and makemap -N store them.
fn plain(entries: usize, nul: &str) -> Model {
    (0..entries)
        .map(|i| {
            let key = match i % 3 {
                0 => format!("user{i}"),
                1 => format!("list{}-owner", i / 3),
                _ => format!("list{}-owner-request@example{}.test", i / 3, i % 11),
            };
            let long = if i % 501 == 7 { 5000 } else { i % 60 };
            let value = format!("box{i}@host.test {}", "v".repeat(long));
            (
                (key + nul).into_bytes(),
                vec![(value.trim_end().to_owned() + nul).into_bytes()],
            )
        })
        .collect()
}

/// The model as lines of key, tab, value.
fn source(model: &Model) -> Vec<u8> {
    let mut text = Vec::new();
    for (key, values) in model {
        text.extend_from_slice(key.strip_suffix(b"\0").unwrap_or(key));
        text.push(b'\t');
        text.extend_from_slice(values[0].strip_suffix(b"\0").unwrap_or(&values[0]));
        text.push(b'\n');
    }
    text
}

fn run(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let done = std::thread::scope(|scope| {
        // A program that reads no input closes it: that it ends well is what counts.
        scope.spawn(move || drop(stdin.write_all(input)));
        child.wait_with_output().unwrap()
    });
    let errors = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success(), "{command:?}: {errors}");
    done
}

fn check_by_us(path: &Path, kind: MapKind, model: &Model, what: &str) {
    assert_same(&listed(&read(path).unwrap()).unwrap(), model, what);
    let direct = open_direct(path, WAIT).unwrap();
    assert_eq!(direct.kind(), kind, "{what}");
    for (key, values) in model.iter().step_by(7) {
        assert!(
            direct.lookup(key).unwrap().as_deref() == Some(&values[0][..]),
            "{what}"
        );
    }
}

/// libdb's verification prints its success line and nothing else: wrong order it only mentions, with status 0.
fn verify(path: &Path) {
    let Ok(done) = Command::new("db5.3_verify").arg(path).output() else {
        println!("SKIPPED: db5.3_verify is not installed");
        return;
    };
    let text = [done.stdout, done.stderr].concat();
    let wanted = format!("BDB5105 Verification of {} succeeded.\n", path.display());
    assert_eq!(String::from_utf8_lossy(&text), wanted);
}

#[test]
fn postfix_reads_ours_and_we_read_postfix() {
    let Some(postmap) = peer("postmap") else {
        return;
    };
    for entries in sizes() {
        for kind in [MapKind::Hash, MapKind::Btree, MapKind::Cdb, MapKind::Lmdb] {
            let dir = tempfile::tempdir().unwrap();
            for nul in ["", "\0"] {
                let model = plain(entries, nul);
                let what = format!("{kind}, {entries} entries, NUL {}", !nul.is_empty());
                let path = kind.file_of(&dir.path().join("ours"));
                write(kind, &model, &path);
                if matches!(kind, MapKind::Hash | MapKind::Btree) {
                    verify(&path);
                }
                let mut keys = source(&plain(entries, ""));
                let name = format!("{kind}:{}", dir.path().join("ours").display());
                let wanted = keys.clone();
                let lines = keys
                    .split(|byte| *byte == b'\n')
                    .filter_map(|line| line.split(|byte| *byte == b'\t').next());
                keys = lines.collect::<Vec<_>>().join(&b'\n');
                let done = run(Command::new(&postmap).args(["-q", "-", &name]), &keys);
                assert!(
                    done.stdout == wanted,
                    "{what}: postmap -q answers otherwise"
                );
            }
            // Debian's postmap leaves the NUL out in cdb files.
            let model = plain(entries, if kind == MapKind::Cdb { "" } else { "\0" });
            let theirs = dir.path().join("theirs");
            std::fs::write(&theirs, source(&model)).unwrap();
            run(
                Command::new(&postmap).arg(format!("{kind}:{}", theirs.display())),
                b"",
            );
            check_by_us(
                &kind.file_of(&theirs),
                kind,
                &model,
                &format!("postmap {kind}, {entries} entries"),
            );
        }
    }
}

/// The lines of a map of which every key has the number of a rebuild.
fn generation(number: u64) -> String {
    (0..SHARED_KEYS).fold(String::new(), |mut text, i| {
        let _ = writeln!(text, "user{i}\t{number}");
        text
    })
}

/// Builds the map as ours do, by rename.
fn build_generation(path: &Path, number: u64) {
    let mut builder = MapBuilder::new(MapKind::Lmdb, DuplicatePolicy::KeepFirst).unwrap();
    for i in 0..SHARED_KEYS {
        let (key, value) = (format!("user{i}\0"), format!("{number}\0"));
        builder.insert(key.as_bytes(), value.as_bytes()).unwrap();
    }
    builder.publish(path, &PublishOptions::default()).unwrap();
}

#[test]
fn postfix_looks_up_while_we_rebuild_an_lmdb_map() {
    let Some(postmap) = peer("postmap") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("shared.lmdb");
    build_generation(&path, 0);
    let name = format!("lmdb:{}", dir.path().join("shared").display());
    let keys = (0..SHARED_KEYS).fold(String::new(), |text, i| text + &format!("user{i}\n"));
    let (built, is_done) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(Ordering::Relaxed) {
                let next = built.load(Ordering::SeqCst) + 1;
                build_generation(&path, next);
                built.store(next, Ordering::SeqCst);
            }
        });
        for _ in 0..shared_rounds() {
            let before = built.load(Ordering::SeqCst);
            let done = run(
                Command::new(&postmap).args(["-q", "-", &name]),
                keys.as_bytes(),
            );
            let after = built.load(Ordering::SeqCst) + 1;
            let text = String::from_utf8(done.stdout).unwrap();
            let mut seen: Vec<u64> = text
                .lines()
                .map(|line| line.split_once('\t').unwrap().1.parse().unwrap())
                .collect();
            assert_eq!(seen.len(), SHARED_KEYS, "postmap -q misses keys");
            seen.dedup();
            assert_eq!(seen.len(), 1, "a mixture of rebuilds: {seen:?}");
            assert!(
                (before..=after).contains(&seen[0]),
                "{seen:?}: {before}..={after}"
            );
        }
        is_done.store(true, Ordering::Relaxed);
    });
    println!("{} rebuilds beside postmap -q", built.into_inner());
}

#[test]
fn we_look_up_while_postfix_rebuilds_an_lmdb_map_in_place() {
    let Some(postmap) = peer("postmap") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("shared");
    let path = dir.path().join("shared.lmdb");
    let rebuild = |number: u64| {
        std::fs::write(&source, generation(number)).unwrap();
        let name = format!("lmdb:{}", source.display());
        run(Command::new(&postmap).arg(name), b"");
    };
    rebuild(0);
    let spec = MapSpec::new(MapKind::Lmdb, &path);
    let handle = MapHandle::open(&spec, HandleOptions::default()).unwrap();
    let (is_done, looks) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for reader in 0..4 {
            let (handle, path, is_done, looks) = (&handle, &path, &is_done, &looks);
            scope.spawn(move || {
                let mut last = 0;
                while !is_done.load(Ordering::Relaxed) {
                    // Three ask a handle, as servers do, one the file, as programs do that look up once.
                    let values: Vec<u64> = if reader < 3 {
                        let view = handle.reader();
                        (0..SHARED_KEYS)
                            .map(|i| number(view.lookup(format!("user{i}").as_bytes()).unwrap()))
                            .collect()
                    } else {
                        let map = open_direct(path, WAIT).unwrap();
                        let look = |i| map.lookup(format!("user{i}\0").as_bytes()).unwrap();
                        (0..SHARED_KEYS)
                            .map(|i| number(look(i).map(|value| value.into_owned())))
                            .collect()
                    };
                    assert!(
                        values.iter().all(|value| *value == values[0]),
                        "a mixture of rebuilds"
                    );
                    assert!(values[0] >= last, "rebuild {} after {last}", values[0]);
                    last = values[0];
                    looks.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for number in 1..=shared_rounds() {
            rebuild(number);
        }
        let wanted = shared_rounds();
        let deadline = Instant::now() + SEEN_WITHIN;
        while number(handle.lookup(b"user1").unwrap()) != wanted {
            assert!(Instant::now() < deadline, "the last rebuild is not seen");
            std::thread::yield_now();
        }
        is_done.store(true, Ordering::Relaxed);
    });
    println!("{} looks beside postmap", looks.into_inner());
}

/// The number a value is.
fn number(value: Option<Vec<u8>>) -> u64 {
    let value = value.expect("a key is missing");
    let text = std::str::from_utf8(value.strip_suffix(b"\0").unwrap_or(&value)).unwrap();
    text.parse().unwrap()
}

fn shared_rounds() -> u64 {
    let text = std::env::var("STORM_ROUNDS").ok();
    let rounds: u64 = text.and_then(|text| text.parse().ok()).unwrap_or(20);
    rounds.min(SHARED_ROUNDS_MAX)
}

#[test]
fn sendmail_dumps_ours_and_we_read_sendmails() {
    let Some(makemap) = peer("sendmail-makemap") else {
        return;
    };
    for entries in sizes() {
        for kind in [MapKind::Hash, MapKind::Btree] {
            let dir = tempfile::tempdir().unwrap();
            let ours = dir.path().join("ours");
            let model = plain(entries, "");
            write(kind, &model, &kind.file_of(&ours));
            let done = run(
                Command::new(&makemap).args(["-u", kind.name()]).arg(&ours),
                b"",
            );
            let mut lines: Vec<&[u8]> =
                done.stdout.split_inclusive(|byte| *byte == b'\n').collect();
            lines.sort_unstable();
            let wanted = source(&model);
            let mut expected: Vec<&[u8]> = wanted.split_inclusive(|byte| *byte == b'\n').collect();
            expected.sort_unstable();
            assert!(
                lines == expected,
                "{kind}, {entries} entries: makemap -u prints other lines"
            );
            for (flag, nul) in [("-v", ""), ("-N", "\0")] {
                let mut model = plain(entries, nul);
                // Sendmail's makemap takes lines of 1024 bytes.
                model.retain(|_, values| values[0].len() < 900);
                let theirs = dir.path().join(format!("theirs{flag}"));
                run(
                    Command::new(&makemap)
                        .args([flag, kind.name()])
                        .arg(&theirs),
                    &source(&model),
                );
                check_by_us(
                    &kind.file_of(&theirs),
                    kind,
                    &model,
                    &format!("makemap {flag} {kind}"),
                );
            }
        }
    }
}

#[test]
fn exim_reads_ours_and_we_read_exims() {
    let Some(dbmbuild) = peer("exim_dbmbuild") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("input");
    let mut model = plain(500, "\0");
    // exim_dbmbuild has a limit of its own for lines.
    model.retain(|_, values| values[0].len() < 1000);
    std::fs::write(
        &input,
        String::from_utf8(source(&model))
            .unwrap()
            .replace('\t', ": "),
    )
    .unwrap();
    let theirs = dir.path().join("theirs.db");
    run(Command::new(&dbmbuild).arg(&input).arg(&theirs), b"");
    check_by_us(&theirs, MapKind::Hash, &model, "exim_dbmbuild");

    let Some(exim) = peer("exim") else { return };
    let lookups = [
        (MapKind::Hash, "", "dbmnz"),
        (MapKind::Hash, "\0", "dbm"),
        (MapKind::Btree, "", "dbmnz"),
        (MapKind::Cdb, "", "cdb"),
    ];
    for (kind, nul, lookup) in lookups {
        let model = plain(200, nul);
        let path = kind.file_of(&dir.path().join(format!("ours-{kind}-{lookup}")));
        write(kind, &model, &path);
        let mut expansions = String::new();
        let mut wanted = String::new();
        for line in String::from_utf8(source(&model)).unwrap().lines() {
            let (key, value) = line.split_once('\t').unwrap();
            let _ = writeln!(
                expansions,
                "${{lookup{{{key}}}{lookup}{{{}}}{{$value}}fail}}",
                path.display()
            );
            let _ = writeln!(wanted, "{value}");
        }
        let done = run(Command::new(&exim).arg("-be"), expansions.as_bytes());
        let shown = String::from_utf8_lossy(&done.stdout).replace("> ", "");
        assert_eq!(shown.trim_end(), wanted.trim_end(), "exim {lookup}");
    }
}

#[test]
fn tinycdb_reads_ours_and_we_read_its() {
    if Command::new("cdb").arg("-h").output().is_err() {
        println!("SKIPPED: cdb(1) is not installed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut rng = support::Rng(support::seed());
    for entries in sizes() {
        let mut model = support::awkward(entries.min(20_000), true, &mut rng);
        support::add_duplicates(&mut model, &mut rng);
        let mut records = Vec::new();
        for (key, values) in &model {
            for value in values {
                records.extend_from_slice(format!("+{},{}:", key.len(), value.len()).as_bytes());
                records.extend_from_slice(key);
                records.extend_from_slice(b"->");
                records.extend_from_slice(value);
                records.push(b'\n');
            }
        }
        records.push(b'\n');
        let theirs = dir.path().join("theirs.cdb");
        run(Command::new("cdb").arg("-c").arg(&theirs), &records);
        check_by_us(&theirs, MapKind::Cdb, &model, "cdb -c");
        let ours = dir.path().join("ours.cdb");
        write(MapKind::Cdb, &model, &ours);
        let done = run(Command::new("cdb").arg("-d").arg(&ours), b"");
        assert!(done.stdout == records, "cdb -d prints other records");
    }
}
