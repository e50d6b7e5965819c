//! Classes `host`, `dns` and `bestmx`: what name servers know.
//!
//! | class | key | value |
//! |---|---|---|
//! | host | a name | its canonical name: aliases (CNAME) followed to their end, where an address or a mail host is |
//! | host | `[address]` | the name of the address |
//! | dns | a name, -B put behind it | the data of its first record of the type -R; with -z all of them, -Z at most |
//! | bestmx | a domain | its best mail host, the domain itself where it has none but an address; with -z all |
//!
//! -R takes A, AAAA, CNAME, MX, NS, PTR, SRV and TXT. Names come without the final dot (-a. puts one). -d is how long
//! the lookup may take, -r how often a query is sent. Only a name server's own word that a name or record does not exist
//! is absence (I9).
//!
//! Blocks: up to the time limit. Limits: [`CNAMES_MAX`], and those of `dns`. Source: sendmail's op.me 5.12.

#![deny(clippy::indexing_slicing)]

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use diligence_maps::{ClassMap, Definition, MapClass, MapError, PairVisitor, SpecError};
use hickory_resolver::proto::rr::{RData, RecordType};

use super::{NetOptions, Network, TIME_LIMIT, remote, separator};
use crate::dns::{LookupError, MxAnswer, Resolver, SystemResolver};

/// Most aliases followed from name to name. Source: Sendmail's MAXCNAMEDEPTH.
const CNAMES_MAX: usize = 10;
/// Most records joined by -z, unless -Z says otherwise.
const JOINED_MAX: u64 = 64;

/// What is asked.
enum Question {
    Canonical,
    Records {
        record_type: RecordType,
        base: String,
    },
    BestMx,
}

/// A map over DNS.
pub(super) struct DnsMap {
    asked: Arc<Asked>,
    network: Arc<Network>,
    limit: Duration,
}

struct Asked {
    label: &'static str,
    question: Question,
    resolver: SystemResolver,
    separator: Option<char>,
    joined_max: usize,
}

impl DnsMap {
    pub(super) fn new(
        definition: &Definition,
        options: &NetOptions,
        network: Arc<Network>,
    ) -> Result<Self, SpecError> {
        let question = match definition.class {
            MapClass::Host => Question::Canonical,
            MapClass::Bestmx => Question::BestMx,
            _ => Question::Records {
                record_type: record_type(definition)?,
                base: definition
                    .value('B')
                    .unwrap_or_default()
                    .trim_matches('.')
                    .to_owned(),
            },
        };
        let mut resolver = options.resolver.clone();
        if options.loopback_only && resolver.name_servers.is_empty() {
            return Err(definition.bad_argument("a sandbox asks no name server but its own"));
        }
        if let Some(tries) = definition.number('r', 1, 10)? {
            resolver.query_tries = usize::try_from(tries).unwrap_or(1);
        }
        let limit = definition.switches.time_limit.unwrap_or(TIME_LIMIT);
        resolver.query_time = resolver.query_time.min(limit);
        let joined_max = definition.number('Z', 1, JOINED_MAX)?.unwrap_or(JOINED_MAX);
        Ok(Self {
            asked: Arc::new(Asked {
                label: definition.class.name(),
                question,
                resolver: SystemResolver::new(&resolver),
                separator: separator(definition)?,
                joined_max: usize::try_from(joined_max).unwrap_or(1),
            }),
            network,
            limit,
        })
    }
}

fn record_type(definition: &Definition) -> Result<RecordType, SpecError> {
    let Some(wanted) = definition.value('R') else {
        return Err(definition.bad_value('R', "the class dns needs a type of record"));
    };
    match wanted.to_ascii_uppercase().as_str() {
        "A" => Ok(RecordType::A),
        "AAAA" => Ok(RecordType::AAAA),
        "CNAME" => Ok(RecordType::CNAME),
        "MX" => Ok(RecordType::MX),
        "NS" => Ok(RecordType::NS),
        "PTR" => Ok(RecordType::PTR),
        "SRV" => Ok(RecordType::SRV),
        "TXT" => Ok(RecordType::TXT),
        _ => Err(definition.bad_value('R', "expected A, AAAA, CNAME, MX, NS, PTR, SRV or TXT")),
    }
}

impl ClassMap for DnsMap {
    fn find(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        let Ok(key) = std::str::from_utf8(key) else {
            // No name on the net is written so.
            return Ok(None);
        };
        let key = key.trim_end_matches('.').to_owned();
        let asked = Arc::clone(&self.asked);
        self.network.run(self.asked.label, self.limit, async move {
            let found = asked.ask(&key).await;
            found.map_err(|error| remote(asked.label, error.to_string()))
        })
    }

