//! Slabs: values in blocks that a snapshot shares with the living table (SPOOL 7).
//!
//! A value's number is its slot, and stays the same as long as it is there. A snapshot is taken in the time it takes to
//! count up one reference a block; whoever changes a value while a snapshot stands copies that block first, so that
//! the writer never waits for a checkpoint. Does no I/O, never blocks.

use std::sync::Arc;

/// Values in one block: small enough that copying one is not felt by a commit.
const BLOCK_SLOTS: usize = 4096;

/// The number that no slot has.
pub(in super::super) const NO_SLOT: u32 = u32::MAX;

/// See the module's documentation.
#[derive(Debug, Clone)]
pub(in super::super) struct Slabs<T> {
    blocks: Vec<Arc<Vec<T>>>,
    free: Vec<u32>,
    used: u32,
}

impl<T> Default for Slabs<T> {
    fn default() -> Self {
        Self {
            blocks: Vec::new(),
            free: Vec::new(),
            used: 0,
        }
    }
}

fn split(slot: u32) -> (usize, usize) {
    let slot = usize::try_from(slot).unwrap_or(usize::MAX);
    (slot / BLOCK_SLOTS, slot % BLOCK_SLOTS)
}

impl<T: Clone> Slabs<T> {
    /// Puts a value in. `None` when all slots there can be are taken.
    pub(in super::super) fn insert(&mut self, value: T) -> Option<u32> {
        if let Some(slot) = self.free.pop() {
            if let Some(place) = self.get_mut(slot) {
                *place = value;
            }
            return Some(slot);
        }
        if self.used == NO_SLOT {
            return None;
        }
        let slot = self.used;
        let (block, _) = split(slot);
        if block == self.blocks.len() {
            self.blocks.push(Arc::new(Vec::with_capacity(BLOCK_SLOTS)));
        }
        let block = Arc::make_mut(self.blocks.last_mut()?);
        // A copy made for a snapshot has only as much room as it had values.
        block.reserve_exact(BLOCK_SLOTS - block.len());
        block.push(value);
        self.used += 1;
        Some(slot)
    }

    pub(in super::super) fn get(&self, slot: u32) -> Option<&T> {
        let (block, at) = split(slot);
        self.blocks.get(block)?.get(at)
    }

    /// The value to be changed; copies its block if a snapshot shares it.
    pub(in super::super) fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        let (block, at) = split(slot);
        Arc::make_mut(self.blocks.get_mut(block)?).get_mut(at)
    }

    /// Gives a slot back; `vacant` stands there until it is used again.
    pub(in super::super) fn remove(&mut self, slot: u32, vacant: T) -> Option<T> {
        let old = std::mem::replace(self.get_mut(slot)?, vacant);
        self.free.push(slot);
        Some(old)
    }

    /// The values as they are now, vacant ones included, in order of their slots.
    pub(in super::super) fn snapshot(&self) -> Blocks<T> {
        Blocks(self.blocks.clone())
    }
}

/// Values as they were at one moment.
#[derive(Debug, Clone)]
pub(in super::super) struct Blocks<T>(Vec<Arc<Vec<T>>>);

impl<T> Blocks<T> {
    pub(in super::super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flat_map(|block| block.iter())
    }

    pub(in super::super) fn get(&self, slot: u32) -> Option<&T> {
        let (block, at) = split(slot);
        self.0.get(block)?.get(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_does_not_see_what_comes_after_it() {
        let mut slabs = Slabs::default();
        let slots: Vec<u32> = (0..10_000_u32).map(|n| slabs.insert(n).unwrap()).collect();
        let before = slabs.snapshot();
        for slot in &slots {
            *slabs.get_mut(*slot).unwrap() += 1;
        }
        slabs.remove(slots[7], 0);
        assert_eq!(slabs.insert(5), Some(slots[7]), "slots are used again");
        assert!(slabs.insert(6).unwrap() >= 10_000);
        assert!(before.iter().copied().eq(0..10_000));
        assert_eq!(before.get(7), Some(&7));
        assert_eq!(slabs.get(8), Some(&9));
        assert_eq!(before.get(10_000), None);
    }
}
