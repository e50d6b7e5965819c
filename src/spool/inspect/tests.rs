//! The inspection on sound, torn and damaged spools, on the simulated disk.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::clock::ManualClock;
use crate::envelope::{Delivery, Outcome, Recipient, RecipientId, RecipientState};
use crate::spool::journal_tests::{accept, open, read};
use crate::spool::sim_storage::SimStorage;
use crate::spool::storage::read_exact_at;
use crate::spool::{Spool, Update, Writer};
use crate::status::Status;

const SEGMENT: &str = "segment-0000000000000001";
const HELD_FOR: Duration = Duration::from_secs(60);

fn clock() -> ManualClock {
    ManualClock::at(1_795_367_807_000)
}

fn verdicts(storage: &SimStorage) -> Verdicts {
    verify_files(storage, &clock(), false).unwrap()
}

fn said(verdicts: &Verdicts, weight: Weight) -> Vec<String> {
    let all = verdicts.findings.iter();
    all.filter(|f| f.weight == weight)
        .map(|f| f.text.clone())
        .collect()
}

fn bytes_of(storage: &SimStorage, name: &str) -> Vec<u8> {
    let file = storage.open_read(name).unwrap();
    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    read_exact_at(&*file, 0, &mut bytes).unwrap();
    bytes
}

/// Where a text lies in a file.
fn find(storage: &SimStorage, name: &str, text: &[u8]) -> usize {
    let bytes = bytes_of(storage, name);
    bytes.windows(text.len()).position(|w| w == text).unwrap()
}

fn flip(storage: &SimStorage, name: &str, at: usize) {
    storage.with_bytes(name, |bytes| bytes[at] ^= 0x20);
}

fn close(spool: &Spool, mut writer: Writer) {
    spool.close();
    while writer.step() != crate::spool::Step::Ended {}
}

fn finish(spool: &Spool, writer: &mut Writer, id: MessageId, update: Update) {
    let lease = spool.lease_message(id, HELD_FOR).unwrap();
    let ticket = spool.finish(lease, update).unwrap();
    while ticket.try_result().is_none() {
        writer.step();
    }
    ticket.wait().unwrap();
}

fn deferred(text: &str) -> Outcome {
    Outcome::new(Delivery::Deferred, Status::new(4, 4, 1), "esmtp", text)
}

/// A spool with a message in every state: plain, expanded and half delivered, held, finished.
fn furnished(storage: &SimStorage) -> (Spool, Writer, Vec<MessageId>) {
    let (spool, mut writer, _) = open(storage);
    let plain = accept(&spool, &mut writer, b"plain content\r\n", &["bob"]);
    let list = accept(&spool, &mut writer, b"list content\r\n", &["list", "zoe"]);
    let lease = spool.lease_message(list, HELD_FOR).unwrap();
    let children = ["ann", "ben"]
        .map(|name| {
            let mut child = Recipient::new(name);
            child.parent = Some(RecipientId(0));
            child
        })
        .to_vec();
    let update = Update {
        expansions: vec![(RecipientId(0), children)],
        ..Update::default()
    };
    let ticket = spool.record(&lease, update).unwrap();
    writer.step();
    ticket.wait().unwrap();
    drop(lease);
    let update = Update {
        outcomes: vec![
            (
                RecipientId(1),
                Outcome::new(Delivery::Delivered, Status::OK, "local", "Sent"),
            ),
            (RecipientId(3), deferred("Deferred: not now")),
        ],
        next_due_unix_ms: Some(1_795_367_807_000 + 90_000),
        has_warned: true,
        ..Update::default()
    };
    finish(&spool, &mut writer, list, update);
    let held = accept(&spool, &mut writer, b"held content\r\n", &["eve"]);
    let ticket = spool.hold(held, true, "root").unwrap();
    writer.step();
    ticket.wait().unwrap();
    let gone = accept(&spool, &mut writer, b"gone content\r\n", &["bob"]);
    let sent = Outcome::new(Delivery::Delivered, Status::OK, "local", "Sent");
    let update = Update {
        outcomes: vec![(RecipientId(0), sent)],
        ..Update::default()
    };
    finish(&spool, &mut writer, gone, update);
    (spool, writer, vec![plain, list, held, gone])
}

