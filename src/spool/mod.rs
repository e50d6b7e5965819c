//! The storage engine: a journaled queue with group commit (SPOOL.md is its design).
//!
//! [`Spool`] is the handle everybody holds; [`Writer`] is the one that writes, run on a thread of its own by
//! [`Writer::run`] or stepped by tests through [`Writer::step`]. A [`Transaction`] collects a new message and ends in
//! a [`CommitTicket`], which is a future and can also be waited for by blocking; it resolves only when the batch that
//! holds the message has been synced (I1, S1).
//!
//! Promises: S1 to S12 of SPOOL.md, I1 to I8 of ARCHITECTURE.md. Touches files through [`storage::Storage`] alone,
//! knows no runtime and no mail policy. Limits: [`SpoolOptions`].

mod checkpoint;
mod content;
pub mod drop_file;
mod error;
#[cfg(test)]
mod faults;
pub mod file_system;
mod format;
mod index;
pub mod inspect;
mod journal;
mod keeper;
mod lease;
mod options;
pub mod reader;
mod reclaim;
mod record;
mod recovery;
mod segment;
pub mod storage;
mod sync;
mod transaction;
mod uncovered;

pub use content::ContentReader;

pub use error::SpoolError;
pub use file_system::FootingPolicy;
pub use journal::{Step, Writer};
pub use lease::Lease;
pub use options::SpoolOptions;
pub use transaction::{CommitTicket, Room, Transaction};

#[cfg(test)]
pub(crate) use crash_tests::PowerDisk;

use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::clock::Clock;
use crate::envelope::{
    Delivery, Envelope, MessageId, Outcome, Recipient, RecipientId, RecipientState,
};
use checkpoint::Checkpoints;
use format::Kind;
use index::{Held, Index, Now, Standing};
use keeper::{Keeper, KeeperCalls};
use record::{ExpansionRecord, OutcomeRecord};
use recovery::Check;
use segment::Segments;
use storage::Storage;
use sync::{AtomicBool, AtomicU64, Condvar, Mutex, MutexGuard};
use transaction::{Commit, FrameIn, Submission, TicketState, Urgency, Waiting};

/// The handle to an open spool; cheap to clone.
#[derive(Clone)]
pub struct Spool {
    inner: Arc<Inner>,
}

/// A live message as the spool holds it.
#[derive(Debug, Clone)]
pub struct StoredMessage {
    /// Its id.
    pub id: MessageId,
    /// The envelope as committed.
    pub envelope: Envelope,
    /// The envelope's recipients and then those of expansions, in order of [`RecipientId`], each with its state.
    pub recipients: Vec<(Recipient, RecipientState)>,
    /// When it is next due, Unix milliseconds.
    pub due_unix_ms: u64,
    /// Whether the operator (or a quarantine) holds it back.
    pub is_held: bool,
    /// Why, if who held it said so; the envelope has the reason of a quarantine at its arrival.
    pub hold_reason: Option<String>,
    /// Whether a delay warning has been sent.
    pub has_warned: bool,
    /// Whether an attempt is under way.
    pub is_leased: bool,
    /// Length of the content in bytes, as it will be sent.
    pub content_bytes: u64,
}

/// What one run over a leased message adds to its history, all in one transaction (I2, I7).
#[derive(Debug, Default)]
pub struct Update {
    /// Recipients replaced by others. The new ones get the next [`RecipientId`]s in order.
    pub expansions: Vec<(RecipientId, Vec<Recipient>)>,
    /// Results of attempts.
    pub outcomes: Vec<(RecipientId, Outcome)>,
    /// When what stays pending is due again, Unix milliseconds; `None` leaves it as it is.
    pub next_due_unix_ms: Option<u64>,
    /// A delay warning is among `reports`.
    pub has_warned: bool,
    /// New messages that must appear together with the rest: DSNs.
    pub reports: Vec<NewMessage>,
}

/// A message made by ourselves.
#[derive(Debug)]
pub struct NewMessage {
    /// Taken from [`Spool::new_id`], as the content names it in its header.
    pub id: MessageId,
    /// Its envelope.
    pub envelope: Envelope,
    /// Header and body, CRLF, undotted. At most [`SpoolOptions::batch_bytes_max`].
    pub content: Vec<u8>,
}

/// Counters for people and tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Live messages.
    pub messages: u64,
    /// Batches written since the start.
    pub batches: u64,
    /// Syncs of segment files since the start.
    pub syncs: u64,
    /// Bytes written since the start, padding included.
    pub bytes_written: u64,
    /// Messages moved out of emptying segments since the start, and the bytes that took.
    pub relocated: u64,
    /// Bytes of frames of those messages.
    pub bytes_relocated: u64,
    /// Segment files, spares and the segment prepared included.
    pub files: u64,
    /// Bytes of live records and content, frame headers included.
    pub bytes_live: u64,
}

