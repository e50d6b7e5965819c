//! Building a map: entries are collected in memory, duplicates decided on, then written and published as a whole.
//!
//! Keys and values are taken as they are: folding and trailing NULs are the business of whoever calls (`makemap`,
//! [`alias`](crate::alias)). A million alias-like entries take about 60 bytes each. [`MapBuilder::publish`] blocks on
//! disk; nothing else does. Limits: 2^32 entries, and those of the record body (16 GiB, items below 1 GiB).

use crate::direct::check_written;
use crate::publish::{self, Disk, Locking, PublishError, PublishOptions, Published, RealDisk};
use crate::records::{self, Entries};
use crate::region::Region;
use crate::{Map, MapError, MapKind, PairVisitor, bdb, cdb, fixed, lmdb_file, redb_file};
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;

/// Entries read back from a written file before it is published.
const SAMPLE: usize = 64;
const INDEX_MIN: usize = 1024;
/// Bytes of a slot of the index.
const SLOT_LEN: usize = 8;
/// Entries and bytes at which a batch is full.
const BATCH_ENTRIES: usize = 128;
const BATCH_BYTES: usize = 1 << 16;

/// What happens to a key that is inserted again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DuplicatePolicy {
    /// The first value stays; the caller is told (makemap).
    KeepFirst,
    /// The last value stays; the caller is told (newaliases, makemap -r).
    ReplaceWithLast,
    /// All values are kept, the first one is what a lookup answers (makemap -d).
    KeepAll,
    /// The new value is added to the old one after a comma (alias maps with -A).
    JoinWithComma,
}

/// What an insertion did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inserted {
    /// The key is new, or all its values are kept.
    Added,
    /// The key was there and keeps its first value.
    KeptFirst,
    /// The key was there and has the new value, or both.
    Replaced,
}

/// Collects the entries of a map to be written.
pub struct MapBuilder {
    kind: MapKind,
    policy: DuplicatePolicy,
    body: Region,
    places: Vec<u32>,
    index: Index,
    seed: u64,
}

/// Entries gathered to be inserted together by [`MapBuilder::insert_batch`].
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    /// Where each key and each value ends.
    ends: Vec<(usize, usize)>,
}

impl Batch {
    /// Adds an entry.
    pub fn push(&mut self, key: &[u8], value: &[u8]) {
        self.bytes.extend_from_slice(key);
        let key_end = self.bytes.len();
        self.bytes.extend_from_slice(value);
        self.ends.push((key_end, self.bytes.len()));
    }

    /// Whether it is time to insert what is here: more would cost memory and gain nothing.
    pub fn is_full(&self) -> bool {
        self.ends.len() >= BATCH_ENTRIES || self.bytes.len() >= BATCH_BYTES
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Forgets what is here, and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    /// The entries in the order they were added.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut start = 0;
        self.ends.iter().map(move |&(key_end, end)| {
            let key = self.bytes.get(start..key_end).unwrap_or(&[]);
            let value = self.bytes.get(key_end..end).unwrap_or(&[]);
            start = end;
            (key, value)
        })
    }
}

/// Open addressing from the hash of a key to its entry: 32 bits of the hash above the entry's number plus 1, so that a
/// probe reads a record only when the hashes agree. 0 is a free slot.
struct Index {
    slots: Region,
    used: usize,
}

impl MapBuilder {
    /// Starts a map of a kind that can be written.
    ///
    /// # Errors
    /// [`MapError::Unsupported`] for a kind that is not written here.
    pub fn new(kind: MapKind, policy: DuplicatePolicy) -> Result<Self, MapError> {
        if !kind.is_writable() {
            return Err(MapError::unsupported(
                Path::new(kind.name()),
                "maps of this class are not built",
            ));
        }
        if policy == DuplicatePolicy::KeepAll && !kind.keeps_duplicates() {
            return Err(MapError::unsupported(
                Path::new(kind.name()),
                "maps of this class hold one value a key",
            ));
        }
        Ok(Self {
            kind,
            policy,
            body: Region::new(),
            places: Vec::new(),
            index: Index::new(INDEX_MIN),
            seed: records::random_seed(),
        })
    }

