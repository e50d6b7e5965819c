//! Who else could change a map: Sendmail's checks of files and directories, and its exceptions by their names.
//!
//! A map decides where mail goes and who may relay, so whoever can write it, or put another in its place, decides that.
//! Refused are files that their group or everybody may write, and files in a directory, at any height above them, that
//! its group or everybody may write. Names of DontBlameSendmail lift single refusals. Blocks: on a `stat` of
//! each directory up to the root. Source: sendmail's op.me 5.12 (DontBlameSendmail), the README of its cf directory.

#![deny(clippy::indexing_slicing)]

use crate::MapError;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const GROUP_WRITE: u32 = 0o020;
const WORLD_WRITE: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// What is refused; everything, by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Safety {
    /// `GroupWritableDirPathSafe`: a directory its group may write is safe.
    pub group_writable_dir_path_safe: bool,
    /// `TrustStickyBit`: a directory everybody may write is safe if its sticky bit is set.
    pub trust_sticky_bit: bool,
    /// `MapInUnsafeDirPath`: directories are not looked at.
    pub map_in_unsafe_dir_path: bool,
    /// `GroupWritableAliasFile`: a map file its group may write is used.
    pub group_writable_alias_file: bool,
    /// `WorldWritableAliasFile`: a map file everybody may write is used.
    pub world_writable_alias_file: bool,
    /// `LinkedMapInWritableDir`: a symbolic link to a map may lie in a directory others may write.
    pub linked_map_in_writable_dir: bool,
}

impl Safety {
    /// Nothing is refused: for programs whose user chose the file, and for sandboxes.
    pub const UNCHECKED: Self = Self {
        group_writable_dir_path_safe: true,
        trust_sticky_bit: true,
        map_in_unsafe_dir_path: true,
        group_writable_alias_file: true,
        world_writable_alias_file: true,
        linked_map_in_writable_dir: true,
    };

    /// Lifts the refusal that a name of DontBlameSendmail stands for, in any case; `false`: the name is not about
    /// reading maps.
    #[must_use]
    pub fn lift(&mut self, name: &str) -> bool {
        let field = match name.to_ascii_lowercase().as_str() {
            "groupwritabledirpathsafe" => &mut self.group_writable_dir_path_safe,
            "truststickybit" => &mut self.trust_sticky_bit,
            "mapinunsafedirpath" => &mut self.map_in_unsafe_dir_path,
            "groupwritablealiasfile" => &mut self.group_writable_alias_file,
            "worldwritablealiasfile" => &mut self.world_writable_alias_file,
            "linkedmapinwritabledir" => &mut self.linked_map_in_writable_dir,
            _ => return false,
        };
        *field = true;
        true
    }

    /// Checks an opened map file and the directories its name leads through. Blocks on disk.
    ///
    /// # Errors
    /// [`MapError::Unsafe`] with Sendmail's words; [`MapError::Open`] if a directory cannot be looked at.
    pub fn check(&self, path: &Path, file: &Metadata) -> Result<(), MapError> {
        let refused = |detail: &str| Err(MapError::unsafe_file(path, detail));
        if file.mode() & WORLD_WRITE != 0 && !self.world_writable_alias_file {
            return refused("World writable file");
        }
        if file.mode() & GROUP_WRITE != 0 && !self.group_writable_alias_file {
            return refused("Group writable file");
        }
        if *self == Self::UNCHECKED {
            return Ok(());
        }
        let failed = |error| MapError::open(path, &error);
        let named = std::path::absolute(path).map_err(failed)?;
        let real = std::fs::canonicalize(path).map_err(failed)?;
        if !self.map_in_unsafe_dir_path {
            self.check_directories(path, &real)?;
        }
        if named != real && !self.linked_map_in_writable_dir {
            self.check_directories(path, &named)?;
        }
        Ok(())
    }

    fn check_directories(&self, path: &Path, file: &Path) -> Result<(), MapError> {
        for directory in file.ancestors().skip(1) {
            let meta =
                std::fs::metadata(directory).map_err(|error| MapError::open(path, &error))?;
            if let Some(words) = self.fault_of(&meta) {
                let detail = format!("{words} {}", directory.display());
                return Err(MapError::unsafe_file(path, &detail));
            }
        }
        Ok(())
    }

    /// The directories on the way to a file, as its name is written, that others may write: what tools that build maps
    /// warn of, in Sendmail's words, from the top. One that cannot be looked at is passed over. Blocks on disk.
    pub fn writable_directories(&self, file: &Path) -> Vec<String> {
        if self.map_in_unsafe_dir_path {
            return Vec::new();
        }
        let mut directories: Vec<&Path> = file.ancestors().skip(1).collect();
        if let [.., last] = directories.as_mut_slice()
            && last.as_os_str().is_empty()
        {
            // A name without a directory is in this one; `d/e/name` is looked for from `d` on.
            *last = Path::new(".");
            if directories.len() > 1 {
                directories.pop();
            }
        }
        let warning = |directory: &&Path| {
            let words = self.fault_of(&std::fs::metadata(directory).ok()?)?;
            Some(format!("{words} {}", directory.display()))
        };
        directories.iter().rev().filter_map(warning).collect()
    }

