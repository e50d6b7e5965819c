//! Bulk writing of btree files, version 9.
//!
//! The root is page 1 at all times. A map that fits one leaf is that leaf; otherwise leaves are pages 2 and up, filled
//! to the brim in order of keys and linked, then come overflow chains, trees of duplicates and internal pages. A
//! separator is the shortest prefix of the right leaf's first key that exceeds the left leaf's last key.
//! Memory: 16 bytes an entry beyond the records.

use super::page::{BTREE_MAGIC, page_type};
use super::write::{
    Header, LEAF_ITEM_MAX, PAGE_ROOM, PAGE_SIZE, PageBuffer, Part, Tail, body_writer,
    duplicate_tree, half, leaf_reference, leaf_span, push_leaf, write_meta,
};
use crate::records::Entries;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Values of one key stay on the leaf while they take less than this.
const DUPLICATES_MAX: usize = PAGE_SIZE / 4;
const ROOT: u32 = 1;

/// Writes the whole file; answers the number of different keys.
pub(crate) fn write_btree(file: &File, entries: &Entries<'_>) -> io::Result<u32> {
    let order = entries.sorted();
    let groups = Groups {
        entries,
        order: &order,
    };
    let leaves = groups.leaves();
    let is_single = leaves.len() <= 1;
    let too_many = || io::Error::new(io::ErrorKind::FileTooLarge, "too many pages");
    let leaf_count = u32::try_from(leaves.len()).map_err(|_| too_many())?;
    let (first_leaf, tail_start) = if is_single {
        (ROOT, ROOT + 1)
    } else {
        (ROOT + 1, leaf_count.checked_add(2).ok_or_else(too_many)?)
    };

    let mut out = body_writer(file)?;
    if !is_single {
        out.write_all(&[0; PAGE_SIZE])?;
    }
    let mut tail = Tail::new(tail_start);
    let mut page = PageBuffer::new();
    let mut level = Vec::new();
    let mut keys = 0;
    let mut last_key: &[u8] = &[];
    for (number, leaf) in (first_leaf..).zip(&leaves) {
        page.clear();
        let mut at = leaf.start;
        let first_key = entries.get(order[leaf.start].1).0;
        while at < leaf.end {
            let group = groups.at(at);
            push_group(&mut page, &mut tail, entries, &order[group.clone()])?;
            keys += 1;
            at = group.end;
        }
        let finished = page.finish(Header {
            number,
            previous: if number == first_leaf { 0 } else { number - 1 },
            next: if leaf.end < order.len() {
                number + 1
            } else {
                0
            },
            level: 1,
            kind: page_type::BTREE_LEAF,
        });
        out.write_all(finished)?;
        level.push(Child {
            page: number,
            separator: separator(last_key, first_key),
        });
        last_key = entries.get(order[leaf.end - 1].1).0;
    }
    if leaves.is_empty() {
        let finished = page.finish(Header {
            number: ROOT,
            previous: 0,
            next: 0,
            level: 1,
            kind: page_type::BTREE_LEAF,
        });
        out.write_all(finished)?;
    }
    let root = internal_levels(level, &mut tail)?;
    tail.write(entries, tail_start, &mut out)?;
    out.finish()?;
    if let Some(root) = root {
        file.write_all_at(&root[..], PAGE_SIZE as u64)?;
    }
    let last_page = tail.next_page() - 1;
    write_meta(
        file,
        BTREE_MAGIC,
        page_type::BTREE_META,
        last_page,
        &mut |set| {
            set(48, u32::from(entries.duplicates));
            set(76, 2);
            set(84, 0x20);
            set(88, ROOT);
        },
    )?;
    Ok(keys)
}

/// The sorted entries, seen as groups of equal keys.
struct Groups<'a, 'e> {
    entries: &'a Entries<'e>,
    order: &'a [(u64, u32)],
}

impl Groups<'_, '_> {
    fn at(&self, start: usize) -> Range<usize> {
        let mut end = start + 1;
        if self.entries.duplicates {
            let key = self.entries.get(self.order[start].1).0;
            while end < self.order.len() && self.entries.get(self.order[end].1).0 == key {
                end += 1;
            }
        }
        start..end
    }

    /// Which entries go on which leaf.
    fn leaves(&self) -> Vec<Range<usize>> {
        let mut leaves = Vec::new();
        let (mut start, mut room, mut at) = (0, PAGE_ROOM, 0);
        while at < self.order.len() {
            let group = self.at(at);
            let key_span = leaf_span(self.entries.get(self.order[at].1).0.len());
            let (slots, span) = values_on_leaf(self.entries, &self.order[group.clone()]);
            let need = key_span + span + slots * 4;
            if need > room {
                leaves.push(start..at);
                (start, room) = (at, PAGE_ROOM);
            }
            room -= need;
            at = group.end;
        }
        if start < self.order.len() {
            leaves.push(start..self.order.len());
        }
        leaves
    }
}

