//! What each command does, and what is answered: the part of [`Session`] between a command line and its reply.
//!
//! Pure, as all of the session. Refusals repeat what the client wrote shortened and without control characters, so
//! that neither reply nor log can be forged. Limits: the counts below, after which a client is slowed and then closed.
//!
//! Sources: RFC 5321 3.5 and 4.1, RFC 2920 (what may be pipelined); texts and codes are Sendmail's.

use std::time::Duration;

use super::super::command::{self, Command, MailParameters, Path, RcptParameters, shorten};
use super::super::help;
use super::super::message::{Mail, Reception, spool_refusal};
use super::{Line, PendingRecipient, Phase, Session};
use crate::envelope::Recipient;
use crate::maillog::Severity;
use crate::route::{Disposition, Verified};
use crate::spool::SpoolError;
use crate::status::{Reply, Status};

/// Commands not understood before the connection is closed.
const BAD_COMMANDS_MAX: u32 = 25;
/// HELO and EHLO before each is answered late.
const HELO_MAX: u32 = 3;
/// VRFY and EXPN before each is answered late.
const VRFY_MAX: u32 = 6;
/// The longest time by which a reply is held back.
const PAUSE_MAX: Duration = Duration::from_secs(240);
/// Longest host name taken from HELO, in bytes.
const HELO_BYTES_MAX: usize = 255;

impl Session {
    pub(super) fn obey(&mut self, line: &Line<'_>, rest: &[u8]) {
        let text = line.text.as_ref();
        self.counts.commands = self.counts.commands.saturating_add(1);
        if line.is_broken {
            return self.unrecognized(text);
        }
        if self.counts.commands == 1 && is_http(text) {
            let log = format!(
                "{}: probable open proxy: command={}",
                self.peer.shown,
                shorten(text)
            );
            self.note(Severity::Info, 1, log);
            let text = format!(
                "{} Rejecting open proxy {}",
                self.settings.host, self.peer.shown
            );
            self.say(&Reply::new(421, Status::new(4, 7, 0), text));
            self.has_purpose = true;
            return self.close();
        }
        let command = Command::parse(text);
        if !matches!(command, Command::Unknown) {
            self.last_command = command.name();
        }
        let is_idle = matches!(
            command,
            Command::Helo { .. }
                | Command::Rset
                | Command::Noop
                | Command::Help(_)
                | Command::Quit
                | Command::Unknown
        );
        if let (Some(refusal), false) = (&self.refusal, is_idle) {
            let refusal = refusal.clone();
            self.say(&refusal);
            return self.count_bad();
        }
        match command {
            Command::Helo { is_extended, name } => {
                self.obey_helo(is_extended, name, line.is_plain, !rest.is_empty());
            }
            Command::Mail(argument) => self.obey_mail(argument, line.is_plain),
            Command::Rcpt(argument) => self.obey_rcpt(argument, line.is_plain),
            Command::Data => self.obey_data(),
            Command::Rset => {
                self.forget_mail();
                self.reply(250, Status::OK, "Reset state");
            }
            Command::Noop => {
                self.count_noop("NOOP");
                self.reply(250, Status::OK, "OK");
            }
            Command::Vrfy(argument) => self.obey_vrfy(argument),
            Command::Expn(argument) => self.obey_expn(argument),
            Command::Help(topic) => self.say(&help::reply(topic)),
            Command::Verb => {
                self.count_noop("VERB");
                if self.settings.privacy.no_verb || !self.peer.is_trusted {
                    self.reply(502, Status::new(5, 7, 0), "Verbose unavailable");
                } else {
                    self.is_verbose = true;
                    self.reply(250, Status::OK, "Verbose mode");
                }
            }
            Command::Quit => {
                let text = format!("{} closing connection", self.settings.host);
                self.reply(221, Status::OK, &text);
                self.has_quit = rest.is_empty();
                self.close();
            }
            Command::NotBuilt => {
                let text = format!("Command not implemented: \"{}\"", shorten(text));
                self.reply(502, Status::new(5, 5, 1), &text);
                self.count_bad();
            }
            Command::Unknown => self.unrecognized(text),
        }
    }

