//! What an operator does to messages of the queue: quarantines, releases and removes them (`-Q` of sendmail(8)).
//!
//! The owner of a spool does it when it is asked over the control socket, and a program that has become the owner does
//! it by the same code. A change is durable when its ticket resolves; only then is it logged and told.
//! Source: sendmail(8), `-Q[reason]`; transcript 20 of 8.17.1 for the lines of the log.

use super::listing::Listed;
use super::selection::PATTERN_BYTES_MAX;
use crate::envelope::MessageId;
use crate::maillog::{Maillog, QueueId, Severity};
use crate::spool::{CommitTicket, Spool, SpoolError};

/// The LogLevel at which changes of quarantine are logged. Source: queue.c.
const LOG_LEVEL: u32 = 9;

/// What is done to messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Hold them back until they are released.
    Hold(Reason),
    /// Let held ones go.
    Release,
    /// Remove them without a report.
    Remove,
}

/// Why a message is held: 1 to [`PATTERN_BYTES_MAX`] bytes without control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason(String);

impl Reason {
    /// A reason; `None` if the text can be none.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let is_good = (1..=PATTERN_BYTES_MAX).contains(&text.len())
            && !text.contains(|c: char| c.is_control());
        is_good.then(|| Self(text.to_owned()))
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Change {
    /// Whether a message is not yet as the change would make it.
    #[must_use]
    pub fn is_due(&self, message: &Listed) -> bool {
        match self {
            Self::Hold(reason) => message.quarantine.as_deref() != Some(reason.as_str()),
            Self::Release => message.quarantine.is_some(),
            Self::Remove => true,
        }
    }

    /// Hands the change of one message to the journal; `by` is who asked.
    ///
    /// # Errors
    /// As [`Spool::hold`].
    ///
    /// # Durability
    /// When the ticket resolves.
    pub fn begin(
        &self,
        spool: &Spool,
        id: MessageId,
        by: &str,
    ) -> Result<CommitTicket, SpoolError> {
        match self {
            Self::Hold(reason) => spool.quarantine(id, reason.as_str(), by),
            Self::Release => spool.hold(id, false, by),
            Self::Remove => spool.remove(id),
        }
    }

    /// Logs a change that is durable.
    pub fn log(&self, maillog: &Maillog, id: MessageId) {
        let text = match self {
            Self::Hold(reason) => format!("quarantine={}", reason.as_str()),
            Self::Release => "unquarantine".to_owned(),
            Self::Remove => "removed by the operator".to_owned(),
        };
        maillog.write(Severity::Info, LOG_LEVEL, QueueId::Known(id), &text);
    }

    /// What has become of a message.
    #[must_use]
    pub const fn done(&self) -> &'static str {
        match self {
            Self::Hold(_) => "held",
            Self::Release => "released",
            Self::Remove => "removed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::listing::tests::listed;

    #[test]
    fn only_what_would_differ_is_changed() {
        let mut message = listed("a", &["b"]);
        let hold = Change::Hold(Reason::new("spam suspect").unwrap());
        assert!(hold.is_due(&message));
        assert!(!Change::Release.is_due(&message));
        message.quarantine = Some("other".to_owned());
        assert!(hold.is_due(&message));
        assert!(Change::Release.is_due(&message));
        message.quarantine = Some("spam suspect".to_owned());
        assert!(!hold.is_due(&message));
    }

    #[test]
    fn a_reason_is_one_line_of_bounded_length() {
        assert!(Reason::new(&"x".repeat(PATTERN_BYTES_MAX)).is_some());
        for bad in ["", "a\nb", "a\0b", &"x".repeat(PATTERN_BYTES_MAX + 1)] {
            assert_eq!(Reason::new(bad), None, "{bad:?}");
        }
    }
}
