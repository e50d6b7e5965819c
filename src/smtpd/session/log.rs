//! The lines a session writes to the maillog, in Sendmail's words and fields.
//!
//! Pure: lines gather and are taken by the driver. A line has the queue id of the message begun, or one given to the
//! session the first time it has something to say. Source: Sendmail 8.17's own lines.

use super::super::command::shorten;
use super::super::message::{Mail, Reception};
use super::super::settings::LogLine;
use super::Session;
use crate::envelope::{BodyType, MessageId};
use crate::maillog::Severity;
use crate::route::Disposition;
use crate::status::Reply;

impl Session {
    pub(super) fn note(&mut self, severity: Severity, level: u32, text: String) {
        let id = match self.mail.as_ref().and_then(|mail| mail.id) {
            Some(id) => id,
            None => *self.id.get_or_insert_with(|| (self.settings.new_id)()),
        };
        self.note_for(Some(id), severity, level, text);
    }

    pub(super) fn note_for(
        &mut self,
        id: Option<MessageId>,
        severity: Severity,
        level: u32,
        text: String,
    ) {
        self.log.push(LogLine {
            severity,
            level,
            id,
            text,
        });
    }

    pub(super) fn note_refusal(&mut self, reply: &Reply) {
        self.note(Severity::Notice, 4, reply.lines.join(" "));
    }

    pub(super) fn note_ruleset(&mut self, ruleset: &str, argument: &str, reply: &Reply) {
        self.note_outcome(ruleset, argument, &format!("reject={}", reply.to_line()));
    }

    /// What the access map makes of a message that is taken; nothing if it is just taken.
    pub(super) fn note_disposition(
        &mut self,
        ruleset: &str,
        argument: &str,
        disposition: &Disposition,
    ) {
        if let Some(outcome) = outcome(disposition) {
            self.note_outcome(ruleset, argument, &outcome);
        }
    }

    fn note_outcome(&mut self, ruleset: &str, argument: &str, outcome: &str) {
        let text = format!(
            "ruleset={ruleset}, arg1={argument}, relay={}, {outcome}",
            self.peer.shown
        );
        self.note(Severity::Notice, 4, text);
    }

    pub(super) fn note_query(&mut self, verb: &str, argument: &str, outcome: &str) {
        let blank = if argument.is_empty() { "" } else { " " };
        let text = format!(
            "{}: {verb}{blank}{}{outcome}",
            self.peer.shown,
            shorten(argument)
        );
        self.note(Severity::Info, 6, text);
    }

    pub(super) fn log_from(&mut self, mail: &Mail, size: u64, header: Option<(&str, i32)>) {
        let id = mail
            .id
            .or_else(|| Some(*self.id.get_or_insert_with(|| (self.settings.new_id)())));
        let (message_id, class) = match header {
            Some((message_id, class)) if !message_id.is_empty() => {
                (format!(", msgid={message_id}"), class)
            }
            Some((_, class)) => (String::new(), class),
            None => (String::new(), 0),
        };
        let body_type = match mail.parameters.body_type {
            BodyType::Unspecified => "",
            BodyType::SevenBit => ", bodytype=7BIT",
            BodyType::EightBitMime => ", bodytype=8BITMIME",
        };
        let text = format!(
            "from={}, size={size}, class={class}, nrcpts={}{message_id}{body_type}, proto={}, daemon={}, relay={}",
            mail.shown,
            mail.recipients.len(),
            self.protocol,
            self.peer.daemon,
            self.peer.shown
        );
        self.note_for(id, Severity::Info, 5, text);
    }

    pub(super) fn log_refused_message(&mut self, mail: &Mail, reception: &Reception) {
        let Some(refusal) = &reception.refusal else {
            return;
        };
        let size = reception.lf_bytes;
        if !refusal.log.is_empty() {
            self.note_for(mail.id, refusal.severity, 1, refusal.log.clone());
        }
        self.log_from(mail, size, Some(("", reception.facts.class)));
        let max = self.settings.limits.message_bytes_max;
        if max > 0 && size > max {
            let text = format!("message size ({size}) exceeds maximum ({max})");
            self.note_for(mail.id, Severity::Notice, 4, text);
        }
        let count = u64::try_from(mail.recipients.len()).unwrap_or(u64::MAX);
        let priority = count.saturating_mul(30_000).saturating_add(size);
        let stat = refusal.reply.lines.join(" ");
        for recipient in &mail.recipients {
            let text = format!(
                "to={}, delay=00:00:00, pri={priority}, stat={stat}",
                shorten(&recipient.shown())
            );
            self.note_for(mail.id, Severity::Info, 5, text);
        }
    }
}

/// A disposition in the log's words; `None` for a message that is just taken.
pub(super) fn outcome(disposition: &Disposition) -> Option<String> {
    match disposition {
        Disposition::Accept => None,
        Disposition::Discard => Some("discard".to_owned()),
        Disposition::Quarantine(reason) => Some(format!("quarantine={}", shorten(reason))),
    }
}
