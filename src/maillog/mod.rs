//! The maillog: one line an event, with Sendmail's fields, order and severities.
//!
//! Lines go to syslog in RFC 3164 form with facility mail, or are appended to a
//! file (a sandbox's), each with one system call. A handle is cheap to clone
//! and used from any thread without waiting for another: the formatted second
//! is shared, and the kernel keeps lines whole. Control characters in what
//! others sent us appear as `\ooo`, so that nobody can forge a line.
//!
//! Logging never fails and never holds delivery up: a syslogd that is gone is
//! connected to again at most once a second, one that does not read is waited
//! for at most [`STALL_WAIT_MAX`] in [`STALL_PAUSE`], and how many lines were
//! lost is the first thing said when it is back.
//!
//! Touches the syslog socket or the file. Limits: [`LINE_LEN_MAX`],
//! [`TEXT_LEN_MAX`]. Source: RFC 3164; syslog(3); Sendmail's own lines.

mod event;
mod sink;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;

pub use event::{
    DsnCause, Received, Reject, Rejection, ToLine, interval, level_of, text_of_starting,
};

use crate::clock::Clock;
use crate::envelope::MessageId;
use sink::Sink;

/// The longest text after the tag in one line, in bytes; longer ones are
/// continued on further lines. RFC 3164 4.1 bounds the whole packet to this.
pub const LINE_LEN_MAX: usize = 1_024 - 64;
/// The longest text of an event, over all its lines, in bytes; the rest is cut.
pub const TEXT_LEN_MAX: usize = 8_192;
/// How long a line waits for a syslogd that does not read.
pub const STALL_WAIT_MAX: Duration = Duration::from_millis(100);
/// After such a wait, for how long lines are dropped (and counted) instead.
pub const STALL_PAUSE: Duration = Duration::from_secs(1);
/// Facility mail of RFC 3164 4.1.1, in its place in the priority.
const FACILITY_MAIL: u8 = 2 << 3;

/// A line's severity. RFC 3164 4.1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Severity {
    /// Somebody has to act at once: attempts to misuse, a daemon that ends.
    Alert = 1,
    /// Sendmail's SYSERR.
    Critical = 2,
    /// A part of the system does not work.
    Error = 3,
    /// Something is set up doubtfully.
    Warning = 4,
    /// Refusals, user errors, rebuilt aliases.
    Notice = 5,
    /// What happens: `from=`, `to=`.
    Info = 6,
    /// For the search of errors.
    Debug = 7,
}

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// syslog's socket, usually `/dev/log`.
    Syslog(PathBuf),
    /// A file, made with mode 0600 if it is missing.
    File(PathBuf),
    /// Nowhere.
    Discard,
}

/// What a maillog needs to know.
#[derive(Debug, Clone)]
pub struct LogSettings {
    /// Where lines go.
    pub destination: Destination,
    /// The name lines begin with, of `-L`.
    pub tag: String,
    /// This host's short name, which lines in a file bear.
    pub host: String,
    /// LogLevel: events of a higher level are not written.
    pub level: u32,
}

/// The handle that events are written through.
#[derive(Clone)]
pub struct Maillog {
    inner: Arc<Inner>,
}

struct Inner {
    sink: Sink,
    level: u32,
    /// ` HOST TAG[PID]: ` in a file, ` TAG[PID]: ` in a packet.
    head: String,
    stamp: ArcSwap<Stamp>,
    zone: jiff::tz::TimeZone,
    clock: Arc<dyn Clock>,
}

/// A second as lines show it.
struct Stamp {
    unix_second: u64,
    text: String,
}

impl Maillog {
    /// Opens the log of this process.
    ///
    /// A process that forks opens its own afterwards: lines bear the id of the
    /// process that opened. Never fails: what cannot be opened is tried again
    /// with the lines. Blocks: disk, at most once.
    #[must_use]
    pub fn open(settings: &LogSettings, clock: Arc<dyn Clock>) -> Self {
        let process = std::process::id();
        let head = match &settings.destination {
            Destination::File(_) => {
                format!(" {} {}[{process}]: ", settings.host, settings.tag)
            }
            Destination::Syslog(_) | Destination::Discard => {
                format!(" {}[{process}]: ", settings.tag)
            }
        };
        let mut shown_head = String::with_capacity(head.len());
        push_harmless(&mut shown_head, &head);
        Self {
            inner: Arc::new(Inner {
                sink: Sink::open(settings.destination.clone()),
                level: settings.level,
                head: shown_head,
                stamp: ArcSwap::from_pointee(Stamp {
                    unix_second: u64::MAX,
                    text: String::new(),
                }),
                zone: jiff::tz::TimeZone::system(),
                clock,
            }),
        }
    }

