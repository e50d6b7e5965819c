//! The writer's second hand: prepares segments ahead, writes checkpoints, recycles dead segments and empties those in
//! which little lives (SPOOL 2, 7, 8).
//!
//! [`Keeper::run`] has a thread of its own, so that none of this delays a commit; tests call [`Keeper::step`].

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

#[cfg(test)]
use super::faults::{self, Fault, seeded};
use super::format::{Kind, Lsn};
use super::transaction::{Commit, FrameIn};
use super::{Inner, SpoolError, checkpoint, lock};
use crate::envelope::MessageId;

/// How often it looks when nobody calls: retries after a full disk, and checkpoints that are due by age.
const INTERVAL: Duration = Duration::from_secs(1);

/// And while messages are being moved.
const MOVING_INTERVAL: Duration = Duration::from_millis(100);

/// Spares there are to be besides the segment that is prepared; with fewer new mail is refused. One lets outcomes,
/// expansions and removals be recorded on a full disk, one makes room for a checkpoint or takes what is moved.
const SPARES_MIN: usize = 2;

/// How long after a checkpoint that was due by its bytes all spares are kept.
const BURST_REST: Duration = Duration::from_secs(15 * 60);

/// See the module's documentation.
pub(super) struct Keeper {
    inner: Arc<Inner>,
}

/// What the keeper is told.
#[derive(Default)]
pub(super) struct KeeperCalls {
    pub(super) is_called: bool,
    pub(super) is_ended: bool,
}

impl Keeper {
    pub(super) fn new(inner: Arc<Inner>) -> Self {
        Self { inner }
    }

    pub(super) fn run(self) {
        let mut pause = INTERVAL;
        loop {
            {
                let mut calls = lock(&self.inner.keeper_calls);
                if !calls.is_called && !calls.is_ended {
                    calls = self
                        .inner
                        .keeper_wake
                        .wait_timeout(calls, pause)
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .0;
                }
                if calls.is_ended {
                    return;
                }
                calls.is_called = false;
            }
            pause = if self.step() {
                MOVING_INTERVAL
            } else {
                INTERVAL
            };
        }
    }

    /// One round of all it does. Whether there is more to be moved. Blocks: disk.
    pub(super) fn step(&self) -> bool {
        let inner = &self.inner;
        if inner.is_poisoned() {
            return false;
        }
        let result = self
            .checkpoint_if_due()
            .and_then(|()| self.recycle())
            .and_then(|()| self.make_ready());
        match result {
            Ok(()) => inner.set_full(None),
            Err(SpoolError::Full(why)) => {
                inner.set_full(Some(why));
                self.advance();
            }
            Err(error) => {
                inner.poison(&error.to_string());
                return false;
            }
        }
        lock(&inner.reclaim).step(inner)
    }

    /// On a full disk segments must die although nothing is committed any more: a Pulse, so that the next checkpoint
    /// covers what the last one did not.
    fn advance(&self) {
        let inner = &self.inner;
        let newest = lock(&inner.checkpoints).kept.last().copied();
        let applied = lock(&inner.index).applied_lsn;
        if newest == Some(applied) && self.has_dead(None) {
            let pulse = FrameIn::new(Kind::Pulse, MessageId::from_number(0), Vec::new());
            drop(inner.submit_commit(Commit::internal(vec![pulse])));
        }
    }

    /// Whether there is a segment in which nothing lives and that could not be recycled yet.
    fn has_dead(&self, covered: Option<Lsn>) -> bool {
        let fates = self.inner.segments.fates();
        let index = lock(&self.inner.index);
        fates.iter().any(|(segment, fate)| {
            fate.is_sealed
                && !fate.is_quarantined
                && covered.is_none_or(|covered| fate.last_lsn > covered)
                && index.pinned(segment.number).is_none()
        })
    }

    fn make_ready(&self) -> Result<(), SpoolError> {
        let inner = &self.inner;
        let (lsn, batch) = {
            let index = lock(&inner.index);
            (index.applied_lsn, index.applied_batch)
        };
        // Lower bounds of what the segment will hold: what is applied now.
        inner
            .segments
            .make_ready(lsn, batch, inner.clock.unix_ms(), SPARES_MIN)?;
        let least = inner.options.free_bytes_min;
        if least > 0 {
            let mut free = inner.free_bytes()?;
            // Nobody is refused, and no mailbox goes without room, for spares that only save time.
            while free < least
                && inner.segments.spares_left() > SPARES_MIN
                && inner.segments.give_up_spare()?
            {
                free = inner.free_bytes()?;
            }
            if free < least {
                return Err(SpoolError::Full(format!(
                    "{free} bytes free, {least} are to stay free"
                )));
            }
        }
        Ok(())
    }

    fn checkpoint_if_due(&self) -> Result<(), SpoolError> {
        let inner = &self.inner;
        let bytes = inner.journal_bytes.load(Ordering::Relaxed);
        let now = inner.clock.monotonic();
        let due = {
            let mut state = lock(&inner.checkpoints);
            let since = bytes.saturating_sub(state.journal_bytes);
            let limit = inner.options.checkpoint_bytes.max(4 * state.bytes);
            if since >= limit {
                state.burst_at = now;
            }
            // Where room is short, the sooner a dead segment is covered the better.
            let is_pressed = since > 0 && inner.is_full.load(Ordering::Relaxed);
            since >= limit
                || is_pressed && self.has_dead(state.older_lsn())
                || (since > 0 && now.saturating_sub(state.at) >= inner.options.checkpoint_interval)
        };
        if !due {
            return Ok(());
        }
        match checkpoint::write(inner) {
            // Without a checkpoint nothing dies: a spare makes room for it.
            Err(SpoolError::Full(why)) => {
                if inner.segments.give_up_spare()? {
                    checkpoint::write(inner)
                } else {
                    Err(SpoolError::Full(why))
                }
            }
            other => other,
        }
    }

    fn recycle(&self) -> Result<(), SpoolError> {
        let inner = &self.inner;
        let (covered, burst_at) = {
            let state = lock(&inner.checkpoints);
            (state.older_lsn(), state.burst_at)
        };
        let is_burst = inner.clock.monotonic().saturating_sub(burst_at) < BURST_REST;
        let spares_max = match inner.options.spares_max {
            most if is_burst => most,
            most => (most / 4).max(SPARES_MIN),
        };
        // On a small disk they take no more room than is free beside them.
        let segment_bytes = inner.options.segment_bytes.max(1);
        // Nor more than the least where that cannot be told: dead segments are given back all the same.
        let room = inner.free_bytes().map_or(0, |free| free / segment_bytes);
        let spares_max =
            usize::try_from(room).map_or(spares_max, |room| spares_max.min(room.max(SPARES_MIN)));
        #[cfg(test)]
        let covered = faults::wrongly_covered(&lock(&inner.checkpoints).kept).or(covered);
        // What never held a batch needs no checkpoint: Lsns begin at 1.
        let covered = covered.unwrap_or(0);
        inner.segments.recycle(spares_max, &mut |number, fate| {
            // S7: nothing in it lives or is being received, and the older of the kept checkpoints covers it.
            #[cfg(test)]
            if seeded(Fault::LiveRecycled) {
                return fate.last_lsn <= covered;
            }
            fate.last_lsn <= covered && lock(&inner.index).pinned(number).is_none()
        })?;
        // One a round: what a burst left behind is given back by and by.
        if inner.segments.spares_left() > spares_max && !inner.is_full.load(Ordering::Relaxed) {
            inner.segments.give_up_spare()?;
        }
        Ok(())
    }
}
