//! Delivery status notifications (L2): composes the report on a message's fate. Pure: facts in, bytes out.
//!
//! A report is a `multipart/report` of three parts: text for people in Sendmail's words, fields for programs
//! (RFC 3464), and the message or its header. What comes from outside (addresses, replies) is cut to
//! [`SHOWN_BYTES_MAX`] and freed of control and non-ASCII bytes, so that it cannot forge fields; the boundary does not
//! occur in the returned content. A message of more than [`RETURNED_BYTES_MAX`] is returned without its body. The
//! envelope of a report has the null sender and is the caller's matter (I7).
//! Sources: RFC 3461 (RET, success reports), RFC 3464, RFC 6522 (multipart/report), RFC 3834 (Auto-Submitted).

use std::fmt::Write as _;
use std::time::Duration;

use crate::clock::date::{arpa_date, message_id_stamp};
use crate::envelope::{DsnReturn, Envelope, MessageId, Outcome};
use crate::status::Status;

/// Content of at most this many bytes is returned whole; of more, only the header.
pub const RETURNED_BYTES_MAX: usize = 512 * 1024;
/// Bytes of header returned at most.
pub const RETURNED_HEADER_BYTES_MAX: usize = 64 * 1024;
/// Bytes shown of an address or a reply.
pub const SHOWN_BYTES_MAX: usize = 900;
/// Recipients a report describes; of more, the text says how many were left out.
pub const RECIPIENTS_MAX: usize = 10_000;
/// Longest boundary (RFC 2046 5.1.1).
const BOUNDARY_BYTES_MAX: usize = 70;

/// What a report tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportKind {
    /// Recipients failed or their time was up.
    Failure,
    /// Recipients still wait.
    Delay {
        /// Age of the message.
        age: Duration,
        /// Age at which it will be given up.
        give_up_age: Duration,
    },
    /// Recipients were reached, and the sender wanted to know (`NOTIFY=SUCCESS`).
    Success,
}

/// For whom a report is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audience {
    /// The sender.
    Sender,
    /// Postmaster, about a report that had nobody to go to, or as a copy.
    Postmaster,
}

/// What happened to a recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It failed.
    Failed,
    /// It was deferred until the message's time was up, at this age.
    Expired(Duration),
    /// It is deferred.
    Delayed,
    /// It is in a mailbox here.
    Delivered,
    /// It was handed to a host that does not report.
    Relayed,
    /// It was an alias for several recipients, which are not reported on.
    Expanded,
}

/// A recipient as a report shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportedRecipient {
    /// As log and queue listing show it, `<user@host>`.
    pub shown: String,
    /// The recipient of the envelope that this one came from, with a domain: `Final-Recipient`.
    pub address: String,
    /// What was delivered to, with a domain if it is an address: `X-Actual-Recipient`.
    pub actual: String,
    /// The recipient whose expansion led to this one, as shown.
    pub expanded_from: Option<String>,
    /// `ORCPT=` as given.
    pub original_recipient: Option<String>,
    /// What happened.
    pub fate: Fate,
    /// The last outcome.
    pub outcome: Outcome,
    /// When that was; Unix time in milliseconds.
    pub attempted_unix_ms: u64,
}

/// Everything a report is made of.
#[derive(Debug, Clone, Copy)]
pub struct DsnFacts<'a> {
    /// What it tells.
    pub kind: ReportKind,
    /// For whom.
    pub audience: Audience,
    /// The address in `To:`, with a domain and without angle brackets.
    pub to: &'a str,
    /// The report's own id.
    pub id: MessageId,
    /// Now; Unix time in milliseconds.
    pub now_unix_ms: u64,
    /// This host's name.
    pub host_name: &'a str,
    /// The message's id.
    pub original_id: MessageId,
    /// The message's envelope.
    pub envelope: &'a Envelope,
    /// At least one.
    pub recipients: &'a [ReportedRecipient],
    /// What is returned.
    pub returned: Returned<'a>,
}

