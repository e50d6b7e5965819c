//! Class `socket`: a server that speaks the socketmap protocol.
//!
//! `socket -T<TMPF> unix:/run/maps.sock`, `socket inet:12345@127.0.0.1` (or `inet:127.0.0.1:12345`). What is sent is the
//! map's name and the key; Sendmail takes the name its K line gives the map, and here it stands behind the address as
//! Postfix writes it: `unix:/run/maps.sock:access`, and `default` is sent without it.
//!
//! Answers: `OK value`, `NOTFOUND `; anything else, a broken connection included, is trouble (I9): also `PERM`, as what
//! is wrong with a server for good is still no word about the key. Connections are kept and used again; a kept one that
//! turns out closed is replaced once.
//!
//! Blocks: up to the time limit. Limits: [`REPLY_BYTES_MAX`], [`IDLE_MAX`] connections kept.
//! Source: sendmail's op.me 5.12, Postfix's socketmap_table(5).

#![deny(clippy::indexing_slicing)]

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use diligence_maps::{ClassMap, Definition, MapError, PairVisitor, SpecError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::netstring::{self, Parsed};
use super::{NetOptions, Network, TIME_LIMIT, broken, is_loopback, remote};

/// Longest answer taken, in bytes. Source: Sendmail's limit.
const REPLY_BYTES_MAX: usize = 1_000_000;
/// Connections kept for the next lookup.
const IDLE_MAX: usize = 8;
/// Bytes read at once.
const PIECE_BYTES: usize = 4096;
/// The name sent where none is given.
const DEFAULT_NAME: &str = "default";

/// Where a socketmap server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A socket in the file system.
    Unix(PathBuf),
    /// A TCP port.
    Inet {
        /// Name or address.
        host: String,
        /// Port.
        port: u16,
    },
}

impl Endpoint {
    /// Reads `unix:PATH`, `local:PATH`, `inet:PORT@HOST` or `inet:HOST:PORT`.
    ///
    /// # Errors
    /// What was expected.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let expected = "expected unix:PATH, inet:PORT@HOST or inet:HOST:PORT";
        let (family, rest) = text.split_once(':').ok_or(expected)?;
        match family {
            "unix" | "local" if rest.starts_with('/') => Ok(Self::Unix(PathBuf::from(rest))),
            "unix" | "local" => Err("the path of the socket is not absolute"),
            "inet" | "inet6" => {
                let (host, port) = match rest.split_once('@') {
                    Some((port, host)) => (host, port),
                    None => rest.rsplit_once(':').ok_or(expected)?,
                };
                let port = port
                    .parse::<u16>()
                    .map_err(|_| "expected a port from 0 to 65535")?;
                let host = host.trim_matches(['[', ']']);
                if host.is_empty() {
                    return Err(expected);
                }
                Ok(Self::Inet {
                    host: host.to_owned(),
                    port,
                })
            }
            _ => Err(expected),
        }
    }

    /// Whether it is on this host.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Inet { host, .. } => is_loopback(host),
        }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Inet { host, port } => write!(f, "inet:{port}@{host}"),
        }
    }
}

/// A connection of either family.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A socketmap server.
pub(super) struct SocketMap {
    server: Arc<Server>,
    network: Arc<Network>,
    limit: Duration,
}

struct Server {
    endpoint: Endpoint,
    label: String,
    name: String,
    idle: Mutex<Vec<Box<dyn Stream>>>,
}

impl SocketMap {
    pub(super) fn new(
        definition: &Definition,
        options: &NetOptions,
        network: Arc<Network>,
    ) -> Result<Self, SpecError> {
        let (address, name) = split_name(&definition.rest);
        let endpoint =
            Endpoint::parse(address).map_err(|reason| definition.bad_argument(reason))?;
        if options.loopback_only && !endpoint.is_local() {
            return Err(definition.bad_argument("a sandbox contacts no other host"));
        }
        Ok(Self {
            server: Arc::new(Server {
                label: endpoint.to_string(),
                endpoint,
                name: name.to_owned(),
                idle: Mutex::default(),
            }),
            network,
            limit: definition.switches.time_limit.unwrap_or(TIME_LIMIT),
        })
    }
}

/// Address and name of a server: the name is behind the last colon, if what is before it is an address by itself.
fn split_name(text: &str) -> (&str, &str) {
    match text.rsplit_once(':') {
        Some((address, name)) if Endpoint::parse(address).is_ok() => (address, name),
        _ => (text, DEFAULT_NAME),
    }
}

impl ClassMap for SocketMap {
    fn find(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        let mut request = Vec::with_capacity(key.len() + 32);
        netstring::write(&mut request, &[self.server.name.as_bytes(), b" ", key]);
        let server = Arc::clone(&self.server);
        let reply = self
            .network
            .run(&self.server.label, self.limit, async move {
                server.ask(&request).await
            })?;
        answer(&self.server.label, &reply)
    }

    fn each(&self, f: &mut PairVisitor<'_>) -> Result<(), MapError> {
        super::not_listed(&self.server.label, f)
    }
}

