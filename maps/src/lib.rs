//! Mail lookup tables: aliases, access, mailertable and their kin, read, served from memory, and built.
//!
//! Usable without the rest of Diligence. Files are those other mail programs use: Berkeley DB `hash` and `btree`
//! (read and written in safe code, no libdb), and plain text.
//!
//! * [`MapSpec`] parses Sendmail's syntax, `hash -o -T<TMPF> /etc/mail/access`.
//! * [`MapHandle`] is what a server holds: lookups in memory, rebuilt files noticed, damaged ones kept out.
//! * [`open_direct`] is for programs that look up once: no load, a few reads under the file's lock.
//! * [`MapBuilder`] builds a map and publishes it by rename; [`alias`] does so for alias files.
//!
//! Guarantees: a key that is absent is `Ok(None)`, a lookup that did not work is an error, and the two never look
//! alike; bytes from files give errors, never panics, loops or unbounded memory; a map that is published is whole and
//! on disk. Everything is synchronous; nothing starts a thread.
//!
//! Limits are gathered in [`limits`]. Sources: sendmail's op.me 5.12, makemap(8), the on-disk formats as
//! the modules that read them describe.

pub mod alias;
pub mod bdb;
pub mod builder;
mod error;
mod handle;
mod load;
mod patience;
mod publish;
mod records;
mod snapshot;
pub mod source;
mod spec;
pub mod text;

use std::borrow::Cow;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

pub use alias::{AliasMap, AliasMapBuilder, build_alias_map};
pub use bdb::{DirectMap, open_direct};
pub use builder::{DuplicatePolicy, Inserted, MapBuilder};
pub use error::{MapError, Verdict, io_text};
pub use handle::{HandleOptions, MapEvent, MapHandle, MapReader, Refresh, lookup_once};
pub use load::{LoadOptions, Stamp, load};
pub use publish::{PublishError, PublishOptions, Published, check_place};
pub use snapshot::{NulStyle, Snapshot, SnapshotBuilder};
pub use spec::{MapSpec, NulRule, SpecError, TextColumns};

/// The limits of this crate, each defined where it binds.
pub mod limits {
    pub use crate::alias::SOURCE_BYTES_MAX as ALIAS_SOURCE_BYTES_MAX;
    pub use crate::load::{ATTEMPTS_MAX as READ_ATTEMPTS_MAX, FILE_BYTES_MAX};
    pub use crate::records::{BODY_BYTES_MAX, ITEM_BYTES_MAX};
    pub use crate::snapshot::ENTRIES_MAX;
    pub use crate::source::LINE_BYTES_MAX;
    pub use crate::spec::SPEC_BYTES_MAX;
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

/// The kinds of map that are built in: a fixed list, no registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MapKind {
    /// Berkeley DB hash file, NAME.db.
    Hash,
    /// Berkeley DB btree file, NAME.db.
    Btree,
    /// Plain text, one pair a line or columns.
    Text,
}

/// Class names of Sendmail's that we know and do not build in, so that "not built in" can be told from a typing error.
const NOT_BUILT_IN: [&str; 34] = [
    "arith", "arpa", "bestmx", "bogus", "cdb", "dbm", "dequote", "dns", "dprintf", "dummy",
    "fixed", "hesiod", "host", "implicit", "ldap", "ldapx", "lmdb", "macro", "netinfo", "nis",
    "nisplus", "nsd", "null", "ph", "program", "redb", "regex", "sequence", "socket", "stab",
    "switch", "syslog", "user", "userdb",
];

impl MapKind {
    /// The name used in specifications and by `makemap`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hash => "hash",
            Self::Btree => "btree",
            Self::Text => "text",
        }
    }

    /// The kind of a class name as written in a specification.
    ///
    /// # Errors
    /// [`SpecError::NotBuiltIn`] for a class of Sendmail's that is not built in, [`SpecError::UnknownClass`] otherwise.
    pub fn from_name(name: &str) -> Result<Self, SpecError> {
        match name {
            "hash" => Ok(Self::Hash),
            "btree" => Ok(Self::Btree),
            "text" => Ok(Self::Text),
            _ if NOT_BUILT_IN.contains(&name) => Err(SpecError::NotBuiltIn { class: name.into() }),
            _ => Err(SpecError::UnknownClass { class: name.into() }),
        }
    }

    /// Whether `makemap` can write this kind.
    pub fn is_writable(self) -> bool {
        matches!(self, Self::Hash | Self::Btree)
    }

    /// The kinds `makemap` can write, in the order it lists them.
    pub fn writable() -> &'static [Self] {
        &[Self::Hash, Self::Btree]
    }

    /// What the file's name ends with, added unless it is there already; empty for plain text.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Hash | Self::Btree => ".db",
            Self::Text => "",
        }
    }

    /// The file of a map named as in a specification.
    pub fn file_of(self, name: &Path) -> PathBuf {
        let suffix = self.suffix();
        let text = name.as_os_str();
        if text.as_encoded_bytes().ends_with(suffix.as_bytes()) {
            return name.to_path_buf();
        }
        let mut text = text.to_os_string();
        text.push(suffix);
        PathBuf::from(text)
    }
}

impl std::fmt::Display for MapKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suffixes_are_added_once() {
        let file = |name: &str| MapKind::Hash.file_of(Path::new(name));
        assert_eq!(file("/etc/mail/access"), Path::new("/etc/mail/access.db"));
        assert_eq!(file("access.db"), Path::new("access.db"));
        let text = MapKind::Text.file_of(Path::new("/etc/mail/list"));
        assert_eq!(text, Path::new("/etc/mail/list"));
    }

    #[test]
    fn unknown_and_unbuilt_classes_are_told_apart() {
        let unbuilt = MapKind::from_name("ldap").unwrap_err();
        assert!(matches!(unbuilt, SpecError::NotBuiltIn { .. }));
        let unknown = MapKind::from_name("hsah").unwrap_err();
        assert!(matches!(unknown, SpecError::UnknownClass { .. }));
        for kind in MapKind::writable() {
            assert_eq!(MapKind::from_name(kind.name()).unwrap(), *kind);
        }
    }
}
