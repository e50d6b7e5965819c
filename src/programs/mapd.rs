//! `mapd`: a socketmap server over the maps of the configuration, for programs that cannot read our files.
//!
//! Listens where `mapd.listen` says and answers for the maps of the table `[map]`, and for `aliases` and `access`, which
//! are those the MTA uses. One process, one thread a connection. A client may send many requests before it reads; they
//! are answered in order, all that came together with one write.
//!
//! Guarantees: a lookup that did not work is answered TEMP, never NOTFOUND, and never PERM, which Sendmail takes for
//! absence (I9). So is a map that is not served, and a value longer than a client takes. Keys are folded as the map says.
//! What is not a request ends the connection. The marks that writers leave in alias maps are not answered.
//!
//! Blocks: until SIGTERM, SIGINT or SIGHUP. Limits: [`REQUEST_BYTES_MAX`], [`VALUE_BYTES_MAX`], `mapd.max_connections`
//! (further clients are closed at once and wait for their own retry), `mapd.idle_timeout` for silent ones,
//! [`REQUEST_TIME_MAX`] from the first byte of a request to its last, [`WRITE_TIME_MAX`] for a client that does not read.
//! Source: socketmap as sendmail's op.me 5.12 and Postfix's socketmap_table(5) have it.

#![deny(clippy::indexing_slicing)]

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use diligence_maps::{Definition, HandleOptions, MapEvent, MapSet, OpenMap};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::wiring;
use crate::clock::{Clock, SystemClock};
use crate::config::Config;
use crate::maillog::{Maillog, QueueId, Severity};
use crate::netmaps::Endpoint;
use crate::netmaps::netstring::{self, Parsed};
use crate::route::map_safety;
use crate::status::ExitCode;

/// Longest request, in bytes. Source: Postfix sends at most 10,000.
pub const REQUEST_BYTES_MAX: usize = 16 << 10;
/// Longest value answered, in bytes. Source: Postfix takes replies of 100,000.
pub const VALUE_BYTES_MAX: usize = 99_000;
/// From the first byte of a request to its last.
pub const REQUEST_TIME_MAX: Duration = Duration::from_secs(30);
/// How long a client may not read what it asked for.
pub const WRITE_TIME_MAX: Duration = Duration::from_secs(30);
/// Bytes read at once.
const PIECE_BYTES: usize = 64 << 10;
/// Bytes of answers after which they are written, though more requests are there.
const ANSWERS_BYTES: usize = 256 << 10;
/// Who may talk to a socket in the file system: its owner and group.
const SOCKET_MODE: u32 = 0o660;
/// Keys of alias maps that are marks of their writers.
const MARKS: [&[u8]; 3] = [b"@", b"YP_LAST_MODIFIED", b"YP_MASTER_NAME"];

/// Serves the maps of the configuration until it is told to end. `ready` is called with the addresses when clients can
/// connect.
///
/// Blocks: until a signal.
#[must_use]
pub fn run(config: &Config, ready: &mut dyn FnMut(&[String])) -> ExitCode {
    let name = crate::config::host::HostName::find(&config.host);
    let maillog = wiring::open_maillog(config, &name);
    let complain = |text: &str| {
        eprintln!("mapd: {text}");
        maillog.write(Severity::Error, 0, QueueId::None, &format!("mapd: {text}"));
    };
    let maps = match open_maps(config, &maillog) {
        Ok(maps) => maps,
        Err(text) => {
            complain(&text);
            return ExitCode::Config;
        }
    };
    let mut listeners = Vec::new();
    for text in &config.mapd.listen {
        match Listener::bind(text) {
            Ok(listener) => listeners.push(listener),
            Err(error) => {
                complain(&format!("{text}: {error}"));
                return ExitCode::Unavailable;
            }
        }
    }
    let server = Arc::new(Server {
        maps,
        clock: SystemClock::new(),
        idle: config.mapd.idle_timeout,
        connections_max: usize::try_from(config.mapd.max_connections).unwrap_or(usize::MAX),
        connections: AtomicUsize::new(0),
        maillog: maillog.clone(),
    });
    let addresses: Vec<String> = listeners.iter().map(Listener::address).collect();
    ready(&addresses);
    match serve(&server, &listeners) {
        Ok(()) => ExitCode::Ok,
        Err(error) => {
            complain(&error.to_string());
            ExitCode::OsErr
        }
    }
}

