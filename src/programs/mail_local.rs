//! `mail.local`: puts a message into the mailboxes of local users, from standard input or over LMTP.
//!
//! Guarantees: a mailbox is opened, locked, written and synced as the daemon's own mailer does it (`deliver/mailbox.rs`);
//! what is answered as delivered has been synced. The message is kept in an unnamed file, so that memory is bounded and
//! nothing is written to a mailbox before all of it has come. Lines that begin with `From ` are quoted, and Return-Path is written; there is no Content-Length. Never
//! asks anybody.
//! Limits: [`MESSAGE_BYTES_MAX`], [`LINE_BYTES_MAX`], [`RECIPIENTS_MAX`], [`LOCK_WAIT_MAX`]. Blocks: disk, locks, standard input.
//! Source: mail.local(8) of Sendmail 8.17, transcript 62 part 7; RFC 2033.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Gid, Uid};

use crate::address::{Address, ReversePath};
use crate::clock::SystemClock;
use crate::config::Config;
use crate::config::host::HostName;
use crate::deliver::local::deliver_once;
use crate::deliver::{MailboxOptions, MailboxOwner};
use crate::envelope::{Delivery, Outcome};
use crate::safe_file::Lenience;
use crate::status::Status;
use crate::users::{User, Users};

/// The largest message.
pub const MESSAGE_BYTES_MAX: u64 = 1 << 30;
/// The longest command of LMTP, in bytes.
pub const LINE_BYTES_MAX: usize = 2048;
/// Recipients of one message.
pub const RECIPIENTS_MAX: usize = 1000;
/// Longest wait for another program's lock.
pub const LOCK_WAIT_MAX: Duration = Duration::from_secs(60);
/// Source: sysexits(3).
const EX_OK: u8 = 0;
const EX_UNAVAILABLE: u8 = 69;
const EX_TEMPFAIL: u8 = 75;

const USAGE: &str =
    "usage: mail.local [-7] [-b] [-d] [-l] [-f from|-r from] [-h filename] user ...";

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
struct Call {
    is_lmtp: bool,
    /// `-7`: 8BITMIME is not offered.
    is_seven_bit: bool,
    /// `-b`: a mailbox over its quota fails for good.
    is_full_final: bool,
    sender: Option<String>,
    /// `-h`: a file in the user's home, in the mailbox's place.
    file: Option<String>,
    users: Vec<String>,
}

impl Call {
    fn parse(arguments: &[OsString]) -> Result<Self, String> {
        let mut call = Self {
            is_lmtp: false,
            is_seven_bit: false,
            is_full_final: false,
            sender: None,
            file: None,
            users: Vec::new(),
        };
        let mut rest = arguments.iter().map(|word| word.to_string_lossy());
        while let Some(word) = rest.next() {
            let letters = match word.strip_prefix('-') {
                Some("-") => {
                    call.users.extend(rest.map(|word| word.into_owned()));
                    break;
                }
                Some(letters) if !letters.is_empty() && call.users.is_empty() => letters,
                _ => {
                    call.users.push(word.into_owned());
                    continue;
                }
            };
            let mut letters = letters.chars();
            while let Some(letter) = letters.next() {
                match letter {
                    '7' => call.is_seven_bit = true,
                    'b' => call.is_full_final = true,
                    'd' => {}
                    'l' => call.is_lmtp = true,
                    'f' | 'r' | 'h' => {
                        let attached = letters.as_str();
                        let value = if attached.is_empty() {
                            rest.next().map(|word| word.into_owned())
                        } else {
                            Some(attached.to_owned())
                        };
                        let value = value.ok_or(USAGE)?;
                        if letter == 'h' {
                            call.file = Some(value);
                        } else if call.sender.replace(value).is_some() {
                            return Err("multiple -f options".to_owned());
                        }
                        break;
                    }
                    _ => return Err(USAGE.to_owned()),
                }
            }
        }
        if call.is_lmtp != call.users.is_empty() || call.users.len() > RECIPIENTS_MAX {
            return Err(USAGE.to_owned());
        }
        let is_file_name = |name: &String| !name.contains('/') && !name.starts_with('.');
        if !call.file.iter().all(is_file_name) {
            return Err("-h: a file name without a path".to_owned());
        }
        Ok(call)
    }
}

