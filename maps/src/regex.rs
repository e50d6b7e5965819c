//! Class `regex`: keys matched against a pattern.
//!
//! A key that matches is found. Its value is empty, so that with -a the value is what -a says; with -s it is made of
//! the parts of the key that the pattern's parentheses matched. A map with -m answers the key.
//!
//! | switch | means |
//! |---|---|
//! | -n | found is what does not match; the value is empty |
//! | -f | capital and small letters differ |
//! | -b | the pattern is a basic regular expression, not an extended one |
//! | -s, -s1,3 | the value is all parenthesised parts, or the ones numbered (0 is the whole match) |
//! | -dC | what stands between these parts, one character; a dollar sign without it |
//!
//! Patterns are POSIX's, translated for the `regex` crate, whose matching takes time in proportion to the key's length
//! whatever the pattern. What differs: of several alternatives that match at one place the first one counts, not the
//! longest (`a|ab` on `ab` takes `a`), which shows in what -s extracts and never in whether a key matches; and
//! back-references (`\1`) are refused. Keys are bytes; classes such as `[[:alpha:]]` are those of ASCII.
//!
//! Never blocks. Limits: [`PROGRAM_BYTES_MAX`]. Source: sendmail's op.me 5.12, POSIX 1003.1 9.

#![deny(clippy::indexing_slicing)]

use crate::open_map::{ClassMap, not_listed};
use crate::{Definition, MapClass, MapError, PairVisitor, SpecError};
use ::regex::bytes::{Regex, RegexBuilder};

/// Most memory a compiled pattern may take, in bytes.
const PROGRAM_BYTES_MAX: usize = 4 << 20;
/// What stands between extracted parts, unless -d says otherwise. Source: Sendmail's CONDELSE.
const DELIMITER: u8 = b'$';

/// A pattern in use.
pub(crate) struct RegexMap {
    pattern: Regex,
    is_inverted: bool,
    /// What to extract; `None`: nothing.
    parts: Option<Vec<usize>>,
    delimiter: u8,
}

impl RegexMap {
    pub(crate) fn new(definition: &Definition) -> Result<Self, SpecError> {
        let translated = translate(&definition.rest, definition.has('b'))
            .map_err(|reason| definition.bad_argument(reason))?;
        let pattern = RegexBuilder::new(&translated)
            .case_insensitive(!definition.switches.keeps_case)
            .unicode(false)
            .size_limit(PROGRAM_BYTES_MAX)
            .build()
            .map_err(|error| {
                let text = error.to_string();
                let last = text.lines().last().unwrap_or_default();
                definition.bad_argument(last.trim_start_matches("error: "))
            })?;
        let delimiter = match definition.value('d') {
            None => DELIMITER,
            Some(value) => match value.as_bytes() {
                [byte] => *byte,
                _ => return Err(definition.bad_value('d', "expected one character")),
            },
        };
        let groups = pattern.captures_len();
        let parts = match definition.value('s') {
            None => None,
            Some("") => Some((1..groups).collect()),
            Some(list) => Some(
                list.split(',')
                    .map(|number| number.parse::<usize>().ok().filter(|&part| part < groups))
                    .collect::<Option<Vec<_>>>()
                    .ok_or_else(|| {
                        definition.bad_value(
                            's',
                            format!("expected numbers from 0 to {}, with commas", groups - 1),
                        )
                    })?,
            ),
        };
        if parts.is_some() && definition.has('n') {
            return Err(definition.bad_value('s', "there is nothing to extract with -n"));
        }
        Ok(Self {
            pattern,
            is_inverted: definition.has('n'),
            parts,
            delimiter,
        })
    }
}

impl ClassMap for RegexMap {
    fn find(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        let Some(parts) = &self.parts else {
            let is_found = self.pattern.is_match(key) != self.is_inverted;
            return Ok(is_found.then(Vec::new));
        };
        Ok(self.pattern.captures(key).map(|found| {
            let mut value = Vec::new();
            for (count, &part) in parts.iter().enumerate() {
                if count > 0 {
                    value.push(self.delimiter);
                }
                value.extend_from_slice(found.get(part).map_or(&[][..], |part| part.as_bytes()));
            }
            value
        }))
    }

