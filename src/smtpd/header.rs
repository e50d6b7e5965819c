//! The header of a message on its way in: where it ends, what it says, and what it lacks.
//!
//! [`HeaderReader`] gathers the first lines until one is no header field, then [`HeaderReader::finish`] returns the
//! beginning of the content as it will be stored: our Received field, Date, From and Message-Id where they are
//! missing, the client's fields, the empty line, and what already came of the body. As Sendmail does, Return-Path,
//! Full-Name and Content-Length of the client are left out, Bcc loses its value, and a leading mbox `From ` line goes.
//! All else stays byte for byte.
//!
//! Pure. Limits: the header's length is given by the caller; what is held is that and one input buffer more.
//! Sources: RFC 5322 3.6, RFC 5321 4.4 (Received) and 6.3 (hops).

use std::ops::Range;

use super::settings::VERSION;
use crate::clock::date::{arpa_date, message_id_stamp};

/// Longest Message-Id shown in the log, in bytes.
const MESSAGE_ID_SHOWN_MAX: usize = 400;

/// Why a header is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeaderFault {
    /// Longer than the limit.
    TooLarge,
    /// A NUL byte.
    Nul,
}

/// What the fields said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "one fact for each field that is looked for"
)]
pub(super) struct HeaderFacts {
    has_date: bool,
    has_from: bool,
    has_message_id: bool,
    has_resent: bool,
    has_resent_date: bool,
    has_resent_from: bool,
    has_resent_message_id: bool,
    /// Trace fields: Received, Via, Mail-From.
    pub(super) hops: u32,
    /// The value of Message-Id; after [`HeaderReader::finish`] that of the one we added, if it was missing.
    pub(super) message_id: String,
    /// Sendmail's class, from Precedence.
    pub(super) class: i32,
}

/// What our own fields are made from.
pub(super) struct Trace<'a> {
    pub(super) host: &'a str,
    pub(super) helo: &'a str,
    /// `name [1.2.3.4]`.
    pub(super) client: &'a str,
    pub(super) protocol: &'a str,
    pub(super) id: &'a str,
    /// The only recipient, without angle brackets; `None` if there are several.
    pub(super) recipient: Option<&'a str>,
    /// The sender as an address; `None` for the null sender.
    pub(super) sender: Option<String>,
    pub(super) unix_ms: u64,
}

/// Gathers a header.
#[derive(Debug, Default)]
pub(super) struct HeaderReader {
    raw: Vec<u8>,
    /// The first byte of `raw` that is not yet part of a complete field line.
    parsed: usize,
    /// Parts of `raw` that are left out.
    cuts: Vec<Range<usize>>,
    field: Field,
    facts: HeaderFacts,
    /// Where the body begins in `raw`, once that is known.
    body: Option<usize>,
}

/// What continuation lines do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Field {
    /// No field yet: a continuation line is no header.
    #[default]
    None,
    Kept,
    Cut,
    /// The Message-Id may stand on a line of its own.
    MessageId,
}

impl HeaderReader {
    /// Adds content, and says whether the header is complete.
    ///
    /// # Errors
    /// [`HeaderFault`]; permanent.
    pub(super) fn push(&mut self, text: &[u8], bytes_max: usize) -> Result<bool, HeaderFault> {
        self.raw.extend_from_slice(text);
        while self.body.is_none() {
            let rest = self.raw.get(self.parsed..).unwrap_or_default();
            let Some(found) = memchr::memchr(b'\n', rest) else {
                break;
            };
            let line = self.parsed..self.parsed + found + 1;
            self.take_line(line)?;
            if self.parsed > bytes_max {
                return Err(HeaderFault::TooLarge);
            }
        }
        // A field that does not end: only what is not yet known to be body counts.
        if self.body.is_none() && self.raw.len() > bytes_max {
            return Err(HeaderFault::TooLarge);
        }
        Ok(self.body.is_some())
    }

    fn take_line(&mut self, line: Range<usize>) -> Result<(), HeaderFault> {
        let bytes = self.raw.get(line.clone()).unwrap_or_default();
        if bytes == b"\r\n" {
            self.body = Some(line.end);
            return Ok(());
        }
        let is_continuation = matches!(bytes.first(), Some(b' ' | b'\t'));
        let name_len = field_name_len(bytes);
        let is_header = if is_continuation {
            self.field != Field::None
        } else {
            name_len.is_some()
        };
        if line.start == 0 && bytes.starts_with(b"From ") {
            self.cuts.push(line.clone());
            self.parsed = line.end;
            return Ok(());
        }
        if !is_header {
            self.body = Some(line.start);
            return Ok(());
        }
        if memchr::memchr(0, bytes).is_some() {
            return Err(HeaderFault::Nul);
        }
        match name_len {
            Some(len) if !is_continuation => self.take_field(line.clone(), len),
            _ => self.take_continuation(line.clone()),
        }
        self.parsed = line.end;
        Ok(())
    }

