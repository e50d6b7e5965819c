//! One recipient to its [`Route`].
//!
//! Here the order of decisions is fixed: percent and bang addresses of ours are unfolded, then the domain decides
//! between this host and others; on this host aliases come first ([`super::expand`]), then users, then `user+detail`
//! as `user`. Before all that the virtusertable is asked, and for other hosts the mailertable ([`super::tables`]).
//!
//! A recipient that is the end of an expansion (it has a parent) is never looked up as an alias again: what was
//! expanded and journaled stays as it is, whatever happens to the alias file meanwhile.
//!
//! Programs and files are no recipients of senders, only of aliases, lists and `.forward`s; those of a user whose shell is
//! not one of shells(5) are refused. Blocks: as the tables and the user database do.

#![deny(clippy::indexing_slicing)]

use std::net::IpAddr;

use super::expand::unopened;
use super::shells;
use super::table::first_of;
use super::tables::Placed;
use super::target::{Target, quote_local};
use super::{Hop, RelayTo, Route, RouteError, Router, Taken, bracketed};
use crate::address::{Address, Domain, ReversePath};
use crate::config::Remote;
use crate::config::endpoint::SMTP_PORT;
use crate::envelope::{ControllingUser, Recipient};
use crate::status::Status;
use crate::users::User;

/// How often `user%host@us` and `host!user` are unfolded.
const UNFOLDINGS_MAX: usize = 10;
/// 4.3.0, other mail system status: trouble of ours.
const TROUBLE: Status = Status::new(4, 3, 0);
/// 4.3.5, system incorrectly configured: what an operator has to change.
const NO_ROOT: Status = Status::new(4, 3, 5);
/// 5.7.1, delivery not authorized.
pub(super) const NOT_AUTHORIZED: Status = Status::new(5, 7, 1);
/// 5.4.6, routing loop detected.
pub(super) const LOOP: Status = Status::new(5, 4, 6);
/// What log and reports say of a loop.
pub(super) const LOOP_TEXT: &str = "aliasing/forwarding loop broken";
/// Sendmail's text for a recipient that does not exist.
pub(super) const UNKNOWN_TEXT: &str = "User unknown";

/// Why nobody may name this as a recipient, if so: only aliases, lists and `.forward`s lead there.
pub(super) fn not_directly(target: &Target) -> Option<String> {
    let kind = match target {
        Target::Program(_) => "programs",
        Target::File(_) => "files",
        Target::Include(_) => ":include:s",
        _ => return None,
    };
    Some(format!("Cannot mail directly to {kind}"))
}

/// Where an address points to.
pub(super) enum Place {
    /// A mailbox name of this host, without quotes.
    Here(String),
    /// Another host.
    Elsewhere(Address),
}

impl Router {
    /// Decides what is to be done with one recipient of a message.
    ///
    /// `taken` holds the recipients of the message that are settled; what this recipient leads to is added. Ask for
    /// the recipients of a message in the order of their ids, after adding those that are final already
    /// ([`Taken::note`]). A recipient that is there already gives an empty [`Route::Expand`].
    ///
    /// Blocks: as maps and the user database do.
    #[must_use]
    pub fn resolve(&self, recipient: &Recipient, taken: &mut Taken) -> Route {
        match self.try_resolve(recipient, taken) {
            Ok(route) => route,
            Err(error) => Route::Deferred {
                status: TROUBLE,
                text: error.to_string(),
            },
        }
    }

