//! The power is cut before every call that changes the disk while the queue works on a message whose expansion, outcomes
//! and failures each take several updates (D14), and again while it recovers from that.
//!
//! Whoever is attempted is looked up on what is durable at that moment: the whole expansion must be there, nobody twice,
//! and nobody left to be found. After each cut another process works on what is left, and the mail that went out before
//! and after the cut together is compared with what the cut left: who had an outcome is never mailed again, who had none
//! is mailed once more, and each failure stands in exactly one report.
//!
//! `SEED` (1) chooses what of the unsynced survives; a failure prints the line that replays it. `CUT_STRIDE` (1): of so
//! many calls one is cut at.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use super::{Deliver, Queue, QueueSettings, ReportSettings, RetryPolicy, locked};
use crate::address::ReversePath;
use crate::clock::{Clock, ManualClock};
use crate::config::DeliveryMode;
use crate::deliver::Attempt;
use crate::envelope::{
    Delivery, Envelope, MessageId, Outcome, Recipient, RecipientId, RecipientState,
};
use crate::maillog::{Destination, LogSettings, Maillog};
use crate::route::{Router, RouterParts};
use crate::spool::{PowerDisk, Spool, SpoolOptions};
use crate::status::Status;

const START_MS: u64 = 1_795_367_807_000;
/// So small that an update holds about 90 recipients of an expansion, and a report four failures.
const SEGMENT_BYTES: u64 = 32 << 10;
const HOST: &str = "gold.example.test";
const MEMBERS: usize = 230;
/// One member in so many does not exist.
const FAILING: usize = 23;
const SENDER: &str = "sender@client.test";
/// How long a process may take until nothing is left to do.
const DEADLINE: Duration = Duration::from_secs(60);
/// Parts of what was not synced that are tried at each cut, besides nothing and all.
const PARTS: usize = 2;
/// Of so many states one is cut again in the recovery, at one of so many calls.
const AGAIN: usize = 29;

fn member(number: usize) -> String {
    format!("m{number:03}@remote.test")
}

fn fails(target: &str) -> bool {
    (0..MEMBERS)
        .step_by(FAILING)
        .any(|number| member(number) == target)
}

/// What the world outside has seen.
#[derive(Debug, Clone, Default)]
struct Ledger {
    /// The message, once its commit was acknowledged.
    accepted: Option<MessageId>,
    /// How often each member was attempted.
    attempts: BTreeMap<String, usize>,
    /// Reports that reached the sender, by id.
    reports: BTreeMap<MessageId, String>,
    complaints: Vec<String>,
}

impl Ledger {
    fn attempted(&self, target: &str) -> usize {
        self.attempts.get(target).copied().unwrap_or(0)
    }
}

/// What a cut left, and what had been seen by then.
struct Cut {
    disk: PowerDisk,
    ledger: Ledger,
    /// How to come here again.
    place: String,
}

fn options() -> SpoolOptions {
    SpoolOptions {
        segment_bytes: SEGMENT_BYTES,
        checkpoint_bytes: 48 << 10,
        spares_max: 2,
        process_id: 7,
        outcome_delay: Duration::ZERO,
        ..SpoolOptions::default()
    }
}

fn router() -> Arc<Router> {
    let names = |from: usize, to: usize| (from..to).map(member).collect::<Vec<_>>().join(", ");
    let list = format!("{}, inner, m003@remote.test", names(0, 150));
    // Who is in both is one recipient.
    let inner = format!("{}, {}", names(140, MEMBERS), names(0, 5));
    let parts = RouterParts::of_aliases(HOST, &[("list", &list), ("inner", &inner)]);
    Arc::new(Router::new(parts).unwrap())
}

fn settings() -> QueueSettings {
    QueueSettings {
        mode: DeliveryMode::Background,
        run_interval: None,
        parallel_max: 8,
        parallel_per_host_max: 2,
        retry: RetryPolicy {
            first: Duration::from_secs(300),
            longest: Duration::from_secs(3600),
            warn_after: None,
            give_up_after: Duration::from_secs(432_000),
        },
        reports: ReportSettings {
            host_name: HOST.into(),
            double_bounce_address: None,
            postmaster_copy: None,
            returns_body: false,
        },
    }
}

/// Who has an outcome and who has none, as a spool shows it.
#[derive(Default)]
struct Seen {
    /// Members, and whether each is settled.
    members: BTreeMap<String, bool>,
    twice: BTreeSet<String>,
    /// Whoever is still to be expanded.
    open: Vec<String>,
}

