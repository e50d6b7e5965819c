//! Class `implicit`: the database beside an alias file where there is one, else the alias file itself.
//!
//! The database is NAME.db, hash or btree; only where it does not exist is NAME read, as class `stab` reads it. One that
//! is damaged or cannot be read is trouble, and the text is not taken in its place (I9). Blocks: one `stat` more than the
//! class that answers. Source: sendmail's op.me 5.12.

use crate::open_map::ClassMap;
use crate::stab::StabMap;
use crate::{Definition, HandleOptions, MapError, MapHandle, MapKind, MapSpec, PairVisitor, Stamp};
use std::path::Path;

/// A database, or the text beside it.
pub(crate) struct ImplicitMap {
    built: MapHandle,
    text: StabMap,
}

impl ImplicitMap {
    pub(crate) fn new(definition: &Definition, options: HandleOptions) -> Self {
        let mut spec = MapSpec::new(MapKind::Hash, &definition.rest);
        spec.switches.nul = definition.switches.nul;
        // Keys come folded, as the switches say, from above.
        spec.switches.keeps_case = true;
        // The text beside it is what there is while it is not there.
        spec.switches.is_optional = true;
        Self {
            built: MapHandle::attach(&spec, options.clone()),
            text: StabMap::new(
                Path::new(&definition.rest),
                definition.switches.is_optional,
                definition.switches.keeps_case,
                options,
            ),
        }
    }

    fn is_built(&self) -> bool {
        match Stamp::of_path(self.built.file()) {
            Ok(_) => true,
            Err(error) => !MapError::open(self.built.file(), &error).is_missing(),
        }
    }
}

impl ClassMap for ImplicitMap {
    fn find(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        if self.is_built() {
            self.built.lookup(key)
        } else {
            self.text.find(key)
        }
    }

    fn each(&self, f: &mut PairVisitor<'_>) -> Result<(), MapError> {
        if self.is_built() {
            self.built.reader().each(f)
        } else {
            self.text.each(f)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PublishOptions, build_alias_map};

    #[test]
    fn the_database_counts_where_there_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("aliases");
        let text = format!("implicit {}", path.display());
        let definition = Definition::parse(&text).unwrap();
        let map = ImplicitMap::new(&definition, HandleOptions::default());
        assert!(map.find(b"root").is_err());
        std::fs::write(&path, "root: alice\n").unwrap();
        assert_eq!(map.find(b"root").unwrap().unwrap(), b"alice");
        let spec = MapSpec::new(MapKind::Hash, &path);
        let options = PublishOptions::default();
        build_alias_map(&[&path], &spec, &options, &|_| false, &mut |_| {}).unwrap();
        std::fs::write(&path, "root: bob\n").unwrap();
        assert_eq!(map.find(b"root").unwrap().unwrap(), b"alice");
        // A damaged database is no reason to answer from the text.
        let damaged = Definition::parse(&format!("implicit {}2", path.display())).unwrap();
        std::fs::write(dir.path().join("aliases2"), "root: bob\n").unwrap();
        std::fs::write(dir.path().join("aliases2.db"), "rubbish").unwrap();
        let map = ImplicitMap::new(&damaged, HandleOptions::default());
        assert!(map.find(b"root").is_err());
    }
}
