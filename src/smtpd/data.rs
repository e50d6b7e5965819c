//! The bytes after DATA: where they end, the dots taken off, and only CRLF as a line end.
//!
//! [`Unstuffer`] lends slices of its input without copying. It keeps one fact, whether a line begins; what cannot be
//! judged before more arrives (a final CR, a dot at the beginning of a line) stays in the input, two bytes at most.
//! Guarantees: data end at CRLF "." CRLF and nowhere else; a CR or LF alone is an error and never passes, so that
//! nobody downstream can see another end of data than we did (SMTP smuggling). Any other byte passes, NUL included.
//!
//! Source: RFC 5321 2.3.8, 4.1.1.4, 4.5.2. Pure; the length of a line is not limited, that of a message is by others.

/// What comes next in the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Piece<'a> {
    /// Content, undotted; at least one byte.
    Text(&'a [u8]),
    /// The end of the data; what follows in the input are commands.
    End,
    /// More input is needed. At most two bytes were left in it.
    Starved,
    /// A LF without a CR before it.
    BareLf,
    /// A CR without a LF after it.
    BareCr,
}

/// Takes message data apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unstuffer {
    is_line_start: bool,
}

impl Unstuffer {
    /// For data from their first byte on.
    pub(super) const fn new() -> Self {
        Self {
            is_line_start: true,
        }
    }

    /// Takes the next piece off the input.
    pub(super) fn next<'a>(&mut self, input: &mut &'a [u8]) -> Piece<'a> {
        let bytes = *input;
        let mut at = 0;
        if self.is_line_start && bytes.first() == Some(&b'.') {
            match bytes.get(1..) {
                Some([b'\r', b'\n', rest @ ..]) => {
                    *input = rest;
                    return Piece::End;
                }
                Some([] | [b'\r']) | None => return Piece::Starved,
                // RFC 5321 4.5.2: the first dot goes, whatever follows it.
                Some(rest) => {
                    *input = rest;
                    self.is_line_start = false;
                    return self.next(input);
                }
            }
        }
        loop {
            let rest = bytes.get(at..).unwrap_or_default();
            let Some(found) = memchr::memchr2(b'\r', b'\n', rest) else {
                at = bytes.len();
                self.is_line_start &= rest.is_empty();
                break;
            };
            match rest.get(found..) {
                Some([b'\r', b'\n', after @ ..]) => {
                    at += found + 2;
                    self.is_line_start = true;
                    if after.first() == Some(&b'.') {
                        break;
                    }
                }
                Some([b'\r']) => {
                    at += found;
                    self.is_line_start &= found == 0;
                    break;
                }
                Some([b'\r', ..]) => return Piece::BareCr,
                _ => return Piece::BareLf,
            }
        }
        let (text, rest) = bytes.split_at(at);
        *input = rest;
        if text.is_empty() {
            Piece::Starved
        } else {
            Piece::Text(text)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds pieces of these sizes; content, how it ended, and what was left.
    fn feed(all: &[u8], sizes: &[usize]) -> (Vec<u8>, Option<Piece<'static>>, Vec<u8>) {
        let (mut unstuffer, mut out, mut held, mut at) =
            (Unstuffer::new(), Vec::new(), Vec::new(), 0);
        let mut sizes = sizes.iter().copied().cycle();
        loop {
            let mut input: &[u8] = &held;
            loop {
                match unstuffer.next(&mut input) {
                    Piece::Text(text) => out.extend_from_slice(text),
                    Piece::End => return (out, Some(Piece::End), [input, &all[at..]].concat()),
                    Piece::BareLf => return (out, Some(Piece::BareLf), Vec::new()),
                    Piece::BareCr => return (out, Some(Piece::BareCr), Vec::new()),
                    Piece::Starved => break,
                }
            }
            assert!(input.len() <= 2, "{input:?}");
            held = input.to_vec();
            if at == all.len() {
                return (out, None, held);
            }
            let size = sizes.next().unwrap_or(1).clamp(1, all.len() - at);
            held.extend_from_slice(&all[at..at + size]);
            at += size;
        }
    }

    fn stuff(content: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        for line in content.split_inclusive(|b| *b == b'\n') {
            if line.starts_with(b".") {
                out.push(b'.');
            }
            out.extend_from_slice(line);
        }
        out.extend_from_slice(b".\r\n");
        out
    }

    #[test]
    fn dots_are_taken_off_once() {
        let (out, end, rest) = feed(b"..\r\n...\r\n.a\r\nb.\r\n.\r\nQUIT\r\n", &[1000]);
        assert_eq!(out, b".\r\n..\r\na\r\nb.\r\n");
        assert_eq!(end, Some(Piece::End));
        assert_eq!(rest, b"QUIT\r\n");
    }

    #[test]
    fn only_crlf_dot_crlf_ends_and_bare_line_ends_are_errors_however_cut() {
        for (data, error) in [
            (&b"a\n.\n"[..], Piece::BareLf),
            (b"a\r\n.\nMAIL", Piece::BareLf),
            (b"a\n.\r\n", Piece::BareLf),
            (b"a\r.\r\n", Piece::BareCr),
            (b"a\r\n.\rx", Piece::BareCr),
            (b"a\r\r\n.\r\n", Piece::BareCr),
            (b"\n", Piece::BareLf),
            (b".\n", Piece::BareLf),
            (b"..\r.\r\n", Piece::BareCr),
        ] {
            for size in 1..=data.len() {
                assert_eq!(feed(data, &[size]).1, Some(error), "{data:?} by {size}");
            }
        }
        assert_eq!(feed(b"a\r\n.\r", &[1]).1, None);
    }

    proptest! {
        #[test]
        fn stuffing_and_unstuffing_is_the_identity(
            lines in proptest::collection::vec("[.a\\x00é]{0,6}", 0..12),
            sizes in proptest::collection::vec(1_usize..9, 1..6),
        ) {
            let content: Vec<u8> =
                lines.iter().flat_map(|line| [line.as_bytes(), b"\r\n"].concat()).collect();
            let mut wire = stuff(&content);
            wire.extend_from_slice(b"QUIT\r\n");
            let (out, end, rest) = feed(&wire, &sizes);
            prop_assert_eq!(end, Some(Piece::End));
            prop_assert_eq!(out, content);
            prop_assert_eq!(rest, b"QUIT\r\n".to_vec());
        }

        #[test]
        fn no_cut_changes_the_result_and_no_bare_line_end_passes(
            wire in proptest::collection::vec(
                proptest::sample::select(b"\r\n.ax\r\n".to_vec()), 0..40),
            sizes in proptest::collection::vec(1_usize..9, 1..6),
        ) {
            let (out, end, rest) = feed(&wire, &sizes);
            let (whole, whole_end, whole_rest) = feed(&wire, &[wire.len().max(1)]);
            prop_assert_eq!(end, whole_end);
            if matches!(end, None | Some(Piece::End)) {
                prop_assert_eq!(&out, &whole);
                prop_assert_eq!(&rest, &whole_rest);
            }
            for (at, byte) in out.iter().enumerate() {
                match byte {
                    b'\n' => prop_assert!(at > 0 && out[at - 1] == b'\r'),
                    b'\r' if at + 1 < out.len() => prop_assert_eq!(out[at + 1], b'\n'),
                    b'\r' => prop_assert!(end.is_none(), "content ends with a bare CR"),
                    _ => {}
                }
            }
        }
    }
}