    /// A log that keeps nothing, for tests and for programs that log nothing.
    #[must_use]
    pub fn discarding(clock: Arc<dyn Clock>) -> Self {
        let settings = LogSettings {
            destination: Destination::Discard,
            tag: "sendmail".to_owned(),
            host: "localhost".to_owned(),
            level: 0,
        };
        Self::open(&settings, clock)
    }

    /// Whether events of this level are written; to save making their text.
    #[must_use]
    pub fn is_written(&self, level: u32) -> bool {
        level <= self.inner.level && !self.inner.sink.is_discarding()
    }

    /// Writes `ID: TEXT`, `NOQUEUE: TEXT` ([`QueueId::None`]) or `TEXT` alone
    /// ([`QueueId::Omitted`]) if the LogLevel is at least `level`.
    ///
    /// Blocks: at most [`STALL_WAIT_MAX`], and that at most once in
    /// [`STALL_PAUSE`]; a file's disk as long as it takes to buffer a line.
    pub fn write(&self, severity: Severity, level: u32, id: QueueId, text: &str) {
        if !self.is_written(level) {
            return;
        }
        let mut harmless = String::with_capacity(text.len() + 16);
        push_harmless(&mut harmless, text);
        let mut prefix = String::new();
        match id {
            QueueId::Known(id) => {
                let _ = write!(prefix, "{id}");
            }
            QueueId::None => prefix.push_str("NOQUEUE"),
            QueueId::Omitted => {}
        }
        for (number, piece) in (1_u32..).zip(pieces(&harmless, LINE_LEN_MAX)) {
            let is_split = number > 1 || piece.len() < harmless.len();
            self.write_line(severity, |line| {
                // Writing to a String cannot fail.
                let _ = match (prefix.is_empty(), is_split) {
                    (true, _) => Ok(()),
                    (false, false) => write!(line, "{prefix}: "),
                    (false, true) => write!(line, "{prefix}[{number}]: "),
                };
                line.push_str(piece.trim_end());
                if is_split && !harmless.ends_with(piece) {
                    line.push_str(" ...");
                }
            });
        }
    }

    /// Opens the file anew, after it was moved away (SIGHUP), or the socket.
    pub fn reopen(&self) {
        self.inner.sink.reopen();
    }

    fn write_line(&self, severity: Severity, body: impl FnOnce(&mut String)) {
        let inner = &*self.inner;
        let stamp = inner.stamp();
        let mut line = String::with_capacity(256);
        if inner.sink.is_packet() {
            // Writing to a String cannot fail.
            let _ = write!(line, "<{}>", FACILITY_MAIL | severity as u8);
        }
        line.push_str(&stamp.text);
        line.push_str(&inner.head);
        body(&mut line);
        if !inner.sink.is_packet() {
            line.push('\n');
        }
        let lost_notice = |count: u64| {
            let mut notice = String::new();
            if inner.sink.is_packet() {
                let _ = write!(notice, "<{}>", FACILITY_MAIL | Severity::Warning as u8);
            }
            let newline = if inner.sink.is_packet() { "" } else { "\n" };
            let _ = write!(
                notice,
                "{}{}maillog: {count} lines lost{newline}",
                stamp.text, inner.head
            );
            notice
        };
        inner
            .sink
            .send(line.as_bytes(), inner.clock.monotonic(), lost_notice);
    }
}

impl std::fmt::Debug for Maillog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Maillog")
            .field("level", &self.inner.level)
            .finish_non_exhaustive()
    }
}

impl Inner {
    /// The present second; formatted once, then shared.
    fn stamp(&self) -> Arc<Stamp> {
        let unix_second = self.clock.unix_ms() / 1_000;
        let known = self.stamp.load_full();
        if known.unix_second == unix_second {
            return known;
        }
        let made = Arc::new(Stamp {
            unix_second,
            text: stamp_text(unix_second, &self.zone),
        });
        self.stamp.store(Arc::clone(&made));
        made
    }
}

/// `Nov 22 17:45:59`, in local time; a day below 10 has a blank before it.
/// RFC 3164 4.1.2.
fn stamp_text(unix_second: u64, zone: &jiff::tz::TimeZone) -> String {
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let time = i64::try_from(unix_second)
        .ok()
        .and_then(|second| jiff::Timestamp::from_second(second).ok())
        .unwrap_or(jiff::Timestamp::UNIX_EPOCH)
        .to_zoned(zone.clone());
    let month = usize::try_from(time.month())
        .ok()
        .and_then(|month| MONTHS.get(month.saturating_sub(1)))
        .unwrap_or(&"Jan");
    format!(
        "{month} {:2} {:02}:{:02}:{:02}",
        time.day(),
        time.hour(),
        time.minute(),
        time.second()
    )
}