    fn each(&self, _: &mut PairVisitor<'_>) -> Result<(), MapError> {
        Err(not_listed(MapClass::Regex))
    }

    /// The pattern itself is blind to case, so that parts come out as they were written.
    fn takes_folded_keys(&self) -> bool {
        false
    }
}

/// A POSIX pattern in the words of the `regex` crate.
fn translate(pattern: &str, is_basic: bool) -> Result<String, String> {
    let mut out = String::with_capacity(pattern.len() + 8);
    let mut rest = pattern.chars().peekable();
    // Whether a star, at this place of a basic expression, is a star and nothing else.
    let mut is_start = true;
    let mut after_repetition = false;
    while let Some(character) = rest.next() {
        let was_start = std::mem::replace(&mut is_start, false);
        // Two repetitions, one upon another, would mean "lazy" to the crate.
        let repeats = match character {
            '*' => !(is_basic && was_start),
            '\\' => is_basic && matches!(rest.peek(), Some('+' | '?' | '{')),
            '+' | '?' | '{' => !is_basic,
            _ => false,
        };
        let closes = match character {
            '}' => !is_basic,
            '\\' => is_basic && rest.peek() == Some(&'}'),
            _ => false,
        };
        if repeats && after_repetition {
            return Err("one repetition upon another".into());
        }
        let opens_interval =
            repeats && (character == '{' || (character == '\\' && rest.peek() == Some(&'{')));
        after_repetition = closes || (repeats && !opens_interval);
        match character {
            '[' => bracket(&mut rest, &mut out)?,
            '\\' => match rest.next() {
                None => return Err("a backslash at the end".into()),
                Some('1'..='9') => return Err("back-references are not supported".into()),
                Some(special @ ('(' | ')' | '{' | '}' | '|' | '+' | '?')) if is_basic => {
                    is_start = matches!(special, '(' | '|');
                    out.push(special);
                }
                Some(word @ ('w' | 'W' | 's' | 'S' | 'b' | 'B')) => out.extend(['\\', word]),
                Some('<') => out.push_str(r"\b{start}"),
                Some('>') => out.push_str(r"\b{end}"),
                Some(letter) if letter.is_ascii_alphanumeric() => out.push(letter),
                Some(literal) => push_literal(&mut out, literal),
            },
            '*' if is_basic && was_start => out.push_str(r"\*"),
            '^' if is_basic && !was_start => out.push_str(r"\^"),
            '$' if is_basic && !is_end_of_basic(&rest) => out.push_str(r"\$"),
            '^' => {
                is_start = true;
                out.push('^');
            }
            '(' | ')' | '{' | '}' | '|' | '+' | '?' if is_basic => {
                push_literal(&mut out, character)
            }
            '(' if rest.peek() == Some(&'?') => return Err("nothing to repeat before ?".into()),
            '(' | ')' | '|' | '+' | '?' | '*' | '$' | '.' => out.push(character),
            '{' | '}' => out.push(character),
            literal => push_literal(&mut out, literal),
        }
    }
    Ok(out)
}

/// Whether a dollar sign here is the end of a basic expression, or of one in parentheses.
fn is_end_of_basic(rest: &std::iter::Peekable<std::str::Chars<'_>>) -> bool {
    let mut ahead = rest.clone();
    matches!(
        (ahead.next(), ahead.next()),
        (None, _) | (Some('\\'), Some(')' | '|'))
    )
}

fn push_literal(out: &mut String, literal: char) {
    let mut bytes = [0; 4];
    out.push_str(&::regex::escape(literal.encode_utf8(&mut bytes)));
}

