//! Payloads of control frames: envelope, expansion, outcome, hold, relocation, void. Encode and decode stand side by side.
//!
//! Every payload starts with a version byte, 1. Strings are a 32-bit length and UTF-8 bytes; optional values are a
//! byte 0 or 1 and the value. Lengths are checked against what is there before anything is allocated.
//!
//! Envelope: version, 3 bytes 0, number of recipients (u32), content bytes (u64), arrival in Unix ms (u64), flags
//! (u32: 1 quarantined), mark of the drop file (u64), then the fields in the order of [`encode_envelope`], and last, as only the writer knows them,
//! the extents: for each chunk segment (u64), offset of the frame header (u64), payload length (u32); then their
//! number (u32).
//!
//! Hold: version, held (u8: 1 held, 0 released), who did it (string), and to the end, optionally, the reason (string).
//!
//! Relocation: version, flags (u8: 1 held, 2 warned), 2 bytes 0, due in Unix ms (u64); recipients (u32) and for each standing
//! (u8), tries (u32) and, optionally, length and payload of its last Outcome; expansions (u32) and for each length and payload;
//! optionally length and payload of the last Hold; and to the end the payload of the Envelope, its extents the new ones.

use super::format::field::{u32_at, u64_at};
use super::format::{BatchNumber, FRAME_HEADER_BYTES, SegmentNumber};
use crate::address::ReversePath;
use crate::envelope::{
    Arrival, BodyType, ControllingUser, Delivery, DsnReturn, Envelope, Notify, Outcome, Recipient,
    RecipientId,
};
use crate::status::Status;

const VERSION: u8 = 1;
/// Bytes of one extent.
pub(super) const EXTENT_BYTES: usize = 20;
/// Most recipients one payload may hold.
const RECIPIENTS_MAX: u32 = 10_000_000;

/// A chunk of content: where its frame header lies, and how long its payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) segment: SegmentNumber,
    pub(super) offset: u64,
    pub(super) length: u32,
}

/// What the index needs of an envelope, read without decoding all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EnvelopeFacts {
    pub(super) recipients: u32,
    pub(super) content_bytes: u64,
    pub(super) arrival_unix_ms: u64,
    pub(super) is_quarantined: bool,
    /// Mark of the drop file it came from; 0 if none.
    pub(super) drop_mark: u64,
}

/// A payload that can't be what was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed {0} record")]
pub(super) struct Malformed(pub(super) &'static str);

#[derive(Default)]
struct Out(Vec<u8>);

impl Out {
    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }
    fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    fn string(&mut self, value: &str) {
        // Strings here come from command lines of bounded length; the limit is far below 4 GiB.
        self.u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
        self.0.extend_from_slice(value.as_bytes());
    }
    fn bytes(&mut self, value: &[u8]) {
        self.u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
        self.0.extend_from_slice(value);
    }
    fn option<T>(&mut self, value: Option<T>, put: impl FnOnce(&mut Self, T)) {
        match value {
            None => self.u8(0),
            Some(value) => {
                self.u8(1);
                put(self, value);
            }
        }
    }
}

struct In<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> In<'a> {
    fn new(bytes: &'a [u8], what: &'static str) -> Result<Self, Malformed> {
        let mut new = Self { rest: bytes, what };
        if new.u8()? == VERSION {
            Ok(new)
        } else {
            Err(Malformed(what))
        }
    }
    fn take(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self
            .rest
            .split_at_checked(len)
            .ok_or(Malformed(self.what))?;
        self.rest = rest;
        Ok(head)
    }
    fn u8(&mut self) -> Result<u8, Malformed> {
        self.take(1)?.first().copied().ok_or(Malformed(self.what))
    }
    fn u16(&mut self) -> Result<u16, Malformed> {
        self.take(2)?
            .try_into()
            .map(u16::from_le_bytes)
            .map_err(|_| Malformed(self.what))
    }
    fn u32(&mut self) -> Result<u32, Malformed> {
        self.take(4)?
            .try_into()
            .map(u32::from_le_bytes)
            .map_err(|_| Malformed(self.what))
    }
    fn u64(&mut self) -> Result<u64, Malformed> {
        self.take(8)?
            .try_into()
            .map(u64::from_le_bytes)
            .map_err(|_| Malformed(self.what))
    }
    fn string(&mut self) -> Result<String, Malformed> {
        let len = usize::try_from(self.u32()?).map_err(|_| Malformed(self.what))?;
        std::str::from_utf8(self.take(len)?)
            .map(str::to_owned)
            .map_err(|_| Malformed(self.what))
    }
    fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let len = usize::try_from(self.u32()?).map_err(|_| Malformed(self.what))?;
        self.take(len)
    }
    fn option<T>(
        &mut self,
        get: impl FnOnce(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Option<T>, Malformed> {
        match self.u8()? {
            0 => Ok(None),
            1 => get(self).map(Some),
            _ => Err(Malformed(self.what)),
        }
    }
    fn end(&self) -> Result<(), Malformed> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(Malformed(self.what))
        }
    }
}

