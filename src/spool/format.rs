//! The bytes of a journal segment: header, batches, frames (the format's table). Pure; no I/O.
//!
//! All integers are little-endian, all checksums CRC-32 (IEEE). A segment is one file:
//!
//! | offset | what |
//! |---|---|
//! | 0, 4096 | segment header, twice; either copy serves |
//! | 8192 on | batches, each starting at a multiple of 4096 |
//!
//! Segment header, 4096 bytes:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `SPOOLSEG` |
//! | 8 | 2 | format version, 1 |
//! | 10 | 2 | flags, 0 |
//! | 12 | 4 | header length, 4096 |
//! | 16 | 8 | segment number |
//! | 24 | 8 | mark: random, chosen anew at each use of the file |
//! | 32 | 8 | Lsn counter when prepared: a lower bound of what the segment holds |
//! | 40 | 8 | batch counter when prepared, likewise |
//! | 48 | 16 | spool id |
//! | 64 | 8 | capacity in bytes |
//! | 72 | 8 | wall clock in ms, for people only |
//! | 80 | 4 | generation |
//! | 4092 | 4 | checksum of bytes 0 to 4091 |
//!
//! Batch: a header of 64 bytes, frames, zeros up to the next multiple of 4096.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | mark of the segment |
//! | 8 | 4 | length of header and frames, padding excluded |
//! | 12 | 4 | checksum of the header (this field as 0) and of all frame headers, in order |
//! | 16 | 8 | batch number |
//! | 24 | 8 | durable: highest batch number whose sync had returned when this batch was built |
//! | 32 | 8 | Lsn of the first frame |
//! | 40 | 4 | number of frames |
//! | 44 | 4 | chain: checksum field of the batch before in this segment, 0 for the first |
//! | 48 | 8 | wall clock in ms |
//! | 56 | 8 | ids: every message id given so far is below this (S10) |
//!
//! Frame: a header of 32 bytes, payload, zeros up to a multiple of 8.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 1 | kind |
//! | 1 | 1 | flags; an unknown bit of the upper four means "do not ignore" |
//! | 2 | 2 | chunk ordinal modulo 65536 |
//! | 4 | 4 | payload length |
//! | 8 | 8 | message id |
//! | 16 | 8 | transaction: Lsn of its first frame |
//! | 24 | 4 | checksum of the payload |
//! | 28 | 4 | checksum of bytes 0 to 27 followed by the low 4 bytes of the mark |

use crate::envelope::MessageId;

/// Batches and segment headers start at multiples of this, and no two batches share one (S3).
pub(super) const BLOCK_BYTES: u64 = 4096;
/// More batches, and more frames, than fit into a segment of 1 GiB, the largest there is. Segments are numbered in the order
/// they are made, so times the number of the next one these are above every batch number and Lsn ever given.
pub(super) const BATCHES_A_SEGMENT: u64 = 1 << 20;
pub(super) const LSNS_A_SEGMENT: u64 = 1 << 26;
/// Where the first batch of a segment starts.
pub(super) const FIRST_BATCH_OFFSET: u64 = 2 * BLOCK_BYTES;
/// Length of a batch header.
pub(super) const BATCH_HEADER_BYTES: usize = 64;
/// Length of a frame header.
pub(super) const FRAME_HEADER_BYTES: usize = 32;

const SEGMENT_MAGIC: &[u8; 8] = b"SPOOLSEG";
const SEGMENT_VERSION: u16 = 1;
const HEADER_BYTES: usize = 4096;

/// A place in the order of all frames.
pub(super) type Lsn = u64;
/// A batch's number.
pub(super) type BatchNumber = u64;
/// A segment's number.
pub(super) type SegmentNumber = u64;

/// Rounds up to the next multiple of the block size.
pub(super) const fn round_to_block(bytes: u64) -> u64 {
    bytes.next_multiple_of(BLOCK_BYTES)
}

/// Length of a frame with this payload: header, payload, padding.
pub(super) const fn frame_bytes(payload: usize) -> usize {
    FRAME_HEADER_BYTES + payload.next_multiple_of(8)
}

