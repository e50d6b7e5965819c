//! Routing tables, hubs and masquerading: what Sendmail 8.17 answers for the same tables (transcript 51).

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io::{Cursor, Read};
use std::sync::Arc;

use diligence::address::{Address, Domain, ReversePath};
use diligence::config::access::AddedDomain;
use diligence::config::host::HostName;
use diligence::config::{
    Blameless, ClassOptions, DontBlame, MasqueradeOptions, MasqueradeScope, RouteOptions,
    SentOnOptions,
};
use diligence::envelope::Recipient;
use diligence::route::{
    Client, Handover, Hop, NameLookup, Route, Router, RouterParts, Table, Tables, Taken,
};
use diligence::status::ExitCode;
use diligence::users::Users;

const PASSWD: &str = "\
alice:x:1000:1000::/home/alice:/bin/sh\nbob:x:1001:1001::/home/bob:/bin/sh\ncarol:x:1002:1002::/home/carol:/bin/sh\n\
dave:x:1003:1003::/home/dave:/bin/sh\nerin:x:1004:1004::/home/erin:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n";

const VIRTUAL: &[(&str, &str)] = &[
    ("alice@virt.test", "bob"),
    ("info@virt.test", "info"),
    ("rem@virt.test", "someone@ok.test"),
    ("joe+work@virt.test", "carol"),
    ("joe+*@virt.test", "dave"),
    ("joe@virt.test", "erin"),
    ("@virt.test", "catch+%1"),
    ("err@virt2.test", "error:nouser No such user here"),
    ("err5@virt2.test", "error:5.7.0:550 Go away"),
    ("err4@virt2.test", "error:4.2.1:450 later"),
    ("@virt2.test", "%1@ok.test"),
    ("loop@virt3.test", "loop@virt3.test"),
    ("self@virt3.test", "alice@virt.test"),
    ("nomatch+*@virt3.test", "%1+%2%3@ok.test"),
    ("bob@only.test", "bob"),
];

const MAILERS: &[(&str, &str)] = &[
    ("relayto.test", "esmtp:[127.0.0.21]"),
    ("viamx.test", "smtp:ok.test"),
    (".sub.test", "relay:mx.ok.test"),
    ("local.test", "local:"),
    ("localu.test", "local:bob"),
    ("err.test", "error:nohost no such domain here"),
    ("err2.test", "error:5.7.1:550 Custom text"),
    ("err3.test", "error:4.3.0:450 later"),
    ("port.test", "esmtp:[127.0.0.21]:2525"),
    ("multi.test", "esmtp:mx.dead.test:mx.ok.test"),
    ("disc.test", "discard:x"),
    ("badmailer.test", "nosuchmailer:x"),
    (".cut.test", "smtp:%1.hub.test"),
    (".", "smtp:default.hub.test"),
];

struct Standing {
    router: Arc<Router>,
    _folder: tempfile::TempDir,
}

impl std::ops::Deref for Standing {
    type Target = Arc<Router>;

    fn deref(&self) -> &Arc<Router> {
        &self.router
    }
}

fn router(tables: Tables) -> Standing {
    router_with(tables, |_| {})
}

fn router_with(tables: Tables, set: impl FnOnce(&mut RouteOptions)) -> Standing {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("passwd"), PASSWD).unwrap();
    fs::write(
        path("local-host-names"),
        "virt.test\nvirt2.test\nvirt3.test\n",
    )
    .unwrap();
    fs::write(path("virtual-domains"), "only.test\n").unwrap();
    let mut options = RouteOptions {
        local_host_names: path("local-host-names"),
        relay_domains: path("relay-domains"),
        virtuser_domain_file: Some(path("virtual-domains")),
        remote: diligence::config::Remote::Allowed,
        max_alias_recursion: 10,
        // Temporary folders lie in a sticky one.
        dont_blame: DontBlame::default().with(Blameless::TrustStickyBit),
        ..RouteOptions::default()
    };
    set(&mut options);
    let parts = RouterParts {
        files: diligence_maps::FileAccess::default(),
        options,
        host: HostName {
            full: "gold.example.test".into(),
            aliases: vec![],
        },
        addresses: vec![],
        users: Arc::new(Users::new(Some(&path("passwd")), Some(&path("home")))),
        aliases: vec![Table::fixed(
            "aliases",
            &[("info", "alice, bob"), ("moved", "u@new.test.REDIRECT")],
        )],
        access: None,
        tables,
        notice: Arc::new(|_: &str| {}),
    };
    Standing {
        router: Arc::new(Router::new(parts).unwrap()),
        _folder: folder,
    }
}

