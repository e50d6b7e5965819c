//! The events of the maillog: their text, severity and level.
//!
//! Fields and their order are Sendmail's, to the letter, because programs read
//! them. Each event knows from which LogLevel on it is written.
//!
//! Source: lines of Sendmail 8.17; `logsender` and `logdelivery` by their effect.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::time::Duration;

use super::{LINE_LEN_MAX, Maillog, QueueId, Severity};
use crate::envelope::{ControllingUser, Delivery, MessageId, Outcome};
use crate::status::Status;

/// The longest address in a line, in bytes. Source: Sendmail's MAXSHORTSTR.
const ADDRESS_LEN_MAX: usize = 203;
/// What stands for the middle of a longer one.
const ELLIPSIS: &str = "...";

/// From which LogLevel on events are written.
pub mod level_of {
    /// Errors of the system, the daemon's start.
    pub const ALWAYS: u32 = 0;
    /// Clients that go away in the middle.
    pub const LOST_CHANNEL: u32 = 2;
    /// Refusals, unknown users, rebuilt aliases.
    pub const REJECT: u32 = 4;
    /// `from=`.
    pub const RECEIVED: u32 = 5;
    /// Clients that did nothing, VRFY, EXPN.
    pub const CLIENT: u32 = 6;
    /// `to=` with a failure.
    pub const FAILED: u32 = 7;
    /// `to=` with `stat=Sent`.
    pub const DELIVERED: u32 = 8;
    /// `to=` with a deferral; DSNs; copies for owners.
    pub const DEFERRED: u32 = 9;
    /// Connections, ends of messages, how the daemon was started and ended.
    pub const CONNECTION: u32 = 10;
    /// What aliases lead to.
    pub const ALIAS: u32 = 11;
    /// Every line of a dialogue.
    pub const DIALOGUE: u32 = 15;
}

/// A message that was received, or given up while it was.
#[derive(Debug, Clone, Copy)]
pub struct Received<'e> {
    /// Its queue id.
    pub id: MessageId,
    /// The sender as the log shows it: `alice`, `<a@b>`, `<>`.
    pub sender: &'e str,
    /// Bytes received, header included.
    pub size_bytes: u64,
    /// Precedence of the message; 0 for most.
    pub class: i32,
    /// Recipients after expansion, as far as it was done.
    pub recipient_count: usize,
    /// The Message-Id field with its brackets; empty for none.
    pub message_id_field: &'e str,
    /// `8BITMIME` or `7BIT`, if the sender said so; else empty.
    pub body_type: &'e str,
    /// `SMTP`, `ESMTP`, `ESMTPS` ..; empty for a submission.
    pub protocol: &'e str,
    /// The daemon's name; empty for a submission.
    pub daemon: &'e str,
    /// Who sent it: `alice@localhost`, `name [1.2.3.4]`.
    pub relay: &'e str,
}

/// One attempt, for the recipients that had the same outcome.
#[derive(Debug, Clone, Copy)]
pub struct ToLine<'e> {
    /// The message's queue id.
    pub id: MessageId,
    /// Recipients as the log shows them.
    pub recipients: &'e [&'e str],
    /// On whose authority.
    pub controlling_user: Option<&'e ControllingUser>,
    /// Time since the message was received.
    pub delay: Duration,
    /// Time this attempt took; `None` if none was made.
    pub attempt_time: Option<Duration>,
    /// The message's priority in the queue.
    pub priority: i64,
    /// How it ended.
    pub outcome: &'e Outcome,
}

/// A refusal by a rule, at the SMTP port.
#[derive(Debug, Clone, Copy)]
pub struct Reject<'e> {
    /// The rule: `check_rcpt`.
    pub ruleset: &'e str,
    /// What it was asked about.
    pub arg1: &'e str,
    /// Its second argument; empty for none.
    pub arg2: &'e str,
    /// The client.
    pub relay: &'e str,
    /// What was done.
    pub rejection: Rejection<'e>,
}

