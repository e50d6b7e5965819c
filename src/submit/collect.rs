//! Reading a message from standard input: where it ends, which lines are its header, and its bytes as SMTP wants them.
//!
//! A line ends with LF or CRLF and leaves with CRLF. A CR alone is no line end for programs, but SMTP has no place
//! for it (RFC 5321 2.3.8): in the body it becomes a line end, in the header a blank, where it could otherwise add a
//! field. Unless told otherwise a line of one dot ends the message and the first of two leading dots is taken off.
//! What follows the end is not read. Memory is bounded: the header by [`CollectOptions::header_bytes_max`], the body
//! by [`super::body`]. Blocks: standard input and disk.
//!
//! Source: sendmail(8) `-i`, Sendmail's collect(); RFC 5321 2.3.8.

use std::io::{self, BufRead};
use std::path::Path;

use super::body::{Body, BodyWriter};
use super::header::{Header, LineKind, line_kind};

/// How to read.
#[derive(Debug, Clone, Copy)]
pub struct CollectOptions {
    /// Whether a line of one dot ends the message: not with `-i`, `-oi`.
    pub ends_at_dot: bool,
    /// Most bytes of a header (MaxHeadersLength).
    pub header_bytes_max: usize,
    /// Most bytes of a message (MaxMessageSize); `None` for no limit.
    pub message_bytes_max: Option<u64>,
    /// Whether the eighth bit is taken off (`-B 7BIT`).
    pub is_seven_bit: bool,
}

/// Why what was read cannot be sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContentFault {
    /// A NUL byte; SMTP cannot carry it.
    #[error("NUL byte not allowed")]
    Nul,
    /// The header is too long.
    #[error("Headers too large ({0} max)")]
    HeaderTooLarge(usize),
    /// The message is too long.
    #[error("Message exceeds maximum fixed size ({0})")]
    TooLarge(u64),
}

/// Trouble while reading.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// Standard input failed. Temporary.
    #[error("read error: {0}")]
    Read(io::Error),
    /// The body could not be kept. Temporary.
    #[error("cannot write message: {0}")]
    Write(io::Error),
}

/// A message as read.
#[derive(Debug)]
pub struct Collected {
    /// Its fields.
    pub header: Header,
    /// Its body, CRLF.
    pub body: Body,
    /// Size of all with line ends counted as one byte: `size=` in the log.
    pub message_bytes: u64,
    /// Size of the body alone, counted so: what mailq shows.
    pub body_bytes: u64,
    /// Whether a byte has its eighth bit set.
    pub has_eight_bit: bool,
    /// Why it cannot be sent, if so. The body may then be incomplete.
    pub fault: Option<ContentFault>,
}

/// Reads a message. `folder` is where a large body is kept meanwhile.
///
/// # Errors
/// [`CollectError`], all temporary. A message that must not be sent is `Ok` with a fault, so that it can be returned.
pub fn collect(
    input: &mut dyn BufRead,
    options: CollectOptions,
    folder: &Path,
) -> Result<Collected, CollectError> {
    let mut collector = Collector {
        options,
        header: Header::default(),
        line: Vec::new(),
        header_bytes: 0,
        is_in_header: true,
        body: BodyWriter::new(folder),
        body_bytes: 0,
        has_eight_bit: false,
        fault: None,
    };
    let mut splitter = LineSplitter::new(options.ends_at_dot);
    'reading: loop {
        let chunk = match input.fill_buf() {
            Ok([]) => break,
            Ok(chunk) => chunk,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(CollectError::Read(error)),
        };
        let mut taken = 0;
        for byte in chunk {
            taken += 1;
            if !splitter.take(*byte, &mut collector)? {
                input.consume(taken);
                break 'reading;
            }
        }
        input.consume(taken);
    }
    splitter.end(&mut collector)?;
    collector.finish()
}

