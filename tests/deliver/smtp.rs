//! The SMTP client against servers of every kind: what it says, what it makes of the answers, where it goes next.

use std::io::{self, Cursor, Read};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use diligence::address::Domain;
use diligence::deliver::{Attempt, DeliverOptions, Destination, Mailers, NextHop};
use diligence::dns::TableResolver;
use diligence::envelope::{BodyType, Delivery, DsnReturn, Envelope, Notify, Outcome};
use diligence::status::Status;

use crate::server::{Action, Event, Script, Server, after_message, but_at, greeting, plain, sink};
use crate::setup::{Lines, attempt, mailers, mailers_with, options};

const CONTENT: &[u8] = b"Subject: hi\r\n\r\n.dot\r\nbody\r\n";

fn smtp_options() -> DeliverOptions {
    options(std::path::Path::new("/nonexistent"))
}

fn host(server: &Server) -> Destination {
    Destination::Smtp {
        mailer: "relay",
        hop: NextHop::Host {
            name: "[127.0.0.1]".to_owned(),
            port: Some(server.address.port()),
        },
    }
}

fn mx(domain: &str) -> Destination {
    Destination::Smtp {
        mailer: "esmtp",
        hop: NextHop::Mx(Domain::parse(domain).unwrap()),
    }
}

async fn outcomes(mailers: &Mailers, to: &Destination, attempt: Attempt) -> Vec<Outcome> {
    let count = attempt.recipients.len();
    let all = mailers.attempt(to, attempt).await;
    assert_eq!(all.len(), count);
    for (number, (id, _)) in all.iter().enumerate() {
        assert_eq!(usize::try_from(id.0).unwrap(), number);
    }
    all.into_iter().map(|(_, outcome)| outcome).collect()
}

async fn one(mailers: &Mailers, to: &Destination) -> Outcome {
    let attempt = attempt(&["user@ok.test"], CONTENT);
    outcomes(mailers, to, attempt).await.remove(0)
}

fn say(text: &str) -> Action {
    Action::Say(text.to_owned())
}

#[tokio::test]
async fn the_dialogue_and_its_verbose_lines_are_sendmails() {
    let server = Server::start(sink).await;
    let resolver = TableResolver::new()
        .with_mx("ok.test", &[(10, "mx.ok.test")])
        .with_address("mx.ok.test", Ipv4Addr::LOCALHOST.into());
    let mut options = smtp_options();
    options.smtp.port = server.address.port();
    let mailers = mailers_with(options, Arc::new(resolver));
    let lines = Lines::default();
    let mut message = attempt(&["user@ok.test"], CONTENT);
    message.verbose = Some(lines.sink());
    let outcome = outcomes(&mailers, &mx("ok.test"), message).await.remove(0);
    let mut expected = Outcome::new(
        Delivery::Delivered,
        Status::OK,
        "esmtp",
        "Sent (q123abc Message accepted for delivery)",
    );
    expected.relay = "mx.ok.test. [127.0.0.1]".to_owned();
    expected.is_notify_passed_on = true;
    assert_eq!(outcome, expected);
    assert_eq!(
        lines.said(),
        [
            "<user@ok.test>... Connecting to mx.ok.test. via esmtp...",
            "220 mx.ok.test ESMTP sink",
            ">>> EHLO gold.example.test",
            "250-mx.ok.test hello",
            "250-PIPELINING",
            "250-SIZE 10000000",
            "250-DSN",
            "250-ENHANCEDSTATUSCODES",
            "250 8BITMIME",
            ">>> MAIL From:<alice@gold.example.test> SIZE=27",
            "250 2.1.0 sender ok",
            ">>> RCPT To:<user@ok.test>",
            ">>> DATA",
            "250 2.1.5 recipient ok",
            "354 go ahead",
            ">>> .",
            "250 2.0.0 q123abc Message accepted for delivery",
            "<user@ok.test>... Sent (q123abc Message accepted for delivery)",
        ]
    );
    assert_eq!(
        server.heard().messages,
        [b"Subject: hi\r\n\r\n..dot\r\nbody\r\n.\r\n".to_vec()]
    );
}

