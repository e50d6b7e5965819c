//! Where an address leads: `sendmail -bv`.
//!
//! Each argument is followed through aliases to its ends, each end on a line with its mailer; with `-v` the steps are
//! told too. Prints on standard output. Blocks: maps and the user database, as the router does.
//!
//! Source: sendmail(8), `-bv`.

use std::path::Path;
use std::sync::Arc;

use diligence_maps::{Definition, MapClass, MapSpec};
use nix::unistd::{AccessFlags, access};

use super::client_queue::relay_to_mta;
use super::submit::say;
use super::wiring::{self, System};
use crate::cli::Invocation;
use crate::config::host::HostName;
use crate::config::{Config, Role};
use crate::maillog::{QueueId, Severity, level_of};
use crate::route::{RouteError, Router, RouterParts, map_safety};
use crate::status::ExitCode;
use crate::users::Users;

/// What marks an end that mail can be sent to.
const DELIVERABLE: &str = "... deliverable: ";

/// Verifies the operands of the command line.
///
/// Blocks: disk and whatever NSS does.
#[must_use]
pub fn run(invocation: &Invocation, config: &Config) -> ExitCode {
    let arguments = &invocation.recipients;
    if arguments.is_empty() {
        say("Recipient names must be specified");
        return ExitCode::Usage;
    }
    // The submission program's settings, or a user who may not read all maps, do not show what the MTA will do.
    let is_privileged = nix::unistd::getuid().is_root() || config.sandbox.is_some();
    if config.role == Role::Msp || !is_privileged {
        say("Notice: -bv may give misleading output for non-privileged user");
    }
    let mut config = config.clone();
    if !is_privileged {
        read_texts_of_unreadable_maps(&mut config);
    }
    let config = &config;
    let router = match router(config) {
        Ok(router) => router,
        Err(error) => {
            say(&error.to_string());
            return ExitCode::Config;
        }
    };
    let mut code = ExitCode::Ok;
    let mut deliverable = Vec::new();
    for argument in arguments {
        let (lines, verdict) = router.verify_lines(argument, config.submit.verbose);
        for line in lines {
            // Sendmail tells what it finds on the way first and the ends of all arguments afterwards.
            if line.contains(DELIVERABLE) {
                deliverable.push(line);
            } else {
                say(&line);
            }
        }
        // The first trouble decides, as in Sendmail.
        if code == ExitCode::Ok {
            code = verdict;
        }
    }
    deliverable.sort_by_key(|line| host_of(line).to_ascii_lowercase());
    for line in deliverable {
        say(&line);
    }
    code
}

/// Has the texts of alias maps read whose databases this user may not read, as Sendmail does.
fn read_texts_of_unreadable_maps(config: &mut Config) {
    for text in &mut config.route.alias_files {
        let is_implicit = Definition::parse_alias_to_read(text)
            .is_ok_and(|definition| definition.class == MapClass::Implicit);
        let Some(spec) = MapSpec::parse_alias(text).ok().filter(|_| is_implicit) else {
            continue;
        };
        let readable = |path: &Path| access(path, AccessFlags::R_OK).is_ok();
        if spec.file().exists() && !readable(&spec.file()) && readable(&spec.name) {
            let name = spec.name.display();
            if config.submit.verbose {
                say(&format!(
                    "WARNING: cannot open alias database {name}; reading text version"
                ));
            }
            *text = format!("stab:{name}");
        }
    }
}

/// The host in an end's line, by which Sendmail sorts its recipients; empty if it has none.
fn host_of(line: &str) -> &str {
    let (_, end) = line.split_once(DELIVERABLE).unwrap_or_default();
    let (_, host) = end.split_once(", host ").unwrap_or_default();
    host.split_once(", user ").unwrap_or_default().0
}

/// A router as the daemon has it, or the client queue's runner.
fn router(config: &Config) -> Result<Router, RouteError> {
    if config.role == Role::Msp {
        let system = System::new(config);
        return wiring::client_router(config, &system, relay_to_mta(config));
    }
    let name = HostName::find(&config.host);
    let maillog = wiring::open_maillog(config, &name);
    let users = Users::new(
        config.paths.passwd_file.as_deref(),
        config.paths.home_directory.as_deref(),
    );
    Router::new(RouterParts::new(
        &config.route,
        name,
        wiring::interface_addresses(),
        Arc::new(users),
        Arc::new(move |text: &str| {
            maillog.write(Severity::Warning, level_of::ALWAYS, QueueId::None, text);
        }),
        wiring::map_opener(config, map_safety(&config.route)),
    )?)
}
