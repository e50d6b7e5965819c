//! How long a start takes: from a checkpoint, and by reading the whole journal.
//!
//! Sections: `checkpoint` (1,000,000 live messages of one recipient: the start from their checkpoint, against redb
//! with as many entries of the same size read through), `full` (a journal of live messages of 4 KiB, no checkpoint,
//! against reading the same files with nothing done to them). Before each start the files leave the page cache
//! (posix_fadvise(2), DONTNEED); what lies below the kernel may still remember them, for both alike.
//!
//! `cargo bench --bench replay [-- SECTION...]`; `REPLAY_MESSAGES` (1000000), `REPLAY_FULL` (300000); other settings:
//! `measure/mod.rs`.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts of messages are small numbers"
)]

mod measure;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use diligence::clock::SystemClock;
use diligence::spool::storage::OsStorage;
use diligence::spool::{Spool, SpoolOptions, Writer};
use redb::{ReadableDatabase, ReadableTable, TableDefinition};
use rustix::fs::{Advice, fadvise};

use measure::ways::envelope;
use measure::{Rounds, Settings, median, print_bar, setting, time};

/// Messages handed to the writer between two steps.
const BATCH_MESSAGES: usize = 1000;
/// What a checkpoint keeps for a message of one recipient, about.
const ENTRY_BYTES: usize = 72;
const TABLE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("messages");

fn main() {
    let settings = Settings::read("replay");
    let mut rounds = Rounds::new(&settings);
    if settings.wants("checkpoint") {
        checkpoint(&settings, &mut rounds);
    }
    if settings.wants("full") {
        full(&settings, &mut rounds);
    }
    println!();
    rounds.print();
}

fn open(folder: &Path) -> (Spool, Writer) {
    let storage = Arc::new(OsStorage::open(folder).expect("the folder opens"));
    let options = SpoolOptions::default();
    let opened = Spool::open(storage, Arc::new(SystemClock::new()), options);
    let (spool, writer, report) = opened.expect("the spool opens");
    assert!(!report.is_damaged, "{:?}", report.remarks);
    (spool, writer)
}

/// Accepts messages, the writer stepped, and leaves the spool as a kill would.
fn fill(folder: &Path, messages: usize, content: &[u8], with_checkpoint: bool) {
    let (spool, mut writer) = open(folder);
    spool.keep();
    let mut left = messages;
    while left > 0 {
        let now = left.min(BATCH_MESSAGES);
        let tickets: Vec<_> = (0..now)
            .map(|_| {
                let mut transaction = spool.begin().expect("the spool accepts");
                transaction
                    .append_content(content)
                    .expect("the spool takes content");
                transaction.commit(envelope())
            })
            .collect();
        while tickets.iter().any(|ticket| ticket.try_result().is_none()) {
            writer.step();
        }
        left -= now;
    }
    if with_checkpoint {
        spool.checkpoint().expect("a checkpoint is written");
    }
    spool.keep();
}

/// Files of the journal, checkpoints included, with their lengths.
fn files(folder: &Path, prefix: &str) -> Vec<(PathBuf, u64)> {
    std::fs::read_dir(folder)
        .expect("the folder is read")
        .map(|entry| entry.expect("an entry is read"))
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| (entry.path(), entry.metadata().expect("it is there").len()))
        .collect()
}

fn leave_cache(folder: &Path) {
    for (path, _) in files(folder, "") {
        let file = File::open(path).expect("the file opens");
        file.sync_all().expect("the file is synced");
        fadvise(&file, 0, None, Advice::DontNeed).expect("the file leaves the cache");
    }
}

fn print_times(what: &str, times: &[Duration], bytes: u64) -> f64 {
    let seconds = median(times.iter().map(Duration::as_secs_f64).collect());
    println!(
        "{what:<44} {seconds:>8.3} s {:>9.1} MB {:>8.0} MB/s",
        bytes as f64 / 1e6,
        bytes as f64 / 1e6 / seconds.max(1e-9)
    );
    seconds
}

