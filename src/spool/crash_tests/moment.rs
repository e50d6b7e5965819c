//! What a power cut at one moment may leave: the durable part of a disk plus a subset of what is not synced (SPOOL 10).
//!
//! [`Moment::choice`] numbers the subsets that are tried, [`Moment::key`] tells equal disks without making them,
//! [`Moment::crash`] makes one. Sectors of files and changes of names are items alike. An item that would change
//! nothing (zeros over zeros) is left out of the subsets, so that they are not wasted, but is once garbage like any.

use std::sync::Arc;

use super::super::sim_storage::{Disk, Inode, NameChange, SECTOR, SimStorage, Unsynced, put};
use super::Rng;

/// Most items of which every subset is tried.
const ALL_SUBSETS_MAX: usize = 8;
/// What a torn sector holds.
const GARBAGE: [u8; SECTOR] = [0xa5; SECTOR];

/// Something that a power cut may keep or take.
enum Item {
    Fill {
        inode: usize,
        len: usize,
    },
    Sector {
        inode: usize,
        offset: usize,
        data: Arc<Vec<u8>>,
        /// Where the sector begins in `data`.
        at: usize,
        /// What it adds to the file's hash, and what it replaces there.
        new: u64,
        old: u64,
        /// An earlier item of the same sector.
        earlier: Option<usize>,
    },
    Name {
        folder: usize,
        at: usize,
    },
}

/// What of the items survives.
#[derive(Debug, Clone, Default)]
pub(super) struct Choice {
    survives: Vec<bool>,
    /// This one survives as garbage.
    garbage: Option<usize>,
}

/// A disk at one moment.
pub(super) struct Moment {
    disk: Disk,
    items: Vec<Item>,
    /// Items that make a difference.
    effective: Vec<usize>,
    /// Items that are sectors.
    sectors: Vec<usize>,
    /// Hash of what is durable of each file.
    hashes: Vec<u64>,
}

/// Hashes made before, by file; a hash holds as long as the bytes are the same object.
#[derive(Default)]
pub(super) struct HashCache(Vec<(Arc<Vec<u8>>, u64)>);

