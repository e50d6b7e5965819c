//! Reclaiming space: what lives long is moved out of segments in which little else lives (SPOOL 8).
//!
//! Most mail lives less than a second, a little of it for days. A sealed segment that has rested long enough and of which
//! less than a share lives is emptied: its messages are written again, each as one [`Kind::Relocation`] with all that has
//! become of it, into the open segment of the next generation, where they are among their like. Of a message of which
//! only the last outcome lies there, only that is written again. What is left behind is dead, and recycled as any dead segment.
//!
//! A relocation is an ordinary transaction in a batch of its own: it takes effect when its batch is durable and not before
//! (S8), and the writer drops it if the message has changed meanwhile. It is driven by the keeper, a bounded number of bytes a
//! second, and gives way to whoever else commits. A message that can't be read stays where it is.
//!
//! Blocks: disk, reading. Memory: [`QUEUE_BYTES_MAX`] and one chunk.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::content::{self, ContentReader};
use super::format::{Kind, SegmentNumber};
use super::index::{Entry, Index, Last};
use super::record::{self, RelocationRecord};
use super::segment::{GENERATIONS, Generation, Segment};
use super::transaction::{Commit, FrameIn, Reception, Submission, TicketState};
use super::{Inner, SpoolError, lock};
use crate::envelope::MessageId;

/// Most bytes that wait for the writer on account of relocation.
const QUEUE_BYTES_MAX: u64 = 2 << 20;
/// Unused budget is kept for so long.
const BUDGET_KEPT: Duration = Duration::from_secs(1);
/// Below the reserve of space, segments are emptied at once of which less than this share lives, in per cent.
const PRESSED_SHARE: u64 = 80;

/// A segment is not emptied a second time before so long.
const AGAIN_AFTER: Duration = Duration::from_secs(10);

/// What is being moved.
#[derive(Default)]
pub(super) struct Reclaim {
    /// The segment being emptied, and what it holds that has still to be moved.
    victim: Option<Arc<Segment>>,
    todo: VecDeque<MessageId>,
    moving: Option<Moving>,
    /// Bytes that may be moved now.
    budget: u64,
    budget_at: Duration,
    /// Segments that were emptied as far as could be, and when: not looked at again before they have rested once more.
    emptied: BTreeMap<SegmentNumber, Duration>,
}

/// One message on its way.
struct Moving {
    id: MessageId,
    entry: Entry,
    content: ContentReader,
    reception: Arc<Reception>,
}

impl Reclaim {
    /// Moves as much as the budget allows. Whether there is more to be moved. Blocks: disk, reading.
    pub(super) fn step(&mut self, inner: &Arc<Inner>) -> bool {
        let now = inner.clock.monotonic();
        let rate = inner.options.relocation_rate;
        let since = now.saturating_sub(self.budget_at).min(BUDGET_KEPT);
        let earned = u128::from(rate) * since.as_millis() / 1000;
        self.budget = self
            .budget
            .saturating_add(u64::try_from(earned).unwrap_or(u64::MAX))
            .min(rate);
        self.budget_at = now;
        let is_pressed = inner.is_full.load(Ordering::Relaxed);
        if is_pressed || rate == u64::MAX {
            self.budget = u64::MAX;
        }
        loop {
            if self.moving.is_none() && self.todo.is_empty() {
                if let Some(done) = self.victim.take() {
                    self.emptied.insert(done.number, now);
                }
                let Some(victim) = self.choose(inner, now, is_pressed) else {
                    return false;
                };
                let snapshot = lock(&inner.index).snapshot();
                let number = victim.number;
                self.todo = snapshot.living_in(&|segment| segment == number).into();
                self.victim = Some(victim);
            }
            if self.budget == 0 || lock(&inner.waiting).relocation_bytes >= QUEUE_BYTES_MAX {
                return true;
            }
            let moved = self.move_some(inner);
            self.budget = self.budget.saturating_sub(moved);
        }
    }

    /// The segment with most dead bytes of those that may be emptied.
    fn choose(&mut self, inner: &Inner, now: Duration, is_pressed: bool) -> Option<Arc<Segment>> {
        let fates = inner.segments.fates();
        self.emptied
            .retain(|number, _| fates.iter().any(|(segment, _)| segment.number == *number));
        let share = if is_pressed {
            PRESSED_SHARE
        } else {
            inner.options.relocation_share
        };
        let index = lock(&inner.index);
        let mut candidates = Vec::new();
        for (segment, fate) in &fates {
            let rest = inner
                .options
                .relocation_rest
                .get(segment.generation)
                .copied()
                .unwrap_or_default();
            let has_rested = match self.emptied.get(&segment.number) {
                // What was handed over may not be written yet, and what could not be moved is no better now.
                Some(emptied) => now.saturating_sub(*emptied) >= rest.max(AGAIN_AFTER),
                None => is_pressed || now.saturating_sub(fate.sealed_at) >= rest,
            };
            if !fate.is_sealed || fate.is_quarantined || !has_rested {
                continue;
            }
            let Some(live) = index.pinned(segment.number).filter(|pin| pin.bytes > 0) else {
                continue;
            };
            if live.bytes.saturating_mul(100) < segment.capacity.saturating_mul(share) {
                candidates.push((segment.capacity - live.bytes, segment));
            }
        }
        drop(index);
        // A file of its own for what one segment holds would gain nothing.
        let is_open = |generation: Generation| {
            fates
                .iter()
                .any(|(segment, fate)| segment.generation == generation && !fate.is_sealed)
        };
        let (_, best) = candidates.iter().max_by_key(|(dead, _)| *dead)?;
        (candidates.len() > 1 || is_open(next_generation(best))).then(|| Arc::clone(best))
    }

