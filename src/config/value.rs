//! The types an option may have: how text becomes a value of [`Config`], what
//! range it must lie in, and how it is printed.
//!
//! [`Access`] joins a type, its range and the field it lives in, so that the
//! table in [`options`](super::options) is the only place where the three
//! meet. Pure text to value; nothing is read, nothing blocks.

use std::path::PathBuf;
use std::time::Duration;

use super::access::DnsList;
use super::duration::{TimeUnit, parse_time, print_time};
use super::size::ByteSize;
use super::{Config, LIST_LEN_MAX, host};

/// The longest text value, in bytes.
const TEXT_LEN_MAX: usize = 4_096;

/// A value as the file or the command line gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Given {
    /// A TOML string, or anything from the command line.
    Text(String),
    /// A TOML integer.
    Integer(i64),
    /// A TOML boolean.
    Flag(bool),
    /// A TOML array of strings.
    List(Vec<String>),
}

impl Given {
    /// The value as one text.
    fn text(&self) -> Result<String, String> {
        match self {
            Self::Text(text) if text.len() > TEXT_LEN_MAX => {
                Err(format!("is longer than {TEXT_LEN_MAX} bytes"))
            }
            Self::Text(text) if text.chars().any(char::is_control) => {
                Err("contains a control character".to_owned())
            }
            Self::Text(text) => Ok(text.clone()),
            Self::Integer(number) => Ok(number.to_string()),
            Self::Flag(flag) => Ok(flag.to_string()),
            Self::List(_) => Err("is a list where one value belongs".to_owned()),
        }
    }

    /// The value as a string proper: numbers and booleans are no text.
    fn plain_text(&self) -> Result<String, String> {
        match self {
            Self::Integer(_) | Self::Flag(_) => Err("is not a string".to_owned()),
            other => other.text(),
        }
    }
}

/// Sets the field from text, or says what is wrong with it.
type SetText = fn(&mut Config, &str) -> Result<(), String>;

/// Type, range and place of an option's value.
#[derive(Clone, Copy)]
pub(super) enum Access {
    /// A file or directory; see [`Config::place_path`].
    Path(fn(&mut Config) -> &mut PathBuf),
    /// As `Path`; empty for none.
    PathOrNone(fn(&mut Config) -> &mut Option<PathBuf>),
    /// A length of time.
    Time {
        field: fn(&mut Config) -> &mut Duration,
        unit: TimeUnit,
        min: Duration,
        max: Duration,
    },
    /// A length of time; 0 for never.
    TimeOrNever {
        field: fn(&mut Config) -> &mut Option<Duration>,
        unit: TimeUnit,
        max: Duration,
    },
    /// A number of bytes.
    Size {
        field: fn(&mut Config) -> &mut ByteSize,
        min: ByteSize,
        max: ByteSize,
    },
    /// A number of bytes; 0 for no limit.
    SizeOrNone {
        field: fn(&mut Config) -> &mut Option<ByteSize>,
        max: ByteSize,
    },
    /// A count.
    Count {
        field: fn(&mut Config) -> &mut u32,
        min: u32,
        max: u32,
    },
    /// A count; 0 for no limit.
    CountOrNone {
        field: fn(&mut Config) -> &mut Option<u32>,
        max: u32,
    },
    /// true or false.
    Flag(fn(&mut Config) -> &mut bool),
    /// Text that may not be empty.
    Text(fn(&mut Config) -> &mut String),
    /// Text; empty for none.
    TextOrNone(fn(&mut Config) -> &mut Option<String>),
    /// A domain name; empty for none.
    Domain(fn(&mut Config) -> &mut Option<String>),
    /// Where mail is sent on to, `[MAILER:]HOST` and the like; empty for none.
    SentOn(fn(&mut Config) -> &mut Option<String>),
    /// Lists in DNS.
    DnsLists {
        field: fn(&mut Config) -> &mut Vec<DnsList>,
        has_patterns: bool,
    },
    /// A map specification; empty for none, true for the one of Sendmail's FEATURE.
    Table {
        field: fn(&mut Config) -> &mut Option<String>,
        usual: &'static str,
    },
    /// Words without blanks, such as names and domains.
    Words(fn(&mut Config) -> &mut Vec<String>),
    /// One of a few words, or a form with its own reader.
    Form {
        form: &'static str,
        set: SetText,
        show: fn(&Config) -> String,
    },
    /// Several values of a form; a TOML array or one string. `add` appends.
    /// The command line replaces the file's with its first and appends the
    /// rest.
    Several {
        form: &'static str,
        separator: Option<char>,
        clear: fn(&mut Config),
        add: SetText,
        show: fn(&Config) -> Vec<String>,
    },
}

