//! The listeners: sockets, connection limits, and the end of it all.
//!
//! Clients are accepted as fast as they come and greeted at once; each is a task of its own. A client over a limit is
//! told 421 and closed, without touching the spool. When the server stops it no longer listens, sends clients away
//! between commands, and gives messages on their way [`GRACE`] to arrive.
//!
//! Touches the network. Limits: [`ConnectionLimits`], [`BACKLOG_MIN`].
//! Sources: RFC 5321 3.8 (421), Sendmail's DaemonPortOptions, MaxDaemonChildren, ConnectionRateThrottle.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::connection::{self, Backend, Stopping};
use super::gate::ClientRates;
use super::names::ClientNames;
use super::settings::{ClientLoad, Peer};
use crate::config::DaemonPort;
use crate::config::access::Control;
use crate::maillog::{QueueId, Severity};
use crate::status::{Reply, Status};

/// Connections the kernel holds for us at least; a short listen queue hangs clients when many come at once.
pub const BACKLOG_MIN: u32 = 1024;
/// How long messages on their way may take when the server stops.
pub const GRACE: Duration = Duration::from_secs(10);
/// How long sessions may take to say good-bye after that.
const FAREWELL: Duration = Duration::from_secs(2);
/// Clients over the limit that are being told so at once, by each listener.
const REFUSALS_MAX: usize = 1000;
/// Pause after accept failed for want of descriptors or memory.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A listener to be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// The daemon's name, `MTA`.
    pub name: String,
    /// Where; port 0 for one that is free.
    pub address: SocketAddr,
    /// Connections the kernel may hold; at least [`BACKLOG_MIN`].
    pub backlog: u32,
}

impl From<&DaemonPort> for Listen {
    fn from(port: &DaemonPort) -> Self {
        Self {
            name: port.name.clone(),
            address: port.socket_address(),
            backlog: port.listen_queue.unwrap_or(BACKLOG_MIN),
        }
    }
}

/// Connections at once, and how fast they may come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Of all clients together.
    pub total: usize,
    /// Of one address; 0 for no limit but the total.
    pub per_client: usize,
    /// In a second, by each listener; 0 for no limit. Those too many wait in the listen queue.
    pub per_second: u32,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            total: 1000,
            per_client: 0,
            per_second: 0,
        }
    }
}

/// Why there is no listener.
#[derive(Debug, thiserror::Error)]
#[error("daemon {name}: cannot bind {address}: {source}")]
pub struct ServerError {
    /// The daemon's name.
    pub name: String,
    /// Where it was to listen.
    pub address: SocketAddr,
    /// The system's error.
    pub source: io::Error,
}

/// Open listeners that serve nobody yet.
pub struct Server {
    listeners: Vec<(Arc<str>, std::net::TcpListener)>,
}

impl Server {
    /// Opens the listeners, all or none. Blocks: never for long. Needs no runtime.
    ///
    /// # Errors
    /// [`ServerError`] for the first that can't be had.
    pub fn bind(listen: &[Listen]) -> Result<Self, ServerError> {
        let listeners = listen
            .iter()
            .map(|one| {
                let listener = open(one).map_err(|source| ServerError {
                    name: one.name.clone(),
                    address: one.address,
                    source,
                })?;
                Ok((Arc::from(one.name.as_str()), listener))
            })
            .collect::<Result<_, ServerError>>()?;
        Ok(Self { listeners })
    }

    /// The addresses listened on, in the order given, with the ports that were found for 0.
    #[must_use]
    pub fn local_addresses(&self) -> Vec<SocketAddr> {
        self.listeners
            .iter()
            .filter_map(|(_, listener)| listener.local_addr().ok())
            .collect()
    }

    /// Serves until `stop` resolves, then ends as the module says. Must run on a runtime with time and network.
    ///
    /// # Errors
    /// The system's, if a listener can't be handed to the runtime; nobody has been served then.
    pub async fn serve(
        self,
        backend: Arc<Backend>,
        names: Arc<ClientNames>,
        limits: ConnectionLimits,
        stop: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let mut listeners = Vec::with_capacity(self.listeners.len());
        for (name, listener) in self.listeners {
            listeners.push((name, TcpListener::from_std(listener)?));
        }
        let (tell, stopping) = watch::channel(Stopping::No);
        let (is_done, mut done) = tokio::sync::mpsc::channel::<()>(1);
        let doors: Vec<_> = listeners
            .into_iter()
            .map(|(name, listener)| {
                let door = Door {
                    name,
                    backend: Arc::clone(&backend),
                    names: Arc::clone(&names),
                    limits: limits.clone(),
                    stopping: stopping.clone(),
                    is_done: is_done.clone(),
                };
                (door, listener)
            })
            .collect();
        drop(is_done);
        let open = Arc::new(Open::default());
        for (door, listener) in doors {
            tokio::spawn(door.accept_all(listener, Arc::clone(&open)));
        }
        stop.await;
        // Nobody ever sends: the channel closes when the last session has gone.
        tell.send_replace(Stopping::Gently);
        if timeout(GRACE, done.recv()).await.is_err() {
            tell.send_replace(Stopping::Now);
            if timeout(FAREWELL, done.recv()).await.is_err() {
                let text = "SMTP sessions cut off at shutdown";
                backend
                    .maillog
                    .write(Severity::Notice, 1, QueueId::Omitted, text);
            }
        }
        Ok(())
    }
}

