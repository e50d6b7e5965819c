//! The table lookups are answered from: a whole map in memory, verified before anybody sees it, swapped as one.
//!
//! Layout: an array of 64-byte buckets, one cache line each, and a body of records (see `records.rs`). A lookup reads
//! one bucket, compares 16-bit fingerprints, and touches a record only when one matches: a miss costs one line of
//! memory, a hit two.
//!
//! | offset in bucket | size | meaning |
//! |---|---|---|
//! | 0 | 20 | 10 fingerprints, 16 bits each, little endian, never 0 |
//! | 20 | 40 | 10 record positions, 32 bits each, in 4-byte units of the body |
//! | 60 | 1 | slots in use, 0 to 10 |
//! | 61 | 1 | 1 if an entry of this bucket went to the next one |
//! | 62 | 2 | 0 |
//!
//! The first value added for a key is the one a lookup answers; later ones are kept out. Nothing here blocks; the
//! memory is freed with the last reader. Limits: [`ENTRIES_MAX`], and those of `records.rs`.

#![deny(clippy::indexing_slicing)]

use crate::fixed::{FixedHeader, FixedTable};
use crate::records;
use crate::region::Region;
use crate::{Map, MapError, PairVisitor, Stamp};
use std::borrow::Cow;
use std::path::{Path, PathBuf};

/// Most entries of one snapshot.
pub const ENTRIES_MAX: u64 = 500_000_000;

/// Bytes of a bucket: a cache line.
pub(crate) const BUCKET_LEN: usize = 64;
const SLOTS: usize = 10;
const USED_AT: usize = 60;
const SPILL_AT: usize = 61;
/// Average fill when building: 7 of 10 slots leave about one bucket in seven spilling.
const FILL: usize = 7;
/// Records whose buckets are brought into the cache together.
const TOUCHED: usize = 64;

/// Whether the keys of a map carry the trailing NUL that Sendmail's `-N` and Postfix write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NulStyle {
    /// No key ends with NUL (also: the map is empty).
    Without,
    /// Every key ends with NUL.
    With,
    /// Some do, some do not: both forms are tried.
    Mixed,
}

/// A whole map in memory; see the file's header.
pub struct Snapshot {
    path: PathBuf,
    stamp: Stamp,
    seed: u64,
    table: Table,
    entries: u64,
    nul: NulStyle,
}

/// Where buckets and records lie.
enum Table {
    Built {
        buckets: Region,
        body: Region,
    },
    /// In a constant file's copy in memory (`fixed.rs`).
    Fixed(FixedTable),
}

impl Table {
    #[inline]
    fn lines(&self) -> &[[u8; BUCKET_LEN]] {
        match self {
            Self::Built { buckets, .. } => buckets.as_chunks().0,
            Self::Fixed(table) => table.buckets(),
        }
    }

    #[inline]
    fn body(&self) -> &[u8] {
        match self {
            Self::Built { body, .. } => body,
            Self::Fixed(table) => table.body(),
        }
    }
}

/// Collects the entries of a snapshot.
pub struct SnapshotBuilder {
    path: PathBuf,
    body: Region,
    places: Vec<(u64, u32)>,
    seed: u64,
    with_nul: u64,
}

impl SnapshotBuilder {
    /// Starts a table of the map at `path` (used in errors), with room for `entries` of `bytes` in all.
    pub fn new(path: &Path, entries: usize, bytes: usize) -> Self {
        Self {
            path: path.to_path_buf(),
            body: Region::with_capacity(bytes),
            places: Vec::with_capacity(entries),
            seed: records::random_seed(),
            with_nul: 0,
        }
    }

    /// Adds an entry; if its key is there already, the earlier one will win.
    ///
    /// # Errors
    /// [`MapError::Unsupported`] past [`ENTRIES_MAX`] or the limits of `records.rs`.
    pub fn add(&mut self, key: &[u8], value: &[u8]) -> Result<(), MapError> {
        if self.places.len() as u64 >= ENTRIES_MAX {
            return Err(self.too_large());
        }
        let place = records::append(&mut self.body, key, value).map_err(|_| self.too_large())?;
        self.places.push((records::hash64(self.seed, key), place));
        self.with_nul += u64::from(key.last() == Some(&0));
        Ok(())
    }

    fn too_large(&self) -> MapError {
        MapError::unsupported(&self.path, "the map is too large to hold in memory")
    }

    /// Ends the build. `stamp` is what a later change is compared with.
    pub fn finish(self, stamp: Stamp) -> Snapshot {
        let count = self.places.len();
        let mut placer = Placer {
            buckets: Region::zeroed(count.div_ceil(FILL).max(1) * BUCKET_LEN),
            body: self.body,
            entries: 0,
        };
        for places in self.places.chunks(TOUCHED) {
            placer.touch(places);
            for &(hash, place) in places {
                placer.place(hash, place);
            }
        }
        Snapshot {
            path: self.path,
            stamp,
            seed: self.seed,
            entries: placer.entries,
            table: Table::Built {
                buckets: placer.buckets,
                body: placer.body,
            },
            nul: match self.with_nul {
                0 => NulStyle::Without,
                n if n == count as u64 => NulStyle::With,
                _ => NulStyle::Mixed,
            },
        }
    }
}

