//! spoolck: is a spool sound, what is in it, its messages as files, and what can be saved of a damaged one.
//!
//! Reads without a lock, beside a running daemon too, and writes nothing to the spool it looks at. Blocks on disk.
//! Exit status 0, 1 and 2 say what was found; others are sysexits(3). Source: spoolck(8).

use std::fmt::Write as _;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{ArgGroup, Parser};
use diligence::clock::SystemClock;
use diligence::envelope::MessageId;
use diligence::spool::SpoolError;
use diligence::spool::inspect::{
    self, Fact, InspectError, SalvageError, Source, Value, Verdicts, Weight,
};
use diligence::spool::reader::SpoolReader;
use diligence_tools::export::{ExportError, export, sync_folder};
use diligence_tools::json::{Json, write_json};
use diligence_tools::setting::{
    EX_CANTCREAT, EX_DATAERR, EX_IOERR, EX_NOINPUT, EX_UNAVAILABLE, EX_USAGE, find_sandbox,
    load_config,
};

/// There was something to say that harms nothing.
const FOUND_NOTES: u8 = 1;
/// Something is damaged or lost.
const FOUND_DAMAGE: u8 = 2;
/// sysexits(3): another process is at work on it; try again.
const EX_TEMPFAIL: u8 = 75;
/// Largest drop file looked into.
const DROP_BYTES_MAX: u64 = 5 << 30;

const AFTER_HELP: &str = "\
Exit status: 0 sound; 1 something to say that harms nothing; 2 damage or loss; 64 usage; 65 no spool there;
66 the spool can't be read; 69 no such message; 73 a file can't be made; 74 reading or writing failed;
75 another process owns it (--salvage); 78 configuration.";

/// Verifies, explains, exports and salvages the spool of the mail transfer agent.
#[derive(Parser)]
#[command(name = "spoolck", version, after_help = AFTER_HELP)]
#[command(group = ArgGroup::new("work").args(["verify", "explain", "export", "salvage"]))]
struct Arguments {
    /// Read everything and say what is not as it was written (the default)
    #[arg(long)]
    verify: bool,
    /// Print every file, batch and frame
    #[arg(long)]
    explain: bool,
    /// Write live messages into this folder: ID.eml and ID.json for each
    #[arg(long, value_name = "OUTDIR")]
    export: Option<PathBuf>,
    /// Copy everything that can be read into a new spool in this folder, which must be empty or missing
    #[arg(long, value_name = "NEWDIR")]
    salvage: Option<PathBuf>,
    /// With --verify, --explain and --salvage: print JSON, one object a line
    #[arg(long, conflicts_with = "export")]
    json: bool,
    /// With --salvage: even while another process is at work on the spool
    #[arg(long, requires = "salvage")]
    live: bool,
    /// The spool's folder
    #[arg(short = 'd', long = "spool", value_name = "DIR")]
    spool: Option<PathBuf>,
    /// Take the spool's folder from this configuration file
    #[arg(short = 'C', value_name = "FILE", conflicts_with = "spool")]
    config: Option<std::ffi::OsString>,
    /// Take the spool's folder from this sandbox (also: DILIGENCE_SANDBOX)
    #[arg(long, value_name = "DIR", conflicts_with = "spool")]
    sandbox: Option<std::ffi::OsString>,
    /// With --export the queue ids of messages, all without; otherwise the spool's folder
    #[arg(value_name = "DIR|ID")]
    words: Vec<std::ffi::OsString>,
}

/// How the program ends before its time: a text for standard error, and a status.
struct Stop {
    text: String,
    exit: u8,
}

impl Stop {
    fn new(exit: u8, text: impl std::fmt::Display) -> Self {
        Self {
            text: text.to_string(),
            exit,
        }
    }
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::new(EX_IOERR, format!("standard output: {error}"))
    }
}

