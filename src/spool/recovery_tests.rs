//! What bad sectors and flipped bits do to a start and to the work after it (SPOOL 6): one message is held and named,
//! one segment is kept for ever, everything else works on; no start is refused, nothing is cut silently.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::journal_tests::{accept, open, options, read};
use super::sim_storage::SimStorage;
use super::storage::{Storage, StorageFile, read_exact_at};
use super::*;
use crate::clock::ManualClock;
use crate::status::Status;

const SEGMENT: &str = "segment-0000000000000001";
const HELD_FOR: Duration = Duration::from_secs(60);

/// Bytes that can't be read: of the file with this name, from, to.
type Bad = Arc<Mutex<Vec<(String, u64, u64)>>>;

/// A simulated disk with bad sectors. Only reading fails, as with a disk that remaps what is written.
#[derive(Clone)]
struct BadSectors {
    disk: SimStorage,
    bad: Bad,
    /// Names of files that can't be opened.
    closed: Arc<Mutex<Vec<String>>>,
}

impl BadSectors {
    fn new(disk: &SimStorage) -> Self {
        Self {
            disk: disk.clone(),
            bad: Bad::default(),
            closed: Arc::default(),
        }
    }

    fn is_open(&self, name: &str) -> io::Result<()> {
        if self.closed.lock().unwrap().iter().any(|one| one == name) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(())
    }

    fn spoil(&self, name: &str, from: u64, to: u64) {
        self.bad.lock().unwrap().push((name.to_owned(), from, to));
    }

    fn wrap(&self, name: &str, file: Arc<dyn StorageFile>) -> Arc<dyn StorageFile> {
        Arc::new(BadFile {
            file,
            name: name.to_owned(),
            bad: Arc::clone(&self.bad),
        })
    }
}

struct BadFile {
    file: Arc<dyn StorageFile>,
    name: String,
    bad: Bad,
}

impl StorageFile for BadFile {
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        let end = offset + into.len() as u64;
        let bad = self.bad.lock().unwrap();
        if bad
            .iter()
            .any(|(name, from, to)| *name == self.name && *from < end && offset < *to)
        {
            return Err(rustix::io::Errno::IO.into());
        }
        self.file.read_at(offset, into)
    }
    fn write_at(&self, offset: u64, pieces: &[&[u8]]) -> io::Result<()> {
        self.file.write_at(offset, pieces)
    }
    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }
    fn fill_zero(&self, len: u64) -> io::Result<()> {
        self.file.fill_zero(len)
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
}

impl Storage for BadSectors {
    fn create(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        Ok(self.wrap(name, self.disk.create(name)?))
    }
    fn open(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        self.is_open(name)?;
        Ok(self.wrap(name, self.disk.open(name)?))
    }
    fn open_read(&self, name: &str) -> io::Result<Arc<dyn StorageFile>> {
        self.is_open(name)?;
        Ok(self.wrap(name, self.disk.open_read(name)?))
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }
    fn unlink(&self, name: &str) -> io::Result<()> {
        self.disk.unlink(name)
    }
    fn list(&self) -> io::Result<Vec<String>> {
        self.disk.list()
    }
    fn sync_dir(&self) -> io::Result<()> {
        self.disk.sync_dir()
    }
    fn lock(&self) -> io::Result<bool> {
        self.disk.lock()
    }
    fn free_bytes(&self) -> io::Result<u64> {
        self.disk.free_bytes()
    }
    fn random(&self) -> u64 {
        self.disk.random()
    }
}

fn start(storage: &BadSectors) -> (Spool, Writer, RecoveryReport) {
    let clock = Arc::new(ManualClock::at(1_795_367_807_000));
    Spool::open(Arc::new(storage.clone()), clock, options()).unwrap()
}

fn find(storage: &SimStorage, name: &str, text: &[u8]) -> u64 {
    let file = storage.open_read(name).unwrap();
    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    read_exact_at(&*file, 0, &mut bytes).unwrap();
    bytes.windows(text.len()).position(|w| w == text).unwrap() as u64
}

fn flip(storage: &SimStorage, name: &str, at: u64) {
    storage.with_bytes(name, |bytes| bytes[usize::try_from(at).unwrap()] ^= 0x20);
}

