//! What others see instead of names of this host: masquerading, the genericstable, domains of the domaintable.
//!
//! Addresses are rewritten while a message is handed over, never in the spool: those of senders in headers, and where
//! the operator says so envelope senders and recipients in headers. The genericstable comes first; an address that it
//! gives in full is not masqueraded again. Guarantees: a lookup that did not work is an error, and the message waits
//! (I9). Blocks: as the maps and class files do.
//! Source: cf/README of Sendmail, "Masquerading and relaying"; rulesets MasqHdr, MasqEnv, HdrFromL; transcript 51.

#![deny(clippy::indexing_slicing)]

use super::class::{ClassReader, WordClass};
use super::tables::filled;
use super::target::quote_local;
use super::{RouteError, Router};
use crate::address::{Address, Domain, ReversePath};
use crate::config::MasqueradeOptions;
use crate::config::access::AddedDomain;

/// The classes that masquerading asks.
pub(super) struct MasqueradeClasses {
    /// `M`
    domains: WordClass,
    /// `N`
    exceptions: WordClass,
    /// `E`
    exposed_users: WordClass,
    /// `G`
    generics_domains: WordClass,
}

impl MasqueradeClasses {
    pub(super) fn open(
        options: &MasqueradeOptions,
        reader: &ClassReader,
    ) -> Result<Self, RouteError> {
        let open = |class| WordClass::open(class, reader);
        Ok(Self {
            domains: open(&options.domains)?,
            exceptions: open(&options.exceptions)?,
            exposed_users: open(&options.exposed_users)?,
            generics_domains: open(&options.generics_domains)?,
        })
    }
}

/// Who takes a message over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handover {
    /// A user or a program of this host.
    Here,
    /// Another host.
    Away,
}

/// What a field of a header says of its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Sender,
    Recipient,
}

impl Router {
    /// Whether anything may be rewritten in what is handed over so: for other hosts names get this host's domain at
    /// least. Never in a client queue, whose MTA does it.
    #[must_use]
    pub fn is_rewriting(&self, to: Handover) -> bool {
        let options = &self.options.masquerade;
        self.relay_to.is_none()
            && (to == Handover::Away
                || options.masquerade_as.is_some()
                || options.always_add_domain != AddedDomain::None
                || self.tables.generics.is_some()
                || self.tables.domains.is_some())
    }

    /// The envelope sender that a message is handed over with. Blocks: as maps do.
    ///
    /// # Errors
    /// [`RouteError::Lookup`], temporary.
    pub fn envelope_sender(
        &self,
        sender: &ReversePath,
        to: Handover,
    ) -> Result<ReversePath, RouteError> {
        let ReversePath::Mailbox(address) = sender else {
            return Ok(sender.clone());
        };
        if !self.is_rewriting(to) {
            return Ok(sender.clone());
        }
        let scope = &self.options.masquerade.scope;
        let is_kept = to == Handover::Here && scope.local_no_masquerade;
        let is_masqueraded = scope.masquerade_envelope && !is_kept;
        let shown = self.shown(address, is_masqueraded, to)?;
        Ok(ReversePath::Mailbox(shown))
    }

    /// An address of a header field as it is handed over.
    pub(super) fn header_address(
        &self,
        address: &Address,
        side: Side,
        to: Handover,
    ) -> Result<Address, RouteError> {
        let scope = &self.options.masquerade.scope;
        let is_kept = to == Handover::Here && scope.local_no_masquerade;
        let is_masqueraded = !is_kept && (side == Side::Sender || scope.allmasquerade);
        self.shown(address, is_masqueraded, to)
    }

