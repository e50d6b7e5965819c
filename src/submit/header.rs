//! A message's header: taken apart without loss, completed, and put together again.
//!
//! Fields keep their order, their folding and their bytes. Completion adds what is missing in front, in Sendmail's
//! order (Received, Resent-Date, Date, Resent-From, From, Resent-Message-Id, Message-Id, X-Authentication-Warning),
//! gives addresses without a domain this host's, and takes out what must not travel: Return-Path, Full-Name,
//! Content-Length, and Bcc (all of it if the header names another recipient, else its value). Pure.
//!
//! Source: RFC 5322 3.6, RFC 6409 8, Sendmail's submit.cf (`H` lines).

use crate::address::list;
use crate::clock::date::arpa_date;

/// A field: name and value as they came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    name: String,
    /// All after the colon: leading blanks and folding (CRLF and blank) included, the last line end not.
    value: Vec<u8>,
}

impl Field {
    /// The name as written.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All after the colon, folding included.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        &self.value
    }

    fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }
}

/// The fields of a message in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header {
    fields: Vec<Field>,
    /// The line `From name date` that mailboxes put before a message, if the input had one.
    pub unix_from: Option<Vec<u8>>,
}

/// Fields that hold addresses to be completed.
const ADDRESS_FIELDS: [&str; 16] = [
    "from",
    "sender",
    "reply-to",
    "to",
    "cc",
    "bcc",
    "apparently-to",
    "errors-to",
    "disposition-notification-to",
    "resent-from",
    "resent-sender",
    "resent-reply-to",
    "resent-to",
    "resent-cc",
    "resent-bcc",
    "return-receipt-to",
];

/// Fields that never leave with the message.
const REMOVED_FIELDS: [&str; 3] = ["return-path", "full-name", "content-length"];

/// Where a line of input stands in a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineKind {
    /// `name: value`; the position of the colon.
    Field(usize),
    /// Goes on with the field before.
    Continuation,
    /// Belongs to no header: the body has begun.
    Other,
}

/// What a line without its line end is. A line that does not begin with a name and a colon is no field; blanks
/// between them are taken, as Sendmail does (RFC 5322 4.5).
#[must_use]
pub fn line_kind(line: &[u8]) -> LineKind {
    if line.first().is_some_and(|b| matches!(b, b' ' | b'\t')) {
        return LineKind::Continuation;
    }
    let name_len = line
        .iter()
        .take_while(|b| matches!(b, 33..=126) && **b != b':')
        .count();
    let blanks = line
        .iter()
        .skip(name_len)
        .take_while(|b| matches!(b, b' ' | b'\t'))
        .count();
    let colon = name_len + blanks;
    if name_len > 0 && line.get(colon) == Some(&b':') {
        LineKind::Field(colon)
    } else {
        LineKind::Other
    }
}

/// What completion needs to know.
#[derive(Debug, Clone)]
pub struct Completion<'a> {
    /// This host's name, `$j`.
    pub host: &'a str,
    /// Program and version as the Received field shows them, `8.17/8.17/Submit`.
    pub version: &'a str,
    /// The id the submission is logged under.
    pub queue_id: &'a str,
    /// Now, Unix milliseconds.
    pub unix_ms: u64,
    /// Login name of the submitter.
    pub submitter: &'a str,
    /// Protocol and host that `-p` or `-oMr`, `-oMs` claim the message came by; each empty if not given.
    pub protocol: &'a str,
    /// See `protocol`.
    pub from_host: &'a str,
    /// The sender with a domain; `None` for the null sender, which gets no From field.
    pub sender: Option<&'a str>,
    /// The sender's full name, if one is known.
    pub full_name: Option<&'a str>,
    /// The only recipient, as given; `None` if there are several.
    pub sole_recipient: Option<&'a str>,
    /// Texts for X-Authentication-Warning, without the host name.
    pub warnings: &'a [String],
    /// Whether addresses without a domain are left as they are: a gateway passes on what is not its own (`-G`).
    pub is_gateway: bool,
}

impl Header {
    /// Adds a field from a line that [`line_kind`] found to be one, the colon at `colon`.
    pub fn push_line(&mut self, line: &[u8], colon: usize) {
        let (name, value) = line.split_at_checked(colon).unwrap_or((line, b""));
        self.fields.push(Field {
            name: String::from_utf8_lossy(name).trim_end().to_owned(),
            value: value.get(1..).unwrap_or_default().to_vec(),
        });
    }

