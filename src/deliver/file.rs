//! The mailer `*file*` (L2): messages appended to files that aliases and `.forward`s name.
//!
//! Guarantees: the file is opened with its user's rights and by the rules of [`crate::safe_file`]; delivered means synced;
//! what could not be written whole is cut off again by the process that wrote it, under its lock. A file that somebody
//! holds locked makes the mail wait; one that may not be written fails for good, as in Sendmail. Messages that wait for one
//! file and act for one user share its opening, lock and sync. What waits takes no place of what may be attempted at once.
//! Limits: [`LIMITS`]. Source: Sendmail's mailfile(), transcript 62 part 5.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::oneshot;

use super::exit_code::CANT_CREATE;
use super::mailbox::{MailboxError, OpenMailbox};
use super::mbox;
use super::turns::{Limits, Turns};
use super::{Attempt, ContentOpener, MailboxOptions};
use crate::address::ReversePath;
use crate::clock::Clock;
use crate::envelope::{Delivery, Outcome, ProgramEnd};
use crate::safe_file::{self, Who};
use crate::status::{Status, Verdict};

/// The mailer's name in the log.
pub(crate) const MAILER: &str = "*file*";
/// Sendmail's words for a file that can't be written.
const REFUSED: &str = "Can't create output";

/// How files are served.
const LIMITS: Limits = Limits {
    workers: 8,
    waiting: 10_000,
    batch_jobs: 256,
    batch_bytes: 16 << 20,
};

/// A file, and who writes to it.
type Place = (PathBuf, Who);

/// The mailer `*file*`.
pub(crate) struct Files {
    turns: Arc<Turns<Place, Job>>,
}

/// One message for one file.
struct Job {
    sender: ReversePath,
    content: ContentOpener,
    done: oneshot::Sender<Outcome>,
}

struct Shared {
    host_name: String,
    options: MailboxOptions,
    clock: Arc<dyn Clock>,
}

impl Files {
    pub(crate) fn new(host_name: String, options: MailboxOptions, clock: Arc<dyn Clock>) -> Self {
        let shared = Shared {
            host_name,
            options,
            clock,
        };
        let serve = move |turns: &Turns<Place, Job>, place: &Place, batch| {
            shared.serve(turns, place, batch);
        };
        Self {
            turns: Turns::new(LIMITS, serve),
        }
    }

    /// Has a message appended to a file with a user's rights.
    pub(crate) fn enqueue(
        &self,
        path: &Path,
        who: Who,
        attempt: &Attempt,
    ) -> Result<oneshot::Receiver<Outcome>, Outcome> {
        let (done, receiver) = oneshot::channel();
        let job = Job {
            sender: attempt.envelope.reverse_path.clone(),
            content: Arc::clone(&attempt.content),
            done,
        };
        self.turns
            .push((path.to_owned(), who), attempt.content_bytes, job)
            .map_err(|_| deferred("too many messages wait for the file"))?;
        Ok(receiver)
    }
}

impl Shared {
    /// Appends a batch under one lock and one sync.
    fn serve(&self, turns: &Turns<Place, Job>, place: &Place, batch: Vec<Job>) {
        let (path, who) = place;
        let mut open = match self.open(path, *who) {
            Ok(Some(open)) => open,
            Ok(None) => return answer_all(batch, &sent()),
            Err(Refused { outcome, is_locked }) => {
                // What came meanwhile would wait as long again for the lock.
                let later = is_locked.then(|| turns.take_waiting(place));
                let all = batch.into_iter().chain(later.into_iter().flatten());
                return answer_all(all, &outcome);
            }
        };
        let mut appended = Vec::with_capacity(batch.len());
        for job in batch {
            let name = mbox::sender_name(&job.sender, &self.host_name);
            let from = mbox::from_line(&job.sender, &self.host_name, self.clock.unix_ms());
            let preamble = format!("{from}Return-Path: <{name}>\n");
            let result = (job.content)()
                .map_err(MailboxError::Content)
                .and_then(|content| open.append(&preamble, content));
            match result {
                Ok(()) => appended.push(job),
                Err(error) => answer_all([job], &outcome_of(&error)),
            }
        }
        if appended.is_empty() {
            return;
        }
        let outcome = match open.sync() {
            Ok(()) => sent(),
            Err(error) => outcome_of(&error),
        };
        // The lock goes first: whoever is told of the delivery may look at the file.
        drop(open);
        answer_all(appended, &outcome);
    }

    /// Opens a file and takes its locks; `None` for the one that keeps nothing.
    fn open(&self, path: &Path, who: Who) -> Result<Option<OpenMailbox>, Refused> {
        let options = &self.options;
        let opened = match &options.part {
            Some(part) => part
                .open_append(path, who)
                .map(|opened| (opened.file, opened.directory)),
            None => safe_file::open_append(path, who, &options.file_lenience),
        };
        let refused = |outcome| Refused {
            outcome,
            is_locked: false,
        };
        let (file, directory) = match opened {
            Ok(opened) => opened,
            Err(refusal) if refusal.verdict() == Verdict::Temporary => {
                let reason = format!("{}: {refusal}", path.display());
                return Err(refused(deferred(&reason)));
            }
            Err(refusal) => {
                let mut outcome =
                    Outcome::new(Delivery::Failed, Status::new(5, 0, 0), MAILER, REFUSED);
                outcome.program = Some(Box::new(ProgramEnd {
                    exit_code: CANT_CREATE,
                    output: vec![format!("{}: {refusal}", path.display())],
                }));
                return Err(refused(outcome));
            }
        };
        if path == Path::new("/dev/null") {
            return Ok(None);
        }
        let wait_max = options.lock_wait_max;
        OpenMailbox::of_file(path, file, directory, wait_max, &*self.clock)
            .map(Some)
            .map_err(|error| Refused {
                outcome: outcome_of(&error),
                is_locked: matches!(error, MailboxError::Locked { .. }),
            })
    }
}

/// What comes of a file that was not opened.
struct Refused {
    outcome: Outcome,
    is_locked: bool,
}

fn sent() -> Outcome {
    Outcome::new(Delivery::Delivered, Status::OK, MAILER, "Sent")
}

fn answer_all(jobs: impl IntoIterator<Item = Job>, outcome: &Outcome) {
    for job in jobs {
        // Nobody waits if the attempt was given up; the delivery stands all the same (I6).
        let _ = job.done.send(outcome.clone());
    }
}

fn deferred(reason: &str) -> Outcome {
    let text = format!("Deferred: {reason}");
    Outcome::new(Delivery::Deferred, Status::new(4, 3, 0), MAILER, text)
}

fn outcome_of(error: &MailboxError) -> Outcome {
    Outcome::by_verdict(
        error.verdict(),
        error.status(),
        MAILER,
        format!("Deferred: {error}"),
    )
}
