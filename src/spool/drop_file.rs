//! Drop files: how a process that may not, or need not, open the spool hands a message to the one that owns it (SPOOL 9).
//!
//! One message is one file in a folder of the client queue: a segment header (number 0) and one batch. The submitter
//! writes `tmp-R`, syncs it, renames it to `drop-MARK`, syncs the folder; only then has it accepted the message. Its
//! cost does not depend on the queue, and no lock is shared with untrusted users.
//!
//! The owner of the queue takes such a file as hostile input: it opens it without following links, wants a regular
//! file with one link and a bounded size, believes no length before it is checked, and takes the submitter from the
//! file's owner and never from its content. Order, so that a message is never lost and never accepted twice:
//!
//! ```text
//! commit with the mark in the envelope -> durable    a crash before: the file is still there, nothing else
//! unlink, sync the folder                            a crash before: the mark is known, the file is removed only
//! forget the mark: the message may be attempted      a crash before: as if it had been attempted later
//! ```
//!
//! All calls block on the disk.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::OFlags;

#[cfg(test)]
use super::faults::{Fault, seeded};
use super::format::{
    BATCH_HEADER_BYTES, BatchHeader, FIRST_BATCH_OFFSET, FRAME_HEADER_BYTES, FrameHeader, Kind,
    SegmentHeader, frame_bytes, round_to_block,
};
use super::record::{self, Extent};
use super::segment::number_in_name;
use super::storage::{OsFile, StorageFile, read_exact_at};
use super::transaction::CommitTicket;
use super::{CHUNK_BYTES_MAX, Spool, SpoolError};
use crate::envelope::{ControllingUser, Envelope, MessageId};
use crate::status::Verdict;

/// Largest control data believed in a drop file: the envelope with all its recipients.
const ENVELOPE_BYTES_MAX: u32 = 16 << 20;
/// Most names of one look at a folder.
const NAMES_MAX: usize = 100_000;
/// Most frames believed in one: 4 GiB of content.
const FRAMES_MAX: u32 = 16 << 10;

/// What can be wrong with a drop file.
#[derive(Debug, thiserror::Error)]
pub enum DropError {
    /// It is not what a submitter of ours writes. Permanent.
    #[error("{name}: {detail}")]
    Bad {
        /// The file's name.
        name: String,
        /// What is wrong.
        detail: String,
    },
    /// It can't be read or removed now. Temporary.
    #[error("{name}: {source}")]
    Io {
        /// The file's name.
        name: String,
        /// The system's error.
        source: io::Error,
    },
    /// The spool does not take it now. Temporary unless it is too large.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

impl DropError {
    /// Whether it may pass by itself.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Bad { .. } => Verdict::Permanent,
            Self::Io { .. } => Verdict::Temporary,
            Self::Spool(error) => error.verdict(),
        }
    }
}

/// A drop folder as the owner of the queue uses it: the seam at which tests put a simulated one.
pub(super) trait DropFolder {
    /// Opens a file without following links; what is no regular file with one link is refused. With it the owner's
    /// user and group.
    fn open(&self, name: &str) -> Result<(Arc<dyn StorageFile>, u32, u32), DropError>;
    /// All names in it; none if there is no folder.
    fn names(&self) -> io::Result<Vec<String>>;
    /// Removes a name; durable after [`DropFolder::sync`].
    fn unlink(&self, name: &str) -> io::Result<()>;
    /// Makes removals durable; nothing to do if there is no folder.
    fn sync(&self) -> io::Result<()>;
}

/// A drop folder of the operating system.
struct OsDropFolder<'a>(&'a Path);

impl DropFolder for OsDropFolder<'_> {
    fn open(&self, name: &str) -> Result<(Arc<dyn StorageFile>, u32, u32), DropError> {
        let bad = |detail: &str| DropError::Bad {
            name: name.to_owned(),
            detail: detail.to_owned(),
        };
        let failed = |source| DropError::Io {
            name: name.to_owned(),
            source,
        };
        let path = self.0.join(name);
        // Looked at first, as opening a device may do something, and a socket can't be opened at all.
        let seen = std::fs::symlink_metadata(&path).map_err(failed)?;
        if seen.is_symlink() {
            return Err(bad("symbolic link"));
        }
        if !seen.is_file() {
            return Err(bad("not a regular file"));
        }
        // It may have been replaced since: no link is followed, and opening a FIFO must not wait for a writer.
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY).bits();
        let file = match OpenOptions::new()
            .read(true)
            .custom_flags(i32::try_from(flags).unwrap_or(0))
            .open(&path)
        {
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
                return Err(bad("symbolic link"));
            }
            other => other.map_err(failed)?,
        };
        let meta = file.metadata().map_err(failed)?;
        if !meta.is_file() {
            return Err(bad("not a regular file"));
        }
        if (meta.dev(), meta.ino()) != (seen.dev(), seen.ino()) {
            return Err(bad("replaced while it was looked at"));
        }
        if meta.nlink() != 1 {
            return Err(bad("more than one link"));
        }
        Ok((Arc::new(OsFile { file }), meta.uid(), meta.gid()))
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let entries = match std::fs::read_dir(self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut names = Vec::new();
        for entry in entries {
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.0.join(name))
    }

    fn sync(&self) -> io::Result<()> {
        match File::open(self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other?.sync_all(),
        }
    }
}

