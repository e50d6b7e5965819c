//! The control socket: how `mailq`, `sendmail -q` and operators speak to the process that owns a spool.
//!
//! A client connects to the Unix socket, sends one request, and reads frames until the last one: an end or an error.
//! What stops before that was cut off, and is told as such. The peer's credentials come from the kernel and are
//! checked for each verb. This file has the bytes and the blocking client; [`server`] answers, [`listing`] and
//! [`selection`] are what travels.
//!
//! A request is a frame whose words are separated by NUL. A frame is a length in 4 bytes, little-endian, which counts
//! the rest; a kind in 1; a payload:
//!
//! | kind | payload |
//! |---|---|
//! | `R` | request: the verb and its words |
//! | `Q` | the spool's directory: a listing begins |
//! | `M` | one message, [`listing::Listed`] |
//! | `T` | one line of text, without its end |
//! | `E` | an exit code in 1 byte, a text: the request was refused or failed |
//! | `Z` | nothing: all is said |
//!
//! Limits: [`REQUEST_BYTES_MAX`], [`FRAME_BYTES_MAX`], and those of [`server`].
//! Sources: SPOOL.md section 9; the words of [`server`]'s text dialect are those of Sendmail's control.c.

pub mod change;
pub mod listing;
pub mod selection;
pub mod server;

use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::status::{ExitCode, Verdict};
use change::{Change, Reason};
use listing::Listed;
use selection::Selection;

/// The longest request, in bytes.
pub const REQUEST_BYTES_MAX: usize = 40 * 1024;
/// The longest frame of an answer, in bytes; a message with a hundred thousand recipients fits.
pub const FRAME_BYTES_MAX: usize = 64 << 20;
/// The longest path that fits into a socket address, in bytes. Source: unix(7).
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// What stands in place of a frame that is too large: an error that says exit code 70 and no more.
const OVERSIZE_FRAME: [u8; 6] = [2, 0, 0, 0, b'E', ExitCode::Software as u8];
/// How long a client waits for the next frame of an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3600);
/// How much a client reads at once, in bytes.
const READ_BYTES: usize = 256 * 1024;

/// What is asked of the owner of a spool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// List messages: `Q`, then an `M` for each.
    List(Selection),
    /// Try messages now. With a watch, wait for each of them and send what `-v` shows as `T` lines.
    Run {
        /// Which.
        selection: Selection,
        /// Whether to wait and show the dialogues.
        is_watched: bool,
    },
    /// Change messages. `T` lines say which.
    Change {
        /// How.
        change: Change,
        /// Which.
        selection: Selection,
    },
    /// Counters, as `T` lines.
    Status,
    /// Stop cleanly. Answered before it happens.
    Shutdown,
    /// Stop cleanly and start anew. Answered before it happens.
    Restart,
}

impl Request {
    fn to_words(&self) -> Vec<String> {
        let (verb, selection) = match self {
            Self::List(selection) => ("list", Some(selection)),
            Self::Run {
                selection,
                is_watched: false,
            } => ("run", Some(selection)),
            Self::Run { selection, .. } => ("watch", Some(selection)),
            Self::Change { change, selection } => {
                let verb = match change {
                    Change::Hold(_) => "hold",
                    Change::Release => "release",
                    Change::Remove => "remove",
                };
                (verb, Some(selection))
            }
            Self::Status => ("status", None),
            Self::Shutdown => ("shutdown", None),
            Self::Restart => ("restart", None),
        };
        let reason = match self {
            Self::Change {
                change: Change::Hold(reason),
                ..
            } => Some(reason.as_str().to_owned()),
            _ => None,
        };
        let words = selection.map(Selection::to_words).unwrap_or_default();
        let verb = std::iter::once(verb.to_owned());
        verb.chain(reason).chain(words).collect()
    }

    /// The payload of its frame.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        self.to_words().join("\0").into_bytes()
    }

    /// Reads the payload of a request; `None` if it is none.
    #[must_use]
    pub fn decode(payload: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(payload).ok()?.split('\0');
        let verb = words.next()?;
        let hold = match verb {
            "hold" => Some(Change::Hold(Reason::new(words.next()?)?)),
            _ => None,
        };
        let mut selection = || Selection::from_words(words.by_ref());
        let request = match verb {
            "list" => Self::List(selection()?),
            "run" | "watch" => Self::Run {
                selection: selection()?,
                is_watched: verb == "watch",
            },
            "hold" | "release" | "remove" => Self::Change {
                change: match hold {
                    Some(hold) => hold,
                    None if verb == "release" => Change::Release,
                    None => Change::Remove,
                },
                selection: selection()?,
            },
            "status" => Self::Status,
            "shutdown" => Self::Shutdown,
            "restart" => Self::Restart,
            _ => return None,
        };
        words.next().is_none().then_some(request)
    }
}

