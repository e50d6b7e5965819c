//! The daemon's side of its privileged part (L1): files opened and programs run with users' rights by a process that
//! still has root's, while this one has none.
//!
//! [`Part`] is cheap to share; one request is under way at a time, and each is answered before the next. What may be
//! asked is in [`wire::Request`] and nowhere else; the other side, `programs::privileged_part`, looks at each request
//! again and refuses what no recipient is owed. Trouble with the part itself is always temporary.
//! Blocks: until the part has answered; call it on the blocking pool. Limits: those of [`wire`].

pub mod wire;

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::safe_file::{ReadRequest, Refusal, Text, Who};
use wire::{MaildirFile, Problem, ProgramRequest, Reply, Request};

/// A file opened by the part.
#[derive(Debug)]
pub struct Opened {
    /// The file, for reading and appending.
    pub file: File,
    /// Its directory, to be synced, if the file is new.
    pub directory: Option<File>,
}

/// A program started by the part.
#[derive(Debug)]
pub struct Started {
    /// Its process id; its session and group have the same number.
    pub process: u32,
    /// Readable when it has ended.
    pub end: OwnedFd,
}

/// The privileged part, as the daemon sees it.
#[derive(Debug)]
pub struct Part {
    socket: Mutex<OwnedFd>,
}

