//! The constant file: a snapshot's table on disk, mapped into memory and served as it lies there.
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
//! A file is verified whole when it is opened, so that a flipped bit is [`MapError::Damaged`] and never a wrong answer.
//!
//! It is mapped only if nobody but us or root can change it: the file and its directory belong to us or root and are not
//! writable by others. Touching a page of a mapped file that somebody cuts off would kill the process; our own
//! builder never changes a file in place. Any other file is read into memory instead. Blocks: on disk.
//! Limits: those of `records.rs`, and one value a key.

#![deny(clippy::indexing_slicing)]

use crate::MapError;
use crate::load::{FILE_BYTES_MAX, Stamp};
use crate::records::Entries;
use crate::snapshot::{BUCKET_LEN, NulStyle, Snapshot, SnapshotBuilder};
use memmap2::Mmap;
use std::fs::{File, Metadata};
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const MAGIC: [u8; 8] = *b"DlgFix1\n";
const HEADER_LEN: usize = 64;
const BLOCK_LEN: usize = 1 << 16;
const BUFFER_BYTES: usize = 1 << 18;
/// Write permission of group and others.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// What the header says of a table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FixedHeader {
    pub(crate) seed: u64,
    pub(crate) entries: u64,
    pub(crate) nul: NulStyle,
}

enum Bytes {
    Mapped(Mmap),
    Read(Vec<u8>),
}

/// A verified file's buckets and records.
pub(crate) struct FixedTable {
    bytes: Bytes,
    buckets: Range<usize>,
    body: Range<usize>,
}

impl FixedTable {
    #[inline]
    fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(map) => map,
            Bytes::Read(bytes) => bytes,
        }
    }

    #[inline]
    pub(crate) fn buckets(&self) -> &[[u8; BUCKET_LEN]] {
        self.bytes()
            .get(self.buckets.clone())
            .map_or(&[], |bytes| bytes.as_chunks().0)
    }

    #[inline]
    pub(crate) fn body(&self) -> &[u8] {
        self.bytes().get(self.body.clone()).unwrap_or(&[])
    }
}

/// Whether a file begins as constant files do.
pub(crate) fn is_fixed(head: &[u8]) -> bool {
    head.starts_with(&MAGIC)
}

/// Verifies a file's bytes.
pub(crate) fn load_fixed(path: &Path, bytes: Vec<u8>, stamp: Stamp) -> Result<Snapshot, MapError> {
    let (header, buckets, body) = verify(path, &bytes)?;
    let table = FixedTable {
        bytes: Bytes::Read(bytes),
        buckets,
        body,
    };
    Ok(Snapshot::of_fixed(path, stamp, header, table))
}

/// Maps and verifies an open file, if nobody else can change it; `None`: it has to be read instead.
pub(crate) fn map_fixed(
    path: &Path,
    file: &File,
    stamp: Stamp,
) -> Result<Option<Snapshot>, MapError> {
    let meta = file
        .metadata()
        .map_err(|error| MapError::open(path, &error))?;
    let directory = path
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let is_ours = std::fs::metadata(directory).is_ok_and(|dir| only_we_write(&dir));
    if !is_ours || !only_we_write(&meta) || stamp.size_bytes > FILE_BYTES_MAX {
        return Ok(None);
    }
    #[expect(unsafe_code, reason = "memmap2 cannot know who else writes the file")]
    // SAFETY: only root and this user can write the file or replace it, which was just checked, and programs of this
    // crate put a new file in place by rename and never change one. The bytes are read with bounds checked.
    let map = unsafe { Mmap::map(file) }.map_err(|error| MapError::open(path, &error))?;
    // A mapping keeps the open file, and with it the shared lock, which would keep builders off as long as we serve it.
    file.unlock()
        .map_err(|error| MapError::open(path, &error))?;
    let (header, buckets, body) = verify(path, &map)?;
    let table = FixedTable {
        bytes: Bytes::Mapped(map),
        buckets,
        body,
    };
    Ok(Some(Snapshot::of_fixed(path, stamp, header, table)))
}

fn only_we_write(meta: &Metadata) -> bool {
    let is_ours = meta.uid() == 0 || meta.uid() == rustix::process::geteuid().as_raw();
    is_ours && meta.mode() & WRITABLE_BY_OTHERS == 0
}

fn word(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn half_word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// Checks lengths and checksums; answers where buckets and records lie.
fn verify(
    path: &Path,
    bytes: &[u8],
) -> Result<(FixedHeader, Range<usize>, Range<usize>), MapError> {
    let cut = || MapError::damaged(path, "the constant file is cut off, or its header is wrong");
    let size = |at| usize::try_from(word(bytes, at).unwrap_or(u64::MAX)).ok();
    let buckets_end =
        size(24).and_then(|count| count.checked_mul(BUCKET_LEN)?.checked_add(HEADER_LEN));
    let body_end = buckets_end
        .zip(size(32))
        .and_then(|(start, len)| start.checked_add(len));
    let (Some(buckets_end), Some(body_end)) = (buckets_end, body_end) else {
        return Err(cut());
    };
    let list_end = bytes.len().checked_sub(4).ok_or_else(cut)?;
    let list = bytes.get(body_end..list_end).ok_or_else(cut)?;
    let content = bytes.get(..body_end).ok_or_else(cut)?;
    if !is_fixed(bytes)
        || buckets_end == HEADER_LEN
        || list.len() != content.len().div_ceil(BLOCK_LEN) * 4
    {
        return Err(cut());
    }
    if half_word(bytes, list_end) != Some(crc32fast::hash(list)) {
        return Err(MapError::damaged(path, "wrong checksum of the checksums"));
    }
    for (number, (block, sum)) in content
        .chunks(BLOCK_LEN)
        .zip(list.as_chunks::<4>().0)
        .enumerate()
    {
        if crc32fast::hash(block) != u32::from_le_bytes(*sum) {
            let detail = format!(
                "wrong checksum of the 64 KiB at byte {}",
                number * BLOCK_LEN
            );
            return Err(MapError::damaged(path, detail));
        }
    }
    let nul = match bytes.get(40) {
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
        seed: word(bytes, 8).unwrap_or(0),
        entries: word(bytes, 16).unwrap_or(0),
        nul,
    };
    Ok((header, HEADER_LEN..buckets_end, buckets_end..body_end))
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

/// Writes the whole file; answers the number of keys.
pub(crate) fn write_fixed(path: &Path, file: &File, entries: &Entries<'_>) -> io::Result<u64> {
    let mut builder = SnapshotBuilder::new(path, entries.places.len(), 0);
    for &place in entries.places {
        let (key, value) = entries.get(place);
        builder.add(key, value).map_err(|error| {
            io::Error::new(io::ErrorKind::FileTooLarge, error.detail().to_owned())
        })?;
    }
    let table = builder.finish(Stamp::default());
    let (lines, body) = table.parts();
    let mut out = Summing {
        out: BufWriter::with_capacity(BUFFER_BYTES, file),
        block: crc32fast::Hasher::new(),
        filled: 0,
        sums: Vec::new(),
    };
    let nul = match table.nul_style() {
        NulStyle::Without => 0_u64,
        NulStyle::With => 1,
        NulStyle::Mixed => 2,
    };
    out.put(&MAGIC)?;
    let fields = [
        table.seed(),
        table.len(),
        table.lines() as u64,
        body.len() as u64,
        nul,
        0,
        0,
    ];
    for field in fields {
        out.put(&field.to_le_bytes())?;
    }
    for line in lines {
        out.put(line)?;
    }
    out.put(body)?;
    out.finish()?;
    Ok(table.len())
}