/// The message's content, as far as it may be returned.
#[derive(Debug, Clone, Copy)]
pub struct Returned<'a> {
    /// The content, or its first bytes: [`RETURNED_BYTES_MAX`] are enough.
    pub content: &'a [u8],
    /// Whether that is all of it.
    pub is_whole: bool,
    /// Whether the body may be returned at all: not with `PrivacyOptions=nobodyreturn`, nor in copies for postmaster.
    pub is_body_allowed: bool,
}

/// Composes a report: header and body with CRLF line ends, 7-bit unless the returned content is not.
#[must_use]
pub fn compose(facts: &DsnFacts<'_>) -> Vec<u8> {
    let boundary = boundary(facts);
    let is_full = returns_body(facts);
    let returned = returned_bytes(facts, is_full);
    let is_eight_bit = !returned.is_ascii();
    let mut out = String::with_capacity(4096);
    header(&mut out, facts, &boundary, is_eight_bit);
    line(&mut out, "");
    line(&mut out, "This is a MIME-encapsulated message");
    line(&mut out, "");
    line(&mut out, &format!("--{boundary}"));
    line(&mut out, "");
    text_part(&mut out, facts);
    line(&mut out, "");
    line(&mut out, &format!("--{boundary}"));
    line(&mut out, "Content-Type: message/delivery-status");
    line(&mut out, "");
    status_part(&mut out, facts);
    line(&mut out, "");
    line(&mut out, &format!("--{boundary}"));
    line(
        &mut out,
        if is_full {
            "Content-Type: message/rfc822"
        } else {
            "Content-Type: text/rfc822-headers"
        },
    );
    if is_eight_bit {
        line(&mut out, "Content-Transfer-Encoding: 8bit");
    }
    line(&mut out, "");
    line(
        &mut out,
        &format!(
            "Return-Path: {}",
            clean(&facts.envelope.reverse_path.to_string())
        ),
    );
    let mut bytes = out.into_bytes();
    bytes.extend_from_slice(&returned);
    bytes.extend_from_slice(format!("\r\n--{boundary}--\r\n\r\n").as_bytes());
    bytes
}

/// The subject of a report, which the log and the queue listing say too.
#[must_use]
pub fn subject(kind: ReportKind, audience: Audience) -> String {
    match (audience, kind) {
        (Audience::Postmaster, _) => "Postmaster notify: see transcript for details".to_owned(),
        (Audience::Sender, ReportKind::Failure) => {
            "Returned mail: see transcript for details".to_owned()
        }
        (Audience::Sender, ReportKind::Delay { age, .. }) => format!(
            "Warning: could not send message for past {}",
            interval_text(age)
        ),
        (Audience::Sender, ReportKind::Success) => "Return receipt".to_owned(),
    }
}

/// A time span in Sendmail's words: `4 hours`, `1 day 2 hours`, `1 second`; parts of seconds are left out.
#[must_use]
pub fn interval_text(span: Duration) -> String {
    let mut rest = span.as_secs();
    let mut words = Vec::new();
    for (seconds, unit) in [
        (7 * 86_400, "week"),
        (86_400, "day"),
        (3_600, "hour"),
        (60, "minute"),
        (1, "second"),
    ] {
        let count = rest / seconds;
        rest %= seconds;
        // Sendmail says "5 days", and weeks only when they come out even.
        if unit == "week" {
            if count > 0 && rest == 0 {
                words.push(format!("{count} week{}", if count == 1 { "" } else { "s" }));
            } else {
                rest += count * seconds;
            }
        } else if count > 0 {
            words.push(format!(
                "{count} {unit}{}",
                if count == 1 { "" } else { "s" }
            ));
        }
    }
    if words.is_empty() {
        return "0 seconds".to_owned();
    }
    words.join(" ")
}

