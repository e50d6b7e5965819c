//! The message a session is receiving: its envelope so far, and its data on their way to the spool.
//!
//! [`Reception`] joins the rules of [`super::data`], the header of [`super::header`] and the limits, and says what is
//! to be done with each piece. A message that is refused half way is read to its end, as SMTP has no other way to
//! answer, but nothing of it is kept. Pure. Limits: [`super::settings::Limits`].

use super::command::{MailParameters, shorten};
use super::data::{Piece, Unstuffer};
use super::header::{HeaderFacts, HeaderFault, HeaderReader, Trace, lf_bytes};
use super::settings::Limits;
use crate::address::ReversePath;
use crate::envelope::{MessageId, Recipient};
use crate::maillog::Severity;
use crate::route::Disposition;
use crate::spool::SpoolError;
use crate::status::{Reply, Status};

/// What MAIL began.
pub(super) struct Mail {
    pub(super) path: ReversePath,
    /// As it was written, shortened.
    pub(super) shown: String,
    pub(super) has_brackets: bool,
    pub(super) parameters: MailParameters,
    /// The spool's id, once it has begun the message.
    pub(super) id: Option<MessageId>,
    pub(super) recipients: Vec<Recipient>,
    pub(super) bad_recipients: u32,
    /// What becomes of it, by its sender and recipients.
    pub(super) disposition: Disposition,
}

/// What is to be done next with the data.
pub(super) enum Progress<'i> {
    Read,
    /// Content from the input.
    Text(&'i [u8]),
    /// Content from [`Reception::prologue`].
    Prologue,
    /// Nothing of this message is to be kept; its data go on.
    Abandon,
    /// The data have ended.
    End,
    /// The client broke the rule of line ends.
    Bare(&'static str),
}

/// Why a message is refused at its end, and what the log says of it.
pub(super) struct Refusal {
    pub(super) reply: Reply,
    pub(super) severity: Severity,
    /// The line besides `from=`; empty for none.
    pub(super) log: String,
}

/// The data of one message.
pub(super) struct Reception {
    unstuffer: Unstuffer,
    header: Option<HeaderReader>,
    pub(super) prologue: Vec<u8>,
    pub(super) facts: HeaderFacts,
    /// Bytes so far with line ends as one byte, and those of them that are header.
    pub(super) lf_bytes: u64,
    pub(super) header_lf_bytes: u64,
    pub(super) refusal: Option<Refusal>,
    is_ended: bool,
    pub(super) unix_ms: u64,
}

impl Reception {
    pub(super) fn new(unix_ms: u64) -> Self {
        Self {
            unstuffer: Unstuffer::new(),
            header: Some(HeaderReader::default()),
            prologue: Vec::new(),
            facts: HeaderFacts::default(),
            lf_bytes: 0,
            header_lf_bytes: 0,
            refusal: None,
            is_ended: false,
            unix_ms,
        }
    }

    /// Takes the next piece of data off the input.
    pub(super) fn advance<'i>(
        &mut self,
        input: &mut &'i [u8],
        limits: &Limits,
        trace: &dyn Fn() -> ReceptionTrace,
    ) -> Progress<'i> {
        // It was lent in the step before and is with the spool now.
        self.prologue = Vec::new();
        if self.is_ended {
            return Progress::End;
        }
        loop {
            let text = match self.unstuffer.next(input) {
                Piece::Text(text) => text,
                Piece::Starved => return Progress::Read,
                Piece::BareLf => return Progress::Bare("linefeed (LF)"),
                Piece::BareCr => return Progress::Bare("carriage return (CR)"),
                Piece::End => {
                    self.is_ended = true;
                    if self.refusal.is_some() || self.header.is_none() {
                        return Progress::End;
                    }
                    return self.end_header(limits, trace);
                }
            };
            self.lf_bytes = self.lf_bytes.saturating_add(lf_bytes(text));
            if self.refusal.is_some() {
                continue;
            }
            let max = limits.message_bytes_max;
            if max > 0 && self.lf_bytes > max {
                return self.refuse(too_large(max));
            }
            let Some(header) = &mut self.header else {
                return Progress::Text(text);
            };
            match header.push(text, limits.header_bytes_max) {
                Ok(true) => return self.end_header(limits, trace),
                Ok(false) => {}
                Err(HeaderFault::TooLarge) => {
                    return self.refuse(header_too_large(limits.header_bytes_max, &trace().client));
                }
                Err(HeaderFault::Nul) => {
                    return self.refuse(Refusal {
                        reply: Reply::new(
                            554,
                            Status::new(5, 6, 0),
                            "NUL character not allowed in header",
                        ),
                        severity: Severity::Notice,
                        log: "NUL character in header during message collect".to_owned(),
                    });
                }
            }
        }
    }

    fn end_header<'i>(
        &mut self,
        limits: &Limits,
        trace: &dyn Fn() -> ReceptionTrace,
    ) -> Progress<'i> {
        let Some(header) = self.header.take() else {
            return Progress::Read;
        };
        let trace = trace();
        // Our own Received field is a hop, too.
        let hops = header.hops().saturating_add(1);
        self.header_lf_bytes = header.lf_bytes();
        if hops > limits.hops_max {
            return self.refuse(too_many_hops(hops, limits.hops_max, &trace));
        }
        let (prologue, facts) = header.finish(&Trace {
            host: &trace.host,
            helo: &trace.helo,
            client: &trace.client,
            protocol: trace.protocol,
            id: &trace.id,
            recipient: trace.only_recipient(),
            sender: trace.sender.clone(),
            unix_ms: self.unix_ms,
        });
        self.prologue = prologue;
        self.facts = facts;
        Progress::Prologue
    }

    fn refuse<'i>(&mut self, refusal: Refusal) -> Progress<'i> {
        self.refusal = Some(refusal);
        self.header = None;
        Progress::Abandon
    }
}

