//! What people are told about addresses: VRFY, EXPN and `sendmail -bv`.
//!
//! VRFY looks one step far, as RCPT does; EXPN and `-bv` follow aliases to their ends. Lines and order are Sendmail's:
//! the targets of an alias come last first. Blocks: as maps and the user database do. Source: RFC 5321 3.5,
//! sendmail(8) -bv.

#![deny(clippy::indexing_slicing)]

use super::access_entry::Denial;
use super::expand::{End, Ends, LIST_PROBLEM, Wanted};
use super::resolve::{LOOP, NOT_AUTHORIZED, Place, UNKNOWN_TEXT, not_directly};
use super::tables::Placed;
use super::target::{Target, quote_local, split};
use super::{Hop, Route, RouteError, Router, Taken, Verified};
use crate::address::Address;
use crate::envelope::{Recipient, RecipientId};
use crate::status::{ExitCode, Reply, Status};

impl Router {
    /// Whether an address exists: VRFY. Angle brackets are optional.
    ///
    /// # Errors
    /// The answer to give instead: 550 if there is surely no such user, 451 if a lookup did not work.
    pub fn verify(&self, text: &str) -> Result<Verified, Reply> {
        let bare = unbracketed(text);
        let unknown = || Reply::new(550, Status::NO_USER, format!("{text}... {UNKNOWN_TEXT}"));
        let address = Address::parse(bare).map_err(|_| unknown())?;
        let place = match self
            .placed(&address)
            .map_err(|error| self.lookup_trouble(&error))?
        {
            Placed::To(place) => place,
            Placed::Refused(refusal) => return Err(refusal.into_denial().about(text)),
        };
        match place {
            Place::Elsewhere(address) => Ok(Verified {
                address: address.to_string(),
                is_remote: true,
            }),
            Place::Here(local) => {
                let trouble = |error: RouteError| self.lookup_trouble(&error);
                if let Some(denial) = self.unknown_here(&local, &address).map_err(trouble)? {
                    return Err(denial.about(text));
                }
                let away = self.address_away(&local, &address).map_err(trouble)?;
                Ok(Verified {
                    is_remote: away.is_some(),
                    address: away
                        .unwrap_or_else(|| format!("{}@{}", quote_local(&local), self.host_name)),
                })
            }
        }
    }

    /// The ends of an alias, each as EXPN lists it: `<alice@host.example.test>`.
    ///
    /// # Errors
    /// The answer to give instead: 550 no such user, 554 a loop, 451 if a lookup did not work.
    pub fn expand_shown(&self, text: &str) -> Result<Vec<String>, Reply> {
        let unknown = || Reply::new(550, Status::NO_USER, format!("{text}... {UNKNOWN_TEXT}"));
        let address = Address::parse(unbracketed(text)).map_err(|_| unknown())?;
        let local = match self
            .placed(&address)
            .map_err(|error| self.lookup_trouble(&error))?
        {
            Placed::To(Place::Elsewhere(address)) => return Ok(vec![format!("<{address}>")]),
            Placed::To(Place::Here(local)) => local,
            Placed::Refused(refusal) => return Err(refusal.into_denial().about(text)),
        };
        let wrap = |error: RouteError| self.lookup_trouble(&error);
        let Some(ends) = self
            .ends_of(&local, text, &mut Taken::new(), Wanted::Ends)
            .map_err(wrap)?
        else {
            if let Some(denial) = self.unknown_here(&local, &address).map_err(wrap)? {
                return Err(denial.about(text));
            }
            if let Some(away) = self.address_away(&local, &address).map_err(wrap)? {
                return Ok(vec![format!("<{away}>")]);
            }
            return if self.find_user(&local).map_err(wrap)?.is_some() {
                Ok(vec![format!(
                    "<{}@{}>",
                    quote_local(&local),
                    self.host_name
                )])
            } else {
                Err(unknown())
            };
        };
        // What is refused, or is no address, is the answer, as in Sendmail.
        for end in &ends.targets {
            let refused = match &end.target {
                Target::Address(address) => match self.placed(address).map_err(wrap)? {
                    Placed::Refused(refusal) => Some(refusal.into_denial().about(&end.text)),
                    Placed::To(_) => None,
                },
                Target::Invalid(_) => {
                    let text = format!("{}... {UNKNOWN_TEXT}", end.text);
                    Some(Reply::new(550, Status::NO_USER, text))
                }
                _ => None,
            };
            if let Some(reply) = refused.filter(|_| ends.broken.is_none()) {
                return Err(reply);
            }
        }
        let good: Vec<&End> = ends
            .targets
            .iter()
            .filter(|end| end.failure.is_none())
            .collect();
        if good.is_empty() {
            let failure = ends.targets.iter().find_map(|end| end.failure.clone());
            let (status, text) = ends
                .broken
                .or(failure.map(|text| (LIST_PROBLEM, text)))
                .unwrap_or_else(|| (LOOP, UNKNOWN_TEXT.to_owned()));
            return Err(Reply::new(554, status, text));
        }
        good.iter()
            .map(|end| self.end_shown(&end.target))
            .collect::<Result<_, _>>()
            .map_err(|error| self.lookup_trouble(&error))
    }

