//! The live messages in memory: where their records lie, where their recipients stand, what is due when.
//!
//! The index changes only by applying frames, in Lsn order, the same way whether the writer has just made them
//! durable or recovery reads them back; applying a frame twice changes nothing (S9). Besides, it keeps what a crash
//! may forget: leases, and due times moved by a queue run. Due times are kept on the monotonic clock, so that a step
//! of the wall clock moves nothing (S12). Never blocks; the owner guards it with a lock.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::time::Duration;

use super::format::{BatchNumber, FrameHeader, Kind, Lsn, SegmentNumber};
use super::record::{self, Malformed};
use crate::envelope::{Delivery, MessageId, RecipientId};

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

/// Where a frame's header lies, and how long its payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) segment: SegmentNumber,
    pub(super) offset: u64,
    pub(super) length: u32,
}

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) unix_ms: u64,
    pub(super) monotonic: Duration,
}

/// Where a recipient stands, without the text of its last outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Pending,
    Expanded,
    Delivered,
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecipientEntry {
    pub(super) standing: Standing,
    pub(super) tries: u32,
    pub(super) last: Option<Place>,
}

impl RecipientEntry {
    const NEW: Self = Self {
        standing: Standing::Pending,
        tries: 0,
        last: None,
    };
}

/// A live message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) envelope: Place,
    /// The lowest segment that holds a chunk of the content.
    pub(super) first_segment: SegmentNumber,
    pub(super) content_bytes: u64,
    /// On the monotonic clock.
    pub(super) due: Duration,
    pub(super) is_held: bool,
    pub(super) has_warned: bool,
    pub(super) recipients: Vec<RecipientEntry>,
    pub(super) expansions: Vec<Place>,
    pub(super) hold: Option<Place>,
}

impl Entry {
    fn has_pending(&self) -> bool {
        self.recipients
            .iter()
            .any(|r| r.standing == Standing::Pending)
    }
}

