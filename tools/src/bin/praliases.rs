//! praliases: prints the alias map, or the aliases named.
//!
//! Reads the map's file; blocks on disk, and on the lock of a program that is rebuilding it. The exit status is 0 even
//! where an alias or the map is not there, as Sendmail's is; 66 and 78 tell of the configuration, 64 of the command
//! line. Source: praliases(8).

use diligence::config::Config;
use diligence::programs::wiring::map_opener;
use diligence_maps::alias::{each_alias, lookup_alias_once};
use diligence_maps::{
    Definition, HandleOptions, MapClass, MapError, MapSet, MapSpec, OpenMap, Safety, SpecError,
};
use diligence_tools::arguments::{Given, Grammar, OptionsEnd, parse};
use diligence_tools::map_place::{open_text, warn_of_directories};
use diligence_tools::setting::{EX_CONFIG, EX_IOERR, find_sandbox, load_config};
use diligence_tools::stop::{Stop, end};
use std::ffi::OsString;
use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

const USAGE: &str = "usage: praliases [-C cffile] [-f aliasfile] [key ...]
       praliases ... [--sandbox dir] [key ...]
";

const GRAMMAR: Grammar<'static> = Grammar {
    flags: "",
    values: "Cf",
    long_flags: &[],
    long_values: &["sandbox"],
    end: OptionsEnd::DashDash,
};

/// How long a map that is being rebuilt is waited for.
const LOCK_WAIT: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    end(run())
}

/// Output that failed.
fn unwritten(error: io::Error) -> Stop {
    Stop::new("praliases", EX_IOERR, diligence_maps::io_text(&error))
}

fn run() -> Result<(), Stop> {
    let parsed = parse(&GRAMMAR, std::env::args_os().skip(1))
        .map_err(|text| Stop::usage("praliases", &text, USAGE))?;
    let (mut config_file, mut alias_file, mut sandbox) = (None, None::<OsString>, None::<OsString>);
    for option in parsed.options {
        match option {
            Given::Letter('C', file) => config_file = file,
            Given::Letter(_, file) => alias_file = file,
            Given::Long(_, dir) => sandbox = dir,
        }
    }
    let refused = |refusal| Stop::refused("praliases", &refusal);
    let sandbox = find_sandbox(sandbox.as_deref()).map_err(refused)?;
    let load = || load_config(config_file.as_ref(), sandbox.as_deref()).map_err(refused);
    let (texts, safety, config) = match alias_file {
        Some(file) => {
            let texts = vec![file.to_string_lossy().into_owned()];
            (texts, Safety::default(), None)
        }
        None => {
            let config = load()?;
            let safety = config.route.dont_blame.map_safety();
            (config.route.alias_files.clone(), safety, Some(config))
        }
    };
    let mut out = BufWriter::new(io::stdout().lock());
    for text in texts {
        let wrong =
            |error: SpecError| Stop::new("praliases", EX_CONFIG, format!("{text}: {error}"));
        let definition = Definition::parse_alias(&text).map_err(wrong)?;
        if definition.class.is_of_a_file() {
            warn_of_directories(&definition.label(), safety, sandbox.as_deref());
        }
        if !matches!(definition.class, MapClass::File(_)) {
            let map = match &config {
                Some(config) => open_other(&definition, config),
                // -f names one map: the configuration is read at most once.
                None => open_other(&definition, &load()?),
            };
            let map = map.map_err(wrong)?;
            print_other(&map, &parsed.words, &mut out).map_err(unwritten)?;
            continue;
        }
        let spec = definition.into_file().map_err(wrong)?;
        if parsed.words.is_empty() {
            print_all(&spec, &mut out).map_err(unwritten)?;
        } else {
            print_named(&spec, &parsed.words, &mut out).map_err(unwritten)?;
        }
    }
    out.flush().map_err(unwritten)
}

/// A map that is no file of its own: the text itself, a sequence, a directory.
fn open_other(definition: &Definition, config: &Config) -> Result<Arc<OpenMap>, SpecError> {
    let options = HandleOptions {
        lock_wait: LOCK_WAIT,
        ..HandleOptions::default()
    };
    let mut set = MapSet::new(map_opener(config, Safety::UNCHECKED), options);
    for (name, text) in &config.route.maps {
        set.define(name.clone(), Definition::parse(text)?);
    }
    set.open(definition)
}

fn print_other(map: &OpenMap, names: &[OsString], out: &mut dyn Write) -> io::Result<()> {
    let complain = |error: &MapError| {
        eprintln!(
            "praliases: {}: open: {}",
            map.label().display(),
            open_text(error)
        )
    };
    let mut failed = Ok(());
    if names.is_empty() {
        let listed = map.each(&mut |name, value| match print(name, value, out) {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Err(error);
                ControlFlow::Break(())
            }
        });
        if let Err(error) = listed {
            complain(&error);
        }
        return failed;
    }
    for name in names {
        match map.ask(name.as_bytes()) {
            Ok(Some(value)) => print(name.as_bytes(), &value, out)?,
            Ok(None) => {
                out.write_all(name.as_bytes())?;
                out.write_all(b": No such key\n")?;
            }
            Err(error) => {
                complain(&error);
                return Ok(());
            }
        }
    }
    Ok(())
}

fn complain(spec: &MapSpec, error: &MapError) {
    eprintln!(
        "praliases: {}: open: {}",
        spec.name.display(),
        open_text(error)
    );
}

fn print_all(spec: &MapSpec, out: &mut dyn Write) -> io::Result<()> {
    let mut failed = Ok(());
    let listed = each_alias(&spec.file(), LOCK_WAIT, &mut |name, value| match print(
        name, value, out,
    ) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            failed = Err(error);
            ControlFlow::Break(())
        }
    });
    failed?;
    if let Err(error) = listed {
        // An optional map that is not there is an empty one.
        if !(spec.switches.is_optional && error.is_missing()) {
            complain(spec, &error);
        }
    }
    Ok(())
}

fn print_named(spec: &MapSpec, names: &[OsString], out: &mut dyn Write) -> io::Result<()> {
    for name in names {
        match lookup_alias_once(spec, name.as_bytes(), LOCK_WAIT) {
            Ok(Some(value)) => print(name.as_bytes(), &value, out)?,
            Ok(None) => {
                out.write_all(name.as_bytes())?;
                out.write_all(b": No such key\n")?;
            }
            Err(error) => {
                complain(spec, &error);
                return Ok(());
            }
        }
    }
    Ok(())
}

fn print(name: &[u8], value: &[u8], out: &mut dyn Write) -> io::Result<()> {
    out.write_all(name)?;
    out.write_all(b":")?;
    out.write_all(value)?;
    out.write_all(b"\n")
}