/// Runs mail.local with these arguments, its name left out; the exit code.
#[must_use]
pub fn run(config: &Config, arguments: &[OsString]) -> u8 {
    let complain = |text: &str| {
        // Nobody is left to be told that standard error is gone.
        let _ = writeln!(io::stderr(), "mail.local: {text}");
    };
    let call = match Call::parse(arguments) {
        Ok(call) => call,
        Err(text) => {
            complain(&text);
            return EX_UNAVAILABLE;
        }
    };
    // Beyond a file size limit a write then fails, and what was written is cut off again.
    let mut blocked = SigSet::empty();
    blocked.add(Signal::SIGXFSZ);
    let _ = blocked.thread_block();
    let store = Store {
        host: HostName::find(&config.host),
        users: Users::new(
            config.paths.passwd_file.as_deref(),
            config.paths.home_directory.as_deref(),
        ),
        directory: config.paths.mailbox_directory.clone(),
        call,
        clock: SystemClock::new(),
    };
    if store.call.is_lmtp {
        let mut input = BufReader::new(io::stdin().lock());
        return match store.talk(&mut input, &mut io::stdout().lock()) {
            Ok(()) => EX_OK,
            Err(error) => {
                complain(&error.to_string());
                EX_TEMPFAIL
            }
        };
    }
    match store.deliver_all(io::stdin().lock()) {
        Ok(outcomes) => {
            let mut exit = EX_OK;
            for (user, outcome) in outcomes {
                match outcome.result {
                    Delivery::Delivered => {}
                    Delivery::Deferred => {
                        complain(&format!("{user}: {}", outcome.text));
                        exit = EX_TEMPFAIL;
                    }
                    Delivery::Failed => {
                        complain(&format!("{user}: {}", outcome.text));
                        if exit == EX_OK {
                            exit = EX_UNAVAILABLE;
                        }
                    }
                }
            }
            exit
        }
        Err(error) => {
            complain(&error.to_string());
            EX_TEMPFAIL
        }
    }
}

/// Mailboxes, and whom they belong to.
struct Store {
    host: HostName,
    users: Users,
    directory: PathBuf,
    call: Call,
    clock: SystemClock,
}

/// Where a dialogue is.
#[derive(Default)]
struct Dialogue {
    sender: Option<ReversePath>,
    recipients: Vec<(String, User)>,
}

impl Store {
    /// The message of standard input, for every user of the command line.
    fn deliver_all(&self, input: impl Read) -> io::Result<Vec<(String, Outcome)>> {
        let sender = match &self.call.sender {
            Some(text) => reverse_path(text).ok_or_else(|| io::Error::other("bad sender"))?,
            None => {
                let uid = nix::unistd::getuid().as_raw();
                let found = self.users.by_uid(uid).map_err(io::Error::other)?;
                let name = found.map_or_else(|| uid.to_string(), |user| user.name);
                ReversePath::Mailbox(Address::from_parts(&name, None))
            }
        };
        let mut file = unnamed_file()?;
        let copied = io::copy(&mut input.take(MESSAGE_BYTES_MAX + 1), &mut file)?;
        if copied > MESSAGE_BYTES_MAX {
            return Err(io::Error::other("the message is too large"));
        }
        let mut outcomes = Vec::new();
        for name in &self.call.users {
            let outcome = match self.users.lookup(name) {
                Ok(Some(user)) => self.deliver(&user, &sender, &mut file),
                Ok(None) => unknown(),
                Err(error) => deferred(&error.to_string()),
            };
            outcomes.push((name.clone(), outcome));
        }
        Ok(outcomes)
    }

    /// One message into one mailbox.
    fn deliver(&self, user: &User, sender: &ReversePath, content: &mut File) -> Outcome {
        if let Err(error) = content.seek(SeekFrom::Start(0)) {
            return deferred(&error.to_string());
        }
        let (directory, name) = match &self.call.file {
            Some(file) => (user.home.clone(), file),
            None => (self.directory.clone(), &user.name),
        };
        let owner = MailboxOwner {
            uid: user.uid,
            gid: user.gid,
        };
        // A home is its user's to change at any moment: nothing but the user's own rights is used there.
        if self.call.file.is_some()
            && let Err(error) = become_user(user)
        {
            return deferred(&format!("-h: {error}"));
        }
        let options = MailboxOptions {
            directory,
            lock_wait_max: LOCK_WAIT_MAX,
            file_lenience: Lenience::default(),
            part: None,
        };
        let mut outcome = deliver_once(
            &options,
            name,
            owner,
            sender,
            &self.host.full,
            content,
            &self.clock,
        );
        if self.call.is_full_final && outcome.status == Status::new(4, 2, 2) {
            outcome.status.class = 5;
            outcome.result = Delivery::Failed;
        }
        outcome
    }