/// What stands before a line's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueId {
    /// The message's queue id.
    Known(MessageId),
    /// `NOQUEUE`: there is no message.
    None,
    /// Nothing: rulesets before a message, the daemon's own lines.
    Omitted,
}

impl From<MessageId> for QueueId {
    fn from(id: MessageId) -> Self {
        Self::Known(id)
    }
}

impl From<Option<MessageId>> for QueueId {
    fn from(id: Option<MessageId>) -> Self {
        id.map_or(Self::None, Self::Known)
    }
}

/// Appends `text` with its control characters as `\n`, `\r`, `\t` or `\ooo` and its backslashes doubled, cut
/// at [`TEXT_LEN_MAX`].
fn push_harmless(to: &mut String, text: &str) {
    for letter in text.chars() {
        if to.len() >= TEXT_LEN_MAX {
            to.push_str("...");
            return;
        }
        match letter {
            '\\' => to.push_str("\\\\"),
            '\n' => to.push_str("\\n"),
            '\r' => to.push_str("\\r"),
            '\t' => to.push_str("\\t"),
            // The bidirectional marks could show a line in another order.
            c if c.is_control() || is_direction_mark(c) => {
                let mut bytes = [0; 4];
                for byte in c.encode_utf8(&mut bytes).bytes() {
                    // Writing to a String cannot fail.
                    let _ = write!(to, "\\{byte:03o}");
                }
            }
            c => to.push(c),
        }
    }
}

