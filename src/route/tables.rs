//! virtusertable, mailertable and domaintable: addresses and domains that the operator sends elsewhere.
//!
//! A domaintable gives domains other names before anything else looks at an address. A virtusertable maps addresses of
//! this host's domains, and of those of `virtuser_domain`, to others, again and again until none matches; a mailertable
//! maps domains of other hosts to a mailer and its hosts, also to `local`, whose users and aliases are then looked up.
//! Both may answer with an error.
//! Guarantees: a lookup that did not work is trouble of ours, never "no such user" (I9). Blocks: as the maps do.
//! Limits: [`VIRTUAL_STEPS_MAX`]. Sources: cf/README of Sendmail, MAPS 11, transcript 51.

#![deny(clippy::indexing_slicing)]

use super::refusal::Refusal;
use super::resolve::Place;
use super::target::Target;
use super::{Hop, Route, RouteError, Router};
use crate::address::{Address, Domain};
use crate::status::Status;

/// How often an address is mapped again. Source: Sendmail's MAXRULERECURSION.
const VIRTUAL_STEPS_MAX: usize = 50;

/// Where an address leads once tables were asked.
pub(super) enum Placed {
    /// A mailbox name of this host, another host's address.
    To(Place),
    Refused(Refusal),
}

impl Router {
    /// Where an address leads, virtusertable asked.
    pub(super) fn placed(&self, address: &Address) -> Result<Placed, RouteError> {
        let mut address = address.clone();
        for _ in 0..VIRTUAL_STEPS_MAX {
            address = self.canonical(&address)?;
            if let Some(refusal) = self.redirected(&address) {
                return Ok(Placed::Refused(refusal));
            }
            let place = self.place(&address);
            let Some(value) = self.virtual_value(&address)? else {
                return self.placed_by_domain(place);
            };
            if let Some(error) = strip_word(&value, "error:") {
                return Ok(Placed::Refused(Refusal::of_virtual_user(error)));
            }
            match Target::parse(&value) {
                // A name without a domain is a mailbox or an alias of this host.
                Target::Address(next) if next.domain().is_none() => {
                    return Ok(Placed::To(Place::Here(next.local_unquoted())));
                }
                Target::Address(next) => address = next,
                _ => {
                    return Err(RouteError::Lookup {
                        table: "virtusertable".to_owned(),
                        detail: format!("{value} for {address} is no address"),
                    });
                }
            }
        }
        Ok(Placed::Refused(Refusal::new(
            554,
            Status::new(5, 0, 0),
            format!("virtusertable: excessive recursion (max {VIRTUAL_STEPS_MAX})"),
        )))
    }

    /// The same once the mailertable is asked for another host's domain.
    fn placed_by_domain(&self, place: Place) -> Result<Placed, RouteError> {
        let Place::Elsewhere(address) = &place else {
            return Ok(Placed::To(place));
        };
        let Some(value) = self.mailertable_value(address)? else {
            return Ok(Placed::To(place));
        };
        if let Some(error) = strip_word(&value, "error:") {
            return Ok(Placed::Refused(Refusal::of_mailer(error)));
        }
        Ok(Placed::To(match local_user(&value, address) {
            Some(user) => Place::Here(user),
            None => place,
        }))
    }

    /// The user of this host that the mailertable gives another host's address to.
    pub(super) fn user_by_domain(&self, address: &Address) -> Result<Option<String>, RouteError> {
        let value = self.mailertable_value(address)?;
        Ok(value.and_then(|value| local_user(&value, address)))
    }

    /// An address with the domain that the domaintable has for its own; `localhost` is this host by its full name.
    pub(super) fn canonical(&self, address: &Address) -> Result<Address, RouteError> {
        let is_localhost = |domain: &Domain| domain.as_str().eq_ignore_ascii_case("localhost");
        if address.domain().is_some_and(is_localhost)
            && let Ok(own) = Domain::parse(&self.host_name)
        {
            return Ok(address.with_domain(own));
        }
        let (Some(table), Some(domain)) = (&self.tables.domains, address.domain()) else {
            return Ok(address.clone());
        };
        let Some(value) = table.get(&domain.folded())? else {
            return Ok(address.clone());
        };
        match Domain::parse(value.trim()) {
            Ok(domain) => Ok(address.with_domain(domain)),
            Err(_) => Err(RouteError::Lookup {
                table: "domaintable".to_owned(),
                detail: format!("{value} for {domain} is no domain"),
            }),
        }
    }

