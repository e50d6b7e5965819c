//! Updates of messages with very many recipients, in pieces that the journal takes (SPOOL 3).
//!
//! An expansion that is too large is recorded as far as it fits, with a recipient that stands for the rest and is the
//! next to be expanded; nothing is attempted before the rest is recorded too. After a crash between two pieces the list is
//! walked again, which does not find what is recorded already, so that nothing is repeated. Outcomes that no report is made of are recorded ahead of the others;
//! failures beyond what one report holds wait for the next run, which is due at once. Pure.
//! Limits: what the spool's `update_bytes_max` gives.

use std::collections::VecDeque;
use std::vec::IntoIter;

use super::report::Result;
use crate::envelope::{Delivery, Outcome, Recipient, RecipientId};
use crate::route::rest_of;
use crate::spool::StoredMessage;

/// What a recipient takes in a record besides its texts, and in the index's frame.
const RECIPIENT_BYTES: usize = 64;
/// What an outcome takes besides its texts, with its frame.
const OUTCOME_BYTES: usize = 128;
/// What a recipient takes in a report, with its outcome's texts, at most.
const REPORTED_BYTES: usize = 2048;

/// What aliases of a message led to and is not recorded yet.
pub(super) struct Unrecorded {
    /// By the recipient that is replaced: its number, itself, and whom it leads to.
    expansions: VecDeque<(RecipientId, Recipient, IntoIter<Recipient>)>,
    /// How many recipients the message has, those of recorded expansions included.
    known: u32,
}

impl Unrecorded {
    pub(super) fn new(
        expansions: Vec<(RecipientId, Vec<Recipient>)>,
        message: &StoredMessage,
    ) -> Self {
        let replaced = |id: RecipientId| {
            let at = usize::try_from(id.0).ok()?;
            message.recipients.get(at).map(|(recipient, _)| recipient)
        };
        Self {
            known: u32::try_from(message.recipients.len()).unwrap_or(u32::MAX),
            expansions: expansions
                .into_iter()
                .filter_map(|(id, children)| {
                    Some((id, replaced(id)?.clone(), children.into_iter()))
                })
                .collect(),
        }
    }

    /// As much as one update holds; `None` when all is recorded. The next call takes the update for recorded, and goes on
    /// with the recipient that stands for the rest, whose number follows from the order in which the spool gives them.
    pub(super) fn next_update(
        &mut self,
        bytes_max: usize,
    ) -> Option<Vec<(RecipientId, Vec<Recipient>)>> {
        let mut room = bytes_max;
        let mut taken = Vec::new();
        while let Some((id, replaced, mut children)) = self.expansions.pop_front() {
            let mut count = 0;
            for child in children.as_slice() {
                let Some(left) = room.checked_sub(bytes_of(child)) else {
                    break;
                };
                room = left;
                count += 1;
            }
            let is_whole = count == children.len();
            // At least one goes into the first, so that each piece comes further than the one before.
            if !is_whole && count == 0 && !taken.is_empty() {
                self.expansions.push_front((id, replaced, children));
                break;
            }
            let mut piece: Vec<Recipient> = children.by_ref().take(count.max(1)).collect();
            for child in &mut piece {
                child.parent = Some(id);
            }
            if !is_whole {
                let mut rest = rest_of(&replaced);
                rest.parent = Some(id);
                piece.push(rest.clone());
                let last = u32::try_from(piece.len()).unwrap_or(u32::MAX);
                let rest_id = RecipientId(self.known.saturating_add(last).saturating_sub(1));
                self.expansions.push_front((rest_id, rest, children));
            }
            let added = u32::try_from(piece.len()).unwrap_or(u32::MAX);
            self.known = self.known.saturating_add(added);
            taken.push((id, piece));
            if !is_whole {
                break;
            }
        }
        (!taken.is_empty()).then_some(taken)
    }
}

fn bytes_of(recipient: &Recipient) -> usize {
    let text = |text: &Option<String>| text.as_ref().map_or(0, String::len);
    let user = recipient.controlling_user.as_ref();
    RECIPIENT_BYTES
        + recipient.target.len()
        + text(&recipient.original_recipient)
        + text(&recipient.sender)
        + user.map_or(0, |user| user.name.len())
}

/// The results of a run, in pieces.
pub(super) struct Results {
    /// Outcomes to be recorded before the others; no failures.
    pub(super) early: Vec<Vec<(RecipientId, Outcome)>>,
    /// What is recorded last, with the reports.
    pub(super) results: Vec<Result>,
    /// Whether failures were left out, to be found again by the next run.
    pub(super) is_cut: bool,
}