fn mix(a: u64, b: u64) -> u64 {
    let z = (a ^ b.rotate_left(29)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    (z ^ (z >> 32)).wrapping_mul(0xc4ce_b9fe_1a85_ec53) ^ (z >> 29)
}

/// The hash of a sector at an offset; 0 for zeros, whether written or not.
fn sector_hash(offset: usize, bytes: &[u8]) -> u64 {
    let mut hash = 0;
    for (n, word) in bytes.chunks(8).enumerate() {
        let mut padded = [0; 8];
        padded[..word.len()].copy_from_slice(word);
        let word = u64::from_le_bytes(padded);
        if word != 0 {
            hash = mix(hash ^ word, n as u64 + 1);
        }
    }
    if hash == 0 {
        0
    } else {
        mix(hash, offset as u64)
    }
}

fn file_hash(bytes: &[u8]) -> u64 {
    bytes
        .chunks(SECTOR)
        .enumerate()
        .fold(0, |hash, (n, sector)| {
            hash ^ sector_hash(n * SECTOR, sector)
        })
}

impl HashCache {
    fn hash(&mut self, inode: usize, bytes: &Arc<Vec<u8>>) -> u64 {
        if self.0.len() <= inode {
            self.0.resize_with(inode + 1, Default::default);
        }
        let (known, hash) = &mut self.0[inode];
        if !Arc::ptr_eq(known, bytes) {
            *known = Arc::clone(bytes);
            *hash = file_hash(bytes);
        }
        *hash
    }
}

impl Moment {
    /// The disk as it is now; with a cache its choices have keys.
    pub(super) fn of(storage: &SimStorage, mut cache: Option<&mut HashCache>) -> Self {
        let disk = storage.disk().clone();
        let mut items: Vec<Item> = Vec::new();
        let (mut effective, mut sectors) = (Vec::new(), Vec::new());
        let mut hashes = vec![0; disk.inodes.len()];
        for (inode, file) in disk.inodes.iter().enumerate() {
            let Some(file) = file else { continue };
            if let Some(cache) = &mut cache {
                hashes[inode] = cache.hash(inode, &file.durable);
            }
            let first = items.len();
            for unsynced in &file.unsynced {
                let (start, data) = match unsynced {
                    Unsynced::Fill(len) => {
                        effective.push(items.len());
                        items.push(Item::Fill { inode, len: *len });
                        continue;
                    }
                    Unsynced::Sectors(start, data) => (*start, data),
                };
                for at in (0..data.len()).step_by(SECTOR) {
                    let offset = start + at;
                    let bytes = &data[at..(at + SECTOR).min(data.len())];
                    let durable = file.durable.get(offset..offset + bytes.len());
                    let earlier = (first..items.len()).rev().find(|n| {
                        matches!(&items[*n], Item::Sector { offset: other, .. } if *other == offset)
                    });
                    if durable != Some(bytes) || earlier.is_some() {
                        effective.push(items.len());
                    }
                    sectors.push(items.len());
                    let old = file.durable.get(offset..).unwrap_or_default();
                    items.push(Item::Sector {
                        inode,
                        offset,
                        data: Arc::clone(data),
                        at,
                        new: sector_hash(offset, bytes),
                        old: sector_hash(offset, &old[..old.len().min(SECTOR)]),
                        earlier,
                    });
                }
            }
        }
        for (folder, names) in disk.folders.iter().enumerate() {
            for at in 0..names.unsynced.len() {
                effective.push(items.len());
                items.push(Item::Name { folder, at });
            }
        }
        Self {
            disk,
            items,
            effective,
            sectors,
            hashes,
        }
    }

    /// How many items make a difference.
    pub(super) fn items(&self) -> usize {
        self.effective.len()
    }

    /// Choice number `state`; none past the last. Up to eight items every subset; beyond, none, all, each alone, each
    /// missing, each prefix, each suffix, as many random ones; and each sector once as garbage.
    pub(super) fn choice(&self, state: usize, seed: u64) -> Option<Choice> {
        let n = self.effective.len();
        let subset = |test: &mut dyn FnMut(usize) -> bool| {
            let mut survives = vec![false; self.items.len()];
            for (nth, item) in self.effective.iter().enumerate() {
                survives[*item] = test(nth);
            }
            Some(Choice {
                survives,
                garbage: None,
            })
        };
        let subsets = if n <= ALL_SUBSETS_MAX {
            1 << n
        } else {
            2 + 5 * n
        };
        if state >= subsets {
            let torn = *self.sectors.get(state - subsets)?;
            return Some(Choice {
                survives: vec![true; self.items.len()],
                garbage: Some(torn),
            });
        }
        if n <= ALL_SUBSETS_MAX {
            return subset(&mut |nth| state >> nth & 1 == 1);
        }
        if state < 2 {
            return subset(&mut |_| state == 1);
        }
        let at = (state - 2) % n;
        let mut rng = Rng(seed ^ (at as u64) << 32);
        match (state - 2) / n {
            0 => subset(&mut |nth| nth == at),
            1 => subset(&mut |nth| nth != at),
            2 => subset(&mut |nth| nth < at),
            3 => subset(&mut |nth| nth >= at),
            _ => subset(&mut |_| rng.next() & 1 == 1),
        }
    }

    /// A random choice.
    pub(super) fn random(&self, rng: &mut Rng) -> Choice {
        let bias = 1 + rng.below(3);
        let survives = (0..self.items.len()).map(|_| rng.below(4) < bias).collect();
        Choice {
            survives,
            garbage: None,
        }
    }

    /// Nothing survives that is not synced.
    pub(super) fn nothing(&self) -> Choice {
        Choice {
            survives: vec![false; self.items.len()],
            garbage: None,
        }
    }

    fn names(&self, choice: &Choice) -> Vec<Arc<super::super::sim_storage::Names>> {
        let mut all: Vec<_> = self
            .disk
            .folders
            .iter()
            .map(|f| Arc::clone(&f.durable))
            .collect();
        for (item, _) in self.survivors(choice) {
            if let Item::Name { folder, at } = item {
                let change: &NameChange = &self.disk.folders[*folder].unsynced[*at];
                change.apply(Arc::make_mut(&mut all[*folder]));
            }
        }
        all
    }

    fn survivors<'a>(&'a self, choice: &'a Choice) -> impl Iterator<Item = (&'a Item, usize)> {
        self.items
            .iter()
            .zip(0..)
            .filter(|(_, n)| choice.survives[*n])
    }

    /// A hash of the names, and of the bytes they stand for, after this choice. Equal disks have equal keys.
    pub(super) fn key(&self, choice: &Choice) -> u64 {
        let mut hashes = self.hashes.clone();
        let mut lens: Vec<usize> = self
            .disk
            .inodes
            .iter()
            .map(|file| file.as_ref().map_or(0, |file| file.durable.len()))
            .collect();
        let mut filled = None;
        for (item, n) in self.survivors(choice) {
            match item {
                Item::Fill { inode, len } => {
                    hashes[*inode] = 0;
                    lens[*inode] = *len;
                    filled = Some(*inode);
                }
                Item::Sector {
                    inode,
                    offset,
                    data,
                    at,
                    new,
                    old,
                    earlier,
                } => {
                    let length = SECTOR.min(data.len() - at);
                    let garbage = |n: usize| choice.garbage == Some(n);
                    let mut replaced = if filled == Some(*inode) { 0 } else { *old };
                    let mut before = *earlier;
                    while let Some(earlier) = before {
                        let Item::Sector {
                            new, earlier: e, ..
                        } = &self.items[earlier]
                        else {
                            break;
                        };
                        if choice.survives[earlier] {
                            replaced = if garbage(earlier) {
                                sector_hash(*offset, &GARBAGE[..length])
                            } else {
                                *new
                            };
                            break;
                        }
                        before = *e;
                    }
                    let put = if garbage(n) {
                        sector_hash(*offset, &GARBAGE[..length])
                    } else {
                        *new
                    };
                    hashes[*inode] ^= replaced ^ put;
                    lens[*inode] = lens[*inode].max(offset + length);
                }
                Item::Name { .. } => {}
            }
        }
        let mut key = 0;
        for (folder, names) in self.names(choice).iter().enumerate() {
            for (name, inode) in names.iter() {
                let name = name.as_bytes().chunks(8).fold(folder as u64, |hash, part| {
                    let mut word = [0; 8];
                    word[..part.len()].copy_from_slice(part);
                    mix(hash, u64::from_le_bytes(word))
                });
                key ^= mix(mix(name, hashes[*inode]), lens[*inode] as u64);
            }
        }
        key
    }

    /// The disk after a power cut with this choice.
    pub(super) fn crash(&self, choice: &Choice) -> SimStorage {
        let names = self.names(choice);
        let mut inodes: Vec<Option<Inode>> = vec![None; self.disk.inodes.len()];
        for names in &names {
            for inode in names.values() {
                if let Some(file) = &self.disk.inodes[*inode] {
                    inodes[*inode] = Some(Inode::durable(Arc::clone(&file.durable)));
                }
            }
        }
        for (item, n) in self.survivors(choice) {
            match item {
                Item::Fill { inode, len } => {
                    if let Some(file) = &mut inodes[*inode] {
                        file.durable = Arc::new(vec![0; *len]);
                    }
                }
                Item::Sector {
                    inode,
                    offset,
                    data,
                    at,
                    ..
                } => {
                    let Some(file) = &mut inodes[*inode] else {
                        continue;
                    };
                    let bytes = &data[*at..(at + SECTOR).min(data.len())];
                    // `written` shares the bytes; it must not make the first change copy them twice.
                    file.written = Arc::default();
                    if choice.garbage == Some(n) {
                        put(&mut file.durable, *offset, &GARBAGE[..bytes.len()]);
                    } else {
                        put(&mut file.durable, *offset, bytes);
                    }
                }
                Item::Name { .. } => {}
            }
        }
        for file in inodes.iter_mut().flatten() {
            file.written = Arc::clone(&file.durable);
        }
        let mut folders = self.disk.folders.clone();
        for (folder, names) in folders.iter_mut().zip(names) {
            folder.durable = Arc::clone(&names);
            folder.names = names;
            folder.unsynced.clear();
        }
        SimStorage::on(self.disk.successor(inodes, folders))
    }
}