fn usual() -> Standing {
    router(Tables {
        virtual_users: Some(Table::fixed("virtusertable", VIRTUAL)),
        mailers: Some(Table::fixed("mailertable", MAILERS)),
        ..Tables::default()
    })
}

fn resolve(router: &Router, target: &str) -> Route {
    router.resolve(&Recipient::new(target), &mut Taken::new())
}

fn answer(router: &Router, address: &str) -> String {
    let client = Client {
        address: "127.0.0.50".parse().unwrap(),
        name: None,
        name_lookup: NameLookup::Settled,
        helo: "x".into(),
    };
    let parsed = Address::parse(address).unwrap();
    match router.check_recipient(&parsed, &ReversePath::Null, &client) {
        Ok(_) => "ok".into(),
        Err(denial) => denial.about(&format!("<{address}>")).to_line(),
    }
}

#[test]
fn virtual_users_are_verified_and_answered_as_sendmail_does() {
    let router = usual();
    for (address, line) in [
        ("alice@virt.test", "deliverable: mailer local, user bob"),
        ("joe+x@virt.test", "deliverable: mailer local, user dave"),
        (
            "joe+work@virt.test",
            "deliverable: mailer local, user carol",
        ),
        ("joe@virt.test", "deliverable: mailer local, user erin"),
        (
            "nobody@virt3.test",
            "deliverable: mailer local, user nobody",
        ),
        ("self@virt3.test", "deliverable: mailer local, user bob"),
        ("other@virt.test", "User unknown"),
        ("err@virt2.test", "No such user here"),
        ("err5@virt2.test", "Go away"),
        (
            "nomatch+a@virt3.test",
            "deliverable: mailer esmtp, host default.hub.test, user nomatch+a+a@ok.test",
        ),
    ] {
        let (lines, _) = router.verify_lines(address, false);
        assert_eq!(lines, [format!("{address}... {line}")]);
    }
    for (address, reply) in [
        ("alice@virt.test", "ok"),
        ("info@virt.test", "ok"),
        ("nobody@virt3.test", "ok"),
        ("bob@only.test", "ok"),
        // Of ours, although it leads elsewhere: no relaying is asked for.
        ("who@virt2.test", "ok"),
        (
            "other@virt.test",
            "550 5.1.1 <other@virt.test>... User unknown",
        ),
        (
            "err@virt2.test",
            "553 5.3.0 <err@virt2.test>... No such user here",
        ),
        ("err5@virt2.test", "550 5.7.0 <err5@virt2.test>... Go away"),
        ("err4@virt2.test", "450 4.2.1 <err4@virt2.test>... later"),
        (
            "u@virtx.test",
            "550 5.7.1 <u@virtx.test>... Relaying denied",
        ),
    ] {
        assert_eq!(answer(&router, address), reply, "{address}");
    }
    let looped = answer(&router, "loop@virt3.test");
    assert!(looped.starts_with("554 5.0.0 "), "{looped}");
    assert_eq!(
        router.expand_shown("alice@virt.test").unwrap(),
        ["<bob@gold.example.test>"]
    );
    // An alias behind a virtual user, and nobody twice.
    let Route::Expand { children, .. } = resolve(&router, "info@virt.test") else {
        panic!("info@virt.test");
    };
    let targets: Vec<_> = children.iter().map(|child| child.target.as_str()).collect();
    assert_eq!(targets, ["bob", "alice"]);
    let mut taken = Taken::new();
    let _ = router.resolve(&Recipient::new("bob"), &mut taken);
    let again = router.resolve(&Recipient::new("alice@virt.test"), &mut taken);
    assert!(
        matches!(again, Route::Expand { ref children, .. } if children.is_empty()),
        "{again:?}"
    );
}