fn header(out: &mut String, facts: &DsnFacts<'_>, boundary: &str, is_eight_bit: bool) {
    let host = clean(facts.host_name);
    let date = arpa_date(facts.now_unix_ms);
    let id = facts.id;
    line(out, "Received: from localhost (localhost)");
    let version = env!("CARGO_PKG_VERSION");
    line(out, &format!("\tby {host} ({version}/{version}) id {id};"));
    line(out, &format!("\t{date}"));
    line(out, &format!("Date: {date}"));
    line(
        out,
        &format!("From: Mail Delivery Subsystem <MAILER-DAEMON@{host}>"),
    );
    let stamp = message_id_stamp(facts.now_unix_ms);
    line(out, &format!("Message-Id: <{stamp}.{id}@{host}>"));
    match facts.audience {
        Audience::Sender => line(out, &format!("To: <{}>", clean(facts.to))),
        Audience::Postmaster => line(out, &format!("To: {}", clean(facts.to))),
    }
    line(out, "MIME-Version: 1.0");
    line(
        out,
        "Content-Type: multipart/report; report-type=delivery-status;",
    );
    line(out, &format!("\tboundary=\"{boundary}\""));
    if is_eight_bit {
        line(out, "Content-Transfer-Encoding: 8bit");
    }
    line(
        out,
        &format!("Subject: {}", subject(facts.kind, facts.audience)),
    );
    let reason = match (facts.audience, facts.kind) {
        (Audience::Postmaster, _) => "postmaster-notification",
        (Audience::Sender, ReportKind::Failure) => "failure",
        (Audience::Sender, ReportKind::Delay { .. }) => "warning-timeout",
        (Audience::Sender, ReportKind::Success) => "return-receipt",
    };
    line(out, &format!("Auto-Submitted: auto-generated ({reason})"));
}

fn text_part(out: &mut String, facts: &DsnFacts<'_>) {
    if matches!(facts.kind, ReportKind::Delay { .. }) {
        line(out, "    **********************************************");
        line(out, "    **      THIS IS A WARNING MESSAGE ONLY      **");
        line(out, "    **  YOU DO NOT NEED TO RESEND YOUR MESSAGE  **");
        line(out, "    **********************************************");
        line(out, "");
    }
    let arrival = &facts.envelope.arrival;
    line(
        out,
        &format!(
            "The original message was received at {}",
            arpa_date(arrival.unix_ms)
        ),
    );
    line(out, &format!("from {}", clean(&came_from(facts.envelope))));
    if facts.audience == Audience::Postmaster {
        line(out, &format!("with id {}", facts.original_id));
    }
    line(out, "");
    let listed = match facts.kind {
        ReportKind::Failure => Some("permanent fatal errors"),
        ReportKind::Success => Some("successful delivery notifications"),
        ReportKind::Delay { .. } => None,
    };
    if let Some(what) = listed {
        line(
            out,
            &format!("   ----- The following addresses had {what} -----"),
        );
        for recipient in facts.recipients.iter().take(RECIPIENTS_MAX) {
            list_recipient(out, recipient);
        }
        if let Some(more) = facts
            .recipients
            .len()
            .checked_sub(RECIPIENTS_MAX)
            .filter(|n| *n > 0)
        {
            line(out, &format!("... and {more} more"));
        }
        line(out, "");
    }
    line(out, "   ----- Transcript of session follows -----");
    transcript(out, facts);
}

fn list_recipient(out: &mut String, recipient: &ReportedRecipient) {
    let shown = clean(&recipient.shown);
    match recipient.fate {
        Fate::Delivered => line(
            out,
            &format!("{shown}  (successfully delivered to mailbox)"),
        ),
        Fate::Relayed => line(out, &format!("{shown}  (relayed to non-DSN-aware mailer)")),
        Fate::Expanded => line(out, &format!("{shown}  (expanded by mailing list)")),
        Fate::Failed | Fate::Expired(_) | Fate::Delayed => {
            line(out, &shown);
            let reason = match &recipient.outcome.program {
                Some(_) => Some(recipient.outcome.text.clone()),
                None => diagnostic(recipient),
            };
            if let Some(reason) = reason {
                line(out, &format!("    (reason: {})", clean(&reason)));
            }
        }
    }
    if let Some(parent) = &recipient.expanded_from {
        line(out, &format!("    (expanded from: {})", clean(parent)));
    }
}

