//! One run of the queue: `sendmail -q`, with `-qI`, `-qR`, `-qS`, `-v`, and `-Ac`.
//!
//! The owner of the queue is asked to run it; it never matters to the caller who owns the lock. Without an owner this
//! process becomes it for the run: it tries every message that is meant once, in the order of the listing, then the
//! reports that came of it, and ends.
//! Blocks: with `-v`, or without an owner, until the run has ended.
//!
//! Source: sendmail(8); transcripts 10 and 20 of 8.17.1.

use std::collections::HashSet;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use tokio::runtime::Builder;
use tokio::sync::mpsc;

use super::client_queue::{Absorber, relay_to_mta};
use super::open_spool::{OpenError, OpenSpool};
use super::owned_queue::OwnedQueue;
use super::privileged_part::Half;
use super::wiring::{self, System};
use crate::config::{Config, DeliveryMode, Role};
use crate::control::listing::Listed;
use crate::control::selection::{Kind, Selection};
use crate::control::{ControlError, Conversation, Frame, Request};
use crate::envelope::MessageId;
use crate::privileged::Part;
use crate::queue::WATCHERS_MAX;
use crate::route::RouteError;
use crate::spool::Spool;
use crate::spool::drop_file::DropError;
use crate::status::ExitCode;

/// How often reports are looked for after a run: those of its messages, and those of reports that failed.
const REPORT_ROUNDS_MAX: usize = 2;

/// What a run shows on standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// Nothing.
    Nothing,
    /// `-v`: each message and its dialogues.
    Dialogues,
}

