//! Access and relaying over real sockets: clients of many loopback addresses, one access map, names from a table, and
//! the answers and log lines of Sendmail 8.17 for them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(
    clippy::disallowed_methods,
    reason = "deadlines and pauses of real sockets are measured by the system's clock"
)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use diligence::clock::{Clock, SystemClock};
use diligence::config::access::{
    AccessOptions, Control, DelayChecks, DnsList, RelayMailFrom, RelayOptions,
};
use diligence::config::host::HostName;
use diligence::config::{Blameless, DontBlame, RouteOptions};
use diligence::dns::{Resolver, TableResolver};
use diligence::envelope::MessageId;
use diligence::maillog::{Destination, LogSettings, Maillog};
use diligence::route::{Router, RouterParts, Table};
use diligence::smtpd::names::{ClientNames, WAIT};
use diligence::smtpd::{Backend, ConnectionLimits, Listen, Server, Settings};
use diligence::spool::storage::OsStorage;
use diligence::spool::{Spool, SpoolOptions};
use diligence::users::Users;
use socket2::{Domain, Socket, Type};
use tokio::sync::oneshot;

const DEADLINE: Duration = Duration::from_secs(20);

const ACCESS: &[(&str, &str)] = &[
    ("bad@spammer.test", "REJECT"),
    ("From:rej@sender.test", "REJECT"),
    ("From:err@sender.test", "ERROR:5.7.1:550 go away err"),
    ("From:errq@sender.test", "ERROR:\"550 quoted text\""),
    ("From:err4@sender.test", "ERROR:4.7.1:451 try later err4"),
    ("From:errd@sender.test", "ERROR:D.S.N:550 literal dsn"),
    ("From:num@sender.test", "550 plain number text"),
    ("From:num5@sender.test", "550 5.7.9 text with dsn"),
    ("From:num4@sender.test", "450 4.7.9 temp text"),
    ("From:disc@sender.test", "DISCARD"),
    ("From:ok@nonexist.test", "OK"),
    ("From:relay@nonexist.test", "RELAY"),
    ("From:quar@sender.test", "QUARANTINE:looks like spam"),
    ("From:reject.test", "REJECT"),
    ("From:deep.test", "550 5.7.1 no deep"),
    ("From:user1@", "REJECT"),
    ("From:postmaster@", "OK"),
    ("From:<>", "REJECT"),
    ("From:skip.test", "SKIP"),
    ("From:junk@sender.test", "JUNKACTION"),
    ("From:sender.test", "RELAY"),
    ("Connect:127.0.0.60", "REJECT"),
    ("Connect:127.0.0.61", "RELAY"),
    ("Connect:127.0.0.62", "ERROR:4.7.1:\"450 connect later\""),
    ("Connect:127.0.0.63", "DISCARD"),
    ("Connect:127.0.0.64", "OK"),
    ("Connect:127.0.0.66", "QUARANTINE:client held"),
    ("Connect:127.0.1", "550 5.7.1 whole net rejected"),
    (
        "To:frozen@gold.example.test",
        "ERROR:5.2.1:550 mailbox frozen",
    ),
    ("To:rejected@", "REJECT"),
    ("To:bob@gold.example.test", "ERROR:4.2.1:450 bob is busy"),
    ("To:relayed.test", "RELAY"),
    ("To:user@single.relay.test", "RELAY"),
    ("To:okto.test", "OK"),
    ("To:discto@gold.example.test", "DISCARD"),
    ("To:blockdom.test", "REJECT"),
    ("Spam:alice@gold.example.test", "FRIEND"),
    ("Spam:bob@gold.example.test", "HATER"),
    ("GreetPause:127.0.0.50", "0"),
    ("GreetPause:client52.test", "300"),
    ("ClientRate:127.0.0.67", "2"),
    ("ClientConn:127.0.0.68", "1"),
    ("TLS_Clt:127.0.0.69", "VERIFY"),
    ("TLS_Clt:127.0.0.70", "PERM+ENCR:112"),
    ("TLS_Clt:127.0.0.74", "TEMP+VERIFY:128"),
    ("TLS_Clt:127.0.0.75", "NONE"),
    ("From:.dotted.test", "REJECT"),
    ("From:[10.1.2]", "REJECT"),
];

