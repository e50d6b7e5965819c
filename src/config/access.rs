//! What the sections about access and relaying may say: the words of their options, and the lists of DNS.
//!
//! Pure values: nothing is read, nothing blocks. Names and meanings are those of Sendmail's FEATUREs.
//!
//! Source: cf/README, "ANTI-SPAM CONFIGURATION CONTROL".

use crate::address::Domain;

/// Longest text of a list's refusal, in bytes.
const TEXT_BYTES_MAX: usize = 400;
/// Most address patterns of one list.
const PATTERNS_MAX: usize = 16;

/// Who may connect and send.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AccessOptions {
    /// Whether the access map may refuse recipients.
    pub blocklist_recipients: bool,
    /// Whether client and sender are checked at RCPT, and for whom.
    pub delay_checks: DelayChecks,
    /// Whether a sender's domain need not exist.
    pub accept_unresolvable_domains: bool,
    /// Whether a sender needs no domain.
    pub accept_unqualified_senders: bool,
    /// Whether SKIP is a word of the access map.
    pub skip: bool,
    /// Whether `.domain` is a key for what is below a domain.
    pub lookupdotdomain: bool,
    /// Lists of clients in DNS, in the order in which they are asked.
    pub dnsbl: Vec<DnsList>,
    /// The same with patterns of the answer.
    pub enhdnsbl: Vec<DnsList>,
    /// Whether `ClientRate:` of the access map is honoured, and how.
    pub ratecontrol: Control,
    /// Whether `ClientConn:` of the access map is honoured, and how.
    pub conncontrol: Control,
}

/// Who may send to other hosts, beside this host, class R and the access map's RELAY.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RelayOptions {
    /// Anybody, to anywhere.
    pub promiscuous: bool,
    /// Class R and the access map name hosts, not domains.
    pub hosts_only: bool,
    /// Hosts of this host's domain, and to them.
    pub entire_domain: bool,
    /// Senders that the access map says RELAY of.
    pub mail_from: RelayMailFrom,
    /// Senders of this host's names.
    pub local_from: bool,
    /// To domains that have this host as a mail exchanger.
    pub based_on_mx: bool,
    /// `user%host@domain` of a domain that is relayed to is not taken apart.
    pub loose_check: bool,
    /// RELAY of a recipient's whole address counts.
    pub to_full_address: bool,
}

/// FEATURE(delay_checks).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DelayChecks {
    /// Client and sender are checked when they come.
    #[default]
    Off,
    /// They are checked at RCPT.
    On,
    /// The same, but for recipients with `Spam:` FRIEND.
    Friend,
    /// The same, but only for recipients with `Spam:` HATER.
    Hater,
}

impl Word for DelayChecks {
    const ALL: &'static [(Self, &'static str)] = &[
        (Self::Off, "false"),
        (Self::On, "true"),
        (Self::Friend, "friend"),
        (Self::Hater, "hater"),
    ];
}

/// FEATURE(relay_mail_from).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RelayMailFrom {
    /// Not at all.
    #[default]
    No,
    /// `From:user@domain RELAY`.
    Address,
    /// The same, and `From:domain RELAY`.
    Domain,
}

impl Word for RelayMailFrom {
    const ALL: &'static [(Self, &'static str)] = &[
        (Self::No, "false"),
        (Self::Address, "true"),
        (Self::Domain, "domain"),
    ];
}

/// FEATURE(always_add_domain): what names without a domain get in mail that is delivered on this host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AddedDomain {
    /// Nothing.
    #[default]
    None,
    /// This host's name, or what masquerading makes of it.
    Own,
    /// This domain.
    Other(Domain),
}

impl AddedDomain {
    /// Reads true, false or a domain.
    ///
    /// # Errors
    /// What is wrong, for the operator.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.trim() {
            word if word.eq_ignore_ascii_case("true") => Ok(Self::Own),
            word if word.is_empty() || word.eq_ignore_ascii_case("false") => Ok(Self::None),
            name => Domain::parse(name)
                .map(Self::Other)
                .map_err(|_| format!("`{name}' is not true, false or a domain name")),
        }
    }

    /// As it is written.
    #[must_use]
    pub fn show(&self) -> String {
        match self {
            Self::None => "false".to_owned(),
            Self::Own => "true".to_owned(),
            Self::Other(domain) => domain.to_string(),
        }
    }
}

/// FEATURE(ratecontrol), FEATURE(conncontrol).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Control {
    /// Not honoured.
    #[default]
    Off,
    /// A client over its limit is answered 452.
    On,
    /// A client over its limit is answered 421 and closed.
    Terminate,
}

impl Word for Control {
    const ALL: &'static [(Self, &'static str)] = &[
        (Self::Off, "false"),
        (Self::On, "true"),
        (Self::Terminate, "terminate"),
    ];
}

