//! One leased message: expand, route, attempt, record.
//!
//! Order (I7, SPOOL 5): what aliases lead to is recorded and durable before any of it is attempted; then one update
//! holds every outcome of the run, the next due time and the reports they ask for, and the spool removes a message of
//! which nothing is pending in the same transaction. The update is handed over, not waited for: the message's permit
//! of the window is given back when it is durable. A message with very many recipients is worked on in pieces of
//! [`PIECE_RECIPIENTS_MAX`], each recorded before the next is attempted, under one lease.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;

use super::bulk;
use super::hosts::{HostSlot, Start};
use super::report::{self, Ages, Result as Reported, Wanted};
use super::scheduler::due_after;
use super::{Shared, UNREADABLE_MAX, locked};
use crate::address::{Address, ReversePath};
use crate::deliver::dsn::{Fate, RETURNED_BYTES_MAX};
use crate::deliver::{
    Attempt, ContentOpener, DeliveryRecipient, Destination, NextHop, Place, Verbose,
};
use crate::envelope::{
    ControllingUser, Delivery, Envelope, MessageId, Outcome, Recipient, RecipientId, RecipientState,
};
use crate::maillog::{QueueId, Severity, ToLine};
use crate::route::{Handover, Hop, Route, RouteError, Router, Taken};
use crate::spool::{Lease, NewMessage, SpoolError, StoredMessage, Update};
use crate::status::Status;

/// Sendmail's priority: what each recipient adds, and what each attempt.
const PRIORITY_OF_RECIPIENT: i64 = 30_000;
const PRIORITY_OF_ATTEMPT: i64 = 90_000;
/// The LogLevel at which the output of programs that deliver is logged: that of failures.
const OUTPUT_LOG_LEVEL: u32 = 8;

/// Recipients that are routed, attempted and recorded together.
const PIECE_RECIPIENTS_MAX: usize = 5000;

/// A message as it was read, and how far it has been worked on.
struct Begun {
    message: StoredMessage,
    /// Recipients known so far.
    taken: Taken,
    /// Where the next piece begins.
    next: usize,
}

/// How far a run has come when its message is read again, after an expansion or a wait for a host.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Reached {
    /// Where its next piece begins.
    next: usize,
    /// Whether the sender had been warned before it; `None` when it begins.
    had_warned: Option<bool>,
}

/// What routing made of a piece of a message.
struct Plan {
    message: StoredMessage,
    taken: Taken,
    /// Where the piece begins.
    first: usize,
    /// Where the next piece begins, if there is one.
    next: Option<usize>,
    /// How often the piece was tried before.
    tries: u32,
    /// Who stands behind it, for the log.
    sender: Option<ControllingUser>,
    /// Recipients that aliases replace; if there are any, nothing else is done before they are recorded.
    expansions: Vec<(RecipientId, Vec<Recipient>)>,
    /// Outcomes that need no attempt.
    settled: Vec<(RecipientId, Outcome)>,
    groups: Vec<Group>,
    /// Lines for those who watch.
    lines: Vec<String>,
}

/// Recipients that one attempt serves.
struct Group {
    destination: Destination,
    /// Whose the message is for them, if not the envelope's.
    sender: Option<String>,
    recipients: Vec<DeliveryRecipient>,
}

/// Recipients with the same outcome, for one line of the log.
struct Ended {
    outcomes: Vec<(RecipientId, Outcome)>,
    took: Option<Duration>,
}

/// A message's place, which others may have as soon as it is dropped.
struct OwnPlace {
    permit: Option<OwnedSemaphorePermit>,
    shared: Arc<Shared>,
}

impl Drop for OwnPlace {
    fn drop(&mut self) {
        self.permit = None;
        self.shared.wake.notify_one();
    }
}

/// Ends what watchers see of a run, however that ends, unless it is to go on later.
struct Watched {
    shared: Arc<Shared>,
    id: MessageId,
    goes_on: bool,
}

