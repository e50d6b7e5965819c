//! Alias maps: built from an alias file, looked up by local part.
//!
//! As newaliases writes them: keys in lower case, a trailing NUL in key and value, and last a pair `@` -> `@`, the
//! proof of a finished build that Sendmail waits for. That pair, and the `YP_LAST_MODIFIED` and `YP_MASTER_NAME` pairs
//! postalias adds, are never answered. Building blocks on disk; see [`MapBuilder::publish`] for what is durable when.
//!
//! Limits: [`SOURCE_BYTES_MAX`]. Source: aliases(5).

use crate::load::{Access, Emptiness, read_locked};
use crate::source::{IsLocalDomain, SourceLine, read_aliases};
use crate::{
    DuplicatePolicy, HandleOptions, Inserted, Map, MapBuilder, MapError, MapHandle, MapKind,
    MapSpec, PairVisitor, PublishError, PublishOptions, Published, Refresh, lookup_once,
    open_direct,
};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Largest alias file, in bytes.
pub const SOURCE_BYTES_MAX: u64 = 1 << 30;

const MARKER: &[u8] = b"@";
/// How long a source file that an editor holds locked is waited for.
const SOURCE_WAIT: Duration = Duration::from_secs(10);

/// How grave a remark on an alias file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The line counts all the same (a name given twice).
    Warning,
    /// The line is left out of the map.
    Error,
}

/// A remark on one line of an alias file. Prints as Sendmail prints it: `FILE: line N: TEXT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AliasRemark {
    /// The source file.
    pub path: PathBuf,
    /// The line the entry begins on, from 1.
    pub line: u64,
    /// How grave it is.
    pub severity: Severity,
    /// What is wrong, in Sendmail's words.
    pub text: String,
}

impl std::fmt::Display for AliasRemark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}: line {}: {}",
            self.path.display(),
            self.line,
            self.text
        )
    }
}

/// The totals newaliases prints: `FILE: 7 aliases, longest 30 bytes, 158 bytes total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AliasTotals {
    /// Entries read, those that replaced an earlier one included.
    pub aliases: u64,
    /// Length of the longest value, in bytes.
    pub longest_bytes: u64,
    /// Length of all names and values, in bytes.
    pub total_bytes: u64,
    /// Lines that were left out.
    pub errors: u64,
    /// Lines that were remarked on and count.
    pub warnings: u64,
}

impl std::fmt::Display for AliasTotals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} aliases, longest {} bytes, {} bytes total",
            self.aliases, self.longest_bytes, self.total_bytes
        )
    }
}

/// Collects the aliases of one map, from one source or several.
pub struct AliasMapBuilder {
    builder: MapBuilder,
    totals: AliasTotals,
}

impl AliasMapBuilder {
    /// Starts an alias map. `merges`: the values of a name given twice are joined (`-A`), else the last one counts
    /// and the others are remarked on.
    ///
    /// # Errors
    /// [`MapError::Unsupported`] for a kind that is not written here.
    pub fn new(kind: MapKind, merges: bool) -> Result<Self, MapError> {
        let policy = if merges {
            DuplicatePolicy::JoinWithComma
        } else {
            DuplicatePolicy::ReplaceWithLast
        };
        Ok(Self {
            builder: MapBuilder::new(kind, policy)?,
            totals: AliasTotals::default(),
        })
    }