#[tokio::test]
async fn recipients_have_their_own_outcomes() {
    let server = Server::start(|event| match event {
        Event::Line(line) if line.starts_with("RCPT To:<defer") => say("451 4.7.1 greylisted"),
        Event::Line(line) if line.starts_with("RCPT To:<bad") => say("550 5.1.1 no such user here"),
        event => sink(event),
    })
    .await;
    let mailers = mailers(smtp_options());
    let lines = Lines::default();
    let mut message = attempt(&["defer@m.test", "bad@m.test", "user2@m.test"], CONTENT);
    message.verbose = Some(lines.sink());
    let found = outcomes(&mailers, &host(&server), message).await;
    let seen: Vec<_> = found
        .iter()
        .map(|o| {
            (
                o.result,
                o.status.to_string(),
                o.text.as_str(),
                o.reply.as_deref(),
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            (
                Delivery::Deferred,
                "4.7.1".to_owned(),
                "Deferred: 451 4.7.1 greylisted",
                Some("451 4.7.1 greylisted")
            ),
            (
                Delivery::Failed,
                "5.1.1".to_owned(),
                "User unknown",
                Some("550 5.1.1 no such user here")
            ),
            (
                Delivery::Delivered,
                "2.0.0".to_owned(),
                "Sent (q123abc Message accepted for delivery)",
                None
            ),
        ]
    );
    assert!(found.iter().all(|o| o.relay == "[127.0.0.1] [127.0.0.1]"));
    assert_eq!(
        lines.said()[11..],
        [
            ">>> RCPT To:<defer@m.test>",
            ">>> RCPT To:<bad@m.test>",
            ">>> RCPT To:<user2@m.test>",
            ">>> DATA",
            "451 4.7.1 greylisted",
            "<defer@m.test>... Deferred: 451 4.7.1 greylisted",
            "550 5.1.1 no such user here",
            "250 2.1.5 recipient ok",
            "354 go ahead",
            ">>> .",
            "250 2.0.0 q123abc Message accepted for delivery",
            "<user2@m.test>... Sent (q123abc Message accepted for delivery)",
        ]
    );
}

#[tokio::test]
async fn a_transaction_without_recipients_is_reset() {
    for waits_for_content in [false, true] {
        let server = Server::start(move |event| match event {
            Event::Line(line) if line.starts_with("RCPT") => say("450 4.2.1 mailbox busy"),
            Event::Line("DATA") if !waits_for_content => say("554 5.5.1 no valid recipients"),
            event => sink(event),
        })
        .await;
        let mailers = mailers(smtp_options());
        let outcome = one(&mailers, &host(&server)).await;
        assert_eq!(outcome.text, "Deferred: 450 4.2.1 mailbox busy");
        let heard = server.heard();
        assert_eq!(heard.lines.last().unwrap(), "RSET");
        if waits_for_content {
            assert_eq!(heard.messages, [b".\r\n".to_vec()]);
        }
        one(&mailers, &host(&server)).await;
        assert_eq!(server.heard().connections, 1, "the connection was kept");
    }
}

#[tokio::test]
async fn a_server_of_rfc_821_is_served_step_by_step() {
    let server = Server::start(plain).await;
    let mailers = mailers(smtp_options());
    let outcome = one(&mailers, &host(&server)).await;
    assert_eq!(
        outcome.text,
        "Sent (2.0.0 q123abc Message accepted for delivery)"
    );
    assert!(!outcome.is_notify_passed_on);
    assert_eq!(
        server.heard().lines,
        [
            "EHLO gold.example.test",
            "HELO gold.example.test",
            "MAIL From:<alice@gold.example.test>",
            "RCPT To:<user@ok.test>",
            "DATA",
        ]
    );
}

#[tokio::test]
async fn parameters_are_sent_where_they_are_offered() {
    let server = Server::start(sink).await;
    let mailers = mailers(smtp_options());
    let mut message = attempt(&["user@ok.test"], CONTENT);
    let mut envelope = Envelope::clone(&message.envelope);
    envelope.body_type = BodyType::EightBitMime;
    envelope.dsn_return = DsnReturn::Headers;
    envelope.envelope_id = Some("QQ314159".to_owned());
    message.envelope = Arc::new(envelope);
    let recipient = &mut message.recipients[0].recipient;
    recipient.notify = Notify::When {
        success: true,
        failure: true,
        delay: false,
    };
    recipient.original_recipient = Some("rfc822;u+40x@ok.test".to_owned());
    outcomes(&mailers, &host(&server), message).await;
    assert_eq!(
        server.heard().lines[1..3],
        [
            "MAIL From:<alice@gold.example.test> SIZE=27 BODY=8BITMIME RET=HDRS ENVID=QQ314159",
            "RCPT To:<user@ok.test> NOTIFY=SUCCESS,FAILURE ORCPT=rfc822;u+40x@ok.test",
        ]
    );
}

#[tokio::test]
async fn refusals_read_as_sendmails() {
    type Row = (
        Box<dyn Fn(Event<'_>) -> Action + Send + Sync>,
        Delivery,
        &'static str,
        &'static str,
    );
    let rows: Vec<Row> = vec![
        (
            Box::new(greeting(|| {
                Action::SayAndClose("421 4.3.2 too busy".into())
            })),
            Delivery::Deferred,
            "4.5.0",
            "Deferred: 421 4.3.2 too busy",
        ),
        (
            Box::new(greeting(|| say("554 5.7.1 no service for you"))),
            Delivery::Failed,
            "5.5.0",
            "Service unavailable",
        ),
        (
            Box::new(but_at("MAIL", || say("553 5.1.8 sender domain not liked"))),
            Delivery::Failed,
            "5.1.8",
            "Data format error",
        ),
        (
            Box::new(but_at("MAIL", || say("451 try later"))),
            Delivery::Deferred,
            "4.3.0",
            "Deferred: 451 try later",
        ),
        (
            Box::new(but_at("RCPT", || say("552 5.2.3 too large"))),
            Delivery::Failed,
            "5.2.3",
            "Service unavailable",
        ),
        (
            Box::new(but_at("DATA", || say("451 4.3.0 disk full"))),
            Delivery::Deferred,
            "4.3.0",
            "Deferred: 451 4.3.0 disk full",
        ),
        (
            Box::new(after_message(|| say("554 5.6.0 content rejected"))),
            Delivery::Failed,
            "5.6.0",
            "Service unavailable",
        ),
        (
            Box::new(but_at("RCPT", || Action::Close)),
            Delivery::Deferred,
            "4.4.2",
            "Deferred: Connection reset by [127.0.0.1]",
        ),
        (
            Box::new(but_at("DATA", || Action::Close)),
            Delivery::Deferred,
            "4.4.2",
            "Deferred: Connection reset by [127.0.0.1]",
        ),
        (
            Box::new(after_message(|| Action::Close)),
            Delivery::Deferred,
            "4.4.2",
            "Deferred: Connection reset by [127.0.0.1]",
        ),
        (
            Box::new(greeting(|| say("HTTP/1.1 400 Bad Request"))),
            Delivery::Deferred,
            "4.5.0",
            "Deferred: [127.0.0.1]: bad reply: line does not begin with a reply code",
        ),
        (
            Box::new(but_at("DATA", || say("250 2.0.0 what?"))),
            Delivery::Deferred,
            "4.5.0",
            "Deferred: [127.0.0.1]: bad reply: 250 2.0.0 what? to DATA",
        ),
    ];
    for (script, result, status, text) in rows {
        let server = Server::start(script).await;
        let outcome = one(&mailers(smtp_options()), &host(&server)).await;
        assert_eq!(outcome.result, result, "{text}");
        assert_eq!(outcome.status.to_string(), status, "{text}");
        assert_eq!(outcome.text, text);
        assert_eq!(outcome.relay, "[127.0.0.1] [127.0.0.1]", "{text}");
    }
}

#[tokio::test]
async fn silence_at_any_step_defers_in_time() {
    for step in ["", "EHLO", "MAIL", "RCPT", "DATA", "message"] {
        let server = Server::start(move |event| match event {
            Event::Connect if step.is_empty() => Action::Silence,
            Event::Line(line) if !step.is_empty() && line.starts_with(step) => Action::Silence,
            Event::Message if step == "message" => Action::Silence,
            event => sink(event),
        })
        .await;
        let mut options = smtp_options();
        let short = Duration::from_millis(100);
        let timeouts = &mut options.smtp.timeouts;
        timeouts.initial = short;
        timeouts.helo = short;
        timeouts.mail = short;
        timeouts.rcpt = short;
        timeouts.datainit = short;
        timeouts.datafinal = short;
        let outcome = one(&mailers(options), &host(&server)).await;
        assert_eq!(outcome.result, Delivery::Deferred, "{step}");
        assert_eq!(
            outcome.text, "Deferred: Connection timed out with [127.0.0.1]",
            "{step}"
        );
    }
}

#[tokio::test]
async fn endless_replies_end() {
    let long = "x".repeat(100_000);
    let server = Server::start(greeting(move || Action::Say(format!("220 {long}")))).await;
    let outcome = one(&mailers(smtp_options()), &host(&server)).await;
    assert_eq!(
        outcome.text,
        "Deferred: [127.0.0.1]: bad reply: line too long"
    );
    let many = "220-x\n".repeat(10_000);
    let server = Server::start(greeting(move || Action::Say(many.clone()))).await;
    let outcome = one(&mailers(smtp_options()), &host(&server)).await;
    assert_eq!(
        outcome.text,
        "Deferred: [127.0.0.1]: bad reply: too many lines"
    );
}

/// Servers on one port of several loopback addresses, and the port.
async fn on_one_port(scripts: Vec<(u8, Box<Script>)>) -> (Vec<Server>, u16) {
    let mut servers: Vec<Server> = Vec::new();
    let mut port = 0;
    for (last, script) in scripts {
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(127, 0, 0, last)), port);
        let server = Server::start_at(address, script).await;
        port = server.address.port();
        servers.push(server);
    }
    (servers, port)
}