/// What recovery found.
#[derive(Debug, Clone, Default)]
pub struct RecoveryReport {
    /// Live messages after replay.
    pub messages: u64,
    /// One line for each thing an operator should know: torn tails, damage, counting from the lowest batch.
    pub remarks: Vec<String>,
    /// Whether any of the remarks is damage, not merely a torn tail.
    pub is_damaged: bool,
    /// Those of the remarks that are.
    pub damage: Vec<String>,
}

impl Spool {
    /// Opens the spool, makes it if the folder is empty, and replays its journal.
    ///
    /// Blocks: disk. The caller then runs the [`Writer`].
    ///
    /// # Errors
    /// [`SpoolError::Locked`] if another process writes to it, [`SpoolError::UnfitFileSystem`] (unless
    /// [`SpoolOptions::footing`] forces it), [`SpoolError::Io`]; never for damage, which is
    /// reported in [`RecoveryReport`] (S5).
    pub fn open(
        storage: Arc<dyn Storage>,
        clock: Arc<dyn Clock>,
        options: SpoolOptions,
    ) -> Result<(Self, Writer, RecoveryReport), SpoolError> {
        let footing = storage
            .footing()
            .map_err(|e| SpoolError::io("statfs", ".", e))?;
        let remark =
            file_system::admit(footing, options.footing).map_err(SpoolError::UnfitFileSystem)?;
        if !storage
            .lock()
            .map_err(|e| SpoolError::io("lock", "lock", e))?
        {
            return Err(SpoolError::Locked);
        }
        let now = Now {
            unix_ms: clock.unix_ms(),
            monotonic: clock.monotonic(),
        };
        let mut found = recovery::load(&*storage, options.due_ahead_max, now, Check::Everything)?;
        // With nothing that says whose spool it is there is nothing to go on with.
        if let (Some(error), None) = (found.unopened, found.spool_id) {
            return Err(error);
        }
        found.report.remarks.splice(0..0, remark);
        for name in &found.temporaries {
            storage
                .unlink(name)
                .map_err(|e| SpoolError::io("unlink", name, e))?;
        }
        // Names found at the start may themselves be a crash's left-over, visible but not durable (I5).
        storage
            .sync_dir()
            .map_err(|e| SpoolError::io("sync", ".", e))?;
        let is_new =
            found.segments.is_empty() && found.checkpoints.is_empty() && found.next_segment == 1;
        let spool_id = found.spool_id.unwrap_or_else(|| {
            let mut id = [0; 16];
            let (low, high) = id.split_at_mut(8);
            low.copy_from_slice(&storage.random().to_le_bytes());
            high.copy_from_slice(&storage.random().to_le_bytes());
            id
        });
        let mut skipped = Vec::new();
        let seen = found.next_batch.saturating_sub(1);
        if found.has_unread {
            // Numbers that may lie in what can't be read are not given again (S10), and nobody calls them dead.
            let least = |each: u64| found.next_segment.saturating_mul(each);
            found.next_batch = found.next_batch.max(least(format::BATCHES_A_SEGMENT));
            found.next_lsn = found.next_lsn.max(least(format::LSNS_A_SEGMENT));
            let unread = 1 + found.uncovered.segments().len() as u64;
            found.next_id = found
                .next_id
                .saturating_add(unread.saturating_mul(IDS_SKIPPED_UNREAD));
            // Also what was last is passed over and not dead: what can't be read may prove it, and tell how it went on.
            let is_dead = |n: &&format::BatchNumber| **n != found.index.applied_batch;
            let dead = found.standing.iter().filter(is_dead);
            let dead: Vec<_> = dead.map(|n| (*n, *n)).collect();
            skipped = uncovered::without((found.proven + 1, found.next_batch - 1), &dead);
            for range in &skipped {
                found.uncovered.add(*range);
            }
        }
        let segments = Segments::new(
            Arc::clone(&storage),
            options.segment_bytes,
            spool_id,
            found.next_segment,
            found.spares,
        );
        for (segment, fate) in found.segments.into_values() {
            segments.add(segment, fate);
        }
        let inner = Arc::new(Inner {
            storage,
            clock,
            index: Mutex::new(found.index),
            uncovered: found.uncovered,
            segments,
            waiting: Mutex::default(),
            work: Condvar::new(),
            // Ids given just before a crash and not journaled are skipped as well.
            next_id: AtomicU64::new(
                found
                    .next_id
                    .saturating_add(u64::from(!is_new) * IDS_SKIPPED),
            ),
            poison: OnceLock::new(),
            full: Mutex::default(),
            is_full: AtomicBool::new(false),
            is_blocked: AtomicBool::new(false),
            wake: OnceLock::new(),
            keeper_calls: Mutex::default(),
            keeper_wake: Condvar::new(),
            reclaim: Mutex::default(),
            checkpoints: Mutex::new(Checkpoints {
                kept: found.checkpoints,
                bytes: found.checkpoint_bytes,
                journal_bytes: 0,
                at: now.monotonic,
                burst_at: now.monotonic,
            }),
            // What was replayed counts, so that starts that follow each other closely do not make replay grow.
            journal_bytes: AtomicU64::new(found.replayed_bytes),
            batches: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
            relocated: AtomicU64::new(0),
            bytes_relocated: AtomicU64::new(0),
            remarks: Mutex::default(),
            options,
        });
        let mut writer = Writer::new(
            Arc::clone(&inner),
            found.next_batch,
            found.next_lsn,
            found.proven,
        );
        if !is_new {
            // SPOOL 6.4: what was not proven is dead, and what counts of it is written again, before anything else.
            let dead = uncovered::without((found.proven + 1, seen), &skipped);
            let of_kind = |kind| {
                move |(first, last): &uncovered::Range| {
                    let payload = record::encode_void(*first, *last);
                    FrameIn::new(kind, MessageId::from_number(0), payload)
                }
            };
            let mut frames: Vec<FrameIn> = dead.iter().map(of_kind(Kind::Void)).collect();
            frames.extend(skipped.iter().map(of_kind(Kind::Skip)));
            frames.extend(found.unproven);
            if frames.is_empty() {
                // A batch without a frame has no Lsn of its own, by which a checkpoint covers it.
                frames.push(FrameIn::new(
                    Kind::Pulse,
                    MessageId::from_number(0),
                    Vec::new(),
                ));
            }
            let commit = Commit::internal(frames);
            let ticket = Arc::clone(&commit.ticket);
            writer.write(vec![Submission::Commit(commit)]);
            let ticket = CommitTicket { state: ticket };
            match ticket.try_result() {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(error),
                // Put back for want of room: the disk must get some before anything counts.
                None => {
                    return Err(SpoolError::Full(
                        lock(&inner.full).clone().unwrap_or_default(),
                    ));
                }
            }
        }
        writer.is_started = true;
        inner.wake_keeper();
        Ok((Self { inner }, writer, found.report))
    }

