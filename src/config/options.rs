//! The one table of options: Sendmail's names and letters, TOML keys, types,
//! ranges, defaults, and a line of text each.
//!
//! The reader of `sendmail.toml`, `-O`/`-o`, `--print-config` and the page
//! sendmail.toml(5) are all made from it. What Sendmail has and this program
//! does not is in [`not_honoured`](super::not_honoured).
//!
//! Source: Installation and Operation Guide 5.6, sendmail(8) `-o`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use super::access::{Control, DelayChecks, DnsList, RelayMailFrom};
use super::dont_blame::DontBlame;
use super::duration::TimeUnit;
use super::endpoint::{DaemonPort, HostPort};
use super::mailer::MailerDefinition;
use super::modes::{DeliveryMode, ErrorMode, PrivacyOptions, Remote, SpoolFileSystem};
use super::size::ByteSize;
use super::value::{Access, Given};
use super::{Config, Role};

pub use super::value::Shown;

/// The port that DNS is asked at when `resolver` names none. RFC 1035 4.2.
const DNS_PORT: u16 = 53;
/// The longest tag of log lines, in bytes. RFC 3164 4.1.3.
const SYSLOG_TAG_LEN_MAX: usize = 32;
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(86_400);
/// The longest pause before a greeting. Source: cf/README, greet_pause.
const GREET_PAUSE_MS_MAX: u32 = 300_000;
/// What has to be written to open this host to everybody.
const PROMISCUOUS: &str = "relay for anybody";

/// One option.
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

fn control(text: &str) -> Result<Control, String> {
    Control::parse(text).ok_or_else(|| "is not true, false or terminate".to_owned())
}

const fn client_timeout(
    key: &'static str,
    default: &'static str,
    field: fn(&mut Config) -> &mut Duration,
    text: &'static str,
) -> OptionDef {
    let access = Access::Time {
        field,
        unit: TimeUnit::Minutes,
        min: SECOND,
        max: DAY,
    };
    OptionDef::new(key, default, access, text).safe()
}

