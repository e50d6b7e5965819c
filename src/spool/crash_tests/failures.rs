//! Every storage call fails once, and every byte of a small journal is flipped once.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;

use super::super::segment;
use super::super::sim_storage::SimStorage;
use super::super::storage::Storage;
use super::super::{RecoveryReport, Spool, Step, Writer};
use super::model::check;
use super::workload::{self, SharedOutside, look, options};
use super::{START_MS, open};
use crate::address::ReversePath;
use crate::clock::ManualClock;
use crate::envelope::{Envelope, MessageId, Recipient};

fn start(storage: &SimStorage) -> (Spool, Writer, RecoveryReport) {
    open(storage, &Arc::new(ManualClock::at(START_MS)), &options(3)).unwrap()
}

/// Lets each storage call of a workload fail once: with an error, for want of room, half way through a write.
pub(super) fn fail_each_call(seed: u64, stride: usize) -> Result<u64, String> {
    let whole = SimStorage::new(seed);
    workload::run(&whole, seed, &SharedOutside::default());
    let mut done = 0;
    for kind in [
        ErrorKind::Other,
        ErrorKind::StorageFull,
        ErrorKind::WriteZero,
    ] {
        for at in (1..=whole.calls()).step_by(stride) {
            let outside = SharedOutside::default();
            let storage = SimStorage::new(seed);
            storage.fail_at(at, kind);
            workload::run(&storage, seed, &outside);
            let place = |what: String| {
                let call = storage.call_at(at);
                format!("SEED={seed}: call {at} ({call:?}) fails with {kind:?}: {what}")
            };
            let model = look(&outside).look();
            for restarted in [storage.kill(), storage.crash(&mut |_, _| false, 0)] {
                let clock = Arc::new(ManualClock::at(START_MS));
                let (spool, _writer, report) =
                    open(&restarted, &clock, &options(seed)).map_err(|e| place(e.to_string()))?;
                let place = |what| place(format!("{what}; {:?}", report.remarks));
                check(&spool, &report, &restarted.drops(), &model).map_err(place)?;
            }
            done += 1;
        }
    }
    Ok(done)
}

#[test]
fn each_failing_call_costs_no_acknowledged_mail() {
    let seeds = if cfg!(debug_assertions) { 1 } else { 6 };
    for seed in 1..=seeds {
        let stride = if cfg!(debug_assertions) { 3 } else { 1 };
        let done = fail_each_call(seed, stride).unwrap_or_else(|what| panic!("{what}"));
        println!("{done} failing calls, none lost a message");
    }
}

/// Three messages of one batch each, with the Seal after them or not.
fn small_journal(is_sealed: bool) -> (SimStorage, BTreeMap<MessageId, Vec<u8>>) {
    let storage = SimStorage::new(9);
    let (spool, mut writer, _) = start(&storage);
    let mut sent = BTreeMap::new();
    for n in 0..3_u8 {
        let mut transaction = spool.begin().unwrap();
        let content = vec![b'a' + n; 50 + 40 * usize::from(n)];
        transaction.append_content(&content).unwrap();
        let envelope = Envelope::new(ReversePath::Null, vec![Recipient::new("bob")]);
        let ticket = transaction.commit(envelope);
        assert_eq!(writer.step(), Step::Worked);
        sent.insert(ticket.try_result().unwrap().unwrap(), content);
    }
    if is_sealed {
        spool.close();
        assert_eq!(writer.step(), Step::Ended);
    } else {
        assert_eq!(writer.step(), Step::Worked, "the Pulse");
    }
    (storage, sent)
}

fn is_whole(spool: &Spool, id: MessageId, content: &[u8]) -> bool {
    let read = || {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut spool.content(id).ok()?, &mut bytes).ok()?;
        Some(bytes)
    };
    read().is_some_and(|bytes| bytes == content) && spool.message(id).is_ok()
}

#[test]
fn every_flipped_byte_is_reported_and_the_rest_is_kept() {
    // Two headers and three batches of a block each, padding included; what comes after them (Pulse or Seal) has the
    // torn tail's place: nothing is lost with it, and nothing told it from a write that the cut interrupted.
    let last = 2 * 4096 + 3 * 4096;
    for is_sealed in [false, true] {
        let (storage, sent) = small_journal(is_sealed);
        let name = segment::segment_name(1);
        let step = if cfg!(debug_assertions) { 5 } else { 1 };
        for at in (0..last + 4096).step_by(step) {
            let flipped = storage.kill();
            flipped.with_bytes(&name, |bytes| bytes[at] ^= 0x20);
            let (spool, _writer, report) = start(&flipped);
            if at < last {
                assert!(report.is_damaged, "byte {at} is not reported");
            } else {
                assert!(!report.remarks.is_empty() || at >= last, "byte {at}");
            }
            let hit = at.checked_sub(2 * 4096).map(|at| at / 4096);
            for (n, (id, content)) in sent.iter().enumerate() {
                let is_whole = is_whole(&spool, *id, content);
                assert!(is_whole || hit == Some(n), "byte {at}: {id}");
            }
        }
    }
}

#[test]
fn every_flipped_byte_of_a_checkpoint_is_reported_and_the_one_before_serves() {
    let (storage, sent) = small_journal(false);
    let storage = storage.kill();
    let (spool, mut writer, _) = start(&storage);
    spool.checkpoint().unwrap();
    let mut transaction = spool.begin().unwrap();
    transaction.append_content(b"one more").unwrap();
    let envelope = Envelope::new(ReversePath::Null, vec![Recipient::new("bob")]);
    let ticket = transaction.commit(envelope);
    writer.step();
    let newest = ticket.try_result().unwrap().unwrap();
    spool.checkpoint().unwrap();
    let mut names = storage.list().unwrap();
    names.retain(|name| name.starts_with("checkpoint-"));
    names.sort_unstable();
    assert_eq!(names.len(), 2);
    let name = names.pop().unwrap();
    let length = usize::try_from(storage.open_read(&name).unwrap().len().unwrap()).unwrap();
    let step = if cfg!(debug_assertions) { 3 } else { 1 };
    for at in (0..length).step_by(step) {
        let flipped = storage.kill();
        flipped.with_bytes(&name, |bytes| bytes[at] ^= 0x20);
        let (spool, _writer, report) = start(&flipped);
        assert!(report.is_damaged, "byte {at} is not reported");
        assert!(is_whole(&spool, newest, b"one more"), "byte {at}");
        for (id, content) in &sent {
            assert!(is_whole(&spool, *id, content), "byte {at}: {id}");
        }
    }
}
