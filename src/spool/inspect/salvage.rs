//! Saving what can be read of a damaged spool into a new one.
//!
//! The old spool is only read. What recovery takes for live is copied with its id, its recipients' states, its retry
//! times and its holds. Beyond that, what recovery had to leave alone is looked through: segments without a valid
//! header, and messages whose records are damaged in part. In doubt a message is saved twice rather than not at all.
//!
//! | damaged | becomes |
//! |---|---|
//! | content | the message with what is there, unreadable blocks as lines of `?`, held, with a reason |
//! | a record of its recipients | the message, held; recipients whose fate is unknown are pending |
//! | envelope | its content to `postmaster` from the null sender, held |
//! | envelope and content | nothing: it is listed as lost |
//!
//! Blocks: disk. Memory: an entry for each message in the journal, one chunk of content, one batch.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use super::walk::{Batch, Item, walk};
use super::{DUE_AHEAD_MAX, InspectError, Now, open, segments_of, shown};
use crate::address::ReversePath;
use crate::clock::Clock;
use crate::envelope::{
    Delivery, Envelope, MessageId, Outcome, Recipient, RecipientId, RecipientState,
};
use crate::spool::format::{
    BLOCK_BYTES, BatchNumber, FRAME_HEADER_BYTES, FrameHeader, Kind, SegmentNumber,
};
use crate::spool::index::Place;
use crate::spool::reader::SpoolReader;
use crate::spool::record::{
    self, ExpansionRecord, Extent, OutcomeRecord, RelocationRecord, Standing,
};
use crate::spool::recovery::{self, Check};
use crate::spool::segment::{Segment, SegmentFate, segment_name};
use crate::spool::storage::{OsStorage, Storage, read_exact_at};
use crate::spool::transaction::FrameIn;
use crate::spool::{
    CommitTicket, FootingPolicy, Spool, SpoolError, SpoolOptions, Step, StoredMessage, Writer,
};
use crate::status::Status;

/// Messages written before their tickets are waited for.
const GROUP_MESSAGES: usize = 256;
/// Bytes of content handed over before a batch is written.
const GROUP_BYTES: u64 = 1 << 20;
/// Largest chunk of content believed.
const CHUNK_BYTES_MAX: u32 = 64 << 20;
/// What stands for bytes that can't be read.
const FILLER: &[u8] = b"??????????????????????????????????????????????????????????????\r\n";

/// Whether a spool may be in use while it is salvaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// No: it is refused while another process owns it, and kept from starting meanwhile.
    AtRest,
    /// Yes: what its owner does meanwhile may be missed, or done twice.
    Live,
}

/// Something that is not in the new spool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    /// The message, if it is known.
    pub id: Option<MessageId>,
    /// What is lost and why, with sender and recipients if they can be read.
    pub what: String,
}

/// What [`salvage`] did.
#[derive(Debug, Clone, Default)]
pub struct SalvageReport {
    /// Messages in the new spool.
    pub saved: u64,
    /// Those of them that are held because part of them is damaged, and why.
    pub damaged: Vec<(MessageId, String)>,
    /// What is not in the new spool.
    pub lost: Vec<Lost>,
    /// What recovery says of the old spool.
    pub remarks: Vec<String>,
}

