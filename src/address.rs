//! Mail addresses (L0): parse, compare, print. Pure values, no I/O.
//!
//! Source: RFC 5321 4.1.2 (paths and mailboxes), 4.5.3.1 (sizes). Local parts keep their case; domains compare and
//! are looked up without case. Limits: [`LOCAL_PART_BYTES_MAX`], [`DOMAIN_BYTES_MAX`], [`PATH_BYTES_MAX`].
//! Sizes follow Sendmail, which is more generous than the RFC's minimum for local parts.

pub mod list;

use std::fmt;

/// Longest local part taken, in bytes (RFC 5321 4.5.3.1.1 asks for at least 64).
pub const LOCAL_PART_BYTES_MAX: usize = 256;
/// Longest domain, in bytes (RFC 5321 4.5.3.1.2).
pub const DOMAIN_BYTES_MAX: usize = 255;
/// Longest path with its punctuation, in bytes (RFC 5321 4.5.3.1.3 asks for at least 256).
pub const PATH_BYTES_MAX: usize = 514;

/// Why a text is no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Nothing where an address should be.
    #[error("address required")]
    Empty,
    /// The local part is empty or has a byte it may not have unquoted.
    #[error("bad local part")]
    LocalPart,
    /// The domain is empty, too long, or not of letters, digits, hyphens, underscores and dots.
    #[error("bad domain")]
    Domain,
    /// `[` without a valid address literal and `]`.
    #[error("bad address literal")]
    Literal,
    /// `<` without `>`, or the reverse.
    #[error("unbalanced angle brackets")]
    Brackets,
    /// A quoted string does not end.
    #[error("unbalanced quotes")]
    Quotes,
    /// Longer than the limits of this module.
    #[error("address too long")]
    TooLong,
}

/// A domain name or an address literal such as `[127.0.0.1]`; compared without case.
#[derive(Debug, Clone)]
pub struct Domain(String);

impl Domain {
    /// Parses a domain name (RFC 5321 4.1.2; underscores and a final dot are taken too) or an address literal.
    ///
    /// # Errors
    /// [`AddressError::Domain`], [`AddressError::Literal`], [`AddressError::TooLong`]; all permanent.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        if text.len() > DOMAIN_BYTES_MAX {
            return Err(AddressError::TooLong);
        }
        if let Some(inner) = text.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or(AddressError::Literal)?;
            let is_ip = inner.parse::<std::net::Ipv4Addr>().is_ok()
                || inner
                    .strip_prefix("IPv6:")
                    .or_else(|| inner.strip_prefix("ipv6:"))
                    .is_some_and(|six| six.parse::<std::net::Ipv6Addr>().is_ok());
            // Sendmail also takes a host name in brackets: "this host, no MX".
            if !is_ip && !is_host_name(inner) {
                return Err(AddressError::Literal);
            }
            return Ok(Self(text.to_owned()));
        }
        if is_host_name(text) {
            Ok(Self(text.to_owned()))
        } else {
            Err(AddressError::Domain)
        }
    }

    /// The text as it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text in lower case and without a final dot: the form to look up and to compare.
    #[must_use]
    pub fn folded(&self) -> String {
        self.0
            .strip_suffix('.')
            .unwrap_or(&self.0)
            .to_ascii_lowercase()
    }

    /// Whether this is an address literal or a bracketed host name.
    #[must_use]
    pub fn is_literal(&self) -> bool {
        self.0.starts_with('[')
    }
}

impl PartialEq for Domain {
    fn eq(&self, other: &Self) -> bool {
        self.folded() == other.folded()
    }
}

impl Eq for Domain {}

impl std::hash::Hash for Domain {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.folded().hash(state);
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_host_name(text: &str) -> bool {
    let body = text.strip_suffix('.').unwrap_or(text);
    !body.is_empty()
        && body.split('.').all(|label| {
            !label.is_empty()
                && label.len() <= 63
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_' || b >= 0x80)
        })
}

/// A mailbox: a local part and, unless it is a name of this host, a domain.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address {
    local: String,
    domain: Option<Domain>,
}

