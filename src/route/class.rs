//! Classes: sets of words kept in a file, such as `w`, the names of this host, in local-host-names.
//!
//! The file is looked at (one `stat`) whenever the class is asked, and read again when it has changed, so that an
//! edit needs no restart. The first word of a line counts, as in Sendmail; further ones are told in the log once. `#`
//! begins a comment. A file that is not there is an empty class.
//! One that can't be read, or that lies in a directory where others could have put it, makes the start fail; later, the words read before stay in force and the trouble is told
//! once: a class must never seem empty because a lookup did not work (I9).
//!
//! Touches: its one file, reading only. Blocks: disk, for the `stat` and when the file has changed.
//! Limits: [`CLASS_BYTES_MAX`]. Source: op.me 5.3.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use diligence_maps::FileAccess;

use super::access_entry::fold;
use super::{Notice, RouteError};
use crate::config::ClassOptions;
use crate::safe_file::{self, Lenience, Purpose, ReadRequest, Refusal, Who};

/// Longest class file read, in bytes.
pub const CLASS_BYTES_MAX: usize = 16 << 20;

/// How class files are read.
#[derive(Clone)]
pub(crate) struct ClassReader {
    /// What is let pass.
    pub(crate) lenience: Lenience,
    /// Directories above this one are not looked at.
    pub(crate) trusted: Option<PathBuf>,
    /// How one is opened that this process may not read.
    pub(crate) files: FileAccess,
    /// Who is told of trouble.
    pub(crate) notice: Notice,
}

/// A set of words kept in a file, in lower case.
pub(crate) struct Class {
    path: PathBuf,
    reader: ClassReader,
    current: ArcSwap<Words>,
    /// The state of the file that was last tried and could not be read; also held while reading.
    refused: Mutex<Option<Refused>>,
}

/// What one state of the file held.
struct Words {
    stamp: Option<Stamp>,
    words: HashSet<String>,
}

