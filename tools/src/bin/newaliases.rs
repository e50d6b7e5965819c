//! The program `newaliases`: rebuilds the alias maps. The same as `sendmail -bi`.

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Called under any name, it is newaliases.
    let mut command_line: Vec<OsString> = env::args_os().collect();
    match command_line.first_mut() {
        Some(name) => *name = OsString::from("newaliases"),
        None => command_line.push(OsString::from("newaliases")),
    }
    diligence::programs::run(&command_line).into()
}
