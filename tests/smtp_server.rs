//! The SMTP server over real sockets on loopback, with a real spool on disk and a router.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use diligence::clock::{Clock, SystemClock};
use diligence::config::access::AccessOptions;
use diligence::config::host::HostName;
use diligence::config::{Blameless, DontBlame, RouteOptions};
use diligence::envelope::MessageId;
use diligence::maillog::{Destination, LogSettings, Maillog};
use diligence::route::{Router, RouterParts};
use diligence::smtpd::names::{ClientNames, WAIT};
use diligence::smtpd::{Backend, ConnectionLimits, Listen, Server, Settings, Watch};
use diligence::spool::storage::OsStorage;
use diligence::spool::{Spool, SpoolOptions};
use diligence::users::Users;
use tokio::sync::{mpsc, oneshot};

/// How long a client waits for anything.
const DEADLINE: Duration = Duration::from_secs(20);

/// A server on a thread of its own; ends with the test.
struct Running {
    address: SocketAddr,
    spool: Spool,
    folder: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

#[derive(Default)]
struct Setup {
    limits: ConnectionLimits,
    message_bytes_max: u64,
    free_bytes: Option<u64>,
    watch: Option<Watch>,
    command_timeout: Option<Duration>,
}

impl Running {
    fn start(setup: Setup) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(
            folder.path().join("passwd"),
            "alice:x:1000:1000::/home/alice:/bin/sh\nbob:x:1001:1001::/home/bob:/bin/sh\n",
        )
        .unwrap();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let spool_folder = folder.path().join("mqueue");
        std::fs::create_dir(&spool_folder).unwrap();
        let options = SpoolOptions {
            segment_bytes: 4 << 20,
            ..SpoolOptions::default()
        };
        let storage = OsStorage::open(&spool_folder).unwrap();
        let (spool, writer, _) =
            Spool::open(Arc::new(storage), Arc::clone(&clock), options).unwrap();
        let maillog = Maillog::open(
            &LogSettings {
                destination: Destination::File(folder.path().join("maillog")),
                tag: "sm-mta".to_owned(),
                host: "h".to_owned(),
                level: 9,
            },
            Arc::clone(&clock),
        );
        let ids = spool.clone();
        let mut settings = Settings::new("h.test", clock.clone(), Arc::new(move || ids.new_id()));
        settings.limits.message_bytes_max = setup.message_bytes_max;
        if let Some(time) = setup.command_timeout {
            settings.timeouts.command = time;
        }
        let free = setup.free_bytes;
        let backend = Arc::new(Backend {
            settings: Arc::new(settings),
            spool: spool.clone(),
            router: Arc::new(router(folder.path())),
            maillog,
            watch: setup.watch,
            free_bytes: free
                .map(|free| -> diligence::smtpd::FreeBytes { Arc::new(move || Ok(free)) }),
            access: AccessOptions::default(),
            resolver: None,
        });
        let listen = Listen {
            name: "MTA".to_owned(),
            address: "127.0.0.1:0".parse().unwrap(),
            backlog: 0,
        };
        let server = Server::bind(&[listen]).unwrap();
        let address = server.local_addresses()[0];
        let (stop, stopped) = oneshot::channel::<()>();
        let names = Arc::new(ClientNames::new(None, WAIT, clock));
        let limits = setup.limits;
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

    fn connect(&self) -> Client {
        Client::new(TcpStream::connect(self.address).unwrap())
    }

    fn content(&self, id: MessageId) -> String {
        let mut text = String::new();
        self.spool
            .content(id)
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        text
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("maillog")).unwrap_or_default()
    }

    fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
        self.threads.pop().unwrap().join().unwrap();
        self.spool.close();
        self.threads.pop().unwrap().join().unwrap();
    }
}

fn router(folder: &Path) -> Router {
    let parts = RouterParts {
        files: diligence_maps::FileAccess::default(),
        options: RouteOptions {
            // Temporary folders lie in a sticky one.
            dont_blame: DontBlame::default().with(Blameless::TrustStickyBit),
            local_host_names: folder.join("local-host-names"),
            relay_domains: folder.join("relay-domains"),
            max_alias_recursion: 10,
            ..RouteOptions::default()
        },
        host: HostName {
            full: "h.test".to_owned(),
            aliases: vec!["h.test".to_owned()],
        },
        addresses: Vec::new(),
        users: Arc::new(Users::new(Some(&folder.join("passwd")), Some(folder))),
        aliases: Vec::new(),
        access: None,
        tables: diligence::route::Tables::default(),
        notice: Arc::new(|_: &str| {}),
    };
    Router::new(parts).unwrap()
}

/// A client that waits for replies.
struct Client {
    stream: TcpStream,
    lines: BufReader<TcpStream>,
}