fn salvaged(storage: &SimStorage) -> (SimStorage, SalvageReport) {
    let new = SimStorage::new(999);
    let report = salvage::salvage_files(storage, Arc::new(new.clone()), Arc::new(clock())).unwrap();
    // Only what is durable counts.
    (new.crash(&mut |_, _| false, 0), report)
}

#[test]
fn a_spool_that_was_closed_is_sound() {
    let storage = SimStorage::new(1);
    let (spool, writer, ids) = furnished(&storage);
    close(&spool, writer);
    let found = verdicts(&storage);
    assert_eq!(found.weight(), Weight::Fact, "{:?}", found.findings);
    assert_eq!(found.messages, 3);
    assert!(
        found.findings[0]
            .text
            .starts_with("3 live messages, 1 of them held"),
        "{:?}",
        found.findings
    );
    assert_eq!(ids.len(), 4);
}

#[test]
fn what_a_crash_leaves_is_noted_and_harms_nothing() {
    let storage = SimStorage::new(2);
    let (_spool, _writer, _) = furnished(&storage);
    let found = verdicts(&storage.crash(&mut |_, _| false, 0));
    assert_eq!(found.weight(), Weight::Note, "{:?}", found.findings);
    let notes = said(&found, Weight::Note);
    assert!(notes.iter().any(|n| n.starts_with("no Seal after batch")));
    assert!(
        notes
            .iter()
            .any(|n| n.contains("proves that it was synced")),
        "{notes:?}"
    );
}

#[test]
fn a_torn_tail_is_told_with_its_place_and_size_and_forgotten_after_the_next_start() {
    let storage = SimStorage::new(3);
    let (spool, mut writer, _) = furnished(&storage);
    let before = storage.unsynced();
    assert_eq!(before.0, 0, "everything was synced");
    // A batch of several blocks whose sync never returns.
    let mut transaction = spool.begin().unwrap();
    transaction.append_content(&[b'y'; 20_000]).unwrap();
    storage.fail_at(storage.calls() + 2, std::io::ErrorKind::Other);
    let ticket = transaction.commit(Envelope::new(
        crate::address::ReversePath::Null,
        vec![Recipient::new("late")],
    ));
    while ticket.try_result().is_none() {
        writer.step();
    }
    assert!(ticket.wait().is_err());
    let mut torn = None;
    for kept in 1..60 {
        // The failed sync has dropped its sectors: what did reach the disk is written by hand.
        let crashed = storage.crash(&mut |_, _| false, 0);
        let whole = bytes_of(&storage, SEGMENT);
        let durable = bytes_of(&crashed, SEGMENT);
        let Some(start) = (0..durable.len()).find(|at| durable[*at] != whole[*at]) else {
            continue;
        };
        let start = start - start % 4096;
        crashed.with_bytes(SEGMENT, |bytes| {
            let end = (start + kept * 512).min(bytes.len());
            bytes[start..end].copy_from_slice(&whole[start..end]);
        });
        let found = verdicts(&crashed);
        assert!(found.weight() <= Weight::Note, "{:?}", found.findings);
        let notes = said(&found, Weight::Note);
        if kept < 38 {
            let tail = notes
                .iter()
                .find(|n| n.contains("torn tail") || n.starts_with(recovery::TORN));
            let tail = tail.unwrap_or_else(|| panic!("{kept}: {notes:?}"));
            assert!(tail.contains(" bytes"), "{tail}");
            torn = Some(crashed);
        }
    }
    // The next start settles it: no word of it any more.
    let storage = torn.unwrap();
    let (spool, writer, report) = open(&storage);
    assert!(!report.is_damaged, "{:?}", report.remarks);
    close(&spool, writer);
    let found = verdicts(&storage);
    assert_eq!(found.weight(), Weight::Fact, "{:?}", found.findings);
}

#[test]
fn every_byte_flipped_is_told_and_nothing_is_called_sound() {
    let storage = SimStorage::new(4);
    let (spool, mut writer, _) = furnished(&storage);
    // Proven, as after a moment of idleness; not sealed.
    writer.step();
    drop(spool);
    let storage = storage.crash(&mut |_, _| false, 0);
    let quiet = said(&verdicts(&storage), Weight::Note);
    let whole = bytes_of(&storage, SEGMENT);
    let end = whole.iter().rposition(|byte| *byte != 0).unwrap();
    let mut last = 0;
    for (at, byte) in whole.iter().enumerate().take(end + 1) {
        if at % 61 != 0 && *byte == 0 {
            continue;
        }
        flip(&storage, SEGMENT, at);
        let found = verdicts(&storage);
        let is_told = found.weight() == Weight::Damage || said(&found, Weight::Note) != quiet;
        assert!(is_told, "byte {at}: {:?}", found.findings);
        flip(&storage, SEGMENT, at);
        last = at;
    }
    assert!(last > 8192);
}

