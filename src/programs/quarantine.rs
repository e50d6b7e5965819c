//! `sendmail -Q[reason]`: messages of the queue are quarantined, or released if no reason is given.
//!
//! The owner of the queue is asked; without one this process becomes it. Either way the program ends with 0 only when
//! all of it is durable. Those who may are root and the user whose the queue is. What is quarantined says so to
//! `mailq -qQ`, and is neither tried nor expires.
//! Blocks: disk, or the owner of the queue. Source: sendmail(8); transcript 20 of 8.17.1, `quarantine`.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use super::client_queue::Absorber;
use super::open_spool::{OpenError, OpenSpool};
use super::wiring::System;
use crate::config::{Config, Role};
use crate::control::change::Change;
use crate::control::listing::Listed;
use crate::control::selection::Selection;
use crate::control::{ControlError, Conversation, Request};
use crate::maillog::{QueueId, Severity};
use crate::spool::SpoolError;
use crate::spool::drop_file::DropError;
use crate::status::ExitCode;

/// Sendmail's words for who may not.
const NOT_TRUSTED: &str = "Permission denied (real uid not trusted)";
/// The LogLevel at which attempts of those who may not are logged. Source: Sendmail's main.c.
const ATTEMPT_LOG_LEVEL: u32 = 5;

/// Why nothing, or not all, was changed.
#[derive(Debug, thiserror::Error)]
enum ChangeError {
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Drop(#[from] DropError),
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

impl ChangeError {
    fn exit(&self) -> ExitCode {
        match self {
            Self::Control(ControlError::Refused { exit, .. }) => {
                ExitCode::from_code(*exit).unwrap_or(ExitCode::Software)
            }
            Self::Control(_) | Self::Spool(_) => ExitCode::TempFail,
            Self::Open(error) if error.is_locked() => ExitCode::TempFail,
            Self::Open(error) if error.is_misplaced() => ExitCode::Config,
            Self::Open(_) | Self::Drop(_) => ExitCode::OsErr,
        }
    }
}

/// Changes the selected messages of the queue of this configuration's role.
#[must_use]
pub fn run(config: &Config, change: &Change, selection: &Selection) -> ExitCode {
    if !is_trusted(&config.paths.queue_directory) {
        let uid = rustix::process::getuid().as_raw();
        let text = format!("user {uid} attempted to quarantine jobs");
        System::new(config).maillog.write(
            Severity::Alert,
            ATTEMPT_LOG_LEVEL,
            QueueId::Omitted,
            &text,
        );
        // Sendmail says it on standard output, and ends with EX_USAGE.
        println!("{NOT_TRUSTED}");
        return ExitCode::Usage;
    }
    let changed = match ask_owner(config, change, selection) {
        Err(ControlError::NoOwner { .. }) => change_as_owner(config, change, selection),
        asked => asked.map_err(ChangeError::from),
    };
    match changed {
        Ok(()) => ExitCode::Ok,
        Err(error) => {
            eprintln!("sendmail: {error}");
            error.exit()
        }
    }
}

/// Whether the caller is root or the user whose the queue is.
fn is_trusted(queue: &Path) -> bool {
    let uid = rustix::process::getuid();
    uid.is_root() || std::fs::metadata(queue).is_ok_and(|found| found.uid() == uid.as_raw())
}

fn ask_owner(config: &Config, change: &Change, selection: &Selection) -> Result<(), ControlError> {
    let request = Request::Change {
        change: change.clone(),
        selection: selection.clone(),
    };
    let mut conversation = Conversation::begin(&config.paths.control_socket, &request)?;
    // Says which; the log does so, too.
    while conversation.next_frame()?.is_some() {}
    Ok(())
}

fn change_as_owner(
    config: &Config,
    change: &Change,
    selection: &Selection,
) -> Result<(), ChangeError> {
    let system = System::new(config);
    super::end_on_panic(Some(system.maillog.clone()), None);
    let directory = &config.paths.queue_directory;
    let clock = Arc::clone(&system.clock);
    let open = OpenSpool::open(directory, &config.spool, clock, &system.maillog)?;
    let changed = (|| {
        if config.role == Role::Msp {
            let absorber = Absorber::new(directory, config, open.spool.clone(), &system);
            absorber.settle()?;
            absorber.absorb_all();
        }
        let by = format!("uid {}", rustix::process::getuid().as_raw());
        let mut begun = Vec::new();
        for id in open.spool.ids() {
            // One that can't be read is found and held by the engine itself.
            let Ok(message) = open.spool.message(id) else {
                continue;
            };
            let listed = Listed::of(&message, system.clock.unix_ms());
            if selection.holds_for(&listed) && change.is_due(&listed) {
                begun.push((id, change.begin(&open.spool, id, &by)?));
            }
        }
        for (id, ticket) in begun {
            ticket.wait()?;
            change.log(&system.maillog, id);
        }
        Ok(())
    })();
    open.close();
    changed
}