/// A bracket expression: a backslash is itself there, and only POSIX's own classes begin with a bracket.
fn bracket(
    rest: &mut std::iter::Peekable<std::str::Chars<'_>>,
    out: &mut String,
) -> Result<(), String> {
    out.push('[');
    if rest.next_if_eq(&'^').is_some() {
        out.push('^');
    }
    let mut is_first = true;
    loop {
        let character = rest.next().ok_or("a bracket is not closed")?;
        match character {
            ']' if !is_first => {
                out.push(']');
                return Ok(());
            }
            '[' if rest.peek() == Some(&':') => {
                let mut class = String::from("[");
                loop {
                    let next = rest.next().ok_or("a class is not closed")?;
                    class.push(next);
                    if class.len() > 2 && class.ends_with(":]") {
                        break;
                    }
                }
                out.push_str(&class);
            }
            '[' if matches!(rest.peek(), Some('.' | '=')) => {
                return Err("collating elements are not supported".into());
            }
            '-' if is_first || rest.peek() == Some(&']') => out.push_str(r"\-"),
            '-' => out.push('-'),
            '\\' | '[' | ']' | '^' | '&' | '~' => out.extend(['\\', character]),
            plain => out.push(plain),
        }
        is_first = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(text: &str) -> Result<RegexMap, SpecError> {
        RegexMap::new(&Definition::parse(text).unwrap())
    }

    fn value(text: &str, key: &str) -> Option<String> {
        let found = open(text).unwrap().find(key.as_bytes()).unwrap();
        found.map(|value| String::from_utf8(value).unwrap())
    }

    #[test]
    fn matching_is_finding() {
        assert_eq!(value("regex ^[0-9]+@", "123@x").unwrap(), "");
        assert_eq!(value("regex ^[0-9]+@", "a123@x"), None);
        assert_eq!(value("regex -n ^[0-9]+@", "a123@x").unwrap(), "");
        assert_eq!(value("regex ^abc$", "ABC").unwrap(), "");
        assert_eq!(value("regex -f ^abc$", "ABC"), None);
        assert_eq!(value("regex a b", "xa by").unwrap(), "");
    }

    #[test]
    fn parts_are_extracted() {
        let parts = |switches: &str| value(&format!("regex {switches} (.*)@(.*)\\.(.*)"), "u@D.e");
        assert_eq!(parts("-s").unwrap(), "u$D$e");
        assert_eq!(parts("-s3,1 -d:").unwrap(), "e:u");
        assert_eq!(parts("-s0").unwrap(), "u@D.e");
        assert_eq!(value("regex -s a(x)?b", "ab").unwrap(), "");
        assert!(open("regex -s4 (a)").is_err());
        assert!(open("regex -n -s (a)").is_err());
        assert!(open("regex -d:: a").is_err());
    }

    #[test]
    fn basic_and_extended_patterns_mean_what_posix_says() {
        for (pattern, key, is_found) in [
            (r"-b ^\(a\{2\}\)$", "aa", true),
            (r"-b ^(a{2})$", "(a{2})", true),
            (r"-b ^a+$", "a+", true),
            (r"-b ^a+$", "aa", false),
            (r"-b ^*a$", "*a", true),
            (r"-b a^b", "a^b", true),
            (r"-b a$b", "a$b", true),
            (r"-b ^a\|b$", "b", true),
            (r"^a\.b$", "a.b", true),
            (r"^a\.b$", "axb", false),
            (r"^[\.]$", "\\", true),
            (r"^[]a-]+$", "]-a", true),
            (r"^[^]a]$", "]", false),
            (r"^[[:digit:]&&]+$", "1&", true),
            (r"^[[:digit:]x]+$", "1x", true),
            (r"^(a|b){2}$", "ab", true),
            (r"\<word\>", "a word.", true),
            (r"\<word\>", "swords", false),
            (r"^\#\@$", "#@", true),
            (r"^#x y$", "#x y", true),
        ] {
            let found = value(&format!("regex {pattern}"), key).is_some();
            assert_eq!(found, is_found, "{pattern} on {key}");
        }
        for bad in [
            r"\(a\)\1",
            "[a",
            "a\\",
            "(a",
            "[[.x.]]",
            "a{9999}{9999}",
            "a**",
            "a{2}?",
        ] {
            let basic = if bad.starts_with(r"\(") { "-b " } else { "" };
            assert!(open(&format!("regex {basic}{bad}")).is_err(), "{bad}");
        }
    }
}