/// The maps by the names that clients ask for.
fn open_maps(config: &Config, maillog: &Maillog) -> Result<HashMap<Vec<u8>, Arc<OpenMap>>, String> {
    let log = maillog.clone();
    let options = HandleOptions {
        report: Arc::new(move |event: &MapEvent| {
            if let MapEvent::Trouble { error, .. } = event {
                log.write(
                    Severity::Warning,
                    0,
                    QueueId::None,
                    &format!("mapd: {error}"),
                );
            }
        }),
        safety: map_safety(&config.route),
        ..HandleOptions::default()
    };
    let mut set = MapSet::new(
        wiring::map_opener(config, map_safety(&config.route)),
        options,
    );
    let route = &config.route;
    let refused = |text: &str, error: diligence_maps::SpecError| format!("{text}: {error}");
    let mut aliases = Vec::new();
    for (at, text) in route.alias_files.iter().enumerate() {
        let definition = Definition::parse_alias(text).map_err(|error| refused(text, error))?;
        // The names of Sendmail's own parts of its alias sequence.
        let name = format!("Alias{at}");
        set.define(name.clone(), definition);
        aliases.push(name);
    }
    if !aliases.is_empty() {
        let text = format!("sequence {}", aliases.join(" "));
        let definition = Definition::parse(&text).map_err(|error| refused(&text, error))?;
        set.define("aliases", definition);
    }
    let named = route.maps.iter().map(|(name, text)| (name.as_str(), text));
    let access = route.access_db.iter().map(|text| ("access", text));
    for (name, text) in access.chain(named) {
        let definition = Definition::parse(text).map_err(|error| refused(text, error))?;
        set.define(name, definition);
    }
    let names: Vec<String> = set.names().map(str::to_owned).collect();
    let mut maps = HashMap::new();
    for name in names {
        match set.open_named(&name) {
            Ok(Some(map)) => {
                maps.insert(name.into_bytes(), map);
            }
            Ok(None) => {}
            Err(error) => return Err(format!("map {name}: {error}")),
        }
    }
    Ok(maps)
}

/// A socket that clients connect to; one in the file system is removed at the end.
enum Listener {
    Unix(UnixListener, PathBuf),
    Inet(TcpListener),
}

impl Listener {
    fn bind(text: &str) -> io::Result<Self> {
        match Endpoint::parse(text).map_err(io::Error::other)? {
            Endpoint::Unix(path) => Self::bind_unix(&path),
            Endpoint::Inet { host, port } => {
                let listener = TcpListener::bind((host.as_str(), port))?;
                listener.set_nonblocking(true)?;
                Ok(Self::Inet(listener))
            }
        }
    }

    /// A socket left behind is replaced, one that somebody answers on is not. Nobody can connect before the mode is set,
    /// as the name is given by rename.
    fn bind_unix(path: &Path) -> io::Result<Self> {
        match UnixStream::connect(path) {
            Ok(_) => return Err(io::Error::other("another server answers there")),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error),
        }
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{}", std::process::id()));
        let temporary = PathBuf::from(temporary);
        let listener = UnixListener::bind(&temporary)?;
        let placed = fs::set_permissions(&temporary, fs::Permissions::from_mode(SOCKET_MODE))
            .and_then(|()| listener.set_nonblocking(true))
            .and_then(|()| fs::rename(&temporary, path));
        if let Err(error) = placed {
            let _ = fs::remove_file(&temporary);
            return Err(error);
        }
        Ok(Self::Unix(listener, path.to_path_buf()))
    }

    fn address(&self) -> String {
        match self {
            Self::Unix(_, path) => format!("unix:{}", path.display()),
            Self::Inet(listener) => match listener.local_addr() {
                Ok(address) => format!("inet:{}@{}", address.port(), address.ip()),
                Err(error) => error.to_string(),
            },
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(listener, _) => listener.as_fd(),
            Self::Inet(listener) => listener.as_fd(),
        }
    }

    fn accept(&self) -> io::Result<Connection> {
        match self {
            Self::Unix(listener, _) => listener.accept().map(|(it, _)| Connection::Unix(it)),
            Self::Inet(listener) => listener.accept().map(|(it, _)| Connection::Inet(it)),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Self::Unix(_, path) = self {
            let _ = fs::remove_file(path);
        }
    }
}

/// A client.
enum Connection {
    Unix(UnixStream),
    Inet(TcpStream),
}

impl Connection {
    fn prepare(&self) -> io::Result<()> {
        match self {
            Self::Unix(stream) => {
                stream.set_nonblocking(false)?;
                stream.set_write_timeout(Some(WRITE_TIME_MAX))
            }
            Self::Inet(stream) => {
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)?;
                stream.set_write_timeout(Some(WRITE_TIME_MAX))
            }
        }
    }

    fn read_within(&mut self, limit: Duration, piece: &mut [u8]) -> io::Result<usize> {
        let limit = Some(limit.max(Duration::from_millis(1)));
        match self {
            Self::Unix(stream) => {
                stream.set_read_timeout(limit)?;
                stream.read(piece)
            }
            Self::Inet(stream) => {
                stream.set_read_timeout(limit)?;
                stream.read(piece)
            }
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Unix(stream) => stream.write_all(bytes),
            Self::Inet(stream) => stream.write_all(bytes),
        }
    }
}