fn at(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, last))
}

#[tokio::test]
async fn the_next_host_is_tried_when_one_fails() {
    let (servers, port) = on_one_port(vec![
        (21, Box::new(sink)),
        (26, Box::new(greeting(|| say("421 4.3.2 too busy")))),
        (27, Box::new(greeting(|| say("554 5.7.1 no service")))),
        (28, Box::new(but_at("MAIL", || Action::Close))),
        (29, Box::new(but_at("RCPT", || say("421 4.3.2 closing")))),
    ])
    .await;
    let resolver = TableResolver::new()
        .with_mx(
            "walk.test",
            &[
                (1, "absent.test"),
                (2, "servfail.test"),
                (3, "dead.test"),
                (4, "busy.test"),
                (5, "no.test"),
                (6, "drop.test"),
                (7, "closing.test"),
                (8, "ok.test"),
                (9, "never.test"),
            ],
        )
        .with_failure("servfail.test", "SERVFAIL")
        .with_address("dead.test", at(25))
        .with_address("busy.test", at(26))
        .with_address("no.test", at(27))
        .with_address("drop.test", at(28))
        .with_address("closing.test", at(29))
        .with_address("ok.test", at(21))
        .with_address("never.test", at(26));
    let mut options = smtp_options();
    options.smtp.port = port;
    let mailers = mailers_with(options, Arc::new(resolver));
    let lines = Lines::default();
    let mut message = attempt(&["user@walk.test"], CONTENT);
    message.verbose = Some(lines.sink());
    let outcome = outcomes(&mailers, &mx("walk.test"), message)
        .await
        .remove(0);
    assert_eq!(outcome.result, Delivery::Delivered);
    assert_eq!(outcome.relay, "ok.test. [127.0.0.21]");
    assert!(servers.iter().all(|server| server.heard().connections == 1));
    let connecting: Vec<String> = lines
        .said()
        .into_iter()
        .filter(|line| line.contains("Connecting"))
        .collect();
    assert_eq!(connecting.len(), 6, "{connecting:?}");
    assert!(connecting[5].ends_with("Connecting to ok.test. via esmtp..."));
}