    /// Adds a continuation line to the last field.
    pub fn push_continuation(&mut self, line: &[u8]) {
        if let Some(field) = self.fields.last_mut() {
            field.value.extend_from_slice(b"\r\n");
            field.value.extend_from_slice(line);
        }
    }

    /// All fields in order.
    #[must_use]
    pub fn fields(&self) -> &[Field] {
        &self.fields
    }

    /// The first field of this name, compared without case.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|field| field.is(name))
    }

    /// The first field's value on one line, blanks around it taken off; what is not UTF-8 is replaced.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<String> {
        let field = self.get(name)?;
        let text = String::from_utf8_lossy(&field.value).replace(['\r', '\n'], "");
        Some(text.trim().to_owned())
    }

    /// How many hops the message has behind it: its Received fields.
    #[must_use]
    pub fn hops(&self) -> usize {
        self.fields.iter().filter(|f| f.is("received")).count()
    }

    /// The message's class by its Precedence field, as submit.cf maps it; 0 if unknown.
    #[must_use]
    pub fn class(&self) -> i32 {
        match self
            .text("precedence")
            .unwrap_or_default()
            .to_ascii_lowercase()
            .as_str()
        {
            "special-delivery" => 100,
            "list" => -30,
            "bulk" => -60,
            "junk" => -100,
            _ => 0,
        }
    }

    /// Whether the message is being sent on by somebody who got it (RFC 5322 3.6.6).
    #[must_use]
    pub fn is_resent(&self) -> bool {
        self.fields.iter().any(|field| {
            field
                .name
                .get(..7)
                .is_some_and(|head| head.eq_ignore_ascii_case("resent-"))
        })
    }

    /// The values of the fields that name recipients for `-t`: those of Resent- fields alone if there is any.
    pub fn recipient_lists(&self) -> impl Iterator<Item = &[u8]> {
        const PLAIN: [&str; 4] = ["to", "cc", "bcc", "apparently-to"];
        const RESENT: [&str; 3] = ["resent-to", "resent-cc", "resent-bcc"];
        let names: &'static [&'static str] = if self.is_resent() { &RESENT } else { &PLAIN };
        self.fields
            .iter()
            .filter(move |field| names.iter().any(|name| field.is(name)))
            .map(|field| field.value.as_slice())
    }

    /// The completed header as it will be sent, CRLF after each line, without the empty line that ends it.
    #[must_use]
    pub fn complete(&self, with: &Completion<'_>) -> Vec<u8> {
        let mut out = Vec::with_capacity(
            512 + self
                .fields
                .iter()
                .map(|f| f.value.len() + 16)
                .sum::<usize>(),
        );
        self.add_missing(with, &mut out);
        for warning in with.warnings {
            line(
                &mut out,
                "X-Authentication-Warning",
                &format!("{}: {warning}", with.host),
            );
        }
        let has_visible_recipient = ["to", "cc", "apparently-to"]
            .iter()
            .any(|name| self.get(name).is_some());
        for field in &self.fields {
            if REMOVED_FIELDS.iter().any(|name| field.is(name)) {
                continue;
            }
            if field.is("bcc") || field.is("resent-bcc") {
                // RFC 5322 3.6.3: nobody may see it. Kept empty where it is the only recipient field.
                if !has_visible_recipient {
                    line(&mut out, field.name(), "");
                }
                continue;
            }
            put_field(&mut out, field, (!with.is_gateway).then_some(with.host));
        }
        out
    }

    fn add_missing(&self, with: &Completion<'_>, out: &mut Vec<u8>) {
        let now = arpa_date(with.unix_ms);
        line(out, "Received", &received(with, &now));
        let is_resent = self.is_resent();
        let mut add = |name: &str, resent: &str, value: &str| {
            if is_resent && self.get(resent).is_none() {
                line(out, resent, value);
            }
            if self.get(name).is_none() {
                line(out, name, value);
            }
        };
        let date = self
            .unix_from
            .as_deref()
            .and_then(crate::clock::date::unix_from_date)
            .unwrap_or(now);
        add("Date", "Resent-Date", &date);
        if let Some(sender) = with.sender {
            add("From", "Resent-From", &mailbox(with.full_name, sender));
        }
        let stamp = crate::clock::date::message_id_stamp(with.unix_ms);
        add(
            "Message-Id",
            "Resent-Message-Id",
            &format!("<{stamp}.{}@{}>", with.queue_id, with.host),
        );
    }
}

