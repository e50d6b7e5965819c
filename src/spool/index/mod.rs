//! The live messages in memory: where their records lie, where their recipients stand, what is due when.
//!
//! The index changes only by applying frames, in Lsn order, the same way whether the writer has just made them
//! durable or recovery reads them back; applying a frame twice changes nothing (S9). Besides, it keeps what a crash
//! may forget: leases, and due times moved by a queue run. Due times are kept on the monotonic clock, so that a step
//! of the wall clock moves nothing (S12). Never blocks; the owner guards it with a lock.
//!
//! A message with one recipient takes 56 bytes packed ([`entry`], in [`slab`]s), 12 in the timer [`wheel`] and 5 to 10 in the
//! table of ids. A [`Snapshot`] for a checkpoint shares the slabs and is taken at once.

mod entry;
mod slab;
mod wheel;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::time::Duration;

use hashbrown::HashTable;

#[cfg(test)]
use super::faults::{Fault, seeded};
use super::format::{BatchNumber, FrameHeader, Kind, Lsn, SegmentNumber};
use super::record::{self, Malformed};
use crate::envelope::{Delivery, MessageId, RecipientId};
pub(super) use entry::{Entry, Last, Packed, Place, RecipientEntry};
use entry::{ExpansionPlace, Extra, Extras, HELD, PackedRecipient, TAKEN, WARNED};
pub(super) use record::Standing;
use slab::{Blocks, NO_SLOT, Slabs};
use wheel::Wheel;

/// Spreads numbers that this engine gave out itself: message ids, segment numbers, and marks, which are random. Nobody
/// outside can choose them to collide, so the costly default is not needed.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u64(&mut self, number: u64) {
        let mixed = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

type NumberMap<K, V> = HashMap<K, V, BuildHasherDefault<NumberHasher>>;

fn hash_of(id: MessageId) -> u64 {
    let mut hasher = NumberHasher::default();
    hasher.write_u64(id.number());
    hasher.finish()
}

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) unix_ms: u64,
    pub(super) monotonic: Duration,
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[derive(Debug, Clone, Copy)]
struct Claim {
    epoch: u64,
    deadline: Duration,
    stage: Stage,
}

/// How far the attempt under a claim has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    UnderWay,
    /// It is over, and its record on the way.
    Recording,
    /// The same, and a queue run at this time (milliseconds) has asked for the message.
    RunAgain(u64),
}

/// Whether a claim may be made on a message that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    LeftAlone,
    Taken,
}

/// What keeps a segment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Pin {
    /// How many live things lie in it.
    pub(super) count: u64,
    /// Their bytes, frame headers included; chunks of messages being received are counted with none.
    pub(super) bytes: u64,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Index {
    packed: Slabs<Packed>,
    extras: Extras,
    by_id: HashTable<u32>,
    wheel: Wheel,
    claims: NumberMap<MessageId, Claim>,
    deadlines: BTreeSet<(Duration, MessageId)>,
    next_epoch: u64,
    pins: NumberMap<SegmentNumber, Pin>,
    /// Marks of drop files absorbed whose removal may not be durable yet (SPOOL 9).
    drop_marks: NumberMap<u64, MessageId>,
    /// Messages of those drop files: not to be attempted before the removal is durable.
    parked: HashSet<MessageId>,
    /// Longest time into the future that a due time read from disk is believed.
    due_ahead_max: Duration,
    /// All frames up to this one are applied, and durable.
    pub(super) applied_lsn: Lsn,
    /// All batches up to this one are applied, and durable.
    pub(super) applied_batch: BatchNumber,
}

/// The index at one moment, for a checkpoint or a search, read without the index's lock.
pub(super) struct Snapshot {
    packed: Blocks<Packed>,
    extras: Blocks<Option<Arc<Extra>>>,
    pub(super) marks: Vec<(u64, MessageId)>,
    pub(super) messages: u64,
    pub(super) applied_lsn: Lsn,
    pub(super) applied_batch: BatchNumber,
}

