//! Routing by its public face: what Sendmail 8.17 answers for the same aliases, users and access map.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that does not work"
)]

use std::fs;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use diligence::address::{Address, ReversePath};
use diligence::config::access::AccessOptions;
use diligence::config::endpoint::HostPort;
use diligence::config::host::HostName;
use diligence::config::{Blameless, DontBlame, Remote, RouteOptions};
use diligence::envelope::{Recipient, RecipientId, RecipientState};
use diligence::route::{
    Client, Disposition, Hop, NameLookup, Route, Router, RouterParts, Table, Taken,
};
use diligence::status::{ExitCode, Reply, Status};
use diligence::users::Users;

const PASSWD: &str = "\
alice:x:1000:1000:Alice User:/home/alice:/bin/sh
bob:x:1001:1001::/home/bob:/bin/sh
carol:x:1002:1002::/home/carol:/bin/sh
dave:x:1003:1003::/home/dave:/bin/sh
erin:x:1004:1004::/home/erin:/bin/sh
";

const ALIASES: &[(&str, &str)] = &[
    ("support", "alice"),
    ("info", "alice, bob, carol"),
    ("nested", "info, support, dave"),
    ("chain1", "chain2"),
    ("chain2", "chain3"),
    ("chain3", "bob"),
    ("loop1", "loop2"),
    ("loop2", "loop1"),
    ("loopmix", "alice, loop1"),
    ("selfloop", "selfloop"),
    ("awc", "dave"),
    ("dave", "awc"),
    ("topipe", "\"|/usr/bin/vacation alice, x\""),
    ("tofile", "/var/log/help"),
    ("list", ":include:/etc/mail/lists/list1"),
    ("errb", "error:5.1.1 User has moved away"),
    ("self", "\\self"),
    ("bobesc", "\\bob"),
    ("rem", "someone@ok.test"),
    ("mixed", "alice, someone@ok.test, nosuchuser"),
    ("dupes", "alice, ALICE, alice@gold.example.test, support"),
    ("alice+tag", "bob"),
    ("plus+*", "carol"),
    ("plus", "erin"),
    ("carol", "carol, erin"),
    ("quoted", "\"john doe\"@ok.test"),
    ("comment", "Alice User <alice>, (x) bob"),
    ("\"q s\"", "bob"),
];

const ACCESS: &[(&str, &str)] = &[
    ("bad@spammer.test", "REJECT"),
    ("From:err@sender.test", "ERROR:5.7.1:550 go away err"),
    ("From:errq@sender.test", "ERROR:\"550 quoted text\""),
    ("From:err4@sender.test", "ERROR:4.7.1:451 try later err4"),
    ("From:errd@sender.test", "ERROR:D.S.N:550 literal dsn"),
    ("From:num@sender.test", "550 plain number text"),
    ("From:num5@sender.test", "550 5.7.9 text with dsn"),
    ("From:num4@sender.test", "450 4.7.9 temp text"),
    ("From:disc@sender.test", "DISCARD"),
    ("From:reject.test", "REJECT"),
    ("From:deep.test", "550 5.7.1 no deep"),
    ("From:user1@", "REJECT"),
    ("From:<>", "REJECT"),
    ("From:skip.test", "SKIP"),
    ("From:junk@sender.test", "JUNKACTION"),
    ("Connect:127.0.0.60", "REJECT"),
    ("Connect:127.0.0.61", "RELAY"),
    ("Connect:127.0.0.62", "ERROR:4.7.1:\"450 connect later\""),
    ("Connect:127.0.0.64", "OK"),
    ("Connect:127.0.1", "550 5.7.1 whole net rejected"),
    ("Connect:spam.connect.test", "REJECT"),
    (
        "To:frozen@gold.example.test",
        "ERROR:5.2.1:550 mailbox frozen",
    ),
    ("To:rejected@", "REJECT"),
    ("To:bob@gold.example.test", "ERROR:4.2.1:450 bob is busy"),
    ("To:relayed.test", "RELAY"),
    ("To:user@single.relay.test", "RELAY"),
];

