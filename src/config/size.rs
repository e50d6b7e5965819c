//! Sizes in bytes, as options give them: `1000000`, `64M`, `1 GiB`.
//!
//! Sendmail writes plain byte counts; a K, M or G (with or without `B` or
//! `iB`, any case) multiplies by 1024 once, twice or three times. Pure text
//! to value: nothing is read, nothing blocks.

use std::fmt;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(u64);

impl ByteSize {
    /// So many bytes.
    #[must_use]
    pub const fn bytes(count: u64) -> Self {
        Self(count)
    }

    /// So many KiB (1,024 bytes).
    #[must_use]
    pub const fn kib(count: u64) -> Self {
        Self(count.saturating_mul(1 << 10))
    }

    /// So many MiB (1,048,576 bytes).
    #[must_use]
    pub const fn mib(count: u64) -> Self {
        Self(count.saturating_mul(1 << 20))
    }

    /// So many GiB (1,073,741,824 bytes).
    #[must_use]
    pub const fn gib(count: u64) -> Self {
        Self(count.saturating_mul(1 << 30))
    }

    /// The value in bytes.
    #[must_use]
    pub const fn as_bytes(self) -> u64 {
        self.0
    }

    /// The value in bytes as a length in memory; the type's maximum where the
    /// machine's pointers are too narrow for it.
    #[must_use]
    pub fn as_len(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    /// Reads a size.
    ///
    /// # Errors
    /// [`SizeError`], all permanent: the text has to be corrected.
    pub fn parse(text: &str) -> Result<Self, SizeError> {
        let text = text.trim();
        let digits_end = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (digits, unit) = text.split_at(digits_end);
        if digits.is_empty() {
            return Err(SizeError::NoNumber);
        }
        let count: u64 = digits.parse().map_err(|_| SizeError::TooLarge)?;
        let shift = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            _ => return Err(SizeError::Unit(unit.trim().to_owned())),
        };
        count
            .checked_mul(1 << shift)
            .map(Self)
            .ok_or(SizeError::TooLarge)
    }
}

/// The shortest exact form: `64M`, `1000`, `0`.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, letter) in [(30, 'G'), (20, 'M'), (10, 'K')] {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{letter}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

/// Why a text is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// The text does not begin with a digit.
    #[error("a size begins with a number")]
    NoNumber,
    /// What follows the number is not K, M or G.
    #[error("unknown unit `{0}' of size (K, M or G are known)")]
    Unit(String),
    /// More than can be counted.
    #[error("size is too large")]
    TooLarge,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_counts_and_units_are_read() {
        assert_eq!(ByteSize::parse("1000"), Ok(ByteSize::bytes(1_000)));
        assert_eq!(ByteSize::parse("64M"), Ok(ByteSize::mib(64)));
        assert_eq!(ByteSize::parse("1 GiB"), Ok(ByteSize::gib(1)));
        assert_eq!(ByteSize::parse("4kb"), Ok(ByteSize::kib(4)));
        assert_eq!(ByteSize::parse("0"), Ok(ByteSize::bytes(0)));
    }

    #[test]
    fn bad_texts_are_refused_with_their_reason() {
        assert_eq!(ByteSize::parse(""), Err(SizeError::NoNumber));
        assert_eq!(ByteSize::parse("-1"), Err(SizeError::NoNumber));
        assert_eq!(ByteSize::parse("3T"), Err(SizeError::Unit("T".to_owned())));
        assert_eq!(
            ByteSize::parse("99999999999999999999"),
            Err(SizeError::TooLarge)
        );
        assert_eq!(
            ByteSize::parse("99999999999999999G"),
            Err(SizeError::TooLarge)
        );
    }

    #[test]
    fn printed_sizes_read_back_the_same() {
        for value in [0, 1, 1_000, 1_024, 1 << 20, 3 << 30, u64::MAX] {
            let size = ByteSize::bytes(value);
            assert_eq!(ByteSize::parse(&size.to_string()), Ok(size));
        }
        assert_eq!(ByteSize::mib(64).to_string(), "64M");
    }
}
