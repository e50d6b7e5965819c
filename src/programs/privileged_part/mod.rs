//! The privileged part: the process that keeps root's rights while the daemon has none (L5).
//!
//! Where [`daemon_rights`] finds an account for the daemon, the process that was started by root becomes this part, and its child the daemon, which gives all
//! rights up before it opens its queue or reads from the network. The part reads no mail and no network, and does what
//! [`Request`](crate::privileged::wire::Request) lists and nothing else ([`keeper`]). When the daemon ends, its locks and
//! programs end too, and the part ends as it did, or starts anew; when the part is killed, the daemon is told to stop.
//! Signals are passed on to the daemon. Source: unix(7), prctl(2), pidfd_open(2).

mod keeper;
mod named_files;

use std::ffi::{CString, OsStr, OsString};
use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Gid, Group, Pid, Uid, fork};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{PidfdFlags, pidfd_open};

use crate::config::{Config, Role};
use crate::privileged::{CONNECTIONS_MAX, Part};
use crate::safe_file::Who;
use crate::status::ExitCode;
use crate::users::{User, Users};
use keeper::Keeper;

/// What is passed on to the daemon.
const PASSED_ON: [Signal; 5] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGALRM,
    Signal::SIGUSR1,
];

/// Stack of a thread that answers requests; NSS runs on it.
const STACK_BYTES: usize = 512 << 10;

/// Whom the daemon becomes, unless it is told; the first that there is: an account of its own, or one that Sendmail's
/// packages have made. Debian's is `smmta`; `smmsp` comes with every Sendmail since 8.12.
pub const DAEMON_USERS: [&str; 3] = ["diligence", "smmta", "smmsp"];
/// What `run_as_user` says for a daemon that keeps root's rights.
pub const ROOT: &str = "root";

/// Which of the two processes returned.
pub enum Half {
    /// The part.
    Part(Box<PartHalf>),
    /// The daemon, which still has root's rights.
    Daemon(DaemonHalf),
}

/// What the part's process gets.
pub struct PartHalf {
    keeper: Keeper,
    daemon: Pid,
    sockets: Vec<OwnedFd>,
    signals: SigSet,
}

/// What comes after the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing.
    End,
    /// It is started anew.
    Restart,
}

/// What the daemon's process gets.
pub struct DaemonHalf {
    /// Its part.
    pub part: Arc<Part>,
    /// Whom it is to become.
    pub user: Who,
    parent: Pid,
}

/// Whose rights the daemon is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// Those of the process: it is not root's, or of a sandbox, or told to keep root's.
    Own,
    /// Root's, as no account was found that it could become.
    RootForLack,
    /// Those of this account.
    Of(Who),
}

impl Rights {
    /// Whom the daemon becomes, if anybody.
    #[must_use]
    pub const fn user(self) -> Option<Who> {
        match self {
            Self::Of(user) => Some(user),
            Self::Own | Self::RootForLack => None,
        }
    }
}

/// Whose rights the daemon is to have: those of the account that `run_as_user` names; without it of who owns the client
/// queue that it runs, or of the first of [`DAEMON_USERS`] that there is. Where there is none it stays root, as mail that
/// went before an upgrade is to go after it; who calls says so in the log. Blocks: as NSS does.
///
/// # Errors
/// The account that is named does not exist, or is root's by another name.
pub fn daemon_rights(config: &Config) -> io::Result<Rights> {
    let named = config.deliver.run_as_user.as_deref();
    if config.sandbox.is_some() || !Uid::effective().is_root() || named == Some(ROOT) {
        return Ok(Rights::Own);
    }
    let users = Users::of_system();
    let rights = |user: User| {
        Rights::Of(Who {
            uid: user.uid,
            gid: user.gid,
        })
    };
    if let Some(named) = named {
        return named_account(named, &users).map(Rights::Of);
    }
    let client_queue = match config.role {
        Role::Msp => Some(&config.paths.queue_directory),
        Role::Mta => config.paths.client_queue_directory.as_ref(),
    };
    if let Some(seen) = client_queue.and_then(|queue| queue.metadata().ok())
        && seen.uid() != 0
        && let Some(user) = users.by_uid(seen.uid()).map_err(io::Error::other)?
    {
        return Ok(rights(user));
    }
    for name in DAEMON_USERS {
        match users.lookup(name).map_err(io::Error::other)? {
            Some(user) if user.uid != 0 => return Ok(rights(user)),
            _ => {}
        }
    }
    Ok(Rights::RootForLack)
}

