//! The sections of a [`Config`](super::Config): what each module is given.
//!
//! Plain values, filled by the table in [`options`](super::options), which
//! holds names, ranges and defaults; the fields here say what a value means
//! to the code. `Default` is the empty value, not the option's default: begin
//! with [`Config::defaults`](super::Config::defaults).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::access::{AccessOptions, AddedDomain, RelayOptions};
use super::dont_blame::DontBlame;
use super::endpoint::{DaemonPort, HostPort};
use super::mailer::{MailerDefinition, ProgramLimits};
use super::modes::{DeliveryMode, ErrorMode, PrivacyOptions, Remote, SpoolFileSystem};
use super::size::ByteSize;

/// Directories, sockets and files; all absolute.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Paths {
    /// The spool of this role's queue (`mqueue` or `clientmqueue`).
    pub queue_directory: PathBuf,
    /// Where users submit while the MTA does not answer. A daemon that has it
    /// set runs that queue too (a sandbox does).
    pub client_queue_directory: Option<PathBuf>,
    /// System mailboxes, one file a user.
    pub mailbox_directory: PathBuf,
    /// Process id and command line of the daemon.
    pub pid_file: PathBuf,
    /// The socket that `mailq` and `-q` speak to the queue's owner over.
    pub control_socket: PathBuf,
    /// The daemon's SMTP addresses, one `ADDR:PORT` a line, for submitters.
    pub smtp_address_file: PathBuf,
    /// The parent of every home, in a sandbox; else homes are NSS's.
    pub home_directory: Option<PathBuf>,
    /// Users beside NSS, in passwd(5) form; in a sandbox.
    pub passwd_file: Option<PathBuf>,
}

/// The names of this host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostOptions {
    /// Sendmail's `$j`; found out from the system when absent.
    pub host_name: Option<String>,
    /// Appended to a system host name that has no dot.
    pub domain: Option<String>,
}

/// Where recipients go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RouteOptions {
    /// Class `w`: names that are this host, one a line. May be missing.
    pub local_host_names: PathBuf,
    /// Alias maps in the order they are asked, as map specifications.
    pub alias_files: Vec<String>,
    /// Maps with names, which sequences are made of and mapd serves, as map
    /// specifications.
    pub maps: BTreeMap<String, String>,
    /// The access map's specification.
    pub access_db: Option<String>,
    /// The virtusertable's specification.
    pub virtusertable: Option<String>,
    /// Class `VirtHost`: domains that only the virtusertable knows, one a line.
    pub virtuser_domain_file: Option<PathBuf>,
    /// The mailertable's specification.
    pub mailertable: Option<String>,
    /// Class `VirtHost`, too.
    pub virtuser_domain: Vec<String>,
    /// Whether what is below those domains is virtual as well.
    pub virtuser_entire_domain: bool,
    /// The domaintable's specification.
    pub domaintable: Option<String>,
    /// Names of this host that are not delivered here.
    pub sent_on: SentOnOptions,
    /// Whether addresses at `DOMAIN.REDIRECT` are answered with where their users went.
    pub redirect: bool,
    /// How senders and headers are rewritten.
    pub masquerade: MasqueradeOptions,
    /// Names of mailers that are defined.
    pub mailers: Vec<String>,
    /// Class `R`: domains that may be relayed to and from. May be missing.
    pub relay_domains: PathBuf,
    /// Who may connect and send.
    pub access: AccessOptions,
    /// Who may send to other hosts.
    pub relay: RelayOptions,
    /// Where all mail for other hosts goes.
    pub smart_host: Option<HostPort>,
    /// Which hosts may be contacted at all.
    pub remote: Remote,
    /// Where users' `.forward`s are looked for, in order; absolute, with the macros `$z` (home), `$u` (user), `$w` (this
    /// host's first label), `$j` (its name) and `$h` (what stood after `+`).
    pub forward_path: Vec<String>,
    /// The shells of users who may have programs run and files written, as shells(5).
    pub shells: PathBuf,
    /// The sandbox's folder: the way to it is not asked whether it is safe.
    pub sandbox: Option<PathBuf>,
    /// `USER[:GROUP]` that programs are run and files written as when no user's rights apply.
    pub default_user: String,
    /// Which unsafe files are let pass.
    pub dont_blame: DontBlame,
    /// How deep aliases may lead to aliases.
    pub max_alias_recursion: u32,
    /// How many hops (`Received:`) a message may have made.
    pub max_hop_count: u32,
}