fn put_user(out: &mut Out, user: &ControllingUser) {
    out.string(&user.name);
    out.u32(user.uid);
    out.u32(user.gid);
}

fn get_user(from: &mut In<'_>) -> Result<ControllingUser, Malformed> {
    Ok(ControllingUser {
        name: from.string()?,
        uid: from.u32()?,
        gid: from.u32()?,
    })
}

fn put_recipient(out: &mut Out, recipient: &Recipient) {
    out.string(&recipient.target);
    // 1 brackets, 2 a sender of its own, which then comes last.
    out.u8(u8::from(recipient.has_brackets) | u8::from(recipient.sender.is_some()) << 1);
    out.option(recipient.parent, |out, parent| out.u32(parent.0));
    out.option(recipient.controlling_user.as_ref(), put_user);
    out.u8(match recipient.notify {
        Notify::Unspecified => 0,
        Notify::Never => 1,
        Notify::When {
            success,
            failure,
            delay,
        } => 0x80 | u8::from(success) | u8::from(failure) << 1 | u8::from(delay) << 2,
    });
    out.option(recipient.original_recipient.as_deref(), Out::string);
    if let Some(sender) = &recipient.sender {
        out.string(sender);
    }
}

fn get_recipient(from: &mut In<'_>) -> Result<Recipient, Malformed> {
    let target = from.string()?;
    let flags = from.u8()?;
    if flags & !3 != 0 {
        return Err(Malformed(from.what));
    }
    Ok(Recipient {
        target,
        has_brackets: flags & 1 != 0,
        parent: from.option(In::u32)?.map(RecipientId),
        controlling_user: from.option(get_user)?,
        notify: match from.u8()? {
            0 => Notify::Unspecified,
            1 => Notify::Never,
            n if n & 0xf8 == 0x80 => Notify::When {
                success: n & 1 != 0,
                failure: n & 2 != 0,
                delay: n & 4 != 0,
            },
            _ => return Err(Malformed(from.what)),
        },
        original_recipient: from.option(In::string)?,
        sender: match flags & 2 {
            0 => None,
            _ => Some(from.string()?),
        },
    })
}

/// Bytes of a recipient without texts, parent and user: see [`put_recipient`].
const RECIPIENT_BYTES_MIN: usize = 9;
const FACTS_BYTES: usize = 36;
const FLAG_QUARANTINED: u32 = 1;

