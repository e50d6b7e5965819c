//! Constant databases (cdb): read and written in safe code.
//!
//! | offset | size | meaning |
//! |---|---|---|
//! | 0 | 2048 | 256 times: position and number of slots of a table, 32 bits each |
//! | 2048 | | records: key length, value length, 32 bits each, key, value |
//! | then | | tables of slots: hash and position of a record, 32 bits each; position 0 is a free slot |
//!
//! Everything is little endian. A key hashes to h (h = 5381; for each byte h * 33 xor byte); its table is h modulo 256,
//! its first slot (h / 256) modulo the number of slots, then the next ones until a free slot. The first record met is
//! the one a lookup answers. The file has no magic; it is recognised by tables that follow one another to the very end
//! of the file.
//!
//! Reading never panics: what does not fit is [`MapError::Damaged`]. A walk proves that every record is found by its
//! table and that every slot is accounted for. Blocks: on disk where the bytes come from a file, and when writing.
//! Limits: 4 GiB for the whole file, which writing refuses to pass. Source: D. J. Bernstein's description of cdb.

use crate::random_access::{RandomAccess, short};
use crate::records::Entries;
use crate::{MapError, PairVisitor};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes of the header.
pub(crate) const HEADER_LEN: usize = 2048;
const TABLES: usize = 256;
const SLOT_LEN: u64 = 8;
const RECORD_HEADER_LEN: u64 = 8;
/// Slots read at once when a lookup probes a file.
const PROBE_SLOTS: u64 = 16;
const BUFFER_BYTES: usize = 1 << 18;

/// A table of slots.
#[derive(Clone, Copy, Default)]
struct Table {
    position: u64,
    slots: u64,
}

impl Table {
    fn end(self) -> u64 {
        self.position + self.slots * SLOT_LEN
    }
}

/// An opened file.
pub(crate) struct CdbFile<S> {
    source: S,
    path: PathBuf,
    tables: [Table; TABLES],
    /// Where the records end and the tables begin.
    records_end: u64,
}

/// Whether a file of `len` bytes that begins with `head` has the shape of a cdb.
pub(crate) fn is_cdb(head: &[u8], len: u64) -> bool {
    head.first_chunk()
        .is_some_and(|head| shape(head, len).is_some())
}

/// The tables, and where the records end; `None` if the tables do not follow one another to the end of the file.
fn shape(head: &[u8; HEADER_LEN], len: u64) -> Option<([Table; TABLES], u64)> {
    let mut tables = [Table::default(); TABLES];
    let (pairs, _) = head.as_chunks::<8>();
    for (table, pair) in tables.iter_mut().zip(pairs) {
        let (position, slots) = pair_of(*pair);
        *table = Table {
            position: u64::from(position),
            slots: u64::from(slots),
        };
    }
    let mut used: Vec<Table> = tables
        .iter()
        .filter(|table| table.slots > 0)
        .copied()
        .collect();
    used.sort_unstable_by_key(|table| table.position);
    let Some(first) = used.first() else {
        // Without entries: nothing but the header, whose positions are all 0 or all its length.
        return (len == HEADER_LEN as u64).then_some((tables, len));
    };
    if first.position < HEADER_LEN as u64 {
        return None;
    }
    let mut at = first.position;
    for table in &used {
        if table.position != at {
            return None;
        }
        at = table.end();
    }
    (at == len).then_some((tables, first.position))
}

fn pair_of(bytes: [u8; 8]) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = bytes;
    (
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    )
}

fn pair(first: u32, second: u32) -> [u8; 8] {
    let [a, b, c, d] = first.to_le_bytes();
    let [e, f, g, h] = second.to_le_bytes();
    [a, b, c, d, e, f, g, h]
}

/// The hash of the format.
#[inline]
fn cdb_hash(key: &[u8]) -> u32 {
    key.iter()
        .fold(5381_u32, |h, &byte| h.wrapping_mul(33) ^ u32::from(byte))
}

impl<S: RandomAccess> CdbFile<S> {
    /// Reads and checks the header.
    ///
    /// # Errors
    /// [`MapError::Open`] if it cannot be read, [`MapError::Damaged`] if it is not the header of a whole cdb.
    pub(crate) fn open(source: S, path: &Path) -> Result<Self, MapError> {
        let len = source.len().map_err(|error| MapError::open(path, &error))?;
        let head = source.bytes(0, HEADER_LEN).map_err(|error| {
            short(path, &error, || {
                format!("{len} bytes are too few for a cdb file")
            })
        })?;
        let found = head.first_chunk().and_then(|head| shape(head, len));
        drop(head);
        let (tables, records_end) =
            found.ok_or_else(|| MapError::damaged(path, "not a cdb file, or it is cut off"))?;
        Ok(Self {
            source,
            path: path.to_path_buf(),
            tables,
            records_end,
        })
    }

    fn damaged(&self, at: u64, detail: &str) -> MapError {
        MapError::damaged(&self.path, format!("byte {at}: {detail}"))
    }

