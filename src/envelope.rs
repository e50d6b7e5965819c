//! What travels with a message's content (L0): ids, envelope, recipients, DSN parameters, outcomes. Pure values.
//!
//! Sources: RFC 5321 2.3.1 (envelope), RFC 3461 (DSN parameters), Sendmail's queue ids (8 characters of time and
//! sequence, 6 of process id).

use std::fmt;
use std::net::IpAddr;

use crate::address::{Address, ReversePath};
use crate::status::{Status, Verdict};

/// Ids that can be given within one second; the queue id has room for this many: 60 * 60 * 1,000,000.
pub const IDS_PER_SECOND: u64 = 3_600_000_000;

/// A message's number: strictly increasing within a spool, never reused (S10).
///
/// It is `second * IDS_PER_SECOND + n`, where `second` is the Unix second at which the id was due to be given and
/// `n` starts at 3600 times the process id modulo 1,000,000, so that it prints as a queue id of Sendmail's shape
/// and is found in logs beside those of other processes. The map to queue ids is one to one for 60 years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(u64);

/// Sendmail's digits for times and sequence numbers in queue ids.
const QUEUE_ID_DIGITS: &[u8; 60] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwx";

impl MessageId {
    /// The id with this number.
    #[must_use]
    pub const fn from_number(number: u64) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }

    /// The first id a process may give in a second; the caller takes the greater of this and its last id plus one.
    #[must_use]
    pub const fn first_of(unix_second: u64, process_id: u32) -> Self {
        Self(
            unix_second
                .saturating_mul(IDS_PER_SECOND)
                .saturating_add((process_id as u64 % 1_000_000) * 3600),
        )
    }

    /// The Unix second in the id; for people, not for decisions (S12).
    #[must_use]
    pub const fn unix_second(self) -> u64 {
        self.0 / IDS_PER_SECOND
    }

    /// Parses a queue id as [`fmt::Display`] prints it. The year, of which it holds only the rest by 60, is taken
    /// from the 60 years from 2000 on. `None` if it is no queue id.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes: &[u8; 14] = text.as_bytes().try_into().ok()?;
        let digit = |at: usize| -> Option<u64> {
            let byte = *bytes.get(at)?;
            QUEUE_ID_DIGITS
                .iter()
                .position(|d| *d == byte)
                .and_then(|p| u64::try_from(p).ok())
        };
        // tm_year counts from 1900; 2000 is 100, 100 % 60 = 40.
        let year = 2000 + (digit(0)? + 20) % 60;
        let (month, day, hour, minute, second) =
            (digit(1)?, digit(2)?, digit(3)?, digit(4)?, digit(5)?);
        if month > 11
            || day == 0
            || day > days_in_month(year, month + 1)
            || hour > 23
            || second > 59
        {
            return None;
        }
        let tail = text.get(8..)?;
        if !tail.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let high: u64 = tail.parse().ok()?;
        let low = digit(6)? * 60 + digit(7)?;
        let days = days_from_epoch(year, month + 1, day);
        let unix_second = ((days * 24 + hour) * 60 + minute) * 60 + second;
        Some(Self(unix_second * IDS_PER_SECOND + high * 3600 + low))
    }
}

impl fmt::Display for MessageId {
    /// Prints the queue id: year modulo 60, month, day, hour, minute, second (UTC), two digits of sequence, six of
    /// process id.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (second, n) = (self.0 / IDS_PER_SECOND, self.0 % IDS_PER_SECOND);
        let (year, month, day) = civil_from_days(second / 86_400);
        let of_day = second % 86_400;
        let parts = [
            (year + 20) % 60,
            month - 1,
            day,
            of_day / 3600,
            of_day / 60 % 60,
            of_day % 60,
            n % 3600 / 60,
            n % 60,
        ];
        for part in parts {
            let digit = usize::try_from(part)
                .ok()
                .and_then(|p| QUEUE_ID_DIGITS.get(p))
                .copied()
                .unwrap_or(b'0');
            fmt::Write::write_char(f, char::from(digit))?;
        }
        write!(f, "{:06}", n / 3600)
    }
}

