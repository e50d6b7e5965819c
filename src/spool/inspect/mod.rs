//! Looking at a spool from outside: is it sound, what is in it, what can be saved of it (spoolck(8)).
//!
//! Nothing here takes a lock or writes to the spool that is looked at; a daemon may be at work on it. What recovery
//! would make of the files is the measure, and comes from recovery itself ([`super::recovery`]); beyond that every
//! batch is read, those that a checkpoint covers too, and every live message from end to end.
//!
//! Beside a running daemon files are recycled while they are read. So damage is believed only if it is found again by a
//! second look at files that are newly listed, and what is being written just then is not called torn. Blocks: disk.
//! Limits: [`LOOKS_MAX`], [`FINDINGS_MAX`].

mod explain;
mod salvage;
mod walk;

use std::collections::{BTreeMap, HashSet};
use std::io::Read;
use std::path::Path;
use std::time::Duration;

pub use explain::{Fact, Tell, Value, explain};
pub use salvage::{Lost, SalvageError, SalvageReport, Source, salvage};

use super::drop_file;
use super::format::{BatchNumber, Kind, Padding};
use super::index::Now;
use super::reader::SpoolReader;
use super::record;
use super::recovery::{self, Check};
use super::segment::{Segment, number_in_name, open_segment, segment_name};
use super::storage::{OsStorage, Storage};
use super::{SpoolError, StoredMessage};
use crate::clock::Clock;
use crate::envelope::{Envelope, MessageId};
use walk::{Item, walk};

/// How often a spool that changes meanwhile is looked at before what was found stands.
const LOOKS_MAX: usize = 5;
/// Most findings that are told.
const FINDINGS_MAX: usize = 10_000;
/// Due times are shown as they are written.
const DUE_AHEAD_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Weight {
    /// As it should be.
    Fact,
    /// Harms nothing: what a crash leaves.
    Note,
    /// Something that was durable is not as it was written.
    Damage,
}

/// One thing to say about a spool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How much it matters.
    pub weight: Weight,
    /// In words.
    pub text: String,
}

/// What [`verify`] found.
#[derive(Debug, Clone, Default)]
pub struct Verdicts {
    /// All findings, in the order of the files.
    pub findings: Vec<Finding>,
    /// Live messages.
    pub messages: u64,
    /// The process that owns the spool, if one does and can be seen.
    pub owner: Option<u32>,
}

impl Verdicts {
    /// The weight of the gravest finding.
    #[must_use]
    pub fn weight(&self) -> Weight {
        self.findings
            .iter()
            .map(|finding| finding.weight)
            .max()
            .unwrap_or(Weight::Fact)
    }

    fn say(&mut self, weight: Weight, text: impl Into<String>) {
        let text = text.into();
        let is_told = |finding: &Finding| finding.text == text;
        if self.findings.len() < FINDINGS_MAX && !self.findings.iter().any(is_told) {
            self.findings.push(Finding { weight, text });
        }
    }
}

/// Why a folder can't be looked at.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// It can't be read.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// There is neither a segment nor a checkpoint in it.
    #[error("{0}: no spool is here: neither segment nor checkpoint")]
    NoSpool(String),
}

/// Opens the folder of a spool for reading.
fn open(folder: &Path) -> Result<OsStorage, InspectError> {
    let shown = folder.display().to_string();
    let failed = |operation| {
        let shown = shown.clone();
        move |error| SpoolError::io(operation, &shown, error)
    };
    let storage = OsStorage::open(folder).map_err(failed("open"))?;
    let names = storage.list().map_err(failed("list"))?;
    let is_spool = |name: &String| {
        number_in_name(name, "segment-").is_some() || number_in_name(name, "checkpoint-").is_some()
    };
    if !names.iter().any(is_spool) {
        return Err(InspectError::NoSpool(shown));
    }
    Ok(storage)
}

/// Looks at all of the spool in `folder`, and at its drop files of up to `drop_bytes_max` bytes. Blocks: disk.
///
/// # Errors
/// [`InspectError`]: the folder can't be read or is no spool. Damage is a finding.
pub fn verify(
    folder: &Path,
    clock: &dyn Clock,
    drop_bytes_max: u64,
) -> Result<Verdicts, InspectError> {
    let storage = open(folder)?;
    let owner = storage.owner();
    let mut verdicts = verify_files(&storage, clock, owner.is_some())?;
    verdicts.owner = owner;
    verify_drop_folder(&folder.join("drop"), drop_bytes_max, &mut verdicts);
    Ok(verdicts)
}

