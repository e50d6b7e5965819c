//! What `vacation` makes of a message: whether it is answered, and with what.
//!
//! Pure: reads the header it is given. Nobody is answered who is a list, a daemon, a robot or nobody; nor is what was not
//! addressed to the user. Limits: [`LINE_BYTES_MAX`]; of the header the first [`HEADER_BYTES_MAX`] count.
//! Source: vacation(1) of Sendmail, RFC 3834 2, transcript 61.

use std::io::{self, BufRead};

/// The longest line of a header that is looked at, in bytes.
pub const LINE_BYTES_MAX: u64 = 64 << 10;
/// How much of a header is looked at, in bytes.
pub const HEADER_BYTES_MAX: u64 = 4 << 20;

/// What a message's header says.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Header {
    /// The envelope's sender, from the line that begins with "From ".
    pub from: Option<String>,
    /// Subject, unfolded.
    pub subject: String,
    /// To and Cc, unfolded, one after another.
    pub recipients: String,
    /// Why the message is not answered, whoever sent it.
    pub unanswerable: Option<&'static str>,
}

impl Header {
    /// Reads a header, as far as the first empty line.
    ///
    /// # Errors
    /// What the reader says.
    pub fn read(mut input: impl BufRead) -> io::Result<Self> {
        let mut found = Self::default();
        let (mut name, mut value) = (String::new(), String::new());
        let (mut is_first, mut total) = (true, 0);
        loop {
            let mut line = Vec::new();
            let read = io::Read::take(&mut input, LINE_BYTES_MAX).read_until(b'\n', &mut line)?;
            total += read as u64;
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end_matches(['\r', '\n']);
            if read == 0 || text.is_empty() || total > HEADER_BYTES_MAX {
                found.field(&name, &value);
                return Ok(found);
            }
            if is_first && let Some(rest) = text.strip_prefix("From ") {
                found.from = sender_of(rest);
                is_first = false;
                continue;
            }
            is_first = false;
            if text.starts_with([' ', '\t']) {
                value.push(' ');
                value.push_str(text.trim());
                continue;
            }
            found.field(&name, &value);
            let (key, rest) = text.split_once(':').unwrap_or((text, ""));
            name = key.trim().to_ascii_lowercase();
            value = rest.trim().to_owned();
        }
    }

    fn field(&mut self, name: &str, value: &str) {
        let word = value.trim().to_ascii_lowercase();
        match name {
            "subject" => value.clone_into(&mut self.subject),
            "to" | "cc" | "resent-to" | "resent-cc" => {
                self.recipients.push_str(value);
                self.recipients.push(',');
            }
            "precedence" if ["bulk", "junk", "list"].contains(&word.as_str()) => {
                self.unanswerable = Some("bulk mail");
            }
            "auto-submitted"
                if !(word == "no" || word.starts_with("no ") || word.starts_with("no;")) =>
            {
                self.unanswerable = Some("from a program");
            }
            name if name.starts_with("list-") => self.unanswerable = Some("a list's"),
            _ => {}
        }
    }

    /// Whether one of these names, each a local part or an address, is among the recipients.
    #[must_use]
    pub fn is_to(&self, names: &[String]) -> bool {
        let recipients = self.recipients.to_lowercase();
        names
            .iter()
            .any(|name| has_name(&recipients, &name.to_lowercase()))
    }
}

/// Whether a name stands by itself in a text, not as a part of a longer one. Source: Sendmail's nsearch().
fn has_name(text: &str, name: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+');
    !name.is_empty()
        && text.match_indices(name).any(|(at, _)| {
            let before = text.get(..at).and_then(|t| t.chars().next_back());
            let after = text.get(at + name.len()..).and_then(|t| t.chars().next());
            // What follows @ is a host: `x@dave` is not dave.
            !before.is_some_and(|c| is_part(c) || (c == '@' && !name.contains('@')))
                && !after.is_some_and(|c| is_part(c) && c != '.' && c != '+')
        })
}

