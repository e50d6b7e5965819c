//! Address lists as people and programs write them: in header fields, and in arguments of the command line.
//!
//! Keeps positions, so that a field can be completed without being written anew: what is not an address without a
//! domain stays byte for byte as it was. Pure; never panics on any bytes. A list is separated by commas, or, in
//! Sendmail's old style, by blanks if it has none of `,` `;` `<` `(`. Limits: [`ENTRIES_MAX`].
//!
//! Source: RFC 5322 3.4 and 4.4, sendmail(8) (`-t`, option OldStyleHeaders).

use std::ops::Range;

use super::{Address, AddressError};
use crate::status::ExitCode;

/// Most addresses taken from one list; what follows is refused, not ignored.
pub const ENTRIES_MAX: usize = 100_000;

/// Why an entry of a list is no recipient.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressFault {
    /// A bracket, parenthesis or quote without its other half.
    #[error("Unbalanced '{0}'")]
    Unbalanced(char),
    /// `user@`.
    #[error("Hostname required")]
    HostnameRequired,
    /// More than one `@`.
    #[error("Invalid route address")]
    InvalidRoute,
    /// Nothing that could be a user.
    #[error("User unknown")]
    UserUnknown,
    /// `|command`; only aliases may name programs.
    #[error("Cannot mail directly to programs")]
    ToProgram,
    /// `/file`; only aliases may name files.
    #[error("Cannot mail directly to files")]
    ToFile,
    /// `:include:/file`; only aliases may name lists.
    #[error("Cannot mail directly to :include:s")]
    ToInclude,
    /// Bytes that are not UTF-8.
    #[error("Address is not text")]
    NotText,
    /// Any other reason.
    #[error("Invalid address: {0}")]
    Invalid(AddressError),
    /// The list is longer than [`ENTRIES_MAX`].
    #[error("Too many recipients")]
    TooMany,
}

impl AddressFault {
    /// The exit code Sendmail ends with for it.
    #[must_use]
    pub const fn exit(&self) -> ExitCode {
        match self {
            Self::Unbalanced(_) | Self::UserUnknown => ExitCode::NoUser,
            _ => ExitCode::Usage,
        }
    }
}

/// One address of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListEntry {
    /// Where all of it lies in the text, with its display name and comments; blanks around it left out.
    pub span: Range<usize>,
    /// The address alone, blanks within replaced by dots as Sendmail does.
    pub address: String,
    /// The position of the first byte of the address.
    pub address_start: usize,
    /// The position after the last byte of the address, where a domain would be added.
    pub address_end: usize,
    /// Why it is no address to send to.
    pub fault: Option<AddressFault>,
}

/// Splits a list into its addresses, in order. Empty entries are left out.
#[must_use]
pub fn scan(text: &[u8]) -> Vec<ListEntry> {
    let mut scanner = Scanner::new(text);
    for (at, byte) in text.iter().enumerate() {
        if scanner.entries.len() >= ENTRIES_MAX {
            scanner.entries.push(ListEntry {
                span: at..text.len(),
                address: String::new(),
                address_start: text.len(),
                address_end: text.len(),
                fault: Some(AddressFault::TooMany),
            });
            return scanner.entries;
        }
        scanner.take(at, *byte);
    }
    scanner.end_entry(text.len());
    scanner.entries
}

/// What must be put where so that every address in the text has a domain: pairs of position and text, in order.
/// Addresses that have a domain, routes of other networks, and what is no address are left alone.
#[must_use]
pub fn completions(text: &[u8], host: &str) -> Vec<(usize, String)> {
    let entries = scan(text);
    let is_by_blank = is_separated_by_blank(text);
    let last = entries.len().saturating_sub(1);
    let mut out = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let mut insert = String::new();
        if needs_domain(entry) {
            insert.push('@');
            insert.push_str(host);
        }
        if is_by_blank && index < last {
            insert.push(',');
        }
        if !insert.is_empty() {
            out.push((entry.address_end, insert));
        }
    }
    out
}

fn needs_domain(entry: &ListEntry) -> bool {
    entry.fault.is_none()
        && !entry.address.contains(['!', '%'])
        && Address::parse(&entry.address).is_ok_and(|address| address.domain().is_none())
}

