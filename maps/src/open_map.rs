//! Maps of any class in use: opened by their definitions, asked through one interface.
//!
//! [`MapSet`] holds the maps that have names, which `sequence` and `switch` refer to, and opens definitions. A class
//! that is a file is a [`MapHandle`]; any other is a [`ClassMap`]. Classes that reach the network or need a library this
//! crate does not have come from an [`Opener`] that the program brings along: this crate knows nothing of the net.
//!
//! Guarantees: the common switches are applied here once, for every class. A file that cannot be opened yet is no error
//! of [`MapSet::open`]: lookups answer its trouble until it is good. A lookup that did not work is an error and never
//! absence (I9), unless -t or -T say otherwise.
//!
//! Blocks: a lookup as long as its class does. Limits: [`STACK_MAX`].

#![deny(clippy::indexing_slicing)]

use crate::answer::{finish, folded};
use crate::implicit::ImplicitMap;
use crate::null::NullMap;
use crate::program::ProgramMap;
use crate::regex::RegexMap;
use crate::sequence::SequenceMap;
use crate::stab::StabMap;
use crate::user::UserMap;
use crate::{
    Definition, FileAccess, HandleOptions, MapClass, MapError, MapHandle, PairVisitor, SpecError,
    Switches, switch,
};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Most maps of one sequence, and most maps one upon another. Source: Sendmail's MAXMAPSTACK.
pub const STACK_MAX: usize = 12;
/// Where the service switch is, unless the program says otherwise. Source: Sendmail's ServiceSwitchFile.
pub const SERVICE_SWITCH_FILE: &str = "/etc/mail/service.switch";

