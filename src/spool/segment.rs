//! The journal's files: making, marking, naming and recycling segments (SPOOL 2, 3).
//!
//! A file is written with zeros once, from end to end, so that later writes change no metadata; then it is used,
//! emptied by time, and used again under a new number and a new mark (S6). Each name is durable before anything
//! relies on it (I5):
//!
//! ```text
//! tmp-N      created, zeros written, synced      a crash leaves tmp-N: removed at start
//!   -> rename, directory synced
//! spare-N    header written twice and synced     a crash leaves a spare, its old mark or its new: either is a spare
//!   -> rename, directory synced
//! segment-M  batches                             a crash after the rename leaves an empty segment
//!   -> dead, rename, directory synced
//! spare-K
//! ```

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

#[cfg(test)]
use super::faults::{Fault, seeded};
use super::format::{
    BLOCK_BYTES, BatchNumber, FIRST_BATCH_OFFSET, Lsn, SegmentHeader, SegmentNumber,
};
use super::storage::{Storage, StorageFile};
use super::sync::{AtomicU64, Mutex};
use super::{SpoolError, lock};

/// A segment that can be read.
pub(super) struct Segment {
    pub(super) number: SegmentNumber,
    pub(super) mark: u64,
    pub(super) capacity: u64,
    pub(super) generation: Generation,
    pub(super) file: Arc<dyn StorageFile>,
}

/// How often what lies in a segment has been moved: 0 hot, 1 warm, 2 cold (SPOOL 8).
pub(super) type Generation = usize;
pub(super) const GENERATIONS: usize = 3;

/// What is known of a segment besides its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct SegmentFate {
    /// Set once nothing more will be written to it.
    pub(super) is_sealed: bool,
    /// Damage was found in it: kept, never recycled.
    pub(super) is_quarantined: bool,
    /// Highest Lsn and batch number in it.
    pub(super) last_lsn: Lsn,
    pub(super) last_batch: BatchNumber,
    /// When it was sealed, or found at a start; monotonic clock.
    pub(super) sealed_at: Duration,
}

/// Highest segment number: the index packs them into 32 bits. At 64 MiB a segment that is more than any disk outlives.
const SEGMENTS_MAX: SegmentNumber = 0xffff_fffe;

/// All journal files of a spool.
pub(super) struct Segments {
    storage: Arc<dyn Storage>,
    segment_bytes: u64,
    spool_id: [u8; 16],
    open: Mutex<BTreeMap<SegmentNumber, (Arc<Segment>, SegmentFate)>>,
    /// Held while files are made or renamed, so that writer and keeper do not do it at once.
    maker: Mutex<Maker>,
    /// How many spares there are, for who only wants to know.
    spares: AtomicU64,
    /// Marked and named, ready to be written to, by generation. Not under `maker`, which is held while zeros are written.
    prepared: Mutex<[Option<Arc<Segment>>; GENERATIONS]>,
}

#[derive(Default)]
struct Maker {
    next_segment: SegmentNumber,
    next_spare: u64,
    spares: Vec<String>,
}

pub(super) fn segment_name(number: SegmentNumber) -> String {
    format!("segment-{number:016x}")
}