/// Reads little-endian fields out of bytes; `None` when they are too short.
pub(super) mod field {
    pub(in crate::spool) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
        Some(u16::from_le_bytes(
            bytes.get(at..at.checked_add(2)?)?.try_into().ok()?,
        ))
    }
    pub(in crate::spool) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
        Some(u32::from_le_bytes(
            bytes.get(at..at.checked_add(4)?)?.try_into().ok()?,
        ))
    }
    pub(in crate::spool) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
        Some(u64::from_le_bytes(
            bytes.get(at..at.checked_add(8)?)?.try_into().ok()?,
        ))
    }
    pub(in crate::spool) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
        // Callers place fields inside arrays whose sizes are constants of this module.
        if let Some(place) = bytes.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
        }
    }
}
use field::{put, u16_at, u32_at, u64_at};

/// A segment's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) number: SegmentNumber,
    pub(super) mark: u64,
    pub(super) lsn: Lsn,
    pub(super) batch: BatchNumber,
    pub(super) spool_id: [u8; 16],
    pub(super) capacity: u64,
    pub(super) wall_ms: u64,
    pub(super) generation: u32,
}

impl SegmentHeader {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; HEADER_BYTES];
        put(&mut out, 0, SEGMENT_MAGIC);
        put(&mut out, 8, &SEGMENT_VERSION.to_le_bytes());
        put(&mut out, 12, &4096_u32.to_le_bytes());
        put(&mut out, 16, &self.number.to_le_bytes());
        put(&mut out, 24, &self.mark.to_le_bytes());
        put(&mut out, 32, &self.lsn.to_le_bytes());
        put(&mut out, 40, &self.batch.to_le_bytes());
        put(&mut out, 48, &self.spool_id);
        put(&mut out, 64, &self.capacity.to_le_bytes());
        put(&mut out, 72, &self.wall_ms.to_le_bytes());
        put(&mut out, 80, &self.generation.to_le_bytes());
        let sum = crc32fast::hash(out.get(..4092).unwrap_or_default());
        put(&mut out, 4092, &sum.to_le_bytes());
        out
    }

    /// Decodes one copy; what is wrong, in words, if it is not valid.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, &'static str> {
        let short = "too short";
        if bytes.get(..8).ok_or(short)? != SEGMENT_MAGIC {
            return Err("no segment magic");
        }
        let body = bytes.get(..4092).ok_or(short)?;
        if u32_at(bytes, 4092).ok_or(short)? != crc32fast::hash(body) {
            return Err("segment header checksum");
        }
        if u16_at(bytes, 8) != Some(SEGMENT_VERSION) || u16_at(bytes, 10) != Some(0) {
            return Err("unknown segment format version");
        }
        Ok(Self {
            number: u64_at(bytes, 16).ok_or(short)?,
            mark: u64_at(bytes, 24).ok_or(short)?,
            lsn: u64_at(bytes, 32).ok_or(short)?,
            batch: u64_at(bytes, 40).ok_or(short)?,
            spool_id: bytes
                .get(48..64)
                .and_then(|b| b.try_into().ok())
                .ok_or(short)?,
            capacity: u64_at(bytes, 64).ok_or(short)?,
            wall_ms: u64_at(bytes, 72).ok_or(short)?,
            generation: u32_at(bytes, 80).ok_or(short)?,
        })
    }
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Content = 1,
    Envelope = 2,
    Expansion = 3,
    Outcome = 4,
    Hold = 5,
    Removal = 6,
    Relocation = 7,
    Void = 8,
    Pulse = 9,
    Seal = 10,
    Skip = 11,
}

impl Kind {
    const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Content,
            2 => Self::Envelope,
            3 => Self::Expansion,
            4 => Self::Outcome,
            5 => Self::Hold,
            6 => Self::Removal,
            7 => Self::Relocation,
            8 => Self::Void,
            9 => Self::Pulse,
            10 => Self::Seal,
            11 => Self::Skip,
            _ => return None,
        })
    }
}

/// A batch's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BatchHeader {
    pub(super) mark: u64,
    pub(super) length: u32,
    pub(super) checksum: u32,
    pub(super) number: BatchNumber,
    pub(super) durable: BatchNumber,
    pub(super) lsn: Lsn,
    pub(super) frames: u32,
    pub(super) chain: u32,
    pub(super) wall_ms: u64,
    pub(super) ids: u64,
}

