//! The real daemon under load, killed at random: what it acknowledged is there after a restart (I1, I2, I6).
//!
//! A round is: start, let the queue drain, check, load, SIGKILL at a random moment. Before some starts the daemon is
//! killed again while it starts, replays and takes up deliveries. The load is SMTP connections with messages from
//! hundreds of bytes to hundreds of kilobytes, to a mailbox here, to a host elsewhere whose mail a sandbox keeps, and to
//! both; `sendmail` submissions, which become drop files while nobody listens; queue runs; and now and then the
//! operator's removal of everything that waits.
//!
//! After each kill every message that was answered `250`, or whose submitter ended with 0, is in the mailbox, whole, or in
//! the queue; what the operator was told is removed never comes back. A copy may come twice, or once in part, only if
//! its delivery ended within the last [`REPEAT_WINDOW`] before a kill or was under way (SPOOL 5): the log says when a
//! delivery ended, and is looked at every few milliseconds. How long before a kill the earliest repeated one had ended is
//! printed at the end. Between rounds the mailbox is emptied, so a round costs the same however many came before.
//!
//! `KILL_ROUNDS` sets the number of rounds (5 if unset), `SEED` the sequence; both are printed.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/daemon.rs"]
mod daemon;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process::Child;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use daemon::{Daemon, Sandbox, SmtpClient, now, wait_for};
use diligence::control::change::Change;
use diligence::control::selection::{Kind, Selection};
use diligence::control::{Conversation, Frame, Request};

/// Connections that send at once.
const CONNECTIONS: u64 = 6;
/// Submitters that run one `sendmail` after another.
const SUBMITTERS: u64 = 2;
/// Messages of one connection, which is then closed and opened anew.
const MESSAGES_A_CONNECTION: u64 = 24;
/// The shortest and the longest time under load before a kill.
const LOAD_MS: std::ops::Range<u64> = 10..400;
/// The same for a kill during a start: a start takes tens of milliseconds.
const START_MS: std::ops::Range<u64> = 0..60;
/// Deliveries that ended this long before a kill may be repeated: 20 ms and one sync are promised, the rest is what a
/// busy machine may add before a thread runs.
const REPEAT_WINDOW: Duration = Duration::from_millis(500);
/// The most repetitions after one kill, whatever the load (SPOOL 5).
const REPEATS_MAX: usize = 1000;
/// Once so many messages wait for a host elsewhere, the operator removes them all.
const WAITING_MAX: usize = 60;
/// Lines of a body, by the number of the message; the last line of all proves that the message is whole.
const BODY_LINES: [usize; 8] = [2, 2, 40, 2, 4, 600, 2, 40];
/// And of one in so many, which is received in several chunks.
const LARGE: (u64, usize) = (40, 5000);

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
        // The upper bits: the lower ones of neighbouring seeds are alike at first.
        range.start + (self.next() >> 33) % (range.end - range.start)
    }

    fn is_one_in(&mut self, many: u64) -> bool {
        self.within(0..many) == 0
    }
}

fn number_from(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable)
        .ok()
        .map_or(otherwise, |text| text.parse().unwrap())
}

/// Where a message was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    Mailbox,
    Elsewhere,
    Both,
}

/// What was acknowledged and not yet found.
#[derive(Default)]
struct Acknowledged {
    /// By SMTP: queue id, where to, and the token in the content.
    by_smtp: HashMap<String, (Target, String)>,
    /// By `sendmail` with exit code 0: the token.
    submitted: HashSet<String>,
}

/// What is known at the test's side.
struct World {
    sandbox: Sandbox,
    user: String,
    acknowledged: Mutex<Acknowledged>,
    /// Every id that was in the mailbox when it was emptied.
    settled: HashSet<String>,
    /// Acknowledged mail for elsewhere: in the queue at every look until the operator removes it.
    waiting: HashSet<String>,
    removed: HashSet<String>,
    /// Copies that may be there beyond the first: one for each kill that hit an id's delivery.
    repeatable: HashMap<String, usize>,
    /// When the log first showed that a delivery of an id had ended, before the last kill.
    ended: HashMap<String, Duration>,
    kills: usize,
    /// Kills since the last check.
    recent_kills: usize,
    totals: Totals,
}

