//! What can be wrong with a configuration, and where.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::status::{ExitCode, Verdict};

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

impl ConfigError {
    /// What a program ends with that has no configuration. As Sendmail, an
    /// unknown option of the command line is `EX_SOFTWARE`.
    #[must_use]
    pub const fn exit(&self) -> ExitCode {
        match self {
            Self::UnknownOverride { .. } | Self::UnknownLetter { .. } => ExitCode::Software,
            Self::NotSupported {
                place: Place::CommandLine(_),
                ..
            }
            | Self::BadValue {
                place: Place::CommandLine(_),
                ..
            } => ExitCode::Usage,
            _ => ExitCode::Config,
        }
    }

    /// Permanent for what an operator wrote; temporary for a file that the
    /// system did not give us for another reason than that it is missing.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Read { source, .. } if source.kind() != io::ErrorKind::NotFound => {
                Verdict::Temporary
            }
            _ => Verdict::Permanent,
        }
    }
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{Config, Override, Request};
    use super::*;

    fn error(text: &str, option: &str) -> ConfigError {
        let overrides = [Override::from_assignment(option)];
        let request = Request {
            overrides: &overrides,
            ..Request::default()
        };
        Config::from_text(&request, Path::new("/x.toml"), text).unwrap_err()
    }

    #[test]
    fn who_made_the_mistake_decides_the_exit_code() {
        assert_eq!(error("", "Nosuch=1").exit(), ExitCode::Software);
        assert_eq!(error("", "TrustedUser=x").exit(), ExitCode::Usage);
        assert_eq!(error("", "LogLevel=x").exit(), ExitCode::Usage);
        assert_eq!(error("nosuch = 1", "LogLevel=9").exit(), ExitCode::Config);
        assert_eq!(
            error("log_level = 'x'", "LogLevel=9").exit(),
            ExitCode::Config
        );
    }

    #[test]
    fn an_unreadable_file_may_be_readable_later_a_missing_one_has_to_be_made() {
        let read = |kind| ConfigError::Read {
            path: PathBuf::from("/x"),
            source: io::Error::from(kind),
        };
        assert_eq!(read(io::ErrorKind::NotFound).verdict(), Verdict::Permanent);
        assert_eq!(
            read(io::ErrorKind::OutOfMemory).verdict(),
            Verdict::Temporary
        );
    }
}
