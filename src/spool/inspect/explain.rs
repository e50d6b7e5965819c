//! Everything that lies in a spool's folder, file by file, batch by batch, frame by frame, as facts to print.
//!
//! Nothing is decided here about what counts, and nothing is left out: torn, dead and damaged things are shown where
//! they lie. Writes nothing, takes no lock. Blocks: disk. Memory: one batch.

use std::path::Path;

use super::walk::{Batch, Item, walk};
use super::{DUE_AHEAD_MAX, InspectError, Now, open, segments_of};
use crate::clock::Clock;
use crate::envelope::Recipient;
use crate::spool::checkpoint;
use crate::spool::drop_file;
use crate::spool::format::{FoundFrame, Kind, Padding};
use crate::spool::record;
use crate::spool::segment::{Segment, number_in_name, segment_name};
use crate::spool::storage::{OsStorage, Storage};
use crate::spool::{SpoolError, drop_file::DropError};

/// A value of a [`Fact`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A number.
    Number(u64),
    /// A text.
    Text(String),
    /// Yes or no.
    Flag(bool),
    /// Texts.
    List(Vec<String>),
}

/// One thing in a spool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// 0 for files, 1 for what is in them, 2 for frames.
    pub depth: usize,
    /// `segment`, `batch`, `frame`, `broken`, `unreadable`, `hole`, `checkpoint`, `spare`, `unfinished`, `drop`,
    /// `lock`, `other`.
    pub kind: &'static str,
    /// Its properties, in order.
    pub fields: Vec<(&'static str, Value)>,
}

impl Fact {
    fn new(depth: usize, kind: &'static str) -> Self {
        Self {
            depth,
            kind,
            fields: Vec::new(),
        }
    }

    fn number(mut self, name: &'static str, value: u64) -> Self {
        self.fields.push((name, Value::Number(value)));
        self
    }

    fn text(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.fields.push((name, Value::Text(value.into())));
        self
    }

    fn flag(mut self, name: &'static str, value: bool) -> Self {
        self.fields.push((name, Value::Flag(value)));
        self
    }

    fn list(mut self, name: &'static str, value: Vec<String>) -> Self {
        self.fields.push((name, Value::List(value)));
        self
    }
}

/// What [`explain`] hands each fact to; it may end the whole by its error.
pub type Tell<'a> = &'a mut dyn FnMut(Fact) -> std::io::Result<()>;

/// Tells everything that is in the spool in `folder`. Blocks: disk.
///
/// # Errors
/// [`InspectError`], and that of `tell` as [`SpoolError::Io`].
pub fn explain(
    folder: &Path,
    clock: &dyn Clock,
    drop_bytes_max: u64,
    tell: Tell<'_>,
) -> Result<(), InspectError> {
    let storage = open(folder)?;
    if let Some(pid) = storage.owner() {
        put(tell, Fact::new(0, "lock").number("process", u64::from(pid)))?;
    }
    explain_files(&storage, clock, tell)?;
    explain_drop_folder(&folder.join("drop"), drop_bytes_max, tell)
}

fn put(tell: Tell<'_>, fact: Fact) -> Result<(), InspectError> {
    tell(fact).map_err(|e| InspectError::Spool(SpoolError::io("print", "the explanation", e)))
}

