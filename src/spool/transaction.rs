//! A new message on its way into the journal, and the ticket that says when it is there.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::SpoolError;
use crate::envelope::{Envelope, MessageId};

/// A message being received. Dropping it abandons the message: nothing of it will ever be visible.
pub struct Transaction {}

impl Transaction {
    /// The id the message will have.
    #[must_use]
    pub fn id(&self) -> MessageId {
        unimplemented!()
    }

    /// Adds bytes of content (header and body as they will be sent, CRLF, undotted). Full chunks go to the writer.
    /// Blocks: never. Before reading more from the network, wait for [`Transaction::room`].
    ///
    /// # Errors
    /// [`SpoolError::Poisoned`].
    pub fn append_content(&mut self, _bytes: &[u8]) -> Result<(), SpoolError> {
        unimplemented!()
    }

    /// Resolves when the writer's queue is below its limit: at once unless the disk is behind.
    pub fn room(&self) -> Room {
        unimplemented!()
    }

    /// Bytes of content so far.
    #[must_use]
    pub fn content_bytes(&self) -> u64 {
        unimplemented!()
    }

    /// Hands the message to the writer. Blocks: never.
    ///
    /// # Durability
    /// When the ticket resolves with `Ok`, content and envelope have been synced (I1).
    pub fn commit(self, _envelope: Envelope) -> CommitTicket {
        unimplemented!()
    }
}

/// Resolves when the batch that holds a transaction has been synced, or failed. A future for any runtime.
pub struct CommitTicket {}

impl CommitTicket {
    /// Waits by blocking the thread.
    ///
    /// # Errors
    /// As the future's output: [`SpoolError::Full`] or [`SpoolError::TooLarge`] if it was refused before the write
    /// and left nothing; [`SpoolError::Poisoned`] if a write or sync failed.
    pub fn wait(self) -> Result<MessageId, SpoolError> {
        unimplemented!()
    }
}

impl Future for CommitTicket {
    type Output = Result<MessageId, SpoolError>;

    fn poll(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<Self::Output> {
        unimplemented!()
    }
}

/// A future that resolves when the writer has room.
pub struct Room {}

impl Future for Room {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<()> {
        unimplemented!()
    }
}
