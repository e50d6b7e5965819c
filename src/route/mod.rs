//! Routing policy (L2): who may send, who exists, and where each recipient goes.
//!
//! [`Router`] answers the SMTP server's questions (may this client, sender, recipient?), the queue's (what does this
//! recipient expand to, and by which route does it leave?) and those of people (VRFY, EXPN, `-bv`). It is made once
//! and shared as an `Arc`; files and maps it reads are looked at again when they change, without a restart.
//!
//! Guarantees: a lookup that did not work is answered temporarily, never as "no such user" and never as consent (I9).
//! Expansion is bounded in depth and in count, suppresses duplicates over the whole message, and breaks loops.
//! Touches: the class files and maps named in [`RouteOptions`](crate::config::RouteOptions), and the user database;
//! never the spool, the network or a mailer. Blocks where a method says so.
//!
//! Sources: sendmail(8), aliases(5), MAPS 11 for the keys that are tried, RFC 5321 3.4 and 4.5.1.

mod access;
mod access_entry;
mod class;
mod expand;
mod forward;
mod hub;
mod masquerade;
mod refusal;
mod resolve;
mod rewrite;
mod shells;
mod table;
mod tables;
mod target;
mod tls;
mod verify;

pub use access::{ClientLimit, RecipientCheck};
pub use access_entry::{Denial, Disposition};
pub use class::CLASS_BYTES_MAX;
pub use expand::{EXPANSION_MAX, Taken};
pub use masquerade::Handover;
pub use resolve::rest_of;
pub use rewrite::FIELD_BYTES_MAX;
pub use table::Table;
pub use target::{TARGETS_MAX, Target};
pub use tls::PlainServer;

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use diligence_maps::{Definition, FileAccess, Opener, Safety};

use crate::address::{Address, Domain};
use crate::config::host::HostName;
use crate::config::{Blameless, ClassOptions, DontBlame, RouteOptions};
use crate::envelope::Recipient;
use crate::safe_file::{self, Lenience, ReadRequest, Refusal, Text, Who};
use crate::status::{Reply, Status, Verdict};
use crate::users::Users;
use class::{Class, ClassReader, WordClass};
use masquerade::MasqueradeClasses;

/// Tells the log something that an operator should know; a line without a queue id. Must not block for long.
pub type Notice = Arc<dyn Fn(&str) + Send + Sync>;

/// What went wrong with a lookup, or with a class file at the start.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// A class file is there and can't be read, or others could have put it there.
    #[error("fileclass: cannot open '{}': {source}", path.display())]
    Class {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: Refusal,
    },
    /// A map's specification can't be used.
    #[error("{spec}: {source}")]
    Spec {
        /// As configured.
        spec: String,
        /// What is wrong with it.
        source: diligence_maps::SpecError,
    },
    /// A map or the user database did not answer.
    #[error("{table}: {detail}")]
    Lookup {
        /// Its name.
        table: String,
        /// What it said.
        detail: String,
    },
}

impl RouteError {
    /// Trouble of ours: always temporary (I9).
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        Verdict::Temporary
    }
}

/// Reads a `.forward` or a list with a user's rights: [`safe_file::read`], or what asks a process that has the rights.
pub type ReadAs = Arc<dyn Fn(&ReadRequest<'_>) -> Result<Text, Refusal> + Send + Sync>;

/// What is let pass of files that users and operators name, by kind. Source: Sendmail's DontBlameSendmail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ListLenience {
    /// Of `.forward`s.
    pub forward: Lenience,
    /// Of the lists of `:include:`s.
    pub include: Lenience,
    /// Of class files, which others may write if the directories are theirs alone, as in Sendmail.
    pub class: Lenience,
}