    /// What happens to keys inserted again.
    pub fn policy(&self) -> DuplicatePolicy {
        self.policy
    }

    /// Adds a trailing NUL to every value.
    pub(crate) fn terminate_values(&mut self) -> Result<(), MapError> {
        let mut value = Vec::new();
        for entry in 0..self.places.len() {
            let Some(&place) = self.places.get(entry) else {
                break;
            };
            let (key, old) = self.record(place);
            let key = key.to_vec();
            value.clear();
            value.extend_from_slice(old);
            value.push(0);
            let place = self.append(&key, &value)?;
            if let Some(entry) = self.places.get_mut(entry) {
                *entry = place;
            }
        }
        Ok(())
    }

    /// Number of entries, duplicates that are kept included.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Adds an entry; a key that is there already is treated by the policy.
    ///
    /// # Errors
    /// [`MapError::Unsupported`] at a limit of the header, and for a key that maps of the class cannot hold.
    pub fn insert(&mut self, key: &[u8], value: &[u8]) -> Result<Inserted, MapError> {
        self.insert_hashed(records::hash64(self.seed, key), key, value)
    }

    /// Inserts the entries of a batch as [`MapBuilder::insert`] would one after the other, in less time; `f` is told
    /// of each, by its number in the batch from 0, what became of it.
    ///
    /// # Errors
    /// As [`MapBuilder::insert`]; entries before the one refused have been inserted.
    pub fn insert_batch(
        &mut self,
        batch: &Batch,
        f: &mut dyn FnMut(usize, Inserted),
    ) -> Result<(), MapError> {
        let hashes: Vec<u64> = batch
            .iter()
            .map(|(key, _)| records::hash64(self.seed, key))
            .collect();
        if self.policy != DuplicatePolicy::KeepAll {
            self.index.reserve(hashes.len());
            self.index.touch(&hashes);
        }
        for (number, ((key, value), hash)) in batch.iter().zip(hashes).enumerate() {
            f(number, self.insert_hashed(hash, key, value)?);
        }
        Ok(())
    }

    fn insert_hashed(&mut self, hash: u64, key: &[u8], value: &[u8]) -> Result<Inserted, MapError> {
        if let Some(reason) = self.kind.refusal_of(key) {
            return Err(MapError::unsupported(Path::new(self.kind.name()), reason));
        }
        if self.policy == DuplicatePolicy::KeepAll {
            let place = self.append(key, value)?;
            self.places.push(place);
            return Ok(Inserted::Added);
        }
        self.index.reserve(1);
        let slot = match self.find(hash, key) {
            Ok(entry) => {
                let old = self.places.get(entry).copied().unwrap_or(0);
                let place = match self.policy {
                    DuplicatePolicy::ReplaceWithLast => self.append(key, value)?,
                    DuplicatePolicy::JoinWithComma => {
                        let mut joined = self.value_at(old).to_vec();
                        joined.push(b',');
                        joined.extend_from_slice(value);
                        self.append(key, &joined)?
                    }
                    DuplicatePolicy::KeepFirst | DuplicatePolicy::KeepAll => {
                        return Ok(Inserted::KeptFirst);
                    }
                };
                if let Some(entry) = self.places.get_mut(entry) {
                    *entry = place;
                }
                return Ok(Inserted::Replaced);
            }
            Err(slot) => slot,
        };
        let place = self.append(key, value)?;
        self.places.push(place);
        self.index.fill(slot, hash, self.places.len());
        Ok(Inserted::Added)
    }

    /// The first value of a key.
    pub fn get(&self, key: &[u8]) -> Option<&[u8]> {
        if self.policy == DuplicatePolicy::KeepAll {
            return self
                .places
                .iter()
                .map(|&place| self.record(place))
                .find(|(found, _)| *found == key)
                .map(|(_, value)| value);
        }
        let entry = self.find(records::hash64(self.seed, key), key).ok()?;
        self.places.get(entry).map(|&place| self.value_at(place))
    }

    /// Calls `f` with every entry in the order of insertion, until it breaks.
    pub fn each(&self, f: &mut PairVisitor<'_>) {
        for &place in &self.places {
            let (key, value) = self.record(place);
            if f(key, value).is_break() {
                break;
            }
        }
    }