/// The part of the report that Sendmail takes from its transcript file; told here from the outcomes.
fn transcript(out: &mut String, facts: &DsnFacts<'_>) {
    let mut talking_to = String::new();
    let mut expired: Option<Duration> = None;
    for recipient in facts.recipients.iter().take(RECIPIENTS_MAX) {
        let shown = clean(&recipient.shown);
        match recipient.fate {
            Fate::Delivered => line(out, &format!("{shown}... Successfully delivered")),
            Fate::Relayed => line(
                out,
                &format!("{shown}... relayed; expect no further notifications"),
            ),
            Fate::Expanded => line(
                out,
                &format!("{shown}... expanded by mailing list; expect no further notifications"),
            ),
            Fate::Failed | Fate::Expired(_) | Fate::Delayed => {
                if let Fate::Expired(age) = recipient.fate {
                    expired = expired.max(Some(age));
                }
                // What a file's mailer remarks is for the log alone.
                let program = recipient.outcome.program.iter();
                for said in program
                    .filter(|_| recipient.outcome.mailer != super::file::MAILER)
                    .flat_map(|program| &program.output)
                {
                    line(out, &clean(said));
                }
                if let Some(found) = circle(&recipient.outcome) {
                    line(out, &clean(&format!("554 5.0.0 {found}")));
                } else if let (Some(host), Some(reply)) =
                    (relay_host(&recipient.outcome), &recipient.outcome.reply)
                {
                    if talking_to != host {
                        line(out, &format!("... while talking to {}:", clean(host)));
                        host.clone_into(&mut talking_to);
                    }
                    line(out, &format!("<<< {}", clean(reply)));
                }
                line(out, &result_line(recipient));
            }
        }
    }
    if let Some(age) = expired {
        line(
            out,
            &format!("Message could not be delivered for {}", interval_text(age)),
        );
        line(out, "Message will be deleted from queue");
    }
    if let ReportKind::Delay { age, give_up_age } = facts.kind {
        line(
            out,
            &format!(
                "Warning: message still undelivered after {}",
                interval_text(age)
            ),
        );
        line(
            out,
            &format!(
                "Will keep trying until message is {} old",
                interval_text(give_up_age)
            ),
        );
    }
}

/// Sendmail's own words for an outcome, with the code it puts before each.
fn result_line(recipient: &ReportedRecipient) -> String {
    let shown = clean(&recipient.shown);
    let outcome = &recipient.outcome;
    let text = clean(&outcome.text);
    if recipient.fate != Fate::Failed {
        return format!("{shown}... {text}");
    }
    match outcome.text.as_str() {
        "Service unavailable" => "554 5.0.0 Service unavailable".to_owned(),
        "Data format error" => "501 5.6.0 Data format error".to_owned(),
        "Local configuration error" => "554 5.3.5 Local configuration error".to_owned(),
        "User unknown" => format!("550 5.1.1 {shown}... User unknown"),
        "Internal error" | "System file missing" => {
            format!("554 {} {shown}... {text}", outcome.status)
        }
        // Told of the message, not of the name: there may be many on the way.
        circle if circle.starts_with("aliasing/forwarding loop broken") => {
            format!("554 {} {text}", outcome.status)
        }
        // The list is named instead of the alias that led to it.
        list if list.starts_with(":include:") => format!("550 {} {text}", outcome.status),
        refused if refused.starts_with("Unsafe for mailing") => {
            let parent = recipient.expanded_from.as_deref().unwrap_or_default();
            let kind = text.rsplit(' ').next().unwrap_or_default();
            format!(
                "550 {} {shown}... Address {} is unsafe for mailing to {kind}",
                outcome.status,
                clean(parent)
            )
        }
        unknown if unknown.starts_with("unknown mailer error") => {
            format!("554 5.3.0 {text}")
        }
        _ => format!("550 {} {shown}... {text}", outcome.status),
    }
}

