//! Delivery targets as aliases(5) writes them: what stands on the right of the colon.
//!
//! [`split`] cuts a value at its commas, [`Target::parse`] tells the kinds apart. Text comes from operators and users,
//! so anything that is no target is a value too ([`Target::Invalid`]), never a panic. Pure; never blocks.
//! Limits: [`TARGETS_MAX`] in one value. Source: aliases(5), MAPS 11.

#![deny(clippy::indexing_slicing)]

use crate::address::Address;

/// Most targets taken from one alias value.
pub const TARGETS_MAX: usize = 100_000;

/// One delivery target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// An address, to be looked up in turn.
    Address(Address),
    /// `\user`: the user's mailbox, without any further aliasing.
    Mailbox(String),
    /// `|command`.
    Program(String),
    /// `/file`.
    File(String),
    /// `:include:/file`.
    Include(String),
    /// `:rest:TARGET`: what is still to be expanded of a target that leads to more recipients than one record holds.
    /// Only the queue makes it; in an alias or a file it is nothing.
    Rest(String),
    /// Nothing that mail could be sent to.
    Invalid(String),
}

/// How [`Target::Rest`] begins.
pub(super) const REST: &str = ":rest:";

impl Target {
    /// Tells what one target is. Comments in parentheses, a name before `<address>` and quotes round the whole are
    /// taken off.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let text = text.trim();
        if let Some(inner) = quoted_whole(text)
            && let Some(special) = Self::special(inner.trim_start())
        {
            return special;
        }
        if let Some(special) = Self::special(text) {
            return special;
        }
        let bare = strip_comments(text);
        let bare = bare.trim();
        let bare = match (bare.rfind('<'), bare.ends_with('>')) {
            (Some(at), true) => bare.get(at + 1..bare.len() - 1).unwrap_or(bare).trim(),
            _ => bare,
        };
        if bare.starts_with("\\\\") {
            return Self::Invalid(text.to_owned());
        }
        if let Some(user) = bare.strip_prefix('\\')
            && let Ok(address) = Address::parse(user)
        {
            return if address.domain().is_none() {
                Self::Mailbox(address.local_unquoted())
            } else {
                Self::Address(address)
            };
        }
        match Address::parse(bare) {
            Ok(address) => Self::Address(address),
            Err(_) => Self::Invalid(text.to_owned()),
        }
    }

    /// The kinds that are no address, told by how they begin.
    fn special(text: &str) -> Option<Self> {
        if let Some(command) = text.strip_prefix('|') {
            return Some(Self::Program(command.trim().to_owned()));
        }
        if text.starts_with('/') {
            // `/CN=x/@gateway` is an X.400 address on its way to a gateway, not a file.
            return match Address::parse(text) {
                Ok(address) if address.domain().is_some() => Some(Self::Address(address)),
                _ => Some(Self::File(text.to_owned())),
            };
        }
        if let Some(of) = text.strip_prefix(REST) {
            return Some(Self::Rest(of.to_owned()));
        }
        let include = text.get(..":include:".len())?;
        include.eq_ignore_ascii_case(":include:").then(|| {
            let path = text.get(":include:".len()..).unwrap_or_default();
            Self::Include(path.trim().to_owned())
        })
    }

    /// The text that a [`Recipient`](crate::envelope::Recipient) of this target holds; [`Target::parse`] reads it
    /// back to the same target.
    #[must_use]
    pub fn to_text(&self) -> String {
        match self {
            Self::Address(address) => address.to_string(),
            Self::Mailbox(user) => format!("\\{}", quote_local(user)),
            Self::Program(command) => format!("|{command}"),
            Self::File(path) => path.clone(),
            Self::Include(path) => format!(":include:{path}"),
            Self::Rest(of) => format!("{REST}{of}"),
            Self::Invalid(text) => text.clone(),
        }
    }
}