fn explain_files(
    storage: &OsStorage,
    clock: &dyn Clock,
    tell: Tell<'_>,
) -> Result<(), InspectError> {
    let mut names = storage.list().map_err(|e| SpoolError::io("list", ".", e))?;
    names.sort_unstable();
    let now = Now {
        unix_ms: clock.unix_ms(),
        monotonic: clock.monotonic(),
    };
    for (_, name) in checkpoint::names(&names).iter().rev() {
        let fact = Fact::new(0, "checkpoint").text("name", name.as_str());
        let fact = match checkpoint::load(storage, name, DUE_AHEAD_MAX, now) {
            Ok(loaded) => fact
                .number("lsn", loaded.lsn)
                .number("batch", loaded.batch)
                .number("next_id", loaded.next_id)
                .number("next_segment", loaded.next_segment)
                .number("messages", loaded.index.len())
                .number("bytes", loaded.bytes),
            Err(what) => fact.text("damage", what),
        };
        put(tell, fact)?;
    }
    let mut unopened = Vec::new();
    for (segment, header, damage) in segments_of(storage, &names, &mut unopened) {
        let mut fact = Fact::new(0, "segment")
            .text("name", segment_name(segment.number))
            .number("number", segment.number)
            .text("mark", format!("{:016x}", segment.mark))
            .number("capacity", segment.capacity);
        if let Some(header) = header {
            fact = fact
                .number("lsn", header.lsn)
                .number("batch", header.batch)
                .number("generation", u64::from(header.generation))
                .number("unix_ms", header.wall_ms);
        }
        if let Some(damage) = damage {
            fact = fact.text("damage", damage);
        }
        put(tell, fact)?;
        explain_segment(&segment, tell)?;
    }
    for what in unopened {
        put(tell, Fact::new(0, "segment").text("damage", what))?;
    }
    for name in &names {
        let kind = if number_in_name(name, "spare-").is_some() {
            "spare"
        } else if name.starts_with("tmp-") {
            "unfinished"
        } else if number_in_name(name, "segment-").is_some()
            || number_in_name(name, "checkpoint-").is_some()
            || name == "lock"
            || name == "drop"
        {
            continue;
        } else {
            "other"
        };
        put(tell, Fact::new(0, kind).text("name", name.as_str()))?;
    }
    Ok(())
}

fn explain_segment(segment: &Segment, tell: Tell<'_>) -> Result<(), InspectError> {
    let mut result = Ok(());
    walk(segment, &mut |item| {
        if result.is_ok() {
            result = explain_item(&item, tell);
        }
    });
    result
}

fn explain_item(item: &Item, tell: Tell<'_>) -> Result<(), InspectError> {
    match item {
        Item::Batch(batch) => explain_batch(batch, tell),
        Item::Broken {
            offset,
            header,
            what,
        } => put(
            tell,
            Fact::new(1, "broken")
                .number("offset", *offset)
                .number("number", header.number)
                .number("length", u64::from(header.length))
                .text("damage", *what),
        ),
        Item::Unreadable { offset, error } => put(
            tell,
            Fact::new(1, "unreadable")
                .number("offset", *offset)
                .text("damage", error.to_string()),
        ),
        Item::Hole { offset, bytes } => put(
            tell,
            Fact::new(1, "hole")
                .number("offset", *offset)
                .number("bytes", *bytes),
        ),
    }
}

fn explain_batch(batch: &Batch, tell: Tell<'_>) -> Result<(), InspectError> {
    let header = &batch.header;
    let mut fact = Fact::new(1, "batch")
        .number("number", header.number)
        .number("offset", batch.offset)
        .number("length", u64::from(header.length))
        .number("durable", header.durable)
        .number("lsn", header.lsn)
        .number("frames", u64::from(header.frames))
        .number("unix_ms", header.wall_ms);
    if !batch.is_chained {
        fact = fact.text("damage", "does not follow the batch before it");
    }
    if batch.padding == Padding::Dirty {
        fact = fact.text("damage", "its padding is not zero");
    }
    put(tell, fact)?;
    for frame in &batch.frames {
        put(tell, explain_frame(batch, frame))?;
    }
    Ok(())
}

fn explain_frame(batch: &Batch, frame: &FoundFrame) -> Fact {
    let header = &frame.header;
    let mut fact = Fact::new(2, "frame")
        .text("what", format!("{:?}", header.kind).to_lowercase())
        .number("offset", batch.offset + frame.at as u64)
        .number("length", u64::from(header.length));
    if !matches!(
        header.kind,
        Kind::Void | Kind::Skip | Kind::Pulse | Kind::Seal
    ) {
        fact = fact.text("id", header.message.to_string());
    }
    let Ok(payload) = batch.payload(frame) else {
        return fact.text("damage", "payload checksum");
    };
    match explain_payload(header.kind, payload, fact.clone()) {
        Ok(fact) => fact,
        Err(malformed) => fact.text("damage", malformed.to_string()),
    }
}

