//! Which message is worked on next.
//!
//! The scheduler asks the spool's index itself for what is due; wake-ups are hints, and it looks again at a fixed
//! interval in case one was lost. Three sources, in this order: messages whose busy host has room again, those of a
//! queue run, and (unless mail is delivered in queue runs alone) those that are due. It never waits for a message: a
//! run is a task of its own, bounded by the places and by the window.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{JoinError, JoinHandle, JoinSet};

use super::retry::millis;
use super::runner::{self, Reached};
use super::{Shared, locked};
use crate::config::DeliveryMode;
use crate::deliver::Mailers;
use crate::envelope::MessageId;
use crate::spool::Lease;

/// How often the index is looked at although nobody called.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// How long a message is claimed for; longer than any attempt may take.
pub(super) const LEASE_TIME: Duration = Duration::from_secs(5 * 3600);
/// After this time of waiting for a host a lease is taken anew.
const PARKED_LEASE_TRUSTED: Duration = Duration::from_secs(1800);
/// Shortest pause between two looks for which nobody called.
const SPIN_PAUSE: Duration = Duration::from_millis(20);
/// How long a shutdown waits for attempts that are under way.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(30);

/// A running queue. Dropping the handle does not stop it; [`QueueHandle::shutdown`] does.
pub struct QueueHandle {
    shared: Arc<Shared>,
    control: Arc<Control>,
    idle: watch::Receiver<Sight>,
    task: Mutex<Option<JoinHandle<()>>>,
    mailers: Option<Mailers>,
}

/// What the scheduler saw in its last pass.
#[derive(Debug, Clone, Copy, Default)]
struct Sight {
    pass: u64,
    /// Nothing was under way and nothing could be begun.
    is_idle: bool,
}

/// What the handle tells the scheduler.
#[derive(Default)]
struct Control {
    /// Messages of queue runs that are yet to be tried: all, where runs are the only source, else those held.
    run: Mutex<VecDeque<Wanted>>,
    stop: Notify,
}

/// A message of a queue run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Wanted {
    /// Unless it is held.
    Pending(MessageId),
    /// Also if it is held.
    Held(MessageId),
}

impl QueueHandle {
    pub(super) fn spawn(shared: Arc<Shared>) -> Self {
        let control = Arc::new(Control::default());
        let (tell, idle) = watch::channel(Sight::default());
        let task = tokio::spawn(schedule(Arc::clone(&shared), Arc::clone(&control), tell));
        Self {
            shared,
            control,
            idle,
            task: Mutex::new(Some(task)),
            mailers: None,
        }
    }

    pub(super) fn set_mailers(&mut self, mailers: Mailers) {
        self.mailers = Some(mailers);
    }

    /// A queue run: every pending message that `select` names is tried now, due or not. Says how many. Messages that
    /// are held stay where they are. Blocks: never; the work is done later.
    pub fn run_now(&self, mut select: impl FnMut(MessageId) -> bool) -> u64 {
        run(&self.shared, &self.control, &mut select)
    }

    /// A queue run over held messages, which stay held if they can't be delivered. Says how many. Blocks: never.
    pub fn run_held_now(&self, ids: &[MessageId]) -> u64 {
        want(&self.control, ids.iter().copied().map(Wanted::Held));
        self.shared.wake.notify_one();
        u64::try_from(ids.len()).unwrap_or(u64::MAX)
    }

    /// The lines that `-v` shows of a message's next run, until that run has ended. Ask before the message is
    /// committed to miss nothing. At most [`super::WATCHERS_MAX`] messages are watched; of further ones the end is
    /// seen at once.
    #[must_use]
    pub fn watch(&self, id: MessageId) -> mpsc::Receiver<String> {
        self.shared.watch(id)
    }

    /// Looks for due messages now, instead of within [`LOOK_INTERVAL`]: for whoever moved the clock.
    pub fn wake(&self) {
        self.shared.wake.notify_one();
    }

    /// Resolves when nothing is under way and nothing can be begun now: for programs that run the queue once.
    pub async fn finished(&self) {
        let mut idle = self.idle.clone();
        // The pass that is under way may have looked before the call; the one after it has not.
        let enough = idle.borrow_and_update().pass + 2;
        loop {
            self.shared.wake.notify_one();
            if idle.changed().await.is_err() {
                return;
            }
            let sight = *idle.borrow_and_update();
            if sight.is_idle && sight.pass >= enough {
                return;
            }
        }
    }

    /// Stops beginning attempts, waits for those under way for at most 30 seconds, and lets go of the rest: what was
    /// not recorded will be tried again.
    pub async fn shutdown(&self) {
        self.control.stop.notify_one();
        let task = locked(&self.task).take();
        if let Some(task) = task {
            // A panic of the scheduler ends it as well as anything else.
            let _ = task.await;
        }
        if let Some(mailers) = &self.mailers {
            mailers.close_idle().await;
        }
    }
}

fn run(shared: &Shared, control: &Control, select: &mut dyn FnMut(MessageId) -> bool) -> u64 {
    if is_immediate(shared) {
        return shared.spool.run_now(select);
    }
    let ids: Vec<MessageId> = shared
        .spool
        .ids()
        .into_iter()
        .filter(|id| select(*id))
        .collect();
    let count = u64::try_from(ids.len()).unwrap_or(u64::MAX);
    want(control, ids.into_iter().map(Wanted::Pending));
    shared.wake.notify_one();
    count
}

/// Adds to the run that is under way what it has not got yet.
fn want(control: &Control, more: impl Iterator<Item = Wanted>) {
    let mut pending = locked(&control.run);
    if pending.is_empty() {
        pending.extend(more);
    } else {
        let known: HashSet<Wanted> = pending.iter().copied().collect();
        pending.extend(more.filter(|wanted| !known.contains(wanted)));
    }
}