impl Client {
    fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let lines = BufReader::new(stream.try_clone().unwrap());
        Self { stream, lines }
    }

    /// One line, without its end; empty at the end of the connection.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// The last line of a reply.
    fn reply(&mut self) -> String {
        loop {
            let line = self.line();
            if line.as_bytes().get(3) != Some(&b'-') {
                return line;
            }
        }
    }

    fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    fn ask(&mut self, text: &str) -> String {
        self.send(text);
        self.send("\r\n");
        self.reply()
    }

    #[track_caller]
    fn expect(&mut self, text: &str, reply: &str) {
        let got = self.ask(text);
        assert!(got.starts_with(reply), "{text}: {got}");
    }

    fn greeted(mut self) -> Self {
        assert!(self.reply().starts_with("220 h.test ESMTP Diligence"));
        self.expect("EHLO c.test", "250 HELP");
        self
    }

    /// Sends a message in three round trips; the id it was accepted with.
    fn deliver(&mut self, recipient: &str, content: &str) -> MessageId {
        self.send(&format!(
            "MAIL FROM:<s@sender.test>\r\nRCPT TO:<{recipient}>\r\nDATA\r\n"
        ));
        assert_eq!(self.reply(), "250 2.1.0 <s@sender.test>... Sender ok");
        assert!(self.reply().starts_with("250 2.1.5"));
        assert!(self.reply().starts_with("354 "));
        self.send(content);
        accepted(&self.ask("."))
    }
}

fn accepted(reply: &str) -> MessageId {
    let id = reply
        .strip_prefix("250 2.0.0 ")
        .and_then(|rest| rest.strip_suffix(" Message accepted for delivery"))
        .unwrap_or_else(|| panic!("{reply}"));
    MessageId::parse(id).unwrap()
}

#[test]
fn fifty_clients_at_once_are_all_served_and_every_message_is_in_the_spool() {
    const CLIENTS: usize = 50;
    const MESSAGES: usize = 10;
    let running = Running::start(Setup::default());
    let address = running.address;
    let threads: Vec<_> = (0..CLIENTS)
        .map(|client| {
            std::thread::spawn(move || {
                let mut accepted = Vec::new();
                for message in 0..MESSAGES {
                    let stream = TcpStream::connect(address).unwrap();
                    let mut connection = Client::new(stream).greeted();
                    let text = format!(
                        "Subject: {client}-{message}\r\n\r\n..dot\r\n{}\r\n",
                        "x".repeat(3000)
                    );
                    accepted.push((
                        connection.deliver("alice", &text),
                        format!("{client}-{message}"),
                    ));
                    connection.expect("QUIT", "221 2.0.0");
                    assert_eq!(connection.line(), "");
                }
                accepted
            })
        })
        .collect();
    let accepted: Vec<_> = threads
        .into_iter()
        .flat_map(|t| t.join().unwrap())
        .collect();
    let mut ids = running.spool.ids();
    ids.sort_unstable();
    let mut expected: Vec<_> = accepted.iter().map(|(id, _)| *id).collect();
    expected.sort_unstable();
    assert_eq!(ids, expected);
    for (id, subject) in &accepted {
        let content = running.content(*id);
        assert!(
            content.contains(&format!("\r\nSubject: {subject}\r\n\r\n.dot\r\nxxx")),
            "{content}"
        );
        assert!(
            content.contains(&format!("with ESMTP id {id}\r\n\tfor <alice>; ")),
            "{content}"
        );
    }
    let log = running.log();
    assert_eq!(
        log.matches(": from=<s@sender.test>, size=").count(),
        CLIENTS * MESSAGES
    );
}

#[test]
fn a_large_message_arrives_byte_for_byte() {
    let running = Running::start(Setup::default());
    let mut client = running.connect().greeted();
    let body: String = (0..40_000)
        .map(|n| format!("line {n} {}\r\n", "y".repeat(n % 90)))
        .collect();
    let id = client.deliver("bob@h.test", &format!("From: a@b\r\n\r\n{body}"));
    let content = running.content(id);
    let (_, stored) = content.split_once("\r\n\r\n").unwrap();
    assert!(stored == body, "body differs");
    assert_eq!(
        running.spool.message(id).unwrap().envelope.recipients[0].target,
        "bob@h.test"
    );
}

#[test]
fn refusals_of_policy_reach_the_client() {
    let running = Running::start(Setup {
        message_bytes_max: 5000,
        free_bytes: Some(4000),
        ..Setup::default()
    });
    let mut client = running.connect().greeted();
    client.expect("MAIL FROM:<s@sender.test> SIZE=5001", "552 5.2.3 ");
    client.expect(
        "MAIL FROM:<s@sender.test> SIZE=4500",
        "452 4.4.5 Insufficient disk space; try again later",
    );
    client.expect("MAIL FROM:<s@sender.test> SIZE=100", "250 2.1.0");
    client.expect("RCPT TO:<nosuch>", "550 5.1.1 <nosuch>... User unknown");
    client.expect("RCPT TO:<alice@h.test>", "250 2.1.5");
    client.expect("VRFY alice", "250 2.1.5 <alice@h.test>");
    client.expect("EXPN nosuch", "550 5.1.1");
    let log = running.log();
    assert!(log.contains("<nosuch>... User unknown"), "{log}");
    assert!(log.contains("localhost [127.0.0.1]: VRFY alice"), "{log}");
}

