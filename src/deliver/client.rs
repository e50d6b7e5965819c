//! An SMTP client's side of one connection (L2): greeting, EHLO, message transactions, QUIT.
//!
//! Used by the mailers and by submission over loopback. Guarantees: every wait has a limit of [`SmtpTimeouts`]; memory
//! is bounded whatever the server sends or the message's size; [`SmtpClient::send`] gives one result for each
//! recipient, and after it the client knows whether the connection may carry another message. Where the server offers
//! PIPELINING the envelope goes out at once (RFC 2920), at most [`PIPELINED_MAX`] recipients unanswered. Content is
//! never followed by the final dot unless all of it was read and written. Message bodies of eight bits go as they are
//! also to servers without 8BITMIME: converting them is the business of whoever composes the content.
//! May touch: one TCP connection. Blocks: never; content is read on the blocking pool.
//! Sources: RFC 5321, 1870 (SIZE), 2920, 3461 (DSN), 6152 (8BITMIME); Sendmail's `-v` lines.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::content::{PIECE_BYTES, Pieces};
use super::dotted::Dotted;
use super::reply::{LINE_BYTES_MAX, ReplyLines, status_of};
use super::{ContentOpener, Verbose, say};
use crate::envelope::{BodyType, DsnReturn, Notify};
use crate::status::{Reply, Status, Verdict};

/// Recipients sent before the first of them is answered: their replies stay below what a server may have to buffer.
pub const PIPELINED_MAX: usize = 100;
/// Most recipients of one transaction; RFC 5321 4.5.3.1.8 has servers take at least so many.
pub const TRANSACTION_RECIPIENTS_MAX: usize = 100;
/// How long a server that refused content while it was sent is listened to for its reason.
const LAST_WORDS_TIME: Duration = Duration::from_secs(1);
/// Bytes read from the server at once.
const READ_BYTES: usize = 4096;

/// How long the client waits for each step, Sendmail's `Timeout.*` (RFC 5321 4.5.3.2 gives the least of them).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SmtpTimeouts {
    /// `Timeout.connect`: a TCP connection to one address.
    pub connect: Duration,
    /// `Timeout.iconnect`: the same in a message's first attempt.
    pub iconnect: Duration,
    /// `Timeout.initial`: the greeting.
    pub initial: Duration,
    /// `Timeout.helo`: the reply to EHLO or HELO.
    pub helo: Duration,
    /// `Timeout.mail`: the reply to MAIL.
    pub mail: Duration,
    /// `Timeout.rcpt`: the reply to each RCPT.
    pub rcpt: Duration,
    /// `Timeout.datainit`: the reply to DATA.
    pub datainit: Duration,
    /// `Timeout.datablock`: each block of content to be taken.
    pub datablock: Duration,
    /// `Timeout.datafinal`: the reply to the final dot.
    pub datafinal: Duration,
    /// `Timeout.rset`: the reply to RSET.
    pub rset: Duration,
    /// `Timeout.quit`: the reply to QUIT.
    pub quit: Duration,
}

impl Default for SmtpTimeouts {
    /// Sendmail's defaults.
    fn default() -> Self {
        const MINUTE: Duration = Duration::from_secs(60);
        const HOUR: Duration = Duration::from_secs(3600);
        Self {
            connect: 5 * MINUTE,
            iconnect: 5 * MINUTE,
            initial: 5 * MINUTE,
            helo: 5 * MINUTE,
            mail: 10 * MINUTE,
            rcpt: HOUR,
            datainit: 5 * MINUTE,
            datablock: HOUR,
            datafinal: HOUR,
            rset: 5 * MINUTE,
            quit: 2 * MINUTE,
        }
    }
}

/// A step of the dialogue, for telling where it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Making the connection.
    Connect,
    /// Waiting for the greeting.
    Greeting,
    /// EHLO or HELO.
    Hello,
    /// MAIL.
    Mail,
    /// RCPT.
    Rcpt,
    /// DATA, and sending the content.
    Data,
    /// The final dot: whether the server has the message is not known after a failure without reply.
    Final,
    /// Anything else.
    Other,
}

