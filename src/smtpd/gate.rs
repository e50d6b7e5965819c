//! Who is let in: the router's answers about client, sender and recipient, and what only DNS knows of them.
//!
//! One [`Gate`] for a connection. It asks whether a sender's domain exists, whether lists in DNS have the client, and
//! whether this host is a mail exchanger of a recipient's domain; it counts the client's connections, and with
//! delay_checks puts client and sender off until RCPT. A lookup that does not work is answered 4xx or, for a list that
//! is not marked `t`, passes, as in Sendmail; it never refuses for good (I9).
//!
//! Waits for the resolver, each question for at most [`LOOKUP_TIME_MAX`]; without a resolver (a sandbox that may ask
//! nobody) what DNS would decide is not asked and passes. Maps of other hosts are asked on the blocking pool.
//! Limits: [`CLIENTS_MAX`]. Source: cf/README "ANTI-SPAM CONFIGURATION CONTROL", RFC 5782.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::timeout;

use super::connection::Backend;
use super::settings::Peer;
use crate::address::{Address, Domain, ReversePath};
use crate::config::access::{Control, DelayChecks, DnsList};
use crate::dns::{LookupError, MxAnswer, Resolver};
use crate::route::{Client, ClientLimit, Denial, Disposition, Router};
use crate::status::{Reply, Status};

/// The longest that one question to DNS may take.
pub const LOOKUP_TIME_MAX: Duration = Duration::from_secs(20);
/// Clients whose connections are counted; at the limit those of the last minute are kept, and if none is older, all
/// begin anew.
pub const CLIENTS_MAX: usize = 65_536;
/// How long a connection counts for `ClientRate:`.
const RATE_WINDOW: Duration = Duration::from_secs(60);
/// Steps in which the window moves on.
const RATE_STEP: Duration = Duration::from_secs(10);
/// The longest pause before a greeting.
const GREET_PAUSE_MAX: Duration = Duration::from_secs(300);

/// The gate of one connection.
#[derive(Default)]
pub(super) struct Gate {
    /// The sender of the message begun last.
    sender: Option<ReversePath>,
    /// What the client was found to be, once it is known for good.
    client: Option<Result<Disposition, Denial>>,
}

impl Gate {
    /// Whether a client is served, and what becomes of all its messages; asked before the greeting.
    pub(super) async fn client(
        &mut self,
        backend: &Backend,
        peer: &Peer,
    ) -> Result<Disposition, Reply> {
        within_limits(backend, peer).await.map_err(Denial::bare)?;
        if delays(backend) {
            return Ok(Disposition::Accept);
        }
        let verdict = self.check_client(backend, &peer.client).await;
        verdict.map_err(Denial::bare)
    }

    /// How long the greeting is held back.
    pub(super) async fn greet_pause(&self, backend: &Backend, client: &Client) -> Duration {
        let usual = backend.settings.timeouts.greet_pause;
        let who = client.clone();
        // A lookup that does not work changes nothing.
        match ask(backend, move |router| router.greet_pause_ms(&who)).await {
            Ok(Some(ms)) => Duration::from_millis(u64::from(ms)).min(GREET_PAUSE_MAX),
            Ok(None) | Err(_) => usual,
        }
    }

    /// Whether a sender is taken; asked at MAIL.
    pub(super) async fn sender(
        &mut self,
        backend: &Backend,
        path: &ReversePath,
        client: &Client,
    ) -> Result<Disposition, Reply> {
        self.sender = Some(path.clone());
        if delays(backend) {
            return Ok(Disposition::Accept);
        }
        let verdict = check_sender(backend, path, client).await;
        verdict.map_err(|refusal| refusal.about(&path.to_string()))
    }

    /// Whether a recipient is taken; asked at RCPT.
    pub(super) async fn recipient(
        &mut self,
        backend: &Backend,
        address: &Address,
        client: &Client,
    ) -> Result<Disposition, Reply> {
        let verdict = self.check_recipient(backend, address, client).await;
        verdict.map_err(|refusal| refusal.about(&format!("<{address}>")))
    }