/// Names as golden's name server has them; all but `nonexist.test` and what fails on purpose.
fn names() -> TableResolver {
    let at = |last: u8| IpAddr::from([127, 0, 0, last]);
    let mut table = TableResolver::new()
        .with_mx("loop.test", &[(10, "gold.example.test")])
        .with_mx("example.test", &[(10, "gold.example.test")])
        .with_mx("mx.test", &[(10, "mx.ok.test")])
        .with_failure("tempfail.test", "timed out")
        .with_failure("71.0.0.127.bl.test", "timed out")
        .with_address("72.0.0.127.bl.test", at(2))
        .with_address("73.0.0.127.bl.test", at(9));
    for name in [
        "sender.test",
        "ok.test",
        "skip.test",
        "reject.test",
        "a.sub.reject.test",
        "very.deep.test",
        "spammer.test",
        "plain.test",
        "dotted.test",
        "a.dotted.test",
        "a.b.dotted.test",
    ] {
        table = table.with_address(name, at(21));
    }
    for (name, last) in [
        ("client50.test", 50),
        ("client52.test", 52),
        ("spammer.test", 60),
    ] {
        table = table.with_address(name, at(last));
    }
    // Its name does not resolve back.
    table
        .with_address("forged.test", at(99))
        .with_name(at(51), "forged.test")
        .with_failure("127.0.0.65", "timed out")
}

/// What differs from a plain server.
#[derive(Default)]
struct Site {
    access: AccessOptions,
    relay: RelayOptions,
    relay_domains: &'static str,
    greet_pause: Duration,
    has_broken_map: bool,
}

/// A server on threads of its own; ends with the test.
struct Running {
    address: SocketAddr,
    spool: Spool,
    folder: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

fn plain() -> Site {
    Site {
        access: AccessOptions {
            blocklist_recipients: true,
            ..AccessOptions::default()
        },
        ..Site::default()
    }
}

impl Running {
    fn start(site: Site) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(
            folder.path().join("passwd"),
            "alice:x:1000:1000::/home/alice:/bin/sh\nbob:x:1001:1001::/home/bob:/bin/sh\n\
             carol:x:1002:1002::/home/carol:/bin/sh\nfrozen:x:1003:1003::/h:/bin/sh\n",
        )
        .unwrap();
        fs::write(folder.path().join("relay-domains"), site.relay_domains).unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let spool_folder = folder.path().join("mqueue");
        fs::create_dir(&spool_folder).unwrap();
        let options = SpoolOptions {
            segment_bytes: 4 << 20,
            ..SpoolOptions::default()
        };
        let storage = OsStorage::open(&spool_folder).unwrap();
        let (spool, writer, _) =
            Spool::open(Arc::new(storage), Arc::clone(&clock), options).unwrap();
        let log = LogSettings {
            destination: Destination::File(folder.path().join("maillog")),
            tag: "sm-mta".to_owned(),
            host: "h".to_owned(),
            level: 9,
        };
        let ids = spool.clone();
        let new_id = Arc::new(move || ids.new_id());
        let mut settings = Settings::new("gold.example.test", clock.clone(), new_id);
        settings.timeouts.greet_pause = site.greet_pause;
        let access = if site.has_broken_map {
            Table::new("access", |_| Err("damaged map".to_owned()))
        } else {
            Table::fixed("access", ACCESS)
        };
        let resolver: Arc<dyn Resolver> = Arc::new(names());
        let router = Router::new(RouterParts {
            files: diligence_maps::FileAccess::default(),
            options: RouteOptions {
                // Temporary folders lie in a sticky one.
                dont_blame: DontBlame::default().with(Blameless::TrustStickyBit),
                local_host_names: folder.path().join("local-host-names"),
                relay_domains: folder.path().join("relay-domains"),
                access: site.access.clone(),
                relay: site.relay,
                max_alias_recursion: 10,
                ..RouteOptions::default()
            },
            host: HostName {
                full: "gold.example.test".to_owned(),
                aliases: vec!["gold.example.test".to_owned()],
            },
            addresses: Vec::new(),
            users: Arc::new(Users::new(
                Some(&folder.path().join("passwd")),
                Some(folder.path()),
            )),
            aliases: Vec::new(),
            access: Some(access),
            tables: diligence::route::Tables::default(),
            notice: Arc::new(|_: &str| {}),
        })
        .unwrap();
        let backend = Arc::new(Backend {
            settings: Arc::new(settings),
            spool: spool.clone(),
            router: Arc::new(router),
            maillog: Maillog::open(&log, Arc::clone(&clock)),
            watch: None,
            free_bytes: None,
            access: site.access,
            resolver: Some(Arc::clone(&resolver)),
        });
        let listen = Listen {
            name: "MTA".to_owned(),
            address: "127.0.0.1:0".parse().unwrap(),
            backlog: 0,
        };
        let server = Server::bind(&[listen]).unwrap();
        let address = server.local_addresses()[0];
        let (stop, stopped) = oneshot::channel::<()>();
        let names = Arc::new(ClientNames::new(Some(resolver), WAIT, clock));
        let threads = vec![
            std::thread::spawn(move || writer.run()),
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(2)
                    .enable_all()
                    .build()
                    .unwrap();
                let stop = async {
                    let _ = stopped.await;
                };
                let limits = ConnectionLimits::default();
                runtime
                    .block_on(server.serve(backend, names, limits, stop))
                    .unwrap();
            }),
        ];
        Self {
            address,
            spool,
            folder,
            stop: Some(stop),
            threads,
        }
    }

    /// A client of 127.0.0.LAST, or of the address in full; nothing read yet.
    fn connect(&self, from: &str) -> Client {
        let from: IpAddr = from.parse().unwrap();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
        socket.connect(&self.address.into()).unwrap();
        let stream: TcpStream = socket.into();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let lines = BufReader::new(stream.try_clone().unwrap());
        Client { stream, lines }
    }

    /// A client that has said EHLO.
    fn client(&self, from: &str) -> Client {
        let mut client = self.connect(from);
        assert!(client.reply().starts_with("220 gold.example.test ESMTP"));
        assert!(client.ask("EHLO c").starts_with("250"));
        client
    }

    fn sender(&self, address: &str) -> String {
        self.client("127.0.0.50")
            .ask(&format!("MAIL FROM:<{address}>"))
    }

    /// The answer to RCPT of a fresh client.
    fn recipient(&self, from: &str, sender: &str, address: &str) -> String {
        let mut client = self.client(from);
        let answer = client.ask(&format!("MAIL FROM:<{sender}>"));
        assert!(answer.starts_with("250 2.1.0"), "{answer}");
        client.ask(&format!("RCPT TO:<{address}>"))
    }

    /// Waits for a line of the log with this part.
    fn expect_log(&self, part: &str) {
        let begin = Instant::now();
        loop {
            let log = fs::read_to_string(self.folder.path().join("maillog")).unwrap_or_default();
            if log.contains(part) {
                return;
            }
            assert!(begin.elapsed() < DEADLINE, "no line with {part} in:\n{log}");
            std::thread::yield_now();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
        self.threads.pop().unwrap().join().unwrap();
        self.spool.close();
        self.threads.pop().unwrap().join().unwrap();
    }
}

