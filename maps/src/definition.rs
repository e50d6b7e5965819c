//! A map of any class as it is written in a configuration, taken apart: class, switches, and what stands after them.
//!
//! `hash -o -T<TMPF> /etc/mail/access`, `regex -b -a@MATCH ^[0-9]\{1,\}@`, `dns -R MX -a. -d5s`. Switches stand before
//! the rest, each in a word of its own. A value is attached to its letter, or stands in the next word where the table
//! below says so; one that holds blanks is put in double quotes. What a class does not know is an error that names it,
//! as are a value that is missing, a class that is not built in, and a number that is none. Pure: touches no file.
//!
//! Source: sendmail's op.me 5.12 (K lines).

#![deny(clippy::indexing_slicing)]

use crate::spec::one_byte;
use crate::{MapKind, MapSpec, NulRule, SpecError, Switches, TextColumns};
use std::path::PathBuf;
use std::time::Duration;

/// Longest specification read, in bytes.
pub const SPEC_BYTES_MAX: usize = 4096;
/// Longest time `-d` can ask for.
const TIME_LIMIT_MAX: Duration = Duration::from_secs(3600);

/// The classes that are built in: kinds of files, and those that ask something else. A fixed list, no registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MapClass {
    /// A file of this kind.
    File(MapKind),
    /// The database beside an alias file where there is one, else the alias file itself.
    Implicit,
    /// Holds nothing.
    Null,
    /// Other maps, asked in order.
    Sequence,
    /// As `sequence`, the maps being those that the service switch lists.
    Switch,
    /// Matches keys against a pattern.
    Regex,
    /// An alias file, read into memory as it is.
    Stab,
    /// Accounts of the system.
    User,
    /// A program that is run for each lookup.
    Program,
    /// Canonical names of hosts.
    Host,
    /// Records of DNS.
    Dns,
    /// The best mail exchanger of a domain.
    Bestmx,
    /// Addresses in the order in which DNS has them.
    Arpa,
    /// A server that speaks the socketmap protocol.
    Socket,
    /// A directory.
    Ldap,
    /// An SQLite database.
    Sqlite,
}

/// What one class takes, beside its name.
struct Grammar {
    class: MapClass,
    name: &'static str,
    /// Switches without a value.
    flags: &'static str,
    /// Switches with a value attached.
    attached: &'static str,
    /// Switches with a value attached or in the next word.
    apart: &'static str,
    rest: Rest,
}

/// What has to stand after the switches.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rest {
    /// One word; the text says what it is.
    One(&'static str),
    /// Words, one at least.
    Some(&'static str),
    /// Everything up to the end, blanks included, and not empty.
    Line(&'static str),
    /// One word or nothing.
    Optional,
    /// Nothing.
    None,
}

const FILE_FLAGS: &str = "oNOfmtAq";
const CLASSES: [Grammar; 15] = {
    const fn class(
        class: MapClass,
        name: &'static str,
        flags: &'static str,
        attached: &'static str,
        apart: &'static str,
        rest: Rest,
    ) -> Grammar {
        Grammar {
            class,
            name,
            flags,
            attached,
            apart,
            rest,
        }
    }
    use MapClass as C;
    [
        class(
            C::Implicit,
            "implicit",
            FILE_FLAGS,
            "aTd",
            "",
            Rest::One("file"),
        ),
        class(C::Null, "null", "ofmtq", "aTd", "", Rest::Optional),
        class(C::Sequence, "sequence", "mt", "aT", "", Rest::Some("map")),
        class(C::Switch, "switch", "mt", "aT", "", Rest::One("service")),
        class(
            C::Regex,
            "regex",
            "nfbmtq",
            "aTds",
            "",
            Rest::Line("pattern"),
        ),
        class(C::Stab, "stab", "ofmtAq", "aT", "", Rest::One("file")),
        class(C::User, "user", "fmtq", "aT", "v", Rest::Optional),
        class(
            C::Program,
            "program",
            "fmtq",
            "aTd",
            "",
            Rest::Some("program"),
        ),
        class(C::Host, "host", "fmtq", "aTdr", "", Rest::None),
        class(C::Dns, "dns", "fmtq", "aTdrzZ", "RB", Rest::None),
        class(C::Bestmx, "bestmx", "fmtq", "aTdrz", "", Rest::None),
        class(C::Arpa, "arpa", "fmtq", "aT", "", Rest::None),
        class(C::Socket, "socket", "fmtq", "aTd", "", Rest::One("address")),
        class(
            C::Ldap,
            "ldap",
            "fmtqo1nR",
            "aTzVlZ",
            "vkbHhpdMPwcsr",
            Rest::None,
        ),
        class(C::Sqlite, "sqlite", "fmtqo", "aTdz", "Q", Rest::One("file")),
    ]
};

/// One switch of the class's own, as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnSwitch {
    /// Its letter.
    pub letter: char,
    /// Its value; empty for a switch without one.
    pub value: String,
}

/// A map of any class, as configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// The class.
    pub class: MapClass,
    /// The switches that all classes share.
    pub switches: Switches,
    /// The class's own switches in the order in which they were written.
    pub own: Vec<OwnSwitch>,
    /// What stands after the switches, without blanks at its ends: a file, a pattern, an address, names of maps.
    pub rest: String,
}