    fn end_shown(&self, end: &Target) -> Result<String, RouteError> {
        Ok(match end {
            Target::Address(address) => match self.place(address) {
                Place::Here(local) => match self.address_away(&local, address)? {
                    Some(away) => format!("<{away}>"),
                    None => format!("<{}@{}>", quote_local(&local), self.host_name),
                },
                Place::Elsewhere(address) => format!("<{address}>"),
            },
            Target::Mailbox(user) => format!("<{}@{}>", quote_local(user), self.host_name),
            Target::Program(command) => format!("<\"|{command}\">"),
            other => format!("<{}>", other.to_text()),
        })
    }

    /// The lines that `sendmail -bv` prints for one argument, and what it ends with. With `is_verbose` the aliases
    /// that are followed are told, too.
    #[must_use]
    pub fn verify_lines(&self, argument: &str, is_verbose: bool) -> (Vec<String>, ExitCode) {
        let mut lines = Vec::new();
        let mut code = ExitCode::Ok;
        let mut taken = Taken::new();
        for text in arguments(argument).into_iter().rev() {
            self.verify_one(text, is_verbose, &mut taken, &mut lines, &mut code);
        }
        if lines.is_empty() && code == ExitCode::Ok {
            lines.push(format!("{argument}... {UNKNOWN_TEXT}"));
            code = ExitCode::NoUser;
        }
        (lines, code)
    }

    fn verify_one(
        &self,
        text: &str,
        is_verbose: bool,
        taken: &mut Taken,
        lines: &mut Vec<String>,
        code: &mut ExitCode,
    ) {
        let mut target = Target::parse(text);
        let is_special = matches!(
            target,
            Target::Program(_) | Target::File(_) | Target::Include(_)
        );
        if is_special {
            // Refused when it is no end of an alias; the words are resolve's.
            if let Route::Failed { text: why, .. } =
                self.resolve(&Recipient::new(text), &mut Taken::new())
            {
                lines.push(format!("{text}... {why}"));
                *code = ExitCode::Usage;
            }
            return;
        }
        let placed = match &target {
            Target::Address(address) if self.relay_to.is_none() => match self.placed(address) {
                Ok(placed) => Some(placed),
                Err(error) => {
                    lines.push(format!("{text}... Deferred: {error}"));
                    *code = ExitCode::TempFail;
                    return;
                }
            },
            _ => None,
        };
        if let Some(Placed::Refused(refusal)) = placed {
            lines.push(refusal.line(text));
            lines.extend(
                refusal
                    .deliverable()
                    .map(|what| format!("{text}... {what}")),
            );
            if refusal.exit_code() != ExitCode::Ok {
                *code = refusal.exit_code();
            }
            return;
        }
        let mut via = None;
        if let Some(Placed::To(Place::Elsewhere(address))) = placed {
            target = Target::Address(address);
        } else if let Some(Placed::To(Place::Here(local))) = placed {
            // What no table changed is shown as it was written.
            let (is_as_written, stuck) = match &target {
                Target::Address(address) => {
                    (self.is_written_so(address, &local), self.stuck(address))
                }
                _ => (true, Ok(None)),
            };
            if !matches!(stuck, Ok(None)) {
                // The hub knows; it is asked before aliases.
                return self.verify_end(&End::of(target, text), lines, code);
            }
            if !is_as_written {
                via = self.handed_here(&target);
                target = Target::Address(Address::from_parts(quote_local(&local), None));
            }
            let wanted = if is_verbose {
                Wanted::Steps
            } else {
                Wanted::Ends
            };
            match self.ends_of(&local, text, taken, wanted) {
                Ok(Some(ends)) => return self.verify_ends(text, ends, lines, code),
                Ok(None) => {}
                Err(error) => {
                    lines.push(format!("{text}... Deferred: {error}"));
                    *code = ExitCode::TempFail;
                    return;
                }
            }
        }
        if taken.take(&self.key(&target)) {
            let end = End {
                via,
                ..End::of(target, text)
            };
            self.verify_end(&end, lines, code);
        } else if is_verbose {
            lines.push(format!("{text}... duplicate suppressed"));
        }
    }

