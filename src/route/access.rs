//! Who may send to whom: the access map, and relaying.
//!
//! This host and the clients on its own loopback addresses 127.0.0.1 and ::1 may relay, and who the access map or
//! class R allows; everybody else reaches this host's addresses alone. Values of the map that are not built in
//! (DISCARD, QUARANTINE:) are answered 451 and told in the log: mail is neither let through nor refused for good by a
//! word that has no effect. Lookup trouble is 451, too (I9).
//!
//! Blocks: as maps and the user database do. Limits: [`KEYS_MAX`] keys for one question.
//! Source: MAPS.md section 11, cf/README "access_db", RFC 5321 3.6.

#![deny(clippy::indexing_slicing)]

use std::net::IpAddr;

use super::resolve::{Place, UNKNOWN_TEXT};
use super::tables::Placed;
use super::{Client, RouteError, Router};
use crate::address::{Address, Domain, ReversePath};
use crate::status::{Reply, Status};

/// Most keys looked up for one question: labels of a domain, pieces of an address.
const KEYS_MAX: usize = 128;

/// What an entry of the access map says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Access {
    Ok,
    Relay,
    Reject,
    /// No opinion, and no further search.
    Skip,
    /// Code, enhanced code and text of the answer.
    Error(u16, Status, String),
    /// Known to Sendmail and not built in.
    NotBuilt(String),
}

/// How keys for a name are tried.
#[derive(Clone, Copy)]
enum Tag {
    Connect,
    From,
    To,
}

impl Tag {
    const fn text(self) -> &'static str {
        match self {
            Self::Connect => "Connect:",
            Self::From => "From:",
            Self::To => "To:",
        }
    }
}

impl Router {
    /// Whether a client may talk to us; asked once at the start of a connection.
    ///
    /// # Errors
    /// The answer to every command but QUIT and the like.
    pub fn check_connect(&self, client: &Client) -> Result<(), Reply> {
        match self.client_access(client)? {
            Some(Access::Reject) => Err(denied("Access denied")),
            Some(Access::Error(code, status, text)) => Err(Reply::new(code, status, text)),
            Some(Access::NotBuilt(value)) => Err(self.not_built("Connect:", &value)),
            Some(Access::Ok | Access::Relay | Access::Skip) | None => Ok(()),
        }
    }

    /// Whether this sender may send from this client; asked at MAIL.
    ///
    /// # Errors
    /// The answer to MAIL.
    pub fn check_sender(&self, sender: &ReversePath, client: &Client) -> Result<(), Reply> {
        let Some(address) = sender.address() else {
            return Ok(());
        };
        match self.address_access(Tag::From, address)? {
            Some(Access::Ok | Access::Relay) => return Ok(()),
            Some(Access::Reject) => return Err(denied(&format!("{sender}... Access denied"))),
            Some(Access::Error(code, status, text)) => {
                return Err(about(sender, code, status, &text));
            }
            Some(Access::Skip) => {
                return Err(about(sender, 553, Status::new(5, 3, 0), "SKIP"));
            }
            Some(Access::NotBuilt(value)) => return Err(self.not_built("From:", &value)),
            None => {}
        }
        let needed = |what: &str| {
            let text = format!("{sender}... {what} domain name required for sender address");
            Reply::new(553, Status::new(5, 5, 4), text)
        };
        match address.domain() {
            None => {
                let text = format!("{sender}... Domain name required for sender address {address}");
                Err(Reply::new(553, Status::new(5, 5, 4), text))
            }
            Some(domain)
                if matches!(domain.folded().as_str(), "localhost" | "[127.0.0.1]")
                    && !self.is_own_client(client) =>
            {
                Err(needed("Real"))
            }
            Some(_) => Ok(()),
        }
    }

