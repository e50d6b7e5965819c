//! mapd: a socketmap server over the maps of the configuration; the library does the work.
//!
//! Prints one line for each address it listens on, when clients can connect. Blocks until a signal ends it.
//! Source: mapd(8).

use diligence::programs::mapd;
use diligence_tools::arguments::{Given, Grammar, OptionsEnd, parse};
use diligence_tools::setting::{EX_USAGE, Refusal, find_sandbox, load_config};
use std::io::Write;
use std::process::ExitCode;

const USAGE: &str = "usage: mapd [-C cffile] [--sandbox dir]\n";

const GRAMMAR: Grammar<'static> = Grammar {
    flags: "",
    values: "C",
    long_flags: &[],
    long_values: &["sandbox"],
    end: OptionsEnd::FirstWord,
};

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(refusal) => {
            eprintln!("mapd: {}", refusal.text);
            ExitCode::from(refusal.exit)
        }
    }
}

fn run() -> Result<ExitCode, Refusal> {
    let wrong = |text: String| Refusal {
        text: format!("{text}\n{}", USAGE.trim_end()),
        exit: EX_USAGE,
    };
    let parsed = parse(&GRAMMAR, std::env::args_os().skip(1)).map_err(wrong)?;
    if !parsed.words.is_empty() {
        return Err(wrong("mapd takes no words".into()));
    }
    let (mut file, mut sandbox) = (None, None);
    for option in parsed.options {
        match option {
            Given::Letter(_, value) => file = value,
            Given::Long(_, value) => sandbox = value,
        }
    }
    let sandbox = find_sandbox(sandbox.as_deref())?;
    let config = load_config(file.as_ref(), sandbox.as_deref())?;
    let code = mapd::run(&config, &mut |addresses| {
        let mut out = std::io::stdout().lock();
        for address in addresses {
            let _ = writeln!(out, "mapd: listening on {address}");
        }
        let _ = out.flush();
    });
    Ok(code.into())
}
