//! The daemon: `-bd`, `-bD`, and the queue runner `-qTIME`.
//!
//! Binds its ports, opens its queue, and only then serves: a client sees the greeting when the queue is replayed and
//! no sooner. In a sandbox it runs the client queue as well. Signals: TERM and INT stop it cleanly, HUP restarts it in
//! its place, ALRM runs the queue, USR1 writes its state to the log.
//!
//! When the journal is poisoned (I3), a daemon in the foreground ends with [`POISONED`] for its supervisor to start it
//! again; one in the background starts itself again, at most once in [`RESTART_INTERVAL_MIN`], and answers "try again
//! later" until then. A panic anywhere ends the daemon after the log was told; one in the background that is older than
//! [`RESTART_INTERVAL_MIN`] starts itself again. Blocks: until it is stopped.
//!
//! Sources: sendmail(8); transcripts 10 and 76 of 8.17.1 for texts, files and signals.

use std::ffi::OsString;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

use super::background::{Announcement, Side, detach};
use super::client_queue::{Absorber, hop_to, relay_to_mta};
use super::open_spool::{OpenError, OpenSpool};
use super::owned_queue::OwnedQueue;
use super::privileged_part::{self, DAEMON_USERS, DaemonHalf, Half, Next, Rights};
use super::run_file::{RunFile, pid_file_content};
use super::wiring::{self, System};
use super::{AfterPanic, end_on_panic, newaliases, queue_run};
use crate::cli::VERSION;
use crate::config::{Config, Remote, Request, Role};
use crate::control::selection::Selection;
use crate::control::server::Order;
use crate::dns::Resolver;
use crate::maillog::{QueueId, Severity};
use crate::route::{self, Notice, RelayTo, Router};
use crate::smtpd::names::{self, ClientNames};
use crate::smtpd::{Backend, ConnectionLimits, Listen, Server, ServerError, Settings};
use crate::status::ExitCode;
use crate::users::Users;

/// How a daemon in the foreground ends when its journal is poisoned; nothing else ends it so.
pub const POISONED: ExitCode = ExitCode::IoErr;
/// The least time between two starts of a daemon that starts itself again.
pub const RESTART_INTERVAL_MIN: Duration = Duration::from_secs(60);
/// How often a busy port is tried, and the pause between. Source: Sendmail's daemon.c, transcript 10.
const BIND_TRIES_MAX: u32 = 10;
const BIND_PAUSE: Duration = Duration::from_secs(5);
/// How often a full disk is looked at, and how long a start in the background waits for it.
const ROOM_PAUSE: Duration = Duration::from_secs(1);
const ROOM_WAIT_MAX: Duration = Duration::from_secs(45);
/// Threads of the runtime at most; one for each core but one, up to here.
const WORKERS_MAX: usize = 8;
/// Threads for what blocks: disk, maps, users.
const BLOCKING_THREADS_MAX: usize = 64;
/// Orders that wait; one is enough to stop.
const ORDERS_MAX: usize = 4;

/// Where the daemon runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// `-bd`, `-q30m`: on its own, without a terminal.
    Background,
    /// `-bD`: where it was started.
    Foreground,
}

/// What the command line asks for.
pub struct Plan<'a> {
    /// Where to run.
    pub place: Place,
    /// Whether to listen for SMTP.
    pub listens: bool,
    /// `-qTIME`.
    pub run_interval: Option<Duration>,
    /// `-q` beside `-bd`: run the queue once at the start.
    pub runs_at_start: bool,
    /// As it was typed, the program's name first.
    pub command_line: &'a [OsString],
}

/// Why the daemon ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Stopped,
    Restart,
    Poisoned,
}

impl From<Order> for End {
    fn from(order: Order) -> Self {
        match order {
            Order::Shutdown => Self::Stopped,
            Order::Restart => Self::Restart,
        }
    }
}

