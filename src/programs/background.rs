//! How the daemon goes into the background: `-bd`.
//!
//! The process forks before it has started any thread. The child leads a session of its own and goes on to become the
//! daemon; the parent waits until the child says that it listens, and ends then, or ends with the child's exit code,
//! so that whoever starts the daemon sees why it did not. The child keeps its standard streams until it is ready and
//! then points them at `/dev/null`. Blocks: the parent, for the child.
//!
//! Source: daemon(7), SysV daemons.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe2, setsid};

use crate::status::ExitCode;

/// What the child sends when it is ready.
const READY: u8 = b'r';

/// Which of the two processes returned.
pub enum Side {
    /// The one that was started; it only waits.
    Parent(Waiting),
    /// The one that becomes the daemon.
    Child(Announcement),
}

/// Forks. Call it while the process has one thread.
///
/// # Errors
/// No pipe or no process could be had.
pub fn detach() -> io::Result<Side> {
    let (reader, writer) = pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    #[expect(unsafe_code, reason = "there is no safe fork")]
    // SAFETY: the program calls this before it starts a thread, so that no lock is held by a thread that the child
    // does not have, and the child may go on to do whatever the parent could.
    let forked = unsafe { fork() }?;
    match forked {
        ForkResult::Parent { child } => Ok(Side::Parent(Waiting {
            child,
            pipe: File::from(reader),
        })),
        ForkResult::Child => {
            setsid()?;
            Ok(Side::Child(Announcement {
                pipe: File::from(writer),
            }))
        }
    }
}

/// The parent's end.
pub struct Waiting {
    child: Pid,
    pipe: File,
}

impl Waiting {
    /// Waits until the child is ready or has ended; gives what the parent is to exit with.
    pub fn wait(mut self) -> ExitCode {
        let mut byte = [0];
        if self.pipe.read_exact(&mut byte).is_ok() && byte == [READY] {
            return ExitCode::Ok;
        }
        loop {
            match waitpid(self.child, None) {
                Err(nix::errno::Errno::EINTR) => {}
                // A child that ends well without having been ready has still not become a daemon.
                Ok(WaitStatus::Exited(_, 0)) => return ExitCode::Software,
                Ok(WaitStatus::Exited(_, code)) => {
                    return u8::try_from(code)
                        .ok()
                        .and_then(ExitCode::from_code)
                        .unwrap_or(ExitCode::Software);
                }
                Ok(_) | Err(_) => return ExitCode::Software,
            }
        }
    }
}

/// The child's end: dropping it without [`Announcement::ready`] lets the parent report the child's exit code.
pub struct Announcement {
    pipe: File,
}

impl Announcement {
    /// Lets go of the terminal and of the parent.
    ///
    /// # Errors
    /// `/dev/null` cannot be opened.
    pub fn ready(mut self) -> io::Result<()> {
        leave_terminal()?;
        // A parent that has gone meanwhile needs no answer.
        let _ = self.pipe.write_all(&[READY]);
        Ok(())
    }

    /// Lets go of the terminal and leaves it to another process to say that it is ready.
    ///
    /// # Errors
    /// `/dev/null` cannot be opened.
    pub fn leave(self) -> io::Result<()> {
        leave_terminal()
    }
}

/// Points the standard streams at `/dev/null`.
fn leave_terminal() -> io::Result<()> {
    let null: OwnedFd = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/null")?
        .into();
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    Ok(())
}