#[test]
fn domains_leave_by_the_mailers_of_the_mailertable() {
    let router = usual();
    let host = |name: &str, port| Hop::Host {
        name: name.into(),
        port,
    };
    let mx = |name: &str| Hop::Mx(Domain::parse(name).unwrap());
    for (address, is_relay, hop) in [
        ("u@relayto.test", false, host("[127.0.0.21]", None)),
        ("u@port.test", false, host("[127.0.0.21]", Some(2525))),
        ("u@viamx.test", false, mx("ok.test")),
        ("u@a.sub.test", true, mx("mx.ok.test")),
        ("u@a.b.cut.test", false, mx("a.b.hub.test")),
        ("u@else.test", false, mx("default.hub.test")),
        (
            "u@multi.test",
            false,
            Hop::Several(vec![mx("mx.dead.test"), mx("mx.ok.test")]),
        ),
    ] {
        let wanted = Route::Smtp {
            is_relay,
            hop,
            address: address.into(),
        };
        assert_eq!(resolve(&router, address), wanted);
    }
    assert!(
        matches!(resolve(&router, "u@localu.test"), Route::Local { user, .. } if user == "bob")
    );
    assert!(
        matches!(resolve(&router, "carol@local.test"), Route::Local { user, .. } if user == "carol")
    );
    assert!(
        matches!(resolve(&router, "u@disc.test"), Route::Mailer { mailer, .. } if mailer == "discard")
    );
    for (address, line) in [
        (
            "u@localu.test",
            "deliverable: mailer local, host u@localu.test, user bob",
        ),
        ("u@err.test", "nohost no such domain here"),
        ("u@err2.test", "Custom text"),
        (
            "u@multi.test",
            "deliverable: mailer esmtp, host mx.dead.test:mx.ok.test, user u@multi.test",
        ),
        (
            "u@a.sub.test",
            "deliverable: mailer relay, host mx.ok.test, user u@a.sub.test",
        ),
    ] {
        let (lines, _) = router.verify_lines(address, false);
        assert_eq!(lines, [format!("{address}... {line}")]);
    }
    let (lines, code) = router.verify_lines("u@err3.test", false);
    assert_eq!(
        lines,
        [
            "u@err3.test... later",
            "u@err3.test... deliverable: mailer *error*, host 4.3.0, user 450 later"
        ]
    );
    assert_eq!(code, ExitCode::Ok);
    // Refused when it comes, not when it is tried.
    for (address, reply) in [
        (
            "u@err.test",
            "553 5.3.0 <u@err.test>... nohost no such domain here",
        ),
        ("u@err2.test", "550 5.7.1 <u@err2.test>... Custom text"),
        ("u@err3.test", "450 4.3.0 <u@err3.test>... later"),
        (
            "carol@local.test",
            "550 5.7.1 <carol@local.test>... Relaying denied",
        ),
    ] {
        assert_eq!(answer(&router, address), reply, "{address}");
    }
    // The operator's mistake is mended while the mail waits.
    assert!(
        matches!(resolve(&router, "u@badmailer.test"), Route::Deferred { text, .. } if text.contains("unknown mailer nosuchmailer"))
    );
}