/// Every option that is honoured, grouped as the man page groups them.
pub static OPTIONS: &[OptionDef] = &[
    // Directories, sockets and files.
    OptionDef::new(
        "queue_directory",
        "/var/spool/mqueue",
        Access::Path(|c| &mut c.paths.queue_directory),
        "The spool: where accepted messages live until they are delivered.",
    )
    .named("QueueDirectory")
    .letter('Q')
    .msp("/var/spool/clientmqueue")
    .sandbox("var/spool/mqueue")
    .sandbox_msp("var/spool/clientmqueue"),
    OptionDef::new(
        "client_queue_directory",
        "",
        Access::PathOrNone(|c| &mut c.paths.client_queue_directory),
        "A client queue that the daemon runs besides its own; a sandbox's does.",
    )
    .sandbox("var/spool/clientmqueue")
    .sandbox_msp("var/spool/clientmqueue"),
    OptionDef::new(
        "mailbox_directory",
        "/var/mail",
        Access::Path(|c| &mut c.paths.mailbox_directory),
        "System mailboxes, one mbox file a user.",
    )
    .sandbox("var/mail"),
    OptionDef::new(
        "pid_file",
        "/var/run/sendmail.pid",
        Access::Path(|c| &mut c.paths.pid_file),
        "Where the daemon writes its process id and command line.",
    )
    .named("PidFile")
    .msp("/var/spool/clientmqueue/sm-client.pid")
    .sandbox("run/sendmail.pid")
    .sandbox_msp("run/sm-client.pid"),
    OptionDef::new(
        "control_socket_name",
        "/var/run/sendmail/control",
        Access::Path(|c| &mut c.paths.control_socket),
        "The socket over which mailq and -q speak to the owner of the queue.",
    )
    .named("ControlSocketName")
    .msp("/var/spool/clientmqueue/control")
    .sandbox("run/control")
    .sandbox_msp("run/client-control"),
    OptionDef::new(
        "smtp_address_file",
        "/var/run/sendmail/smtp",
        Access::Path(|c| &mut c.paths.smtp_address_file),
        "Where the daemon writes its SMTP addresses, one a line, for submitters.",
    )
    .sandbox("run/smtp"),
    OptionDef::new(
        "home_directory",
        "",
        Access::PathOrNone(|c| &mut c.paths.home_directory),
        "The parent of every user's home; empty: homes are those of passwd(5).",
    )
    .sandbox("home"),
    OptionDef::new(
        "passwd_file",
        "",
        Access::PathOrNone(|c| &mut c.paths.passwd_file),
        "Users in passwd(5) form beside those of the system.",
    )
    .sandbox("etc/passwd"),
    // Names of this host.
    OptionDef::new(
        "host_name",
        "",
        Access::Form {
            form: "domain name, empty for the system's",
            set: |c, text| {
                c.host.host_name = domain_or_none(text)?;
                Ok(())
            },
            show: |c| c.host.host_name.clone().unwrap_or_default(),
        },
        "The full name of this host (macro j).",
    ),
    OptionDef::new(
        "domain",
        "",
        Access::Form {
            form: "domain name, empty for none",
            set: |c, text| {
                c.host.domain = domain_or_none(text)?;
                Ok(())
            },
            show: |c| c.host.domain.clone().unwrap_or_default(),
        },
        "The domain (macro m) appended to a system host name that has no dot.",
    ),
    OptionDef::new(
        "local_host_names",
        "/etc/mail/local-host-names",
        Access::Path(|c| &mut c.route.local_host_names),
        "Names that are this host (class w), one a line.",
    )
    .sandbox("etc/mail/local-host-names"),
    // Where recipients go.
    OptionDef::new(
        "alias_file",
        "/etc/mail/aliases",
        Access::Several {
            form: "map specifications",
            separator: Some(','),
            clear: |c| c.route.alias_files.clear(),
            add: |c, text| {
                let spec = c.place_alias_map(text)?;
                c.route.alias_files.push(spec);
                Ok(())
            },
            show: |c| c.route.alias_files.clone(),
        },
        "Alias maps, asked in this order until one knows the name.",
    )
    .named("AliasFile")
    .letter('A')
    .sandbox("etc/mail/aliases"),
    OptionDef::new(
        "mapd.listen",
        "unix:/var/run/sendmail/maps",
        Access::Several {
            form: "unix:PATH or inet:PORT@ADDRESS",
            separator: Some(','),
            clear: |c| c.mapd.listen.clear(),
            add: |c, text| {
                let address = c.place_listener(text)?;
                c.mapd.listen.push(address);
                Ok(())
            },
            show: |c| c.mapd.listen.clone(),
        },
        "Where mapd listens; an ADDRESS is one of this host's loopback.",
    )
    .sandbox("unix:run/maps"),
    OptionDef::new(
        "mapd.max_connections",
        "200",
        Access::Count {
            field: |c| &mut c.mapd.max_connections,
            min: 1,
            max: 10_000,
        },
        "Clients that mapd serves at once; further ones are turned away.",
    ),
    OptionDef::new(
        "mapd.idle_timeout",
        "10m",
        Access::Time {
            field: |c| &mut c.mapd.idle_timeout,
            unit: TimeUnit::Minutes,
            min: SECOND,
            max: DAY,
        },
        "How long a client of mapd may be silent between two requests.",
    ),
    OptionDef::new(
        "access_db",
        "hash -o -T<TMPF> /etc/mail/access",
        Access::Form {
            form: "map specification, empty for none",
            set: |c, text| {
                c.route.access_db = if text.trim().is_empty() {
                    None
                } else {
                    Some(c.place_map(text)?)
                };
                Ok(())
            },
            show: |c| c.route.access_db.clone().unwrap_or_default(),
        },
        "The access map: who may connect, send and relay.",
    )
    .sandbox("hash -o -T<TMPF> etc/mail/access"),
    OptionDef::new(
        "virtusertable",
        "",
        Access::Form {
            form: "map specification, empty for none",
            set: |c, text| {
                c.route.virtusertable = map_or_none(c, text)?;
                Ok(())
            },
            show: |c| c.route.virtusertable.clone().unwrap_or_default(),
        },
        "Addresses of this host's domains to others, as FEATURE(virtusertable): user@domain, @domain and so on.",
    ),
    OptionDef::new(
        "virtuser_domain_file",
        "",
        Access::PathOrNone(|c| &mut c.route.virtuser_domain_file),
        "Domains that only the virtusertable knows (VIRTUSER_DOMAIN_FILE), one a line.",
    ),
    OptionDef::new(
        "mailertable",
        "",
        Access::Form {
            form: "map specification, empty for none",
            set: |c, text| {
                c.route.mailertable = map_or_none(c, text)?;
                Ok(())
            },
            show: |c| c.route.mailertable.clone().unwrap_or_default(),
        },
        "Domains of other hosts to MAILER:HOST, as FEATURE(mailertable).",
    ),
    OptionDef::new(
        "virtuser_domain",
        "",
        Access::Words(|c| &mut c.route.virtuser_domain),
        "Domains that only the virtusertable knows (VIRTUSER_DOMAIN).",
    ),
    OptionDef::new(
        "virtuser_entire_domain",
        "false",
        Access::Flag(|c| &mut c.route.virtuser_entire_domain),
        "Whether what is below those domains is virtual, too.",
    ),
    OptionDef::new(
        "domaintable",
        "",
        Access::Map(|c| &mut c.route.domaintable),
        "Domains to others, in the envelope and in headers, as FEATURE(domaintable).",
    ),
    OptionDef::new(
        "redirect",
        "false",
        Access::Flag(|c| &mut c.route.redirect),
        "Whether mail for USER@DOMAIN.REDIRECT is answered that the user is now USER@DOMAIN.",
    ),
    OptionDef::new(
        "luser_relay",
        "",
        Access::Form {
            form: "[MAILER:]HOST, local:USER or error:..; empty for none",
            set: |c, text| {
                c.route.sent_on.luser_relay = triple_or_none(text)?;
                Ok(())
            },
            show: |c| c.route.sent_on.luser_relay.clone().unwrap_or_default(),
        },
        "Where mail for names of this host goes that nobody has (LUSER_RELAY).",
    ),
    OptionDef::new(
        "mail_hub",
        "",
        Access::Form {
            form: "[MAILER:]HOST; empty for none",
            set: |c, text| {
                c.route.sent_on.mail_hub = triple_or_none(text)?;
                Ok(())
            },
            show: |c| c.route.sent_on.mail_hub.clone().unwrap_or_default(),
        },
        "Where mail for names of this host that are no aliases goes (MAIL_HUB).",
    ),
    OptionDef::new(
        "local_relay",
        "",
        Access::Form {
            form: "[MAILER:]HOST; empty for none",
            set: |c, text| {
                c.route.sent_on.local_relay = triple_or_none(text)?;
                Ok(())
            },
            show: |c| c.route.sent_on.local_relay.clone().unwrap_or_default(),
        },
        "The same if there is no mail_hub (LOCAL_RELAY).",
    ),
    OptionDef::new(
        "stickyhost",
        "false",
        Access::Flag(|c| &mut c.route.sent_on.stickyhost),
        "Whether USER@DOMAIN of this host goes to mail_hub with its domain, and never to local_relay.",
    ),
    OptionDef::new(
        "local_user",
        "",
        Access::Words(|c| &mut c.route.sent_on.local_user),
        "Names that neither mail_hub nor local_relay gets (LOCAL_USER).",
    ),
    OptionDef::new(
        "masquerade_as",
        "",
        Access::Form {
            form: "domain name, empty for none",
            set: |c, text| {
                c.route.masquerade.masquerade_as = domain_or_none(text)?;
                Ok(())
            },
            show: |c| c.route.masquerade.masquerade_as.clone().unwrap_or_default(),
        },
        "The domain that others see instead of this host's names (MASQUERADE_AS).",
    ),
    OptionDef::new(
        "masquerade_domain",
        "",
        Access::Words(|c| &mut c.route.masquerade.domains.words),
        "Further domains that masquerade_as is shown for (MASQUERADE_DOMAIN).",
    ),
    OptionDef::new(
        "masquerade_domain_file",
        "",
        Access::PathOrNone(|c| &mut c.route.masquerade.domains.file),
        "A file with such domains, one a line (MASQUERADE_DOMAIN_FILE).",
    ),
    OptionDef::new(
        "masquerade_exception",
        "",
        Access::Words(|c| &mut c.route.masquerade.exceptions.words),
        "Domains that are never replaced, and what is below them (MASQUERADE_EXCEPTION).",
    ),
    OptionDef::new(
        "masquerade_exception_file",
        "",
        Access::PathOrNone(|c| &mut c.route.masquerade.exceptions.file),
        "A file with such domains, one a line (MASQUERADE_EXCEPTION_FILE).",
    ),
    OptionDef::new(
        "exposed_user",
        "",
        Access::Words(|c| &mut c.route.masquerade.exposed_users.words),
        "Users whose host is shown nevertheless (EXPOSED_USER).",
    ),
    OptionDef::new(
        "exposed_user_file",
        "",
        Access::PathOrNone(|c| &mut c.route.masquerade.exposed_users.file),
        "A file with such users, one a line (EXPOSED_USER_FILE).",
    ),
    OptionDef::new(
        "masquerade_entire_domain",
        "false",
        Access::Flag(|c| &mut c.route.masquerade.scope.masquerade_entire_domain),
        "Whether what is below the domains of masquerade_domain is masqueraded, too.",
    ),
    OptionDef::new(
        "masquerade_envelope",
        "false",
        Access::Flag(|c| &mut c.route.masquerade.scope.masquerade_envelope),
        "Whether envelope senders are rewritten, too, by masquerade_as and genericstable.",
    ),
    OptionDef::new(
        "allmasquerade",
        "false",
        Access::Flag(|c| &mut c.route.masquerade.scope.allmasquerade),
        "Whether recipients in headers are rewritten, too.",
    ),
    OptionDef::new(
        "limited_masquerade",
        "false",
        Access::Flag(|c| &mut c.route.masquerade.scope.limited_masquerade),
        "Whether this host's own names are kept unless masquerade_domain has them.",
    ),
    OptionDef::new(
        "local_no_masquerade",
        "false",
        Access::Flag(|c| &mut c.route.masquerade.scope.local_no_masquerade),
        "Whether mail delivered on this host is left as it is.",
    ),
    OptionDef::new(
        "genericstable",
        "",
        Access::Map(|c| &mut c.route.masquerade.genericstable),
        "Users of this host to the addresses that others see, as FEATURE(genericstable).",
    ),
    OptionDef::new(
        "generics_domain",
        "",
        Access::Words(|c| &mut c.route.masquerade.generics_domains.words),
        "Domains whose addresses genericstable is asked for (GENERICS_DOMAIN).",
    ),
    OptionDef::new(
        "generics_domain_file",
        "",
        Access::PathOrNone(|c| &mut c.route.masquerade.generics_domains.file),
        "A file with such domains, one a line (GENERICS_DOMAIN_FILE).",
    ),
    OptionDef::new(
        "generics_entire_domain",
        "false",
        Access::Flag(|c| &mut c.route.masquerade.scope.generics_entire_domain),
        "Whether genericstable is asked for what is below those domains, too.",
    ),
    OptionDef::new(
        "relay_domains",
        "/etc/mail/relay-domains",
        Access::Path(|c| &mut c.route.relay_domains),
        "Domains that may relay and be relayed to (class R), one a line.",
    )
    .sandbox("etc/mail/relay-domains"),
    OptionDef::new(
        "access_skip",
        "false",
        Access::Flag(|c| &mut c.route.access.skip),
        "Whether SKIP in the access map ends a search without an opinion.",
    ),
    OptionDef::new(
        "blocklist_recipients",
        "true",
        Access::Flag(|c| &mut c.route.access.blocklist_recipients),
        "Whether the access map may refuse recipients (To:).",
    ),
    OptionDef::new(
        "delay_checks",
        "false",
        Access::Form {
            form: "true, false, friend or hater",
            set: |c, text| {
                c.route.access.delay_checks = DelayChecks::parse(text)
                    .ok_or_else(|| "is not true, false, friend or hater".to_owned())?;
                Ok(())
            },
            show: |c| c.route.access.delay_checks.name().to_owned(),
        },
        "Whether client and sender are checked at RCPT; friend: not for a recipient whose Spam: entry is FRIEND; hater: only for one whose entry is HATER.",
    ),
    OptionDef::new(
        "accept_unresolvable_domains",
        "false",
        Access::Flag(|c| &mut c.route.access.accept_unresolvable_domains),
        "Whether a sender's domain need not exist in DNS.",
    ),
    OptionDef::new(
        "accept_unqualified_senders",
        "false",
        Access::Flag(|c| &mut c.route.access.accept_unqualified_senders),
        "Whether a sender from another host needs no domain.",
    ),
    OptionDef::new(
        "dnsbl",
        "",
        Access::Several {
            form: "ZONE; TEXT; t",
            separator: None,
            clear: |c| c.route.access.dnsbl.clear(),
            add: |c, text| {
                c.route.access.dnsbl.push(DnsList::parse(text, false)?);
                Ok(())
            },
            show: |c| c.route.access.dnsbl.iter().map(DnsList::show).collect(),
        },
        "Lists in DNS of clients to be refused; TEXT is what they are answered, t has mail wait while the list does not answer.",
    ),
    OptionDef::new(
        "enhdnsbl",
        "",
        Access::Several {
            form: "ZONE; TEXT; t; ADDRESS..",
            separator: None,
            clear: |c| c.route.access.enhdnsbl.clear(),
            add: |c, text| {
                c.route.access.enhdnsbl.push(DnsList::parse(text, true)?);
                Ok(())
            },
            show: |c| c.route.access.enhdnsbl.iter().map(DnsList::show).collect(),
        },
        "The same for lists whose answer tells more: it counts if it begins with one of ADDRESS.",
    ),
    OptionDef::new(
        "greet_pause",
        "0",
        Access::Form {
            form: "milliseconds, 0 to 300000",
            set: |c, text| {
                let pause = text.trim().parse::<u32>().ok();
                let pause = pause
                    .filter(|pause| *pause <= GREET_PAUSE_MS_MAX)
                    .ok_or_else(|| format!("is not within 0 to {GREET_PAUSE_MS_MAX}"))?;
                c.smtpd.timeouts.greet_pause = Duration::from_millis(u64::from(pause));
                Ok(())
            },
            show: |c| c.smtpd.timeouts.greet_pause.as_millis().to_string(),
        },
        "How long the greeting is held back to find out clients that do not wait for it; GreetPause: in the access map goes before.",
    ),
    OptionDef::new(
        "ratecontrol",
        "false",
        Access::Form {
            form: "true, false or terminate",
            set: |c, text| {
                c.route.access.ratecontrol = control(text)?;
                Ok(())
            },
            show: |c| c.route.access.ratecontrol.name().to_owned(),
        },
        "Whether ClientRate: in the access map limits a client's connections in a minute; terminate: by closing them.",
    ),
    OptionDef::new(
        "conncontrol",
        "false",
        Access::Form {
            form: "true, false or terminate",
            set: |c, text| {
                c.route.access.conncontrol = control(text)?;
                Ok(())
            },
            show: |c| c.route.access.conncontrol.name().to_owned(),
        },
        "Whether ClientConn: in the access map limits a client's connections at once; terminate: by closing them.",
    ),
    OptionDef::new(
        "relay_hosts_only",
        "false",
        Access::Flag(|c| &mut c.route.relay.hosts_only),
        "Whether relay_domains and RELAY in the access map name hosts alone, not those below them.",
    ),
    OptionDef::new(
        "relay_entire_domain",
        "false",
        Access::Flag(|c| &mut c.route.relay.entire_domain),
        "Whether all hosts of this host's domain may relay and be relayed to.",
    ),
    OptionDef::new(
        "relay_mail_from",
        "false",
        Access::Form {
            form: "true, false or domain",
            set: |c, text| {
                c.route.relay.mail_from = RelayMailFrom::parse(text)
                    .ok_or_else(|| "is not true, false or domain".to_owned())?;
                Ok(())
            },
            show: |c| c.route.relay.mail_from.name().to_owned(),
        },
        "Whether a sender with From: RELAY in the access map may relay, which anybody can claim to be; domain: one of such a domain, too.",
    ),
    OptionDef::new(
        "relay_local_from",
        "false",
        Access::Flag(|c| &mut c.route.relay.local_from),
        "Whether a sender of this host's names may relay, which anybody can claim to be.",
    ),
    OptionDef::new(
        "relay_based_on_mx",
        "false",
        Access::Flag(|c| &mut c.route.relay.based_on_mx),
        "Whether mail is relayed to domains that have this host as a mail exchanger.",
    ),
    OptionDef::new(
        "loose_relay_check",
        "false",
        Access::Flag(|c| &mut c.route.relay.loose_check),
        "Whether user%host@domain is left as it is where domain is relayed to.",
    ),
    OptionDef::new(
        "relay_to_full_address",
        "false",
        Access::Flag(|c| &mut c.route.relay.to_full_address),
        "Whether RELAY of a recipient's whole address (To:) counts.",
    ),
    OptionDef::new(
        "promiscuous_relay",
        "",
        Access::Form {
            form: "`relay for anybody', or empty",
            set: |c, text| {
                c.route.relay.promiscuous = match text.trim() {
                    "" | "false" => false,
                    PROMISCUOUS => true,
                    _ => return Err(format!(
                        "makes an open relay; who wants that writes \"{PROMISCUOUS}\""
                    )),
                };
                Ok(())
            },
            show: |c| {
                let relay = &c.route.relay;
                if relay.promiscuous { PROMISCUOUS } else { "" }.to_owned()
            },
        },
        "Whether anybody may send to anybody through this host.",
    ),
    OptionDef::new(
        "smart_host",
        "",
        Access::Form {
            form: "host, [host] or [address], with or without :port; empty for none",
            set: |c, text| {
                c.route.smart_host = host_or_none(text)?;
                Ok(())
            },
            show: |c| shown_host(c.route.smart_host.as_ref()),
        },
        "Where all mail for other hosts is sent, instead of by MX.",
    ),
    OptionDef::new(
        "remote",
        "true",
        Access::Form {
            form: "true or false",
            set: |c, text| {
                let remote = match text.trim().to_ascii_lowercase().as_str() {
                    "true" | "yes" => Remote::Allowed,
                    "false" | "no" => Remote::LoopbackOnly,
                    _ => return Err(format!("`{text}' is not true or false")),
                };
                c.route.remote = remote;
                c.deliver.remote = remote;
                Ok(())
            },
            show: |c| (c.route.remote == Remote::Allowed).to_string(),
        },
        "Whether hosts beyond loopback are contacted; if not, mail for them waits.",
    )
    .sandbox("false"),
    OptionDef::new(
        "forward_path",
        "$z/.forward.$w+$h:$z/.forward+$h:$z/.forward.$w:$z/.forward",
        Access::Several {
            form: "absolute paths with $z, $u, $w, $j, $h, separated by colons; empty for none",
            separator: Some(':'),
            clear: |c| c.route.forward_path.clear(),
            add: |c, text| {
                c.route.forward_path.push(forward_template(text)?);
                Ok(())
            },
            show: |c| c.route.forward_path.clone(),
        },
        "Where users' forwarding files are looked for, in this order: $z home, $u user, $h what stood after a plus sign.",
    )
    .named("ForwardPath")
    .letter('J'),
    OptionDef::new(
        "shells_file",
        "/etc/shells",
        Access::Path(|c| &mut c.route.shells),
        "Users with one of these shells may have programs run and files written, in a sandbox all; /SENDMAIL/ANY/SHELL/ in it stands for all.",
    )
    .sandbox("etc/shells"),
    OptionDef::new(
        "dont_blame_sendmail",
        "safe",
        Access::Several {
            form: "safe, ForwardFileInGroupWritableDirPath, \
                   ForwardFileInUnsafeDirPath, GroupWritableAliasFile, GroupWritableDirPathSafe, \
                   GroupWritableForwardFile, GroupWritableIncludeFile, IncludeFileInGroupWritableDirPath, \
                   IncludeFileInUnsafeDirPath, LinkedForwardFileInWritableDir, LinkedIncludeFileInWritableDir, \
                   LinkedMapInWritableDir, MapInUnsafeDirPath, TrustStickyBit, WorldWritableAliasFile, \
                   WorldWritableForwardFile, WorldWritableIncludeFile",
            separator: Some(','),
            clear: |c| c.route.dont_blame = DontBlame::default(),
            add: |c, text| c.route.dont_blame.add(text),
            show: |c| c.route.dont_blame.names(),
        },
        "Files that others could change, or put in place, and that are used all the same.",
    )
    .named("DontBlameSendmail"),
    OptionDef::new(
        "max_alias_recursion",
        "10",
        Access::Count {
            field: |c| &mut c.route.max_alias_recursion,
            min: 1,
            max: 100,
        },
        "How deep aliases may lead to aliases.",
    )
    .named("MaxAliasRecursion"),
    OptionDef::new(
        "max_hop_count",
        "25",
        Access::Form {
            form: "number, 1 to 200",
            set: |c, text| {
                let hops = text
                    .trim()
                    .parse()
                    .ok()
                    .filter(|hops| (1..=200).contains(hops))
                    .ok_or_else(|| format!("`{text}' is not a number from 1 to 200"))?;
                c.route.max_hop_count = hops;
                c.smtpd.limits.max_hop_count = hops;
                Ok(())
            },
            show: |c| c.route.max_hop_count.to_string(),
        },
        "Hops after which a message is taken to loop.",
    )
    .named("MaxHopCount")
    .letter('h'),
    OptionDef::new(
        "resolver",
        "",
        Access::Form {
            form: "address or address:port, empty for resolv.conf's",
            set: |c, text| {
                c.resolver.server = name_server(text.trim())?;
                Ok(())
            },
            show: |c| {
                c.resolver
                    .server
                    .map_or_else(String::new, |server| server.to_string())
            },
        },
        "The name server to ask.",
    ),
    OptionDef::new(
        "timeout.resolver.retrans",
        "5s",
        Access::Time {
            field: |c| &mut c.resolver.retransmit_after,
            unit: TimeUnit::Seconds,
            min: SECOND,
            max: Duration::from_secs(120),
        },
        "How long a DNS query waits for its answer.",
    )
    .named("Timeout.resolver.retrans")
    .safe(),
    OptionDef::new(
        "timeout.resolver.retry",
        "4",
        Access::Count {
            field: |c| &mut c.resolver.attempts,
            min: 1,
            max: 20,
        },
        "How often a DNS query is sent before the lookup has failed for now.",
    )
    .named("Timeout.resolver.retry")
    .safe(),
    // The SMTP server.
    OptionDef::new(
        "daemon_port_options",
        "Name=MTA; Name=MSA, Port=587, M=E",
        Access::Several {
            form: "\"Name=N, Addr=ADDRESS, Port=N, Family=inet|inet6, Listen=N, M=E\"",
            separator: Some(';'),
            clear: |c| c.smtpd.daemon_ports.clear(),
            add: |c, text| {
                let default_address = match c.sandbox {
                    Some(_) => Ipv4Addr::LOCALHOST,
                    None => Ipv4Addr::UNSPECIFIED,
                };
                let port = DaemonPort::parse(text, IpAddr::V4(default_address))?;
                c.smtpd.daemon_ports.push(port);
                Ok(())
            },
            show: |c| {
                c.smtpd
                    .daemon_ports
                    .iter()
                    .map(ToString::to_string)
                    .collect()
            },
        },
        "Where the daemon listens. Port=0 takes a free port and prints it.",
    )
    .named("DaemonPortOptions")
    .letter('O')
    .sandbox("Name=MTA, Addr=127.0.0.1, Port=2525"),
    OptionDef::new(
        "smtp_greeting_message",
        "$j Diligence $v; $b",
        Access::Form {
            form: "text with $j (host), $w (short host), $v (version), $b (date)",
            set: |c, text| {
                c.smtpd.greeting = greeting(text)?;
                Ok(())
            },
            show: |c| c.smtpd.greeting.clone(),
        },
        "The server's greeting; ESMTP goes in after the first word.",
    )
    .named("SmtpGreetingMessage"),
    OptionDef::new(
        "privacy_options",
        "authwarnings",
        Access::Several {
            form: "public, goaway, needmailhelo, needexpnhelo, needvrfyhelo, noexpn, novrfy, \
                   noetrn, noverb, restrictmailq, restrictqrun, restrictexpand, noreceipts, \
                   nobodyreturn, authwarnings, noactualrecipient",
            separator: Some(','),
            clear: |c| c.smtpd.privacy = PrivacyOptions::default(),
            add: |c, text| {
                let flags = PrivacyOptions::parse(text).map_err(|word| {
                    let near = super::file::nearest(&word, PrivacyOptions::words());
                    let hint =
                        near.map_or_else(String::new, |near| format!("; did you mean `{near}'?"));
                    format!("`{word}' is not a privacy option{hint}")
                })?;
                c.smtpd.privacy = c.smtpd.privacy.union(flags);
                Ok(())
            },
            show: |c| {
                let words = c.smtpd.privacy.to_string();
                words.split(',').map(str::to_owned).collect()
            },
        },
        "What strangers may ask. The command line adds to the file's, never takes away.",
    )
    .named("PrivacyOptions")
    .letter('p')
    .msp("goaway,noetrn,restrictqrun")
    .safe(),
    OptionDef::new(
        "allow_bogus_helo",
        "false",
        Access::Flag(|c| &mut c.smtpd.allow_bogus_helo),
        "Whether HELO takes a name that is no domain name.",
    )
    .named("AllowBogusHELO")
    .safe(),
    OptionDef::new(
        "max_message_size",
        "0",
        Access::SizeOrNone {
            field: |c| &mut c.smtpd.limits.max_message_size,
            max: ByteSize::gib(4),
        },
        "The longest message accepted.",
    )
    .named("MaxMessageSize")
    .safe(),
    OptionDef::new(
        "max_recipients_per_message",
        "10000",
        Access::Count {
            field: |c| &mut c.smtpd.limits.max_rcpts,
            min: 1,
            max: 100_000,
        },
        "Recipients accepted for one message; further ones are answered 452.",
    )
    .named("MaxRecipientsPerMessage")
    .safe(),
    OptionDef::new(
        "max_headers_length",
        "32768",
        Access::Size {
            field: |c| &mut c.smtpd.limits.max_headers_length,
            min: ByteSize::kib(1),
            max: ByteSize::mib(16),
        },
        "The longest header, all its fields together.",
    )
    .named("MaxHeadersLength")
    .safe(),
    OptionDef::new(
        "max_daemon_children",
        "1000",
        Access::Count {
            field: |c| &mut c.smtpd.limits.max_daemon_children,
            min: 1,
            max: 65_000,
        },
        "SMTP connections served at once; further ones are answered 421.",
    )
    .named("MaxDaemonChildren"),
    OptionDef::new(
        "connection_rate_throttle",
        "0",
        Access::CountOrNone {
            field: |c| &mut c.smtpd.limits.connection_rate_throttle,
            max: 1_000_000,
        },
        "Connections accepted in one second, on each listener.",
    )
    .named("ConnectionRateThrottle")
    .safe(),
    OptionDef::new(
        "bad_rcpt_throttle",
        "0",
        Access::CountOrNone {
            field: |c| &mut c.smtpd.limits.bad_rcpt_throttle,
            max: 100_000,
        },
        "Refused recipients after which each further one is answered a second late.",
    )
    .named("BadRcptThrottle"),
    OptionDef::new(
        "max_noop_commands",
        "20",
        Access::Count {
            field: |c| &mut c.smtpd.limits.max_noop_commands,
            min: 1,
            max: 1_000,
        },
        "Commands without effect before a client is slowed down.",
    )
    .named("MaxNOOPCommands"),
    OptionDef::new(
        "timeout.command",
        "1h",
        Access::Time {
            field: |c| &mut c.smtpd.timeouts.command,
            unit: TimeUnit::Minutes,
            min: SECOND,
            max: DAY,
        },
        "How long the server waits for a command.",
    )
    .named("Timeout.command")
    .safe(),
    OptionDef::new(
        "timeout.datablock",
        "1h",
        Access::Form {
            form: "time, 1s to 1d, plain number: minutes",
            set: |c, text| {
                let wait = super::duration::parse_time(text, TimeUnit::Minutes)
                    .map_err(|error| error.to_string())?;
                if !(SECOND..=DAY).contains(&wait) {
                    return Err(format!("{text} is not within 1s to 1d"));
                }
                c.smtpd.timeouts.datablock = wait;
                c.deliver.timeouts.datablock = wait;
                Ok(())
            },
            show: |c| super::duration::print_time(c.smtpd.timeouts.datablock),
        },
        "How long server and client wait for a piece of a message to move.",
    )
    .named("Timeout.datablock")
    .safe(),
    // Mailers.
    OptionDef::new(
        "helo_name",
        "",
        Access::Form {
            form: "domain name, empty for this host's",
            set: |c, text| {
                c.deliver.helo_name = domain_or_none(text)?;
                Ok(())
            },
            show: |c| c.deliver.helo_name.clone().unwrap_or_default(),
        },
        "The name given in HELO and EHLO.",
    )
    .named("HeloName"),
    OptionDef::new(
        "default_user",
        "mail:mail",
        Access::Text(|c| &mut c.route.default_user),
        "USER or USER:GROUP that mailers run as when no user's rights apply.",
    )
    .named("DefaultUser")
    .letter('u'),
    OptionDef::new(
        "run_as_user",
        "",
        Access::TextOrNone(|c| &mut c.deliver.run_as_user),
        "Whom the daemon becomes once its ports are bound, as smmsp, if it is started by root; a small process beside it keeps root's rights and acts for users. Empty: the daemon stays root.",
    )
    .named("RunAsUser"),
    OptionDef::new(
        "local_shell",
        "/bin/sh",
        // A program of the system, in a sandbox as well.
        Access::Form {
            form: "absolute path",
            set: |c, text| {
                if !text.starts_with('/') {
                    return Err(format!("`{text}' is not an absolute path"));
                }
                c.deliver.local_shell = text.into();
                Ok(())
            },
            show: |c| c.deliver.local_shell.display().to_string(),
        },
        "What gets the commands of aliases and .forwards (mailer prog), as -c COMMAND: a shell, or smrsh(8).",
    ),
    OptionDef::new(
        "smrsh_directory",
        "/usr/lib/sm.bin",
        Access::Path(|c| &mut c.deliver.smrsh_directory),
        "Where smrsh(8), if it is local_shell, finds the programs that it may run.",
    )
    .sandbox("etc/mail/smrsh"),
    OptionDef::new(
        "program_time_limit",
        "1h",
        Access::Time {
            field: |c| &mut c.deliver.program_time_limit,
            unit: TimeUnit::Minutes,
            min: SECOND,
            max: super::mailer::TIME_LIMIT_MAX,
        },
        "How long a command of an alias or a .forward may take before it is killed and tried again later.",
    ),
    OptionDef::new(
        "mailer",
        "",
        Access::Several {
            form: "NAME, P=PROGRAM, F=FLAGS, A=ARGUMENTS, as the M lines of a sendmail.cf",
            separator: None,
            clear: |c| {
                c.deliver.mailers.clear();
                c.route.mailers.clear();
            },
            add: |c, text| {
                let mailer = MailerDefinition::parse(text)?;
                if c.deliver.mailers.iter().any(|m| m.name == mailer.name) {
                    return Err(format!("mailer {} is defined twice", mailer.name));
                }
                c.route.mailers.push(mailer.name.clone());
                c.deliver.mailers.push(mailer);
                Ok(())
            },
            show: |c| c.deliver.mailers.iter().map(ToString::to_string).collect(),
        },
        "A mailer of one's own, for local_mailer and mailertables.",
    ),
    OptionDef::new(
        "local_mailer",
        "",
        Access::TextOrNone(|c| &mut c.deliver.local_mailer),
        "The mailer that delivers to users of this host, one of `mailer'; empty: mailboxes in mailbox_directory.",
    ),
    client_timeout(
        "timeout.connect",
        "5m",
        |c| &mut c.deliver.timeouts.connect,
        "How long the client waits for a connection.",
    )
    .named("Timeout.connect"),
    client_timeout(
        "timeout.iconnect",
        "5m",
        |c| &mut c.deliver.timeouts.iconnect,
        "The same for a message's first attempt.",
    )
    .named("Timeout.iconnect")
    .msp("5s"),
    client_timeout(
        "timeout.initial",
        "5m",
        |c| &mut c.deliver.timeouts.initial,
        "How long the client waits for the greeting.",
    )
    .named("Timeout.initial"),
    client_timeout(
        "timeout.helo",
        "5m",
        |c| &mut c.deliver.timeouts.helo,
        "How long the client waits for the reply to HELO or EHLO.",
    )
    .named("Timeout.helo"),
    client_timeout(
        "timeout.mail",
        "10m",
        |c| &mut c.deliver.timeouts.mail,
        "How long the client waits for the reply to MAIL.",
    )
    .named("Timeout.mail"),
    client_timeout(
        "timeout.rcpt",
        "1h",
        |c| &mut c.deliver.timeouts.rcpt,
        "How long the client waits for the reply to RCPT.",
    )
    .named("Timeout.rcpt"),
    client_timeout(
        "timeout.datainit",
        "5m",
        |c| &mut c.deliver.timeouts.datainit,
        "How long the client waits for the reply to DATA.",
    )
    .named("Timeout.datainit"),
    client_timeout(
        "timeout.datafinal",
        "1h",
        |c| &mut c.deliver.timeouts.datafinal,
        "How long the client waits for the reply to the final dot.",
    )
    .named("Timeout.datafinal"),
    client_timeout(
        "timeout.rset",
        "5m",
        |c| &mut c.deliver.timeouts.rset,
        "How long the client waits for the reply to RSET.",
    )
    .named("Timeout.rset"),
    client_timeout(
        "timeout.quit",
        "2m",
        |c| &mut c.deliver.timeouts.quit,
        "How long the client waits for the reply to QUIT.",
    )
    .named("Timeout.quit"),
    // The queue.
    OptionDef::new(
        "delivery_mode",
        "background",
        Access::Form {
            form: "background, interactive, queue or deferred",
            set: |c, text| {
                c.queue.delivery_mode = DeliveryMode::parse(text)
                    .ok_or_else(|| format!("`{text}' is not a delivery mode"))?;
                Ok(())
            },
            show: |c| c.queue.delivery_mode.name().to_owned(),
        },
        "When a new message is first tried.",
    )
    .named("DeliveryMode")
    .letter('d')
    .msp("interactive")
    .safe(),
    OptionDef::new(
        "max_queue_children",
        "64",
        Access::Count {
            field: |c| &mut c.queue.max_queue_children,
            min: 1,
            max: 10_000,
        },
        "Messages delivered at once.",
    )
    .named("MaxQueueChildren"),
    OptionDef::new(
        "min_queue_age",
        "5m",
        Access::Time {
            field: |c| &mut c.queue.retry.min_queue_age,
            unit: TimeUnit::Minutes,
            min: SECOND,
            max: DAY,
        },
        "The wait after the first failed attempt; it doubles after each further one.",
    )
    .named("MinQueueAge")
    .safe(),
    OptionDef::new(
        "max_queue_age",
        "4h",
        Access::Time {
            field: |c| &mut c.queue.retry.max_queue_age,
            unit: TimeUnit::Minutes,
            min: SECOND,
            max: Duration::from_secs(7 * 86_400),
        },
        "The longest wait between two attempts.",
    )
    .named("MaxQueueAge"),
    OptionDef::new(
        "timeout.queue_warn",
        "4h",
        Access::TimeOrNever {
            field: |c| &mut c.queue.retry.queue_warn,
            unit: TimeUnit::Hours,
            max: Duration::from_secs(60 * 86_400),
        },
        "Age of a message at which its sender is warned of the delay.",
    )
    .named("Timeout.queuewarn")
    .safe(),
    OptionDef::new(
        "timeout.queue_return",
        "5d",
        Access::Time {
            field: |c| &mut c.queue.retry.queue_return,
            unit: TimeUnit::Days,
            min: SECOND,
            max: Duration::from_secs(60 * 86_400),
        },
        "Age of a message at which it is returned to its sender.",
    )
    .named("Timeout.queuereturn")
    .letter('T')
    .safe(),
    OptionDef::new(
        "double_bounce_address",
        "postmaster",
        Access::TextOrNone(|c| &mut c.queue.double_bounce_address),
        "Who gets a report that cannot be delivered to the sender.",
    )
    .named("DoubleBounceAddress"),
    OptionDef::new(
        "postmaster_copy",
        "",
        Access::TextOrNone(|c| &mut c.queue.postmaster_copy),
        "Who gets a copy, without the body, of every report of failure.",
    )
    .named("PostmasterCopy")
    .letter('P'),
    // The spool's files.
    OptionDef::new(
        "segment_size",
        "64M",
        Access::Size {
            field: |c| &mut c.spool.segment_size,
            min: ByteSize::mib(1),
            max: ByteSize::gib(1),
        },
        "Bytes of one file of the journal.",
    )
    .msp("4M")
    .sandbox("4M"),
    OptionDef::new(
        "min_free_blocks",
        "100",
        Access::Count {
            field: |c| &mut c.spool.min_free_blocks,
            min: 0,
            max: u32::MAX,
        },
        "Free blocks of 1,024 bytes below which mail is answered 452.",
    )
    .named("MinFreeBlocks")
    .letter('b')
    .safe(),
    OptionDef::new(
        "spool_file_system",
        "durable",
        Access::Form {
            form: "durable, memory or any",
            set: |c, text| {
                c.spool.file_system = SpoolFileSystem::parse(text)
                    .ok_or_else(|| format!("`{text}' is not durable, memory or any"))?;
                Ok(())
            },
            show: |c| c.spool.file_system.name().to_owned(),
        },
        "Refuse a spool on NFS, FUSE and the like, warn of one in memory; memory: do not warn; any: do not refuse.",
    )
    .sandbox("memory"),
    OptionDef::new(
        "max_drop_files_per_user",
        "10000",
        Access::CountOrNone {
            field: |c| &mut c.spool.max_drop_files_per_user,
            max: 1_000_000,
        },
        "Messages that one user may have waiting as files for the client queue; a further one is refused with 75.",
    ),
    OptionDef::new(
        "queue_file_mode",
        "0600",
        Access::Form {
            form: "octal permission bits, 0600, 0640 or 0660",
            set: |c, text| {
                let mode = u32::from_str_radix(text.trim(), 8).ok();
                let mode = mode.filter(|mode| matches!(mode, 0o600 | 0o640 | 0o660));
                c.spool.queue_file_mode =
                    mode.ok_or_else(|| format!("`{text}' is not 0600, 0640 or 0660"))?;
                Ok(())
            },
            show: |c| format!("{:04o}", c.spool.queue_file_mode),
        },
        "Permission bits of the files made in the spool, whatever the umask; drop files have their own.",
    )
    .named("QueueFileMode")
    .msp("0660")
    .sandbox("0600")
    .sandbox_msp("0600"),
    // Submission on the command line.
    OptionDef::new(
        "trusted_users",
        "/etc/mail/trusted-users",
        Access::Path(|c| &mut c.submit.trusted_users),
        "Users who may set any sender without a warning (class t), one a line.",
    )
    .sandbox("etc/mail/trusted-users"),
    OptionDef::new(
        "mta_host",
        "",
        Access::Form {
            form: "[address]:port, empty for what the address file says, then [127.0.0.1]",
            set: |c, text| {
                c.submit.mta_host = host_or_none(text)?;
                Ok(())
            },
            show: |c| shown_host(c.submit.mta_host.as_ref()),
        },
        "Where submitted mail is handed over.",
    ),
    OptionDef::new(
        "error_mode",
        "print",
        Access::Form {
            form: "print, quiet, mail, write or exitzero",
            set: |c, text| {
                c.submit.error_mode = ErrorMode::parse(text)
                    .ok_or_else(|| format!("`{text}' is not an error mode"))?;
                Ok(())
            },
            show: |c| c.submit.error_mode.name().to_owned(),
        },
        "How a submitter is told about errors.",
    )
    .named("ErrorMode")
    .letter('e')
    .safe(),
    OptionDef::new(
        "ignore_dots",
        "false",
        Access::Flag(|c| &mut c.submit.ignore_dots),
        "Whether a line with only a dot is part of a submitted message.",
    )
    .named("IgnoreDots")
    .letter('i')
    .safe(),
    OptionDef::new(
        "verbose",
        "false",
        Access::Flag(|c| &mut c.submit.verbose),
        "Whether the SMTP dialogue is shown.",
    )
    .named("Verbose")
    .letter('v')
    .safe(),
    // The maillog.
    OptionDef::new(
        "log_level",
        "9",
        Access::Count {
            field: |c| &mut c.log.log_level,
            min: 0,
            max: 98,
        },
        "How much is logged.",
    )
    .named("LogLevel")
    .letter('L')
    .safe(),
    OptionDef::new(
        "syslog_tag",
        "sendmail",
        Access::Form {
            form: "1 to 32 letters, digits and -_./",
            set: |c, text| {
                c.log.syslog_tag = syslog_tag(text)?;
                Ok(())
            },
            show: |c| c.log.syslog_tag.clone(),
        },
        "The name that log lines begin with; -L sets it.",
    ),
    OptionDef::new(
        "log_file",
        "",
        Access::PathOrNone(|c| &mut c.log.file),
        "The file that log lines are appended to; empty: syslog.",
    )
    .sandbox("var/log/maillog"),
    OptionDef::new(
        "log_socket",
        "/dev/log",
        Access::Path(|c| &mut c.log.socket),
        "The socket of syslog.",
    )
    .sandbox("run/log"),
];

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