    async fn check_recipient(
        &mut self,
        backend: &Backend,
        address: &Address,
        client: &Client,
    ) -> Result<Disposition, Denial> {
        let sender = self.sender.clone().unwrap_or(ReversePath::Null);
        let check = {
            let (whom, from, client) = (address.clone(), sender.clone(), client.clone());
            let look_up = move |router: &Router| router.check_recipient(&whom, &from, &client);
            if backend.router.recipient_waits(address) {
                ask_blocking(backend, look_up).await?
            } else {
                ask(backend, look_up).await?
            }
        };
        if let Some((domain, denied)) = check.unless_mx
            && !is_our_mx(backend, &domain).await?
        {
            return Err(denied);
        }
        let mut disposition = check.disposition;
        if delays(backend) && disposition != Disposition::Discard {
            let whom = address.clone();
            if ask(backend, move |router| router.wants_delayed_checks(&whom)).await? {
                let of_sender = check_sender(backend, &sender, client).await?;
                let of_client = self.check_client(backend, client).await?;
                disposition = disposition.and(of_sender).and(of_client);
            }
        }
        Ok(disposition)
    }

    async fn check_client(
        &mut self,
        backend: &Backend,
        client: &Client,
    ) -> Result<Disposition, Denial> {
        if let Some(known) = &self.client {
            return known.clone();
        }
        let who = client.clone();
        let verdict = match ask(backend, move |router| router.check_client(&who)).await {
            Ok(Some(disposition)) => Ok(disposition),
            Ok(None) => listed(backend, client.address)
                .await
                .map(|()| Disposition::Accept),
            Err(refusal) => Err(refusal),
        };
        let is_final = verdict.as_ref().err().is_none_or(|error| error.code >= 500);
        if is_final {
            self.client = Some(verdict.clone());
        }
        verdict
    }
}

fn delays(backend: &Backend) -> bool {
    backend.access.delay_checks != DelayChecks::Off
}

async fn check_sender(
    backend: &Backend,
    path: &ReversePath,
    client: &Client,
) -> Result<Disposition, Denial> {
    let (from, who) = (path.clone(), client.clone());
    if let Some(disposition) = ask(backend, move |r| r.check_sender(&from, &who)).await? {
        return Ok(disposition);
    }
    let (Some(address), Some(resolver)) = (path.address(), &backend.resolver) else {
        return Ok(Disposition::Accept);
    };
    let address = backend.router.sender_meant(address);
    let Some(domain) = address.domain() else {
        return Ok(Disposition::Accept);
    };
    match answer(exists(resolver.as_ref(), domain)).await {
        Some(true) => Ok(Disposition::Accept),
        Some(false) => Err(refusal(
            553,
            Status::new(5, 1, 8),
            format!("Domain of sender address {address} does not exist"),
        )),
        None => Err(refusal(
            451,
            Status::new(4, 1, 8),
            format!("Domain of sender address {address} does not resolve"),
        )),
    }
}

/// Whether mail could be sent to a domain: it has an MX record or an address.
async fn exists(resolver: &dyn Resolver, domain: &Domain) -> Result<bool, LookupError> {
    let name = domain.as_str();
    if name.starts_with('[') {
        return Ok(true);
    }
    match resolver.mx(name).await? {
        MxAnswer::Hosts(_) | MxAnswer::Null => Ok(true),
        MxAnswer::Absent => Ok(!resolver.addresses(name).await?.is_empty()),
    }
}

