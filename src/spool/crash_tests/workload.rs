//! A workload that accepts, expands, delivers, defers, bounces, holds, removes, checkpoints, recycles, relocates, takes
//! drop files over and starts again, driven by a seed; and what its outside knows at any moment.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::super::drop_file;
use super::super::sim_storage::SimStorage;
use super::super::storage::Storage;
use super::super::{
    CommitTicket, NewMessage, Spool, SpoolError, SpoolOptions, Step, Transaction, Update, Writer,
};
use super::model::{DROP_BYTES_MAX, Dropped, Effect, Known, Model};
use super::{Rng, START_MS, open};
use crate::address::ReversePath;
use crate::clock::ManualClock;
use crate::envelope::{
    Delivery, Envelope, MessageId, Outcome, Recipient, RecipientId, RecipientState,
};
use crate::status::Status;

/// Operations in a workload.
const OPERATIONS: usize = 90;
const HELD_FOR: Duration = Duration::from_secs(3600 * 24 * 365);

/// What the outside knows, and what it waits for.
#[derive(Default)]
pub(super) struct Outside {
    model: Arc<Model>,
    /// Changes with the model.
    pub(super) version: u64,
    /// Messages moved to another segment so far.
    pub(super) relocated: u64,
    waiting: Vec<(Arc<CommitTicket>, Effect)>,
}

impl Outside {
    /// What is known now, with every acknowledgement that has come.
    pub(super) fn look(&mut self) -> Arc<Model> {
        let mut at = 0;
        while let Some((ticket, _)) = self.waiting.get(at) {
            match ticket.try_result() {
                None => at += 1,
                Some(result) => {
                    let (_, effect) = self.waiting.remove(at);
                    if result.is_ok() {
                        self.change(|model| model.acknowledge(&effect));
                    }
                }
            }
        }
        Arc::clone(&self.model)
    }

    pub(super) fn change<R>(&mut self, change: impl FnOnce(&mut Model) -> R) -> R {
        self.version += 1;
        change(Arc::make_mut(&mut self.model))
    }
}

/// What is shared with whoever watches the disk.
pub(super) type SharedOutside = Arc<Mutex<Outside>>;

pub(super) fn look(outside: &SharedOutside) -> MutexGuard<'_, Outside> {
    outside.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Options of the spool of a seed: files so small that everything happens often, and checkpoints that come at once,
/// seldom, or hardly ever, so that recycling cannot lean on one just written.
pub(super) fn options(seed: u64) -> SpoolOptions {
    SpoolOptions {
        segment_bytes: 32 << 10,
        process_id: 7,
        checkpoint_bytes: [16 << 10, 48 << 10, 96 << 10][usize::try_from(seed % 3).unwrap()],
        spares_max: 2,
        relocation_rest: [Duration::ZERO; 3],
        relocation_rate: u64::MAX,
        relocation_share: 50,
        ..SpoolOptions::default()
    }
}

/// A running spool and those who use it.
pub(super) struct World {
    pub(super) storage: SimStorage,
    pub(super) spool: Spool,
    pub(super) writer: Writer,
    pub(super) outside: SharedOutside,
    pub(super) rng: Rng,
    pub(super) clock: Arc<ManualClock>,
    options: SpoolOptions,
    /// A message that is being received for a long time.
    slow: Option<(Transaction, Vec<u8>)>,
}

fn outcome(result: Delivery) -> Outcome {
    Outcome::new(result, Status::OK, "local", "said the mailer")
}

fn envelope(recipients: usize) -> Envelope {
    Envelope::new(
        ReversePath::Null,
        (0..recipients)
            .map(|n| Recipient::new(format!("r{n}")))
            .collect(),
    )
}

/// Runs a workload until it is done or the power is gone.
pub(super) fn run(storage: &SimStorage, seed: u64, outside: &SharedOutside) {
    let Ok(mut world) = World::open(storage, seed, outside, START_MS) else {
        return;
    };
    for _ in 0..OPERATIONS {
        if world.spool.is_poisoned() || world.act().is_none() {
            return;
        }
    }
    world.spool.close();
    while world.writer.step() != Step::Ended {}
    world.writer.inner.end_writer();
    look(outside).relocated += world.spool.stats().relocated;
}

