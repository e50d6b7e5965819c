//! makemap: builds lookup tables from text on standard input, adds to them, dumps them.
//!
//! A new map takes the old one's place whole and on disk, or not at all. Bad lines are reported with file and line,
//! the rest is built, and the exit status is 65. Blocks on disk and standard input. Source: makemap(8).

use diligence::config::Config;
use diligence_maps::source::{MakemapSyntax, SourceLine, is_alias_syntax, read_makemap};
use diligence_maps::{
    AliasMapBuilder, Batch, Definition, DirectMap, DuplicatePolicy, Inserted, Map, MapBuilder,
    MapError, MapKind, PublishError, PublishOptions, Safety, check_place, io_text,
};
use diligence_tools::arguments::{Given, Grammar, OptionsEnd, parse};
use diligence_tools::conversion::convert_map;
use diligence_tools::map_place::{open_text, open_written, warn_of_directories, written_kind};
use diligence_tools::progress::Progress;
use diligence_tools::setting::{
    EX_CANTCREAT, EX_DATAERR, EX_IOERR, Refusal, find_sandbox, load_config,
};
use diligence_tools::stop::{Stop, end};
use std::collections::HashSet;
use std::ffi::OsString;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const USAGE: &str = "Usage: makemap [-C cffile] [-N] [-c cachesize] [-D commentchar]
               [-d] [-e] [-f] [-i type] [-l] [-o] [-r] [-s] [-t delimiter]
               [-u] [-v] type mapname
       makemap ... [--aliases] [--sandbox dir] type mapname
       makemap [-N] [-d] [-r] [-s] --convert type:mapname type:mapname
";

const GRAMMAR: Grammar<'static> = Grammar {
    flags: "Ndeflorsuv",
    values: "CcDit",
    long_flags: &["aliases", "convert"],
    long_values: &["sandbox"],
    end: OptionsEnd::DashDash,
};

/// Bytes of standard input read at once.
const INPUT_BUFFER_BYTES: usize = 1 << 18;

/// An error of standard input or output.
fn broken(error: io::Error) -> Stop {
    Stop::new("makemap", EX_IOERR, io_text(&error))
}

fn refused(refusal: Refusal) -> Stop {
    Stop::refused("makemap", &refusal)
}

fn usage(text: &str) -> Stop {
    Stop::usage("makemap", text, USAGE)
}

/// Whether the source is read as an alias file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Aliases {
    /// By the map's name and the look of the source.
    Recognise,
    /// `--aliases`.
    Always,
    /// A switch was given that only makes sense for makemap's own syntax.
    Never,
}

/// What the command line asks for.
struct Job {
    config_file: Option<OsString>,
    sandbox: Option<OsString>,
    class: OsString,
    fallback_class: Option<OsString>,
    name: PathBuf,
    syntax: MakemapSyntax,
    aliases: Aliases,
    with_nul: bool,
    policy: DuplicatePolicy,
    keeps_old: bool,
    ignores_safety: bool,
    dumps: bool,
    /// `--convert`: class and name are two maps, each a specification.
    converts: bool,
    is_verbose: bool,
}

fn main() -> ExitCode {
    match run() {
        Ok(exit) => ExitCode::from(exit),
        Err(stop) => end(Err(stop)),
    }
}

fn run() -> Result<u8, Stop> {
    let Some(job) = read_command_line()? else {
        for kind in MapKind::writable() {
            println!("{kind}");
        }
        println!("implicit");
        return Ok(0);
    };
    if job.converts {
        return convert(&job);
    }
    let sandbox = find_sandbox(job.sandbox.as_deref()).map_err(refused)?;
    let (kind, safety) = find_kind(&job, sandbox.as_deref())?;
    let dest = kind.file_of(&job.name);
    warn_of_directories(&dest, safety, sandbox.as_deref());
    if job.dumps {
        return dump(&job, kind, &dest);
    }
    let options = publish_options(&job);
    check_place(&dest, &options)
        .map_err(|error| cannot_open(&job, kind.name(), &error.detail()))?;
    let old = match job.keeps_old {
        true => Some(open_old(&job, kind, &dest)?),
        false => None,
    };
    let progress = Progress::new(job.is_verbose);
    let mut input = progress.watch(BufReader::with_capacity(
        INPUT_BUFFER_BYTES,
        io::stdin().lock(),
    ));
    let may_be_aliases =
        job.aliases == Aliases::Recognise && base_name(&job.name).starts_with(b"aliases");
    if may_be_aliases || job.aliases == Aliases::Always {
        let mut source = Vec::new();
        input.read_to_end(&mut source).map_err(broken)?;
        if job.aliases == Aliases::Always || is_alias_syntax(&source) {
            return build_aliases(&job, kind, &dest, &options, old, &source);
        }
        let mut rest = source.as_slice();
        return build(&job, kind, &dest, &options, old, &mut rest);
    }
    build(&job, kind, &dest, &options, old, &mut input)
}