    /// An LMTP dialogue.
    fn talk(&self, input: &mut impl BufRead, output: &mut impl Write) -> io::Result<()> {
        let mut dialogue = Dialogue::default();
        write!(output, "220 {} LMTP ready\r\n", self.host.short())?;
        output.flush()?;
        let mut line = Vec::new();
        loop {
            line.clear();
            let most = u64::try_from(LINE_BYTES_MAX).unwrap_or(u64::MAX);
            if (&mut *input).take(most).read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            if !line.ends_with(b"\n") {
                write!(output, "500 5.5.2 Line too long\r\n")?;
                return output.flush();
            }
            let text = String::from_utf8_lossy(&line);
            let text = text.trim_end_matches(['\r', '\n']);
            let verb = text.split(' ').next().unwrap_or_default();
            match verb.to_ascii_uppercase().as_str() {
                "DATA" => self.data(&mut dialogue, input, output)?,
                "QUIT" => {
                    write!(output, "221 2.0.0 Bye\r\n")?;
                    return output.flush();
                }
                verb => {
                    let reply = self.command(verb, text, &mut dialogue);
                    for line in reply {
                        write!(output, "{line}\r\n")?;
                    }
                }
            }
            output.flush()?;
        }
    }

    fn command(&self, verb: &str, text: &str, dialogue: &mut Dialogue) -> Vec<String> {
        let one = |line: &str| vec![line.to_owned()];
        match verb {
            "LHLO" => {
                *dialogue = Dialogue::default();
                let mut lines = vec![format!("250-{}", self.host.short())];
                if !self.call.is_seven_bit {
                    lines.push("250-8BITMIME".to_owned());
                }
                lines.push("250-ENHANCEDSTATUSCODES".to_owned());
                lines.push("250 PIPELINING".to_owned());
                lines
            }
            "MAIL" if dialogue.sender.is_some() => one("503 5.5.1 Nested MAIL command"),
            "MAIL" => match path(text, "FROM:").and_then(|path| reverse_path(&path)) {
                Some(sender) => {
                    dialogue.sender = Some(sender);
                    one("250 2.5.0 Ok")
                }
                None => one("501 5.5.4 Syntax error in parameters"),
            },
            "RCPT" if dialogue.sender.is_none() => one("503 5.5.1 Need MAIL command"),
            "RCPT" if dialogue.recipients.len() >= RECIPIENTS_MAX => {
                one("452 4.5.3 Too many recipients")
            }
            "RCPT" => match path(text, "TO:") {
                Some(path) => match self.users.lookup(&user_of(&path)) {
                    Ok(Some(user)) => {
                        dialogue.recipients.push((user_of(&path), user));
                        one("250 2.1.5 Ok")
                    }
                    Ok(None) => one("550 5.1.1 User unknown"),
                    Err(_) => one("451 4.3.0 User unknown; try again later"),
                },
                None => one("501 5.5.4 Syntax error in parameters"),
            },
            "RSET" => {
                *dialogue = Dialogue::default();
                one("250 2.0.0 Ok")
            }
            "NOOP" => one("250 2.0.0 Ok"),
            "VRFY" => one("252 2.3.3 Try RCPT to attempt delivery"),
            _ => one("500 5.5.2 Syntax error"),
        }
    }

    /// The content, and a reply for each recipient.
    fn data(
        &self,
        dialogue: &mut Dialogue,
        input: &mut impl BufRead,
        output: &mut impl Write,
    ) -> io::Result<()> {
        let sender = match (&dialogue.sender, dialogue.recipients.is_empty()) {
            (Some(sender), false) => sender.clone(),
            (Some(_), true) => return write!(output, "503 5.5.1 No recipients\r\n"),
            (None, _) => return write!(output, "503 5.5.1 Need MAIL command\r\n"),
        };
        write!(output, "354 Go ahead\r\n")?;
        output.flush()?;
        let mut kept = unnamed_file()?;
        let is_whole = undot(input, &mut kept)?;
        for (name, user) in std::mem::take(&mut dialogue.recipients) {
            let outcome = if is_whole {
                self.deliver(&user, &sender, &mut kept)
            } else {
                Outcome::new(
                    Delivery::Failed,
                    Status::new(5, 2, 3),
                    "local",
                    "Message is too large",
                )
            };
            let code = match outcome.result {
                Delivery::Delivered => {
                    write!(output, "250 2.1.5 {name} Ok\r\n")?;
                    output.flush()?;
                    continue;
                }
                Delivery::Deferred => 451,
                Delivery::Failed => 552,
            };
            let text = outcome.text.trim_start_matches("Deferred: ");
            write!(output, "{code} {} {name}: {text}\r\n", outcome.status)?;
            output.flush()?;
        }
        dialogue.sender = None;
        Ok(())
    }
}

