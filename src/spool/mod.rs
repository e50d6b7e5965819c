//! The storage engine: a journaled queue with group commit (SPOOL.md is its design).
//!
//! [`Spool`] is the handle everybody holds; [`Writer`] is the one that writes, run on a thread of its own by
//! [`Writer::run`] or stepped by tests through [`Writer::step`]. A [`Transaction`] collects a new message and ends in
//! a [`CommitTicket`], which is a future and can also be waited for by blocking; it resolves only when the batch that
//! holds the message has been synced (I1, S1).
//!
//! Promises: S1 to S12 of SPOOL.md, I1 to I8 of ARCHITECTURE.md. Touches files through [`storage::Storage`] alone,
//! knows no runtime and no mail policy. Limits: [`SpoolOptions`].

mod error;
mod lease;
mod options;
pub mod storage;
mod transaction;

pub use error::SpoolError;
pub use lease::Lease;
pub use options::SpoolOptions;
pub use transaction::{CommitTicket, Room, Transaction};

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::envelope::{Envelope, MessageId, Outcome, Recipient, RecipientId, RecipientState};
use storage::Storage;

/// The handle to an open spool; cheap to clone.
#[derive(Clone)]
pub struct Spool {}

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
}

impl Spool {
    /// Opens the spool, makes it if the folder is empty, and replays its journal.
    ///
    /// Blocks: disk. The caller then runs the [`Writer`].
    ///
    /// # Errors
    /// [`SpoolError::Locked`] if another process writes to it, [`SpoolError::Io`]; never for damage, which is
    /// reported in [`RecoveryReport`] (S5).
    pub fn open(
        storage: Arc<dyn Storage>,
        clock: Arc<dyn Clock>,
        options: SpoolOptions,
    ) -> Result<(Self, Writer, RecoveryReport), SpoolError> {
        unimplemented!()
    }

    /// Whether a new message would be taken now; ask at MAIL.
    ///
    /// # Errors
    /// [`SpoolError::Poisoned`], [`SpoolError::Full`], [`SpoolError::TooMany`]; all temporary. Blocks: never.
    pub fn accepting(&self) -> Result<(), SpoolError> {
        unimplemented!()
    }

    /// Starts a new message. Blocks: never.
    ///
    /// # Errors
    /// As [`Spool::accepting`].
    pub fn begin(&self) -> Result<Transaction, SpoolError> {
        unimplemented!()
    }

    /// A fresh message id, never given before (S10); for sessions that log before they commit, and for DSNs.
    #[must_use]
    pub fn new_id(&self) -> MessageId {
        unimplemented!()
    }

    /// Leases the message that has been due longest, if any is due, for `held_for`. Blocks: never.
    #[must_use]
    pub fn lease_due(&self, held_for: Duration) -> Option<Lease> {
        unimplemented!()
    }

    /// Leases this message if it is live and neither leased nor held, due or not. Blocks: never.
    #[must_use]
    pub fn lease_message(&self, id: MessageId, held_for: Duration) -> Option<Lease> {
        unimplemented!()
    }

    /// When the next message is due (Unix milliseconds), leased and held ones left out.
    #[must_use]
    pub fn next_due_unix_ms(&self) -> Option<u64> {
        unimplemented!()
    }

    /// Calls `wake` from the writer whenever new due work may have appeared. A hint: must not block.
    pub fn on_due(&self, wake: Box<dyn Fn() + Send + Sync>) {
        unimplemented!()
    }

    /// Makes every pending message that `select` names due now, and says how many (a queue run). Blocks: never.
    pub fn run_now(&self, select: &mut dyn FnMut(MessageId) -> bool) -> u64 {
        unimplemented!()
    }

    /// The ids of all live messages, oldest first.
    #[must_use]
    pub fn ids(&self) -> Vec<MessageId> {
        unimplemented!()
    }

    /// Reads a live message's envelope and states. Blocks: disk.
    ///
    /// # Errors
    /// [`SpoolError::NotFound`], [`SpoolError::Damaged`], [`SpoolError::Io`].
    pub fn message(&self, id: MessageId) -> Result<StoredMessage, SpoolError> {
        unimplemented!()
    }

    /// Reads a live message's content, each chunk verified before any of it is handed out. Blocks: disk.
    ///
    /// # Errors
    /// As [`Spool::message`]; the reader's own errors are of kind `InvalidData` for damage.
    pub fn content(&self, id: MessageId) -> Result<ContentReader, SpoolError> {
        unimplemented!()
    }

    /// Records an update and keeps the lease, for what must be durable before the next step: expansions.
    ///
    /// # Errors
    /// [`SpoolError::LeaseLost`] if the message has passed to another; [`SpoolError::Poisoned`].
    /// # Durability
    /// When the ticket resolves.
    pub fn record(&self, lease: &Lease, update: Update) -> Result<CommitTicket, SpoolError> {
        unimplemented!()
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
        unimplemented!()
    }

    /// Removes a message without a report, as the operator asked.
    ///
    /// # Errors
    /// [`SpoolError::NotFound`], [`SpoolError::Poisoned`].
    pub fn remove(&self, id: MessageId) -> Result<CommitTicket, SpoolError> {
        unimplemented!()
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        unimplemented!()
    }

    /// Whether a write or sync has failed and nothing more is accepted until a restart (I3).
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        unimplemented!()
    }

    /// Asks the writer to write what waits, then a Seal and a checkpoint, and to end. [`Writer::run`] then returns.
    pub fn close(&self) {
        unimplemented!()
    }
}

/// Writes the journal. Owned by one thread.
pub struct Writer {}

impl Writer {
    /// Runs until [`Spool::close`] or poison. Blocks: disk, and for work.
    pub fn run(self) {
        unimplemented!()
    }
}

/// Reads a message's content from start to end; [`std::io::Read`]. Blocks: disk.
pub struct ContentReader {}

impl std::io::Read for ContentReader {
    fn read(&mut self, _into: &mut [u8]) -> std::io::Result<usize> {
        unimplemented!()
    }
}
