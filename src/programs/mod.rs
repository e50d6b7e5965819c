//! The programs in one: what `sendmail` does as a daemon, as a submitter, as `mailq`, `newaliases` and the like (L5).
//!
//! [`run`] reads the command line, settles whose rights count, opens the sandbox if one is named, reads the
//! configuration, and hands over to the program that is asked for. Each file here is one of them and returns an exit
//! code, which `main` ends with. Blocks: as the program does.

pub mod background;
pub mod client_queue;
pub mod daemon;
pub mod mail_local;
pub mod mailq;
pub mod mapd;
pub mod newaliases;
pub mod open_spool;
pub mod owned_queue;
pub mod privileged_part;
pub mod quarantine;
pub mod queue_run;
pub mod run_file;
pub mod submit;
pub mod verify;
pub mod wiring;

use std::env;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::panic::PanicHookInfo;
use std::path::{Path, PathBuf};

use crate::cli::{self, CliError, Inspection, Invocation, Mode, QueueTiming};
use crate::config::host::HostName;
use crate::config::sandbox::{self, Missing, SANDBOX_VARIABLE, SandboxError};
use crate::config::{Config, ConfigError, Request, set_id};
use crate::control::selection::Selection;
use crate::maillog::{Maillog, QueueId, Severity};
use crate::status::ExitCode;
use daemon::{Place, Plan};
use mailq::Detail;
use queue_run::Shown;

/// The name of a client queue's folder of messages that wait for its owner (SPOOL 9).
pub const DROP_FOLDER: &str = "drop";

/// Why no program was run.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("cannot give up set-id rights: {0}")]
    Rights(io::Error),
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl StartError {
    const fn exit(&self) -> ExitCode {
        match self {
            Self::Rights(_) => ExitCode::OsErr,
            Self::Sandbox(_) | Self::Config(_) => ExitCode::Config,
        }
    }
}

/// Runs the program that a command line asks for, the program's name first, and gives its exit code.
///
/// Blocks: until the program ends.
#[must_use]
pub fn run(command_line: &[OsString]) -> ExitCode {
    end_on_panic(None, None);
    let invocation = match Invocation::parse(command_line) {
        Ok(invocation) => invocation,
        Err(error) => return refuse(&error),
    };
    match invocation.inspection {
        Some(Inspection::Help) => return print(cli::HELP),
        Some(Inspection::Version) => return print(&cli::version()),
        _ => {}
    }
    let config = match settings(&invocation) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("sendmail: {error}");
            return error.exit();
        }
    };
    if invocation.shows_version {
        let shown = print(&cli::identity(&HostName::find(&config.host)));
        if shown != ExitCode::Ok {
            return shown;
        }
    }
    match invocation.inspection {
        Some(Inspection::PrintConfig) => return print(&config.report()),
        Some(Inspection::CheckConfig) => {
            return print(&format!("{}: ok\n", config.file.display()));
        }
        _ => {}
    }
    dispatch(&invocation, &config, command_line)
}

fn dispatch(invocation: &Invocation, config: &Config, command_line: &[OsString]) -> ExitCode {
    let selection = invocation
        .queue_run
        .as_ref()
        .map_or_else(Selection::default, |run| run.selection.clone());
    let timing = invocation.queue_run.as_ref().map(|run| run.timing);
    let run_interval = match timing {
        Some(QueueTiming::Every(interval)) => Some(interval),
        _ => None,
    };
    let plan = |place, listens| Plan {
        place,
        listens,
        run_interval,
        runs_at_start: timing.is_some(),
        command_line,
    };
    if let Some(change) = &invocation.quarantine {
        return quarantine::run(config, change, &selection);
    }
    match (invocation.mode, timing) {
        (Mode::PrintQueue, _) => {
            let detail = if config.submit.verbose {
                Detail::Verbose
            } else {
                Detail::Short
            };
            mailq::run(config, &selection, detail)
        }
        (Mode::Verify, _) => verify::run(invocation, config),
        (Mode::RebuildAliases, _) => newaliases::run(config),
        (Mode::Daemon, _) => daemon::run(config, &plan(Place::Background, true)),
        (Mode::DaemonForeground, _) => daemon::run(config, &plan(Place::Foreground, true)),
        (Mode::Deliver, Some(QueueTiming::Every(_))) => {
            daemon::run(config, &plan(Place::Background, false))
        }
        (Mode::Deliver, Some(_)) => {
            let shown = if config.submit.verbose {
                Shown::Dialogues
            } else {
                Shown::Nothing
            };
            queue_run::run(config, &selection, shown)
        }
        (Mode::Deliver, None) => submit::run(invocation, config),
        (Mode::SmtpSession, _) => submit::stdin_session::run(config),
    }
}

/// Settles rights, opens the sandbox, and reads the configuration.
fn settings(invocation: &Invocation) -> Result<Config, StartError> {
    // Asked before the rights are given up: a variable that came with them stays unbelieved.
    let had_set_id_rights = set_id::has_set_id_rights();
    invocation.settle_rights().map_err(StartError::Rights)?;
    let variable = env::var_os(SANDBOX_VARIABLE);
    let folder = invocation.sandbox_dir(variable.as_deref(), had_set_id_rights);
    let folder: Option<PathBuf> = match folder {
        Some(folder) => Some(sandbox::open(&folder, missing(invocation))?.dir),
        None => None,
    };
    let mut config = Config::load(&Request {
        role: invocation.role(),
        file: invocation.config_file.as_deref(),
        sandbox: folder.as_deref(),
        overrides: &invocation.overrides,
    })?;
    if folder.is_none() && others_may_write(&config.file) {
        eprintln!(
            "{}: WARNING: dangerous write permissions",
            config.file.display()
        );
    }
    if let Some(tag) = &invocation.syslog_tag {
        config.log.syslog_tag.clone_from(tag);
    }
    Ok(config)
}

/// Whether others than a file's owner may write to it.
fn others_may_write(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|seen| seen.permissions().mode() & 0o022 != 0)
}

/// Programs that only look make no sandbox.
fn missing(invocation: &Invocation) -> Missing {
    match invocation.mode {
        Mode::PrintQueue | Mode::Verify => Missing::Refuse,
        _ if invocation.inspection.is_some() => Missing::Refuse,
        _ => Missing::Make,
    }
}

fn refuse(error: &CliError) -> ExitCode {
    if error.is_on_standard_output() {
        // The exit code says it, too, if nobody reads.
        let _ = print(&format!("{error}\n"));
    } else {
        eprintln!("{error}");
    }
    error.exit()
}

fn print(text: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::Ok,
        Err(_) => ExitCode::IoErr,
    }
}

/// What is tried after a panic instead of ending; it returns if it did not work, or was not to be.
pub(crate) type AfterPanic = Box<dyn Fn() + Send + Sync>;

/// Makes a panic of any thread end the process with `EX_SOFTWARE`, after the log, if there is one, has been told. What
/// was acknowledged is in the journal; going on with broken promises between our own modules would risk more.
pub(crate) fn end_on_panic(maillog: Option<Maillog>, instead: Option<AfterPanic>) {
    std::panic::set_hook(Box::new(move |info: &PanicHookInfo<'_>| {
        let text = format!("panic: {info}").replace('\n', " ");
        eprintln!("sendmail: {text}");
        if let Some(maillog) = &maillog {
            maillog.write(Severity::Alert, 0, QueueId::None, &text);
        }
        if let Some(instead) = &instead {
            instead();
        }
        std::process::exit(i32::from(ExitCode::Software as u8));
    }));
}
