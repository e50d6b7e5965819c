//! An SMTP server on loopback that does as it is told, well or badly, and remembers what it heard.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

/// What the server does next.
pub(crate) enum Action {
    /// Says lines, separated by `\n`.
    Say(String),
    /// Says lines and closes.
    SayAndClose(String),
    /// Closes.
    Close,
    /// Says nothing until the client goes.
    Silence,
}

/// What happens to a server.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Event<'a> {
    /// A client has connected.
    Connect,
    /// A command line came.
    Line(&'a str),
    /// A message came, its final dot included.
    Message,
}

/// How a server answers.
pub(crate) type Script = dyn Fn(Event<'_>) -> Action + Send + Sync;

/// A running server; it ends with its runtime.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    heard: Arc<Mutex<Heard>>,
    changed: Arc<Notify>,
}

/// What a server was told.
#[derive(Default, Clone)]
pub(crate) struct Heard {
    pub(crate) connections: usize,
    pub(crate) closed: usize,
    /// Command lines of all connections.
    pub(crate) lines: Vec<String>,
    /// Messages as they came, dots still doubled.
    pub(crate) messages: Vec<Vec<u8>>,
}

impl Server {
    /// Starts a server on a free port.
    pub(crate) async fn start(
        script: impl Fn(Event<'_>) -> Action + Send + Sync + 'static,
    ) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), script).await
    }

    /// Starts a server at an address.
    pub(crate) async fn start_at(
        address: SocketAddr,
        script: impl Fn(Event<'_>) -> Action + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            heard: Arc::default(),
            changed: Arc::default(),
        };
        let (script, serving): (Arc<Script>, Self) = (Arc::new(script), server.clone());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (serving, script) = (serving.clone(), Arc::clone(&script));
                tokio::spawn(async move {
                    serving.note(|heard| heard.connections += 1);
                    // A client that breaks off ends the connection, as `Close` does.
                    let _ = serving.serve(stream, &*script).await;
                    serving.note(|heard| heard.closed += 1);
                });
            }
        });
        server
    }

    /// What was heard so far.
    pub(crate) fn heard(&self) -> Heard {
        self.heard.lock().unwrap().clone()
    }

    /// Waits until what was heard fulfils a condition.
    pub(crate) async fn wait_for(&self, condition: impl Fn(&Heard) -> bool) {
        tokio::time::timeout(std::time::Duration::from_secs(30), async {
            loop {
                let changed = self.changed.notified();
                if condition(&self.heard()) {
                    return;
                }
                changed.await;
            }
        })
        .await
        .unwrap();
    }

    fn note(&self, change: impl FnOnce(&mut Heard)) {
        change(&mut self.heard.lock().unwrap());
        self.changed.notify_waiters();
    }

    async fn serve(&self, stream: TcpStream, script: &Script) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        let mut action = script(Event::Connect);
        loop {
            let (text, is_end) = match action {
                Action::Say(text) => (text, false),
                Action::SayAndClose(text) => (text, true),
                Action::Close => return Ok(()),
                Action::Silence => {
                    let mut rest = Vec::new();
                    stream.read_to_end(&mut rest).await?;
                    return Ok(());
                }
            };
            let wire: String = text.split('\n').map(|line| format!("{line}\r\n")).collect();
            stream.write_all(wire.as_bytes()).await?;
            if is_end {
                return Ok(());
            }
            if text.starts_with("354") {
                let mut message = Vec::new();
                while !(message == b".\r\n" || message.ends_with(b"\r\n.\r\n")) {
                    if stream.read_until(b'\n', &mut message).await? == 0 {
                        return Ok(());
                    }
                }
                self.note(|heard| heard.messages.push(message.clone()));
                action = script(Event::Message);
                continue;
            }
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            let line = line.trim_end_matches(['\r', '\n']).to_owned();
            self.note(|heard| heard.lines.push(line.clone()));
            let is_quit = line == "QUIT";
            action = match script(Event::Line(&line)) {
                Action::Say(text) if is_quit => Action::SayAndClose(text),
                action => action,
            };
        }
    }
}

/// A server that takes everything and offers what the well-behaved ones of the transcripts do.
pub(crate) fn sink(event: Event<'_>) -> Action {
    let text = match event {
        Event::Connect => "220 mx.ok.test ESMTP sink",
        Event::Line(line) => match line.split([' ', ':']).next().unwrap_or_default() {
            "EHLO" => {
                "250-mx.ok.test hello\n250-PIPELINING\n250-SIZE 10000000\n250-DSN\n250-ENHANCEDSTATUSCODES\n250 8BITMIME"
            }
            "MAIL" => "250 2.1.0 sender ok",
            "RCPT" => "250 2.1.5 recipient ok",
            "DATA" => "354 go ahead",
            "RSET" => "250 2.0.0 ok",
            "QUIT" => "221 2.0.0 bye",
            _ => "500 5.5.1 unknown command",
        },
        Event::Message => "250 2.0.0 q123abc Message accepted for delivery",
    };
    Action::Say(text.to_owned())
}

/// A server of RFC 821: HELO and nothing else.
pub(crate) fn plain(event: Event<'_>) -> Action {
    match event {
        Event::Line(line) if line.starts_with("EHLO") => {
            Action::Say("500 5.5.1 Command unrecognized".to_owned())
        }
        Event::Line(line) if line.starts_with("HELO") => {
            Action::Say("250 mx.plain.test".to_owned())
        }
        event => sink(event),
    }
}

/// The sink, but for command lines with this beginning.
pub(crate) fn but_at(
    beginning: &'static str,
    action: impl Fn() -> Action + Send + Sync + 'static,
) -> impl Fn(Event<'_>) -> Action + Send + Sync + 'static {
    move |event| match event {
        Event::Line(line) if line.starts_with(beginning) => action(),
        event => sink(event),
    }
}

/// The sink, but for the greeting.
pub(crate) fn greeting(
    action: impl Fn() -> Action + Send + Sync + 'static,
) -> impl Fn(Event<'_>) -> Action + Send + Sync + 'static {
    move |event| match event {
        Event::Connect => action(),
        event => sink(event),
    }
}

/// The sink, but for the answer to a message.
pub(crate) fn after_message(
    action: impl Fn() -> Action + Send + Sync + 'static,
) -> impl Fn(Event<'_>) -> Action + Send + Sync + 'static {
    move |event| match event {
        Event::Message => action(),
        event => sink(event),
    }
}
