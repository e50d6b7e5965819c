//! The texts maps are built from, read with line numbers: makemap's and the alias file's.
//!
//! makemap: key, blanks, rest of the line; or key, a delimiter byte, rest. `#` (or another byte) in column 1 comments.
//!
//! Aliases: `name: value, value`. A line starting with a blank continues the last; a final backslash joins lines; `#`
//! in column 1 comments. The name may be quoted, and a colon inside the quotes is part of it. The value is kept as it
//! is written; [`alias_values`] takes it apart.
//!
//! A bad line is reported and passed over; it never stops the reading. Reading makemap's syntax blocks on its input;
//! nothing else does. Limits: [`LINE_BYTES_MAX`] a line, joined lines included. Sources: makemap(8), aliases(5).

#![deny(clippy::indexing_slicing)]

use std::io::{self, BufRead};

/// Longest line, continuation lines included, in bytes.
pub const LINE_BYTES_MAX: usize = 16 << 20;
/// How much of a bad line an error message quotes, in bytes.
const QUOTE_MAX: usize = 40;

/// How makemap's lines are read.
#[derive(Debug, Clone)]
pub struct MakemapSyntax {
    /// The byte that starts a comment in column 1.
    pub comment: u8,
    /// What ends the key; `None`: blanks.
    pub delimiter: Option<u8>,
    /// Whether keys are put in lower case.
    pub folds_keys: bool,
    /// Whether a key may stand without a value.
    pub allows_empty: bool,
}

impl Default for MakemapSyntax {
    fn default() -> Self {
        Self {
            comment: b'#',
            delimiter: None,
            folds_keys: true,
            allows_empty: false,
        }
    }
}

/// What is wrong with one line. The text is Sendmail's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LineFault {
    /// makemap: the line starts with a blank.
    #[error("syntax error (leading space)")]
    LeadingSpace,
    /// makemap: there is a key and no value.
    #[error("no RHS for LHS {key}")]
    NoValue {
        /// The key.
        key: String,
    },
    /// A line beyond [`LINE_BYTES_MAX`].
    #[error("line too long ({LINE_BYTES_MAX} bytes max)")]
    TooLong,
    /// A NUL byte, which no map takes.
    #[error("syntax error (NUL byte)")]
    Nul,
    /// Aliases: no colon ends the name.
    #[error("missing colon")]
    MissingColon,
    /// Aliases: nothing follows the colon.
    #[error("{text}... missing value for alias")]
    MissingValue {
        /// The line.
        text: String,
    },
    /// Aliases: the name is empty or not a name.
    #[error("{text}... illegal alias name")]
    IllegalName {
        /// The line.
        text: String,
    },
    /// Aliases: the name is of another host, a file or a program.
    #[error("{name}... cannot alias non-local names")]
    NonLocal {
        /// The name.
        name: String,
    },
    /// Aliases: a line starting with a blank with nothing to continue.
    #[error("Non-continuation line starts with space")]
    StrayContinuation,
}

/// One entry or fault of a source.
#[derive(Debug, PartialEq, Eq)]
pub enum SourceLine<'a> {
    /// A key and its value.
    Entry {
        /// The key, folded if asked for.
        key: &'a [u8],
        /// The key as it is written.
        written: &'a [u8],
        /// The value.
        value: &'a [u8],
    },
    /// A line that was passed over.
    Fault(LineFault),
}

