//! Submission on the command line: `sendmail user`, `sendmail -t`, what cron, PHP and mail readers call.
//!
//! Reads a message, completes it, and hands it to the MTA by SMTP; while the MTA does not answer, or where that is
//! asked for (`-odq`), it becomes a drop file in the client queue. What the MTA refuses is reported as the error mode
//! says (`-oe`): on the terminal with a copy in `dead.letter`, or by mail.
//!
//! Guarantees: exit code 0 only when the message is on stable storage here or the MTA has taken it for every
//! recipient; with `-oee` the failure has then been mailed instead. Nothing is sent twice within a run. Blocks: disk and
//! network. Limits: those of `submit`, the client's time limits.
//!
//! Source: sendmail(8), sysexits(3).

mod exit;
mod failure;
pub(super) mod log;
mod outlet;
mod relay;
pub mod stdin_session;

use std::io::{self, BufRead, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::client_queue::make_drop_folder;
use crate::cli::Invocation;
use crate::clock::{Clock, SystemClock};
use crate::config::host::HostName;
use crate::config::{ByteSize, Config, DeliveryMode, ErrorMode, Privacy, Role};
use crate::deliver::Verbose;
use crate::envelope::{ControllingUser, Delivery, MessageId, Outcome};
use crate::status::{ExitCode, Status};
use crate::submit::collect::{CollectError, CollectOptions, Collected, collect};
use crate::submit::message::{Origin, Parameters, Parts, Submission};
use crate::submit::recipients::Recipients;
use crate::submit::sender::{OwnName, Sender, full_name, sender};
use crate::users::{User, Users};

use failure::Failure;
use log::SubmitLog;
use outlet::Outlet;

/// Program and version as the Received field of a submission shows them.
const RECEIVED_VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "/",
    env!("CARGO_PKG_VERSION"),
    "/Submit"
);
/// The name of a client queue's folder of messages that wait for its owner (SPOOL 9).
const DROP_FOLDER: &str = "drop";
/// Users who may always set any sender.
const ALWAYS_TRUSTED: [&str; 3] = ["root", "daemon", "uucp"];
/// Longest file of trusted users, in bytes.
const TRUSTED_FILE_BYTES_MAX: u64 = 1 << 20;

/// Submits the message on standard input as the command line asks. What the user is to see goes to standard output.
///
/// Blocks: standard input, disk and network.
#[must_use]
pub fn run(invocation: &Invocation, config: &Config) -> ExitCode {
    let verbose = config.submit.verbose.then(verbose_to_stdout);
    match Session::open(config, verbose) {
        Ok(mut session) => session.submit(&Request::of(invocation), &mut io::stdin().lock()),
        Err(text) => {
            say(&text);
            ExitCode::OsErr
        }
    }
}

/// What the command line asks for.
#[derive(Debug, Clone)]
struct Request<'a> {
    recipients: &'a [String],
    takes_header_recipients: bool,
    sender: Option<&'a str>,
    full_name: Option<&'a str>,
    hops: u32,
    parameters: Parameters,
}

impl<'a> Request<'a> {
    fn of(invocation: &'a Invocation) -> Self {
        let flags = &invocation.envelope;
        Self {
            recipients: &invocation.recipients,
            takes_header_recipients: invocation.reads_recipients,
            sender: flags.sender.as_deref(),
            full_name: flags.full_name.as_deref(),
            hops: flags.hop_count,
            parameters: Parameters {
                notify: flags.notify,
                dsn_return: flags.dsn_return,
                envelope_id: flags.envelope_id.clone(),
                body_type: flags.body_type,
                is_gateway: flags.is_gateway,
                ..Parameters::default()
            },
        }
    }
}

/// Gives ids in the shape of queue ids, none twice in a process.
#[derive(Debug, Default)]
struct Ids(AtomicU64);

impl Ids {
    fn next(&self, unix_ms: u64) -> MessageId {
        let first = MessageId::first_of(unix_ms / 1000, std::process::id()).number();
        let mut given = first;
        // The closure always answers with a new number.
        let _ = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| {
                given = first.max(last.saturating_add(1));
                Some(given)
            });
        MessageId::from_number(given)
    }
}

/// A run of the program: who submits, where to.
struct Session<'a> {
    config: &'a Config,
    host: String,
    user: User,
    submitter: ControllingUser,
    is_trusted: bool,
    clock: SystemClock,
    log: SubmitLog,
    outlet: Outlet<'a>,
    ids: Arc<Ids>,
}