impl Drop for Watched {
    fn drop(&mut self) {
        if !self.goes_on {
            self.shared.unwatch(self.id);
        }
    }
}

/// Works on one message until it is recorded, or given back.
pub(super) async fn run(
    shared: Arc<Shared>,
    lease: Lease,
    mut reached: Reached,
    place: OwnedSemaphorePermit,
    window: OwnedSemaphorePermit,
) {
    let id = lease.id();
    let may_be_held = lease.may_be_held();
    let verbose = shared.verbose(id);
    let mut watched = Watched {
        shared: Arc::clone(&shared),
        id,
        goes_on: false,
    };
    let (mut lease, mut place) = (lease, Some(place));
    let mut begun = None;
    loop {
        let worker = Arc::clone(&shared);
        let work = move || plan(&worker, id, begun, reached, may_be_held);
        let planned = match tokio::task::spawn_blocking(work).await {
            Ok(planned) => planned,
            Err(error) => {
                let text = format!("routing ended by an internal error: {error}");
                shared.maillog.system_error(Some(id), "root", &text);
                keep_aside(&shared, lease);
                return;
            }
        };
        let mut plan = match planned {
            Ok(Some(plan)) => plan,
            Ok(None) => return,
            Err(error) => {
                let text = format!("message can't be read: {error}");
                shared.maillog.system_error(Some(id), "root", &text);
                keep_aside(&shared, lease);
                return;
            }
        };
        if let Some(verbose) = &verbose {
            plan.lines.drain(..).for_each(|line| verbose(&line));
        }
        reached = Reached {
            next: plan.first,
            had_warned: Some(plan.message.has_warned),
        };
        if !plan.expansions.is_empty() {
            if let Err(error) = expand(&shared, &lease, plan).await {
                not_recorded(&shared, lease, &error);
                return;
            }
            // Looked at afresh, with the ids the spool gave; not whom this run has attempted.
            begun = None;
            continue;
        }
        let groups = plan.groups.iter();
        let destinations: Vec<Destination> =
            groups.map(|group| group.destination.clone()).collect();
        let slots = if destinations.is_empty() {
            Vec::new()
        } else {
            let now = shared.clock.monotonic();
            match shared
                .hosts
                .start_or_park(lease, reached, &destinations, now)
            {
                Start::Slots(kept, slots) => {
                    lease = kept;
                    slots
                }
                Start::Parked => {
                    watched.goes_on = true;
                    return;
                }
                Start::Refused(kept) => {
                    put_off(&shared, kept, &plan, window);
                    return;
                }
            }
        };
        let permit = match place.take() {
            Some(permit) => permit,
            None => match Arc::clone(&shared.places).acquire_owned().await {
                Ok(permit) => permit,
                // Places are never closed; without one nothing is attempted.
                Err(_) => return,
            },
        };
        let own_place = Place::new(OwnPlace {
            permit: Some(permit),
            shared: Arc::clone(&shared),
        });
        let ended = attempt(&shared, &mut plan, slots, own_place, verbose.as_ref()).await;
        let Some(next) = plan.next else {
            record(&shared, lease, plan, ended, window).await;
            return;
        };
        match record_piece(&shared, &lease, plan, ended).await {
            Some((message, taken)) => {
                begun = Some(Begun {
                    message,
                    taken,
                    next,
                });
            }
            None => return,
        }
    }
}

/// Records what aliases lead to. I7: durable before any of it is attempted.
async fn expand(shared: &Shared, lease: &Lease, plan: Plan) -> Result<(), SpoolError> {
    let Plan {
        expansions,
        message,
        taken,
        ..
    } = plan;
    drop(taken);
    let mut unrecorded = bulk::Unrecorded::new(expansions, &message);
    drop(message);
    let bytes_max = shared.spool.expansion_bytes_max();
    while let Some(expansions) = unrecorded.next_update(bytes_max) {
        let update = Update {
            expansions,
            ..Update::default()
        };
        shared.spool.record(lease, update)?.await?;
    }
    Ok(())
}