    /// Whether a new message would be taken now; ask at MAIL.
    ///
    /// # Errors
    /// [`SpoolError::Poisoned`], [`SpoolError::Full`], [`SpoolError::TooMany`]; all temporary. Blocks: never.
    pub fn accepting(&self) -> Result<(), SpoolError> {
        let inner = &self.inner;
        if inner.is_poisoned() || lock(&inner.waiting).is_closing {
            return Err(inner.closed_error());
        }
        if inner.is_full.load(Ordering::Relaxed) {
            return Err(SpoolError::Full(
                lock(&inner.full).clone().unwrap_or_default(),
            ));
        }
        if lock(&inner.index).len() >= inner.options.messages_max {
            return Err(SpoolError::TooMany(inner.options.messages_max));
        }
        Ok(())
    }

    /// Starts a new message. Blocks: never.
    ///
    /// # Errors
    /// As [`Spool::accepting`].
    pub fn begin(&self) -> Result<Transaction, SpoolError> {
        self.accepting()?;
        Ok(Transaction::new(
            Arc::clone(&self.inner),
            self.inner.new_id(),
        ))
    }

    /// Starts a new message under an id from [`Spool::new_id`] that nothing else uses. Blocks: never.
    ///
    /// # Errors
    /// As [`Spool::accepting`].
    pub fn begin_as(&self, id: MessageId) -> Result<Transaction, SpoolError> {
        self.accepting()?;
        Ok(Transaction::new(Arc::clone(&self.inner), id))
    }

    /// A fresh message id, never given before (S10); for sessions that log before they commit, and for DSNs.
    #[must_use]
    pub fn new_id(&self) -> MessageId {
        self.inner.new_id()
    }

    /// Gives no id below this number any more: those were given by another spool whose mail has moved here (S10).
    pub(crate) fn skip_ids(&self, next: u64) {
        self.inner.next_id.fetch_max(next, Ordering::Relaxed);
    }

    /// Leases the message that has been due longest, if any is due, for `held_for`. Blocks: never.
    ///
    /// Nothing is leased while outcomes could not be recorded: poisoned, or no room even for them.
    #[must_use]
    pub fn lease_due(&self, held_for: Duration) -> Option<Lease> {
        if self.inner.is_poisoned() || self.inner.is_blocked.load(Ordering::Relaxed) {
            return None;
        }
        let now = self.inner.clock.monotonic();
        let (id, epoch) = lock(&self.inner.index).claim_due(now, held_for)?;
        Some(Lease {
            id,
            epoch,
            may_be_held: false,
            inner: Arc::clone(&self.inner),
        })
    }

    /// Leases this message although it may be held, for an operator who asked for that. Blocks: never.
    #[must_use]
    pub fn lease_held(&self, id: MessageId, held_for: Duration) -> Option<Lease> {
        self.lease_one(id, held_for, Held::Taken)
    }

    /// Says that the attempt under this lease is over and that only the record of it is to come. A queue run from now on
    /// means this message, too, which is due again as soon as the record is durable. Blocks: never.
    pub fn end_attempt(&self, lease: &Lease) {
        lock(&self.inner.index).end_attempt(lease.id, lease.epoch);
    }

