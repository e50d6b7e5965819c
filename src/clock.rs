//! The seam to the system's clocks (L0).
//!
//! Everything that asks for the time takes a [`Clock`], so that tests can move it by hand. Two clocks exist: the
//! wall clock, for people and for due times on disk, and the monotonic clock, for timers. No decision about order
//! depends on the wall clock being right (S12). Neither call blocks.

pub mod date;

use std::sync::Mutex;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A source of wall-clock and monotonic time.
pub trait Clock: Send + Sync {
    /// Milliseconds since the Unix epoch; 0 if the system's clock stands before it.
    fn unix_ms(&self) -> u64;

    /// Time since an arbitrary fixed point; never goes backwards.
    fn monotonic(&self) -> Duration;
}

/// The system's own clocks.
#[derive(Debug, Clone)]
pub struct SystemClock {
    origin: Instant,
}

impl SystemClock {
    /// A clock whose monotonic time starts now.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "this file is the one door to the system's clocks"
    )]
    pub fn new() -> Self {
        Self {
            origin: Instant::now(),
        }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "this file is the one door to the system's clocks"
    )]
    fn unix_ms(&self) -> u64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| {
                u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
            })
    }

    fn monotonic(&self) -> Duration {
        self.origin.elapsed()
    }
}

/// A clock that moves only when told to, for tests and simulations.
#[derive(Debug)]
pub struct ManualClock {
    now: Mutex<(u64, Duration)>,
}

impl ManualClock {
    /// A clock that stands at `unix_ms`.
    #[must_use]
    pub fn at(unix_ms: u64) -> Self {
        Self {
            now: Mutex::new((unix_ms, Duration::ZERO)),
        }
    }

    /// Moves both clocks forward.
    pub fn advance(&self, by: Duration) {
        let mut now = self
            .now
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        now.0 = now
            .0
            .saturating_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX));
        now.1 = now.1.saturating_add(by);
    }

    /// Sets the wall clock alone, forwards or backwards, as an operator or NTP may.
    pub fn step_wall_to(&self, unix_ms: u64) {
        self.now
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .0 = unix_ms;
    }
}

impl Clock for ManualClock {
    fn unix_ms(&self) -> u64 {
        self.now
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .0
    }

    fn monotonic(&self) -> Duration {
        self.now
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stepping_the_wall_clock_leaves_monotonic_time_alone() {
        let clock = ManualClock::at(1_000);
        clock.advance(Duration::from_millis(5));
        clock.step_wall_to(10);
        assert_eq!(clock.unix_ms(), 10);
        assert_eq!(clock.monotonic(), Duration::from_millis(5));
    }
}