/// As [`verify`], without drop files. With `is_live` another process may be writing.
pub(super) fn verify_files(
    storage: &dyn Storage,
    clock: &dyn Clock,
    is_live: bool,
) -> Result<Verdicts, SpoolError> {
    let mut verdicts = look(storage, clock, is_live)?;
    if !is_live {
        return Ok(verdicts);
    }
    for _ in 1..LOOKS_MAX {
        if verdicts.weight() < Weight::Damage {
            break;
        }
        let mut again = look(storage, clock, is_live)?;
        let before: HashSet<&str> = verdicts.findings.iter().map(|f| f.text.as_str()).collect();
        again.findings.retain(|finding| {
            finding.weight < Weight::Damage || before.contains(finding.text.as_str())
        });
        verdicts = again;
    }
    Ok(verdicts)
}

/// One look at all files.
fn look(storage: &dyn Storage, clock: &dyn Clock, is_live: bool) -> Result<Verdicts, SpoolError> {
    let now = Now {
        unix_ms: clock.unix_ms(),
        monotonic: clock.monotonic(),
    };
    let mut found = recovery::load(storage, DUE_AHEAD_MAX, now, Check::Everything)?;
    let mut verdicts = Verdicts::default();
    let damage: HashSet<String> = found.report.damage.drain(..).collect();
    let is_torn = |remark: &String| remark.starts_with(recovery::TORN);
    for remark in &found.report.remarks {
        if damage.contains(remark) {
            verdicts.say(Weight::Damage, remark);
        } else if !(is_live && is_torn(remark)) {
            verdicts.say(Weight::Note, remark);
        }
    }
    if !is_live {
        for name in &found.temporaries {
            verdicts.say(
                Weight::Note,
                format!("{name}: unfinished when its process ended; the next start removes it"),
            );
        }
        if !found.unproven.is_empty() {
            verdicts.say(
                Weight::Note,
                format!(
                    "batch {} was written, and no later one proves that it was synced: the next start writes its {} records again",
                    found.next_batch - 1,
                    found.unproven.len()
                ),
            );
        }
    }
    let mut voids = Vec::new();
    let mut journal = Journal::default();
    for (segment, fate) in found.segments.values() {
        walk(segment, &mut |item| {
            if let Item::Batch(batch) = &item {
                for frame in &batch.frames {
                    if let (Kind::Void, Ok(payload)) = (frame.header.kind, batch.payload(frame))
                        && let Ok(range) = record::decode_void(payload)
                    {
                        voids.push(range);
                    }
                }
            }
            journal.take_note(segment, item);
        });
        if fate.is_quarantined {
            verdicts.say(
                Weight::Note,
                format!(
                    "{}: quarantined: damage was found in it; kept, never used again",
                    segment_name(segment.number)
                ),
            );
        }
    }
    journal.tell(found.covered, &voids, is_live, &mut verdicts);
    if !is_live && !journal.is_sealed && journal.batches > 0 {
        verdicts.say(
            Weight::Note,
            format!(
                "no Seal after batch {}: the last owner did not end in order; the next start replays the journal",
                journal.last_batch
            ),
        );
    }
    let (segments, spares, checkpoints) = (
        found.segments.len(),
        found.spares.len(),
        found.checkpoints.len(),
    );
    let reader = SpoolReader::over(found, now);
    let mut held = 0_u64;
    let ids = reader.ids();
    for id in &ids {
        match read_through(&reader, *id) {
            Ok(message) => held += u64::from(message.is_held),
            Err(what) => verdicts.say(Weight::Damage, format!("{id}: {what}")),
        }
    }
    verdicts.messages = ids.len() as u64;
    let (batches, frames, bytes) = (journal.batches, journal.frames, journal.bytes);
    verdicts.findings.insert(
        0,
        Finding {
            weight: Weight::Fact,
            text: format!(
                "{} live messages, {held} of them held; {segments} segments with {batches} batches, {frames} frames, \
                 {bytes} bytes; {spares} spares, {checkpoints} checkpoints",
                ids.len()
            ),
        },
    );
    Ok(verdicts)
}