/// What an option's value looks like when it is printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shown {
    /// Printed in quotes.
    Text(String),
    /// Printed bare: a number or a boolean.
    Bare(String),
    /// Printed as an array of quoted strings.
    List(Vec<String>),
}

impl Access {
    /// Sets the value in `config`.
    pub(super) fn set(&self, config: &mut Config, given: &Given) -> Result<(), String> {
        match self {
            Self::Path(field) => {
                let text = given.plain_text()?;
                if text.is_empty() {
                    return Err("may not be empty".to_owned());
                }
                let path = config.place_path(&text)?;
                *field(config) = path;
            }
            Self::PathOrNone(field) => {
                let text = given.plain_text()?;
                let path = if text.is_empty() {
                    None
                } else {
                    Some(config.place_path(&text)?)
                };
                *field(config) = path;
            }
            Self::Time {
                field,
                unit,
                min,
                max,
            } => {
                // Sendmail's `Timeout.queuereturn=now`.
                let is_now =
                    matches!(given, Given::Text(text) if text.trim().eq_ignore_ascii_case("now"));
                let value = if is_now { *min } else { time(given, *unit)? };
                if value < *min || value > *max {
                    return Err(out_of_range(
                        &print_time(value),
                        &print_time(*min),
                        &print_time(*max),
                    ));
                }
                *field(config) = value;
            }
            Self::TimeOrNever { field, unit, max } => {
                let value = time(given, *unit)?;
                if value > *max {
                    return Err(out_of_range(&print_time(value), "0", &print_time(*max)));
                }
                *field(config) = (!value.is_zero()).then_some(value);
            }
            Self::Size { field, min, max } => {
                *field(config) = size(given, *min, *max)?;
            }
            Self::SizeOrNone { field, max } => {
                let value = size(given, ByteSize::default(), *max)?;
                *field(config) = (value != ByteSize::default()).then_some(value);
            }
            Self::Count { field, min, max } => *field(config) = count(given, *min, *max)?,
            Self::CountOrNone { field, max } => {
                let value = count(given, 0, *max)?;
                *field(config) = (value != 0).then_some(value);
            }
            Self::Flag(field) => *field(config) = flag(given)?,
            Self::Text(field) => {
                let text = given.plain_text()?;
                if text.is_empty() {
                    return Err("may not be empty".to_owned());
                }
                *field(config) = text;
            }
            Self::TextOrNone(field) => {
                let text = given.plain_text()?;
                *field(config) = (!text.is_empty()).then_some(text);
            }
            Self::Table { field, usual } => {
                let text = given.text()?;
                let spec = match text.trim() {
                    "" | "false" => None,
                    "true" => Some(config.place_map(&config.usual_map(usual))?),
                    spec => Some(config.place_map(spec)?),
                };
                *field(config) = spec;
            }
            Self::Domain(field) => *field(config) = domain_or_none(&given.text()?)?,
            Self::SentOn(field) => *field(config) = sent_on_or_none(&given.text()?)?,
            Self::Words(field) => {
                field(config).clear();
                self.append(config, given)?;
            }
            Self::DnsLists { field, .. } => {
                field(config).clear();
                self.append(config, given)?;
            }
            Self::Form { set, .. } => set(config, &given.text()?)?,
            Self::Several {
                separator,
                clear,
                add,
                ..
            } => {
                let parts: Vec<String> = match given {
                    Given::List(parts) => parts.clone(),
                    other => {
                        let text = other.text()?;
                        match separator {
                            Some(c) => text.split(*c).map(str::to_owned).collect(),
                            None => vec![text],
                        }
                    }
                };
                clear(config);
                self.add_parts(config, &parts, *add)?;
            }
        }
        Ok(())
    }

