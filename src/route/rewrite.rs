//! A message's content with the addresses in its header rewritten, while it is read.
//!
//! Only the addresses that change are replaced: every other byte of the header, and the body, comes as it was. Nothing is
//! kept but the field that is being read. What is no header field ends the header, as does the end of the content.
//! A lookup that does not work is an error of the reader, so that the message waits (I9).
//! Blocks: as the content and the maps do. Limits: [`FIELD_BYTES_MAX`].
//! Source: RFC 5322 2.2, Sendmail's list of header fields (`conf.c`).

#![deny(clippy::indexing_slicing)]

use std::io::{self, Read};
use std::sync::Arc;

use super::masquerade::{Handover, Side};
use super::{RouteError, Router};
use crate::address::Address;
use crate::address::list::{is_separated_by_blank, scan};

/// Longest field that is looked at, in bytes. What follows a longer one is left as it is.
pub const FIELD_BYTES_MAX: usize = 1 << 20;
/// Bytes asked of the content at once.
const PIECE_BYTES: u64 = 16 * 1024;

/// Fields with addresses of senders.
const SENDER_FIELDS: [&str; 8] = [
    "from",
    "sender",
    "reply-to",
    "errors-to",
    "disposition-notification-to",
    "resent-from",
    "resent-sender",
    "resent-reply-to",
];
/// Fields with addresses of recipients.
const RECIPIENT_FIELDS: [&str; 7] = [
    "to",
    "cc",
    "bcc",
    "apparently-to",
    "resent-to",
    "resent-cc",
    "resent-bcc",
];

impl Router {
    /// The content as it is handed over.
    #[must_use]
    pub fn rewritten(
        self: &Arc<Self>,
        content: Box<dyn Read + Send>,
        to: Handover,
    ) -> Box<dyn Read + Send> {
        if !self.is_rewriting(to) {
            return content;
        }
        Box::new(Rewritten {
            router: Arc::clone(self),
            to,
            content,
            pending: Vec::new(),
            scanned: 0,
            ready: Vec::new(),
            given: 0,
            is_header: true,
        })
    }
}

/// Reads content, rewriting.
struct Rewritten {
    router: Arc<Router>,
    to: Handover,
    content: Box<dyn Read + Send>,
    /// Read and not yet given: the beginning of a field.
    pending: Vec<u8>,
    /// Bytes of `pending` known to hold no end of a field.
    scanned: usize,
    /// To be given, from `given` on.
    ready: Vec<u8>,
    given: usize,
    is_header: bool,
}

impl Read for Rewritten {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let rest = self.ready.get(self.given..).unwrap_or_default();
            if !rest.is_empty() {
                let count = rest.len().min(buffer.len());
                for (to, from) in buffer.iter_mut().zip(rest) {
                    *to = *from;
                }
                self.given += count;
                return Ok(count);
            }
            self.ready.clear();
            self.given = 0;
            if !self.is_header {
                return self.content.read(buffer);
            }
            let read = (&mut self.content)
                .take(PIECE_BYTES)
                .read_to_end(&mut self.pending)?;
            self.advance(read == 0)?;
        }
    }
}

impl Rewritten {
    /// Moves whole fields from what was read to what is ready.
    fn advance(&mut self, is_end: bool) -> io::Result<()> {
        let mut begin = 0;
        while let Some(end) = self.end_of_line(self.scanned) {
            let Some(next) = self.pending.get(end) else {
                break;
            };
            self.scanned = end;
            if matches!(next, b' ' | b'\t') {
                continue;
            }
            self.field(begin, end)?;
            begin = end;
            if !self.is_header {
                break;
            }
        }
        if is_end && self.is_header {
            self.field(begin, self.pending.len())?;
            begin = self.pending.len();
            self.is_header = false;
        }
        self.pending.drain(..begin);
        self.scanned = self.scanned.saturating_sub(begin);
        if !self.is_header || self.pending.len() > FIELD_BYTES_MAX {
            self.is_header = false;
            self.ready.append(&mut self.pending);
        }
        Ok(())
    }

    /// The position behind the line end at or after `from`.
    fn end_of_line(&self, from: usize) -> Option<usize> {
        let rest = self.pending.get(from..)?;
        memchr::memchr(b'\n', rest).map(|at| from + at + 1)
    }