impl BatchHeader {
    pub(super) fn encode(&self) -> [u8; BATCH_HEADER_BYTES] {
        let mut out = [0; BATCH_HEADER_BYTES];
        put(&mut out, 0, &self.mark.to_le_bytes());
        put(&mut out, 8, &self.length.to_le_bytes());
        put(&mut out, 12, &self.checksum.to_le_bytes());
        put(&mut out, 16, &self.number.to_le_bytes());
        put(&mut out, 24, &self.durable.to_le_bytes());
        put(&mut out, 32, &self.lsn.to_le_bytes());
        put(&mut out, 40, &self.frames.to_le_bytes());
        put(&mut out, 44, &self.chain.to_le_bytes());
        put(&mut out, 48, &self.wall_ms.to_le_bytes());
        put(&mut out, 56, &self.ids.to_le_bytes());
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            mark: u64_at(bytes, 0)?,
            length: u32_at(bytes, 8)?,
            checksum: u32_at(bytes, 12)?,
            number: u64_at(bytes, 16)?,
            durable: u64_at(bytes, 24)?,
            lsn: u64_at(bytes, 32)?,
            frames: u32_at(bytes, 40)?,
            chain: u32_at(bytes, 44)?,
            wall_ms: u64_at(bytes, 48)?,
            ids: u64_at(bytes, 56)?,
        })
    }

    /// The checksum this header should carry over the given frame headers, one after another.
    pub(super) fn checksum_over(&self, frame_headers: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(
            &Self {
                checksum: 0,
                ..*self
            }
            .encode(),
        );
        hasher.update(frame_headers);
        hasher.finalize()
    }
}

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHeader {
    pub(super) kind: Kind,
    pub(super) ordinal: u16,
    pub(super) length: u32,
    pub(super) message: MessageId,
    pub(super) transaction: Lsn,
    pub(super) payload_crc: u32,
}

impl FrameHeader {
    pub(super) fn encode(&self, mark: u64) -> [u8; FRAME_HEADER_BYTES] {
        let mut out = [0; FRAME_HEADER_BYTES];
        put(&mut out, 0, &[self.kind as u8, 0]);
        put(&mut out, 2, &self.ordinal.to_le_bytes());
        put(&mut out, 4, &self.length.to_le_bytes());
        put(&mut out, 8, &self.message.number().to_le_bytes());
        put(&mut out, 16, &self.transaction.to_le_bytes());
        put(&mut out, 24, &self.payload_crc.to_le_bytes());
        let sum = header_crc(&out, mark);
        put(&mut out, 28, &sum.to_le_bytes());
        out
    }

    /// Decodes and verifies a header against its segment's mark.
    pub(super) fn decode(bytes: &[u8], mark: u64) -> Result<Self, &'static str> {
        let bytes = bytes
            .get(..FRAME_HEADER_BYTES)
            .ok_or("frame header cut off")?;
        if u32_at(bytes, 28) != Some(header_crc(bytes, mark)) {
            return Err("frame header checksum");
        }
        let (kind, flags) = (
            bytes.first().copied().unwrap_or(0),
            bytes.get(1).copied().unwrap_or(0),
        );
        if flags & 0xf0 != 0 {
            return Err("frame with flags of a later version");
        }
        let short = "frame header cut off";
        Ok(Self {
            kind: Kind::from_byte(kind).ok_or("frame of unknown kind")?,
            ordinal: u16_at(bytes, 2).ok_or(short)?,
            length: u32_at(bytes, 4).ok_or(short)?,
            message: MessageId::from_number(u64_at(bytes, 8).ok_or(short)?),
            transaction: u64_at(bytes, 16).ok_or(short)?,
            payload_crc: u32_at(bytes, 24).ok_or(short)?,
        })
    }
}

fn header_crc(header: &[u8], mark: u64) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header.get(..28).unwrap_or_default());
    hasher.update(mark.to_le_bytes().get(..4).unwrap_or_default());
    hasher.finalize()
}

/// A frame found in a batch: its header and where its payload lies from the batch's start.
#[derive(Debug, Clone, Copy)]
pub(super) struct FoundFrame {
    pub(super) header: FrameHeader,
    /// Offset of the frame header from the start of the batch.
    pub(super) at: usize,
}

impl FoundFrame {
    /// The payload within the bytes of the batch.
    pub(super) fn payload<'a>(&self, batch: &'a [u8]) -> &'a [u8] {
        let start = self.at + FRAME_HEADER_BYTES;
        let len = usize::try_from(self.header.length).unwrap_or(usize::MAX);
        batch
            .get(start..start.saturating_add(len))
            .unwrap_or_default()
    }
}