struct Client {
    stream: TcpStream,
    lines: BufReader<TcpStream>,
}

impl Client {
    /// The last line of a reply; empty at the end of the connection.
    fn reply(&mut self) -> String {
        loop {
            let mut line = String::new();
            self.lines.read_line(&mut line).unwrap();
            if line.as_bytes().get(3) != Some(&b'-') {
                return line.trim_end().to_owned();
            }
        }
    }

    fn ask(&mut self, text: &str) -> String {
        self.stream.write_all(text.as_bytes()).unwrap();
        self.stream.write_all(b"\r\n").unwrap();
        self.reply()
    }

    fn deliver(&mut self, sender: &str, recipient: &str) -> String {
        self.ask(&format!("MAIL FROM:<{sender}>"));
        let answer = self.ask(&format!("RCPT TO:<{recipient}>"));
        assert!(answer.starts_with("250 2.1.5"), "{answer}");
        assert!(self.ask("DATA").starts_with("354"));
        self.ask(&format!("Subject: x {sender}\r\n\r\nx\r\n."))
    }
}

#[test]
fn senders_are_answered_as_by_sendmail() {
    let server = Running::start(plain());
    for (address, answer) in [
        (
            "bad@spammer.test",
            "550 5.7.1 <bad@spammer.test>... Access denied",
        ),
        (
            "rej@sender.test",
            "550 5.7.1 <rej@sender.test>... Access denied",
        ),
        (
            "err@sender.test",
            "550 5.7.1 <err@sender.test>... go away err",
        ),
        (
            "errq@sender.test",
            "550 5.0.0 <errq@sender.test>... quoted text",
        ),
        ("err4@sender.test", "451 4.7.1 try later err4"),
        (
            "errd@sender.test",
            "550 5.0.0 <errd@sender.test>... literal dsn",
        ),
        (
            "num@sender.test",
            "550 5.0.0 <num@sender.test>... plain number text",
        ),
        (
            "num5@sender.test",
            "550 5.7.9 <num5@sender.test>... text with dsn",
        ),
        (
            "num4@sender.test",
            "450 4.7.9 <num4@sender.test>... temp text",
        ),
        (
            "disc@sender.test",
            "250 2.1.0 <disc@sender.test>... Sender ok",
        ),
        (
            "quar@sender.test",
            "250 2.1.0 <quar@sender.test>... Sender ok",
        ),
        (
            "ok@nonexist.test",
            "250 2.1.0 <ok@nonexist.test>... Sender ok",
        ),
        (
            "relay@nonexist.test",
            "250 2.1.0 <relay@nonexist.test>... Sender ok",
        ),
        (
            "x@a.sub.reject.test",
            "550 5.7.1 <x@a.sub.reject.test>... Access denied",
        ),
        (
            "x@very.deep.test",
            "550 5.7.1 <x@very.deep.test>... no deep",
        ),
        (
            "user1@sender.test",
            "550 5.7.1 <user1@sender.test>... Access denied",
        ),
        (
            "user1+x@sender.test",
            "550 5.7.1 <user1+x@sender.test>... Access denied",
        ),
        (
            "postmaster@nonexist.test",
            "250 2.1.0 <postmaster@nonexist.test>... Sender ok",
        ),
        ("", "250 2.1.0 <>... Sender ok"),
        ("x@skip.test", "553 5.3.0 <x@skip.test>... SKIP"),
        (
            "junk@sender.test",
            "553 5.3.0 <junk@sender.test>... JUNKACTION",
        ),
        (
            "REJ@Sender.Test",
            "550 5.7.1 <REJ@Sender.Test>... Access denied",
        ),
        (
            "s@nonexist.test",
            "553 5.1.8 <s@nonexist.test>... Domain of sender address s@nonexist.test does not exist",
        ),
        (
            "s@tempfail.test",
            "451 4.1.8 Domain of sender address s@tempfail.test does not resolve",
        ),
        (
            "unqualified",
            "553 5.5.4 <unqualified>... Domain name required for sender address unqualified",
        ),
        (
            "s@localhost",
            "553 5.5.4 <s@localhost>... Real domain name required for sender address",
        ),
        ("s@loop.test", "250 2.1.0 <s@loop.test>... Sender ok"),
        (
            "s@gold.example.test",
            "250 2.1.0 <s@gold.example.test>... Sender ok",
        ),
    ] {
        assert_eq!(server.sender(address), answer);
    }
    server.expect_log(
        "ruleset=check_mail, arg1=<rej@sender.test>, relay=client50.test [127.0.0.50], \
         reject=550 5.7.1 <rej@sender.test>... Access denied",
    );
    server.expect_log(
        "ruleset=check_mail, arg1=<err4@sender.test>, relay=client50.test [127.0.0.50], \
         reject=451 4.7.1 try later err4",
    );
}

