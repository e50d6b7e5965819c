//! A simulated disk with a power switch, for tests of what stands above the spool.

use std::sync::Arc;

use super::super::sim_storage::SimStorage;
use super::super::storage::Storage;
use super::Rng;
use super::moment::Moment;

/// A disk on which a spool lies. Copies of the handle are the same disk.
#[derive(Clone)]
pub(crate) struct PowerDisk(SimStorage);

impl PowerDisk {
    /// An empty one.
    pub(crate) fn new(seed: u64) -> Self {
        Self(SimStorage::new(seed))
    }

    /// The spool's folder.
    pub(crate) fn storage(&self) -> Arc<dyn Storage> {
        Arc::new(self.0.clone())
    }

    /// Has `look` called before each call that changes the disk, by the thread that makes the call.
    pub(crate) fn before_each_change(&self, look: Option<Box<dyn FnMut() + Send>>) {
        self.0.observe(look);
    }

    /// What is left if the power goes now and nothing survives that was not synced.
    pub(crate) fn durable(&self) -> Self {
        let moment = Moment::of(&self.0, None);
        Self(moment.crash(&moment.nothing()))
    }

    /// Another disk that holds the same, for another process.
    pub(crate) fn copy(&self) -> Self {
        Self(self.0.kill())
    }

    /// What may be left if the power goes now: what is durable, as it is after a kill, and `parts` random parts of what
    /// was not synced.
    pub(crate) fn after_power_cut(&self, parts: usize, seed: u64) -> Vec<Self> {
        let moment = Moment::of(&self.0, None);
        let mut rng = Rng(seed);
        let mut disks = vec![Self(moment.crash(&moment.nothing())), self.copy()];
        disks.extend((0..parts).map(|_| Self(moment.crash(&moment.random(&mut rng)))));
        disks
    }
}
