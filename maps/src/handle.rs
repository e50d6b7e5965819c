//! What a server holds of a map: lookups in a snapshot that is swapped as a whole when the file has been rebuilt.
//!
//! What is the same for all formats happens here, once: trailing NULs (-N, -O) and optional files (-o); and, by
//! `answer.rs`, what is the same for all classes.
//!
//! Reload: a `stat` of the file is compared with the snapshot's stamp; if it differs, the file is read again and the
//! new snapshot published, or, if the file is damaged, locked or gone, the old one stays and the trouble is reported
//! once for each state of the file. Other threads go on looking up in the old snapshot meanwhile.
//!
//! [`MapHandle::lookup`] blocks on one `stat`, and on the disk when the file has changed; a [`MapReader`] never
//! blocks. Errors: with no snapshot at all, every lookup answers the error of the last attempt, which is temporary.

use crate::answer::{finish, folded, strip_nul};
use crate::file_access::FileAccess;
use crate::load::{Access, Emptiness, LoadOptions, Stamp, load, read_locked};
use crate::{
    Map, MapError, MapKind, MapSpec, NulRule, NulStyle, PairVisitor, Safety, Snapshot, open_direct,
    text,
};
use arc_swap::{ArcSwap, Guard};
use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

/// What a handle tells its owner, for the log.
#[derive(Debug, Clone)]
pub enum MapEvent {
    /// A rebuilt map is in use.
    Reloaded {
        /// The file.
        path: PathBuf,
        /// Number of keys.
        keys: u64,
    },
    /// A changed map could not be read; the old contents, if there are any, stay in use.
    Trouble {
        /// What was wrong.
        error: MapError,
        /// Whether there are old contents.
        old_in_use: bool,
    },
}

type Report = Arc<dyn Fn(&MapEvent) + Send + Sync>;

/// How a handle opens its map.
#[derive(Clone)]
pub struct HandleOptions {
    /// How long a first opening waits for a program that is rebuilding the file. Later reloads do not wait: they use
    /// the old contents until the file is free.
    pub lock_wait: Duration,
    /// Told of reloads and of trouble, on the thread that looked up.
    pub report: Report,
    /// Which files are refused because others could have written them. Nothing is, unless the owner says so.
    pub safety: Safety,
    /// How files are opened.
    pub files: FileAccess,
}

impl Default for HandleOptions {
    fn default() -> Self {
        Self {
            lock_wait: Duration::from_secs(10),
            report: Arc::new(|_| {}),
            safety: Safety::UNCHECKED,
            files: FileAccess::default(),
        }
    }
}

impl std::fmt::Debug for HandleOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HandleOptions")
            .field("lock_wait", &self.lock_wait)
            .finish_non_exhaustive()
    }
}

/// What [`MapHandle::refresh`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refresh {
    /// The file is as it was.
    Unchanged,
    /// The file had changed and the new contents are in use.
    Reloaded,
}

/// What lookups are answered from at one moment.
enum State {
    Loaded(Snapshot),
    /// Nothing has ever been loaded, or an optional map's file is gone.
    Trouble(MapError),
}

/// The last attempt to load, guarded so that only one thread loads.
struct Attempt {
    /// State of the file that was last found bad; it is not read again until it changes.
    bad: Option<Stamp>,
    /// The trouble last reported, so that it is not reported with every lookup.
    reported: Option<MapError>,
}

/// A map in use: see the file's header.
pub struct MapHandle {
    spec: MapSpec,
    file: PathBuf,
    options: HandleOptions,
    state: ArcSwap<State>,
    attempt: Mutex<Attempt>,
}

impl MapHandle {
    /// Opens a map and loads it.
    ///
    /// # Errors
    /// What loading gives; a file that does not exist is no error for an optional map. Use [`MapHandle::attach`]
    /// where a server shall start all the same.
    pub fn open(spec: &MapSpec, options: HandleOptions) -> Result<Self, MapError> {
        let handle = Self::attach(spec, options);
        match &**handle.state.load() {
            State::Loaded(_) => {}
            State::Trouble(error) => return Err(error.clone()),
        }
        Ok(handle)
    }

