//! Deliveries a second to local users from a queue that is full, beside Postfix and Sendmail.
//!
//! Each system takes the messages over SMTP while it may not deliver, is started anew, and delivers: to one mailbox, to one
//! Maildir, to the mailboxes of 100 users. What is counted is what lies in the mailboxes, read as it grows, from the first
//! look that finds something to the one that finds all; for ours, all outcomes must have been logged as well, and they come
//! after the sync. Systems and rounds are interleaved in one run; printed are the median, the spread and the ratio to
//! ours. Nothing is asserted of time; that every message arrived once is.
//!
//! `cargo bench --bench local`; `LOCAL_MESSAGES` (10000), `LOCAL_ROUNDS` (3), `LOCAL_CASES` (mbox,maildir,users). The others
//! are measured as root with `PEERS`, a folder whose scripts `up NAME MODE` and `down NAME` start and stop a system in a
//! chroot `$LAB_ROOT/NAME`, sendmail on port 2501, postfix on 2502, for the domain lab.test; their settings are as
//! shipped, but for Maildirs and, for mboxes, Sendmail's own mail.local. Without it, they are named as missing.

#![expect(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    reason = "a bench may panic, and its counts are small numbers"
)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use diligence::clock::{Clock, SystemClock};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, chown, getgid, getuid};

const USERS: usize = 100;
const CONTENT_BYTES: usize = 4096;
const CLIENTS: usize = 10;
/// The pause between two looks at the mailboxes.
const LOOK: Duration = Duration::from_millis(20);
/// After this time without a further message a system is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// What FEATURE(local_lmtp) makes of the local mailer.
const MAIL_LOCAL: &str = "P=/usr/libexec/sendmail/mail.local, F=PSXmnz9lsDFMAw5:/|@q,";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    Mbox,
    Maildir,
    Users,
}

impl Case {
    fn of(name: &str) -> Self {
        match name {
            "mbox" => Self::Mbox,
            "maildir" => Self::Maildir,
            "users" => Self::Users,
            _ => panic!("no such case: {name}"),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Mbox => "one mbox",
            Self::Maildir => "one Maildir",
            Self::Users => "100 users",
        }
    }

    /// Whose mail the message of this number is.
    fn user(self, number: usize) -> String {
        match self {
            Self::Users => format!("u{}", number % USERS),
            _ => "u0".to_owned(),
        }
    }
}

/// A mail system whose files are below one folder.
trait System {
    fn name(&self) -> &'static str;
    /// Removes its queue, mail and log.
    fn wipe(&self);
    /// Starts it, so that it accepts and holds.
    fn hold(&mut self, case: Case) -> u16;
    /// Starts it, so that it delivers what it has.
    fn deliver(&mut self, case: Case);
    fn stop(&mut self);
    fn mailboxes(&self) -> PathBuf;
    fn homes(&self) -> PathBuf;
    /// Outcomes it has told of, where that can be asked cheaply.
    fn outcomes(&self) -> Option<usize>;
}

/// This program, with a configuration of its own.
struct Ours {
    folder: PathBuf,
    child: Option<Child>,
}

