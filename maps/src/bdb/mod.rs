//! Berkeley DB files in safe code: no libdb, nothing mapped, nothing trusted.
//!
//! [`load`](crate::load()) reads a whole file into a snapshot and proves it sound on the way; [`DirectMap`] answers
//! single lookups from the file under its shared lock, for programs that look up once. Which access method a file is
//! of is told by its magic, never by the class that named it. Formats: `page.rs`, `hash.rs`, `btree.rs`,
//! `duplicates.rs`; the writers are `write_hash.rs` and `write_btree.rs`.
//!
//! Limits: files of page sizes 512 to 65536, hash versions 7 to 9, btree versions 8 and 9, either byte order; no
//! encryption, partitions, sub-databases, compression or hash functions of the writer's own.

mod btree;
mod duplicates;
mod hash;
mod page;
mod write;
mod write_btree;
mod write_hash;

use crate::load::{Emptiness, open_locked};
use crate::{Map, MapError, MapKind, PairVisitor, Snapshot, SnapshotBuilder, Stamp};
use page::{Method, PageSource, Pages};
use std::borrow::Cow;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

pub(crate) use write::Entries;
pub(crate) use write_btree::write_btree;
pub(crate) use write_hash::write_hash;

/// An opened file of either method.
enum Opened<S> {
    Hash(hash::HashFile<S>),
    Btree(btree::BtreeFile<S>),
}

impl<S: PageSource> Opened<S> {
    fn new(source: S, path: &Path) -> Result<Self, MapError> {
        let pages = Pages::open(source, path)?;
        Ok(match pages.method() {
            Method::Hash => Self::Hash(hash::HashFile::new(pages)?),
            Method::Btree => Self::Btree(btree::BtreeFile::new(pages)?),
        })
    }

    fn lookup(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        match self {
            Self::Hash(file) => file.lookup(key),
            Self::Btree(file) => file.lookup(key),
        }
    }

    fn each(&self, f: &mut PairVisitor<'_>) -> Result<(), MapError> {
        match self {
            Self::Hash(file) => file.each(f),
            Self::Btree(file) => file.each(f),
        }
    }

    fn kind(&self) -> MapKind {
        match self {
            Self::Hash(_) => MapKind::Hash,
            Self::Btree(_) => MapKind::Btree,
        }
    }

    fn allows_duplicates(&self) -> bool {
        let pages = match self {
            Self::Hash(file) => file.pages(),
            Self::Btree(file) => file.pages(),
        };
        pages.meta_word(48) & 1 != 0
    }
}

/// Builds a snapshot from a whole file's bytes.
pub(crate) fn load(path: &Path, bytes: Vec<u8>, stamp: Stamp) -> Result<Snapshot, MapError> {
    let file = Opened::new(bytes.as_slice(), path)?;
    let mut builder = SnapshotBuilder::new(path, bytes.len() / 64, bytes.len());
    let mut trouble = None;
    file.each(&mut |key, value| match builder.add(key, value) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            trouble = Some(error);
            ControlFlow::Break(())
        }
    })?;
    drop(file);
    drop(bytes);
    match trouble {
        Some(error) => Err(error),
        None => Ok(builder.finish(stamp)),
    }
}

/// A Berkeley DB file opened for a few lookups: read page by page under its shared lock, which is held until the
/// value is dropped and keeps stock tools from rebuilding the file in place.
pub struct DirectMap {
    opened: Opened<File>,
    stamp: Stamp,
    path: std::path::PathBuf,
}

/// Opens a `.db` file for a few lookups. Blocks: on disk, and up to `lock_wait` on the file's lock.
///
/// # Errors
/// [`MapError::Open`], [`MapError::Locked`], [`MapError::Damaged`], [`MapError::Unsupported`].
pub fn open_direct(path: &Path, lock_wait: Duration) -> Result<DirectMap, MapError> {
    let (file, stamp) = open_locked(path, lock_wait, Emptiness::BeingCreated)?;
    Ok(DirectMap {
        opened: Opened::new(file, path)?,
        stamp,
        path: path.to_path_buf(),
    })
}

impl DirectMap {
    /// The kind the file's magic says.
    pub fn kind(&self) -> MapKind {
        self.opened.kind()
    }

    /// Whether the file was made to hold several values for a key.
    pub fn allows_duplicates(&self) -> bool {
        self.opened.allows_duplicates()
    }

    fn whole(&self) -> Result<Vec<u8>, MapError> {
        let file = match &self.opened {
            Opened::Hash(file) => file.pages().source(),
            Opened::Btree(file) => file.pages().source(),
        };
        let mut bytes = Vec::new();
        let mut reader = file;
        reader
            .seek(SeekFrom::Start(0))
            .and_then(|_| {
                reader
                    .take(crate::load::FILE_BYTES_MAX)
                    .read_to_end(&mut bytes)
            })
            .map_err(|error| MapError::open(&self.path, &error))?;
        Ok(bytes)
    }
}

impl Map for DirectMap {
    fn lookup(&self, key: &[u8]) -> Result<Option<Cow<'_, [u8]>>, MapError> {
        Ok(self.opened.lookup(key)?.map(Cow::Owned))
    }

    fn each(&self, f: &mut PairVisitor<'_>) -> Result<(), MapError> {
        // One read of the whole file beats one per page; the lock keeps it in one state.
        let bytes = self.whole()?;
        Opened::new(bytes.as_slice(), &self.path)?.each(f)
    }

    fn stamp(&self) -> Stamp {
        self.stamp
    }
}

/// Looks up some keys in a file just written, before it is published.
pub(crate) fn check_written(
    file: &File,
    path: &Path,
    sample: &[(&[u8], &[u8])],
) -> Result<(), MapError> {
    let clone = file
        .try_clone()
        .map_err(|error| MapError::open(path, &error))?;
    let opened = Opened::new(clone, path)?;
    for (key, value) in sample {
        if opened.lookup(key)?.as_deref() != Some(*value) {
            return Err(MapError::damaged(
                path,
                "an entry just written does not read back",
            ));
        }
    }
    Ok(())
}
