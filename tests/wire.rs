//! Routing tables, hubs, masquerading and what the access map asks of connections, from a real daemon to the wire: what
//! another host's SMTP server hears. Loopback only.

#![expect(clippy::unwrap_used, reason = "a test ends with its first surprise")]

#[expect(dead_code, reason = "the servers that misbehave are for other tests")]
#[path = "deliver/server.rs"]
mod server;
#[path = "support/daemon.rs"]
mod support;

use std::fs;

use server::{Heard, Server, sink};
use support::{DEADLINE, Daemon, Sandbox, now, wait_for};
use tokio::runtime::Runtime;

/// A daemon, and a server that hears what it sends.
struct Site {
    sandbox: Sandbox,
    server: Server,
    daemon: Option<Daemon>,
    runtime: Runtime,
}

impl Site {
    /// Starts both. `@PORT@` in settings and files is the server's port;tables are read as text.
    fn start(settings: &str, files: &[(&str, &str)]) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let server = runtime.block_on(Server::start_at("127.0.0.2:0".parse().unwrap(), sink));
        let sandbox = Sandbox::new();
        // Makes it.
        sandbox.start().stop();
        let port = server.address.port().to_string();
        let filled = |text: &str| text.replace("@PORT@", &port);
        for (name, text) in files {
            fs::write(sandbox.path().join("etc/mail").join(name), filled(text)).unwrap();
        }
        sandbox.configure(&format!(
            "host_name = \"gold.example.test\"\naccept_unresolvable_domains = true\n{}",
            filled(settings)
        ));
        let rebuilt = sandbox.run("newaliases", &[], "");
        assert!(rebuilt.status.success(), "{rebuilt:?}");
        let daemon = Some(sandbox.start());
        Self {
            sandbox,
            server,
            daemon,
            runtime,
        }
    }

    /// Sends a message by SMTP.
    fn send(&self, from: &str, to: &str, header: &str) {
        let mut client = self.daemon.as_ref().unwrap().client().unwrap();
        client
            .send(from, &[to], &format!("{header}Subject: s\n\nbody"))
            .unwrap();
    }

    /// What the server has heard once it has this many messages.
    fn heard(&self, messages: usize) -> Heard {
        let enough = |heard: &Heard| heard.messages.len() >= messages;
        self.runtime.block_on(self.server.wait_for(enough));
        self.server.heard()
    }

    /// Waits for a line of the log with all of these parts.
    fn expect_log(&self, parts: &[&str]) -> String {
        let log = || self.sandbox.text("var/log/maillog");
        let found = || {
            let has_all = |line: &&str| parts.iter().all(|part| line.contains(part));
            log().lines().find(has_all).map(str::to_owned)
        };
        let start = now();
        loop {
            if let Some(line) = found() {
                return line;
            }
            let is_late = start.elapsed() > DEADLINE;
            assert!(!is_late, "no line with {parts:?} in:\n{}", log());
            std::thread::yield_now();
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            daemon.stop();
        }
    }
}

/// MAIL and RCPT of what was heard, without parameters.
fn envelopes(heard: &Heard) -> Vec<String> {
    heard
        .lines
        .iter()
        .filter(|line| line.starts_with("MAIL") || line.starts_with("RCPT"))
        .map(|line| line.split_inclusive('>').next().unwrap().to_owned())
        .collect()
}

/// A field of the last message.
fn field(heard: &Heard, name: &str) -> String {
    let text = String::from_utf8(heard.messages.last().unwrap().clone()).unwrap();
    let start = format!("{name}: ");
    let line = text.lines().find(|line| line.starts_with(&start));
    line.unwrap_or_default().to_owned()
}

const TO_SERVER: &str = ".;esmtp:[127.0.0.2]:@PORT@\n";

#[test]
fn masquerading_is_seen_in_envelope_and_header() {
    let site = Site::start(
        "mailertable = \"text -z; etc/mail/mailertable\"\n\
         masquerade_as = \"corp.test\"\n\
         masquerade_envelope = true\n\
         masquerade_domain = [\"inner.test\"]\n\
         masquerade_exception = [\"kept.inner.test\"]\n\
         exposed_user = [\"root\"]\n\
         generics_domain = [\"gold.example.test\"]\n\
         genericstable = \"text -z; etc/mail/genericstable\"",
        &[
            ("mailertable", TO_SERVER),
            (
                "genericstable",
                "carol;Carol.User@people.test\ndave;dave.d\n",
            ),
        ],
    );
    for (at, (sender, envelope, header)) in [
        (
            "alice@gold.example.test",
            "alice@corp.test",
            "alice@corp.test",
        ),
        ("bob@inner.test", "bob@corp.test", "bob@corp.test"),
        (
            "x@kept.inner.test",
            "x@kept.inner.test",
            "x@kept.inner.test",
        ),
        (
            "root@gold.example.test",
            "root@gold.example.test",
            "root@gold.example.test",
        ),
        (
            "carol@gold.example.test",
            "Carol.User@people.test",
            "Carol.User@people.test",
        ),
        (
            "dave@gold.example.test",
            "dave.d@corp.test",
            "dave.d@corp.test",
        ),
        ("y@else.test", "y@else.test", "y@else.test"),
    ]
    .into_iter()
    .enumerate()
    {
        site.send(
            sender,
            "u@ok.test",
            &format!("From: \"N\" <{sender}>\nTo: u@ok.test, a@inner.test\n"),
        );
        let heard = site.heard(at + 1);
        let said = envelopes(&heard);
        assert_eq!(
            said[2 * at..],
            [
                format!("MAIL From:<{envelope}>"),
                "RCPT To:<u@ok.test>".to_owned()
            ]
        );
        assert_eq!(field(&heard, "From"), format!("From: \"N\" <{header}>"));
        assert_eq!(field(&heard, "To"), "To: u@ok.test, a@inner.test");
    }
}

