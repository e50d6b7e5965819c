//! Reading `sendmail.toml`: TOML text to values of [`Config`], with the place
//! of every error.
//!
//! Keys may be dotted or in tables (`timeout.command` and `[timeout] command`
//! are the same). The table `map` is the one whose keys are not options but
//! names, chosen by the operator. Blocks on the disk for one bounded file.
//!
//! Limits: [`CONFIG_FILE_LEN_MAX`].
//! Source: TOML 1.1 for the syntax; [`options`](super::options) for the rest.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Place};
use super::not_honoured;
use super::options::{self, OPTIONS};
use super::value::Given;
use super::{CONFIG_FILE_LEN_MAX, Config, Origin};

/// How many letters may differ for a name to be suggested instead.
const NEAREST_DISTANCE_MAX: usize = 4;
/// What keys of the table of maps begin with.
const MAP_TABLE: &str = "map.";
/// The deepest nesting of tables that an option's key has.
const TABLE_DEPTH_MAX: usize = 3;

/// Reads the whole file.
pub(super) fn read(path: &Path) -> Result<String, ConfigError> {
    let failed = |source: io::Error| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(ConfigError::Unusable {
            path: path.to_owned(),
            reason: "is not a regular file".to_owned(),
        });
    }
    let mut bytes = Vec::new();
    file.take(CONFIG_FILE_LEN_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > CONFIG_FILE_LEN_MAX {
        return Err(ConfigError::Unusable {
            path: path.to_owned(),
            reason: format!("is longer than {CONFIG_FILE_LEN_MAX} bytes"),
        });
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let head = error.as_bytes().get(..valid).unwrap_or_default();
        let line = 1 + head.iter().filter(|byte| **byte == b'\n').count();
        ConfigError::Syntax {
            place: Place::Line {
                file: path.to_owned(),
                line,
            },
            message: "is not UTF-8".to_owned(),
        }
    })
}

/// Sets in `config` what `text`, the content of `path`, says.
pub(super) fn apply(config: &mut Config, path: &Path, text: &str) -> Result<(), ConfigError> {
    let source = Source { path, text };
    let table = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        place: source.place(error.span().unwrap_or(0..0)),
        message: error.message().replace('\n', "; "),
    })?;
    let mut values = Vec::new();
    source.flatten("", table.get_ref(), 1, &mut values)?;
    // In the order of the file, so that its first error is the one reported.
    values.sort_by_key(|value| value.key_span.start);
    for value in &values {
        source.set(config, value)?;
    }
    Ok(())
}

/// One key and its value, with their places.
struct KeyValue {
    key: String,
    key_span: Range<usize>,
    value: Given,
    value_span: Range<usize>,
}

struct Source<'s> {
    path: &'s Path,
    text: &'s str,
}

