//! SMTP transcripts: a text file that says what the client sends and what it must read.
//!
//! One behaviour a file. Lines, blank ones and those that begin with `#` left out:
//!
//! ```text
//! @ name value         a setting, before the dialogue; see [`Script::set`]
//! S: text              the server sends this line; `(pause 1s)` and `(closed)` are what it does besides
//! C: text              the client sends this line and CRLF; several without S: between go out together
//! C(raw): text         the client sends these bytes; \r \n \0 \t \\ \xHH as in Rust
//! C(many): N text      the client sends N copies of these bytes
//! -- closes            the client closes the connection; `-- silent`: it says nothing for too long;
//!                      `-- shutdown`: the server is being stopped
//! M: text              the next line of the message committed last, without CRLF
//! E: text              the envelope committed last, in the form of [`envelope_line`]
//! L: text              the next line of the log, with its severity: `info`, `notice` or `crit`
//! ```
//!
//! A transcript is played with the client's bytes whole, one by one, and cut at random; the server's must be the same
//! each time (but `@ whole` plays it in one way, where the rule depends on what arrives together).

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use diligence::clock::ManualClock;
use diligence::envelope::{Envelope, MessageId};
use diligence::maillog::Severity;
use diligence::route::{Disposition, Verified};
use diligence::smtpd::{Peer, Privacy, Session, Settings, Step};
use diligence::spool::SpoolError;
use diligence::status::{Reply, Status};

/// 2026-11-22 17:12:33 UTC, the time of every transcript.
const NOW_UNIX_MS: u64 = 1_795_367_553_000;

/// A parsed transcript.
pub(crate) struct Script {
    name: String,
    settings: Vec<(String, String)>,
    events: Vec<Event>,
    log: Vec<String>,
}

enum Event {
    Server(String),
    Client(Vec<u8>),
    Closes,
    Silent,
    Shutdown,
    Content(String),
    Envelope(String),
}

/// How the client's bytes are cut.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Cut {
    /// As the transcript has them.
    Whole,
    /// One at a time.
    Bytes,
    /// At random, from this seed.
    Random(u64),
}

impl Script {
    /// Parses a transcript; panics with the line's number if it is wrong.
    pub(crate) fn parse(name: &str, text: &str) -> Self {
        let mut script = Self {
            name: name.to_owned(),
            settings: Vec::new(),
            events: Vec::new(),
            log: Vec::new(),
        };
        for (at, line) in text.lines().enumerate() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let (tag, rest) = line.split_once(' ').unwrap_or((line, ""));
            match tag {
                "@" => {
                    let (key, value) = rest.split_once(' ').unwrap_or((rest, ""));
                    script.settings.push((key.to_owned(), value.to_owned()));
                }
                "S:" => script.events.push(Event::Server(rest.to_owned())),
                "C:" => script.send([rest.as_bytes(), b"\r\n"].concat()),
                "C(raw):" => script.send(unescape(rest)),
                "C(many):" => {
                    let (count, text) = rest.split_once(' ').expect("C(many): N text");
                    script.send(unescape(text).repeat(count.parse().expect("a count")));
                }
                "--" if rest == "closes" => script.events.push(Event::Closes),
                "--" if rest == "silent" => script.events.push(Event::Silent),
                "--" if rest == "shutdown" => script.events.push(Event::Shutdown),
                "M:" => script.events.push(Event::Content(rest.to_owned())),
                "E:" => script.events.push(Event::Envelope(rest.to_owned())),
                "L:" => script.log.push(rest.to_owned()),
                _ => panic!("{name}:{}: {line:?} is no transcript line", at + 1),
            }
        }
        script
    }

    fn send(&mut self, bytes: Vec<u8>) {
        match self.events.last_mut() {
            Some(Event::Client(before)) => before.extend_from_slice(&bytes),
            _ => self.events.push(Event::Client(bytes)),
        }
    }

    /// Whether it can be played in one way only.
    pub(crate) fn is_whole(&self) -> bool {
        self.settings.iter().any(|(key, _)| key == "whole")
    }

    /// Plays it; panics with all that was said if the server's part differs.
    pub(crate) fn play(&self, cut: Cut) {
        let mut player = Player::new(self, cut);
        for event in &self.events {
            player.play(event);
        }
        player.expect_no_more();
        if !self.log.is_empty() {
            assert_eq!(player.log, self.log, "{}: log, {cut:?}", self.name);
        }
    }
}