/// The account that `USER` or `USER:GROUP` names; either may be a number.
fn named_account(text: &str, users: &Users) -> io::Result<Who> {
    let wrong = |what: String| io::Error::other(format!("run_as_user: {what}"));
    let (name, group) = match text.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (text, None),
    };
    let found = match name.parse() {
        Ok(uid) => users.by_uid(uid),
        Err(_) => users.lookup(name),
    };
    let user = found
        .map_err(io::Error::other)?
        .ok_or_else(|| wrong(format!("no user {name}")))?;
    let gid = match group {
        None => user.gid,
        Some(group) => match group.parse() {
            Ok(gid) => gid,
            Err(_) => Group::from_name(group)?
                .ok_or_else(|| wrong(format!("no group {group}")))?
                .gid
                .as_raw(),
        },
    };
    match (user.uid, gid) {
        (0, _) => Err(wrong(format!("{name} is root"))),
        (_, 0) => Err(wrong(format!("the group of {text} is root's"))),
        (uid, gid) => Ok(Who { uid, gid }),
    }
}

/// Divides the process in two. Call it while it has one thread.
///
/// # Errors
/// No socket or no process could be had.
pub fn divide(
    config: &Config,
    user: Who,
    default_user: Who,
    command_line: &[OsString],
) -> io::Result<Half> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..CONNECTIONS_MAX {
        let (our, their) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        ours.push(our);
        theirs.push(their);
    }
    let mut passed_on = SigSet::empty();
    for signal in PASSED_ON {
        passed_on.add(signal);
    }
    // Before the fork: none gets lost in between.
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&passed_on), None)?;
    let parent = nix::unistd::getpid();
    #[expect(unsafe_code, reason = "there is no safe fork")]
    // SAFETY: the program calls this before it starts a thread, so that no lock is held by a thread that the child
    // does not have, and the child may go on to do whatever the parent could.
    let forked = unsafe { fork() }?;
    match forked {
        ForkResult::Child => {
            drop(ours);
            sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&passed_on), None)?;
            Ok(Half::Daemon(DaemonHalf {
                part: Arc::new(Part::new(theirs, config.deliver.file_open_limit)),
                user,
                parent,
            }))
        }
        ForkResult::Parent { child } => {
            drop(theirs);
            Ok(Half::Part(Box::new(PartHalf {
                keeper: Keeper::new(config, user, default_user, command_line),
                daemon: child,
                sockets: ours,
                signals: passed_on,
            })))
        }
    }
}

impl PartHalf {
    /// Serves the daemon until that has ended; gives its exit code, and whether it is to start anew.
    ///
    /// # Errors
    /// The system's.
    pub fn serve(self) -> io::Result<(ExitCode, Next)> {
        let keeper = Arc::new(self.keeper);
        for socket in self.sockets {
            let keeper = Arc::clone(&keeper);
            // A panic of one ends the process, and with it the daemon.
            std::thread::Builder::new()
                .stack_size(STACK_BYTES)
                .spawn(move || keeper.serve(&socket))?;
        }
        let code = wait_for_daemon(self.daemon, &self.signals)?;
        let is_restart = keeper.end();
        sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&self.signals), None)?;
        Ok((
            code,
            match is_restart {
                true => Next::Restart,
                false => Next::End,
            },
        ))
    }
}

