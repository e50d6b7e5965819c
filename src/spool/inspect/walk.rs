//! Reading a segment as it lies on disk, from end to end, without deciding what counts (SPOOL 3).
//!
//! Recovery decides; this only finds: batches that stand, what bears the segment's mark and does not stand, blocks
//! that can't be read, and holes between batches. What lies behind the last batch and has another mark is of an
//! earlier life of the file and is passed over (S6). Blocks: disk. Memory: one piece of 1 MiB or one batch.

use std::io;
use std::sync::Arc;

use crate::spool::format::{
    BLOCK_BYTES, BatchHeader, FIRST_BATCH_OFFSET, FoundFrame, Padding, SegmentNumber, decode_batch,
    field, round_to_block,
};
use crate::spool::index::Place;
use crate::spool::segment::Segment;
use crate::spool::storage::{Storage, StorageFile, read_exact_at};

/// Bytes read at once.
const PIECE_BYTES: usize = 1 << 20;
/// Largest batch that is read into memory.
const BATCH_BYTES_MAX: u64 = 1 << 30;

/// A batch that stands by itself: its headers check, its payloads need not.
pub(super) struct Batch {
    pub(super) segment: SegmentNumber,
    pub(super) offset: u64,
    pub(super) header: BatchHeader,
    pub(super) frames: Vec<FoundFrame>,
    pub(super) padding: Padding,
    /// Whether it names the batch before it in this segment as its predecessor; true after a hole.
    pub(super) is_chained: bool,
    pub(super) bytes: Vec<u8>,
}

impl Batch {
    /// Where a frame of it lies.
    pub(super) fn place(&self, frame: &FoundFrame) -> Place {
        Place {
            segment: self.segment,
            offset: self.offset + frame.at as u64,
            length: frame.header.length,
        }
    }

    /// A frame's payload, if it is what was written.
    pub(super) fn payload(&self, frame: &FoundFrame) -> Result<&[u8], &[u8]> {
        let payload = frame.payload(&self.bytes);
        if crc32fast::hash(payload) == frame.header.payload_crc {
            Ok(payload)
        } else {
            Err(payload)
        }
    }
}

/// What is found in a segment.
pub(super) enum Item {
    /// A batch that stands.
    Batch(Batch),
    /// A block that begins like a batch of this segment, and is none.
    Broken {
        offset: u64,
        /// What its header says of itself; not to be believed.
        header: BatchHeader,
        what: &'static str,
    },
    /// A block that can't be read.
    Unreadable { offset: u64, error: io::Error },
    /// Blocks before a batch that belong to nothing.
    Hole { offset: u64, bytes: u64 },
}

/// Shows each thing in a segment, front to back.
pub(super) fn walk(segment: &Segment, visit: &mut dyn FnMut(Item)) {
    let mut piece = Piece {
        file: &*segment.file,
        capacity: segment.capacity,
        bytes: Vec::new(),
        start: 0,
    };
    let mut offset = FIRST_BATCH_OFFSET;
    let mut hole = offset;
    let mut chain = Some(0);
    while offset + BLOCK_BYTES <= segment.capacity {
        match batch_at(&mut piece, segment, offset, chain) {
            Ok(Some(Ok(batch))) => {
                if hole < offset {
                    visit(Item::Hole {
                        offset: hole,
                        bytes: offset - hole,
                    });
                }
                chain = Some(batch.header.checksum);
                offset += round_to_block(u64::from(batch.header.length));
                hole = offset;
                visit(Item::Batch(batch));
                continue;
            }
            Ok(Some(Err((header, what)))) => {
                visit(Item::Broken {
                    offset,
                    header,
                    what,
                });
            }
            Ok(None) => {}
            Err(error) => visit(Item::Unreadable { offset, error }),
        }
        chain = None;
        offset += BLOCK_BYTES;
    }
}

type Standing = Result<Batch, (BatchHeader, &'static str)>;

/// What bears the segment's mark at this offset.
fn batch_at(
    piece: &mut Piece<'_>,
    segment: &Segment,
    offset: u64,
    chain: Option<u32>,
) -> io::Result<Option<Standing>> {
    let head = piece.at(offset, 64)?;
    if field::u64_at(head, 0) != Some(segment.mark) {
        return Ok(None);
    }
    let Some(header) = BatchHeader::decode(head) else {
        return Ok(None);
    };
    let length = round_to_block(u64::from(header.length));
    if length == 0 || offset + length > segment.capacity || length > BATCH_BYTES_MAX {
        return Ok(Some(Err((header, "its length is out of bounds"))));
    }
    let bytes = piece.at(offset, usize::try_from(length).unwrap_or(usize::MAX))?;
    Ok(Some(match decode_batch(bytes, segment.mark) {
        Ok((header, frames, padding)) => Ok(Batch {
            segment: segment.number,
            offset,
            header,
            frames,
            padding,
            is_chained: chain.is_none_or(|chain| chain == header.chain),
            bytes: bytes.to_vec(),
        }),
        Err(what) => Err((header, what)),
    }))
}

/// Opens a segment whose headers are both unreadable, by the mark that the first batch in it bears. `None` if no batch
/// stands in it.
///
/// # Errors
/// The system's, if the file can't be opened.
pub(super) fn open_headless(
    storage: &dyn Storage,
    name: &str,
    number: SegmentNumber,
) -> io::Result<Option<Segment>> {
    let file: Arc<dyn StorageFile> = storage.open_read(name)?;
    let capacity = file.len()?;
    let mut segment = Segment {
        number,
        mark: 0,
        capacity,
        generation: 0,
        file: Arc::clone(&file),
    };
    let mut piece = Piece {
        file: &*file,
        capacity,
        bytes: Vec::new(),
        start: 0,
    };
    let mut offset = FIRST_BATCH_OFFSET;
    while offset + BLOCK_BYTES <= capacity {
        let mark = piece.at(offset, 64).ok().and_then(|b| field::u64_at(b, 0));
        segment.mark = mark.unwrap_or(0);
        if segment.mark != 0
            && let Ok(Some(Ok(_))) = batch_at(&mut piece, &segment, offset, None)
        {
            return Ok(Some(segment));
        }
        offset += BLOCK_BYTES;
    }
    Ok(None)
}

/// A file read in large pieces, front to back; a bad sector costs only the block it is in.
struct Piece<'a> {
    file: &'a dyn StorageFile,
    capacity: u64,
    bytes: Vec<u8>,
    start: u64,
}

impl Piece<'_> {
    fn at(&mut self, offset: u64, length: usize) -> io::Result<&[u8]> {
        let end = offset + length as u64;
        if offset < self.start || end > self.start + self.bytes.len() as u64 {
            let left = self.capacity.saturating_sub(offset);
            let want = length
                .max(PIECE_BYTES)
                .min(usize::try_from(left).unwrap_or(usize::MAX));
            self.start = offset;
            self.bytes.resize(want, 0);
            let mut read = read_exact_at(self.file, offset, &mut self.bytes);
            if read.is_err() {
                self.bytes.resize(length, 0);
                read = read_exact_at(self.file, offset, &mut self.bytes);
            }
            if let Err(error) = read {
                self.bytes.clear();
                return Err(error);
            }
        }
        let from = usize::try_from(offset - self.start).unwrap_or(usize::MAX);
        self.bytes
            .get(from..from.saturating_add(length))
            .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}