impl ListLenience {
    /// What the operator's names say.
    #[must_use]
    pub fn of(set: DontBlame) -> Self {
        let group_writable = set.has(Blameless::GroupWritableDirPathSafe);
        let sticky_directory = set.has(Blameless::TrustStickyBit);
        Self {
            forward: Lenience {
                group_writable_file: set.has(Blameless::GroupWritableForwardFile),
                world_writable_file: set.has(Blameless::WorldWritableForwardFile),
                group_writable_directory: group_writable
                    || set.has(Blameless::ForwardFileInGroupWritableDirPath),
                unsafe_directory: set.has(Blameless::ForwardFileInUnsafeDirPath),
                group_writable_file_is_safe: set.has(Blameless::GroupWritableForwardFileSafe),
                unsafe_directory_is_safe: set.has(Blameless::ForwardFileInUnsafeDirPathSafe),
                link_in_writable_directory: set.has(Blameless::LinkedForwardFileInWritableDir),
                sticky_directory,
                ..Lenience::default()
            },
            include: Lenience {
                group_writable_file: set.has(Blameless::GroupWritableIncludeFile),
                world_writable_file: set.has(Blameless::WorldWritableIncludeFile),
                group_writable_directory: group_writable
                    || set.has(Blameless::IncludeFileInGroupWritableDirPath),
                unsafe_directory: set.has(Blameless::IncludeFileInUnsafeDirPath),
                group_writable_file_is_safe: set.has(Blameless::GroupWritableIncludeFileSafe),
                unsafe_directory_is_safe: set.has(Blameless::IncludeFileInUnsafeDirPathSafe),
                link_in_writable_directory: set.has(Blameless::LinkedIncludeFileInWritableDir),
                sticky_directory,
                ..Lenience::default()
            },
            class: Lenience {
                group_writable_file: true,
                world_writable_file: true,
                group_writable_directory: group_writable,
                unsafe_directory: set.has(Blameless::ClassFileInUnsafeDirPath),
                link_in_writable_directory: set.has(Blameless::LinkedClassFileInWritableDir),
                sticky_directory,
                ..Lenience::default()
            },
        }
    }
}

/// Which map files are refused: a sandbox is its caller's own, whatever the way to it.
#[must_use]
pub fn map_safety(options: &RouteOptions) -> Safety {
    match options.sandbox {
        Some(_) => Safety::UNCHECKED,
        None => options.dont_blame.map_safety(),
    }
}

/// The tables that send addresses and domains elsewhere; each may be missing.
#[derive(Clone, Default)]
pub struct Tables {
    /// virtusertable: addresses of this host to others.
    pub virtual_users: Option<Table>,
    /// mailertable: domains to mailers and hosts.
    pub mailers: Option<Table>,
    /// domaintable: domains to others.
    pub domains: Option<Table>,
    /// genericstable: users of this host to the addresses that others see.
    pub generics: Option<Table>,
}

/// What a [`Router`] is made of.
pub struct RouterParts {
    /// Files, limits and the smart host.
    pub options: RouteOptions,
    /// The names of this host.
    pub host: HostName,
    /// The addresses of this host's interfaces: literals such as `[192.0.2.1]` are this host.
    pub addresses: Vec<IpAddr>,
    /// The users of this host.
    pub users: Arc<Users>,
    /// The alias maps, in the order in which they are asked.
    pub aliases: Vec<Table>,
    /// The access map.
    pub access: Option<Table>,
    /// The tables that send addresses and domains elsewhere.
    pub tables: Tables,
    /// How the files of classes are opened.
    pub files: FileAccess,
    /// The log.
    pub notice: Notice,
}

impl RouterParts {
    /// The parts that the configuration asks for; `opener` brings the map classes that reach the network. Maps that can't be opened yet answer with trouble until they can.
    ///
    /// Blocks: disk, and for a program that is rebuilding a map.
    ///
    /// # Errors
    /// [`RouteError::Spec`] if a map's specification can't be used.
    pub fn new(
        options: &RouteOptions,
        host: HostName,
        addresses: Vec<IpAddr>,
        users: Arc<Users>,
        notice: Notice,
        opener: Arc<dyn Opener>,
    ) -> Result<Self, RouteError> {
        let files = opener.files();
        let mut maps = table::map_set(opener, &notice, map_safety(options));
        let refused = |text: &str, source| RouteError::Spec {
            spec: text.to_owned(),
            source,
        };
        for (name, text) in &options.maps {
            let definition = Definition::parse(text).map_err(|source| refused(text, source))?;
            maps.define(name, definition);
        }
        let of = |text: &str, parsed: Result<Definition, diligence_maps::SpecError>| {
            parsed
                .and_then(|definition| maps.open(&definition))
                .map(Table::of_map)
                .map_err(|source| refused(text, source))
        };
        let aliases = options
            .alias_files
            .iter()
            .map(|text| of(text, Definition::parse_alias_to_read(text)))
            .collect::<Result<_, _>>()?;
        let by_name = |text: &Option<String>| {
            let Some(text) = text else {
                return Ok(None);
            };
            let definition = Definition::parse(text);
            let is_of_a_file = |d: &Definition| d.class.is_of_a_file();
            let waits = !definition.as_ref().is_ok_and(is_of_a_file);
            let table = of(text, definition)?;
            Ok(Some(if waits { table.that_waits() } else { table }))
        };
        let tables = Tables {
            virtual_users: by_name(&options.virtusertable)?,
            mailers: by_name(&options.mailertable)?,
            domains: by_name(&options.domaintable)?,
            generics: by_name(&options.masquerade.genericstable)?,
        };
        Ok(Self {
            options: options.clone(),
            host,
            addresses,
            users,
            aliases,
            access: by_name(&options.access_db)?,
            tables,
            files,
            notice,
        })
    }
}