/// Finds line ends, lone CRs and dots.
struct LineSplitter {
    ends_at_dot: bool,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    LineStart,
    InLine,
    /// A CR that may begin CRLF.
    Cr,
    /// A dot at the start of a line.
    Dot,
    /// The same and a CR.
    DotCr,
    /// The message has ended.
    End,
}

impl LineSplitter {
    const fn new(ends_at_dot: bool) -> Self {
        Self {
            ends_at_dot,
            state: State::LineStart,
        }
    }

    /// Takes a byte; `false` once the message has ended.
    fn take(&mut self, byte: u8, to: &mut Collector) -> Result<bool, CollectError> {
        match (self.state, byte) {
            (State::Dot | State::DotCr, b'\n') => {
                self.state = State::End;
                return Ok(false);
            }
            (State::Dot, b'\r') => {
                self.state = State::DotCr;
                return Ok(true);
            }
            // The first of two dots is only there to protect the second.
            (State::Dot, b'.') => {
                to.byte(b'.')?;
                self.state = State::InLine;
                return Ok(true);
            }
            (State::Dot, _) => to.byte(b'.')?,
            (State::DotCr, _) => {
                to.byte(b'.')?;
                to.lone_cr()?;
            }
            (State::Cr, b'\n') => {
                to.line_end()?;
                self.state = State::LineStart;
                return Ok(true);
            }
            (State::Cr, _) => to.lone_cr()?,
            (State::LineStart, b'.') if self.ends_at_dot => {
                self.state = State::Dot;
                return Ok(true);
            }
            (State::LineStart | State::InLine | State::End, _) => {}
        }
        self.state = match byte {
            b'\n' => {
                to.line_end()?;
                State::LineStart
            }
            b'\r' => State::Cr,
            _ => {
                to.byte(byte)?;
                State::InLine
            }
        };
        Ok(true)
    }

    /// The input is over, perhaps in the midst of a line.
    fn end(&mut self, to: &mut Collector) -> Result<(), CollectError> {
        match self.state {
            State::InLine | State::Cr => to.line_end(),
            State::LineStart | State::Dot | State::DotCr | State::End => Ok(()),
        }
    }
}

struct Collector {
    options: CollectOptions,
    header: Header,
    /// The header line being read.
    line: Vec<u8>,
    header_bytes: usize,
    is_in_header: bool,
    body: BodyWriter,
    body_bytes: u64,
    has_eight_bit: bool,
    fault: Option<ContentFault>,
}

impl Collector {
    fn byte(&mut self, byte: u8) -> Result<(), CollectError> {
        let byte = if self.options.is_seven_bit {
            byte & 0x7f
        } else {
            byte
        };
        if byte >= 0x80 {
            self.has_eight_bit = true;
        }
        if byte == 0 {
            self.fault.get_or_insert(ContentFault::Nul);
        }
        if !self.is_in_header {
            return self.body_byte(byte);
        }
        if self.header_bytes + self.line.len() >= self.options.header_bytes_max {
            return self.header_limit(byte);
        }
        self.line.push(byte);
        Ok(())
    }

    /// A line that cannot be a field begins the body, however long it is; else the header is too large.
    fn header_limit(&mut self, byte: u8) -> Result<(), CollectError> {
        if line_kind(&self.line) == LineKind::Other {
            self.begin_body()?;
            return self.body_byte(byte);
        }
        self.fault
            .get_or_insert(ContentFault::HeaderTooLarge(self.options.header_bytes_max));
        Ok(())
    }

    fn lone_cr(&mut self) -> Result<(), CollectError> {
        if self.is_in_header {
            self.byte(b' ')
        } else {
            self.line_end()
        }
    }