/// Why nothing was salvaged, or not all.
#[derive(Debug, thiserror::Error)]
pub enum SalvageError {
    /// The old spool can't be looked at.
    #[error(transparent)]
    Old(#[from] InspectError),
    /// Another process owns the old spool.
    #[error("{0}: a process is at work on it; stop it first")]
    Owned(String),
    /// The new folder has something in it.
    #[error("{0}: is not empty")]
    NotEmpty(String),
    /// The new spool can't be written.
    #[error("new spool: {0}")]
    New(SpoolError),
}

/// Copies what can be read of the spool in `from` into the empty folder `into`. Blocks: disk.
///
/// # Errors
/// [`SalvageError`]; what is in the new folder then is not complete.
/// # Durability
/// On `Ok` the new spool is sealed and checkpointed.
pub fn salvage(
    from: &Path,
    into: &Path,
    clock: Arc<dyn Clock>,
    source: Source,
) -> Result<SalvageReport, SalvageError> {
    let old = open(from)?;
    let failed = |operation, path: &Path| {
        let name = path.display().to_string();
        move |error| SpoolError::io(operation, &name, error)
    };
    if source == Source::AtRest {
        let is_ours = old
            .lock_if_there()
            .map_err(failed("lock", from))
            .map_err(InspectError::Spool)?;
        if !is_ours {
            return Err(SalvageError::Owned(from.display().to_string()));
        }
    }
    let new = OsStorage::open(into).map_err(|e| SalvageError::New(failed("open", into)(e)))?;
    let names = new
        .list()
        .map_err(|e| SalvageError::New(failed("list", into)(e)))?;
    if !names.is_empty() {
        return Err(SalvageError::NotEmpty(into.display().to_string()));
    }
    salvage_files(&old, Arc::new(new), clock)
}

/// As [`salvage`], between two storages.
pub(super) fn salvage_files(
    old: &dyn Storage,
    new: Arc<dyn Storage>,
    clock: Arc<dyn Clock>,
) -> Result<SalvageReport, SalvageError> {
    let now = Now {
        unix_ms: clock.unix_ms(),
        monotonic: clock.monotonic(),
    };
    let old_error = |error| SalvageError::Old(InspectError::Spool(error));
    let mut found =
        recovery::load(old, DUE_AHEAD_MAX, now, Check::Everything).map_err(old_error)?;
    let names = old
        .list()
        .map_err(|e| old_error(SpoolError::io("list", ".", e)))?;
    let mut report = SalvageReport {
        remarks: found.report.remarks.clone(),
        ..SalvageReport::default()
    };
    for (first, last) in &found.missing {
        report.lost.push(Lost {
            id: None,
            what: format!("batches {first} to {last} are missing: whatever only they held"),
        });
    }
    let mut unopened = Vec::new();
    let mut traces = Traces::default();
    let mut capacity = 0;
    let (covered, applied) = (found.covered, found.index.applied_batch);
    for (segment, header, _) in segments_of(old, &names, &mut unopened) {
        capacity = segment.capacity.max(capacity);
        let is_known = found.segments.contains_key(&segment.number);
        if !is_known && header.is_some_and(|h| found.spool_id.is_some_and(|id| id != h.spool_id)) {
            report.lost.push(Lost {
                id: None,
                what: format!(
                    "{}: belongs to another spool; left alone",
                    segment_name(segment.number)
                ),
            });
            continue;
        }
        walk(&segment, &mut |item| match item {
            // Behind what recovery has applied comes only what was torn, where it could look.
            Item::Batch(batch) if is_known && batch.header.number > applied => {}
            Item::Batch(batch) => traces.follow(&batch),
            _ => {}
        });
        found
            .segments
            .entry(segment.number)
            .or_insert_with(|| (Arc::new(segment), SegmentFate::default()));
    }
    let is_gap = !found.missing.is_empty() || !unopened.is_empty();
    for what in unopened {
        report.lost.push(Lost { id: None, what });
    }
    let next_id = found.next_id;
    let segments: Segments = found
        .segments
        .iter()
        .map(|(number, (segment, _))| (*number, Arc::clone(segment)))
        .collect();
    let reader = SpoolReader::over(found, now);
    let live: BTreeSet<MessageId> = reader.ids().into_iter().collect();
    let mut wanted = live.clone();
    wanted.extend(traces.unfinished(covered, is_gap));

    let options = SpoolOptions {
        segment_bytes: capacity
            .next_multiple_of(BLOCK_BYTES)
            .clamp(64 << 10, 1 << 30),
        // The operator has chosen the place; the daemon judges it when it starts there.
        footing: FootingPolicy::Any,
        ..SpoolOptions::default()
    };
    let (spool, writer, _) = Spool::open(new, clock, options).map_err(SalvageError::New)?;
    spool.skip_ids(next_id);
    let mut copy = Copy {
        reader,
        segments,
        traces,
        live,
        spool,
        writer,
        pending: Vec::new(),
        bytes: 0,
        report,
    };
    for id in wanted {
        copy.copy(id)?;
    }
    copy.finish()
}

type Segments = BTreeMap<SegmentNumber, Arc<Segment>>;

/// Where the records of a message lie, whether or not they count.
#[derive(Default)]
struct Trace {
    /// The last one, and whether its payload checks.
    envelope: Option<(BatchNumber, Place, Kind, bool)>,
    expansions: Vec<(BatchNumber, Place)>,
    outcomes: Vec<(BatchNumber, Place)>,
    hold: Option<(BatchNumber, Place)>,
    content: Vec<(BatchNumber, Place)>,
    removal: Option<BatchNumber>,
    last: BatchNumber,
}

#[derive(Default)]
struct Traces {
    of: HashMap<MessageId, Trace>,
    voids: Vec<(BatchNumber, BatchNumber)>,
}

impl Traces {
    fn follow(&mut self, batch: &Batch) {
        let number = batch.header.number;
        for frame in &batch.frames {
            let payload = batch.payload(frame);
            if frame.header.kind == Kind::Void
                && let Ok(range) =
                    payload.map_or(Err(record::Malformed("void")), record::decode_void)
            {
                self.voids.push(range);
            }
            if matches!(
                frame.header.kind,
                Kind::Void | Kind::Skip | Kind::Pulse | Kind::Seal
            ) {
                continue;
            }
            let place = batch.place(frame);
            let trace = self.of.entry(frame.header.message).or_default();
            trace.last = trace.last.max(number);
            match frame.header.kind {
                Kind::Envelope | Kind::Relocation => {
                    let is_later = trace.envelope.is_none_or(|(old, _, _, is_good)| {
                        (payload.is_ok(), number) > (is_good, old)
                    });
                    if is_later {
                        trace.envelope = Some((number, place, frame.header.kind, payload.is_ok()));
                    }
                }
                Kind::Content => trace.content.push((number, place)),
                Kind::Removal => trace.removal = Some(number),
                // Those that are damaged say nothing.
                _ if payload.is_err() => {}
                Kind::Expansion => trace.expansions.push((number, place)),
                Kind::Outcome => trace.outcomes.push((number, place)),
                Kind::Hold => trace.hold = trace.hold.max_by_number((number, place)),
                Kind::Void | Kind::Skip | Kind::Pulse | Kind::Seal => {}
            }
        }
    }