/// Passes signals on until the daemon has ended; gives its exit code.
fn wait_for_daemon(daemon: Pid, signals: &SigSet) -> io::Result<ExitCode> {
    let signals = SignalFd::with_flags(signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let raw = rustix::process::Pid::from_raw(daemon.as_raw()).ok_or(io::ErrorKind::NotFound)?;
    let end = pidfd_open(raw, PidfdFlags::empty())?;
    loop {
        let mut waited = [
            PollFd::new(&signals, PollFlags::IN),
            PollFd::new(&end, PollFlags::IN),
        ];
        match poll(&mut waited, None) {
            Err(rustix::io::Errno::INTR) => continue,
            polled => drop(polled?),
        }
        while let Ok(Some(heard)) = signals.read_signal() {
            let heard = i32::try_from(heard.ssi_signo).ok();
            if let Some(Ok(signal)) = heard.map(Signal::try_from) {
                // It has not been waited for, so that its number is still its own.
                let _ = kill(daemon, signal);
            }
        }
        if waited.last().is_some_and(|end| !end.revents().is_empty()) {
            break;
        }
    }
    loop {
        match waitpid(daemon, None) {
            Err(nix::errno::Errno::EINTR) => {}
            Ok(WaitStatus::Exited(_, code)) => {
                let code = u8::try_from(code).ok().and_then(ExitCode::from_code);
                return Ok(code.unwrap_or(ExitCode::Software));
            }
            Ok(_) | Err(_) => return Ok(ExitCode::Software),
        }
    }
}

impl DaemonHalf {
    /// Gives the daemon's own places to its user: its queue, its log file, and the folder of its control socket.
    ///
    /// # Errors
    /// The system's; or the pid file, which root's scripts believe, would lie in the folder of the control socket.
    pub fn give_places(&self, config: &Config) -> io::Result<()> {
        give_folder(&config.paths.queue_directory, 0o700, self.user, |_| true)?;
        let mut names = vec![&config.paths.control_socket];
        // A client queue's runner reads where the MTA listens, and has no claim to the MTA's log.
        if config.role == Role::Mta {
            names.push(&config.paths.smtp_address_file);
            if let Some(log) = &config.log.file {
                // A log that can't be written stops no mail; what there is to say of it, its writer says.
                let _ = give_file(log, 0o640, self.user);
            }
        }
        let is_ours = |name: &OsStr| {
            names.iter().any(|path| {
                path.file_name().is_some_and(|own| {
                    name == own
                        || name
                            .to_string_lossy()
                            .starts_with(&format!("{}.tmp-", own.to_string_lossy()))
                })
            })
        };
        for path in &names {
            if let Some(folder) = path.parent() {
                self.check_pid_file(&config.paths.pid_file, path, folder)?;
                give_folder(folder, 0o755, self.user, is_ours)?;
            }
        }
        Ok(())
    }

    /// Who owns a folder puts what it likes in a file's place. One that is the daemon's already, as a client queue, is left
    /// to whoever gave it.
    fn check_pid_file(&self, pid_file: &Path, given_for: &Path, folder: &Path) -> io::Result<()> {
        let number = |path: &Path| path.metadata().map(|seen| (seen.dev(), seen.ino()));
        let is_same = pid_file.parent().is_some_and(|of_pid_file| {
            of_pid_file == folder
                || matches!((number(of_pid_file), number(folder)), (Ok(one), Ok(other)) if one == other)
        });
        let is_daemons = || {
            folder
                .metadata()
                .is_ok_and(|seen| seen.uid() == self.user.uid)
        };
        if !is_same || is_daemons() {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "pid_file {} must not be in the folder of {}, which is to be the daemon's",
            pid_file.display(),
            given_for.display()
        )))
    }

    /// The groups of the daemon's user, but never root's. Blocks: as NSS does.
    fn groups(&self) -> io::Result<Vec<Gid>> {
        let own = Gid::from_raw(self.user.gid);
        let users = Users::of_system();
        let Some(user) = users.by_uid(self.user.uid).map_err(io::Error::other)? else {
            return Ok(vec![own]);
        };
        let name = CString::new(user.name).map_err(io::Error::other)?;
        let mut groups = nix::unistd::getgrouplist(&name, own)?;
        groups.retain(|group| group.as_raw() != 0);
        Ok(groups)
    }

    /// Becomes the daemon's user for good, and ends with the part. Call it while the process has one thread.
    ///
    /// # Errors
    /// The system's, or the rights are still there; the process must then end.
    pub fn give_up_root(&self) -> io::Result<()> {
        let (uid, gid) = (Uid::from_raw(self.user.uid), Gid::from_raw(self.user.gid));
        nix::unistd::setgroups(&self.groups()?)?;
        nix::unistd::setresgid(gid, gid, gid)?;
        nix::unistd::setresuid(uid, uid, uid)?;
        // No program that it may run after all gives rights back.
        rustix::thread::set_no_new_privs(true)?;
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
        let has_way_back =
            nix::unistd::setresuid(Uid::from_raw(0), Uid::from_raw(0), Uid::from_raw(0)).is_ok()
                || nix::unistd::setgroups(&[]).is_ok();
        let ids = nix::unistd::getresuid()?;
        if has_way_back || [ids.real, ids.effective, ids.saved] != [uid; 3] {
            return Err(io::Error::other("root's rights could not be given up"));
        }
        if nix::unistd::getppid() != self.parent {
            return Err(io::Error::other("the privileged part has ended"));
        }
        Ok(())
    }
}

