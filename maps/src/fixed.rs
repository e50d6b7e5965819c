//! The constant file: a snapshot's table on disk, served as it lies there.
//!
//! Little endian.
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 8 | magic |
//! | 8 | 8 | seed of the hashes |
//! | 16 | 8 | number of keys |
//! | 24 | 8 | number of buckets |
//! | 32 | 8 | bytes of records |
//! | 40 | 1 | trailing NULs of keys: 0 none, 1 all, 2 some |
//! | 41 | 23 | 0 |
//! | 64 | 64 each | buckets, as `snapshot.rs` draws them |
//! | then | | records, as `records.rs` draws them |
//! | then | 4 each | CRC-32 of every 64 KiB of all that precedes |
//! | then | 4 | CRC-32 of that list |
//!
//! A server reads it into memory mapped for that alone (`region.rs`) and verifies it whole before it answers. The file
//! itself is never mapped: touching a page of a mapped file that somebody cuts off, be it root with cp(1), kills the
//! process. Whoever looks up once reads the blocks it needs, and verifies each. So a flipped bit is
//! [`MapError::Damaged`] and never a wrong answer. Blocks: on disk. Limits: those of `records.rs`, and one value a key.

#![deny(clippy::indexing_slicing)]

use crate::load::Stamp;
use crate::random_access::{RandomAccess, short};
use crate::records::{self, Entries};
use crate::region::Region;
use crate::snapshot::{
    BUCKET_LEN, Layout, NulStyle, Snapshot, after, fingerprint, has_spilled, home, matches,
    position,
};
use crate::{MapError, PairVisitor};
use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

const MAGIC: [u8; 8] = *b"DlgFix1\n";
const HEADER_LEN: usize = 64;
const BLOCK_LEN: usize = 1 << 16;
const BUFFER_BYTES: usize = 1 << 18;
/// Longest head of a record, in bytes.
const RECORD_HEAD_LEN: usize = 10;

/// What the header says of a table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FixedHeader {
    pub(crate) seed: u64,
    pub(crate) entries: u64,
    pub(crate) nul: NulStyle,
}

/// A verified file's buckets and records, in memory.
pub(crate) struct FixedTable {
    bytes: Region,
    buckets: Range<usize>,
    body: Range<usize>,
}

impl FixedTable {
    #[inline]
    pub(crate) fn buckets(&self) -> &[[u8; BUCKET_LEN]] {
        self.bytes
            .get(self.buckets.clone())
            .map_or(&[], |bytes| bytes.as_chunks().0)
    }

    #[inline]
    pub(crate) fn body(&self) -> &[u8] {
        self.bytes.get(self.body.clone()).unwrap_or(&[])
    }
}

/// Whether a file begins as constant files do.
pub(crate) fn is_fixed(head: &[u8]) -> bool {
    head.starts_with(&MAGIC)
}

