//! What can go wrong with a map, and what a mail server may conclude from it.
//!
//! A key that is not in a map is not an error: lookups answer `Ok(None)` for it. Everything in this file means "the
//! lookup did not work", which defers mail and never bounces it. Errors are values of text, so that a handle can keep
//! the last one and give it to every caller until the file is repaired. Touches nothing, never blocks.

use std::io;
use std::path::{Path, PathBuf};

/// Whether trying again later can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Try again later; mail that needs the answer is deferred.
    Temporary,
    /// The answer is final; only another party's explicit refusal is.
    Permanent,
}

/// A lookup, an opening or a listing that did not work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The file could not be opened or read. `kind` tells a missing file from a forbidden one.
    #[error("{}: {detail}", path.display())]
    Open {
        /// The map file.
        path: PathBuf,
        /// What the system said, as a kind.
        kind: io::ErrorKind,
        /// What the system said, as text.
        detail: String,
    },
    /// Others than its owner could change the file or put another in its place; see [`crate::Safety`].
    #[error("unsafe map file {}: {detail}", path.display())]
    Unsafe {
        /// The map file.
        path: PathBuf,
        /// What is writable by whom, in Sendmail's words.
        detail: String,
    },
    /// The file is not a well-formed map: cut off, overwritten, or half built.
    #[error("{}: damaged map: {detail}", path.display())]
    Damaged {
        /// The map file.
        path: PathBuf,
        /// What was wrong, with the page number or byte offset.
        detail: String,
    },
    /// Another program held the file's lock until the deadline, or is still creating the file.
    #[error("{}: locked: {detail}", path.display())]
    Locked {
        /// The map file.
        path: PathBuf,
        /// Who was waited for, and how long.
        detail: String,
    },
    /// A network map did not answer in time.
    #[error("{}: timed out: {detail}", path.display())]
    Timeout {
        /// The map's address.
        path: PathBuf,
        /// What was waited for.
        detail: String,
    },
    /// A network map answered that it cannot answer.
    #[error("{}: {detail}", path.display())]
    Remote {
        /// The map's address.
        path: PathBuf,
        /// What the other side said.
        detail: String,
        /// Whether the other side said so for good.
        verdict: Verdict,
    },
    /// A sound file in a format or version this crate does not read, or a class that is not built in.
    #[error("{}: {detail}", path.display())]
    Unsupported {
        /// The map file, or the map's name.
        path: PathBuf,
        /// The format, version or class.
        detail: String,
    },
}

impl MapError {
    /// Temporary in every case but a remote party's final refusal: trouble of ours defers mail (I9). Even a file in a
    /// format we do not read may be replaced by a good one a minute later.
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Remote { verdict, .. } => *verdict,
            _ => Verdict::Temporary,
        }
    }

    /// The file or address the error is about.
    pub fn path(&self) -> &Path {
        match self {
            Self::Open { path, .. }
            | Self::Unsafe { path, .. }
            | Self::Damaged { path, .. }
            | Self::Locked { path, .. }
            | Self::Timeout { path, .. }
            | Self::Remote { path, .. }
            | Self::Unsupported { path, .. } => path,
        }
    }

    /// The text without the path, for programs that print the map's name in a place of its own.
    pub fn detail(&self) -> &str {
        match self {
            Self::Open { detail, .. }
            | Self::Unsafe { detail, .. }
            | Self::Damaged { detail, .. }
            | Self::Locked { detail, .. }
            | Self::Timeout { detail, .. }
            | Self::Remote { detail, .. }
            | Self::Unsupported { detail, .. } => detail,
        }
    }

    /// Whether the map's file does not exist (as opposed to: exists and cannot be read).
    pub fn is_missing(&self) -> bool {
        matches!(
            self,
            Self::Open {
                kind: io::ErrorKind::NotFound | io::ErrorKind::NotADirectory,
                ..
            }
        )
    }

    pub(crate) fn open(path: &Path, error: &io::Error) -> Self {
        Self::Open {
            path: path.to_path_buf(),
            kind: error.kind(),
            detail: io_text(error),
        }
    }

    pub(crate) fn unsafe_file(path: &Path, detail: &str) -> Self {
        Self::Unsafe {
            path: path.to_path_buf(),
            detail: detail.into(),
        }
    }

    pub(crate) fn damaged(path: &Path, detail: impl Into<String>) -> Self {
        Self::Damaged {
            path: path.to_path_buf(),
            detail: detail.into(),
        }
    }

    pub(crate) fn unsupported(path: &Path, detail: impl Into<String>) -> Self {
        Self::Unsupported {
            path: path.to_path_buf(),
            detail: detail.into(),
        }
    }

    pub(crate) fn locked(path: &Path, detail: impl Into<String>) -> Self {
        Self::Locked {
            path: path.to_path_buf(),
            detail: detail.into(),
        }
    }
}

/// The system's text of an error as C programs print it: without Rust's "(os error N)".
pub fn io_text(error: &io::Error) -> String {
    let text = error.to_string();
    match (error.raw_os_error(), text.rfind(" (os error ")) {
        (Some(_), Some(at)) => text.get(..at).unwrap_or(&text).to_owned(),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_remote_refusal_is_permanent() {
        let path = PathBuf::from("/m");
        let permanent = MapError::Remote {
            path: path.clone(),
            detail: "PERM".into(),
            verdict: Verdict::Permanent,
        };
        assert_eq!(permanent.verdict(), Verdict::Permanent);
        assert_eq!(MapError::damaged(&path, "x").verdict(), Verdict::Temporary);
        assert_eq!(
            MapError::unsupported(&path, "x").verdict(),
            Verdict::Temporary
        );
    }

    #[test]
    fn system_errors_read_as_c_programs_print_them() {
        let error = io::Error::from_raw_os_error(2);
        assert_eq!(io_text(&error), "No such file or directory");
        assert!(MapError::open(Path::new("/m"), &error).is_missing());
    }
}
