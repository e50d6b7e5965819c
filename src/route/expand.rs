//! Aliases, `.forward` and `:include:`: one recipient to many, all the way to the ends.
//!
//! The whole tree under a name is walked in one go, so that an expansion is one record in the journal and a crash can't
//! repeat half of it. If a lookup or a file on the way does not work for now, nothing is expanded and the recipient waits (I9).
//!
//! As in Sendmail: names are looked up without case; the targets of one alias are taken last first; a name that leads to
//! itself delivers to the user of that name; a loop is broken at the first of its names that is a user, else reported as
//! `aliasing/forwarding loop broken`; an address that the message has already is left out. What comes out of a
//! `.forward` acts with its user's rights, what comes out of a list with its owner's; `owner-LIST` becomes the sender.
//! Blocks: disk. Limits: the option `max_alias_recursion`, never more than [`ALIAS_DEPTH_MAX`]; [`EXPANSION_MAX`];
//! `safe_file::READ_BYTES_MAX`. Source: aliases(5), forward(5), op.me 4.7.

#![deny(clippy::indexing_slicing)]

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::path::Path;
use std::sync::Arc;

use super::forward::Found;
use super::resolve::{LOOP, LOOP_TEXT, Place, UNKNOWN_TEXT};
use super::tables::Placed;
use super::target::{REST, Target, quote_local, split};
use super::{Route, RouteError, Router};
use crate::address::Address;
use crate::envelope::{ControllingUser, Recipient, RecipientState};
use crate::safe_file::{Purpose, ReadRequest, Refusal, Who};
use crate::status::{Status, Verdict};
use crate::users::User;

/// Deepest nesting of aliases, whatever `max_alias_recursion` says.
const ALIAS_DEPTH_MAX: usize = 200;
/// Most recipients that one expansion gives.
pub const EXPANSION_MAX: usize = 200_000;
/// Most steps that are told of one walk.
const STEPS_TOLD_MAX: usize = 10_000;
/// 5.2.4, mailing list expansion problem.
pub(super) const LIST_PROBLEM: Status = Status::new(5, 2, 4);

/// The recipients that a message has already, so that nobody gets it twice.
///
/// Kept are fingerprints of 128 bits under random keys, a quarter of what the addresses take: that two addresses of a
/// message have the same one is less likely than that a computer's memory forgets one.
#[derive(Debug, Default)]
pub struct Taken {
    keys: HashSet<u128>,
    hashers: [RandomState; 2],
}

impl Taken {
    /// No recipient yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a recipient of the message in a final state. One that was expanded stands for others and is left out.
    pub fn note(&mut self, router: &Router, recipient: &Recipient, state: &RecipientState) {
        if *state != RecipientState::Expanded {
            let target = Target::parse(&recipient.target);
            let acting = recipient.controlling_user.as_ref();
            self.take(&router.key_acting(&target, acting));
        }
    }

    /// Adds a key; `false` if it was there.
    pub(super) fn take(&mut self, key: &str) -> bool {
        let key = self.fingerprint(key);
        self.keys.insert(key)
    }

    fn fingerprint(&self, key: &str) -> u128 {
        let [high, low] = &self.hashers;
        u128::from(high.hash_one(key)) << 64 | u128::from(low.hash_one(key))
    }
}

/// A line of a file: where something stands.
pub(super) type Origin = (Arc<str>, usize);

/// One end of a walk.
#[derive(Debug, Clone)]
pub(super) struct End {
    pub(super) target: Target,
    /// As it stands where it was found, a command with its quotes.
    pub(super) text: String,
    /// With whose rights programs are run and files written; `None`: it must not be used so.
    pub(super) controlling_user: Option<ControllingUser>,
    /// Where it stands, if in a file.
    pub(super) origin: Option<Origin>,
    /// Why it leads nowhere, where that is known: a list that can't be opened.
    pub(super) failure: Option<String>,
    /// The address that a table gave to this user of this host.
    pub(super) via: Option<String>,
}

impl End {
    /// An end that nothing led to: what was asked for itself.
    pub(super) fn of(target: Target, text: &str) -> Self {
        Self {
            target,
            text: text.to_owned(),
            controlling_user: None,
            origin: None,
            failure: None,
            via: None,
        }
    }