/// Verifies a file's bytes.
pub(crate) fn load_fixed(path: &Path, bytes: Region, stamp: Stamp) -> Result<Snapshot, MapError> {
    let shape = Shape::of(path, &bytes, bytes.len() as u64)?;
    let too_large = || MapError::unsupported(path, "the file is too large for this machine");
    let range = |range: &Range<u64>| {
        let (start, end) = (range.start.try_into().ok()?, range.end.try_into().ok()?);
        Some(Range::<usize> { start, end })
    };
    let buckets = range(&shape.buckets).ok_or_else(too_large)?;
    let body = range(&shape.body).ok_or_else(too_large)?;
    let (content, sums) = bytes.split_at_checked(body.end).ok_or_else(too_large)?;
    verify_list(path, sums)?;
    for (number, (block, sum)) in content
        .chunks(BLOCK_LEN)
        .zip(sums.as_chunks::<4>().0)
        .enumerate()
    {
        verify_block(path, number as u64, block, *sum)?;
    }
    let table = FixedTable {
        bytes,
        buckets,
        body,
    };
    Ok(Snapshot::of_fixed(path, stamp, shape.header, table))
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Where what lies in a file, by its header and its length.
struct Shape {
    header: FixedHeader,
    buckets: Range<u64>,
    body: Range<u64>,
}

impl Shape {
    /// `head` is the file's first bytes, 64 at least.
    fn of(path: &Path, head: &[u8], len: u64) -> Result<Self, MapError> {
        let cut =
            || MapError::damaged(path, "the constant file is cut off, or its header is wrong");
        let field = |at| word(head, at).ok_or_else(cut);
        let (start, bucket) = (HEADER_LEN as u64, BUCKET_LEN as u64);
        let buckets_end = field(24)?
            .checked_mul(bucket)
            .and_then(|bytes| bytes.checked_add(start))
            .ok_or_else(cut)?;
        let body_end = buckets_end.checked_add(field(32)?).ok_or_else(cut)?;
        let list_len = body_end.div_ceil(BLOCK_LEN as u64).checked_mul(4);
        let whole = list_len.and_then(|list| body_end.checked_add(list)?.checked_add(4));
        if !is_fixed(head) || buckets_end == start || whole != Some(len) {
            return Err(cut());
        }
        let nul = match head.get(40) {
            Some(0) => NulStyle::Without,
            Some(1) => NulStyle::With,
            Some(2) => NulStyle::Mixed,
            _ => {
                return Err(MapError::unsupported(
                    path,
                    "a constant file of a later version",
                ));
            }
        };
        let header = FixedHeader {
            seed: field(8)?,
            entries: field(16)?,
            nul,
        };
        Ok(Self {
            header,
            buckets: start..buckets_end,
            body: buckets_end..body_end,
        })
    }
}

/// Checks the list of checksums by its own, which ends it.
fn verify_list(path: &Path, list: &[u8]) -> Result<(), MapError> {
    match list.split_last_chunk::<4>() {
        Some((sums, sum)) if crc32fast::hash(sums) == u32::from_le_bytes(*sum) => Ok(()),
        _ => Err(MapError::damaged(path, "wrong checksum of the checksums")),
    }
}

fn verify_block(path: &Path, number: u64, block: &[u8], sum: [u8; 4]) -> Result<(), MapError> {
    if crc32fast::hash(block) == u32::from_le_bytes(sum) {
        return Ok(());
    }
    let at = number * BLOCK_LEN as u64;
    let detail = format!("wrong checksum of the 64 KiB at byte {at}");
    Err(MapError::damaged(path, detail))
}

/// A file looked up in without being read whole: each block that is needed is verified when it is read.
pub(crate) struct FixedFile<S> {
    source: S,
    path: PathBuf,
    shape: Shape,
    /// The checksum of each block.
    sums: Vec<u8>,
}

impl<S: RandomAccess> FixedFile<S> {
    pub(crate) fn open(source: S, path: &Path) -> Result<Self, MapError> {
        let unread = |error: io::Error| short(path, &error, || "the file is cut off".into());
        let len = source.len().map_err(unread)?;
        let shape = Shape::of(path, &source.bytes(0, HEADER_LEN).map_err(unread)?, len)?;
        // Its length is what the file's length leaves, so that it is bounded by the file.
        let list_len = usize::try_from(len - shape.body.end).unwrap_or(usize::MAX);
        let sums = source
            .bytes(shape.body.end, list_len)
            .map_err(unread)?
            .into_owned();
        verify_list(path, &sums)?;
        Ok(Self {
            source,
            path: path.to_path_buf(),
            shape,
            sums,
        })
    }

    pub(crate) fn lookup(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        let damaged = || MapError::damaged(&self.path, "an entry lies outside the records");
        let buckets = (self.shape.buckets.end - self.shape.buckets.start) / BUCKET_LEN as u64;
        let buckets = usize::try_from(buckets).map_err(|_| damaged())?;
        let hash = records::hash64(self.shape.header.seed, key);
        let mut index = home(hash, buckets);
        let mut blocks = Blocks::new(self);
        for _ in 0..buckets {
            let at = self.shape.buckets.start + (index * BUCKET_LEN) as u64;
            let bytes = blocks.bytes(at, BUCKET_LEN)?;
            let line: &[u8; BUCKET_LEN] = bytes.as_slice().try_into().map_err(|_| damaged())?;
            for slot in matches(line, fingerprint(hash)) {
                let place = position(line, slot).ok_or_else(damaged)?;
                let at = self.shape.body.start + u64::from(place) * 4;
                let (found, value) = blocks.record(at)?.ok_or_else(damaged)?;
                if found == key {
                    return Ok(Some(value));
                }
            }
            if !has_spilled(line) {
                return Ok(None);
            }
            index = after(index, buckets);
        }
        Ok(None)
    }

    pub(crate) fn each(&self, f: &mut PairVisitor<'_>) -> Result<(), MapError> {
        let mut blocks = Blocks::new(self);
        let mut at = self.shape.body.start;
        while let Some((key, value)) = blocks.record(at)? {
            if f(&key, &value).is_break() {
                break;
            }
            at += records::encoded_len(key.len(), value.len()) as u64;
        }
        Ok(())
    }
}

/// A key and its value.
type Pair = (Vec<u8>, Vec<u8>);

/// Verified bytes of a file, and the block they were last taken from.
struct Blocks<'f, S> {
    file: &'f FixedFile<S>,
    last: Option<(u64, Cow<'f, [u8]>)>,
}

impl<'f, S: RandomAccess> Blocks<'f, S> {
    fn new(file: &'f FixedFile<S>) -> Self {
        Self { file, last: None }
    }

    /// The block of this number, read and verified unless it was the last one.
    fn block(&mut self, number: u64) -> Result<&[u8], MapError> {
        let path = &self.file.path;
        let is_last = self.last.as_ref().is_some_and(|(last, _)| *last == number);
        if !is_last {
            let cut = || MapError::damaged(path, "an entry lies outside the records");
            let end = self.file.shape.body.end;
            let start = number.checked_mul(BLOCK_LEN as u64).ok_or_else(cut)?;
            let len = end
                .checked_sub(start)
                .filter(|&len| len > 0)
                .ok_or_else(cut)?;
            let len = usize::try_from(len).map_or(BLOCK_LEN, |len| len.min(BLOCK_LEN));
            let bytes = self.file.source.bytes(start, len);
            let bytes =
                bytes.map_err(|error| short(path, &error, || "the file is cut off".into()))?;
            let sums = self.file.sums.as_chunks::<4>().0;
            let sum = usize::try_from(number).ok().and_then(|at| sums.get(at));
            verify_block(path, number, &bytes, *sum.ok_or_else(cut)?)?;
            self.last = Some((number, bytes));
        }
        Ok(self.last.as_ref().map_or(&[], |(_, bytes)| bytes))
    }

    /// `len` bytes from `at`, which the caller has found to be there.
    fn bytes(&mut self, at: u64, len: usize) -> Result<Vec<u8>, MapError> {
        let mut bytes = Vec::with_capacity(len);
        let mut at = at;
        while bytes.len() < len {
            let block_len = BLOCK_LEN as u64;
            let skip = usize::try_from(at % block_len).unwrap_or(0);
            let block = self.block(at / block_len)?;
            let rest = block.get(skip..).unwrap_or(&[]);
            let part = rest.get(..len - bytes.len()).unwrap_or(rest);
            if part.is_empty() {
                let detail = "an entry lies outside the records";
                return Err(MapError::damaged(&self.file.path, detail));
            }
            bytes.extend_from_slice(part);
            at += part.len() as u64;
        }
        Ok(bytes)
    }

    /// The record at `at`; `None`: there is none.
    fn record(&mut self, at: u64) -> Result<Option<Pair>, MapError> {
        let Some(left) = self.file.shape.body.end.checked_sub(at) else {
            return Ok(None);
        };
        let left = usize::try_from(left).unwrap_or(usize::MAX);
        let head = self.bytes(at, left.min(RECORD_HEAD_LEN))?;
        // A length is believed only within the file, whose length bounds what is allocated.
        let Some(lengths) = records::lengths(&head).filter(|lengths| lengths.whole() <= left)
        else {
            return Ok(None);
        };
        let mut key = self.bytes(at + lengths.head as u64, lengths.key + lengths.value)?;
        let value = key.split_off(lengths.key);
        Ok(Some((key, value)))
    }
}

/// Writes on and sums every block that passes.
struct Summing<W> {
    out: W,
    block: crc32fast::Hasher,
    filled: usize,
    sums: Vec<u8>,
}

impl<W: Write> Summing<W> {
    fn put(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)?;
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(BLOCK_LEN - self.filled));
            self.block.update(now);
            self.filled += now.len();
            bytes = rest;
            if self.filled == BLOCK_LEN {
                self.end_block();
            }
        }
        Ok(())
    }

    fn end_block(&mut self) {
        let block = std::mem::take(&mut self.block);
        self.sums.extend_from_slice(&block.finalize().to_le_bytes());
        self.filled = 0;
    }

    fn finish(mut self) -> io::Result<()> {
        if self.filled > 0 {
            self.end_block();
        }
        self.out.write_all(&self.sums)?;
        self.out
            .write_all(&crc32fast::hash(&self.sums).to_le_bytes())?;
        self.out.flush()
    }
}