impl Address {
    /// Parses `local@domain` or `local`, quotes allowed in the local part, without angle brackets.
    /// Source routes (`@a,@b:user@c`) are taken and ignored, as RFC 5321 appendix C asks.
    ///
    /// # Errors
    /// Each of [`AddressError`]; all permanent.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        let text = text.trim();
        if text.len() > PATH_BYTES_MAX {
            return Err(AddressError::TooLong);
        }
        let text = match (text.strip_prefix('@'), text.split_once(':')) {
            (Some(_), Some((_, mailbox))) => mailbox,
            _ => text,
        };
        if text.is_empty() {
            return Err(AddressError::Empty);
        }
        let at = local_part_end(text)?;
        let (local, rest) = text.split_at(at);
        if local.len() > LOCAL_PART_BYTES_MAX {
            return Err(AddressError::TooLong);
        }
        if local.is_empty() {
            return Err(AddressError::LocalPart);
        }
        let domain = match rest.strip_prefix('@') {
            None => None,
            Some(domain) => Some(Domain::parse(domain)?),
        };
        Ok(Self {
            local: local.to_owned(),
            domain,
        })
    }

    /// An address from a local part in address form (quoted where it must be) and a domain.
    #[must_use]
    pub fn from_parts(local: impl Into<String>, domain: Option<Domain>) -> Self {
        Self {
            local: local.into(),
            domain,
        }
    }

    /// The local part as written, quotes included.
    #[must_use]
    pub fn local(&self) -> &str {
        &self.local
    }

    /// The local part without quotes and backslashes: the name of a mailbox.
    #[must_use]
    pub fn local_unquoted(&self) -> String {
        let mut out = String::with_capacity(self.local.len());
        let mut chars = self.local.chars();
        while let Some(c) = chars.next() {
            match c {
                '"' => {}
                '\\' => out.extend(chars.next()),
                c => out.push(c),
            }
        }
        out
    }

    /// The domain, if the address has one.
    #[must_use]
    pub fn domain(&self) -> Option<&Domain> {
        self.domain.as_ref()
    }

    /// The same mailbox in another domain.
    #[must_use]
    pub fn with_domain(&self, domain: Domain) -> Self {
        Self {
            local: self.local.clone(),
            domain: Some(domain),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.domain {
            Some(domain) => write!(f, "{}@{domain}", self.local),
            None => f.write_str(&self.local),
        }
    }
}

/// The byte position at which the local part ends: at the last `@` outside quotes that a domain follows, or the end.
fn local_part_end(text: &str) -> Result<usize, AddressError> {
    let mut is_quoted = false;
    let mut is_escaped = false;
    let mut at = None;
    for (position, c) in text.char_indices() {
        if is_escaped {
            is_escaped = false;
            if c.is_ascii_control() {
                return Err(AddressError::LocalPart);
            }
            continue;
        }
        match c {
            '\\' => is_escaped = true,
            '"' if at.is_none() => is_quoted = !is_quoted,
            '@' if !is_quoted => {
                if at.is_some() {
                    return Err(AddressError::LocalPart);
                }
                at = Some(position);
            }
            c if c.is_ascii_control() => return Err(AddressError::LocalPart),
            ' ' | '<' | '>' | '(' | ')' | ',' | ';' if !is_quoted => {
                return Err(AddressError::LocalPart);
            }
            _ => {}
        }
    }
    if is_quoted || is_escaped {
        return Err(AddressError::Quotes);
    }
    Ok(at.unwrap_or(text.len()))
}

/// The sender of an envelope: an address, or null (`<>`), which never causes a DSN (I7).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ReversePath {
    /// `<>`.
    Null,
    /// A mailbox that reports go to.
    Mailbox(Address),
}

impl ReversePath {
    /// Parses the text between the angle brackets, empty for the null sender.
    ///
    /// # Errors
    /// Each of [`AddressError`] but `Empty`; all permanent.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        if text.trim().is_empty() {
            Ok(Self::Null)
        } else {
            Address::parse(text).map(Self::Mailbox)
        }
    }

    /// The address, if there is one.
    #[must_use]
    pub fn address(&self) -> Option<&Address> {
        match self {
            Self::Null => None,
            Self::Mailbox(address) => Some(address),
        }
    }
}

impl fmt::Display for ReversePath {
    /// Prints with angle brackets: `<>` or `<user@domain>`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("<>"),
            Self::Mailbox(address) => write!(f, "<{address}>"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_keep_local_case_and_compare_domains_without() {
        let a = Address::parse("Bob@Example.TEST").unwrap();
        let b = Address::parse("Bob@example.test.").unwrap();
        assert_eq!(a, b);
        assert_ne!(a, Address::parse("bob@example.test").unwrap());
        assert_eq!(a.to_string(), "Bob@Example.TEST");
    }

    #[test]
    fn quotes_protect_separators() {
        let a = Address::parse("\"q @ s\"@h.test").unwrap();
        assert_eq!(a.local(), "\"q @ s\"");
        assert_eq!(a.local_unquoted(), "q @ s");
        assert_eq!(a.domain().unwrap().as_str(), "h.test");
    }

    #[test]
    fn source_routes_are_ignored_and_rubbish_is_refused() {
        assert_eq!(
            Address::parse("@a.test,@b.test:u@c.test")
                .unwrap()
                .to_string(),
            "u@c.test"
        );
        for bad in [
            "", "@", "@b.test", "a@", "a@b@c", "a b@c", "a@b..c", "\"a@b", "a\r@b", "a@[1.2.3",
            "a@[::1]", "<a>",
        ] {
            assert!(Address::parse(bad).is_err(), "{bad:?}");
        }
        assert!(Address::parse(&format!("{}@b.test", "x".repeat(257))).is_err());
    }

    #[test]
    fn address_literals_are_domains() {
        assert!(Domain::parse("[127.0.0.1]").unwrap().is_literal());
        assert!(Domain::parse("[IPv6:::1]").is_ok());
        assert!(ReversePath::parse("").unwrap().address().is_none());
    }
}
