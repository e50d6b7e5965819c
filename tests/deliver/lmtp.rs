//! LMTP: a reply for each recipient, connections used again, servers that misbehave, programs as servers.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use diligence::config::mailer::MailerDefinition;
use diligence::deliver::{Attempt, Destination, Mailers};
use diligence::envelope::{Delivery, Outcome};

use crate::server::{Action, Event, Server};
use crate::setup::{Lines, attempt, mailers, options};

const CONTENT: &[u8] = b"Subject: hi\r\n\r\nbody\r\n.dot\r\nFrom x\r\n";

/// A server that takes everything; `answers` are what it says to a message.
fn taking(answers: &'static str) -> impl Fn(Event<'_>) -> Action + Send + Sync + 'static {
    move |event| {
        Action::Say(
            match event {
                Event::Connect => "220 gold LMTP ready",
                Event::Line(line) => match line.split([' ', ':']).next().unwrap_or_default() {
                    "LHLO" => "250-gold\n250-8BITMIME\n250-ENHANCEDSTATUSCODES\n250 PIPELINING",
                    "MAIL" => "250 2.5.0 Ok",
                    "RCPT" if line.contains("nosuch") => "550 5.1.1 User unknown",
                    "RCPT" if line.contains("full") => "452 4.2.2 Over quota",
                    "RCPT" => "250 2.1.5 Ok",
                    "DATA" => "354 Go ahead",
                    "QUIT" => "221 2.0.0 Bye",
                    _ => "500 5.5.2 Syntax error",
                },
                Event::Message => answers,
            }
            .to_owned(),
        )
    }
}

/// Mailers whose local mailer is that of `definition`.
fn defined(folder: &Path, definition: &str) -> Mailers {
    let mut options = options(folder);
    let definition = format!("own, F=lsDFMA5:/|@qPXmnz9, {definition}");
    options
        .named
        .mailers
        .push(MailerDefinition::parse(&definition).unwrap());
    options.named.local = Some("own".to_owned());
    mailers(options)
}

fn to_server(folder: &Path, server: &Server, more: &str) -> Mailers {
    let port = server.address.port();
    defined(folder, &format!("P=[IPC], {more}A=TCP 127.0.0.1 {port}"))
}

async fn deliver(mailers: &Mailers, attempt: Attempt) -> Vec<Outcome> {
    let count = attempt.recipients.len();
    let all = mailers.attempt(&Destination::Mailbox, attempt).await;
    assert_eq!(all.len(), count);
    all.into_iter().map(|(_, outcome)| outcome).collect()
}

#[tokio::test]
async fn each_recipient_gets_its_own_answer() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(taking(
        "250 2.1.5 carol Ok\n451 4.2.0 bob busy\n552 5.2.2 dave full",
    ))
    .await;
    let mailers = to_server(folder.path(), &server, "");
    let lines = Lines::default();
    let mut attempt = attempt(&["carol", "nosuch", "bob", "full", "dave"], CONTENT);
    attempt.verbose = Some(lines.sink());
    let outcomes = deliver(&mailers, attempt).await;
    let seen: Vec<_> = outcomes
        .iter()
        .map(|o| (o.result, o.status.to_string(), o.text.as_str()))
        .collect();
    use Delivery::{Deferred, Delivered, Failed};
    assert_eq!(
        seen,
        [
            (Delivered, "2.1.5".to_owned(), "Sent"),
            (Failed, "5.1.1".to_owned(), "User unknown"),
            (Deferred, "4.2.0".to_owned(), "Deferred: 451 4.2.0 bob busy"),
            (
                Deferred,
                "4.2.2".to_owned(),
                "Deferred: 452 4.2.2 Over quota"
            ),
            (Failed, "5.2.2".to_owned(), "Service unavailable"),
        ]
    );
    assert_eq!(outcomes[1].reply.as_deref(), Some("550 5.1.1 User unknown"));
    assert!(outcomes.iter().all(|o| o.mailer == "local"));
    assert!(outcomes.iter().all(|o| o.relay == "127.0.0.1 [127.0.0.1]"));
    let heard = server.heard();
    assert_eq!(
        heard.messages,
        [b"Subject: hi\r\n\r\nbody\r\n..dot\r\nFrom x\r\n.\r\n".to_vec()]
    );
    assert_eq!(
        lines.said(),
        [
            "<carol>,<nosuch>,<bob>,<full>,<dave>... Connecting to local...",
            "220 gold LMTP ready",
            ">>> LHLO gold.example.test",
            "250-gold",
            "250-8BITMIME",
            "250-ENHANCEDSTATUSCODES",
            "250 PIPELINING",
            ">>> MAIL From:<alice@gold.example.test>",
            "250 2.5.0 Ok",
            ">>> RCPT To:<carol>",
            ">>> RCPT To:<nosuch>",
            ">>> RCPT To:<bob>",
            ">>> RCPT To:<full>",
            ">>> RCPT To:<dave>",
            ">>> DATA",
            "250 2.1.5 Ok",
            "550 5.1.1 User unknown",
            "250 2.1.5 Ok",
            "452 4.2.2 Over quota",
            "250 2.1.5 Ok",
            "354 Go ahead",
            ">>> .",
            "250 2.1.5 carol Ok",
            "451 4.2.0 bob busy",
            "552 5.2.2 dave full",
            "<carol>... Sent",
            "<bob>... Deferred: 451 4.2.0 bob busy",
            "<full>... Deferred: 452 4.2.2 Over quota",
        ]
    );
}