#[test]
fn a_header_alone_is_masqueraded_unless_the_envelope_is_asked_for() {
    let site = Site::start(
        "smart_host = \"[127.0.0.2]:@PORT@\"\nmasquerade_as = \"corp.test\"\nallmasquerade = true",
        &[],
    );
    site.send(
        "alice@gold.example.test",
        "u@ok.test",
        "From: alice\nTo: bob, u@ok.test\nCc: c@gold.example.test\n",
    );
    let heard = site.heard(1);
    assert_eq!(
        envelopes(&heard),
        ["MAIL From:<alice@gold.example.test>", "RCPT To:<u@ok.test>"]
    );
    assert_eq!(field(&heard, "From"), "From: alice@corp.test");
    assert_eq!(field(&heard, "To"), "To: bob@corp.test, u@ok.test");
    assert_eq!(field(&heard, "Cc"), "Cc: c@corp.test");
    site.expect_log(&["to=<u@ok.test>", "mailer=relay", "stat=Sent"]);
}

#[test]
fn the_mailertable_chooses_mailer_and_host_and_refuses() {
    let site = Site::start(
        "mailertable = \"text -z; etc/mail/mailertable\"",
        &[
            ("aliases", "both: u@err.test, u@later.test\n"),
            (
                "mailertable",
                "ok.test;esmtp:[127.0.0.2]:@PORT@\n.sub.test;relay:[127.0.0.2]:@PORT@\n\
             err.test;error:5.7.1:550 Not by us\nlater.test;error:4.3.0:450 later\nhere.test;local:\n",
            ),
        ],
    );
    site.send("s@sender.test", "u@ok.test", "");
    site.send("s@sender.test", "u@a.sub.test", "");
    let heard = site.heard(2);
    let mut to: Vec<String> = envelopes(&heard);
    to.retain(|line| line.starts_with("RCPT"));
    to.sort();
    assert_eq!(to, ["RCPT To:<u@a.sub.test>", "RCPT To:<u@ok.test>"]);
    site.expect_log(&[
        "to=<u@ok.test>",
        "mailer=esmtp",
        "relay=[127.0.0.2]",
        "stat=Sent",
    ]);
    site.expect_log(&["to=<u@a.sub.test>", "mailer=relay", "stat=Sent"]);
    // Ends are told sorted by their hosts, and after what is refused (transcript 51).
    let user = site.sandbox.user();
    let here = format!("{user}@here.test");
    let verified = site.sandbox.run(
        "sendmail",
        &[
            "-bv",
            &here,
            "u@ok.test",
            "u@a.sub.test",
            "u@err.test",
            "u@later.test",
        ],
        "",
    );
    assert_eq!(
        String::from_utf8(verified.stdout).unwrap(),
        format!(
            "u@err.test... Not by us\nu@later.test... later\n\
             u@later.test... deliverable: mailer *error*, host 4.3.0, user 450 later\n\
             u@ok.test... deliverable: mailer esmtp, host [127.0.0.2], user u@ok.test\n\
             u@a.sub.test... deliverable: mailer relay, host [127.0.0.2], user u@a.sub.test\n\
             {here}... deliverable: mailer local, host {here}, user {user}\n"
        )
    );
    assert_eq!(verified.status.code(), Some(65));
    // What it refuses is refused at RCPT; what an alias leads to is, when it is tried.
    let mut client = site.daemon.as_ref().unwrap().client().unwrap();
    client.command("MAIL FROM:<s@sender.test>", "250").unwrap();
    for (address, answer) in [
        ("u@err.test", "550 5.7.1 <u@err.test>... Not by us"),
        ("u@later.test", "450 4.3.0 <u@later.test>... later"),
        (
            "nosuch@here.test",
            "550 5.1.1 <nosuch@here.test>... User unknown",
        ),
    ] {
        let reply = client.command(&format!("RCPT TO:<{address}>"), answer);
        assert!(reply.is_ok(), "{reply:?}");
    }
    site.send("s@sender.test", "both", "");
    site.expect_log(&["u@err.test", "dsn=5.7.1", "stat=Not by us"]);
    site.expect_log(&["u@later.test", "dsn=4.3.0", "stat=Deferred: later"]);
}