/// What the segments say one by one.
#[derive(Default)]
struct Journal {
    batches: u64,
    frames: u64,
    bytes: u64,
    last_batch: BatchNumber,
    is_sealed: bool,
    /// Texts, with the number of the batch they are about, if it is known.
    remarks: Vec<(Option<BatchNumber>, String)>,
    /// Numbers of all batches that stand.
    standing: Vec<BatchNumber>,
    /// What begins like a batch, by segment: a torn one, or one that was damaged later.
    broken: BTreeMap<u64, Vec<Broken>>,
}

struct Broken {
    number: BatchNumber,
    offset: u64,
    length: u32,
    what: &'static str,
    /// Whether a batch stands behind it in the same segment.
    is_inside: bool,
}

impl Journal {
    fn take_note(&mut self, segment: &Segment, item: Item) {
        let name = segment_name(segment.number);
        match item {
            Item::Batch(batch) => {
                let number = batch.header.number;
                self.batches += 1;
                self.standing.push(number);
                self.frames += batch.frames.len() as u64;
                self.bytes += u64::from(batch.header.length);
                if number > self.last_batch {
                    self.last_batch = number;
                    self.is_sealed = batch.frames.iter().any(|f| f.header.kind == Kind::Seal);
                }
                if let Some(broken) = self.broken.get_mut(&segment.number) {
                    broken.iter_mut().for_each(|one| one.is_inside = true);
                }
                let mut remark = |text: String| self.remarks.push((Some(number), text));
                if !batch.is_chained {
                    remark(format!(
                        "{name}: batch {number} at byte {} does not follow the one before it",
                        batch.offset
                    ));
                }
                if batch.padding == Padding::Dirty {
                    remark(format!(
                        "{name}: padding of batch {number} at byte {} is not zero",
                        batch.offset
                    ));
                }
                for frame in &batch.frames {
                    if batch.payload(frame).is_err() {
                        remark(format!(
                            "{name}: byte {}: {:?} of {} is damaged",
                            batch.place(frame).offset,
                            frame.header.kind,
                            frame.header.message
                        ));
                    }
                }
            }
            Item::Broken {
                offset,
                header,
                what,
            } => {
                self.broken.entry(segment.number).or_default().push(Broken {
                    number: header.number,
                    offset,
                    length: header.length,
                    what,
                    is_inside: false,
                });
            }
            Item::Unreadable { offset, error } => {
                self.remarks
                    .push((None, format!("{name}: reading at byte {offset}: {error}")));
            }
            Item::Hole { offset, bytes } => {
                self.remarks.push((
                    None,
                    format!("{name}: {bytes} bytes from byte {offset} on hold no batch, and one stands behind them"),
                ));
            }
        }
    }

    /// Says what recovery has not said already: it speaks of what it needs, and needs nothing below the checkpoint.
    fn tell(
        &mut self,
        covered: BatchNumber,
        voids: &[(BatchNumber, BatchNumber)],
        is_live: bool,
        verdicts: &mut Verdicts,
    ) {
        for (number, text) in &self.remarks {
            let is_harmless = number.is_none_or(|number| number <= covered);
            let what = "; the checkpoint needs nothing of it";
            match (number, is_harmless) {
                // Live messages there are read as well, and named if they can't be.
                (Some(_), true) => verdicts.say(Weight::Note, format!("{text}{what}")),
                (None, _) => verdicts.say(Weight::Note, text),
                (Some(_), false) => verdicts.say(Weight::Damage, text),
            }
        }
        self.standing.sort_unstable();
        for (segment, broken) in &self.broken {
            for one in broken {
                let Broken {
                    number,
                    offset,
                    length,
                    what,
                    is_inside,
                } = one;
                let name = segment_name(*segment);
                // A start gives the number of what it found torn away again, or says that it is dead.
                let is_settled = voids.iter().any(|(a, b)| (*a..=*b).contains(number))
                    || self.standing.binary_search(number).is_ok();
                if *is_inside || *number <= self.last_batch && !is_settled {
                    let text = format!("{name}: batch {number} at byte {offset}: {what}");
                    let weight = if *number <= covered {
                        Weight::Note
                    } else {
                        Weight::Damage
                    };
                    verdicts.say(weight, text);
                } else if !is_settled && !is_live {
                    verdicts.say(
                        Weight::Note,
                        format!(
                            "{name}: torn tail: batch {number} of {length} bytes at byte {offset} was begun and not \
                             finished ({what}); it was never acknowledged, and the next start passes over it"
                        ),
                    );
                }
            }
        }
    }
}

