//! Sendmail's way of writing a length of time: `5d`, `30m`, `1h30m`, `90`.
//!
//! A number without a unit takes the option's own default unit, as in
//! Sendmail (`Timeout.queuereturn` counts days, `MinQueueAge` minutes, the
//! SMTP timeouts minutes). Case does not matter. Pure text to value: nothing
//! is read, nothing blocks, and a sum too large for the type is an error.
//!
//! Source: sendmail(8) `-q[time]`, Installation and Operation Guide 4.1.

use std::fmt::Write as _;
use std::time::Duration;

/// The longest text accepted as a length of time, in bytes.
const TIME_TEXT_LEN_MAX: usize = 64;

/// A unit of time as Sendmail abbreviates it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeUnit {
    /// `s`
    Seconds,
    /// `m`
    Minutes,
    /// `h`
    Hours,
    /// `d`
    Days,
    /// `w`
    Weeks,
}

impl TimeUnit {
    /// How many seconds one of this unit lasts.
    #[must_use]
    pub const fn seconds(self) -> u64 {
        match self {
            Self::Seconds => 1,
            Self::Minutes => 60,
            Self::Hours => 3_600,
            Self::Days => 86_400,
            Self::Weeks => 604_800,
        }
    }

    /// The unit's name in a sentence: `minutes`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Seconds => "seconds",
            Self::Minutes => "minutes",
            Self::Hours => "hours",
            Self::Days => "days",
            Self::Weeks => "weeks",
        }
    }

    fn from_letter(letter: char) -> Option<Self> {
        match letter.to_ascii_lowercase() {
            's' => Some(Self::Seconds),
            'm' => Some(Self::Minutes),
            'h' => Some(Self::Hours),
            'd' => Some(Self::Days),
            'w' => Some(Self::Weeks),
            _ => None,
        }
    }
}

/// Why a text is no length of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TimeError {
    /// Nothing but blanks was given.
    #[error("a length of time is missing")]
    Empty,
    /// A unit other than w, d, h, m or s; the text is Sendmail's own.
    #[error("invalid time unit `{0}'")]
    Unit(char),
    /// A unit that no number stands before.
    #[error("time unit `{0}' has no number before it")]
    NoNumber(char),
    /// The sum of the parts is more than can be counted.
    #[error("length of time is too long")]
    TooLong,
}

/// Reads a length of time.
///
/// Parts are added up (`1h30m`); a last part without a unit counts in
/// `default_unit`.
///
/// # Errors
/// [`TimeError`], all permanent: the text has to be corrected.
pub fn parse_time(text: &str, default_unit: TimeUnit) -> Result<Duration, TimeError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(TimeError::Empty);
    }
    if text.len() > TIME_TEXT_LEN_MAX {
        return Err(TimeError::TooLong);
    }
    let mut total: u64 = 0;
    let mut number: Option<u64> = None;
    for letter in text.chars() {
        if let Some(digit) = letter.to_digit(10) {
            number = Some(
                number
                    .unwrap_or(0)
                    .checked_mul(10)
                    .and_then(|n| n.checked_add(u64::from(digit)))
                    .ok_or(TimeError::TooLong)?,
            );
            continue;
        }
        let unit = TimeUnit::from_letter(letter).ok_or(TimeError::Unit(letter))?;
        let count = number.take().ok_or(TimeError::NoNumber(letter))?;
        total = add(total, count, unit)?;
    }
    if let Some(count) = number {
        total = add(total, count, default_unit)?;
    }
    Ok(Duration::from_secs(total))
}

fn add(total: u64, count: u64, unit: TimeUnit) -> Result<u64, TimeError> {
    count
        .checked_mul(unit.seconds())
        .and_then(|seconds| total.checked_add(seconds))
        .ok_or(TimeError::TooLong)
}

/// Writes a length of time so that [`parse_time`] reads the same value again,
/// whatever the default unit: `1h30m`, `5d`, `0s`. Fractions of a second are
/// left out; no option has any.
#[must_use]
pub fn print_time(duration: Duration) -> String {
    let mut rest = duration.as_secs();
    if rest == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, letter) in [
        (TimeUnit::Days, 'd'),
        (TimeUnit::Hours, 'h'),
        (TimeUnit::Minutes, 'm'),
        (TimeUnit::Seconds, 's'),
    ] {
        let count = rest / unit.seconds();
        rest %= unit.seconds();
        if count > 0 {
            // Writing to a String cannot fail.
            let _ = write!(text, "{count}{letter}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(text: &str) -> u64 {
        parse_time(text, TimeUnit::Minutes).unwrap().as_secs()
    }

    #[test]
    fn parts_are_added_and_the_last_takes_the_default_unit() {
        assert_eq!(seconds("1h30m"), 5_400);
        assert_eq!(seconds("1h30"), 5_400);
        assert_eq!(seconds("30"), 1_800);
        assert_eq!(seconds("5d"), 432_000);
        assert_eq!(seconds("2w1D"), 1_296_000);
        assert_eq!(seconds(" 0 "), 0);
    }

    #[test]
    fn bad_texts_are_refused_with_their_reason() {
        let parse = |text| parse_time(text, TimeUnit::Days).unwrap_err();
        assert_eq!(parse(""), TimeError::Empty);
        assert_eq!(parse("T"), TimeError::Unit('T'));
        assert_eq!(parse("3x"), TimeError::Unit('x'));
        assert_eq!(parse("-3d"), TimeError::Unit('-'));
        assert_eq!(parse("hm"), TimeError::NoNumber('h'));
        assert_eq!(parse("99999999999999999999"), TimeError::TooLong);
        assert_eq!(parse("9999999999999999999w"), TimeError::TooLong);
        assert_eq!(parse(&"1s".repeat(40)), TimeError::TooLong);
    }

    #[test]
    fn printed_times_read_back_the_same_under_any_unit() {
        for value in [0, 1, 59, 60, 5_400, 86_400, 432_000, 90_061] {
            let duration = Duration::from_secs(value);
            for unit in [TimeUnit::Seconds, TimeUnit::Days] {
                assert_eq!(parse_time(&print_time(duration), unit), Ok(duration));
            }
        }
    }
}
