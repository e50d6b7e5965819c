//! Replies of SMTP servers (L2): lines gathered into a reply, within limits. Pure.
//!
//! Takes what servers send rather than what they should: a line may end in LF alone, the text may be missing, bytes
//! beyond ASCII are kept as Latin-1. Refused are lines without three digits, a code that changes within a reply, codes
//! outside 200 to 599, and what exceeds [`LINE_BYTES_MAX`] or [`LINES_MAX`]. Lines of code 0yz are Sendmail's remarks
//! under VERB: they belong to no reply.
//! Source: RFC 5321 4.2, 4.5.3.1.5; RFC 2034 (enhanced status codes).

use crate::status::{Reply, Status};

/// Longest reply line, in bytes with its line end (RFC 5321 asks for 512).
pub(crate) const LINE_BYTES_MAX: usize = 2048;
/// Most lines of one reply.
pub(crate) const LINES_MAX: usize = 128;
/// Most remarks before one reply.
pub(crate) const REMARKS_MAX: usize = 10_000;

/// What was wrong with a reply; for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReplyError {
    #[error("line does not begin with a reply code")]
    NoCode,
    #[error("reply code changes within a reply")]
    CodeChanged,
    #[error("line too long")]
    LongLine,
    #[error("too many lines")]
    ManyLines,
}

/// Gathers the lines of one reply.
#[derive(Debug, Default)]
pub(crate) struct ReplyLines {
    code: Option<u16>,
    status: Option<Status>,
    lines: Vec<String>,
    remarks: usize,
}

impl ReplyLines {
    /// Takes a line without its line end; gives the reply when it was the last.
    pub(crate) fn line(&mut self, line: &[u8]) -> Result<Option<Reply>, ReplyError> {
        if line.len() > LINE_BYTES_MAX {
            return Err(ReplyError::LongLine);
        }
        let (digits, rest) = line.split_at_checked(3).ok_or(ReplyError::NoCode)?;
        if !digits.iter().all(u8::is_ascii_digit) {
            return Err(ReplyError::NoCode);
        }
        let code = digits
            .iter()
            .fold(0, |sum, digit| sum * 10 + u16::from(digit - b'0'));
        let (is_last, text) = match rest.split_first() {
            None => (true, rest),
            Some((b' ', text)) => (true, text),
            Some((b'-', text)) => (false, text),
            Some(_) => return Err(ReplyError::NoCode),
        };
        if code < 100 {
            self.remarks += 1;
            return if self.remarks > REMARKS_MAX {
                Err(ReplyError::ManyLines)
            } else {
                Ok(None)
            };
        }
        if !(200..600).contains(&code) {
            return Err(ReplyError::NoCode);
        }
        if self.code.is_some_and(|first| first != code) {
            return Err(ReplyError::CodeChanged);
        }
        if self.lines.len() >= LINES_MAX {
            return Err(ReplyError::ManyLines);
        }
        self.code = Some(code);
        let text: String = text.iter().copied().map(char::from).collect();
        let (status, text) = split_status(code, &text);
        if self.lines.is_empty() {
            self.status = status;
        }
        self.lines.push(text.to_owned());
        Ok(is_last.then(|| Reply {
            code,
            status: self.status,
            lines: std::mem::take(&mut self.lines),
        }))
    }
}

/// Takes the enhanced status code off a line's text, if there is one of the reply code's class (RFC 2034 4).
fn split_status(code: u16, text: &str) -> (Option<Status>, &str) {
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    match Status::parse(word) {
        Some(status) if u16::from(status.class) == code / 100 => (Some(status), rest),
        _ => (None, text),
    }
}

/// The status code that stands for a reply that has none (RFC 3463 3, by the meaning of the reply code).
pub(crate) fn status_of(reply: &Reply) -> Status {
    if let Some(status) = reply.status {
        return status;
    }
    match reply.code {
        200..=399 => Status::OK,
        421 => Status::new(4, 3, 2),
        450 => Status::new(4, 2, 0),
        451 => Status::new(4, 3, 0),
        452 => Status::new(4, 3, 1),
        400..=499 => Status::new(4, 0, 0),
        500 | 502 | 503 => Status::new(5, 5, 1),
        501 | 504 => Status::new(5, 5, 4),
        550 => Status::NO_USER,
        551 => Status::new(5, 1, 6),
        552 => Status::new(5, 2, 2),
        553 => Status::new(5, 1, 3),
        556 => Status::new(5, 1, 10),
        _ => Status::new(5, 0, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(lines: &[&str]) -> Result<Option<Reply>, ReplyError> {
        let mut gathered = ReplyLines::default();
        let mut last = None;
        for line in lines {
            last = gathered.line(line.as_bytes())?;
        }
        Ok(last)
    }

    #[test]
    fn replies_of_one_and_of_many_lines_are_gathered() {
        let reply = parsed(&["250-mx hello", "250-SIZE 10", "250 8BITMIME"])
            .unwrap()
            .unwrap();
        assert_eq!(
            (reply.code, reply.lines.join("|").as_str()),
            (250, "mx hello|SIZE 10|8BITMIME")
        );
        let reply = parsed(&["550-5.1.1 no such", "550 5.1.1 user"])
            .unwrap()
            .unwrap();
        assert_eq!(reply.status, Some(Status::NO_USER));
        assert_eq!(reply.to_line(), "550 5.1.1 no such user");
        assert_eq!(parsed(&["250"]).unwrap().unwrap().to_line(), "250 ");
        assert_eq!(parsed(&["250-more"]), Ok(None));
    }

    #[test]
    fn a_status_code_of_another_class_is_text() {
        let reply = parsed(&["250 5.1.1 odd"]).unwrap().unwrap();
        assert_eq!((reply.status, reply.lines[0].as_str()), (None, "5.1.1 odd"));
        assert_eq!(status_of(&reply), Status::OK);
    }

    #[test]
    fn remarks_belong_to_no_reply() {
        let reply = parsed(&["050 bob... Sent", "250 2.0.0 ok"])
            .unwrap()
            .unwrap();
        assert_eq!(reply.lines, ["ok"]);
        let many = vec!["050 x"; REMARKS_MAX + 1];
        assert_eq!(parsed(&many), Err(ReplyError::ManyLines));
    }

    #[test]
    fn rubbish_is_refused() {
        for bad in [
            "",
            "25",
            "abc",
            "2x0 ok",
            "250_ok",
            "150 x",
            "999 x",
            "HTTP/1.1 400",
        ] {
            assert_eq!(parsed(&[bad]), Err(ReplyError::NoCode), "{bad:?}");
        }
        assert_eq!(parsed(&["250-a", "251 b"]), Err(ReplyError::CodeChanged));
        assert_eq!(
            parsed(&vec!["250-a"; LINES_MAX + 1]),
            Err(ReplyError::ManyLines)
        );
        let long = format!("250 {}", "x".repeat(LINE_BYTES_MAX));
        assert_eq!(parsed(&[&long]), Err(ReplyError::LongLine));
    }
}
