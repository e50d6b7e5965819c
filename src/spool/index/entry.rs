//! What the index knows of a message: unpacked for whoever works with it, packed for the millions that wait.
//!
//! A message with one recipient and its content in one segment, which is nearly all mail, takes one [`Packed`] of 56
//! bytes. Whatever does not fit that shape (more recipients, expansions, holds, content in several segments) lies in an
//! [`Extra`] beside it.

use std::sync::Arc;
use std::time::Duration;

use super::slab::{NO_SLOT, Slabs};
use crate::envelope::MessageId;
use crate::spool::checkpoint::Take;
use crate::spool::format::{FRAME_HEADER_BYTES, SegmentNumber};
use crate::spool::record::Standing;

/// Where a frame's header lies, and how long its payload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Place {
    pub(in super::super) segment: SegmentNumber,
    pub(in super::super) offset: u64,
    pub(in super::super) length: u32,
}

impl Place {
    /// Bytes that the frame takes in its segment.
    pub(in super::super) fn bytes(&self) -> u64 {
        (FRAME_HEADER_BYTES as u64 + u64::from(self.length)).next_multiple_of(8)
    }
}

/// Where an Expansion lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct ExpansionPlace {
    pub(in super::super) place: Place,
    /// Its first child, by which it is told from the others when a start writes it again; 0 in one from a checkpoint,
    /// which covers only what is durable and is not written again.
    pub(super) first_child: u32,
}

impl From<Place> for ExpansionPlace {
    fn from(place: Place) -> Self {
        Self {
            place,
            first_child: 0,
        }
    }
}

/// Where the last outcome of a pending recipient is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Last {
    /// There is none yet.
    Nowhere,
    /// In a frame of its own.
    At(Place),
    /// In the message's Relocation.
    Relocated,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct RecipientEntry {
    pub(in super::super) standing: Standing,
    /// Attempts so far, at most [`TRIES_MAX`].
    pub(in super::super) tries: u32,
    pub(in super::super) last: Last,
}

/// More attempts are not told apart.
pub(in super::super) const TRIES_MAX: u32 = (1 << 24) - 1;

impl RecipientEntry {
    pub(in super::super) const NEW: Self = Self {
        standing: Standing::Pending,
        tries: 0,
        last: Last::Nowhere,
    };

    /// The place of the outcome's own frame, if it has one.
    pub(in super::super) fn place(&self) -> Option<Place> {
        match self.last {
            Last::At(place) => Some(place),
            Last::Nowhere | Last::Relocated => None,
        }
    }
}

/// A live message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Entry {
    /// Its Envelope, or its Relocation.
    pub(in super::super) envelope: Place,
    /// `envelope` is a Relocation.
    pub(in super::super) is_relocated: bool,
    /// Bytes of content, frames included, in the segment of `envelope`.
    pub(in super::super) bytes_here: u64,
    /// The same in other segments.
    pub(in super::super) elsewhere: Vec<(SegmentNumber, u64)>,
    /// On the monotonic clock, to the millisecond.
    pub(in super::super) due: Duration,
    pub(in super::super) is_held: bool,
    pub(in super::super) has_warned: bool,
    pub(in super::super) recipients: Vec<RecipientEntry>,
    /// Expansions since the last Relocation.
    pub(in super::super) expansions: Vec<ExpansionPlace>,
    /// The last Hold since the last Relocation.
    pub(in super::super) hold: Option<Place>,
}

impl Entry {
    /// Whether nothing of the message lies in this segment but last outcomes.
    pub(in super::super) fn has_only_outcomes_in(&self, segment: SegmentNumber) -> bool {
        self.envelope.segment != segment
            && self.elsewhere.iter().all(|(other, _)| *other != segment)
            && self
                .expansions
                .iter()
                .map(|expansion| expansion.place)
                .chain(self.hold)
                .all(|place| place.segment != segment)
    }

    /// Each segment in which something of the message lives, with its bytes; a segment may come several times.
    pub(in super::super) fn pins(&self) -> impl Iterator<Item = (SegmentNumber, u64)> + '_ {
        let lasts = self.recipients.iter().filter_map(RecipientEntry::place);
        std::iter::once((
            self.envelope.segment,
            self.envelope.bytes() + self.bytes_here,
        ))
        .chain(self.elsewhere.iter().copied())
        .chain(
            self.expansions
                .iter()
                .map(|expansion| expansion.place)
                .chain(self.hold)
                .chain(lasts)
                .map(|place| (place.segment, place.bytes())),
        )
    }
}