/// How many pairs of slots the values of one key take on a leaf, and how many bytes: a tree of their own counts one.
fn values_on_leaf(entries: &Entries<'_>, group: &[(u64, u32)]) -> (usize, usize) {
    let span: usize = group
        .iter()
        .map(|(_, place)| leaf_span(entries.get(*place).1.len()))
        .sum();
    if group.len() > 1 && span + group.len() * 4 > DUPLICATES_MAX {
        (1, 12)
    } else {
        (group.len(), span)
    }
}

fn push_group(
    page: &mut PageBuffer,
    tail: &mut Tail,
    entries: &Entries<'_>,
    group: &[(u64, u32)],
) -> io::Result<()> {
    let key_slot = page.entries();
    push_leaf(page, tail, entries, group[0].1, Part::Key)?;
    if values_on_leaf(entries, group).0 < group.len() {
        let places: Vec<u32> = group.iter().map(|(_, place)| *place).collect();
        let root = duplicate_tree(tail, entries, &places)?;
        page.push(&[&leaf_reference(2, root, 0)], 4);
        return Ok(());
    }
    for (at, (_, place)) in group.iter().enumerate() {
        if at > 0 {
            page.share(key_slot);
        }
        push_leaf(page, tail, entries, *place, Part::Value)?;
    }
    Ok(())
}

/// The shortest prefix of `right` that is above `left`, where `left` is below `right`.
fn separator(left: &[u8], right: &[u8]) -> Vec<u8> {
    let common = left.iter().zip(right).take_while(|(a, b)| a == b).count();
    right[..right.len().min(common + 1)].to_vec()
}

struct Child {
    page: u32,
    separator: Vec<u8>,
}

/// Builds the internal pages into the tail, all but the root, which is returned; `None` if a leaf is the root.
fn internal_levels(
    mut level: Vec<Child>,
    tail: &mut Tail,
) -> io::Result<Option<Box<[u8; PAGE_SIZE]>>> {
    if level.len() <= 1 {
        return Ok(None);
    }
    let mut depth = 2;
    loop {
        let pages = split_level(&level);
        let is_root = pages.len() == 1;
        let mut above = Vec::new();
        for range in pages {
            let mut page = PageBuffer::new();
            let slot = if is_root { None } else { Some(tail.reserve()?) };
            let children = &mut level[range];
            let own_separator = std::mem::take(&mut children[0].separator);
            for child in children.iter_mut() {
                push_child(
                    &mut page,
                    tail,
                    std::mem::take(&mut child.separator),
                    child.page,
                )?;
            }
            let number = slot.map_or(ROOT, |(number, _)| number);
            let finished = page.finish(Header {
                number,
                previous: 0,
                next: 0,
                level: depth,
                kind: page_type::BTREE_INTERNAL,
            });
            match slot {
                None => return Ok(Some(Box::new(*finished))),
                Some((_, slot)) => tail.fill(slot, finished),
            }
            above.push(Child {
                page: number,
                separator: own_separator,
            });
        }
        level = above;
        depth += 1;
    }
}

/// Which children go on which page of one level; the first of each page loses its separator.
fn split_level(level: &[Child]) -> Vec<Range<usize>> {
    let mut pages = Vec::new();
    let (mut start, mut room) = (0, PAGE_ROOM);
    for (at, child) in level.iter().enumerate() {
        let mut need = child_span(child.separator.len()) + 2;
        if at > start && need > room {
            pages.push(start..at);
            (start, room) = (at, PAGE_ROOM);
        }
        if at == start {
            need = child_span(0) + 2;
        }
        room -= need;
    }
    pages.push(start..level.len());
    pages
}

fn child_span(separator: usize) -> usize {
    if separator > LEAF_ITEM_MAX {
        24
    } else {
        (separator + 12).next_multiple_of(4)
    }
}

fn push_child(
    page: &mut PageBuffer,
    tail: &mut Tail,
    separator: Vec<u8>,
    child: u32,
) -> io::Result<()> {
    let child = child.to_le_bytes();
    if separator.len() > LEAF_ITEM_MAX {
        let len = separator.len();
        let first = tail.bytes(separator)?;
        let reference = leaf_reference(3, first, len);
        page.push(
            &[&half(reference.len()), &[3, 0], &child, &[0; 4], &reference],
            4,
        );
    } else {
        page.push(
            &[&half(separator.len()), &[1, 0], &child, &[0; 4], &separator],
            4,
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separators_are_short_and_between() {
        for (left, right, expected) in [
            ("alice", "bob", "b"),
            ("list", "list-owner", "list-"),
            ("aaa", "aab", "aab"),
            ("", "x", "x"),
        ] {
            let found = separator(left.as_bytes(), right.as_bytes());
            assert_eq!(found, expected.as_bytes());
            assert!(left.as_bytes() < &found[..] && &found[..] <= right.as_bytes());
        }
    }
}