/// Writes a message into a drop folder.
///
/// `message_id` is what the submitter logged; it is shown in listings and is not kept once the message is absorbed.
///
/// # Errors
/// [`SpoolError::Io`], [`SpoolError::Full`], [`SpoolError::TooLarge`] (4 GiB); nothing is left behind then.
/// # Durability
/// On `Ok` the file and its name are synced. Returns the mark.
pub fn write(
    folder: &Path,
    message_id: MessageId,
    envelope: &Envelope,
    content: &mut dyn Read,
) -> Result<u64, SpoolError> {
    let mut random = [0; 16];
    while rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        != Ok(random.len())
    {}
    let (mark, salt) = random.split_at(8);
    let number = |bytes: &[u8]| bytes.try_into().map(u64::from_le_bytes).unwrap_or_default();
    // 0 means "no drop file" in envelopes.
    let (mark, salt) = (number(mark).max(1), number(salt));
    let temporary = folder.join(format!("tmp-{salt:016x}"));
    let written = create(&temporary).and_then(|file| {
        write_into(&file, mark, message_id, envelope, content)?;
        publish(folder, &temporary, mark, &file.file)
    });
    match written {
        Ok(()) => Ok(mark),
        Err(error) => {
            // The name may be gone already, or was never made; nobody relies on it.
            let _ = std::fs::remove_file(&temporary);
            Err(error)
        }
    }
}

fn create(path: &Path) -> Result<OsFile, SpoolError> {
    let flags = i32::try_from(OFlags::NOFOLLOW.bits()).unwrap_or(0);
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o440)
        .custom_flags(flags)
        .open(path)
        .map_err(|e| SpoolError::io("create", &path.display().to_string(), e))?;
    Ok(OsFile { file })
}

/// Writes the whole of a drop file and syncs it.
pub(super) fn write_into(
    file: &dyn StorageFile,
    mark: u64,
    message_id: MessageId,
    envelope: &Envelope,
    content: &mut dyn Read,
) -> Result<(), SpoolError> {
    let name = format!("drop-{mark:016x}");
    let fail = |operation| {
        let name = name.clone();
        move |e| SpoolError::io(operation, &name, e)
    };
    let mut at = BATCH_HEADER_BYTES as u64;
    let mut headers = Vec::new();
    let mut extents = Vec::new();
    let mut content_bytes = 0;
    let mut put = |kind, payload: &[u8], crc, at: &mut u64| -> Result<(), SpoolError> {
        let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
        let header = FrameHeader {
            kind,
            ordinal: 0,
            length,
            message: message_id,
            transaction: 0,
            payload_crc: crc,
        };
        let bytes = header.encode(mark);
        headers.extend_from_slice(&bytes);
        let mut frame = bytes.to_vec();
        frame.extend_from_slice(payload);
        frame.resize(frame_bytes(payload.len()), 0);
        file.write_at(FIRST_BATCH_OFFSET + *at, &[&frame])
            .map_err(fail("write"))?;
        if kind == Kind::Content {
            extents.push(Extent {
                segment: 0,
                offset: FIRST_BATCH_OFFSET + *at,
                length,
            });
        }
        *at += frame.len() as u64;
        if *at > u64::from(u32::MAX) {
            return Err(SpoolError::TooLarge {
                what: "message",
                bytes: *at,
                limit: u64::from(u32::MAX),
            });
        }
        Ok(())
    };
    let mut chunk = Vec::new();
    loop {
        chunk.clear();
        Read::take(&mut *content, CHUNK_BYTES_MAX as u64)
            .read_to_end(&mut chunk)
            .map_err(fail("read"))?;
        if chunk.is_empty() {
            break;
        }
        content_bytes += chunk.len() as u64;
        put(Kind::Content, &chunk, crc32fast::hash(&chunk), &mut at)?;
    }
    let mut payload = record::encode_envelope(envelope, content_bytes);
    // The extents of a drop file are found by walking its frames; the envelope names none.
    let crc = crc32fast::hash(&payload);
    let crc = record::append_extents(&mut payload, crc, &[]);
    put(Kind::Envelope, &payload, crc, &mut at)?;
    let length = u32::try_from(at).unwrap_or(u32::MAX);
    let mut batch = BatchHeader {
        mark,
        length,
        checksum: 0,
        number: 1,
        durable: 0,
        lsn: 1,
        frames: u32::try_from(headers.len() / FRAME_HEADER_BYTES).unwrap_or(u32::MAX),
        chain: 0,
        wall_ms: envelope.arrival.unix_ms,
        ids: 0,
    };
    batch.checksum = batch.checksum_over(&headers);
    file.write_at(FIRST_BATCH_OFFSET, &[&batch.encode()])
        .map_err(fail("write"))?;
    let capacity = FIRST_BATCH_OFFSET + round_to_block(at);
    let header = SegmentHeader {
        number: 0,
        mark,
        lsn: 1,
        batch: 1,
        spool_id: [0; 16],
        capacity,
        wall_ms: envelope.arrival.unix_ms,
        generation: 0,
    }
    .encode();
    file.write_at(0, &[&header, &header])
        .map_err(fail("write"))?;
    if capacity > FIRST_BATCH_OFFSET + at {
        let padding = usize::try_from(capacity - FIRST_BATCH_OFFSET - at).unwrap_or(0);
        file.write_at(FIRST_BATCH_OFFSET + at, &[&vec![0; padding]])
            .map_err(fail("write"))?;
    }
    file.sync().map_err(fail("sync"))
}