/// Adds what a control record says.
fn explain_payload(kind: Kind, payload: &[u8], fact: Fact) -> Result<Fact, record::Malformed> {
    let shown = |recipients: &[Recipient]| recipients.iter().map(Recipient::shown).collect();
    Ok(match kind {
        Kind::Envelope => {
            let facts = record::envelope_facts(payload)?;
            let envelope = record::decode_envelope(payload)?;
            let places = record::decode_extents(payload)?
                .iter()
                .map(|e| format!("{:x}+{}:{}", e.segment, e.offset, e.length))
                .collect();
            let mut fact = fact
                .text("from", envelope.sender_shown())
                .list("to", shown(&envelope.recipients))
                .number("content_bytes", facts.content_bytes)
                .number("arrival_unix_ms", facts.arrival_unix_ms)
                .list("content", places);
            if facts.drop_mark != 0 {
                fact = fact.text("drop_mark", format!("{:016x}", facts.drop_mark));
            }
            if let Some(why) = envelope.quarantine {
                fact = fact.text("quarantine", why);
            }
            fact
        }
        Kind::Expansion => {
            let expansion = record::decode_expansion(payload)?;
            fact.number("recipient", u64::from(expansion.parent.0))
                .number("first_child", u64::from(expansion.first_child))
                .list("to", shown(&expansion.children))
        }
        Kind::Outcome => {
            let found = record::decode_outcome(payload)?;
            fact.number("recipient", u64::from(found.recipient.0))
                .text(
                    "result",
                    format!("{:?}", found.outcome.result).to_lowercase(),
                )
                .number("tries", u64::from(found.tries))
                .number("due_unix_ms", found.next_due_unix_ms)
                .flag("warned", found.has_warned)
                .text("mailer", found.outcome.mailer)
                .text("dsn", found.outcome.status.to_string())
                .text("stat", found.outcome.text)
        }
        Kind::Hold => {
            let hold = record::decode_hold(payload)?;
            let fact = fact.flag("held", hold.is_held).text("by", hold.by);
            match hold.reason {
                Some(reason) => fact.text("reason", reason),
                None => fact,
            }
        }
        Kind::Void | Kind::Skip => {
            let (first, last) = record::decode_void(payload)?;
            fact.number("first", first).number("last", last)
        }
        Kind::Relocation => {
            let facts = record::relocation_facts(payload)?;
            let states = facts
                .recipients
                .iter()
                .map(|r| format!("{:?}", r.standing).to_lowercase())
                .collect();
            let fact = fact
                .flag("held", facts.is_held)
                .flag("warned", facts.has_warned)
                .number("due_unix_ms", facts.due_unix_ms)
                .list("states", states);
            explain_payload(Kind::Envelope, record::relocated_envelope(payload)?, fact)?
        }
        Kind::Content | Kind::Removal | Kind::Pulse | Kind::Seal => fact,
    })
}

fn explain_drop_folder(folder: &Path, bytes_max: u64, tell: Tell<'_>) -> Result<(), InspectError> {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(SpoolError::io("list", "drop", error).into()),
    };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    for name in names {
        let mut fact = Fact::new(0, "drop").text("name", format!("drop/{name}"));
        if number_in_name(&name, "drop-").is_some() {
            fact = match drop_file::open(folder, &name, bytes_max) {
                Ok(dropped) => {
                    let envelope = &dropped.envelope;
                    let uid = envelope.arrival.submitter.as_ref().map_or(0, |u| u.uid);
                    let to = envelope.recipients.iter().map(Recipient::shown).collect();
                    fact.text("id", dropped.message_id.to_string())
                        .number("uid", u64::from(uid))
                        .text("from", envelope.sender_shown())
                        .list("to", to)
                        .number("content_bytes", dropped.content_bytes)
                }
                Err(DropError::Bad { detail, .. }) => fact.text("damage", detail),
                Err(error) => fact.text("damage", error.to_string()),
            };
        }
        put(tell, fact)?;
    }
    Ok(())
}