/// Reads makemap's syntax; `f` gets each line's number (from 1) and what it holds.
///
/// # Errors
/// What reading the input gives, and what `f` gives.
pub fn read_makemap<E: From<io::Error>>(
    input: &mut dyn BufRead,
    syntax: &MakemapSyntax,
    f: &mut dyn FnMut(u64, SourceLine<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut carry = Vec::new();
    let mut number = 0;
    loop {
        // Lines that lie whole in the reader's buffer are parsed there, without being copied first.
        let available = input.fill_buf()?;
        if available.is_empty() {
            if !carry.is_empty() {
                number += 1;
                makemap_line(&carry, number, syntax, f)?;
            }
            return Ok(());
        }
        let mut consumed = 0;
        while let Some(line) = available.get(consumed..).and_then(|rest| {
            let end = rest.iter().position(|&byte| byte == b'\n')?;
            rest.get(..end)
        }) {
            consumed += line.len() + 1;
            number += 1;
            if carry.is_empty() {
                makemap_line(line, number, syntax, f)?;
            } else {
                extend_bounded(&mut carry, line);
                makemap_line(&carry, number, syntax, f)?;
                carry.clear();
            }
        }
        let len = available.len();
        extend_bounded(&mut carry, available.get(consumed..).unwrap_or(&[]));
        input.consume(len);
    }
}

/// Appends to a line, but never more than shows that it is too long.
fn extend_bounded(line: &mut Vec<u8>, more: &[u8]) {
    let room = (LINE_BYTES_MAX + 1).saturating_sub(line.len());
    line.extend_from_slice(more.get(..room).unwrap_or(more));
}

/// What C's isspace() says in the C locale.
fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

fn makemap_line<E>(
    line: &[u8],
    number: u64,
    syntax: &MakemapSyntax,
    f: &mut dyn FnMut(u64, SourceLine<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let Some(&first) = line.first() else {
        return Ok(());
    };
    if first == syntax.comment {
        return Ok(());
    }
    let fault = |fault| SourceLine::Fault(fault);
    if line.len() > LINE_BYTES_MAX {
        return f(number, fault(LineFault::TooLong));
    }
    if line.contains(&0) {
        return f(number, fault(LineFault::Nul));
    }
    if syntax.delimiter.is_none() && is_blank(first) {
        return f(number, fault(LineFault::LeadingSpace));
    }
    let ends_key = |byte: &u8| match syntax.delimiter {
        Some(delimiter) => *byte == delimiter,
        None => is_blank(*byte),
    };
    let key_len = line.iter().position(ends_key).unwrap_or(line.len());
    let (written, rest) = line.split_at(key_len);
    let value_at = rest
        .iter()
        .position(|byte| !ends_key(byte))
        .unwrap_or(rest.len());
    let value = rest.get(value_at..).unwrap_or(&[]);
    if value.is_empty() && !syntax.allows_empty {
        let key = fold(written, syntax.folds_keys);
        return f(number, fault(LineFault::NoValue { key: text(&key) }));
    }
    let key = fold(written, syntax.folds_keys);
    f(
        number,
        SourceLine::Entry {
            key: &key,
            written,
            value,
        },
    )
}

fn fold(key: &[u8], folds: bool) -> std::borrow::Cow<'_, [u8]> {
    if folds && key.iter().any(u8::is_ascii_uppercase) {
        key.to_ascii_lowercase().into()
    } else {
        key.into()
    }
}

/// Bytes for a message, as text.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The start of a line for a message.
fn quote(line: &[u8]) -> String {
    text(line.get(..QUOTE_MAX).unwrap_or(line))
}

/// Answers whether a domain after `@` in an alias's name is this host's.
pub type IsLocalDomain<'f> = dyn Fn(&[u8]) -> bool + 'f;

/// Reads an alias file; `f` gets the number of the line an entry begins on (from 1) and the entry or fault. Keys are
/// the names in lower case, in quotes only where the name needs them.
///
/// # Errors
/// What `f` gives.
pub fn read_aliases<E>(
    source: &[u8],
    is_local_domain: &IsLocalDomain<'_>,
    f: &mut dyn FnMut(u64, SourceLine<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut lines = AliasLines {
        lines: source
            .split(|&byte| byte == b'\n')
            .collect::<Vec<_>>()
            .into_iter()
            .peekable(),
        number: 0,
    };
    let mut may_complain = true;
    while let Some((number, line)) = lines.next_joined() {
        let Some(&first) = line.first() else {
            may_complain = true;
            continue;
        };
        if first == b'#' {
            may_complain = true;
            continue;
        }
        if first == b' ' || first == b'\t' {
            // Reported once for a run of such lines; a line of blanks alone is nothing to complain of.
            if may_complain && !line.iter().all(|&byte| is_blank(byte)) {
                may_complain = false;
                f(number, SourceLine::Fault(LineFault::StrayContinuation))?;
            }
            continue;
        }
        may_complain = true;
        let mut entry = line;
        lines.join_continuation(&mut entry);
        alias_entry(&entry, number, is_local_domain, f)?;
    }
    Ok(())
}

struct AliasLines<'a> {
    lines: std::iter::Peekable<std::vec::IntoIter<&'a [u8]>>,
    number: u64,
}

impl AliasLines<'_> {
    /// The next line, joined with those that follow a final backslash, and the number of its first.
    fn next_joined(&mut self) -> Option<(u64, Vec<u8>)> {
        let mut line = strip_cr(self.lines.next()?).to_vec();
        self.number += 1;
        let number = self.number;
        while line.last() == Some(&b'\\') {
            let Some(more) = self.lines.next() else {
                break;
            };
            self.number += 1;
            line.pop();
            extend_bounded(&mut line, strip_cr(more));
        }
        Some((number, line))
    }

    fn join_continuation(&mut self, entry: &mut Vec<u8>) {
        while self
            .lines
            .peek()
            .is_some_and(|line| matches!(line.first(), Some(b' ' | b'\t')))
        {
            if let Some((_, more)) = self.next_joined() {
                extend_bounded(entry, &more);
            }
        }
    }
}