/// What Sendmail 8.17 answered, asked with the same tables.
#[test]
fn neighbours_of_the_transcript_are_answered_alike() {
    let router = router_with(
        Tables {
            virtual_users: Some(Table::fixed(
                "virtusertable",
                &[
                    ("plus+*@virt.test", "alice"),
                    ("plus+x@virt.test", "bob"),
                    ("plus@virt.test", "carol"),
                    ("++@virt2.test", "dave"),
                    ("+*@virt2.test", "erin"),
                    ("@virt2.test", "alice"),
                    ("word@virt2.test", "error:nouser 550 5.1.1 quoted codes"),
                    ("bare@virt2.test", "error:5.1.1:User has gone"),
                    ("literal@virt2.test", "error:D.S.N:550 literal"),
                    ("@virt3.test", "%1@only.test"),
                    ("d1@only.test", "%1-%2-%3@else.test"),
                    ("d2+*@only.test", "%1-%2-%3@else.test"),
                    ("d3+*@only.test", "%2@gold.example.test"),
                    ("bob@only.test", "bob"),
                    ("info@only.test", "info"),
                ],
            )),
            mailers: Some(Table::fixed(
                "mailertable",
                &[
                    ("here.relayed.test", "local:"),
                    ("bob.relayed.test", "local:bob"),
                    ("nobody.relayed.test", "local:nosuch"),
                    ("list.relayed.test", "local:info"),
                    ("word.relayed.test", "error:nohost:no such domain here"),
                ],
            )),
            ..Tables::default()
        },
        |options| {
            let file = options.relay_domains.clone();
            fs::write(file, "relayed.test\n").unwrap();
        },
    );
    for (address, reply) in [
        ("plus+x@virt.test", "ok"),
        ("zz+q@virt2.test", "ok"),
        (
            "word@virt2.test",
            "550 5.1.1 <word@virt2.test>... quoted codes",
        ),
        (
            "bare@virt2.test",
            "553 5.3.0 <bare@virt2.test>... User has gone",
        ),
        (
            "literal@virt2.test",
            "550 5.0.0 <literal@virt2.test>... literal",
        ),
        ("bob@virt3.test", "ok"),
        ("d3+bob@only.test", "ok"),
        (
            "d3+nosuch@only.test",
            "550 5.1.1 <d3+nosuch@only.test>... User unknown",
        ),
        ("info@only.test", "ok"),
        // A virtual domain, and what is below it, is relayed to.
        ("unknown@only.test", "ok"),
        ("unknown@below.only.test", "ok"),
        (
            "unknown@only2.test",
            "550 5.7.1 <unknown@only2.test>... Relaying denied",
        ),
        // Not so what it is to pass on.
        (
            "u%plain.test@only.test",
            "550 5.7.1 <u%plain.test@only.test>... Relaying denied",
        ),
        ("bob@here.relayed.test", "ok"),
        (
            "nosuch@here.relayed.test",
            "550 5.1.1 <nosuch@here.relayed.test>... User unknown",
        ),
        ("x@bob.relayed.test", "ok"),
        (
            "x@nobody.relayed.test",
            "550 5.1.1 <x@nobody.relayed.test>... User unknown",
        ),
        ("x@list.relayed.test", "ok"),
        (
            "x@word.relayed.test",
            "553 5.3.0 <x@word.relayed.test>... no such domain here",
        ),
    ] {
        assert_eq!(answer(&router, address), reply, "{address}");
    }
    for (address, user) in [
        ("plus+x@virt.test", "bob"),
        ("plus+y@virt.test", "alice"),
        ("plus+@virt.test", "alice"),
        ("plus@virt.test", "carol"),
        ("zz+q@virt2.test", "dave"),
        ("zz+@virt2.test", "erin"),
        ("zz@virt2.test", "alice"),
    ] {
        assert!(
            matches!(resolve(&router, address), Route::Local { user: found, .. } if found == user),
            "{address}"
        );
    }
    for (address, line) in [
        (
            "d2+w@only.test",
            "deliverable: mailer esmtp, host else.test, user d2-w-+w@else.test",
        ),
        (
            "d1+w@only.test",
            "deliverable: mailer esmtp, host else.test, user d1-w-+w@else.test",
        ),
        (
            "bob@here.relayed.test",
            "deliverable: mailer local, host bob@here.relayed.test, user bob",
        ),
        (
            "x@bob.relayed.test",
            "deliverable: mailer local, host x@bob.relayed.test, user bob",
        ),
    ] {
        assert_verified(&router, &[(address, line)]);
    }
    // An alias behind a mailertable.
    let (lines, _) = router.verify_lines("x@list.relayed.test", false);
    assert_eq!(
        lines,
        [
            "bob... deliverable: mailer local, user bob",
            "alice... deliverable: mailer local, user alice"
        ]
    );
    assert_eq!(
        router.verify("bob@here.relayed.test").unwrap().address,
        "bob@gold.example.test"
    );
}

#[test]
fn a_table_that_does_not_answer_defers_and_lets_nobody_through() {
    let broken = |name: &str| Some(Table::new(name, |_| Err("damaged map".into())));
    let router = router(Tables {
        virtual_users: broken("virtusertable"),
        mailers: broken("mailertable"),
        ..Tables::default()
    });
    for address in ["alice@virt.test", "u@ok.test"] {
        match resolve(&router, address) {
            Route::Deferred { text, .. } => assert!(text.ends_with(": damaged map"), "{text}"),
            other => panic!("{address}: {other:?}"),
        }
    }
    let reply = answer(&router, "alice@virt.test");
    assert!(reply.starts_with("451 4.3.0"), "{reply}");
    assert!(answer(&router, "u@ok.test").starts_with("451 4.3.0"));
}

/// The lines of `-bv` are these.
fn assert_verified(router: &Router, cases: &[(&str, &str)]) {
    for (address, line) in cases {
        let (lines, _) = router.verify_lines(address, false);
        assert_eq!(lines, [format!("{address}... {line}")]);
    }
}

#[test]
fn domains_of_the_domaintable_are_others() {
    let router = router(Tables {
        domains: Some(Table::fixed(
            "domaintable",
            &[("old.test", "ok.test"), ("older.test", "gold.example.test")],
        )),
        ..Tables::default()
    });
    assert_verified(
        &router,
        &[
            (
                "u@old.test",
                "deliverable: mailer esmtp, host ok.test, user u@ok.test",
            ),
            ("alice@older.test", "deliverable: mailer local, user alice"),
        ],
    );
    assert_eq!(answer(&router, "alice@older.test"), "ok");
    assert_eq!(
        answer(&router, "nosuch@older.test"),
        "550 5.1.1 <nosuch@older.test>... User unknown"
    );
    assert!(answer(&router, "u@old.test").starts_with("550 5.7.1"));
    assert_eq!(
        handed(
            &router,
            "To: u@old.test, x@y.test\r\n\r\nu@old.test",
            Handover::Away
        ),
        "To: u@ok.test, x@y.test\r\n\r\nu@old.test"
    );
}

