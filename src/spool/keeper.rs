//! The writer's second hand: prepares segments ahead, writes checkpoints, recycles dead segments (SPOOL 2, 7, 8).
//!
//! [`Keeper::run`] has a thread of its own, so that none of this delays a commit; tests call [`Keeper::step`].

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

#[cfg(test)]
use super::faults::{Fault, seeded};
use super::{Inner, SpoolError, checkpoint, lock};

/// How often it looks when nobody calls: retries after a full disk, and checkpoints that are due by age.
const INTERVAL: Duration = Duration::from_secs(1);

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
        loop {
            {
                let mut calls = lock(&self.inner.keeper_calls);
                if !calls.is_called && !calls.is_ended {
                    calls = self
                        .inner
                        .keeper_wake
                        .wait_timeout(calls, INTERVAL)
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .0;
                }
                if calls.is_ended {
                    return;
                }
                calls.is_called = false;
            }
            self.step();
        }
    }

    /// One round of all it does. Blocks: disk.
    pub(super) fn step(&self) {
        let inner = &self.inner;
        if inner.is_poisoned() {
            return;
        }
        let result = self
            .checkpoint_if_due()
            .and_then(|()| self.recycle())
            .and_then(|()| self.make_ready());
        match result {
            Ok(()) => inner.set_full(None),
            Err(SpoolError::Full(why)) => inner.set_full(Some(why)),
            Err(error) => inner.poison(&error.to_string()),
        }
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
            .make_ready(lsn, batch, inner.clock.unix_ms(), 1)?;
        let least = inner.options.free_bytes_min;
        if least > 0 {
            let free = inner
                .storage
                .free_bytes()
                .map_err(|e| SpoolError::io("statvfs", ".", e))?;
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
            let state = lock(&inner.checkpoints);
            let since = bytes.saturating_sub(state.journal_bytes);
            let limit = inner.options.checkpoint_bytes.max(4 * state.bytes);
            since >= limit
                || (since > 0 && now.saturating_sub(state.at) >= inner.options.checkpoint_interval)
        };
        if due {
            checkpoint::write(inner)
        } else {
            Ok(())
        }
    }

    fn recycle(&self) -> Result<(), SpoolError> {
        let inner = &self.inner;
        let Some(covered) = lock(&inner.checkpoints).older_lsn() else {
            return Ok(());
        };
        inner
            .segments
            .recycle(inner.options.spares_max, &mut |number, fate| {
                // S7: nothing in it lives or is being received, and the older of the kept checkpoints covers it.
                #[cfg(test)]
                if seeded(Fault::PinnedRecycled) {
                    return fate.last_lsn <= covered;
                }
                fate.last_lsn <= covered && lock(&inner.index).pinned(number).is_none()
            })?;
        Ok(())
    }
}
