//! The lines a submission leaves in the maillog: `from=`, `to=`, warnings and errors, in Sendmail's form.

use std::time::Duration;

use super::failure::Report;
use super::outlet::Handed;
use crate::envelope::{BodyType, ControllingUser, Delivery, MessageId, Outcome};
use crate::maillog::{DsnCause, Maillog, QueueId, Received, Severity, ToLine, level_of};
use crate::submit::message::Submission;

/// What each recipient adds to a message's priority (RecipientFactor), and what its class takes off (ClassFactor).
const RECIPIENT_FACTOR: i64 = 30_000;
const CLASS_FACTOR: i64 = 1_800;

/// The maillog, for one submitter.
pub(super) struct SubmitLog {
    maillog: Maillog,
}

impl SubmitLog {
    pub(super) fn new(maillog: Maillog) -> Self {
        Self { maillog }
    }

    /// The log itself.
    pub(super) const fn maillog(&self) -> &Maillog {
        &self.maillog
    }

    /// `from=`
    pub(super) fn received(&self, submission: &Submission) {
        let envelope = &submission.envelope;
        let submitter = envelope.arrival.submitter.as_ref();
        self.maillog.received(&Received {
            id: submission.id,
            sender: &envelope.sender_shown(),
            size_bytes: submission.message_bytes,
            class: submission.class,
            recipient_count: envelope.recipients.len(),
            message_id_field: &envelope.arrival.message_id_field,
            body_type: match envelope.body_type {
                BodyType::SevenBit => "7BIT",
                BodyType::EightBitMime => "8BITMIME",
                BodyType::Unspecified => "",
            },
            protocol: &envelope.arrival.protocol,
            daemon: "",
            relay: &format!(
                "{}@localhost",
                submitter.map_or("localhost", |user| user.name.as_str())
            ),
        });
    }

    /// `to=`, one line for the recipients that fared alike.
    pub(super) fn attempted(
        &self,
        submission: &Submission,
        handed: &[Handed],
        attempt_time: Duration,
        now_unix_ms: u64,
    ) {
        // On whose authority: the user who submitted, under the sender's name.
        let controlling_user = submission
            .envelope
            .reverse_path
            .address()
            .zip(submission.envelope.arrival.submitter.as_ref())
            .map(|(_, user)| ControllingUser {
                name: submission.envelope.sender_shown(),
                ..user.clone()
            });
        let mut groups: Vec<(&Outcome, Vec<&str>)> = Vec::new();
        for (shown, handed) in submission.shown.iter().zip(handed) {
            // Each refusal has its own reply and its own line, as in Sendmail.
            let is_shared = handed.outcome.result != Delivery::Failed;
            match groups
                .iter_mut()
                .find(|(outcome, _)| is_shared && **outcome == handed.outcome)
            {
                Some((_, recipients)) => recipients.push(shown),
                None => groups.push((&handed.outcome, vec![shown])),
            }
        }
        let priority = priority(
            submission.message_bytes,
            submission.class,
            submission.envelope.recipients.len(),
        );
        for (outcome, recipients) in groups {
            let is_tried = outcome.text != super::outlet::QUEUED;
            self.maillog.attempted(&ToLine {
                id: submission.id,
                recipients: &recipients,
                controlling_user: controlling_user.as_ref().filter(|_| is_tried),
                delay: since(submission.envelope.arrival.unix_ms, now_unix_ms),
                attempt_time: is_tried.then_some(attempt_time),
                priority,
                outcome,
            });
        }
    }

    /// `Authentication-Warning: HOST: TEXT`
    pub(super) fn authentication_warning(&self, id: MessageId, host: &str, text: &str) {
        self.maillog.write(
            Severity::Info,
            level_of::RECEIVED,
            QueueId::Known(id),
            &format!("Authentication-Warning: {host}: {text}"),
        );
    }

    /// `ADDRESS... TEXT`, an error of the user's.
    pub(super) fn refused(&self, id: MessageId, text: &str) {
        self.maillog.user_error(Some(id), text);
    }

    /// `SYSERR(USER): TEXT`
    pub(super) fn system_error(&self, id: MessageId, user: &str, text: &str) {
        self.maillog.system_error(Some(id), user, text);
    }

    /// `ID: NEWID: DSN: REASON`
    pub(super) fn report(&self, id: MessageId, report: MessageId, reason: &str) {
        self.maillog.report_made(id, report, DsnCause::Dsn, reason);
    }

    /// `to=` of a report.
    pub(super) fn report_attempted(
        &self,
        report: &Report,
        handed: &Handed,
        attempt_time: Duration,
        now_unix_ms: u64,
    ) {
        self.maillog.attempted(&ToLine {
            id: report.id,
            recipients: &[&report.shown],
            controlling_user: None,
            delay: since(report.envelope.arrival.unix_ms, now_unix_ms),
            attempt_time: Some(attempt_time),
            priority: priority(report.envelope.body_bytes, 0, 1),
            outcome: &handed.outcome,
        });
    }
}

/// Sendmail's priority of a new message: lower goes first.
fn priority(message_bytes: u64, class: i32, recipients: usize) -> i64 {
    let recipients = i64::try_from(recipients).unwrap_or(i64::MAX);
    i64::try_from(message_bytes)
        .unwrap_or(i64::MAX)
        .saturating_sub(i64::from(class).saturating_mul(CLASS_FACTOR))
        .saturating_add(recipients.saturating_mul(RECIPIENT_FACTOR))
}

fn since(from_unix_ms: u64, now_unix_ms: u64) -> Duration {
    Duration::from_millis(now_unix_ms.saturating_sub(from_unix_ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn priorities_are_sendmails() {
        assert_eq!(priority(28, 0, 1), 30_028);
        assert_eq!(priority(25, 0, 3), 90_025);
        assert_eq!(priority(100, -60, 1), 138_100);
    }
}
