//! The engine end to end, stepped, on the simulated disk.

use std::sync::Arc;
use std::time::Duration;

use super::sim_storage::SimStorage;
use super::*;
use crate::address::ReversePath;
use crate::clock::ManualClock;
use crate::status::Status;

pub(super) fn options() -> SpoolOptions {
    SpoolOptions {
        segment_bytes: 64 << 10,
        process_id: 7,
        checkpoint_bytes: 64 << 10,
        ..SpoolOptions::default()
    }
}

pub(super) fn open(storage: &SimStorage) -> (Spool, Writer, RecoveryReport) {
    let clock = Arc::new(ManualClock::at(1_795_367_807_000));
    Spool::open(Arc::new(storage.clone()), clock, options()).unwrap()
}

pub(super) fn envelope(recipients: &[&str]) -> Envelope {
    Envelope::new(
        ReversePath::Null,
        recipients.iter().map(|r| Recipient::new(*r)).collect(),
    )
}

pub(super) fn accept(
    spool: &Spool,
    writer: &mut Writer,
    content: &[u8],
    recipients: &[&str],
) -> MessageId {
    let mut transaction = spool.begin().unwrap();
    transaction.append_content(content).unwrap();
    let ticket = transaction.commit(envelope(recipients));
    while ticket.try_result().is_none() {
        writer.step();
    }
    ticket.wait().unwrap()
}

pub(super) fn read(spool: &Spool, id: MessageId) -> Vec<u8> {
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut spool.content(id).unwrap(), &mut bytes).unwrap();
    bytes
}

fn outcome(result: Delivery, text: &str) -> Outcome {
    Outcome::new(result, Status::OK, "local", text)
}

const HELD_FOR: Duration = Duration::from_secs(60);

#[test]
fn accepted_mail_is_there_after_a_power_cut_and_content_spans_chunks() {
    let storage = SimStorage::new(1);
    let (spool, mut writer, _) = open(&storage);
    let small = accept(
        &spool,
        &mut writer,
        b"Subject: x\r\n\r\nhello\r\n",
        &["bob"],
    );
    let big: Vec<u8> = (0..40_000_u32).map(|n| (n % 251) as u8).collect();
    let large = accept(&spool, &mut writer, &big, &["bob", "carol"]);
    let after = storage.crash(&mut |_, _| false, 0);
    let (spool, _writer, report) = open(&after);
    assert_eq!(report.messages, 2, "{:?}", report.remarks);
    assert!(!report.is_damaged, "{:?}", report.remarks);
    assert_eq!(read(&spool, small), b"Subject: x\r\n\r\nhello\r\n");
    assert_eq!(read(&spool, large), big);
    assert_eq!(spool.message(large).unwrap().recipients.len(), 2);
    assert!(spool.new_id() > large);
}

#[test]
fn outcomes_are_remembered_and_a_finished_message_is_gone() {
    let storage = SimStorage::new(2);
    let (spool, mut writer, _) = open(&storage);
    let id = accept(&spool, &mut writer, b"x", &["bob", "carol"]);
    let lease = spool.lease_due(HELD_FOR).unwrap();
    assert!(spool.lease_due(HELD_FOR).is_none());
    let update = Update {
        outcomes: vec![
            (RecipientId(0), outcome(Delivery::Delivered, "Sent")),
            (
                RecipientId(1),
                outcome(Delivery::Deferred, "Deferred: later"),
            ),
        ],
        next_due_unix_ms: Some(1_795_367_807_000 + 60_000),
        ..Update::default()
    };
    let ticket = spool.finish(lease, update).unwrap();
    writer.step();
    ticket.wait().unwrap();
    assert!(spool.lease_due(HELD_FOR).is_none(), "it is due in a minute");
    let after = storage.crash(&mut |_, _| false, 0);
    let (spool, mut writer, _) = open(&after);
    let message = spool.message(id).unwrap();
    assert_eq!(message.recipients[0].1, RecipientState::Delivered);
    let RecipientState::Pending {
        last: Some(last),
        tries: 1,
    } = &message.recipients[1].1
    else {
        panic!()
    };
    assert_eq!(last.text, "Deferred: later");
    assert_eq!(spool.run_now(&mut |_| true), 1);
    let lease = spool.lease_due(HELD_FOR).unwrap();
    let report = NewMessage {
        id: spool.new_id(),
        envelope: envelope(&["root"]),
        content: b"dsn".to_vec(),
    };
    let report_id = report.id;
    let update = Update {
        outcomes: vec![(RecipientId(1), outcome(Delivery::Failed, "User unknown"))],
        reports: vec![report],
        ..Update::default()
    };
    let ticket = spool.finish(lease, update).unwrap();
    writer.step();
    ticket.wait().unwrap();
    assert_eq!(spool.ids(), [report_id]);
    let after = after.crash(&mut |_, _| false, 0);
    let (spool, _, report) = open(&after);
    assert_eq!(spool.ids(), [report_id], "{:?}", report.remarks);
    assert_eq!(read(&spool, report_id), b"dsn");
}