/// The number in a name such as `segment-000000000000000a`.
pub(super) fn number_in_name(name: &str, prefix: &str) -> Option<u64> {
    let digits = name.strip_prefix(prefix)?;
    if digits.len() != 16
        || !digits
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

impl Segments {
    pub(super) fn new(
        storage: Arc<dyn Storage>,
        segment_bytes: u64,
        spool_id: [u8; 16],
        next_segment: SegmentNumber,
        spares: Vec<String>,
    ) -> Self {
        let next_spare = spares
            .iter()
            .filter_map(|name| number_in_name(name, "spare-"))
            .max()
            .map_or(1, |n| n + 1);
        let maker = Maker {
            next_segment,
            next_spare,
            spares,
        };
        Self {
            storage,
            segment_bytes,
            spool_id,
            open: Mutex::default(),
            spares: AtomicU64::new(maker.spares.len() as u64),
            maker: Mutex::new(maker),
            prepared: Mutex::default(),
        }
    }

    pub(super) fn spool_id(&self) -> [u8; 16] {
        self.spool_id
    }

    /// The number the next segment will get.
    pub(super) fn next_segment(&self) -> SegmentNumber {
        lock(&self.maker).next_segment
    }

    pub(super) fn add(&self, segment: Arc<Segment>, fate: SegmentFate) {
        lock(&self.open).insert(segment.number, (segment, fate));
    }

    pub(super) fn get(&self, number: SegmentNumber) -> Option<Arc<Segment>> {
        lock(&self.open)
            .get(&number)
            .map(|(segment, _)| Arc::clone(segment))
    }

    pub(super) fn update_fate(&self, number: SegmentNumber, change: impl FnOnce(&mut SegmentFate)) {
        if let Some((_, fate)) = lock(&self.open).get_mut(&number) {
            change(fate);
        }
    }

    /// Each segment and its fate, oldest first.
    pub(super) fn fates(&self) -> Vec<(Arc<Segment>, SegmentFate)> {
        lock(&self.open).values().cloned().collect()
    }

    /// Journal files there are: segments, what is prepared, and spares.
    pub(super) fn files(&self) -> u64 {
        let prepared = lock(&self.prepared).iter().flatten().count();
        (lock(&self.open).len() + prepared) as u64 + self.spares.load(Ordering::Relaxed)
    }

    /// Takes the prepared segment, or prepares one now. Blocks: disk.
    ///
    /// # Errors
    /// [`SpoolError::Full`] when there is no room for a file; any other error has left nothing that counts.
    pub(super) fn take_next(
        &self,
        generation: Generation,
        lsn: Lsn,
        batch: BatchNumber,
        wall_ms: u64,
    ) -> Result<Arc<Segment>, SpoolError> {
        let ready = self.take_prepared(generation);
        let segment = match ready {
            Some(segment) => segment,
            None => {
                let mut maker = lock(&self.maker);
                if !self.is_prepared(generation) {
                    self.prepare(&mut maker, generation, lsn, batch, wall_ms)?;
                }
                self.take_prepared(generation).ok_or(SpoolError::Closed)?
            }
        };
        self.add(Arc::clone(&segment), SegmentFate::default());
        Ok(segment)
    }

    /// Files that wait to become segments.
    pub(super) fn spares_left(&self) -> usize {
        lock(&self.maker).spares.len()
    }

    fn note_spares(&self, maker: &Maker) {
        self.spares
            .store(maker.spares.len() as u64, Ordering::Relaxed);
    }

    fn take_prepared(&self, generation: Generation) -> Option<Arc<Segment>> {
        lock(&self.prepared).get_mut(generation)?.take()
    }

    fn is_prepared(&self, generation: Generation) -> bool {
        lock(&self.prepared)
            .get(generation)
            .is_some_and(Option::is_some)
    }

    fn set_prepared(&self, segment: Segment) {
        if let Some(place) = lock(&self.prepared).get_mut(segment.generation) {
            *place = Some(Arc::new(segment));
        }
    }

    /// Sees to it that a hot segment is prepared and that spares are there for after it. Blocks: disk.
    ///
    /// # Errors
    /// As [`Segments::take_next`].
    pub(super) fn make_ready(
        &self,
        lsn: Lsn,
        batch: BatchNumber,
        wall_ms: u64,
        spares_wanted: usize,
    ) -> Result<(), SpoolError> {
        let mut maker = lock(&self.maker);
        if !self.is_prepared(0) {
            self.prepare(&mut maker, 0, lsn, batch, wall_ms)?;
        }
        while maker.spares.len() < spares_wanted {
            self.make_spare(&mut maker)?;
        }
        Ok(())
    }

    /// Removes a spare, for what needs the room more. Whether there was one. Blocks: disk.
    pub(super) fn give_up_spare(&self) -> Result<bool, SpoolError> {
        let mut maker = lock(&self.maker);
        let Some(name) = maker.spares.pop() else {
            return Ok(false);
        };
        self.note_spares(&maker);
        self.storage
            .unlink(&name)
            .map_err(|e| SpoolError::io("unlink", &name, e))?;
        self.storage
            .sync_dir()
            .map_err(|e| SpoolError::io("sync", ".", e))?;
        Ok(true)
    }

    fn prepare(
        &self,
        maker: &mut Maker,
        generation: Generation,
        lsn: Lsn,
        batch: BatchNumber,
        wall_ms: u64,
    ) -> Result<(), SpoolError> {
        if maker.spares.is_empty() {
            self.make_spare(maker)?;
        }
        let Some(spare) = maker.spares.pop() else {
            return Err(SpoolError::Closed);
        };
        self.note_spares(maker);
        let result = self.mark_and_name(&spare, maker, generation, lsn, batch, wall_ms);
        if result.is_err() {
            // Whatever happened to it, the name may still be there; it must not be taken for good again.
            maker.spares.retain(|name| *name != spare);
        }
        result
    }

    fn mark_and_name(
        &self,
        spare: &str,
        maker: &mut Maker,
        generation: Generation,
        lsn: Lsn,
        batch: BatchNumber,
        wall_ms: u64,
    ) -> Result<(), SpoolError> {
        let number = maker.next_segment;
        if number > SEGMENTS_MAX {
            return Err(SpoolError::Full("all segment numbers are used".into()));
        }
        let name = segment_name(number);
        let file = self
            .storage
            .open(spare)
            .map_err(|e| SpoolError::io("open", spare, e))?;
        let capacity = file.len().map_err(|e| SpoolError::io("stat", spare, e))?;
        let mark = self.storage.random();
        #[cfg(test)]
        let mark = if seeded(Fault::NoMark) { 7 } else { mark };
        let header = SegmentHeader {
            number,
            mark,
            lsn,
            batch,
            spool_id: self.spool_id,
            capacity,
            wall_ms,
            generation: u32::try_from(generation).unwrap_or(0),
        }
        .encode();
        file.write_at(0, &[&header, &header])
            .map_err(|e| SpoolError::io("write", spare, e))?;
        file.sync().map_err(|e| SpoolError::io("sync", spare, e))?;
        // From here on the number counts as used, whatever becomes of the file (S10).
        maker.next_segment = number + 1;
        self.storage
            .rename(spare, &name)
            .map_err(|e| SpoolError::io("rename", spare, e))?;
        #[cfg(test)]
        if seeded(Fault::NoDirectorySync) {
            self.set_prepared(Segment {
                number,
                mark,
                capacity,
                generation,
                file,
            });
            return Ok(());
        }
        self.storage
            .sync_dir()
            .map_err(|e| SpoolError::io("sync", ".", e))?;
        self.set_prepared(Segment {
            number,
            mark,
            capacity,
            generation,
            file,
        });
        Ok(())
    }

    fn make_spare(&self, maker: &mut Maker) -> Result<(), SpoolError> {
        let number = maker.next_spare;
        maker.next_spare += 1;
        let (temporary, name) = (format!("tmp-{number:016x}"), format!("spare-{number:016x}"));
        let made = (|| {
            let file = self
                .storage
                .create(&temporary)
                .map_err(|e| SpoolError::io("create", &temporary, e))?;
            file.fill_zero(self.segment_bytes)
                .map_err(|e| SpoolError::io("write", &temporary, e))?;
            file.sync()
                .map_err(|e| SpoolError::io("sync", &temporary, e))?;
            self.storage
                .rename(&temporary, &name)
                .map_err(|e| SpoolError::io("rename", &temporary, e))?;
            self.storage
                .sync_dir()
                .map_err(|e| SpoolError::io("sync", ".", e))
        })();
        match made {
            Ok(()) => {
                maker.spares.push(name);
                self.note_spares(maker);
                Ok(())
            }
            Err(error) => {
                // Nothing relies on either name; leaving one behind costs room that is short already.
                let _ = self.storage.unlink(&temporary);
                Err(error)
            }
        }
    }

    /// Turns dead segments into spares, or removes them when there are enough. Blocks: disk.
    ///
    /// `is_dead` is asked under the lock that guards the list, for sealed and undamaged segments that nobody holds: a
    /// reader keeps a segment by holding it (S7).
    ///
    /// # Errors
    /// [`SpoolError::Io`]; the segments concerned stay as they are in memory's view gone, on disk either name.
    pub(super) fn recycle(
        &self,
        spares_max: usize,
        is_dead: &mut dyn FnMut(SegmentNumber, SegmentFate) -> bool,
    ) -> Result<usize, SpoolError> {
        let mut maker = lock(&self.maker);
        let dead: Vec<SegmentNumber> = lock(&self.open)
            .iter()
            .filter(|(number, (segment, fate))| {
                fate.is_sealed
                    && !fate.is_quarantined
                    && Arc::strong_count(segment) == 1
                    && is_dead(**number, *fate)
            })
            .map(|(number, _)| *number)
            .collect();
        let mut done = 0;
        for number in &dead {
            let Some((segment, _)) = lock(&self.open).remove(number) else {
                continue;
            };
            let name = segment_name(*number);
            if maker.spares.len() < spares_max && segment.capacity == self.segment_bytes {
                let spare = format!("spare-{:016x}", maker.next_spare);
                maker.next_spare += 1;
                self.storage
                    .rename(&name, &spare)
                    .map_err(|e| SpoolError::io("rename", &name, e))?;
                maker.spares.push(spare);
                self.note_spares(&maker);
            } else {
                self.storage
                    .unlink(&name)
                    .map_err(|e| SpoolError::io("unlink", &name, e))?;
            }
            done += 1;
        }
        if done > 0 {
            // A spare's new header must not be durable before its old name is gone: the sync stands between.
            self.storage
                .sync_dir()
                .map_err(|e| SpoolError::io("sync", ".", e))?;
        }
        Ok(done)
    }
}

/// A segment, its header, and what is wrong with one of the header's copies.
pub(super) type OpenedSegment = (Segment, SegmentHeader, Option<&'static str>);

/// Reads a segment's header from either copy, and opens it for reading. Says also if a copy is damaged.
///
/// # Errors
/// `Ok(Err(detail))` if neither copy is valid, `Err` if it can't be read.
pub(super) fn open_segment(
    storage: &dyn Storage,
    name: &str,
    number: SegmentNumber,
) -> io::Result<Result<OpenedSegment, &'static str>> {
    let file = storage.open_read(name)?;
    let capacity = file.len()?;
    let mut found = None;
    let mut damage = None;
    for copy in 0..FIRST_BATCH_OFFSET / BLOCK_BYTES {
        let mut bytes = vec![0; 4096];
        let read = super::storage::read_exact_at(&*file, copy * BLOCK_BYTES, &mut bytes);
        match read.map(|()| SegmentHeader::decode(&bytes)) {
            Ok(Ok(header)) if header.number == number => {
                found.get_or_insert(header);
            }
            Ok(Ok(_)) => damage = Some("segment number differs from the file's name"),
            Ok(Err(what)) => damage = Some(what),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => damage = Some("cut off"),
            Err(error) if copy == 0 => {
                damage = Some(if error.raw_os_error().is_some() {
                    "read error"
                } else {
                    "unreadable"
                })
            }
            Err(_) => damage = Some("read error"),
        }
    }
    Ok(match found {
        Some(header) => Ok((
            Segment {
                number,
                mark: header.mark,
                capacity,
                generation: usize::try_from(header.generation)
                    .unwrap_or(0)
                    .min(GENERATIONS - 1),
                file,
            },
            header,
            damage,
        )),
        None => Err(damage.unwrap_or("no segment header")),
    })
}
