//! Names of this host that are not delivered here: LUSER_RELAY, MAIL_HUB, LOCAL_RELAY, stickyhost, LOCAL_USER.
//!
//! They are looked at when the aliases have not known a name, as in Sendmail's ruleset 5: a name that nobody has goes
//! to `luser_relay`, any other to `mail_hub`, or else `local_relay`; only `stickyhost` has the hub asked before the
//! aliases. A hub that is this host itself is none, so that one configuration serves the hub, too. What a file or an
//! alias means by `\user` is delivered here. Blocks: as the user database does.
//! Source: cf/README of Sendmail, transcript 51.

#![deny(clippy::indexing_slicing)]

use super::refusal::Refusal;
use super::tables::strip_word;
use super::target::quote_local;
use super::{Route, RouteError, Router};
use crate::address::{Address, Domain};

impl Router {
    /// The route of a name of this host that is no alias; `None` if it is delivered here, or unknown here. The address
    /// is what the name was taken from.
    pub(super) fn sent_on(
        &self,
        local: &str,
        address: &Address,
    ) -> Result<Option<Route>, RouteError> {
        let options = &self.options.sent_on;
        if let Some(value) = &options.luser_relay
            && self.find_user(local)?.is_none()
            && self.alias_or_default(&local.to_lowercase())?.is_none()
        {
            return self.handed_to(value, local, "luser_relay");
        }
        if self.is_local_user(local) || (options.stickyhost && address.domain().is_some()) {
            return Ok(None);
        }
        if let Some(value) = &options.mail_hub
            && let Some(route) = self.handed_to(value, local, "mail_hub")?
        {
            return Ok(Some(route));
        }
        match &options.local_relay {
            Some(value) => self.handed_to(value, local, "local_relay"),
            None => Ok(None),
        }
    }

    /// What `luser_relay` answers for a name of this host that nobody has, if it is an error.
    pub(super) fn refused_here(&self, local: &str) -> Result<Option<Refusal>, RouteError> {
        let value = self.options.sent_on.luser_relay.as_deref();
        let Some(error) = value.and_then(|value| strip_word(value, "error:")) else {
            return Ok(None);
        };
        let is_there = self.find_user(local)?.is_some()
            || self.alias_or_default(&local.to_lowercase())?.is_some();
        Ok((!is_there).then(|| Refusal::of_mailer(error)))
    }

    /// The address at another host that a name of this host has, if it is no alias and leaves.
    pub(super) fn address_away(
        &self,
        local: &str,
        address: &Address,
    ) -> Result<Option<String>, RouteError> {
        let route = match self.stuck(address)? {
            Some(route) => Some(route),
            None if self.alias_or_default(&local.to_lowercase())?.is_some() => None,
            None => self.sent_on(local, address)?,
        };
        Ok(match route {
            Some(Route::Smtp { address, .. }) => Some(address),
            _ => None,
        })
    }

    /// The route of an address of this host that `stickyhost` sends to the hub before aliases are asked.
    pub(super) fn stuck(&self, address: &Address) -> Result<Option<Route>, RouteError> {
        let options = &self.options.sent_on;
        let Some(value) = options.mail_hub.as_ref().filter(|_| options.stickyhost) else {
            return Ok(None);
        };
        let is_meant = address.domain().is_some()
            && self.is_local(address)
            && !self.is_local_user(&address.local_unquoted());
        if !is_meant || self.is_this_host(value) {
            return Ok(None);
        }
        self.by_triple(value, address, "mail_hub").map(Some)
    }

    /// Whether a name of this host leaves it, so that its user's `.forward` is not asked.
    pub(super) fn leaves(&self, local: &str) -> Result<bool, RouteError> {
        let options = &self.options.sent_on;
        if options.mail_hub.is_none() && options.local_relay.is_none() {
            return Ok(false);
        }
        let bare = Address::from_parts(quote_local(local), None);
        Ok(self.sent_on(local, &bare)?.is_some())
    }

    /// `user@HOST` by way of `[MAILER:]HOST`, or what else the value says.
    fn handed_to(
        &self,
        value: &str,
        local: &str,
        table: &str,
    ) -> Result<Option<Route>, RouteError> {
        if self.is_this_host(value) {
            return Ok(None);
        }
        let user = quote_local(local);
        let address = match Domain::parse(host_of(value)) {
            Ok(domain) => Address::from_parts(user, Some(domain)),
            // `local:user` and `error:..` name no host.
            Err(_) => Address::from_parts(user, None),
        };
        self.by_triple(value, &address, table).map(Some)
    }

    fn is_local_user(&self, local: &str) -> bool {
        let user = local.split_once('+').map_or(local, |(user, _)| user);
        self.options
            .sent_on
            .local_user
            .iter()
            .any(|word| word.eq_ignore_ascii_case(user))
    }

    fn is_this_host(&self, value: &str) -> bool {
        let is_word = value.split_once(':').is_some_and(|(mailer, _)| {
            ["local", "error"]
                .iter()
                .any(|word| mailer.eq_ignore_ascii_case(word))
        });
        !is_word && Domain::parse(host_of(value)).is_ok_and(|domain| self.is_own_domain(&domain))
    }
}

/// The first host of `[MAILER:]HOST[:HOST..]`.
fn host_of(value: &str) -> &str {
    let hosts = match value.split_once(':') {
        Some((mailer, hosts)) if !mailer.starts_with('[') => hosts,
        _ => value,
    };
    if hosts.starts_with('[') {
        return hosts
            .split_once(']')
            .and_then(|(inner, _)| hosts.get(..inner.len() + 1))
            .unwrap_or(hosts);
    }
    hosts.split(':').next().unwrap_or(hosts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_of_a_value_is_its_first() {
        for (value, host) in [
            ("hub.test", "hub.test"),
            ("relay:hub.test", "hub.test"),
            ("esmtp:a.test:b.test", "a.test"),
            ("relay:[127.0.0.21]:2525", "[127.0.0.21]"),
            ("[IPv6:::1]", "[IPv6:::1]"),
        ] {
            assert_eq!(host_of(value), host, "{value}");
        }
    }
}
