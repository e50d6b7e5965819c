//! What no start could read, and what a checkpoint must therefore not claim to cover (S5).
//!
//! A segment that can't be opened or read today may be readable tomorrow: a cable, a permission, a folder in its place. Until
//! then the rest works on, and checkpoints are written; each says which batch numbers it has not seen. When such a batch
//! is found at a later start, what it adds counts after all: messages that nobody has seen end. Of messages that the
//! checkpoint knows it tells nothing new. So nothing is lost; what had become of a recipient may be forgotten, and its
//! mail delivered again.
//!
//! Pure but for the checkpoint's bytes. Limits: [`RANGES_MAX`], [`ENDED_MAX`].

use std::collections::HashSet;
use std::hash::BuildHasherDefault;

use super::checkpoint::Take;
use super::format::{BatchNumber, SegmentNumber};
use super::index::NumberHasher;
use super::segment::SegmentFate;
use crate::envelope::MessageId;

/// Most ranges of batch numbers kept apart; beyond it neighbours are taken together, numbers between them included.
const RANGES_MAX: usize = 1024;
/// Most ends remembered of messages that nobody has seen; a message beyond them may be delivered again.
const ENDED_MAX: usize = 1 << 20;

/// A range of batch numbers, both ends included.
pub(super) type Range = (BatchNumber, BatchNumber);

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct Uncovered {
    /// Numbers of batches that are missing or may lie in what can't be read; ascending, none touching another.
    ranges: Vec<Range>,
    /// Messages whose Removal was read and whose Envelope was not.
    ended: HashSet<MessageId, BuildHasherDefault<NumberHasher>>,
    /// Segments that are there and can't be opened: number, mark (0: to be read as soon as it can be), fate.
    segments: Vec<(SegmentNumber, u64, SegmentFate)>,
}

impl Uncovered {
    pub(super) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Adds a range.
    pub(super) fn add(&mut self, (mut first, mut last): Range) {
        self.ranges.retain(|(a, b)| {
            let is_apart = last.saturating_add(1) < *a || b.saturating_add(1) < first;
            if !is_apart {
                (first, last) = (first.min(*a), last.max(*b));
            }
            is_apart
        });
        let at = self.ranges.partition_point(|(a, _)| *a < first);
        self.ranges.insert(at, (first, last));
        while self.ranges.len() > RANGES_MAX {
            let (first, _) = self.ranges.remove(0);
            if let Some(next) = self.ranges.first_mut() {
                next.0 = first;
            }
        }
    }

    /// Takes a number out, as its batch is found. Whether it was in.
    pub(super) fn take(&mut self, number: BatchNumber) -> bool {
        let Some(at) = self
            .ranges
            .iter()
            .position(|(a, b)| (*a..=*b).contains(&number))
        else {
            return false;
        };
        let (first, last) = self.ranges.remove(at);
        if number < last {
            self.ranges.insert(at, (number + 1, last));
        }
        if first < number {
            self.ranges.insert(at, (first, number - 1));
        }
        if self.ranges.is_empty() && self.segments.is_empty() {
            self.ended.clear();
        }
        true
    }

    /// A message has ended that nobody has seen begin.
    pub(super) fn note_ended(&mut self, id: MessageId) {
        if self.ended.len() < ENDED_MAX {
            self.ended.insert(id);
        }
    }

    pub(super) fn has_ended(&self, id: MessageId) -> bool {
        self.ended.contains(&id)
    }

    /// A segment that is there and can't be opened.
    pub(super) fn add_segment(&mut self, number: SegmentNumber, mark: u64, fate: SegmentFate) {
        self.segments.push((number, mark, fate));
    }

    pub(super) fn segments(&self) -> &[(SegmentNumber, u64, SegmentFate)] {
        &self.segments
    }

    /// How many ranges and ends a checkpoint of it holds.
    pub(super) fn counts(&self) -> [u64; 2] {
        [self.ranges.len() as u64, self.ended.len() as u64]
    }

    /// The ranges and the ends as a checkpoint holds them (`checkpoint.rs` has the layout).
    pub(super) fn words(&self) -> impl Iterator<Item = u64> + '_ {
        let ranges = self.ranges.iter().flat_map(|(a, b)| [*a, *b]);
        ranges.chain(self.ended.iter().map(|id| id.number()))
    }

    /// Reads them. `None` if they are malformed.
    pub(super) fn read(from: &mut Take<'_>, [ranges, ended]: [u64; 2]) -> Option<Self> {
        let mut new = Self::default();
        for _ in 0..ranges {
            let (first, last) = (from.u64()?, from.u64()?);
            if first > last {
                return None;
            }
            new.add((first, last));
        }
        for _ in 0..ended {
            new.note_ended(MessageId::from_number(from.u64()?));
        }
        Some(new)
    }
}

/// What of a range none of these cover, ascending.
pub(super) fn without(range: Range, covers: &[Range]) -> Vec<Range> {
    let mut left = Vec::new();
    if range.0 <= range.1 {
        left.push(range);
    }
    for (from, to) in covers {
        let mut next = Vec::new();
        for (first, last) in left {
            if *to < first || last < *from {
                next.push((first, last));
                continue;
            }
            if first < *from {
                next.push((first, from - 1));
            }
            if *to < last {
                next.push((to + 1, last));
            }
        }
        left = next;
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_what_a_set_of_numbers_is() {
        let mut set = std::collections::BTreeSet::new();
        let mut kept = Uncovered::default();
        for (first, last) in [(10, 20), (30, 30), (21, 25), (5, 7), (6, 11), (40, 50)] {
            kept.add((first, last));
            set.extend(first..=last);
        }
        assert_eq!(kept.ranges, [(5, 25), (30, 30), (40, 50)]);
        for number in [5, 25, 30, 45, 4, 26, 45] {
            assert_eq!(kept.take(number), set.remove(&number), "{number}");
        }
        let found: Vec<u64> = kept.ranges.iter().flat_map(|(a, b)| *a..=*b).collect();
        assert_eq!(found, set.into_iter().collect::<Vec<_>>());
    }

    #[test]
    fn too_many_ranges_are_taken_together_and_none_is_forgotten() {
        let mut kept = Uncovered::default();
        let count = 2 * RANGES_MAX as u64;
        for n in 0..count {
            kept.add((10 * n, 10 * n));
        }
        assert_eq!(kept.ranges.len(), RANGES_MAX);
        for n in 0..count {
            assert!(kept.take(10 * n), "{n}");
        }
    }

    #[test]
    fn what_covers_is_taken_away() {
        assert_eq!(without((5, 4), &[]), []);
        assert_eq!(without((1, 9), &[(0, 0), (10, 12)]), [(1, 9)]);
        assert_eq!(without((1, 9), &[(3, 4), (8, 20)]), [(1, 2), (5, 7)]);
        assert_eq!(without((1, 9), &[(0, 20)]), []);
    }
}
