//! The queue (L3): the only place where the spool meets delivery.
//!
//! [`Queue::start`] runs over an open spool: what is due is leased, expanded, routed, attempted and recorded, with
//! reports where they are due. Guarantees: an expansion is durable before any of its recipients is attempted; outcome,
//! report and removal are one transaction (I2, I7); a crash repeats at most the deliveries of [`WINDOW_MAX`] messages
//! (I6); a slow host holds up nobody else's mail. Trouble of ours defers (I9).
//!
//! Touches the spool, the router, the mailers, the log and tokio's timers; no files, no network of its own. Reading
//! and routing run on the blocking pool. Limits: [`WINDOW_MAX`], [`PARKED_MAX`], [`WATCHERS_MAX`] and
//! [`QueueSettings`].

mod bulk;
mod hosts;
#[cfg(test)]
mod power_cut_tests;
mod report;
pub mod retry;
mod runner;
mod scheduler;

pub use hosts::PARKED_MAX;
pub use report::ReportSettings;
pub use retry::RetryPolicy;
pub use scheduler::{LOOK_INTERVAL, QueueHandle};

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore, mpsc};

use crate::clock::Clock;
use crate::config::{DeliveryMode, QueueOptions};
use crate::deliver::{Attempt, Destination, Mailers, Verbose};
use crate::envelope::{MessageId, Outcome, RecipientId};
use crate::maillog::Maillog;
use crate::route::Router;
use crate::spool::{Lease, Spool};
use hosts::Hosts;
use retry::SteadyTime;

/// Most messages that are being attempted, or were and are not recorded durably yet: what a crash may repeat.
pub const WINDOW_MAX: usize = 1000;
/// Most messages that are watched at once; further ones are not shown.
pub const WATCHERS_MAX: usize = 1000;
/// Most messages kept aside because they can't be read.
pub const UNREADABLE_MAX: usize = 10_000;
/// Lines that wait for a watcher; when it does not read, further ones are left out.
const WATCHED_LINES_MAX: usize = 4096;

/// How a queue works.
#[derive(Debug, Clone)]
pub struct QueueSettings {
    /// When new messages are tried: at once, or only in queue runs.
    pub mode: DeliveryMode,
    /// Time between queue runs (`-q30m`), if there are any by themselves.
    pub run_interval: Option<Duration>,
    /// Messages attempted at once, 1 to [`WINDOW_MAX`].
    pub parallel_max: usize,
    /// Messages attempted at once for one destination.
    pub parallel_per_host_max: usize,
    /// When to try again.
    pub retry: RetryPolicy,
    /// Who is told what.
    pub reports: ReportSettings,
}

impl QueueSettings {
    /// The settings that the configuration asks for. One destination gets at most a third of the places.
    #[must_use]
    pub fn new(
        options: &QueueOptions,
        run_interval: Option<Duration>,
        host_name: &str,
        returns_body: bool,
    ) -> Self {
        let parallel_max = usize::try_from(options.max_queue_children)
            .unwrap_or(WINDOW_MAX)
            .clamp(1, WINDOW_MAX);
        Self {
            mode: options.delivery_mode,
            run_interval,
            parallel_max,
            parallel_per_host_max: parallel_max.div_ceil(3),
            retry: RetryPolicy::new(&options.retry, run_interval),
            reports: ReportSettings {
                host_name: host_name.to_owned(),
                double_bounce_address: options.double_bounce_address.clone(),
                postmaster_copy: options.postmaster_copy.clone(),
                returns_body,
            },
        }
    }
}

/// The outcomes of one attempt, to come.
pub type Outcomes = Pin<Box<dyn Future<Output = Vec<(RecipientId, Outcome)>> + Send>>;
/// Makes one attempt: [`Mailers::attempt`], or a stand-in in tests. Exactly one outcome for each recipient.
pub type Deliver = Arc<dyn Fn(Destination, Attempt) -> Outcomes + Send + Sync>;

/// The queue; see [`Queue::start`].
pub struct Queue;