#[test]
fn names_that_nobody_has_go_to_the_luser_relay() {
    let with = |value: &str| {
        let value = value.to_owned();
        router_with(Tables::default(), |options| {
            options.sent_on.luser_relay = Some(value);
        })
    };
    let router = with("local:carol");
    assert_verified(
        &router,
        &[
            (
                "nosuch",
                "deliverable: mailer local, host nosuch, user carol",
            ),
            ("alice", "deliverable: mailer local, user alice"),
        ],
    );
    assert_eq!(answer(&router, "nosuch@gold.example.test"), "ok");
    assert!(matches!(resolve(&router, "nosuch@gold.example.test"),
        Route::Local { user, .. } if user == "carol"));
    let router = with("relay:mx.ok.test");
    assert_verified(
        &router,
        &[(
            "nosuch",
            "deliverable: mailer relay, host mx.ok.test, user nosuch@mx.ok.test",
        )],
    );
    let router = with("error:5.1.1:550 No such user");
    assert_eq!(
        answer(&router, "nosuch@gold.example.test"),
        "550 5.1.1 <nosuch@gold.example.test>... No such user"
    );
    assert!(
        matches!(resolve(&router, "nosuch"), Route::Failed { text, .. } if text == "No such user")
    );
}

#[test]
fn names_of_this_host_go_to_its_hub_after_aliases_or_before() {
    let with = |sent_on: SentOnOptions| {
        router_with(Tables::default(), |options| options.sent_on = sent_on)
    };
    let hub = || SentOnOptions {
        mail_hub: Some("hub.test".into()),
        local_relay: Some("esmtp:[127.0.0.21]".into()),
        local_user: vec!["bob".into()],
        ..SentOnOptions::default()
    };
    let hubbed = "deliverable: mailer relay, host hub.test, user";
    let router = with(hub());
    assert_verified(
        &router,
        &[
            ("alice", &format!("{hubbed} alice@hub.test")),
            (
                "nosuch@gold.example.test",
                &format!("{hubbed} nosuch@hub.test"),
            ),
            ("bob", "deliverable: mailer local, user bob"),
            ("\\alice", "deliverable: mailer local, user \\alice"),
        ],
    );
    assert_eq!(answer(&router, "nosuch@gold.example.test"), "ok");
    let Route::Expand { children, .. } = resolve(&router, "info") else {
        panic!("info");
    };
    assert_eq!(children.len(), 2);
    let router = with(SentOnOptions {
        stickyhost: true,
        ..hub()
    });
    assert_verified(
        &router,
        &[
            (
                "info@gold.example.test",
                &format!("{hubbed} info@gold.example.test"),
            ),
            (
                "bob@gold.example.test",
                "deliverable: mailer local, user bob",
            ),
        ],
    );
    assert!(matches!(resolve(&router, "info@gold.example.test"),
        Route::Smtp { address, .. } if address == "info@gold.example.test"));
    // Without a hub only names without a domain leave, and one's own host is no hub.
    let router = with(SentOnOptions {
        stickyhost: true,
        mail_hub: None,
        ..hub()
    });
    assert!(matches!(resolve(&router, "alice"),
        Route::Smtp { is_relay: false, address, .. } if address == "alice@[127.0.0.21]"));
    assert!(matches!(
        resolve(&router, "alice@gold.example.test"),
        Route::Local { .. }
    ));
    let router = with(SentOnOptions {
        mail_hub: Some("relay:GOLD.example.test".into()),
        ..SentOnOptions::default()
    });
    assert!(matches!(resolve(&router, "alice"), Route::Local { .. }));
}

