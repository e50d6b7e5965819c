//! The access map's keys and values: which keys are tried for a name, in which order, and what a value means.
//!
//! Pure text, no lookups. A value that is no known word is the text of a refusal with 553, as in Sendmail; its words
//! are never ignored. Limits: [`KEYS_MAX`] keys for one question.
//! Source: cf/README "access_db", MAPS 11.

#![deny(clippy::indexing_slicing)]

use std::net::IpAddr;

use super::refusal::dotted;
use super::tables::strip_word;
use crate::address::{Address, Domain};
use crate::status::{Reply, Status};

/// Most keys looked up for one question: labels of a domain, pieces of an address.
pub(super) const KEYS_MAX: usize = 512;

/// What is done with a message that is taken.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Disposition {
    /// It is delivered.
    #[default]
    Accept,
    /// It is taken and dropped: nobody gets it, and the client is told nothing.
    Discard,
    /// It is taken and held back, for this reason.
    Quarantine(String),
}

impl Disposition {
    /// Of two opinions about one message the harder one.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (&self, &other) {
            (Self::Discard, _) | (Self::Quarantine(_), Self::Accept | Self::Quarantine(_)) => self,
            (Self::Accept, _) | (Self::Quarantine(_), Self::Discard) => other,
        }
    }
}

/// A refusal by policy that does not yet say of whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Denial {
    /// The SMTP code.
    pub code: u16,
    /// The enhanced code, of the same class.
    pub status: Status,
    /// What follows it.
    pub text: String,
}

impl Denial {
    pub(super) fn new(code: u16, status: Status, text: impl Into<String>) -> Self {
        let text = text.into();
        Self { code, status, text }
    }

    /// What is answered when a lookup or a setting is at fault (I9).
    #[must_use]
    pub fn trouble() -> Self {
        let text = "Temporary system failure. Please try again later.";
        Self::new(451, Status::new(4, 3, 0), text)
    }

    /// The refusal of a client that a list in DNS has: `[ccc [d.s.n]] text`.
    #[must_use]
    pub fn of_list(text: &str) -> Self {
        let has_code = text
            .split(' ')
            .next()
            .is_some_and(|code| code.len() == 3 && matches!(code.parse::<u16>(), Ok(400..600)));
        let text = if has_code {
            text.to_owned()
        } else {
            format!("550 {text}")
        };
        let mut refusal = error(&text);
        if refusal.status.subject == 0 {
            refusal.status = Status::new(refusal.status.class, 7, 1);
        }
        refusal
    }

    /// Whether the address is said with it: with the codes that are about mailboxes, as in Sendmail.
    pub(super) const fn names_address(&self) -> bool {
        matches!(self.code, 450 | 550 | 553)
    }

    /// The answer that names nobody.
    #[must_use]
    pub fn bare(self) -> Reply {
        Reply::new(self.code, self.status, self.text)
    }

    /// The answer about an address, shown as the client wrote it.
    #[must_use]
    pub fn about(self, shown: &str) -> Reply {
        if !self.names_address() {
            return self.bare();
        }
        let text = format!("{shown}... {}", self.text);
        Reply::new(self.code, self.status, text)
    }
}

/// What an entry of the access map says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    Ok,
    Relay,
    Reject,
    /// No opinion, and no further search; only where `access_skip` is set.
    Skip,
    Discard,
    Quarantine(String),
    Error(Denial),
}

impl Entry {
    /// Reads a value.
    pub(super) fn parse(value: &str, has_skip: bool) -> Self {
        let value = value.trim();
        match value.to_ascii_uppercase().as_str() {
            "OK" => return Self::Ok,
            "RELAY" => return Self::Relay,
            "REJECT" => return Self::Reject,
            "SKIP" if has_skip => return Self::Skip,
            "DISCARD" => return Self::Discard,
            _ => {}
        }
        if let Some(reason) = after(value, "QUARANTINE:").filter(|reason| !reason.is_empty()) {
            return Self::Quarantine(reason.to_owned());
        }
        Self::Error(error(value))
    }
}

/// What follows a word in any case.
fn after<'v>(value: &'v str, word: &str) -> Option<&'v str> {
    strip_word(value, word).map(str::trim)
}

