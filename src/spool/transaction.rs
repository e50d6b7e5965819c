//! A new message on its way into the journal, and the ticket that says when it is there.
//!
//! Nothing here blocks, except [`CommitTicket::wait`]. Payload checksums are made here, by the sessions in parallel.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use super::format::{Kind, SegmentNumber};
use super::index::Entry;
use super::record::{self, Extent};
use super::segment::Generation;
use super::sync::{AtomicBool, Condvar, Mutex};
use super::{Inner, Lease, SpoolError, lock};
use crate::envelope::{Envelope, MessageId};

/// A frame to be written. The checksum covers `payload`; that of an envelope is carried on when the writer appends
/// the extents.
pub(super) struct FrameIn {
    pub(super) kind: Kind,
    pub(super) message: MessageId,
    pub(super) payload: Vec<u8>,
    pub(super) crc: u32,
    /// Envelopes only: chunks that lie in earlier batches and are known already, in order.
    pub(super) earlier: Vec<Extent>,
}

impl FrameIn {
    pub(super) fn new(kind: Kind, message: MessageId, payload: Vec<u8>) -> Self {
        let crc = crc32fast::hash(&payload);
        Self {
            kind,
            message,
            payload,
            crc,
            earlier: Vec::new(),
        }
    }
}

/// What sessions and runners hand to the writer.
pub(super) enum Submission {
    /// A chunk of a message that is still being received.
    Chunk {
        reception: Arc<Reception>,
        frame: FrameIn,
    },
    /// Frames that become visible together.
    Commit(Commit),
}

/// Frames of one transaction, and what is to happen once they are durable.
pub(super) struct Commit {
    /// The message whose chunks were handed over before, if it was streamed.
    pub(super) reception: Option<Arc<Reception>>,
    pub(super) frames: Vec<FrameIn>,
    pub(super) ticket: Arc<TicketState>,
    /// Ended once the frames are applied.
    pub(super) lease: Option<Lease>,
    /// Whether it may wait for another batch to ride in.
    pub(super) urgency: Urgency,
    /// Whether it brings new mail, which a full disk refuses.
    pub(super) is_new_mail: bool,
    /// For a Relocation: the message as it was when its records were read. If it has changed since, the record would
    /// undo the change, and is dropped.
    pub(super) moved_from: Option<Box<Entry>>,
    /// Which open segment it is written to.
    pub(super) generation: Generation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    Now,
    Lazy,
}

impl Commit {
    /// Frames of the engine's own, for which nobody waits.
    pub(super) fn internal(frames: Vec<FrameIn>) -> Self {
        let id = MessageId::from_number(0);
        Self {
            reception: None,
            frames,
            ticket: TicketState::new(id),
            lease: None,
            urgency: Urgency::Now,
            is_new_mail: false,
            moved_from: None,
            generation: 0,
        }
    }
}

impl Submission {
    /// Bytes it will take in a batch, extents included as far as they are known.
    pub(super) fn bytes(&self) -> u64 {
        // Each content frame adds an extent to its envelope, and each envelope the number of them.
        let frame = |frame: &FrameIn| {
            let extents = (1 + frame.earlier.len()) * record::EXTENT_BYTES;
            super::format::frame_bytes(frame.payload.len() + 4 + extents) as u64
        };
        match self {
            Self::Chunk { frame: chunk, .. } => frame(chunk),
            Self::Commit(commit) => {
                let streamed = commit
                    .reception
                    .as_ref()
                    .map_or(0, |r| lock(&r.extents).len());
                commit.frames.iter().map(frame).sum::<u64>()
                    + (streamed * record::EXTENT_BYTES) as u64
            }
        }
    }
}