/// Where names of this host go that are not delivered here: `[MAILER:]HOST`, `local:USER`, `error:..`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SentOnOptions {
    /// Names that nobody has (LUSER_RELAY).
    pub luser_relay: Option<String>,
    /// All names (MAIL_HUB).
    pub mail_hub: Option<String>,
    /// All names, if there is no hub (LOCAL_RELAY).
    pub local_relay: Option<String>,
    /// Whether a name with a domain of this host goes to the hub as it is, and never to the local relay.
    pub stickyhost: bool,
    /// Class `L`: names that are delivered here all the same (LOCAL_USER).
    pub local_user: Vec<String>,
}

/// Words of a class, and the file that holds more of them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClassOptions {
    /// Those of the configuration.
    pub words: Vec<String>,
    /// The file, one word a line; may be missing.
    pub file: Option<PathBuf>,
}

/// Masquerading and the genericstable: what others see instead of names of this host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MasqueradeOptions {
    /// The domain shown instead (MASQUERADE_AS).
    pub masquerade_as: Option<String>,
    /// Class `M`: further domains it is shown for.
    pub domains: ClassOptions,
    /// Class `N`: domains that are never replaced.
    pub exceptions: ClassOptions,
    /// Class `E`: users whose host stays to be seen.
    pub exposed_users: ClassOptions,
    /// The genericstable's specification.
    pub genericstable: Option<String>,
    /// Class `G`: domains whose addresses the genericstable is asked for.
    pub generics_domains: ClassOptions,
    /// What names without a domain get in mail that is delivered on this host.
    pub always_add_domain: AddedDomain,
    /// Where and how far it goes.
    pub scope: MasqueradeScope,
}

/// Which addresses are rewritten: the FEATUREs of these names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MasqueradeScope {
    /// What is below the domains of class `M`, too.
    pub masquerade_entire_domain: bool,
    /// Envelope senders, too.
    pub masquerade_envelope: bool,
    /// Recipients in headers, too.
    pub allmasquerade: bool,
    /// The domains of class `M` alone, not this host's own.
    pub limited_masquerade: bool,
    /// Not in mail that is delivered on this host.
    pub local_no_masquerade: bool,
    /// What is below the domains of class `G`, too.
    pub generics_entire_domain: bool,
}

/// The server of maps for other programs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MapdOptions {
    /// Where it listens, as `unix:PATH` or `inet:PORT@ADDRESS`.
    pub listen: Vec<String>,
    /// Clients served at once.
    pub max_connections: u32,
    /// How long a client may be silent between two requests.
    pub idle_timeout: Duration,
}

/// How names are looked up in DNS.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResolverOptions {
    /// The one name server to ask; those of resolv.conf when absent.
    pub server: Option<SocketAddr>,
    /// How long one query waits for its answer.
    pub retransmit_after: Duration,
    /// How often a query is sent before the lookup has failed.
    pub attempts: u32,
}

/// The SMTP server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SmtpdOptions {
    /// The listeners.
    pub daemon_ports: Vec<DaemonPort>,
    /// The 220 greeting's text with the macros `$j`, `$v`, `$Z`, `$b`; the
    /// word ESMTP goes in after the first word.
    pub greeting: String,
    /// Which commands strangers may use, and how.
    pub privacy: PrivacyOptions,
    /// Whether HELO takes a name that is no domain name.
    pub allow_bogus_helo: bool,
    /// How much is taken.
    pub limits: SmtpdLimits,
    /// How long a client may be silent.
    pub timeouts: ServerTimeouts,
}

/// How much an SMTP client may send.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SmtpdLimits {
    /// The longest message in bytes; `None`: no limit but the spool's.
    pub max_message_size: Option<ByteSize>,
    /// Recipients of one message.
    pub max_rcpts: u32,
    /// `Received:` fields of a message (as [`RouteOptions::max_hop_count`]).
    pub max_hop_count: u32,
    /// The longest header, all fields together, in bytes.
    pub max_headers_length: ByteSize,
    /// Connections served at once; beyond it `421`.
    pub max_daemon_children: u32,
    /// Connections accepted in a second; `None`: no limit.
    pub connection_rate_throttle: Option<u32>,
    /// Refused recipients after which each further one is answered a second
    /// late; `None`: never.
    pub bad_rcpt_throttle: Option<u32>,
    /// Commands that do nothing (NOOP, VERB, ..) before a client is slowed.
    pub max_noop_commands: u32,
}