/// What all connections share.
struct Server {
    maps: HashMap<Vec<u8>, Arc<OpenMap>>,
    clock: SystemClock,
    idle: Duration,
    connections_max: usize,
    connections: AtomicUsize,
    maillog: Maillog,
}

/// One connection of those that are counted.
struct Place(Arc<Server>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Accepts connections until a signal asks for the end.
fn serve(server: &Arc<Server>, listeners: &[Listener]) -> io::Result<()> {
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        mask.add(signal);
    }
    mask.thread_block()?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC)?;
    loop {
        let mut fds = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        fds.extend(
            listeners
                .iter()
                .map(|listener| PollFd::new(listener.fd(), PollFlags::POLLIN)),
        );
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let is_ready: Vec<bool> = fds.iter().map(|fd| fd.any().unwrap_or(true)).collect();
        if is_ready.first() == Some(&true) {
            return Ok(());
        }
        for (listener, _) in listeners
            .iter()
            .zip(is_ready.iter().skip(1))
            .filter(|(_, is_ready)| **is_ready)
        {
            match listener.accept() {
                Ok(connection) => Server::take(server, connection),
                // The client went away, or the system has no descriptors left; both pass.
                Err(error) => server.note(&format!("accept: {error}")),
            }
        }
    }
}

impl Server {
    fn note(&self, text: &str) {
        let text = format!("mapd: {text}");
        self.maillog
            .write(Severity::Warning, 0, QueueId::None, &text);
    }

    /// Gives a connection a thread of its own, or closes it where there are too many.
    fn take(self: &Arc<Self>, connection: Connection) {
        let before = self.connections.fetch_add(1, Ordering::AcqRel);
        let place = Place(Arc::clone(self));
        if before >= self.connections_max {
            self.note("too many connections");
            return;
        }
        let spawned = std::thread::Builder::new()
            .name("client".into())
            .spawn(move || {
                let mut connection = connection;
                // The client sees the connection end, and that is all there is to be told.
                let _ = place.0.converse(&mut connection);
            });
        if let Err(error) = spawned {
            self.note(&format!("no thread for a client: {error}"));
        }
    }

    fn converse(&self, connection: &mut Connection) -> io::Result<()> {
        connection.prepare()?;
        let mut buffer: Vec<u8> = Vec::new();
        let mut answers: Vec<u8> = Vec::new();
        let mut piece = vec![0; PIECE_BYTES];
        let mut begun_at: Option<Duration> = None;
        loop {
            let limit = match begun_at {
                None => self.idle,
                Some(at) => {
                    let spent = self.clock.monotonic().saturating_sub(at);
                    REQUEST_TIME_MAX.saturating_sub(spent)
                }
            };
            let read = match connection.read_within(limit, &mut piece) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            buffer.extend_from_slice(piece.get(..read).unwrap_or_default());
            let mut used = 0;
            loop {
                let rest = buffer.get(used..).unwrap_or_default();
                match netstring::parse(rest, REQUEST_BYTES_MAX) {
                    Parsed::Whole(request, len) => {
                        self.answer(request, &mut answers);
                        used += len;
                        if answers.len() >= ANSWERS_BYTES {
                            connection.write_all(&answers)?;
                            answers.clear();
                        }
                    }
                    Parsed::Partial => break,
                    Parsed::Bad => {
                        connection.write_all(&answers)?;
                        self.note("a client sent what is no request");
                        return Ok(());
                    }
                }
            }
            buffer.drain(..used);
            if !answers.is_empty() {
                connection.write_all(&answers)?;
                answers.clear();
            }
            begun_at = match (buffer.is_empty(), begun_at) {
                (true, _) => None,
                (false, Some(at)) if used == 0 => Some(at),
                (false, _) => Some(self.clock.monotonic()),
            };
        }
    }

    /// Adds the answer to one request.
    fn answer(&self, request: &[u8], answers: &mut Vec<u8>) {
        let Some(blank) = request.iter().position(|&byte| byte == b' ') else {
            netstring::write(answers, &[b"TEMP a request is a map's name and a key"]);
            return;
        };
        let name = request.get(..blank).unwrap_or_default();
        let key = request.get(blank + 1..).unwrap_or_default();
        let Some(map) = self.maps.get(name) else {
            netstring::write(answers, &[b"TEMP no such map here"]);
            return;
        };
        if MARKS.contains(&key) {
            netstring::write(answers, &[b"NOTFOUND "]);
            return;
        }
        match map.ask(key) {
            Ok(Some(value)) if value.len() > VALUE_BYTES_MAX => {
                netstring::write(answers, &[b"TEMP the value is too long"]);
            }
            Ok(Some(value)) => netstring::write(answers, &[b"OK ", &value]),
            Ok(None) => netstring::write(answers, &[b"NOTFOUND "]),
            Err(error) => {
                let text = error.to_string();
                netstring::write(answers, &[b"TEMP ", text.as_bytes()]);
            }
        }
    }
}
