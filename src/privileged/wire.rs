//! The messages between the daemon and its privileged part: one packet each, in JSON, with open files beside them.
//!
//! A packet that is longer than [`PACKET_BYTES_MAX`], brings more than [`FILES_MAX`] files or does not parse is an error
//! of whoever reads it. Paths that are not UTF-8 can't be sent. Blocks: for the other side. Source: unix(7), seqpacket.

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::safe_file::{Purpose, Refusal, Who};

/// Bytes of the longest packet.
pub const PACKET_BYTES_MAX: usize = 64 << 10;
/// Most files beside a packet.
pub const FILES_MAX: usize = 3;

/// What the daemon asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Read a `.forward` or a list.
    Read {
        /// Its path.
        path: PathBuf,
        /// What for.
        purpose: Purpose,
        /// With whose rights; `None`: its owner's.
        who: Option<Who>,
    },
    /// Open a file that the configuration names, such as a map, for reading.
    OpenNamed {
        /// Its path.
        path: PathBuf,
    },
    /// Open a file that mail is appended to.
    Append {
        /// Its path.
        path: PathBuf,
        /// With whose rights.
        who: Who,
    },
    /// Open or make a user's mailbox.
    Mailbox {
        /// The login name.
        user: String,
    },
    /// Whether a user's mailbox is still that file.
    IsMailbox {
        /// The login name.
        user: String,
        /// The file's device.
        device: u64,
        /// The file's inode.
        inode: u64,
    },
    /// Make the lock file of a user's mailbox.
    Lock {
        /// The login name.
        user: String,
    },
    /// Remove the lock file again.
    Unlock {
        /// The login name.
        user: String,
    },
    /// Make a file in `tmp` of a Maildir.
    MaildirFile(MaildirFile),
    /// Move it into `new`.
    MaildirKeep(MaildirFile),
    /// Remove it.
    MaildirDrop(MaildirFile),
    /// Run a program; its input and output are beside it, and where it complains, if that is elsewhere.
    Run(ProgramRequest),
    /// Kill a program and its group.
    Kill {
        /// Its process id.
        process: u32,
    },
    /// Take an ended program's end, and kill what it left.
    Reap {
        /// Its process id.
        process: u32,
    },
    /// Write the file with the daemon's process id.
    PublishProcess,
    /// Start anew when the daemon has ended.
    Restart,
}

/// For whose files a request may have to wait.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Whose {
    /// Those of the user of this id.
    Id(u32),
    /// The mailbox of the user of this name.
    Name(String),
    /// This file, wherever it is.
    Path(PathBuf),
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(uid) => write!(f, "user {uid}"),
            Self::Name(user) => write!(f, "{user}"),
            Self::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Request {
    /// For whose files it may have to wait; `None`: for nobody's.
    #[must_use]
    pub fn whose(&self) -> Option<Whose> {
        match self {
            Self::Read {
                who: None, path, ..
            } => Some(Whose::Path(path.clone())),
            Self::Read { who: Some(who), .. }
            | Self::Append { who, .. }
            | Self::MaildirFile(MaildirFile { who, .. })
            | Self::MaildirKeep(MaildirFile { who, .. })
            | Self::MaildirDrop(MaildirFile { who, .. })
            | Self::Run(ProgramRequest { who, .. }) => Some(Whose::Id(who.uid)),
            Self::Mailbox { user } | Self::IsMailbox { user, .. } | Self::Lock { user } => {
                Some(Whose::Name(user.clone()))
            }
            _ => None,
        }
    }

    /// Whether it ends what another began, and waits for nobody's files.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        matches!(
            self,
            Self::Unlock { .. } | Self::Kill { .. } | Self::Reap { .. }
        )
    }
}

/// A file of a Maildir.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaildirFile {
    /// The Maildir.
    pub maildir: PathBuf,
    /// Whose it is.
    pub who: Who,
    /// The file's name.
    pub name: String,
}

/// A program to be run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramRequest {
    /// The file.
    pub path: PathBuf,
    /// What it is told, its name first.
    pub arguments: Vec<String>,
    /// With whose rights.
    pub who: Who,
    /// Whose groups it gets.
    pub login: Option<String>,
    /// The first that can be entered is where it starts.
    pub directories: Vec<PathBuf>,
}

