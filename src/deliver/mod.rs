//! Handing messages over (L2): to mailboxes, programs and files of this host and to other hosts by SMTP.
//!
//! Guarantees: [`Mailers::attempt`] gives exactly one [`Outcome`] for each recipient, whatever happens: a panic in a
//! mailer, a lost connection or a limit of time becomes a deferral. Delivered means that somebody took responsibility:
//! a mailbox append was synced, or a remote server answered the final dot with 2yz. A crash before the outcome is
//! recorded repeats the delivery (I6). What is not known to be permanent is deferred. May touch: the network, the
//! mailbox directory. File work runs on the blocking pool; nothing blocks a runtime thread.
//! Limits: [`ATTEMPT_TIME_MAX`] and those of the mailers' files.

mod cache;
pub mod client;
mod content;
mod dotted;
pub mod dsn;
mod exit_code;
mod file;
mod hosts;
mod lmtp;
pub mod local;
pub(crate) mod mailbox;
pub(crate) mod maildir;
pub(crate) mod mbox;
pub mod named;
pub mod program;
mod reply;
pub mod smtp;
mod turns;

use std::future::Future;
use std::io::{self, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::address::Domain;
use crate::clock::Clock;
use crate::dns::Resolver;
use crate::envelope::{Delivery, Envelope, MessageId, Outcome, Recipient, RecipientId};
use crate::status::Status;

pub use client::SmtpTimeouts;
pub use local::MailboxOptions;
pub use named::NamedOptions;
pub use smtp::{ConnectionRules, Greeted, SmtpOptions};

use local::Mailboxes;
use named::Named;
use smtp::SmtpMailer;

/// Longest time one attempt may take before what is still open is deferred. Well above the sum of the time limits of
/// a dialogue that moves; it stops a peer that takes a byte an hour.
pub const ATTEMPT_TIME_MAX: Duration = Duration::from_secs(4 * 3600);

/// The host that is next on the way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum NextHop {
    /// The mail hosts of a domain, or the domain's own address (RFC 5321 5.1). Address literals and bracketed host
    /// names are taken as [`NextHop::Host`].
    Mx(Domain),
    /// One host, without looking for MX records.
    Host {
        /// A host name, or an address literal as `[127.0.0.1]`.
        name: String,
        /// TCP port; the mailers' own port if `None`.
        port: Option<u16>,
    },
    /// Each of these, in this order, until one takes the message.
    Several(Vec<Self>),
}

/// Where a group of recipients is handed over.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Destination {
    /// The mailbox of a user of this host.
    Mailbox,
    /// Programs: mailer `prog`.
    Programs,
    /// Files: mailer `*file*`.
    Files,
    /// A mailer by its name.
    Named {
        /// The mailer.
        mailer: String,
        /// The host (`$h`); empty if it needs none.
        host: String,
    },
    /// Another host, by SMTP.
    Smtp {
        /// Name of the mailer as the log shows it: `esmtp` or `relay`.
        mailer: &'static str,
        /// The host.
        hop: NextHop,
    },
}

/// A recipient to be served in an attempt.
#[derive(Debug, Clone)]
pub struct DeliveryRecipient {
    /// Its number in the message.
    pub id: RecipientId,
    /// What the envelope or an expansion says of it.
    pub recipient: Recipient,
    /// Login name for [`Destination::Mailbox`], command for [`Destination::Programs`], path for [`Destination::Files`],
    /// `$u` for [`Destination::Named`], address for the wire (without angle brackets) for SMTP.
    pub user: String,
}

/// Opens the message's content for reading from its start: header and body, CRLF, not dot-stuffed. May block; called
/// on the blocking pool.
pub type ContentOpener = Arc<dyn Fn() -> io::Result<Box<dyn Read + Send>> + Send + Sync>;

/// Takes the lines that `-v` and `VERB` show, such as `bob... Connecting to local...` and `>>> EHLO h`; without line
/// end. Must not block.
pub type Verbose = Arc<dyn Fn(&str) + Send + Sync>;

/// The right to be one of the messages that are attempted at once; it ends when its last clone is dropped. Mailers whose
/// own workers bound what is done at once let go of it while their recipients wait for them.
#[derive(Clone, Default)]
pub struct Place {
    _held: Option<Arc<dyn Send + Sync>>,
}