    /// What Sendmail puts before what it says of it: `/etc/mail/list: line 6: `.
    pub(super) fn place(&self) -> String {
        place_of(self.origin.as_ref())
    }
}

fn place_of(origin: Option<&Origin>) -> String {
    origin.map_or(String::new(), |(path, number)| {
        format!("{path}: line {number}: ")
    })
}

/// What is wanted of a walk. Steps and where the ends stand are much for a long list.
#[derive(Debug, Clone, Copy)]
pub(super) enum Wanted<'a> {
    /// The steps, and the ends.
    Steps,
    /// The ends.
    Ends,
    /// The recipients that replace this one, and nothing else.
    Recipients(&'a Recipient),
}

/// What an alias leads to.
#[derive(Debug, Default)]
pub(super) struct Ends {
    /// The ends, duplicates left out, if they are wanted.
    pub(super) targets: Vec<End>,
    /// The same as recipients, if those are.
    recipients: Vec<Recipient>,
    /// How many of these lead nowhere, and why the first does.
    failures: (usize, Option<String>),
    /// What was looked up on the way: `info... aliased to alice, bob`.
    pub(super) steps: Vec<String>,
    /// What the first step says: `aliased to alice, bob`.
    pub(super) shown: String,
    /// Why a branch was cut off, if one was.
    pub(super) broken: Option<(Status, String)>,
}

impl Router {
    /// Expands a mailbox name of this host. `None` if it is no alias and its user forwards nothing.
    pub(super) fn expand(
        &self,
        local: &str,
        recipient: &Recipient,
        taken: &mut Taken,
    ) -> Result<Option<Route>, RouteError> {
        let wanted = Wanted::Recipients(recipient);
        let ends = self.ends_of(local, &recipient.shown(), taken, wanted)?;
        Ok(ends.map(expanded))
    }

    /// Whether a recipient stands for what is left of an expansion.
    #[must_use]
    pub fn is_rest(&self, recipient: &Recipient) -> bool {
        recipient.target.starts_with(REST)
    }

    /// Expands a list that could not be opened when it was come across, or that became one since.
    pub(super) fn expand_list(
        &self,
        path: &str,
        recipient: &Recipient,
        taken: &mut Taken,
    ) -> Result<Route, RouteError> {
        let wanted = Wanted::Recipients(recipient);
        let mut walk = Walk::new(self, taken, &recipient.shown(), wanted);
        walk.controlling_user
            .clone_from(&recipient.controlling_user);
        match walk.include(path) {
            Ok(()) => Ok(expanded(walk.end(taken))),
            Err(error) => {
                *taken = walk.taken;
                Err(error)
            }
        }
    }

    /// Walks the tree under a name of this host, `shown` being how the log shows the recipient. `None` if the name is no
    /// alias and its user forwards nothing.
    pub(super) fn ends_of(
        &self,
        local: &str,
        shown: &str,
        taken: &mut Taken,
        wanted: Wanted<'_>,
    ) -> Result<Option<Ends>, RouteError> {
        let mut walk = Walk::new(self, taken, shown, wanted);
        match walk.follow(local, shown) {
            Ok(true) => Ok(Some(walk.end(taken))),
            Ok(false) => {
                *taken = walk.taken;
                Ok(None)
            }
            Err(error) => {
                *taken = walk.taken;
                Err(error)
            }
        }
    }
}

/// The route that a walk's ends are.
fn expanded(ends: Ends) -> Route {
    let Ends {
        recipients: children,
        failures: (failed, failure),
        broken,
        shown,
        ..
    } = ends;
    // If nothing leads anywhere it is the recipient itself that fails.
    if failed == children.len() {
        if let Some((status, text)) = broken {
            return Route::Failed { status, text };
        }
        if let Some(text) = failure {
            let status = LIST_PROBLEM;
            return Route::Failed { status, text };
        }
    }
    Route::Expand { children, shown }
}