#[test]
fn recipients_are_answered_as_by_sendmail() {
    let server = Running::start(plain());
    let answer = |address| server.recipient("127.0.0.50", "s@sender.test", address);
    for (address, expected) in [
        (
            "frozen@gold.example.test",
            "550 5.2.1 <frozen@gold.example.test>... mailbox frozen",
        ),
        (
            "rejected@gold.example.test",
            "550 5.2.1 <rejected@gold.example.test>... Mailbox disabled for this recipient",
        ),
        (
            "bob@gold.example.test",
            "450 4.2.1 <bob@gold.example.test>... bob is busy",
        ),
        ("bob", "250 2.1.5 <bob>... Recipient ok"),
        ("alice", "250 2.1.5 <alice>... Recipient ok"),
        (
            "discto@gold.example.test",
            "250 2.1.5 <discto@gold.example.test>... Recipient ok",
        ),
        (
            "x@relayed.test",
            "250 2.1.5 <x@relayed.test>... Recipient ok",
        ),
        (
            "x@sub.relayed.test",
            "250 2.1.5 <x@sub.relayed.test>... Recipient ok",
        ),
        (
            "user@single.relay.test",
            "550 5.7.1 <user@single.relay.test>... Relaying denied",
        ),
        ("x@okto.test", "550 5.7.1 <x@okto.test>... Relaying denied"),
        (
            "x@blockdom.test",
            "550 5.2.1 <x@blockdom.test>... Mailbox disabled for this recipient",
        ),
        (
            "u%plain.test@gold.example.test",
            "550 5.7.1 <u%plain.test@gold.example.test>... Relaying denied",
        ),
        // Else a domain that is relayed to would lead anywhere.
        (
            "u%plain.test@relayed.test",
            "550 5.7.1 <u%plain.test@relayed.test>... Relaying denied",
        ),
    ] {
        assert_eq!(answer(address), expected);
    }
    // More layers than are taken off.
    let layers = format!("u%plain.test{}", "%relayed.test".repeat(11));
    assert!(answer(&format!("{layers}@relayed.test")).starts_with("550 5.7.1"));
    server.expect_log(
        "ruleset=check_rcpt, arg1=<bob@gold.example.test>, relay=client50.test [127.0.0.50], \
         reject=450 4.2.1 <bob@gold.example.test>... bob is busy",
    );
    let open = Running::start(Site::default());
    assert!(
        open.recipient("127.0.0.50", "s@sender.test", "frozen@gold.example.test")
            .starts_with("250"),
        "without blocklist_recipients nobody is refused by the map"
    );
}