/// A message being received: what sessions and writer both know of it.
#[derive(Default)]
pub(super) struct Reception {
    /// Where its chunks lie that are written, in order.
    pub(super) extents: Mutex<Vec<Extent>>,
    /// Segments kept from being recycled on its account (S7).
    pub(super) pins: Mutex<Vec<SegmentNumber>>,
    /// Which open segment its chunks are written to.
    pub(super) generation: Generation,
    /// Set when the message is given up: chunks not yet written are skipped.
    pub(super) is_abandoned: AtomicBool,
}

/// A message being received. Dropping it abandons the message: nothing of it will ever be visible.
pub struct Transaction {
    inner: Arc<Inner>,
    id: MessageId,
    reception: Option<Arc<Reception>>,
    tail: Vec<u8>,
    is_committed: bool,
    content_bytes: u64,
}

impl Transaction {
    pub(super) fn new(inner: Arc<Inner>, id: MessageId) -> Self {
        Self {
            inner,
            id,
            reception: None,
            tail: Vec::new(),
            is_committed: false,
            content_bytes: 0,
        }
    }

    /// The id the message will have.
    #[must_use]
    pub fn id(&self) -> MessageId {
        self.id
    }

    /// Adds bytes of content (header and body as they will be sent, CRLF, undotted). Full chunks go to the writer.
    /// Blocks: never. Before reading more from the network, wait for [`Transaction::room`].
    ///
    /// # Errors
    /// [`SpoolError::Poisoned`], [`SpoolError::Closed`].
    pub fn append_content(&mut self, mut bytes: &[u8]) -> Result<(), SpoolError> {
        let chunk_bytes = self.inner.chunk_bytes();
        self.content_bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            let room = chunk_bytes.saturating_sub(self.tail.len()).max(1);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.tail.extend_from_slice(now);
            bytes = later;
            if self.tail.len() >= chunk_bytes {
                let chunk = std::mem::replace(&mut self.tail, Vec::with_capacity(chunk_bytes));
                let reception = Arc::clone(self.reception.get_or_insert_default());
                let frame = FrameIn::new(Kind::Content, self.id, chunk);
                self.inner.submit(Submission::Chunk { reception, frame })?;
            }
        }
        Ok(())
    }

    /// Resolves when the writer's queue is below its limit: at once unless the disk is behind.
    #[must_use]
    pub fn room(&self) -> Room {
        Room {
            inner: Arc::clone(&self.inner),
        }
    }

    /// Bytes of content so far.
    #[must_use]
    pub fn content_bytes(&self) -> u64 {
        self.content_bytes
    }

    /// Hands the message to the writer. Blocks: never.
    ///
    /// # Durability
    /// When the ticket resolves with `Ok`, content and envelope have been synced (I1).
    pub fn commit(self, envelope: Envelope) -> CommitTicket {
        self.commit_with(envelope, Vec::new())
    }

    /// As [`Transaction::commit`], with more frames in the same transaction: what has become of the recipients already.
    pub(super) fn commit_with(mut self, envelope: Envelope, more: Vec<FrameIn>) -> CommitTicket {
        let mut frames = Vec::with_capacity(2);
        let tail = std::mem::take(&mut self.tail);
        if !tail.is_empty() {
            frames.push(FrameIn::new(Kind::Content, self.id, tail));
        }
        frames.push(FrameIn::new(
            Kind::Envelope,
            self.id,
            record::encode_envelope(&envelope, self.content_bytes),
        ));
        frames.extend(more);
        self.is_committed = true;
        let ticket = TicketState::new(self.id);
        let commit = Commit {
            reception: self.reception.take(),
            frames,
            ticket: Arc::clone(&ticket),
            is_new_mail: true,
            ..Commit::internal(Vec::new())
        };
        self.inner.submit_commit(commit)
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if let (Some(reception), false) = (self.reception.take(), self.is_committed) {
            self.inner.abandon(&reception);
        }
    }
}

/// The state behind a ticket.
pub(super) struct TicketState {
    id: MessageId,
    slot: Mutex<TicketSlot>,
    is_done: Condvar,
}