    /// Appends to a list option; sets any other.
    pub(super) fn append(&self, config: &mut Config, given: &Given) -> Result<(), String> {
        if let Self::Words(field) = self {
            let texts = match given {
                Given::List(texts) => texts.clone(),
                other => vec![other.text()?],
            };
            let split = |c: char| c == ',' || c.is_whitespace();
            for word in texts.iter().flat_map(|text| text.split(split)) {
                if word.is_empty() {
                    continue;
                }
                Given::Text(word.to_owned()).text()?;
                if field(config).len() >= LIST_LEN_MAX {
                    return Err(format!("has more than {LIST_LEN_MAX} values"));
                }
                field(config).push(word.to_owned());
            }
            return Ok(());
        }
        if let Self::DnsLists {
            field,
            has_patterns,
        } = self
        {
            let texts = match given {
                Given::List(texts) => texts.clone(),
                other => vec![other.text()?],
            };
            for text in texts.iter().filter(|text| !text.trim().is_empty()) {
                let text = Given::Text(text.clone()).text()?;
                if field(config).len() >= LIST_LEN_MAX {
                    return Err(format!("has more than {LIST_LEN_MAX} values"));
                }
                field(config).push(DnsList::parse(text.trim(), *has_patterns)?);
            }
            return Ok(());
        }
        let Self::Several { separator, add, .. } = self else {
            return self.set(config, given);
        };
        let text = given.text()?;
        let parts: Vec<String> = match separator {
            Some(c) => text.split(*c).map(str::to_owned).collect(),
            None => vec![text],
        };
        self.add_parts(config, &parts, *add)
    }

    fn add_parts(&self, config: &mut Config, parts: &[String], add: SetText) -> Result<(), String> {
        for part in parts {
            let part = part.trim();
            if part.is_empty() {
                continue;
            }
            Given::Text(part.to_owned()).text()?;
            if self.show_list(config).len() >= LIST_LEN_MAX {
                return Err(format!("has more than {LIST_LEN_MAX} values"));
            }
            add(config, part)?;
        }
        Ok(())
    }

    fn show_list(&self, config: &Config) -> Vec<String> {
        match self {
            Self::Several { show, .. } => show(config),
            _ => Vec::new(),
        }
    }

    /// The value as it stands in `config`.
    ///
    /// The fields are reached through `&mut`, so a copy is looked into; this
    /// serves `--print-config` and tests, not the daemon.
    pub(super) fn show(&self, config: &Config) -> Shown {
        let copy = &mut config.clone();
        let path_text = |path: &PathBuf| path.display().to_string();
        match self {
            Self::Path(field) => Shown::Text(path_text(field(copy))),
            Self::PathOrNone(field) => {
                Shown::Text(field(copy).as_ref().map_or_else(String::new, path_text))
            }
            Self::Time { field, .. } => Shown::Text(print_time(*field(copy))),
            Self::TimeOrNever { field, .. } => {
                Shown::Text(print_time(field(copy).unwrap_or_default()))
            }
            Self::Size { field, .. } => Shown::Text(field(copy).to_string()),
            Self::SizeOrNone { field, .. } => {
                Shown::Text(field(copy).unwrap_or_default().to_string())
            }
            Self::Count { field, .. } => Shown::Bare(field(copy).to_string()),
            Self::CountOrNone { field, .. } => {
                Shown::Bare(field(copy).unwrap_or_default().to_string())
            }
            Self::Flag(field) => Shown::Bare(field(copy).to_string()),
            Self::Text(field) => Shown::Text(field(copy).clone()),
            Self::TextOrNone(field) => Shown::Text(field(copy).clone().unwrap_or_default()),
            Self::Table { field, .. } | Self::Domain(field) | Self::SentOn(field) => {
                Shown::Text(field(copy).clone().unwrap_or_default())
            }
            Self::DnsLists { field, .. } => {
                Shown::List(field(copy).iter().map(DnsList::show).collect())
            }
            Self::Words(field) => Shown::List(field(copy).clone()),
            Self::Form { show, .. } => Shown::Text(show(config)),
            Self::Several { show, .. } => Shown::List(show(config)),
        }
    }