#[derive(Debug, Clone, Copy)]
struct Claim {
    epoch: u64,
    deadline: Duration,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Index {
    entries: NumberMap<MessageId, Entry>,
    due: BTreeSet<(Duration, MessageId)>,
    claims: NumberMap<MessageId, Claim>,
    deadlines: BTreeSet<(Duration, MessageId)>,
    next_epoch: u64,
    /// How many live things lie in each segment.
    pins: NumberMap<SegmentNumber, u64>,
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

impl Index {
    pub(super) fn new(due_ahead_max: Duration) -> Self {
        Self {
            due_ahead_max,
            ..Self::default()
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    pub(super) fn get(&self, id: MessageId) -> Option<&Entry> {
        self.entries.get(&id)
    }

    pub(super) fn ids(&self) -> Vec<MessageId> {
        let mut ids: Vec<_> = self.entries.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (MessageId, &Entry)> {
        self.entries.iter().map(|(id, entry)| (*id, entry))
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
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        now.unix_ms
            .saturating_add(ms(ahead))
            .saturating_sub(ms(behind))
    }

    pub(super) fn pin(&mut self, segment: SegmentNumber) {
        *self.pins.entry(segment).or_insert(0) += 1;
    }

    pub(super) fn unpin(&mut self, segment: SegmentNumber) {
        if let Some(count) = self.pins.get_mut(&segment) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.pins.remove(&segment);
            }
        }
    }

    pub(super) fn is_pinned(&self, segment: SegmentNumber) -> bool {
        self.pins.contains_key(&segment)
    }

    fn pin_entry(&mut self, entry: &Entry) {
        for segment in entry.first_segment..=entry.envelope.segment {
            self.pin(segment);
        }
        for place in entry.places() {
            self.pin(place.segment);
        }
    }

    fn unpin_entry(&mut self, entry: &Entry) {
        for segment in entry.first_segment..=entry.envelope.segment {
            self.unpin(segment);
        }
        for place in entry.places() {
            self.unpin(place.segment);
        }
    }

    /// Puts an entry in, replacing one of the same id.
    pub(super) fn insert(&mut self, id: MessageId, entry: Entry) {
        self.take_out(id);
        self.pin_entry(&entry);
        self.entries.insert(id, entry);
        self.make_due(id);
    }

    /// Puts a message among the due ones, at its due time, unless something keeps it back.
    fn make_due(&mut self, id: MessageId) {
        if let Some(entry) = self.entries.get(&id)
            && !entry.is_held
            && !self.claims.contains_key(&id)
            && !self.parked.contains(&id)
        {
            self.due.insert((entry.due, id));
        }
    }

    fn take_out(&mut self, id: MessageId) {
        if let Some(old) = self.entries.remove(&id) {
            self.due.remove(&(old.due, id));
            self.unpin_entry(&old);
        }
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
            Kind::Content | Kind::Void | Kind::Pulse | Kind::Seal | Kind::Relocation => Ok(()),
            Kind::Envelope => {
                let facts = record::envelope_facts(payload)?;
                let count = usize::try_from(facts.recipients).map_err(|_| Malformed("envelope"))?;
                if facts.drop_mark != 0 {
                    self.add_drop_mark(facts.drop_mark, id);
                }
                self.insert(
                    id,
                    Entry {
                        envelope: place,
                        first_segment: facts
                            .first_segment
                            .unwrap_or(place.segment)
                            .min(place.segment),
                        content_bytes: facts.content_bytes,
                        due: now.monotonic,
                        is_held: facts.is_quarantined,
                        has_warned: false,
                        recipients: vec![RecipientEntry::NEW; count],
                        expansions: Vec::new(),
                        hold: None,
                    },
                );
                Ok(())
            }
            Kind::Expansion => {
                let (parent, first_child, count) = record::expansion_facts(payload)?;
                let bad = Malformed("expansion");
                let Some(entry) = self.entries.get_mut(&id) else {
                    return Ok(());
                };
                let first = usize::try_from(first_child).map_err(|_| bad)?;
                if first < entry.recipients.len() {
                    return Ok(()); // Applied before.
                }
                if first > entry.recipients.len() {
                    return Err(bad);
                }
                let at = usize::try_from(parent.0).map_err(|_| bad)?;
                let last = {
                    let parent = entry.recipients.get_mut(at).ok_or(bad)?;
                    parent.standing = Standing::Expanded;
                    parent.last.take()
                };
                let count = usize::try_from(count).map_err(|_| bad)?;
                entry.recipients.resize(first + count, RecipientEntry::NEW);
                entry.expansions.push(place);
                self.pin(place.segment);
                if let Some(last) = last {
                    self.unpin(last.segment);
                }
                Ok(())
            }
            Kind::Outcome => self.apply_outcome(id, payload, place, now),
            Kind::Hold => {
                let (is_held, _) = record::decode_hold(payload)?;
                let Some(entry) = self.entries.get_mut(&id) else {
                    return Ok(());
                };
                entry.is_held = is_held;
                let (old, due) = (entry.hold.replace(place), entry.due);
                self.pin(place.segment);
                if let Some(old) = old {
                    self.unpin(old.segment);
                }
                if is_held {
                    self.due.remove(&(due, id));
                } else {
                    self.make_due(id);
                }
                Ok(())
            }
            Kind::Removal => {
                self.take_out(id);
                Ok(())
            }
        }
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
        let due = self.due_from_wall(facts.next_due_unix_ms, now);
        let Some(entry) = self.entries.get_mut(&id) else {
            return Ok(());
        };
        let RecipientId(at) = facts.recipient;
        let recipient = entry
            .recipients
            .get_mut(usize::try_from(at).map_err(|_| bad)?)
            .ok_or(bad)?;
        recipient.tries = facts.tries;
        recipient.standing = match facts.result {
            Delivery::Delivered => Standing::Delivered,
            Delivery::Failed => Standing::Failed,
            Delivery::Deferred => Standing::Pending,
        };
        let is_pending = recipient.standing == Standing::Pending;
        let old_last = std::mem::replace(&mut recipient.last, is_pending.then_some(place));
        entry.has_warned |= facts.has_warned;
        let old_due = entry.due;
        if is_pending {
            entry.due = due;
        }
        if self.due.remove(&(old_due, id)) {
            self.make_due(id);
        }
        if is_pending {
            self.pin(place.segment);
        }
        if let Some(old) = old_last {
            self.unpin(old.segment);
        }
        Ok(())
    }

    /// Keeps a message back because its bytes are damaged; in memory, as recovery finds the damage again.
    pub(super) fn hold_damaged(&mut self, id: MessageId) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else {
            return false;
        };
        entry.is_held = true;
        let due = entry.due;
        self.due.remove(&(due, id));
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
            self.make_due(id);
        }
    }

