//! How a tool ends before its time: what it says on standard error, and its exit status. Touches standard error alone.

use crate::setting::{EX_USAGE, Refusal};
use std::fmt::Display;
use std::process::ExitCode;

/// Why a tool ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    text: String,
    exit: u8,
}

impl Stop {
    /// Says `PROGRAM: TEXT`.
    #[must_use]
    pub fn new(program: &str, exit: u8, text: impl Display) -> Self {
        Self {
            text: format!("{program}: {text}\n"),
            exit,
        }
    }

    /// A command line that is wrong: what is, unless that is empty, and how it should be.
    #[must_use]
    pub fn usage(program: &str, text: &str, usage: &str) -> Self {
        let text = match text {
            "" => usage.to_owned(),
            text => format!("{program}: {text}\n{usage}"),
        };
        Self {
            text,
            exit: EX_USAGE,
        }
    }

    /// A tool that cannot start.
    #[must_use]
    pub fn refused(program: &str, refusal: &Refusal) -> Self {
        Self::new(program, refusal.exit, &refusal.text)
    }
}

/// Ends a program as its run did.
#[must_use]
pub fn end(run: Result<(), Stop>) -> ExitCode {
    match run {
        Ok(()) => ExitCode::SUCCESS,
        Err(stop) => {
            eprint!("{}", stop.text);
            ExitCode::from(stop.exit)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_says_what_is_wrong_and_how_it_should_be() {
        let stop = Stop::usage("x", "no such thing", "usage: x\n");
        assert_eq!(stop.text, "x: no such thing\nusage: x\n");
        assert_eq!((stop.exit, end(Err(stop))), (64, ExitCode::from(64)));
        assert_eq!(Stop::usage("x", "", "usage: x\n").text, "usage: x\n");
        let refusal = Refusal {
            text: "no".to_owned(),
            exit: 78,
        };
        let expected = Stop::new("x", 78, "no");
        assert_eq!(Stop::refused("x", &refusal), expected);
        assert_eq!(expected.text, "x: no\n");
    }
}