    /// The answer for an address at `DOMAIN.REDIRECT`.
    pub(super) fn redirected(&self, address: &Address) -> Option<Refusal> {
        let folded = address.domain()?.folded();
        let now_at = folded.strip_suffix(".redirect")?;
        self.options.redirect.then(|| {
            let text = format!("User has moved; please try <{}@{now_at}>", address.local());
            Refusal::new(551, Status::NO_USER, text)
        })
    }

    /// What the virtusertable says of an address of a domain it may speak for, its `%1` to `%3` filled in.
    fn virtual_value(&self, address: &Address) -> Result<Option<String>, RouteError> {
        let (Some(table), Some(domain)) = (&self.tables.virtual_users, address.domain()) else {
            return Ok(None);
        };
        let folded = domain.folded();
        if !self.is_virtual(&folded) && !self.is_local(address) {
            return Ok(None);
        }
        let local = address.local_unquoted();
        let (user, detail) = match local.split_once('+') {
            Some((user, detail)) if !user.is_empty() => (user.to_owned(), Some(detail)),
            _ => (local.clone(), None),
        };
        let mut keys = vec![format!("{local}@{folded}")];
        if let Some(detail) = detail {
            if !detail.is_empty() {
                keys.push(format!("{user}++@{folded}"));
            }
            keys.push(format!("{user}+*@{folded}"));
            keys.push(format!("{user}@{folded}"));
            if !detail.is_empty() {
                keys.push(format!("++@{folded}"));
            }
            keys.push(format!("+*@{folded}"));
        }
        keys.push(format!("@{folded}"));
        for key in keys {
            if let Some(value) = table.get(&key)? {
                let detail = detail.unwrap_or_default();
                let with_plus = match detail {
                    "" => String::new(),
                    detail => format!("+{detail}"),
                };
                return Ok(Some(filled(&value, &[&user, detail, &with_plus])));
            }
        }
        Ok(None)
    }

    /// Whether a domain is the virtusertable's alone: of `virtuser_domain` and its file.
    pub(super) fn is_virtual(&self, folded: &str) -> bool {
        if self.options.virtuser_entire_domain {
            self.virtual_domains.contains_domain(folded)
        } else {
            self.virtual_domains.contains(folded)
        }
    }

    /// What the mailertable says of another host's address. `None`: nothing.
    pub(super) fn by_mailertable(&self, address: &Address) -> Result<Option<Route>, RouteError> {
        let value = self.mailertable_value(address)?;
        value
            .map(|value| self.by_triple(&value, address, "mailertable"))
            .transpose()
    }

    /// The mailertable's value for a domain, its `%1` filled in with what a key for a larger domain left over.
    fn mailertable_value(&self, address: &Address) -> Result<Option<String>, RouteError> {
        let (Some(table), Some(domain)) = (&self.tables.mailers, address.domain()) else {
            return Ok(None);
        };
        let folded = domain.folded();
        let mut found = table.get(&folded)?.map(|value| (value, String::new()));
        let mut at = 0;
        while found.is_none() {
            let Some(dot) = folded.get(at..).and_then(|rest| rest.find('.')) else {
                break;
            };
            at += dot;
            let (cut, suffix) = folded.split_at(at);
            found = table.get(suffix)?.map(|value| (value, cut.to_owned()));
            at += 1;
        }
        if found.is_none() {
            found = table.get(".")?.map(|value| (value, folded.clone()));
        }
        let Some((value, cut)) = found else {
            return Ok(None);
        };
        Ok(Some(filled(&value, &[&cut]).trim().to_owned()))
    }

    /// The route that `MAILER:HOST` means for an address; a host alone is the mailer relay's.
    pub(super) fn by_triple(
        &self,
        value: &str,
        address: &Address,
        table: &str,
    ) -> Result<Route, RouteError> {
        let value = value.trim();
        if let Some(error) = strip_word(value, "error:") {
            return Ok(Refusal::of_mailer(error).into_route());
        }
        let trouble = |detail: String| RouteError::Lookup {
            table: table.to_owned(),
            detail,
        };
        let (mailer, host) = match value.split_once(':') {
            Some((mailer, host)) if !value.starts_with('[') => (mailer.trim(), host.trim()),
            _ => ("relay", value),
        };
        Ok(match mailer {
            "local" => {
                let user = local_user(value, address);
                self.mailbox_route(&user.unwrap_or_else(|| address.local_unquoted()))?
            }
            name @ ("esmtp" | "smtp" | "smtp8" | "dsmtp" | "relay") => Route::Smtp {
                is_relay: name == "relay",
                hop: hops(host)
                    .ok_or_else(|| trouble(format!("{host} for {address} is no host")))?,
                address: address.to_string(),
            },
            name if name == "discard" || self.options.mailers.iter().any(|m| m == name) => {
                Route::Mailer {
                    mailer: name.to_owned(),
                    host: host.to_owned(),
                    user: address.to_string(),
                }
            }
            name => return Err(trouble(format!("unknown mailer {name} for {address}"))),
        })
    }
}

