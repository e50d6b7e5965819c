//! The queue over a real spool in a folder, with a clock moved by hand and mailers made for the test.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that does not work"
)]

use std::collections::HashMap;
use std::fs;
use std::future::Future;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use diligence::address::ReversePath;
use diligence::clock::{Clock, ManualClock};
use diligence::config::host::HostName;
use diligence::config::{Blameless, DeliveryMode, DontBlame, RouteOptions};
use diligence::deliver::{Attempt, Destination};
use diligence::envelope::{
    Arrival, Delivery, Envelope, MessageId, Notify, Outcome, Recipient, RecipientState,
};
use diligence::maillog::{self, LogSettings, Maillog};
use diligence::queue::{
    Deliver, Queue, QueueHandle, QueueSettings, ReportSettings, RetryPolicy, WINDOW_MAX,
};
use diligence::route::{Router, RouterParts, Table};
use diligence::spool::storage::OsStorage;
use diligence::spool::{Spool, SpoolOptions};
use diligence::status::Status;
use diligence::users::Users;

const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);
const START_UNIX_MS: u64 = 1_795_367_807_000;
const PASSWD: &str = "\
alice:x:1000:1000::/home/alice:/bin/sh
bob:x:1001:1001::/home/bob:/bin/sh
carol:x:1002:1002::/home/carol:/bin/sh
";
/// How long a test waits for what must happen.
const DEADLINE: Duration = Duration::from_secs(20);

/// What the mailers of a test were asked to do, and what they answer.
#[derive(Default)]
struct Mailbag {
    /// `ID recipient` of every recipient of every attempt.
    attempts: Mutex<Vec<(MessageId, String)>>,
    /// Answers by recipient: delivered if none is given.
    answers: Mutex<HashMap<String, Answer>>,
    /// Reports and other mail as it was delivered, by recipient.
    content: Mutex<Vec<(String, String)>>,
    now: AtomicUsize,
    most: AtomicUsize,
}

#[derive(Clone, Copy)]
enum Answer {
    Defer,
    Fail,
    /// Never ends until told to.
    Hang,
}

impl Mailbag {
    fn answer(&self, recipient: &str, answer: Answer) {
        self.answers
            .lock()
            .unwrap()
            .insert(recipient.to_owned(), answer);
    }

    fn deliver(self: &Arc<Self>) -> Deliver {
        let bag = Arc::clone(self);
        Arc::new(move |destination, attempt| {
            let bag = Arc::clone(&bag);
            Box::pin(async move { bag.attempt(&destination, attempt).await })
        })
    }

    async fn attempt(
        &self,
        destination: &Destination,
        attempt: Attempt,
    ) -> Vec<(diligence::envelope::RecipientId, Outcome)> {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        let mut outcomes = Vec::new();
        for recipient in &attempt.recipients {
            let target = recipient.recipient.target.clone();
            self.attempts
                .lock()
                .unwrap()
                .push((attempt.id, target.clone()));
            let answer = self.answers.lock().unwrap().get(&target).copied();
            let mailer = destination.mailer();
            let outcome = match answer {
                None => {
                    let mut content = String::new();
                    let mut reader = (attempt.content)().unwrap();
                    std::io::Read::read_to_string(&mut reader, &mut content).unwrap();
                    self.content.lock().unwrap().push((target, content));
                    Outcome::new(Delivery::Delivered, Status::OK, mailer, "Sent")
                }
                Some(Answer::Defer) => {
                    let status = Status::new(4, 4, 1);
                    let text = "Deferred: Connection refused by mx.test.";
                    Outcome::new(Delivery::Deferred, status, mailer, text)
                }
                Some(Answer::Fail) => {
                    let mut outcome =
                        Outcome::new(Delivery::Failed, Status::NO_USER, mailer, "User unknown");
                    outcome.reply = Some("550 5.1.1 no such user here".into());
                    outcome
                }
                Some(Answer::Hang) => loop {
                    if !matches!(
                        self.answers.lock().unwrap().get(&target),
                        Some(Answer::Hang)
                    ) {
                        break Outcome::new(Delivery::Delivered, Status::OK, mailer, "Sent");
                    }
                    tokio::task::yield_now().await;
                    tokio::time::sleep(Duration::from_millis(1)).await;
                },
            };
            outcomes.push((recipient.id, outcome));
        }
        self.now.fetch_sub(1, Ordering::SeqCst);
        outcomes
    }

    /// How often a recipient was attempted.
    fn tries(&self, target: &str) -> usize {
        let attempts = self.attempts.lock().unwrap();
        attempts.iter().filter(|(_, to)| to == target).count()
    }

    fn delivered(&self, target: &str) -> Vec<String> {
        let content = self.content.lock().unwrap();
        content
            .iter()
            .filter(|(to, _)| to == target)
            .map(|(_, content)| content.clone())
            .collect()
    }
}

/// A host in a folder: spool, router, log. The queue is started by the test.
struct Site {
    folder: tempfile::TempDir,
    clock: Arc<ManualClock>,
    spool: Spool,
    writer: Option<JoinHandle<()>>,
    bag: Arc<Mailbag>,
    aliases_work: Arc<AtomicBool>,
    settings: QueueSettings,
}

