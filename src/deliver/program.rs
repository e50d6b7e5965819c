//! Programs that take mail on their standard input (L2): the mailer `prog` and those of one's own.
//!
//! A program runs in a session of its own with the rights of one user and nothing of ours open but three descriptors; its
//! exit code, of sysexits(3), is the outcome; what it says goes into the report. Guarantees: never longer than its time
//! limit, after which all of its process group is killed and the mail waits; a program that does not read, does not end or
//! writes without end takes bounded memory and no thread beyond its own end; one that forks and stays is not waited for,
//! and what it leaves in its group is killed. A message that can't be read whole never looks whole to a program: it is
//! killed before its input ends. Without root's rights a program
//! runs as this process's user only; for anybody else the mail waits.
//! Limits: [`OUTPUT_BYTES_MAX`], [`OUTPUT_LINES_MAX`], [`PROGRAMS_MAX`], the time limit given, [`ProgramLimits`]. Blocks: never; a thread of the blocking pool waits for each program.
//! Source: op.me 5.4, sysexits(3), transcript 62 for texts.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Gid, Pid, Uid};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::{JoinHandle, spawn_blocking};

use super::content::Pieces;
use super::exit_code::{self, End};
use super::mailbox::describe;
use super::mbox::{Converter, Form};
use super::{Attempt, ContentOpener};
use crate::config::mailer::ProgramLimits;
use crate::envelope::{Delivery, Outcome};
use crate::privileged::wire::ProgramRequest;
use crate::privileged::{Part, Started};
use crate::safe_file::Who;
use crate::status::Status;

/// The most that is kept of what a program says, in bytes; the rest is read and dropped.
pub const OUTPUT_BYTES_MAX: usize = 16 << 10;
/// The same in lines.
pub const OUTPUT_LINES_MAX: usize = 100;
/// Programs that run at once.
pub const PROGRAMS_MAX: usize = 32;
/// Bytes read of a program's output at once.
const READ_BYTES: usize = 4096;
/// Reads of a program's output before the clock is looked at again.
const READS_MAX: usize = 64;

/// A program to be run.
#[derive(Clone)]
pub(crate) struct Program {
    /// The mailer's name, for the log.
    pub(crate) mailer: String,
    pub(crate) path: PathBuf,
    /// The first is what the program is told to be called.
    pub(crate) arguments: Vec<String>,
    pub(crate) who: Who,
    /// The user's login name, whose groups it gets; `None` for none but that of `who`.
    pub(crate) login: Option<String>,
    /// The first of them that can be entered.
    pub(crate) directories: Vec<PathBuf>,
    pub(crate) time_limit: Duration,
    /// What comes before the content.
    pub(crate) preamble: String,
    pub(crate) form: Form,
    /// Variables besides AGENT and TZ, as a sandbox has them, which has no privileged part.
    pub(crate) environment: Vec<(String, OsString)>,
    /// What it may use up. A privileged part knows its own.
    pub(crate) limits: ProgramLimits,
    /// What runs it, if this process has not got the user's rights.
    pub(crate) part: Option<Arc<Part>>,
}

/// Limits what this process may use up. No program dumps core: what it was given of a message would lie about. Makes
/// system calls only.
fn set_limits(limits: ProgramLimits) -> io::Result<()> {
    lower(Resource::RLIMIT_CORE, 0, 0)?;
    if let Some(cpu) = limits.cpu {
        // A second after SIGXCPU, which it may heed, comes SIGKILL.
        let seconds = cpu.as_secs().max(1);
        lower(Resource::RLIMIT_CPU, seconds, seconds.saturating_add(1))?;
    }
    if let Some(memory) = limits.memory {
        lower(Resource::RLIMIT_AS, memory.as_bytes(), memory.as_bytes())?;
    }
    Ok(())
}

/// Sets a limit, but none above the one there is.
fn lower(resource: Resource, soft: u64, hard: u64) -> io::Result<()> {
    let (_, most) = getrlimit(resource)?;
    setrlimit(resource, soft.min(most), hard.min(most))?;
    Ok(())
}

/// Runs programs.
pub(crate) struct Programs {
    places: Semaphore,
}

/// What became of a program.
enum Ran {
    Ended { end: End, output: Vec<String> },
    TimedOut,
}

impl Programs {
    pub(crate) fn new() -> Self {
        Self {
            places: Semaphore::new(PROGRAMS_MAX),
        }
    }

    /// A place for one program to run in, until it is dropped. Waits until there is one.
    pub(crate) async fn place(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed.
        self.places.acquire().await.ok()
    }

