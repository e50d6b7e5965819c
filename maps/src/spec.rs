//! A map that is a file, as it is written in a configuration: class, switches, file, in Sendmail's syntax.
//!
//! `hash -o -T<TMPF> -a.x /etc/mail/access`. `definition.rs` takes the text apart, for these and for all other classes;
//! here is what comes of it: the switches that mean the same everywhere, those of `text`, and what can be wrong.
//! Pure: touches no file. Source: sendmail's op.me 5.12 (K lines).

use crate::{Definition, MapKind, Verdict};
use std::path::PathBuf;
use std::time::Duration;

/// Which forms of a key are tried in a file: without and with the trailing NUL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NulRule {
    /// Both, as the file was written.
    #[default]
    Both,
    /// `-N`: only with NUL.
    Only,
    /// `-O`: only without.
    Never,
}

/// `-k`, `-v`, `-z` of a text map: which column is the key, which the value, and what separates columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextColumns {
    /// Column of the key, counted from 0.
    pub key: usize,
    /// Column of the value, counted from 0; `None`: the whole line.
    pub value: Option<usize>,
    /// The separating byte; `None`: any run of blanks.
    pub delimiter: Option<u8>,
}

impl Default for TextColumns {
    fn default() -> Self {
        Self {
            key: 0,
            value: Some(1),
            delimiter: None,
        }
    }
}

/// The switches that mean the same to every class; they are applied once, above the formats.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Switches {
    /// `-o`: a file that does not exist counts as an empty map.
    pub is_optional: bool,
    /// `-N`, `-O`.
    pub nul: NulRule,
    /// `-f`: keys are looked up as they are, not in lower case.
    pub keeps_case: bool,
    /// `-m`: the answer is the key, not its value.
    pub answers_key: bool,
    /// `-a`: appended to what is found.
    pub append: Vec<u8>,
    /// `-T`: appended to the key to make an answer when the lookup did not work.
    pub temporary_tag: Option<Vec<u8>>,
    /// `-t`: a lookup that did not work counts as absent.
    pub ignores_trouble: bool,
    /// `-A`: an alias given twice has its values joined instead of replaced, when the map is built.
    pub merges_duplicates: bool,
    /// `-d`: how long a lookup, or the first opening of a file that is being rebuilt, may take.
    pub time_limit: Option<Duration>,
}

/// A parsed specification of a map that is a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapSpec {
    /// The class.
    pub kind: MapKind,
    /// The map's name as written; [`MapKind::file_of`] makes the file's name of it.
    pub name: PathBuf,
    /// The switches that all classes share.
    pub switches: Switches,
    /// `-k`, `-v`, `-z` of the class `text`.
    pub columns: TextColumns,
}

/// A specification that cannot be used as it is written. The text names what is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// No class of this name.
    #[error("unknown map class \"{class}\"")]
    UnknownClass {
        /// As written.
        class: String,
    },
    /// A class of Sendmail's that this build does not have.
    #[error("map class \"{class}\" is not built in")]
    NotBuiltIn {
        /// As written.
        class: String,
    },
    /// A switch the class does not have.
    #[error("unknown switch \"{switch}\" for map class {class}")]
    UnknownSwitch {
        /// As written, with the dash.
        switch: String,
        /// The class's name.
        class: String,
    },
    /// A class that is no file, where one is needed.
    #[error("map class \"{class}\" is not kept in a file")]
    NotAFile {
        /// The class's name.
        class: String,
    },
    /// A map named in a sequence or by a service switch that is not defined.
    #[error("map \"{map}\": unknown member map \"{member}\"")]
    UnknownMember {
        /// The map that names it.
        map: String,
        /// The name.
        member: String,
    },
    /// Maps that lead to each other without end, or too many one upon another.
    #[error("map \"{map}\": {reason}")]
    Stacked {
        /// The map.
        map: String,
        /// What was expected.
        reason: &'static str,
    },
    /// What stands after the switches cannot be used: a pattern, an address, a type of record.
    #[error("map class {class}: \"{argument}\": {reason}")]
    BadArgument {
        /// The class's name.
        class: String,
        /// As written, cut to 80 characters.
        argument: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A switch of Sendmail's that is not supported.
    #[error("switch \"{switch}\" is not supported: {reason}")]
    UnsupportedSwitch {
        /// As written, with the dash.
        switch: String,
        /// Why.
        reason: &'static str,
    },
    /// A switch without its value, or with one that does not parse.
    #[error("switch \"{switch}\": {reason}")]
    BadValue {
        /// As written, with the dash.
        switch: String,
        /// What was expected.
        reason: String,
    },
    /// No file is given, or more than one, or the text is empty or too long.
    #[error("map specification \"{spec}\": {reason}")]
    Malformed {
        /// As written, cut to 80 characters.
        spec: String,
        /// What was expected.
        reason: String,
    },
}

impl SpecError {
    /// Always permanent: the configuration has to be changed.
    pub fn verdict(&self) -> Verdict {
        Verdict::Permanent
    }
}

impl MapSpec {
    /// A specification without switches.
    pub fn new(kind: MapKind, name: impl Into<PathBuf>) -> Self {
        Self {
            kind,
            name: name.into(),
            switches: Switches::default(),
            columns: TextColumns::default(),
        }
    }

    /// Parses "class switches file" of a class that is a file.
    ///
    /// # Errors
    /// [`SpecError`], naming the class, switch or value that is wrong.
    pub fn parse(text: &str) -> Result<Self, SpecError> {
        Definition::parse(text)?.into_file()
    }