/// Why a step failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// The server refused: 4yz or 5yz.
    Reply(Reply),
    /// Nobody listens there.
    Refused,
    /// The connection broke, or was closed.
    Lost,
    /// The server was silent for too long.
    TimedOut,
    /// The network refused; what the system says.
    Network(String),
    /// The server said what is no SMTP reply, or one that does not belong here.
    BadReply(String),
    /// The message's content could not be read here.
    Content(String),
}

/// A step that failed, at a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SmtpError {
    /// What was being done.
    pub step: Step,
    /// What went wrong.
    pub cause: Cause,
    /// The host's name as it was given to [`SmtpClient::connect`].
    pub host: String,
}

impl SmtpError {
    /// Permanent for a 5yz reply, otherwise temporary.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match &self.cause {
            Cause::Reply(reply) => reply.verdict(),
            _ => Verdict::Temporary,
        }
    }

    /// The enhanced status code, by Sendmail's rules.
    #[must_use]
    pub fn status(&self) -> Status {
        match &self.cause {
            Cause::Reply(reply) if matches!(self.step, Step::Greeting | Step::Hello) => {
                let class = if reply.code >= 500 { 5 } else { 4 };
                Status::new(class, 5, 0)
            }
            Cause::Reply(reply) => status_of(reply),
            Cause::Refused | Cause::Network(_) => Status::new(4, 4, 1),
            Cause::TimedOut if self.step == Step::Connect => Status::new(4, 4, 1),
            Cause::Lost | Cause::TimedOut => Status::new(4, 4, 2),
            Cause::BadReply(_) => Status::new(4, 5, 0),
            Cause::Content(_) => Status::new(4, 3, 0),
        }
    }

    /// The server's reply on one line, if it refused.
    #[must_use]
    pub fn reply_line(&self) -> Option<String> {
        match &self.cause {
            Cause::Reply(reply) => Some(reply.to_line()),
            _ => None,
        }
    }

    /// What log and mailq show as `stat=`: `Deferred: ...`, or Sendmail's name for a permanent failure.
    #[must_use]
    pub fn stat(&self) -> String {
        match (&self.cause, self.step) {
            (Cause::Reply(reply), step) if reply.verdict() == Verdict::Permanent => {
                match (step, reply.code) {
                    (Step::Rcpt, 550 | 551 | 553) => "User unknown".to_owned(),
                    (Step::Mail, 501 | 553) => "Data format error".to_owned(),
                    _ => "Service unavailable".to_owned(),
                }
            }
            _ => format!("Deferred: {self}"),
        }
    }
}

impl fmt::Display for SmtpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = &self.host;
        match &self.cause {
            Cause::Reply(reply) => f.write_str(&reply.to_line()),
            Cause::Refused => write!(f, "Connection refused by {host}"),
            Cause::Lost => write!(f, "Connection reset by {host}"),
            Cause::TimedOut => write!(f, "Connection timed out with {host}"),
            Cause::Network(what) => write!(f, "{what}: {host}"),
            Cause::BadReply(what) => write!(f, "{host}: bad reply: {what}"),
            Cause::Content(what) => write!(f, "content of the message: {what}"),
        }
    }
}

impl std::error::Error for SmtpError {}

/// A recipient as RCPT names it.
#[derive(Debug, Clone, Copy)]
pub struct WireRecipient<'a> {
    /// The address, without angle brackets.
    pub address: &'a str,
    /// As `-v` shows it.
    pub shown: &'a str,
    /// `NOTIFY=`, sent where DSN is offered.
    pub notify: Notify,
    /// `ORCPT=` as given, sent where DSN is offered.
    pub original: Option<&'a str>,
}