async fn is_our_mx(backend: &Backend, domain: &Domain) -> Result<bool, Denial> {
    let Some(resolver) = &backend.resolver else {
        return Ok(false);
    };
    match answer(resolver.mx(domain.as_str())).await {
        Some(MxAnswer::Hosts(hosts)) => {
            Ok(hosts.iter().any(|mx| backend.router.is_own_name(&mx.host)))
        }
        Some(MxAnswer::Null | MxAnswer::Absent) => Ok(false),
        None => Err(refusal(
            450,
            Status::new(4, 4, 0),
            format!("Can not check MX records for recipient host {domain}"),
        )),
    }
}

/// Asks the lists, one after the other, until one has the client.
async fn listed(backend: &Backend, client: IpAddr) -> Result<(), Denial> {
    let Some(resolver) = &backend.resolver else {
        return Ok(());
    };
    let access = &backend.access;
    let client = client.to_canonical();
    for list in access.dnsbl.iter().chain(&access.enhdnsbl) {
        let name = format!("{}.{}", reversed(client), list.zone);
        match answer(resolver.addresses(&name)).await {
            Some(answers) if is_meant(list, &answers) => return Err(refused_by(list, client)),
            Some(_) => {}
            None if list.defers => {
                return Err(refusal(
                    451,
                    Status::new(4, 4, 3),
                    format!("Temporary lookup failure of {client} at {}", list.zone),
                ));
            }
            None => {}
        }
    }
    Ok(())
}

fn is_meant(list: &DnsList, answers: &[IpAddr]) -> bool {
    let begins = |answer: &IpAddr| {
        let text = answer.to_string();
        list.patterns
            .iter()
            .any(|pattern| text.starts_with(pattern))
    };
    !answers.is_empty() && (list.patterns.is_empty() || answers.iter().any(begins))
}

fn refused_by(list: &DnsList, client: IpAddr) -> Denial {
    let text = match &list.text {
        Some(text) => text.replace("$&{client_addr}", &client.to_string()),
        None => format!("550 Rejected: {client} listed at {}", list.zone),
    };
    Denial::of_list(&text)
}

/// The labels of an address below a list (RFC 5782 2.1 and 2.4).
fn reversed(address: IpAddr) -> String {
    match address {
        IpAddr::V4(four) => {
            let [a, b, c, d] = four.octets();
            format!("{d}.{c}.{b}.{a}")
        }
        IpAddr::V6(six) => {
            let nibbles = six.octets().into_iter().rev();
            let labels: Vec<String> = nibbles
                .flat_map(|octet| [octet & 15, octet >> 4])
                .map(|nibble| format!("{nibble:x}"))
                .collect();
            labels.join(".")
        }
    }
}

/// What DNS answered; `None`: it did not.
async fn answer<T>(question: impl Future<Output = Result<T, LookupError>>) -> Option<T> {
    timeout(LOOKUP_TIME_MAX, question).await.ok()?.ok()
}

/// Asks the router here, or on the blocking pool if the access map waits for others.
async fn ask<T: Send + 'static>(
    backend: &Backend,
    look_up: impl FnOnce(&Router) -> Result<T, Denial> + Send + 'static,
) -> Result<T, Denial> {
    if backend.router.access_waits() {
        return ask_blocking(backend, look_up).await;
    }
    look_up(&backend.router)
}

/// Asks the router on the blocking pool. If its thread is lost, that is our trouble, not the client's (I9).
async fn ask_blocking<T: Send + 'static>(
    backend: &Backend,
    look_up: impl FnOnce(&Router) -> Result<T, Denial> + Send + 'static,
) -> Result<T, Denial> {
    let router = Arc::clone(&backend.router);
    let asked = tokio::task::spawn_blocking(move || look_up(&router)).await;
    asked.unwrap_or_else(|_| Err(Denial::trouble()))
}

