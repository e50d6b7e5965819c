//! From a configuration to the parts that it configures: log, users, router, resolver, mailers.
//!
//! Each function takes what it reads from [`Config`] and gives one part, which knows nothing of the configuration any
//! more. Blocks: disk, where a part reads its files at the start.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use diligence_maps::{FileAccess, Opener, Safety};

use crate::address::{Address, Domain};
use crate::clock::{Clock, SystemClock};
use crate::config::endpoint::SMTP_PORT;
use crate::config::host::HostName;
use crate::config::mailer::SMRSH_DIRECTORY;
use crate::config::sandbox::SANDBOX_VARIABLE;
use crate::config::{Blameless, Config, Remote};
use crate::deliver::{
    ConnectionRules, DeliverOptions, Greeted, MailboxOptions, MailboxOwner, Mailers, NamedOptions,
    OwnerLookup, SmtpOptions, SmtpTimeouts,
};
use crate::dns::{Resolver, ResolverOptions, SystemResolver};
use crate::maillog::{Destination, LogSettings, Maillog, QueueId, Severity};
use crate::netmaps::{NetMaps, NetOptions};
use crate::privileged::Part;
use crate::route::{
    Notice, PlainServer, RelayTo, RouteError, Router, RouterParts, Tables, map_safety,
};
use crate::safe_file::Lenience;
use crate::users::Users;

/// Longest wait for another program's lock on a mailbox. Source: mail.local's five minutes of retries, cut down, as a
/// deferral tries again.
const MAILBOX_LOCK_WAIT_MAX: Duration = Duration::from_secs(60);
/// How many idle connections the SMTP client keeps. Source: Sendmail's ConnectionCacheSize.
const CONNECTION_CACHE_SIZE: usize = 2;
/// How long the SMTP client keeps one. Source: Sendmail's ConnectionCacheTimeout.
const CONNECTION_CACHE_IDLE_MAX: Duration = Duration::from_secs(5 * 60);

/// What all parts of a process share.
#[derive(Clone)]
pub struct System {
    /// The system's clocks.
    pub clock: Arc<dyn Clock>,
    /// The names of this host.
    pub host: HostName,
    /// The users of this host.
    pub users: Arc<Users>,
    /// The log.
    pub maillog: Maillog,
    /// What has users' rights, if this process has given them up.
    pub part: Option<Arc<Part>>,
}

impl System {
    /// Finds them out. Call it after the last fork: log lines bear the process id. Blocks: disk.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let host = HostName::find(&config.host);
        Self {
            maillog: open_maillog(config, &host),
            users: users(config),
            part: None,
            clock,
            host,
        }
    }
}

/// The users of this host.
fn users(config: &Config) -> Arc<Users> {
    Arc::new(Users::new(
        config.paths.passwd_file.as_deref(),
        config.paths.home_directory.as_deref(),
    ))
}

/// The router, with the maps that the configuration names.
///
/// # Errors
/// As [`RouterParts::new`] and [`Router::new`].
pub fn router(config: &Config, system: &System) -> Result<Router, RouteError> {
    let log = system.maillog.clone();
    let notice: Notice = Arc::new(move |text: &str| {
        log.write(Severity::Warning, 0, QueueId::None, text);
    });
    let files = system
        .part
        .clone()
        .map_or_else(FileAccess::default, |part| {
            FileAccess::with_help_of(move |path| part.open_named(path))
        });
    let router = Router::new(RouterParts::new(
        &config.route,
        system.host.clone(),
        interface_addresses(),
        Arc::clone(&system.users),
        notice,
        map_opener_with(config, files, map_safety(&config.route)),
    )?)?;
    Ok(match &system.part {
        Some(part) => {
            let part = Arc::clone(part);
            router.reading_as(Arc::new(move |request| part.read(request)))
        }
        None => router,
    })
}

/// What opens the map classes that are not the maps crate's own, refusing what `safety` refuses.
#[must_use]
pub fn map_opener(config: &Config, safety: Safety) -> Arc<dyn Opener> {
    map_opener_with(config, FileAccess::default(), safety)
}

fn map_opener_with(config: &Config, files: FileAccess, safety: Safety) -> Arc<dyn Opener> {
    Arc::new(NetMaps::new(NetOptions {
        files,
        safety,
        resolver: resolver_options(config),
        loopback_only: config.sandbox.is_some() && config.route.remote == Remote::LoopbackOnly,
    }))
}

fn resolver_options(config: &Config) -> ResolverOptions {
    let settings = &config.resolver;
    ResolverOptions {
        name_servers: settings.server.into_iter().collect(),
        query_time: settings.retransmit_after,
        query_tries: usize::try_from(settings.attempts).unwrap_or(usize::MAX),
        ..ResolverOptions::default()
    }
}

/// The router of a client queue, which knows one way: to the MTA. It asks no map.
///
/// # Errors
/// As [`Router::new`].
pub fn client_router(config: &Config, system: &System, to: RelayTo) -> Result<Router, RouteError> {
    let parts = RouterParts {
        options: config.route.clone(),
        host: system.host.clone(),
        addresses: Vec::new(),
        users: Arc::clone(&system.users),
        aliases: Vec::new(),
        access: None,
        tables: Tables::default(),
        files: FileAccess::default(),
        // What there is to say of names and classes, the MTA says.
        notice: Arc::new(|_: &str| {}),
    };
    Router::new(parts).map(|router| router.relaying_all(to))
}

