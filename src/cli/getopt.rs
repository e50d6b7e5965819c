//! Splitting a command line into options and operands, as sendmail(8) does.
//!
//! One-letter options may be joined (`-tiv`); a value is attached (`-fann`) or
//! is the next word (`-f ann`); `-q` and `-d` have a value only when it is
//! attached, so that `-q ann` leaves `ann` an operand. The first word that is
//! no option ends them, and so does `--`. Long options are this program's own:
//! `--sandbox DIR` or `--sandbox=DIR`. Pure; nothing is judged here but form.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use super::CliError;

/// Letters with a value, attached or in the next word.
const WITH_VALUE: &[u8] = b"ABbCDeFfhLMNOopRrTVX";
/// Letters with a value only when it is attached.
const WITH_ATTACHED_VALUE: &[u8] = b"dqQ";
/// Letters without a value.
const WITHOUT_VALUE: &[u8] = b"GIUcimnstvx";

/// One word or part of a word, in the order given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Word {
    /// `-X` and its value, if it has one.
    Letter(char, Option<OsString>),
    /// `--name` and its value, if it has one.
    Long(&'static str, Option<OsString>),
    /// Anything else.
    Operand(OsString),
}

/// Long options, and whether they have a value.
const LONG: &[(&str, bool)] = &[
    ("sandbox", true),
    ("check-config", false),
    ("print-config", false),
    ("version", false),
    ("help", false),
];

/// Splits the arguments that follow the program's name.
pub(super) fn split(arguments: &[OsString]) -> Result<Vec<Word>, CliError> {
    let mut words = Vec::new();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let bytes = argument.as_bytes();
        if bytes == b"--" {
            break;
        }
        if let Some(long) = bytes.strip_prefix(b"--") {
            words.push(long_option(long, &mut rest)?);
            continue;
        }
        let Some(letters) = bytes.strip_prefix(b"-").filter(|it| !it.is_empty()) else {
            words.push(Word::Operand(argument.clone()));
            break;
        };
        letter_options(letters, &mut rest, &mut words)?;
    }
    words.extend(rest.cloned().map(Word::Operand));
    Ok(words)
}

fn long_option<'a>(
    text: &[u8],
    rest: &mut impl Iterator<Item = &'a OsString>,
) -> Result<Word, CliError> {
    let (name, attached) = match text.iter().position(|byte| *byte == b'=') {
        Some(at) => {
            let (name, value) = text.split_at(at);
            (name, Some(value.get(1..).unwrap_or_default()))
        }
        None => (text, None),
    };
    let shown = || String::from_utf8_lossy(name).into_owned();
    let Some((known, takes_value)) = LONG.iter().find(|(known, _)| known.as_bytes() == name) else {
        return Err(CliError::UnknownLong(shown()));
    };
    let value = match (takes_value, attached) {
        (true, Some(value)) => Some(OsString::from_vec(value.to_vec())),
        (true, None) => Some(
            rest.next()
                .cloned()
                .ok_or_else(|| CliError::LongValueMissing(shown()))?,
        ),
        (false, Some(_)) => return Err(CliError::LongValueUnwanted(shown())),
        (false, None) => None,
    };
    Ok(Word::Long(known, value))
}

fn letter_options<'a>(
    letters: &[u8],
    rest: &mut impl Iterator<Item = &'a OsString>,
    words: &mut Vec<Word>,
) -> Result<(), CliError> {
    let mut letters = letters;
    while let Some((letter, tail)) = letters.split_first() {
        let shown = char::from(*letter);
        if WITHOUT_VALUE.contains(letter) {
            words.push(Word::Letter(shown, None));
            letters = tail;
            continue;
        }
        let attached = (!tail.is_empty()).then(|| OsStr::from_bytes(tail).to_owned());
        if WITH_ATTACHED_VALUE.contains(letter) {
            words.push(Word::Letter(shown, attached));
            return Ok(());
        }
        if !WITH_VALUE.contains(letter) {
            return Err(CliError::IllegalOption(shown));
        }
        let value = match attached.or_else(|| rest.next().cloned()) {
            Some(value) => value,
            // Sendmail's own text for a lone -b.
            None if shown == 'b' => return Err(CliError::UnknownMode(" ".to_owned())),
            None => return Err(CliError::ValueMissing(shown)),
        };
        words.push(Word::Letter(shown, Some(value)));
        return Ok(());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split_words(line: &[&str]) -> Result<Vec<Word>, CliError> {
        let arguments: Vec<OsString> = line.iter().map(OsString::from).collect();
        split(&arguments)
    }

    fn letter(letter: char, value: Option<&str>) -> Word {
        Word::Letter(letter, value.map(OsString::from))
    }

    fn operand(text: &str) -> Word {
        Word::Operand(text.into())
    }

    #[test]
    fn values_are_attached_or_the_next_word() {
        assert_eq!(
            split_words(&["-tiv", "-fann", "-F", "Ann Bee", "-bs", "bob"]).unwrap(),
            [
                letter('t', None),
                letter('i', None),
                letter('v', None),
                letter('f', Some("ann")),
                letter('F', Some("Ann Bee")),
                letter('b', Some("s")),
                operand("bob"),
            ]
        );
        assert_eq!(
            split_words(&["-vf", "ann", "-toi"]).unwrap(),
            [
                letter('v', None),
                letter('f', Some("ann")),
                letter('t', None),
                letter('o', Some("i"))
            ]
        );
    }

    #[test]
    fn a_bare_q_leaves_the_next_word_alone() {
        assert_eq!(
            split_words(&["-q", "bob"]).unwrap(),
            [letter('q', None), operand("bob")]
        );
        assert_eq!(split_words(&["-q30m"]).unwrap(), [letter('q', Some("30m"))]);
        assert_eq!(split_words(&["-vqIabc"]).unwrap().len(), 2);
    }

    #[test]
    fn the_first_operand_ends_the_options() {
        let words = split_words(&["bob", "-v"]).unwrap();
        assert_eq!(words, [operand("bob"), operand("-v")]);
        let words = split_words(&["-v", "--", "-t", "--help"]).unwrap();
        assert_eq!(words, [letter('v', None), operand("-t"), operand("--help")]);
        assert_eq!(split_words(&["-"]).unwrap(), [operand("-")]);
        assert_eq!(
            split_words(&["", "-v"]).unwrap(),
            [operand(""), operand("-v")]
        );
    }

    #[test]
    fn long_options_take_their_value_either_way() {
        let value = Some(OsString::from("/s"));
        for line in [&["--sandbox", "/s"][..], &["--sandbox=/s"]] {
            assert_eq!(
                split_words(line).unwrap(),
                [Word::Long("sandbox", value.clone())]
            );
        }
        assert!(split_words(&["--sandbox"]).is_err());
        assert!(split_words(&["--help=x"]).is_err());
        assert!(split_words(&["--sand"]).is_err());
    }

    #[test]
    fn what_is_no_option_has_sendmails_text() {
        let text = |line: &[&str]| split_words(line).unwrap_err().to_string();
        assert_eq!(text(&["-E", "bob"]), "sendmail: illegal option -- E");
        assert_eq!(text(&["-vK"]), "sendmail: illegal option -- K");
        assert_eq!(text(&["-f"]), "sendmail: option requires an argument -- f");
        assert_eq!(text(&["-b"]), "Invalid operation mode  ");
    }
}