impl Queue {
    /// Starts working on the current tokio runtime.
    ///
    /// # Panics
    /// Outside a tokio runtime with time.
    #[must_use]
    pub fn start(
        spool: Spool,
        router: Arc<Router>,
        mailers: Mailers,
        settings: QueueSettings,
        clock: Arc<dyn Clock>,
        maillog: Maillog,
    ) -> QueueHandle {
        let closing = mailers.clone();
        let deliver: Deliver = Arc::new(move |destination, attempt| {
            let mailers = mailers.clone();
            Box::pin(async move { mailers.attempt(&destination, attempt).await })
        });
        let mut handle = Self::start_with(spool, router, deliver, settings, clock, maillog);
        handle.set_mailers(closing);
        handle
    }

    /// As [`Queue::start`], with another way to deliver.
    #[must_use]
    pub fn start_with(
        spool: Spool,
        router: Arc<Router>,
        deliver: Deliver,
        settings: QueueSettings,
        clock: Arc<dyn Clock>,
        maillog: Maillog,
    ) -> QueueHandle {
        let wake = Arc::new(Notify::new());
        let hint = Arc::clone(&wake);
        spool.on_due(Box::new(move || hint.notify_one()));
        let shared = Arc::new(Shared {
            hosts: Arc::new(Hosts::new(
                settings.parallel_per_host_max,
                Arc::clone(&wake),
            )),
            places: Arc::new(Semaphore::new(settings.parallel_max.clamp(1, WINDOW_MAX))),
            window: Arc::new(Semaphore::new(WINDOW_MAX)),
            steady: Mutex::new(SteadyTime::new(&*clock)),
            watchers: Mutex::default(),
            unreadable: Mutex::default(),
            spool,
            router,
            deliver,
            settings,
            clock,
            maillog,
            wake,
        });
        QueueHandle::spawn(shared)
    }
}

/// What the scheduler and its runs share.
struct Shared {
    spool: Spool,
    router: Arc<Router>,
    deliver: Deliver,
    settings: QueueSettings,
    clock: Arc<dyn Clock>,
    maillog: Maillog,
    hosts: Arc<Hosts>,
    /// One permit a message being attempted.
    places: Arc<Semaphore>,
    /// One permit a message being attempted or not yet recorded durably.
    window: Arc<Semaphore>,
    steady: Mutex<SteadyTime>,
    watchers: Mutex<HashMap<MessageId, Vec<mpsc::Sender<String>>>>,
    /// Leases of messages that can't be read, kept so that they are not tried again and again; the oldest go first.
    unreadable: Mutex<VecDeque<Lease>>,
    /// Something may have become possible: a message is due, a place is free.
    wake: Arc<Notify>,
}

impl Shared {
    /// Unix milliseconds to measure ages by.
    fn steady_unix_ms(&self) -> u64 {
        locked(&self.steady).unix_ms(&*self.clock)
    }

    fn watch(&self, id: MessageId) -> mpsc::Receiver<String> {
        let (sender, receiver) = mpsc::channel(WATCHED_LINES_MAX);
        let mut watchers = locked(&self.watchers);
        if watchers.len() >= WATCHERS_MAX {
            watchers.retain(|_, senders| {
                senders.retain(|sender| !sender.is_closed());
                !senders.is_empty()
            });
        }
        if watchers.len() < WATCHERS_MAX {
            watchers.entry(id).or_default().push(sender);
        }
        receiver
    }

    /// Says lines to those who watch a message; `None` if nobody does.
    fn verbose(self: &Arc<Self>, id: MessageId) -> Option<Verbose> {
        if !locked(&self.watchers).contains_key(&id) {
            return None;
        }
        let shared = Arc::clone(self);
        Some(Arc::new(move |line: &str| {
            if let Some(senders) = locked(&shared.watchers).get(&id) {
                for sender in senders {
                    // Nobody holds delivery up by not reading.
                    let _ = sender.try_send(line.to_owned());
                }
            }
        }))
    }

    /// A message's run has ended: its watchers see the end.
    fn unwatch(&self, id: MessageId) {
        locked(&self.watchers).remove(&id);
    }
}

/// Locks a mutex; what it guards is not left half changed by a panic.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
