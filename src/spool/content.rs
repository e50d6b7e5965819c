//! Reading messages back: envelopes, states and content, each record verified against its checksums. Blocks: disk.

use std::io;
use std::sync::Arc;

use super::format::{FRAME_HEADER_BYTES, FrameHeader, Kind, SegmentNumber};
use super::index::{Entry, Index, Last, Now, Place, Standing};
use super::record::{self, Extent, RelocationRecord};
use super::segment::{Segment, segment_name};
use super::storage::read_exact_at;
use super::{SpoolError, StoredMessage};
use crate::envelope::{MessageId, Recipient, RecipientState};

/// Finds an open segment by its number.
pub(super) type FindSegment<'a> = &'a dyn Fn(SegmentNumber) -> Option<Arc<Segment>>;

/// Largest frame payload believed when reading.
const PAYLOAD_BYTES_MAX: u32 = 1 << 30;

/// Reads one frame's payload and verifies it.
fn read_frame(
    segment: &Segment,
    id: MessageId,
    kind: Kind,
    place: Place,
) -> Result<Vec<u8>, SpoolError> {
    let damaged = |detail: &str| SpoolError::Damaged {
        name: segment_name(segment.number),
        offset: place.offset,
        detail: detail.to_owned(),
    };
    if place.length > PAYLOAD_BYTES_MAX {
        return Err(damaged("frame length"));
    }
    let length = usize::try_from(place.length).unwrap_or(usize::MAX);
    let mut bytes = vec![0; FRAME_HEADER_BYTES + length];
    read_exact_at(&*segment.file, place.offset, &mut bytes).map_err(|e| SpoolError::Io {
        operation: "read",
        name: segment_name(segment.number),
        source: Arc::new(e),
    })?;
    let header = FrameHeader::decode(&bytes, segment.mark).map_err(damaged)?;
    if header.kind != kind || header.message != id || header.length != place.length {
        return Err(damaged("not the frame that was written here"));
    }
    let payload = bytes.split_off(FRAME_HEADER_BYTES);
    if crc32fast::hash(&payload) != header.payload_crc {
        return Err(damaged("payload checksum"));
    }
    Ok(payload)
}

fn find(segments: FindSegment<'_>, number: SegmentNumber) -> Result<Arc<Segment>, SpoolError> {
    segments(number).ok_or_else(|| SpoolError::Damaged {
        name: segment_name(number),
        offset: 0,
        detail: "segment is missing".into(),
    })
}

fn malformed(place: Place, error: record::Malformed) -> SpoolError {
    SpoolError::Damaged {
        name: segment_name(place.segment),
        offset: place.offset,
        detail: error.to_string(),
    }
}

/// What is on disk of a message besides its content: its records, payload by payload.
pub(super) struct Records {
    /// The Envelope's payload, extents included.
    pub(super) envelope: Vec<u8>,
    /// Payloads of the Expansions, in order.
    pub(super) expansions: Vec<Vec<u8>>,
    /// For each recipient the payload of its last Outcome, if it is kept.
    pub(super) outcomes: Vec<Option<Vec<u8>>>,
    /// Payload of the last Hold.
    pub(super) hold: Option<Vec<u8>>,
}

/// Reads the frame that holds the envelope: the envelope's payload, and the Relocation around it if it is one.
fn read_head(
    segments: FindSegment<'_>,
    id: MessageId,
    entry: &Entry,
) -> Result<(Vec<u8>, Option<RelocationRecord>), SpoolError> {
    let segment = find(segments, entry.envelope.segment)?;
    if !entry.is_relocated {
        return Ok((
            read_frame(&segment, id, Kind::Envelope, entry.envelope)?,
            None,
        ));
    }
    let payload = read_frame(&segment, id, Kind::Relocation, entry.envelope)?;
    let bad = |e| malformed(entry.envelope, e);
    let envelope = record::relocated_envelope(&payload).map_err(bad)?.to_vec();
    Ok((
        envelope,
        Some(record::decode_relocation(&payload).map_err(bad)?),
    ))
}