/// Everything of an envelope payload but the extents, which the writer appends with [`append_extents`].
pub(super) fn encode_envelope(envelope: &Envelope, content_bytes: u64) -> Vec<u8> {
    let mut out = Out(Vec::with_capacity(256));
    out.u8(VERSION);
    out.u8(0);
    out.u16(0);
    out.u32(u32::try_from(envelope.recipients.len()).unwrap_or(u32::MAX));
    out.u64(content_bytes);
    out.u64(envelope.arrival.unix_ms);
    out.u32(if envelope.quarantine.is_some() {
        FLAG_QUARANTINED
    } else {
        0
    });
    out.u64(envelope.arrival.drop_mark);
    out.option(envelope.reverse_path.address(), |out, address| {
        out.string(&address.to_string())
    });
    out.u8(u8::from(envelope.has_brackets));
    out.u8(match envelope.body_type {
        BodyType::Unspecified => 0,
        BodyType::SevenBit => 1,
        BodyType::EightBitMime => 2,
    });
    out.u8(match envelope.dsn_return {
        DsnReturn::Unspecified => 0,
        DsnReturn::Full => 1,
        DsnReturn::Headers => 2,
    });
    out.option(envelope.envelope_id.as_deref(), Out::string);
    let arrival = &envelope.arrival;
    out.string(&arrival.protocol);
    out.string(&arrival.daemon);
    out.string(&arrival.helo);
    out.option(arrival.client_name.as_deref(), Out::string);
    out.option(arrival.client_address, |out, address| {
        out.string(&address.to_string())
    });
    out.option(arrival.submitter.as_ref(), put_user);
    out.string(&arrival.message_id_field);
    out.u64(envelope.body_bytes);
    out.option(envelope.quarantine.as_deref(), Out::string);
    for recipient in &envelope.recipients {
        put_recipient(&mut out, recipient);
    }
    out.0
}

/// Appends the extents to an envelope payload and carries its checksum on.
pub(super) fn append_extents(payload: &mut Vec<u8>, crc: u32, extents: &[Extent]) -> u32 {
    let start = payload.len();
    for extent in extents {
        payload.extend_from_slice(&extent.segment.to_le_bytes());
        payload.extend_from_slice(&extent.offset.to_le_bytes());
        payload.extend_from_slice(&extent.length.to_le_bytes());
    }
    payload.extend_from_slice(
        &u32::try_from(extents.len())
            .unwrap_or(u32::MAX)
            .to_le_bytes(),
    );
    let mut hasher = crc32fast::Hasher::new_with_initial(crc);
    hasher.update(payload.get(start..).unwrap_or_default());
    hasher.finalize()
}

/// The part of an envelope payload before the extents, and the extents' bytes.
fn split_extents(payload: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let bad = Malformed("envelope");
    let (rest, count) = payload.split_last_chunk::<4>().ok_or(bad)?;
    let count = usize::try_from(u32::from_le_bytes(*count)).map_err(|_| bad)?;
    let at = count
        .checked_mul(EXTENT_BYTES)
        .and_then(|bytes| rest.len().checked_sub(bytes))
        .ok_or(bad)?;
    rest.split_at_checked(at).ok_or(bad)
}

/// Reads what the index needs.
pub(super) fn envelope_facts(payload: &[u8]) -> Result<EnvelopeFacts, Malformed> {
    let bad = Malformed("envelope");
    let (head, _) = split_extents(payload)?;
    if head.len() < FACTS_BYTES || head.first() != Some(&VERSION) {
        return Err(bad);
    }
    let recipients = u32_at(head, 4)
        .filter(|n| *n <= RECIPIENTS_MAX)
        .ok_or(bad)?;
    Ok(EnvelopeFacts {
        recipients,
        content_bytes: u64_at(head, 8).ok_or(bad)?,
        arrival_unix_ms: u64_at(head, 16).ok_or(bad)?,
        is_quarantined: u32_at(head, 24).ok_or(bad)? & FLAG_QUARANTINED != 0,
        drop_mark: u64_at(head, 28).ok_or(bad)?,
    })
}

/// How many bytes of content, frame headers included, lie in `here`, and how many in which other segments. For an
/// Envelope or a Relocation.
pub(super) fn content_places(
    payload: &[u8],
    here: SegmentNumber,
) -> Result<(u64, Vec<(SegmentNumber, u64)>), Malformed> {
    let bad = Malformed("envelope");
    let (_, extents) = split_extents(payload)?;
    let mut bytes_here = 0;
    let mut elsewhere: Vec<(SegmentNumber, u64)> = Vec::new();
    for extent in extents.chunks_exact(EXTENT_BYTES) {
        let segment = u64_at(extent, 0).ok_or(bad)?;
        let length = u64::from(u32_at(extent, 16).ok_or(bad)?);
        let bytes = (FRAME_HEADER_BYTES as u64 + length).next_multiple_of(8);
        if segment == here {
            bytes_here += bytes;
        } else if let Some((_, sum)) = elsewhere.iter_mut().find(|(other, _)| *other == segment) {
            *sum += bytes;
        } else {
            elsewhere.push((segment, bytes));
        }
    }
    Ok((bytes_here, elsewhere))
}

