//! Bytes that only grow, in memory for which huge pages are asked once it is large.
//!
//! A table of a million entries is read at random, and with pages of 4 KiB a lookup waits for the processor's table of
//! pages as well as for memory; filling it takes a fault for each of them. So a region of more than [`HEAP_BYTES_MAX`] is
//! an anonymous mapping, and its part beyond [`SMALL_PAGES_BYTES`] is advised to have huge pages; a small one is a `Vec`.
//!
//! One that grows takes a mapping larger than it needs, which costs addresses and no memory: what was never touched
//! does not exist. One of a known size asks for just that, which the system refuses if it can never have as much. Where
//! a mapping is refused, the bytes are on the heap. All bytes are 0 until they are set. Never blocks.

#![deny(clippy::indexing_slicing)]

use memmap2::{Advice, MmapMut, MmapOptions};
use std::ops::{Deref, DerefMut};

/// Largest region on the heap.
const HEAP_BYTES_MAX: usize = 1 << 18;
/// The start of a growing region, in which a huge page would be mostly unused.
const SMALL_PAGES_BYTES: usize = 1 << 22;
/// Least addresses taken for a region that grows.
const MAPPED_MIN: usize = 1 << 28;
/// How many times what it has a region that is full asks for.
const GROWTH: usize = 8;

/// See the file's header.
#[derive(Debug)]
pub(crate) struct Region {
    memory: Memory,
    len: usize,
}

#[derive(Debug)]
enum Memory {
    Heap(Vec<u8>),
    Mapped(MmapMut),
}

/// What a mapping promises of its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pages {
    /// All of them are wanted: it is refused if the system cannot have so many.
    Reserved,
    /// More than will be touched.
    Unreserved,
}

impl Region {
    /// An empty region.
    pub(crate) fn new() -> Self {
        Self {
            memory: Memory::Heap(Vec::new()),
            len: 0,
        }
    }

    /// An empty region that is likely to grow to about `bytes`.
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        let memory = match Memory::mapped(bytes, huge_from(bytes), Pages::Reserved) {
            Some(mapped) => mapped,
            None => Memory::Heap(Vec::with_capacity(bytes.min(HEAP_BYTES_MAX))),
        };
        Self { memory, len: 0 }
    }

    /// A region of so many bytes, all 0.
    pub(crate) fn zeroed(bytes: usize) -> Self {
        let memory = Memory::mapped(bytes, huge_from(bytes), Pages::Reserved);
        Self {
            memory: memory.unwrap_or_else(|| Memory::Heap(vec![0; bytes])),
            len: bytes,
        }
    }

    /// As [`Region::zeroed`]; `None` if there is no memory for it.
    pub(crate) fn try_zeroed(bytes: usize) -> Option<Self> {
        if let Some(memory) = Memory::mapped(bytes, huge_from(bytes), Pages::Reserved) {
            return Some(Self { memory, len: bytes });
        }
        let mut heap = Vec::new();
        heap.try_reserve_exact(bytes).ok()?;
        heap.resize(bytes, 0);
        Some(Self {
            memory: Memory::Heap(heap),
            len: bytes,
        })
    }

    /// Makes the region shorter; the bytes beyond `len` are set to 0.
    pub(crate) fn truncate(&mut self, len: usize) {
        if let Some(beyond) = self.get_mut(len..) {
            beyond.fill(0);
        }
        self.len = self.len.min(len);
        if let Memory::Heap(bytes) = &mut self.memory {
            bytes.truncate(len);
        }
    }

    /// Makes the region longer; answers the new bytes, which are 0.
    #[inline]
    pub(crate) fn extend(&mut self, more: usize) -> &mut [u8] {
        let (start, end) = (self.len, self.len.saturating_add(more));
        let has_room = match &self.memory {
            Memory::Heap(_) => end <= HEAP_BYTES_MAX,
            Memory::Mapped(map) => end <= map.len(),
        };
        if !has_room {
            self.grow(end);
        }
        self.len = end;
        let all = match &mut self.memory {
            Memory::Heap(bytes) => {
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes.as_mut_slice()
            }
            Memory::Mapped(map) => &mut map[..],
        };
        all.get_mut(start..end).unwrap_or(&mut [])
    }

    /// Moves to a mapping that has room for `end` bytes, or stays on the heap.
    #[cold]
    fn grow(&mut self, end: usize) {
        let wanted = end.max(self.len.saturating_mul(GROWTH)).max(MAPPED_MIN);
        let growing = |bytes| Memory::mapped(bytes, SMALL_PAGES_BYTES, Pages::Unreserved);
        let mapped = growing(wanted).or_else(|| growing(end.saturating_mul(2)));
        let mut memory = match mapped {
            Some(mapped) => mapped,
            None if matches!(self.memory, Memory::Heap(_)) => return,
            None => Memory::Heap(vec![0; self.len]),
        };
        let new: &mut [u8] = match &mut memory {
            Memory::Heap(bytes) => bytes,
            Memory::Mapped(map) => map,
        };
        if let Some(start) = new.get_mut(..self.len) {
            start.copy_from_slice(self);
        }
        self.memory = memory;
    }
}

