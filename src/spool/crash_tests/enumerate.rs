//! The power is cut before every call of a workload that changes the disk; each of the states that the disk may then be
//! in is recovered from and checked.
//!
//! A state that is equal to one recovered before, with the outside knowing the same, is counted but not recovered again.
//! Of the states, some are also recovered without the newest checkpoint, without any, with a second cut in the recovery
//! itself, or worked on and cut again; each of these counts as a state of its own, as it is another disk. Before all of
//! them the process alone dies, and the power goes after the next one's start, or after it has worked on.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::super::drop_file;
use super::super::sim_storage::SimStorage;
use super::super::storage::Storage;
use super::super::{RecoveryReport, Spool, Step};
use super::model::{Model, check, check_mail};
use super::moment::{HashCache, Moment};
use super::workload::{self, Outside, SharedOutside, World, look, options};
use super::{Rng, START_MS, open};
use crate::clock::ManualClock;

/// One in so many states is examined further in each of these ways.
const SHARE: usize = 8;

/// After this time a checkpoint is due whatever was written.
const CHECKPOINT_AGE: Duration = Duration::from_secs(61);

/// When the process that works on begins: in a second in which no other has given out ids.
const LATER_MS: u64 = START_MS + 8_640_007_000;

/// What was done.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Figures {
    pub(super) workloads: u64,
    /// Moments at which the power was cut.
    pub(super) cuts: u64,
    /// States of the disk made.
    pub(super) states: u64,
    /// Of those, equal to one before.
    pub(super) repeated: u64,
    /// Messages that the workloads moved to other segments.
    pub(super) relocated: u64,
    /// Times a spool was opened on one.
    pub(super) recoveries: u64,
    /// Second cuts within recovery, and states without a checkpoint that had been there.
    pub(super) cut_again: u64,
    pub(super) checkpoints_lost: u64,
}

impl Figures {
    pub(super) fn add(&mut self, other: Self) {
        self.workloads += other.workloads;
        self.cuts += other.cuts;
        self.states += other.states;
        self.repeated += other.repeated;
        self.relocated += other.relocated;
        self.recoveries += other.recoveries;
        self.cut_again += other.cut_again;
        self.checkpoints_lost += other.checkpoints_lost;
    }
}

/// Which states are examined.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Only {
    pub(super) cut: Option<u64>,
    pub(super) state: Option<u64>,
}

/// The states of one workload.
struct Hunt {
    seed: u64,
    only: Only,
    wanted: u64,
    figures: Figures,
    seen: HashSet<(u64, u64)>,
    cache: HashCache,
    failure: Option<String>,
}

/// Examines states of the workload of a seed until `wanted` of them are done or it ends.
pub(super) fn workload_states(seed: u64, wanted: u64, only: Only) -> (Figures, Result<(), String>) {
    let storage = SimStorage::new(seed);
    let outside = SharedOutside::default();
    let hunt = Arc::new(Mutex::new(Hunt {
        seed,
        only,
        wanted,
        figures: Figures::default(),
        seen: HashSet::new(),
        cache: HashCache::default(),
        failure: None,
    }));
    let (watched, watching, watcher) = (storage.clone(), Arc::clone(&outside), Arc::clone(&hunt));
    storage.observe(Some(Box::new(move || {
        let mut hunt = watcher.lock().unwrap_or_else(PoisonError::into_inner);
        if hunt.failure.is_none() && hunt.figures.states < hunt.wanted {
            hunt.failure = hunt.cut(&watched, &mut look(&watching)).err();
        }
        if hunt.failure.is_some() || hunt.figures.states >= hunt.wanted {
            watched.cut_at(0);
        }
    })));
    workload::run(&storage, seed, &outside);
    storage.observe(None);
    let mut hunt = hunt.lock().unwrap_or_else(PoisonError::into_inner);
    hunt.figures.workloads = 1;
    hunt.figures.relocated = look(&outside).relocated;
    (hunt.figures, hunt.failure.take().map_or(Ok(()), Err))
}

/// A recovered spool.
struct Recovered {
    spool: Spool,
    report: RecoveryReport,
}

impl Hunt {
    /// The power is cut now.
    fn cut(&mut self, storage: &SimStorage, outside: &mut Outside) -> Result<(), String> {
        self.figures.cuts += 1;
        let cut = self.figures.cuts;
        if self.only.cut.is_some_and(|only| only != cut) {
            return Ok(());
        }
        let model = outside.look();
        let moment = Moment::of(storage, Some(&mut self.cache));
        let place = format!("SEED={} CRASH_CUT={cut}", self.seed);
        self.examine_kill(storage, &model)
            .map_err(|what| format!("{place}: {what}"))?;
        // About as many workloads as keep both the cuts and the states of each varied.
        let stride = 1 + usize::try_from(self.seed % 3).unwrap();
        let mut state = usize::try_from(cut).unwrap() % stride;
        if moment.items() <= 2 {
            state = 0;
        }
        while let Some(choice) = moment.choice(state, self.seed ^ cut << 20) {
            if self.only.state.is_none_or(|only| only == state as u64) {
                self.figures.states += 1;
                if self.seen.insert((outside.version, moment.key(&choice))) {
                    let mut rng = Rng(self.seed ^ cut << 20 ^ (state as u64) << 48);
                    self.examine(&moment.crash(&choice), &model, &mut rng)
                        .map_err(|what| format!("{place} CRASH_STATE={state}: {what}"))?;
                } else {
                    self.figures.repeated += 1;
                }
            }
            state += if moment.items() <= 2 { 1 } else { stride };
        }
        Ok(())
    }