/// `None`: `-l` was given.
fn read_command_line() -> Result<Option<Job>, Stop> {
    let parsed = parse(&GRAMMAR, std::env::args_os().skip(1)).map_err(|text| usage(&text))?;
    let mut job = Job {
        config_file: None,
        sandbox: None,
        class: OsString::new(),
        fallback_class: None,
        name: PathBuf::new(),
        syntax: MakemapSyntax::default(),
        aliases: Aliases::Recognise,
        with_nul: false,
        policy: DuplicatePolicy::KeepFirst,
        keeps_old: false,
        ignores_safety: false,
        dumps: false,
        converts: false,
        is_verbose: false,
    };
    let (mut lists, mut wants_aliases, mut is_plain) = (false, false, false);
    let mut is_shaped = false;
    let (mut replaces, mut duplicates) = (false, false);
    for option in parsed.options {
        // Switches that shape makemap's own syntax or keys decide that the source is in it.
        is_plain |= matches!(option, Given::Letter('D' | 'd' | 'e' | 'f' | 't', _));
        is_shaped |= matches!(
            option,
            Given::Letter('C' | 'c' | 'D' | 'e' | 'f' | 'i' | 'o' | 't' | 'u' | 'v', _)
        );
        match option {
            Given::Letter('C', file) => job.config_file = file,
            Given::Letter('N', _) => job.with_nul = true,
            // There is no cache to size: the whole map is laid out in memory and written once, in order.
            Given::Letter('c', _) => {}
            Given::Letter('D', value) => job.syntax.comment = first_byte(value).unwrap_or(0),
            Given::Letter('d', _) => duplicates = true,
            Given::Letter('e', _) => job.syntax.allows_empty = true,
            Given::Letter('f', _) => job.syntax.folds_keys = false,
            Given::Letter('i', class) => job.fallback_class = class,
            Given::Letter('l', _) => lists = true,
            Given::Letter('o', _) => job.keeps_old = true,
            Given::Letter('r', _) => replaces = true,
            Given::Letter('s', _) => job.ignores_safety = true,
            Given::Letter('t', value) => match first_byte(value) {
                None => eprintln!("Invalid separator"),
                delimiter => job.syntax.delimiter = delimiter,
            },
            Given::Letter('u', _) => job.dumps = true,
            Given::Letter('v', _) => job.is_verbose = true,
            Given::Long(name, _) if name == "aliases" => wants_aliases = true,
            Given::Long(name, _) if name == "convert" => job.converts = true,
            Given::Long(_, dir) => job.sandbox = dir,
            Given::Letter(letter, _) => {
                return Err(usage(&format!("invalid option -- '{letter}'")));
            }
        }
    }
    if wants_aliases && is_plain {
        return Err(usage("--aliases cannot be used with -D, -d, -e, -f or -t"));
    }
    if job.converts && (is_shaped || wants_aliases || lists) {
        return Err(usage("--convert takes -N, -d, -r and -s only"));
    }
    if wants_aliases {
        job.aliases = Aliases::Always;
    } else if is_plain {
        job.aliases = Aliases::Never;
    }
    if duplicates {
        job.policy = DuplicatePolicy::KeepAll;
    } else if replaces {
        job.policy = DuplicatePolicy::ReplaceWithLast;
    }
    if lists {
        return Ok(None);
    }
    let [class, name] = parsed.words.as_slice() else {
        return Err(usage(""));
    };
    job.class = class.clone();
    job.name = PathBuf::from(name);
    Ok(Some(job))
}

/// The character that -D or -t name: the first one, or a tab written `\t`.
fn first_byte(value: Option<OsString>) -> Option<u8> {
    match value.unwrap_or_default().as_bytes() {
        [b'\\', b't'] => Some(b'\t'),
        bytes => bytes.first().copied(),
    }
}