/// A message transaction.
#[derive(Clone, Copy)]
pub struct Transaction<'a> {
    /// The sender's address without angle brackets; empty for the null sender.
    pub sender: &'a str,
    /// `BODY=`, sent where 8BITMIME is offered.
    pub body_type: BodyType,
    /// `RET=`, sent where DSN is offered.
    pub dsn_return: DsnReturn,
    /// `ENVID=` as given, sent where DSN is offered.
    pub envelope_id: Option<&'a str>,
    /// At least one; the first [`TRANSACTION_RECIPIENTS_MAX`] are served.
    pub recipients: &'a [WireRecipient<'a>],
    /// The content.
    pub content: &'a ContentOpener,
    /// Its size in bytes, sent where SIZE is offered.
    pub content_bytes: u64,
}

/// One connection to a server.
pub struct SmtpClient {
    stream: TcpStream,
    /// What was read and belongs to later lines.
    unread: Vec<u8>,
    address: SocketAddr,
    host: String,
    timeouts: SmtpTimeouts,
    verbose: Option<Verbose>,
    /// Keywords and parameters of the reply to EHLO, in upper case.
    extensions: Vec<String>,
    transactions: u32,
    /// Whether replies and commands are in step, and the server has not said goodbye.
    is_in_step: bool,
}

impl SmtpClient {
    /// Connects to an address. `host` is the host's name as log and `-v` show it (`mx.example.test.`, `[127.0.0.1]`).
    ///
    /// # Errors
    /// [`Cause::Refused`], [`Cause::TimedOut`] after `limit`, [`Cause::Network`]; all temporary.
    pub async fn connect(
        address: SocketAddr,
        host: &str,
        timeouts: SmtpTimeouts,
        limit: Duration,
    ) -> Result<Self, SmtpError> {
        let failed = |cause| SmtpError {
            step: Step::Connect,
            cause,
            host: host.to_owned(),
        };
        let stream = match timeout(limit, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(failed(network_cause(&error))),
            Err(_) => return Err(failed(Cause::TimedOut)),
        };
        // Requests are written whole, so waiting for more would only delay them.
        stream
            .set_nodelay(true)
            .map_err(|error| failed(network_cause(&error)))?;
        Ok(Self {
            stream,
            unread: Vec::new(),
            address,
            host: host.to_owned(),
            timeouts,
            verbose: None,
            extensions: Vec::new(),
            transactions: 0,
            is_in_step: true,
        })
    }

    /// Sets who is shown the dialogue from now on.
    pub fn set_verbose(&mut self, verbose: Option<Verbose>) {
        self.verbose = verbose;
    }

    /// Reads the greeting.
    ///
    /// # Errors
    /// [`SmtpError`]; a greeting other than 2yz is [`Cause::Reply`].
    pub async fn greeting(&mut self) -> Result<Reply, SmtpError> {
        let reply = self.reply(Step::Greeting, self.timeouts.initial).await?;
        self.expect(Step::Greeting, reply)
    }

    /// Says EHLO, and HELO if the server does not know it.
    ///
    /// # Errors
    /// [`SmtpError`].
    pub async fn hello(&mut self, name: &str) -> Result<(), SmtpError> {
        let limit = self.timeouts.helo;
        let reply = self
            .exchange(Step::Hello, &format!("EHLO {name}"), limit)
            .await?;
        if reply.code >= 500 && reply.code != 521 && reply.code != 554 {
            let reply = self
                .exchange(Step::Hello, &format!("HELO {name}"), limit)
                .await?;
            self.extensions.clear();
            return self.expect(Step::Hello, reply).map(|_| ());
        }
        let reply = self.expect(Step::Hello, reply)?;
        self.extensions = reply
            .lines
            .iter()
            .skip(1)
            .map(|line| line.to_ascii_uppercase())
            .collect();
        Ok(())
    }

    /// Whether the server offered an extension; the keyword in upper case.
    #[must_use]
    pub fn offers(&self, keyword: &str) -> bool {
        self.extensions
            .iter()
            .any(|line| line.split([' ', '=']).next() == Some(keyword))
    }