    /// Whether this message is leased. Blocks: never.
    #[must_use]
    pub fn is_leased(&self, id: MessageId) -> bool {
        lock(&self.inner.index).is_leased(id)
    }

    /// Whether this message is held back; `None` if it is not live. Blocks: never.
    #[must_use]
    pub fn is_held(&self, id: MessageId) -> Option<bool> {
        let index = lock(&self.inner.index);
        index.get_without_recipients(id).map(|entry| entry.is_held)
    }

    /// Whether this message is leased and only the record of its attempt is to come. Blocks: never.
    #[must_use]
    pub fn is_being_recorded(&self, id: MessageId) -> bool {
        lock(&self.inner.index).is_being_recorded(id)
    }

    /// Leases this message if it is live and neither leased nor held, due or not. Blocks: never.
    #[must_use]
    pub fn lease_message(&self, id: MessageId, held_for: Duration) -> Option<Lease> {
        self.lease_one(id, held_for, Held::LeftAlone)
    }

    fn lease_one(&self, id: MessageId, held_for: Duration, held: Held) -> Option<Lease> {
        if self.inner.is_poisoned() || self.inner.is_blocked.load(Ordering::Relaxed) {
            return None;
        }
        let now = self.inner.clock.monotonic();
        let epoch = lock(&self.inner.index).claim(id, now, held_for, held)?;
        Some(Lease {
            id,
            epoch,
            may_be_held: held == Held::Taken,
            inner: Arc::clone(&self.inner),
        })
    }

    /// When the next message is due (Unix milliseconds), leased and held ones left out.
    #[must_use]
    pub fn next_due_unix_ms(&self) -> Option<u64> {
        let due = lock(&self.inner.index).next_due()?;
        Some(Index::due_to_wall(due, self.inner.now()))
    }

    /// Calls `wake` whenever new due work may have appeared, from any thread. A hint: must not block. The first one
    /// set stays.
    pub fn on_due(&self, wake: Box<dyn Fn() + Send + Sync>) {
        let _ = self.inner.wake.set(wake);
    }

    /// Makes every pending message that `select` names due now, and says how many (a queue run). Blocks: never.
    pub fn run_now(&self, select: &mut dyn FnMut(MessageId) -> bool) -> u64 {
        let now = self.inner.clock.monotonic();
        let count = lock(&self.inner.index).run_now(now, select);
        self.inner.wake();
        count
    }

    /// The ids of all live messages, oldest first.
    #[must_use]
    pub fn ids(&self) -> Vec<MessageId> {
        lock(&self.inner.index).ids()
    }

    /// Reads a live message's envelope and states. Blocks: disk.
    ///
    /// # Errors
    /// [`SpoolError::NotFound`], [`SpoolError::Damaged`], [`SpoolError::Io`].
    pub fn message(&self, id: MessageId) -> Result<StoredMessage, SpoolError> {
        let inner = &self.inner;
        inner.read(id, &|index| index.get(id), &mut |entry| {
            let is_leased = lock(&inner.index).is_leased(id);
            content::message(
                &|n| inner.segments.get(n),
                id,
                entry,
                is_leased,
                inner.now(),
            )
        })
    }

    /// Reads a live message's content, each chunk verified before any of it is handed out. Blocks: disk.
    ///
    /// # Errors
    /// As [`Spool::message`]; the reader's own errors are of kind `InvalidData` for damage.
    pub fn content(&self, id: MessageId) -> Result<ContentReader, SpoolError> {
        let inner = &self.inner;
        let mut place = None;
        // Asked once a recipient: without them, or a long list would be walked as often as it is long.
        let find = move |index: &Index| index.get_without_recipients(id);
        let reader = inner.read(id, &find, &mut |entry| {
            place = Some(entry.envelope);
            ContentReader::open(&|n| inner.segments.get(n), id, entry)
        })?;
        let inner = Arc::clone(inner);
        Ok(reader.on_error(move |error| {
            // One that has moved since is to be read at its new place.
            let now = find(&lock(&inner.index)).map(|entry| entry.envelope);
            if now == place {
                inner.hold_unreadable(id, error);
            }
        }))
    }

    /// About how many bytes an update may have, its reports included, so that it fits into one batch wherever the
    /// journal stands.
    #[must_use]
    pub fn update_bytes_max(&self) -> usize {
        let bytes = self.inner.options.segment_bytes / 4;
        usize::try_from(bytes)
            .unwrap_or(usize::MAX)
            .min(UPDATE_BYTES_MAX)
    }

    /// The same for an update of expansions alone, which may fill most of a batch: the fewer they are, the less often a long
    /// list is read.
    #[must_use]
    pub fn expansion_bytes_max(&self) -> usize {
        let bytes = self.inner.segment_room() / 4 * 3;
        usize::try_from(bytes)
            .unwrap_or(usize::MAX)
            .min(UPDATE_BYTES_MAX)
    }