/// Three messages, each in a batch of its own, proven durable; what a power cut leaves of them.
fn three() -> (SimStorage, [MessageId; 3]) {
    let storage = SimStorage::new(77);
    let (spool, mut writer, _) = open(&storage);
    let ids = ["first", "second", "third"].map(|word| {
        accept(
            &spool,
            &mut writer,
            format!("{word} content").as_bytes(),
            &["bob"],
        )
    });
    writer.step();
    (storage.crash(&mut |_, _| false, 0), ids)
}

/// The others are delivered, and new mail is taken and survives.
fn works_on(spool: &Spool, writer: &mut Writer, others: &[MessageId]) {
    for id in others {
        assert!(!read(spool, *id).is_empty());
        let lease = spool.lease_message(*id, HELD_FOR).unwrap();
        let sent = Outcome::new(Delivery::Delivered, Status::OK, "local", "Sent");
        let update = Update {
            outcomes: vec![(RecipientId(0), sent)],
            ..Update::default()
        };
        let ticket = spool.finish(lease, update).unwrap();
        writer.step();
        ticket.wait().unwrap();
    }
    let new = accept(spool, writer, b"new", &["eve"]);
    assert_eq!(read(spool, new), b"new");
}

#[test]
fn damaged_content_holds_its_message_and_names_it() {
    let (storage, [first, second, third]) = three();
    flip(
        &storage,
        SEGMENT,
        find(&storage, SEGMENT, b"second content"),
    );
    let (spool, mut writer, report) = open(&storage);
    assert!(report.is_damaged);
    let named = second.to_string();
    assert!(
        report.damage.iter().any(|what| what.contains(&named)),
        "{report:?}"
    );
    assert!(spool.message(second).unwrap().is_held);
    assert!(spool.lease_message(second, HELD_FOR).is_none());
    works_on(&spool, &mut writer, &[first, third]);
}

#[test]
fn damaged_control_frames_quarantine_their_segment_which_is_never_recycled() {
    let (storage, [first, second, third]) = three();
    // In the envelope of the second.
    let content = find(&storage, SEGMENT, b"second content");
    flip(&storage, SEGMENT, content + 16 + 32 + 60);
    let before = storage.list().unwrap();
    let (spool, mut writer, report) = open(&storage);
    assert!(report.is_damaged, "{report:?}");
    let named = second.to_string();
    assert!(
        report.damage.iter().any(|what| what.contains(&named)),
        "{report:?}"
    );
    assert_eq!(spool.ids(), [first, third]);
    works_on(&spool, &mut writer, &[first, third]);
    // Much mail later it is still there, and after another start too.
    for round in 0..200 {
        let id = accept(&spool, &mut writer, &[b'x'; 3000], &["bob"]);
        works_off(&spool, &mut writer, id);
        if round % 10 == 0 {
            spool.keep();
        }
    }
    spool.checkpoint().unwrap();
    spool.keep();
    assert!(before.contains(&SEGMENT.to_owned()));
    assert!(storage.list().unwrap().contains(&SEGMENT.to_owned()));
    let after = storage.crash(&mut |_, _| false, 0);
    let (spool, mut writer, _) = open(&after);
    for _ in 0..100 {
        let id = accept(&spool, &mut writer, &[b'x'; 3000], &["bob"]);
        works_off(&spool, &mut writer, id);
    }
    spool.checkpoint().unwrap();
    spool.checkpoint().unwrap();
    spool.keep();
    assert!(after.list().unwrap().contains(&SEGMENT.to_owned()));
    let file = after.open_read(SEGMENT).unwrap();
    let mut bytes = vec![0; 6];
    read_exact_at(&*file, content, &mut bytes).unwrap();
    assert_eq!(bytes, b"second", "as it was found");
}

fn works_off(spool: &Spool, writer: &mut Writer, id: MessageId) {
    let lease = spool.lease_message(id, HELD_FOR).unwrap();
    let sent = Outcome::new(Delivery::Delivered, Status::OK, "local", "Sent");
    let update = Update {
        outcomes: vec![(RecipientId(0), sent)],
        ..Update::default()
    };
    drop(spool.finish(lease, update).unwrap());
    writer.step();
}