/// The one address an argument such as that of `-f` holds: comments and brackets taken off, blanks replaced by dots.
///
/// # Errors
/// The address's fault; permanent.
pub fn single(text: &str) -> Result<String, AddressFault> {
    // An argument is one address even if it has blanks: `-f "x y"` is x.y.
    let mut scanner = Scanner::new(text.as_bytes());
    scanner.is_by_blank = false;
    for (at, byte) in text.bytes().enumerate() {
        scanner.take(at, byte);
    }
    scanner.end_entry(text.len());
    let mut entries = scanner.entries.into_iter();
    let entry = entries.next().ok_or(AddressFault::UserUnknown)?;
    match entry.fault {
        Some(fault) => Err(fault),
        None if entries.next().is_some() => Err(AddressFault::Invalid(AddressError::LocalPart)),
        None => Ok(entry.address),
    }
}

/// Old style: no byte that only lists with commas have.
#[must_use]
pub fn is_separated_by_blank(text: &[u8]) -> bool {
    !text
        .iter()
        .any(|byte| matches!(byte, b',' | b';' | b'<' | b'('))
}

#[derive(Default)]
struct Part {
    bytes: Vec<u8>,
    start: Option<usize>,
    end: usize,
    has_blank_before_next: bool,
}

impl Part {
    fn push(&mut self, at: usize, byte: u8) {
        let is_joint = |byte: &u8| matches!(byte, b'@' | b'.' | b':' | b'!' | b'%');
        if self.has_blank_before_next
            && !is_joint(&byte)
            && self.bytes.last().is_some_and(|last| !is_joint(last))
        {
            self.bytes.push(b'.');
        }
        self.has_blank_before_next = false;
        self.bytes.push(byte);
        self.start.get_or_insert(at);
        self.end = at + 1;
    }
}

struct Scanner {
    entries: Vec<ListEntry>,
    is_by_blank: bool,
    start: Option<usize>,
    last: usize,
    plain: Part,
    angle: Option<Part>,
    is_in_angle: bool,
    is_quoted: bool,
    is_escaped: bool,
    comment_depth: usize,
    previous: u8,
    fault: Option<AddressFault>,
}

impl Scanner {
    fn new(text: &[u8]) -> Self {
        Self {
            entries: Vec::new(),
            is_by_blank: is_separated_by_blank(text),
            start: None,
            last: 0,
            plain: Part::default(),
            angle: None,
            is_in_angle: false,
            is_quoted: false,
            is_escaped: false,
            comment_depth: 0,
            previous: 0,
            fault: None,
        }
    }

    fn take(&mut self, at: usize, byte: u8) {
        let is_plain = !self.is_quoted && !self.is_escaped && self.comment_depth == 0;
        let is_blank = matches!(byte, b' ' | b'\t' | b'\r' | b'\n');
        if is_plain && !self.is_in_angle {
            let is_end = matches!(byte, b',' | b';') || (is_blank && self.is_by_blank);
            if is_end {
                self.end_entry(at);
                return;
            }
        }
        if !is_blank {
            self.start.get_or_insert(at);
            self.last = at + 1;
        }
        if is_plain {
            self.take_plain(at, byte, is_blank);
        } else if self.is_escaped {
            self.is_escaped = false;
            self.push(at, byte);
        } else {
            self.take_protected(at, byte);
        }
        self.previous = byte;
    }

    fn take_plain(&mut self, at: usize, byte: u8, is_blank: bool) {
        match byte {
            b'\\' => {
                self.is_escaped = true;
                self.push(at, byte);
            }
            b'"' => {
                self.is_quoted = true;
                self.push(at, byte);
            }
            b'(' => self.comment_depth = 1,
            b')' => self.set_fault(AddressFault::Unbalanced(')')),
            b'<' if self.is_in_angle => self.set_fault(AddressFault::Unbalanced('<')),
            b'<' => {
                self.is_in_angle = true;
                self.angle = Some(Part {
                    end: at + 1,
                    ..Part::default()
                });
            }
            b'>' if !self.is_in_angle => self.set_fault(AddressFault::Unbalanced('>')),
            b'>' => self.is_in_angle = false,
            b':' if self.is_group_name() => self.plain = Part::default(),
            _ if is_blank => self.part().has_blank_before_next = true,
            _ => self.push(at, byte),
        }
    }

