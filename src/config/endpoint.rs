//! Where the daemon listens (`DaemonPortOptions`) and whom it relays to
//! (`smart_host`).
//!
//! Pure values: names are kept as written and looked up by nobody here.
//!
//! Source: Installation and Operation Guide 5.6 (DaemonPortOptions).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The port a daemon takes when its options name none. RFC 5321 4.5.4.2.
pub const SMTP_PORT: u16 = 25;
/// The port called `submission`. RFC 6409 3.1.
pub const SUBMISSION_PORT: u16 = 587;
/// The longest name of a daemon, in bytes.
const DAEMON_NAME_LEN_MAX: usize = 64;
/// The longest host name accepted as a smart host, in bytes. RFC 1035 2.3.4.
const HOST_NAME_LEN_MAX: usize = 255;

/// The family of addresses a daemon listens with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Family {
    /// IPv4.
    #[default]
    Inet,
    /// IPv6.
    Inet6,
}

/// One listener: `Name=MTA, Addr=127.0.0.1, Port=25`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DaemonPort {
    /// What the maillog's `daemon=` calls it.
    pub name: String,
    /// The address to listen on.
    pub address: IpAddr,
    /// The port; 0 lets the system choose a free one, which the daemon prints.
    pub port: u16,
    /// Connections the kernel may hold back for us.
    pub listen_queue: Option<u32>,
    /// Modifier `E`: ETRN is not offered on this port.
    pub is_etrn_refused: bool,
}

impl DaemonPort {
    /// Reads one `DaemonPortOptions` value. Keys count by their first letter
    /// without regard to case, as in Sendmail (`P=` is `Port=`). An address not
    /// given is `default_address`.
    ///
    /// # Errors
    /// A sentence that names the part which is unknown, wrong or not built.
    pub fn parse(text: &str, default_address: IpAddr) -> Result<Self, String> {
        let mut name = None;
        let mut address = None;
        let mut family = None;
        let mut port = SMTP_PORT;
        let mut listen_queue = None;
        let mut is_etrn_refused = false;
        for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let Some((key, value)) = part.split_once('=') else {
                return Err(format!("`{part}' is not of the form Key=value"));
            };
            let (key, value) = (key.trim(), value.trim());
            match key.chars().next().map(|c| c.to_ascii_lowercase()) {
                Some('n') => name = Some(daemon_name(value)?),
                Some('a') => address = Some(listen_address(value)?),
                Some('p') => port = port_number(value)?,
                Some('l') => {
                    let count: u32 = value
                        .parse()
                        .map_err(|_| format!("Listen={value} is not a number"))?;
                    listen_queue = Some(count.max(1));
                }
                Some('f') => {
                    family = Some(match value.to_ascii_lowercase().as_str() {
                        "inet" => Family::Inet,
                        "inet6" => Family::Inet6,
                        _ => return Err(format!("Family={value} is not inet or inet6")),
                    });
                }
                Some('m') => {
                    for letter in value.chars().filter(|c| !c.is_whitespace()) {
                        match letter {
                            'E' => is_etrn_refused = true,
                            _ => {
                                return Err(format!("Modifier {letter} is not supported"));
                            }
                        }
                    }
                }
                _ => return Err(format!("key {key} is not supported")),
            }
        }
        let address = match (address, family) {
            (Some(IpAddr::V4(_)), Some(Family::Inet6)) => {
                return Err("Addr= is not an address of Family=inet6".to_owned());
            }
            (Some(IpAddr::V6(_)), Some(Family::Inet)) => {
                return Err("Addr= is not an address of Family=inet".to_owned());
            }
            (Some(address), _) => address,
            (None, Some(Family::Inet6)) if default_address.is_loopback() => {
                IpAddr::V6(Ipv6Addr::LOCALHOST)
            }
            (None, Some(Family::Inet6)) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            (None, _) => default_address,
        };
        Ok(Self {
            name: name.unwrap_or_else(|| "MTA".to_owned()),
            address,
            port,
            listen_queue,
            is_etrn_refused,
        })
    }

    /// The address and port to bind.
    #[must_use]
    pub const fn socket_address(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }
}

