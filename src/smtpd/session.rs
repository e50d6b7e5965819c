//! One SMTP session as a state machine: bytes in, replies and questions out. No sockets, no waiting.
//!
//! The driver calls [`Session::step`] with what it has read. Each [`Step`] is either a question, which it answers with
//! the method named there before the next step, or something to do. Replies gather in [`Session::output`], to be
//! written when a step asks for input, waits or closes: that is how a pipeline's replies leave in one write (RFC 2920).
//! Lines for the maillog gather in [`Session::take_log`].
//!
//! Guarantees: the same bytes give the same replies however they are cut, but for the rule that a client waits for the
//! reply to HELO and EHLO; `250` to data only after [`Session::committed`] said so (I1); memory is bounded by the
//! limits of [`Settings`], [`COMMAND_BYTES_MAX`] and the driver's buffer.
//!
//! Sources: RFC 5321, 2034, 2920; texts, codes and log lines are Sendmail's.

mod commands;
mod log;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use super::message::{Mail, Progress, Reception, ReceptionTrace, spool_refusal};
use super::settings::{LogLine, Peer, Settings, VERSION};
use crate::address::{Address, ReversePath};
use crate::clock::date::arpa_date;
use crate::envelope::{Arrival, Envelope, MessageId, Recipient};
use crate::maillog::Severity;
use crate::route::{Client, Disposition};
use crate::spool::SpoolError;
use crate::status::{Reply, Status};

/// Longest command line with its line end, in bytes (RFC 5321 4.5.3.1.4 asks for 512; this is Sendmail's).
pub const COMMAND_BYTES_MAX: usize = 2048;

