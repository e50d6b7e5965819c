//! A timer wheel of due times: slots of messages in lists by when they are due, and one list of those that are due now
//! (SPOOL 7).
//!
//! Putting in and taking out cost the same however many wait. Eleven levels of 64 lists, each level 64 times as coarse as the
//! one before, from 1 ms up; what is far ahead moves down a level when its time comes nearer. Twelve bytes a slot.
//! Does no I/O, knows no clock, never blocks.

/// Bits of time that one level tells apart.
const LEVEL_BITS: u32 = 6;
const LISTS: usize = 1 << LEVEL_BITS;
/// Enough for any number of milliseconds, so that there is no horizon.
const LEVELS: usize = 11;
const TIMES: usize = LEVELS * LISTS;
const READY: u16 = 704;
const NOWHERE: u16 = u16::MAX;
const NONE: u32 = u32::MAX;
/// Links in one block, so that growing copies nothing.
const BLOCK_LINKS: usize = 1 << 16;

#[derive(Debug, Clone, Copy)]
struct Link {
    next: u32,
    previous: u32,
    list: u16,
}

impl Link {
    const LOOSE: Self = Self {
        next: NONE,
        previous: NONE,
        list: NOWHERE,
    };
}

#[derive(Debug, Clone, Copy)]
struct List {
    first: u32,
    last: u32,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Wheel {
    /// Everything due before or at this time, in ms, is in the ready list.
    elapsed: u64,
    lists: Vec<List>,
    occupied: [u64; LEVELS],
    links: Vec<Vec<Link>>,
}

impl Default for Wheel {
    fn default() -> Self {
        const EMPTY: List = List {
            first: NONE,
            last: NONE,
        };
        Self {
            elapsed: 0,
            lists: vec![EMPTY; TIMES + 1],
            occupied: [0; LEVELS],
            links: Vec::new(),
        }
    }
}

fn index(number: impl TryInto<usize>) -> usize {
    number.try_into().unwrap_or(usize::MAX)
}

impl Wheel {
    fn link(&mut self, slot: u32) -> &mut Link {
        let (block, at) = (index(slot) / BLOCK_LINKS, index(slot) % BLOCK_LINKS);
        while self.links.len() <= block {
            self.links.push(Vec::with_capacity(BLOCK_LINKS));
        }
        let block = &mut self.links[block];
        if block.len() <= at {
            block.resize(at + 1, Link::LOOSE);
        }
        &mut block[at]
    }

    fn peek(&self, slot: u32) -> Link {
        self.links
            .get(index(slot) / BLOCK_LINKS)
            .and_then(|block| block.get(index(slot) % BLOCK_LINKS))
            .copied()
            .unwrap_or(Link::LOOSE)
    }

    /// Which list a time belongs into, as seen from `elapsed`.
    fn list_of(&self, due: u64) -> u16 {
        if due <= self.elapsed {
            return READY;
        }
        let differing = 63 - (due ^ self.elapsed).leading_zeros();
        let level = index(differing / LEVEL_BITS);
        let at = (due >> (LEVEL_BITS * u32::try_from(level).unwrap_or(0))) % LISTS as u64;
        u16::try_from(level * LISTS + index(at)).unwrap_or(READY)
    }

    fn push(&mut self, slot: u32, list: u16) {
        let last = self.lists[index(list)].last;
        *self.link(slot) = Link {
            next: NONE,
            previous: last,
            list,
        };
        if last == NONE {
            self.lists[index(list)].first = slot;
        } else {
            self.link(last).next = slot;
        }
        self.lists[index(list)].last = slot;
        if list != READY {
            self.occupied[index(list) / LISTS] |= 1 << (index(list) % LISTS);
        }
    }

    /// Puts a slot in, or moves it if it is in already.
    pub(super) fn insert(&mut self, slot: u32, due: u64) {
        self.remove(slot);
        let list = self.list_of(due);
        self.push(slot, list);
    }

    /// Takes a slot out. Whether it was in.
    pub(super) fn remove(&mut self, slot: u32) -> bool {
        let link = self.peek(slot);
        if link.list == NOWHERE {
            return false;
        }
        if link.previous == NONE {
            self.lists[index(link.list)].first = link.next;
        } else {
            self.link(link.previous).next = link.next;
        }
        if link.next == NONE {
            self.lists[index(link.list)].last = link.previous;
        } else {
            self.link(link.next).previous = link.previous;
        }
        if link.list != READY && self.lists[index(link.list)].first == NONE {
            self.occupied[index(link.list) / LISTS] &= !(1 << (index(link.list) % LISTS));
        }
        *self.link(slot) = Link::LOOSE;
        true
    }