impl MapClass {
    /// The class of a name.
    ///
    /// # Errors
    /// [`SpecError::NotBuiltIn`] for a class of Sendmail's that is not built in, [`SpecError::UnknownClass`] otherwise.
    pub fn from_name(name: &str) -> Result<Self, SpecError> {
        match CLASSES.iter().find(|grammar| grammar.name == name) {
            Some(grammar) => Ok(grammar.class),
            None => MapKind::from_name(name).map(Self::File),
        }
    }

    /// The name used in specifications.
    pub fn name(self) -> &'static str {
        match self {
            Self::File(kind) => kind.name(),
            other => other.grammar().name,
        }
    }

    /// Whether what stands after the switches is the name of a file.
    pub fn is_of_a_file(self) -> bool {
        matches!(
            self,
            Self::File(_) | Self::Implicit | Self::Stab | Self::Sqlite
        )
    }

    fn grammar(self) -> Grammar {
        let of_file = |kind| Grammar {
            class: self,
            name: "",
            flags: FILE_FLAGS,
            attached: if kind == MapKind::Text { "aTdz" } else { "aTd" },
            apart: if kind == MapKind::Text { "kv" } else { "" },
            rest: Rest::One("file"),
        };
        match self {
            Self::File(kind) => of_file(kind),
            _ => CLASSES
                .into_iter()
                .find(|grammar| grammar.class == self)
                .unwrap_or_else(|| of_file(MapKind::Hash)),
        }
    }
}

impl std::fmt::Display for MapClass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl Definition {
    /// Parses "class switches rest".
    ///
    /// # Errors
    /// [`SpecError`], naming the class, switch or value that is wrong.
    pub fn parse(text: &str) -> Result<Self, SpecError> {
        let malformed = |reason: String| SpecError::Malformed {
            spec: text.chars().take(80).collect(),
            reason,
        };
        if text.len() > SPEC_BYTES_MAX {
            return Err(malformed(format!("longer than {SPEC_BYTES_MAX} bytes")));
        }
        let mut text_left = text;
        let class = next_word(&mut text_left).ok_or_else(|| malformed("no class".into()))?;
        let class = MapClass::from_name(class)?;
        let grammar = class.grammar();
        let mut definition = Self {
            class,
            switches: Switches::default(),
            own: Vec::new(),
            rest: String::new(),
        };
        while text_left.trim_start().starts_with('-') {
            let switch = next_switch(&mut text_left);
            if !switch.is_closed {
                return Err(malformed("quotes are not closed".into()));
            }
            definition.switch(&grammar, &switch, &mut text_left)?;
        }
        let rest = text_left.trim();
        let words = rest.split_ascii_whitespace().count();
        match grammar.rest {
            Rest::One(what) | Rest::Some(what) | Rest::Line(what) if words == 0 => {
                return Err(malformed(format!("no {what}")));
            }
            Rest::One(what) if words > 1 => {
                return Err(malformed(format!("more than one {what}")));
            }
            Rest::Optional if words > 1 => {
                return Err(malformed("more than one word after the switches".into()));
            }
            Rest::None if words > 0 => {
                return Err(malformed("nothing stands after the switches".into()));
            }
            _ => {}
        }
        definition.rest = rest.to_owned();
        Ok(definition)
    }