fn open_spool(folder: &Path, clock: &Arc<ManualClock>) -> (Spool, JoinHandle<()>) {
    open_spool_slow(folder, clock, Duration::ZERO)
}

/// A spool whose outcomes may wait so long for their batch.
fn open_spool_slow(
    folder: &Path,
    clock: &Arc<ManualClock>,
    outcome_delay: Duration,
) -> (Spool, JoinHandle<()>) {
    let folder = folder.join("mqueue");
    fs::create_dir_all(&folder).unwrap();
    let (spool, writer, report) = Spool::open(
        Arc::new(OsStorage::open(&folder).unwrap()),
        Arc::clone(clock) as Arc<dyn Clock>,
        SpoolOptions {
            segment_bytes: 4 << 20,
            outcome_delay,
            ..SpoolOptions::default()
        },
    )
    .unwrap();
    assert!(!report.is_damaged, "{:?}", report.remarks);
    (spool, std::thread::spawn(move || writer.run()))
}

impl Site {
    fn new() -> Self {
        Self::with_outcome_delay(Duration::ZERO)
    }

    fn with_outcome_delay(delay: Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("passwd"), PASSWD).unwrap();
        let clock = Arc::new(ManualClock::at(START_UNIX_MS));
        let (spool, writer) = open_spool_slow(folder.path(), &clock, delay);
        Self {
            folder,
            clock,
            spool,
            writer: Some(writer),
            bag: Arc::default(),
            aliases_work: Arc::new(AtomicBool::new(true)),
            settings: QueueSettings {
                mode: DeliveryMode::Background,
                run_interval: None,
                parallel_max: 8,
                parallel_per_host_max: 2,
                retry: RetryPolicy {
                    first: 5 * MINUTE,
                    longest: 4 * HOUR,
                    warn_after: Some(4 * HOUR),
                    give_up_after: 120 * HOUR,
                },
                reports: ReportSettings {
                    host_name: "gold.example.test".into(),
                    double_bounce_address: Some("postmaster".into()),
                    postmaster_copy: None,
                    returns_body: true,
                },
            },
        }
    }

    fn router(&self) -> Arc<Router> {
        let fixed = Table::fixed(
            "aliases",
            &[
                ("info", "alice, bob, carol"),
                ("team", "info, alice, far@remote.test"),
                ("loop1", "loop2"),
                ("loop2", "loop1"),
                ("mixed", "alice, nosuchuser"),
                ("pipe", "|/bin/cat"),
                ("postmaster", "carol"),
            ],
        );
        let works = Arc::clone(&self.aliases_work);
        let aliases = Table::new("aliases", move |key| {
            if works.load(Ordering::SeqCst) {
                Ok(fixed.get(key).unwrap().map(String::into_bytes))
            } else {
                Err("damaged map".into())
            }
        });
        let path = |name: &str| self.folder.path().join(name);
        let parts = RouterParts {
            files: diligence_maps::FileAccess::default(),
            options: RouteOptions {
                // Temporary folders lie in a sticky one.
                dont_blame: DontBlame::default().with(Blameless::TrustStickyBit),
                local_host_names: path("local-host-names"),
                relay_domains: path("relay-domains"),
                max_alias_recursion: 10,
                ..RouteOptions::default()
            },
            host: HostName {
                full: "gold.example.test".into(),
                aliases: vec!["gold.example.test".into()],
            },
            addresses: vec![],
            users: Arc::new(Users::new(Some(&path("passwd")), Some(&path("home")))),
            aliases: vec![aliases],
            access: None,
            tables: diligence::route::Tables::default(),
            notice: Arc::new(|_: &str| ()),
        };
        Arc::new(Router::new(parts).unwrap())
    }

    fn start(&self) -> QueueHandle {
        let clock: Arc<dyn Clock> = Arc::clone(&self.clock) as _;
        let log = Maillog::open(
            &LogSettings {
                destination: maillog::Destination::File(self.folder.path().join("maillog")),
                tag: "sm-mta".into(),
                host: "gold".into(),
                level: 9,
            },
            Arc::clone(&clock),
        );
        Queue::start_with(
            self.spool.clone(),
            self.router(),
            self.bag.deliver(),
            self.settings.clone(),
            clock,
            log,
        )
    }

    /// Puts a message into the spool, as a session does.
    async fn accept(&self, sender: &str, recipients: &[&str]) -> MessageId {
        let recipients = recipients.iter().map(|to| Recipient::new(*to)).collect();
        self.accept_as(sender, recipients).await
    }

    async fn accept_as(&self, sender: &str, recipients: Vec<Recipient>) -> MessageId {
        let mut envelope = Envelope::new(ReversePath::parse(sender).unwrap(), recipients);
        envelope.arrival = Arrival {
            unix_ms: self.clock.unix_ms(),
            protocol: "ESMTP".into(),
            daemon: "MTA".into(),
            ..Arrival::default()
        };
        let mut transaction = self.spool.begin().unwrap();
        transaction
            .append_content(b"Subject: test\r\n\r\nhello\r\n")
            .unwrap();
        transaction.commit(envelope).await.unwrap()
    }

    /// Moves the clock and lets the queue do what is due then.
    async fn advance(&self, queue: &QueueHandle, by: Duration) {
        self.clock.advance(by);
        settle(queue).await;
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("maillog")).unwrap_or_default()
    }

    /// The same host after a crash: its files as they are now, another process's spool over them.
    fn after_crash(&self) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::copy(
            self.folder.path().join("passwd"),
            folder.path().join("passwd"),
        )
        .unwrap();
        let from = self.folder.path().join("mqueue");
        let to = folder.path().join("mqueue");
        // Spares are being made and renamed meanwhile: a copy counts if the names stayed as they were.
        loop {
            let _ = fs::remove_dir_all(&to);
            fs::create_dir(&to).unwrap();
            let before = names_in(&from);
            let is_copied = before
                .iter()
                .all(|name| fs::copy(from.join(name), to.join(name)).is_ok());
            if is_copied && names_in(&from) == before {
                break;
            }
        }
        let (spool, writer) = open_spool(folder.path(), &self.clock);
        Self {
            folder,
            clock: Arc::clone(&self.clock),
            spool,
            writer: Some(writer),
            bag: Arc::clone(&self.bag),
            aliases_work: Arc::clone(&self.aliases_work),
            settings: self.settings.clone(),
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.spool.close();
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

fn names_in(folder: &Path) -> std::collections::BTreeSet<std::ffi::OsString> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect()
}

