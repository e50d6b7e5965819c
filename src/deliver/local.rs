//! The mailer `local` (L2): messages into the mailboxes of this host's users.
//!
//! Guarantees: an outcome says delivered only after a sync that covers the message's bytes. Messages that arrive for a
//! mailbox while others are served share its next opening, lock and sync. A few workers on the blocking pool, which live
//! while there is work, take the mailboxes in turns: the more mail waits, the more of it shares a sync, and the system
//! joins the flushes of several mailboxes. What waits takes no place of what may be attempted at once.
//! Trouble with a mailbox defers; a user who no longer exists is the one permanent failure.
//! Limits: [`BATCH_MESSAGES_MAX`], [`BATCH_BYTES_MAX`], [`WAITING_MAX`], [`WORKERS_MAX`], the wait for locks in [`MailboxOptions`].
//! Source: mail.local(8), and Sendmail's words for its outcomes.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use super::mailbox::{MailboxError, OpenMailbox};
use super::mbox;
use super::turns::{Limits, Turns};
use super::{Attempt, ContentOpener, MailboxOwner, OwnerLookup, Place, Results, say};
use crate::address::ReversePath;
use crate::clock::Clock;
use crate::envelope::{Delivery, Outcome};
use crate::privileged::Part;
use crate::safe_file::Lenience;
use crate::status::Status;

/// How mailboxes are served.
const LIMITS: Limits = Limits {
    workers: WORKERS_MAX,
    waiting: WAITING_MAX,
    batch_jobs: BATCH_MESSAGES_MAX,
    batch_bytes: BATCH_BYTES_MAX,
};
/// Messages appended under one lock and one sync.
pub const BATCH_MESSAGES_MAX: usize = 256;
/// Bytes of content after which a batch is synced.
pub const BATCH_BYTES_MAX: u64 = 16 << 20;
/// Messages that may wait for one mailbox; more are deferred.
pub const WAITING_MAX: usize = 10_000;
/// Mailboxes that are served at once.
pub const WORKERS_MAX: usize = 24;
/// The mailer's name in the log.
const MAILER: &str = "local";

/// Settings of mailboxes.
#[derive(Debug, Clone)]
pub struct MailboxOptions {
    /// The directory of mailboxes, `/var/mail`.
    pub directory: PathBuf,
    /// Longest wait for another program's lock on a mailbox.
    pub lock_wait_max: Duration,
    /// What is let pass of the files that aliases and `.forward`s name; a privileged part has its own.
    pub file_lenience: Lenience,
    /// What opens mailboxes and files and runs programs with users' rights, if this process has not got them.
    pub part: Option<Arc<Part>>,
}

/// The mailer `local`.
pub(crate) struct Mailboxes {
    turns: Arc<Turns<String, Job>>,
    /// Holds the handler of SIGXFSZ, once there is one.
    file_size_signal: Mutex<Option<Signal>>,
}

struct Shared {
    host_name: String,
    options: MailboxOptions,
    owners: OwnerLookup,
    clock: Arc<dyn Clock>,
}

/// One message for one mailbox.
struct Job {
    sender: ReversePath,
    content: ContentOpener,
    done: oneshot::Sender<Outcome>,
}

impl Mailboxes {
    pub(crate) fn new(
        host_name: String,
        options: MailboxOptions,
        owners: OwnerLookup,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let shared = Shared {
            host_name,
            options,
            owners,
            clock,
        };
        let serve = move |turns: &Turns<String, Job>, user: &String, batch| {
            shared.serve(turns, user, batch);
        };
        Self {
            turns: Turns::new(LIMITS, serve),
            file_size_signal: Mutex::new(None),
        }
    }

    /// Delivers to each recipient's mailbox. Blocks: never; waits for the workers, without its place.
    pub(crate) async fn deliver(&self, attempt: &Attempt, place: Place, results: &mut Results) {
        self.survive_file_size_limit();
        let mut pending = Vec::with_capacity(attempt.recipients.len());
        for recipient in &attempt.recipients {
            say(attempt.verbose.as_ref(), || {
                format!("{}... Connecting to local...", recipient.recipient.shown())
            });
            pending.push(self.enqueue(&recipient.user, attempt));
        }
        drop(place);
        for (position, (recipient, pending)) in attempt.recipients.iter().zip(pending).enumerate() {
            let outcome = match pending {
                Ok(done) => done
                    .await
                    .unwrap_or_else(|_| deferred("internal error of the mailer")),
                Err(outcome) => outcome,
            };
            say(attempt.verbose.as_ref(), || {
                format!("{}... {}", recipient.recipient.shown(), outcome.text)
            });
            results.set(position, outcome);
        }
    }

    fn enqueue(
        &self,
        user: &str,
        attempt: &Attempt,
    ) -> Result<oneshot::Receiver<Outcome>, Outcome> {
        if !is_mailbox_name(user) {
            let mut outcome = deferred("the user's name cannot be that of a mailbox");
            outcome.status = Status::new(4, 3, 5);
            return Err(outcome);
        }
        let (done, receiver) = oneshot::channel();
        let job = Job {
            sender: attempt.envelope.reverse_path.clone(),
            content: Arc::clone(&attempt.content),
            done,
        };
        self.turns
            .push(user.to_owned(), attempt.content_bytes, job)
            .map_err(|_| deferred("too many messages wait for the mailbox"))?;
        Ok(receiver)
    }