impl From<InspectError> for Stop {
    fn from(error: InspectError) -> Self {
        let exit = match &error {
            InspectError::NoSpool(_) => EX_DATAERR,
            InspectError::Spool(SpoolError::Io { operation, .. }) if *operation == "print" => {
                EX_IOERR
            }
            InspectError::Spool(_) => EX_NOINPUT,
        };
        Self::new(exit, error)
    }
}

impl From<ExportError> for Stop {
    fn from(error: ExportError) -> Self {
        let exit = match error.source.kind() {
            io::ErrorKind::InvalidData => FOUND_DAMAGE,
            io::ErrorKind::AlreadyExists
            | io::ErrorKind::NotFound
            | io::ErrorKind::PermissionDenied => EX_CANTCREAT,
            _ => EX_IOERR,
        };
        Self::new(exit, format!("{}: {}", error.path.display(), error.source))
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(exit) => ExitCode::from(exit),
        Err(stop) => {
            eprintln!("spoolck: {}", stop.text.trim_end());
            ExitCode::from(stop.exit)
        }
    }
}

fn run() -> Result<u8, Stop> {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) if !error.use_stderr() => {
            print!("{error}");
            return Ok(0);
        }
        Err(error) => return Err(Stop::new(EX_USAGE, error)),
    };
    let folder = folder(&arguments)?;
    if let Some(out) = &arguments.export {
        return export_messages(&folder, out, &arguments.words);
    }
    if let Some(new) = &arguments.salvage {
        let source = if arguments.live {
            Source::Live
        } else {
            Source::AtRest
        };
        return salvage(&folder, new, source, arguments.json);
    }
    if arguments.explain {
        return explain(&folder, arguments.json);
    }
    verify(&folder, arguments.json)
}

/// The spool to look at: the one named, or the configuration's.
fn folder(arguments: &Arguments) -> Result<PathBuf, Stop> {
    let words = match (&arguments.export, arguments.words.as_slice()) {
        (Some(_), _) | (None, []) => &[][..],
        (None, [one]) => std::slice::from_ref(one),
        (None, _) => return Err(Stop::new(EX_USAGE, "more than one folder")),
    };
    match (&arguments.spool, words) {
        (Some(_), [_, ..]) => Err(Stop::new(EX_USAGE, "the spool's folder is given twice")),
        (Some(folder), []) => Ok(folder.clone()),
        (None, [folder, ..]) => Ok(PathBuf::from(folder)),
        (None, []) => {
            let refused =
                |refusal: diligence_tools::setting::Refusal| Stop::new(refusal.exit, refusal.text);
            let sandbox = find_sandbox(arguments.sandbox.as_deref()).map_err(refused)?;
            let config =
                load_config(arguments.config.as_ref(), sandbox.as_deref()).map_err(refused)?;
            Ok(config.paths.queue_directory)
        }
    }
}

fn exit_of(weight: Weight) -> u8 {
    match weight {
        Weight::Fact => 0,
        Weight::Note => FOUND_NOTES,
        Weight::Damage => FOUND_DAMAGE,
    }
}

fn word_of(weight: Weight) -> &'static str {
    match weight {
        Weight::Fact => "ok",
        Weight::Note => "note",
        Weight::Damage => "damage",
    }
}

fn verify(folder: &Path, is_json: bool) -> Result<u8, Stop> {
    let verdicts = inspect::verify(folder, &SystemClock::new(), DROP_BYTES_MAX)?;
    let mut out = BufWriter::new(io::stdout().lock());
    if is_json {
        for finding in &verdicts.findings {
            print_json(
                &mut out,
                vec![
                    ("weight", Json::Text(word_of(finding.weight).to_owned())),
                    ("text", Json::Text(finding.text.clone())),
                ],
            )?;
        }
    } else {
        print_verdicts(&mut out, folder, &verdicts)?;
    }
    out.flush()?;
    Ok(exit_of(verdicts.weight()))
}

