//! What a session is told about the host, its limits and its client. Plain values.
//!
//! Defaults are Sendmail's, where Sendmail has a limit at all; every limit here is one (I8).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Clock;
use crate::config::{Privacy as Flag, PrivacyOptions, SmtpdOptions};
use crate::envelope::MessageId;
use crate::maillog::Severity;
use crate::route::{Client, NameLookup};

/// The version in greeting and Received fields.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Settings shared by all sessions of a daemon.
pub struct Settings {
    /// This host's full name, Sendmail's `$j`.
    pub host: String,
    /// The greeting's text after the 220, with `$j`, `$w`, `$v`, `$Z` and `$b` to be put in; the word ESMTP goes in
    /// after its first word.
    pub greeting: String,
    /// Which commands are open to whom.
    pub privacy: Privacy,
    /// How much a client may send.
    pub limits: Limits,
    /// How long a client may take.
    pub timeouts: Timeouts,
    /// Whether HELO takes what is no host name.
    pub has_lax_helo: bool,
    /// The wall clock of dates, and the envelope's arrival.
    pub clock: Arc<dyn Clock>,
    /// A fresh queue id, for log lines of sessions that have no message yet.
    pub new_id: Arc<dyn Fn() -> MessageId + Send + Sync>,
}

impl Settings {
    /// Settings with every limit at its default.
    #[must_use]
    pub fn new(
        host: impl Into<String>,
        clock: Arc<dyn Clock>,
        new_id: Arc<dyn Fn() -> MessageId + Send + Sync>,
    ) -> Self {
        Self {
            host: host.into(),
            greeting: "$j Diligence $v; $b".to_owned(),
            privacy: Privacy::default(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            has_lax_helo: false,
            clock,
            new_id,
        }
    }

    /// The settings that the configuration asks for.
    #[must_use]
    pub fn of_config(
        options: &SmtpdOptions,
        host: impl Into<String>,
        clock: Arc<dyn Clock>,
        new_id: Arc<dyn Fn() -> MessageId + Send + Sync>,
    ) -> Self {
        let limits = &options.limits;
        Self {
            greeting: options.greeting.clone(),
            privacy: Privacy::of_config(options.privacy),
            limits: Limits {
                message_bytes_max: limits.max_message_size.map_or(0, |size| size.as_bytes()),
                header_bytes_max: limits.max_headers_length.as_len(),
                recipients_max: usize::try_from(limits.max_rcpts).unwrap_or(usize::MAX),
                hops_max: limits.max_hop_count,
                bad_recipients_throttle: limits.bad_rcpt_throttle.unwrap_or(0),
                noop_max: limits.max_noop_commands,
            },
            timeouts: Timeouts {
                command: options.timeouts.command,
                data_block: options.timeouts.datablock,
                greet_pause: options.timeouts.greet_pause,
                ..Timeouts::default()
            },
            has_lax_helo: options.allow_bogus_helo,
            ..Self::new(host, clock, new_id)
        }
    }
}

/// Sendmail's PrivacyOptions, as far as they concern SMTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "a set of flags that an operator sets one by one"
)]
pub struct Privacy {
    /// `needmailhelo`: MAIL only after HELO.
    pub needs_helo_for_mail: bool,
    /// `needexpnhelo`: EXPN only after HELO.
    pub needs_helo_for_expn: bool,
    /// `needvrfyhelo`: VRFY only after HELO.
    pub needs_helo_for_vrfy: bool,
    /// `noexpn`: EXPN is refused.
    pub no_expn: bool,
    /// `novrfy`: VRFY says nothing.
    pub no_vrfy: bool,
    /// `noverb`: VERB is refused.
    pub no_verb: bool,
    /// `noreceipts`: DSN is neither offered nor taken.
    pub no_receipts: bool,
}

impl Privacy {
    fn of_config(flags: PrivacyOptions) -> Self {
        Self {
            needs_helo_for_mail: flags.has(Flag::NeedMailHelo),
            needs_helo_for_expn: flags.has(Flag::NeedExpnHelo),
            needs_helo_for_vrfy: flags.has(Flag::NeedVrfyHelo),
            no_expn: flags.has(Flag::NoExpn),
            no_vrfy: flags.has(Flag::NoVrfy),
            no_verb: flags.has(Flag::NoVerb),
            no_receipts: flags.has(Flag::NoReceipts),
        }
    }
}

/// How much a client may send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Longest message in bytes, line ends counted as one; 0 for none but the spool's.
    pub message_bytes_max: u64,
    /// Longest header in bytes.
    pub header_bytes_max: usize,
    /// Most recipients of a message.
    pub recipients_max: usize,
    /// Most Received fields, our own included.
    pub hops_max: u32,
    /// Refused recipients after which each RCPT is answered a second late; 0 for never.
    pub bad_recipients_throttle: u32,
    /// Commands without effect after which each is answered late.
    pub noop_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            message_bytes_max: 0,
            header_bytes_max: 32_768,
            recipients_max: 10_000,
            hops_max: 25,
            bad_recipients_throttle: 0,
            noop_max: 20,
        }
    }
}