/// What a rule did to a message.
#[derive(Debug, Clone, Copy)]
pub enum Rejection<'e> {
    /// Refused with this reply: `550 5.7.1 <u@d>... Relaying denied`.
    Reply(&'e str),
    /// Accepted and thrown away.
    Discard,
    /// Accepted and held back, for this reason.
    Quarantine(&'e str),
}

/// Why a report was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DsnCause {
    /// A delivery failed or succeeded: `DSN: User unknown`.
    Dsn,
    /// The sender is told of a delay or of giving up: `sender notify: ..`.
    SenderNotify,
    /// The postmaster's copy, or a report that had nowhere else to go.
    PostmasterNotify,
    /// A report about a report.
    ReturnToSender,
}

impl DsnCause {
    const fn name(self) -> &'static str {
        match self {
            Self::Dsn => "DSN",
            Self::SenderNotify => "sender notify",
            Self::PostmasterNotify => "postmaster notify",
            Self::ReturnToSender => "return to sender",
        }
    }
}

impl Maillog {
    /// `ID: from=SENDER, size=N, class=N, nrcpts=N, ..`, info.
    pub fn received(&self, event: &Received<'_>) {
        if self.is_written(level_of::RECEIVED) {
            self.write(
                Severity::Info,
                level_of::RECEIVED,
                event.id.into(),
                &event.text(),
            );
        }
    }

    /// `ID: to=.., delay=.., stat=..`, info; with many recipients several
    /// lines, all but the last with `[more]`.
    pub fn attempted(&self, event: &ToLine<'_>) {
        let level = match event.outcome.result {
            Delivery::Delivered => level_of::DELIVERED,
            Delivery::Deferred => level_of::DEFERRED,
            Delivery::Failed => level_of::FAILED,
        };
        if !self.is_written(level) {
            return;
        }
        for text in event.texts() {
            self.write(Severity::Info, level, event.id.into(), &text);
        }
    }

    /// `[ID: ]ruleset=.., arg1=.., relay=.., reject=..`, notice.
    pub fn rejected(&self, id: Option<MessageId>, event: &Reject<'_>) {
        if self.is_written(level_of::REJECT) {
            let id = id.map_or(QueueId::Omitted, QueueId::Known);
            self.write(Severity::Notice, level_of::REJECT, id, &event.text());
        }
    }

    /// `ID: <u@d>... User unknown`, notice: an error of the client's.
    pub fn user_error(&self, id: Option<MessageId>, text: &str) {
        self.write(Severity::Notice, level_of::REJECT, id.into(), text);
    }

    /// `ID: SYSERR(USER): TEXT`, crit: an error of ours.
    pub fn system_error(&self, id: Option<MessageId>, user: &str, text: &str) {
        self.write(
            Severity::Critical,
            level_of::ALWAYS,
            id.into(),
            &format!("SYSERR({user}): {text}"),
        );
    }

    /// `ID: NEWID: DSN: REASON`, info: a report about `id` was made as `report`.
    pub fn report_made(&self, id: MessageId, report: MessageId, cause: DsnCause, reason: &str) {
        if self.is_written(level_of::DEFERRED) {
            let text = format!("{report}: {}: {reason}", cause.name());
            self.write(Severity::Info, level_of::DEFERRED, id.into(), &text);
        }
    }

    /// `ID: NEWID: clone: owner=OWNER`, info.
    pub fn cloned(&self, id: MessageId, clone: MessageId, owner: &str) {
        if self.is_written(level_of::DEFERRED) {
            let text = format!("{clone}: clone: owner={owner}");
            self.write(Severity::Info, level_of::DEFERRED, id.into(), &text);
        }
    }

    /// `ID: done; delay=.., ntries=N`, info.
    pub fn done(&self, id: MessageId, delay: Duration, tries: u32) {
        if self.is_written(level_of::CONNECTION) {
            let text = format!("done; delay={}, ntries={tries}", interval(delay));
            self.write(Severity::Info, level_of::CONNECTION, id.into(), &text);
        }
    }

    /// `ID: lost input channel from HOST to DAEMON after COMMAND`, notice.
    pub fn lost_channel(&self, id: Option<MessageId>, relay: &str, daemon: &str, after: &str) {
        if self.is_written(level_of::LOST_CHANNEL) {
            let text = format!("lost input channel from {relay} to {daemon} after {after}");
            self.write(Severity::Notice, level_of::LOST_CHANNEL, id.into(), &text);
        }
    }

