//! `sendmail.toml` and `submit.toml`: one typed, checked [`Config`].
//!
//! Every value has Sendmail's option name in snake_case, a type with a unit, a
//! range and a default; [`options`] is the one table of them. A value comes
//! from the default of its role, then the file, then `-O`/`-o` of the command
//! line, and remembers which. Nothing is ignored: an option that Sendmail
//! knows and this program does not honour is refused by name.
//!
//! Touches its own configuration file only, once, and blocks for that long.
//! Checks that need the system (users, host name) belong to who uses them.
//! Modules take their section ([`SmtpdOptions`], [`QueueOptions`], ..), never
//! the whole.
//!
//! Limits: [`CONFIG_FILE_LEN_MAX`], [`LIST_LEN_MAX`], [`MAP_NAME_LEN_MAX`],
//! [`MAPS_MAX`].
//! Source: sendmail(8), Installation and Operation Guide 5.6.

pub mod access;
pub mod dont_blame;
pub mod duration;
pub mod endpoint;
mod error;
mod file;
pub mod host;
pub mod mailer;
pub mod modes;
pub mod not_honoured;
pub mod options;
pub mod overrides;
pub mod report;
pub mod sandbox;
mod sections;
pub mod set_id;
pub mod size;
mod value;

use std::net::IpAddr;
use std::path::{Path, PathBuf};

pub use dont_blame::{Blameless, DontBlame};
pub use endpoint::{DaemonPort, HostPort};
pub use error::{ConfigError, Place};
pub use modes::{DeliveryMode, ErrorMode, Privacy, PrivacyOptions, Remote, SpoolFileSystem};
pub use overrides::Override;
pub use sections::{
    ClassOptions, ClientTimeouts, DeliverOptions, HostOptions, LogOptions, MapdOptions,
    MasqueradeOptions, MasqueradeScope, Paths, QueueOptions, ResolverOptions, RetryOptions,
    RouteOptions, SentOnOptions, ServerTimeouts, SmtpdLimits, SmtpdOptions, SpoolSettings,
    SubmitOptions,
};
pub use size::ByteSize;

use diligence_maps::{Definition, MapClass};
use options::OPTIONS;

/// The longest configuration file read, in bytes.
pub const CONFIG_FILE_LEN_MAX: u64 = 1 << 20;
/// The most values that a list option may have.
pub const LIST_LEN_MAX: usize = 64;
/// The longest name of a map, in bytes.
pub const MAP_NAME_LEN_MAX: usize = 64;
/// The most maps that have names.
pub const MAPS_MAX: usize = 256;
/// The MTA's configuration file when neither `-C` nor a sandbox says else.
pub const MTA_CONFIG_FILE: &str = "/etc/mail/sendmail.toml";
/// The submission program's (`-Ac`) configuration file.
pub const MSP_CONFIG_FILE: &str = "/etc/mail/submit.toml";

/// Which of the two programs in one this process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Role {
    /// The mail transfer agent (`-Am`, the daemon): `sendmail.toml`, `mqueue`.
    #[default]
    Mta,
    /// The mail submission program (`-Ac`): `submit.toml`, `clientmqueue`.
    Msp,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The table of options.
    Default,
    /// A line (from 1) of the configuration file.
    File {
        /// The line that holds the value.
        line: usize,
    },
    /// `-O` or `-o`, as it was typed.
    CommandLine(String),
}

/// Everything that can be set, checked, and where each value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// MTA or MSP; decides the defaults.
    pub role: Role,
    /// The sandbox's folder, absolute, when this process lives in one.
    pub sandbox: Option<PathBuf>,
    /// The file that was read.
    pub file: PathBuf,
    /// Directories, sockets and files.
    pub paths: Paths,
    /// The names of this host.
    pub host: HostOptions,
    /// Where recipients go.
    pub route: RouteOptions,
    /// The server of maps for other programs.
    pub mapd: MapdOptions,
    /// How names are looked up in DNS.
    pub resolver: ResolverOptions,
    /// The SMTP server.
    pub smtpd: SmtpdOptions,
    /// Mailers.
    pub deliver: DeliverOptions,
    /// The queue.
    pub queue: QueueOptions,
    /// The spool's files.
    pub spool: SpoolSettings,
    /// Submission on the command line.
    pub submit: SubmitOptions,
    /// The maillog.
    pub log: LogOptions,
    /// In step with [`OPTIONS`].
    origins: Vec<Origin>,
}

/// What decides a [`Config`], as the command line gives it.
#[derive(Debug, Clone, Default)]
pub struct Request<'r> {
    /// MTA or MSP.
    pub role: Role,
    /// `-C FILE`; the role's own file when absent.
    pub file: Option<&'r Path>,
    /// The sandbox's folder, absolute; made by [`sandbox::open`].
    pub sandbox: Option<&'r Path>,
    /// `-O` and `-o` in the order they were typed.
    pub overrides: &'r [Override],
}

/// Whether the command line may set a LogLevel below the file's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lowering {
    Allowed,
    Refused,
}