#[test]
fn a_message_that_cannot_be_read_is_named_with_sender_and_recipients() {
    let storage = SimStorage::new(5);
    let (spool, writer, ids) = furnished(&storage);
    close(&spool, writer);
    flip(&storage, SEGMENT, find(&storage, SEGMENT, b"plain content"));
    let found = verdicts(&storage);
    let damage = said(&found, Weight::Damage);
    assert!(
        damage
            .iter()
            .any(|d| d.contains(&ids[0].to_string()) && d.contains("from <> to <bob>")),
        "{damage:?}"
    );
    // And one that has ended is no loss.
    flip(&storage, SEGMENT, find(&storage, SEGMENT, b"gone content"));
    let again = verdicts(&storage);
    assert!(
        !said(&again, Weight::Damage)
            .iter()
            .any(|d| d.contains(&ids[3].to_string()) && d.contains("can't be read")),
        "{:?}",
        again.findings
    );
}

#[test]
fn a_missing_batch_and_a_missing_segment_are_told_by_number() {
    let storage = SimStorage::new(6);
    let (spool, mut writer, ids) = furnished(&storage);
    accept(&spool, &mut writer, b"after", &["bob"]);
    let storage = storage.crash(&mut |_, _| false, 0);
    // The header of the batch that holds the first message.
    let at = find(&storage, SEGMENT, b"plain content");
    let batch = at - at % 4096;
    storage.with_bytes(SEGMENT, |bytes| bytes[batch..batch + 4096].fill(0));
    let found = verdicts(&storage);
    let damage = said(&found, Weight::Damage);
    assert!(
        damage
            .iter()
            .any(|d| d.starts_with("batches 1 to 1 are missing") || d.contains("starts at batch 2")),
        "{damage:?}"
    );
    let notes = said(&found, Weight::Note);
    assert!(
        notes.iter().any(|n| n.contains("hold no batch")),
        "{notes:?}"
    );
    assert_eq!(found.messages, 3, "all others: {ids:?}");
}

#[test]
fn a_live_spool_is_not_called_torn() {
    let storage = SimStorage::new(7);
    let (_spool, _writer, _) = furnished(&storage);
    let found = verify_files(&storage, &clock(), true).unwrap();
    assert_eq!(found.weight(), Weight::Fact, "{:?}", found.findings);
}

#[test]
fn salvage_of_a_sound_spool_is_the_same_spool() {
    for is_closed in [true, false] {
        let storage = SimStorage::new(8);
        let (spool, writer, ids) = furnished(&storage);
        let next = spool.new_id();
        if is_closed {
            close(&spool, writer);
        }
        let before = bytes_of(&storage, SEGMENT);
        let (new, report) = salvaged(&storage);
        assert_eq!(bytes_of(&storage, SEGMENT), before, "never in place");
        assert_eq!((report.saved, report.damaged.len()), (3, 0), "{report:?}");
        assert!(report.lost.is_empty(), "{report:?}");
        let found = verdicts(&new);
        assert_eq!(found.weight(), Weight::Fact, "{:?}", found.findings);
        let (copy, _writer, _) = open(&new);
        assert_eq!(copy.ids(), &ids[..3]);
        assert_eq!(read(&copy, ids[0]), b"plain content\r\n");
        let list = copy.message(ids[1]).unwrap();
        assert_eq!(list.recipients.len(), 4);
        assert_eq!(list.recipients[0].1, RecipientState::Expanded);
        assert_eq!(list.recipients[1].1, RecipientState::Delivered);
        assert_eq!(
            list.recipients[2].1,
            RecipientState::Pending {
                last: None,
                tries: 0
            }
        );
        assert_eq!(list.recipients[2].0.parent, Some(RecipientId(0)));
        assert!(
            matches!(&list.recipients[3].1, RecipientState::Pending { last: Some(last), tries: 1 } if last.text == "Deferred: not now")
        );
        assert!(list.has_warned);
        assert!(list.due_unix_ms > 1_795_367_807_000 + 80_000);
        assert!(copy.message(ids[2]).unwrap().is_held, "held stays held");
        assert!(!copy.message(ids[0]).unwrap().is_held);
        if is_closed {
            assert!(copy.new_id() > next, "ids are never given twice");
        }
    }
}

