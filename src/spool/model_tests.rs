//! Random operations on a spool and on a plain map, which must not differ: after each operation, after each restart,
//! whether the process before was closed or killed, and to a reader without the lock.
//!
//! proptest shrinks a failing sequence and prints it; `PROPTEST_CASES` says how many are tried.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use super::reader::SpoolReader;
use super::sim_storage::SimStorage;
use super::*;
use crate::address::ReversePath;
use crate::clock::ManualClock;
use crate::status::Status;

const START_MS: u64 = 1_795_367_807_000;
const HELD_FOR: Duration = Duration::from_secs(60);

/// An operation. Messages are chosen by a number modulo how many there are.
#[derive(Debug, Clone)]
enum Operation {
    Accept { bytes: usize, recipients: usize },
    Abandon { bytes: usize },
    Attempt { nth: usize, results: Vec<Delivery> },
    Expand { nth: usize, children: usize },
    Hold { nth: usize, is_held: bool },
    Remove { nth: usize },
    Keep,
    Checkpoint,
    Pulse,
    Wait { seconds: u64 },
    Restart { is_clean: bool },
}

fn operation() -> impl Strategy<Value = Operation> {
    let result = prop_oneof![
        Just(Delivery::Delivered),
        Just(Delivery::Deferred),
        Just(Delivery::Failed)
    ];
    prop_oneof![
        6 => (0_usize..12_000, 1_usize..4)
            .prop_map(|(bytes, recipients)| Operation::Accept { bytes, recipients }),
        1 => (0_usize..12_000).prop_map(|bytes| Operation::Abandon { bytes }),
        6 => (any::<usize>(), proptest::collection::vec(result, 1..6))
            .prop_map(|(nth, results)| Operation::Attempt { nth, results }),
        2 => (any::<usize>(), 1_usize..5)
            .prop_map(|(nth, children)| Operation::Expand { nth, children }),
        1 => (any::<usize>(), any::<bool>())
            .prop_map(|(nth, is_held)| Operation::Hold { nth, is_held }),
        1 => any::<usize>().prop_map(|nth| Operation::Remove { nth }),
        3 => Just(Operation::Keep),
        1 => Just(Operation::Checkpoint),
        1 => Just(Operation::Pulse),
        1 => (1_u64..4000).prop_map(|seconds| Operation::Wait { seconds }),
        2 => any::<bool>().prop_map(|is_clean| Operation::Restart { is_clean }),
    ]
}

/// A message in the plain map.
#[derive(Debug, Clone, PartialEq)]
struct Plain {
    content: Vec<u8>,
    recipients: Vec<(String, RecipientState)>,
    is_held: bool,
}

struct Pair {
    storage: SimStorage,
    clock: Arc<ManualClock>,
    spool: Spool,
    writer: Writer,
    map: BTreeMap<MessageId, Plain>,
    accepted: u64,
}

const NEW: RecipientState = RecipientState::Pending {
    last: None,
    tries: 0,
};

fn open(storage: &SimStorage, clock: &Arc<ManualClock>) -> (Spool, Writer) {
    let options = SpoolOptions {
        segment_bytes: 64 << 10,
        process_id: 7,
        checkpoint_bytes: 32 << 10,
        spares_max: 2,
        relocation_rest: [Duration::ZERO; 3],
        relocation_rate: u64::MAX,
        ..SpoolOptions::default()
    };
    let (spool, writer, report) =
        Spool::open(Arc::new(storage.clone()), Arc::clone(clock) as _, options).unwrap();
    assert_eq!(report.remarks, Vec::<String>::new());
    (spool, writer)
}

fn outcome(result: Delivery, tries: u32) -> Outcome {
    Outcome::new(result, Status::OK, "local", format!("try {tries}"))
}

impl Pair {
    fn new() -> Self {
        let (storage, clock) = (SimStorage::new(1), Arc::new(ManualClock::at(START_MS)));
        let (spool, writer) = open(&storage, &clock);
        Self {
            storage,
            clock,
            spool,
            writer,
            map: BTreeMap::new(),
            accepted: 0,
        }
    }

    fn nth(&self, nth: usize) -> Option<MessageId> {
        let count = self.map.len().max(1);
        self.map.keys().nth(nth % count).copied()
    }

    fn settle(&mut self, ticket: &CommitTicket) {
        while ticket.try_result().is_none() {
            assert_ne!(self.writer.step(), Step::Ended);
        }
        ticket.try_result().unwrap().unwrap();
    }

    fn begin(&mut self, bytes: usize) -> (Transaction, Vec<u8>) {
        let mut transaction = self.spool.begin().unwrap();
        self.accepted += 1;
        let content: Vec<u8> = (0..bytes)
            .map(|n| u8::try_from((n as u64 * 31 + self.accepted * 7) % 251).unwrap())
            .collect();
        for part in content.chunks(5000) {
            transaction.append_content(part).unwrap();
        }
        (transaction, content)
    }

