//! The privileged part: the process that keeps root's rights while the daemon has none (L5).
//!
//! With the option `run_as_user` the process that was started becomes this part, and its child the daemon, which gives all
//! rights up before it opens its queue or reads from the network. The part has one thread, reads no mail and no network,
//! and does what [`Request`] lists and nothing else. It looks at each request again: nobody is acted for but accounts of
//! this host with a group of their own and the default user; never root, but for its mailbox, its `.forward` and programs
//! that the configuration defines as mailers; mailboxes are those of the configured directory. What a request names beyond
//! that is refused, and the mail waits. When the daemon ends, its locks and programs end too, and the part ends as it did,
//! or starts anew; when the part is killed, the daemon is told to stop. Signals are passed on to the daemon.
//! Limits: [`LOCKS_MAX`], [`PART_PROGRAMS_MAX`], those of the messages. Blocks: disk and NSS; a file system that hangs
//! makes local mail wait. Source: op.me 4.9 for who may be acted for; unix(7), prctl(2), pidfd_open(2).

use std::collections::HashMap;
use std::ffi::{CString, OsStr, OsString};
use std::fs::{DirBuilder, File};
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, killpg, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Gid, Pid, Uid, fork};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{PidfdFlags, pidfd_open};

use super::run_file::{RunFile, pid_file_content};
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::config::mailer::Transport;
use crate::deliver::MailboxOwner;
use crate::deliver::mailbox::{self, LockFile};
use crate::deliver::maildir;
use crate::deliver::mbox::Form;
use crate::deliver::program::{self, Program};
use crate::privileged::Part;
use crate::privileged::wire::{
    self, FILES_MAX, MaildirFile, Problem, ProgramRequest, Reply, Request,
};
use crate::safe_file::{self, Purpose, ReadRequest, Who};
use crate::status::ExitCode;
use crate::users::Users;

/// Lock files held at once.
pub const LOCKS_MAX: usize = 1024;
/// Programs that run at once; the daemon's own limit is lower.
pub const PART_PROGRAMS_MAX: usize = 256;
/// What is passed on to the daemon.
const PASSED_ON: [Signal; 5] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGALRM,
    Signal::SIGUSR1,
];

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
    socket: OwnedFd,
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

