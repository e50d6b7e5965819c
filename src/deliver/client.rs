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

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::reply::{LINE_BYTES_MAX, ReplyLines};
use super::{Verbose, say};
use crate::config::ClientTimeouts;
use crate::status::Reply;

mod failure;
mod transaction;

use failure::network_cause;
pub use failure::{Cause, SmtpError, Step};
pub use transaction::{PIPELINED_MAX, TRANSACTION_RECIPIENTS_MAX, Transaction, WireRecipient};

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

impl From<&ClientTimeouts> for SmtpTimeouts {
    fn from(configured: &ClientTimeouts) -> Self {
        Self {
            connect: configured.connect,
            iconnect: configured.iconnect,
            initial: configured.initial,
            helo: configured.helo,
            mail: configured.mail,
            rcpt: configured.rcpt,
            datainit: configured.datainit,
            datablock: configured.datablock,
            datafinal: configured.datafinal,
            rset: configured.rset,
            quit: configured.quit,
        }
    }
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
            // A server that leaves Nagle's algorithm on holds its next reply back until this side has acknowledged the
            // last; a delayed acknowledgement would cost 40 ms a message. The option does not last. Failing is harmless.
            let _ = SockRef::from(&self.stream).set_tcp_quickack(true);
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
