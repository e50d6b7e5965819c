//! Content as DATA carries it (L2): dots at line starts doubled, every line end CRLF. Pure.
//!
//! The content is handed in pieces of any size; nothing but two bytes of state is kept between them. A bare CR or LF,
//! which content should not have, becomes a line end: passed on, it could end the message for one server and not for
//! another (RFC 5321 2.3.8, 4.5.2).

/// Doubles dots and mends line ends.
#[derive(Debug)]
pub(crate) struct Dotted {
    is_line_start: bool,
    /// The last byte was a CR, of which it is not known yet whether a LF follows.
    has_cr: bool,
}

impl Dotted {
    pub(crate) const fn new() -> Self {
        Self {
            is_line_start: true,
            has_cr: false,
        }
    }

    /// Appends a piece to `out`.
    pub(crate) fn piece(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        let mut rest = piece;
        while let Some(first) = rest.first() {
            if self.has_cr {
                self.has_cr = false;
                self.end_line(out);
                if *first == b'\n' {
                    rest = rest.get(1..).unwrap_or_default();
                    continue;
                }
            }
            if self.is_line_start && *first == b'.' {
                out.push(b'.');
            }
            let end = rest
                .iter()
                .position(|byte| matches!(byte, b'\r' | b'\n'))
                .unwrap_or(rest.len());
            let (text, more) = rest.split_at(end);
            out.extend_from_slice(text);
            self.is_line_start = self.is_line_start && text.is_empty();
            match more.first() {
                Some(b'\r') => self.has_cr = true,
                Some(_) => self.end_line(out),
                None => {}
            }
            rest = more.get(1..).unwrap_or_default();
        }
    }

    /// Appends what ends the content: the line end that may be missing, and the final dot.
    pub(crate) fn end(mut self, out: &mut Vec<u8>) {
        if self.has_cr || !self.is_line_start {
            self.end_line(out);
        }
        out.extend_from_slice(b".\r\n");
    }

    fn end_line(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"\r\n");
        self.is_line_start = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn dotted<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
        let mut out = Vec::new();
        let mut dotted = Dotted::new();
        for piece in pieces {
            dotted.piece(piece, &mut out);
        }
        dotted.end(&mut out);
        out
    }

    #[test]
    fn dots_are_doubled_at_line_starts_alone() {
        for (content, wire) in [
            (
                &b"a\r\n.\r\n..b.\r\n"[..],
                &b"a\r\n..\r\n...b.\r\n.\r\n"[..],
            ),
            (b"", b".\r\n"),
            (b".", b"..\r\n.\r\n"),
            (b"no end", b"no end\r\n.\r\n"),
            (b"a\n.\nb\r.\rc\r", b"a\r\n..\r\nb\r\n..\r\nc\r\n.\r\n"),
            (b"\r\r\n\n", b"\r\n\r\n\r\n.\r\n"),
        ] {
            assert_eq!(
                dotted([content]),
                wire,
                "{:?}",
                String::from_utf8_lossy(content)
            );
        }
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference_and_the_end_comes_once(
            content in proptest::collection::vec(
                prop_oneof![Just(b'.'), Just(b'\r'), Just(b'\n'), Just(b'x')], 0..40),
            size in 1_usize..7,
        ) {
            let whole = dotted([&content[..]]);
            prop_assert_eq!(&dotted(content.chunks(size)), &whole);
            prop_assert!(whole.ends_with(b".\r\n"));
            // No line but the last is a single dot, and no CR or LF stands alone.
            let lines: Vec<&[u8]> = whole.strip_suffix(b"\r\n").unwrap()
                .split(|b| *b == b'\n').collect();
            for (at, line) in lines.iter().enumerate() {
                let line = line.strip_suffix(b"\r").unwrap_or(line);
                prop_assert!(!line.contains(&b'\r'));
                prop_assert_eq!(line == b".", at + 1 == lines.len());
            }
        }
    }
}