/// Why it did not start.
#[derive(Debug, thiserror::Error)]
enum DaemonError {
    #[error("{0}")]
    Listen(#[from] ServerError),
    #[error("{0}")]
    Spool(#[from] OpenError),
    #[error("{0}")]
    Route(#[from] route::RouteError),
    #[error("{0}")]
    Config(#[from] crate::config::ConfigError),
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
}

impl DaemonError {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    fn exit(&self) -> ExitCode {
        match self {
            Self::Spool(error) if error.is_locked() => ExitCode::TempFail,
            Self::Spool(error) if error.is_misplaced() => ExitCode::Config,
            Self::Listen(_) | Self::Spool(_) | Self::Io { .. } => ExitCode::OsErr,
            Self::Route(_) | Self::Config(_) => ExitCode::Config,
        }
    }
}

/// Runs the daemon until it is stopped.
#[must_use]
pub fn run(config: &Config, plan: &Plan<'_>) -> ExitCode {
    if let Some(refusal) = refuse_stranger(config, plan) {
        return refusal;
    }
    build_missing_aliases(config);
    // Found now: the file may have been replaced when it is needed.
    let program = program_path(plan.command_line);
    let announcement = match plan.place {
        Place::Foreground => None,
        Place::Background => match detach() {
            Ok(Side::Parent(waiting)) => return waiting.wait(),
            Ok(Side::Child(announcement)) => Some(announcement),
            Err(error) => {
                eprintln!("sendmail: cannot go into the background: {error}");
                return ExitCode::OsErr;
            }
        },
    };
    let (announcement, half) = match divide_daemon(config, plan, announcement) {
        Ok(Divided::Daemon(announcement, half)) => (announcement, half),
        Ok(Divided::Ended(code, Next::End)) => return code,
        Ok(Divided::Ended(_, Next::Restart)) => {
            return restart(&program, plan.command_line, &System::new(config));
        }
        Err(error) => {
            let system = System::new(config);
            system
                .maillog
                .system_error(None, "root", &error.to_string());
            eprintln!("sendmail: {error}");
            return ExitCode::Config;
        }
    };
    let mut system = System::new(config);
    system.part = half.as_ref().map(|half| Arc::clone(&half.part));
    end_on_panic(
        Some(system.maillog.clone()),
        (plan.place == Place::Background).then(|| restart_after_panic(&program, plan, &system)),
    );
    let end = match start_and_serve(config, plan, &system, half.as_ref(), announcement) {
        Ok(end) => end,
        Err(error) => {
            let text = error.to_string();
            system.maillog.system_error(None, "root", &text);
            eprintln!("sendmail: {text}");
            return error.exit();
        }
    };
    match end {
        End::Stopped => ExitCode::Ok,
        End::Poisoned if plan.place == Place::Foreground => POISONED,
        End::Restart | End::Poisoned if system.part.is_some() => {
            // It has the rights to bind the ports again.
            if let Some(part) = &system.part {
                part.restart();
            }
            ExitCode::Ok
        }
        End::Restart | End::Poisoned => restart(&program, plan.command_line, &system),
    }
}

/// What became of this process.
enum Divided {
    /// It is the daemon, with or without a privileged part.
    Daemon(Option<Announcement>, Option<DaemonHalf>),
    /// It was the privileged part, and the daemon has ended.
    Ended(ExitCode, Next),
}

/// Divides the process into the daemon and its privileged part, if it is to have one.
fn divide_daemon(
    config: &Config,
    plan: &Plan<'_>,
    announcement: Option<Announcement>,
) -> io::Result<Divided> {
    match divide(config, plan.command_line)? {
        None => Ok(Divided::Daemon(announcement, None)),
        Some(Half::Daemon(half)) => Ok(Divided::Daemon(announcement, Some(half))),
        Some(Half::Part(half)) => {
            // The daemon says when it is ready; who waits for it is to see if it ends instead.
            if let Some(announcement) = announcement {
                announcement.leave()?;
            }
            let (code, next) = half.serve()?;
            Ok(Divided::Ended(code, next))
        }
    }
}

/// Divides a process that is to own a queue, if it has rights to give up and an account to have those of. Call it while
/// the process has one thread; the command line is what it is started anew by.
///
/// # Errors
/// The account that is named can't be had, or no second process.
pub(super) fn divide(config: &Config, command_line: &[OsString]) -> io::Result<Option<Half>> {
    let rights = privileged_part::daemon_rights(config)?;
    if rights == Rights::RootForLack {
        let text = format!(
            "root's rights are kept: none of the users {} exists; make one, or set run_as_user",
            DAEMON_USERS.join(", ")
        );
        eprintln!("sendmail: {text}");
        let maillog = System::new(config).maillog;
        maillog.write(Severity::Alert, 0, QueueId::Omitted, &text);
    }
    let Some(user) = rights.user() else {
        return Ok(None);
    };
    let users = Users::of_system();
    // What there is to say of it, the router says.
    let unsaid: Notice = Arc::new(|_: &str| {});
    let default_user = route::default_user(&config.route.default_user, &users, &unsaid);
    privileged_part::divide(config, user, default_user, command_line).map(Some)
}

/// Only root runs the daemon, and in a sandbox its owner; a client queue's runner may be the queue's owner.
fn refuse_stranger(config: &Config, plan: &Plan<'_>) -> Option<ExitCode> {
    use std::os::unix::fs::MetadataExt;
    let uid = rustix::process::getuid();
    let owns_queue = || {
        std::fs::metadata(&config.paths.queue_directory)
            .is_ok_and(|found| found.uid() == uid.as_raw())
    };
    if uid.is_root()
        || config.sandbox.is_some()
        || (config.role == Role::Msp && !plan.listens && owns_queue())
    {
        return None;
    }
    let what = if plan.listens {
        "run daemon"
    } else {
        "start a queue runner daemon"
    };
    let text = format!("user {} attempted to {what}", uid.as_raw());
    let maillog = System::new(config).maillog;
    maillog.write(Severity::Alert, 0, QueueId::Omitted, &text);
    let code = match plan.place {
        Place::Background if plan.listens => "550 ",
        _ => "",
    };
    // Sendmail's text, on standard output as there.
    println!("{code}Permission denied (real uid not trusted)");
    Some(ExitCode::Usage)
}

/// A sandbox begins with an alias file and no alias map: the map is made with the first start.
fn build_missing_aliases(config: &Config) {
    if config.sandbox.is_none() {
        return;
    }
    let is_missing = config.route.alias_files.iter().any(|text| {
        diligence_maps::MapSpec::parse_alias(text)
            .is_ok_and(|spec| spec.name.exists() && !spec.file().exists())
    });
    if is_missing {
        // What goes wrong is printed, and the router defers what it can't look up.
        let _ = newaliases::run(config);
    }
}

fn start_and_serve(
    config: &Config,
    plan: &Plan<'_>,
    system: &System,
    half: Option<&DaemonHalf>,
    announcement: Option<Announcement>,
) -> Result<End, DaemonError> {
    let server = match plan.listens {
        true => Some(bind(config, plan.place, system)?),
        false => None,
    };
    if let Some(half) = half {
        half.give_places(config)
            .map_err(DaemonError::io("giving the queue to run_as_user"))?;
        half.give_up_root()
            .map_err(DaemonError::io("giving up root's rights"))?;
    }
    let open = match open_when_there_is_room(config, plan.place, system) {
        Ok(open) => open,
        // A queue runner beside a daemon asks that to run the queue.
        Err(error) if error.is_locked() && !plan.listens => {
            return ask_owner_regularly(config, plan, system, announcement);
        }
        Err(error) => return Err(error.into()),
    };
    let runtime = runtime().map_err(DaemonError::io("runtime"))?;
    let daemon = Daemon {
        config,
        plan,
        system,
    };
    let (end, spools) = runtime.block_on(daemon.serve(open, server, announcement))?;
    // What still blocks on the pool is let go: nothing of it is acknowledged to anybody.
    runtime.shutdown_timeout(Duration::from_secs(1));
    for spool in spools {
        spool.close();
    }
    Ok(end)
}

/// The runtime of a daemon: its size is what keeps the daemon small.
fn runtime() -> io::Result<Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Builder::new_multi_thread()
        // One core is the journal writer's. With a single worker a finished commit is answered by the thread that is
        // told of it, without a second one being woken.
        .worker_threads((cores - 1).clamp(1, WORKERS_MAX))
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .thread_name("sendmail")
        .enable_all()
        .build()
}

/// Opens the listeners; in the background a busy port is tried again, as its last owner may just be going.
fn bind(config: &Config, place: Place, system: &System) -> Result<Server, DaemonError> {
    let listen: Vec<Listen> = config.smtpd.daemon_ports.iter().map(Listen::from).collect();
    let mut tries = 0;
    loop {
        tries += 1;
        let error = match Server::bind(&listen) {
            Ok(server) => return Ok(server),
            Err(error) => error,
        };
        let text = format!(
            "opendaemonsocket: daemon {}: cannot bind: {}",
            error.name,
            diligence_maps::io_text(&error.source)
        );
        system.maillog.system_error(None, "root", &text);
        let text = format!("daemon {}: problem creating SMTP socket", error.name);
        let maillog = &system.maillog;
        maillog.write(Severity::Alert, 0, QueueId::Omitted, &text);
        let is_busy = error.source.kind() == io::ErrorKind::AddrInUse;
        if !is_busy || place == Place::Foreground {
            return Err(error.into());
        }
        if tries == BIND_TRIES_MAX {
            let text = format!(
                "opendaemonsocket: daemon {}: server SMTP socket wedged: exiting",
                error.name
            );
            system.maillog.system_error(None, "root", &text);
            return Err(error.into());
        }
        eprintln!("sendmail: {error}; trying again");
        std::thread::sleep(BIND_PAUSE);
    }
}

/// Opens the queue. A start writes a segment; where a full disk has no room for one, it is waited for: without end in the
/// foreground, for as long as for a busy port in the background, where somebody waits for the start. Until then nobody
/// is greeted, and `mailq` reads the files. Blocks: disk, and for room; signals still end the process.
fn open_when_there_is_room(
    config: &Config,
    place: Place,
    system: &System,
) -> Result<OpenSpool, OpenError> {
    let mut waited = Duration::ZERO;
    loop {
        let opened = OpenSpool::open(
            &config.paths.queue_directory,
            &config.spool,
            Arc::clone(&system.clock),
            &system.maillog,
        );
        match opened {
            Err(error) if error.is_full() => {
                if waited.is_zero() {
                    let text = format!("{error}: the daemon starts when there is room");
                    system
                        .maillog
                        .write(Severity::Alert, 0, QueueId::None, &text);
                    eprintln!("sendmail: {text}");
                }
                if place == Place::Background && waited >= ROOM_WAIT_MAX {
                    return Err(error);
                }
                std::thread::sleep(ROOM_PAUSE);
                waited += ROOM_PAUSE;
            }
            opened => return opened,
        }
    }
}

/// The queue runner of a queue that another process owns.
fn ask_owner_regularly(
    config: &Config,
    plan: &Plan<'_>,
    system: &System,
    announcement: Option<Announcement>,
) -> Result<End, DaemonError> {
    let interval = plan.run_interval.unwrap_or(RESTART_INTERVAL_MIN);
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(DaemonError::io("runtime"))?;
    let _pid_file = publish_pid(config, plan, system)?;
    ready(announcement)?;
    system
        .maillog
        .daemon_started(VERSION, false, plan.run_interval);
    runtime.block_on(async {
        let mut signals = Signals::new().map_err(DaemonError::io("signals"))?;
        loop {
            // An owner that is gone leaves nothing to ask; the run then owns the queue for as long as it takes.
            let config = config.clone();
            let run = tokio::task::spawn_blocking(move || {
                queue_run::run(&config, &Selection::default(), queue_run::Shown::Nothing)
            });
            tokio::select! {
                _ = run => {}
                end = signals.end() => return Ok(end),
            }
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                end = signals.end() => return Ok(end),
            }
        }
    })
}

struct Daemon<'a> {
    config: &'a Config,
    plan: &'a Plan<'a>,
    system: &'a System,
}

impl Daemon<'_> {
    /// Serves until the end; gives the spools that are to be closed off the runtime.
    async fn serve(
        &self,
        open: OpenSpool,
        server: Option<Server>,
        announcement: Option<Announcement>,
    ) -> Result<(End, Vec<OpenSpool>), DaemonError> {
        let mut signals = Signals::new().map_err(DaemonError::io("signals"))?;
        let (orders, mut ordered) = mpsc::channel(ORDERS_MAX);
        let addresses = server
            .as_ref()
            .map(Server::local_addresses)
            .unwrap_or_default();
        let router = Arc::new(match self.config.role {
            Role::Mta => wiring::router(self.config, self.system)?,
            Role::Msp => {
                wiring::client_router(self.config, self.system, relay_to_mta(self.config))?
            }
        });
        let owned = self.start_queue(open, self.config, &router, orders.clone())?;
        let client = match addresses.first() {
            Some(address) => self.start_client_queue(*address, orders)?,
            None => None,
        };
        let mut ended = owned.ended();
        let mut client_ended = client.as_ref().map(OwnedQueue::ended);
        let _pid_file = publish_pid(self.config, self.plan, self.system)?;
        let _address_file = self.publish_addresses(&addresses)?;
        let (stop, stopped) = oneshot::channel::<()>();
        let smtp = server.map(|server| {
            let backend = Arc::new(self.backend(&owned, &router));
            let names = Arc::new(self.client_names());
            let limits = self.connection_limits();
            tokio::spawn(server.serve(backend, names, limits, async {
                let _ = stopped.await;
            }))
        });
        self.system
            .maillog
            .daemon_started(VERSION, self.plan.listens, self.plan.run_interval);
        if self.plan.runs_at_start || self.plan.run_interval.is_some() {
            owned.queue.run_now(|_| true);
        }
        ready(announcement)?;
        if self.plan.place == Place::Foreground {
            self.introduce(&addresses);
        }
        let end = loop {
            tokio::select! {
                heard = signals.next() => match heard {
                    Heard::End(end) => break end,
                    Heard::Alarm => { owned.queue.run_now(|_| true); }
                    Heard::Dump => dump_state(self.system),
                },
                Some(order) = ordered.recv() => break order.into(),
                Ok(_) = ended.wait_for(|ended| *ended) => break End::Poisoned,
                () = wait_for_end(&mut client_ended) => break End::Poisoned,
            }
        };
        let end = self.tell_end(end, &mut signals, &mut ordered).await;
        let _ = stop.send(());
        if let Some(smtp) = smtp {
            // It ends within its own limits; a panic there ended the process.
            let _ = smtp.await;
        }
        let mut spools = vec![];
        if let Some(client) = client {
            spools.push(client.stop().await);
        }
        spools.push(owned.stop().await);
        Ok((end, spools))
    }