/// `-s` lets links be followed.
fn publish_options(job: &Job) -> PublishOptions {
    PublishOptions {
        refuses_links: !job.ignores_safety,
        ..PublishOptions::default()
    }
}

/// `--convert`: every pair of one map into another.
fn convert(job: &Job) -> Result<u8, Stop> {
    let sandbox = find_sandbox(job.sandbox.as_deref()).map_err(refused)?;
    let config = load_config(None, sandbox.as_deref()).map_err(refused)?;
    let (from, to) = (job.class.to_string_lossy(), job.name.to_string_lossy());
    let options = publish_options(job);
    let converted = convert_map(&config, &from, &to, job.policy, job.with_nul, &options);
    match converted {
        Ok(duplicates) => {
            for key in &duplicates {
                eprintln!("makemap: {from}: key {key}: duplicate key");
            }
            Ok(if duplicates.is_empty() { 0 } else { EX_DATAERR })
        }
        Err(refusal) => Err(refused(refusal)),
    }
}

/// The kind of map asked for, and which directories are warned of: by name, or as `cf` what the configuration says of the
/// map at this place, else what -i names.
fn find_kind(job: &Job, sandbox: Option<&Path>) -> Result<(MapKind, Safety), Stop> {
    let class = job.class.to_string_lossy();
    let named = |class: &str| written_kind(class).map_err(|text| cannot_open(job, class, text));
    if class != "cf" {
        // Read to find it wrong, too: a tool that is told of a configuration does not pass over one that is broken.
        let safety = match &job.config_file {
            Some(file) => load_config(Some(file), sandbox)
                .map_err(refused)?
                .route
                .dont_blame
                .map_safety(),
            None => Safety::default(),
        };
        return Ok((named(&class)?, safety));
    }
    let config = load_config(job.config_file.as_ref(), sandbox).map_err(refused)?;
    let safety = config.route.dont_blame.map_safety();
    match (class_of_map(&config, &job.name), &job.fallback_class) {
        (Some(class), _) => Ok((named(&class)?, safety)),
        (None, Some(class)) => Ok((named(&class.to_string_lossy())?, safety)),
        (None, None) => {
            let (name, file) = (job.name.display(), config.file.display());
            let text = format!("mapfile {name}: not found in {file}");
            Err(Stop::new("makemap", EX_DATAERR, text))
        }
    }
}

/// The class of the map that the configuration has at this place.
fn class_of_map(config: &Config, name: &Path) -> Option<String> {
    let route = &config.route;
    let aliases = route
        .alias_files
        .iter()
        .map(|spec| Definition::parse_alias(spec));
    let tables = [
        &route.access_db,
        &route.virtusertable,
        &route.mailertable,
        &route.domaintable,
        &route.masquerade.genericstable,
    ];
    let texts = tables.into_iter().flatten().chain(route.maps.values());
    let place = std::path::absolute(name).ok()?;
    aliases
        .chain(texts.map(|text| Definition::parse(text)))
        .flatten()
        .find(|definition| {
            definition.class.is_of_a_file()
                && std::path::absolute(&definition.rest).is_ok_and(|file| file == place)
        })
        .map(|definition| definition.class.name().to_owned())
}

fn base_name(name: &Path) -> &[u8] {
    name.file_name().map_or(&[], |name| name.as_bytes())
}

fn cannot_open(job: &Job, class: &str, detail: &str) -> Stop {
    let name = job.name.display();
    let text = format!("error opening type {class} map {name}: {detail}");
    Stop::new("makemap", EX_CANTCREAT, text)
}

fn publish_failed(job: &Job, kind: MapKind, error: &PublishError) -> Stop {
    cannot_open(job, kind.name(), &error.detail())
}

fn open_old(job: &Job, kind: MapKind, dest: &Path) -> Result<DirectMap, Stop> {
    open_written(dest, kind, job.ignores_safety)
        .map_err(|error| cannot_open(job, kind.name(), &open_text(&error)))
}

