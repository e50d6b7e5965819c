//! Classes: sets of words kept in a file, such as `w`, the names of this host, in local-host-names.
//!
//! The file is looked at (one `stat`) whenever the class is asked, and read again when it has changed, so that an
//! edit needs no restart. Words end at white space, `#` begins a comment. A file that is not there is an empty class.
//! One that can't be read makes the start fail; later, the words read before stay in force and the trouble is told
//! once: a class must never seem empty because a lookup did not work (I9).
//!
//! Touches: its one file, reading only. Blocks: disk, for the `stat` and when the file has changed.
//! Limits: [`CLASS_BYTES_MAX`]. Source: op.me 5.3.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use super::{Notice, RouteError};
use crate::config::ClassOptions;

/// Longest class file read, in bytes.
pub const CLASS_BYTES_MAX: u64 = 16 << 20;

/// A set of words kept in a file, in lower case.
pub(crate) struct Class {
    path: PathBuf,
    notice: Notice,
    current: ArcSwap<Words>,
    /// The state of the file that was last tried and could not be read; also held while reading.
    refused: Mutex<Option<Stamp>>,
}

/// What one state of the file held.
struct Words {
    stamp: Option<Stamp>,
    words: HashSet<String>,
}

/// What changes whenever a file is rewritten, in place or by rename.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size_bytes: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Class {
    /// Reads the class. Blocks: disk.
    ///
    /// # Errors
    /// [`RouteError::Class`] if the file is there and can't be read.
    pub(crate) fn open(path: &Path, notice: Notice) -> Result<Self, RouteError> {
        let error = |source| RouteError::Class {
            path: path.to_path_buf(),
            source,
        };
        let stamp = stamp_of(path).map_err(error)?;
        let words = read(path, stamp).map_err(error)?;
        Ok(Self {
            path: path.to_path_buf(),
            notice,
            current: ArcSwap::from_pointee(words),
            refused: Mutex::new(None),
        })
    }

    /// Whether the class holds this word, which is in lower case. Blocks: disk.
    pub(crate) fn contains(&self, folded: &str) -> bool {
        self.words().words.contains(folded)
    }

    /// Whether the class holds this domain, in lower case, or one above it.
    pub(crate) fn contains_domain(&self, folded: &str) -> bool {
        is_or_is_below(folded, &self.words().words)
    }

    fn words(&self) -> Arc<Words> {
        let current = self.current.load_full();
        let found = stamp_of(&self.path);
        if matches!(&found, Ok(stamp) if *stamp == current.stamp) {
            return current;
        }
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = match found {
            Ok(stamp) => stamp,
            Err(error) => return self.keep(&mut refused, None, &error),
        };
        let current = self.current.load_full();
        if stamp == current.stamp || (stamp.is_some() && stamp == *refused) {
            return current;
        }
        match read(&self.path, stamp) {
            Ok(words) => {
                let words = Arc::new(words);
                self.current.store(Arc::clone(&words));
                *refused = None;
                words
            }
            Err(error) => self.keep(&mut refused, stamp, &error),
        }
    }

    fn keep(
        &self,
        refused: &mut Option<Stamp>,
        stamp: Option<Stamp>,
        error: &io::Error,
    ) -> Arc<Words> {
        // A stamp that no file has marks a folder that can't be searched: told once, too.
        let mark = stamp.unwrap_or(Stamp {
            device: 0,
            inode: 0,
            size_bytes: 0,
            mtime: (0, 0),
            ctime: (0, 0),
        });
        if *refused != Some(mark) {
            *refused = Some(mark);
            (self.notice)(&format!(
                "{}: {error}; the words read before stay in force",
                self.path.display()
            ));
        }
        self.current.load_full()
    }
}

/// A class of words that the configuration names and of those in a file, if it has one.
pub(crate) struct WordClass {
    words: HashSet<String>,
    file: Option<Class>,
}

impl WordClass {
    /// Reads the file. Blocks: disk.
    ///
    /// # Errors
    /// As [`Class::open`].
    pub(crate) fn open(options: &ClassOptions, notice: &Notice) -> Result<Self, RouteError> {
        let file = match &options.file {
            Some(path) => Some(Class::open(path, Arc::clone(notice))?),
            None => None,
        };
        let words = options.words.iter().map(|word| folded(word)).collect();
        Ok(Self { words, file })
    }

