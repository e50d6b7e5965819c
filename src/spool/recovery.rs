//! From files to a live index: checkpoint, journal, and the rules that tell a torn tail from damage (SPOOL 6).
//!
//! [`load`] only reads; it serves the writing process and read-only listings alike. What it finds out about the last
//! batch: it counts for sure only if a later batch stands (one is written only after the sync of the one before) or a
//! checkpoint covers it. An unproven last batch counts if all of it checks, and the writing process writes it again
//! before that mail counts. Anything missing at or below the proven number, and not named by a Void, is damage; it is
//! reported and everything else is kept (S5, I4). Blocks: disk.
//!
//! What can't be read at all, be it a sector or a whole segment, keeps nothing else from working. Its batches are missing, and
//! remembered as not covered ([`Uncovered`]): a later start that finds them takes them.
//!
//! A start that could not read everything passes numbers over (Skip). Its first batch holds, besides, a copy of the last
//! batch that stood: it counts only if neither that one nor any that was passed over is found later.
//!
//! Voids need care: a batch written at a start says which earlier numbers are dead, but it may itself turn out to be
//! torn. So a batch that a Void names is kept aside until the one that holds the Void is proven.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::checkpoint::{self, Loaded};
#[cfg(test)]
use super::faults::Fault;
use super::format::{
    BLOCK_BYTES, BatchHeader, BatchNumber, FIRST_BATCH_OFFSET, FoundFrame, Kind, Lsn, Padding,
    SegmentNumber, decode_batch, field, round_to_block,
};
use super::index::{Index, Now, Place};
use super::record::{self, Extent};
use super::segment::{Segment, SegmentFate, number_in_name, open_segment};
use super::storage::Storage;
use super::transaction::FrameIn;
use super::uncovered::{Range, Uncovered, without};
use super::{RecoveryReport, SpoolError};
use crate::envelope::MessageId;

/// How the remark about a torn tail begins.
pub(super) const TORN: &str = "torn last batch";

/// Bytes read at once.
const READ_BYTES: usize = 1 << 20;

/// What the files say.
pub(super) struct Recovered {
    pub(super) index: Index,
    pub(super) spool_id: Option<[u8; 16]>,
    pub(super) segments: BTreeMap<SegmentNumber, (Arc<Segment>, SegmentFate)>,
    pub(super) spares: Vec<String>,
    /// A segment could not be opened.
    pub(super) unopened: Option<SpoolError>,
    /// Something could not be read that may hold batches behind all that were: their numbers are to be passed over.
    pub(super) has_unread: bool,
    /// Batch numbers that are missing, and what belongs to them.
    pub(super) uncovered: Uncovered,
    /// Numbers above `proven` of batches that stand, ascending: dead, each of them.
    pub(super) standing: Vec<BatchNumber>,
    /// Left-overs to be removed by the writing process.
    pub(super) temporaries: Vec<String>,
    pub(super) checkpoints: Vec<Lsn>,
    pub(super) checkpoint_bytes: u64,
    /// Bytes read beyond the checkpoint: each segment that may hold anything there is read from end to end.
    pub(super) replayed_bytes: u64,
    pub(super) next_segment: SegmentNumber,
    pub(super) next_lsn: Lsn,
    pub(super) next_id: u64,
    /// Batch numbers that are missing, first and last of each run.
    pub(super) missing: Vec<(BatchNumber, BatchNumber)>,
    /// Highest batch number that the checkpoint in use covers.
    pub(super) covered: BatchNumber,
    /// Highest batch number proven durable.
    pub(super) proven: BatchNumber,
    /// A number that no batch on disk can have.
    pub(super) next_batch: BatchNumber,
    /// Frames of a last batch that stood but is not proven, to be written again.
    pub(super) unproven: Vec<FrameIn>,
    pub(super) report: RecoveryReport,
}

/// A batch found standing, with its bytes.
struct Found {
    segment: SegmentNumber,
    offset: u64,
    header: BatchHeader,
    frames: Vec<FoundFrame>,
    padding: Padding,
    bytes: Vec<u8>,
}

impl Found {
    fn voids(&self) -> Vec<Range> {
        self.ranges(Kind::Void)
    }

