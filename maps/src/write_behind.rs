//! A file written by a thread of its own, so that a large build goes on while the system copies and syncs what is done.
//!
//! The builder fills pieces of [`PIECE_BYTES`]; full ones go to the thread, at most [`PIECES_MAX`] under way, and come
//! back empty. Every [`SYNC_BYTES`] the thread syncs what it has written, so that the sync before publishing finds
//! little left. A file of less than one piece starts no thread. An error of the thread, that of a sync included, is the
//! error of the next write or of [`WriteBehind::finish`]; the thread has ended when `finish` returns or the value is
//! dropped.
//!
//! # Durability
//! None: syncing the whole file is left to `publish.rs`. Blocks: on disk.

#![deny(clippy::indexing_slicing)]

use std::fs::File;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};

/// Bytes of a piece.
const PIECE_BYTES: usize = 1 << 20;
/// Most pieces filled and not yet written.
const PIECES_MAX: usize = 3;
/// Bytes after which what was written is synced.
const SYNC_BYTES: usize = 32 << 20;

/// A buffered writer at a file's position; see the file's header.
pub(crate) struct WriteBehind {
    file: File,
    piece: Vec<u8>,
    thread: Option<Thread>,
}

struct Thread {
    full: SyncSender<Vec<u8>>,
    empty: Receiver<Vec<u8>>,
    handle: JoinHandle<io::Result<()>>,
}

impl WriteBehind {
    /// Writes on from where the file stands.
    pub(crate) fn new(file: &File) -> io::Result<Self> {
        Ok(Self {
            file: file.try_clone()?,
            piece: Vec::new(),
            thread: None,
        })
    }

    /// Writes what is left and waits for the thread.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        match self.thread {
            None => self.file.write_all(&self.piece),
            Some(_) => {
                self.hand_over()?;
                self.join()
            }
        }
    }

    /// Gives the piece to the thread, which is started if need be.
    fn hand_over(&mut self) -> io::Result<()> {
        let thread = match &mut self.thread {
            Some(thread) => thread,
            none => none.insert(Thread::start(self.file.try_clone()?)?),
        };
        let next = thread.empty.try_recv().unwrap_or_default();
        let piece = std::mem::replace(&mut self.piece, next);
        match thread.full.send(piece) {
            Ok(()) => Ok(()),
            // It has ended, which it does before its time only with an error.
            Err(_) => self.join(),
        }
    }

    fn join(&mut self) -> io::Result<()> {
        let Some(Thread {
            full,
            empty,
            handle,
        }) = self.thread.take()
        else {
            return Ok(());
        };
        drop((full, empty));
        handle
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the writing thread panicked")))
    }
}

impl Write for WriteBehind {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.piece.capacity() == 0 {
            self.piece.reserve_exact(PIECE_BYTES);
        }
        let room = PIECE_BYTES - self.piece.len();
        let taken = bytes.get(..room).unwrap_or(bytes);
        self.piece.extend_from_slice(taken);
        if self.piece.len() == PIECE_BYTES {
            self.hand_over()?;
        }
        Ok(taken.len())
    }

    /// Does nothing: what is under way is seen through by [`WriteBehind::finish`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for WriteBehind {
    fn drop(&mut self) {
        // The error that ended the build is the one to report.
        let _ = self.join();
    }
}

impl Thread {
    fn start(file: File) -> io::Result<Self> {
        let (full, filled) = sync_channel::<Vec<u8>>(PIECES_MAX);
        let (emptied, empty) = sync_channel(PIECES_MAX + 2);
        let handle = Builder::new()
            .name("map-writer".to_owned())
            .spawn(move || write_all(file, &filled, &emptied))?;
        Ok(Self {
            full,
            empty,
            handle,
        })
    }
}

fn write_all(
    mut file: File,
    filled: &Receiver<Vec<u8>>,
    emptied: &SyncSender<Vec<u8>>,
) -> io::Result<()> {
    let mut unsynced = 0;
    for mut piece in filled {
        file.write_all(&piece)?;
        unsynced += piece.len();
        piece.clear();
        // With no room, or nobody to take it, the piece is freed.
        let _ = emptied.try_send(piece);
        if unsynced >= SYNC_BYTES {
            file.sync_data()?;
            unsynced = 0;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Seek;

    fn pattern(len: usize) -> Vec<u8> {
        (0..len).map(|at| (at / 7 % 251).to_le_bytes()[0]).collect()
    }

    #[test]
    fn bytes_arrive_in_order_whatever_their_number() {
        let dir = tempfile::tempdir().unwrap();
        for (number, len) in [0, 1, PIECE_BYTES - 1, PIECE_BYTES, 5 * PIECE_BYTES + 3]
            .into_iter()
            .enumerate()
        {
            let path = dir.path().join(number.to_string());
            let mut file = File::create(&path).unwrap();
            file.write_all(b"before").unwrap();
            let bytes = pattern(len);
            let mut out = WriteBehind::new(&file).unwrap();
            for part in bytes.chunks(4099) {
                out.write_all(part).unwrap();
            }
            out.finish().unwrap();
            assert_eq!(file.stream_position().unwrap(), 6 + len as u64);
            let read = std::fs::read(&path).unwrap();
            assert!(read.strip_prefix(b"before").unwrap() == bytes, "{len}");
        }
    }

    #[test]
    fn only_large_files_start_a_thread() {
        let dir = tempfile::tempdir().unwrap();
        let file = File::create(dir.path().join("f")).unwrap();
        let mut out = WriteBehind::new(&file).unwrap();
        out.write_all(&pattern(PIECE_BYTES - 1)).unwrap();
        assert!(out.thread.is_none());
        out.write_all(&[1]).unwrap();
        assert!(out.thread.is_some());
    }

    #[test]
    fn an_error_of_the_thread_is_reported() {
        // A full disk: in one piece with no thread, and met by the thread while the builder goes on or finishes.
        for len in [10, PIECE_BYTES + 10, 40 * PIECE_BYTES] {
            let full = std::fs::OpenOptions::new()
                .write(true)
                .open("/dev/full")
                .unwrap();
            let mut out = WriteBehind::new(&full).unwrap();
            let done = out.write_all(&pattern(len)).and_then(|()| out.finish());
            assert_eq!(
                done.unwrap_err().kind(),
                io::ErrorKind::StorageFull,
                "{len}"
            );
        }
    }
}