/// What the driver is to do next.
#[derive(Debug)]
pub enum Step<'a> {
    /// Write the output, then read more; what is left of the input must be kept in front of it.
    Read,
    /// May this sender be used? Answer with [`Session::sender_checked`].
    CheckSender(&'a ReversePath, &'a Client),
    /// Begin a message in the spool. Answer with [`Session::begun`].
    Begin {
        /// The id it is to have.
        id: MessageId,
        /// How long the client says it will be; 0 if it did not.
        declared_bytes: u64,
    },
    /// May this recipient be used? Answer with [`Session::recipient_checked`].
    CheckRecipient(&'a Address, &'a Client),
    /// VRFY. Answer with [`Session::verified`].
    Verify(&'a str),
    /// EXPN. Answer with [`Session::expanded`].
    Expand(&'a str),
    /// Content of the message begun. No answer, but [`Session::content_refused`] if it can't be kept.
    Content(&'a [u8]),
    /// Drop the message begun; nothing of it may remain. No answer.
    Abandon,
    /// Make the message durable. Answer with [`Session::committed`].
    Commit(Box<Envelope>),
    /// Write the output, then wait this long before the next step.
    Pause(Duration),
    /// Write the output, then close the connection.
    Close,
}

enum Phase {
    /// Before the greeting.
    Start,
    Command,
    Sender,
    Begin,
    Recipient(Box<PendingRecipient>),
    Verify(String),
    Expand(String),
    Data(Box<Reception>),
    /// The envelope has been handed out.
    Commit,
    Closed,
}

struct PendingRecipient {
    address: Address,
    shown: String,
    recipient: Recipient,
}

/// A session with one client.
pub struct Session {
    settings: Arc<Settings>,
    peer: Peer,
    phase: Phase,
    out: Vec<u8>,
    log: Vec<LogLine>,
    mail: Option<Box<Mail>>,
    /// What all commands that do anything are answered.
    refusal: Option<Reply>,
    /// What becomes of all messages of this client.
    disposition: Disposition,
    protocol: &'static str,
    has_helo: bool,
    is_verbose: bool,
    /// MAIL, VRFY or EXPN was given.
    has_purpose: bool,
    has_mail: bool,
    has_quit: bool,
    /// The message begun is no longer wanted, and the driver has not been told.
    must_abandon: bool,
    pause: Duration,
    id: Option<MessageId>,
    last_command: &'static str,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    commands: u32,
    bad: u32,
    noop: u32,
    helo: u32,
    vrfy: u32,
}

/// A command line, and what remains to be said of its bytes.
struct Line<'i> {
    text: Cow<'i, str>,
    /// Printable ASCII and tabs only.
    is_plain: bool,
    /// Has a NUL or a CR within.
    is_broken: bool,
}

enum Next<'i> {
    Again,
    Read,
    Text(&'i [u8]),
    Prologue,
    Abandon,
    Commit(Box<Envelope>),
    Ask,
    Pause(Duration),
    Close,
}

impl Session {
    /// A session that has not yet greeted.
    #[must_use]
    pub fn new(settings: Arc<Settings>, peer: Peer) -> Self {
        Self {
            settings,
            peer,
            phase: Phase::Start,
            out: Vec::with_capacity(512),
            log: Vec::new(),
            mail: None,
            refusal: None,
            disposition: Disposition::Accept,
            protocol: "SMTP",
            has_helo: false,
            is_verbose: false,
            has_purpose: false,
            has_mail: false,
            has_quit: false,
            must_abandon: false,
            pause: Duration::ZERO,
            id: None,
            last_command: "startup",
            counts: Counts::default(),
        }
    }

    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Who is at the other end, as routing asks; HELO included.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.peer.client
    }

    /// Replies to be written; the driver clears what it has written.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Lines for the maillog since the last call.
    pub fn take_log(&mut self) -> Vec<LogLine> {
        std::mem::take(&mut self.log)
    }

    /// Whether message data are being read, for the choice of a timeout.
    #[must_use]
    pub fn is_receiving(&self) -> bool {
        matches!(self.phase, Phase::Data(_))
    }

    /// How long a client that gave VERB may wait for its message's run.
    #[must_use]
    pub fn verbose_wait(&self) -> Duration {
        self.settings.timeouts.verbose_run
    }

    /// Whether the session ended because the client said so, and nothing it sent is left unread.
    #[must_use]
    pub fn has_quit(&self) -> bool {
        self.has_quit
    }

    /// Whether the client asked to see the delivery (VERB).
    #[must_use]
    pub fn is_verbose(&self) -> bool {
        self.is_verbose
    }

    /// Greets, or refuses the client if `admission` says so: with 421 at once, otherwise every command it gives.
    pub fn greet(&mut self, admission: Result<Disposition, Reply>) {
        self.phase = Phase::Command;
        let outcome = match &admission {
            Ok(disposition) => log::outcome(disposition),
            Err(reply) => Some(format!("reject={}", reply.to_line())),
        };
        if let Some(outcome) = outcome {
            let name = self.peer.short();
            let text = format!(
                "ruleset=check_relay, arg1={name}, arg2={}, relay={}, {outcome}",
                self.peer.client.address, self.peer.shown,
            );
            self.log.push(LogLine {
                severity: Severity::Notice,
                level: 4,
                id: None,
                text,
            });
        }
        match admission {
            Ok(disposition) => self.disposition = disposition,
            Err(reply) => {
                if reply.code == 421 {
                    self.say(&reply);
                    self.phase = Phase::Closed;
                    return;
                }
                self.refusal = Some(reply);
            }
        }
        let text = self.greeting();
        self.put("220 ", &text);
    }

    /// Refuses a client that spoke before it was greeted, `waited` after it connected.
    pub fn refuse_early_talker(&mut self, waited: Duration) {
        self.phase = Phase::Command;
        let text = format!(
            "rejecting commands from {} due to pre-greeting traffic after {} seconds",
            self.peer.shown,
            waited.as_secs()
        );
        self.note(Severity::Info, 1, text);
        let host = self.settings.host.clone();
        self.put("554 ", &format!("{host} ESMTP not accepting messages"));
        self.refusal = Some(Reply::new(550, Status::new(5, 0, 0), "Command rejected"));
    }

    fn greeting(&self) -> String {
        let date = arpa_date(self.settings.clock.unix_ms());
        let host = &self.settings.host;
        let short = host.split('.').next().unwrap_or(host);
        let mut text = String::with_capacity(96);
        let mut rest = self.settings.greeting.as_str();
        while let Some(at) = rest.find('$') {
            let (head, tail) = rest.split_at(at);
            text.push_str(head);
            let known = match tail.as_bytes().get(1) {
                Some(b'j') => Some(host.as_str()),
                Some(b'w') => Some(short),
                Some(b'v' | b'Z') => Some(VERSION),
                Some(b'b') => Some(date.as_str()),
                _ => None,
            };
            text.push_str(known.unwrap_or("$"));
            rest = tail
                .get(if known.is_some() { 2 } else { 1 }..)
                .unwrap_or_default();
        }
        text.push_str(rest);
        // Sendmail: the word ESMTP goes in after the first.
        match text.split_once(' ') {
            Some((first, rest)) => format!("{first} ESMTP {rest}"),
            None => format!("{text} ESMTP"),
        }
    }

    /// Goes on with the input, and takes off it what was used.
    pub fn step<'s, 'i: 's>(&'s mut self, input: &mut &'i [u8]) -> Step<'s> {
        let next = loop {
            match self.advance(input) {
                Next::Again => {}
                next => break next,
            }
        };
        match next {
            Next::Text(text) => Step::Content(text),
            Next::Abandon => Step::Abandon,
            Next::Commit(envelope) => Step::Commit(envelope),
            Next::Pause(time) => Step::Pause(time),
            Next::Close => Step::Close,
            Next::Read | Next::Again => Step::Read,
            Next::Prologue | Next::Ask => match &self.phase {
                Phase::Data(reception) => Step::Content(&reception.prologue),
                Phase::Recipient(pending) => {
                    Step::CheckRecipient(&pending.address, &self.peer.client)
                }
                Phase::Verify(text) => Step::Verify(text),
                Phase::Expand(text) => Step::Expand(text),
                Phase::Begin => Step::Begin {
                    id: *self.id.get_or_insert_with(|| (self.settings.new_id)()),
                    declared_bytes: self
                        .mail
                        .as_ref()
                        .and_then(|mail| mail.parameters.declared_bytes)
                        .unwrap_or(0),
                },
                _ => match &self.mail {
                    Some(mail) => Step::CheckSender(&mail.path, &self.peer.client),
                    None => Step::Read,
                },
            },
        }
    }

    fn advance<'i>(&mut self, input: &mut &'i [u8]) -> Next<'i> {
        if std::mem::take(&mut self.must_abandon) {
            return Next::Abandon;
        }
        if !self.pause.is_zero() {
            return Next::Pause(std::mem::take(&mut self.pause));
        }
        match &mut self.phase {
            Phase::Closed => Next::Close,
            Phase::Start | Phase::Commit => Next::Read,
            Phase::Sender
            | Phase::Begin
            | Phase::Recipient(_)
            | Phase::Verify(_)
            | Phase::Expand(_) => Next::Ask,
            Phase::Command => match self.take_line(input) {
                Some(line) => {
                    self.obey(&line, input);
                    Next::Again
                }
                None if matches!(self.phase, Phase::Closed) => Next::Again,
                None => Next::Read,
            },
            Phase::Data(_) => self.advance_data(input),
        }
    }

    /// The next command line. `None` also when the session ends because it is too long.
    fn take_line<'i>(&mut self, input: &mut &'i [u8]) -> Option<Line<'i>> {
        let window = input.get(..COMMAND_BYTES_MAX).unwrap_or(input);
        let Some(end) = memchr::memchr(b'\n', window) else {
            if window.len() == COMMAND_BYTES_MAX {
                let text = format!(
                    "{} Command too long, possible attack {}",
                    self.settings.host, self.peer.shown
                );
                self.note(
                    Severity::Info,
                    6,
                    format!(
                        "{}: possible SMTP attack: command too long",
                        self.peer.shown
                    ),
                );
                self.say(&Reply::new(421, Status::new(4, 7, 0), text));
                self.close();
            }
            return None;
        };
        let (bytes, rest) = (input.get(..end)?, input.get(end + 1..)?);
        *input = rest;
        // Commands may end with LF alone, as in Sendmail; message data may not.
        let mut bytes = bytes;
        while let Some(shorter) = bytes.strip_suffix(b"\r") {
            bytes = shorter;
        }
        let broken = memchr::memchr2(0, b'\r', bytes);
        let bytes = broken.map_or(bytes, |at| bytes.get(..at).unwrap_or_default());
        let is_plain = bytes.iter().all(|b| matches!(b, b' '..=b'~' | b'\t'));
        let text = match std::str::from_utf8(bytes) {
            Ok(text) if is_plain => Cow::Borrowed(text),
            _ => Cow::Owned(
                bytes
                    .iter()
                    .map(|b| match b {
                        b' '..=b'~' | b'\t' => char::from(*b),
                        _ => '?',
                    })
                    .collect(),
            ),
        };
        Some(Line {
            text,
            is_plain,
            is_broken: broken.is_some(),
        })
    }

    fn advance_data<'i>(&mut self, input: &mut &'i [u8]) -> Next<'i> {
        let (Phase::Data(reception), Some(mail)) = (&mut self.phase, &self.mail) else {
            self.phase = Phase::Command;
            return Next::Again;
        };
        let (settings, peer, protocol) = (&self.settings, &self.peer, self.protocol);
        let trace = || ReceptionTrace {
            host: settings.host.clone(),
            helo: peer.client.helo.clone(),
            client: peer.shown.clone(),
            protocol,
            id: mail.id.map(|id| id.to_string()).unwrap_or_default(),
            sender: mail.path.address().map(ToString::to_string),
            sender_shown: mail.shown.clone(),
            first_recipient: mail
                .recipients
                .first()
                .map(|r| r.target.clone())
                .unwrap_or_default(),
            recipients: mail.recipients.len(),
        };
        match reception.advance(input, &settings.limits, &trace) {
            Progress::Read => Next::Read,
            Progress::Text(text) => Next::Text(text),
            Progress::Prologue => Next::Prologue,
            Progress::Abandon => Next::Abandon,
            Progress::Bare(what) => {
                let size = reception.lf_bytes;
                let text = format!("Bare {what} not allowed");
                self.note(
                    Severity::Notice,
                    4,
                    format!("{text}, from {}", self.peer.shown),
                );
                self.end_mail_with_log(size);
                self.reply(421, Status::new(4, 5, 0), &text);
                self.close();
                Next::Again
            }
            Progress::End => self.end_data(),
        }
    }

    fn end_data<'i>(&mut self) -> Next<'i> {
        let Phase::Data(reception) = std::mem::replace(&mut self.phase, Phase::Command) else {
            return Next::Again;
        };
        let Some(mut mail) = self.mail.take() else {
            return Next::Again;
        };
        if let Some(refusal) = &reception.refusal {
            self.log_refused_message(&mail, &reception);
            self.say(&refusal.reply);
            self.id = None;
            return Next::Again;
        }
        // Before the commit, so that it stands before the queue's first line about this message.
        self.log_from(
            &mail,
            reception.lf_bytes,
            Some((&reception.facts.message_id, reception.facts.class)),
        );
        let quarantine = match mail.disposition.clone().and(self.disposition.clone()) {
            Disposition::Accept => None,
            Disposition::Quarantine(reason) => Some(reason),
            Disposition::Discard => {
                self.note_for(mail.id, Severity::Info, 5, "discarded".to_owned());
                self.must_abandon = true;
                self.accepted(mail.id);
                return Next::Again;
            }
        };
        let mut envelope = self.envelope(&mut mail, &reception);
        envelope.quarantine = quarantine;
        self.mail = Some(mail);
        self.phase = Phase::Commit;
        Next::Commit(Box::new(envelope))
    }

    fn envelope(&self, mail: &mut Mail, reception: &Reception) -> Envelope {
        Envelope {
            reverse_path: std::mem::replace(&mut mail.path, ReversePath::Null),
            has_brackets: mail.has_brackets,
            recipients: std::mem::take(&mut mail.recipients),
            body_type: mail.parameters.body_type,
            dsn_return: mail.parameters.dsn_return,
            envelope_id: mail.parameters.envelope_id.take(),
            arrival: Arrival {
                unix_ms: reception.unix_ms,
                protocol: self.protocol.to_owned(),
                daemon: self.peer.daemon.to_string(),
                helo: self.peer.client.helo.clone(),
                client_name: self.peer.client.name.clone(),
                client_address: Some(self.peer.client.address),
                submitter: None,
                message_id_field: reception.facts.message_id.clone(),
                drop_mark: 0,
            },
            body_bytes: reception.lf_bytes.saturating_sub(reception.header_lf_bytes),
            quarantine: None,
        }
    }

    /// Tells that the spool took no more content after [`Step::Content`]; the message is then refused at its end.
    pub fn content_refused(&mut self, error: &SpoolError) {
        let reply = spool_refusal(error);
        if let Phase::Data(reception) = &mut self.phase {
            reception.refusal = Some(super::message::Refusal {
                reply,
                severity: Severity::Critical,
                log: format!("SYSERR(root): cannot keep message data: {error}"),
            });
            self.must_abandon = true;
        }
    }

    /// Adds a line about the delivery for a client that gave VERB; only before [`Session::committed`].
    pub fn verbose_line(&mut self, line: &str) {
        let clean: String = line.chars().filter(|c| !c.is_control()).collect();
        self.put("050 ", &clean);
    }

    /// Answers [`Step::Commit`]. `Ok` promises that content and envelope have been synced (I1).
    pub fn committed(&mut self, result: Result<(), SpoolError>) {
        let Some(mail) = self.mail.take() else { return };
        self.phase = Phase::Command;
        match result {
            Ok(()) => self.accepted(mail.id),
            Err(error) => {
                let text = format!("SYSERR(root): cannot queue message: {error}");
                self.note_for(mail.id, Severity::Critical, 0, text);
                self.say(&spool_refusal(&error));
            }
        }
        self.id = None;
    }

    fn accepted(&mut self, id: Option<MessageId>) {
        let id = id.map(|id| id.to_string()).unwrap_or_default();
        let text = format!("{id} Message accepted for delivery");
        self.reply(250, Status::OK, &text);
        self.id = None;
    }

    /// Ends the session because the client was silent for too long.
    pub fn timed_out(&mut self) {
        if self.is_receiving() {
            return self.break_off_data("read timeout", Severity::Critical);
        }
        let text = format!(
            "timeout waiting for input from {} during server cmd read",
            self.peer.short()
        );
        self.note(Severity::Notice, 1, text);
        let text = format!("{} Timeout waiting for input", self.settings.host);
        self.reply(421, Status::new(4, 4, 2), &text);
        self.close();
    }

    /// Ends the session because the connection was closed or broke.
    pub fn input_ended(&mut self) {
        if matches!(self.phase, Phase::Closed) {
            return;
        }
        if self.is_receiving() {
            return self.break_off_data("unexpected close", Severity::Notice);
        }
        if self.has_mail {
            let text = format!(
                "lost input channel from {} to {} after {}",
                self.peer.shown, self.peer.daemon, self.last_command
            );
            self.note(Severity::Notice, 2, text);
        }
        self.close();
    }

    fn break_off_data(&mut self, why: &str, severity: Severity) {
        let size = match &self.phase {
            Phase::Data(reception) => reception.lf_bytes,
            _ => 0,
        };
        let sender = self.mail.as_ref().map_or("<>", |mail| mail.shown.as_str());
        let text = format!(
            "collect: relay={}, from={sender}, info={why}",
            self.peer.short()
        );
        let log = match severity {
            Severity::Critical => format!("SYSERR(root): {text}"),
            _ => text.clone(),
        };
        self.note(severity, 1, log);
        self.end_mail_with_log(size);
        self.reply(421, Status::new(4, 4, 1), &text);
        self.close();
    }

    /// Ends the session because this server is stopping. Whatever was not answered 250 was not taken.
    pub fn shut_down(&mut self) {
        if matches!(self.phase, Phase::Closed) {
            return;
        }
        let text = format!(
            "{} Server shutting down, closing connection",
            self.settings.host
        );
        self.reply(421, Status::new(4, 3, 2), &text);
        self.close();
    }

    /// Forgets the message begun, and says so in the log.
    fn forget_mail(&mut self) {
        let size = self
            .mail
            .as_ref()
            .and_then(|mail| mail.parameters.declared_bytes)
            .unwrap_or(0);
        self.end_mail_with_log(size);
    }

    fn end_mail_with_log(&mut self, size: u64) {
        if let Some(mail) = self.mail.take() {
            self.log_from(&mail, size, None);
            self.must_abandon = mail.id.is_some();
            self.id = None;
        }
    }

    fn close(&mut self) {
        self.forget_mail();
        if !self.has_purpose && self.refusal.is_none() && !matches!(self.phase, Phase::Start) {
            let text = format!(
                "{} did not issue MAIL/EXPN/VRFY/ETRN during connection to {}",
                self.peer.shown, self.peer.daemon
            );
            self.note(Severity::Info, 6, text);
        }
        self.phase = Phase::Closed;
    }

    fn reply(&mut self, code: u16, status: Status, text: &str) {
        use std::io::Write as _;
        // Writing to a Vec does not fail.
        let _ = write!(self.out, "{code} {status} {text}\r\n");
    }

    fn say(&mut self, reply: &Reply) {
        self.out.extend_from_slice(reply.to_wire().as_bytes());
    }

    fn put(&mut self, code: &str, text: &str) {
        for part in [code, text, "\r\n"] {
            self.out.extend_from_slice(part.as_bytes());
        }
    }
}
