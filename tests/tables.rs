//! virtusertable and mailertable: what Sendmail 8.17 answers for the same tables (transcript 51).

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::sync::Arc;

use diligence::address::{Address, ReversePath};
use diligence::config::RouteOptions;
use diligence::config::host::HostName;
use diligence::envelope::Recipient;
use diligence::route::{Client, Hop, NameLookup, Route, Router, RouterParts, Table, Tables, Taken};
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
    router: Router,
    _folder: tempfile::TempDir,
}

impl std::ops::Deref for Standing {
    type Target = Router;

    fn deref(&self) -> &Router {
        &self.router
    }
}

fn router(tables: Tables) -> Standing {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::write(path("passwd"), PASSWD).unwrap();
    fs::write(
        path("local-host-names"),
        "virt.test\nvirt2.test\nvirt3.test\n",
    )
    .unwrap();
    fs::write(path("virtual-domains"), "only.test\n").unwrap();
    let parts = RouterParts {
        options: RouteOptions {
            local_host_names: path("local-host-names"),
            relay_domains: path("relay-domains"),
            virtuser_domain_file: Some(path("virtual-domains")),
            remote: diligence::config::Remote::Allowed,
            max_alias_recursion: 10,
            ..RouteOptions::default()
        },
        host: HostName {
            full: "gold.example.test".into(),
            aliases: vec![],
        },
        addresses: vec![],
        users: Arc::new(Users::new(Some(&path("passwd")), Some(&path("home")))),
        aliases: vec![Table::fixed("aliases", &[("info", "alice, bob")])],
        access: None,
        tables,
        notice: Arc::new(|_: &str| {}),
    };
    Standing {
        router: Router::new(parts).unwrap(),
        _folder: folder,
    }
}

fn usual() -> Standing {
    router(Tables {
        virtual_users: Some(Table::fixed("virtusertable", VIRTUAL)),
        mailers: Some(Table::fixed("mailertable", MAILERS)),
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
        ("err4@virt2.test", "later"),
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
    let mx = |name: &str| Hop::Mx(diligence::address::Domain::parse(name).unwrap());
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
        ("u@err.test", "no such domain here"),
        ("u@err2.test", "Custom text"),
        ("u@err3.test", "Deferred: later"),
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
    // The operator's mistake is mended while the mail waits.
    assert!(
        matches!(resolve(&router, "u@badmailer.test"), Route::Deferred { text, .. } if text.contains("unknown mailer nosuchmailer"))
    );
}

#[test]
fn a_table_that_does_not_answer_defers_and_lets_nobody_through() {
    let broken = |name: &str| Some(Table::new(name, |_| Err("damaged map".into())));
    let router = router(Tables {
        virtual_users: broken("virtusertable"),
        mailers: broken("mailertable"),
    });
    for address in ["alice@virt.test", "u@ok.test"] {
        match resolve(&router, address) {
            Route::Deferred { text, .. } => assert!(text.ends_with(": damaged map"), "{text}"),
            other => panic!("{address}: {other:?}"),
        }
    }
    let reply = answer(&router, "alice@virt.test");
    assert!(reply.starts_with("451 4.3.0"), "{reply}");
    assert!(answer(&router, "u@ok.test").starts_with("550 5.7.1"));
}
