//! The writer: gathers all that waits, writes it once, syncs it once, publishes it, releases the tickets (SPOOL 4).
//!
//! One batch is in flight at a time over the whole journal: a batch is written only after the sync of the one before
//! has returned, so the order of batch numbers is the order of durability. Nothing is published to the index and no
//! ticket is released before the sync has returned (I1, S1). A failed write or sync poisons the journal (I3, S4).
//!
//! [`Writer::run`] blocks and is given a thread of its own; tests call [`Writer::step`] instead: same code, no thread.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

#[cfg(test)]
use super::faults::{self, Fault};
use super::format::{
    BATCH_HEADER_BYTES, BLOCK_BYTES, BatchHeader, BatchNumber, FIRST_BATCH_OFFSET,
    FRAME_HEADER_BYTES, FrameHeader, Kind, Lsn, SegmentNumber, round_to_block,
};
use super::index::{self, Place};
use super::keeper::Keeper;
use super::record::{self, Extent};
use super::segment::{GENERATIONS, Generation, Segment};
use super::transaction::{Commit, FrameIn, Sleep, Submission};
use super::{Inner, SpoolError, lock};
use crate::envelope::MessageId;

/// Payloads up to this size are copied next to their headers; larger ones are written from where they are.
const COPY_BYTES_MAX: usize = 16 << 10;

/// How long the writer waits before it tries again after it found no room for a segment.
const BLOCKED_RETRY: Duration = Duration::from_secs(1);

/// The share of a sync's time that the writer may wait for a fuller batch: one in so many.
const GATHER_SHARE: u32 = 4;
/// And the most it may wait.
const GATHER_MAX: Duration = Duration::from_millis(10);

/// Most bytes of relocations in one batch: whoever commits meanwhile waits for one such batch at most.
const RELOCATION_BATCH_BYTES: u64 = 1 << 20;

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Nothing was waiting.
    Idle,
    /// One batch was written and synced, or refused.
    Worked,
    /// The spool is closed or poisoned; nothing will be written any more.
    Ended,
}

/// Writes the journal. Owned by one thread.
pub struct Writer {
    pub(super) inner: Arc<Inner>,
    /// The segment being written, of each generation that has one.
    tails: [Option<Tail>; GENERATIONS],
    /// The last batch held relocations: the next is somebody else's, if anybody waits.
    pub(super) has_moved: bool,
    next_batch: BatchNumber,
    next_lsn: Lsn,
    durable: BatchNumber,
    /// Whether the batch that a start writes is behind it.
    pub(super) is_started: bool,
    /// Whether the last batch is not yet proven durable by a later one.
    is_unproven: bool,
    last_write: Duration,
    /// Tickets of the last batch, and until when it is waited for as many again.
    last_tickets: usize,
    gather_until: Duration,
    arena: Vec<u8>,
}

/// An open segment, and where its next batch goes.
#[derive(Clone)]
struct Tail {
    segment: Arc<Segment>,
    offset: u64,
    /// Checksum field of its last batch.
    chain: u32,
}

/// Where the bytes of a batch come from.
enum Piece {
    Arena(std::ops::Range<usize>),
    Payload { submission: usize, frame: usize },
}

impl Tail {
    /// Whether a batch of so many bytes fits, and a Seal after it.
    fn fits(&self, needed: u64) -> bool {
        self.offset + needed + BLOCK_BYTES <= self.segment.capacity
    }
}

/// Bytes of a batch with these, padding included.
fn bytes_of(submissions: &[Submission]) -> u64 {
    let needed: u64 = submissions.iter().map(Submission::bytes).sum();
    round_to_block(BATCH_HEADER_BYTES as u64 + needed)
}

/// A frame as laid out in a batch.
struct Laid {
    header: FrameHeader,
    place: Place,
    submission: usize,
    frame: usize,
}

impl Writer {
    pub(super) fn new(
        inner: Arc<Inner>,
        next_batch: BatchNumber,
        next_lsn: Lsn,
        durable: BatchNumber,
    ) -> Self {
        Self {
            inner,
            tails: [const { None }; GENERATIONS],
            has_moved: false,
            next_batch,
            next_lsn,
            durable,
            is_started: false,
            is_unproven: false,
            last_write: Duration::ZERO,
            last_tickets: 0,
            gather_until: Duration::ZERO,
            arena: Vec::new(),
        }
    }

