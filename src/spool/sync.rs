//! The primitives by which sessions, runners, writer and keeper hand over to each other: std's.
//!
//! Under the feature `interleavings` the unit tests get shuttle's instead, under which `interleaving_tests` runs the
//! engine's own code in many orders of its threads. Arcs, and locks that are never held across another, stay std's.

#[cfg(not(all(test, feature = "interleavings")))]
pub(super) use std::sync::atomic::{AtomicBool, AtomicU64};
#[cfg(not(all(test, feature = "interleavings")))]
pub(super) use std::sync::{Condvar, Mutex, MutexGuard};

#[cfg(all(test, feature = "interleavings"))]
pub(super) use shuttle::sync::atomic::{AtomicBool, AtomicU64};
#[cfg(all(test, feature = "interleavings"))]
pub(super) use shuttle::sync::{Condvar, Mutex, MutexGuard};