    fn verify_ends(&self, text: &str, ends: Ends, lines: &mut Vec<String>, code: &mut ExitCode) {
        lines.extend(ends.steps);
        match ends.broken {
            Some((Status::NO_USER, why)) => {
                // Said of the alias, and again of the user that it names.
                lines.push(format!("{text}... {why}"));
                lines.push(format!("{text}... {why}"));
                *code = ExitCode::NoUser;
            }
            Some((_, why)) => {
                lines.push(why);
                *code = ExitCode::Usage;
            }
            None => {}
        }
        for end in &ends.targets {
            if let Some(why) = &end.failure {
                lines.push(format!("{}{}... {why}", end.place(), end.text));
                *code = ExitCode::Usage;
            } else {
                self.verify_end(end, lines, code);
            }
        }
    }

    fn verify_end(&self, end: &End, lines: &mut Vec<String>, code: &mut ExitCode) {
        let (target, text) = (&end.target, &end.text);
        let origin = end.place();
        if let Target::Invalid(_) = target
            && text.starts_with('<')
            && !text.contains('>')
        {
            lines.push(format!("{origin}{text}... Unbalanced '<'"));
        }
        if let Target::Address(address) = target
            && let Place::Here(local) = self.place(address)
            && let Ok(Some(refusal)) = self.refused_here(&local)
        {
            lines.push(format!("{origin}{}", refusal.line(text)));
            lines.extend(
                refusal
                    .deliverable()
                    .map(|what| format!("{text}... {what}")),
            );
            if refusal.exit_code() != ExitCode::Ok {
                *code = refusal.exit_code();
            }
            return;
        }
        let route = match target {
            Target::Address(_) if self.relay_to.is_some() => {
                Ok(self.resolve(&Recipient::new(target.to_text()), &mut Taken::new()))
            }
            // Where it would go is asked, not whether the sandbox lets it.
            Target::Address(address) => match self.place(address) {
                Place::Elsewhere(address) => match self.by_tables(&address) {
                    Ok(Some(route)) => Ok(route),
                    Ok(None) => Ok(self.remote(&address)),
                    Err(error) => Err(error),
                },
                Place::Here(_) => self.end(target),
            },
            _ => self.end_for(target, end.controlling_user.as_ref()),
        };
        let line = match route {
            Ok(Route::Local { user, .. }) if matches!(target, Target::Mailbox(_)) => {
                format!("{text}... deliverable: mailer local, user \\{user}")
            }
            // A name with quotes stays as it is written.
            Ok(Route::Local { .. }) if quoted_name(target).is_some() => {
                let name = quoted_name(target).unwrap_or_default();
                format!("{text}... deliverable: mailer local, user {name}")
            }
            Ok(Route::Local { user, detail }) => {
                let host = end
                    .via
                    .clone()
                    .or_else(|| self.sent_from(target))
                    .or(detail);
                let host = host.filter(|host| !host.is_empty());
                let host = host.map_or(String::new(), |detail| format!(" host {detail},"));
                format!("{text}... deliverable: mailer local,{host} user {user}")
            }
            Ok(Route::Smtp {
                is_relay,
                hop,
                address,
            }) => {
                let mailer = if is_relay { "relay" } else { "esmtp" };
                let host = match (hop, target) {
                    (Hop::Mx(domain), _) => domain.to_string(),
                    (Hop::Host { .. }, Target::Address(address))
                        if !is_relay && is_bracketed(address) =>
                    {
                        address
                            .domain()
                            .map(ToString::to_string)
                            .unwrap_or_default()
                    }
                    // Brackets tell that the host is meant itself.
                    (Hop::Host { name, .. }, _) if !name.starts_with('[') => format!("[{name}]"),
                    (Hop::Host { name, .. }, _) => name,
                    (several @ Hop::Several(_), _) => several.to_string(),
                };
                format!("{text}... deliverable: mailer {mailer}, host {host}, user {address}")
            }
            Ok(Route::Program { command }) => {
                format!("{text}... deliverable: mailer prog, user |{command}")
            }
            Ok(Route::File { path }) => {
                format!("{text}... deliverable: mailer *file*, user {path}")
            }
            Ok(Route::Mailer { mailer, host, user }) => {
                let host = if host.is_empty() {
                    host
                } else {
                    format!(" host {host},")
                };
                format!("{text}... deliverable: mailer {mailer},{host} user {user}")
            }
            Ok(Route::Failed { status, text: why }) => {
                *code = if status == Status::NO_USER {
                    ExitCode::NoUser
                } else {
                    ExitCode::Usage
                };
                format!("{origin}{text}... {why}")
            }
            Ok(Route::Deferred { text: why, .. } | Route::Hold { reason: why }) => {
                *code = ExitCode::TempFail;
                format!("{text}... Deferred: {why}")
            }
            Ok(Route::Expand { shown, .. }) => format!("{text}... {shown}"),
            Err(error) => {
                *code = ExitCode::TempFail;
                format!("{text}... Deferred: {error}")
            }
        };
        lines.push(line);
    }

