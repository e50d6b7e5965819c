//! Mailers by their definitions (L2): whom they act for, and what their arguments and directories say.
//!
//! `local` may be one of them, `prog` is one made of the shell, and mailertables name others. Guarantees: a mailer acts
//! with the rights of the recipient's user, of U= or of the default user, in this order for local users and without the
//! first for others; never with root's unless the user is root. Blocks: looks up users on the blocking pool.
//! Source: op.me 5.4, transcript 62 parts 6 and 7.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::exit_code;
use super::file::{self, Files};
use super::lmtp::{self, LmtpMailer, LmtpServer};
use super::maildir::{self, Maildirs};
use super::mbox::{self, Form};
use super::program::{Program, Programs};
use super::{Attempt, DeliveryRecipient, MailboxOptions, Place, Results, say};
use crate::address::{Address, ReversePath};
use crate::clock::Clock;
use crate::config::mailer::{LineEnd, Macro, MailerDefinition, ProgramLimits, Template, Transport};
use crate::envelope::{ControllingUser, Delivery, Outcome, ProgramEnd};
use crate::safe_file::Who;
use crate::status::Status;
use crate::users::{User, Users};

/// Recipients that one run of a mailer serves at most.
pub const RUN_RECIPIENTS_MAX: usize = 100;

/// Settings of mailers that are defined, of `prog` and of `*file*`.
#[derive(Debug, Clone)]
pub struct NamedOptions {
    /// What gets commands as `-c COMMAND`.
    pub shell: PathBuf,
    /// What smrsh, if it is the shell, is told to find its programs in; `None` for its own place.
    pub smrsh_directory: Option<PathBuf>,
    /// How long a command may take.
    pub time_limit: Duration,
    /// The mailers.
    pub mailers: Vec<MailerDefinition>,
    /// The one that delivers to users of this host.
    pub local: Option<String>,
    /// Whom mail acts for that acts for nobody.
    pub default_user: Who,
    /// The users of this host.
    pub users: Arc<Users>,
    /// Variables that programs get besides AGENT and TZ.
    pub environment: Vec<(String, OsString)>,
    /// What programs may use up.
    pub limits: ProgramLimits,
}

impl Default for NamedOptions {
    /// No mailers, and Sendmail's own defaults for the rest.
    fn default() -> Self {
        Self {
            shell: PathBuf::from("/bin/sh"),
            smrsh_directory: None,
            time_limit: Duration::from_secs(3600),
            mailers: Vec::new(),
            local: None,
            default_user: Who { uid: 1, gid: 1 },
            users: Arc::new(Users::of_system()),
            environment: Vec::new(),
            limits: ProgramLimits::default(),
        }
    }
}

/// The mailers that are defined.
pub(crate) struct Named {
    options: NamedOptions,
    mailboxes: MailboxOptions,
    host_name: String,
    users: Arc<Users>,
    clock: Arc<dyn Clock>,
    programs: Programs,
    files: Files,
    maildirs: Maildirs,
    lmtp: LmtpMailer,
}

/// Recipients that one run of a mailer serves.
struct Run {
    acting: Acting,
    /// Whether `$u` is a command, whose letters mean something.
    is_command: bool,
    /// `$h`.
    host: String,
    positions: Vec<usize>,
}

/// Whom a delivery acts for.
#[derive(Clone)]
struct Acting {
    who: Who,
    /// The account, if there is one: its groups and its home.
    account: Option<User>,
}

impl Named {
    pub(crate) fn new(
        options: NamedOptions,
        mailboxes: MailboxOptions,
        host_name: String,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let files = Files::new(host_name.clone(), mailboxes.clone(), Arc::clone(&clock));
        let maildirs = Maildirs::new(&host_name, Arc::clone(&clock), mailboxes.part.clone());
        Self {
            users: Arc::clone(&options.users),
            files,
            maildirs,
            options,
            mailboxes,
            lmtp: LmtpMailer::new(host_name.clone()),
            host_name,
            clock,
            programs: Programs::new(),
        }
    }

