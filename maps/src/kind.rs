//! The kinds of map file: a fixed list, without registration. Each kind is one file or folder of this crate.
//!
//! A kind says what a file is called, how it is built, and how a file that carries no mark of its own (text) is
//! read. All others are told by their content, never by the class that named them: [`MapKind::of_content`]. Pure; never
//! blocks. Sources: makemap(8), and the formats as the modules that read them describe.

#![deny(clippy::indexing_slicing)]

use crate::{SpecError, bdb, cdb, fixed, lmdb_file as lmdb, redb_file};
use std::path::{Path, PathBuf};

/// The kinds of map that are built in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MapKind {
    /// Berkeley DB hash file, NAME.db.
    Hash,
    /// Berkeley DB btree file, NAME.db.
    Btree,
    /// Constant database, NAME.cdb.
    Cdb,
    /// LMDB file without a lock file, NAME.lmdb.
    Lmdb,
    /// redb file, NAME.redb.
    Redb,
    /// Our own constant file, NAME.fix.
    Fixed,
    /// Plain text, one pair a line or columns.
    Text,
}

/// Class names of Sendmail's that we know and do not build in, so that "not built in" can be told from a typing error.
const NOT_BUILT_IN: [&str; 30] = [
    "arith", "arpa", "bestmx", "bogus", "dbm", "dequote", "dns", "dprintf", "dummy", "hesiod",
    "host", "implicit", "ldap", "ldapx", "macro", "netinfo", "nis", "nisplus", "nsd", "null", "ph",
    "program", "regex", "sequence", "socket", "stab", "switch", "syslog", "user", "userdb",
];

impl MapKind {
    /// Every kind, in the order in which programs list them.
    pub const ALL: [Self; 7] = [
        Self::Hash,
        Self::Btree,
        Self::Cdb,
        Self::Lmdb,
        Self::Redb,
        Self::Fixed,
        Self::Text,
    ];

    /// Bytes from a file's start that [`MapKind::of_content`] looks at, at most.
    pub const HEAD_LEN: usize = cdb::HEADER_LEN;

    /// The name used in specifications and by `makemap`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hash => "hash",
            Self::Btree => "btree",
            Self::Cdb => "cdb",
            Self::Lmdb => "lmdb",
            Self::Redb => "redb",
            Self::Fixed => "fixed",
            Self::Text => "text",
        }
    }

    /// The kind of a class name as written in a specification.
    ///
    /// # Errors
    /// [`SpecError::NotBuiltIn`] for a class of Sendmail's that is not built in, [`SpecError::UnknownClass`] otherwise.
    pub fn from_name(name: &str) -> Result<Self, SpecError> {
        match Self::ALL.into_iter().find(|kind| kind.name() == name) {
            Some(kind) => Ok(kind),
            None if NOT_BUILT_IN.contains(&name) => {
                Err(SpecError::NotBuiltIn { class: name.into() })
            }
            None => Err(SpecError::UnknownClass { class: name.into() }),
        }
    }

    /// The kind of a file by its first bytes, [`MapKind::HEAD_LEN`] of them where there are so many, and its length.
    /// `None`: none of ours, or text, which has no mark.
    pub fn of_content(head: &[u8], len: u64) -> Option<Self> {
        if let Some(kind) = bdb::kind_of(head) {
            return Some(kind);
        }
        if lmdb::is_lmdb(head) {
            return Some(Self::Lmdb);
        }
        if redb_file::is_redb(head) {
            return Some(Self::Redb);
        }
        if fixed::is_fixed(head) {
            return Some(Self::Fixed);
        }
        cdb::is_cdb(head, len).then_some(Self::Cdb)
    }

    /// Whether `makemap` can write this kind.
    pub fn is_writable(self) -> bool {
        Self::writable().contains(&self)
    }

    /// The kinds `makemap` can write, in the order it lists them.
    pub fn writable() -> &'static [Self] {
        &[
            Self::Hash,
            Self::Btree,
            Self::Cdb,
            Self::Lmdb,
            Self::Redb,
            Self::Fixed,
        ]
    }

    /// Whether a file of this kind can hold several values for one key.
    pub fn keeps_duplicates(self) -> bool {
        matches!(self, Self::Hash | Self::Btree | Self::Cdb | Self::Text)
    }

    /// Whether programs that use a file of this kind lock it with fcntl, beside flock.
    pub(crate) fn has_record_lock(self) -> bool {
        matches!(self, Self::Lmdb | Self::Redb)
    }

    /// Why an entry cannot be stored in a file of this kind, if so.
    pub fn refusal_of(self, key: &[u8]) -> Option<String> {
        let max = lmdb::KEY_BYTES_MAX;
        (self == Self::Lmdb && !(1..=max).contains(&key.len()))
            .then(|| format!("a key of {} bytes: lmdb takes 1 to {max}", key.len()))
    }

    /// What the file's name ends with, added unless it is there already; empty for plain text.
    pub fn suffix(self) -> &'static str {
        match self {
            Self::Hash | Self::Btree => ".db",
            Self::Cdb => ".cdb",
            Self::Lmdb => ".lmdb",
            Self::Redb => ".redb",
            Self::Fixed => ".fix",
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
        let unbuilt = MapKind::from_name("nisplus").unwrap_err();
        assert!(matches!(unbuilt, SpecError::NotBuiltIn { .. }));
        let unknown = MapKind::from_name("hsah").unwrap_err();
        assert!(matches!(unknown, SpecError::UnknownClass { .. }));
        for kind in MapKind::ALL {
            assert_eq!(MapKind::from_name(kind.name()).unwrap(), kind);
        }
    }

    #[test]
    fn only_what_is_marked_is_recognised() {
        assert_eq!(MapKind::of_content(b"", 0), None);
        assert_eq!(MapKind::of_content(b"alice: bob\n", 11), None);
        assert_eq!(MapKind::of_content(&[0; 2048], 1 << 20), None);
    }
}
