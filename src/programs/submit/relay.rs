//! The way of a submission to the MTA: SMTP, over loopback unless the configuration names another host.
//!
//! A daemon writes the addresses it listens on to a file; they are tried in order until one answers. One connection
//! serves all messages of a run. Blocks: network, within the client's time limits. Limits: [`ADDRESSES_MAX`],
//! [`ADDRESS_FILE_BYTES_MAX`].

use std::fs::File;
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::SystemClock;
use crate::config::{Config, HostPort, Remote};
use crate::deliver::{
    Attempt, ContentOpener, DeliverOptions, DeliveryRecipient, Destination, MailboxOptions,
    Mailers, NamedOptions, NextHop, Place, SmtpOptions, Verbose,
};
use crate::dns::{ResolverOptions, SystemResolver};
use crate::envelope::{Delivery, Envelope, MessageId, Outcome, RecipientId};
use crate::safe_file::Lenience;
use crate::status::Status;

/// Most addresses of a daemon that are tried.
const ADDRESSES_MAX: usize = 16;
/// Longest file of addresses, in bytes.
const ADDRESS_FILE_BYTES_MAX: u64 = 4096;
/// How long a connection is kept for another message of the same run, such as a report.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// The mailer's name in log and verbose lines.
pub(super) const MAILER: &str = "relay";

/// A message for the MTA.
pub(super) struct Parcel<'a> {
    /// The id it is logged under.
    pub(super) id: MessageId,
    /// Its envelope, every address with a domain.
    pub(super) envelope: &'a Envelope,
    /// How each recipient is shown.
    pub(super) shown: &'a [String],
    /// Its content.
    pub(super) content: ContentOpener,
    /// The content's size.
    pub(super) content_bytes: u64,
}

/// A client of the MTA.
pub(super) struct Relay {
    runtime: tokio::runtime::Runtime,
    mailers: Mailers,
    hops: Vec<NextHop>,
    verbose: Option<Verbose>,
}

impl Relay {
    /// A client that has not connected yet. Blocks: disk.
    ///
    /// # Errors
    /// The system's, if a runtime cannot be made.
    pub(super) fn new(config: &Config, host: &str, verbose: Option<Verbose>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let options = DeliverOptions {
            host_name: host.to_owned(),
            mailboxes: MailboxOptions {
                directory: config.paths.mailbox_directory.clone(),
                lock_wait_max: IDLE_MAX,
                file_lenience: Lenience::default(),
                part: None,
            },
            named: NamedOptions::default(),
            smtp: smtp_options(config, host),
        };
        // The mailer of mailboxes is never used here.
        let owners = Arc::new(|_: &str| Ok(None));
        let mailers = {
            let _entered = runtime.enter();
            let resolver = Arc::new(SystemResolver::new(&ResolverOptions::default()));
            Mailers::new(options, owners, resolver, Arc::new(SystemClock::new()))
        };
        Ok(Self {
            runtime,
            mailers,
            hops: hops(config),
            verbose,
        })
    }

    /// Hands a message to the MTA: one outcome for each recipient of the envelope, in order.
    pub(super) fn send(&self, parcel: &Parcel<'_>) -> Vec<Outcome> {
        let mut last = Vec::new();
        for hop in &self.hops {
            last = self.attempt(hop, parcel);
            if !last.iter().all(never_answered) {
                break;
            }
        }
        last
    }

    fn attempt(&self, hop: &NextHop, parcel: &Parcel<'_>) -> Vec<Outcome> {
        let destination = Destination::Smtp {
            mailer: MAILER,
            hop: hop.clone(),
        };
        let recipients: Vec<DeliveryRecipient> = (0_u32..)
            .zip(&parcel.envelope.recipients)
            .map(|(id, recipient)| {
                let mut as_shown = recipient.clone();
                let at = usize::try_from(id).unwrap_or(usize::MAX);
                if let Some(shown) = parcel.shown.get(at) {
                    as_shown.target.clone_from(shown);
                }
                DeliveryRecipient {
                    id: RecipientId(id),
                    recipient: as_shown,
                    user: recipient.target.clone(),
                }
            })
            .collect();
        let count = recipients.len();
        let attempt = Attempt {
            id: parcel.id,
            envelope: Arc::new(parcel.envelope.clone()),
            recipients,
            content: Arc::clone(&parcel.content),
            content_bytes: parcel.content_bytes,
            is_first: true,
            verbose: self.verbose.clone(),
            place: Place::default(),
        };
        let results = self
            .runtime
            .block_on(self.mailers.attempt(&destination, attempt));
        let mut outcomes = vec![None; count];
        for (id, outcome) in results {
            let at = usize::try_from(id.0).unwrap_or(usize::MAX);
            if let Some(slot) = outcomes.get_mut(at) {
                *slot = Some(outcome);
            }
        }
        outcomes
            .into_iter()
            .map(|outcome| {
                outcome.unwrap_or_else(|| {
                    Outcome::new(
                        Delivery::Deferred,
                        Status::new(4, 3, 0),
                        MAILER,
                        "Deferred: no outcome",
                    )
                })
            })
            .collect()
    }