/// A place as it is packed: segment, offset in units of 8 bytes, length.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in super::super) struct PackedPlace {
    segment: u32,
    offset: u32,
    length: u32,
}

impl PackedPlace {
    /// `None` for a segment number over 32 bits or an offset over 32 GiB, which no spool reaches.
    pub(super) fn pack(place: Place) -> Option<Self> {
        Some(Self {
            segment: u32::try_from(place.segment).ok()?,
            offset: u32::try_from(place.offset / 8)
                .ok()
                .filter(|_| place.offset.is_multiple_of(8))?,
            length: place.length,
        })
    }

    pub(super) fn place(self) -> Place {
        Place {
            segment: self.segment.into(),
            offset: u64::from(self.offset) * 8,
            length: self.length,
        }
    }
}

/// A recipient as it is packed: 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in super::super) struct PackedRecipient {
    last: PackedPlace,
    /// Tries in the low 24 bits, standing in the next two, then whether there is a last outcome and whether it lies in
    /// the Relocation.
    word: u32,
}

const HAS_LAST: u32 = 1 << 26;
const LAST_RELOCATED: u32 = 1 << 27;

impl PackedRecipient {
    pub(super) fn pack(recipient: &RecipientEntry) -> Option<Self> {
        let standing = match recipient.standing {
            Standing::Pending => 0,
            Standing::Expanded => 1,
            Standing::Delivered => 2,
            Standing::Failed => 3,
        };
        let (last, flags) = match recipient.last {
            Last::Nowhere => (PackedPlace::default(), 0),
            Last::At(place) => (PackedPlace::pack(place)?, HAS_LAST),
            Last::Relocated => (PackedPlace::default(), LAST_RELOCATED),
        };
        Some(Self {
            last,
            word: recipient.tries.min(TRIES_MAX) | standing << 24 | flags,
        })
    }

    pub(super) fn recipient(self) -> RecipientEntry {
        RecipientEntry {
            standing: self.standing(),
            tries: self.word & TRIES_MAX,
            last: if self.word & HAS_LAST != 0 {
                Last::At(self.last.place())
            } else if self.word & LAST_RELOCATED != 0 {
                Last::Relocated
            } else {
                Last::Nowhere
            },
        }
    }

    pub(super) fn standing(self) -> Standing {
        match self.word >> 24 & 3 {
            0 => Standing::Pending,
            1 => Standing::Expanded,
            2 => Standing::Delivered,
            _ => Standing::Failed,
        }
    }
}

/// What does not fit into a [`Packed`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in super::super) struct Extra {
    pub(super) recipients: Vec<PackedRecipient>,
    pub(super) expansions: Vec<ExpansionPlace>,
    pub(super) hold: Option<Place>,
    pub(super) elsewhere: Vec<(SegmentNumber, u64)>,
}

/// A message as it waits: 56 bytes.
#[derive(Debug, Clone)]
pub(in super::super) struct Packed {
    pub(super) id: MessageId,
    /// Monotonic clock, ms.
    pub(super) due: u64,
    pub(super) envelope: PackedPlace,
    /// Bytes of content in the envelope's segment, in units of 8.
    pub(super) units_here: u32,
    /// The one recipient, unless there is an [`Extra`].
    pub(super) recipient: PackedRecipient,
    /// Slot of the [`Extra`], or [`NO_SLOT`].
    pub(super) extra: u32,
    pub(super) flags: u8,
}

pub(super) const HELD: u8 = 1;
pub(super) const WARNED: u8 = 2;
pub(super) const RELOCATED: u8 = 4;
/// A message is here; without it the slot is vacant.
pub(super) const TAKEN: u8 = 8;
/// In a checkpoint only: an [`Extra`] follows.
const EXTRA: u8 = 16;

impl Packed {
    pub(super) const VACANT: Self = Self {
        id: MessageId::from_number(0),
        due: 0,
        envelope: PackedPlace {
            segment: 0,
            offset: 0,
            length: 0,
        },
        units_here: 0,
        recipient: PackedRecipient {
            last: PackedPlace {
                segment: 0,
                offset: 0,
                length: 0,
            },
            word: 0,
        },
        extra: NO_SLOT,
        flags: 0,
    };