    fn each(&self, f: &mut PairVisitor<'_>) -> Result<(), MapError> {
        super::not_listed(self.asked.label, f)
    }
}

impl Asked {
    async fn ask(&self, key: &str) -> Result<Option<Vec<u8>>, LookupError> {
        if key.is_empty() {
            return Ok(None);
        }
        let values = match &self.question {
            Question::Canonical => self.canonical(key).await?.into_iter().collect(),
            Question::BestMx => self.mail_hosts(key).await?,
            Question::Records { record_type, base } => {
                let name = if base.is_empty() {
                    key.to_owned()
                } else {
                    format!("{key}.{base}")
                };
                let records = self.resolver.records(&name, *record_type).await?;
                let texts = records.unwrap_or_default();
                texts.iter().filter_map(text_of).collect()
            }
        };
        Ok(self.joined(&values))
    }

    fn joined(&self, values: &[String]) -> Option<Vec<u8>> {
        let first = values.first()?;
        Some(match self.separator {
            None => first.clone().into_bytes(),
            Some(separator) => {
                let used: Vec<&str> = values
                    .iter()
                    .take(self.joined_max)
                    .map(String::as_str)
                    .collect();
                used.join(&separator.to_string()).into_bytes()
            }
        })
    }

    async fn canonical(&self, key: &str) -> Result<Option<String>, LookupError> {
        if let Some(inner) = key
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            let bare = inner.strip_prefix("ipv6:").unwrap_or(inner);
            return match bare.parse::<IpAddr>() {
                Ok(address) => Ok(self.resolver.names(address).await?.into_iter().next()),
                Err(_) => Ok(None),
            };
        }
        let mut name = key.to_owned();
        if !self.resolver.local_addresses(&name).is_empty() {
            return Ok(Some(name));
        }
        for _ in 0..=CNAMES_MAX {
            let aliases = self.resolver.records(&name, RecordType::CNAME).await?;
            match aliases.unwrap_or_default().iter().find_map(text_of) {
                Some(next) => name = next,
                None => {
                    for record_type in [RecordType::A, RecordType::AAAA, RecordType::MX] {
                        let records = self.resolver.records(&name, record_type).await?;
                        if records.is_some_and(|records| !records.is_empty()) {
                            return Ok(Some(name));
                        }
                    }
                    return Ok(None);
                }
            }
        }
        Err(LookupError {
            name: key.to_owned(),
            reason: format!("more than {CNAMES_MAX} aliases, one leading to the other"),
        })
    }

    async fn mail_hosts(&self, key: &str) -> Result<Vec<String>, LookupError> {
        match self.resolver.mx(key).await? {
            MxAnswer::Hosts(hosts) => Ok(hosts.into_iter().map(|mx| mx.host).collect()),
            MxAnswer::Null => Ok(Vec::new()),
            MxAnswer::Absent => {
                let addresses = self.resolver.addresses(key).await?;
                // RFC 5321 5.1: a domain without mail hosts is its own.
                Ok((!addresses.is_empty())
                    .then(|| key.to_owned())
                    .into_iter()
                    .collect())
            }
        }
    }
}

