//! The test of the tests: each wrong variant of the engine (`faults.rs`) must be found.

use std::sync::Mutex;

use super::super::faults::{FAULTS, Fault, seed};
use super::enumerate::{Only, enumerate};
use super::failures::fail_each_call;
use super::setting;

/// Looks for a fault; after how many states it was found, and how, or `None`.
fn hunt(fault: Fault, wanted: u64) -> Option<(u64, String)> {
    seed(Some(fault));
    // A broken engine may also run into its own assertions, or into those of the workload; that counts as found.
    let states = Mutex::new(0);
    let found = std::panic::catch_unwind(|| {
        if fault.needs_failing_calls() {
            return (1..=6).find_map(|s| fail_each_call(s, 1).err());
        }
        let (mut done, mut seed) = (0, 1);
        while done < wanted {
            let (figures, result) = enumerate(wanted - done, seed, 1, Only::default());
            done += figures.states;
            seed += figures.workloads.max(1);
            *states.lock().unwrap() = done;
            if let Err(what) = result {
                return Some(what);
            }
        }
        None
    });
    seed(None);
    let states = states.into_inner().unwrap_or_default();
    match found {
        Ok(found) => found.map(|what| (states, what)),
        Err(_) => Some((states, "panics".into())),
    }
}

#[test]
#[cfg_attr(
    debug_assertions,
    ignore = "slow unless optimised; .ci/run runs it in release"
)]
fn every_seeded_fault_is_found() {
    let wanted = setting("FAULT_STATES").unwrap_or(100_000);
    let next = Mutex::new(FAULTS.iter());
    let survivors = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..super::threads() {
            scope.spawn(|| {
                loop {
                    let Some(fault) = next.lock().unwrap().next() else {
                        return;
                    };
                    match hunt(*fault, wanted) {
                        Some((states, how)) => println!("{fault:?}: {states} states: {how}"),
                        None => survivors.lock().unwrap().push(*fault),
                    }
                }
            });
        }
    });
    let survivors = survivors.into_inner().unwrap();
    assert!(survivors.is_empty(), "not found: {survivors:?}");
}