    pub(super) fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    pub(super) fn set(&mut self, flag: u8, is_set: bool) {
        if is_set {
            self.flags |= flag;
        } else {
            self.flags &= !flag;
        }
    }
}

impl Packed {
    /// Writes a message as a checkpoint holds it (`checkpoint.rs` has the layout).
    pub(in super::super) fn put(
        &self,
        extra: Option<&Extra>,
        out: &mut Vec<u8>,
        to_wall: impl Fn(Duration) -> u64,
    ) {
        let due = to_wall(Duration::from_millis(self.due));
        out.extend_from_slice(&self.id.number().to_le_bytes());
        out.extend_from_slice(&due.to_le_bytes());
        self.envelope.put(out);
        out.extend_from_slice(&self.units_here.to_le_bytes());
        let flags = self.flags & (HELD | WARNED | RELOCATED) | (u8::from(extra.is_some()) * EXTRA);
        out.extend_from_slice(&u32::from(flags).to_le_bytes());
        self.recipient.put(out);
        let Some(extra) = extra else { return };
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
        out.extend_from_slice(&count(extra.recipients.len()));
        for recipient in &extra.recipients {
            recipient.put(out);
        }
        out.extend_from_slice(&count(extra.expansions.len()));
        for expansion in &extra.expansions {
            put_place(out, expansion.place);
        }
        out.push(u8::from(extra.hold.is_some()));
        if let Some(place) = extra.hold {
            put_place(out, place);
        }
        out.extend_from_slice(&count(extra.elsewhere.len()));
        for (segment, bytes) in &extra.elsewhere {
            out.extend_from_slice(&segment.to_le_bytes());
            out.extend_from_slice(&bytes.to_le_bytes());
        }
    }

    /// Reads a message from a checkpoint. `None` if it is malformed.
    pub(in super::super) fn take(
        from: &mut Take<'_>,
        from_wall: impl Fn(u64) -> Duration,
    ) -> Option<(Self, Option<Extra>)> {
        let id = MessageId::from_number(from.u64()?);
        let due = u64::try_from(from_wall(from.u64()?).as_millis()).ok()?;
        let envelope = PackedPlace::take(from)?;
        let units_here = from.u32()?;
        let flags = u8::try_from(from.u32()?).ok()?;
        if flags & !(HELD | WARNED | RELOCATED | EXTRA) != 0 {
            return None;
        }
        let packed = Self {
            id,
            due,
            envelope,
            units_here,
            recipient: PackedRecipient::take(from)?,
            extra: NO_SLOT,
            flags: flags & !EXTRA | TAKEN,
        };
        if flags & EXTRA == 0 {
            return Some((packed, None));
        }
        let mut extra = Extra::default();
        for _ in 0..from.u32()? {
            extra.recipients.push(PackedRecipient::take(from)?);
        }
        for _ in 0..from.u32()? {
            extra.expansions.push(take_place(from)?.into());
        }
        extra.hold = match from.u8()? {
            0 => None,
            1 => Some(take_place(from)?),
            _ => return None,
        };
        for _ in 0..from.u32()? {
            extra.elsewhere.push((from.u64()?, from.u64()?));
        }
        Some((packed, Some(extra)))
    }
}

impl PackedPlace {
    fn put(self, out: &mut Vec<u8>) {
        for field in [self.segment, self.offset, self.length] {
            out.extend_from_slice(&field.to_le_bytes());
        }
    }

    fn take(from: &mut Take<'_>) -> Option<Self> {
        Some(Self {
            segment: from.u32()?,
            offset: from.u32()?,
            length: from.u32()?,
        })
    }
}

impl PackedRecipient {
    fn put(self, out: &mut Vec<u8>) {
        self.last.put(out);
        out.extend_from_slice(&self.word.to_le_bytes());
    }

    fn take(from: &mut Take<'_>) -> Option<Self> {
        let last = PackedPlace::take(from)?;
        let word = from.u32()?;
        (word < LAST_RELOCATED << 1).then_some(Self { last, word })
    }
}

fn put_place(out: &mut Vec<u8>, place: Place) {
    out.extend_from_slice(&place.segment.to_le_bytes());
    out.extend_from_slice(&place.offset.to_le_bytes());
    out.extend_from_slice(&place.length.to_le_bytes());
}