fn status_part(out: &mut String, facts: &DsnFacts<'_>) {
    let arrival = &facts.envelope.arrival;
    if let Some(id) = &facts.envelope.envelope_id {
        line(out, &format!("Original-Envelope-Id: {}", clean(id)));
    }
    line(
        out,
        &format!("Reporting-MTA: dns; {}", clean(facts.host_name)),
    );
    if let Some(address) = arrival.client_address {
        let name = arrival
            .client_name
            .clone()
            .unwrap_or_else(|| format!("[{address}]"));
        line(out, &format!("Received-From-MTA: DNS; {}", clean(&name)));
    }
    line(
        out,
        &format!("Arrival-Date: {}", arpa_date(arrival.unix_ms)),
    );
    for recipient in facts.recipients.iter().take(RECIPIENTS_MAX) {
        line(out, "");
        recipient_fields(out, facts, recipient);
    }
}

fn recipient_fields(out: &mut String, facts: &DsnFacts<'_>, recipient: &ReportedRecipient) {
    let outcome = &recipient.outcome;
    if let Some(original) = &recipient.original_recipient {
        line(out, &format!("Original-Recipient: {}", clean(original)));
    }
    line(
        out,
        &format!("Final-Recipient: RFC822; {}", clean(&recipient.address)),
    );
    let quoted = clean(&recipient.actual);
    // Commands and files may have the quotes that an alias has them in.
    let actual = quoted
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'))
        .filter(|inner| inner.starts_with(['|', '/']))
        .unwrap_or(&quoted);
    if actual.starts_with('|') || actual.starts_with('/') {
        line(out, &format!("X-Actual-Recipient: X-Unix; {actual}"));
    } else {
        line(out, &format!("X-Actual-Recipient: rfc822; {actual}"));
    }
    let (action, status) = match recipient.fate {
        Fate::Failed => ("failed", program_status(outcome).unwrap_or(outcome.status)),
        Fate::Expired(_) => ("failed", Status::EXPIRED),
        Fate::Delayed => ("delayed", outcome.status),
        Fate::Delivered => ("delivered (to mailbox)", Status::RECIPIENT_OK),
        Fate::Relayed => ("relayed (to non-DSN-aware mailer)", outcome.status),
        Fate::Expanded => ("expanded (to multi-recipient alias)", Status::RECIPIENT_OK),
    };
    line(out, &format!("Action: {action}"));
    line(out, &format!("Status: {status}"));
    // What the log shows as a program's relay is no host.
    if let Some(host) = relay_host(outcome).filter(|_| outcome.program.is_none()) {
        let host = host.strip_suffix('.').unwrap_or(host);
        line(out, &format!("Remote-MTA: DNS; {}", clean(host)));
    }
    if let Some(text) = diagnostic(recipient) {
        // LMTP servers answer as SMTP's do.
        let kind = match outcome.mailer.as_str() {
            "esmtp" | "relay" => "SMTP",
            _ if outcome.reply.is_some() => "SMTP",
            _ => "X-Unix",
        };
        line(out, &format!("Diagnostic-Code: {kind}; {}", clean(&text)));
    }
    line(
        out,
        &format!(
            "Last-Attempt-Date: {}",
            arpa_date(recipient.attempted_unix_ms)
        ),
    );
    if let (Fate::Delayed, ReportKind::Delay { give_up_age, .. }) = (recipient.fate, facts.kind) {
        let until = facts
            .envelope
            .arrival
            .unix_ms
            .saturating_add(u64::try_from(give_up_age.as_millis()).unwrap_or(u64::MAX));
        line(out, &format!("Will-Retry-Until: {}", arpa_date(until)));
    }
}

/// The status of a program's exit code, which is not the one that the log shows.
fn program_status(outcome: &Outcome) -> Option<Status> {
    super::exit_code::report_status(outcome.program.as_ref()?.exit_code)
}

/// What was found wrong with a host's MX records, if mail for it would come back here: no server said it.
fn circle(outcome: &Outcome) -> Option<&str> {
    let own = outcome.text == "Local configuration error";
    let reply = outcome.reply.as_deref().filter(|_| own)?;
    reply.get(reply.find("MX list for ")?..)
}