impl Config {
    /// Reads and checks the configuration that `request` asks for.
    ///
    /// Blocks: disk, for one file of at most [`CONFIG_FILE_LEN_MAX`].
    ///
    /// # Errors
    /// [`ConfigError`]: the file is missing, cannot be read, is no TOML, or an
    /// option in it or on the command line is unknown, not supported or has a
    /// bad value. The first one found is reported, with its place.
    pub fn load(request: &Request<'_>) -> Result<Self, ConfigError> {
        let path = match request.file {
            Some(file) => file.to_owned(),
            None => Self::default_file(request.role, request.sandbox),
        };
        let text = file::read(&path)?;
        // The caller of a process with more rights than its own may not hide
        // what it does.
        let lowering = if set_id::has_set_id_rights() {
            Lowering::Refused
        } else {
            Lowering::Allowed
        };
        Self::build(request, &path, &text, lowering)
    }

    /// As [`Config::load`], from text in memory instead of a file; `path` is
    /// what errors call it. Never blocks.
    ///
    /// # Errors
    /// As [`Config::load`], without the file's.
    pub fn from_text(request: &Request<'_>, path: &Path, text: &str) -> Result<Self, ConfigError> {
        Self::build(request, path, text, Lowering::Allowed)
    }

    fn build(
        request: &Request<'_>,
        path: &Path,
        text: &str,
        lowering: Lowering,
    ) -> Result<Self, ConfigError> {
        let mut config = Self::defaults(request.role, request.sandbox);
        config.file = path.to_owned();
        file::apply(&mut config, path, text)?;
        let file_log_level = config.log.log_level;
        for given in request.overrides {
            overrides::apply(&mut config, given)?;
        }
        if lowering == Lowering::Refused {
            // As in Sendmail, without a word to the caller.
            config.log.log_level = config.log.log_level.max(file_log_level);
        }
        config.check()?;
        Ok(config)
    }

    /// Every option at its default, in or out of a sandbox. Tests and tools
    /// start here; programs use [`Config::load`]. Never blocks.
    #[must_use]
    pub fn defaults(role: Role, sandbox: Option<&Path>) -> Self {
        let mut config = Self {
            role,
            sandbox: sandbox.map(Path::to_owned),
            file: Self::default_file(role, sandbox),
            paths: Paths::default(),
            host: HostOptions::default(),
            route: RouteOptions::default(),
            mapd: MapdOptions::default(),
            resolver: ResolverOptions::default(),
            smtpd: SmtpdOptions::default(),
            deliver: DeliverOptions::default(),
            queue: QueueOptions::default(),
            spool: SpoolSettings::default(),
            submit: SubmitOptions::default(),
            log: LogOptions::default(),
            origins: vec![Origin::Default; OPTIONS.len()],
        };
        config.route.sandbox = sandbox.map(Path::to_owned);
        for option in OPTIONS {
            let text = option.default_for(role, sandbox.is_some());
            let given = value::Given::Text(text.to_owned());
            if let Err(error) = option.set(&mut config, &given) {
                // The table is ours; a unit test sets every default.
                panic!("default of {}: {error}", option.key);
            }
        }
        config
    }

    /// The file that is read when no other is named.
    #[must_use]
    pub fn default_file(role: Role, sandbox: Option<&Path>) -> PathBuf {
        let file = match role {
            Role::Mta => MTA_CONFIG_FILE,
            Role::Msp => MSP_CONFIG_FILE,
        };
        match sandbox {
            Some(dir) => dir.join(file.trim_start_matches('/')),
            None => PathBuf::from(file),
        }
    }

    /// Where the value of the option at `index` of [`OPTIONS`] came from.
    #[must_use]
    pub fn origin(&self, index: usize) -> &Origin {
        self.origins.get(index).unwrap_or(&Origin::Default)
    }

    fn set_origin(&mut self, index: usize, origin: Origin) {
        if let Some(slot) = self.origins.get_mut(index) {
            *slot = origin;
        }
    }

    /// Resolves a path option: in a sandbox a relative path begins at its
    /// folder and none may lead out of it; elsewhere only absolute ones do.
    fn place_path(&self, text: &str) -> Result<PathBuf, String> {
        let path = Path::new(text);
        let has_parent = path
            .components()
            .any(|part| matches!(part, std::path::Component::ParentDir));
        match &self.sandbox {
            Some(_) if has_parent => Err(format!("`{text}' may not contain `..'")),
            Some(dir) => {
                let placed = dir.join(path);
                if placed.starts_with(dir) {
                    Ok(placed)
                } else {
                    Err(format!(
                        "`{text}' lies outside the sandbox {}",
                        dir.display()
                    ))
                }
            }
            None if path.is_absolute() => Ok(path.to_owned()),
            None => Err(format!("`{text}' is not an absolute path")),
        }
    }

