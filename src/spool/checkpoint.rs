//! A snapshot of the index on disk, so that a start need not replay all of the journal (SPOOL 7).
//!
//! File `checkpoint-LSN` (16 hex digits), little-endian: a header of 4096 bytes, then blocks.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `SPOOLCKP` |
//! | 8 | 2 | format version, 3 |
//! | 16 | 16 | spool id |
//! | 32 | 8 | Lsn covered: all frames up to it are in here |
//! | 40 | 8 | batch covered |
//! | 48 | 8 | next message id |
//! | 56 | 8 | next segment number |
//! | 64 | 8 | messages |
//! | 72 | 8 | segments |
//! | 80 | 8 | marks of drop files |
//! | 88 | 8 | bytes of the body |
//! | 96 | 8 | ranges of batch numbers not seen (version 2: 0) |
//! | 104 | 8 | ends of messages not seen (version 2: 0) |
//! | 4092 | 4 | checksum of bytes 0 to 4091 |
//!
//! The body is messages, segments, marks, ranges and ends one after another; it is stored in blocks of 64 KiB (the last one
//! shorter), each followed by its checksum. A message: id (u64), due in Unix ms (u64), its Envelope or Relocation as a
//! place (segment u32, offset in units of 8 bytes u32, payload length u32), units of 8 bytes of content in that segment
//! (u32), flags (u32: 1 held, 2 warned, 4 relocated, 16 extra), and its recipient: the place of its last Outcome and a
//! word (u32: tries in 24 bits, standing in two, has an outcome, has one in the Relocation). With `extra` the recipient
//! means nothing, and there follow: recipients (u32 and so many as before), expansions (u32 and for each segment u64,
//! offset u64, length u32), the Hold (u8 0 or 1, and its place), other segments with content (u32 and for each segment
//! u64, bytes u64). A segment: number, mark, last Lsn, last batch (u64 each), flags (u8: 1 sealed, 2 quarantined). A mark: mark, id.
//! A range: first and last batch number (u64 each). An end: id. `uncovered.rs` says what they are for; a segment there has mark 0 as long as it is unread.
//!
//! Written as `tmp-checkpoint`, synced, renamed, directory synced; the two newest are kept. What is written is a
//! [`Snapshot`] that shares the index's slabs, so that the writer never waits for a checkpoint.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::format::field::{put, u16_at, u64_at};
use super::format::{BatchNumber, Lsn, SegmentNumber};
use super::index::{Index, Now, Packed, Snapshot};
use super::segment::{Segment, SegmentFate, number_in_name};
use super::storage::{Storage, StorageFile, read_exact_at};
use super::uncovered::Uncovered;
use super::{Inner, SpoolError, lock};
use crate::envelope::MessageId;

const MAGIC: &[u8; 8] = b"SPOOLCKP";
const VERSION: u16 = 3;
/// The oldest version that is read.
const VERSION_LEAST: u16 = 2;
const HEADER_BYTES: usize = 4096;
const BLOCK_BYTES: usize = 64 << 10;
/// Blocks written or read at once.
const BLOCKS_AT_ONCE: usize = 16;
const TEMPORARY: &str = "tmp-checkpoint";
/// Largest body believed: 100 bytes and more for each of 10 million messages.
const BODY_BYTES_MAX: u64 = 16 << 30;

/// What is remembered of checkpoints written.
#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    /// Lsns of those kept, oldest first.
    pub(super) kept: Vec<Lsn>,
    /// Size of the newest.
    pub(super) bytes: u64,
    /// The journal's byte counter when it was taken.
    pub(super) journal_bytes: u64,
    /// When.
    pub(super) at: Duration,
    /// When one was last due by its bytes, on the monotonic clock; the start counts as such.
    pub(super) burst_at: Duration,
}

impl Checkpoints {
    /// What the older of the two kept covers; nothing may be recycled on the word of the newest alone.
    pub(super) fn older_lsn(&self) -> Option<Lsn> {
        match self.kept.as_slice() {
            [.., older, _newest] => Some(*older),
            _ => None,
        }
    }
}

pub(super) fn checkpoint_name(lsn: Lsn) -> String {
    format!("checkpoint-{lsn:016x}")
}

/// What a checkpoint says.
pub(super) struct Loaded {
    pub(super) index: Index,
    pub(super) spool_id: [u8; 16],
    pub(super) lsn: Lsn,
    pub(super) batch: BatchNumber,
    pub(super) next_id: u64,
    pub(super) next_segment: SegmentNumber,
    pub(super) segments: Vec<(SegmentNumber, u64, SegmentFate)>,
    pub(super) uncovered: Uncovered,
    pub(super) bytes: u64,
}