/// Reads a message, for a run from where it has come to. `None` if it is not to be tried. Blocks: disk.
fn begin(
    shared: &Shared,
    id: MessageId,
    reached: Reached,
    may_be_held: bool,
) -> Result<Option<Begun>, SpoolError> {
    let mut message = match shared.spool.message(id) {
        Ok(message) => message,
        Err(SpoolError::NotFound(_)) => return Ok(None),
        Err(error) => return Err(error),
    };
    if message.is_held && !may_be_held {
        return Ok(None);
    }
    if let Some(had_warned) = reached.had_warned {
        message.has_warned = had_warned;
    }
    let mut taken = Taken::new();
    for (at, (recipient, state)) in message.recipients.iter().enumerate() {
        if state.is_final() || at < reached.next {
            taken.note(&shared.router, recipient, state);
        }
    }
    Ok(Some(Begun {
        message,
        taken,
        next: reached.next,
    }))
}

/// Reads a message, unless it was, and routes its next piece. `None` if there is nothing to do for it. Blocks: disk, and
/// as routing does.
fn plan(
    shared: &Shared,
    id: MessageId,
    begun: Option<Begun>,
    reached: Reached,
    may_be_held: bool,
) -> Result<Option<Plan>, SpoolError> {
    let begun = match begun {
        // The operator may have held it or removed it since.
        Some(begun) => Some(begun).filter(|_| match shared.spool.is_held(id) {
            Some(is_held) => !is_held || may_be_held,
            None => false,
        }),
        None => begin(shared, id, reached, may_be_held)?,
    };
    let Some(Begun {
        message,
        mut taken,
        next: first,
    }) = begun
    else {
        return Ok(None);
    };
    let router = &shared.router;
    // What is left of an expansion comes before all else.
    let is_rest = |recipient: &Recipient| recipient.parent.is_some() && router.is_rest(recipient);
    let has_rest = message
        .recipients
        .iter()
        .any(|(recipient, state)| !state.is_final() && is_rest(recipient));
    let mut next = None;
    let mut taken_on = 0;
    let mut tries_before = 0;
    let mut expansions = Vec::new();
    let mut settled = Vec::new();
    // What is said of an expansion is said when it is recorded, the rest when the message is looked at afresh.
    let (mut steps, mut lines) = (Vec::new(), Vec::new());
    let mut groups: Vec<Group> = Vec::new();
    let mut positions: HashMap<(Destination, Option<String>), usize> = HashMap::new();
    let is_null = message.envelope.reverse_path == ReversePath::Null;
    let mut is_pending = false;
    for (number, (recipient, state)) in (0_u32..).zip(&message.recipients).skip(first) {
        let RecipientState::Pending { tries, .. } = state else {
            continue;
        };
        is_pending = true;
        if has_rest && recipient.parent.is_some() && !is_rest(recipient) {
            taken.note(router, recipient, state);
            continue;
        }
        if taken_on == PIECE_RECIPIENTS_MAX && !has_rest {
            next = usize::try_from(number).ok();
            break;
        }
        taken_on += 1;
        tries_before = tries_before.max(*tries);
        let id = RecipientId(number);
        let route = router.resolve(recipient, &mut taken);
        let say = |lines: &mut Vec<String>, text: &str| {
            lines.push(format!("{}... {text}", recipient.shown()));
        };
        let (destination, user) = match route {
            Route::Expand { ref shown, .. } => {
                say(&mut steps, shown);
                expansions.push((id, route.into_children(id)));
                continue;
            }
            Route::Failed { status, text } => {
                say(&mut lines, &text);
                settled.push((id, Outcome::new(Delivery::Failed, status, "local", text)));
                continue;
            }
            Route::Deferred { status, text } => {
                let text = format!("Deferred: {text}");
                say(&mut lines, &text);
                settled.push((id, Outcome::new(Delivery::Deferred, status, "local", text)));
                continue;
            }
            Route::Hold { reason } => {
                let text = format!("Deferred: {reason}");
                say(&mut lines, &text);
                // 4.4.0: network or routing status that says no more.
                let status = Status::new(4, 4, 0);
                settled.push((id, Outcome::new(Delivery::Deferred, status, "esmtp", text)));
                continue;
            }
            Route::Local { user, .. } => (Destination::Mailbox, user),
            Route::Program { command } => (Destination::Programs, command),
            Route::File { path } => (Destination::Files, path),
            Route::Mailer { mailer, host, user } => (Destination::Named { mailer, host }, user),
            Route::Smtp {
                is_relay,
                hop,
                address,
            } => {
                let destination = Destination::Smtp {
                    mailer: if is_relay { "relay" } else { "esmtp" },
                    hop: next_hop(hop),
                };
                (destination, address)
            }
        };
        // I7: what the null sender sends stays the null sender's, whoever owns the list.
        let sender = recipient.sender.clone().filter(|_| !is_null);
        let sender = match shown_sender(router, &message.envelope, sender, &destination) {
            Ok(sender) => sender,
            Err(error) => {
                let text = format!("Deferred: {error}");
                say(&mut lines, &text);
                let mailer = destination.mailer();
                // 4.3.0: trouble of ours.
                let status = Status::new(4, 3, 0);
                settled.push((id, Outcome::new(Delivery::Deferred, status, mailer, text)));
                continue;
            }
        };
        let key = (destination, sender);
        let at = *positions.entry(key.clone()).or_insert_with(|| {
            let (destination, sender) = key;
            groups.push(Group {
                destination,
                sender,
                recipients: Vec::new(),
            });
            groups.len() - 1
        });
        if let Some(group) = groups.get_mut(at) {
            group.recipients.push(DeliveryRecipient {
                id,
                recipient: recipient.clone(),
                user,
            });
        }
    }
    if !is_pending {
        return Ok(None);
    }
    let sender = message
        .envelope
        .arrival
        .submitter
        .clone()
        .or_else(|| router.controlling_user(&message.envelope.reverse_path));
    Ok(Some(Plan {
        message,
        taken,
        first,
        next,
        tries: tries_before,
        sender,
        lines: if expansions.is_empty() { lines } else { steps },
        expansions,
        settled,
        groups,
    }))
}

