//! Answers that tables give instead of a recipient: `error:5.7.1:550 text` and its relatives.
//!
//! Pure text, no lookups. As in Sendmail the codes of the reply stand in the text; what stands before it counts for the
//! enhanced code where the text has none. A text without codes is refused with 553 5.3.0, unless what stands before it
//! says that the trouble is temporary: then it is deferred, as the operator means it, where Sendmail's SMTP server
//! refuses. Source: rulesets Parse1 and MailerToTriple, `dsntoexitstat`, transcript 51.

#![deny(clippy::indexing_slicing)]

use super::Route;
use super::access_entry::{Denial, codes};
use crate::status::{ExitCode, Status};

/// An answer instead of a recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    denial: Denial,
    /// What stood before the text: an enhanced code or a word of sysexits(3).
    at: String,
    /// The text with its codes.
    told: String,
}

impl Refusal {
    /// A refusal of our own.
    pub(super) fn new(code: u16, status: Status, text: String) -> Self {
        Self {
            told: format!("{code} {text}"),
            denial: Denial::new(code, status, text),
            at: status.to_string(),
        }
    }

    /// What follows `error:` in a virtusertable: `D.S.N:text` or `word text`.
    pub(super) fn of_virtual_user(value: &str) -> Self {
        let value = value.trim();
        let (at, text) = dotted(value)
            .or_else(|| {
                let (word, text) = value.split_once(char::is_whitespace)?;
                Some((word, text))
            })
            .unwrap_or((value, ""));
        Self::of(at, text)
    }

    /// What follows `error:` where a mailer is named: `D.S.N:text`, `word:text` or the text alone.
    pub(super) fn of_mailer(value: &str) -> Self {
        let value = value.trim();
        let is_word = |word: &str| !word.contains([' ', '\t', '"', '.']);
        let worded = || value.split_once(':').filter(|(word, _)| is_word(word));
        let (at, text) = dotted(value).or_else(worded).unwrap_or(("", value));
        Self::of(at, text)
    }

    fn of(at: &str, text: &str) -> Self {
        let (at, told) = (at.trim(), text.trim().trim_matches('"').trim());
        let status = Status::parse(at);
        let denial = match codes(told, status) {
            Some(denial) => denial,
            None => {
                let text = if told.is_empty() {
                    "User unknown"
                } else {
                    told
                };
                match status.filter(|status| status.class == 4) {
                    Some(status) => Denial::new(450, status, text),
                    None if at.eq_ignore_ascii_case("tempfail") => {
                        Denial::new(450, Status::new(4, 0, 0), text)
                    }
                    None => Denial::new(553, Status::new(5, 3, 0), text),
                }
            }
        };
        Self {
            denial,
            at: at.to_owned(),
            told: told.to_owned(),
        }
    }

    /// As an answer of the SMTP server.
    pub(super) fn into_denial(self) -> Denial {
        self.denial
    }

    /// As an outcome of routing.
    pub(super) fn into_route(self) -> Route {
        let Denial { code, status, text } = self.denial;
        if code < 500 {
            Route::Deferred { status, text }
        } else {
            Route::Failed { status, text }
        }
    }

    /// What `-bv` says first: the text, with the address where the reply has it.
    pub(super) fn line(&self, shown: &str) -> String {
        if self.denial.names_address() {
            format!("{shown}... {}", self.denial.text)
        } else {
            self.denial.text.clone()
        }
    }

    /// What `-bv` says of a temporary one, which it takes for deliverable.
    pub(super) fn deliverable(&self) -> Option<String> {
        let host = match self.at.as_str() {
            "" => String::new(),
            at => format!(" host {at},"),
        };
        (self.denial.code < 500)
            .then(|| format!("deliverable: mailer *error*,{host} user {}", self.told))
    }