/// Reads all of a message. What is wrong with it, in words, with sender and recipients if they can be read.
fn read_through(reader: &SpoolReader, id: MessageId) -> Result<StoredMessage, String> {
    let message = match reader.message(id) {
        Ok(message) => message,
        Err(error) => {
            return Err(format!(
                "its envelope or a record of its recipients can't be read: {error}; held"
            ));
        }
    };
    let shown = shown(&message.envelope);
    let content = reader.content(id).map_err(|e| format!("{shown}: {e}"))?;
    let mut sink = std::io::sink();
    match std::io::copy(&mut content.take(u64::MAX), &mut sink) {
        Ok(bytes) if bytes == message.content_bytes => Ok(message),
        Ok(bytes) => Err(format!(
            "{shown}: {bytes} of its {} bytes of content are there",
            message.content_bytes
        )),
        Err(error) => Err(format!("{shown}: its content can't be read: {error}")),
    }
}

/// Sender and recipients for a finding.
fn shown(envelope: &Envelope) -> String {
    const RECIPIENTS_SHOWN: usize = 10;
    let more = envelope.recipients.len().saturating_sub(RECIPIENTS_SHOWN);
    let mut text = format!("from {} to ", envelope.sender_shown());
    let recipients: Vec<String> = envelope
        .recipients
        .iter()
        .take(RECIPIENTS_SHOWN)
        .map(crate::envelope::Recipient::shown)
        .collect();
    text.push_str(&recipients.join(", "));
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

/// Says what waits in a drop folder, and what is wrong there.
fn verify_drop_folder(folder: &Path, bytes_max: u64, verdicts: &mut Verdicts) {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
        Err(error) => {
            verdicts.say(Weight::Note, format!("{}: {error}", folder.display()));
            return;
        }
    };
    let (mut waiting, mut unfinished) = (0_u64, 0_u64);
    for entry in entries.flatten() {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        if number_in_name(&name, "drop-").is_some() {
            waiting += 1;
            let opened = drop_file::open(folder, &name, bytes_max);
            if let Err(error) = opened.and_then(|file| file.each_chunk(&mut |_| Ok(()))) {
                verdicts.say(
                    Weight::Note,
                    format!("drop file {error}: the next look of the queue's owner sets it aside"),
                );
            }
        } else if name.starts_with("bad-") {
            verdicts.say(
                Weight::Note,
                format!("drop/{name}: set aside; the log says why"),
            );
        } else if name.starts_with("tmp-") {
            unfinished += 1;
        }
    }
    if waiting > 0 {
        verdicts.say(
            Weight::Fact,
            format!("{waiting} drop files wait to be taken over"),
        );
    }
    if unfinished > 0 {
        verdicts.say(
            Weight::Note,
            format!(
                "{unfinished} unfinished files in drop/: being written, or left by submitters that ended; never accepted"
            ),
        );
    }
}

/// Opens each segment that can be opened, those without a valid header by the mark of their batches.
fn segments_of(
    storage: &dyn Storage,
    names: &[String],
    headless: &mut Vec<String>,
) -> Vec<(
    Segment,
    Option<super::format::SegmentHeader>,
    Option<String>,
)> {
    let mut numbers: Vec<u64> = names
        .iter()
        .filter_map(|name| number_in_name(name, "segment-"))
        .collect();
    numbers.sort_unstable();
    let mut segments = Vec::new();
    for number in numbers {
        let name = segment_name(number);
        let what = match open_segment(storage, &name, number) {
            Ok(Ok((segment, header, copy))) => {
                segments.push((segment, Some(header), copy.map(str::to_owned)));
                continue;
            }
            Ok(Err(what)) => what.to_owned(),
            Err(error) => error.to_string(),
        };
        match walk::open_headless(storage, &name, number) {
            Ok(Some(segment)) => segments.push((segment, None, Some(what))),
            Ok(None) => headless.push(format!("{name}: {what}, and no batch stands in it")),
            Err(error) => headless.push(format!("{name}: {error}")),
        }
    }
    segments
}

#[cfg(test)]
mod tests;