fn print_verdicts(out: &mut dyn Write, folder: &Path, verdicts: &Verdicts) -> io::Result<()> {
    writeln!(
        out,
        "{}: {}{}",
        folder.display(),
        match verdicts.weight() {
            Weight::Fact => "sound",
            Weight::Note => "sound; what follows harms nothing",
            Weight::Damage => "DAMAGED",
        },
        verdicts.owner.map_or_else(String::new, |pid| format!(
            " (process {pid} is at work on it)"
        ))
    )?;
    for finding in &verdicts.findings {
        let weight = word_of(finding.weight);
        writeln!(out, "  {weight:<7}{}", printable(&finding.text))?;
    }
    Ok(())
}

fn explain(folder: &Path, is_json: bool) -> Result<u8, Stop> {
    let mut out = BufWriter::new(io::stdout().lock());
    inspect::explain(folder, &SystemClock::new(), DROP_BYTES_MAX, &mut |fact| {
        if is_json {
            print_json(&mut out, fact_json(fact))
        } else {
            writeln!(out, "{}", fact_text(&fact))
        }
    })?;
    out.flush()?;
    Ok(0)
}

fn fact_json(fact: Fact) -> Vec<(&'static str, Json)> {
    let mut members = vec![("kind", Json::Text(fact.kind.to_owned()))];
    members.extend(fact.fields.into_iter().map(|(name, value)| {
        let value = match value {
            Value::Number(number) => Json::Number(number),
            Value::Text(text) => Json::Text(text),
            Value::Flag(flag) => Json::Flag(flag),
            Value::List(texts) => Json::List(texts.into_iter().map(Json::Text).collect()),
        };
        (name, value)
    }));
    members
}

fn fact_text(fact: &Fact) -> String {
    let mut text = format!("{:indent$}{}", "", fact.kind, indent = 2 * fact.depth);
    for (name, value) in &fact.fields {
        // Writing to a String does not fail.
        let _ = match value {
            Value::Number(number) => write!(text, " {name}={number}"),
            Value::Flag(flag) => write!(text, " {name}={}", if *flag { "yes" } else { "no" }),
            Value::Text(value) if !value.is_empty() && !value.contains([' ', '"']) => {
                write!(text, " {name}={}", printable(value))
            }
            Value::Text(value) => write!(text, " {name}=\"{}\"", printable(value)),
            Value::List(values) => write!(text, " {name}={}", printable(&values.join(","))),
        };
    }
    text
}

fn export_messages(folder: &Path, out: &Path, words: &[std::ffi::OsString]) -> Result<u8, Stop> {
    let mut wanted = Vec::new();
    for word in words {
        let id = word.to_str().and_then(MessageId::parse);
        let shown = word.to_string_lossy();
        wanted.push(id.ok_or_else(|| Stop::new(EX_USAGE, format!("{shown}: no queue id")))?);
    }
    let reader = SpoolReader::open(folder, &SystemClock::new())
        .map_err(|error| Stop::new(EX_NOINPUT, error))?;
    let all = reader.ids();
    if words.is_empty() {
        wanted = all;
    }
    make_folder(out)?;
    let mut exit = 0;
    let mut printed = BufWriter::new(io::stdout().lock());
    for id in wanted {
        let found = reader
            .message(id)
            .and_then(|message| Ok((reader.content(id)?, message)));
        match found {
            Ok((mut content, message)) => match export(out, &message, &mut content) {
                Ok(()) => writeln!(printed, "{id}")?,
                Err(error) if error.source.kind() == io::ErrorKind::InvalidData => {
                    eprintln!(
                        "spoolck: {id}: {}; not exported, try --salvage",
                        error.source
                    );
                    exit = FOUND_DAMAGE;
                }
                Err(error) => return Err(error.into()),
            },
            Err(SpoolError::NotFound(_)) => {
                eprintln!("spoolck: {id}: no such message");
                exit = exit.max(EX_UNAVAILABLE);
            }
            Err(error) => {
                eprintln!("spoolck: {id}: {error}; not exported, try --salvage");
                exit = FOUND_DAMAGE;
            }
        }
    }
    sync_folder(out)?;
    printed.flush()?;
    Ok(exit)
}

