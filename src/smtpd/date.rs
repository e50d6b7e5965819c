//! Dates of the greeting and of header fields. Pure but for the system's time zone files, which jiff caches.
//!
//! Source: RFC 5322 3.3; Sendmail's macros `$b` and `$t`.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// `Sun, 22 Nov 2026 17:12:33 GMT`, or `... -0500 (EST)`, in the system's time zone.
pub(super) fn arpa_date(unix_ms: u64) -> String {
    in_zone(unix_ms, TimeZone::system())
}

fn in_zone(unix_ms: u64, zone: TimeZone) -> String {
    let zoned = timestamp(unix_ms).to_zoned(zone);
    let name = zoned.strftime("%Z").to_string();
    let format = if zoned.offset().is_zero() && matches!(name.as_str(), "UTC" | "GMT") {
        "%a, %-d %b %Y %H:%M:%S GMT"
    } else if name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        "%a, %-d %b %Y %H:%M:%S %z (%Z)"
    } else {
        "%a, %-d %b %Y %H:%M:%S %z"
    };
    zoned.strftime(format).to_string()
}

/// `202611221712`: the time within Message-Id fields, UTC.
pub(super) fn message_id_stamp(unix_ms: u64) -> String {
    timestamp(unix_ms)
        .to_zoned(TimeZone::UTC)
        .strftime("%Y%m%d%H%M")
        .to_string()
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
    fn dates_name_their_zone() {
        let now = 1_795_367_553_000;
        assert_eq!(in_zone(now, TimeZone::UTC), "Sun, 22 Nov 2026 17:12:33 GMT");
        let new_york = TimeZone::posix("EST5EDT,M3.2.0,M11.1.0").unwrap();
        assert_eq!(
            in_zone(now, new_york),
            "Sun, 22 Nov 2026 12:12:33 -0500 (EST)"
        );
        assert_eq!(message_id_stamp(now), "202611221712");
    }
}
