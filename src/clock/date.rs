//! Points in time as header fields and mailboxes show them (L0). Pure but for the system's time zone files, which jiff
//! caches; a time that no calendar has is shown as the epoch.
//!
//! Source: RFC 5322 3.3; Sendmail's macros `$a`, `$b`, `$t`; ctime(3).

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

/// `Sun, 22 Nov 2026 17:12:33 GMT`, or with another zone `... -0500 (EST)`, in the system's time zone.
#[must_use]
pub fn arpa_date(unix_ms: u64) -> String {
    format_zoned(&timestamp(unix_ms).to_zoned(TimeZone::system()))
}

/// `202611221712`: the time within Message-Id fields, UTC.
#[must_use]
pub fn message_id_stamp(unix_ms: u64) -> String {
    timestamp(unix_ms)
        .to_zoned(TimeZone::UTC)
        .strftime("%Y%m%d%H%M")
        .to_string()
}

/// `Sun Nov 22 17:12:53 2026`, in the system's time zone: the date of a mailbox's `From ` line.
#[must_use]
pub fn ctime(unix_ms: u64) -> String {
    format_ctime(&timestamp(unix_ms).to_zoned(TimeZone::system()))
}

fn format_ctime(zoned: &Zoned) -> String {
    zoned.strftime("%a %b %e %H:%M:%S %Y").to_string()
}

/// The date of a mailbox's `From name Mon Jan  1 00:00:00 2001` line as a Date field shows it, if it has one.
#[must_use]
pub fn unix_from_date(line: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(line).ok()?;
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    // The sender may have blanks: look for the five words of a date.
    words.windows(5).skip(1).find_map(|date| {
        let parsed = DateTime::strptime("%a %b %d %H:%M:%S %Y", date.join(" ")).ok()?;
        let zoned = parsed.to_zoned(TimeZone::system()).ok()?;
        Some(format_zoned(&zoned))
    })
}

fn format_zoned(zoned: &Zoned) -> String {
    let name = zoned.strftime("%Z").to_string();
    let is_utc = zoned.offset().is_zero() && matches!(name.as_str(), "UTC" | "GMT" | "Etc/UTC");
    let format = if is_utc {
        "%a, %-d %b %Y %H:%M:%S GMT"
    } else if name.bytes().all(|b| b.is_ascii_alphabetic()) {
        "%a, %-d %b %Y %H:%M:%S %z (%Z)"
    } else {
        "%a, %-d %b %Y %H:%M:%S %z"
    };
    zoned.strftime(format).to_string()
}

fn timestamp(unix_ms: u64) -> Timestamp {
    i64::try_from(unix_ms)
        .ok()
        .and_then(|ms| Timestamp::from_millisecond(ms).ok())
        .unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_have_the_forms_of_sendmail() {
        let at = timestamp(1_795_367_553_000);
        assert_eq!(
            format_zoned(&at.to_zoned(TimeZone::UTC)),
            "Sun, 22 Nov 2026 17:12:33 GMT"
        );
        let new_york = TimeZone::posix("EST5EDT,M3.2.0,M11.1.0").unwrap();
        assert_eq!(
            format_zoned(&at.to_zoned(new_york)),
            "Sun, 22 Nov 2026 12:12:33 -0500 (EST)"
        );
        let odd = TimeZone::posix("<+0330>-3:30").unwrap();
        assert_eq!(
            format_zoned(&at.to_zoned(odd)),
            "Sun, 22 Nov 2026 20:42:33 +0330"
        );
        let at = at.to_zoned(TimeZone::UTC);
        assert_eq!(format_ctime(&at), "Sun Nov 22 17:12:33 2026");
        assert_eq!(message_id_stamp(1_795_367_553_000), "202611221712");
        assert!(arpa_date(u64::MAX).contains("1970"));
    }

    #[test]
    fn a_mailbox_line_gives_its_date() {
        let date = unix_from_date(b"From alice Mon Jan  1 00:00:00 2001").unwrap();
        assert!(date.starts_with("Mon, 1 Jan 2001 00:00:00 "), "{date}");
        assert!(unix_from_date(b"From a b c Mon Jan 15 00:00:00 2001").is_some());
        for bad in [
            &b"From alice"[..],
            b"From x Mon Jan 32 00:00:00 2001",
            b"From \xff a b c d e",
        ] {
            assert_eq!(unix_from_date(bad), None);
        }
    }
}