    /// Records an update and keeps the lease, for what must be durable before the next step: expansions.
    ///
    /// # Errors
    /// [`SpoolError::LeaseLost`] if the message has passed to another; [`SpoolError::Poisoned`].
    /// # Durability
    /// When the ticket resolves.
    pub fn record(&self, lease: &Lease, update: Update) -> Result<CommitTicket, SpoolError> {
        self.inner.check_lease(lease)?;
        let frames = self.inner.frames_of(lease.id, update)?;
        let ticket = TicketState::new(lease.id);
        #[cfg(test)]
        faults::seeded(faults::Fault::OutcomeBeforeExpansion).then(|| ticket.resolve(Ok(())));
        Ok(self.inner.submit_commit(Commit {
            frames,
            ticket,
            ..Commit::internal(Vec::new())
        }))
    }

    /// Records the last update of a run and ends the lease once it is durable. The message is removed in the same
    /// transaction if no recipient is pending.
    ///
    /// Updates with reports are written at once; others ride in the next batch, at the latest after
    /// [`SpoolOptions::outcome_delay`] (SPOOL 5). The ticket need not be waited for.
    ///
    /// # Errors
    /// As [`Spool::record`].
    pub fn finish(&self, lease: Lease, update: Update) -> Result<CommitTicket, SpoolError> {
        self.inner.check_lease(&lease)?;
        let urgency = if update.reports.is_empty() {
            Urgency::Lazy
        } else {
            Urgency::Now
        };
        let id = lease.id;
        let frames = self.inner.frames_of(id, update)?;
        let commit = Commit {
            frames,
            ticket: TicketState::new(id),
            lease: Some(lease),
            urgency,
            ..Commit::internal(Vec::new())
        };
        Ok(self.inner.submit_commit(commit))
    }

    /// Holds a message back or releases it, as the operator asked.
    ///
    /// # Errors
    /// [`SpoolError::NotFound`], [`SpoolError::Poisoned`].
    /// # Durability
    /// When the ticket resolves; only then tell the operator that it is done.
    pub fn hold(&self, id: MessageId, is_held: bool, by: &str) -> Result<CommitTicket, SpoolError> {
        self.control(
            id,
            FrameIn::new(Kind::Hold, id, record::encode_hold(is_held, by, None)),
        )
    }

    /// Holds a message back for a reason, which takes the place of any other.
    ///
    /// # Errors
    /// As [`Spool::hold`].
    /// # Durability
    /// As [`Spool::hold`].
    pub fn quarantine(
        &self,
        id: MessageId,
        reason: &str,
        by: &str,
    ) -> Result<CommitTicket, SpoolError> {
        let payload = record::encode_hold(true, by, Some(reason));
        self.control(id, FrameIn::new(Kind::Hold, id, payload))
    }

    /// Removes a message without a report, as the operator asked.
    ///
    /// # Errors
    /// [`SpoolError::NotFound`], [`SpoolError::Poisoned`].
    pub fn remove(&self, id: MessageId) -> Result<CommitTicket, SpoolError> {
        self.control(id, FrameIn::new(Kind::Removal, id, Vec::new()))
    }

    fn control(&self, id: MessageId, frame: FrameIn) -> Result<CommitTicket, SpoolError> {
        if !lock(&self.inner.index).contains(id) {
            return Err(SpoolError::NotFound(id));
        }
        Ok(self.inner.submit_commit(Commit {
            frames: vec![frame],
            ticket: TicketState::new(id),
            ..Commit::internal(Vec::new())
        }))
    }

    /// The message that was made from the drop file with this mark, if it is known (SPOOL 9).
    #[must_use]
    pub fn absorbed(&self, mark: u64) -> Option<MessageId> {
        lock(&self.inner.index).absorbed(mark)
    }

    /// Marks of drop files whose messages wait until the removal of the file is known to be durable.
    #[must_use]
    pub fn drop_marks(&self) -> Vec<u64> {
        lock(&self.inner.index)
            .drop_marks()
            .map(|(mark, _)| mark)
            .collect()
    }

    /// Says that the removal of the drop file with this mark is durable: its message may now be attempted.
    pub fn forget_drop_mark(&self, mark: u64) {
        lock(&self.inner.index).forget_drop_mark(mark);
        self.inner.wake();
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let inner = &self.inner;
        let (messages, bytes_live) = {
            let index = lock(&inner.index);
            (index.len(), index.bytes_live())
        };
        Stats {
            messages,
            batches: inner.batches.load(Ordering::Relaxed),
            syncs: inner.syncs.load(Ordering::Relaxed),
            bytes_written: inner.bytes_written.load(Ordering::Relaxed),
            relocated: inner.relocated.load(Ordering::Relaxed),
            bytes_relocated: inner.bytes_relocated.load(Ordering::Relaxed),
            files: inner.segments.files(),
            bytes_live,
        }
    }