    /// Parses a value of the option AliasFile: "file", "class:file" or "class:switches file"; the class is `hash`
    /// when none is written.
    ///
    /// # Errors
    /// As [`MapSpec::parse`].
    pub fn parse_alias(text: &str) -> Result<Self, SpecError> {
        Definition::parse_alias(text)?.into_file()
    }

    /// The file behind the map.
    pub fn file(&self) -> PathBuf {
        self.kind.file_of(&self.name)
    }
}

/// The one byte of `-z`.
pub(crate) fn one_byte(switch: &str, value: &str) -> Result<u8, SpecError> {
    match value.as_bytes() {
        [b'\\', b'n'] => Ok(b'\n'),
        [b'\\', b't'] => Ok(b'\t'),
        [b'\\', b'\\'] => Ok(b'\\'),
        [byte] => Ok(*byte),
        _ => Err(SpecError::BadValue {
            switch: switch.into(),
            reason: "expected one byte, \\t or \\n".into(),
        }),
    }
}

/// A value as it has to be written to be read back: in quotes where blanks are in it.
fn quoted(value: &str) -> std::borrow::Cow<'_, str> {
    if value.contains(char::is_whitespace) {
        format!("\"{value}\"").into()
    } else {
        value.into()
    }
}

impl std::str::FromStr for MapSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        Self::parse(text)
    }
}

/// Each switch that is set, a blank before it.
impl std::fmt::Display for Switches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (set, switch) in [
            (self.is_optional, "-o"),
            (self.nul == NulRule::Only, "-N"),
            (self.nul == NulRule::Never, "-O"),
            (self.keeps_case, "-f"),
            (self.answers_key, "-m"),
            (self.ignores_trouble, "-t"),
            (self.merges_duplicates, "-A"),
        ] {
            if set {
                write!(f, " {switch}")?;
            }
        }
        if let Some(tag) = &self.temporary_tag {
            write!(f, " -T{}", quoted(&String::from_utf8_lossy(tag)))?;
        }
        if !self.append.is_empty() {
            write!(f, " -a{}", quoted(&String::from_utf8_lossy(&self.append)))?;
        }
        if let Some(limit) = self.time_limit {
            write!(f, " -d{}s", limit.as_secs())?;
        }
        Ok(())
    }
}

impl std::fmt::Display for MapSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.kind.name())?;
        write!(f, "{}", self.switches)?;
        if self.kind == MapKind::Text && self.columns != TextColumns::default() {
            write!(f, " -k{}", self.columns.key)?;
            if let Some(value) = self.columns.value {
                write!(f, " -v{value}")?;
            }
            match self.columns.delimiter {
                Some(b'\t') => f.write_str(" -z\\t")?,
                Some(b'\n') => f.write_str(" -z\\n")?,
                Some(byte) => write!(f, " -z{}", char::from(byte))?,
                None => {}
            }
        }
        write!(f, " {}", self.name.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn sendmails_usual_lines_parse() {
        let spec = MapSpec::parse("hash -o -T<TMPF> /etc/mail/access").unwrap();
        assert_eq!(spec.kind, MapKind::Hash);
        assert!(spec.switches.is_optional);
        assert_eq!(spec.switches.temporary_tag.as_deref(), Some(&b"<TMPF>"[..]));
        assert_eq!(spec.file(), Path::new("/etc/mail/access.db"));
        let spec = MapSpec::parse("text -k1 -v2 -z: -f -m -a.x /l").unwrap();
        assert_eq!(spec.columns.key, 1);
        assert_eq!(spec.columns.value, Some(2));
        assert_eq!(spec.columns.delimiter, Some(b':'));
        assert!(spec.switches.keeps_case && spec.switches.answers_key);
        assert_eq!(spec.switches.append, b".x");
    }

    #[test]
    fn printing_and_parsing_agree() {
        for text in [
            "hash -o -N -f -m -t -A -T<TMPF> -a.x -d5s /etc/mail/access",
            "hash -a\" x\" /etc/mail/access",
            "text -k3 -v1 -z\\t /x",
            "btree -O /y",
        ] {
            let spec: MapSpec = text.parse().unwrap();
            assert_eq!(spec.to_string(), text);
        }
    }

    #[test]
    fn alias_files_default_to_hash() {
        let spec = MapSpec::parse_alias("/etc/mail/aliases").unwrap();
        assert_eq!(spec.to_string(), "hash /etc/mail/aliases");
        let spec = MapSpec::parse_alias("btree:-A /a").unwrap();
        assert_eq!(spec.to_string(), "btree -A /a");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("hsah /x", "hsah"),
            ("nis /x", "not built in"),
            ("ldap -kx", "not kept in a file"),
            ("hash -Z /x", "-Z"),
            ("hash -k1 /x", "-k1"),
            ("hash -oN /x", "-oN"),
            ("text -kfirst /x", "-kfirst"),
            ("hash -D /x", "-D"),
            ("hash -o", "no file"),
            ("hash /x /y", "more than one"),
            ("", "no class"),
        ] {
            let error = MapSpec::parse(text).unwrap_err();
            assert!(error.to_string().contains(named), "{text}: {error}");
            assert_eq!(error.verdict(), Verdict::Permanent);
        }
        assert!(MapSpec::parse(&"x".repeat(5000)).is_err());
    }
}
