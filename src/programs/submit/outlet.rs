//! The ways out of the program: SMTP to the MTA, and the client queue's drop files for what it cannot take now.

use std::io::{self, Cursor, Read};
use std::path::PathBuf;
use std::sync::Arc;

use super::failure::{Report, exit_of};
use super::relay::{MAILER, Parcel, Relay};
use crate::config::Config;
use crate::deliver::{ContentOpener, Verbose};
use crate::envelope::{Delivery, Envelope, Outcome};
use crate::spool::SpoolError;
use crate::spool::drop_file;
use crate::status::{ExitCode, Status};
use crate::submit::message::Submission;

/// The text of a recipient that was not tried.
pub(super) const QUEUED: &str = "queued";

/// What became of one recipient.
#[derive(Debug, Clone)]
pub(super) struct Handed {
    /// The result of the attempt; deferred, with the text `queued`, if none was made.
    pub(super) outcome: Outcome,
    /// Whether a deferred recipient is on stable storage.
    pub(super) is_stored: bool,
    /// Why it could not be stored.
    pub(super) complaint: Option<Complaint>,
}

/// Why a message could not be stored.
#[derive(Debug, Clone)]
pub(super) struct Complaint {
    /// For the user and the log.
    pub(super) text: String,
    /// What the program ends with.
    exit: ExitCode,
}

impl Handed {
    /// The exit code it asks for if it is neither delivered nor stored.
    pub(super) fn exit(&self) -> ExitCode {
        match &self.complaint {
            Some(complaint) => complaint.exit,
            None => exit_of(&self.outcome),
        }
    }
}

/// Where messages leave.
pub(super) struct Outlet<'a> {
    config: &'a Config,
    host: String,
    verbose: Option<Verbose>,
    relay: Option<Relay>,
    folder: PathBuf,
}

impl<'a> Outlet<'a> {
    pub(super) fn new(config: &'a Config, host: &str, verbose: Option<Verbose>) -> Self {
        Self {
            config,
            host: host.to_owned(),
            verbose,
            relay: None,
            folder: super::drop_folder(config),
        }
    }

    /// Hands a submission to the MTA, and what it defers to the client queue. One result for each recipient.
    pub(super) fn send(&mut self, submission: &Submission) -> Vec<Handed> {
        let wire = submission.on_wire(&self.host);
        let parcel = parcel_of(submission, &wire);
        let outcomes = self.attempt(&parcel);
        self.store_deferred(&parcel, outcomes)
    }

    /// Puts a submission into the client queue without trying.
    pub(super) fn queue(&self, submission: &Submission) -> Vec<Handed> {
        let wire = submission.on_wire(&self.host);
        let parcel = parcel_of(submission, &wire);
        let queued = Outcome::new(Delivery::Deferred, Status::OK, MAILER, QUEUED);
        let outcomes = vec![queued; wire.recipients.len()];
        self.store_deferred(&parcel, outcomes)
    }

    /// Sends a report, or queues it.
    pub(super) fn send_report(&mut self, report: &Report) -> Handed {
        let content = {
            let bytes = Arc::clone(&report.content);
            opener(move || Box::new(Cursor::new(Arc::clone(&bytes))))
        };
        let parcel = Parcel {
            id: report.id,
            envelope: &report.envelope,
            shown: std::slice::from_ref(&report.shown),
            content,
            content_bytes: u64::try_from(report.content.len()).unwrap_or(u64::MAX),
        };
        let outcomes = self.attempt(&parcel);
        self.store_deferred(&parcel, outcomes)
            .pop()
            .unwrap_or_else(|| Handed {
                outcome: deferred("no outcome"),
                is_stored: false,
                complaint: None,
            })
    }

    /// Ends the connection, if there is one.
    pub(super) fn close(&mut self) {
        if let Some(relay) = self.relay.take() {
            relay.close();
        }
    }

    fn attempt(&mut self, parcel: &Parcel<'_>) -> Vec<Outcome> {
        let relay = match &mut self.relay {
            Some(relay) => relay,
            none => match Relay::new(self.config, &self.host, self.verbose.clone()) {
                Ok(relay) => none.insert(relay),
                Err(error) => {
                    return vec![deferred(&error.to_string()); parcel.envelope.recipients.len()];
                }
            },
        };
        relay.send(parcel)
    }

    fn store_deferred(&self, parcel: &Parcel<'_>, outcomes: Vec<Outcome>) -> Vec<Handed> {
        let mut envelope = Envelope {
            recipients: Vec::new(),
            ..parcel.envelope.clone()
        };
        for (recipient, outcome) in parcel.envelope.recipients.iter().zip(&outcomes) {
            if outcome.result == Delivery::Deferred {
                envelope.recipients.push(recipient.clone());
            }
        }
        let stored = if envelope.recipients.is_empty() {
            Ok(())
        } else {
            self.store(parcel, &envelope)
        };
        outcomes
            .into_iter()
            .map(|outcome| {
                let is_deferred = outcome.result == Delivery::Deferred;
                Handed {
                    outcome,
                    is_stored: is_deferred && stored.is_ok(),
                    complaint: stored.clone().err().filter(|_| is_deferred),
                }
            })
            .collect()
    }

    /// Durable when it returns without an error.
    fn store(&self, parcel: &Parcel<'_>, envelope: &Envelope) -> Result<(), Complaint> {
        let write = || -> Result<(), StoreError> {
            let uid = rustix::process::getuid().as_raw();
            if let Some(limit) = self.config.spool.max_drop_files_per_user
                && drop_file::is_at_limit(&self.folder, uid, limit).map_err(StoreError::Look)?
            {
                return Err(StoreError::Limit(limit));
            }
            let mut content = (parcel.content)().map_err(StoreError::Content)?;
            drop_file::write(&self.folder, parcel.id, envelope, &mut *content)?;
            Ok(())
        };
        write().map_err(|error| Complaint {
            text: format!("cannot queue in {}: {error}", self.folder.display()),
            // The limit passes by itself; the rest wants somebody to look.
            exit: match error {
                StoreError::Limit(_) => ExitCode::TempFail,
                _ => ExitCode::OsErr,
            },
        })
    }
}

#[derive(Debug, thiserror::Error)]
enum StoreError {
    #[error("reading the message back: {0}")]
    Content(io::Error),
    #[error("looking at what waits: {0}")]
    Look(io::Error),
    #[error("{0} messages of this user wait there already (max_drop_files_per_user)")]
    Limit(u32),
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

fn parcel_of<'a>(submission: &'a Submission, wire: &'a Envelope) -> Parcel<'a> {
    let content = submission.clone();
    Parcel {
        id: submission.id,
        envelope: wire,
        shown: &submission.shown,
        content: opener(move || content.content()),
        content_bytes: submission.content_bytes(),
    }
}

fn opener(open: impl Fn() -> Box<dyn Read + Send> + Send + Sync + 'static) -> ContentOpener {
    Arc::new(move || Ok(open()))
}

fn deferred(reason: &str) -> Outcome {
    Outcome::new(
        Delivery::Deferred,
        Status::new(4, 3, 0),
        MAILER,
        format!("Deferred: {reason}"),
    )
}
