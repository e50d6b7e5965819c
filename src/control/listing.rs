//! A message as the queue listing shows it, and its bytes on the control socket. Pure values.
//!
//! A [`Listed`] is made from a [`StoredMessage`] by the daemon, or by `mailq` itself when no daemon runs, so that both
//! ways print the same. Decoding takes any bytes: a length is checked against what is there before it is believed.
//!
//! | field | bytes |
//! |---|---|
//! | id, body bytes, arrival in Unix ms, priority | 8 each, little-endian |
//! | flags: 1 leased, 2 waiting, 4 warned, 8 8BITMIME, 16 damaged | 1 |
//! | sender, quarantine, status | text each |
//! | number of recipients | 4 |
//! | for each: address, controlling user, status | text each |
//!
//! A text is its length plus one in 4 bytes, 0 for an absent one, and its bytes.

use crate::envelope::{BodyType, MessageId, Recipient, RecipientState};
use crate::spool::StoredMessage;

/// What each recipient adds to a message's priority number. Source: Sendmail's RecipientFactor.
pub const RECIPIENT_FACTOR: u64 = 30_000;
/// What each attempt adds to a message's priority number. Source: Sendmail's RetryFactor.
pub const RETRY_FACTOR: u64 = 90_000;
/// The most recipients decoded.
const RECIPIENTS_MAX: u32 = 10_000_000;

/// A message of the queue, as shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The queue id.
    pub id: MessageId,
    /// Size of the body in bytes.
    pub body_bytes: u64,
    /// When it came in, Unix milliseconds.
    pub arrived_unix_ms: u64,
    /// Sendmail's priority number: size, recipients and attempts; the listing's order.
    pub priority: u64,
    /// Whether an attempt is under way: `*`.
    pub is_leased: bool,
    /// Whether it was tried and its next attempt is not due yet.
    pub is_waiting: bool,
    /// Whether a delay warning has been sent: `+`.
    pub has_warned: bool,
    /// Whether it was sent as `BODY=8BITMIME`.
    pub is_8bit: bool,
    /// Whether its envelope could not be read; the status then says why, and the rest is empty.
    pub is_damaged: bool,
    /// The sender as shown.
    pub sender: String,
    /// The reason, if it is quarantined or held.
    pub quarantine: Option<String>,
    /// What the last attempt said.
    pub status: Option<String>,
    /// The recipients that are still to be delivered.
    pub recipients: Vec<ListedRecipient>,
}

/// A recipient, as shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedRecipient {
    /// The address as shown.
    pub shown: String,
    /// On whose authority it is delivered, `user:uid:gid:address`, if it came from an expansion.
    pub controlling_user: Option<String>,
    /// What its own last attempt said, if the remote host answered it.
    pub status: Option<String>,
}

impl Listed {
    /// A message as `now_unix_ms` sees it.
    #[must_use]
    pub fn of(message: &StoredMessage, now_unix_ms: u64) -> Self {
        let mut tries_max = 0;
        let mut status = None;
        let mut recipients = Vec::new();
        for (recipient, state) in &message.recipients {
            let RecipientState::Pending { last, tries } = state else {
                continue;
            };
            tries_max = tries_max.max(*tries);
            if status.is_none() {
                status = last.as_ref().map(|outcome| outcome.text.clone());
            }
            recipients.push(ListedRecipient {
                shown: recipient.shown(),
                controlling_user: controlling_user(recipient, &message.recipients),
                status: last
                    .as_ref()
                    .filter(|outcome| outcome.reply.is_some())
                    .map(|outcome| outcome.text.clone()),
            });
        }
        let envelope = &message.envelope;
        let count = u64::try_from(recipients.len()).unwrap_or(u64::MAX);
        Self {
            id: message.id,
            body_bytes: envelope.body_bytes,
            arrived_unix_ms: envelope.arrival.unix_ms,
            priority: message
                .content_bytes
                .saturating_add(count.saturating_mul(RECIPIENT_FACTOR))
                .saturating_add(u64::from(tries_max).saturating_mul(RETRY_FACTOR)),
            is_leased: message.is_leased,
            is_waiting: tries_max > 0 && message.due_unix_ms > now_unix_ms,
            has_warned: message.has_warned,
            is_8bit: envelope.body_type == BodyType::EightBitMime,
            is_damaged: false,
            sender: envelope.sender_shown(),
            // A release leaves the envelope as it arrived, with the reason it had then.
            quarantine: message.is_held.then(|| {
                let reason = message
                    .hold_reason
                    .as_ref()
                    .or(envelope.quarantine.as_ref());
                reason.map_or_else(|| "held".to_owned(), String::clone)
            }),
            status,
            recipients,
        }
    }

