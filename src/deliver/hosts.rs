//! Which hosts may take a message (L2): the MX walk's plan.
//!
//! Guarantees: hosts come by ascending preference, in random order among equals; hosts that are this one, and all of
//! equal or worse preference, are left out, so that mail cannot circle (RFC 5321 5.1). A domain without MX records is
//! its own host; a null MX fails (RFC 7505). Trouble with a lookup defers (I9). Where only loopback may be contacted,
//! nothing is asked of name servers that are elsewhere.
//! Limits: [`HOSTS_MAX`], [`ADDRESSES_MAX`].

use std::hash::{BuildHasher, Hasher, RandomState};
use std::net::{IpAddr, Ipv6Addr};

use super::NextHop;
use super::smtp::OwnName;
use crate::dns::{LookupError, MxAnswer, MxHost, Resolver, folded};
use crate::envelope::{Delivery, Outcome};
use crate::status::Status;

/// Hosts tried for one domain.
pub const HOSTS_MAX: usize = 16;
/// Addresses tried of one host.
pub const ADDRESSES_MAX: usize = 8;

/// What an outcome says where only loopback may be contacted.
const LOOPBACK_ONLY: &str = "Deferred: this sandbox contacts no other host; \
    set remote = true or smart_host in its sendmail.toml";

/// A host to try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    /// As log and `-v` show it: a name with a final dot, or an address literal.
    pub(crate) shown: String,
    /// As it is looked up; empty for a literal.
    name: String,
    literal: Option<IpAddr>,
    /// Whether an MX record named it.
    is_exchange: bool,
    /// The port, where the hop names one for it.
    pub(crate) port: Option<u16>,
}

impl Host {
    fn named(name: &str, is_exchange: bool) -> Self {
        let name = folded(name);
        Self {
            shown: format!("{name}."),
            name,
            literal: None,
            is_exchange,
            port: None,
        }
    }

    /// `[192.0.2.1]`, `[IPv6:::1]`, `[host.example]`, or a bare name.
    fn parse(text: &str) -> Self {
        let Some(inner) = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) else {
            return match text.parse() {
                Ok(address) => Self::at(address, format!("[{text}]")),
                Err(_) => Self::named(text, false),
            };
        };
        let six = inner
            .get(..5)
            .filter(|tag| tag.eq_ignore_ascii_case("ipv6:"))
            .and_then(|_| inner.get(5..)?.parse::<Ipv6Addr>().ok());
        match six.map(IpAddr::V6).or_else(|| inner.parse().ok()) {
            Some(address) => Self::at(address, text.to_owned()),
            None => Self::named(inner, false),
        }
    }

    const fn at(address: IpAddr, shown: String) -> Self {
        Self {
            shown,
            name: String::new(),
            literal: Some(address),
            is_exchange: false,
            port: None,
        }
    }
}

/// What decides which hosts there are.
pub(crate) struct Finder<'a> {
    pub(crate) resolver: &'a dyn Resolver,
    pub(crate) own_name: &'a OwnName,
    pub(crate) loopback_only: bool,
    pub(crate) mailer: &'a str,
}

