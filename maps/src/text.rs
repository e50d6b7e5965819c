//! Plain text maps: one entry a line, columns chosen as Sendmail's class `text` does (-k, -v, -z).
//!
//! With a delimiter byte (-z), columns are what stands between two delimiters; without, columns are separated by runs
//! of blanks. Column 0 is the first. A value column that is not there makes the line's entry empty-handed: it is left
//! out. Empty lines and lines starting with `#` hold no entry. The first line with a key wins. Keys are put in lower
//! case unless the map is opened with -f, so that folded lookups find them.
//!
//! The file is read whole under its shared lock; loading blocks on disk. Limits: the file size limit of `load.rs`.
//! Source: sendmail's op.me 5.12, class text.

#![deny(clippy::indexing_slicing)]

use crate::spec::TextColumns;
use crate::{MapError, Snapshot, SnapshotBuilder, Stamp};
use std::path::Path;

/// Builds a snapshot of a text map's bytes.
pub(crate) fn load(
    path: &Path,
    bytes: &[u8],
    columns: &TextColumns,
    folds_keys: bool,
    stamp: Stamp,
) -> Result<Snapshot, MapError> {
    let mut builder = SnapshotBuilder::new(path, bytes.len() / 32, bytes.len());
    for line in bytes.split(|&byte| byte == b'\n') {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        let Some(key) = column(line, columns.key, columns.delimiter).filter(|key| !key.is_empty())
        else {
            continue;
        };
        let value = match columns.value {
            None => line,
            Some(at) => match column(line, at, columns.delimiter) {
                Some(value) => value,
                None => continue,
            },
        };
        if folds_keys && key.iter().any(u8::is_ascii_uppercase) {
            builder.add(&key.to_ascii_lowercase(), value)?;
        } else {
            builder.add(key, value)?;
        }
    }
    Ok(builder.finish(stamp))
}

/// Column `index` of a line.
fn column(line: &[u8], index: usize, delimiter: Option<u8>) -> Option<&[u8]> {
    match delimiter {
        Some(delimiter) => line.split(|&byte| byte == delimiter).nth(index),
        None => line
            .split(u8::is_ascii_whitespace)
            .filter(|word| !word.is_empty())
            .nth(index),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str, columns: TextColumns) -> Snapshot {
        load(
            Path::new("m"),
            text.as_bytes(),
            &columns,
            true,
            Stamp::default(),
        )
        .unwrap()
    }

    #[test]
    fn columns_are_separated_by_blanks() {
        let map = table(
            "# c\nAlice  x y\n\nbob\tz\r\nlonely\nalice again\n",
            TextColumns::default(),
        );
        assert_eq!(map.get(b"alice"), Some(&b"x"[..]));
        assert_eq!(map.get(b"bob"), Some(&b"z"[..]));
        assert_eq!(map.get(b"lonely"), None);
        assert_eq!(map.len(), 2);
    }

    #[test]
    fn columns_are_separated_by_a_delimiter() {
        let columns = TextColumns {
            key: 0,
            value: Some(2),
            delimiter: Some(b':'),
        };
        let map = table("root:x:0:0\nuser::1000\nshort:x\n", columns);
        assert_eq!(map.get(b"root"), Some(&b"0"[..]));
        assert_eq!(map.get(b"user"), Some(&b"1000"[..]));
        assert_eq!(map.get(b"short"), None);
    }
}
