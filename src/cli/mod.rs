//! Sendmail's command line as a typed [`Invocation`].
//!
//! The whole grammar of sendmail(8) is read; what it names is either done or
//! refused by name with `EX_USAGE`, never ignored. The name the program was
//! called by (`mailq`, `newaliases`, `smtpd`, `hoststat`, `purgestat`) stands
//! for a mode. Options of the configuration (`-o`, `-O`, and the flags that are
//! short for one, such as `-v` and `-i`) become [`Override`]s and are judged
//! with the configuration, where their types are known.
//!
//! Pure but for [`Invocation::settle_rights`]. Source: sendmail(8).

mod error;
mod getopt;
mod queue_flags;
mod text;

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};

pub use error::CliError;
pub use queue_flags::{QueueRun, QueueTiming};
pub use text::{HELP, VERSION, identity, version};

use crate::config::{Override, Role, options, set_id};
use crate::control::change::{Change, Reason};
use crate::envelope::{BodyType, DsnReturn, Notify};
use getopt::Word;

/// The longest envelope id of `-V`, in bytes. RFC 3461 4.4.
const ENVELOPE_ID_LEN_MAX: usize = 100;

/// What the program is to do (`-bX`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Mode {
    /// `-bm`: send what stands on standard input.
    #[default]
    Deliver,
    /// `-bs`: SMTP on standard input and output.
    SmtpSession,
    /// `-bd`: SMTP server, in the background.
    Daemon,
    /// `-bD`: SMTP server, in the foreground.
    DaemonForeground,
    /// `-bp`, `mailq`: list the queue.
    PrintQueue,
    /// `-bv`: say where recipients lead.
    Verify,
    /// `-bi`, `newaliases`: rebuild the alias maps.
    RebuildAliases,
}

impl Mode {
    /// As it is typed.
    #[must_use]
    pub const fn flag(self) -> &'static str {
        match self {
            Self::Deliver => "-bm",
            Self::SmtpSession => "-bs",
            Self::Daemon => "-bd",
            Self::DaemonForeground => "-bD",
            Self::PrintQueue => "-bp",
            Self::Verify => "-bv",
            Self::RebuildAliases => "-bi",
        }
    }

    fn from_letter(letter: &str) -> Result<BMode, CliError> {
        let not_built = |flag: &str, advice| {
            Err(CliError::NotSupported {
                flag: flag.to_owned(),
                advice,
            })
        };
        match letter.chars().next() {
            Some('m') => Ok(BMode::Mode(Self::Deliver)),
            Some('s') => Ok(BMode::Mode(Self::SmtpSession)),
            Some('d') => Ok(BMode::Mode(Self::Daemon)),
            Some('D') => Ok(BMode::Mode(Self::DaemonForeground)),
            Some('p') => Ok(BMode::Mode(Self::PrintQueue)),
            Some('v') => Ok(BMode::Mode(Self::Verify)),
            Some('i') => Ok(BMode::Mode(Self::RebuildAliases)),
            Some('C') => Ok(BMode::CheckConfig),
            Some('a') => not_built("-ba", "ARPANET mode"),
            Some('h') => not_built("-bh", "host status"),
            Some('H') => not_built("-bH", "host status"),
            Some('P') => not_built("-bP", "mailq prints the number of messages, too"),
            Some('t') => not_built("-bt", "address test mode"),
            Some('z') => not_built("-bz", "frozen configurations"),
            _ => Err(CliError::UnknownMode(
                letter.chars().take(1).collect::<String>(),
            )),
        }
    }
}

enum BMode {
    Mode(Mode),
    CheckConfig,
}

/// What is only shown or checked instead of [`Mode`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inspection {
    /// `--check-config`, `-bC`.
    CheckConfig,
    /// `--print-config`.
    PrintConfig,
    /// `--version`.
    Version,
    /// `--help`.
    Help,
}

/// What the flags say of the envelope of a submitted message.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EnvelopeFlags {
    /// `-f`, `-r`: the sender, as typed; `<>` is the null sender.
    pub sender: Option<String>,
    /// `-F`: the sender's full name.
    pub full_name: Option<String>,
    /// `-N`.
    pub notify: Notify,
    /// `-R`.
    pub dsn_return: DsnReturn,
    /// `-V`, as xtext.
    pub envelope_id: Option<String>,
    /// `-B`.
    pub body_type: BodyType,
    /// `-h`: hops made so far.
    pub hop_count: u32,
    /// `-G`: a gateway relays; nothing is completed.
    pub is_gateway: bool,
}

