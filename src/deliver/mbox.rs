//! The mbox format (L2): one message as it stands in a mailbox. Pure but for the reader and writer it is given.
//!
//! ```text
//! From SENDER  Sun Nov 22 17:42:52 2026      ctime(3), local time
//! Return-Path: <SENDER>                      fields of this name in the message are left out
//! header and body, line ends as LF, lines that begin with "From " quoted as ">From "
//!                                            one empty line
//! ```
//! Memory is bounded by [`PIECE_BYTES`], whatever the length of lines. Sources: mail.local(8), RFC 5321 4.4
//! (Return-Path), RFC 4155.

use std::io::{self, BufRead, BufReader, Read, Write};

use crate::address::ReversePath;
use crate::clock::date::ctime;

/// Bytes handled at once; longer lines come in several pieces.
pub(crate) const PIECE_BYTES: u64 = 64 * 1024;

/// Which side of a copy failed.
#[derive(Debug)]
pub(crate) enum CopyError {
    /// The content could not be read.
    Content(io::Error),
    /// The mailbox could not be written.
    Mailbox(io::Error),
}

/// The sender's name in a `From ` line and for programs.
pub(crate) fn sender_name(sender: &ReversePath, host_name: &str) -> String {
    match sender {
        ReversePath::Null => format!("MAILER-DAEMON@{host_name}"),
        ReversePath::Mailbox(address) => address.to_string(),
    }
}

/// `From SENDER DATE`, with one blank and the line's end, as Sendmail writes it to files and programs.
pub(crate) fn from_line(sender: &ReversePath, host_name: &str, unix_ms: u64) -> String {
    let name = sender_name(sender, host_name);
    format!("From {name} {}\n", ctime(unix_ms))
}

/// The two lines before a message: `From ` and `Return-Path`.
pub(crate) fn preamble(sender: &ReversePath, host_name: &str, unix_ms: u64) -> String {
    let (name, path) = match sender {
        ReversePath::Null => {
            let name = format!("MAILER-DAEMON@{host_name}");
            (name.clone(), name)
        }
        ReversePath::Mailbox(address) if address.domain().is_none() => {
            (address.to_string(), format!("{address}@{host_name}"))
        }
        ReversePath::Mailbox(address) => (address.to_string(), address.to_string()),
    };
    format!("From {name}  {}\nReturn-Path: <{path}>\n", ctime(unix_ms))
}

/// Copies a message's content from its wire form to its mailbox form, with the empty line at the end.
///
/// # Errors
/// [`CopyError`]; part of the message may have been written then.
///
/// Blocks: disk.
pub(crate) fn copy(content: impl Read, out: &mut impl Write) -> Result<(), CopyError> {
    copy_as(Form::MBOX, content, out)
}

/// The same in another form.
///
/// # Errors
/// As [`copy`].
pub(crate) fn copy_as(
    form: Form,
    content: impl Read,
    out: &mut impl Write,
) -> Result<(), CopyError> {
    let mut content = BufReader::with_capacity(64 * 1024, content);
    let mut piece = Vec::new();
    let mut state = Lines::new(form);
    loop {
        piece.clear();
        // Pieces end at a line end, after PIECE_BYTES, or with the content.
        let read = (&mut content)
            .take(PIECE_BYTES)
            .read_until(b'\n', &mut piece)
            .map_err(CopyError::Content)?;
        if read == 0 {
            break;
        }
        state.piece(&piece, out).map_err(CopyError::Mailbox)?;
    }
    state.end(out).map_err(CopyError::Mailbox)
}

/// What a message looks like to the mailer that takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Form {
    /// Whether lines that begin with `From ` are quoted.
    pub(crate) quotes_from: bool,
    /// Whether lines that begin with a dot get another one.
    pub(crate) doubles_dots: bool,
    /// Whether the eighth bits are cleared.
    pub(crate) is_seven_bit: bool,
    /// Whether an empty line ends the message.
    pub(crate) has_last_line: bool,
    /// What ends a line.
    pub(crate) line_end: &'static [u8],
}