#[tokio::test]
async fn a_unix_socket_is_a_server_too_and_its_connection_is_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(taking("250 2.0.0 <bob> Saved")).await;
    let socket = folder.path().join("lmtp");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let behind = server.address;
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut server = tokio::net::TcpStream::connect(behind).await.unwrap();
                tokio::io::copy_bidirectional(&mut stream, &mut server).await
            });
        }
    });
    let mailers = defined(
        folder.path(),
        &format!("P=[IPC], A=FILE {}", socket.display()),
    );
    for _ in 0..3 {
        let outcomes = deliver(&mailers, attempt(&["bob"], CONTENT)).await;
        assert_eq!(outcomes[0].text, "Sent");
        assert_eq!(outcomes[0].relay, "localhost");
    }
    let heard = server.heard();
    assert_eq!((heard.connections, heard.messages.len()), (1, 3));
}

/// A server that closed the idle connection, or says goodbye to the next message, has not taken anything.
#[tokio::test]
async fn a_kept_connection_that_is_dead_is_replaced_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let messages = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&messages);
    let taking = taking("250 2.1.5 Ok");
    let server = Server::start(move |event| match event {
        Event::Message => {
            count.fetch_add(1, Ordering::Relaxed);
            Action::SayAndClose("250 2.1.5 Ok".to_owned())
        }
        event => taking(event),
    })
    .await;
    let mailers = to_server(folder.path(), &server, "");
    for number in 1..=3 {
        let outcomes = deliver(&mailers, attempt(&["bob"], CONTENT)).await;
        assert_eq!(outcomes[0].text, "Sent");
        server.wait_for(|heard| heard.closed == number).await;
    }
    assert_eq!(messages.load(Ordering::Relaxed), 3);
    let server = Server::start({
        let begun = AtomicUsize::new(0);
        let taking = self::taking("250 2.1.5 Ok");
        move |event| match event {
            Event::Line(line)
                if line.starts_with("MAIL") && begun.fetch_add(1, Ordering::Relaxed) == 1 =>
            {
                Action::SayAndClose("421 4.3.2 closing".to_owned())
            }
            event => taking(event),
        }
    })
    .await;
    let mailers = to_server(folder.path(), &server, "");
    for _ in 0..2 {
        let outcomes = deliver(&mailers, attempt(&["bob"], CONTENT)).await;
        assert_eq!(outcomes[0].text, "Sent");
    }
    assert_eq!(server.heard().connections, 2);
}

#[tokio::test]
async fn who_got_no_answer_waits_and_who_got_one_keeps_it() {
    let folder = tempfile::tempdir().unwrap();
    let taking = taking("");
    let server = Server::start(move |event| match event {
        Event::Message => Action::SayAndClose("250 2.1.5 carol Ok".to_owned()),
        event => taking(event),
    })
    .await;
    let mailers = to_server(folder.path(), &server, "");
    let outcomes = deliver(&mailers, attempt(&["carol", "bob"], CONTENT)).await;
    assert_eq!(outcomes[0].result, Delivery::Delivered);
    assert_eq!(outcomes[1].result, Delivery::Deferred);
    assert_eq!(outcomes[1].status.to_string(), "4.4.2");
    // It may have been taken: not tried again at once.
    assert_eq!(server.heard().connections, 1);
}