    /// Reads a source's text. `path` is used in remarks only.
    ///
    /// # Errors
    /// [`MapError::Unsupported`] if the map becomes too large. Bad lines are remarks.
    pub fn read(
        &mut self,
        path: &Path,
        text: &[u8],
        is_local_domain: &IsLocalDomain<'_>,
        remark: &mut dyn FnMut(&AliasRemark),
    ) -> Result<(), MapError> {
        let mut key_buffer = Vec::new();
        let mut value_buffer = Vec::new();
        let joins = self.builder.policy() == DuplicatePolicy::JoinWithComma;
        read_aliases(text, is_local_domain, &mut |line, content| {
            let mut say = |severity, text| {
                remark(&AliasRemark {
                    path: path.to_path_buf(),
                    line,
                    severity,
                    text,
                });
            };
            match content {
                SourceLine::Fault(fault) => {
                    self.totals.errors += 1;
                    say(Severity::Error, fault.to_string());
                }
                SourceLine::Entry {
                    key,
                    written,
                    value,
                } => {
                    terminate(&mut key_buffer, key);
                    terminate(&mut value_buffer, value);
                    self.totals.aliases += 1;
                    self.totals.longest_bytes = self.totals.longest_bytes.max(value.len() as u64);
                    self.totals.total_bytes += (key.len() + value.len()) as u64;
                    let inserted = if joins {
                        // Joined values carry one NUL, at the very end, which is added when the map is published.
                        self.builder.insert(&key_buffer, value)?
                    } else {
                        self.builder.insert(&key_buffer, &value_buffer)?
                    };
                    if inserted == Inserted::Replaced && !joins {
                        self.totals.warnings += 1;
                        let (written, key) = (
                            String::from_utf8_lossy(written),
                            String::from_utf8_lossy(key),
                        );
                        say(
                            Severity::Warning,
                            format!("{written}... Warning: duplicate alias name {key}"),
                        );
                    }
                }
            }
            Ok(())
        })
    }

