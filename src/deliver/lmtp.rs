//! LMTP (L2): a message handed to a local mail store, which answers for each recipient.
//!
//! The store listens on a unix socket or a TCP port, or is a program that speaks LMTP on its standard input and output. A
//! dialogue: LHLO, MAIL, RCPT for each, DATA, and a reply for each recipient that was taken. Connections to servers are
//! kept a short while for the next message; one that turns out to be dead before the final dot is replaced, once, and
//! nothing is lost. Guarantees: delivered means that the server took responsibility for that recipient; a connection that
//! ends before defers those it did not answer for. A refusal for good of the server's greeting or LHLO defers too: it is
//! the operator's to mend. Content that can't be read whole is never followed by the final dot.
//! Blocks: never. Limits: the time limit given, [`STEP_TIME_MAX`], [`IDLE_MAX`], [`IDLE_TIME_MAX`], [`MESSAGES_MAX`], those
//! of [`super::reply`]. Source: RFC 2033; Sendmail's words as transcript 62 part 7 shows them.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use super::content::Pieces;
use super::dotted::Dotted;
use super::program::{Program, Talking};
use super::reply::{LINE_BYTES_MAX, ReplyLines, status_of};
use super::{Attempt, Results, Verbose, say};
use crate::envelope::{BodyType, Delivery, Outcome};
use crate::status::{Reply, Status};

/// How long the server may take for a reply.
pub(crate) const STEP_TIME_MAX: Duration = Duration::from_secs(300);
/// Connections kept for the next message.
pub(crate) const IDLE_MAX: usize = 8;
/// How long a connection is kept.
pub(crate) const IDLE_TIME_MAX: Duration = Duration::from_secs(30);
/// Messages over one connection.
pub(crate) const MESSAGES_MAX: u32 = 500;
/// How long is waited for the answer to QUIT, which nothing depends on.
const QUIT_TIME_MAX: Duration = Duration::from_secs(5);

/// Where the server is.
pub(crate) enum LmtpServer {
    Unix(PathBuf),
    Tcp {
        host: String,
        port: u16,
    },
    /// A program that is one.
    Program(Box<Program>),
}

/// A message for recipients of an attempt.
pub(crate) struct Message<'a> {
    /// The mailer's name, for the log.
    pub(crate) mailer: &'a str,
    /// The recipients, by their positions.
    pub(crate) positions: &'a [usize],
    pub(crate) attempt: &'a Attempt,
    /// How long all of it may take.
    pub(crate) time_limit: Duration,
}

/// Hands messages to LMTP servers.
pub(crate) struct LmtpMailer {
    host_name: String,
    idle: Arc<Mutex<Idle>>,
}

/// Connections that wait for their next message.
#[derive(Default)]
struct Idle {
    kept: Vec<(u64, String, Dialogue)>,
    /// Number of the connection kept last.
    last: u64,
}