/// Where huge pages begin in a region of a known size.
fn huge_from(bytes: usize) -> usize {
    if bytes >= SMALL_PAGES_BYTES {
        0
    } else {
        SMALL_PAGES_BYTES
    }
}

impl Memory {
    /// A mapping of so many bytes with huge pages from `huge_from` on; `None` if that is few, or it cannot be had.
    fn mapped(bytes: usize, huge_from: usize, pages: Pages) -> Option<Self> {
        if bytes <= HEAP_BYTES_MAX {
            return None;
        }
        let mut options = MmapOptions::new();
        options.len(bytes);
        if pages == Pages::Unreserved {
            options.no_reserve_swap();
        }
        let map = options.map_anon().ok()?;
        if huge_from < bytes {
            // Without huge pages all is the same, but slower.
            let _ = map.advise_range(Advice::HugePage, huge_from, bytes - huge_from);
        }
        Some(Self::Mapped(map))
    }
}

impl Deref for Region {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        let all: &[u8] = match &self.memory {
            Memory::Heap(bytes) => bytes,
            Memory::Mapped(map) => map,
        };
        all.get(..self.len).unwrap_or(all)
    }
}

impl DerefMut for Region {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        let len = self.len;
        let all: &mut [u8] = match &mut self.memory {
            Memory::Heap(bytes) => bytes,
            Memory::Mapped(map) => map,
        };
        let len = len.min(all.len());
        all.get_mut(..len).unwrap_or(&mut [])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(region: &mut Region, total: usize) {
        let mut at = region.len();
        while at < total {
            let piece = region.extend((total - at).min(1031));
            assert!(piece.iter().all(|&byte| byte == 0));
            for byte in piece {
                *byte = (at % 251).to_le_bytes()[0];
                at += 1;
            }
        }
        let right = |(at, byte): (usize, &u8)| *byte == (at % 251).to_le_bytes()[0];
        assert!(region.len() == total && region.iter().enumerate().all(right));
    }

    #[test]
    fn what_was_put_in_stays_as_the_region_grows_and_moves() {
        let mut region = Region::new();
        for total in [1, HEAP_BYTES_MAX, HEAP_BYTES_MAX + 1, SMALL_PAGES_BYTES * 2] {
            fill(&mut region, total);
        }
        assert!(matches!(region.memory, Memory::Mapped(_)));
        // Past the room of its mapping, which is moved then.
        let mut region = Region::with_capacity(HEAP_BYTES_MAX * 2);
        fill(&mut region, HEAP_BYTES_MAX * 5);
    }

    #[test]
    fn a_region_made_shorter_grows_again_from_zeros() {
        for len in [1000, HEAP_BYTES_MAX + 1000] {
            let mut region = Region::zeroed(len);
            region.fill(7);
            region.truncate(len + 1);
            assert_eq!(region.len(), len);
            region.truncate(10);
            assert_eq!(region[..], [7; 10]);
            assert!(region.extend(900).iter().all(|&byte| byte == 0));
            assert_eq!(region.len(), 910);
        }
    }

    /// Every mapping was once made without a reservation: a sparse file of terabytes then got its region, and filling it
    /// ended the process.
    #[test]
    fn more_than_the_machine_has_is_refused() {
        let policy = std::fs::read_to_string("/proc/sys/vm/overcommit_memory").unwrap();
        if policy.trim() == "1" {
            println!("SKIPPED: this system is set to refuse no memory");
            return;
        }
        assert!(Region::try_zeroed(1 << 46).is_none());
        assert!(Region::try_zeroed(HEAP_BYTES_MAX + 64).is_some());
    }

    #[test]
    fn small_ones_are_on_the_heap() {
        for region in [
            Region::new(),
            Region::with_capacity(HEAP_BYTES_MAX),
            Region::zeroed(HEAP_BYTES_MAX),
        ] {
            assert!(matches!(region.memory, Memory::Heap(_)));
        }
        let zeroed = Region::zeroed(HEAP_BYTES_MAX + 64);
        assert!(matches!(zeroed.memory, Memory::Mapped(_)));
        assert!(zeroed.len() == HEAP_BYTES_MAX + 64 && zeroed.iter().all(|&byte| byte == 0));
    }
}