/// A host with golden users and aliases, in a folder of its own.
struct Site {
    folder: tempfile::TempDir,
    parts: RouterParts,
    notices: Arc<Mutex<Vec<String>>>,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("passwd"), PASSWD).unwrap();
        let notices = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&notices);
        let parts = RouterParts {
            files: diligence_maps::FileAccess::default(),
            options: RouteOptions {
                local_host_names: folder.path().join("local-host-names"),
                relay_domains: folder.path().join("relay-domains"),
                max_alias_recursion: 10,
                // Temporary folders lie in a sticky one.
                dont_blame: DontBlame::default().with(Blameless::TrustStickyBit),
                access: AccessOptions {
                    blocklist_recipients: true,
                    ..AccessOptions::default()
                },
                ..RouteOptions::default()
            },
            host: HostName {
                full: "gold.example.test".into(),
                aliases: vec!["gold.example.test".into(), "gold".into()],
            },
            addresses: vec![],
            users: Arc::new(Users::new(
                Some(&folder.path().join("passwd")),
                Some(&folder.path().join("home")),
            )),
            aliases: vec![Table::fixed("aliases", ALIASES)],
            access: None,
            tables: diligence::route::Tables::default(),
            notice: Arc::new(move |line: &str| told.lock().unwrap().push(line.to_owned())),
        };
        Self {
            folder,
            parts,
            notices,
        }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }
}

/// A router together with the folder its files are in.
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

fn router() -> Standing {
    let site = Site::new();
    Standing {
        router: Router::new(site.parts).unwrap(),
        _folder: site.folder,
    }
}

fn client(address: &str) -> Client {
    Client {
        address: address.parse::<IpAddr>().unwrap(),
        name: None,
        name_lookup: NameLookup::Settled,
        helo: "c".into(),
    }
}

fn resolve(router: &Router, target: &str) -> Route {
    router.resolve(&Recipient::new(target), &mut Taken::new())
}

/// The ends a recipient leads to.
fn ends(router: &Router, target: &str) -> Vec<String> {
    match resolve(router, target) {
        Route::Expand { children, .. } => children.into_iter().map(|c| c.target).collect(),
        other => panic!("{target}: {other:?}"),
    }
}

fn local(user: &str) -> Route {
    Route::Local {
        user: user.into(),
        detail: None,
    }
}

fn recipient_answer(router: &Router, address: &str, from: &str) -> String {
    let sender = ReversePath::parse("s@sender.test").unwrap();
    let parsed = Address::parse(address).unwrap();
    match router.check_recipient(&parsed, &sender, &client(from)) {
        Ok(_) => "ok".into(),
        Err(refusal) => refusal.about(&format!("<{address}>")).to_line(),
    }
}

fn sender_answer(router: &Router, address: &str) -> String {
    let sender = ReversePath::parse(address).unwrap();
    match router.check_sender(&sender, &client("127.0.0.50")) {
        Ok(Some(Disposition::Discard)) => "discard".into(),
        Ok(_) => "ok".into(),
        Err(refusal) => refusal.about(&sender.to_string()).to_line(),
    }
}

