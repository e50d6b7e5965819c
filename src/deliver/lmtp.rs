//! LMTP (L2): a message handed to a local mail store, which answers for each recipient.
//!
//! One connection an attempt: LHLO, MAIL, a RCPT each, DATA, and a reply for each recipient that was taken. Guarantees:
//! delivered means that the server took responsibility for that recipient; a connection that ends before defers those it did
//! not answer for. A refusal for good of the server's greeting or LHLO defers too: it is the operator's to mend.
//! Blocks: never. Limits: the time limit given, those of [`super::reply`]. Source: RFC 2033.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UnixStream};

use super::content::Pieces;
use super::dotted::Dotted;
use super::reply::{LINE_BYTES_MAX, ReplyLines, status_of};
use super::{Attempt, Results};
use crate::envelope::{Delivery, Outcome};
use crate::status::{Reply, Status};

/// Where the server is.
pub(crate) enum LmtpServer {
    Unix(PathBuf),
    Tcp { host: String, port: u16 },
}

/// What became of a dialogue that could not go on.
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

/// Delivers to all recipients of an attempt.
pub(crate) async fn deliver(
    server: &LmtpServer,
    mailer: &str,
    host_name: &str,
    time_limit: Duration,
    attempt: &Attempt,
    results: &mut Results,
) {
    let (relay, dialogue) = match server {
        LmtpServer::Unix(path) => (String::new(), connect_unix(path, time_limit).await),
        LmtpServer::Tcp { host, port } => {
            let bare = host.trim_matches(['[', ']']);
            (host.clone(), connect_tcp(bare, *port, time_limit).await)
        }
    };
    let mut dialogue = match dialogue {
        Ok(dialogue) => dialogue,
        Err(error) => {
            let name = match server {
                LmtpServer::Unix(path) => path.display().to_string(),
                LmtpServer::Tcp { host, port } => format!("{host}:{port}"),
            };
            let text = format!("Deferred: {} ({name})", words(&error));
            return defer_all(mailer, &relay, Status::new(4, 4, 1), &text, results);
        }
    };
    let talk = dialogue.talk(mailer, &relay, host_name, attempt, results);
    match tokio::time::timeout(time_limit, talk).await {
        Ok(Ok(())) => {}
        Ok(Err(Broken::Reply(reply))) => {
            let text = format!("Deferred: {}", reply.to_line());
            defer_all(mailer, &relay, Status::new(4, 5, 0), &text, results);
        }
        Ok(Err(Broken::Io(error))) => {
            let text = format!("Deferred: {}", words(&error));
            defer_all(mailer, &relay, Status::new(4, 4, 2), &text, results);
        }
        Err(_) => {
            let text = format!(
                "Deferred: the mailer took longer than {} s",
                time_limit.as_secs()
            );
            defer_all(mailer, &relay, Status::new(4, 4, 2), &text, results);
        }
    }
}

fn defer_all(mailer: &str, relay: &str, status: Status, text: &str, results: &mut Results) {
    for position in results.open() {
        let mut outcome = Outcome::new(Delivery::Deferred, status, mailer, text);
        outcome.relay = relay.to_owned();
        results.set(position, outcome);
    }
}