    /// Runs until [`super::Spool::close`] or poison. Blocks: disk, and for work.
    ///
    /// A second thread, ended before this returns, prepares segments, writes checkpoints and recycles.
    pub fn run(mut self) {
        let inner = Arc::clone(&self.inner);
        std::thread::scope(|scope| {
            let keeper = std::thread::Builder::new()
                .name("spool-keeper".into())
                .spawn_scoped(scope, move || Keeper::new(inner).run());
            if let Err(error) = keeper {
                self.inner
                    .poison(&format!("no thread for the keeper: {error}"));
            }
            self.work();
            self.inner.end_keeper();
        });
        self.inner.end_writer();
    }

    /// Writes what comes until the spool is closed or poisoned. Blocks: disk, and for work.
    pub(super) fn work(&mut self) {
        while self.wait_for_work() {
            if self.step() == Step::Ended {
                break;
            }
        }
    }

    /// Waits until something must be written. `false` when there is nothing more to come.
    ///
    /// Those released by a batch mostly come back, one after another, and a batch that starts with the first of them
    /// leaves the others to the next. So, for a quarter of the time that the last sync took, it is waited for as many
    /// as the last batch had. With one client this never waits, and on a fast disk it is microseconds.
    fn wait_for_work(&self) -> bool {
        let inner = &self.inner;
        let mut waiting = lock(&inner.waiting);
        let mut lazy_since: Option<Duration> = None;
        loop {
            waiting.sleep = Sleep::Awake;
            if waiting.is_closed {
                return false;
            }
            let is_blocked = inner.is_blocked.swap(false, Ordering::Relaxed);
            let now = inner.clock.monotonic();
            let (deadline, sleep) = if is_blocked {
                // What waits could not be written for want of room; the keeper calls when there is some.
                (Some(now + BLOCKED_RETRY), Sleep::ForAnything)
            } else if waiting.is_closing
                || waiting.urgent >= self.last_tickets.max(1)
                || waiting.urgent == 0 && !waiting.relocations.is_empty()
            {
                return true;
            } else if waiting.urgent > 0 {
                (Some(self.gather_until), Sleep::ForUrgent(self.last_tickets))
            } else if !waiting.fifo.is_empty() {
                let since = *lazy_since.get_or_insert(now);
                (
                    Some(since + inner.options.outcome_delay),
                    Sleep::ForUrgent(1),
                )
            } else if self.is_unproven {
                (
                    Some(self.last_write + inner.options.pulse_delay),
                    Sleep::ForAnything,
                )
            } else {
                (None, Sleep::ForAnything)
            };
            let Some(deadline) = deadline else {
                waiting.sleep = sleep;
                waiting = inner
                    .work
                    .wait(waiting)
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                continue;
            };
            if deadline <= now {
                return true;
            }
            waiting.sleep = sleep;
            let slept = inner.work.wait_timeout(waiting, deadline - now);
            waiting = slept.unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
    }

    /// Writes, syncs and publishes one batch of all that waits, or a Pulse if nothing does and the last batch is not
    /// yet proven. Blocks: disk.
    pub fn step(&mut self) -> Step {
        let (submissions, is_closing, is_closed) = {
            let mut waiting = lock(&self.inner.waiting);
            let is_moving =
                !waiting.relocations.is_empty() && (waiting.fifo.is_empty() || !self.has_moved);
            self.has_moved = is_moving;
            let taken = if is_moving {
                waiting.take_relocations(RELOCATION_BATCH_BYTES.min(self.inner.batch_bytes()))
            } else {
                waiting.take(self.inner.batch_bytes())
            };
            if waiting.bytes < self.inner.options.queue_bytes_max {
                for waker in waiting.room_wakers.drain(..) {
                    waker.wake();
                }
            }
            (taken, waiting.is_closing, waiting.is_closed)
        };
        if is_closed || self.inner.is_poisoned() {
            let error = self.inner.closed_error();
            for submission in submissions {
                self.inner.refuse(submission, &error);
            }
            return Step::Ended;
        }
        if submissions.is_empty() {
            return if is_closing {
                self.write_mark(Kind::Seal);
                // Nothing is written to any of them again, and the last checkpoint covers them.
                for tail in self.tails.iter().flatten() {
                    self.note_sealed(tail.segment.number);
                }
                self.inner.finish_closing();
                Step::Ended
            } else if self.is_unproven {
                self.write_mark(Kind::Pulse);
                Step::Worked
            } else {
                Step::Idle
            };
        }
        self.write(submissions);
        Step::Worked
    }

    /// Writes a Pulse or a Seal as a batch of its own.
    fn write_mark(&mut self, kind: Kind) {
        let frame = FrameIn::new(kind, MessageId::from_number(0), Vec::new());
        let commit = Commit::internal(vec![frame]);
        self.write(vec![Submission::Commit(commit)]);
        self.is_unproven = false;
    }

    /// Writes one batch, syncs it, publishes it and releases its tickets.
    pub(super) fn write(&mut self, submissions: Vec<Submission>) {
        let (lost, submissions): (Vec<_>, Vec<_>) = submissions
            .into_iter()
            .partition(Submission::has_lost_chunks);
        for submission in lost {
            self.inner.refuse(
                submission,
                &SpoolError::Full("a part of the message could not be written".into()),
            );
        }
        if submissions.is_empty() {
            return;
        }
        let submissions = self.refuse_stale(submissions);
        let generation = submissions.first().map_or(0, Submission::generation);
        let submissions = self.keep_reserve(generation, submissions);
        if submissions.is_empty() {
            return;
        }
        if let Err(error) = self.make_room(generation, bytes_of(&submissions)) {
            match &error {
                SpoolError::Full(_) => self.inner.block(submissions, &error),
                SpoolError::TooLarge { .. } => {
                    for submission in submissions {
                        self.inner.refuse(submission, &error);
                    }
                }
                _ => {
                    self.inner.poison(&error.to_string());
                    let error = self.inner.closed_error();
                    for submission in submissions {
                        self.inner.refuse(submission, &error);
                    }
                }
            }
            return;
        }
        let Some(tail) = self.tails.get(generation).cloned().flatten() else {
            return;
        };
        let segment = &tail.segment;
        let mut submissions = submissions;
        let (pieces, laid, batch) = self.lay_out(&tail, &mut submissions);
        if laid.is_empty() {
            // Chunks of messages given up meanwhile, and nothing else.
            return;
        }
        #[cfg(test)]
        faults::seeded(Fault::TicketBeforeSync).then(|| faults::release_early(&submissions));
        let before = self.inner.clock.monotonic();
        let written = self.put(&tail, &pieces, &submissions, batch.length);
        let result = written.and_then(|()| {
            self.inner.count_sync();
            #[cfg(test)]
            if faults::seeded(Fault::NoSync)
                || faults::seeded(Fault::RelocationUnsynced) && segment.generation > 0
                || faults::seeded(Fault::SecondSync) && segment.file.sync().is_err()
            {
                return Ok(());
            };
            segment
                .file
                .sync()
                .map_err(|e| SpoolError::io("sync", "segment", e))
        });
        if let Err(error) = result {
            // I3: whatever the error was, what the disk holds is now unknown; this process acknowledges nothing more.
            self.inner.poison(&error.to_string());
            let error = self.inner.closed_error();
            for submission in submissions {
                self.inner.refuse(submission, &error);
            }
            return;
        }
        let offset = tail.offset + round_to_block(u64::from(batch.length));
        #[cfg(test)]
        let offset = faults::end_of_batch(offset, tail.offset + u64::from(batch.length));
        self.set_tail(
            generation,
            Tail {
                segment: Arc::clone(segment),
                offset,
                chain: batch.checksum,
            },
        );
        self.durable = batch.number;
        self.next_batch = batch.number + 1;
        self.next_lsn = batch.lsn + u64::from(batch.frames);
        self.is_unproven = true;
        self.last_write = self.inner.clock.monotonic();
        let took = self.last_write.saturating_sub(before);
        self.gather_until = self.last_write + (took / GATHER_SHARE).min(GATHER_MAX);
        self.last_tickets = submissions.iter().filter(|s| s.is_urgent()).count();
        self.publish(segment, &batch, laid, submissions);
    }

    /// Drops relocations of messages that have changed or ended since their records were read: written, they would
    /// undo that. Nothing else in their batch touches a message, so what holds here holds when they are applied.
    fn refuse_stale(&self, submissions: Vec<Submission>) -> Vec<Submission> {
        let is_stale = |submission: &Submission| match submission {
            Submission::Commit(commit) => commit.moved_from.as_deref().is_some_and(|from| {
                let now = lock(&self.inner.index).get(commit.ticket.id());
                // The due time is memory's own, and a queue run moves it.
                now.is_none_or(|now| {
                    index::Entry {
                        due: from.due,
                        ..now
                    } != *from
                })
            }),
            Submission::Chunk { .. } => false,
        };
        let (stale, submissions) = submissions.into_iter().partition::<Vec<_>, _>(is_stale);
        for submission in stale {
            self.inner.refuse(submission, &SpoolError::Closed);
        }
        submissions
    }

    /// On a full disk the next segment is kept for what lets it drain: new mail gets only what is left of this one.
    fn keep_reserve(
        &self,
        generation: Generation,
        submissions: Vec<Submission>,
    ) -> Vec<Submission> {
        let needed = bytes_of(&submissions);
        let fits = self.tails.get(generation).and_then(Option::as_ref);
        if !self.inner.is_full.load(Ordering::Relaxed)
            || generation > 0
            || fits.is_some_and(|tail| tail.fits(needed))
        {
            return submissions;
        }
        let why = lock(&self.inner.full).clone().unwrap_or_default();
        let (refused, kept) = submissions
            .into_iter()
            .partition::<Vec<_>, _>(Submission::is_new_mail);
        for submission in refused {
            self.inner
                .refuse(submission, &SpoolError::Full(why.clone()));
        }
        kept
    }

    fn set_tail(&mut self, generation: Generation, tail: Tail) {
        if let Some(place) = self.tails.get_mut(generation) {
            *place = Some(tail);
        }
    }

    fn note_sealed(&self, number: SegmentNumber) {
        let now = self.inner.clock.monotonic();
        self.inner.segments.update_fate(number, |fate| {
            fate.is_sealed = true;
            fate.sealed_at = now;
        });
    }

    /// Sees to it that a batch of this many bytes and a Seal after it fit into the generation's open segment.
    fn make_room(&mut self, generation: Generation, needed: u64) -> Result<(), SpoolError> {
        let tail = self.tails.get(generation).cloned().flatten();
        if tail.as_ref().is_some_and(|tail| tail.fits(needed)) {
            return Ok(());
        }
        let limit = self
            .inner
            .options
            .segment_bytes
            .saturating_sub(FIRST_BATCH_OFFSET);
        // What a start writes again, with its Voids, must fit wherever the batch itself did.
        let reserve = if self.is_started { BLOCK_BYTES } else { 0 };
        if needed + BLOCK_BYTES + reserve > limit {
            return Err(SpoolError::TooLarge {
                what: "transaction",
                bytes: needed,
                limit,
            });
        }
        let batch = self.next_batch + u64::from(tail.is_some());
        let wall_ms = self.inner.clock.unix_ms();
        let next = self
            .inner
            .segments
            .take_next(generation, self.next_lsn, batch, wall_ms)?;
        if let Some(old) = tail {
            self.seal(&old)?;
        }
        self.set_tail(
            generation,
            Tail {
                segment: next,
                offset: FIRST_BATCH_OFFSET,
                chain: 0,
            },
        );
        self.inner.wake_keeper();
        Ok(())
    }

    /// Ends a segment with a Seal, synced like any batch.
    fn seal(&mut self, tail: &Tail) -> Result<(), SpoolError> {
        let frame = FrameIn::new(Kind::Seal, MessageId::from_number(0), Vec::new());
        let mut submissions = vec![Submission::Commit(Commit::internal(vec![frame]))];
        let (pieces, laid, batch) = self.lay_out(tail, &mut submissions);
        self.put(tail, &pieces, &submissions, batch.length)?;
        let segment = &tail.segment;
        #[cfg(test)]
        let segment = &faults::without_sync(segment);
        self.inner.count_sync();
        segment.file.sync().map_err(|e| SpoolError::Io {
            operation: "sync",
            name: super::segment::segment_name(tail.segment.number),
            source: Arc::new(e),
        })?;
        self.durable = batch.number;
        self.next_batch = batch.number + 1;
        self.next_lsn = batch.lsn + u64::from(batch.frames);
        self.publish(&tail.segment, &batch, laid, submissions);
        self.note_sealed(tail.segment.number);
        Ok(())
    }

    /// Places all frames of a batch, completes envelopes with their extents, and makes the header.
    fn lay_out(
        &mut self,
        tail: &Tail,
        submissions: &mut [Submission],
    ) -> (Vec<Piece>, Vec<Laid>, BatchHeader) {
        let segment = &tail.segment;
        self.arena.clear();
        self.arena.resize(BATCH_HEADER_BYTES, 0);
        let mut pieces = Vec::new();
        let mut laid = Vec::new();
        let mut headers = Vec::new();
        let mut arena_start = 0;
        let mut length = BATCH_HEADER_BYTES;
        let mut lsn = self.next_lsn;
        for (at, submission) in submissions.iter_mut().enumerate() {
            let transaction = lsn;
            // Chunks of this submission, by message: their envelopes follow them.
            let mut chunks: HashMap<MessageId, Vec<Extent>> = HashMap::new();
            let (reception, frames, is_chunk) = match submission {
                Submission::Chunk { reception, frame } => (
                    Some(Arc::clone(reception)),
                    std::slice::from_mut(frame),
                    true,
                ),
                Submission::Commit(commit) => (
                    commit.reception.clone(),
                    commit.frames.as_mut_slice(),
                    false,
                ),
            };
            if is_chunk
                && reception
                    .as_ref()
                    .is_some_and(|r| r.is_abandoned.load(Ordering::Relaxed))
            {
                continue;
            }
            let ordinal_start = reception.as_ref().map_or(0, |r| lock(&r.extents).len());
            for (frame_at, frame) in frames.iter_mut().enumerate() {
                if matches!(frame.kind, Kind::Envelope | Kind::Relocation) {
                    let mut extents = std::mem::take(&mut frame.earlier);
                    if let Some(reception) = &reception {
                        extents.extend(lock(&reception.extents).iter().copied());
                    }
                    extents.extend(chunks.remove(&frame.message).unwrap_or_default());
                    frame.crc = record::append_extents(&mut frame.payload, frame.crc, &extents);
                }
                let offset = tail.offset + length as u64;
                let payload_length = u32::try_from(frame.payload.len()).unwrap_or(u32::MAX);
                let place = Place {
                    segment: segment.number,
                    offset,
                    length: payload_length,
                };
                if frame.kind == Kind::Content {
                    let extent = Extent {
                        segment: segment.number,
                        offset,
                        length: payload_length,
                    };
                    match &reception {
                        Some(reception) if is_chunk => lock(&reception.extents).push(extent),
                        _ => chunks.entry(frame.message).or_default().push(extent),
                    }
                }
                let header = FrameHeader {
                    kind: frame.kind,
                    ordinal: u16::try_from((ordinal_start + frame_at) % 65_536).unwrap_or(0),
                    length: payload_length,
                    message: frame.message,
                    transaction,
                    payload_crc: frame.crc,
                };
                let bytes = header.encode(segment.mark);
                headers.extend_from_slice(&bytes);
                self.arena.extend_from_slice(&bytes);
                let padding = frame.payload.len().next_multiple_of(8) - frame.payload.len();
                if frame.payload.len() <= COPY_BYTES_MAX {
                    self.arena.extend_from_slice(&frame.payload);
                } else {
                    pieces.push(Piece::Arena(arena_start..self.arena.len()));
                    arena_start = self.arena.len();
                    pieces.push(Piece::Payload {
                        submission: at,
                        frame: frame_at,
                    });
                }
                self.arena.resize(self.arena.len() + padding, 0);
                length += FRAME_HEADER_BYTES + frame.payload.len() + padding;
                laid.push(Laid {
                    header,
                    place,
                    submission: at,
                    frame: frame_at,
                });
                lsn += 1;
            }
        }
        let padding = length.next_multiple_of(4096) - length;
        self.arena.resize(self.arena.len() + padding, 0);
        pieces.push(Piece::Arena(arena_start..self.arena.len()));
        let mut batch = BatchHeader {
            mark: segment.mark,
            length: u32::try_from(length).unwrap_or(u32::MAX),
            checksum: 0,
            number: self.next_batch,
            durable: self.durable,
            lsn: self.next_lsn,
            frames: u32::try_from(laid.len()).unwrap_or(u32::MAX),
            chain: tail.chain,
            wall_ms: self.inner.clock.unix_ms(),
            ids: self.inner.next_id.load(Ordering::Relaxed),
        };
        batch.checksum = batch.checksum_over(&headers);
        if let Some(place) = self.arena.get_mut(..BATCH_HEADER_BYTES) {
            place.copy_from_slice(&batch.encode());
        }
        (pieces, laid, batch)
    }

    /// One positioned vectored write.
    fn put(
        &self,
        tail: &Tail,
        pieces: &[Piece],
        submissions: &[Submission],
        length: u32,
    ) -> Result<(), SpoolError> {
        let slices: Vec<&[u8]> = pieces
            .iter()
            .map(|piece| match piece {
                Piece::Arena(range) => self.arena.get(range.clone()).unwrap_or_default(),
                Piece::Payload { submission, frame } => match submissions.get(*submission) {
                    Some(Submission::Chunk { frame, .. }) => &frame.payload,
                    Some(Submission::Commit(commit)) => commit
                        .frames
                        .get(*frame)
                        .map_or(&[][..], |frame| &frame.payload),
                    None => &[],
                },
            })
            .collect();
        self.inner.count_write(round_to_block(u64::from(length)));
        tail.segment
            .file
            .write_at(tail.offset, &slices)
            .map_err(|e| SpoolError::Io {
                operation: "write",
                name: super::segment::segment_name(tail.segment.number),
                source: Arc::new(e),
            })
    }

    /// Makes a durable batch visible and releases its tickets, in this order.
    fn publish(
        &self,
        segment: &Segment,
        batch: &BatchHeader,
        laid: Vec<Laid>,
        submissions: Vec<Submission>,
    ) {
        let inner = &self.inner;
        let now = inner.now();
        let mut has_due_work = false;
        {
            let mut index = lock(&inner.index);
            for laid in &laid {
                let payload = match submissions.get(laid.submission) {
                    Some(Submission::Chunk { reception, .. }) => {
                        #[cfg(test)]
                        if faults::seeded(Fault::PinnedRecycled) {
                            continue;
                        }
                        if !reception.is_abandoned.load(Ordering::Relaxed) {
                            index.pin(segment.number, 0);
                            lock(&reception.pins).push(segment.number);
                        }
                        continue;
                    }
                    Some(Submission::Commit(commit)) => commit
                        .frames
                        .get(laid.frame)
                        .map_or(&[][..], |frame| &frame.payload),
                    None => continue,
                };
                has_due_work |= laid.header.kind == Kind::Envelope;
                if laid.header.kind == Kind::Relocation {
                    inner.count_relocation(index.get(laid.header.message), payload.len());
                }
                if let Err(error) = index.apply(&laid.header, payload, laid.place, now) {
                    // Made by this process a moment ago: a broken promise between our own modules.
                    inner.remark(format!("{}: {error}", laid.header.message));
                }
            }
            index.applied_lsn = (batch.lsn + u64::from(batch.frames)).saturating_sub(1);
            index.applied_batch = batch.number;
        }
        inner.segments.update_fate(segment.number, |fate| {
            fate.last_batch = batch.number;
            fate.last_lsn = (batch.lsn + u64::from(batch.frames)).saturating_sub(1);
        });
        inner
            .journal_bytes
            .fetch_add(round_to_block(u64::from(batch.length)), Ordering::Relaxed);
        for submission in submissions {
            let Submission::Commit(commit) = submission else {
                continue;
            };
            if let Some(reception) = &commit.reception {
                inner.abandon(reception); // Its chunks are now pinned by the message itself.
            }
            has_due_work |= commit.lease.is_some();
            drop(commit.lease);
            commit.ticket.resolve(Ok(()));
        }
        if has_due_work {
            inner.wake();
        }
    }
}