    /// Runs one program and gives what became of it.
    pub(crate) async fn run(&self, program: Program, attempt: &Attempt) -> Outcome {
        let _place = self.place().await;
        match run(&program, &attempt.content).await {
            Ok(Ran::Ended { end, output }) => exit_code::outcome(
                &program.mailer,
                &program.path.display().to_string(),
                end,
                output,
            ),
            Ok(Ran::TimedOut) => {
                let limit = program.time_limit.as_secs();
                program.deferred(&format!("{} took longer than {limit} s", program.name()))
            }
            // The operator's to mend: a program that is missing now may be there later.
            Err(Trouble::Start(error)) => program.deferred(&format!(
                "{} can't be run: {}",
                program.name(),
                describe(&error)
            )),
            Err(Trouble::Content(error)) => {
                program.deferred(&format!("content of the message: {error}"))
            }
        }
    }
}

/// Why a program could not do its work.
enum Trouble {
    Start(io::Error),
    Content(io::Error),
}

/// Runs a program on a message: what comes before the content, then the content in its form.
async fn run(program: &Program, content: &ContentOpener) -> Result<Ran, Trouble> {
    let pipes = || -> io::Result<_> { Ok((io::pipe()?, io::pipe()?)) };
    let ((input_read, input_write), (output_read, output_write)) =
        pipes().map_err(Trouble::Start)?;
    let started = program.clone();
    // Open for as long as it is being started, whatever becomes of this attempt.
    let feeding = input_write.try_clone().map_err(Trouble::Start)?;
    let running = spawn_blocking(move || {
        let feeding = Some(feeding.as_fd());
        started.start(input_read.into(), output_write.into(), None, feeding)
    })
    .await
    .map_err(|error| Trouble::Start(io::Error::other(error)))?
    .map_err(Trouble::Start)?;
    let mut guard = running.guard();
    let ours = || -> io::Result<_> {
        Ok((
            pipe::Sender::from_owned_fd(input_write.into())?,
            pipe::Receiver::from_owned_fd(output_read.into())?,
        ))
    };
    let (input, output) = ours().map_err(Trouble::Start)?;
    let mut input = Some(input);
    let mut ending = spawn_blocking(move || running.wait());
    let mut kept = Vec::new();
    let mut feeding = Box::pin(feed(&mut input, program, content));
    let mut is_fed = false;
    let deadline = tokio::time::sleep(program.time_limit);
    tokio::pin!(deadline);
    let given_up = loop {
        tokio::select! {
            ended = &mut ending => {
                guard.is_over = true;
                let end = ended
                    .map_err(io::Error::other)
                    .and_then(|ended| ended)
                    .map_err(Trouble::Start)?;
                // The ended program can write no more; what it wrote is in the pipe. Others that hold the pipe are
                // not waited for.
                take_rest(output, &mut kept).map_err(Trouble::Start)?;
                return Ok(Ran::Ended { end, output: lines(&kept) });
            }
            fed = &mut feeding, if !is_fed => {
                is_fed = true;
                if let Err(error) = fed {
                    // Killed while its input is still open: it must not take a cut message for a whole one.
                    break Err(Trouble::Content(error));
                }
            }
            () = drain(&output, &mut kept) => {}
            () = &mut deadline => break Ok(Ran::TimedOut),
        }
    };
    guard.kill();
    // Killed, it ends; how, does not matter any more.
    let _ = ending.await;
    guard.is_over = true;
    given_up
}

/// A program that is talked to over its standard input and output; killed with its group if it is dropped under way.
pub(crate) struct Talking {
    guard: KillGroup,
    ending: JoinHandle<io::Result<End>>,
    stream: Option<StdUnixStream>,
}

impl Talking {
    /// Starts it; what it complains of goes nowhere, as it would be taken for an answer.
    ///
    /// # Errors
    /// It could not be started; temporary.
    pub(crate) async fn start(program: &Program) -> io::Result<Self> {
        let program = program.clone();
        let (running, stream) = spawn_blocking(move || -> io::Result<_> {
            let (ours, theirs) = StdUnixStream::pair()?;
            let theirs = OwnedFd::from(theirs);
            let nowhere = File::options().write(true).open("/dev/null")?;
            let running = program.start(theirs.try_clone()?, theirs, Some(nowhere.into()), None)?;
            ours.set_nonblocking(true)?;
            Ok((running, ours))
        })
        .await
        .map_err(io::Error::other)??;
        Ok(Self {
            guard: running.guard(),
            ending: spawn_blocking(move || running.wait()),
            stream: Some(stream),
        })
    }

    /// What it is talked to over; to be had once.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn stream(&mut self) -> io::Result<UnixStream> {
        let stream = self.stream.take().ok_or(io::ErrorKind::NotConnected)?;
        UnixStream::from_std(stream)
    }

    /// Waits until it has ended, at most so long; then it is killed.
    pub(crate) async fn end(mut self, limit: Duration) {
        self.guard.is_over = tokio::time::timeout(limit, &mut self.ending).await.is_ok();
    }
}