    fn take_continuation(&mut self, line: Range<usize>) {
        match self.field {
            Field::Cut => self.cuts.push(line),
            Field::MessageId if self.facts.message_id.is_empty() => {
                self.facts.message_id = shown_value(self.raw.get(line).unwrap_or_default());
            }
            _ => {}
        }
    }

    fn take_field(&mut self, line: Range<usize>, name_len: usize) {
        let bytes = self.raw.get(line.clone()).unwrap_or_default();
        let (name, rest) = bytes.split_at(name_len.min(bytes.len()));
        let colon = memchr::memchr(b':', rest).unwrap_or(0);
        let value = rest.get(colon + 1..).unwrap_or_default();
        self.field = Field::Kept;
        let facts = &mut self.facts;
        let is = |text: &str| name.eq_ignore_ascii_case(text.as_bytes());
        // The first letter decides for most fields, so that a long header costs few comparisons.
        match name.first().map(u8::to_ascii_lowercase) {
            Some(b'b') if is("Bcc") => {
                // RFC 5322 3.6.3: recipients of blind copies are nobody's business; the field stays, empty.
                let start = line.start + name_len + colon + 1;
                self.cuts.push(start..line.end - 2);
                self.field = Field::Cut;
            }
            Some(b'c') if is("Content-Length") => self.cut(line),
            Some(b'd') if is("Date") => facts.has_date = true,
            Some(b'f') if is("From") => facts.has_from = true,
            Some(b'f') if is("Full-Name") => self.cut(line),
            Some(b'm') if is("Message-Id") => {
                facts.has_message_id = true;
                facts.message_id = shown_value(value);
                self.field = Field::MessageId;
            }
            Some(b'm') if is("Mail-From") => facts.hops = facts.hops.saturating_add(1),
            Some(b'p') if is("Precedence") => facts.class = precedence(value),
            Some(b'r') if is("Received") => facts.hops = facts.hops.saturating_add(1),
            Some(b'r') if is("Return-Path") => self.cut(line),
            Some(b'r')
                if name.len() > 7
                    && name
                        .get(..7)
                        .is_some_and(|n| n.eq_ignore_ascii_case(b"resent-")) =>
            {
                facts.has_resent = true;
                facts.has_resent_date |= is("Resent-Date");
                facts.has_resent_from |= is("Resent-From");
                facts.has_resent_message_id |= is("Resent-Message-Id");
            }
            Some(b'v') if is("Via") => facts.hops = facts.hops.saturating_add(1),
            _ => {}
        }
    }

    fn cut(&mut self, line: Range<usize>) {
        self.cuts.push(line);
        self.field = Field::Cut;
    }

    /// Trace fields so far.
    pub(super) const fn hops(&self) -> u32 {
        self.facts.hops
    }

    /// The beginning of the content as it is stored, and what the header said. Also ends a header that no empty line
    /// ended, at the end of the data.
    pub(super) fn finish(mut self, trace: &Trace<'_>) -> (Vec<u8>, HeaderFacts) {
        let header_end = self.parsed;
        let body = self.body.unwrap_or(header_end);
        let mut out = Vec::with_capacity(self.raw.len() + 512);
        let date = arpa_date(trace.unix_ms);
        received(&mut out, trace, &date);
        let facts = &mut self.facts;
        let from = match &trace.sender {
            Some(sender) if sender.contains('@') => Some(sender.clone()),
            Some(sender) => Some(format!("{sender}@{}", trace.host)),
            // Transcripts 30 and 62: the null sender gets none.
            None => None,
        };
        let message_id = || {
            format!(
                "<{}.{}@{}>",
                message_id_stamp(trace.unix_ms),
                trace.id,
                trace.host
            )
        };
        // The order of Sendmail's own configuration.
        if facts.has_resent && !facts.has_resent_date {
            field(&mut out, "Resent-Date", &date);
        }
        if !facts.has_date {
            field(&mut out, "Date", &date);
        }
        if let Some(from) = from {
            if facts.has_resent && !facts.has_resent_from {
                field(&mut out, "Resent-From", &from);
            }
            if !facts.has_from {
                field(&mut out, "From", &from);
            }
        }
        if facts.has_resent && !facts.has_resent_message_id {
            field(&mut out, "Resent-Message-Id", &message_id());
        }
        if !facts.has_message_id {
            facts.message_id = message_id();
            field(&mut out, "Message-Id", &facts.message_id);
        }
        let mut at = 0;
        for cut in &self.cuts {
            out.extend_from_slice(self.raw.get(at..cut.start).unwrap_or_default());
            at = cut.end;
        }
        out.extend_from_slice(self.raw.get(at..header_end).unwrap_or_default());
        out.extend_from_slice(b"\r\n");
        out.extend_from_slice(self.raw.get(body..).unwrap_or_default());
        (out, self.facts)
    }