    /// Whether everything in it is as it was written.
    fn is_whole(&self) -> bool {
        self.padding == Padding::Zero && self.frames.iter().all(|frame| self.checks(frame))
    }

    /// Whether it says that an earlier batch is dead: by a Void, or, if that one is not whole, by passing it over. It
    /// then holds a copy.
    fn ends(&self, old: &Self) -> bool {
        let number = old.header.number;
        covers(&self.voids(), number) || covers(&self.ranges(Kind::Skip), number) && !old.is_whole()
    }

    fn ranges(&self, kind: Kind) -> Vec<Range> {
        self.frames
            .iter()
            .filter(|frame| frame.header.kind == kind && self.checks(frame))
            .filter_map(|frame| record::decode_void(frame.payload(&self.bytes)).ok())
            .collect()
    }

    fn checks(&self, frame: &FoundFrame) -> bool {
        crc32fast::hash(frame.payload(&self.bytes)) == frame.header.payload_crc
    }

    fn place(&self, frame: &FoundFrame) -> Place {
        Place {
            segment: self.segment,
            offset: self.offset + frame.at as u64,
            length: frame.header.length,
        }
    }
}

fn covers(voids: &[Range], number: BatchNumber) -> bool {
    voids
        .iter()
        .any(|(first, last)| (*first..=*last).contains(&number))
}

/// Replays what is found, in the order it is found.
struct Replay {
    out: Recovered,
    now: Now,
    check: Check,
    /// Batches at or below this number are in the checkpoint.
    covered: BatchNumber,
    /// The last number accounted for.
    reached: Option<BatchNumber>,
    /// Not yet applied, in order; all but the last are named by a Void of a later one.
    aside: Vec<Found>,
    voids: Vec<Range>,
    /// A batch at or below `covered` that the checkpoint has not seen, until it is known whether the next says that it is
    /// dead; how many there were; and the messages that are there on their word alone.
    late: Option<Found>,
    late_batches: u64,
    late_messages: HashSet<MessageId>,
    damaged_messages: HashSet<MessageId>,
    /// Segments that are being read besides the one whose batch arrives.
    open_now: Vec<SegmentNumber>,
    /// Segment of the last batch applied.
    last_segment: Option<SegmentNumber>,
}

/// How much of the journal is verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    /// Every record.
    Everything,
    /// All but content, which is verified when it is read: enough to list a queue.
    AllButContent,
}

