//! The owner's side of the control socket.
//!
//! Each connection carries one request. Who may ask what is decided by the peer's user id, which the kernel tells:
//! anybody may list (unless `restrictmailq`) and ask for counters; queue runs, removals and stops are for root and for
//! the user the daemon runs as. A listing is made on a thread of its own from ids taken at its start, holds no lock
//! while it is sent, and gives up on a reader that stalls, so that no reader can hold up the daemon.
//!
//! Sendmail's own control words (`help status mstat shutdown restart`, a line each) are answered on the same socket;
//! no frame's length looks like one.
//!
//! Limits: [`CONNECTIONS_MAX`], [`REQUEST_TIMEOUT`], [`WRITE_TIMEOUT`], [`WATCH_TIMEOUT`],
//! [`REQUEST_BYTES_MAX`](super::REQUEST_BYTES_MAX). Source: Sendmail's control.c for the words.

use std::collections::HashSet;
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use super::change::Change;
use super::listing::Listed;
use super::selection::{Kind, Selection};
use super::{Frame, REQUEST_BYTES_MAX, Request, short_socket_path};
use crate::clock::Clock;
use crate::config::{Privacy, PrivacyOptions};
use crate::envelope::MessageId;
use crate::maillog::Maillog;
use crate::queue::QueueHandle;
use crate::spool::{Spool, SpoolError};
use crate::status::ExitCode;

/// The most connections served at once; others are told to come back.
pub const CONNECTIONS_MAX: usize = 16;
/// How long a client may take to say what it wants.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may leave an answer unread.
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long one message's run is watched.
pub const WATCH_TIMEOUT: Duration = Duration::from_secs(3600);
/// How many messages are changed at once.
const CHANGES_MAX: usize = 256;
/// How much of a listing is written at once, in bytes.
const LISTING_BYTES: usize = 128 * 1024;
/// What is read of a refused request, in bytes, and for how long.
const DRAIN_BYTES_MAX: u64 = 1 << 20;
const DRAIN_TIME_MAX: Duration = Duration::from_secs(2);
/// The longest line of Sendmail's text dialect, in bytes.
const WORD_BYTES_MAX: usize = 128;
/// How long to wait when connections cannot be accepted, as when descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What an operator told the daemon to do with itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Stop cleanly.
    Shutdown,
    /// Stop cleanly and start anew.
    Restart,
}

/// What the requests are about.
pub struct Owner {
    /// The spool.
    pub spool: Spool,
    /// What works on it.
    pub queue: Arc<QueueHandle>,
    /// Its directory, as shown.
    pub directory: PathBuf,
    /// What "not due yet" is measured by.
    pub clock: Arc<dyn Clock>,
    /// Who may do what.
    pub privacy: PrivacyOptions,
    /// What is told of changes.
    pub maillog: Maillog,
    /// Where orders go. One that finds no room is already under way.
    pub orders: mpsc::Sender<Order>,
}

/// A bound control socket; its file is removed when this is dropped.
pub struct ControlServer {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl ControlServer {
    /// Binds the socket. The caller owns the spool, so that whatever socket has that name was left by a dead owner.
    /// Any user may connect; what they may ask is checked per verb. Blocks: disk.
    ///
    /// # Errors
    /// The system's, or something other than a socket has that name.
    pub fn bind(path: &Path) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        match std::fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path)?,
            Ok(_) => return Err(io::Error::from(io::ErrorKind::AlreadyExists)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let (short, _directory) = short_socket_path(path)?;
        let listener = UnixListener::bind(&short)?;
        let bound = Self {
            listener,
            path: path.to_owned(),
        };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
        Ok(bound)
    }

    /// Serves connections until the future is dropped; requests under way then end with it.
    pub async fn serve(self, owner: Arc<Owner>) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut conversations = tokio::task::JoinSet::new();
        loop {
            let Ok((stream, _)) = self.listener.accept().await else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            while conversations.try_join_next().is_some() {}
            match Arc::clone(&places).try_acquire_owned() {
                Ok(place) => {
                    let owner = Arc::clone(&owner);
                    conversations.spawn(async move {
                        // What goes wrong with one client concerns no other, and there is nobody left to tell.
                        let _ = converse(stream, owner).await;
                        drop(place);
                    });
                }
                Err(_) => refuse_at_once(&stream),
            }
        }
    }
}

