//! Berkeley DB files in safe code: no libdb, nothing mapped, nothing trusted.
//!
//! A walk over a whole file proves it sound on the way; a single lookup reads the pages it needs. Which access method a
//! file is of is told by its magic, never by the class that named it. Formats: `page.rs`, `hash.rs`, `btree.rs`,
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

use crate::random_access::RandomAccess;
use crate::{MapError, MapKind, PairVisitor};
use page::{Method, Pages};
use std::path::Path;

pub(crate) use write_btree::write_btree;
pub(crate) use write_hash::write_hash;

/// The kind a file's magic says, if it is one of Berkeley DB's.
pub(crate) fn kind_of(head: &[u8]) -> Option<MapKind> {
    let magic = u32::from_le_bytes(*head.get(12..)?.first_chunk()?);
    match (magic, magic.swap_bytes()) {
        (page::HASH_MAGIC, _) | (_, page::HASH_MAGIC) => Some(MapKind::Hash),
        (page::BTREE_MAGIC, _) | (_, page::BTREE_MAGIC) => Some(MapKind::Btree),
        _ => None,
    }
}

/// An opened file of either method.
pub(crate) enum BdbFile<S> {
    Hash(hash::HashFile<S>),
    Btree(btree::BtreeFile<S>),
}

impl<S: RandomAccess> BdbFile<S> {
    pub(crate) fn new(source: S, path: &Path) -> Result<Self, MapError> {
        let pages = Pages::open(source, path)?;
        Ok(match pages.method() {
            Method::Hash => Self::Hash(hash::HashFile::new(pages)?),
            Method::Btree => Self::Btree(btree::BtreeFile::new(pages)?),
        })
    }

    pub(crate) fn lookup(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        match self {
            Self::Hash(file) => file.lookup(key),
            Self::Btree(file) => file.lookup(key),
        }
    }

    pub(crate) fn each(&self, f: &mut PairVisitor<'_>) -> Result<(), MapError> {
        match self {
            Self::Hash(file) => file.each(f),
            Self::Btree(file) => file.each(f),
        }
    }

    pub(crate) fn kind(&self) -> MapKind {
        match self {
            Self::Hash(_) => MapKind::Hash,
            Self::Btree(_) => MapKind::Btree,
        }
    }

    pub(crate) fn allows_duplicates(&self) -> bool {
        let pages = match self {
            Self::Hash(file) => file.pages(),
            Self::Btree(file) => file.pages(),
        };
        pages.meta_word(48) & 1 != 0
    }
}