/// What the part answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It is done; a file that was asked for is beside it.
    Done,
    /// An open file is beside it, and, if it is new, its directory, to be synced.
    Opened {
        /// Whether it was made.
        is_new: bool,
    },
    /// What a list says is beside it.
    Text {
        /// Whose it is.
        owner: Who,
        /// Whether others may write to it.
        is_writable_by_others: bool,
    },
    /// Somebody else has the lock, or it is not that file.
    No,
    /// The program runs; what tells its end is beside it.
    Started {
        /// Its process id.
        process: u32,
    },
    /// How a program ended.
    Ended {
        /// Its exit code.
        code: Option<i32>,
        /// The signal that ended it.
        signal: Option<i32>,
    },
    /// It was not done.
    Refused(Problem),
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Problem {
    /// The system's error number.
    System(i32),
    /// Words, for the log; temporary.
    Words(String),
    /// A safety rule of files, and the directory that breaks it, for the log: a path that need not be UTF-8.
    Rule(Rule, Option<String>),
}

/// The rules that a file can break: the variants of [`Refusal`] that no system call causes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rule {
    /// [`Refusal::SymbolicLink`].
    SymbolicLink,
    /// [`Refusal::HardLink`].
    HardLink,
    /// [`Refusal::NotRegular`].
    NotRegular,
    /// [`Refusal::Executable`].
    Executable,
    /// [`Refusal::SetId`].
    SetId,
    /// [`Refusal::GroupWritableFile`].
    GroupWritableFile,
    /// [`Refusal::WorldWritableFile`].
    WorldWritableFile,
    /// [`Refusal::GroupWritableDirectory`].
    GroupWritableDirectory,
    /// [`Refusal::WorldWritableDirectory`].
    WorldWritableDirectory,
    /// [`Refusal::Changed`].
    Changed,
    /// [`Refusal::NotOwner`].
    NotOwner,
    /// [`Refusal::Relative`].
    Relative,
    /// [`Refusal::TooLarge`].
    TooLarge,
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        error
            .raw_os_error()
            .map_or_else(|| Self::Words(error.to_string()), Self::System)
    }
}

impl From<Problem> for io::Error {
    fn from(problem: Problem) -> Self {
        match problem {
            Problem::System(number) => Self::from_raw_os_error(number),
            Problem::Words(words) => Self::other(words),
            rule @ Problem::Rule(..) => Self::other(Refusal::from(rule).to_string()),
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let text = |path: PathBuf| Some(path.to_string_lossy().into_owned());
        let (rule, path) = match refusal {
            Refusal::Io(error) => return error.into(),
            Refusal::SymbolicLink => (Rule::SymbolicLink, None),
            Refusal::HardLink => (Rule::HardLink, None),
            Refusal::NotRegular => (Rule::NotRegular, None),
            Refusal::Executable => (Rule::Executable, None),
            Refusal::SetId => (Rule::SetId, None),
            Refusal::GroupWritableFile => (Rule::GroupWritableFile, None),
            Refusal::WorldWritableFile => (Rule::WorldWritableFile, None),
            Refusal::GroupWritableDirectory(path) => (Rule::GroupWritableDirectory, text(path)),
            Refusal::WorldWritableDirectory(path) => (Rule::WorldWritableDirectory, text(path)),
            Refusal::Changed => (Rule::Changed, None),
            Refusal::NotOwner => (Rule::NotOwner, None),
            Refusal::Relative => (Rule::Relative, None),
            Refusal::TooLarge => (Rule::TooLarge, None),
        };
        Self::Rule(rule, path)
    }
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        let Problem::Rule(rule, path) = problem else {
            return Self::Io(problem.into());
        };
        let path = path.map(PathBuf::from);
        match rule {
            Rule::SymbolicLink => Self::SymbolicLink,
            Rule::HardLink => Self::HardLink,
            Rule::NotRegular => Self::NotRegular,
            Rule::Executable => Self::Executable,
            Rule::SetId => Self::SetId,
            Rule::GroupWritableFile => Self::GroupWritableFile,
            Rule::WorldWritableFile => Self::WorldWritableFile,
            Rule::GroupWritableDirectory => Self::GroupWritableDirectory(path.unwrap_or_default()),
            Rule::WorldWritableDirectory => Self::WorldWritableDirectory(path.unwrap_or_default()),
            Rule::Changed => Self::Changed,
            Rule::NotOwner => Self::NotOwner,
            Rule::Relative => Self::Relative,
            Rule::TooLarge => Self::TooLarge,
        }
    }
}