#[test]
fn clients_are_answered_as_by_sendmail() {
    let server = Running::start(plain());
    for (from, vrfy, mail, local, remote) in [
        (
            "127.0.0.60",
            "550 5.7.1 Access denied",
            "550 5.7.1 Access denied",
            "550 5.7.1 Access denied",
            "550 5.7.1 Access denied",
        ),
        (
            "127.0.0.61",
            "250 2.1.5 <alice@gold.example.test>",
            "250 2.1.0 <s@sender.test>... Sender ok",
            "250 2.1.5 <alice>... Recipient ok",
            "250 2.1.5 <user@ok.test>... Recipient ok",
        ),
        (
            "127.0.0.62",
            "450 4.7.1 connect later",
            "450 4.7.1 connect later",
            "450 4.7.1 connect later",
            "450 4.7.1 connect later",
        ),
        (
            "127.0.0.63",
            "250 2.1.5 <alice@gold.example.test>",
            "250 2.1.0 <s@sender.test>... Sender ok",
            "250 2.1.5 <alice>... Recipient ok",
            "550 5.7.1 <user@ok.test>... Relaying denied. IP name lookup failed [127.0.0.63]",
        ),
        (
            "127.0.0.64",
            "250 2.1.5 <alice@gold.example.test>",
            "250 2.1.0 <s@sender.test>... Sender ok",
            "250 2.1.5 <alice>... Recipient ok",
            "550 5.7.1 <user@ok.test>... Relaying denied. IP name lookup failed [127.0.0.64]",
        ),
        (
            "127.0.1.5",
            "550 5.7.1 whole net rejected",
            "550 5.7.1 whole net rejected",
            "550 5.7.1 whole net rejected",
            "550 5.7.1 whole net rejected",
        ),
        (
            "127.0.0.51",
            "250 2.1.5 <alice@gold.example.test>",
            "250 2.1.0 <s@sender.test>... Sender ok",
            "250 2.1.5 <alice>... Recipient ok",
            "550 5.7.1 <user@ok.test>... Relaying denied. IP name possibly forged [127.0.0.51]",
        ),
        (
            "127.0.0.65",
            "250 2.1.5 <alice@gold.example.test>",
            "250 2.1.0 <s@sender.test>... Sender ok",
            "250 2.1.5 <alice>... Recipient ok",
            "450 4.4.0 <user@ok.test>... Relaying temporarily denied. Cannot resolve PTR record for 127.0.0.65",
        ),
    ] {
        let mut client = server.client(from);
        assert_eq!(client.ask("NOOP"), "250 2.0.0 OK");
        assert_eq!(client.ask("VRFY alice"), vrfy);
        assert_eq!(client.ask("MAIL FROM:<s@sender.test>"), mail);
        assert_eq!(client.ask("RCPT TO:<alice>"), local);
        assert_eq!(client.ask("RCPT TO:<user@ok.test>"), remote);
        assert!(client.ask("QUIT").starts_with("221 2.0.0"));
    }
    for line in [
        "ruleset=check_relay, arg1=spammer.test, arg2=127.0.0.60, relay=spammer.test [127.0.0.60], reject=550 5.7.1 Access denied",
        "ruleset=check_relay, arg1=[127.0.0.63], arg2=127.0.0.63, relay=[127.0.0.63], discard",
        "ruleset=check_relay, arg1=[127.0.1.5], arg2=127.0.1.5, relay=[127.0.1.5], reject=550 5.7.1 whole net rejected",
    ] {
        server.expect_log(line);
    }
}

#[test]
fn mail_is_dropped_or_held_without_a_word() {
    let server = Running::start(plain());
    let mut client = server.client("127.0.0.50");
    let id = |answer: String| {
        assert!(
            answer.ends_with(" Message accepted for delivery"),
            "{answer}"
        );
        MessageId::parse(answer.split(' ').nth(2).unwrap()).unwrap()
    };
    for (sender, recipient) in [
        ("disc@sender.test", "alice"),
        ("s@sender.test", "discto@gold.example.test"),
    ] {
        let id = id(client.deliver(sender, recipient));
        server.expect_log(&format!("{id}: discarded"));
        assert!(server.spool.message(id).is_err(), "nothing is left of it");
    }
    let held = id(client.deliver("quar@sender.test", "alice"));
    server.expect_log(&format!(
        "{held}: ruleset=check_mail, arg1=<quar@sender.test>, relay=client50.test [127.0.0.50], \
         quarantine=looks like spam"
    ));
    let message = server.spool.message(held).unwrap();
    assert!(message.is_held);
    assert_eq!(
        message.envelope.quarantine.as_deref(),
        Some("looks like spam")
    );
    let of_client = id(server
        .client("127.0.0.66")
        .deliver("s@sender.test", "alice"));
    let message = server.spool.message(of_client).unwrap();
    let reason = message.envelope.quarantine;
    assert_eq!(reason.as_deref(), Some("client held"));
    let dropped = id(server
        .client("127.0.0.63")
        .deliver("s@sender.test", "alice"));
    server.expect_log(&format!("{dropped}: discarded"));
}

