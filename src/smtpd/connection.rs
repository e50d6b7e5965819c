//! One connection: bytes between a stream and a [`Session`], and the session's questions answered from the spool and
//! the router.
//!
//! A message is begun in the spool at MAIL, its content is handed on in slices of the read buffer, and `250` is
//! written only after its commit ticket resolved (I1). Dropping the connection at any point drops the transaction, of
//! which nothing then remains. Replies of a pipeline leave in one write. Look-ups that may block run on the blocking
//! pool. While the spool's writer is behind, nothing is read (backpressure).
//!
//! Touches the stream, the spool and the log. Limits: [`READ_BYTES`], [`READ_BYTES_MAX`], [`DRAIN_BYTES_MAX`], the
//! session's own; each wait has a timeout (RFC 5321 4.5.3.2).

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::gate::Gate;
use super::session::{Session, Step};
use super::settings::{Peer, Settings};
use crate::config::access::AccessOptions;
use crate::dns::Resolver;
use crate::envelope::MessageId;
use crate::maillog::{Maillog, QueueId};
use crate::route::{Disposition, Router};
use crate::spool::{Spool, SpoolError, Transaction};
use crate::status::{Reply, Status};

/// Size of the read buffer while commands are read, in bytes: a small message fits into it.
const READ_BYTES: usize = 16 << 10;
/// Size of the read buffer for long messages, in bytes.
const READ_BYTES_MAX: usize = 64 << 10;
/// Free space in the buffer before more is read, in bytes; more than a session ever leaves unused.
const READ_BYTES_MIN: usize = 4 << 10;
/// What a client still sends after we closed is read up to here, so that it gets to see our last reply.
const DRAIN_BYTES_MAX: usize = 1 << 20;
/// How long that may take.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(2);
/// How long a client may take to read a reply (RFC 5321 has none; the peer's own timeouts are longer).
const WRITE_TIME_MAX: Duration = Duration::from_secs(300);

/// Delivers lines about a message's run from now until it ends, for VERB; asked for before the message is committed.
pub type Watch = Arc<dyn Fn(MessageId) -> mpsc::Receiver<String> + Send + Sync>;
/// Bytes free for new mail, for SIZE at MAIL. Must not block for long (statvfs).
pub type FreeBytes = Arc<dyn Fn() -> io::Result<u64> + Send + Sync>;

/// What sessions are served from; one for all connections.
pub struct Backend {
    /// Settings of sessions.
    pub settings: Arc<Settings>,
    /// Where messages go.
    pub spool: Spool,
    /// Who may send to whom.
    pub router: Arc<Router>,
    /// The log.
    pub maillog: Maillog,
    /// Where VERB's lines come from; without it VERB waits for nothing.
    pub watch: Option<Watch>,
    /// How much room there is; without it only the spool itself says that it is full.
    pub free_bytes: Option<FreeBytes>,
    /// Who may connect and send, as far as the router does not know.
    pub access: AccessOptions,
    /// Where names are looked up; without it, what DNS would decide passes.
    pub resolver: Option<Arc<dyn Resolver>>,
}

/// How far the server is in stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stopping {
    /// Not at all.
    No,
    /// Clients are sent away between commands; a message on its way may still arrive.
    Gently,
    /// Clients are sent away at once.
    Now,
}

/// Serves one client from greeting to close. Returns when the connection can be dropped.
///
/// `admission` is an answer that greets the client instead of service, such as 421 at a limit; otherwise the router
/// is asked.
pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    peer: Peer,
    admission: Option<Reply>,
    backend: &Backend,
    stopping: watch::Receiver<Stopping>,
) {
    let mut connection = Connection {
        stream,
        backend,
        session: Session::new(Arc::clone(&backend.settings), peer),
        gate: Gate::default(),
        buffer: Vec::with_capacity(READ_BYTES),
        transaction: None,
        has_new_content: false,
        stopping,
    };
    connection.run(admission).await;
}

struct Connection<'c, S> {
    stream: &'c mut S,
    backend: &'c Backend,
    session: Session,
    gate: Gate,
    /// What was read and not yet used.
    buffer: Vec<u8>,
    transaction: Option<Transaction>,
    /// Content was handed over since the writer was last asked for room.
    has_new_content: bool,
    stopping: watch::Receiver<Stopping>,
}

