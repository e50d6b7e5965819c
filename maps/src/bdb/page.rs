//! Pages of a Berkeley DB file: metadata, headers, byte order, checksums, overflow chains.
//!
//! All integers are in the byte order of the writing host; the magic tells which. Page size: a power of two, 512 to
//! 65536; page n lies at n times the page size.
//!
//! | offset in page 0 | size | meaning |
//! |---|---|---|
//! | 8 | 4 | page number, 0 |
//! | 12 | 4 | magic: 0x00061561 hash, 0x00053162 btree |
//! | 16 | 4 | version: 7 to 9 hash, 8 to 9 btree |
//! | 20 | 4 | page size |
//! | 24 | 1 | encryption, 0 |
//! | 25 | 1 | page type: 8 hash, 9 btree |
//! | 26 | 1 | bit 0: pages carry checksums; other bits: partitioned |
//! | 32 | 4 | last page number |
//! | 48 | 4 | flags of the kind |
//! | 72 | | hash: max bucket, masks, ...; btree: ..., root |
//! | 492 | 4 | checksum of the first 512 bytes |
//!
//! | offset in other pages | size | meaning |
//! |---|---|---|
//! | 8 | 4 | own page number |
//! | 12 | 4 | previous page |
//! | 16 | 4 | next page, 0 ends a chain |
//! | 20 | 2 | entries (overflow page: reference count) |
//! | 22 | 2 | lowest used byte (overflow page: data bytes here); 0 for 65536 |
//! | 24 | 1 | level |
//! | 25 | 1 | type |
//! | 26 | 6 | only with checksums: 2 unused, 4 checksum |
//!
//! Guarantees: every access is bounds-checked; bytes that do not fit give [`MapError::Damaged`] with the page number.
//! Blocks: on disk only where the pages come from a file.

#![deny(clippy::indexing_slicing)]

use crate::MapError;
use crate::random_access::{RandomAccess, short};
use std::borrow::Cow;
use std::path::{Path, PathBuf};

pub(crate) const HASH_MAGIC: u32 = 0x0006_1561;
pub(crate) const BTREE_MAGIC: u32 = 0x0005_3162;
/// Bytes of page 0 that are metadata and covered by its checksum.
pub(crate) const META_LEN: usize = 512;
/// Length of a page header without checksum.
pub(crate) const HEADER_LEN: usize = 26;
const HEADER_LEN_CHECKSUM: usize = 32;
const META_CHECKSUM_AT: usize = 492;
const PAGE_CHECKSUM_AT: usize = 28;
/// What Berkeley DB's hash function gives for its test string; another value means a function of the writer's own.
pub(crate) const CHARKEY_HASH: u32 = 0x5E68_8DD1;

/// Page types, from byte 25.
pub(crate) mod page_type {
    pub(crate) const INVALID: u8 = 0;
    pub(crate) const HASH_UNSORTED: u8 = 2;
    pub(crate) const BTREE_INTERNAL: u8 = 3;
    pub(crate) const RECNO_INTERNAL: u8 = 4;
    pub(crate) const BTREE_LEAF: u8 = 5;
    pub(crate) const RECNO_LEAF: u8 = 6;
    pub(crate) const OVERFLOW: u8 = 7;
    pub(crate) const HASH_META: u8 = 8;
    pub(crate) const BTREE_META: u8 = 9;
    pub(crate) const DUPLICATE_LEAF: u8 = 12;
    pub(crate) const HASH: u8 = 13;
}

/// Byte order of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    Little,
    Big,
}

impl Order {
    #[inline]
    pub(crate) fn u16(self, bytes: [u8; 2]) -> u16 {
        match self {
            Self::Little => u16::from_le_bytes(bytes),
            Self::Big => u16::from_be_bytes(bytes),
        }
    }

