//! SMTP on standard input and output: `sendmail -bs`, as mail readers call it.
//!
//! The session is that of the SMTP server; what it takes goes the way of every submission, before its 250: to the
//! MTA by SMTP, or into the client queue as a drop file. Recipients are judged by the MTA; one that it refuses after
//! the session has taken it is reported to the sender by mail. A message that could be neither handed over, stored nor
//! reported is answered 451. Blocks: standard input, disk and network.
//!
//! Source: sendmail(8), `-bs`; SPOOL 9.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use super::Session as Submitting;
use super::failure::Failure;
use super::{say, verbose_to_stdout};
use crate::address::Address;
use crate::address::list::fault_of;
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::envelope::{Delivery, Envelope, MessageId};
use crate::maillog::QueueId;
use crate::route::{Disposition, Verified};
use crate::smtpd::{self, Peer, Settings, Step};
use crate::spool::SpoolError;
use crate::status::{ExitCode, Reply, Status};
use crate::submit::body::{Body, BodyWriter};
use crate::submit::message::Submission;

/// Bytes read from standard input at once.
const READ_BYTES: usize = 64 << 10;

/// Holds a session until the client quits or its input ends.
#[must_use]
pub fn run(config: &Config) -> ExitCode {
    let verbose = config.submit.verbose.then(verbose_to_stdout);
    let mut submitting = match Submitting::open(config, verbose) {
        Ok(submitting) => submitting,
        Err(text) => {
            say(&text);
            return ExitCode::OsErr;
        }
    };
    let code = match converse(&mut submitting) {
        Ok(()) => ExitCode::Ok,
        Err(_) => ExitCode::IoErr,
    };
    submitting.outlet.close();
    code
}

/// What is to be done once the step has let go of the session.
enum Answer {
    Nothing,
    Read,
    Sender,
    Begin(MessageId),
    Recipient(Result<Disposition, Reply>),
    Verified(Verified),
    Expanded,
    Kept(Result<(), SpoolError>),
    Commit(Box<Envelope>),
    Pause(Duration),
    Close,
}

fn converse(submitting: &mut Submitting<'_>) -> io::Result<()> {
    let settings = settings(submitting);
    let mut session = smtpd::Session::new(Arc::new(settings), Peer::local(&submitting.user.name));
    session.greet(Ok(Disposition::Accept));
    let mut input = io::stdin().lock();
    let mut buffer: Vec<u8> = Vec::new();
    let mut content: Option<BodyWriter> = None;
    let mut id = None;
    loop {
        let mut rest = buffer.as_slice();
        let answer = match session.step(&mut rest) {
            Step::Read => Answer::Read,
            Step::CheckSender(..) => Answer::Sender,
            Step::Begin { id, .. } => Answer::Begin(id),
            Step::CheckRecipient(address, _) => Answer::Recipient(check_recipient(address)),
            Step::Verify(text) => Answer::Verified(Verified {
                address: text.trim_matches(['<', '>']).to_owned(),
                is_remote: true,
            }),
            Step::Expand(_) => Answer::Expanded,
            Step::Content(bytes) => match &mut content {
                Some(writer) => Answer::Kept(writer.write(bytes).map_err(not_kept)),
                None => Answer::Nothing,
            },
            Step::Abandon => {
                content = None;
                Answer::Nothing
            }
            Step::Commit(envelope) => Answer::Commit(envelope),
            Step::Pause(time) => Answer::Pause(time),
            Step::Close => Answer::Close,
        };
        let used = buffer.len() - rest.len();
        buffer.drain(..used);
        match answer {
            Answer::Nothing | Answer::Kept(Ok(())) => {}
            Answer::Read => {
                put_log(submitting, &mut session);
                flush(&mut session)?;
                if !fill(&mut input, &mut buffer)? {
                    session.input_ended();
                }
            }
            Answer::Sender => session.sender_checked(Ok(Disposition::Accept)),
            Answer::Begin(new) => {
                content = Some(BodyWriter::new(&super::drop_folder(submitting.config)));
                id = Some(new);
                session.begun(Ok(()));
            }
            Answer::Recipient(verdict) => session.recipient_checked(verdict),
            Answer::Verified(verified) => session.verified(Ok(verified)),
            Answer::Expanded => session.expanded(Err(Reply::new(
                502,
                Status::new(5, 7, 0),
                "Sorry, we do not allow this operation",
            ))),
            Answer::Kept(Err(error)) => session.content_refused(&error),
            Answer::Commit(envelope) => {
                put_log(submitting, &mut session);
                let result = match (id.take(), content.take().map(BodyWriter::finish)) {
                    (Some(id), Some(Ok(body))) => {
                        let size = body.len_bytes();
                        hand_over(submitting, id, *envelope, body, size)
                    }
                    (_, Some(Err(error))) => Err(not_kept(error)),
                    _ => Err(SpoolError::Closed),
                };
                session.committed(result);
            }
            Answer::Pause(time) => {
                flush(&mut session)?;
                std::thread::sleep(time);
            }
            Answer::Close => {
                put_log(submitting, &mut session);
                return flush(&mut session);
            }
        }
    }
}

