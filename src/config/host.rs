//! The names of this host: Sendmail's macros `j` (full name), `w` (first label)
//! and `m` (the rest).
//!
//! The name is the configured one, or the system's, made full by `/etc/hosts`
//! or the option `domain` where it has no dot. DNS is never asked, so that
//! starting is neither delayed nor refused; a name that stays without a domain
//! is used as it is and the caller says so in the log.
//!
//! Blocks: disk, for `/etc/hosts`. Limits: [`HOSTS_FILE_LEN_MAX`].

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::HostOptions;

/// How much of `/etc/hosts` is looked at, in bytes.
const HOSTS_FILE_LEN_MAX: u64 = 1 << 20;
/// The longest domain name, in bytes. RFC 1035 2.3.4.
const DOMAIN_LEN_MAX: usize = 253;
/// The longest label of a domain name, in bytes. RFC 1035 2.3.4.
const LABEL_LEN_MAX: usize = 63;
/// What a host is called that has no usable name at all.
const NAMELESS: &str = "localhost";

/// The names of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName {
    /// The full name, as far as it is known (macro `j`).
    pub full: String,
    /// Every name by which `/etc/hosts` calls this host, in lower case, the
    /// full one and its first label included: they are class `w`.
    pub aliases: Vec<String>,
}

impl HostName {
    /// Whether the name has a domain. If not, the log should say so.
    #[must_use]
    pub fn is_qualified(&self) -> bool {
        self.full.contains('.')
    }

    /// The first label (macro `w`).
    #[must_use]
    pub fn short(&self) -> &str {
        self.full
            .split_once('.')
            .map_or(&self.full, |(head, _)| head)
    }

    /// Finds out the names of this host.
    ///
    /// Never fails: what the system does not tell is made do without.
    /// Blocks: disk.
    #[must_use]
    pub fn find(options: &HostOptions) -> Self {
        let system = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        let mut hosts = String::new();
        if let Ok(file) = File::open(Path::new("/etc/hosts")) {
            // Without the file, or with a bad one, the name stays as it is.
            let _ = file.take(HOSTS_FILE_LEN_MAX).read_to_string(&mut hosts);
        }
        Self::from_parts(options, &system, &hosts)
    }

    fn from_parts(options: &HostOptions, system: &str, hosts: &str) -> Self {
        let system = system.trim_end_matches('.');
        let system = if is_domain_name(system) {
            system
        } else {
            NAMELESS
        };
        let line = hosts_line(hosts, system);
        let full = options.host_name.clone().unwrap_or_else(|| {
            if system.contains('.') {
                return system.to_owned();
            }
            if let Some(domain) = &options.domain {
                return format!("{system}.{domain}");
            }
            line.iter()
                .find(|name| is_full_name_of(name, system))
                .map_or_else(|| system.to_owned(), |name| (*name).to_owned())
        });
        let mut aliases: Vec<String> = Vec::new();
        let short = full.split_once('.').map_or(full.as_str(), |(head, _)| head);
        for name in [full.as_str(), short, system].into_iter().chain(line) {
            let folded = name.to_ascii_lowercase();
            if !aliases.contains(&folded) {
                aliases.push(folded);
            }
        }
        Self { full, aliases }
    }
}

/// The names on the line of `/etc/hosts` that names `system`.
fn hosts_line<'h>(hosts: &'h str, system: &str) -> Vec<&'h str> {
    for line in hosts.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let names: Vec<&str> = line
            .split_whitespace()
            .skip(1)
            .filter(|name| is_domain_name(name))
            .collect();
        let is_named =
            |name: &&str| name.eq_ignore_ascii_case(system) || is_full_name_of(name, system);
        if names.iter().any(is_named) {
            return names;
        }
    }
    Vec::new()
}

/// Whether `name` is `system` with a domain: `gold.example.test` of `gold`.
fn is_full_name_of(name: &str, system: &str) -> bool {
    name.split_once('.')
        .is_some_and(|(head, _)| head.eq_ignore_ascii_case(system))
}

/// Whether `text` can be a domain name: labels of letters, digits, hyphens and
/// underscores, joined by dots. RFC 1123 2.1; the underscore for host names
/// that exist in spite of it.
#[must_use]
pub fn is_domain_name(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=LABEL_LEN_MAX).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    (1..=DOMAIN_LEN_MAX).contains(&text.len()) && text.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTS: &str = "127.0.0.1 localhost\n127.0.0.1 gold.example.test gold # us\n";

    fn named(host_name: Option<&str>, domain: Option<&str>) -> HostOptions {
        HostOptions {
            host_name: host_name.map(str::to_owned),
            domain: domain.map(str::to_owned),
        }
    }

    #[test]
    fn a_short_name_is_made_full_by_the_hosts_file() {
        let host = HostName::from_parts(&named(None, None), "gold", HOSTS);
        assert_eq!(host.full, "gold.example.test");
        assert_eq!(host.short(), "gold");
        assert!(host.is_qualified());
        assert_eq!(host.aliases, ["gold.example.test", "gold"]);
    }

    #[test]
    fn what_is_configured_stands_above_what_is_found() {
        let host = HostName::from_parts(&named(Some("mx.test"), None), "gold", HOSTS);
        assert_eq!(host.full, "mx.test");
        assert!(host.aliases.contains(&"gold".to_owned()));
        let host = HostName::from_parts(&named(None, Some("my.test")), "gold", HOSTS);
        assert_eq!(host.full, "gold.my.test");
    }

    #[test]
    fn a_name_without_a_domain_is_used_as_it_is() {
        let host = HostName::from_parts(&named(None, None), "silver", HOSTS);
        assert_eq!(host.full, "silver");
        assert!(!host.is_qualified());
        let host = HostName::from_parts(&named(None, None), "not a name", HOSTS);
        assert_eq!(host.full, "localhost");
    }

    #[test]
    fn domain_names_are_told_from_other_text() {
        for good in ["a", "mx.example.test", "1.2", "a_b.c"] {
            assert!(is_domain_name(good), "{good}");
        }
        let long = "a".repeat(64);
        for bad in ["", ".", "a..b", "a b", "-a", "a-.b", "a/b", &long] {
            assert!(!is_domain_name(bad), "{bad}");
        }
    }
}