#[test]
fn bv_lines_are_sendmails() {
    let router = router();
    for (argument, lines) in [
        ("alice", "alice... deliverable: mailer local, user alice"),
        ("ALICE", "ALICE... deliverable: mailer local, user alice"),
        (
            "alice@GOLD.Example.Test",
            "alice@GOLD.Example.Test... deliverable: mailer local, user alice",
        ),
        (
            "alice@gold",
            "alice@gold... deliverable: mailer local, user alice",
        ),
        ("postmaster", "root... deliverable: mailer local, user root"),
        (
            "MAILER-DAEMON",
            "root... deliverable: mailer local, user root",
        ),
        ("SUPPORT", "alice... deliverable: mailer local, user alice"),
        (
            "info",
            "carol... deliverable: mailer local, user carol\n\
             erin... deliverable: mailer local, user erin\n\
             bob... deliverable: mailer local, user bob\n\
             alice... deliverable: mailer local, user alice",
        ),
        ("chain1", "bob... deliverable: mailer local, user bob"),
        (
            "alice+other",
            "alice+other... deliverable: mailer local, host other, user alice",
        ),
        (
            "alice,bob",
            "bob... deliverable: mailer local, user bob\nalice... deliverable: mailer local, user alice",
        ),
        (
            "rem",
            "someone@ok.test... deliverable: mailer esmtp, host ok.test, user someone@ok.test",
        ),
        (
            "quoted",
            "\"john doe\"@ok.test... deliverable: mailer esmtp, host ok.test, user \"john doe\"@ok.test",
        ),
        (
            "someone@[127.0.0.21]",
            "someone@[127.0.0.21]... deliverable: mailer esmtp, host [127.0.0.21], user someone@[127.0.0.21]",
        ),
        (
            "ok.test!user",
            "ok.test!user... deliverable: mailer esmtp, host ok.test, user user@ok.test",
        ),
        (
            "user%ok.test@gold.example.test",
            "user%ok.test@gold.example.test... deliverable: mailer esmtp, host ok.test, user user@ok.test",
        ),
        (
            "<alice>",
            "<alice>... deliverable: mailer local, user alice",
        ),
        (
            "Alice User <alice>",
            "Alice User <alice>... deliverable: mailer local, user alice",
        ),
        (
            "alice@[127.0.0.1]",
            "alice@[127.0.0.1]... deliverable: mailer local, user alice",
        ),
        (
            "alice@[127.0.0.99]",
            "alice@[127.0.0.99]... deliverable: mailer esmtp, host [127.0.0.99], user alice@[127.0.0.99]",
        ),
    ] {
        let (found, code) = router.verify_lines(argument, false);
        assert_eq!(found.join("\n"), lines, "{argument}");
        assert_eq!(code, ExitCode::Ok, "{argument}");
    }
    for (argument, line, code) in [
        (
            "nosuchuser+x",
            "nosuchuser+x... User unknown",
            ExitCode::NoUser,
        ),
        ("self", "\\self... User unknown", ExitCode::NoUser),
        (
            "errb",
            "error:5.1.1 User has moved away... User unknown",
            ExitCode::NoUser,
        ),
        (
            "\"|/bin/cat\"",
            "\"|/bin/cat\"... Cannot mail directly to programs",
            ExitCode::Usage,
        ),
        (
            "/etc/passwd",
            "/etc/passwd... Cannot mail directly to files",
            ExitCode::Usage,
        ),
        (
            ":include:/etc/x",
            ":include:/etc/x... Cannot mail directly to :include:s",
            ExitCode::Usage,
        ),
        ("loop1", "aliasing/forwarding loop broken", ExitCode::Usage),
    ] {
        let (found, found_code) = router.verify_lines(argument, false);
        assert_eq!(found, [line], "{argument}");
        assert_eq!(found_code, code, "{argument}");
    }
    let (found, _) = router.verify_lines("info", true);
    assert_eq!(found[0], "info... aliased to alice, bob, carol");
    assert_eq!(found[1], "carol... aliased to carol, erin");
}

#[test]
fn aliases_expand_to_their_ends_without_duplicates() {
    let router = router();
    assert_eq!(ends(&router, "info"), ["carol", "erin", "bob", "alice"]);
    assert_eq!(
        ends(&router, "nested@gold"),
        ["awc", "alice", "carol", "erin", "bob"].map(|name| if name == "awc" {
            "dave"
        } else {
            name
        })
    );
    assert_eq!(ends(&router, "dupes").len(), 1);
    assert_eq!(ends(&router, "comment"), ["bob", "alice"]);
    assert_eq!(ends(&router, "bobesc"), ["\\bob"]);
    assert_eq!(ends(&router, "alice+tag"), ["bob"]);
    assert_eq!(ends(&router, "plus+x"), ["carol", "erin"]);
    assert_eq!(ends(&router, "plus"), ["erin"]);
    assert_eq!(ends(&router, "\"q s\""), ["bob"]);
    assert_eq!(ends(&router, "topipe"), ["\"|/usr/bin/vacation alice, x\""]);
    let Route::Expand { children, shown } = resolve(&router, "info") else {
        panic!("no expansion");
    };
    assert_eq!(shown, "aliased to alice, bob, carol");
    assert!(children.iter().all(|child| !child.has_brackets));
}

#[test]
fn loops_are_broken_at_a_user_or_reported() {
    let router = router();
    let looped = Route::Failed {
        status: Status::new(5, 4, 6),
        text: "aliasing/forwarding loop broken".into(),
    };
    assert_eq!(resolve(&router, "loop1"), looped);
    // One that names itself alone is no loop: there is nobody of that name.
    let unknown = Route::Failed {
        status: Status::NO_USER,
        text: "User unknown".into(),
    };
    assert_eq!(resolve(&router, "selfloop"), unknown);
    // awc leads to dave and dave to awc; dave is a user.
    assert_eq!(ends(&router, "awc"), ["dave"]);
    assert_eq!(ends(&router, "dave"), ["dave"]);
    // What can be delivered is, and the loop is reported beside it, as an end of its own.
    let ends = ends(&router, "loopmix");
    assert_eq!(ends, ["alice", "loop1"]);
    let mut stub = Recipient::new("loop1");
    stub.parent = Some(RecipientId(0));
    assert_eq!(router.resolve(&stub, &mut Taken::new()), looped);
}

