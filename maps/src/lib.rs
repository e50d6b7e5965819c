//! Mail lookup tables: aliases, access, mailertable and their kin, read, served from memory, and built.
//!
//! Usable without the rest of Diligence. Files are those other mail programs use: Berkeley DB `hash` and `btree` (read and
//! written in safe code, no libdb), `cdb`, `lmdb` and plain text, beside `redb` and a constant file of its own.
//!
//! * [`MapSpec`] parses Sendmail's syntax, `hash -o -T<TMPF> /etc/mail/access`.
//! * [`Definition`] is a map of any class as configured; [`MapSet`] opens it, [`OpenMap`] answers.
//! * [`MapHandle`] is what a server holds: lookups in memory, rebuilt files noticed, damaged ones kept out.
//! * [`open_direct`] is for programs that look up once: no load, a few reads under the file's lock.
//! * [`MapBuilder`] builds a map and publishes it by rename; [`alias`] does so for alias files.
//!
//! ```
//! use diligence_maps::{DuplicatePolicy, HandleOptions, MapBuilder, MapHandle, MapKind, MapSpec, PublishOptions};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! let name = dir.path().join("users");
//! let mut builder = MapBuilder::new(MapKind::Hash, DuplicatePolicy::KeepFirst)?;
//! builder.insert(b"postmaster", b"root")?;
//! builder.publish(&MapKind::Hash.file_of(&name), &PublishOptions::default())?;
//!
//! let spec = MapSpec::parse(&format!("hash {}", name.display()))?;
//! let map = MapHandle::open(&spec, HandleOptions::default())?;
//! assert_eq!(map.lookup(b"Postmaster")?.as_deref(), Some(&b"root"[..]));
//! assert_eq!(map.lookup(b"nobody")?, None);
//!
//! // Somebody rebuilds the file, with this crate or with makemap, postmap or libdb.
//! builder.insert(b"abuse", b"postmaster")?;
//! builder.publish(map.file(), &PublishOptions::default())?;
//! assert_eq!(map.lookup(b"abuse")?.as_deref(), Some(&b"postmaster"[..]));
//! # Ok(())
//! # }
//! ```
//!
//! Guarantees: a key that is absent is `Ok(None)`, a lookup that did not work is an error, and the two never look
//! alike; bytes from files give errors, never panics, loops or unbounded memory; a map that is published is whole and
//! on disk. Everything is synchronous. Only the building of a map of more than a megabyte starts a thread, which writes
//! it and has ended when [`MapBuilder::publish`] returns; only the class `program` runs a program.
//!
//! Limits are gathered in [`limits`]. Sources: sendmail's op.me 5.12, makemap(8), the on-disk formats as
//! the modules that read them describe.

pub mod alias;
mod answer;
mod bdb;
pub mod builder;
mod cdb;
mod definition;
mod direct;
mod error;
mod file_access;
mod fixed;
#[cfg(test)]
mod fuzz_tests;
mod handle;
mod implicit;
mod kind;
mod lmdb_file;
mod load;
mod lock;
mod null;
mod open_map;
mod patience;
#[cfg(test)]
mod power_cut_tests;
mod program;
mod publish;
mod random_access;
mod records;
mod redb_file;
mod regex;
mod region;
mod safety;
mod sequence;
mod snapshot;
pub mod source;
mod spec;
mod stab;
mod switch;
pub mod text;
mod user;
mod write_behind;

use std::borrow::Cow;
use std::ops::ControlFlow;

pub use alias::{AliasMap, AliasMapBuilder, build_alias_map};
pub use builder::{Batch, DuplicatePolicy, Inserted, MapBuilder};
pub use definition::{Definition, MapClass, OwnSwitch};
pub use direct::{DirectMap, open_direct};
pub use error::{MapError, Verdict, io_text};
pub use file_access::FileAccess;
pub use handle::{HandleOptions, MapEvent, MapHandle, MapReader, Refresh, lookup_once};
pub use kind::MapKind;
pub use load::{Access, LoadOptions, Stamp, load};
pub use open_map::{ClassMap, MapSet, NoOpener, OpenMap, Opener, SERVICE_SWITCH_FILE};
pub use publish::{PublishError, PublishOptions, Published, check_place, publish_text};
pub use safety::Safety;
pub use snapshot::{NulStyle, Snapshot, SnapshotBuilder};
pub use spec::{MapSpec, NulRule, SpecError, Switches, TextColumns};

/// The limits of this crate, each defined where it binds.
pub mod limits {
    pub use crate::alias::SOURCE_BYTES_MAX as ALIAS_SOURCE_BYTES_MAX;
    pub use crate::definition::SPEC_BYTES_MAX;
    pub use crate::lmdb_file::KEY_BYTES_MAX as LMDB_KEY_BYTES_MAX;
    pub use crate::load::{ATTEMPTS_MAX as READ_ATTEMPTS_MAX, FILE_BYTES_MAX};
    pub use crate::open_map::STACK_MAX;
    pub use crate::program::OUTPUT_BYTES_MAX as PROGRAM_OUTPUT_BYTES_MAX;
    pub use crate::records::{BODY_BYTES_MAX, ITEM_BYTES_MAX};
    pub use crate::snapshot::ENTRIES_MAX;
    pub use crate::source::LINE_BYTES_MAX;
}

/// Takes one pair of a map, and says whether to go on.
pub type PairVisitor<'f> = dyn FnMut(&[u8], &[u8]) -> ControlFlow<()> + 'f;

/// A named key-to-value relation, opened for reading.
pub trait Map: Send + Sync {
    /// The first value stored for exactly these key bytes; `Ok(None)`: the key is surely absent.
    ///
    /// # Errors
    /// Any [`MapError`]: the lookup did not work and says nothing about the key.
    fn lookup(&self, key: &[u8]) -> Result<Option<Cow<'_, [u8]>>, MapError>;

    /// Calls `f` with every stored pair, duplicates included, in the order of the file, until it breaks.
    ///
    /// # Errors
    /// Any [`MapError`]; pairs before the trouble have been passed on.
    fn each(&self, f: &mut PairVisitor<'_>) -> Result<(), MapError>;

    /// What to compare to notice that the map has been rebuilt.
    fn stamp(&self) -> Stamp;
}