#[cfg(test)]
impl RouterParts {
    /// A host with these aliases, no users and no files, for tests of what asks a router.
    pub(crate) fn of_aliases(host: &str, aliases: &[(&str, &str)]) -> Self {
        let nowhere = std::path::Path::new("/nonexistent");
        Self {
            options: RouteOptions {
                local_host_names: nowhere.join("local-host-names"),
                relay_domains: nowhere.join("relay-domains"),
                max_alias_recursion: 10,
                ..RouteOptions::default()
            },
            host: HostName {
                full: host.to_owned(),
                aliases: vec![host.to_owned()],
            },
            addresses: vec![],
            users: Arc::new(Users::new(
                Some(std::path::Path::new("/dev/null")),
                Some(nowhere),
            )),
            aliases: vec![Table::fixed("aliases", aliases)],
            access: None,
            files: FileAccess::default(),
            tables: Tables::default(),
            notice: Arc::new(|_: &str| ()),
        }
    }
}

/// Where a client queue hands all its mail: the MTA, wherever it listens just now. The error is the reason that log and
/// mailq show. May read a small file.
pub type RelayTo = Arc<dyn Fn() -> Result<Hop, String> + Send + Sync>;

/// Decides who may send and where recipients go. Shared as an `Arc`.
pub struct Router {
    options: RouteOptions,
    host_name: String,
    /// The host's own names and literals, in lower case.
    own_names: HashSet<String>,
    local_host_names: Class,
    relay_domains: Class,
    users: Arc<Users>,
    aliases: Vec<Table>,
    access: Option<Table>,
    tables: Tables,
    virtual_domains: WordClass,
    masquerade: MasqueradeClasses,
    notice: Notice,
    relay_to: Option<RelayTo>,
    default_user: Who,
    read_as: ReadAs,
    lenience: ListLenience,
    /// Whether the log is told of `.forward`s that are passed over because of a directory.
    warns_of_directories: bool,
}

impl Router {
    /// Reads the class files. A host name without a domain is used as it is, and the log is told. Blocks: disk.
    ///
    /// # Errors
    /// [`RouteError::Class`] if a class file is there and can't be read.
    pub fn new(parts: RouterParts) -> Result<Self, RouteError> {
        let RouterParts {
            options,
            host,
            addresses,
            users,
            aliases,
            access,
            tables,
            files,
            notice,
        } = parts;
        if !host.is_qualified() {
            notice(&format!(
                "My unqualified host name ({}) unknown; using it as it is",
                host.full
            ));
        }
        let mut own_names: HashSet<String> = host
            .aliases
            .iter()
            .map(|name| name.to_ascii_lowercase())
            .collect();
        own_names.insert(host.full.to_ascii_lowercase());
        own_names.insert(host.short().to_ascii_lowercase());
        own_names.insert("localhost".to_owned());
        let loopback = [
            IpAddr::from([127, 0, 0, 1]),
            IpAddr::from(std::net::Ipv6Addr::LOCALHOST),
        ];
        for address in addresses.into_iter().chain(loopback) {
            own_names.insert(literal(address));
        }
        let lenience = ListLenience::of(options.dont_blame);
        let warns_not = options
            .dont_blame
            .has(Blameless::DontWarnForwardFileInUnsafeDirPath);
        let reader = ClassReader {
            lenience: lenience.class,
            trusted: options.sandbox.clone(),
            files,
            notice: Arc::clone(&notice),
        };
        let class = |options: &ClassOptions| WordClass::open(options, &reader);
        let virtual_domains = class(&ClassOptions {
            words: options.virtuser_domain.clone(),
            file: options.virtuser_domain_file.clone(),
        })?;
        let masquerade = MasqueradeClasses::open(&options.masquerade, &reader)?;
        let default_user = default_user(&options.default_user, &users, &notice);
        Ok(Self {
            default_user,
            local_host_names: Class::open(&options.local_host_names, &reader)?,
            relay_domains: Class::open(&options.relay_domains, &reader)?,
            options,
            host_name: host.full,
            own_names,
            users,
            aliases,
            access,
            tables,
            virtual_domains,
            masquerade,
            notice,
            relay_to: None,
            read_as: Arc::new(safe_file::read),
            lenience,
            warns_of_directories: !warns_not,
        })
    }