impl SimStorage {
    /// How many sectors of files, and how many changes of names, are not synced.
    pub(in crate::spool) fn unsynced(&self) -> (usize, usize) {
        let moment = Moment::of(self, None);
        let is_name = |item: &&Item| matches!(item, Item::Name { .. });
        let names = moment.items.iter().filter(is_name).count();
        (moment.items.len() - names, names)
    }

    /// The disk after a power cut now: of the unsynced sectors those that `survives` (number, of how many), of the
    /// changes of names the first `names` in order.
    pub(in crate::spool) fn crash(
        &self,
        survives: &mut dyn FnMut(usize, usize) -> bool,
        names: usize,
    ) -> Self {
        let moment = Moment::of(self, None);
        let total = moment.items.len();
        let mut names = names;
        let choice = Choice {
            survives: (0..total)
                .map(|n| match &moment.items[n] {
                    Item::Name { .. } => {
                        let is_first = names > 0;
                        names = names.saturating_sub(1);
                        is_first
                    }
                    Item::Fill { .. } | Item::Sector { .. } => survives(n, total),
                })
                .collect(),
            garbage: None,
        };
        moment.crash(&choice)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::storage::Storage;
    use super::*;

    fn bytes(storage: &SimStorage, name: &str) -> Option<Vec<u8>> {
        let file = storage.open_read(name).ok()?;
        let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
        file.read_at(0, &mut bytes).unwrap();
        Some(bytes)
    }

    #[test]
    fn a_crash_leaves_what_was_synced_and_a_subset_of_the_rest() {
        let storage = SimStorage::new(1);
        let file = storage.create("a").unwrap();
        file.write_at(0, &[&[1; 1024]]).unwrap();
        file.sync().unwrap();
        storage.sync_dir().unwrap();
        file.write_at(512, &[&[2; 1024]]).unwrap();
        storage.rename("a", "b").unwrap();
        let moment = Moment::of(&storage, Some(&mut HashCache::default()));
        assert_eq!(moment.items(), 3, "two sectors and a name");
        let mut keys = std::collections::HashMap::new();
        let mut state = 0;
        while let Some(choice) = moment.choice(state, 7) {
            let crashed = moment.crash(&choice);
            let found = (bytes(&crashed, "a"), bytes(&crashed, "b"));
            assert!(found.0.is_some() != found.1.is_some(), "one atomic change");
            let found = found.0.or(found.1).unwrap();
            assert_eq!(found[..512], [1; 512]);
            // The key made without the disk is that of the disk.
            let again = Moment::of(&crashed, Some(&mut HashCache::default()));
            assert_eq!(moment.key(&choice), again.key(&again.nothing()));
            keys.insert(moment.key(&choice), crashed.list().unwrap());
            state += 1;
        }
        assert_eq!(
            state,
            8 + 2,
            "every subset, and each sector once as garbage"
        );
        assert_eq!(keys.len(), 10, "all of them differ");
    }

    #[test]
    fn a_failed_sync_loses_what_reads_go_on_showing() {
        let storage = SimStorage::new(1);
        let file = storage.create("a").unwrap();
        storage.sync_dir().unwrap();
        storage.fail_at(storage.calls() + 2, std::io::ErrorKind::Other);
        file.write_at(0, &[b"lost"]).unwrap();
        file.sync().unwrap_err();
        file.sync().unwrap();
        assert_eq!(bytes(&storage, "a").unwrap(), b"lost");
        let crashed = storage.crash(&mut |_, _| true, 1);
        assert_eq!(bytes(&crashed, "a").unwrap(), b"");
    }
}
