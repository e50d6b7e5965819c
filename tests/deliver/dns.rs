//! The real resolver against a name server on loopback: absence, trouble and records are told apart (I9).

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use diligence::dns::{MxAnswer, MxHost, Resolver, ResolverOptions, SystemResolver};
use tokio::net::UdpSocket;

const A: u16 = 1;
const CNAME: u16 = 5;
const SOA: u16 = 6;
const PTR: u16 = 12;
const MX: u16 = 15;
const AAAA: u16 = 28;

/// What a name server answers: response code, and records of the answer section as name, type and data.
type Answer = (u8, Vec<(&'static str, u16, Vec<u8>)>);

fn wire_name(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for label in name.split('.').filter(|label| !label.is_empty()) {
        out.push(u8::try_from(label.len()).unwrap());
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    out
}

fn mx(preference: u8, host: &str) -> Vec<u8> {
    [vec![0, preference], wire_name(host)].concat()
}

fn zone(name: &str, record: u16) -> Answer {
    const NO_ERROR: u8 = 0;
    const SERVFAIL: u8 = 2;
    const NXDOMAIN: u8 = 3;
    const REFUSED: u8 = 5;
    let answer = match (name, record) {
        ("ok.test", MX) => vec![
            ("ok.test", MX, mx(20, "MX2.ok.test")),
            ("ok.test", MX, mx(10, "mx1.ok.test")),
        ],
        ("nullmx.test", MX) => vec![("nullmx.test", MX, mx(0, ""))],
        ("alias.test", MX) => vec![
            ("alias.test", CNAME, wire_name("ok.test")),
            ("ok.test", MX, mx(10, "mx1.ok.test")),
        ],
        ("mx1.ok.test", A) => vec![("mx1.ok.test", A, vec![127, 0, 0, 21])],
        ("mx1.ok.test", AAAA) => {
            vec![("mx1.ok.test", AAAA, [vec![0; 15], vec![1]].concat())]
        }
        ("four.test", A) => vec![("four.test", A, vec![127, 0, 0, 4])],
        ("four.test", AAAA) | ("servfail.test", _) => return (SERVFAIL, vec![]),
        ("refused.test", _) => return (REFUSED, vec![]),
        ("21.0.0.127.in-addr.arpa", PTR) => {
            vec![("21.0.0.127.in-addr.arpa", PTR, wire_name("MX1.ok.test"))]
        }
        ("ok.test" | "empty.test", _) => vec![],
        _ => return (NXDOMAIN, vec![]),
    };
    (NO_ERROR, answer)
}

/// Answers from the zone, over UDP; the names asked for are noted.
async fn name_server() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let notes = Arc::clone(&asked);
    tokio::spawn(async move {
        let mut query = [0; 1500];
        loop {
            let (length, from) = socket.recv_from(&mut query).await.unwrap();
            let mut at = 12;
            let mut labels = Vec::new();
            while query[at] != 0 {
                let end = at + 1 + usize::from(query[at]);
                labels.push(String::from_utf8(query[at + 1..end].to_vec()).unwrap());
                at = end;
            }
            let question = &query[12..at + 5];
            assert!(at + 5 <= length);
            let name = labels.join(".").to_ascii_lowercase();
            let record = u16::from_be_bytes([query[at + 1], query[at + 2]]);
            notes.lock().unwrap().push(format!("{name} {record}"));
            let (code, records) = zone(&name, record);
            let mut reply = query[..2].to_vec();
            let answers = u8::try_from(records.len()).unwrap();
            let authorities = u8::from(records.is_empty() && code != 2 && code != 5);
            reply.extend_from_slice(&[0x85, 0x80 | code, 0, 1, 0, answers, 0, authorities, 0, 0]);
            reply.extend_from_slice(question);
            let mut add = |name: &str, record: u16, data: &[u8]| {
                reply.extend_from_slice(&wire_name(name));
                reply.extend_from_slice(&record.to_be_bytes());
                reply.extend_from_slice(&[0, 1, 0, 0, 1, 0]);
                reply.extend_from_slice(&u16::try_from(data.len()).unwrap().to_be_bytes());
                reply.extend_from_slice(data);
            };
            for (name, record, data) in &records {
                add(name, *record, data);
            }
            if authorities == 1 {
                let soa = [
                    wire_name("ns.test"),
                    wire_name("root.test"),
                    [0, 0, 1, 0].repeat(5),
                ]
                .concat();
                add("test", SOA, &soa);
            }
            socket.send_to(&reply, from).await.unwrap();
        }
    });
    (address, asked)
}

fn resolver(server: SocketAddr, query_time: Duration) -> SystemResolver {
    SystemResolver::new(&ResolverOptions {
        name_servers: vec![server],
        hosts_file: None,
        query_time,
        query_tries: 1,
    })
}

fn host(preference: u16, host: &str) -> MxHost {
    MxHost {
        preference,
        host: host.to_owned(),
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[tokio::test]
async fn records_absence_and_trouble_are_told_apart() {
    let (server, _) = name_server().await;
    let dns = resolver(server, Duration::from_secs(30));
    let both = MxAnswer::Hosts(vec![host(10, "mx1.ok.test"), host(20, "mx2.ok.test")]);
    assert_eq!(dns.mx("OK.test.").await, Ok(both));
    assert_eq!(
        dns.mx("alias.test").await,
        Ok(MxAnswer::Hosts(vec![host(10, "mx1.ok.test")]))
    );
    assert_eq!(dns.mx("nullmx.test").await, Ok(MxAnswer::Null));
    assert_eq!(dns.mx("empty.test").await, Ok(MxAnswer::Absent));
    assert_eq!(dns.mx("nonexist.test").await, Ok(MxAnswer::Absent));
    assert!(dns.mx("servfail.test").await.is_err());
    assert!(dns.mx("refused.test").await.is_err());
    assert_eq!(dns.addresses("nonexist.test").await, Ok(vec![]));
    assert_eq!(dns.addresses("empty.test").await, Ok(vec![]));
    assert!(dns.addresses("servfail.test").await.is_err());
    assert_eq!(
        dns.addresses("mx1.ok.test").await,
        Ok(vec![address("127.0.0.21"), address("::1")])
    );
    assert_eq!(
        dns.addresses("four.test").await,
        Ok(vec![address("127.0.0.4")]),
        "one family is enough"
    );
    assert_eq!(
        dns.names(address("127.0.0.21")).await,
        Ok(vec!["mx1.ok.test".to_owned()])
    );
    assert_eq!(dns.names(address("127.0.0.99")).await, Ok(vec![]));
    assert!(dns.is_loopback_only());
}

#[tokio::test]
async fn answers_are_kept_and_localhost_is_never_asked_for() {
    let (server, asked) = name_server().await;
    let dns = resolver(server, Duration::from_secs(30));
    for _ in 0..3 {
        dns.mx("ok.test").await.unwrap();
        dns.mx("nonexist.test").await.unwrap();
        dns.addresses("localhost").await.unwrap();
    }
    assert_eq!(*asked.lock().unwrap(), ["ok.test 15", "nonexist.test 15"]);
}

#[tokio::test]
async fn a_name_server_that_is_not_there_is_trouble() {
    let gone = std::net::UdpSocket::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let dns = resolver(gone, Duration::from_millis(100));
    assert!(dns.mx("ok.test").await.is_err());
    assert!(dns.addresses("ok.test").await.is_err());
    assert!(dns.names(address("127.0.0.21")).await.is_err());
    assert_eq!(dns.addresses("localhost").await.unwrap().len(), 2);
}
