//! LMDB files: read in safe code, built with the LMDB library.
//!
//! One file without a lock file beside it (MDB_NOSUBDIR, MDB_NOLOCK), as Postfix keeps its `lmdb:` maps; who uses it
//! takes an fcntl lock on the whole file instead (`load.rs`, `publish.rs`). Host byte order, 64-bit. Pages 0 and 1 are
//! metadata, and the one with the higher transaction number counts:
//!
//! | offset in page 0, 1 | size | meaning |
//! |---|---|---|
//! | 16 | 4 | magic 0xBEEFC0DE |
//! | 20 | 4 | version 1 |
//! | 40 | 4 | page size |
//! | 92 | 2 | flags of the main tree: 2, 4, 8 stand for orders and duplicates that are not read |
//! | 94 | 2 | depth |
//! | 120 | 8 | entries |
//! | 128 | 8 | root page, all ones: empty |
//! | 136 | 8 | last page |
//! | 144 | 8 | transaction |
//!
//! | offset in other pages | size | meaning |
//! |---|---|---|
//! | 0 | 8 | own page number |
//! | 10 | 2 | 1 branch, 2 leaf, 4 overflow run |
//! | 12 | 2, 2 | end of the node offsets, start of the nodes; overflow: number of pages, 4 bytes |
//! | 16 | | 16-bit offsets of nodes; overflow: data |
//!
//! A node: low16, high16, flags16, key length16, key, data. In a leaf low and high are the length of the data, and
//! flag 1 says that the data is the page number of an overflow run. In a branch low, high and flags are the child, and
//! the first key is empty. Keys sort bytewise, a prefix first.
//!
//! The library trusts the file it maps, and a file that is cut off kills the process that reads it; so files are
//! read here, bounds-checked, and the library only ever opens the new file that is being built. A walk proves that every page
//! is reached once, that keys rise, and that their number is the one stored. Blocks: on disk. Limits: keys of 1 to
//! [`KEY_BYTES_MAX`] bytes, one value a key. Source: the format as LMDB 0.9's documentation and files show it.

#![deny(clippy::indexing_slicing)]

use crate::random_access::{RandomAccess, short};
use crate::records::Entries;
use crate::{MapError, PairVisitor};
use lmdb::{DatabaseFlags, Environment, EnvironmentFlags, Transaction, WriteFlags};
use std::borrow::Cow;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// Longest key, in bytes; LMDB takes no empty one either.
pub const KEY_BYTES_MAX: usize = 511;

const MAGIC: u32 = 0xBEEF_C0DE;
const META_LEN: usize = 152;
const HEADER_LEN: usize = 16;
const NODE_LEN: usize = 8;
const BRANCH: u16 = 1;
const LEAF: u16 = 2;
const OVERFLOW: u16 = 4;
/// What LMDB sets while it has a page in work; without meaning in a file.
const DIRTY: u16 = 0x10;
/// Deepest tree followed; LMDB's own limit.
const DEPTH_MAX: u16 = 32;
/// Entries put in one transaction when building: its dirty pages are in memory until it ends.
const TRANSACTION_ENTRIES: usize = 50_000;

/// Whether a file begins as LMDB's do, in this host's byte order or the other.
pub(crate) fn is_lmdb(head: &[u8]) -> bool {
    let magic = u32_at(head, 16);
    magic == Some(MAGIC) || magic == Some(MAGIC.swap_bytes())
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// An opened file.
pub(crate) struct LmdbFile<S> {
    source: S,
    path: PathBuf,
    page_size: usize,
    last_page: u64,
    root: Option<u64>,
    depth: u16,
    entries: u64,
}

/// A branch or leaf page, its header checked.
struct Page<'a> {
    bytes: Cow<'a, [u8]>,
    number: u64,
    is_leaf: bool,
    nodes: usize,
}

/// A node's low, high and flags, its key, and what follows the key.
type Node<'p> = ([u16; 3], &'p [u8], &'p [u8]);

/// What a leaf node holds.
enum Value<'a> {
    Here(&'a [u8]),
    Overflow { page: u64, len: usize },
}