    /// What happened since the last call that an operator should find in the log.
    #[must_use]
    pub fn take_remarks(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.inner.remarks))
    }

    /// Whether a write or sync has failed and nothing more is accepted until a restart (I3).
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        self.inner.is_poisoned()
    }

    /// Prepares segments, writes a checkpoint that is due and recycles, as the keeper's thread does; for tests that
    /// step the writer. Blocks: disk.
    pub fn keep(&self) {
        let _ = Keeper::new(Arc::clone(&self.inner)).step();
    }

    /// Writes a checkpoint now. Blocks: disk.
    ///
    /// # Errors
    /// [`SpoolError::Full`], [`SpoolError::Io`].
    pub fn checkpoint(&self) -> Result<(), SpoolError> {
        checkpoint::write(&self.inner)
    }

    /// Asks the writer to write what waits, then a Seal and a checkpoint, and to end. [`Writer::run`] then returns.
    pub fn close(&self) {
        lock(&self.inner.waiting).is_closing = true;
        self.inner.work.notify_all();
    }
}

/// Message ids left out at a start.
const IDS_SKIPPED: u64 = 1_000_000;

/// And for each segment that can't be read: more than fit into one of 1 GiB, and what the start left out that made it.
const IDS_SKIPPED_UNREAD: u64 = 1 << 25;

impl RecoveryReport {
    fn remark(&mut self, what: String) {
        if self.remarks.len() < REMARKS_MAX {
            self.remarks.push(what);
        }
    }

    fn damage(&mut self, what: String) {
        self.is_damaged = true;
        if self.damage.len() < REMARKS_MAX {
            self.damage.push(what.clone());
        }
        self.remark(what);
    }
}

/// Locks a mutex. A panic elsewhere while it was held does not make the data worse than a crash would, and the journal
/// survives crashes.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// What sessions, runners, writer and keeper share.
struct Inner {
    storage: Arc<dyn Storage>,
    clock: Arc<dyn Clock>,
    options: SpoolOptions,
    index: Mutex<Index>,
    /// What the start could not read; it stays so until the next one.
    uncovered: uncovered::Uncovered,
    segments: Segments,
    waiting: Mutex<Waiting>,
    work: Condvar,
    next_id: AtomicU64,
    poison: OnceLock<String>,
    full: Mutex<Option<String>>,
    /// Fast view of `full`.
    is_full: AtomicBool,
    /// The writer could not write what waits, for want of room.
    is_blocked: AtomicBool,
    wake: OnceLock<Box<dyn Fn() + Send + Sync>>,
    keeper_calls: Mutex<KeeperCalls>,
    keeper_wake: Condvar,
    checkpoints: Mutex<Checkpoints>,
    reclaim: Mutex<reclaim::Reclaim>,
    /// Bytes of batches since the start.
    journal_bytes: AtomicU64,
    batches: AtomicU64,
    syncs: AtomicU64,
    bytes_written: AtomicU64,
    relocated: AtomicU64,
    bytes_relocated: AtomicU64,
    remarks: Mutex<Vec<String>>,
}

/// Most remarks kept for the log between two looks.
const REMARKS_MAX: usize = 100;

impl Inner {
    fn now(&self) -> Now {
        Now {
            unix_ms: self.clock.unix_ms(),
            monotonic: self.clock.monotonic(),
        }
    }

    /// Chunks are at most 256 KiB, and small enough for several to fit into a segment.
    fn chunk_bytes(&self) -> usize {
        usize::try_from(self.options.segment_bytes / 8)
            .unwrap_or(CHUNK_BYTES_MAX)
            .min(CHUNK_BYTES_MAX)
    }

    /// Most bytes of submissions in one batch: with headers, a Seal and what a start adds, it fits into a segment.
    fn batch_bytes(&self) -> u64 {
        self.options.batch_bytes_max.min(self.segment_room())
    }

    /// What a new segment has room for, besides headers, a Seal and what a start adds.
    fn segment_room(&self) -> u64 {
        self.options
            .segment_bytes
            .saturating_sub(format::FIRST_BATCH_OFFSET + 4 * format::BLOCK_BYTES)
    }

    /// What is free on the file system. Blocks: disk.
    fn free_bytes(&self) -> Result<u64, SpoolError> {
        let free = self.storage.free_bytes();
        free.map_err(|e| SpoolError::io("statvfs", ".", e))
    }

    fn is_poisoned(&self) -> bool {
        self.poison.get().is_some()
    }

    /// Ends all acknowledging (I3). The first reason stands.
    fn poison(&self, why: &str) {
        let _ = self.poison.set(why.to_owned());
        self.remark(format!("journal poisoned: {why}"));
        self.close_waiting();
        self.wake();
    }

    fn closed_error(&self) -> SpoolError {
        self.poison
            .get()
            .map_or(SpoolError::Closed, |why| SpoolError::Poisoned(why.clone()))
    }

