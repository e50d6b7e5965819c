//! maplookup: looks keys up in a map of any class, for scripts and people.
//!
//! Keys are the words behind the map, or the lines of standard input where there are none. The exit status is 0 if all
//! were found, 1 if one was surely absent, 75 if a lookup did not work: what 75 says of a key is nothing (I9). Blocks on
//! the map as its class does. Limits: [`LINE_BYTES_MAX`], [`DIRECT_MAX`]. Source: maplookup(1).

use diligence::programs::wiring::map_opener;
use diligence::route::map_safety;
use diligence_maps::{
    Access, Definition, HandleOptions, MapClass, MapError, MapSet, MapSpec, OpenMap, Safety,
    SpecError, io_text, lookup_once,
};
use diligence_tools::arguments::{Given, Grammar, OptionsEnd, parse};
use diligence_tools::json::{Json, write_json};
use diligence_tools::setting::{EX_CONFIG, EX_IOERR, EX_USAGE, Refusal, find_sandbox, load_config};
use std::fmt::Write as _;
use std::io::{self, BufRead, BufWriter, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

const USAGE: &str = "usage: maplookup [-C cffile] [--json] [--sandbox dir] class map [key ...]\n       maplookup [-C cffile] [--json] [--sandbox dir] cf name [key ...]";

const GRAMMAR: Grammar<'static> = Grammar {
    flags: "",
    values: "C",
    long_flags: &["json"],
    long_values: &["sandbox"],
    end: OptionsEnd::FirstWord,
};

/// sysexits(3): try again later.
const EX_TEMPFAIL: u8 = 75;
/// A key is surely absent.
const ABSENT: u8 = 1;
/// Longest key read from standard input, in bytes.
const LINE_BYTES_MAX: usize = 1 << 20;
/// Up to so many keys are looked up in a file without loading it.
const DIRECT_MAX: usize = 16;
/// How long a map that is being rebuilt is waited for.
const LOCK_WAIT: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    match run() {
        Ok(exit) => ExitCode::from(exit),
        Err(refusal) => {
            eprintln!("maplookup: {}", refusal.text);
            ExitCode::from(refusal.exit)
        }
    }
}

fn wrong(text: &str) -> Refusal {
    Refusal {
        text: format!("{text}\n{USAGE}"),
        exit: EX_USAGE,
    }
}

fn broken(error: &io::Error) -> Refusal {
    Refusal {
        text: io_text(error),
        exit: EX_IOERR,
    }
}

/// What is asked.
enum Target {
    /// A file, opened for each key.
    Direct(Box<MapSpec>, Safety),
    /// A map in memory, or one that is none.
    Open(Arc<OpenMap>),
}

impl Target {
    fn lookup(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        match self {
            Self::Direct(spec, safety) => {
                lookup_once(spec, key, Access::checked(LOCK_WAIT, *safety))
            }
            Self::Open(map) => map.ask(key),
        }
    }
}

