//! The spool beside embedded stores: redb and LMDB, one durable transaction a batch.
//!
//! Sections: `engines_50` (4 KiB, 50 committers), `large_10` (100 KiB, 10 committers; one file a message as well).
//!
//! `cargo bench --bench engines [-- SECTION...]`; settings: `measure/mod.rs`.

mod measure;

use diligence::spool::SpoolOptions;

use measure::disk::{Disk, Room};
use measure::engines::Batched;
use measure::ways::{Accept, FilePerMessage, Journal};
use measure::{Figures, Load, Rounds, Settings, compare, load, print_bar};

fn main() {
    let settings = Settings::read("engines");
    let mut rounds = Rounds::new(&settings);
    if settings.wants("engines_50") {
        let [ours, _, redb, lmdb] = beside(&settings, &mut rounds, "engines_50", 50, 4096);
        against(&ours, &redb, 1.8);
        against(&ours, &lmdb, 1.3);
        for theirs in [redb, lmdb] {
            let p99 = ours.p99.as_secs_f64() / theirs.p99.as_secs_f64().max(1e-9);
            print_bar(&format!("p99 to {}", theirs.name), p99, "1.0", p99 <= 1.0);
        }
    }
    if settings.wants("large_10") {
        let [ours, one, redb, lmdb] = beside(&settings, &mut rounds, "large_10", 10, 100 << 10);
        against(&ours, &one, 4.0);
        against(&ours, &redb, 1.6);
        against(&ours, &lmdb, 1.2);
    }
    println!();
    rounds.print();
}

fn against(ours: &Figures, theirs: &Figures, bar: f64) {
    let ratio = ours.rate / theirs.rate.max(1e-9);
    let what = format!("times {}", theirs.name);
    print_bar(&what, ratio, &bar.to_string(), ratio >= bar);
}

/// The spool, one file a message, redb and LMDB.
fn beside(
    settings: &Settings,
    rounds: &mut Rounds,
    section: &str,
    committers: usize,
    bytes: usize,
) -> [Figures; 4] {
    let folder = |name: &str| settings.make_folder(&format!("{section}-{name}"));
    let mut options = SpoolOptions::default();
    if settings.is_smoke {
        options.segment_bytes = 4 << 20;
    }
    let enough = 3 * options.checkpoint_bytes;
    let content = vec![b'x'; bytes];
    let journal = Journal::open(&folder("journal"), &Disk::real(), Room::Zeroed, options);
    // Until emptied segments come back as spares.
    while !settings.is_smoke && journal.spool.stats().bytes_written < enough {
        load(&journal, committers, 0.2, &content);
    }
    let one = FilePerMessage::open(&folder("one"), &Disk::real());
    let redb = Batched::redb(&folder("redb"), &Disk::real());
    let lmdb = Batched::lmdb(&folder("lmdb"), &Disk::real());
    let run = |way: &dyn Accept| -> Load { load(way, committers, settings.seconds, &content) };
    let title = format!(
        "{section}: {committers} committers, {} KiB, steady state",
        bytes >> 10
    );
    let figures = compare(
        rounds,
        &title,
        &mut [
            ("journal", &mut || run(&journal)),
            ("one file", &mut || run(&one)),
            ("redb", &mut || run(&redb)),
            ("LMDB", &mut || run(&lmdb)),
        ],
    );
    figures
        .try_into()
        .unwrap_or_else(|_| unreachable!("as many figures as variants"))
}