/// What the session knows that goes into our fields and into refusals.
pub(super) struct ReceptionTrace {
    pub(super) host: String,
    pub(super) helo: String,
    pub(super) client: String,
    pub(super) protocol: &'static str,
    pub(super) id: String,
    pub(super) sender: Option<String>,
    pub(super) sender_shown: String,
    pub(super) first_recipient: String,
    pub(super) recipients: usize,
}

impl ReceptionTrace {
    fn only_recipient(&self) -> Option<&str> {
        (self.recipients == 1).then_some(self.first_recipient.as_str())
    }

    fn client_short(&self) -> &str {
        self.client.split(' ').next().unwrap_or_default()
    }
}

fn too_large(max: u64) -> Refusal {
    Refusal {
        reply: Reply::new(
            552,
            Status::new(5, 2, 3),
            format!("Message exceeds maximum fixed size ({max})"),
        ),
        severity: Severity::Notice,
        log: String::new(),
    }
}

fn header_too_large(max: usize, client: &str) -> Refusal {
    let short = client.split(' ').next().unwrap_or_default();
    Refusal {
        reply: Reply::new(
            552,
            Status::new(5, 6, 0),
            format!("Headers too large ({max} max)"),
        ),
        severity: Severity::Notice,
        log: format!("headers too large ({max} max) from {short} during message collect"),
    }
}

fn too_many_hops(hops: u32, max: u32, trace: &ReceptionTrace) -> Refusal {
    let text = format!(
        "Too many hops {hops} ({max} max): from {} via {}, to <{}>",
        trace.sender_shown,
        trace.client_short(),
        shorten(&trace.first_recipient)
    );
    Refusal {
        log: format!("SYSERR(root): {text}"),
        reply: Reply::new(554, Status::new(5, 4, 6), text),
        severity: Severity::Critical,
    }
}

/// What a client is told when the spool does not take its message. Never a permanent refusal, but for size.
pub(super) fn spool_refusal(error: &SpoolError) -> Reply {
    match error {
        SpoolError::Full(_) => Reply::new(
            452,
            Status::new(4, 4, 5),
            "Insufficient disk space; try again later",
        ),
        SpoolError::TooMany(_) => Reply::new(
            452,
            Status::new(4, 3, 1),
            "Too many messages in the queue; try again later",
        ),
        SpoolError::TooLarge { limit, .. } => Reply::new(
            552,
            Status::new(5, 2, 3),
            format!("Message exceeds maximum fixed size ({limit})"),
        ),
        _ => Reply::new(
            451,
            Status::new(4, 3, 0),
            "Temporary system failure. Please try again later.",
        ),
    }
}
