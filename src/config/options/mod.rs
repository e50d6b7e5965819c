//! The one table of options: Sendmail's names and letters, TOML keys, types,
//! ranges, defaults, and a line of text each.
//!
//! Each area of the program has its part of the table in a file of this folder;
//! [`OPTIONS`] is all of them, joined when this is compiled.
//!
//! The reader of `sendmail.toml`, `-O`/`-o`, `--print-config` and the page
//! sendmail.toml(5) are all made from it. What Sendmail has and this program
//! does not is in [`not_honoured`](super::not_honoured).
//!
//! Source: Installation and Operation Guide 5.6, sendmail(8) `-o`.

mod access;
mod host;
mod mailers;
mod maillog;
mod mapd;
mod masquerading;
mod queue;
mod routing;
mod smtpd;
mod submission;

use std::time::Duration;

use super::endpoint::HostPort;
use super::value::{Access, Given};
use super::{Config, Role};

pub(crate) use maillog::syslog_tag;

pub use super::value::Shown;

/// The shortest and the longest of most lengths of time.
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);

/// One option.
#[derive(Clone, Copy)]
pub struct OptionDef {
    /// The key in TOML, dotted: `timeout.queue_return`.
    pub key: &'static str,
    /// Sendmail's long name; empty for an option of our own, whose key then
    /// serves for `-O`.
    pub name: &'static str,
    /// Sendmail's letter (`-oX`).
    pub letter: Option<char>,
    /// One line for the man page.
    pub text: &'static str,
    /// Whether `-O` of it keeps set-id rights. Source: sendmail(8).
    pub is_safe: bool,
    access: Access,
    default: &'static str,
    msp_default: Option<&'static str>,
    sandbox_default: Option<&'static str>,
    sandbox_msp_default: Option<&'static str>,
}

impl OptionDef {
    const fn new(
        key: &'static str,
        default: &'static str,
        access: Access,
        text: &'static str,
    ) -> Self {
        Self {
            key,
            name: "",
            letter: None,
            text,
            is_safe: false,
            access,
            default,
            msp_default: None,
            sandbox_default: None,
            sandbox_msp_default: None,
        }
    }

    const fn named(mut self, name: &'static str) -> Self {
        self.name = name;
        self
    }

    const fn letter(mut self, letter: char) -> Self {
        self.letter = Some(letter);
        self
    }

    const fn safe(mut self) -> Self {
        self.is_safe = true;
        self
    }

    const fn msp(mut self, default: &'static str) -> Self {
        self.msp_default = Some(default);
        self
    }

    const fn sandbox(mut self, default: &'static str) -> Self {
        self.sandbox_default = Some(default);
        self
    }

    const fn sandbox_msp(mut self, default: &'static str) -> Self {
        self.sandbox_msp_default = Some(default);
        self
    }

    /// The default as text, for a role in or out of a sandbox.
    #[must_use]
    pub fn default_for(&self, role: Role, is_sandbox: bool) -> &'static str {
        let of_role = match role {
            Role::Msp => self.msp_default,
            Role::Mta => None,
        };
        let of_sandbox = match (is_sandbox, role) {
            (false, _) => None,
            (true, Role::Mta) => self.sandbox_default,
            (true, Role::Msp) => self.sandbox_msp_default.or(self
                .msp_default
                .is_none()
                .then_some(self.sandbox_default)
                .flatten()),
        };
        of_sandbox.or(of_role).unwrap_or(self.default)
    }

    /// Type and range in words.
    #[must_use]
    pub fn type_text(&self) -> String {
        self.access.describe()
    }

    /// The value in `config`.
    #[must_use]
    pub fn show(&self, config: &Config) -> Shown {
        self.access.show(config)
    }

    /// Whether `-oX` may stand without a value, which then means true.
    #[must_use]
    pub const fn is_flag(&self) -> bool {
        self.access.is_flag()
    }

    pub(super) fn set(&self, config: &mut Config, given: &Given) -> Result<(), String> {
        self.access.set(config, given)
    }

    pub(super) fn append(&self, config: &mut Config, given: &Given) -> Result<(), String> {
        self.access.append(config, given)
    }
}

/// The parts of the table, in the order of the man page.
const AREAS: [&[OptionDef]; 10] = [
    host::HOST,
    routing::ROUTING,
    masquerading::MASQUERADING,
    access::ACCESS,
    mapd::MAPD,
    smtpd::SMTPD,
    mailers::MAILERS,
    queue::QUEUE,
    submission::SUBMISSION,
    maillog::MAILLOG,
];