fn checkpoint(settings: &Settings, rounds: &mut Rounds) {
    let clock = SystemClock::new();
    let default = if settings.is_smoke { 1e3 } else { 1e6 };
    let messages = setting("REPLAY_MESSAGES", default) as usize;
    let folder = settings.make_folder("checkpoint");
    fill(&folder, messages, b"x", true);
    let database = folder.join("redb");
    {
        let redb = redb::Database::create(&database).expect("redb opens");
        let transaction = redb.begin_write().expect("redb begins");
        {
            let mut table = transaction.open_table(TABLE).expect("redb has a table");
            for key in 0..messages as u64 {
                table
                    .insert(key, [b'e'; ENTRY_BYTES].as_slice())
                    .expect("redb puts");
            }
        }
        transaction.commit().expect("redb commits");
    }
    let measured = rounds.collect(|| {
        leave_cache(&folder);
        let ((spool, writer), ours) = time(&clock, || open(&folder));
        assert_eq!(spool.stats().messages, messages as u64);
        // The next start finds a spare, as it does behind a daemon.
        spool.keep();
        drop((spool, writer));
        let (entries, theirs) = time(&clock, || {
            let redb = redb::Database::open(&database).expect("redb opens");
            let transaction = redb.begin_read().expect("redb begins");
            let table = transaction.open_table(TABLE).expect("redb has a table");
            let mut map = std::collections::HashMap::new();
            for entry in table.iter().expect("redb reads") {
                let (key, value) = entry.expect("redb reads");
                map.insert(key.value(), value.value().first().copied());
            }
            map.len()
        });
        assert_eq!(entries, messages);
        (ours, theirs)
    });
    let (ours, theirs): (Vec<_>, Vec<_>) = measured.into_iter().unzip();
    println!("\ncheckpoint: {messages} live messages of one recipient, files not cached");
    let newest = files(&folder, "checkpoint-").iter().map(|f| f.1).max();
    let seconds = print_times("the spool's start", &ours, newest.unwrap_or(0));
    let size = files(&folder, "redb").iter().map(|f| f.1).sum();
    print_times("redb, opened and read into a map", &theirs, size);
    print_bar(
        "seconds from the checkpoint",
        seconds,
        "0.5",
        seconds <= 0.5,
    );
}

fn full(settings: &Settings, rounds: &mut Rounds) {
    let clock = SystemClock::new();
    let default = if settings.is_smoke { 1e3 } else { 3e5 };
    let messages = setting("REPLAY_FULL", default) as usize;
    let folder = settings.make_folder("full");
    fill(&folder, messages, &[b'x'; 4096], false);
    // What the keeper wrote by itself meanwhile, here and after each start.
    let forget = || {
        for (path, _) in files(&folder, "checkpoint-") {
            std::fs::remove_file(path).expect("the checkpoint goes");
        }
    };
    forget();
    let bytes: u64 = files(&folder, "segment-").iter().map(|f| f.1).sum();
    let measured = rounds.collect(|| {
        leave_cache(&folder);
        let ((), plain) = time(&clock, || {
            let mut buffer = vec![0; 1 << 20];
            for (path, _) in files(&folder, "segment-") {
                let mut file = File::open(path).expect("the segment opens");
                while file.read(&mut buffer).expect("the segment is read") > 0 {}
            }
        });
        leave_cache(&folder);
        let ((spool, writer), ours) = time(&clock, || open(&folder));
        assert_eq!(spool.stats().messages, messages as u64);
        // The next start finds a spare, as it does behind a daemon.
        spool.keep();
        drop((spool, writer));
        forget();
        (ours, plain)
    });
    let (ours, plain): (Vec<_>, Vec<_>) = measured.into_iter().unzip();
    println!("\nfull: {messages} live messages of 4 KiB, no checkpoint, files not cached");
    let seconds = print_times("the spool's start", &ours, bytes);
    print_times("the same files, only read", &plain, bytes);
    let rate = bytes as f64 / 1e6 / seconds.max(1e-9);
    print_bar("MB/s of journal", rate, "500", rate >= 500.0);
}