    /// The router of a client queue: every recipient goes to the MTA, which alone knows aliases and users (SPOOL 9).
    #[must_use]
    pub fn relaying_all(mut self, to: RelayTo) -> Self {
        self.relay_to = Some(to);
        self
    }

    /// Has `.forward`s and lists read by `read_as`, which has the rights for it, instead of by this process.
    #[must_use]
    pub fn reading_as(mut self, read_as: ReadAs) -> Self {
        self.read_as = read_as;
        self
    }

    /// Lets pass what is not safe of `.forward`s and lists, as far as `lenience` goes.
    #[must_use]
    pub fn lenient(mut self, lenience: ListLenience) -> Self {
        self.lenience = lenience;
        self
    }

    /// Whose rights programs and files of aliases have.
    #[must_use]
    pub fn default_user(&self) -> Who {
        self.default_user
    }

    /// This host's full name (Sendmail's `$j`).
    #[must_use]
    pub fn host_name(&self) -> &str {
        &self.host_name
    }

    /// Whether mail for this address is for this host: it has no domain, or one of class `w`, or a literal address of
    /// this host. Blocks: one `stat`.
    #[must_use]
    pub fn is_local(&self, address: &Address) -> bool {
        address
            .domain()
            .is_none_or(|domain| self.is_own_domain(domain))
    }

    /// Whether looking a recipient up may wait for another host or program: the user database and some maps do.
    #[must_use]
    pub fn recipient_waits(&self, address: &Address) -> bool {
        // A mailertable and a domaintable may name users of this host.
        self.is_local(address)
            || self.tables.mailers.is_some()
            || self.tables.domains.is_some()
            || address
                .domain()
                .is_some_and(|domain| self.is_virtual(&domain.folded()))
            || self.tables.virtual_users.as_ref().is_some_and(Table::waits)
    }

    fn is_own_domain(&self, domain: &Domain) -> bool {
        let folded = match bracketed(domain) {
            Some(inner) => match inner.parse::<IpAddr>() {
                Ok(address) => literal(address),
                Err(_) => inner,
            },
            None => domain.folded(),
        };
        self.own_names.contains(&folded) || self.local_host_names.contains(&folded)
    }
}

/// The ids of `USER[:GROUP]`, by names or numbers; Sendmail's own default, 1:1, if there is no such user.
#[must_use]
pub fn default_user(text: &str, users: &Users, notice: &Notice) -> Who {
    const FALLBACK: Who = Who { uid: 1, gid: 1 };
    let (user, group) = match text.split_once([':', '.']) {
        Some((user, group)) => (user.trim(), Some(group.trim())),
        None => (text.trim(), None),
    };
    let found = match (user.parse(), users.lookup(user)) {
        (Ok(uid), _) => Who { uid, gid: 1 },
        (_, Ok(Some(found))) => Who {
            uid: found.uid,
            gid: found.gid,
        },
        _ => {
            if !user.is_empty() {
                notice(&format!("default user {user} unknown; using 1:1"));
            }
            return FALLBACK;
        }
    };
    // Where everybody acts as this process there are no other groups either.
    let acts_as_all = users.act_as_one();
    let gid = group.filter(|_| !acts_as_all).and_then(|group| {
        group.parse().ok().or_else(|| {
            let found = nix::unistd::Group::from_name(group).ok().flatten();
            found.map(|group| group.gid.as_raw())
        })
    });
    Who {
        gid: gid.unwrap_or(found.gid),
        ..found
    }
}