    /// Removes a key with all its values; `false` if it was not there. Takes time in proportion to the map's size.
    pub fn remove(&mut self, key: &[u8]) -> bool {
        let before = self.places.len();
        let body = &self.body;
        self.places
            .retain(|&place| records::read(body, place).is_none_or(|(found, _)| found != key));
        if self.places.len() == before {
            return false;
        }
        if self.policy != DuplicatePolicy::KeepAll {
            self.reindex();
        }
        true
    }

    /// Inserts everything another map holds, by the policy.
    ///
    /// # Errors
    /// What reading the other map or [`MapBuilder::insert`] gives.
    pub fn insert_all(&mut self, map: &dyn Map) -> Result<(), MapError> {
        let mut trouble = None;
        map.each(&mut |key, value| match self.insert(key, value) {
            Ok(_) => ControlFlow::Continue(()),
            Err(error) => {
                trouble = Some(error);
                ControlFlow::Break(())
            }
        })?;
        trouble.map_or(Ok(()), Err)
    }

    /// Writes the map to `dest` (the file's name, suffix included), whole and on disk, or leaves the old one.
    ///
    /// # Errors
    /// [`PublishError`]; `dest` is then what it was.
    ///
    /// # Durability
    /// When this returns, the map and its name are on disk.
    pub fn publish(
        &self,
        dest: &Path,
        options: &PublishOptions,
    ) -> Result<Published, PublishError> {
        self.publish_on(&RealDisk, dest, options)
    }

    /// As [`MapBuilder::publish`], on a disk whose power a test may cut.
    pub(crate) fn publish_on(
        &self,
        disk: &dyn Disk,
        dest: &Path,
        options: &PublishOptions,
    ) -> Result<Published, PublishError> {
        let locking = match self.kind.has_record_lock() {
            true => Locking::FlockAndRecord,
            false => Locking::Flock,
        };
        let keys = publish::publish(disk, dest, options, locking, |file, path| {
            let keys = self.write(file, path).map_err(|source| PublishError::Io {
                path: dest.to_path_buf(),
                operation: "write",
                source,
            })?;
            check_written(file, self.kind, dest, &self.sample())?;
            Ok(keys)
        })?;
        Ok(Published {
            path: dest.to_path_buf(),
            keys,
        })
    }