/// Reads checkpoint and journal. Writes nothing. Blocks: disk.
///
/// # Errors
/// [`SpoolError::Io`] only if the folder can't be listed; damage and unreadable files go into the report.
pub(super) fn load(
    storage: &dyn Storage,
    due_ahead_max: Duration,
    now: Now,
    check: Check,
) -> Result<Recovered, SpoolError> {
    let names = storage.list().map_err(|e| SpoolError::io("list", ".", e))?;
    let mut report = RecoveryReport::default();
    let mut loaded: Option<Loaded> = None;
    let mut checkpoints = Vec::new();
    let listed = checkpoint::names(&names);
    for (lsn, name) in &listed {
        // Only the newest that can be used is read into an index; the others are to be good when it no longer is.
        let found = match &loaded {
            None => checkpoint::load(storage, name, due_ahead_max, now).map(|found| {
                let covered = found.lsn;
                if covered == *lsn {
                    loaded = Some(found);
                }
                covered
            }),
            Some(_) => checkpoint::verify(storage, name),
        };
        match found {
            Ok(found) if found == *lsn => checkpoints.insert(0, *lsn),
            Ok(_) => report.damage(format!(
                "{name}: Lsn differs from the file's name; not used"
            )),
            Err(what) => report.damage(format!("{name}: {what}; not used")),
        }
    }
    let numbers = || {
        names
            .iter()
            .filter_map(|name| number_in_name(name, "segment-"))
    };
    let highest_name = numbers().max().unwrap_or(0);
    if loaded.is_none() && !listed.is_empty() {
        report.remark(
            "no checkpoint can be read: finished mail whose records are gone may be delivered again".to_owned(),
        );
    }
    let mut replay = Replay {
        out: Recovered {
            index: Index::new(due_ahead_max),
            spool_id: None,
            segments: BTreeMap::new(),
            unopened: None,
            has_unread: false,
            uncovered: Uncovered::default(),
            standing: Vec::new(),
            spares: names
                .iter()
                .filter(|n| number_in_name(n, "spare-").is_some())
                .cloned()
                .collect(),
            temporaries: names
                .iter()
                .filter(|n| n.starts_with("tmp-"))
                .cloned()
                .collect(),
            checkpoints,
            checkpoint_bytes: 0,
            replayed_bytes: 0,
            next_segment: highest_name + 1,
            next_lsn: 1,
            next_id: 0,
            missing: Vec::new(),
            covered: 0,
            proven: 0,
            next_batch: 1,
            unproven: Vec::new(),
            report,
        },
        now,
        check,
        covered: 0,
        reached: None,
        aside: Vec::new(),
        voids: Vec::new(),
        late: None,
        late_batches: 0,
        late_messages: HashSet::new(),
        damaged_messages: HashSet::new(),
        open_now: Vec::new(),
        last_segment: None,
    };
    let mut fates: BTreeMap<SegmentNumber, (u64, SegmentFate)> = BTreeMap::new();
    if let Some(loaded) = loaded {
        replay.covered = loaded.batch;
        replay.reached = Some(loaded.batch);
        let out = &mut replay.out;
        out.spool_id = Some(loaded.spool_id);
        out.checkpoint_bytes = loaded.bytes;
        out.next_segment = out.next_segment.max(loaded.next_segment);
        out.next_lsn = loaded.lsn + 1;
        out.next_id = loaded.next_id;
        out.covered = loaded.batch;
        out.proven = loaded.batch;
        out.next_batch = loaded.batch + 1;
        out.index = loaded.index;
        out.uncovered = loaded.uncovered;
        fates = loaded
            .segments
            .into_iter()
            .map(|(number, mark, fate)| (number, (mark, fate)))
            .collect();
    }
    let mut sorted: Vec<SegmentNumber> = numbers().collect();
    sorted.sort_unstable();
    let mut waiting = Vec::new();
    for number in sorted {
        waiting.extend(replay.segment(storage, number, fates.get(&number).copied()));
    }
    replay.merge(waiting);
    replay.finish();
    Ok(replay.out)
}

impl Replay {
    /// Takes note of a segment. A scan of it, with a lower bound of its batch numbers, if it has to be read.
    fn segment(
        &mut self,
        storage: &dyn Storage,
        number: SegmentNumber,
        known: Option<(u64, SegmentFate)>,
    ) -> Option<(BatchNumber, Scan)> {
        let name = super::segment::segment_name(number);
        let (segment, header, copy) = match open_segment(storage, &name, number) {
            Ok(Ok(found)) => found,
            Ok(Err(what)) => {
                self.out
                    .report
                    .damage(format!("{name}: {what}; its mail can't be read"));
                self.note_unread(number, known);
                return None;
            }
            Err(error) => {
                self.out
                    .report
                    .damage(format!("{name}: {error}; its mail can't be read"));
                self.out.unopened = Some(SpoolError::io("open", &name, error));
                self.note_unread(number, known);
                return None;
            }
        };
        if self.out.spool_id.is_some_and(|id| id != header.spool_id) {
            self.out
                .report
                .damage(format!("{name}: belongs to another spool; left alone"));
            return None;
        }
        if let Some(what) = copy {
            self.out
                .report
                .damage(format!("{name}: one copy of the header: {what}"));
        }
        self.out.spool_id = Some(header.spool_id);
        self.out.next_batch = self.out.next_batch.max(header.batch + 1);
        self.out.next_lsn = self.out.next_lsn.max(header.lsn + 1);
        let segment = Arc::new(segment);
        let known = known
            .filter(|(mark, _)| *mark == header.mark)
            .map(|(_, fate)| fate);
        // Nothing of an earlier life is ever written again: whatever is not the writer's new segment is sealed.
        let fate = SegmentFate {
            is_sealed: true,
            sealed_at: self.now.monotonic,
            ..known.unwrap_or_default()
        };
        self.out
            .segments
            .insert(number, (Arc::clone(&segment), fate));
        let is_old = known.is_some_and(|fate| fate.is_sealed && fate.last_batch <= self.covered);
        if is_old && (!fate.is_quarantined || self.out.uncovered.is_empty()) {
            return None;
        }
        if !is_old {
            self.out.replayed_bytes += segment.capacity;
        }
        Some((header.batch, Scan::new(segment, name, is_old)))
    }

