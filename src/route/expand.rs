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
use std::path::Path;

use super::forward::{Found, Line};
use super::resolve::{LOOP, LOOP_TEXT, Place, UNKNOWN_TEXT};
use super::target::{Target, quote_local, split};
use super::{Route, RouteError, Router};
use crate::address::Address;
use crate::envelope::{ControllingUser, Recipient, RecipientState};
use crate::safe_file::{self, Lenience, Purpose, ReadRequest, Refusal, Who};
use crate::status::{Status, Verdict};
use crate::users::User;

/// Deepest nesting of aliases, whatever `max_alias_recursion` says.
const ALIAS_DEPTH_MAX: usize = 200;
/// Most recipients that one expansion gives.
pub const EXPANSION_MAX: usize = 200_000;
/// 5.2.4, mailing list expansion problem.
pub(super) const LIST_PROBLEM: Status = Status::new(5, 2, 4);

/// The recipients that a message has already, so that nobody gets it twice.
#[derive(Debug, Default)]
pub struct Taken {
    keys: HashSet<String>,
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
            self.keys
                .insert(router.key(&Target::parse(&recipient.target)));
        }
    }

    /// Adds a key; `false` if it was there.
    pub(super) fn take(&mut self, key: String) -> bool {
        self.keys.insert(key)
    }
}

/// One end of a walk.
#[derive(Debug, Clone)]
pub(super) struct End {
    pub(super) target: Target,
    /// With whose rights programs are run and files written; `None`: nobody's in particular.
    pub(super) controlling_user: Option<ControllingUser>,
    /// The envelope sender, if a list on the way has an owner.
    pub(super) sender: Option<String>,
    /// Where it stands, if in a list: `/etc/mail/list: line 6`.
    pub(super) origin: Option<String>,
}

/// What an alias leads to.
#[derive(Debug, Default)]
pub(super) struct Ends {
    /// The ends, duplicates left out.
    pub(super) targets: Vec<End>,
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
        let ends = self.ends_of(local, &recipient.shown(), taken)?;
        Ok(ends.map(|ends| expanded(ends, recipient)))
    }

    /// Expands a list that could not be opened when it was come across, or that became one since.
    pub(super) fn expand_list(
        &self,
        path: &str,
        recipient: &Recipient,
        taken: &mut Taken,
    ) -> Result<Route, RouteError> {
        let mut walk = Walk::new(self, taken, &recipient.shown());
        walk.controlling_user
            .clone_from(&recipient.controlling_user);
        if let Err(error) = walk.include(path) {
            taken.keys = walk.taken;
            return Err(error);
        }
        Ok(expanded(walk.end(taken), recipient))
    }

    /// Walks the tree under a name of this host, `shown` being how the log shows the recipient. `None` if the name is no
    /// alias and its user forwards nothing.
    pub(super) fn ends_of(
        &self,
        local: &str,
        shown: &str,
        taken: &mut Taken,
    ) -> Result<Option<Ends>, RouteError> {
        let mut walk = Walk::new(self, taken, shown);
        match walk.follow(local) {
            Ok(true) => Ok(Some(walk.end(taken))),
            Ok(false) => {
                taken.keys = walk.taken;
                Ok(None)
            }
            Err(error) => {
                taken.keys = walk.taken;
                Err(error)
            }
        }
    }
}

/// The route that a walk's ends are.
fn expanded(ends: Ends, recipient: &Recipient) -> Route {
    if ends.targets.is_empty()
        && let Some((status, text)) = ends.broken
    {
        return Route::Failed { status, text };
    }
    let children = ends
        .targets
        .into_iter()
        .map(|end| Recipient {
            target: end.target.to_text(),
            has_brackets: false,
            parent: None,
            controlling_user: end
                .controlling_user
                .or_else(|| recipient.controlling_user.clone()),
            notify: recipient.notify,
            original_recipient: recipient.original_recipient.clone(),
            sender: end.sender.or_else(|| recipient.sender.clone()),
        })
        .collect();
    Route::Expand {
        children,
        shown: ends.shown,
    }
}

/// One walk. What it finds is added to `taken` only when it has come to its end.
struct Walk<'r> {
    router: &'r Router,
    taken: HashSet<String>,
    /// How the log shows the recipient that all comes from.
    shown: String,
    depth_max: usize,
    /// Keys of the ends found.
    seen: HashSet<String>,
    /// Names and lists followed.
    walked: HashSet<String>,
    /// The names and lists that led to where we are.
    chain: Vec<String>,
    /// Whose rights count where we are.
    controlling_user: Option<ControllingUser>,
    /// The owner of the innermost list that has one.
    sender: Option<String>,
    /// Where we are in a list.
    origin: Option<String>,
    /// What stands for the first branch that was cut off.
    stub: Option<Target>,
    ends: Ends,
}