/// What stands between the brackets of a domain, in lower case and without `IPv6:`.
fn bracketed(domain: &Domain) -> Option<String> {
    let inner = domain.as_str().strip_prefix('[')?.strip_suffix(']')?;
    let inner = inner.to_ascii_lowercase();
    Some(match inner.strip_prefix("ipv6:") {
        Some(six) => six.to_owned(),
        None => inner,
    })
}

/// An address as a literal to compare, IPv4 in IPv6 reduced to IPv4.
fn literal(address: IpAddr) -> String {
    format!("[{}]", address.to_canonical())
}

/// An SMTP client, as access rules see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Its address.
    pub address: IpAddr,
    /// Its name, if looking up its address and then that name agreed.
    pub name: Option<String>,
    /// What came of looking its name up.
    pub name_lookup: NameLookup,
    /// What HELO or EHLO said; empty before it.
    pub helo: String,
}

/// What came of looking up a client's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NameLookup {
    /// It has one that resolves back, or nobody was asked.
    #[default]
    Settled,
    /// Its address has no name.
    Missing,
    /// Its name does not resolve back.
    Forged,
    /// The lookup did not work.
    Trouble,
}

/// Where mail for another host is handed to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Hop {
    /// The domain's MX hosts, or the domain itself if it has none (RFC 5321 5.1).
    Mx(Domain),
    /// This host and no other, whatever MX records say.
    Host {
        /// A name, or an address literal such as `[127.0.0.1]` or `[IPv6:::1]`.
        name: String,
        /// The port, if not 25.
        port: Option<u16>,
    },
    /// Each of these, in this order, until one takes it.
    Several(Vec<Self>),
}

impl std::fmt::Display for Hop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Mx(domain) => write!(f, "{domain}"),
            Self::Host { name, .. } => f.write_str(name),
            Self::Several(hops) => {
                for (at, hop) in hops.iter().enumerate() {
                    write!(f, "{}{hop}", if at > 0 { ":" } else { "" })?;
                }
                Ok(())
            }
        }
    }
}

/// What is to be done with a recipient.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// The mailbox of a user of this host.
    Local {
        /// Login name.
        user: String,
        /// What stood after `+` in the address, if anything did.
        detail: Option<String>,
    },
    /// Another host.
    Smtp {
        /// Whether it goes to a smart host (mailer `relay`) instead of the recipient's own domain (mailer `esmtp`).
        is_relay: bool,
        /// Where to.
        hop: Hop,
        /// The address for the wire.
        address: String,
    },
    /// A program, run with the rights of the recipient's controlling user.
    Program {
        /// The command as the alias has it, without the bar.
        command: String,
    },
    /// A file that the message is appended to, with the rights of the recipient's controlling user.
    File {
        /// Its path, absolute.
        path: String,
    },
    /// A mailer by its name: one of the configuration's own, or what a mailertable names, such as `discard`.
    Mailer {
        /// The mailer's name.
        mailer: String,
        /// The host for it (`$h`); empty if it needs none.
        host: String,
        /// The user for it (`$u`).
        user: String,
    },
    /// Other recipients in its place. The list is complete: nested aliases are followed to their ends.
    Expand {
        /// The ends, in the order in which they are to be tried; none if all are recipients already.
        children: Vec<Recipient>,
        /// What verbose listings say: `aliased to alice,bob`.
        shown: String,
    },
    /// It can't be delivered, now or later.
    Failed {
        /// Class 5.
        status: Status,
        /// Such as `User unknown`.
        text: String,
    },
    /// A lookup did not work, or what it asks for is not built: try again later.
    Deferred {
        /// Class 4.
        status: Status,
        /// The reason, for log and mailq.
        text: String,
    },
    /// The host's settings keep it in the queue: a sandbox contacts nobody. Tried again like a deferral.
    Hold {
        /// The reason, for log and mailq.
        reason: String,
    },
}

/// An address that VRFY found good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// The address in full, without angle brackets: `alice@host.example.test`.
    pub address: String,
    /// Whether it belongs to another host, so that nothing is known about it: 252 instead of 250.
    pub is_remote: bool,
}

impl Verified {
    /// The answer to VRFY.
    #[must_use]
    pub fn reply(&self) -> Reply {
        let code = if self.is_remote { 252 } else { 250 };
        Reply::new(code, Status::RECIPIENT_OK, format!("<{}>", self.address))
    }
}