    /// Parses a value of the option AliasFile: "file", "class:file" or "class:switches rest"; the class is `hash`
    /// when none is written.
    ///
    /// # Errors
    /// As [`Definition::parse`].
    pub fn parse_alias(text: &str) -> Result<Self, SpecError> {
        match alias_class(text) {
            Some((class, rest)) => Self::parse(&format!("{class} {rest}")),
            None => Self::parse(&format!("hash {text}")),
        }
    }

    /// The same for who looks aliases up: without a class it is `implicit`, which reads the text where no map is built.
    ///
    /// # Errors
    /// As [`Definition::parse`].
    pub fn parse_alias_to_read(text: &str) -> Result<Self, SpecError> {
        let mut definition = Self::parse_alias(text)?;
        if alias_class(text).is_none() {
            definition.class = MapClass::Implicit;
        }
        Ok(definition)
    }

    /// The specification of the file, if the map is one.
    ///
    /// # Errors
    /// [`SpecError::NotAFile`] for other classes, [`SpecError::BadValue`] for a column that is no number.
    pub fn into_file(self) -> Result<MapSpec, SpecError> {
        let MapClass::File(kind) = self.class else {
            return Err(SpecError::NotAFile {
                class: self.class.name().into(),
            });
        };
        let mut columns = TextColumns::default();
        if let Some(key) = self.number('k', 0, 65_535)? {
            columns.key = usize::try_from(key).unwrap_or(0);
        }
        if let Some(value) = self.number('v', 0, 65_535)? {
            columns.value = usize::try_from(value).ok();
        }
        if let Some(value) = self.value('z') {
            columns.delimiter = Some(one_byte(&format!("-z{value}"), value)?);
        }
        Ok(MapSpec {
            kind,
            name: PathBuf::from(self.rest),
            switches: self.switches,
            columns,
        })
    }

    /// Whether a switch of the class's own is set.
    pub fn has(&self, letter: char) -> bool {
        self.own.iter().any(|own| own.letter == letter)
    }

    /// The value of a switch of the class's own; the last one counts.
    pub fn value(&self, letter: char) -> Option<&str> {
        self.own
            .iter()
            .rev()
            .find(|own| own.letter == letter)
            .map(|own| own.value.as_str())
    }

    /// The value of a switch that takes a number.
    ///
    /// # Errors
    /// [`SpecError::BadValue`] if it is none, or out of range.
    pub fn number(&self, letter: char, min: u64, max: u64) -> Result<Option<u64>, SpecError> {
        let Some(value) = self.value(letter) else {
            return Ok(None);
        };
        match value.parse::<u64>() {
            Ok(number) if (min..=max).contains(&number) => Ok(Some(number)),
            _ => Err(self.bad_value(letter, format!("expected a number from {min} to {max}"))),
        }
    }

    /// The error of a switch whose value cannot be used.
    pub fn bad_value(&self, letter: char, reason: impl Into<String>) -> SpecError {
        SpecError::BadValue {
            switch: format!("-{letter}{}", self.value(letter).unwrap_or_default()),
            reason: reason.into(),
        }
    }

    /// The error of a rest that cannot be used.
    pub fn bad_argument(&self, reason: impl Into<String>) -> SpecError {
        SpecError::BadArgument {
            class: self.class.name().into(),
            argument: self.rest.chars().take(80).collect(),
            reason: reason.into(),
        }
    }