/// One frame of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A listing of the spool in this directory begins.
    Directory(PathBuf),
    /// A message.
    Message(Box<Listed>),
    /// A line of text.
    Text(String),
    /// The request was refused or failed.
    Error {
        /// How the program that asked is to exit.
        exit: u8,
        /// Why.
        text: String,
    },
    /// All is said.
    End,
}

impl Frame {
    /// Appends the frame's bytes.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Directory(path) => put_frame(out, b'Q', |out| {
                out.extend_from_slice(path.to_string_lossy().as_bytes());
            }),
            Self::Message(message) => put_frame(out, b'M', |out| message.encode(out)),
            Self::Text(text) => put_frame(out, b'T', |out| out.extend_from_slice(text.as_bytes())),
            Self::Error { exit, text } => put_frame(out, b'E', |out| {
                out.push(*exit);
                out.extend_from_slice(text.as_bytes());
            }),
            Self::End => put_frame(out, b'Z', |_| {}),
        }
    }

    /// An error with the exit code a program is to end with.
    #[must_use]
    pub fn error(exit: ExitCode, text: impl Into<String>) -> Self {
        Self::Error {
            exit: exit as u8,
            text: text.into(),
        }
    }

    fn decode(kind: u8, payload: &[u8]) -> Option<Self> {
        let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(str::to_owned);
        Some(match kind {
            b'Q' => Self::Directory(PathBuf::from(text(payload)?)),
            b'M' => Self::Message(Box::new(Listed::decode(payload)?)),
            b'T' => Self::Text(text(payload)?),
            b'E' => {
                let (exit, rest) = payload.split_first()?;
                Self::Error {
                    exit: *exit,
                    text: text(rest)?,
                }
            }
            b'Z' if payload.is_empty() => Self::End,
            _ => return None,
        })
    }
}

/// Appends a frame whose payload `fill` writes.
fn put_frame(out: &mut Vec<u8>, kind: u8, fill: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.push(kind);
    fill(out);
    let length = out.len() - start - 4;
    match (u32::try_from(length), out.get_mut(start..start + 4)) {
        (Ok(length_u32), Some(place)) if length <= FRAME_BYTES_MAX => {
            place.copy_from_slice(&length_u32.to_le_bytes());
        }
        // Too large for the other side to take: the answer ends here, as a failure.
        _ => {
            out.truncate(start);
            out.extend_from_slice(&OVERSIZE_FRAME);
        }
    }
}

/// Why a conversation over the control socket failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody owns the spool: there is no socket, or nobody answers on it.
    #[error("{}: no daemon answers: {source}", path.display())]
    NoOwner {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The socket may not be used.
    #[error("{}: {source}", path.display())]
    Denied {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The conversation broke off.
    #[error("control socket: {0}")]
    Io(#[from] io::Error),
    /// The answer is not in the form of this file, or ended early.
    #[error("control socket: {0}")]
    Protocol(&'static str),
    /// The owner refused, or failed.
    #[error("{text}")]
    Refused {
        /// How the program that asked is to exit.
        exit: u8,
        /// Why.
        text: String,
    },
}

impl ControlError {
    /// Permanent for what the owner refused by right, otherwise temporary.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Refused { exit, .. } if *exit != ExitCode::TempFail as u8 => Verdict::Permanent,
            _ => Verdict::Temporary,
        }
    }
}

/// A blocking conversation with the owner of a spool.
pub struct Conversation {
    stream: BufReader<UnixStream>,
}

impl Conversation {
    /// Connects to the owner and sends a request. Blocks: for the owner.
    ///
    /// # Errors
    /// [`ControlError::NoOwner`] if there is none, [`ControlError::Denied`], [`ControlError::Io`].
    pub fn begin(socket: &Path, request: &Request) -> Result<Self, ControlError> {
        let stream = connect(socket).map_err(|source| {
            let path = socket.to_owned();
            match source.kind() {
                io::ErrorKind::PermissionDenied => ControlError::Denied { path, source },
                _ => ControlError::NoOwner { path, source },
            }
        })?;
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        let mut bytes = Vec::new();
        put_frame(&mut bytes, b'R', |out| out.extend(request.encode()));
        (&stream).write_all(&bytes)?;
        Ok(Self {
            stream: BufReader::with_capacity(READ_BYTES, stream),
        })
    }

    /// The next frame; `None` after the end. Blocks: for the owner.
    ///
    /// # Errors
    /// [`ControlError::Refused`] for an error frame, [`ControlError::Io`], [`ControlError::Protocol`].
    pub fn next_frame(&mut self) -> Result<Option<Frame>, ControlError> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).map_err(cut_off)?;
        let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
        if !(1..=FRAME_BYTES_MAX).contains(&length) {
            return Err(ControlError::Protocol("a frame of impossible length"));
        }
        let mut bytes = vec![0; length];
        self.stream.read_exact(&mut bytes).map_err(cut_off)?;
        let frame = bytes
            .split_first()
            .and_then(|(kind, payload)| Frame::decode(*kind, payload))
            .ok_or(ControlError::Protocol("a frame that makes no sense"))?;
        match frame {
            Frame::End => Ok(None),
            Frame::Error { exit, text } => Err(ControlError::Refused { exit, text }),
            frame => Ok(Some(frame)),
        }
    }
}