impl<S: RandomAccess> LmdbFile<S> {
    /// Reads and checks both metadata pages.
    ///
    /// # Errors
    /// [`MapError::Open`], [`MapError::Damaged`]; [`MapError::Unsupported`] for another byte order, version or kind of tree.
    pub(crate) fn open(source: S, path: &Path) -> Result<Self, MapError> {
        let damaged = |detail: String| MapError::damaged(path, detail);
        let len = source.len().map_err(|error| MapError::open(path, &error))?;
        let meta = |at: usize| {
            source.bytes(at as u64, META_LEN).map_err(|error| {
                short(path, &error, || {
                    format!("{len} bytes are too few for an LMDB file")
                })
            })
        };
        let first = meta(0)?;
        if u32_at(&first, 16) == Some(MAGIC.swap_bytes()) {
            return Err(MapError::unsupported(
                path,
                "an LMDB file of another byte order",
            ));
        }
        let page_size = u32_at(&first, 40).unwrap_or(0);
        if !page_size.is_power_of_two() || !(256..=65536).contains(&page_size) {
            return Err(damaged(format!("page size {page_size}")));
        }
        let page_size = page_size as usize;
        let second = meta(page_size)?;
        for (number, page) in [&first, &second].into_iter().enumerate() {
            if u32_at(page, 16) != Some(MAGIC) || u32_at(page, 40) != u32::try_from(page_size).ok()
            {
                return Err(damaged(format!("page {number} is not metadata")));
            }
            if u32_at(page, 20) != Some(1) {
                return Err(MapError::unsupported(
                    path,
                    "an LMDB file of another version",
                ));
            }
        }
        let newer = match u64_at(&second, 144) > u64_at(&first, 144) {
            true => second,
            false => first,
        };
        if u16_at(&newer, 92).unwrap_or(0) & 0xE != 0 {
            return Err(MapError::unsupported(
                path,
                "an LMDB file with duplicates or another order",
            ));
        }
        let last_page = u64_at(&newer, 136).unwrap_or(0);
        let whole = last_page
            .checked_add(1)
            .and_then(|pages| pages.checked_mul(page_size as u64));
        if whole.is_none_or(|whole| whole > len) {
            return Err(damaged(format!(
                "the file has {len} bytes, and page {last_page} is its last"
            )));
        }
        let depth = u16_at(&newer, 94).unwrap_or(0);
        if depth > DEPTH_MAX {
            return Err(damaged(format!("a tree {depth} levels deep")));
        }
        let root = u64_at(&newer, 128).filter(|&root| root != u64::MAX);
        let entries = u64_at(&newer, 120).unwrap_or(0);
        if root.is_none() && entries != 0 {
            return Err(damaged("entries without a tree".into()));
        }
        drop(newer);
        Ok(Self {
            source,
            path: path.to_path_buf(),
            page_size,
            last_page,
            root,
            depth,
            entries,
        })
    }

    fn damaged(&self, page: u64, detail: &str) -> MapError {
        MapError::damaged(&self.path, format!("page {page}: {detail}"))
    }