#[test]
fn delayed_checks_come_with_the_recipient() {
    let site = |delay_checks| {
        let mut site = plain();
        site.access.delay_checks = delay_checks;
        Running::start(site)
    };
    let on = site(DelayChecks::On);
    assert_eq!(
        on.recipient("127.0.0.50", "s@nonexist.test", "alice"),
        "553 5.1.8 <alice>... Domain of sender address s@nonexist.test does not exist"
    );
    assert_eq!(
        on.recipient("127.0.0.60", "s@sender.test", "alice"),
        "550 5.7.1 <alice>... Access denied"
    );
    let friend = site(DelayChecks::Friend);
    let carol = "carol@gold.example.test";
    let denied = format!("550 5.7.1 <{carol}>... Access denied");
    for (from, sender) in [
        ("127.0.0.50", "rej@sender.test"),
        ("127.0.0.60", "s@sender.test"),
    ] {
        let mut client = friend.client(from);
        assert!(
            client
                .ask(&format!("MAIL FROM:<{sender}>"))
                .starts_with("250")
        );
        assert_eq!(client.ask(&format!("RCPT TO:<{carol}>")), denied);
        assert_eq!(
            client.ask("RCPT TO:<alice@gold.example.test>"),
            "250 2.1.5 <alice@gold.example.test>... Recipient ok"
        );
        assert_eq!(client.ask(&format!("RCPT TO:<{carol}>")), denied);
    }
    friend.expect_log(
        "ruleset=check_rcpt, arg1=<carol@gold.example.test>, relay=spammer.test [127.0.0.60], \
         reject=550 5.7.1 <carol@gold.example.test>... Access denied",
    );
    let mut hater = plain();
    hater.access.delay_checks = DelayChecks::Hater;
    hater.access.blocklist_recipients = false;
    let hater = Running::start(hater);
    let answer = |address| hater.recipient("127.0.0.60", "rej@sender.test", address);
    assert!(answer(carol).starts_with("250"));
    assert!(answer("bob@gold.example.test").starts_with("550 5.7.1"));
}

/// The dialogue that golden plays with each FEATURE; the answers in short.
fn relay_answers(site: Site) -> [String; 8] {
    let server = Running::start(site);
    let mut client = server.client("127.0.0.50");
    let mut ask = |text: &str| {
        let answer = client.ask(text);
        assert!(!answer.is_empty());
        answer.split(' ').take(2).collect::<Vec<_>>().join(" ")
    };
    ask("MAIL FROM:<s@sender.test>");
    let relayed = [
        ask("RCPT TO:<u@ok.test>"),
        ask("RCPT TO:<u@example.test>"),
        ask("RCPT TO:<u%plain.test@gold.example.test>"),
    ];
    ask("RSET");
    let unknown = ask("MAIL FROM:<s@nonexist.test>");
    ask("RSET");
    let bare = ask("MAIL FROM:<unqualified>");
    ask("RSET");
    let own = ask("MAIL FROM:<alice@gold.example.test>");
    let [a, b, c] = relayed;
    let plain = ask("RCPT TO:<u@plain.test>");
    let looped = ask("RCPT TO:<u@loop.test>");
    [a, b, c, unknown, bare, own, plain, looped]
}