/// Writes the whole file; answers the number of keys. `entries` holds every key once.
pub(crate) fn write_fixed(file: &File, entries: &Entries<'_>) -> io::Result<u64> {
    let mut layout = Layout::new(entries.places.len());
    let mut with_nul = 0_u64;
    let mut body_len = 0_u64;
    for &place in entries.places {
        let (key, value) = entries.get(place);
        with_nul += u64::from(key.last() == Some(&0));
        let position = u32::try_from(body_len / 4).map_err(|_| io::ErrorKind::FileTooLarge)?;
        layout.place(key, position);
        body_len += records::encoded_len(key.len(), value.len()) as u64;
    }
    let keys = entries.places.len() as u64;
    let nul = match with_nul {
        0 => 0_u64,
        n if n == keys => 1,
        _ => 2,
    };
    let mut out = Summing {
        out: BufWriter::with_capacity(BUFFER_BYTES, file),
        block: crc32fast::Hasher::new(),
        filled: 0,
        sums: Vec::new(),
    };
    out.put(&MAGIC)?;
    let fields = [
        layout.seed(),
        keys,
        layout.lines().len() as u64,
        body_len,
        nul,
        0,
        0,
    ];
    for field in fields {
        out.put(&field.to_le_bytes())?;
    }
    for line in layout.lines() {
        out.put(line)?;
    }
    for &place in entries.places {
        let record = records::whole(entries.body, place);
        out.put(record.ok_or(io::ErrorKind::InvalidData)?)?;
    }
    out.finish()?;
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        DuplicatePolicy, LoadOptions, Map, MapBuilder, MapKind, PublishOptions, load, open_direct,
    };
    use std::collections::BTreeMap;
    use std::ops::ControlFlow;
    use std::time::Duration;

    type Model = BTreeMap<Vec<u8>, Vec<u8>>;

    /// Short and long entries, some of which lie in several blocks.
    fn built(dir: &Path, entries: usize) -> (PathBuf, Model) {
        let mut model = Model::new();
        for i in 0..entries {
            let len = match i % 100 {
                7 => 3 * BLOCK_LEN,
                8 => 300,
                _ => i % 40,
            };
            model.insert(format!("key{i}").into_bytes(), vec![b'v'; len]);
        }
        let mut builder =
            MapBuilder::new(MapKind::Fixed, DuplicatePolicy::ReplaceWithLast).unwrap();
        for key in model.keys() {
            builder.insert(key, b"replaced below").unwrap();
        }
        for (key, value) in &model {
            builder.insert(key, value).unwrap();
        }
        let path = dir.join("m.fix");
        builder.publish(&path, &PublishOptions::default()).unwrap();
        (path, model)
    }

    #[test]
    fn a_file_answers_in_memory_and_by_its_blocks() {
        let dir = tempfile::tempdir().unwrap();
        for entries in [0, 1, 1200] {
            let (path, model) = built(dir.path(), entries);
            let snapshot = load(MapKind::Fixed, &path, &LoadOptions::default()).unwrap();
            assert_eq!(snapshot.len(), model.len() as u64);
            let direct = open_direct(&path, Duration::ZERO).unwrap();
            for (key, value) in &model {
                assert_eq!(snapshot.get(key), Some(&value[..]));
                assert_eq!(direct.lookup(key).unwrap().as_deref(), Some(&value[..]));
            }
            assert_eq!(snapshot.get(b"none"), None);
            assert_eq!(direct.lookup(b"none").unwrap(), None);
            let mut listed = Model::new();
            let mut take = |key: &[u8], value: &[u8]| {
                listed.insert(key.to_vec(), value.to_vec());
                ControlFlow::Continue(())
            };
            direct.each(&mut take).unwrap();
            assert_eq!(listed, model);
        }
    }

    #[test]
    fn a_flipped_bit_is_damage_and_never_an_answer() {
        let dir = tempfile::tempdir().unwrap();
        let (path, model) = built(dir.path(), 60);
        let good = std::fs::read(&path).unwrap();
        let wanted = |key: &[u8]| model.get(key).map(Vec::as_slice);
        for at in (0..64)
            .chain((64..good.len()).step_by(97))
            .chain(good.len() - 12..good.len())
        {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            std::fs::write(&path, &bad).unwrap();
            let error = load(MapKind::Fixed, &path, &LoadOptions::default()).unwrap_err();
            let is_told = matches!(
                error,
                MapError::Damaged { .. } | MapError::Unsupported { .. }
            );
            assert!(is_told, "byte {at}: {error}");
            let Ok(direct) = open_direct(&path, Duration::ZERO) else {
                continue;
            };
            for key in model.keys().map(Vec::as_slice).chain([&b"none"[..]]) {
                if let Ok(found) = direct.lookup(key) {
                    assert_eq!(found.as_deref(), wanted(key), "byte {at}");
                }
            }
        }
    }
}