    /// Whether this client may send to this recipient, and whether a recipient of this host exists; asked at RCPT.
    ///
    /// # Errors
    /// The answer to RCPT.
    pub fn check_recipient(&self, address: &Address, client: &Client) -> Result<(), Reply> {
        let shown = format!("<{address}>");
        let place = self.place(address);
        let access = self.address_access(Tag::To, address)?;
        match access {
            Some(Access::Reject) => {
                let text = "Mailbox disabled for this recipient";
                return Err(about(&shown, 550, Status::new(5, 2, 1), text));
            }
            Some(Access::Error(code, status, text)) => {
                return Err(about(&shown, code, status, &text));
            }
            Some(Access::NotBuilt(value)) => return Err(self.not_built("To:", &value)),
            Some(Access::Ok | Access::Relay | Access::Skip) | None => {}
        }
        // The domain itself decides on relaying, and then the virtusertable on who it is.
        let is_ours = matches!(&place, Place::Here(_))
            || address
                .domain()
                .is_some_and(|domain| self.is_virtual(&domain.folded()));
        let place = match self.placed(address) {
            Ok(Placed::To(place)) => place,
            Ok(Placed::Refused(refusal)) if is_ours => {
                return Err(about(&shown, refusal.code, refusal.status, &refusal.text));
            }
            Ok(Placed::Refused(_)) => place,
            Err(error) => return Err(self.lookup_trouble(&error)),
        };
        let local = match place {
            Place::Here(local) => local,
            Place::Elsewhere(_) if is_ours => return Ok(()),
            Place::Elsewhere(remote) => {
                return if self.is_relayed_domain(&remote)? || self.may_relay(client)? {
                    Ok(())
                } else {
                    Err(denied(&format!("{shown}... Relaying denied")))
                };
            }
        };
        match self.is_known(&local) {
            Ok(true) => Ok(()),
            Ok(false) => Err(about(&shown, 550, Status::NO_USER, UNKNOWN_TEXT)),
            Err(error) => Err(self.lookup_trouble(&error)),
        }
    }

    /// Whether a client may send to other hosts.
    ///
    /// # Errors
    /// 451 if a lookup did not work.
    pub fn may_relay(&self, client: &Client) -> Result<bool, Reply> {
        if self.is_own_client(client) {
            return Ok(true);
        }
        let text = client.address.to_canonical().to_string();
        let is_in_class = client
            .name
            .as_ref()
            .is_some_and(|name| self.relay_domains.contains_domain(&fold(name)))
            || address_prefixes(&text)
                .iter()
                .any(|prefix| self.relay_domains.contains(prefix));
        Ok(is_in_class || matches!(self.client_access(client)?, Some(Access::Relay)))
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
                .and_then(|name| Domain::parse(name).ok())
                .is_some_and(|name| self.is_own_domain(&name))
    }

    /// Whether mail to this address's domain is relayed for anybody.
    fn is_relayed_domain(&self, address: &Address) -> Result<bool, Reply> {
        let Some(domain) = address.domain() else {
            return Ok(false);
        };
        let folded = domain.folded();
        if self.relay_domains.contains_domain(&folded) {
            return Ok(true);
        }
        // An entry for the whole address does not allow relaying, as in Sendmail.
        let access = self.look_up(Tag::To, &domain_keys(&folded))?;
        Ok(access == Some(Access::Relay))
    }

    fn client_access(&self, client: &Client) -> Result<Option<Access>, Reply> {
        let mut keys = client
            .name
            .as_ref()
            .map_or_else(Vec::new, |name| domain_keys(&fold(name)));
        let address = client.address.to_canonical();
        keys.extend(match address {
            IpAddr::V4(_) => address_prefixes(&address.to_string()),
            IpAddr::V6(six) => {
                // Sendmail's form: all eight groups, no leading zeros; the usual short form is taken as well.
                let groups: Vec<String> = six.segments().iter().map(|g| format!("{g:x}")).collect();
                let mut keys = address_prefixes(&groups.join(":"));
                keys.extend(address_prefixes(&six.to_string()));
                keys.into_iter().map(|key| format!("ipv6:{key}")).collect()
            }
        });
        self.look_up(Tag::Connect, &keys)
    }

    fn address_access(&self, tag: Tag, address: &Address) -> Result<Option<Access>, Reply> {
        let local = address.local().to_lowercase();
        let base = local.split_once('+').map(|(user, _)| user.to_owned());
        let domain = address.domain().map(Domain::folded);
        let mut keys = Vec::new();
        for name in [Some(&local), base.as_ref()].into_iter().flatten() {
            if let Some(domain) = &domain {
                keys.push(format!("{name}@{domain}"));
            }
        }
        if let Some(domain) = &domain {
            keys.extend(domain_keys(domain));
        }
        // `user@` means any domain, and none.
        for name in [Some(&local), base.as_ref()].into_iter().flatten() {
            keys.push(format!("{name}@"));
        }
        self.look_up(tag, &keys)
    }