#[tokio::test]
async fn refusals_of_the_server_itself_defer() {
    let folder = tempfile::tempdir().unwrap();
    for at in ["connect", "LHLO", "silence", "rubbish"] {
        let taking = taking("");
        let server = Server::start(move |event| match (at, event) {
            ("connect", Event::Connect) => Action::SayAndClose("554 5.7.1 go away".to_owned()),
            ("silence", Event::Connect) => Action::Silence,
            ("rubbish", Event::Connect) => Action::Say("HTTP/1.1 400 no".to_owned()),
            ("LHLO", Event::Line(line)) if line.starts_with("LHLO") => {
                Action::Say("502 5.5.1 what".to_owned())
            }
            (_, event) => taking(event),
        })
        .await;
        let mailers = to_server(folder.path(), &server, "W=1s, ");
        let outcomes = deliver(&mailers, attempt(&["bob"], CONTENT)).await;
        assert_eq!(outcomes[0].result, Delivery::Deferred, "{at}");
        assert!(outcomes[0].text.starts_with("Deferred: "), "{at}");
    }
    // Nobody listens.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let mailers = defined(folder.path(), &format!("P=[IPC], A=TCP 127.0.0.1 {port}"));
    let outcomes = deliver(&mailers, attempt(&["bob"], CONTENT)).await;
    assert!(
        outcomes[0].text.contains("Connection refused"),
        "{}",
        outcomes[0].text
    );
    assert_eq!(outcomes[0].status.to_string(), "4.4.1");
}

#[tokio::test]
async fn a_server_without_pipelining_is_asked_step_by_step() {
    let folder = tempfile::tempdir().unwrap();
    let taking = taking("250 2.1.5 Ok");
    let server = Server::start(move |event| match event {
        Event::Line(line) if line.starts_with("LHLO") => Action::Say("250 gold".to_owned()),
        event => taking(event),
    })
    .await;
    let mailers = to_server(folder.path(), &server, "");
    let outcomes = deliver(&mailers, attempt(&["nosuch", "bob"], CONTENT)).await;
    assert_eq!(outcomes[0].text, "User unknown");
    assert_eq!(outcomes[1].text, "Sent");
    let outcomes = deliver(&mailers, attempt(&["nosuch"], CONTENT)).await;
    assert_eq!(outcomes[0].text, "User unknown");
    assert_eq!(server.heard().messages.len(), 1);
}

#[tokio::test]
async fn content_that_cannot_be_read_is_never_ended_with_a_dot() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(taking("250 2.1.5 Ok")).await;
    let mailers = to_server(folder.path(), &server, "");
    let mut attempt = attempt(&["bob"], CONTENT);
    attempt.content = Arc::new(|| {
        Ok(Box::new(io::Read::chain(
            io::Cursor::new(b"Subject: s\r\n\r\n".repeat(20_000)),
            Failing,
        )))
    });
    let outcomes = deliver(&mailers, attempt).await;
    assert_eq!(outcomes[0].result, Delivery::Deferred);
    server.wait_for(|heard| heard.closed == 1).await;
    assert!(server.heard().messages.is_empty());
}

/// A reader that fails.
struct Failing;

impl io::Read for Failing {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("the disk is gone"))
    }
}

#[tokio::test]
async fn a_program_may_be_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let script = folder.path().join("server");
    fs::write(
        &script,
        format!(
            "#!/bin/sh\necho complaint >&2\nprintf '220 x LMTP\\r\\n'\nwhile read -r verb rest; do case $verb in\n\
             LHLO) printf '250 x\\r\\n';; MAIL*|RCPT*) printf '250 2.1.0 Ok\\r\\n';;\n\
             DATA*) printf '354 go\\r\\n'; while read -r line; do case $line in .?) break;; esac; echo \"$line\" >> {0}; done; printf '250 2.1.5 Ok\\r\\n';;\n\
             QUIT*) printf '221 bye\\r\\n'; echo quit >> {0}; exit 0;; esac; done\n",
            out.display()
        ),
    )
    .unwrap();
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let mailers = defined(
        folder.path(),
        &format!("P={}, A=mail.local -l", script.display()),
    );
    let outcomes = deliver(&mailers, attempt(&["root"], b"A: b\r\n\r\nx\r\n")).await;
    assert_eq!(
        (outcomes[0].text.as_str(), outcomes[0].relay.as_str()),
        ("Sent", "local")
    );
    let text = fs::read_to_string(&out).unwrap().replace('\r', "");
    assert_eq!(text, "A: b\n\nx\nquit\n");
    // One that says nothing is killed at its time.
    fs::write(&script, "#!/bin/sh\nwhile :; do sleep 1000; done\n").unwrap();
    let mailers = defined(
        folder.path(),
        &format!("P={}, W=1s, A=mail.local -l", script.display()),
    );
    let outcomes = deliver(&mailers, attempt(&["root"], b"A: b\r\n\r\nx\r\n")).await;
    assert_eq!(
        outcomes[0].text,
        "Deferred: the mailer took longer than 1 s"
    );
}