static ALL: [OptionDef; count(&AREAS)] = join(&AREAS);

/// Every option that is honoured, grouped as the man page groups them.
pub static OPTIONS: &[OptionDef] = &ALL;

const fn count(mut areas: &[&[OptionDef]]) -> usize {
    let mut sum = 0;
    while let Some((area, rest)) = areas.split_first() {
        sum += area.len();
        areas = rest;
    }
    sum
}

/// Copies the areas into one array of exactly their number.
const fn join<const N: usize>(mut areas: &[&[OptionDef]]) -> [OptionDef; N] {
    let Some((&[first, ..], _)) = areas.split_first() else {
        panic!("the first area is empty");
    };
    let mut all = [*first; N];
    let mut at = 0;
    while let Some((first, rest)) = areas.split_first() {
        let mut area: &[OptionDef] = first;
        while let Some((option, others)) = area.split_first() {
            all[at] = *option;
            at += 1;
            area = others;
        }
        areas = rest;
    }
    all
}

/// The index in [`OPTIONS`] of a TOML key.
#[must_use]
pub fn by_key(key: &str) -> Option<usize> {
    OPTIONS.iter().position(|option| option.key == key)
}

/// The index in [`OPTIONS`] of a name given with `-O`: Sendmail's long name or
/// the TOML key, case and underscores aside.
#[must_use]
pub fn by_name(name: &str) -> Option<usize> {
    let folded = fold(name);
    if folded.is_empty() {
        return None;
    }
    OPTIONS
        .iter()
        .position(|option| fold(option.name) == folded || fold(option.key) == folded)
}

/// The index in [`OPTIONS`] of a letter given with `-o`.
#[must_use]
pub fn by_letter(letter: char) -> Option<usize> {
    OPTIONS
        .iter()
        .position(|option| option.letter == Some(letter))
}

/// A name as it is compared: lower case, without underscores.
pub(super) fn fold(name: &str) -> String {
    name.chars()
        .filter(|c| *c != '_')
        .map(|c| c.to_ascii_lowercase())
        .collect()
}

fn shown_host(host: Option<&HostPort>) -> String {
    host.map_or_else(String::new, ToString::to_string)
}

fn host_or_none(text: &str) -> Result<Option<HostPort>, String> {
    match text.trim() {
        "" => Ok(None),
        host => HostPort::parse(host).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    #[test]
    fn every_default_is_a_value_of_its_own_type_in_every_role() {
        for role in [Role::Mta, Role::Msp] {
            for sandbox in [None, Some(Path::new("/sand/box"))] {
                // Panics when a default does not parse.
                let config = Config::defaults(role, sandbox);
                config.check().unwrap();
            }
        }
    }

    #[test]
    fn every_value_reads_back_as_it_is_shown() {
        let config = Config::defaults(Role::Mta, Some(Path::new("/sand/box")));
        let mut again = config.clone();
        for option in OPTIONS {
            let given = match option.show(&config) {
                Shown::Text(text) | Shown::Bare(text) => Given::Text(text),
                Shown::List(list) => Given::List(list),
            };
            option.set(&mut again, &given).unwrap();
        }
        assert_eq!(config, again);
    }

    #[test]
    fn names_letters_and_keys_are_unique() {
        let mut names = BTreeSet::new();
        let mut letters = BTreeSet::new();
        for option in OPTIONS {
            assert!(names.insert(fold(option.key)), "{}", option.key);
            let name = fold(option.name);
            if !name.is_empty() && name != fold(option.key) {
                assert!(names.insert(name), "{}", option.name);
            }
            if let Some(letter) = option.letter {
                assert!(letters.insert(letter), "{letter}");
            }
            assert!(option.text.ends_with('.'), "{}", option.key);
        }
        for option in crate::config::not_honoured::NOT_HONOURED {
            assert!(names.insert(fold(option.name)), "{}", option.name);
            if let Some(letter) = option.letter {
                assert!(letters.insert(letter), "{letter}");
            }
        }
    }

    #[test]
    fn names_are_found_without_regard_to_case_and_underscores() {
        let index = by_key("timeout.queue_return").unwrap();
        assert_eq!(by_name("Timeout.queuereturn"), Some(index));
        assert_eq!(by_name("TIMEOUT.QUEUE_RETURN"), Some(index));
        assert_eq!(by_letter('T'), Some(index));
        assert_eq!(by_name(""), None);
        assert_eq!(by_key("Timeout.queuereturn"), None);
    }
}
