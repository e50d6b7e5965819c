//! A list of 100,000 members by the real daemon: what its expansion costs in memory, and what of it is in the journal.
//!
//! Prints how long the run took, which is told and not judged here; what it may take of memory is.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/daemon.rs"]
mod daemon;

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::fs;

use daemon::{Sandbox, wait_for};
use diligence::clock::SystemClock;
use diligence::envelope::{Recipient, RecipientState};
use diligence::spool::StoredMessage;
use diligence::spool::inspect::{self, Value};
use diligence::spool::reader::SpoolReader;

const MEMBERS: usize = 100_000;
/// What a run over the list may take at its peak beside what the daemon has before it.
const ADDED_BYTES_MAX: u64 = 50 << 20;
const DROP_BYTES_MAX: u64 = 1 << 30;

fn member(number: usize) -> String {
    format!("member{number:06}@host{}.example.test", number % 500)
}

/// The most memory a process has had so far, in bytes.
fn peak(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib: u64 = line
        .unwrap()
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    kib << 10
}

/// What the journal has of each kind, of one message: frames and their bytes.
fn frames(sandbox: &Sandbox, id: &str) -> BTreeMap<String, (u64, u64)> {
    let mut found: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let folder = sandbox.path().join("var/spool/mqueue");
    let clock = SystemClock::new();
    inspect::explain(&folder, &clock, DROP_BYTES_MAX, &mut |fact| {
        let value = |name: &str| {
            let found = fact.fields.iter().find(|(field, _)| *field == name);
            found.map(|(_, value)| value.clone())
        };
        if fact.kind == "frame" && value("id") == Some(Value::Text(id.to_owned())) {
            let (Some(Value::Text(kind)), Some(Value::Number(bytes))) =
                (value("what"), value("length"))
            else {
                panic!("{fact:?}");
            };
            let (count, sum) = found.entry(kind).or_default();
            *count += 1;
            *sum += bytes;
        }
        Ok(())
    })
    .unwrap();
    found
}

/// The one message of the queue, read beside its owner.
fn stored(sandbox: &Sandbox) -> Option<StoredMessage> {
    let folder = sandbox.path().join("var/spool/mqueue");
    let reader = SpoolReader::open(&folder, &SystemClock::new()).unwrap();
    let ids = reader.ids();
    assert_eq!(ids.len(), 1);
    reader.message(ids[0]).ok()
}

fn run_over_list(segment_size: &str) {
    let sandbox = Sandbox::new();
    sandbox.run("sendmail", &["-bi"], "");
    let list = sandbox.path().join("home/list");
    let mut members = String::new();
    for number in 0..MEMBERS {
        writeln!(members, "{}", member(number)).unwrap();
    }
    fs::write(&list, members).unwrap();
    let aliases = format!("biglist: :include:{}\n", list.display());
    fs::write(sandbox.path().join("etc/mail/aliases"), aliases).unwrap();
    assert!(sandbox.run("newaliases", &[], "").status.success());
    sandbox.configure(&format!("segment_size = \"{segment_size}\"\n"));
    let daemon = sandbox.start_with(&["-O", "DeliveryMode=queue"]);
    let content = format!("Subject: to all\n\n{}", "a line of the body\n".repeat(1000));
    let mut client = daemon.client().unwrap();
    let id = client
        .send("s@sender.example.test", &["biglist"], &content)
        .unwrap();
    let before = peak(daemon.pid());
    let begun = daemon::now();
    assert!(sandbox.run("sendmail", &["-q"], "").status.success());
    // Nothing of it may be tried before all of it is expanded; in a sandbox all of it has to wait.
    let line = format!("{id}: to=");
    wait_for("the first line of an attempt", || {
        sandbox
            .text("var/log/maillog")
            .contains(&line)
            .then_some(())
    });
    let took = begun.elapsed();
    // Looked at from outside: a listing would take memory of the daemon's.
    let message = wait_for("an outcome for everybody", || {
        let message = stored(&sandbox)?;
        let is_tried = |(_, state): &(Recipient, RecipientState)| {
            !matches!(state, RecipientState::Pending { last: None, .. })
        };
        message.recipients.iter().all(is_tried).then_some(message)
    });
    let added = peak(daemon.pid()) - before;
    println!(
        "{MEMBERS} members, segments of {segment_size}: {} ms, {} KiB added",
        took.as_millis(),
        added >> 10
    );
    assert!(daemon.stop().success());

    // The envelope once, the body once, every member once.
    let found = frames(&sandbox, &id);
    assert_eq!(found["envelope"].0, 1, "{found:?}");
    assert_eq!(found["content"].0, 1, "{found:?}");
    let body = u64::try_from(content.len()).unwrap();
    assert!(found["content"].1 < body * 2, "{found:?}");
    let mut targets = HashSet::new();
    for (recipient, _) in &message.recipients {
        if !recipient.target.starts_with(":rest:") && recipient.target != "biglist" {
            assert!(targets.insert(recipient.target.clone()), "{recipient:?}");
        }
    }
    assert_eq!(targets.len(), MEMBERS);
    assert!(
        added <= ADDED_BYTES_MAX,
        "{} KiB added, {} allowed",
        added >> 10,
        ADDED_BYTES_MAX >> 10
    );
}

#[test]
fn a_list_of_100000_members_takes_one_envelope_one_body_and_little_memory() {
    run_over_list("64M");
}

#[test]
fn so_it_does_in_pieces() {
    run_over_list("4M");
}
