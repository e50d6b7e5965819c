//! The hand-over between sessions, runners and writer, in many orders of their threads (shuttle).
//!
//! The engine's own code runs; only its locks, condition variables and atomics are shuttle's ([`super::sync`]), which
//! decides at each of them who goes on. A wake-up that is lost ends in a deadlock, which shuttle reports with a schedule
//! that replays it (`shuttle::replay`). Time stands still unless a test moves it, so that no deadline hides one.
//!
//! `cargo test --features interleavings --lib interleaving_tests`; `INTERLEAVINGS` (2000) orders of each test.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use shuttle::future::block_on;
use shuttle::sync::atomic::{AtomicUsize, Ordering};
use shuttle::thread;

use super::journal_tests::{envelope, open, options, read};
use super::sim_storage::SimStorage;
use super::*;
use crate::clock::ManualClock;

/// Runs a scenario in so many orders.
fn explore(scenario: impl Fn() + Send + Sync + 'static) {
    let orders = std::env::var("INTERLEAVINGS").ok();
    let orders = orders.and_then(|text| text.parse().ok()).unwrap_or(2000);
    shuttle::check_random(scenario, orders);
}

/// A spool with its writer on a thread. Segments are made before, as a keeper at work also wakes the writer and would hide
/// a wake-up that somebody else owes it. `left` counts the sessions that have not yet said that they are done.
struct Engine {
    storage: SimStorage,
    clock: Arc<ManualClock>,
    spool: Spool,
    writer: thread::JoinHandle<()>,
    left: Arc<AtomicUsize>,
}

impl Engine {
    fn start(sessions: usize, options: SpoolOptions) -> Self {
        let storage = SimStorage::new(1);
        let clock = Arc::new(ManualClock::at(1_795_367_807_000));
        let (spool, mut writer, _) = Spool::open(
            Arc::new(storage.clone()),
            Arc::clone(&clock) as Arc<dyn Clock>,
            options,
        )
        .unwrap();
        spool.keep();
        let left = Arc::new(AtomicUsize::new(sessions));
        let writer = thread::spawn(move || {
            writer.work();
            writer.inner.end_writer();
        });
        Self {
            storage,
            clock,
            spool,
            writer,
            left,
        }
    }

    /// Closes the spool and waits for the writer; with a deadlock somewhere shuttle ends the test.
    fn end(self) -> SimStorage {
        self.spool.close();
        self.writer.join().unwrap();
        self.storage
    }
}

/// One segment takes all of a test.
fn roomy() -> SpoolOptions {
    SpoolOptions {
        segment_bytes: 256 << 10,
        ..options()
    }
}

fn stream(spool: &Spool, content: &[u8]) -> Result<MessageId, SpoolError> {
    let mut transaction = spool.begin()?;
    for piece in content.chunks(3000) {
        block_on(transaction.room());
        transaction.append_content(piece)?;
    }
    transaction.commit(envelope(&["bob"])).wait()
}

#[test]
fn every_ticket_is_released_and_what_it_said_is_durable() {
    explore(|| {
        // A queue of a chunk or two, so that sessions wait for room as well.
        let small = SpoolOptions {
            queue_bytes_max: 8 << 10,
            ..roomy()
        };
        let engine = Engine::start(3, small);
        let sessions: Vec<_> = (0..3_u8)
            .map(|n| {
                let (spool, left) = (engine.spool.clone(), Arc::clone(&engine.left));
                thread::spawn(move || {
                    let content = vec![b'a' + n; if n == 0 { 20_000 } else { 500 }];
                    let id = stream(&spool, &content).unwrap();
                    // A message given up half way leaves nothing and holds nobody up.
                    let mut given_up = spool.begin().unwrap();
                    given_up.append_content(&[b'x'; 9000]).unwrap();
                    drop(given_up);
                    left.fetch_sub(1, Ordering::SeqCst);
                    (id, content)
                })
            })
            .collect();
        let accepted: Vec<_> = sessions
            .into_iter()
            .map(|session| session.join().unwrap())
            .collect();
        // Acknowledged: there after a power cut that leaves nothing unsynced, whatever the writer does meanwhile.
        let cut = engine.storage.crash(&mut |_, _| false, 0);
        let after = engine.end().crash(&mut |_, _| false, 0);
        for storage in [cut, after] {
            let (spool, _writer, report) = open(&storage);
            assert!(!report.is_damaged, "{:?}", report.remarks);
            assert_eq!(spool.ids().len(), accepted.len());
            for (id, content) in &accepted {
                assert_eq!(&read(&spool, *id), content);
            }
        }
    });
}