    /// Moves the next chunk, or begins or ends a message. How many bytes were handed over.
    fn move_some(&mut self, inner: &Arc<Inner>) -> u64 {
        let Some(mut moving) = self.moving.take() else {
            return self.begin(inner);
        };
        let Ok(chunk) = moving.content.next_chunk() else {
            // It stays where it is; whoever reads it next reports it.
            return self.give_up(inner, &moving);
        };
        if !chunk.is_empty() {
            let bytes = chunk.len() as u64;
            let frame = FrameIn::new(Kind::Content, moving.id, chunk);
            let reception = Arc::clone(&moving.reception);
            if inner
                .submit(Submission::Chunk { reception, frame })
                .is_err()
            {
                return self.give_up(inner, &moving);
            }
            self.moving = Some(moving);
            return bytes;
        }
        match self.end(inner, &moving) {
            Ok(bytes) => bytes,
            Err(_) => self.give_up(inner, &moving),
        }
    }

    fn give_up(&self, inner: &Arc<Inner>, moving: &Moving) -> u64 {
        inner.abandon(&moving.reception);
        0
    }

    /// Begins with the next message that is still there and may be moved. How many bytes were handed over.
    fn begin(&mut self, inner: &Arc<Inner>) -> u64 {
        let (Some(victim), Some(id)) = (self.victim.clone(), self.todo.pop_front()) else {
            return 0;
        };
        let generation = next_generation(&victim);
        let entry = {
            let index = lock(&inner.index);
            // What waits for the removal of its drop file has its mark in its Envelope.
            index.get(id).filter(|_| !index.is_parked(id))
        };
        let Some(entry) = entry else { return 0 };
        if entry.has_only_outcomes_in(victim.number) {
            return renew_outcomes(inner, id, &entry, victim.number, generation).unwrap_or(0);
        }
        let Ok(content) = ContentReader::open(&|n| inner.segments.get(n), id, &entry) else {
            return 0;
        };
        self.moving = Some(Moving {
            id,
            entry,
            content,
            reception: Arc::new(Reception {
                generation,
                ..Reception::default()
            }),
        });
        0
    }

    /// Hands over the Relocation itself.
    fn end(&self, inner: &Arc<Inner>, moving: &Moving) -> Result<u64, SpoolError> {
        let entry = &moving.entry;
        let records = content::records(&|n| inner.segments.get(n), moving.id, entry)?;
        let envelope = record::without_extents(&records.envelope)
            .map_err(|_| SpoolError::NotFound(moving.id))?
            .to_vec();
        let states = entry.recipients.iter().zip(records.outcomes);
        let record = RelocationRecord {
            is_held: entry.is_held,
            has_warned: entry.has_warned,
            due_unix_ms: Index::due_to_wall(entry.due, inner.now()),
            recipients: states
                .map(|(recipient, outcome)| {
                    let kept = outcome.filter(|_| recipient.last != Last::Nowhere);
                    (recipient.standing, recipient.tries, kept)
                })
                .collect(),
            expansions: records.expansions,
            hold: records.hold,
            envelope,
        };
        let payload = record::encode_relocation(&record);
        let bytes = payload.len() as u64;
        let commit = Commit {
            reception: Some(Arc::clone(&moving.reception)),
            ticket: TicketState::new(moving.id),
            moved_from: Some(Box::new(entry.clone())),
            generation: moving.reception.generation,
            ..Commit::internal(vec![FrameIn::new(Kind::Relocation, moving.id, payload)])
        };
        // Nobody waits: if it is dropped, the message is moved another time.
        drop(inner.submit_commit(commit));
        Ok(bytes)
    }
}

/// Writes again the last outcomes that lie in a segment, and nothing else: a message that is deferred every hour leaves one
/// an hour, and must not be moved for each. The record says what it said before, so applying it changes its place alone.
fn renew_outcomes(
    inner: &Arc<Inner>,
    id: MessageId,
    entry: &Entry,
    segment: SegmentNumber,
    generation: Generation,
) -> Result<u64, SpoolError> {
    let mut frames = Vec::new();
    for recipient in &entry.recipients {
        if let Some(place) = recipient.place().filter(|place| place.segment == segment) {
            let payload = content::outcome(&|n| inner.segments.get(n), id, place)?;
            frames.push(FrameIn::new(Kind::Outcome, id, payload));
        }
    }
    let bytes = frames.iter().map(|frame| frame.payload.len() as u64).sum();
    drop(inner.submit_commit(Commit {
        ticket: TicketState::new(id),
        moved_from: Some(Box::new(entry.clone())),
        generation,
        ..Commit::internal(frames)
    }));
    Ok(bytes)
}

fn next_generation(segment: &Segment) -> Generation {
    (segment.generation + 1).min(GENERATIONS - 1)
}