/// Why the session paused.
enum Paused {
    Read,
    Wait(Duration),
    Close,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<'_, S> {
    async fn run(&mut self, admission: Option<Reply>) {
        let idle = sleep(Duration::ZERO);
        let mut idle = pin!(idle);
        if !self.greet(admission, idle.as_mut()).await {
            return;
        }
        loop {
            let paused = self.advance().await;
            self.write_log();
            if self.flush().await.is_err() {
                self.session.input_ended();
                // What it would still say has nobody to read it.
                self.session.output().clear();
                self.write_log();
                return;
            }
            match paused {
                Paused::Read => self.read(idle.as_mut()).await,
                Paused::Wait(time) => sleep(time).await,
                Paused::Close => break,
            }
        }
        if !self.session.has_quit() {
            self.drain().await;
        }
    }

    /// Greets, after the pause if one is set. False if the client was gone before.
    async fn greet(&mut self, admission: Option<Reply>, idle: Pin<&mut Sleep>) -> bool {
        let admission = match admission {
            Some(reply) => Err(reply),
            None => self.gate.client(self.backend, self.session.peer()).await,
        };
        let client = self.session.client();
        let pause = match &admission {
            Ok(Disposition::Accept | Disposition::Quarantine(_)) => {
                self.gate.greet_pause(self.backend, client).await
            }
            // Who is refused, or whose mail is dropped, is not worth the wait.
            _ => Duration::ZERO,
        };
        if pause.is_zero() {
            self.session.greet(admission);
            return true;
        }
        let since = Instant::now();
        let mut idle = idle;
        idle.as_mut().reset(since + pause);
        tokio::select! {
            read = self.stream.read_buf(&mut self.buffer) => match read {
                Ok(count) if count > 0 => {
                    self.session.refuse_early_talker(since.elapsed());
                    true
                }
                _ => false,
            },
            () = idle => {
                self.session.greet(admission);
                true
            }
        }
    }

    /// Steps the session as far as the input in the buffer goes.
    async fn advance(&mut self) -> Paused {
        let Self {
            session,
            buffer,
            transaction,
            backend,
            gate,
            ..
        } = self;
        let mut input: &[u8] = buffer;
        let paused = loop {
            match session.step(&mut input) {
                Step::Read => break Paused::Read,
                Step::Pause(time) => break Paused::Wait(time),
                Step::Close => break Paused::Close,
                Step::Content(bytes) => {
                    let Some(open) = transaction else { continue };
                    self.has_new_content = true;
                    if let Err(error) = open.append_content(bytes) {
                        session.content_refused(&error);
                    }
                }
                Step::Abandon => *transaction = None,
                Step::CheckSender(path, client) => {
                    let verdict = gate.sender(backend, path, client).await;
                    session.sender_checked(verdict);
                }
                Step::Begin { id, declared_bytes } => {
                    let begun = begin(backend, id, declared_bytes).map(|begun| {
                        *transaction = Some(begun);
                    });
                    session.begun(begun);
                }
                Step::CheckRecipient(address, client) => {
                    let verdict = gate.recipient(backend, address, client).await;
                    session.recipient_checked(verdict);
                }
                Step::Verify(text) => {
                    let (router, text) = (Arc::clone(&backend.router), text.to_owned());
                    let verdict = blocking(move || router.verify(&text)).await;
                    session.verified(verdict);
                }
                Step::Expand(text) => {
                    let (router, text) = (Arc::clone(&backend.router), text.to_owned());
                    let targets = blocking(move || router.expand_shown(&text)).await;
                    session.expanded(targets);
                }
                Step::Commit(envelope) => {
                    // The `from=` line must stand before the queue's first `to=` line.
                    write_log(session, &backend.maillog);
                    let Some(open) = transaction.take() else {
                        session.committed(Err(SpoolError::Closed));
                        continue;
                    };
                    let lines = match &backend.watch {
                        Some(watch) if session.is_verbose() => Some(watch(open.id())),
                        _ => None,
                    };
                    let result = open.commit(*envelope).await;
                    if let (Ok(_), Some(lines)) = (&result, lines) {
                        show_run(session, self.stream, lines).await;
                    }
                    session.committed(result.map(|_| ()));
                }
            }
        };
        // What is left is the beginning of a line, or a pipeline held up by a pause.
        let left = input.len();
        let used = buffer.len() - left;
        buffer.copy_within(used.., 0);
        buffer.truncate(left);
        paused
    }

