//! What failed, and how the sender learns of it: by a report in the mail, or by a copy in `dead.letter`.

use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use super::exit;
use crate::address::list::AddressFault;
use crate::address::{Address, ReversePath};
use crate::deliver::dsn::{
    Audience, DsnFacts, Fate, RETURNED_BYTES_MAX, ReportKind, ReportedRecipient, Returned, compose,
};
use crate::envelope::{Delivery, Envelope, MessageId, Outcome, Recipient};
use crate::status::{ExitCode, Status};
use crate::submit::dead_letter;
use crate::submit::message::{Submission, qualified};
use crate::submit::recipients::Refused;

/// A recipient that failed.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    shown: String,
    address: String,
    original_recipient: Option<String>,
    is_reported: bool,
    /// Why.
    pub(super) outcome: Outcome,
    /// The exit code it asks for.
    pub(super) exit: ExitCode,
}

impl Failure {
    /// Something that is no recipient.
    pub(super) fn refused(refused: &Refused) -> Self {
        let status = match refused.fault {
            AddressFault::UserUnknown => Status::NO_USER,
            AddressFault::ToProgram | AddressFault::ToFile | AddressFault::ToInclude => {
                Status::new(5, 7, 1)
            }
            _ => Status::new(5, 1, 3),
        };
        Self {
            shown: refused.shown.clone(),
            address: refused.shown.clone(),
            original_recipient: None,
            is_reported: true,
            outcome: Outcome::new(Delivery::Failed, status, "local", refused.fault.to_string()),
            exit: refused.fault.exit(),
        }
    }

    /// A message without any recipient.
    pub(super) fn without_recipient(login: &str) -> Self {
        Self {
            shown: login.to_owned(),
            address: login.to_owned(),
            original_recipient: None,
            is_reported: true,
            outcome: Outcome::new(
                Delivery::Failed,
                Status::new(5, 1, 3),
                "local",
                "No recipient addresses found in header",
            ),
            exit: ExitCode::Usage,
        }
    }

    /// A recipient of the envelope.
    pub(super) fn of_recipient(
        submission: &Submission,
        at: usize,
        outcome: &Outcome,
        exit: ExitCode,
    ) -> Option<Self> {
        let recipient = submission.envelope.recipients.get(at)?;
        Some(Self {
            shown: submission
                .shown
                .get(at)
                .cloned()
                .unwrap_or_else(|| recipient.target.clone()),
            address: recipient.target.clone(),
            original_recipient: recipient.original_recipient.clone(),
            is_reported: recipient.notify.on_failure(),
            outcome: outcome.clone(),
            exit,
        })
    }

    /// All recipients of the envelope, for one reason.
    pub(super) fn of_all<'s>(
        submission: &'s Submission,
        outcome: &'s Outcome,
        exit: ExitCode,
    ) -> impl Iterator<Item = Self> + 's {
        (0..submission.envelope.recipients.len())
            .filter_map(move |at| Self::of_recipient(submission, at, outcome, exit))
    }
}

/// The exit code for the outcome of an attempt that did not deliver.
pub(super) fn exit_of(outcome: &Outcome) -> ExitCode {
    match outcome.result {
        Delivery::Failed => exit::of_failure(outcome),
        Delivery::Deferred => ExitCode::TempFail,
        Delivery::Delivered => ExitCode::Ok,
    }
}

/// A report to be mailed.
#[derive(Debug, Clone)]
pub(super) struct Report {
    /// The id it is logged under.
    pub(super) id: MessageId,
    /// From the null sender to the sender of the message, in full.
    pub(super) envelope: Envelope,
    /// How its recipient is shown.
    pub(super) shown: String,
    /// Its content.
    pub(super) content: Arc<[u8]>,
}

