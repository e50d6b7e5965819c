//! A snapshot of the index on disk, so that a start need not replay all of the journal (SPOOL 7).
//!
//! File `checkpoint-LSN` (16 hex digits), little-endian: a header of 4096 bytes, then blocks.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `SPOOLCKP` |
//! | 8 | 2 | format version, 1 |
//! | 16 | 16 | spool id |
//! | 32 | 8 | Lsn covered: all frames up to it are in here |
//! | 40 | 8 | batch covered |
//! | 48 | 8 | next message id |
//! | 56 | 8 | next segment number |
//! | 64 | 8 | messages |
//! | 72 | 8 | segments |
//! | 80 | 8 | marks of drop files |
//! | 88 | 8 | bytes of the body |
//! | 4092 | 4 | checksum of bytes 0 to 4091 |
//!
//! The body is messages, segments and marks one after another; it is stored in blocks of 64 KiB (the last one
//! shorter), each followed by its checksum. Written as `tmp-checkpoint`, synced, renamed, directory synced; the two
//! newest are kept.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::format::field::{put, u16_at, u64_at};
use super::format::{BatchNumber, Lsn, SegmentNumber};
use super::index::{Entry, Index, Now, Place, RecipientEntry, Standing};
use super::segment::{SegmentFate, number_in_name};
use super::storage::{Storage, read_exact_at};
use super::{Inner, SpoolError, lock};
use crate::envelope::MessageId;

const MAGIC: &[u8; 8] = b"SPOOLCKP";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 4096;
const BLOCK_BYTES: usize = 64 << 10;
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
    pub(super) bytes: u64,
}

