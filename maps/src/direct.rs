//! Map files of any kind, opened by their content: whole in memory, or for a few lookups straight from the file.
//!
//! [`open_direct`] is for programs that look up once: it takes the file's shared lock, reads the header and what the
//! lookup needs, and nothing else. The lock is held until the value is dropped and keeps stock tools from rebuilding
//! the file in place meanwhile. Blocks: on disk, and on the lock up to the deadline given.

#![deny(clippy::indexing_slicing)]

use crate::bdb::BdbFile;
use crate::cdb::CdbFile;
use crate::fixed::FixedFile;
use crate::lmdb_file::LmdbFile;
use crate::load::{Access, Emptiness, FILE_BYTES_MAX, open_with_head};
use crate::random_access::{Headed, RandomAccess};
use crate::redb_file::load_redb;
use crate::{Map, MapError, MapKind, PairVisitor, Snapshot, Stamp};
use std::borrow::Cow;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An opened file of a kind that is read by position.
pub(crate) enum MapFile<S> {
    Bdb(Box<BdbFile<S>>),
    Cdb(Box<CdbFile<S>>),
    Lmdb(Box<LmdbFile<S>>),
    Fixed(Box<FixedFile<S>>),
    /// A kind whose file is read whole before anything is believed.
    Redb(Box<Snapshot>),
}

impl<S: RandomAccess> MapFile<S> {
    /// Opens a file by its content; `asked` decides only what is said of one that is of no known kind.
    pub(crate) fn open(source: S, asked: MapKind, path: &Path) -> Result<Self, MapError> {
        let len = source.len().map_err(|error| MapError::open(path, &error))?;
        let head_len =
            usize::try_from(len).map_or(MapKind::HEAD_LEN, |len| len.min(MapKind::HEAD_LEN));
        let head = source
            .bytes(0, head_len)
            .map_err(|error| MapError::open(path, &error))?;
        let kind = MapKind::of_content(&head, len).unwrap_or(asked);
        drop(head);
        match kind {
            MapKind::Hash | MapKind::Btree => {
                BdbFile::new(source, path).map(|file| Self::Bdb(Box::new(file)))
            }
            MapKind::Cdb => CdbFile::open(source, path).map(|file| Self::Cdb(Box::new(file))),
            MapKind::Lmdb => LmdbFile::open(source, path).map(|file| Self::Lmdb(Box::new(file))),
            MapKind::Fixed => FixedFile::open(source, path).map(|file| Self::Fixed(Box::new(file))),
            MapKind::Redb => {
                let table = load_redb(path, &whole(&source, path)?, Stamp::default())?;
                Ok(Self::Redb(Box::new(table)))
            }
            MapKind::Text => Err(MapError::damaged(path, "not a map file of any known kind")),
        }
    }

    pub(crate) fn lookup(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        match self {
            Self::Bdb(file) => file.lookup(key),
            Self::Cdb(file) => file.lookup(key),
            Self::Lmdb(file) => file.lookup(key),
            Self::Fixed(file) => file.lookup(key),
            Self::Redb(table) => Ok(table.get(key).map(<[u8]>::to_vec)),
        }
    }

    pub(crate) fn each(&self, f: &mut PairVisitor<'_>) -> Result<(), MapError> {
        match self {
            Self::Bdb(file) => file.each(f),
            Self::Cdb(file) => file.each(f),
            Self::Lmdb(file) => file.each(f),
            Self::Fixed(file) => file.each(f),
            Self::Redb(table) => table.each(f),
        }
    }

    pub(crate) fn kind(&self) -> MapKind {
        match self {
            Self::Bdb(file) => file.kind(),
            Self::Cdb(_) => MapKind::Cdb,
            Self::Lmdb(_) => MapKind::Lmdb,
            Self::Fixed(_) => MapKind::Fixed,
            Self::Redb(_) => MapKind::Redb,
        }
    }

    fn allows_duplicates(&self) -> bool {
        match self {
            Self::Bdb(file) => file.allows_duplicates(),
            Self::Cdb(_) => true,
            Self::Lmdb(_) | Self::Fixed(_) | Self::Redb(_) => false,
        }
    }
}

/// A map file opened for a few lookups; see the file's header.
pub struct DirectMap {
    opened: MapFile<Arc<Headed>>,
    file: Arc<Headed>,
    stamp: Stamp,
    path: PathBuf,
}

/// Opens a map file of any kind but text for a few lookups. A duration alone is how long to wait, and refuses nothing.
/// Blocks: on disk, and up to [`Access::lock_wait`] on the file's lock.
///
/// # Errors
/// [`MapError::Open`], [`MapError::Unsafe`], [`MapError::Locked`], [`MapError::Damaged`], [`MapError::Unsupported`].
pub fn open_direct(path: &Path, access: impl Into<Access>) -> Result<DirectMap, MapError> {
    let (file, stamp, head) = open_with_head(path, &access.into(), Emptiness::BeingCreated)?;
    let file = Arc::new(Headed::new(file, stamp.size_bytes, head));
    Ok(DirectMap {
        opened: MapFile::open(Arc::clone(&file), MapKind::Text, path)?,
        file,
        stamp,
        path: path.to_path_buf(),
    })
}

impl DirectMap {
    /// The kind the file's content says.
    pub fn kind(&self) -> MapKind {
        self.opened.kind()
    }

    /// Whether the file was made to hold several values for a key.
    pub fn allows_duplicates(&self) -> bool {
        self.opened.allows_duplicates()
    }
}

impl Map for DirectMap {
    fn lookup(&self, key: &[u8]) -> Result<Option<Cow<'_, [u8]>>, MapError> {
        Ok(self.opened.lookup(key)?.map(Cow::Owned))
    }

    fn each(&self, f: &mut PairVisitor<'_>) -> Result<(), MapError> {
        if let MapFile::Fixed(_) | MapFile::Redb(_) = &self.opened {
            return self.opened.each(f);
        }
        // One read of the whole file beats one per page; the lock keeps it in one state.
        let bytes = whole(&self.file, &self.path)?;
        MapFile::open(&*bytes, self.kind(), &self.path)?.each(f)
    }

    fn stamp(&self) -> Stamp {
        self.stamp
    }
}

/// All bytes of a source, which `FILE_BYTES_MAX` bounds.
fn whole<'s, S: RandomAccess>(source: &'s S, path: &Path) -> Result<Cow<'s, [u8]>, MapError> {
    let failed = |error| MapError::open(path, &error);
    let len = source.len().map_err(failed)?;
    match usize::try_from(len) {
        Ok(short) if len <= FILE_BYTES_MAX => source.bytes(0, short).map_err(failed),
        _ => Err(MapError::unsupported(path, "the file is larger than 8 GiB")),
    }
}

/// Looks up some keys in a file just written, before it is published.
pub(crate) fn check_written(
    file: &File,
    kind: MapKind,
    path: &Path,
    sample: &[(&[u8], &[u8])],
) -> Result<(), MapError> {
    let clone = file
        .try_clone()
        .map_err(|error| MapError::open(path, &error))?;
    let opened = MapFile::open(clone, kind, path)?;
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