/// Takes content up to the final dot; `false` if it was more than [`MESSAGE_BYTES_MAX`]. An end before the dot is an
/// error: nothing is delivered then.
fn undot(input: &mut impl BufRead, kept: &mut File) -> io::Result<bool> {
    let mut out = BufWriter::with_capacity(64 << 10, kept);
    let mut bytes: u64 = 0;
    let mut is_line_start = true;
    let mut piece = Vec::new();
    loop {
        piece.clear();
        let most = 64 << 10;
        if (&mut *input).take(most).read_until(b'\n', &mut piece)? == 0 {
            let gone = "the connection ended within a message";
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, gone));
        }
        let text = match piece.strip_prefix(b".") {
            Some(b"\r\n" | b"\n") if is_line_start => {
                out.flush()?;
                return Ok(bytes <= MESSAGE_BYTES_MAX);
            }
            Some(text) if is_line_start => text,
            _ => piece.as_slice(),
        };
        bytes = bytes.saturating_add(u64::try_from(text.len()).unwrap_or(u64::MAX));
        if bytes <= MESSAGE_BYTES_MAX {
            out.write_all(text)?;
        }
        is_line_start = piece.ends_with(b"\n");
    }
}

/// What stands between the angle brackets of `MAIL FROM:<a@b> ...`.
fn path(text: &str, word: &str) -> Option<String> {
    let after = text.split_once(' ')?.1.trim_start();
    let (head, rest) = after.split_at_checked(word.len())?;
    if !head.eq_ignore_ascii_case(word) {
        return None;
    }
    let inner = rest.trim_start().strip_prefix('<')?;
    let end = inner.rfind('>')?;
    let parameters = inner.get(end + 1..)?;
    (parameters.is_empty() || parameters.starts_with(' '))
        .then(|| inner.get(..end).map(str::to_owned))?
}

fn reverse_path(text: &str) -> Option<ReversePath> {
    if text.is_empty() {
        return Some(ReversePath::Null);
    }
    Address::parse(text).ok().map(ReversePath::Mailbox)
}

/// The user of `user+detail@host`.
fn user_of(path: &str) -> String {
    let local = Address::parse(path).map_or_else(|_| path.to_owned(), |a| a.local_unquoted());
    local.split('+').next().unwrap_or_default().to_owned()
}

/// Gives up root's rights for a user's, for good: the next user of the same run cannot be served.
fn become_user(user: &User) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    if nix::unistd::geteuid() == uid {
        return Ok(());
    }
    nix::unistd::setgroups(&[gid])?;
    nix::unistd::setresgid(gid, gid, gid)?;
    nix::unistd::setresuid(uid, uid, uid)?;
    Ok(())
}

/// A file without a name, which goes with the process.
fn unnamed_file() -> io::Result<File> {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let folder = std::env::temp_dir();
    let made = open(&folder, flags, Mode::from_raw_mode(0o600))?;
    Ok(File::from(made))
}

fn unknown() -> Outcome {
    Outcome::new(Delivery::Failed, Status::NO_USER, "local", "User unknown")
}

fn deferred(reason: &str) -> Outcome {
    Outcome::new(Delivery::Deferred, Status::new(4, 3, 0), "local", reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Call, String> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        Call::parse(&words)
    }

    #[test]
    fn arguments_are_mail_locals() {
        let call = parsed(&["-7", "-bd", "-fa@b", "bob", "carol"]).unwrap();
        assert!(call.is_seven_bit && call.is_full_final && !call.is_lmtp);
        assert_eq!(call.sender.as_deref(), Some("a@b"));
        assert_eq!(call.users, ["bob", "carol"]);
        assert_eq!(
            parsed(&["-r", "a", "-d", "--", "-x"]).unwrap().users,
            ["-x"]
        );
        assert!(parsed(&["-l"]).unwrap().is_lmtp);
        for bad in [
            &[][..],
            &["-l", "bob"],
            &["-x", "bob"],
            &["-f"],
            &["-f", "a", "-r", "b", "bob"],
            &["-h", "../x", "bob"],
            &["-h", ".profile", "bob"],
        ] {
            assert!(parsed(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn paths_and_users_are_taken_from_commands() {
        assert_eq!(path("MAIL FROM:<a@b> SIZE=1", "FROM:").unwrap(), "a@b");
        assert_eq!(path("mail from: <>", "FROM:").unwrap(), "");
        for bad in [
            "MAIL",
            "MAIL a@b",
            "MAIL TO:<a>",
            "MAIL FROM:a",
            "MAIL FROM:<a>b",
        ] {
            assert_eq!(path(bad, "FROM:"), None, "{bad}");
        }
        assert_eq!(user_of("bob+x@h.test"), "bob");
        assert_eq!(user_of("bob"), "bob");
    }

    #[test]
    fn content_ends_at_the_dot_and_never_before() {
        let mut file = unnamed_file().unwrap();
        let mut input: &[u8] = b"a\r\n..b\r\n.c\r\n.\r\nNOOP\r\n";
        assert!(undot(&mut input, &mut file).unwrap());
        assert_eq!(input, b"NOOP\r\n");
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "a\r\n.b\r\nc\r\n");
        let mut cut: &[u8] = b"a\r\nb";
        assert!(undot(&mut cut, &mut unnamed_file().unwrap()).is_err());
    }
}