#[derive(Default)]
struct TicketSlot {
    result: Option<Result<(), SpoolError>>,
    waker: Option<Waker>,
    /// A thread is blocked on it; without one, waking would be a system call for nobody.
    is_awaited: bool,
}

impl TicketState {
    pub(super) fn new(id: MessageId) -> Arc<Self> {
        Arc::new(Self {
            id,
            slot: Mutex::default(),
            is_done: Condvar::new(),
        })
    }

    /// The message it is about.
    pub(super) fn id(&self) -> MessageId {
        self.id
    }

    /// Releases the ticket. The first result stands.
    pub(super) fn resolve(&self, result: Result<(), SpoolError>) {
        let (waker, is_awaited) = {
            let mut slot = lock(&self.slot);
            slot.result.get_or_insert(result);
            (slot.waker.take(), slot.is_awaited)
        };
        if is_awaited {
            self.is_done.notify_all();
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Resolves when the batch that holds a transaction has been synced, or failed. A future for any runtime.
#[must_use = "only a resolved ticket says that the transaction is durable"]
pub struct CommitTicket {
    pub(super) state: Arc<TicketState>,
}

impl CommitTicket {
    /// Waits by blocking the thread.
    ///
    /// # Errors
    /// As the future's output: [`SpoolError::Full`] or [`SpoolError::TooLarge`] if it was refused before the write
    /// and left nothing; [`SpoolError::Poisoned`] if a write or sync failed.
    pub fn wait(self) -> Result<MessageId, SpoolError> {
        let mut slot = lock(&self.state.slot);
        loop {
            if let Some(result) = slot.result.clone() {
                return result.map(|()| self.state.id);
            }
            slot.is_awaited = true;
            slot = self
                .state
                .is_done
                .wait(slot)
                .unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    /// The result, if there is one already. Blocks: never.
    #[must_use]
    pub fn try_result(&self) -> Option<Result<MessageId, SpoolError>> {
        lock(&self.state.slot)
            .result
            .clone()
            .map(|result| result.map(|()| self.state.id))
    }
}

impl Future for CommitTicket {
    type Output = Result<MessageId, SpoolError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut slot = lock(&self.state.slot);
        if let Some(result) = slot.result.clone() {
            return Poll::Ready(result.map(|()| self.state.id));
        }
        slot.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

/// A future that resolves when the writer has room.
pub struct Room {
    inner: Arc<Inner>,
}

impl Future for Room {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut waiting = lock(&self.inner.waiting);
        if waiting.bytes < self.inner.options.queue_bytes_max || waiting.is_closed {
            return Poll::Ready(());
        }
        waiting.room_wakers.push(context.waker().clone());
        Poll::Pending
    }
}

/// What waits for the writer.
#[derive(Default)]
pub(super) struct Waiting {
    pub(super) fifo: VecDeque<Submission>,
    pub(super) bytes: u64,
    /// What the keeper moves, in batches of its own; waits for everybody else.
    pub(super) relocations: VecDeque<Submission>,
    pub(super) relocation_bytes: u64,
    /// How many of them must not wait for others.
    pub(super) urgent: usize,
    pub(super) room_wakers: Vec<Waker>,
    pub(super) is_closing: bool,
    /// Nothing is taken any more: closed or poisoned.
    pub(super) is_closed: bool,
    /// What the writer sleeps for.
    pub(super) sleep: Sleep,
}

/// What has to come for the writer to be woken; waking it is a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Sleep {
    /// It is at work, and will look by itself.
    #[default]
    Awake,
    /// Anything.
    ForAnything,
    /// So many urgent submissions.
    ForUrgent(usize),
}

impl Waiting {
    pub(super) fn push(&mut self, submission: Submission) {
        if submission.generation() > 0 {
            self.relocation_bytes += submission.bytes();
            self.relocations.push_back(submission);
            return;
        }
        self.bytes += submission.bytes();
        self.urgent += usize::from(submission.is_urgent());
        self.fifo.push_back(submission);
    }

    /// Takes relocations for one batch, all into the same generation.
    pub(super) fn take_relocations(&mut self, batch_bytes_max: u64) -> Vec<Submission> {
        let mut taken: Vec<Submission> = Vec::new();
        let mut bytes = 0;
        while let Some(next) = self.relocations.front() {
            let more = next.bytes();
            if let Some(first) = taken.first()
                && (bytes + more > batch_bytes_max || next.generation() != first.generation())
            {
                break;
            }
            bytes += more;
            let Some(next) = self.relocations.pop_front() else {
                break;
            };
            self.relocation_bytes = self.relocation_bytes.saturating_sub(more);
            taken.push(next);
        }
        taken
    }

    /// Takes what fits one batch: at least one submission, if there is one.
    pub(super) fn take(&mut self, batch_bytes_max: u64) -> Vec<Submission> {
        let mut taken = Vec::new();
        let mut bytes = 0;
        while let Some(next) = self.fifo.front() {
            let more = next.bytes();
            if bytes + more > batch_bytes_max && !taken.is_empty() {
                break;
            }
            bytes += more;
            let Some(next) = self.fifo.pop_front() else {
                break;
            };
            self.urgent -= usize::from(next.is_urgent());
            self.bytes = self.bytes.saturating_sub(more);
            taken.push(next);
        }
        taken
    }
}

impl Submission {
    /// Whether a chunk of this commit's message was refused or given up: it must not become visible without it.
    pub(super) fn has_lost_chunks(&self) -> bool {
        match self {
            Self::Chunk { .. } => false,
            Self::Commit(commit) => commit
                .reception
                .as_ref()
                .is_some_and(|r| r.is_abandoned.load(Ordering::Relaxed)),
        }
    }

    /// Which open segment it is written to.
    pub(super) fn generation(&self) -> Generation {
        match self {
            Self::Chunk { reception, .. } => reception.generation,
            Self::Commit(commit) => commit.generation,
        }
    }

    /// Whether a full disk refuses it.
    pub(super) fn is_new_mail(&self) -> bool {
        match self {
            Self::Chunk { .. } => true,
            Self::Commit(commit) => commit.is_new_mail,
        }
    }

    pub(super) fn is_urgent(&self) -> bool {
        match self {
            Self::Chunk { .. } => true,
            Self::Commit(commit) => commit.urgency == Urgency::Now,
        }
    }
}

impl Inner {
    /// Hands a submission to the writer.
    pub(super) fn submit(&self, submission: Submission) -> Result<(), SpoolError> {
        {
            let mut waiting = lock(&self.waiting);
            if waiting.is_closed || waiting.is_closing {
                return Err(self.closed_error());
            }
            waiting.push(submission);
            match waiting.sleep {
                Sleep::Awake => return Ok(()),
                Sleep::ForUrgent(wanted) if waiting.urgent < wanted => return Ok(()),
                // A lazy one is written later, but it must start the writer's clock for it.
                Sleep::ForUrgent(_) | Sleep::ForAnything => waiting.sleep = Sleep::Awake,
            }
        }
        self.work.notify_one();
        Ok(())
    }

    /// Hands over a commit; refusals go into its ticket.
    pub(super) fn submit_commit(&self, commit: Commit) -> CommitTicket {
        let state = Arc::clone(&commit.ticket);
        let reception = commit.reception.clone();
        if let Err(error) = self.submit(Submission::Commit(commit)) {
            if let Some(reception) = reception {
                self.abandon(&reception);
            }
            state.resolve(Err(error));
        }
        CommitTicket { state }
    }

    /// Gives up a message being received: what is written of it is dead, and no longer keeps its segments.
    pub(super) fn abandon(&self, reception: &Reception) {
        let mut index = lock(&self.index);
        reception.is_abandoned.store(true, Ordering::Relaxed);
        for segment in lock(&reception.pins).drain(..) {
            index.unpin(segment, 0);
        }
    }
}
