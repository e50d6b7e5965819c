//! What the privileged part does for the daemon, and what it refuses (L5).
//!
//! A thread for each connection answers one request after the other, so that one that hangs holds up no other. Each looks
//! at its request again: nobody is acted for but accounts of this host with a group of their own and the default user;
//! never root, but for its mailbox, its `.forward` and programs that the configuration defines as mailers; mailboxes are
//! those of the configured directory. What a request names beyond that is refused, and the mail waits. A thread has a
//! user's rights on files only while it acts for that user. No lock of ours is held while the disk or NSS may block.
//! Limits: [`LOCKS_MAX`], [`PART_PROGRAMS_MAX`], those of the messages. Blocks: disk and NSS.
//! Source: op.me 4.9 for who may be acted for.

use std::collections::HashMap;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Gid, Pid};
use rustix::process::{PidfdFlags, pidfd_open};

use super::named_files::NamedFiles;
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::config::mailer::{ProgramLimits, Transport};
use crate::deliver::MailboxOwner;
use crate::deliver::mailbox::{self, LockFile};
use crate::deliver::maildir;
use crate::deliver::mbox::Form;
use crate::deliver::program::{self, Program};
use crate::privileged::wire::{
    self, FILES_MAX, MaildirFile, Problem, ProgramRequest, Reply, Request,
};
use crate::programs::run_file::{RunFile, pid_file_content};
use crate::programs::wiring::file_lenience;
use crate::route::ListLenience;
use crate::safe_file::{self, Lenience, Purpose, ReadRequest, Who};
use crate::users::Users;

/// Lock files held at once.
pub(super) const LOCKS_MAX: usize = 1024;
/// Programs that run at once; the daemon's own limit is lower.
pub(super) const PART_PROGRAMS_MAX: usize = 256;

/// What the part knows and holds.
pub(super) struct Keeper {
    mailboxes: PathBuf,
    /// What is let pass of the files that aliases and `.forward`s name.
    file_lenience: Lenience,
    /// What is let pass of `.forward`s and lists.
    list_lenience: ListLenience,
    users: Users,
    daemon: Who,
    default_user: Who,
    /// What is opened for the daemon to read.
    named_files: NamedFiles,
    /// Programs that may run as root for root.
    mailers: Vec<PathBuf>,
    limits: ProgramLimits,
    pid_file: PathBuf,
    command_line: Vec<OsString>,
    clock: SystemClock,
    held: Mutex<Held>,
}

/// What goes with the daemon.
#[derive(Default)]
struct Held {
    /// By user; `None` while it is being taken.
    locks: HashMap<String, Option<LockFile>>,
    programs: HashMap<u32, Child>,
    /// Programs that are being started.
    starting: usize,
    published: Option<RunFile>,
    restarts: bool,
    /// The daemon is gone: nothing more is begun.
    is_over: bool,
}

type Answer = Result<(Reply, Vec<OwnedFd>), Problem>;