#[test]
fn no_single_bad_block_refuses_a_start_or_takes_more_than_what_lies_in_it() {
    let (storage, ids) = three();
    let texts: [&[u8]; 3] = [b"first content", b"second content", b"third content"];
    let places = texts.map(|text| find(&storage, SEGMENT, text));
    let blocks = 64 * 1024 / 4096;
    for block in 0..blocks {
        let disk = storage.crash(&mut |_, _| false, 0);
        let bad = BadSectors::new(&disk);
        bad.spoil(SEGMENT, block * 4096, (block + 1) * 4096);
        let (spool, mut writer, report) = start(&bad);
        assert!(report.is_damaged, "block {block}: {report:?}");
        let unharmed: Vec<MessageId> = ids
            .iter()
            .zip(places)
            .filter(|(_, place)| place / 4096 != block)
            .map(|(id, _)| *id)
            .collect();
        assert_eq!(spool.ids(), unharmed, "block {block}: {report:?}");
        works_on(&spool, &mut writer, &unharmed);
        assert!(disk.list().unwrap().contains(&SEGMENT.to_owned()));
    }
}

#[test]
fn a_segment_that_cannot_be_read_at_all_is_kept_and_the_rest_works() {
    let (storage, _) = three();
    let (spool, mut writer, _) = open(&storage);
    let later = accept(&spool, &mut writer, b"later", &["bob"]);
    writer.step();
    let disk = storage.crash(&mut |_, _| false, 0);
    let bad = BadSectors::new(&disk);
    bad.spoil(SEGMENT, 0, u64::MAX);
    let (spool, mut writer, report) = start(&bad);
    assert!(
        report.damage.iter().any(|what| what.contains(SEGMENT)),
        "{report:?}"
    );
    assert_eq!(spool.ids(), [later]);
    works_on(&spool, &mut writer, &[later]);
    spool.checkpoint().unwrap();
    spool.keep();
    assert!(disk.list().unwrap().contains(&SEGMENT.to_owned()));
}

/// What keeps a segment from being read for a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Closed,
    AllSectors,
    /// The header may be read, and what comes after it in the segment may not.
    Batches,
    /// Only the batch of the second message.
    OneBatch,
}

/// The batch that holds a text, first byte and last.
fn batch_of(storage: &SimStorage, name: &str, text: &[u8]) -> (u64, u64) {
    let at = find(storage, name, text);
    (at - at % 4096, at - at % 4096 + 4096)
}

