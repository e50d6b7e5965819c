//! Mailers by their definitions (L2): whom they act for, and what their arguments and directories say.
//!
//! `local` may be one of them, `prog` is one made of the shell, and mailertables name others. Guarantees: a mailer acts
//! with the rights of the recipient's user, of U= or of the default user, in this order for local users and without the
//! first for others; never with root's unless the user is root. Blocks: looks up users on the blocking pool.
//! Source: op.me 5.4, transcript 62 parts 6 and 7.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::lmtp::{self, LmtpServer};
use super::maildir;
use super::mbox::{self, Form};
use super::program::{Program, Programs};
use super::{Attempt, DeliveryRecipient, MailboxOptions, Results, file, say};
use crate::address::{Address, ReversePath};
use crate::clock::Clock;
use crate::config::mailer::{MailerDefinition, Transport};
use crate::envelope::{ControllingUser, Delivery, Outcome};
use crate::safe_file::Who;
use crate::status::Status;
use crate::users::{User, Users};

/// Settings of mailers that are defined, of `prog` and of `*file*`.
#[derive(Debug, Clone)]
pub struct NamedOptions {
    /// What gets commands as `-c COMMAND`.
    pub shell: PathBuf,
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
}

impl Default for NamedOptions {
    /// No mailers, and Sendmail's own defaults for the rest.
    fn default() -> Self {
        Self {
            shell: PathBuf::from("/bin/sh"),
            time_limit: Duration::from_secs(3600),
            mailers: Vec::new(),
            local: None,
            default_user: Who { uid: 1, gid: 1 },
            users: Arc::new(Users::of_system()),
            environment: Vec::new(),
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
    counter: Arc<maildir::Counter>,
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
        Self {
            users: Arc::clone(&options.users),
            options,
            mailboxes,
            host_name,
            clock,
            programs: Programs::new(),
            counter: Arc::default(),
        }
    }

    /// Whether users' mail goes to a mailer that is defined.
    pub(crate) fn has_local(&self) -> bool {
        self.options.local.is_some()
    }

    /// Delivers to users of this host by the mailer that `local` names.
    pub(crate) async fn local(&self, attempt: &Attempt, results: &mut Results) {
        let name = self.options.local.clone().unwrap_or_default();
        self.by_definition(&name, "local", "", attempt, results)
            .await;
    }

    /// Delivers by a mailer of this name.
    pub(crate) async fn deliver(
        &self,
        name: &str,
        host: &str,
        attempt: &Attempt,
        results: &mut Results,
    ) {
        if name == "discard" {
            for position in results.open() {
                let sent = Outcome::new(Delivery::Delivered, Status::OK, name, "Sent");
                results.set(position, sent);
            }
            return;
        }
        self.by_definition(name, name, host, attempt, results).await;
    }

    /// Runs the commands of aliases and `.forward`s.
    pub(crate) async fn run_commands(&self, attempt: &Attempt, results: &mut Results) {
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
                    if let (Some(account), false) = (&acting.account, is_list) {
                        directories.push(account.home.clone());
                    }
                    let shell = &self.options.shell;
                    let name = shell.file_name().map_or_else(
                        || "sh".to_owned(),
                        |name| name.to_string_lossy().into_owned(),
                    );
                    let program = Program {
                        mailer: "prog".to_owned(),
                        path: shell.clone(),
                        arguments: vec![name, "-c".to_owned(), recipient.user.clone()],
                        who: acting.who,
                        login: acting.account.map(|account| account.name),
                        directories,
                        time_limit: self.options.time_limit,
                        preamble: self.unix_from_line(&attempt.envelope.reverse_path),
                        form: Form::PLAIN,
                        environment: self.options.environment.clone(),
                    };
                    self.programs.run(&program, attempt).await
                }
                Err(outcome) => outcome("prog"),
            };
            say(attempt.verbose.as_ref(), || {
                format!("{shown}... {}", outcome.text)
            });
            results.set(position, outcome);
        }
    }

    /// Appends to the files of aliases and `.forward`s.
    pub(crate) async fn append_to_files(&self, attempt: &Attempt, results: &mut Results) {
        for (position, recipient) in attempt.recipients.iter().enumerate() {
            let outcome = match self.controlling(recipient).await {
                Ok(acting) => {
                    let path = PathBuf::from(&recipient.user);
                    let (sender, host) = (
                        attempt.envelope.reverse_path.clone(),
                        self.host_name.clone(),
                    );
                    let (content, options) = (Arc::clone(&attempt.content), self.mailboxes.clone());
                    let clock = Arc::clone(&self.clock);
                    tokio::task::spawn_blocking(move || {
                        file::deliver(
                            &path, acting.who, &sender, &host, &content, &options, &*clock,
                        )
                    })
                    .await
                    .unwrap_or_else(|_| deferred("*file*", "internal error of the mailer"))
                }
                Err(outcome) => outcome("*file*"),
            };
            say(attempt.verbose.as_ref(), || {
                format!("{}... {}", recipient.recipient.shown(), outcome.text)
            });
            results.set(position, outcome);
        }
    }

    async fn by_definition(
        &self,
        name: &str,
        shown_name: &str,
        host: &str,
        attempt: &Attempt,
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
        if mailer
            .message_bytes_max
            .is_some_and(|most| attempt.content_bytes > most)
        {
            for position in results.open() {
                let text = "Message is too large for the mailer";
                let outcome =
                    Outcome::new(Delivery::Failed, Status::new(5, 2, 3), shown_name, text);
                results.set(position, outcome);
            }
            return;
        }
        for recipient in &attempt.recipients {
            say(attempt.verbose.as_ref(), || {
                format!(
                    "{}... Connecting to {shown_name}...",
                    recipient.recipient.shown()
                )
            });
        }
        let server = match &mailer.transport {
            Transport::LmtpUnix(path) => Some(LmtpServer::Unix(PathBuf::from(path))),
            Transport::LmtpTcp { host: to, port } => Some(LmtpServer::Tcp {
                host: to.replace("$h", host),
                port: *port,
            }),
            _ => None,
        };
        if let Some(server) = server {
            lmtp::deliver(
                &server,
                shown_name,
                &self.host_name,
                mailer.time_limit,
                attempt,
                results,
            )
            .await;
        } else {
            for (position, recipient) in attempt.recipients.iter().enumerate() {
                let outcome = self.one(mailer, shown_name, host, recipient, attempt).await;
                results.set(position, outcome);
            }
        }
        for (recipient, outcome) in attempt.recipients.iter().zip(results.outcomes()) {
            if let Some(outcome) = outcome {
                say(attempt.verbose.as_ref(), || {
                    format!("{}... {}", recipient.recipient.shown(), outcome.text)
                });
            }
        }
    }

    /// One recipient by a program or a Maildir.
    async fn one(
        &self,
        mailer: &MailerDefinition,
        shown_name: &str,
        host: &str,
        recipient: &DeliveryRecipient,
        attempt: &Attempt,
    ) -> Outcome {
        let acting = match self.acting_for(mailer, &recipient.user).await {
            Ok(acting) => acting,
            Err(outcome) => return outcome(shown_name),
        };
        let home = acting.account.as_ref().map(|account| account.home.clone());
        let sender = &attempt.envelope.reverse_path;
        let macros = Macros {
            user: &recipient.user,
            host: if host.is_empty() {
                detail_of(recipient)
            } else {
                host.to_owned()
            },
            sender: sender.to_string().trim_matches(['<', '>']).to_owned(),
            home: home.as_deref(),
            host_name: &self.host_name,
        };
        let mut preamble = String::new();
        if !mailer.has('n') {
            preamble.push_str(&self.unix_from_line(sender));
        }
        if mailer.has('P') {
            preamble.push_str(&return_path(sender, &self.host_name));
        }
        if let Transport::Maildir(path) = &mailer.transport {
            let maildir = PathBuf::from(macros.expand(path));
            let (mailer, host) = (shown_name.to_owned(), self.host_name.clone());
            let (content, clock) = (Arc::clone(&attempt.content), Arc::clone(&self.clock));
            let counter = Arc::clone(&self.counter);
            let preamble = return_path(sender, &self.host_name);
            return tokio::task::spawn_blocking(move || {
                let place = maildir::Place {
                    mailer: &mailer,
                    maildir: &maildir,
                    who: acting.who,
                    host_name: &host,
                    counter: &counter,
                };
                maildir::deliver(&place, &preamble, &content, &*clock)
            })
            .await
            .unwrap_or_else(|_| deferred(shown_name, "internal error of the mailer"));
        }
        let Transport::Program(path) = &mailer.transport else {
            return deferred(shown_name, "the mailer takes no single recipient");
        };
        let mut arguments: Vec<String> = Vec::new();
        for (at, argument) in mailer.arguments.iter().enumerate() {
            arguments.push(macros.expand(argument));
            // F=f and F=r: the sender, behind the program's name.
            if at == 0 && mailer.has('f') {
                arguments.extend(["-f".to_owned(), macros.sender_or_daemon()]);
            } else if at == 0 && mailer.has('r') {
                arguments.extend(["-r".to_owned(), macros.sender_or_daemon()]);
            }
        }
        let program = Program {
            mailer: shown_name.to_owned(),
            path: PathBuf::from(path),
            arguments,
            who: acting.who,
            login: acting.account.map(|account| account.name),
            directories: mailer
                .directories
                .iter()
                .map(|directory| PathBuf::from(macros.expand(directory)))
                .collect(),
            time_limit: mailer.time_limit,
            environment: self.options.environment.clone(),
            preamble,
            form: Form {
                is_from_quoted: mailer.has('E'),
                ends_empty: false,
            },
        };
        self.programs.run(&program, attempt).await
    }

    /// The line that F=n leaves out.
    fn unix_from_line(&self, sender: &ReversePath) -> String {
        let both = mbox::file_preamble(sender, &self.host_name, self.clock.unix_ms());
        both.split_inclusive('\n')
            .next()
            .unwrap_or_default()
            .to_owned()
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

    /// Whom a mailer acts for when it delivers to a user.
    async fn acting_for(
        &self,
        mailer: &MailerDefinition,
        user: &str,
    ) -> Result<Acting, impl FnOnce(&str) -> Outcome + use<>> {
        let (users, name) = (Arc::clone(&self.users), user.to_owned());
        let owner = mailer.user.clone();
        let is_local = mailer.has('l') || mailer.has('w') || mailer.has('o');
        let default = self.options.default_user;
        let found = tokio::task::spawn_blocking(move || {
            let account = users.lookup(&name)?;
            let (acting, account) = match (&account, owner) {
                (Some(found), _) if is_local => (Some(ids(found)), account),
                (_, Some(owner)) => {
                    let login = owner.split([':', '.']).next().unwrap_or_default();
                    let owner = users.lookup(login)?;
                    (owner.as_ref().map(ids), owner)
                }
                _ => (Some(default), None),
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

/// What the macros of A= and D= stand for.
struct Macros<'a> {
    user: &'a str,
    host: String,
    sender: String,
    home: Option<&'a Path>,
    host_name: &'a str,
}

impl Macros<'_> {
    fn sender_or_daemon(&self) -> String {
        if self.sender.is_empty() {
            format!("MAILER-DAEMON@{}", self.host_name)
        } else {
            self.sender.clone()
        }
    }

    fn expand(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text.chars();
        while let Some(c) = rest.next() {
            if c != '$' {
                out.push(c);
                continue;
            }
            match rest.next() {
                Some('u') => out.push_str(self.user),
                Some('h') => out.push_str(&self.host),
                Some('f' | 'g') => out.push_str(&self.sender_or_daemon()),
                Some('j') => out.push_str(self.host_name),
                Some('z') => out.push_str(&self.home.unwrap_or(Path::new("/")).to_string_lossy()),
                Some('$') => out.push('$'),
                other => {
                    out.push('$');
                    out.extend(other);
                }
            }
        }
        out
    }
}