    /// Sends any other command and reads its reply, whatever it is: `VERB`, for example.
    ///
    /// # Errors
    /// [`SmtpError`] if there was no reply.
    pub async fn command(&mut self, line: &str) -> Result<Reply, SmtpError> {
        self.exchange(Step::Other, line, self.timeouts.rset).await
    }

    /// Sends one message: one result for each recipient, in their order. `Ok` is the reply to the final dot: the server
    /// has taken the message for this recipient. If the transaction left the server's state unclear, it has been reset.
    pub async fn send(&mut self, message: &Transaction<'_>) -> Vec<Result<Reply, SmtpError>> {
        let served = message.recipients.len().min(TRANSACTION_RECIPIENTS_MAX);
        let mut refused: Vec<Option<SmtpError>> = vec![None; served];
        self.transactions = self.transactions.saturating_add(1);
        let ended = self.transact(message, &mut refused).await;
        if !matches!(&ended, Ok(Some(_))) {
            self.settle().await;
        }
        let unserved = || {
            self.error(
                Step::Rcpt,
                Cause::Reply(Reply::new(
                    452,
                    Status::new(4, 5, 3),
                    "Too many recipients for one transaction",
                )),
            )
        };
        let mut results: Vec<Result<Reply, SmtpError>> = refused
            .into_iter()
            .map(|refused| match (refused, &ended) {
                (Some(error), _) => Err(error),
                (None, Ok(Some(reply))) => Ok(reply.clone()),
                (None, Err(error)) => Err(error.clone()),
                // Nobody is left unrefused without an end.
                (None, Ok(None)) => {
                    Err(self.error(Step::Other, Cause::BadReply("no end".to_owned())))
                }
            })
            .collect();
        results.resize_with(message.recipients.len(), || Err(unserved()));
        results
    }

    /// Whether the connection may carry another message.
    #[must_use]
    pub const fn is_usable(&self) -> bool {
        self.is_in_step
    }