/// Why a dialogue could not go on.
enum Broken {
    Io(io::Error),
    /// The server said something else than it should.
    Reply(Reply),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl LmtpMailer {
    pub(crate) fn new(host_name: String) -> Self {
        Self {
            host_name,
            idle: Arc::default(),
        }
    }

    /// Delivers to these recipients of an attempt, and tells who watches.
    pub(crate) async fn deliver(
        &self,
        server: &LmtpServer,
        message: &Message<'_>,
        results: &mut Results,
    ) {
        let mut relay = match server {
            LmtpServer::Unix(_) => "localhost".to_owned(),
            LmtpServer::Tcp { host, .. } => host.clone(),
            LmtpServer::Program(_) => message.mailer.to_owned(),
        };
        let work = self.dialogue(server, message, &mut relay, results);
        let (status, text) = match timeout(message.time_limit, work).await {
            Ok(Ok(())) => (Status::new(4, 3, 0), "no answer".to_owned()),
            Ok(Err((step, Broken::Reply(reply)))) => (step, reply.to_line()),
            Ok(Err((step, Broken::Io(error)))) => {
                let what = super::mailbox::describe(&error);
                let place = match server {
                    LmtpServer::Unix(path) => path.display().to_string(),
                    LmtpServer::Tcp { host, port } => format!("{host}:{port}"),
                    LmtpServer::Program(program) => program.path.display().to_string(),
                };
                (step, format!("{what} ({place})"))
            }
            Err(_) => {
                let limit = message.time_limit.as_secs();
                let text = format!("the mailer took longer than {limit} s");
                (Status::new(4, 4, 2), text)
            }
        };
        // Whoever has no answer waits.
        let text = format!("Deferred: {text}");
        for position in results.open() {
            if message.positions.contains(&position) {
                let mut outcome = Outcome::new(Delivery::Deferred, status, message.mailer, &text);
                outcome.relay.clone_from(&relay);
                results.set(position, outcome);
            }
        }
        self.tell(message, results);
    }

    /// The dialogue; what it came to for a recipient is set as soon as it is known.
    async fn dialogue(
        &self,
        server: &LmtpServer,
        message: &Message<'_>,
        relay: &mut String,
        results: &mut Results,
    ) -> Result<(), (Status, Broken)> {
        let lost = |broken| (Status::new(4, 4, 2), broken);
        let verbose = message.attempt.verbose.as_ref();
        if let LmtpServer::Program(program) = server {
            let mut talking = Talking::start(program)
                .await
                .map_err(|error| (Status::new(4, 3, 0), Broken::Io(error)))?;
            let stream = talking
                .stream()
                .map_err(|error| (Status::new(4, 3, 0), Broken::Io(error)))?;
            let mut dialogue = Dialogue::new(Box::new(stream), relay.clone());
            dialogue.greet(&self.host_name, verbose).await?;
            dialogue.message(message, results).await.map_err(lost)?;
            dialogue.quit(message.mailer, verbose).await;
            drop(dialogue);
            talking.end(QUIT_TIME_MAX).await;
            return Ok(());
        }
        let key = match server {
            LmtpServer::Unix(path) => format!("unix {}", path.display()),
            LmtpServer::Tcp { host, port } => format!("tcp {host} {port}"),
            LmtpServer::Program(_) => String::new(),
        };
        if let Some(mut dialogue) = self.take(&key) {
            relay.clone_from(&dialogue.relay);
            match dialogue.message(message, results).await {
                Ok(()) => {
                    self.keep(key, dialogue);
                    return Ok(());
                }
                // Not before the final dot does the server have the message.
                Err(broken) if dialogue.has_message => return Err(lost(broken)),
                Err(_) => {}
            }
        }
        let unreached = |error| (Status::new(4, 4, 1), Broken::Io(error));
        let mut dialogue = match server {
            LmtpServer::Unix(path) => connect_unix(path).await.map_err(unreached)?,
            LmtpServer::Tcp { host, port } => connect_tcp(host, *port).await.map_err(unreached)?,
            LmtpServer::Program(_) => return Ok(()),
        };
        relay.clone_from(&dialogue.relay);
        dialogue.greet(&self.host_name, verbose).await?;
        dialogue.message(message, results).await.map_err(lost)?;
        self.keep(key, dialogue);
        Ok(())
    }

    /// Says what became of the recipients: those that were sent or deferred alike on one line.
    fn tell(&self, message: &Message<'_>, results: &Results) {
        let Some(verbose) = &message.attempt.verbose else {
            return;
        };
        let mut said: Vec<(String, Vec<String>)> = Vec::new();
        for position in message.positions {
            let outcome = results.outcomes().get(*position).and_then(Option::as_ref);
            let recipient = message.attempt.recipients.get(*position);
            let (Some(outcome), Some(recipient)) = (outcome, recipient) else {
                continue;
            };
            if outcome.result == Delivery::Failed {
                continue;
            }
            let shown = recipient.recipient.shown();
            match said.iter_mut().find(|(text, _)| *text == outcome.text) {
                Some((_, all)) => all.push(shown),
                None => said.push((outcome.text.clone(), vec![shown])),
            }
        }
        for (text, all) in said {
            verbose(&format!("{}... {text}", all.join(",")));
        }
    }

    fn take(&self, key: &str) -> Option<Dialogue> {
        let mut idle = lock(&self.idle);
        let at = idle.kept.iter().rposition(|(_, of, _)| of == key)?;
        Some(idle.kept.remove(at).2)
    }

    /// Keeps a connection for [`IDLE_TIME_MAX`]; the oldest makes room.
    fn keep(&self, key: String, mut dialogue: Dialogue) {
        dialogue.messages = dialogue.messages.saturating_add(1);
        dialogue.has_message = false;
        if dialogue.messages >= MESSAGES_MAX || !dialogue.is_in_step {
            tokio::spawn(async move { dialogue.quit("", None).await });
            return;
        }
        let mut idle = lock(&self.idle);
        idle.last = idle.last.wrapping_add(1);
        let number = idle.last;
        if idle.kept.len() >= IDLE_MAX {
            let (_, _, mut oldest) = idle.kept.remove(0);
            tokio::spawn(async move { oldest.quit("", None).await });
        }
        idle.kept.push((number, key, dialogue));
        drop(idle);
        let idle = Arc::clone(&self.idle);
        tokio::spawn(async move {
            tokio::time::sleep(IDLE_TIME_MAX).await;
            let expired = {
                let mut idle = lock(&idle);
                let at = idle.kept.iter().position(|(of, _, _)| *of == number);
                at.map(|at| idle.kept.remove(at).2)
            };
            if let Some(mut dialogue) = expired {
                dialogue.quit("", None).await;
            }
        });
    }
}

fn lock(idle: &Mutex<Idle>) -> MutexGuard<'_, Idle> {
    idle.lock().unwrap_or_else(PoisonError::into_inner)
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

struct Dialogue {
    stream: BufReader<Box<dyn Stream>>,
    /// As the log shows the server.
    relay: String,
    /// Keywords of the answer to LHLO, in upper case.
    extensions: Vec<String>,
    messages: u32,
    /// Whether the final dot was sent.
    has_message: bool,
    /// Whether replies and commands are in step.
    is_in_step: bool,
}

async fn connect_unix(path: &std::path::Path) -> io::Result<Dialogue> {
    let stream = timeout(STEP_TIME_MAX, UnixStream::connect(path)).await??;
    Ok(Dialogue::new(Box::new(stream), "localhost".to_owned()))
}

async fn connect_tcp(host: &str, port: u16) -> io::Result<Dialogue> {
    let bare = host.trim_matches(['[', ']']);
    let stream = timeout(STEP_TIME_MAX, TcpStream::connect((bare, port))).await??;
    stream.set_nodelay(true)?;
    let relay = match stream.peer_addr()? {
        SocketAddr::V4(address) => format!("{host} [{}]", address.ip()),
        SocketAddr::V6(address) => format!("{host} [IPv6:{}]", address.ip()),
    };
    Ok(Dialogue::new(Box::new(stream), relay))
}

impl Dialogue {
    fn new(stream: Box<dyn Stream>, relay: String) -> Self {
        Self {
            stream: BufReader::new(stream),
            relay,
            extensions: Vec::new(),
            messages: 0,
            has_message: false,
            is_in_step: true,
        }
    }