    /// The first time at which [`Wheel::advance`] may find something new: exact within the next 64 ms, at most early
    /// beyond.
    fn next_list(&self) -> Option<(u64, u16)> {
        for (level, occupied) in self.occupied.iter().enumerate() {
            if *occupied == 0 {
                continue;
            }
            let shift = LEVEL_BITS * u32::try_from(level).unwrap_or(0);
            // Lists of a level all lie ahead of now, in the time that one list of the level above stands for.
            let at = u64::from(occupied.trailing_zeros());
            let above = shift + LEVEL_BITS;
            let start = self
                .elapsed
                .checked_shr(above)
                .unwrap_or(0)
                .checked_shl(above)
                .unwrap_or(0);
            let time = start + (at << shift);
            return Some((time, u16::try_from(level * LISTS + index(at)).ok()?));
        }
        None
    }

    /// When there will be something in the ready list, at the earliest; now, if there is already.
    pub(super) fn next(&self) -> Option<u64> {
        if self.lists[index(READY)].first != NONE {
            return Some(self.elapsed);
        }
        self.next_list().map(|(time, _)| time)
    }

    /// Moves what is due by `now` into the ready list; `due` says when a slot is due.
    pub(super) fn advance(&mut self, now: u64, due: impl Fn(u32) -> u64) {
        while let Some((time, list)) = self.next_list().filter(|(time, _)| *time <= now) {
            self.elapsed = time;
            let first = std::mem::replace(
                &mut self.lists[index(list)],
                List {
                    first: NONE,
                    last: NONE,
                },
            )
            .first;
            self.occupied[index(list) / LISTS] &= !(1 << (index(list) % LISTS));
            let mut slot = first;
            while slot != NONE {
                let next = self.peek(slot).next;
                let list = self.list_of(due(slot));
                self.push(slot, list);
                slot = next;
            }
        }
        self.elapsed = self.elapsed.max(now);
    }

    /// The slot that has been ready longest.
    pub(super) fn first_ready(&self) -> Option<u32> {
        let first = self.lists[index(READY)].first;
        (first != NONE).then_some(first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};

    #[test]
    fn it_gives_what_a_sorted_set_gives() {
        let mut state = 7_u64;
        let mut random = move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            state >> 33
        };
        let mut wheel = Wheel::default();
        let mut due: BTreeMap<u32, u64> = BTreeMap::new();
        let mut now = 0;
        for _ in 0..200_000 {
            let slot = u32::try_from(random() % 300).unwrap();
            match random() % 4 {
                0 | 1 => {
                    let ahead = random()
                        % [50, 5_000, 1_000_000, 40_000_000_000]
                            [usize::try_from(random() % 4).unwrap()];
                    wheel.insert(slot, now + ahead);
                    due.insert(slot, now + ahead);
                }
                2 => assert_eq!(wheel.remove(slot), due.remove(&slot).is_some()),
                _ => {
                    if let Some(first) = due.values().min() {
                        assert!(wheel.next().unwrap() <= (*first).max(now));
                    } else {
                        assert_eq!(wheel.next(), None);
                    }
                    now += random()
                        % [1, 100, 100_000, 10_000_000_000][usize::try_from(random() % 4).unwrap()];
                    wheel.advance(now, |slot| due[&slot]);
                    let mut ready = BTreeSet::new();
                    while let Some(slot) = wheel.first_ready() {
                        assert!(wheel.remove(slot));
                        ready.insert(slot);
                    }
                    let expected: BTreeSet<u32> = due
                        .iter()
                        .filter(|(_, at)| **at <= now)
                        .map(|(slot, _)| *slot)
                        .collect();
                    assert_eq!(ready, expected);
                    due.retain(|slot, _| !ready.contains(slot));
                }
            }
        }
    }

    #[test]
    fn what_is_due_longest_comes_first() {
        let mut wheel = Wheel::default();
        wheel.insert(3, 900);
        wheel.insert(1, 30);
        wheel.insert(2, 70);
        wheel.advance(10_000, |slot| [0, 30, 70, 900][slot as usize]);
        for expected in [1, 2, 3] {
            assert_eq!(wheel.first_ready(), Some(expected));
            wheel.remove(expected);
        }
    }
}
