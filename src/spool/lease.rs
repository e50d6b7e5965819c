//! One runner's claim on a message.

use crate::envelope::MessageId;

/// A claim on a message's due recipients, with a deadline; in memory only. Dropping it gives the message back.
#[derive(Debug)]
pub struct Lease {
    pub(super) id: MessageId,
}

impl Lease {
    /// The leased message.
    #[must_use]
    pub fn id(&self) -> MessageId {
        self.id
    }
}