#[test]
fn names_of_this_host_go_to_the_hub_and_unknown_ones_to_the_relay_of_losers() {
    let hub = "mail_hub = \"relay:[127.0.0.2]:@PORT@\"\nluser_relay = \"esmtp:[127.0.0.2]:@PORT@\"\n\
               local_user = [\"root\"]\npasswd_file = \"etc/users\"";
    let site = Site::start(
        hub,
        &[
            ("aliases", "info: u@[127.0.0.2]\n"),
            (
                "../users",
                "alice:x:0:0::/:/bin/sh\nroot:x:0:0::/:/bin/sh\n",
            ),
        ],
    );
    site.send("s@sender.test", "alice@gold.example.test", "");
    let heard = site.heard(1);
    assert_eq!(envelopes(&heard)[1], "RCPT To:<alice@[127.0.0.2]>");
    site.send("s@sender.test", "nobody-there@gold.example.test", "");
    let heard = site.heard(2);
    assert_eq!(envelopes(&heard)[3], "RCPT To:<nobody-there@[127.0.0.2]>");
    site.expect_log(&["to=<alice@gold.example.test>", "mailer=relay", "stat=Sent"]);
    site.expect_log(&[
        "to=<nobody-there@gold.example.test>",
        "mailer=esmtp",
        "stat=Sent",
    ]);
}

#[test]
fn plain_connections_get_only_what_the_access_map_lets_them() {
    let site = Site::start(
        "mailertable = \"text -z; etc/mail/mailertable\"\naccess_db = \"text -z; etc/mail/access\"",
        &[
            ("mailertable", TO_SERVER),
            (
                "access",
                "TLS_Rcpt:temp@r.test;VERIFY\nTLS_Rcpt:perm.test;PERM+ENCR:112\nTLS_Rcpt:later@;TEMP+VERIFY:128\n\
                 TLS_Rcpt:open.perm.test;NONE\nTry_TLS:127.0.0.2;NO\n",
            ),
        ],
    );
    let mut client = site.daemon.as_ref().unwrap().client().unwrap();
    let all = [
        "ok@r.test",
        "temp@r.test",
        "u@a.perm.test",
        "later@any.test",
        "u@open.perm.test",
    ];
    client
        .send("root@gold.example.test", &all, "Subject: s\n\nb")
        .unwrap();
    let to = |to: &str, parts: &[&str]| {
        let to = format!("<{to}>");
        site.expect_log(&[&[to.as_str()], parts].concat());
    };
    to("ok@r.test", &["stat=Sent"]);
    to("u@open.perm.test", &["stat=Sent"]);
    let no_tls = "other side does not support STARTTLS";
    let deferred = format!("stat=Deferred: 454 4.7.0 {no_tls}");
    to("temp@r.test", &["dsn=4.7.0", &deferred]);
    let deferred = format!("stat=Deferred: 403 4.7.0 {no_tls}");
    to("later@any.test", &["dsn=4.7.0", &deferred]);
    to("u@a.perm.test", &["dsn=5.7.0", "stat=Service unavailable"]);
    let heard = site.server.heard();
    let mut said = envelopes(&heard);
    said.retain(|line| line.starts_with("RCPT"));
    said.sort();
    assert_eq!(said, ["RCPT To:<ok@r.test>", "RCPT To:<u@open.perm.test>"]);
    let report = wait_for("a report", || {
        let text = site.sandbox.mailbox();
        text.contains("5.7.0").then_some(text)
    });
    assert!(
        report.contains("503 5.7.0 encryption too weak 0 less than 112"),
        "{report}"
    );
}

#[test]
fn a_server_that_must_show_a_certificate_gets_nothing() {
    for (value, parts) in [
        (
            "TEMP+VERIFY",
            ["dsn=4.7.0", "stat=Deferred: 403 4.7.0 other side"],
        ),
        ("PERM+ENCR:56", ["dsn=5.7.0", "stat=Service unavailable"]),
    ] {
        let access = format!("TLS_Srv:127.0.0;{value}\n");
        let site = Site::start(
            "mailertable = \"text -z; etc/mail/mailertable\"\naccess_db = \"text -z; etc/mail/access\"",
            &[("mailertable", TO_SERVER), ("access", &access)],
        );
        site.send("root@gold.example.test", "u@ok.test", "");
        site.expect_log(&["to=<u@ok.test>", parts[0], parts[1]]);
        assert!(envelopes(&site.server.heard()).is_empty());
    }
}

// Transcript 63, "same to a remote host".
#[test]
fn names_without_a_domain_leave_with_this_hosts() {
    let site = Site::start(
        "mailertable = \"text -z; etc/mail/mailertable\"",
        &[("mailertable", TO_SERVER)],
    );
    site.send(
        "alice@gold.example.test",
        "u@ok.test",
        "From: joe (Joe)\nTo: bob, u@ok.test\n",
    );
    let heard = site.heard(1);
    assert_eq!(field(&heard, "From"), "From: joe@gold.example.test (Joe)");
    assert_eq!(field(&heard, "To"), "To: bob@gold.example.test, u@ok.test");
}
