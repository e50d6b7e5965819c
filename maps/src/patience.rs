//! Waiting for a file lock, in growing pauses, for a bounded time in all.
//!
//! The time waited is the sum of the pauses, so no clock is asked: a stopped machine or a stepped clock neither cuts a
//! wait short nor draws it out. Blocks: that is its purpose.

use std::time::Duration;

const PAUSE_MIN: Duration = Duration::from_micros(200);
const PAUSE_MAX: Duration = Duration::from_millis(20);

/// How much longer somebody is willing to wait.
pub(crate) struct Patience {
    left: Duration,
    pause: Duration,
}

impl Patience {
    pub(crate) fn new(wait: Duration) -> Self {
        Self {
            left: wait,
            pause: PAUSE_MIN,
        }
    }

    /// Sleeps a little; `false`, at once, when there is no patience left.
    pub(crate) fn wait(&mut self) -> bool {
        if self.left.is_zero() {
            return false;
        }
        let pause = self.pause.min(self.left);
        std::thread::sleep(pause);
        self.left -= pause;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_ends() {
        assert!(!Patience::new(Duration::ZERO).wait());
        let mut patience = Patience::new(Duration::from_millis(3));
        let mut pauses = 0;
        while patience.wait() {
            pauses += 1;
        }
        assert_eq!(pauses, 4);
    }
}