impl World {
    /// Opens the spool of a seed; what it shows is believed.
    pub(super) fn open(
        storage: &SimStorage,
        seed: u64,
        outside: &SharedOutside,
        start_ms: u64,
    ) -> Result<Self, SpoolError> {
        let (options, clock) = (options(seed), Arc::new(ManualClock::at(start_ms)));
        let (spool, writer, report) = open(storage, &clock, &options)?;
        assert!(!report.is_damaged, "{:?}", report.remarks);
        Ok(Self {
            storage: storage.clone(),
            spool,
            writer,
            outside: Arc::clone(outside),
            rng: Rng(seed),
            clock,
            options,
            slow: None,
        })
    }

    fn change<R>(&self, change: impl FnOnce(&mut Model) -> R) -> R {
        look(&self.outside).change(change)
    }

    fn known<R>(&self, id: MessageId, change: impl FnOnce(&mut Known) -> R) -> R {
        self.change(|model| change(model.messages.entry(id).or_default()))
    }

    /// Waits for a ticket, mostly; sometimes the acknowledgement comes while other things happen.
    fn await_or_not(&mut self, ticket: CommitTicket, effect: Effect) {
        let ticket = Arc::new(ticket);
        look(&self.outside)
            .waiting
            .push((Arc::clone(&ticket), effect));
        if self.rng.below(4) > 0 {
            self.settle(&ticket);
        }
    }

    fn settle(&mut self, ticket: &CommitTicket) {
        while ticket.try_result().is_none() && self.writer.step() != Step::Ended {}
        look(&self.outside).look();
    }

    /// One operation; `None` when nothing more can happen.
    pub(super) fn act(&mut self) -> Option<()> {
        match self.rng.below(22) {
            0..=5 => self.accept(),
            6..=10 => self.attempt(),
            11 => self.hold(),
            12 => self.remove(),
            13..=15 => self.spool.keep(),
            16 => self.receive_slowly(),
            17 => self.submit_drop(),
            18 => self.take_drops(),
            19 => self.clock.advance(Duration::from_secs(600)),
            20 if self.rng.below(4) == 0 => return self.start_again(),
            _ => {
                self.writer.step();
            }
        }
        Some(())
    }

    fn content(&mut self) -> Vec<u8> {
        let len = match self.rng.below(12) {
            0 => 0,
            1 => 5000 + self.rng.below(4000),
            _ => 10 + self.rng.below(1500),
        };
        let mut salt = Rng(self.rng.next());
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&salt.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }

    /// One to three messages in one batch, one of them perhaps abandoned half way.
    fn accept(&mut self) {
        let mut committed = Vec::new();
        for _ in 0..=self.rng.below(3) {
            let Ok(mut transaction) = self.spool.begin() else {
                break;
            };
            let content = self.content();
            for part in content.chunks(1500) {
                if transaction.append_content(part).is_err() {
                    return;
                }
                if self.rng.below(6) == 0 {
                    self.writer.step();
                }
            }
            if self.rng.below(8) > 0 {
                committed.push(self.commit(transaction, &content));
            }
        }
        for (ticket, effect) in committed {
            self.await_or_not(ticket, effect);
        }
    }

    fn commit(&mut self, transaction: Transaction, content: &[u8]) -> (CommitTicket, Effect) {
        let (id, recipients) = (transaction.id(), 1 + self.rng.below(3));
        self.known(id, |known| {
            known.content = content.into();
            known.recipients = recipients;
        });
        (
            transaction.commit(envelope(recipients)),
            Effect::Accepted(id),
        )
    }