/// The extents of an envelope payload, or of a Relocation's.
pub(super) fn decode_extents(payload: &[u8]) -> Result<Vec<Extent>, Malformed> {
    let bad = Malformed("envelope");
    let (_, extents) = split_extents(payload)?;
    extents
        .chunks_exact(EXTENT_BYTES)
        .map(|bytes| {
            Ok(Extent {
                segment: u64_at(bytes, 0).ok_or(bad)?,
                offset: u64_at(bytes, 8).ok_or(bad)?,
                length: u32_at(bytes, 16).ok_or(bad)?,
            })
        })
        .collect()
}

/// Decodes an envelope payload.
pub(super) fn decode_envelope(payload: &[u8]) -> Result<Envelope, Malformed> {
    let bad = Malformed("envelope");
    let facts = envelope_facts(payload)?;
    let (head, _) = split_extents(payload)?;
    let mut from = In {
        rest: head.get(FACTS_BYTES..).ok_or(bad)?,
        what: "envelope",
    };
    let reverse_path = match from.option(In::string)? {
        None => ReversePath::Null,
        Some(text) => ReversePath::parse(&text).map_err(|_| bad)?,
    };
    let has_brackets = from.u8()? != 0;
    let body_type = match from.u8()? {
        0 => BodyType::Unspecified,
        1 => BodyType::SevenBit,
        2 => BodyType::EightBitMime,
        _ => return Err(bad),
    };
    let dsn_return = match from.u8()? {
        0 => DsnReturn::Unspecified,
        1 => DsnReturn::Full,
        2 => DsnReturn::Headers,
        _ => return Err(bad),
    };
    let envelope_id = from.option(In::string)?;
    let arrival = Arrival {
        unix_ms: facts.arrival_unix_ms,
        protocol: from.string()?,
        daemon: from.string()?,
        helo: from.string()?,
        client_name: from.option(In::string)?,
        client_address: match from.option(In::string)? {
            None => None,
            Some(text) => Some(text.parse().map_err(|_| bad)?),
        },
        submitter: from.option(get_user)?,
        message_id_field: from.string()?,
        drop_mark: facts.drop_mark,
    };
    let body_bytes = from.u64()?;
    let quarantine = from.option(In::string)?;
    let mut recipients = Vec::new();
    for _ in 0..facts.recipients {
        recipients.push(get_recipient(&mut from)?);
    }
    from.end()?;
    Ok(Envelope {
        reverse_path,
        has_brackets,
        recipients,
        body_type,
        dsn_return,
        envelope_id,
        arrival,
        body_bytes,
        quarantine,
    })
}

/// A parent replaced by children, whose ids count on from `first_child`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ExpansionRecord {
    pub(super) parent: RecipientId,
    pub(super) first_child: u32,
    pub(super) children: Vec<Recipient>,
}

pub(super) fn encode_expansion(record: &ExpansionRecord) -> Vec<u8> {
    // What they take at least: most have no more than a target.
    let least = |child: &Recipient| child.target.len() + 4 + RECIPIENT_BYTES_MIN;
    let bytes = record.children.iter().map(least).sum::<usize>();
    let mut out = Out(Vec::with_capacity(bytes + 64));
    out.u8(VERSION);
    out.u32(record.parent.0);
    out.u32(record.first_child);
    out.u32(u32::try_from(record.children.len()).unwrap_or(u32::MAX));
    for child in &record.children {
        put_recipient(&mut out, child);
    }
    out.0
}

/// Parent, first child and number of children: what the index needs.
pub(super) fn expansion_facts(payload: &[u8]) -> Result<(RecipientId, u32, u32), Malformed> {
    let mut from = In::new(payload, "expansion")?;
    let (parent, first, count) = (RecipientId(from.u32()?), from.u32()?, from.u32()?);
    if count > RECIPIENTS_MAX || first.checked_add(count).is_none() {
        return Err(Malformed("expansion"));
    }
    Ok((parent, first, count))
}

