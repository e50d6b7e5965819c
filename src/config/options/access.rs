//! Who may connect, send and relay: the access map and the FEATUREs against spam.
//!
//! A part of the table of options, see [`options`](super). Pure values: nothing is read, nothing blocks.

use std::time::Duration;

use super::OptionDef;
use crate::config::access::{Word, word};
use crate::config::value::Access;

/// The longest pause before a greeting. Source: cf/README, greet_pause.
const GREET_PAUSE_MS_MAX: u32 = 300_000;
/// What has to be written to open this host to everybody.
const PROMISCUOUS: &str = "relay for anybody";

pub(super) const ACCESS: &[OptionDef] = &[
    OptionDef::new(
        "access_db",
        "hash -o -T<TMPF> /etc/mail/access",
        Access::Table {
            field: |c| &mut c.route.access_db,
            usual: "hash -T<TMPF> /etc/mail/access",
        },
        "The access map: who may connect, send and relay.",
    )
    .sandbox("hash -o -T<TMPF> etc/mail/access"),
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
        "lookupdotdomain",
        "false",
        Access::Flag(|c| &mut c.route.access.lookupdotdomain),
        "Whether the access map is asked for .DOMAIN, too, which stands for what is below DOMAIN alone.",
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
                c.route.access.delay_checks = word(text)?;
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
        Access::DnsLists {
            field: |c| &mut c.route.access.dnsbl,
            has_patterns: false,
        },
        "Lists in DNS of clients to be refused; TEXT is what they are answered, t has mail wait while the list does not answer.",
    ),
    OptionDef::new(
        "enhdnsbl",
        "",
        Access::DnsLists {
            field: |c| &mut c.route.access.enhdnsbl,
            has_patterns: true,
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
                c.route.access.ratecontrol = word(text)?;
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
                c.route.access.conncontrol = word(text)?;
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
                c.route.relay.mail_from = word(text)?;
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
                    _ => {
                        return Err(format!(
                            "makes an open relay; who wants that writes \"{PROMISCUOUS}\""
                        ));
                    }
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
];