/// Writes a checkpoint of the index as it stands now. Blocks: disk; the index is locked only while the snapshot is
/// taken.
///
/// # Errors
/// [`SpoolError::Full`] (nothing changed), [`SpoolError::Io`] (the caller poisons).
pub(super) fn write(inner: &Arc<Inner>) -> Result<(), SpoolError> {
    let journal_bytes = inner.journal_bytes.load(Ordering::Relaxed);
    let now = inner.now();
    // The segment table is read first: a segment sealed meanwhile is then taken for open, and scanned.
    let fates = inner.segments.fates();
    let snapshot = lock(&inner.index).snapshot();
    let lsn = snapshot.applied_lsn;
    if lock(&inner.checkpoints).kept.last() == Some(&lsn) {
        return Ok(());
    }
    let storage = &*inner.storage;
    let name = checkpoint_name(lsn);
    let written = (|| {
        let file = storage
            .create(TEMPORARY)
            .map_err(|e| SpoolError::io("create", TEMPORARY, e))?;
        let bytes = put_all(inner, &*file, &snapshot, &fates, now)
            .map_err(|e| SpoolError::io("write", TEMPORARY, e))?;
        drop(snapshot);
        // The name must not be durable before the bytes are.
        #[cfg(test)]
        if super::faults::seeded(super::faults::Fault::CheckpointBeforeSync) {
            storage
                .rename(TEMPORARY, &name)
                .map_err(|e| SpoolError::io("rename", TEMPORARY, e))?;
            storage
                .sync_dir()
                .map_err(|e| SpoolError::io("sync", ".", e))?;
            return Ok(bytes);
        }
        file.sync()
            .map_err(|e| SpoolError::io("sync", TEMPORARY, e))?;
        storage
            .rename(TEMPORARY, &name)
            .map_err(|e| SpoolError::io("rename", TEMPORARY, e))?;
        storage
            .sync_dir()
            .map_err(|e| SpoolError::io("sync", ".", e))?;
        Ok(bytes)
    })();
    let bytes = match written {
        Ok(bytes) => bytes,
        Err(error) => {
            let _ = storage.unlink(TEMPORARY);
            return Err(error);
        }
    };
    let superfluous: Vec<Lsn> = {
        let mut state = lock(&inner.checkpoints);
        state.kept.push(lsn);
        state.bytes = bytes;
        state.journal_bytes = journal_bytes;
        state.at = now.monotonic;
        let superfluous = state.kept.len().saturating_sub(2);
        state.kept.drain(..superfluous).collect()
    };
    for lsn in &superfluous {
        let name = checkpoint_name(*lsn);
        storage
            .unlink(&name)
            .map_err(|e| SpoolError::io("unlink", &name, e))?;
    }
    if !superfluous.is_empty() {
        storage
            .sync_dir()
            .map_err(|e| SpoolError::io("sync", ".", e))?;
    }
    Ok(())
}

/// Writes body and header, and says how many bytes they take.
fn put_all(
    inner: &Inner,
    file: &dyn StorageFile,
    snapshot: &Snapshot,
    fates: &[(Arc<Segment>, SegmentFate)],
    now: Now,
) -> std::io::Result<u64> {
    let mut body = Body {
        file,
        bytes: Vec::with_capacity(BLOCKS_AT_ONCE * (BLOCK_BYTES + 4)),
        block_start: 0,
        offset: HEADER_BYTES as u64,
        body_bytes: 0,
    };
    let mut record = Vec::new();
    for (packed, extra) in snapshot.messages() {
        record.clear();
        packed.put(extra, &mut record, |due| Index::due_to_wall(due, now));
        body.put(&record)?;
    }
    let unread = inner.uncovered.segments();
    let segments = fates
        .iter()
        .map(|(segment, fate)| (segment.number, segment.mark, *fate))
        .chain(unread.iter().copied());
    for (number, mark, fate) in segments {
        record.clear();
        for field in [number, mark, fate.last_lsn, fate.last_batch] {
            record.extend_from_slice(&field.to_le_bytes());
        }
        record.push(u8::from(fate.is_sealed) | u8::from(fate.is_quarantined) << 1);
        body.put(&record)?;
    }
    for (mark, id) in &snapshot.marks {
        body.put(&mark.to_le_bytes())?;
        body.put(&id.number().to_le_bytes())?;
    }
    for word in inner.uncovered.words() {
        body.put(&word.to_le_bytes())?;
    }
    let [ranges, ended] = inner.uncovered.counts();
    let body_bytes = body.end()?;
    let mut header = vec![0; HEADER_BYTES];
    put(&mut header, 0, MAGIC);
    put(&mut header, 8, &VERSION.to_le_bytes());
    put(&mut header, 16, &inner.segments.spool_id());
    let numbers = [
        snapshot.applied_lsn,
        snapshot.applied_batch,
        inner.next_id.load(Ordering::Relaxed),
        inner.segments.next_segment(),
        snapshot.messages,
        (fates.len() + unread.len()) as u64,
        snapshot.marks.len() as u64,
        body_bytes,
        ranges,
        ended,
    ];
    for (at, number) in numbers.iter().enumerate() {
        put(&mut header, 32 + 8 * at, &number.to_le_bytes());
    }
    let sum = crc32fast::hash(header.get(..4092).unwrap_or_default());
    put(&mut header, 4092, &sum.to_le_bytes());
    file.write_at(0, &[&header])?;
    Ok(HEADER_BYTES as u64 + body_bytes)
}