#[test]
fn damaged_content_is_kept_and_held_with_a_reason() {
    let storage = SimStorage::new(9);
    let (spool, writer, ids) = furnished(&storage);
    close(&spool, writer);
    flip(&storage, SEGMENT, find(&storage, SEGMENT, b"plain content"));
    let (new, report) = salvaged(&storage);
    assert_eq!(report.saved, 3, "{report:?}");
    assert!(report.lost.is_empty(), "{report:?}");
    assert_eq!(report.damaged.len(), 1, "{report:?}");
    assert_eq!(report.damaged[0].0, ids[0]);
    assert!(report.damaged[0].1.contains("<bob>"), "{report:?}");
    let (copy, _writer, _) = open(&new);
    let message = copy.message(ids[0]).unwrap();
    assert!(message.is_held);
    let why = message.envelope.quarantine.unwrap();
    assert!(why.starts_with("salvaged: content from byte 0"), "{why}");
    assert_eq!(read(&copy, ids[0]), b"Plain content\r\n", "what is there");
}

#[test]
fn a_lost_envelope_leaves_its_content_to_the_postmaster() {
    let storage = SimStorage::new(10);
    let (spool, mut writer, ids) = furnished(&storage);
    accept(&spool, &mut writer, b"after", &["bob"]);
    let storage = storage.crash(&mut |_, _| false, 0);
    flip(&storage, SEGMENT, find(&storage, SEGMENT, b"eve"));
    let (new, report) = salvaged(&storage);
    assert!(
        report.damaged.iter().any(|(id, _)| *id == ids[2]),
        "{report:?}"
    );
    let (copy, _writer, _) = open(&new);
    let message = copy.message(ids[2]).unwrap();
    assert!(message.is_held);
    assert_eq!(message.envelope.recipients[0].target, "postmaster");
    assert_eq!(read(&copy, ids[2]), b"held content\r\n");
    assert_eq!(copy.ids().len(), 4);
}

#[test]
fn a_segment_without_a_header_is_read_by_its_batches() {
    let storage = SimStorage::new(11);
    let (spool, mut writer, ids) = furnished(&storage);
    accept(&spool, &mut writer, b"after", &["bob"]);
    let storage = storage.crash(&mut |_, _| false, 0);
    storage.with_bytes(SEGMENT, |bytes| bytes[..8192].fill(0xee));
    let found = verdicts(&storage);
    assert_eq!(found.weight(), Weight::Damage);
    let (new, report) = salvaged(&storage);
    assert!(report.lost.is_empty(), "{report:?}");
    let (copy, _writer, _) = open(&new);
    assert_eq!(copy.ids().len(), 4, "{report:?}");
    assert_eq!(read(&copy, ids[0]), b"plain content\r\n");
    let list = copy.message(ids[1]).unwrap();
    assert_eq!(list.recipients.len(), 4);
    assert_eq!(list.recipients[0].1, RecipientState::Expanded);
    assert_eq!(list.recipients[1].1, RecipientState::Delivered);
    assert!(copy.message(ids[2]).unwrap().is_held);
}

#[test]
fn a_missing_batch_is_listed_as_lost_and_the_rest_is_saved() {
    let storage = SimStorage::new(12);
    let (spool, mut writer, ids) = furnished(&storage);
    accept(&spool, &mut writer, b"after", &["bob"]);
    let storage = storage.crash(&mut |_, _| false, 0);
    let at = find(&storage, SEGMENT, b"list content");
    let batch = at - at % 4096;
    storage.with_bytes(SEGMENT, |bytes| bytes[batch..batch + 4096].fill(0));
    let (new, report) = salvaged(&storage);
    assert!(
        report.lost.iter().any(|lost| lost.what.contains("missing")),
        "{report:?}"
    );
    let (copy, _writer, _) = open(&new);
    assert!(copy.ids().contains(&ids[0]) && copy.ids().contains(&ids[2]));
    assert!(!copy.ids().contains(&ids[1]));
}