    /// Type and range in words, for the man page: `time, 1m to 4w, in minutes`.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Path(_) => "path".to_owned(),
            Self::PathOrNone(_) => "path, empty for none".to_owned(),
            Self::Time { unit, min, max, .. } => format!(
                "time, {} to {}, plain number: {}",
                print_time(*min),
                print_time(*max),
                unit.name()
            ),
            Self::TimeOrNever { unit, max, .. } => format!(
                "time, up to {}, 0 for never, plain number: {}",
                print_time(*max),
                unit.name()
            ),
            Self::Size { min, max, .. } => format!("size, {min} to {max} bytes"),
            Self::SizeOrNone { max, .. } => {
                format!("size, up to {max} bytes, 0 for no limit")
            }
            Self::Count { min, max, .. } => format!("number, {min} to {max}"),
            Self::CountOrNone { max, .. } => format!("number, up to {max}, 0 for no limit"),
            Self::Flag(_) => "true or false".to_owned(),
            Self::Text(_) => "text".to_owned(),
            Self::TextOrNone(_) => "text, empty for none".to_owned(),
            Self::Table { usual, .. } => {
                format!("map specification, true for \"{usual}\", empty for none")
            }
            Self::Domain(_) => "domain name, empty for none".to_owned(),
            Self::SentOn(_) => "[MAILER:]HOST, local:USER or error:..; empty for none".to_owned(),
            Self::DnsLists { has_patterns, .. } => {
                let patterns = if *has_patterns { "; ADDRESS.." } else { "" };
                format!("list of ZONE; TEXT; t{patterns}")
            }
            Self::Words(_) => "list of words".to_owned(),
            Self::Form { form, .. } => (*form).to_owned(),
            Self::Several { form, .. } => format!("list of {form}"),
        }
    }

    /// Whether a boolean: `-oi` needs no value.
    pub(super) const fn is_flag(&self) -> bool {
        matches!(self, Self::Flag(_))
    }
}

fn out_of_range(value: &str, min: &str, max: &str) -> String {
    format!("{value} is not within {min} to {max}")
}

fn time(given: &Given, unit: TimeUnit) -> Result<Duration, String> {
    match given {
        Given::Flag(_) => Err("is not a length of time".to_owned()),
        given => parse_time(&given.text()?, unit).map_err(|error| error.to_string()),
    }
}

fn size(given: &Given, min: ByteSize, max: ByteSize) -> Result<ByteSize, String> {
    let value = ByteSize::parse(&given.text()?).map_err(|error| error.to_string())?;
    if value < min || value > max {
        return Err(out_of_range(
            &value.to_string(),
            &min.to_string(),
            &max.to_string(),
        ));
    }
    Ok(value)
}

fn count(given: &Given, min: u32, max: u32) -> Result<u32, String> {
    let text = given.text()?;
    let text = text.trim();
    let value: i64 = text
        .parse()
        .map_err(|_| format!("`{text}' is not a number"))?;
    u32::try_from(value)
        .ok()
        .filter(|value| (min..=max).contains(value))
        .ok_or_else(|| out_of_range(text, &min.to_string(), &max.to_string()))
}

/// Sendmail takes T, t, Y, y (and nothing at all) for true and any other first
/// letter for false; here anything else than a known word is an error.
fn flag(given: &Given) -> Result<bool, String> {
    match given {
        Given::Flag(flag) => Ok(*flag),
        Given::Text(text) => match text.trim().to_ascii_lowercase().as_str() {
            "" | "t" | "true" | "y" | "yes" | "1" => Ok(true),
            "f" | "false" | "n" | "no" | "0" => Ok(false),
            _ => Err(format!("`{text}' is not true or false")),
        },
        Given::Integer(_) | Given::List(_) => Err("is not true or false".to_owned()),
    }
}

fn sent_on_or_none(text: &str) -> Result<Option<String>, String> {
    let text = text.trim();
    match text.split_once(':') {
        _ if text.is_empty() => Ok(None),
        Some((mailer, _)) if mailer.eq_ignore_ascii_case("error") => Ok(Some(text.to_owned())),
        _ if text.contains(char::is_whitespace) || text.ends_with('@') => {
            Err(format!("`{text}' is not [MAILER:]HOST"))
        }
        _ => Ok(Some(text.to_owned())),
    }
}

fn domain_or_none(text: &str) -> Result<Option<String>, String> {
    let text = text.trim().trim_end_matches('.');
    if text.is_empty() {
        return Ok(None);
    }
    if host::is_domain_name(text) {
        Ok(Some(text.to_owned()))
    } else {
        Err(format!("`{text}' is not a domain name"))
    }
}