fn dump(job: &Job, kind: MapKind, dest: &Path) -> Result<u8, Stop> {
    let map = open_old(job, kind, dest)?;
    let separator = job.syntax.delimiter.unwrap_or(b'\t');
    let mut out = BufWriter::with_capacity(INPUT_BUFFER_BYTES, io::stdout().lock());
    let mut failed = Ok(());
    let strip = |bytes: &[u8]| bytes.strip_suffix(b"\0").unwrap_or(bytes).to_vec();
    let listed = map.each(&mut |key, value| {
        let mut line = strip(key);
        line.push(separator);
        line.extend_from_slice(&strip(value));
        line.push(b'\n');
        match out.write_all(&line) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Err(error);
                ControlFlow::Break(())
            }
        }
    });
    failed.and_then(|()| out.flush()).map_err(broken)?;
    match listed {
        Ok(()) => Ok(0),
        Err(error) => Err(cannot_open(job, kind.name(), &open_text(&error))),
    }
}

/// An entry that cannot be taken, or standard output that cannot be written.
enum Trouble {
    Io(io::Error),
    Map(MapError),
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

fn build(
    job: &Job,
    kind: MapKind,
    dest: &Path,
    options: &PublishOptions,
    old: Option<DirectMap>,
    input: &mut dyn io::BufRead,
) -> Result<u8, Stop> {
    let failed = |error: &MapError| cannot_open(job, kind.name(), &open_text(error));
    let mut entries = NewEntries::new(kind, job.policy, old).map_err(|error| failed(&error))?;
    let mut out = BufWriter::new(io::stdout().lock());
    let mut loader = Loader {
        job,
        entries: &mut entries,
        batch: Batch::default(),
        lines: Vec::new(),
        exit: 0,
    };
    let (mut key_buffer, mut value_buffer) = (Vec::new(), Vec::new());
    let read = read_makemap::<Trouble>(input, &job.syntax, &mut |line, content| {
        match content {
            SourceLine::Fault(fault) => {
                // What is said comes in the order of the lines.
                loader.flush()?;
                loader.complain(line, &fault.to_string());
            }
            SourceLine::Entry { key, value, .. } => {
                if job.is_verbose {
                    out.write_all(b"key=`")?;
                    out.write_all(key)?;
                    out.write_all(b"', val=`")?;
                    out.write_all(value)?;
                    out.write_all(b"'\n")?;
                }
                if job.with_nul {
                    terminate(&mut key_buffer, key);
                    terminate(&mut value_buffer, value);
                    loader.entry(line, &key_buffer, &value_buffer)?;
                } else {
                    loader.entry(line, key, value)?;
                }
            }
        }
        Ok(())
    });
    match read.and_then(|()| loader.flush()) {
        Ok(()) => {}
        Err(Trouble::Map(error)) => return Err(failed(&error)),
        Err(Trouble::Io(error)) => return Err(broken(error)),
    }
    let exit = loader.exit;
    out.flush().map_err(broken)?;
    entries
        .builder
        .publish(dest, options)
        .map_err(|error| publish_failed(job, kind, &error))?;
    Ok(exit)
}

/// Entries on their way into a map, a batch at a time, and what is said of their lines.
struct Loader<'a> {
    job: &'a Job,
    entries: &'a mut NewEntries,
    batch: Batch,
    /// The line of each entry of the batch.
    lines: Vec<u64>,
    exit: u8,
}

impl Loader<'_> {
    fn entry(&mut self, line: u64, key: &[u8], value: &[u8]) -> Result<(), Trouble> {
        self.batch.push(key, value);
        self.lines.push(line);
        if self.batch.is_full() {
            self.flush()?;
        }
        Ok(())
    }

    /// Inserts what has been gathered.
    fn flush(&mut self) -> Result<(), Trouble> {
        let mut duplicates = Vec::new();
        let inserted = self.entries.insert_batch(&self.batch, &mut |entry, what| {
            if what == Inserted::KeptFirst {
                duplicates.push(entry);
            }
        });
        for entry in duplicates {
            let line = self.lines.get(entry).copied().unwrap_or(0);
            let (key, _) = self.batch.iter().nth(entry).unwrap_or_default();
            let key = if self.job.with_nul {
                key.strip_suffix(b"\0").unwrap_or(key)
            } else {
                key
            };
            let text = format!("key {}: duplicate key", String::from_utf8_lossy(key));
            self.complain(line, &text);
        }
        self.batch.clear();
        self.lines.clear();
        inserted.map_err(Trouble::Map)
    }

    fn complain(&mut self, line: u64, text: &str) {
        self.exit = EX_DATAERR;
        eprintln!("makemap: {}: line {line}: {text}", self.job.name.display());
    }
}

