//! A lookup table as routing asks it: bytes in, text out, and trouble told apart from absence.
//!
//! Tables are maps of the `maps` crate in service, and fixed pairs in tests and for built-in defaults. Keys are
//! folded by the table. Blocks: as the map behind it.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use diligence_maps::{HandleOptions, MapEvent, MapSet, OpenMap, Opener, Safety};

use super::{Notice, RouteError};

type Lookup = dyn Fn(&str) -> Result<Option<Vec<u8>>, String> + Send + Sync;

/// A named table of texts.
#[derive(Clone)]
pub struct Table {
    name: String,
    lookup: Arc<Lookup>,
    waits: bool,
}

impl Table {
    /// A table that asks `lookup`, whose error is a text for the log. `name` is what the log calls it.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        lookup: impl Fn(&str) -> Result<Option<Vec<u8>>, String> + Send + Sync + 'static,
    ) -> Self {
        Self {
            name: name.into(),
            lookup: Arc::new(lookup),
            waits: false,
        }
    }

    /// The same table, known to wait for other hosts or programs.
    #[must_use]
    pub fn that_waits(mut self) -> Self {
        self.waits = true;
        self
    }

    /// Whether a lookup may wait for another host or program.
    #[must_use]
    pub const fn waits(&self) -> bool {
        self.waits
    }

    /// A map in service. One that can't be opened yet answers every lookup with trouble, until its file is good.
    /// Its tag for trouble (`-T`) is not used: trouble is told from answers without it.
    #[must_use]
    pub fn of_map(map: Arc<OpenMap>) -> Self {
        Self::new(map.label().display().to_string(), move |key| {
            map.ask(key.as_bytes())
                .map_err(|error| error.detail().to_owned())
        })
    }

    /// A table of fixed pairs; keys compare without case.
    #[must_use]
    pub fn fixed(name: &str, pairs: &[(&str, &str)]) -> Self {
        let pairs: HashMap<String, Vec<u8>> = pairs
            .iter()
            .map(|(key, value)| (key.to_ascii_lowercase(), value.as_bytes().to_vec()))
            .collect();
        Self::new(name, move |key| {
            Ok(pairs.get(&key.to_ascii_lowercase()).cloned())
        })
    }

    /// The value of a key; `None`: the key is surely absent.
    ///
    /// # Errors
    /// [`RouteError::Lookup`], always temporary (I9).
    pub fn get(&self, key: &str) -> Result<Option<String>, RouteError> {
        match (self.lookup)(key) {
            Ok(value) => Ok(value.map(|bytes| match String::from_utf8(bytes) {
                Ok(text) => text,
                Err(error) => String::from_utf8_lossy(error.as_bytes()).into_owned(),
            })),
            Err(detail) => Err(RouteError::Lookup {
                table: self.name.clone(),
                detail,
            }),
        }
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// An empty set of maps, whose trouble the log is told.
pub(super) fn map_set(opener: Arc<dyn Opener>, notice: &Notice, safety: Safety) -> MapSet {
    let notice = Arc::clone(notice);
    let report = move |event: &MapEvent| {
        // A reload is what the operator asked for; trouble is what they do not know yet.
        if let MapEvent::Trouble { error, old_in_use } = event {
            let rest = if *old_in_use {
                "; the old contents stay in use"
            } else {
                ""
            };
            notice(&format!("{error}{rest}"));
        }
    };
    let options = HandleOptions {
        report: Arc::new(report),
        safety,
        ..HandleOptions::default()
    };
    MapSet::new(opener, options)
}

/// Asks tables in order; the first hit wins. If one did not work and no later one hits, that is an error, not absence.
///
/// # Errors
/// The first [`RouteError`] met, if nothing was found.
pub(crate) fn first_of(tables: &[Table], key: &str) -> Result<Option<String>, RouteError> {
    let mut trouble = None;
    for table in tables {
        match table.get(key) {
            Ok(Some(value)) => return Ok(Some(value)),
            Ok(None) => {}
            Err(error) => trouble = trouble.or(Some(error)),
        }
    }
    trouble.map_or(Ok(None), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use diligence_maps::{Definition, NoOpener};

    #[test]
    fn a_missing_map_is_trouble_until_it_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access");
        let notice: Notice = Arc::new(|_: &str| ());
        let set = map_set(Arc::new(NoOpener), &notice, Safety::UNCHECKED);
        let open = |text: &str| {
            let map = set.open(&Definition::parse(text).unwrap()).unwrap();
            Table::of_map(map)
        };
        let table = open(&format!("text -T<TMPF> {}", path.display()));
        assert!(matches!(table.get("a"), Err(RouteError::Lookup { .. })));
        std::fs::write(&path, "a.test OK\n").unwrap();
        assert_eq!(table.get("A.test").unwrap().as_deref(), Some("OK"));
        assert_eq!(table.get("b.test").unwrap(), None);

        let optional = open(&format!("text -o {}/none", folder.path().display()));
        assert_eq!(optional.get("a").unwrap(), None);
    }

    #[test]
    fn a_map_that_others_may_write_is_trouble_and_not_absence() {
        use std::fs::Permissions;
        use std::os::unix::fs::PermissionsExt;
        let chmod = |path: &std::path::Path, mode| {
            std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access");
        std::fs::write(&path, "a.test OK\n").unwrap();
        let open = |names: &[&str]| {
            let mut set = crate::config::DontBlame::default();
            // The test's own directory lies in one that is sticky and world-writable.
            for name in ["TrustStickyBit"].iter().chain(names) {
                set.add(name).unwrap();
            }
            let notice: Notice = Arc::new(|_: &str| ());
            let maps = map_set(Arc::new(NoOpener), &notice, set.map_safety());
            let text = format!("text -o -T<TMPF> {}", path.display());
            Table::of_map(maps.open(&Definition::parse(&text).unwrap()).unwrap())
        };
        for (what, unsafe_mode, safe_mode, lifted) in [
            (path.as_path(), 0o664, 0o644, "GroupWritableAliasFile"),
            (path.as_path(), 0o646, 0o644, "WorldWritableAliasFile"),
            (folder.path(), 0o775, 0o755, "GroupWritableDirPathSafe"),
            (folder.path(), 0o757, 0o755, "MapInUnsafeDirPath"),
        ] {
            chmod(folder.path(), 0o755);
            chmod(&path, 0o644);
            chmod(what, unsafe_mode);
            let table = open(&[]);
            assert!(
                matches!(table.get("a.test"), Err(RouteError::Lookup { .. })),
                "{lifted}"
            );
            assert_eq!(
                open(&[lifted]).get("a.test").unwrap().as_deref(),
                Some("OK"),
                "{lifted}"
            );
            // Once it is safe it is used, without a restart.
            chmod(what, safe_mode);
            assert_eq!(
                table.get("a.test").unwrap().as_deref(),
                Some("OK"),
                "{lifted}"
            );
        }
    }

    #[test]
    fn a_later_hit_counts_and_trouble_is_never_absence() {
        let broken = Table::new("broken", |_| Err("damaged".into()));
        let good = Table::fixed("good", &[("Alice", "bob")]);
        let tables = [broken, good];
        assert_eq!(first_of(&tables, "aLICE").unwrap().as_deref(), Some("bob"));
        let error = first_of(&tables, "carol").unwrap_err();
        assert_eq!(error.to_string(), "broken: damaged");
        assert_eq!(first_of(tables.get(1..).unwrap(), "carol").unwrap(), None);
    }
}
