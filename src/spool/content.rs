//! Reading messages back: envelopes, states and content, each record verified against its checksums. Blocks: disk.

use std::io;
use std::sync::Arc;

use super::format::{FRAME_HEADER_BYTES, FrameHeader, Kind, SegmentNumber};
use super::index::{Entry, Index, Now, Place, Standing};
use super::record::{self, Extent};
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

/// Reads a message's envelope, expansions and last outcomes.
pub(super) fn message(
    segments: FindSegment<'_>,
    id: MessageId,
    entry: &Entry,
    is_leased: bool,
    now: Now,
) -> Result<StoredMessage, SpoolError> {
    let read =
        |kind: Kind, place: Place| read_frame(&*find(segments, place.segment)?, id, kind, place);
    let payload = read(Kind::Envelope, entry.envelope)?;
    let envelope = record::decode_envelope(&payload).map_err(|e| malformed(entry.envelope, e))?;
    let mut targets: Vec<Recipient> = envelope.recipients.clone();
    for place in &entry.expansions {
        let payload = read(Kind::Expansion, *place)?;
        let expansion = record::decode_expansion(&payload).map_err(|e| malformed(*place, e))?;
        if usize::try_from(expansion.first_child) != Ok(targets.len()) {
            return Err(malformed(*place, record::Malformed("expansion")));
        }
        targets.extend(expansion.children);
    }
    let mut recipients = Vec::with_capacity(targets.len());
    for (recipient, standing) in targets.into_iter().zip(&entry.recipients) {
        let state = match standing.standing {
            Standing::Expanded => RecipientState::Expanded,
            Standing::Delivered => RecipientState::Delivered,
            Standing::Failed => RecipientState::Failed,
            Standing::Pending => {
                let last = match standing.last {
                    None => None,
                    Some(place) => {
                        let payload = read(Kind::Outcome, place)?;
                        Some(
                            record::decode_outcome(&payload)
                                .map_err(|e| malformed(place, e))?
                                .outcome,
                        )
                    }
                };
                RecipientState::Pending {
                    last,
                    tries: standing.tries,
                }
            }
        };
        recipients.push((recipient, state));
    }
    Ok(StoredMessage {
        id,
        envelope,
        recipients,
        due_unix_ms: Index::due_to_wall(entry.due, now),
        is_held: entry.is_held,
        has_warned: entry.has_warned,
        is_leased,
        content_bytes: entry.content_bytes,
    })
}

/// Reads a message's content from start to end; [`io::Read`]. Blocks: disk. Memory: one chunk.
pub struct ContentReader {
    id: MessageId,
    chunks: std::vec::IntoIter<(Arc<Segment>, Extent)>,
    chunk: Vec<u8>,
    at: usize,
}

impl ContentReader {
    pub(super) fn open(
        segments: FindSegment<'_>,
        id: MessageId,
        entry: &Entry,
    ) -> Result<Self, SpoolError> {
        let segment = find(segments, entry.envelope.segment)?;
        let payload = read_frame(&segment, id, Kind::Envelope, entry.envelope)?;
        let extents = record::decode_extents(&payload).map_err(|e| malformed(entry.envelope, e))?;
        let total: u64 = extents.iter().map(|extent| u64::from(extent.length)).sum();
        if total != entry.content_bytes {
            return Err(malformed(entry.envelope, record::Malformed("envelope")));
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
        })
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
        read_frame(&segment, self.id, Kind::Content, place).map_err(|error| match error {
            SpoolError::Io { source, .. } => io::Error::new(source.kind(), source),
            other => io::Error::new(io::ErrorKind::InvalidData, other),
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