/// In the form that [`DaemonPort::parse`] reads.
impl fmt::Display for DaemonPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Name={}, Addr={}, Port={}",
            self.name, self.address, self.port
        )?;
        if let Some(count) = self.listen_queue {
            write!(f, ", Listen={count}")?;
        }
        if self.is_etrn_refused {
            f.write_str(", M=E")?;
        }
        Ok(())
    }
}

fn daemon_name(value: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if value.is_empty() || value.len() > DAEMON_NAME_LEN_MAX || !value.chars().all(is_plain) {
        return Err(format!(
            "Name={value} is not a name of 1 to {DAEMON_NAME_LEN_MAX} letters, digits, `-', `_' or `.'"
        ));
    }
    Ok(value.to_owned())
}

/// An address as an option writes it: `127.0.0.1`, `[127.0.0.1]`, `::1`,
/// `IPv6:::1`, `localhost`.
fn listen_address(value: &str) -> Result<IpAddr, String> {
    let bare = strip_brackets(value).unwrap_or(value);
    let bare = strip_prefix_no_case(bare, "ipv6:").unwrap_or(bare);
    if bare.eq_ignore_ascii_case("localhost") {
        return Ok(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    bare.parse()
        .map_err(|_| format!("Addr={value} is not an IP address"))
}

/// A port by number or by one of the names that mail uses.
fn port_number(value: &str) -> Result<u16, String> {
    match value.to_ascii_lowercase().as_str() {
        "smtp" | "mail" => Ok(SMTP_PORT),
        "submission" | "msa" => Ok(SUBMISSION_PORT),
        number => number
            .parse()
            .map_err(|_| format!("Port={value} is not a port number")),
    }
}

fn strip_brackets(text: &str) -> Option<&str> {
    text.strip_prefix('[')?.strip_suffix(']')
}

fn strip_prefix_no_case<'t>(text: &'t str, prefix: &str) -> Option<&'t str> {
    let head = text.get(..prefix.len())?;
    head.eq_ignore_ascii_case(prefix)
        .then(|| text.get(prefix.len()..))
        .flatten()
}

/// A host to relay through: `mail.example.com`, `[mail.example.com]`,
/// `[192.0.2.1]:2525`, `host:25`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// Name or address, without brackets, port and `IPv6:`.
    pub host: String,
    /// Brackets were given: the host's own addresses are used, not its MX
    /// records. Always so for a literal address.
    pub is_mx_skipped: bool,
    /// The port; [`SMTP_PORT`] when none was given.
    pub port: u16,
    /// Whether mail for it is the mailer esmtp's, not relay's.
    pub is_by_esmtp: bool,
}

impl HostPort {
    /// Reads a smart host. A leading name of a mailer (`esmtp:`, `smtp:`,
    /// `relay:`) may stand before it, as in Sendmail's `SMART_HOST`.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let by_esmtp = ["esmtp:", "smtp:"]
            .iter()
            .find_map(|mailer| strip_prefix_no_case(text, mailer));
        let text = by_esmtp
            .or_else(|| strip_prefix_no_case(text, "relay:"))
            .unwrap_or(text);
        if text.is_empty() {
            return Err("a host is missing".to_owned());
        }
        let (host, port, is_bracketed) = if let Some(rest) = text.strip_prefix('[') {
            let Some((host, tail)) = rest.split_once(']') else {
                return Err(format!("`{text}' has no closing bracket"));
            };
            let port = match tail {
                "" => None,
                tail => Some(tail.strip_prefix(':').ok_or_else(|| {
                    format!("`{tail}' stands after the closing bracket; only :port may")
                })?),
            };
            (host, port, true)
        } else if text.parse::<IpAddr>().is_ok() {
            (text, None, true)
        } else {
            match text.split_once(':') {
                Some((host, port)) => (host, Some(port), false),
                None => (text, None, false),
            }
        };
        let host = strip_prefix_no_case(host, "ipv6:").unwrap_or(host);
        let port = match port {
            Some(port) => match port_number(port)? {
                0 => return Err("port 0 cannot be connected to".to_owned()),
                port => port,
            },
            None => SMTP_PORT,
        };
        let is_address = host.parse::<IpAddr>().is_ok();
        let is_name_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        if !is_address
            && (host.is_empty()
                || host.len() > HOST_NAME_LEN_MAX
                || !host.chars().all(is_name_char))
        {
            return Err(format!("`{host}' is not a host name or an address"));
        }
        Ok(Self {
            host: host.to_owned(),
            is_mx_skipped: is_bracketed || is_address,
            port,
            is_by_esmtp: by_esmtp.is_some(),
        })
    }

    /// The literal address, where the host is one.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        self.host.parse().ok()
    }
}

