//! Failures of an SMTP dialogue, and what Sendmail calls them (L2). Pure values.
//!
//! What a failure means for the message follows from the step and the cause: a 5yz reply is permanent, everything else
//! is temporary (I9). Source: RFC 5321 4.2.1, RFC 3463; Sendmail's `stat=` texts.

use std::fmt;
use std::io;

use nix::errno::Errno;

use crate::deliver::reply::status_of;
use crate::status::{Reply, Status, Verdict};

/// A step of the dialogue, for telling where it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Making the connection.
    Connect,
    /// Waiting for the greeting.
    Greeting,
    /// EHLO or HELO.
    Hello,
    /// Before MAIL: the server is not one that this host hands mail to.
    Rules,
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
    /// The server refused, or with [`Step::Rules`] this host: 4yz or 5yz.
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

/// What an error of the network means.
pub(super) fn network_cause(error: &io::Error) -> Cause {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Cause::Refused,
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe
        | io::ErrorKind::UnexpectedEof => Cause::Lost,
        io::ErrorKind::TimedOut => Cause::TimedOut,
        _ => Cause::Network(error.raw_os_error().map_or_else(
            || error.to_string(),
            |number| Errno::from_raw(number).desc().to_owned(),
        )),
    }
}
