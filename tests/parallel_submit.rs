//! Many real `sendmail` processes that submit at once while no daemon runs (SPOOL 9): each exits 0, each leaves one drop
//! file, and a run of the client queue takes each of them over exactly once.
//!
//! PARALLEL_SUBMITTERS (80) is how many there are; they come in waves of at most [`WAVE`] processes, or of as many as the
//! system lets have pipes open, and all of a wave run before the first gets its message. CI's proofs run 1,000.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Most processes at once.
const WAVE: usize = 1000;
/// Descriptors that this process has open for each of them, and besides.
const PIPES: usize = 3;
const BESIDES: usize = 64;

/// How many may run at once: as many as there may be pipes to, once the limit on them is as high as it may be.
fn wave() -> usize {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let wanted = u64::try_from(WAVE * PIPES + BESIDES).unwrap();
    let most = soft.max(hard.min(wanted));
    setrlimit(Resource::RLIMIT_NOFILE, most, hard).unwrap();
    let most = usize::try_from(most).unwrap_or(usize::MAX);
    (most.saturating_sub(BESIDES) / PIPES).clamp(1, WAVE)
}

fn sendmail(sandbox: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sendmail"));
    command
        .arg("--sandbox")
        .arg(sandbox)
        .args(arguments)
        .env_remove("NAME")
        .env_remove("DILIGENCE_SANDBOX")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn run(sandbox: &Path, arguments: &[&str]) -> Output {
    sendmail(sandbox, arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn drops(sandbox: &Path) -> Vec<PathBuf> {
    let folder = sandbox.join("var/spool/clientmqueue/drop");
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_thousand_submitters_at_once_lose_nothing_and_need_no_daemon() {
    let count = std::env::var("PARALLEL_SUBMITTERS")
        .ok()
        .map_or(80, |count| count.parse::<usize>().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let sandbox = folder.path().join("sandbox");
    // The first use makes it.
    run(&sandbox, &["-bi"]);
    let numbers: Vec<usize> = (0..count).collect();
    for wave in numbers.chunks(wave()) {
        let mut children: Vec<(usize, Child)> = wave
            .iter()
            .map(|number| {
                (
                    *number,
                    sendmail(&sandbox, &["postmaster"]).spawn().unwrap(),
                )
            })
            .collect();
        // All of them are there; now all get their message.
        for (number, child) in &mut children {
            let mut input = child.stdin.take().unwrap();
            write!(input, "Subject: number {number}\n\nbody {number}\n").unwrap();
        }
        for (number, child) in children {
            let output = child.wait_with_output().unwrap();
            assert!(
                output.status.success(),
                "{number}: {}{}",
                text(&output.stdout),
                text(&output.stderr)
            );
        }
    }
    let waiting = drops(&sandbox);
    assert_eq!(waiting.len(), count);
    assert!(
        waiting.iter().all(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            name.starts_with("drop-")
        }),
        "{waiting:?}"
    );
    // Still no daemon: a run of the client queue becomes its owner, takes everything over, and delivers nothing.
    for _ in 0..2 {
        let output = run(&sandbox, &["-Ac", "-q"]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        assert!(drops(&sandbox).is_empty());
    }
    let listed = text(&run(&sandbox, &["-Ac", "-bp"]).stdout);
    assert!(
        listed.ends_with(&format!("Total requests: {count}\n")),
        "{listed}"
    );
    // Each exactly once, by its content.
    let out = subjects(&sandbox.join("var/spool/clientmqueue"));
    assert_eq!(out.len(), count);
    for number in 0..count {
        assert_eq!(out.get(&format!("number {number}")), Some(&1), "{number}");
    }
}

/// How often each subject is in a spool.
fn subjects(folder: &Path) -> BTreeMap<String, usize> {
    use std::io::Read;
    let clock = diligence::clock::SystemClock::new();
    let reader = diligence::spool::reader::SpoolReader::open(folder, &clock).unwrap();
    let mut found = BTreeMap::new();
    for id in reader.ids() {
        let mut content = String::new();
        let mut from = reader.content(id).unwrap();
        from.read_to_string(&mut content).unwrap();
        let subject = content
            .lines()
            .find_map(|line| line.strip_prefix("Subject: "))
            .unwrap_or_else(|| panic!("{id}: {content}"));
        *found.entry(subject.to_owned()).or_insert(0) += 1;
    }
    found
}

#[test]
fn a_user_has_a_limit_and_is_told_to_try_again() {
    let folder = tempfile::tempdir().unwrap();
    let sandbox = folder.path().join("sandbox");
    run(&sandbox, &["-bi"]);
    let submit = || {
        let mut child = sendmail(
            &sandbox,
            &["-O", "max_drop_files_per_user=2", "-oeq", "postmaster"],
        )
        .spawn()
        .unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(b"Subject: x\n\nx\n").unwrap();
        drop(input);
        child.wait_with_output().unwrap()
    };
    for _ in 0..2 {
        assert!(submit().status.success());
    }
    let refused = submit();
    assert_eq!(refused.status.code(), Some(75), "{}", text(&refused.stdout));
    assert_eq!(drops(&sandbox).len(), 2, "nothing is half accepted");
}