#[test]
fn after_a_failed_call_every_ticket_is_released_and_none_says_more_than_is_durable() {
    // Calls of a start are left alone: what is looked at is the hand-over.
    let first = {
        let storage = SimStorage::new(1);
        shuttle::check_dfs(
            {
                let storage = storage.clone();
                move || drop(open(&storage))
            },
            Some(1),
        );
        storage.calls()
    };
    explore(move || {
        let engine = Engine::start(2, roomy());
        let at = first
            + u64::from(shuttle::rand::Rng::gen_range(
                &mut shuttle::rand::thread_rng(),
                0..12_u8,
            ));
        engine.storage.fail_at(at, io::ErrorKind::Other);
        let sessions: Vec<_> = (0..2_u8)
            .map(|n| {
                let (spool, left) = (engine.spool.clone(), Arc::clone(&engine.left));
                thread::spawn(move || {
                    let results: Vec<_> = (0..2)
                        .map(|_| stream(&spool, &vec![b'a' + n; 9000]))
                        .collect();
                    left.fetch_sub(1, Ordering::SeqCst);
                    results
                })
            })
            .collect();
        let mut accepted = Vec::new();
        let mut refused = 0;
        for session in sessions {
            for result in session.join().unwrap() {
                match result {
                    Ok(id) => accepted.push(id),
                    Err(SpoolError::Poisoned(_) | SpoolError::Full(_)) => refused += 1,
                    Err(other) => panic!("{other}"),
                }
            }
        }
        assert_eq!(accepted.len() + refused, 4);
        let after = engine.end().crash(&mut |_, _| false, 0);
        let (spool, _writer, report) = open(&after);
        assert!(!report.is_damaged, "{:?}", report.remarks);
        for id in accepted {
            assert_eq!(read(&spool, id).len(), 9000);
        }
    });
}

#[test]
fn lazy_outcomes_are_written_when_their_time_has_come_and_leases_end_once() {
    explore(|| {
        let engine = Engine::start(2, roomy());
        let ids: Vec<_> = (0..2)
            .map(|_| stream(&engine.spool, b"x").unwrap())
            .collect();
        let runners: Vec<_> = (0..2)
            .map(|_| {
                let (spool, left) = (engine.spool.clone(), Arc::clone(&engine.left));
                thread::spawn(move || {
                    let mut done = Vec::new();
                    while let Some(lease) = spool.lease_due(Duration::from_secs(60)) {
                        let id = lease.id();
                        let sent = Outcome::new(
                            Delivery::Delivered,
                            crate::status::Status::OK,
                            "local",
                            "Sent",
                        );
                        let update = Update {
                            outcomes: vec![(RecipientId(0), sent)],
                            ..Update::default()
                        };
                        spool.finish(lease, update).unwrap().wait().unwrap();
                        done.push(id);
                    }
                    left.fetch_sub(1, Ordering::SeqCst);
                    done
                })
            })
            .collect();
        // Time goes on, and wakes whoever sleeps for a deadline.
        while engine.left.load(Ordering::SeqCst) > 0 {
            engine.clock.advance(Duration::from_millis(10));
            engine.spool.inner.work.notify_all();
            thread::yield_now();
        }
        let mut done: Vec<_> = runners
            .into_iter()
            .flat_map(|runner| runner.join().unwrap())
            .collect();
        done.sort_unstable();
        assert_eq!(
            done, ids,
            "each message leased and ended by exactly one runner"
        );
        let after = engine.end().crash(&mut |_, _| false, 0);
        assert_eq!(open(&after).0.ids(), []);
    });
}