/// `[ERROR:[d.s.n:]][ccc [d.s.n]] text`, the rest in quotes or not.
fn error(value: &str) -> Denial {
    let (status, text) = match after(value, "ERROR:") {
        Some(rest) => match dotted(rest) {
            Some((at, text)) => (Status::parse(at), text),
            None => (None, rest),
        },
        None => (None, value),
    };
    let text = text.trim().trim_matches('"');
    codes(text, status).unwrap_or_else(|| Denial::new(553, Status::new(5, 3, 0), text))
}

/// The reply that a text with codes of its own is: `ccc [d.s.n] text`. Where it has no enhanced code, `status` counts; one
/// that contradicts the reply's does not. `None` if the text has no code, or is nothing else.
pub(super) fn codes(text: &str, status: Option<Status>) -> Option<Denial> {
    let (head, tail) = text.split_once(' ')?;
    let code = head.parse::<u16>().ok()?;
    let tail = tail.trim_start();
    if head.len() != 3 || !(400..600).contains(&code) || tail.is_empty() {
        return None;
    }
    let class = if code < 500 { 4 } else { 5 };
    let (own, text) = match tail.split_once(' ') {
        Some((own, text)) if Status::parse(own).is_some() => (Status::parse(own), text),
        _ => (None, tail),
    };
    let status = own.or(status).filter(|status| status.class == class);
    let status = status.unwrap_or(Status::new(class, 0, 0));
    Some(Denial::new(code, status, text))
}

/// What an entry with a number of milliseconds, connections or the like says: blanks and a unit are no number.
pub(super) fn number(value: &str) -> Option<u32> {
    value.trim().parse().ok()
}

/// A name as keys have it.
pub(super) fn fold(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// A domain and those above it: `a.b.test`, `b.test`, `test`; of a literal what is left of its address, `[192.0.2.1]`,
/// `[192.0.2]` and so on. With dots, what stands for names below a domain alone comes before it: `a.b.test`, `.b.test`,
/// `b.test`.
pub(super) fn domain_keys(folded: &str, dots: Dots) -> Vec<String> {
    if let Some(inner) = folded.strip_prefix('[').and_then(|f| f.strip_suffix(']')) {
        let whole = |part: String| format!("[{part}]");
        return address_prefixes(inner).into_iter().map(whole).collect();
    }
    let mut keys = Vec::new();
    let mut rest = Some(folded);
    while let Some(name) = rest {
        keys.push(name.to_owned());
        rest = name.split_once('.').map(|(_, above)| above);
        if dots == Dots::Too {
            keys.extend(rest.map(|above| format!(".{above}")));
        }
    }
    keys
}

/// Whether `.domain` is a key, as FEATURE(lookupdotdomain) has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dots {
    Too,
    Never,
}

/// The keys of a client's address: itself and its networks.
pub(super) fn client_address_keys(address: IpAddr) -> Vec<String> {
    let address = address.to_canonical();
    match address {
        IpAddr::V4(_) => address_prefixes(&address.to_string()),
        IpAddr::V6(six) => {
            // Sendmail's form: all eight groups, no leading zeros; the usual short form is taken as well.
            let groups: Vec<String> = six.segments().iter().map(|g| format!("{g:x}")).collect();
            let mut keys = address_prefixes(&groups.join(":"));
            keys.extend(address_prefixes(&six.to_string()));
            keys.into_iter().map(|key| format!("ipv6:{key}")).collect()
        }
    }
}

/// An address in text and its networks: `127.0.0.1`, `127.0.0`, `127.0`, `127`; IPv6 cut at `::` or `:`.
pub(super) fn address_prefixes(text: &str) -> Vec<String> {
    let mut keys = vec![text.to_owned()];
    let mut rest = text;
    while let Some(at) = rest.rfind(['.', ':']) {
        rest = rest
            .get(..at)
            .map(|head| head.trim_end_matches(':'))
            .unwrap_or_default();
        if rest.is_empty() {
            break;
        }
        keys.push(rest.to_owned());
    }
    keys
}

