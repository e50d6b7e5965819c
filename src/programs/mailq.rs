//! The queue listing: `mailq`, `sendmail -bp`.
//!
//! Prints what Sendmail prints, column for column, because people and programs parse it. Asks the owner of the queue
//! over its control socket; without an owner it reads the spool itself, without a lock, so that it never stands in
//! anybody's way. A client queue is listed with the drop files that nobody has absorbed yet. Blocks: disk or the
//! owner. Control characters in what strangers sent are shown as `^X`, never passed on to a terminal.
//!
//! Memory: the listing is held until it is sorted, about 200 bytes a message. Source: Sendmail's mailq(1).

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::clock::{Clock, SystemClock};
use crate::config::{Config, Privacy, Role};
use crate::control::listing::Listed;
use crate::control::selection::Selection;
use crate::control::{ControlError, Conversation, Frame, Request};
use crate::envelope::RecipientState;
use crate::programs::DROP_FOLDER;
use crate::spool::drop_file::{self, DropError};
use crate::spool::reader::SpoolReader;
use crate::spool::{SpoolError, StoredMessage};
use crate::status::ExitCode;

/// How many characters of a sender the short form shows.
const SENDER_CHARS_MAX: usize = 39;
/// How many characters of a recipient the short form shows.
const RECIPIENT_CHARS_MAX: usize = 38;
/// How many characters of a reason the short form shows.
const REASON_CHARS_MAX: usize = 60;
/// How many characters of a reason the verbose form shows.
const REASON_CHARS_MAX_VERBOSE: usize = 100;
/// How many characters of a controlling user the verbose form shows.
const CONTROLLING_USER_CHARS_MAX: usize = 64;

/// How much is written to standard output at once, in bytes.
const OUTPUT_BYTES: usize = 64 * 1024;
/// The state of a recipient of a drop file.
const NOT_TRIED: RecipientState = RecipientState::Pending {
    last: None,
    tries: 0,
};

/// How much is shown of each message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// As `mailq` does.
    Short,
    /// As `mailq -v` does: priorities, whole addresses, controlling users.
    Verbose,
}