impl Ours {
    fn start(&mut self, mode: &str, case: Case) -> u16 {
        let here = self.folder.display();
        for name in ["spool", "mail", "log", "run", "home"] {
            fs::create_dir_all(self.folder.join(name)).unwrap();
        }
        let mut users = String::new();
        for number in 0..USERS {
            let home = self.folder.join(format!("home/u{number}"));
            fs::create_dir_all(&home).unwrap();
            // Root's programs deliver as the users; anybody else's as themselves.
            let (uid, gid) = if getuid().is_root() {
                let uid = 20_000 + u32::try_from(number).unwrap();
                chown(&home, Some(Uid::from_raw(uid)), None).unwrap();
                (uid, 8)
            } else {
                (getuid().as_raw(), getgid().as_raw())
            };
            users.push_str(&format!(
                "u{number}:x:{uid}:{gid}::{}:/bin/sh\n",
                home.display()
            ));
        }
        fs::write(self.folder.join("passwd"), users).unwrap();
        fs::write(self.folder.join("local-host-names"), "lab.test\n").unwrap();
        fs::write(self.folder.join("aliases"), "postmaster: u0\n").unwrap();
        fs::write(self.folder.join("relay-domains"), "").unwrap();
        let mailer = if case == Case::Maildir {
            "mailer = [\"md, P=[MAILDIR], F=lw, A=MAILDIR $z/Maildir\"]\nlocal_mailer = \"md\"\n"
        } else {
            ""
        };
        fs::write(
            self.folder.join("sendmail.toml"),
            format!(
                "host_name = \"mx.lab.test\"\ndaemon_port_options = [\"Name=MTA, Addr=127.0.0.1, Port=0\"]\n\
                 run_as_user = \"root\"\nqueue_directory = \"{here}/spool\"\nmailbox_directory = \"{here}/mail\"\n\
                 log_file = \"{here}/log/maillog\"\npid_file = \"{here}/run/sendmail.pid\"\n\
                 control_socket_name = \"{here}/run/control\"\nsmtp_address_file = \"{here}/run/smtp\"\n\
                 passwd_file = \"{here}/passwd\"\nlocal_host_names = \"{here}/local-host-names\"\n\
                 relay_domains = \"{here}/relay-domains\"\nalias_file = [\"text:{here}/aliases\"]\naccess_db = \"\"\n\
                 accept_unresolvable_domains = true\ndont_blame_sendmail = \"TrustStickyBit\"\n\
                 delivery_mode = \"{mode}\"\n{mailer}"
            ),
        )
        .unwrap();
        let addresses = self.folder.join("run/smtp");
        let _ = fs::remove_file(&addresses);
        let child = Command::new(env!("CARGO_BIN_EXE_sendmail"))
            .arg("-C")
            .arg(self.folder.join("sendmail.toml"))
            .arg("-bD")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        loop {
            let text = fs::read_to_string(&addresses).unwrap_or_default();
            if let Some(port) = text.trim().rsplit(':').next().and_then(|p| p.parse().ok()) {
                return port;
            }
            std::thread::sleep(LOOK);
        }
    }
}

impl System for Ours {
    fn name(&self) -> &'static str {
        "diligence"
    }

    fn wipe(&self) {
        let _ = fs::remove_dir_all(&self.folder);
    }

    fn hold(&mut self, case: Case) -> u16 {
        self.start("queue", case)
    }

    fn deliver(&mut self, case: Case) {
        self.start("background", case);
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
            kill(pid, Signal::SIGTERM).unwrap();
            child.wait().unwrap();
        }
    }

    fn mailboxes(&self) -> PathBuf {
        self.folder.join("mail")
    }

    fn homes(&self) -> PathBuf {
        self.folder.join("home")
    }

    fn outcomes(&self) -> Option<usize> {
        let log = fs::read_to_string(self.folder.join("log/maillog")).unwrap_or_default();
        Some(log.matches("stat=Sent").count())
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Another one, in its chroot.
struct Peer {
    name: &'static str,
    port: u16,
    scripts: PathBuf,
    root: PathBuf,
}

impl Peer {
    fn script(&self, arguments: &[&str]) {
        let (name, arguments) = arguments.split_first().unwrap();
        let status = Command::new(self.scripts.join(name))
            .args(arguments)
            .stdin(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success(), "{name} {arguments:?}");
    }

    fn inside(&self, arguments: &[&str]) {
        let output = Command::new("chroot")
            .arg(&self.root)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }

    fn prepare(&self, case: Case) {
        let passwd = self.root.join("etc/passwd");
        let mut users = fs::read_to_string(&passwd).unwrap();
        for number in 0..USERS {
            let uid = 20_000 + number;
            if !users.contains(&format!("\nu{number}:")) {
                users.push_str(&format!("u{number}:x:{uid}:8::/home/u{number}:/bin/sh\n"));
            }
            let home = self.root.join(format!("home/u{number}"));
            fs::create_dir_all(&home).unwrap();
            let uid = Uid::from_raw(u32::try_from(uid).unwrap());
            chown(&home, Some(uid), None).unwrap();
        }
        fs::write(passwd, users).unwrap();
        let is_maildir = case == Case::Maildir;
        if self.name == "postfix" {
            let home = if is_maildir { "Maildir/" } else { "" };
            self.inside(&["postconf", "-e", &format!("home_mailbox={home}")]);
        } else {
            // procmail, Debian's default, delivers two a second to a busy mbox; Sendmail's own mail.local is faster, but
            // knows no Maildirs.
            let cf = self.root.join("etc/mail/lab.cf");
            let shipped = self.root.join("etc/mail/lab.cf.shipped");
            if !shipped.exists() {
                fs::copy(&cf, &shipped).unwrap();
            }
            let mut text = fs::read_to_string(&shipped).unwrap();
            if !is_maildir {
                for (from, to) in [
                    ("P=/usr/sbin/sensible-mda, F=lsDFMAw5:/|@qPn9S,", MAIL_LOCAL),
                    ("A=sensible-mda $g $u $h ${client_addr}", "A=mail.local -l"),
                ] {
                    assert!(text.contains(from), "{}: no {from}", shipped.display());
                    text = text.replace(from, to);
                }
            }
            fs::write(cf, text).unwrap();
            let rule = self.root.join("etc/procmailrc");
            let _ = fs::remove_file(&rule);
            if is_maildir {
                fs::write(rule, "DEFAULT=$HOME/Maildir/\n").unwrap();
            }
        }
    }
}

impl System for Peer {
    fn name(&self) -> &'static str {
        self.name
    }

    fn wipe(&self) {
        self.script(&["down", self.name]);
        let spool = if self.name == "postfix" {
            [
                "maildrop", "incoming", "active", "deferred", "hold", "defer",
            ]
            .map(|queue| format!("var/spool/postfix/{queue}"))
            .to_vec()
        } else {
            vec!["var/spool/mqueue".to_owned()]
        };
        for folder in spool.into_iter().chain(["var/mail".to_owned()]) {
            remove_files(&self.root.join(folder));
        }
        for number in 0..USERS {
            let _ = fs::remove_dir_all(self.root.join(format!("home/u{number}/Maildir")));
        }
    }

    fn hold(&mut self, case: Case) -> u16 {
        self.prepare(case);
        self.script(&["up", self.name, "queue"]);
        self.port
    }

    fn deliver(&mut self, _: Case) {
        if self.name == "postfix" {
            self.inside(&["postsuper", "-H", "ALL"]);
        }
        self.script(&["up", self.name, "local"]);
        if self.name == "postfix" {
            self.inside(&["postqueue", "-f"]);
        }
    }

    fn stop(&mut self) {
        self.script(&["down", self.name]);
    }

    fn mailboxes(&self) -> PathBuf {
        self.root.join("var/mail")
    }

    fn homes(&self) -> PathBuf {
        self.root.join("home")
    }

    fn outcomes(&self) -> Option<usize> {
        None
    }
}

