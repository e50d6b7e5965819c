//! Wrong variants of the engine, for tests of the tests: each must be found by the crash enumeration or the fault
//! tests. Compiled in tests only; at most a line at each site.

use std::cell::Cell;
use std::io;
use std::sync::Arc;

use super::format::Lsn;
use super::segment::Segment;
use super::storage::StorageFile;
use super::transaction::Submission;

/// A promise left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// A batch is not synced.
    NoSync,
    /// Tickets are released before the sync.
    TicketBeforeSync,
    /// A new segment's name is not made durable.
    NoDirectorySync,
    /// Every segment has the same mark in every life.
    NoMark,
    /// Batches start at multiples of 8 and share blocks.
    NoAlignment,
    /// A last batch counts without its payloads being checked.
    NoBatchChecksum,
    /// After a failed sync the file is synced again, and that is believed.
    SecondSync,
    /// Segments are recycled that no checkpoint covers.
    EarlyRecycling,
    /// The newest checkpoint's word is enough for recycling.
    OlderUncovered,
    /// Segments with live records are recycled.
    LiveRecycled,
    /// Segments with chunks of a message still being received are recycled.
    PinnedRecycled,
    /// An expansion is acknowledged, and its children may be attempted, before it is durable.
    OutcomeBeforeExpansion,
    /// A batch is written while the one before, a Seal, is not synced.
    WriteBesideUnsynced,
    /// What is moved counts at its new place before that is durable.
    RelocationUnsynced,
    /// A checkpoint gets its name before it is synced.
    CheckpointBeforeSync,
    /// The Void of a torn batch is believed.
    VoidFromTorn,
    /// A last batch that is not proven counts without being written again.
    NoRewrite,
    /// An expansion that is written again at a start is still looked for at its old place.
    OldPlaceKept,
    /// A failure is recorded in another batch than its report.
    ReportApart,
    /// A drop file is removed before its message is committed.
    DropRemovedFirst,
    /// The message of a drop file may be attempted before the file's removal is durable.
    DropRemovalUnsynced,
}

/// All of them.
pub(super) const FAULTS: &[Fault] = &[
    Fault::NoSync,
    Fault::TicketBeforeSync,
    Fault::NoDirectorySync,
    Fault::NoMark,
    Fault::NoAlignment,
    Fault::NoBatchChecksum,
    Fault::SecondSync,
    Fault::EarlyRecycling,
    Fault::OlderUncovered,
    Fault::LiveRecycled,
    Fault::PinnedRecycled,
    Fault::OutcomeBeforeExpansion,
    Fault::WriteBesideUnsynced,
    Fault::RelocationUnsynced,
    Fault::CheckpointBeforeSync,
    Fault::VoidFromTorn,
    Fault::NoRewrite,
    Fault::OldPlaceKept,
    Fault::ReportApart,
    Fault::DropRemovedFirst,
    Fault::DropRemovalUnsynced,
];

impl Fault {
    /// Whether it shows only when a call fails, not at a power cut.
    pub(super) fn needs_failing_calls(self) -> bool {
        self == Self::SecondSync
    }
}

thread_local! {
    static SEEDED: Cell<Option<Fault>> = const { Cell::new(None) };
}

/// Whether this fault is seeded on this thread.
pub(super) fn seeded(fault: Fault) -> bool {
    SEEDED.get() == Some(fault)
}

/// The fault seeded on this thread, for another thread that does part of its work.
pub(super) fn seeded_now() -> Option<Fault> {
    SEEDED.get()
}

/// Seeds a fault, or none.
pub(super) fn seed(fault: Option<Fault>) {
    SEEDED.set(fault);
}

/// What recycling takes for covered by the checkpoints kept, if that is the fault.
pub(super) fn wrongly_covered(kept: &[Lsn]) -> Option<Lsn> {
    match SEEDED.get() {
        Some(Fault::EarlyRecycling) => Some(Lsn::MAX),
        Some(Fault::OlderUncovered) => kept.last().copied(),
        _ => None,
    }
}

struct WithoutSync(Arc<dyn StorageFile>);

impl StorageFile for WithoutSync {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        self.0.read_at(offset, into)
    }
    fn write_at(&self, offset: u64, pieces: &[&[u8]]) -> io::Result<()> {
        self.0.write_at(offset, pieces)
    }
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
    fn fill_zero(&self, len: u64) -> io::Result<()> {
        self.0.fill_zero(len)
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
}

/// The segment to seal, whose sync does nothing if that is the fault.
pub(super) fn without_sync(segment: &Arc<Segment>) -> Arc<Segment> {
    if !seeded(Fault::WriteBesideUnsynced) {
        return Arc::clone(segment);
    }
    let file = Arc::new(WithoutSync(Arc::clone(&segment.file)));
    Arc::new(Segment { file, ..**segment })
}

/// Releases the tickets of what is not even written.
pub(super) fn release_early(submissions: &[Submission]) {
    for submission in submissions {
        if let Submission::Commit(commit) = submission {
            commit.ticket.resolve(Ok(()));
        }
    }
}

/// Where the next batch goes: on a block of its own, or right after the last one.
pub(super) fn end_of_batch(aligned: u64, not_aligned: u64) -> u64 {
    if seeded(Fault::NoAlignment) {
        not_aligned
    } else {
        aligned
    }
}