/// A class that is no plain file, as it is asked: without the common switches, which are applied above it.
pub trait ClassMap: Send + Sync {
    /// The value of a key; `Ok(None)`: the key is surely absent.
    ///
    /// # Errors
    /// Any [`MapError`]: the lookup did not work and says nothing about the key.
    fn find(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MapError>;

    /// Calls `f` with every pair until it breaks.
    ///
    /// # Errors
    /// [`MapError::Unsupported`] for a class that has no end of keys, or does not know them.
    fn each(&self, f: &mut PairVisitor<'_>) -> Result<(), MapError>;

    /// Whether keys are to be put in lower case for it (unless -f is set). Maps of other maps leave that to them.
    fn takes_folded_keys(&self) -> bool {
        true
    }
}

/// Opens the classes that this crate does not have.
pub trait Opener: Send + Sync {
    /// Opens a map; `Ok(None)`: the class is not one of its own. Does not wait for the network.
    ///
    /// # Errors
    /// [`SpecError`] naming what in the definition cannot be used.
    fn open(&self, definition: &Definition) -> Result<Option<Box<dyn ClassMap>>, SpecError>;

    /// How files of this crate's own classes are opened.
    fn files(&self) -> FileAccess {
        FileAccess::default()
    }
}

/// An opener without classes.
pub struct NoOpener;

impl Opener for NoOpener {
    fn open(&self, _: &Definition) -> Result<Option<Box<dyn ClassMap>>, SpecError> {
        Ok(None)
    }
}

/// Maps by name, and all that is needed to open one.
pub struct MapSet {
    definitions: HashMap<String, Definition>,
    opener: Arc<dyn Opener>,
    options: HandleOptions,
    service_switch: PathBuf,
    opened: Mutex<HashMap<String, Arc<OpenMap>>>,
}

impl MapSet {
    /// A set without names. `options` is for the maps that are files, and its `report` for all.
    pub fn new(opener: Arc<dyn Opener>, options: HandleOptions) -> Self {
        Self {
            definitions: HashMap::new(),
            options: HandleOptions {
                files: opener.files(),
                ..options
            },
            opener,
            service_switch: PathBuf::from(SERVICE_SWITCH_FILE),
            opened: Mutex::new(HashMap::new()),
        }
    }

    /// Reads the service switch elsewhere.
    #[must_use]
    pub fn with_service_switch(mut self, file: &Path) -> Self {
        self.service_switch = file.to_path_buf();
        self
    }

    /// Gives a map a name; a later one of the same name takes its place.
    pub fn define(&mut self, name: impl Into<String>, definition: Definition) {
        self.definitions.insert(name.into(), definition);
    }

    /// The names, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.definitions.keys().map(String::as_str)
    }

    /// Opens a map. Blocks on disk where the class does, and up to the time of the options on a file that is being
    /// rebuilt; trouble with a file is kept and answers lookups.
    ///
    /// # Errors
    /// [`SpecError`]: the definition, or one that it leads to, cannot be used.
    pub fn open(&self, definition: &Definition) -> Result<Arc<OpenMap>, SpecError> {
        self.open_above(definition, &mut Vec::new()).map(Arc::new)
    }

    /// Opens the map of a name, once: whoever asks again shares it. `Ok(None)`: no map has this name.
    ///
    /// # Errors
    /// As [`MapSet::open`].
    pub fn open_named(&self, name: &str) -> Result<Option<Arc<OpenMap>>, SpecError> {
        self.named(name, &mut Vec::new())
    }

    /// As [`MapSet::open_named`], for a map upon those in `below`.
    fn named(
        &self,
        name: &str,
        below: &mut Vec<String>,
    ) -> Result<Option<Arc<OpenMap>>, SpecError> {
        let opened = || self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(map) = opened().get(name) {
            return Ok(Some(Arc::clone(map)));
        }
        let Some(definition) = self.definitions.get(name) else {
            return Ok(None);
        };
        let stacked = |reason| SpecError::Stacked {
            map: name.to_owned(),
            reason,
        };
        if below.iter().any(|other| other == name) {
            return Err(stacked("it leads to itself"));
        }
        if below.len() >= STACK_MAX {
            return Err(stacked("more than 12 maps one upon another"));
        }
        below.push(name.to_owned());
        let map = Arc::new(self.open_above(definition, below)?);
        below.pop();
        opened().insert(name.to_owned(), Arc::clone(&map));
        Ok(Some(map))
    }

    /// The maps that a sequence is made of.
    fn members<'n>(
        &self,
        definition: &Definition,
        names: impl Iterator<Item = &'n str>,
        below: &mut Vec<String>,
    ) -> Result<SequenceMap, SpecError> {
        let mut members = Vec::new();
        for name in names {
            if members.len() >= STACK_MAX {
                return Err(definition.bad_argument("more than 12 maps in a sequence"));
            }
            match self.named(name, below)? {
                Some(member) => members.push(member),
                None => {
                    return Err(SpecError::UnknownMember {
                        map: format!("{} {}", definition.class, definition.rest),
                        member: name.to_owned(),
                    });
                }
            }
        }
        Ok(SequenceMap::new(members))
    }