    #[inline]
    pub(crate) fn u32(self, bytes: [u8; 4]) -> u32 {
        match self {
            Self::Little => u32::from_le_bytes(bytes),
            Self::Big => u32::from_be_bytes(bytes),
        }
    }

    fn u32_at(self, bytes: &[u8], at: usize) -> Option<u32> {
        Some(self.u32(*bytes.get(at..)?.first_chunk::<4>()?))
    }
}

/// Which access method a file is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Hash,
    Btree,
}

/// An open Berkeley DB file: its metadata, checked, and its pages.
pub(crate) struct Pages<S> {
    source: S,
    path: PathBuf,
    order: Order,
    method: Method,
    page_size: usize,
    last_page: u32,
    has_checksums: bool,
    meta: [u8; META_LEN],
}

impl<S: RandomAccess> Pages<S> {
    /// Reads and checks the metadata page.
    ///
    /// # Errors
    /// [`MapError::Unsupported`] for versions and options we do not read, [`MapError::Damaged`] for the rest.
    pub(crate) fn open(source: S, path: &Path) -> Result<Self, MapError> {
        let damaged = |detail: String| MapError::damaged(path, detail);
        let unsupported = |detail: String| MapError::unsupported(path, detail);
        let len = source.len().map_err(|error| MapError::open(path, &error))?;
        let bytes = source.bytes(0, META_LEN).map_err(|error| {
            short(path, &error, || {
                format!("{len} bytes are too few for a database file")
            })
        })?;
        let meta: [u8; META_LEN] = *bytes
            .first_chunk()
            .ok_or_else(|| damaged("no metadata".into()))?;
        drop(bytes);

        let magic = Order::Little.u32_at(&meta, 12).unwrap_or(0);
        let (order, method) = match (magic, magic.swap_bytes()) {
            (HASH_MAGIC, _) => (Order::Little, Method::Hash),
            (BTREE_MAGIC, _) => (Order::Little, Method::Btree),
            (_, HASH_MAGIC) => (Order::Big, Method::Hash),
            (_, BTREE_MAGIC) => (Order::Big, Method::Btree),
            _ => return Err(damaged("not a Berkeley DB hash or btree file".into())),
        };
        let word = |at| order.u32_at(&meta, at).unwrap_or(0);
        let byte = |at: usize| meta.get(at).copied().unwrap_or(0);
        let (versions, wanted_type) = match method {
            Method::Hash => (7..=9, page_type::HASH_META),
            Method::Btree => (8..=9, page_type::BTREE_META),
        };
        let version = word(16);
        if version < *versions.start() {
            return Err(unsupported(format!(
                "version {version} needs an upgrade (db_upgrade)"
            )));
        }
        if !versions.contains(&version) {
            return Err(unsupported(format!(
                "version {version} is newer than this program reads"
            )));
        }
        if byte(24) != 0 {
            return Err(unsupported("the file is encrypted".into()));
        }
        if byte(26) & !1 != 0 {
            return Err(unsupported("the file is partitioned".into()));
        }
        let page_size = word(20);
        if !page_size.is_power_of_two() || !(512..=65536).contains(&page_size) {
            return Err(damaged(format!("page size {page_size}")));
        }
        if byte(25) != wanted_type || word(8) != 0 {
            return Err(damaged("the first page is not metadata".into()));
        }
        let last_page = word(32);
        let expected = (u64::from(last_page) + 1) * u64::from(page_size);
        if len != expected {
            return Err(damaged(format!(
                "the file has {len} bytes, its header says {expected}"
            )));
        }
        let pages = Self {
            source,
            path: path.to_path_buf(),
            order,
            method,
            page_size: page_size as usize,
            last_page,
            has_checksums: byte(26) & 1 != 0,
            meta,
        };
        if pages.has_checksums && !pages.checksum_fits(&meta, META_CHECKSUM_AT) {
            return Err(damaged("checksum of the metadata is wrong".into()));
        }
        Ok(pages)
    }

    pub(crate) fn method(&self) -> Method {
        self.method
    }