    /// `ID: HOST did not issue MAIL/EXPN/VRFY/ETRN during connection to DAEMON`,
    /// info.
    pub fn did_nothing(&self, id: Option<MessageId>, relay: &str, daemon: &str) {
        if self.is_written(level_of::CLIENT) {
            let text =
                format!("{relay} did not issue MAIL/EXPN/VRFY/ETRN during connection to {daemon}");
            self.write(Severity::Info, level_of::CLIENT, id.into(), &text);
        }
    }

    /// `starting daemon (VERSION): SMTP+queueing@HH:MM:SS`, info.
    pub fn daemon_started(&self, version: &str, is_smtp: bool, queue_interval: Option<Duration>) {
        let text = text_of_starting(version, is_smtp, queue_interval);
        self.write(Severity::Info, level_of::ALWAYS, QueueId::Omitted, &text);
    }

    /// `NOQUEUE: stopping daemon, reason=REASON`, info.
    pub fn daemon_stopping(&self, reason: &str) {
        let text = format!("stopping daemon, reason={reason}");
        self.write(Severity::Info, level_of::CONNECTION, QueueId::None, &text);
    }

    /// `alias database FILE rebuilt by USER`, notice, and
    /// `FILE: N aliases, longest N bytes, N bytes total`, info.
    pub fn aliases_rebuilt(
        &self,
        file: &str,
        user: &str,
        count: u64,
        longest_bytes: u64,
        total_bytes: u64,
    ) {
        self.write(
            Severity::Notice,
            level_of::REJECT,
            QueueId::Omitted,
            &format!("alias database {file} rebuilt by {user}"),
        );
        self.write(
            Severity::Info,
            level_of::FAILED,
            QueueId::Omitted,
            &format!(
                "{file}: {count} aliases, longest {longest_bytes} bytes, {total_bytes} bytes total"
            ),
        );
    }
}

/// The text of the line that a daemon starts with, which it also prints.
#[must_use]
pub fn text_of_starting(version: &str, is_smtp: bool, queue_interval: Option<Duration>) -> String {
    let mut what = String::new();
    if is_smtp {
        what.push_str("SMTP");
    }
    if let Some(every) = queue_interval {
        if is_smtp {
            what.push('+');
        }
        // Writing to a String cannot fail.
        let _ = write!(what, "queueing@{}", interval(every));
    }
    format!("starting daemon ({version}): {what}")
}

impl Received<'_> {
    fn text(&self) -> String {
        let mut text = String::with_capacity(256);
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "from={}, size={}, class={}, nrcpts={}",
            self.sender, self.size_bytes, self.class, self.recipient_count
        );
        push_field(&mut text, "msgid", self.message_id_field);
        push_field(&mut text, "bodytype", self.body_type);
        push_field(&mut text, "proto", self.protocol);
        push_field(&mut text, "daemon", self.daemon);
        push_field(&mut text, "relay", self.relay);
        text
    }
}

impl ToLine<'_> {
    /// One text, or several where the recipients do not fit in a line.
    fn texts(&self) -> Vec<String> {
        let tail = self.tail();
        let room = LINE_LEN_MAX
            .saturating_sub(tail.len() + "to= [more]".len() + 20)
            .max(LINE_LEN_MAX / 4);
        let mut texts = Vec::new();
        let mut list = String::new();
        for (index, recipient) in self.recipients.iter().enumerate() {
            let recipient = &*shortened(recipient);
            if !list.is_empty() && list.len() + recipient.len() > room {
                texts.push(format!("to={list} [more]{tail}"));
                list.clear();
            }
            list.push_str(recipient);
            if index + 1 < self.recipients.len() {
                list.push(',');
            }
        }
        texts.push(format!("to={list}{tail}"));
        texts
    }

    fn tail(&self) -> String {
        let outcome = self.outcome;
        let mut text = String::with_capacity(256);
        // Writing to a String cannot fail.
        if let Some(user) = self.controlling_user {
            let name = shortened(&user.name);
            let _ = write!(text, ", ctladdr={name} ({}/{})", user.uid, user.gid);
        }
        let _ = write!(text, ", delay={}", interval(self.delay));
        if let Some(time) = self.attempt_time {
            let _ = write!(text, ", xdelay={}", interval(time));
        }
        push_field(&mut text, "mailer", &outcome.mailer);
        let _ = write!(text, ", pri={}", self.priority);
        push_field(&mut text, "relay", &outcome.relay);
        if self.shows_status() {
            let _ = write!(text, ", dsn={}", outcome.status);
        }
        push_field(
            &mut text,
            "reply",
            outcome.reply.as_deref().unwrap_or_default(),
        );
        let _ = write!(text, ", stat={}", outcome.text);
        text
    }

    /// A message that was only queued has no status yet.
    fn shows_status(&self) -> bool {
        let Status { class, .. } = self.outcome.status;
        self.attempt_time.is_some() || class != 2
    }
}