    /// Makes one field ready, or finds that the header is over.
    fn field(&mut self, begin: usize, end: usize) -> io::Result<()> {
        let field = self.pending.get(begin..end).unwrap_or_default();
        let colon = field
            .iter()
            .position(|byte| !matches!(byte, 33..=126) || *byte == b':')
            .unwrap_or(field.len());
        // Blanks before the colon are taken (RFC 5322 4.5).
        let blanks = field.iter().skip(colon);
        let blanks = blanks.take_while(|b| matches!(b, b' ' | b'\t')).count();
        let (name, value_at) = (field.get(..colon).unwrap_or_default(), colon + blanks + 1);
        if name.is_empty() || field.get(colon + blanks) != Some(&b':') {
            self.is_header = false;
            self.ready.extend_from_slice(field);
            return Ok(());
        }
        let is_one_of = |names: &[&str]| {
            names
                .iter()
                .any(|known| name.eq_ignore_ascii_case(known.as_bytes()))
        };
        let side = if is_one_of(&SENDER_FIELDS) {
            Side::Sender
        } else if is_one_of(&RECIPIENT_FIELDS) {
            Side::Recipient
        } else {
            self.ready.extend_from_slice(field);
            return Ok(());
        };
        let (head, value) = field.split_at_checked(value_at).unwrap_or((field, b""));
        self.ready.extend_from_slice(head);
        put_rewritten(value, &mut self.ready, |address| {
            self.router.header_address(address, side, self.to)
        })
        .map_err(io::Error::other)
    }
}

/// Appends a field's value, its addresses replaced where `rewrite` gives others.
fn put_rewritten(
    value: &[u8],
    out: &mut Vec<u8>,
    rewrite: impl Fn(&Address) -> Result<Address, RouteError>,
) -> Result<(), RouteError> {
    let entries = scan(value);
    let mut at = 0;
    // Words with blanks between them are no list that could be told from a phrase.
    let is_clear = entries.len() < 2 || !is_separated_by_blank(value);
    for entry in entries.iter().filter(|_| is_clear) {
        if entry.fault.is_some() {
            continue;
        }
        let Ok(address) = Address::parse(&entry.address) else {
            continue;
        };
        // Routes of other networks.
        if address.domain().is_none() && entry.address.contains(['!', '%']) {
            continue;
        }
        let new = rewrite(&address)?;
        if new == address {
            continue;
        }
        out.extend_from_slice(value.get(at..entry.address_start).unwrap_or_default());
        out.extend_from_slice(new.to_string().as_bytes());
        at = entry.address_end;
    }
    out.extend_from_slice(value.get(at..).unwrap_or_default());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Domain;

    fn changed(value: &str) -> String {
        let mut out = Vec::new();
        put_rewritten(value.as_bytes(), &mut out, |address| {
            let is_ours = address
                .domain()
                .is_none_or(|domain| domain.folded() == "own.test");
            Ok(if is_ours {
                address.with_domain(Domain::parse("corp.test").unwrap())
            } else {
                address.clone()
            })
        })
        .unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn only_addresses_change() {
        for (value, wanted) in [
            (" alice", " alice@corp.test"),
            (" alice@OWN.test\r\n", " alice@corp.test\r\n"),
            (
                " \"A, own.test\" <a@own.test> (c),\r\n\tb@else.test ,c",
                " \"A, own.test\" <a@corp.test> (c),\r\n\tb@else.test ,c@corp.test",
            ),
            (" <@r.test:a@own.test>", " <a@corp.test>"),
            (" list: a@own.test, b;", " list: a@corp.test, b@corp.test;"),
            (" a@own.test (me)", " a@corp.test (me)"),
            (" (me) a@own.test", " (me) a@corp.test"),
            (" host!user", " host!user"),
            (" <a@own.test", " <a@own.test"),
            (" some words", " some words"),
            (" \"q s\"@own.test", " \"q s\"@corp.test"),
            ("", ""),
            (
                " =?utf-8?q?=C3=84?= <a@own.test>",
                " =?utf-8?q?=C3=84?= <a@corp.test>",
            ),
        ] {
            assert_eq!(changed(value), wanted, "{value}");
        }
    }
}