    /// Whether users' mail goes to a mailer that is defined.
    pub(crate) fn has_local(&self) -> bool {
        self.options.local.is_some()
    }

    /// Delivers to users of this host by the mailer that `local` names.
    pub(crate) async fn local(&self, attempt: &Attempt, place: Place, results: &mut Results) {
        let name = self.options.local.clone().unwrap_or_default();
        self.by_definition(&name, "local", "", attempt, place, results)
            .await;
    }

    /// Delivers by a mailer of this name.
    pub(crate) async fn deliver(
        &self,
        name: &str,
        host: &str,
        attempt: &Attempt,
        place: Place,
        results: &mut Results,
    ) {
        match name {
            "discard" => {
                for position in results.open() {
                    let gone = Outcome::new(Delivery::Delivered, Status::OK, name, "discarded");
                    results.set(position, gone);
                }
            }
            "error" => {
                for (position, recipient) in attempt.recipients.iter().enumerate() {
                    results.set(position, refused(host, &recipient.user));
                }
            }
            _ => {
                self.by_definition(name, name, host, attempt, place, results)
                    .await;
            }
        }
    }

    /// Runs the commands of aliases and `.forward`s.
    pub(crate) async fn run_commands(
        &self,
        attempt: &Attempt,
        place: Place,
        results: &mut Results,
    ) {
        if self.options.mailers.iter().any(|m| m.name == "prog") {
            return self
                .by_definition("prog", "prog", "", attempt, place, results)
                .await;
        }
        for (position, recipient) in attempt.recipients.iter().enumerate() {
            let shown = recipient.recipient.shown();
            say(attempt.verbose.as_ref(), || {
                format!("{shown}... Connecting to prog...")
            });
            let acting = self.controlling(recipient).await;
            let outcome = match acting {
                Ok(acting) => {
                    let mut directories = Vec::new();
                    let is_list = recipient
                        .recipient
                        .controlling_user
                        .as_ref()
                        .is_some_and(|user| user.name.starts_with(":include:"));
                    // Neither a list's owner nor the default user is whose home the command is meant for.
                    let is_nobodys = is_list || acting.who.uid == self.options.default_user.uid;
                    if let (Some(account), false) = (&acting.account, is_nobodys) {
                        directories.push(account.home.clone());
                    }
                    let shell = &self.options.shell;
                    let name = shell.file_name().map_or_else(
                        || "sh".to_owned(),
                        |name| name.to_string_lossy().into_owned(),
                    );
                    let mut arguments = vec![name];
                    if let Some(directory) = &self.options.smrsh_directory {
                        arguments.extend(["-d".to_owned(), directory.display().to_string()]);
                    }
                    arguments.extend(["-c".to_owned(), recipient.user.replace('\0', "")]);
                    let program = Program {
                        mailer: "prog".to_owned(),
                        path: shell.clone(),
                        arguments,
                        who: acting.who,
                        login: acting.account.map(|account| account.name),
                        directories,
                        time_limit: self.options.time_limit,
                        preamble: mbox::from_line(
                            &attempt.envelope.reverse_path,
                            &self.host_name,
                            self.clock.unix_ms(),
                        ),
                        form: Form::PLAIN,
                        environment: self.options.environment.clone(),
                        limits: self.options.limits,
                        part: self.mailboxes.part.clone(),
                    };
                    self.programs.run(program, attempt).await
                }
                Err(outcome) => outcome("prog"),
            };
            say_outcome(attempt, &shown, &outcome);
            results.set(position, outcome);
        }
        drop(place);
    }