    /// Within quotes or a comment.
    fn take_protected(&mut self, at: usize, byte: u8) {
        if self.comment_depth > 0 {
            match byte {
                b'\\' => self.is_escaped = true,
                b'(' => self.comment_depth += 1,
                b')' => self.comment_depth -= 1,
                _ => {}
            }
            return;
        }
        match byte {
            b'\\' => self.is_escaped = true,
            b'"' => self.is_quoted = false,
            _ => {}
        }
        self.push(at, byte);
    }

    /// `name:` begins a group, unless it is a route, a list file or a double colon.
    fn is_group_name(&self) -> bool {
        !self.is_in_angle
            && self.angle.is_none()
            && !self.plain.bytes.is_empty()
            && !self.plain.bytes.starts_with(b":")
            && !self.plain.bytes.contains(&b'@')
            && self.previous != b':'
    }

    fn part(&mut self) -> &mut Part {
        match &mut self.angle {
            Some(angle) if self.is_in_angle => angle,
            _ => &mut self.plain,
        }
    }

    fn push(&mut self, at: usize, byte: u8) {
        if self.comment_depth == 0 {
            self.part().push(at, byte);
        }
    }

    fn set_fault(&mut self, fault: AddressFault) {
        self.fault.get_or_insert(fault);
    }

    fn end_entry(&mut self, at: usize) {
        if self.is_in_angle {
            self.set_fault(AddressFault::Unbalanced('<'));
        }
        if self.is_quoted || self.is_escaped {
            self.set_fault(AddressFault::Unbalanced('"'));
        }
        if self.comment_depth > 0 {
            self.set_fault(AddressFault::Unbalanced('('));
        }
        let span = self.start.unwrap_or(at)..self.last.max(self.start.unwrap_or(at));
        let part = match self.angle.take() {
            Some(angle) => angle,
            None => std::mem::take(&mut self.plain),
        };
        let fault = self.fault.take();
        let is_by_blank = self.is_by_blank;
        let entries = std::mem::take(&mut self.entries);
        *self = Self {
            entries,
            is_by_blank,
            ..Self::new(b"")
        };
        if part.bytes.is_empty() && fault.is_none() {
            return;
        }
        let (address, fault) = match String::from_utf8(part.bytes) {
            Ok(address) => {
                let fault = fault.or_else(|| fault_of(&address));
                (address, fault)
            }
            Err(bad) => (
                String::from_utf8_lossy(bad.as_bytes()).into_owned(),
                Some(AddressFault::NotText),
            ),
        };
        self.entries.push(ListEntry {
            span,
            address,
            address_start: part.start.unwrap_or(part.end),
            address_end: part.end,
            fault,
        });
    }
}

