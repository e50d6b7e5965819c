//! Reading Berkeley DB btree files, versions 8 and 9.
//!
//! | offset in page 0 | size | meaning |
//! |---|---|---|
//! | 48 | 4 | flags: 1 duplicates, 2 recno, 4 record numbers, 0x20 sub-databases, 0x40 sorted duplicates, 0x80 compressed |
//! | 88 | 4 | root page |
//!
//! Items are drawn in `duplicates.rs`. Leaf slots alternate key and value; equal keys of one page may share one key
//! item. The first item of each internal page stands for minus infinity. Keys are in bytewise order, a prefix first.
//!
//! A walk over the whole file proves it sound: every page that holds anything is reached exactly once, the leaves'
//! links agree with the tree, and keys ascend.

#![deny(clippy::indexing_slicing)]

use super::duplicates::{
    self, DEPTH_MAX, LeafItem, check_layout, child, internal_span, item_bytes, leaf_item,
};
use super::hash::check_unreached;
use super::page::{Page, PageSet, Pages, page_type};
use crate::random_access::RandomAccess;
use crate::{MapError, PairVisitor};
use std::borrow::Cow;
use std::cmp::Ordering;
use std::ops::ControlFlow;

/// A btree file, opened for reading.
pub(crate) struct BtreeFile<S> {
    pages: Pages<S>,
    root: u32,
}

/// What a walk has seen so far.
struct Walk {
    seen: PageSet,
    /// Chains internal pages refer to; leaves may share them.
    separators: Vec<u32>,
    previous_leaf: u32,
    expected_leaf: u32,
    last_key: Option<Vec<u8>>,
}

impl<S: RandomAccess> BtreeFile<S> {
    pub(crate) fn new(pages: Pages<S>) -> Result<Self, MapError> {
        let flags = pages.meta_word(48);
        for (bit, what) in [
            (0x02, "the file is a recno database"),
            (0x20, "the file holds several databases"),
            (0x80, "the file is compressed"),
        ] {
            if flags & bit != 0 {
                return Err(pages.unsupported(what));
            }
        }
        Ok(Self {
            root: pages.meta_word(88),
            pages,
        })
    }

    pub(crate) fn pages(&self) -> &Pages<S> {
        &self.pages
    }

    /// The first value of a key.
    pub(crate) fn lookup(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        let mut number = self.root;
        for _ in 0..DEPTH_MAX {
            let page = self.pages.page(number)?;
            match page.kind() {
                page_type::BTREE_INTERNAL => {
                    let slot = self.descend(&page, key)?;
                    number = child(&self.pages, &page, slot)?;
                }
                page_type::BTREE_LEAF => return self.lookup_leaf(page, key),
                kind => {
                    return Err(self
                        .pages
                        .damaged(number, format!("page type {kind} in a btree")));
                }
            }
        }
        Err(self.pages.damaged(number, "the tree is too deep"))
    }

    /// The last slot whose key is not above the wanted one. An equal separator may have equal keys to its left as
    /// well when a key's values span leaves; the walk to the left in `lookup_leaf` covers that.
    fn descend(&self, page: &Page<'_>, key: &[u8]) -> Result<usize, MapError> {
        let (mut low, mut high) = (1, page.entries());
        if high == 0 {
            return Err(self
                .pages
                .damaged(page.number, "an internal page without entries"));
        }
        while low < high {
            let middle = low + (high - low) / 2;
            let separator = self.separator(page, middle)?;
            if separator.as_ref() <= key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low - 1)
    }

    fn separator<'p>(&self, page: &'p Page<'_>, index: usize) -> Result<Cow<'p, [u8]>, MapError> {
        let bad = || {
            self.pages
                .damaged(page.number, format!("item {index} is malformed"))
        };
        let at = page.offset(index);
        if at < page.items_from() {
            return Err(bad());
        }
        let len = usize::from(page.half(at));
        let key = page.bytes.get(at + 12..at + 12 + len).ok_or_else(bad)?;
        match page.bytes.get(at + 2) {
            Some(1) => Ok(Cow::Borrowed(key)),
            Some(3) if len == duplicates::REFERENCE_LEN => {
                let chain =
                    self.pages
                        .overflow(page.word(at + 16), page.word(at + 20), &mut |_| Ok(()))?;
                Ok(Cow::Owned(chain))
            }
            _ => Err(bad()),
        }
    }

