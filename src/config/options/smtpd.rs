//! The SMTP server: listeners, limits, time limits.
//!
//! A part of the table of options, see [`options`](super). Pure values: nothing is read, nothing blocks.

use std::net::{IpAddr, Ipv4Addr};

use super::{DAY, OptionDef, SECOND};
use crate::config::duration::{TimeUnit, parse_time, print_time};
use crate::config::endpoint::DaemonPort;
use crate::config::file::nearest;
use crate::config::modes::PrivacyOptions;
use crate::config::size::ByteSize;
use crate::config::value::Access;

pub(super) const SMTPD: &[OptionDef] = &[
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
                    let near = nearest(&word, PrivacyOptions::words());
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
                let wait =
                    parse_time(text, TimeUnit::Minutes).map_err(|error| error.to_string())?;
                if !(SECOND..=DAY).contains(&wait) {
                    return Err(format!("{text} is not within 1s to 1d"));
                }
                c.smtpd.timeouts.datablock = wait;
                c.deliver.timeouts.datablock = wait;
                Ok(())
            },
            show: |c| print_time(c.smtpd.timeouts.datablock),
        },
        "How long server and client wait for a piece of a message to move.",
    )
    .named("Timeout.datablock")
    .safe(),
];

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greeting_with_an_unknown_macro_is_refused() {
        assert!(greeting("$j Mail; $b $$5").is_ok());
        assert!(greeting("$j $x").unwrap_err().contains("$x"));
        assert!(greeting("cash$").is_err());
        assert!(greeting(" ").is_err());
    }
}
