//! The real `sendmail` in a sandbox of its own, for tests: start it, speak SMTP with it, run its other programs, stop
//! or kill it.
//!
//! The daemon listens on a port of the system's choice on loopback; a test waits for what it needs by looking again
//! until a deadline, never by guessing how long something takes. A daemon that a failed test leaves behind is killed,
//! by its process id, when its handle is dropped.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test program uses a part; a test may panic"
)]

use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

#[path = "fed.rs"]
mod fed;
use fed::fed;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long anything may take before a test calls it missing.
pub const DEADLINE: Duration = Duration::from_secs(30);
/// The pause between two looks at a condition.
pub const POLL: Duration = Duration::from_millis(2);

/// Looks again until `condition` gives something; panics with `what` at the deadline.
pub fn wait_for<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    wait_within(DEADLINE, what, condition)
}

/// As [`wait_for`], with a deadline of its own.
pub fn wait_within<T>(
    deadline: Duration,
    what: &str,
    mut condition: impl FnMut() -> Option<T>,
) -> T {
    let start = now();
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(start.elapsed() < deadline, "in vain waited for: {what}");
        std::thread::sleep(POLL);
    }
}

/// The monotonic clock; tests of the real program measure real time.
#[expect(
    clippy::disallowed_methods,
    reason = "the real program runs in real time"
)]
pub fn now() -> Instant {
    Instant::now()
}

/// A sandbox in a temporary folder.
pub struct Sandbox {
    folder: tempfile::TempDir,
}

