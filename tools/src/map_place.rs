//! What the tools that work on map files share: the kind a class stands for, the files they open, and what they warn of.
//!
//! As Sendmail's tools have it: a directory on the way to a map that others may write is warned of and no more; a map that
//! is a symbolic link or has several names is refused. What opens a file looks at the open file. Blocks on disk, and on
//! the lock of a program that is rebuilding the map, up to [`LOCK_WAIT`]. Source: makemap(8), editmap(8).

use diligence_maps::{Access, DirectMap, MapError, MapKind, Safety, SpecError, open_direct};
use std::path::Path;
use std::time::Duration;

/// How long a map that is being rebuilt is waited for.
pub const LOCK_WAIT: Duration = Duration::from_secs(30);

/// The kind of map that a class names where a map is written; `implicit` is the first of Sendmail's list.
///
/// # Errors
/// The text that follows the map's name.
pub fn written_kind(class: &str) -> Result<MapKind, &'static str> {
    match MapKind::from_name(class) {
        _ if class == "implicit" => Ok(MapKind::Hash),
        Ok(kind) if kind.is_writable() => Ok(kind),
        Ok(_) => Err("Unknown database type (maps of this class are not built)"),
        Err(SpecError::NotBuiltIn { .. }) => {
            Err("Unknown database type (this class is not built in)")
        }
        Err(_) => Err("Unknown database type"),
    }
}

/// Opens a map of the kind asked for; a file of another kind is refused, as Sendmail's tools refuse it.
///
/// # Errors
/// [`MapError`], as opening gives it.
pub fn open_written(
    file: &Path,
    kind: MapKind,
    follows_links: bool,
) -> Result<DirectMap, MapError> {
    let access = Access {
        refuses_links: !follows_links,
        ..Access::from(LOCK_WAIT)
    };
    let map = open_direct(file, access)?;
    if map.kind() != kind {
        return Err(MapError::Unsupported {
            path: file.to_path_buf(),
            detail: format!("the file is of type {}", map.kind()),
        });
    }
    Ok(map)
}

/// The text that follows the map's name: for a file that cannot be used libdb's, with what is wrong behind it.
#[must_use]
pub fn open_text(error: &MapError) -> String {
    match error {
        MapError::Damaged { detail, .. } | MapError::Unsupported { detail, .. } => {
            format!("Invalid argument ({detail})")
        }
        other => other.detail().to_owned(),
    }
}

/// Says on standard error which directories on the way to a map others may write, one a line; in a sandbox, whose place
/// its owner chose, nothing.
pub fn warn_of_directories(file: &Path, safety: Safety, sandbox: Option<&Path>) {
    if sandbox.is_none() {
        for warning in safety.writable_directories(file) {
            eprintln!("WARNING: {warning}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_told_apart() {
        assert_eq!(written_kind("btree"), Ok(MapKind::Btree));
        assert_eq!(written_kind("implicit"), Ok(MapKind::Hash));
        for class in ["text", "dbm", "HASH", "", "sequence"] {
            let text = written_kind(class).unwrap_err();
            assert!(text.starts_with("Unknown database type"), "{class}");
        }
    }

    #[test]
    fn an_unusable_file_is_an_invalid_argument() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("m.db");
        let text = |file: &Path| match open_written(file, MapKind::Hash, false) {
            Ok(_) => String::new(),
            Err(error) => open_text(&error),
        };
        assert_eq!(text(&file), "No such file or directory");
        std::fs::write(&file, "rubbish").unwrap();
        assert!(text(&file).starts_with("Invalid argument ("));
        assert_eq!(text(folder.path()), "Regular files only");
    }
}
