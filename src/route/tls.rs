//! What the access map asks of connections before mail goes over them: `TLS_Clt:`, `TLS_Srv:`, `TLS_Rcpt:`.
//!
//! There is no TLS: every connection is plain, and what asks for encryption or for a verified certificate is what none
//! can show. So mail that it is asked for neither comes in nor goes out, for now or, with `PERM+`, for good. `Try_TLS:`
//! says of whom TLS is not to be tried, which it never is. A value that asks for nothing, such as `NONE`, is none; one
//! that looks like a mistake is told in the log.
//!
//! Guarantees: a lookup that did not work defers and lets nothing through (I9). Blocks: as the access map does.
//! Limits: as [`access_entry`](super::access_entry). Source: cf/README "STARTTLS", rulesets tls_client, tls_server,
//! tls_rcpt and TLS_connection.

#![deny(clippy::indexing_slicing)]

use std::net::IpAddr;

use super::access::Tag;
use super::access_entry::{Denial, client_address_keys, fold, full_keys, user_keys};
use super::{Client, Router};
use crate::address::{Address, Domain};
use crate::status::{Reply, Status};

/// Values that ask for nothing, and are no mistakes.
const NOTHING: [&str; 4] = ["", "NONE", "NO", "OK"];

/// What an entry asks for that a plain connection lacks.
#[derive(Debug, PartialEq, Eq)]
struct Demand {
    code: u16,
    status: Status,
    lack: Lack,
}

#[derive(Debug, PartialEq, Eq)]
enum Lack {
    /// `VERIFY`: a verified certificate.
    Certificate,
    /// `ENCR:` with these bits.
    Bits(String),
}

impl Demand {
    /// Reads `[PERM+|TEMP+]VERIFY[:BITS]` or `[PERM+|TEMP+]ENCR:BITS`, with or without `+CN:..` and the like, which only
    /// matter once there is a certificate. `None`: it asks for nothing.
    fn parse(value: &str) -> Option<Self> {
        let value = value.trim();
        let (head, rest) = value.split_once('+').unwrap_or((value, ""));
        let (code, class, wanted) = match head.trim().to_ascii_uppercase().as_str() {
            "PERM" => (503, 5, rest),
            "TEMP" => (403, 4, rest),
            _ => (454, 4, value),
        };
        let wanted = wanted.split('+').next().unwrap_or_default().trim();
        let (word, bits) = match wanted.split_once(':') {
            Some((word, bits)) => (word.trim(), Some(bits.trim())),
            None => (wanted, None),
        };
        let lack = match (word.to_ascii_uppercase().as_str(), bits) {
            ("VERIFY", _) => Lack::Certificate,
            ("ENCR", Some(bits)) if bits != "0" => Lack::Bits(bits.to_owned()),
            _ => return None,
        };
        Some(Self {
            code,
            status: Status::new(class, 7, 0),
            lack,
        })
    }

    /// The refusal; `no_certificate` is what is said where a certificate is asked for.
    fn refusal(self, no_certificate: &str) -> Denial {
        let text = match self.lack {
            Lack::Certificate => no_certificate.to_owned(),
            Lack::Bits(bits) => format!("encryption too weak 0 less than {bits}"),
        };
        Denial::new(self.code, self.status, text)
    }
}

/// A server that mail is about to be handed to over a plain connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlainServer {
    /// Its name, or its address in brackets.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// Whether it would speak TLS.
    pub offers_tls: bool,
}

impl PlainServer {
    fn no_certificate(&self) -> &'static str {
        if self.offers_tls {
            "STARTTLS disabled locally"
        } else {
            "other side does not support STARTTLS"
        }
    }
}

impl Router {
    /// Whether the access map lets mail come over a plain connection from a client (`TLS_Clt:`).
    pub(super) fn check_tls_client(&self, client: &Client) -> Result<(), Denial> {
        match self.demand(Tag::TLS_CLT, self.client_keys(client))? {
            Some(demand) => Err(demand.refusal("authentication required")),
            None => Ok(()),
        }
    }

    /// Whether the access map lets mail go over a plain connection to a server (`TLS_Srv:`).
    ///
    /// # Errors
    /// What stands for the server's reply: permanent for `PERM+`, else temporary; 451 if a lookup did not work.
    pub fn check_tls_server(&self, server: &PlainServer) -> Result<(), Reply> {
        let keys = self.domain_keys(&fold(&server.name)).into_iter();
        let keys = keys.chain(client_address_keys(server.address));
        match self.demand(Tag::TLS_SRV, keys) {
            Ok(None) => Ok(()),
            Ok(Some(demand)) => Err(demand.refusal(server.no_certificate()).bare()),
            Err(trouble) => Err(trouble.bare()),
        }
    }

    /// Whether the access map lets mail for a recipient go over a plain connection to a server (`TLS_Rcpt:`).
    ///
    /// # Errors
    /// As [`Router::check_tls_server`].
    pub fn check_tls_recipient(&self, address: &str, server: &PlainServer) -> Result<(), Reply> {
        let Ok(address) = Address::parse(address) else {
            // What is no address meets the server's refusal.
            return Ok(());
        };
        let domain = address.domain().map(Domain::folded);
        let above = domain
            .as_deref()
            .map(|name| self.domain_keys(name))
            .unwrap_or_default();
        let keys = [full_keys(&address), user_keys(&address), above].concat();
        match self.demand(Tag::TLS_RCPT, keys) {
            Ok(None) => Ok(()),
            Ok(Some(demand)) => Err(demand.refusal(server.no_certificate()).bare()),
            Err(trouble) => Err(trouble.bare()),
        }
    }

    /// Whether there is an access map that could ask for anything. Never in a client queue, which hands all to the MTA.
    #[must_use]
    pub const fn has_access(&self) -> bool {
        self.access.is_some() && self.relay_to.is_none()
    }

    /// What the first of these keys asks for, or the tag alone, which stands for all others.
    fn demand(
        &self,
        tag: Tag,
        keys: impl IntoIterator<Item = String>,
    ) -> Result<Option<Demand>, Denial> {
        let keys = keys.into_iter().chain([String::new()]);
        let Some(value) = self.value(tag, keys)? else {
            return Ok(None);
        };
        let demand = Demand::parse(&value);
        let is_nothing = |word: &&str| word.eq_ignore_ascii_case(value.trim());
        if demand.is_none() && !NOTHING.iter().any(is_nothing) {
            (self.notice)(&format!(
                "access map: {} value \"{value}\" asks for nothing that is known",
                tag.text
            ));
        }
        Ok(demand)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_ask_for_what_they_ask_for_in_sendmail() {
        let line = |value: &str| {
            let demand = Demand::parse(value)?;
            Some(demand.refusal("authentication required").bare().to_line())
        };
        for (value, answer) in [
            ("VERIFY", "454 4.7.0 authentication required"),
            ("TEMP+VERIFY:128", "403 4.7.0 authentication required"),
            ("PERM+verify", "503 5.7.0 authentication required"),
            ("PERM+VERIFY:112+CN", "503 5.7.0 authentication required"),
            ("ENCR:112", "454 4.7.0 encryption too weak 0 less than 112"),
            (
                "PERM + ENCR:56+CN:foo",
                "503 5.7.0 encryption too weak 0 less than 56",
            ),
        ] {
            assert_eq!(line(value).as_deref(), Some(answer), "{value}");
        }
        for value in ["", "NONE", "ENCR", "ENCR:0", "VRFY", "PERM+", "PERM+OK"] {
            assert_eq!(line(value), None, "{value}");
        }
    }
}