/// Why there was no run.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Spool(#[from] OpenError),
    #[error(transparent)]
    Route(#[from] RouteError),
    #[error(transparent)]
    Drop(#[from] DropError),
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl RunError {
    fn exit(&self) -> ExitCode {
        match self {
            Self::Control(ControlError::Refused { exit, .. }) => {
                ExitCode::from_code(*exit).unwrap_or(ExitCode::Software)
            }
            Self::Control(_) => ExitCode::TempFail,
            Self::Spool(error) if error.is_locked() => ExitCode::TempFail,
            Self::Spool(error) if error.is_misplaced() => ExitCode::Config,
            Self::Spool(_) | Self::Drop(_) => ExitCode::OsErr,
            Self::Route(_) => ExitCode::Config,
            Self::Io(_) => ExitCode::IoErr,
        }
    }
}

/// Runs the queue of this configuration's role once.
#[must_use]
pub fn run(config: &Config, selection: &Selection, shown: Shown) -> ExitCode {
    match ask_owner(&config.paths.control_socket, selection, shown) {
        Err(RunError::Control(ControlError::NoOwner { .. })) => {
            run_divided(config, selection, shown)
        }
        asked => exit_of(asked),
    }
}

/// Becomes the queue's owner; started by root, as the daemon would, with the daemon's rights and a privileged part. A
/// daemon's own runs, which have threads already, have no rights to divide.
fn run_divided(config: &Config, selection: &Selection, shown: Shown) -> ExitCode {
    let half = match super::daemon::divide(config, &[]) {
        Ok(Some(Half::Part(half))) => {
            let served = half.serve().map(|(code, _)| code);
            return served.unwrap_or_else(|error| exit_of(Err(error.into())));
        }
        Ok(Some(Half::Daemon(half))) => {
            let given = half.give_places(config).and_then(|()| half.give_up_root());
            if let Err(error) = given {
                return exit_of(Err(error.into()));
            }
            Some(half)
        }
        Ok(None) => None,
        Err(error) => {
            eprintln!("sendmail: {error}");
            return ExitCode::Config;
        }
    };
    exit_of(run_as_owner(
        config,
        half.map(|half| half.part),
        selection,
        shown,
    ))
}

fn exit_of(ran: Result<(), RunError>) -> ExitCode {
    match ran {
        Ok(()) => ExitCode::Ok,
        // The reader of a pipe has seen enough; the run goes on without it.
        Err(RunError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::Ok,
        Err(error) => {
            eprintln!("sendmail: {error}");
            error.exit()
        }
    }
}

fn ask_owner(socket: &Path, selection: &Selection, shown: Shown) -> Result<(), RunError> {
    let request = Request::Run {
        selection: selection.clone(),
        is_watched: shown == Shown::Dialogues,
    };
    let mut conversation = Conversation::begin(socket, &request)?;
    let mut out = io::stdout().lock();
    while let Some(frame) = conversation.next_frame()? {
        if let Frame::Text(line) = frame {
            writeln!(out, "{line}")?;
            out.flush()?;
        }
    }
    Ok(())
}

fn run_as_owner(
    config: &Config,
    part: Option<Arc<Part>>,
    selection: &Selection,
    shown: Shown,
) -> Result<(), RunError> {
    let mut system = System::new(config);
    system.part = part;
    super::end_on_panic(Some(system.maillog.clone()), None);
    let open = OpenSpool::open(
        &config.paths.queue_directory,
        &config.spool,
        Arc::clone(&system.clock),
        &system.maillog,
    )?;
    let spool = open.spool.clone();
    let router = match config.role {
        Role::Mta => wiring::router(config, &system)?,
        Role::Msp => wiring::client_router(config, &system, relay_to_mta(config))?,
    };
    if config.role == Role::Msp {
        let directory = &config.paths.queue_directory;
        let absorber = Absorber::new(directory, config, spool.clone(), &system);
        absorber.settle()?;
        absorber.absorb_all();
    }
    // Nothing is tried but what is told to: a run with limits leaves the rest alone.
    let mut run_config = config.clone();
    run_config.queue.delivery_mode = DeliveryMode::Queue;
    // One thread: between the start of the queue and the first wait nothing is tried, so that no line is missed.
    let runtime = Builder::new_current_thread().enable_all().build()?;
    let (ran, open) = runtime.block_on(async {
        let router = Arc::new(router);
        let resolver = wiring::resolver(&run_config);
        let mailers = wiring::mailers(&run_config, &system, &router, resolver);
        let owned = OwnedQueue::start(open, &run_config, &system, &router, mailers, None);
        let run = Run {
            owned: &owned,
            directory: &config.paths.queue_directory,
            ids: selected(&spool, selection, system.clock.unix_ms()),
            kind: selection.kind,
        };
        let mut known: HashSet<MessageId> = spool.ids().into_iter().collect();
        let ran = run.try_all(shown).await;
        owned.queue.finished().await;
        // Nobody else puts messages into a queue that this process owns.
        for _ in 0..REPORT_ROUNDS_MAX {
            let mut reports: HashSet<MessageId> = spool.ids().into_iter().collect();
            reports.retain(|id| known.insert(*id));
            if reports.is_empty() {
                break;
            }
            owned.queue.run_now(|id| reports.contains(&id));
            owned.queue.finished().await;
        }
        (ran, owned.stop().await)
    });
    drop(runtime);
    open.close();
    Ok(ran?)
}

/// The messages that are meant, in the order of the listing. Blocks: disk.
fn selected(spool: &Spool, selection: &Selection, now_unix_ms: u64) -> Vec<MessageId> {
    let mut found: Vec<(u64, MessageId)> = spool
        .ids()
        .into_iter()
        .filter_map(|id| spool.message(id).ok())
        .map(|message| Listed::of(&message, now_unix_ms))
        .filter(|listed| selection.holds_for(listed))
        .map(|listed| (listed.priority, listed.id))
        .collect();
    found.sort_unstable();
    found.into_iter().map(|(_, id)| id).collect()
}

/// What is tried.
struct Run<'a> {
    owned: &'a OwnedQueue,
    directory: &'a Path,
    ids: Vec<MessageId>,
    kind: Kind,
}

impl Run<'_> {
    /// Tries each message once; shows their dialogues one after the other if asked to.
    async fn try_all(&self, shown: Shown) -> io::Result<()> {
        if shown == Shown::Nothing {
            self.begin(&self.ids);
            return Ok(());
        }
        let mut out = io::stdout().lock();
        let mut number = 0;
        for some in self.ids.chunks(WATCHERS_MAX) {
            let watched: Vec<(MessageId, mpsc::Receiver<String>)> = some
                .iter()
                .map(|id| (*id, self.owned.queue.watch(*id)))
                .collect();
            self.begin(some);
            for (id, mut lines) in watched {
                number += 1;
                let (path, count) = (self.directory.display(), self.ids.len());
                writeln!(out, "\nRunning {path}/{id} (sequence {number} of {count})")?;
                while let Some(line) = lines.recv().await {
                    writeln!(out, "{line}")?;
                    out.flush()?;
                }
            }
        }
        out.flush()
    }

    fn begin(&self, ids: &[MessageId]) {
        if self.kind == Kind::Quarantined {
            self.owned.queue.run_held_now(ids);
            return;
        }
        let all: HashSet<MessageId> = ids.iter().copied().collect();
        self.owned.queue.run_now(|id| all.contains(&id));
    }
}
