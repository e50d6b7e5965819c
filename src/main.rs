//! The program `sendmail`, which is also `mailq`, `newaliases` and `smtpd` by its name.
//!
//! Hands the command line to [`diligence::programs`] and ends with the exit code of sysexits(3) that comes back.

use std::env;
use std::process::ExitCode;

fn main() -> ExitCode {
    let command_line: Vec<_> = env::args_os().collect();
    diligence::programs::run(&command_line).into()
}
