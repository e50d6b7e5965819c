//! The mailers `esmtp` and `relay` (L2): a message to the hosts of its hop.
//!
//! Guarantees: hosts and addresses are tried in order while the failure is one of the host rather than of the message:
//! no connection, a greeting other than 2yz, a dialogue broken off before the final dot, or 421. A connection that is
//! lost after the final dot defers without another host being tried, as the message may have been taken (I6). If no
//! host could be reached the outcome is a deferral unless every host refused for good. An idle connection is used
//! again where there is one, and replaced quietly if it turns out to be dead. Outcomes read as Sendmail's.
//! Limits: [`HOSTS_MAX`], [`ADDRESSES_MAX`], [`CONNECTS_MAX`], [`TRANSACTION_RECIPIENTS_MAX`], the client's times.
//! Source: RFC 5321 4.5.4, 5.1.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::cache::ConnectionCache;
pub use super::cache::{QUIT_TIME_MAX, TRANSACTIONS_MAX};
use super::client::{
    Cause, SmtpClient, SmtpError, Step, TRANSACTION_RECIPIENTS_MAX, Transaction, WireRecipient,
};
pub use super::hosts::{ADDRESSES_MAX, HOSTS_MAX};
use super::hosts::{Finder, Host};
use super::{Attempt, NextHop, Results, SmtpTimeouts, Verbose, say};
use crate::address::PATH_BYTES_MAX;
use crate::dns::Resolver;
use crate::envelope::{Delivery, Outcome};
use crate::status::{Reply, Status, Verdict};

/// The port of SMTP.
pub const SMTP_PORT: u16 = 25;
/// Connections tried in one attempt.
pub const CONNECTS_MAX: usize = 32;

/// Whether a name is one of this host's own, so that its mail hosts of equal and worse preference are no way on
/// (RFC 5321 5.1). Names come in lower case, without final dot. Must not block.
pub type OwnName = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// A server that has greeted, and is about to get a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeted {
    /// Its name without final dot, or its address in brackets.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// Whether it offered STARTTLS.
    pub offers_tls: bool,
}

/// What stands for a server's reply where this host hands it nothing.
pub type RuleVerdict = Result<(), Reply>;
/// Whether a server gets mail for this address. May block only as [`ConnectionRules::waits`] says.
pub type RecipientRule = dyn Fn(&str, &Greeted) -> RuleVerdict + Send + Sync;

/// Which servers get mail over a plain connection, and for whom: the access map's say.
#[derive(Clone)]
pub struct ConnectionRules {
    /// Whether a server gets any.
    pub server: Arc<dyn Fn(&Greeted) -> RuleVerdict + Send + Sync>,
    /// Whether it gets any for this address.
    pub recipient: Arc<RecipientRule>,
    /// Whether asking may wait for other hosts or programs, so that it is done on the blocking pool.
    pub waits: bool,
}

impl ConnectionRules {
    /// What is said of the server, and of each address if that is good. Trouble on the way is temporary.
    async fn ask(
        &self,
        server: Greeted,
        addresses: Vec<String>,
    ) -> Result<Vec<RuleVerdict>, Reply> {
        let rules = self.clone();
        let ask = move || {
            (rules.server)(&server)?;
            let of = |address: &String| (rules.recipient)(address, &server);
            Ok(addresses.iter().map(of).collect())
        };
        if !self.waits {
            return ask();
        }
        tokio::task::spawn_blocking(ask).await.unwrap_or_else(|_| {
            let text = "Temporary system failure. Please try again later.";
            Err(Reply::new(451, Status::new(4, 3, 0), text))
        })
    }
}