    /// A segment is there and can't be opened. One that the checkpoint knows as sealed holds nothing behind it.
    fn note_unread(&mut self, number: SegmentNumber, known: Option<(u64, SegmentFate)>) {
        let sealed = known.filter(|(_, fate)| fate.is_sealed);
        self.out.has_unread |= sealed.is_none();
        // Without its mark it is read from the start as soon as it can be.
        let (mark, fate) = sealed.unwrap_or((
            0,
            SegmentFate {
                is_sealed: true,
                is_quarantined: true,
                ..SegmentFate::default()
            },
        ));
        self.out.uncovered.add_segment(number, mark, fate);
    }

    /// Reads segments side by side, as those of several generations were written, so that batches arrive in the order
    /// of their numbers. A segment is not read before its turn, so only as many are at once as were open at once.
    fn merge(&mut self, mut waiting: Vec<(BatchNumber, Scan)>) {
        // The next to be taken at the end. Headers tell the number reached when they were prepared.
        waiting.sort_by_key(|(least, scan)| std::cmp::Reverse((*least, scan.segment.number)));
        let mut active: Vec<(Found, Scan)> = Vec::new();
        loop {
            let next = active.iter().map(|(found, _)| found.header.number).min();
            if let Some((least, _)) = waiting.last()
                && next.is_none_or(|next| *least <= next)
            {
                if let Some((_, mut scan)) = waiting.pop()
                    && let Some(found) = scan.next(self)
                {
                    active.push((found, scan));
                }
                continue;
            }
            let Some(next) = next else { return };
            let at = active
                .iter()
                .position(|(found, _)| found.header.number == next);
            let Some(at) = at else { return };
            let (found, mut scan) = active.swap_remove(at);
            self.open_now = active.iter().map(|(_, scan)| scan.segment.number).collect();
            self.arrive(found);
            if let Some(found) = scan.next(self) {
                active.push((found, scan));
            }
        }
    }

    fn quarantine(&mut self, segment: SegmentNumber) {
        if let Some((_, fate)) = self.out.segments.get_mut(&segment) {
            fate.is_quarantined = true;
        }
    }

    /// Takes note of a batch that stands.
    fn arrive(&mut self, found: Found) {
        let number = found.header.number;
        let last_lsn = (found.header.lsn + u64::from(found.header.frames)).saturating_sub(1);
        if let Some((_, fate)) = self.out.segments.get_mut(&found.segment) {
            fate.last_batch = fate.last_batch.max(number);
            fate.last_lsn = fate.last_lsn.max(last_lsn);
        }
        self.out.next_batch = self.out.next_batch.max(number + 1);
        self.out.next_lsn = self.out.next_lsn.max(last_lsn + 1);
        self.out.next_id = self.out.next_id.max(found.header.ids);
        if number <= self.covered {
            if self.out.uncovered.take(number) {
                self.arrive_late(found);
            }
            return;
        }
        self.settle_late(&[]);
        let proven = self.out.proven;
        self.out.standing.retain(|standing| *standing > proven);
        self.out.standing.push(number);
        if self
            .aside
            .last()
            .is_some_and(|last| last.header.number >= number)
        {
            let name = super::segment::segment_name(found.segment);
            self.out.report.damage(format!(
                "{name}: batch {number} stands out of order at byte {}",
                found.offset
            ));
            self.quarantine(found.segment);
            return;
        }
        let voids = found.voids();
        // The one before is now proven, and so are its Voids; unless this one says that it is dead.
        if self.aside.last().is_some_and(|last| !found.ends(last)) {
            self.settle_last();
        }
        self.out.proven = self.out.proven.max(found.header.durable);
        let (keep, apply): (Vec<_>, Vec<_>) = std::mem::take(&mut self.aside)
            .into_iter()
            .partition(|old| found.ends(old));
        for old in apply {
            self.apply(&old, &voids);
        }
        self.aside = keep;
        self.aside.push(found);
    }