fn received(with: &Completion<'_>, now: &str) -> String {
    let from = if with.from_host.is_empty() {
        format!("(from {}@localhost)", with.submitter)
    } else {
        format!("from {} ({}@localhost)", with.from_host, with.submitter)
    };
    let protocol = if with.protocol.is_empty() {
        String::new()
    } else {
        format!(" with {}", with.protocol)
    };
    let recipient = match with.sole_recipient {
        Some(recipient) => format!("\r\n\tfor {recipient}; "),
        None => ";\r\n\t".to_owned(),
    };
    format!(
        "{from}\r\n\tby {} ({}){protocol} id {}{recipient}{now}",
        with.host, with.version, with.queue_id
    )
}

/// `name <address>`, the name quoted where it must be (RFC 5322 3.2.3).
fn mailbox(full_name: Option<&str>, address: &str) -> String {
    let Some(name) = full_name.filter(|name| !name.is_empty()) else {
        return address.to_owned();
    };
    if name.contains([
        '@', ',', ';', ':', '\\', '(', ')', '[', ']', '.', '\'', '"', '<', '>',
    ]) {
        let escaped = name.replace('\\', "\\\\").replace('"', "\\\"");
        format!("\"{escaped}\" <{address}>")
    } else {
        format!("{name} <{address}>")
    }
}