/// A command line that was understood.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Invocation {
    /// What to do, unless `inspection` or `queue_run` says else.
    pub mode: Mode,
    /// What to show or check instead.
    pub inspection: Option<Inspection>,
    /// `-q`: when the queue is run; with a daemon beside it.
    pub queue_run: Option<QueueRun>,
    /// `-Q`: what is done to messages of the queue instead of running it.
    pub quarantine: Option<Change>,
    /// `-Ac` or `-Am`, if given; see [`Invocation::role`].
    pub role_given: Option<Role>,
    /// `--sandbox`.
    pub sandbox: Option<PathBuf>,
    /// `-C`.
    pub config_file: Option<PathBuf>,
    /// `-O`, `-o` and the flags that are short for one, in order.
    pub overrides: Vec<Override>,
    /// `-L`.
    pub syslog_tag: Option<String>,
    /// `-d0`: the version and this host's names are printed first.
    pub shows_version: bool,
    /// `-t`: recipients are taken from the header.
    pub reads_recipients: bool,
    /// The envelope.
    pub envelope: EnvelopeFlags,
    /// Operands.
    pub recipients: Vec<String>,
}

impl Invocation {
    /// Reads a command line, the program's name first.
    ///
    /// # Errors
    /// [`CliError`]; the program then ends with its exit code.
    pub fn parse(command_line: &[OsString]) -> Result<Self, CliError> {
        let (name, arguments) = command_line
            .split_first()
            .map_or((OsStr::new("sendmail"), &[][..]), |(name, rest)| {
                (name.as_os_str(), rest)
            });
        let mut invocation = Self {
            mode: mode_of_name(name)?,
            ..Self::default()
        };
        for word in getopt::split(arguments)? {
            match word {
                Word::Operand(text) => invocation.recipients.push(utf8(text)?),
                Word::Long(option, value) => invocation.take_long(option, value),
                Word::Letter(letter, value) => invocation.take_letter(letter, value)?,
            }
        }
        invocation.check()?;
        Ok(invocation)
    }

    /// Which of the two programs this is: as `-A` says, or the submission
    /// program for submitting and the MTA for everything else.
    #[must_use]
    pub fn role(&self) -> Role {
        self.role_given.unwrap_or(match self.mode {
            Mode::Deliver | Mode::SmtpSession if !self.is_about_queue() => Role::Msp,
            _ => Role::Mta,
        })
    }

    /// Whether it is about messages that are in the queue already.
    fn is_about_queue(&self) -> bool {
        self.queue_run.is_some() || self.quarantine.is_some()
    }

    /// Gives up set-id rights where the command line asks for something that
    /// only its caller's own rights may do: `--sandbox`, `-C`, unsafe options.
    /// Has to be called before anything is opened.
    ///
    /// # Errors
    /// The system's; the process must then end.
    pub fn settle_rights(&self) -> io::Result<()> {
        if set_id::has_set_id_rights() && self.asks_for_own_rights() {
            set_id::give_up_rights()?;
        }
        Ok(())
    }

    /// Whether set-id rights may not be used for this command line.
    #[must_use]
    pub fn asks_for_own_rights(&self) -> bool {
        self.sandbox.is_some()
            || self.config_file.is_some()
            || !self.overrides.iter().all(Override::is_safe)
    }

    /// The folder of the sandbox to use: `--sandbox`, or what the environment
    /// says (`variable`, the value of
    /// [`SANDBOX_VARIABLE`](crate::config::sandbox::SANDBOX_VARIABLE)), which a
    /// process with set-id rights does not believe. An empty value is none.
    #[must_use]
    pub fn sandbox_dir(
        &self,
        variable: Option<&OsStr>,
        has_set_id_rights: bool,
    ) -> Option<PathBuf> {
        let named = variable.filter(|value| !value.is_empty() && !has_set_id_rights);
        self.sandbox.clone().or_else(|| named.map(PathBuf::from))
    }

    fn take_long(&mut self, option: &str, value: Option<OsString>) {
        match option {
            "sandbox" => self.sandbox = value.map(PathBuf::from),
            "check-config" => self.inspection = Some(Inspection::CheckConfig),
            "print-config" => self.inspection = Some(Inspection::PrintConfig),
            "version" => self.inspection = Some(Inspection::Version),
            _ => self.inspection = Some(Inspection::Help),
        }
    }