#[test]
fn deep_aliases_are_cut_at_the_limit() {
    let mut site = Site::new();
    let names: Vec<(String, String)> = (0..30)
        .map(|n| (format!("deep{n}"), format!("deep{}", n + 1)))
        .chain([("deep30".to_owned(), "bob".to_owned())])
        .collect();
    let pairs: Vec<(&str, &str)> = names
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    site.parts.aliases = vec![Table::fixed("aliases", &pairs)];
    let router = Router::new(site.parts).unwrap();
    assert_eq!(ends(&router, "deep21"), ["bob"]);
    match resolve(&router, "deep20") {
        Route::Failed { status, text } => {
            assert_eq!(status, Status::new(5, 4, 6));
            assert_eq!(
                text,
                "aliasing/forwarding loop broken (11 aliases deep; 10 max)"
            );
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn ends_of_an_expansion_are_never_expanded_again() {
    let router = router();
    let mut child = Recipient::new("carol");
    child.parent = Some(RecipientId(0));
    assert_eq!(router.resolve(&child, &mut Taken::new()), local("carol"));
    child.target = "\\bob".into();
    assert_eq!(router.resolve(&child, &mut Taken::new()), local("bob"));
}

#[test]
fn nobody_is_taken_twice_over_the_whole_message() {
    let router = router();
    let mut taken = Taken::new();
    assert_eq!(
        router.resolve(&Recipient::new("alice"), &mut taken),
        local("alice")
    );
    for again in ["ALICE@gold", "support", "dupes"] {
        match router.resolve(&Recipient::new(again), &mut taken) {
            Route::Expand { children, .. } => assert_eq!(children, [], "{again}"),
            other => panic!("{again}: {other:?}"),
        }
    }
    let mut taken = Taken::new();
    taken.note(&router, &Recipient::new("bob"), &RecipientState::Delivered);
    taken.note(&router, &Recipient::new("info"), &RecipientState::Expanded);
    match router.resolve(&Recipient::new("info"), &mut taken) {
        Route::Expand { children, .. } => {
            let targets: Vec<_> = children.iter().map(|c| c.target.as_str()).collect();
            assert_eq!(targets, ["carol", "erin", "alice"]);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn trouble_with_a_lookup_defers_and_never_refuses() {
    let mut site = Site::new();
    site.parts.aliases = vec![Table::new("/etc/mail/aliases", |_| {
        Err("damaged map".into())
    })];
    let notices = Arc::clone(&site.notices);
    let router = Router::new(site.parts).unwrap();
    match resolve(&router, "alice") {
        Route::Deferred { status, text } => {
            assert_eq!(status.class, 4);
            assert_eq!(text, "/etc/mail/aliases: damaged map");
        }
        other => panic!("{other:?}"),
    }
    let answer = "451 4.3.0 Temporary system failure. Please try again later.";
    assert_eq!(recipient_answer(&router, "alice", "127.0.0.50"), answer);
    assert_eq!(recipient_answer(&router, "nosuch", "127.0.0.50"), answer);
    assert_eq!(router.verify("alice").unwrap_err().code, 451);
    assert_eq!(router.expand_shown("alice").unwrap_err().code, 451);
    assert!(
        notices
            .lock()
            .unwrap()
            .iter()
            .any(|line| line.contains("damaged map"))
    );

    let mut site = Site::new();
    fs::write(site.path("passwd"), "alice:x:not-a-number:1000::/h:/s\n").unwrap();
    site.parts.aliases.clear();
    let router = Router::new(site.parts).unwrap();
    assert!(matches!(resolve(&router, "alice"), Route::Deferred { .. }));
    assert_eq!(recipient_answer(&router, "alice", "127.0.0.1"), answer);

    let mut site = Site::new();
    site.parts.access = Some(Table::new("access", |_| Err("locked".into())));
    let router = Router::new(site.parts).unwrap();
    assert_eq!(sender_answer(&router, "s@sender.test"), answer);
    assert_eq!(recipient_answer(&router, "x@ok.test", "127.0.0.50"), answer);
    let connect = router.check_client(&client("127.0.0.50"));
    assert_eq!(connect.unwrap_err().bare().to_line(), answer);
}

#[test]
fn names_of_this_host_come_from_the_class_file_and_change_without_restart() {
    let site = Site::new();
    let path = site.path("local-host-names");
    let router = Router::new(site.parts).unwrap();
    let address = Address::parse("alice@other.test").unwrap();
    assert!(!router.is_local(&address));
    fs::write(&path, "# ours\nOther.test\n").unwrap();
    assert!(router.is_local(&address));
    assert_eq!(resolve(&router, "alice@other.test."), local("alice"));
    for ours in [
        "a@localhost",
        "a@GOLD",
        "a@[IPv6:::1]",
        "a@[127.0.0.1]",
        "a",
    ] {
        assert!(router.is_local(&Address::parse(ours).unwrap()), "{ours}");
    }
    for theirs in ["a@[127.0.0.2]", "a@example.test", "a@x.gold.example.test"] {
        assert!(
            !router.is_local(&Address::parse(theirs).unwrap()),
            "{theirs}"
        );
    }
}

#[test]
fn a_host_name_without_domain_is_used_and_said_in_the_log() {
    let mut site = Site::new();
    site.parts.host = HostName {
        full: "gold".into(),
        aliases: vec!["gold".into()],
    };
    let notices = Arc::clone(&site.notices);
    let router = Router::new(site.parts).unwrap();
    assert_eq!(router.host_name(), "gold");
    assert!(notices.lock().unwrap()[0].contains("My unqualified host name (gold)"));
    assert!(router.is_local(&Address::parse("alice@gold").unwrap()));
}

#[test]
fn remote_mail_goes_by_mx_or_to_the_smart_host() {
    let router = router();
    let smtp = |is_relay, hop, address: &str| Route::Smtp {
        is_relay,
        hop,
        address: address.into(),
    };
    let mx = |name: &str| Hop::Mx(diligence::address::Domain::parse(name).unwrap());
    let host = |name: &str, port| Hop::Host {
        name: name.into(),
        port,
    };
    assert_eq!(
        resolve(&router, "x@ok.test"),
        smtp(false, mx("ok.test"), "x@ok.test")
    );
    assert_eq!(
        resolve(&router, "x@[192.0.2.1]"),
        smtp(false, host("[192.0.2.1]", None), "x@[192.0.2.1]")
    );
    assert_eq!(
        resolve(&router, "x@[mx.ok.test]"),
        smtp(false, host("mx.ok.test", None), "x@[mx.ok.test]")
    );
    for (text, hop) in [
        ("relay.test", mx("relay.test")),
        ("[relay.test]", host("relay.test", None)),
        ("relay.test:2525", host("relay.test", Some(2525))),
        ("[127.0.0.1]:2525", host("[127.0.0.1]", Some(2525))),
        ("[IPv6:2001:db8::1]", host("[IPv6:2001:db8::1]", None)),
    ] {
        let mut site = Site::new();
        site.parts.options.remote = Remote::LoopbackOnly;
        site.parts.options.smart_host = Some(HostPort::parse(text).unwrap());
        let router = Router::new(site.parts).unwrap();
        assert_eq!(
            resolve(&router, "x@ok.test"),
            smtp(true, hop, "x@ok.test"),
            "{text}"
        );
    }
}

// Transcript 51, SMART_HOST.
#[test]
fn a_smart_host_has_the_mailer_that_it_names() {
    let mut site = Site::new();
    site.parts.options.remote = Remote::LoopbackOnly;
    site.parts.options.smart_host = Some(HostPort::parse("esmtp:mx.ok.test").unwrap());
    let router = Router::new(site.parts).unwrap();
    let (lines, _) = router.verify_lines("u@plain.test", false);
    assert_eq!(
        lines,
        ["u@plain.test... deliverable: mailer esmtp, host mx.ok.test, user u@plain.test"]
    );
    assert!(matches!(
        resolve(&router, "u@plain.test"),
        Route::Smtp {
            is_relay: false,
            ..
        }
    ));
}

#[test]
fn a_sandbox_keeps_remote_mail_and_says_why() {
    let mut site = Site::new();
    site.parts.options.remote = Remote::LoopbackOnly;
    let router = Router::new(site.parts).unwrap();
    for held in ["x@ok.test", "x@[192.0.2.1]", "x@[host.test]"] {
        match resolve(&router, held) {
            Route::Hold { reason } => assert!(reason.contains("smart_host"), "{reason}"),
            other => panic!("{held}: {other:?}"),
        }
    }
    assert!(matches!(
        resolve(&router, "x@[127.0.0.9]"),
        Route::Smtp { .. }
    ));
    assert!(matches!(
        resolve(&router, "x@[IPv6:::ffff:127.0.0.9]"),
        Route::Smtp { .. }
    ));
    let (lines, code) = router.verify_lines("x@ok.test", false);
    assert_eq!(
        lines,
        ["x@ok.test... deliverable: mailer esmtp, host ok.test, user x@ok.test"]
    );
    assert_eq!(code, ExitCode::Ok);
}

#[test]
fn strangers_reach_this_host_alone() {
    let router = router();
    for own in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
        assert_eq!(recipient_answer(&router, "x@ok.test", own), "ok", "{own}");
    }
    for stranger in ["127.0.0.2", "127.0.0.50", "192.0.2.1", "::2"] {
        for (address, shown) in [
            ("x@ok.test", "x@ok.test"),
            (
                "user%ok.test@gold.example.test",
                "user%ok.test@gold.example.test",
            ),
            ("ok.test!user", "ok.test!user"),
            ("x%y%ok.test@gold", "x%y%ok.test@gold"),
        ] {
            assert_eq!(
                recipient_answer(&router, address, stranger),
                format!("550 5.7.1 <{shown}>... Relaying denied"),
                "{stranger}"
            );
        }
        assert_eq!(
            recipient_answer(&router, "alice@gold.example.test", stranger),
            "ok"
        );
        assert_eq!(recipient_answer(&router, "POSTMASTER", stranger), "ok");
        assert_eq!(recipient_answer(&router, "info", stranger), "ok");
        assert_eq!(
            recipient_answer(&router, "nosuch@gold", stranger),
            "550 5.1.1 <nosuch@gold>... User unknown"
        );
        for (address, kind) in [("/etc/passwd", "files"), ("\"|/bin/cat\"", "programs")] {
            assert_eq!(
                recipient_answer(&router, address, stranger),
                format!("550 5.7.1 <{address}>... Cannot mail directly to {kind}")
            );
        }
        // With a domain it is a name like any other.
        assert_eq!(
            recipient_answer(&router, "/etc/passwd@gold", stranger),
            "550 5.1.1 </etc/passwd@gold>... User unknown"
        );
    }
}

#[test]
fn relay_domains_and_verified_names_allow_relaying() {
    let site = Site::new();
    fs::write(site.path("relay-domains"), "relay.test\n192.0.2\n").unwrap();
    let router = Router::new(site.parts).unwrap();
    assert_eq!(
        recipient_answer(&router, "x@sub.relay.test", "127.0.0.9"),
        "ok"
    );
    assert_eq!(recipient_answer(&router, "x@ok.test", "192.0.2.77"), "ok");
    assert!(recipient_answer(&router, "x@ok.test", "192.0.20.7").starts_with("550"));
    let mut named = client("203.0.113.1");
    named.name = Some("mail.relay.test".into());
    assert_eq!(router.may_relay(&named), Ok(true));
    named.name = Some("gold.example.test".into());
    assert_eq!(router.may_relay(&named), Ok(true));
    named.name = Some("evilrelay.test".into());
    assert_eq!(router.may_relay(&named), Ok(false));
}

#[test]
fn senders_need_a_domain() {
    let router = router();
    assert_eq!(
        sender_answer(&router, "s"),
        "553 5.5.4 <s>... Domain name required for sender address s"
    );
    assert!(sender_answer(&router, "s@localhost").contains("Real domain name required"));
    assert_eq!(sender_answer(&router, ""), "ok");
    assert_eq!(sender_answer(&router, "s@sender.test"), "ok");
    let sender = ReversePath::parse("s@localhost").unwrap();
    let own = router.check_sender(&sender, &client("127.0.0.1"));
    assert_eq!(own, Ok(Some(Disposition::Accept)));
}

#[test]
fn the_access_map_answers_as_sendmails_does() {
    let mut site = Site::new();
    site.parts.access = Some(Table::fixed("access", ACCESS));
    let router = Router::new(site.parts).unwrap();
    for (sender, answer) in [
        (
            "bad@spammer.test",
            "550 5.7.1 <bad@spammer.test>... Access denied",
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
            "x@a.sub.reject.test",
            "550 5.7.1 <x@a.sub.reject.test>... Access denied",
        ),
        (
            "x@very.deep.test",
            "550 5.7.1 <x@very.deep.test>... no deep",
        ),
        (
            "user1+x@sender.test",
            "550 5.7.1 <user1+x@sender.test>... Access denied",
        ),
        ("", "ok"),
        ("x@skip.test", "553 5.3.0 <x@skip.test>... SKIP"),
        (
            "junk@sender.test",
            "553 5.3.0 <junk@sender.test>... JUNKACTION",
        ),
        (
            "BAD@Spammer.Test",
            "550 5.7.1 <BAD@Spammer.Test>... Access denied",
        ),
        ("disc@sender.test", "discard"),
    ] {
        assert_eq!(sender_answer(&router, sender), answer);
    }
    for (address, answer) in [
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
        ("bob", "ok"),
        ("x@sub.relayed.test", "ok"),
        (
            "user@single.relay.test",
            "550 5.7.1 <user@single.relay.test>... Relaying denied",
        ),
    ] {
        assert_eq!(recipient_answer(&router, address, "127.0.0.50"), answer);
    }
    let connect = |address: &str| match router.check_client(&client(address)) {
        Ok(_) => "ok".to_owned(),
        Err(refusal) => refusal.bare().to_line(),
    };
    assert_eq!(connect("127.0.0.60"), "550 5.7.1 Access denied");
    assert_eq!(connect("127.0.0.62"), "450 4.7.1 connect later");
    assert_eq!(connect("127.0.1.5"), "550 5.7.1 whole net rejected");
    assert_eq!(connect("127.0.0.64"), "ok");
    assert_eq!(recipient_answer(&router, "x@ok.test", "127.0.0.61"), "ok");
    assert!(recipient_answer(&router, "x@ok.test", "127.0.0.64").starts_with("550 5.7.1"));
    let mut named = client("203.0.113.9");
    named.name = Some("a.spam.connect.test".into());
    assert!(router.check_client(&named).is_err());
}

#[test]
fn vrfy_and_expn_answer_as_sendmails_do() {
    let router = router();
    let vrfy = |text: &str| match router.verify(text) {
        Ok(verified) => verified.reply().to_line(),
        Err(reply) => reply.to_line(),
    };
    for (text, answer) in [
        ("alice", "250 2.1.5 <alice@gold.example.test>"),
        (
            "<bob@gold.example.test>",
            "250 2.1.5 <bob@gold.example.test>",
        ),
        ("postmaster", "250 2.1.5 <postmaster@gold.example.test>"),
        ("nosuch", "550 5.1.1 nosuch... User unknown"),
        ("info", "250 2.1.5 <info@gold.example.test>"),
        ("user@ok.test", "252 2.1.5 <user@ok.test>"),
        ("\"alice\"", "250 2.1.5 <alice@gold.example.test>"),
        ("<>", "550 5.1.1 <>... User unknown"),
        ("loop1", "250 2.1.5 <loop1@gold.example.test>"),
    ] {
        assert_eq!(vrfy(text), answer);
    }
    let expn = |text: &str| -> Result<Vec<String>, String> {
        router
            .expand_shown(text)
            .map_err(|reply: Reply| reply.to_line())
    };
    let at = |names: &[&str]| {
        Ok(names
            .iter()
            .map(|name| format!("<{name}@gold.example.test>"))
            .collect::<Vec<_>>())
    };
    assert_eq!(expn("comment"), at(&["bob", "alice"]));
    assert_eq!(expn("alice"), at(&["alice"]));
    assert_eq!(expn("rem"), Ok(vec!["<someone@ok.test>".into()]));
    assert_eq!(
        expn("topipe"),
        Ok(vec!["<\"|/usr/bin/vacation alice, x\">".into()])
    );
    assert_eq!(
        expn("nosuch"),
        Err("550 5.1.1 nosuch... User unknown".into())
    );
    assert_eq!(
        expn("loop1"),
        Err("554 5.4.6 aliasing/forwarding loop broken".into())
    );
}

#[test]
fn an_unreadable_class_file_refuses_the_start() {
    let site = Site::new();
    fs::create_dir(site.path("local-host-names")).unwrap();
    let error = Router::new(site.parts).err().unwrap();
    assert!(error.to_string().contains("local-host-names"), "{error}");
}