fn words(error: &io::Error) -> String {
    super::mailbox::describe(error)
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

struct Dialogue {
    stream: BufReader<Box<dyn Stream>>,
}

async fn connect_unix(path: &std::path::Path, limit: Duration) -> io::Result<Dialogue> {
    let stream = tokio::time::timeout(limit, UnixStream::connect(path)).await??;
    Ok(Dialogue::new(Box::new(stream)))
}

async fn connect_tcp(host: &str, port: u16, limit: Duration) -> io::Result<Dialogue> {
    let stream = tokio::time::timeout(limit, TcpStream::connect((host, port))).await??;
    stream.set_nodelay(true)?;
    Ok(Dialogue::new(Box::new(stream)))
}

impl Dialogue {
    fn new(stream: Box<dyn Stream>) -> Self {
        Self {
            stream: BufReader::new(stream),
        }
    }

    async fn talk(
        &mut self,
        mailer: &str,
        relay: &str,
        host_name: &str,
        attempt: &Attempt,
        results: &mut Results,
    ) -> Result<(), Broken> {
        self.expect(2).await?;
        self.say(&format!("LHLO {host_name}")).await?;
        self.expect(2).await?;
        let sender = attempt.envelope.reverse_path.to_string();
        let sender = sender.trim_matches(['<', '>']);
        self.say(&format!("MAIL FROM:<{sender}>")).await?;
        let answer = self.reply().await?;
        if answer.code / 100 != 2 {
            // What the server thinks of the sender it thinks for every recipient.
            for position in results.open() {
                results.set(position, outcome_of(&answer, mailer, relay));
            }
            return self.quit().await;
        }
        let mut taken = Vec::new();
        for (position, recipient) in attempt.recipients.iter().enumerate() {
            self.say(&format!("RCPT TO:<{}>", recipient.user)).await?;
            let answer = self.reply().await?;
            if answer.code / 100 == 2 {
                taken.push(position);
            } else {
                results.set(position, outcome_of(&answer, mailer, relay));
            }
        }
        if taken.is_empty() {
            return self.quit().await;
        }
        self.say("DATA").await?;
        let answer = self.reply().await?;
        if answer.code != 354 {
            for position in taken {
                results.set(position, outcome_of(&answer, mailer, relay));
            }
            return self.quit().await;
        }
        let mut pieces = Pieces::open(&attempt.content);
        let mut dotted = Dotted::new();
        let mut out = Vec::new();
        while let Some(piece) = pieces.next().await? {
            out.clear();
            dotted.piece(&piece, &mut out);
            self.stream.write_all(&out).await?;
        }
        out.clear();
        dotted.end(&mut out);
        self.stream.write_all(&out).await?;
        self.stream.flush().await?;
        for position in taken {
            let answer = self.reply().await?;
            results.set(position, outcome_of(&answer, mailer, relay));
        }
        self.quit().await
    }

    /// The answer does not matter any more.
    async fn quit(&mut self) -> Result<(), Broken> {
        let _ = self.say("QUIT").await;
        Ok(())
    }

    async fn say(&mut self, line: &str) -> io::Result<()> {
        if line.contains(['\r', '\n']) {
            return Err(io::Error::other("line end in an address"));
        }
        self.stream
            .write_all(format!("{line}\r\n").as_bytes())
            .await?;
        self.stream.flush().await
    }

    async fn expect(&mut self, class: u16) -> Result<(), Broken> {
        let reply = self.reply().await?;
        if reply.code / 100 == class {
            Ok(())
        } else {
            Err(Broken::Reply(reply))
        }
    }

    async fn reply(&mut self) -> io::Result<Reply> {
        let mut lines = ReplyLines::default();
        loop {
            let mut line = Vec::new();
            let most = u64::try_from(LINE_BYTES_MAX).unwrap_or(u64::MAX);
            let read = (&mut self.stream)
                .take(most)
                .read_until(b'\n', &mut line)
                .await?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            while line
                .last()
                .is_some_and(|byte| matches!(byte, b'\r' | b'\n'))
            {
                line.pop();
            }
            match lines.line(&line) {
                Ok(Some(reply)) => return Ok(reply),
                Ok(None) => {}
                Err(error) => return Err(io::Error::other(format!("{error:?}"))),
            }
        }
    }
}

fn outcome_of(reply: &Reply, mailer: &str, relay: &str) -> Outcome {
    let line = reply.to_line();
    let mut outcome = match reply.code / 100 {
        2 => Outcome::new(
            Delivery::Delivered,
            Status::OK,
            mailer,
            format!("Sent ({line})"),
        ),
        5 => Outcome::new(Delivery::Failed, status_of(reply), mailer, text_of(reply)),
        _ => {
            let text = format!("Deferred: {line}");
            Outcome::new(Delivery::Deferred, status_of(reply), mailer, text)
        }
    };
    outcome.relay = relay.to_owned();
    if outcome.result != Delivery::Delivered {
        outcome.reply = Some(line);
    }
    outcome
}

/// Sendmail's words for a refusal.
fn text_of(reply: &Reply) -> &'static str {
    match reply.code {
        550 => "User unknown",
        552 => "Message is too large for the mailer",
        _ => "Service unavailable",
    }
}