/// Writes a checkpoint of the index as it stands now. Blocks: disk; the index is locked only while it is copied out.
///
/// # Errors
/// [`SpoolError::Full`] (nothing changed), [`SpoolError::Io`] (the caller poisons).
pub(super) fn write(inner: &Arc<Inner>) -> Result<(), SpoolError> {
    let journal_bytes = inner.journal_bytes.load(Ordering::Relaxed);
    let now = inner.now();
    let mut body = Vec::new();
    // The segment table is read first: a segment sealed meanwhile is then taken for open, and scanned.
    let fates = inner.segments.fates();
    let (lsn, batch, messages, marks) = {
        let index = lock(&inner.index);
        for (id, entry) in index.entries() {
            put_entry(&mut body, id, entry, now);
        }
        let marks: Vec<_> = index.drop_marks().collect();
        (index.applied_lsn, index.applied_batch, index.len(), marks)
    };
    if lock(&inner.checkpoints).kept.last() == Some(&lsn) {
        return Ok(());
    }
    for (number, mark, fate) in &fates {
        body.extend_from_slice(&number.to_le_bytes());
        body.extend_from_slice(&mark.to_le_bytes());
        body.extend_from_slice(&fate.last_lsn.to_le_bytes());
        body.extend_from_slice(&fate.last_batch.to_le_bytes());
        body.push(u8::from(fate.is_sealed) | u8::from(fate.is_quarantined) << 1);
    }
    for (mark, id) in &marks {
        body.extend_from_slice(&mark.to_le_bytes());
        body.extend_from_slice(&id.number().to_le_bytes());
    }
    let mut header = vec![0; HEADER_BYTES];
    put(&mut header, 0, MAGIC);
    put(&mut header, 8, &VERSION.to_le_bytes());
    put(&mut header, 16, &inner.segments.spool_id());
    let numbers = [
        lsn,
        batch,
        inner.next_id.load(Ordering::Relaxed),
        inner.segments.next_segment(),
        messages,
        fates.len() as u64,
        marks.len() as u64,
        body.len() as u64,
    ];
    for (at, number) in numbers.iter().enumerate() {
        put(&mut header, 32 + 8 * at, &number.to_le_bytes());
    }
    let sum = crc32fast::hash(header.get(..4092).unwrap_or_default());
    put(&mut header, 4092, &sum.to_le_bytes());

    let sums: Vec<[u8; 4]> = body
        .chunks(BLOCK_BYTES)
        .map(|block| crc32fast::hash(block).to_le_bytes())
        .collect();
    let mut pieces: Vec<&[u8]> = vec![&header];
    for (block, sum) in body.chunks(BLOCK_BYTES).zip(&sums) {
        pieces.push(block);
        pieces.push(sum);
    }
    let storage = &*inner.storage;
    let name = checkpoint_name(lsn);
    let written = (|| {
        let file = storage
            .create(TEMPORARY)
            .map_err(|e| SpoolError::io("create", TEMPORARY, e))?;
        file.write_at(0, &pieces)
            .map_err(|e| SpoolError::io("write", TEMPORARY, e))?;
        // The name must not be durable before the bytes are.
        #[cfg(test)]
        if super::faults::seeded(super::faults::Fault::CheckpointBeforeSync) {
            storage
                .rename(TEMPORARY, &name)
                .map_err(|e| SpoolError::io("rename", TEMPORARY, e))?;
            return storage
                .sync_dir()
                .map_err(|e| SpoolError::io("sync", ".", e));
        }
        file.sync()
            .map_err(|e| SpoolError::io("sync", TEMPORARY, e))?;
        storage
            .rename(TEMPORARY, &name)
            .map_err(|e| SpoolError::io("rename", TEMPORARY, e))?;
        storage
            .sync_dir()
            .map_err(|e| SpoolError::io("sync", ".", e))
    })();
    if written.is_err() {
        let _ = storage.unlink(TEMPORARY);
        return written;
    }
    let superfluous: Vec<Lsn> = {
        let mut state = lock(&inner.checkpoints);
        state.kept.push(lsn);
        state.bytes = HEADER_BYTES as u64 + body.len() as u64;
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

fn put_place(out: &mut Vec<u8>, place: Place) {
    out.extend_from_slice(&place.segment.to_le_bytes());
    out.extend_from_slice(&place.offset.to_le_bytes());
    out.extend_from_slice(&place.length.to_le_bytes());
}

fn put_entry(out: &mut Vec<u8>, id: MessageId, entry: &Entry, now: Now) {
    out.extend_from_slice(&id.number().to_le_bytes());
    put_place(out, entry.envelope);
    out.extend_from_slice(&entry.first_segment.to_le_bytes());
    out.extend_from_slice(&entry.content_bytes.to_le_bytes());
    out.extend_from_slice(&Index::due_to_wall(entry.due, now).to_le_bytes());
    out.push(
        u8::from(entry.is_held)
            | u8::from(entry.has_warned) << 1
            | u8::from(entry.hold.is_some()) << 2,
    );
    if let Some(hold) = entry.hold {
        put_place(out, hold);
    }
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
    out.extend_from_slice(&count(entry.recipients.len()));
    for recipient in &entry.recipients {
        let standing = match recipient.standing {
            Standing::Pending => 0,
            Standing::Expanded => 1,
            Standing::Delivered => 2,
            Standing::Failed => 3,
        };
        out.push(standing | u8::from(recipient.last.is_some()) << 7);
        out.extend_from_slice(&recipient.tries.to_le_bytes());
        if let Some(last) = recipient.last {
            put_place(out, last);
        }
    }
    out.extend_from_slice(&count(entry.expansions.len()));
    for place in &entry.expansions {
        put_place(out, *place);
    }
}

struct Take<'a>(&'a [u8]);

impl Take<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }
    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }
    fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }
    fn place(&mut self) -> Option<Place> {
        Some(Place {
            segment: self.u64()?,
            offset: self.u64()?,
            length: self.u32()?,
        })
    }

    fn entry(&mut self, index: &Index, now: Now) -> Option<(MessageId, Entry)> {
        let id = MessageId::from_number(self.u64()?);
        let envelope = self.place()?;
        let first_segment = self.u64()?;
        let content_bytes = self.u64()?;
        let due = index.due_from_wall(self.u64()?, now);
        let flags = self.u8()?;
        let hold = if flags & 4 == 0 {
            None
        } else {
            Some(self.place()?)
        };
        let mut recipients = Vec::new();
        for _ in 0..self.u32()? {
            let (state, tries) = (self.u8()?, self.u32()?);
            let last = if state & 0x80 == 0 {
                None
            } else {
                Some(self.place()?)
            };
            let standing = match state & 0x7f {
                0 => Standing::Pending,
                1 => Standing::Expanded,
                2 => Standing::Delivered,
                3 => Standing::Failed,
                _ => return None,
            };
            recipients.push(RecipientEntry {
                standing,
                tries,
                last,
            });
        }
        let mut expansions = Vec::new();
        for _ in 0..self.u32()? {
            expansions.push(self.place()?);
        }
        let entry = Entry {
            envelope,
            first_segment,
            content_bytes,
            due,
            is_held: flags & 1 != 0,
            has_warned: flags & 2 != 0,
            recipients,
            expansions,
            hold,
        };
        Some((id, entry))
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
    if u16_at(&header, 8) != Some(VERSION) {
        return Err("unknown format version".into());
    }
    let number = |at: usize| u64_at(&header, 32 + 8 * at).unwrap_or(0);
    let body_bytes = number(7);
    let blocks = body_bytes.div_ceil(BLOCK_BYTES as u64);
    if body_bytes > BODY_BYTES_MAX
        || file.len().map_err(|e| e.to_string())? < 4096 + body_bytes + 4 * blocks
    {
        return Err("cut off".into());
    }
    let mut body = Vec::new();
    let mut offset = HEADER_BYTES as u64;
    while (body.len() as u64) < body_bytes {
        let len = usize::try_from(body_bytes - body.len() as u64)
            .unwrap_or(usize::MAX)
            .min(BLOCK_BYTES);
        let mut block = vec![0; len + 4];
        read_exact_at(&*file, offset, &mut block).map_err(|e| e.to_string())?;
        let (data, sum) = block.split_at(len);
        if crc32fast::hash(data).to_le_bytes() != sum {
            return Err(format!("checksum of the block at byte {offset}"));
        }
        body.extend_from_slice(data);
        offset += block.len() as u64;
    }
    let mut index = Index::new(due_ahead_max);
    let mut take = Take(&body);
    let bad = "malformed body";
    for _ in 0..number(4) {
        let (id, entry) = take.entry(&index, now).ok_or(bad)?;
        index.insert(id, entry);
    }
    let mut segments = Vec::new();
    for _ in 0..number(5) {
        let (segment, mark) = (take.u64().ok_or(bad)?, take.u64().ok_or(bad)?);
        let (last_lsn, last_batch) = (take.u64().ok_or(bad)?, take.u64().ok_or(bad)?);
        let flags = take.u8().ok_or(bad)?;
        let fate = SegmentFate {
            is_sealed: flags & 1 != 0,
            is_quarantined: flags & 2 != 0,
            last_lsn,
            last_batch,
        };
        segments.push((segment, mark, fate));
    }
    for _ in 0..number(6) {
        let (mark, id) = (take.u64().ok_or(bad)?, take.u64().ok_or(bad)?);
        index.add_drop_mark(mark, MessageId::from_number(id));
    }
    if !take.0.is_empty() {
        return Err(bad.into());
    }
    index.applied_lsn = number(0);
    index.applied_batch = number(1);
    Ok(Loaded {
        index,
        spool_id: header
            .get(16..32)
            .and_then(|b| b.try_into().ok())
            .ok_or(bad)?,
        lsn: number(0),
        batch: number(1),
        next_id: number(2),
        next_segment: number(3),
        segments,
        bytes: HEADER_BYTES as u64 + body_bytes,
    })
}