/// Figures for the end.
#[derive(Default)]
struct Totals {
    smtp: usize,
    submissions: usize,
    repeats: usize,
    /// The longest time between the end of a delivery, as logged, and the kill that had it repeated.
    longest: Duration,
}

#[test]
fn acknowledged_messages_survive_sigkill_at_any_moment() {
    let rounds = number_from("KILL_ROUNDS", 5);
    let seed = number_from("SEED", u64::from(std::process::id()) * 7919 + 1);
    println!("KILL_ROUNDS={rounds} SEED={seed}");
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).max(1));
    let start = now();
    let mut world = World::new();
    for round in 0..rounds {
        let early = random.within(0..3);
        for _ in 0..early {
            world.kill_at_start(Duration::from_millis(random.within(START_MS)));
        }
        let daemon = world.sandbox.start();
        let started = now();
        world.check(&format!("round {round}"));
        if world.waiting.len() > WAITING_MAX {
            world.remove_all();
        }
        let drained = started.elapsed();
        if random.is_one_in(16) {
            // A clean end, so that kills after a Seal and a checkpoint come in as well.
            assert!(daemon.stop().success(), "the daemon did not stop cleanly");
            continue;
        }
        let load = Duration::from_millis(random.within(LOAD_MS));
        world.load_and_kill(daemon, round, load);
        println!(
            "round {round}: {early} kills at start, {drained:?} to drain and check, {load:?} of load, {} by SMTP and {} \
             submissions acknowledged so far",
            world.totals.smtp, world.totals.submissions
        );
    }
    let daemon = world.sandbox.start();
    world.check("after the last kill");
    world.remove_all();
    assert!(daemon.stop().success(), "the daemon did not stop cleanly");
    let daemon = world.sandbox.start();
    world.check("at the end");
    assert!(world.sandbox.mailq().contains("is empty"));
    assert!(daemon.stop().success());
    let Totals {
        smtp,
        submissions,
        repeats,
        longest,
    } = world.totals;
    println!(
        "{rounds} rounds, {} kills, {smtp} messages by SMTP and {submissions} submissions acknowledged, none lost; \
         {repeats} copies repeated, the earliest of which had ended {longest:?} before its kill; {:?}",
        world.kills,
        start.elapsed()
    );
    assert!(
        u64::try_from(smtp).unwrap() >= rounds / 2,
        "hardly anything was sent"
    );
}

impl World {
    fn new() -> Self {
        let sandbox = Sandbox::new();
        // Makes the sandbox.
        assert!(sandbox.start().stop().success());
        Self {
            user: sandbox.user(),
            sandbox,
            acknowledged: Mutex::default(),
            settled: HashSet::new(),
            waiting: HashSet::new(),
            removed: HashSet::new(),
            repeatable: HashMap::new(),
            ended: HashMap::new(),
            kills: 0,
            recent_kills: 0,
            totals: Totals::default(),
        }
    }

    fn mailbox_path(&self) -> PathBuf {
        self.sandbox.path().join("var/mail").join(&self.user)
    }

    /// Starts the daemon and kills it after this time, whatever it is doing then.
    fn kill_at_start(&mut self, time: Duration) {
        let mut watch = Watch::new(&self.sandbox);
        let mut child = self
            .sandbox
            .spawn(&["-bD", "-O", "DaemonPortOptions=Port=0"]);
        watch.until(time);
        kill(&mut child, &mut watch);
        self.note_kill(&watch);
    }

    /// Sends by all ways until the time is up, then kills the daemon.
    fn load_and_kill(&mut self, mut daemon: Daemon, round: u64, load: Duration) {
        let mut watch = Watch::new(&self.sandbox);
        let is_over = AtomicBool::new(false);
        let number = AtomicU64::new(0);
        let address = daemon.address();
        let world = &*self;
        std::thread::scope(|scope| {
            let is_over = &is_over;
            for connection in 0..CONNECTIONS {
                scope.spawn(move || {
                    for part in 0.. {
                        // An error is the kill, or its shadow: what counts is what was acknowledged before.
                        let name = format!("{round}.{connection}.{part}");
                        if world.send_by_smtp(address, &name, is_over).is_err() {
                            break;
                        }
                    }
                });
            }
            let number = &number;
            for _ in 0..SUBMITTERS {
                scope.spawn(move || {
                    while !is_over.load(Ordering::SeqCst) {
                        let number = number.fetch_add(1, Ordering::SeqCst);
                        world.submit(&format!("{round}.s.{number}"), number);
                    }
                });
            }
            scope.spawn(move || {
                while !is_over.load(Ordering::SeqCst) {
                    // It asks the daemon; one that comes just too late runs the queue itself.
                    let output = world.sandbox.run("sendmail", &["-q"], "");
                    let code = output.status.code();
                    assert!(matches!(code, Some(0 | 75)), "{output:?}");
                }
            });
            watch.until(load);
            kill(daemon.child(), &mut watch);
            is_over.store(true, Ordering::SeqCst);
        });
        drop(daemon);
        self.note_kill(&watch);
    }