fn is_immediate(shared: &Shared) -> bool {
    matches!(
        shared.settings.mode,
        DeliveryMode::Background | DeliveryMode::Interactive
    )
}

async fn schedule(shared: Arc<Shared>, control: Arc<Control>, idle: watch::Sender<Sight>) {
    let mut runs: JoinSet<()> = JoinSet::new();
    // The first run by interval is at once, as Sendmail's.
    let mut next_run = shared
        .settings
        .run_interval
        .filter(|_| !is_immediate(&shared))
        .map(|interval| (interval, tokio::time::Instant::now()));
    let mut pass = 0_u64;
    loop {
        if let Some((interval, at)) = &mut next_run
            && *at <= tokio::time::Instant::now()
        {
            *at = tokio::time::Instant::now() + *interval;
            run(&shared, &control, &mut |_| true);
        }
        while let Some(ended) = runs.try_join_next() {
            note_end(&shared, ended);
        }
        // Looked at before the index: a report that appears with the last open outcome must be seen first.
        let is_all_recorded = shared.window.available_permits() == super::WINDOW_MAX;
        let is_full = fill(&shared, &control, &mut runs);
        pass += 1;
        idle.send_replace(Sight {
            pass,
            is_idle: runs.is_empty()
                && !is_full
                && !shared.hosts.is_waiting()
                && is_all_recorded
                && locked(&control.run).is_empty(),
        });
        let mut pause = LOOK_INTERVAL;
        if is_immediate(&shared)
            && !is_full
            && let Some(due) = shared.spool.next_due_unix_ms()
        {
            // What is due now and was not lent (the spool lends nothing while it can't record) must not make us spin.
            let ahead = Duration::from_millis(due.saturating_sub(shared.clock.unix_ms()));
            pause = pause.min(ahead.max(SPIN_PAUSE));
        }
        if let Some((_, at)) = next_run {
            pause = pause.min(at.saturating_duration_since(tokio::time::Instant::now()));
        }
        tokio::select! {
            () = shared.wake.notified() => {}
            () = tokio::time::sleep(pause) => {}
            Some(ended) = runs.join_next() => note_end(&shared, ended),
            () = control.stop.notified() => break,
        }
    }
    let wait_for_runs = async {
        while let Some(ended) = runs.join_next().await {
            note_end(&shared, ended);
        }
    };
    // What is still under way after that is let go; without outcomes it is due again.
    let _ = tokio::time::timeout(SHUTDOWN_WAIT, wait_for_runs).await;
    runs.shutdown().await;
    shared.hosts.clear();
}

/// Begins as many runs as there is room for. Whether there was no room for more.
fn fill(shared: &Arc<Shared>, control: &Control, runs: &mut JoinSet<()>) -> bool {
    loop {
        let Ok(window) = Arc::clone(&shared.window).try_acquire_owned() else {
            return true;
        };
        let Ok(place) = Arc::clone(&shared.places).try_acquire_owned() else {
            return true;
        };
        let Some((lease, reached)) = next_lease(shared, control) else {
            return false;
        };
        runs.spawn(runner::run(
            Arc::clone(shared),
            lease,
            reached,
            place,
            window,
        ));
    }
}

/// The message that is to be worked on next, and how far a run of it has come that had to wait.
fn next_lease(shared: &Shared, control: &Control) -> Option<(Lease, Reached)> {
    while let Some(parked) = shared.hosts.next_ready() {
        let waited = shared.clock.monotonic().saturating_sub(parked.since);
        if waited < PARKED_LEASE_TRUSTED {
            return Some((parked.lease, parked.reached));
        }
        let id = parked.lease.id();
        drop(parked);
        if let Some(lease) = shared.spool.lease_message(id, LEASE_TIME) {
            return Some((lease, Reached::default()));
        }
    }
    if let Some(lease) = next_of_run(shared, control) {
        return Some((lease, Reached::default()));
    }
    if is_immediate(shared) {
        let lease = shared.spool.lease_due(LEASE_TIME)?;
        return Some((lease, Reached::default()));
    }
    None
}

/// The next message of a queue run. One whose last attempt is over and only has to be recorded stays in the run: who
/// has read of the deferral in the log and asks for a run means it.
fn next_of_run(shared: &Shared, control: &Control) -> Option<Lease> {
    let mut later = Vec::new();
    let mut found = None;
    while found.is_none() {
        let Some(wanted) = locked(&control.run).pop_front() else {
            break;
        };
        let (id, lease) = match wanted {
            Wanted::Pending(id) => (id, shared.spool.lease_message(id, LEASE_TIME)),
            Wanted::Held(id) => (id, shared.spool.lease_held(id, LEASE_TIME)),
        };
        found = lease;
        // Else it is held, under way or gone: nothing to do for it in this run.
        if found.is_none() && shared.spool.is_being_recorded(id) {
            later.push(wanted);
        } else if found.is_none() && !shared.spool.is_leased(id) {
            shared.unwatch(id);
        }
    }
    locked(&control.run).extend(later);
    found
}

fn note_end(shared: &Shared, ended: Result<(), JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        // The lease is gone and the message due again.
        let text = format!("a delivery ended by an internal error: {error}");
        shared.maillog.system_error(None, "root", &text);
    }
}

/// Wall-clock time at which something is due after a wait.
pub(super) fn due_after(shared: &Shared, wait: Duration) -> u64 {
    shared.clock.unix_ms().saturating_add(millis(wait))
}