/// Cuts an alias value into its targets, in order: at commas and line ends outside quotes and comments. Empty ones
/// are left out. `None` if there are more than [`TARGETS_MAX`].
#[must_use]
pub(super) fn split(value: &str) -> Option<Vec<&str>> {
    let mut targets = Vec::new();
    let (mut start, mut depth) = (0_usize, 0_usize);
    let (mut is_quoted, mut is_escaped) = (false, false);
    // One more separator ends the last piece, whatever state it is in.
    for (at, c) in value.char_indices().chain([(value.len(), '\n')]) {
        let is_end = at == value.len();
        if is_escaped && !is_end {
            is_escaped = false;
            continue;
        }
        match c {
            '\\' => is_escaped = true,
            '"' if depth == 0 => is_quoted = !is_quoted,
            '(' if !is_quoted => depth += 1,
            ')' if !is_quoted => depth = depth.saturating_sub(1),
            ',' | '\n' if is_end || (!is_quoted && depth == 0) => {
                let piece = value.get(start..at).unwrap_or_default().trim();
                if !piece.is_empty() {
                    targets.push(piece);
                }
                if targets.len() > TARGETS_MAX {
                    return None;
                }
                start = at + 1;
            }
            _ => {}
        }
    }
    Some(targets)
}

/// What stands between the quotes, if one pair of quotes is round the whole text.
fn quoted_whole(text: &str) -> Option<String> {
    let inner = text.strip_prefix('"')?.strip_suffix('"')?;
    let mut out = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => return None,
            '\\' => out.push(chars.next()?),
            c => out.push(c),
        }
    }
    Some(out)
}

/// Takes out comments in parentheses, outside quotes.
fn strip_comments(text: &str) -> String {
    if !text.contains('(') {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len());
    let mut depth = 0_usize;
    let (mut is_quoted, mut is_escaped) = (false, false);
    for c in text.chars() {
        if is_escaped {
            is_escaped = false;
        } else {
            match c {
                '\\' => is_escaped = true,
                '"' if depth == 0 => is_quoted = !is_quoted,
                '(' if !is_quoted => depth += 1,
                ')' if !is_quoted && depth > 0 => {
                    depth -= 1;
                    continue;
                }
                _ => {}
            }
        }
        if depth == 0 {
            out.push(c);
        }
    }
    out
}

/// A mailbox name as a local part: in quotes where it has to be (RFC 5321 4.1.2).
pub(crate) fn quote_local(user: &str) -> String {
    let is_plain = |c: char| !c.is_ascii_control() && !" \"\\<>(),;@:[]".contains(c);
    if !user.is_empty() && user.chars().all(is_plain) {
        return user.to_owned();
    }
    let mut out = String::with_capacity(user.len() + 2);
    out.push('"');
    for c in user.chars() {
        if matches!(c, '"' | '\\') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Target {
        Target::Address(Address::parse(text).unwrap())
    }

    #[test]
    fn values_are_cut_at_commas_outside_quotes_and_comments() {
        assert_eq!(
            split("alice, \"|cmd a, b\" ,bob(x, y),, \\carol\ndave").unwrap(),
            ["alice", "\"|cmd a, b\"", "bob(x, y)", "\\carol", "dave"]
        );
        assert_eq!(split(" , ").unwrap(), Vec::<String>::new());
        assert!(split(&"a,".repeat(TARGETS_MAX + 1)).is_none());
    }

    #[test]
    fn every_kind_of_target_is_told_apart() {
        for (text, target) in [
            ("bob", address("bob")),
            ("Alice User <alice>", address("alice")),
            ("(x) bob@h.test", address("bob@h.test")),
            ("\"john doe\"@ok.test", address("\"john doe\"@ok.test")),
            ("\\bob", Target::Mailbox("bob".into())),
            ("\\bob@h.test", address("bob@h.test")),
            ("|/bin/cat", Target::Program("/bin/cat".into())),
            (
                "\"|/bin/cat -x, y\"",
                Target::Program("/bin/cat -x, y".into()),
            ),
            ("\"|echo \\\"q\\\"\"", Target::Program("echo \"q\"".into())),
            ("/var/log/x", Target::File("/var/log/x".into())),
            ("/CN=x/@gw.test", address("/CN=x/@gw.test")),
            (":include:/l", Target::Include("/l".into())),
            ("\" :Include: /l\"", Target::Include("/l".into())),
            (":rest:list", Target::Rest("list".into())),
            (
                "error:5.1.1 moved away",
                Target::Invalid("error:5.1.1 moved away".into()),
            ),
            ("", Target::Invalid(String::new())),
        ] {
            assert_eq!(Target::parse(text), target, "{text}");
            assert_eq!(Target::parse(&target.to_text()), target, "{text} again");
        }
    }

    #[test]
    fn mailbox_names_are_quoted_where_they_must_be() {
        assert_eq!(quote_local("a.b+c"), "a.b+c");
        assert_eq!(quote_local("a b\"c"), "\"a b\\\"c\"");
    }
}