    fn open(&mut self, storage: &SimStorage, when: &str) -> Result<Recovered, String> {
        self.figures.recoveries += 1;
        let clock = Arc::new(ManualClock::at(START_MS));
        let (spool, _writer, report) = open(storage, &clock, &options(self.seed))
            .map_err(|e| format!("does not open {when}: {e}"))?;
        Ok(Recovered { spool, report })
    }

    fn open_and_check(
        &mut self,
        storage: &SimStorage,
        model: &Model,
        when: &str,
    ) -> Result<Recovered, String> {
        let found = self.open(storage, when)?;
        check(&found.spool, &found.report, &storage.drops(), model)
            .map_err(|e| format!("{when}: {e}"))?;
        Ok(found)
    }

    /// Recovers from a state, checks it, and now and then goes on from there.
    fn examine(
        &mut self,
        crashed: &SimStorage,
        model: &Model,
        rng: &mut Rng,
    ) -> Result<(), String> {
        let further = rng.below(SHARE);
        let twin = (further < 4).then(|| crashed.kill());
        self.open_and_check(crashed, model, "after the cut")?;
        let Some(twin) = twin else {
            return Ok(());
        };
        match further {
            0 => self.examine_lost_checkpoint(&twin, model),
            1 => self.examine_lost_checkpoints(&twin, model),
            2 => self.examine_cut_in_recovery(&twin, crashed.calls(), model, rng),
            _ => self.examine_work(&twin, model, rng),
        }
    }

    /// The newest checkpoint has a bad sector: the one before serves, and nothing is lost or comes back.
    fn examine_lost_checkpoint(&mut self, twin: &SimStorage, model: &Model) -> Result<(), String> {
        let names = checkpoints(twin)?;
        let (Some(newest), true) = (names.last(), names.len() > 1) else {
            return Ok(());
        };
        twin.with_bytes(newest, |bytes| bytes[40] ^= 1);
        self.figures.states += 1;
        self.figures.checkpoints_lost += 1;
        let mut found = self.open(twin, "without the newest checkpoint")?;
        let is_expected =
            |what: &str| what.starts_with("checkpoint-") || what.starts_with("torn last");
        if let Some(what) = found.report.remarks.iter().find(|what| !is_expected(what)) {
            return Err(format!("without the newest checkpoint: {what}"));
        }
        found.report.is_damaged = false;
        check(&found.spool, &found.report, &twin.drops(), model)
            .map_err(|e| format!("without the newest checkpoint: {e}"))
    }

    /// No checkpoint can be read: nothing is lost or altered, held mail stays held; what has ended may be back.
    fn examine_lost_checkpoints(&mut self, twin: &SimStorage, model: &Model) -> Result<(), String> {
        let names = checkpoints(twin)?;
        if names.is_empty() {
            return Ok(());
        }
        for name in &names {
            twin.with_bytes(name, |bytes| bytes[40] ^= 1);
        }
        self.figures.states += 1;
        self.figures.checkpoints_lost += 1;
        let found = self.open(twin, "without checkpoints")?;
        // Batches whose segments were recycled are rightly missed, and so are records of mail that has ended.
        let expected = ["checkpoint-", "torn last", "no checkpoint", "batches "];
        let is_expected = |what: &str| {
            expected.iter().any(|start| what.starts_with(start))
                || what.contains("malformed")
                || what.ends_with("part of it is damaged")
        };
        if let Some(what) = found.report.remarks.iter().find(|what| !is_expected(what)) {
            return Err(format!("without checkpoints: {what}"));
        }
        check_mail(&found.spool, &twin.drops(), model, true)
            .map_err(|e| format!("without checkpoints: {e}"))
    }

    /// A second cut, somewhere in recovery itself.
    fn examine_cut_in_recovery(
        &mut self,
        twin: &SimStorage,
        calls: u64,
        model: &Model,
        rng: &mut Rng,
    ) -> Result<(), String> {
        twin.cut_at(1 + rng.next() % calls.max(1));
        let _ = self.open(twin, "");
        let moment = Moment::of(twin, None);
        for _ in 0..2 {
            self.figures.states += 1;
            self.figures.cut_again += 1;
            let crashed = moment.crash(&moment.random(rng));
            self.open_and_check(&crashed, model, "after a cut in recovery")?;
        }
        Ok(())
    }