    fn start_queue(
        &self,
        open: OpenSpool,
        config: &Config,
        router: &Arc<Router>,
        orders: mpsc::Sender<Order>,
    ) -> Result<OwnedQueue, DaemonError> {
        let absorber = (config.role == Role::Msp).then(|| {
            let directory = &config.paths.queue_directory;
            Absorber::new(directory, config, open.spool.clone(), self.system)
        });
        if let Some(absorber) = &absorber {
            absorber
                .settle()
                .map_err(io::Error::other)
                .map_err(DaemonError::io("drop folder"))?;
        }
        let resolver = wiring::resolver(config);
        let mailers = wiring::mailers(config, self.system, router, resolver);
        let mut owned = OwnedQueue::start(
            open,
            config,
            self.system,
            router,
            mailers,
            self.plan.run_interval,
        );
        let socket = &config.paths.control_socket;
        owned
            .answer_on(socket, orders)
            .map_err(DaemonError::io(socket.display().to_string()))?;
        if let Some(absorber) = absorber {
            owned.keep(tokio::spawn(absorber.watch()));
        }
        Ok(owned)
    }

    /// The client queue that a sandbox's daemon runs beside its own. Another process may own it already.
    fn start_client_queue(
        &self,
        own_address: SocketAddr,
        orders: mpsc::Sender<Order>,
    ) -> Result<Option<OwnedQueue>, DaemonError> {
        if self.config.role == Role::Msp || self.config.paths.client_queue_directory.is_none() {
            return Ok(None);
        }
        let config = Config::load(&Request {
            role: Role::Msp,
            file: None,
            sandbox: self.config.sandbox.as_deref(),
            overrides: &[],
        })?;
        let opened = OpenSpool::open(
            &config.paths.queue_directory,
            &config.spool,
            Arc::clone(&self.system.clock),
            &self.system.maillog,
        );
        let open = match opened {
            Ok(open) => open,
            Err(error) if error.is_locked() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let to_us: RelayTo = Arc::new(move || Ok(hop_to(own_address)));
        let router = wiring::client_router(&config, self.system, to_us)?;
        self.start_queue(open, &config, &Arc::new(router), orders)
            .map(Some)
    }

    fn backend(&self, owned: &OwnedQueue, router: &Arc<Router>) -> Backend {
        let spool = owned.spool().clone();
        let queue = Arc::clone(&owned.queue);
        let ids = spool.clone();
        let directory = self.config.paths.queue_directory.clone();
        let settings = Settings::of_config(
            &self.config.smtpd,
            router.host_name(),
            Arc::clone(&self.system.clock),
            Arc::new(move || ids.new_id()),
        );
        Backend {
            settings: Arc::new(settings),
            spool,
            router: Arc::clone(router),
            maillog: self.system.maillog.clone(),
            watch: Some(Arc::new(move |id| queue.watch(id))),
            free_bytes: Some(Arc::new(move || free_bytes(&directory))),
            access: self.config.route.access.clone(),
            resolver: self.smtpd_resolver(),
        }
    }

    fn client_names(&self) -> ClientNames {
        let resolver = self.smtpd_resolver();
        ClientNames::new(resolver, names::WAIT, Arc::clone(&self.system.clock))
    }

    /// A sandbox asks no name server about clients and senders unless it may contact others, or asks loopback only.
    fn smtpd_resolver(&self) -> Option<Arc<dyn Resolver>> {
        let resolver: Arc<dyn Resolver> = wiring::resolver(self.config);
        let may_ask = match self.config.deliver.remote {
            Remote::Allowed => true,
            Remote::LoopbackOnly => resolver.is_loopback_only(),
        };
        may_ask.then_some(resolver)
    }

    fn connection_limits(&self) -> ConnectionLimits {
        let limits = &self.config.smtpd.limits;
        let or_default = ConnectionLimits::default();
        ConnectionLimits {
            total: match usize::try_from(limits.max_daemon_children) {
                Ok(0) | Err(_) => or_default.total,
                Ok(total) => total,
            },
            per_second: limits.connection_rate_throttle.unwrap_or(0),
            ..or_default
        }
    }

    fn publish_addresses(&self, addresses: &[SocketAddr]) -> Result<Option<RunFile>, DaemonError> {
        if addresses.is_empty() {
            return Ok(None);
        }
        let text: String = addresses.iter().map(|one| format!("{one}\n")).collect();
        let path = &self.config.paths.smtp_address_file;
        RunFile::publish(path, text.into_bytes(), 0o644)
            .map(Some)
            .map_err(DaemonError::io(path.display().to_string()))
    }

    /// What a person who started it in the foreground wants to know.
    fn introduce(&self, addresses: &[SocketAddr]) {
        let typed = self.plan.command_line.first().map(PathBuf::from);
        let text = introduction(self.config, addresses, &typed.unwrap_or_default());
        let mut out = io::stdout().lock();
        // A supervisor may have closed it.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    /// Logs why it ends, and gives how. A poisoned daemon in the background stays, refusing mail, until it may start
    /// again, or until it is told to stop or to start again at once.
    async fn tell_end(
        &self,
        mut end: End,
        signals: &mut Signals,
        ordered: &mut mpsc::Receiver<Order>,
    ) -> End {
        let maillog = &self.system.maillog;
        if end == End::Poisoned {
            let text = "the journal is poisoned: no mail is accepted until a restart";
            maillog.write(Severity::Alert, 0, QueueId::None, text);
            if self.plan.place == Place::Background {
                tokio::select! {
                    () = tokio::time::sleep(pause_before_restart(self.system)) => {}
                    told = signals.end() => end = told,
                    Some(order) = ordered.recv() => end = order.into(),
                }
            }
        }
        match end {
            End::Poisoned => {}
            End::Stopped => maillog.daemon_stopping("signal"),
            End::Restart => {
                let name = self.plan.command_line.first().cloned().unwrap_or_default();
                let text = format!("restarting {} due to signal", name.to_string_lossy());
                maillog.write(Severity::Info, 0, QueueId::Omitted, &text);
            }
        }
        end
    }
}

/// How long a poisoned daemon waits before it starts again: until a [`RESTART_INTERVAL_MIN`] after its own start, so
/// that a disk that fails at once has it start once a minute, and one that failed after days has it start now.
fn pause_before_restart(system: &System) -> Duration {
    // The clock's origin is this process image's start.
    RESTART_INTERVAL_MIN.saturating_sub(system.clock.monotonic())
}

async fn wait_for_end(ended: &mut Option<watch::Receiver<bool>>) {
    match ended {
        Some(ended) => {
            // An error is an end as well.
            let _ = ended.wait_for(|ended| *ended).await;
        }
        None => std::future::pending().await,
    }
}

fn publish_pid(
    config: &Config,
    plan: &Plan<'_>,
    system: &System,
) -> Result<Option<RunFile>, DaemonError> {
    let path = &config.paths.pid_file;
    match &system.part {
        Some(part) => part.publish_process().map(|()| None),
        None => RunFile::publish(path, pid_file_content(plan.command_line), 0o600).map(Some),
    }
    .map_err(DaemonError::io(path.display().to_string()))
}

fn ready(announcement: Option<Announcement>) -> Result<(), DaemonError> {
    match announcement {
        Some(announcement) => announcement.ready().map_err(DaemonError::io("/dev/null")),
        None => Ok(()),
    }
}

/// Bytes that may still be written to the queue's file system.
fn free_bytes(directory: &Path) -> io::Result<u64> {
    let found = rustix::fs::statvfs(directory)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

fn introduction(config: &Config, addresses: &[SocketAddr], typed: &Path) -> String {
    let listening: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let log = match &config.log.file {
        Some(file) => file.display().to_string(),
        None => "syslog, facility mail".to_owned(),
    };
    let sandbox = config
        .sandbox
        .as_ref()
        .map(|folder| format!(" --sandbox {}", folder.display()))
        .unwrap_or_default();
    let program = typed.display();
    let mailq = typed.with_file_name("mailq");
    let read_log = match &config.log.file {
        Some(file) => format!("tail {}", file.display()),
        None => format!("{program}{sandbox} -q -v"),
    };
    format!(
        "Diligence {VERSION}\n\
         SMTP       {}\n\
         queue      {}\n\
         mailboxes  {}\n\
         log        {log}\n\
         Try in another terminal:\n  \
         printf 'Subject: hi\\n\\nhello\\n' | {program}{sandbox} -v postmaster\n  \
         {}{sandbox}\n  \
         {read_log}\n",
        listening.join(", "),
        config.paths.queue_directory.display(),
        config.paths.mailbox_directory.display(),
        mailq.display(),
    )
}

/// The signals a daemon listens to.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    alarm: Signal,
    dump: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            alarm: signal(SignalKind::alarm())?,
            dump: signal(SignalKind::user_defined1())?,
        })
    }

    /// The next signal.
    async fn next(&mut self) -> Heard {
        tokio::select! {
            _ = self.terminate.recv() => Heard::End(End::Stopped),
            _ = self.interrupt.recv() => Heard::End(End::Stopped),
            _ = self.hang_up.recv() => Heard::End(End::Restart),
            _ = self.alarm.recv() => Heard::Alarm,
            _ = self.dump.recv() => Heard::Dump,
        }
    }

    /// The next signal that ends the daemon.
    async fn end(&mut self) -> End {
        loop {
            if let Heard::End(end) = self.next().await {
                return end;
            }
        }
    }
}