    /// As [`MapHandle::open`], but trouble with the file is reported and kept: lookups answer it, and the map comes
    /// into use as soon as its file is good.
    pub fn attach(spec: &MapSpec, options: HandleOptions) -> Self {
        let file = spec.file();
        let never = MapError::locked(&file, "not loaded yet");
        let handle = Self {
            spec: spec.clone(),
            options,
            state: ArcSwap::from_pointee(State::Trouble(never)),
            attempt: Mutex::new(Attempt {
                bad: None,
                reported: None,
            }),
            file,
        };
        let mut attempt = handle.lock_attempt();
        // The outcome is in the state, and was reported.
        let _ = handle.reload(&mut attempt, handle.options.lock_wait, false);
        drop(attempt);
        handle
    }

    /// The specification the handle was opened with.
    pub fn spec(&self) -> &MapSpec {
        &self.spec
    }

    /// The file behind the map.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Looks at the file and loads it if it has changed, waiting for another thread that is just doing so.
    ///
    /// # Errors
    /// The trouble with the changed file; the old contents stay in use.
    pub fn refresh(&self) -> Result<Refresh, MapError> {
        if !self.has_changed() {
            return Ok(Refresh::Unchanged);
        }
        let mut attempt = self.lock_attempt();
        if !self.has_changed() {
            return Ok(Refresh::Reloaded);
        }
        self.reload(&mut attempt, Duration::ZERO, true)
    }

    /// Looks at the file as [`MapHandle::refresh`] does, but leaves a reload that another thread has begun to it; then
    /// a view of the contents for as many lookups as belong together.
    pub fn reader(&self) -> MapReader<'_> {
        if self.has_changed() {
            match self.attempt.try_lock() {
                Ok(mut attempt) => {
                    // Trouble was reported; the reader answers from what is there.
                    let _ = self.reload(&mut attempt, Duration::ZERO, true);
                }
                Err(TryLockError::WouldBlock | TryLockError::Poisoned(_)) => {}
            }
        }
        MapReader {
            spec: &self.spec,
            state: self.state.load(),
        }
    }

    /// Looks up a key, noticing a rebuilt file first.
    ///
    /// # Errors
    /// [`MapError`] if nothing usable is loaded; never with -t, and with -T the tagged key is the answer instead.
    pub fn lookup(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        self.reader().lookup(key)
    }

    /// As [`MapHandle::lookup`], with the arguments of `$@` that `%1` to `%9` in the value stand for.
    ///
    /// # Errors
    /// As [`MapHandle::lookup`].
    pub fn lookup_with(
        &self,
        key: &[u8],
        arguments: &[&[u8]],
    ) -> Result<Option<Vec<u8>>, MapError> {
        self.reader().lookup_with(key, arguments)
    }

    fn lock_attempt(&self) -> MutexGuard<'_, Attempt> {
        self.attempt.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the file differs from what is loaded. Only a missing optional file is equal to an empty snapshot.
    fn has_changed(&self) -> bool {
        match (&**self.state.load(), Stamp::of_path(&self.file)) {
            (State::Loaded(snapshot), Ok(now)) => snapshot.stamp() != now,
            (State::Loaded(snapshot), Err(error)) => {
                let is_missing = MapError::open(&self.file, &error).is_missing();
                !(is_missing
                    && self.spec.switches.is_optional
                    && snapshot.stamp() == Stamp::default())
            }
            (State::Trouble(_), _) => true,
        }
    }

    /// Loads the file and publishes the result. `is_later`: contents or an error are there already.
    fn reload(
        &self,
        attempt: &mut Attempt,
        wait: Duration,
        is_later: bool,
    ) -> Result<Refresh, MapError> {
        let now = Stamp::of_path(&self.file).ok();
        if is_later
            && now.is_some()
            && attempt.bad == now
            && let Some(error) = &attempt.reported
        {
            return Err(error.clone());
        }
        let options = LoadOptions {
            lock_wait: wait,
            columns: self.spec.columns.clone(),
            folds_text_keys: !self.spec.switches.keeps_case,
            safety: self.options.safety,
            files: self.options.files.clone(),
        };
        let loaded = match load(self.spec.kind, &self.file, &options) {
            // I9: only a file that is not there counts as an empty map; one that cannot be read is trouble.
            Err(error) if error.is_missing() && self.spec.switches.is_optional => {
                Ok(Snapshot::empty(&self.file))
            }
            other => other,
        };
        match loaded {
            Ok(snapshot) => {
                let keys = snapshot.len();
                self.state.store(Arc::new(State::Loaded(snapshot)));
                attempt.bad = None;
                attempt.reported = None;
                if is_later {
                    (self.options.report)(&MapEvent::Reloaded {
                        path: self.file.clone(),
                        keys,
                    });
                }
                Ok(Refresh::Reloaded)
            }
            Err(error) => {
                let old_in_use = matches!(&**self.state.load(), State::Loaded(_));
                // A lock ends without the file's stamp moving; damage does not.
                attempt.bad = match error {
                    MapError::Damaged { .. } | MapError::Unsupported { .. } => now,
                    _ => None,
                };
                if !old_in_use {
                    self.state.store(Arc::new(State::Trouble(error.clone())));
                }
                // That a rebuild is going on is worth no line in the log while old contents are in use.
                let is_quiet = old_in_use && matches!(error, MapError::Locked { .. });
                if !is_quiet && attempt.reported.as_ref() != Some(&error) {
                    attempt.reported = Some(error.clone());
                    (self.options.report)(&MapEvent::Trouble {
                        error: error.clone(),
                        old_in_use,
                    });
                }
                Err(error)
            }
        }
    }
}