    /// Appends to the files of aliases and `.forward`s.
    pub(crate) async fn append_to_files(
        &self,
        attempt: &Attempt,
        place: Place,
        results: &mut Results,
    ) {
        let mut pending = Vec::with_capacity(attempt.recipients.len());
        for recipient in &attempt.recipients {
            pending.push(match self.controlling(recipient).await {
                Ok(acting) => {
                    let path = Path::new(&recipient.user);
                    self.files.enqueue(path, acting.who, attempt)
                }
                Err(outcome) => Err(outcome(file::MAILER)),
            });
        }
        drop(place);
        for (position, (recipient, pending)) in attempt.recipients.iter().zip(pending).enumerate() {
            let outcome = ended(pending, file::MAILER).await;
            say_outcome(attempt, &recipient.recipient.shown(), &outcome);
            results.set(position, outcome);
        }
    }

    async fn by_definition(
        &self,
        name: &str,
        shown_name: &str,
        host: &str,
        attempt: &Attempt,
        place: Place,
        results: &mut Results,
    ) {
        let Some(mailer) = self.options.mailers.iter().find(|m| m.name == name) else {
            for position in results.open() {
                let mut outcome = deferred(shown_name, &format!("no mailer {name} is defined"));
                outcome.status = Status::new(4, 3, 5);
                results.set(position, outcome);
            }
            return;
        };
        if let Some(most) = mailer
            .message_bytes_max
            .filter(|most| attempt.content_bytes > *most)
        {
            for position in results.open() {
                let text = format!("Message is too large; {most} bytes max");
                let outcome =
                    Outcome::new(Delivery::Failed, Status::new(5, 2, 3), shown_name, text);
                results.set(position, outcome);
            }
            return;
        }
        let is_local = shown_name == "local";
        let mut runs: Vec<Run> = Vec::new();
        for (position, recipient) in attempt.recipients.iter().enumerate() {
            let acting = match self
                .acting_for(mailer, recipient, shown_name == "prog")
                .await
            {
                Ok(acting) => acting,
                Err(outcome) => {
                    results.set(position, outcome(shown_name));
                    continue;
                }
            };
            if mailer.has('w') && acting.account.is_none() {
                let outcome = Outcome::new(
                    Delivery::Failed,
                    Status::NO_USER,
                    shown_name,
                    "User unknown",
                );
                results.set(position, outcome);
                continue;
            }
            let host = match (is_local, host.is_empty()) {
                (true, _) | (_, true) => detail_of(recipient),
                _ => host.to_owned(),
            };
            let open = runs.iter_mut().find(|run| {
                let is_shared = mailer.has('m')
                    || !matches!(mailer.transport, Transport::Maildir(_)) && mailer.has('z');
                is_shared
                    && run.host == host
                    && run.acting.who == acting.who
                    && run.positions.len() < RUN_RECIPIENTS_MAX
            });
            match open {
                Some(run) => run.positions.push(position),
                None => runs.push(Run {
                    acting,
                    is_command: shown_name == "prog",
                    host,
                    positions: vec![position],
                }),
            }
        }
        let mut pending = VecDeque::new();
        let held = match &mailer.transport {
            Transport::Maildir(path) => {
                let put = |run: &Run| self.put_in_maildir(path, shown_name, run, attempt);
                pending.extend(runs.iter().map(put));
                // What waits for Maildirs waits without a place.
                drop(place);
                None
            }
            _ => Some(place),
        };
        for run in runs {
            let shown = shown(attempt, &run.positions);
            say(attempt.verbose.as_ref(), || {
                format!("{shown}... Connecting to {shown_name}...")
            });
            if mailer.has('z') {
                self.by_lmtp(mailer, shown_name, &run, attempt, results)
                    .await;
                continue;
            }
            let mut outcome = match &mailer.transport {
                Transport::Maildir(_) => match pending.pop_front() {
                    Some(pending) => ended(pending, shown_name).await,
                    None => deferred(shown_name, "internal error of the mailer"),
                },
                Transport::Program(path) => {
                    let program = self.program(mailer, path, shown_name, &run, attempt);
                    self.programs.run(program, attempt).await
                }
                Transport::LmtpUnix(_) | Transport::LmtpTcp { .. } => {
                    deferred(shown_name, "the mailer needs F=z")
                }
            };
            outcome.relay.clone_from(&run.host);
            say_outcome(attempt, &shown, &outcome);
            for position in run.positions {
                results.set(position, outcome.clone());
            }
        }
        drop(held);
    }