/// The entries of the map to be written, and what -o, -d and -r make of keys that are there already.
struct NewEntries {
    builder: MapBuilder,
    /// The keys of an old map with several values for some: it keeps them all, while a new value of a key counts as -d
    /// and -r say.
    kept: Option<HashSet<Vec<u8>>>,
}

impl NewEntries {
    /// `old` is what -o adds to.
    fn new(
        kind: MapKind,
        policy: DuplicatePolicy,
        old: Option<DirectMap>,
    ) -> Result<Self, MapError> {
        // Its shared lock goes with it, before the exclusive one is wanted.
        let Some(old) = old else {
            return Ok(Self {
                builder: MapBuilder::new(kind, policy)?,
                kept: None,
            });
        };
        if policy == DuplicatePolicy::KeepAll || !has_duplicates(&old)? {
            let mut builder = MapBuilder::new(kind, policy)?;
            builder.insert_all(&old)?;
            return Ok(Self {
                builder,
                kept: None,
            });
        }
        let mut builder = MapBuilder::new(kind, DuplicatePolicy::KeepAll)?;
        builder.insert_all(&old)?;
        let mut keys = HashSet::new();
        builder.each(&mut |key, _| {
            keys.insert(key.to_vec());
            ControlFlow::Continue(())
        });
        Ok(Self {
            builder,
            // To replace is to add where several values are kept, as it is to libdb.
            kept: (policy == DuplicatePolicy::KeepFirst).then_some(keys),
        })
    }

    /// Inserts a batch; `f` is told what became of each entry, by its number.
    fn insert_batch(
        &mut self,
        batch: &Batch,
        f: &mut dyn FnMut(usize, Inserted),
    ) -> Result<(), MapError> {
        let Some(kept) = &mut self.kept else {
            return self.builder.insert_batch(batch, f);
        };
        for (number, (key, value)) in batch.iter().enumerate() {
            let inserted = match kept.insert(key.to_vec()) {
                true => self.builder.insert(key, value)?,
                false => Inserted::KeptFirst,
            };
            f(number, inserted);
        }
        Ok(())
    }
}

/// Whether a map is one of several values a key: made for them, or, where files of the kind need not be, holding them.
fn has_duplicates(map: &DirectMap) -> Result<bool, MapError> {
    if map.kind() != MapKind::Cdb {
        return Ok(map.allows_duplicates());
    }
    let (mut keys, mut is_repeated) = (HashSet::new(), false);
    map.each(&mut |key, _| {
        is_repeated = !keys.insert(key.to_vec());
        match is_repeated {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    })?;
    Ok(is_repeated)
}

fn terminate(buffer: &mut Vec<u8>, bytes: &[u8]) {
    buffer.clear();
    buffer.extend_from_slice(bytes);
    buffer.push(0);
}

fn build_aliases(
    job: &Job,
    kind: MapKind,
    dest: &Path,
    options: &PublishOptions,
    old: Option<DirectMap>,
    source: &[u8],
) -> Result<u8, Stop> {
    let failed = |error: &MapError| cannot_open(job, kind.name(), &open_text(error));
    let mut builder = AliasMapBuilder::new(kind, false).map_err(|error| failed(&error))?;
    if let Some(old) = old {
        builder.keep(&old).map_err(|error| failed(&error))?;
    }
    let name = job.name.display();
    if job.is_verbose {
        println!(
            "makemap: {name}: the source is an alias file; building an alias map as newaliases does"
        );
    }
    let is_quiet = job.policy == DuplicatePolicy::ReplaceWithLast;
    // Which domains are this host's is not makemap's to know: a name with one is an error, as it is for a stranger's.
    builder
        .read(&job.name, source, &|_| false, &mut |remark| {
            if !(is_quiet && remark.severity == diligence_maps::alias::Severity::Warning) {
                eprintln!("makemap: {remark}");
            }
        })
        .map_err(|error| failed(&error))?;
    let totals = builder.totals();
    builder
        .publish(dest, options)
        .map_err(|error| publish_failed(job, kind, &error))?;
    if job.is_verbose {
        println!("{name}: {totals}");
    }
    Ok(if totals.errors > 0 { EX_DATAERR } else { 0 })
}