/// Settings of the SMTP client.
#[derive(Clone)]
pub struct SmtpOptions {
    /// What EHLO and HELO say.
    pub helo_name: String,
    /// The port where a hop names none; [`SMTP_PORT`].
    pub port: u16,
    /// Whether addresses other than loopback are never contacted, as in a sandbox without `remote = true`.
    pub loopback_only: bool,
    /// Names of this host.
    pub own_name: OwnName,
    /// Which servers get mail, if not all.
    pub rules: Option<ConnectionRules>,
    /// Time limits.
    pub timeouts: SmtpTimeouts,
    /// `ConnectionCacheSize`: idle connections kept; 0 keeps none.
    pub cache_size: usize,
    /// `ConnectionCacheTimeout`: how long an idle connection is kept at most.
    pub cache_idle_max: Duration,
}

/// The mailers `esmtp` and `relay`.
pub(crate) struct SmtpMailer {
    options: SmtpOptions,
    resolver: Arc<dyn Resolver>,
    cache: Arc<ConnectionCache>,
}

impl SmtpMailer {
    pub(crate) fn new(options: SmtpOptions, resolver: Arc<dyn Resolver>) -> Self {
        let cache = ConnectionCache::new(options.cache_size, options.cache_idle_max);
        Self {
            options,
            resolver,
            cache,
        }
    }

    /// Delivers to the hosts of a hop.
    pub(crate) async fn deliver(
        &self,
        mailer: &str,
        hop: &NextHop,
        attempt: &Attempt,
        results: &mut Results,
    ) {
        let mut dialogue = Dialogue {
            mailer,
            attempt,
            results,
            rules: self.options.rules.as_ref(),
        };
        dialogue.refuse_unsendable();
        let key = cache_key(hop);
        if dialogue.is_done() {
            return;
        }
        if let Some(mut client) = self.cache.take(&key) {
            dialogue.say_all("Using cached ESMTP connection to", client.host());
            client.set_verbose(attempt.verbose.clone());
            // If the connection is dead nothing is lost: what is open goes the usual way.
            let _ = dialogue.converse(&mut client).await;
            self.cache.put(&key, client);
        }
        if !dialogue.is_done() {
            let reason = self.walk(&mut dialogue, hop, &key).await;
            dialogue.give_up(&reason);
        }
    }

    pub(crate) async fn close_idle(&self, verbose: Option<&Verbose>) {
        self.cache.close(verbose).await;
    }

    /// Tries hosts until no recipient is open; gives the outcome for those that still are.
    async fn walk(&self, dialogue: &mut Dialogue<'_>, hop: &NextHop, key: &str) -> Outcome {
        let finder = Finder {
            resolver: &*self.resolver,
            own_name: &self.options.own_name,
            loopback_only: self.options.loopback_only,
            mailer: dialogue.mailer,
        };
        let hosts = match finder.hosts(hop).await {
            Ok(hosts) => hosts,
            Err(outcome) => return outcome,
        };
        let mut reason = None;
        let mut connects = 0;
        for host in &hosts {
            let addresses = match finder.addresses(host).await {
                Ok(addresses) => addresses,
                Err(outcome) => {
                    note_reason(&mut reason, outcome);
                    continue;
                }
            };
            dialogue.say_all("Connecting to", &host.shown);
            for address in addresses {
                connects += 1;
                if connects > CONNECTS_MAX {
                    break;
                }
                let port = host.port.unwrap_or(self.options.port);
                let target = SocketAddr::new(address, port);
                match self.try_address(dialogue, host, target, key).await {
                    Ok(()) => {}
                    Err(error) => {
                        let relay = relay_shown(&host.shown, Some(address));
                        note_reason(&mut reason, dialogue.outcome(&error, relay));
                    }
                }
                if dialogue.is_done() {
                    break;
                }
            }
            if dialogue.is_done() {
                break;
            }
        }
        reason.unwrap_or_else(|| {
            Outcome::new(
                Delivery::Deferred,
                Status::new(4, 4, 0),
                dialogue.mailer,
                "Deferred: no host could be tried",
            )
        })
    }

