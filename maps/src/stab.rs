//! Class `stab`: an alias file read into memory as it is, without a database beside it.
//!
//! Names and values are those newaliases would put into a database; lines in error are passed over as there, the last of
//! two entries of a name counts. A file that has changed is read again at the next lookup; one that cannot be read keeps
//! the old contents and is reported once for each state; with none, lookups answer its trouble (I9).
//!
//! Blocks: one `stat` a lookup, and on the disk when the file has changed. Limits: those of alias files.
//! Source: sendmail's op.me 5.12, aliases(5).

#![deny(clippy::indexing_slicing)]

use crate::alias::SOURCE_BYTES_MAX;
use crate::load::{Access, Emptiness, read_locked};
use crate::open_map::ClassMap;
use crate::source::{SourceLine, read_aliases};
use crate::{HandleOptions, MapError, MapEvent, PairVisitor, Snapshot, SnapshotBuilder, Stamp};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// An alias file in memory.
pub(crate) struct StabMap {
    path: PathBuf,
    is_optional: bool,
    keeps_case: bool,
    options: HandleOptions,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    contents: Option<Arc<Snapshot>>,
    /// The trouble with the file, and the state of it that it was found in.
    trouble: Option<(Option<Stamp>, MapError)>,
}

impl StabMap {
    /// Nothing is read before the first lookup.
    pub(crate) fn new(
        path: &Path,
        is_optional: bool,
        keeps_case: bool,
        options: HandleOptions,
    ) -> Self {
        Self {
            path: path.to_path_buf(),
            is_optional,
            keeps_case,
            options,
            state: Mutex::default(),
        }
    }

    /// The contents to answer from: those of the file as it is now, or the last good ones.
    fn contents(&self) -> Result<Arc<Snapshot>, MapError> {
        let now = match Stamp::of_path(&self.path) {
            Ok(now) => Some(now),
            Err(error) => {
                let error = MapError::open(&self.path, &error);
                if !(error.is_missing() && self.is_optional) {
                    let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                    return self.keep_old(&mut state, None, error);
                }
                return Ok(Arc::new(Snapshot::empty(&self.path)));
            }
        };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(contents) = &state.contents
            && Some(contents.stamp_of_file()) == now
        {
            return Ok(Arc::clone(contents));
        }
        if let Some((stamp, error)) = &state.trouble
            && *stamp == now
        {
            let error = error.clone();
            return state.contents.clone().ok_or(error);
        }
        match self.load() {
            Ok(snapshot) => {
                let snapshot = Arc::new(snapshot);
                state.contents = Some(Arc::clone(&snapshot));
                state.trouble = None;
                Ok(snapshot)
            }
            Err(error) => self.keep_old(&mut state, now, error),
        }
    }

    fn keep_old(
        &self,
        state: &mut State,
        stamp: Option<Stamp>,
        error: MapError,
    ) -> Result<Arc<Snapshot>, MapError> {
        let is_new = state.trouble.as_ref().is_none_or(|(_, old)| *old != error);
        if is_new {
            (self.options.report)(&MapEvent::Trouble {
                error: error.clone(),
                old_in_use: state.contents.is_some(),
            });
        }
        // A lock ends without the file's state changing, so it is tried again each time.
        let is_lasting = !matches!(error, MapError::Locked { .. });
        state.trouble = Some((stamp.filter(|_| is_lasting), error.clone()));
        state.contents.clone().ok_or(error)
    }

    fn load(&self) -> Result<Snapshot, MapError> {
        let access = Access {
            files: self.options.files.clone(),
            ..Access::checked(self.options.lock_wait, self.options.safety)
        };
        let (text, stamp) = read_locked(&self.path, &access, Emptiness::Allowed)?;
        if text.len() as u64 > SOURCE_BYTES_MAX {
            return Err(MapError::unsupported(
                &self.path,
                "the alias file is larger than 1 GiB",
            ));
        }
        let mut last: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
        // Names with a domain are left out, as newaliases leaves out those of strangers.
        read_aliases::<MapError>(&text, &|_| false, &mut |_, line| {
            if let SourceLine::Entry { key, value, .. } = line {
                let name = if self.keeps_case {
                    key.to_vec()
                } else {
                    key.to_ascii_lowercase()
                };
                last.insert(name, value.to_vec());
            }
            Ok(())
        })?;
        let mut builder = SnapshotBuilder::new(&self.path, last.len(), text.len());
        for (name, value) in &last {
            builder.add(name, value)?;
        }
        Ok(builder.finish(stamp))
    }
}

impl ClassMap for StabMap {
    fn find(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        Ok(self.contents()?.get(key).map(<[u8]>::to_vec))
    }

    fn each(&self, f: &mut PairVisitor<'_>) -> Result<(), MapError> {
        use crate::Map;
        self.contents()?.each(f)
    }
}

impl Snapshot {
    /// The state of the file that the contents are those of.
    fn stamp_of_file(&self) -> Stamp {
        crate::Map::stamp(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Safety;

    #[test]
    fn an_alias_file_is_read_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("aliases");
        let options = HandleOptions::default();
        let map = StabMap::new(&path, false, false, options.clone());
        let optional = StabMap::new(&path, true, false, options);
        assert!(map.find(b"root").unwrap_err().is_missing());
        assert_eq!(optional.find(b"root").unwrap(), None);
        std::fs::write(&path, "Root: alice,\n bob\nbad line\nroot2: x\nroot2: y\n").unwrap();
        assert_eq!(map.find(b"root").unwrap().unwrap(), b"alice, bob");
        assert_eq!(map.find(b"root2").unwrap().unwrap(), b"y");
        assert_eq!(optional.find(b"bad").unwrap(), None);
        std::fs::write(&path, "root: carol\n").unwrap();
        assert_eq!(map.find(b"root").unwrap().unwrap(), b"carol");
        // A list that its group may write is refused where the map's owner asks for it, and never taken for empty.
        let checked = HandleOptions {
            safety: Safety::default(),
            ..HandleOptions::default()
        };
        let strict = StabMap::new(&path, true, false, checked);
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o664);
        std::fs::set_permissions(&path, mode).unwrap();
        let error = strict.find(b"nobody").unwrap_err();
        assert_eq!(error.detail(), "Group writable file");
        // Gone again: what was known stays, unless the map is optional.
        std::fs::remove_file(&path).unwrap();
        assert_eq!(map.find(b"root").unwrap().unwrap(), b"carol");
        assert_eq!(optional.find(b"root").unwrap(), None);
    }
}