/// Composes the report on `failures`; `None` if nobody is to get one: the null sender, or one who did not want it.
pub(super) fn report(
    submission: &Submission,
    failures: &[Failure],
    host: &str,
    id: MessageId,
    now_unix_ms: u64,
) -> Option<Report> {
    let sender = submission.envelope.reverse_path.address()?;
    let to = qualified(&sender.to_string(), host);
    let recipients: Vec<ReportedRecipient> = failures
        .iter()
        .filter(|failure| failure.is_reported)
        .map(|failure| {
            let address = qualified(&failure.address, host);
            ReportedRecipient {
                shown: failure.shown.clone(),
                actual: address.clone(),
                address,
                expanded_from: None,
                original_recipient: failure.original_recipient.clone(),
                fate: Fate::Failed,
                outcome: failure.outcome.clone(),
                attempted_unix_ms: now_unix_ms,
            }
        })
        .collect();
    if recipients.is_empty() {
        return None;
    }
    let mut content = Vec::new();
    let limit = u64::try_from(RETURNED_BYTES_MAX).unwrap_or(u64::MAX);
    // A body that cannot be read back is returned as far as it was read.
    let _ = submission
        .content()
        .take(limit.saturating_add(1))
        .read_to_end(&mut content);
    let is_whole = u64::try_from(content.len()).is_ok_and(|len| len == submission.content_bytes());
    let envelope = submission.on_wire(host);
    let composed = compose(&DsnFacts {
        kind: ReportKind::Failure,
        audience: Audience::Sender,
        to: &to,
        id,
        now_unix_ms,
        host_name: host,
        original_id: submission.id,
        envelope: &envelope,
        recipients: &recipients,
        returned: Returned {
            content: &content,
            is_whole,
            is_body_allowed: true,
        },
    });
    let address = Address::parse(&to).ok()?;
    let mut envelope = Envelope::new(ReversePath::Null, vec![Recipient::new(address.to_string())]);
    envelope.arrival.unix_ms = now_unix_ms;
    envelope
        .arrival
        .submitter
        .clone_from(&submission.envelope.arrival.submitter);
    envelope.body_bytes = u64::try_from(composed.len()).unwrap_or(u64::MAX);
    Some(Report {
        id,
        envelope,
        shown: submission.envelope.sender_shown(),
        content: composed.into(),
    })
}

/// Adds the message to the user's `dead.letter`, with the rights of the user alone.
pub(super) fn save_dead_letter(
    path: &Path,
    submission: &Submission,
    now_unix_ms: u64,
    is_sandbox: bool,
) -> io::Result<()> {
    let from_line = format!(
        "From {}  {}",
        match submission.envelope.reverse_path.address() {
            Some(address) => address.to_string(),
            None => "MAILER-DAEMON".to_owned(),
        },
        crate::clock::date::ctime(now_unix_ms)
    );
    let _user_rights = UserRights::take()?;
    if let Some(home) = path.parent().filter(|_| is_sandbox) {
        std::fs::create_dir_all(home)?;
    }
    let uid = nix::unistd::geteuid().as_raw();
    dead_letter::save(path, uid, &from_line, &mut submission.content())
}

/// The real user's rights instead of the file's, while it lives.
struct UserRights {
    effective_uid: nix::unistd::Uid,
    effective_gid: nix::unistd::Gid,
}

impl UserRights {
    fn take() -> io::Result<Self> {
        let before = Self {
            effective_uid: nix::unistd::geteuid(),
            effective_gid: nix::unistd::getegid(),
        };
        let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
        // The group first: without the user's rights it could no longer be changed.
        if gid != before.effective_gid {
            nix::unistd::setegid(gid)?;
        }
        if uid != before.effective_uid {
            nix::unistd::seteuid(uid)?;
        }
        Ok(before)
    }
}

impl Drop for UserRights {
    fn drop(&mut self) {
        // If this fails the process only has fewer rights than before.
        if nix::unistd::geteuid() != self.effective_uid {
            let _ = nix::unistd::seteuid(self.effective_uid);
        }
        if nix::unistd::getegid() != self.effective_gid {
            let _ = nix::unistd::setegid(self.effective_gid);
        }
    }
}