    /// The entry of the first key that has one, each tried with the tag and then bare.
    fn look_up(&self, tag: Tag, keys: &[String]) -> Result<Option<Access>, Reply> {
        let Some(table) = &self.access else {
            return Ok(None);
        };
        let trouble = |error: RouteError| self.lookup_trouble(&error);
        for key in keys.iter().take(KEYS_MAX) {
            for key in [format!("{}{key}", tag.text()), key.clone()] {
                if let Some(value) = table.get(&key).map_err(trouble)? {
                    return Ok(Some(parse_value(&value)));
                }
            }
        }
        Ok(None)
    }

    fn not_built(&self, tag: &str, value: &str) -> Reply {
        (self.notice)(&format!(
            "access map: {tag} value \"{value}\" is not built in; answered with 451"
        ));
        trouble()
    }
}

/// What is answered when the lookup or the setting is at fault.
pub(super) fn trouble() -> Reply {
    Reply::new(
        451,
        Status::new(4, 3, 0),
        "Temporary system failure. Please try again later.",
    )
}

fn denied(text: &str) -> Reply {
    Reply::new(550, Status::new(5, 7, 1), text)
}

/// An answer about an address. With 451 Sendmail leaves the address out.
fn about(shown: &impl ToString, code: u16, status: Status, text: &str) -> Reply {
    if code == 451 {
        return Reply::new(code, status, text);
    }
    Reply::new(code, status, format!("{}... {text}", shown.to_string()))
}

fn fold(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// A domain and those above it: `a.b.test`, `b.test`, `test`. A literal has none above.
fn domain_keys(folded: &str) -> Vec<String> {
    if folded.starts_with('[') {
        return vec![folded.to_owned()];
    }
    let mut keys = Vec::new();
    let mut rest = Some(folded);
    while let Some(name) = rest {
        keys.push(name.to_owned());
        rest = name.split_once('.').map(|(_, above)| above);
    }
    keys
}

/// An address in text and its networks: `127.0.0.1`, `127.0.0`, `127.0`, `127`; IPv6 cut at `::` or `:`.
fn address_prefixes(text: &str) -> Vec<String> {
    let mut keys = vec![text.to_owned()];
    let mut rest = text;
    while let Some(at) = rest.rfind(['.', ':']) {
        rest = rest
            .get(..at)
            .map(|head| head.trim_end_matches(':'))
            .unwrap_or_default();
        if rest.is_empty() {
            break;
        }
        keys.push(rest.to_owned());
    }
    keys
}

/// Reads a value. Anything unknown is the text of a refusal with 553, as in Sendmail.
fn parse_value(value: &str) -> Access {
    let value = value.trim();
    let word = value.to_ascii_uppercase();
    match word.as_str() {
        "OK" => return Access::Ok,
        "RELAY" => return Access::Relay,
        "REJECT" => return Access::Reject,
        "SKIP" => return Access::Skip,
        "DISCARD" => return Access::NotBuilt(value.to_owned()),
        _ if word.starts_with("QUARANTINE") => return Access::NotBuilt(value.to_owned()),
        _ => {}
    }
    let general = Status::new(5, 0, 0);
    let rest = if word.starts_with("ERROR:") {
        value.get("ERROR:".len()..).unwrap_or_default()
    } else {
        value
    };
    // `d.s.n:` before the reply; what is no status code is left out.
    let (status, rest) = match rest.split_once(':') {
        Some((head, rest)) if !head.contains([' ', '"']) => (Status::parse(head), rest),
        _ => (None, rest),
    };
    let rest = rest.trim().trim_matches('"');
    let (head, tail) = rest.split_once(' ').unwrap_or((rest, ""));
    let code = head
        .parse::<u16>()
        .ok()
        .filter(|code| head.len() == 3 && (400..600).contains(code));
    let Some(code) = code else {
        return Access::Error(553, status.unwrap_or(Status::new(5, 3, 0)), rest.to_owned());
    };
    let (status, text) = match (status, tail.split_once(' ')) {
        (None, Some((head, text))) if Status::parse(head).is_some() => (Status::parse(head), text),
        (status, _) => (status, tail),
    };
    let class_of = |code: u16| {
        if code < 500 {
            Status::new(4, 0, 0)
        } else {
            general
        }
    };
    // The two codes must not contradict each other.
    let status = status
        .filter(|status| u16::from(status.class) == code / 100)
        .unwrap_or(class_of(code));
    Access::Error(code, status, text.to_owned())
}
