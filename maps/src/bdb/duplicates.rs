//! Leaf items of btree pages, and the trees that hold a key's values when they are too many for its page.
//!
//! | item | layout, 4-byte aligned |
//! |---|---|
//! | plain | length16, type 1, bytes |
//! | off-page | 2 pad, type 3, pad, page32, length32 |
//! | duplicate tree | 2 pad, type 2, pad, page32, 4 unused |
//! | btree internal | length16, type 1 or 3, pad, child32, count32, key bytes (type 3: a 12-byte off-page item) |
//! | recno internal | child32, count32 |
//!
//! Bit 0x80 of the type marks a deleted item. A duplicate tree's leaves are of type 12 (sorted) or 6 (in order of
//! insertion) and hold values only; the first value is the leftmost.

#![deny(clippy::indexing_slicing)]

use super::page::{Page, Pages, page_type};
use crate::MapError;
use crate::random_access::RandomAccess;
use std::ops::ControlFlow;

/// Deepest tree walked; a tree of 512-byte pages over 2^32 pages is less deep.
pub(crate) const DEPTH_MAX: u32 = 64;

const DELETED: u8 = 0x80;
/// Length of an off-page or duplicate-tree item.
pub(crate) const REFERENCE_LEN: usize = 12;

/// A leaf item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeafItem {
    /// Bytes on the page itself, as offset and length.
    Plain {
        at: usize,
        len: usize,
        is_deleted: bool,
    },
    /// Bytes in an overflow chain.
    OffPage {
        first: u32,
        len: u32,
        is_deleted: bool,
    },
    /// Values in a tree of their own.
    Tree { root: u32, is_deleted: bool },
}

impl LeafItem {
    pub(crate) fn is_deleted(self) -> bool {
        match self {
            Self::Plain { is_deleted, .. }
            | Self::OffPage { is_deleted, .. }
            | Self::Tree { is_deleted, .. } => is_deleted,
        }
    }

    /// Bytes it takes on its page, padding included.
    pub(crate) fn span(self) -> usize {
        match self {
            Self::Plain { len, .. } => (len + 3).next_multiple_of(4),
            Self::OffPage { .. } | Self::Tree { .. } => REFERENCE_LEN,
        }
    }
}

/// Decodes the leaf item at slot `index`, checked to lie on the page.
pub(crate) fn leaf_item<S: RandomAccess>(
    pages: &Pages<S>,
    page: &Page<'_>,
    index: usize,
) -> Result<LeafItem, MapError> {
    let bad = || pages.damaged(page.number, format!("item {index} is malformed"));
    let at = page.offset(index);
    if at < page.items_from() || at < page.low() || index >= page.entries() {
        return Err(bad());
    }
    let kind = *page.bytes.get(at + 2).ok_or_else(bad)?;
    let is_deleted = kind & DELETED != 0;
    let item = match kind & !DELETED {
        1 => LeafItem::Plain {
            at: at + 3,
            len: usize::from(page.half(at)),
            is_deleted,
        },
        2 => LeafItem::Tree {
            root: page.word(at + 4),
            is_deleted,
        },
        3 => LeafItem::OffPage {
            first: page.word(at + 4),
            len: page.word(at + 8),
            is_deleted,
        },
        _ => return Err(bad()),
    };
    let end = match item {
        LeafItem::Plain { at, len, .. } => at + len,
        _ => at + REFERENCE_LEN,
    };
    if end > page.bytes.len() {
        return Err(bad());
    }
    Ok(item)
}