/// What a reply says.
fn answer(label: &str, reply: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
    let (word, rest) = match reply.iter().position(|&byte| byte == b' ') {
        Some(at) => (
            reply.get(..at).unwrap_or_default(),
            reply.get(at + 1..).unwrap_or_default(),
        ),
        None => (reply, &[][..]),
    };
    match word {
        b"OK" => Ok(Some(rest.to_vec())),
        b"NOTFOUND" => Ok(None),
        _ => {
            let shown: String = String::from_utf8_lossy(reply).chars().take(200).collect();
            Err(remote(label, format!("the server answered: {shown}")))
        }
    }
}

impl Server {
    async fn ask(&self, request: &[u8]) -> Result<Vec<u8>, MapError> {
        let kept = self
            .idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        if let Some(mut stream) = kept {
            // It may have been closed while it was kept; a fresh one then decides. Asking twice does no harm.
            if let Ok(reply) = self.exchange(&mut *stream, request).await {
                self.keep(stream);
                return Ok(reply);
            }
        }
        let mut stream = self.connect().await?;
        let reply = self.exchange(&mut *stream, request).await?;
        self.keep(stream);
        Ok(reply)
    }

    fn keep(&self, stream: Box<dyn Stream>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push(stream);
        }
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, MapError> {
        let failed = |error| broken(&self.label, "connect", &error);
        match &self.endpoint {
            Endpoint::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(failed)?;
                Ok(Box::new(stream))
            }
            Endpoint::Inet { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port))
                    .await
                    .map_err(failed)?;
                stream.set_nodelay(true).map_err(failed)?;
                Ok(Box::new(stream))
            }
        }
    }

    async fn exchange(&self, stream: &mut dyn Stream, request: &[u8]) -> Result<Vec<u8>, MapError> {
        let failed = |error| broken(&self.label, "lookup", &error);
        stream.write_all(request).await.map_err(failed)?;
        let mut buffer = Vec::new();
        let mut piece = [0; PIECE_BYTES];
        loop {
            let read = stream.read(&mut piece).await.map_err(failed)?;
            if read == 0 {
                return Err(remote(&self.label, "the server closed the connection"));
            }
            buffer.extend_from_slice(piece.get(..read).unwrap_or_default());
            match netstring::parse(&buffer, REPLY_BYTES_MAX) {
                Parsed::Partial => {}
                Parsed::Whole(reply, used) if used == buffer.len() => return Ok(reply.to_vec()),
                Parsed::Whole(..) => {
                    return Err(remote(&self.label, "more was answered than was asked"));
                }
                Parsed::Bad => return Err(remote(&self.label, "the answer is no netstring")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netmaps::NetMaps;
    use diligence_maps::Opener;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    #[test]
    fn addresses_are_read() {
        let shown = |text: &str| Endpoint::parse(text).map(|endpoint| endpoint.to_string());
        assert_eq!(shown("local:/a").unwrap(), "unix:/a");
        assert_eq!(shown("inet:127.0.0.1:25").unwrap(), "inet:25@127.0.0.1");
        assert_eq!(shown("inet:25@[::1]").unwrap(), "inet:25@::1");
        assert!(shown("unix:a").is_err());
        assert!(shown("inet:host").is_err());
        assert!(shown("inet:x@host").is_err());
        assert!(shown("/a").is_err());
        assert_eq!(split_name("unix:/a:m"), ("unix:/a", "m"));
        assert_eq!(split_name("unix:/a"), ("unix:/a", "default"));
        assert_eq!(split_name("inet:1@h:m"), ("inet:1@h", "m"));
        assert_eq!(split_name("inet:h:1"), ("inet:h:1", "default"));
        assert_eq!(split_name("inet:h:1:m"), ("inet:h:1", "m"));
    }

    #[test]
    fn only_notfound_is_absence() {
        assert_eq!(answer("s", b"OK a b").unwrap().unwrap(), b"a b");
        assert_eq!(answer("s", b"OK ").unwrap().unwrap(), b"");
        assert_eq!(answer("s", b"NOTFOUND ").unwrap(), None);
        for trouble in ["TEMP x", "TIMEOUT x", "PERM x", "", "OKAY x", "notfound"] {
            assert!(answer("s", trouble.as_bytes()).is_err(), "{trouble}");
        }
    }

    #[test]
    fn a_server_is_asked_and_its_trouble_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let maps = NetMaps::new(NetOptions::default());
        let text = format!("socket -d1 unix:{}:users", path.display());
        let map = maps
            .open(&Definition::parse(&text).unwrap())
            .unwrap()
            .unwrap();
        assert!(map.find(b"k").is_err());
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 10];
            stream.read_exact(&mut request).unwrap();
            assert_eq!(&request, b"7:users k,");
            // In two pieces, and then the connection ends.
            stream.write_all(b"5:OK").unwrap();
            stream.write_all(b" va,").unwrap();
            drop(stream);
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"9:NOTFOUND ,").unwrap();
            // It answers no more, and does not hang up either.
            (stream, listener)
        });
        assert_eq!(map.find(b"k").unwrap().unwrap(), b"va");
        assert_eq!(map.find(b"k").unwrap(), None);
        let held = server.join().unwrap();
        let late = map.find(b"k");
        assert!(matches!(late, Err(MapError::Timeout { .. })), "{late:?}");
        drop(held);
    }
}