/// Who takes over what is delivered so, as rewriting sees it; `None` for files, which get messages as they are.
fn handover(destination: &Destination) -> Option<Handover> {
    match destination {
        Destination::Files => None,
        Destination::Smtp { .. } => Some(Handover::Away),
        Destination::Mailbox | Destination::Programs | Destination::Named { .. } => {
            Some(Handover::Here)
        }
    }
}

/// Whose the message is for a destination, if not the envelope's, after masquerading.
fn shown_sender(
    router: &Router,
    envelope: &Envelope,
    owner: Option<String>,
    destination: &Destination,
) -> Result<Option<String>, RouteError> {
    let Some(to) = handover(destination).filter(|to| router.is_rewriting(*to)) else {
        return Ok(owner);
    };
    let path = match owner.as_deref().map(Address::parse) {
        Some(Ok(address)) => ReversePath::Mailbox(address),
        _ => envelope.reverse_path.clone(),
    };
    let shown = router.envelope_sender(&path, to)?;
    Ok(match shown.address() {
        Some(address) if shown != path => Some(address.to_string()),
        _ => owner,
    })
}

fn next_hop(hop: Hop) -> NextHop {
    match hop {
        Hop::Mx(domain) => NextHop::Mx(domain),
        Hop::Host { name, port } => NextHop::Host { name, port },
        Hop::Several(hops) => NextHop::Several(hops.into_iter().map(next_hop).collect()),
    }
}