    /// How many bytes of content the header took, its empty line included, with line ends as one byte.
    pub(super) fn lf_bytes(&self) -> u64 {
        let end = self.body.unwrap_or(self.parsed);
        let header = self.raw.get(..end).unwrap_or_default();
        lf_bytes(header)
    }
}

/// Bytes with line ends as one byte. The text is known to have CR only before LF.
pub(super) fn lf_bytes(text: &[u8]) -> u64 {
    let ends = memchr::memchr_iter(b'\n', text).count();
    u64::try_from(text.len() - ends.min(text.len())).unwrap_or(u64::MAX)
}

/// The length of the field name at the start of a line, if the line is a header field.
fn field_name_len(line: &[u8]) -> Option<usize> {
    // A MIME boundary may look like a field.
    if line.starts_with(b"--") {
        return None;
    }
    let len = line
        .iter()
        .position(|b| *b == b':' || !b.is_ascii_graphic())?;
    let rest = line.get(len..)?;
    let blanks = rest
        .iter()
        .take_while(|b| matches!(b, b' ' | b'\t'))
        .count();
    (len > 0 && rest.get(blanks) == Some(&b':')).then_some(len)
}

/// A value for the log: on one line, printable, bounded.
fn shown_value(value: &[u8]) -> String {
    let text = value.trim_ascii();
    text.iter()
        .take(MESSAGE_ID_SHOWN_MAX)
        .map(|b| {
            if (b' '..=b'~').contains(b) {
                char::from(*b)
            } else {
                '?'
            }
        })
        .collect()
}

/// Sendmail's default classes.
fn precedence(value: &[u8]) -> i32 {
    let value = value.trim_ascii();
    [
        ("special-delivery", 100),
        ("first-class", 0),
        ("list", -30),
        ("bulk", -60),
        ("junk", -100),
    ]
    .iter()
    .find(|(name, _)| value.eq_ignore_ascii_case(name.as_bytes()))
    .map_or(0, |(_, class)| *class)
}

