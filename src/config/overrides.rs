//! `-O Name=value` and `-oXvalue`: options on the command line.
//!
//! They stand above the file. A list option's first value on the command line
//! replaces the file's, further ones are added; `PrivacyOptions` always adds,
//! as in Sendmail. Pure: nothing is read, nothing blocks.
//!
//! Source: sendmail(8) `-O`, `-o`.

use super::error::{ConfigError, Place};
use super::not_honoured;
use super::options::{self, OPTIONS};
use super::value::Given;
use super::{Config, Origin};

/// One option of the command line, still as text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Override {
    /// `-O Name=value`.
    Name {
        /// Sendmail's long name or the TOML key.
        name: String,
        /// What follows the `=`; empty when there is none.
        value: String,
    },
    /// `-oXvalue`.
    Letter {
        /// Sendmail's letter.
        letter: char,
        /// What follows the letter; may be empty.
        value: String,
    },
}

impl Override {
    /// Splits what follows `-O`: `Name=value`, `Name value` or `Name`.
    #[must_use]
    pub fn from_assignment(text: &str) -> Self {
        let text = text.trim_start();
        let name_end = text
            .find(|c: char| c == '=' || c.is_whitespace())
            .unwrap_or(text.len());
        let (name, rest) = text.split_at(name_end);
        let rest = rest.trim_start();
        let value = rest.strip_prefix('=').unwrap_or(rest).trim();
        Self::Name {
            name: name.to_owned(),
            value: value.to_owned(),
        }
    }

    /// As it was typed, for messages.
    #[must_use]
    pub fn typed(&self) -> String {
        match self {
            Self::Name { name, value } => format!("-O{name}={value}"),
            Self::Letter { letter, value } => format!("-o{letter}{value}"),
        }
    }

    const fn value(&self) -> &String {
        match self {
            Self::Name { value, .. } | Self::Letter { value, .. } => value,
        }
    }

    fn option_index(&self) -> Option<usize> {
        match self {
            Self::Name { name, .. } => options::by_name(name),
            Self::Letter { letter, .. } => options::by_letter(*letter),
        }
    }

    /// Whether it may be given without losing set-id rights. What is refused
    /// anyway needs no rights.
    ///
    /// Source: sendmail(8) `-o`.
    #[must_use]
    pub fn is_safe(&self) -> bool {
        self.option_index()
            .and_then(|index| OPTIONS.get(index))
            .is_none_or(|option| option.is_safe)
    }
}

/// Sets in `config` what `given` says.
pub(super) fn apply(config: &mut Config, given: &Override) -> Result<(), ConfigError> {
    let place = || Place::CommandLine(given.typed());
    let found = given.option_index();
    let Some((index, option)) = found.and_then(|at| Some((at, OPTIONS.get(at)?))) else {
        return refuse(given, place());
    };
    // A forgotten value would silently empty a path or a list; `-O Name=` does
    // so on purpose.
    let is_letter = matches!(given, Override::Letter { .. });
    if is_letter && given.value().is_empty() && !option.is_flag() {
        return Err(ConfigError::BadValue {
            place: place(),
            key: option.key.to_owned(),
            reason: "a value is missing".to_owned(),
        });
    }
    let value = Given::Text(given.value().clone());
    let is_continued = matches!(config.origin(index), Origin::CommandLine(_));
    let outcome = if is_continued || option.key == "privacy_options" {
        option.append(config, &value)
    } else {
        option.set(config, &value)
    };
    outcome.map_err(|reason| ConfigError::BadValue {
        place: place(),
        key: option.key.to_owned(),
        reason,
    })?;
    config.set_origin(index, Origin::CommandLine(given.typed()));
    Ok(())
}