/// Sends a packet with open files beside it.
///
/// # Errors
/// The packet is too long, or the system's: `EPIPE` if the other side has ended.
pub fn send(
    socket: impl AsFd,
    message: &impl Serialize,
    files: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let packet = serde_json::to_vec(message).map_err(io::Error::other)?;
    if packet.len() > PACKET_BYTES_MAX || files.len() > FILES_MAX {
        return Err(io::Error::other("too long for the privileged part"));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(files)) {
        return Err(io::Error::other("too many files"));
    }
    loop {
        let pieces = [IoSlice::new(&packet)];
        match rustix::net::sendmsg(&socket, &pieces, &mut beside, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            sent => return sent.map(|_| ()).map_err(io::Error::from),
        }
    }
}

/// Whether an error of [`send`] means that the other side has ended.
#[must_use]
pub fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
    matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected)
}

/// Receives a packet; `None` if the other side has ended.
///
/// # Errors
/// The packet is no message, or the system's.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut packet = vec![0; PACKET_BYTES_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut pieces = [IoSliceMut::new(&mut packet)];
        match rustix::net::recvmsg(&socket, &mut pieces, &mut beside, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            received => break received?,
        }
    };
    let mut files = Vec::new();
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(more) = message {
            files.extend(more);
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    if received
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC)
    {
        return Err(io::Error::other("a packet was cut"));
    }
    let packet = packet.get(..received.bytes).unwrap_or_default();
    let message = serde_json::from_slice(packet).map_err(io::Error::other)?;
    Ok(Some((message, files)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::fs::File;
    use std::io::{Read, Write};

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap()
    }

    #[test]
    fn a_packet_arrives_with_its_files_and_an_end_is_told() {
        let (ours, theirs) = pair();
        let (mut reader, writer) = io::pipe().unwrap();
        let request = Request::Append {
            path: "/home/bob/mail".into(),
            who: Who { uid: 7, gid: 8 },
        };
        send(&ours, &request, &[writer.as_fd()]).unwrap();
        drop(writer);
        let (received, mut files) = receive::<Request>(&theirs).unwrap().unwrap();
        assert_eq!(received, request);
        assert_eq!(files.len(), 1);
        File::from(files.pop().unwrap()).write_all(b"seen").unwrap();
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "seen");
        drop(ours);
        assert!(receive::<Request>(&theirs).unwrap().is_none());
    }

    #[test]
    fn what_is_no_message_or_too_long_is_an_error() {
        let (ours, theirs) = pair();
        for packet in [
            &b"{"[..],
            b"\"Nonsense\"",
            b"{\"Kill\":{\"process\":-1}}",
            b"\xff\x00",
        ] {
            rustix::net::send(&ours, packet, SendFlags::empty()).unwrap();
            assert!(receive::<Request>(&theirs).is_err(), "{packet:?}");
        }
        let long = Request::Lock {
            user: "x".repeat(PACKET_BYTES_MAX),
        };
        assert!(send(&ours, &long, &[]).is_err());
    }

    /// A user's link leads where it likes; the part's answer once could not be sent.
    #[test]
    fn a_refusal_of_a_directory_that_is_not_utf8_is_sent() {
        use std::ffi::OsString;
        use std::os::unix::ffi::OsStringExt;
        let (ours, theirs) = pair();
        let path = PathBuf::from(OsString::from_vec(b"/home/bob/d\xff".to_vec()));
        for refusal in [
            Refusal::GroupWritableDirectory(path.clone()),
            Refusal::WorldWritableDirectory(path),
        ] {
            let reply = Reply::Refused(refusal.into());
            send(&theirs, &reply, &[]).unwrap();
            let (Reply::Refused(problem), _) = receive(&ours).unwrap().unwrap() else {
                panic!("no refusal");
            };
            let directory = Refusal::from(problem).directory().unwrap().to_owned();
            assert_eq!(directory, PathBuf::from("/home/bob/d\u{fffd}"));
        }
    }

    #[test]
    fn refusals_come_back_as_they_were() {
        let path = PathBuf::from("/tmp/open");
        for refusal in [
            Refusal::SymbolicLink,
            Refusal::HardLink,
            Refusal::NotRegular,
            Refusal::Executable,
            Refusal::SetId,
            Refusal::GroupWritableFile,
            Refusal::WorldWritableFile,
            Refusal::GroupWritableDirectory(path.clone()),
            Refusal::WorldWritableDirectory(path),
            Refusal::Changed,
            Refusal::NotOwner,
            Refusal::Relative,
            Refusal::TooLarge,
            Refusal::Io(io::Error::from_raw_os_error(13)),
        ] {
            let before = (format!("{refusal:?}"), refusal.verdict());
            let after = Refusal::from(Problem::from(refusal));
            assert_eq!(before, (format!("{after:?}"), after.verdict()));
        }
    }
}
