//! The files that the configuration has the daemon read, and that the privileged part opens for it where it may not (L5).
//!
//! They are gathered once, while nobody but root has had a say: maps, also those built from a list (`.db`), and the files of
//! classes. Each is opened for reading only, if it is a regular file of one name to which no symbolic link leads: a daemon
//! that was taken over, and owns a folder, can put nothing of somebody else's in a file's place. Blocks: disk.
//! Source: openat2(2).

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use diligence_maps::{Definition, MapClass, MapKind, SpecError};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};

use crate::config::RouteOptions;

/// Paths of files.
pub(super) struct NamedFiles(BTreeSet<PathBuf>);

impl NamedFiles {
    /// Those of a configuration. A specification that can't be used names none; the daemon says what is wrong with it.
    pub(super) fn of(route: &RouteOptions) -> Self {
        let mut files = Self(BTreeSet::new());
        for text in &route.alias_files {
            files.add_map(Definition::parse_alias(text));
        }
        let masquerade = &route.masquerade;
        let single = [
            &route.access_db,
            &route.virtusertable,
            &route.mailertable,
            &route.domaintable,
            &masquerade.genericstable,
        ];
        for text in single.into_iter().flatten().chain(route.maps.values()) {
            files.add_map(Definition::parse(text));
        }
        let classes = [
            &masquerade.domains,
            &masquerade.exceptions,
            &masquerade.exposed_users,
            &masquerade.generics_domains,
        ];
        let of_classes = classes.into_iter().filter_map(|class| class.file.as_ref());
        let more = [&route.local_host_names, &route.relay_domains];
        for path in of_classes.chain(more).chain(&route.virtuser_domain_file) {
            files.0.insert(path.clone());
        }
        files
    }

    fn add_map(&mut self, definition: Result<Definition, SpecError>) {
        let Ok(definition) = definition else {
            return;
        };
        let name = PathBuf::from(&definition.rest);
        let file = match definition.class {
            MapClass::File(kind) => kind.file_of(&name),
            MapClass::Implicit => MapKind::Hash.file_of(&name),
            _ => name.clone(),
        };
        self.0.extend([name, file]);
    }

    /// Opens one of them for reading.
    ///
    /// # Errors
    /// `PermissionDenied` if it is none of them, or no plain file; the system's.
    pub(super) fn open(&self, path: &Path) -> io::Result<File> {
        let denied = || io::Error::from_raw_os_error(nix::libc::EACCES);
        if !path.is_absolute() || !self.0.contains(path) {
            return Err(denied());
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let opened = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
        let file = File::from(opened);
        let seen = file.metadata()?;
        match seen.is_file() && seen.nlink() == 1 {
            true => Ok(file),
            false => Err(denied()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, Role};
    use std::os::unix::fs::symlink;

    #[test]
    fn only_plain_files_that_are_named_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        let at = |name: &str| folder.join(name);
        for name in ["access.db", "aliases", "w", "secret"] {
            std::fs::write(at(name), name).unwrap();
        }
        let mut route = Config::defaults(Role::Mta, None).route;
        route.access_db = Some(format!("hash -T<TMPF> {}", at("access").display()));
        route.alias_files = vec![format!("text:{}", at("aliases").display())];
        route.local_host_names = at("w");
        route.relay_domains = at("linked");
        route.virtuser_domain_file = Some(at("hard"));
        let files = NamedFiles::of(&route);
        for name in ["access.db", "aliases", "w"] {
            let text = io::read_to_string(files.open(&at(name)).unwrap()).unwrap();
            assert_eq!(text, name);
        }
        symlink(at("secret"), at("linked")).unwrap();
        std::fs::hard_link(at("secret"), at("hard")).unwrap();
        std::fs::remove_file(at("w")).unwrap();
        std::fs::create_dir(at("w")).unwrap();
        for name in ["secret", "linked", "hard", "w", "../secret"] {
            assert!(files.open(&at(name)).is_err(), "{name}");
        }
        // Nor where a folder on the way is a link.
        let elsewhere = tempfile::tempdir().unwrap();
        let way = elsewhere.path().canonicalize().unwrap().join("way");
        symlink(&folder, &way).unwrap();
        route.local_host_names = way.join("aliases");
        let files = NamedFiles::of(&route);
        assert!(files.open(&way.join("aliases")).is_err());
    }
}