/// One walk. What it finds is added to `taken` only when it has come to its end.
struct Walk<'r> {
    router: &'r Router,
    taken: Taken,
    depth_max: usize,
    wanted: Wanted<'r>,
    /// Fingerprints of the ends found.
    seen: HashSet<u128>,
    /// Names and lists followed.
    walked: HashSet<String>,
    /// Names that are no aliases and whose users forward nothing: looked up once, however often they are named.
    settled: HashSet<String>,
    /// The names and lists that led to where we are.
    chain: Vec<String>,
    /// Whose rights count where we are; `None`: the default user's.
    controlling_user: Option<ControllingUser>,
    /// How the log shows the innermost name or list.
    acting_name: String,
    /// Whether what we read could have been written by others, so that it must not act for anybody.
    is_unsafe: bool,
    /// The owner of the innermost list that has one.
    sender: Option<String>,
    /// Where we are in a file.
    origin: Option<Origin>,
    /// What stands for the first branch that was cut off.
    stub: Option<Target>,
    ends: Ends,
}

impl<'r> Walk<'r> {
    fn new(router: &'r Router, taken: &mut Taken, shown: &str, wanted: Wanted<'r>) -> Self {
        Self {
            router,
            // Lent for the walk, and given back however it ends.
            taken: std::mem::take(taken),
            depth_max: usize::try_from(router.options.max_alias_recursion)
                .unwrap_or(ALIAS_DEPTH_MAX)
                .clamp(1, ALIAS_DEPTH_MAX),
            wanted,
            seen: HashSet::new(),
            walked: HashSet::new(),
            settled: HashSet::new(),
            chain: Vec::new(),
            controlling_user: None,
            acting_name: shown.to_owned(),
            is_unsafe: false,
            sender: None,
            origin: None,
            stub: None,
            ends: Ends::default(),
        }
    }

    fn end(self, taken: &mut Taken) -> Ends {
        let mut ends = self.ends;
        if let Some(target) = self.stub {
            let text = target.to_text();
            match self.wanted {
                Wanted::Recipients(of) if !ends.recipients.is_empty() => {
                    ends.recipients
                        .push(recipient(of, target, &text, None, None));
                }
                _ if !ends.targets.is_empty() => ends.targets.push(End::of(target, &text)),
                _ => {}
            }
        }
        *taken = self.taken;
        let mut seen = self.seen;
        // The larger table stays, so that it is not built again.
        if seen.len() > taken.keys.len() {
            std::mem::swap(&mut seen, &mut taken.keys);
        }
        taken.keys.extend(seen);
        ends
    }

    /// Tells of a name that is followed.
    fn step(&mut self, name: &str, what: &str) {
        if self.ends.shown.is_empty() {
            what.clone_into(&mut self.ends.shown);
        }
        self.tell(|| format!("{name}... {what}"));
    }

    /// Says something to whoever wants the steps, with the line it is said of.
    fn tell(&mut self, line: impl FnOnce() -> String) {
        if matches!(self.wanted, Wanted::Steps) && self.ends.steps.len() < STEPS_TOLD_MAX {
            let place = place_of(self.origin.as_ref());
            self.ends.steps.push(format!("{place}{}", line()));
        }
    }

    /// Follows a mailbox name that is an alias, or whose user forwards. `false` if it is neither.
    fn follow(&mut self, local: &str, shown: &str) -> Result<bool, RouteError> {
        let folded = local.to_lowercase();
        if let Some(value) = self.router.alias_or_default(&folded)? {
            let outer = std::mem::replace(&mut self.acting_name, shown.to_owned());
            self.alias(folded, shown, &value)?;
            self.acting_name = outer;
            return Ok(true);
        }
        if self.router.leaves(local)? {
            return Ok(false);
        }
        let Some((user, detail)) = self.router.find_user(local)? else {
            return Ok(false);
        };
        let Some(found) = self.router.forward_of(&user, detail.as_deref())? else {
            return Ok(false);
        };
        let outer = std::mem::replace(&mut self.acting_name, shown.to_owned());
        self.forward(folded, &user, &found)?;
        self.acting_name = outer;
        Ok(true)
    }

