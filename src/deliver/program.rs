//! Programs that take mail on their standard input (L2): the mailer `prog` and those of one's own.
//!
//! A program runs in a session of its own with the rights of one user and nothing of ours open but three descriptors; its
//! exit code, of sysexits(3), is the outcome; what it says goes into the report. Guarantees: never longer than its time
//! limit, after which all of its process group is killed and the mail waits; a program that does not read, does not end or
//! writes without end takes bounded memory; one that forks and stays is not waited for. Without root's rights a program
//! runs as this process's user only; for anybody else the mail waits.
//! Limits: [`OUTPUT_BYTES_MAX`], [`PROGRAMS_MAX`], the time limit given. Blocks: never; files and pipes on the blocking pool.
//! Source: op.me 5.4, sysexits(3), transcript 62 for texts.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Gid, Pid, Uid};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use tokio::sync::Semaphore;

use super::mbox::{self, Form};
use super::{Attempt, ContentOpener};
use crate::envelope::{Delivery, Outcome};
use crate::safe_file::Who;
use crate::status::Status;

/// The most that is kept of what a program says; the rest is read and dropped.
pub const OUTPUT_BYTES_MAX: usize = 16 << 10;
/// Programs that run at once.
pub const PROGRAMS_MAX: usize = 32;
/// How long output is waited for once the program has ended: whoever it left behind may hold the pipe for ever.
const LAST_WORDS_MAX: Duration = Duration::from_millis(500);

/// A program to be run.
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
    /// Variables besides AGENT and TZ.
    pub(crate) environment: Vec<(String, OsString)>,
}

/// Runs programs.
pub(crate) struct Programs {
    places: Semaphore,
}

impl Programs {
    pub(crate) fn new() -> Self {
        Self {
            places: Semaphore::new(PROGRAMS_MAX),
        }
    }