/// The data of a record as rules know it.
fn text_of(data: &RData) -> Option<String> {
    let name = |text: String| {
        let text = text.trim_end_matches('.').to_ascii_lowercase();
        (!text.is_empty()).then_some(text)
    };
    match data {
        RData::A(address) => Some(address.0.to_string()),
        RData::AAAA(address) => Some(address.0.to_string()),
        RData::CNAME(alias) => name(alias.0.to_string()),
        RData::NS(server) => name(server.0.to_string()),
        RData::PTR(pointer) => name(pointer.0.to_string()),
        RData::MX(mx) => name(mx.exchange.to_string()),
        RData::SRV(service) => name(service.target.to_string()),
        RData::TXT(text) => {
            let bytes: Vec<u8> = text
                .txt_data
                .iter()
                .flat_map(|part| part.to_vec())
                .collect();
            Some(String::from_utf8_lossy(&bytes).into_owned())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::ResolverOptions;
    use crate::netmaps::NetMaps;
    use diligence_maps::{FileAccess, Opener, Safety};
    use hickory_resolver::proto::op::{Message, ResponseCode};
    use hickory_resolver::proto::rr::rdata::{A, CNAME, MX, PTR, TXT};
    use hickory_resolver::proto::rr::{Name, Record};
    use std::net::UdpSocket;

    /// A name server with a few records, on a port of its own, until the process ends.
    fn name_server() -> std::net::SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 1500];
            while let Ok((len, from)) = socket.recv_from(&mut buffer) {
                let Ok(query) = Message::from_vec(&buffer[..len]) else {
                    continue;
                };
                let asked = query.queries[0].clone();
                let name = asked.name().to_string();
                let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
                reply.metadata.recursion_desired = true;
                reply.metadata.recursion_available = true;
                reply.add_query(asked.clone());
                let to = |text: &str| Name::from_ascii(text).unwrap();
                let data: Vec<RData> = match (name.as_str(), asked.query_type()) {
                    ("slow.test.", _) => continue,
                    ("broken.test.", _) => {
                        reply.metadata.response_code = ResponseCode::ServFail;
                        vec![]
                    }
                    ("www.test.", RecordType::CNAME) => vec![RData::CNAME(CNAME(to("host.test.")))],
                    ("host.test.", RecordType::A) => vec![RData::A(A::new(192, 0, 2, 1))],
                    ("two.test.", RecordType::MX) => vec![
                        RData::MX(MX::new(20, to("second.test."))),
                        RData::MX(MX::new(10, to("First.test."))),
                    ],
                    ("listed.bl.test.", RecordType::TXT) => {
                        vec![RData::TXT(TXT::new(vec!["a ".into(), "b".into()]))]
                    }
                    ("1.2.0.192.in-addr.arpa.", RecordType::PTR) => {
                        vec![RData::PTR(PTR(to("host.test.")))]
                    }
                    ("host.test.", _) | ("www.test.", _) => vec![],
                    _ => {
                        reply.metadata.response_code = ResponseCode::NXDomain;
                        vec![]
                    }
                };
                for data in data {
                    reply.add_answer(Record::from_rdata(asked.name().clone(), 60, data));
                }
                let _ = socket.send_to(&reply.to_vec().unwrap(), from);
            }
        });
        address
    }

    #[test]
    fn name_servers_are_asked() {
        let maps = NetMaps::new(NetOptions {
            files: FileAccess::default(),
            safety: Safety::default(),
            resolver: ResolverOptions {
                name_servers: vec![name_server()],
                hosts_file: None,
                query_time: Duration::from_millis(300),
                query_tries: 1,
            },
            loopback_only: true,
        });
        let find = |text: &str, key: &str| {
            let definition = Definition::parse(text).unwrap();
            let map = maps.open(&definition).unwrap().unwrap();
            map.find(key.as_bytes())
                .map(|found| found.map(|value| String::from_utf8(value).unwrap()))
        };
        assert_eq!(find("host", "www.test").unwrap().unwrap(), "host.test");
        assert_eq!(find("host", "[192.0.2.1]").unwrap().unwrap(), "host.test");
        assert_eq!(find("host", "nobody.test").unwrap(), None);
        assert!(find("host", "broken.test").is_err());
        assert!(find("host -d1 -r1", "slow.test").is_err());
        assert_eq!(find("dns -RA", "host.test.").unwrap().unwrap(), "192.0.2.1");
        assert_eq!(find("dns -RAAAA", "host.test").unwrap(), None);
        let listed = find("dns -R TXT -B bl.test", "listed");
        assert_eq!(listed.unwrap().unwrap(), "a b");
        let all = find("dns -RMX -z,", "two.test").unwrap().unwrap();
        assert!(all == "second.test,first.test" || all == "first.test,second.test");
        let one = find("dns -RMX -z, -Z1", "two.test").unwrap().unwrap();
        assert!(!one.contains(','));
        assert_eq!(find("bestmx", "two.test").unwrap().unwrap(), "first.test");
        let all = find("bestmx -z:", "two.test").unwrap().unwrap();
        assert_eq!(all, "first.test:second.test");
        assert_eq!(find("bestmx", "nobody.test").unwrap(), None);
        assert!(find("bestmx", "broken.test").is_err());
    }

    #[test]
    fn what_cannot_be_asked_is_refused() {
        let maps = NetMaps::new(NetOptions {
            files: FileAccess::default(),
            loopback_only: true,
            ..NetOptions::default()
        });
        let open = |text: &str| maps.open(&Definition::parse(text).unwrap());
        for text in ["dns", "dns -RAFSDB", "host", "bestmx -r0"] {
            assert!(open(text).is_err(), "{text}");
        }
    }
}