impl Reject<'_> {
    fn text(&self) -> String {
        let mut text = format!("ruleset={}, arg1={}", self.ruleset, self.arg1);
        push_field(&mut text, "arg2", self.arg2);
        push_field(&mut text, "relay", self.relay);
        match self.rejection {
            Rejection::Reply(reply) => push_field(&mut text, "reject", reply),
            Rejection::Discard => text.push_str(", discard"),
            Rejection::Quarantine(reason) => push_field(&mut text, "quarantine", reason),
        }
        text
    }
}

/// `, NAME=VALUE`, unless the value is empty.
/// An address without its middle if it is longer than [`ADDRESS_LEN_MAX`], so that what became of it stays in the line.
fn shortened(address: &str) -> Cow<'_, str> {
    if address.len() <= ADDRESS_LEN_MAX {
        return Cow::Borrowed(address);
    }
    let half = (ADDRESS_LEN_MAX - ELLIPSIS.len()) / 2;
    let head = address.floor_char_boundary(half);
    let tail = address.ceil_char_boundary(address.len() - half);
    let (head, tail) = (address.get(..head), address.get(tail..));
    Cow::Owned([head.unwrap_or_default(), ELLIPSIS, tail.unwrap_or_default()].concat())
}

fn push_field(text: &mut String, name: &str, value: &str) {
    if !value.is_empty() {
        // Writing to a String cannot fail.
        let _ = write!(text, ", {name}={value}");
    }
}