    /// A message whose chunks are written long before its envelope is.
    fn receive_slowly(&mut self) {
        match self.slow.take() {
            None => {
                let Ok(mut transaction) = self.spool.begin() else {
                    return;
                };
                let mut content = self.content();
                content.resize(4096 + self.rng.below(3000), b'.');
                if transaction.append_content(&content).is_ok() {
                    self.writer.step();
                    self.slow = Some((transaction, content));
                }
            }
            Some((mut transaction, mut content)) => {
                if self.rng.below(6) == 0 || transaction.append_content(b"the end").is_err() {
                    return;
                }
                content.extend_from_slice(b"the end");
                let (ticket, effect) = self.commit(transaction, &content);
                self.await_or_not(ticket, effect);
            }
        }
    }

    /// A random live message that the outside knows.
    fn some_message(&mut self) -> Option<MessageId> {
        let ids = self.spool.ids();
        if ids.is_empty() {
            return None;
        }
        Some(ids[self.rng.below(ids.len())])
    }

    fn hold(&mut self) {
        let Some(id) = self.some_message() else {
            return;
        };
        let is_held = self.rng.below(2) == 0;
        let nth = self.known(id, |known| {
            known.is_held = None;
            known.holds_asked += 1;
            known.holds_asked
        });
        if let Ok(ticket) = self.spool.hold(id, is_held, "root") {
            self.await_or_not(ticket, Effect::Held(id, is_held, nth));
        }
    }

    fn remove(&mut self) {
        let Some(id) = self.some_message() else {
            return;
        };
        self.known(id, |known| {
            known.end_asked = true;
            known.removal_asked = true;
        });
        if let Ok(ticket) = self.spool.remove(id) {
            self.await_or_not(ticket, Effect::Removed(id));
        }
    }

    fn attempt(&mut self) {
        self.spool.run_now(&mut |_| true);
        let Some(lease) = self.spool.lease_due(HELD_FOR) else {
            return;
        };
        let id = lease.id();
        let Ok(message) = self.spool.message(id) else {
            return; // Removed between the two, or the disk has failed.
        };
        let is_expanded = self.known(id, |known| {
            known.is_attempted = true;
            known.expansion_asked.is_some()
        });
        let pending: Vec<u32> = (0_u32..)
            .zip(&message.recipients)
            .filter(|(_, (_, state))| !state.is_final() && *state != RecipientState::Expanded)
            .map(|(at, _)| at)
            .collect();
        if self.rng.below(4) == 0 && !is_expanded && !pending.is_empty() {
            let children = 1 + self.rng.below(3);
            self.known(id, |known| known.expansion_asked = Some(children));
            let names = (0..children).map(|n| Recipient::new(format!("c{n}")));
            let update = Update {
                expansions: vec![(RecipientId(pending[0]), names.collect())],
                ..Update::default()
            };
            if let Ok(ticket) = self.spool.record(&lease, update) {
                // The children are not attempted before this is durable.
                let ticket = Arc::new(ticket);
                look(&self.outside)
                    .waiting
                    .push((Arc::clone(&ticket), Effect::Expanded(id, children)));
                self.settle(&ticket);
            }
            return;
        }
        self.finish(lease, pending);
    }

    /// Ends an attempt: every pending recipient has an outcome, and a failure its report.
    fn finish(&mut self, lease: super::super::Lease, pending: Vec<u32>) {
        let id = lease.id();
        let mut update = Update {
            next_due_unix_ms: Some(START_MS + 60_000),
            ..Update::default()
        };
        let mut outcomes = Vec::new();
        for at in pending {
            let result = match self.rng.below(6) {
                0..=1 => Delivery::Deferred,
                2 => Delivery::Failed,
                _ => Delivery::Delivered,
            };
            update.outcomes.push((RecipientId(at), outcome(result)));
            outcomes.push((at, result));
        }
        let is_end = outcomes.iter().all(|(_, r)| *r != Delivery::Deferred);
        let has_failed = outcomes.iter().any(|(_, r)| *r == Delivery::Failed);
        let mut report = None;
        self.change(|model| {
            let known = model.messages.entry(id).or_default();
            known.asked.extend(outcomes.iter().copied());
            known.end_asked |= is_end;
            if has_failed && known.report.is_none() {
                let new = NewMessage {
                    id: self.spool.new_id(),
                    envelope: envelope(1),
                    content: format!("report on {id}").into_bytes(),
                };
                known.report = Some(new.id);
                report = known.report;
                let about = Known {
                    content: new.content.as_slice().into(),
                    recipients: 1,
                    ..Known::default()
                };
                model.messages.insert(new.id, about);
                update.reports.push(new);
            }
        });
        if let Ok(ticket) = self.spool.finish(lease, update) {
            let effect = Effect::Finished {
                id,
                outcomes,
                is_end,
                report,
            };
            self.await_or_not(ticket, effect);
        }
    }