    fn open_above(
        &self,
        definition: &Definition,
        below: &mut Vec<String>,
    ) -> Result<OpenMap, SpecError> {
        let mut switches = definition.switches.clone();
        let tag = switches.temporary_tag.take();
        let mut options = self.options.clone();
        if let Some(limit) = switches.time_limit {
            options.lock_wait = limit;
        }
        let body = match definition.class {
            MapClass::File(_) => {
                let mut spec = definition.clone().into_file()?;
                // The tag is put on above, where sequences can do without it.
                spec.switches.temporary_tag = None;
                Body::File(Box::new(MapHandle::attach(&spec, options)))
            }
            MapClass::Implicit => Body::Class(Box::new(ImplicitMap::new(definition, options))),
            MapClass::Stab => Body::Class(Box::new(StabMap::new(
                Path::new(&definition.rest),
                switches.is_optional,
                switches.keeps_case,
                options,
            ))),
            MapClass::Null => Body::Class(Box::new(NullMap)),
            MapClass::Sequence => Body::Class(Box::new(self.members(
                definition,
                definition.rest.split_ascii_whitespace(),
                below,
            )?)),
            MapClass::Switch => {
                let names = switch::members(&self.service_switch, &definition.rest)
                    .map_err(|error| definition.bad_argument(error.to_string()))?;
                Body::Class(Box::new(self.members(
                    definition,
                    names.iter().map(String::as_str),
                    below,
                )?))
            }
            MapClass::Regex => Body::Class(Box::new(RegexMap::new(definition)?)),
            MapClass::User => Body::Class(Box::new(UserMap::new(definition)?)),
            MapClass::Program => Body::Class(Box::new(ProgramMap::new(definition)?)),
            _ => match self.opener.open(definition)? {
                Some(class) => Body::Class(class),
                None => {
                    return Err(SpecError::NotBuiltIn {
                        class: definition.class.name().into(),
                    });
                }
            },
        };
        Ok(OpenMap {
            label: definition.label(),
            class: definition.class,
            switches,
            tag,
            body,
        })
    }
}

enum Body {
    File(Box<MapHandle>),
    Class(Box<dyn ClassMap>),
}

/// A map in use, of any class.
pub struct OpenMap {
    label: PathBuf,
    class: MapClass,
    /// Without the tag.
    switches: Switches,
    /// `-T`.
    tag: Option<Vec<u8>>,
    body: Body,
}

impl OpenMap {
    /// What errors and logs call the map.
    pub fn label(&self) -> &Path {
        &self.label
    }

    /// The class it was opened as.
    pub fn class(&self) -> MapClass {
        self.class
    }

    /// Looks up a key. Blocks: as its class does; a file for one `stat`, or until a rebuilt one is loaded.
    ///
    /// # Errors
    /// [`MapError`] if the lookup did not work; never with -t, and with -T the tagged key is the answer instead.
    pub fn lookup(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        self.tagged(key, self.find(key, None))
    }

    /// As [`OpenMap::lookup`], with the arguments of `$@` that `%1` to `%9` in the value stand for.
    ///
    /// # Errors
    /// As [`OpenMap::lookup`].
    pub fn lookup_with(
        &self,
        key: &[u8],
        arguments: &[&[u8]],
    ) -> Result<Option<Vec<u8>>, MapError> {
        self.tagged(key, self.find(key, Some(arguments)))
    }

    /// As [`OpenMap::lookup`], but -T is passed over: for callers that tell trouble from answers.
    ///
    /// # Errors
    /// [`MapError`] if the lookup did not work; never with -t.
    pub fn ask(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        self.find(key, None)
    }

    /// Calls `f` with every pair as it is stored, but for a trailing NUL, until it breaks.
    ///
    /// # Errors
    /// [`MapError`] if the map cannot be read, or its keys are not known.
    pub fn each(&self, f: &mut PairVisitor<'_>) -> Result<(), MapError> {
        match &self.body {
            Body::File(handle) => handle.reader().each(f),
            Body::Class(class) => class.each(f),
        }
    }

    fn find(&self, key: &[u8], arguments: Option<&[&[u8]]>) -> Result<Option<Vec<u8>>, MapError> {
        match &self.body {
            Body::File(handle) => match arguments {
                None => handle.lookup(key),
                Some(arguments) => handle.lookup_with(key, arguments),
            },
            Body::Class(class) => {
                let raw = if class.takes_folded_keys() {
                    class.find(&folded(&self.switches, key))
                } else {
                    class.find(key)
                };
                finish(&self.switches, key, raw, arguments)
            }
        }
    }

    fn tagged(
        &self,
        key: &[u8],
        found: Result<Option<Vec<u8>>, MapError>,
    ) -> Result<Option<Vec<u8>>, MapError> {
        match (found, &self.tag) {
            (Err(_), Some(tag)) => Ok(Some([key, tag.as_slice()].concat())),
            (found, _) => found,
        }
    }
}