/// A length of time as the log writes it: `00:00:01`, with days `1+02:03:04`.
#[must_use]
pub fn interval(length: Duration) -> String {
    let seconds = length.as_secs();
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let clock = format!("{:02}:{:02}:{:02}", rest / 3_600, rest / 60 % 60, rest % 60);
    if days > 0 {
        format!("{days}+{clock}")
    } else {
        clock
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> MessageId {
        MessageId::first_of(1_795_368_981, 7)
    }

    #[test]
    fn a_received_message_has_sendmails_fields_in_their_order() {
        let smtp = Received {
            id: id(),
            sender: "<s@sender.test>",
            size_bytes: 18,
            class: 0,
            recipient_count: 2,
            message_id_field: "<1@gold.example.test>",
            body_type: "8BITMIME",
            protocol: "ESMTP",
            daemon: "MTA",
            relay: "localhost [127.0.0.1]",
        };
        assert_eq!(
            smtp.text(),
            "from=<s@sender.test>, size=18, class=0, nrcpts=2, msgid=<1@gold.example.test>, \
             bodytype=8BITMIME, proto=ESMTP, daemon=MTA, relay=localhost [127.0.0.1]"
        );
        let submitted = Received {
            sender: "alice",
            message_id_field: "",
            body_type: "",
            protocol: "",
            daemon: "",
            relay: "alice@localhost",
            ..smtp
        };
        assert_eq!(
            submitted.text(),
            "from=alice, size=18, class=0, nrcpts=2, relay=alice@localhost"
        );
    }

    #[test]
    fn an_attempt_has_sendmails_fields_in_their_order() {
        let mut outcome = Outcome::new(Delivery::Failed, Status::NO_USER, "relay", "User unknown");
        outcome.relay = "[127.0.0.1] [127.0.0.1]".to_owned();
        outcome.reply = Some("550 5.1.1 <nosuch@gold.example.test>... User unknown".to_owned());
        let user = ControllingUser {
            name: "alice".to_owned(),
            uid: 1000,
            gid: 1000,
        };
        let line = ToLine {
            id: id(),
            recipients: &["nosuch"],
            controlling_user: Some(&user),
            delay: Duration::from_secs(93_784),
            attempt_time: Some(Duration::ZERO),
            priority: 30_030,
            outcome: &outcome,
        };
        assert_eq!(
            line.texts(),
            [
                "to=nosuch, ctladdr=alice (1000/1000), delay=1+02:03:04, xdelay=00:00:00, \
              mailer=relay, pri=30030, relay=[127.0.0.1] [127.0.0.1], dsn=5.1.1, \
              reply=550 5.1.1 <nosuch@gold.example.test>... User unknown, stat=User unknown"
            ]
        );
        let queued = Outcome::new(Delivery::Deferred, Status::OK, "relay", "queued");
        let line = ToLine {
            controlling_user: None,
            attempt_time: None,
            outcome: &queued,
            ..line
        };
        assert_eq!(
            line.texts(),
            ["to=nosuch, delay=1+02:03:04, mailer=relay, pri=30030, stat=queued"]
        );
    }

    #[test]
    fn a_long_address_leaves_room_for_what_became_of_it() {
        for length in [203, 204, 5_000] {
            let address = format!("<{}\u{fc}@x.test>", "a".repeat(length - 11));
            let shown = shortened(&address).into_owned();
            assert!(shown.len() <= ADDRESS_LEN_MAX, "{shown}");
            assert_eq!(shown == address, length == 203);
            assert!(
                shown.starts_with("<aaa") && shown.ends_with("a\u{fc}@x.test>"),
                "{shown}"
            );
        }
        let cut = shortened(&"\u{fc}".repeat(300)).into_owned();
        assert_eq!(cut, format!("{0}...{0}", "\u{fc}".repeat(50)));
    }

    #[test]
    fn many_recipients_are_listed_on_several_whole_lines() {
        let outcome = Outcome::new(Delivery::Delivered, Status::OK, "local", "Sent");
        let names: Vec<String> = (0..200)
            .map(|n| format!("<user{n}@example.test>"))
            .collect();
        let recipients: Vec<&str> = names.iter().map(String::as_str).collect();
        let line = ToLine {
            id: id(),
            recipients: &recipients,
            controlling_user: None,
            delay: Duration::ZERO,
            attempt_time: Some(Duration::ZERO),
            priority: 1,
            outcome: &outcome,
        };
        let texts = line.texts();
        let (last, others) = texts.split_last().unwrap();
        assert!(
            others
                .iter()
                .all(|text| text.contains(", [more], delay=") || text.contains(" [more], delay="))
        );
        assert!(
            texts
                .iter()
                .all(|text| text.len() <= LINE_LEN_MAX && text.ends_with("stat=Sent"))
        );
        assert!(last.contains("<user199@example.test>, delay="));
        let listed: usize = texts
            .iter()
            .map(|text| text.matches("@example.test").count())
            .sum();
        assert_eq!(listed, 200);
    }

    #[test]
    fn refusals_name_rule_arguments_and_reply() {
        let reject = Reject {
            ruleset: "check_relay",
            arg1: "client50.test",
            arg2: "127.0.0.50",
            relay: "client50.test [127.0.0.50]",
            rejection: Rejection::Reply("421 4.3.2 Connection rate limit exceeded."),
        };
        assert_eq!(
            reject.text(),
            "ruleset=check_relay, arg1=client50.test, arg2=127.0.0.50, \
             relay=client50.test [127.0.0.50], reject=421 4.3.2 Connection rate limit exceeded."
        );
        let discard = Reject {
            arg2: "",
            rejection: Rejection::Discard,
            ..reject
        };
        assert!(discard.text().ends_with("[127.0.0.50], discard"));
    }

    #[test]
    fn a_daemon_says_what_it_does() {
        let hour = Some(Duration::from_secs(3_600));
        assert_eq!(
            text_of_starting("1.0", true, hour),
            "starting daemon (1.0): SMTP+queueing@01:00:00"
        );
        assert_eq!(
            text_of_starting("1.0", false, hour),
            "starting daemon (1.0): queueing@01:00:00"
        );
        assert_eq!(
            text_of_starting("1.0", true, None),
            "starting daemon (1.0): SMTP"
        );
    }
}
