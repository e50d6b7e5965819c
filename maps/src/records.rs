//! Key-value records in one flat buffer: the body of a snapshot, of a build in progress, and of the constant file.
//!
//! A record starts at a multiple of 4 and is named by its position in 4-byte units, so 32 bits reach 16 GiB:
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 1 | key length, 0 to 254; 255 marks the long form |
//! | 1 | 1 | value length, 0 to 255; 0 in the long form |
//! | 2 | 8 | long form only: key length and value length, 32 bits each, little endian |
//! | 2 or 10 | | key, then value, then padding to a multiple of 4 |
//!
//! Never panics on foreign bytes: a position or length that does not fit reads as no record. Never blocks.

#![deny(clippy::indexing_slicing)]

use crate::region::Region;
use std::hash::{BuildHasher, RandomState};

/// Most bytes a body may have, so that a position fits 32 bits.
pub const BODY_BYTES_MAX: u64 = (u32::MAX as u64) * 4;
/// Longest key or value a record takes, in bytes.
pub const ITEM_BYTES_MAX: usize = 1 << 30;

const LONG_FORM: u8 = 0xFF;
/// Bytes of a cache line, about as long as a usual record.
const LINE_LEN: usize = 64;

/// The table would pass a limit: an item is too long or the body is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooLarge;

/// Appends a record and answers its position in 4-byte units.
pub(crate) fn append(body: &mut Region, key: &[u8], value: &[u8]) -> Result<u32, TooLarge> {
    if key.len() > ITEM_BYTES_MAX || value.len() > ITEM_BYTES_MAX {
        return Err(TooLarge);
    }
    let position = u32::try_from(body.len() / 4).map_err(|_| TooLarge)?;
    if body.len() as u64 + (key.len() + value.len() + 16) as u64 > BODY_BYTES_MAX {
        return Err(TooLarge);
    }
    let short = u8::try_from(key.len())
        .ok()
        .filter(|&len| len != LONG_FORM)
        .zip(u8::try_from(value.len()).ok());
    let header = if short.is_some() { 2 } else { 10 };
    let len = (header + key.len() + value.len()).next_multiple_of(4);
    let (head, rest) = body
        .extend(len)
        .split_at_mut_checked(header)
        .ok_or(TooLarge)?;
    match short {
        Some((klen, vlen)) => head.copy_from_slice(&[klen, vlen]),
        None => {
            let klen = u32::try_from(key.len()).map_err(|_| TooLarge)?;
            let vlen = u32::try_from(value.len()).map_err(|_| TooLarge)?;
            let lens = u64::from(klen) | u64::from(vlen) << 32;
            for (to, from) in head
                .iter_mut()
                .zip([LONG_FORM, 0].into_iter().chain(lens.to_le_bytes()))
            {
                *to = from;
            }
        }
    }
    let (to_key, rest) = rest.split_at_mut_checked(key.len()).ok_or(TooLarge)?;
    to_key.copy_from_slice(key);
    rest.get_mut(..value.len())
        .ok_or(TooLarge)?
        .copy_from_slice(value);
    Ok(position)
}

/// The key and value at a position; `None` if no record fits there.
#[inline]
pub(crate) fn read(body: &[u8], position: u32) -> Option<(&[u8], &[u8])> {
    let record = body.get(position as usize * 4..)?;
    let (&[klen, vlen], rest) = record.split_first_chunk::<2>()?;
    if klen != LONG_FORM {
        let (key, rest) = rest.split_at_checked(usize::from(klen))?;
        return Some((key, rest.get(..usize::from(vlen))?));
    }
    let (klen, rest) = rest.split_first_chunk::<4>()?;
    let (vlen, rest) = rest.split_first_chunk::<4>()?;
    let (key, rest) = rest.split_at_checked(u32::from_le_bytes(*klen) as usize)?;
    Some((key, rest.get(..u32::from_le_bytes(*vlen) as usize)?))
}

/// The position after the record at `position`; `None` at the end or where no record fits.
pub(crate) fn next(body: &[u8], position: u32) -> Option<u32> {
    let (key, value) = read(body, position)?;
    let step = u32::try_from(encoded_len(key.len(), value.len()) / 4).ok()?;
    position.checked_add(step)
}