    /// Beyond a file size limit (RLIMIT_FSIZE) the system sends SIGXFSZ, which kills a process that has no handler; with
    /// one, the write fails with EFBIG, which defers one message.
    fn survive_file_size_limit(&self) {
        let mut held = lock(&self.file_size_signal);
        if held.is_none() {
            *held = signal(SignalKind::from_raw(nix::libc::SIGXFSZ)).ok();
        }
    }
}

impl Shared {
    /// Appends a batch under one lock and one sync.
    fn serve(&self, turns: &Turns<String, Job>, user: &String, batch: Vec<Job>) {
        let owner = match (self.owners)(user) {
            Ok(Some(owner)) => owner,
            Ok(None) => {
                let outcome =
                    Outcome::new(Delivery::Failed, Status::NO_USER, MAILER, "User unknown");
                return answer_all(batch, &outcome);
            }
            Err(error) => {
                let reason = format!("user {user} could not be looked up: {error}");
                return answer_all(batch, &deferred(&reason));
            }
        };
        let path = self.options.directory.join(user);
        let wait_max = self.options.lock_wait_max;
        let opened = match &self.options.part {
            Some(part) => OpenMailbox::open_by(part, &path, user, wait_max, &*self.clock),
            None => OpenMailbox::open(&path, owner, wait_max, &*self.clock),
        };
        let mut mailbox = match opened {
            Ok(mailbox) => mailbox,
            Err(error @ MailboxError::Locked { .. }) => {
                // What came meanwhile would wait as long again.
                let all = batch.into_iter().chain(turns.take_waiting(user));
                return answer_all(all, &outcome_of(&error));
            }
            Err(error) => return answer_all(batch, &outcome_of(&error)),
        };
        let mut appended = Vec::with_capacity(batch.len());
        for job in batch {
            let preamble = mbox::preamble(&job.sender, &self.host_name, self.clock.unix_ms());
            let result = (job.content)()
                .map_err(MailboxError::Content)
                .and_then(|content| mailbox.append(&preamble, content));
            match result {
                Ok(()) => appended.push(job),
                Err(error) => answer(job, outcome_of(&error)),
            }
        }
        if appended.is_empty() {
            return;
        }
        let outcome = match mailbox.sync() {
            Ok(()) => Outcome::new(Delivery::Delivered, Status::OK, MAILER, "Sent"),
            Err(error) => outcome_of(&error),
        };
        // The locks go first: whoever is told of the delivery may look at the mailbox.
        drop(mailbox);
        answer_all(appended, &outcome);
    }
}

/// Appends one message to one mailbox and syncs it, for programs without a queue: `mail.local`.
///
/// # Durability
/// Delivered means synced.
///
/// Blocks: disk, and another program's lock for as long as the options say.
#[must_use]
pub fn deliver_once(
    options: &MailboxOptions,
    name: &str,
    owner: MailboxOwner,
    sender: &ReversePath,
    host_name: &str,
    content: impl std::io::Read,
    clock: &dyn Clock,
) -> Outcome {
    if !is_mailbox_name(name) {
        return deferred("the user's name cannot be that of a mailbox");
    }
    let path = options.directory.join(name);
    let appended =
        OpenMailbox::open(&path, owner, options.lock_wait_max, clock).and_then(|mut mailbox| {
            let preamble = mbox::preamble(sender, host_name, clock.unix_ms());
            mailbox.append(&preamble, content)?;
            mailbox.sync()
        });
    match appended {
        Ok(()) => Outcome::new(Delivery::Delivered, Status::OK, MAILER, "Sent"),
        Err(error) => outcome_of(&error),
    }
}

fn answer_all(batch: impl IntoIterator<Item = Job>, outcome: &Outcome) {
    for job in batch {
        answer(job, outcome.clone());
    }
}

fn answer(job: Job, outcome: Outcome) {
    // Nobody waits if the attempt was given up; the delivery stands all the same (I6).
    let _ = job.done.send(outcome);
}

fn deferred(reason: &str) -> Outcome {
    Outcome::new(
        Delivery::Deferred,
        Status::new(4, 3, 0),
        MAILER,
        format!("Deferred: {reason}"),
    )
}

fn outcome_of(error: &MailboxError) -> Outcome {
    Outcome::by_verdict(
        error.verdict(),
        error.status(),
        MAILER,
        format!("Deferred: {error}"),
    )
}

/// Whether a login name can be a file name in the mailbox directory, and not that of a lock or a hidden file.
fn is_mailbox_name(user: &str) -> bool {
    const NAME_BYTES_MAX: usize = 250;
    !user.is_empty()
        && user.len() <= NAME_BYTES_MAX
        && !user.starts_with('.')
        && !user.ends_with(".lock")
        && !user.contains(['/', '\0', '\n'])
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_directory_are_no_mailboxes() {
        for good in ["bob", "bob+x", "a b", "x.y"] {
            assert!(is_mailbox_name(good), "{good}");
        }
        for bad in ["", ".", "..", ".x", "a/b", "../etc/x", "bob.lock", "a\0b"] {
            assert!(!is_mailbox_name(bad), "{bad:?}");
        }
        assert!(!is_mailbox_name(&"x".repeat(251)));
    }
}
