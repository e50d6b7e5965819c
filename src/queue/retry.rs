//! When to try again, when to warn, when to give up: pure arithmetic.
//!
//! The wait doubles with each attempt between two bounds, without chance, so that the same history gives the same
//! times. A message's age is measured on a clock that does not follow jumps of the wall clock ([`SteadyTime`]): a
//! clock set a year ahead by mistake must not return the whole queue. Never blocks.
//! Limits: [`WAIT_MIN`], [`JUMP_MAX`], [`JUMP_BELIEVED_AFTER`]. Source: RFC 5321 4.5.4.1.

use std::time::Duration;

use crate::clock::Clock;
use crate::config::RetryOptions;

/// Shortest wait between two attempts, even with `min_queue_age = 0`.
pub const WAIT_MIN: Duration = Duration::from_secs(1);
/// How far the wall clock may run ahead of the monotonic one before that counts as a jump.
pub const JUMP_MAX: Duration = Duration::from_secs(3600);
/// For how long a jump has to last until it is taken for the truth: time for somebody to see what is wrong.
pub const JUMP_BELIEVED_AFTER: Duration = Duration::from_secs(24 * 3600);

/// When deferred recipients are tried again, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryPolicy {
    /// The wait after the first attempt.
    pub first: Duration,
    /// The longest wait.
    pub longest: Duration,
    /// Age at which the sender is warned once; `None`: never.
    pub warn_after: Option<Duration>,
    /// Age at which delivery is given up.
    pub give_up_after: Duration,
}

impl RetryPolicy {
    /// The policy that the options ask for. With queue runs at an interval (`-q30m`) nobody waits longer than that.
    #[must_use]
    pub fn new(options: &RetryOptions, run_interval: Option<Duration>) -> Self {
        let longest = run_interval.map_or(options.max_queue_age, |interval| {
            interval.min(options.max_queue_age)
        });
        Self {
            first: options.min_queue_age,
            longest,
            warn_after: options.queue_warn,
            give_up_after: options.queue_return,
        }
    }

    /// How long to wait after the attempt that was number `tries` (from 1).
    #[must_use]
    pub fn wait_after(&self, tries: u32) -> Duration {
        let longest = self.longest.max(WAIT_MIN);
        let doublings = tries.saturating_sub(1).min(30);
        self.first
            .clamp(WAIT_MIN, longest)
            .saturating_mul(1 << doublings)
            .min(longest)
    }

    /// When a message of this age is due again after attempt number `tries`, from now: in time for the warning, and
    /// for the last attempt.
    #[must_use]
    pub fn next_due_in(&self, tries: u32, age: Duration) -> Duration {
        let mut wait = self.wait_after(tries);
        for limit in [self.warn_after, Some(self.give_up_after)]
            .into_iter()
            .flatten()
        {
            if age < limit {
                wait = wait.min((limit - age).max(WAIT_MIN));
            }
        }
        wait
    }

    /// Whether a message of this age, still deferred, is given up.
    #[must_use]
    pub fn gives_up(&self, age: Duration) -> bool {
        age >= self.give_up_after
    }

    /// Whether the sender of a message of this age is to be warned now.
    #[must_use]
    pub fn warns(&self, age: Duration, has_warned: bool) -> bool {
        !has_warned && self.warn_after.is_some_and(|after| age >= after)
    }
}

/// The wall clock without its jumps ahead. A jump back is followed at once: it makes messages younger, which is safe.
#[derive(Debug)]
pub struct SteadyTime {
    base_unix_ms: u64,
    base_monotonic: Duration,
    ahead_since: Option<Duration>,
}

impl SteadyTime {
    /// Begins with what the clock shows.
    #[must_use]
    pub fn new(clock: &dyn Clock) -> Self {
        Self {
            base_unix_ms: clock.unix_ms(),
            base_monotonic: clock.monotonic(),
            ahead_since: None,
        }
    }

    /// Unix milliseconds to measure ages by.
    pub fn unix_ms(&mut self, clock: &dyn Clock) -> u64 {
        let (wall, monotonic) = (clock.unix_ms(), clock.monotonic());
        let passed = millis(monotonic.saturating_sub(self.base_monotonic));
        let expected = self.base_unix_ms.saturating_add(passed);
        if wall <= expected.saturating_add(millis(JUMP_MAX)) {
            self.ahead_since = None;
            return wall;
        }
        let since = *self.ahead_since.get_or_insert(monotonic);
        if monotonic.saturating_sub(since) >= JUMP_BELIEVED_AFTER {
            *self = Self::new(clock);
            return wall;
        }
        expected
    }
}

/// Whole milliseconds of a time span.
#[must_use]
pub fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    const HOUR: Duration = Duration::from_secs(3600);
    const MINUTE: Duration = Duration::from_secs(60);

    fn policy() -> RetryPolicy {
        RetryPolicy {
            first: 5 * MINUTE,
            longest: 4 * HOUR,
            warn_after: Some(4 * HOUR),
            give_up_after: 120 * HOUR,
        }
    }

    #[test]
    fn waits_double_up_to_the_longest() {
        let waits: Vec<u64> = (0..9)
            .map(|tries| policy().wait_after(tries).as_secs() / 60)
            .collect();
        assert_eq!(waits, [5, 5, 10, 20, 40, 80, 160, 240, 240]);
        assert_eq!(policy().wait_after(u32::MAX), 4 * HOUR);
        let zero = RetryPolicy {
            first: Duration::ZERO,
            ..policy()
        };
        assert_eq!(zero.wait_after(1), WAIT_MIN);
        assert_eq!(zero.wait_after(3), 4 * WAIT_MIN);
    }

    #[test]
    fn warning_and_last_attempt_come_in_time() {
        let policy = policy();
        assert_eq!(policy.next_due_in(7, 3 * HOUR + 50 * MINUTE), 10 * MINUTE);
        assert_eq!(policy.next_due_in(7, 4 * HOUR), 4 * HOUR);
        assert_eq!(policy.next_due_in(20, 119 * HOUR), HOUR);
        assert!(policy.warns(4 * HOUR, false) && !policy.warns(4 * HOUR, true));
        assert!(!policy.warns(4 * HOUR - WAIT_MIN, false));
        assert!(policy.gives_up(120 * HOUR) && !policy.gives_up(120 * HOUR - WAIT_MIN));
    }

    #[test]
    fn queue_runs_bound_the_wait() {
        let options = RetryOptions {
            min_queue_age: 5 * MINUTE,
            max_queue_age: 4 * HOUR,
            queue_warn: None,
            queue_return: 120 * HOUR,
        };
        let policy = RetryPolicy::new(&options, Some(30 * MINUTE));
        assert_eq!(policy.wait_after(10), 30 * MINUTE);
        assert!(!policy.warns(100 * HOUR, false));
    }

    #[test]
    fn a_jump_of_the_wall_clock_ages_nothing_until_it_has_lasted() {
        let clock = ManualClock::at(1_000_000_000_000);
        let mut steady = SteadyTime::new(&clock);
        clock.advance(HOUR);
        assert_eq!(steady.unix_ms(&clock), clock.unix_ms());
        let year = millis(365 * 24 * HOUR);
        clock.step_wall_to(clock.unix_ms() + year);
        assert_eq!(steady.unix_ms(&clock), clock.unix_ms() - year);
        clock.advance(23 * HOUR);
        assert_eq!(steady.unix_ms(&clock), clock.unix_ms() - year);
        clock.advance(HOUR);
        assert_eq!(steady.unix_ms(&clock), clock.unix_ms());
        clock.step_wall_to(5);
        assert_eq!(steady.unix_ms(&clock), 5);
    }
}