/// Whether the bytes between frames and up to the block are as written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Padding {
    Zero,
    /// No record is touched, but some byte is not what was written.
    Dirty,
}

/// Whether all bytes are zero, looked at in words: half of a batch of small mail is padding.
fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|b| *b == 0)
}

/// Decodes the frames of a batch whose bytes (header and frames, padding up to the block included) are `batch`, and
/// verifies all headers. Payload checksums are left to the caller.
pub(super) fn decode_batch(
    batch: &[u8],
    mark: u64,
) -> Result<(BatchHeader, Vec<FoundFrame>, Padding), &'static str> {
    let header = BatchHeader::decode(batch).ok_or("batch cut off")?;
    if header.mark != mark {
        return Err("no batch mark");
    }
    let length = usize::try_from(header.length).unwrap_or(usize::MAX);
    if length < BATCH_HEADER_BYTES || length > batch.len() {
        return Err("batch length");
    }
    let mut frames = Vec::new();
    let mut headers = Vec::new();
    let mut is_clean = true;
    let mut at = BATCH_HEADER_BYTES;
    while at < length {
        let bytes = batch.get(at..length).ok_or("frame cut off")?;
        let frame = FrameHeader::decode(bytes, mark)?;
        headers.extend_from_slice(bytes.get(..FRAME_HEADER_BYTES).ok_or("frame cut off")?);
        let payload = usize::try_from(frame.length).unwrap_or(usize::MAX);
        let end = payload
            .checked_next_multiple_of(8)
            .and_then(|p| p.checked_add(at + FRAME_HEADER_BYTES))
            .filter(|end| *end <= length)
            .ok_or("frame length")?;
        let padding = batch
            .get(at + FRAME_HEADER_BYTES + payload..end)
            .ok_or("frame cut off")?;
        is_clean &= is_zero(padding);
        frames.push(FoundFrame { header: frame, at });
        at = end;
    }
    if u32::try_from(frames.len()) != Ok(header.frames) {
        return Err("number of frames");
    }
    if header.checksum != header.checksum_over(&headers) {
        return Err("batch checksum");
    }
    is_clean &= is_zero(batch.get(length..).unwrap_or_default());
    Ok((
        header,
        frames,
        if is_clean {
            Padding::Zero
        } else {
            Padding::Dirty
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        SegmentHeader {
            number: 7,
            mark: 0x1122_3344_5566_7788,
            lsn: 9,
            batch: 3,
            spool_id: *b"0123456789abcdef",
            capacity: 1 << 20,
            wall_ms: 42,
            generation: 0,
        }
    }

    #[test]
    fn segment_header_round_trips_and_every_flipped_bit_is_found() {
        let bytes = header().encode();
        assert_eq!(SegmentHeader::decode(&bytes), Ok(header()));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(SegmentHeader::decode(&bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn batch_round_trips_and_every_flipped_byte_outside_payloads_is_found() {
        let mark = 0xfeed_face_cafe_beef;
        let payload = b"hello";
        let frame = FrameHeader {
            kind: Kind::Content,
            ordinal: 0,
            length: 5,
            message: MessageId::from_number(77),
            transaction: 1,
            payload_crc: crc32fast::hash(payload),
        };
        let frame_header = frame.encode(mark);
        let mut batch = BatchHeader {
            mark,
            length: u32::try_from(BATCH_HEADER_BYTES + frame_bytes(5)).unwrap(),
            checksum: 0,
            number: 4,
            durable: 3,
            lsn: 1,
            frames: 1,
            chain: 0,
            wall_ms: 0,
            ids: 78,
        };
        batch.checksum = batch.checksum_over(&frame_header);
        let mut bytes = batch.encode().to_vec();
        bytes.extend(frame_header);
        bytes.extend(payload);
        bytes.resize(4096, 0);
        let (found, frames, padding) = decode_batch(&bytes, mark).unwrap();
        assert_eq!(padding, Padding::Zero);
        assert_eq!(found, batch);
        assert_eq!(frames[0].header, frame);
        assert_eq!(frames[0].payload(&bytes), payload);
        for at in (0..4096).filter(|at| !(96..101).contains(at)) {
            let mut bad = bytes.clone();
            bad[at] ^= 0x40;
            assert!(
                !matches!(decode_batch(&bad, mark), Ok((_, _, Padding::Zero))),
                "byte {at}"
            );
        }
    }
}
