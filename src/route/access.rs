//! Who may send to whom: the access map, and relaying.
//!
//! This host and the clients on its own loopback addresses 127.0.0.1 and ::1 may relay, and who the access map, class R
//! or one of [`RelayOptions`](crate::config::access::RelayOptions) allows; everybody else reaches this host's addresses
//! alone. What only DNS knows (whether a sender's domain exists, who is an MX) is asked by the SMTP server; the answers
//! here say when it is to. Lookup trouble is 451 and never consent (I9).
//!
//! Blocks: as maps and the user database do. Limits: as [`access_entry`](super::access_entry).
//! Source: MAPS 11, cf/README "ANTI-SPAM CONFIGURATION CONTROL", RFC 5321 3.6.

#![deny(clippy::indexing_slicing)]

use std::net::IpAddr;

use super::access_entry::{
    Denial, Disposition, Dots, Entry, KEYS_MAX, address_prefixes, client_address_keys, domain_keys,
    fold, full_keys, number, user_keys,
};
use super::resolve::Place;
use super::tables::Placed;
use super::{Client, NameLookup, RouteError, Router};
use crate::address::{Address, Domain, ReversePath};
use crate::config::access::{DelayChecks, RelayMailFrom};
use crate::status::{Reply, Status};

/// How often `user%host@domain` of a relayed domain is taken apart.
const UNFOLDINGS_MAX: usize = 10;
const DENIED: Status = Status::new(5, 7, 1);

/// How keys for a name are tried.
#[derive(Clone, Copy)]
pub(super) struct Tag {
    pub(super) text: &'static str,
    /// Whether the bare key counts, too.
    is_optional: bool,
}

impl Tag {
    const CONNECT: Self = Self::optional("Connect:");
    const FROM: Self = Self::optional("From:");
    const TO: Self = Self::optional("To:");
    const FROM_ONLY: Self = Self::obligatory("From:");
    const SPAM: Self = Self::obligatory("Spam:");
    pub(super) const TLS_CLT: Self = Self::obligatory("TLS_Clt:");
    pub(super) const TLS_SRV: Self = Self::obligatory("TLS_Srv:");
    pub(super) const TLS_RCPT: Self = Self::obligatory("TLS_Rcpt:");
    const GREET_PAUSE: Self = Self::obligatory("GreetPause:");
    const CLIENT_RATE: Self = Self::obligatory("ClientRate:");
    const CLIENT_CONN: Self = Self::obligatory("ClientConn:");

    const fn optional(text: &'static str) -> Self {
        let is_optional = true;
        Self { text, is_optional }
    }

    const fn obligatory(text: &'static str) -> Self {
        let is_optional = false;
        Self { text, is_optional }
    }
}

/// A limit that the access map sets for a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientLimit {
    /// `ClientRate:`, connections in a minute.
    Rate,
    /// `ClientConn:`, connections at once.
    Connections,
}

/// What is known of a recipient that is not refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecipientCheck {
    /// What becomes of the message.
    pub disposition: Disposition,
    /// It is refused so, unless this host is a mail exchanger of this domain.
    pub unless_mx: Option<(Domain, Denial)>,
}

impl Router {
    /// What the access map says of a client; asked once for a connection. `None`: nothing.
    ///
    /// # Errors
    /// The answer to every command but QUIT and the like.
    pub fn check_client(&self, client: &Client) -> Result<Option<Disposition>, Denial> {
        match self.client_entry(Tag::CONNECT, client)? {
            Some(Entry::Reject) => Err(access_denied()),
            Some(Entry::Error(refusal)) => Err(refusal),
            Some(Entry::Discard) => Ok(Some(Disposition::Discard)),
            Some(Entry::Quarantine(reason)) => Ok(Some(Disposition::Quarantine(reason))),
            Some(Entry::Ok | Entry::Relay) => Ok(Some(Disposition::Accept)),
            Some(Entry::Skip) | None => Ok(None),
        }
    }