/// In the form that [`HostPort::parse`] reads.
impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_by_esmtp {
            f.write_str("esmtp:")?;
        }
        if self.is_mx_skipped {
            write!(f, "[{}]", self.host)?;
        } else {
            f.write_str(&self.host)?;
        }
        if self.port != SMTP_PORT {
            write!(f, ":{}", self.port)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    #[test]
    fn daemon_ports_read_back_as_they_are_printed() {
        let port =
            DaemonPort::parse("Name=MSA, Family=inet, Addr=127.0.0.1, Port=587, M=E", ANY).unwrap();
        assert_eq!(port.name, "MSA");
        assert_eq!(port.socket_address().to_string(), "127.0.0.1:587");
        assert!(port.is_etrn_refused);
        assert_eq!(DaemonPort::parse(&port.to_string(), ANY), Ok(port));
    }

    #[test]
    fn what_a_daemon_port_leaves_out_has_its_default() {
        let port = DaemonPort::parse("Port=0", LOOPBACK).unwrap();
        assert_eq!(port.socket_address().to_string(), "127.0.0.1:0");
        let port = DaemonPort::parse("", ANY).unwrap();
        assert_eq!((port.port, port.name.as_str()), (25, "MTA"));
        let port = DaemonPort::parse("Family=inet6", LOOPBACK).unwrap();
        assert_eq!(port.socket_address().to_string(), "[::1]:25");
        let port = DaemonPort::parse("a=[IPv6:::1],p=smtp", ANY).unwrap();
        assert_eq!(port.socket_address().to_string(), "[::1]:25");
    }

    #[test]
    fn what_is_not_built_in_a_daemon_port_is_named() {
        for (text, named) in [
            ("Port=25, M=a", "Modifier a"),
            ("InputMailFilters=x", "InputMailFilters"),
            ("Port=70000", "Port=70000"),
            ("Addr=nowhere", "Addr=nowhere"),
            ("Family=unix", "Family=unix"),
            ("Family=inet6,Addr=127.0.0.1", "inet6"),
            ("Name=a b", "Name=a b"),
            ("25", "`25'"),
        ] {
            let error = DaemonPort::parse(text, ANY).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn smart_hosts_read_back_as_they_are_printed() {
        for (text, host, is_mx_skipped, port) in [
            ("mail.example.com", "mail.example.com", false, 25),
            ("[mail.example.com]", "mail.example.com", true, 25),
            ("[192.0.2.1]:2525", "192.0.2.1", true, 2525),
            ("192.0.2.1", "192.0.2.1", true, 25),
            ("host:587", "host", false, 587),
            ("[IPv6:2001:db8::1]", "2001:db8::1", true, 25),
            ("::1", "::1", true, 25),
            ("esmtp:[127.0.0.1]:26", "127.0.0.1", true, 26),
        ] {
            let parsed = HostPort::parse(text).unwrap();
            assert_eq!(
                (parsed.host.as_str(), parsed.is_mx_skipped, parsed.port),
                (host, is_mx_skipped, port),
                "{text}"
            );
            assert_eq!(HostPort::parse(&parsed.to_string()), Ok(parsed));
        }
    }

    #[test]
    fn bad_smart_hosts_are_refused() {
        for text in [
            "", "[", "[a]x", "a b", "host:0", "host:", "host:x", "[]", "a/b",
        ] {
            assert!(HostPort::parse(text).is_err(), "{text}");
        }
    }
}