/// The address in full, without and then with less of its detail: `user+x@host`, `user@host`.
pub(super) fn full_keys(address: &Address) -> Vec<String> {
    let Some(domain) = address.domain().map(Domain::folded) else {
        return Vec::new();
    };
    names(address)
        .into_iter()
        .map(|name| format!("{name}@{domain}"))
        .collect()
}

/// `user+x@`, `user@`: in any domain, and in none.
pub(super) fn user_keys(address: &Address) -> Vec<String> {
    let at = |name| format!("{name}@");
    names(address).into_iter().map(at).collect()
}

fn names(address: &Address) -> Vec<String> {
    let local = address.local().to_lowercase();
    let base = local.split_once('+').map(|(user, _)| user.to_owned());
    let base = base.filter(|user| !user.is_empty());
    std::iter::once(local).chain(base).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(value: &str) -> String {
        match Entry::parse(value, false) {
            Entry::Error(refusal) => refusal.about("<x>").to_line(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn values_mean_what_they_mean_to_sendmail() {
        for (value, meaning) in [
            ("ok", "Ok"),
            ("Relay", "Relay"),
            ("REJECT", "Reject"),
            ("DISCARD", "Discard"),
            ("SKIP", "553 5.3.0 <x>... SKIP"),
            (
                "QUARANTINE:looks like spam",
                "Quarantine(\"looks like spam\")",
            ),
            ("QUARANTINE:", "553 5.3.0 <x>... QUARANTINE:"),
            ("JUNKACTION", "553 5.3.0 <x>... JUNKACTION"),
            (
                "550 plain number text",
                "550 5.0.0 <x>... plain number text",
            ),
            ("550 5.7.9 text with dsn", "550 5.7.9 <x>... text with dsn"),
            ("450 4.7.9 temp text", "450 4.7.9 <x>... temp text"),
            ("ERROR:\"550 quoted text\"", "550 5.0.0 <x>... quoted text"),
            ("ERROR:5.7.1:550 go away", "550 5.7.1 <x>... go away"),
            ("ERROR:D.S.N:550 literal", "550 5.0.0 <x>... literal"),
            ("ERROR:4.7.1:451 later", "451 4.7.1 later"),
            ("ERROR:5.7.1:just text", "553 5.3.0 <x>... just text"),
            ("ERROR:5.7.1:550 5.1.1 two", "550 5.1.1 <x>... two"),
            ("5.7.1:550 no word", "553 5.3.0 <x>... 5.7.1:550 no word"),
            ("DISCARD:something", "553 5.3.0 <x>... DISCARD:something"),
            ("554", "553 5.3.0 <x>... 554"),
            ("551 5.7.1 moved", "551 5.7.1 moved"),
            ("503 5.7.1 order", "503 5.7.1 order"),
            ("552 5.7.1 full", "552 5.7.1 full"),
            ("ERROR:4.2.1:550 mixed", "550 5.0.0 <x>... mixed"),
            ("error:4.7.1:\"450 later\"", "450 4.7.1 <x>... later"),
        ] {
            assert_eq!(line(value), meaning, "{value}");
        }
        assert_eq!(Entry::parse("skip", true), Entry::Skip);
    }

    #[test]
    fn keys_go_from_the_whole_to_its_parts() {
        let keys = |name, dots| domain_keys(name, dots).join(" ");
        assert_eq!(keys("a.b.test", Dots::Never), "a.b.test b.test test");
        assert_eq!(
            keys("a.b.test", Dots::Too),
            "a.b.test .b.test b.test .test test"
        );
        assert_eq!(
            keys("[192.0.2.1]", Dots::Never),
            "[192.0.2.1] [192.0.2] [192.0] [192]"
        );
        let keys = client_address_keys("192.0.2.1".parse().unwrap());
        assert_eq!(keys, ["192.0.2.1", "192.0.2", "192.0", "192"]);
        let keys = client_address_keys("2001:db8::1".parse().unwrap());
        assert_eq!(keys[0], "ipv6:2001:db8:0:0:0:0:0:1");
        assert!(keys.contains(&"ipv6:2001:db8".to_owned()));
        let address = Address::parse("User+x@Host.test").unwrap();
        assert_eq!(full_keys(&address), ["user+x@host.test", "user@host.test"]);
        assert_eq!(user_keys(&address), ["user+x@", "user@"]);
    }
}