    /// What a submitter does without the owner of the queue (drop_file.rs).
    fn submit_drop(&mut self) {
        let mark = self.rng.next().max(1);
        let content = self.content();
        let dropped = Dropped {
            content: content.as_slice().into(),
            ..Dropped::default()
        };
        self.change(|model| model.drops.insert(mark, dropped));
        let folder = self.storage.drops();
        let temporary = format!("tmp-{mark:016x}");
        let written = folder.create(&temporary).map(|file| {
            let id = MessageId::from_number(mark);
            drop_file::write_into(&*file, mark, id, &envelope(2), &mut &*content)
        });
        if matches!(written, Ok(Ok(())))
            && folder
                .rename(&temporary, &format!("drop-{mark:016x}"))
                .and_then(|()| folder.sync_dir())
                .is_ok()
        {
            self.change(|model| {
                if let Some(dropped) = model.drops.get_mut(&mark) {
                    dropped.is_submitted = true;
                }
            });
        }
    }

    /// What the owner of the queue does at each look.
    pub(super) fn take_drops(&mut self) {
        let folder = self.storage.drops();
        let Ok(names) = folder.list() else { return };
        for name in names.iter().filter(|name| name.starts_with("drop-")) {
            let Ok(mark) = u64::from_str_radix(&name["drop-".len()..], 16) else {
                continue;
            };
            let (writer, spool) = (&mut self.writer, &self.spool);
            let mut wait = |ticket: CommitTicket| {
                while ticket.try_result().is_none() && writer.step() != Step::Ended {}
                ticket.try_result().unwrap_or(Err(SpoolError::Closed))
            };
            let taken =
                drop_file::absorb_in(spool, &folder, name, DROP_BYTES_MAX, &mut |_| {}, &mut wait);
            // When its removal failed, the message is there all the same.
            let id = match taken {
                Ok(Some(absorbed)) => Some(absorbed.id),
                Ok(None) | Err(_) => self.spool.absorbed(mark),
            };
            if let Some(id) = id {
                self.change(|model| {
                    if let Some(dropped) = model.drops.get_mut(&mark) {
                        dropped.id = Some(id);
                        let known = model.messages.entry(id).or_default();
                        known.content = Arc::clone(&dropped.content);
                        known.recipients = 2;
                        known.is_accepted = true;
                    }
                });
            }
        }
    }

    /// The process is killed or ends, and another begins.
    fn start_again(&mut self) -> Option<()> {
        self.slow = None;
        if self.rng.below(2) == 0 {
            self.spool.close();
            while self.writer.step() != Step::Ended {}
            self.writer.inner.end_writer();
        }
        // Acknowledgements that came before the end count; others never come.
        look(&self.outside).look();
        look(&self.outside).waiting.clear();
        look(&self.outside).relocated += self.spool.stats().relocated;
        self.storage.unlock();
        // A start takes its time; two processes of one id in one second might give out the same queue ids.
        self.clock.advance(Duration::from_secs(1));
        let (spool, writer, report) = open(&self.storage, &self.clock, &self.options).ok()?;
        if self.storage.has_failed() {
            return None; // What could not be read is rightly called damage.
        }
        assert!(!report.is_damaged, "{:?}", report.remarks);
        self.change(|model| model.believe(&spool)).ok()?;
        drop_file::settle_in(&spool, &self.storage.drops()).ok()?;
        (self.spool, self.writer) = (spool, writer);
        Some(())
    }
}