fn take_place(from: &mut Take<'_>) -> Option<Place> {
    Some(Place {
        segment: from.u64()?,
        offset: from.u64()?,
        length: from.u32()?,
    })
}

/// Shared by all slots without one, as most messages have none.
pub(super) type Extras = Slabs<Option<Arc<Extra>>>;

/// Packs an entry. `None` if it can't be: a place beyond what is packed, or more messages than slots.
pub(super) fn pack(id: MessageId, entry: &Entry, extras: &mut Extras) -> Option<Packed> {
    let is_plain = entry.recipients.len() == 1
        && entry.expansions.is_empty()
        && entry.hold.is_none()
        && entry.elsewhere.is_empty();
    let mut packed = Packed {
        id,
        due: u64::try_from(entry.due.as_millis()).ok()?,
        envelope: PackedPlace::pack(entry.envelope)?,
        units_here: u32::try_from(entry.bytes_here.div_ceil(8)).ok()?,
        flags: TAKEN,
        ..Packed::VACANT
    };
    packed.set(HELD, entry.is_held);
    packed.set(WARNED, entry.has_warned);
    packed.set(RELOCATED, entry.is_relocated);
    if let (true, Some(recipient)) = (is_plain, entry.recipients.first()) {
        packed.recipient = PackedRecipient::pack(recipient)?;
    } else {
        let recipients: Option<Vec<_>> =
            entry.recipients.iter().map(PackedRecipient::pack).collect();
        let extra = Extra {
            recipients: recipients?,
            expansions: entry.expansions.clone(),
            hold: entry.hold,
            elsewhere: entry.elsewhere.clone(),
        };
        packed.extra = extras.insert(Some(Arc::new(extra)))?;
    }
    Some(packed)
}

/// The entry in its unpacked form.
pub(super) fn unpack(packed: &Packed, extra: Option<&Extra>) -> Entry {
    Entry {
        recipients: extra.map_or_else(
            || vec![packed.recipient.recipient()],
            |extra| extra.recipients.iter().map(|r| r.recipient()).collect(),
        ),
        expansions: extra.map_or_else(Vec::new, |extra| extra.expansions.clone()),
        ..unpack_place(packed, extra)
    }
}

/// The entry without recipients and expansions.
pub(super) fn unpack_place(packed: &Packed, extra: Option<&Extra>) -> Entry {
    Entry {
        envelope: packed.envelope.place(),
        is_relocated: packed.has(RELOCATED),
        bytes_here: u64::from(packed.units_here) * 8,
        elsewhere: extra.map_or_else(Vec::new, |extra| extra.elsewhere.clone()),
        due: Duration::from_millis(packed.due),
        is_held: packed.has(HELD),
        has_warned: packed.has(WARNED),
        recipients: Vec::new(),
        expansions: Vec::new(),
        hold: extra.and_then(|extra| extra.hold),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_loses_nothing() {
        let place = Place {
            segment: 0xffff_fffe,
            offset: (1 << 30) - 8,
            length: 77,
        };
        let plain = Entry {
            envelope: place,
            is_relocated: true,
            bytes_here: 4104,
            elsewhere: Vec::new(),
            due: Duration::from_millis(1_234_567),
            is_held: true,
            has_warned: true,
            recipients: vec![RecipientEntry {
                standing: Standing::Pending,
                tries: 17,
                last: Last::At(place),
            }],
            expansions: Vec::new(),
            hold: None,
        };
        let mut second = plain.clone();
        second.recipients.push(RecipientEntry {
            standing: Standing::Failed,
            tries: TRIES_MAX,
            last: Last::Relocated,
        });
        second.recipients.push(RecipientEntry::NEW);
        second.expansions = vec![place.into()];
        second.hold = Some(place);
        second.elsewhere = vec![(3, 800), (9, 16)];
        second.is_held = false;
        for entry in [plain, second] {
            let mut extras = Extras::default();
            let packed = pack(MessageId::from_number(5), &entry, &mut extras).unwrap();
            let extra = extras.get(packed.extra).and_then(|e| e.as_deref());
            assert_eq!(unpack(&packed, extra), entry);
        }
        assert_eq!(size_of::<Packed>(), 56);
        let far = Place {
            segment: 1 << 32,
            ..place
        };
        assert!(PackedPlace::pack(far).is_none());
    }
}
