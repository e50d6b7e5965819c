//! Reading Berkeley DB hash files, versions 7 to 9.
//!
//! | offset in page 0 | size | meaning |
//! |---|---|---|
//! | 48 | 4 | flags: 1 duplicates, 2 sub-databases, 4 sorted duplicates |
//! | 72 | 4 | highest bucket |
//! | 76 | 4 | high mask: next power of two above the highest bucket, less 1 |
//! | 80 | 4 | low mask: high mask / 2 |
//! | 92 | 4 | hash of a test string, to notice other hash functions |
//! | 96 | 128 | spares: first page of bucket b is b + spares[32 - leading zeros of b] |
//!
//! An item's length is not stored: item i ends where item i - 1 begins. Its first byte is its type: 1 plain, 2 a list
//! of duplicates (length16, bytes, length16 each), 3 off-page (3 pad, page32, length32), 4 a tree of duplicates (3
//! pad, page32).
//!
//! A walk over the whole file proves it sound: every page that holds anything is reached exactly once, and every key
//! lies in its bucket. A single lookup reads only the pages of one bucket.

#![deny(clippy::indexing_slicing)]

use super::duplicates;
use super::page::{CHARKEY_HASH, Page, PageSet, Pages, page_type};
use crate::random_access::RandomAccess;
use crate::{MapError, PairVisitor};
use std::borrow::Cow;
use std::cmp::Ordering;
use std::ops::ControlFlow;

const OFF_PAGE_LEN: usize = 12;
const OFF_TREE_LEN: usize = 8;

/// Berkeley DB's hash function since version 5 of the format.
#[inline]
pub(crate) fn bucket_hash(key: &[u8]) -> u32 {
    key.iter().fold(0_u32, |h, &byte| {
        h.wrapping_mul(16_777_619) ^ u32::from(byte)
    })
}

/// The hash part of the metadata.
struct Buckets {
    max: u32,
    high_mask: u32,
    low_mask: u32,
    spares: [u32; 32],
}

/// A hash file, opened for reading.
pub(crate) struct HashFile<S> {
    pages: Pages<S>,
    buckets: Buckets,
}

