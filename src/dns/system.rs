//! The resolver that asks name servers (L1).
//!
//! Queries go out with the limits of [`ResolverOptions`]; answers are kept as long as their records live, at most
//! [`CACHE_ENTRIES_MAX`]. The DNS library takes every address in 127/8 for `localhost`; here that is true of 127.0.0.1
//! alone, and the names of the others are asked for, without being kept.
//! May touch: the name servers, `/etc/resolv.conf` once.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::xfer::{DnsHandle, FirstAnswer};
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{DnsRequestOptions, Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use hickory_resolver::system_conf::read_system_conf;
use hickory_resolver::{NameServerPool, PoolContext, TlsConfig, TokioResolver};

use super::local::LocalNames;
use super::{
    CACHE_ENTRIES_MAX, Lookup, LookupError, MxAnswer, RECORDS_MAX, Resolver, ResolverOptions,
    folded, mx_answer,
};

/// The real resolver: local names, then DNS with a cache.
pub struct SystemResolver {
    local: LocalNames,
    /// `None` if there is no usable DNS configuration: every lookup beyond local names then fails temporarily.
    dns: Result<Dns, String>,
    is_loopback_only: bool,
}

/// The DNS library: with its cache and its rules for special names, and without.
struct Dns {
    cached: TokioResolver,
    direct: NameServerPool<TokioRuntimeProvider>,
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

    /// The data of a name's records of one type; `None`: a name server says that there are none. Only DNS is asked, not
    /// the file of local names.
    ///
    /// # Errors
    /// [`LookupError`], always temporary.
    pub async fn records(
        &self,
        name: &str,
        record_type: RecordType,
    ) -> Result<Option<Vec<RData>>, LookupError> {
        self.query(&folded(name), record_type).await
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
        let answer = if is_strange_loopback(&absolute) {
            let query = Query::query(absolute, record_type);
            let response = dns.direct.lookup(query, DnsRequestOptions::default());
            match response.first_answer().await {
                Ok(response) => DnsError::from_response(response)
                    .map(|response| records(&response.answers, record_type))
                    .map_err(NetError::from),
                Err(error) => Err(error),
            }
        } else {
            let found = dns.cached.lookup(absolute, record_type).await;
            found.map(|found| records(found.answers(), record_type))
        };
        match answer {
            Ok(records) => Ok(Some(records)),
            Err(error) if is_absence(&error) => Ok(None),
            Err(error) => Err(failed(error.to_string())),
        }
    }
}

/// The data of the records of one type.
fn records(answers: &[Record], record_type: RecordType) -> Vec<RData> {
    answers
        .iter()
        .filter(|record| record.record_type() == record_type)
        .map(|record| record.data.clone())
        .take(RECORDS_MAX)
        .collect()
}

/// Whether this is the reverse name of a loopback address other than 127.0.0.1.
fn is_strange_loopback(name: &Name) -> bool {
    name.parse_arpa_name()
        .is_ok_and(|net| net.addr().is_loopback() && net.addr() != Ipv4Addr::LOCALHOST)
}

/// Whether an error of the DNS library means that the record does not exist. Only a server's own word counts (I9).
fn is_absence(error: &NetError) -> bool {
    matches!(
        error,
        NetError::Dns(DnsError::NoRecordsFound(none))
            if matches!(none.response_code, ResponseCode::NXDomain | ResponseCode::NoError)
    )
}

fn build_dns(settings: &ResolverOptions) -> Result<Dns, String> {
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
    let tls = TlsConfig::new().map_err(|e| e.to_string())?;
    let direct = NameServerPool::from_config(
        config.name_servers.clone(),
        Arc::new(PoolContext::new(options.clone(), tls)),
        TokioRuntimeProvider::default(),
    );
    let cached = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options)
        .build()
        .map_err(|e| e.to_string())?;
    Ok(Dns { cached, direct })
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