/// Writes the body in blocks, several at once.
struct Body<'a> {
    file: &'a dyn StorageFile,
    /// Blocks that are complete, and the one that is not.
    bytes: Vec<u8>,
    block_start: usize,
    offset: u64,
    body_bytes: u64,
}

impl Body<'_> {
    fn put(&mut self, mut bytes: &[u8]) -> std::io::Result<()> {
        self.body_bytes += bytes.len() as u64;
        loop {
            let room = BLOCK_BYTES - (self.bytes.len() - self.block_start);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.bytes.extend_from_slice(now);
            bytes = later;
            if bytes.is_empty() {
                return Ok(());
            }
            self.end_block();
            if self.bytes.len() >= BLOCKS_AT_ONCE * (BLOCK_BYTES + 4) {
                self.write()?;
            }
        }
    }

    fn end_block(&mut self) {
        let sum = crc32fast::hash(self.bytes.get(self.block_start..).unwrap_or_default());
        self.bytes.extend_from_slice(&sum.to_le_bytes());
        self.block_start = self.bytes.len();
    }

    fn write(&mut self) -> std::io::Result<()> {
        self.file.write_at(self.offset, &[&self.bytes])?;
        self.offset += self.bytes.len() as u64;
        self.bytes.clear();
        self.block_start = 0;
        Ok(())
    }

    fn end(mut self) -> std::io::Result<u64> {
        if self.bytes.len() > self.block_start {
            self.end_block();
        }
        if !self.bytes.is_empty() {
            self.write()?;
        }
        Ok(self.body_bytes)
    }
}

/// Reads the body block by block, each verified before anything of it is used.
pub(super) struct Take<'a> {
    file: &'a dyn StorageFile,
    /// Bytes of the body that are not yet read.
    rest: u64,
    offset: u64,
    bytes: Vec<u8>,
    at: usize,
    trouble: Option<String>,
}

impl<'a> Take<'a> {
    fn new(file: &'a dyn StorageFile, header: &[u8]) -> Self {
        Self {
            file,
            rest: body_bytes(header),
            offset: HEADER_BYTES as u64,
            bytes: Vec::new(),
            at: 0,
            trouble: None,
        }
    }

    /// Sees to it that so many bytes are at hand.
    fn fetch(&mut self, count: usize) -> Option<()> {
        while self.bytes.len() - self.at < count {
            if self.rest == 0 || self.trouble.is_some() {
                return None;
            }
            self.bytes.drain(..self.at);
            self.at = 0;
            let most = usize::try_from(self.rest).unwrap_or(usize::MAX);
            let body = most.min(BLOCKS_AT_ONCE * BLOCK_BYTES);
            let mut read = vec![0; body + 4 * body.div_ceil(BLOCK_BYTES)];
            if let Err(error) = read_exact_at(self.file, self.offset, &mut read) {
                self.trouble = Some(error.to_string());
                return None;
            }
            for block in read.chunks(BLOCK_BYTES + 4) {
                let (data, sum) = block.split_last_chunk::<4>().map(|(d, s)| (d, *s))?;
                if crc32fast::hash(data).to_le_bytes() != sum {
                    self.trouble = Some(format!("checksum of the block at byte {}", self.offset));
                    return None;
                }
                self.bytes.extend_from_slice(data);
                self.offset += block.len() as u64;
            }
            self.rest -= body as u64;
        }
        Some(())
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.fetch(N)?;
        let found = self.bytes.get(self.at..)?.first_chunk::<N>().copied();
        self.at += N;
        found
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }
}