    fn try_resolve(&self, recipient: &Recipient, taken: &mut Taken) -> Result<Route, RouteError> {
        let mut target = Target::parse(&recipient.target);
        if let (Some(to), Target::Address(address)) = (&self.relay_to, &target) {
            return Ok(self.relayed(to, address));
        }
        if recipient.parent.is_none() {
            if let Some(text) = not_directly(&target) {
                let status = NOT_AUTHORIZED;
                return Ok(Route::Failed { status, text });
            }
            if let Target::Address(address) = &target {
                match self.placed(address)? {
                    Placed::Refused(refusal) => return Ok(refusal.into_route()),
                    Placed::To(Place::Here(local)) => {
                        let is_stuck = self.stuck(address)?.is_some();
                        if !is_stuck && let Some(route) = self.expand(&local, recipient, taken)? {
                            return Ok(route);
                        }
                        // The domain is of no more use, but for who looks whether there is one.
                        if !self.is_written_so(address, &local) {
                            target =
                                Target::Address(Address::from_parts(quote_local(&local), None));
                        }
                    }
                    Placed::To(Place::Elsewhere(address)) => target = Target::Address(address),
                }
            }
        }
        match (recipient.parent, &target) {
            (Some(_), Target::Include(path)) => {
                let route = self.expand_list(path, recipient, taken)?;
                // Known from here on, so that what is left of an expansion does not lead to it again.
                taken.take(&self.key(&target));
                return Ok(route);
            }
            (Some(_), Target::Rest(of)) => return self.expand_rest(of, recipient, taken),
            _ => {}
        }
        let route = self.end_for(&target, recipient.controlling_user.as_ref())?;
        let is_there = matches!(
            route,
            Route::Local { .. }
                | Route::Program { .. }
                | Route::File { .. }
                | Route::Mailer { .. }
                | Route::Smtp { .. }
                | Route::Hold { .. }
        );
        let acting = recipient.controlling_user.as_ref();
        // Those that fail are known too, so that what is left of an expansion does not lead to them again.
        let is_new = (!is_there && recipient.parent.is_none())
            || taken.take(&self.key_acting(&target, acting));
        if is_there && !is_new {
            return Ok(Route::Expand {
                children: Vec::new(),
                shown: "duplicate suppressed".to_owned(),
            });
        }
        Ok(route)
    }

    /// The route of a client queue's recipient. A name without a domain gets this host's, as SMTP asks for one.
    fn relayed(&self, to: &RelayTo, address: &Address) -> Route {
        let own_domain = || Domain::parse(&self.host_name).ok();
        let full = match (address.domain(), own_domain()) {
            (None, Some(domain)) => address.with_domain(domain),
            _ => address.clone(),
        };
        match to() {
            Ok(hop) => Route::Smtp {
                is_relay: true,
                hop,
                address: full.to_string(),
            },
            Err(text) => Route::Deferred {
                status: Status::new(4, 4, 1),
                text,
            },
        }
    }

    /// The route of a target that acts for a user, who has to have a shell to run programs and write files. A walk
    /// gives every such target a user, but for those that must not act for anybody.
    pub(super) fn end_for(
        &self,
        target: &Target,
        user: Option<&ControllingUser>,
    ) -> Result<Route, RouteError> {
        let kind = match target {
            Target::Program(_) => "programs",
            Target::File(_) => "files",
            _ => return self.end(target),
        };
        let refused = |text: String| {
            Ok(Route::Failed {
                status: NOT_AUTHORIZED,
                text,
            })
        };
        let Some(user) = user else {
            return refused(format!("Unsafe for mailing to {kind}"));
        };
        // Where everybody acts as one, ids tell nobody's shell.
        if user.uid == 0 || user.uid == self.default_user.uid || self.users.act_as_one() {
            return self.end(target);
        }
        let account = self.users.by_uid(user.uid);
        let account = account.map_err(|error| RouteError::Lookup {
            table: "users".to_owned(),
            detail: error.to_string(),
        })?;
        match account {
            Some(account) if shells::is_valid(&account.shell, &self.options.shells) => {
                self.end(target)
            }
            Some(account) => refused(format!(
                "User {}@{} doesn't have a valid shell for mailing to {kind}",
                account.name, self.host_name
            )),
            None => refused(format!(
                "UID {} is an unknown user: cannot mail to {kind}",
                user.uid
            )),
        }
    }