    fn is_void(&self, number: BatchNumber) -> bool {
        self.voids.iter().any(|(a, b)| (*a..=*b).contains(&number))
    }

    /// Messages that no checkpoint and no record says have ended. Content alone counts only if records are missing.
    fn unfinished(&self, covered: BatchNumber, is_gap: bool) -> Vec<MessageId> {
        self.of
            .iter()
            .filter(|(_, trace)| {
                let has_envelope = trace
                    .envelope
                    .is_some_and(|(number, ..)| number > covered && !self.is_void(number));
                let is_orphan = is_gap && trace.envelope.is_none() && trace.last > covered;
                trace.removal.is_none_or(|number| self.is_void(number))
                    && (has_envelope || is_orphan)
                    && (trace.envelope.is_some() || !trace.content.is_empty())
            })
            .map(|(id, _)| *id)
            .collect()
    }
}

trait MaxByNumber {
    fn max_by_number(self, other: (BatchNumber, Place)) -> Self;
}

impl MaxByNumber for Option<(BatchNumber, Place)> {
    fn max_by_number(self, other: (BatchNumber, Place)) -> Self {
        match self {
            Some(old) if old.0 > other.0 => Some(old),
            _ => Some(other),
        }
    }
}

/// A message as it will be written.
struct Rebuilt {
    envelope: Envelope,
    /// What has become of its recipients, and whether it is held.
    more: Vec<FrameIn>,
    content: Vec<Extent>,
    /// Why it is to be held, if part of it is damaged.
    damage: Vec<String>,
    /// Recovery says that something of it is damaged.
    is_doubtful: bool,
}

/// What has become of a message's recipients, put together from single records.
struct States {
    id: MessageId,
    is_pending: Vec<bool>,
    frames: Vec<FrameIn>,
}

impl States {
    fn new(id: MessageId, recipients: usize) -> Self {
        Self {
            id,
            is_pending: vec![true; recipients],
            frames: Vec::new(),
        }
    }

    fn push(&mut self, kind: Kind, payload: Vec<u8>) {
        self.frames.push(FrameIn::new(kind, self.id, payload));
    }

    /// Behind an expansion that is lost the numbers say nothing: the parents are expanded again.
    fn take_expansion(&mut self, expansion: &ExpansionRecord) {
        let parent = usize::try_from(expansion.parent.0).unwrap_or(usize::MAX);
        if usize::try_from(expansion.first_child) != Ok(self.is_pending.len()) {
            return;
        }
        let Some(parent) = self.is_pending.get_mut(parent) else {
            return;
        };
        *parent = false;
        let count = self.is_pending.len() + expansion.children.len();
        self.is_pending.resize(count, true);
        self.push(Kind::Expansion, record::encode_expansion(expansion));
    }