    /// Connects to one address and sends the message there.
    ///
    /// # Errors
    /// A failure that is the host's, and lets the next be tried.
    async fn try_address(
        &self,
        dialogue: &mut Dialogue<'_>,
        host: &Host,
        target: SocketAddr,
        key: &str,
    ) -> Result<(), SmtpError> {
        let timeouts = self.options.timeouts;
        let limit = if dialogue.attempt.is_first {
            timeouts.iconnect.min(timeouts.connect)
        } else {
            timeouts.connect
        };
        let mut client = SmtpClient::connect(target, &host.shown, timeouts, limit).await?;
        client.set_verbose(dialogue.attempt.verbose.clone());
        let greeted = match client.greeting().await {
            Ok(_) => client.hello(&self.options.helo_name).await,
            Err(error) => Err(error),
        };
        // Our own server on this host lets the user watch the delivery; no other is asked to.
        let wants_verbose = dialogue.attempt.verbose.is_some() && target.ip().is_loopback();
        if greeted.is_ok() && wants_verbose && client.offers("VERB") {
            // Refused or not, the message can be sent; a lost connection shows at the next step.
            let _ = client.command("VERB").await;
        }
        let result = match greeted {
            Ok(()) => dialogue.converse(&mut client).await,
            Err(error) => {
                // A server that greeted with a refusal waits for QUIT (RFC 5321 3.1).
                client.set_verbose(None);
                tokio::spawn(client.quit(QUIT_TIME_MAX));
                return Err(error);
            }
        };
        self.cache.put(key, client);
        result
    }
}

/// One attempt's recipients on their way.
struct Dialogue<'a> {
    mailer: &'a str,
    attempt: &'a Attempt,
    results: &'a mut Results,
    rules: Option<&'a ConnectionRules>,
}

