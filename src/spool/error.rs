//! What can go wrong in the spool.

use std::io;
use std::sync::Arc;

use crate::envelope::MessageId;
use crate::status::Verdict;

/// An error of the spool. Cheap to clone, as all tickets of a failed batch carry the same one.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SpoolError {
    /// A file operation failed.
    #[error("{operation} {name}: {source}")]
    Io {
        /// The call, such as `write`.
        operation: &'static str,
        /// The file's name within the spool.
        name: String,
        /// The system's error.
        source: Arc<io::Error>,
    },
    /// A write or sync failed earlier; nothing is accepted until the process restarts and replays (I3).
    #[error("journal is poisoned by a failed write or sync: {0}")]
    Poisoned(String),
    /// No room on the disk for another segment.
    #[error("spool is full: {0}")]
    Full(String),
    /// The limit on live messages is reached.
    #[error("too many messages in the queue (limit {0})")]
    TooMany(u64),
    /// A message or transaction is larger than the engine takes.
    #[error("{what} of {bytes} bytes is over the limit of {limit}")]
    TooLarge {
        /// What was too large.
        what: &'static str,
        /// Its size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// Another process owns the spool.
    #[error("spool is locked by another process")]
    Locked,
    /// The file system can't keep a spool's promises, and was not forced; its name and why.
    #[error(
        "file system {0}; a spool belongs on a disk of this machine (spool_file_system = \"any\" forces it)"
    )]
    UnfitFileSystem(String),
    /// No such live message.
    #[error("{0}: no such message")]
    NotFound(MessageId),
    /// The lease has passed to another or has ended; nothing was recorded.
    #[error("{0}: lease lost")]
    LeaseLost(MessageId),
    /// Bytes that were durable are not what was written.
    #[error("damaged: {name} at byte {offset}: {detail}")]
    Damaged {
        /// The file's name within the spool.
        name: String,
        /// Where.
        offset: u64,
        /// What is wrong.
        detail: String,
    },
    /// The spool was closed.
    #[error("spool is closed")]
    Closed,
}

impl SpoolError {
    /// An error of the file system; no room is told apart, as mail is then refused and nothing is broken.
    pub(super) fn io(operation: &'static str, name: &str, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::Full(format!("{operation} {name}: {source}"))
            }
            _ => Self::Io {
                operation,
                name: name.to_owned(),
                source: Arc::new(source),
            },
        }
    }

    /// Whether it says that bytes which were durable are not there any more as they were written: a wrong checksum, a
    /// file cut short, a bad sector. Other errors of the system pass by themselves.
    #[must_use]
    pub(super) fn is_damage(&self) -> bool {
        match self {
            Self::Damaged { .. } => true,
            Self::Io {
                operation: "read",
                source,
                ..
            } => {
                let eio = rustix::io::Errno::IO.raw_os_error();
                source.raw_os_error() == Some(eio) || source.kind() == io::ErrorKind::UnexpectedEof
            }
            _ => false,
        }
    }

    /// Everything passes by itself or after a restart, except what is too large.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::TooLarge { .. } => Verdict::Permanent,
            _ => Verdict::Temporary,
        }
    }
}