impl Source<'_> {
    /// Line and column of the begin of a span.
    fn place(&self, span: Range<usize>) -> Place {
        let at = span.start.min(self.text.len());
        let head = self.text.get(..at).unwrap_or_default();
        let line = 1 + head.matches('\n').count();
        let line_begin = head.rfind('\n').map_or(0, |newline| newline + 1);
        let column = 1 + head.get(line_begin..).unwrap_or_default().chars().count();
        Place::Column {
            file: self.path.to_owned(),
            line,
            column,
        }
    }

    /// Collects the values of `table` under their dotted keys.
    fn flatten(
        &self,
        prefix: &str,
        table: &DeTable<'_>,
        depth: usize,
        values: &mut Vec<KeyValue>,
    ) -> Result<(), ConfigError> {
        for (name, value) in table {
            let key = if prefix.is_empty() {
                name.get_ref().to_string()
            } else {
                format!("{prefix}.{}", name.get_ref())
            };
            if let DeValue::Table(inner) = value.get_ref() {
                if depth >= TABLE_DEPTH_MAX {
                    return Err(unknown(self.place(name.span()), &key));
                }
                self.flatten(&key, inner, depth + 1, values)?;
                continue;
            }
            values.push(KeyValue {
                value: self.given(&key, value)?,
                key,
                key_span: name.span(),
                value_span: value.span(),
            });
        }
        Ok(())
    }

    fn given(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Result<Given, ConfigError> {
        let bad = |reason: String, span: Range<usize>| ConfigError::BadValue {
            place: self.place(span),
            key: key.to_owned(),
            reason,
        };
        match value.get_ref() {
            DeValue::String(text) => Ok(Given::Text(text.to_string())),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map(Given::Integer)
                .map_err(|_| bad("number is too large".to_owned(), value.span())),
            DeValue::Boolean(flag) => Ok(Given::Flag(*flag)),
            DeValue::Array(parts) => {
                let mut list = Vec::new();
                for part in parts.iter() {
                    match part.get_ref() {
                        DeValue::String(text) => list.push(text.to_string()),
                        other => {
                            return Err(bad(
                                format!("{} where a string belongs", other.type_str()),
                                part.span(),
                            ));
                        }
                    }
                }
                Ok(Given::List(list))
            }
            other => Err(bad(
                format!("no option has a value of type {}", other.type_str()),
                value.span(),
            )),
        }
    }

    fn set(&self, config: &mut Config, given: &KeyValue) -> Result<(), ConfigError> {
        let key_place = || self.place(given.key_span.clone());
        if let Some(name) = given.key.strip_prefix(MAP_TABLE) {
            let defined = match &given.value {
                Given::Text(text) => config.define_map(name, text),
                _ => Err("is a map specification, in quotes".to_owned()),
            };
            return defined.map_err(|reason| ConfigError::BadValue {
                place: self.place(given.value_span.clone()),
                key: given.key.clone(),
                reason,
            });
        }
        let Some(index) = options::by_key(&given.key) else {
            return self.refuse(given, key_place());
        };
        let Some(option) = OPTIONS.get(index) else {
            return Err(unknown(key_place(), &given.key));
        };
        option
            .set(config, &given.value)
            .map_err(|reason| ConfigError::BadValue {
                place: self.place(given.value_span.clone()),
                key: given.key.clone(),
                reason,
            })?;
        let line = match self.place(given.key_span.clone()) {
            Place::Column { line, .. } | Place::Line { line, .. } => line,
            Place::CommandLine(_) | Place::Nowhere => 0,
        };
        config.set_origin(index, Origin::File { line });
        Ok(())
    }

    /// A key that is no option: one of Sendmail's whose value asks for what is
    /// done anyway, one that is not supported, or an unknown one.
    fn refuse(&self, given: &KeyValue, place: Place) -> Result<(), ConfigError> {
        if let Some(option) = not_honoured::by_name(&given.key) {
            let is_accepted = match &given.value {
                Given::Text(text) => option.is_accepted(text),
                Given::Integer(number) => option.is_accepted(&number.to_string()),
                Given::Flag(flag) => option.is_accepted(&flag.to_string()),
                Given::List(_) => false,
            };
            if is_accepted {
                return Ok(());
            }
            return Err(ConfigError::NotSupported {
                place,
                name: option.name.to_owned(),
                advice: option.advice,
            });
        }
        Err(unknown(place, &given.key))
    }
}

fn unknown(place: Place, key: &str) -> ConfigError {
    // Sendmail's own spelling leads to the key that it has here.
    let near = options::by_name(key)
        .and_then(|index| OPTIONS.get(index))
        .map(|option| option.key)
        .or_else(|| nearest(key, OPTIONS.iter().map(|option| option.key)));
    ConfigError::Unknown {
        place,
        name: key.to_owned(),
        nearest: near.map(str::to_owned),
    }
}