/// Why a listing could not be made.
#[derive(Debug, thiserror::Error)]
enum ListError {
    /// The owner of the queue refused, or the conversation with it failed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The spool could not be read.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The drop folder could not be read.
    #[error("{}: {source}", folder.display())]
    Drops {
        /// The folder.
        folder: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

impl ListError {
    fn exit(&self) -> ExitCode {
        match self {
            Self::Control(ControlError::Refused { exit, .. }) => {
                ExitCode::from_code(*exit).unwrap_or(ExitCode::Software)
            }
            Self::Control(_) => ExitCode::TempFail,
            Self::Spool(SpoolError::Io { source, .. }) => exit_of(source),
            Self::Drops { source, .. } => exit_of(source),
            Self::Spool(_) => ExitCode::OsErr,
        }
    }
}

fn exit_of(error: &io::Error) -> ExitCode {
    if error.kind() == io::ErrorKind::PermissionDenied {
        ExitCode::NoPerm
    } else {
        ExitCode::OsErr
    }
}

/// Lists the queue of this configuration's role on standard output.
///
/// Blocks: disk, or the owner of the queue.
pub fn run(config: &Config, selection: &Selection, detail: Detail) -> ExitCode {
    let (directory, mut messages) = match listing(config, selection) {
        Ok(listing) => listing,
        Err(error) => {
            eprintln!("mailq: {error}");
            return error.exit();
        }
    };
    let mut out = BufWriter::with_capacity(OUTPUT_BYTES, io::stdout().lock());
    let printed = print(&mut out, &directory, &mut messages, detail)
        .and_then(|()| print_total(&mut out, messages.len()))
        .and_then(|()| out.flush());
    match printed {
        Ok(()) => ExitCode::Ok,
        // The reader of a pipe has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::Ok,
        Err(error) => {
            eprintln!("mailq: standard output: {error}");
            ExitCode::IoErr
        }
    }
}

/// The messages that are meant and the directory they are in, from the owner if there is one.
fn listing(config: &Config, selection: &Selection) -> Result<(PathBuf, Vec<Listed>), ListError> {
    let directory = config.paths.queue_directory.clone();
    let clock = SystemClock::new();
    // Looked at before the spool: what is absorbed between the two looks is seen twice, and never by neither.
    let drops = match config.role {
        Role::Msp => read_drops(&directory, selection, &clock),
        Role::Mta => Ok(Vec::new()),
    };
    let mut messages = match ask_owner(config, selection) {
        Ok(messages) => messages,
        Err(ControlError::NoOwner { .. } | ControlError::Denied { .. }) => {
            may_read(config)?;
            read_spool(&directory, selection, &clock)?
        }
        Err(error) => return Err(error.into()),
    };
    messages.extend(drops?);
    Ok((directory, messages))
}

fn ask_owner(config: &Config, selection: &Selection) -> Result<Vec<Listed>, ControlError> {
    let request = Request::List(selection.clone());
    let mut conversation = Conversation::begin(&config.paths.control_socket, &request)?;
    let mut messages = Vec::new();
    while let Some(frame) = conversation.next_frame()? {
        if let Frame::Message(message) = frame {
            messages.push(*message);
        }
    }
    Ok(messages)
}

/// What the owner would check: `restrictmailq` leaves the listing to root and to the queue's own user.
fn may_read(config: &Config) -> Result<(), ControlError> {
    let uid = rustix::process::getuid();
    let is_restricted = config.smtpd.privacy.has(Privacy::RestrictMailq);
    let is_owner = || {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(&config.paths.queue_directory)
            .is_ok_and(|found| found.uid() == uid.as_raw())
    };
    if !is_restricted || uid.is_root() || is_owner() {
        return Ok(());
    }
    Err(ControlError::Refused {
        exit: ExitCode::NoPerm as u8,
        text: "You are not permitted to see the queue".to_owned(),
    })
}

/// Reads the spool without its owner and without its lock.
fn read_spool(
    directory: &Path,
    selection: &Selection,
    clock: &dyn Clock,
) -> Result<Vec<Listed>, ListError> {
    let reader = SpoolReader::open(directory, clock)?;
    for remark in &reader.report().remarks {
        if reader.report().is_damaged {
            eprintln!("mailq: {}: {remark}", directory.display());
        }
    }
    let now_unix_ms = clock.unix_ms();
    let mut messages = Vec::new();
    for id in reader.ids() {
        let listed = match reader.message(id) {
            Ok(message) => Listed::of(&message, now_unix_ms),
            Err(SpoolError::NotFound(_)) => continue,
            Err(error) => Listed::damaged(id, error.to_string()),
        };
        if selection.holds_for(&listed) {
            messages.push(listed);
        }
    }
    Ok(messages)
}

/// The drop files that the queue's runner has not absorbed yet. What another user may not read is left out.
fn read_drops(
    directory: &Path,
    selection: &Selection,
    clock: &dyn Clock,
) -> Result<Vec<Listed>, ListError> {
    let folder = directory.join(DROP_FOLDER);
    let names = match drop_file::list(&folder) {
        Ok(names) => names,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(Vec::new()),
        Err(source) => return Err(ListError::Drops { folder, source }),
    };
    let now_unix_ms = clock.unix_ms();
    let mut messages = Vec::new();
    for name in names {
        let dropped = match drop_file::open(&folder, &name, u64::MAX) {
            Ok(dropped) => dropped,
            // Absorbed since it was listed, or none of ours: its owner will tell.
            Err(DropError::Io { .. } | DropError::Bad { .. } | DropError::Spool(_)) => continue,
        };
        let recipients = dropped.envelope.recipients.iter().cloned();
        let message = StoredMessage {
            id: dropped.message_id,
            recipients: recipients.map(|recipient| (recipient, NOT_TRIED)).collect(),
            due_unix_ms: now_unix_ms,
            is_held: false,
            hold_reason: None,
            has_warned: false,
            is_leased: false,
            content_bytes: dropped.content_bytes,
            envelope: dropped.envelope,
        };
        let listed = Listed::of(&message, now_unix_ms);
        if selection.holds_for(&listed) {
            messages.push(listed);
        }
    }
    Ok(messages)
}

/// Prints the listing of one spool, in Sendmail's order and form, without the line `Total requests`.
///
/// # Errors
/// Those of `out`.
pub fn print(
    out: &mut dyn Write,
    directory: &Path,
    messages: &mut [Listed],
    detail: Detail,
) -> io::Result<()> {
    if messages.is_empty() {
        return writeln!(out, "{} is empty", directory.display());
    }
    messages.sort_by_key(|message| (message.priority, message.id));
    let count = messages.len();
    writeln!(
        out,
        "\t\t{} ({count} request{})",
        directory.display(),
        if count == 1 { "" } else { "s" }
    )?;
    out.write_all(match detail {
        Detail::Short => {
            b"-----Q-ID----- --Size-- -----Q-Time----- ------------Sender/Recipient-----------\n"
        }
        Detail::Verbose => {
            b"-----Q-ID----- --Size-- -Priority- ---Q-Time--- --------Sender/Recipient--------\n"
        }
    })?;
    let mut dates = Dates::new(TimeZone::system());
    for message in messages {
        print_message(out, message, detail, &mut dates)?;
    }
    Ok(())
}

/// Prints the last line of a listing.
///
/// # Errors
/// Those of `out`.
pub fn print_total(out: &mut dyn Write, count: usize) -> io::Result<()> {
    writeln!(out, "\t\tTotal requests: {count}")
}

fn print_message(
    out: &mut dyn Write,
    message: &Listed,
    detail: Detail,
    dates: &mut Dates,
) -> io::Result<()> {
    write!(out, "{}", message.id)?;
    if message.is_damaged {
        out.write_all(b"? (")?;
        put_clean(
            out,
            message.status.as_deref().unwrap_or_default(),
            usize::MAX,
        )?;
        return out.write_all(b")\n");
    }
    let mark = if message.is_leased { '*' } else { ' ' };
    let date = dates.shown(message.arrived_unix_ms);
    let reason_chars_max = match detail {
        Detail::Short => {
            write!(out, "{mark}{:8} {date} ", message.body_bytes)?;
            put_clean(out, &message.sender, SENDER_CHARS_MAX)?;
            REASON_CHARS_MAX
        }
        Detail::Verbose => {
            let warned = if message.has_warned { '+' } else { ' ' };
            let date = date.get(4..).unwrap_or_default();
            write!(
                out,
                "{mark}{:8} {:10}{warned}{date} ",
                message.body_bytes, message.priority
            )?;
            put_clean(out, &message.sender, usize::MAX)?;
            REASON_CHARS_MAX_VERBOSE
        }
    };
    if let Some(reason) = &message.quarantine {
        out.write_all(b"\n     QUARANTINE: ")?;
        put_clean(out, reason, reason_chars_max)?;
    }
    if message.status.is_some() || message.is_8bit {
        let body = if message.is_8bit { "8BITMIME" } else { "" };
        write!(out, "\n    {body:>10}")?;
        if let Some(status) = &message.status {
            out.write_all(b"   (")?;
            put_clean(out, status, reason_chars_max)?;
            out.write_all(b")")?;
        }
    }
    match detail {
        Detail::Short => {
            for recipient in &message.recipients {
                out.write_all(b"\n\t\t\t\t\t ")?;
                put_clean(out, &recipient.shown, RECIPIENT_CHARS_MAX)?;
            }
        }
        Detail::Verbose => print_recipients(out, message)?,
    }
    out.write_all(b"\n")
}

/// The recipients of the verbose form, each under its controlling user if that is another than the one before's.
fn print_recipients(out: &mut dyn Write, message: &Listed) -> io::Result<()> {
    let mut last_user: Option<&str> = None;
    for recipient in &message.recipients {
        let user = recipient.controlling_user.as_deref();
        if let Some(user) = user.filter(|_| user != last_user) {
            out.write_all(b"\n\t\t\t\t\t\t(---")?;
            put_clean(out, user, CONTROLLING_USER_CHARS_MAX)?;
            out.write_all(b"---)")?;
        }
        last_user = user;
        out.write_all(b"\n\t\t\t\t\t\t")?;
        put_clean(out, &recipient.shown, usize::MAX)?;
        if let Some(status) = &recipient.status {
            out.write_all(b"\n\t\t (")?;
            put_clean(out, status, REASON_CHARS_MAX_VERBOSE)?;
            out.write_all(b")")?;
        }
    }
    Ok(())
}

/// Writes at most `chars_max` characters of `text`, control characters as `^X`.
fn put_clean(out: &mut dyn Write, text: &str, chars_max: usize) -> io::Result<()> {
    // Almost every text is plain and short: one write.
    let is_plain = text.bytes().all(|b| (0x20..0x7f).contains(&b));
    if is_plain {
        let end = text.len().min(chars_max);
        return out.write_all(text.as_bytes().get(..end).unwrap_or_default());
    }
    for c in text.chars().take(chars_max) {
        match c {
            '\0'..='\x1f' => write!(out, "^{}", char::from(c as u8 ^ 0x40))?,
            '\x7f' => out.write_all(b"^?")?,
            '\u{80}'..='\u{9f}' => out.write_all(b"?")?,
            c => write!(out, "{c}")?,
        }
    }
    Ok(())
}

/// Dates as ctime(3) prints them up to the minute, in local time; remembers the last, as neighbours share it.
struct Dates {
    zone: TimeZone,
    last: Option<(u64, String)>,
}

impl Dates {
    const fn new(zone: TimeZone) -> Self {
        Self { zone, last: None }
    }

    /// `Sun Nov 22 17:16`.
    fn shown(&mut self, unix_ms: u64) -> &str {
        let minute = unix_ms / 60_000;
        let is_known = matches!(&self.last, Some((known, _)) if *known == minute);
        if !is_known {
            let text = i64::try_from(unix_ms)
                .ok()
                .and_then(|ms| Timestamp::from_millisecond(ms).ok())
                .map(|stamp| {
                    let zoned = stamp.to_zoned(self.zone.clone());
                    zoned.strftime("%a %b %e %H:%M").to_string()
                })
                .unwrap_or_else(|| "--- --- -- --:--".to_owned());
            self.last = Some((minute, text));
        }
        self.last.as_ref().map_or("", |(_, text)| text.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::listing::ListedRecipient;
    use crate::envelope::MessageId;

    /// 2026-11-22 17:16:48 UTC.
    const ARRIVED_UNIX_MS: u64 = 1_795_367_808_000;

    fn message(id: &str, body_bytes: u64, priority: u64, sender: &str) -> Listed {
        Listed {
            id: MessageId::parse(id).unwrap(),
            body_bytes,
            arrived_unix_ms: ARRIVED_UNIX_MS,
            priority,
            is_leased: false,
            is_waiting: false,
            has_warned: false,
            is_8bit: false,
            is_damaged: false,
            sender: sender.to_owned(),
            quarantine: None,
            status: None,
            recipients: Vec::new(),
        }
    }

    fn recipient(shown: &str, user: Option<&str>, status: Option<&str>) -> ListedRecipient {
        ListedRecipient {
            shown: shown.to_owned(),
            controlling_user: user.map(str::to_owned),
            status: status.map(str::to_owned),
        }
    }

    /// Messages of golden transcript 20, in another order.
    fn queue() -> Vec<Listed> {
        let refused = "Deferred: Connection refused by mx.dead.test.";
        let busy = "Deferred: 450 4.2.1 mailbox busy, try later";
        let mut three = message("6AMHGmw3001324", 20, 90_331, "<alice@gold.example.test>");
        three.status = Some(refused.to_owned());
        three.recipients = vec![
            recipient("<b@dead.test>", None, None),
            recipient("<c@tempfail.test>", None, Some(busy)),
        ];
        let mut long = message(
            "6AMHGnJB001358",
            2,
            30_017,
            "<averyveryverylonglocalpartthatgoesonandonandonforever@sender.test>",
        );
        long.status = Some(busy.to_owned());
        long.recipients = vec![recipient(
            "<anotherveryverylonglocalpartthatgoesonandonandonforever@tempfail.test>",
            None,
            Some(busy),
        )];
        let mut fresh = message("6AMHGlKA001306", 5, 30_022, "root");
        fresh.recipients = vec![recipient("user@ok.test", None, None)];
        let mut list = message("6AMHGnDd001345", 20, 60_505, "bob");
        list.status = Some(refused.to_owned());
        list.recipients = vec![recipient(
            "x@dead.test",
            Some("list:8:0:<list@gold.example.test>"),
            None,
        )];
        vec![three, long, list, fresh]
    }

    fn printed(messages: &mut [Listed], detail: Detail) -> String {
        let mut out = Vec::new();
        print(&mut out, Path::new("/var/spool/mqueue"), messages, detail).unwrap();
        print_total(&mut out, messages.len()).unwrap();
        let text = String::from_utf8(out).unwrap();
        // The tests run in any time zone: put the golden one's date in its place.
        let date = Dates::new(TimeZone::system())
            .shown(ARRIVED_UNIX_MS)
            .to_owned();
        text.replace(&date, "Sun Nov 22 17:16")
            .replace(&date[4..], "Nov 22 17:16")
    }

    #[test]
    fn the_short_form_is_sendmails() {
        assert_eq!(
            printed(&mut queue(), Detail::Short),
            "\t\t/var/spool/mqueue (4 requests)
-----Q-ID----- --Size-- -----Q-Time----- ------------Sender/Recipient-----------
6AMHGnJB001358        2 Sun Nov 22 17:16 <averyveryverylonglocalpartthatgoesonan
                 (Deferred: 450 4.2.1 mailbox busy, try later)
\t\t\t\t\t <anotherveryverylonglocalpartthatgoeso
6AMHGlKA001306        5 Sun Nov 22 17:16 root
\t\t\t\t\t user@ok.test
6AMHGnDd001345       20 Sun Nov 22 17:16 bob
                 (Deferred: Connection refused by mx.dead.test.)
\t\t\t\t\t x@dead.test
6AMHGmw3001324       20 Sun Nov 22 17:16 <alice@gold.example.test>
                 (Deferred: Connection refused by mx.dead.test.)
\t\t\t\t\t <b@dead.test>
\t\t\t\t\t <c@tempfail.test>
\t\tTotal requests: 4
"
        );
    }

    #[test]
    fn the_verbose_form_is_sendmails() {
        assert_eq!(
            printed(&mut queue(), Detail::Verbose),
            "\t\t/var/spool/mqueue (4 requests)
-----Q-ID----- --Size-- -Priority- ---Q-Time--- --------Sender/Recipient--------
6AMHGnJB001358        2      30017 Nov 22 17:16 <averyveryverylonglocalpartthatgoesonandonandonforever@sender.test>
                 (Deferred: 450 4.2.1 mailbox busy, try later)
\t\t\t\t\t\t<anotherveryverylonglocalpartthatgoesonandonandonforever@tempfail.test>
\t\t (Deferred: 450 4.2.1 mailbox busy, try later)
6AMHGlKA001306        5      30022 Nov 22 17:16 root
\t\t\t\t\t\tuser@ok.test
6AMHGnDd001345       20      60505 Nov 22 17:16 bob
                 (Deferred: Connection refused by mx.dead.test.)
\t\t\t\t\t\t(---list:8:0:<list@gold.example.test>---)
\t\t\t\t\t\tx@dead.test
6AMHGmw3001324       20      90331 Nov 22 17:16 <alice@gold.example.test>
                 (Deferred: Connection refused by mx.dead.test.)
\t\t\t\t\t\t<b@dead.test>
\t\t\t\t\t\t<c@tempfail.test>
\t\t (Deferred: 450 4.2.1 mailbox busy, try later)
\t\tTotal requests: 4
"
        );
    }

    #[test]
    fn marks_quarantine_and_damage_have_their_places() {
        let mut busy = message("6AMHcc3a008100", 2, 1, "<alice@gold.example.test>");
        busy.is_leased = true;
        busy.is_8bit = true;
        let mut quarantined = message("6AMHGmXh001314", 20, 2, "<alice@gold.example.test>");
        quarantined.quarantine = Some("spam suspect".to_owned());
        quarantined.status = Some("Deferred: \x1b[2J".to_owned());
        let damaged = Listed::damaged(
            MessageId::parse("6AMHGmaX001318").unwrap(),
            "damaged: segment-1 at byte 4096: checksum".to_owned(),
        );
        assert_eq!(
            printed(&mut [busy, quarantined, damaged], Detail::Short),
            "\t\t/var/spool/mqueue (3 requests)
-----Q-ID----- --Size-- -----Q-Time----- ------------Sender/Recipient-----------
6AMHGmaX001318? (damaged: segment-1 at byte 4096: checksum)
6AMHcc3a008100*       2 Sun Nov 22 17:16 <alice@gold.example.test>
      8BITMIME
6AMHGmXh001314       20 Sun Nov 22 17:16 <alice@gold.example.test>
     QUARANTINE: spam suspect
                 (Deferred: ^[[2J)
\t\tTotal requests: 3
"
        );
    }

    #[test]
    fn an_empty_queue_says_so() {
        assert_eq!(
            printed(&mut [], Detail::Short),
            "/var/spool/mqueue is empty\n\t\tTotal requests: 0\n"
        );
    }
}