    fn take_letter(&mut self, letter: char, value: Option<OsString>) -> Result<(), CliError> {
        let value = value.unwrap_or_default();
        match letter {
            'C' => {
                self.config_file = Some(PathBuf::from(value));
                return Ok(());
            }
            'F' => {
                self.envelope.full_name = Some(full_name(value));
                return Ok(());
            }
            _ => {}
        }
        let value = utf8(value)?;
        match letter {
            'A' => {
                self.role_given = Some(match value.as_str() {
                    "c" => Role::Msp,
                    "m" => Role::Mta,
                    _ => return Err(CliError::Role(value)),
                });
            }
            'B' => self.envelope.body_type = body_type(&value)?,
            'b' => match Mode::from_letter(&value)? {
                BMode::Mode(mode) => self.mode = mode,
                BMode::CheckConfig => self.inspection = Some(Inspection::CheckConfig),
            },
            'd' => {
                // Category 0 is the version; the others print what this
                // program does not have.
                if value != "0" && !value.starts_with("0.") {
                    return Err(not_supported(&format!("-d{value}"), "only -d0.N is"));
                }
                self.shows_version = true;
            }
            'f' | 'r' => {
                if self.envelope.sender.replace(value).is_some() {
                    return Err(CliError::SenderTwice);
                }
            }
            'G' => self.envelope.is_gateway = true,
            'h' => {
                self.envelope.hop_count = value
                    .trim()
                    .parse()
                    .map_err(|_| CliError::HopCount(value))?;
            }
            'L' => {
                options::syslog_tag(&value).map_err(CliError::Tag)?;
                self.syslog_tag = Some(value);
            }
            'N' => {
                if self.envelope.notify != Notify::Unspecified {
                    return Err(CliError::Twice('N'));
                }
                self.envelope.notify = notify(&value)?;
            }
            'O' => {
                let given = Override::from_assignment(&value);
                if matches!(&given, Override::Name { name, .. } if name.is_empty()) {
                    return Err(CliError::OptionMissing('O'));
                }
                self.overrides.push(given);
            }
            'o' => {
                let mut letters = value.chars();
                let letter = letters.next().ok_or(CliError::OptionMissing('o'))?;
                self.push_letter(letter, letters.as_str());
            }
            'q' => self.queue_run = Some(QueueRun::add(self.queue_run.take(), &value)?),
            'Q' => self.quarantine = Some(quarantine(&value)?),
            'R' => {
                if self.envelope.dsn_return != DsnReturn::Unspecified {
                    return Err(CliError::Twice('R'));
                }
                self.envelope.dsn_return = dsn_return(&value)?;
            }
            'V' => {
                if self.envelope.envelope_id.is_some() {
                    return Err(CliError::Twice('V'));
                }
                if !is_xtext(&value) {
                    return Err(CliError::EnvelopeId);
                }
                self.envelope.envelope_id = Some(value);
            }
            't' => self.reads_recipients = true,
            // Short for options.
            'e' | 'T' => self.push_letter(letter, &value),
            'i' | 'm' | 'v' => self.push_letter(letter, ""),
            'c' => self.push_letter('c', "true"),
            's' => self.push_letter('f', "true"),
            // Obsolete: "initial submission" is what a submission is.
            'U' => {}
            _ => return Err(unbuilt_letter(letter)),
        }
        Ok(())
    }

    fn push_letter(&mut self, letter: char, value: &str) {
        self.overrides.push(Override::Letter {
            letter,
            value: value.to_owned(),
        });
    }

    /// Rules that tie flags together.
    fn check(&self) -> Result<(), CliError> {
        if self.inspection.is_some() {
            return Ok(());
        }
        let is_queue_run = self.is_about_queue() && self.mode == Mode::Deliver;
        let takes_recipients = matches!(self.mode, Mode::Deliver | Mode::Verify) && !is_queue_run;
        let mode = match (is_queue_run, &self.quarantine) {
            (true, Some(_)) => "-Q",
            (true, None) => "-q",
            (false, _) => self.mode.flag(),
        };
        if self.quarantine.is_some() {
            if !is_queue_run {
                return Err(CliError::QuarantineMode(mode));
            }
            let timing = self.queue_run.as_ref().map(|run| run.timing);
            if matches!(timing, Some(QueueTiming::Every(_))) {
                return Err(CliError::Meaningless {
                    what: "-qTIME",
                    mode,
                });
            }
        }
        if self.reads_recipients && (self.mode != Mode::Deliver || is_queue_run) {
            return Err(CliError::Meaningless { what: "-t", mode });
        }
        if takes_recipients {
            if self.recipients.is_empty() && !self.reads_recipients {
                return Err(CliError::NoRecipients);
            }
        } else if !self.recipients.is_empty() && self.mode != Mode::RebuildAliases {
            // Transcript 02: a rebuild passes over what stands behind it.
            return Err(CliError::Meaningless {
                what: "recipients",
                mode,
            });
        }
        Ok(())
    }
}