    /// The new process works on, and the power goes again.
    fn examine_work(
        &mut self,
        twin: &SimStorage,
        model: &Model,
        rng: &mut Rng,
    ) -> Result<(), String> {
        let outside = SharedOutside::default();
        look(&outside).change(|new| *new = model.clone());
        self.figures.recoveries += 1;
        let mut world = World::open(twin, self.seed, &outside, LATER_MS)
            .map_err(|e| format!("does not open to work on: {e}"))?;
        world.rng = Rng(rng.next());
        look(&outside).change(|model| model.believe(&world.spool))?;
        drop_file::settle_in(&world.spool, &twin.drops()).map_err(|e| e.to_string())?;
        world.take_drops();
        for _ in 0..6 {
            if world.act().is_none() {
                break;
            }
        }
        while world.writer.step() == Step::Worked {}
        let model = look(&outside).look();
        let moment = Moment::of(twin, None);
        self.figures.states += 1;
        let again = moment.crash(&moment.random(rng));
        self.open_and_check(&again, &model, "after working on")?;
        Ok(())
    }

    /// The process dies and the page cache stays; what the next one shows must survive a power cut after it.
    fn examine_kill(&mut self, storage: &SimStorage, model: &Model) -> Result<(), String> {
        let killed = storage.kill();
        self.figures.states += 1;
        let found = self.open_and_check(&killed, model, "after a kill")?;
        let mut model = model.clone();
        model.believe(&found.spool)?;
        let moment = Moment::of(&killed, None);
        let mut rng = Rng(self.seed ^ self.figures.cuts);
        for choice in [moment.nothing(), moment.random(&mut rng)] {
            self.figures.states += 1;
            let crashed = moment.crash(&choice);
            let again = self.open_and_check(&crashed, &model, "after kill and cut")?;
            if again.spool.ids() != found.spool.ids() {
                return Err("what was shown after a kill is gone after a power cut".into());
            }
        }
        if self.figures.cuts.is_multiple_of(SHARE as u64) {
            self.examine_work_after_kill(&storage.kill(), &model, &mut rng)?;
        }
        Ok(())
    }

    /// The next process works on what was written and not synced, writes a checkpoint, and the power goes.
    fn examine_work_after_kill(
        &mut self,
        killed: &SimStorage,
        model: &Model,
        rng: &mut Rng,
    ) -> Result<(), String> {
        let outside = SharedOutside::default();
        look(&outside).change(|new| *new = model.clone());
        self.figures.recoveries += 1;
        let mut world = World::open(killed, self.seed, &outside, LATER_MS)
            .map_err(|e| format!("does not open after a kill: {e}"))?;
        world.rng = Rng(rng.next());
        drop_file::settle_in(&world.spool, &killed.drops()).map_err(|e| e.to_string())?;
        for _ in 0..rng.below(4) {
            if world.act().is_none() {
                break;
            }
        }
        while world.writer.step() == Step::Worked {}
        world.clock.advance(CHECKPOINT_AGE);
        world.spool.keep();
        let model = look(&outside).look();
        let moment = Moment::of(killed, None);
        for choice in [moment.nothing(), moment.random(rng)] {
            self.figures.states += 1;
            let crashed = moment.crash(&choice);
            self.open_and_check(&crashed, &model, "after kill, work and cut")?;
        }
        Ok(())
    }
}

fn checkpoints(storage: &SimStorage) -> Result<Vec<String>, String> {
    let mut names = storage.list().map_err(|e| e.to_string())?;
    names.retain(|name| name.starts_with("checkpoint-"));
    names.sort_unstable();
    Ok(names)
}

/// Examines workloads from `first_seed` on until `wanted` states are done, on `threads` threads; the first failure as a
/// line that replays it.
pub(super) fn enumerate(
    wanted: u64,
    first_seed: u64,
    threads: u64,
    only: Only,
) -> (Figures, Result<(), String>) {
    let all = Mutex::new((Figures::default(), Ok(())));
    let fault = super::super::faults::seeded_now();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let all = &all;
            scope.spawn(move || {
                super::super::faults::seed(fault);
                for seed in (first_seed + thread..).step_by(usize::try_from(threads).unwrap()) {
                    let done = {
                        let all = all.lock().unwrap();
                        if all.1.is_err() || all.0.states >= wanted {
                            return;
                        }
                        all.0.states
                    };
                    let share = (wanted - done).div_ceil(threads);
                    let (figures, result) = workload_states(seed, share, only);
                    let mut all = all.lock().unwrap();
                    all.0.add(figures);
                    if result.is_err() && all.1.is_ok() {
                        all.1 = result;
                    }
                    if only.cut.is_some() {
                        return;
                    }
                }
            });
        }
    });
    all.into_inner().unwrap()
}