    /// One dialogue with an LMTP server.
    async fn by_lmtp(
        &self,
        mailer: &MailerDefinition,
        shown_name: &str,
        run: &Run,
        attempt: &Attempt,
        results: &mut Results,
    ) {
        let server = match &mailer.transport {
            Transport::LmtpUnix(path) => LmtpServer::Unix(PathBuf::from(path)),
            Transport::LmtpTcp { host, port } => LmtpServer::Tcp {
                host: host.expand(|of| self.value(of, run, attempt, None)),
                port: *port,
            },
            Transport::Program(path) => LmtpServer::Program(Box::new(
                self.program(mailer, path, shown_name, run, attempt),
            )),
            Transport::Maildir(_) => return,
        };
        let message = lmtp::Message {
            mailer: shown_name,
            positions: &run.positions,
            attempt,
            time_limit: mailer.time_limit,
        };
        let _place = match &server {
            LmtpServer::Program(_) => self.programs.place().await,
            LmtpServer::Unix(_) | LmtpServer::Tcp { .. } => None,
        };
        self.lmtp.deliver(&server, &message, results).await;
    }

    /// Has a message put into one recipient's Maildir.
    fn put_in_maildir(
        &self,
        path: &Template,
        shown_name: &str,
        run: &Run,
        attempt: &Attempt,
    ) -> Result<oneshot::Receiver<Outcome>, Outcome> {
        let recipient = run
            .positions
            .first()
            .and_then(|at| attempt.recipients.get(*at));
        let place = maildir::Place {
            mailer: shown_name.to_owned(),
            maildir: PathBuf::from(path.expand(|of| self.value(of, run, attempt, recipient))),
            who: run.acting.who,
        };
        let preamble = return_path(&attempt.envelope.reverse_path, &self.host_name);
        self.maildirs.enqueue(place, preamble, attempt)
    }

    /// The program of a mailer for these recipients.
    fn program(
        &self,
        mailer: &MailerDefinition,
        path: &str,
        shown_name: &str,
        run: &Run,
        attempt: &Attempt,
    ) -> Program {
        let sender = &attempt.envelope.reverse_path;
        let mut preamble = String::new();
        if !mailer.has('n') {
            preamble.push_str(&mbox::from_line(
                sender,
                &self.host_name,
                self.clock.unix_ms(),
            ));
        }
        if mailer.has('P') {
            let name = mbox::sender_name(sender, &self.host_name);
            preamble.push_str(&format!("Return-Path: <{name}>\n"));
        }
        if mailer.line_end == LineEnd::CrLf {
            preamble = preamble.replace('\n', "\r\n");
        }
        let first = run
            .positions
            .first()
            .and_then(|at| attempt.recipients.get(*at));
        Program {
            mailer: shown_name.to_owned(),
            path: PathBuf::from(path),
            arguments: self.arguments(mailer, run, attempt),
            who: run.acting.who,
            login: run.acting.account.as_ref().map(|user| user.name.clone()),
            directories: mailer
                .directories
                .iter()
                .map(|directory| {
                    PathBuf::from(directory.expand(|of| self.value(of, run, attempt, first)))
                })
                .filter(|directory| directory.is_absolute())
                .collect(),
            time_limit: mailer.time_limit,
            environment: self.options.environment.clone(),
            limits: self.options.limits,
            part: self.mailboxes.part.clone(),
            preamble,
            form: Form {
                quotes_from: mailer.has('E'),
                doubles_dots: mailer.has('X'),
                is_seven_bit: mailer.has('7'),
                has_last_line: mailer.has('b'),
                line_end: match mailer.line_end {
                    LineEnd::Lf => b"\n",
                    LineEnd::CrLf => b"\r\n",
                },
            },
        }
    }