    /// Reads more, or tells the session why there is none.
    async fn read(&mut self, mut idle: Pin<&mut Sleep>) {
        if std::mem::take(&mut self.has_new_content)
            && let Some(open) = &self.transaction
        {
            open.room().await;
        }
        let is_receiving = self.session.is_receiving();
        let least = if is_receiving {
            Stopping::Now
        } else {
            Stopping::Gently
        };
        if *self.stopping.borrow() >= least {
            return self.session.shut_down();
        }
        let timeouts = &self.backend.settings.timeouts;
        let wait = if is_receiving {
            timeouts.data_block
        } else {
            timeouts.command
        };
        if self.buffer.capacity() - self.buffer.len() < READ_BYTES_MIN {
            let more = if is_receiving {
                READ_BYTES_MAX
            } else {
                READ_BYTES
            };
            self.buffer.reserve(more);
        }
        idle.as_mut().reset(Instant::now() + wait);
        let stop = self.stopping.wait_for(|stopping| *stopping >= least);
        let room = self.buffer.capacity() - self.buffer.len();
        tokio::select! {
            biased;
            read = self.stream.read_buf(&mut self.buffer) => match read {
                Ok(0) | Err(_) => self.session.input_ended(),
                // A message that comes in faster than it is read gets a larger buffer.
                Ok(count) if count == room && is_receiving && self.buffer.capacity() < READ_BYTES_MAX => {
                    self.buffer.reserve(READ_BYTES_MAX - self.buffer.len());
                }
                Ok(_) => {}
            },
            _ = stop => self.session.shut_down(),
            () = idle => self.session.timed_out(),
        }
    }

    async fn flush(&mut self) -> io::Result<()> {
        flush(&mut self.session, self.stream).await
    }

    fn write_log(&mut self) {
        write_log(&mut self.session, &self.backend.maillog);
    }

    /// Closes our side and reads what is still coming: a socket closed with bytes unread is reset, and the client
    /// would lose the reply that tells it why.
    async fn drain(&mut self) {
        if self.stream.shutdown().await.is_err() {
            return;
        }
        let drain = async {
            let mut count = 0;
            while count < DRAIN_BYTES_MAX {
                self.buffer.clear();
                match self.stream.read_buf(&mut self.buffer).await {
                    Ok(0) | Err(_) => return,
                    Ok(read) => count += read,
                }
            }
        };
        // However it ends, the connection does.
        let _ = timeout(DRAIN_TIME_MAX, drain).await;
    }
}

fn begin(backend: &Backend, id: MessageId, declared_bytes: u64) -> Result<Transaction, SpoolError> {
    if declared_bytes > 0
        && let Some(free) = &backend.free_bytes
    {
        // If the file system does not answer, the spool's own limits still hold.
        let free = free().unwrap_or(u64::MAX);
        if declared_bytes > free {
            return Err(SpoolError::Full(format!(
                "{declared_bytes} bytes announced, {free} free"
            )));
        }
    }
    backend.spool.begin_as(id)
}

/// Runs a look-up that may block. If its thread is lost, that is our trouble, not the client's (I9).
async fn blocking<T: Send + 'static>(
    look_up: impl FnOnce() -> Result<T, Reply> + Send + 'static,
) -> Result<T, Reply> {
    match tokio::task::spawn_blocking(look_up).await {
        Ok(verdict) => verdict,
        Err(_) => Err(Reply::new(
            451,
            Status::new(4, 3, 0),
            "Temporary system failure. Please try again later.",
        )),
    }
}

/// Sends the lines of a message's run as they come, until it ends or the client has waited long enough. The message
/// is durable already: whatever happens here, it is delivered.
async fn show_run<S: AsyncWrite + Unpin>(
    session: &mut Session,
    stream: &mut S,
    mut lines: mpsc::Receiver<String>,
) {
    let limit = sleep(session.verbose_wait());
    let mut limit = pin!(limit);
    loop {
        tokio::select! {
            line = lines.recv() => match line {
                Some(line) => session.verbose_line(&line),
                None => return,
            },
            () = &mut limit => return,
        }
        if flush(session, stream).await.is_err() {
            return;
        }
    }
}

async fn flush<S: AsyncWrite + Unpin>(session: &mut Session, stream: &mut S) -> io::Result<()> {
    let output = session.output();
    if output.is_empty() {
        return Ok(());
    }
    let write = async {
        stream.write_all(output).await?;
        stream.flush().await
    };
    match timeout(WRITE_TIME_MAX, write).await {
        Ok(result) => result?,
        Err(_) => return Err(io::ErrorKind::TimedOut.into()),
    }
    output.clear();
    Ok(())
}

fn write_log(session: &mut Session, maillog: &Maillog) {
    for line in session.take_log() {
        let id = line.id.map_or(QueueId::Omitted, QueueId::Known);
        maillog.write(line.severity, line.level, id, &line.text);
    }
}