    /// Whether one more name may be followed; if not the branch is cut.
    fn is_deep_enough(&mut self, name: &str) -> bool {
        if self.chain.len() < self.depth_max {
            return true;
        }
        let text = format!(
            "{LOOP_TEXT} ({} aliases deep; {} max)",
            self.chain.len() + 1,
            self.depth_max
        );
        // No mailbox: the name may also be a user's, who is not meant.
        self.cut(Target::Invalid(format!("{name}: {text}")), LOOP, text);
        false
    }

    /// Follows one alias, whose name is in lower case.
    fn alias(&mut self, name: String, shown: &str, value: &str) -> Result<(), RouteError> {
        if !self.is_deep_enough(&name) {
            return Ok(());
        }
        let trouble = |detail: String| RouteError::Lookup {
            table: format!("alias {name}"),
            detail,
        };
        let Some(targets) = split(value) else {
            return Err(trouble("too many targets".to_owned()));
        };
        if targets.is_empty() {
            return Err(trouble("no targets".to_owned()));
        }
        self.step(shown, &format!("aliased to {value}"));
        self.walked.insert(name.clone());
        let owner = self.router.owner_of_list(&name)?;
        let outer = owner.map(|owner| self.sender.replace(owner));
        // What an alias names acts for nobody in particular, whoever led to the alias.
        let outer_user = self.controlling_user.take();
        let outer_unsafe = std::mem::take(&mut self.is_unsafe);
        self.chain.push(name.clone());
        self.targets(&name, &targets)?;
        self.chain.pop();
        self.is_unsafe = outer_unsafe;
        self.controlling_user = outer_user;
        if let Some(outer) = outer {
            self.sender = outer;
        }
        Ok(())
    }

    /// Follows what a user's `.forward` says.
    fn forward(&mut self, folded: String, user: &User, found: &Found) -> Result<(), RouteError> {
        if !self.is_deep_enough(&folded) {
            return Ok(());
        }
        self.walked.insert(folded.clone());
        let outer_user = self.controlling_user.replace(ControllingUser {
            name: self.acting_name.clone(),
            uid: user.uid,
            gid: user.gid,
        });
        let outer_unsafe = std::mem::replace(&mut self.is_unsafe, found.is_writable_by_others);
        self.chain.push(folded.clone());
        self.lines(&folded, found, "forwarding")?;
        self.chain.pop();
        self.is_unsafe = outer_unsafe;
        self.controlling_user = outer_user;
        Ok(())
    }

    /// Follows a list. Where no user's rights count it is read with its owner's, and acts with them.
    fn include(&mut self, path: &str) -> Result<(), RouteError> {
        let name = format!(":include:{path}");
        if self.walked.contains(&name) {
            self.tell(|| format!("{name}... duplicate suppressed"));
            return Ok(());
        }
        if !self.is_deep_enough(&name) {
            return Ok(());
        }
        self.step(&name, &format!("including file {path}"));
        self.walked.insert(name.clone());
        let who = self.controlling_user.as_ref().map(|user| Who {
            uid: user.uid,
            gid: user.gid,
        });
        let found = match self.router.read_list(path, who) {
            Ok(found) => found,
            Err(refusal) if refusal.verdict() == Verdict::Temporary => {
                return Err(RouteError::Lookup {
                    table: name,
                    detail: format!("Cannot open {path}: {refusal}"),
                });
            }
            Err(refusal) => {
                let failure = format!("Cannot open {path}: {refusal}");
                return self.add_end(Target::Include(path.to_owned()), &name, Some(failure));
            }
        };
        self.chain.push(name.clone());
        let outer_user = self.controlling_user.clone();
        if outer_user.is_none() && found.owner.uid != 0 {
            self.controlling_user = Some(ControllingUser {
                name: name.clone(),
                uid: found.owner.uid,
                gid: found.owner.gid,
            });
        }
        let outer_name = std::mem::replace(&mut self.acting_name, name.clone());
        let outer_unsafe = self.is_unsafe;
        self.is_unsafe |= found.is_writable_by_others;
        self.lines(&name, &found, "sending")?;
        self.is_unsafe = outer_unsafe;
        self.acting_name = outer_name;
        self.controlling_user = outer_user;
        self.chain.pop();
        Ok(())
    }