    /// Takes note of a batch that the checkpoint has not seen though it covers its number.
    fn arrive_late(&mut self, found: Found) {
        self.settle_late(&found.voids());
        self.late = Some(found);
    }

    /// The late batch before counts, unless it is named here.
    fn settle_late(&mut self, voids: &[Range]) {
        let Some(found) = self.late.take() else {
            return;
        };
        if covers(voids, found.header.number) {
            return;
        }
        self.late_batches += 1;
        for frame in &found.frames {
            if self.counts_late(frame) {
                self.apply_frame(&found, frame);
            }
        }
    }

    /// Whether a frame of a late batch counts: all of a message that nothing newer is known of, nothing of others.
    fn counts_late(&mut self, frame: &FoundFrame) -> bool {
        let id = frame.header.message;
        match frame.header.kind {
            Kind::Envelope | Kind::Relocation => {
                let is_new = !self.out.uncovered.has_ended(id)
                    && (self.late_messages.contains(&id) || !self.out.index.contains(id));
                if is_new {
                    self.late_messages.insert(id);
                }
                is_new
            }
            Kind::Expansion | Kind::Outcome | Kind::Hold | Kind::Removal => {
                self.late_messages.contains(&id)
            }
            Kind::Content | Kind::Void | Kind::Skip | Kind::Pulse | Kind::Seal => true,
        }
    }

    /// The last batch noted is proven durable: what its Voids name is dead for good.
    fn settle_last(&mut self) {
        let Some(last) = self.aside.pop() else {
            return;
        };
        self.out.proven = self.out.proven.max(last.header.number);
        self.aside.retain(|old| !last.ends(old));
        self.voids.extend(last.voids());
        self.aside.push(last);
    }

    /// Applies a batch that counts. `more` are Voids of a later batch, which explain gaps but are not proven yet.
    fn apply(&mut self, found: &Found, more: &[(BatchNumber, BatchNumber)]) {
        let number = found.header.number;
        let own = found.voids();
        let voids = [&self.voids, &own, more].concat();
        let gap = without(
            (self.reached.map_or(1, |reached| reached + 1), number - 1),
            &voids,
        );
        let is_counted = self.reached.is_some();
        let skips = found.ranges(Kind::Skip);
        // Without a checkpoint it is not known what there was before.
        let missing: Vec<Range> = gap
            .iter()
            .filter(|_| is_counted)
            .flat_map(|range| without(*range, &skips))
            .collect();
        for (from, to) in &missing {
            self.out.report.damage(format!(
                "batches {from} to {to} are missing: what they held is lost, unless they can be read later"
            ));
        }
        if is_counted || self.out.has_unread {
            gap.iter().for_each(|range| self.out.uncovered.add(*range));
        }
        if !missing.is_empty() {
            self.out.missing.extend(&missing);
            // They lay in one of those that were being written then.
            for segment in std::mem::take(&mut self.open_now) {
                self.quarantine(segment);
            }
            self.quarantine(found.segment);
            self.last_segment
                .into_iter()
                .for_each(|n| self.quarantine(n));
        }
        if !is_counted && number > 1 && !covers(&own, number - 1) && !covers(more, number - 1) {
            let what = format!(
                "no checkpoint: counting starts at batch {number}, finished mail may be delivered again"
            );
            self.out.report.damage(what);
        }
        if found.padding == Padding::Dirty {
            let name = super::segment::segment_name(found.segment);
            self.out.report.damage(format!(
                "{name}: padding of batch {number} at byte {} is not zero",
                found.offset
            ));
        }
        let is_copied = self.is_copied(found);
        self.reached = Some(number);
        self.last_segment = Some(found.segment);
        self.out.index.applied_batch = number;
        self.out.index.applied_lsn =
            (found.header.lsn + u64::from(found.header.frames)).saturating_sub(1);
        if is_copied {
            return;
        }
        for frame in &found.frames {
            self.apply_frame(found, frame);
        }
    }

    /// Whether what it holds is a copy of a batch that counts itself, or of one before it.
    fn is_copied(&self, found: &Found) -> bool {
        self.reached
            .is_some_and(|reached| covers(&found.ranges(Kind::Skip), reached))
    }