impl Sandbox {
    /// An empty folder's name; the first program that runs in it makes the rest.
    pub fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// The sandbox's folder.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("sandbox")
    }

    /// A file's text, empty if there is none.
    pub fn text(&self, name: &str) -> String {
        fs::read(self.path().join(name))
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The user that mail for postmaster ends at.
    pub fn user(&self) -> String {
        let passwd = self.text("etc/passwd");
        let line = passwd.lines().rfind(|line| !line.starts_with('#')).unwrap();
        line.split(':').next().unwrap().to_owned()
    }

    /// What is in the mailbox of [`Sandbox::user`].
    pub fn mailbox(&self) -> String {
        self.text(&format!("var/mail/{}", self.user()))
    }

    /// Appends settings to `sendmail.toml`; the sandbox must have been made.
    pub fn configure(&self, toml: &str) {
        let path = self.path().join("etc/mail/sendmail.toml");
        let text = fs::read_to_string(&path).unwrap();
        fs::write(&path, format!("{text}\n{toml}\n")).unwrap();
    }

    /// A command that runs `sendmail` under the name `argv0` in this sandbox.
    pub fn command(&self, argv0: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sendmail"));
        command
            .arg0(argv0)
            .arg("--sandbox")
            .arg(self.path())
            .env_remove("DILIGENCE_SANDBOX")
            .env("TZ", "UTC")
            .stdin(Stdio::null());
        command
    }

    /// Runs a program to its end, with this on standard input.
    pub fn run(&self, argv0: &str, arguments: &[&str], input: &str) -> Output {
        fed(self.command(argv0).args(arguments), input)
    }

    /// What `mailq` prints.
    pub fn mailq(&self) -> String {
        let output = self.run("mailq", &[], "");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts the daemon in the background, which returns when it listens, and gives a handle that ends it.
    pub fn start_in_background(&self, arguments: &[&str]) -> Background {
        let status = self
            .command("sendmail")
            .args(["-bd", "-O", "DaemonPortOptions=Port=0"])
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "-bd ended with {status}");
        self.background()
    }

    /// The daemon that the pid file names.
    pub fn background(&self) -> Background {
        self.background_in("run/sendmail.pid")
    }

    /// The process that a pid file names.
    pub fn background_in(&self, name: &str) -> Background {
        Background {
            pid: self.pid_in(name),
            is_ours: true,
        }
    }

    /// The process id in the first line of a file.
    pub fn pid_in(&self, name: &str) -> i32 {
        let text = self.text(name);
        text.lines().next().unwrap().parse().unwrap()
    }

    /// Where the running daemon says that it listens.
    pub fn address(&self) -> SocketAddr {
        let addresses = self.path().join("run/smtp");
        wait_for("run/smtp of the daemon", || first_address(&addresses))
    }

    /// Starts `sendmail` and waits for nothing.
    pub fn spawn<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Child {
        self.command("sendmail")
            .args(arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// Starts the daemon in the foreground and waits until it says where it listens.
    pub fn start(&self) -> Daemon {
        self.start_with::<&str>(&[])
    }

    /// As [`Sandbox::start`], with more arguments.
    pub fn start_with<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Daemon {
        let addresses = self.path().join("run/smtp");
        // One left by a killed daemon says nothing about this one.
        let _ = fs::remove_file(&addresses);
        let mut child = self
            .command("sendmail")
            .args(["-bD", "-O", "DaemonPortOptions=Port=0"])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let address = wait_for("run/smtp of the daemon", || {
            assert_eq!(child.try_wait().unwrap(), None, "the daemon ended");
            first_address(&addresses)
        });
        Daemon { child, address }
    }
}

/// The first address of a file that the daemon writes, one on each line.
fn first_address(path: &Path) -> Option<SocketAddr> {
    fs::read_to_string(path).ok()?.lines().next()?.parse().ok()
}

/// A running daemon.
pub struct Daemon {
    child: Child,
    address: SocketAddr,
}

impl Daemon {
    /// Where it speaks SMTP.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its process.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Opens a dialogue and greets.
    pub fn client(&self) -> io::Result<SmtpClient> {
        SmtpClient::connect(self.address)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        wait_for("the daemon's end after SIGTERM", || {
            self.child.try_wait().unwrap()
        })
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for an end that somebody else brings about.
    pub fn wait(mut self) -> ExitStatus {
        wait_for("the daemon's end", || self.child.try_wait().unwrap())
    }

    /// What it has printed by its end, after [`Daemon::stop`]'s kind of end.
    pub fn stop_and_read(mut self) -> (ExitStatus, String) {
        let mut stdout = self.child.stdout.take().unwrap();
        self.signal(Signal::SIGTERM);
        let status = wait_for("the daemon's end after SIGTERM", || {
            self.child.try_wait().unwrap()
        });
        let mut text = String::new();
        io::Read::read_to_string(&mut stdout, &mut text).unwrap();
        (status, text)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A daemon that is not this process's child.
pub struct Background {
    pid: i32,
    /// Killed when the handle is dropped.
    is_ours: bool,
}

impl Background {
    /// A process that somebody else has a handle for.
    pub fn watched(pid: u32) -> Self {
        Self {
            pid: i32::try_from(pid).unwrap(),
            is_ours: false,
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        u32::try_from(self.pid).unwrap()
    }

    /// Whether the process is there, and not a zombie with all its threads: the first may be one while others live.
    pub fn is_running(&self) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid));
        let is_over = |text: &str| text.contains("\nState:\tZ") && text.contains("\nThreads:\t1\n");
        status.is_ok_and(|text| !is_over(&text))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid), signal).unwrap();
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(self) {
        self.signal(Signal::SIGTERM);
        wait_for("the end of the background daemon", || {
            (!self.is_running()).then_some(())
        });
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if self.is_ours && self.is_running() {
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }
}

/// A plain SMTP client.
pub struct SmtpClient {
    stream: BufReader<TcpStream>,
}

impl SmtpClient {
    /// Connects, reads the greeting and says EHLO.
    ///
    /// # Errors
    /// The connection's; an answer that is not the one expected is `InvalidData` with its text.
    pub fn connect(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        let mut client = Self {
            stream: BufReader::new(stream),
        };
        client.expect("220")?;
        client.command("EHLO client.example.test", "250")?;
        Ok(client)
    }

    /// Sends a line and returns the reply, which must begin with `code`.
    ///
    /// # Errors
    /// As [`SmtpClient::connect`].
    pub fn command(&mut self, line: &str, code: &str) -> io::Result<String> {
        self.stream
            .get_ref()
            .write_all(format!("{line}\r\n").as_bytes())?;
        self.expect(code)
    }

    /// Sends a message; gives the queue id of the `250`.
    ///
    /// # Errors
    /// As [`SmtpClient::connect`].
    pub fn send(&mut self, from: &str, to: &[&str], content: &str) -> io::Result<String> {
        self.command(&format!("MAIL FROM:<{from}>"), "250")?;
        for recipient in to {
            self.command(&format!("RCPT TO:<{recipient}>"), "250")?;
        }
        self.command("DATA", "354")?;
        let content = content.replace('\n', "\r\n");
        let reply = self.command(&format!("{content}\r\n."), "250")?;
        // 250 2.0.0 6AMHCrtp000817 Message accepted for delivery
        let id = reply.split_whitespace().nth(2).unwrap_or_default();
        Ok(id.to_owned())
    }

    fn expect(&mut self, code: &str) -> io::Result<String> {
        let mut reply = String::new();
        loop {
            let start = reply.len();
            if self.stream.read_line(&mut reply)? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
            }
            if reply.as_bytes().get(start + 3) != Some(&b'-') {
                break;
            }
        }
        if reply.starts_with(code) {
            Ok(reply)
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, reply))
        }
    }
}
