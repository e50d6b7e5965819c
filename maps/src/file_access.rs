//! How map files are opened that the process itself may not read.
//!
//! A server that has given up its rights can still be handed files that only others may read, by whoever kept the rights.
//! What such an opener gives is looked at as any other file: a regular one, locked, checked and verified. Whether a file has
//! changed is asked of its path, so the directories on the way must let the process through.
//! Blocks: as the opener does, and on the disk.

#![deny(clippy::indexing_slicing)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::OFlags;

type OpenInstead = Arc<dyn Fn(&Path) -> io::Result<File> + Send + Sync>;

/// Opens files for reading: with the process's own rights, and where those do not do, by somebody else.
#[derive(Clone, Default)]
pub struct FileAccess(Option<OpenInstead>);

impl FileAccess {
    /// What the process may not open, `open` does.
    #[must_use]
    pub fn with_help_of(open: impl Fn(&Path) -> io::Result<File> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(open)))
    }

    /// Opens a file for reading, with more flags of open(2) such as `NONBLOCK`; what a helper opens is no link anyway.
    ///
    /// # Errors
    /// The system's, or the helper's.
    pub(crate) fn open_with(&self, path: &Path, flags: OFlags) -> io::Result<File> {
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits().cast_signed())
            .open(path);
        match (opened, &self.0) {
            (Err(error), Some(open)) if error.kind() == io::ErrorKind::PermissionDenied => {
                open(path)
            }
            (opened, _) => opened,
        }
    }
}

impl FileAccess {
    /// Opens a file for reading, never waiting on a FIFO.
    ///
    /// # Errors
    /// The system's, or the helper's.
    pub fn open(&self, path: &Path) -> io::Result<File> {
        self.open_with(path, OFlags::NONBLOCK)
    }
}

impl std::fmt::Debug for FileAccess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("FileAccess")
            .field(&self.0.as_ref().map(|_| ".."))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_denied_is_left_to_somebody_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("there");
        std::fs::write(&path, "mine").unwrap();
        let access = FileAccess::with_help_of(|_| Err(io::Error::other("asked")));
        assert!(access.open(&path).is_ok());
        let error = access.open(&dir.path().join("missing")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(FileAccess::default().open(&path).is_ok());
    }
}
