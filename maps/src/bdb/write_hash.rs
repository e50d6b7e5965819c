//! Bulk writing of hash files, version 9.
//!
//! The number of buckets N is fixed beforehand: the smallest power of two that leaves bucket pages about 85 percent
//! full. Bucket pages are 1 to N, so spares[0..=log2 N] are 1 and all others 0; continuation pages, overflow chains
//! and trees of duplicates follow from N + 1. libdb can later grow such a file in place.
//!
//! Keys of a page are sorted as libdb sorts them (`hash::compare_on_page`). Keys too long for a page get continuation
//! pages of their own: libdb itself loses keys on pages that mix both. Memory: 8 bytes an entry beyond the records.

use super::hash::{bucket_hash, compare_on_page};
use super::page::{CHARKEY_HASH, HASH_MAGIC, page_type};
use super::write::{
    Header, PAGE_ROOM, PAGE_SIZE, PageBuffer, Part, Tail, body_writer, duplicate_tree, half, word,
    write_meta,
};
use crate::records::Entries;
use std::fs::File;
use std::io::{self, Write};

/// Keys and values longer than this go off-page.
const ITEM_MAX: usize = PAGE_SIZE / 4;
const OFF_PAGE_LEN: usize = 12;
const OFF_TREE_LEN: usize = 8;
/// Buckets whose records are brought into the cache together.
const TOUCHED_BUCKETS: u32 = 8;
const BUCKETS_MIN: u64 = 2;
const BUCKETS_MAX: u64 = 1 << 30;

/// Writes the whole file; answers the number of keys.
pub(crate) fn write_hash(file: &File, entries: &Entries<'_>) -> io::Result<u32> {
    let (hashes, bytes) = survey(entries);
    let buckets = bucket_count(bytes);
    let mask = buckets - 1;
    let (order, starts) = distribute(entries, hashes, mask);

    let mut out = body_writer(file)?;
    let mut tail = Tail::new(buckets + 1);
    let mut writer = BucketWriter {
        entries,
        tail: &mut tail,
        page: PageBuffer::new(),
        scratch: Vec::new(),
        keys: 0,
    };
    let start = |bucket: u32| starts[bucket as usize] as usize;
    for bucket in 0..buckets {
        if bucket % TOUCHED_BUCKETS == 0 {
            let end = bucket.saturating_add(TOUCHED_BUCKETS).min(buckets);
            entries.touch(&order[start(bucket)..start(end)]);
        }
        let range = start(bucket)..start(bucket + 1);
        writer.bucket(bucket + 1, &order[range], &mut out)?;
    }
    let keys = writer.keys;
    drop(order);
    tail.write(entries, buckets + 1, &mut out)?;
    out.finish()?;

    let last_page = tail.next_page() - 1;
    let groups = buckets.trailing_zeros() as usize;
    write_meta(
        file,
        HASH_MAGIC,
        page_type::HASH_META,
        last_page,
        &mut |set| {
            set(48, u32::from(entries.duplicates));
            set(72, mask);
            set(76, mask);
            set(80, mask >> 1);
            set(88, keys);
            set(92, CHARKEY_HASH);
            for group in 0..=groups {
                set(96 + group * 4, 1);
            }
        },
    )?;
    Ok(keys)
}

/// The hash of every key, and the bytes all items take on their pages.
fn survey(entries: &Entries<'_>) -> (Vec<u32>, u64) {
    let mut bytes = 0;
    let hashes = entries.places.iter().map(|&place| {
        let (key, value) = entries.get(place);
        bytes += (item_len(key) + item_len(value) + 4) as u64;
        bucket_hash(key)
    });
    (hashes.collect(), bytes)
}

fn bucket_count(bytes: u64) -> u32 {
    let wanted = (bytes * 100).div_ceil(85 * PAGE_ROOM as u64);
    let buckets = wanted.clamp(BUCKETS_MIN, BUCKETS_MAX).next_power_of_two();
    u32::try_from(buckets).unwrap_or(1 << 30)
}

fn item_len(bytes: &[u8]) -> usize {
    if bytes.len() > ITEM_MAX {
        OFF_PAGE_LEN
    } else {
        1 + bytes.len()
    }
}

/// The entries in order of their buckets (within one, of insertion), and where each bucket starts.
fn distribute(entries: &Entries<'_>, mut hashes: Vec<u32>, mask: u32) -> (Vec<u32>, Vec<u32>) {
    for hash in &mut hashes {
        *hash &= mask;
    }
    let mut starts = vec![0_u32; mask as usize + 2];
    for &bucket in &hashes {
        starts[bucket as usize + 1] += 1;
    }
    for at in 1..starts.len() {
        starts[at] += starts[at - 1];
    }
    let mut cursor = starts.clone();
    let mut order = vec![0; entries.places.len()];
    for (&place, &bucket) in entries.places.iter().zip(&hashes) {
        let at = &mut cursor[bucket as usize];
        order[*at as usize] = place;
        *at += 1;
    }
    (order, starts)
}

struct BucketWriter<'a, 'e> {
    entries: &'a Entries<'e>,
    tail: &'a mut Tail,
    page: PageBuffer,
    scratch: Vec<(u64, u32)>,
    keys: u32,
}

