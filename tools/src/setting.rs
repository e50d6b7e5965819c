//! Where a tool runs: in a sandbox or on the system, and with which configuration.
//!
//! Blocks on disk, for the configuration file. Source: sendmail(8) --sandbox, -C.

use diligence::config::sandbox::{self, Missing, SANDBOX_VARIABLE};
use diligence::config::set_id::has_set_id_rights;
use diligence::config::{Config, Request, Role};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// sysexits(3): the command was used wrongly.
pub const EX_USAGE: u8 = 64;
/// sysexits(3): lines of the input are wrong; the rest was built.
pub const EX_DATAERR: u8 = 65;
/// sysexits(3): an input file does not exist or cannot be read.
pub const EX_NOINPUT: u8 = 66;
/// sysexits(3): what was asked for is not there.
pub const EX_UNAVAILABLE: u8 = 69;
/// sysexits(3): an output file cannot be created.
pub const EX_CANTCREAT: u8 = 73;
/// sysexits(3): input or output failed.
pub const EX_IOERR: u8 = 74;
/// sysexits(3): the configuration is wrong.
pub const EX_CONFIG: u8 = 78;

/// Why a tool cannot start: what to print after its name, and what to end with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// For standard error.
    pub text: String,
    /// The exit status.
    pub exit: u8,
}

/// The sandbox asked for by `--sandbox` or, without set-id rights, by the environment.
///
/// # Errors
/// [`Refusal`] with [`EX_CONFIG`] where the folder is no sandbox of the caller's.
pub fn find_sandbox(option: Option<&OsStr>) -> Result<Option<PathBuf>, Refusal> {
    let variable = || match has_set_id_rights() {
        true => None,
        false => std::env::var_os(SANDBOX_VARIABLE).filter(|value| !value.is_empty()),
    };
    let Some(dir) = option.map(OsStr::to_os_string).or_else(variable) else {
        return Ok(None);
    };
    match sandbox::open(Path::new(&dir), Missing::Refuse) {
        Ok(sandbox) => Ok(Some(sandbox.dir)),
        Err(error) => Err(Refusal {
            text: error.to_string(),
            exit: EX_CONFIG,
        }),
    }
}

/// The configuration: `-C`'s file, or the sandbox's or system's own. Only the own one may be missing: every option
/// then has its default.
///
/// # Errors
/// [`Refusal`]: [`EX_NOINPUT`] for a file that cannot be read, [`EX_CONFIG`] for a wrong one.
pub fn load_config(file: Option<&OsString>, sandbox: Option<&Path>) -> Result<Config, Refusal> {
    let given = file.map(Path::new);
    let defaults = Config::defaults(Role::Mta, sandbox);
    let path = given.unwrap_or(&defaults.file);
    match std::fs::File::open(path) {
        Ok(_) => {}
        Err(error) if given.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(defaults);
        }
        Err(error) => {
            return Err(Refusal {
                text: format!("{}: {}", path.display(), diligence_maps::io_text(&error)),
                exit: EX_NOINPUT,
            });
        }
    }
    let request = Request {
        role: Role::Mta,
        file: given,
        sandbox,
        overrides: &[],
    };
    Config::load(&request).map_err(|error| Refusal {
        text: error.to_string(),
        exit: EX_CONFIG,
    })
}