    fn lookup_leaf<'s>(
        &'s self,
        mut page: Page<'s>,
        key: &[u8],
    ) -> Result<Option<Vec<u8>>, MapError> {
        let mut found = None;
        // Values of one key may begin on an earlier leaf; bounded by the number of pages.
        for _ in 0..=self.pages.last_page() {
            self.check_leaf(&page)?;
            let slot = self.lower_bound(&page, key)?;
            let mut begins_page = slot == 0;
            for index in (slot..page.entries()).step_by(2) {
                let there = item_bytes(
                    &self.pages,
                    &page,
                    leaf_item(&self.pages, &page, index)?,
                    &mut |_| Ok(()),
                )?;
                if *there != *key {
                    begins_page &= index > 0;
                    break;
                }
                let value = leaf_item(&self.pages, &page, index + 1)?;
                if !value.is_deleted() {
                    found = Some(self.first_value(&page, value)?);
                    break;
                }
            }
            if !begins_page || page.previous() == 0 || page.entries() == 0 {
                return Ok(found);
            }
            let before = self.pages.page(page.previous())?;
            if before.next() != page.number || before.kind() != page_type::BTREE_LEAF {
                return Err(self
                    .pages
                    .damaged(page.number, "the leaves' links disagree"));
            }
            self.check_leaf(&before)?;
            let Some(last) = before.entries().checked_sub(2) else {
                return Ok(found);
            };
            let last_key = leaf_item(&self.pages, &before, last)?;
            if *item_bytes(&self.pages, &before, last_key, &mut |_| Ok(()))? != *key {
                return Ok(found);
            }
            page = before;
        }
        Err(self
            .pages
            .damaged(page.number, "the leaves' links never end"))
    }

    /// The first slot whose key is not below the wanted one.
    fn lower_bound(&self, page: &Page<'_>, key: &[u8]) -> Result<usize, MapError> {
        let (mut low, mut high) = (0, page.entries() / 2);
        while low < high {
            let middle = low + (high - low) / 2;
            let item = leaf_item(&self.pages, page, middle * 2)?;
            let there = item_bytes(&self.pages, page, item, &mut |_| Ok(()))?;
            if there.as_ref() < key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        Ok(low * 2)
    }

    fn first_value(&self, page: &Page<'_>, item: LeafItem) -> Result<Vec<u8>, MapError> {
        let LeafItem::Tree { root, .. } = item else {
            return Ok(item_bytes(&self.pages, page, item, &mut |_| Ok(()))?.into_owned());
        };
        let mut first = None;
        let _ = duplicates::each_value(&self.pages, root, 0, &mut |_| Ok(()), &mut |value| {
            first = Some(value.to_vec());
            ControlFlow::Break(())
        })?;
        first.ok_or_else(|| self.pages.damaged(page.number, "a key without a value"))
    }

    fn check_leaf(&self, page: &Page<'_>) -> Result<(), MapError> {
        if page.kind() != page_type::BTREE_LEAF || page.level() != 1 {
            return Err(self.pages.damaged(page.number, "not a leaf"));
        }
        if !page.entries().is_multiple_of(2) {
            return Err(self.pages.damaged(page.number, "a key without a value"));
        }
        Ok(())
    }

    /// Calls `f` with every pair in order of keys, and proves the file sound on the way (unless `f` breaks).
    pub(crate) fn each(&self, f: &mut PairVisitor<'_>) -> Result<(), MapError> {
        let mut walk = Walk {
            seen: PageSet::new(self.pages.last_page()),
            separators: Vec::new(),
            previous_leaf: 0,
            expected_leaf: 0,
            last_key: None,
        };
        if self.walk(self.root, None, &mut walk, f)?.is_break() {
            return Ok(());
        }
        if walk.expected_leaf != 0 {
            return Err(self
                .pages
                .damaged(walk.expected_leaf, "a leaf that the tree does not lead to"));
        }
        for first in walk.separators {
            self.mark_separator(first, &mut walk.seen)?;
        }
        check_unreached(&self.pages, &walk.seen)
    }

    /// Marks a separator's chain as reached; it stops at the first page a leaf or another separator owns, so that
    /// the work is bounded by the number of pages.
    fn mark_separator(&self, first: u32, seen: &mut PageSet) -> Result<(), MapError> {
        let mut number = first;
        while number != 0 {
            let page = self.pages.page(number)?;
            if page.kind() != page_type::OVERFLOW {
                return Err(self.pages.damaged(number, "not an overflow page"));
            }
            if !seen.insert(number) {
                break;
            }
            number = page.next();
        }
        Ok(())
    }

    fn walk(
        &self,
        number: u32,
        level: Option<u8>,
        walk: &mut Walk,
        f: &mut PairVisitor<'_>,
    ) -> Result<ControlFlow<()>, MapError> {
        let page = self.pages.page(number)?;
        if !walk.seen.insert(number) {
            return Err(self.pages.damaged(number, "the page is used twice"));
        }
        // Levels fall by one with each step down, so that the depth is bounded by the root's 8-bit level.
        if level.is_some_and(|level| level != page.level()) || page.level() == 0 {
            return Err(self.pages.damaged(number, "a page on the wrong level"));
        }
        match page.kind() {
            page_type::BTREE_LEAF => self.walk_leaf(&page, walk, f),
            page_type::BTREE_INTERNAL => {
                check_layout(&self.pages, &page, &mut |index| {
                    Ok(internal_span(&page, index))
                })?;
                if page.entries() == 0 {
                    return Err(self
                        .pages
                        .damaged(number, "an internal page without entries"));
                }
                for index in 0..page.entries() {
                    let at = page.offset(index);
                    if index > 0 && page.bytes.get(at + 2) == Some(&3) {
                        walk.separators.push(page.word(at + 16));
                    }
                    let below = child(&self.pages, &page, index)?;
                    let stop = self.walk(below, Some(page.level() - 1), walk, f)?;
                    if stop.is_break() {
                        return Ok(stop);
                    }
                    self.check_next_separator(&page, index, walk)?;
                }
                Ok(ControlFlow::Continue(()))
            }
            kind => Err(self
                .pages
                .damaged(number, format!("page type {kind} in a btree"))),
        }
    }

    /// Every key seen so far must not be above the separator of the next child, or lookups would go astray.
    fn check_next_separator(
        &self,
        page: &Page<'_>,
        index: usize,
        walk: &Walk,
    ) -> Result<(), MapError> {
        if index + 1 >= page.entries() {
            return Ok(());
        }
        let separator = self.separator(page, index + 1)?;
        match &walk.last_key {
            Some(last) if last.as_slice() > separator.as_ref() => Err(self
                .pages
                .damaged(page.number, "a key on the wrong side of its separator")),
            _ => Ok(()),
        }
    }

    fn walk_leaf(
        &self,
        page: &Page<'_>,
        walk: &mut Walk,
        f: &mut PairVisitor<'_>,
    ) -> Result<ControlFlow<()>, MapError> {
        self.check_leaf(page)?;
        check_layout(&self.pages, page, &mut |index| {
            Ok(leaf_item(&self.pages, page, index)?.span())
        })?;
        if page.previous() != walk.previous_leaf
            || (walk.previous_leaf != 0 && walk.expected_leaf != page.number)
        {
            return Err(self
                .pages
                .damaged(page.number, "the leaves' links disagree with the tree"));
        }
        walk.previous_leaf = page.number;
        walk.expected_leaf = page.next();
        let mut last_offset = None;
        let mut key: Cow<'_, [u8]> = Cow::Borrowed(&[]);
        for index in (0..page.entries()).step_by(2) {
            let seen = &mut walk.seen;
            let mut visit = |number: u32| match seen.insert(number) {
                true => Ok(()),
                false => Err(self.pages.damaged(number, "the page is used twice")),
            };
            // A shared key item is read once, its overflow chain counted once.
            if last_offset != Some(page.offset(index)) {
                last_offset = Some(page.offset(index));
                let item = leaf_item(&self.pages, page, index)?;
                let here = item_bytes(&self.pages, page, item, &mut visit)?;
                let before = if index == 0 {
                    walk.last_key.as_deref()
                } else {
                    Some(key.as_ref())
                };
                if before.is_some_and(|before| before.cmp(&here) == Ordering::Greater) {
                    return Err(self.pages.damaged(page.number, "keys are out of order"));
                }
                key = here;
            }
            let value = leaf_item(&self.pages, page, index + 1)?;
            // The chain or tree of a deleted item still has to be counted as reached.
            let is_deleted = value.is_deleted();
            let mut report = |bytes: &[u8]| {
                if is_deleted {
                    ControlFlow::Continue(())
                } else {
                    f(&key, bytes)
                }
            };
            let stop = match value {
                LeafItem::Tree { root, .. } => {
                    duplicates::each_value(&self.pages, root, 0, &mut visit, &mut report)?
                }
                plain => report(&item_bytes(&self.pages, page, plain, &mut visit)?),
            };
            if stop.is_break() {
                return Ok(stop);
            }
        }
        if page.entries() > 0 {
            walk.last_key = Some(key.into_owned());
        }
        Ok(ControlFlow::Continue(()))
    }
}