/// What a signal asks for.
enum Heard {
    End(End),
    Alarm,
    Dump,
}

/// What USR1 asks for: the lines of transcript 76, as far as they mean something here.
fn dump_state(system: &System) {
    let log = |text: &str| {
        let maillog = &system.maillog;
        maillog.write(Severity::Debug, 0, QueueId::None, text);
    };
    log(&format!(
        "--- dumping state on user signal: $j = {} ---",
        system.host.full
    ));
    log("--- open file descriptors: ---");
    if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
        for entry in entries.flatten() {
            let name = entry.file_name();
            if let Ok(target) = std::fs::read_link(entry.path()) {
                log(&format!(
                    "{:>3}: {}",
                    name.to_string_lossy(),
                    target.display()
                ));
            }
        }
    }
    log("--- end of state dump ---");
}

/// The program file to start again.
fn program_path(command_line: &[OsString]) -> PathBuf {
    let typed = command_line.first().map(PathBuf::from).unwrap_or_default();
    if typed.is_absolute() {
        typed
    } else {
        std::env::current_exe().unwrap_or(typed)
    }
}

/// Becomes the same program anew, in the same process. Returns only if that fails.
fn restart(program: &Path, command_line: &[OsString], system: &System) -> ExitCode {
    let mut command = Command::new(program);
    if let Some((name, arguments)) = command_line.split_first() {
        command.arg0(name).args(arguments);
    }
    let error = command.exec();
    let text = format!("cannot restart {}: {error}", program.display());
    system
        .maillog
        .write(Severity::Alert, 0, QueueId::None, &text);
    eprintln!("sendmail: {text}");
    ExitCode::OsErr
}