/// `from=<..> brackets rcpts=[..] body=.. ret=.. envid=.. body_bytes=..`, what is not set left out.
pub(crate) fn envelope_line(envelope: &Envelope) -> String {
    let mut line = format!("from={}", envelope.sender_shown());
    for recipient in &envelope.recipients {
        write!(line, " to={}", recipient.shown()).unwrap();
        if recipient.notify != diligence::envelope::Notify::Unspecified {
            write!(line, ",{:?}", recipient.notify).unwrap();
        }
        if let Some(original) = &recipient.original_recipient {
            write!(line, ",orcpt={original}").unwrap();
        }
    }
    let arrival = &envelope.arrival;
    write!(
        line,
        " {:?} {:?} envid={} proto={} helo={} name={} msgid={} body={}",
        envelope.body_type,
        envelope.dsn_return,
        envelope.envelope_id.as_deref().unwrap_or("-"),
        arrival.protocol,
        arrival.helo,
        arrival.client_name.as_deref().unwrap_or("-"),
        arrival.message_id_field,
        envelope.body_bytes,
    )
    .unwrap();
    if let Some(reason) = &envelope.quarantine {
        write!(line, " quarantine={reason}").unwrap();
    }
    line
}

struct Player<'s> {
    script: &'s Script,
    cut: Cut,
    session: Session,
    /// Bytes sent and not yet used by the session.
    input: Vec<u8>,
    /// What the server has said and nobody has compared, line by line.
    said: VecDeque<String>,
    content: Option<Vec<u8>>,
    committed: Option<(Envelope, VecDeque<String>)>,
    log: Vec<String>,
    history: Vec<String>,
    has_closed: bool,
}

impl<'s> Player<'s> {
    fn new(script: &'s Script, cut: Cut) -> Self {
        let next_id = AtomicU64::new(MessageId::first_of(NOW_UNIX_MS / 1000, 1306).number());
        let mut settings = Settings::new(
            "h.test",
            Arc::new(ManualClock::at(NOW_UNIX_MS)),
            Arc::new(move || MessageId::from_number(next_id.fetch_add(1, Ordering::Relaxed))),
        );
        let mut peer = Peer::remote(
            "127.0.0.50".parse().unwrap(),
            Some("client50.test".into()),
            false,
        );
        let mut admission = Ok(Disposition::Accept);
        for (key, value) in &script.settings {
            let number = || value.parse::<u32>().expect("a number");
            match key.as_str() {
                "max_message_size" => settings.limits.message_bytes_max = number().into(),
                "max_recipients" => settings.limits.recipients_max = number() as usize,
                "max_headers" => settings.limits.header_bytes_max = number() as usize,
                "max_hops" => settings.limits.hops_max = number(),
                "bad_rcpt_throttle" => settings.limits.bad_recipients_throttle = number(),
                "privacy" => settings.privacy = privacy(value),
                "greeting" => settings.greeting = value.clone(),
                "lax_helo" => settings.has_lax_helo = true,
                "client" => {
                    let (address, name) = value.split_once(' ').unwrap_or((value, ""));
                    let name = (!name.is_empty()).then(|| name.to_owned());
                    peer = Peer::remote(address.parse().expect("an address"), name, false);
                }
                "forged" => {
                    peer = Peer::remote(peer.client.address, Some(value.clone()), true);
                }
                "local" => peer = Peer::local(value),
                "admission" if value == "discard" => admission = Ok(Disposition::Discard),
                "admission" => admission = Err(parse_reply(value)),
                "whole" | "begin" | "commit" | "content" | "verbose" => {}
                _ => panic!("{}: no setting {key}", script.name),
            }
        }
        let mut session = Session::new(Arc::new(settings), peer);
        session.greet(admission);
        let mut player = Self {
            script,
            cut,
            session,
            input: Vec::new(),
            said: VecDeque::new(),
            content: None,
            committed: None,
            log: Vec::new(),
            history: Vec::new(),
            has_closed: false,
        };
        player.run();
        player
    }

    fn setting(&self, key: &str) -> Option<&str> {
        let found = self.script.settings.iter().find(|(k, _)| k == key);
        found.map(|(_, value)| value.as_str())
    }

    fn play(&mut self, event: &Event) {
        match event {
            Event::Server(expected) => {
                let said = self.said.pop_front();
                if said.as_deref() != Some(expected) {
                    panic!(
                        "{}, {:?}:\nexpected {expected:?}\n     got {said:?}\nafter:\n{}",
                        self.script.name,
                        self.cut,
                        self.history.join("\n")
                    );
                }
            }
            Event::Client(bytes) => {
                self.expect_no_more();
                for piece in cut_up(bytes, self.cut) {
                    self.input.extend_from_slice(piece);
                    self.run();
                }
            }
            Event::Closes => self.end(Session::input_ended),
            Event::Silent => self.end(Session::timed_out),
            Event::Shutdown => self.end(Session::shut_down),
            Event::Content(expected) => {
                let (_, lines) = self.committed.as_mut().expect("a committed message");
                assert_eq!(
                    lines.pop_front().as_deref(),
                    Some(expected.as_str()),
                    "{}: content, {:?}",
                    self.script.name,
                    self.cut
                );
            }
            Event::Envelope(expected) => {
                let (envelope, _) = self.committed.as_ref().expect("a committed message");
                assert_eq!(&envelope_line(envelope), expected, "{}", self.script.name);
            }
        }
    }