    pub(crate) fn order(&self) -> Order {
        self.order
    }

    pub(crate) fn last_page(&self) -> u32 {
        self.last_page
    }

    /// A 32-bit field of the metadata.
    pub(crate) fn meta_word(&self, at: usize) -> u32 {
        self.order.u32_at(&self.meta, at).unwrap_or(0)
    }

    pub(crate) fn damaged(&self, page: u32, detail: impl std::fmt::Display) -> MapError {
        MapError::damaged(&self.path, format!("page {page}: {detail}"))
    }

    pub(crate) fn unsupported(&self, detail: &str) -> MapError {
        MapError::unsupported(&self.path, detail)
    }

    /// One page, its number and checksum verified. A page of type 0 has neither and is returned as it is.
    pub(crate) fn page(&self, number: u32) -> Result<Page<'_>, MapError> {
        if number == 0 || number > self.last_page {
            return Err(self.damaged(number, "no such page"));
        }
        let offset = u64::from(number) * self.page_size as u64;
        let bytes = self.source.bytes(offset, self.page_size).map_err(|error| {
            short(&self.path, &error, || {
                format!("page {number}: the file is cut off")
            })
        })?;
        let page = Page {
            bytes,
            number,
            order: self.order,
            header_len: if self.has_checksums {
                HEADER_LEN_CHECKSUM
            } else {
                HEADER_LEN
            },
        };
        if page.kind() == page_type::INVALID {
            return Ok(page);
        }
        if self.has_checksums && !self.checksum_fits(&page.bytes, PAGE_CHECKSUM_AT) {
            return Err(self.damaged(number, "wrong checksum"));
        }
        if page.word(8) != number {
            return Err(self.damaged(number, format!("it says it is page {}", page.word(8))));
        }
        Ok(page)
    }

    /// Berkeley DB's checksum, computed with the checksum's own place taken as zero. It is stored in the file's byte
    /// order.
    fn checksum_fits(&self, bytes: &[u8], at: usize) -> bool {
        let sum = bytes.iter().enumerate().fold(0_u32, |sum, (i, &byte)| {
            let byte = if (at..at + 4).contains(&i) { 0 } else { byte };
            sum.wrapping_mul(33).wrapping_add(u32::from(byte))
        });
        self.order.u32_at(bytes, at) == Some(sum)
    }

    /// The bytes of an overflow chain of `len` bytes; `visit` is told every page number and may refuse one.
    pub(crate) fn overflow(
        &self,
        first: u32,
        len: u32,
        visit: &mut dyn FnMut(u32) -> Result<(), MapError>,
    ) -> Result<Vec<u8>, MapError> {
        let len = len as usize;
        let capacity = self.page_size * self.last_page as usize;
        if len > capacity {
            return Err(self.damaged(
                first,
                format!("an item of {len} bytes is longer than the file"),
            ));
        }
        let mut data = Vec::with_capacity(len);
        let mut number = first;
        let mut previous = 0;
        // Bounded: every page adds at least one byte of `len`.
        while number != 0 {
            let page = self.page(number)?;
            if page.kind() != page_type::OVERFLOW {
                return Err(self.damaged(number, "not an overflow page"));
            }
            if page.previous() != previous {
                return Err(self.damaged(number, "the overflow chain is broken"));
            }
            visit(number)?;
            let here = usize::from(page.half(22));
            let part = page
                .bytes
                .get(page.header_len..)
                .and_then(|rest| rest.get(..here))
                .ok_or_else(|| self.damaged(number, "overflow data beyond the page"))?;
            if part.is_empty() || data.len() + part.len() > len {
                return Err(self.damaged(number, "the overflow chain has a wrong length"));
            }
            data.extend_from_slice(part);
            previous = number;
            number = page.next();
        }
        if data.len() != len {
            return Err(self.damaged(first, "the overflow chain ends too early"));
        }
        Ok(data)
    }
}