#[test]
fn who_has_moved_is_told_of() {
    let router = router_with(Tables::default(), |options| options.redirect = true);
    // The answer names the new address alone, to anybody.
    let (lines, code) = router.verify_lines("bob@new.test.REDIRECT", false);
    assert_eq!(lines, ["User has moved; please try <bob@new.test>"]);
    assert_eq!(code, ExitCode::NoUser);
    assert_eq!(
        answer(&router, "bob@new.test.REDIRECT"),
        "551 5.1.1 User has moved; please try <bob@new.test>"
    );
    // Of an alias it is told when it is followed.
    assert_eq!(answer(&router, "moved"), "ok");
    assert_eq!(
        router.expand_shown("moved").unwrap_err().to_line(),
        "551 5.1.1 User has moved; please try <u@new.test>"
    );
    assert!(matches!(resolve(&router, "bob@new.test.redirect"),
        Route::Failed { text, .. } if text == "User has moved; please try <bob@new.test>"));
}

/// A content as it is handed over, read by pieces of a few bytes.
fn handed(router: &Arc<Router>, content: &str, to: Handover) -> String {
    let mut whole = String::new();
    for size in [1, 7, 64 * 1024] {
        let mut reader = router.rewritten(Box::new(Cursor::new(content.to_owned())), to);
        let (mut out, mut piece) = (Vec::new(), vec![0; size]);
        loop {
            match reader.read(&mut piece).unwrap() {
                0 => break,
                count => out.extend_from_slice(&piece[..count]),
            }
        }
        let text = String::from_utf8(out).unwrap();
        assert!(whole.is_empty() || whole == text);
        whole = text;
    }
    whole
}

fn shown(router: &Router, sender: &str, to: Handover) -> String {
    let path = ReversePath::Mailbox(Address::parse(sender).unwrap());
    router.envelope_sender(&path, to).unwrap().to_string()
}

fn masquerading(set: impl FnOnce(&mut MasqueradeOptions)) -> Standing {
    router_with(Tables::default(), |options| {
        options.masquerade.masquerade_as = Some("corp.test".into());
        set(&mut options.masquerade);
    })
}

#[test]
fn senders_are_masqueraded_as_sendmail_does() {
    let plain = masquerading(|_| {});
    let before = "From: alice\r\nSender: root@gold.example.test\r\nReply-To: A <alice@GOLD.example.test>,\r\n\tb@host.example.test\r\n\
        To: alice, bob@gold.example.test\r\nSubject: alice@gold.example.test\r\n\r\nFrom: alice\r\n";
    let after = "From: alice@corp.test\r\nSender: root@corp.test\r\nReply-To: A <alice@corp.test>,\r\n\tb@host.example.test\r\n\
        To: alice@gold.example.test, bob@gold.example.test\r\nSubject: alice@gold.example.test\r\n\r\nFrom: alice\r\n";
    assert_eq!(handed(&plain, before, Handover::Away), after);
    // On this host a name without a domain stays one.
    let here = "From: alice\r\nSender: root@corp.test\r\nReply-To: A <alice@corp.test>,\r\n\tb@host.example.test\r\n\
        To: alice, bob@gold.example.test\r\nSubject: alice@gold.example.test\r\n\r\nFrom: alice\r\n";
    assert_eq!(handed(&plain, before, Handover::Here), here);
    for to in [Handover::Away, Handover::Here] {
        assert_eq!(
            shown(&plain, "alice@gold.example.test", to),
            "<alice@gold.example.test>"
        );
    }
    let scoped = |scope: MasqueradeScope| masquerading(|options| options.scope = scope);
    let from = |router: &Arc<Router>, text: &str| {
        let text = handed(router, &format!("From: {text}\n\n"), Handover::Away);
        text.trim_end().trim_start_matches("From: ").to_owned()
    };
    let all = scoped(MasqueradeScope {
        allmasquerade: true,
        masquerade_envelope: true,
        local_no_masquerade: true,
        ..MasqueradeScope::default()
    });
    let to = "Cc: bob\r\n\r\n";
    assert_eq!(
        handed(&all, to, Handover::Away),
        "Cc: bob@corp.test\r\n\r\n"
    );
    assert_eq!(
        handed(
            &all,
            "From: bob@gold.example.test\r\nTo: bob\r\n\r\n",
            Handover::Here
        ),
        "From: bob@gold.example.test\r\nTo: bob\r\n\r\n"
    );
    let own = "alice@gold.example.test";
    assert_eq!(shown(&all, own, Handover::Away), "<alice@corp.test>");
    assert_eq!(shown(&all, own, Handover::Here), format!("<{own}>"));
    assert_eq!(
        all.envelope_sender(&ReversePath::Null, Handover::Away)
            .unwrap(),
        ReversePath::Null
    );
    // Classes M, N and E.
    let class = |word: &str| ClassOptions {
        words: vec![word.into()],
        file: None,
    };
    let classes = |scope: MasqueradeScope| {
        masquerading(|options| {
            options.domains = class("sub.test");
            options.exceptions = class("virt.test");
            options.exposed_users = class("root");
            options.scope = scope;
        })
    };
    let router = classes(MasqueradeScope::default());
    for (given, wanted) in [
        ("u@sub.test", "u@corp.test"),
        ("u@a.sub.test", "u@a.sub.test"),
        ("u@virt.test", "u@virt.test"),
        ("u@virt2.test", "u@corp.test"),
        ("root", "root@gold.example.test"),
        ("root@gold.example.test", "root@gold.example.test"),
        ("root@else.test", "root@else.test"),
    ] {
        assert_eq!(from(&router, given), wanted, "{given}");
    }
    let router = classes(MasqueradeScope {
        masquerade_entire_domain: true,
        limited_masquerade: true,
        ..MasqueradeScope::default()
    });
    for (given, wanted) in [
        ("u@a.sub.test", "u@corp.test"),
        ("u@gold.example.test", "u@gold.example.test"),
        ("u", "u@corp.test"),
    ] {
        assert_eq!(from(&router, given), wanted, "{given}");
    }
}