pub(super) fn decode_expansion(payload: &[u8]) -> Result<ExpansionRecord, Malformed> {
    let (parent, first_child, _) = expansion_facts(payload)?;
    let mut children = Vec::new();
    each_child(payload, &mut |child| children.push(child))?;
    Ok(ExpansionRecord {
        parent,
        first_child,
        children,
    })
}

/// Hands out the children of an expansion one by one, which may be very many.
pub(super) fn each_child(payload: &[u8], take: &mut dyn FnMut(Recipient)) -> Result<(), Malformed> {
    let (_, _, count) = expansion_facts(payload)?;
    let mut from = In {
        rest: payload.get(13..).unwrap_or_default(),
        what: "expansion",
    };
    for _ in 0..count {
        take(get_recipient(&mut from)?);
    }
    from.end()
}

/// What an Outcome frame says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OutcomeRecord {
    pub(super) recipient: RecipientId,
    pub(super) tries: u32,
    pub(super) next_due_unix_ms: u64,
    pub(super) has_warned: bool,
    pub(super) outcome: Outcome,
}

/// The part of an outcome that the index needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OutcomeFacts {
    pub(super) recipient: RecipientId,
    pub(super) tries: u32,
    pub(super) next_due_unix_ms: u64,
    pub(super) has_warned: bool,
    pub(super) result: Delivery,
}

pub(super) fn encode_outcome(record: &OutcomeRecord) -> Vec<u8> {
    let mut out = Out(Vec::with_capacity(96));
    out.u8(VERSION);
    out.u32(record.recipient.0);
    out.u32(record.tries);
    out.u64(record.next_due_unix_ms);
    out.u8(u8::from(record.has_warned));
    let outcome = &record.outcome;
    out.u8(match outcome.result {
        Delivery::Delivered => 0,
        Delivery::Deferred => 1,
        Delivery::Failed => 2,
    });
    out.u8(outcome.status.class);
    out.u16(outcome.status.subject);
    out.u16(outcome.status.detail);
    out.string(&outcome.text);
    out.option(outcome.reply.as_deref(), Out::string);
    out.string(&outcome.relay);
    out.string(&outcome.mailer);
    out.u8(u8::from(outcome.is_notify_passed_on));
    out.0
}

fn get_outcome_facts(from: &mut In<'_>) -> Result<OutcomeFacts, Malformed> {
    Ok(OutcomeFacts {
        recipient: RecipientId(from.u32()?),
        tries: from.u32()?,
        next_due_unix_ms: from.u64()?,
        has_warned: from.u8()? != 0,
        result: match from.u8()? {
            0 => Delivery::Delivered,
            1 => Delivery::Deferred,
            2 => Delivery::Failed,
            _ => return Err(Malformed(from.what)),
        },
    })
}

pub(super) fn outcome_facts(payload: &[u8]) -> Result<OutcomeFacts, Malformed> {
    get_outcome_facts(&mut In::new(payload, "outcome")?)
}

pub(super) fn decode_outcome(payload: &[u8]) -> Result<OutcomeRecord, Malformed> {
    let mut from = In::new(payload, "outcome")?;
    let facts = get_outcome_facts(&mut from)?;
    let status = Status::new(from.u8()?, from.u16()?, from.u16()?);
    let outcome = Outcome {
        result: facts.result,
        status,
        text: from.string()?,
        reply: from.option(In::string)?,
        relay: from.string()?,
        mailer: from.string()?,
        program: None,
        is_notify_passed_on: from.u8()? != 0,
    };
    from.end()?;
    Ok(OutcomeRecord {
        recipient: facts.recipient,
        tries: facts.tries,
        next_due_unix_ms: facts.next_due_unix_ms,
        has_warned: facts.has_warned,
        outcome,
    })
}

/// A Hold: that a message is kept back, or no more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HoldRecord {
    pub(super) is_held: bool,
    /// Who asked for it.
    pub(super) by: String,
    /// Why, if somebody said so.
    pub(super) reason: Option<String>,
}

