//! Aliases: one recipient to many, all the way to the ends.
//!
//! The whole tree under an alias is walked in one go, so that an expansion is one record in the journal and a crash
//! can't repeat half of it. If a lookup on the way does not work nothing is expanded and the recipient waits (I9).
//!
//! As in Sendmail: names are looked up without case; the targets of one alias are taken last first; an alias that
//! names itself delivers to the user of that name; a loop over several aliases is broken at the first of them that is
//! a user, else reported as `aliasing/forwarding loop broken`; an address that the message has already is left out.
//! Limits: the option `max_alias_recursion`, never more than [`ALIAS_DEPTH_MAX`]; [`EXPANSION_MAX`].
//! Source: aliases(5), op.me 4.7.

#![deny(clippy::indexing_slicing)]

use std::collections::HashSet;

use super::resolve::{LOOP, LOOP_TEXT, Place};
use super::target::{Target, split};
use super::{Route, RouteError, Router};
use crate::address::Address;
use crate::envelope::{Recipient, RecipientState};

/// Deepest nesting of aliases, whatever `max_alias_recursion` says.
const ALIAS_DEPTH_MAX: usize = 200;
/// Most recipients that one expansion gives.
pub const EXPANSION_MAX: usize = 200_000;

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

/// What an alias leads to.
#[derive(Debug, Default)]
pub(super) struct Ends {
    /// The ends, duplicates left out.
    pub(super) targets: Vec<Target>,
    /// What was looked up on the way: `info... aliased to alice, bob`.
    pub(super) steps: Vec<String>,
    /// The value of the first alias.
    pub(super) value: String,
    /// Why a branch was cut off, if one was.
    pub(super) broken: Option<String>,
}

impl Router {
    /// Expands a mailbox name of this host. `None` if it is no alias.
    pub(super) fn expand(
        &self,
        local: &str,
        recipient: &Recipient,
        taken: &mut Taken,
    ) -> Result<Option<Route>, RouteError> {
        let Some(ends) = self.ends_of(local, taken)? else {
            return Ok(None);
        };
        if ends.targets.is_empty()
            && let Some(text) = ends.broken
        {
            return Ok(Some(Route::Failed { status: LOOP, text }));
        }
        let children = ends
            .targets
            .iter()
            .map(|target| Recipient {
                target: target.to_text(),
                has_brackets: false,
                parent: None,
                controlling_user: recipient.controlling_user.clone(),
                notify: recipient.notify,
                original_recipient: recipient.original_recipient.clone(),
            })
            .collect();
        Ok(Some(Route::Expand {
            children,
            shown: format!("aliased to {}", ends.value),
        }))
    }

    /// Walks the tree under an alias. `None` if the name is no alias.
    pub(super) fn ends_of(
        &self,
        local: &str,
        taken: &mut Taken,
    ) -> Result<Option<Ends>, RouteError> {
        let folded = local.to_lowercase();
        let Some(value) = self.alias_or_default(&folded)? else {
            return Ok(None);
        };
        let depth_max = usize::try_from(self.options.max_alias_recursion)
            .unwrap_or(ALIAS_DEPTH_MAX)
            .clamp(1, ALIAS_DEPTH_MAX);
        let mut walk = Walk {
            router: self,
            taken,
            depth_max,
            seen: HashSet::new(),
            walked: HashSet::new(),
            chain: Vec::new(),
            stub: None,
            ends: Ends {
                value: value.clone(),
                ..Ends::default()
            },
        };
        walk.alias(folded, &value)?;
        let Walk {
            seen,
            stub,
            mut ends,
            ..
        } = walk;
        if !ends.targets.is_empty() {
            ends.targets.extend(stub);
        }
        taken.keys.extend(seen);
        Ok(Some(ends))
    }
}

/// One walk. What it finds is added to `taken` only when it has come to its end.
struct Walk<'r> {
    router: &'r Router,
    taken: &'r Taken,
    depth_max: usize,
    /// Keys of the ends found.
    seen: HashSet<String>,
    /// Aliases followed.
    walked: HashSet<String>,
    /// The aliases that led to where we are.
    chain: Vec<String>,
    /// What stands for the first branch that was cut off.
    stub: Option<Target>,
    ends: Ends,
}

impl Walk<'_> {
    /// Follows one alias, whose name is in lower case.
    fn alias(&mut self, name: String, value: &str) -> Result<(), RouteError> {
        if self.chain.len() >= self.depth_max {
            let text = format!(
                "{LOOP_TEXT} ({} aliases deep; {} max)",
                self.chain.len() + 1,
                self.depth_max
            );
            // No mailbox: the name may also be a user's, who is not meant.
            self.cut(Target::Invalid(format!("{name}: {text}")), text);
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
        self.ends
            .steps
            .push(format!("{name}... aliased to {value}"));
        self.walked.insert(name.clone());
        self.chain.push(name.clone());
        let mut others = Vec::with_capacity(targets.len());
        for target in targets.into_iter().rev().map(Target::parse) {
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
                        self.cut(mailbox(&name), LOOP_TEXT.to_owned());
                    }
                }
                place => others.push((target, place)),
            }
        }
        for (target, place) in others {
            match place {
                Some(Place::Here(local)) => self.local(&local)?,
                Some(Place::Elsewhere(address)) => self.add(Target::Address(address))?,
                None => self.add(target)?,
            }
        }
        self.chain.pop();
        Ok(())
    }

    /// A mailbox name on the right side of an alias.
    fn local(&mut self, local: &str) -> Result<(), RouteError> {
        let folded = local.to_lowercase();
        if let Some(at) = self.chain.iter().position(|name| *name == folded) {
            for name in self.chain.get(at..).unwrap_or_default().to_vec() {
                if self.router.find_user(&name)?.is_some() {
                    return self.add(mailbox(&name));
                }
            }
            self.cut(mailbox(&folded), LOOP_TEXT.to_owned());
            return Ok(());
        }
        if self.walked.contains(&folded) {
            return Ok(());
        }
        match self.router.alias_or_default(&folded)? {
            Some(value) => self.alias(folded, &value),
            None => self.add(mailbox(local)),
        }
    }

    /// Adds an end, unless the message has it.
    fn add(&mut self, target: Target) -> Result<(), RouteError> {
        let key = self.router.key(&target);
        if self.taken.keys.contains(&key) || !self.seen.insert(key) {
            return Ok(());
        }
        if self.ends.targets.len() >= EXPANSION_MAX {
            return Err(RouteError::Lookup {
                table: format!("alias {}", self.chain.first().map_or("", String::as_str)),
                detail: format!("leads to more than {EXPANSION_MAX} recipients"),
            });
        }
        self.ends.targets.push(target);
        Ok(())
    }

    /// Ends a branch that leads nowhere. `stub` stays as an end beside others, so that its failure is reported.
    fn cut(&mut self, stub: Target, text: String) {
        if self.ends.broken.is_none() {
            self.ends.broken = Some(text);
            self.stub = Some(stub);
        }
    }
}

/// The end that a mailbox name is.
fn mailbox(local: &str) -> Target {
    Target::Address(Address::from_parts(super::target::quote_local(local), None))
}
