//! Where lines go: syslog's socket or a file, opened again when it breaks.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;

use super::{Destination, STALL_PAUSE, STALL_WAIT_MAX};

/// The open end.
enum Channel {
    Datagram(UnixDatagram),
    /// Some syslogds listen on a stream; lines then end with a NUL byte.
    Stream(Mutex<UnixStream>),
    File(File),
}

/// A destination and the open end to it, if it is open.
pub(super) struct Sink {
    destination: Destination,
    channel: ArcSwapOption<Channel>,
    /// Lines lost since the last one that got through.
    lost: AtomicU64,
    /// Monotonic milliseconds before which nothing is tried.
    paused_until_ms: AtomicU64,
}

impl Sink {
    pub(super) fn open(destination: Destination) -> Self {
        let sink = Self {
            channel: ArcSwapOption::empty(),
            destination,
            lost: AtomicU64::new(0),
            paused_until_ms: AtomicU64::new(0),
        };
        sink.reopen();
        sink
    }

    pub(super) const fn is_discarding(&self) -> bool {
        matches!(self.destination, Destination::Discard)
    }

    /// Whether lines are packets with a priority instead of lines with an end.
    pub(super) const fn is_packet(&self) -> bool {
        matches!(self.destination, Destination::Syslog(_))
    }

    pub(super) fn reopen(&self) {
        let channel = match &self.destination {
            Destination::Syslog(path) => connect(path).ok(),
            Destination::File(path) => append_to(path).ok().map(Channel::File),
            Destination::Discard => None,
        };
        self.channel.store(channel.map(std::sync::Arc::new));
    }

    /// Sends one line. `now` is monotonic; `notice` makes the line that says
    /// how many were lost.
    pub(super) fn send(&self, line: &[u8], now: Duration, notice: impl Fn(u64) -> String) {
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        if now_ms < self.paused_until_ms.load(Ordering::Relaxed) {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let lost = self.lost.swap(0, Ordering::Relaxed);
        let mut outcome = Ok(());
        if lost > 0 {
            outcome = self.send_or_reopen(notice(lost).as_bytes());
            if outcome.is_err() {
                self.lost.fetch_add(lost, Ordering::Relaxed);
            }
        }
        if outcome.is_ok() {
            outcome = self.send_or_reopen(line);
        }
        if outcome.is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
            let pause_ms = u64::try_from(STALL_PAUSE.as_millis()).unwrap_or(u64::MAX);
            self.paused_until_ms
                .store(now_ms.saturating_add(pause_ms), Ordering::Relaxed);
        }
    }

    fn send_or_reopen(&self, line: &[u8]) -> io::Result<()> {
        if let Some(channel) = &*self.channel.load() {
            match channel.send(line) {
                // Waiting longer for one that does not read helps nobody.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                Err(_) => {}
                Ok(()) => return Ok(()),
            }
        }
        self.reopen();
        match &*self.channel.load() {
            Some(channel) => channel.send(line),
            None => Err(io::Error::from(io::ErrorKind::NotConnected)),
        }
    }
}

impl Channel {
    fn send(&self, line: &[u8]) -> io::Result<()> {
        let (sent, len) = match self {
            Self::Datagram(socket) => (retry(|| socket.send(line))?, line.len()),
            Self::Stream(stream) => {
                let mut stream = stream
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner);
                let framed = [line, b"\0"].concat();
                (retry(|| stream.write(&framed))?, framed.len())
            }
            // One write to a file open for appending: lines stay whole.
            Self::File(file) => {
                let mut file = file;
                (retry(|| file.write(line))?, line.len())
            }
        };
        if sent == len {
            Ok(())
        } else {
            Err(io::Error::from(io::ErrorKind::WriteZero))
        }
    }
}

fn retry(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn connect(path: &Path) -> io::Result<Channel> {
    let datagram = UnixDatagram::unbound()?;
    datagram.set_write_timeout(Some(STALL_WAIT_MAX))?;
    match datagram.connect(path) {
        Ok(()) => Ok(Channel::Datagram(datagram)),
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EPROTOTYPE as i32) => {
            let stream = UnixStream::connect(path)?;
            stream.set_write_timeout(Some(STALL_WAIT_MAX))?;
            Ok(Channel::Stream(Mutex::new(stream)))
        }
        Err(error) => Err(error),
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_syslogd_on_a_stream_gets_lines_that_end_with_nul() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let syslogd = UnixListener::bind(&path).unwrap();
        let sink = Sink::open(Destination::Syslog(path));
        let (mut client, _) = syslogd.accept().unwrap();
        sink.send(b"<22>x", Duration::ZERO, |_| String::new());
        drop(sink);
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert_eq!(text, "<22>x\0");
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_told_when_it_can() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("missing/maillog");
        let sink = Sink::open(Destination::File(path.clone()));
        let notice = |count| format!("{count} lost\n");
        sink.send(b"a\n", Duration::ZERO, notice);
        sink.send(b"b\n", Duration::from_millis(500), notice);
        std::fs::create_dir(dir.path().join("missing")).unwrap();
        sink.send(b"c\n", Duration::from_millis(999), notice);
        assert!(!path.exists());
        sink.send(b"d\n", Duration::from_secs(1), notice);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "3 lost\nd\n");
    }
}