    /// Follows what the lines of a file name.
    fn lines(&mut self, name: &str, found: &Found, verb: &str) -> Result<(), RouteError> {
        let path: Arc<str> = found.path.to_string_lossy().into();
        for (number, text) in found.lines() {
            let outer = self.origin.replace((Arc::clone(&path), number));
            let what = || format!("{verb} to {text}");
            if self.ends.shown.is_empty() {
                self.ends.shown = what();
            }
            self.tell(what);
            let pieces = split(&text).ok_or_else(|| RouteError::Lookup {
                table: path.to_string(),
                detail: format!("line {number}: too many targets"),
            })?;
            self.targets(name, &pieces)?;
            self.origin = outer;
        }
        Ok(())
    }

    /// What stands in one place, last first: those that name the place itself before all others.
    fn targets(&mut self, name: &str, pieces: &[&str]) -> Result<(), RouteError> {
        let mut others = Vec::with_capacity(pieces.len());
        for text in pieces.iter().rev() {
            let target = Target::parse(text);
            let place = match &target {
                Target::Address(address) => match self.router.placed(address)? {
                    Placed::To(place) => Some(place),
                    // What is refused is so when its turn comes, and reported.
                    Placed::Refused(_) => Some(Place::Elsewhere(address.clone())),
                },
                _ => None,
            };
            match place {
                Some(Place::Here(local)) if local.to_lowercase() == name => {
                    // It names itself: the user of that name gets it, if there is one.
                    if self.router.find_user(&local)?.is_some() {
                        self.add(mailbox(&local), text)?;
                    } else {
                        let unknown = UNKNOWN_TEXT.to_owned();
                        self.cut(mailbox(name), Status::NO_USER, unknown);
                    }
                }
                place => others.push((target, text, place)),
            }
        }
        for (target, text, place) in others {
            match (place, target) {
                (Some(Place::Here(local)), _) => self.local(&local, text)?,
                (Some(Place::Elsewhere(address)), _) => {
                    self.add(Target::Address(address), text)?;
                }
                (None, Target::Include(path)) => self.include(&path)?,
                (None, Target::Rest(of)) => self.add(Target::Invalid(of), text)?,
                (None, target) => self.add(target, text)?,
            }
        }
        Ok(())
    }

    /// A mailbox name that something leads to.
    fn local(&mut self, local: &str, text: &str) -> Result<(), RouteError> {
        let folded = local.to_lowercase();
        if let Some(at) = self.chain.iter().position(|name| *name == folded) {
            for name in self.chain.get(at..).unwrap_or_default().to_vec() {
                if self.router.find_user(&name)?.is_some() {
                    return self.add(mailbox(&name), &name);
                }
            }
            // The recipient itself is followed once more, as in Sendmail, whose steps show it.
            let is_again = self.chain.iter().filter(|name| **name == folded).count() > 1;
            if at == 0 && !is_again {
                self.follow(local, text)?;
            } else {
                self.tell(|| format!("{text}... duplicate suppressed"));
                self.cut(mailbox(&folded), LOOP, LOOP_TEXT.to_owned());
            }
            return Ok(());
        }
        if self.walked.contains(&folded) {
            self.tell(|| format!("{text}... duplicate suppressed"));
            return Ok(());
        }
        if !self.settled.contains(&folded) {
            if self.follow(local, text)? {
                return Ok(());
            }
            self.settled.insert(folded);
        }
        self.add(mailbox(local), text)
    }

    /// Adds an end, unless the message has it.
    fn add(&mut self, target: Target, text: &str) -> Result<(), RouteError> {
        self.add_end(target, text, None)
    }

