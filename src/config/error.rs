//! What can be wrong with a configuration, and where.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Where a configuration error is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A line and column, both from 1; columns count characters.
    Column {
        /// The configuration file.
        file: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
    },
    /// A line, from 1, of a file.
    Line {
        /// The configuration file.
        file: PathBuf,
        /// Line, from 1.
        line: usize,
    },
    /// An option as it was typed: `-OTimeout.queuereturn=x`.
    CommandLine(String),
    /// A default that another option made wrong.
    Nowhere,
}

/// As a prefix: `/etc/mail/sendmail.toml:3:1: `, `-OX=y: ` or nothing.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Column { file, line, column } => {
                write!(f, "{}:{line}:{column}: ", file.display())
            }
            Self::Line { file, line } => write!(f, "{}:{line}: ", file.display()),
            Self::CommandLine(typed) => write!(f, "{typed}: "),
            Self::Nowhere => Ok(()),
        }
    }
}

/// Why there is no configuration. None of them mends itself by waiting, but
/// an unreadable file is the system's trouble, not the operator's text.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read; missing is the usual case.
    #[error("cannot read configuration file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is larger than [`CONFIG_FILE_LEN_MAX`](super::CONFIG_FILE_LEN_MAX)
    /// or is not text.
    #[error("configuration file {}: {reason}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it as a whole.
        reason: String,
    },
    /// The file is not TOML.
    #[error("{place}{message}")]
    Syntax {
        /// Where the reader stopped.
        place: Place,
        /// What the TOML reader expected.
        message: String,
    },
    /// No option of this name is known.
    #[error("{place}unknown option `{name}'{}", or_rather(.nearest.as_deref()))]
    Unknown {
        /// Where it stands.
        place: Place,
        /// The name given.
        name: String,
        /// The known name most like it, if one is.
        nearest: Option<String>,
    },
    /// `-O Name=value` with a name that is not Sendmail's. The text is
    /// Sendmail's own.
    #[error("readcf: unknown option name {name}{}", or_rather(.nearest.as_deref()))]
    UnknownOverride {
        /// The name given.
        name: String,
        /// The known name most like it, if one is.
        nearest: Option<String>,
    },
    /// `-oX` with a letter that is not Sendmail's. The text is Sendmail's own.
    #[error("readcf: unknown option name -o{letter}")]
    UnknownLetter {
        /// The letter given.
        letter: char,
    },
    /// An option of Sendmail's that this program does not honour.
    #[error("{place}option {name} is not supported{}", because(.advice))]
    NotSupported {
        /// Where it stands.
        place: Place,
        /// Sendmail's name for it.
        name: String,
        /// What to do instead, if anything.
        advice: &'static str,
    },
    /// A value of the wrong type, form or size.
    #[error("{place}{key}: {reason}")]
    BadValue {
        /// Where it stands.
        place: Place,
        /// The option's TOML key.
        key: String,
        /// What is wrong, and what would be right.
        reason: String,
    },
}

fn or_rather(name: Option<&str>) -> String {
    name.map_or_else(String::new, |name| format!("; did you mean `{name}'?"))
}

fn because(text: &str) -> String {
    if text.is_empty() {
        String::new()
    } else {
        format!(": {text}")
    }
}
