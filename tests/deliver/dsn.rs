//! Reports: their exact text, what a MIME parser makes of them, and that nothing from outside can forge their fields.

use std::time::Duration;

use diligence::address::{Address, ReversePath};
use diligence::deliver::dsn::{
    Audience, DsnFacts, Fate, RETURNED_BYTES_MAX, ReportKind, ReportedRecipient, Returned, compose,
    interval_text, subject,
};
use diligence::envelope::{
    Delivery, DsnReturn, Envelope, MessageId, Outcome, ProgramEnd, Recipient,
};
use diligence::status::Status;
use mail_parser::{MessageParser, MimeHeaders, PartType};

/// 2026-11-22 17:42:52 UTC.
const NOW_MS: u64 = 1_795_369_372_000;
const CONTENT: &[u8] =
    b"Received: from client50.test\r\n\tby gold.example.test\r\nSubject: orig\r\nX-H: v\r\n\r\nbody line\r\n";

fn envelope() -> Envelope {
    let sender = Address::parse("alice@gold.example.test").unwrap();
    let mut envelope = Envelope::new(
        ReversePath::Mailbox(sender),
        vec![Recipient::new("u@permfail.test")],
    );
    envelope.arrival.unix_ms = NOW_MS;
    envelope.arrival.client_name = Some("client50.test".to_owned());
    envelope.arrival.client_address = Some("127.0.0.50".parse().unwrap());
    envelope
}

fn refused() -> ReportedRecipient {
    let mut outcome = Outcome::new(Delivery::Failed, Status::NO_USER, "esmtp", "User unknown");
    outcome.reply = Some("550 5.1.1 no such user here".to_owned());
    outcome.relay = "mx.permfail.test. [127.0.0.24]".to_owned();
    ReportedRecipient {
        shown: "<u@permfail.test>".to_owned(),
        address: "u@permfail.test".to_owned(),
        actual: "u@permfail.test".to_owned(),
        expanded_from: None,
        original_recipient: None,
        fate: Fate::Failed,
        outcome,
        attempted_unix_ms: NOW_MS,
    }
}

fn facts<'a>(
    envelope: &'a Envelope,
    recipients: &'a [ReportedRecipient],
    content: &'a [u8],
) -> DsnFacts<'a> {
    DsnFacts {
        kind: ReportKind::Failure,
        audience: Audience::Sender,
        to: "alice@gold.example.test",
        id: MessageId::parse("6AMHgqTn009395").unwrap(),
        now_unix_ms: NOW_MS,
        host_name: "gold.example.test",
        original_id: MessageId::parse("6AMHgqTn009393").unwrap(),
        envelope,
        recipients,
        returned: Returned {
            content,
            is_whole: true,
            is_body_allowed: true,
        },
    }
}

/// The text with dates replaced, as they depend on the system's time zone.
fn without_dates(bytes: &[u8]) -> String {
    let text = std::str::from_utf8(bytes).unwrap();
    assert!(
        !text.replace("\r\n", "").contains(['\r', '\n']),
        "line ends are CRLF"
    );
    let mut out = String::new();
    for line in text.split_inclusive("\r\n") {
        let line = line.trim_end();
        match line.find("Sun, 22 Nov").or(line.find("Fri, 27 Nov")) {
            Some(at) => out.push_str(&format!("{}DATE\n", &line[..at])),
            None => out.push_str(&format!("{line}\n")),
        }
    }
    out
}

/// A recipient that an alias led to, and how its program or file ended.
fn ended(alias: &str, target: &str, mailer: &str, status: Status, text: &str) -> ReportedRecipient {
    let is_file = target.starts_with('/');
    let mut outcome = Outcome::new(Delivery::Failed, status, mailer, text);
    outcome.program = Some(Box::new(ProgramEnd {
        exit_code: if is_file { 73 } else { 69 },
        output: if is_file {
            vec![format!("{target}: No such file or directory")]
        } else {
            vec!["text on stdout".to_owned(), "text on stderr".to_owned()]
        },
    }));
    ReportedRecipient {
        shown: if is_file {
            target.to_owned()
        } else {
            format!("\"{target}\"")
        },
        address: format!("{alias}@gold.example.test"),
        actual: if is_file {
            target.to_owned()
        } else {
            format!("\"{target}\"")
        },
        expanded_from: Some(format!("<{alias}>")),
        original_recipient: None,
        fate: Fate::Failed,
        outcome,
        attempted_unix_ms: NOW_MS,
    }
}