/// The known name that differs least from `name`, if any is near enough to be
/// meant.
pub(super) fn nearest<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let folded = options::fold(name);
    let limit = NEAREST_DISTANCE_MAX.min(folded.chars().count() / 2);
    known
        .map(|candidate| (distance(&folded, &options::fold(candidate)), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance: insertions, deletions and changes of one letter.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        let mut next = vec![left];
        for (to, above) in b.iter().zip(row.iter().skip(1)) {
            let changed = diagonal + usize::from(from != *to);
            left = changed.min(left + 1).min(above + 1);
            diagonal = *above;
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{Remote, Request, Role};
    use super::*;

    fn load(text: &str) -> Result<Config, ConfigError> {
        let path = Path::new("/sand/box/etc/mail/sendmail.toml");
        let request = Request {
            sandbox: Some(Path::new("/sand/box")),
            ..Request::default()
        };
        Config::from_text(&request, path, text)
    }

    fn error(text: &str) -> String {
        load(text).unwrap_err().to_string()
    }

    #[test]
    fn dotted_keys_and_tables_mean_the_same() {
        let dotted = load("timeout.queue_return = \"2d\"\nmax_message_size = 1000").unwrap();
        let table = load("max_message_size = \"1000\"\n[timeout]\nqueue_return = 2").unwrap();
        assert_eq!(dotted.queue, table.queue);
        assert_eq!(dotted.smtpd, table.smtpd);
        assert_eq!(
            dotted.queue.retry.queue_return,
            Duration::from_secs(2 * 86_400)
        );
    }

    #[test]
    fn an_unknown_key_is_reported_with_its_place_and_the_nearest_name() {
        assert_eq!(
            error("# comment\n\n  queue_dirctory = \"x\"\n"),
            "/sand/box/etc/mail/sendmail.toml:3:3: unknown option `queue_dirctory'; \
             did you mean `queue_directory'?"
        );
        assert_eq!(
            error("Timeout.queuereturn = \"1d\"\n"),
            "/sand/box/etc/mail/sendmail.toml:1:9: unknown option `Timeout.queuereturn'; \
             did you mean `timeout.queue_return'?"
        );
        assert!(!error("zzzzzzzzzzzzzzz = 1\n").contains("did you mean"));
    }

    #[test]
    fn a_bad_value_is_reported_with_its_place() {
        assert_eq!(
            error("[timeout]\ncommand = \"5x\"\n"),
            "/sand/box/etc/mail/sendmail.toml:2:11: timeout.command: invalid time unit `x'"
        );
        for (text, part) in [
            ("max_hop_count = 0", "max_hop_count"),
            ("max_daemon_children = 0", "0 is not within 1 to 65000"),
            ("remote = 1", "is not true or false"),
            ("queue_directory = 7", "is not a string"),
            (
                "queue_directory = \"/var/spool/mqueue\"",
                "outside the sandbox",
            ),
            ("queue_directory = \"../mqueue\"", "`..'"),
            (
                "alias_file = \"hash:/etc/mail/aliases\"",
                "outside the sandbox",
            ),
            (
                "alias_file = \"nosuch:etc/mail/aliases\"",
                "unknown map class \"nosuch\"",
            ),
            ("access_db = \"hash -y etc/mail/access\"", "-y"),
            ("access_db = \"etc/mail/access\"", "map"),
            ("alias_file = [1]", "integer where a string belongs"),
            ("privacy_options = \"noexp\"", "did you mean `noexpn'?"),
            ("max_message_size = 1.5", "float"),
            ("log_level = 99999999999999999999", "too large"),
            ("queue_directory = \"a\\u0007\"", "control character"),
            ("daemon_port_options = \"Addr=0.0.0.0\"", "loopback only"),
            (
                "daemon_port_options = [\"Port=2525\", \"Port=2525\"]",
                "twice",
            ),
            ("timeout.queue_warn = \"6d\"", "not shorter"),
            ("min_queue_age = \"5h\"", "shorter than min_queue_age"),
        ] {
            let error = error(text);
            assert!(error.contains(part), "{text}: {error}");
            assert!(
                error.starts_with("/sand") || text.starts_with("min_queue"),
                "{error}"
            );
        }
    }

    #[test]
    fn what_is_not_toml_is_reported_with_its_place() {
        let error = error("remote = true\nsmart_host == 1\n");
        assert!(
            error.starts_with("/sand/box/etc/mail/sendmail.toml:2:13: "),
            "{error}"
        );
        assert!(!error.contains('\n'));
        assert!(load("remote = true\nremote = true\n").is_err());
    }

    #[test]
    fn an_option_that_is_not_honoured_is_refused_by_name_or_already_so() {
        let text = error("trusted_user = \"smmsp\"");
        assert!(
            text.ends_with("option TrustedUser is not supported"),
            "{text}"
        );
        assert!(load("super_safe = true").is_ok());
        // FEATUREs and defines of the m4 configuration, too.
        assert!(load("nocanonify = true\nuse_cw_file = true").is_ok());
        for (setting, part) in [
            (
                "nocanonify = false",
                "nocanonify is not supported: addresses",
            ),
            ("local_procmail = true", "local_mailer"),
            (
                "canonify_domain = \"x.test\"",
                "canonify_domain is not supported",
            ),
            ("ldap_routing = true", "virtusertable and mailertable"),
        ] {
            let text = error(setting);
            assert!(text.contains(part), "{text}");
        }
        assert!(error("super_safe = false").contains("SuperSafe is not supported: no message"));
    }

    #[test]
    fn tables_and_hosts_are_written_as_their_features_are() {
        let plain = Request::default();
        let route = |text: &str| {
            let config = Config::from_text(&plain, Path::new("/x/sendmail.toml"), text);
            config.unwrap().route
        };
        let table = route("virtusertable = true").virtusertable;
        assert_eq!(table.as_deref(), Some("hash /etc/mail/virtusertable"));
        let tables = route("mailertable = true\ndomaintable = true\ngenericstable = \"cdb /x\"");
        assert_eq!(
            tables.mailertable.as_deref(),
            Some("hash /etc/mail/mailertable")
        );
        assert_eq!(
            tables.domaintable.as_deref(),
            Some("hash /etc/mail/domaintable")
        );
        assert_eq!(tables.masquerade.genericstable.as_deref(), Some("cdb /x"));
        assert_eq!(route("access_db = false").access_db, None);
        let boxed = Request {
            sandbox: Some(Path::new("/sand/box")),
            ..Request::default()
        };
        let path = Path::new("/sand/box/etc/mail/sendmail.toml");
        let config = Config::from_text(&boxed, path, "mailertable = true").unwrap();
        assert_eq!(
            config.route.mailertable.as_deref(),
            Some("hash /sand/box/etc/mail/mailertable")
        );
        assert!(
            route("smart_host = \"esmtp:[mx.test]\"")
                .smart_host
                .unwrap()
                .is_by_esmtp
        );
        assert!(
            !route("smart_host = \"relay:mx.test\"")
                .smart_host
                .unwrap()
                .is_by_esmtp
        );
        let text = error("always_add_domain = \"a b\"");
        assert!(text.contains("not true, false or a domain"), "{text}");
    }

    #[test]
    fn nesting_that_no_option_has_is_refused() {
        let text = format!("{} = 1", vec!["a"; 60].join("."));
        assert!(error(&text).contains("unknown option `a.a.a'"));
    }

    #[test]
    fn a_missing_file_is_named() {
        let missing = Path::new("/nonexistent/sendmail.toml");
        let request = Request {
            file: Some(missing),
            ..Request::default()
        };
        let text = Config::load(&request).unwrap_err().to_string();
        assert!(text.contains("/nonexistent/sendmail.toml"), "{text}");
    }

    #[test]
    fn files_that_are_no_text_or_too_long_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sendmail.toml");
        std::fs::write(&path, b"remote = true\n# \xff\n").unwrap();
        let text = read(&path).unwrap_err().to_string();
        assert!(text.ends_with("sendmail.toml:2: is not UTF-8"), "{text}");
        let length = usize::try_from(CONFIG_FILE_LEN_MAX).unwrap() + 1;
        std::fs::write(&path, vec![b'#'; length]).unwrap();
        assert!(
            read(&path)
                .unwrap_err()
                .to_string()
                .contains("is longer than")
        );
        assert!(
            read(dir.path())
                .unwrap_err()
                .to_string()
                .contains("regular file")
        );
    }

    #[test]
    fn the_rules_of_a_sandbox_are_its_defaults() {
        let config = load("").unwrap();
        assert_eq!(config.route.remote, Remote::LoopbackOnly);
        assert_eq!(
            config.paths.queue_directory,
            Path::new("/sand/box/var/spool/mqueue")
        );
        assert_eq!(config.route.alias_files, ["/sand/box/etc/mail/aliases"]);
        let outside = Config::defaults(Role::Mta, None);
        assert_eq!(outside.route.remote, Remote::Allowed);
        assert_eq!(outside.paths.home_directory, None);
    }
}