impl<'a> Session<'a> {
    fn open(config: &'a Config, verbose: Option<Verbose>) -> Result<Self, String> {
        let name = HostName::find(&config.host);
        let folder = drop_folder(config);
        let made = match config.sandbox {
            Some(_) => std::fs::create_dir_all(&folder),
            // Elsewhere the queue's owner makes it; root may come first. What is missing then is told when it is needed.
            None => make_drop_folder(&folder).or(Ok(())),
        };
        made.map_err(|error: io::Error| format!("{}: {error}", folder.display()))?;
        let users = Users::new(
            config.paths.passwd_file.as_deref(),
            config.paths.home_directory.as_deref(),
        );
        let user = submitting_user(&users)?;
        let submitter = ControllingUser {
            name: user.name.clone(),
            uid: user.uid,
            gid: user.gid,
        };
        Ok(Self {
            config,
            is_trusted: is_trusted(&user.name, &config.submit.trusted_users),
            user,
            submitter,
            clock: SystemClock::new(),
            log: SubmitLog::new(super::wiring::open_maillog(config, &name)),
            outlet: Outlet::new(config, &name.full, verbose),
            host: name.full,
            ids: Arc::default(),
        })
    }

    fn new_id(&self) -> MessageId {
        self.ids.next(self.clock.unix_ms())
    }

    fn submit(&mut self, request: &Request, input: &mut dyn BufRead) -> ExitCode {
        if request.recipients.is_empty() && !request.takes_header_recipients {
            say("Recipient names must be specified");
            return ExitCode::Usage;
        }
        let collected = match self.collect(request, input) {
            Ok(collected) => collected,
            Err(error) => {
                say(&format!("collect: {error}"));
                return match error {
                    CollectError::Read(_) => ExitCode::IoErr,
                    CollectError::Write(_) => ExitCode::OsErr,
                };
            }
        };
        let given = request.sender;
        let sender = match sender(given, &self.user.name, self.is_trusted) {
            Ok(sender) => sender,
            Err(fault) => {
                say(&format!("{}... {fault}", given.unwrap_or_default()));
                return fault.exit();
            }
        };
        let recipients = gather(request, &collected);
        let id = self.new_id();
        let submission = match self.build(request, id, &sender, &recipients, &collected) {
            Ok(submission) => submission,
            Err(text) => {
                say(&text);
                return ExitCode::Usage;
            }
        };
        self.log.received(&submission);
        let failures = self.send(request, &submission, &recipients, &collected);
        let code = self.settle(&submission, failures);
        self.outlet.close();
        code
    }

    fn collect(
        &self,
        request: &Request,
        input: &mut dyn BufRead,
    ) -> Result<Collected, CollectError> {
        let limits = &self.config.smtpd.limits;
        let options = CollectOptions {
            ends_at_dot: !self.config.submit.ignore_dots,
            header_bytes_max: limits.max_headers_length.as_len(),
            message_bytes_max: limits.max_message_size.map(ByteSize::as_bytes),
            is_seven_bit: request.parameters.body_type == crate::envelope::BodyType::SevenBit,
        };
        collect(input, options, &drop_folder(self.config))
    }

    fn build(
        &self,
        request: &Request,
        id: MessageId,
        sender: &Sender,
        recipients: &Recipients,
        collected: &Collected,
    ) -> Result<Submission, String> {
        let is_self = sender.address.as_deref() == Some(self.user.name.as_str());
        let environment = std::env::var("NAME").ok();
        let own = is_self.then(|| OwnName {
            environment: environment.as_deref(),
            account: &self.user.full_name,
        });
        let field = collected.header.text("full-name");
        let name = full_name(request.full_name, field.as_deref(), own);
        let mut warnings = Vec::new();
        if self.config.smtpd.privacy.has(Privacy::AuthWarnings) {
            warnings.extend(sender.warning.clone());
        }
        for warning in &warnings {
            self.log.authentication_warning(id, &self.host, warning);
        }
        let parts = Parts {
            id,
            sender,
            full_name: name.as_deref(),
            recipients: &recipients.named,
            collected,
            parameters: &request.parameters,
            warnings: &warnings,
        };
        let origin = Origin {
            host: &self.host,
            version: RECEIVED_VERSION,
            unix_ms: self.clock.unix_ms(),
            submitter: &self.submitter,
        };
        Submission::new(&parts, origin).map_err(|error| format!("{}... {error}", sender.shown))
    }

