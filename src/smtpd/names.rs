//! The names of clients: what their addresses resolve to, and whether that resolves back.
//!
//! [`ClientNames::find`] never fails and never takes longer than it was told: a name that can't be had in time is no
//! name, so that the greeting is not held up by somebody's name server. This host itself is `localhost` without any
//! lookup. Answers are kept for [`KEEP`], those of lookups that did not work for [`KEEP_TROUBLE`].
//!
//! Waits for the resolver; touches nothing else. Limits: [`ENTRIES_MAX`], [`NAMES_MAX`].
//! Source: RFC 5321 4.1.4 (a name is for the trace, not for refusing); Sendmail's `may be forged`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::clock::Clock;
use crate::dns::{LookupError, Resolver};
use crate::route::NameLookup;

/// How long an answer is good.
pub const KEEP: Duration = Duration::from_secs(300);
/// How long a client stays nameless whose lookup did not work.
pub const KEEP_TROUBLE: Duration = Duration::from_secs(30);
/// Clients whose names are kept; at the limit all are forgotten.
pub const ENTRIES_MAX: usize = 4096;
/// Names of one address that are tried.
pub const NAMES_MAX: usize = 4;
/// The longest a lookup may hold up a greeting, unless told otherwise.
pub const WAIT: Duration = Duration::from_secs(3);

/// What is known of a client's name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientName {
    /// What its address resolves to, without a final dot.
    pub name: Option<String>,
    /// Whether none of the names resolves back.
    pub is_forged: bool,
    /// What came of the lookup.
    pub lookup: NameLookup,
}

/// Finds and keeps the names of clients.
pub struct ClientNames {
    resolver: Option<Arc<dyn Resolver>>,
    wait: Duration,
    clock: Arc<dyn Clock>,
    kept: Mutex<HashMap<IpAddr, (ClientName, Duration)>>,
}

impl ClientNames {
    /// Asks `resolver`, each time for at most `wait`. Without a resolver nobody but this host has a name: for a sandbox
    /// whose resolver would reach other hosts.
    #[must_use]
    pub fn new(resolver: Option<Arc<dyn Resolver>>, wait: Duration, clock: Arc<dyn Clock>) -> Self {
        Self {
            resolver,
            wait,
            clock,
            kept: Mutex::new(HashMap::new()),
        }
    }

    /// The name of a client.
    pub async fn find(&self, address: IpAddr) -> ClientName {
        let address = address.to_canonical();
        if address == IpAddr::from(std::net::Ipv4Addr::LOCALHOST)
            || address == IpAddr::from(std::net::Ipv6Addr::LOCALHOST)
        {
            return ClientName {
                name: Some("localhost".to_owned()),
                ..ClientName::default()
            };
        }
        let Some(resolver) = &self.resolver else {
            return ClientName::default();
        };
        let now = self.clock.monotonic();
        {
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((name, until)) = kept.get(&address)
                && now < *until
            {
                return name.clone();
            }
        }
        let looked_up = tokio::time::timeout(self.wait, look_up(resolver.as_ref(), address)).await;
        let (name, keep) = match looked_up {
            Ok(Ok(name)) => (name, KEEP),
            Ok(Err(_)) | Err(_) => {
                let trouble = ClientName {
                    lookup: NameLookup::Trouble,
                    ..ClientName::default()
                };
                (trouble, KEEP_TROUBLE)
            }
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= ENTRIES_MAX {
            kept.clear();
        }
        kept.insert(address, (name.clone(), now.saturating_add(keep)));
        name
    }
}

async fn look_up(resolver: &dyn Resolver, address: IpAddr) -> Result<ClientName, LookupError> {
    let names = resolver.names(address).await?;
    let mut trouble = None;
    for name in names.iter().take(NAMES_MAX) {
        match resolver.addresses(name).await {
            Ok(addresses) if addresses.iter().any(|a| a.to_canonical() == address) => {
                return Ok(ClientName {
                    name: Some(name.trim_end_matches('.').to_owned()),
                    ..ClientName::default()
                });
            }
            Ok(_) => {}
            Err(error) => trouble = Some(error),
        }
    }
    match (trouble, names.into_iter().next()) {
        // A lookup that did not work proves nothing against the client (I9).
        (Some(error), _) => Err(error),
        (None, None) => Ok(ClientName {
            lookup: NameLookup::Missing,
            ..ClientName::default()
        }),
        (None, Some(name)) => Ok(ClientName {
            name: Some(name.trim_end_matches('.').to_owned()),
            is_forged: true,
            lookup: NameLookup::Forged,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::dns::{Lookup, MxAnswer};
    use std::sync::atomic::{AtomicU32, Ordering};

    #[derive(Default)]
    struct Zone {
        asked: AtomicU32,
    }

    impl Resolver for Zone {
        fn mx<'a>(&'a self, _domain: &'a str) -> Lookup<'a, MxAnswer> {
            unreachable!("clients' names need no MX")
        }

        fn addresses<'a>(&'a self, host: &'a str) -> Lookup<'a, Vec<IpAddr>> {
            Box::pin(async move {
                match host {
                    "c50.test" => Ok(vec!["127.0.0.50".parse().unwrap()]),
                    "forged.test" => Ok(vec!["127.0.0.99".parse().unwrap()]),
                    _ => std::future::pending().await,
                }
            })
        }

        fn names(&self, address: IpAddr) -> Lookup<'_, Vec<String>> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            Box::pin(async move {
                match address.to_string().as_str() {
                    "127.0.0.50" => Ok(vec!["forged.test".into(), "c50.test".into()]),
                    "127.0.0.51" => Ok(vec!["forged.test".into()]),
                    "127.0.0.53" => Ok(Vec::new()),
                    _ => Ok(vec!["slow.test".into()]),
                }
            })
        }

        fn local_addresses(&self, _host: &str) -> Vec<IpAddr> {
            Vec::new()
        }

        fn is_loopback_only(&self) -> bool {
            true
        }
    }

    #[tokio::test]
    async fn names_are_verified_kept_and_waited_for_no_longer_than_told() {
        let zone = Arc::new(Zone::default());
        let clock = Arc::new(ManualClock::at(0));
        let wait = Duration::from_millis(50);
        let names = ClientNames::new(Some(zone.clone()), wait, clock.clone());
        let find = async |text: &str| {
            let found = names.find(text.parse().unwrap()).await;
            (found.name, found.is_forged)
        };
        assert_eq!(find("127.0.0.50").await, (Some("c50.test".into()), false));
        assert_eq!(
            find("::ffff:127.0.0.50").await.0.as_deref(),
            Some("c50.test")
        );
        assert_eq!(zone.asked.load(Ordering::Relaxed), 1);
        assert_eq!(find("127.0.0.51").await, (Some("forged.test".into()), true));
        assert_eq!(find("127.0.0.53").await, (None, false));
        let before = tokio::time::Instant::now();
        assert_eq!(find("127.0.0.54").await, (None, false));
        let waited = before.elapsed();
        assert!(waited >= wait && waited < WAIT, "{waited:?}");
        assert_eq!(find("127.0.0.1").await.0.as_deref(), Some("localhost"));
        assert_eq!(zone.asked.load(Ordering::Relaxed), 4);
        clock.advance(KEEP + Duration::from_secs(1));
        find("127.0.0.50").await;
        assert_eq!(zone.asked.load(Ordering::Relaxed), 5);
    }
}
