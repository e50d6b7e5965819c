//! What the small programs beside sendmail share: reading their command lines, finding the sandbox and the
//! configuration, and writing messages out.

pub mod arguments;
pub mod conversion;
pub mod export;
pub mod json;
pub mod map_place;
pub mod progress;
pub mod setting;
pub mod stop;
pub mod vacation;

/// A moment in local time, as ctime(3) shows it: `Sun Nov 22 17:45:01 2026`. Blocks: on disk, for the time zone.
#[must_use]
pub fn local_time(unix_seconds: i64) -> String {
    jiff::Timestamp::from_second(unix_seconds)
        .unwrap_or(jiff::Timestamp::UNIX_EPOCH)
        .to_zoned(jiff::tz::TimeZone::system())
        .strftime("%a %b %e %H:%M:%S %Y")
        .to_string()
}
