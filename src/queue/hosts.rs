//! How much is under way for each destination, and the messages that wait for one.
//!
//! A message whose destinations are all busy is parked here with its lease, outside the places and the window, so that
//! a slow host takes no more than its own share of either. It comes back when an attempt for that host ends. In memory
//! only; a crash forgets it and the messages are due again. Limits: [`PARKED_MAX`].

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;

use super::locked;
use super::runner::Reached;
use crate::deliver::Destination;
use crate::spool::Lease;

/// Most messages parked at once, for all destinations together. Further ones are put off in the spool.
pub const PARKED_MAX: usize = 100_000;

/// A message that waits for a destination.
pub(super) struct Parked {
    pub(super) lease: Lease,
    /// How far its run has come.
    pub(super) reached: Reached,
    /// Monotonic time since when.
    pub(super) since: Duration,
}

/// Loads of all destinations.
pub(super) struct Hosts {
    per_host_max: usize,
    wake: Arc<Notify>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    loads: HashMap<Destination, Load>,
    /// Parked messages whose destination may have room again.
    ready: VecDeque<Parked>,
    parked: usize,
}

#[derive(Default)]
struct Load {
    active: usize,
    waiting: VecDeque<Parked>,
}

/// The right to make an attempt for a destination; ends when dropped.
pub(super) struct HostSlot {
    hosts: Arc<Hosts>,
    destination: Destination,
}

/// What became of the wish to attempt.
pub(super) enum Start {
    /// Go ahead for these, by position; the others have to wait.
    Slots(Lease, Vec<(usize, HostSlot)>),
    /// All were busy: parked.
    Parked,
    /// All were busy and nothing more can be parked.
    Refused(Lease),
}

impl Hosts {
    pub(super) fn new(per_host_max: usize, wake: Arc<Notify>) -> Self {
        Self {
            per_host_max: per_host_max.max(1),
            wake,
            state: Mutex::default(),
        }
    }

    /// Takes a slot for each destination that has one; if none has, parks the message until the first one has.
    pub(super) fn start_or_park(
        self: &Arc<Self>,
        lease: Lease,
        reached: Reached,
        destinations: &[Destination],
        now: Duration,
    ) -> Start {
        let mut state = locked(&self.state);
        let mut slots = Vec::new();
        for (at, destination) in destinations.iter().enumerate() {
            // Mailboxes and files have no host that could be slow as a whole.
            let max = match destination {
                Destination::Mailbox | Destination::Files => usize::MAX,
                Destination::Programs | Destination::Named { .. } | Destination::Smtp { .. } => {
                    self.per_host_max
                }
            };
            let load = state.loads.entry(destination.clone()).or_default();
            if load.active < max {
                load.active += 1;
                slots.push((
                    at,
                    HostSlot {
                        hosts: Arc::clone(self),
                        destination: destination.clone(),
                    },
                ));
            }
        }
        if !slots.is_empty() {
            return Start::Slots(lease, slots);
        }
        if state.parked >= PARKED_MAX {
            return Start::Refused(lease);
        }
        let Some(load) = destinations
            .first()
            .and_then(|destination| state.loads.get_mut(destination))
        else {
            return Start::Slots(lease, slots);
        };
        load.waiting.push_back(Parked {
            lease,
            reached,
            since: now,
        });
        state.parked += 1;
        Start::Parked
    }

    /// A parked message whose turn has come.
    pub(super) fn next_ready(&self) -> Option<Parked> {
        let mut state = locked(&self.state);
        let parked = state.ready.pop_front()?;
        state.parked -= 1;
        Some(parked)
    }

    /// Whether any message is parked.
    pub(super) fn is_waiting(&self) -> bool {
        locked(&self.state).parked > 0
    }

    /// Gives all parked messages back.
    pub(super) fn clear(&self) {
        let state = std::mem::take(&mut *locked(&self.state));
        // Leases end outside the lock, as that wakes the scheduler.
        drop(state);
    }
}

impl Drop for HostSlot {
    fn drop(&mut self) {
        let mut state = locked(&self.hosts.state);
        let Some(load) = state.loads.get_mut(&self.destination) else {
            return;
        };
        load.active = load.active.saturating_sub(1);
        let next = load.waiting.pop_front();
        if load.active == 0 && load.waiting.is_empty() {
            state.loads.remove(&self.destination);
        }
        if let Some(next) = next {
            state.ready.push_back(next);
            drop(state);
            self.hosts.wake.notify_one();
        }
    }
}
