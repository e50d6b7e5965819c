//! makemap: builds lookup tables from text on standard input, adds to them, dumps them.
//!
//! A new map takes the old one's place whole and on disk, or not at all. Bad lines are reported with file and line,
//! the rest is built, and the exit status is 65. Blocks on disk and standard input. Source: makemap(8).

use diligence_maps::source::{MakemapSyntax, SourceLine, is_alias_syntax, read_makemap};
use diligence_maps::{
    AliasMapBuilder, DirectMap, DuplicatePolicy, Inserted, Map, MapBuilder, MapError, MapKind,
    MapSpec, PublishError, PublishOptions, SpecError, check_place, io_text, open_direct,
};
use diligence_tools::arguments::{Given, Grammar, parse};
use diligence_tools::conversion::convert_map;
use diligence_tools::progress::Progress;
use diligence_tools::setting::{
    EX_CANTCREAT, EX_DATAERR, EX_IOERR, EX_USAGE, Refusal, find_sandbox, load_config,
};
use std::ffi::OsString;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str = "Usage: makemap [-C cffile] [-N] [-c cachesize] [-D commentchar]
               [-d] [-e] [-f] [-i type] [-l] [-o] [-r] [-s] [-t delimiter]
               [-u] [-v] [--aliases] [--sandbox dir] type mapname
       makemap [-N] [-d] [-r] [-s] --convert type:mapname type:mapname
";

const GRAMMAR: Grammar<'static> = Grammar {
    flags: "Ndeflorsuv",
    values: "CcDit",
    long_flags: &["aliases", "convert"],
    long_values: &["sandbox"],
};

/// Bytes of standard input read at once.
const INPUT_BUFFER_BYTES: usize = 1 << 18;
/// How long a map that is being rebuilt is waited for when it is dumped or added to.
const LOCK_WAIT: Duration = Duration::from_secs(30);

/// How the program ends before its time: a text for standard error, and a status.
struct Stop {
    text: String,
    exit: u8,
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self {
            text: format!("makemap: {}\n", refusal.text),
            exit: refusal.exit,
        }
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self {
            text: format!("makemap: {}\n", io_text(&error)),
            exit: EX_IOERR,
        }
    }
}