/// The reply that decided, or what stands for one where no server was reached.
fn diagnostic(recipient: &ReportedRecipient) -> Option<String> {
    let outcome = &recipient.outcome;
    if circle(outcome).is_some() {
        return None;
    }
    if let Some(reply) = &outcome.reply {
        return Some(reply.clone());
    }
    if let Some(program) = &outcome.program {
        return Some(program.exit_code.to_string());
    }
    match outcome.status {
        // Of the recipient's own host only; an MX, which a dot ends, is not the sender's to mend.
        Status {
            class: 5,
            subject: 1,
            detail: 2,
        } if !outcome.relay.ends_with('.') => Some("550 Host unknown".to_owned()),
        Status {
            class: 5,
            subject: 1,
            detail: 10,
        } => Some("556 Host does not accept mail: MX 0 .".to_owned()),
        _ => None,
    }
}

/// The host name of `name [address]`, if there is one.
fn relay_host(outcome: &Outcome) -> Option<&str> {
    outcome.relay.split(' ').next().filter(|h| !h.is_empty())
}

fn came_from(envelope: &Envelope) -> String {
    let arrival = &envelope.arrival;
    match (
        &arrival.client_name,
        arrival.client_address,
        &arrival.submitter,
    ) {
        (Some(name), Some(address), _) => format!("{name} [{address}]"),
        (None, Some(address), _) => format!("[{address}]"),
        (_, None, Some(user)) => format!("{}@localhost", user.name),
        (_, None, None) => "localhost".to_owned(),
    }
}

/// Whether the body goes with the report: as the sender asked, never with success, never beyond the limit.
fn returns_body(facts: &DsnFacts<'_>) -> bool {
    facts.returned.is_body_allowed
        && facts.returned.is_whole
        && facts.returned.content.len() <= RETURNED_BYTES_MAX
        && facts.kind != ReportKind::Success
        && facts.envelope.dsn_return != DsnReturn::Headers
}

/// The content or its header, ended with CRLF.
fn returned_bytes(facts: &DsnFacts<'_>, is_full: bool) -> Vec<u8> {
    let content = facts.returned.content;
    let mut bytes = if is_full {
        content.to_vec()
    } else {
        let end = content
            .windows(4)
            .position(|w| w == b"\r\n\r\n")
            .map_or(content.len(), |at| at + 2);
        let header = content.get(..end).unwrap_or(content);
        let kept = header
            .get(..RETURNED_HEADER_BYTES_MAX)
            .and_then(|cut| {
                let last = cut.windows(2).rposition(|w| w == b"\r\n")?;
                cut.get(..last + 2)
            })
            .unwrap_or(header);
        kept.to_vec()
    };
    if !bytes.is_empty() && !bytes.ends_with(b"\r\n") {
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// A boundary of Sendmail's form that the returned content does not have.
fn boundary(facts: &DsnFacts<'_>) -> String {
    let seconds = facts.now_unix_ms / 1000;
    let mut base = format!("{}.{seconds}/{}", facts.id, clean(facts.host_name));
    base.retain(|c| c.is_ascii_alphanumeric() || "'()+_,-./:=?".contains(c));
    base.truncate(BOUNDARY_BYTES_MAX - 10);
    let is_free = |candidate: &str| {
        !facts
            .returned
            .content
            .windows(candidate.len())
            .any(|w| w == candidate.as_bytes())
    };
    let mut candidate = base.clone();
    let mut number: u32 = 0;
    while !is_free(&candidate) {
        number = number.wrapping_add(1);
        candidate = format!("{number}{base}");
    }
    candidate
}

fn line(out: &mut String, text: &str) {
    // Writing to a string cannot fail.
    let _ = write!(out, "{text}\r\n");
}

/// Text from outside, fit for a field of a report.
fn clean(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            ' '..='~' => c,
            '\t' | '\r' | '\n' => ' ',
            _ => '?',
        })
        .take(SHOWN_BYTES_MAX)
        .collect()
}