/// Where a bucket's chain of pages has got to: the page being filled.
struct Chain<'o> {
    number: u32,
    previous: u32,
    /// Its place in the tail; `None` for the bucket's first page, which goes straight to the file.
    slot: Option<usize>,
    out: &'o mut dyn Write,
}

impl BucketWriter<'_, '_> {
    fn bucket(&mut self, number: u32, places: &[u32], out: &mut dyn Write) -> io::Result<()> {
        self.page.clear();
        let mut chain = Chain {
            number,
            previous: 0,
            slot: None,
            out,
        };
        let mut sorted = std::mem::take(&mut self.scratch);
        sorted.clear();
        sorted.extend(
            places
                .iter()
                .map(|&place| (prefix(self.entries.get(place).0), place)),
        );
        let entries = *self.entries;
        // Off-page keys last, then libdb's order, then the order of insertion (a record's place grows with it).
        sorted.sort_unstable_by(|a, b| {
            let (left, right) = (entries.get(a.1).0, entries.get(b.1).0);
            let long = (left.len() > ITEM_MAX).cmp(&(right.len() > ITEM_MAX));
            long.then_with(|| {
                if left.len() > ITEM_MAX {
                    left.cmp(right)
                } else {
                    a.0.cmp(&b.0).then_with(|| compare_on_page(left, right))
                }
            })
            .then(a.1.cmp(&b.1))
        });
        let mut is_long = false;
        let mut at = 0;
        while at < sorted.len() {
            let key = entries.get(sorted[at].1).0;
            let mut end = at + 1;
            while entries.duplicates && end < sorted.len() && entries.get(sorted[end].1).0 == key {
                end += 1;
            }
            if key.len() > ITEM_MAX && !is_long {
                is_long = true;
                if !self.page.is_empty() {
                    self.turn(&mut chain)?;
                }
            }
            self.pair(key, &sorted[at..end], &mut chain)?;
            self.keys += 1;
            at = end;
        }
        self.scratch = sorted;
        self.emit(&mut chain, 0)
    }

    /// Adds a key and all its values.
    fn pair(&mut self, key: &[u8], values: &[(u64, u32)], chain: &mut Chain<'_>) -> io::Result<()> {
        let entries = *self.entries;
        let place = values[0].1;
        let list: usize = values
            .iter()
            .map(|(_, place)| entries.get(*place).1.len() + 4)
            .sum();
        let value = entries.get(place).1;
        let value_len = match values.len() {
            1 => item_len(value),
            _ if list <= ITEM_MAX => 1 + list,
            _ => OFF_TREE_LEN,
        };
        if item_len(key) + value_len + 4 > self.page.room() {
            self.turn(chain)?;
        }
        if key.len() > ITEM_MAX {
            let first = self.tail.record(&entries, place, Part::Key)?;
            self.page
                .push(&[&[3, 0, 0, 0], &first.to_le_bytes(), &word(key.len())], 1);
        } else {
            self.page.push(&[&[1], key], 1);
        }
        if values.len() == 1 {
            if value.len() > ITEM_MAX {
                let first = self.tail.record(&entries, place, Part::Value)?;
                self.page.push(
                    &[&[3, 0, 0, 0], &first.to_le_bytes(), &word(value.len())],
                    1,
                );
            } else {
                self.page.push(&[&[1], value], 1);
            }
        } else if list <= ITEM_MAX {
            let mut item = Vec::with_capacity(1 + list);
            item.push(2);
            for (_, place) in values {
                let value = entries.get(*place).1;
                item.extend_from_slice(&half(value.len()));
                item.extend_from_slice(value);
                item.extend_from_slice(&half(value.len()));
            }
            self.page.push(&[&item], 1);
        } else {
            let places: Vec<u32> = values.iter().map(|(_, place)| *place).collect();
            let root = duplicate_tree(self.tail, &entries, &places)?;
            self.page.push(&[&[4, 0, 0, 0], &root.to_le_bytes()], 1);
        }
        Ok(())
    }

    /// Writes the page out and goes on with a continuation page.
    fn turn(&mut self, chain: &mut Chain<'_>) -> io::Result<()> {
        let (number, slot) = self.tail.reserve()?;
        self.emit(chain, number)?;
        chain.previous = chain.number;
        chain.number = number;
        chain.slot = Some(slot);
        self.page.clear();
        Ok(())
    }

    fn emit(&mut self, chain: &mut Chain<'_>, next: u32) -> io::Result<()> {
        let page = self.page.finish(Header {
            number: chain.number,
            previous: chain.previous,
            next,
            level: 0,
            kind: page_type::HASH,
        });
        match chain.slot {
            None => chain.out.write_all(page),
            Some(slot) => {
                self.tail.fill(slot, page);
                Ok(())
            }
        }
    }
}

/// The first 8 bytes of a key as a number that sorts as `compare_on_page` does: a shorter key sorts after all keys it
/// is a prefix of, so it is padded with the highest byte. Equal numbers decide nothing.
fn prefix(key: &[u8]) -> u64 {
    let mut bytes = [0xFF; 8];
    let len = key.len().min(8);
    bytes[..len].copy_from_slice(&key[..len]);
    u64::from_be_bytes(bytes)
}