    fn end(&mut self, how: fn(&mut Session)) {
        self.expect_no_more();
        how(&mut self.session);
        self.run();
    }

    fn expect_no_more(&self) {
        assert!(
            self.said.is_empty(),
            "{}, {:?}: not expected: {:?}",
            self.script.name,
            self.cut,
            self.said
        );
    }

    /// Steps the session until it wants more input.
    fn run(&mut self) {
        let input = std::mem::take(&mut self.input);
        let mut rest: &[u8] = &input;
        loop {
            match self.session.step(&mut rest) {
                Step::Read => break,
                Step::Close => {
                    self.collect();
                    if !self.has_closed {
                        self.has_closed = true;
                        self.say("(closed)".to_owned());
                    }
                    rest = &[];
                    break;
                }
                Step::Pause(time) => {
                    self.collect();
                    self.say(format!("(pause {}s)", Duration::as_secs(&time)));
                }
                Step::CheckSender(path, _) => {
                    let verdict = match path.address() {
                        Some(a) if a.domain().is_some_and(|d| d.as_str() == "refused.test") => {
                            Err(Reply::new(
                                550,
                                Status::new(5, 7, 1),
                                format!("{path}... Access denied"),
                            ))
                        }
                        Some(a) if a.local() == "disc" => Ok(Disposition::Discard),
                        Some(a) if a.local() == "quar" => {
                            Ok(Disposition::Quarantine("looks like spam".to_owned()))
                        }
                        _ => Ok(Disposition::Accept),
                    };
                    self.session.sender_checked(verdict);
                }
                Step::Begin { .. } => {
                    let result = match self.setting("begin") {
                        Some(fault) => Err(spool_error(fault)),
                        None => {
                            self.content = Some(Vec::new());
                            Ok(())
                        }
                    };
                    self.session.begun(result);
                }
                Step::CheckRecipient(address, _) => {
                    let verdict = check_recipient(&address.to_string());
                    self.session.recipient_checked(verdict);
                }
                Step::Verify(text) => {
                    let verdict = verify(text);
                    self.session.verified(verdict);
                }
                Step::Expand(text) => {
                    let targets = expand(text);
                    self.session.expanded(targets);
                }
                Step::Content(bytes) => {
                    let content = self.content.as_mut().expect("a message begun");
                    content.extend_from_slice(bytes);
                    if let Some(fault) = self.setting("content") {
                        let error = spool_error(fault);
                        self.session.content_refused(&error);
                    }
                }
                Step::Abandon => {
                    assert!(
                        self.content.take().is_some(),
                        "abandoned what was not begun"
                    );
                }
                Step::Commit(envelope) => {
                    let content = self.content.take().expect("a message begun");
                    let text = String::from_utf8_lossy(&content).into_owned();
                    assert!(text.ends_with("\r\n"), "content ends with a line end");
                    let lines = text.split_terminator("\r\n").map(str::to_owned).collect();
                    let result = match self.setting("commit") {
                        Some(fault) => Err(spool_error(fault)),
                        None => {
                            self.committed = Some((*envelope, lines));
                            Ok(())
                        }
                    };
                    if self.session.is_verbose() {
                        let lines = self.setting("verbose").unwrap_or_default().to_owned();
                        for line in lines.split('|') {
                            self.session.verbose_line(line);
                        }
                    }
                    self.session.committed(result);
                }
            }
        }
        self.input = rest.to_vec();
        self.collect();
    }

    fn collect(&mut self) {
        let out = std::mem::take(self.session.output());
        let text = String::from_utf8(out).expect("replies are ASCII");
        assert!(text.is_empty() || text.ends_with("\r\n"), "{text:?}");
        for line in text.split_terminator("\r\n") {
            assert!(!line.contains(['\r', '\n']), "{line:?}");
            self.say(line.to_owned());
        }
        for line in self.session.take_log() {
            let severity = match line.severity {
                Severity::Critical => "crit",
                Severity::Notice => "notice",
                Severity::Info => "info",
                other => panic!("{other:?} is not a session's"),
            };
            let id = line.id.map(|id| format!("{id}: ")).unwrap_or_default();
            self.log.push(format!("{severity} {id}{}", line.text));
        }
    }