    fn unrecognized(&mut self, text: &str) {
        let text = format!("Command unrecognized: \"{}\"", shorten(text));
        self.reply(500, Status::new(5, 5, 1), &text);
        self.count_bad();
    }

    pub(super) fn obey_helo(
        &mut self,
        is_extended: bool,
        name: &str,
        is_plain: bool,
        is_hasty: bool,
    ) {
        let verb = if is_extended { "EHLO" } else { "HELO" };
        self.counts.helo = self.counts.helo.saturating_add(1);
        self.slow(self.counts.helo, HELO_MAX, verb);
        if is_hasty && self.peer.must_wait && self.refusal.is_none() {
            // RFC 2920 3.1: EHLO ends a pipeline; who does not wait for its reply is no mail server.
            let text = format!(
                "rejecting server {verb} from {} due to traffic before response",
                self.peer.shown
            );
            self.note(Severity::Info, 1, text);
            self.reply(554, Status::new(5, 5, 0), "SMTP protocol error");
            self.refusal = Some(Reply::new(550, Status::new(5, 0, 0), "Command rejected"));
            return;
        }
        let is_bogus = !is_plain
            || name.len() > HELO_BYTES_MAX
            || !name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"[].-_#:".contains(&b));
        // A name goes into our Received field: what could be more than a word is cut even where it is taken.
        let word = name
            .split(|c: char| !c.is_ascii_graphic() || "()<>\\\"".contains(c))
            .next()
            .unwrap_or_default();
        if name.is_empty() && !self.settings.has_lax_helo {
            let text = format!("{verb} requires domain address");
            return self.reply(501, Status::new(5, 0, 0), &text);
        }
        if is_bogus && (!self.settings.has_lax_helo || name.len() > HELO_BYTES_MAX) {
            let text = format!(
                "invalid domain name ({}) from {}",
                shorten(name),
                self.peer.shown
            );
            self.note(Severity::Info, 9, text);
            return self.reply(501, Status::new(5, 0, 0), "Invalid domain name");
        }
        self.forget_mail();
        word.clone_into(&mut self.peer.client.helo);
        self.protocol = if is_extended { "ESMTP" } else { "SMTP" };
        self.has_helo = true;
        let hello = format!(
            "{} Hello {}, pleased to meet you",
            self.settings.host, self.peer.shown
        );
        if is_extended {
            self.say_extensions(hello);
        } else {
            self.put("250 ", &hello);
        }
    }

    fn say_extensions(&mut self, hello: String) {
        let privacy = self.settings.privacy;
        let mut lines = vec![hello, "ENHANCEDSTATUSCODES".to_owned()];
        if self.refusal.is_none() {
            lines.push("PIPELINING".to_owned());
            if !privacy.no_expn {
                lines.push("EXPN".to_owned());
            }
            if self.peer.is_trusted && !privacy.no_verb {
                lines.push("VERB".to_owned());
            }
            lines.push("8BITMIME".to_owned());
            lines.push(match self.settings.limits.message_bytes_max {
                0 => "SIZE".to_owned(),
                max => format!("SIZE {max}"),
            });
            if !privacy.no_receipts {
                lines.push("DSN".to_owned());
            }
            lines.push("HELP".to_owned());
        }
        self.say(&Reply {
            code: 250,
            status: None,
            lines,
        });
    }

    pub(super) fn obey_mail(&mut self, argument: &str, is_plain: bool) {
        self.has_purpose = true;
        if self.settings.privacy.needs_helo_for_mail && !self.has_helo {
            return self.polite_people();
        }
        if self.mail.is_some() {
            return self.reply(503, Status::new(5, 5, 0), "Sender already specified");
        }
        match self.parse_mail(argument, is_plain) {
            Ok(mail) => {
                self.mail = Some(Box::new(mail));
                self.phase = Phase::Sender;
            }
            Err(reply) => {
                self.note_refusal(&reply);
                self.say(&reply);
                // The next message is another one, in the log too.
                self.id = None;
            }
        }
    }

    fn parse_mail(&mut self, argument: &str, is_plain: bool) -> Result<Mail, Reply> {
        let path = command::parse_path(argument, "FROM")?;
        let parameters =
            MailParameters::parse(path.parameters, !self.settings.privacy.no_receipts)?;
        ascii_only(&path, is_plain)?;
        let mail = Mail {
            path: command::parse_sender(&path)?,
            shown: shorten(path.shown),
            has_brackets: path.has_brackets(),
            parameters,
            id: None,
            recipients: Vec::new(),
            bad_recipients: 0,
            disposition: Disposition::Accept,
        };
        let max = self.settings.limits.message_bytes_max;
        let declared = mail.parameters.declared_bytes.unwrap_or(0);
        if max > 0 && declared > max {
            self.log_from(&mail, declared, None);
            return Err(Reply::new(
                552,
                Status::new(5, 2, 3),
                format!("Message size exceeds fixed maximum message size ({max})"),
            ));
        }
        Ok(mail)
    }

    /// Answers [`Step::CheckSender`](super::Step).
    pub fn sender_checked(&mut self, verdict: Result<Disposition, Reply>) {
        match verdict {
            Ok(disposition) => {
                self.phase = Phase::Begin;
                let shown = self.mail.as_ref().map(|mail| mail.shown.clone());
                let shown = shown.unwrap_or_default();
                self.note_disposition("check_mail", &shown, &disposition);
                if let Some(mail) = &mut self.mail {
                    mail.disposition = disposition;
                }
            }
            Err(reply) => {
                self.phase = Phase::Command;
                if let Some(mail) = self.mail.take() {
                    self.note_ruleset("check_mail", &mail.shown, &reply);
                    self.log_from(&mail, mail.parameters.declared_bytes.unwrap_or(0), None);
                }
                // The next message is another one, in the log too.
                self.id = None;
                self.say(&reply);
            }
        }
    }

    /// Answers [`Step::Begin`](super::Step).
    pub fn begun(&mut self, begun: Result<(), SpoolError>) {
        self.phase = Phase::Command;
        match begun {
            Ok(()) => {
                self.has_mail = true;
                let Some(mail) = &mut self.mail else { return };
                mail.id = self.id;
                let text = format!("{}... Sender ok", mail.shown);
                self.reply(250, Status::new(2, 1, 0), &text);
            }
            Err(error) => {
                self.note(
                    Severity::Critical,
                    0,
                    format!("SYSERR(root): cannot begin a message: {error}"),
                );
                if let Some(mail) = self.mail.take() {
                    self.log_from(&mail, mail.parameters.declared_bytes.unwrap_or(0), None);
                }
                self.id = None;
                self.say(&spool_refusal(&error));
            }
        }
    }

    pub(super) fn obey_rcpt(&mut self, argument: &str, is_plain: bool) {
        let limits = &self.settings.limits;
        let (recipients_max, throttle) = (limits.recipients_max, limits.bad_recipients_throttle);
        let Some(mail) = &self.mail else {
            return self.reply(503, Status::new(5, 0, 0), "Need MAIL before RCPT");
        };
        if throttle > 0 && mail.bad_recipients >= throttle {
            let is_first = mail.bad_recipients == throttle;
            self.pause = self.pause.max(Duration::from_secs(1));
            if is_first {
                let text = format!("{}: Possible SMTP RCPT flood, throttling.", self.peer.shown);
                self.note(Severity::Info, 6, text);
            }
        }
        if self
            .mail
            .as_ref()
            .is_some_and(|m| m.recipients.len() >= recipients_max)
        {
            self.note(Severity::Notice, 4, "Too many recipients".to_owned());
            return self.reply(452, Status::new(4, 5, 3), "Too many recipients");
        }
        match self.parse_rcpt(argument, is_plain) {
            Ok(pending) => self.phase = Phase::Recipient(Box::new(pending)),
            Err(reply) => {
                self.count_bad_recipient();
                self.note_refusal(&reply);
                self.say(&reply);
            }
        }
    }

    fn parse_rcpt(&self, argument: &str, is_plain: bool) -> Result<PendingRecipient, Reply> {
        let path = command::parse_path(argument, "TO")?;
        ascii_only(&path, is_plain)?;
        let address = command::parse_recipient(&path)?;
        let parameters =
            RcptParameters::parse(path.parameters, !self.settings.privacy.no_receipts)?;
        let recipient = Recipient {
            has_brackets: path.has_brackets(),
            notify: parameters.notify,
            original_recipient: parameters.original_recipient,
            ..Recipient::new(address.to_string())
        };
        Ok(PendingRecipient {
            address,
            shown: shorten(path.shown),
            recipient,
        })
    }

    /// Answers [`Step::CheckRecipient`](super::Step).
    pub fn recipient_checked(&mut self, verdict: Result<Disposition, Reply>) {
        let Phase::Recipient(pending) = std::mem::replace(&mut self.phase, Phase::Command) else {
            return;
        };
        match verdict {
            Ok(disposition) => {
                // Sendmail has no line about a recipient that discards its message; "discarded" tells.
                if disposition != Disposition::Discard {
                    self.note_disposition("check_rcpt", &pending.shown, &disposition);
                }
                if let Some(mail) = &mut self.mail {
                    mail.recipients.push(pending.recipient);
                    mail.disposition = std::mem::take(&mut mail.disposition).and(disposition);
                }
                let text = format!("{}... Recipient ok", pending.shown);
                self.reply(250, Status::RECIPIENT_OK, &text);
            }
            Err(reply) => {
                self.count_bad_recipient();
                if reply.status == Some(Status::NO_USER) {
                    self.note_refusal(&reply);
                } else {
                    self.note_ruleset("check_rcpt", &pending.shown, &reply);
                }
                self.say(&reply);
            }
        }
    }

    fn count_bad_recipient(&mut self) {
        if let Some(mail) = &mut self.mail {
            mail.bad_recipients = mail.bad_recipients.saturating_add(1);
        }
    }

    pub(super) fn obey_vrfy(&mut self, argument: &str) {
        let privacy = self.settings.privacy;
        self.has_purpose = true;
        self.counts.vrfy = self.counts.vrfy.saturating_add(1);
        self.slow(self.counts.vrfy, VRFY_MAX, "VRFY");
        if privacy.no_vrfy {
            self.note_query("VRFY", argument, " [rejected]");
            return self.reply(
                252,
                Status::new(2, 5, 2),
                "Cannot VRFY user; try RCPT to attempt delivery (or try finger)",
            );
        }
        if privacy.needs_helo_for_vrfy && !self.has_helo {
            return self.polite_people();
        }
        self.note_query("VRFY", argument, "");
        if argument.is_empty() {
            return self.reply(501, Status::new(5, 5, 2), "Argument required");
        }
        self.phase = Phase::Verify(argument.to_owned());
    }

    /// Answers [`Step::Verify`](super::Step).
    pub fn verified(&mut self, found: Result<Verified, Reply>) {
        self.phase = Phase::Command;
        let reply = match found {
            Ok(verified) => verified.reply(),
            Err(reply) => reply,
        };
        self.say(&reply);
    }

    pub(super) fn obey_expn(&mut self, argument: &str) {
        let privacy = self.settings.privacy;
        self.has_purpose = true;
        self.counts.vrfy = self.counts.vrfy.saturating_add(1);
        self.slow(self.counts.vrfy, VRFY_MAX, "EXPN");
        if privacy.no_expn {
            self.note_query("EXPN", argument, " [rejected]");
            return self.reply(
                502,
                Status::new(5, 7, 0),
                "Sorry, we do not allow this operation",
            );
        }
        if privacy.needs_helo_for_expn && !self.has_helo {
            return self.polite_people();
        }
        self.note_query("EXPN", argument, "");
        if argument.is_empty() {
            return self.reply(501, Status::new(5, 5, 2), "Argument required");
        }
        self.phase = Phase::Expand(argument.to_owned());
    }

    /// Answers [`Step::Expand`](super::Step) with one address or target a line.
    pub fn expanded(&mut self, found: Result<Vec<String>, Reply>) {
        self.phase = Phase::Command;
        let reply = match found {
            Ok(targets) if targets.is_empty() => {
                Reply::new(550, Status::new(5, 1, 1), "Nobody there")
            }
            Ok(targets) => Reply {
                code: 250,
                status: Some(Status::RECIPIENT_OK),
                lines: targets
                    .into_iter()
                    .map(|target| {
                        let is_shown = target.starts_with('<') && target.ends_with('>');
                        if is_shown {
                            target
                        } else {
                            format!("<{target}>")
                        }
                    })
                    .collect(),
            },
            Err(reply) => reply,
        };
        self.say(&reply);
    }

    pub(super) fn obey_data(&mut self) {
        match &self.mail {
            None => self.reply(503, Status::new(5, 0, 0), "Need MAIL command"),
            Some(mail) if mail.recipients.is_empty() => {
                self.reply(503, Status::new(5, 0, 0), "Need RCPT (recipient)");
            }
            Some(_) => {
                self.put("354 ", "End data with <CR><LF>.<CR><LF>");
                let now = self.settings.clock.unix_ms();
                self.phase = Phase::Data(Box::new(Reception::new(now)));
            }
        }
    }

    fn polite_people(&mut self) {
        self.reply(503, Status::new(5, 0, 0), "Polite people say HELO first");
    }

    fn count_noop(&mut self, name: &str) {
        self.counts.noop = self.counts.noop.saturating_add(1);
        self.slow(self.counts.noop, self.settings.limits.noop_max, name);
    }

    /// Sendmail's answer to floods of idle commands: each one past the limit waits twice as long.
    fn slow(&mut self, count: u32, max: u32, name: &str) {
        if count < max {
            return;
        }
        if count == max {
            let text = format!(
                "{}: possible SMTP attack: command={name}, count={count}",
                self.peer.shown
            );
            self.note(Severity::Info, 6, text);
        }
        let seconds = 1_u64.checked_shl(count - max).unwrap_or(u64::MAX);
        let pause = Duration::from_secs(seconds).min(PAUSE_MAX);
        self.pause = self.pause.max(pause);
    }

    fn count_bad(&mut self) {
        self.counts.bad = self.counts.bad.saturating_add(1);
        if self.counts.bad > BAD_COMMANDS_MAX {
            let text = format!(
                "{} Too many bad commands; closing connection",
                self.settings.host
            );
            self.note(
                Severity::Info,
                6,
                format!("{}: too many bad commands", self.peer.shown),
            );
            self.reply(421, Status::new(4, 7, 0), &text);
            self.close();
        }
    }
}

/// RFC 6531 is not offered, so addresses are ASCII.
fn ascii_only(path: &Path<'_>, is_plain: bool) -> Result<(), Reply> {
    if is_plain {
        return Ok(());
    }
    Err(Reply::new(
        553,
        Status::new(5, 6, 7),
        format!("{}... Address must be ASCII", shorten(path.shown)),
    ))
}

/// Requests of HTTP clients that look for open proxies.
fn is_http(text: &str) -> bool {
    ["GET ", "POST ", "CONNECT ", "USER "].iter().any(|verb| {
        text.get(..verb.len())
            .is_some_and(|head| head.eq_ignore_ascii_case(verb))
    })
}