    /// What `-bv` ends with.
    pub(super) fn exit_code(&self) -> ExitCode {
        if self.denial.code < 500 {
            return ExitCode::Ok;
        }
        let Some(status) = Status::parse(&self.at) else {
            return match self.at.to_ascii_lowercase().as_str() {
                "nouser" => ExitCode::NoUser,
                "nohost" => ExitCode::NoHost,
                "protocol" => ExitCode::Protocol,
                "usage" => ExitCode::Usage,
                "config" | "d.s.n" => ExitCode::Config,
                _ => ExitCode::Unavailable,
            };
        };
        match (status.subject, status.detail) {
            (1, 1 | 6) => ExitCode::NoUser,
            (1, 2) => ExitCode::NoHost,
            (1, 3) => ExitCode::Usage,
            (3, 5) => ExitCode::Config,
            (5, _) => ExitCode::Protocol,
            (7, _) => ExitCode::DataErr,
            _ => ExitCode::Unavailable,
        }
    }
}

/// `D.S.N` and what follows the colon after it; its parts need not be numbers.
pub(super) fn dotted(value: &str) -> Option<(&str, &str)> {
    let (head, text) = value.split_once(':')?;
    let parts: Vec<&str> = head.trim().split('.').collect();
    let is_part =
        |part: &&str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric());
    (parts.len() == 3 && parts.iter().all(is_part)).then_some((head.trim(), text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_virtusertable_refuses_as_in_sendmail() {
        for (value, answer, code) in [
            (
                "nouser No such user here",
                "553 5.3.0 <x>... No such user here",
                67,
            ),
            (
                "nouser 550 5.1.1 quoted codes",
                "550 5.1.1 <x>... quoted codes",
                67,
            ),
            ("5.7.0:550 Go away", "550 5.7.0 <x>... Go away", 65),
            ("4.2.1:450 later", "450 4.2.1 <x>... later", 0),
            ("5.1.1:User has gone", "553 5.3.0 <x>... User has gone", 67),
            ("D.S.N:550 literal", "550 5.0.0 <x>... literal", 78),
            ("nohost no host", "553 5.3.0 <x>... no host", 68),
            ("unavailable closed", "553 5.3.0 <x>... closed", 69),
            ("550 Plain code", "553 5.3.0 <x>... Plain code", 69),
            ("5.1.1:\"550 quoted\"", "550 5.1.1 <x>... quoted", 67),
            ("foo bar", "553 5.3.0 <x>... bar", 69),
            ("5.2.1:550 5.2.2 double", "550 5.2.2 <x>... double", 69),
            ("5.1.1:551 gone to y", "551 5.1.1 gone to y", 67),
            // Temporary words stay temporary.
            ("tempfail come back", "450 4.0.0 <x>... come back", 0),
        ] {
            let refusal = Refusal::of_virtual_user(value);
            assert_eq!(refusal.exit_code() as i32, code, "{value}");
            assert_eq!(
                refusal.into_denial().about("<x>").to_line(),
                answer,
                "{value}"
            );
        }
    }

    #[test]
    fn a_mailertable_refuses_as_in_sendmail() {
        for (value, answer, code) in [
            (
                "nohost no such domain here",
                "553 5.3.0 <x>... nohost no such domain here",
                69,
            ),
            (
                "nohost:no such domain here",
                "553 5.3.0 <x>... no such domain here",
                68,
            ),
            ("5.7.1:550 Custom text", "550 5.7.1 <x>... Custom text", 65),
            ("4.3.0:450 later", "450 4.3.0 <x>... later", 0),
            ("550 plain code", "550 5.0.0 <x>... plain code", 69),
            ("5.7.1:no code", "553 5.3.0 <x>... no code", 65),
            ("unavailable:550 5.7.1 mix", "550 5.7.1 <x>... mix", 69),
        ] {
            let refusal = Refusal::of_mailer(value);
            assert_eq!(refusal.exit_code() as i32, code, "{value}");
            assert_eq!(
                refusal.into_denial().about("<x>").to_line(),
                answer,
                "{value}"
            );
        }
        let later = Refusal::of_mailer("4.3.0:450 later");
        assert_eq!(later.line("u@x"), "u@x... later");
        assert_eq!(
            later.deliverable().unwrap(),
            "deliverable: mailer *error*, host 4.3.0, user 450 later"
        );
    }
}