    fn apply_frame(&mut self, found: &Found, frame: &FoundFrame) {
        let id = frame.header.message;
        self.out.next_id = self.out.next_id.max(id.number().saturating_add(1));
        let place = found.place(frame);
        let is_checked = self.check == Check::Everything || frame.header.kind != Kind::Content;
        if is_checked && !found.checks(frame) {
            let name = super::segment::segment_name(found.segment);
            let what = format!(
                "{name}: byte {}: {:?} of {id} is damaged",
                place.offset, frame.header.kind
            );
            self.out.report.damage(what);
            self.damaged_messages.insert(id);
            if frame.header.kind != Kind::Content {
                self.quarantine(found.segment);
            }
            return;
        }
        let has_gap = !self.out.uncovered.is_empty() || !self.out.uncovered.segments().is_empty();
        if frame.header.kind == Kind::Removal && has_gap && !self.out.index.contains(id) {
            self.out.uncovered.note_ended(id);
        }
        let payload = frame.payload(&found.bytes);
        let applied = self
            .out
            .index
            .apply(&frame.header, payload, place, self.now);
        if let Err(error) = applied {
            let name = super::segment::segment_name(found.segment);
            self.out
                .report
                .damage(format!("{name}: byte {}: {id}: {error}", place.offset));
            self.damaged_messages.insert(id);
            self.quarantine(found.segment);
        } else if frame.header.kind == Kind::Relocation {
            // All of the message in one record: what was wrong with older ones no longer matters.
            self.damaged_messages.remove(&id);
        }
    }

    /// Decides about what is left aside at the end of the journal.
    fn finish(&mut self) {
        self.settle_late(&[]);
        while let Some(last) = self.aside.pop() {
            let number = last.header.number;
            let checks = last.is_whole();
            #[cfg(test)]
            let checks = checks || super::faults::seeded(Fault::NoBatchChecksum);
            if number > self.out.proven && !checks {
                #[cfg(test)]
                if super::faults::seeded(Fault::VoidFromTorn) {
                    let voids = last.voids();
                    self.aside.retain(|old| !covers(&voids, old.header.number));
                }
                let bytes = last.header.length;
                self.out.report.remark(format!(
                    "{TORN} {number} of {bytes} bytes: never acknowledged, ignored"
                ));
                continue;
            }
            let voids = last.voids();
            let aside = std::mem::take(&mut self.aside);
            for old in aside.iter().filter(|old| !last.ends(old)) {
                self.apply(old, &voids);
            }
            let is_copied = self.is_copied(&last);
            self.apply(&last, &[]);
            #[cfg(test)]
            if super::faults::seeded(Fault::NoRewrite) {
                self.out.proven = number;
                break;
            }
            if number > self.out.proven {
                self.out.unproven = rewrite(&last);
                if is_copied {
                    let is_about_numbers = |f: &FrameIn| matches!(f.kind, Kind::Void | Kind::Skip);
                    self.out.unproven.retain(is_about_numbers);
                }
            }
            break;
        }
        for id in &self.damaged_messages {
            if self.out.index.hold_damaged(*id) {
                self.out
                    .report
                    .remarks
                    .push(format!("{id} is held: part of it is damaged"));
            }
        }
        if self.late_batches > 0 {
            self.out.report.remark(format!(
                "{} batches that could not be read before are there again: {} messages of them may be delivered a second time",
                self.late_batches,
                self.late_messages.len()
            ));
        }
        let proven = self.out.proven;
        self.out.standing.retain(|number| *number > proven);
        self.out.report.messages = self.out.index.len();
    }
}

/// The frames of an unproven batch in the form the writer takes, envelopes without the extents that lie in it.
fn rewrite(last: &Found) -> Vec<FrameIn> {
    let end = last.offset + round_to_block(u64::from(last.header.length));
    let is_here = |extent: &Extent| {
        extent.segment == last.segment && (last.offset..end).contains(&extent.offset)
    };
    let mut frames = Vec::new();
    for frame in &last.frames {
        if matches!(frame.header.kind, Kind::Pulse | Kind::Seal) {
            continue;
        }
        let payload = frame.payload(&last.bytes).to_vec();
        if !matches!(frame.header.kind, Kind::Envelope | Kind::Relocation) {
            frames.push(FrameIn::new(
                frame.header.kind,
                frame.header.message,
                payload,
            ));
            continue;
        }
        let extents = record::decode_extents(&payload).unwrap_or_default();
        let head = payload
            .len()
            .saturating_sub(4 + extents.len() * record::EXTENT_BYTES);
        let mut new = FrameIn::new(
            frame.header.kind,
            frame.header.message,
            payload.get(..head).unwrap_or_default().to_vec(),
        );
        new.earlier = extents
            .into_iter()
            .filter(|extent| !is_here(extent))
            .collect();
        frames.push(new);
    }
    frames
}

