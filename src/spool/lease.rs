//! One runner's claim on a message.

use std::sync::Arc;

use super::{Inner, lock};
use crate::envelope::MessageId;

/// A claim on a message's due recipients, with a deadline; in memory only. Dropping it gives the message back, due at
/// the time it was due before. Once the deadline has passed, another may lease the message; whatever is then recorded
/// under this lease is refused with [`super::SpoolError::LeaseLost`].
pub struct Lease {
    pub(super) id: MessageId,
    pub(super) epoch: u64,
    pub(super) may_be_held: bool,
    pub(super) inner: Arc<Inner>,
}

impl Lease {
    /// The leased message.
    #[must_use]
    pub fn id(&self) -> MessageId {
        self.id
    }

    /// Whether the message is to be tried although it is held.
    #[must_use]
    pub fn may_be_held(&self) -> bool {
        self.may_be_held
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Lease({}, epoch {})", self.id, self.epoch)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        lock(&self.inner.index).end_claim(self.id, self.epoch);
        self.inner.wake();
    }
}