    /// Whether the class holds this word, which is in lower case. Blocks: disk.
    pub(crate) fn contains(&self, folded: &str) -> bool {
        self.words.contains(folded) || self.file.as_ref().is_some_and(|file| file.contains(folded))
    }

    /// Whether the class holds this domain, in lower case, or one above it.
    pub(crate) fn contains_domain(&self, folded: &str) -> bool {
        is_or_is_below(folded, &self.words)
            || self
                .file
                .as_ref()
                .is_some_and(|file| file.contains_domain(folded))
    }
}

/// Whether the words hold this domain or one above it.
fn is_or_is_below(folded: &str, words: &HashSet<String>) -> bool {
    let mut rest = Some(folded);
    while let Some(name) = rest {
        if words.contains(name) {
            return true;
        }
        rest = name.split_once('.').map(|(_, above)| above);
    }
    false
}

fn folded(word: &str) -> String {
    word.strip_suffix('.').unwrap_or(word).to_ascii_lowercase()
}

/// `None` if there is no such file.
fn stamp_of(path: &Path) -> io::Result<Option<Stamp>> {
    match fs::metadata(path) {
        Ok(meta) => Ok(Some(Stamp {
            device: meta.dev(),
            inode: meta.ino(),
            size_bytes: meta.size(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
        })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn read(path: &Path, stamp: Option<Stamp>) -> io::Result<Words> {
    let mut bytes = Vec::new();
    if stamp.is_some() {
        let file = File::open(path)?;
        let length = file.take(CLASS_BYTES_MAX + 1).read_to_end(&mut bytes)?;
        if u64::try_from(length).unwrap_or(u64::MAX) > CLASS_BYTES_MAX {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("longer than {CLASS_BYTES_MAX} bytes"),
            ));
        }
    }
    let words = String::from_utf8_lossy(&bytes)
        .lines()
        .map(|line| line.split_once('#').map_or(line, |(words, _)| words))
        .flat_map(str::split_whitespace)
        .map(folded)
        .filter(|word| !word.is_empty())
        .collect();
    Ok(Words { stamp, words })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silent() -> Notice {
        Arc::new(|_: &str| ())
    }

    #[test]
    fn words_are_folded_and_comments_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w");
        fs::write(&path, "# names\nExample.TEST a.test. # and\n\n  b.test\n").unwrap();
        let class = Class::open(&path, silent()).unwrap();
        for word in ["example.test", "a.test", "b.test"] {
            assert!(class.contains(word), "{word}");
        }
        assert!(!class.contains("and") && !class.contains("names"));
        assert!(class.contains_domain("x.y.b.test") && !class.contains_domain("xb.test"));
    }

    #[test]
    fn edits_are_seen_and_a_file_made_later_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w");
        let class = Class::open(&path, silent()).unwrap();
        assert!(!class.contains("a.test"));
        fs::write(&path, "a.test\n").unwrap();
        assert!(class.contains("a.test"));
        fs::write(&path, "a.test bb.test\n").unwrap();
        assert!(class.contains("bb.test"));
        fs::remove_file(&path).unwrap();
        assert!(!class.contains("a.test"));
    }

    #[test]
    fn trouble_keeps_the_words_and_is_told_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w");
        fs::write(&path, "a.test\n").unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let notice: Notice = {
            let told = Arc::clone(&told);
            Arc::new(move |line: &str| told.lock().unwrap().push(line.to_owned()))
        };
        let class = Class::open(&path, notice).unwrap();
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(class.contains("a.test"));
        assert!(class.contains("a.test"));
        assert_eq!(told.lock().unwrap().len(), 1);
        fs::remove_dir(&path).unwrap();
        fs::write(&path, "c.test\n").unwrap();
        assert!(class.contains("c.test") && !class.contains("a.test"));

        assert!(
            Class::open(folder.path(), silent()).is_err(),
            "a folder is no class"
        );
    }
}