    /// An address as others see it. On this host a name without a domain stays one, unless `always_add_domain` has a
    /// domain for it.
    fn shown(
        &self,
        address: &Address,
        is_masqueraded: bool,
        to: Handover,
    ) -> Result<Address, RouteError> {
        let mut address = self.canonical(address)?;
        if address.domain().is_none() && to == Handover::Here {
            match &self.options.masquerade.always_add_domain {
                AddedDomain::None => return Ok(address),
                AddedDomain::Own => {}
                AddedDomain::Other(domain) => address = address.with_domain(domain.clone()),
            }
        }
        if is_masqueraded {
            return self.masqueraded(address);
        }
        Ok(match address.domain() {
            Some(_) => address,
            None => self.in_own_domain(&address),
        })
    }

    /// Sendmail's ruleset MasqHdr.
    fn masqueraded(&self, address: Address) -> Result<Address, RouteError> {
        let mut address = address;
        if let Some(value) = self.generic(&address)? {
            let found = Address::parse(&value).map_err(|_| RouteError::Lookup {
                table: "genericstable".to_owned(),
                detail: format!("{value} for {address} is no address"),
            })?;
            if found.domain().is_some() {
                return self.canonical(&found);
            }
            address = found;
        }
        let options = &self.options.masquerade;
        let classes = &self.masquerade;
        let folded = address.domain().map(Domain::folded);
        if let Some(folded) = &folded
            && classes.exceptions.contains_domain(folded)
        {
            return Ok(address);
        }
        let shown = options.masquerade_as.as_ref();
        let Some(shown) = shown.and_then(|name| Domain::parse(name).ok()) else {
            return Ok(match folded {
                Some(_) => address,
                None => self.in_own_domain(&address),
            });
        };
        let is_in_class = |folded: &str| {
            if options.scope.masquerade_entire_domain {
                classes.domains.contains_domain(folded)
            } else {
                classes.domains.contains(folded)
            }
        };
        let is_meant = match (&folded, address.domain()) {
            (Some(folded), Some(domain)) => {
                is_in_class(folded)
                    || (!options.scope.limited_masquerade && self.is_own_domain(domain))
            }
            _ => true,
        };
        let user = address.local_unquoted().to_lowercase();
        Ok(if !is_meant {
            address
        } else if classes.exposed_users.contains(&user) {
            match folded {
                Some(_) => address,
                None => self.in_own_domain(&address),
            }
        } else {
            address.with_domain(shown)
        })
    }

    /// What the genericstable says of an address it is asked for.
    fn generic(&self, address: &Address) -> Result<Option<String>, RouteError> {
        let Some(table) = &self.tables.generics else {
            return Ok(None);
        };
        let host = match address.domain() {
            None => self.host_name.to_ascii_lowercase(),
            Some(domain) => {
                let folded = domain.folded();
                let class = &self.masquerade.generics_domains;
                let is_meant = if self.options.masquerade.scope.generics_entire_domain {
                    class.contains_domain(&folded)
                } else {
                    class.contains(&folded)
                };
                if !is_meant {
                    return Ok(None);
                }
                folded
            }
        };
        let name = address.local_unquoted();
        let (user, detail) = match name.split_once('+') {
            Some((user, detail)) if !user.is_empty() => (user, Some(detail)),
            _ => (name.as_str(), None),
        };
        let of_detail = detail.unwrap_or_default();
        let mut keys = vec![(format!("{name}@{host}"), of_detail)];
        if detail.is_some() {
            keys.push((format!("{user}+*@{host}"), of_detail));
            keys.push((format!("{user}@{host}"), of_detail));
        }
        keys.push((format!("@{host}"), name.as_str()));
        keys.push((name.clone(), of_detail));
        if detail.is_some() {
            keys.push((format!("{user}+*"), of_detail));
            keys.push((user.to_owned(), of_detail));
        }
        for (key, argument) in keys {
            if let Some(value) = table.get(&key)? {
                return Ok(Some(filled(value.trim(), &[argument])));
            }
        }
        Ok(None)
    }

    fn in_own_domain(&self, address: &Address) -> Address {
        match Domain::parse(&self.host_name) {
            Ok(domain) => address.with_domain(domain),
            Err(_) => Address::from_parts(quote_local(&address.local_unquoted()), None),
        }
    }
}