fn not_supported(flag: &str, advice: &'static str) -> CliError {
    CliError::NotSupported {
        flag: flag.to_owned(),
        advice,
    }
}

/// Flags of sendmail(8) that are not built.
fn unbuilt_letter(letter: char) -> CliError {
    let advice = match letter {
        'D' => "debugging output to a file",
        'I' => "use -bi",
        'M' => "macros of sendmail.cf",
        'n' => "delivery without aliases",
        'p' => "protocol and host of the sender",
        'X' => "use -v or LogLevel=15",
        'x' => "it never did anything",
        _ => "",
    };
    not_supported(&format!("-{letter}"), advice)
}

/// What `-Q` asks for: a reason quarantines, none releases. Line ends become blanks, as in Sendmail.
fn quarantine(text: &str) -> Result<Change, CliError> {
    if text.is_empty() {
        return Ok(Change::Release);
    }
    let line: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    Reason::new(&line)
        .map(Change::Hold)
        .ok_or(CliError::QuarantineReason)
}

/// The mode that the program's name stands for.
fn mode_of_name(name: &OsStr) -> Result<Mode, CliError> {
    let base = Path::new(name).file_name().unwrap_or_default();
    match base.to_str().unwrap_or_default() {
        "mailq" => Ok(Mode::PrintQueue),
        "newaliases" => Ok(Mode::RebuildAliases),
        "smtpd" => Ok(Mode::Daemon),
        "hoststat" => Err(not_supported("hoststat", "host status")),
        "purgestat" => Err(not_supported("purgestat", "host status")),
        _ => Ok(Mode::Deliver),
    }
}

fn utf8(text: OsString) -> Result<String, CliError> {
    text.into_string().map_err(CliError::NotUtf8)
}

/// A person's name; bytes that are not UTF-8 are taken for Latin-1, which is
/// what a program that passes them most likely means.
fn full_name(text: OsString) -> String {
    text.into_string().unwrap_or_else(|bytes| {
        use std::os::unix::ffi::OsStrExt;
        bytes.as_bytes().iter().copied().map(char::from).collect()
    })
}

fn body_type(text: &str) -> Result<BodyType, CliError> {
    if text.eq_ignore_ascii_case("7bit") {
        Ok(BodyType::SevenBit)
    } else if text.eq_ignore_ascii_case("8bitmime") {
        Ok(BodyType::EightBitMime)
    } else {
        Err(CliError::BodyType(text.to_owned()))
    }
}

fn dsn_return(text: &str) -> Result<DsnReturn, CliError> {
    if text.eq_ignore_ascii_case("full") {
        Ok(DsnReturn::Full)
    } else if text.eq_ignore_ascii_case("hdrs") {
        Ok(DsnReturn::Headers)
    } else {
        Err(CliError::DsnReturn)
    }
}

fn notify(text: &str) -> Result<Notify, CliError> {
    if text.eq_ignore_ascii_case("never") {
        return Ok(Notify::Never);
    }
    let (mut success, mut failure, mut delay) = (false, false, false);
    for word in text.split(',').map(str::trim) {
        match word.to_ascii_lowercase().as_str() {
            "success" => success = true,
            "failure" => failure = true,
            "delay" => delay = true,
            _ => return Err(CliError::Notify),
        }
    }
    Ok(Notify::When {
        success,
        failure,
        delay,
    })
}

/// RFC 3461 4: printable ASCII without `=`; `+` before two hexadecimal digits.
fn is_xtext(text: &str) -> bool {
    let bytes = text.as_bytes();
    let is_hex = |at: usize| {
        bytes
            .get(at)
            .is_some_and(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(b))
    };
    (1..=ENVELOPE_ID_LEN_MAX).contains(&bytes.len())
        && bytes.iter().enumerate().all(|(at, byte)| match byte {
            b'+' => is_hex(at + 1) && is_hex(at + 2),
            b'=' => false,
            byte => byte.is_ascii_graphic(),
        })
}

#[cfg(test)]
mod tests;
