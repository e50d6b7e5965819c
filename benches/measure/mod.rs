//! What the benches share: settings, rounds that begin on a quiet disk, loads, medians, tables.
//!
//! The alternatives of a comparison take turns in one process, and a median over the rounds is printed, so that what
//! else the machine does meets all of them. A round begins only when a probe of the raw flush is near the fastest
//! seen so far, and is repeated, at most five times, if the probe after it is not (SPOOL 11). Nothing asserts a time.
//!
//! Settings: `BENCH_SECONDS` (1) a measurement, `BENCH_ROUNDS` (5), `BENCH_TRIES` (5) of a round on a disturbed disk,
//! `BENCH_DIR` (the target folder) where files go.
//! `--test` makes everything as short as it can be, to see that it still works; other words choose sections.

#![allow(
    dead_code,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "each bench uses its part; settings and quantiles are small numbers"
)]

pub(crate) mod disk;
pub(crate) mod engines;
pub(crate) mod memory;
pub(crate) mod plot;
pub(crate) mod ways;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use diligence::clock::{Clock, SystemClock};

use ways::Accept;

/// How long, how often, which sections, and where.
pub(crate) struct Settings {
    /// Seconds of one measurement.
    pub(crate) seconds: f64,
    /// Rounds of a comparison.
    pub(crate) rounds: usize,
    /// Only to see that it works.
    pub(crate) is_smoke: bool,
    /// Sections chosen on the command line; none means all.
    chosen: Vec<String>,
    /// Removed at the end.
    pub(crate) folder: PathBuf,
}