/// Messages in two segments, of which one can't be read for some starts, while checkpoints are written and mail comes and
/// goes; then it can. `is_covered`: the first segment's first message is in a checkpoint from before.
fn unreadable_for_a_time(trouble: Trouble, victim: u64, is_covered: bool, starts: usize) {
    let place = format!("{trouble:?}, segment {victim}, {is_covered}, {starts} starts");
    let disk = SimStorage::new(77);
    let (spool, mut writer, _) = open(&disk);
    let first = accept(&spool, &mut writer, b"first content", &["bob"]);
    if is_covered {
        spool.checkpoint().unwrap();
    }
    let second = accept(&spool, &mut writer, b"second content", &["bob"]);
    let third = accept(&spool, &mut writer, b"third content", &["bob"]);
    let ended = accept(&spool, &mut writer, b"ended content", &["bob"]);
    writer.step();
    let disk = disk.crash(&mut |_, _| false, 0);
    let (spool, mut writer, _) = open(&disk);
    // Its end lies in another segment than its beginning.
    works_off(&spool, &mut writer, ended);
    let fourth = accept(&spool, &mut writer, b"fourth content", &["bob"]);
    writer.step();
    assert!(spool.message(ended).is_err());
    let mut disk = disk.crash(&mut |_, _| false, 0);

    let name = format!("segment-{victim:016x}");
    let unread: &[MessageId] = match (victim, trouble) {
        (1, Trouble::OneBatch) => &[second],
        (1, _) if is_covered => &[second, third],
        (1, _) => &[first, second, third],
        _ => &[fourth],
    };
    let mut fresh = Vec::new();
    for _ in 0..starts {
        let bad = BadSectors::new(&disk);
        match trouble {
            Trouble::Closed => bad.closed.lock().unwrap().push(name.clone()),
            Trouble::AllSectors => bad.spoil(&name, 0, u64::MAX),
            Trouble::Batches => bad.spoil(&name, 8192, u64::MAX),
            Trouble::OneBatch => {
                let text: &[u8] = if victim == 1 {
                    b"second content"
                } else {
                    b"fourth content"
                };
                let (from, to) = batch_of(&disk, &name, text);
                bad.spoil(&name, from, to);
            }
        }
        let (spool, mut writer, report) = start(&bad);
        assert!(
            report.remarks.iter().any(|what| what.contains(&name)),
            "{place}: {report:?}"
        );
        for id in unread {
            assert!(spool.message(*id).is_err(), "{place}: {id}");
        }
        let new = accept(&spool, &mut writer, b"new content", &["eve"]);
        assert!(!fresh.contains(&new), "{place}");
        fresh.push(new);
        // Enough for segments to be used again, under checkpoints of now.
        for round in 0..60 {
            let id = accept(&spool, &mut writer, &[b'x'; 3000], &["bob"]);
            works_off(&spool, &mut writer, id);
            if round % 20 == 0 {
                spool.checkpoint().unwrap();
                spool.keep();
            }
        }
        spool.checkpoint().unwrap();
        spool.keep();
        assert!(disk.list().unwrap().contains(&name), "{place}");
        writer.step();
        disk = disk.crash(&mut |_, _| false, 0);
    }
    // Twice, as what is found must stay found; with a checkpoint between and without.
    for round in 0..3 {
        let (spool, mut writer, report) = open(&disk);
        assert!(!report.is_damaged, "{place}, round {round}: {report:?}");
        let mut wanted = [&[first, second, third, fourth][..], &fresh].concat();
        if victim == 2 && (trouble != Trouble::OneBatch || spool.message(ended).is_ok()) {
            // Only the segment that could not be read said that it has ended.
            wanted.push(ended);
        }
        wanted.sort_unstable();
        assert_eq!(spool.ids(), wanted, "{place}, round {round}: {report:?}");
        let texts: [(MessageId, &[u8]); 4] = [
            (first, b"first content"),
            (second, b"second content"),
            (third, b"third content"),
            (fourth, b"fourth content"),
        ];
        for (id, text) in texts {
            assert_eq!(read(&spool, id), text, "{place}, round {round}");
        }
        for id in &fresh {
            assert_eq!(read(&spool, *id), b"new content", "{place}");
        }
        if round == 1 {
            spool.checkpoint().unwrap();
            let new = accept(&spool, &mut writer, b"new content", &["eve"]);
            assert!(!fresh.contains(&new), "{place}");
            fresh.push(new);
            spool.checkpoint().unwrap();
        }
        writer.step();
        disk = disk.crash(&mut |_, _| false, 0);
    }
}

#[test]
fn what_cannot_be_read_for_a_time_refuses_no_start_and_is_there_again_afterwards() {
    for trouble in [
        Trouble::Closed,
        Trouble::AllSectors,
        Trouble::Batches,
        Trouble::OneBatch,
    ] {
        for victim in [1, 2] {
            for is_covered in [false, true] {
                for starts in [1, 2, 3] {
                    unreadable_for_a_time(trouble, victim, is_covered, starts);
                }
            }
        }
    }
}

#[test]
fn a_spool_of_which_no_segment_and_no_checkpoint_can_be_opened_is_not_taken_for_a_new_one() {
    let (storage, ids) = three();
    let bad = BadSectors::new(&storage);
    bad.closed.lock().unwrap().push(SEGMENT.to_owned());
    let clock = Arc::new(ManualClock::at(1_795_367_807_000));
    let opened = Spool::open(Arc::new(bad), clock, options());
    assert!(matches!(opened.err(), Some(SpoolError::Io { .. })));
    storage.unlock();
    let (spool, _writer, report) = open(&storage);
    assert!(!report.is_damaged, "{report:?}");
    assert_eq!(spool.ids(), ids);
}

#[test]
fn a_bad_checkpoint_is_reported_and_the_other_one_serves() {
    let (storage, _) = three();
    let (spool, mut writer, _) = open(&storage);
    spool.checkpoint().unwrap();
    accept(&spool, &mut writer, b"fourth", &["bob"]);
    spool.checkpoint().unwrap();
    drop((spool, writer));
    let names: Vec<String> = storage
        .list()
        .unwrap()
        .into_iter()
        .filter(|name| name.starts_with("checkpoint-"))
        .collect();
    assert_eq!(names.len(), 2);
    for spoiled in [&names[..1], &names[1..], &names[..]] {
        let bad = BadSectors::new(&storage.crash(&mut |_, _| false, 0));
        for name in spoiled {
            bad.spoil(name, 0, 4096);
        }
        let (spool, _writer, report) = start(&bad);
        assert!(
            spoiled.iter().all(|name| report
                .damage
                .iter()
                .any(|what| what.contains(name.as_str()))),
            "{report:?}"
        );
        assert_eq!(spool.ids().len(), 4, "{report:?}");
    }
}

