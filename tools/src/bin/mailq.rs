//! The program `mailq`: lists the queue. The same as `sendmail -bp`.

use std::env;
use std::ffi::OsString;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Called under any name, it is mailq.
    let mut command_line: Vec<OsString> = env::args_os().collect();
    match command_line.first_mut() {
        Some(name) => *name = OsString::from("mailq"),
        None => command_line.push(OsString::from("mailq")),
    }
    diligence::programs::run(&command_line).into()
}