/// Makes a folder that may be there already.
fn make_folder(folder: &Path) -> Result<(), Stop> {
    let made = std::fs::DirBuilder::new().mode(0o700).create(folder);
    match made {
        Ok(()) => {
            let parent = folder.parent().filter(|p| !p.as_os_str().is_empty());
            sync_folder(parent.unwrap_or(Path::new(".")))?;
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        Err(error) => Err(Stop::new(
            EX_CANTCREAT,
            format!("{}: {error}", folder.display()),
        )),
    }
}

fn salvage(folder: &Path, new: &Path, source: Source, is_json: bool) -> Result<u8, Stop> {
    make_folder(new)?;
    let report =
        inspect::salvage(folder, new, Arc::new(SystemClock::new()), source).map_err(|error| {
            let exit = match &error {
                SalvageError::Old(InspectError::NoSpool(_)) => EX_DATAERR,
                SalvageError::Old(_) => EX_NOINPUT,
                SalvageError::Owned(_) => EX_TEMPFAIL,
                SalvageError::NotEmpty(_) => EX_CANTCREAT,
                SalvageError::New(_) => EX_IOERR,
            };
            Stop::new(exit, error)
        })?;
    let mut out = BufWriter::new(io::stdout().lock());
    let id_of = |id: Option<MessageId>| id.map_or(Json::Null, |id| Json::Text(id.to_string()));
    if is_json {
        for text in &report.remarks {
            let text = Json::Text(text.clone());
            print_json(
                &mut out,
                vec![("what", Json::Text("remark".to_owned())), ("text", text)],
            )?;
        }
        for (id, text) in &report.damaged {
            print_json(
                &mut out,
                vec![
                    ("what", Json::Text("held".to_owned())),
                    ("id", id_of(Some(*id))),
                    ("text", Json::Text(text.clone())),
                ],
            )?;
        }
        for lost in &report.lost {
            print_json(
                &mut out,
                vec![
                    ("what", Json::Text("lost".to_owned())),
                    ("id", id_of(lost.id)),
                    ("text", Json::Text(lost.what.clone())),
                ],
            )?;
        }
        print_json(
            &mut out,
            vec![
                ("what", Json::Text("saved".to_owned())),
                ("messages", Json::Number(report.saved)),
            ],
        )?;
    } else {
        for text in &report.remarks {
            writeln!(out, "found:  {}", printable(text))?;
        }
        for (id, text) in &report.damaged {
            writeln!(out, "held:   {id} {}", printable(text))?;
        }
        for lost in &report.lost {
            let id = lost.id.map_or_else(String::new, |id| format!("{id} "));
            writeln!(out, "lost:   {id}{}", printable(&lost.what))?;
        }
        let (saved, held) = (report.saved, report.damaged.len());
        writeln!(
            out,
            "{saved} messages are in {}, {held} of them damaged and held",
            new.display()
        )?;
        if folder.join("drop").is_dir() {
            writeln!(
                out,
                "drop files stay where they are: move {} along",
                folder.join("drop").display()
            )?;
        }
    }
    out.flush()?;
    Ok(if !report.lost.is_empty() {
        FOUND_DAMAGE
    } else if !report.damaged.is_empty() || !report.remarks.is_empty() {
        FOUND_NOTES
    } else {
        0
    })
}

fn print_json(out: &mut dyn Write, members: Vec<(&'static str, Json)>) -> io::Result<()> {
    let mut line = String::new();
    write_json(&mut line, &Json::Object(members));
    writeln!(out, "{line}")
}

/// A text without what would steer a terminal; it may come from anybody's mail.
fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            // Writing to a String does not fail.
            let _ = write!(shown, "\\u{{{:x}}}", u32::from(character));
        } else {
            shown.push(character);
        }
    }
    shown
}