    /// A later one stands for an earlier one.
    fn take_outcome(&mut self, payload: Vec<u8>) {
        if let Ok(facts) = record::outcome_facts(&payload)
            && let Ok(at) = usize::try_from(facts.recipient.0)
            && let Some(is_pending) = self.is_pending.get_mut(at)
        {
            *is_pending = facts.result == Delivery::Deferred;
            self.push(Kind::Outcome, payload);
        }
    }

    fn take_relocation(&mut self, relocation: RelocationRecord) {
        for payload in &relocation.expansions {
            if let Ok(expansion) = record::decode_expansion(payload) {
                self.take_expansion(&expansion);
            }
        }
        for (at, (standing, tries, last)) in (0_u32..).zip(relocation.recipients) {
            let ended = match standing {
                Standing::Delivered => Delivery::Delivered,
                Standing::Failed => Delivery::Failed,
                Standing::Pending | Standing::Expanded => {
                    last.into_iter()
                        .for_each(|payload| self.take_outcome(payload));
                    continue;
                }
            };
            let outcome = OutcomeRecord {
                recipient: RecipientId(at),
                tries,
                next_due_unix_ms: relocation.due_unix_ms,
                has_warned: relocation.has_warned,
                outcome: Outcome::new(ended, Status::OK, "", "before the salvage"),
            };
            self.take_outcome(record::encode_outcome(&outcome));
        }
        relocation
            .hold
            .into_iter()
            .for_each(|payload| self.push(Kind::Hold, payload));
    }
}

/// One salvage at work.
struct Copy {
    reader: SpoolReader,
    segments: Segments,
    traces: Traces,
    live: BTreeSet<MessageId>,
    spool: Spool,
    writer: Writer,
    pending: Vec<(MessageId, Option<String>, CommitTicket)>,
    bytes: u64,
    report: SalvageReport,
}

impl Copy {
    /// Copies a message; its ticket is looked at later.
    fn copy(&mut self, id: MessageId) -> Result<(), SalvageError> {
        let rebuilt = match self.rebuild(id) {
            Ok(Some(rebuilt)) => rebuilt,
            Ok(None) => return Ok(()),
            Err(what) => {
                self.report.lost.push(Lost { id: Some(id), what });
                return Ok(());
            }
        };
        self.put(id, rebuilt)?;
        if self.pending.len() >= GROUP_MESSAGES || self.bytes >= GROUP_BYTES {
            self.settle()?;
        }
        Ok(())
    }

    fn put(&mut self, id: MessageId, rebuilt: Rebuilt) -> Result<(), SalvageError> {
        let Rebuilt {
            mut envelope,
            mut more,
            content,
            mut damage,
            is_doubtful,
        } = rebuilt;
        let mut transaction = self.spool.begin_as(id).map_err(SalvageError::New)?;
        for extent in content {
            let (bytes, wrong) = self.read_chunk(id, extent);
            if let Some(wrong) = wrong {
                damage.push(format!(
                    "content from byte {} on: {wrong}",
                    transaction.content_bytes()
                ));
            }
            transaction
                .append_content(&bytes)
                .map_err(SalvageError::New)?;
            self.bytes += bytes.len() as u64;
            if self.bytes >= GROUP_BYTES {
                self.writer.step();
                self.bytes = 0;
            }
        }
        if damage.is_empty() && is_doubtful {
            damage.push("one of its records is damaged".to_owned());
        }
        let why = (!damage.is_empty()).then(|| damage.join("; "));
        let mut told = None;
        if let Some(why) = &why {
            const REASON_BYTES_MAX: usize = 500;
            let mut reason = format!("salvaged: {why}");
            while reason.len() > REASON_BYTES_MAX {
                reason.pop();
            }
            envelope.quarantine = Some(reason);
            let shown = shown(&envelope);
            told = Some(format!("{shown}: {why}"));
            // The quarantine holds it; a release of earlier days does not count for what it is now.
            more.retain(|frame| frame.kind != Kind::Hold);
        }
        let ticket = transaction.commit_with(envelope, more);
        self.pending.push((id, told, ticket));
        Ok(())
    }