    /// Writes the file in the format of its kind; answers the number of keys.
    fn write(&self, file: &File, path: &Path) -> io::Result<u64> {
        let entries = Entries {
            body: &self.body,
            places: &self.places,
            duplicates: self.policy == DuplicatePolicy::KeepAll,
        };
        match self.kind {
            MapKind::Hash => bdb::write_hash(file, &entries).map(u64::from),
            MapKind::Btree => bdb::write_btree(file, &entries).map(u64::from),
            MapKind::Cdb => cdb::write_cdb(file, &entries),
            MapKind::Lmdb => lmdb_file::write_lmdb(path, &entries),
            MapKind::Redb => redb_file::write_redb(file, &entries),
            MapKind::Fixed => fixed::write_fixed(file, &entries),
            MapKind::Text => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Some entries spread over the map. With duplicates only the first value of a key can be read back, so these
    /// are taken from keys whose first value is known: the very first entry.
    fn sample(&self) -> Vec<(&[u8], &[u8])> {
        if self.policy == DuplicatePolicy::KeepAll {
            return self
                .places
                .first()
                .map(|&place| self.record(place))
                .into_iter()
                .collect();
        }
        let step = (self.places.len() / SAMPLE).max(1);
        self.places
            .iter()
            .step_by(step)
            .map(|&place| self.record(place))
            .collect()
    }

    fn append(&mut self, key: &[u8], value: &[u8]) -> Result<u32, MapError> {
        if self.places.len() >= u32::MAX as usize {
            return Err(too_large(self.kind));
        }
        records::append(&mut self.body, key, value).map_err(|_| too_large(self.kind))
    }

    fn record(&self, place: u32) -> (&[u8], &[u8]) {
        records::read(&self.body, place).unwrap_or((&[], &[]))
    }

    fn value_at(&self, place: u32) -> &[u8] {
        self.record(place).1
    }

    /// The entry of a key, or the free slot where it belongs.
    fn find(&self, hash: u64, key: &[u8]) -> Result<usize, usize> {
        let mut slot = self.index.home(hash);
        loop {
            let content = self.index.content(slot);
            if content == 0 {
                return Err(slot);
            }
            if content >> 32 == hash >> 32 {
                let entry = entry_of(content);
                let there = self.places.get(entry).map(|&place| self.record(place).0);
                if there == Some(key) {
                    return Ok(entry);
                }
            }
            slot = self.index.after(slot);
        }
    }

    fn reindex(&mut self) {
        self.index = Index::new((self.places.len() * 2).next_power_of_two().max(INDEX_MIN));
        for entry in 0..self.places.len() {
            let key = self
                .places
                .get(entry)
                .map_or(&[][..], |&place| self.record(place).0);
            let hash = records::hash64(self.seed, key);
            if let Err(slot) = self.find(hash, key) {
                self.index.fill(slot, hash, entry + 1);
            }
        }
    }
}

fn too_large(kind: MapKind) -> MapError {
    MapError::unsupported(Path::new(kind.name()), "the map is too large to build")
}

/// The entry a slot's content names.
fn entry_of(content: u64) -> usize {
    usize::try_from((content & 0xFFFF_FFFF).saturating_sub(1)).unwrap_or(usize::MAX)
}

impl Index {
    /// A table of so many free slots, a power of two.
    fn new(slots: usize) -> Self {
        Self {
            slots: Region::zeroed(slots * SLOT_LEN),
            used: 0,
        }
    }

    fn len(&self) -> usize {
        self.slots.len() / SLOT_LEN
    }

    #[inline]
    fn content(&self, slot: usize) -> u64 {
        let (slots, _) = self.slots.as_chunks::<SLOT_LEN>();
        slots
            .get(slot)
            .map_or(0, |bytes| u64::from_le_bytes(*bytes))
    }

    #[inline]
    fn set(&mut self, slot: usize, content: u64) {
        let (slots, _) = self.slots.as_chunks_mut::<SLOT_LEN>();
        if let Some(bytes) = slots.get_mut(slot) {
            *bytes = content.to_le_bytes();
        }
    }

    fn after(&self, slot: usize) -> usize {
        (slot + 1) & (self.len() - 1)
    }

    /// A slot is chosen by the same 32 bits that it stores, so that the table can grow without reading records.
    fn home(&self, hash: u64) -> usize {
        let bits = self.len().trailing_zeros();
        usize::try_from((hash >> 32) << bits >> 32).unwrap_or(0)
    }

    fn fill(&mut self, slot: usize, hash: u64, entry_plus_one: usize) {
        self.set(slot, hash >> 32 << 32 | entry_plus_one as u64);
        self.used += 1;
    }

    /// Reads the slots of some hashes, so that they are in the cache when they are needed: the loads depend on nothing
    /// and go on at the same time, where searches, each with its branches, would wait for memory one after the other.
    fn touch(&self, hashes: &[u64]) {
        let slot = |&hash: &u64| self.content(self.home(hash));
        std::hint::black_box(hashes.iter().map(slot).fold(0, |all, one| all ^ one));
    }

    /// Makes sure that so many more entries leave at least a quarter of the slots free.
    fn reserve(&mut self, more: usize) {
        let mut len = self.len();
        while (self.used + more) * 4 > len * 3 {
            len *= 2;
        }
        if len > self.len() {
            self.grow(len);
        }
    }

    fn grow(&mut self, len: usize) {
        let used = self.used;
        let old = std::mem::replace(self, Self::new(len));
        self.used = used;
        for content in old.slots.as_chunks::<SLOT_LEN>().0 {
            let content = u64::from_le_bytes(*content);
            if content == 0 {
                continue;
            }
            let mut slot = self.home(content);
            while self.content(slot) != 0 {
                slot = self.after(slot);
            }
            self.set(slot, content);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(policy: DuplicatePolicy, pairs: &[(&str, &str)]) -> (MapBuilder, Vec<Inserted>) {
        let mut builder = MapBuilder::new(MapKind::Hash, policy).unwrap();
        let done = pairs
            .iter()
            .map(|(k, v)| builder.insert(k.as_bytes(), v.as_bytes()).unwrap())
            .collect();
        (builder, done)
    }

    #[test]
    fn duplicates_are_treated_by_the_policy() {
        let pairs = [("a", "1"), ("b", "2"), ("a", "3")];
        for (policy, value, last) in [
            (DuplicatePolicy::KeepFirst, "1", Inserted::KeptFirst),
            (DuplicatePolicy::ReplaceWithLast, "3", Inserted::Replaced),
            (DuplicatePolicy::JoinWithComma, "1,3", Inserted::Replaced),
            (DuplicatePolicy::KeepAll, "1", Inserted::Added),
        ] {
            let (builder, done) = build(policy, &pairs);
            assert_eq!(builder.get(b"a"), Some(value.as_bytes()), "{policy:?}");
            assert_eq!(done, [Inserted::Added, Inserted::Added, last]);
            assert_eq!(builder.get(b"c"), None);
        }
    }

    #[test]
    fn a_batch_is_inserted_as_its_entries_would_be() {
        for policy in [
            DuplicatePolicy::KeepFirst,
            DuplicatePolicy::ReplaceWithLast,
            DuplicatePolicy::JoinWithComma,
            DuplicatePolicy::KeepAll,
        ] {
            let mut alone = MapBuilder::new(MapKind::Hash, policy).unwrap();
            let mut together = MapBuilder::new(MapKind::Hash, policy).unwrap();
            let (mut expected, mut told) = (Vec::new(), Vec::new());
            let mut batch = Batch::default();
            for i in 0..5000_u32 {
                // Keys come again within a batch and across batches; some are empty, as are some values.
                let key = "k".repeat((i % 700) as usize);
                let value = i.to_string().repeat((i % 3) as usize);
                expected.push(alone.insert(key.as_bytes(), value.as_bytes()).unwrap());
                batch.push(key.as_bytes(), value.as_bytes());
                if batch.is_full() || i == 4999 {
                    let mut next = 0;
                    let mut tell = |number: usize, inserted| {
                        assert_eq!(number, next);
                        next += 1;
                        told.push(inserted);
                    };
                    together.insert_batch(&batch, &mut tell).unwrap();
                    batch.clear();
                    assert!(batch.is_empty());
                }
            }
            assert_eq!(told, expected);
            let pairs = |builder: &MapBuilder| {
                let mut pairs = Vec::new();
                builder.each(&mut |key, value| {
                    pairs.push((key.to_vec(), value.to_vec()));
                    ControlFlow::Continue(())
                });
                pairs
            };
            assert!(pairs(&alone) == pairs(&together));
        }
    }

    #[test]
    fn removing_a_key_leaves_the_others() {
        for policy in [DuplicatePolicy::KeepFirst, DuplicatePolicy::KeepAll] {
            let (mut builder, _) = build(policy, &[("a", "1"), ("b", "2"), ("c", "3")]);
            assert!(builder.remove(b"b") && !builder.remove(b"b"));
            assert_eq!(builder.get(b"b"), None);
            assert_eq!(builder.get(b"c"), Some(&b"3"[..]));
            assert_eq!(builder.insert(b"b", b"4").unwrap(), Inserted::Added);
            assert_eq!(builder.get(b"b"), Some(&b"4"[..]));
        }
    }

    #[test]
    fn many_keys_are_all_found() {
        let mut builder = MapBuilder::new(MapKind::Hash, DuplicatePolicy::KeepFirst).unwrap();
        for i in 0..20_000_u32 {
            let done = builder.insert(&i.to_be_bytes(), &i.to_le_bytes());
            assert_eq!(done.unwrap(), Inserted::Added);
        }
        for i in 0..20_000_u32 {
            assert_eq!(builder.get(&i.to_be_bytes()), Some(&i.to_le_bytes()[..]));
        }
        assert_eq!(builder.len(), 20_000);
    }

    #[test]
    fn text_maps_are_not_built() {
        assert!(MapBuilder::new(MapKind::Text, DuplicatePolicy::KeepFirst).is_err());
    }
}