    /// Sends messages over one connection.
    fn send_by_smtp(
        &self,
        address: std::net::SocketAddr,
        name: &str,
        is_over: &AtomicBool,
    ) -> io::Result<()> {
        let mut client = SmtpClient::connect(address)?;
        for number in 0..MESSAGES_A_CONNECTION {
            if is_over.load(Ordering::SeqCst) {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            let target = match number % 6 {
                3 => Target::Elsewhere,
                5 => Target::Both,
                _ => Target::Mailbox,
            };
            let local = if number % 4 == 0 {
                "postmaster"
            } else {
                &self.user
            };
            let elsewhere = "somebody@elsewhere.example";
            let to = match target {
                Target::Mailbox => vec![local],
                Target::Elsewhere => vec![elsewhere],
                Target::Both => vec![elsewhere, local],
            };
            let token = format!("{name}.{number}");
            let content = content(&token, lines_of(number));
            match client.send("sender@client.example.test", &to, &content) {
                Ok(id) => {
                    let mut acknowledged = self.acknowledged.lock().unwrap();
                    let before = acknowledged.by_smtp.insert(id.clone(), (target, token));
                    assert_eq!(before, None, "queue id {id} was given twice");
                    let is_old = self.settled.contains(&id) || self.removed.contains(&id);
                    assert!(!is_old, "queue id {id} was given twice");
                }
                Err(error) => {
                    let is_refusal = error.kind() == io::ErrorKind::InvalidData;
                    assert!(!is_refusal, "refused under load: {error}");
                    return Err(error);
                }
            }
        }
        client.command("QUIT", "221").map(drop)
    }

    /// Runs one `sendmail`: whatever becomes of the daemon, it takes the message.
    fn submit(&self, token: &str, number: u64) {
        let content = content(token, lines_of(number));
        let output = if number.is_multiple_of(2) {
            self.sandbox
                .run("sendmail", &["-i", "postmaster"], &content)
        } else {
            let content = format!("To: {}\n{content}", self.user);
            self.sandbox.run("sendmail", &["-t", "-i"], &content)
        };
        assert!(output.status.success(), "submission {token}: {output:?}");
        let mut acknowledged = self.acknowledged.lock().unwrap();
        assert!(acknowledged.submitted.insert(token.to_owned()));
    }

    /// Notes what may be delivered again after a kill: what is in the mailbox and was not logged as delivered a
    /// [`REPEAT_WINDOW`] before.
    fn note_kill(&mut self, watch: &Watch) {
        self.kills += 1;
        self.recent_kills += 1;
        self.ended = watch.ended_before_kill();
        for copy in copies(&self.sandbox.mailbox()) {
            let is_settled = self
                .ended
                .get(&copy.id)
                .is_some_and(|age| *age >= REPEAT_WINDOW);
            if !is_settled {
                *self.repeatable.entry(copy.id).or_default() += 1;
            }
        }
    }

    /// Waits until nothing for the mailbox is left in a queue, looks for every message, and empties the mailbox.
    fn check(&mut self, when: &str) {
        let (sandbox, user) = (&self.sandbox, &self.user);
        wait_for("an end of the client queue", || {
            let output = sandbox.run("mailq", &["-Ac"], "");
            String::from_utf8_lossy(&output.stdout)
                .contains("is empty")
                .then_some(())
        });
        let queue = wait_for("an end of local deliveries", || {
            let listing = sandbox.mailq();
            (!mentions_local(&listing, user)).then(|| queued_ids(&listing))
        });
        let copies = copies(&sandbox.mailbox());
        fs::rename(self.mailbox_path(), sandbox.path().join("checked"))
            .or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            })
            .unwrap();
        let acknowledged = std::mem::take(self.acknowledged.get_mut().unwrap());
        self.totals.smtp += acknowledged.by_smtp.len();
        self.totals.submissions += acknowledged.submitted.len();