fn open(listen: &Listen) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(
        Domain::for_address(listen.address),
        Type::STREAM.nonblocking().cloexec(),
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if listen.address.is_ipv6() {
        // IPv4 has a listener of its own; one that took both would keep it from binding.
        socket.set_only_v6(true)?;
    }
    socket.bind(&listen.address.into())?;
    let backlog = listen.backlog.max(BACKLOG_MIN);
    socket.listen(i32::try_from(backlog).unwrap_or(i32::MAX))?;
    Ok(socket.into())
}

/// Connections that are open, in all and by client.
#[derive(Default)]
struct Open {
    counts: Mutex<Counts>,
    rates: ClientRates,
}

#[derive(Default)]
struct Counts {
    total: usize,
    by_client: HashMap<IpAddr, usize>,
}

/// A connection that counts until it is dropped.
struct Counted {
    open: Arc<Open>,
    client: IpAddr,
    /// Connections of this client at once, when it came.
    of_client: usize,
}

impl Open {
    /// Counts a connection, unless a limit is reached.
    fn admit(self: &Arc<Self>, client: IpAddr, limits: &ConnectionLimits) -> Option<Counted> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let of_client = counts.by_client.get(&client).copied().unwrap_or(0);
        if counts.total >= limits.total || (limits.per_client > 0 && of_client >= limits.per_client)
        {
            return None;
        }
        counts.total += 1;
        counts.by_client.insert(client, of_client + 1);
        Some(Counted {
            open: Arc::clone(self),
            client,
            of_client: of_client + 1,
        })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self
            .open
            .counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        counts.total = counts.total.saturating_sub(1);
        if let Entry::Occupied(mut of_client) = counts.by_client.entry(self.client) {
            *of_client.get_mut() = of_client.get().saturating_sub(1);
            if *of_client.get() == 0 {
                of_client.remove();
            }
        }
    }
}

/// One listener's part of the server.
struct Door {
    name: Arc<str>,
    backend: Arc<Backend>,
    names: Arc<ClientNames>,
    limits: ConnectionLimits,
    stopping: watch::Receiver<Stopping>,
    is_done: tokio::sync::mpsc::Sender<()>,
}

impl Door {
    async fn accept_all(self, listener: TcpListener, open: Arc<Open>) {
        let door = Arc::new(self);
        let mut stopping = door.stopping.clone();
        let mut second = (Instant::now(), 0_u32);
        loop {
            door.wait_for_turn(&mut second).await;
            let accepted = tokio::select! {
                biased;
                _ = stopping.wait_for(|stopping| *stopping > Stopping::No) => return,
                accepted = listener.accept() => accepted,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    door.tell_accept_error(&error).await;
                    continue;
                }
            };
            let client = address.ip().to_canonical();
            let counted = open.admit(client, &door.limits);
            // Even saying no has a limit: beyond it clients are closed without a word. Each task has one handle.
            if counted.is_none() && Arc::strong_count(&door) > door.limits.total + REFUSALS_MAX {
                drop(stream);
                continue;
            }
            let door = Arc::clone(&door);
            tokio::spawn(async move { door.serve(stream, client, counted).await });
        }
    }

    async fn wait_for_turn(&self, second: &mut (Instant, u32)) {
        if self.limits.per_second == 0 {
            return;
        }
        let (start, count) = *second;
        let end = start + Duration::from_secs(1);
        if Instant::now() >= end {
            *second = (Instant::now(), 1);
        } else if count < self.limits.per_second {
            second.1 += 1;
        } else {
            sleep_until(end).await;
            *second = (Instant::now(), 1);
        }
    }

    async fn tell_accept_error(&self, error: &io::Error) {
        // A client that left before it was accepted is no trouble of ours.
        if error.kind() == io::ErrorKind::ConnectionAborted {
            return;
        }
        let text = format!("daemon {}: accept: {error}", self.name);
        self.backend
            .maillog
            .write(Severity::Critical, 0, QueueId::None, &text);
        sleep(ACCEPT_RETRY).await;
    }

    async fn serve(&self, mut stream: TcpStream, client: IpAddr, counted: Option<Counted>) {
        // Replies are small and waited for: Nagle's algorithm would hold them back.
        // A socket that refuses the option still works.
        let _ = SockRef::from(&stream).set_tcp_nodelay(true);
        let _is_done = self.is_done.clone();
        let admission = counted
            .is_none()
            .then(|| Reply::new(421, Status::new(4, 3, 2), "Too many open connections."));
        let name = if admission.is_some() {
            super::names::ClientName::default()
        } else {
            self.names.find(client).await
        };
        let mut peer = Peer::remote(client, name.name, name.is_forged);
        peer.client.name_lookup = name.lookup;
        peer.daemon = Arc::clone(&self.name);
        if let Some(counted) = &counted {
            // Nobody asks for it otherwise.
            let rate = match self.backend.access.ratecontrol {
                Control::Off => 0,
                Control::On | Control::Terminate => {
                    let now = self.backend.settings.clock.monotonic();
                    counted.open.rates.count(client, now)
                }
            };
            peer.load = ClientLoad {
                rate,
                open: u32::try_from(counted.of_client).unwrap_or(u32::MAX),
            };
        }
        connection::serve(
            &mut stream,
            peer,
            admission,
            &self.backend,
            self.stopping.clone(),
        )
        .await;
        drop(counted);
    }
}