/// Makes the attempts for which there are slots, all at once.
async fn attempt(
    shared: &Arc<Shared>,
    plan: &mut Plan,
    slots: Vec<(usize, HostSlot)>,
    place: Place,
    verbose: Option<&Verbose>,
) -> Vec<Ended> {
    let id = plan.message.id;
    let spool = shared.spool.clone();
    let content: ContentOpener = Arc::new(move || {
        spool
            .content(id)
            .map(|reader| Box::new(reader) as Box<dyn Read + Send>)
            .map_err(io::Error::other)
    });
    let envelope = Arc::new(plan.message.envelope.clone());
    let mut attempts = Vec::new();
    for (at, slot) in slots {
        let Some(group) = plan.groups.get_mut(at) else {
            continue;
        };
        let envelope = match group.sender.as_deref().map(Address::parse) {
            Some(Ok(sender)) => Arc::new(Envelope {
                reverse_path: ReversePath::Mailbox(sender),
                ..plan.message.envelope.clone()
            }),
            _ => Arc::clone(&envelope),
        };
        let attempt = Attempt {
            id,
            envelope,
            recipients: std::mem::take(&mut group.recipients),
            content: rewritten(&shared.router, &content, &group.destination),
            content_bytes: plan.message.content_bytes,
            verbose: verbose.cloned(),
            is_first: plan.tries == 0,
            place: place.clone(),
        };
        let work = (shared.deliver)(group.destination.clone(), attempt);
        let clock = Arc::clone(&shared.clock);
        attempts.push(async move {
            let begun = clock.monotonic();
            let outcomes = work.await;
            drop(slot);
            Ended {
                outcomes,
                took: Some(clock.monotonic().saturating_sub(begun)),
            }
        });
    }
    drop(place);
    if attempts.len() == 1 {
        return match attempts.pop() {
            Some(only) => vec![only.await],
            None => Vec::new(),
        };
    }
    let mut tasks = tokio::task::JoinSet::new();
    for attempt in attempts {
        tasks.spawn(attempt);
    }
    let mut ended = Vec::new();
    while let Some(done) = tasks.join_next().await {
        // An attempt without outcome leaves its recipients pending.
        ended.extend(done.ok());
    }
    ended
}

/// The content as a destination gets it.
fn rewritten(
    router: &Arc<Router>,
    content: &ContentOpener,
    destination: &Destination,
) -> ContentOpener {
    let Some(to) = handover(destination).filter(|to| router.is_rewriting(*to)) else {
        return Arc::clone(content);
    };
    let (router, content) = (Arc::clone(router), Arc::clone(content));
    Arc::new(move || Ok(router.rewritten(content()?, to)))
}

/// One update of what a piece came to, with the reports in it.
struct Recorded {
    update: Update,
    wanted: Vec<Wanted>,
}

/// What a piece came to, judged and logged, to be recorded in one update or several.
struct Concluded {
    /// In the order in which they are recorded; reports are made of each.
    updates: std::vec::IntoIter<Vec<Reported>>,
    ages: Ages,
    is_last_resort: bool,
    retry_unix_ms: u64,
}

impl Concluded {
    /// The next update, with its reports composed, and whether it is the last; `None` after that.
    async fn next(
        &mut self,
        shared: &Arc<Shared>,
        message: &StoredMessage,
    ) -> Option<(Recorded, bool)> {
        let results = self.updates.next()?;
        let (wanted, has_warned) = if self.is_last_resort {
            (Vec::new(), false)
        } else {
            report::wanted(&shared.settings.reports, message, &results, self.ages)
        };
        let reports = compose(shared, message, &wanted).await;
        let is_deferred = results
            .iter()
            .any(|result| result.outcome.result == Delivery::Deferred);
        let update = Update {
            outcomes: results.into_iter().map(|r| (r.id, r.outcome)).collect(),
            next_due_unix_ms: is_deferred.then_some(self.retry_unix_ms),
            has_warned,
            reports,
            ..Update::default()
        };
        let is_last = self.updates.len() == 0;
        Some((Recorded { update, wanted }, is_last))
    }
}