impl Settings {
    /// From the environment and the command line. Makes the folder.
    pub(crate) fn read(bench: &str) -> Self {
        let is_smoke = std::env::args().any(|arg| arg == "--test");
        let base = std::env::var_os("BENCH_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
        let folder = base.join(format!("bench-{bench}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder for the bench");
        Self {
            seconds: setting("BENCH_SECONDS", if is_smoke { 0.02 } else { 1.0 }),
            rounds: setting("BENCH_ROUNDS", if is_smoke { 1.0 } else { 5.0 }).clamp(1.0, 100.0)
                as usize,
            is_smoke,
            chosen: std::env::args()
                .skip(1)
                .filter(|arg| !arg.starts_with('-'))
                .collect(),
            folder,
        }
    }

    /// Whether a section is to run.
    pub(crate) fn wants(&self, section: &str) -> bool {
        self.chosen.is_empty()
            || self
                .chosen
                .iter()
                .any(|chosen| section.starts_with(&**chosen))
    }

    /// Whether nothing was left out.
    pub(crate) fn is_complete(&self) -> bool {
        self.chosen.is_empty() && !self.is_smoke
    }

    /// A new folder below the bench's.
    pub(crate) fn make_folder(&self, name: &str) -> PathBuf {
        let folder = self.folder.join(name);
        std::fs::create_dir_all(&folder).expect("a folder below the bench's");
        folder
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A number from the environment.
pub(crate) fn setting(name: &str, default: f64) -> f64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// How long `action` takes.
pub(crate) fn time<T>(clock: &SystemClock, action: impl FnOnce() -> T) -> (T, Duration) {
    let before = clock.monotonic();
    let result = action();
    (result, clock.monotonic() - before)
}

/// Sequential writes and flushes of a file that was written with zeros before: the least a durable write costs here.
pub(crate) struct RawFile {
    file: File,
    bytes: u64,
    at: u64,
    clock: SystemClock,
}

impl RawFile {
    /// Makes the file, `bytes` long.
    pub(crate) fn new(path: &Path, bytes: u64) -> Self {
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)
            .expect("a file for raw writes");
        let zeros = vec![0; 1 << 20];
        let mut at = 0;
        while at < bytes {
            let piece = (bytes - at).min(zeros.len() as u64);
            file.write_all_at(&zeros[..piece as usize], at)
                .expect("zeros are written");
            at += piece;
        }
        file.sync_all().expect("zeros are synced");
        Self {
            file,
            bytes,
            at: 0,
            clock: SystemClock::new(),
        }
    }

    /// Writes and flushes once.
    pub(crate) fn write(&mut self, data: &[u8]) -> Duration {
        if self.at + data.len() as u64 > self.bytes {
            self.at = 0;
        }
        let before = self.clock.monotonic();
        self.file
            .write_all_at(data, self.at)
            .expect("raw bytes are written");
        self.file.sync_data().expect("raw bytes are synced");
        self.at += (data.len() as u64).next_multiple_of(4096);
        self.clock.monotonic() - before
    }

    /// Writes and flushes `data` over and over.
    pub(crate) fn load(&mut self, data: &[u8], seconds: f64) -> Load {
        let start = self.clock.monotonic();
        let mut latencies = Vec::new();
        while (self.clock.monotonic() - start).as_secs_f64() < seconds {
            latencies.push(self.write(data));
        }
        let took = self.clock.monotonic() - start;
        let syncs = latencies.len() as u64;
        Load::new(latencies, took, syncs)
    }
}

/// Repeats what is to be compared, each time on a quiet disk.
pub(crate) struct Rounds {
    probe: RawFile,
    floor: Duration,
    wanted: usize,
    tries: usize,
    is_patient: bool,
    /// Rounds that stayed disturbed.
    pub(crate) disturbed: usize,
}

/// Flushes in a probe.
const PROBE_FLUSHES: usize = 40;
/// A probe is near the floor when it takes at most so many times as long.
const NEAR: f64 = 1.5;
/// How often a quiet moment is looked for before a round begins all the same.
const PATIENCE: usize = 10;

impl Rounds {
    /// Rounds as the settings say.
    pub(crate) fn new(settings: &Settings) -> Self {
        let mut rounds = Self {
            probe: RawFile::new(&settings.folder.join("probe"), 1 << 20),
            floor: Duration::MAX,
            wanted: settings.rounds,
            tries: setting("BENCH_TRIES", 5.0).clamp(1.0, 100.0) as usize,
            is_patient: !settings.is_smoke,
            disturbed: 0,
        };
        for _ in 0..if settings.is_smoke { 1 } else { 10 } {
            rounds.is_quiet();
        }
        rounds
    }

    /// The median flush of a probe against the best probe so far.
    fn is_quiet(&mut self) -> bool {
        let flushes = if self.is_patient { PROBE_FLUSHES } else { 2 };
        let mut times: Vec<Duration> = (0..flushes)
            .map(|_| self.probe.write(&[b'p'; 4096]))
            .collect();
        let median = quantile(&mut times, 0.5);
        self.floor = self.floor.min(median);
        !self.is_patient || median.as_secs_f64() <= self.floor.as_secs_f64() * NEAR
    }

    /// Runs `round` as often as wanted, and gives what each returned.
    pub(crate) fn collect<T>(&mut self, mut round: impl FnMut() -> T) -> Vec<T> {
        let mut kept = Vec::new();
        while kept.len() < self.wanted {
            for last in (0..self.tries).rev() {
                for _ in 0..PATIENCE {
                    if self.is_quiet() {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(100));
                }
                let result = round();
                let is_quiet = self.is_quiet();
                if is_quiet || last == 0 {
                    self.disturbed += usize::from(!is_quiet);
                    kept.push(result);
                    break;
                }
            }
        }
        kept
    }

    /// Says what the disk was like.
    pub(crate) fn print(&self) {
        println!(
            "raw flush of 4 KiB: {:.0} us; rounds that stayed disturbed: {}",
            self.floor.as_secs_f64() * 1e6,
            self.disturbed
        );
    }
}

/// What one measurement gave.
#[derive(Default)]
pub(crate) struct Load {
    /// Messages a second.
    pub(crate) rate: f64,
    /// Time of each.
    pub(crate) latencies: Vec<Duration>,
    /// Flushes during it.
    pub(crate) syncs: u64,
    /// What else is counted a second; messages if nothing is said.
    pub(crate) units: f64,
}

impl Load {
    /// From the time of each message.
    pub(crate) fn new(latencies: Vec<Duration>, took: Duration, syncs: u64) -> Self {
        let rate = latencies.len() as f64 / took.as_secs_f64().max(1e-9);
        Self {
            rate,
            latencies,
            syncs,
            units: rate,
        }
    }
}

/// Lets `committers` threads accept `content` over and over.
pub(crate) fn load(way: &dyn Accept, committers: usize, seconds: f64, content: &[u8]) -> Load {
    let clock = SystemClock::new();
    let is_over = AtomicBool::new(false);
    let (syncs, start) = (way.syncs(), clock.monotonic());
    let latencies: Vec<Duration> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..committers)
            .map(|_| {
                scope.spawn(|| {
                    let mut mine = Vec::new();
                    while !is_over.load(Ordering::Relaxed) {
                        mine.push(time(&clock, || way.accept(content)).1);
                    }
                    mine
                })
            })
            .collect();
        std::thread::sleep(Duration::from_secs_f64(seconds));
        is_over.store(true, Ordering::Relaxed);
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("no committer fails"))
            .collect()
    });
    let took = clock.monotonic() - start;
    Load::new(latencies, took, way.syncs() - syncs)
}

