//! Building a map: entries are collected in memory, duplicates decided on, then written and published as a whole.
//!
//! Keys and values are taken as they are: folding and trailing NULs are the business of whoever calls (`makemap`,
//! [`alias`](crate::alias)). A million alias-like entries take about 60 bytes each. [`MapBuilder::publish`] blocks on
//! disk; nothing else does. Limits: 2^32 entries, and those of the record body (16 GiB, items below 1 GiB).

use crate::direct::check_written;
use crate::publish::{self, Disk, Locking, PublishError, PublishOptions, Published, RealDisk};
use crate::records::{self, Entries};
use crate::{Map, MapError, MapKind, PairVisitor, bdb, cdb, fixed, lmdb_file, redb_file};
use std::fs::File;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;

/// Entries read back from a written file before it is published.
const SAMPLE: usize = 64;
const INDEX_MIN: usize = 1024;

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
    body: Vec<u8>,
    places: Vec<u32>,
    index: Index,
    seed: u64,
}

/// Open addressing from the hash of a key to its entry: 32 bits of the hash above the entry's number plus 1, so that a
/// probe reads a record only when the hashes agree. 0 is a free slot.
struct Index {
    slots: Vec<u64>,
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
            body: Vec::new(),
            places: Vec::new(),
            index: Index {
                slots: vec![0; INDEX_MIN],
                used: 0,
            },
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
        if let Some(reason) = self.kind.refusal_of(key) {
            return Err(MapError::unsupported(Path::new(self.kind.name()), reason));
        }
        if self.policy == DuplicatePolicy::KeepAll {
            let place = self.append(key, value)?;
            self.places.push(place);
            return Ok(Inserted::Added);
        }
        self.index.reserve();
        let hash = records::hash64(self.seed, key);
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
            MapKind::Fixed => fixed::write_fixed(path, file, &entries),
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
            let content = self.index.slots.get(slot).copied().unwrap_or(0);
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
            slot = (slot + 1) & (self.index.slots.len() - 1);
        }
    }

    fn reindex(&mut self) {
        self.index = Index {
            slots: vec![0; (self.places.len() * 2).next_power_of_two().max(INDEX_MIN)],
            used: 0,
        };
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
    /// A slot is chosen by the same 32 bits that it stores, so that the table can grow without reading records.
    fn home(&self, hash: u64) -> usize {
        let bits = self.slots.len().trailing_zeros();
        usize::try_from((hash >> 32) << bits >> 32).unwrap_or(0)
    }

    fn fill(&mut self, slot: usize, hash: u64, entry_plus_one: usize) {
        if let Some(place) = self.slots.get_mut(slot) {
            *place = hash >> 32 << 32 | entry_plus_one as u64;
            self.used += 1;
        }
    }

    /// Makes sure that one more entry leaves at least a quarter of the slots free.
    fn reserve(&mut self) {
        if (self.used + 1) * 4 <= self.slots.len() * 3 {
            return;
        }
        let old = std::mem::take(&mut self.slots);
        self.slots = vec![0; old.len() * 2];
        let mask = self.slots.len() - 1;
        for content in old.into_iter().filter(|&content| content != 0) {
            let mut slot = self.home(content);
            while self.slots.get(slot).is_some_and(|&there| there != 0) {
                slot = (slot + 1) & mask;
            }
            if let Some(place) = self.slots.get_mut(slot) {
                *place = content;
            }
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