/// The user that `local:USER` means for an address; `local:` alone keeps its own.
fn local_user(value: &str, address: &Address) -> Option<String> {
    let user = strip_word(value.trim(), "local:")?.trim();
    Some(match user.split('@').next() {
        Some("") | None => address.local_unquoted(),
        Some(user) => user.to_owned(),
    })
}

/// Hosts separated by colons, in the order in which they are tried; a number is the port of the one before.
fn hops(text: &str) -> Option<Hop> {
    let mut hops: Vec<Hop> = Vec::new();
    for part in pieces(text) {
        if let (Ok(number), Some(last)) = (part.parse::<u16>(), hops.last_mut()) {
            let name = match last {
                Hop::Mx(domain) => domain.as_str().to_owned(),
                Hop::Host { name, .. } => name.clone(),
                Hop::Several(_) => return None,
            };
            *last = Hop::Host {
                name,
                port: Some(number),
            };
            continue;
        }
        hops.push(
            match part.strip_prefix('[').and_then(|p| p.strip_suffix(']')) {
                Some(inner) => {
                    let is_address = inner.parse::<std::net::IpAddr>().is_ok()
                        || inner.to_ascii_lowercase().starts_with("ipv6:");
                    Hop::Host {
                        name: if is_address {
                            part.to_owned()
                        } else {
                            inner.to_owned()
                        },
                        port: None,
                    }
                }
                None => Hop::Mx(Domain::parse(part).ok()?),
            },
        );
    }
    match hops.len() {
        0 => None,
        1 => hops.pop(),
        _ => Some(Hop::Several(hops)),
    }
}

/// Pieces between colons that are not in brackets.
fn pieces(text: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    text.split(|c| {
        match c {
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ':' && depth == 0
    })
    .map(str::trim)
    .filter(|piece| !piece.is_empty())
    .collect()
}

/// What follows a word, whatever its case.
pub(super) fn strip_word<'t>(text: &'t str, word: &str) -> Option<&'t str> {
    let head = text.get(..word.len())?;
    head.eq_ignore_ascii_case(word)
        .then(|| text.get(word.len()..).unwrap_or_default())
}

/// A value with `%1` and so on replaced; `%%` is a percent sign.
pub(super) fn filled(value: &str, arguments: &[&str]) -> String {
    let mut out = String::with_capacity(value.len() + 16);
    let mut rest = value.chars().peekable();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match rest.peek().copied() {
            Some('%') => {
                rest.next();
                out.push('%');
            }
            Some(digit) if digit.is_ascii_digit() => {
                rest.next();
                let at = digit
                    .to_digit(10)
                    .and_then(|d| usize::try_from(d).ok())
                    .unwrap_or(0);
                out.push_str(
                    at.checked_sub(1)
                        .and_then(|at| arguments.get(at))
                        .unwrap_or(&""),
                );
            }
            _ => out.push('%'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_filled_in() {
        assert_eq!(filled("%1+%2%3@x%%y%", &["u", "d", "+d"]), "u+d+d@x%y%");
        assert_eq!(filled("%4.%0", &["u"]), ".");
    }

    #[test]
    fn hosts_come_in_lists_with_ports() {
        let host = |name: &str, port| Hop::Host {
            name: name.into(),
            port,
        };
        assert_eq!(hops("[127.0.0.21]"), Some(host("[127.0.0.21]", None)));
        assert_eq!(
            hops("[127.0.0.21]:2525"),
            Some(host("[127.0.0.21]", Some(2525)))
        );
        assert_eq!(hops("[IPv6:::1]"), Some(host("[IPv6:::1]", None)));
        assert_eq!(hops("[mx.test]"), Some(host("mx.test", None)));
        let mx = |name: &str| Hop::Mx(Domain::parse(name).unwrap());
        assert_eq!(
            hops("mx.dead.test:mx.ok.test"),
            Some(Hop::Several(vec![mx("mx.dead.test"), mx("mx.ok.test")]))
        );
        assert_eq!(hops(""), None);
    }
}