/// A table being filled.
struct Placer {
    buckets: Region,
    body: Region,
    entries: u64,
}

impl Placer {
    /// Reads the buckets of some hashes, so that they are in the cache when they are filled: the loads depend on nothing
    /// and go on at the same time.
    fn touch(&self, places: &[(u64, u32)]) {
        let (lines, _) = self.buckets.as_chunks::<BUCKET_LEN>();
        let used = |&(hash, _): &(u64, u32)| {
            let line = lines.get(home(hash, lines.len()));
            line.and_then(|line| line.get(USED_AT))
                .copied()
                .unwrap_or(0)
        };
        std::hint::black_box(places.iter().map(used).fold(0, |all, one| all ^ one));
    }

    /// Puts a record where `get` will find it, unless its key is there already. Only called while building, when
    /// there is a free slot somewhere: there are more slots than records.
    fn place(&mut self, hash: u64, place: u32) {
        let wanted = fingerprint(hash);
        let key = records::read(&self.body, place).map(|(key, _)| key);
        let (lines, _) = self.buckets.as_chunks_mut::<BUCKET_LEN>();
        let count = lines.len();
        let mut index = home(hash, count);
        for _ in 0..count {
            let Some(line) = lines.get_mut(index) else {
                return;
            };
            for slot in matches(line, wanted) {
                let there = position(line, slot).and_then(|p| records::read(&self.body, p));
                if there.map(|(key, _)| key) == key {
                    return;
                }
            }
            let used = usize::from(line.get(USED_AT).copied().unwrap_or(0));
            if used < SLOTS {
                put(line, used, wanted, place);
                self.entries += 1;
                return;
            }
            if let Some(spill) = line.get_mut(SPILL_AT) {
                *spill = 1;
            }
            index = after(index, count);
        }
    }
}

/// The buckets of a table whose records are written elsewhere, each key once.
pub(crate) struct Layout {
    seed: u64,
    buckets: Region,
}

impl Layout {
    pub(crate) fn new(entries: usize) -> Self {
        Self {
            seed: records::random_seed(),
            buckets: Region::zeroed(entries.div_ceil(FILL).max(1) * BUCKET_LEN),
        }
    }

    /// Enters a key whose record is at `place`. Called for no more keys than were said, so that a slot is free.
    pub(crate) fn place(&mut self, key: &[u8], place: u32) {
        let hash = records::hash64(self.seed, key);
        let (lines, _) = self.buckets.as_chunks_mut::<BUCKET_LEN>();
        let count = lines.len();
        let mut index = home(hash, count);
        for _ in 0..count {
            let Some(line) = lines.get_mut(index) else {
                return;
            };
            let used = usize::from(line.get(USED_AT).copied().unwrap_or(0));
            if used < SLOTS {
                put(line, used, fingerprint(hash), place);
                return;
            }
            if let Some(spill) = line.get_mut(SPILL_AT) {
                *spill = 1;
            }
            index = after(index, count);
        }
    }

    /// The seed of the hashes that placed the entries.
    pub(crate) fn seed(&self) -> u64 {
        self.seed
    }

    /// The buckets in order.
    pub(crate) fn lines(&self) -> &[[u8; BUCKET_LEN]] {
        self.buckets.as_chunks().0
    }
}

impl Snapshot {
    /// A map without entries.
    pub fn empty(path: &Path) -> Self {
        SnapshotBuilder::new(path, 0, 0).finish(Stamp::default())
    }

    /// Number of different keys.
    pub fn len(&self) -> u64 {
        self.entries
    }

    /// Whether there is no entry at all.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Whether keys carry a trailing NUL.
    pub fn nul_style(&self) -> NulStyle {
        self.nul
    }

    /// The value of a key, borrowed from the snapshot. Never fails: the table was verified when it was built.
    #[inline]
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        let hash = records::hash64(self.seed, key);
        let wanted = fingerprint(hash);
        let lines = self.table.lines();
        let mut index = home(hash, lines.len());
        for _ in 0..lines.len() {
            let line = lines.get(index)?;
            for slot in matches(line, wanted) {
                let (found, value) = records::read(self.table.body(), position(line, slot)?)?;
                if found == key {
                    return Some(value);
                }
            }
            if !has_spilled(line) {
                return None;
            }
            index = after(index, lines.len());
        }
        None
    }

    /// A table that lies in a constant file.
    pub(crate) fn of_fixed(
        path: &Path,
        stamp: Stamp,
        header: FixedHeader,
        table: FixedTable,
    ) -> Self {
        Self {
            path: path.to_path_buf(),
            stamp,
            seed: header.seed,
            table: Table::Fixed(table),
            entries: header.entries,
            nul: header.nul,
        }
    }
}

/// The bucket where the search for a hash begins: its high bits scaled to the number of buckets, without a division.
#[inline]
pub(crate) fn home(hash: u64, buckets: usize) -> usize {
    let scaled = (u128::from(hash) * buckets as u128) >> 64;
    usize::try_from(scaled).unwrap_or(0)
}

