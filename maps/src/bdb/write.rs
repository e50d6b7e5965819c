//! Pages as we write them, and where overflow chains and trees of duplicates go.
//!
//! Little endian, 4096 bytes a page, log sequence number 0/1 ("not logged") on every page; `page.rs` draws the
//! layout. Pages whose number is known only later are kept in a [`Tail`], which holds references to the records
//! rather than copies, so that a map of large values is not held twice.

use super::page::{HEADER_LEN, META_LEN, page_type};
use crate::records::{self, Entries};
use crate::write_behind::WriteBehind;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};

/// Page size of files we write: what stock tools use on Linux.
pub(crate) const PAGE_SIZE: usize = 4096;
/// Bytes of items and their index a page holds.
pub(crate) const PAGE_ROOM: usize = PAGE_SIZE - HEADER_LEN;
/// Version of both methods that we write.
const VERSION: u32 = 9;

/// A page being filled: items from the end downward, their offsets from the header upward.
pub(crate) struct PageBuffer {
    bytes: [u8; PAGE_SIZE],
    entries: usize,
    low: usize,
}

impl PageBuffer {
    pub(crate) fn new() -> Self {
        Self {
            bytes: [0; PAGE_SIZE],
            entries: 0,
            low: PAGE_SIZE,
        }
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::new();
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Bytes left for items and their 2-byte offsets.
    pub(crate) fn room(&self) -> usize {
        self.low - HEADER_LEN - self.entries * 2
    }

    /// Adds an item made of `parts`, padded to a multiple of `align`; the caller has checked that it fits.
    pub(crate) fn push(&mut self, parts: &[&[u8]], align: usize) {
        let len: usize = parts.iter().map(|part| part.len()).sum();
        let len = len.next_multiple_of(align);
        assert!(
            len + 2 <= self.room(),
            "an item was placed on a page without room for it"
        );
        self.low -= len;
        let mut at = self.low;
        for part in parts {
            self.bytes[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        self.push_offset(self.low);
    }

    /// Adds a slot that refers to the item of slot `index`.
    pub(crate) fn share(&mut self, index: usize) {
        let at = HEADER_LEN + index * 2;
        let offset = u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]]);
        self.push_offset(usize::from(offset));
    }

    fn push_offset(&mut self, offset: usize) {
        let at = HEADER_LEN + self.entries * 2;
        self.bytes[at..at + 2].copy_from_slice(&half(offset));
        self.entries += 1;
    }

    pub(crate) fn entries(&self) -> usize {
        self.entries
    }

    /// The finished page.
    pub(crate) fn finish(&mut self, header: Header) -> &[u8; PAGE_SIZE] {
        write_header(&mut self.bytes, header, half(self.entries), half(self.low));
        &self.bytes
    }
}

/// The fields of a page header that its place decides.
#[derive(Clone, Copy)]
pub(crate) struct Header {
    pub(crate) number: u32,
    pub(crate) previous: u32,
    pub(crate) next: u32,
    pub(crate) level: u8,
    pub(crate) kind: u8,
}

fn write_header(bytes: &mut [u8; PAGE_SIZE], header: Header, entries: [u8; 2], low: [u8; 2]) {
    bytes[4] = 1;
    bytes[8..12].copy_from_slice(&header.number.to_le_bytes());
    bytes[12..16].copy_from_slice(&header.previous.to_le_bytes());
    bytes[16..20].copy_from_slice(&header.next.to_le_bytes());
    bytes[20..22].copy_from_slice(&entries);
    bytes[22..24].copy_from_slice(&low);
    bytes[24] = header.level;
    bytes[25] = header.kind;
}

/// A number below 65536, as two bytes; pages of 4096 bytes hold no larger one.
pub(crate) fn half(value: usize) -> [u8; 2] {
    u16::try_from(value).unwrap_or(u16::MAX).to_le_bytes()
}

/// A length or page number as four bytes; records.rs keeps lengths below 2^30.
pub(crate) fn word(value: usize) -> [u8; 4] {
    u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes()
}

/// Which half of a record a chain holds.
#[derive(Clone, Copy)]
pub(crate) enum Part {
    Key,
    Value,
}

enum TailPart {
    Page(Box<[u8; PAGE_SIZE]>),
    Record { place: u32, part: Part },
    Bytes(Vec<u8>),
}

/// What follows the pages whose place is fixed: continuation pages, overflow chains, trees of duplicates.
pub(crate) struct Tail {
    next_page: u32,
    parts: Vec<TailPart>,
}

impl Tail {
    /// `first_page` is the number its first page will have.
    pub(crate) fn new(first_page: u32) -> Self {
        Self {
            next_page: first_page,
            parts: Vec::new(),
        }
    }

    /// The number the next page added will have.
    pub(crate) fn next_page(&self) -> u32 {
        self.next_page
    }

