//! Command lines as Sendmail's tools read them: getopt(3) letters, with or without a blank before the value, and a few
//! long options of ours. The first other word ends them, or, as glibc's getopt has it, only `--` does.
//!
//! Pure: reads only what it is given. Texts are getopt's. Source: getopt(3).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// What a program takes.
#[derive(Debug, Clone, Copy)]
pub struct Grammar<'g> {
    /// Letters without a value.
    pub flags: &'g str,
    /// Letters with a value.
    pub values: &'g str,
    /// Long options without a value, dashes left out.
    pub long_flags: &'g [&'g str],
    /// Long options with a value, `--name VALUE` or `--name=VALUE`.
    pub long_values: &'g [&'g str],
    /// What ends the options.
    pub end: OptionsEnd,
}

/// What ends the options of a command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionsEnd {
    /// The first word that is none, or `--`.
    FirstWord,
    /// `--` alone: options may stand behind other words.
    DashDash,
}

/// One option as it was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Given {
    /// A letter, and its value if it takes one.
    Letter(char, Option<OsString>),
    /// A long option, and its value if it takes one.
    Long(String, Option<OsString>),
}

/// A command line, taken apart.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Arguments {
    /// The options in order.
    pub options: Vec<Given>,
    /// The words after the options.
    pub words: Vec<OsString>,
}

/// Takes a command line apart; `words` is without the program's name.
///
/// # Errors
/// getopt's text for an unknown option or a missing value.
pub fn parse(
    grammar: &Grammar<'_>,
    words: impl Iterator<Item = OsString>,
) -> Result<Arguments, String> {
    let mut parsed = Arguments::default();
    let mut words = words;
    while let Some(word) = words.next() {
        let bytes = word.as_bytes();
        if bytes == b"--" {
            break;
        }
        if let Some(long) = bytes.strip_prefix(b"--") {
            parsed.options.push(parse_long(grammar, long, &mut words)?);
            continue;
        }
        if bytes.len() < 2 || bytes.first() != Some(&b'-') {
            parsed.words.push(word);
            match grammar.end {
                OptionsEnd::FirstWord => break,
                OptionsEnd::DashDash => continue,
            }
        }
        for (at, &letter) in bytes.iter().skip(1).enumerate() {
            let letter = char::from(letter);
            if grammar.flags.contains(letter) {
                parsed.options.push(Given::Letter(letter, None));
            } else if grammar.values.contains(letter) {
                let attached = bytes.get(at + 2..).filter(|rest| !rest.is_empty());
                let value = match attached {
                    Some(rest) => OsStr::from_bytes(rest).to_os_string(),
                    None => words
                        .next()
                        .ok_or_else(|| format!("option requires an argument -- '{letter}'"))?,
                };
                parsed.options.push(Given::Letter(letter, Some(value)));
                break;
            } else {
                return Err(format!("invalid option -- '{letter}'"));
            }
        }
    }
    parsed.words.extend(words);
    Ok(parsed)
}

fn parse_long(
    grammar: &Grammar<'_>,
    long: &[u8],
    words: &mut dyn Iterator<Item = OsString>,
) -> Result<Given, String> {
    let mut parts = long.splitn(2, |&byte| byte == b'=');
    let name = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let attached = parts.next().map(|value| OsString::from_vec(value.to_vec()));
    if grammar.long_flags.contains(&name.as_str()) {
        return match attached {
            None => Ok(Given::Long(name, None)),
            Some(_) => Err(format!("option '--{name}' doesn't allow an argument")),
        };
    }
    if !grammar.long_values.contains(&name.as_str()) {
        return Err(format!("unrecognized option '--{name}'"));
    }
    let value = attached
        .or_else(|| words.next())
        .ok_or_else(|| format!("option '--{name}' requires an argument"))?;
    Ok(Given::Long(name, Some(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRAMMAR: Grammar<'static> = Grammar {
        flags: "Nd",
        values: "Ct",
        long_flags: &["aliases"],
        long_values: &["sandbox"],
        end: OptionsEnd::FirstWord,
    };

    fn shown(line: &str) -> String {
        match parse(&GRAMMAR, line.split_whitespace().map(OsString::from)) {
            Ok(parsed) => format!("{:?} {:?}", parsed.options, parsed.words),
            Err(text) => text,
        }
    }

    #[test]
    fn letters_bundle_and_take_values_attached_or_apart() {
        assert_eq!(
            shown("-Ndt: -C file --sandbox=x --aliases hash -N"),
            "[Letter('N', None), Letter('d', None), Letter('t', Some(\":\")), Letter('C', Some(\"file\")), \
             Long(\"sandbox\", Some(\"x\")), Long(\"aliases\", None)] [\"hash\", \"-N\"]"
        );
        assert_eq!(shown("-N -- -d"), "[Letter('N', None)] [\"-d\"]");
        assert_eq!(shown("- x"), "[] [\"-\", \"x\"]");
    }

    #[test]
    fn options_may_stand_behind_words_where_only_dashes_end_them() {
        let grammar = Grammar {
            end: OptionsEnd::DashDash,
            ..GRAMMAR
        };
        let words = "hash -N m -t : - -- -d".split_whitespace();
        let parsed = parse(&grammar, words.map(OsString::from)).unwrap();
        assert_eq!(parsed.words, ["hash", "m", "-", "-d"]);
        let letter = |letter, value: Option<&str>| Given::Letter(letter, value.map(Into::into));
        assert_eq!(parsed.options, [letter('N', None), letter('t', Some(":"))]);
    }

    #[test]
    fn what_is_wrong_is_said_as_getopt_says_it() {
        assert_eq!(shown("-z"), "invalid option -- 'z'");
        assert_eq!(shown("-C"), "option requires an argument -- 'C'");
        assert_eq!(shown("--zap"), "unrecognized option '--zap'");
        assert_eq!(
            shown("--sandbox"),
            "option '--sandbox' requires an argument"
        );
        assert_eq!(
            shown("--aliases=1"),
            "option '--aliases' doesn't allow an argument"
        );
    }
}