/// How long a client may take (RFC 5321 4.5.3.2.7 asks for at least 5 minutes).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// For the next command.
    pub command: Duration,
    /// For the next piece of a message.
    pub data_block: Duration,
    /// How long the greeting waits for clients that do not; zero to greet at once.
    pub greet_pause: Duration,
    /// How long VERB lets a session wait for the message's run.
    pub verbose_run: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            command: Duration::from_secs(3600),
            data_block: Duration::from_secs(3600),
            greet_pause: Duration::ZERO,
            verbose_run: Duration::from_secs(120),
        }
    }
}

/// Who is at the other end.
#[derive(Debug, Clone)]
pub struct Peer {
    /// What routing asks about; its `helo` is kept up to date by the session.
    pub client: Client,
    /// As log and Received field show it: `name [1.2.3.4]`, `[1.2.3.4]`, `name [1.2.3.4] (may be forged)`, or
    /// `user@localhost` for `-bs`.
    pub shown: String,
    /// Whether VERB is for it: this host itself.
    pub is_trusted: bool,
    /// Whether bytes that come before their reply was sent are held against it. Not for standard input.
    pub must_wait: bool,
    /// The daemon it came through, in log and envelope: `MTA`; `stdin` for standard input.
    pub daemon: Arc<str>,
    /// How often it is here.
    pub load: ClientLoad,
}

/// A client's connections, this one included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClientLoad {
    /// In the last minute.
    pub rate: u32,
    /// At once.
    pub open: u32,
}

impl Peer {
    /// A client on a socket. `name` is what its address resolves to; `is_forged` if that name does not resolve back.
    #[must_use]
    pub fn remote(address: IpAddr, name: Option<String>, is_forged: bool) -> Self {
        let literal = match address {
            IpAddr::V4(v4) => format!("[{v4}]"),
            IpAddr::V6(v6) => format!("[IPv6:{v6}]"),
        };
        let shown = match &name {
            Some(name) if is_forged => format!("{name} {literal} (may be forged)"),
            Some(name) => format!("{name} {literal}"),
            None => literal,
        };
        Self {
            client: Client {
                address,
                name: name.filter(|_| !is_forged),
                name_lookup: if is_forged {
                    NameLookup::Forged
                } else {
                    NameLookup::Settled
                },
                helo: String::new(),
            },
            shown,
            is_trusted: is_this_host(address),
            must_wait: true,
            daemon: Arc::from("MTA"),
            load: ClientLoad::default(),
        }
    }

    /// A local user on standard input.
    #[must_use]
    pub fn local(user: &str) -> Self {
        Self {
            client: Client {
                address: IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
                name: Some("localhost".to_owned()),
                name_lookup: NameLookup::Settled,
                helo: String::new(),
            },
            shown: format!("{user}@localhost"),
            is_trusted: true,
            must_wait: false,
            daemon: Arc::from("stdin"),
            load: ClientLoad::default(),
        }
    }

    /// The name alone, as some log lines have it: `client50.test`, or `[1.2.3.4]` without one.
    #[must_use]
    pub fn short(&self) -> &str {
        self.shown.split(' ').next().unwrap_or(&self.shown)
    }
}

/// 127.0.0.1 and ::1; the other loopback addresses are strangers.
fn is_this_host(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4 == std::net::Ipv4Addr::LOCALHOST,
        IpAddr::V6(v6) => v6 == std::net::Ipv6Addr::LOCALHOST,
    }
}

/// A line for the maillog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// Severity.
    pub severity: Severity,
    /// The smallest LogLevel at which it is written.
    pub level: u32,
    /// The queue id put before it; `None` for lines that have none, such as those about a client refused.
    pub id: Option<MessageId>,
    /// The text after the id.
    pub text: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_shown_as_sendmail_shows_them() {
        let ip: IpAddr = "127.0.0.51".parse().unwrap();
        let peer = Peer::remote(ip, Some("c.test".into()), false);
        assert_eq!(peer.shown, "c.test [127.0.0.51]");
        assert_eq!(peer.short(), "c.test");
        assert_eq!(peer.client.name.as_deref(), Some("c.test"));
        assert!(!peer.is_trusted);
        let forged = Peer::remote(ip, Some("f.test".into()), true);
        assert_eq!(forged.shown, "f.test [127.0.0.51] (may be forged)");
        assert_eq!(forged.client.name, None);
        let bare = Peer::remote("::1".parse().unwrap(), None, false);
        assert_eq!(bare.shown, "[IPv6:::1]");
        assert!(bare.is_trusted);
        assert!(Peer::remote("127.0.0.1".parse().unwrap(), None, false).is_trusted);
    }
}