fn refuse(given: &Override, place: Place) -> Result<(), ConfigError> {
    let known = match given {
        Override::Name { name, .. } => not_honoured::by_name(name),
        Override::Letter { letter, .. } => not_honoured::by_letter(*letter),
    };
    match (known, given) {
        (Some(option), _) if option.is_accepted(given.value()) => Ok(()),
        (Some(option), _) => Err(ConfigError::NotSupported {
            place,
            name: option.name.to_owned(),
            advice: option.advice,
        }),
        (None, Override::Name { name, .. }) => Err(ConfigError::UnknownOverride {
            name: name.clone(),
            nearest: super::file::nearest(
                name,
                OPTIONS
                    .iter()
                    .map(|option| option.name)
                    .chain(OPTIONS.iter().map(|option| option.key))
                    .filter(|known| !known.is_empty()),
            )
            .map(str::to_owned),
        }),
        (None, Override::Letter { letter, .. }) => {
            Err(ConfigError::UnknownLetter { letter: *letter })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::super::{ErrorMode, Privacy, Request};
    use super::*;

    fn load(text: &str, given: &[Override]) -> Result<Config, ConfigError> {
        let request = Request {
            overrides: given,
            ..Request::default()
        };
        Config::from_text(&request, Path::new("/x.toml"), text)
    }

    fn name(text: &str) -> Override {
        Override::from_assignment(text)
    }

    fn letter(letter: char, value: &str) -> Override {
        Override::Letter {
            letter,
            value: value.to_owned(),
        }
    }

    #[test]
    fn names_and_letters_stand_above_the_file() {
        let config = load(
            "delivery_mode = \"background\"\ntimeout.queue_return = \"5d\"",
            &[
                letter('d', "q"),
                name("Timeout.queuereturn=3d"),
                letter('i', ""),
            ],
        )
        .unwrap();
        assert_eq!(config.queue.delivery_mode.name(), "queue");
        assert_eq!(
            config.queue.retry.queue_return,
            Duration::from_secs(3 * 86_400)
        );
        assert!(config.submit.ignore_dots);
    }

    #[test]
    fn a_queue_is_returned_now_whatever_warnings_the_file_sets() {
        let given = [name("Timeout.queuereturn=now")];
        let config = load("timeout.queue_warn = \"4h\"", &given).unwrap();
        let retry = &config.queue.retry;
        assert_eq!(retry.queue_return, Duration::from_secs(1));
        assert_eq!(retry.queue_warn, Some(Duration::from_secs(4 * 3600)));
        let error = load("", &[name("Timeout.queuewarn=6d")]).unwrap_err();
        assert!(error.to_string().contains("not shorter"), "{error}");
        assert!(load("", &[name("Timeout.queuewarn=now")]).is_err());
    }

    #[test]
    fn daemon_ports_of_the_command_line_replace_those_of_the_file() {
        let config = load(
            "daemon_port_options = [\"Port=25\", \"Port=587\"]",
            &[
                name("DaemonPortOptions=Port=2525,Addr=127.0.0.1"),
                name("DaemonPortOptions=Port=0"),
            ],
        )
        .unwrap();
        let ports: Vec<u16> = config.smtpd.daemon_ports.iter().map(|p| p.port).collect();
        assert_eq!(ports, [2525, 0]);
    }

    #[test]
    fn privacy_options_are_added_to_those_of_the_file() {
        let config = load(
            "privacy_options = [\"noexpn\"]",
            &[name("PrivacyOptions=novrfy")],
        );
        let privacy = config.unwrap().smtpd.privacy;
        assert!(privacy.has(Privacy::NoExpn) && privacy.has(Privacy::NoVrfy));
    }

    #[test]
    fn with_set_id_rights_the_log_level_is_raised_but_not_lowered() {
        use super::super::Lowering::{Allowed, Refused};
        for (level, lowering, expected) in
            [("15", Refused, 15), ("1", Refused, 9), ("1", Allowed, 1)]
        {
            let overrides = [name(&format!("LogLevel={level}"))];
            let request = Request {
                overrides: &overrides,
                ..Request::default()
            };
            let config = Config::build(&request, Path::new("/x.toml"), "", lowering).unwrap();
            assert_eq!(config.log.log_level, expected);
        }
    }

    #[test]
    fn every_form_of_assignment_is_split() {
        for text in ["LogLevel=15", "LogLevel 15", " LogLevel = 15 "] {
            assert_eq!(name(text).typed(), "-OLogLevel=15");
        }
        assert_eq!(name("IgnoreDots").typed(), "-OIgnoreDots=");
    }

    #[test]
    fn unknown_options_have_sendmails_text() {
        let text = |given| load("", &[given]).unwrap_err().to_string();
        assert_eq!(text(name("Nosuch=1")), "readcf: unknown option name Nosuch");
        assert_eq!(
            text(name("QueueDirectry=/tmp")),
            "readcf: unknown option name QueueDirectry; did you mean `QueueDirectory'?"
        );
        assert_eq!(text(letter('!', "")), "readcf: unknown option name -o!");
        assert_eq!(
            text(name("TrustedUser=smmsp")),
            "-OTrustedUser=smmsp: option TrustedUser is not supported"
        );
        assert!(text(letter('Q', "")).contains("a value is missing"));
        assert!(text(letter('d', "x")).contains("not a delivery mode"));
    }

    #[test]
    fn what_cron_php_and_mailers_pass_is_taken() {
        for (mode, expected) in [
            ("m", ErrorMode::MailBack),
            ("e", ErrorMode::MailBackExitZero),
            ("p", ErrorMode::Print),
            ("q", ErrorMode::Quiet),
            ("w", ErrorMode::Write),
        ] {
            let config = load("", &[letter('e', mode)]).unwrap();
            assert_eq!(config.submit.error_mode, expected);
        }
        let harmless = [
            letter('m', ""),
            letter('o', ""),
            letter('s', ""),
            letter('v', ""),
        ];
        assert!(load("", &harmless).unwrap().submit.verbose);
    }

    #[test]
    fn only_the_options_that_sendmail_calls_safe_keep_set_id_rights() {
        for safe in [
            "LogLevel=15",
            "DeliveryMode=q",
            "MinFreeBlocks=1",
            "IgnoreDots",
        ] {
            assert!(name(safe).is_safe(), "{safe}");
        }
        for unsafe_option in ["QueueDirectory=/tmp", "AliasFile=/tmp/x", "log_file=/tmp/x"] {
            assert!(!name(unsafe_option).is_safe(), "{unsafe_option}");
        }
        assert!(!letter('Q', "/tmp").is_safe());
        assert!(letter('e', "m").is_safe());
    }
}