    /// Runs one program and gives what became of it.
    pub(crate) async fn run(&self, program: &Program, attempt: &Attempt) -> Outcome {
        let Ok(_place) = self.places.acquire().await else {
            return program.deferred("no place to run in");
        };
        let mut child = match program.start() {
            Ok(child) => child,
            Err(error) => return program.not_started(&error),
        };
        let group = child.id();
        let fed = child.stdin.take().map(|stdin| {
            feed(
                stdin.into_owned_fd(),
                Arc::clone(&attempt.content),
                program.preamble.clone(),
                program.form,
            )
        });
        let mut output = Output::default();
        let ended = tokio::time::timeout(program.time_limit, async {
            let mut said = child.stdout.take();
            loop {
                tokio::select! {
                    ended = child.wait() => break (ended, said),
                    more = output.more(&mut said), if said.is_some() => {
                        if !more {
                            said = None;
                        }
                    }
                }
            }
        })
        .await;
        let outcome = match ended {
            Err(_) => {
                kill(group);
                let limit = program.time_limit.as_secs();
                program.deferred(&format!("{} took longer than {limit} s", program.name()))
            }
            Ok((Err(error), _)) => {
                kill(group);
                program.deferred(&format!("{}: {error}", program.name()))
            }
            Ok((Ok(status), mut said)) => {
                let rest = async { while output.more(&mut said).await {} };
                let _ = tokio::time::timeout(LAST_WORDS_MAX, rest).await;
                program.outcome(status)
            }
        };
        // The feeder ends with the pipe; content that could not be read makes the outcome void.
        let outcome = match fed {
            Some(fed) => match fed.await {
                Ok(Err(error)) => program.deferred(&format!("content of the message: {error}")),
                _ => outcome,
            },
            None => outcome,
        };
        Outcome {
            transcript: output.text(),
            ..outcome
        }
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

    fn not_started(&self, error: &io::Error) -> Outcome {
        // The operator's to mend: a program that is missing now may be there later.
        let text = diligence_text(error);
        self.deferred(&format!("{} can't be run: {text}", self.name()))
    }

    fn start(&self) -> io::Result<Child> {
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
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .current_dir(self.directory());
        if let Some(zone) = std::env::var_os("TZ") {
            command.env("TZ", zone);
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
        let prepare = move || -> io::Result<()> {
            nix::unistd::setsid()?;
            if let Some(groups) = &groups {
                nix::unistd::setgroups(groups)?;
                nix::unistd::setresgid(gid, gid, gid)?;
                nix::unistd::setresuid(uid, uid, uid)?;
            }
            nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
            // What it complains of is to be read where it is reported.
            rustix::stdio::dup2_stderr(rustix::stdio::stdout())?;
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

    /// What an end of the program means. Source: sysexits(3), Sendmail's words for it.
    fn outcome(&self, status: ExitStatus) -> Outcome {
        if let Some(signal) = status.signal() {
            return self.deferred(&format!("{} died with signal {signal}", self.name()));
        }
        let code = status.code().unwrap_or(-1);
        let (result, status, text) = match code {
            0 => (Delivery::Delivered, Status::OK, "Sent"),
            64 => failed(0, 0, "Command line usage error"),
            65 => failed(6, 0, "Data format error"),
            66 => failed(3, 0, "Cannot open input"),
            67 => failed(1, 1, "User unknown"),
            68 => failed(1, 2, "Host unknown"),
            69 => failed(0, 0, "Service unavailable"),
            70 => failed(3, 0, "Internal error"),
            71 => deferred("Operating system error"),
            72 => failed(3, 5, "System file missing"),
            73 => failed(0, 0, "Can't create output"),
            74 => deferred("I/O error"),
            75 => return self.deferred(&format!("{} exited with EX_TEMPFAIL", self.name())),
            76 => failed(5, 0, "Remote protocol error"),
            77 => failed(0, 0, "Insufficient permission"),
            78 => failed(3, 5, "Local configuration error"),
            other => {
                let text = format!("unknown mailer error {other}");
                return Outcome::new(Delivery::Failed, Status::new(5, 3, 0), &self.mailer, text);
            }
        };
        Outcome::new(result, status, &self.mailer, text)
    }
}

fn failed(subject: u16, detail: u16, text: &str) -> (Delivery, Status, &str) {
    (Delivery::Failed, Status::new(5, subject, detail), text)
}

fn deferred(text: &str) -> (Delivery, Status, &str) {
    (Delivery::Deferred, Status::new(4, 0, 0), text)
}

/// The system's words, without its number.
fn diligence_text(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(
        || error.to_string(),
        |number| nix::errno::Errno::from_raw(number).desc().to_owned(),
    )
}

fn kill(group: Option<u32>) {
    if let Some(group) = group.and_then(|group| i32::try_from(group).ok()) {
        // It is the leader of its session, so its group has its number.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
}

/// Writes the message to a program. Ok also if the program did not read it all: its exit code decides.
fn feed(
    stdin: io::Result<OwnedFd>,
    content: ContentOpener,
    preamble: String,
    form: Form,
) -> tokio::task::JoinHandle<io::Result<()>> {
    tokio::task::spawn_blocking(move || {
        let mut out = BufWriter::with_capacity(64 << 10, File::from(stdin?));
        let content: Box<dyn Read + Send> = content()?;
        let copied = out
            .write_all(preamble.as_bytes())
            .map_err(mbox::CopyError::Mailbox)
            .and_then(|()| mbox::copy_as(content, &mut out, form))
            .and_then(|()| out.flush().map_err(mbox::CopyError::Mailbox));
        if copied.is_err() {
            let _ = out.into_parts();
        }
        match copied {
            Err(mbox::CopyError::Content(error)) => Err(error),
            _ => Ok(()),
        }
    })
}

/// What a program says.
#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    is_cut: bool,
}

impl Output {
    /// Reads some more; `false` at the end.
    async fn more(&mut self, from: &mut Option<tokio::process::ChildStdout>) -> bool {
        let Some(from) = from else { return false };
        let mut piece = [0; 4096];
        let Ok(count) = from.read(&mut piece).await else {
            return false;
        };
        let room = OUTPUT_BYTES_MAX.saturating_sub(self.bytes.len());
        self.is_cut |= count > room;
        let kept = piece.get(..count.min(room)).unwrap_or_default();
        self.bytes.extend_from_slice(kept);
        count > 0
    }

    fn text(&self) -> Option<Box<str>> {
        let mut text = String::from_utf8_lossy(&self.bytes).trim_end().to_owned();
        if self.is_cut {
            text.push_str("\n[more was said and is left out]");
        }
        (!text.is_empty()).then(|| text.into_boxed_str())
    }
}