fn triple_or_none(text: &str) -> Result<Option<String>, String> {
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

fn map_or_none(config: &Config, text: &str) -> Result<Option<String>, String> {
    match text.trim() {
        "" => Ok(None),
        text => config.place_map(text).map(Some),
    }
}

/// A path of `forward_path`: absolute, with macros that exist.
fn forward_template(text: &str) -> Result<String, String> {
    let text = text.trim();
    if !text.starts_with('/') && !text.starts_with("$z/") {
        return Err(format!(
            "`{text}' is not an absolute path, nor one that begins with $z"
        ));
    }
    for (at, _) in text.match_indices('$') {
        let name = text.get(at + 1..at + 2).unwrap_or_default();
        if !["z", "u", "w", "j", "h"].contains(&name) {
            return Err(format!(
                "`${name}' in `{text}' is not one of $z $u $w $j $h"
            ));
        }
    }
    Ok(text.to_owned())
}

fn domain_or_none(text: &str) -> Result<Option<String>, String> {
    let text = text.trim().trim_end_matches('.');
    if text.is_empty() {
        return Ok(None);
    }
    if super::host::is_domain_name(text) {
        Ok(Some(text.to_owned()))
    } else {
        Err(format!("`{text}' is not a domain name"))
    }
}

fn name_server(text: &str) -> Result<Option<SocketAddr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(Some(address));
    }
    text.parse::<IpAddr>()
        .map(|ip| Some(SocketAddr::new(ip, DNS_PORT)))
        .map_err(|_| format!("`{text}' is not an address or address:port"))
}

/// Checks that a greeting has only macros that the server expands.
fn greeting(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("may not be empty".to_owned());
    }
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        if letter != '$' {
            continue;
        }
        match letters.next() {
            Some('j' | 'w' | 'v' | 'b' | '$') => {}
            Some(other) => return Err(format!("macro ${other} is not supported")),
            None => return Err("ends with a lone `$'".to_owned()),
        }
    }
    Ok(text.to_owned())
}

/// A tag that cannot be taken for another part of a log line.
pub(crate) fn syslog_tag(text: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    if (1..=SYSLOG_TAG_LEN_MAX).contains(&text.len()) && text.chars().all(is_plain) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "`{text}' is not a name of 1 to {SYSLOG_TAG_LEN_MAX} letters, digits, `-', `_', `.' or `/'"
        ))
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
        for option in super::super::not_honoured::NOT_HONOURED {
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

    #[test]
    fn a_greeting_with_an_unknown_macro_is_refused() {
        assert!(greeting("$j Mail; $b $$5").is_ok());
        assert!(greeting("$j $x").unwrap_err().contains("$x"));
        assert!(greeting("cash$").is_err());
        assert!(greeting(" ").is_err());
    }
}