/// Days since 1970-01-01 of a civil date at or after it (proleptic Gregorian).
fn days_from_epoch(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era_year = year % 400;
    let month_from_march = (month + 9) % 12;
    let day_of_year = (153 * month_from_march + 2) / 5 + day - 1;
    let day_of_era = era_year * 365 + era_year / 4 - era_year / 100 + day_of_year;
    year / 400 * 146_097 + day_of_era - 719_468
}

/// Year, month (1 to 12) and day (1 to 31) of a day since 1970-01-01.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    (
        shifted / 146_097 * 400 + year_of_era + u64::from(month <= 2),
        month,
        day,
    )
}

fn days_in_month(year: u64, month: u64) -> u64 {
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if is_leap => 29,
        2 => 28,
        _ => 31,
    }
}

/// A recipient's number within its message: those of the envelope count from 0, those of expansions go on from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecipientId(pub u32);

/// What the client said of the body (RFC 6152).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BodyType {
    /// Nothing said.
    #[default]
    Unspecified,
    /// `BODY=7BIT`.
    SevenBit,
    /// `BODY=8BITMIME`.
    EightBitMime,
}

/// How much of the message a report is to return (RFC 3461 4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DsnReturn {
    /// Nothing said: our choice.
    #[default]
    Unspecified,
    /// `RET=FULL`.
    Full,
    /// `RET=HDRS`.
    Headers,
}

/// When a recipient's fate is to be reported (RFC 3461 4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Notify {
    /// Nothing said: on failure, and on delay as the host is set up.
    #[default]
    Unspecified,
    /// `NOTIFY=NEVER`.
    Never,
    /// Those named.
    When {
        /// `SUCCESS`
        success: bool,
        /// `FAILURE`
        failure: bool,
        /// `DELAY`
        delay: bool,
    },
}

impl Notify {
    /// Whether a failure is to be reported.
    #[must_use]
    pub const fn on_failure(self) -> bool {
        matches!(self, Self::Unspecified | Self::When { failure: true, .. })
    }

    /// Whether a delay is to be reported.
    #[must_use]
    pub const fn on_delay(self) -> bool {
        matches!(self, Self::Unspecified | Self::When { delay: true, .. })
    }

    /// Whether a success is to be reported.
    #[must_use]
    pub const fn on_success(self) -> bool {
        matches!(self, Self::When { success: true, .. })
    }
}

/// The local user who stands behind a message: who submitted it, or whose alias or file caused a delivery. Sendmail's
/// controlling user, `ctladdr` in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllingUser {
    /// As the log shows it: a user name, an alias, or an address with angle brackets.
    pub name: String,
    /// Numeric user id.
    pub uid: u32,
    /// Numeric group id.
    pub gid: u32,
}

/// One forward-path of an envelope, or one that an expansion led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipient {
    /// What mail is to be sent to. In envelope recipients the address text as received, without angle brackets; in
    /// children of expansions any delivery target of aliases(5): an address, `\user`, `|command` with the quotes it had,
    /// `/file`, `:include:/file`.
    pub target: String,
    /// Whether it is shown with angle brackets in log and queue listing, as addresses from SMTP are.
    pub has_brackets: bool,
    /// The recipient whose expansion led here.
    pub parent: Option<RecipientId>,
    /// On whose authority files and programs may be used.
    pub controlling_user: Option<ControllingUser>,
    /// `NOTIFY=`.
    pub notify: Notify,
    /// `ORCPT=`, with its type, as given.
    pub original_recipient: Option<String>,
    /// Whose the message is for this recipient, without angle brackets, if a list on the way has an owner: the envelope
    /// sender it is delivered with, and who is told what becomes of it. `None`: the envelope's.
    pub sender: Option<String>,
}