/// One item of a hash page.
enum Item<'a> {
    Plain(&'a [u8]),
    Duplicates(&'a [u8]),
    OffPage { first: u32, len: u32 },
    Tree { root: u32 },
}

impl<S: RandomAccess> HashFile<S> {
    pub(crate) fn new(pages: Pages<S>) -> Result<Self, MapError> {
        if pages.meta_word(48) & 2 != 0 {
            return Err(pages.unsupported("the file holds several databases"));
        }
        if pages.meta_word(92) != CHARKEY_HASH {
            return Err(pages.unsupported("the file uses a hash function of its writer's own"));
        }
        let max = pages.meta_word(72);
        let high_mask = max
            .checked_add(1)
            .and_then(u32::checked_next_power_of_two)
            .map_or(u32::MAX, |size| size - 1);
        if pages.meta_word(76) != high_mask || pages.meta_word(80) != high_mask >> 1 {
            return Err(pages.damaged(0, "bucket masks do not fit the number of buckets"));
        }
        let mut spares = [0; 32];
        for (at, spare) in (96..).step_by(4).zip(&mut spares) {
            *spare = pages.meta_word(at);
        }
        Ok(Self {
            buckets: Buckets {
                max,
                high_mask,
                low_mask: high_mask >> 1,
                spares,
            },
            pages,
        })
    }

    pub(crate) fn pages(&self) -> &Pages<S> {
        &self.pages
    }

    fn bucket_of(&self, key: &[u8]) -> u32 {
        let bucket = bucket_hash(key) & self.buckets.high_mask;
        if bucket > self.buckets.max {
            bucket & self.buckets.low_mask
        } else {
            bucket
        }
    }

    /// First page of a bucket; `None` if libdb never wrote it, and the bucket is empty.
    fn first_page(&self, bucket: u32) -> Result<Option<u32>, MapError> {
        let group = (32 - bucket.leading_zeros()) as usize;
        let spare = self.buckets.spares.get(group).copied().unwrap_or(0);
        match bucket.checked_add(spare) {
            None | Some(0) => Err(self
                .pages
                .damaged(0, format!("no page for bucket {bucket}"))),
            Some(page) if page > self.pages.last_page() => Ok(None),
            Some(page) => Ok(Some(page)),
        }
    }

    /// The first value of a key.
    pub(crate) fn lookup(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        let mut next = self.first_page(self.bucket_of(key))?;
        let mut previous = 0;
        // A chain cannot be longer than the file.
        for _ in 0..=self.pages.last_page() {
            let Some(number) = next else {
                return Ok(None);
            };
            let page = self.pages.page(number)?;
            if page.kind() == page_type::INVALID && previous == 0 {
                return Ok(None);
            }
            self.check_page(&page, previous)?;
            if let Some(index) = self.search(&page, key)? {
                return self.first_value(&page, index + 1).map(Some);
            }
            previous = number;
            next = match page.next() {
                0 => None,
                number => Some(number),
            };
        }
        Err(self
            .pages
            .damaged(previous, "the bucket's chain never ends"))
    }

    /// The slot of a key on a page: by libdb's own sequence of probes, and where that may be wrong, by looking at all.
    fn search(&self, page: &Page<'_>, key: &[u8]) -> Result<Option<usize>, MapError> {
        let pairs = page.entries() / 2;
        if page.kind() == page_type::HASH_UNSORTED {
            return self.scan(page, key);
        }
        let (mut base, mut limit) = (0, pairs);
        while limit > 0 {
            let probe = base + limit / 2;
            match self.compare(page, probe * 2, key)? {
                Ordering::Equal => return Ok(Some(probe * 2)),
                Ordering::Greater => {
                    base = probe + 1;
                    limit -= 1;
                }
                Ordering::Less => {}
            }
            limit /= 2;
        }
        // Short and off-page keys sort by different rules, so on a page that has both, probing may pass over a key
        // that is there.
        for pair in 0..pairs {
            if matches!(self.item(page, pair * 2)?, Item::OffPage { .. }) {
                return self.scan(page, key);
            }
        }
        Ok(None)
    }

    fn scan(&self, page: &Page<'_>, key: &[u8]) -> Result<Option<usize>, MapError> {
        for index in (0..page.entries()).step_by(2) {
            if self.compare(page, index, key)? == Ordering::Equal {
                return Ok(Some(index));
            }
        }
        Ok(None)
    }

    /// How the wanted key compares with the key item at `index`.
    fn compare(&self, page: &Page<'_>, index: usize, key: &[u8]) -> Result<Ordering, MapError> {
        match self.item(page, index)? {
            Item::Plain(there) => Ok(compare_on_page(key, there)),
            Item::OffPage { first, len } => {
                let there = self.pages.overflow(first, len, &mut |_| Ok(()))?;
                Ok(key.cmp(&there))
            }
            _ => Err(self.pages.damaged(page.number, "a key of the wrong type")),
        }
    }

    fn first_value(&self, page: &Page<'_>, index: usize) -> Result<Vec<u8>, MapError> {
        let mut first = None;
        let _ = self.each_value(page, index, &mut |_| Ok(()), &mut |value| {
            first = Some(value.to_vec());
            ControlFlow::Break(())
        })?;
        first.ok_or_else(|| self.pages.damaged(page.number, "a key without a value"))
    }

    fn each_value(
        &self,
        page: &Page<'_>,
        index: usize,
        visit: &mut dyn FnMut(u32) -> Result<(), MapError>,
        f: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, MapError> {
        match self.item(page, index)? {
            Item::Plain(value) => Ok(f(value)),
            Item::OffPage { first, len } => Ok(f(&self.pages.overflow(first, len, visit)?)),
            Item::Tree { root } => duplicates::each_value(&self.pages, root, 0, visit, f),
            Item::Duplicates(mut list) => {
                let bad = || {
                    self.pages
                        .damaged(page.number, "a malformed list of duplicates")
                };
                while !list.is_empty() {
                    let (before, rest) = list.split_first_chunk::<2>().ok_or_else(bad)?;
                    let len = usize::from(self.pages.order().u16(*before));
                    let (value, rest) = rest.split_at_checked(len).ok_or_else(bad)?;
                    let (after, rest) = rest.split_first_chunk::<2>().ok_or_else(bad)?;
                    if after != before {
                        return Err(bad());
                    }
                    if f(value).is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                    list = rest;
                }
                Ok(ControlFlow::Continue(()))
            }
        }
    }

    /// Checks a bucket page's header and that its items lie in index order without gaps.
    fn check_page(&self, page: &Page<'_>, previous: u32) -> Result<(), MapError> {
        let bad = |detail: &str| Err(self.pages.damaged(page.number, detail));
        if !matches!(page.kind(), page_type::HASH | page_type::HASH_UNSORTED) {
            return bad("not a hash page");
        }
        if page.previous() != previous {
            return bad("the bucket's chain is broken");
        }
        if !page.entries().is_multiple_of(2) {
            return bad("a key without a value");
        }
        let mut end = page.bytes.len();
        for index in 0..page.entries() {
            let at = page.offset(index);
            if at >= end || at < page.items_from() {
                return bad("items are out of order");
            }
            end = at;
        }
        if end != page.low() {
            return bad("the lowest item is not where the header says");
        }
        Ok(())
    }

    fn item<'p>(&self, page: &'p Page<'_>, index: usize) -> Result<Item<'p>, MapError> {
        let bad = || {
            self.pages
                .damaged(page.number, format!("item {index} is malformed"))
        };
        let start = page.offset(index);
        let end = match index.checked_sub(1) {
            None => page.bytes.len(),
            Some(before) => page.offset(before),
        };
        let item = page.bytes.get(start..end).ok_or_else(bad)?;
        let (kind, rest) = item.split_first().ok_or_else(bad)?;
        Ok(match (kind, item.len()) {
            (1, _) => Item::Plain(rest),
            (2, _) => Item::Duplicates(rest),
            (3, OFF_PAGE_LEN) => Item::OffPage {
                first: page.word(start + 4),
                len: page.word(start + 8),
            },
            (4, OFF_TREE_LEN) => Item::Tree {
                root: page.word(start + 4),
            },
            _ => return Err(bad()),
        })
    }

    /// Calls `f` with every pair, bucket by bucket, and proves the file sound on the way (unless `f` breaks).
    pub(crate) fn each(&self, f: &mut PairVisitor<'_>) -> Result<(), MapError> {
        let mut seen = PageSet::new(self.pages.last_page());
        let mut bucket = 0_u32;
        loop {
            match self.first_page(bucket)? {
                // Pages of a group of buckets are contiguous: nothing more of this group was written.
                None => {
                    bucket = bucket
                        .checked_add(1)
                        .map_or(u32::MAX, u32::next_power_of_two)
                }
                Some(page) => {
                    if self.each_of_bucket(bucket, page, &mut seen, f)?.is_break() {
                        return Ok(());
                    }
                    bucket = bucket.saturating_add(1);
                }
            }
            if bucket > self.buckets.max || bucket == u32::MAX {
                break;
            }
        }
        check_unreached(&self.pages, &seen)
    }

    fn each_of_bucket(
        &self,
        bucket: u32,
        first: u32,
        seen: &mut PageSet,
        f: &mut PairVisitor<'_>,
    ) -> Result<ControlFlow<()>, MapError> {
        let mut previous = 0;
        let mut number = first;
        while number != 0 {
            let page = self.pages.page(number)?;
            if !seen.insert(number) {
                return Err(self.pages.damaged(number, "the page is used twice"));
            }
            if page.kind() == page_type::INVALID && previous == 0 {
                break;
            }
            self.check_page(&page, previous)?;
            let mut visit = |page: u32| match seen.insert(page) {
                true => Ok(()),
                false => Err(self.pages.damaged(page, "the page is used twice")),
            };
            for index in (0..page.entries()).step_by(2) {
                let key = match self.item(&page, index)? {
                    Item::Plain(key) => Cow::Borrowed(key),
                    Item::OffPage { first, len } => {
                        Cow::Owned(self.pages.overflow(first, len, &mut visit)?)
                    }
                    _ => return Err(self.pages.damaged(number, "a key of the wrong type")),
                };
                if self.bucket_of(&key) != bucket {
                    return Err(self.pages.damaged(number, "a key in the wrong bucket"));
                }
                let stop =
                    self.each_value(&page, index + 1, &mut visit, &mut |value| f(&key, value))?;
                if stop.is_break() {
                    return Ok(stop);
                }
            }
            previous = number;
            number = page.next();
        }
        Ok(ControlFlow::Continue(()))
    }
}

/// Order of keys on a sorted hash page: bytewise, but of a key and its prefix the longer comes first.
#[inline]
pub(crate) fn compare_on_page(a: &[u8], b: &[u8]) -> Ordering {
    let common = a.len().min(b.len());
    match a.get(..common).cmp(&b.get(..common)) {
        Ordering::Equal => b.len().cmp(&a.len()),
        unequal => unequal,
    }
}

/// After a whole walk: a page that nothing led to must hold nothing, or a chain was cut and keys are missing.
pub(crate) fn check_unreached<S: RandomAccess>(
    pages: &Pages<S>,
    seen: &PageSet,
) -> Result<(), MapError> {
    for number in 1..=pages.last_page() {
        if seen.contains(number) {
            continue;
        }
        let page = pages.page(number)?;
        let is_vacant = match page.kind() {
            page_type::INVALID => true,
            page_type::OVERFLOW => false,
            _ => page.entries() == 0,
        };
        if !is_vacant {
            return Err(pages.damaged(number, "nothing leads to this page, so entries are lost"));
        }
    }
    Ok(())
}
