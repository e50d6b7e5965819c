//! What the common switches make of keys and answers, for maps of every class: folding (-f), trouble (-T, -t), the
//! answer itself (-m, %0 to %9, -a).
//!
//! Pure. Source: sendmail's op.me 5.12.

#![deny(clippy::indexing_slicing)]

use crate::{MapError, Switches};
use std::borrow::Cow;

/// The key as the map is asked for it.
pub(crate) fn folded<'k>(switches: &Switches, key: &'k [u8]) -> Cow<'k, [u8]> {
    if !switches.keeps_case && key.iter().any(u8::is_ascii_uppercase) {
        Cow::Owned(key.to_ascii_lowercase())
    } else {
        Cow::Borrowed(key)
    }
}

/// Without one trailing NUL.
pub(crate) fn strip_nul(bytes: &[u8]) -> &[u8] {
    bytes.strip_suffix(b"\0").unwrap_or(bytes)
}

/// Makes the answer of what was found, as the switches say.
///
/// # Errors
/// The trouble in `raw`, unless -t or -T say what becomes of it.
pub(crate) fn finish(
    switches: &Switches,
    key: &[u8],
    raw: Result<Option<Vec<u8>>, MapError>,
    arguments: Option<&[&[u8]]>,
) -> Result<Option<Vec<u8>>, MapError> {
    match raw {
        Ok(None) => Ok(None),
        Ok(Some(value)) => {
            let mut answer = match (switches.answers_key, arguments) {
                (true, _) => key.to_vec(),
                (false, None) => value,
                (false, Some(arguments)) => expand(&value, key, arguments),
            };
            answer.extend_from_slice(&switches.append);
            Ok(Some(answer))
        }
        Err(_) if switches.ignores_trouble => Ok(None),
        Err(error) => match &switches.temporary_tag {
            Some(tag) => {
                let mut answer = key.to_vec();
                answer.extend_from_slice(tag);
                Ok(Some(answer))
            }
            None => Err(error),
        },
    }
}

/// Puts arguments in the place of `%0` (the key) and `%1` to `%9`; `%%` is a percent sign, a missing argument
/// vanishes, and a percent sign before anything else stays.
fn expand(value: &[u8], key: &[u8], arguments: &[&[u8]]) -> Vec<u8> {
    let mut answer = Vec::with_capacity(value.len() + key.len());
    let mut bytes = value.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            answer.push(byte);
            continue;
        }
        match bytes.peek() {
            Some(b'%') => {
                bytes.next();
                answer.push(b'%');
            }
            Some(b'0') => {
                bytes.next();
                answer.extend_from_slice(key);
            }
            Some(digit @ b'1'..=b'9') => {
                let at = usize::from(digit - b'1');
                bytes.next();
                answer.extend_from_slice(arguments.get(at).copied().unwrap_or_default());
            }
            _ => answer.push(b'%'),
        }
    }
    answer
}