    pub(super) fn drop_marks(&self) -> impl Iterator<Item = (u64, MessageId)> + '_ {
        self.drop_marks.iter().map(|(mark, id)| (*mark, *id))
    }

    pub(super) fn add_drop_mark(&mut self, mark: u64, id: MessageId) {
        self.drop_marks.insert(mark, id);
        self.parked.insert(id);
        let due = self.entries.get(&id).map(|entry| entry.due);
        due.map(|due| self.due.remove(&(due, id)));
    }

    /// When the next message is due, or the next lease ends.
    pub(super) fn next_due(&self) -> Option<Duration> {
        let due = self.due.first().map(|(due, _)| *due);
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
        let (due, id) = *self.due.first()?;
        if due > now {
            return None;
        }
        self.claim(id, now, held_for).map(|epoch| (id, epoch))
    }

    /// Claims a message, due or not, unless it is held or claimed.
    pub(super) fn claim(
        &mut self,
        id: MessageId,
        now: Duration,
        held_for: Duration,
    ) -> Option<u64> {
        self.end_overdue_claims(now);
        let entry = self.entries.get(&id)?;
        if entry.is_held || self.claims.contains_key(&id) || self.parked.contains(&id) {
            return None;
        }
        self.due.remove(&(entry.due, id));
        self.next_epoch += 1;
        let claim = Claim {
            epoch: self.next_epoch,
            deadline: now + held_for,
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
        if let Some(claim) = self.claims.remove(&id) {
            self.deadlines.remove(&(claim.deadline, id));
        }
        self.make_due(id);
    }

    /// Makes messages due now.
    pub(super) fn run_now(
        &mut self,
        now: Duration,
        select: &mut dyn FnMut(MessageId) -> bool,
    ) -> u64 {
        let mut count = 0;
        for (id, entry) in &mut self.entries {
            if !entry.is_held && entry.has_pending() && select(*id) {
                count += 1;
                if entry.due > now {
                    if self.due.remove(&(entry.due, *id)) {
                        self.due.insert((now, *id));
                    }
                    entry.due = now;
                }
            }
        }
        count
    }
}

impl Entry {
    fn places(&self) -> impl Iterator<Item = Place> + '_ {
        self.expansions
            .iter()
            .copied()
            .chain(self.hold)
            .chain(self.recipients.iter().filter_map(|r| r.last))
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
        assert!(index.is_pinned(1) && !index.is_pinned(2) && index.is_pinned(3));
        index
            .apply(&header(Kind::Removal, 1), &[], at(4), NOW)
            .unwrap();
        assert!(!index.is_pinned(1) && !index.is_pinned(3));
        assert_eq!(index.len(), 0);
    }

    #[test]
    fn due_times_far_ahead_are_clamped_and_a_queue_run_makes_all_due() {
        let mut index = Index::new(Duration::from_secs(60));
        accept(&mut index, 1, 1);
        index
            .apply(&header(Kind::Outcome, 1), &deferred(u64::MAX), at(2), NOW)
            .unwrap();
        assert_eq!(
            index.next_due(),
            Some(NOW.monotonic + Duration::from_secs(60))
        );
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