    /// The program's arguments: A= with its macros, an argument with `$u` once for each recipient, `-f` or `-r` with the
    /// sender after argument 0.
    fn arguments(&self, mailer: &MailerDefinition, run: &Run, attempt: &Attempt) -> Vec<String> {
        let mut arguments = Vec::new();
        for template in &mailer.arguments {
            let repeated = if template.has(Macro::User) {
                run.positions.as_slice()
            } else {
                run.positions.get(..1).unwrap_or_default()
            };
            for position in repeated {
                let recipient = attempt.recipients.get(*position);
                arguments.push(template.expand(|of| {
                    let value = self.value(of, run, attempt, recipient);
                    match of {
                        Macro::User => {
                            let is_kept = run.is_command || mailer.has('u');
                            let value = if is_kept {
                                value
                            } else {
                                value.to_ascii_lowercase()
                            };
                            if mailer.has('s') && !run.is_command {
                                value.replace('"', "")
                            } else {
                                value
                            }
                        }
                        Macro::Host if !mailer.has('h') => value.to_ascii_lowercase(),
                        _ => value,
                    }
                }));
            }
            if arguments.len() == 1 {
                let sender = mbox::sender_name(&attempt.envelope.reverse_path, &self.host_name);
                for (flag, option) in [('f', "-f"), ('r', "-r")] {
                    if mailer.has(flag) {
                        arguments.extend([option.to_owned(), sender.clone()]);
                    }
                }
            }
        }
        // No program can be given a NUL.
        for argument in &mut arguments {
            argument.retain(|c| c != '\0');
        }
        arguments
    }