fn remove_files(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_files(&entry.path());
        } else {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// What lies in the mailboxes, counted as it grows.
struct Seen {
    case: Case,
    mailboxes: PathBuf,
    maildir: PathBuf,
    /// Of each mailbox: bytes read, what the last line read ends in, messages.
    read: BTreeMap<PathBuf, (u64, Vec<u8>, usize)>,
}

impl Seen {
    fn new(case: Case, system: &dyn System) -> Self {
        Self {
            case,
            mailboxes: system.mailboxes(),
            maildir: system.homes().join("u0/Maildir/new"),
            read: BTreeMap::new(),
        }
    }

    fn count(&mut self) -> usize {
        if self.case == Case::Maildir {
            return fs::read_dir(&self.maildir).map_or(0, Iterator::count);
        }
        for number in 0..USERS {
            let path = self.mailboxes.join(self.case.user(number));
            let Ok(mut file) = File::open(&path) else {
                continue;
            };
            let (from, tail, messages) = self.read.entry(path).or_default();
            file.seek(SeekFrom::Start(*from)).unwrap();
            let mut bytes = std::mem::take(tail);
            *from += u64::try_from(file.read_to_end(&mut bytes).unwrap()).unwrap();
            // A mark in the last line of each content; half a line is looked at again.
            let whole = bytes
                .iter()
                .rposition(|b| *b == b'\n')
                .map_or(0, |at| at + 1);
            let lines = bytes[..whole].split(|b| *b == b'\n');
            *messages += lines.filter(|line| *line == b"the end").count();
            *tail = bytes.split_off(whole);
            if self.case != Case::Users {
                break;
            }
        }
        self.read.values().map(|(_, _, messages)| messages).sum()
    }
}

/// Hands messages to a system, on several connections.
fn fill(port: u16, case: Case, messages: usize) {
    let line = "x".repeat(63);
    let mut content = "Subject: local delivery\r\nFrom: <s@client.test>\r\n\r\n".to_owned();
    while content.len() + line.len() + 12 < CONTENT_BYTES {
        content.push_str(&line);
        content.push_str("\r\n");
    }
    content.push_str("the end\r\n");
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let content = &content;
            scope.spawn(move || {
                let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
                stream.set_nodelay(true).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let mut stream = BufReader::new(stream);
                expect(&mut stream, "220");
                say(&mut stream, "EHLO client.test\r\n", "250");
                for number in (client..messages).step_by(CLIENTS) {
                    say(&mut stream, "MAIL FROM:<s@client.test>\r\n", "250");
                    let rcpt = format!("RCPT TO:<{}@lab.test>\r\n", case.user(number));
                    say(&mut stream, &rcpt, "250");
                    say(&mut stream, "DATA\r\n", "354");
                    say(&mut stream, &format!("{content}.\r\n"), "250");
                }
                say(&mut stream, "QUIT\r\n", "221");
            });
        }
    });
}