    /// The greeting and LHLO.
    async fn greet(
        &mut self,
        host_name: &str,
        verbose: Option<&Verbose>,
    ) -> Result<(), (Status, Broken)> {
        let refused = |reply| (Status::new(4, 5, 0), Broken::Reply(reply));
        let lost = |error| (Status::new(4, 4, 2), Broken::Io(error));
        let greeting = self.reply(verbose).await.map_err(lost)?;
        if greeting.code / 100 != 2 {
            return Err(refused(greeting));
        }
        self.say(&format!("LHLO {host_name}"), verbose)
            .await
            .map_err(lost)?;
        let answer = self.reply(verbose).await.map_err(lost)?;
        if answer.code / 100 != 2 {
            return Err(refused(answer));
        }
        let offers = answer.lines.iter().skip(1);
        self.extensions = offers.map(|line| line.to_ascii_uppercase()).collect();
        Ok(())
    }

    fn offers(&self, keyword: &str) -> bool {
        let mut offers = self.extensions.iter();
        offers.any(|line| line.split([' ', '=']).next() == Some(keyword))
    }

    /// One message. Recipients get their outcomes; an error leaves those open that have none.
    async fn message(
        &mut self,
        message: &Message<'_>,
        results: &mut Results,
    ) -> Result<(), Broken> {
        let attempt = message.attempt;
        let verbose = attempt.verbose.as_ref();
        let sender = attempt.envelope.reverse_path.to_string();
        let mut mail = format!("MAIL From:<{}>", sender.trim_matches(['<', '>']));
        if self.offers("SIZE") {
            mail.push_str(&format!(" SIZE={}", attempt.content_bytes));
        }
        if self.offers("8BITMIME") && attempt.envelope.body_type == BodyType::EightBitMime {
            mail.push_str(" BODY=8BITMIME");
        }
        self.say(&mail, verbose).await?;
        let answer = self.reply(verbose).await?;
        if answer.code == 421 {
            self.is_in_step = false;
            return Err(Broken::Reply(answer));
        }
        if answer.code / 100 != 2 {
            // What the server thinks of the sender it thinks for every recipient.
            self.is_in_step = false;
            for position in message.positions {
                results.set(*position, self.outcome(&answer, message.mailer));
            }
            return Ok(());
        }
        let is_pipelined = self.offers("PIPELINING");
        let mut answers = Vec::new();
        for position in message.positions {
            let user = attempt.recipients.get(*position).map(|r| r.user.as_str());
            let line = format!("RCPT To:<{}>", user.unwrap_or_default());
            self.say(&line, verbose).await?;
            if !is_pipelined {
                answers.push(self.reply(verbose).await?);
            }
        }
        if is_pipelined {
            self.say("DATA", verbose).await?;
            for _ in message.positions {
                answers.push(self.reply(verbose).await?);
            }
        }
        let mut taken = Vec::new();
        for (position, answer) in message.positions.iter().zip(&answers) {
            if answer.code / 100 == 2 {
                taken.push(*position);
            } else {
                results.set(*position, self.outcome(answer, message.mailer));
            }
        }
        if taken.is_empty() && !is_pipelined {
            self.is_in_step = false;
            return Ok(());
        }
        if !is_pipelined {
            self.say("DATA", verbose).await?;
        }
        let answer = self.reply(verbose).await?;
        if answer.code != 354 || taken.is_empty() {
            // A connection that waits for content nobody gets is given up.
            self.is_in_step = false;
            for position in taken {
                results.set(position, self.outcome(&answer, message.mailer));
            }
            return Ok(());
        }
        self.content(attempt).await?;
        say(verbose, || ">>> .".to_owned());
        for position in taken {
            let answer = self.reply(verbose).await?;
            results.set(position, self.outcome(&answer, message.mailer));
        }
        Ok(())
    }