    fn line_end(&mut self) -> Result<(), CollectError> {
        if !self.is_in_header {
            self.count_body(1);
            return self.put(b"\r\n");
        }
        if self.line.is_empty() {
            self.is_in_header = false;
            return Ok(());
        }
        let is_first = self.header.fields().is_empty();
        match line_kind(&self.line) {
            LineKind::Field(colon) => self.header.push_line(&self.line, colon),
            LineKind::Continuation if !is_first => self.header.push_continuation(&self.line),
            LineKind::Other
                if is_first
                    && self.header.unix_from.is_none()
                    && self.line.starts_with(b"From ") =>
            {
                // The mailbox line is not part of the message.
                self.header.unix_from = Some(std::mem::take(&mut self.line));
                return Ok(());
            }
            LineKind::Continuation | LineKind::Other => {
                self.begin_body()?;
                return self.line_end();
            }
        }
        self.header_bytes += self.line.len() + 1;
        self.line.clear();
        Ok(())
    }

    /// What was taken for a header line is the body's first.
    fn begin_body(&mut self) -> Result<(), CollectError> {
        self.is_in_header = false;
        for byte in std::mem::take(&mut self.line) {
            self.body_byte(byte)?;
        }
        Ok(())
    }

    fn body_byte(&mut self, byte: u8) -> Result<(), CollectError> {
        self.count_body(1);
        self.put(&[byte])
    }

    fn count_body(&mut self, bytes: u64) {
        self.body_bytes += bytes;
        if let Some(limit) = self.options.message_bytes_max
            && self.message_bytes() > limit
        {
            self.fault.get_or_insert(ContentFault::TooLarge(limit));
        }
    }

    fn message_bytes(&self) -> u64 {
        u64::try_from(self.header_bytes)
            .unwrap_or(u64::MAX)
            .saturating_add(1)
            .saturating_add(self.body_bytes)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), CollectError> {
        // What is over the limit is read, so that the writer is not cut off, but not kept.
        if matches!(self.fault, Some(ContentFault::TooLarge(_))) {
            return Ok(());
        }
        self.body.write(bytes).map_err(CollectError::Write)
    }