fn strip_cr(line: &[u8]) -> &[u8] {
    line.strip_suffix(b"\r").unwrap_or(line)
}

fn alias_entry<E>(
    entry: &[u8],
    number: u64,
    is_local_domain: &IsLocalDomain<'_>,
    f: &mut dyn FnMut(u64, SourceLine<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut fault = |fault| f(number, SourceLine::Fault(fault));
    if entry.len() > LINE_BYTES_MAX {
        return fault(LineFault::TooLong);
    }
    if entry.contains(&0) {
        return fault(LineFault::Nul);
    }
    let Some((written, value)) = split_at_colon(entry) else {
        return fault(LineFault::MissingColon);
    };
    let written = written.trim_ascii();
    let key = match alias_key(written, is_local_domain) {
        Ok(key) => key,
        Err(NameFault::Illegal) => return fault(LineFault::IllegalName { text: quote(entry) }),
        Err(NameFault::NonLocal) => {
            return fault(LineFault::NonLocal {
                name: quote(written),
            });
        }
    };
    let value = value.trim_ascii_start();
    if value.is_empty() {
        return fault(LineFault::MissingValue { text: quote(entry) });
    }
    f(
        number,
        SourceLine::Entry {
            key: &key,
            written,
            value,
        },
    )
}

/// Splits at the first colon outside quotes.
fn split_at_colon(entry: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut scan = QuoteScan::default();
    let at = entry
        .iter()
        .position(|&byte| scan.is_bare(byte) && byte == b':')?;
    Some((entry.get(..at)?, entry.get(at + 1..)?))
}

/// Follows quotes and backslashes byte by byte.
#[derive(Default)]
struct QuoteScan {
    in_quotes: bool,
    after_backslash: bool,
}

impl QuoteScan {
    /// Takes one byte; whether it stands outside quotes and is not escaped.
    fn is_bare(&mut self, byte: u8) -> bool {
        if std::mem::take(&mut self.after_backslash) {
            return false;
        }
        match byte {
            b'\\' => {
                self.after_backslash = true;
                false
            }
            b'"' => {
                self.in_quotes = !self.in_quotes;
                false
            }
            _ => !self.in_quotes,
        }
    }
}

enum NameFault {
    Illegal,
    NonLocal,
}

fn alias_key(written: &[u8], is_local_domain: &IsLocalDomain<'_>) -> Result<Vec<u8>, NameFault> {
    let mut name = written;
    if let Some(inner) = name.strip_prefix(b"<") {
        name = inner
            .strip_suffix(b">")
            .ok_or(NameFault::Illegal)?
            .trim_ascii();
    }
    let mut scan = QuoteScan::default();
    let mut at_sign = None;
    for (at, &byte) in name.iter().enumerate() {
        if scan.is_bare(byte) {
            match byte {
                b'@' => at_sign = Some(at),
                b' ' | b'\t' | b'<' | b'>' | b',' | b';' | b'(' | b')' => {
                    return Err(NameFault::Illegal);
                }
                _ => {}
            }
        }
    }
    if scan.in_quotes || scan.after_backslash {
        return Err(NameFault::Illegal);
    }
    if let Some(at) = at_sign {
        let (local, domain) = name.split_at(at);
        if local.is_empty() {
            return Err(NameFault::Illegal);
        }
        if !is_local_domain(domain.get(1..).unwrap_or(&[])) {
            return Err(NameFault::NonLocal);
        }
        name = local;
    }
    let bare = unquote_if_plain(name);
    match bare.first() {
        None => Err(NameFault::Illegal),
        Some(b'|' | b'/') => Err(NameFault::NonLocal),
        Some(_) => Ok(bare.to_ascii_lowercase()),
    }
}

/// A quoted name without its quotes, if it does not need them.
fn unquote_if_plain(name: &[u8]) -> &[u8] {
    let inner = name
        .strip_prefix(b"\"")
        .and_then(|rest| rest.strip_suffix(b"\""));
    match inner {
        Some(inner) if inner.iter().all(|&byte| is_name_byte(byte)) => inner,
        _ => name,
    }
}

/// RFC 5321 atext and the dot, and any byte of UTF-8.
fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte >= 0x80 || b"!#$%&'*+-/=?^_`{|}~.".contains(&byte)
}

