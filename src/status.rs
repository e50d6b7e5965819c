//! Replies, enhanced status codes, verdicts and exit codes (L0): pure values.
//!
//! Sources: RFC 5321 4.2 (replies), RFC 3463 (enhanced status codes), sysexits(3).

use std::fmt;

/// Whether trouble may pass by itself. What is not known is [`Verdict::Temporary`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Worth trying again.
    Temporary,
    /// Will not get better by waiting.
    Permanent,
}

/// An enhanced status code `class.subject.detail`, RFC 3463 section 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status {
    /// 2 success, 4 persistent transient failure, 5 permanent failure.
    pub class: u8,
    /// 0 to 999.
    pub subject: u16,
    /// 0 to 999.
    pub detail: u16,
}

impl Status {
    /// `2.0.0`, success without more to say.
    pub const OK: Self = Self::new(2, 0, 0);
    /// `2.1.5`, destination address valid.
    pub const RECIPIENT_OK: Self = Self::new(2, 1, 5);
    /// `4.4.7`, delivery time expired.
    pub const EXPIRED: Self = Self::new(4, 4, 7);
    /// `5.1.1`, bad destination mailbox address.
    pub const NO_USER: Self = Self::new(5, 1, 1);

    /// A status code from its three numbers, which the caller knows to be in range.
    #[must_use]
    pub const fn new(class: u8, subject: u16, detail: u16) -> Self {
        Self {
            class,
            subject,
            detail,
        }
    }

    /// Parses `d.d{1,3}.d{1,3}` with class 2, 4 or 5; `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('.');
        let class = match parts.next()? {
            "2" => 2,
            "4" => 4,
            "5" => 5,
            _ => return None,
        };
        let mut number = || -> Option<u16> {
            let part = parts.next()?;
            if part.is_empty() || part.len() > 3 || !part.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            part.parse().ok()
        };
        let (subject, detail) = (number()?, number()?);
        if parts.next().is_some() {
            return None;
        }
        Some(Self {
            class,
            subject,
            detail,
        })
    }

    /// Permanent for class 5, otherwise temporary.
    #[must_use]
    pub fn verdict(self) -> Verdict {
        if self.class == 5 {
            Verdict::Permanent
        } else {
            Verdict::Temporary
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.class, self.subject, self.detail)
    }
}

/// An SMTP reply: three digits, an optional enhanced code, one or more lines of text (RFC 5321 4.2.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// 200 to 599.
    pub code: u16,
    /// The enhanced code put before the text of every line, if any.
    pub status: Option<Status>,
    /// At least one line, without CR or LF.
    pub lines: Vec<String>,
}

impl Reply {
    /// A reply of one line with an enhanced code.
    #[must_use]
    pub fn new(code: u16, status: Status, text: impl Into<String>) -> Self {
        Self {
            code,
            status: Some(status),
            lines: vec![text.into()],
        }
    }

    /// A reply of one line without an enhanced code, as `220`, `250` to HELO and EHLO, and `354` have it.
    #[must_use]
    pub fn bare(code: u16, text: impl Into<String>) -> Self {
        Self {
            code,
            status: None,
            lines: vec![text.into()],
        }
    }

    /// The bytes for the wire, each line ended with CRLF.
    #[must_use]
    pub fn to_wire(&self) -> String {
        let mut out = String::with_capacity(64);
        for (at, line) in self.lines.iter().enumerate() {
            let mark = if at + 1 == self.lines.len() { ' ' } else { '-' };
            out.push_str(&self.code.to_string());
            out.push(mark);
            if let Some(status) = self.status {
                out.push_str(&status.to_string());
                out.push(' ');
            }
            out.push_str(line);
            out.push_str("\r\n");
        }
        out
    }

    /// The reply on one line, as the log and mailq show it: `550 5.1.1 User unknown`.
    #[must_use]
    pub fn to_line(&self) -> String {
        let mut out = self.code.to_string();
        if let Some(status) = self.status {
            out.push(' ');
            out.push_str(&status.to_string());
        }
        for line in &self.lines {
            out.push(' ');
            out.push_str(line);
        }
        out
    }

    /// Permanent for 5yz, otherwise temporary.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        if (500..600).contains(&self.code) {
            Verdict::Permanent
        } else {
            Verdict::Temporary
        }
    }
}

/// Exit codes of sysexits(3), the way programs of ours end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// 0: done.
    Ok = 0,
    /// 64: the command line is wrong.
    Usage = 64,
    /// 65: the input data are wrong.
    DataErr = 65,
    /// 66: an input file can't be read.
    NoInput = 66,
    /// 67: the addressee does not exist.
    NoUser = 67,
    /// 68: the host does not exist.
    NoHost = 68,
    /// 69: a service is unavailable.
    Unavailable = 69,
    /// 70: an internal error.
    Software = 70,
    /// 71: the operating system failed.
    OsErr = 71,
    /// 72: a system file is missing or wrong.
    OsFile = 72,
    /// 73: an output file can't be created.
    CantCreat = 73,
    /// 74: input or output failed.
    IoErr = 74,
    /// 75: try again later.
    TempFail = 75,
    /// 76: the remote side broke the protocol.
    Protocol = 76,
    /// 77: not permitted.
    NoPerm = 77,
    /// 78: the configuration is wrong.
    Config = 78,
}

impl ExitCode {
    const ALL: [Self; 16] = [
        Self::Ok,
        Self::Usage,
        Self::DataErr,
        Self::NoInput,
        Self::NoUser,
        Self::NoHost,
        Self::Unavailable,
        Self::Software,
        Self::OsErr,
        Self::OsFile,
        Self::CantCreat,
        Self::IoErr,
        Self::TempFail,
        Self::Protocol,
        Self::NoPerm,
        Self::Config,
    ];

    /// The code with this number, as another process of ours gave it; `None` if it is none of sysexits(3).
    #[must_use]
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|known| *known as u8 == code)
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_codes_parse_only_in_their_form() {
        assert_eq!(Status::parse("5.1.1"), Some(Status::NO_USER));
        assert_eq!(Status::parse("4.4.7"), Some(Status::EXPIRED));
        for bad in [
            "", "5", "5.1", "3.1.1", "5.1.1.1", "5..1", "5.1000.1", "5.1.a", "+5.1.1", "5.+1.1",
        ] {
            assert_eq!(Status::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn multi_line_replies_mark_every_line_but_the_last() {
        let reply = Reply {
            code: 250,
            status: None,
            lines: vec!["a".into(), "b".into()],
        };
        assert_eq!(reply.to_wire(), "250-a\r\n250 b\r\n");
        assert_eq!(
            Reply::new(250, Status::OK, "OK").to_wire(),
            "250 2.0.0 OK\r\n"
        );
    }
}