fn line(out: &mut Vec<u8>, name: &str, value: &str) {
    out.extend_from_slice(name.as_bytes());
    out.push(b':');
    if !value.is_empty() {
        out.push(b' ');
        out.extend_from_slice(value.as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

fn put_field(out: &mut Vec<u8>, field: &Field, host: Option<&str>) {
    out.extend_from_slice(field.name.as_bytes());
    out.push(b':');
    let mut copied = 0;
    if let Some(host) = host
        && ADDRESS_FIELDS.iter().any(|name| field.is(name))
    {
        for (at, insert) in list::completions(&field.value, host) {
            out.extend_from_slice(field.value.get(copied..at).unwrap_or_default());
            out.extend_from_slice(insert.as_bytes());
            copied = at;
        }
    }
    out.extend_from_slice(field.value.get(copied..).unwrap_or_default());
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(text: &str) -> Header {
        let mut header = Header::default();
        for line in text.lines() {
            match line_kind(line.as_bytes()) {
                LineKind::Field(colon) => header.push_line(line.as_bytes(), colon),
                LineKind::Continuation => header.push_continuation(line.as_bytes()),
                LineKind::Other => panic!("{line}"),
            }
        }
        header
    }

    fn with<'a>() -> Completion<'a> {
        Completion {
            host: "gold.example.test",
            version: "8.17.1.9/8.17.1.9/Submit",
            queue_id: "6AMHbqgS007585",
            unix_ms: 1_795_369_072_000,
            submitter: "alice",
            protocol: "",
            from_host: "",
            sender: Some("alice@gold.example.test"),
            full_name: Some("Alice B. O'Neil"),
            sole_recipient: Some("bob"),
            warnings: &[],
            is_gateway: false,
        }
    }

    fn complete(text: &str, with: &Completion<'_>) -> String {
        String::from_utf8(header(text).complete(with)).unwrap()
    }

    fn names(text: &str) -> Vec<String> {
        text.split("\r\n")
            .filter(|line| !line.is_empty() && !line.starts_with(['\t', ' ']))
            .map(|line| line.split(':').next().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn a_bare_message_gets_the_fields_in_sendmails_order() {
        let out = complete("Subject: gecos with comma and quote", &with());
        let date = arpa_date(1_795_369_072_000);
        assert_eq!(
            out,
            format!(
                "Received: (from alice@localhost)\r\n\
                 \tby gold.example.test (8.17.1.9/8.17.1.9/Submit) id 6AMHbqgS007585\r\n\
                 \tfor bob; {date}\r\n\
                 Date: {date}\r\n\
                 From: \"Alice B. O'Neil\" <alice@gold.example.test>\r\n\
                 Message-Id: <202611221737.6AMHbqgS007585@gold.example.test>\r\n\
                 Subject: gecos with comma and quote\r\n"
            )
        );
    }

    #[test]
    fn what_is_given_stays_where_it_is() {
        let out = complete(
            "From: Fake <fake@sender.test>\nSender: x\nDate: Tue, 2 Jan 2001 03:04:05 -0500\nSubject: given From",
            &with(),
        );
        assert_eq!(
            names(&out),
            [
                "Received",
                "Message-Id",
                "From",
                "Sender",
                "Date",
                "Subject"
            ]
        );
        assert!(out.contains("\r\nSender: x@gold.example.test\r\n"));
        assert!(out.contains("\r\nFrom: Fake <fake@sender.test>\r\n"));
    }

    #[test]
    fn warnings_stand_before_the_given_fields_and_several_recipients_hide_the_for() {
        let warnings = ["alice set sender to carol using -f".to_owned()];
        let out = complete(
            "Subject: x",
            &Completion {
                sole_recipient: None,
                warnings: &warnings,
                full_name: None,
                ..with()
            },
        );
        assert!(out.contains("/Submit) id 6AMHbqgS007585;\r\n\t"));
        assert!(out.contains(
            "@gold.example.test>\r\nX-Authentication-Warning: gold.example.test: alice set sender to carol using -f\r\nSubject: x\r\n"
        ));
        assert!(out.contains("\r\nFrom: alice@gold.example.test\r\n"));
    }

    #[test]
    fn secret_and_internal_fields_do_not_leave() {
        let given = "Return-Path: <old@x.test>\nBcc: secret@x.test\nFull-Name: F\nContent-Length: 9\nLines: 5\nTo: bob";
        let out = complete(given, &with());
        assert_eq!(
            names(&out),
            ["Received", "Date", "From", "Message-Id", "Lines", "To"]
        );
        assert!(!out.contains("secret"));
        let out = complete("Bcc: secret@x.test\nSubject: x", &with());
        assert!(out.contains("\r\nBcc:\r\nSubject: x\r\n") && !out.contains("secret"));
    }

    #[test]
    fn a_gateway_leaves_addresses_alone() {
        let out = complete(
            "To: bob",
            &Completion {
                is_gateway: true,
                ..with()
            },
        );
        assert!(out.ends_with("\r\nTo: bob\r\n"));
    }

    #[test]
    fn the_null_sender_has_no_from_field() {
        let out = complete(
            "Subject: x",
            &Completion {
                sender: None,
                ..with()
            },
        );
        assert_eq!(names(&out), ["Received", "Date", "Message-Id", "Subject"]);
    }

    #[test]
    fn resent_messages_get_resent_fields_and_resent_recipients() {
        let given = header(
            "From: a@b.test\nTo: first@b.test\nDate: Tue, 2 Jan 2001 03:04:05 -0500\nMessage-Id: <kept@b>\nResent-To: carol\nResent-Bcc: dave",
        );
        let lists: Vec<_> = given.recipient_lists().collect();
        assert_eq!(lists, [b" carol".as_slice(), b" dave"]);
        let out = String::from_utf8(given.complete(&with())).unwrap();
        assert_eq!(
            names(&out),
            [
                "Received",
                "Resent-Date",
                "Resent-From",
                "Resent-Message-Id",
                "From",
                "To",
                "Date",
                "Message-Id",
                "Resent-To"
            ]
        );
    }

    #[test]
    fn folding_blanks_and_odd_bytes_stay() {
        let mut header = Header::default();
        header.push_line(b"X-Odd :  a\t \xe9 ", 6);
        header.push_continuation(b"\t  more");
        header.push_line(b"Subject:no blank", 7);
        let out = header.complete(&with());
        let tail = b"X-Odd:  a\t \xe9 \r\n\t  more\r\nSubject:no blank\r\n";
        assert!(out.ends_with(tail));
    }

    #[test]
    fn lines_are_told_apart() {
        assert_eq!(line_kind(b"Subject: x"), LineKind::Field(7));
        assert_eq!(line_kind(b"Subject : x"), LineKind::Field(8));
        assert_eq!(line_kind(b" x: y"), LineKind::Continuation);
        for other in [
            &b":novalue"[..],
            b"no header, only body",
            b">From foo",
            b"",
            b"caf\xe9: x",
            b"From a b: c",
        ] {
            assert_eq!(line_kind(other), LineKind::Other);
        }
    }

    #[test]
    fn display_names_are_quoted_only_where_they_must_be() {
        assert_eq!(mailbox(Some("Dave Builder"), "d@h"), "Dave Builder <d@h>");
        assert_eq!(
            mailbox(Some("A. \"q\" (x) é"), "d@h"),
            "\"A. \\\"q\\\" (x) é\" <d@h>"
        );
        assert_eq!(mailbox(None, "d@h"), "d@h");
    }
}
