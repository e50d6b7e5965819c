//! editmap: looks up, sets or removes one key of a map.
//!
//! The changed map takes the old one's place whole and on disk, or not at all. Blocks on disk, and on the lock of a
//! program that is rebuilding the map. Source: editmap(8).

use diligence_maps::{
    DirectMap, DuplicatePolicy, Map, MapBuilder, MapError, MapKind, PublishOptions, Safety,
};
use diligence_tools::arguments::{Given, Grammar, OptionsEnd, parse};
use diligence_tools::map_place::{open_text, open_written, warn_of_directories, written_kind};
use diligence_tools::setting::{EX_CANTCREAT, EX_IOERR, EX_UNAVAILABLE, find_sandbox, load_config};
use diligence_tools::stop::{Stop, end};
use std::ffi::OsString;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str =
    "Usage: editmap [-C cffile] [-N] [-f] [-q|-u|-x] maptype mapname key [ \"value ...\" ]
       editmap ... [--sandbox dir] maptype mapname key [ \"value ...\" ]
";

const GRAMMAR: Grammar<'static> = Grammar {
    flags: "Nfqux",
    values: "C",
    long_flags: &[],
    long_values: &["sandbox"],
    end: OptionsEnd::DashDash,
};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Query,
    Update,
    Remove,
}

fn main() -> ExitCode {
    end(run())
}

fn usage(text: &str) -> Stop {
    Stop::usage("editmap", text, USAGE)
}

fn stop(exit: u8, text: impl std::fmt::Display) -> Stop {
    Stop::new("editmap", exit, text)
}

fn run() -> Result<(), Stop> {
    let parsed = parse(&GRAMMAR, std::env::args_os().skip(1)).map_err(|text| usage(&text))?;
    let mut action = None;
    let (mut with_nul, mut folds, mut config_file, mut sandbox) =
        (false, true, None, None::<OsString>);
    for option in parsed.options {
        let wanted = match option {
            Given::Letter('q', _) => Action::Query,
            Given::Letter('u', _) => Action::Update,
            Given::Letter('x', _) => Action::Remove,
            Given::Letter('N', _) => {
                with_nul = true;
                continue;
            }
            Given::Letter('f', _) => {
                folds = false;
                continue;
            }
            Given::Letter(_, file) => {
                config_file = file;
                continue;
            }
            Given::Long(_, dir) => {
                sandbox = dir;
                continue;
            }
        };
        if action.replace(wanted).is_some() {
            return Err(usage(""));
        }
    }
    let (action, class, name, key, value) = match (action, parsed.words.as_slice()) {
        (Some(Action::Update), [class, name, key, value]) => {
            (Action::Update, class, name, key, Some(value))
        }
        (Some(action @ (Action::Query | Action::Remove)), [class, name, key]) => {
            (action, class, name, key, None)
        }
        _ => return Err(usage("")),
    };
    let refused = |refusal| Stop::refused("editmap", &refusal);
    let sandbox = find_sandbox(sandbox.as_deref()).map_err(refused)?;
    let safety = match &config_file {
        Some(file) => {
            let config = load_config(Some(file), sandbox.as_deref()).map_err(refused)?;
            config.route.dont_blame.map_safety()
        }
        None => Safety::default(),
    };

    let class = class.to_string_lossy();
    let name = PathBuf::from(name);
    let cannot_open = |detail: &str| {
        let map = format!("type {class} map {}", name.display());
        stop(EX_CANTCREAT, format!("error opening {map}: {detail}"))
    };
    let kind = written_kind(&class).map_err(&cannot_open)?;
    let mut key = key.as_bytes().to_vec();
    if folds {
        key.make_ascii_lowercase();
    }
    let shown = String::from_utf8_lossy(&key).into_owned();
    if with_nul {
        key.push(0);
    }
    let dest = kind.file_of(&name);
    let failed = |error: &MapError| cannot_open(&open_text(error));
    warn_of_directories(&dest, safety, sandbox.as_deref());
    let map = match open_written(&dest, kind, false) {
        // What is not there yet is made, and has no key to remove.
        Err(error) if error.is_missing() && action != Action::Query => None,
        opened => Some(opened.map_err(|error| failed(&error))?),
    };
    if action == Action::Query {
        let found = map.as_ref().map(|map| map.lookup(&key));
        let found = found.transpose().map_err(|error| failed(&error))?.flatten();
        let Some(value) = found else {
            let text = format!("couldn't find key {shown} in map {}", name.display());
            return Err(stop(EX_UNAVAILABLE, text));
        };
        let mut line = value.strip_suffix(b"\0").unwrap_or(&value).to_vec();
        line.push(b'\n');
        return std::io::stdout()
            .write_all(&line)
            .map_err(|error| stop(EX_IOERR, diligence_maps::io_text(&error)));
    }
    let mut builder = read_all(map.as_ref(), kind).map_err(|error| failed(&error))?;
    // The shared lock has to go before the exclusive one can be had.
    drop(map);
    let was_there = builder.remove(&key);
    match value {
        None if !was_there => {
            // Not an error to Sendmail either: the key is not there, as was asked for.
            eprintln!(
                "editmap: key {shown} doesn't exist in map {}",
                name.display()
            );
            return Ok(());
        }
        None => {}
        Some(value) => {
            let mut value = value.as_bytes().to_vec();
            if with_nul {
                value.push(0);
            }
            builder
                .insert(&key, &value)
                .map_err(|error| failed(&error))?;
        }
    }
    builder
        .publish(&dest, &PublishOptions::default())
        .map(|_| ())
        .map_err(|error| cannot_open(&error.detail()))
}

/// The whole map, ready to be changed; a map of duplicates stays one.
fn read_all(map: Option<&DirectMap>, kind: MapKind) -> Result<MapBuilder, MapError> {
    let Some(map) = map else {
        return MapBuilder::new(kind, DuplicatePolicy::KeepFirst);
    };
    let policy = match map.allows_duplicates() {
        true => DuplicatePolicy::KeepAll,
        false => DuplicatePolicy::KeepFirst,
    };
    let mut builder = MapBuilder::new(kind, policy)?;
    builder.insert_all(map)?;
    Ok(builder)
}