/// Gives a regular file that is root's to a user; makes it if it is missing.
fn give_file(path: &Path, mode: u32, user: Who) -> io::Result<()> {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::WRONLY
        | OFlags::APPEND
        | OFlags::CREATE
        | OFlags::NOFOLLOW
        | OFlags::NONBLOCK
        | OFlags::CLOEXEC;
    let file = File::from(open(path, flags, Mode::from_raw_mode(mode))?);
    let seen = file.metadata()?;
    if seen.is_file() && seen.uid() == 0 && seen.nlink() == 1 {
        std::os::unix::fs::fchown(&file, Some(user.uid), Some(user.gid))?;
    }
    Ok(())
}

/// Gives a folder and the regular files in it that root left there to a user; makes it if it is missing. One that belongs
/// to somebody else, or with a name in it that is not `is_ours`, stays as it is: what can't be written then says so. The
/// folder changes hands last, so that a start that was cut short is made good by the next.
fn give_folder(
    folder: &Path,
    mode: u32,
    user: Who,
    is_ours: impl Fn(&OsStr) -> bool,
) -> io::Result<()> {
    use rustix::fs::{Mode, OFlags, open, openat};
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    match DirBuilder::new().mode(mode).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let opened = File::from(open(folder, flags | OFlags::DIRECTORY, Mode::empty())?);
    let owner = opened.metadata()?.uid();
    if owner != 0 && owner != user.uid {
        return Ok(());
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        names.push(entry?.file_name());
    }
    if !names.iter().all(|name| is_ours(name)) {
        return Ok(());
    }
    for name in names {
        // Sockets and what went away meanwhile can't be opened, and are made anew.
        let Ok(file) = openat(&opened, name.as_os_str(), flags, Mode::empty()) else {
            continue;
        };
        let file = File::from(file);
        let seen = file.metadata()?;
        if seen.is_file() && seen.uid() == 0 && seen.nlink() == 1 {
            std::os::unix::fs::fchown(&file, Some(user.uid), Some(user.gid))?;
        }
    }
    if owner == 0 {
        std::os::unix::fs::fchown(&opened, Some(user.uid), Some(user.gid))?;
    }
    Ok(())
}
