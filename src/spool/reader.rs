//! Reading a spool that another process may be writing, without its lock (SPOOL 9): for listings and inspection.
//!
//! What it shows is a state the spool was in. If a segment is recycled meanwhile (its mark changes), it starts over.
//! Writes nothing, and keeps nobody from writing. Blocks: disk.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::format::SegmentNumber;
use super::index::{Index, Now};
use super::recovery::{self, Check, Recovered};
use super::segment::{Segment, SegmentFate, open_segment, segment_name};
use super::storage::{OsStorage, Storage};
use super::{ContentReader, RecoveryReport, SpoolError, StoredMessage, content};
use crate::clock::Clock;
use crate::envelope::MessageId;

/// How often it starts over before it takes what it has.
const TRIES_MAX: usize = 5;
/// Due times are shown as they are written.
const DUE_AHEAD_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// A view of a spool at one moment.
pub struct SpoolReader {
    index: Index,
    segments: BTreeMap<SegmentNumber, (Arc<Segment>, SegmentFate)>,
    report: RecoveryReport,
    now: Now,
}

impl SpoolReader {
    /// Reads the spool in `folder`.
    ///
    /// # Errors
    /// [`SpoolError::Io`] if the folder can't be read; damage goes into [`SpoolReader::report`].
    pub fn open(folder: &Path, clock: &dyn Clock) -> Result<Self, SpoolError> {
        let name = folder.display().to_string();
        let storage = OsStorage::open(folder).map_err(|e| SpoolError::io("open", &name, e))?;
        Self::read(&storage, clock)
    }

    pub(super) fn read(storage: &dyn Storage, clock: &dyn Clock) -> Result<Self, SpoolError> {
        let now = Now {
            unix_ms: clock.unix_ms(),
            monotonic: clock.monotonic(),
        };
        let mut tries = 0;
        loop {
            tries += 1;
            let found = recovery::load(storage, DUE_AHEAD_MAX, now, Check::AllButContent)?;
            let is_same = found.segments.iter().all(|(number, (segment, _))| {
                matches!(open_segment(storage, &segment_name(*number), *number),
                    Ok(Ok((_, header, _))) if header.mark == segment.mark)
            });
            if is_same || tries == TRIES_MAX {
                return Ok(Self::over(found, now));
            }
        }
    }

    /// A view of what recovery has made of the files.
    pub(super) fn over(found: Recovered, now: Now) -> Self {
        Self {
            index: found.index,
            segments: found.segments,
            report: found.report,
            now,
        }
    }

    /// The ids of all live messages, oldest first.
    #[must_use]
    pub fn ids(&self) -> Vec<MessageId> {
        self.index.ids()
    }

    /// What was found besides live messages.
    #[must_use]
    pub fn report(&self) -> &RecoveryReport {
        &self.report
    }

    /// A message's envelope and states.
    ///
    /// # Errors
    /// As [`super::Spool::message`]; `Damaged` also when the message has ended and its place was used again.
    pub fn message(&self, id: MessageId) -> Result<StoredMessage, SpoolError> {
        let entry = self.index.get(id).ok_or(SpoolError::NotFound(id))?;
        content::message(&|n| self.segment(n), id, &entry, false, self.now)
    }

    /// A message's content.
    ///
    /// # Errors
    /// As [`SpoolReader::message`].
    pub fn content(&self, id: MessageId) -> Result<ContentReader, SpoolError> {
        let entry = self.index.get(id).ok_or(SpoolError::NotFound(id))?;
        ContentReader::open(&|n| self.segment(n), id, &entry)
    }

    fn segment(&self, number: SegmentNumber) -> Option<Arc<Segment>> {
        self.segments
            .get(&number)
            .map(|(segment, _)| Arc::clone(segment))
    }
}