/// Reads the payload of an Outcome.
pub(super) fn outcome(
    segments: FindSegment<'_>,
    id: MessageId,
    place: Place,
) -> Result<Vec<u8>, SpoolError> {
    read_frame(&*find(segments, place.segment)?, id, Kind::Outcome, place)
}

/// Reads all records of a message.
pub(super) fn records(
    segments: FindSegment<'_>,
    id: MessageId,
    entry: &Entry,
) -> Result<Records, SpoolError> {
    let read =
        |kind: Kind, place: Place| read_frame(&*find(segments, place.segment)?, id, kind, place);
    let (envelope, relocation) = read_head(segments, id, entry)?;
    let (mut expansions, mut hold, mut relocated) = (Vec::new(), None, Vec::new());
    if let Some(relocation) = relocation {
        expansions = relocation.expansions;
        hold = relocation.hold;
        relocated = relocation.recipients;
    }
    for expansion in &entry.expansions {
        expansions.push(read(Kind::Expansion, expansion.place)?);
    }
    if let Some(place) = entry.hold {
        hold = Some(read(Kind::Hold, place)?);
    }
    let mut outcomes = Vec::with_capacity(entry.recipients.len());
    for (at, recipient) in entry.recipients.iter().enumerate() {
        outcomes.push(match recipient.last {
            Last::Nowhere => None,
            Last::At(place) => Some(read(Kind::Outcome, place)?),
            Last::Relocated => relocated.get_mut(at).and_then(|(_, _, last)| last.take()),
        });
    }
    Ok(Records {
        envelope,
        expansions,
        outcomes,
        hold,
    })
}

/// Whom a message is for, as the envelope and the expansions tell it one after another.
struct Targets {
    recipients: Vec<(Recipient, RecipientState)>,
    /// How many were told.
    count: usize,
    /// How many the index knows; those beyond them are left out.
    room: usize,
}

impl Targets {
    fn push(&mut self, recipient: Recipient) {
        self.count += 1;
        if self.count <= self.room {
            // Until its state is read.
            let state = RecipientState::Expanded;
            self.recipients.push((recipient, state));
        }
    }

    fn expand(&mut self, payload: &[u8]) -> Result<(), record::Malformed> {
        let (_, first_child, _) = record::expansion_facts(payload)?;
        if usize::try_from(first_child) != Ok(self.count) {
            return Err(record::Malformed("expansion"));
        }
        record::each_child(payload, &mut |child| self.push(child))
    }
}

/// Reads a message's envelope, expansions and last outcomes. Of what may be large, one record is in memory at a time.
pub(super) fn message(
    segments: FindSegment<'_>,
    id: MessageId,
    entry: &Entry,
    is_leased: bool,
    now: Now,
) -> Result<StoredMessage, SpoolError> {
    let read =
        |kind: Kind, place: Place| read_frame(&*find(segments, place.segment)?, id, kind, place);
    let bad = |e| malformed(entry.envelope, e);
    let (head, relocation) = read_head(segments, id, entry)?;
    let envelope = record::decode_envelope(&head).map_err(bad)?;
    let facts = record::envelope_facts(&head).map_err(bad)?;
    drop(head);
    let relocation = relocation.unwrap_or_default();
    let mut targets = Targets {
        recipients: Vec::with_capacity(entry.recipients.len()),
        count: 0,
        room: entry.recipients.len(),
    };
    for recipient in &envelope.recipients {
        targets.push(recipient.clone());
    }
    for payload in &relocation.expansions {
        targets.expand(payload).map_err(bad)?;
    }
    drop(relocation.expansions);
    for expansion in &entry.expansions {
        targets
            .expand(&read(Kind::Expansion, expansion.place)?)
            .map_err(bad)?;
    }
    let mut recipients = targets.recipients;
    let mut relocated = relocation.recipients;
    for (at, ((_, state), known)) in recipients.iter_mut().zip(&entry.recipients).enumerate() {
        *state = match known.standing {
            Standing::Expanded => RecipientState::Expanded,
            Standing::Delivered => RecipientState::Delivered,
            Standing::Failed => RecipientState::Failed,
            Standing::Pending => {
                let payload = match known.last {
                    Last::Nowhere => None,
                    Last::At(place) => Some(read(Kind::Outcome, place)?),
                    Last::Relocated => relocated.get_mut(at).and_then(|(_, _, last)| last.take()),
                };
                let last = payload.map(|payload| record::decode_outcome(&payload).map_err(bad));
                RecipientState::Pending {
                    last: last.transpose()?.map(|last| Box::new(last.outcome)),
                    tries: known.tries,
                }
            }
        };
    }
    let hold = match (entry.is_held, entry.hold) {
        (false, _) => None,
        (true, Some(place)) => Some(read(Kind::Hold, place)?),
        (true, None) => relocation.hold,
    };
    let hold = hold.map(|payload| record::decode_hold(&payload).map_err(bad));
    Ok(StoredMessage {
        id,
        hold_reason: hold.transpose()?.and_then(|hold| hold.reason),
        envelope,
        recipients,
        due_unix_ms: Index::due_to_wall(entry.due, now),
        is_held: entry.is_held,
        has_warned: entry.has_warned,
        is_leased,
        content_bytes: facts.content_bytes,
    })
}

