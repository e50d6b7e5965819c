//! spoolck as a program: its exit codes and what it writes, on real spools.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::thread::JoinHandle;

use diligence::address::ReversePath;
use diligence::clock::SystemClock;
use diligence::envelope::{Envelope, MessageId, Recipient};
use diligence::spool::storage::OsStorage;
use diligence::spool::{FootingPolicy, Spool, SpoolOptions};

fn spoolck(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_spoolck"))
        .args(arguments)
        .output()
        .unwrap()
}

fn shown(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn open(folder: &Path) -> (Spool, JoinHandle<()>) {
    let options = SpoolOptions {
        segment_bytes: 1 << 20,
        footing: FootingPolicy::Memory,
        ..SpoolOptions::default()
    };
    let storage = Arc::new(OsStorage::open(folder).unwrap());
    let (spool, writer, _) = Spool::open(storage, Arc::new(SystemClock::new()), options).unwrap();
    (spool, std::thread::spawn(move || writer.run()))
}

fn accept(spool: &Spool, content: &[u8], to: &str) -> MessageId {
    let mut transaction = spool.begin().unwrap();
    transaction.append_content(content).unwrap();
    let envelope = Envelope::new(ReversePath::Null, vec![Recipient::new(to)]);
    transaction.commit(envelope).wait().unwrap()
}

fn path(folder: &Path) -> &str {
    folder.to_str().unwrap()
}

#[test]
fn exit_codes_say_what_was_found() {
    let folder = tempfile::tempdir().unwrap();
    let queue = folder.path().join("q");
    let missing = spoolck(&[path(&queue)]);
    assert_eq!(missing.status.code(), Some(66), "{}", shown(&missing));
    std::fs::create_dir(&queue).unwrap();
    let empty = spoolck(&[path(&queue)]);
    assert_eq!(empty.status.code(), Some(65), "{}", shown(&empty));
    let usage = spoolck(&["--verify", "--explain"]);
    assert_eq!(usage.status.code(), Some(64), "{}", shown(&usage));

    let (spool, writer) = open(&queue);
    accept(&spool, b"Subject: a\r\n\r\nfirst\r\n", "bob");
    // Beside its owner, without a lock: sound, and it says who is at work.
    let live = spoolck(&["--verify", path(&queue)]);
    assert_eq!(live.status.code(), Some(0), "{}", shown(&live));
    let pid = format!("process {} is at work", std::process::id());
    assert!(shown(&live).contains(&pid), "{}", shown(&live));
    spool.close();
    writer.join().unwrap();
    drop(spool);
    let closed = spoolck(&[path(&queue)]);
    assert_eq!(closed.status.code(), Some(0), "{}", shown(&closed));
    assert!(shown(&closed).contains(": sound\n"), "{}", shown(&closed));

    std::fs::write(queue.join("tmp-0000000000000009"), b"x").unwrap();
    let notes = spoolck(&[path(&queue)]);
    assert_eq!(notes.status.code(), Some(1), "{}", shown(&notes));
    let segment = queue.join("segment-0000000000000001");
    let mut bytes = std::fs::read(&segment).unwrap();
    let at = bytes.windows(5).position(|w| w == b"first").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&segment, &bytes).unwrap();
    let damage = spoolck(&["--json", path(&queue)]);
    assert_eq!(damage.status.code(), Some(2), "{}", shown(&damage));
    assert!(
        shown(&damage).contains("{\"weight\":\"damage\",\"text\":\""),
        "{}",
        shown(&damage)
    );
}

#[test]
fn messages_are_exported_once_and_whole() {
    let folder = tempfile::tempdir().unwrap();
    let (queue, out) = (folder.path().join("q"), folder.path().join("out"));
    std::fs::create_dir(&queue).unwrap();
    let (spool, writer) = open(&queue);
    let content: Vec<u8> = (0..400_000_u32)
        .map(|n| b"0123456789abcde\n"[(n % 16) as usize])
        .collect();
    let first = accept(&spool, &content, "bob");
    let second = accept(&spool, b"Subject: b\r\n\r\nsecond\r\n", "eve");
    let exported = spoolck(&[
        "--export",
        path(&out),
        "-d",
        path(&queue),
        &second.to_string(),
    ]);
    assert_eq!(exported.status.code(), Some(0), "{}", shown(&exported));
    assert_eq!(
        std::fs::read(out.join(format!("{second}.eml"))).unwrap(),
        b"Subject: b\r\n\r\nsecond\r\n"
    );
    let envelope = std::fs::read_to_string(out.join(format!("{second}.json"))).unwrap();
    assert!(envelope.contains("\"to\":\"eve\""), "{envelope}");
    assert_eq!(std::fs::read_dir(&out).unwrap().count(), 2);
    // What is there is not written again.
    let again = spoolck(&["--export", path(&out), "-d", path(&queue)]);
    assert_eq!(again.status.code(), Some(73), "{}", shown(&again));
    let all = folder.path().join("all");
    let exported = spoolck(&["--export", path(&all), "-d", path(&queue)]);
    assert_eq!(exported.status.code(), Some(0), "{}", shown(&exported));
    assert_eq!(
        std::fs::read(all.join(format!("{first}.eml"))).unwrap(),
        content
    );
    let unknown = MessageId::from_number(first.number() + 5_000_000).to_string();
    let none = spoolck(&["--export", path(&all), "-d", path(&queue), &unknown]);
    assert_eq!(none.status.code(), Some(69), "{}", shown(&none));
    spool.close();
    writer.join().unwrap();
}