/// Whether a text is in alias syntax rather than makemap's: more than half of its entries are a name, perhaps quoted,
/// with a colon after it.
pub fn is_alias_syntax(source: &[u8]) -> bool {
    let (mut shaped, mut other) = (0_u64, 0_u64);
    for line in source.split(|&byte| byte == b'\n') {
        if line.trim_ascii().is_empty()
            || line.starts_with(b"#")
            || line.first().is_some_and(|&b| is_blank(b))
        {
            continue;
        }
        let is_shaped = split_at_colon(line).is_some_and(|(name, _)| {
            let mut scan = QuoteScan::default();
            let name = name.trim_ascii();
            !name.is_empty()
                && !name
                    .iter()
                    .any(|&byte| scan.is_bare(byte) && is_blank(byte))
        });
        if is_shaped {
            shaped += 1;
        } else {
            other += 1;
        }
    }
    shaped > other
}

/// One recipient of an alias's value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AliasValue {
    /// A user or an address, as written: `bob`, `bob@example.org`, `"Bob" <bob@example.org>`.
    Address(Vec<u8>),
    /// `\user`: this user, without looking for further aliases.
    Verbatim(Vec<u8>),
    /// `/path`: append to this file.
    File(Vec<u8>),
    /// `|command` or `"|command, with commas"`: the command, without bar and quotes.
    Program(Vec<u8>),
    /// `:include:/path`: the recipients this file lists.
    Include(Vec<u8>),
}

/// Takes a value apart at its commas. Quotes, `<...>` and `(...)` protect commas; empty places are passed over. Never
/// fails: what is malformed comes out as an address, and fails where addresses are parsed.
pub fn alias_values(value: &[u8]) -> Vec<AliasValue> {
    let mut values = Vec::new();
    let mut start = 0;
    let mut scan = QuoteScan::default();
    let (mut angle, mut comment) = (false, 0_u32);
    for (at, &byte) in value.iter().enumerate() {
        if !scan.is_bare(byte) {
            continue;
        }
        match byte {
            b'(' => comment = comment.saturating_add(1),
            b')' => comment = comment.saturating_sub(1),
            b'<' if comment == 0 => angle = true,
            b'>' if comment == 0 => angle = false,
            b',' if comment == 0 && !angle => {
                values.extend(value.get(start..at).and_then(alias_value));
                start = at + 1;
            }
            _ => {}
        }
    }
    values.extend(value.get(start..).and_then(alias_value));
    values
}

