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

use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

use crate::address::ReversePath;

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
    let at = i64::try_from(unix_ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok())
        .unwrap_or(Timestamp::UNIX_EPOCH)
        .to_zoned(TimeZone::system());
    format!(
        "From {name}  {}\nReturn-Path: <{path}>\n",
        unix_from_date(&at)
    )
}

fn unix_from_date(at: &Zoned) -> String {
    at.strftime("%a %b %e %H:%M:%S %Y").to_string()
}

/// How a message stands where it is delivered to; line ends are LF in all of them, `Return-Path` fields are left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Form {
    /// Lines that begin with "From " are quoted.
    pub(crate) is_from_quoted: bool,
    /// An empty line ends it.
    pub(crate) ends_empty: bool,
}

impl Form {
    /// As in a mailbox.
    pub(crate) const MAILBOX: Self = Self {
        is_from_quoted: true,
        ends_empty: true,
    };
    /// Nothing but the message.
    pub(crate) const PLAIN: Self = Self {
        is_from_quoted: false,
        ends_empty: false,
    };
}

/// The two lines before a message in a file that an alias names: as [`preamble`], with one space as UnixFromLine has.
pub(crate) fn file_preamble(sender: &ReversePath, host_name: &str, unix_ms: u64) -> String {
    preamble(sender, host_name, unix_ms).replacen("  ", " ", 1)
}

/// Copies a message's content from its wire form to its mailbox form, with the empty line at the end.
///
/// # Errors
/// [`CopyError`]; part of the message may have been written then.
///
/// Blocks: disk.
pub(crate) fn copy(content: impl Read, out: &mut impl Write) -> Result<(), CopyError> {
    copy_as(content, out, Form::MAILBOX)
}

/// As [`copy`], in another form.
pub(crate) fn copy_as(
    content: impl Read,
    out: &mut impl Write,
    form: Form,
) -> Result<(), CopyError> {
    let mut content = BufReader::with_capacity(64 * 1024, content);
    let mut piece = Vec::new();
    let mut state = Lines {
        form,
        ..Lines::default()
    };
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

impl Default for Lines {
    fn default() -> Self {
        Self {
            form: Form::MAILBOX,
            is_line_start: true,
            is_header: true,
            is_left_out: false,
            has_cr: false,
        }
    }
}

impl Lines {
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
            out.write_all(text)?;
            if is_line_end {
                out.write_all(b"\n")?;
            }
        }
        self.is_line_start = is_line_end;
        Ok(())
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
        if self.form.is_from_quoted && text.starts_with(b"From ") && !self.is_left_out {
            out.write_all(b">")?;
        }
        Ok(())
    }

    fn end(&mut self, out: &mut impl Write) -> io::Result<()> {
        if !self.is_left_out {
            if self.has_cr {
                out.write_all(b"\r")?;
            }
            if !self.is_line_start || self.has_cr {
                out.write_all(b"\n")?;
            }
        }
        if self.form.ends_empty {
            out.write_all(b"\n")?;
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
    fn the_preamble_names_the_sender() {
        let zoned = Timestamp::from_millisecond(1_795_369_372_000)
            .unwrap()
            .to_zoned(TimeZone::UTC);
        assert_eq!(unix_from_date(&zoned), "Sun Nov 22 17:42:52 2026");
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