    /// The route of a target that is no alias.
    pub(super) fn end(&self, target: &Target) -> Result<Route, RouteError> {
        Ok(match target {
            Target::Address(address) => match self.place(address) {
                Place::Here(local) => self.name_here(&local, address)?,
                Place::Elsewhere(address) => match self.by_tables(&address)? {
                    Some(route) => route,
                    None => self.guarded(self.remote(&address)),
                },
            },
            Target::Mailbox(user) => self.mailbox(user, false)?,
            Target::Program(command) => Route::Program {
                command: command.clone(),
            },
            Target::File(path) => Route::File { path: path.clone() },
            Target::Rest(_) => Route::Failed {
                status: Status::NO_USER,
                text: UNKNOWN_TEXT.to_owned(),
            },
            // Only as the end of a walk that could not open it; asked by whoever lists ends.
            Target::Include(path) => unopened(&format!("Cannot open {path}")),
            Target::Invalid(text) => {
                let (status, text) = fault(text);
                Route::Failed {
                    status,
                    text: text.to_owned(),
                }
            }
        })
    }

    /// Whether an address is of this host, percent and bang forms unfolded as Sendmail does: `user%host@us` and
    /// `host!user` mean `user@host`. Every decision on relaying is made on the result, so that they open no relay.
    pub(super) fn place(&self, address: &Address) -> Place {
        let mut address = address.clone();
        for _ in 0..UNFOLDINGS_MAX {
            if !self.is_local(&address) {
                return Place::Elsewhere(address);
            }
            let local = address.local();
            if local.starts_with('"') {
                break;
            }
            let unfolded = match (local.rsplit_once('%'), local.split_once('!')) {
                (Some((user, host)), _) | (None, Some((host, user))) if !user.is_empty() => {
                    Domain::parse(host)
                        .ok()
                        .map(|domain| Address::from_parts(user, Some(domain)))
                }
                _ => None,
            };
            match unfolded {
                Some(inner) => address = inner,
                None => break,
            }
        }
        Place::Here(address.local_unquoted())
    }

    /// Whether an address means this name of this host as it is written, without any table.
    pub(super) fn is_written_so(&self, address: &Address, local: &str) -> bool {
        matches!(self.place(address), Place::Here(own) if own == local)
    }

    /// The route of a name of this host that is no alias, and the address it was taken from.
    fn name_here(&self, local: &str, address: &Address) -> Result<Route, RouteError> {
        if let Some(route) = self.stuck(address)? {
            return Ok(route);
        }
        match self.sent_on(local, address)? {
            Some(route) => Ok(route),
            None => self.mailbox(local, true),
        }
    }

    /// What tables say of another host's address: that its user has moved, or whose mail it is.
    pub(super) fn by_tables(&self, address: &Address) -> Result<Option<Route>, RouteError> {
        match self.redirected(address) {
            Some(refusal) => Ok(Some(refusal.into_route())),
            None => self.by_mailertable(address),
        }
    }

    /// Where an address leads; one whose tables do not answer, or refuse it, is taken as it is.
    fn placed_or_as_it_is(&self, address: &Address) -> Place {
        match self.placed(address) {
            Ok(Placed::To(place)) => place,
            _ => self.place(address),
        }
    }

    /// The route to a mailbox that a table names.
    pub(super) fn mailbox_route(&self, local: &str) -> Result<Route, RouteError> {
        self.mailbox(local, false)
    }

    /// What makes two targets the same recipient.
    pub(super) fn key(&self, target: &Target) -> String {
        match target {
            Target::Address(address) => match self.placed_or_as_it_is(address) {
                Place::Here(local) => local_key(&local),
                Place::Elsewhere(address) => {
                    let domain = address.domain().map(Domain::folded).unwrap_or_default();
                    format!("{}@{domain}", address.local())
                }
            },
            Target::Mailbox(user) => local_key(user),
            other => other.to_text(),
        }
    }

    /// As [`Router::key`]; the same command or file of two users is two recipients.
    pub(super) fn key_acting(&self, target: &Target, user: Option<&ControllingUser>) -> String {
        let key = self.key(target);
        match (target, user) {
            (Target::Program(_) | Target::File(_), Some(user))
                if user.uid != self.default_user.uid =>
            {
                format!("{key}\u{0}{}", user.uid)
            }
            _ => key,
        }
    }

