//! Netstrings, the frame of the socketmap protocol: decimal length, a colon, that many bytes, a comma.
//!
//! Pure. Limits: those of the caller. Source: the socketmap protocol as sendmail's op.me 5.12 and Postfix's
//! socketmap_table(5) describe it.

#![deny(clippy::indexing_slicing)]

/// Most digits a length is written with.
const DIGITS_MAX: usize = 9;

/// What begins a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parsed<'b> {
    /// A whole netstring: its content, and how many bytes of the buffer it took.
    Whole(&'b [u8], usize),
    /// The beginning of one.
    Partial,
    /// None, or one that is longer than the limit.
    Bad,
}

/// Looks for a netstring at the beginning of a buffer.
#[must_use]
pub fn parse(buffer: &[u8], max: usize) -> Parsed<'_> {
    let Some(colon) = buffer
        .iter()
        .take(DIGITS_MAX + 1)
        .position(|byte| !byte.is_ascii_digit())
    else {
        return if buffer.len() > DIGITS_MAX {
            Parsed::Bad
        } else {
            Parsed::Partial
        };
    };
    let (digits, rest) = buffer.split_at(colon);
    let len = std::str::from_utf8(digits)
        .ok()
        .and_then(|digits| digits.parse::<usize>().ok())
        .filter(|&len| len <= max);
    let (Some(len), Some(b':')) = (len, rest.first()) else {
        return Parsed::Bad;
    };
    match (rest.get(1..=len), rest.get(len + 1)) {
        (Some(content), Some(b',')) => Parsed::Whole(content, colon + len + 2),
        (_, Some(_)) => Parsed::Bad,
        _ => Parsed::Partial,
    }
}

/// Adds a netstring of these parts, one after the other.
pub fn write(out: &mut Vec<u8>, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    out.extend_from_slice(len.to_string().as_bytes());
    out.push(b':');
    for part in parts {
        out.extend_from_slice(part);
    }
    out.push(b',');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_from_pieces_of_any_size() {
        let mut buffer = Vec::new();
        write(&mut buffer, &[b"map ", b"a key"]);
        assert_eq!(buffer, b"9:map a key,");
        write(&mut buffer, &[]);
        for end in 0..12 {
            assert_eq!(parse(&buffer[..end], 100), Parsed::Partial, "{end}");
        }
        assert_eq!(parse(&buffer, 100), Parsed::Whole(b"map a key", 12));
        assert_eq!(parse(&buffer[12..], 100), Parsed::Whole(b"", 3));
        for bad in [&b":,"[..], b"x", b"3:abcd", b"9:", b"1234567890", b"-1:,"] {
            assert_eq!(parse(bad, 8), Parsed::Bad);
        }
    }
}