// As Sendmail 8.17 handed the same headers over.
#[test]
fn names_without_a_domain_get_one_where_they_must() {
    let header = "From: bob\r\nTo: carol, \"q s\"\r\nCc: dave@localhost\r\n\r\n";
    let with = |added: AddedDomain, masquerade_as: Option<&str>, allmasquerade: bool| {
        router_with(Tables::default(), |options| {
            options.masquerade.masquerade_as = masquerade_as.map(str::to_owned);
            options.masquerade.always_add_domain = added;
            options.masquerade.scope.allmasquerade = allmasquerade;
        })
    };
    let plain = with(AddedDomain::None, None, false);
    // Nothing is set: mail for other hosts has domains all the same, mail for this one stays as it is.
    assert_eq!(
        handed(&plain, header, Handover::Away),
        "From: bob@gold.example.test\r\nTo: carol@gold.example.test, \"q s\"@gold.example.test\r\n\
         Cc: dave@gold.example.test\r\n\r\n"
    );
    assert_eq!(handed(&plain, header, Handover::Here), header);
    let own = with(AddedDomain::Own, Some("corp.test"), false);
    assert_eq!(
        handed(&own, header, Handover::Here),
        "From: bob@corp.test\r\nTo: carol@gold.example.test, \"q s\"@gold.example.test\r\n\
         Cc: dave@gold.example.test\r\n\r\n"
    );
    let other = AddedDomain::Other(Domain::parse("add.test").unwrap());
    let other = with(other, Some("corp.test"), true);
    assert_eq!(
        handed(&other, header, Handover::Here),
        "From: bob@add.test\r\nTo: carol@add.test, \"q s\"@add.test\r\nCc: dave@corp.test\r\n\r\n"
    );
    // What other hosts get does not depend on it.
    assert_eq!(
        handed(&other, "From: bob\r\n\r\n", Handover::Away),
        "From: bob@corp.test\r\n\r\n"
    );
}

#[test]
fn the_genericstable_names_users_as_others_see_them() {
    let tables = Tables {
        generics: Some(Table::fixed(
            "genericstable",
            &[
                ("alice", "Alice.Liddell@corp.test"),
                ("bob@gen.test", "robert@gen.test"),
                ("carol", "caroline"),
                ("dave+*@gen.test", "dave-%1@gen.test"),
                ("@all.test", "%1@corp.test"),
            ],
        )),
        ..Tables::default()
    };
    let router = router_with(tables, |options| {
        let words = vec!["gen.test".into(), "all.test".into()];
        options.masquerade.generics_domains = ClassOptions { words, file: None };
    });
    for (given, wanted) in [
        ("alice", "Alice.Liddell@corp.test"),
        ("alice@gen.test", "Alice.Liddell@corp.test"),
        // Of this host, but not of class G.
        ("alice@gold.example.test", "alice@gold.example.test"),
        ("bob@gen.test", "robert@gen.test"),
        ("bob", "bob@gold.example.test"),
        ("carol", "caroline@gold.example.test"),
        ("dave+x@gen.test", "dave-x@gen.test"),
        ("erin@all.test", "erin@corp.test"),
        ("alice@a.gen.test", "alice@a.gen.test"),
    ] {
        let text = handed(&router, &format!("From: {given}\r\n\r\n"), Handover::Away);
        assert_eq!(text, format!("From: {wanted}\r\n\r\n"));
    }
}