/// The reason stands behind the rest, where those written before there were reasons end.
pub(super) fn encode_hold(is_held: bool, by: &str, reason: Option<&str>) -> Vec<u8> {
    let mut out = Out::default();
    out.u8(VERSION);
    out.u8(u8::from(is_held));
    out.string(by);
    if let Some(reason) = reason {
        out.string(reason);
    }
    out.0
}

pub(super) fn decode_hold(payload: &[u8]) -> Result<HoldRecord, Malformed> {
    let mut from = In::new(payload, "hold")?;
    let hold = HoldRecord {
        is_held: from.u8()? != 0,
        by: from.string()?,
        reason: if from.rest.is_empty() {
            None
        } else {
            Some(from.string()?)
        },
    };
    from.end()?;
    Ok(hold)
}

/// Where a recipient stands, without the text of its last outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    Pending,
    Expanded,
    Delivered,
    Failed,
}

/// A message at a new place: its envelope and all that has become of it since, so that no older record is needed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct RelocationRecord {
    pub(super) is_held: bool,
    pub(super) has_warned: bool,
    pub(super) due_unix_ms: u64,
    /// Standing, tries, and the payload of the last Outcome if it is kept.
    pub(super) recipients: Vec<(Standing, u32, Option<Vec<u8>>)>,
    /// Payloads of the Expansions, in order.
    pub(super) expansions: Vec<Vec<u8>>,
    /// Payload of the last Hold.
    pub(super) hold: Option<Vec<u8>>,
    /// Payload of the Envelope without its extents.
    pub(super) envelope: Vec<u8>,
}

const RELOCATION_HELD: u8 = 1;
const RELOCATION_WARNED: u8 = 2;

/// Everything of a Relocation's payload but the extents, which the writer appends with [`append_extents`].
pub(super) fn encode_relocation(record: &RelocationRecord) -> Vec<u8> {
    let mut out = Out(Vec::with_capacity(512));
    out.u8(VERSION);
    let held = u8::from(record.is_held) * RELOCATION_HELD;
    let warned = u8::from(record.has_warned) * RELOCATION_WARNED;
    out.u8(held | warned);
    out.u16(0);
    out.u64(record.due_unix_ms);
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    out.u32(count(record.recipients.len()));
    for (standing, tries, outcome) in &record.recipients {
        let standing = match standing {
            Standing::Pending => 0,
            Standing::Expanded => 1,
            Standing::Delivered => 2,
            Standing::Failed => 3,
        };
        out.u8(standing);
        out.u32(*tries);
        out.option(outcome.as_deref(), Out::bytes);
    }
    out.u32(count(record.expansions.len()));
    for expansion in &record.expansions {
        out.bytes(expansion);
    }
    out.option(record.hold.as_deref(), Out::bytes);
    out.0.extend_from_slice(&record.envelope);
    out.0
}

/// What the index needs of a Relocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RelocationFacts {
    pub(super) is_held: bool,
    pub(super) has_warned: bool,
    pub(super) due_unix_ms: u64,
    pub(super) recipients: Vec<RelocatedRecipient>,
}

/// A recipient in a Relocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RelocatedRecipient {
    pub(super) standing: Standing,
    pub(super) tries: u32,
    pub(super) has_outcome: bool,
}

/// The facts without the recipients, the Hold's payload, and the Envelope's.
type RelocationParts<'a> = (RelocationFacts, Option<&'a [u8]>, &'a [u8]);

fn get_relocation<'a>(
    payload: &'a [u8],
    mut recipient: impl FnMut(Standing, u32, Option<&'a [u8]>),
    mut expansion: impl FnMut(&'a [u8]),
) -> Result<RelocationParts<'a>, Malformed> {
    let bad = Malformed("relocation");
    let mut from = In::new(payload, "relocation")?;
    let flags = from.u8()?;
    if flags & !(RELOCATION_HELD | RELOCATION_WARNED) != 0 || from.u16()? != 0 {
        return Err(bad);
    }
    let facts = RelocationFacts {
        is_held: flags & RELOCATION_HELD != 0,
        has_warned: flags & RELOCATION_WARNED != 0,
        due_unix_ms: from.u64()?,
        recipients: Vec::new(),
    };
    let count = from.u32()?;
    if count > RECIPIENTS_MAX {
        return Err(bad);
    }
    for _ in 0..count {
        let standing = match from.u8()? {
            0 => Standing::Pending,
            1 => Standing::Expanded,
            2 => Standing::Delivered,
            3 => Standing::Failed,
            _ => return Err(bad),
        };
        let tries = from.u32()?;
        recipient(standing, tries, from.option(In::bytes)?);
    }
    for _ in 0..from.u32()? {
        expansion(from.bytes()?);
    }
    let hold = from.option(In::bytes)?;
    Ok((facts, hold, from.rest))
}