    /// Takes over the aliases of an existing map, to which what is read is added.
    ///
    /// # Errors
    /// What reading the map gives.
    pub fn keep(&mut self, map: &dyn Map) -> Result<(), MapError> {
        let joins = self.builder.policy() == DuplicatePolicy::JoinWithComma;
        let mut trouble = None;
        let (mut name_buffer, mut value_buffer) = (Vec::new(), Vec::new());
        map.each(&mut |name, value| {
            let (name, value) = (
                crate::answer::strip_nul(name),
                crate::answer::strip_nul(value),
            );
            if is_hidden(name) {
                return ControlFlow::Continue(());
            }
            terminate(&mut name_buffer, name);
            terminate(&mut value_buffer, value);
            let kept = if joins {
                value
            } else {
                value_buffer.as_slice()
            };
            match self.builder.insert(&name_buffer, kept) {
                Ok(_) => ControlFlow::Continue(()),
                Err(error) => {
                    trouble = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        trouble.map_or(Ok(()), Err)
    }

    /// What has been read so far.
    pub fn totals(&self) -> AliasTotals {
        self.totals
    }

    /// Adds the marker and puts the map in place.
    ///
    /// # Errors
    /// [`PublishError`]; the old map then stays.
    ///
    /// # Durability
    /// When this returns, the map and its name are on disk.
    pub fn publish(
        mut self,
        dest: &Path,
        options: &PublishOptions,
    ) -> Result<Published, PublishError> {
        if self.builder.policy() == DuplicatePolicy::JoinWithComma {
            self.builder.terminate_values()?;
        }
        self.builder.insert(b"@\0", b"@\0")?;
        self.builder.publish(dest, options)
    }
}

fn terminate(buffer: &mut Vec<u8>, bytes: &[u8]) {
    buffer.clear();
    buffer.extend_from_slice(bytes);
    buffer.push(0);
}

/// Builds the alias map `dest` (a name as in a specification; the suffix is added) from alias files, whole and on
/// disk, or leaves the old one. Remarks on lines go to `remark` as they are found; lines in error are left out and the
/// rest is published, as newaliases does; [`AliasTotals::errors`] tells the caller's exit status. `is_local_domain`
/// decides about names such as `root@here`.
///
/// # Errors
/// [`PublishError::Map`] with the open error if a source cannot be read: nothing is published then.
///
/// # Durability
/// When this returns, the map and its name are on disk.
pub fn build_alias_map(
    sources: &[&Path],
    spec: &MapSpec,
    options: &PublishOptions,
    is_local_domain: &IsLocalDomain<'_>,
    remark: &mut dyn FnMut(&AliasRemark),
) -> Result<AliasTotals, PublishError> {
    let mut builder = AliasMapBuilder::new(spec.kind, spec.switches.merges_duplicates)?;
    for source in sources {
        let meta = std::fs::metadata(source).map_err(|error| MapError::open(source, &error))?;
        if meta.len() > SOURCE_BYTES_MAX {
            return Err(
                MapError::unsupported(source, "the alias file is larger than 1 GiB").into(),
            );
        }
        let (text, _) = read_locked(source, &SOURCE_WAIT.into(), Emptiness::Allowed)?;
        builder.read(source, &text, is_local_domain, remark)?;
    }
    let totals = builder.totals();
    builder.publish(&spec.file(), options)?;
    Ok(totals)
}

/// An alias map in use: a [`MapHandle`] that hides the pairs that are no aliases.
#[derive(Debug)]
pub struct AliasMap {
    handle: MapHandle,
}

impl AliasMap {
    /// Opens an alias map; see [`MapHandle::open`].
    ///
    /// # Errors
    /// As [`MapHandle::open`].
    pub fn open(spec: &MapSpec, options: HandleOptions) -> Result<Self, MapError> {
        MapHandle::open(spec, options).map(|handle| Self { handle })
    }

    /// Opens an alias map that may come into use later; see [`MapHandle::attach`].
    pub fn attach(spec: &MapSpec, options: HandleOptions) -> Self {
        Self {
            handle: MapHandle::attach(spec, options),
        }
    }

    /// The value of an alias, NUL removed; [`crate::source::alias_values`] takes it apart.
    ///
    /// # Errors
    /// As [`MapHandle::lookup`].
    pub fn lookup(&self, name: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        if is_hidden(name) {
            return Ok(None);
        }
        self.handle.lookup(name)
    }

    /// Looks at the file and loads it if it has changed; see [`MapHandle::refresh`].
    ///
    /// # Errors
    /// As [`MapHandle::refresh`].
    pub fn refresh(&self) -> Result<Refresh, MapError> {
        self.handle.refresh()
    }

    /// Calls `f` with every alias, until it breaks.
    ///
    /// # Errors
    /// [`MapError`] if nothing usable is loaded.
    pub fn each(&self, f: &mut PairVisitor<'_>) -> Result<(), MapError> {
        self.handle.reader().each(&mut |name, value| {
            if is_hidden(name) {
                ControlFlow::Continue(())
            } else {
                f(name, value)
            }
        })
    }

    /// Whether the map holds the marker of a finished build. A map without it was written by makemap without
    /// recognising aliases, or is being built by a stock tool.
    ///
    /// # Errors
    /// As [`MapHandle::lookup`].
    pub fn is_complete(&self) -> Result<bool, MapError> {
        Ok(self.handle.lookup(MARKER)?.is_some())
    }

    /// The handle below, which hides nothing.
    pub fn handle(&self) -> &MapHandle {
        &self.handle
    }
}

/// Calls `f` with every alias of a Berkeley DB file, NULs removed, without loading it into a snapshot.
///
/// # Errors
/// [`MapError`] as [`open_direct`] and [`Map::each`].
pub fn each_alias(
    file: &Path,
    access: impl Into<Access>,
    f: &mut PairVisitor<'_>,
) -> Result<(), MapError> {
    let map = open_direct(file, access)?;
    map.each(&mut |name, value| {
        let name = crate::answer::strip_nul(name);
        if is_hidden(name) {
            ControlFlow::Continue(())
        } else {
            f(name, crate::answer::strip_nul(value))
        }
    })
}

/// The value of an alias, looked up without loading the map; the pairs that are no aliases are not found.
///
/// # Errors
/// As [`lookup_once`].
pub fn lookup_alias_once(
    spec: &MapSpec,
    name: &[u8],
    access: impl Into<Access>,
) -> Result<Option<Vec<u8>>, MapError> {
    if is_hidden(name) {
        return Ok(None);
    }
    lookup_once(spec, name, access)
}

/// Whether a key is no alias but the mark of a writer.
fn is_hidden(name: &[u8]) -> bool {
    name == MARKER || name == b"YP_LAST_MODIFIED" || name == b"YP_MASTER_NAME"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(dir: &Path, text: &str, spec: &str) -> (AliasTotals, Vec<String>, AliasMap) {
        let source = dir.join("aliases");
        std::fs::write(&source, text).unwrap();
        let spec = MapSpec::parse_alias(&format!("{spec}{}", source.display())).unwrap();
        let mut remarks = Vec::new();
        let totals = build_alias_map(
            &[&source],
            &spec,
            &PublishOptions::default(),
            &|_| false,
            &mut |remark| remarks.push(format!("line {}: {}", remark.line, remark.text)),
        )
        .unwrap();
        let map = AliasMap::open(&spec, HandleOptions::default()).unwrap();
        (totals, remarks, map)
    }

    #[test]
    fn totals_are_those_sendmail_prints() {
        let dir = tempfile::tempdir().unwrap();
        let text = "# comment\nMAILER-DAEMON: postmaster\npostmaster: root\nSupport:\talice\ninfo:\talice, bob,\n\tcarol\n\
                    list: :include:/etc/mail/lists/list1\nabuse: root,/var/log/abuse\nprog: \"|/usr/bin/vacation alice\"\n";
        let (totals, remarks, map) = build(dir.path(), text, "");
        assert_eq!(
            totals.to_string(),
            "7 aliases, longest 30 bytes, 158 bytes total"
        );
        assert_eq!(remarks, Vec::<String>::new());
        assert_eq!(map.lookup(b"Info").unwrap().unwrap(), b"alice, bob,\tcarol");
        assert!(map.is_complete().unwrap());
        assert_eq!(map.lookup(b"@").unwrap(), None);
        let mut names = 0;
        map.each(&mut |_, _| {
            names += 1;
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(names, 7);
    }

    #[test]
    fn duplicates_are_remarked_on_and_the_last_one_counts() {
        let dir = tempfile::tempdir().unwrap();
        let text = "root: alice\ndup: alice\ndup: bob\nDUP: carol\n";
        let (totals, remarks, map) = build(dir.path(), text, "");
        assert_eq!(
            totals.to_string(),
            "4 aliases, longest 5 bytes, 31 bytes total"
        );
        assert_eq!((totals.errors, totals.warnings), (0, 2));
        assert_eq!(
            remarks,
            [
                "line 3: dup... Warning: duplicate alias name dup",
                "line 4: DUP... Warning: duplicate alias name dup"
            ]
        );
        assert_eq!(map.lookup(b"dup").unwrap().unwrap(), b"carol");
    }

    #[test]
    fn values_are_joined_where_the_map_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let (totals, remarks, map) = build(dir.path(), "dup: alice\ndup: bob\nx: y\n", "btree:-A ");
        assert_eq!((totals.warnings, remarks.len()), (0, 0));
        assert_eq!(map.lookup(b"dup").unwrap().unwrap(), b"alice,bob");
        assert_eq!(map.lookup(b"x").unwrap().unwrap(), b"y");
        assert!(map.is_complete().unwrap());
    }

    #[test]
    fn bad_lines_are_left_out_and_the_rest_is_built() {
        let dir = tempfile::tempdir().unwrap();
        let (totals, _, map) = build(
            dir.path(),
            "good: alice\nbadline alice\nother: bob\n@: x\n",
            "",
        );
        assert_eq!(
            totals.to_string(),
            "2 aliases, longest 5 bytes, 17 bytes total"
        );
        assert_eq!(totals.errors, 2);
        assert_eq!(map.lookup(b"other").unwrap().unwrap(), b"bob");
    }

    #[test]
    fn a_source_that_cannot_be_read_publishes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let spec = MapSpec::new(MapKind::Hash, dir.path().join("aliases"));
        let source = dir.path().join("aliases");
        let failed = build_alias_map(
            &[&source],
            &spec,
            &PublishOptions::default(),
            &|_| false,
            &mut |_| {},
        );
        assert!(matches!(
            failed,
            Err(PublishError::Map(MapError::Open { .. }))
        ));
        assert!(!dir.path().join("aliases.db").exists());
    }
}