/// Reads a segment from its first batch to its end.
struct Scan {
    segment: Arc<Segment>,
    name: String,
    window: Window,
    offset: u64,
    /// Checksum field of the batch before; unknown after a place that holds none.
    chain: Option<u32>,
    /// The checkpoint knows the segment as sealed.
    is_old: bool,
}

impl Scan {
    fn new(segment: Arc<Segment>, name: String, is_old: bool) -> Self {
        let window = Window {
            segment: Arc::clone(&segment),
            bytes: Vec::new(),
            start: 0,
        };
        Self {
            segment,
            name,
            window,
            offset: FIRST_BATCH_OFFSET,
            chain: Some(0),
            is_old,
        }
    }

    /// The next batch that stands.
    fn next(&mut self, replay: &mut Replay) -> Option<Found> {
        while self.offset + BLOCK_BYTES <= self.segment.capacity {
            match self.batch_here() {
                Ok(Some(found)) => {
                    self.chain = Some(found.header.checksum);
                    self.offset += round_to_block(u64::from(found.header.length));
                    return Some(found);
                }
                Ok(None) => {}
                Err(error) => {
                    replay.out.report.damage(format!(
                        "{}: reading at byte {}: {error}",
                        self.name, self.offset
                    ));
                    replay.quarantine(self.segment.number);
                    replay.out.has_unread |= !self.is_old;
                }
            }
            self.chain = None;
            self.offset += BLOCK_BYTES;
        }
        None
    }

    /// The batch that stands at the present offset, if one does.
    fn batch_here(&mut self) -> io::Result<Option<Found>> {
        let (mark, capacity) = (self.segment.mark, self.segment.capacity);
        let head = self.window.at(self.offset, 64)?;
        if field::u64_at(head, 0) != Some(mark) {
            return Ok(None);
        }
        let Some(header) = BatchHeader::decode(head) else {
            return Ok(None);
        };
        let length = round_to_block(u64::from(header.length));
        if self.offset + length > capacity
            || self.chain.is_some_and(|chain| chain != header.chain)
            || header.durable >= header.number
        {
            return Ok(None);
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let bytes = self.window.at(self.offset, length)?;
        let Ok((header, frames, padding)) = decode_batch(bytes, mark) else {
            return Ok(None);
        };
        let bytes = bytes.to_vec();
        Ok(Some(Found {
            segment: self.segment.number,
            offset: self.offset,
            header,
            frames,
            padding,
            bytes,
        }))
    }
}

/// Reads a segment in large pieces, front to back.
struct Window {
    segment: Arc<Segment>,
    bytes: Vec<u8>,
    start: u64,
}

impl Window {
    fn at(&mut self, offset: u64, length: usize) -> io::Result<&[u8]> {
        let end = offset + length as u64;
        if offset < self.start || end > self.start + self.bytes.len() as u64 {
            let want = length.max(READ_BYTES);
            let left =
                usize::try_from(self.segment.capacity.saturating_sub(offset)).unwrap_or(usize::MAX);
            self.bytes.resize(want.min(left), 0);
            self.start = offset;
            if let Err(error) =
                super::storage::read_exact_at(&*self.segment.file, offset, &mut self.bytes)
            {
                self.bytes.clear();
                if length >= READ_BYTES {
                    return Err(error);
                }
                // A bad sector must cost its own block only: try again with just what was asked for.
                self.bytes.resize(length, 0);
                if let Err(error) =
                    super::storage::read_exact_at(&*self.segment.file, offset, &mut self.bytes)
                {
                    self.bytes.clear();
                    return Err(error);
                }
            }
        }
        let from = usize::try_from(offset - self.start).unwrap_or(usize::MAX);
        self.bytes
            .get(from..from.saturating_add(length))
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}