#[inline]
pub(crate) fn after(index: usize, buckets: usize) -> usize {
    if index + 1 == buckets { 0 } else { index + 1 }
}

/// 16 bits of the hash that do not choose the bucket; never 0.
#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "16 bits are what is wanted"
)]
pub(crate) fn fingerprint(hash: u64) -> u16 {
    hash as u16 | 1
}

/// The used slots whose fingerprint is `wanted`, as an iterator over a bit mask.
#[inline]
pub(crate) fn matches(line: &[u8; BUCKET_LEN], wanted: u16) -> impl Iterator<Item = usize> + use<> {
    let mut mask = 0_u32;
    let (prints, _) = line.as_chunks::<2>();
    for (slot, print) in prints.iter().take(SLOTS).enumerate() {
        mask |= u32::from(u16::from_le_bytes(*print) == wanted) << slot;
    }
    std::iter::from_fn(move || {
        if mask == 0 {
            return None;
        }
        let slot = mask.trailing_zeros();
        mask &= mask - 1;
        Some(slot as usize)
    })
}

#[inline]
pub(crate) fn position(line: &[u8; BUCKET_LEN], slot: usize) -> Option<u32> {
    let (words, _) = line.as_chunks::<4>();
    words.get(5 + slot).map(|word| u32::from_le_bytes(*word))
}

/// Whether an entry of the bucket went to the next one.
#[inline]
pub(crate) fn has_spilled(line: &[u8; BUCKET_LEN]) -> bool {
    line.get(SPILL_AT) == Some(&1)
}

fn put(line: &mut [u8; BUCKET_LEN], slot: usize, print: u16, place: u32) {
    if let Some(bytes) = line.get_mut(slot * 2..slot * 2 + 2) {
        bytes.copy_from_slice(&print.to_le_bytes());
    }
    if let Some(bytes) = line.get_mut(20 + slot * 4..24 + slot * 4) {
        bytes.copy_from_slice(&place.to_le_bytes());
    }
    if let Some(used) = line.get_mut(USED_AT) {
        *used += 1;
    }
}

impl Map for Snapshot {
    fn lookup(&self, key: &[u8]) -> Result<Option<Cow<'_, [u8]>>, MapError> {
        Ok(self.get(key).map(Cow::Borrowed))
    }

    fn each(&self, f: &mut PairVisitor<'_>) -> Result<(), MapError> {
        let body = self.table.body();
        let mut at = 0;
        while let Some((key, value)) = records::read(body, at) {
            if f(key, value).is_break() {
                break;
            }
            let Some(next) = records::next(body, at) else {
                break;
            };
            at = next;
        }
        Ok(())
    }

    fn stamp(&self) -> Stamp {
        self.stamp
    }
}

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Snapshot")
            .field("path", &self.path)
            .field("entries", &self.entries)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn every_key_is_found_and_no_other() {
        let mut builder = SnapshotBuilder::new(Path::new("m"), 0, 0);
        for i in 0..50_000 {
            let (key, value) = (format!("user{i}"), format!("value {i}"));
            builder.add(key.as_bytes(), value.as_bytes()).unwrap();
        }
        let snapshot = builder.finish(Stamp::default());
        assert_eq!(snapshot.len(), 50_000);
        for i in 0..50_000 {
            let value = snapshot.get(format!("user{i}").as_bytes()).unwrap();
            assert_eq!(value, format!("value {i}").as_bytes());
            assert_eq!(snapshot.get(format!("nobody{i}").as_bytes()), None);
        }
    }

    #[test]
    fn trailing_nuls_are_noticed() {
        let style = |keys: &[&[u8]]| {
            let mut builder = SnapshotBuilder::new(Path::new("m"), 0, 0);
            for key in keys {
                builder.add(key, b"v").unwrap();
            }
            builder.finish(Stamp::default()).nul_style()
        };
        assert_eq!(style(&[]), NulStyle::Without);
        assert_eq!(style(&[b"a", b"b"]), NulStyle::Without);
        assert_eq!(style(&[b"a\0", b"b\0"]), NulStyle::With);
        assert_eq!(style(&[b"a\0", b"b"]), NulStyle::Mixed);
    }

    proptest! {
        #[test]
        fn behaves_like_a_hash_map(pairs in prop::collection::vec(
            (prop::collection::vec(0_u8..4, 0..6), prop::collection::vec(any::<u8>(), 0..300)), 0..400)) {
            let mut model: HashMap<&[u8], &[u8]> = HashMap::new();
            let mut builder = SnapshotBuilder::new(Path::new("m"), 0, 0);
            for (key, value) in &pairs {
                builder.add(key, value).unwrap();
                model.entry(key).or_insert(value);
            }
            let snapshot = builder.finish(Stamp::default());
            prop_assert_eq!(snapshot.len(), model.len() as u64);
            for (key, value) in &model {
                prop_assert_eq!(snapshot.get(key), Some(*value));
            }
            prop_assert_eq!(snapshot.get(b"\x09\x09"), None);
        }
    }
}