async fn settle(queue: &QueueHandle) {
    within(queue.finished()).await;
}

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, work)
        .await
        .expect("within the deadline")
}

/// Waits until something is true.
async fn until(what: &str, mut is_true: impl FnMut() -> bool) {
    let begun = tokio::time::Instant::now();
    while !is_true() {
        assert!(begun.elapsed() < DEADLINE, "waited for: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_is_delivered_logged_and_gone() {
    let site = Site::new();
    let queue = site.start();
    let id = site
        .accept("alice@gold.example.test", &["bob@gold.example.test"])
        .await;
    settle(&queue).await;
    assert_eq!(site.bag.delivered("bob@gold.example.test").len(), 1);
    assert_eq!(site.spool.ids(), []);
    let log = site.log();
    assert!(
        log.contains(&format!(
            "{id}: to=<bob@gold.example.test>, ctladdr=<alice@gold.example.test> ("
        )),
        "{log}"
    );
    assert!(
        log.contains(
            "delay=00:00:00, xdelay=00:00:00, mailer=local, pri=30024, dsn=2.0.0, stat=Sent"
        ),
        "{log}"
    );
    within(queue.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deferred_mail_is_tried_at_growing_intervals() {
    let site = Site::new();
    let queue = site.start();
    site.bag.answer("x@remote.test", Answer::Defer);
    site.accept("s@sender.test", &["x@remote.test"]).await;
    settle(&queue).await;
    let mut tries = 1;
    assert_eq!(site.bag.tries("x@remote.test"), tries);
    // 5, 10, 20, 40, 80 minutes; then the warning's time, 4 hours, is nearer than 160.
    for wait in [5, 10, 20, 40, 80, 85] {
        site.advance(&queue, (wait - 1) * MINUTE).await;
        assert_eq!(
            site.bag.tries("x@remote.test"),
            tries,
            "{wait} minutes too early"
        );
        site.advance(&queue, MINUTE).await;
        tries += 1;
        assert_eq!(
            site.bag.tries("x@remote.test"),
            tries,
            "after {wait} minutes"
        );
    }
    let log = site.log();
    assert!(log.contains("delay=00:05:00"), "{log}");
    assert!(log.contains("pri=120024"), "each attempt adds 90000: {log}");
    assert!(
        log.contains("stat=Deferred: Connection refused by mx.test."),
        "{log}"
    );
    within(queue.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sender_is_warned_once_and_told_at_the_end() {
    let site = Site::new();
    let queue = site.start();
    site.bag.answer("x@remote.test", Answer::Defer);
    let id = site.accept("s@sender.test", &["x@remote.test"]).await;
    settle(&queue).await;
    site.advance(&queue, 4 * HOUR).await;
    let warnings = site.bag.delivered("s@sender.test");
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("Subject: Warning: could not send message for past 4 hours"));
    assert!(warnings[0].contains("Action: delayed"), "{}", warnings[0]);
    let log = site.log();
    assert!(
        log.contains("sender notify: Warning: could not send message for past 4 hours"),
        "{log}"
    );
    for _ in 0..28 {
        site.advance(&queue, 4 * HOUR).await;
    }
    assert_eq!(site.bag.delivered("s@sender.test").len(), 1);
    assert!(site.spool.ids().contains(&id));
    site.advance(&queue, 4 * HOUR).await;
    let reports = site.bag.delivered("s@sender.test");
    assert_eq!(reports.len(), 2);
    assert!(reports[1].contains("Status: 4.4.7"), "{}", reports[1]);
    assert!(reports[1].contains("hello"), "the message goes back");
    assert!(
        site.log()
            .contains("sender notify: Cannot send message for 5 days")
    );
    assert_eq!(site.spool.ids(), []);
    within(queue.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_set_ahead_by_mistake_returns_nothing() {
    let site = Site::new();
    let queue = site.start();
    site.bag.answer("x@remote.test", Answer::Defer);
    let id = site.accept("s@sender.test", &["x@remote.test"]).await;
    settle(&queue).await;
    site.clock
        .step_wall_to(START_UNIX_MS + 400 * 24 * 3_600_000);
    site.advance(&queue, 5 * MINUTE).await;
    assert_eq!(site.bag.tries("x@remote.test"), 2);
    assert_eq!(site.bag.tries("s@sender.test"), 0);
    assert_eq!(site.spool.ids(), [id]);
    within(queue.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_reported_in_one_message_and_the_rest_delivered() {
    let site = Site::new();
    let queue = site.start();
    for bad in ["x@remote.test", "y@other.test"] {
        site.bag.answer(bad, Answer::Fail);
    }
    let to = ["x@remote.test", "y@other.test", "nosuch", "alice"];
    let id = site.accept("s@sender.test", &to).await;
    settle(&queue).await;
    let reports = site.bag.delivered("s@sender.test");
    assert_eq!(reports.len(), 1);
    for part in [
        "x@remote.test",
        "y@other.test",
        "nosuch@gold.example.test",
        "Action: failed",
    ] {
        assert!(reports[0].contains(part), "{part}: {}", reports[0]);
    }
    assert_eq!(site.bag.tries("alice"), 1);
    assert_eq!(site.spool.ids(), []);
    let log = site.log();
    assert!(log.contains(": DSN: User unknown"), "{log}");
    assert!(log.contains(&format!("{id}: to=<nosuch>, delay=")), "{log}");
    within(queue.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn notify_never_and_delay_are_obeyed() {
    let site = Site::new();
    let queue = site.start();
    let notify = |target: &str, notify| Recipient {
        notify,
        ..Recipient::new(target)
    };
    let only = |success, failure, delay| Notify::When {
        success,
        failure,
        delay,
    };
    site.bag.answer("x@remote.test", Answer::Fail);
    site.accept_as(
        "n@sender.test",
        vec![notify("x@remote.test", Notify::Never)],
    )
    .await;
    site.accept_as(
        "d@sender.test",
        vec![notify("x@remote.test", only(false, false, true))],
    )
    .await;
    site.accept_as(
        "s@sender.test",
        vec![notify("bob", only(true, false, false))],
    )
    .await;
    settle(&queue).await;
    assert_eq!(site.bag.tries("n@sender.test"), 0);
    assert_eq!(site.bag.tries("d@sender.test"), 0);
    let receipts = site.bag.delivered("s@sender.test");
    assert_eq!(receipts.len(), 1);
    assert!(
        receipts[0].contains("Subject: Return receipt"),
        "{}",
        receipts[0]
    );
    within(queue.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_null_sender_is_never_bounced_but_postmaster_is_told() {
    let site = Site::new();
    let queue = site.start();
    site.bag.answer("x@remote.test", Answer::Fail);
    site.accept("", &["x@remote.test"]).await;
    settle(&queue).await;
    // postmaster is an alias of carol here.
    let told = site.bag.delivered("carol");
    assert_eq!(told.len(), 1);
    assert!(told[0].contains("Postmaster notify"), "{}", told[0]);
    assert!(site.log().contains(": postmaster notify: User unknown"));
    assert_eq!(site.spool.ids(), []);

    // A report that can't be delivered to the sender is a double bounce, and goes the same way.
    site.bag.answer("s@sender.test", Answer::Fail);
    site.accept("s@sender.test", &["x@remote.test"]).await;
    settle(&queue).await;
    assert_eq!(site.bag.delivered("carol").len(), 2);
    assert_eq!(site.spool.ids(), []);
    within(queue.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_nobody_takes_waits_and_then_ends_without_another() {
    let site = Site::new();
    let queue = site.start();
    site.bag.answer("x@remote.test", Answer::Fail);
    site.bag.answer("carol", Answer::Fail);
    site.accept("", &["x@remote.test"]).await;
    settle(&queue).await;
    assert_eq!(site.spool.ids().len(), 1, "somebody may repair it");
    for _ in 0..31 {
        site.advance(&queue, 4 * HOUR).await;
    }
    assert_eq!(site.spool.ids(), []);
    assert!(
        site.log()
            .contains("could not be delivered and is given up")
    );
    within(queue.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_reach_everybody_once_and_loops_are_reported() {
    let site = Site::new();
    let queue = site.start();
    site.accept(
        "s@sender.test",
        &["team", "ALICE@gold.example.test", "bob", "info"],
    )
    .await;
    settle(&queue).await;
    for name in ["alice", "carol", "far@remote.test"] {
        assert_eq!(site.bag.tries(name), 1, "{name}");
    }
    assert_eq!(site.bag.tries("bob"), 1);
    assert_eq!(site.bag.tries("ALICE@gold.example.test"), 0);

    site.accept("s@sender.test", &["loop1"]).await;
    site.accept("m@sender.test", &["mixed"]).await;
    settle(&queue).await;
    assert!(
        site.log()
            .contains(": DSN: aliasing/forwarding loop broken")
    );
    let report = site.bag.delivered("m@sender.test");
    assert_eq!(report.len(), 1);
    assert!(report[0].contains("nosuchuser"), "{}", report[0]);
    assert_eq!(site.bag.tries("alice"), 2);
    assert_eq!(site.spool.ids(), []);
    within(queue.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expansion_survives_a_restart_and_is_not_made_twice() {
    let site = Site::new();
    site.bag.answer("bob", Answer::Defer);
    let id = {
        let queue = site.start();
        let id = site.accept("s@sender.test", &["info"]).await;
        settle(&queue).await;
        within(queue.shutdown()).await;
        id
    };
    assert_eq!(site.bag.tries("alice"), 1);
    let site = site.after_crash();
    let stored = site.spool.message(id).unwrap();
    let states: Vec<_> = stored
        .recipients
        .iter()
        .map(|(recipient, state)| (recipient.target.as_str(), state.is_final()))
        .collect();
    assert_eq!(
        states,
        [
            ("info", true),
            ("carol", true),
            ("bob", false),
            ("alice", true)
        ]
    );
    assert_eq!(stored.recipients[0].1, RecipientState::Expanded);
    site.bag.answers.lock().unwrap().clear();
    let queue = site.start();
    site.advance(&queue, 5 * MINUTE).await;
    assert_eq!(site.bag.tries("bob"), 2);
    assert_eq!((site.bag.tries("alice"), site.bag.tries("carol")), (1, 1));
    assert_eq!(site.spool.ids(), []);
    within(queue.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_during_an_attempt_leaves_the_expansion_whole() {
    let crashed = Site::new();
    for name in ["alice", "bob", "carol"] {
        crashed.bag.answer(name, Answer::Hang);
    }
    let id = crashed.accept("s@sender.test", &["info"]).await;
    let hanging = crashed.start();
    until("the first attempt", || crashed.bag.tries("carol") == 1).await;
    let mut site = crashed.after_crash();
    site.bag = Arc::default();
    let stored = site.spool.message(id).unwrap();
    let targets: Vec<_> = stored
        .recipients
        .iter()
        .map(|(recipient, _)| recipient.target.as_str())
        .collect();
    assert_eq!(targets, ["info", "carol", "bob", "alice"]);
    let queue = site.start();
    settle(&queue).await;
    for name in ["alice", "bob", "carol"] {
        assert_eq!(site.bag.tries(name), 1, "{name}");
    }
    within(queue.shutdown()).await;
    crashed.bag.answers.lock().unwrap().clear();
    within(hanging.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_alias_map_defers_and_refuses_nobody() {
    let site = Site::new();
    site.aliases_work.store(false, Ordering::SeqCst);
    let queue = site.start();
    let id = site
        .accept("s@sender.test", &["alice", "nosuch", "x@remote.test"])
        .await;
    settle(&queue).await;
    assert_eq!(site.bag.tries("alice") + site.bag.tries("s@sender.test"), 0);
    assert_eq!(site.bag.tries("x@remote.test"), 1, "needs no alias");
    assert!(
        site.log().contains("stat=Deferred: aliases: damaged map"),
        "{}",
        site.log()
    );
    assert_eq!(site.spool.ids(), [id]);
    site.aliases_work.store(true, Ordering::SeqCst);
    site.advance(&queue, 5 * MINUTE).await;
    assert_eq!(site.bag.tries("alice"), 1);
    assert_eq!(
        site.bag.delivered("s@sender.test").len(),
        1,
        "nosuch is reported now"
    );
    assert_eq!(site.spool.ids(), []);
    within(queue.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_of_aliases_act_for_the_default_user_and_are_attempted_after_the_expansion_is_recorded()
 {
    let site = Site::new();
    let queue = site.start();
    site.bag.answer("|/bin/cat", Answer::Defer);
    let id = site.accept("s@sender.test", &["pipe"]).await;
    settle(&queue).await;
    let stored = site.spool.message(id).unwrap();
    let (recipient, state) = &stored.recipients[1];
    assert_eq!(recipient.target, "|/bin/cat");
    assert_eq!(recipient.controlling_user.as_ref().unwrap().name, "<pipe>");
    assert!(matches!(state, RecipientState::Pending { tries: 1, .. }));
    assert_eq!(site.bag.tries("|/bin/cat"), 1);
    within(queue.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_queue_mode_mail_waits_for_a_queue_run() {
    let mut site = Site::new();
    site.settings.mode = DeliveryMode::Queue;
    let queue = site.start();
    let first = site.accept("s@sender.test", &["alice"]).await;
    site.accept("s@sender.test", &["bob"]).await;
    settle(&queue).await;
    assert_eq!(site.bag.tries("alice") + site.bag.tries("bob"), 0);
    assert_eq!(queue.run_now(|id| id == first), 1);
    settle(&queue).await;
    assert_eq!((site.bag.tries("alice"), site.bag.tries("bob")), (1, 0));
    assert_eq!(queue.run_now(|_| true), 1);
    settle(&queue).await;
    assert_eq!(site.bag.tries("bob"), 1);
    within(queue.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_run_tries_what_is_not_due() {
    let site = Site::new();
    let queue = site.start();
    site.bag.answer("x@remote.test", Answer::Defer);
    site.accept("s@sender.test", &["x@remote.test"]).await;
    settle(&queue).await;
    assert_eq!(queue.run_now(|_| true), 1);
    settle(&queue).await;
    assert_eq!(site.bag.tries("x@remote.test"), 2);
    within(queue.shutdown()).await;
}

/// Who reads of a deferral in the log and runs the queue means that message, although the deferral's record is still on
/// its way; such a run passed over it.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_run_right_after_a_deferral_tries_the_message_again() {
    for mode in [DeliveryMode::Background, DeliveryMode::Queue] {
        let mut site = Site::with_outcome_delay(Duration::from_millis(300));
        site.settings.mode = mode;
        let queue = site.start();
        site.bag.answer("x@remote.test", Answer::Defer);
        let id = site.accept("s@sender.test", &["x@remote.test"]).await;
        if mode == DeliveryMode::Queue {
            queue.run_now(|_| true);
        }
        until("the deferral in the log", || {
            site.log().contains("stat=Deferred")
        })
        .await;
        assert!(site.spool.is_being_recorded(id), "else nothing is tested");
        queue.run_now(|_| true);
        // What the writer waits with goes by the clock, which must not reach the next due time.
        let mut advanced = Duration::ZERO;
        let mut recorded = |tries: usize| {
            if advanced < MINUTE {
                site.clock.advance(Duration::from_millis(300));
                advanced += Duration::from_millis(300);
            }
            site.bag.tries("x@remote.test") == tries && !site.spool.is_leased(id)
        };
        until("a second try", || recorded(2)).await;
        settle(&queue).await;
        assert_eq!(site.bag.tries("x@remote.test"), 2, "{mode:?}");
        within(queue.shutdown()).await;
    }
}

/// What is too much for one piece is worked on in several, under one lease; also where only queue runs deliver.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_for_very_many_is_tried_in_pieces_and_each_recipient_once_a_run() {
    const COUNT: usize = 11_000;
    for mode in [DeliveryMode::Background, DeliveryMode::Queue] {
        let mut site = Site::new();
        site.settings.mode = mode;
        let targets: Vec<String> = (0..COUNT).map(|n| format!("x{n}@remote.test")).collect();
        let is_deferred = |n: usize| n % 1000 == 7;
        for (n, target) in targets.iter().enumerate() {
            if is_deferred(n) {
                site.bag.answer(target, Answer::Defer);
            }
        }
        let queue = site.start();
        let to: Vec<&str> = targets.iter().map(String::as_str).collect();
        let id = site.accept("s@sender.test", &to).await;
        if mode == DeliveryMode::Queue {
            queue.run_now(|_| true);
        }
        settle(&queue).await;
        let tries = |site: &Site| {
            let mut tries: HashMap<String, usize> = HashMap::new();
            for (_, target) in site.bag.attempts.lock().unwrap().iter() {
                *tries.entry(target.clone()).or_default() += 1;
            }
            targets
                .iter()
                .map(|t| tries.get(t).copied().unwrap_or(0))
                .collect::<Vec<_>>()
        };
        assert!(tries(&site).iter().all(|count| *count == 1), "{mode:?}");
        let message = site.spool.message(id).unwrap();
        let pending = message
            .recipients
            .iter()
            .filter(|(_, state)| !state.is_final());
        assert_eq!(pending.count(), COUNT / 1000);
        queue.run_now(|_| true);
        settle(&queue).await;
        for (n, count) in tries(&site).into_iter().enumerate() {
            assert_eq!(count, if is_deferred(n) { 2 } else { 1 }, "{mode:?}: {n}");
        }
        site.bag.answers.lock().unwrap().clear();
        queue.run_now(|_| true);
        settle(&queue).await;
        assert_eq!(site.spool.ids(), []);
        within(queue.shutdown()).await;
    }
}

/// More than one report holds and more than one piece: each is told once of what happened, and who is late is warned of,
/// whichever piece it is in.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_more_than_a_report_holds_is_told_in_several() {
    const COUNT: usize = 5600;
    let site = Site::new();
    let target = |n: usize| format!("x{n}@remote.test");
    let action = |n: usize| match n % 8 {
        1 => "failed",
        2 => "relayed",
        3 => "delayed",
        _ => "",
    };
    let recipient = |n: usize| {
        match action(n) {
            "failed" => site.bag.answer(&target(n), Answer::Fail),
            "delayed" => site.bag.answer(&target(n), Answer::Defer),
            _ => {}
        }
        let notify = Notify::When {
            success: action(n) == "relayed",
            failure: true,
            delay: true,
        };
        Recipient {
            notify,
            ..Recipient::new(target(n))
        }
    };
    let id = site
        .accept_as("s@sender.test", (0..COUNT).map(recipient).collect())
        .await;
    site.clock.advance(4 * HOUR);
    let queue = site.start();
    settle(&queue).await;
    let told = || {
        let mut told = Vec::new();
        for report in site.bag.delivered("s@sender.test") {
            let mut target = String::new();
            for line in report.lines() {
                if let Some(named) = line.strip_prefix("Final-Recipient: RFC822; ") {
                    target = named.to_owned();
                } else if let Some(action) = line.strip_prefix("Action: ") {
                    let action = action.split(" (").next().unwrap_or_default();
                    told.push(format!("{target} {action}"));
                }
            }
        }
        told.sort();
        told
    };
    let mut expected: Vec<String> = (0..COUNT)
        .filter(|n| !action(*n).is_empty())
        .map(|n| format!("{} {}", target(n), action(n)))
        .collect();
    expected.sort();
    assert_eq!(told().len(), expected.len());
    assert_eq!(told(), expected);
    assert!((0..COUNT).all(|n| site.bag.tries(&target(n)) == 1));
    let pending = site.spool.message(id).unwrap();
    assert!(pending.due_unix_ms > site.clock.unix_ms(), "tried at once");
    queue.run_now(|_| true);
    settle(&queue).await;
    assert_eq!(site.bag.tries(&target(3)), 2);
    assert_eq!(told(), expected, "nobody is warned twice");
    within(queue.shutdown()).await;
}

/// What a later piece's aliases lead to is recorded and attempted without another attempt of those before.
#[tokio::test(flavor = "multi_thread")]
async fn an_expansion_in_a_later_piece_begins_nothing_anew() {
    let site = Site::new();
    site.bag.answer("far@remote.test", Answer::Defer);
    site.bag.answer("x5@remote.test", Answer::Defer);
    let queue = site.start();
    let mut to = vec!["far@remote.test".to_owned()];
    to.extend((0..5100).map(|n| format!("x{n}@remote.test")));
    to.push("team".to_owned());
    let to: Vec<&str> = to.iter().map(String::as_str).collect();
    let id = site.accept("s@sender.test", &to).await;
    settle(&queue).await;
    for target in to.iter().filter(|to| **to != "team") {
        assert_eq!(site.bag.tries(target), 1, "{target}");
    }
    for target in ["alice", "bob", "carol"] {
        assert_eq!(site.bag.tries(target), 1, "{target}");
    }
    let message = site.spool.message(id).unwrap();
    let pending = message.recipients.iter().filter(|(_, s)| !s.is_final());
    assert_eq!(pending.count(), 2);
    assert!(message.due_unix_ms > site.clock.unix_ms());
    within(queue.shutdown()).await;
}

/// Who waits for a host with a later piece does not begin anew when its turn comes.
#[tokio::test(flavor = "multi_thread")]
async fn a_later_piece_that_waits_for_its_host_begins_nothing_anew() {
    let site = Site::new();
    let queue = site.start();
    site.bag.answer("x@slow.test", Answer::Hang);
    for _ in 0..2 {
        site.accept("s@sender.test", &["x@slow.test"]).await;
    }
    let tries = |target: &str| site.bag.tries(target);
    until("the slow host to be busy", || tries("x@slow.test") == 2).await;
    site.bag.answer("x0@remote.test", Answer::Defer);
    let mut to: Vec<String> = (0..5000).map(|n| format!("x{n}@remote.test")).collect();
    to.push("z@slow.test".to_owned());
    let to: Vec<&str> = to.iter().map(String::as_str).collect();
    let id = site.accept("s@sender.test", &to).await;
    until("the first piece to be recorded", || {
        let message = site.spool.message(id).unwrap();
        message.recipients[4999].1.is_final()
    })
    .await;
    site.accept("s@sender.test", &["y@quick.test"]).await;
    until("another message", || tries("y@quick.test") == 1).await;
    site.bag.answers.lock().unwrap().remove("x@slow.test");
    settle(&queue).await;
    assert_eq!((tries("x0@remote.test"), tries("z@slow.test")), (1, 1));
    assert_eq!(site.spool.ids(), [id]);
    within(queue.shutdown()).await;
}

/// What the operator does to a message while a piece of it is attempted counts for the next piece.
#[tokio::test(flavor = "multi_thread")]
async fn a_hold_between_pieces_keeps_the_rest_and_a_removal_ends_the_run() {
    let site = Site::new();
    let queue = site.start();
    let targets: Vec<String> = (0..5100).map(|n| format!("x{n}@remote.test")).collect();
    let to: Vec<&str> = targets.iter().map(String::as_str).collect();
    let (first, last) = (to[0], to[5099]);
    let hang = || site.bag.answer(first, Answer::Hang);
    let go_on = || site.bag.answers.lock().unwrap().remove(first);
    hang();
    let id = site.accept("s@sender.test", &to).await;
    until("the first piece", || site.bag.tries(first) == 1).await;
    site.spool.hold(id, true, "root").unwrap().await.unwrap();
    go_on();
    settle(&queue).await;
    assert_eq!(site.bag.tries(last), 0);
    site.spool.hold(id, false, "root").unwrap().await.unwrap();
    settle(&queue).await;
    assert_eq!((site.bag.tries(first), site.bag.tries(last)), (1, 1));
    assert_eq!(site.spool.ids(), []);

    hang();
    let id = site.accept("s@sender.test", &to).await;
    let mut lines = queue.watch(id);
    until("the first piece", || site.bag.tries(first) == 2).await;
    site.spool.remove(id).unwrap().await.unwrap();
    go_on();
    settle(&queue).await;
    assert_eq!(site.bag.tries(last), 1);
    // Who watches sees the end of a run that could not be recorded, too.
    within(async { while lines.recv().await.is_some() {} }).await;
    within(queue.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_over_held_messages_tries_them_and_leaves_them_held() {
    let site = Site::new();
    site.bag.answer("x@remote.test", Answer::Defer);
    let deferred = site.accept("s@sender.test", &["x@remote.test"]).await;
    let delivered = site.accept("s@sender.test", &["alice"]).await;
    for id in [deferred, delivered] {
        let ticket = site.spool.quarantine(id, "spam suspect", "root").unwrap();
        ticket.await.unwrap();
    }
    let queue = site.start();
    queue.run_now(|_| true);
    settle(&queue).await;
    assert_eq!(site.bag.tries("alice"), 0);
    assert_eq!(queue.run_held_now(&[deferred, delivered]), 2);
    settle(&queue).await;
    assert_eq!(
        (site.bag.tries("alice"), site.bag.tries("x@remote.test")),
        (1, 1)
    );
    assert_eq!(site.spool.ids(), [deferred]);
    let message = site.spool.message(deferred).unwrap();
    assert!(message.is_held);
    assert_eq!(message.hold_reason.as_deref(), Some("spam suspect"));
    site.advance(&queue, 5 * HOUR).await;
    assert_eq!(site.bag.tries("x@remote.test"), 1, "held again");
    // Who watches one that is gone sees the end at once.
    let mut lines = queue.watch(delivered);
    queue.run_held_now(&[delivered]);
    assert_eq!(within(lines.recv()).await, None);
    within(queue.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queue_runs_by_interval_begin_at_once() {
    let mut site = Site::new();
    site.settings.mode = DeliveryMode::Queue;
    site.settings.run_interval = Some(1800 * Duration::from_secs(1));
    site.accept("s@sender.test", &["alice"]).await;
    let queue = site.start();
    settle(&queue).await;
    assert_eq!(site.bag.tries("alice"), 1);
    within(queue.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_host_holds_up_nobody_else() {
    let site = Site::new();
    let queue = site.start();
    site.bag.answer("x@slow.test", Answer::Hang);
    for _ in 0..40 {
        site.accept("s@sender.test", &["x@slow.test"]).await;
    }
    until("two at the slow host", || {
        site.bag.tries("x@slow.test") == 2
    })
    .await;
    for _ in 0..40 {
        site.accept("s@sender.test", &["y@quick.test"]).await;
    }
    until("the others", || site.bag.tries("y@quick.test") == 40).await;
    assert_eq!(site.bag.tries("x@slow.test"), 2, "its share and no more");
    site.bag.answers.lock().unwrap().clear();
    settle(&queue).await;
    assert_eq!(site.bag.tries("x@slow.test"), 40, "each once");
    assert_eq!(site.spool.ids(), []);
    within(queue.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_is_under_way_than_there_are_places() {
    let mut site = Site::new();
    site.settings.parallel_max = 3;
    for n in 0..60 {
        site.accept("s@sender.test", &[&format!("x@host{n}.test")])
            .await;
    }
    let queue = site.start();
    settle(&queue).await;
    assert_eq!(site.spool.ids(), []);
    let most = site.bag.most.load(Ordering::SeqCst);
    assert!((1..=3).contains(&most), "{most} at once");
    assert!(site.settings.parallel_max < WINDOW_MAX);
    within(queue.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watchers_see_the_lines_of_a_run_and_its_end() {
    let site = Site::new();
    let queue = site.start();
    let id = site.spool.new_id();
    let mut lines = queue.watch(id);
    let mut transaction = site.spool.begin_as(id).unwrap();
    transaction.append_content(b"\r\nx\r\n").unwrap();
    let recipients = vec![Recipient::new("info"), Recipient::new("nosuch")];
    let sender = ReversePath::parse("s@sender.test").unwrap();
    transaction
        .commit(Envelope::new(sender, recipients))
        .await
        .unwrap();
    let mut seen = Vec::new();
    while let Some(line) = within(lines.recv()).await {
        seen.push(line);
    }
    assert_eq!(seen[0], "<info>... aliased to alice, bob, carol");
    assert!(
        seen.contains(&"<nosuch>... User unknown".to_owned()),
        "{seen:?}"
    );
    within(queue.shutdown()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn held_messages_stay_where_they_are() {
    let site = Site::new();
    let id = site.accept("s@sender.test", &["alice"]).await;
    site.spool.hold(id, true, "root").unwrap().await.unwrap();
    let queue = site.start();
    queue.run_now(|_| true);
    settle(&queue).await;
    assert_eq!(site.bag.tries("alice"), 0);
    site.spool.hold(id, false, "root").unwrap().await.unwrap();
    settle(&queue).await;
    assert_eq!(site.bag.tries("alice"), 1);
    within(queue.shutdown()).await;
}
