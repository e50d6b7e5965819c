//! What the outside knows of a spool, and the check of a recovered one against it.
//!
//! What was asked for may have happened; what was acknowledged must have.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::drop_file::{self, DropFolder};
use super::super::sim_storage::SimStorage;
use super::super::{RecoveryReport, Spool, StoredMessage};
use crate::envelope::{Delivery, MessageId, RecipientState};

/// Largest drop file of the tests.
pub(super) const DROP_BYTES_MAX: u64 = 1 << 20;

/// What the outside knows of a message.
#[derive(Debug, Clone, Default)]
pub(super) struct Known {
    pub(super) content: Arc<[u8]>,
    pub(super) recipients: usize,
    /// The commit was acknowledged.
    pub(super) is_accepted: bool,
    /// The expansion was acknowledged; how many children.
    pub(super) expanded: Option<usize>,
    /// An expansion of so many children was asked for.
    pub(super) expansion_asked: Option<usize>,
    /// Outcomes acknowledged by recipient.
    pub(super) outcomes: BTreeMap<u32, Delivery>,
    /// Outcomes asked for, acknowledged or not.
    pub(super) asked: BTreeMap<u32, Delivery>,
    /// The end of the message was asked for, and acknowledged.
    pub(super) end_asked: bool,
    pub(super) is_ended: bool,
    /// The operator wants it gone, without a report.
    pub(super) removal_asked: bool,
    pub(super) is_held: Option<bool>,
    /// How many changes of the hold were asked for.
    pub(super) holds_asked: usize,
    /// The DSN that must appear together with the failure.
    pub(super) report: Option<MessageId>,
    /// An attempt was begun.
    pub(super) is_attempted: bool,
}

/// What the outside knows of a drop file.
#[derive(Debug, Clone, Default)]
pub(super) struct Dropped {
    pub(super) content: Arc<[u8]>,
    /// The submitter has exited with 0.
    pub(super) is_submitted: bool,
    /// The message it has become, as far as the owner of the queue has said.
    pub(super) id: Option<MessageId>,
}

/// All that the outside knows.
#[derive(Debug, Clone, Default)]
pub(super) struct Model {
    pub(super) messages: BTreeMap<MessageId, Known>,
    pub(super) drops: BTreeMap<u64, Dropped>,
}

/// An acknowledgement that is waited for.
#[derive(Debug)]
pub(super) enum Effect {
    Accepted(MessageId),
    Expanded(MessageId, usize),
    Finished {
        id: MessageId,
        outcomes: Vec<(u32, Delivery)>,
        is_end: bool,
        report: Option<MessageId>,
    },
    Held(MessageId, bool, usize),
    Removed(MessageId),
}

impl Model {
    fn known(&mut self, id: MessageId) -> &mut Known {
        self.messages.entry(id).or_default()
    }

    /// An acknowledgement has come.
    pub(super) fn acknowledge(&mut self, effect: &Effect) {
        match effect {
            Effect::Accepted(id) => self.known(*id).is_accepted = true,
            Effect::Expanded(id, children) => self.known(*id).expanded = Some(*children),
            Effect::Finished {
                id,
                outcomes,
                is_end,
                report,
            } => {
                let known = self.known(*id);
                known.outcomes.extend(outcomes.iter().copied());
                known.is_ended |= is_end;
                if let Some(report) = report {
                    self.known(*report).is_accepted = true;
                }
            }
            Effect::Held(id, is_held, nth) => {
                let known = self.known(*id);
                if known.holds_asked == *nth {
                    known.is_held = Some(*is_held);
                }
            }
            Effect::Removed(id) => self.known(*id).is_ended = true,
        }
    }

