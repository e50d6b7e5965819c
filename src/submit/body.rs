//! The body of a message while it is read: in memory while it is small, then in a file without a name.
//!
//! The file has no name from its first byte on (`O_TMPFILE`), so nothing is left behind however the program ends.
//! A finished [`Body`] can be opened any number of times, which a second attempt needs. Blocks: disk, beyond
//! [`MEMORY_BYTES_MAX`]. Nothing here is durable: durability begins at the MTA's reply or at the drop file.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

/// A body up to this size is kept in memory.
pub const MEMORY_BYTES_MAX: usize = 1 << 20;
/// Bytes handed to the file at once.
const WRITE_BYTES: usize = 64 << 10;

/// Takes the bytes of a body as they come.
pub struct BodyWriter {
    folder: PathBuf,
    memory: Vec<u8>,
    file: Option<File>,
    file_len_bytes: u64,
}

impl BodyWriter {
    /// A writer that puts what is too much for memory into a nameless file in `folder`.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            memory: Vec::new(),
            file: None,
            file_len_bytes: 0,
        }
    }

    /// Adds bytes. Blocks: disk.
    ///
    /// # Errors
    /// The system's; temporary.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.memory.extend_from_slice(bytes);
        let limit = if self.file.is_some() {
            WRITE_BYTES
        } else {
            MEMORY_BYTES_MAX
        };
        if self.memory.len() > limit {
            self.spill()?;
        }
        Ok(())
    }

    /// Bytes so far.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.file_len_bytes + len_u64(self.memory.len())
    }

    /// The body, complete.
    ///
    /// # Errors
    /// The system's; temporary.
    pub fn finish(mut self) -> io::Result<Body> {
        if self.file.is_some() {
            self.spill()?;
        }
        Ok(match self.file {
            Some(file) => Body::File {
                file: Arc::new(file),
                len_bytes: self.file_len_bytes,
            },
            None => Body::Memory(self.memory.into()),
        })
    }

    fn spill(&mut self) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(nameless_file(&self.folder)?),
        };
        file.write_all(&self.memory)?;
        self.file_len_bytes += len_u64(self.memory.len());
        self.memory.clear();
        Ok(())
    }
}

/// A body that can be read again and again; cheap to clone.
#[derive(Debug, Clone)]
pub enum Body {
    /// Small.
    Memory(Arc<[u8]>),
    /// Large.
    File {
        /// Has no name.
        file: Arc<File>,
        /// Its length.
        len_bytes: u64,
    },
}

impl Body {
    /// Its length in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        match self {
            Self::Memory(bytes) => len_u64(bytes.len()),
            Self::File { len_bytes, .. } => *len_bytes,
        }
    }

    /// A reader from the first byte on. Reading blocks: disk.
    #[must_use]
    pub fn open(&self) -> Box<dyn Read + Send> {
        Box::new(BodyReader {
            body: self.clone(),
            offset: 0,
        })
    }
}

struct BodyReader {
    body: Body,
    offset: u64,
}

impl Read for BodyReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = match &self.body {
            Body::Memory(bytes) => {
                let offset = usize::try_from(self.offset).unwrap_or(usize::MAX);
                let mut rest = bytes.get(offset..).unwrap_or_default();
                rest.read(into)?
            }
            Body::File { file, .. } => file.read_at(into, self.offset)?,
        };
        self.offset += len_u64(count);
        Ok(count)
    }
}

fn nameless_file(folder: &Path) -> io::Result<File> {
    let open = |folder: &Path| {
        rustix::fs::open(
            folder,
            OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::EXCL,
            Mode::RUSR | Mode::WUSR,
        )
    };
    // A folder that cannot hold nameless files (an old network file system) must not keep large mail from being sent.
    let fd = open(folder).or_else(|_| open(&std::env::temp_dir()))?;
    Ok(fd.into())
}

fn len_u64(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_and_small_bodies_read_the_same_twice_and_leave_no_file() {
        let folder = tempfile::tempdir().unwrap();
        for size in [0, 10, MEMORY_BYTES_MAX, MEMORY_BYTES_MAX + 1, 3_300_000] {
            let all: Vec<u8> = (0..=250_u8).cycle().take(size).collect();
            let mut writer = BodyWriter::new(folder.path());
            for piece in all.chunks(7_777) {
                writer.write(piece).unwrap();
            }
            assert_eq!(writer.len_bytes(), len_u64(size));
            let body = writer.finish().unwrap();
            assert_eq!(matches!(body, Body::File { .. }), size > MEMORY_BYTES_MAX);
            for _ in 0..2 {
                let mut read = Vec::new();
                body.open().read_to_end(&mut read).unwrap();
                assert_eq!(read, all);
            }
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