#[test]
fn content_that_turns_bad_later_holds_its_message_once_it_is_read() {
    for is_flipped in [true, false] {
        let (disk, [first, second, third]) = three();
        let storage = &disk;
        let bad = BadSectors::new(storage);
        let (spool, mut writer, report) = start(&bad);
        assert!(!report.is_damaged, "{report:?}");
        let at = find(storage, SEGMENT, b"second content");
        if is_flipped {
            flip(storage, SEGMENT, at);
        } else {
            bad.spoil(SEGMENT, at, at + 1);
        }
        let mut sink = Vec::new();
        let reader = spool.content(second);
        let error = reader.and_then(|mut reader| {
            io::Read::read_to_end(&mut reader, &mut sink).map_err(|error| SpoolError::Io {
                operation: "read",
                name: String::new(),
                source: Arc::new(error),
            })
        });
        assert!(error.is_err());
        assert!(sink.is_empty(), "nothing of it is handed out");
        let remarks = spool.take_remarks();
        assert!(
            remarks
                .iter()
                .any(|what| what.starts_with(&format!("{second} is held: "))),
            "{remarks:?}"
        );
        assert!(spool.lease_message(second, HELD_FOR).is_none());
        assert!(
            spool
                .content(second)
                .is_ok_and(|mut r| r.next_chunk().is_err())
                || !is_flipped
        );
        assert!(spool.take_remarks().is_empty(), "told once");
        works_on(&spool, &mut writer, &[first, third]);
        // The hold has become durable meanwhile: it outlives a crash, also where the disk reads well again by then.
        let after = disk.crash(&mut |_, _| false, 0);
        let (restarted, _writer, _) = open(&after);
        assert!(restarted.message(second).unwrap().is_held);
        assert!(restarted.lease_message(second, HELD_FOR).is_none());
        // The operator may release it; then it is tried, and held again if it is still bad.
        let ticket = spool.hold(second, false, "root").unwrap();
        writer.step();
        ticket.wait().unwrap();
        assert!(spool.lease_message(second, HELD_FOR).is_some());
    }
}

#[test]
fn an_error_that_passes_holds_nothing() {
    let error = |kind: io::ErrorKind| SpoolError::Io {
        operation: "read",
        name: SEGMENT.to_owned(),
        source: Arc::new(kind.into()),
    };
    assert!(!error(io::ErrorKind::OutOfMemory).is_damage());
    assert!(!error(io::ErrorKind::Interrupted).is_damage());
    assert!(error(io::ErrorKind::UnexpectedEof).is_damage());
}

#[test]
fn starts_that_follow_each_other_closely_use_up_no_disk() {
    let mut disk = SimStorage::new(78);
    let small = SpoolOptions {
        checkpoint_bytes: 4 * options().segment_bytes,
        ..options()
    };
    let mut most = 0;
    for _ in 0..60 {
        let clock = Arc::new(ManualClock::at(1_795_367_807_000));
        let storage = Arc::new(disk.clone());
        let (spool, mut writer, report) = Spool::open(storage, clock, small.clone()).unwrap();
        assert!(!report.is_damaged, "{report:?}");
        assert!(spool.ids().is_empty());
        // Neither the bytes nor the time of one life make a checkpoint due.
        let id = accept(&spool, &mut writer, b"little mail", &["bob"]);
        works_off(&spool, &mut writer, id);
        spool.keep();
        let names = disk.list().unwrap();
        let files = names
            .iter()
            .filter(|n| n.starts_with("segment-") || n.starts_with("spare-"));
        most = most.max(files.count());
        disk = disk.crash(&mut |_, _| false, 0);
    }
    // As many as two checkpoints are apart, twice, and spares.
    assert!(most <= 24, "{most} files after 60 starts");
}