#[test]
fn what_was_not_answered_250_leaves_nothing() {
    let running = Running::start(Setup::default());
    for end in [
        "RSET\r\nQUIT\r\n",
        "DATA\r\nSubject: x\r\n\r\nhalf",
        "DATA\r\na\nb\r\n.\r\n",
    ] {
        let mut client = running.connect().greeted();
        client.expect("MAIL FROM:<s@sender.test>", "250");
        client.expect("RCPT TO:<alice>", "250");
        client.send(end);
        client.stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = String::new();
        client.lines.read_to_string(&mut rest).unwrap();
        assert!(!rest.contains("accepted"), "{rest}");
    }
    let id = running.connect().greeted().deliver("alice", "x\r\n");
    assert_eq!(running.spool.ids(), [id]);
}

#[test]
fn a_client_that_breaks_the_line_rule_gets_to_read_why() {
    let running = Running::start(Setup::default());
    let mut client = running.connect().greeted();
    client.expect("MAIL FROM:<s@sender.test>", "250");
    client.expect("RCPT TO:<alice>", "250");
    client.expect("DATA", "354");
    client.send("body\n.\nMAIL FROM:<evil@sender.test>\r\n");
    client.send(&"more that nobody wants\r\n".repeat(5000));
    assert_eq!(client.line(), "421 4.5.0 Bare linefeed (LF) not allowed");
    assert_eq!(client.line(), "");
    assert!(running.spool.ids().is_empty());
}

#[test]
fn connections_over_the_limits_are_told_to_come_back() {
    let running = Running::start(Setup {
        limits: ConnectionLimits {
            total: 3,
            per_client: 2,
            per_second: 0,
        },
        ..Setup::default()
    });
    let first = running.connect().greeted();
    let second = running.connect().greeted();
    let mut third = running.connect();
    assert_eq!(third.line(), "421 4.3.2 Too many open connections.");
    assert_eq!(third.line(), "");
    drop(first);
    // The place is free once the server has seen the close.
    let deadline = DEADLINE.as_millis() / 10;
    let is_served = (0..deadline).any(|_| {
        let mut client = running.connect();
        let line = client.reply();
        if line.starts_with("421") {
            std::thread::yield_now();
        }
        line.starts_with("220")
    });
    assert!(is_served);
    drop(second);
    let log = running.log();
    assert!(
        log.contains("ruleset=check_relay, arg1=[127.0.0.1], arg2=127.0.0.1, relay=[127.0.0.1], reject=421 4.3.2 Too many"),
        "{log}"
    );
}

#[test]
fn silent_clients_are_closed() {
    let running = Running::start(Setup {
        command_timeout: Some(Duration::from_millis(100)),
        ..Setup::default()
    });
    let mut client = running.connect();
    assert!(client.reply().starts_with("220"));
    assert_eq!(client.line(), "421 4.4.2 h.test Timeout waiting for input");
    assert_eq!(client.line(), "");
}

#[test]
fn verb_shows_the_run_before_the_250() {
    let watched: Watch = Arc::new(|id| {
        let (tell, lines) = mpsc::channel(4);
        tell.try_send(format!("{id}... Connecting to local..."))
            .unwrap();
        tell.try_send("<alice>... Sent".to_owned()).unwrap();
        lines
    });
    let running = Running::start(Setup {
        watch: Some(watched),
        ..Setup::default()
    });
    let mut client = running.connect().greeted();
    client.expect("VERB", "250 2.0.0 Verbose mode");
    client.expect("MAIL FROM:<s@sender.test>", "250");
    client.expect("RCPT TO:<alice>", "250");
    client.expect("DATA", "354");
    client.send("x\r\n.\r\n");
    let lines: Vec<_> = (0..3).map(|_| client.line()).collect();
    let id = accepted(&lines[2]);
    assert_eq!(lines[0], format!("050 {id}... Connecting to local..."));
    assert_eq!(lines[1], "050 <alice>... Sent");
}

#[test]
fn stopping_sends_idle_clients_away_and_lets_a_message_arrive() {
    let mut running = Running::start(Setup::default());
    let mut idle = running.connect().greeted();
    let mut busy = running.connect().greeted();
    busy.expect("MAIL FROM:<s@sender.test>", "250");
    busy.expect("RCPT TO:<alice>", "250");
    busy.expect("DATA", "354");
    busy.send("Subject: x\r\n");
    running.stop();
    assert!(idle.line().starts_with("421 4.3.2 h.test"));
    assert_eq!(idle.line(), "");
    let id = accepted(&busy.ask("\r\nbody\r\n."));
    assert!(busy.line().starts_with("421 4.3.2"));
    assert_eq!(running.spool.ids(), [id]);
    assert!(
        TcpStream::connect(running.address).is_err(),
        "still listening"
    );
}