#[test]
fn each_feature_relays_what_it_does_in_sendmail() {
    const OK: &str = "250 2.1.5";
    const NO: &str = "550 5.7.1";
    const MAIL: &str = "250 2.1.0";
    const GONE: &str = "553 5.1.8";
    const BARE: &str = "553 5.5.4";
    let relay = |relay| Site { relay, ..plain() };
    let with_class = |relay_domains| Site {
        relay_domains,
        ..plain()
    };
    let none = RelayOptions::default;
    let mut unresolvable = plain();
    unresolvable.access.accept_unresolvable_domains = true;
    let mut unqualified = plain();
    unqualified.access.accept_unqualified_senders = true;
    for (name, site, answers) in [
        ("none", plain(), [NO, NO, NO, GONE, BARE, MAIL, NO, NO]),
        (
            "relay-domains",
            with_class("ok.test\n127.0.0.50\n"),
            [OK, OK, OK, GONE, BARE, MAIL, OK, OK],
        ),
        (
            "relay-domains by name",
            with_class("client50.test\n"),
            [OK, OK, OK, GONE, BARE, MAIL, OK, OK],
        ),
        (
            "relay_entire_domain",
            relay(RelayOptions {
                entire_domain: true,
                ..none()
            }),
            [NO, OK, NO, GONE, BARE, MAIL, NO, NO],
        ),
        (
            "accept_unresolvable_domains",
            unresolvable,
            [NO, NO, NO, MAIL, BARE, MAIL, NO, NO],
        ),
        (
            "accept_unqualified_senders",
            unqualified,
            [NO, NO, NO, GONE, MAIL, MAIL, NO, NO],
        ),
        (
            "promiscuous_relay",
            relay(RelayOptions {
                promiscuous: true,
                ..none()
            }),
            [OK, OK, OK, GONE, BARE, MAIL, OK, OK],
        ),
        (
            "relay_mail_from domain",
            relay(RelayOptions {
                mail_from: RelayMailFrom::Domain,
                ..none()
            }),
            [OK, OK, OK, GONE, BARE, MAIL, NO, NO],
        ),
        (
            "relay_mail_from",
            relay(RelayOptions {
                mail_from: RelayMailFrom::Address,
                ..none()
            }),
            [NO, NO, NO, GONE, BARE, MAIL, NO, NO],
        ),
        (
            "relay_local_from",
            relay(RelayOptions {
                local_from: true,
                ..none()
            }),
            [NO, NO, NO, GONE, BARE, MAIL, OK, OK],
        ),
        (
            "relay_based_on_MX",
            relay(RelayOptions {
                based_on_mx: true,
                ..none()
            }),
            [NO, OK, NO, GONE, BARE, MAIL, NO, OK],
        ),
        (
            "loose_relay_check",
            relay(RelayOptions {
                loose_check: true,
                ..none()
            }),
            [NO, NO, NO, GONE, BARE, MAIL, NO, NO],
        ),
    ] {
        assert_eq!(relay_answers(site), answers, "{name}");
    }
}

#[test]
fn hosts_are_told_from_domains_and_whole_addresses() {
    let answers = |relay: RelayOptions, address: &str| {
        let server = Running::start(Site {
            relay,
            relay_domains: "class.test\n",
            ..plain()
        });
        server
            .recipient("127.0.0.50", "s@sender.test", address)
            .starts_with("250")
    };
    let hosts = || RelayOptions {
        hosts_only: true,
        ..RelayOptions::default()
    };
    for address in ["x@class.test", "x@relayed.test"] {
        assert!(answers(hosts(), address) && answers(RelayOptions::default(), address));
    }
    for address in ["x@a.class.test", "x@sub.relayed.test"] {
        assert!(!answers(hosts(), address) && answers(RelayOptions::default(), address));
    }
    let full = RelayOptions {
        to_full_address: true,
        ..RelayOptions::default()
    };
    assert!(answers(full.clone(), "user@single.relay.test"));
    assert!(!answers(full, "other@single.relay.test"));
    let loose = RelayOptions {
        loose_check: true,
        ..RelayOptions::default()
    };
    assert!(answers(loose, "u%plain.test@relayed.test"));
    let by_mx = RelayOptions {
        based_on_mx: true,
        ..RelayOptions::default()
    };
    assert!(!answers(by_mx.clone(), "u@mx.test"));
    let server = Running::start(Site {
        relay: by_mx,
        ..plain()
    });
    assert_eq!(
        server.recipient("127.0.0.50", "s@sender.test", "u@tempfail.test"),
        "450 4.4.0 <u@tempfail.test>... Can not check MX records for recipient host tempfail.test"
    );
}

#[test]
fn dots_stand_for_what_is_below_where_they_are_asked_for() {
    let mut site = plain();
    site.access.lookupdotdomain = true;
    for (server, below, itself) in [
        (Running::start(plain()), "250", "250"),
        (Running::start(site), "550", "250"),
    ] {
        assert!(server.sender("u@a.dotted.test").starts_with(below));
        assert!(server.sender("u@a.b.dotted.test").starts_with(below));
        assert!(server.sender("u@dotted.test").starts_with(itself));
        // However many names stand before it, none of which the name server knows.
        let deep = format!("u@{}reject.test", "a.".repeat(70));
        let answer = server.sender(&deep);
        assert!(answer.starts_with("550 5.7.1"), "{answer}");
        // A literal's networks are asked for in either case.
        assert!(server.sender("u@[10.1.2.3]").starts_with("550 5.7.1"));
        assert!(server.sender("u@[10.2.2.3]").starts_with("250"));
    }
}

