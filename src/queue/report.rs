//! Which reports a run of a message asks for, and to whom they go (I7).
//!
//! A failure, an expiry, a delay or a wanted success is told to the sender in a report with the null sender; what
//! happens to a message that has the null sender itself is told to the double-bounce address. Pure, but for the ids
//! it is given. Sources: RFC 3461 section 6, RFC 5321 4.5.5, Sendmail's DoubleBounceAddress and PostmasterCopy.

use std::collections::BTreeMap;

use std::time::Duration;

use crate::address::{Address, Domain, ReversePath};
use crate::deliver::dsn::{
    self, Audience, DsnFacts, Fate, ReportKind, ReportedRecipient, Returned,
};
use crate::envelope::{
    Arrival, BodyType, Delivery, Envelope, MessageId, Outcome, Recipient, RecipientId,
};
use crate::maillog::DsnCause;
use crate::spool::{NewMessage, StoredMessage};

/// Who is to be told, beside the sender.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReportSettings {
    /// This host's name.
    pub host_name: String,
    /// Who gets reports that have nobody to go to; `None`: they are dropped and logged.
    pub double_bounce_address: Option<String>,
    /// Who gets a copy of failure reports, without the body.
    pub postmaster_copy: Option<String>,
    /// Whether the body may go back to the sender (not with `PrivacyOptions=nobodyreturn`).
    pub returns_body: bool,
}

/// A recipient's last outcome in a run, and what it means for the sender.
#[derive(Debug, Clone)]
pub(super) struct Result {
    pub(super) id: RecipientId,
    pub(super) outcome: Outcome,
    pub(super) fate: Fate,
}

/// A report that has to be made.
#[derive(Debug)]
pub(super) struct Wanted {
    kind: ReportKind,
    audience: Audience,
    to: String,
    has_brackets: bool,
    results: Vec<Result>,
    /// For the log.
    pub(super) cause: DsnCause,
    /// For the log.
    pub(super) reason: String,
}

/// Ages that reports speak of.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ages {
    /// The age at which the sender is warned, if this run is to.
    pub(super) warned_at: Option<Duration>,
    pub(super) give_up_after: Duration,
}

/// What a sender is told of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Failure,
    Success,
    Delay,
}

/// What of a result is told to whoever sent to it; `None`: nothing.
fn told(message: &StoredMessage, result: &Result, is_warning: bool) -> Option<Told> {
    let notify = recipient(message, result.id)?.notify;
    let is_failure = matches!(result.fate, Fate::Failed | Fate::Expired(_));
    let is_delivered = result.outcome.result == Delivery::Delivered;
    if is_failure && notify.on_failure() {
        Some(Told::Failure)
    } else if is_delivered && !result.outcome.is_notify_passed_on && notify.on_success() {
        Some(Told::Success)
    } else if is_warning && result.fate == Fate::Delayed && notify.on_delay() {
        Some(Told::Delay)
    } else {
        None
    }
}

/// Whether a report may be made of a result.
pub(super) fn is_told(message: &StoredMessage, result: &Result, ages: Ages) -> bool {
    told(message, result, ages.warned_at.is_some()).is_some()
}

/// Decides which reports a run asks for. `None` in the second place of the answer: no warning is among them.
pub(super) fn wanted(
    settings: &ReportSettings,
    message: &StoredMessage,
    results: &[Result],
    ages: Ages,
) -> (Vec<Wanted>, bool) {
    let own = message.envelope.reverse_path.address();
    // Each owner of a list is told of the list's recipients, the sender of all others; the null sender of none (I7).
    let mut by_sender: BTreeMap<Option<String>, Vec<Result>> = BTreeMap::new();
    for result in results {
        let sender = recipient(message, result.id).and_then(|r| r.sender.clone());
        let sender = sender.filter(|_| own.is_some());
        by_sender.entry(sender).or_default().push(result.clone());
    }
    let (mut reports, mut has_warned) = (Vec::new(), false);
    for (sender, results) in by_sender {
        let sender = sender.or_else(|| own.map(ToString::to_string));
        let (more, warned) = wanted_by(sender.as_deref(), settings, message, &results, ages);
        reports.extend(more);
        has_warned |= warned;
    }
    (reports, has_warned)
}