    fn bytes(&self, at: u64, len: u64) -> Result<std::borrow::Cow<'_, [u8]>, MapError> {
        let len = usize::try_from(len).map_err(|_| self.damaged(at, "the file is cut off"))?;
        self.source.bytes(at, len).map_err(|error| {
            short(&self.path, &error, || {
                format!("byte {at}: the file is cut off")
            })
        })
    }

    /// Key and value lengths of the record at `at`, which must end before the tables.
    fn lengths(&self, at: u64) -> Result<(u64, u64), MapError> {
        let beyond = || self.damaged(at, "a record runs into the tables");
        if at < HEADER_LEN as u64 || at + RECORD_HEADER_LEN > self.records_end {
            return Err(beyond());
        }
        let head = self.bytes(at, RECORD_HEADER_LEN)?;
        let (key, value) = head.first_chunk().map_or((0, 0), |head| pair_of(*head));
        let (key, value) = (u64::from(key), u64::from(value));
        if at + RECORD_HEADER_LEN + key + value > self.records_end {
            return Err(beyond());
        }
        Ok((key, value))
    }

    fn table(&self, hash: u32) -> Table {
        let index = usize::try_from(hash & 0xFF).unwrap_or(0);
        self.tables.get(index).copied().unwrap_or_default()
    }

    /// Calls `f` with hash and record position of the slots that a key of this hash may be in, until it answers
    /// something or a free slot ends the search.
    fn probe<T>(
        &self,
        hash: u32,
        f: &mut dyn FnMut(u32, u64) -> Result<Option<T>, MapError>,
    ) -> Result<Option<T>, MapError> {
        let table = self.table(hash);
        if table.slots == 0 {
            return Ok(None);
        }
        let mut slot = u64::from(hash >> 8) % table.slots;
        let mut left = table.slots;
        while left > 0 {
            let count = PROBE_SLOTS.min(left).min(table.slots - slot);
            let bytes = self.bytes(table.position + slot * SLOT_LEN, count * SLOT_LEN)?;
            for entry in bytes.as_chunks::<8>().0 {
                let (found, position) = pair_of(*entry);
                if position == 0 {
                    return Ok(None);
                }
                if let Some(answer) = f(found, u64::from(position))? {
                    return Ok(Some(answer));
                }
            }
            left -= count;
            slot = (slot + count) % table.slots;
        }
        Ok(None)
    }

    /// The first value of a key.
    pub(crate) fn lookup(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        let hash = cdb_hash(key);
        self.probe(hash, &mut |found, position| {
            if found != hash {
                return Ok(None);
            }
            let (key_len, value_len) = self.lengths(position)?;
            if key_len != key.len() as u64 {
                return Ok(None);
            }
            let record = self.bytes(position + RECORD_HEADER_LEN, key_len + value_len)?;
            Ok(record.strip_prefix(key).map(<[u8]>::to_vec))
        })
    }

    /// Hash and position of every record a lookup can find, in order of positions.
    fn reachable(&self) -> Result<Vec<(u64, u32)>, MapError> {
        let mut records = Vec::new();
        for (number, table) in (0_u32..).zip(&self.tables) {
            if table.slots == 0 {
                continue;
            }
            let bytes = self.bytes(table.position, table.slots * SLOT_LEN)?;
            let slots = bytes.as_chunks::<8>().0;
            // How many slots before this one are taken: a search that begins further back never comes here.
            let mut taken = slots
                .iter()
                .rev()
                .take_while(|slot| pair_of(**slot).1 != 0)
                .count() as u64;
            for (index, slot) in (0_u64..).zip(slots) {
                let (hash, position) = pair_of(*slot);
                if position == 0 {
                    taken = 0;
                    continue;
                }
                let home = u64::from(hash >> 8) % table.slots;
                let distance = (index + table.slots - home) % table.slots;
                if hash & 0xFF != number || distance > taken {
                    return Err(self.damaged(table.position, "a slot in the wrong place"));
                }
                records.push((u64::from(position), hash));
                taken += 1;
            }
        }
        records.sort_unstable();
        Ok(records)
    }

    /// Calls `f` with every pair in the order of the file, and proves the file sound on the way (unless `f` breaks).
    pub(crate) fn each(&self, f: &mut PairVisitor<'_>) -> Result<(), MapError> {
        let reachable = self.reachable()?;
        let mut wanted = reachable.iter();
        let mut at = HEADER_LEN as u64;
        while at < self.records_end {
            let (key_len, value_len) = self.lengths(at)?;
            let record = self.bytes(at + RECORD_HEADER_LEN, key_len + value_len)?;
            let key_len = usize::try_from(key_len).unwrap_or(usize::MAX);
            let (key, value) = record
                .split_at_checked(key_len)
                .ok_or_else(|| self.damaged(at, "a malformed record"))?;
            if wanted.next() != Some(&(at, cdb_hash(key))) {
                return Err(self.damaged(at, "no table leads to this record"));
            }
            if f(key, value).is_break() {
                return Ok(());
            }
            at += RECORD_HEADER_LEN + record.len() as u64;
        }
        match wanted.next() {
            None => Ok(()),
            Some((position, _)) => Err(self.damaged(*position, "a table leads to no record")),
        }
    }
}