    /// Whether an idle connection is still as it was left: the server has neither closed it nor said anything.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let mut byte = [0; 1];
        self.is_in_step
            && self.unread.is_empty()
            && matches!(
                self.stream.try_read(&mut byte),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock
            )
    }

    /// Transactions begun on this connection.
    #[must_use]
    pub const fn transactions(&self) -> u32 {
        self.transactions
    }

    /// The server's address.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The host's name, as it was given.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Says QUIT and closes, waiting at most `limit` for the reply.
    pub async fn quit(mut self, limit: Duration) {
        say(self.verbose.as_ref(), || {
            format!("Closing connection to {}", self.host)
        });
        if self.is_in_step {
            // The connection ends either way.
            let _ = timeout(limit, self.exchange(Step::Other, "QUIT", limit)).await;
        }
    }

    /// The dialogue of one message up to the reply to its final dot; `None` if every recipient was refused.
    async fn transact(
        &mut self,
        message: &Transaction<'_>,
        refused: &mut [Option<SmtpError>],
    ) -> Result<Option<Reply>, SmtpError> {
        let mut pieces = Pieces::open(message.content);
        let is_pipelined = self.offers("PIPELINING");
        let data_reply = if is_pipelined {
            self.envelope_pipelined(message, refused).await?
        } else {
            self.envelope_in_turn(message, refused).await?
        };
        let is_wanted = refused.iter().any(Option::is_none);
        match data_reply {
            Some(reply) if reply.code == 354 && is_wanted => {
                self.content(&mut pieces).await?;
                let reply = self.reply(Step::Final, self.timeouts.datafinal).await?;
                self.expect(Step::Final, reply).map(Some)
            }
            Some(reply) if reply.code == 354 => {
                // The server waits for content that nobody wants: an empty one ends this (RFC 2920 3.1).
                self.write(Step::Data, b".\r\n", self.timeouts.datablock)
                    .await?;
                self.reply(Step::Final, self.timeouts.datafinal).await?;
                Ok(None)
            }
            Some(reply) if is_wanted => {
                let reply = self.expect(Step::Data, reply)?;
                self.is_in_step = false;
                let what = format!("{} to DATA", reply.to_line());
                Err(self.error(Step::Data, Cause::BadReply(what)))
            }
            _ => Ok(None),
        }
    }

    /// MAIL, RCPT and DATA, each when the one before is answered. `None` if DATA was not worth saying.
    async fn envelope_in_turn(
        &mut self,
        message: &Transaction<'_>,
        refused: &mut [Option<SmtpError>],
    ) -> Result<Option<Reply>, SmtpError> {
        let line = self.mail_line(message);
        let reply = self.exchange(Step::Mail, &line, self.timeouts.mail).await?;
        self.expect(Step::Mail, reply)?;
        for (recipient, refused) in message.recipients.iter().zip(refused.iter_mut()) {
            let line = self.rcpt_line(recipient);
            let reply = self.exchange(Step::Rcpt, &line, self.timeouts.rcpt).await?;
            self.note_recipient(recipient, reply, refused)?;
        }
        if refused.iter().all(Option::is_some) {
            return Ok(None);
        }
        self.exchange(Step::Data, "DATA", self.timeouts.datainit)
            .await
            .map(Some)
    }

    /// MAIL, RCPT and DATA in as few writes as [`PIPELINED_MAX`] allows. The verbose lines come in the order in which
    /// Sendmail shows them, not that of the writes.
    async fn envelope_pipelined(
        &mut self,
        message: &Transaction<'_>,
        refused: &mut [Option<SmtpError>],
    ) -> Result<Option<Reply>, SmtpError> {
        let served = refused.len();
        let mail = self.mail_line(message);
        let mut mail_refused = None;
        let mut data_reply = None;
        let mut begin = 0;
        while begin < served && mail_refused.is_none() {
            let end = served.min(begin + PIPELINED_MAX);
            let group = message.recipients.get(begin..end).unwrap_or_default();
            let is_last = end == served;
            let lines: Vec<String> = group.iter().map(|r| self.rcpt_line(r)).collect();
            let mut wire = String::new();
            let first = (begin == 0).then_some(mail.as_str());
            let data = is_last.then_some("DATA");
            for line in first
                .into_iter()
                .chain(lines.iter().map(String::as_str))
                .chain(data)
            {
                wire.push_str(line);
                wire.push_str("\r\n");
            }
            self.write(Step::Mail, wire.as_bytes(), self.timeouts.mail)
                .await?;
            if begin == 0 {
                say(self.verbose.as_ref(), || format!(">>> {mail}"));
                let reply = self.reply(Step::Mail, self.timeouts.mail).await?;
                mail_refused = self.expect(Step::Mail, reply).err();
                if mail_refused.as_ref().is_some_and(is_goodbye) {
                    break;
                }
            }
            for line in lines.iter().map(String::as_str).chain(data) {
                say(self.verbose.as_ref(), || format!(">>> {line}"));
            }
            let slots = refused.get_mut(begin..end).unwrap_or_default();
            for (recipient, refused) in group.iter().zip(slots) {
                let reply = self.reply(Step::Rcpt, self.timeouts.rcpt).await?;
                if mail_refused.is_none() {
                    self.note_recipient(recipient, reply, refused)?;
                }
            }
            if is_last {
                data_reply = Some(self.reply(Step::Data, self.timeouts.datainit).await?);
            }
            begin = end;
        }
        let Some(error) = mail_refused else {
            return Ok(data_reply);
        };
        if data_reply.is_some_and(|reply| reply.code == 354) {
            // It refused MAIL and yet waits for content: what it would make of any is beyond guessing.
            self.is_in_step = false;
        }
        Err(error)
    }

    /// Notes a refusal; the server's goodbye ends the transaction.
    fn note_recipient(
        &mut self,
        recipient: &WireRecipient<'_>,
        reply: Reply,
        refused: &mut Option<SmtpError>,
    ) -> Result<(), SmtpError> {
        let Err(error) = self.expect(Step::Rcpt, reply) else {
            return Ok(());
        };
        if error.verdict() == Verdict::Temporary {
            say(self.verbose.as_ref(), || {
                format!("{}... {}", recipient.shown, error.stat())
            });
        }
        let is_goodbye = is_goodbye(&error);
        *refused = Some(error.clone());
        if is_goodbye { Err(error) } else { Ok(()) }
    }

    /// Sends the content and the final dot.
    async fn content(&mut self, pieces: &mut Pieces) -> Result<(), SmtpError> {
        let limit = self.timeouts.datablock;
        let mut dotted = Dotted::new();
        let mut wire = Vec::new();
        loop {
            let piece = match pieces.next().await {
                Ok(piece) => piece,
                Err(error) => {
                    // Without the final dot the server has no message; nothing but closing takes the rest back.
                    self.is_in_step = false;
                    return Err(self.error(Step::Data, Cause::Content(error.to_string())));
                }
            };
            if let Some(piece) = &piece {
                wire.reserve(piece.len() + piece.len() / 32 + 16);
                dotted.piece(piece, &mut wire);
            }
            if piece.is_none() || pieces.is_at_end() {
                break;
            }
            if wire.len() >= PIECE_BYTES {
                self.write_content(&wire, limit).await?;
                wire.clear();
            }
        }
        dotted.end(&mut wire);
        say(self.verbose.as_ref(), || ">>> .".to_owned());
        self.write_content(&wire, limit).await
    }

    /// Writes content. A server that closes while it is sent may have said why.
    async fn write_content(&mut self, wire: &[u8], limit: Duration) -> Result<(), SmtpError> {
        let Err(error) = self.write(Step::Data, wire, limit).await else {
            return Ok(());
        };
        if error.cause == Cause::Lost
            && let Ok(reply) = self.reply(Step::Data, LAST_WORDS_TIME).await
            && reply.code >= 400
        {
            self.is_in_step = false;
            return Err(self.error(Step::Data, Cause::Reply(reply)));
        }
        Err(error)
    }

    /// Resets the server's state after a transaction that did not succeed.
    async fn settle(&mut self) {
        if self.is_in_step {
            let reset = self.exchange(Step::Other, "RSET", self.timeouts.rset).await;
            self.is_in_step &= reset.is_ok_and(|reply| reply.code < 300);
        }
    }

    fn mail_line(&self, message: &Transaction<'_>) -> String {
        let mut line = format!("MAIL From:<{}>", message.sender);
        if self.offers("SIZE") {
            line.push_str(&format!(" SIZE={}", message.content_bytes));
        }
        if self.offers("8BITMIME") {
            line.push_str(match message.body_type {
                BodyType::Unspecified => "",
                BodyType::SevenBit => " BODY=7BIT",
                BodyType::EightBitMime => " BODY=8BITMIME",
            });
        }
        if self.offers("DSN") {
            line.push_str(match message.dsn_return {
                DsnReturn::Unspecified => "",
                DsnReturn::Full => " RET=FULL",
                DsnReturn::Headers => " RET=HDRS",
            });
            if let Some(id) = message.envelope_id.filter(|id| is_parameter(id)) {
                line.push_str(&format!(" ENVID={id}"));
            }
        }
        line
    }

    fn rcpt_line(&self, recipient: &WireRecipient<'_>) -> String {
        let mut line = format!("RCPT To:<{}>", recipient.address);
        if self.offers("DSN") {
            match recipient.notify {
                Notify::Unspecified => {}
                Notify::Never => line.push_str(" NOTIFY=NEVER"),
                Notify::When {
                    success,
                    failure,
                    delay,
                } => {
                    let words: Vec<&str> =
                        [(success, "SUCCESS"), (failure, "FAILURE"), (delay, "DELAY")]
                            .into_iter()
                            .filter_map(|(is_set, word)| is_set.then_some(word))
                            .collect();
                    if !words.is_empty() {
                        line.push_str(&format!(" NOTIFY={}", words.join(",")));
                    }
                }
            }
            if let Some(original) = recipient.original.filter(|o| is_parameter(o)) {
                line.push_str(&format!(" ORCPT={original}"));
            }
        }
        line
    }

    /// One command and its reply.
    async fn exchange(
        &mut self,
        step: Step,
        line: &str,
        limit: Duration,
    ) -> Result<Reply, SmtpError> {
        say(self.verbose.as_ref(), || format!(">>> {line}"));
        let wire = format!("{line}\r\n");
        self.write(step, wire.as_bytes(), limit).await?;
        self.reply(step, limit).await
    }

    async fn write(&mut self, step: Step, wire: &[u8], limit: Duration) -> Result<(), SmtpError> {
        let written = limited(limit, self.stream.write_all(wire)).await;
        written.map_err(|cause| {
            self.is_in_step = false;
            self.error(step, cause)
        })
    }

    /// Reads one reply, all of it within the limit.
    async fn reply(&mut self, step: Step, limit: Duration) -> Result<Reply, SmtpError> {
        let read = match timeout(limit, self.read_reply()).await {
            Ok(read) => read,
            Err(_) => Err(Cause::TimedOut),
        };
        match read {
            Ok(reply) => {
                if reply.code == 421 {
                    self.is_in_step = false;
                }
                Ok(reply)
            }
            Err(cause) => {
                self.is_in_step = false;
                Err(self.error(step, cause))
            }
        }
    }

    async fn read_reply(&mut self) -> Result<Reply, Cause> {
        let mut lines = ReplyLines::default();
        loop {
            while let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.unread.drain(..=end).collect();
                line.pop();
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
                say(self.verbose.as_ref(), || {
                    line.iter().copied().map(char::from).collect()
                });
                let reply = lines
                    .line(&line)
                    .map_err(|error| Cause::BadReply(error.to_string()))?;
                if let Some(reply) = reply {
                    return Ok(reply);
                }
            }
            if self.unread.len() > LINE_BYTES_MAX {
                return Err(Cause::BadReply("line too long".to_owned()));
            }
            let mut buffer = [0; READ_BYTES];
            match self.stream.read(&mut buffer).await {
                Ok(0) => return Err(Cause::Lost),
                Ok(count) => self
                    .unread
                    .extend_from_slice(buffer.get(..count).unwrap_or_default()),
                Err(error) => return Err(network_cause(&error)),
            }
        }
    }

    /// A positive reply, or the refusal as an error.
    fn expect(&mut self, step: Step, reply: Reply) -> Result<Reply, SmtpError> {
        match reply.code {
            200..=299 => Ok(reply),
            300..=399 => {
                self.is_in_step = false;
                Err(self.error(step, Cause::BadReply(reply.to_line())))
            }
            _ => Err(self.error(step, Cause::Reply(reply))),
        }
    }

    fn error(&self, step: Step, cause: Cause) -> SmtpError {
        SmtpError {
            step,
            cause,
            host: self.host.clone(),
        }
    }
}

/// Whether the server said that it closes the connection.
fn is_goodbye(error: &SmtpError) -> bool {
    matches!(&error.cause, Cause::Reply(reply) if reply.code == 421)
}

/// Whether a text can stand as a parameter's value: printable, no blanks (RFC 3461 4: xtext).
fn is_parameter(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}

async fn limited<T>(
    limit: Duration,
    work: impl Future<Output = io::Result<T>>,
) -> Result<T, Cause> {
    match timeout(limit, work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(network_cause(&error)),
        Err(_) => Err(Cause::TimedOut),
    }
}

fn network_cause(error: &io::Error) -> Cause {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Cause::Refused,
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof => Cause::Lost,
        io::ErrorKind::TimedOut => Cause::TimedOut,
        _ => Cause::Network(error.raw_os_error().map_or_else(
            || error.to_string(),
            |number| nix::errno::Errno::from_raw(number).desc().to_owned(),
        )),
    }
}
