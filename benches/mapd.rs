//! Lookups a second that mapd answers over one unix socket.
//!
//! A map of 100,000 aliases, served by mapd in this process over its socket, as other programs reach it. Clients keep a
//! number of requests under way on each of their connections: one, as Postfix and Sendmail do, or many, as a program
//! that pipelines. Rounds of all cases are interleaved; printed are the median, the slowest and the fastest round, and the
//! ratio to one request at a time. Nothing is asserted of time.
//!
//! `cargo bench --bench mapd`; `MAPD_LOOKUPS` (200000) a round, `MAPD_ROUNDS` (5).

#![expect(
    clippy::unwrap_used,
    reason = "a bench may panic, and its counts are small numbers"
)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::channel;
use std::time::Duration;

use diligence::clock::{Clock, SystemClock};
use diligence::config::{Config, Request};
use diligence::netmaps::netstring;
use diligence::programs::mapd;
use diligence_maps::{DuplicatePolicy, MapBuilder, MapKind, PublishOptions};

const ENTRIES: u64 = 100_000;
/// Connections at once, and requests under way on each.
const CASES: [(usize, usize); 5] = [(1, 1), (1, 16), (1, 256), (2, 256), (4, 1)];

fn main() {
    let lookups = number("MAPD_LOOKUPS", 200_000);
    let rounds = number("MAPD_ROUNDS", 5);
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("maps");
    build(dir.path());
    start(dir.path(), &socket);
    println!("mapd: {ENTRIES} entries, {lookups} lookups a round, {rounds} rounds");
    let clock = SystemClock::new();
    let mut rates: Vec<Vec<f64>> = vec![Vec::new(); CASES.len()];
    // The first round is for warming up.
    for round in 0..=rounds {
        for (case, (connections, window)) in CASES.into_iter().enumerate() {
            // One at a time takes a switch between threads for each; fewer give the same figure sooner.
            let count = if window == 1 { lookups / 10 } else { lookups };
            let begun = clock.monotonic();
            std::thread::scope(|scope| {
                for _ in 0..connections {
                    let socket = &socket;
                    scope.spawn(move || client(socket, count / connections, window));
                }
            });
            let took = clock.monotonic() - begun;
            if round > 0 {
                rates[case].push(count as f64 / took.as_secs_f64());
            }
        }
    }
    let median = |rates: &mut Vec<f64>| {
        rates.sort_by(f64::total_cmp);
        (rates[rates.len() / 2], rates[0], rates[rates.len() - 1])
    };
    let (alone, _, _) = median(&mut rates[0]);
    println!("connections  under way  lookups/s  slowest  fastest  ratio");
    for (case, (connections, window)) in CASES.into_iter().enumerate() {
        let (middle, slowest, fastest) = median(&mut rates[case]);
        println!(
            "{connections:11}  {window:9}  {middle:9.0}  {slowest:7.0}  {fastest:7.0}  {:5.1}",
            middle / alone
        );
    }
}

/// A number from the environment.
fn number(name: &str, default: usize) -> usize {
    let text = std::env::var(name).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn build(dir: &Path) {
    let mut builder = MapBuilder::new(MapKind::Hash, DuplicatePolicy::KeepFirst).unwrap();
    for entry in 0..ENTRIES {
        let key = format!("user{entry}@example.test");
        let value = format!("mailbox{entry}@store{}.example.test", entry % 100);
        builder.insert(key.as_bytes(), value.as_bytes()).unwrap();
    }
    let dest = dir.join("users.db");
    builder.publish(&dest, &PublishOptions::default()).unwrap();
}

/// Starts the server; it ends with the process.
fn start(dir: &Path, socket: &Path) {
    let text = format!(
        "alias_file = []\naccess_db = \"\"\nlog_file = \"{0}/log\"\ndont_blame_sendmail = \"TrustStickyBit\"\nmapd.listen = \"unix:{1}\"\n[map]\nusers = \"hash {0}/users\"\n",
        dir.display(),
        socket.display()
    );
    let config = Config::from_text(&Request::default(), Path::new("bench.toml"), &text).unwrap();
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let code = mapd::run(&config, &mut |_| sender.send(()).unwrap());
        panic!("mapd ended: {code:?}");
    });
    receiver.recv_timeout(Duration::from_secs(30)).unwrap();
}

/// Asks `count` times, with `window` requests under way; every tenth key is absent.
fn client(socket: &Path, count: usize, window: usize) {
    let mut stream = UnixStream::connect(socket).unwrap();
    let (mut requests, mut answers) = (Vec::new(), Vec::new());
    let mut piece = vec![0; 64 << 10];
    let mut asked = 0_usize;
    let mut answered = 0_usize;
    let mut found = 0_usize;
    while answered < count {
        requests.clear();
        while asked < count && asked - answered < window {
            let number = asked.wrapping_mul(7919) % 100_000;
            let absent = if asked % 10 == 9 { "no" } else { "" };
            let request = format!("users {absent}user{number}@example.test");
            netstring::write(&mut requests, &[request.as_bytes()]);
            asked += 1;
        }
        stream.write_all(&requests).unwrap();
        let read = stream.read(&mut piece).unwrap();
        assert!(read > 0, "mapd closed the connection");
        answers.extend_from_slice(&piece[..read]);
        let mut used = 0;
        while let netstring::Parsed::Whole(answer, len) =
            netstring::parse(&answers[used..], 100_000)
        {
            assert!(answer.starts_with(b"OK ") || answer == b"NOTFOUND ");
            found += usize::from(answer.starts_with(b"OK "));
            answered += 1;
            used += len;
        }
        answers.drain(..used);
    }
    assert_eq!(found, count - count / 10);
}