/// Writes the message and closes the input; leaves it open if the content can't be read. A program that does not want all
/// of it may say so by its exit code alone.
async fn feed(
    input: &mut Option<pipe::Sender>,
    program: &Program,
    content: &ContentOpener,
) -> io::Result<()> {
    let mut pieces = Pieces::open(content);
    let mut converter = Converter::new(program.form);
    let mut out = program.preamble.clone().into_bytes();
    loop {
        let piece = pieces.next().await?;
        match &piece {
            Some(piece) => converter.piece(piece, &mut out)?,
            None => converter.end(&mut out)?,
        }
        let is_written = match input.as_mut() {
            Some(pipe) => pipe.write_all(&out).await.is_ok(),
            None => false,
        };
        if !is_written || piece.is_none() {
            // All is written, or the program has closed its input or ended.
            *input = None;
            return Ok(());
        }
        out.clear();
    }
}

impl Program {
    fn name(&self) -> String {
        format!("{} mailer ({})", self.mailer, self.path.display())
    }

    fn deferred(&self, reason: &str) -> Outcome {
        let text = format!("Deferred: {reason}");
        Outcome::new(Delivery::Deferred, Status::new(4, 0, 0), &self.mailer, text)
    }

    /// Starts it. Blocks for as long as the system takes to.
    /// Without an `error` of its own what it complains of goes where its output goes; `feeding` is as [`Part::run`] has it.
    fn start(
        &self,
        input: OwnedFd,
        output: OwnedFd,
        error: Option<OwnedFd>,
        feeding: Option<BorrowedFd<'_>>,
    ) -> io::Result<Running> {
        if let Some(part) = &self.part {
            let started = part.run(self.request(), &input, &output, error.as_ref(), feeding)?;
            return Ok(Running::Parts {
                part: Arc::clone(part),
                started,
            });
        }
        self.spawn(input, output, error).map(Running::Ours)
    }

    /// What the privileged part is asked for.
    fn request(&self) -> ProgramRequest {
        ProgramRequest {
            path: self.path.clone(),
            arguments: self.arguments.clone(),
            who: self.who,
            login: self.login.clone(),
            directories: self.directories.clone(),
        }
    }

    /// Starts it as a child of this process.
    ///
    /// # Errors
    /// The system's, or no rights to become its user.
    pub(crate) fn spawn(
        &self,
        input: OwnedFd,
        output: OwnedFd,
        error: Option<OwnedFd>,
    ) -> io::Result<Child> {
        let (name, arguments) = self
            .arguments
            .split_first()
            .ok_or_else(|| io::Error::other("no arguments"))?;
        let is_root = Uid::effective().is_root();
        if !is_root && self.who.uid != Uid::effective().as_raw() {
            let what = format!("no rights to become user {}", self.who.uid);
            return Err(io::Error::other(what));
        }
        let mut command = Command::new(&self.path);
        command
            .arg0(name)
            .args(arguments)
            .env_clear()
            .env("AGENT", "sendmail")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::from(input))
            .stdout(Stdio::from(output))
            .current_dir(self.directory());
        if let Some(zone) = std::env::var_os("TZ") {
            command.env("TZ", zone);
        }
        let has_own_error = error.is_some();
        if let Some(error) = error {
            command.stderr(Stdio::from(error));
        }
        let groups = match (&self.login, is_root) {
            (_, false) => None,
            (Some(login), true) => {
                let login = std::ffi::CString::new(login.as_str()).map_err(io::Error::other)?;
                Some(nix::unistd::getgrouplist(
                    &login,
                    Gid::from_raw(self.who.gid),
                )?)
            }
            (None, true) => Some(vec![Gid::from_raw(self.who.gid)]),
        };
        let (uid, gid) = (Uid::from_raw(self.who.uid), Gid::from_raw(self.who.gid));
        let limits = self.limits;
        let prepare = move || -> io::Result<()> {
            nix::unistd::setsid()?;
            set_limits(limits)?;
            if let Some(groups) = &groups {
                nix::unistd::setgroups(groups)?;
                nix::unistd::setresgid(gid, gid, gid)?;
                nix::unistd::setresuid(uid, uid, uid)?;
            }
            nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
            if !has_own_error {
                rustix::stdio::dup2_stderr(rustix::stdio::stdout())?;
            }
            Ok(())
        };
        #[expect(unsafe_code, reason = "becoming a user is done between fork and exec")]
        // SAFETY: the closure makes system calls only; its memory was allocated before the fork.
        unsafe {
            command.pre_exec(prepare)
        };
        command.spawn()
    }

    /// The first directory that can be entered by the user; `/` if none can.
    fn directory(&self) -> &Path {
        let can_enter = |directory: &&PathBuf| {
            crate::safe_file::as_user(self.who, || {
                rustix::fs::access(directory.as_path(), rustix::fs::Access::EXEC_OK).is_ok()
                    && directory.is_dir()
            })
        };
        self.directories
            .iter()
            .find(can_enter)
            .map_or(Path::new("/"), PathBuf::as_path)
    }
}

