//! The program `mail.local`: puts messages into the mailboxes of local users. Its file is called `mail-local`, as Cargo
//! allows no dot in it; install it as `mail.local`.
//!
//! Takes the mailbox directory and the users from the configuration, or has the defaults where that cannot be read. All
//! else is the library's `programs::mail_local`.

use std::ffi::OsString;
use std::process::ExitCode;

use diligence::config::{Config, Role};
use diligence_tools::setting;

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let sandbox = match setting::find_sandbox(None) {
        Ok(sandbox) => sandbox,
        Err(refusal) => {
            eprintln!("mail.local: {}", refusal.text);
            return ExitCode::from(refusal.exit);
        }
    };
    let config = match setting::load_config(None, sandbox.as_deref()) {
        Ok(config) => config,
        // It may be run as anybody, also as a user who may not read the configuration.
        Err(refusal) if refusal.exit == setting::EX_NOINPUT => {
            Config::defaults(Role::Mta, sandbox.as_deref())
        }
        Err(refusal) => {
            eprintln!("mail.local: {}", refusal.text);
            return ExitCode::from(refusal.exit);
        }
    };
    ExitCode::from(diligence::programs::mail_local::run(&config, &arguments))
}