    /// What is wrong with a directory, if it may be written by others.
    fn fault_of(&self, directory: &Metadata) -> Option<&'static str> {
        let mode = directory.mode();
        let is_held = self.trust_sticky_bit && mode & STICKY != 0;
        if mode & WORLD_WRITE != 0 && !is_held {
            return Some("World writable directory");
        }
        let is_group_safe = self.group_writable_dir_path_safe || mode & WORLD_WRITE != 0;
        (mode & GROUP_WRITE != 0 && !is_group_safe).then_some("Group writable directory")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    fn chmod(path: &Path, mode: u32) {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn detail(safety: Safety, path: &Path) -> String {
        match safety.check(path, &std::fs::metadata(path).unwrap()) {
            Ok(()) => String::new(),
            Err(error) => error.detail().to_owned(),
        }
    }

    #[test]
    fn each_refusal_has_its_exception() {
        // The test's own directory lies in one that is sticky and world-writable.
        let base = Safety {
            trust_sticky_bit: true,
            ..Safety::default()
        };
        let dir = tempfile::tempdir().unwrap();
        chmod(dir.path(), 0o755);
        let path = dir.path().join("m.db");
        std::fs::write(&path, "x").unwrap();
        chmod(&path, 0o644);
        assert_eq!(detail(base, &path), "");
        let cases: [(&Path, u32, &str, &str); 4] = [
            (
                &path,
                0o664,
                "Group writable file",
                "GroupWritableAliasFile",
            ),
            (
                &path,
                0o646,
                "World writable file",
                "worldwritablealiasfile",
            ),
            (
                dir.path(),
                0o775,
                "Group writable directory",
                "GroupWritableDirPathSafe",
            ),
            (
                dir.path(),
                0o757,
                "World writable directory",
                "MapInUnsafeDirPath",
            ),
        ];
        for (what, mode, words, name) in cases {
            let before = std::fs::metadata(what).unwrap().mode();
            chmod(what, mode);
            assert!(detail(base, &path).starts_with(words), "{words}");
            let mut lifted = base;
            assert!(lifted.lift(name));
            assert_eq!(detail(lifted, &path), "", "{name}");
            assert_eq!(detail(Safety::UNCHECKED, &path), "");
            chmod(what, before);
        }
        assert!(!Safety::default().lift("ForwardFileInUnsafeDirPath"));
    }

    #[test]
    fn tools_warn_of_every_directory_on_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let (upper, lower) = (dir.path().join("u"), dir.path().join("u/l"));
        std::fs::create_dir_all(&lower).unwrap();
        chmod(dir.path(), 0o755);
        chmod(&upper, 0o777);
        chmod(&lower, 0o775);
        let mut safety = Safety {
            trust_sticky_bit: true,
            ..Safety::default()
        };
        let warned = |safety: Safety| safety.writable_directories(&lower.join("m.db"));
        let (first, second) = (
            format!("World writable directory {}", upper.display()),
            format!("Group writable directory {}", lower.display()),
        );
        assert_eq!(warned(safety), [first.clone(), second]);
        safety.group_writable_dir_path_safe = true;
        assert_eq!(warned(safety), [first]);
        assert!(warned(Safety::UNCHECKED).is_empty());
        let here = Safety::default().writable_directories(Path::new("m.db"));
        assert!(here.iter().all(|text| text.ends_with(" .")), "{here:?}");
        let below = Safety::default().writable_directories(Path::new("src/m.db"));
        assert!(below.iter().all(|text| text.ends_with(" src")), "{below:?}");
    }

    #[test]
    fn a_link_in_a_writable_directory_is_refused() {
        let base = Safety {
            trust_sticky_bit: true,
            ..Safety::default()
        };
        let dir = tempfile::tempdir().unwrap();
        chmod(dir.path(), 0o755);
        let open = dir.path().join("open");
        std::fs::create_dir(&open).unwrap();
        let path = dir.path().join("m.db");
        std::fs::write(&path, "x").unwrap();
        chmod(&path, 0o644);
        let link = open.join("link.db");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        chmod(&open, 0o777);
        assert!(detail(base, &link).starts_with("World writable directory"));
        let mut lifted = base;
        assert!(lifted.lift("LinkedMapInWritableDir"));
        assert_eq!(detail(lifted, &link), "");
    }
}
