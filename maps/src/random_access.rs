//! Bytes that are read at any offset: a file's copy in memory, or the file itself.
//!
//! Every reader of a file format in this crate works on this, so that the same bounds-checked code serves a whole map
//! in memory and a single lookup in a file. Guarantees: all of the bytes asked for, or an error. Blocks: on disk only
//! where the bytes come from a [`File`].

#![deny(clippy::indexing_slicing)]

use crate::MapError;
use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Where bytes come from.
pub(crate) trait RandomAccess {
    /// Length of the whole, in bytes.
    fn len(&self) -> io::Result<u64>;
    /// `len` bytes from `offset`; an error if they are not all there.
    fn bytes(&self, offset: u64, len: usize) -> io::Result<Cow<'_, [u8]>>;
}

impl RandomAccess for &[u8] {
    fn len(&self) -> io::Result<u64> {
        Ok(<[u8]>::len(self) as u64)
    }

    fn bytes(&self, offset: u64, len: usize) -> io::Result<Cow<'_, [u8]>> {
        usize::try_from(offset)
            .ok()
            .and_then(|start| self.get(start..)?.get(..len))
            .map(Cow::Borrowed)
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

impl RandomAccess for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn bytes(&self, offset: u64, len: usize) -> io::Result<Cow<'_, [u8]>> {
        let mut bytes = vec![0; len];
        self.read_exact_at(&mut bytes, offset)?;
        Ok(Cow::Owned(bytes))
    }
}

/// A file whose length and first bytes are known: nobody changes it while its lock is held.
pub(crate) struct Headed {
    file: File,
    len: u64,
    head: Vec<u8>,
}

impl Headed {
    pub(crate) fn new(file: File, len: u64, head: Vec<u8>) -> Self {
        Self { file, len, head }
    }
}

impl RandomAccess for Headed {
    fn len(&self) -> io::Result<u64> {
        Ok(self.len)
    }

    fn bytes(&self, offset: u64, len: usize) -> io::Result<Cow<'_, [u8]>> {
        let known = usize::try_from(offset).ok();
        match known.and_then(|start| self.head.get(start..)?.get(..len)) {
            Some(bytes) => Ok(Cow::Borrowed(bytes)),
            None => self.file.bytes(offset, len),
        }
    }
}

impl RandomAccess for std::sync::Arc<Headed> {
    fn len(&self) -> io::Result<u64> {
        RandomAccess::len(&**self)
    }

    fn bytes(&self, offset: u64, len: usize) -> io::Result<Cow<'_, [u8]>> {
        (**self).bytes(offset, len)
    }
}

/// A read that found less than it should is damage; any other failure is the system's.
pub(crate) fn short(path: &Path, error: &io::Error, detail: impl FnOnce() -> String) -> MapError {
    if error.kind() == io::ErrorKind::UnexpectedEof {
        MapError::damaged(path, detail())
    } else {
        MapError::open(path, error)
    }
}