fn publish(folder: &Path, temporary: &Path, mark: u64, file: &File) -> Result<(), SpoolError> {
    let name = format!("drop-{mark:016x}");
    std::fs::rename(temporary, folder.join(&name))
        .map_err(|e| SpoolError::io("rename", &name, e))?;
    match File::open(folder) {
        Ok(handle) => handle
            .sync_all()
            .map_err(|e| SpoolError::io("sync", "drop folder", e)),
        // The folder's mode (0730) lets submitters make files but not list them. A rename changes the file's own
        // inode too, and syncing that commits the transaction of the file system which holds the new name.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => file
            .sync_all()
            .map_err(|e| SpoolError::io("sync", &name, e)),
        Err(error) => Err(SpoolError::io("open", "drop folder", error)),
    }
}

/// The names of the drop files in a folder; none if there is no folder.
///
/// # Errors
/// The system's.
pub fn list(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = OsDropFolder(folder).names()?;
    names.retain(|name| number_in_name(name, "drop-").is_some());
    names.sort_unstable();
    Ok(names)
}

/// The names of the drop files in a folder, at most [`NAMES_MAX`], those of each user oldest first, and the users in
/// turns: nobody's thousands keep another's one waiting. None if there is no folder.
///
/// # Errors
/// The system's.
pub fn list_in_turns(folder: &Path) -> io::Result<Vec<String>> {
    /// When it was written, and its name.
    type Aged = ((i64, i64), String);
    let mut of_user: BTreeMap<u32, Vec<Aged>> = BTreeMap::new();
    for name in list(folder)?.into_iter().take(NAMES_MAX) {
        // One that is gone meanwhile has been taken.
        if let Ok(meta) = std::fs::symlink_metadata(folder.join(&name)) {
            let files = of_user.entry(meta.uid()).or_default();
            files.push(((meta.mtime(), meta.mtime_nsec()), name));
        }
    }
    let mut queues: Vec<_> = of_user
        .into_values()
        .map(|mut files| {
            files.sort_unstable();
            files.into_iter()
        })
        .collect();
    let mut names = Vec::new();
    while !queues.is_empty() {
        queues.retain_mut(|queue| match queue.next() {
            Some((_, name)) => {
                names.push(name);
                true
            }
            None => false,
        });
    }
    Ok(names)
}