    /// What is known of a sender. `None`: nothing, so that its domain has to exist.
    ///
    /// # Errors
    /// The answer to MAIL.
    pub fn check_sender(
        &self,
        sender: &ReversePath,
        client: &Client,
    ) -> Result<Option<Disposition>, Denial> {
        self.check_tls_client(client)?;
        let Some(address) = sender.address() else {
            return Ok(Some(Disposition::Accept));
        };
        let address = &self.sender_meant(address);
        let domain = address.domain().map(Domain::folded);
        if domain.as_deref().is_some_and(is_localhost) && !self.is_own_client(client) {
            let text = "Real domain name required for sender address";
            return Err(Denial::new(553, Status::new(5, 5, 4), text));
        }
        let keys = [full_keys(address), user_keys(address)];
        let keys = keys.into_iter().flatten();
        let domains = domain
            .as_deref()
            .map(|name| self.domain_keys(name))
            .unwrap_or_default();
        match self.look_up(Tag::FROM, keys.chain(domains))? {
            Some(Entry::Reject) => Err(access_denied()),
            Some(Entry::Error(refusal)) => Err(refusal),
            Some(Entry::Discard) => Ok(Some(Disposition::Discard)),
            Some(Entry::Quarantine(reason)) => Ok(Some(Disposition::Quarantine(reason))),
            Some(Entry::Ok | Entry::Relay) => Ok(Some(Disposition::Accept)),
            Some(Entry::Skip) | None => match address.domain() {
                None if self.options.access.accept_unqualified_senders => {
                    Ok(Some(Disposition::Accept))
                }
                None => {
                    let text = format!("Domain name required for sender address {address}");
                    Err(Denial::new(553, Status::new(5, 5, 4), text))
                }
                Some(domain) if self.is_own_domain(domain) => Ok(Some(Disposition::Accept)),
                Some(_) if self.options.access.accept_unresolvable_domains => {
                    Ok(Some(Disposition::Accept))
                }
                Some(_) => Ok(None),
            },
        }
    }

    /// The sender that `user%host` and `host!user` without a domain mean: `user@host`.
    #[must_use]
    pub fn sender_meant(&self, address: &Address) -> Address {
        match self.place(address) {
            Place::Elsewhere(meant) if address.domain().is_none() => meant,
            _ => address.clone(),
        }
    }

    /// Whether this client may send from this sender to this recipient, and whether a recipient of this host exists.
    ///
    /// # Errors
    /// The answer to RCPT.
    pub fn check_recipient(
        &self,
        address: &Address,
        sender: &ReversePath,
        client: &Client,
    ) -> Result<RecipientCheck, Denial> {
        // What tables refuse comes first, as in Sendmail, which parses an address before it checks it.
        let placed = match self.placed(address) {
            Ok(Placed::To(placed)) => placed,
            Ok(Placed::Refused(refusal)) => return Err(refusal.into_denial()),
            Err(error) => return Err(self.access_trouble(&error)),
        };
        let address = &self
            .canonical(address)
            .map_err(|error| self.access_trouble(&error))?;
        let place = self.unfolded(address, client)?;
        let disposition = match self.recipient_entry(&place, address)? {
            Some(Entry::Reject) => {
                let text = "Mailbox disabled for this recipient";
                return Err(Denial::new(550, Status::new(5, 2, 1), text));
            }
            Some(Entry::Error(refusal)) => return Err(refusal),
            // Nobody gets it: it need not exist, and nothing is relayed.
            Some(Entry::Discard) => {
                return Ok(RecipientCheck {
                    disposition: Disposition::Discard,
                    unless_mx: None,
                });
            }
            Some(Entry::Quarantine(reason)) => Disposition::Quarantine(reason),
            Some(Entry::Ok | Entry::Relay | Entry::Skip) | None => Disposition::Accept,
        };
        let mut check = RecipientCheck {
            disposition,
            unless_mx: None,
        };
        // The domain itself decides on relaying (virtual ones are relayed to), and then the tables on who it is.
        if let Place::Elsewhere(remote) = &place {
            check.unless_mx = self.check_relaying(remote, sender, client)?;
        }
        let Place::Here(local) = placed else {
            return Ok(check);
        };
        match self.unknown_here(&local, address) {
            Ok(None) => Ok(check),
            Ok(Some(denial)) => Err(denial),
            Err(error) => Err(self.access_trouble(&error)),
        }
    }

    /// Whether mail for another host's address is relayed. Where only DNS knows: unless this host is a mail exchanger of
    /// this domain it is refused so.
    fn check_relaying(
        &self,
        remote: &Address,
        sender: &ReversePath,
        client: &Client,
    ) -> Result<Option<(Domain, Denial)>, Denial> {
        if self.options.relay.promiscuous
            || self.is_relayed_to(remote)?
            || self.may_relay(client)?
            || self.is_relayed_from(sender)?
        {
            return Ok(None);
        }
        let denied = self.relaying_denied(client);
        match remote.domain() {
            Some(domain) if self.options.relay.based_on_mx => Ok(Some((domain.clone(), denied))),
            _ => Err(denied),
        }
    }