    /// What a recovered spool shows is from now on a promise.
    pub(super) fn believe(&mut self, spool: &Spool) -> Result<(), String> {
        let live = spool.ids();
        for id in &live {
            let message = spool.message(*id).map_err(|e| format!("{id}: {e}"))?;
            let mark = message.envelope.arrival.drop_mark;
            if let Some(dropped) = self.drops.get_mut(&mark) {
                dropped.id = Some(*id);
                let content = Arc::clone(&dropped.content);
                let known = self.known(*id);
                (known.content, known.recipients) = (content, message.envelope.recipients.len());
            }
            let known = self.known(*id);
            known.is_accepted = true;
            known.is_held = Some(message.is_held);
            let children = message.recipients.len() - known.recipients;
            known.expanded = (children > 0).then_some(children);
            known.expansion_asked = known.expanded;
            known.asked.clear();
            known.end_asked = false;
            for (at, (_, state)) in (0..).zip(&message.recipients) {
                if let Some(is @ (Delivery::Delivered | Delivery::Failed)) = result(state) {
                    known.outcomes.insert(at, is);
                    known.asked.insert(at, is);
                }
            }
        }
        for (id, known) in &mut self.messages {
            if live.binary_search(id).is_err() {
                known.end_asked = true;
                known.is_ended = true;
            }
        }
        Ok(())
    }
}

fn result(state: &RecipientState) -> Option<Delivery> {
    match state {
        RecipientState::Delivered => Some(Delivery::Delivered),
        RecipientState::Failed => Some(Delivery::Failed),
        RecipientState::Expanded => None,
        RecipientState::Pending { .. } => Some(Delivery::Deferred),
    }
}

/// Checks a recovered spool against what the outside knows, after a power cut only: nothing may be called damage.
pub(super) fn check(
    spool: &Spool,
    report: &RecoveryReport,
    drops: &SimStorage,
    model: &Model,
) -> Result<(), String> {
    if report.is_damaged {
        return Err(format!(
            "a power cut is taken for damage: {:?}",
            report.remarks
        ));
    }
    check_mail(spool, drops, model, false)
}

/// Checks messages alone. `is_blind`: no checkpoint could be read, so what has ended may be back.
pub(super) fn check_mail(
    spool: &Spool,
    drops: &SimStorage,
    model: &Model,
    is_blind: bool,
) -> Result<(), String> {
    let live = spool.ids();
    let is_live = |id: MessageId| live.binary_search(&id).is_ok();
    for (id, known) in &model.messages {
        if known.is_accepted && !known.end_asked && !is_live(*id) {
            return Err(format!("{id} was acknowledged and is lost"));
        }
        if known.is_ended && is_live(*id) && !is_blind {
            return Err(format!("{id} has ended and is back"));
        }
        let is_reported = |report: MessageId| {
            is_live(report) || model.messages.get(&report).is_some_and(|r| r.end_asked)
        };
        if let Some(report) = known.report
            && known.is_accepted
            && !known.removal_asked
            && !is_live(*id)
            && !is_reported(report)
        {
            return Err(format!("{id} ended without its report {report}"));
        }
    }
    let mut marks: BTreeMap<u64, usize> = BTreeMap::new();
    // What has ended and is back without a checkpoint need not be whole: records of it were rightly recycled.
    let has_ended = |id: MessageId| model.messages.get(&id).is_some_and(|known| known.end_asked);
    for id in live.iter().filter(|id| !is_blind || !has_ended(**id)) {
        let message = spool.message(*id).map_err(|e| format!("{id}: {e}"))?;
        let mark = message.envelope.arrival.drop_mark;
        if mark != 0 {
            *marks.entry(mark).or_default() += 1;
        }
        match (model.messages.get(id), model.drops.get(&mark)) {
            (Some(known), _) => {
                check_content(spool, *id, &known.content)?;
                check_message(*id, &message, known, is_blind)?;
                if let (Some(report), false) = (known.report, is_blind) {
                    let has_failed = message
                        .recipients
                        .iter()
                        .any(|(_, state)| *state == RecipientState::Failed);
                    let has_report = model.messages.get(&report).is_some_and(|r| r.end_asked);
                    if has_failed && !is_live(report) && !has_report {
                        return Err(format!("{id} has failed without its report"));
                    }
                    if is_live(report) && !has_failed {
                        return Err(format!("{report} reports a failure that is not recorded"));
                    }
                }
            }
            (None, Some(dropped)) => check_content(spool, *id, &dropped.content)?,
            (None, None) => return Err(format!("{id} was never sent")),
        }
    }
    if !is_blind {
        check_drops(spool, drops, model, &marks)?;
        let newest = model
            .messages
            .iter()
            .filter(|(_, known)| known.is_accepted)
            .map(|(id, _)| *id)
            .next_back();
        if newest.is_some_and(|newest| spool.new_id() <= newest) {
            return Err("a message id would be given again".into());
        }
    }
    Ok(())
}