impl Form {
    /// That of a mailbox.
    pub(crate) const MBOX: Self = Self {
        quotes_from: true,
        doubles_dots: false,
        is_seven_bit: false,
        has_last_line: true,
        line_end: b"\n",
    };
    /// Nothing but the message.
    pub(crate) const PLAIN: Self = Self {
        quotes_from: false,
        has_last_line: false,
        ..Self::MBOX
    };
}

/// Turns content that comes in pieces of any size into a form. Memory: [`PIECE_BYTES`] beside the piece.
pub(crate) struct Converter {
    lines: Lines,
    /// The begin of a line whose end has not come.
    begun: Vec<u8>,
}

impl Converter {
    pub(crate) fn new(form: Form) -> Self {
        Self {
            lines: Lines::new(form),
            begun: Vec::new(),
        }
    }

    /// Takes the next piece and appends to `out` what is sure of it.
    pub(crate) fn piece(&mut self, piece: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        let limit = usize::try_from(PIECE_BYTES).unwrap_or(usize::MAX);
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            let mut rest = part;
            loop {
                let room = limit.saturating_sub(self.begun.len()).min(rest.len());
                let (now, later) = rest.split_at(room);
                self.begun.extend_from_slice(now);
                rest = later;
                if self.begun.last() != Some(&b'\n') && self.begun.len() < limit {
                    break;
                }
                self.lines.piece(&self.begun, out)?;
                self.begun.clear();
                if rest.is_empty() {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Appends what is left at the end of the content.
    pub(crate) fn end(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        if !self.begun.is_empty() {
            self.lines.piece(&self.begun, out)?;
            self.begun.clear();
        }
        self.lines.end(out)
    }
}

/// Where in the message the copy is.
struct Lines {
    form: Form,
    is_line_start: bool,
    is_header: bool,
    /// Within a `Return-Path` field.
    is_left_out: bool,
    /// The last piece ended in CR, not written yet: whether it belongs to a line end is not known.
    has_cr: bool,
}

impl Lines {
    fn new(form: Form) -> Self {
        Self {
            form,
            is_line_start: true,
            is_header: true,
            is_left_out: false,
            has_cr: false,
        }
    }

    fn piece(&mut self, piece: &[u8], out: &mut impl Write) -> io::Result<()> {
        let (text, is_line_end) = match piece.strip_suffix(b"\n") {
            Some(text) => (text, true),
            None => (piece, false),
        };
        // A CR kept from the last piece is data unless this piece is the LF that completes it.
        let kept_cr = std::mem::take(&mut self.has_cr) && !(text.is_empty() && is_line_end);
        let text = match text.strip_suffix(b"\r") {
            Some(text) => {
                self.has_cr = !is_line_end;
                text
            }
            None => text,
        };
        if self.is_line_start {
            self.begin_line(text, is_line_end, out)?;
        }
        if !self.is_left_out {
            if kept_cr {
                out.write_all(b"\r")?;
            }
            self.text(text, out)?;
            if is_line_end {
                out.write_all(self.form.line_end)?;
            }
        }
        self.is_line_start = is_line_end;
        Ok(())
    }

    fn text(&self, text: &[u8], out: &mut impl Write) -> io::Result<()> {
        if !self.form.is_seven_bit || text.is_ascii() {
            return out.write_all(text);
        }
        let cleared: Vec<u8> = text.iter().map(|byte| byte & 0x7f).collect();
        out.write_all(&cleared)
    }

    fn begin_line(
        &mut self,
        text: &[u8],
        is_line_end: bool,
        out: &mut impl Write,
    ) -> io::Result<()> {
        const FIELD: &[u8] = b"return-path:";
        if self.is_header {
            if text.is_empty() && is_line_end {
                self.is_header = false;
                self.is_left_out = false;
            } else if !matches!(text.first(), Some(b' ' | b'\t')) {
                self.is_left_out = text
                    .get(..FIELD.len())
                    .is_some_and(|name| name.eq_ignore_ascii_case(FIELD));
            }
        }
        if self.is_left_out {
            return Ok(());
        }
        if self.form.quotes_from && text.starts_with(b"From ") {
            out.write_all(b">")?;
        }
        if self.form.doubles_dots && text.starts_with(b".") {
            out.write_all(b".")?;
        }
        Ok(())
    }

    fn end(&mut self, out: &mut impl Write) -> io::Result<()> {
        if !self.is_left_out {
            if self.has_cr {
                out.write_all(b"\r")?;
            }
            if !self.is_line_start || self.has_cr {
                out.write_all(self.form.line_end)?;
            }
        }
        if self.form.has_last_line {
            out.write_all(self.form.line_end)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Address;

    fn copied(content: &[u8]) -> String {
        let mut out = Vec::new();
        copy(content, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn line_ends_from_lines_and_the_end_are_as_mail_local_writes_them() {
        assert_eq!(
            copied(b"Subject: x\r\n\r\nbody\r\nFrom x\r\n.dot\r\nFromage\r\n"),
            "Subject: x\n\nbody\n>From x\n.dot\nFromage\n\n"
        );
        assert_eq!(
            copied(b"A: b\r\n\r\nno line end"),
            "A: b\n\nno line end\n\n"
        );
        assert_eq!(copied(b""), "\n");
    }

    #[test]
    fn return_path_fields_are_left_out_of_the_header_alone() {
        assert_eq!(
            copied(
                b"return-PATH: <a@b>\r\n\t(folded)\r\nTo: c\r\nReturn-Path: <d>\r\n\r\nReturn-Path: <e>\r\n"
            ),
            "To: c\n\nReturn-Path: <e>\n\n"
        );
        assert_eq!(copied(b"Return-Path: <only>"), "\n");
    }

    #[test]
    fn long_lines_and_stray_carriage_returns_survive_the_pieces() {
        let size = usize::try_from(PIECE_BYTES).unwrap();
        // The CR of the line end is the last byte of the first piece; then a CR that is data there.
        for extra in [0, 1, 2] {
            let long = "x".repeat(size - 2 + extra);
            let content = format!("A: b\r\n\r\n{long}\r\nFrom y\r\n{long}\r{long}\r\n");
            assert_eq!(
                copied(content.as_bytes()),
                format!("A: b\n\n{long}\n>From y\n{long}\r{long}\n\n")
            );
        }
        assert_eq!(copied(b"A: b\r\n\r\nend\r"), "A: b\n\nend\r\n\n");
    }

    #[test]
    fn pieces_of_any_size_give_what_the_whole_gives() {
        let size = usize::try_from(PIECE_BYTES).unwrap();
        let long = "y".repeat(size + 3);
        let content = format!("Return-Path: <a>\r\nA: b\r\n\r\n.dot\r\nFrom x\r\n{long}\r\nend\r");
        for form in [
            Form::MBOX,
            Form {
                quotes_from: false,
                doubles_dots: true,
                is_seven_bit: true,
                has_last_line: false,
                line_end: b"\r\n",
            },
        ] {
            let mut whole = Vec::new();
            copy_as(form, content.as_bytes(), &mut whole).unwrap();
            for step in [1, 7, 4096, content.len()] {
                let mut converter = Converter::new(form);
                let mut out = Vec::new();
                for piece in content.as_bytes().chunks(step) {
                    converter.piece(piece, &mut out).unwrap();
                }
                converter.end(&mut out).unwrap();
                assert!(out == whole, "{step}");
            }
        }
        let mut out = Vec::new();
        let form = Form {
            is_seven_bit: true,
            ..Form::MBOX
        };
        copy_as(form, "\u{e4}".as_bytes(), &mut out).unwrap();
        assert_eq!(out, b"C$\n\n");
    }

    #[test]
    fn the_preamble_names_the_sender() {
        let lines = |path: &ReversePath| {
            let text = preamble(path, "h.test", 1_795_369_372_000);
            let (from, rest) = text.split_once('\n').unwrap();
            let (sender, date) = from.split_once("  ").unwrap();
            assert!(date.contains(':') && date.ends_with("2026"));
            format!("{sender}|{rest}")
        };
        assert_eq!(
            lines(&ReversePath::Null),
            "From MAILER-DAEMON@h.test|Return-Path: <MAILER-DAEMON@h.test>\n"
        );
        let bare = ReversePath::Mailbox(Address::parse("root").unwrap());
        assert_eq!(lines(&bare), "From root|Return-Path: <root@h.test>\n");
        let full = ReversePath::Mailbox(Address::parse("a@b.test").unwrap());
        assert_eq!(lines(&full), "From a@b.test|Return-Path: <a@b.test>\n");
    }
}