/// How long the SMTP server waits. RFC 5321 4.5.3.2.7.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServerTimeouts {
    /// For the next command.
    pub command: Duration,
    /// For the next piece of a message.
    pub datablock: Duration,
    /// How long the greeting is held back; zero to greet at once.
    pub greet_pause: Duration,
}

/// How long the SMTP client waits. RFC 5321 4.5.3.2.1 to 4.5.3.2.6.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientTimeouts {
    /// For a connection.
    pub connect: Duration,
    /// For a connection in a message's first attempt.
    pub iconnect: Duration,
    /// For the greeting.
    pub initial: Duration,
    /// For the reply to HELO or EHLO.
    pub helo: Duration,
    /// For the reply to MAIL.
    pub mail: Duration,
    /// For the reply to RCPT.
    pub rcpt: Duration,
    /// For the reply to DATA.
    pub datainit: Duration,
    /// For a piece of the message to be taken.
    pub datablock: Duration,
    /// For the reply to the final dot.
    pub datafinal: Duration,
    /// For the reply to RSET.
    pub rset: Duration,
    /// For the reply to QUIT.
    pub quit: Duration,
}

/// Mailers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeliverOptions {
    /// The name in HELO and EHLO; this host's own when absent.
    pub helo_name: Option<String>,
    /// The account that the daemon becomes.
    pub run_as_user: Option<String>,
    /// What a command in an alias or a `.forward` is given to, as `-c COMMAND`: a shell, or smrsh.
    pub local_shell: PathBuf,
    /// Where smrsh finds the programs that it may run.
    pub smrsh_directory: PathBuf,
    /// The mailer that delivers to users of this host; `None`: the mailboxes of this program itself.
    pub local_mailer: Option<String>,
    /// Mailers by their names.
    pub mailers: Vec<MailerDefinition>,
    /// How long a program of an alias or a `.forward` may take.
    pub program_time_limit: Duration,
    /// What a program may use up.
    pub program_limits: ProgramLimits,
    /// How long the privileged part may take to open a file or to start a program.
    pub file_open_limit: Duration,
    /// Which hosts may be contacted at all.
    pub remote: Remote,
    /// SMTP client timeouts.
    pub timeouts: ClientTimeouts,
}

/// The queue.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct QueueOptions {
    /// When a new message is first tried.
    pub delivery_mode: DeliveryMode,
    /// Messages delivered at once.
    pub max_queue_children: u32,
    /// Who gets a report that could not be delivered to the sender; `None`:
    /// it is dropped and logged.
    pub double_bounce_address: Option<String>,
    /// Who gets a copy (header only) of every failure report.
    pub postmaster_copy: Option<String>,
    /// When an attempt is due, and when to warn and give up.
    pub retry: RetryOptions,
}

/// When a deferred recipient is tried again, and for how long.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RetryOptions {
    /// The wait after the first attempt; doubled after each further one.
    pub min_queue_age: Duration,
    /// The longest wait between two attempts.
    pub max_queue_age: Duration,
    /// Age at which the sender is warned; `None`: never.
    pub queue_warn: Option<Duration>,
    /// Age at which delivery is given up.
    pub queue_return: Duration,
}

/// The spool's files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SpoolSettings {
    /// Bytes of one segment file.
    pub segment_size: ByteSize,
    /// Free blocks (of 1,024 bytes) below which mail is answered `452`.
    pub min_free_blocks: u32,
    /// Permission bits of the spool's files.
    pub queue_file_mode: u32,
    /// What is asked of the file system under it.
    pub file_system: SpoolFileSystem,
    /// Drop files that one user may have waiting; `None`: any number.
    pub max_drop_files_per_user: Option<u32>,
}

/// Submission on the command line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SubmitOptions {
    /// Class `t`: users who may set any sender without a warning, one a line.
    /// May be missing.
    pub trusted_users: PathBuf,
    /// How errors are told.
    pub error_mode: ErrorMode,
    /// A line with only a dot does not end the message (`-i`).
    pub ignore_dots: bool,
    /// The dialogue is shown (`-v`).
    pub verbose: bool,
    /// Where the MTA answers, when it is not the address file's.
    pub mta_host: Option<HostPort>,
}

/// The maillog.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogOptions {
    /// Sendmail's LogLevel; 9 is usual.
    pub log_level: u32,
    /// The name lines begin with (`-L`).
    pub syslog_tag: String,
    /// The file lines are appended to, instead of syslog.
    pub file: Option<PathBuf>,
    /// syslog's socket.
    pub socket: PathBuf,
}