/// The checkpoints in a folder, newest first.
pub(super) fn names(all: &[String]) -> Vec<(Lsn, String)> {
    let mut found: Vec<_> = all
        .iter()
        .filter_map(|name| Some((number_in_name(name, "checkpoint-")?, name.clone())))
        .collect();
    found.sort_unstable_by(|a, b| b.cmp(a));
    found
}

/// Reads and verifies a checkpoint. What is wrong with it, in words, if it can't be used.
pub(super) fn load(
    storage: &dyn Storage,
    name: &str,
    due_ahead_max: Duration,
    now: Now,
) -> Result<Loaded, String> {
    let (file, header) = open(storage, name)?;
    let mut take = Take::new(&*file, &header);
    let loaded = take_all(&mut take, &header, due_ahead_max, now);
    loaded.ok_or_else(|| take.trouble.unwrap_or_else(|| "malformed body".into()))
}

/// Whether every checksum of a checkpoint is right, and the Lsn it covers. What is wrong with it, in words, if not.
pub(super) fn verify(storage: &dyn Storage, name: &str) -> Result<Lsn, String> {
    let (file, header) = open(storage, name)?;
    let mut take = Take::new(&*file, &header);
    while take.rest > 0 {
        take.at = take.bytes.len();
        if take.fetch(1).is_none() {
            return Err(take.trouble.unwrap_or_else(|| "malformed body".into()));
        }
    }
    u64_at(&header, 32).ok_or_else(|| "cut off".into())
}

/// Opens a checkpoint and verifies its header and length.
fn open(storage: &dyn Storage, name: &str) -> Result<(Arc<dyn StorageFile>, Vec<u8>), String> {
    let file = storage.open_read(name).map_err(|e| e.to_string())?;
    let mut header = vec![0; HEADER_BYTES];
    read_exact_at(&*file, 0, &mut header).map_err(|e| e.to_string())?;
    let sum = header
        .get(4092..)
        .and_then(|b| b.try_into().ok())
        .map(u32::from_le_bytes);
    if header.get(..8) != Some(MAGIC) || sum != header.get(..4092).map(crc32fast::hash) {
        return Err("header checksum".into());
    }
    if !u16_at(&header, 8).is_some_and(|v| (VERSION_LEAST..=VERSION).contains(&v)) {
        return Err("unknown format version".into());
    }
    let body_bytes = body_bytes(&header);
    let blocks = body_bytes.div_ceil(BLOCK_BYTES as u64);
    if body_bytes > BODY_BYTES_MAX
        || file.len().map_err(|e| e.to_string())? < 4096 + body_bytes + 4 * blocks
    {
        return Err("cut off".into());
    }
    Ok((file, header))
}

fn body_bytes(header: &[u8]) -> u64 {
    u64_at(header, 32 + 8 * 7).unwrap_or(0)
}

fn take_all(
    take: &mut Take<'_>,
    header: &[u8],
    due_ahead_max: Duration,
    now: Now,
) -> Option<Loaded> {
    let number = |at: usize| u64_at(header, 32 + 8 * at);
    let mut index = Index::new(due_ahead_max);
    for _ in 0..number(4)? {
        let (packed, extra) = Packed::take(take, |due| index.due_from_wall(due, now))?;
        index.load(packed, extra).ok()?;
    }
    let mut segments = Vec::new();
    for _ in 0..number(5)? {
        let (segment, mark) = (take.u64()?, take.u64()?);
        let (last_lsn, last_batch) = (take.u64()?, take.u64()?);
        let flags = take.u8()?;
        let fate = SegmentFate {
            is_sealed: flags & 1 != 0,
            is_quarantined: flags & 2 != 0,
            last_lsn,
            last_batch,
            sealed_at: now.monotonic,
        };
        segments.push((segment, mark, fate));
    }
    for _ in 0..number(6)? {
        let (mark, id) = (take.u64()?, take.u64()?);
        index.add_drop_mark(mark, MessageId::from_number(id));
    }
    let uncovered = Uncovered::read(take, [number(8)?, number(9)?])?;
    if take.rest > 0 || take.at < take.bytes.len() {
        return None;
    }
    index.applied_lsn = number(0)?;
    index.applied_batch = number(1)?;
    Some(Loaded {
        index,
        spool_id: header.get(16..32).and_then(|b| b.try_into().ok())?,
        lsn: number(0)?,
        batch: number(1)?,
        next_id: number(2)?,
        next_segment: number(3)?,
        segments,
        uncovered,
        bytes: HEADER_BYTES as u64 + number(7)?,
    })
}