fn alias_value(part: &[u8]) -> Option<AliasValue> {
    let part = part.trim_ascii();
    let inner = match part
        .strip_prefix(b"\"")
        .and_then(|rest| rest.strip_suffix(b"\""))
    {
        // Only where the quotes are around the whole: `"a b"@example.org` is an address.
        Some(inner) if matches!(inner.first(), Some(b'|' | b'/' | b':')) => unescape(inner),
        _ => part.to_vec(),
    };
    let rest = |from: usize| inner.get(from..).unwrap_or(&[]).trim_ascii().to_vec();
    match inner.first()? {
        b'|' => Some(AliasValue::Program(rest(1))),
        b'/' => Some(AliasValue::File(inner)),
        b'\\' => Some(AliasValue::Verbatim(rest(1))),
        b':' if inner
            .get(..9)
            .is_some_and(|word| word.eq_ignore_ascii_case(b":include:")) =>
        {
            Some(AliasValue::Include(rest(9)))
        }
        _ => Some(AliasValue::Address(inner)),
    }
}

fn unescape(quoted: &[u8]) -> Vec<u8> {
    let mut bytes = quoted.iter().copied();
    let mut plain = Vec::with_capacity(quoted.len());
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => plain.extend(bytes.next()),
            _ => plain.push(byte),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn makemap(source: &str, syntax: &MakemapSyntax, buffer: usize) -> Vec<String> {
        let mut seen = Vec::new();
        let mut input = io::BufReader::with_capacity(buffer, source.as_bytes());
        read_makemap::<io::Error>(&mut input, syntax, &mut |number, line| {
            seen.push(match line {
                SourceLine::Entry { key, value, .. } => {
                    format!("{number} [{}] [{}]", text(key), text(value))
                }
                SourceLine::Fault(fault) => format!("{number} {fault}"),
            });
            Ok(())
        })
        .unwrap();
        seen
    }

    #[test]
    fn makemap_lines_are_read_as_sendmail_reads_them() {
        let source = "# c\nkey1\tvalue1\nKey2  value two with spaces \n\n   indented\nKEY4:\tv4\nlonely\nblank  \nlast x";
        for buffer in [1, 2, 7, 4096] {
            assert_eq!(
                makemap(source, &MakemapSyntax::default(), buffer),
                [
                    "2 [key1] [value1]",
                    "3 [key2] [value two with spaces ]",
                    "5 syntax error (leading space)",
                    "6 [key4:] [v4]",
                    "7 no RHS for LHS lonely",
                    "8 no RHS for LHS blank",
                    "9 [last] [x]",
                ]
            );
        }
        let syntax = MakemapSyntax {
            delimiter: Some(b':'),
            folds_keys: false,
            allows_empty: true,
            comment: b'%',
        };
        assert_eq!(
            makemap(
                "k1:v 1\n k2 :v2\n% c\n:nokey\nK4\na::b\n#k:v\n",
                &syntax,
                64
            ),
            [
                "1 [k1] [v 1]",
                "2 [ k2 ] [v2]",
                "4 [] [nokey]",
                "5 [K4] []",
                "6 [a] [b]",
                "7 [#k] [v]"
            ]
        );
    }

    #[test]
    fn overlong_lines_and_nuls_are_faults() {
        let long = format!("{}\nk v\na\0b c\n", "x".repeat(LINE_BYTES_MAX + 10));
        assert_eq!(
            makemap(&long, &MakemapSyntax::default(), 8192),
            [
                "1 line too long (16777216 bytes max)",
                "2 [k] [v]",
                "3 syntax error (NUL byte)"
            ]
        );
    }

    fn aliases(source: &str) -> Vec<String> {
        let mut seen = Vec::new();
        read_aliases::<()>(
            source.as_bytes(),
            &|domain| domain == b"here",
            &mut |number, line| {
                seen.push(match line {
                    SourceLine::Entry { key, value, .. } => {
                        format!("{number} [{}] [{}]", text(key), text(value))
                    }
                    SourceLine::Fault(fault) => format!("{number} {fault}"),
                });
                Ok(())
            },
        )
        .unwrap();
        seen
    }

    #[test]
    fn aliases_are_read_as_sendmail_reads_them() {
        assert_eq!(
            aliases(
                "# comment\nMAILER-DAEMON: postmaster\ninfo:\talice, bob,\n\tcarol\n\nB: bob,\n  carol,\n\tdave\r\njoin: a,\\\nb\nlast:erin"
            ),
            [
                "2 [mailer-daemon] [postmaster]",
                "3 [info] [alice, bob,\tcarol]",
                "6 [b] [bob,  carol,\tdave]",
                "9 [join] [a,b]",
                "11 [last] [erin]",
            ]
        );
    }

    #[test]
    fn bad_alias_lines_are_named_and_passed_over() {
        assert_eq!(
            aliases(
                "   stray: alice\n  more\nok: bob\nbadline alice\nempty:\n: alice\nuser@remote.test: x\nme@here: y\n/file: x\na b: c\n\"open: c\n"
            ),
            [
                "1 Non-continuation line starts with space",
                "3 [ok] [bob]",
                "4 missing colon",
                "5 empty:... missing value for alias",
                "6 : alice... illegal alias name",
                "7 user@remote.test... cannot alias non-local names",
                "8 [me] [y]",
                "9 /file... cannot alias non-local names",
                "10 a b: c... illegal alias name",
                "11 missing colon",
            ]
        );
    }

    #[test]
    fn quotes_stay_where_the_name_needs_them() {
        assert_eq!(
            aliases("\"q s\": a\n\"Plain\": b\n\"a:b\": c\n<angle>: d\n"),
            [
                "1 [\"q s\"] [a]",
                "2 [plain] [b]",
                "3 [\"a:b\"] [c]",
                "4 [angle] [d]"
            ]
        );
    }

    #[test]
    fn values_are_taken_apart_at_bare_commas() {
        use AliasValue::{Address, File, Include, Program, Verbatim};
        let parsed = alias_values(
            b"alice, \\bob,/var/log/x, |cmd one, \"|cmd a, \\\"b\\\"\", :include: /l, \":include:/m\",, \"A, B\" <c@d>, (x, y) e",
        );
        assert_eq!(
            parsed,
            [
                Address(b"alice".to_vec()),
                Verbatim(b"bob".to_vec()),
                File(b"/var/log/x".to_vec()),
                Program(b"cmd one".to_vec()),
                Program(b"cmd a, \"b\"".to_vec()),
                Include(b"/l".to_vec()),
                Include(b"/m".to_vec()),
                Address(b"\"A, B\" <c@d>".to_vec()),
                Address(b"(x, y) e".to_vec()),
            ]
        );
    }

    #[test]
    fn access_and_alias_sources_are_told_apart() {
        assert!(is_alias_syntax(
            b"# c\nroot: alice\ninfo:bob,\n  carol\n\"q s\" : x\n"
        ));
        assert!(is_alias_syntax(b"root: alice\nbroken line\nx: y\n"));
        assert!(!is_alias_syntax(b"root\talice\ninfo bob\n"));
        assert!(!is_alias_syntax(b"# nothing\n\n"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(source in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = read_aliases::<()>(&source, &|_| true, &mut |_, _| Ok(()));
            let _ = read_makemap::<io::Error>(&mut &source[..], &MakemapSyntax::default(), &mut |_, _| Ok(()));
            let _ = alias_values(&source);
            let _ = is_alias_syntax(&source);
        }
    }
}