/// Judges and logs what a piece came to.
fn conclude(shared: &Shared, lease: &Lease, plan: &mut Plan, mut ended: Vec<Ended>) -> Concluded {
    ended.insert(
        0,
        Ended {
            outcomes: std::mem::take(&mut plan.settled),
            took: None,
        },
    );
    let message = &plan.message;
    let age = Duration::from_millis(
        shared
            .steady_unix_ms()
            .saturating_sub(message.envelope.arrival.unix_ms),
    );
    let tries = plan.tries;
    if plan.next.is_none() {
        // Before the log tells of it: who reads that and asks for a queue run gets this message tried again.
        shared.spool.end_attempt(lease);
    }
    log(shared, message, plan.sender.as_ref(), &ended, age, tries);

    let policy = &shared.settings.retry;
    let is_last_resort = report::is_last_resort(&shared.settings.reports, message);
    let mut results = Vec::new();
    for (id, outcome) in ended.into_iter().flat_map(|ended| ended.outcomes) {
        results.push(judge(
            id,
            outcome,
            is_last_resort,
            policy.gives_up(age),
            policy.give_up_after,
        ));
    }
    if is_last_resort && results.iter().any(|r| r.outcome.result == Delivery::Failed) {
        let text = "a report for the postmaster could not be delivered and is given up";
        shared.maillog.system_error(Some(message.id), "root", text);
    }
    let ages = Ages {
        warned_at: policy
            .warn_after
            .filter(|_| policy.warns(age, message.has_warned)),
        give_up_after: policy.give_up_after,
    };
    let is_told = |result: &Reported| !is_last_resort && report::is_told(message, result, ages);
    let updates = bulk::pieces(results, shared.spool.update_bytes_max(), is_told);
    Concluded {
        updates: updates.into_iter(),
        ages,
        is_last_resort,
        retry_unix_ms: due_after(shared, policy.next_due_in(tries.saturating_add(1), age)),
    }
}

/// Records an update, waits for it and logs its reports; whether it is durable.
async fn record_now(shared: &Shared, lease: &Lease, recorded: Recorded) -> bool {
    let Recorded { update, wanted } = recorded;
    let reports = ids_of(&update.reports);
    let result = match shared.spool.record(lease, update) {
        Ok(ticket) => ticket.await.map(|_| ()),
        Err(error) => Err(error),
    };
    match &result {
        Ok(()) => log_reports(shared, lease.id(), &wanted, &reports),
        Err(error) => outcome_lost(shared, lease.id(), error),
    }
    result.is_ok()
}

fn outcome_lost(shared: &Shared, id: MessageId, error: &SpoolError) {
    let text = format!("outcome not recorded: {error}");
    shared.maillog.system_error(Some(id), "root", &text);
}

fn log_reports(shared: &Shared, id: MessageId, wanted: &[Wanted], reports: &[MessageId]) {
    for (wanted, report) in wanted.iter().zip(reports) {
        shared
            .maillog
            .report_made(id, *report, wanted.cause, &wanted.reason);
    }
}

fn ids_of(reports: &[NewMessage]) -> Vec<MessageId> {
    reports.iter().map(|report| report.id).collect()
}

/// Records a piece that is not the last, durably; gives back what the next one needs, or nothing after an error.
async fn record_piece(
    shared: &Arc<Shared>,
    lease: &Lease,
    mut plan: Plan,
    ended: Vec<Ended>,
) -> Option<(StoredMessage, Taken)> {
    let mut concluded = conclude(shared, lease, &mut plan, ended);
    // Whether the sender has been warned stays as it was when the run began: this run warns of all that it finds late.
    while let Some((recorded, _)) = concluded.next(shared, &plan.message).await {
        if !record_now(shared, lease, recorded).await {
            return None;
        }
    }
    Some((plan.message, plan.taken))
}