    /// Whether a client may send to other hosts, whoever the sender is.
    ///
    /// # Errors
    /// 451 if a lookup did not work.
    pub fn may_relay(&self, client: &Client) -> Result<bool, Denial> {
        if self.is_own_client(client) {
            return Ok(true);
        }
        let text = client.address.to_canonical().to_string();
        let is_in_class = address_prefixes(&text)
            .iter()
            .any(|prefix| self.relay_domains.contains(prefix))
            || client
                .name
                .as_ref()
                .is_some_and(|name| self.is_relay_host(&fold(name)));
        if is_in_class {
            return Ok(true);
        }
        let keys = client_address_keys(client.address);
        if self.look_up(Tag::CONNECT, keys)? == Some(Entry::Relay) {
            return Ok(true);
        }
        let names = client.name.as_ref().map(|name| self.host_keys(&fold(name)));
        let entry = self.look_up(Tag::CONNECT, names.unwrap_or_default())?;
        Ok(entry == Some(Entry::Relay))
    }

    /// Whether client and sender are checked when mail for this recipient comes (FEATURE delay_checks).
    ///
    /// # Errors
    /// 451 if a lookup did not work.
    pub fn wants_delayed_checks(&self, address: &Address) -> Result<bool, Denial> {
        let delay = self.options.access.delay_checks;
        if matches!(delay, DelayChecks::Off | DelayChecks::On) {
            return Ok(true);
        }
        let keys = match self.place(address) {
            Place::Here(local) => {
                let own = |domain| full_keys(&Address::from_parts(&local, domain));
                let user = user_keys(&Address::from_parts(&local, None));
                let domain = address.domain().cloned();
                let domain = domain.or_else(|| Domain::parse(&self.host_name).ok());
                let above = domain
                    .as_ref()
                    .map(|domain| self.domain_keys(&domain.folded()));
                let full = own(domain);
                [full, user, above.unwrap_or_default()].concat()
            }
            Place::Elsewhere(remote) => {
                let domain = self.keys_above(&remote);
                [full_keys(&remote), domain].concat()
            }
        };
        let word = self.value(Tag::SPAM, keys)?.unwrap_or_default();
        let is = |other: &str| word.trim().eq_ignore_ascii_case(other);
        Ok(match delay {
            DelayChecks::Friend => !is("FRIEND"),
            _ => is("HATER"),
        })
    }

    /// The number that the access map gives for a client's limit; `None`: no limit. An entry that is no number is told
    /// in the log and limits nothing.
    ///
    /// # Errors
    /// 451 if a lookup did not work.
    pub fn client_limit(&self, limit: ClientLimit, client: &Client) -> Result<Option<u32>, Denial> {
        let tag = match limit {
            ClientLimit::Rate => Tag::CLIENT_RATE,
            ClientLimit::Connections => Tag::CLIENT_CONN,
        };
        let keys = client_address_keys(client.address);
        // The tag alone is for all others.
        let value = self.value(tag, keys.into_iter().chain([String::new()]))?;
        Ok(self.told_number(tag, value).filter(|limit| *limit > 0))
    }

    /// How many milliseconds the access map makes a client wait for the greeting; `None`: it does not say.
    ///
    /// # Errors
    /// 451 if a lookup did not work.
    pub fn greet_pause_ms(&self, client: &Client) -> Result<Option<u32>, Denial> {
        let value = self.value(Tag::GREET_PAUSE, self.client_keys(client))?;
        Ok(self.told_number(Tag::GREET_PAUSE, value))
    }

    /// Whether a name that DNS gives is this host's.
    #[must_use]
    pub fn is_own_name(&self, name: &str) -> bool {
        Domain::parse(name).is_ok_and(|name| self.is_own_domain(&name))
    }

    /// Whether asking the access map may wait for another host or program.
    #[must_use]
    pub fn access_waits(&self) -> bool {
        self.access.as_ref().is_some_and(super::Table::waits)
    }

    fn told_number(&self, tag: Tag, value: Option<String>) -> Option<u32> {
        let value = value?;
        let found = number(&value);
        if found.is_none() {
            (self.notice)(&format!(
                "access map: {} value \"{value}\" is no number",
                tag.text
            ));
        }
        found
    }