    fn finish(self) -> Result<Collected, CollectError> {
        let message_bytes = self.message_bytes();
        Ok(Collected {
            header: self.header,
            body: self.body.finish().map_err(CollectError::Write)?,
            message_bytes,
            body_bytes: self.body_bytes,
            has_eight_bit: self.has_eight_bit,
            fault: self.fault,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: CollectOptions = CollectOptions {
        ends_at_dot: true,
        header_bytes_max: 32_768,
        message_bytes_max: None,
        is_seven_bit: false,
    };

    fn read(input: &[u8], options: CollectOptions) -> (Collected, String) {
        let folder = tempfile::tempdir().unwrap();
        let collected = collect(&mut &*input, options, folder.path()).unwrap();
        let mut body = Vec::new();
        io::Read::read_to_end(&mut collected.body.open(), &mut body).unwrap();
        (collected, String::from_utf8_lossy(&body).into_owned())
    }

    fn body_of(input: &str, options: CollectOptions) -> String {
        read(input.as_bytes(), options).1
    }

    #[test]
    fn a_lone_dot_ends_the_message_unless_dots_are_ignored() {
        let input = "Subject: dots\n\nline\n..two dots\n.\nnot read\n";
        let (collected, body) = read(input.as_bytes(), OPTIONS);
        assert_eq!(body, "line\r\n.two dots\r\n");
        assert_eq!(collected.message_bytes, 30);
        let ignored = CollectOptions {
            ends_at_dot: false,
            ..OPTIONS
        };
        let (collected, body) = read(b"Subject: -i\n\nline\n.\nread\n..x\n.leading\n", ignored);
        assert_eq!(body, "line\r\n.\r\nread\r\n..x\r\n.leading\r\n");
        assert_eq!(collected.message_bytes, 38);
        assert_eq!(body_of("\n.x\n.\r\ny", OPTIONS), ".x\r\n");
        assert_eq!(body_of("\na\n.", OPTIONS), "a\r\n");
        assert_eq!(body_of("\n.\ra\n", OPTIONS), ".\r\na\r\n");
    }

    #[test]
    fn line_ends_of_all_kinds_leave_as_crlf() {
        assert_eq!(body_of("\r\na\r\nb\nc", OPTIONS), "a\r\nb\r\nc\r\n");
        assert_eq!(body_of("\n10%\r20%\r\n", OPTIONS), "10%\r\n20%\r\n");
        assert_eq!(body_of("\n\r\r\n", OPTIONS), "\r\n\r\n");
    }

    #[test]
    fn a_carriage_return_cannot_smuggle_a_field_or_an_end() {
        let (collected, body) = read(b"Subject: x\rBcc: evil@x.test\n\nb\n", OPTIONS);
        assert_eq!(
            collected.header.text("subject").unwrap(),
            "x Bcc: evil@x.test"
        );
        assert!(collected.header.get("bcc").is_none());
        assert_eq!(body, "b\r\n");
        let ignored = CollectOptions {
            ends_at_dot: false,
            ..OPTIONS
        };
        assert_eq!(body_of("\na\r.\rb\n", ignored), "a\r\n.\r\nb\r\n");
    }

    #[test]
    fn header_and_body_are_told_apart() {
        for (input, fields, body) in [
            ("", 0, ""),
            ("\n", 0, ""),
            ("no header, only body\n", 0, "no header, only body\r\n"),
            ("Subject: only header\n", 1, ""),
            ("Subject: no newline at end", 1, ""),
            (
                ">From foo\nSubject: x\n\nx\n",
                0,
                ">From foo\r\nSubject: x\r\n\r\nx\r\n",
            ),
            (":novalue\n\nx\n", 0, ":novalue\r\n\r\nx\r\n"),
            (" indented\n", 0, " indented\r\n"),
            ("A: 1\nB: 2\n 3\nbody\n", 2, "body\r\n"),
            ("From a Mon Jan  1 00:00:00 2001\nA: 1\n\nx\n", 1, "x\r\n"),
        ] {
            let (collected, read) = read(input.as_bytes(), OPTIONS);
            assert_eq!(collected.header.fields().len(), fields, "{input}");
            assert_eq!(read, body, "{input}");
            assert_eq!(collected.fault, None);
        }
    }

    #[test]
    fn limits_and_nul_are_faults_and_bound_what_is_kept() {
        let small = CollectOptions {
            header_bytes_max: 20,
            message_bytes_max: Some(50),
            ..OPTIONS
        };
        let (collected, _) = read(b"Subject: longer than twenty bytes\n\nx\n", small);
        assert_eq!(collected.fault, Some(ContentFault::HeaderTooLarge(20)));
        let (collected, body) = read(&[b'x'; 40], small);
        assert_eq!((collected.fault, body.len()), (None, 42));
        let (collected, body) = read(&[b'x'; 5_000], small);
        assert_eq!(collected.fault, Some(ContentFault::TooLarge(50)));
        assert!(body.len() <= 50);
        let (collected, _) = read(b"\na\0b\n", OPTIONS);
        assert_eq!(collected.fault, Some(ContentFault::Nul));
    }

    #[test]
    fn seven_bit_takes_the_eighth_bit_off() {
        let seven = CollectOptions {
            is_seven_bit: true,
            ..OPTIONS
        };
        let (collected, body) = read(b"Subject: 7\n\n\xe9\n", seven);
        assert_eq!((body.as_str(), collected.has_eight_bit), ("i\r\n", false));
        assert_eq!(collected.message_bytes, 14);
        assert!(read(b"\n\xe9\n", OPTIONS).0.has_eight_bit);
    }

    #[test]
    fn reading_stops_at_the_end_of_the_message() {
        let mut input: &[u8] = b"\na\n.\nrest";
        let folder = tempfile::tempdir().unwrap();
        collect(&mut input, OPTIONS, folder.path()).unwrap();
        assert_eq!(input, b"rest");
    }
}