    /// The content and the final dot.
    async fn content(&mut self, attempt: &Attempt) -> io::Result<()> {
        let mut pieces = Pieces::open(&attempt.content);
        let mut dotted = Dotted::new();
        let mut out = Vec::new();
        // Not in step again before the final dot has been sent.
        self.is_in_step = false;
        while let Some(piece) = pieces.next().await? {
            out.clear();
            dotted.piece(&piece, &mut out);
            self.write(&out).await?;
        }
        out.clear();
        dotted.end(&mut out);
        self.has_message = true;
        self.write(&out).await?;
        self.is_in_step = true;
        Ok(())
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let written = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        timeout(STEP_TIME_MAX, written).await?
    }

    /// The answer does not matter any more.
    async fn quit(&mut self, mailer: &str, verbose: Option<&Verbose>) {
        say(verbose, || format!("Closing connection to {mailer}"));
        if self.say("QUIT", verbose).await.is_ok() {
            let _ = timeout(QUIT_TIME_MAX, self.reply(verbose)).await;
        }
    }

    async fn say(&mut self, line: &str, verbose: Option<&Verbose>) -> io::Result<()> {
        if line.contains(['\r', '\n']) {
            return Err(io::Error::other("line end in an address"));
        }
        say(verbose, || format!(">>> {line}"));
        self.write(format!("{line}\r\n").as_bytes()).await
    }

    async fn reply(&mut self, verbose: Option<&Verbose>) -> io::Result<Reply> {
        timeout(STEP_TIME_MAX, self.read_reply(verbose)).await?
    }

    async fn read_reply(&mut self, verbose: Option<&Verbose>) -> io::Result<Reply> {
        let mut lines = ReplyLines::default();
        loop {
            let mut line = Vec::new();
            let most = u64::try_from(LINE_BYTES_MAX).unwrap_or(u64::MAX);
            let read = (&mut self.stream)
                .take(most)
                .read_until(b'\n', &mut line)
                .await?;
            if read == 0 {
                self.is_in_step = false;
                return Err(io::Error::other("the server closed the connection"));
            }
            while line
                .last()
                .is_some_and(|byte| matches!(byte, b'\r' | b'\n'))
            {
                line.pop();
            }
            say(verbose, || line.iter().copied().map(char::from).collect());
            match lines.line(&line) {
                Ok(Some(reply)) => {
                    self.is_in_step &= reply.code != 421;
                    return Ok(reply);
                }
                Ok(None) => {}
                Err(error) => {
                    self.is_in_step = false;
                    return Err(io::Error::other(format!("bad reply: {error}")));
                }
            }
        }
    }

    /// What a reply means for a recipient.
    fn outcome(&self, reply: &Reply, mailer: &str) -> Outcome {
        let line = reply.to_line();
        let status = status_of(reply);
        let mut outcome = match reply.code / 100 {
            2 => Outcome::new(Delivery::Delivered, status, mailer, "Sent"),
            5 => {
                let text = match reply.code {
                    550 | 551 | 553 => "User unknown",
                    _ => "Service unavailable",
                };
                Outcome::new(Delivery::Failed, status, mailer, text)
            }
            _ => Outcome::new(
                Delivery::Deferred,
                status,
                mailer,
                format!("Deferred: {line}"),
            ),
        };
        outcome.relay.clone_from(&self.relay);
        if outcome.result != Delivery::Delivered {
            outcome.reply = Some(line);
        }
        outcome
    }
}