/// Transcript 60, part 9.
#[test]
fn programs_and_files_are_reported_with_what_they_said_and_their_exit_codes() {
    let envelope = envelope();
    let unavailable = Status::new(5, 0, 0);
    let recipients = [
        ended(
            "pipe69",
            "|failprog 69",
            "prog",
            unavailable,
            "Service unavailable",
        ),
        ended(
            "badfile",
            "/nonexistent/dir/file",
            "*file*",
            unavailable,
            "Can't create output",
        ),
    ];
    let report = without_dates(&compose(&facts(&envelope, &recipients, CONTENT)));
    let text = "\
   ----- The following addresses had permanent fatal errors -----
\"|failprog 69\"
    (reason: Service unavailable)
    (expanded from: <pipe69>)
/nonexistent/dir/file
    (reason: Can't create output)
    (expanded from: <badfile>)

   ----- Transcript of session follows -----
text on stdout
text on stderr
554 5.0.0 Service unavailable
550 5.0.0 /nonexistent/dir/file... Can't create output

";
    assert!(report.contains(text), "{report}");
    let fields = "\
Final-Recipient: RFC822; pipe69@gold.example.test
X-Actual-Recipient: X-Unix; |failprog 69
Action: failed
Status: 5.5.0
Diagnostic-Code: X-Unix; 69
Last-Attempt-Date: DATE

Final-Recipient: RFC822; badfile@gold.example.test
X-Actual-Recipient: X-Unix; /nonexistent/dir/file
Action: failed
Status: 5.3.0
Diagnostic-Code: X-Unix; 73
Last-Attempt-Date: DATE
";
    assert!(report.contains(fields), "{report}");
}

/// Transcript 60, part 16: loops and lists are told of without a name before them, and a missing MX is no answer of a
/// server.
#[test]
fn what_failed_before_a_server_was_asked_is_told_in_sendmails_words() {
    let failed = |shown: &str, status: Status, text: &str| ReportedRecipient {
        shown: shown.to_owned(),
        outcome: Outcome::new(Delivery::Failed, status, "local", text),
        ..refused()
    };
    let mut program = failed(
        "\"|/bin/cat\"",
        Status::new(5, 7, 1),
        "Unsafe for mailing to programs",
    );
    program.expanded_from = Some("<dave>".to_owned());
    let host = |relay: &str| {
        let text = format!("Host unknown (Name server: {relay}: host not found)");
        let mut host = failed("<u@badmx.test>", Status::new(5, 1, 2), &text);
        host.outcome.mailer = "esmtp".to_owned();
        host.outcome.relay = relay.to_owned();
        host
    };
    let mut own = failed(
        "<u@loop.test>",
        Status::new(5, 3, 5),
        "Local configuration error",
    );
    own.outcome.relay = "loop.test.".to_owned();
    let found = "MX list for loop.test. points back to gold.example.test";
    own.outcome.reply = Some(format!("554 5.3.5 {found}"));
    let recipients = [
        own,
        failed(
            "<loopa>",
            Status::new(5, 4, 6),
            "aliasing/forwarding loop broken (11 aliases deep; 10 max)",
        ),
        failed(
            "<badinc>",
            Status::new(5, 2, 4),
            ":include:/nonexist... Cannot open /nonexist: No such file or directory",
        ),
        program,
        host("nohost.test."),
    ];
    let envelope = envelope();
    let report = without_dates(&compose(&facts(&envelope, &recipients, CONTENT)));
    let text = "\
   ----- The following addresses had permanent fatal errors -----
<u@loop.test>
<loopa>
<badinc>
\"|/bin/cat\"
    (expanded from: <dave>)
<u@badmx.test>

   ----- Transcript of session follows -----
554 5.0.0 MX list for loop.test. points back to gold.example.test
554 5.3.5 Local configuration error
554 5.4.6 aliasing/forwarding loop broken (11 aliases deep; 10 max)
550 5.2.4 :include:/nonexist... Cannot open /nonexist: No such file or directory
550 5.7.1 \"|/bin/cat\"... Address <dave> is unsafe for mailing to programs
550 5.1.2 <u@badmx.test>... Host unknown (Name server: nohost.test.: host not found)

";
    assert!(report.contains(text), "{report}");
    assert!(
        report.contains("Remote-MTA: DNS; nohost.test\n"),
        "{report}"
    );
    assert!(!report.contains("Diagnostic-Code"), "{report}");
    // A recipient's own host that is unknown is.
    let recipients = [host("nonexist.test")];
    let report = without_dates(&compose(&facts(&envelope, &recipients, CONTENT)));
    for line in [
        "    (reason: 550 Host unknown)\n",
        "Diagnostic-Code: SMTP; 550 Host unknown\n",
    ] {
        assert!(report.contains(line), "{report}");
    }
}

#[test]
fn a_refused_recipient_is_reported_in_sendmails_words() {
    let envelope = envelope();
    let recipients = [refused()];
    let report = compose(&facts(&envelope, &recipients, CONTENT));
    let expected = "\
Received: from localhost (localhost)
\tby gold.example.test (VERSION/VERSION) id 6AMHgqTn009395;
\tDATE
Date: DATE
From: Mail Delivery Subsystem <MAILER-DAEMON@gold.example.test>
Message-Id: <202611221742.6AMHgqTn009395@gold.example.test>
To: <alice@gold.example.test>
MIME-Version: 1.0
Content-Type: multipart/report; report-type=delivery-status;
\tboundary=\"6AMHgqTn009395.1795369372/gold.example.test\"
Subject: Returned mail: see transcript for details
Auto-Submitted: auto-generated (failure)

This is a MIME-encapsulated message

--6AMHgqTn009395.1795369372/gold.example.test

The original message was received at DATE
from client50.test [127.0.0.50]

   ----- The following addresses had permanent fatal errors -----
<u@permfail.test>
    (reason: 550 5.1.1 no such user here)

   ----- Transcript of session follows -----
... while talking to mx.permfail.test.:
<<< 550 5.1.1 no such user here
550 5.1.1 <u@permfail.test>... User unknown

--6AMHgqTn009395.1795369372/gold.example.test
Content-Type: message/delivery-status

Reporting-MTA: dns; gold.example.test
Received-From-MTA: DNS; client50.test
Arrival-Date: DATE

Final-Recipient: RFC822; u@permfail.test
X-Actual-Recipient: rfc822; u@permfail.test
Action: failed
Status: 5.1.1
Remote-MTA: DNS; mx.permfail.test
Diagnostic-Code: SMTP; 550 5.1.1 no such user here
Last-Attempt-Date: DATE

--6AMHgqTn009395.1795369372/gold.example.test
Content-Type: message/rfc822

Return-Path: <alice@gold.example.test>
Received: from client50.test
\tby gold.example.test
Subject: orig
X-H: v

body line

--6AMHgqTn009395.1795369372/gold.example.test--

";
    let expected = expected.replace("VERSION", env!("CARGO_PKG_VERSION"));
    assert_eq!(without_dates(&report), expected);
}

#[test]
fn a_mime_parser_finds_the_three_parts() {
    let envelope = envelope();
    let recipients = [refused()];
    let report = compose(&facts(&envelope, &recipients, CONTENT));
    let message = MessageParser::default().parse(&report).unwrap();
    let kind = message.content_type().unwrap();
    assert_eq!(
        (kind.ctype(), kind.subtype()),
        ("multipart", Some("report"))
    );
    assert_eq!(kind.attribute("report-type"), Some("delivery-status"));
    assert_eq!(
        message.subject(),
        Some("Returned mail: see transcript for details")
    );
    let PartType::Multipart(parts) = &message.part(0).unwrap().body else {
        panic!("multipart expected");
    };
    assert_eq!(parts.len(), 3);
    let status = message.part(parts[1]).unwrap();
    assert_eq!(
        status.content_type().unwrap().subtype(),
        Some("delivery-status")
    );
    let PartType::Message(inner) = &message.part(parts[2]).unwrap().body else {
        panic!("message/rfc822 expected");
    };
    assert_eq!(inner.subject(), Some("orig"));
    assert_eq!(inner.body_text(0).unwrap().trim_end(), "body line");
}

#[test]
fn a_delay_warns_and_says_until_when() {
    let envelope = envelope();
    let mut recipient = refused();
    recipient.fate = Fate::Delayed;
    recipient.outcome = Outcome::new(
        Delivery::Deferred,
        Status::new(4, 4, 1),
        "esmtp",
        "Deferred: Connection refused by mx.dead.test.",
    );
    recipient.outcome.relay = "mx.dead.test.".to_owned();
    let recipients = [recipient];
    let mut facts = facts(&envelope, &recipients, CONTENT);
    facts.kind = ReportKind::Delay {
        age: Duration::from_secs(4 * 3600),
        give_up_age: Duration::from_secs(5 * 86_400),
    };
    let text = without_dates(&compose(&facts));
    for part in [
        "Subject: Warning: could not send message for past 4 hours\n",
        "Auto-Submitted: auto-generated (warning-timeout)\n",
        "    **      THIS IS A WARNING MESSAGE ONLY      **\n",
        "<u@permfail.test>... Deferred: Connection refused by mx.dead.test.\n",
        "Warning: message still undelivered after 4 hours\n",
        "Will keep trying until message is 5 days old\n",
        "Action: delayed\nStatus: 4.4.1\nRemote-MTA: DNS; mx.dead.test\nLast-Attempt-Date: DATE\nWill-Retry-Until: DATE\n",
        "Content-Type: message/rfc822\n",
    ] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
    assert!(!text.contains("permanent fatal errors"));
}

#[test]
fn an_expired_recipient_failed_with_4_4_7() {
    let envelope = envelope();
    let mut recipient = refused();
    recipient.fate = Fate::Expired(Duration::from_secs(5 * 86_400));
    recipient.expanded_from = Some("<via@gold.example.test>".to_owned());
    recipient.outcome.text = "Deferred: 450 4.2.1 mailbox busy, try later".to_owned();
    recipient.outcome.reply = Some("450 4.2.1 mailbox busy, try later".to_owned());
    let recipients = [recipient];
    let text = without_dates(&compose(&facts(&envelope, &recipients, CONTENT)));
    for part in [
        "    (reason: 450 4.2.1 mailbox busy, try later)\n    (expanded from: <via@gold.example.test>)\n",
        "Message could not be delivered for 5 days\nMessage will be deleted from queue\n",
        "Action: failed\nStatus: 4.4.7\n",
        "Diagnostic-Code: SMTP; 450 4.2.1 mailbox busy, try later\n",
    ] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
}

#[test]
fn success_returns_the_header_alone() {
    let mut envelope = envelope();
    envelope.envelope_id = Some("QQ314159".to_owned());
    let local = ReportedRecipient {
        shown: "<bob>".to_owned(),
        address: "bob@gold.example.test".to_owned(),
        actual: "bob@gold.example.test".to_owned(),
        original_recipient: Some("rfc822;bob@elsewhere.test".to_owned()),
        fate: Fate::Delivered,
        outcome: Outcome::new(Delivery::Delivered, Status::OK, "local", "Sent"),
        ..refused()
    };
    let mut relayed = refused();
    relayed.fate = Fate::Relayed;
    relayed.outcome.status = Status::OK;
    relayed.outcome.reply = None;
    let recipients = [local, relayed];
    let mut facts = facts(&envelope, &recipients, CONTENT);
    facts.kind = ReportKind::Success;
    let text = without_dates(&compose(&facts));
    for part in [
        "Subject: Return receipt\n",
        "<bob>  (successfully delivered to mailbox)\n<u@permfail.test>  (relayed to non-DSN-aware mailer)\n",
        "<bob>... Successfully delivered\n<u@permfail.test>... relayed; expect no further notifications\n",
        "Original-Envelope-Id: QQ314159\nReporting-MTA:",
        "Original-Recipient: rfc822;bob@elsewhere.test\nFinal-Recipient: RFC822; bob@gold.example.test\n",
        "Action: delivered (to mailbox)\nStatus: 2.1.5\n",
        "Action: relayed (to non-DSN-aware mailer)\nStatus: 2.0.0\n",
        "Content-Type: text/rfc822-headers\n",
    ] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
    assert!(!text.contains("body line"));
}

#[test]
fn the_body_is_left_out_when_asked_or_too_large() {
    let recipients = [refused()];
    let mut headers = envelope();
    headers.dsn_return = DsnReturn::Headers;
    let asked = compose(&facts(&headers, &recipients, CONTENT));
    let large = [CONTENT, &vec![b'x'; RETURNED_BYTES_MAX][..]].concat();
    let envelope = envelope();
    let cut = compose(&facts(&envelope, &recipients, &large));
    let mut forbidden = facts(&envelope, &recipients, CONTENT);
    forbidden.returned.is_body_allowed = false;
    for report in [asked, cut, compose(&forbidden)] {
        let text = String::from_utf8(report).unwrap();
        assert!(text.contains("Content-Type: text/rfc822-headers\r\n"));
        assert!(text.contains("X-H: v\r\n\r\n--"));
        assert!(!text.contains("body line"));
    }
}

#[test]
fn postmaster_learns_the_id() {
    let mut envelope = envelope();
    envelope.reverse_path = ReversePath::Null;
    let recipients = [refused()];
    let mut facts = facts(&envelope, &recipients, CONTENT);
    facts.audience = Audience::Postmaster;
    facts.to = "postmaster@gold.example.test";
    let text = without_dates(&compose(&facts));
    for part in [
        "To: postmaster@gold.example.test\n",
        "Subject: Postmaster notify: see transcript for details\n",
        "Auto-Submitted: auto-generated (postmaster-notification)\n",
        "from client50.test [127.0.0.50]\nwith id 6AMHgqTn009393\n",
        "Return-Path: <>\n",
    ] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
}

#[test]
fn hostile_replies_and_content_forge_nothing() {
    let envelope = envelope();
    let mut recipient = refused();
    recipient.outcome.reply =
        Some("550 no\r\nAction: delivered\r\n\r\n--x\u{0}\u{9b}\u{e9}".to_owned());
    recipient.address = "\"a\r\nStatus: 2.0.0\"@b.test".to_owned();
    let recipients = [recipient];
    let hostile = b"Subject: x\r\n\r\n--6AMHgqTn009395.1795369372/gold.example.test--\r\n\xe9\r\n";
    let report = compose(&facts(&envelope, &recipients, hostile));
    let head = String::from_utf8_lossy(&report).into_owned();
    assert!(!head.contains("\nAction: delivered"));
    assert!(!head.contains("\nStatus: 2.0.0"));
    assert!(head.contains("Content-Transfer-Encoding: 8bit\r\n"));
    let message = MessageParser::default().parse(&report).unwrap();
    let PartType::Multipart(parts) = &message.part(0).unwrap().body else {
        panic!("multipart expected");
    };
    assert_eq!(parts.len(), 3, "the content's own boundary ends nothing");
}

#[test]
fn spans_read_as_sendmail_writes_them() {
    for (seconds, text) in [
        (0, "0 seconds"),
        (1, "1 second"),
        (4 * 3600, "4 hours"),
        (5 * 86_400, "5 days"),
        (9 * 86_400, "9 days"),
        (7 * 86_400, "1 week"),
        (86_400 + 7_260, "1 day 2 hours 1 minute"),
    ] {
        assert_eq!(interval_text(Duration::from_secs(seconds)), text);
    }
    assert_eq!(
        subject(ReportKind::Success, Audience::Sender),
        "Return receipt"
    );
}