    /// Writes until every ticket has resolved.
    fn settle(&mut self) -> Result<(), SalvageError> {
        self.bytes = 0;
        let mut refused = Vec::new();
        for (id, why, ticket) in std::mem::take(&mut self.pending) {
            match self.resolve(&ticket)? {
                Ok(_) => self.count(id, why),
                Err(_) => refused.push(id),
            }
        }
        // One that is too large takes along those that stood in a batch with it: each by itself.
        for id in refused {
            let Ok(Some(rebuilt)) = self.rebuild(id) else {
                continue;
            };
            self.put(id, rebuilt)?;
            let mut last = self.pending.pop();
            if let Some((_, _, ticket)) = &last
                && self.resolve(ticket)?.is_err()
                && let Ok(Some(mut rebuilt)) = self.rebuild(id)
            {
                rebuilt.more.clear();
                rebuilt.damage.push(
                    "the records of its recipients do not fit into the new spool at once; all are pending"
                        .to_owned(),
                );
                self.put(id, rebuilt)?;
                last = self.pending.pop();
            }
            if let Some((id, why, ticket)) = last {
                match self.resolve(&ticket)? {
                    Ok(_) => self.count(id, why),
                    Err(error) => self.report.lost.push(Lost {
                        id: Some(id),
                        what: error.to_string(),
                    }),
                }
            }
        }
        self.spool.keep();
        Ok(())
    }

    fn count(&mut self, id: MessageId, why: Option<String>) {
        self.report.saved += 1;
        if let Some(why) = why {
            self.report.damaged.push((id, why));
        }
    }

    /// The result of a ticket; the outer error ends the salvage.
    fn resolve(
        &mut self,
        ticket: &CommitTicket,
    ) -> Result<Result<MessageId, SpoolError>, SalvageError> {
        loop {
            match ticket.try_result() {
                Some(Err(error @ SpoolError::TooLarge { .. })) => return Ok(Err(error)),
                Some(Err(error)) => return Err(SalvageError::New(error)),
                Some(Ok(id)) => return Ok(Ok(id)),
                None => {
                    if self.writer.step() == Step::Ended {
                        return Err(SalvageError::New(SpoolError::Closed));
                    }
                }
            }
        }
    }

    fn finish(mut self) -> Result<SalvageReport, SalvageError> {
        self.settle()?;
        self.spool.close();
        self.writer.run();
        if self.spool.is_poisoned() {
            let why = self.spool.take_remarks().join("; ");
            return Err(SalvageError::New(SpoolError::Poisoned(why)));
        }
        Ok(self.report)
    }

    /// What is known of a message; `None` if it turns out to have ended, `Err` if nothing of it is left.
    fn rebuild(&self, id: MessageId) -> Result<Option<Rebuilt>, String> {
        let nothing = Trace::default();
        let trace = self.traces.of.get(&id).unwrap_or(&nothing);
        let is_live = self.live.contains(&id);
        let whole = is_live.then(|| self.reader.message(id));
        let head = trace
            .envelope
            .and_then(|(_, place, kind, _)| self.payload(id, kind, place));
        let Some(payload) = head else {
            return self.rebuild_content(id, trace).map(Some);
        };
        let Ok(content) = record::decode_extents(&payload) else {
            return self.rebuild_content(id, trace).map(Some);
        };
        if let Some(Ok(stored)) = whole {
            return Ok(Some(Rebuilt {
                is_doubtful: stored.is_held && self.is_named_damaged(id),
                more: frames_of(&stored),
                envelope: stored.envelope,
                content,
                damage: Vec::new(),
            }));
        }
        let damage = match whole {
            Some(Err(error)) => vec![error.to_string()],
            _ => Vec::new(),
        };
        let relocation = match trace.envelope {
            Some((_, _, Kind::Relocation, _)) => record::decode_relocation(&payload).ok(),
            _ => None,
        };
        let of_envelope = match &relocation {
            Some(_) => record::relocated_envelope(&payload),
            None => Ok(payload.as_slice()),
        };
        match of_envelope.and_then(record::decode_envelope) {
            Ok(envelope) => {
                let mut states = States::new(id, envelope.recipients.len());
                let mut since = 0;
                if let (Some(relocation), Some((number, ..))) = (relocation, trace.envelope) {
                    since = number;
                    states.take_relocation(relocation);
                }
                self.take_records(id, trace, since, &mut states);
                Ok(states.is_pending.contains(&true).then_some(Rebuilt {
                    envelope,
                    more: states.frames,
                    content,
                    damage,
                    is_doubtful: false,
                }))
            }
            Err(_) => self.rebuild_content(id, trace).map(Some),
        }
    }