/// One page; the header of this file draws it.
pub(crate) struct Page<'a> {
    pub(crate) bytes: Cow<'a, [u8]>,
    pub(crate) number: u32,
    pub(crate) order: Order,
    pub(crate) header_len: usize,
}

impl Page<'_> {
    #[inline]
    pub(crate) fn word(&self, at: usize) -> u32 {
        self.order.u32_at(&self.bytes, at).unwrap_or(0)
    }

    #[inline]
    pub(crate) fn half(&self, at: usize) -> u16 {
        self.bytes
            .get(at..)
            .and_then(|rest| rest.first_chunk::<2>())
            .map_or(0, |bytes| self.order.u16(*bytes))
    }

    pub(crate) fn kind(&self) -> u8 {
        self.bytes.get(25).copied().unwrap_or(0)
    }

    pub(crate) fn level(&self) -> u8 {
        self.bytes.get(24).copied().unwrap_or(0)
    }

    pub(crate) fn previous(&self) -> u32 {
        self.word(12)
    }

    pub(crate) fn next(&self) -> u32 {
        self.word(16)
    }

    pub(crate) fn entries(&self) -> usize {
        usize::from(self.half(20))
    }

    /// Lowest used byte; the header has 16 bits, so that 0 stands for 65536.
    pub(crate) fn low(&self) -> usize {
        match usize::from(self.half(22)) {
            0 => self.bytes.len(),
            low => low,
        }
    }

    /// Offset of item `index`, not yet checked against the page.
    #[inline]
    pub(crate) fn offset(&self, index: usize) -> usize {
        usize::from(self.half(self.header_len + index * 2))
    }

    /// Where the array of offsets ends, and items may begin.
    pub(crate) fn items_from(&self) -> usize {
        self.header_len + self.entries() * 2
    }
}

/// A set of page numbers, one bit each.
pub(crate) struct PageSet {
    words: Vec<u64>,
}

impl PageSet {
    pub(crate) fn new(last_page: u32) -> Self {
        Self {
            words: vec![0; last_page as usize / 64 + 1],
        }
    }

    /// Adds a page; `false` if it was there already or is beyond the last.
    pub(crate) fn insert(&mut self, page: u32) -> bool {
        let Some(word) = self.words.get_mut(page as usize / 64) else {
            return false;
        };
        let bit = 1 << (page % 64);
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    pub(crate) fn contains(&self, page: u32) -> bool {
        self.words
            .get(page as usize / 64)
            .is_some_and(|word| word & (1 << (page % 64)) != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_bytes_are_refused_with_a_reason() {
        let path = Path::new("m.db");
        let open = |bytes: &[u8]| Pages::open(bytes, path).err().unwrap();
        assert!(matches!(open(b""), MapError::Damaged { .. }));
        assert!(matches!(open(&[0; 4096]), MapError::Damaged { .. }));
        let mut meta = [0_u8; 4096];
        meta[12..16].copy_from_slice(&HASH_MAGIC.to_le_bytes());
        meta[16] = 5;
        assert!(open(&meta).to_string().contains("upgrade"));
        meta[16] = 10;
        assert!(matches!(open(&meta), MapError::Unsupported { .. }));
        meta[16] = 9;
        assert!(open(&meta).to_string().contains("page size"));
        meta[20..24].copy_from_slice(&4096_u32.to_le_bytes());
        meta[25] = page_type::HASH_META;
        assert!(Pages::open(&meta[..], path).is_ok());
        assert!(open(&meta[..4095]).to_string().contains("4095"));
        meta[24] = 1;
        assert!(open(&meta).to_string().contains("encrypted"));
    }

    #[test]
    fn page_sets_remember() {
        let mut set = PageSet::new(70);
        assert!(set.insert(64) && !set.insert(64) && set.contains(64));
        assert!(!set.contains(63) && !set.insert(1000));
    }
}