impl Finder<'_> {
    /// The hosts to try for a hop, best first.
    ///
    /// # Errors
    /// The outcome for all recipients, if there is none to try.
    pub(crate) async fn hosts(&self, hop: &NextHop) -> Result<Vec<Host>, Outcome> {
        let NextHop::Several(hops) = hop else {
            return self.hosts_of_one(hop).await;
        };
        let (mut found, mut trouble) = (Vec::new(), None);
        for hop in hops {
            match self.hosts_of_one(hop).await {
                Ok(hosts) => found.extend(hosts),
                Err(outcome) => trouble = Some(outcome),
            }
        }
        match trouble {
            Some(outcome) if found.is_empty() => Err(outcome),
            _ => Ok(found),
        }
    }

    async fn hosts_of_one(&self, hop: &NextHop) -> Result<Vec<Host>, Outcome> {
        let domain = match hop {
            // Lists are not nested.
            NextHop::Several(_) => return Ok(Vec::new()),
            NextHop::Host { name, port } => {
                return Ok(vec![Host {
                    port: *port,
                    ..Host::parse(name)
                }]);
            }
            NextHop::Mx(domain) if domain.is_literal() => {
                return Ok(vec![Host::parse(domain.as_str())]);
            }
            NextHop::Mx(domain) => domain.folded(),
        };
        if !self.may_ask() {
            // Without DNS, the domain is its own host if it is a local name; the addresses decide.
            return Ok(vec![Host::named(&domain, false)]);
        }
        let relay = format!("{domain}.");
        match self.resolver.mx(&domain).await {
            Err(error) => Err(self.trouble(&error, &relay)),
            Ok(MxAnswer::Null) => {
                let mut outcome = Outcome::new(
                    Delivery::Failed,
                    Status::new(5, 1, 10),
                    self.mailer,
                    "Service unavailable",
                );
                outcome.relay = relay;
                Err(outcome)
            }
            Ok(MxAnswer::Absent) if (self.own_name)(&domain) => Err(self.circle(&domain, &domain)),
            Ok(MxAnswer::Absent) => Ok(vec![Host::named(&domain, false)]),
            Ok(MxAnswer::Hosts(records)) => self.exchanges(&domain, records),
        }
    }

    /// The addresses of a host.
    ///
    /// # Errors
    /// The outcome, if there is none to be contacted.
    pub(crate) async fn addresses(&self, host: &Host) -> Result<Vec<IpAddr>, Outcome> {
        let mut found = match host.literal {
            Some(address) => vec![address],
            None if self.may_ask() => match self.resolver.addresses(&host.name).await {
                Ok(found) => found,
                Err(error) => return Err(self.trouble(&error, &host.shown)),
            },
            None => self.resolver.local_addresses(&host.name),
        };
        if found.is_empty() && self.may_ask() {
            return Err(self.unknown(host));
        }
        if self.loopback_only {
            found.retain(IpAddr::is_loopback);
        }
        if found.is_empty() {
            let mut outcome = Outcome::new(
                Delivery::Deferred,
                Status::new(4, 4, 4),
                self.mailer,
                LOOPBACK_ONLY,
            );
            outcome.relay.clone_from(&host.shown);
            return Err(outcome);
        }
        found.truncate(ADDRESSES_MAX);
        Ok(found)
    }

    fn may_ask(&self) -> bool {
        !self.loopback_only || self.resolver.is_loopback_only()
    }

    fn exchanges(&self, domain: &str, records: Vec<MxHost>) -> Result<Vec<Host>, Outcome> {
        let own = records
            .iter()
            .filter(|mx| (self.own_name)(&mx.host))
            .min_by_key(|mx| mx.preference)
            .cloned();
        let limit = own
            .as_ref()
            .map_or(u32::from(u16::MAX) + 1, |mx| u32::from(mx.preference));
        let mut ordered: Vec<(u16, u64, MxHost)> = records
            .into_iter()
            .filter(|mx| u32::from(mx.preference) < limit)
            .map(|mx| (mx.preference, random(), mx))
            .collect();
        ordered.sort_by_key(|(preference, random, _)| (*preference, *random));
        let mut hosts: Vec<Host> = Vec::new();
        for (_, _, mx) in ordered {
            let host = Host::named(&mx.host, true);
            if !hosts.contains(&host) && hosts.len() < HOSTS_MAX {
                hosts.push(host);
            }
        }
        match own {
            Some(own) if hosts.is_empty() => Err(self.circle(domain, &own.host)),
            _ => Ok(hosts),
        }
    }

    fn circle(&self, domain: &str, own: &str) -> Outcome {
        let status = Status::new(5, 3, 5);
        let mut outcome = Outcome::new(
            Delivery::Failed,
            status,
            self.mailer,
            "Local configuration error",
        );
        outcome.reply = Some(format!(
            "554 {status} MX list for {domain}. points back to {own}"
        ));
        outcome.relay = format!("{domain}.");
        outcome
    }

    fn unknown(&self, host: &Host) -> Outcome {
        let shown = if host.is_exchange {
            &host.shown
        } else {
            &host.name
        };
        let mut outcome = Outcome::new(
            Delivery::Failed,
            Status::new(5, 1, 2),
            self.mailer,
            format!("Host unknown (Name server: {shown}: host not found)"),
        );
        outcome.relay.clone_from(shown);
        outcome
    }

    fn trouble(&self, error: &LookupError, relay: &str) -> Outcome {
        let mut outcome = Outcome::new(
            Delivery::Deferred,
            Status::new(4, 4, 3),
            self.mailer,
            format!(
                "Deferred: Name server: {}.: host name lookup failure",
                error.name
            ),
        );
        relay.clone_into(&mut outcome.relay);
        outcome
    }
}

