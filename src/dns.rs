//! Names to mail hosts and addresses (L1): the seam to DNS and the file of local names.
//!
//! Guarantees: "there is no such record" and "the lookup did not work" never look alike (I9): the first is a value,
//! the second an error, and every error is temporary. The file of local names is asked first, `localhost` is always
//! the loopback address, and neither needs the network. Order among mail hosts of equal preference is left to the
//! caller. May touch: the name servers it was given, `/etc/resolv.conf` once, the file of local names (a short read on
//! the calling thread when it has changed). Futures must be polled on a runtime with time and network enabled.
//! Limits: [`ResolverOptions`], [`CACHE_ENTRIES_MAX`], [`RECORDS_MAX`], [`HOSTS_FILE_BYTES_MAX`].
//! Sources: RFC 5321 5.1 (locating the target host), RFC 7505 (null MX), RFC 6761 6.3 (localhost), hosts(5).

use std::collections::HashMap;
use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::status::Verdict;

mod local;
mod system;

pub use local::HOSTS_FILE_BYTES_MAX;
pub use system::SystemResolver;

/// Default of [`ResolverOptions::query_time`].
pub const QUERY_TIME: Duration = Duration::from_secs(5);
/// Default of [`ResolverOptions::query_tries`].
pub const QUERY_TRIES: usize = 2;
/// Answers kept, for as long as their records may live.
pub const CACHE_ENTRIES_MAX: u64 = 16_384;
/// Records used of one answer; the rest of a longer one is ignored.
pub const RECORDS_MAX: usize = 64;

/// A lookup did not work; says nothing of whether the name exists.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("name server: {name}: {reason}")]
pub struct LookupError {
    /// The name that was asked for.
    pub name: String,
    /// What went wrong, for the log.
    pub reason: String,
}

impl LookupError {
    /// Always [`Verdict::Temporary`].
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        Verdict::Temporary
    }
}

/// One MX record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MxHost {
    /// Lower is better.
    pub preference: u16,
    /// In lower case, without the final dot.
    pub host: String,
}

/// What is known of a domain's mail hosts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MxAnswer {
    /// At least one, by ascending preference.
    Hosts(Vec<MxHost>),
    /// The domain says that it takes no mail (RFC 7505).
    Null,
    /// There is no MX record; whether the name exists must be asked of [`Resolver::addresses`].
    Absent,
}

/// A lookup under way.
pub type Lookup<'a, T> = Pin<Box<dyn Future<Output = Result<T, LookupError>> + Send + 'a>>;

/// Looks names up. Names are taken with or without a final dot and in any case; they are always absolute.
///
/// # Errors
/// Every method: [`LookupError`], temporary, if the lookup did not work.
pub trait Resolver: Send + Sync {
    /// The mail hosts of a domain.
    fn mx<'a>(&'a self, domain: &'a str) -> Lookup<'a, MxAnswer>;

    /// The addresses of a host, IPv4 before IPv6; empty if it has none or does not exist.
    fn addresses<'a>(&'a self, host: &'a str) -> Lookup<'a, Vec<IpAddr>>;

    /// The names an address claims (PTR), unverified; empty if there are none.
    fn names(&self, address: IpAddr) -> Lookup<'_, Vec<String>>;

    /// The addresses of a host as far as they are known without asking anybody over the network.
    fn local_addresses(&self, host: &str) -> Vec<IpAddr>;

    /// Whether lookups reach nothing but loopback addresses, so that a sandbox may use them.
    fn is_loopback_only(&self) -> bool;
}