/// What a daemon in the background does about a panic, as nobody else would start it: it starts itself again, unless it
/// was started less than [`RESTART_INTERVAL_MIN`] ago; then it ends.
fn restart_after_panic(program: &Path, plan: &Plan<'_>, system: &System) -> AfterPanic {
    let (program, command_line) = (program.to_owned(), plan.command_line.to_vec());
    let system = system.clone();
    Box::new(move || {
        if !pause_before_restart(&system).is_zero() {
            return;
        }
        if let Some(part) = &system.part {
            part.restart();
        } else {
            // Returns only if that fails, which the log is told.
            let _ = restart(&program, &command_line, &system);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_introduction_names_places_and_three_commands() {
        let config = Config::defaults(Role::Mta, Some(Path::new("/tmp/sandbox")));
        let address = "127.0.0.1:2525".parse().unwrap();
        let text = introduction(&config, &[address], Path::new("target/release/sendmail"));
        assert!(text.contains("SMTP       127.0.0.1:2525\n"), "{text}");
        assert!(
            text.contains("mailboxes  /tmp/sandbox/var/mail\n"),
            "{text}"
        );
        assert!(
            text.contains("log        /tmp/sandbox/var/log/maillog\n"),
            "{text}"
        );
        let commands = [
            "\n  printf 'Subject: hi\\n\\nhello\\n' | target/release/sendmail --sandbox /tmp/sandbox -v postmaster\n",
            "\n  target/release/mailq --sandbox /tmp/sandbox\n",
            "\n  tail /tmp/sandbox/var/log/maillog\n",
        ];
        for command in commands {
            assert!(text.contains(command), "{text}");
        }
    }

    #[test]
    fn a_program_named_without_its_path_is_found_again() {
        let typed = |name: &str| program_path(&[OsString::from(name)]);
        assert_eq!(typed("/usr/sbin/sendmail"), Path::new("/usr/sbin/sendmail"));
        assert_eq!(typed("sendmail"), std::env::current_exe().unwrap());
    }
}