/// All bytes of the record at a position, padding included; `None` if no record fits there.
pub(crate) fn whole(body: &[u8], position: u32) -> Option<&[u8]> {
    let (key, value) = read(body, position)?;
    let record = body.get(position as usize * 4..)?;
    record.get(..encoded_len(key.len(), value.len()))
}

/// Bytes of a record, padding included, as [`append`] writes it.
pub(crate) fn encoded_len(key_len: usize, value_len: usize) -> usize {
    let long = key_len >= usize::from(LONG_FORM) || value_len > usize::from(u8::MAX);
    (if long { 10 } else { 2 } + key_len + value_len).next_multiple_of(4)
}

/// What a record's first bytes say of it.
pub(crate) struct Lengths {
    /// Bytes before the key.
    pub(crate) head: usize,
    pub(crate) key: usize,
    pub(crate) value: usize,
}

impl Lengths {
    /// Head, key and value together.
    pub(crate) fn whole(&self) -> usize {
        self.head
            .saturating_add(self.key)
            .saturating_add(self.value)
    }
}

/// Reads the head of a record; `None`: it is cut off.
pub(crate) fn lengths(head: &[u8]) -> Option<Lengths> {
    let (&[key, value], rest) = head.split_first_chunk::<2>()?;
    if key != LONG_FORM {
        return Some(Lengths {
            head: 2,
            key: key.into(),
            value: value.into(),
        });
    }
    let (key, rest) = rest.split_first_chunk::<4>()?;
    let value = rest.first_chunk::<4>()?;
    Some(Lengths {
        head: 10,
        key: u32::from_le_bytes(*key) as usize,
        value: u32::from_le_bytes(*value) as usize,
    })
}

/// The records of a build and the order in which they were inserted.
#[derive(Clone, Copy)]
pub(crate) struct Entries<'a> {
    pub(crate) body: &'a [u8],
    pub(crate) places: &'a [u32],
    /// Whether one key may have several values.
    pub(crate) duplicates: bool,
}

impl<'a> Entries<'a> {
    /// Key and value of a record.
    #[inline]
    pub(crate) fn get(&self, place: u32) -> (&'a [u8], &'a [u8]) {
        read(self.body, place).unwrap_or((&[], &[]))
    }

    /// Reads the start of some records, so that they are in the cache when they are needed: the loads depend on nothing
    /// and go on at the same time.
    pub(crate) fn touch(&self, places: &[u32]) {
        let byte = |&place: &u32| {
            let at = place as usize * 4;
            let near = self.body.get(at).copied().unwrap_or(0);
            near ^ self.body.get(at + LINE_LEN).copied().unwrap_or(0)
        };
        std::hint::black_box(places.iter().map(byte).fold(0, |all, one| all ^ one));
    }

    /// Number of different keys.
    pub(crate) fn keys(&self) -> u64 {
        if !self.duplicates {
            return self.places.len() as u64;
        }
        let order = self.sorted();
        let key = |at: &(u64, u32)| self.get(at.1).0;
        let repeated = order.windows(2).filter(|pair| match pair {
            [a, b] => key(a) == key(b),
            _ => false,
        });
        (order.len() - repeated.count()) as u64
    }

    /// Places in order of keys (bytewise, a prefix first), equal keys in order of insertion, with the first 8 bytes of
    /// each key beside it.
    pub(crate) fn sorted(&self) -> Vec<(u64, u32)> {
        let mut order: Vec<(u64, u32)> = self
            .places
            .iter()
            .map(|&place| (prefix(self.get(place).0), place))
            .collect();
        order.sort_unstable_by(|a, b| {
            a.0.cmp(&b.0)
                .then_with(|| self.get(a.1).0.cmp(self.get(b.1).0))
                .then(a.1.cmp(&b.1))
        });
        order
    }
}

/// The first 8 bytes of a key as a number that sorts as the key does; equal numbers decide nothing.
fn prefix(key: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    for (place, byte) in bytes.iter_mut().zip(key) {
        *place = *byte;
    }
    u64::from_be_bytes(bytes)
}

