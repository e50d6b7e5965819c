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
use std::fs::File;
use std::future::Future;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::system_conf::read_system_conf;

use crate::status::Verdict;

/// Default of [`ResolverOptions::query_time`].
pub const QUERY_TIME: Duration = Duration::from_secs(5);
/// Default of [`ResolverOptions::query_tries`].
pub const QUERY_TRIES: usize = 2;
/// Answers kept, for as long as their records may live.
pub const CACHE_ENTRIES_MAX: u64 = 16_384;
/// Records used of one answer; the rest of a longer one is ignored.
pub const RECORDS_MAX: usize = 64;
/// Bytes read of the file of local names.
pub const HOSTS_FILE_BYTES_MAX: u64 = 1 << 20;

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

/// The real resolver: local names, then DNS with a cache.
pub struct SystemResolver {
    local: LocalNames,
    /// `None` if there is no usable DNS configuration: every lookup beyond local names then fails temporarily.
    dns: Result<TokioResolver, String>,
    is_loopback_only: bool,
}

impl SystemResolver {
    /// A resolver with these settings. A system without DNS configuration is no error here: local names still work,
    /// and everything else fails temporarily with the reason, as it may be repaired while mail waits.
    ///
    /// Blocks: reads `/etc/resolv.conf` and the file of local names.
    #[must_use]
    pub fn new(options: &ResolverOptions) -> Self {
        let is_loopback_only = !options.name_servers.is_empty()
            && options.name_servers.iter().all(|s| s.ip().is_loopback());
        Self {
            local: LocalNames::new(options.hosts_file.clone()),
            dns: build_dns(options),
            is_loopback_only,
        }
    }

    async fn query(
        &self,
        name: &str,
        record_type: RecordType,
    ) -> Result<Option<Vec<RData>>, LookupError> {
        let failed = |reason: String| LookupError {
            name: name.to_owned(),
            reason,
        };
        let dns = self.dns.as_ref().map_err(|e| failed(e.clone()))?;
        let Ok(mut absolute) = Name::from_utf8(name) else {
            // What is no domain name has no records; no server needs to be asked.
            return Ok(None);
        };
        absolute.set_fqdn(true);
        match dns.lookup(absolute, record_type).await {
            Ok(found) => Ok(Some(
                found
                    .answers()
                    .iter()
                    .filter(|record| record.record_type() == record_type)
                    .map(|record| record.data.clone())
                    .take(RECORDS_MAX)
                    .collect(),
            )),
            Err(error) if is_absence(&error) => Ok(None),
            Err(error) => Err(failed(error.to_string())),
        }
    }
}

/// Whether an error of the DNS library means that the record does not exist. Only a server's own word counts (I9).
fn is_absence(error: &NetError) -> bool {
    matches!(
        error,
        NetError::Dns(DnsError::NoRecordsFound(none))
            if matches!(none.response_code, ResponseCode::NXDomain | ResponseCode::NoError)
    )
}

fn build_dns(settings: &ResolverOptions) -> Result<TokioResolver, String> {
    let servers = &settings.name_servers;
    let (config, mut options) = if servers.is_empty() {
        read_system_conf().map_err(|e| format!("/etc/resolv.conf: {e}"))?
    } else {
        let servers = servers
            .iter()
            .map(|server| {
                let mut config = NameServerConfig::udp_and_tcp(server.ip());
                config.connections = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
                for connection in &mut config.connections {
                    connection.port = server.port();
                }
                config
            })
            .collect();
        (
            ResolverConfig::from_parts(None, vec![], servers),
            ResolverOpts::default(),
        )
    };
    options.timeout = settings.query_time;
    options.attempts = settings.query_tries;
    options.cache_size = CACHE_ENTRIES_MAX;
    options.use_hosts_file = ResolveHosts::Never;
    options.try_tcp_on_error = true;
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options)
        .build()
        .map_err(|e| e.to_string())
}

impl Resolver for SystemResolver {
    fn mx<'a>(&'a self, domain: &'a str) -> Lookup<'a, MxAnswer> {
        Box::pin(async move {
            let domain = folded(domain);
            if !self.local.addresses(&domain).is_empty() {
                // A local name has no mail hosts but itself.
                return Ok(MxAnswer::Absent);
            }
            let Some(records) = self.query(&domain, RecordType::MX).await? else {
                return Ok(MxAnswer::Absent);
            };
            Ok(mx_answer(records.into_iter().filter_map(
                |data| match data {
                    RData::MX(mx) => Some((mx.preference, mx.exchange.to_string())),
                    _ => None,
                },
            )))
        })
    }

    fn addresses<'a>(&'a self, host: &'a str) -> Lookup<'a, Vec<IpAddr>> {
        Box::pin(async move {
            let host = folded(host);
            let local = self.local.addresses(&host);
            if !local.is_empty() {
                return Ok(local);
            }
            let mut found = Vec::new();
            let mut trouble = None;
            for record_type in [RecordType::A, RecordType::AAAA] {
                match self.query(&host, record_type).await {
                    Ok(records) => {
                        found.extend(records.unwrap_or_default().into_iter().filter_map(|data| {
                            match data {
                                RData::A(a) => Some(IpAddr::V4(a.0)),
                                RData::AAAA(a) => Some(IpAddr::V6(a.0)),
                                _ => None,
                            }
                        }));
                    }
                    Err(error) => trouble = Some(error),
                }
            }
            match trouble {
                // An address that was found is good even if the other family could not be asked.
                Some(error) if found.is_empty() => Err(error),
                _ => Ok(found),
            }
        })
    }