/// The value below which a share of all lies.
pub(crate) fn quantile(times: &mut [Duration], share: f64) -> Duration {
    times.sort_unstable();
    let at = (times.len() as f64 * share) as usize;
    times
        .get(at.min(times.len().saturating_sub(1)))
        .copied()
        .unwrap_or_default()
}

/// The middle one.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// One variant over all rounds.
pub(crate) struct Figures {
    /// What was measured.
    pub(crate) name: String,
    /// Median messages a second.
    pub(crate) rate: f64,
    /// Slowest and fastest round.
    pub(crate) range: (f64, f64),
    /// Times over all rounds.
    pub p50: Duration,
    /// The same, 99 of 100.
    pub p99: Duration,
    /// The same, 999 of 1000.
    pub p999: Duration,
    /// Flushes a message.
    pub(crate) syncs: f64,
    /// Median of [`Load::units`].
    pub(crate) units: f64,
}

impl Figures {
    /// Puts the rounds of one variant together.
    pub(crate) fn of(name: &str, rounds: Vec<Load>) -> Self {
        let rates: Vec<f64> = rounds.iter().map(|round| round.rate).collect();
        let units = rounds.iter().map(|round| round.units).collect();
        let syncs: u64 = rounds.iter().map(|round| round.syncs).sum();
        let mut latencies: Vec<Duration> = rounds
            .into_iter()
            .flat_map(|round| round.latencies)
            .collect();
        Self {
            name: name.to_owned(),
            range: (
                rates.iter().copied().fold(f64::MAX, f64::min),
                rates.iter().copied().fold(0.0, f64::max),
            ),
            rate: median(rates),
            units: median(units),
            p50: quantile(&mut latencies, 0.5),
            p99: quantile(&mut latencies, 0.99),
            p999: quantile(&mut latencies, 0.999),
            syncs: syncs as f64 / latencies.len().max(1) as f64,
        }
    }

    /// The heading of [`Figures::print`].
    pub(crate) fn print_heading(title: &str) {
        println!("\n{title}");
        println!(
            "{:<34} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "", "msgs/s", "slowest", "fastest", "p50 ms", "p99 ms", "p99.9 ms", "syncs/msg"
        );
    }

    /// One line.
    pub(crate) fn print(&self) {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        println!(
            "{:<34} {:>9.0} {:>9.0} {:>9.0} {:>9.3} {:>9.3} {:>9.3} {:>9.4}",
            self.name,
            self.rate,
            self.range.0,
            self.range.1,
            ms(self.p50),
            ms(self.p99),
            ms(self.p999),
            self.syncs
        );
    }
}

/// A figure that has to reach a bar, beside the bar.
pub(crate) fn print_bar(what: &str, figure: f64, bar: &str, is_reached: bool) {
    let verdict = match is_reached {
        _ if std::env::args().any(|arg| arg == "--test") => "not judged",
        true => "reached",
        false => "MISSED",
    };
    println!("  {what:<48} {figure:>8.3}  bar {bar:<8} {verdict}");
}

/// A comparison: variants take turns in each round.
pub(crate) fn compare(
    rounds: &mut Rounds,
    title: &str,
    variants: &mut [(&str, &mut dyn FnMut() -> Load)],
) -> Vec<Figures> {
    let measured = rounds.collect(|| {
        variants
            .iter_mut()
            .map(|(_, measure)| measure())
            .collect::<Vec<_>>()
    });
    let mut columns: Vec<Vec<Load>> = variants.iter().map(|_| Vec::new()).collect();
    for round in measured {
        for (column, load) in columns.iter_mut().zip(round) {
            column.push(load);
        }
    }
    Figures::print_heading(title);
    variants
        .iter()
        .zip(columns)
        .map(|((name, _), loads)| {
            let figures = Figures::of(name, loads);
            figures.print();
            figures
        })
        .collect()
}
