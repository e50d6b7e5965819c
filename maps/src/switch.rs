//! Class `switch`: a sequence whose members the service switch lists.
//!
//! `switch aliases` asks the maps `aliases.files`, `aliases.nis`, .. in the order of the line `aliases files nis` of the
//! service switch file. A file that does not exist, or that has no line for the service, means `files`. The file is
//! read when the map is opened; blocks for that long.
//!
//! Limits: [`SWITCH_BYTES_MAX`]. Source: sendmail's op.me 5.12 and its option ServiceSwitchFile.

#![deny(clippy::indexing_slicing)]

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Longest service switch file, in bytes.
const SWITCH_BYTES_MAX: u64 = 64 << 10;
/// What is asked where nothing is said.
const DEFAULT_METHOD: &str = "files";

/// The names of the maps for a service.
///
/// # Errors
/// The file is there and cannot be read, or is too long.
pub(crate) fn members(file: &Path, service: &str) -> io::Result<Vec<String>> {
    let mut text = String::new();
    match File::open(file) {
        Ok(file) => {
            file.take(SWITCH_BYTES_MAX + 1).read_to_string(&mut text)?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    if text.len() as u64 > SWITCH_BYTES_MAX {
        return Err(io::Error::other(format!(
            "{}: longer than {SWITCH_BYTES_MAX} bytes",
            file.display()
        )));
    }
    let methods = text.lines().find_map(|line| {
        let line = line.split('#').next().unwrap_or_default();
        let mut words = line.split_ascii_whitespace();
        let is_it = words
            .next()
            .is_some_and(|name| name.eq_ignore_ascii_case(service));
        is_it.then(|| words.map(str::to_owned).collect::<Vec<_>>())
    });
    let methods = methods
        .filter(|methods| !methods.is_empty())
        .unwrap_or_else(|| vec![DEFAULT_METHOD.to_owned()]);
    Ok(methods
        .into_iter()
        .map(|method| format!("{service}.{method}"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_the_service_counts() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("service.switch");
        assert_eq!(members(&file, "aliases").unwrap(), ["aliases.files"]);
        std::fs::write(
            &file,
            "# c\nhosts dns files\nAliases  nis files # x\npasswd\n",
        )
        .unwrap();
        assert_eq!(
            members(&file, "aliases").unwrap(),
            ["aliases.nis", "aliases.files"]
        );
        assert_eq!(members(&file, "passwd").unwrap(), ["passwd.files"]);
        std::fs::write(&file, vec![b'x'; 70_000]).unwrap();
        assert!(members(&file, "aliases").is_err());
        assert!(members(dir.path(), "aliases").is_err());
    }
}
