//! Work on many places in turns (L2): mailboxes, files, Maildirs, each with what waits for it.
//!
//! Guarantees: a place is served by one worker at a time, and what waits for it is served in the order it came, as much at
//! once as a batch may have; places that wait take turns. A few workers on the blocking pool live while there is work.
//! The more waits, the larger the batches: that is what lets many messages share an opening, a lock and a sync.
//! A panic in the work drops its batch and nothing else. Blocks: never but for the moment of a lock; the work does.
//! Limits: those the constructor is given.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How much is done at once, and how much may wait.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Places served at once.
    pub(crate) workers: usize,
    /// Jobs that may wait for one place.
    pub(crate) waiting: usize,
    /// Jobs served at once for one place.
    pub(crate) batch_jobs: usize,
    /// Bytes after which a batch has enough.
    pub(crate) batch_bytes: u64,
}

/// Serves a batch of one place. It may take what has come meanwhile by [`Turns::take_waiting`].
type Serve<K, J> = Box<dyn Fn(&Turns<K, J>, &K, Vec<J>) + Send + Sync>;

/// Places, and what waits for them.
pub(crate) struct Turns<K, J> {
    limits: Limits,
    serve: Serve<K, J>,
    state: Mutex<State<K, J>>,
}

struct State<K, J> {
    /// What waits, with its bytes. A place has an entry while it has a worker or is among those ready, and is never both.
    places: HashMap<K, VecDeque<(u64, J)>>,
    /// Places that jobs wait for and nobody serves, in their turns.
    ready: VecDeque<K>,
    workers: usize,
}

impl<K: Clone + Eq + Hash + Send + 'static, J: Send + 'static> Turns<K, J> {
    pub(crate) fn new(
        limits: Limits,
        serve: impl Fn(&Self, &K, Vec<J>) + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            limits,
            serve: Box::new(serve),
            state: Mutex::new(State {
                places: HashMap::new(),
                ready: VecDeque::new(),
                workers: 0,
            }),
        })
    }

    /// Puts a job behind those that wait for a place; gives it back if too many do. Needs a tokio runtime.
    pub(crate) fn push(self: &Arc<Self>, place: K, bytes: u64, job: J) -> Result<(), J> {
        let mut state = self.lock();
        if let Some(waiting) = state.places.get_mut(&place) {
            if waiting.len() >= self.limits.waiting {
                return Err(job);
            }
            waiting.push_back((bytes, job));
            return Ok(());
        }
        let waiting = VecDeque::from([(bytes, job)]);
        state.places.insert(place.clone(), waiting);
        state.ready.push_back(place);
        if state.workers < self.limits.workers {
            state.workers += 1;
            let turns = Arc::clone(self);
            tokio::task::spawn_blocking(move || turns.work());
        }
        Ok(())
    }

    /// Everything that waits for a place that is being served.
    pub(crate) fn take_waiting(&self, place: &K) -> Vec<J> {
        let mut state = self.lock();
        let waiting = state.places.get_mut(place).map(std::mem::take);
        waiting.into_iter().flatten().map(|(_, job)| job).collect()
    }

    /// Serves places until nothing waits for any.
    fn work(&self) {
        let mut served: Option<K> = None;
        loop {
            let (place, batch) = {
                let mut state = self.lock();
                if let Some(place) = served.take() {
                    if state
                        .places
                        .get(&place)
                        .is_some_and(|jobs| !jobs.is_empty())
                    {
                        state.ready.push_back(place);
                    } else {
                        state.places.remove(&place);
                    }
                }
                let Some(place) = state.ready.pop_front() else {
                    state.workers -= 1;
                    return;
                };
                let batch = state.places.get_mut(&place).map(|jobs| self.batch(jobs));
                (place, batch.unwrap_or_default())
            };
            // A panic drops the batch, which its waiters see; the worker goes on.
            let _ = catch_unwind(AssertUnwindSafe(|| (self.serve)(self, &place, batch)));
            served = Some(place);
        }
    }

    fn batch(&self, waiting: &mut VecDeque<(u64, J)>) -> Vec<J> {
        let mut batch = Vec::new();
        let mut bytes: u64 = 0;
        while batch.len() < self.limits.batch_jobs && bytes < self.limits.batch_bytes {
            let Some((more, job)) = waiting.pop_front() else {
                break;
            };
            bytes = bytes.saturating_add(more);
            batch.push(job);
        }
        batch
    }

    fn lock(&self) -> MutexGuard<'_, State<K, J>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    const LIMITS: Limits = Limits {
        workers: 1,
        waiting: 5,
        batch_jobs: 3,
        batch_bytes: 100,
    };

    type Batch = (&'static str, Vec<u32>);

    /// One worker, which tells of each batch and then waits to be let go.
    fn turns() -> (
        Arc<Turns<&'static str, u32>>,
        mpsc::Receiver<Batch>,
        mpsc::Sender<()>,
    ) {
        let (go, gate) = mpsc::channel::<()>();
        let (tell, told) = mpsc::channel();
        let (gate, tell) = (Mutex::new(gate), Mutex::new(tell));
        let turns = Turns::new(LIMITS, move |_, place, jobs| {
            let is_bad = jobs.contains(&13);
            tell.lock().unwrap().send((*place, jobs)).unwrap();
            gate.lock().unwrap().recv().unwrap();
            assert!(!is_bad, "as a test of what catches it");
        });
        (turns, told, go)
    }

    #[tokio::test]
    async fn places_take_turns_and_batches_are_bounded() {
        let (turns, told, go) = turns();
        turns.push("a", 1, 0).unwrap();
        assert_eq!(told.recv().unwrap(), ("a", vec![0]));
        for number in 1..5 {
            turns.push("a", 1, number).unwrap();
        }
        for (number, bytes) in [(10, 1), (11, 99), (12, 1), (13, 1)] {
            turns.push("b", bytes, number).unwrap();
        }
        turns.push("c", 1, 20).unwrap();
        // The panic of 13 ends nothing.
        for expected in [
            ("b", vec![10, 11]),
            ("c", vec![20]),
            ("a", vec![1, 2, 3]),
            ("b", vec![12, 13]),
            ("a", vec![4]),
        ] {
            go.send(()).unwrap();
            assert_eq!(told.recv().unwrap(), expected);
        }
        go.send(()).unwrap();
    }

    #[tokio::test]
    async fn too_many_are_given_back_and_the_rest_can_be_taken() {
        let (turns, told, go) = turns();
        turns.push("a", 1, 0).unwrap();
        assert_eq!(told.recv().unwrap(), ("a", vec![0]));
        for number in 1..=5 {
            turns.push("a", 1, number).unwrap();
        }
        assert_eq!(turns.push("a", 1, 6), Err(6));
        assert_eq!(turns.take_waiting(&"a"), [1, 2, 3, 4, 5]);
        turns.push("a", 1, 7).unwrap();
        go.send(()).unwrap();
        assert_eq!(told.recv().unwrap(), ("a", vec![7]));
        go.send(()).unwrap();
    }
}