fn field(out: &mut Vec<u8>, name: &str, value: &str) {
    for part in [name, ": ", value, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
}

/// RFC 5321 4.4, in Sendmail's form.
fn received(out: &mut Vec<u8>, trace: &Trace<'_>, date: &str) {
    let mut put = |parts: &[&str]| {
        for part in parts {
            out.extend_from_slice(part.as_bytes());
        }
    };
    if trace.helo.is_empty() {
        put(&["Received: (from ", trace.client, ")"]);
    } else {
        put(&["Received: from ", trace.helo, " (", trace.client, ")"]);
    }
    put(&["\r\n\tby ", trace.host, " (", VERSION, "/", VERSION, ")"]);
    if !trace.protocol.is_empty() {
        put(&[" with ", trace.protocol]);
    }
    put(&[" id ", trace.id]);
    match trace.recipient {
        Some(recipient) => put(&["\r\n\tfor <", recipient, ">; ", date, "\r\n"]),
        None => put(&[";\r\n\t", date, "\r\n"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace() -> Trace<'static> {
        Trace {
            host: "h.test",
            helo: "c",
            client: "c.test [127.0.0.50]",
            protocol: "ESMTP",
            id: "QID",
            recipient: Some("bob"),
            sender: Some("s@sender.test".into()),
            unix_ms: 1_795_367_553_000,
        }
    }

    /// What follows our Received field, and the facts.
    fn complete(content: &str, piece: usize) -> (String, HeaderFacts, u64) {
        let mut reader = HeaderReader::default();
        let mut body = Vec::new();
        let mut is_complete = false;
        for piece in content.as_bytes().chunks(piece) {
            if is_complete {
                body.extend_from_slice(piece);
            } else {
                is_complete = reader.push(piece, 1000).unwrap();
            }
        }
        let lf = reader.lf_bytes();
        let (mut out, facts) = reader.finish(&trace());
        out.extend_from_slice(&body);
        let text = String::from_utf8(out).unwrap();
        let (received, rest) = text.split_at(text.find("GMT\r\n").unwrap() + 5);
        assert!(received.starts_with("Received: from c (c.test [127.0.0.50])\r\n\tby h.test ("));
        assert!(received.contains(") with ESMTP id QID\r\n\tfor <bob>; "));
        (rest.replace("\r\n", "\n"), facts, lf)
    }

    const DATE: &str = "Date: Sun, 22 Nov 2026 17:12:33 GMT\n";
    const FROM: &str = "From: s@sender.test\n";
    const ID: &str = "Message-Id: <202611221712.QID@h.test>\n";

    #[test]
    fn what_is_missing_is_added_before_what_is_there() {
        for piece in [1, 2, 3, 7, 1000] {
            let all = format!("{DATE}{FROM}{ID}");
            assert_eq!(complete("", piece).0, format!("{all}\n"));
            assert_eq!(complete("\r\n", piece).0, format!("{all}\n"));
            assert_eq!(
                complete("just body\r\n", piece).0,
                format!("{all}\njust body\n")
            );
            assert_eq!(
                complete("From: a@b\r\nSubject: x\r\n\r\nx\r\n", piece).0,
                format!("{DATE}{ID}From: a@b\nSubject: x\n\nx\n")
            );
            assert_eq!(
                complete("Not a header\r\nSubject: late\r\n\r\nx\r\n", piece).0,
                format!("{all}\nNot a header\nSubject: late\n\nx\n")
            );
            assert_eq!(
                complete(".\r\n..\r\na\r\n", piece).0,
                format!("{all}\n.\n..\na\n")
            );
        }
    }

    #[test]
    fn fields_of_the_envelope_are_left_out_and_bcc_is_emptied() {
        let message = "From x Mon Jan  1\r\nReturn-Path: <o@x>,\r\n <p@x>\r\nBcc: a@x,\r\n\tb@x\r\nFull-Name: F\r\n\
             Message-Id:\r\n <kept@x>\r\nDate: d\r\nFrom: a@b\r\nLines: 5\r\nContent-Length: 9\r\n\r\nx\r\n";
        for piece in [1, 5, 1000] {
            let (text, facts, _) = complete(message, piece);
            assert_eq!(
                text,
                "Bcc:\nMessage-Id:\n <kept@x>\nDate: d\nFrom: a@b\nLines: 5\n\nx\n"
            );
            assert_eq!(facts.message_id, "<kept@x>");
        }
    }

    #[test]
    fn resent_fields_are_completed_only_if_there_is_one() {
        let (text, _, _) = complete(
            "Resent-To: x\r\nDate: d\r\nFrom: f\r\nMessage-Id: <m>\r\n\r\n",
            1000,
        );
        assert_eq!(
            text,
            "Resent-Date: Sun, 22 Nov 2026 17:12:33 GMT\nResent-From: s@sender.test\n\
             Resent-Message-Id: <202611221712.QID@h.test>\nResent-To: x\nDate: d\nFrom: f\nMessage-Id: <m>\n\n"
        );
    }

    #[test]
    fn hops_class_and_size_are_found() {
        let (_, facts, lf) = complete(
            "Received: a\r\n\tb\r\nreceived: c\r\nVia: d\r\nPrecedence: Bulk\r\n\r\nReceived: body\r\n",
            3,
        );
        assert_eq!((facts.hops, facts.class), (3, -60));
        assert_eq!(lf, 12 + 3 + 12 + 7 + 17 + 1);
    }

    #[test]
    fn long_headers_and_nul_are_faults_and_long_bodies_are_not() {
        let mut reader = HeaderReader::default();
        let long = format!("X: {}\r\n", "x".repeat(2000));
        assert_eq!(
            reader.push(long.as_bytes(), 1000),
            Err(HeaderFault::TooLarge)
        );
        let mut reader = HeaderReader::default();
        assert_eq!(
            reader.push("x".repeat(1001).as_bytes(), 1000),
            Err(HeaderFault::TooLarge)
        );
        let mut reader = HeaderReader::default();
        assert_eq!(reader.push(b"X: a\0b\r\n", 1000), Err(HeaderFault::Nul));
        let mut reader = HeaderReader::default();
        let body = format!("X: a\r\n\r\n\0{}\r\n", "x".repeat(2000));
        assert_eq!(reader.push(body.as_bytes(), 1000), Ok(true));
    }

    #[test]
    fn several_recipients_are_not_named_and_no_helo_is_said() {
        let mut out = Vec::new();
        let trace = Trace {
            recipient: None,
            helo: "",
            protocol: "SMTP",
            ..trace()
        };
        received(&mut out, &trace, "D");
        assert_eq!(
            String::from_utf8(out).unwrap(),
            format!(
                "Received: (from c.test [127.0.0.50])\r\n\tby h.test ({VERSION}/{VERSION}) with SMTP id QID;\r\n\tD\r\n"
            )
        );
    }
}
