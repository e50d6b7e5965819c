//! Lookups a second that mapd answers over one unix socket, beside Postfix's proxymap on the same file.
//!
//! A map of 100,000 aliases, served by mapd in this process over its socket, as other programs reach it. Clients keep a
//! number of requests under way on each of their connections: one, as Postfix and Sendmail do, or many, as a program
//! that pipelines. proxymap serves the same file to as many connections, one request at a time on each, as its own
//! clients ask it; it is left out where Postfix is not (`.ci/peers`) or this is not root. Rounds of all cases are interleaved;
//! printed are the median, the slowest and the fastest round, and the ratio to proxymap's figure for as many connections,
//! or to mapd's own at one request at a time. Nothing is asserted of time.
//!
//! `cargo bench --bench mapd`; `MAPD_LOOKUPS` (200000) a round, `MAPD_ROUNDS` (5).

#![expect(
    clippy::unwrap_used,
    reason = "a bench may panic, and its counts are small numbers"
)]

#[path = "measure/proxymap.rs"]
mod proxymap;

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
use proxymap::{Proxymap, ProxymapClient};

const ENTRIES: u64 = 100_000;
/// How long proxymap may take to start.
const START_MAX: Duration = Duration::from_secs(30);

/// Who is asked, over how many connections at once, with how many requests under way on each.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    Mapd(usize, usize),
    Proxymap(usize),
}

const CASES: [Case; 7] = [
    Case::Mapd(1, 1),
    Case::Proxymap(1),
    Case::Mapd(4, 1),
    Case::Proxymap(4),
    Case::Mapd(1, 16),
    Case::Mapd(1, 256),
    Case::Mapd(2, 256),
];

fn main() {
    let lookups = number("MAPD_LOOKUPS", 200_000);
    let rounds = number("MAPD_ROUNDS", 5);
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("maps");
    build(dir.path());
    start(dir.path(), &socket);
    let clock = SystemClock::new();
    let proxymap = match Proxymap::start(dir.path(), &dir.path().join("users")) {
        Ok(proxymap) => {
            let begun = clock.monotonic();
            while !proxymap.is_ready() {
                assert!(
                    clock.monotonic() - begun < START_MAX,
                    "proxymap did not start"
                );
                std::thread::yield_now();
            }
            Some(proxymap)
        }
        Err(reason) => {
            println!("proxymap is left out: {reason}");
            None
        }
    };
    println!("mapd: {ENTRIES} entries, {lookups} lookups a round, {rounds} rounds");
    let mut rates: Vec<Vec<f64>> = vec![Vec::new(); CASES.len()];
    // The first round is for warming up.
    for round in 0..=rounds {
        for (number, case) in CASES.into_iter().enumerate() {
            let (connections, window) = match case {
                Case::Mapd(connections, window) => (connections, window),
                Case::Proxymap(connections) => (connections, 1),
            };
            // One at a time takes a switch between threads for each; fewer give the same figure sooner.
            let count = if window == 1 { lookups / 10 } else { lookups };
            let begun = clock.monotonic();
            std::thread::scope(|scope| {
                for _ in 0..connections {
                    let (socket, proxymap) = (&socket, &proxymap);
                    scope.spawn(move || match (case, proxymap) {
                        (Case::Mapd(..), _) => client(socket, count / connections, window),
                        (Case::Proxymap(_), Some(proxymap)) => {
                            proxymap_client(proxymap.connect(), count / connections);
                        }
                        (Case::Proxymap(_), None) => {}
                    });
                }
            });
            let took = clock.monotonic() - begun;
            if round > 0 {
                rates[number].push(count as f64 / took.as_secs_f64());
            }
        }
    }
    let medians: Vec<f64> = rates
        .iter_mut()
        .map(|rates| {
            rates.sort_by(f64::total_cmp);
            rates[rates.len() / 2]
        })
        .collect();
    let of = |wanted: Case| {
        let found = CASES
            .into_iter()
            .zip(&medians)
            .find(|(case, _)| *case == wanted);
        found.map_or(f64::NAN, |(_, median)| *median)
    };
    println!("server    connections  under way  lookups/s  slowest  fastest  times");
    for ((case, rates), median) in CASES.into_iter().zip(&rates).zip(&medians) {
        let (name, connections, window, times) = match case {
            Case::Proxymap(_) if proxymap.is_none() => continue,
            Case::Proxymap(connections) => ("proxymap", connections, 1, String::new()),
            Case::Mapd(connections, 1) if proxymap.is_some() => {
                let times = median / of(Case::Proxymap(connections));
                ("mapd", connections, 1, format!("{times:.1} proxymap"))
            }
            Case::Mapd(connections, window) => {
                let times = median / of(Case::Mapd(1, 1));
                (
                    "mapd",
                    connections,
                    window,
                    format!("{times:.1} one at a time"),
                )
            }
        };
        let (slowest, fastest) = (rates[0], rates[rates.len() - 1]);
        println!(
            "{name:8}  {connections:11}  {window:9}  {median:9.0}  {slowest:7.0}  {fastest:7.0}  {times}"
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
    // proxymap reads it as a user of its own.
    let options = PublishOptions {
        mode: 0o644,
        ..PublishOptions::default()
    };
    builder.publish(&dest, &options).unwrap();
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

/// The key of a lookup by its number.
fn key(number: usize) -> String {
    let absent = if number % 10 == 9 { "no" } else { "" };
    format!(
        "{absent}user{}@example.test",
        number.wrapping_mul(7919) % 100_000
    )
}

/// Asks proxymap `count` times.
fn proxymap_client(mut client: ProxymapClient, count: usize) {
    let found = (0..count).filter(|&number| client.lookup(key(number).as_bytes()));
    assert_eq!(found.count(), count - count / 10);
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
            let request = format!("users {}", key(asked));
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