impl<'r> Walk<'r> {
    fn new(router: &'r Router, taken: &mut Taken, shown: &str) -> Self {
        Self {
            router,
            // Lent for the walk, and given back however it ends.
            taken: std::mem::take(&mut taken.keys),
            shown: shown.to_owned(),
            depth_max: usize::try_from(router.options.max_alias_recursion)
                .unwrap_or(ALIAS_DEPTH_MAX)
                .clamp(1, ALIAS_DEPTH_MAX),
            seen: HashSet::new(),
            walked: HashSet::new(),
            chain: Vec::new(),
            controlling_user: None,
            sender: None,
            origin: None,
            stub: None,
            ends: Ends::default(),
        }
    }

    fn end(self, taken: &mut Taken) -> Ends {
        let mut ends = self.ends;
        if !ends.targets.is_empty() {
            ends.targets.extend(self.stub.map(|target| End {
                target,
                controlling_user: None,
                sender: None,
                origin: None,
            }));
        }
        taken.keys = self.taken;
        taken.keys.extend(self.seen);
        ends
    }

    fn step(&mut self, name: &str, what: String) {
        if self.ends.shown.is_empty() {
            self.ends.shown.clone_from(&what);
        }
        self.ends.steps.push(format!("{name}... {what}"));
    }

    /// Follows a mailbox name that is an alias, or whose user forwards. `false` if it is neither.
    fn follow(&mut self, local: &str) -> Result<bool, RouteError> {
        let folded = local.to_lowercase();
        if let Some(value) = self.router.alias_or_default(&folded)? {
            self.alias(folded, &value)?;
            return Ok(true);
        }
        let Some((user, detail)) = self.router.find_user(local)? else {
            return Ok(false);
        };
        let Some(found) = self.router.forward_of(&user, detail.as_deref())? else {
            return Ok(false);
        };
        self.forward(local, folded, &user, &found)?;
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
    fn alias(&mut self, name: String, value: &str) -> Result<(), RouteError> {
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
        self.step(&name, format!("aliased to {value}"));
        self.walked.insert(name.clone());
        let owner = self.router.owner_of_list(&name)?;
        let outer = owner.map(|owner| self.sender.replace(owner));
        self.chain.push(name.clone());
        let targets: Vec<Target> = targets.into_iter().map(Target::parse).collect();
        self.targets(&name, targets)?;
        self.chain.pop();
        if let Some(outer) = outer {
            self.sender = outer;
        }
        Ok(())
    }

    /// Follows what a user's `.forward` says.
    fn forward(
        &mut self,
        local: &str,
        folded: String,
        user: &User,
        found: &Found,
    ) -> Result<(), RouteError> {
        if !self.is_deep_enough(&folded) {
            return Ok(());
        }
        self.walked.insert(folded.clone());
        let outer = self.controlling_user.replace(ControllingUser {
            name: self.shown.clone(),
            uid: user.uid,
            gid: user.gid,
        });
        self.chain.push(folded.clone());
        for Line { text, .. } in &found.lines {
            self.step(local, format!("forwarding to {text}"));
            let targets = self.pieces(&found.path, text)?;
            self.targets(&folded, targets)?;
        }
        self.chain.pop();
        self.controlling_user = outer;
        Ok(())
    }

    /// The targets on a line of a file.
    fn pieces(&self, path: &Path, text: &str) -> Result<Vec<Target>, RouteError> {
        let pieces = split(text).ok_or_else(|| RouteError::Lookup {
            table: path.display().to_string(),
            detail: "too many targets on a line".to_owned(),
        })?;
        Ok(pieces.into_iter().map(Target::parse).collect())
    }

    /// Follows a list. With no rights of a user's the list is read with this host's own, and acts with its owner's.
    fn include(&mut self, path: &str) -> Result<(), RouteError> {
        let name = format!(":include:{path}");
        if self.chain.contains(&name) || self.walked.contains(&name) || !self.is_deep_enough(&name)
        {
            return Ok(());
        }
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
                let text = format!("{name}... Cannot open {path}: {refusal}");
                self.cut(Target::Include(path.to_owned()), LIST_PROBLEM, text);
                return Ok(());
            }
        };
        self.step(&name, format!("including file {path}"));
        self.walked.insert(name.clone());
        self.chain.push(name.clone());
        let outer_user = self.controlling_user.clone();
        if outer_user.is_none() && found.owner.uid != 0 {
            self.controlling_user = Some(ControllingUser {
                name: name.clone(),
                uid: found.owner.uid,
                gid: found.owner.gid,
            });
        }
        let outer_origin = self.origin.take();
        for Line { number, text } in &found.lines {
            self.step(&name, format!("sending to {text}"));
            self.origin = Some(format!("{path}: line {number}"));
            let targets = self.pieces(&found.path, text)?;
            self.targets(&name, targets)?;
        }
        self.origin = outer_origin;
        self.controlling_user = outer_user;
        self.chain.pop();
        Ok(())
    }

    /// What stands in one place, last first: those that name the place itself before all others.
    fn targets(&mut self, name: &str, targets: Vec<Target>) -> Result<(), RouteError> {
        let mut others = Vec::with_capacity(targets.len());
        for target in targets.into_iter().rev() {
            let place = match &target {
                Target::Address(address) => Some(self.router.place(address)),
                _ => None,
            };
            match place {
                Some(Place::Here(local)) if local.to_lowercase() == name => {
                    // It names itself: the user of that name gets it.
                    if self.router.find_user(&local)?.is_some() {
                        self.add(mailbox(&local))?;
                    } else {
                        self.cut(mailbox(name), LOOP, LOOP_TEXT.to_owned());
                    }
                }
                place => others.push((target, place)),
            }
        }
        for (target, place) in others {
            match (place, target) {
                (Some(Place::Here(local)), _) => self.local(&local)?,
                (Some(Place::Elsewhere(address)), _) => self.add(Target::Address(address))?,
                (None, Target::Include(path)) => self.include(&path)?,
                (None, target) => self.add(target)?,
            }
        }
        Ok(())
    }

    /// A mailbox name that something leads to.
    fn local(&mut self, local: &str) -> Result<(), RouteError> {
        let folded = local.to_lowercase();
        if let Some(at) = self.chain.iter().position(|name| *name == folded) {
            for name in self.chain.get(at..).unwrap_or_default().to_vec() {
                if self.router.find_user(&name)?.is_some() {
                    return self.add(mailbox(&name));
                }
            }
            self.cut(mailbox(&folded), LOOP, LOOP_TEXT.to_owned());
            return Ok(());
        }
        if self.walked.contains(&folded) || self.follow(local)? {
            return Ok(());
        }
        self.add(mailbox(local))
    }

    /// Adds an end, unless the message has it.
    fn add(&mut self, target: Target) -> Result<(), RouteError> {
        let mut key = self.router.key(&target);
        let is_special = matches!(target, Target::Program(_) | Target::File(_));
        let controlling_user = match &self.controlling_user {
            Some(user) if is_special => {
                // The same command of two users is two programs.
                key = format!("{key}\u{0}{}", user.uid);
                Some(user.clone())
            }
            None if is_special => {
                let Who { uid, gid } = self.router.default_user;
                let name = self.shown.clone();
                Some(ControllingUser { name, uid, gid })
            }
            _ => None,
        };
        if self.taken.contains(&key) || !self.seen.insert(key) {
            return Ok(());
        }
        if self.ends.targets.len() >= EXPANSION_MAX {
            return Err(RouteError::Lookup {
                table: self.chain.first().cloned().unwrap_or_default(),
                detail: format!("leads to more than {EXPANSION_MAX} recipients"),
            });
        }
        self.ends.targets.push(End {
            target,
            controlling_user,
            sender: self.sender.clone(),
            origin: self.origin.clone(),
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
    /// The lines of a list.
    fn read_list(&self, path: &str, who: Option<Who>) -> Result<Found, Refusal> {
        let path = Path::new(path);
        let text = safe_file::read(&ReadRequest {
            path,
            purpose: Purpose::Include,
            who,
            lenience: Lenience::default(),
            trusted: self.options.sandbox.as_deref(),
        })?;
        Ok(Found::new(path, text))
    }

    /// The envelope sender of a list that has an owner: what `owner-NAME` leads to if that is one address, else
    /// `owner-NAME` itself. Source: aliases(5).
    fn owner_of_list(&self, name: &str) -> Result<Option<String>, RouteError> {
        if name.starts_with("owner-") || name.ends_with("-request") {
            return Ok(None);
        }
        let owner = format!("owner-{name}");
        let Some(value) = self.alias(&owner)? else {
            return Ok(None);
        };
        let single = match split(&value).unwrap_or_default().as_slice() {
            [only] => match Target::parse(only) {
                Target::Address(address) => Some(address),
                _ => None,
            },
            _ => None,
        };
        let address = single.unwrap_or_else(|| Address::from_parts(quote_local(&owner), None));
        Ok(Some(match address.domain() {
            Some(_) => address.to_string(),
            None => format!("{address}@{}", self.host_name),
        }))
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