#[tokio::test]
async fn a_connection_lost_after_the_final_dot_is_not_repeated_elsewhere() {
    let (servers, port) = on_one_port(vec![
        (31, Box::new(after_message(|| Action::Close))),
        (21, Box::new(sink)),
    ])
    .await;
    let resolver = TableResolver::new()
        .with_mx("drop.test", &[(10, "drop.test"), (20, "ok.test")])
        .with_address("drop.test", at(31))
        .with_address("ok.test", at(21));
    let mut options = smtp_options();
    options.smtp.port = port;
    let outcome = one(&mailers_with(options, Arc::new(resolver)), &mx("drop.test")).await;
    assert_eq!(outcome.result, Delivery::Deferred);
    assert_eq!(outcome.text, "Deferred: Connection reset by drop.test.");
    assert_eq!(servers[0].heard().messages.len(), 1);
    assert_eq!(servers[1].heard().connections, 0);
}

#[tokio::test]
async fn unreachable_domains_read_as_sendmails() {
    let (_, port) = on_one_port(vec![(21, Box::new(sink))]).await;
    let resolver = TableResolver::new()
        .with_mx("dead.test", &[(10, "mx.dead.test")])
        .with_address("mx.dead.test", at(25))
        .with_mx("badmx.test", &[(10, "nohost.test")])
        .with_mx("nullmx.test", &[(0, "")])
        .with_mx("loop.test", &[(10, "gold.example.test")])
        .with_address("nomx.test", at(21))
        .with_failure("servfail.test", "SERVFAIL");
    let mut options = smtp_options();
    options.smtp.port = port;
    let mailers = mailers_with(options, Arc::new(resolver));
    for (domain, result, status, text, relay) in [
        (
            "dead.test",
            Delivery::Deferred,
            "4.4.1",
            "Deferred: Connection refused by mx.dead.test.",
            "mx.dead.test. [127.0.0.25]",
        ),
        (
            "nonexist.test",
            Delivery::Failed,
            "5.1.2",
            "Host unknown (Name server: nonexist.test: host not found)",
            "nonexist.test",
        ),
        (
            "badmx.test",
            Delivery::Failed,
            "5.1.2",
            "Host unknown (Name server: nohost.test.: host not found)",
            "nohost.test.",
        ),
        (
            "nullmx.test",
            Delivery::Failed,
            "5.1.10",
            "Service unavailable",
            "nullmx.test.",
        ),
        (
            "loop.test",
            Delivery::Failed,
            "5.3.5",
            "Local configuration error",
            "loop.test.",
        ),
        (
            "servfail.test",
            Delivery::Deferred,
            "4.4.3",
            "Deferred: Name server: servfail.test.: host name lookup failure",
            "servfail.test.",
        ),
        (
            "nomx.test",
            Delivery::Delivered,
            "2.0.0",
            "Sent (q123abc Message accepted for delivery)",
            "nomx.test. [127.0.0.21]",
        ),
        (
            "[127.0.0.21]",
            Delivery::Delivered,
            "2.0.0",
            "Sent (q123abc Message accepted for delivery)",
            "[127.0.0.21] [127.0.0.21]",
        ),
    ] {
        let outcome = one(&mailers, &mx(domain)).await;
        assert_eq!(outcome.result, result, "{domain}");
        assert_eq!(outcome.status.to_string(), status, "{domain}");
        assert_eq!(outcome.text, text);
        assert_eq!(outcome.relay, relay);
    }
}