fn cut_off(error: io::Error) -> ControlError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        ControlError::Protocol("the answer was cut off")
    } else {
        ControlError::Io(error)
    }
}

/// A path to the same socket that fits into a socket address, and the directory it needs open meanwhile.
///
/// Deep directories make paths longer than `sockaddr_un` takes; those go through `/proc/self/fd`.
///
/// # Errors
/// The parent directory cannot be opened.
pub fn short_socket_path(path: &Path) -> io::Result<(PathBuf, Option<OwnedFd>)> {
    if path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
        return Ok((path.to_owned(), None));
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    };
    let directory = OwnedFd::from(std::fs::File::open(parent)?);
    let short = Path::new("/proc/self/fd")
        .join(directory.as_raw_fd().to_string())
        .join(name);
    Ok((short, Some(directory)))
}

fn connect(socket: &Path) -> io::Result<UnixStream> {
    let (path, _directory) = short_socket_path(socket)?;
    UnixStream::connect(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::selection::Kind;

    #[test]
    fn requests_read_back_and_others_are_refused() {
        let selection = Selection::from_words(["N", "Rbob"]).unwrap();
        for request in [
            Request::List(Selection::all(Kind::Quarantined)),
            Request::Run {
                selection: selection.clone(),
                is_watched: true,
            },
            Request::Run {
                selection: selection.clone(),
                is_watched: false,
            },
            Request::Change {
                change: Change::Hold(Reason::new("spam suspect").unwrap()),
                selection: selection.clone(),
            },
            Request::Change {
                change: Change::Release,
                selection: selection.clone(),
            },
            Request::Change {
                change: Change::Remove,
                selection,
            },
            Request::Status,
            Request::Shutdown,
            Request::Restart,
        ] {
            assert_eq!(Request::decode(&request.encode()), Some(request));
        }
        for bad in [
            &b""[..],
            b"list",
            b"list\0Z",
            b"status\0x",
            b"hold\0N",
            b"hold\0\0N",
            b"release\0spam\0N",
            b"destroy",
            b"\xff",
        ] {
            assert_eq!(Request::decode(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn an_answer_that_ends_early_is_never_taken_for_a_whole_one() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut bytes = Vec::new();
        Frame::Text("one".into()).encode(&mut bytes);
        (&theirs).write_all(&bytes).unwrap();
        drop(theirs);
        let mut conversation = Conversation {
            stream: BufReader::new(ours),
        };
        assert_eq!(
            conversation.next_frame().unwrap(),
            Some(Frame::Text("one".into()))
        );
        assert!(matches!(
            conversation.next_frame(),
            Err(ControlError::Protocol(_))
        ));
    }

    #[test]
    fn sockets_in_deep_directories_can_be_reached() {
        let folder = tempfile::tempdir().unwrap();
        let deep = folder.path().join("d".repeat(60)).join("e".repeat(60));
        std::fs::create_dir_all(&deep).unwrap();
        let socket = deep.join("control");
        let (path, _directory) = short_socket_path(&socket).unwrap();
        let listener = std::os::unix::net::UnixListener::bind(path).unwrap();
        let _client = connect(&socket).unwrap();
        listener.accept().unwrap();
    }
}
