//! Reclaiming space, stepped, on the simulated disk: what lives long is moved, nothing of it is lost, and files come back.

use std::sync::Arc;
use std::time::Duration;

use super::journal_tests::{accept, read};
use super::sim_storage::SimStorage;
use super::*;
use crate::clock::ManualClock;
use crate::status::Status;

fn options() -> SpoolOptions {
    SpoolOptions {
        segment_bytes: 64 << 10,
        process_id: 7,
        checkpoint_bytes: 64 << 10,
        relocation_rest: [Duration::ZERO; 3],
        relocation_rate: u64::MAX,
        ..SpoolOptions::default()
    }
}

fn open(storage: &SimStorage, options: SpoolOptions) -> (Spool, Writer, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::at(1_795_367_807_000));
    let (spool, writer, report) =
        Spool::open(Arc::new(storage.clone()), Arc::clone(&clock) as _, options).unwrap();
    assert!(!report.is_damaged, "{:?}", report.remarks);
    (spool, writer, clock)
}

fn settle(spool: &Spool, writer: &mut Writer) {
    for _ in 0..20 {
        spool.keep();
        while writer.step() == Step::Worked {}
    }
}

/// One message in ten lives on, deferred, held or expanded; the others are delivered at once.
fn traffic(spool: &Spool, writer: &mut Writer, count: u32) -> Vec<(MessageId, Vec<u8>)> {
    let mut kept = Vec::new();
    for n in 0..count {
        let content: Vec<u8> = (0..3000 + n % 700)
            .map(|at| ((at + n) % 251) as u8)
            .collect();
        let id = accept(spool, writer, &content, &["bob", "carol@example.test"]);
        let lease = spool.lease_message(id, Duration::from_secs(3600)).unwrap();
        let outcome = |result| Outcome::new(result, Status::OK, "local", format!("said {n}"));
        let mut update = Update::default();
        if n % 10 == 0 {
            update.outcomes = vec![
                (RecipientId(0), outcome(Delivery::Delivered)),
                (RecipientId(1), outcome(Delivery::Deferred)),
            ];
            update.next_due_unix_ms = Some(1_795_367_807_000 + 600_000);
            kept.push((id, content));
        } else {
            update.outcomes = vec![
                (RecipientId(0), outcome(Delivery::Delivered)),
                (RecipientId(1), outcome(Delivery::Failed)),
            ];
        }
        if n % 20 == 0 {
            let children = vec![Recipient::new("dave"), Recipient::new("erin")];
            update.outcomes.truncate(1);
            update.expansions = vec![(RecipientId(1), children)];
        }
        let ticket = spool.finish(lease, update).unwrap();
        writer.step();
        ticket.wait().unwrap();
        if n % 30 == 0 {
            let ticket = spool.hold(id, true, "root").unwrap();
            writer.step();
            ticket.wait().unwrap();
        }
        if n % 16 == 15 {
            settle(spool, writer);
        }
    }
    kept
}

fn check(spool: &Spool, kept: &[(MessageId, Vec<u8>)]) {
    assert_eq!(
        spool.ids(),
        kept.iter().map(|(id, _)| *id).collect::<Vec<_>>()
    );
    for (at, (id, content)) in kept.iter().enumerate() {
        assert_eq!(&read(spool, *id), content);
        let message = spool.message(*id).unwrap();
        assert_eq!(message.is_held, at % 3 == 0);
        assert_eq!(message.envelope.recipients.len(), 2);
        if at % 2 == 0 {
            assert_eq!(message.recipients.len(), 4);
            assert_eq!(message.recipients[1].1, RecipientState::Expanded);
            assert_eq!(message.recipients[3].0.target, "erin");
        } else {
            let RecipientState::Pending {
                last: Some(last),
                tries: 1,
            } = &message.recipients[1].1
            else {
                panic!("{:?}", message.recipients);
            };
            assert_eq!(last.text, format!("said {}", at * 10));
            assert_eq!(message.due_unix_ms, 1_795_367_807_000 + 600_000);
        }
    }
}

