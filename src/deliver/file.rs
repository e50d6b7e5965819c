//! The mailer `*file*` (L2): messages appended to files that aliases and `.forward`s name.
//!
//! Guarantees: the file is opened with its user's rights and by the rules of [`crate::safe_file`]; delivered means synced;
//! what could not be written whole is cut off again by the process that wrote it, under its lock. A file that somebody
//! holds locked makes the mail wait; one that may not be written fails for good, as in Sendmail. Blocks: disk; called on
//! the blocking pool. Source: Sendmail's mailfile(), transcript 62 part 5.

use std::path::Path;
use std::time::Duration;

use super::exit_code::CANT_CREATE;
use super::mailbox::{MailboxError, OpenMailbox};
use super::mbox;
use super::{ContentOpener, MailboxOptions};
use crate::address::ReversePath;
use crate::clock::Clock;
use crate::envelope::{Delivery, Outcome, ProgramEnd};
use crate::safe_file::{self, Who};
use crate::status::{Status, Verdict};

/// The mailer's name in the log.
pub(crate) const MAILER: &str = "*file*";
/// Sendmail's words for a file that can't be written.
const REFUSED: &str = "Can't create output";

/// Appends one message.
pub(crate) fn deliver(
    path: &Path,
    who: Who,
    sender: &ReversePath,
    host_name: &str,
    content: &ContentOpener,
    options: &MailboxOptions,
    clock: &dyn Clock,
) -> Outcome {
    let opened = match &options.part {
        Some(part) => part
            .open_append(path, who)
            .map(|opened| (opened.file, opened.directory.is_some(), opened.directory)),
        None => safe_file::open_append(path, who, &options.file_lenience)
            .map(|(file, is_new)| (file, is_new, None)),
    };
    let (file, is_new, directory) = match opened {
        Ok(opened) => opened,
        Err(refusal) if refusal.verdict() == Verdict::Temporary => {
            return deferred(&format!("{}: {refusal}", path.display()));
        }
        Err(refusal) => {
            let mut outcome = Outcome::new(Delivery::Failed, Status::new(5, 0, 0), MAILER, REFUSED);
            outcome.program = Some(Box::new(ProgramEnd {
                exit_code: CANT_CREATE,
                output: vec![format!("{}: {refusal}", path.display())],
            }));
            return outcome;
        }
    };
    let sent = Outcome::new(Delivery::Delivered, Status::OK, MAILER, "Sent");
    if path == Path::new("/dev/null") {
        return sent;
    }
    let wait_max: Duration = options.lock_wait_max;
    let mut open = match OpenMailbox::of_file(path, file, is_new, directory, wait_max, clock) {
        Ok(open) => open,
        Err(error) => return outcome_of(&error),
    };
    let name = mbox::sender_name(sender, host_name);
    let from = mbox::from_line(sender, host_name, clock.unix_ms());
    let preamble = format!("{from}Return-Path: <{name}>\n");
    let appended = content()
        .map_err(MailboxError::Content)
        .and_then(|content| open.append(&preamble, content))
        .and_then(|()| open.sync());
    match appended {
        Ok(()) => sent,
        Err(error) => outcome_of(&error),
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