/// Hands over what the last piece came to, in one update unless that would be too large.
async fn record(
    shared: &Arc<Shared>,
    lease: Lease,
    mut plan: Plan,
    ended: Vec<Ended>,
    window: OwnedSemaphorePermit,
) {
    let mut concluded = conclude(shared, &lease, &mut plan, ended);
    let id = plan.message.id;
    let last = loop {
        match concluded.next(shared, &plan.message).await {
            Some((last, true)) => break last,
            // Waited for: whether anything is pending is asked of what is recorded.
            Some((recorded, false)) => {
                if !record_now(shared, &lease, recorded).await {
                    return;
                }
            }
            None => return,
        }
    };
    let reports = ids_of(&last.update.reports);
    let wanted = last.wanted;
    match shared.spool.finish(lease, last.update) {
        Ok(ticket) => {
            log_reports(shared, id, &wanted, &reports);
            let shared = Arc::clone(shared);
            tokio::spawn(async move {
                let result = ticket.await;
                drop(window);
                shared.wake.notify_one();
                if let Err(error) = result {
                    outcome_lost(&shared, id, &error);
                }
            });
        }
        Err(error) => outcome_lost(shared, id, &error),
    }
}

/// What an outcome comes to: a deferral at the end of a message's time is a failure.
fn judge(
    id: RecipientId,
    mut outcome: Outcome,
    is_last_resort: bool,
    gives_up: bool,
    give_up_after: Duration,
) -> Reported {
    let fate = match outcome.result {
        Delivery::Delivered if matches!(&*outcome.mailer, "esmtp" | "relay") => Fate::Relayed,
        Delivery::Delivered => Fate::Delivered,
        Delivery::Failed if is_last_resort && !gives_up => {
            // Nobody could be told: somebody may repair it before the time is up.
            outcome.result = Delivery::Deferred;
            outcome.status.class = 4;
            outcome.text = format!("Deferred: {}", outcome.text);
            Fate::Delayed
        }
        Delivery::Failed => Fate::Failed,
        Delivery::Deferred if gives_up => {
            outcome.result = Delivery::Failed;
            outcome.status = Status::EXPIRED;
            Fate::Expired(give_up_after)
        }
        Delivery::Deferred => Fate::Delayed,
    };
    Reported { id, outcome, fate }
}

/// Composes the reports, with as much of the content as may be returned.
async fn compose(
    shared: &Arc<Shared>,
    message: &StoredMessage,
    wanted: &[Wanted],
) -> Vec<NewMessage> {
    if wanted.is_empty() {
        return Vec::new();
    }
    let spool = shared.spool.clone();
    let id = message.id;
    let content = tokio::task::spawn_blocking(move || -> Vec<u8> {
        let mut content = Vec::new();
        let limit = u64::try_from(RETURNED_BYTES_MAX).unwrap_or(u64::MAX);
        // Content that can't be read is not returned; the report goes out all the same.
        if let Ok(reader) = spool.content(id) {
            let _ = reader.take(limit).read_to_end(&mut content);
        }
        content
    })
    .await
    .unwrap_or_default();
    let now = shared.clock.unix_ms();
    wanted
        .iter()
        .map(|wanted| {
            let id = shared.spool.new_id();
            wanted.compose(&shared.settings.reports, message, id, now, &content)
        })
        .collect()
}