#[test]
fn what_lives_long_is_moved_and_the_rest_of_its_segment_comes_back() {
    let storage = SimStorage::new(1);
    let (spool, mut writer, _) = open(&storage, options());
    let kept = traffic(&spool, &mut writer, 300);
    let stats = spool.stats();
    assert!(stats.relocated > 20, "{stats:?}");
    // 1 MB of mail went through 64 KiB segments; 100 KB of it lives.
    assert!(stats.files < 12, "{stats:?}");
    check(&spool, &kept);
    let (spool, mut writer, _) = open(&storage.crash(&mut |_, _| false, 0), options());
    check(&spool, &kept);
    settle(&spool, &mut writer);
    check(&spool, &kept);
    spool.close();
    while writer.step() != Step::Ended {}
    let (spool, ..) = open(&storage.crash(&mut |_, _| true, 0), options());
    check(&spool, &kept);
}

#[test]
fn a_change_that_comes_before_the_move_is_not_undone_by_it() {
    let storage = SimStorage::new(2);
    let quiet = SpoolOptions {
        relocation_share: 0,
        ..options()
    };
    let (spool, mut writer, _) = open(&storage, quiet);
    let kept = traffic(&spool, &mut writer, 100);
    drop((spool, writer));
    let (spool, mut writer, _) = open(&storage.crash(&mut |_, _| true, 0), options());
    // Read for the move, but not yet written.
    spool.keep();
    assert!(!lock(&spool.inner.waiting).relocations.is_empty());
    let (first, second) = (kept[0].0, kept[1].0);
    let removal = spool.remove(second).unwrap();
    let release = spool.hold(first, false, "root").unwrap();
    // The writer takes others first.
    writer.has_moved = true;
    settle(&spool, &mut writer);
    removal.wait().unwrap();
    release.wait().unwrap();
    assert!(!spool.ids().contains(&second));
    assert!(!spool.message(first).unwrap().is_held);
    assert!(spool.stats().relocated > 0);
}

#[test]
fn a_segment_is_not_recycled_while_somebody_reads_from_it() {
    let storage = SimStorage::new(3);
    let (spool, mut writer, _) = open(&storage, options());
    let content: Vec<u8> = (0..20_000_u32).map(|n| (n % 249) as u8).collect();
    let id = accept(&spool, &mut writer, &content, &["bob"]);
    let mut reader = spool.content(id).unwrap();
    let ticket = spool.remove(id).unwrap();
    writer.step();
    ticket.wait().unwrap();
    traffic(&spool, &mut writer, 200);
    let mut read = Vec::new();
    std::io::Read::read_to_end(&mut reader, &mut read).unwrap();
    assert_eq!(read, content);
}

#[test]
fn moving_keeps_to_its_rate_and_waits_until_a_segment_has_rested() {
    let storage = SimStorage::new(4);
    let bounded = SpoolOptions {
        relocation_rest: [Duration::from_secs(900); 3],
        relocation_rate: 20_000,
        ..options()
    };
    let (spool, mut writer, clock) = open(&storage, bounded);
    let kept = traffic(&spool, &mut writer, 200);
    assert_eq!(spool.stats().relocated, 0);
    clock.advance(Duration::from_secs(901));
    let mut seconds = 0;
    loop {
        let before = spool.stats().bytes_relocated;
        spool.keep();
        while writer.step() == Step::Worked {}
        let moved = spool.stats().bytes_relocated - before;
        assert!(moved < 30_000, "{moved} in one second");
        if moved == 0 {
            break;
        }
        seconds += 1;
        clock.advance(Duration::from_secs(1));
    }
    assert!(seconds >= 2, "{seconds}");
    check(&spool, &kept);
}

