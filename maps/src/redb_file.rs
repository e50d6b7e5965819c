//! redb files: a checksummed copy-on-write tree, built and read by the redb library.
//!
//! A map is one table of byte strings, named [`TABLE`]. The library is given a private copy of the file in memory:
//! nobody is locked out while we read, a file cut off meanwhile harms nobody, and the whole copy is checked against its checksums
//! before an entry is used. Blocks: on disk when writing. Limits: the smallest file has some megabytes; one value a key.
//! Source: the redb crate's documentation.

#![deny(clippy::indexing_slicing)]

use crate::records::Entries;
use crate::{MapError, Snapshot, SnapshotBuilder, Stamp};
use redb::backends::{FileBackend, InMemoryBackend};
use redb::{Builder, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition, TableError};
use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

/// The table of a map.
pub(crate) const TABLE: &str = "map";
const DEFINITION: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new(TABLE);
/// Pages the library keeps in memory while it builds.
const CACHE_BYTES: usize = 64 << 20;
/// How a file begins.
const MAGIC: [u8; 9] = *b"redb\x1A\x0A\xA9\x0D\x0A";

/// Whether a file begins as redb's do.
pub(crate) fn is_redb(head: &[u8]) -> bool {
    head.starts_with(&MAGIC)
}

/// Checks a whole file's bytes and puts its entries into a table of ours.
///
/// # Errors
/// [`MapError::Damaged`]; [`MapError::Unsupported`] for a file without the table.
pub(crate) fn load_redb(path: &Path, bytes: &[u8], stamp: Stamp) -> Result<Snapshot, MapError> {
    // The library checks what it reads, but a file made to deceive it may still find an assertion of its own.
    catch_unwind(AssertUnwindSafe(|| read(path, bytes, stamp)))
        .unwrap_or_else(|_| Err(MapError::damaged(path, "redb gave up on the file")))
}

fn read(path: &Path, bytes: &[u8], stamp: Stamp) -> Result<Snapshot, MapError> {
    let damaged = |error: &dyn std::fmt::Display| MapError::damaged(path, format!("redb: {error}"));
    let memory = InMemoryBackend::new();
    memory
        .set_len(bytes.len() as u64)
        .map_err(|error| damaged(&error))?;
    memory.write(0, bytes).map_err(|error| damaged(&error))?;
    let database = Builder::new()
        .set_check_integrity_on_open(true)
        .create_with_backend(memory)
        .map_err(|error| damaged(&error))?;
    let transaction = database.begin_read().map_err(|error| damaged(&error))?;
    let table = match transaction.open_table(DEFINITION) {
        Ok(table) => table,
        Err(TableError::Storage(error)) => return Err(damaged(&error)),
        Err(error) => return Err(MapError::unsupported(path, format!("redb: {error}"))),
    };
    let mut builder = SnapshotBuilder::new(path, 0, bytes.len() / 2);
    for entry in table.iter().map_err(|error| damaged(&error))? {
        let (key, value) = entry.map_err(|error| damaged(&error))?;
        builder.add(key.value(), value.value())?;
    }
    Ok(builder.finish(stamp))
}

/// Builds the file, which must be empty; answers the number of entries.
pub(crate) fn write_redb(file: &File, entries: &Entries<'_>) -> io::Result<u64> {
    let failed = |error: &dyn std::fmt::Display| io::Error::other(format!("redb: {error}"));
    let backend = FileBackend::new(file.try_clone()?).map_err(|error| failed(&error))?;
    let database = Builder::new()
        .set_cache_size(CACHE_BYTES)
        .create_with_backend(backend)
        .map_err(|error| failed(&error))?;
    let transaction = database.begin_write().map_err(|error| failed(&error))?;
    let order = entries.sorted();
    {
        let mut table = transaction
            .open_table(DEFINITION)
            .map_err(|error| failed(&error))?;
        for &(_, place) in &order {
            let (key, value) = entries.get(place);
            table.insert(key, value).map_err(|error| failed(&error))?;
        }
    }
    transaction.commit().map_err(|error| failed(&error))?;
    database.close().map_err(|error| failed(&error))?;
    Ok(order.len() as u64)
}