/// Reads a message's content from start to end; [`io::Read`]. Blocks: disk. Memory: one chunk.
pub struct ContentReader {
    id: MessageId,
    chunks: std::vec::IntoIter<(Arc<Segment>, Extent)>,
    chunk: Vec<u8>,
    at: usize,
    told: Option<OnError>,
}

/// Told of the error that ends the reading.
type OnError = Box<dyn Fn(&SpoolError) + Send>;

impl ContentReader {
    pub(super) fn open(
        segments: FindSegment<'_>,
        id: MessageId,
        entry: &Entry,
    ) -> Result<Self, SpoolError> {
        let (payload, _) = read_head(segments, id, entry)?;
        let bad = |e| malformed(entry.envelope, e);
        let extents = record::decode_extents(&payload).map_err(bad)?;
        let total: u64 = extents.iter().map(|extent| u64::from(extent.length)).sum();
        if total != record::envelope_facts(&payload).map_err(bad)?.content_bytes {
            return Err(bad(record::Malformed("envelope")));
        }
        let mut chunks = Vec::with_capacity(extents.len());
        for extent in extents {
            chunks.push((find(segments, extent.segment)?, extent));
        }
        Ok(Self {
            id,
            chunks: chunks.into_iter(),
            chunk: Vec::new(),
            at: 0,
            told: None,
        })
    }

    /// The same, and `told` hears of an error.
    pub(super) fn on_error(self, told: impl Fn(&SpoolError) + Send + 'static) -> Self {
        Self {
            told: Some(Box::new(told)),
            ..self
        }
    }

    /// The next piece of content, at most one chunk; empty at the end. Saves a copy over [`io::Read`].
    ///
    /// # Errors
    /// Of kind `InvalidData` for damage, otherwise the system's.
    pub fn next_chunk(&mut self) -> io::Result<Vec<u8>> {
        let Some((segment, extent)) = self.chunks.next() else {
            return Ok(Vec::new());
        };
        let place = Place {
            segment: extent.segment,
            offset: extent.offset,
            length: extent.length,
        };
        read_frame(&segment, self.id, Kind::Content, place).map_err(|error| {
            if let Some(told) = &self.told {
                told(&error);
            }
            match error {
                SpoolError::Io { source, .. } => io::Error::new(source.kind(), source),
                other => io::Error::new(io::ErrorKind::InvalidData, other),
            }
        })
    }
}

impl io::Read for ContentReader {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while self.at >= self.chunk.len() {
            self.chunk = self.next_chunk()?;
            self.at = 0;
            if self.chunk.is_empty() {
                return Ok(0);
            }
        }
        let rest = self.chunk.get(self.at..).unwrap_or_default();
        let count = rest.len().min(into.len());
        if let (Some(to), Some(from)) = (into.get_mut(..count), rest.get(..count)) {
            to.copy_from_slice(from);
        }
        self.at += count;
        Ok(count)
    }
}
