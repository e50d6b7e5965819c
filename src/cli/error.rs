//! What can be wrong with a command line. The texts are Sendmail's where it
//! has one, so that what a script looks for is still there.

use std::ffi::OsString;

use crate::config::duration::TimeError;
use crate::control::selection::PATTERN_BYTES_MAX;
use crate::status::{ExitCode, Verdict};

/// Why a command line is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CliError {
    /// A letter that sendmail(8) does not have.
    #[error("sendmail: illegal option -- {0}")]
    IllegalOption(char),
    /// A letter without the value it needs.
    #[error("sendmail: option requires an argument -- {0}")]
    ValueMissing(char),
    /// A long option that is not known.
    #[error("sendmail: unrecognized option `--{0}'")]
    UnknownLong(String),
    /// A long option without the value it needs.
    #[error("sendmail: option `--{0}' requires an argument")]
    LongValueMissing(String),
    /// A long option with a value that it does not take.
    #[error("sendmail: option `--{0}' doesn't allow an argument")]
    LongValueUnwanted(String),
    /// `-bX` with a letter that sendmail(8) does not have.
    #[error("Invalid operation mode {0}")]
    UnknownMode(String),
    /// A flag or mode of Sendmail's that is not built.
    #[error("sendmail: {flag} is not supported{}", because(.advice))]
    NotSupported {
        /// As it would be typed: `-bt`, `-X`.
        flag: String,
        /// What it would do, or what to do instead; may be empty.
        advice: &'static str,
    },
    /// `-f` or `-r` twice.
    #[error("More than one \"from\" person")]
    SenderTwice,
    /// `-N`, `-R` or `-V` twice.
    #[error("Duplicate -{0} flag")]
    Twice(char),
    /// `-N` with a word that is not known, or `never` with another.
    #[error("Invalid -N argument")]
    Notify,
    /// `-R` with neither `full` nor `hdrs`.
    #[error("Invalid -R value")]
    DsnReturn,
    /// `-V` with what is no xtext.
    #[error("Invalid syntax in -V flag")]
    EnvelopeId,
    /// `-B` with neither `7BIT` nor `8BITMIME`.
    #[error("Illegal body type {0}")]
    BodyType(String),
    /// `-h` without a number.
    #[error("Bad hop count ({0})")]
    HopCount(String),
    /// `-A` with neither `c` nor `m`.
    #[error("Invalid -A value {0} (c and m are known)")]
    Role(String),
    /// `-L` with what is no tag.
    #[error("Invalid -L value: {0}")]
    Tag(String),
    /// A time of `-q` that is none.
    #[error("{}", capitalised(.0))]
    QueueTime(TimeError),
    /// A group of `-qG` that is not there.
    #[error("Queue group {0} unknown")]
    QueueGroup(String),
    /// A `-q` of another wrong form.
    #[error("-q{text}: {reason}")]
    QueueFlag {
        /// What follows `-q`.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// `-Q` with a mode that is not about messages of the queue.
    #[error("Can not use -Q with {0}")]
    QuarantineMode(&'static str),
    /// `-Q` with a reason that is too long.
    #[error("Invalid -Q value: a reason has at most {PATTERN_BYTES_MAX} bytes")]
    QuarantineReason,
    /// `-o` without a letter, or `-O` without a name.
    #[error("-{0} needs an option")]
    OptionMissing(char),
    /// An argument that is not UTF-8.
    #[error("argument {0:?} is not UTF-8")]
    NotUtf8(OsString),
    /// No recipients where some are needed.
    #[error("Recipient names must be specified")]
    NoRecipients,
    /// Recipients, or `-t`, where none are wanted.
    #[error("{what} {} no meaning with {mode}", if .what.starts_with('-') { "has" } else { "have" })]
    Meaningless {
        /// `recipients` or `-t`.
        what: &'static str,
        /// The mode: `-bd`.
        mode: &'static str,
    },
}

impl CliError {
    /// What the program ends with: always `EX_USAGE`.
    #[must_use]
    pub const fn exit(&self) -> ExitCode {
        ExitCode::Usage
    }

    /// Always permanent: the command line has to be changed.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        Verdict::Permanent
    }

    /// Whether Sendmail prints it on standard output: it does for everything
    /// that it finds wrong itself, other than the form of the options.
    #[must_use]
    pub const fn is_on_standard_output(&self) -> bool {
        !matches!(
            self,
            Self::IllegalOption(_)
                | Self::ValueMissing(_)
                | Self::UnknownLong(_)
                | Self::LongValueMissing(_)
                | Self::LongValueUnwanted(_)
                | Self::NotSupported { .. }
        )
    }
}

fn because(advice: &str) -> String {
    if advice.is_empty() {
        String::new()
    } else {
        format!(": {advice}")
    }
}

/// Sendmail's messages about times begin with a capital.
fn capitalised(error: &TimeError) -> String {
    let text = error.to_string();
    let mut letters = text.chars();
    letters
        .next()
        .map(|first| first.to_ascii_uppercase())
        .into_iter()
        .chain(letters)
        .collect()
}