const fn is_direction_mark(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Cuts a text into pieces of at most `len_max` bytes, after a blank or a comma
/// where there is one in the piece's last half.
fn pieces(text: &str, len_max: usize) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let current = rest?;
        if current.len() <= len_max {
            rest = None;
            return Some(current);
        }
        let mut cut = len_max;
        while !current.is_char_boundary(cut) {
            cut -= 1;
        }
        let (head, _) = current.split_at(cut);
        if let Some(at) = head.rfind([' ', ',']).filter(|at| *at >= len_max / 2) {
            cut = at + 1;
        }
        let (head, tail) = current.split_at(cut);
        rest = Some(tail);
        Some(head)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;
    use crate::clock::ManualClock;

    fn log_to(destination: Destination, level: u32) -> Maillog {
        let settings = LogSettings {
            destination,
            tag: "sm-mta".to_owned(),
            host: "gold".to_owned(),
            level,
        };
        Maillog::open(&settings, Arc::new(ManualClock::at(1_795_368_981_000)))
    }

    fn receive(socket: &UnixDatagram) -> String {
        let mut packet = [0; 4_096];
        socket
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let len = socket.recv(&mut packet).unwrap();
        String::from_utf8(packet[..len].to_vec()).unwrap()
    }

    #[test]
    fn a_packet_has_priority_time_tag_and_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let syslogd = UnixDatagram::bind(&path).unwrap();
        let log = log_to(Destination::Syslog(path), 9);
        log.write(Severity::Info, 9, QueueId::None, "connect");
        let packet = receive(&syslogd);
        let (priority, rest) = packet.split_at(4);
        assert_eq!(priority, "<22>");
        assert_eq!(
            rest[15..],
            format!(" sm-mta[{}]: NOQUEUE: connect", std::process::id())
        );
    }

    #[test]
    fn a_line_in_a_file_has_time_host_tag_and_process() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("maillog");
        let log = log_to(Destination::File(path.clone()), 9);
        let id = MessageId::first_of(1_795_368_981, 7);
        log.write(Severity::Info, 9, id.into(), "from=<>, size=0");
        log.write(Severity::Info, 10, id.into(), "too detailed");
        log.write(Severity::Notice, 0, QueueId::Omitted, "alone");
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().map(|line| &line[15..]).collect();
        let process = std::process::id();
        assert_eq!(
            lines,
            [
                format!(" gold sm-mta[{process}]: {id}: from=<>, size=0"),
                format!(" gold sm-mta[{process}]: alone"),
            ]
        );
    }

    #[test]
    fn the_time_has_a_blank_before_a_short_day() {
        let utc = jiff::tz::TimeZone::UTC;
        assert_eq!(stamp_text(1_795_369_559, &utc), "Nov 22 17:45:59");
        assert_eq!(stamp_text(0, &utc), "Jan  1 00:00:00");
        assert_eq!(stamp_text(u64::MAX, &utc), "Jan  1 00:00:00");
    }

    #[test]
    fn nobody_can_forge_a_line_or_hide_one() {
        let mut text = String::new();
        push_harmless(
            &mut text,
            "a\r\nNov 1 x: to=<b>\0\x1b[2J\u{9b}\u{202e}\t\x7fé\\",
        );
        assert_eq!(
            text,
            "a\\r\\nNov 1 x: to=<b>\\000\\033[2J\\302\\233\\342\\200\\256\\t\\177é\\\\"
        );
    }

    #[test]
    fn long_texts_are_continued_and_very_long_ones_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("maillog");
        let log = log_to(Destination::File(path.clone()), 9);
        let word = "é".repeat(40);
        let long = format!("{word} ").repeat(200);
        log.write(Severity::Info, 0, QueueId::None, &long);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.len() < TEXT_LEN_MAX + 16 * 100);
        for (number, line) in (1..).zip(text.lines()) {
            assert!(line.len() < LINE_LEN_MAX + 64);
            assert!(line.contains(&format!("NOQUEUE[{number}]: ")), "{line}");
        }
        assert!(text.ends_with("...\n"));
        let joined: usize = pieces(&long, 100).map(str::len).sum();
        assert_eq!(joined, long.len());
    }

    #[test]
    fn a_restarted_syslogd_is_found_again_and_told_of_lost_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let settings = LogSettings {
            destination: Destination::Syslog(path.clone()),
            tag: "t".to_owned(),
            host: "h".to_owned(),
            level: 9,
        };
        let clock = Arc::new(ManualClock::at(1_795_368_981_000));
        let log = Maillog::open(&settings, Arc::clone(&clock) as Arc<dyn Clock>);
        let write = |text| log.write(Severity::Info, 0, QueueId::None, text);
        write("nobody hears this");
        clock.advance(STALL_PAUSE);
        let first = UnixDatagram::bind(&path).unwrap();
        write("one");
        assert!(receive(&first).contains("1 lines lost"));
        assert!(receive(&first).ends_with("NOQUEUE: one"));
        drop(first);
        std::fs::remove_file(&path).unwrap();
        let second = UnixDatagram::bind(&path).unwrap();
        clock.advance(STALL_PAUSE);
        write("two");
        assert!(receive(&second).ends_with("NOQUEUE: two"));
    }

    #[test]
    fn a_syslogd_that_does_not_read_costs_one_wait_and_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let syslogd = UnixDatagram::bind(&path).unwrap();
        let clock = Arc::new(ManualClock::at(1_795_368_981_000));
        let settings = LogSettings {
            destination: Destination::Syslog(path),
            tag: "t".to_owned(),
            host: "h".to_owned(),
            level: 9,
        };
        let log = Maillog::open(&settings, Arc::clone(&clock) as Arc<dyn Clock>);
        // More than any socket's buffer holds; without the rule that one wait
        // is followed by a pause this would take minutes.
        for _ in 0..5_000 {
            log.write(Severity::Info, 0, QueueId::None, &"x".repeat(500));
        }
        syslogd.set_nonblocking(true).unwrap();
        let mut packet = [0; 4_096];
        while syslogd.recv(&mut packet).is_ok() {}
        syslogd.set_nonblocking(false).unwrap();
        clock.advance(STALL_PAUSE);
        log.write(Severity::Info, 0, QueueId::None, "after");
        assert!(receive(&syslogd).ends_with(" lines lost"));
        assert!(receive(&syslogd).ends_with("NOQUEUE: after"));
    }

    #[test]
    fn lines_of_many_threads_stay_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("maillog");
        let log = log_to(Destination::File(path.clone()), 9);
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let log = log.clone();
                scope.spawn(move || {
                    for number in 0..200 {
                        let text = format!("thread {thread} line {number} end");
                        log.write(Severity::Info, 0, QueueId::None, &text);
                    }
                });
            }
        });
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 1_600);
        assert!(
            text.lines()
                .all(|line| line.ends_with(" end") && line.matches("NOQUEUE").count() == 1)
        );
    }

    #[test]
    fn a_moved_file_is_made_anew_when_the_log_is_reopened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("maillog");
        let log = log_to(Destination::File(path.clone()), 9);
        log.write(Severity::Info, 0, QueueId::None, "old");
        std::fs::rename(&path, dir.path().join("maillog.1")).unwrap();
        log.reopen();
        log.write(Severity::Info, 0, QueueId::None, "new");
        assert!(std::fs::read_to_string(&path).unwrap().ends_with("new\n"));
    }
}