/// What keeps an address from being a recipient that a user may name.
#[must_use]
pub fn fault_of(address: &str) -> Option<AddressFault> {
    let unquoted = address.strip_prefix('"').unwrap_or(address);
    if unquoted.starts_with('|') {
        return Some(AddressFault::ToProgram);
    }
    if unquoted.starts_with('/') && Address::parse(address).map_or(true, |a| a.domain().is_none()) {
        return Some(AddressFault::ToFile);
    }
    if unquoted
        .get(..9)
        .is_some_and(|head| head.eq_ignore_ascii_case(":include:"))
    {
        return Some(AddressFault::ToInclude);
    }
    if address == "@" {
        return Some(AddressFault::UserUnknown);
    }
    match Address::parse(address) {
        Ok(_) => None,
        Err(_) if address.ends_with('@') => Some(AddressFault::HostnameRequired),
        Err(_) if address.matches('@').count() > 1 => Some(AddressFault::InvalidRoute),
        Err(error) => Some(AddressFault::Invalid(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(text: &str) -> Vec<String> {
        scan(text.as_bytes())
            .into_iter()
            .map(|entry| {
                assert_eq!(entry.fault, None, "{text}");
                entry.address
            })
            .collect()
    }

    fn completed(text: &str) -> String {
        let mut out = text.to_owned();
        for (at, insert) in completions(text.as_bytes(), "h.test").into_iter().rev() {
            out.insert_str(at, &insert);
        }
        out
    }

    #[test]
    fn names_comments_quotes_and_groups_are_taken_off() {
        assert_eq!(addresses("bob, Carol <carol>"), ["bob", "carol"]);
        assert_eq!(
            addresses("\"Doe, J\" <bob>,\r\n  carol (c, d),\r\n\tdave"),
            ["bob", "carol", "dave"]
        );
        assert_eq!(addresses("group: bob, carol;"), ["bob", "carol"]);
        assert_eq!(addresses("undisclosed-recipients:;"), Vec::<String>::new());
        assert_eq!(addresses(" , ,"), Vec::<String>::new());
        assert_eq!(addresses("\"john doe\"@ok.test"), ["\"john doe\"@ok.test"]);
        assert_eq!(
            addresses("<@a.test,@b.test:u@c.test>, x"),
            ["@a.test,@b.test:u@c.test", "x"]
        );
        assert_eq!(addresses("a (x (y) \\) z) b@c.test"), ["a.b@c.test"]);
        assert_eq!(addresses("alice @ h.test (c)"), ["alice@h.test"]);
        assert_eq!(addresses("ok.test!user"), ["ok.test!user"]);
    }

    #[test]
    fn blanks_separate_only_lists_without_commas_and_brackets() {
        assert_eq!(addresses("a b"), ["a", "b"]);
        assert_eq!(addresses("a b, c"), ["a.b", "c"]);
        assert_eq!(single("x y"), Ok("x.y".to_owned()));
        assert_eq!(single("Some One <one@h.test>"), Ok("one@h.test".to_owned()));
        assert_eq!(
            single("a, b"),
            Err(AddressFault::Invalid(AddressError::LocalPart))
        );
    }

    #[test]
    fn what_is_no_recipient_says_why() {
        let fault = |text: &str| scan(text.as_bytes()).first().unwrap().fault.clone();
        assert_eq!(fault("bob@"), Some(AddressFault::HostnameRequired));
        assert_eq!(fault("@"), Some(AddressFault::UserUnknown));
        assert_eq!(fault("a@b@c"), Some(AddressFault::InvalidRoute));
        assert_eq!(fault("|/bin/cat"), Some(AddressFault::ToProgram));
        assert_eq!(fault("\"|/bin/cat x\""), Some(AddressFault::ToProgram));
        assert_eq!(fault("/etc/passwd"), Some(AddressFault::ToFile));
        assert_eq!(fault("/o=x/@h.test"), None);
        assert_eq!(fault(":include:/etc/passwd"), Some(AddressFault::ToInclude));
        assert_eq!(fault("<bob"), Some(AddressFault::Unbalanced('<')));
        assert_eq!(fault("bob>"), Some(AddressFault::Unbalanced('>')));
        assert_eq!(fault("\"bob"), Some(AddressFault::Unbalanced('"')));
        assert_eq!(fault("bob (x"), Some(AddressFault::Unbalanced('(')));
        assert_eq!(fault("<bob, carol"), Some(AddressFault::Unbalanced('<')));
        assert_eq!(
            scan(b"\xff@h.test").first().unwrap().fault,
            Some(AddressFault::NotText)
        );
    }

    #[test]
    fn domains_are_added_and_nothing_else_changes() {
        assert_eq!(
            completed("\"Doe, J\" <bob>,\r\n  carol (c, d),\r\n\tdave"),
            "\"Doe, J\" <bob@h.test>,\r\n  carol@h.test (c, d),\r\n\tdave@h.test"
        );
        assert_eq!(
            completed("group: bob, carol;"),
            "group: bob@h.test, carol@h.test;"
        );
        assert_eq!(completed("bob carol"), "bob@h.test, carol@h.test");
        for same in [
            "a@b.test, C <d@e.test>",
            "=?utf-8?q?x?= <a@b.test>",
            "host!user",
            "undisclosed-recipients:;",
            "bob (unbalanced",
            "<>",
            "",
        ] {
            assert_eq!(completed(same), same);
        }
    }

    #[test]
    fn any_bytes_are_scanned_and_spans_lie_within() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        for _ in 0..20_000 {
            let mut text = Vec::new();
            for _ in 0..12 {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                let pick = usize::try_from(seed % 16).unwrap();
                text.push(b"ab@.<>(),;:\"\\ \n\xff"[pick]);
            }
            for entry in scan(&text) {
                assert!(entry.span.end <= text.len() && entry.span.start <= entry.span.end);
                assert!(entry.address_end <= text.len());
            }
        }
    }
}