/// A state of the file that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Refused {
    stamp: Stamp,
    /// Because of a directory, which is mended without the file being touched.
    is_for_directory: bool,
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
    pub(crate) fn open(path: &Path, reader: &ClassReader) -> Result<Self, RouteError> {
        let error = |source| RouteError::Class {
            path: path.to_path_buf(),
            source,
        };
        let stamp = stamp_of(path).map_err(|source| error(source.into()))?;
        let words = reader.read(path, stamp).map_err(error)?;
        Ok(Self {
            path: path.to_path_buf(),
            reader: reader.clone(),
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
            Err(error) => return self.keep(&mut refused, None, &error.into()),
        };
        let current = self.current.load_full();
        let is_known = refused
            .is_some_and(|refused| Some(refused.stamp) == stamp && !refused.is_for_directory);
        if stamp == current.stamp || is_known {
            return current;
        }
        match self.reader.read(&self.path, stamp) {
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
        refused: &mut Option<Refused>,
        stamp: Option<Stamp>,
        error: &Refusal,
    ) -> Arc<Words> {
        // A stamp that no file has marks a folder that can't be searched: told once, too.
        let mark = stamp.unwrap_or(Stamp {
            device: 0,
            inode: 0,
            size_bytes: 0,
            mtime: (0, 0),
            ctime: (0, 0),
        });
        let new = Refused {
            stamp: mark,
            is_for_directory: error.directory().is_some(),
        };
        if *refused != Some(new) {
            *refused = Some(new);
            (self.reader.notice)(&format!(
                "{}: {error}; the words read before stay in force",
                self.path.display()
            ));
        }
        self.current.load_full()
    }
}

impl ClassReader {
    fn read(&self, path: &Path, stamp: Option<Stamp>) -> Result<Words, Refusal> {
        let mut bytes = Vec::new();
        if stamp.is_some() {
            // Not as the file's owner: this process must be able to read it again whenever it changes.
            let own = Who {
                uid: rustix::process::geteuid().as_raw(),
                gid: rustix::process::getegid().as_raw(),
            };
            let read = safe_file::read(&ReadRequest {
                path,
                purpose: Purpose::Class,
                who: Some(own),
                lenience: self.lenience,
                trusted: self.trusted.as_deref(),
            });
            bytes = match read {
                // Reading it comes last: that it is safe has been seen by then.
                Err(Refusal::Io(error)) if error.kind() == io::ErrorKind::PermissionDenied => {
                    let mut bytes = Vec::new();
                    let limit = u64::try_from(CLASS_BYTES_MAX).unwrap_or(u64::MAX);
                    let file = self.files.open(path)?;
                    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
                    bytes
                }
                read => read?.bytes,
            };
            if bytes.len() > CLASS_BYTES_MAX {
                return Err(Refusal::TooLarge);
            }
        }
        let mut words = HashSet::new();
        let mut surplus = None;
        for (at, line) in String::from_utf8_lossy(&bytes).lines().enumerate() {
            let line = line.split_once('#').map_or(line, |(words, _)| words);
            let mut parts = line.split_whitespace();
            let first = parts.next().map(fold).filter(|word| !word.is_empty());
            words.extend(first);
            surplus = surplus.or(parts.next().map(|word| (at + 1, word.to_owned())));
        }
        if let Some((line, word)) = surplus {
            (self.notice)(&format!(
                "{}: line {line}: {word} does not count: one word a line",
                path.display()
            ));
        }
        Ok(Words { stamp, words })
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
    pub(crate) fn open(options: &ClassOptions, reader: &ClassReader) -> Result<Self, RouteError> {
        let file = match &options.file {
            Some(path) => Some(Class::open(path, reader)?),
            None => None,
        };
        let words = options.words.iter().map(|word| fold(word)).collect();
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads whatever lies below a temporary folder.
    fn reader(notice: Notice) -> ClassReader {
        let trusted = Some(std::env::temp_dir().join("x"));
        let lenience = Lenience {
            group_writable_file: true,
            world_writable_file: true,
            ..Lenience::default()
        };
        ClassReader {
            lenience,
            trusted,
            files: FileAccess::default(),
            notice,
        }
    }

    fn silent() -> ClassReader {
        reader(Arc::new(|_: &str| ()))
    }

    #[test]
    fn words_are_folded_and_comments_left_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w");
        fs::write(&path, "# names\nExample.TEST. # and\n\n  b.test\n").unwrap();
        let class = Class::open(&path, &silent()).unwrap();
        for word in ["example.test", "b.test"] {
            assert!(class.contains(word), "{word}");
        }
        assert!(!class.contains("and") && !class.contains("names"));
        assert!(class.contains_domain("x.y.b.test") && !class.contains_domain("xb.test"));
    }

    #[test]
    fn edits_are_seen_and_a_file_made_later_too() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w");
        let class = Class::open(&path, &silent()).unwrap();
        assert!(!class.contains("a.test"));
        fs::write(&path, "a.test\n").unwrap();
        assert!(class.contains("a.test"));
        fs::write(&path, "a.test\nbb.test\n").unwrap();
        assert!(class.contains("bb.test"));
        fs::remove_file(&path).unwrap();
        assert!(!class.contains("a.test"));
    }

    // Transcript 51: of `gold.example.test extra.test` only the first is a name of this host.
    #[test]
    fn only_the_first_word_of_a_line_counts_and_the_log_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w");
        fs::write(&path, "a.test extra.test\n.sub.test\n").unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let lines = Arc::clone(&told);
        let notice: Notice =
            Arc::new(move |line: &str| lines.lock().unwrap().push(line.to_owned()));
        let class = Class::open(&path, &reader(notice)).unwrap();
        assert!(class.contains("a.test") && !class.contains("extra.test"));
        assert!(!class.contains("x.sub.test") && !class.contains("sub.test"));
        let told = told.lock().unwrap();
        assert_eq!(told.len(), 1);
        assert!(told[0].ends_with("w: line 1: extra.test does not count: one word a line"));
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
        let class = Class::open(&path, &reader(notice)).unwrap();
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(class.contains("a.test"));
        assert!(class.contains("a.test"));
        assert_eq!(told.lock().unwrap().len(), 1);
        fs::remove_dir(&path).unwrap();
        fs::write(&path, "c.test\n").unwrap();
        assert!(class.contains("c.test") && !class.contains("a.test"));

        assert!(
            Class::open(folder.path(), &silent()).is_err(),
            "a folder is no class"
        );
    }

    #[test]
    fn what_others_could_have_put_there_is_refused_until_it_is_theirs_no_more() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let mode = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        let etc = folder.path().join("etc");
        fs::create_dir(&etc).unwrap();
        let path = etc.join("w");
        fs::write(&path, "a.test\n").unwrap();
        // The file may be anybody's to write, as in Sendmail.
        mode(&path, 0o666);
        mode(&etc, 0o775);
        for (bits, why) in [(0o775, "Group"), (0o757, "World")] {
            mode(&etc, bits);
            let error = Class::open(&path, &silent()).err().unwrap();
            assert_eq!(
                error.to_string(),
                format!(
                    "fileclass: cannot open '{}': {why} writable directory",
                    path.display()
                )
            );
        }
        let lenient = ClassReader {
            lenience: Lenience {
                unsafe_directory: true,
                ..silent().lenience
            },
            ..silent()
        };
        assert!(Class::open(&path, &lenient).unwrap().contains("a.test"));
        mode(&etc, 0o755);
        let class = Class::open(&path, &silent()).unwrap();
        mode(&etc, 0o777);
        fs::write(&path, "a.test\nb.test\n").unwrap();
        assert!(class.contains("a.test") && !class.contains("b.test"));
        // Nothing of the file changes with its directory.
        mode(&etc, 0o755);
        assert!(class.contains("b.test"));
    }
}