impl Snapshot {
    /// The messages in no order, each with what did not fit into it.
    pub(super) fn messages(&self) -> impl Iterator<Item = (&Packed, Option<&Extra>)> {
        self.packed
            .iter()
            .filter(|packed| packed.has(TAKEN))
            .map(|packed| {
                let extra = self.extras.get(packed.extra);
                (packed, extra.and_then(|extra| extra.as_deref()))
            })
    }

    /// The ids of messages of which something lives in a segment that `wanted` names.
    pub(super) fn living_in(&self, wanted: &dyn Fn(SegmentNumber) -> bool) -> Vec<MessageId> {
        self.messages()
            .filter(|(packed, extra)| match extra {
                None => {
                    wanted(packed.envelope.place().segment)
                        || packed
                            .recipient
                            .recipient()
                            .place()
                            .is_some_and(|place| wanted(place.segment))
                }
                extra => entry::unpack(packed, *extra)
                    .pins()
                    .any(|(segment, _)| wanted(segment)),
            })
            .map(|(packed, _)| packed.id)
            .collect()
    }
}

impl Index {
    pub(super) fn new(due_ahead_max: Duration) -> Self {
        Self {
            due_ahead_max,
            ..Self::default()
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.by_id.len() as u64
    }

    fn slot(&self, id: MessageId) -> Option<u32> {
        let is_it = |slot: &u32| self.packed.get(*slot).is_some_and(|packed| packed.id == id);
        self.by_id.find(hash_of(id), is_it).copied()
    }

    fn extra(&self, packed: &Packed) -> Option<&Extra> {
        self.extras.get(packed.extra).and_then(Option::as_deref)
    }

    pub(super) fn get(&self, id: MessageId) -> Option<Entry> {
        let packed = self.packed.get(self.slot(id)?)?;
        Some(entry::unpack(packed, self.extra(packed)))
    }

    /// The entry as far as its content goes: no recipients, no expansions.
    pub(super) fn get_without_recipients(&self, id: MessageId) -> Option<Entry> {
        let packed = self.packed.get(self.slot(id)?)?;
        Some(entry::unpack_place(packed, self.extra(packed)))
    }

    pub(super) fn contains(&self, id: MessageId) -> bool {
        self.slot(id).is_some()
    }

    pub(super) fn ids(&self) -> Vec<MessageId> {
        let taken = self.by_id.iter().filter_map(|slot| self.packed.get(*slot));
        let mut ids: Vec<_> = taken.map(|packed| packed.id).collect();
        ids.sort_unstable();
        ids
    }

    /// The index as it is now; costs a reference a slab.
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            packed: self.packed.snapshot(),
            extras: self.extras.snapshot(),
            marks: self
                .drop_marks
                .iter()
                .map(|(mark, id)| (*mark, *id))
                .collect(),
            messages: self.len(),
            applied_lsn: self.applied_lsn,
            applied_batch: self.applied_batch,
        }
    }

    /// A wall-clock due time as monotonic time, clamped to what is sensible.
    pub(super) fn due_from_wall(&self, due_unix_ms: u64, now: Now) -> Duration {
        let ahead = Duration::from_millis(due_unix_ms.saturating_sub(now.unix_ms));
        now.monotonic + ahead.min(self.due_ahead_max)
    }

    /// A monotonic due time as wall-clock time.
    pub(super) fn due_to_wall(due: Duration, now: Now) -> u64 {
        let ahead = due.saturating_sub(now.monotonic);
        let behind = now.monotonic.saturating_sub(due);
        now.unix_ms
            .saturating_add(millis(ahead))
            .saturating_sub(millis(behind))
    }

    /// Counts a live thing of so many bytes in a segment.
    pub(super) fn pin(&mut self, segment: SegmentNumber, bytes: u64) {
        let pin = self.pins.entry(segment).or_default();
        pin.count += 1;
        pin.bytes += bytes;
    }

    pub(super) fn unpin(&mut self, segment: SegmentNumber, bytes: u64) {
        if let Some(pin) = self.pins.get_mut(&segment) {
            pin.count = pin.count.saturating_sub(1);
            pin.bytes = pin.bytes.saturating_sub(bytes);
            if pin.count == 0 {
                self.pins.remove(&segment);
            }
        }
    }

    /// What keeps a segment, if anything does.
    pub(super) fn pinned(&self, segment: SegmentNumber) -> Option<Pin> {
        self.pins.get(&segment).copied()
    }

    /// Bytes of all that lives.
    pub(super) fn bytes_live(&self) -> u64 {
        self.pins.values().map(|pin| pin.bytes).sum()
    }

    fn pin_packed(&mut self, packed: &Packed, extra: Option<&Extra>) {
        if extra.is_none() {
            let place = packed.envelope.place();
            self.pin(
                place.segment,
                place.bytes() + u64::from(packed.units_here) * 8,
            );
            if let Some(place) = packed.recipient.recipient().place() {
                self.pin(place.segment, place.bytes());
            }
            return;
        }
        for (segment, bytes) in entry::unpack(packed, extra).pins() {
            self.pin(segment, bytes);
        }
    }

    /// Puts an entry in, replacing one of the same id.
    pub(super) fn insert(&mut self, id: MessageId, entry: &Entry) -> Result<(), Malformed> {
        self.take_out(id);
        let packed = entry::pack(id, entry, &mut self.extras);
        self.put(packed.ok_or(Malformed("index"))?)
    }

    /// Puts in a message read from a checkpoint.
    pub(super) fn load(
        &mut self,
        mut packed: Packed,
        extra: Option<Extra>,
    ) -> Result<(), Malformed> {
        self.take_out(packed.id);
        packed.extra = match extra {
            None => NO_SLOT,
            Some(extra) => self
                .extras
                .insert(Some(Arc::new(extra)))
                .ok_or(Malformed("index"))?,
        };
        self.put(packed)
    }

    fn put(&mut self, packed: Packed) -> Result<(), Malformed> {
        let id = packed.id;
        let extra = self.extras.get(packed.extra).cloned().flatten();
        self.pin_packed(&packed, extra.as_deref());
        let slot = self.packed.insert(packed).ok_or(Malformed("index"))?;
        let Self { by_id, packed, .. } = self;
        by_id.insert_unique(hash_of(id), slot, |slot| {
            packed.get(*slot).map_or(0, |packed| hash_of(packed.id))
        });
        self.make_due(slot);
        Ok(())
    }

    /// Puts a message among the due ones, at its due time, unless something keeps it back.
    fn make_due(&mut self, slot: u32) {
        if let Some(packed) = self.packed.get(slot)
            && !packed.has(HELD)
            && !self.claims.contains_key(&packed.id)
            && !self.parked.contains(&packed.id)
        {
            self.wheel.insert(slot, packed.due);
        }
    }

    fn take_out(&mut self, id: MessageId) {
        let Some(slot) = self.slot(id) else { return };
        let found = self.by_id.find_entry(hash_of(id), |other| *other == slot);
        if let Ok(found) = found {
            found.remove();
        }
        self.wheel.remove(slot);
        let Some(old) = self.packed.remove(slot, Packed::VACANT) else {
            return;
        };
        let extra = if old.extra == NO_SLOT {
            None
        } else {
            self.extras.remove(old.extra, None).flatten()
        };
        for (segment, bytes) in entry::unpack(&old, extra.as_deref()).pins() {
            self.unpin(segment, bytes);
        }
    }

    /// What does not fit into a packed message, made if it has nothing of the kind yet.
    fn extra_mut(&mut self, slot: u32) -> Option<&mut Extra> {
        let packed = self.packed.get(slot)?;
        if packed.extra == NO_SLOT {
            let extra = Extra {
                recipients: vec![packed.recipient],
                ..Extra::default()
            };
            let at = self.extras.insert(Some(Arc::new(extra)))?;
            self.packed.get_mut(slot)?.extra = at;
        }
        let at = self.packed.get(slot)?.extra;
        self.extras.get_mut(at)?.as_mut().map(Arc::make_mut)
    }

    /// Applies one frame that lies at `place`.
    pub(super) fn apply(
        &mut self,
        header: &FrameHeader,
        payload: &[u8],
        place: Place,
        now: Now,
    ) -> Result<(), Malformed> {
        let id = header.message;
        match header.kind {
            Kind::Content | Kind::Void | Kind::Skip | Kind::Pulse | Kind::Seal => Ok(()),
            Kind::Envelope => {
                let facts = record::envelope_facts(payload)?;
                let count = usize::try_from(facts.recipients).map_err(|_| Malformed("envelope"))?;
                if facts.drop_mark != 0 {
                    self.add_drop_mark(facts.drop_mark, id);
                }
                let (bytes_here, elsewhere) = record::content_places(payload, place.segment)?;
                let entry = Entry {
                    envelope: place,
                    is_relocated: false,
                    bytes_here,
                    elsewhere,
                    due: now.monotonic,
                    is_held: facts.is_quarantined,
                    has_warned: false,
                    recipients: vec![RecipientEntry::NEW; count],
                    expansions: Vec::new(),
                    hold: None,
                };
                self.insert(id, &entry)
            }
            Kind::Relocation => self.apply_relocation(id, payload, place, now),
            Kind::Expansion => self.apply_expansion(id, payload, place),
            Kind::Outcome => self.apply_outcome(id, payload, place, now),
            Kind::Hold => {
                let is_held = record::decode_hold(payload)?.is_held;
                let Some(slot) = self.slot(id) else {
                    return Ok(());
                };
                let bad = Malformed("index");
                let old = self.extra_mut(slot).ok_or(bad)?.hold.replace(place);
                self.packed.get_mut(slot).ok_or(bad)?.set(HELD, is_held);
                self.pin(place.segment, place.bytes());
                if let Some(old) = old {
                    self.unpin(old.segment, old.bytes());
                }
                if is_held {
                    self.wheel.remove(slot);
                } else {
                    self.make_due(slot);
                }
                Ok(())
            }
            Kind::Removal => {
                self.take_out(id);
                Ok(())
            }
        }
    }

    /// The whole state of a message, at its new place. It makes the message if it is not there: where the older
    /// records are gone or damaged, this one stands for them.
    fn apply_relocation(
        &mut self,
        id: MessageId,
        payload: &[u8],
        place: Place,
        now: Now,
    ) -> Result<(), Malformed> {
        let facts = record::relocation_facts(payload)?;
        let (bytes_here, elsewhere) = record::content_places(payload, place.segment)?;
        // A queue run may have moved the due time since the record was made.
        let due = self
            .slot(id)
            .and_then(|slot| self.packed.get(slot))
            .map_or_else(
                || self.due_from_wall(facts.due_unix_ms, now),
                |packed| Duration::from_millis(packed.due),
            );
        let recipients = facts.recipients.iter().map(|recipient| RecipientEntry {
            standing: recipient.standing,
            tries: recipient.tries,
            last: if recipient.has_outcome {
                Last::Relocated
            } else {
                Last::Nowhere
            },
        });
        let entry = Entry {
            envelope: place,
            is_relocated: true,
            bytes_here,
            elsewhere,
            due,
            is_held: facts.is_held,
            has_warned: facts.has_warned,
            recipients: recipients.collect(),
            expansions: Vec::new(),
            hold: None,
        };
        self.insert(id, &entry)
    }

    fn apply_expansion(
        &mut self,
        id: MessageId,
        payload: &[u8],
        place: Place,
    ) -> Result<(), Malformed> {
        let (parent, first_child, count) = record::expansion_facts(payload)?;
        let bad = Malformed("expansion");
        let Some(slot) = self.slot(id) else {
            return Ok(());
        };
        let extra = self.extra_mut(slot).ok_or(bad)?;
        let first = usize::try_from(first_child).map_err(|_| bad)?;
        if first < extra.recipients.len() {
            // Applied before. A start writes a last batch again that was not proven: from then on only the copy counts,
            // as the power may take the place it was read from.
            #[cfg(test)]
            if seeded(Fault::OldPlaceKept) {
                return Ok(());
            }
            let mut known = extra.expansions.iter_mut();
            if let Some(known) = known.find(|known| first > 0 && known.first_child == first_child) {
                let old = std::mem::replace(&mut known.place, place);
                self.pin(place.segment, place.bytes());
                self.unpin(old.segment, old.bytes());
            }
            return Ok(());
        }
        if first > extra.recipients.len() {
            return Err(bad);
        }
        let at = usize::try_from(parent.0).map_err(|_| bad)?;
        let old = {
            let parent = extra.recipients.get_mut(at).ok_or(bad)?;
            let old = parent.recipient();
            let expanded = RecipientEntry {
                standing: Standing::Expanded,
                last: Last::Nowhere,
                ..old
            };
            *parent = PackedRecipient::pack(&expanded).ok_or(bad)?;
            old
        };
        let count = usize::try_from(count).map_err(|_| bad)?;
        let new = PackedRecipient::pack(&RecipientEntry::NEW).ok_or(bad)?;
        extra.recipients.resize(first + count, new);
        extra.expansions.push(ExpansionPlace { place, first_child });
        self.pin(place.segment, place.bytes());
        if let Some(last) = old.place() {
            self.unpin(last.segment, last.bytes());
        }
        Ok(())
    }

    fn apply_outcome(
        &mut self,
        id: MessageId,
        payload: &[u8],
        place: Place,
        now: Now,
    ) -> Result<(), Malformed> {
        let facts = record::outcome_facts(payload)?;
        let bad = Malformed("outcome");
        let due = millis(self.due_from_wall(facts.next_due_unix_ms, now));
        let Some(slot) = self.slot(id) else {
            return Ok(());
        };
        let RecipientId(at) = facts.recipient;
        let at = usize::try_from(at).map_err(|_| bad)?;
        let standing = match facts.result {
            Delivery::Delivered => Standing::Delivered,
            Delivery::Failed => Standing::Failed,
            Delivery::Deferred => Standing::Pending,
        };
        let is_pending = standing == Standing::Pending;
        let new = PackedRecipient::pack(&RecipientEntry {
            standing,
            tries: facts.tries,
            last: if is_pending {
                Last::At(place)
            } else {
                Last::Nowhere
            },
        })
        .ok_or(bad)?;
        let packed = self.packed.get_mut(slot).ok_or(bad)?;
        let old = if packed.extra == NO_SLOT {
            let recipient = Some(&mut packed.recipient).filter(|_| at == 0);
            std::mem::replace(recipient.ok_or(bad)?, new)
        } else {
            let extra = self.extra_mut(slot).ok_or(bad)?;
            std::mem::replace(extra.recipients.get_mut(at).ok_or(bad)?, new)
        };
        let packed = self.packed.get_mut(slot).ok_or(bad)?;
        if facts.has_warned {
            packed.set(WARNED, true);
        }
        // An outcome that is written again only because its segment is emptied says nothing new, and a queue run may
        // have moved the due time since.
        let is_again = old.recipient().tries == facts.tries && old.recipient().place().is_some();
        if is_pending && !is_again {
            packed.due = due;
        }
        if self.wheel.remove(slot) {
            self.make_due(slot);
        }
        if is_pending {
            self.pin(place.segment, place.bytes());
        }
        if let Some(old) = old.recipient().place() {
            self.unpin(old.segment, old.bytes());
        }
        Ok(())
    }

    /// Keeps a message back because its bytes are damaged; in memory, as recovery finds the damage again.
    pub(super) fn hold_damaged(&mut self, id: MessageId) -> bool {
        let Some(slot) = self.slot(id) else {
            return false;
        };
        if let Some(packed) = self.packed.get_mut(slot) {
            packed.set(HELD, true);
        }
        self.wheel.remove(slot);
        true
    }

    /// The message of an absorbed drop file, if that mark is known.
    pub(super) fn absorbed(&self, mark: u64) -> Option<MessageId> {
        self.drop_marks.get(&mark).copied()
    }

    /// Forgets a mark once the removal of its drop file is durable; its message may then be attempted.
    pub(super) fn forget_drop_mark(&mut self, mark: u64) {
        if let Some(id) = self.drop_marks.remove(&mark) {
            self.parked.remove(&id);
            if let Some(slot) = self.slot(id) {
                self.make_due(slot);
            }
        }
    }

    pub(super) fn drop_marks(&self) -> impl Iterator<Item = (u64, MessageId)> + '_ {
        self.drop_marks.iter().map(|(mark, id)| (*mark, *id))
    }

    pub(super) fn add_drop_mark(&mut self, mark: u64, id: MessageId) {
        self.drop_marks.insert(mark, id);
        self.parked.insert(id);
        if let Some(slot) = self.slot(id) {
            self.wheel.remove(slot);
        }
    }

    /// Whether the message waits for the removal of its drop file.
    pub(super) fn is_parked(&self, id: MessageId) -> bool {
        self.parked.contains(&id)
    }

    /// When the next message is due, or the next lease ends; may be early for what is over a minute ahead.
    pub(super) fn next_due(&self) -> Option<Duration> {
        let due = self.wheel.next().map(Duration::from_millis);
        let deadline = self.deadlines.first().map(|(deadline, _)| *deadline);
        match (due, deadline) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Claims the message that has been due longest.
    pub(super) fn claim_due(
        &mut self,
        now: Duration,
        held_for: Duration,
    ) -> Option<(MessageId, u64)> {
        self.end_overdue_claims(now);
        let Self { wheel, packed, .. } = self;
        wheel.advance(millis(now), |slot| {
            packed.get(slot).map_or(0, |packed| packed.due)
        });
        while let Some(slot) = self.wheel.first_ready() {
            let id = self.packed.get(slot)?.id;
            if let Some(epoch) = self.claim(id, now, held_for, Held::LeftAlone) {
                return Some((id, epoch));
            }
            // Kept back: what ends that puts it in again. It must not keep back the others.
            self.wheel.remove(slot);
        }
        None
    }

    /// Claims a message, due or not, unless it is claimed, or held where that counts.
    pub(super) fn claim(
        &mut self,
        id: MessageId,
        now: Duration,
        held_for: Duration,
        held: Held,
    ) -> Option<u64> {
        self.end_overdue_claims(now);
        let slot = self.slot(id)?;
        let is_kept_back = self.packed.get(slot)?.has(HELD) && held == Held::LeftAlone;
        if is_kept_back || self.claims.contains_key(&id) || self.parked.contains(&id) {
            return None;
        }
        self.wheel.remove(slot);
        self.next_epoch += 1;
        let claim = Claim {
            epoch: self.next_epoch,
            deadline: now + held_for,
            stage: Stage::UnderWay,
        };
        self.claims.insert(id, claim);
        self.deadlines.insert((claim.deadline, id));
        Some(claim.epoch)
    }

    fn end_overdue_claims(&mut self, now: Duration) {
        while let Some((deadline, id)) = self
            .deadlines
            .first()
            .copied()
            .filter(|(deadline, _)| *deadline <= now)
        {
            self.deadlines.remove(&(deadline, id));
            if let Some(claim) = self
                .claims
                .get(&id)
                .copied()
                .filter(|claim| claim.deadline == deadline)
            {
                self.end_claim(id, claim.epoch);
            }
        }
    }

    /// Whether this claim still stands: an attempt whose lease has passed to another may record nothing.
    pub(super) fn is_claimed(&self, id: MessageId, epoch: u64) -> bool {
        self.claims
            .get(&id)
            .is_some_and(|claim| claim.epoch == epoch)
    }

    pub(super) fn is_leased(&self, id: MessageId) -> bool {
        self.claims.contains_key(&id)
    }

    /// Ends a claim and makes the message due again at its due time.
    pub(super) fn end_claim(&mut self, id: MessageId, epoch: u64) {
        if !self.is_claimed(id, epoch) {
            return;
        }
        let claim = self.claims.remove(&id);
        if let Some(claim) = claim {
            self.deadlines.remove(&(claim.deadline, id));
        }
        if let Some(slot) = self.slot(id) {
            if let Some(Stage::RunAgain(at)) = claim.map(|claim| claim.stage)
                && let Some(packed) = self.packed.get_mut(slot)
            {
                packed.due = packed.due.min(at);
            }
            self.make_due(slot);
        }
    }

    /// The attempt under this claim is over, and its record on the way.
    pub(super) fn end_attempt(&mut self, id: MessageId, epoch: u64) {
        if let Some(claim) = self
            .claims
            .get_mut(&id)
            .filter(|claim| claim.epoch == epoch)
        {
            claim.stage = Stage::Recording;
        }
    }

    /// Whether a claim stands on the message and only the record of its attempt is to come.
    pub(super) fn is_being_recorded(&self, id: MessageId) -> bool {
        self.claims
            .get(&id)
            .is_some_and(|claim| claim.stage != Stage::UnderWay)
    }

    /// Makes messages due now; those whose attempt is over and not yet recorded, when it is.
    pub(super) fn run_now(
        &mut self,
        now: Duration,
        select: &mut dyn FnMut(MessageId) -> bool,
    ) -> u64 {
        let now = millis(now);
        let mut selected = Vec::new();
        for slot in &self.by_id {
            if let Some(packed) = self.packed.get(*slot)
                && !packed.has(HELD)
                && self.has_pending(packed)
                && select(packed.id)
            {
                selected.push(*slot);
            }
        }
        for slot in &selected {
            if let Some(packed) = self.packed.get(*slot)
                && let Some(claim) = self.claims.get_mut(&packed.id)
                && claim.stage == Stage::Recording
            {
                claim.stage = Stage::RunAgain(now);
            }
            if self
                .packed
                .get(*slot)
                .is_none_or(|packed| packed.due <= now)
            {
                continue;
            }
            if let Some(packed) = self.packed.get_mut(*slot) {
                packed.due = now;
            }
            if self.wheel.remove(*slot) {
                self.wheel.insert(*slot, now);
            }
        }
        selected.len() as u64
    }

    fn has_pending(&self, packed: &Packed) -> bool {
        let is_pending = |recipient: &PackedRecipient| recipient.standing() == Standing::Pending;
        match self.extra(packed) {
            None => is_pending(&packed.recipient),
            Some(extra) => extra.recipients.iter().any(is_pending),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::ReversePath;
    use crate::envelope::{Envelope, Outcome, Recipient};
    use crate::status::Status;

    const NOW: Now = Now {
        unix_ms: 1_000_000,
        monotonic: Duration::from_secs(10),
    };

    fn header(kind: Kind, id: u64) -> FrameHeader {
        FrameHeader {
            kind,
            ordinal: 0,
            length: 0,
            message: MessageId::from_number(id),
            transaction: 0,
            payload_crc: 0,
        }
    }

    fn at(segment: u64) -> Place {
        Place {
            segment,
            offset: 8192,
            length: 1,
        }
    }

    fn accept(index: &mut Index, id: u64, segment: u64) {
        let mut payload = record::encode_envelope(
            &Envelope::new(ReversePath::Null, vec![Recipient::new("bob")]),
            0,
        );
        record::append_extents(&mut payload, 0, &[]);
        index
            .apply(&header(Kind::Envelope, id), &payload, at(segment), NOW)
            .unwrap();
    }

    fn deferred(next_due_unix_ms: u64) -> Vec<u8> {
        record::encode_outcome(&record::OutcomeRecord {
            recipient: RecipientId(0),
            tries: 1,
            next_due_unix_ms,
            has_warned: false,
            outcome: Outcome::new(
                Delivery::Deferred,
                Status::new(4, 0, 0),
                "local",
                "Deferred",
            ),
        })
    }

    #[test]
    fn a_lease_that_passed_on_is_no_longer_valid() {
        let mut index = Index::new(Duration::from_secs(3600));
        accept(&mut index, 1, 1);
        let (id, first) = index
            .claim_due(NOW.monotonic, Duration::from_secs(5))
            .unwrap();
        assert!(
            index
                .claim_due(NOW.monotonic, Duration::from_secs(5))
                .is_none()
        );
        let later = NOW.monotonic + Duration::from_secs(5);
        let (_, second) = index.claim_due(later, Duration::from_secs(5)).unwrap();
        assert!(!index.is_claimed(id, first));
        assert!(index.is_claimed(id, second));
        index.end_claim(id, first);
        assert!(
            index.is_leased(id),
            "the old lease must not end the new one"
        );
    }

    #[test]
    fn segments_stay_pinned_by_live_records_only() {
        let mut index = Index::new(Duration::from_secs(3600));
        accept(&mut index, 1, 1);
        index
            .apply(&header(Kind::Outcome, 1), &deferred(2_000_000), at(2), NOW)
            .unwrap();
        index
            .apply(&header(Kind::Outcome, 1), &deferred(3_000_000), at(3), NOW)
            .unwrap();
        let is_pinned = |index: &Index, segment| index.pinned(segment).is_some();
        assert!(is_pinned(&index, 1) && !is_pinned(&index, 2) && is_pinned(&index, 3));
        index
            .apply(&header(Kind::Removal, 1), &[], at(4), NOW)
            .unwrap();
        assert!(!is_pinned(&index, 1) && !is_pinned(&index, 3));
        assert_eq!(index.len(), 0);
    }

    #[test]
    fn due_times_far_ahead_are_clamped_and_a_queue_run_makes_all_due() {
        let mut index = Index::new(Duration::from_secs(60));
        accept(&mut index, 1, 1);
        index
            .apply(&header(Kind::Outcome, 1), &deferred(u64::MAX), at(2), NOW)
            .unwrap();
        let due = index.get(MessageId::from_number(1)).unwrap().due;
        assert_eq!(due, NOW.monotonic + Duration::from_secs(60));
        let next = index.next_due().unwrap();
        assert!(next > NOW.monotonic && next <= due, "{next:?}");
        assert_eq!(index.run_now(NOW.monotonic, &mut |_| true), 1);
        assert!(
            index
                .claim_due(NOW.monotonic, Duration::from_secs(1))
                .is_some()
        );
    }

    #[test]
    fn applying_twice_changes_nothing() {
        let mut index = Index::new(Duration::from_secs(60));
        for _ in 0..2 {
            accept(&mut index, 1, 1);
            let expansion = record::encode_expansion(&record::ExpansionRecord {
                parent: RecipientId(0),
                first_child: 1,
                children: vec![Recipient::new("a"), Recipient::new("b")],
            });
            for _ in 0..2 {
                index
                    .apply(&header(Kind::Expansion, 1), &expansion, at(2), NOW)
                    .unwrap();
            }
            let entry = index.get(MessageId::from_number(1)).unwrap();
            assert_eq!(entry.recipients.len(), 3);
            assert_eq!(entry.recipients[0].standing, Standing::Expanded);
        }
    }
}