    /// Takes nothing more, and fails what still waits.
    fn close_waiting(&self) {
        let (rest, wakers) = {
            let mut waiting = lock(&self.waiting);
            waiting.is_closed = true;
            waiting.bytes = 0;
            waiting.urgent = 0;
            waiting.relocation_bytes = 0;
            let moved = std::mem::take(&mut waiting.relocations);
            waiting.fifo.extend(moved);
            (
                std::mem::take(&mut waiting.fifo),
                std::mem::take(&mut waiting.room_wakers),
            )
        };
        let error = self.closed_error();
        for submission in rest {
            self.refuse(submission, &error);
        }
        wakers.into_iter().for_each(std::task::Waker::wake);
        self.work.notify_all();
        self.wake_keeper();
    }

    /// Fails a submission that was not written.
    fn refuse(&self, submission: Submission, error: &SpoolError) {
        match submission {
            Submission::Chunk { reception, .. } => self.abandon(&reception),
            Submission::Commit(commit) => {
                if let Some(reception) = &commit.reception {
                    self.abandon(reception);
                }
                drop(commit.lease);
                commit.ticket.resolve(Err(error.clone()));
            }
        }
    }

    /// There is no room for a segment: new mail is refused, everything else waits for room.
    fn block(&self, submissions: Vec<Submission>, error: &SpoolError) {
        self.set_full(Some(error.to_string()));
        let mut kept = Vec::new();
        for submission in submissions {
            match submission {
                Submission::Commit(commit) if !commit.is_new_mail && commit.generation == 0 => {
                    kept.push(Submission::Commit(commit))
                }
                other => self.refuse(other, error),
            }
        }
        let mut waiting = lock(&self.waiting);
        let later = std::mem::take(&mut waiting.fifo);
        waiting.bytes = 0;
        waiting.urgent = 0;
        for submission in kept.into_iter().chain(later) {
            waiting.push(submission);
        }
        drop(waiting);
        self.is_blocked.store(true, Ordering::Relaxed);
        self.wake_keeper();
    }

    fn set_full(&self, why: Option<String>) {
        let mut full = lock(&self.full);
        if full.is_some() != why.is_some() {
            self.remark(
                why.as_ref()
                    .map_or_else(|| "spool has room again".to_owned(), Clone::clone),
            );
        }
        self.is_full.store(why.is_some(), Ordering::Relaxed);
        *full = why;
        drop(full);
        self.work.notify_one();
    }

    fn remark(&self, what: String) {
        let mut remarks = lock(&self.remarks);
        if remarks.len() < REMARKS_MAX {
            remarks.push(what);
        }
    }

    /// Tells the scheduler that there may be due work. A hint.
    fn wake(&self) {
        if let Some(wake) = self.wake.get() {
            wake();
        }
    }

    fn wake_keeper(&self) {
        lock(&self.keeper_calls).is_called = true;
        self.keeper_wake.notify_one();
    }

    fn end_keeper(&self) {
        lock(&self.keeper_calls).is_ended = true;
        self.keeper_wake.notify_all();
    }

    fn finish_closing(&self) {
        self.close_waiting();
    }

    /// The writer's thread ends: a clean end leaves a checkpoint that covers everything.
    fn end_writer(self: &Arc<Self>) {
        if !self.is_poisoned()
            && let Err(error) = checkpoint::write(self)
        {
            self.remark(format!("no checkpoint at the end: {error}"));
        }
        self.close_waiting();
    }

    fn count_sync(&self) {
        self.syncs.fetch_add(1, Ordering::Relaxed);
    }

    fn count_write(&self, bytes: u64) {
        self.batches.fetch_add(1, Ordering::Relaxed);
        self.bytes_written.fetch_add(bytes, Ordering::Relaxed);
    }

    /// `before` is the message as it was until now.
    fn count_relocation(&self, before: Option<index::Entry>, payload_bytes: usize) {
        let content = before.map_or(0, |entry| {
            let elsewhere: u64 = entry.elsewhere.iter().map(|(_, bytes)| bytes).sum();
            entry.bytes_here + elsewhere
        });
        self.relocated.fetch_add(1, Ordering::Relaxed);
        self.bytes_relocated
            .fetch_add(content + payload_bytes as u64, Ordering::Relaxed);
    }