    /// A map specification of Sendmail's, in a sandbox with the sandbox's file.
    fn usual_map(&self, spec: &str) -> String {
        match &self.sandbox {
            Some(_) => spec.replace(" /", " "),
            None => spec.to_owned(),
        }
    }

    /// Checks a map specification (`hash -o /path`), and resolves its file, if
    /// it has one, as [`Config::place_path`] does.
    fn place_map(&self, text: &str) -> Result<String, String> {
        match Definition::parse(text) {
            Ok(definition) => self.place_map_file(text, &definition),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The same in the form of alias files: `[class:][switches] /path`.
    fn place_alias_map(&self, text: &str) -> Result<String, String> {
        match Definition::parse_alias(text) {
            Ok(definition) => self.place_map_file(text, &definition),
            Err(error) => Err(error.to_string()),
        }
    }

    /// The file is what stands after the switches, or after `unix:` in the
    /// address of a socket.
    fn place_map_file(&self, text: &str, definition: &Definition) -> Result<String, String> {
        let text = text.trim();
        let path = match definition.class {
            class if class.is_of_a_file() => definition.rest.as_str(),
            MapClass::User => definition.rest.as_str(),
            MapClass::Socket => ["unix:", "local:"]
                .iter()
                .find_map(|family| definition.rest.strip_prefix(family))
                .unwrap_or_default(),
            _ => "",
        };
        match text.strip_suffix(path) {
            Some(head) if !path.is_empty() => {
                Ok(format!("{head}{}", self.place_path(path)?.display()))
            }
            _ => Ok(text.to_owned()),
        }
    }

    /// Resolves an address that mapd listens on: a path as
    /// [`Config::place_path`] does, or a port of this host alone.
    fn place_listener(&self, text: &str) -> Result<String, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(format!("unix:{}", self.place_path(path)?.display()));
        }
        let address = text.strip_prefix("inet:").and_then(|rest| {
            let (port, host) = rest.split_once('@')?;
            let port = port.parse::<u16>().ok()?;
            let host = host.trim_matches(['[', ']']).parse::<IpAddr>().ok()?;
            Some((port, host))
        });
        match address {
            Some((_, host)) if !host.is_loopback() => {
                Err(format!("`{text}' is not an address of this host alone"))
            }
            Some((port, host)) => Ok(format!("inet:{port}@{host}")),
            None => Err(format!(
                "`{text}' is neither unix:PATH nor inet:PORT@ADDRESS"
            )),
        }
    }

    /// Sets the map `name` of the table `map`.
    fn define_map(&mut self, name: &str, text: &str) -> Result<(), String> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if name.is_empty() || !name.chars().all(is_name) || name.len() > MAP_NAME_LEN_MAX {
            return Err("is no name of a map: letters, digits, and . _ -".to_owned());
        }
        if self.route.maps.len() >= MAPS_MAX {
            return Err(format!("more than {MAPS_MAX} maps"));
        }
        let placed = self.place_map(text)?;
        self.route.maps.insert(name.to_owned(), placed);
        Ok(())
    }

    /// Rules that tie options together.
    fn check(&self) -> Result<(), ConfigError> {
        let refuse = |key: &str, text: String| {
            let index = OPTIONS.iter().position(|option| option.key == key);
            let place = index.map_or(Place::Nowhere, |index| match self.origin(index) {
                Origin::File { line } => Place::Line {
                    file: self.file.clone(),
                    line: *line,
                },
                Origin::CommandLine(typed) => Place::CommandLine(typed.clone()),
                Origin::Default => Place::Nowhere,
            });
            Err(ConfigError::BadValue {
                place,
                key: key.to_owned(),
                reason: text,
            })
        };
        let retry = &self.queue.retry;
        if retry.max_queue_age < retry.min_queue_age {
            return refuse("max_queue_age", "is shorter than min_queue_age".to_owned());
        }
        let is_typed = |key: &str| {
            let index = OPTIONS.iter().position(|option| option.key == key);
            index.is_some_and(|index| matches!(self.origin(index), Origin::CommandLine(_)))
        };
        // `-OTimeout.queuereturn=now -q` empties a queue, whatever warnings are set: there is none of what goes back.
        if !is_typed("timeout.queue_return")
            && retry
                .queue_warn
                .is_some_and(|warn| warn >= retry.queue_return)
        {
            return refuse(
                "timeout.queue_warn",
                "is not shorter than timeout.queue_return".to_owned(),
            );
        }
        let ports = &self.smtpd.daemon_ports;
        for (index, port) in ports.iter().enumerate() {
            if self.sandbox.is_some() && !port.address.is_loopback() {
                return refuse(
                    "daemon_port_options",
                    format!(
                        "a sandbox listens on loopback only, not on {}",
                        port.address
                    ),
                );
            }
            let is_taken = |other: &DaemonPort| {
                other.port != 0 && other.socket_address() == port.socket_address()
            };
            if ports.iter().take(index).any(is_taken) {
                return refuse(
                    "daemon_port_options",
                    format!("{} is listed twice", port.socket_address()),
                );
            }
        }
        Ok(())
    }
}