/// Writes the whole file; answers the number of different keys.
pub(crate) fn write_cdb(file: &File, entries: &Entries<'_>) -> io::Result<u64> {
    let full = || {
        io::Error::new(
            io::ErrorKind::FileTooLarge,
            "a cdb file cannot hold more than 4 GiB",
        )
    };
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, file);
    out.write_all(&[0; HEADER_LEN])?;
    let mut at = HEADER_LEN as u64;
    let mut slots: Vec<(u32, u32)> = Vec::with_capacity(entries.places.len());
    let mut counts = [0_u32; TABLES];
    let tables_len = entries.places.len() as u64 * 2 * SLOT_LEN;
    for &place in entries.places {
        let (key, value) = entries.get(place);
        let position = u32::try_from(at).map_err(|_| full())?;
        let key_len = u32::try_from(key.len()).map_err(|_| full())?;
        let value_len = u32::try_from(value.len()).map_err(|_| full())?;
        at += RECORD_HEADER_LEN + (key.len() + value.len()) as u64;
        if at + tables_len > u64::from(u32::MAX) {
            return Err(full());
        }
        out.write_all(&pair(key_len, value_len))?;
        out.write_all(key)?;
        out.write_all(value)?;
        let hash = cdb_hash(key);
        counts[(hash & 0xFF) as usize] += 1;
        slots.push((hash, position));
    }
    // In order of their tables; equal hashes together in order of insertion, so that of several values the first is
    // met first, and each is placed after the one before without searching from its home again.
    slots.sort_by_key(|(hash, _)| (hash & 0xFF, *hash));
    let mut header = [0; HEADER_LEN];
    let mut rest = slots.as_slice();
    let mut table = Vec::new();
    for (place, count) in header.as_chunks_mut::<8>().0.iter_mut().zip(counts) {
        let (mine, others) = rest.split_at(count as usize);
        rest = others;
        let len = mine.len() * 2;
        *place = pair(u32::try_from(at).map_err(|_| full())?, count * 2);
        table.clear();
        table.resize(len, [0; 8]);
        let mut last = None;
        for &(hash, position) in mine {
            let mut slot = match last {
                Some((before, slot)) if before == hash => slot,
                _ => (hash >> 8) as usize % len,
            };
            while table[slot] != [0; 8] {
                slot = (slot + 1) % len;
            }
            table[slot] = pair(hash, position);
            last = Some((hash, slot));
        }
        out.write_all(table.as_flattened())?;
        at += len as u64 * SLOT_LEN;
    }
    out.flush()?;
    file.write_all_at(&header, 0)?;
    Ok(entries.keys())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records;
    use crate::region::Region;
    use std::ops::ControlFlow;

    fn written(pairs: &[(&[u8], &[u8])]) -> Vec<u8> {
        let mut body = Region::new();
        let places: Vec<u32> = pairs
            .iter()
            .map(|(key, value)| records::append(&mut body, key, value).unwrap())
            .collect();
        let file = tempfile::tempfile().unwrap();
        let entries = Entries {
            body: &body,
            places: &places,
            duplicates: true,
        };
        let mut keys: Vec<&[u8]> = pairs.iter().map(|(key, _)| *key).collect();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(write_cdb(&file, &entries).unwrap(), keys.len() as u64);
        let len = RandomAccess::len(&file).unwrap();
        file.bytes(0, usize::try_from(len).unwrap())
            .unwrap()
            .into_owned()
    }

    #[test]
    fn pairs_come_back_and_the_first_of_several_values_is_the_answer() {
        let bytes = written(&[(b"one", b"1"), (b"", b"empty"), (b"one", b"2"), (b"e", b"")]);
        assert!(is_cdb(&bytes[..HEADER_LEN], bytes.len() as u64));
        let file = CdbFile::open(bytes.as_slice(), Path::new("m")).unwrap();
        assert_eq!(file.lookup(b"one").unwrap().unwrap(), b"1");
        assert_eq!(file.lookup(b"").unwrap().unwrap(), b"empty");
        assert_eq!(file.lookup(b"e").unwrap().unwrap(), b"");
        assert_eq!(file.lookup(b"two").unwrap(), None);
        let mut seen = 0;
        file.each(&mut |_, _| {
            seen += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(seen, 4);
        let empty = written(&[]);
        assert_eq!(empty.len(), HEADER_LEN);
        let empty = CdbFile::open(empty.as_slice(), Path::new("m")).unwrap();
        assert_eq!(empty.lookup(b"x").unwrap(), None);
    }

    #[test]
    fn a_lost_slot_and_a_cut_file_are_damage() {
        let bytes = written(&[(b"one", b"1"), (b"two", b"2")]);
        for cut in 0..bytes.len() {
            assert!(
                CdbFile::open(&bytes[..cut], Path::new("m")).is_err(),
                "{cut}"
            );
        }
        let mut found = 0;
        for at in HEADER_LEN..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x41;
            let file = CdbFile::open(bad.as_slice(), Path::new("m")).unwrap();
            found += u32::from(file.each(&mut |_, _| ControlFlow::Continue(())).is_err());
        }
        // Everything but the two values and the unused hashes of free slots.
        assert_eq!(found, 46);
    }
}