/// The sender in the rest of a "From " line: as far as the first blank outside quotes.
fn sender_of(rest: &str) -> Option<String> {
    let mut is_quoted = false;
    let end = rest.char_indices().find(|(_, c)| {
        is_quoted ^= *c == '"';
        *c == ' ' && !is_quoted
    });
    let sender = end
        .map_or(rest, |(at, _)| rest.get(..at).unwrap_or(rest))
        .trim();
    (!sender.is_empty()).then(|| sender.to_owned())
}

/// Whether a sender is nobody who reads answers. Source: Sendmail's junkmail(), RFC 3834 2.
#[must_use]
pub fn is_robot(sender: &str) -> bool {
    let bare = sender.trim_matches(['<', '>']).to_lowercase();
    let local = bare.split('@').next().unwrap_or_default();
    bare.is_empty()
        || ["postmaster", "uucp", "mailer-daemon", "mailer"].contains(&local)
        || ["-request", "-relay", "-owner", "-bounces"]
            .iter()
            .any(|end| local.ends_with(end))
        || local.starts_with("owner-")
}

/// The answer: the fields it needs, then the user's message with `$SUBJECT` and `$FROM` replaced.
#[must_use]
pub fn answer(to: &str, header: &Header, message: &str) -> String {
    let subject = header.subject.replace(['\r', '\n'], " ");
    let text = message.replace("$SUBJECT", &subject).replace("$FROM", to);
    // A message that begins with no field is all body.
    let is_field = text.lines().next().is_some_and(|line| {
        line.split_once(':')
            .is_some_and(|(name, _)| !name.is_empty() && name.chars().all(|c| c.is_ascii_graphic()))
    });
    let gap = if is_field { "" } else { "\n" };
    format!("To: {to}\nAuto-Submitted: auto-replied\n{gap}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(text: &str) -> Header {
        Header::read(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_header_says_who_what_and_to_whom() {
        let found = header(
            "From alice@x.test Sun Nov 22\nTo: Bob <bob@y.test>,\n\tdave\nCC: \"d\" <e@z.test>\nSubject: a\n b\n\nTo: zed\n",
        );
        assert_eq!(found.from.as_deref(), Some("alice@x.test"));
        assert_eq!(found.subject, "a b");
        let is_to = |name: &str| found.is_to(&[name.to_owned()]);
        assert!(is_to("dave") && is_to("DAVE") && is_to("bob") && is_to("e@z.test"));
        assert!(!is_to("zed") && !is_to("av") && !is_to("y.test"));
        assert_eq!(found.unanswerable, None);
        assert_eq!(header("To: x\n\n").from, None);
    }

    #[test]
    fn lists_and_programs_are_not_answered() {
        for text in [
            "Precedence: bulk",
            "precedence: LIST",
            "Auto-Submitted: auto-generated",
            "List-Id: x",
            "List-Unsubscribe: <mailto:x>",
        ] {
            assert!(
                header(&format!("From a@b c\n{text}\n\n"))
                    .unanswerable
                    .is_some(),
                "{text}"
            );
        }
        assert!(
            header("From a c\nAuto-Submitted: no\nPrecedence: first-class\n\n")
                .unanswerable
                .is_none()
        );
        for robot in [
            "<>",
            "",
            "MAILER-DAEMON@x",
            "postmaster",
            "l-request@x",
            "owner-l@x",
            "x-relay@y",
            "l-owner@z",
        ] {
            assert!(is_robot(robot), "{robot}");
        }
        assert!(!is_robot("alice@postmaster.test") && !is_robot("owner@x"));
    }

    #[test]
    fn an_answer_has_its_fields_and_the_subject() {
        let found = header("From alice@x.test c\nSubject: hello $x\n\n");
        assert_eq!(
            answer(
                "alice@x.test",
                &found,
                "Subject: away\n\nYour \"$SUBJECT\" from $FROM\n"
            ),
            "To: alice@x.test\nAuto-Submitted: auto-replied\nSubject: away\n\nYour \"hello $x\" from alice@x.test\n"
        );
        assert_eq!(
            answer("a", &found, "I am away\n"),
            "To: a\nAuto-Submitted: auto-replied\n\nI am away\n"
        );
    }
}