impl Dialogue<'_> {
    fn is_done(&self) -> bool {
        self.results.open().is_empty()
    }

    /// Fails recipients whose address cannot be said in a command line.
    fn refuse_unsendable(&mut self) {
        for (position, recipient) in self.attempt.recipients.iter().enumerate() {
            if !is_sendable(&recipient.user) {
                let outcome = Outcome::new(
                    Delivery::Failed,
                    Status::new(5, 1, 3),
                    self.mailer,
                    "Data format error",
                );
                self.results.set(position, outcome);
            }
        }
    }

    /// Sends the message to the open recipients over a connection that has been greeted.
    ///
    /// # Errors
    /// A failure that is the host's: recipients are left open for the next one.
    async fn converse(&mut self, client: &mut SmtpClient) -> Result<(), SmtpError> {
        let attempt = self.attempt;
        let envelope = &attempt.envelope;
        let sender = envelope
            .reverse_path
            .address()
            .map(ToString::to_string)
            .unwrap_or_default();
        loop {
            let mut group = self.results.open();
            group.truncate(TRANSACTION_RECIPIENTS_MAX);
            self.keep_to_rules(client, &mut group).await?;
            if group.is_empty() && self.is_done() {
                return Ok(());
            }
            if group.is_empty() {
                continue;
            }
            let shown: Vec<String> = group.iter().map(|at| self.shown(*at)).collect();
            let recipients: Vec<WireRecipient<'_>> = group
                .iter()
                .zip(&shown)
                .filter_map(|(at, shown)| {
                    let recipient = attempt.recipients.get(*at)?;
                    Some(WireRecipient {
                        address: &recipient.user,
                        shown,
                        notify: recipient.recipient.notify,
                        original: recipient.recipient.original_recipient.as_deref(),
                    })
                })
                .collect();
            let sent = client
                .send(&Transaction {
                    sender: &sender,
                    body_type: envelope.body_type,
                    dsn_return: envelope.dsn_return,
                    envelope_id: envelope.envelope_id.as_deref(),
                    recipients: &recipients,
                    content: &attempt.content,
                    content_bytes: attempt.content_bytes,
                })
                .await;
            self.note_results(client, &group, sent)?;
            if !client.is_usable() {
                // More recipients may be open after a transaction that went well but for the goodbye.
                return match self.results.open().first() {
                    None => Ok(()),
                    Some(_) => Err(SmtpError {
                        step: Step::Mail,
                        cause: Cause::Lost,
                        host: client.host().to_owned(),
                    }),
                };
            }
        }
    }

    /// Gives recipients that the rules keep from this server their outcome, and takes them out of the group.
    ///
    /// # Errors
    /// The server gets no mail at all.
    async fn keep_to_rules(
        &mut self,
        client: &SmtpClient,
        group: &mut Vec<usize>,
    ) -> Result<(), SmtpError> {
        let Some(rules) = self.rules else {
            return Ok(());
        };
        let server = Greeted {
            name: client.host().trim_end_matches('.').to_owned(),
            address: client.address().ip(),
            offers_tls: client.offers("STARTTLS"),
        };
        let attempt = self.attempt;
        let user = |at: &usize| attempt.recipients.get(*at).map(|r| r.user.clone());
        let addresses = group
            .iter()
            .map(|at| user(at).unwrap_or_default())
            .collect();
        let failed = |reply| SmtpError {
            step: Step::Rules,
            cause: Cause::Reply(reply),
            host: client.host().to_owned(),
        };
        let verdicts = rules.ask(server, addresses).await.map_err(failed)?;
        let relay = relay_shown(client.host(), Some(client.address().ip()));
        let mut kept = Vec::with_capacity(group.len());
        for (position, verdict) in group.iter().copied().zip(verdicts) {
            match verdict {
                Ok(()) => kept.push(position),
                Err(reply) => {
                    let outcome = self.outcome(&failed(reply), relay.clone());
                    self.say_of(&[position], &outcome.text);
                    self.results.set(position, outcome);
                }
            }
        }
        *group = kept;
        Ok(())
    }

    /// Turns the results of a transaction into outcomes.
    ///
    /// # Errors
    /// A failure that is the host's.
    fn note_results(
        &mut self,
        client: &SmtpClient,
        group: &[usize],
        sent: Vec<Result<Reply, SmtpError>>,
    ) -> Result<(), SmtpError> {
        let relay = relay_shown(client.host(), Some(client.address().ip()));
        let is_enhanced = client.offers("ENHANCEDSTATUSCODES");
        let was_taken = sent.iter().any(Result::is_ok);
        let mut hosts_failure = None;
        let mut taken = Vec::new();
        let mut deferred = Vec::new();
        for (position, result) in group.iter().copied().zip(sent) {
            match result {
                Ok(reply) => {
                    let text = sent_text(&reply, is_enhanced);
                    let mut outcome =
                        Outcome::new(Delivery::Delivered, Status::OK, self.mailer, &text);
                    outcome.status = reply
                        .status
                        .filter(|status| status.class == 2)
                        .unwrap_or(Status::OK);
                    outcome.relay.clone_from(&relay);
                    outcome.is_notify_passed_on = client.offers("DSN");
                    self.results.set(position, outcome);
                    taken.push((position, text));
                }
                // The others went through: there is room for this one in the next transaction (RFC 5321 4.5.3.1.10).
                Err(error) if was_taken && is_too_many(&error) => {}
                Err(error) if is_hosts_failure(&error) => hosts_failure = Some(error),
                Err(error) => {
                    let outcome = self.outcome(&error, relay.clone());
                    // The client has said the refusal of a recipient already.
                    if outcome.result == Delivery::Deferred && error.step != Step::Rcpt {
                        deferred.push((position, outcome.text.clone()));
                    }
                    self.results.set(position, outcome);
                }
            }
        }
        for said in [taken, deferred] {
            if let Some((_, text)) = said.first() {
                let positions: Vec<usize> = said.iter().map(|(position, _)| *position).collect();
                self.say_of(&positions, text);
            }
        }
        hosts_failure.map_or(Ok(()), Err)
    }

    /// The outcome for recipients that met this failure.
    fn outcome(&self, error: &SmtpError, relay: String) -> Outcome {
        let mut outcome =
            Outcome::by_verdict(error.verdict(), error.status(), self.mailer, error.stat());
        outcome.reply = error.reply_line();
        outcome.relay = relay;
        outcome
    }

    /// Gives the open recipients their outcome.
    fn give_up(&mut self, reason: &Outcome) {
        let open = self.results.open();
        if open.is_empty() {
            return;
        }
        self.say_of(&open, &reason.text);
        for position in open {
            self.results.set(position, reason.clone());
        }
    }

    fn shown(&self, position: usize) -> String {
        self.attempt
            .recipients
            .get(position)
            .map(|recipient| recipient.recipient.shown())
            .unwrap_or_default()
    }

    fn say_of(&self, positions: &[usize], text: &str) {
        say(self.attempt.verbose.as_ref(), || {
            let shown: Vec<String> = positions.iter().map(|at| self.shown(*at)).collect();
            format!("{}... {text}", shown.join(","))
        });
    }

    /// `a,b... Connecting to mx.example.test. via esmtp...`
    fn say_all(&self, what: &str, host: &str) {
        if self.attempt.verbose.is_some() {
            let text = format!("{what} {host} via {}...", self.mailer);
            self.say_of(&self.results.open(), &text);
        }
    }
}