    /// The name errors and logs call the map: its file or address, else its class.
    pub fn label(&self) -> PathBuf {
        let shown = match self.class {
            MapClass::File(kind) => return kind.file_of(&PathBuf::from(&self.rest)),
            MapClass::Implicit | MapClass::Stab | MapClass::Sqlite | MapClass::Socket => {
                self.rest.clone()
            }
            MapClass::Program => {
                let program = self.rest.split_ascii_whitespace().next();
                program.unwrap_or_default().to_owned()
            }
            _ => self.class.name().to_owned(),
        };
        PathBuf::from(shown)
    }

    fn switch(
        &mut self,
        grammar: &Grammar,
        switch: &Word,
        text_left: &mut &str,
    ) -> Result<(), SpecError> {
        let shown = switch.text.as_str();
        let unknown = || SpecError::UnknownSwitch {
            switch: shown.into(),
            class: self.class.name().into(),
        };
        let mut chars = shown.chars();
        chars.next();
        let letter = chars.next().ok_or_else(unknown)?;
        let attached = chars.as_str();
        let mut value = attached.to_owned();
        if grammar.flags.contains(letter) {
            if !attached.is_empty() {
                return Err(unknown());
            }
        } else if grammar.apart.contains(letter) {
            if attached.is_empty() {
                let next = next_switch(text_left);
                if next.text.is_empty() || !next.is_closed {
                    return Err(SpecError::BadValue {
                        switch: shown.into(),
                        reason: "no value".into(),
                    });
                }
                value = next.text;
            }
        } else if !grammar.attached.contains(letter) {
            return Err(match letter {
                'D' => unsupported(shown, "lookups are not put off by delivery mode"),
                'S' => unsupported(shown, "it belongs to the class dequote"),
                _ => unknown(),
            });
        }
        // What -d and -z mean is the class's to say where it says so.
        let is_of_class = match letter {
            'd' => matches!(self.class, MapClass::Regex | MapClass::Ldap),
            _ => false,
        };
        match letter {
            'o' => self.switches.is_optional = true,
            'N' => self.switches.nul = NulRule::Only,
            'O' => self.switches.nul = NulRule::Never,
            'f' => self.switches.keeps_case = true,
            'm' => self.switches.answers_key = true,
            'a' => self.switches.append = value.into(),
            'T' => self.switches.temporary_tag = Some(value.into()),
            't' => self.switches.ignores_trouble = true,
            'A' => self.switches.merges_duplicates = true,
            // Keys are looked up with their quotes; it is the rulesets of Sendmail that would take them off.
            'q' => {}
            'd' if !is_of_class => self.switches.time_limit = Some(time(shown, &value)?),
            letter => self.own.push(OwnSwitch { letter, value }),
        }
        Ok(())
    }
}

fn unsupported(switch: &str, reason: &'static str) -> SpecError {
    SpecError::UnsupportedSwitch {
        switch: switch.into(),
        reason,
    }
}

/// A time as Sendmail writes it, `5`, `5s`, `2m`, `1h`; seconds where there is no unit.
fn time(switch: &str, value: &str) -> Result<Duration, SpecError> {
    let bad = || SpecError::BadValue {
        switch: switch.into(),
        reason: "expected a time from 1s to 1h, as in 5s or 2m".into(),
    };
    let (digits, unit) = match value.strip_suffix(['s', 'm', 'h']) {
        Some(digits) => (digits, value.get(digits.len()..).unwrap_or_default()),
        None => (value, "s"),
    };
    let seconds = match unit {
        "m" => 60,
        "h" => 3600,
        _ => 1,
    };
    let limit = digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(seconds))
        .map(Duration::from_secs)
        .ok_or_else(bad)?;
    if limit.is_zero() || limit > TIME_LIMIT_MAX {
        return Err(bad());
    }
    Ok(limit)
}

