//! The real daemon under load, killed at random: what it acknowledged is there after a restart (I1, I2, I6).
//!
//! Several connections send messages as fast as they are taken, to a mailbox here and to a host elsewhere, whose mail
//! a sandbox keeps. SIGKILL comes at a random moment. After the restart every message that was answered `250` is in
//! the mailbox, whole, or in the queue; a message is in the mailbox twice, or once more in part, only if its delivery
//! ended within the last [`REPEAT_WINDOW`] before the kill or was under way (SPOOL.md, section 5).
//!
//! `KILL_ROUNDS` sets the number of kills (5 if unset), `SEED` the sequence; both are printed.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/daemon.rs"]
mod daemon;

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use daemon::{Sandbox, SmtpClient, now, wait_for};

/// Connections that send at once.
const CONNECTIONS: usize = 6;
/// The shortest and the longest time under load before a kill.
const LOAD_MS: std::ops::Range<u64> = 20..1200;
/// Deliveries that ended this long before a kill may be repeated: 20 ms and one sync are promised, the rest is what a
/// busy machine may add before a thread runs.
const REPEAT_WINDOW: Duration = Duration::from_millis(500);
/// The most repetitions after one kill, whatever the load (SPOOL.md, section 5).
const REPEATS_MAX: usize = 1000;
/// Lines of a body; its last one proves that the message is whole.
const BODY_LINES: usize = 40;

/// A small generator of random numbers (xorshift64*), so that a seed gives the same run everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn within(&mut self, range: std::ops::Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }
}

fn number_from(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable)
        .ok()
        .map_or(otherwise, |text| text.parse().unwrap())
}

/// What was acknowledged: queue id to where the message was sent.
type Acknowledged = Mutex<HashMap<String, Target>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Mailbox,
    Elsewhere,
}

#[test]
fn acknowledged_messages_survive_sigkill_at_any_moment() {
    let rounds = number_from("KILL_ROUNDS", 5);
    let seed = number_from("SEED", u64::from(std::process::id()) * 7919 + 1);
    println!("KILL_ROUNDS={rounds} SEED={seed}");
    let mut random = Random(seed.max(1));
    let sandbox = Sandbox::new();
    let acknowledged = Acknowledged::default();
    // What may be in the mailbox more than once, after all kills so far.
    let mut repeatable: HashMap<String, usize> = HashMap::new();
    for round in 0..rounds {
        let load = Duration::from_millis(random.within(LOAD_MS));
        let settled_bytes = load_and_kill(&sandbox, &acknowledged, round, load);
        let mailbox = sandbox.mailbox();
        let settled = count_ids(&mailbox[..floor_boundary(&mailbox, settled_bytes)]);
        let at_kill = count_ids(&mailbox);
        let mut fresh = 0;
        for (id, count) in &at_kill {
            if settled.get(id) != Some(count) {
                *repeatable.entry(id.clone()).or_default() += 1;
                fresh += 1;
            }
        }
        check(&sandbox, &acknowledged.lock().unwrap(), &repeatable, round);
        println!(
            "round {round}: {load:?} of load, {} acknowledged so far, {fresh} just delivered",
            acknowledged.lock().unwrap().len()
        );
    }
    assert!(
        acknowledged.lock().unwrap().len() as u64 >= rounds,
        "hardly anything was sent"
    );
}

/// Starts the daemon, sends until the time is up, and kills it. Gives the mailbox's size a [`REPEAT_WINDOW`] before
/// the kill, or at the start if that was later: what was there then was recorded by a clean stop.
fn load_and_kill(
    sandbox: &Sandbox,
    acknowledged: &Acknowledged,
    round: u64,
    load: Duration,
) -> usize {
    let daemon = sandbox.start();
    let address = daemon.address();
    let user = sandbox.user();
    let is_over = AtomicBool::new(false);
    let mut sizes: Vec<(Instant, usize)> = Vec::new();
    std::thread::scope(|scope| {
        for connection in 0..CONNECTIONS {
            let (is_over, user) = (&is_over, &user);
            scope.spawn(move || {
                // Any error is the kill, or its shadow: what counts is what was acknowledged before.
                let Ok(mut client) = SmtpClient::connect(address) else {
                    assert!(is_over.load(Ordering::SeqCst), "no greeting while running");
                    return;
                };
                for number in 0.. {
                    let target = [Target::Mailbox, Target::Elsewhere][usize::from(number % 4 == 3)];
                    let to = match target {
                        Target::Mailbox if number % 4 == 0 => "postmaster".to_owned(),
                        Target::Mailbox => user.clone(),
                        Target::Elsewhere => "somebody@elsewhere.example".to_owned(),
                    };
                    let content = content(&format!("{round}.{connection}.{number}"));
                    match client.send("sender@client.example.test", &[&to], &content) {
                        Ok(id) => {
                            let before = acknowledged.lock().unwrap().insert(id.clone(), target);
                            assert_eq!(before, None, "queue id {id} was given twice");
                        }
                        Err(error) => {
                            let is_refusal = error.kind() == std::io::ErrorKind::InvalidData;
                            assert!(!is_refusal, "refused under load: {error}");
                            return;
                        }
                    }
                }
            });
        }
        let start = now();
        let mailbox = sandbox.path().join("var/mail").join(&user);
        wait_for("the time under load", || {
            let bytes = std::fs::metadata(&mailbox).map_or(0, |found| found.len());
            sizes.push((now(), usize::try_from(bytes).unwrap()));
            (start.elapsed() >= load).then_some(())
        });
        is_over.store(true, Ordering::SeqCst);
        daemon.kill();
    });
    let killed_at = sizes.last().unwrap().0;
    sizes
        .iter()
        .rev()
        .find(|(at, _)| killed_at.duration_since(*at) >= REPEAT_WINDOW)
        .or(sizes.first())
        .map_or(0, |(_, bytes)| *bytes)
}