/// The value of an option that is one of a few words.
pub trait Word: Copy + PartialEq + 'static {
    /// Every value and its word.
    const ALL: &'static [(Self, &'static str)];

    /// By its word, in any case.
    fn parse(text: &str) -> Option<Self> {
        let is_meant = |(_, word): &&(Self, &str)| word.eq_ignore_ascii_case(text.trim());
        Self::ALL.iter().find(is_meant).map(|(value, _)| *value)
    }

    /// Its word.
    fn name(self) -> &'static str {
        let found = Self::ALL.iter().find(|(known, _)| *known == self);
        found.map_or("", |(_, word)| *word)
    }
}

/// As [`Word::parse`].
///
/// # Errors
/// Which words there are, for the operator.
pub(super) fn word<T: Word>(text: &str) -> Result<T, String> {
    T::parse(text).ok_or_else(|| {
        let words: Vec<&str> = T::ALL.iter().map(|(_, word)| *word).collect();
        format!("`{text}' is not one of {}", words.join(", "))
    })
}

/// A list of clients in DNS (RFC 5782).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsList {
    /// Where it is: the client's address, reversed, is looked up below this name.
    pub zone: String,
    /// What listed clients are answered, with `$&{client_addr}`; `None` for the usual text.
    pub text: Option<String>,
    /// Whether a client is answered 451 while the list does not answer; else it passes.
    pub defers: bool,
    /// What an answer begins with to count; empty for any.
    pub patterns: Vec<String>,
}

impl DnsList {
    /// Reads the arguments of the FEATURE, separated by `;`: the zone, the text, `t`, and for enhdnsbl patterns.
    ///
    /// # Errors
    /// What is wrong, for the operator.
    pub fn parse(text: &str, has_patterns: bool) -> Result<Self, String> {
        let mut parts = text.split(';').map(str::trim);
        let zone = parts.next().unwrap_or_default();
        let is_name = Domain::parse(zone).is_ok() && !zone.starts_with('[');
        if !is_name {
            return Err(format!("`{zone}' is no domain"));
        }
        let reply = parts.next().unwrap_or_default().trim_matches('"');
        if reply.len() > TEXT_BYTES_MAX {
            return Err(format!("the text is longer than {TEXT_BYTES_MAX} bytes"));
        }
        let defers = match parts.next() {
            None | Some("") => false,
            Some("t") => true,
            Some(other) => return Err(format!("`{other}' is not t")),
        };
        let patterns: Vec<String> = parts
            .filter(|pattern| !pattern.is_empty())
            .map(str::to_owned)
            .collect();
        if !has_patterns && !patterns.is_empty() {
            return Err("patterns of answers belong to enhdnsbl".to_owned());
        }
        if patterns.len() > PATTERNS_MAX {
            return Err(format!("more than {PATTERNS_MAX} patterns"));
        }
        let is_pattern = |text: &String| text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
        if let Some(other) = patterns.iter().find(|pattern| !is_pattern(pattern)) {
            return Err(format!("`{other}' is no beginning of an IPv4 address"));
        }
        Ok(Self {
            zone: zone.trim_end_matches('.').to_ascii_lowercase(),
            text: (!reply.is_empty()).then(|| reply.to_owned()),
            defers,
            patterns,
        })
    }

    /// As it is written.
    #[must_use]
    pub fn show(&self) -> String {
        let mut parts = vec![
            self.zone.clone(),
            self.text.clone().unwrap_or_default(),
            if self.defers { "t" } else { "" }.to_owned(),
        ];
        parts.extend(self.patterns.iter().cloned());
        while parts.last().is_some_and(String::is_empty) {
            parts.pop();
        }
        parts.join("; ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_as_they_are_shown() {
        for text in [
            "bl.test",
            "bl.test; 550 listed $&{client_addr}",
            "bl.test; ; t",
            "bl.test; ; ; 127.0.0.2.; 127.0.0.4",
        ] {
            assert_eq!(DnsList::parse(text, true).unwrap().show(), text);
        }
        for (text, part) in [
            ("", "no domain"),
            ("[127.0.0.1]", "no domain"),
            ("bl.test; x; y", "is not t"),
            ("bl.test; ; ; 127", "enhdnsbl"),
        ] {
            assert!(DnsList::parse(text, false).unwrap_err().contains(part));
        }
        assert!(DnsList::parse("bl.test; ; ; x", true).is_err());
    }

    #[test]
    fn words_are_read_in_any_case() {
        assert_eq!(DelayChecks::parse("Friend"), Some(DelayChecks::Friend));
        assert_eq!(DelayChecks::parse("yes?"), None);
        assert_eq!(RelayMailFrom::parse("domain").unwrap().name(), "domain");
        assert_eq!(Control::parse("TERMINATE"), Some(Control::Terminate));
    }
}