fn usage(text: &str) -> Stop {
    let text = match text {
        "" => USAGE.to_owned(),
        text => format!("makemap: {text}\n{USAGE}"),
    };
    Stop {
        text,
        exit: EX_USAGE,
    }
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
    implicit_class: Option<OsString>,
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
        Err(stop) => {
            eprint!("{}", stop.text);
            ExitCode::from(stop.exit)
        }
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
    let kind = find_kind(&job)?;
    let dest = kind.file_of(&job.name);
    if job.dumps {
        return dump(&job, kind, &dest);
    }
    let options = PublishOptions {
        refuses_links: !job.ignores_safety,
        ..PublishOptions::default()
    };
    if !job.ignores_safety {
        warn_of_directory(&dest);
    }
    check_place(&dest, &options)
        .map_err(|error| cannot_open(&job, kind.name(), &error.detail()))?;
    let old = match job.keeps_old {
        true => open_old(&job, kind, &dest)?,
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
        input.read_to_end(&mut source)?;
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
        implicit_class: None,
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
            Given::Letter('D', value) => job.syntax.comment = one_byte('D', value)?,
            Given::Letter('d', _) => duplicates = true,
            Given::Letter('e', _) => job.syntax.allows_empty = true,
            Given::Letter('f', _) => job.syntax.folds_keys = false,
            Given::Letter('i', class) => job.implicit_class = class,
            Given::Letter('l', _) => lists = true,
            Given::Letter('o', _) => job.keeps_old = true,
            Given::Letter('r', _) => replaces = true,
            Given::Letter('s', _) => job.ignores_safety = true,
            Given::Letter('t', value) => job.syntax.delimiter = Some(one_byte('t', value)?),
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
    if replaces && duplicates {
        return Err(usage("-d and -r cannot be used together"));
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

fn one_byte(letter: char, value: Option<OsString>) -> Result<u8, Stop> {
    match value.unwrap_or_default().as_bytes() {
        [b'\\', b't'] => Ok(b'\t'),
        [byte] => Ok(*byte),
        _ => Err(usage(&format!("option -{letter} takes one character"))),
    }
}

/// `--convert`: every pair of one map into another.
fn convert(job: &Job) -> Result<u8, Stop> {
    let sandbox = find_sandbox(job.sandbox.as_deref())?;
    let config = load_config(None, sandbox.as_deref())?;
    let (from, to) = (job.class.to_string_lossy(), job.name.to_string_lossy());
    let options = PublishOptions {
        refuses_links: !job.ignores_safety,
        ..PublishOptions::default()
    };
    let converted = convert_map(&config, &from, &to, job.policy, job.with_nul, &options);
    match converted {
        Ok(duplicates) => {
            for key in &duplicates {
                eprintln!("makemap: {from}: key {key}: duplicate key");
            }
            Ok(if duplicates.is_empty() { 0 } else { EX_DATAERR })
        }
        Err(refusal) => Err(refusal.into()),
    }
}

/// The kind of map asked for: by name, as `implicit` (what -i says, else hash), or as `cf` (what the configuration says
/// of the map of this name).
fn find_kind(job: &Job) -> Result<MapKind, Stop> {
    let sandbox = find_sandbox(job.sandbox.as_deref())?;
    let class = job.class.to_string_lossy();
    let named = |class: &str| match MapKind::from_name(class) {
        Ok(kind) if kind.is_writable() => Ok(kind),
        Ok(_) => Err(cannot_open(job, class, "maps of this class are not built")),
        Err(SpecError::NotBuiltIn { .. }) => {
            Err(cannot_open(job, class, "this class is not built in"))
        }
        Err(_) => Err(cannot_open(job, class, "Unknown database type")),
    };
    if class != "cf" {
        if job.config_file.is_some() {
            // Read to find it wrong: a tool that is told of a configuration does not pass over one that is broken.
            load_config(job.config_file.as_ref(), sandbox.as_deref())?;
        }
        return match (&*class, &job.implicit_class) {
            ("implicit", None) => Ok(MapKind::Hash),
            ("implicit", Some(class)) => named(&class.to_string_lossy()),
            (class, _) => named(class),
        };
    }
    let config = load_config(job.config_file.as_ref(), sandbox.as_deref())?;
    let aliases = config
        .route
        .alias_files
        .iter()
        .map(|spec| MapSpec::parse_alias(spec));
    let access = config
        .route
        .access_db
        .iter()
        .map(|spec| MapSpec::parse(spec));
    for spec in aliases.chain(access).flatten() {
        if spec.name == job.name
            || std::path::absolute(&job.name).is_ok_and(|name| name == spec.name)
        {
            return named(spec.kind.name());
        }
    }
    Err(cannot_open(job, "cf", "the configuration has no such map"))
}

fn base_name(name: &Path) -> &[u8] {
    name.file_name().map_or(&[], |name| name.as_bytes())
}

fn cannot_open(job: &Job, class: &str, detail: &str) -> Stop {
    Stop {
        text: format!(
            "makemap: error opening type {class} map {}: {detail}\n",
            job.name.display()
        ),
        exit: EX_CANTCREAT,
    }
}

fn publish_failed(job: &Job, kind: MapKind, error: &PublishError) -> Stop {
    cannot_open(job, kind.name(), &error.detail())
}

/// Says what Sendmail says of a directory in which anybody may replace the map.
fn warn_of_directory(dest: &Path) {
    let dir = match dest.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    if let Ok(meta) = std::fs::metadata(dir) {
        let mode = meta.permissions().mode();
        if mode & 0o002 != 0 {
            eprintln!("WARNING: World writable directory {}", dir.display());
        } else if mode & 0o020 != 0 {
            eprintln!("WARNING: Group writable directory {}", dir.display());
        }
    }
}

/// Opens the map as the asked-for kind; a file of the other kind is refused as Sendmail's tools refuse it.
fn open_as(job: &Job, kind: MapKind, dest: &Path) -> Result<DirectMap, MapError> {
    let map = open_direct(dest, LOCK_WAIT)?;
    if map.kind() != kind {
        return Err(MapError::Unsupported {
            path: job.name.clone(),
            detail: format!("Invalid argument (the file is of type {})", map.kind()),
        });
    }
    Ok(map)
}

fn open_old(job: &Job, kind: MapKind, dest: &Path) -> Result<Option<DirectMap>, Stop> {
    match open_as(job, kind, dest) {
        Ok(map) => Ok(Some(map)),
        Err(error) if error.is_missing() => Ok(None),
        Err(error) => Err(cannot_open(job, kind.name(), error.detail())),
    }
}

fn dump(job: &Job, kind: MapKind, dest: &Path) -> Result<u8, Stop> {
    let map =
        open_as(job, kind, dest).map_err(|error| cannot_open(job, kind.name(), error.detail()))?;
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
    failed.and_then(|()| out.flush())?;
    match listed {
        Ok(()) => Ok(0),
        Err(error) => Err(cannot_open(job, kind.name(), error.detail())),
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
    let failed = |error: &MapError| cannot_open(job, kind.name(), error.detail());
    let mut builder = MapBuilder::new(kind, job.policy).map_err(|error| failed(&error))?;
    // Its shared lock goes with it, before the exclusive one is wanted.
    if let Some(old) = old {
        builder.insert_all(&old).map_err(|error| failed(&error))?;
    }
    let mut out = BufWriter::new(io::stdout().lock());
    let mut exit = 0;
    let (mut key_buffer, mut value_buffer) = (Vec::new(), Vec::new());
    let name = job.name.display();
    let read = read_makemap::<Trouble>(input, &job.syntax, &mut |line, content| {
        let mut complain = |text: &str| {
            exit = EX_DATAERR;
            eprintln!("makemap: {name}: line {line}: {text}");
        };
        match content {
            SourceLine::Fault(fault) => complain(&fault.to_string()),
            SourceLine::Entry { key, value, .. } => {
                if job.is_verbose {
                    out.write_all(b"key=`")?;
                    out.write_all(key)?;
                    out.write_all(b"', val=`")?;
                    out.write_all(value)?;
                    out.write_all(b"'\n")?;
                }
                let inserted = if job.with_nul {
                    terminate(&mut key_buffer, key);
                    terminate(&mut value_buffer, value);
                    builder.insert(&key_buffer, &value_buffer)
                } else {
                    builder.insert(key, value)
                };
                if inserted.map_err(Trouble::Map)? == Inserted::KeptFirst {
                    complain(&format!(
                        "key {}: duplicate key",
                        String::from_utf8_lossy(key)
                    ));
                }
            }
        }
        Ok(())
    });
    match read {
        Ok(()) => {}
        Err(Trouble::Map(error)) => return Err(failed(&error)),
        Err(Trouble::Io(error)) => return Err(error.into()),
    }
    out.flush()?;
    builder
        .publish(dest, options)
        .map_err(|error| publish_failed(job, kind, &error))?;
    Ok(exit)
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
    let failed = |error: &MapError| cannot_open(job, kind.name(), error.detail());
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