#[tokio::test]
async fn a_sandbox_contacts_loopback_alone() {
    let resolver = TableResolver::new()
        .with_mx("far.test", &[(10, "mx.far.test")])
        .with_address("mx.far.test", "192.0.2.1".parse().unwrap());
    let mailers = mailers_with(smtp_options(), Arc::new(resolver));
    for hop in [
        NextHop::Mx(Domain::parse("far.test").unwrap()),
        NextHop::Mx(Domain::parse("[192.0.2.1]").unwrap()),
        NextHop::Host {
            name: "mx.far.test".to_owned(),
            port: None,
        },
    ] {
        let to = Destination::Smtp {
            mailer: "esmtp",
            hop,
        };
        let outcome = one(&mailers, &to).await;
        assert_eq!(outcome.result, Delivery::Deferred);
        assert_eq!(
            outcome.text,
            "Deferred: this sandbox contacts no other host; set remote = true or smart_host in its sendmail.toml"
        );
    }
}

#[tokio::test]
async fn connections_are_used_again_and_closed_politely() {
    let server = Server::start(sink).await;
    let mailers = mailers(smtp_options());
    for _ in 0..3 {
        assert_eq!(
            one(&mailers, &host(&server)).await.result,
            Delivery::Delivered
        );
    }
    assert_eq!(server.heard().connections, 1);
    assert_eq!(server.heard().messages.len(), 3);
    let lines = Lines::default();
    let mut message = attempt(&["user@ok.test"], CONTENT);
    message.verbose = Some(lines.sink());
    outcomes(&mailers, &host(&server), message).await;
    assert_eq!(
        lines.said()[0],
        "<user@ok.test>... Using cached ESMTP connection to [127.0.0.1] via relay..."
    );
    mailers.close_idle().await;
    server.wait_for(|heard| heard.closed == 1).await;
    assert_eq!(server.heard().lines.last().unwrap(), "QUIT");
    assert_eq!(
        one(&mailers, &host(&server)).await.result,
        Delivery::Delivered
    );
    assert_eq!(server.heard().connections, 2);
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_its_time() {
    let server = Server::start(sink).await;
    let mut options = smtp_options();
    options.smtp.cache_idle_max = Duration::from_millis(60);
    let mailers = mailers(options);
    one(&mailers, &host(&server)).await;
    server.wait_for(|heard| heard.closed == 1).await;
    assert_eq!(server.heard().lines.last().unwrap(), "QUIT");
    one(&mailers, &host(&server)).await;
    server.wait_for(|heard| heard.closed == 2).await;
}

#[tokio::test]
async fn a_dead_idle_connection_is_replaced_without_a_word() {
    // The first is closed by the server after one message, the second says 421 to the next.
    for second_mail in [
        Action::Close,
        Action::SayAndClose("421 4.4.2 idle too long".into()),
    ] {
        let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let second_mail = std::sync::Mutex::new(Some(second_mail));
        let server = Server::start(move |event| match event {
            Event::Line(line) if line.starts_with("MAIL") => {
                if count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 1 {
                    second_mail.lock().unwrap().take().unwrap()
                } else {
                    sink(event)
                }
            }
            event => sink(event),
        })
        .await;
        let mailers = mailers(smtp_options());
        for _ in 0..2 {
            let outcome = one(&mailers, &host(&server)).await;
            assert_eq!(outcome.result, Delivery::Delivered, "{}", outcome.text);
        }
        let heard = server.heard();
        assert_eq!((heard.connections, heard.messages.len()), (2, 2));
    }
}

#[tokio::test]
async fn many_recipients_are_sent_in_several_transactions() {
    let users: Vec<String> = (0..250).map(|n| format!("u{n}@ok.test")).collect();
    let users: Vec<&str> = users.iter().map(String::as_str).collect();
    let server = Server::start(sink).await;
    let found = outcomes(
        &mailers(smtp_options()),
        &host(&server),
        attempt(&users, CONTENT),
    )
    .await;
    assert!(found.iter().all(|o| o.result == Delivery::Delivered));
    let heard = server.heard();
    assert_eq!((heard.connections, heard.messages.len()), (1, 3));
    assert_eq!(
        heard.lines.iter().filter(|l| l.starts_with("RCPT")).count(),
        250
    );
}

#[tokio::test]
async fn recipients_beyond_a_servers_limit_go_in_the_next_transaction() {
    let in_transaction = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let server = Server::start(move |event| {
        use std::sync::atomic::Ordering::SeqCst;
        match event {
            Event::Line(line) if line.starts_with("MAIL") => in_transaction.store(0, SeqCst),
            Event::Line(line)
                if line.starts_with("RCPT") && in_transaction.fetch_add(1, SeqCst) >= 2 =>
            {
                return say("452 4.5.3 Too many recipients");
            }
            _ => {}
        }
        sink(event)
    })
    .await;
    let users = [
        "a@ok.test",
        "b@ok.test",
        "c@ok.test",
        "d@ok.test",
        "e@ok.test",
    ];
    let found = outcomes(
        &mailers(smtp_options()),
        &host(&server),
        attempt(&users, CONTENT),
    )
    .await;
    assert!(found.iter().all(|o| o.result == Delivery::Delivered));
    assert_eq!(server.heard().messages.len(), 3);
}

#[tokio::test]
async fn content_that_cannot_be_read_is_never_ended() {
    let server = Server::start(sink).await;
    let mailers = mailers(smtp_options());
    let mut message = attempt(&["user@ok.test"], CONTENT);
    message.content = Arc::new(|| {
        struct Breaks;
        impl Read for Breaks {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("bad sector"))
            }
        }
        Ok(Box::new(Cursor::new(vec![b'x'; 300_000]).chain(Breaks)))
    });
    let outcome = outcomes(&mailers, &host(&server), message).await.remove(0);
    assert_eq!(
        (outcome.result, outcome.text.as_str()),
        (
            Delivery::Deferred,
            "Deferred: content of the message: bad sector"
        )
    );
    server.wait_for(|heard| heard.closed == 1).await;
    assert!(server.heard().messages.is_empty());
    let mut panics = attempt(&["user@ok.test"], CONTENT);
    panics.content = Arc::new(|| panic!("as a test of what becomes of it"));
    let outcome = outcomes(&mailers, &host(&server), panics).await.remove(0);
    assert_eq!(outcome.result, Delivery::Deferred);
}