/// A number nobody can foresee; from the standard library's seeds for hash tables.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Domain;
    use crate::dns::TableResolver;
    use std::collections::HashSet;
    use std::sync::Arc;

    fn own() -> OwnName {
        Arc::new(|name| name == "gold.example.test")
    }

    async fn hosts(resolver: &TableResolver, domain: &str) -> Result<Vec<String>, Outcome> {
        let own = own();
        let finder = Finder {
            resolver,
            own_name: &own,
            loopback_only: false,
            mailer: "esmtp",
        };
        let hop = NextHop::Mx(Domain::parse(domain).unwrap());
        let found = finder.hosts(&hop).await?;
        Ok(found.into_iter().map(|host| host.shown).collect())
    }

    #[tokio::test]
    async fn hosts_come_by_preference_and_equals_in_any_order() {
        let resolver = TableResolver::new().with_mx(
            "a.test",
            &[
                (20, "c.test"),
                (10, "b1.test"),
                (10, "b2.test"),
                (10, "b1.test"),
            ],
        );
        let mut firsts = HashSet::new();
        for _ in 0..200 {
            let found = hosts(&resolver, "A.test").await.unwrap();
            assert_eq!(found.len(), 3);
            assert_eq!(found[2], "c.test.");
            firsts.insert(found[0].clone());
        }
        assert_eq!(firsts.len(), 2);
    }

    #[tokio::test]
    async fn this_host_and_worse_ones_are_left_out() {
        let resolver = TableResolver::new()
            .with_mx(
                "a.test",
                &[(5, "b.test"), (10, "gold.example.test"), (10, "c.test")],
            )
            .with_mx("loop.test", &[(10, "Gold.Example.Test."), (20, "c.test")]);
        assert_eq!(hosts(&resolver, "a.test").await.unwrap(), ["b.test."]);
        let outcome = hosts(&resolver, "loop.test").await.unwrap_err();
        assert_eq!(outcome.text, "Local configuration error");
        assert_eq!(outcome.status, Status::new(5, 3, 5));
        assert_eq!(
            outcome.reply.as_deref(),
            Some("554 5.3.5 MX list for loop.test. points back to gold.example.test")
        );
        assert!(hosts(&resolver, "gold.example.test").await.is_err());
    }

    #[tokio::test]
    async fn absence_null_and_trouble_are_told_apart() {
        let resolver = TableResolver::new()
            .with_mx("nullmx.test", &[(0, "")])
            .with_failure("servfail.test", "SERVFAIL");
        assert_eq!(hosts(&resolver, "none.test").await.unwrap(), ["none.test."]);
        let outcome = hosts(&resolver, "nullmx.test").await.unwrap_err();
        assert_eq!(
            (outcome.result, outcome.status),
            (Delivery::Failed, Status::new(5, 1, 10))
        );
        let outcome = hosts(&resolver, "servfail.test").await.unwrap_err();
        assert_eq!(
            (outcome.result, outcome.status, outcome.text.as_str()),
            (
                Delivery::Deferred,
                Status::new(4, 4, 3),
                "Deferred: Name server: servfail.test.: host name lookup failure"
            )
        );
    }

    #[test]
    fn literals_are_taken_in_every_form() {
        for (text, address) in [
            ("[127.0.0.1]", "127.0.0.1"),
            ("[IPv6:::1]", "::1"),
            ("[ipv6:::1]", "::1"),
            ("127.0.0.1", "127.0.0.1"),
        ] {
            assert_eq!(Host::parse(text).literal, address.parse().ok(), "{text}");
        }
        assert_eq!(
            Host::parse("[Mx.Ok.test]"),
            Host::named("mx.ok.test", false)
        );
        assert_eq!(Host::parse("[127.0.0.1]").shown, "[127.0.0.1]");
    }
}