/// Opens the maillog that the configuration names. Call it after the last fork: lines bear the process id.
#[must_use]
pub(super) fn open_maillog(config: &Config, name: &HostName) -> Maillog {
    let destination = match &config.log.file {
        Some(file) => Destination::File(file.clone()),
        None => Destination::Syslog(config.log.socket.clone()),
    };
    let settings = LogSettings {
        destination,
        tag: config.log.syslog_tag.clone(),
        host: name.short().to_owned(),
        level: config.log.log_level,
    };
    Maillog::open(&settings, Arc::new(SystemClock::new()))
}

/// The addresses of this host's interfaces; none if the system does not tell.
pub(super) fn interface_addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            if let Some(four) = address.as_sockaddr_in() {
                Some(IpAddr::V4(four.ip()))
            } else {
                address.as_sockaddr_in6().map(|six| IpAddr::V6(six.ip()))
            }
        })
        .collect()
}

/// The resolver.
#[must_use]
pub fn resolver(config: &Config) -> Arc<SystemResolver> {
    Arc::new(SystemResolver::new(&resolver_options(config)))
}

/// All ways to deliver. Needs a tokio runtime to be entered.
#[must_use]
pub fn mailers(
    config: &Config,
    system: &System,
    router: &Arc<Router>,
    resolver: Arc<dyn Resolver>,
) -> Mailers {
    let own = Arc::clone(router);
    let options = DeliverOptions {
        host_name: router.host_name().to_owned(),
        mailboxes: MailboxOptions {
            directory: config.paths.mailbox_directory.clone(),
            lock_wait_max: MAILBOX_LOCK_WAIT_MAX,
            file_lenience: file_lenience(config),
            part: system.part.clone(),
        },
        named: NamedOptions {
            smrsh_directory: smrsh_directory(config),
            shell: config.deliver.local_shell.clone(),
            time_limit: config.deliver.program_time_limit,
            limits: config.deliver.program_limits,
            mailers: config.deliver.mailers.clone(),
            local: config.deliver.local_mailer.clone(),
            default_user: router.default_user(),
            users: Arc::clone(&system.users),
            // What a program of a sandbox sends is to stay in it.
            environment: config
                .sandbox
                .iter()
                .map(|dir| (SANDBOX_VARIABLE.to_owned(), dir.clone().into()))
                .collect(),
        },
        smtp: SmtpOptions {
            helo_name: config
                .deliver
                .helo_name
                .clone()
                .unwrap_or_else(|| router.host_name().to_owned()),
            port: SMTP_PORT,
            loopback_only: config.deliver.remote == Remote::LoopbackOnly,
            own_name: Arc::new(move |name| is_own_name(&own, name)),
            rules: connection_rules(router),
            timeouts: SmtpTimeouts::from(&config.deliver.timeouts),
            cache_size: CONNECTION_CACHE_SIZE,
            cache_idle_max: CONNECTION_CACHE_IDLE_MAX,
        },
    };
    Mailers::new(
        options,
        mailbox_owners(&system.users),
        resolver,
        Arc::clone(&system.clock),
    )
}

/// What is let pass of the files that aliases and `.forward`s name.
#[must_use]
pub fn file_lenience(config: &Config) -> Lenience {
    let set = config.route.dont_blame;
    Lenience {
        symbolic_link: set.has(Blameless::FileDeliveryToSymLink),
        hard_link: set.has(Blameless::FileDeliveryToHardLink),
        ..Lenience::default()
    }
}

/// What the access map says of plain connections; none without one.
fn connection_rules(router: &Arc<Router>) -> Option<ConnectionRules> {
    let plain = |server: &Greeted| PlainServer {
        name: server.name.clone(),
        address: server.address,
        offers_tls: server.offers_tls,
    };
    let (of_server, of_recipient) = (Arc::clone(router), Arc::clone(router));
    router.has_access().then(|| ConnectionRules {
        server: Arc::new(move |server| of_server.check_tls_server(&plain(server))),
        recipient: Arc::new(move |address, server| {
            of_recipient.check_tls_recipient(address, &plain(server))
        }),
        waits: router.access_waits(),
    })
}

/// What smrsh is told to find its programs in, if it is the shell of commands and not to look in its own place.
fn smrsh_directory(config: &Config) -> Option<PathBuf> {
    let deliver = &config.deliver;
    let is_smrsh = deliver
        .local_shell
        .file_name()
        .is_some_and(|name| name == "smrsh");
    (is_smrsh && deliver.smrsh_directory != Path::new(SMRSH_DIRECTORY))
        .then(|| deliver.smrsh_directory.clone())
}

fn is_own_name(router: &Router, name: &str) -> bool {
    Domain::parse(name)
        .is_ok_and(|domain| router.is_local(&Address::from_parts("postmaster", Some(domain))))
}

fn mailbox_owners(users: &Arc<Users>) -> OwnerLookup {
    let users = Arc::clone(users);
    Arc::new(move |name| match users.lookup(name) {
        Ok(found) => Ok(found.map(|user| MailboxOwner {
            uid: user.uid,
            gid: user.gid,
        })),
        Err(error) => Err(io::Error::other(error)),
    })
}