/// A seeded 64-bit hash of a key, by folded 64 x 64 bit multiplications.
///
/// The seed keeps positions unpredictable; the tables probe a bounded chain anyway, so no key chosen by a stranger
/// can make a lookup slow.
#[inline]
pub(crate) fn hash64(seed: u64, key: &[u8]) -> u64 {
    const K0: u64 = 0xa076_1d64_78bd_642f;
    const K1: u64 = 0xe703_7ed1_a0b4_28db;
    const K2: u64 = 0x8ebc_6af0_9c88_c6e3;
    let mut state = seed ^ K0;
    let (chunks, tail) = key.as_chunks::<16>();
    for chunk in chunks {
        let (low, high) = halves(chunk);
        state = fold(low ^ K1, high ^ state);
    }
    let (low, high) = tail_words(tail);
    state = fold(low ^ K2, high ^ state);
    fold(state ^ K1, key.len() as u64 ^ K0)
}

#[inline]
fn halves(chunk: &[u8; 16]) -> (u64, u64) {
    let both = u128::from_le_bytes(*chunk);
    (low_word(both), low_word(both >> 64))
}

/// 0 to 15 bytes as two words, overlapping reads, no copy.
#[inline]
fn tail_words(tail: &[u8]) -> (u64, u64) {
    if let (Some(first), Some(last)) = (tail.first_chunk::<8>(), tail.last_chunk::<8>()) {
        return (u64::from_le_bytes(*first), u64::from_le_bytes(*last));
    }
    if let (Some(first), Some(last)) = (tail.first_chunk::<4>(), tail.last_chunk::<4>()) {
        return (
            u64::from(u32::from_le_bytes(*first)),
            u64::from(u32::from_le_bytes(*last)),
        );
    }
    let mut word = 0;
    for &byte in tail {
        word = word << 8 | u64::from(byte);
    }
    (word, 0)
}

#[inline]
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    low_word(product) ^ low_word(product >> 64)
}

#[inline]
#[expect(
    clippy::cast_possible_truncation,
    reason = "the low half is what is wanted"
)]
fn low_word(wide: u128) -> u64 {
    wide as u64
}

/// A seed nobody outside can guess.
pub(crate) fn random_seed() -> u64 {
    RandomState::new().hash_one(0x6d61_7073_u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_round_trip_in_both_forms() {
        let long = vec![b'x'; 70_000];
        let cases: [(&[u8], &[u8]); 6] = [
            (b"", b""),
            (b"key", b"value"),
            (&long[..254], &long[..255]),
            (&long[..255], b"v"),
            (b"k", &long[..256]),
            (b"k", &long),
        ];
        let mut body = Region::new();
        let places: Vec<u32> = cases
            .iter()
            .map(|(k, v)| append(&mut body, k, v).unwrap())
            .collect();
        let mut walk = 0;
        for (place, (key, value)) in places.iter().zip(cases) {
            assert_eq!(read(&body, *place), Some((key, value)));
            assert_eq!(walk, *place);
            let lengths = lengths(&body[walk as usize * 4..]).unwrap();
            assert_eq!((lengths.key, lengths.value), (key.len(), value.len()));
            let whole = lengths.whole().next_multiple_of(4);
            assert_eq!(whole, encoded_len(key.len(), value.len()));
            walk = next(&body, walk).unwrap();
        }
        assert_eq!(walk as usize * 4, body.len());
        assert_eq!(read(&body, walk), None);
    }

    #[test]
    fn cut_bodies_read_as_no_record() {
        let mut body = Region::new();
        append(&mut body, b"some-key", &[7; 300]).unwrap();
        for cut in 0..body.len() {
            let whole = 10 + 8 + 300;
            assert_eq!(read(&body[..cut], 0).is_some(), cut >= whole, "{cut}");
        }
        assert_eq!(read(&body, u32::MAX), None);
    }

    #[test]
    fn hashes_of_similar_keys_differ() {
        let mut seen = std::collections::HashSet::new();
        for i in 0..100_000_u32 {
            assert!(seen.insert(hash64(1, format!("user{i}").as_bytes())));
        }
        for len in 0..64 {
            assert!(seen.insert(hash64(1, &vec![0; len])), "{len}");
        }
    }
}