    /// Expands what an expansion that was too large for one record left over: the ends that are not recipients yet.
    fn expand_rest(
        &self,
        of: &str,
        recipient: &Recipient,
        taken: &mut Taken,
    ) -> Result<Route, RouteError> {
        let whole = Recipient {
            target: of.to_owned(),
            ..recipient.clone()
        };
        let route = match Target::parse(of) {
            Target::Include(path) => Some(self.expand_list(&path, &whole, taken)?),
            Target::Address(address) => match self.place(&address) {
                Place::Here(local) => self.expand(&local, &whole, taken)?,
                Place::Elsewhere(_) => None,
            },
            _ => None,
        };
        // The alias is gone meanwhile: whoever was left over is not known any more.
        Ok(route.unwrap_or_else(|| Route::Failed {
            status: Status::NO_USER,
            text: UNKNOWN_TEXT.to_owned(),
        }))
    }

    /// The value of an alias: of `user+detail`, `user+*`, `user`, in this order (MAPS 11).
    pub(super) fn alias(&self, folded: &str) -> Result<Option<String>, RouteError> {
        let mut keys = vec![quote_local(folded)];
        if let Some((user, _)) = plussed(folded) {
            keys.push(quote_local(&format!("{user}+*")));
            keys.push(quote_local(user));
        }
        for key in keys {
            if let Some(value) = first_of(&self.aliases, &key)? {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    /// The value of an alias, or of the built-in ones that RFC 5321 4.5.1 asks for: MAILER-DAEMON is postmaster, and
    /// postmaster is root, unless an alias or a user says otherwise.
    pub(super) fn alias_or_default(&self, folded: &str) -> Result<Option<String>, RouteError> {
        if let Some(value) = self.alias(folded)? {
            return Ok(Some(value));
        }
        let default = match folded {
            "mailer-daemon" => "postmaster",
            "postmaster" => "root",
            _ => return Ok(None),
        };
        Ok(match self.find_user(folded)? {
            Some(_) => None,
            None => Some(default.to_owned()),
        })
    }

    /// The user that a mailbox name means, and what stood after `+`.
    pub(super) fn find_user(
        &self,
        local: &str,
    ) -> Result<Option<(User, Option<String>)>, RouteError> {
        if let Some(user) = self.user_named(local)? {
            return Ok(Some((user, None)));
        }
        match plussed(local) {
            Some((base, detail)) => Ok(self
                .user_named(base)?
                .map(|user| (user, Some(detail.to_owned())))),
            None => Ok(None),
        }
    }

    fn user_named(&self, name: &str) -> Result<Option<User>, RouteError> {
        self.users.lookup(name).map_err(|error| RouteError::Lookup {
            table: "users".to_owned(),
            detail: error.to_string(),
        })
    }

    /// The route to a mailbox of this host.
    fn mailbox(&self, local: &str, may_be_alias: bool) -> Result<Route, RouteError> {
        if let Some((user, detail)) = self.find_user(local)? {
            return Ok(Route::Local {
                user: user.name,
                detail,
            });
        }
        let folded = local.to_lowercase();
        if folded == "root" {
            return Ok(Route::Deferred {
                status: NO_ROOT,
                text: "no user root to deliver postmaster's mail to".to_owned(),
            });
        }
        // The end of an expansion that names an alias is where a loop was broken; `\user` names no alias.
        let is_loop = may_be_alias && self.alias_or_default(&folded)?.is_some();
        let (status, text) = if is_loop {
            (LOOP, LOOP_TEXT)
        } else {
            (Status::NO_USER, UNKNOWN_TEXT)
        };
        Ok(Route::Failed {
            status,
            text: text.to_owned(),
        })
    }

    /// The route to another host, whether or not it may be contacted.
    pub(super) fn remote(&self, address: &Address) -> Route {
        let wire = address.to_string();
        if let Some(host) = &self.options.smart_host {
            let port = (host.port != SMTP_PORT).then_some(host.port);
            // MX records lead to port 25; a host with a port of its own is meant itself.
            let hop = match Domain::parse(&host.host) {
                Ok(domain) if !host.is_mx_skipped && port.is_none() => Hop::Mx(domain),
                _ => Hop::Host {
                    name: match host.address() {
                        Some(IpAddr::V4(four)) => format!("[{four}]"),
                        Some(IpAddr::V6(six)) => format!("[IPv6:{six}]"),
                        None => host.host.clone(),
                    },
                    port,
                },
            };
            return Route::Smtp {
                is_relay: !host.is_by_esmtp,
                hop,
                address: wire,
            };
        }
        let Some(domain) = address.domain() else {
            return Route::Failed {
                status: Status::NO_USER,
                text: UNKNOWN_TEXT.to_owned(),
            };
        };
        let hop = match bracketed(domain) {
            Some(inner) if inner.parse::<IpAddr>().is_err() => Hop::Host {
                name: inner,
                port: None,
            },
            Some(_) => Hop::Host {
                name: domain.as_str().to_owned(),
                port: None,
            },
            None => Hop::Mx(domain.clone()),
        };
        Route::Smtp {
            is_relay: false,
            hop,
            address: wire,
        }
    }

    /// Keeps mail in the queue that would leave a sandbox. A smart host is the operator's word that it may.
    fn guarded(&self, route: Route) -> Route {
        let Route::Smtp { hop, .. } = &route else {
            return route;
        };
        if self.options.smart_host.is_some() {
            return route;
        }
        let is_loopback = match hop {
            Hop::Mx(_) | Hop::Several(_) => false,
            Hop::Host { name, .. } => Domain::parse(name)
                .ok()
                .and_then(|domain| bracketed(&domain))
                .and_then(|inner| inner.parse::<IpAddr>().ok())
                .is_some_and(|address| address.to_canonical().is_loopback()),
        };
        if self.options.remote == Remote::Allowed || is_loopback {
            return route;
        }
        Route::Hold {
            reason: "no other host is contacted from this sandbox; set smart_host or remote = true"
                .to_owned(),
        }
    }

    /// The local user that an envelope's sender is, if it is one: whose name `ctladdr` in the log has. Blocks: as the
    /// user database does; trouble there gives `None`, as nothing but a log field depends on it.
    #[must_use]
    pub fn controlling_user(&self, sender: &ReversePath) -> Option<ControllingUser> {
        let address = sender.address()?;
        let Place::Here(local) = self.place(address) else {
            return None;
        };
        let (user, _) = self.find_user(&local).ok()??;
        Some(ControllingUser {
            name: sender.to_string(),
            uid: user.uid,
            gid: user.gid,
        })
    }
}

/// `user` and `detail` of `user+detail`.
fn plussed(local: &str) -> Option<(&str, &str)> {
    local.split_once('+').filter(|(user, _)| !user.is_empty())
}

/// The recipient that stands for what is left of another's expansion, when as much of it is recorded as fits.
#[must_use]
pub fn rest_of(recipient: &Recipient) -> Recipient {
    Recipient {
        target: match Target::parse(&recipient.target) {
            rest @ Target::Rest(_) => rest.to_text(),
            _ => Target::Rest(recipient.target.clone()).to_text(),
        },
        ..recipient.clone()
    }
}

/// What is wrong with a text that is no address. Source: Sendmail's ruleset Parse0.
fn fault(text: &str) -> (Status, &'static str) {
    let bare = match text.rsplit_once('<') {
        Some((_, inner)) => inner.split('>').next().unwrap_or_default(),
        None => text,
    };
    let bad_form = Status::new(5, 1, 3);
    let is_odd = bare.contains(['"', ' ', '(', '\\']);
    match bare.rsplit_once('@') {
        _ if is_odd => (Status::NO_USER, UNKNOWN_TEXT),
        Some(("", "")) | None => (Status::NO_USER, UNKNOWN_TEXT),
        Some((_, "")) => (bad_form, "Hostname required"),
        Some(("", _)) => (bad_form, "User address required"),
        Some((local, _)) if local.contains('@') => (bad_form, "Invalid route address"),
        Some((_, host)) if host.starts_with('.') || host.contains("..") => {
            (Status::new(5, 1, 2), "Invalid host name")
        }
        Some(_) => (Status::NO_USER, UNKNOWN_TEXT),
    }
}

fn local_key(local: &str) -> String {
    // Other keys have an `@`, or begin with what no local key begins with.
    format!("={}", local.to_lowercase())
}