#[tokio::test]
async fn large_content_arrives_whole() {
    let server = Server::start(sink).await;
    let content = b"Subject: x\r\n\r\n"
        .iter()
        .copied()
        .chain(b".line of some length\r\n".repeat(50_000))
        .collect::<Vec<u8>>();
    let found = outcomes(
        &mailers(smtp_options()),
        &host(&server),
        attempt(&["user@ok.test"], &content),
    )
    .await;
    assert_eq!(found[0].result, Delivery::Delivered);
    let expected = [
        b"Subject: x\r\n\r\n".to_vec(),
        b"..line of some length\r\n".repeat(50_000),
        b".\r\n".to_vec(),
    ]
    .concat();
    assert!(server.heard().messages[0] == expected);
}

#[tokio::test]
async fn addresses_that_would_break_the_dialogue_are_refused() {
    let server = Server::start(sink).await;
    let found = outcomes(
        &mailers(smtp_options()),
        &host(&server),
        attempt(&["a\r\nRSET@x.test", "<b>@x.test", "c@x.test"], CONTENT),
    )
    .await;
    assert_eq!(
        found.iter().map(|o| o.result).collect::<Vec<_>>(),
        [Delivery::Failed, Delivery::Failed, Delivery::Delivered]
    );
    assert!(!server.heard().lines.iter().any(|line| line == "RSET"));
}

#[tokio::test]
async fn each_host_of_a_list_has_a_port_of_its_own() {
    let server = Server::start(sink).await;
    // Nobody listens there any more.
    let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed_port = closed.local_addr().unwrap().port();
    drop(closed);
    let hop = |port| NextHop::Host {
        name: "[127.0.0.1]".to_owned(),
        port: Some(port),
    };
    let to = Destination::Smtp {
        mailer: "esmtp",
        hop: NextHop::Several(vec![hop(closed_port), hop(server.address.port())]),
    };
    let outcome = one(&mailers(smtp_options()), &to).await;
    assert_eq!(outcome.result, Delivery::Delivered, "{outcome:?}");
    assert_eq!(server.heard().messages.len(), 1);
}