impl std::fmt::Debug for MapHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MapHandle")
            .field("spec", &self.spec)
            .finish_non_exhaustive()
    }
}

/// One state of a map, for lookups that belong together. Never blocks.
pub struct MapReader<'h> {
    spec: &'h MapSpec,
    state: Guard<Arc<State>>,
}

impl MapReader<'_> {
    /// Looks up a key.
    ///
    /// # Errors
    /// As [`MapHandle::lookup`].
    pub fn lookup(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        self.find(key, None)
    }

    /// As [`MapReader::lookup`], with arguments for `%1` to `%9`.
    ///
    /// # Errors
    /// As [`MapHandle::lookup`].
    pub fn lookup_with(
        &self,
        key: &[u8],
        arguments: &[&[u8]],
    ) -> Result<Option<Vec<u8>>, MapError> {
        self.find(key, Some(arguments))
    }

    fn find(&self, key: &[u8], arguments: Option<&[&[u8]]>) -> Result<Option<Vec<u8>>, MapError> {
        let raw = match &**self.state {
            State::Loaded(snapshot) => Ok(find_in_snapshot(snapshot, self.spec, key)),
            State::Trouble(error) => Err(error.clone()),
        };
        finish(&self.spec.switches, key, raw, arguments)
    }

    /// Calls `f` with every pair as it is stored, but for a trailing NUL, until it breaks.
    ///
    /// # Errors
    /// [`MapError`] if nothing usable is loaded.
    pub fn each(&self, f: &mut PairVisitor<'_>) -> Result<(), MapError> {
        match &**self.state {
            State::Loaded(snapshot) => {
                snapshot.each(&mut |key, value| f(strip_nul(key), strip_nul(value)))
            }
            State::Trouble(error) => Err(error.clone()),
        }
    }

    /// Number of different keys; 0 if nothing is loaded.
    pub fn len(&self) -> u64 {
        match &**self.state {
            State::Loaded(snapshot) => snapshot.len(),
            State::Trouble(_) => 0,
        }
    }

    /// Whether there is no key, or nothing is loaded.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Why nothing is loaded, if so.
    pub fn trouble(&self) -> Option<&MapError> {
        match &**self.state {
            State::Loaded(_) => None,
            State::Trouble(error) => Some(error),
        }
    }
}