impl Keeper {
    pub(super) fn new(
        config: &Config,
        daemon: Who,
        default_user: Who,
        command_line: &[OsString],
    ) -> Self {
        let shell = &config.deliver.local_shell;
        Self {
            mailboxes: config.paths.mailbox_directory.clone(),
            file_lenience: file_lenience(config),
            list_lenience: ListLenience::of(config.route.dont_blame),
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
                .filter(|path| path != shell && !is_shell(path))
                .collect(),
            named_files: NamedFiles::of(&config.route),
            limits: config.deliver.program_limits,
            pid_file: config.paths.pid_file.clone(),
            command_line: command_line.to_vec(),
            clock: SystemClock::new(),
            held: Mutex::default(),
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers the requests of one connection until the daemon has ended.
    pub(super) fn serve(&self, socket: &OwnedFd) {
        loop {
            let (reply, files) = match wire::receive::<Request>(socket) {
                Ok(None) => return,
                Ok(Some((request, files))) => self.answer(request, files),
                Err(error) => Err(error.into()),
            }
            .unwrap_or_else(|problem| (Reply::Refused(problem), Vec::new()));
            let beside: Vec<_> = files.iter().take(FILES_MAX).map(AsFd::as_fd).collect();
            let Err(error) = wire::send(socket, &reply, &beside) else {
                continue;
            };
            // What can't be told is not begun.
            if let Reply::Started { process } = reply {
                kill_group(process);
                let _ = self.reap(process);
            }
            let refused = Reply::Refused(Problem::Words(error.to_string()));
            if wire::is_end(&error) || wire::send(socket, &refused, &[]).is_err() {
                // The daemon has ended, and what it held ends with it.
                return;
            }
        }
    }

    /// Ends what goes with the daemon; whether it is to start anew. Nobody waits for the outcomes of its programs any more;
    /// their mail is tried again.
    pub(super) fn end(&self) -> bool {
        let mut held = std::mem::replace(
            &mut *self.held(),
            Held {
                is_over: true,
                ..Held::default()
            },
        );
        for (process, mut child) in held.programs.drain() {
            kill_group(process);
            let _ = child.wait();
        }
        held.restarts
    }

    fn answer(&self, request: Request, files: Vec<OwnedFd>) -> Answer {
        let done = |files| Ok((Reply::Done, files));
        match request {
            Request::Read { path, purpose, who } => self.read(&ReadRequest {
                path: &path,
                purpose,
                who,
                lenience: match purpose {
                    Purpose::Forward => self.list_lenience.forward,
                    Purpose::Include => self.list_lenience.include,
                    Purpose::Class => self.list_lenience.class,
                },
                trusted: None,
            }),
            Request::OpenNamed { path } => done(vec![self.named_files.open(&path)?.into()]),
            Request::Append { path, who } => {
                self.check_user(who)?;
                let (file, directory) = safe_file::open_append(&path, who, &self.file_lenience)?;
                opened(file, directory)
            }
            Request::Mailbox { user } => self.mailbox(&user),
            Request::IsMailbox {
                user,
                device,
                inode,
            } => {
                let (path, _) = self.mailbox_of(&user)?;
                let is_same = match path.symlink_metadata() {
                    Ok(named) => (named.dev(), named.ino(), named.nlink()) == (device, inode, 1),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => false,
                    // Not to know is not to be gone (I9).
                    Err(error) => return Err(error.into()),
                };
                Ok((if is_same { Reply::Done } else { Reply::No }, Vec::new()))
            }
            Request::Lock { user } => self.lock(user),
            Request::Unlock { user } => {
                let lock = self.held().locks.remove(&user);
                // The file goes here, with nothing held.
                drop(lock);
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
                // Held meanwhile, so that it is not reaped, and its number is still its own.
                let held = self.held();
                if held.programs.contains_key(&process) {
                    kill_group(process);
                }
                drop(held);
                done(Vec::new())
            }
            Request::Reap { process } => self.reap(process),
            Request::PublishProcess => {
                self.publish_process()?;
                done(Vec::new())
            }
            Request::Restart => {
                let mut held = self.held();
                if held.is_over {
                    return Err(is_over());
                }
                held.restarts = true;
                drop(held);
                done(Vec::new())
            }
        }
    }

    fn publish_process(&self) -> Result<(), Problem> {
        let held = self.held();
        if held.is_over {
            return Err(is_over());
        }
        if held.published.is_some() {
            return Ok(());
        }
        drop(held);
        let content = pid_file_content(&self.command_line);
        let published = RunFile::publish(&self.pid_file, content, 0o600)?;
        let mut held = self.held();
        if held.is_over {
            drop(held);
            // The file goes here, with nothing held.
            drop(published);
            return Err(is_over());
        }
        // Of two that were made at once the file is one and the same, and goes with the last.
        let replaced = held.published.replace(published);
        drop(held);
        std::mem::forget(replaced);
        Ok(())
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
            None => self.reader_for(std::fs::metadata(request.path)?.uid())?,
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

    /// Whom a list is read as, by whose it is. A file's group says nothing of its owner's: it may be any that its folder
    /// gave it. Owners without an account have the default user's.
    fn reader_for(&self, owner_uid: u32) -> Result<Who, Problem> {
        if owner_uid == 0 {
            return Ok(self.daemon);
        }
        let account = self.users.by_uid(owner_uid);
        let account = account.map_err(|error| Problem::Words(error.to_string()))?;
        let gid = match account {
            Some(account) if account.gid != 0 => account.gid,
            _ => self.default_user.gid,
        };
        Ok(Who {
            uid: owner_uid,
            gid,
        })
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
            Some(file) => return opened(file, None),
            None => mailbox::create(&path, owner).map_err(trouble)?,
        };
        match file {
            Some(file) => opened(file, Some(File::open(&self.mailboxes)?)),
            None => Err(Problem::Words(
                "the mailbox was just made by somebody else".to_owned(),
            )),
        }
    }

    fn lock(&self, user: String) -> Answer {
        let (path, _) = self.mailbox_of(&user)?;
        let mut held = self.held();
        if held.is_over || held.locks.len() >= LOCKS_MAX {
            return Err(Problem::Words("too many locks".to_owned()));
        }
        if held.locks.contains_key(&user) {
            return Ok((Reply::No, Vec::new()));
        }
        held.locks.insert(user.clone(), None);
        drop(held);
        let clock: &dyn Clock = &self.clock;
        let taken = LockFile::try_take(&path, clock);
        let mut held = self.held();
        match taken {
            Ok(Some(lock)) if !held.is_over => {
                held.locks.insert(user, Some(lock));
                Ok((Reply::Done, Vec::new()))
            }
            not_taken => {
                held.locks.remove(&user);
                drop(held);
                match not_taken {
                    Ok(_) => Ok((Reply::No, Vec::new())),
                    Err(error) => Err(Problem::Words(error.to_string())),
                }
            }
        }
    }

    fn run(&self, asked: ProgramRequest, files: Vec<OwnedFd>) -> Answer {
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
        if !asked.path.is_absolute() {
            return Err(Problem::Words("the program has no place".to_owned()));
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
            // Nothing of the daemon's, which the loader or an interpreter might believe.
            environment: Vec::new(),
            limits: self.limits,
            part: None,
        };
        let mut held = self.held();
        if held.is_over || held.programs.len() + held.starting >= PART_PROGRAMS_MAX {
            return Err(Problem::Words("the program can't be run now".to_owned()));
        }
        held.starting += 1;
        drop(held);
        let spawned = program.spawn(input, output, error);
        let mut held = self.held();
        held.starting -= 1;
        let mut child = spawned?;
        let process = child.id();
        if held.is_over {
            kill_group(process);
            let _ = child.wait();
            return Err(is_over());
        }
        held.programs.insert(process, child);
        drop(held);
        let raw = i32::try_from(process)
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        let end = match raw.map(|pid| pidfd_open(pid, PidfdFlags::empty())) {
            Some(Ok(end)) => end,
            failed => {
                kill_group(process);
                let _ = self.reap(process);
                let error = failed.and_then(Result::err).map(io::Error::from);
                return Err(error.unwrap_or_else(|| io::ErrorKind::Other.into()).into());
            }
        };
        Ok((Reply::Started { process }, vec![end]))
    }

    /// Blocks only if the program was not seen to end, or is being killed.
    fn reap(&self, process: u32) -> Answer {
        let child = self.held().programs.remove(&process);
        let Some(mut child) = child else {
            return Err(Problem::Words("no such program".to_owned()));
        };
        let (code, signal) = program::end_of(&mut child)?;
        Ok((Reply::Ended { code, signal }, Vec::new()))
    }
}

fn is_over() -> Problem {
    Problem::Words("the daemon has ended".to_owned())
}

/// A file, and its directory if it is new.
fn opened(file: File, directory: Option<File>) -> Answer {
    let is_new = directory.is_some();
    let files = [Some(file), directory];
    Ok((
        Reply::Opened { is_new },
        files.into_iter().flatten().map(OwnedFd::from).collect(),
    ))
}

/// Whether a program has a shell's name, as `/bin/bash` has.
fn is_shell(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default();
    name.as_bytes().ends_with(b"sh")
}

fn kill_group(process: u32) {
    if let Ok(group) = i32::try_from(process) {
        // One that is gone needs no killing.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Role;

    /// A keeper whose mailboxes are in a folder, with the users bob and eve (who has root's group), of ids that the
    /// system does not have.
    fn keeper(folder: &Path, mailboxes: &Path) -> Keeper {
        let mut config = Config::defaults(Role::Mta, None);
        let passwd = folder.join("passwd");
        let accounts = "bob:x:52107:52108::/home/bob:/bin/sh\neve:x:52109:0::/home/eve:/bin/sh\n";
        std::fs::write(&passwd, accounts).unwrap();
        config.paths.passwd_file = Some(passwd);
        config.paths.mailbox_directory = mailboxes.to_owned();
        config.paths.pid_file = folder.join("pid");
        let who = |id| Who { uid: id, gid: id };
        Keeper::new(&config, who(101), who(102), &["sendmail".into()])
    }

    fn ask(keeper: &Keeper, request: Request) -> Result<Reply, Problem> {
        Ok(keeper.answer(request, Vec::new())?.0)
    }

    #[test]
    fn shells_are_no_mailers_for_root() {
        for shell in [
            "/bin/sh",
            "/bin/bash",
            "/usr/bin/dash",
            "/bin/rbash",
            "/x/smrsh",
        ] {
            assert!(is_shell(Path::new(shell)), "{shell}");
        }
        for program in ["/usr/bin/procmail", "/usr/sbin/shift", "/sh/uux", "/"] {
            assert!(!is_shell(Path::new(program)), "{program}");
        }
    }

    /// A list's group was taken for its owner's.
    #[test]
    fn a_list_is_read_with_a_group_of_its_owners_account() {
        let folder = tempfile::tempdir().unwrap();
        let keeper = keeper(folder.path(), folder.path());
        for (uid, gid) in [(52_107, 52_108), (52_109, 102), (52_110, 102)] {
            assert_eq!(keeper.reader_for(uid).unwrap(), Who { uid, gid });
        }
        assert_eq!(keeper.reader_for(0).unwrap(), keeper.daemon);
    }

    /// Any trouble was taken for a mailbox that is not there any more.
    #[test]
    fn a_mailbox_that_can_not_be_looked_at_is_not_gone() {
        let folder = tempfile::tempdir().unwrap();
        let is_mailbox = |mailboxes: &Path, inode| {
            let request = Request::IsMailbox {
                user: "bob".into(),
                device: folder.path().metadata().unwrap().dev(),
                inode,
            };
            ask(&keeper(folder.path(), mailboxes), request)
        };
        assert_eq!(is_mailbox(folder.path(), 1), Ok(Reply::No));
        let mailbox = folder.path().join("bob");
        std::fs::write(&mailbox, "").unwrap();
        let inode = mailbox.metadata().unwrap().ino();
        assert_eq!(is_mailbox(folder.path(), inode), Ok(Reply::Done));
        assert_eq!(is_mailbox(folder.path(), inode + 1), Ok(Reply::No));
        // A file where the folder was.
        let trouble = is_mailbox(&mailbox, inode);
        assert_eq!(trouble, Err(Problem::System(nix::libc::ENOTDIR)));
    }

    #[test]
    fn the_pid_file_is_made_once_and_not_after_the_daemons_end() {
        let folder = tempfile::tempdir().unwrap();
        let keeper = keeper(folder.path(), folder.path());
        let pid_file = folder.path().join("pid");
        for _ in 0..2 {
            assert_eq!(ask(&keeper, Request::PublishProcess), Ok(Reply::Done));
            assert!(pid_file.exists());
        }
        assert!(!keeper.end());
        assert!(!pid_file.exists());
        assert_eq!(ask(&keeper, Request::PublishProcess), Err(is_over()));
        assert_eq!(ask(&keeper, Request::Restart), Err(is_over()));
        assert!(!pid_file.exists());
    }
}