impl Place {
    /// A right that ends when `held` is dropped. The default one is nobody's, and ends unnoticed.
    #[must_use]
    pub fn new(held: impl Send + Sync + 'static) -> Self {
        Self {
            _held: Some(Arc::new(held)),
        }
    }
}

/// One message for recipients with the same [`Destination`].
#[derive(Clone)]
pub struct Attempt {
    /// The message.
    pub id: MessageId,
    /// Its envelope.
    pub envelope: Arc<Envelope>,
    /// Whom to serve.
    pub recipients: Vec<DeliveryRecipient>,
    /// Its content.
    pub content: ContentOpener,
    /// Size of the content in bytes, as it will be sent.
    pub content_bytes: u64,
    /// Whether the message was never tried before, so that `Timeout.iconnect` applies.
    pub is_first: bool,
    /// Who wants to watch. The mailers say every line that belongs to the attempt, its result included.
    pub verbose: Option<Verbose>,
    /// What it takes of all that may be attempted at once.
    pub place: Place,
}

/// Whom a mailbox must belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MailboxOwner {
    /// Numeric user id.
    pub uid: u32,
    /// Numeric group id a new mailbox gets.
    pub gid: u32,
}

/// Finds the owner of a login name's mailbox: `None` if there is no such user, an error if it could not be found out
/// (I9). May block; called on the blocking pool. In a sandbox it answers with the ids of the process for every user.
pub type OwnerLookup = Arc<dyn Fn(&str) -> io::Result<Option<MailboxOwner>> + Send + Sync>;

/// Settings of all mailers.
#[derive(Clone)]
pub struct DeliverOptions {
    /// The host's own name: `MAILER-DAEMON@` it is the null sender's name in mailboxes.
    pub host_name: String,
    /// Settings of mailboxes.
    pub mailboxes: MailboxOptions,
    /// Settings of programs, files and mailers that are defined.
    pub named: NamedOptions,
    /// Settings of the SMTP client.
    pub smtp: SmtpOptions,
}

/// All ways to deliver. Cheap to clone; clones share mailbox workers and the connection cache.
#[derive(Clone)]
pub struct Mailers {
    mailboxes: Arc<Mailboxes>,
    named: Arc<Named>,
    smtp: Arc<SmtpMailer>,
}

impl Mailers {
    /// Mailers with these settings. `owners` finds whom a mailbox belongs to.
    #[must_use]
    pub fn new(
        options: DeliverOptions,
        owners: OwnerLookup,
        resolver: Arc<dyn Resolver>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let named = Named::new(
            options.named,
            options.mailboxes.clone(),
            options.host_name.clone(),
            Arc::clone(&clock),
        );
        Self {
            named: Arc::new(named),
            mailboxes: Arc::new(Mailboxes::new(
                options.host_name,
                options.mailboxes,
                owners,
                clock,
            )),
            smtp: Arc::new(SmtpMailer::new(options.smtp, resolver)),
        }
    }

    /// Tries once to hand a message over to recipients of one destination: exactly one outcome for each of them, in
    /// their order, always, within [`ATTEMPT_TIME_MAX`].
    ///
    /// # Durability
    /// A delivered mailbox append has been synced; a message delivered by SMTP has been acknowledged. If the future is
    /// dropped, deliveries under way may still happen (I6).
    ///
    /// Blocks: never; work on files runs on the blocking pool. Needs a tokio runtime with time and network.
    pub async fn attempt(
        &self,
        destination: &Destination,
        mut attempt: Attempt,
    ) -> Vec<(RecipientId, Outcome)> {
        let place = std::mem::take(&mut attempt.place);
        let ids: Vec<RecipientId> = attempt.recipients.iter().map(|r| r.id).collect();
        let mut results = Results::new(ids.len());
        let mailer = destination.mailer();
        let ended = {
            let work: Pin<Box<dyn Future<Output = ()> + Send + '_>> = match destination {
                Destination::Mailbox if self.named.has_local() => {
                    Box::pin(self.named.local(&attempt, place, &mut results))
                }
                Destination::Programs => {
                    Box::pin(self.named.run_commands(&attempt, place, &mut results))
                }
                Destination::Files => {
                    Box::pin(self.named.append_to_files(&attempt, place, &mut results))
                }
                Destination::Named { mailer, host } => {
                    Box::pin(
                        self.named
                            .deliver(mailer, host, &attempt, place, &mut results),
                    )
                }
                Destination::Mailbox => {
                    Box::pin(self.mailboxes.deliver(&attempt, place, &mut results))
                }
                Destination::Smtp { mailer, hop } => {
                    Box::pin(self.smtp.deliver(mailer, hop, &attempt, &mut results))
                }
            };
            tokio::time::timeout(ATTEMPT_TIME_MAX, NoPanic(work)).await
        };
        let missing = match ended {
            Ok(Ok(())) => "Deferred: the mailer gave no outcome",
            Ok(Err(())) => "Deferred: internal error of the mailer",
            Err(_) => "Deferred: the attempt took too long",
        };
        results.finish(&ids, || {
            Outcome::new(Delivery::Deferred, Status::new(4, 3, 0), mailer, missing)
        })
    }

    /// Closes the connections that are kept for later messages, politely where the other side answers.
    pub async fn close_idle(&self) {
        self.smtp.close_idle(None).await;
    }

    /// As [`Mailers::close_idle`], with the lines that `-v` shows.
    pub async fn close_idle_watched(&self, verbose: &Verbose) {
        self.smtp.close_idle(Some(verbose)).await;
    }
}