/// Looks up one key without loading the map, with the same rules: for programs that look up once. A duration alone is
/// how long to wait, and refuses nothing. Blocks on a few reads and, up to [`Access::lock_wait`], on the file's lock.
///
/// # Errors
/// As [`MapHandle::lookup`].
pub fn lookup_once(
    spec: &MapSpec,
    key: &[u8],
    access: impl Into<Access>,
) -> Result<Option<Vec<u8>>, MapError> {
    let access = access.into();
    let raw = match spec.kind {
        MapKind::Text => {
            let path = spec.file();
            let folds_keys = !spec.switches.keeps_case;
            read_locked(&path, &access, Emptiness::Allowed)
                .and_then(|(bytes, stamp)| {
                    text::load(&path, &bytes, &spec.columns, folds_keys, stamp)
                })
                .map(|snapshot| find_in_snapshot(&snapshot, spec, key))
        }
        _ => open_direct(&spec.file(), access).and_then(|map| find_in_file(&map, spec, key)),
    };
    let raw = match raw {
        Err(error) if error.is_missing() && spec.switches.is_optional => Ok(None),
        other => other,
    };
    finish(&spec.switches, key, raw, None)
}

fn find_in_snapshot(snapshot: &Snapshot, spec: &MapSpec, key: &[u8]) -> Option<Vec<u8>> {
    let key = folded(&spec.switches, key);
    let style = snapshot.nul_style();
    let plain = spec.switches.nul != NulRule::Only && style != NulStyle::With;
    let terminated = spec.switches.nul != NulRule::Never && style != NulStyle::Without;
    let found = plain.then(|| snapshot.get(&key)).flatten();
    let found = match found {
        None if terminated => with_nul(&key, |key| snapshot.get(key)),
        found => found,
    };
    found.map(|value| strip_nul(value).to_vec())
}

fn find_in_file(map: &dyn Map, spec: &MapSpec, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
    let key = folded(&spec.switches, key);
    let mut found = None;
    if spec.switches.nul != NulRule::Only {
        found = map.lookup(&key)?;
    }
    if found.is_none() && spec.switches.nul != NulRule::Never {
        found = with_nul(&key, |key| {
            map.lookup(key).map(|value| value.map(Cow::into_owned))
        })?
        .map(Cow::Owned);
    }
    Ok(found.map(|value| strip_nul(&value).to_vec()))
}

