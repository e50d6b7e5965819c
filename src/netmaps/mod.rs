//! Map classes that reach the network, or need a library that the maps crate does not have (L1): `host`, `dns`,
//! `bestmx`, `arpa`, `socket`, `ldap`, `sqlite`.
//!
//! [`NetMaps`] is the [`Opener`] that programs hand to whoever opens maps. Its lookups run on a small runtime of its own,
//! each with a time limit (-d, 10 seconds without it), while the thread that asked waits: maps are synchronous to those
//! who ask them. Guarantees: an unreachable, slow or confused server is an error and never absence (I9). With
//! [`NetOptions::loopback_only`], as in a sandbox, nobody but this host is contacted.
//!
//! Blocks: the asking thread, for the time limit at most; never call it on a runtime's own thread.
//! Limits: [`LOOKUPS_MAX`], [`TIME_LIMIT`]. Source: sendmail's op.me 5.12, MAPS 9.

#![deny(clippy::indexing_slicing)]

mod arpa;
mod dns_map;
#[cfg(feature = "ldap")]
mod ldap;
pub mod netstring;
mod socket;
#[cfg(feature = "sqlite")]
mod sqlite;

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use diligence_maps::{
    ClassMap, Definition, FileAccess, MapClass, MapError, Opener, PairVisitor, Safety, SpecError,
    Verdict,
};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Semaphore;

use crate::dns::ResolverOptions;

pub use socket::Endpoint;

/// How long a lookup may take, unless -d says otherwise.
pub const TIME_LIMIT: Duration = Duration::from_secs(10);
/// Lookups under way at once, over all maps of one opener; further ones wait, and for no longer than their limit.
pub const LOOKUPS_MAX: usize = 256;
/// How much longer than its limit a lookup is waited for before its runtime is taken for stuck.
const GRACE: Duration = Duration::from_secs(2);

/// What network maps are opened with.
#[derive(Debug, Clone, Default)]
pub struct NetOptions {
    /// For classes that ask DNS, unless -d and -r say otherwise.
    pub resolver: ResolverOptions,
    /// Whether other hosts are left alone.
    pub loopback_only: bool,
    /// How files of the maps crate's classes are opened.
    pub files: FileAccess,
    /// Which database files are refused because others could have written them.
    pub safety: Safety,
}

/// Opens the classes of this module.
pub struct NetMaps {
    options: NetOptions,
    network: Arc<Network>,
}

impl NetMaps {
    /// Nothing is started before the first lookup.
    #[must_use]
    pub fn new(options: NetOptions) -> Self {
        Self {
            options,
            network: Arc::new(Network {
                runtime: Mutex::new(None),
                places: Arc::new(Semaphore::new(LOOKUPS_MAX)),
            }),
        }
    }
}

impl Opener for NetMaps {
    fn open(&self, definition: &Definition) -> Result<Option<Box<dyn ClassMap>>, SpecError> {
        let network = Arc::clone(&self.network);
        let class: Box<dyn ClassMap> = match definition.class {
            MapClass::Arpa => Box::new(arpa::ArpaMap),
            MapClass::Host | MapClass::Dns | MapClass::Bestmx => {
                Box::new(dns_map::DnsMap::new(definition, &self.options, network)?)
            }
            MapClass::Socket => {
                Box::new(socket::SocketMap::new(definition, &self.options, network)?)
            }
            #[cfg(feature = "ldap")]
            MapClass::Ldap => Box::new(ldap::LdapMap::new(definition, &self.options, network)?),
            #[cfg(feature = "sqlite")]
            MapClass::Sqlite => Box::new(sqlite::SqliteMap::new(definition, self.options.safety)?),
            _ => return Ok(None),
        };
        Ok(Some(class))
    }

    fn files(&self) -> FileAccess {
        self.options.files.clone()
    }
}

/// The runtime that lookups run on, made when it is first needed.
struct Network {
    runtime: Mutex<Option<Runtime>>,
    places: Arc<Semaphore>,
}