impl Destination {
    /// The mailer's name, as the log shows it.
    #[must_use]
    pub fn mailer(&self) -> &str {
        match self {
            Self::Mailbox => "local",
            Self::Programs => "prog",
            Self::Files => "*file*",
            Self::Named { mailer, .. } => mailer,
            Self::Smtp { mailer, .. } => mailer,
        }
    }
}

/// The outcomes of an attempt while it runs, by position of the recipient. The first outcome of a recipient stands.
pub(crate) struct Results(Vec<Option<Outcome>>);

impl Results {
    pub(crate) fn new(count: usize) -> Self {
        Self(vec![None; count])
    }

    /// Records an outcome, unless there is one.
    pub(crate) fn set(&mut self, position: usize, outcome: Outcome) {
        if let Some(slot) = self.0.get_mut(position) {
            slot.get_or_insert(outcome);
        }
    }

    /// The positions without outcome.
    pub(crate) fn open(&self) -> Vec<usize> {
        (0..self.0.len())
            .filter(|at| matches!(self.0.get(*at), Some(None)))
            .collect()
    }

    /// The outcomes so far, in the order of the recipients.
    pub(crate) fn outcomes(&self) -> &[Option<Outcome>] {
        &self.0
    }

    fn finish(
        self,
        ids: &[RecipientId],
        missing: impl Fn() -> Outcome,
    ) -> Vec<(RecipientId, Outcome)> {
        ids.iter()
            .zip(self.0)
            .map(|(id, outcome)| (*id, outcome.unwrap_or_else(&missing)))
            .collect()
    }
}

/// Says a verbose line, if somebody listens.
pub(crate) fn say(verbose: Option<&Verbose>, line: impl FnOnce() -> String) {
    if let Some(verbose) = verbose {
        verbose(&line());
    }
}

/// A future whose panic ends it with an error instead of ending its task.
struct NoPanic<'a>(Pin<Box<dyn Future<Output = ()> + Send + 'a>>);

impl Future for NoPanic<'_> {
    type Output = Result<(), ()>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // The future is not polled again after a panic, and what it shared is guarded against half-done changes by
        // taking poisoned locks over.
        match catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(context))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(())) => Poll::Ready(Ok(())),
            Err(_) => Poll::Ready(Err(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_becomes_an_error() {
        let work = NoPanic(Box::pin(async { panic!("as a test of what catches it") }));
        assert_eq!(work.await, Err(()));
        assert_eq!(NoPanic(Box::pin(async {})).await, Ok(()));
    }

    #[test]
    fn every_recipient_has_exactly_one_outcome() {
        let outcome =
            |text: &str| Outcome::new(Delivery::Delivered, Status::OK, "local", text.to_owned());
        let ids = [RecipientId(7), RecipientId(9)];
        let mut results = Results::new(2);
        results.set(1, outcome("first"));
        results.set(1, outcome("second"));
        results.set(5, outcome("no such recipient"));
        assert_eq!(results.open(), [0]);
        let all = results.finish(&ids, || outcome("missing"));
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].0, all[0].1.text.as_str()), (ids[0], "missing"));
        assert_eq!((all[1].0, all[1].1.text.as_str()), (ids[1], "first"));
    }
}