impl Part {
    /// Talks to the part at the other end of a socket pair of type `SOCK_SEQPACKET`.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket: Mutex::new(socket),
        }
    }

    fn ask(
        &self,
        request: &Request,
        files: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), Problem> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        wire::send(&*socket, request, files)?;
        match wire::receive(&*socket)? {
            Some((Reply::Refused(problem), _)) => Err(problem),
            Some(answer) => Ok(answer),
            None => Err(Problem::Words("the privileged part has ended".to_owned())),
        }
    }

    /// As [`crate::safe_file::read`].
    ///
    /// # Errors
    /// As there, and temporary trouble with the part.
    pub fn read(&self, request: &ReadRequest<'_>) -> Result<Text, Refusal> {
        let asked = Request::Read {
            path: request.path.to_owned(),
            purpose: request.purpose,
            who: request.who,
            lenience: request.lenience,
        };
        let (reply, mut files) = self.ask(&asked, &[])?;
        let (
            Reply::Text {
                owner,
                is_writable_by_others,
            },
            Some(file),
        ) = (reply, files.pop())
        else {
            return Err(unexpected().into());
        };
        let mut file = File::from(file);
        let mut bytes = Vec::new();
        file.rewind()?;
        file.take(crate::safe_file::READ_BYTES_MAX + 1)
            .read_to_end(&mut bytes)?;
        Ok(Text {
            bytes,
            owner,
            is_writable_by_others,
        })
    }

    /// As [`crate::safe_file::open_append`].
    ///
    /// # Errors
    /// As there, and temporary trouble with the part.
    pub fn open_append(&self, path: &Path, who: Who) -> Result<Opened, Refusal> {
        let request = Request::Append {
            path: path.to_owned(),
            who,
        };
        Ok(opened(self.ask(&request, &[])?)?)
    }

    /// Opens or makes the mailbox of a user.
    ///
    /// # Errors
    /// The system's, or what is wrong with the mailbox; temporary.
    pub fn mailbox(&self, user: &str) -> io::Result<Opened> {
        let user = user.to_owned();
        Ok(opened(self.ask(&Request::Mailbox { user }, &[])?)?)
    }

    /// Whether the mailbox of a user is still the file of these numbers, and has one name.
    ///
    /// # Errors
    /// Trouble with the part.
    pub fn is_mailbox(&self, user: &str, device: u64, inode: u64) -> io::Result<bool> {
        let request = Request::IsMailbox {
            user: user.to_owned(),
            device,
            inode,
        };
        self.yes_or_no(&request)
    }

    /// Makes the lock file of a user's mailbox; `false` if there is one.
    ///
    /// # Errors
    /// The system's; temporary.
    pub fn lock(&self, user: &str) -> io::Result<bool> {
        let user = user.to_owned();
        self.yes_or_no(&Request::Lock { user })
    }

    /// Removes the lock file of a user's mailbox that [`Part::lock`] made. A part that has ended has removed it.
    pub fn unlock(&self, user: &str) {
        let user = user.to_owned();
        let _ = self.ask(&Request::Unlock { user }, &[]);
    }

    /// Makes a file in `tmp` of a Maildir, and the Maildir, if it is missing.
    ///
    /// # Errors
    /// The system's; temporary.
    pub fn maildir_file(&self, at: &MaildirFile) -> io::Result<File> {
        let (_, mut files) = self.ask(&Request::MaildirFile(at.clone()), &[])?;
        let file = files.pop().ok_or_else(unexpected)?;
        Ok(File::from(file))
    }

    /// Moves a file of a Maildir from `tmp` to `new`; gives `new`, to be synced.
    ///
    /// # Errors
    /// The system's; temporary.
    pub fn maildir_keep(&self, at: &MaildirFile) -> io::Result<File> {
        let (_, mut files) = self.ask(&Request::MaildirKeep(at.clone()), &[])?;
        let directory = files.pop().ok_or_else(unexpected)?;
        Ok(File::from(directory))
    }

    /// Removes a file in `tmp` of a Maildir; one that stays does no harm.
    pub fn maildir_drop(&self, at: &MaildirFile) {
        let _ = self.ask(&Request::MaildirDrop(at.clone()), &[]);
    }

    /// Runs a program.
    ///
    /// # Errors
    /// The system's, or a refusal; temporary.
    pub fn run(
        &self,
        program: ProgramRequest,
        input: &OwnedFd,
        output: &OwnedFd,
        error: Option<&OwnedFd>,
    ) -> io::Result<Started> {
        let files: Vec<BorrowedFd<'_>> = [Some(input), Some(output), error]
            .into_iter()
            .flatten()
            .map(AsFd::as_fd)
            .collect();
        match self.ask(&Request::Run(program), &files)? {
            (Reply::Started { process }, mut files) => Ok(Started {
                process,
                end: files.pop().ok_or_else(unexpected)?,
            }),
            _ => Err(unexpected().into()),
        }
    }

    /// Kills a program that the part has started, and its group.
    pub fn kill(&self, process: u32) {
        // One that has ended needs no killing.
        let _ = self.ask(&Request::Kill { process }, &[]);
    }

    /// How a program ended: exit code or signal. Call it when [`Started::end`] is readable.
    ///
    /// # Errors
    /// It has not ended, or trouble with the part.
    pub fn reap(&self, process: u32) -> io::Result<(Option<i32>, Option<i32>)> {
        match self.ask(&Request::Reap { process }, &[])? {
            (Reply::Ended { code, signal }, _) => Ok((code, signal)),
            _ => Err(unexpected().into()),
        }
    }

    /// Writes the file with the process id to stop the daemon by; it goes when the daemon ends.
    ///
    /// # Errors
    /// The system's.
    pub fn publish_process(&self) -> io::Result<()> {
        self.ask(&Request::PublishProcess, &[])?;
        Ok(())
    }

    /// Has the daemon started anew when this process has ended.
    pub fn restart(&self) {
        // Without a part there is nobody to do it.
        let _ = self.ask(&Request::Restart, &[]);
    }

    fn yes_or_no(&self, request: &Request) -> io::Result<bool> {
        match self.ask(request, &[])?.0 {
            Reply::Done => Ok(true),
            Reply::No => Ok(false),
            _ => Err(unexpected().into()),
        }
    }
}

fn opened((reply, files): (Reply, Vec<OwnedFd>)) -> Result<Opened, Problem> {
    let mut files = files.into_iter();
    match (reply, files.next()) {
        (Reply::Opened { .. }, Some(file)) => Ok(Opened {
            file: File::from(file),
            directory: files.next().map(File::from),
        }),
        _ => Err(unexpected()),
    }
}

fn unexpected() -> Problem {
    Problem::Words("the privileged part gave no sense".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::safe_file::{Lenience, Purpose};
    use crate::status::Verdict;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    #[test]
    fn without_its_part_everything_waits() {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        let part = Part::new(ours);
        drop(theirs);
        let request = ReadRequest {
            path: Path::new("/home/bob/.forward"),
            purpose: Purpose::Forward,
            who: Some(Who { uid: 7, gid: 7 }),
            lenience: Lenience::default(),
            trusted: None,
        };
        let refusal = part.read(&request).unwrap_err();
        assert_eq!(refusal.verdict(), Verdict::Temporary);
        assert!(!refusal.is_missing());
        assert!(part.mailbox("bob").is_err());
        assert!(part.lock("bob").is_err());
        part.unlock("bob");
        part.kill(1);
    }
}