    /// Whether recovery has said that something of this message is damaged.
    fn is_named_damaged(&self, id: MessageId) -> bool {
        let id = id.to_string();
        self.reader
            .report()
            .damage
            .iter()
            .any(|text| text.contains(&id))
    }

    /// Takes the records that can be read, one by one, of batches after `since`.
    fn take_records(&self, id: MessageId, trace: &Trace, since: BatchNumber, states: &mut States) {
        let later = |number: &BatchNumber| *number > since || since == 0;
        let mut expansions: Vec<ExpansionRecord> = trace
            .expansions
            .iter()
            .filter(|(number, _)| later(number))
            .filter_map(|(_, place)| self.payload(id, Kind::Expansion, *place))
            .filter_map(|payload| record::decode_expansion(&payload).ok())
            .collect();
        expansions.sort_by_key(|expansion| expansion.first_child);
        for expansion in &expansions {
            states.take_expansion(expansion);
        }
        let mut outcomes: Vec<&(BatchNumber, Place)> = trace.outcomes.iter().collect();
        outcomes.sort_by_key(|(number, place)| (*number, place.offset));
        for (number, place) in outcomes {
            if later(number)
                && let Some(payload) = self.payload(id, Kind::Outcome, *place)
            {
                states.take_outcome(payload);
            }
        }
        if let Some((number, place)) = trace.hold
            && later(&number)
            && let Some(payload) = self.payload(id, Kind::Hold, place)
        {
            states.push(Kind::Hold, payload);
        }
    }

    /// Content without an envelope that can be read: for the postmaster to look at.
    fn rebuild_content(&self, id: MessageId, trace: &Trace) -> Result<Rebuilt, String> {
        if trace.content.is_empty() {
            return Err(format!(
                "{id}: its envelope can't be read, and no content of it is there"
            ));
        }
        let mut content = trace.content.clone();
        content.sort_unstable_by_key(|(number, place)| (*number, place.offset));
        Ok(Rebuilt {
            envelope: Envelope::new(ReversePath::Null, vec![Recipient::new("postmaster")]),
            more: Vec::new(),
            content: content
                .into_iter()
                .map(|(_, place)| Extent {
                    segment: place.segment,
                    offset: place.offset,
                    length: place.length,
                })
                .collect(),
            damage: vec![
                "its envelope is lost; sender and recipients are not known, and it may never have been accepted"
                    .to_owned(),
            ],
            is_doubtful: false,
        })
    }

    /// A control record's payload, if it is what was written.
    fn payload(&self, id: MessageId, kind: Kind, place: Place) -> Option<Vec<u8>> {
        let segment = self.segments.get(&place.segment)?;
        let length = usize::try_from(place.length).ok()?;
        let mut bytes = vec![0; FRAME_HEADER_BYTES + length];
        read_exact_at(&*segment.file, place.offset, &mut bytes).ok()?;
        let header = FrameHeader::decode(&bytes, segment.mark).ok()?;
        let payload = bytes.split_off(FRAME_HEADER_BYTES);
        let is_it = header.kind == kind
            && header.message == id
            && header.payload_crc == crc32fast::hash(&payload);
        is_it.then_some(payload)
    }