#[test]
fn a_message_that_is_deferred_again_and_again_is_moved_once() {
    let storage = SimStorage::new(5);
    let (spool, mut writer, clock) = open(&storage, options());
    let kept = traffic(&spool, &mut writer, 100);
    clock.advance(Duration::from_secs(60));
    settle(&spool, &mut writer);
    let waiting = kept[1].0;
    let mut moved = Vec::new();
    for tries in 2..12_u32 {
        let lease = spool
            .lease_message(waiting, Duration::from_secs(3600))
            .unwrap();
        let text = format!("tried {tries} times");
        let outcome = Outcome::new(Delivery::Deferred, Status::OK, "esmtp", text);
        let update = Update {
            outcomes: vec![(RecipientId(1), outcome)],
            next_due_unix_ms: Some(1_795_367_807_000 + 700_000),
            ..Update::default()
        };
        let ticket = spool.finish(lease, update).unwrap();
        writer.step();
        ticket.wait().unwrap();
        // Fills the segment that the outcome lies in, and lets it rest.
        for _ in 0..20 {
            let id = accept(&spool, &mut writer, &[b'x'; 3000], &["bob"]);
            drop(spool.remove(id).unwrap());
            writer.step();
        }
        clock.advance(Duration::from_secs(60));
        settle(&spool, &mut writer);
        moved.push(spool.stats().relocated);
    }
    // At first its old places are emptied as well.
    assert_eq!(moved.get(3), moved.last(), "{moved:?}");
    let files = spool.stats().files;
    assert!(files < 14, "{files}");
    let (spool, ..) = open(&storage.crash(&mut |_, _| false, 0), options());
    let message = spool.message(waiting).unwrap();
    let RecipientState::Pending {
        last: Some(last),
        tries: 11,
    } = &message.recipients[1].1
    else {
        panic!("{:?}", message.recipients);
    };
    assert_eq!(last.text, "tried 11 times");
    assert_eq!(message.due_unix_ms, 1_795_367_807_000 + 700_000);
}

#[test]
fn spares_are_given_up_before_anybody_is_refused_for_want_of_room() {
    let storage = SimStorage::new(1);
    let least = 96 << 10;
    let options = SpoolOptions {
        free_bytes_min: least,
        ..options()
    };
    let (spool, mut writer, clock) = open(&storage, options);
    for id in traffic(&spool, &mut writer, 400).iter().map(|(id, _)| *id) {
        let ticket = spool.remove(id).unwrap();
        writer.step();
        ticket.wait().unwrap();
    }
    for _ in 0..3 {
        clock.advance(Duration::from_secs(61));
        settle(&spool, &mut writer);
    }
    let spares = || {
        let names = storage.list().unwrap();
        names
            .iter()
            .filter(|name| name.starts_with("spare-"))
            .count()
    };
    // They take no more room than is left beside them.
    let many = spares();
    assert!(many > 6, "{many} spares");
    storage.set_free_bytes(2 * (64 << 10));
    (0..12).for_each(|_| spool.keep());
    let before = spares();
    assert!(before > 3 && before < many, "{before} of {many} spares");
    assert_eq!(before, (many + 2) / 2, "as many as there is room for more");
    // Somebody else's files fill the disk.
    storage.set_free_bytes(4096);
    spool.keep();
    assert!(spool.accepting().is_ok(), "{:?}", spool.accepting());
    assert_eq!(spares(), before - 2, "as many as it takes, no more");
    // Again and again: those that let the queue drain stay, and mail is refused.
    for _ in 0..20 {
        storage.set_free_bytes(4096);
        spool.keep();
    }
    assert!(matches!(spool.accepting(), Err(SpoolError::Full(_))));
    assert_eq!(spares(), 2);
    storage.set_free_bytes(1 << 30);
    spool.keep();
    assert!(spool.accepting().is_ok());
}

#[test]
fn segments_are_recycled_where_the_free_room_cannot_be_told() {
    let storage = SimStorage::new(1);
    let (spool, mut writer, clock) = open(&storage, options());
    let live = traffic(&spool, &mut writer, 400);
    storage.hide_free_bytes();
    let segments = || {
        let names = storage.list().unwrap();
        let is_segment = |name: &&String| name.starts_with("segment-");
        names.iter().filter(is_segment).count()
    };
    let before = segments();
    for (id, _) in live {
        let ticket = spool.remove(id).unwrap();
        writer.step();
        ticket.wait().unwrap();
    }
    for _ in 0..3 {
        clock.advance(Duration::from_secs(61));
        settle(&spool, &mut writer);
    }
    assert!(!spool.is_poisoned(), "{:?}", spool.take_remarks());
    let after = segments();
    assert!(after < before && after <= 3, "{after} of {before} segments");
}