/// A word of a specification, its quotes taken off.
struct Word {
    text: String,
    /// Whether every quote that was opened was closed.
    is_closed: bool,
}

/// Takes the next word off, up to a blank.
fn next_word<'t>(text: &mut &'t str) -> Option<&'t str> {
    let trimmed = text.trim_start();
    let end = trimmed
        .find(|c: char| c.is_ascii_whitespace())
        .unwrap_or(trimmed.len());
    let (word, rest) = trimmed.split_at(end);
    *text = rest;
    (!word.is_empty()).then_some(word)
}

/// Takes the next switch or value off, up to a blank outside double quotes; the quotes are no part of it.
fn next_switch(text: &mut &str) -> Word {
    let trimmed = text.trim_start();
    let mut word = Word {
        text: String::new(),
        is_closed: true,
    };
    let mut end = trimmed.len();
    for (at, character) in trimmed.char_indices() {
        if character == '"' {
            word.is_closed = !word.is_closed;
        } else if character.is_ascii_whitespace() && word.is_closed {
            end = at;
            break;
        } else {
            word.text.push(character);
        }
    }
    *text = trimmed.get(end..).unwrap_or_default();
    word
}

impl std::str::FromStr for Definition {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        Self::parse(text)
    }
}

/// The class that stands before an alias file, and what follows it.
fn alias_class(text: &str) -> Option<(&str, &str)> {
    text.trim_start()
        .split_once(':')
        .filter(|(class, _)| !class.contains(['/', ' ', '\t', '-']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_that_are_no_files_keep_what_they_are_given() {
        let regex = Definition::parse("regex -b -s1,2 -d: -a@M  ^a  b$ ").unwrap();
        assert_eq!(regex.class, MapClass::Regex);
        assert_eq!(regex.rest, "^a  b$");
        assert!(regex.has('b') && !regex.has('n'));
        assert_eq!(regex.value('s'), Some("1,2"));
        assert_eq!(regex.value('d'), Some(":"));
        assert_eq!(regex.switches.append, b"@M");
        let dns = Definition::parse("dns -R MX -a. -d2m -r3").unwrap();
        assert_eq!(dns.value('R'), Some("MX"));
        assert_eq!(dns.number('r', 1, 10).unwrap(), Some(3));
        assert_eq!(dns.switches.time_limit, Some(Duration::from_secs(120)));
        let ldap = Definition::parse(
            "ldap -1 -h localhost -b\"o=Some Place, c=DE\" -k (&(cn=%0)(objectClass=x)) -v mail",
        )
        .unwrap();
        assert_eq!(ldap.value('b'), Some("o=Some Place, c=DE"));
        assert_eq!(ldap.value('k'), Some("(&(cn=%0)(objectClass=x))"));
        assert!(ldap.rest.is_empty());
        let sequence = Definition::parse_alias("sequence:one two").unwrap();
        assert_eq!(sequence.rest, "one two");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("sequence", "no map"),
            ("socket -k1 unix:/x", "-k1"),
            ("dns -R", "no value"),
            ("dns -RMX host", "nothing stands"),
            ("hash -d0 /x", "-d0"),
            ("hash -d5y /x", "-d5y"),
            ("hash -a\"open /x", "quotes"),
            ("hash -S /x", "dequote"),
            ("hash - /x", "unknown switch \"-\""),
            ("sequence -f a", "-f"),
            ("arith", "not built in"),
        ] {
            let error = Definition::parse(text).unwrap_err();
            assert!(error.to_string().contains(named), "{text}: {error}");
        }
        let dns = Definition::parse("dns -RMX -r99").unwrap();
        assert!(dns.number('r', 1, 10).is_err());
    }

    #[test]
    fn every_class_has_its_name() {
        for grammar in CLASSES {
            assert_eq!(MapClass::from_name(grammar.name).unwrap(), grammar.class);
            assert_eq!(grammar.class.name(), grammar.name);
        }
    }
}