#[test]
fn lists_in_dns_refuse_who_is_listed() {
    let site = |dnsbl: &[&str], enhdnsbl: &[&str]| {
        let read = |texts: &[&str], has_patterns| {
            let lists = texts.iter().map(|text| DnsList::parse(text, has_patterns));
            lists.collect::<Result<Vec<_>, _>>().unwrap()
        };
        let mut site = plain();
        site.access.dnsbl = read(dnsbl, false);
        site.access.enhdnsbl = read(enhdnsbl, true);
        Running::start(site)
    };
    let mail = |server: &Running, from: &str| server.client(from).ask("MAIL FROM:<s@sender.test>");
    let server = site(&["bl.test"], &[]);
    let rejected = "550 5.7.1 Rejected: 127.0.0.72 listed at bl.test";
    assert_eq!(mail(&server, "127.0.0.72"), rejected);
    server.expect_log(&format!(
        "arg2=127.0.0.72, relay=[127.0.0.72], reject={rejected}"
    ));
    assert!(mail(&server, "127.0.0.50").starts_with("250"), "not listed");
    assert!(mail(&server, "127.0.0.71").starts_with("250"), "no answer");
    let server = site(&["bl.test; \"550 listed \" $&{client_addr}; t"], &[]);
    assert_eq!(
        mail(&server, "127.0.0.71"),
        "451 4.4.3 Temporary lookup failure of 127.0.0.71 at bl.test"
    );
    let server = site(&[], &["bl.test; ; ; 127.0.0.2"]);
    assert_eq!(mail(&server, "127.0.0.72"), rejected);
    assert!(mail(&server, "127.0.0.73").starts_with("250"), "no match");
}

#[test]
fn clients_over_their_limits_are_told_so() {
    let mut site = plain();
    site.access.ratecontrol = Control::Terminate;
    site.access.conncontrol = Control::Terminate;
    let server = Running::start(site);
    for _ in 0..2 {
        server.client("127.0.0.67");
    }
    let mut third = server.connect("127.0.0.67");
    assert_eq!(third.reply(), "421 4.3.2 Connection rate limit exceeded.");
    assert_eq!(third.reply(), "", "closed");
    let first = server.client("127.0.0.68");
    let mut second = server.connect("127.0.0.68");
    assert_eq!(second.reply(), "421 4.3.2 Too many open connections.");
    drop(first);
    server.expect_log("reject=421 4.3.2 Connection rate limit exceeded.");
    server.client("127.0.0.50");

    let mut site = plain();
    site.access.conncontrol = Control::On;
    let server = Running::start(site);
    let _first = server.client("127.0.0.68");
    let mut second = server.client("127.0.0.68");
    assert_eq!(
        second.ask("MAIL FROM:<s@sender.test>"),
        "452 4.3.2 Too many open connections."
    );
}

#[test]
fn the_greeting_waits_as_long_as_the_map_says() {
    let server = Running::start(Site {
        greet_pause: DEADLINE,
        ..plain()
    });
    let begin = Instant::now();
    server.client("127.0.0.50");
    assert!(begin.elapsed() < DEADLINE, "GreetPause: 0");
    let begin = Instant::now();
    server.client("127.0.0.52");
    assert!(begin.elapsed() >= Duration::from_millis(300));
    let mut early = server.connect("127.0.0.52");
    early.stream.write_all(b"EHLO early\r\n").unwrap();
    assert_eq!(
        early.reply(),
        "554 gold.example.test ESMTP not accepting messages"
    );
    server.expect_log(
        "rejecting commands from client52.test [127.0.0.52] due to pre-greeting traffic after 0 seconds",
    );
}

#[test]
fn what_tls_would_prove_is_not_proven() {
    let server = Running::start(plain());
    let mail = |from: &str| server.client(from).ask("MAIL FROM:<s@sender.test>");
    assert_eq!(mail("127.0.0.69"), "454 4.7.0 authentication required");
    assert_eq!(
        mail("127.0.0.70"),
        "503 5.7.0 encryption too weak 0 less than 112"
    );
    assert_eq!(mail("127.0.0.74"), "403 4.7.0 authentication required");
    assert_eq!(mail("127.0.0.75"), "250 2.1.0 <s@sender.test>... Sender ok");
}

#[test]
fn a_map_that_does_not_answer_defers() {
    let server = Running::start(Site {
        has_broken_map: true,
        ..plain()
    });
    let answer = "451 4.3.0 Temporary system failure. Please try again later.";
    let mut client = server.client("127.0.0.50");
    assert_eq!(client.ask("MAIL FROM:<s@sender.test>"), answer);
    assert_eq!(client.ask("RCPT TO:<alice>"), answer);
    let mut site = Site {
        has_broken_map: true,
        ..plain()
    };
    site.access.delay_checks = DelayChecks::Friend;
    let server = Running::start(site);
    assert_eq!(
        server.recipient("127.0.0.50", "s@sender.test", "alice"),
        answer
    );
}