impl Results {
    /// Cuts results so that no piece is larger than an update may be.
    pub(super) fn new(mut results: Vec<Result>, bytes_max: usize) -> Self {
        let reported_max = (bytes_max / REPORTED_BYTES).max(1);
        if results.len() <= reported_max {
            return Self {
                early: Vec::new(),
                results,
                is_cut: false,
            };
        }
        // Failures last: they are what reports are made of.
        let is_failure = |result: &Result| result.outcome.result == Delivery::Failed;
        results.sort_by_key(is_failure);
        let failures = results.iter().filter(|result| is_failure(result)).count();
        let split = if failures == 0 {
            results.len() - reported_max
        } else {
            results.len() - failures
        };
        let mut rest = results.split_off(split);
        let is_cut = rest.len() > reported_max;
        rest.truncate(reported_max);
        let mut early: Vec<Vec<(RecipientId, Outcome)>> = Vec::new();
        let mut room = 0_usize;
        for Result { id, outcome, .. } in results {
            let bytes = OUTCOME_BYTES
                + outcome.text.len()
                + outcome.reply.as_ref().map_or(0, |reply| reply.len())
                + outcome.relay.len();
            match (room.checked_sub(bytes), early.last_mut()) {
                (Some(left), Some(piece)) => {
                    room = left;
                    piece.push((id, outcome));
                }
                _ => {
                    room = bytes_max.saturating_sub(bytes);
                    early.push(vec![(id, outcome)]);
                }
            }
        }
        Self {
            early,
            results: rest,
            is_cut,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::ReversePath;
    use crate::deliver::dsn::Fate;
    use crate::envelope::{Envelope, MessageId, RecipientState};
    use crate::status::Status;

    fn message(targets: &[&str]) -> StoredMessage {
        let pending = RecipientState::Pending {
            last: None,
            tries: 0,
        };
        let recipients: Vec<Recipient> = targets.iter().map(|t| Recipient::new(*t)).collect();
        StoredMessage {
            id: MessageId::from_number(1),
            envelope: Envelope::new(ReversePath::Null, recipients.clone()),
            content_bytes: 1,
            recipients: recipients
                .into_iter()
                .map(|recipient| (recipient, pending.clone()))
                .collect(),
            due_unix_ms: 0,
            is_held: false,
            hold_reason: None,
            has_warned: false,
            is_leased: false,
        }
    }

    fn children(count: usize) -> Vec<Recipient> {
        (0..count)
            .map(|at| Recipient::new(format!("m{at:04}")))
            .collect()
    }

    #[test]
    fn what_does_not_fit_is_left_to_one_that_stands_for_the_rest() {
        let message = message(&["list", "other"]);
        let each = RECIPIENT_BYTES + 5;
        let expansions = || {
            vec![
                (RecipientId(0), children(10)),
                (RecipientId(1), children(2)),
            ]
        };
        let updates = |bytes_max: usize| {
            let mut unrecorded = Unrecorded::new(expansions(), &message);
            let mut updates = Vec::new();
            while let Some(update) = unrecorded.next_update(bytes_max) {
                updates.push(update);
            }
            updates
        };
        let shape = |update: &Vec<(RecipientId, Vec<Recipient>)>| {
            let of = |(id, children): &(RecipientId, Vec<Recipient>)| (id.0, children.len());
            update.iter().map(of).collect::<Vec<_>>()
        };
        let shapes = |bytes_max| updates(bytes_max).iter().map(shape).collect::<Vec<_>>();
        assert_eq!(shapes(each * 12), [vec![(0, 10), (1, 2)]]);
        // Two of the envelope, ten and one and the rest, which is number 13.
        assert_eq!(shapes(each * 11), [vec![(0, 10), (1, 2)], vec![(13, 1)]]);
        let cut = updates(each * 11);
        assert_eq!(cut[0][1].1[1].target, ":rest:other");
        assert_eq!(cut[1][0].1[0].target, "m0001");
        assert_eq!(cut[1][0].1[0].parent, Some(RecipientId(13)));
        assert_eq!(
            shapes(each * 4),
            [vec![(0, 5)], vec![(6, 5)], vec![(11, 2), (1, 2)]]
        );
        let cut = updates(each * 4);
        assert_eq!(cut[0][0].1[4].target, ":rest:list");
        assert_eq!(cut[1][0].1[4].target, ":rest:list");
        assert_eq!(cut[1][0].1[4].parent, Some(RecipientId(6)));
        // However small the room, it goes on, and nobody is left out.
        for bytes_max in [1, each, each * 3, each * 7] {
            let mut targets: Vec<String> = updates(bytes_max)
                .into_iter()
                .flatten()
                .flat_map(|(_, children)| children)
                .map(|child| child.target)
                .filter(|target| !target.starts_with(":rest:"))
                .collect();
            assert_eq!(targets.len(), 12, "{bytes_max}");
            targets.sort();
            targets.dedup();
            assert_eq!(targets.len(), 10);
        }
        assert!(
            Unrecorded::new(Vec::new(), &message)
                .next_update(1)
                .is_none()
        );
    }

    #[test]
    fn failures_come_last_and_no_piece_is_too_large() {
        let result = |at: u32, delivery| Result {
            id: RecipientId(at),
            outcome: Outcome::new(delivery, Status::OK, "local", "x"),
            fate: Fate::Delivered,
        };
        let mixed = |count: u32| -> Vec<Result> {
            (0..count)
                .map(|at| match at % 3 {
                    0 => result(at, Delivery::Failed),
                    _ => result(at, Delivery::Deferred),
                })
                .collect()
        };
        let room = 10 * REPORTED_BYTES;
        let few = Results::new(mixed(10), room);
        assert!(few.early.is_empty() && !few.is_cut);
        assert_eq!(few.results.len(), 10);
        let many = Results::new(mixed(3000), room);
        assert!(many.is_cut);
        assert_eq!(many.results.len(), 10);
        let early: Vec<_> = many.early.iter().flatten().collect();
        assert_eq!(early.len(), 2000);
        assert!(early.iter().all(|(_, o)| o.result != Delivery::Failed));
        let size = |piece: &Vec<(RecipientId, Outcome)>| piece.len() * (OUTCOME_BYTES + 1);
        assert!(many.early.iter().all(|piece| size(piece) <= room));
        let none = (0..25).map(|at| result(at, Delivery::Deferred)).collect();
        let none = Results::new(none, room);
        assert_eq!((none.early.concat().len(), none.results.len()), (15, 10));
        assert!(!none.is_cut);
    }
}