/// Tells a client that all places are taken, without waiting for it.
fn refuse_at_once(stream: &UnixStream) {
    let mut bytes = Vec::new();
    Frame::error(ExitCode::TempFail, "too many control connections").encode(&mut bytes);
    let _ = stream.try_write(&bytes);
}

async fn converse(mut stream: UnixStream, owner: Arc<Owner>) -> io::Result<()> {
    let peer = Peer {
        uid: stream.peer_cred()?.uid(),
        own_uid: rustix::process::geteuid().as_raw(),
    };
    let asked = match timeout(REQUEST_TIMEOUT, read_request(&mut stream)).await {
        Ok(asked) => asked?,
        Err(_) => return Ok(()),
    };
    let request = match asked {
        Asked::Request(request) => request,
        Asked::Word(word) => {
            let text = answer_word(&word, peer, &owner);
            return write_all(&mut stream, text.as_bytes()).await;
        }
        Asked::Nonsense => {
            send(&mut stream, &[Frame::error(ExitCode::Usage, "bad request")]).await?;
            return drain(&mut stream).await;
        }
    };
    if let Err(text) = peer.may(&request, owner.privacy) {
        return send(&mut stream, &[Frame::error(ExitCode::NoPerm, text)]).await;
    }
    match request {
        Request::List(selection) => {
            let stream = stream.into_std()?;
            let sent =
                tokio::task::spawn_blocking(move || send_listing(stream, &owner, &selection));
            sent.await.map_err(io::Error::other)?
        }
        Request::Run {
            selection,
            is_watched,
        } => run(&mut stream, &owner, selection, is_watched).await,
        Request::Change { change, selection } => {
            make_change(&mut stream, &owner, selection, change, peer).await
        }
        Request::Status => {
            let mut frames: Vec<Frame> = counters(&owner.spool)
                .into_iter()
                .map(Frame::Text)
                .collect();
            frames.push(Frame::End);
            send(&mut stream, &frames).await
        }
        Request::Shutdown => {
            let _ = owner.orders.try_send(Order::Shutdown);
            send(&mut stream, &[Frame::End]).await
        }
        Request::Restart => {
            let _ = owner.orders.try_send(Order::Restart);
            send(&mut stream, &[Frame::End]).await
        }
    }
}

/// Who is at the other end.
#[derive(Clone, Copy)]
struct Peer {
    uid: u32,
    own_uid: u32,
}

impl Peer {
    const fn is_operator(self) -> bool {
        self.uid == 0 || self.uid == self.own_uid
    }

    /// Whether the peer may ask this; the error is what it is told. Texts are Sendmail's.
    fn may(self, request: &Request, privacy: PrivacyOptions) -> Result<(), &'static str> {
        let (is_open, refusal) = match request {
            Request::List(_) => (
                !privacy.has(Privacy::RestrictMailq),
                "You are not permitted to see the queue",
            ),
            Request::Run { .. } => (false, "You are not permitted to process the queue"),
            Request::Status => (true, ""),
            Request::Change { .. } | Request::Shutdown | Request::Restart => {
                (false, "Permission denied (real uid not trusted)")
            }
        };
        if is_open || self.is_operator() {
            Ok(())
        } else {
            Err(refusal)
        }
    }
}

enum Asked {
    Request(Request),
    Word(String),
    Nonsense,
}