/// Whom the daemon is to become: the account that `run_as_user` names, if it can become somebody.
///
/// # Errors
/// There is no such account, or it is root's.
pub fn daemon_user(config: &Config) -> io::Result<Option<Who>> {
    let Some(name) = &config.deliver.run_as_user else {
        return Ok(None);
    };
    if config.sandbox.is_some() || !Uid::effective().is_root() {
        return Ok(None);
    }
    let found = Users::of_system().lookup(name).map_err(io::Error::other)?;
    match found {
        Some(user) if user.uid != 0 => Ok(Some(Who {
            uid: user.uid,
            gid: user.gid,
        })),
        Some(_) => Err(io::Error::other(format!("run_as_user: {name} is root"))),
        None => Err(io::Error::other(format!("run_as_user: no user {name}"))),
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
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
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
                part: Arc::new(Part::new(theirs)),
                user,
                parent,
            }))
        }
        ForkResult::Parent { child } => {
            drop(theirs);
            Ok(Half::Part(Box::new(PartHalf {
                keeper: Keeper::new(config, user, default_user, command_line),
                daemon: child,
                socket: ours,
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
        let ended = self.keeper.serve(self.daemon, self.socket, &self.signals);
        sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&self.signals), None)?;
        ended
    }
}

impl DaemonHalf {
    /// Gives the daemon's own places to its user: its queue, and the folder of its control socket.
    ///
    /// # Errors
    /// The system's.
    pub fn give_places(&self, config: &Config) -> io::Result<()> {
        give_folder(&config.paths.queue_directory, 0o700, self.user, |_| true)?;
        let names = [
            &config.paths.control_socket,
            &config.paths.smtp_address_file,
        ];
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
        for path in names {
            if let Some(folder) = path.parent() {
                give_folder(folder, 0o755, self.user, is_ours)?;
            }
        }
        Ok(())
    }

    /// Becomes the daemon's user for good, and ends with the part. Call it while the process has one thread.
    ///
    /// # Errors
    /// The system's, or the rights are still there; the process must then end.
    pub fn give_up_root(&self) -> io::Result<()> {
        let (uid, gid) = (Uid::from_raw(self.user.uid), Gid::from_raw(self.user.gid));
        nix::unistd::setgroups(&[gid])?;
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

/// What the part knows and holds.
struct Keeper {
    mailboxes: PathBuf,
    users: Users,
    daemon: Who,
    default_user: Who,
    /// Programs that may run as root for root.
    mailers: Vec<PathBuf>,
    pid_file: PathBuf,
    command_line: Vec<OsString>,
    clock: SystemClock,
    held: Held,
}

/// What goes with the daemon.
#[derive(Default)]
struct Held {
    locks: HashMap<String, LockFile>,
    programs: HashMap<u32, Child>,
    published: Option<RunFile>,
    restarts: bool,
}

type Answer = Result<(Reply, Vec<OwnedFd>), Problem>;

impl Keeper {
    fn new(config: &Config, daemon: Who, default_user: Who, command_line: &[OsString]) -> Self {
        let shell = &config.deliver.local_shell;
        Self {
            mailboxes: config.paths.mailbox_directory.clone(),
            users: Users::new(config.paths.passwd_file.as_deref(), None),
            daemon,
            default_user,
            mailers: config
                .deliver
                .mailers
                .iter()
                .filter_map(|mailer| match &mailer.transport {
                    Transport::Program(path) => Some(PathBuf::from(path)),
                    _ => None,
                })
                .filter(|path| path != shell && !path.ends_with("sh"))
                .collect(),
            pid_file: config.paths.pid_file.clone(),
            command_line: command_line.to_vec(),
            clock: SystemClock::new(),
            held: Held::default(),
        }
    }

    /// Answers requests and passes signals on until the daemon has ended.
    fn serve(
        mut self,
        daemon: Pid,
        socket: OwnedFd,
        signals: &SigSet,
    ) -> io::Result<(ExitCode, Next)> {
        let signals =
            SignalFd::with_flags(signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        loop {
            let mut waited = [
                PollFd::new(&signals, PollFlags::IN),
                PollFd::new(&socket, PollFlags::IN),
            ];
            match poll(&mut waited, None) {
                Err(rustix::io::Errno::INTR) => continue,
                polled => drop(polled?),
            }
            while let Ok(Some(heard)) = signals.read_signal() {
                let heard = i32::try_from(heard.ssi_signo).ok();
                if let Some(Ok(signal)) = heard.map(Signal::try_from) {
                    // One that has ended is seen by its socket.
                    let _ = kill(daemon, signal);
                }
            }
            if waited
                .last()
                .is_none_or(|socket| socket.revents().is_empty())
            {
                continue;
            }
            let (reply, files) = match wire::receive::<Request>(&socket) {
                Ok(None) => break,
                Ok(Some((request, files))) => self.answer(request, files),
                Err(error) => Err(error.into()),
            }
            .unwrap_or_else(|problem| (Reply::Refused(problem), Vec::new()));
            let beside: Vec<_> = files.iter().take(FILES_MAX).map(AsFd::as_fd).collect();
            // A daemon that has ended meanwhile is seen by the next turn.
            let _ = wire::send(&socket, &reply, &beside);
        }
        let code = loop {
            match waitpid(daemon, None) {
                Err(nix::errno::Errno::EINTR) => {}
                Ok(WaitStatus::Exited(_, code)) => {
                    break u8::try_from(code)
                        .ok()
                        .and_then(ExitCode::from_code)
                        .unwrap_or(ExitCode::Software);
                }
                Ok(_) | Err(_) => break ExitCode::Software,
            }
        };
        let next = match self.held.restarts {
            true => Next::Restart,
            false => Next::End,
        };
        // Nobody waits for their outcomes any more; their mail is tried again.
        for (process, mut child) in self.held.programs.drain() {
            kill_group(process);
            let _ = child.wait();
        }
        Ok((code, next))
    }

    fn answer(&mut self, request: Request, files: Vec<OwnedFd>) -> Answer {
        let done = |files| Ok((Reply::Done, files));
        match request {
            Request::Read {
                path,
                purpose,
                who,
                lenience,
            } => self.read(&ReadRequest {
                path: &path,
                purpose,
                who,
                lenience,
                trusted: None,
            }),
            Request::Append { path, who } => {
                self.check_user(who)?;
                let lenience = safe_file::Lenience::default();
                let (file, is_new) = safe_file::open_append(&path, who, &lenience)?;
                opened(&path, file, is_new, who)
            }
            Request::Mailbox { user } => self.mailbox(&user),
            Request::IsMailbox {
                user,
                device,
                inode,
            } => {
                let (path, _) = self.mailbox_of(&user)?;
                let is_same = path.symlink_metadata().is_ok_and(|named| {
                    (named.dev(), named.ino(), named.nlink()) == (device, inode, 1)
                });
                Ok((if is_same { Reply::Done } else { Reply::No }, Vec::new()))
            }
            Request::Lock { user } => self.lock(user),
            Request::Unlock { user } => {
                self.held.locks.remove(&user);
                done(Vec::new())
            }
            Request::MaildirFile(at) => {
                self.check_maildir(&at)?;
                done(vec![maildir::make(&at)?.into()])
            }
            Request::MaildirKeep(at) => {
                self.check_maildir(&at)?;
                done(vec![maildir::keep(&at)?.into()])
            }
            Request::MaildirDrop(at) => {
                self.check_maildir(&at)?;
                maildir::forget(&at);
                done(Vec::new())
            }
            Request::Run(program) => self.run(program, files),
            Request::Kill { process } => {
                if self.held.programs.contains_key(&process) {
                    kill_group(process);
                }
                done(Vec::new())
            }
            Request::Reap { process } => self.reap(process),
            Request::PublishProcess => {
                let content = pid_file_content(&self.command_line);
                self.held.published = Some(RunFile::publish(&self.pid_file, content, 0o600)?);
                done(Vec::new())
            }
            Request::Restart => {
                self.held.restarts = true;
                done(Vec::new())
            }
        }
    }

    /// Whom may be acted for: an account with a group it is in, the default user, the daemon; never root.
    fn check_user(&self, who: Who) -> Result<(), Problem> {
        if who.uid == 0 || (who.gid == 0 && who != self.default_user) {
            return Err(Problem::Words(
                "nothing is done here with root's rights".to_owned(),
            ));
        }
        if who == self.default_user || who == self.daemon {
            return Ok(());
        }
        let user = self
            .users
            .by_uid(who.uid)
            .map_err(|error| Problem::Words(error.to_string()))?;
        let Some(user) = user else {
            return Err(Problem::Words(format!("no user has the id {}", who.uid)));
        };
        let is_member = || {
            CString::new(user.name.as_str()).is_ok_and(|name| {
                nix::unistd::getgrouplist(&name, Gid::from_raw(user.gid))
                    .is_ok_and(|groups| groups.contains(&Gid::from_raw(who.gid)))
            })
        };
        if who.gid == user.gid || is_member() {
            Ok(())
        } else {
            let text = format!("{} is not in the group {}", user.name, who.gid);
            Err(Problem::Words(text))
        }
    }

    fn check_maildir(&self, at: &MaildirFile) -> Result<(), Problem> {
        self.check_user(at.who)?;
        let is_name = !at.name.is_empty() && !at.name.starts_with('.') && !at.name.contains('/');
        match at.maildir.is_absolute() && is_name {
            true => Ok(()),
            false => Err(Problem::Words("no name for a file of a Maildir".to_owned())),
        }
    }

    /// Reads with a user's rights. A list of root's is read with the daemon's rights; root's own `.forward` is the one file
    /// that is read with root's.
    fn read(&self, request: &ReadRequest<'_>) -> Answer {
        let who = match request.who {
            Some(who) if who.uid == 0 => {
                let root = self.users.by_uid(0).ok().flatten();
                let is_roots = request.purpose == Purpose::Forward
                    && root.is_some_and(|root| request.path.parent() == Some(&*root.home))
                    && request
                        .path
                        .file_name()
                        .is_some_and(|name| name.to_string_lossy().starts_with(".forward"));
                if !is_roots {
                    return Err(safe_file::Refusal::NotOwner.into());
                }
                who
            }
            Some(who) => {
                self.check_user(who)?;
                who
            }
            None => {
                let seen = std::fs::metadata(request.path)?;
                match seen.uid() {
                    0 => self.daemon,
                    uid => Who {
                        uid,
                        gid: seen.gid(),
                    },
                }
            }
        };
        let text = safe_file::read(&ReadRequest {
            who: Some(who),
            ..request.clone()
        })?;
        let is_owners = request.who.is_some() || who == self.daemon || text.owner.uid == who.uid;
        if !is_owners {
            return Err(safe_file::Refusal::Changed.into());
        }
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let mut file =
            File::from(rustix::fs::memfd_create("text", flags).map_err(io::Error::from)?);
        file.write_all(&text.bytes)?;
        file.rewind()?;
        let reply = Reply::Text {
            owner: text.owner,
            is_writable_by_others: text.is_writable_by_others,
        };
        Ok((reply, vec![file.into()]))
    }

    /// A user's mailbox and whose it is, as this process looks it up itself.
    fn mailbox_of(&self, user: &str) -> Result<(PathBuf, MailboxOwner), Problem> {
        let found = self.users.lookup(user);
        match found.map_err(|error| Problem::Words(error.to_string()))? {
            Some(account) if !user.contains('/') && !user.starts_with('.') => Ok((
                self.mailboxes.join(user),
                MailboxOwner {
                    uid: account.uid,
                    gid: account.gid,
                },
            )),
            _ => Err(Problem::Words(format!("no user {user}"))),
        }
    }

    fn mailbox(&self, user: &str) -> Answer {
        let (path, owner) = self.mailbox_of(user)?;
        let trouble = |error: mailbox::MailboxError| Problem::Words(error.to_string());
        let file = match mailbox::open_existing(&path, owner).map_err(trouble)? {
            Some(file) => return opened(&path, file, false, self.daemon),
            None => mailbox::create(&path, owner).map_err(trouble)?,
        };
        match file {
            Some(file) => Ok((
                Reply::Opened { is_new: true },
                vec![file.into(), File::open(&self.mailboxes)?.into()],
            )),
            None => Err(Problem::Words(
                "the mailbox was just made by somebody else".to_owned(),
            )),
        }
    }

    fn lock(&mut self, user: String) -> Answer {
        let (path, _) = self.mailbox_of(&user)?;
        if self.held.locks.len() >= LOCKS_MAX {
            return Err(Problem::Words("too many locks".to_owned()));
        }
        if self.held.locks.contains_key(&user) {
            return Ok((Reply::No, Vec::new()));
        }
        let clock: &dyn Clock = &self.clock;
        let taken = LockFile::try_take(&path, clock);
        match taken.map_err(|error| Problem::Words(error.to_string()))? {
            Some(lock) => {
                self.held.locks.insert(user, lock);
                Ok((Reply::Done, Vec::new()))
            }
            None => Ok((Reply::No, Vec::new())),
        }
    }

    fn run(&mut self, asked: ProgramRequest, files: Vec<OwnedFd>) -> Answer {
        let is_roots_mailer = asked.who.uid == 0 && self.mailers.contains(&asked.path);
        if !is_roots_mailer {
            self.check_user(asked.who)?;
        }
        if let Some(login) = &asked.login {
            let account = self.users.lookup(login);
            let account = account.map_err(|error| Problem::Words(error.to_string()))?;
            if account.is_none_or(|account| account.uid != asked.who.uid) {
                return Err(Problem::Words(format!("{login} is somebody else")));
            }
        }
        if !asked.path.is_absolute() || self.held.programs.len() >= PART_PROGRAMS_MAX {
            return Err(Problem::Words("the program can't be run now".to_owned()));
        }
        let mut files = files.into_iter();
        let (Some(input), Some(output), error) = (files.next(), files.next(), files.next()) else {
            return Err(Problem::Words("nothing to read from".to_owned()));
        };
        let program = Program {
            mailer: String::new(),
            path: asked.path,
            arguments: asked.arguments,
            who: asked.who,
            login: asked.login,
            directories: asked.directories,
            time_limit: std::time::Duration::MAX,
            preamble: String::new(),
            form: Form::PLAIN,
            environment: asked
                .environment
                .into_iter()
                // What the loader believes must not come from a daemon that was taken over.
                .filter(|(name, _)| !name.starts_with("LD_"))
                .map(|(name, value)| (name, value.into()))
                .collect(),
            part: None,
        };
        let child = program.spawn(input, output, error)?;
        let process = child.id();
        let raw = i32::try_from(process)
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        let end = match raw.map(|pid| pidfd_open(pid, PidfdFlags::empty())) {
            Some(Ok(end)) => end,
            failed => {
                kill_group(process);
                self.held.programs.insert(process, child);
                let _ = self.reap(process);
                let error = failed.and_then(Result::err).map(io::Error::from);
                return Err(error.unwrap_or_else(|| io::ErrorKind::Other.into()).into());
            }
        };
        self.held.programs.insert(process, child);
        Ok((Reply::Started { process }, vec![end]))
    }

    /// Blocks only if the program was not seen to end, or is being killed.
    fn reap(&mut self, process: u32) -> Answer {
        let Some(mut child) = self.held.programs.remove(&process) else {
            return Err(Problem::Words("no such program".to_owned()));
        };
        let (code, signal) = program::end_of(&mut child)?;
        Ok((Reply::Ended { code, signal }, Vec::new()))
    }
}

fn opened(path: &Path, file: File, is_new: bool, who: Who) -> Answer {
    let mut files = vec![OwnedFd::from(file)];
    if is_new {
        let folder = path.parent().unwrap_or(Path::new("/"));
        files.push(safe_file::as_user(who, || File::open(folder))?.into());
    }
    Ok((Reply::Opened { is_new }, files))
}

fn kill_group(process: u32) {
    if let Ok(group) = i32::try_from(process) {
        // One that is gone needs no killing.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
}