    /// Another host's address that the mailertable gives to a user of this host, as the host of the mailer `local`.
    fn handed_here(&self, target: &Target) -> Option<String> {
        let Target::Address(address) = target else {
            return None;
        };
        let address = self.canonical(address).ok()?;
        match self.place(&address) {
            Place::Elsewhere(address) => {
                let user = self.user_by_domain(&address).ok()?;
                user.map(|_| address.to_string())
            }
            Place::Here(_) => None,
        }
    }

    /// What a table that gives an address to a user of this host was asked for, as the host of the mailer `local`.
    fn sent_from(&self, target: &Target) -> Option<String> {
        let Target::Address(address) = target else {
            return None;
        };
        match self.place(address) {
            Place::Elsewhere(address) => Some(address.to_string()),
            Place::Here(local) => {
                matches!(self.sent_on(&local, address), Ok(Some(Route::Local { .. })))
                    .then_some(local)
            }
        }
    }

    /// What RCPT and VRFY answer for a mailbox name of this host that nobody has. `address` is what it was taken from.
    pub(super) fn unknown_here(
        &self,
        local: &str,
        address: &Address,
    ) -> Result<Option<Denial>, RouteError> {
        if self.alias_or_default(&local.to_lowercase())?.is_some()
            || self.find_user(local)?.is_some()
        {
            return Ok(None);
        }
        // What luser_relay says decides; where it sends mail, somebody else knows.
        if let Some(refusal) = self.refused_here(local)? {
            return Ok(Some(refusal.into_denial()));
        }
        let bare = Address::from_parts(quote_local(local), None);
        let is_as_written = self.is_written_so(address, local);
        let from = if is_as_written { address } else { &bare };
        let route = match self.stuck(from)? {
            Some(route) => Some(route),
            None => self.sent_on(local, from)?,
        };
        Ok(match route {
            Some(Route::Failed { .. }) | None => {
                Some(match not_directly(&Target::parse(&address.to_string())) {
                    Some(text) => Denial::new(550, NOT_AUTHORIZED, text),
                    None => Denial::new(550, Status::NO_USER, UNKNOWN_TEXT),
                })
            }
            Some(_) => None,
        })
    }

    /// The answer when a lookup did not work; the log is told what it was (I9).
    pub(super) fn lookup_trouble(&self, error: &RouteError) -> Reply {
        (self.notice)(&error.to_string());
        Denial::trouble().bare()
    }
}

/// The end of an expansion as a recipient of the message, once its parent's id is known.
impl Route {
    /// The children of an expansion with their parent set; none for other routes.
    #[must_use]
    pub fn into_children(self, parent: RecipientId) -> Vec<Recipient> {
        let Self::Expand { mut children, .. } = self else {
            return Vec::new();
        };
        for child in &mut children {
            child.parent = Some(parent);
        }
        children
    }
}

/// Whether the domain stands in brackets: a host that is meant itself.
fn is_bracketed(address: &Address) -> bool {
    address
        .domain()
        .is_some_and(|domain| domain.as_str().starts_with('['))
}

/// A local part that has quotes in it.
fn quoted_name(target: &Target) -> Option<&str> {
    match target {
        Target::Address(address) => Some(address.local()).filter(|local| local.contains('"')),
        _ => None,
    }
}

/// The recipients of one argument: separated by commas, or by blanks if nothing in it asks for the new style.
/// Source: Sendmail's option OldStyleHeaders.
fn arguments(argument: &str) -> Vec<&str> {
    let is_new_style = argument.contains([',', ';', '<', '(', '"', '|', ':']);
    if is_new_style {
        split(argument).unwrap_or_default()
    } else {
        argument.split_ascii_whitespace().collect()
    }
}

/// Text without one pair of angle brackets.
fn unbracketed(text: &str) -> &str {
    let text = text.trim();
    text.strip_prefix('<')
        .and_then(|inner| inner.strip_suffix('>'))
        .unwrap_or(text)
        .trim()
}