/// Calls `f` with the key and a NUL after it; short keys need no allocation.
fn with_nul<T>(key: &[u8], f: impl FnOnce(&[u8]) -> T) -> T {
    let mut short = [0; 128];
    if let Some(buffer) = short.get_mut(..=key.len()) {
        if let Some(front) = buffer.get_mut(..key.len()) {
            front.copy_from_slice(key);
        }
        return f(buffer);
    }
    let mut long = key.to_vec();
    long.push(0);
    f(&long)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DuplicatePolicy, MapBuilder, PublishOptions};
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn write(dir: &Path, pairs: &[(&str, &str)]) {
        let mut builder = MapBuilder::new(MapKind::Hash, DuplicatePolicy::KeepFirst).unwrap();
        for (key, value) in pairs {
            builder.insert(key.as_bytes(), value.as_bytes()).unwrap();
        }
        builder
            .publish(&dir.join("m.db"), &PublishOptions::default())
            .unwrap();
    }

    fn spec(dir: &Path, switches: &str) -> MapSpec {
        MapSpec::parse(&format!("hash {switches} {}/m", dir.display())).unwrap()
    }

    fn text(found: Result<Option<Vec<u8>>, MapError>) -> Option<String> {
        found
            .unwrap()
            .map(|value| String::from_utf8(value).unwrap())
    }

    #[test]
    fn switches_are_applied_above_the_format() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            &[
                ("alice", "%0 is %1%%%2%x"),
                ("nul\0", "v\0"),
                ("Upper", "u"),
            ],
        );
        let open = |switches: &str| {
            MapHandle::open(&spec(dir.path(), switches), HandleOptions::default()).unwrap()
        };
        let plain = open("");
        assert_eq!(text(plain.lookup(b"ALICE")).unwrap(), "%0 is %1%%%2%x");
        let found = text(plain.lookup_with(b"Alice", &[b"one"]));
        assert_eq!(found.unwrap(), "Alice is one%%x");
        assert_eq!(text(plain.lookup(b"nul")).unwrap(), "v");
        assert_eq!(text(plain.lookup(b"Upper")), None);
        assert_eq!(text(open("-f").lookup(b"Upper")).unwrap(), "u");
        assert_eq!(text(open("-m -a.x").lookup(b"Alice")).unwrap(), "Alice.x");
        assert_eq!(text(open("-N").lookup(b"alice")), None);
        assert_eq!(text(open("-N").lookup(b"nul")).unwrap(), "v");
        assert_eq!(text(open("-O").lookup(b"nul")), None);
        let once = |switches: &str, key: &[u8]| {
            text(lookup_once(
                &spec(dir.path(), switches),
                key,
                Duration::from_secs(5),
            ))
        };
        assert_eq!(once("", b"NUL").unwrap(), "v");
        assert_eq!(once("-O", b"nul"), None);
        assert_eq!(once("-a!", b"nul").unwrap(), "v!");
    }

    #[test]
    fn trouble_is_never_absence() {
        let dir = tempfile::tempdir().unwrap();
        let attach = |switches: &str| {
            MapHandle::attach(&spec(dir.path(), switches), HandleOptions::default())
        };
        assert!(attach("").lookup(b"k").unwrap_err().is_missing());
        assert!(MapHandle::open(&spec(dir.path(), ""), HandleOptions::default()).is_err());
        assert_eq!(text(attach("-o").lookup(b"k")), None);
        assert_eq!(text(attach("-t").lookup(b"k")), None);
        assert_eq!(text(attach("-T<TMPF>").lookup(b"K")).unwrap(), "K<TMPF>");
        std::fs::write(dir.path().join("m.db"), "rubbish").unwrap();
        assert!(attach("-o").lookup(b"k").is_err());
        assert!(lookup_once(&spec(dir.path(), "-o"), b"k", Duration::ZERO).is_err());
    }

    #[test]
    fn rebuilt_maps_are_noticed_and_damaged_ones_kept_out() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &[("k", "one")]);
        let troubles = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&troubles);
        let options = HandleOptions {
            report: Arc::new(move |event| {
                if matches!(
                    event,
                    MapEvent::Trouble {
                        old_in_use: true,
                        ..
                    }
                ) {
                    counter.fetch_add(1, Ordering::SeqCst);
                }
            }),
            ..HandleOptions::default()
        };
        let handle = MapHandle::open(&spec(dir.path(), ""), options).unwrap();
        assert_eq!(handle.refresh().unwrap(), Refresh::Unchanged);
        write(dir.path(), &[("k", "two")]);
        assert_eq!(text(handle.lookup(b"k")).unwrap(), "two");
        // Cut off in place, as a stock tool that was killed leaves it.
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(dir.path().join("m.db"))
            .unwrap();
        file.set_len(5000).unwrap();
        for _ in 0..3 {
            assert_eq!(text(handle.lookup(b"k")).unwrap(), "two");
        }
        assert_eq!(troubles.load(Ordering::SeqCst), 1);
        assert!(handle.refresh().is_err());
        std::fs::remove_file(dir.path().join("m.db")).unwrap();
        assert_eq!(text(handle.lookup(b"k")).unwrap(), "two");
        write(dir.path(), &[("k", "three")]);
        assert_eq!(handle.refresh().unwrap(), Refresh::Reloaded);
        assert_eq!(text(handle.lookup(b"k")).unwrap(), "three");
    }

    #[test]
    fn an_optional_map_may_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let handle = MapHandle::open(&spec(dir.path(), "-o"), HandleOptions::default()).unwrap();
        assert_eq!(text(handle.lookup(b"k")), None);
        write(dir.path(), &[("k", "v")]);
        assert_eq!(text(handle.lookup(b"k")).unwrap(), "v");
        std::fs::remove_file(dir.path().join("m.db")).unwrap();
        assert_eq!(text(handle.lookup(b"k")), None);
    }
}