impl Seen {
    fn of(spool: &Spool, id: MessageId) -> Self {
        let mut seen = Self::default();
        let message = match spool.message(id) {
            Ok(message) => message,
            Err(error) => {
                seen.open.push(format!("unreadable: {error}"));
                return seen;
            }
        };
        for (recipient, state) in &message.recipients {
            if recipient.target.starts_with('m') {
                let is_new = seen
                    .members
                    .insert(recipient.target.clone(), state.is_final())
                    .is_none();
                if !is_new {
                    seen.twice.insert(recipient.target.clone());
                }
            } else if *state != RecipientState::Expanded {
                seen.open.push(format!("{} {state:?}", recipient.target));
            }
        }
        seen
    }
}

fn open(disk: &PowerDisk) -> (Spool, crate::spool::Writer) {
    let clock = Arc::new(ManualClock::at(START_MS));
    let (spool, writer, report) = Spool::open(disk.storage(), clock, options()).unwrap();
    assert!(!report.is_damaged, "{:?}", report.remarks);
    (spool, writer)
}

/// Mailers that answer at once, after a look at what is durable.
fn mailers(disk: &PowerDisk, ledger: &Arc<Mutex<Ledger>>) -> Deliver {
    let (disk, ledger) = (disk.clone(), Arc::clone(ledger));
    Arc::new(move |_, attempt: Attempt| {
        let durable = disk.durable();
        let (spool, _writer) = open(&durable);
        let mut content = String::new();
        let mut reader = (attempt.content)().unwrap();
        reader.read_to_string(&mut content).unwrap();
        let mut ledger = locked(&ledger);
        let targets = || attempt.recipients.iter().map(|r| &r.recipient.target);
        if spool.ids().binary_search(&attempt.id).is_err() {
            let what = format!("{} is attempted and not durable", attempt.id);
            ledger.complaints.push(what);
        } else if targets().any(|target| target != SENDER) {
            let seen = Seen::of(&spool, attempt.id);
            if !seen.open.is_empty() || seen.members.len() < MEMBERS || !seen.twice.is_empty() {
                let what = format!(
                    "attempted with {} of {MEMBERS} members durable, twice: {:?}, open: {:?}",
                    seen.members.len(),
                    seen.twice,
                    seen.open
                );
                ledger.complaints.push(what);
            }
        }
        let outcomes = attempt.recipients.iter().map(|to| {
            let target = &to.recipient.target;
            let outcome = if target == SENDER {
                ledger.reports.insert(attempt.id, content.clone());
                Outcome::new(Delivery::Delivered, Status::OK, "esmtp", "Sent")
            } else {
                *ledger.attempts.entry(target.clone()).or_default() += 1;
                match fails(target) {
                    true => {
                        Outcome::new(Delivery::Failed, Status::NO_USER, "esmtp", "User unknown")
                    }
                    false => Outcome::new(Delivery::Delivered, Status::OK, "esmtp", "Sent"),
                }
            };
            (to.id, outcome)
        });
        let outcomes: Vec<(RecipientId, Outcome)> = outcomes.collect();
        Box::pin(async move { outcomes })
    })
}

/// How a process is watched.
struct Watch {
    /// Cut at every so many calls, beginning with this one.
    stride: usize,
    first: usize,
    seed: u64,
    place: String,
}

/// A process from its start until nothing is left to do. What cuts at the calls that are watched would have left.
async fn live(disk: &PowerDisk, ledger: &Arc<Mutex<Ledger>>, watch: Watch) -> Vec<Cut> {
    let cuts: Arc<Mutex<Vec<Cut>>> = Arc::default();
    let (sink, watched, seen) = (Arc::clone(&cuts), disk.clone(), Arc::clone(ledger));
    let mut call = 0;
    disk.before_each_change(Some(Box::new(move || {
        call += 1;
        if call % watch.stride != watch.first % watch.stride {
            return;
        }
        let ledger = locked(&seen).clone();
        let disks = watched.after_power_cut(PARTS, watch.seed ^ (call as u64) << 20);
        let at = disks.into_iter().enumerate().map(|(state, disk)| Cut {
            disk,
            ledger: ledger.clone(),
            place: format!("{} call {call} state {state}", watch.place),
        });
        locked(&sink).extend(at);
    })));
    let (spool, writer) = open(disk);
    // Mail that was committed and not acknowledged may be there.
    let found = spool.ids().first().copied();
    let writer = std::thread::spawn(move || writer.run());
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(START_MS));
    let log = LogSettings {
        destination: Destination::Discard,
        tag: "sm-mta".into(),
        host: "gold".into(),
        level: 0,
    };
    let log = Maillog::open(&log, Arc::clone(&clock));
    let deliver = mailers(disk, ledger);
    let queue = Queue::start_with(spool.clone(), router(), deliver, settings(), clock, log);
    let accepted = locked(ledger).accepted.or(found);
    locked(ledger).accepted = accepted;
    if accepted.is_none() {
        let to = vec![Recipient::new("list@gold.example.test")];
        let sender = ReversePath::parse(SENDER).unwrap();
        let mut transaction = spool.begin().unwrap();
        transaction
            .append_content(b"Subject: test\r\n\r\nx")
            .unwrap();
        let mut envelope = Envelope::new(sender, to);
        envelope.arrival.unix_ms = START_MS;
        let id = transaction.commit(envelope).await.unwrap();
        locked(ledger).accepted = Some(id);
    }
    tokio::time::timeout(DEADLINE, queue.finished())
        .await
        .expect("nothing left to do within the deadline");
    queue.shutdown().await;
    spool.close();
    let _ = tokio::task::spawn_blocking(move || writer.join()).await;
    disk.before_each_change(None);
    let left: Vec<_> = spool
        .ids()
        .into_iter()
        .map(|id| spool.message(id))
        .collect();
    assert!(left.is_empty(), "something is left to do: {left:?}");
    std::mem::take(&mut *locked(&cuts))
}