    /// Sends to everybody who can be sent to; what is left are the recipients that failed.
    fn send(
        &mut self,
        request: &Request,
        submission: &Submission,
        recipients: &Recipients,
        collected: &Collected,
    ) -> Vec<Failure> {
        let mut failures = Vec::new();
        for refused in &recipients.refused {
            let text = format!("{}... {}", refused.shown, refused.fault);
            self.tell(&text);
            self.log.refused(submission.id, &text);
            failures.push(Failure::refused(refused));
        }
        if recipients.is_empty() {
            self.tell("No recipient addresses found in header");
            failures.push(Failure::without_recipient(&self.user.name));
        }
        if submission.envelope.recipients.is_empty() {
            return failures;
        }
        if let Some(fault) = &collected.fault {
            let text = fault.to_string();
            self.tell(&text);
            self.log.refused(submission.id, &text);
            let outcome = Outcome::new(Delivery::Failed, Status::new(5, 6, 0), relay::MAILER, text);
            failures.extend(Failure::of_all(submission, &outcome, ExitCode::DataErr));
            return failures;
        }
        let hops = usize::try_from(request.hops)
            .unwrap_or(usize::MAX)
            .saturating_add(collected.header.hops());
        let hops_max = self.config.route.max_hop_count;
        if hops > usize::try_from(hops_max).unwrap_or(usize::MAX) {
            let text = format!(
                "Too many hops {hops} ({hops_max} max): from {} via localhost, to {}",
                submission.envelope.sender_shown(),
                submission.shown.join(",")
            );
            self.log.system_error(submission.id, &self.user.name, &text);
            let outcome = Outcome::new(
                Delivery::Failed,
                Status::new(5, 4, 6),
                relay::MAILER,
                "Too many hops",
            );
            failures.extend(Failure::of_all(submission, &outcome, ExitCode::Unavailable));
            return failures;
        }
        failures.extend(self.hand_over(submission));
        failures
    }

    /// By SMTP or into a queue; the recipients that failed.
    fn hand_over(&mut self, submission: &Submission) -> Vec<Failure> {
        let is_queue_only = matches!(
            self.config.queue.delivery_mode,
            DeliveryMode::Queue | DeliveryMode::Deferred
        );
        let begun = self.clock.monotonic();
        let outcomes = if is_queue_only {
            self.outlet.queue(submission)
        } else {
            self.outlet.send(submission)
        };
        let attempt_time = self.clock.monotonic().saturating_sub(begun);
        self.log
            .attempted(submission, &outcomes, attempt_time, self.clock.unix_ms());
        let mut failures = Vec::new();
        for (at, handed) in outcomes.iter().enumerate() {
            if handed.outcome.result == Delivery::Delivered || handed.is_stored {
                continue;
            }
            failures.extend(Failure::of_recipient(
                submission,
                at,
                &handed.outcome,
                handed.exit(),
            ));
        }
        let mut complaints: Vec<&str> = outcomes
            .iter()
            .filter_map(|handed| Some(handed.complaint.as_ref()?.text.as_str()))
            .collect();
        complaints.dedup();
        for text in complaints {
            self.tell(text);
            self.log.system_error(submission.id, &self.user.name, text);
        }
        failures
    }

    /// Prints an error where errors are printed.
    fn tell(&self, text: &str) {
        if self.config.submit.error_mode == ErrorMode::Print {
            say(text);
        }
    }

    /// Reports failures as the error mode says; the exit code of the run.
    fn settle(&mut self, submission: &Submission, failures: Vec<Failure>) -> ExitCode {
        let Some(first) = failures.first() else {
            return ExitCode::Ok;
        };
        let code = first.exit;
        let mode = self.config.submit.error_mode;
        match mode {
            ErrorMode::Quiet => return code,
            ErrorMode::Print => {
                self.save_dead_letter(submission);
                return code;
            }
            ErrorMode::MailBack | ErrorMode::Write | ErrorMode::MailBackExitZero => {}
        }
        let is_mailed = self.mail_back(submission, &failures);
        if !is_mailed {
            self.save_dead_letter(submission);
        }
        if mode == ErrorMode::MailBackExitZero && is_mailed {
            return ExitCode::Ok;
        }
        code
    }