#[test]
fn content_stays_byte_for_byte_where_nothing_is_to_change() {
    let router = masquerading(|_| {});
    let long = format!(
        "From: {}\r\n\r\n",
        "x".repeat(diligence::route::FIELD_BYTES_MAX * 2)
    );
    for content in [
        "",
        "\r\n",
        "no header at all",
        "From: a@b\r\n",
        "From: a@b",
        "From a@gold.example.test Mon\r\nFrom: a@b\r\n\r\n",
        "From:\r\n <a@b>,\n\t(c) d@e\n\nFrom: alice\n",
        "X: y\r\nnot a field\r\nFrom: alice\r\n",
        &long,
    ] {
        assert_eq!(handed(&router, content, Handover::Away), content);
    }
}

#[test]
fn trouble_with_a_table_of_addresses_is_an_error_of_the_content() {
    let broken = || Some(Table::new("broken", |_| Err("damaged map".into())));
    for tables in [
        Tables {
            generics: broken(),
            ..Tables::default()
        },
        Tables {
            domains: broken(),
            ..Tables::default()
        },
    ] {
        let router = router_with(tables, |options| {
            options.masquerade.scope.masquerade_envelope = true;
            options.masquerade.generics_domains.words = vec!["gold.example.test".into()];
        });
        let mut content = router.rewritten(
            Box::new(Cursor::new("From: a@gold.example.test\r\n\r\n")),
            Handover::Away,
        );
        let error = content.read_to_end(&mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("damaged map"), "{error}");
        let path = ReversePath::Mailbox(Address::parse("a@gold.example.test").unwrap());
        assert!(router.envelope_sender(&path, Handover::Away).is_err());
    }
}

// As Sendmail 8.17 answered with the same settings.
#[test]
fn rcpt_vrfy_and_expn_tell_where_names_of_this_host_go() {
    let with = |sent_on: SentOnOptions| {
        router_with(Tables::default(), |options| options.sent_on = sent_on)
    };
    let refusing = with(SentOnOptions {
        luser_relay: Some("error:5.1.1:550 No such user here".into()),
        ..SentOnOptions::default()
    });
    let refused = "550 5.1.1 <nosuch>... No such user here";
    assert_eq!(answer(&refusing, "nosuch"), refused);
    assert_eq!(answer(&refusing, "info"), "ok");
    let refused = "550 5.1.1 nosuch... No such user here";
    assert_eq!(refusing.verify("nosuch").unwrap_err().to_line(), refused);
    assert_eq!(
        refusing.expand_shown("nosuch").unwrap_err().to_line(),
        refused
    );
    // A text without a code of its own.
    let worded = with(SentOnOptions {
        luser_relay: Some("error:nouser No such user".into()),
        ..SentOnOptions::default()
    });
    assert_eq!(
        answer(&worded, "nosuch"),
        "553 5.3.0 <nosuch>... nouser No such user"
    );
    let (lines, code) = worded.verify_lines("nosuch", false);
    assert_eq!(lines, ["nosuch... nouser No such user"]);
    assert_eq!(code, ExitCode::Unavailable);

    let hub = with(SentOnOptions {
        mail_hub: Some("relay:hub.test".into()),
        local_user: vec!["carol".into()],
        ..SentOnOptions::default()
    });
    for (name, address, is_remote) in [
        ("bob", "bob@hub.test", true),
        ("nosuch", "nosuch@hub.test", true),
        ("carol", "carol@gold.example.test", false),
        ("info", "info@gold.example.test", false),
    ] {
        let verified = hub.verify(name).unwrap();
        assert_eq!(
            (verified.address.as_str(), verified.is_remote),
            (address, is_remote)
        );
        assert_eq!(answer(&hub, name), "ok");
    }
    assert_eq!(hub.expand_shown("nosuch").unwrap(), ["<nosuch@hub.test>"]);
    assert_eq!(
        hub.expand_shown("info").unwrap(),
        ["<bob@hub.test>", "<alice@hub.test>"]
    );
    // With a domain it sticks to this host, where nobody has it.
    let sticky = with(SentOnOptions {
        local_relay: Some("relay:lr.test".into()),
        stickyhost: true,
        ..SentOnOptions::default()
    });
    assert_eq!(answer(&sticky, "nosuch"), "ok");
    assert_eq!(
        answer(&sticky, "nosuch@gold.example.test"),
        "550 5.1.1 <nosuch@gold.example.test>... User unknown"
    );
}