impl Network {
    /// Runs one lookup with a time limit, and waits for it.
    fn run<T: Send + 'static>(
        &self,
        label: &str,
        limit: Duration,
        lookup: impl Future<Output = Result<T, MapError>> + Send + 'static,
    ) -> Result<T, MapError> {
        let timeout = || MapError::Timeout {
            path: PathBuf::from(label),
            detail: format!("no answer in {} s", limit.as_secs()),
        };
        let (sender, receiver) = sync_channel(1);
        let places = Arc::clone(&self.places);
        let work = async move {
            let limited = async {
                // The semaphore is never closed.
                let _place = places.acquire().await;
                lookup.await
            };
            // A caller that has given up is not there to take it.
            let _ = sender.send(tokio::time::timeout(limit, limited).await);
        };
        {
            let mut runtime = self.runtime.lock().unwrap_or_else(PoisonError::into_inner);
            if runtime.is_none() {
                let made = Builder::new_multi_thread()
                    .worker_threads(1)
                    .thread_name("netmaps")
                    .enable_all()
                    .build()
                    .map_err(|error| remote(label, format!("no runtime: {error}")))?;
                *runtime = Some(made);
            }
            if let Some(runtime) = &*runtime {
                runtime.spawn(work);
            }
        }
        match receiver.recv_timeout(limit.saturating_add(GRACE)) {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) | Err(RecvTimeoutError::Timeout) => Err(timeout()),
            Err(RecvTimeoutError::Disconnected) => Err(remote(label, "the lookup was broken off")),
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let runtime = self
            .runtime
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = runtime.take() {
            // Never waits: it may be dropped on another runtime's thread.
            runtime.shutdown_background();
        }
    }
}

/// Trouble on the other side, temporary as far as we know.
fn remote(label: &str, detail: impl Into<String>) -> MapError {
    MapError::Remote {
        path: PathBuf::from(label),
        detail: detail.into(),
        verdict: Verdict::Temporary,
    }
}

/// The error of a class whose keys cannot be listed.
fn not_listed(definition_label: &str, _: &mut PairVisitor<'_>) -> Result<(), MapError> {
    Err(MapError::Unsupported {
        path: PathBuf::from(definition_label),
        detail: "the keys of a map of this class cannot be listed".into(),
    })
}

/// The one byte of `-z`, with Sendmail's escapes.
fn separator(definition: &Definition) -> Result<Option<char>, SpecError> {
    match definition.value('z') {
        None => Ok(None),
        Some("\\n") => Ok(Some('\n')),
        Some("\\t") => Ok(Some('\t')),
        Some("\\\\") => Ok(Some('\\')),
        Some(text) => {
            let mut characters = text.chars();
            match (characters.next(), characters.next()) {
                (Some(one), None) => Ok(Some(one)),
                _ => Err(definition.bad_value('z', "expected one character, \\t or \\n")),
            }
        }
    }
}

/// Whether a host by its name is this one.
fn is_loopback(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host
            .trim_matches(['[', ']'])
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

/// Trouble with a system call on the way to a server.
fn broken(label: &str, doing: &str, error: &io::Error) -> MapError {
    remote(
        label,
        format!("{doing}: {}", diligence_maps::io_text(error)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lookup_has_its_time_and_no_more() {
        let maps = NetMaps::new(NetOptions::default());
        let network = Arc::clone(&maps.network);
        let limit = Duration::from_millis(30);
        let late = network.run::<()>("m", limit, std::future::pending());
        assert!(matches!(late, Err(MapError::Timeout { .. })));
        let quick = network.run("m", limit, async { Ok(1) });
        assert_eq!(quick.unwrap(), 1);
        let broken = network.run::<()>("m", limit, async { panic!("on purpose") });
        assert!(matches!(broken, Err(MapError::Remote { .. })));
    }

    #[test]
    fn classes_of_others_are_left_to_them() {
        let maps = NetMaps::new(NetOptions::default());
        let open = |text: &str| maps.open(&Definition::parse(text).unwrap());
        assert!(open("hash /x").unwrap().is_none());
        assert!(open("arpa").unwrap().is_some());
        assert!(is_loopback("[::1]") && is_loopback("127.0.0.9") && !is_loopback("192.0.2.1"));
    }
}