    fn read(&self, number: u64, pages: usize) -> Result<Cow<'_, [u8]>, MapError> {
        let end = number.checked_add(pages as u64);
        if number < 2 || end.is_none_or(|end| end > self.last_page + 1) {
            return Err(self.damaged(number, "no such page"));
        }
        let len = pages * self.page_size;
        self.source
            .bytes(number * self.page_size as u64, len)
            .map_err(|error| {
                short(&self.path, &error, || {
                    format!("page {number}: the file is cut off")
                })
            })
    }

    fn page(&self, number: u64) -> Result<Page<'_>, MapError> {
        let bytes = self.read(number, 1)?;
        if u64_at(&bytes, 0) != Some(number) {
            return Err(self.damaged(number, "it says it is another page"));
        }
        let is_leaf = match u16_at(&bytes, 10).unwrap_or(0) & !DIRTY {
            BRANCH => false,
            LEAF => true,
            _ => return Err(self.damaged(number, "neither branch nor leaf")),
        };
        let lower = usize::from(u16_at(&bytes, 12).unwrap_or(0));
        let upper = usize::from(u16_at(&bytes, 14).unwrap_or(0));
        if lower < HEADER_LEN || lower > upper || upper > bytes.len() {
            return Err(self.damaged(number, "the header does not fit the page"));
        }
        let nodes = (lower - HEADER_LEN) / 2;
        if nodes == 0 {
            return Err(self.damaged(number, "a page without entries"));
        }
        Ok(Page {
            bytes,
            number,
            is_leaf,
            nodes,
        })
    }

    /// The node's fixed part and what follows it.
    fn node<'p>(&self, page: &'p Page<'_>, index: usize) -> Result<Node<'p>, MapError> {
        let bad = || self.damaged(page.number, "a malformed entry");
        let at = u16_at(&page.bytes, HEADER_LEN + index * 2).ok_or_else(bad)?;
        let at = usize::from(at);
        let node = page
            .bytes
            .get(at..)
            .filter(|_| at >= HEADER_LEN + page.nodes * 2)
            .ok_or_else(bad)?;
        let half = |at| u16_at(node, at).ok_or_else(bad);
        let (low, high, flags, key_len) = (half(0)?, half(2)?, half(4)?, half(6)?);
        let rest = node.get(NODE_LEN..).ok_or_else(bad)?;
        let (key, data) = rest
            .split_at_checked(usize::from(key_len))
            .ok_or_else(bad)?;
        Ok(([low, high, flags], key, data))
    }

    fn child(&self, page: &Page<'_>, index: usize) -> Result<u64, MapError> {
        let ([low, high, flags], _, _) = self.node(page, index)?;
        Ok(u64::from(low) | u64::from(high) << 16 | u64::from(flags) << 32)
    }

    fn key<'p>(&self, page: &'p Page<'_>, index: usize) -> Result<&'p [u8], MapError> {
        Ok(self.node(page, index)?.1)
    }

    fn value<'p>(&self, page: &'p Page<'_>, index: usize) -> Result<Value<'p>, MapError> {
        let bad = || self.damaged(page.number, "a malformed value");
        let ([low, high, flags], _, data) = self.node(page, index)?;
        let len = (u32::from(high) << 16 | u32::from(low)) as usize;
        match flags {
            0 => data.get(..len).map(Value::Here).ok_or_else(bad),
            1 => Ok(Value::Overflow {
                page: u64_at(data, 0).ok_or_else(bad)?,
                len,
            }),
            _ => Err(MapError::unsupported(
                &self.path,
                "an LMDB file with several databases or duplicates",
            )),
        }
    }

    /// The bytes of an overflow run; `visit` is told its first page and how many there are.
    fn overflow(
        &self,
        number: u64,
        len: usize,
        visit: &mut dyn FnMut(u64, usize) -> Result<(), MapError>,
    ) -> Result<Vec<u8>, MapError> {
        let pages = (HEADER_LEN + len).div_ceil(self.page_size);
        let bytes = self.read(number, pages)?;
        let is_run = u64_at(&bytes, 0) == Some(number)
            && u16_at(&bytes, 10).map(|flags| flags & !DIRTY) == Some(OVERFLOW)
            && u32_at(&bytes, 12).is_some_and(|count| count as usize >= pages);
        if !is_run {
            return Err(self.damaged(number, "not the run of pages that an entry names"));
        }
        visit(number, pages)?;
        bytes
            .get(HEADER_LEN..HEADER_LEN + len)
            .map(<[u8]>::to_vec)
            .ok_or_else(|| self.damaged(number, "a value runs off its pages"))
    }

    /// The value of a key.
    pub(crate) fn lookup(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        let Some(mut number) = self.root else {
            return Ok(None);
        };
        for _ in 0..self.depth {
            let page = self.page(number)?;
            // The number of nodes whose key is not above the wanted one; a branch's first key counts as lowest.
            let (mut low, mut high) = (usize::from(!page.is_leaf), page.nodes);
            while low < high {
                let middle = low.midpoint(high);
                if self.key(&page, middle)? <= key {
                    low = middle + 1;
                } else {
                    high = middle;
                }
            }
            if !page.is_leaf {
                number = self.child(&page, low - 1)?;
                continue;
            }
            let Some(index) = low.checked_sub(1) else {
                return Ok(None);
            };
            if self.key(&page, index)? != key {
                return Ok(None);
            }
            return match self.value(&page, index)? {
                Value::Here(value) => Ok(Some(value.to_vec())),
                Value::Overflow { page, len } => {
                    self.overflow(page, len, &mut |_, _| Ok(())).map(Some)
                }
            };
        }
        Err(self.damaged(number, "the tree is deeper than its metadata says"))
    }

    /// Calls `f` with every pair in order of keys, and proves the file sound on the way (unless `f` breaks).
    pub(crate) fn each(&self, f: &mut PairVisitor<'_>) -> Result<(), MapError> {
        let Some(root) = self.root else {
            return Ok(());
        };
        let words = usize::try_from(self.last_page / 64 + 1)
            .map_err(|_| self.damaged(0, "too many pages"))?;
        let mut walk = Walk {
            seen: vec![0; words],
            last_key: None,
            entries: 0,
        };
        if self.walk(root, 1, &mut walk, f)?.is_continue() && walk.entries != self.entries {
            let detail = format!(
                "{} entries where there should be {}",
                walk.entries, self.entries
            );
            return Err(self.damaged(root, &detail));
        }
        Ok(())
    }

    fn walk(
        &self,
        number: u64,
        level: u16,
        walk: &mut Walk,
        f: &mut PairVisitor<'_>,
    ) -> Result<ControlFlow<()>, MapError> {
        let page = self.page(number)?;
        self.mark(walk, number, 1)?;
        if page.is_leaf != (level == self.depth) || level > self.depth {
            return Err(self.damaged(number, "a page on the wrong level"));
        }
        for index in 0..page.nodes {
            if !page.is_leaf {
                let child = self.child(&page, index)?;
                if self.walk(child, level + 1, walk, f)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                continue;
            }
            let key = self.key(&page, index)?;
            if walk.last_key.as_deref().is_some_and(|last| last >= key) {
                return Err(self.damaged(number, "keys are out of order"));
            }
            let last = walk.last_key.get_or_insert_default();
            last.clear();
            last.extend_from_slice(key);
            walk.entries += 1;
            let stop = match self.value(&page, index)? {
                Value::Here(value) => f(key, value),
                Value::Overflow { page, len } => {
                    let value = self
                        .overflow(page, len, &mut |first, pages| self.mark(walk, first, pages))?;
                    f(key, &value)
                }
            };
            if stop.is_break() {
                return Ok(stop);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Notes pages as used; none may be used twice.
    fn mark(&self, walk: &mut Walk, first: u64, pages: usize) -> Result<(), MapError> {
        for number in first..first + pages as u64 {
            let bit = 1 << (number % 64);
            let word = usize::try_from(number / 64)
                .ok()
                .and_then(|at| walk.seen.get_mut(at));
            match word {
                Some(word) if *word & bit == 0 => *word |= bit,
                _ => return Err(self.damaged(number, "the page is used twice")),
            }
        }
        Ok(())
    }
}

/// The state of a walk over the whole tree.
struct Walk {
    seen: Vec<u64>,
    last_key: Option<Vec<u8>>,
    entries: u64,
}

/// Builds the file at `path`, which must be empty; answers the number of entries. Not synced: the caller does that.
pub(crate) fn write_lmdb(path: &Path, entries: &Entries<'_>) -> io::Result<u64> {
    let failed = |error: lmdb::Error| io::Error::other(format!("LMDB: {error}"));
    let order = entries.sorted();
    // Address space only: the file grows as pages are written.
    let bytes: usize = order
        .iter()
        .map(|&(_, place)| {
            let (key, value) = entries.get(place);
            2 * (key.len() + NODE_LEN + 4)
                + (value.len() + HEADER_LEN + 1).next_multiple_of(64) * 2
                + if value.len() > 1000 { 8192 } else { 0 }
        })
        .sum();
    let environment = Environment::new()
        .set_flags(
            EnvironmentFlags::NO_SUB_DIR
                | EnvironmentFlags::NO_LOCK
                | EnvironmentFlags::NO_SYNC
                | EnvironmentFlags::NO_TLS,
        )
        .set_map_size((bytes + (16 << 20)).next_multiple_of(1 << 20))
        .open_with_permissions(path, 0o600)
        .map_err(failed)?;
    let database = environment
        .create_db(None, DatabaseFlags::empty())
        .map_err(failed)?;
    for part in order.chunks(TRANSACTION_ENTRIES) {
        let mut transaction = environment.begin_rw_txn().map_err(failed)?;
        for &(_, place) in part {
            let (key, value) = entries.get(place);
            transaction
                .put(database, &key, &value, WriteFlags::APPEND)
                .map_err(failed)?;
        }
        transaction.commit().map_err(failed)?;
    }
    Ok(order.len() as u64)
}