    /// Where a recipient belongs, `user%host@domain` of domains that are relayed to taken apart: else anybody could
    /// reach anybody through a domain that we relay to. One of more than [`UNFOLDINGS_MAX`] layers is not relayed.
    fn unfolded(&self, address: &Address, client: &Client) -> Result<Place, Denial> {
        let mut place = self.place(address);
        for _ in 0..UNFOLDINGS_MAX {
            let Place::Elsewhere(remote) = &place else {
                return Ok(place);
            };
            let local = remote.local();
            let inner = match (local.rsplit_once('%'), local.split_once('!')) {
                _ if self.options.relay.loose_check || local.starts_with('"') => None,
                (Some((user, host)), _) | (None, Some((host, user))) => Domain::parse(host)
                    .ok()
                    .map(|domain| Address::from_parts(user, Some(domain))),
                (None, None) => None,
            };
            match inner {
                Some(inner) if self.is_relayed_to(remote)? => place = self.place(&inner),
                _ => return Ok(place),
            }
        }
        Err(self.relaying_denied(client))
    }

    fn recipient_entry(&self, place: &Place, address: &Address) -> Result<Option<Entry>, Denial> {
        if !self.options.access.blocklist_recipients {
            return Ok(None);
        }
        match place {
            Place::Here(local) => {
                // As it was written, unless it was `user%host@domain`; only then is the domain a guess.
                let unfolded = (address.local_unquoted() != *local)
                    .then(|| Address::from_parts(local, Domain::parse(&self.host_name).ok()));
                let address = unfolded.as_ref().unwrap_or(address);
                let domain = self.keys_above(address);
                let keys = [full_keys(address), user_keys(address)];
                let keys = keys.into_iter().flatten();
                self.look_up(Tag::TO, keys.chain(domain))
            }
            Place::Elsewhere(remote) => {
                let domain = self.keys_above(remote);
                let keys = full_keys(remote).into_iter();
                self.look_up(Tag::TO, keys.chain(domain))
            }
        }
    }

    /// Whether mail to this address's domain is relayed for anybody.
    fn is_relayed_to(&self, address: &Address) -> Result<bool, Denial> {
        let Some(domain) = address.domain() else {
            return Ok(false);
        };
        let folded = domain.folded();
        if self.is_relay_host(&folded) {
            return Ok(true);
        }
        // An entry for the whole address does not allow relaying, as in Sendmail, unless it is asked to.
        let mut keys = self.host_keys(&folded);
        if self.options.relay.to_full_address {
            keys.splice(0..0, full_keys(address));
        }
        Ok(self.look_up(Tag::TO, keys)? == Some(Entry::Relay))
    }

    /// Whether a sender may send to anybody. Anybody can claim to be it.
    fn is_relayed_from(&self, sender: &ReversePath) -> Result<bool, Denial> {
        let relay = &self.options.relay;
        let Some(address) = sender.address() else {
            return Ok(false);
        };
        if relay.local_from && address.domain().is_some_and(|d| self.is_own_domain(d)) {
            return Ok(true);
        }
        let mut keys = full_keys(address);
        match relay.mail_from {
            RelayMailFrom::No => return Ok(false),
            RelayMailFrom::Address => {}
            RelayMailFrom::Domain => {
                let domain = self.keys_above(address);
                keys.extend(domain);
            }
        }
        Ok(self.look_up(Tag::FROM_ONLY, keys)? == Some(Entry::Relay))
    }

    /// Whether class R, or this host's own domain, has a name.
    fn is_relay_host(&self, folded: &str) -> bool {
        let relay = &self.options.relay;
        // Virtual domains belong to class R, as in Sendmail.
        let is_in_class = if relay.hosts_only {
            self.relay_domains.contains(folded)
        } else {
            self.relay_domains.contains_domain(folded)
                || self.virtual_domains.contains_domain(folded)
        };
        if is_in_class || self.is_virtual(folded) {
            return true;
        }
        let own = self
            .host_name
            .split_once('.')
            .map(|(_, domain)| fold(domain));
        relay.entire_domain
            && own.is_some_and(|own| {
                let above = folded.strip_suffix(own.as_str());
                !own.is_empty() && above.is_some_and(|head| head.is_empty() || head.ends_with('.'))
            })
    }

    /// An address's domain and those above it; none without a domain.
    fn keys_above(&self, address: &Address) -> Vec<String> {
        let domain = address.domain();
        domain.map_or_else(Vec::new, |domain| self.domain_keys(&domain.folded()))
    }