    /// A message whose envelope could not be read.
    #[must_use]
    pub const fn damaged(id: MessageId, reason: String) -> Self {
        Self {
            id,
            body_bytes: 0,
            arrived_unix_ms: 0,
            priority: 0,
            is_leased: false,
            is_waiting: false,
            has_warned: false,
            is_8bit: false,
            is_damaged: true,
            sender: String::new(),
            quarantine: None,
            status: Some(reason),
            recipients: Vec::new(),
        }
    }

    /// Appends the bytes of the table above.
    pub fn encode(&self, out: &mut Vec<u8>) {
        for number in [
            self.id.number(),
            self.body_bytes,
            self.arrived_unix_ms,
            self.priority,
        ] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let flags = [
            self.is_leased,
            self.is_waiting,
            self.has_warned,
            self.is_8bit,
            self.is_damaged,
        ];
        let flags = flags
            .iter()
            .enumerate()
            .fold(0_u8, |all, (bit, is_set)| all | u8::from(*is_set) << bit);
        out.push(flags);
        put_text(out, Some(&self.sender));
        put_text(out, self.quarantine.as_deref());
        put_text(out, self.status.as_deref());
        let count = u32::try_from(self.recipients.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&count.to_le_bytes());
        for recipient in &self.recipients {
            put_text(out, Some(&recipient.shown));
            put_text(out, recipient.controlling_user.as_deref());
            put_text(out, recipient.status.as_deref());
        }
    }

    /// Reads the bytes of the table above; `None` if they are anything else, more of them included.
    #[must_use]
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        let from = &mut bytes;
        let id = MessageId::from_number(take_u64(from)?);
        let (body_bytes, arrived_unix_ms, priority) =
            (take_u64(from)?, take_u64(from)?, take_u64(from)?);
        let [flags] = take::<1>(from)?;
        if flags >= 1 << 5 {
            return None;
        }
        let (sender, quarantine, status) = (take_text(from)??, take_text(from)?, take_text(from)?);
        let count = u32::from_le_bytes(take::<4>(from)?);
        if count > RECIPIENTS_MAX {
            return None;
        }
        let mut recipients = Vec::new();
        for _ in 0..count {
            recipients.push(ListedRecipient {
                shown: take_text(from)??,
                controlling_user: take_text(from)?,
                status: take_text(from)?,
            });
        }
        from.is_empty().then_some(Self {
            id,
            body_bytes,
            arrived_unix_ms,
            priority,
            is_leased: flags & 1 != 0,
            is_waiting: flags & 2 != 0,
            has_warned: flags & 4 != 0,
            is_8bit: flags & 8 != 0,
            is_damaged: flags & 16 != 0,
            sender,
            quarantine,
            status,
            recipients,
        })
    }
}

/// `user:uid:gid:address`, the address being what was expanded, for a recipient that an expansion led to.
fn controlling_user(recipient: &Recipient, all: &[(Recipient, RecipientState)]) -> Option<String> {
    let user = recipient.controlling_user.as_ref()?;
    let parent = usize::try_from(recipient.parent?.0)
        .ok()
        .and_then(|at| all.get(at))
        .map(|(parent, _)| parent.shown())
        .unwrap_or_default();
    Some(format!("{}:{}:{}:{parent}", user.name, user.uid, user.gid))
}

fn put_text(out: &mut Vec<u8>, text: Option<&str>) {
    let Some(text) = text else {
        out.extend_from_slice(&[0; 4]);
        return;
    };
    // Texts of the spool are far below 4 GiB; one that is not is left out rather than cut.
    match u32::try_from(text.len() + 1) {
        Ok(length) => {
            out.extend_from_slice(&length.to_le_bytes());
            out.extend_from_slice(text.as_bytes());
        }
        Err(_) => out.extend_from_slice(&1_u32.to_le_bytes()),
    }
}

/// The inner `None` is an absent text, the outer one is bytes that are no text.
fn take_text(from: &mut &[u8]) -> Option<Option<String>> {
    let length = usize::try_from(u32::from_le_bytes(take::<4>(from)?)).ok()?;
    let Some(length) = length.checked_sub(1) else {
        return Some(None);
    };
    let (text, rest) = from.split_at_checked(length)?;
    *from = rest;
    Some(Some(std::str::from_utf8(text).ok()?.to_owned()))
}