/// Reads what the index needs of a Relocation.
pub(super) fn relocation_facts(payload: &[u8]) -> Result<RelocationFacts, Malformed> {
    let mut recipients = Vec::new();
    let (facts, _, envelope) = get_relocation(
        payload,
        |standing, tries, outcome| {
            recipients.push(RelocatedRecipient {
                standing,
                tries,
                has_outcome: outcome.is_some(),
            });
        },
        |_| {},
    )?;
    envelope_facts(envelope)?;
    Ok(RelocationFacts {
        recipients,
        ..facts
    })
}

/// The Envelope's payload in a Relocation's, extents included.
pub(super) fn relocated_envelope(payload: &[u8]) -> Result<&[u8], Malformed> {
    get_relocation(payload, |_, _, _| {}, |_| {}).map(|(_, _, envelope)| envelope)
}

/// Decodes a Relocation's payload.
pub(super) fn decode_relocation(payload: &[u8]) -> Result<RelocationRecord, Malformed> {
    let mut recipients = Vec::new();
    let mut expansions = Vec::new();
    let (facts, hold, envelope) = get_relocation(
        payload,
        |standing, tries, outcome| recipients.push((standing, tries, outcome.map(<[u8]>::to_vec))),
        |expansion| expansions.push(expansion.to_vec()),
    )?;
    Ok(RelocationRecord {
        is_held: facts.is_held,
        has_warned: facts.has_warned,
        due_unix_ms: facts.due_unix_ms,
        recipients,
        expansions,
        hold: hold.map(<[u8]>::to_vec),
        envelope: split_extents(envelope)?.0.to_vec(),
    })
}

/// The payload of an Envelope without its extents.
pub(super) fn without_extents(payload: &[u8]) -> Result<&[u8], Malformed> {
    split_extents(payload).map(|(head, _)| head)
}

/// Batch numbers that are dead (Void) or were passed over (Skip), both ends included.
pub(super) fn encode_void(first: BatchNumber, last: BatchNumber) -> Vec<u8> {
    let mut out = Out::default();
    out.u8(VERSION);
    out.u64(first);
    out.u64(last);
    out.0
}

