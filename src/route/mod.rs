//! Routing policy (L2): who may send, who exists, and where each recipient goes.
//!
//! [`Router`] answers the SMTP server's questions (may this client, sender, recipient?), the queue's (what does this
//! recipient expand to, and by which route does it leave?) and those of people (VRFY, EXPN, `-bv`). It is made once
//! and shared as an `Arc`; files and maps it reads are looked at again when they change, without a restart.
//!
//! Guarantees: a lookup that did not work is answered temporarily, never as "no such user" and never as consent (I9).
//! Expansion is bounded in depth and in count, suppresses duplicates over the whole message, and breaks loops.
//! Touches: the class files and maps named in [`RouteOptions`](crate::config::RouteOptions), and the user database;
//! never the spool, the network or a mailer. Blocks where a method says so.
//!
//! Sources: sendmail(8), aliases(5), MAPS.md section 11 for the keys that are tried, RFC 5321 3.4 and 4.5.1.

use std::net::IpAddr;

use crate::address::Domain;
use crate::envelope::Recipient;
use crate::status::{Reply, Status};

/// An SMTP client, as access rules see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Its address.
    pub address: IpAddr,
    /// Its name, if looking up its address and then that name agreed.
    pub name: Option<String>,
    /// What HELO or EHLO said; empty before it.
    pub helo: String,
}

/// Where mail for another host is handed to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Hop {
    /// The domain's MX hosts, or the domain itself if it has none (RFC 5321 5.1).
    Mx(Domain),
    /// This host and no other, whatever MX records say.
    Host {
        /// A name, or an address literal such as `[127.0.0.1]` or `[IPv6:::1]`.
        name: String,
        /// The port, if not 25.
        port: Option<u16>,
    },
}

/// What is to be done with a recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// The mailbox of a user of this host.
    Local {
        /// Login name.
        user: String,
        /// What stood after `+` in the address, if anything did.
        detail: Option<String>,
    },
    /// Another host.
    Smtp {
        /// Whether it goes to a smart host (mailer `relay`) instead of the recipient's own domain (mailer `esmtp`).
        is_relay: bool,
        /// Where to.
        hop: Hop,
        /// The address for the wire.
        address: String,
    },
    /// Other recipients in its place. The list is complete: nested aliases are followed to their ends.
    Expand {
        /// The ends, in the order in which they are to be tried; none if all are recipients already.
        children: Vec<Recipient>,
        /// What verbose listings say: `aliased to alice,bob`.
        shown: String,
    },
    /// It can't be delivered, now or later.
    Failed {
        /// Class 5.
        status: Status,
        /// Such as `User unknown`.
        text: String,
    },
    /// A lookup did not work, or what it asks for is not built: try again later.
    Deferred {
        /// Class 4.
        status: Status,
        /// The reason, for log and mailq.
        text: String,
    },
    /// The host's settings keep it in the queue: a sandbox contacts nobody. Tried again like a deferral.
    Hold {
        /// The reason, for log and mailq.
        reason: String,
    },
}

/// An address that VRFY found good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The address in full, without angle brackets: `alice@host.example.test`.
    pub address: String,
    /// Whether it belongs to another host, so that nothing is known about it: 252 instead of 250.
    pub is_remote: bool,
}

impl Verified {
    /// The answer to VRFY.
    #[must_use]
    pub fn reply(&self) -> Reply {
        let code = if self.is_remote { 252 } else { 250 };
        Reply::new(code, Status::RECIPIENT_OK, format!("<{}>", self.address))
    }
}