    /// A client's name and the domains above it, if it has one, then its address and the networks it is in.
    pub(super) fn client_keys(&self, client: &Client) -> impl Iterator<Item = String> + use<> {
        let name = client.name.as_ref();
        let names = name.map_or_else(Vec::new, |name| self.domain_keys(&fold(name)));
        names.into_iter().chain(client_address_keys(client.address))
    }

    /// A domain and those above it, as keys of the access map.
    pub(super) fn domain_keys(&self, folded: &str) -> Vec<String> {
        let dots = match self.options.access.lookupdotdomain {
            true => Dots::Too,
            false => Dots::Never,
        };
        domain_keys(folded, dots)
    }

    /// The keys that allow relaying for a host name.
    fn host_keys(&self, folded: &str) -> Vec<String> {
        if self.options.relay.hosts_only {
            vec![folded.to_owned()]
        } else {
            self.domain_keys(folded)
        }
    }

    fn relaying_denied(&self, client: &Client) -> Denial {
        let literal = match client.address.to_canonical() {
            IpAddr::V4(four) => format!("[{four}]"),
            IpAddr::V6(six) => format!("[IPv6:{six}]"),
        };
        match client.name_lookup {
            NameLookup::Settled => Denial::new(550, DENIED, "Relaying denied"),
            NameLookup::Missing => {
                let text = format!("Relaying denied. IP name lookup failed {literal}");
                Denial::new(550, DENIED, text)
            }
            NameLookup::Forged => {
                let text = format!("Relaying denied. IP name possibly forged {literal}");
                Denial::new(550, DENIED, text)
            }
            NameLookup::Trouble => {
                let text = format!(
                    "Relaying temporarily denied. Cannot resolve PTR record for {}",
                    client.address.to_canonical()
                );
                Denial::new(450, Status::new(4, 4, 0), text)
            }
        }
    }

    /// Whether a client is this host: 127.0.0.1 or ::1 (not the rest of 127.0.0.0/8), or a verified name of class w.
    fn is_own_client(&self, client: &Client) -> bool {
        let is_loopback = match client.address.to_canonical() {
            IpAddr::V4(four) => four == std::net::Ipv4Addr::LOCALHOST,
            IpAddr::V6(six) => six == std::net::Ipv6Addr::LOCALHOST,
        };
        is_loopback
            || client
                .name
                .as_ref()
                .is_some_and(|name| self.is_own_name(name))
    }

    fn client_entry(&self, tag: Tag, client: &Client) -> Result<Option<Entry>, Denial> {
        self.look_up(tag, self.client_keys(client))
    }

    fn look_up(
        &self,
        tag: Tag,
        keys: impl IntoIterator<Item = String>,
    ) -> Result<Option<Entry>, Denial> {
        let has_skip = self.options.access.skip;
        let value = self.value(tag, keys)?;
        Ok(value.map(|value| Entry::parse(&value, has_skip)))
    }

    /// The value of the first key that has one, each tried with the tag and then, if that is optional, bare. More than
    /// [`KEYS_MAX`] keys are trouble: the last ones are those of whole domains, which must not be passed over.
    pub(super) fn value(
        &self,
        tag: Tag,
        keys: impl IntoIterator<Item = String>,
    ) -> Result<Option<String>, Denial> {
        let Some(table) = &self.access else {
            return Ok(None);
        };
        let trouble = |error: RouteError| self.access_trouble(&error);
        for (number, key) in keys.into_iter().enumerate() {
            if number == KEYS_MAX {
                return Err(Denial::trouble());
            }
            let tagged = format!("{}{key}", tag.text);
            if let Some(value) = table.get(&tagged).map_err(trouble)? {
                return Ok(Some(value));
            }
            if tag.is_optional
                && let Some(value) = table.get(&key).map_err(trouble)?
            {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    fn access_trouble(&self, error: &RouteError) -> Denial {
        // The log is told; the client is answered blandly.
        let _: Reply = self.lookup_trouble(error);
        Denial::trouble()
    }
}

fn access_denied() -> Denial {
    Denial::new(550, DENIED, "Access denied")
}

fn is_localhost(folded: &str) -> bool {
    matches!(
        folded,
        "localhost" | "[127.0.0.1]" | "[ipv6:::1]" | "[ipv6:0:0:0:0:0:0:0:1]"
    )
}