    fn new_id(&self) -> MessageId {
        let least =
            MessageId::first_of(self.clock.unix_ms() / 1000, self.options.process_id).number();
        // The closure always gives a value, so the update can't fail.
        let given = self
            .next_id
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
                Some(next.max(least) + 1)
            });
        MessageId::from_number(given.unwrap_or(least).max(least))
    }

    /// Reads something of a message. What is moved or changed between the look into the index and the read is looked up
    /// once more: an error stands only if the message still lies where it was read from.
    fn read<T>(
        &self,
        id: MessageId,
        find: &dyn Fn(&Index) -> Option<index::Entry>,
        read: &mut dyn FnMut(&index::Entry) -> Result<T, SpoolError>,
    ) -> Result<T, SpoolError> {
        let find = || find(&lock(&self.index)).ok_or(SpoolError::NotFound(id));
        let mut entry = find()?;
        loop {
            let result = read(&entry);
            if result.is_ok() {
                return result;
            }
            let now = find()?;
            if now == entry {
                if let Err(error) = &result {
                    self.hold_unreadable(id, error);
                }
                return result;
            }
            entry = now;
        }
    }

    /// Holds a message whose bytes are damaged or can't be read, and says so once; it is not tried again and again,
    /// and does not expire, before the operator has looked (SPOOL 6). Released like any other. The hold is journaled,
    /// so that a restart does not begin anew with it; nobody waits for that.
    fn hold_unreadable(&self, id: MessageId, error: &SpoolError) {
        if !error.is_damage() {
            return;
        }
        {
            let mut index = lock(&self.index);
            if index.get(id).is_none_or(|entry| entry.is_held) {
                return;
            }
            index.hold_damaged(id);
        }
        self.remark(format!("{id} is held: {error}"));
        let by = record::encode_hold(true, "spool", None);
        drop(self.submit_commit(Commit {
            urgency: Urgency::Lazy,
            ..Commit::internal(vec![FrameIn::new(Kind::Hold, id, by)])
        }));
    }

    fn check_lease(&self, lease: &Lease) -> Result<(), SpoolError> {
        if lock(&self.index).is_claimed(lease.id, lease.epoch) {
            Ok(())
        } else {
            Err(SpoolError::LeaseLost(lease.id))
        }
    }

    /// The frames of an update, and whether it removes the message.
    fn frames_of(&self, id: MessageId, update: Update) -> Result<Vec<FrameIn>, SpoolError> {
        let mut frames = Vec::new();
        let mut states: Vec<(Standing, u32)>;
        let due_unix_ms;
        {
            let now = self.now();
            let index = lock(&self.index);
            let entry = index.get(id).ok_or(SpoolError::NotFound(id))?;
            states = entry
                .recipients
                .iter()
                .map(|r| (r.standing, r.tries))
                .collect();
            due_unix_ms = update
                .next_due_unix_ms
                .unwrap_or_else(|| Index::due_to_wall(entry.due, now));
        }
        let unknown = |RecipientId(at): RecipientId| SpoolError::Damaged {
            name: id.to_string(),
            offset: 0,
            detail: format!("no recipient {at}"),
        };
        for (parent, children) in update.expansions {
            let at = usize::try_from(parent.0).map_err(|_| unknown(parent))?;
            states.get_mut(at).ok_or_else(|| unknown(parent))?.0 = Standing::Expanded;
            let first_child = u32::try_from(states.len()).map_err(|_| unknown(parent))?;
            states.resize(states.len() + children.len(), (Standing::Pending, 0));
            let record = ExpansionRecord {
                parent,
                first_child,
                children,
            };
            frames.push(FrameIn::new(
                Kind::Expansion,
                id,
                record::encode_expansion(&record),
            ));
        }
        for (recipient, outcome) in update.outcomes {
            let at = usize::try_from(recipient.0).map_err(|_| unknown(recipient))?;
            let state = states.get_mut(at).ok_or_else(|| unknown(recipient))?;
            state.1 += 1;
            state.0 = match outcome.result {
                Delivery::Delivered => Standing::Delivered,
                Delivery::Failed => Standing::Failed,
                Delivery::Deferred => Standing::Pending,
            };
            let record = OutcomeRecord {
                recipient,
                tries: state.1,
                next_due_unix_ms: due_unix_ms,
                has_warned: update.has_warned,
                outcome,
            };
            frames.push(FrameIn::new(
                Kind::Outcome,
                id,
                record::encode_outcome(&record),
            ));
        }
        for report in update.reports {
            for chunk in report.content.chunks(self.chunk_bytes()) {
                frames.push(FrameIn::new(Kind::Content, report.id, chunk.to_vec()));
            }
            let payload = record::encode_envelope(&report.envelope, report.content.len() as u64);
            frames.push(FrameIn::new(Kind::Envelope, report.id, payload));
        }
        #[cfg(test)]
        if faults::seeded(faults::Fault::ReportApart) {
            frames.retain(|f| f.message == id || f.kind != Kind::Envelope);
        }
        if states
            .iter()
            .all(|(standing, _)| *standing != Standing::Pending)
        {
            frames.push(FrameIn::new(Kind::Removal, id, Vec::new()));
        }
        Ok(frames)
    }
}

/// Most bytes of content in one frame.
const CHUNK_BYTES_MAX: usize = 256 << 10;
/// Most bytes of one update, however large the segments.
const UPDATE_BYTES_MAX: usize = 16 << 20;

#[cfg(test)]
mod crash_tests;
#[cfg(all(test, feature = "interleavings"))]
mod interleaving_tests;
#[cfg(test)]
mod journal_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod reclaim_tests;
#[cfg(test)]
mod recovery_tests;
#[cfg(test)]
#[path = "../../tests/support/sim_storage.rs"]
mod sim_storage;