impl Recipient {
    /// A recipient as SMTP's RCPT without parameters gives it.
    #[must_use]
    pub fn new(target: impl Into<String>) -> Self {
        Self {
            target: target.into(),
            has_brackets: true,
            parent: None,
            controlling_user: None,
            notify: Notify::Unspecified,
            original_recipient: None,
            sender: None,
        }
    }

    /// As log and mailq show it.
    #[must_use]
    pub fn shown(&self) -> String {
        if self.has_brackets {
            format!("<{}>", self.target)
        } else {
            self.target.clone()
        }
    }
}

/// How a message came in; what the `from=` line and the Received field say.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Arrival {
    /// Unix time in milliseconds.
    pub unix_ms: u64,
    /// `SMTP`, `ESMTP`, ...; empty for a submission on the command line.
    pub protocol: String,
    /// Name of the daemon (`MTA`), empty for a submission on the command line.
    pub daemon: String,
    /// What HELO or EHLO said.
    pub helo: String,
    /// The client's verified name, if it has one.
    pub client_name: Option<String>,
    /// The client's address.
    pub client_address: Option<IpAddr>,
    /// Login name of a local submitter.
    pub submitter: Option<ControllingUser>,
    /// The Message-Id field, for the log.
    pub message_id_field: String,
    /// Mark of the drop file it was absorbed from; 0 if none (SPOOL 9).
    pub drop_mark: u64,
}

/// Everything about a message but its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Where reports go.
    pub reverse_path: ReversePath,
    /// Whether the sender is shown with angle brackets in log and queue listing.
    pub has_brackets: bool,
    /// At least one; each has the [`RecipientId`] of its index.
    pub recipients: Vec<Recipient>,
    /// `BODY=`.
    pub body_type: BodyType,
    /// `RET=`.
    pub dsn_return: DsnReturn,
    /// `ENVID=`, as given.
    pub envelope_id: Option<String>,
    /// Arrival facts.
    pub arrival: Arrival,
    /// Size of the body alone as received, in bytes, with line ends as one byte: what mailq and `df` show.
    pub body_bytes: u64,
    /// Quarantine reason; a message that has one is held.
    pub quarantine: Option<String>,
}

impl Envelope {
    /// An envelope with this sender and these recipients, nothing else set.
    #[must_use]
    pub fn new(reverse_path: ReversePath, recipients: Vec<Recipient>) -> Self {
        Self {
            reverse_path,
            has_brackets: true,
            recipients,
            body_type: BodyType::default(),
            dsn_return: DsnReturn::default(),
            envelope_id: None,
            arrival: Arrival::default(),
            body_bytes: 0,
            quarantine: None,
        }
    }

    /// The sender as log and mailq show it.
    #[must_use]
    pub fn sender_shown(&self) -> String {
        match (&self.reverse_path, self.has_brackets) {
            (ReversePath::Mailbox(address), false) => address.to_string(),
            (path, _) => path.to_string(),
        }
    }
}

/// The result of one attempt for one recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Delivered, deferred or failed.
    pub result: Delivery,
    /// Enhanced status code.
    pub status: Status,
    /// What log and mailq show as `stat=`, such as `Sent (q1 Message accepted)` or `Deferred: Connection refused by h`.
    pub text: String,
    /// The remote side's reply on one line, if one was the cause; shown as `reply=` and as Diagnostic-Code.
    pub reply: Option<String>,
    /// Who answered: `mx.example.test. [192.0.2.1]`; empty for mailers without a host.
    pub relay: String,
    /// Name of the mailer, as the log shows it (`local`, `esmtp`, `relay`, `prog`, `*file*`).
    pub mailer: String,
    /// How the program that was to deliver ended, for log and report; not kept over a restart.
    pub program: Option<Box<ProgramEnd>>,
    /// Whether the next host took `NOTIFY=` over, so that it reports success and not we (RFC 3461 5.2.2). Says nothing
    /// unless delivered; not kept over a restart.
    pub is_notify_passed_on: bool,
}