/// The form in which names are compared: lower case, no final dot.
#[must_use]
pub fn folded(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

/// Which name servers a [`SystemResolver`] asks, and where local names are.
#[derive(Debug, Clone)]
pub struct ResolverOptions {
    /// Addresses and ports of name servers; empty for those of `/etc/resolv.conf`.
    pub name_servers: Vec<std::net::SocketAddr>,
    /// The file of local names, `/etc/hosts`; `None` for none.
    pub hosts_file: Option<PathBuf>,
    /// How long one query to one name server may take.
    pub query_time: Duration,
    /// How often a query is sent before the lookup has failed.
    pub query_tries: usize,
}

impl Default for ResolverOptions {
    fn default() -> Self {
        Self {
            name_servers: Vec::new(),
            hosts_file: Some(PathBuf::from("/etc/hosts")),
            query_time: QUERY_TIME,
            query_tries: QUERY_TRIES,
        }
    }
}

/// Sorts MX records by preference and tells a null MX. Beside other records a null MX means nothing (RFC 7505 3).
fn mx_answer(records: impl Iterator<Item = (u16, String)>) -> MxAnswer {
    let all: Vec<MxHost> = records
        .take(RECORDS_MAX)
        .map(|(preference, host)| MxHost {
            preference,
            host: folded(&host),
        })
        .collect();
    let had_any = !all.is_empty();
    let mut hosts: Vec<MxHost> = all.into_iter().filter(|mx| !mx.host.is_empty()).collect();
    hosts.sort_by_key(|mx| mx.preference);
    match (hosts.is_empty(), had_any) {
        (false, _) => MxAnswer::Hosts(hosts),
        (true, true) => MxAnswer::Null,
        (true, false) => MxAnswer::Absent,
    }
}

/// A resolver that answers from a table in memory: for tests and simulations. What is not in it does not exist.
#[derive(Debug, Clone, Default)]
pub struct TableResolver {
    mx: HashMap<String, MxAnswer>,
    addresses: HashMap<String, Vec<IpAddr>>,
    names: HashMap<IpAddr, Vec<String>>,
    failing: HashMap<String, String>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl TableResolver {
    /// An empty table.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds MX records; a null MX is preference 0 with an empty host.
    #[must_use]
    pub fn with_mx(mut self, domain: &str, records: &[(u16, &str)]) -> Self {
        let answer = mx_answer(records.iter().map(|(p, host)| (*p, (*host).to_owned())));
        self.mx.insert(folded(domain), answer);
        self
    }

    /// Adds an address of a host, and the host's name as that of the address.
    #[must_use]
    pub fn with_address(mut self, host: &str, address: IpAddr) -> Self {
        self.addresses
            .entry(folded(host))
            .or_default()
            .push(address);
        self.names.entry(address).or_default().push(folded(host));
        self
    }

    /// Adds a name that an address claims and that need not resolve back.
    #[must_use]
    pub fn with_name(mut self, address: IpAddr, host: &str) -> Self {
        self.names.entry(address).or_default().push(folded(host));
        self
    }

    /// Makes every lookup of a name, or of an address in text, fail temporarily.
    #[must_use]
    pub fn with_failure(mut self, name: &str, reason: &str) -> Self {
        self.failing.insert(folded(name), reason.to_owned());
        self
    }

    /// The names asked for so far, in order.
    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        self.asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn check(&self, name: &str) -> Result<(), LookupError> {
        self.asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(name.to_owned());
        match self.failing.get(name) {
            Some(reason) => Err(LookupError {
                name: name.to_owned(),
                reason: reason.clone(),
            }),
            None => Ok(()),
        }
    }
}

impl Resolver for TableResolver {
    fn mx<'a>(&'a self, domain: &'a str) -> Lookup<'a, MxAnswer> {
        let domain = folded(domain);
        let answer = self
            .check(&domain)
            .map(|()| self.mx.get(&domain).cloned().unwrap_or(MxAnswer::Absent));
        Box::pin(std::future::ready(answer))
    }

    fn addresses<'a>(&'a self, host: &'a str) -> Lookup<'a, Vec<IpAddr>> {
        let host = folded(host);
        let answer = self
            .check(&host)
            .map(|()| self.addresses.get(&host).cloned().unwrap_or_default());
        Box::pin(std::future::ready(answer))
    }

    fn names(&self, address: IpAddr) -> Lookup<'_, Vec<String>> {
        let answer = self
            .check(&address.to_string())
            .map(|()| self.names.get(&address).cloned().unwrap_or_default());
        Box::pin(std::future::ready(answer))
    }

    fn local_addresses(&self, host: &str) -> Vec<IpAddr> {
        self.addresses
            .get(&folded(host))
            .cloned()
            .unwrap_or_default()
    }

    fn is_loopback_only(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mx_records_are_sorted_and_a_null_mx_counts_only_alone() {
        let record = |p, h: &str| (p, h.to_owned());
        assert_eq!(mx_answer([].into_iter()), MxAnswer::Absent);
        assert_eq!(mx_answer([record(0, ".")].into_iter()), MxAnswer::Null);
        let MxAnswer::Hosts(hosts) =
            mx_answer([record(20, "B."), record(0, "."), record(5, "a.test.")].into_iter())
        else {
            panic!("hosts expected");
        };
        assert_eq!(hosts[0].host, "a.test");
        assert_eq!(hosts[1].host, "b");
    }
}
