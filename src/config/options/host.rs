//! Directories, sockets and files; the names of this host; how names are looked up.
//!
//! A part of the table of options, see [`options`](super). Pure values: nothing is read, nothing blocks.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::{OptionDef, SECOND};
use crate::config::duration::TimeUnit;
use crate::config::value::Access;

/// The port that DNS is asked at when `resolver` names none. RFC 1035 4.2.
const DNS_PORT: u16 = 53;

pub(super) const HOST: &[OptionDef] = &[
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
        "Where the daemon writes its process id and command line; not in the folder of the control socket, unless that is the daemon's user's.",
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
    OptionDef::new(
        "host_name",
        "",
        Access::Domain(|c| &mut c.host.host_name),
        "The full name of this host (macro j).",
    ),
    OptionDef::new(
        "domain",
        "",
        Access::Domain(|c| &mut c.host.domain),
        "The domain (macro m) appended to a system host name that has no dot.",
    ),
    OptionDef::new(
        "local_host_names",
        "/etc/mail/local-host-names",
        Access::Path(|c| &mut c.route.local_host_names),
        "Names that are this host (class w), one a line.",
    )
    .sandbox("etc/mail/local-host-names"),
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
];

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