fn run() -> Result<u8, Refusal> {
    let parsed = parse(&GRAMMAR, std::env::args_os().skip(1)).map_err(|text| wrong(&text))?;
    let (mut file, mut sandbox, mut is_json) = (None, None, false);
    for option in parsed.options {
        match option {
            Given::Letter(_, value) => file = value,
            Given::Long(name, _) if name == "json" => is_json = true,
            Given::Long(_, value) => sandbox = value,
        }
    }
    let [class, map, keys @ ..] = parsed.words.as_slice() else {
        return Err(wrong("a class and a map are needed"));
    };
    let sandbox = find_sandbox(sandbox.as_deref())?;
    let config = load_config(file.as_ref(), sandbox.as_deref())?;
    let (class, map) = (class.to_string_lossy(), map.to_string_lossy());
    // A map of the configuration is refused where the mail system refuses it; another file is its caller's choice.
    let safety = match &*class {
        "cf" => map_safety(&config.route),
        _ => Safety::UNCHECKED,
    };
    let options = HandleOptions {
        lock_wait: LOCK_WAIT,
        safety,
        ..HandleOptions::default()
    };
    let mut set = MapSet::new(map_opener(&config, safety), options);
    let refused = |text: &str, error: SpecError| Refusal {
        text: format!("{text}: {error}"),
        exit: EX_CONFIG,
    };
    for (name, text) in &config.route.maps {
        let definition = Definition::parse(text).map_err(|error| refused(text, error))?;
        set.define(name.clone(), definition);
    }
    let definition = if class == "cf" {
        let text = match (config.route.maps.get(&*map), &*map) {
            (Some(text), _) => text.clone(),
            (None, "access") => config.route.access_db.clone().unwrap_or_default(),
            (None, _) => {
                return Err(Refusal {
                    text: format!("{map}: the configuration has no map of this name"),
                    exit: EX_CONFIG,
                });
            }
        };
        Definition::parse(&text).map_err(|error| refused(&text, error))?
    } else {
        let text = format!("{class} {map}");
        Definition::parse(&text).map_err(|error| refused(&text, error))?
    };
    let is_direct = matches!(definition.class, MapClass::File(_)) && !keys.is_empty();
    let target = if is_direct && keys.len() <= DIRECT_MAX {
        let mut spec = definition
            .into_file()
            .map_err(|error| refused(&map, error))?;
        // Trouble is told by the exit status.
        spec.switches.temporary_tag = None;
        Target::Direct(Box::new(spec), safety)
    } else {
        let open = set.open(&definition);
        Target::Open(open.map_err(|error| refused(&map, error))?)
    };
    let mut answers = Answers {
        out: BufWriter::new(io::stdout().lock()),
        is_json,
        is_bare: keys.len() == 1,
        exit: 0,
    };
    for key in keys {
        let key = key.as_bytes();
        answers
            .tell(key, target.lookup(key))
            .map_err(|error| broken(&error))?;
    }
    if keys.is_empty() {
        let mut input = io::stdin().lock();
        let mut line = Vec::new();
        loop {
            line.clear();
            let most = u64::try_from(LINE_BYTES_MAX).unwrap_or(u64::MAX);
            let read = (&mut input)
                .take(most + 1)
                .read_until(b'\n', &mut line)
                .map_err(|error| broken(&error))?;
            if read == 0 {
                break;
            }
            if read > LINE_BYTES_MAX {
                return Err(wrong("a key is too long"));
            }
            let key = line.strip_suffix(b"\n").unwrap_or(&line);
            answers
                .tell(key, target.lookup(key))
                .map_err(|error| broken(&error))?;
        }
    }
    answers.out.flush().map_err(|error| broken(&error))?;
    Ok(answers.exit)
}

struct Answers<W: Write> {
    out: W,
    is_json: bool,
    /// The value alone, as there is one key.
    is_bare: bool,
    exit: u8,
}

impl<W: Write> Answers<W> {
    fn tell(&mut self, key: &[u8], found: Result<Option<Vec<u8>>, MapError>) -> io::Result<()> {
        match &found {
            Ok(Some(_)) => {}
            Ok(None) => self.exit = self.exit.max(ABSENT),
            Err(_) => self.exit = EX_TEMPFAIL,
        }
        if self.is_json {
            let mut members = vec![member(["key", "key_hex"], key)];
            match &found {
                Ok(Some(value)) => {
                    members.push(("found", Json::Flag(true)));
                    members.push(member(["value", "value_hex"], value));
                }
                Ok(None) => members.push(("found", Json::Flag(false))),
                Err(error) => members.push(("error", Json::Text(error.to_string()))),
            }
            let mut line = String::new();
            write_json(&mut line, &Json::Object(members));
            return writeln!(self.out, "{line}");
        }
        match found {
            Ok(Some(value)) => {
                if !self.is_bare {
                    self.out.write_all(key)?;
                    self.out.write_all(b"\t")?;
                }
                self.out.write_all(&value)?;
                self.out.write_all(b"\n")
            }
            Ok(None) => Ok(()),
            Err(error) => {
                self.out.flush()?;
                eprintln!("maplookup: {}: {error}", String::from_utf8_lossy(key));
                Ok(())
            }
        }
    }
}

/// One member of a JSON object; bytes that are no UTF-8 come in hexadecimal digits, under the second name.
fn member(names: [&'static str; 2], bytes: &[u8]) -> (&'static str, Json) {
    let [plain, in_digits] = names;
    match std::str::from_utf8(bytes) {
        Ok(text) => (plain, Json::Text(text.to_owned())),
        Err(_) => {
            let mut digits = String::new();
            for byte in bytes {
                let _ = write!(digits, "{byte:02x}");
            }
            (in_digits, Json::Text(digits))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_holds_any_bytes() {
        let names = ["v", "v_hex"];
        assert_eq!(member(names, b"a"), ("v", Json::Text("a".into())));
        let odd = ("v_hex", Json::Text("ff01".into()));
        assert_eq!(member(names, b"\xff\x01"), odd);
    }
}
