//! Wrong variants of the engine, for tests of the tests: each must be found by the crash enumeration or the fault
//! tests. Compiled in tests only; at most a line at each site.

use std::cell::Cell;

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
    /// Batches start at multiples of 8 and share blocks.
    NoAlignment,
    /// A last batch counts without its payloads being checked.
    NoBatchChecksum,
    /// After a failed sync the file is synced again, and that is believed.
    SecondSync,
    /// Segments with live records are recycled.
    PinnedRecycled,
    /// A checkpoint gets its name before it is synced.
    CheckpointBeforeSync,
    /// The Void of a torn batch is believed.
    VoidFromTorn,
    /// A last batch that is not proven counts without being written again.
    NoRewrite,
    /// A failure is recorded in another batch than its report.
    ReportApart,
    /// A drop file is removed before its message is committed.
    DropRemovedFirst,
    /// The message of a drop file may be attempted before the file's removal is durable.
    DropRemovalUnsynced,
}

thread_local! {
    static SEEDED: Cell<Option<Fault>> = const { Cell::new(None) };
}

/// Whether this fault is seeded on this thread.
pub(super) fn seeded(fault: Fault) -> bool {
    SEEDED.get() == Some(fault)
}

/// Seeds a fault, or none.
pub(super) fn seed(fault: Option<Fault>) {
    SEEDED.set(fault);
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
