//! Delivery to the mailboxes of this host (L2).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::{Attempt, OwnerLookup, Results};
use crate::clock::Clock;

/// Settings of mailboxes.
#[derive(Debug, Clone)]
pub struct MailboxOptions {
    /// The directory of mailboxes, `/var/mail`.
    pub directory: PathBuf,
    /// Longest wait for another program's lock on a mailbox.
    pub lock_wait_max: Duration,
}

/// The mailer `local`.
pub(crate) struct Mailboxes {
    _options: MailboxOptions,
}

impl Mailboxes {
    pub(crate) fn new(
        _host_name: String,
        options: MailboxOptions,
        _owners: OwnerLookup,
        _clock: Arc<dyn Clock>,
    ) -> Self {
        Self { _options: options }
    }

    pub(crate) async fn deliver(&self, _attempt: &Attempt, _results: &mut Results) {}
}