    fn take_numbers(&mut self, count: usize) -> io::Result<u32> {
        let first = self.next_page;
        self.next_page = u32::try_from(count)
            .ok()
            .and_then(|count| first.checked_add(count))
            .ok_or_else(|| io::Error::new(io::ErrorKind::FileTooLarge, "too many pages"))?;
        Ok(first)
    }

    /// Adds a finished page, which must carry the number `next_page` gave.
    pub(crate) fn page(&mut self, page: &[u8; PAGE_SIZE]) -> io::Result<u32> {
        let number = self.take_numbers(1)?;
        self.parts.push(TailPart::Page(Box::new(*page)));
        Ok(number)
    }

    /// Takes a number for a page that is finished later; answers it and the place to fill.
    pub(crate) fn reserve(&mut self) -> io::Result<(u32, usize)> {
        let number = self.take_numbers(1)?;
        self.parts.push(TailPart::Page(Box::new([0; PAGE_SIZE])));
        Ok((number, self.parts.len() - 1))
    }

    /// Puts the page in the place `reserve` gave.
    pub(crate) fn fill(&mut self, slot: usize, page: &[u8; PAGE_SIZE]) {
        if let Some(TailPart::Page(place)) = self.parts.get_mut(slot) {
            **place = *page;
        }
    }

    /// Adds an overflow chain for a key or value; answers its first page.
    pub(crate) fn record(
        &mut self,
        entries: &Entries<'_>,
        place: u32,
        part: Part,
    ) -> io::Result<u32> {
        let (key, value) = entries.get(place);
        let len = match part {
            Part::Key => key.len(),
            Part::Value => value.len(),
        };
        let first = self.take_numbers(len.div_ceil(PAGE_ROOM))?;
        self.parts.push(TailPart::Record { place, part });
        Ok(first)
    }

    /// Adds an overflow chain for bytes of its own.
    pub(crate) fn bytes(&mut self, bytes: Vec<u8>) -> io::Result<u32> {
        let first = self.take_numbers(bytes.len().div_ceil(PAGE_ROOM))?;
        self.parts.push(TailPart::Bytes(bytes));
        Ok(first)
    }

    /// Writes everything, page after page; the file must stand at the tail's first page.
    pub(crate) fn write(
        &self,
        entries: &Entries<'_>,
        first_page: u32,
        out: &mut dyn Write,
    ) -> io::Result<()> {
        let mut number = first_page;
        for part in &self.parts {
            match part {
                TailPart::Page(page) => {
                    out.write_all(&page[..])?;
                    number += 1;
                }
                TailPart::Record { place, part } => {
                    let (key, value) = entries.get(*place);
                    let bytes = match part {
                        Part::Key => key,
                        Part::Value => value,
                    };
                    number = write_chain(bytes, number, out)?;
                }
                TailPart::Bytes(bytes) => number = write_chain(bytes, number, out)?,
            }
        }
        Ok(())
    }
}

fn write_chain(bytes: &[u8], first: u32, out: &mut dyn Write) -> io::Result<u32> {
    let mut number = first;
    let mut chunks = bytes.chunks(PAGE_ROOM).peekable();
    while let Some(chunk) = chunks.next() {
        let mut page = [0; PAGE_SIZE];
        let header = Header {
            number,
            previous: if number == first { 0 } else { number - 1 },
            next: if chunks.peek().is_some() {
                number + 1
            } else {
                0
            },
            level: 0,
            kind: page_type::OVERFLOW,
        };
        // The two 16-bit fields are the reference count and the bytes here.
        write_header(&mut page, header, half(1), half(chunk.len()));
        page[HEADER_LEN..HEADER_LEN + chunk.len()].copy_from_slice(chunk);
        out.write_all(&page)?;
        number += 1;
    }
    Ok(number)
}

/// A writer that stands at page 1, and is to be finished.
pub(crate) fn body_writer(file: &File) -> io::Result<WriteBehind> {
    let mut out = WriteBehind::new(file)?;
    out.write_all(&[0; PAGE_SIZE])?;
    Ok(out)
}

/// Sets the fields of the metadata that belong to one method, through a function of offset and value.
type FillMeta<'f> = dyn FnMut(&mut dyn FnMut(usize, u32)) + 'f;

/// Writes page 0: the common part, and what `fill` adds for the method.
pub(crate) fn write_meta(
    file: &File,
    magic: u32,
    kind: u8,
    last_page: u32,
    fill: &mut FillMeta<'_>,
) -> io::Result<()> {
    let mut page = [0; PAGE_SIZE];
    page[4] = 1;
    page[25] = kind;
    {
        let mut set = |at: usize, value: u32| {
            assert!(
                at + 4 <= META_LEN,
                "a metadata field lies beyond the metadata"
            );
            page[at..at + 4].copy_from_slice(&value.to_le_bytes());
        };
        set(12, magic);
        set(16, VERSION);
        set(20, 4096);
        set(32, last_page);
        let id = unique_id(file)?;
        for (at, part) in (52..72).step_by(4).zip(id) {
            set(at, part);
        }
        fill(&mut set);
    }
    file.write_all_at(&page, 0)
}