/// The reports of recipients that have one sender; `None`: the null sender.
fn wanted_by(
    sender: Option<&str>,
    settings: &ReportSettings,
    message: &StoredMessage,
    results: &[Result],
    ages: Ages,
) -> (Vec<Wanted>, bool) {
    let is_warning = ages.warned_at.is_some();
    let pick = |what: Told| -> Vec<Result> {
        let is_picked = |r: &&Result| told(message, r, is_warning) == Some(what);
        results.iter().filter(is_picked).cloned().collect()
    };
    let failures = pick(Told::Failure);
    let mut reports = Vec::new();
    if let Some(first) = failures.first() {
        let (cause, reason) = match first.fate {
            Fate::Expired(_) => (
                DsnCause::SenderNotify,
                format!(
                    "Cannot send message for {}",
                    dsn::interval_text(ages.give_up_after)
                ),
            ),
            _ => (DsnCause::Dsn, first.outcome.text.clone()),
        };
        match sender {
            Some(address) => reports.push(Wanted {
                kind: ReportKind::Failure,
                audience: Audience::Sender,
                to: address.to_string(),
                has_brackets: true,
                results: failures.clone(),
                cause,
                reason: reason.clone(),
            }),
            None => reports.extend(settings.double_bounce_address.as_ref().map(|to| Wanted {
                kind: ReportKind::Failure,
                audience: Audience::Postmaster,
                to: to.clone(),
                has_brackets: false,
                results: failures.clone(),
                cause: DsnCause::PostmasterNotify,
                reason: reason.clone(),
            })),
        }
        if let (Some(to), Some(_)) = (&settings.postmaster_copy, sender) {
            reports.push(Wanted {
                kind: ReportKind::Failure,
                audience: Audience::Postmaster,
                to: to.clone(),
                has_brackets: false,
                results: failures,
                cause: DsnCause::PostmasterNotify,
                reason,
            });
        }
    }
    let Some(sender) = sender else {
        return (reports, false);
    };
    let mut tell = |kind, results: Vec<Result>, cause, reason: String| {
        let is_any = !results.is_empty();
        if is_any {
            reports.push(Wanted {
                kind,
                audience: Audience::Sender,
                to: sender.to_string(),
                has_brackets: true,
                results,
                cause,
                reason,
            });
        }
        is_any
    };
    tell(
        ReportKind::Success,
        pick(Told::Success),
        DsnCause::Dsn,
        "Return receipt".to_owned(),
    );
    let mut has_warned = false;
    if let Some(warned_at) = ages.warned_at {
        has_warned = tell(
            ReportKind::Delay {
                age: warned_at,
                give_up_age: ages.give_up_after,
            },
            pick(Told::Delay),
            DsnCause::SenderNotify,
            format!(
                "Warning: could not send message for past {}",
                dsn::interval_text(warned_at)
            ),
        );
    }
    (reports, has_warned)
}

impl Wanted {
    /// Composes the report as a message of its own.
    pub(super) fn compose(
        &self,
        settings: &ReportSettings,
        message: &StoredMessage,
        id: MessageId,
        now_unix_ms: u64,
        content: &[u8],
    ) -> NewMessage {
        let recipients: Vec<ReportedRecipient> = self
            .results
            .iter()
            .filter_map(|result| reported(settings, message, result, now_unix_ms))
            .collect();
        let to = with_domain(&self.to, &settings.host_name);
        let is_whole = u64::try_from(content.len()).unwrap_or(u64::MAX) >= message.content_bytes;
        let content = dsn::compose(&DsnFacts {
            kind: self.kind,
            audience: self.audience,
            to: &to,
            id,
            now_unix_ms,
            host_name: &settings.host_name,
            original_id: message.id,
            envelope: &message.envelope,
            recipients: &recipients,
            returned: Returned {
                content,
                is_whole,
                is_body_allowed: settings.returns_body && self.audience == Audience::Sender,
            },
        });
        let mut recipient = Recipient::new(self.to.clone());
        recipient.has_brackets = self.has_brackets;
        let mut envelope = Envelope::new(ReversePath::Null, vec![recipient]);
        envelope.arrival = Arrival {
            unix_ms: now_unix_ms,
            ..Arrival::default()
        };
        if !content.is_ascii() {
            envelope.body_type = BodyType::EightBitMime;
        }
        envelope.body_bytes = body_bytes(&content);
        NewMessage {
            id,
            envelope,
            content,
        }
    }
}

/// Whether a message is a report for the double-bounce address: there is nobody left to tell what happens to it.
pub(super) fn is_last_resort(settings: &ReportSettings, message: &StoredMessage) -> bool {
    let arrival = &message.envelope.arrival;
    message.envelope.reverse_path == ReversePath::Null
        && arrival.protocol.is_empty()
        && arrival.client_address.is_none()
        && settings.double_bounce_address.as_ref().is_some_and(|to| {
            message
                .envelope
                .recipients
                .iter()
                .all(|recipient| recipient.target == *to)
        })
}

fn recipient(message: &StoredMessage, id: RecipientId) -> Option<&Recipient> {
    let at = usize::try_from(id.0).ok()?;
    message.recipients.get(at).map(|(recipient, _)| recipient)
}

fn reported(
    settings: &ReportSettings,
    message: &StoredMessage,
    result: &Result,
    now_unix_ms: u64,
) -> Option<ReportedRecipient> {
    let own = recipient(message, result.id)?;
    let mut root = own;
    // Parents have lower ids than their children; the bound guards against damage.
    for _ in 0..message.recipients.len() {
        match root.parent.and_then(|parent| recipient(message, parent)) {
            Some(parent) => root = parent,
            None => break,
        }
    }
    Some(ReportedRecipient {
        shown: own.shown(),
        address: with_domain(&root.target, &settings.host_name),
        actual: with_domain(&own.target, &settings.host_name),
        expanded_from: own.parent.map(|_| root.shown()),
        original_recipient: own.original_recipient.clone(),
        fate: result.fate,
        outcome: result.outcome.clone(),
        attempted_unix_ms: now_unix_ms,
    })
}

/// An address with this host as its domain if it has none; what is no address as it is.
fn with_domain(target: &str, host_name: &str) -> String {
    // A command or a file, quoted or not, has none.
    if target.trim_start_matches('"').starts_with(['|', '/']) {
        return target.to_owned();
    }
    let bare = target.strip_prefix('\\').unwrap_or(target);
    match (Address::parse(bare), Domain::parse(host_name)) {
        (Ok(address), Ok(host)) if address.domain().is_none() => {
            address.with_domain(host).to_string()
        }
        _ => target.to_owned(),
    }
}

/// Size of the body with line ends as one byte.
fn body_bytes(content: &[u8]) -> u64 {
    let body = content
        .windows(4)
        .position(|at| at == b"\r\n\r\n")
        .and_then(|at| content.get(at + 4..))
        .unwrap_or_default();
    let returns = body.iter().filter(|byte| **byte == b'\r').count();
    u64::try_from(body.len() - returns).unwrap_or(u64::MAX)
}