    /// Sends a report to the sender; whether somebody has taken it.
    fn mail_back(&mut self, submission: &Submission, failures: &[Failure]) -> bool {
        let id = self.new_id();
        let now = self.clock.unix_ms();
        let Some(report) = failure::report(submission, failures, &self.host, id, now) else {
            return false;
        };
        let reason = failures
            .first()
            .map_or("", |failure| failure.outcome.text.as_str());
        self.log.report(submission.id, id, reason);
        let begun = self.clock.monotonic();
        let handed = self.outlet.send_report(&report);
        let attempt_time = self.clock.monotonic().saturating_sub(begun);
        self.log
            .report_attempted(&report, &handed, attempt_time, self.clock.unix_ms());
        handed.outcome.result == Delivery::Delivered || handed.is_stored
    }

    fn save_dead_letter(&self, submission: &Submission) {
        let path = self.user.home.join("dead.letter");
        let saved = failure::save_dead_letter(
            &path,
            submission,
            self.clock.unix_ms(),
            self.config.sandbox.is_some(),
        );
        match saved {
            Ok(()) => say(&format!("{0}... Saved message in {0}", path.display())),
            Err(error) => {
                let text = format!("{}... cannot save message: {error}", path.display());
                say(&text);
                self.log.system_error(submission.id, &self.user.name, &text);
            }
        }
    }
}

fn gather(request: &Request, collected: &Collected) -> Recipients {
    let arguments = request.recipients.iter().map(String::as_bytes);
    if request.takes_header_recipients {
        Recipients::gather(arguments.chain(collected.header.recipient_lists()))
    } else {
        Recipients::gather(arguments)
    }
}

/// Who runs the program: the real user, whatever rights the file gives.
fn submitting_user(users: &Users) -> Result<User, String> {
    let uid = nix::unistd::getuid().as_raw();
    match users.by_uid(uid) {
        Ok(Some(user)) => Ok(user),
        // In containers programs often run as a number without a name; mail of theirs still has to go out.
        Ok(None) => Ok(User {
            name: format!("uid{uid}"),
            uid,
            gid: nix::unistd::getgid().as_raw(),
            full_name: String::new(),
            home: PathBuf::from("/"),
            shell: PathBuf::new(),
        }),
        Err(error) => Err(error.to_string()),
    }
}

/// Whether a user may set any sender: one of a few by name, and those in the file (class `t`). A file that cannot be
/// read makes nobody trusted.
fn is_trusted(login: &str, file: &Path) -> bool {
    use std::io::Read;
    if ALWAYS_TRUSTED.contains(&login) {
        return true;
    }
    let mut text = String::new();
    std::fs::File::open(file)
        .and_then(|file| file.take(TRUSTED_FILE_BYTES_MAX).read_to_string(&mut text))
        .is_ok_and(|_| {
            text.lines()
                .map(|line| line.split('#').next().unwrap_or_default())
                .any(|line| line.split_ascii_whitespace().next() == Some(login))
        })
}

/// The client queue's folder of drop files.
fn drop_folder(config: &Config) -> PathBuf {
    client_queue(config).join(DROP_FOLDER)
}

/// The folder of the client queue, whichever role this process has.
fn client_queue(config: &Config) -> &Path {
    match (config.role, &config.paths.client_queue_directory) {
        (Role::Mta, Some(directory)) => directory,
        _ => &config.paths.queue_directory,
    }
}

/// Prints a line for the user. There is nobody to tell if that fails.
pub(in crate::programs) fn say(text: &str) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// Prints the lines of a dialogue as they come.
fn verbose_to_stdout() -> Verbose {
    Arc::new(|line: &str| say(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_given_once_also_when_the_clock_is_set_back() {
        let ids = Ids::default();
        let given: Vec<_> = [5_000, 5_000, 9_000, 1_000].map(|ms| ids.next(ms)).into();
        assert!(given.windows(2).all(|pair| pair[0] < pair[1]), "{given:?}");
    }

    #[test]
    fn trusted_users_are_words_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("trusted-users");
        assert!(is_trusted("root", &file));
        assert!(!is_trusted("www", &file));
        std::fs::write(&file, "# comment www\nlist # x\n  www\n").unwrap();
        assert!(is_trusted("www", &file) && is_trusted("list", &file));
        assert!(!is_trusted("comment", &file));
    }
}