    /// What a macro stands for.
    fn value(
        &self,
        of: Macro,
        run: &Run,
        attempt: &Attempt,
        recipient: Option<&DeliveryRecipient>,
    ) -> String {
        let arrival = &attempt.envelope.arrival;
        match of {
            Macro::User => recipient.map(|r| r.user.clone()).unwrap_or_default(),
            Macro::Host => run.host.clone(),
            Macro::Sender => mbox::sender_name(&attempt.envelope.reverse_path, &self.host_name),
            Macro::Home => run
                .acting
                .account
                .as_ref()
                .map(|user| user.home.display().to_string())
                .unwrap_or_default(),
            Macro::HostName => self.host_name.clone(),
            Macro::Domain => self
                .host_name
                .split_once('.')
                .map(|(_, domain)| domain.to_owned())
                .unwrap_or_default(),
            Macro::QueueId => attempt.id.to_string(),
            Macro::Protocol => arrival.protocol.clone(),
            Macro::ClientName => arrival.client_name.clone().unwrap_or_default(),
            Macro::ClientAddress => arrival
                .client_address
                .map(|address| address.to_string())
                .unwrap_or_default(),
            Macro::MessageSize => attempt.content_bytes.to_string(),
            Macro::RecipientCount => attempt.envelope.recipients.len().to_string(),
            Macro::Version => env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    async fn controlling(
        &self,
        recipient: &DeliveryRecipient,
    ) -> Result<Acting, impl FnOnce(&str) -> Outcome + use<>> {
        let user = recipient.recipient.controlling_user.clone();
        let who = acting_ids(user.as_ref(), self.options.default_user);
        let users = Arc::clone(&self.users);
        let found = tokio::task::spawn_blocking(move || users.by_uid(who.uid)).await;
        match found {
            Ok(Ok(account)) => Ok(Acting { who, account }),
            Ok(Err(error)) => Err(trouble(error.to_string())),
            Err(error) => Err(trouble(error.to_string())),
        }
    }

    /// Whom a mailer acts for: a local one for the recipient, others as U= says or for the default user; commands for
    /// their controlling user.
    async fn acting_for(
        &self,
        mailer: &MailerDefinition,
        recipient: &DeliveryRecipient,
        is_command: bool,
    ) -> Result<Acting, impl FnOnce(&str) -> Outcome + use<>> {
        let (users, name) = (Arc::clone(&self.users), recipient.user.clone());
        let owner = mailer.user.clone();
        let is_local = mailer.has('l') || mailer.has('w') || mailer.has('o');
        let default = self.options.default_user;
        let controlling = recipient.recipient.controlling_user.clone();
        let found = tokio::task::spawn_blocking(move || {
            if is_command {
                let who = acting_ids(controlling.as_ref(), default);
                return Ok((Some(who), users.by_uid(who.uid)?));
            }
            let account = users.lookup(&name)?;
            let acting = match (&account, owner) {
                (Some(found), _) if is_local => Some(ids(found)),
                (_, Some(owner)) => identity(&owner, &users)?,
                _ => Some(default),
            };
            Ok::<_, crate::users::UsersError>((acting, account))
        })
        .await;
        match found {
            Ok(Ok((Some(who), account))) => Ok(Acting { who, account }),
            Ok(Ok((None, _))) => Err(trouble("the user of U= does not exist".to_owned())),
            Ok(Err(error)) => Err(trouble(error.to_string())),
            Err(error) => Err(trouble(error.to_string())),
        }
    }
}

/// The ids of `USER[:GROUP]`, both by name or number; without a group the user's own. In a sandbox everybody has the
/// process's.
fn identity(owner: &str, users: &Users) -> Result<Option<Who>, crate::users::UsersError> {
    let (user, group) = owner.split_once([':', '.']).unwrap_or((owner, ""));
    let account = match user.parse() {
        Ok(uid) => users.by_uid(uid)?,
        Err(_) => users.lookup(user)?,
    };
    let group = match (group, group.parse()) {
        ("", _) => None,
        _ if users.act_as_one() => None,
        (_, Ok(gid)) => Some(gid),
        (name, Err(_)) => match nix::unistd::Group::from_name(name) {
            Ok(Some(group)) => Some(group.gid.as_raw()),
            _ => return Ok(None),
        },
    };
    Ok(account.map(|account| Who {
        uid: account.uid,
        gid: group.unwrap_or(account.gid),
    }))
}

fn ids(user: &User) -> Who {
    Who {
        uid: user.uid,
        gid: user.gid,
    }
}

/// A user who is root acts as the default user. Source: Sendmail's deliver().
fn acting_ids(user: Option<&ControllingUser>, default: Who) -> Who {
    match user {
        Some(user) if user.uid != 0 => Who {
            uid: user.uid,
            gid: user.gid,
        },
        _ => default,
    }
}

/// The outcome of what waits for a worker.
async fn ended(pending: Result<oneshot::Receiver<Outcome>, Outcome>, mailer: &str) -> Outcome {
    match pending {
        Ok(done) => done
            .await
            .unwrap_or_else(|_| deferred(mailer, "internal error of the mailer")),
        Err(outcome) => outcome,
    }
}

/// Sendmail says what was sent or deferred, and leaves failures to the report.
fn say_outcome(attempt: &Attempt, shown: &str, outcome: &Outcome) {
    if outcome.result == Delivery::Delivered || outcome.text.starts_with("Deferred") {
        say(attempt.verbose.as_ref(), || {
            format!("{shown}... {}", outcome.text)
        });
    }
}

/// Recipients as they are shown, by their positions.
fn shown(attempt: &Attempt, positions: &[usize]) -> String {
    let shown: Vec<String> = positions
        .iter()
        .filter_map(|at| attempt.recipients.get(*at))
        .map(|recipient| recipient.recipient.shown())
        .collect();
    shown.join(",")
}

fn trouble(detail: String) -> impl FnOnce(&str) -> Outcome {
    move |mailer| deferred(mailer, &detail)
}

fn deferred(mailer: &str, reason: &str) -> Outcome {
    let text = format!("Deferred: {reason}");
    Outcome::new(Delivery::Deferred, Status::new(4, 3, 0), mailer, text)
}

fn return_path(sender: &ReversePath, host_name: &str) -> String {
    let both = mbox::preamble(sender, host_name, 0);
    both.split_inclusive('\n')
        .nth(1)
        .unwrap_or_default()
        .to_owned()
}

/// What the mailer `error` does: `host` is a status such as `5.1.1` or a word such as `nouser`, `text` what is said, with
/// or without a reply code and a status before it.
fn refused(host: &str, text: &str) -> Outcome {
    let exit = match host {
        "usage" => Some((64, Status::new(5, 5, 4))),
        "nouser" => Some((67, Status::NO_USER)),
        "nohost" => Some((68, Status::new(5, 1, 2))),
        "unavailable" | "" => Some((69, Status::new(5, 0, 0))),
        "software" => Some((70, Status::new(5, 3, 0))),
        "tempfail" => Some((exit_code::TEMPORARY_FAILURE, Status::new(4, 0, 0))),
        "protocol" => Some((76, Status::new(5, 5, 0))),
        "config" => Some((78, Status::new(5, 3, 5))),
        _ => None,
    };
    let mut words = text.splitn(3, ' ');
    let code = words
        .next()
        .filter(|word| word.len() == 3 && word.bytes().all(|byte| byte.is_ascii_digit()));
    let said = code.and_then(|_| words.next()).and_then(Status::parse);
    let status = Status::parse(host)
        .or(said)
        .or(exit.map(|(_, status)| status))
        .unwrap_or(Status::new(5, 0, 0));
    let plain = match (code, said) {
        (Some(code), Some(said)) => text
            .strip_prefix(code)
            .and_then(|rest| rest.trim_start().strip_prefix(&said.to_string()))
            .unwrap_or(text),
        (Some(code), None) => text.strip_prefix(code).unwrap_or(text),
        _ => text,
    };
    let plain = plain.trim();
    let result = if status.class == 4 {
        Delivery::Deferred
    } else {
        Delivery::Failed
    };
    let shown = if result == Delivery::Deferred {
        format!("Deferred: {plain}")
    } else {
        plain.to_owned()
    };
    let mut outcome = Outcome::new(result, status, "error", shown);
    outcome.program = exit.map(|(exit_code, _)| {
        Box::new(ProgramEnd {
            exit_code,
            output: Vec::new(),
        })
    });
    outcome
}

/// What stood behind the plus sign of the address.
fn detail_of(recipient: &DeliveryRecipient) -> String {
    let target = recipient.recipient.target.trim_start_matches('\\');
    let local = Address::parse(target).map(|address| address.local_unquoted());
    local
        .ok()
        .and_then(|local| {
            let (user, detail) = local.split_once('+')?;
            user.eq_ignore_ascii_case(&recipient.user)
                .then(|| detail.to_owned())
        })
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_mailer_says_what_it_was_told() {
        for (host, text, result, status, said) in [
            (
                "nouser",
                "No such person",
                Delivery::Failed,
                "5.1.1",
                "No such person",
            ),
            (
                "5.7.1",
                "550 5.7.1 Go away",
                Delivery::Failed,
                "5.7.1",
                "Go away",
            ),
            ("", "553 Odd", Delivery::Failed, "5.0.0", "Odd"),
            (
                "tempfail",
                "Later",
                Delivery::Deferred,
                "4.0.0",
                "Deferred: Later",
            ),
            (
                "4.2.1",
                "451 Later",
                Delivery::Deferred,
                "4.2.1",
                "Deferred: Later",
            ),
        ] {
            let outcome = refused(host, text);
            assert_eq!(outcome.result, result, "{host} {text}");
            assert_eq!(outcome.status.to_string(), status, "{host} {text}");
            assert_eq!(outcome.text, said, "{host} {text}");
        }
    }
}