        let mut by_id: HashMap<&str, (usize, bool)> = HashMap::new();
        let mut by_token: HashMap<&str, HashSet<&str>> = HashMap::new();
        for copy in &copies {
            let entry = by_id.entry(&copy.id).or_default();
            entry.0 += 1;
            entry.1 |= copy.is_whole;
            if let Some(token) = &copy.token {
                by_token.entry(token).or_default().insert(&copy.id);
            }
            // A kill may cut the copy that was being appended; the message then comes again, whole.
            assert!(
                copy.is_whole || self.repeatable.contains_key(&copy.id),
                "{when}: {} is cut, and no kill hit its delivery: {}",
                copy.id,
                copy.end
            );
        }
        let is_whole = |id: &str| by_id.get(id).is_some_and(|(_, is_whole)| *is_whole);
        for (id, (target, token)) in &acknowledged.by_smtp {
            if matches!(target, Target::Mailbox | Target::Both) {
                assert!(is_whole(id), "{when}: {id} ({token}) is lost");
                let ids = &by_token[token.as_str()];
                assert_eq!(ids.len(), 1, "{when}: {token} was accepted as {ids:?}");
            }
            if matches!(target, Target::Elsewhere | Target::Both) {
                self.waiting.insert(id.clone());
            }
        }
        for token in &acknowledged.submitted {
            let ids = by_token.get(token.as_str());
            let is_there = ids.is_some_and(|ids| ids.iter().any(|id| is_whole(id)));
            if !is_there {
                wait_for(
                    &format!("{when}: submission {token}, which is lost"),
                    || {
                        let mailbox = sandbox.mailbox();
                        mailbox.contains(&format!("\nend {token}\n")).then_some(())
                    },
                );
                panic!("{when}: submission {token} was in no listing, and came later");
            }
            // What a kill leaves without an answer is handed over again, by the submitter or by the client queue.
            let count = ids.map_or(0, HashSet::len);
            let allowed = 1 + self.recent_kills;
            assert!(count <= allowed, "{when}: {token} came {count} times");
        }
        for id in &self.waiting {
            assert!(queue.contains(id), "{when}: {id} is lost from the queue");
        }
        for id in &queue {
            assert!(
                !self.removed.contains(id),
                "{when}: {id} was removed, and is back"
            );
        }
        let mut repeats = 0;
        for (id, (count, _)) in &by_id {
            assert!(
                !self.settled.contains(*id),
                "{when}: {id} was delivered, recorded, and delivered again"
            );
            let allowed = 1 + self.repeatable.get(*id).copied().unwrap_or(0);
            assert!(
                *count <= allowed,
                "{when}: {id} was delivered {count} times"
            );
            repeats += count - 1;
            if *count > 1 {
                let age = self.ended.get(*id).copied().unwrap_or_default();
                self.totals.longest = self.totals.longest.max(age);
            }
        }
        let most = REPEATS_MAX * self.recent_kills;
        assert!(repeats <= most, "{when}: {repeats} repetitions");
        self.totals.repeats += repeats;
        let ids: Vec<String> = by_id.keys().map(|id| (*id).to_owned()).collect();
        self.settled.extend(ids);
        self.repeatable.clear();
        self.ended.clear();
        self.recent_kills = 0;
    }

    /// Has everything removed that waits. The answer means that it is done, whatever comes next.
    fn remove_all(&mut self) {
        let socket = self.sandbox.path().join("run/control");
        let request = Request::Change {
            change: Change::Remove,
            selection: Selection::all(Kind::Normal),
        };
        let mut conversation = Conversation::begin(&socket, &request).unwrap();
        let mut removed = HashSet::new();
        while let Some(frame) = conversation.next_frame().unwrap() {
            if let Frame::Text(text) = frame {
                let id = text
                    .strip_suffix(" removed")
                    .unwrap_or_else(|| panic!("{text}"));
                removed.insert(id.to_owned());
            }
        }
        for id in self.waiting.drain() {
            assert!(removed.contains(&id), "{id} is lost from the queue");
        }
        self.removed.extend(removed);
    }
}