pub(super) fn decode_void(payload: &[u8]) -> Result<(BatchNumber, BatchNumber), Malformed> {
    let mut from = In::new(payload, "void")?;
    let range = (from.u64()?, from.u64()?);
    from.end()?;
    Ok(range)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Address;

    fn envelope() -> Envelope {
        let mut second = Recipient::new("c@d.test");
        second.notify = Notify::When {
            success: true,
            failure: false,
            delay: true,
        };
        second.original_recipient = Some("rfc822;x@y.test".into());
        second.parent = Some(RecipientId(0));
        second.controlling_user = Some(ControllingUser {
            name: "alice".into(),
            uid: 1000,
            gid: 1000,
        });
        let mut envelope = Envelope::new(
            ReversePath::Mailbox(Address::parse("s@sender.test").unwrap()),
            vec![Recipient::new("a@b.test"), second],
        );
        envelope.arrival.client_address = Some("127.0.0.1".parse().unwrap());
        envelope.arrival.unix_ms = 99;
        envelope.envelope_id = Some("e1".into());
        envelope.quarantine = Some("why".into());
        envelope
    }

    #[test]
    fn envelopes_round_trip_with_their_extents() {
        let extents = [
            Extent {
                segment: 4,
                offset: 8192,
                length: 17,
            },
            Extent {
                segment: 3,
                offset: 4096,
                length: 9,
            },
        ];
        let mut payload = encode_envelope(&envelope(), 26);
        let crc = append_extents(&mut payload.clone(), crc32fast::hash(&payload), &extents);
        append_extents(&mut payload, 0, &extents);
        assert_eq!(crc, crc32fast::hash(&payload));
        assert_eq!(decode_envelope(&payload).unwrap(), envelope());
        assert_eq!(decode_extents(&payload).unwrap(), extents);
        let facts = envelope_facts(&payload).unwrap();
        assert_eq!((facts.recipients, facts.content_bytes), (2, 26));
        // 32 bytes of frame header each, and rounded up to 8.
        assert_eq!(content_places(&payload, 4).unwrap(), (56, vec![(3, 48)]));
        assert!(facts.is_quarantined);
    }

    #[test]
    fn a_hold_may_have_a_reason_and_older_ones_have_none() {
        for (reason, is_held) in [(Some("spam suspect"), true), (None, true), (None, false)] {
            let payload = encode_hold(is_held, "uid 0", reason);
            let expected = HoldRecord {
                is_held,
                by: "uid 0".to_owned(),
                reason: reason.map(str::to_owned),
            };
            assert_eq!(decode_hold(&payload), Ok(expected));
            let longer = [&payload[..], &[0]].concat();
            assert!(decode_hold(&longer).is_err());
        }
        // As it was written before there were reasons.
        let old = [&[1, 1, 4, 0, 0, 0][..], b"root"].concat();
        assert_eq!(decode_hold(&old).map(|hold| hold.reason), Ok(None));
    }

    #[test]
    fn a_relocation_holds_all_that_became_of_a_message() {
        let extents = [Extent {
            segment: 9,
            offset: 4096,
            length: 26,
        }];
        let record = RelocationRecord {
            is_held: true,
            has_warned: false,
            due_unix_ms: 99,
            recipients: vec![
                (Standing::Expanded, 0, None),
                (Standing::Pending, 3, Some(vec![1, 2, 3])),
            ],
            expansions: vec![vec![7; 9]],
            hold: Some(encode_hold(true, "root", Some("spam suspect"))),
            envelope: encode_envelope(&envelope(), 26),
        };
        let mut payload = encode_relocation(&record);
        append_extents(&mut payload, 0, &extents);
        assert_eq!(decode_relocation(&payload).unwrap(), record);
        assert_eq!(decode_extents(&payload).unwrap(), extents);
        assert_eq!(content_places(&payload, 9).unwrap(), (64, vec![]));
        let within = relocated_envelope(&payload).unwrap();
        assert_eq!(decode_envelope(within).unwrap(), envelope());
        let facts = relocation_facts(&payload).unwrap();
        assert!(facts.is_held && facts.recipients[1].has_outcome);
        for len in 0..payload.len() {
            let cut = relocated_envelope(&payload[..len]).and_then(decode_envelope);
            assert!(cut.is_err(), "{len}");
        }
    }

    #[test]
    fn cut_records_are_errors_and_never_panics() {
        let mut payload = encode_envelope(&envelope(), 26);
        append_extents(&mut payload, 0, &[]);
        for len in 0..payload.len() {
            assert!(decode_envelope(&payload[..len]).is_err(), "{len}");
        }
        let outcome = encode_outcome(&OutcomeRecord {
            recipient: RecipientId(1),
            tries: 3,
            next_due_unix_ms: 12,
            has_warned: true,
            outcome: Outcome::new(
                Delivery::Deferred,
                Status::new(4, 4, 1),
                "esmtp",
                "Deferred: x",
            ),
        });
        assert_eq!(decode_outcome(&outcome).unwrap().tries, 3);
        for len in 0..outcome.len() {
            assert!(decode_outcome(&outcome[..len]).is_err());
        }
        let expansion = ExpansionRecord {
            parent: RecipientId(0),
            first_child: 2,
            children: vec![Recipient::new("bob")],
        };
        let bytes = encode_expansion(&expansion);
        assert_eq!(decode_expansion(&bytes).unwrap(), expansion);
        for len in 0..bytes.len() {
            assert!(decode_expansion(&bytes[..len]).is_err());
        }
    }
}
