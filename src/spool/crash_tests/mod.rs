//! The proof by simulation (SPOOL 10): the power is cut at every call of workloads on a simulated disk, every call fails
//! once, every byte is flipped once, and every promise left out on purpose is found.
//!
//! | variable | means | default |
//! |---|---|---|
//! | `CRASH_STATES` | states of the disk in all | 10,000 |
//! | `CRASH_THREADS` | threads | as many as processors |
//! | `SEED` | the first workload | 1 |
//! | `CRASH_CUT`, `CRASH_STATE` | only this cut, only this state: a failure prints them in one line | all |
//! | `FAULT_STATES` | states within which each seeded fault must be found | 100,000 |
//!
//! Parts: `workload.rs` what happens, `model.rs` what the outside knows and must find again, `moment.rs` what a power cut
//! may leave, `enumerate.rs` all of them, `failures.rs` failing calls and flipped bytes, `fault_hunt.rs` the test of this
//! test, `power_disk.rs` the disk for tests of other modules.

mod enumerate;
mod failures;
mod fault_hunt;
mod model;
mod moment;
mod power_disk;
mod workload;

pub(crate) use power_disk::PowerDisk;

use std::sync::Arc;

use super::sim_storage::SimStorage;
use super::{RecoveryReport, Spool, SpoolError, SpoolOptions, Writer};
use crate::clock::ManualClock;

const START_MS: u64 = 1_795_367_807_000;

/// splitmix64.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }
}

fn open(
    storage: &SimStorage,
    clock: &Arc<ManualClock>,
    options: &SpoolOptions,
) -> Result<(Spool, Writer, RecoveryReport), SpoolError> {
    let clock = Arc::clone(clock);
    Spool::open(Arc::new(storage.clone()), clock, options.clone())
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn threads() -> u64 {
    setting("CRASH_THREADS")
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get() as u64))
}

#[test]
fn acknowledged_mail_survives_power_cuts_at_every_call() {
    let wanted = setting("CRASH_STATES").unwrap_or(10_000);
    let only = enumerate::Only {
        cut: setting("CRASH_CUT"),
        state: setting("CRASH_STATE"),
    };
    let threads = if only.cut.is_some() { 1 } else { threads() };
    let (figures, result) =
        enumerate::enumerate(wanted, setting("SEED").unwrap_or(1), threads, only);
    println!("{figures:?}");
    if let Err(what) = result {
        panic!("{what}");
    }
    let is_whole = only.cut.is_none() && wanted >= 10_000;
    assert!(!is_whole || figures.relocated > 0, "nothing was moved");
}