    /// A chunk of content as it lies there, and what is wrong with it.
    fn read_chunk(&self, id: MessageId, extent: Extent) -> (Vec<u8>, Option<String>) {
        let length = usize::try_from(extent.length.min(CHUNK_BYTES_MAX)).unwrap_or(0);
        let name = segment_name(extent.segment);
        let Some(segment) = self.segments.get(&extent.segment) else {
            let what = format!("{name} is missing, and {length} bytes with it");
            return (filler(length), Some(what));
        };
        let mut header = vec![0; FRAME_HEADER_BYTES];
        let header = read_exact_at(&*segment.file, extent.offset, &mut header)
            .map_err(|e| e.to_string())
            .and_then(|()| {
                FrameHeader::decode(&header, segment.mark).map_err(|what| what.to_owned())
            });
        let start = extent.offset + FRAME_HEADER_BYTES as u64;
        let mut bytes = vec![0; length];
        let mut unreadable = 0_u64;
        if read_exact_at(&*segment.file, start, &mut bytes).is_err() {
            unreadable = read_blocks(segment, start, &mut bytes);
        }
        let what = match header {
            Ok(header) if header.message == id && header.payload_crc == crc32fast::hash(&bytes) => {
                return (bytes, None);
            }
            Ok(_) if unreadable > 0 => format!("{unreadable} bytes can't be read"),
            Ok(header) if header.message == id => {
                format!("{length} bytes are not all as they were written")
            }
            Ok(_) => format!("{length} bytes of another message"),
            Err(error) => error,
        };
        (
            bytes,
            Some(format!("{name} at byte {}: {what}", extent.offset)),
        )
    }
}

/// Reads block by block, and gives how many bytes could not be had.
fn read_blocks(segment: &Segment, start: u64, into: &mut [u8]) -> u64 {
    let mut at = start;
    let mut unreadable = 0;
    let mut rest = into;
    while !rest.is_empty() {
        let to_border = usize::try_from(BLOCK_BYTES - at % BLOCK_BYTES).unwrap_or(1);
        let (block, later) = rest.split_at_mut(to_border.min(rest.len()));
        if read_exact_at(&*segment.file, at, block).is_err() {
            unreadable += block.len() as u64;
            block.copy_from_slice(&filler(block.len()));
        }
        at += block.len() as u64;
        rest = later;
    }
    unreadable
}

fn filler(length: usize) -> Vec<u8> {
    FILLER.iter().copied().cycle().take(length).collect()
}

/// The records that give a message the state it has.
fn frames_of(stored: &StoredMessage) -> Vec<FrameIn> {
    let id = stored.id;
    let mut frames = Vec::new();
    let own = stored.envelope.recipients.len();
    let mut expanded = BTreeSet::new();
    // Children of one expansion stand together and name their parent.
    let children = stored.recipients.get(own..).unwrap_or_default();
    let mut first = own;
    for group in children.chunk_by(|(a, _), (b, _)| a.parent == b.parent) {
        let parent = group.first().and_then(|(child, _)| child.parent);
        let parent = parent.unwrap_or(RecipientId(0));
        expanded.insert(parent.0);
        push_expansion(
            &mut frames,
            id,
            parent,
            first,
            group.iter().map(|(r, _)| r.clone()).collect(),
        );
        first += group.len();
    }
    for (at, (_, state)) in stored.recipients.iter().enumerate() {
        let Ok(at) = u32::try_from(at) else { break };
        let put = |tries, outcome| OutcomeRecord {
            recipient: RecipientId(at),
            tries,
            next_due_unix_ms: stored.due_unix_ms,
            has_warned: stored.has_warned,
            outcome,
        };
        let ended = |result| Outcome::new(result, Status::OK, "", "before the salvage");
        let record = match state {
            RecipientState::Expanded => {
                if !expanded.contains(&at) {
                    // It led to nobody.
                    push_expansion(&mut frames, id, RecipientId(at), first, Vec::new());
                }
                continue;
            }
            RecipientState::Delivered => put(1, ended(Delivery::Delivered)),
            RecipientState::Failed => put(1, ended(Delivery::Failed)),
            RecipientState::Pending {
                last: Some(last),
                tries,
            } => put(*tries, Outcome::clone(last)),
            RecipientState::Pending { last: None, .. } => continue,
        };
        frames.push(FrameIn::new(
            Kind::Outcome,
            id,
            record::encode_outcome(&record),
        ));
    }
    if stored.is_held != stored.envelope.quarantine.is_some() || stored.hold_reason.is_some() {
        frames.push(FrameIn::new(
            Kind::Hold,
            id,
            record::encode_hold(stored.is_held, "spoolck", stored.hold_reason.as_deref()),
        ));
    }
    frames
}

fn push_expansion(
    frames: &mut Vec<FrameIn>,
    id: MessageId,
    parent: RecipientId,
    first: usize,
    children: Vec<Recipient>,
) {
    let record = ExpansionRecord {
        parent,
        first_child: u32::try_from(first).unwrap_or(u32::MAX),
        children,
    };
    frames.push(FrameIn::new(
        Kind::Expansion,
        id,
        record::encode_expansion(&record),
    ));
}