    fn say(&mut self, line: String) {
        self.history.push(line.clone());
        self.said.push_back(line);
    }
}

fn cut_up(bytes: &[u8], cut: Cut) -> Vec<&[u8]> {
    match cut {
        Cut::Whole => vec![bytes],
        Cut::Bytes => bytes.chunks(1).collect(),
        Cut::Random(mut seed) => {
            let (mut pieces, mut rest) = (Vec::new(), bytes);
            while !rest.is_empty() {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                let size = usize::try_from(seed % 37 + 1).unwrap().min(rest.len());
                let (piece, after) = rest.split_at(size);
                pieces.push(piece);
                rest = after;
            }
            pieces
        }
    }
}

fn check_recipient(address: &str) -> Result<Disposition, Reply> {
    let (local, domain) = address.split_once('@').unwrap_or((address, "h.test"));
    if !domain.eq_ignore_ascii_case("h.test") {
        return Err(Reply::new(
            550,
            Status::new(5, 7, 1),
            format!("<{address}>... Relaying denied"),
        ));
    }
    match local {
        "busy" => Err(Reply::new(
            451,
            Status::new(4, 3, 0),
            format!("<{address}>... Temporary lookup failure"),
        )),
        "alice" | "bob" | "carol" | "dave" | "erin" | "info" => Ok(Disposition::Accept),
        "discto" => Ok(Disposition::Discard),
        "quarto" => Ok(Disposition::Quarantine("held rcpt".to_owned())),
        _ => Err(Reply::new(
            550,
            Status::NO_USER,
            format!("<{address}>... User unknown"),
        )),
    }
}

fn verify(text: &str) -> Result<Verified, Reply> {
    let name = text.trim_matches(['<', '>']);
    let local = name.strip_suffix("@h.test").unwrap_or(name);
    if local.contains('@') {
        return Ok(Verified {
            address: name.to_owned(),
            is_remote: true,
        });
    }
    match local {
        "alice" | "bob" | "info" => Ok(Verified {
            address: format!("{local}@h.test"),
            is_remote: false,
        }),
        _ => Err(Reply::new(
            550,
            Status::NO_USER,
            format!("{text}... User unknown"),
        )),
    }
}

fn expand(text: &str) -> Result<Vec<String>, Reply> {
    match text {
        "info" => Ok(vec!["bob@h.test".to_owned(), "alice@h.test".to_owned()]),
        "pipe" => Ok(vec!["\"|/usr/bin/vacation alice\"".to_owned()]),
        _ => verify(text).map(|verified| vec![verified.address]),
    }
}

fn spool_error(name: &str) -> SpoolError {
    match name {
        "full" => SpoolError::Full("no space".to_owned()),
        "toomany" => SpoolError::TooMany(10),
        "toolarge" => SpoolError::TooLarge {
            what: "message",
            bytes: 11,
            limit: 10,
        },
        "poisoned" => SpoolError::Poisoned("sync failed".to_owned()),
        _ => panic!("no spool error {name}"),
    }
}

fn privacy(words: &str) -> Privacy {
    let has = |word: &str| words.split(',').any(|w| w == word);
    Privacy {
        needs_helo_for_mail: has("needmailhelo"),
        needs_helo_for_expn: has("needexpnhelo"),
        needs_helo_for_vrfy: has("needvrfyhelo"),
        no_expn: has("noexpn"),
        no_vrfy: has("novrfy"),
        no_verb: has("noverb"),
        no_receipts: has("noreceipts"),
    }
}

fn parse_reply(text: &str) -> Reply {
    let mut words = text.splitn(3, ' ');
    let code = words.next().and_then(|w| w.parse().ok()).expect("a code");
    let status = words.next().and_then(Status::parse).expect("a status");
    Reply::new(code, status, words.next().unwrap_or_default())
}

fn unescape(text: &str) -> Vec<u8> {
    let (mut out, mut chars) = (Vec::new(), text.chars());
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.extend_from_slice(c.to_string().as_bytes());
            continue;
        }
        match chars.next().expect("something after a backslash") {
            'r' => out.push(b'\r'),
            'n' => out.push(b'\n'),
            't' => out.push(b'\t'),
            '0' => out.push(0),
            '\\' => out.push(b'\\'),
            'x' => {
                let digits: String = chars.by_ref().take(2).collect();
                out.push(u8::from_str_radix(&digits, 16).expect("two digits"));
            }
            other => panic!("no escape \\{other}"),
        }
    }
    out
}