    fn names(&self, address: IpAddr) -> Lookup<'_, Vec<String>> {
        Box::pin(async move {
            let local = self.local.names(address);
            if !local.is_empty() {
                return Ok(local);
            }
            let reverse = Name::from(address).to_string();
            let records = self.query(&folded(&reverse), RecordType::PTR).await?;
            Ok(records
                .unwrap_or_default()
                .into_iter()
                .filter_map(|data| match data {
                    RData::PTR(name) => Some(folded(&name.0.to_string())),
                    _ => None,
                })
                .collect())
        })
    }

    fn local_addresses(&self, host: &str) -> Vec<IpAddr> {
        self.local.addresses(&folded(host))
    }

    fn is_loopback_only(&self) -> bool {
        self.is_loopback_only
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

/// The file of local names, read again when it has changed; and `localhost`.
struct LocalNames {
    path: Option<PathBuf>,
    table: Mutex<HostsTable>,
}

#[derive(Default)]
struct HostsTable {
    /// Modification time and size of the file when it was read.
    version: Option<(SystemTime, u64)>,
    addresses: HashMap<String, Vec<IpAddr>>,
    names: HashMap<IpAddr, Vec<String>>,
}

impl LocalNames {
    fn new(path: Option<PathBuf>) -> Self {
        Self {
            path,
            table: Mutex::new(HostsTable::default()),
        }
    }

    fn addresses(&self, host: &str) -> Vec<IpAddr> {
        if host == "localhost" || host.ends_with(".localhost") {
            return vec![
                IpAddr::V4(Ipv4Addr::LOCALHOST),
                IpAddr::V6(Ipv6Addr::LOCALHOST),
            ];
        }
        self.with_table(|table| table.addresses.get(host).cloned().unwrap_or_default())
    }

    fn names(&self, address: IpAddr) -> Vec<String> {
        let found = self.with_table(|table| table.names.get(&address).cloned().unwrap_or_default());
        if found.is_empty() && (address == Ipv4Addr::LOCALHOST || address == Ipv6Addr::LOCALHOST) {
            return vec!["localhost".to_owned()];
        }
        found
    }

    /// Runs `f` on the table, reading the file first if it has changed. A file that cannot be read leaves the table
    /// as it was: names that were known do not vanish because of a passing error.
    fn with_table<T>(&self, f: impl FnOnce(&HostsTable) -> T) -> T {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = &self.path {
            let version = std::fs::metadata(path)
                .ok()
                .and_then(|m| Some((m.modified().ok()?, m.len())));
            if version.is_some()
                && version != table.version
                && let Ok(read) = HostsTable::read(path)
            {
                *table = HostsTable { version, ..read };
            }
        }
        f(&table)
    }
}

impl HostsTable {
    fn read(path: &Path) -> std::io::Result<Self> {
        let mut bytes = Vec::new();
        File::open(path)?
            .take(HOSTS_FILE_BYTES_MAX)
            .read_to_end(&mut bytes)?;
        Ok(Self::parse(&String::from_utf8_lossy(&bytes)))
    }

    /// hosts(5): an address, then names; `#` starts a comment. Lines that are neither are skipped.
    fn parse(text: &str) -> Self {
        let mut table = Self::default();
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace();
            let Some(address) = words.next().and_then(|w| w.parse::<IpAddr>().ok()) else {
                continue;
            };
            for name in words.map(folded) {
                table
                    .addresses
                    .entry(name.clone())
                    .or_default()
                    .push(address);
                table.names.entry(address).or_default().push(name);
            }
        }
        for addresses in table.addresses.values_mut() {
            addresses.sort_by_key(IpAddr::is_ipv6);
            addresses.dedup();
        }
        table
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

    /// Makes every lookup of a name fail temporarily.
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
    fn local_names_come_from_the_file_and_localhost_always_exists() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hosts");
        std::fs::write(
            &path,
            "::2 six.test\n192.0.2.7 Gold.Example.TEST gold # not this\n192.0.2.8 six.test\nrubbish x\n",
        )
        .unwrap();
        let names = LocalNames::new(Some(path.clone()));
        assert_eq!(
            names.addresses("gold.example.test"),
            ["192.0.2.7".parse::<IpAddr>().unwrap()]
        );
        assert_eq!(names.addresses("not"), Vec::<IpAddr>::new());
        let six = names.addresses("six.test");
        assert!(six[0].is_ipv4() && six[1].is_ipv6());
        assert_eq!(
            names.names("192.0.2.7".parse().unwrap()),
            ["gold.example.test", "gold"]
        );
        assert!(names.addresses("localhost").iter().all(IpAddr::is_loopback));
        std::fs::write(&path, "192.0.2.9 gold\n").unwrap();
        assert_eq!(
            names.addresses("gold"),
            ["192.0.2.9".parse::<IpAddr>().unwrap()]
        );
        std::fs::remove_file(&path).unwrap();
        assert_eq!(names.addresses("gold").len(), 1, "kept on a read error");
    }

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