async fn read_request(stream: &mut UnixStream) -> io::Result<Asked> {
    let mut head = [0; 4];
    stream.read_exact(&mut head).await?;
    let length = usize::try_from(u32::from_le_bytes(head)).unwrap_or(usize::MAX);
    if head.iter().all(|byte| byte.is_ascii() && *byte >= b'\n') {
        return read_word(stream, head).await;
    }
    if !(1..=REQUEST_BYTES_MAX).contains(&length) {
        return Ok(Asked::Nonsense);
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok(match bytes.split_first() {
        Some((b'R', payload)) => Request::decode(payload).map_or(Asked::Nonsense, Asked::Request),
        _ => Asked::Nonsense,
    })
}

/// Reads what a client still has to say, so that closing does not take our answer away from it.
async fn drain(stream: &mut UnixStream) -> io::Result<()> {
    stream.shutdown().await?;
    let mut rest = stream.take(DRAIN_BYTES_MAX);
    let mut nowhere = tokio::io::sink();
    let drained = tokio::io::copy(&mut rest, &mut nowhere);
    match timeout(DRAIN_TIME_MAX, drained).await {
        Ok(drained) => drained.map(|_| ()),
        Err(_) => Ok(()),
    }
}

/// A line of Sendmail's dialect that begins with these bytes.
async fn read_word(stream: &mut UnixStream, head: [u8; 4]) -> io::Result<Asked> {
    let mut line = head.to_vec();
    while !line.contains(&b'\n') && line.len() < WORD_BYTES_MAX {
        match stream.read_buf(&mut line).await? {
            0 => break,
            _ => continue,
        }
    }
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    Ok(std::str::from_utf8(line).map_or(Asked::Nonsense, |line| {
        Asked::Word(line.trim_end().chars().take(WORD_BYTES_MAX).collect())
    }))
}

/// Sendmail's control words. Sources: control.c; transcript of 8.17.1.
fn answer_word(word: &str, peer: Peer, owner: &Owner) -> String {
    let order = |order| {
        if peer.is_operator() {
            let _ = owner.orders.try_send(order);
            "OK\r\n".to_owned()
        } else {
            "Permission denied\r\n".to_owned()
        }
    };
    match word.to_ascii_lowercase().as_str() {
        "help" => "Help for smcontrol:\r\n\
            help\t\tThis message.\r\n\
            restart\t\tRestart sendmail.\r\n\
            shutdown\tShutdown sendmail.\r\n\
            status\t\tShow sendmail status.\r\n\
            mstat\t\tShow sendmail status (machine readable format).\r\n\
            End of HELP info\r\n"
            .to_owned(),
        "shutdown" => order(Order::Shutdown),
        "restart" => order(Order::Restart),
        "status" => {
            let mut text = counters(&owner.spool).join("\r\n");
            text.push_str("\r\n");
            text
        }
        "mstat" => format!(
            "Q:{}:{}\r\nP:{} accepting connections\r\n",
            owner.directory.display(),
            owner.spool.stats().messages,
            std::process::id()
        ),
        _ => format!("Bad command ({word})\r\n"),
    }
}

fn counters(spool: &Spool) -> Vec<String> {
    let stats = spool.stats();
    vec![
        format!("messages {}", stats.messages),
        format!("batches {}", stats.batches),
        format!("syncs {}", stats.syncs),
        format!("bytes_written {}", stats.bytes_written),
        format!("poisoned {}", u8::from(spool.is_poisoned())),
    ]
}

/// The messages that are meant, in the listing's order, with what is known of each. Blocks: disk.
fn selected(
    owner: &Owner,
    selection: &Selection,
    mut take: impl FnMut(Listed) -> io::Result<()>,
) -> io::Result<()> {
    let now_unix_ms = owner.clock.unix_ms();
    for id in owner.spool.ids() {
        let listed = match owner.spool.message(id) {
            Ok(message) => Listed::of(&message, now_unix_ms),
            // It was delivered since the ids were taken.
            Err(SpoolError::NotFound(_)) => continue,
            Err(error) => Listed::damaged(id, error.to_string()),
        };
        if selection.holds_for(&listed) {
            take(listed)?;
        }
    }
    Ok(())
}

/// Sends a listing from a thread that may block.
fn send_listing(stream: StdUnixStream, owner: &Owner, selection: &Selection) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(WRITE_TIMEOUT))?;
    let mut bytes = Vec::with_capacity(2 * LISTING_BYTES);
    Frame::Directory(owner.directory.clone()).encode(&mut bytes);
    selected(owner, selection, |listed| {
        Frame::Message(Box::new(listed)).encode(&mut bytes);
        if bytes.len() >= LISTING_BYTES {
            (&stream).write_all(&bytes)?;
            bytes.clear();
        }
        Ok(())
    })?;
    Frame::End.encode(&mut bytes);
    (&stream).write_all(&bytes)
}

/// Ids of the messages that are meant, in the order of a queue run.
async fn selected_ids(
    owner: &Arc<Owner>,
    selection: Selection,
    is_meant: impl Fn(&Listed) -> bool + Send + 'static,
) -> io::Result<Vec<MessageId>> {
    let owner = Arc::clone(owner);
    tokio::task::spawn_blocking(move || {
        let mut found = Vec::new();
        selected(&owner, &selection, |listed| {
            if !listed.is_damaged && is_meant(&listed) {
                found.push((listed.priority, listed.id));
            }
            Ok(())
        })?;
        found.sort_unstable();
        Ok(found.into_iter().map(|(_, id)| id).collect())
    })
    .await
    .map_err(io::Error::other)?
}

