//! A message's content, read in pieces without blocking a runtime thread (L2).
//!
//! Every read is done on the blocking pool. The first begins at once, so that it is done while a server still answers
//! to the envelope. Memory: one piece of [`PIECE_BYTES`].

use std::io::{self, Read};
use std::sync::Arc;

use tokio::task::{JoinHandle, spawn_blocking};

use super::ContentOpener;

/// Bytes read at once.
pub(crate) const PIECE_BYTES: usize = 128 * 1024;

type Opened = Box<dyn Read + Send>;

/// One piece, and the reader if there may be more.
type PieceRead = io::Result<(Vec<u8>, Option<Opened>)>;

/// Reads content piece by piece.
pub(crate) struct Pieces {
    next: Option<JoinHandle<PieceRead>>,
}

impl Pieces {
    /// Opens the content and begins to read it.
    pub(crate) fn open(content: &ContentOpener) -> Self {
        let content = Arc::clone(content);
        Self {
            next: Some(spawn_blocking(move || read_piece(content()?))),
        }
    }

    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// What the reader says; temporary. There is nothing more to be had after an error.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let Some(handle) = self.next.take() else {
            return Ok(None);
        };
        let (piece, reader) = handle
            .await
            .map_err(|_| io::Error::other("reading the content panicked"))??;
        self.next = reader.map(|reader| spawn_blocking(move || read_piece(reader)));
        Ok((!piece.is_empty()).then_some(piece))
    }

    /// Whether the piece given last was the last one.
    pub(crate) fn is_at_end(&self) -> bool {
        self.next.is_none()
    }
}

fn read_piece(mut reader: Opened) -> PieceRead {
    let mut piece = Vec::new();
    let limit = u64::try_from(PIECE_BYTES).unwrap_or(u64::MAX);
    let read = (&mut reader).take(limit).read_to_end(&mut piece)?;
    Ok((piece, (read == PIECE_BYTES).then_some(reader)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    #[tokio::test]
    async fn content_comes_whole_and_in_bounded_pieces() {
        for size in [0, 1, PIECE_BYTES, PIECE_BYTES * 2 + 1] {
            let content: ContentOpener =
                Arc::new(move || Ok(Box::new(Cursor::new(vec![b'x'; size]))));
            let mut pieces = Pieces::open(&content);
            let mut total = 0;
            while let Some(piece) = pieces.next().await.unwrap() {
                assert!(piece.len() <= PIECE_BYTES);
                total += piece.len();
            }
            assert_eq!(total, size);
            assert!(pieces.is_at_end());
        }
    }

    #[tokio::test]
    async fn errors_of_opening_and_panics_come_as_errors() {
        let failing: ContentOpener = Arc::new(|| Err(io::Error::other("gone")));
        assert!(Pieces::open(&failing).next().await.is_err());
        let panics: ContentOpener = Arc::new(|| panic!("as a test of what becomes of it"));
        assert!(Pieces::open(&panics).next().await.is_err());
    }
}