fn check_content(spool: &Spool, id: MessageId, content: &[u8]) -> Result<(), String> {
    let mut reader = spool.content(id).map_err(|e| format!("{id}: {e}"))?;
    let mut rest = content;
    loop {
        let chunk = reader.next_chunk().map_err(|e| format!("{id}: {e}"))?;
        if chunk.is_empty() && rest.is_empty() {
            return Ok(());
        }
        rest = match rest.strip_prefix(&*chunk) {
            Some(after) if !chunk.is_empty() => after,
            _ => return Err(format!("{id} is altered")),
        };
    }
}

fn check_message(
    id: MessageId,
    message: &StoredMessage,
    known: &Known,
    is_blind: bool,
) -> Result<(), String> {
    let count = message.recipients.len();
    let counts = [Some(0), known.expansion_asked].map(|n| n.map(|n| n + known.recipients));
    if !counts.contains(&Some(count)) {
        return Err(format!("{id} has {count} recipients"));
    }
    if let Some(children) = known.expanded
        && count != known.recipients + children
    {
        return Err(format!("{id}: its expansion was durable and is gone"));
    }
    for (at, (_, state)) in (0_u32..).zip(&message.recipients) {
        let is = result(state);
        let durable = known.outcomes.get(&at).copied();
        if durable.is_some_and(|d| d != Delivery::Deferred) && is != durable && !is_blind {
            return Err(format!(
                "{id}: outcome of recipient {at} was durable and is {state:?}"
            ));
        }
        if matches!(is, Some(Delivery::Delivered | Delivery::Failed))
            && known.asked.get(&at).copied() != is
        {
            return Err(format!(
                "{id}: recipient {at} has an outcome nobody recorded"
            ));
        }
    }
    // Without a checkpoint what is held stays held; that it was released may be forgotten, and what seems damaged, as
    // records before its last relocation were recycled, is held as well.
    let may_be_held = is_blind && message.is_held;
    if known
        .is_held
        .is_some_and(|held| held != message.is_held && !may_be_held)
        || (known.holds_asked == 0 && known.is_held.is_none() && message.is_held && !may_be_held)
    {
        return Err(format!("{id}: hold is {}", message.is_held));
    }
    Ok(())
}

/// No drop file is lost, none is or will be taken twice, and none is in part.
fn check_drops(
    spool: &Spool,
    folder: &SimStorage,
    model: &Model,
    marks: &BTreeMap<u64, usize>,
) -> Result<(), String> {
    if model.drops.is_empty() {
        return Ok(());
    }
    let names = folder.names().map_err(|e| e.to_string())?;
    for (mark, dropped) in &model.drops {
        let name = format!("drop-{mark:016x}");
        let is_there = names.contains(&name);
        let live = marks.get(mark).copied().unwrap_or(0);
        let known = dropped.id.and_then(|id| model.messages.get(&id));
        let has_ended = known.is_some_and(|known| known.end_asked);
        if dropped.is_submitted && !is_there && live == 0 && !has_ended {
            return Err(format!("{name} was submitted and is lost"));
        }
        if live > 1 {
            return Err(format!("{name} was taken {live} times"));
        }
        let was_taken = live == 1 || known.is_some_and(|known| known.is_attempted);
        if is_there && was_taken && spool.absorbed(*mark).is_none() {
            return Err(format!("{name} would be taken again"));
        }
        if !is_there {
            continue;
        }
        let opened =
            drop_file::open_in(folder, &name, DROP_BYTES_MAX).map_err(|e| e.to_string())?;
        let mut bytes = Vec::new();
        opened
            .each_chunk(&mut |chunk| {
                bytes.extend_from_slice(chunk);
                Ok(())
            })
            .map_err(|e| e.to_string())?;
        if *bytes != *dropped.content {
            return Err(format!("{name} is altered"));
        }
    }
    Ok(())
}