/// Makes messages due, and shows their runs if asked to.
async fn run(
    stream: &mut UnixStream,
    owner: &Arc<Owner>,
    selection: Selection,
    is_watched: bool,
) -> io::Result<()> {
    if owner.spool.is_poisoned() {
        // Nothing is attempted any more; who watched would wait for the restart.
        let text = "the journal is poisoned: nothing is attempted until a restart";
        return send(stream, &[Frame::error(ExitCode::TempFail, text)]).await;
    }
    let kind = selection.kind;
    if !is_watched && kind == Kind::Normal && selection.is_all() {
        owner.queue.run_now(|_| true);
        return send(stream, &[Frame::End]).await;
    }
    let ids = selected_ids(owner, selection, |_| true).await?;
    if !is_watched {
        run_some(owner, kind, &ids);
        return send(stream, &[Frame::End]).await;
    }
    let count = ids.len();
    for (at, id) in ids.into_iter().enumerate() {
        let heading = format!(
            "Running {}/{id} (sequence {} of {count})",
            owner.directory.display(),
            at + 1
        );
        send(stream, &[Frame::Text(String::new()), Frame::Text(heading)]).await?;
        let mut lines = owner.queue.watch(id);
        if run_some(owner, kind, &[id]) == 0 {
            // Gone since, or being run already: then its lines still come.
            lines.close();
        }
        let shown = timeout(WATCH_TIMEOUT, async {
            while let Some(line) = lines.recv().await {
                send(stream, &[Frame::Text(line)]).await?;
            }
            Ok::<(), io::Error>(())
        });
        match shown.await {
            Ok(sent) => sent?,
            Err(_) => {
                let late = Frame::Text(format!("{id}: still running"));
                send(stream, &[late]).await?;
            }
        }
    }
    send(stream, &[Frame::End]).await
}

/// Has these messages tried now; says how many.
fn run_some(owner: &Owner, kind: Kind, ids: &[MessageId]) -> u64 {
    match kind {
        Kind::Normal => {
            let ids: HashSet<MessageId> = ids.iter().copied().collect();
            owner.queue.run_now(|id| ids.contains(&id))
        }
        Kind::Quarantined => owner.queue.run_held_now(ids),
        Kind::Lost => 0,
    }
}

/// Changes messages and says for which of them the change is durable.
async fn make_change(
    stream: &mut UnixStream,
    owner: &Arc<Owner>,
    selection: Selection,
    change: Change,
    peer: Peer,
) -> io::Result<()> {
    let by = format!("uid {}", peer.uid);
    let which = change.clone();
    let ids = selected_ids(owner, selection, move |message| which.is_due(message)).await?;
    for some in ids.chunks(CHANGES_MAX) {
        // Handed over together, so that they share a sync.
        let begun: Vec<_> = some
            .iter()
            .map(|id| (*id, change.begin(&owner.spool, *id, &by)))
            .collect();
        let mut answer = Vec::new();
        let mut failed = None;
        // All are waited for and logged before the client is told: one that has gone or a failure leaves none out.
        for (id, ticket) in begun {
            let changed = match ticket {
                Ok(ticket) => ticket.await.map(|_| ()),
                Err(error) => Err(error),
            };
            match changed {
                Ok(()) => {
                    change.log(&owner.maillog, id);
                    answer.push(Frame::Text(format!("{id} {}", change.done())));
                }
                Err(SpoolError::NotFound(_)) => {}
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        let is_over = failed.is_some();
        answer.extend(failed.map(|error| Frame::error(ExitCode::TempFail, error.to_string())));
        send(stream, &answer).await?;
        if is_over {
            return Ok(());
        }
    }
    send(stream, &[Frame::End]).await
}

async fn send(stream: &mut UnixStream, frames: &[Frame]) -> io::Result<()> {
    let mut bytes = Vec::new();
    for frame in frames {
        frame.encode(&mut bytes);
    }
    write_all(stream, &bytes).await
}

async fn write_all(stream: &mut UnixStream, bytes: &[u8]) -> io::Result<()> {
    match timeout(WRITE_TIMEOUT, stream.write_all(bytes)).await {
        Ok(written) => written,
        Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut)),
    }
}