/// Whether a user has `limit` drop files or more waiting in a folder. A folder too small to hold so many is not read,
/// so that the usual cost does not depend on what waits; one that can't be read (mode 0730) says nothing.
///
/// # Errors
/// The system's.
pub fn is_at_limit(folder: &Path, uid: u32, limit: u32) -> io::Result<bool> {
    // The smallest entry: a name of 21 bytes takes more in every file system but tmpfs, which counts 20 for each.
    const ENTRY_BYTES_MIN: u64 = 16;
    let limit = u64::from(limit);
    let meta = match std::fs::metadata(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other?,
    };
    if meta.len() < limit.saturating_mul(ENTRY_BYTES_MIN) {
        return Ok(false);
    }
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(false),
        other => other?,
    };
    let mut count = 0;
    for entry in entries {
        let entry = entry?;
        let is_ours = entry
            .file_name()
            .to_str()
            .is_some_and(|name| number_in_name(name, "drop-").is_some());
        if is_ours && entry.metadata().is_ok_and(|meta| meta.uid() == uid) {
            count += 1;
            if count >= limit {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// A drop file that is as a submitter of ours writes it.
pub struct Dropped {
    /// Its mark.
    pub mark: u64,
    /// The id that the submitter logged; to be shown, not to be relied on.
    pub message_id: MessageId,
    /// The envelope; its submitter is the file's owner, by number.
    pub envelope: Envelope,
    /// Bytes of content.
    pub content_bytes: u64,
    name: String,
    file: Arc<dyn StorageFile>,
    chunks: Vec<(u64, FrameHeader)>,
}

/// Opens and verifies a drop file of at most `bytes_max` bytes.
///
/// # Errors
/// [`DropError::Bad`], [`DropError::Io`].
pub fn open(folder: &Path, name: &str, bytes_max: u64) -> Result<Dropped, DropError> {
    open_in(&OsDropFolder(folder), name, bytes_max)
}

pub(super) fn open_in(
    folder: &dyn DropFolder,
    name: &str,
    bytes_max: u64,
) -> Result<Dropped, DropError> {
    let bad = |detail: &str| DropError::Bad {
        name: name.to_owned(),
        detail: detail.to_owned(),
    };
    let failed = |source| DropError::Io {
        name: name.to_owned(),
        source,
    };
    let mark = number_in_name(name, "drop-").ok_or_else(|| bad("not the name of a drop file"))?;
    let (file, uid, gid) = folder.open(name)?;
    let file_bytes = file.len().map_err(failed)?;
    if file_bytes > bytes_max {
        return Err(bad(&format!(
            "{file_bytes} bytes are more than the limit of {bytes_max}"
        )));
    }
    let read = |at: u64, length: usize| -> Result<Vec<u8>, DropError> {
        let mut bytes = vec![0; length];
        match read_exact_at(&*file, at, &mut bytes) {
            Ok(()) => Ok(bytes),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(bad("cut off")),
            Err(error) => Err(failed(error)),
        }
    };
    let header = SegmentHeader::decode(&read(0, 4096)?).map_err(bad)?;
    if header.mark != mark || header.number != 0 {
        return Err(bad("mark differs from the file's name"));
    }
    if header.capacity != file_bytes {
        return Err(bad("length differs from its header's"));
    }
    let batch = BatchHeader::decode(&read(FIRST_BATCH_OFFSET, BATCH_HEADER_BYTES)?)
        .ok_or_else(|| bad("cut off"))?;
    let length = u64::from(batch.length);
    if batch.mark != mark || batch.frames > FRAMES_MAX || FIRST_BATCH_OFFSET + length > file_bytes {
        return Err(bad("batch header"));
    }
    let mut at = BATCH_HEADER_BYTES as u64;
    let mut headers = Vec::new();
    let mut chunks = Vec::new();
    let mut content_bytes = 0;
    let mut found = None;
    for _ in 0..batch.frames {
        let bytes = read(FIRST_BATCH_OFFSET + at, FRAME_HEADER_BYTES)?;
        let frame = FrameHeader::decode(&bytes, mark).map_err(bad)?;
        headers.extend_from_slice(&bytes);
        let start = FIRST_BATCH_OFFSET + at + FRAME_HEADER_BYTES as u64;
        let payload = usize::try_from(frame.length).unwrap_or(usize::MAX);
        match frame.kind {
            Kind::Content if found.is_none() && payload <= CHUNK_BYTES_MAX => {
                content_bytes += u64::from(frame.length);
                chunks.push((start, frame));
            }
            Kind::Envelope if found.is_none() && frame.length <= ENVELOPE_BYTES_MAX => {
                let bytes = read(start, payload)?;
                if crc32fast::hash(&bytes) != frame.payload_crc {
                    return Err(bad("envelope checksum"));
                }
                let facts = record::envelope_facts(&bytes).map_err(|e| bad(&e.to_string()))?;
                if facts.content_bytes != content_bytes {
                    return Err(bad("length of the content"));
                }
                let envelope = record::decode_envelope(&bytes).map_err(|e| bad(&e.to_string()))?;
                found = Some((frame.message, envelope));
            }
            _ => return Err(bad("frame out of place")),
        }
        at += frame_bytes(payload) as u64;
    }
    let (message_id, mut envelope) = found.ok_or_else(|| bad("no envelope"))?;
    if at != length || batch.checksum != batch.checksum_over(&headers) {
        return Err(bad("batch checksum"));
    }
    if envelope.recipients.is_empty() {
        return Err(bad("no recipient"));
    }
    for recipient in &mut envelope.recipients {
        // Authority is never taken from the content.
        recipient.controlling_user = None;
        recipient.parent = None;
    }
    envelope.quarantine = None;
    envelope.arrival.submitter = Some(ControllingUser {
        name: uid.to_string(),
        uid,
        gid,
    });
    envelope.arrival.drop_mark = mark;
    Ok(Dropped {
        mark,
        message_id,
        envelope,
        content_bytes,
        name: name.to_owned(),
        file,
        chunks,
    })
}

impl Dropped {
    /// Hands each verified chunk of the content to `take`.
    ///
    /// # Errors
    /// [`DropError::Bad`], [`DropError::Io`], and those of `take`.
    pub fn each_chunk(
        &self,
        take: &mut dyn FnMut(&[u8]) -> Result<(), SpoolError>,
    ) -> Result<(), DropError> {
        for (at, frame) in &self.chunks {
            let mut bytes = vec![0; usize::try_from(frame.length).unwrap_or(usize::MAX)];
            read_exact_at(&*self.file, *at, &mut bytes).map_err(|source| DropError::Io {
                name: self.name.clone(),
                source,
            })?;
            if crc32fast::hash(&bytes) != frame.payload_crc {
                return Err(DropError::Bad {
                    name: self.name.clone(),
                    detail: "content checksum".into(),
                });
            }
            take(&bytes)?;
        }
        Ok(())
    }
}

/// A drop file taken over.
#[derive(Debug)]
pub struct Absorbed {
    /// The message it has become.
    pub id: MessageId,
    /// The id that the submitter logged.
    pub submitted_as: MessageId,
    /// Its envelope, for the log.
    pub envelope: Envelope,
    /// Bytes of content.
    pub content_bytes: u64,
}

/// Takes one drop file into the spool and removes it. `complete` may finish the envelope (the submitter's name).
/// `Ok(None)` if it had been taken already and only its removal was left to do.
///
/// # Errors
/// Each of [`DropError`]; the file is then still there, and will be taken by a later call, or is to be set aside with
/// [`set_aside`] if it is bad.
/// # Durability
/// On `Ok` the message is committed, the removal synced, and the message may be attempted.
pub fn absorb(
    spool: &Spool,
    folder: &Path,
    name: &str,
    bytes_max: u64,
    complete: &mut dyn FnMut(&mut Envelope),
) -> Result<Option<Absorbed>, DropError> {
    let folder = OsDropFolder(folder);
    absorb_in(
        spool,
        &folder,
        name,
        bytes_max,
        complete,
        &mut CommitTicket::wait,
    )
}

/// As [`absorb`], in any folder; `wait` waits for the commit.
pub(super) fn absorb_in(
    spool: &Spool,
    folder: &dyn DropFolder,
    name: &str,
    bytes_max: u64,
    complete: &mut dyn FnMut(&mut Envelope),
    wait: &mut dyn FnMut(CommitTicket) -> Result<MessageId, SpoolError>,
) -> Result<Option<Absorbed>, DropError> {
    let dropped = open_in(folder, name, bytes_max)?;
    let absorbed = if spool.absorbed(dropped.mark).is_some() {
        None
    } else {
        let mut transaction = spool.begin()?;
        dropped.each_chunk(&mut |bytes| transaction.append_content(bytes))?;
        let mut envelope = dropped.envelope.clone();
        complete(&mut envelope);
        envelope.arrival.drop_mark = dropped.mark;
        #[cfg(test)]
        seeded(Fault::DropRemovedFirst).then(|| folder.unlink(name));
        let id = wait(transaction.commit(envelope.clone()))?;
        let (submitted_as, content_bytes) = (dropped.message_id, dropped.content_bytes);
        Some(Absorbed {
            id,
            submitted_as,
            envelope,
            content_bytes,
        })
    };
    remove(folder, name)?;
    spool.forget_drop_mark(dropped.mark);
    Ok(absorbed)
}

/// Removes a drop file and makes that durable.
fn remove(folder: &dyn DropFolder, name: &str) -> Result<(), DropError> {
    let failed = |source| DropError::Io {
        name: name.to_owned(),
        source,
    };
    match folder.unlink(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => other.map_err(failed)?,
    }
    #[cfg(test)]
    if seeded(Fault::DropRemovalUnsynced) {
        return Ok(());
    }
    folder.sync().map_err(failed)
}

/// Renames a bad drop file to `bad-MARK`, so that it is not looked at again, and is there for the operator.
///
/// # Errors
/// [`DropError::Io`].
pub fn set_aside(folder: &Path, name: &str) -> Result<(), DropError> {
    let failed = |source| DropError::Io {
        name: name.to_owned(),
        source,
    };
    let mut new = name.replacen("drop-", "bad-", 1);
    if std::fs::symlink_metadata(folder.join(&new)).is_ok() {
        // What an earlier one of that name was is still to be seen.
        let mut random = [0; 8];
        while rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
            != Ok(random.len())
        {}
        new = format!("{new}-{:016x}", u64::from_le_bytes(random));
    }
    std::fs::rename(folder.join(name), folder.join(new)).map_err(failed)?;
    File::open(folder)
        .and_then(|handle| handle.sync_all())
        .map_err(failed)
}

/// At a start, before the first [`absorb`]: forgets marks whose files are gone, and makes their absence durable first,
/// so that their messages may be attempted.
///
/// # Errors
/// [`DropError::Io`].
pub fn settle(spool: &Spool, folder: &Path) -> Result<(), DropError> {
    settle_in(spool, &OsDropFolder(folder)).map_err(|source| DropError::Io {
        name: folder.display().to_string(),
        source,
    })
}

/// As [`settle`], in any folder.
pub(super) fn settle_in(spool: &Spool, folder: &dyn DropFolder) -> io::Result<()> {
    let marks = spool.drop_marks();
    if marks.is_empty() {
        return Ok(());
    }
    folder.sync()?;
    let present: std::collections::HashSet<u64> = folder
        .names()?
        .iter()
        .filter_map(|name| number_in_name(name, "drop-"))
        .collect();
    for mark in marks.into_iter().filter(|mark| !present.contains(mark)) {
        spool.forget_drop_mark(mark);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::ReversePath;
    use crate::clock::SystemClock;
    use crate::envelope::Recipient;
    use crate::spool::storage::OsStorage;
    use crate::spool::{SpoolOptions, Writer};
    use std::sync::Arc;
    use std::time::Duration;

    const LIMIT: u64 = 64 << 20;

    fn spool(folder: &Path) -> (Spool, Writer) {
        let storage = Arc::new(OsStorage::open(folder).unwrap());
        let options = SpoolOptions {
            segment_bytes: 1 << 20,
            ..SpoolOptions::default()
        };
        let (spool, writer, _) =
            Spool::open(storage, Arc::new(SystemClock::new()), options).unwrap();
        (spool, writer)
    }

    fn drop_one(folder: &Path, content: &[u8]) -> String {
        let mut envelope = Envelope::new(ReversePath::Null, vec![Recipient::new("bob")]);
        envelope.recipients[0].controlling_user = Some(ControllingUser {
            name: "root".into(),
            uid: 0,
            gid: 0,
        });
        let mark = write(
            folder,
            MessageId::from_number(5),
            &envelope,
            &mut &content[..],
        )
        .unwrap();
        format!("drop-{mark:016x}")
    }

    #[test]
    fn a_drop_file_is_absorbed_once_and_its_owner_is_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let (queue, drops) = (dir.path().join("q"), dir.path().join("d"));
        std::fs::create_dir(&queue).unwrap();
        std::fs::create_dir(&drops).unwrap();
        let content = vec![b'x'; 600_000];
        let name = drop_one(&drops, &content);
        assert_eq!(list(&drops).unwrap(), std::slice::from_ref(&name));
        let copy = std::fs::read(drops.join(&name)).unwrap();
        let (spool, writer) = spool(&queue);
        let thread = std::thread::spawn(move || writer.run());
        let absorbed = absorb(&spool, &drops, &name, LIMIT, &mut |_| {})
            .unwrap()
            .unwrap();
        assert_eq!(list(&drops).unwrap(), Vec::<String>::new());
        let message = spool.message(absorbed.id).unwrap();
        assert_eq!(message.envelope.recipients[0].controlling_user, None);
        let owner = rustix::process::getuid().as_raw();
        assert_eq!(
            message.envelope.arrival.submitter.as_ref().unwrap().uid,
            owner
        );
        assert_eq!(message.content_bytes, 600_000);
        // The file is back, as after a crash that lost its removal: known, so only removed.
        let lease = spool.lease_due(Duration::from_secs(5)).unwrap();
        drop(lease);
        lockable_again(&spool, &drops, &name, &copy);
        spool.close();
        thread.join().unwrap();
    }

    /// Puts the mark back as recovery would find it, and absorbs again.
    fn lockable_again(spool: &Spool, drops: &Path, name: &str, copy: &[u8]) {
        let mark = number_in_name(name, "drop-").unwrap();
        let id = spool.ids()[0];
        crate::spool::lock(&spool.inner.index).add_drop_mark(mark, id);
        assert!(
            spool.lease_due(Duration::from_secs(5)).is_none(),
            "not before the removal is durable"
        );
        std::fs::write(drops.join(name), copy).unwrap();
        assert!(
            absorb(spool, drops, name, LIMIT, &mut |_| {})
                .unwrap()
                .is_none()
        );
        assert_eq!(spool.ids().len(), 1);
        assert!(spool.lease_due(Duration::from_secs(5)).is_some());
    }

    #[test]
    fn hostile_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let drops = dir.path();
        let name = drop_one(drops, b"hello");
        let good = std::fs::read(drops.join(&name)).unwrap();
        assert!(
            matches!(open(drops, &name, 100), Err(DropError::Bad { .. })),
            "size limit"
        );
        std::fs::hard_link(drops.join(&name), drops.join("other")).unwrap();
        assert!(
            matches!(open(drops, &name, LIMIT), Err(DropError::Bad { .. })),
            "two links"
        );
        std::fs::remove_file(drops.join("other")).unwrap();
        let link = "drop-00000000000000aa";
        std::os::unix::fs::symlink(drops.join(&name), drops.join(link)).unwrap();
        assert!(
            matches!(open(drops, link, LIMIT), Err(DropError::Bad { .. })),
            "symbolic link"
        );
        for len in (0..good.len()).step_by(97) {
            std::fs::remove_file(drops.join(&name)).unwrap();
            std::fs::write(drops.join(&name), &good[..len]).unwrap();
            assert!(open(drops, &name, LIMIT).is_err(), "cut to {len}");
        }
        // Every byte of the batch flipped once is noticed, up to the padding.
        let end = 8192 + u32::from_le_bytes(good[8200..8204].try_into().unwrap()) as usize;
        for at in 8192..end {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            std::fs::write(drops.join(&name), &bad).unwrap();
            let result =
                open(drops, &name, LIMIT).and_then(|dropped| dropped.each_chunk(&mut |_| Ok(())));
            let is_frame_padding = result.is_ok();
            assert!(!is_frame_padding || good[at] == 0, "byte {at}");
        }
        set_aside(drops, &name).unwrap();
        assert!(!list(drops).unwrap().contains(&name));
    }

    /// Why a file is refused; panics if it is taken, or if the refusal is of the passing kind.
    fn refusal(folder: &Path, name: &str, limit: u64) -> String {
        match open(folder, name, limit).and_then(|file| file.each_chunk(&mut |_| Ok(()))) {
            Err(DropError::Bad { detail, .. }) => detail,
            other => panic!("{name}: {other:?}"),
        }
    }

    #[test]
    fn what_is_no_regular_file_with_one_link_is_refused_without_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let drops = dir.path();
        let name = drop_one(drops, b"hello");
        let at = |number: u64| format!("drop-{number:016x}");
        std::os::unix::fs::symlink(drops.join(&name), drops.join(at(1))).unwrap();
        assert_eq!(refusal(drops, &at(1), LIMIT), "symbolic link");
        std::os::unix::fs::symlink("/nowhere", drops.join(at(2))).unwrap();
        assert_eq!(refusal(drops, &at(2), LIMIT), "symbolic link");
        std::fs::create_dir(drops.join(at(3))).unwrap();
        assert_eq!(refusal(drops, &at(3), LIMIT), "not a regular file");
        let mode = rustix::fs::Mode::from_raw_mode(0o644);
        let node = |number, kind, device| {
            rustix::fs::mknodat(rustix::fs::CWD, drops.join(at(number)), kind, mode, device)
        };
        node(4, rustix::fs::FileType::Fifo, 0).unwrap();
        assert_eq!(refusal(drops, &at(4), LIMIT), "not a regular file");
        let _socket = std::os::unix::net::UnixListener::bind(drops.join(at(5))).unwrap();
        assert_eq!(refusal(drops, &at(5), LIMIT), "not a regular file");
        // /dev/null; only root may make one.
        if node(
            6,
            rustix::fs::FileType::CharacterDevice,
            rustix::fs::makedev(1, 3),
        )
        .is_ok()
        {
            assert_eq!(refusal(drops, &at(6), LIMIT), "not a regular file");
        }
        std::fs::hard_link(drops.join(&name), drops.join(at(7))).unwrap();
        assert_eq!(refusal(drops, &at(7), LIMIT), "more than one link");
        // Each can be set aside, a folder too, and again under the same name.
        for number in 1..=5 {
            set_aside(drops, &at(number)).unwrap();
            std::fs::write(drops.join(at(number)), b"again").unwrap();
            set_aside(drops, &at(number)).unwrap();
        }
        let left = list(drops).unwrap();
        assert!(
            (1..=5).all(|number| !left.contains(&at(number))),
            "{left:?}"
        );
        let bad = std::fs::read_dir(drops).unwrap().flatten();
        let is_bad =
            |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().starts_with("bad-");
        assert_eq!(bad.filter(is_bad).count(), 10, "nothing replaces another");
    }

    #[test]
    fn lengths_in_a_file_are_believed_only_as_far_as_the_file_goes() {
        let dir = tempfile::tempdir().unwrap();
        let drops = dir.path();
        let name = drop_one(drops, b"hello");
        let good = std::fs::read(drops.join(&name)).unwrap();
        std::fs::remove_file(drops.join(&name)).unwrap();
        let mark = number_in_name(&name, "drop-").unwrap();
        // A sparse file of a terabyte whose header agrees.
        let header = |capacity| {
            SegmentHeader {
                number: 0,
                mark,
                lsn: 1,
                batch: 1,
                spool_id: [0; 16],
                capacity,
                wall_ms: 0,
                generation: 0,
            }
            .encode()
        };
        use std::os::unix::fs::FileExt;
        let huge = File::create(drops.join(&name)).unwrap();
        huge.write_all_at(&good, 0).unwrap();
        huge.write_all_at(&header(1 << 40), 0).unwrap();
        huge.set_len(1 << 40).unwrap();
        assert!(refusal(drops, &name, LIMIT).contains("more than the limit"));
        // Without a limit the frames decide, and they are as good as before.
        assert!(open(drops, &name, u64::MAX).is_ok());
        drop(huge);
        // A batch that says that it is longer than the file, and frames that say so.
        for (at, what) in [
            (8192 + 8, "batch header"),
            (8192 + 64 + 4, "frame header checksum"),
        ] {
            let mut bad = good.clone();
            bad[at..at + 4].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
            std::fs::write(drops.join(&name), &bad).unwrap();
            assert_eq!(refusal(drops, &name, LIMIT), what);
        }
        // A frame of 4 GiB with a checksum that is right.
        let mut bad = good.clone();
        let mut frame = FrameHeader::decode(&good[8256..], mark).unwrap();
        frame.length = u32::MAX;
        bad[8256..8256 + FRAME_HEADER_BYTES].copy_from_slice(&frame.encode(mark));
        std::fs::write(drops.join(&name), &bad).unwrap();
        assert_eq!(refusal(drops, &name, LIMIT), "frame out of place");
        // Two million frames.
        let mut bad = good;
        bad[8192 + 40..8192 + 44].copy_from_slice(&2_000_000_u32.to_le_bytes());
        std::fs::write(drops.join(&name), &bad).unwrap();
        assert_eq!(refusal(drops, &name, LIMIT), "batch header");
    }

    #[test]
    fn a_name_that_is_replaced_while_it_is_looked_at_is_never_followed() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let dir = tempfile::tempdir().unwrap();
        let drops = dir.path().join("d");
        std::fs::create_dir(&drops).unwrap();
        let secret = dir.path().join("secret");
        std::fs::write(&secret, b"not for the mail").unwrap();
        let name = drop_one(&drops, b"hello");
        let good = std::fs::read(drops.join(&name)).unwrap();
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let next = drops.join("next");
                while !is_done.load(Ordering::Relaxed) {
                    std::os::unix::fs::symlink(&secret, &next).unwrap();
                    std::fs::rename(&next, drops.join(&name)).unwrap();
                    std::fs::write(&next, &good).unwrap();
                    std::fs::rename(&next, drops.join(&name)).unwrap();
                }
            });
            let (mut taken, mut refused) = (0, 0);
            for _ in 0..2000 {
                match open(&drops, &name, LIMIT) {
                    Ok(file) => {
                        taken += 1;
                        // What was opened stays what it was, whatever the name means by now.
                        file.each_chunk(&mut |bytes| {
                            assert_eq!(bytes, b"hello");
                            Ok(())
                        })
                        .unwrap();
                    }
                    Err(DropError::Bad { detail, .. }) => {
                        refused += 1;
                        let known = [
                            "symbolic link",
                            "replaced while it was looked at",
                            "more than one link",
                        ];
                        assert!(known.contains(&detail.as_str()), "{detail}");
                    }
                    Err(other) => panic!("{other}"),
                }
            }
            is_done.store(true, Ordering::Relaxed);
            assert!(taken > 0 && refused > 0, "{taken} {refused}");
        });
    }

    #[test]
    fn users_take_turns_and_have_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let drops = dir.path();
        let own = rustix::process::geteuid().as_raw();
        let one = drop_one(drops, b"x");
        let good = std::fs::read(drops.join(&one)).unwrap();
        std::fs::remove_file(drops.join(&one)).unwrap();
        for number in 0..10_000_u64 {
            std::fs::write(drops.join(format!("drop-{number:016x}")), &good[..16]).unwrap();
        }
        assert!(is_at_limit(drops, own, 10_000).unwrap());
        assert!(!is_at_limit(drops, own, 10_001).unwrap());
        assert!(!is_at_limit(drops, own + 1, 1).unwrap());
        assert!(!is_at_limit(&drops.join("missing"), own, 1).unwrap());
        // Another's one file, which only root can make, is second at the latest.
        let other = "drop-ffffffffffffffff";
        std::fs::write(drops.join(other), &good).unwrap();
        let names = if std::os::unix::fs::chown(drops.join(other), Some(own + 1), None).is_ok() {
            let names = list_in_turns(drops).unwrap();
            assert_eq!(names.iter().position(|name| name == other), Some(1));
            names
        } else {
            list_in_turns(drops).unwrap()
        };
        assert_eq!(names.len(), 10_001, "all have their turn");
    }

    #[test]
    fn parallel_drops_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..10 {
                scope.spawn(|| (0..20).for_each(|_| drop(drop_one(dir.path(), b"hello"))));
            }
        });
        assert_eq!(list(dir.path()).unwrap().len(), 200);
    }
}