/// Checks that the items of a page lie side by side from the lowest used byte to the end, so that a changed offset
/// or length cannot pass for another item. `span` gives an item's padded length at a slot.
pub(crate) fn check_layout<S: RandomAccess>(
    pages: &Pages<S>,
    page: &Page<'_>,
    span: &mut dyn FnMut(usize) -> Result<usize, MapError>,
) -> Result<(), MapError> {
    let mut items = Vec::with_capacity(page.entries());
    for index in 0..page.entries() {
        items.push((page.offset(index), span(index)?));
    }
    items.sort_unstable();
    // Equal keys of one page may share one key item.
    items.dedup();
    let mut expected = page.low();
    if expected < page.items_from() {
        return Err(pages.damaged(page.number, "items overlap the index"));
    }
    for (at, len) in items {
        if at != expected {
            return Err(pages.damaged(page.number, "items overlap or leave gaps"));
        }
        expected = at + len;
    }
    if expected != page.bytes.len() {
        return Err(pages.damaged(page.number, "items do not reach the end of the page"));
    }
    Ok(())
}

/// The child page of slot `index` of an internal page.
pub(crate) fn child<S: RandomAccess>(
    pages: &Pages<S>,
    page: &Page<'_>,
    index: usize,
) -> Result<u32, MapError> {
    let at = page.offset(index);
    if at < page.items_from()
        || index >= page.entries()
        || at + REFERENCE_LEN > page.bytes.len() + 4
    {
        return Err(pages.damaged(page.number, format!("item {index} is malformed")));
    }
    match page.kind() {
        page_type::RECNO_INTERNAL => Ok(page.word(at)),
        _ => Ok(page.word(at + 4)),
    }
}

/// Length of internal item `index`, padding included.
pub(crate) fn internal_span(page: &Page<'_>, index: usize) -> usize {
    match page.kind() {
        page_type::RECNO_INTERNAL => 8,
        _ => (usize::from(page.half(page.offset(index))) + REFERENCE_LEN).next_multiple_of(4),
    }
}

/// Calls `f` with every value of a duplicate tree, in order. `visit` is told every page and may refuse one.
pub(crate) fn each_value<S: RandomAccess>(
    pages: &Pages<S>,
    root: u32,
    depth: u32,
    visit: &mut dyn FnMut(u32) -> Result<(), MapError>,
    f: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
) -> Result<ControlFlow<()>, MapError> {
    if depth > DEPTH_MAX {
        return Err(pages.damaged(root, "the tree is too deep"));
    }
    let page = pages.page(root)?;
    visit(root)?;
    match page.kind() {
        page_type::DUPLICATE_LEAF | page_type::RECNO_LEAF => {
            check_layout(pages, &page, &mut |index| {
                Ok(leaf_item(pages, &page, index)?.span())
            })?;
            for index in 0..page.entries() {
                let item = leaf_item(pages, &page, index)?;
                if item.is_deleted() {
                    continue;
                }
                let value = item_bytes(pages, &page, item, visit)?;
                if f(&value).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        page_type::BTREE_INTERNAL | page_type::RECNO_INTERNAL => {
            check_layout(pages, &page, &mut |index| Ok(internal_span(&page, index)))?;
            for index in 0..page.entries() {
                let child = child(pages, &page, index)?;
                if each_value(pages, child, depth + 1, visit, f)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        kind => {
            return Err(pages.damaged(root, format!("page type {kind} in a tree of duplicates")));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// The bytes of a plain or off-page item.
pub(crate) fn item_bytes<'a, S: RandomAccess>(
    pages: &Pages<S>,
    page: &'a Page<'_>,
    item: LeafItem,
    visit: &mut dyn FnMut(u32) -> Result<(), MapError>,
) -> Result<std::borrow::Cow<'a, [u8]>, MapError> {
    match item {
        LeafItem::Plain { at, len, .. } => page
            .bytes
            .get(at..at + len)
            .map(std::borrow::Cow::Borrowed)
            .ok_or_else(|| pages.damaged(page.number, "an item runs off the page")),
        LeafItem::OffPage { first, len, .. } => {
            Ok(std::borrow::Cow::Owned(pages.overflow(first, len, visit)?))
        }
        LeafItem::Tree { .. } => {
            Err(pages.damaged(page.number, "a tree of duplicates in the wrong place"))
        }
    }
}