fn kill(child: &mut Child, watch: &mut Watch) {
    // The last look comes before the kill: what it does not show ended later.
    watch.look();
    child.kill().unwrap();
    child.wait().unwrap();
    watch.killed_at = now();
}

/// Looks at the log again and again, to know when a line was there.
struct Watch {
    log: PathBuf,
    start: u64,
    looks: Vec<(Instant, u64)>,
    killed_at: Instant,
}

impl Watch {
    fn new(sandbox: &Sandbox) -> Self {
        let log = sandbox.path().join("var/log/maillog");
        let start = fs::metadata(&log).map_or(0, |found| found.len());
        Self {
            log,
            start,
            looks: Vec::new(),
            killed_at: now(),
        }
    }

    fn look(&mut self) {
        let bytes = fs::metadata(&self.log).map_or(0, |found| found.len());
        self.looks.push((now(), bytes));
    }

    fn until(&mut self, time: Duration) {
        let start = now();
        wait_for("the time of a kill", || {
            self.look();
            (start.elapsed() >= time).then_some(())
        });
    }

    /// The ids whose local delivery was logged before the kill, and how long before at least.
    fn ended_before_kill(&self) -> HashMap<String, Duration> {
        use std::os::unix::fs::FileExt;
        let end = self.looks.last().map_or(self.start, |(_, bytes)| *bytes);
        let mut text = vec![0; usize::try_from(end - self.start).unwrap()];
        if !text.is_empty() {
            let file = fs::File::open(&self.log).unwrap();
            file.read_exact_at(&mut text, self.start).unwrap();
        }
        let text = String::from_utf8_lossy(&text);
        let mut ended = HashMap::new();
        let (mut at, mut look) = (self.start, 0);
        for line in text.split_inclusive('\n') {
            at += line.len() as u64;
            while self.looks.get(look).is_some_and(|(_, bytes)| *bytes < at) {
                look += 1;
            }
            let Some((seen, _)) = self.looks.get(look) else {
                break;
            };
            if line.contains(", mailer=local, ")
                && line.contains(", stat=Sent")
                && let Some(id) = line.split(": ").nth(1)
            {
                ended.insert(id.to_owned(), self.killed_at.duration_since(*seen));
            }
        }
        ended
    }
}

/// Lines of the body of a message with this number.
fn lines_of(number: u64) -> usize {
    if number % LARGE.0 == LARGE.0 / 2 {
        return LARGE.1;
    }
    let at = usize::try_from(number).unwrap() % BODY_LINES.len();
    BODY_LINES[at]
}

/// A message whose body tells what it is in its first line and again in its last.
fn content(token: &str, lines: usize) -> String {
    let filling = "0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz\n";
    let filling = filling.repeat(lines);
    format!("Subject: {token}\n\nbegin {token} {lines}\n{filling}end {token}\n")
}

/// A copy of a message in the mailbox.
struct Copy {
    id: String,
    token: Option<String>,
    is_whole: bool,
    end: String,
}

/// The copies in an mbox file that have a queue id.
fn copies(mailbox: &str) -> Vec<Copy> {
    let messages = mailbox.split("\nFrom ");
    messages
        .filter_map(|message| message.split_once('\n').map(|(_, rest)| rest))
        .filter_map(|message| {
            let id = id_of(message)?.to_owned();
            let first = message
                .split_once("\nbegin ")
                .and_then(|(_, rest)| rest.lines().next())
                .and_then(|line| line.split_once(' '));
            let is_whole = first.is_some_and(|(token, lines)| {
                let whole = lines.parse().map(|lines| content(token, lines));
                whole.is_ok_and(|whole| {
                    let body = whole.split_once("\n\n").map_or("", |(_, body)| body);
                    message.contains(body.trim_end())
                })
            });
            let end: String = message.chars().rev().take(60).collect();
            Some(Copy {
                id,
                token: first.map(|(token, _)| token.to_owned()),
                is_whole,
                end: end.chars().rev().collect(),
            })
        })
        .collect()
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

/// The ids of a listing.
fn queued_ids(listing: &str) -> HashSet<String> {
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