    fn act(&mut self, operation: &Operation) {
        match operation {
            Operation::Accept { bytes, recipients } => self.accept(*bytes, *recipients),
            Operation::Abandon { bytes } => drop(self.begin(*bytes)),
            Operation::Attempt { nth, results } => self.attempt(*nth, results),
            Operation::Expand { nth, children } => self.expand(*nth, *children),
            Operation::Hold { nth, is_held } => {
                let Some(id) = self.nth(*nth) else { return };
                let ticket = self.spool.hold(id, *is_held, "root").unwrap();
                self.settle(&ticket);
                self.map.get_mut(&id).unwrap().is_held = *is_held;
            }
            Operation::Remove { nth } => {
                let Some(id) = self.nth(*nth) else { return };
                let ticket = self.spool.remove(id).unwrap();
                self.settle(&ticket);
                self.map.remove(&id);
            }
            Operation::Keep => self.spool.keep(),
            Operation::Checkpoint => self.spool.checkpoint().unwrap(),
            Operation::Pulse => while self.writer.step() == Step::Worked {},
            Operation::Wait { seconds } => self.clock.advance(Duration::from_secs(*seconds)),
            Operation::Restart { is_clean } => {
                if *is_clean {
                    self.spool.close();
                    while self.writer.step() != Step::Ended {}
                    self.writer.inner.end_writer();
                }
                self.storage.unlock();
                (self.spool, self.writer) = open(&self.storage, &self.clock);
            }
        }
    }

    fn accept(&mut self, bytes: usize, recipients: usize) {
        let (transaction, content) = self.begin(bytes);
        let names: Vec<String> = (0..recipients).map(|n| format!("r{n}")).collect();
        let envelope = Envelope::new(
            ReversePath::Null,
            names.iter().map(|name| Recipient::new(&**name)).collect(),
        );
        let id = transaction.id();
        let ticket = transaction.commit(envelope);
        self.settle(&ticket);
        let plain = Plain {
            content,
            recipients: names.into_iter().map(|name| (name, NEW)).collect(),
            is_held: false,
        };
        assert!(self.map.insert(id, plain).is_none(), "an id is given once");
    }

    fn attempt(&mut self, nth: usize, results: &[Delivery]) {
        let Some(id) = self.nth(nth) else { return };
        let lease = self.spool.lease_message(id, HELD_FOR);
        let plain = self.map.get_mut(&id).unwrap();
        assert_eq!(lease.is_none(), plain.is_held, "held mail is not leased");
        let Some(lease) = lease else { return };
        let mut update = Update::default();
        let pending = (0_u32..).zip(&mut plain.recipients);
        for ((at, (_, state)), result) in pending.zip(results.iter().cycle()) {
            let RecipientState::Pending { tries, .. } = state else {
                continue;
            };
            let (tries, outcome) = (*tries + 1, outcome(*result, *tries + 1));
            update.outcomes.push((RecipientId(at), outcome.clone()));
            *state = match result {
                Delivery::Delivered => RecipientState::Delivered,
                Delivery::Failed => RecipientState::Failed,
                Delivery::Deferred => RecipientState::Pending {
                    last: Some(Box::new(outcome)),
                    tries,
                },
            };
        }
        self.end_if_done(id);
        let ticket = self.spool.finish(lease, update).unwrap();
        self.settle(&ticket);
    }

    fn expand(&mut self, nth: usize, children: usize) {
        let Some(id) = self.nth(nth) else { return };
        let Some(lease) = self.spool.lease_message(id, HELD_FOR) else {
            return;
        };
        let plain = self.map.get_mut(&id).unwrap();
        let pending = |(_, state): &(String, RecipientState)| *state != RecipientState::Expanded;
        let Some(parent) = plain
            .recipients
            .iter()
            .position(|r| pending(r) && !r.1.is_final())
        else {
            return;
        };
        plain.recipients[parent].1 = RecipientState::Expanded;
        let names: Vec<String> = (0..children).map(|n| format!("c{parent}-{n}")).collect();
        plain
            .recipients
            .extend(names.iter().map(|name| (name.clone(), NEW)));
        let parent = RecipientId(u32::try_from(parent).unwrap());
        let update = Update {
            expansions: vec![(
                parent,
                names.iter().map(|name| Recipient::new(&**name)).collect(),
            )],
            ..Update::default()
        };
        let ticket = self.spool.record(&lease, update).unwrap();
        self.settle(&ticket);
    }

    fn end_if_done(&mut self, id: MessageId) {
        let is_pending =
            |(_, state): &(String, RecipientState)| matches!(state, RecipientState::Pending { .. });
        if !self.map[&id].recipients.iter().any(is_pending) {
            self.map.remove(&id);
        }
    }

    fn compare(&self) {
        let stored = |message: StoredMessage, content: Vec<u8>| Plain {
            content,
            recipients: message
                .recipients
                .into_iter()
                .map(|(recipient, state)| (recipient.target, state))
                .collect(),
            is_held: message.is_held,
        };
        let read = |mut content: ContentReader| {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut content, &mut bytes).unwrap();
            bytes
        };
        let here: BTreeMap<_, _> = self
            .spool
            .ids()
            .into_iter()
            .map(|id| {
                let content = read(self.spool.content(id).unwrap());
                (id, stored(self.spool.message(id).unwrap(), content))
            })
            .collect();
        assert_eq!(here, self.map);
        assert_eq!(self.spool.stats().messages, self.map.len() as u64);
        let reader = SpoolReader::read(&self.storage, &*self.clock).unwrap();
        let there: BTreeMap<_, _> = reader
            .ids()
            .into_iter()
            .map(|id| {
                let content = read(reader.content(id).unwrap());
                (id, stored(reader.message(id).unwrap(), content))
            })
            .collect();
        assert_eq!(there, self.map, "to a reader without the lock");
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(debug_assertions) { 12 } else { 400 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_spool_is_a_map_that_survives_restarts(
        operations in proptest::collection::vec(operation(), 1..120)
    ) {
        let mut pair = Pair::new();
        for operation in &operations {
            pair.act(operation);
            pair.compare();
        }
    }
}
