//! One message over a connection that has been greeted: MAIL, RCPT, DATA, content, final dot (L2).
//!
//! Sources: RFC 5321 3.3, 2920 (pipelining), 3461 (DSN parameters), 1870 (SIZE), 6152 (8BITMIME).

use std::time::Duration;

use super::{Cause, SmtpClient, SmtpError, Step};
use crate::deliver::content::{PIECE_BYTES, Pieces};
use crate::deliver::dotted::Dotted;
use crate::deliver::{ContentOpener, say};
use crate::envelope::{BodyType, DsnReturn, Notify};
use crate::status::{Reply, Status, Verdict};

/// Recipients sent before the first of them is answered: their replies stay below what a server may have to buffer.
pub const PIPELINED_MAX: usize = 100;
/// Most recipients of one transaction; RFC 5321 4.5.3.1.8 has servers take at least so many.
pub const TRANSACTION_RECIPIENTS_MAX: usize = 100;
/// How long a server that refused content while it was sent is listened to for its reason.
const LAST_WORDS_TIME: Duration = Duration::from_secs(1);

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

impl SmtpClient {
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
}

/// Whether the server said that it closes the connection.
fn is_goodbye(error: &SmtpError) -> bool {
    matches!(&error.cause, Cause::Reply(reply) if reply.code == 421)
}

/// Whether a text can stand as a parameter's value: printable, no blanks (RFC 3461 4: xtext).
fn is_parameter(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
}