    fn add_end(
        &mut self,
        target: Target,
        text: &str,
        failure: Option<String>,
    ) -> Result<(), RouteError> {
        let controlling_user = match &target {
            Target::Program(_) | Target::File(_) if self.is_unsafe => None,
            Target::Program(_) | Target::File(_) => {
                let user = self.controlling_user.clone().unwrap_or_else(|| {
                    let Who { uid, gid } = self.router.default_user;
                    let name = self.acting_name.clone();
                    ControllingUser { name, uid, gid }
                });
                Some(user)
            }
            // Whoever's list could not be read is asked again with that user's rights.
            Target::Include(_) => self.controlling_user.clone(),
            _ => None,
        };
        let key = self.router.key_acting(&target, controlling_user.as_ref());
        let key = self.taken.fingerprint(&key);
        if self.taken.keys.contains(&key) || !self.seen.insert(key) {
            self.tell(|| format!("{text}... duplicate suppressed"));
            return Ok(());
        }
        if self.ends.targets.len() + self.ends.recipients.len() >= EXPANSION_MAX {
            return Err(RouteError::Lookup {
                table: self.chain.first().cloned().unwrap_or_default(),
                detail: format!("leads to more than {EXPANSION_MAX} recipients"),
            });
        }
        let sender = self.sender.clone();
        if let Wanted::Recipients(of) = self.wanted {
            if let Some(why) = failure {
                let (count, first) = &mut self.ends.failures;
                *count += 1;
                first.get_or_insert_with(|| format!("{text}... {why}"));
            }
            let new = recipient(of, target, text, controlling_user, sender);
            self.ends.recipients.push(new);
            return Ok(());
        }
        self.ends.targets.push(End {
            target,
            text: text.to_owned(),
            controlling_user,
            origin: self.origin.clone(),
            failure,
            via: None,
        });
        Ok(())
    }

    /// Ends a branch that leads nowhere. `stub` stays as an end beside others, so that its failure is reported.
    fn cut(&mut self, stub: Target, status: Status, text: String) {
        if self.ends.broken.is_none() {
            self.ends.broken = Some((status, text));
            self.stub = Some(stub);
        }
    }
}

impl Router {
    /// A list, read.
    fn read_list(&self, path: &str, who: Option<Who>) -> Result<Found, Refusal> {
        let path = Path::new(path);
        let text = (self.read_as)(&ReadRequest {
            path,
            purpose: Purpose::Include,
            who,
            lenience: self.lenience.include,
            trusted: self.options.sandbox.as_deref(),
        })?;
        Ok(Found::new(path, text))
    }

    /// The envelope sender of a list that has an owner: what `owner-NAME` leads to if that is one address, else
    /// `owner-NAME` itself; the owner of an owner is `owner-owner`. Source: aliases(5), op.me 4.7.
    fn owner_of_list(&self, name: &str) -> Result<Option<String>, RouteError> {
        let owner = if name.starts_with("owner-") {
            "owner-owner".to_owned()
        } else {
            format!("owner-{name}")
        };
        let Some(value) = self.alias(&owner)? else {
            return Ok(None);
        };
        let single = match Target::parse(&value) {
            Target::Address(address) if !value.contains([',', ':', '/', '|', '"']) => Some(address),
            _ => None,
        };
        let address = single.unwrap_or_else(|| Address::from_parts(quote_local(&owner), None));
        Ok(Some(match address.domain() {
            Some(_) => address.to_string(),
            None => format!("{address}@{}", self.host_name),
        }))
    }
}

/// The recipient that replaces another at the end of a walk.
fn recipient(
    of: &Recipient,
    target: Target,
    text: &str,
    controlling_user: Option<ControllingUser>,
    sender: Option<String>,
) -> Recipient {
    Recipient {
        controlling_user: match target {
            Target::Program(_) | Target::File(_) => controlling_user,
            _ => controlling_user.or_else(|| of.controlling_user.clone()),
        },
        target: match target {
            Target::Program(_) => text.to_owned(),
            target => target.to_text(),
        },
        has_brackets: false,
        parent: None,
        notify: of.notify,
        original_recipient: of.original_recipient.clone(),
        sender: sender.or_else(|| of.sender.clone()),
    }
}

/// The end that a mailbox name is.
fn mailbox(local: &str) -> Target {
    Target::Address(Address::from_parts(quote_local(local), None))
}

/// What a list that can't be opened comes to when its turn is to be delivered.
pub(super) fn unopened(text: &str) -> Route {
    Route::Failed {
        status: LIST_PROBLEM,
        text: if text.is_empty() {
            UNKNOWN_TEXT.to_owned()
        } else {
            text.to_owned()
        },
    }
}