#[test]
fn an_expansion_is_there_after_a_crash_and_is_not_done_twice() {
    let storage = SimStorage::new(3);
    let (spool, mut writer, _) = open(&storage);
    let id = accept(&spool, &mut writer, b"x", &["list"]);
    let lease = spool.lease_due(HELD_FOR).unwrap();
    let children = vec![Recipient::new("a"), Recipient::new("b")];
    let update = Update {
        expansions: vec![(RecipientId(0), children)],
        ..Update::default()
    };
    let ticket = spool.record(&lease, update).unwrap();
    writer.step();
    ticket.wait().unwrap();
    drop(lease);
    let (spool, _, _) = open(&storage.crash(&mut |_, _| false, 0));
    let message = spool.message(id).unwrap();
    assert_eq!(message.recipients.len(), 3);
    assert_eq!(message.recipients[0].1, RecipientState::Expanded);
    assert_eq!(message.recipients[2].0.target, "b");
}

#[test]
fn an_abandoned_message_leaves_nothing_and_segments_are_recycled() {
    let storage = SimStorage::new(4);
    let (spool, mut writer, _) = open(&storage);
    let mut transaction = spool.begin().unwrap();
    transaction.append_content(&[7; 20_000]).unwrap();
    writer.step();
    drop(transaction);
    for round in 0..300 {
        let id = accept(&spool, &mut writer, &[b'x'; 3000], &["bob"]);
        let lease = spool.lease_message(id, HELD_FOR).unwrap();
        let update = Update {
            outcomes: vec![(RecipientId(0), outcome(Delivery::Delivered, "Sent"))],
            ..Update::default()
        };
        drop(spool.finish(lease, update).unwrap());
        writer.step();
        if round % 5 == 0 {
            spool.keep();
        }
    }
    assert_eq!(spool.stats().messages, 0);
    let files = storage.list().unwrap();
    assert!(files.len() < 20, "{files:?}");
    assert!(
        files.iter().any(|name| name.starts_with("checkpoint-")),
        "{files:?}"
    );
    let (spool, _, report) = open(&storage.crash(&mut |_, _| false, 0));
    assert_eq!(spool.stats().messages, 0, "{:?}", report.remarks);
    assert!(!report.is_damaged, "{:?}", report.remarks);
}

#[test]
fn a_failed_sync_poisons_and_nothing_is_acknowledged() {
    let storage = SimStorage::new(5);
    let (spool, mut writer, _) = open(&storage);
    accept(&spool, &mut writer, b"one", &["bob"]);
    let mut transaction = spool.begin().unwrap();
    transaction.append_content(b"two").unwrap();
    storage.fail_at(storage.calls() + 2, std::io::ErrorKind::Other);
    let ticket = transaction.commit(envelope(&["bob"]));
    writer.step();
    assert!(matches!(ticket.wait(), Err(SpoolError::Poisoned(_))));
    assert!(matches!(spool.begin(), Err(SpoolError::Poisoned(_))));
    assert!(spool.lease_due(HELD_FOR).is_none(), "no new attempt begins");
    assert_eq!(writer.step(), Step::Ended);
}

#[test]
fn a_closed_spool_opens_from_its_checkpoint() {
    let storage = SimStorage::new(6);
    let (spool, mut writer, _) = open(&storage);
    let id = accept(&spool, &mut writer, b"one", &["bob"]);
    spool.close();
    while writer.step() != Step::Ended {}
    writer.inner.end_writer();
    assert!(spool.begin().is_err());
    let (spool, _, report) = open(&storage.crash(&mut |_, _| false, 0));
    assert_eq!(report.remarks, Vec::<String>::new());
    assert_eq!(read(&spool, id), b"one");
}

#[test]
fn a_full_disk_refuses_mail_and_comes_back_by_itself() {
    let storage = SimStorage::new(8);
    storage.set_free_bytes(3 * (64 << 10));
    let (spool, mut writer, _) = open(&storage);
    spool.keep();
    let mut ids = Vec::new();
    let refused = loop {
        let transaction = match spool.begin() {
            Ok(transaction) => transaction,
            Err(error) => break error,
        };
        let mut transaction = transaction;
        transaction.append_content(&[b'x'; 3000]).unwrap();
        let ticket = transaction.commit(envelope(&["bob"]));
        writer.step();
        match ticket.wait() {
            Ok(id) => ids.push(id),
            Err(error) => break error,
        }
        spool.keep();
        assert!(ids.len() < 1000);
    };
    assert!(matches!(refused, SpoolError::Full(_)), "{refused}");
    // What is there is delivered and recorded while the disk is full.
    for id in &ids {
        let lease = spool.lease_message(*id, HELD_FOR).unwrap();
        let update = Update {
            outcomes: vec![(RecipientId(0), outcome(Delivery::Delivered, "Sent"))],
            ..Update::default()
        };
        let ticket = spool.finish(lease, update).unwrap();
        writer.step();
        ticket.wait().unwrap();
    }
    storage.set_free_bytes(1 << 30);
    spool.keep();
    assert!(spool.begin().is_ok());
}