impl std::fmt::Debug for OpenMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenMap")
            .field("class", &self.class)
            .field("label", &self.label)
            .finish_non_exhaustive()
    }
}

/// The error of a class whose keys cannot be listed.
pub(crate) fn not_listed(class: MapClass) -> MapError {
    MapError::unsupported(
        Path::new(class.name()),
        "the keys of a map of this class cannot be listed",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(maps: &[(&str, &str)]) -> MapSet {
        let mut set = MapSet::new(Arc::new(NoOpener), HandleOptions::default());
        for (name, text) in maps {
            set.define(*name, Definition::parse(text).unwrap());
        }
        set
    }

    fn ask(set: &MapSet, text: &str, key: &str) -> Result<Option<String>, MapError> {
        let map = set.open(&Definition::parse(text).unwrap()).unwrap();
        map.lookup(key.as_bytes())
            .map(|found| found.map(|value| String::from_utf8(value).unwrap()))
    }

    #[test]
    fn a_sequence_takes_the_first_hit_and_remembers_trouble() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().display();
        std::fs::write(dir.path().join("one"), "a one:%0\nboth first\n").unwrap();
        std::fs::write(dir.path().join("two"), "B two\nboth second\n").unwrap();
        let broken = format!("hash -T<TMPF> {path}/missing");
        let set = set(&[
            ("one", &format!("text {path}/one")),
            ("two", &format!("text -a! {path}/two")),
            ("broken", &broken),
            ("gone", &format!("hash -t {path}/missing")),
            ("nested", "sequence broken two"),
        ]);
        let one_two = "sequence one two";
        assert_eq!(ask(&set, one_two, "both").unwrap().unwrap(), "first");
        assert_eq!(ask(&set, one_two, "b").unwrap().unwrap(), "two!");
        assert_eq!(ask(&set, one_two, "c").unwrap(), None);
        // A later hit counts; without one, trouble is trouble, and a member's own tag is not taken for a value.
        assert_eq!(ask(&set, "sequence nested", "b").unwrap().unwrap(), "two!");
        assert!(ask(&set, "sequence one nested", "c").is_err());
        let tagged = ask(&set, "sequence -T<TMPF> one nested", "C");
        assert_eq!(tagged.unwrap().unwrap(), "C<TMPF>");
        assert_eq!(ask(&set, "sequence -t one nested", "c").unwrap(), None);
        assert_eq!(ask(&set, "sequence gone one", "c").unwrap(), None);
        assert_eq!(ask(&set, &broken, "K").unwrap().unwrap(), "K<TMPF>");
        let map = set.open(&Definition::parse(&broken).unwrap()).unwrap();
        assert!(map.ask(b"K").is_err());
        assert_eq!(ask(&set, "null", "a").unwrap(), None);
    }

    #[test]
    fn members_that_lead_nowhere_or_in_circles_are_refused() {
        let set = set(&[
            ("a", "sequence b"),
            ("b", "sequence a"),
            ("c", "sequence nobody"),
            ("ok", "null"),
        ]);
        let open = |text: &str| set.open(&Definition::parse(text).unwrap()).map(|_| ());
        assert!(matches!(open("sequence a"), Err(SpecError::Stacked { .. })));
        let error = open("sequence c").unwrap_err();
        assert!(error.to_string().contains("\"nobody\""), "{error}");
        let many = format!("sequence{}", " ok".repeat(13));
        assert!(open(&many).is_err());
        assert!(matches!(
            open("socket unix:/x"),
            Err(SpecError::NotBuiltIn { .. })
        ));
    }

    #[test]
    fn a_named_map_is_opened_once() {
        let set = set(&[("n", "null")]);
        let first = set.open_named("n").unwrap().unwrap();
        let second = set.open_named("n").unwrap().unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        assert!(set.open_named("m").unwrap().is_none());
    }
}