/// Keeps the reason that is to be told: the last temporary one, or else the last.
fn note_reason(reason: &mut Option<Outcome>, outcome: Outcome) {
    let is_kept = matches!(reason, Some(kept) if kept.result == Delivery::Deferred)
        && outcome.result != Delivery::Deferred;
    if !is_kept {
        *reason = Some(outcome);
    }
}

/// Whether another host may do better: this one was not reached, or broke off before it can have the message.
fn is_hosts_failure(error: &SmtpError) -> bool {
    match &error.cause {
        Cause::Content(_) => false,
        _ if error.step == Step::Final => false,
        Cause::Reply(reply) => {
            reply.code == 421 || matches!(error.step, Step::Greeting | Step::Hello | Step::Rules)
        }
        _ => true,
    }
}

/// Whether a recipient was refused because there were too many before it.
fn is_too_many(error: &SmtpError) -> bool {
    match &error.cause {
        Cause::Reply(reply) => {
            error.step == Step::Rcpt
                && error.verdict() == Verdict::Temporary
                && (reply.status == Some(Status::new(4, 5, 3))
                    || (reply.code == 452 && reply.status.is_none()))
        }
        _ => false,
    }
}

/// `Sent (q123abc Message accepted for delivery)`. The enhanced code is left out where the server said it has them.
fn sent_text(reply: &Reply, is_enhanced: bool) -> String {
    let text = reply.lines.join(" ");
    match (reply.status, text.is_empty()) {
        (Some(status), _) if !is_enhanced => format!("Sent ({status} {text})"),
        (_, true) => "Sent".to_owned(),
        (_, false) => format!("Sent ({text})"),
    }
}

/// `mx.ok.test. [127.0.0.21]`, as the log shows it.
fn relay_shown(host: &str, address: Option<IpAddr>) -> String {
    match address {
        None => host.to_owned(),
        Some(IpAddr::V4(address)) => format!("{host} [{address}]"),
        Some(IpAddr::V6(address)) => format!("{host} [IPv6:{address}]"),
    }
}

/// Whether an address can stand between angle brackets in a command line.
fn is_sendable(address: &str) -> bool {
    !address.is_empty()
        && address.len() <= PATH_BYTES_MAX
        && !address
            .bytes()
            .any(|byte| byte.is_ascii_control() || matches!(byte, b'<' | b'>'))
}

/// What connections are kept under.
fn cache_key(hop: &NextHop) -> String {
    match hop {
        NextHop::Mx(domain) => format!("mx {}", domain.folded()),
        NextHop::Several(hops) => hops.iter().map(cache_key).collect::<Vec<_>>().join(", "),
        NextHop::Host { name, port } => {
            format!("host {} {}", name.to_ascii_lowercase(), port.unwrap_or(0))
        }
    }
}