/// How a program that was to deliver ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramEnd {
    /// Its exit code, in the meaning of sysexits(3); also of what is delivered without a program, such as files.
    pub exit_code: i32,
    /// What it wrote on standard output and error, by lines, as far as it was kept.
    pub output: Vec<String>,
}

/// How an attempt ended for a recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Delivery {
    /// The mailer took responsibility.
    Delivered,
    /// To be tried again.
    Deferred,
    /// Given up; to be reported.
    Failed,
}

impl Outcome {
    /// An outcome without reply or relay.
    #[must_use]
    pub fn new(result: Delivery, status: Status, mailer: &str, text: impl Into<String>) -> Self {
        Self {
            result,
            status,
            text: text.into(),
            reply: None,
            relay: String::new(),
            mailer: mailer.to_owned(),
            program: None,
            is_notify_passed_on: false,
        }
    }

    /// A failure or deferral by verdict.
    #[must_use]
    pub fn by_verdict(
        verdict: Verdict,
        status: Status,
        mailer: &str,
        text: impl Into<String>,
    ) -> Self {
        let result = match verdict {
            Verdict::Temporary => Delivery::Deferred,
            Verdict::Permanent => Delivery::Failed,
        };
        Self::new(result, status, mailer, text)
    }
}

/// Where a recipient stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecipientState {
    /// Not tried, or deferred.
    Pending {
        /// The last outcome, if it was tried.
        last: Option<Box<Outcome>>,
        /// Attempts so far.
        tries: u32,
    },
    /// Replaced by the recipients of its expansion.
    Expanded,
    /// Delivered.
    Delivered,
    /// Failed, and reported where a report was due.
    Failed,
}

impl RecipientState {
    /// Whether nothing more is to be done for it.
    #[must_use]
    pub const fn is_final(&self) -> bool {
        !matches!(self, Self::Pending { .. })
    }
}

/// Sender and recipient of a report, as the address to be shown: `MAILER-DAEMON@host`.
#[must_use]
pub fn mailer_daemon(host: &str) -> Address {
    Address::from_parts("MAILER-DAEMON", crate::address::Domain::parse(host).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_ids_have_sendmails_shape_and_come_back() {
        // 2026-11-22 17:16:47 UTC, process 1306, first id.
        let id = MessageId::first_of(1_795_367_807, 1306);
        assert_eq!(id.to_string(), "6AMHGl00001306");
        assert_eq!(MessageId::parse("6AMHGl00001306"), Some(id));
    }

    #[test]
    fn queue_ids_are_one_to_one_over_seconds_and_sequence() {
        let mut seen = std::collections::HashSet::new();
        for second in [
            946_684_800,
            951_782_400,
            1_795_367_807,
            1_795_367_808,
            2_145_916_800,
            2_840_140_799,
        ] {
            for n in (0..7_300).chain([IDS_PER_SECOND - 1]) {
                let id = MessageId::from_number(second * IDS_PER_SECOND + n);
                let text = id.to_string();
                assert_eq!(text.len(), 14);
                assert_eq!(MessageId::parse(&text), Some(id), "{text}");
                assert!(seen.insert(text));
            }
        }
    }

    #[test]
    fn what_is_no_queue_id_is_not_parsed() {
        for bad in [
            "",
            "6AMHGl0000130",
            "6AMHGl000013066",
            "6CMHGl00001306",
            "6A0HGl00001306",
            "6AMOGl00001306",
            "6AMHGl0000130x",
            "6AMHGl0y001306",
        ] {
            assert_eq!(MessageId::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn dates_agree_with_the_calendar() {
        assert_eq!(civil_from_days(0), (1970, 1, 1));
        assert_eq!(civil_from_days(20_779), (2026, 11, 22));
        for days in 0..60_000 {
            let (y, m, d) = civil_from_days(days);
            assert_eq!(days_from_epoch(y, m, d), days);
        }
    }
}