fn take_u64(from: &mut &[u8]) -> Option<u64> {
    take::<8>(from).map(u64::from_le_bytes)
}

fn take<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = from.split_first_chunk::<N>()?;
    *from = rest;
    Some(*head)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::address::ReversePath;
    use crate::envelope::{ControllingUser, Delivery, Envelope, Outcome, RecipientId};
    use crate::status::Status;

    /// A message with this sender and these recipients, both as shown.
    pub(crate) fn listed(sender: &str, recipients: &[&str]) -> Listed {
        Listed {
            id: MessageId::parse("6AMHGmw3001324").unwrap(),
            body_bytes: 20,
            arrived_unix_ms: 1_795_367_808_000,
            priority: 90_331,
            is_leased: false,
            is_waiting: false,
            has_warned: false,
            is_8bit: false,
            is_damaged: false,
            sender: sender.to_owned(),
            quarantine: None,
            status: None,
            recipients: recipients
                .iter()
                .map(|shown| ListedRecipient {
                    shown: (*shown).to_owned(),
                    controlling_user: None,
                    status: None,
                })
                .collect(),
        }
    }

    fn outcome(text: &str, reply: Option<&str>) -> Option<Outcome> {
        let mut outcome = Outcome::new(Delivery::Deferred, Status::new(4, 4, 1), "esmtp", text);
        outcome.reply = reply.map(str::to_owned);
        Some(outcome)
    }

    #[test]
    fn only_pending_recipients_are_shown_with_the_reason_of_the_first() {
        let list = Recipient::new("list@gold.example.test");
        let child = Recipient {
            has_brackets: false,
            parent: Some(RecipientId(0)),
            controlling_user: Some(ControllingUser {
                name: "list".into(),
                uid: 8,
                gid: 0,
            }),
            ..Recipient::new("x@dead.test")
        };
        let done = Recipient::new("done@ok.test");
        let other = Recipient::new("c@tempfail.test");
        let message = StoredMessage {
            id: MessageId::from_number(7),
            envelope: Envelope::new(
                ReversePath::parse("alice@gold.example.test").unwrap(),
                vec![list.clone(), done.clone(), other.clone()],
            ),
            recipients: vec![
                (list, RecipientState::Expanded),
                (done, RecipientState::Delivered),
                (
                    other,
                    RecipientState::Pending {
                        last: outcome("Deferred: 450 busy", Some("450 busy")).map(Box::new),
                        tries: 2,
                    },
                ),
                (
                    child,
                    RecipientState::Pending {
                        last: outcome("Deferred: Connection refused by mx.dead.test.", None)
                            .map(Box::new),
                        tries: 1,
                    },
                ),
            ],
            due_unix_ms: 5_000,
            hold_reason: None,
            is_held: false,
            has_warned: true,
            is_leased: true,
            content_bytes: 331,
        };
        let listed = Listed::of(&message, 4_000);
        assert_eq!(listed.priority, 331 + 60_000 + 180_000);
        assert!(listed.is_waiting && listed.is_leased && listed.has_warned);
        assert!(!Listed::of(&message, 6_000).is_waiting);
        assert_eq!(listed.status.as_deref(), Some("Deferred: 450 busy"));
        assert_eq!(listed.recipients.len(), 2);
        assert_eq!(
            listed.recipients[0].status.as_deref(),
            Some("Deferred: 450 busy")
        );
        assert_eq!(listed.recipients[1].status, None);
        assert_eq!(
            listed.recipients[1].controlling_user.as_deref(),
            Some("list:8:0:<list@gold.example.test>")
        );
    }

    #[test]
    fn messages_read_back_and_cut_or_altered_bytes_give_no_panic() {
        let mut message = listed("<a@b.test>", &["<c@d.test>", "e"]);
        message.quarantine = Some(String::new());
        message.is_leased = true;
        message.recipients[1].controlling_user = Some("list:8:0:<l@h>".into());
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        assert_eq!(Listed::decode(&bytes), Some(message));
        for end in 0..bytes.len() {
            assert_eq!(Listed::decode(&bytes[..end]), None, "cut at {end}");
        }
        for at in 0..bytes.len() {
            let mut altered = bytes.clone();
            altered[at] ^= 0x80;
            let _ = Listed::decode(&altered);
        }
        bytes.push(0);
        assert_eq!(Listed::decode(&bytes), None);
    }
}