/// Reads more; `false` at the end of the input.
fn fill(input: &mut impl Read, buffer: &mut Vec<u8>) -> io::Result<bool> {
    let start = buffer.len();
    buffer.resize(start + READ_BYTES, 0);
    let read = loop {
        match input.read(buffer.get_mut(start..).unwrap_or_default()) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other,
        }
    };
    buffer.truncate(start + *read.as_ref().unwrap_or(&0));
    Ok(read? > 0)
}

fn flush(session: &mut smtpd::Session) -> io::Result<()> {
    let out = session.output();
    let mut stdout = io::stdout().lock();
    stdout.write_all(out)?;
    out.clear();
    stdout.flush()
}

fn put_log(submitting: &Submitting<'_>, session: &mut smtpd::Session) {
    for line in session.take_log() {
        let id = line.id.map_or(QueueId::Omitted, QueueId::Known);
        submitting
            .log
            .maillog()
            .write(line.severity, line.level, id, &line.text);
    }
}

/// `Ok` only when every recipient was taken by the MTA, is stored, or its failure was reported (I1, S1).
fn hand_over(
    submitting: &mut Submitting<'_>,
    id: MessageId,
    mut envelope: Envelope,
    content: Body,
    message_bytes: u64,
) -> Result<(), SpoolError> {
    envelope.arrival.submitter = Some(submitting.submitter.clone());
    for recipient in &mut envelope.recipients {
        recipient.controlling_user = Some(submitting.submitter.clone());
    }
    let submission = Submission::of_content(id, envelope, content, message_bytes);
    let failures: Vec<Failure> = submitting.hand_over(&submission);
    let Some(first) = failures.first() else {
        return Ok(());
    };
    // What could not be stored may be sent again by the client; what was refused is reported.
    let is_final = failures
        .iter()
        .all(|failure| failure.outcome.result == Delivery::Failed);
    if is_final && submitting.mail_back(&submission, &failures) {
        return Ok(());
    }
    Err(SpoolError::Full(first.outcome.text.clone()))
}

fn check_recipient(address: &Address) -> Result<Disposition, Reply> {
    let text = address.to_string();
    match fault_of(&text) {
        None => Ok(Disposition::Accept),
        Some(fault) => Err(Reply::new(
            550,
            Status::new(5, 7, 1),
            format!("<{text}>... {fault}"),
        )),
    }
}

fn not_kept(error: io::Error) -> SpoolError {
    SpoolError::Io {
        operation: "write",
        name: "message".to_owned(),
        source: Arc::new(error),
    }
}

fn settings(submitting: &Submitting<'_>) -> Settings {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let new_id = {
        let (clock, ids) = (Arc::clone(&clock), Arc::clone(&submitting.ids));
        Arc::new(move || ids.next(clock.unix_ms()))
    };
    let options = &submitting.config.smtpd;
    let mut settings = Settings::of_config(options, submitting.host.clone(), clock, new_id);
    // Nothing is delivered here that could be watched.
    settings.privacy.no_verb = true;
    settings
}