#[test]
fn a_spool_in_use_is_salvaged_only_when_told_and_a_new_one_is_never_mixed() {
    let folder = tempfile::tempdir().unwrap();
    let (queue, new) = (folder.path().join("q"), folder.path().join("new"));
    std::fs::create_dir(&queue).unwrap();
    let (spool, writer) = open(&queue);
    let id = accept(&spool, b"Subject: c\r\n\r\nthird\r\n", "bob");
    let refused = spoolck(&["--salvage", path(&new), path(&queue)]);
    assert_eq!(refused.status.code(), Some(75), "{}", shown(&refused));
    let told = spoolck(&["--salvage", path(&new), "--live", path(&queue)]);
    assert!(
        matches!(told.status.code(), Some(0 | 1)),
        "{}",
        shown(&told)
    );
    assert!(
        shown(&told).contains("1 messages are in"),
        "{}",
        shown(&told)
    );
    spool.close();
    writer.join().unwrap();
    drop(spool);
    let mixed = spoolck(&["--salvage", path(&new), path(&queue)]);
    assert_eq!(mixed.status.code(), Some(73), "{}", shown(&mixed));
    let verified = spoolck(&[path(&new)]);
    assert_eq!(verified.status.code(), Some(0), "{}", shown(&verified));
    let (copy, writer) = open(&new);
    assert_eq!(copy.ids(), [id]);
    copy.close();
    writer.join().unwrap();
}

#[test]
fn everything_is_explained_in_words_and_in_json() {
    let folder = tempfile::tempdir().unwrap();
    let queue = folder.path().join("q");
    std::fs::create_dir(&queue).unwrap();
    let (spool, writer) = open(&queue);
    let id = accept(&spool, b"Subject: d\r\n\r\nfourth\r\n", "bob");
    spool
        .hold(id, true, "the operator")
        .unwrap()
        .wait()
        .unwrap();
    spool.close();
    writer.join().unwrap();
    drop(spool);
    let text = shown(&spoolck(&["--explain", path(&queue)]));
    for wanted in [
        "checkpoint name=checkpoint-",
        "segment name=segment-0000000000000001 number=1 mark=",
        "\n  batch number=1 offset=8192 ",
        "\n    frame what=envelope ",
        "from=<> to=<bob> ",
        "held=yes by=\"the operator\"",
        "frame what=seal ",
    ] {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    let json = shown(&spoolck(&["--explain", "--json", path(&queue)]));
    assert!(
        json.lines()
            .all(|line| line.starts_with("{\"kind\":\"") && line.ends_with('}')),
        "{json}"
    );
    assert!(json.contains(&format!("\"id\":\"{id}\"")), "{json}");
}

#[test]
fn a_busy_spool_is_not_called_damaged() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let folder = tempfile::tempdir().unwrap();
    let queue = folder.path().join("q");
    std::fs::create_dir(&queue).unwrap();
    let (spool, writer) = open(&queue);
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                // Segments fill, die and are used again while they are read.
                while !is_done.load(Ordering::Relaxed) {
                    let id = accept(&spool, &[b'x'; 60_000], "bob");
                    spool.remove(id).unwrap().wait().unwrap();
                }
            });
        }
        let mut seen = Vec::new();
        for _ in 0..8 {
            spool.checkpoint().unwrap();
            let output = spoolck(&[path(&queue)]);
            seen.push((output.status.code(), shown(&output)));
        }
        is_done.store(true, Ordering::Relaxed);
        assert!(
            seen.iter().all(|(code, _)| matches!(code, Some(0 | 1))),
            "{seen:?}"
        );
    });
    assert!(spool.stats().bytes_written > 3 << 20, "{:?}", spool.stats());
    spool.close();
    writer.join().unwrap();
}