/// Waits for output and takes it; never comes back once there can be none.
async fn drain(output: &pipe::Receiver, kept: &mut Vec<u8>) {
    loop {
        let is_open = match output.readable().await {
            Ok(()) => take_ready(output, kept),
            Err(_) => false,
        };
        // A program that writes without end must not keep the clock from being looked at.
        tokio::task::yield_now().await;
        if !is_open {
            std::future::pending::<()>().await;
        }
    }
}

/// Takes the output that is there, as far as it is kept; whether more may come.
fn take_ready(output: &pipe::Receiver, kept: &mut Vec<u8>) -> bool {
    for _ in 0..READS_MAX {
        let mut buffer = [0; READ_BYTES];
        match output.try_read(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => {
                let room = OUTPUT_BYTES_MAX.saturating_sub(kept.len()).min(count);
                kept.extend_from_slice(buffer.get(..room).unwrap_or_default());
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            Err(_) => return false,
        }
    }
    true
}

/// Takes what the pipe holds and no more: asked directly, as the runtime may not have noticed it yet.
fn take_rest(output: pipe::Receiver, kept: &mut Vec<u8>) -> io::Result<()> {
    let mut output = File::from(output.into_nonblocking_fd()?);
    let mut buffer = [0; READ_BYTES];
    while kept.len() < OUTPUT_BYTES_MAX {
        let Ok(count @ 1..) = output.read(&mut buffer) else {
            break;
        };
        let room = OUTPUT_BYTES_MAX.saturating_sub(kept.len()).min(count);
        kept.extend_from_slice(buffer.get(..room).unwrap_or_default());
    }
    Ok(())
}

/// Output as lines for log and report.
fn lines(output: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(output)
        .lines()
        .take(OUTPUT_LINES_MAX)
        .map(str::to_owned)
        .collect()
}

/// Kills a process group when it is dropped before its first process has ended: the attempt was given up.
struct KillGroup {
    group: Pid,
    is_over: bool,
    part: Option<Arc<Part>>,
}

impl KillGroup {
    /// Kills the group; the first process is still to be waited for.
    fn kill(&self) {
        match (&self.part, u32::try_from(self.group.as_raw())) {
            (Some(part), Ok(process)) => {
                let part = Arc::clone(part);
                // A runtime that is gone is a daemon that is ending, whose programs the part kills itself.
                if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                    runtime.spawn_blocking(move || part.kill(process));
                }
            }
            // A group that is gone needs no killing.
            _ => drop(killpg(self.group, Signal::SIGKILL)),
        }
    }
}

impl Drop for KillGroup {
    fn drop(&mut self) {
        if !self.is_over {
            self.kill();
        }
    }
}

/// A program under way.
enum Running {
    Ours(Child),
    Parts { part: Arc<Part>, started: Started },
}

impl Running {
    fn group(&self) -> Pid {
        let process = match self {
            Self::Ours(child) => child.id(),
            Self::Parts { started, .. } => started.process,
        };
        Pid::from_raw(i32::try_from(process).unwrap_or(i32::MAX))
    }

    fn guard(&self) -> KillGroup {
        KillGroup {
            group: self.group(),
            is_over: false,
            part: match self {
                Self::Ours(_) => None,
                Self::Parts { part, .. } => Some(Arc::clone(part)),
            },
        }
    }

    /// Waits for its end, and kills what it leaves in its group. Blocks until then.
    fn wait(self) -> io::Result<End> {
        let (code, signal) = match self {
            Self::Ours(mut child) => end_of(&mut child)?,
            Self::Parts { part, started } => {
                let mut waited = [rustix::event::PollFd::new(
                    &started.end,
                    rustix::event::PollFlags::IN,
                )];
                while let Err(rustix::io::Errno::INTR) = rustix::event::poll(&mut waited, None) {}
                part.reap(started.process)?
            }
        };
        Ok(match code {
            Some(code) => End::Code(code),
            None => End::Signal(signal.unwrap_or(0)),
        })
    }
}

/// Waits for the end of a program that leads its group, and kills what it leaves there: its exit code or its signal.
/// Blocks until then.
///
/// # Errors
/// The system's.
pub(crate) fn end_of(child: &mut Child) -> io::Result<(Option<i32>, Option<i32>)> {
    let group = Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX));
    // Looked at without being taken away, so that the group's number still means this group when it is killed.
    while let Err(nix::errno::Errno::EINTR) =
        waitid(Id::Pid(group), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT)
    {}
    let _ = killpg(group, Signal::SIGKILL);
    let status = child.wait()?;
    Ok((status.code(), status.signal()))
}