/// Works on from a cut to the end, and compares. The states of further cuts on the way.
async fn go_on(cut: &Cut, watch: Watch) -> Vec<Cut> {
    let before = &cut.ledger;
    let (spool, _writer) = open(&cut.disk.copy());
    let live_ids = spool.ids();
    let id = before.accepted.or(live_ids.first().copied());
    let is_live = id.is_some_and(|id| live_ids.binary_search(&id).is_ok());
    let seen = id.filter(|_| is_live).map(|id| Seen::of(&spool, id));
    drop(spool);
    if let Some(twice) = seen.as_ref().map(|seen| &seen.twice) {
        assert!(twice.is_empty(), "{}: twice: {twice:?}", cut.place);
    }
    let ledger = Arc::new(Mutex::new(before.clone()));
    let cuts = live(&cut.disk, &ledger, watch).await;
    let after = locked(&ledger).clone();
    assert!(
        after.complaints.is_empty(),
        "{}: {:?}",
        cut.place,
        after.complaints
    );
    for target in (0..MEMBERS).map(member) {
        let (was, is) = (before.attempted(&target), after.attempted(&target));
        let settled = seen.as_ref().map(|seen| seen.members.get(&target));
        let place = format!("{}: {target}", cut.place);
        match settled {
            // The message has ended, or was never there and is sent anew.
            None if was > 0 => assert_eq!(is, was, "{place}: had ended"),
            None => assert!(is >= 1, "{place}: never attempted"),
            Some(None) => assert!(was == 0 && is >= 1, "{place}: unknown, {was} then {is}"),
            Some(Some(true)) => assert_eq!(is, was, "{place}: had an outcome"),
            Some(Some(false)) => assert_eq!(is, was + 1, "{place}: had none"),
        }
        let reports = after.reports.values();
        let naming = reports
            .filter(|text| text.contains(&format!("X-Actual-Recipient: rfc822; {target}\r\n")));
        assert_eq!(
            naming.count(),
            usize::from(fails(&target)),
            "{place}: reports"
        );
    }
    cuts
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn power_cuts_between_pieces_repeat_and_lose_nobody() {
    let seed = setting("SEED").unwrap_or(1);
    println!("SEED={seed}");
    let stride = usize::try_from(setting("CUT_STRIDE").unwrap_or(1)).unwrap();
    let watch = |stride, first, place: String| Watch {
        stride,
        first,
        seed,
        place,
    };
    let disk = PowerDisk::new(seed);
    let ledger = Arc::default();
    let cuts = live(&disk, &ledger, watch(stride, 0, format!("SEED={seed}"))).await;
    let ledger = locked(&ledger).clone();
    assert!(ledger.complaints.is_empty(), "{:?}", ledger.complaints);
    assert_eq!(ledger.attempts.len(), MEMBERS);
    assert!(ledger.reports.len() > 1, "failures stand in one report");
    let (mut states, mut between, mut again) = (0, 0, 0);
    for cut in cuts {
        states += 1;
        // What this test is for: a part of the expansion is durable, and the rest is not.
        let (spool, _writer) = open(&cut.disk.copy());
        let is_between = spool.ids().first().is_some_and(|id| {
            let seen = Seen::of(&spool, *id);
            !seen.open.is_empty() && !seen.members.is_empty()
        });
        between += usize::from(is_between);
        let rare = if states % AGAIN == 0 {
            AGAIN
        } else {
            usize::MAX
        };
        let further = go_on(&cut, watch(rare, states, cut.place.clone())).await;
        for cut in further {
            again += 1;
            go_on(&cut, watch(usize::MAX, 0, cut.place.clone())).await;
        }
    }
    println!("{states} states, {between} of them between pieces, {again} cut again");
    assert!(between > 0 && again > 0 || stride > 1, "{between}, {again}");
}