/// Restarts the daemon, waits until nothing for the mailbox is left in the queue, and looks for every message.
fn check(
    sandbox: &Sandbox,
    acknowledged: &HashMap<String, Target>,
    repeatable: &HashMap<String, usize>,
    round: u64,
) {
    let daemon = sandbox.start();
    let queue = wait_for("an end of local deliveries", || {
        let queue = queued_ids(&sandbox.mailq());
        let is_busy = queue.iter().any(|id| {
            acknowledged
                .get(id)
                .is_none_or(|target| *target == Target::Mailbox)
        });
        // What was not acknowledged may be queued as well, for either target: it is told by its recipient.
        let is_local = is_busy && mentions_local(&sandbox.mailq(), &sandbox.user());
        (!is_local).then_some(queue)
    });
    assert!(daemon.stop().success(), "the daemon did not stop cleanly");
    let mailbox = sandbox.mailbox();
    let delivered = count_ids(&mailbox);
    for (id, target) in acknowledged {
        match target {
            Target::Mailbox => assert!(delivered.contains_key(id), "round {round}: {id} is lost"),
            Target::Elsewhere => assert!(queue.contains(id), "round {round}: {id} is lost"),
        }
    }
    let mut repeats = 0;
    for (id, count) in &delivered {
        repeats += count - 1;
        let allowed = 1 + repeatable.get(id).copied().unwrap_or(0);
        assert!(
            *count <= allowed,
            "round {round}: {id} was delivered {count} times"
        );
    }
    let kills = usize::try_from(round).unwrap() + 1;
    assert!(repeats <= REPEATS_MAX * kills, "{repeats} repetitions");
    let whole = whole_ids(&mailbox);
    for (id, target) in acknowledged {
        let is_cut = *target == Target::Mailbox && !whole.contains(id);
        assert!(!is_cut, "round {round}: {id} has no whole copy");
    }
    // A kill may cut the copy that was being appended; the message then comes again, whole.
    for (id, cut) in cut_ids(&mailbox) {
        assert!(
            repeatable.contains_key(&id),
            "round {round}: {id} is cut, not being delivered at a kill: {cut}"
        );
    }
}

/// A message whose body tells what it is in its first line and again in its last.
fn content(token: &str) -> String {
    let filling = "0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz\n";
    format!(
        "Subject: {token}\n\nbegin {token}\n{}end {token}",
        filling.repeat(BODY_LINES)
    )
}

/// How often each queue id is in a mailbox, by its topmost Received field.
fn count_ids(mailbox: &str) -> HashMap<String, usize> {
    let mut counts = HashMap::new();
    for id in messages(mailbox).filter_map(id_of) {
        *counts.entry(id.to_owned()).or_default() += 1;
    }
    counts
}

/// The queue id in the topmost Received field of a message.
fn id_of(message: &str) -> Option<&str> {
    message
        .lines()
        .take_while(|line| !line.is_empty())
        .find_map(|line| line.split(" id ").nth(1))
        .and_then(|rest| rest.split([' ', ';', '\t']).next())
        .filter(|id| id.len() == 14)
}

/// The messages of an mbox file, each without its From_ line.
fn messages(mailbox: &str) -> impl Iterator<Item = &str> {
    mailbox
        .split("\nFrom ")
        .filter_map(|message| message.split_once('\n').map(|(_, rest)| rest))
}

/// Whether a message has all of its body.
fn is_whole(message: &str) -> bool {
    let Some((_, rest)) = message.split_once("\nbegin ") else {
        return false;
    };
    let whole = content(rest.lines().next().unwrap());
    message.contains(whole.split_once("\n\n").unwrap().1)
}

/// The ids of which the mailbox has at least one whole copy.
fn whole_ids(mailbox: &str) -> HashSet<String> {
    messages(mailbox)
        .filter(|message| is_whole(message))
        .filter_map(id_of)
        .map(str::to_owned)
        .collect()
}

/// The ids of copies that are not whole, and how each ends.
fn cut_ids(mailbox: &str) -> Vec<(String, String)> {
    messages(mailbox)
        .filter(|message| !is_whole(message))
        .filter_map(|message| {
            let end: String = message.chars().rev().take(60).collect();
            Some((id_of(message)?.to_owned(), end.chars().rev().collect()))
        })
        .collect()
}

/// The ids of a listing.
fn queued_ids(listing: &str) -> Vec<String> {
    listing
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_alphanumeric()) && line.len() > 14)
        .map(|line| line[..14].to_owned())
        .collect()
}

/// Whether a listing has a recipient of this host.
fn mentions_local(listing: &str, user: &str) -> bool {
    listing.lines().any(|line| {
        let shown = line.trim_start();
        line.starts_with('\t')
            && [user, "postmaster", "root"]
                .iter()
                .any(|name| shown.trim_matches(['<', '>']).split('@').next() == Some(name))
    })
}

/// The last place at or before `at` where `text` may be cut.
fn floor_boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len()))
        .rev()
        .find(|place| text.is_char_boundary(*place))
        .unwrap_or(0)
}