/// Writes the `to=` lines: one for the recipients of an attempt that ended alike.
fn log(
    shared: &Shared,
    message: &StoredMessage,
    sender: Option<&ControllingUser>,
    ended: &[Ended],
    age: Duration,
    tries: u32,
) {
    let recipients = i64::try_from(
        message
            .recipients
            .iter()
            .filter(|(_, state)| *state != RecipientState::Expanded)
            .count(),
    )
    .unwrap_or(i64::MAX);
    let priority = i64::try_from(message.content_bytes)
        .unwrap_or(i64::MAX)
        .saturating_add(recipients.saturating_mul(PRIORITY_OF_RECIPIENT))
        .saturating_add(i64::from(tries).saturating_mul(PRIORITY_OF_ATTEMPT));
    for ended in ended {
        // Outcomes by what the log shows of them; the first recipient of each stands for its line.
        let mut lines: BTreeMap<(&str, &str, &str), (usize, Vec<String>)> = BTreeMap::new();
        for (at, (id, outcome)) in ended.outcomes.iter().enumerate() {
            if let Some(recipient) = recipient(message, *id) {
                let reply = outcome.reply.as_deref().unwrap_or_default();
                let key = (outcome.text.as_str(), reply, outcome.relay.as_str());
                let line = lines.entry(key).or_insert((at, Vec::new()));
                line.1.push(recipient.shown());
            }
        }
        for (at, shown) in lines.into_values() {
            let Some((id, outcome)) = ended.outcomes.get(at) else {
                continue;
            };
            let shown: Vec<&str> = shown.iter().map(String::as_str).collect();
            let own = recipient(message, *id).and_then(|r| r.controlling_user.as_ref());
            shared.maillog.attempted(&ToLine {
                id: message.id,
                recipients: &shown,
                controlling_user: own.or(sender),
                delay: age,
                attempt_time: Some(ended.took.unwrap_or_default()),
                priority,
                outcome,
            });
            for line in outcome.program.iter().flat_map(|program| &program.output) {
                let text = format!("{}: {line}", outcome.mailer);
                let id = QueueId::Known(message.id);
                shared
                    .maillog
                    .write(Severity::Info, OUTPUT_LOG_LEVEL, id, &text);
            }
        }
    }
}

/// No room even to wait for a host: tried again by its due time.
fn put_off(shared: &Arc<Shared>, lease: Lease, plan: &Plan, window: OwnedSemaphorePermit) {
    let tries = plan.tries.saturating_add(1);
    let outcomes = plan.groups.iter().flat_map(|group| {
        group.recipients.iter().map(|recipient| {
            let text = "Deferred: too many messages wait for this host";
            let status = Status::new(4, 4, 5);
            let mailer = group.destination.mailer();
            let outcome = Outcome::new(Delivery::Deferred, status, mailer, text);
            (recipient.id, outcome)
        })
    });
    let update = Update {
        outcomes: outcomes.chain(plan.settled.iter().cloned()).collect(),
        next_due_unix_ms: Some(due_after(shared, shared.settings.retry.wait_after(tries))),
        ..Update::default()
    };
    let id = lease.id();
    match shared.spool.finish(lease, update) {
        Ok(ticket) => {
            tokio::spawn(async move {
                // Nothing was attempted: if this is lost, the message is due again.
                let _ = ticket.await;
                drop(window);
            });
        }
        Err(error) => {
            let text = format!("deferral not recorded: {error}");
            shared.maillog.system_error(Some(id), "root", &text);
        }
    }
}

fn not_recorded(shared: &Shared, lease: Lease, error: &SpoolError) {
    let text = format!("expansion not recorded: {error}");
    shared.maillog.system_error(Some(lease.id()), "root", &text);
    keep_aside(shared, lease);
}

/// Keeps the lease of a message that can't be worked on, so that it is tried again only when the lease ends.
fn keep_aside(shared: &Shared, lease: Lease) {
    let mut kept = locked(&shared.unreadable);
    let oldest = (kept.len() >= UNREADABLE_MAX)
        .then(|| kept.pop_front())
        .flatten();
    kept.push_back(lease);
    drop(kept);
    drop(oldest);
}

fn recipient(message: &StoredMessage, id: RecipientId) -> Option<&Recipient> {
    let at = usize::try_from(id.0).ok()?;
    message.recipients.get(at).map(|(recipient, _)| recipient)
}