fn say(stream: &mut BufReader<TcpStream>, text: &str, code: &str) {
    stream.get_ref().write_all(text.as_bytes()).unwrap();
    expect(stream, code);
}

fn expect(stream: &mut BufReader<TcpStream>, code: &str) {
    let mut line = String::new();
    loop {
        line.clear();
        stream.read_line(&mut line).unwrap();
        if line.as_bytes().get(3) != Some(&b'-') {
            assert!(line.starts_with(code), "{code}: {line}");
            return;
        }
    }
}

/// Deliveries a second.
fn measure(system: &mut dyn System, case: Case, messages: usize, clock: &dyn Clock) -> f64 {
    system.wipe();
    let port = system.hold(case);
    fill(port, case, messages);
    system.stop();
    let mut seen = Seen::new(case, system);
    assert_eq!(seen.count(), 0, "{} has delivered already", system.name());
    system.deliver(case);
    let (mut first, mut last) = (None, (clock.monotonic(), 0));
    let rate = loop {
        let (now, count) = (clock.monotonic(), seen.count());
        if first.is_none() && count > 0 {
            first = Some((now, count));
        }
        if count > last.1 {
            last = (now, count);
        }
        let is_told = || system.outcomes().is_none_or(|told| told >= messages);
        if count >= messages && is_told() {
            let (begun, before) = first.unwrap();
            break (messages - before) as f64 / (clock.monotonic() - begun).as_secs_f64();
        }
        assert!(
            now - last.0 < PATIENCE,
            "{}: {count} of {messages} delivered, and no more",
            system.name()
        );
        std::thread::sleep(LOOK);
    };
    system.stop();
    assert_eq!(seen.count(), messages, "{}: delivered once", system.name());
    system.wipe();
    rate
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

/// The systems to be measured, ours first, and why others are not.
fn systems() -> (Vec<Box<dyn System>>, Vec<String>) {
    let lab = std::env::var_os("LAB_ROOT").map(PathBuf::from);
    let folder = lab
        .clone()
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")))
        .join("local-bench");
    let mut systems: Vec<Box<dyn System>> = vec![Box::new(Ours {
        folder,
        child: None,
    })];
    let mut missing = Vec::new();
    for (name, port) in [("postfix", 2502), ("sendmail", 2501)] {
        match (std::env::var_os("PEERS"), &lab) {
            (Some(scripts), Some(lab)) if lab.join(name).exists() => {
                systems.push(Box::new(Peer {
                    name,
                    port,
                    scripts: scripts.into(),
                    root: lab.join(name),
                }));
            }
            _ => missing.push(format!(
                "{name}: not measured, PEERS and LAB_ROOT do not say where it is"
            )),
        }
    }
    (systems, missing)
}

fn main() {
    let is_test = std::env::args().any(|argument| argument == "--test");
    let messages = if is_test {
        300
    } else {
        number("LOCAL_MESSAGES", 10_000)
    };
    let rounds = if is_test {
        1
    } else {
        number("LOCAL_ROUNDS", 3)
    };
    let cases = std::env::var("LOCAL_CASES").unwrap_or_else(|_| "mbox,maildir,users".to_owned());
    let clock = SystemClock::new();
    let (mut systems, missing) = systems();
    if is_test {
        systems.truncate(1);
    }
    println!("local: {messages} messages of {CONTENT_BYTES} bytes, {rounds} rounds");
    missing.iter().for_each(|line| println!("{line}"));
    for case in cases.split(',').map(Case::of) {
        let mut rates: Vec<Vec<f64>> = vec![Vec::new(); systems.len()];
        for _ in 0..rounds {
            for (rates, system) in rates.iter_mut().zip(&mut systems) {
                rates.push(measure(system.as_mut(), case, messages, &clock));
            }
        }
        let mut ours = None;
        for (rates, system) in rates.iter_mut().zip(&systems) {
            rates.sort_by(f64::total_cmp);
            let median = rates[rates.len() / 2];
            let ours = *ours.get_or_insert(median);
            println!(
                "{:12} {:10} {median:9.0} deliveries/s, {:.0} to {:.0}, ours {:.2} times",
                case.name(),
                system.name(),
                rates[0],
                rates[rates.len() - 1],
                ours / median
            );
        }
    }
}