    /// Ends the connection politely.
    pub(super) fn close(self) {
        self.runtime.block_on(async {
            match &self.verbose {
                Some(verbose) => self.mailers.close_idle_watched(verbose).await,
                None => self.mailers.close_idle().await,
            }
        });
    }
}

/// Whether nobody said anything, so that another address may be tried without sending twice.
fn never_answered(outcome: &Outcome) -> bool {
    outcome.result == Delivery::Deferred
        && outcome.reply.is_none()
        && (outcome.text.contains("Connection refused") || outcome.text.contains("unreachable"))
}

fn smtp_options(config: &Config, host: &str) -> SmtpOptions {
    SmtpOptions {
        helo_name: config
            .deliver
            .helo_name
            .clone()
            .unwrap_or_else(|| host.to_owned()),
        port: crate::deliver::smtp::SMTP_PORT,
        loopback_only: config.deliver.remote == Remote::LoopbackOnly,
        own_name: Arc::new(|_| false),
        rules: None,
        timeouts: crate::deliver::SmtpTimeouts::from(&config.deliver.timeouts),
        cache_size: 1,
        cache_idle_max: IDLE_MAX,
    }
}

/// Where the MTA may be: what a running daemon says, else the configured host, else this host's port 25.
fn hops(config: &Config) -> Vec<NextHop> {
    let listening = addresses(&config.paths.smtp_address_file);
    if !listening.is_empty() {
        return listening.into_iter().map(hop_of_address).collect();
    }
    vec![match &config.submit.mta_host {
        Some(host) => hop_of_host(host),
        None => hop_of_address(SocketAddr::from((
            Ipv4Addr::LOCALHOST,
            crate::deliver::smtp::SMTP_PORT,
        ))),
    }]
}

fn hop_of_address(address: SocketAddr) -> NextHop {
    let name = match address.ip() {
        IpAddr::V4(four) => format!("[{four}]"),
        IpAddr::V6(six) => format!("[IPv6:{six}]"),
    };
    NextHop::Host {
        name,
        port: Some(address.port()),
    }
}

fn hop_of_host(host: &HostPort) -> NextHop {
    match host.address() {
        Some(address) => hop_of_address(SocketAddr::new(address, host.port)),
        None => NextHop::Host {
            name: host.host.clone(),
            port: Some(host.port),
        },
    }
}

/// The addresses a daemon wrote, one a line; none if there is no such file or nothing in it can be read. An address
/// that stands for all of the host's is reached over loopback.
fn addresses(file: &Path) -> Vec<SocketAddr> {
    let mut text = String::new();
    let Ok(file) = File::open(file) else {
        return Vec::new();
    };
    if file
        .take(ADDRESS_FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .is_err()
    {
        return Vec::new();
    }
    text.lines()
        .filter_map(|line| line.trim().parse::<SocketAddr>().ok())
        .map(|mut address| {
            if address.ip() == IpAddr::V4(Ipv4Addr::UNSPECIFIED) {
                address.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
            } else if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) {
                address.set_ip(IpAddr::V6(Ipv6Addr::LOCALHOST));
            }
            address
        })
        .take(ADDRESSES_MAX)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemons_addresses_come_before_the_configured_host() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("smtp");
        let mut config = Config::defaults(crate::config::Role::Msp, None);
        config.paths.smtp_address_file.clone_from(&file);
        config.submit.mta_host = None;
        let host = |name: &str, port| NextHop::Host {
            name: name.to_owned(),
            port: Some(port),
        };
        assert_eq!(hops(&config), [host("[127.0.0.1]", 25)]);
        config.submit.mta_host = Some(HostPort::parse("[127.0.0.5]:2600").unwrap());
        assert_eq!(hops(&config), [host("[127.0.0.5]", 2600)]);
        std::fs::write(&file, "0.0.0.0:2525\nrubbish\n[::1]:2526\n").unwrap();
        assert_eq!(
            hops(&config),
            [host("[127.0.0.1]", 2525), host("[IPv6:::1]", 2526)]
        );
    }

    #[test]
    fn only_silence_leads_to_the_next_address() {
        let outcome = |result, text: &str| Outcome::new(result, Status::new(4, 4, 1), MAILER, text);
        let refused = outcome(
            Delivery::Deferred,
            "Deferred: Connection refused by [127.0.0.1]",
        );
        assert!(never_answered(&refused));
        let mut replied = refused;
        replied.reply = Some("421 Connection refused".to_owned());
        assert!(!never_answered(&replied));
        assert!(!never_answered(&outcome(
            Delivery::Deferred,
            "Deferred: Connection reset by [127.0.0.1]"
        )));
    }
}
