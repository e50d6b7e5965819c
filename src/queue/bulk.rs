//! Updates of messages with very many recipients, in pieces that the journal takes (SPOOL 3).
//!
//! An expansion that is too large is recorded as far as it fits, with a recipient that stands for the rest and is the
//! next to be expanded; nothing is attempted before the rest is recorded too. After a crash between two pieces the list is
//! walked again, which does not find what is recorded already, so that nothing is repeated. Outcomes that no report is
//! made of are recorded ahead of the others; what is more than one report holds goes into several. Pure.
//! Limits: what the spool's `update_bytes_max` gives.

use std::collections::VecDeque;
use std::vec::IntoIter;

use super::report::Result;
use crate::envelope::{Recipient, RecipientId};
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

/// The results of a run in pieces, none larger than an update may be with the reports that are made of it. There is at
/// least one; what `is_told` names comes last, so that it is in as few reports as may be.
pub(super) fn pieces(
    mut results: Vec<Result>,
    bytes_max: usize,
    is_told: impl Fn(&Result) -> bool,
) -> Vec<Vec<Result>> {
    results.sort_by_cached_key(&is_told);
    let mut pieces = vec![Vec::new()];
    let mut room = bytes_max;
    for result in results {
        let outcome = &result.outcome;
        let bytes = match is_told(&result) {
            true => REPORTED_BYTES,
            false => {
                OUTCOME_BYTES
                    + outcome.text.len()
                    + outcome.reply.as_ref().map_or(0, |reply| reply.len())
                    + outcome.relay.len()
            }
        };
        match (room.checked_sub(bytes), pieces.last_mut()) {
            (Some(left), Some(piece)) => {
                room = left;
                piece.push(result);
            }
            // The first takes what there is, however small the room.
            (None, Some(piece)) if piece.is_empty() => {
                room = 0;
                piece.push(result);
            }
            _ => {
                room = bytes_max.saturating_sub(bytes);
                pieces.push(vec![result]);
            }
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::ReversePath;
    use crate::deliver::dsn::Fate;
    use crate::envelope::{Delivery, Envelope, MessageId, Outcome, RecipientState};
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
    fn what_is_told_comes_last_and_no_piece_is_too_large() {
        let result = |at: u32| Result {
            id: RecipientId(at),
            outcome: Outcome::new(Delivery::Delivered, Status::OK, "local", "x"),
            fate: Fate::Delivered,
        };
        let results = |count: u32| (0..count).map(result).collect::<Vec<_>>();
        let is_told = |result: &Result| result.id.0.is_multiple_of(3);
        let room = 10 * REPORTED_BYTES;
        let few = pieces(results(10), room, is_told);
        assert_eq!(few.iter().map(Vec::len).collect::<Vec<_>>(), [10]);
        let many = pieces(results(3000), room, is_told);
        let size = |piece: &Vec<Result>| -> usize {
            let bytes = |r| {
                if is_told(r) {
                    REPORTED_BYTES
                } else {
                    OUTCOME_BYTES + 1
                }
            };
            piece.iter().map(bytes).sum()
        };
        assert!(many.iter().all(|piece| size(piece) <= room));
        // Each fills what one takes.
        assert!(
            many.iter()
                .rev()
                .skip(1)
                .all(|piece| size(piece) > room - REPORTED_BYTES)
        );
        let told: Vec<bool> = many.iter().flatten().map(is_told).collect();
        assert!(told.is_sorted());
        let mut ids: Vec<u32> = many.iter().flatten().map(|r| r.id.0).collect();
        ids.sort_unstable();
        assert_eq!(ids, (0..3000).collect::<Vec<_>>());
        // Without room each has its own, and without results there is one to end the run with.
        assert_eq!(pieces(results(7), 1, is_told).len(), 7);
        assert_eq!(pieces(Vec::new(), room, is_told).len(), 1);
    }
}