async fn within_limits(backend: &Backend, peer: &Peer) -> Result<(), Denial> {
    let access = &backend.access;
    let checks = [
        (
            access.ratecontrol,
            ClientLimit::Rate,
            peer.load.rate,
            "Connection rate limit exceeded.",
        ),
        (
            access.conncontrol,
            ClientLimit::Connections,
            peer.load.open,
            "Too many open connections.",
        ),
    ];
    for (control, limit, count, text) in checks {
        let code = match control {
            Control::Off => continue,
            Control::On => 452,
            Control::Terminate => 421,
        };
        let client = peer.client.clone();
        let most = ask(backend, move |router| router.client_limit(limit, &client)).await?;
        if most.is_some_and(|most| count > most) {
            return Err(refusal(code, Status::new(4, 3, 2), text.to_owned()));
        }
    }
    Ok(())
}

fn refusal(code: u16, status: Status, text: String) -> Denial {
    Denial { code, status, text }
}

/// Connections of each client in the last minute, counted in steps.
#[derive(Default)]
pub(super) struct ClientRates {
    clients: Mutex<HashMap<IpAddr, Recent>>,
}

/// Connections by the step in which they came, oldest first.
type Recent = Vec<(u64, u32)>;

impl ClientRates {
    /// Counts a connection at a monotonic time, and says how many there were in the last minute.
    pub(super) fn count(&self, client: IpAddr, now: Duration) -> u32 {
        let step = now.as_secs() / RATE_STEP.as_secs();
        let oldest = step.saturating_sub(RATE_WINDOW.as_secs() / RATE_STEP.as_secs() - 1);
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.len() >= CLIENTS_MAX && !clients.contains_key(&client) {
            clients.retain(|_, recent| recent.last().is_some_and(|(last, _)| *last >= oldest));
            if clients.len() >= CLIENTS_MAX {
                clients.clear();
            }
        }
        let recent = clients.entry(client).or_default();
        recent.retain(|(when, _)| *when >= oldest);
        match recent.last_mut() {
            Some((when, count)) if *when == step => *count = count.saturating_add(1),
            _ => recent.push((step, 1)),
        }
        recent
            .iter()
            .fold(0, |sum: u32, (_, count)| sum.saturating_add(*count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_count_for_a_minute() {
        let rates = ClientRates::default();
        let client = "192.0.2.1".parse().unwrap();
        let at = |seconds| rates.count(client, Duration::from_secs(seconds));
        assert_eq!([at(0), at(1), at(59)], [1, 2, 3]);
        assert_eq!(at(60), 2, "those of the first ten seconds are gone");
        assert_eq!(at(600), 1);
        let other = "192.0.2.2".parse().unwrap();
        assert_eq!(rates.count(other, Duration::from_secs(600)), 1);
    }

    #[test]
    fn lists_are_asked_for_the_address_reversed() {
        assert_eq!(reversed("192.0.2.99".parse().unwrap()), "99.2.0.192");
        let six = reversed("2001:db8::567:89ab".parse().unwrap());
        assert!(six.starts_with("b.a.9.8.7.6.5.0.") && six.ends_with(".8.b.d.0.1.0.0.2"));
        let list = DnsList::parse("bl.test; ; ; 127.0.0.2", true).unwrap();
        let answers = |text: &str| [text.parse::<IpAddr>().unwrap()];
        assert!(is_meant(&list, &answers("127.0.0.2")));
        assert!(!is_meant(&list, &answers("127.0.0.3")) && !is_meant(&list, &[]));
    }

    #[test]
    fn a_list_says_what_it_was_told_to_say() {
        let client = "192.0.2.1".parse().unwrap();
        let line = |text: &str| {
            let list = DnsList::parse(text, false).unwrap();
            refused_by(&list, client).bare().to_line()
        };
        assert_eq!(
            line("bl.test"),
            "550 5.7.1 Rejected: 192.0.2.1 listed at bl.test"
        );
        assert_eq!(
            line("bl.test; \"450 listed $&{client_addr}\""),
            "450 4.7.1 listed 192.0.2.1"
        );
        assert_eq!(line("bl.test; go away"), "550 5.7.1 go away");
    }
}