/// Inode, device, time mixed with random bits, process id, 0: files that share an id confuse a process that opens
/// both in one environment, so it is never copied.
fn unique_id(file: &File) -> io::Result<[u32; 5]> {
    let meta = file.metadata()?;
    let fold = |wide: u64| u32::try_from((wide ^ wide >> 32) & 0xFFFF_FFFF).unwrap_or(0);
    Ok([
        fold(meta.ino()),
        fold(meta.dev()),
        fold(meta.ctime().cast_unsigned() ^ records::random_seed()),
        std::process::id(),
        0,
    ])
}

/// A 12-byte reference to an overflow chain or tree, as btree and duplicate pages hold it.
pub(crate) fn leaf_reference(kind: u8, page: u32, len: usize) -> [u8; 12] {
    let mut item = [0; 12];
    item[2] = kind;
    item[4..8].copy_from_slice(&page.to_le_bytes());
    item[8..12].copy_from_slice(&word(len));
    item
}

/// Longest item that stays on a btree page.
pub(crate) const LEAF_ITEM_MAX: usize = PAGE_ROOM / 4 - 10;

/// Length of a leaf item with its padding.
pub(crate) fn leaf_span(len: usize) -> usize {
    if len > LEAF_ITEM_MAX {
        12
    } else {
        (len + 3).next_multiple_of(4)
    }
}

/// Adds a key or value to a btree or duplicate page, or a reference to its chain.
pub(crate) fn push_leaf(
    page: &mut PageBuffer,
    tail: &mut Tail,
    entries: &Entries<'_>,
    place: u32,
    part: Part,
) -> io::Result<()> {
    let (key, value) = entries.get(place);
    let bytes = match part {
        Part::Key => key,
        Part::Value => value,
    };
    if bytes.len() > LEAF_ITEM_MAX {
        let first = tail.record(entries, place, part)?;
        page.push(&[&leaf_reference(3, first, bytes.len())], 4);
    } else {
        page.push(&[&half(bytes.len()), &[1], bytes], 4);
    }
    Ok(())
}

/// Writes the values of one key as a tree of their own in order of insertion; answers its root page.
pub(crate) fn duplicate_tree(
    tail: &mut Tail,
    entries: &Entries<'_>,
    places: &[u32],
) -> io::Result<u32> {
    // Chains first, leaves after them: leaves must have consecutive numbers to be linked as they are written.
    let mut items = Vec::with_capacity(places.len());
    for &place in places {
        let (_, value) = entries.get(place);
        items.push(if value.len() > LEAF_ITEM_MAX {
            Some(tail.record(entries, place, Part::Value)?)
        } else {
            None
        });
    }
    let mut leaves: Vec<(usize, usize)> = Vec::new();
    let (mut start, mut room) = (0, PAGE_ROOM);
    for (index, &place) in places.iter().enumerate() {
        let need = leaf_span(entries.get(place).1.len()) + 2;
        if need > room {
            leaves.push((start, index));
            (start, room) = (index, PAGE_ROOM);
        }
        room -= need;
    }
    leaves.push((start, places.len()));

    let mut level: Vec<(u32, usize)> = Vec::new();
    let mut page = PageBuffer::new();
    let first_leaf = tail.next_page();
    for (at, &(start, end)) in leaves.iter().enumerate() {
        page.clear();
        for (place, chain) in places[start..end].iter().zip(&items[start..end]) {
            let (_, value) = entries.get(*place);
            match chain {
                Some(first) => page.push(&[&leaf_reference(3, *first, value.len())], 4),
                None => page.push(&[&half(value.len()), &[1], value], 4),
            }
        }
        let number = tail.next_page();
        let finished = page.finish(Header {
            number,
            previous: if number == first_leaf { 0 } else { number - 1 },
            next: if at + 1 < leaves.len() { number + 1 } else { 0 },
            level: 1,
            kind: page_type::RECNO_LEAF,
        });
        tail.page(finished)?;
        level.push((number, end - start));
    }
    let mut depth = 2;
    while level.len() > 1 {
        let mut above = Vec::new();
        let is_root = level.len() <= PAGE_ROOM / 10;
        for children in level.chunks(PAGE_ROOM / 10) {
            page.clear();
            let mut total = 0;
            for (child, count) in children {
                page.push(&[&child.to_le_bytes(), &word(*count)], 4);
                total += count;
            }
            let number = tail.next_page();
            let finished = page.finish(Header {
                number,
                // The root of a tree of records keeps their number where others keep the previous page.
                previous: if is_root {
                    u32::try_from(total).unwrap_or(u32::MAX)
                } else {
                    0
                },
                next: 0,
                level: depth,
                kind: page_type::RECNO_INTERNAL,
            });
            tail.page(finished)?;
            above.push((number, total));
        }
        level = above;
        depth += 1;
    }
    level
        .first()
        .map(|(root, _)| *root)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "a key without values"))
}
