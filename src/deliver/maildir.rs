//! Maildirs (L2): each message a file of its own, in no need of locks.
//!
//! Order: written under a unique name in `tmp`, synced, renamed into `new`, `new` synced; then it is delivered. A crash
//! leaves a file in `tmp`, which mail readers remove when it is 36 hours old, or the message, whose delivery is then repeated (I6).
//! The folders are made if they are missing, with mode 0700. All of it is done with the user's rights, and no symbolic
//! link below the Maildir's own path is followed. Blocks: disk; called on the blocking pool.
//! Source: maildir(5), <https://cr.yp.to/proto/maildir.html>.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::libc;

use super::ContentOpener;
use super::mailbox::describe;
use super::mbox::{self, CopyError, Form};
use crate::clock::Clock;
use crate::envelope::{Delivery, Outcome};
use crate::privileged::Part;
use crate::privileged::wire::MaildirFile;
use crate::safe_file::{Who, as_user};
use crate::status::Status;

/// Tells messages of one process and moment apart.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

/// Where a message is put, and by whom.
pub(crate) struct Place<'a> {
    pub(crate) mailer: &'a str,
    pub(crate) maildir: &'a Path,
    pub(crate) who: Who,
    pub(crate) host_name: &'a str,
    pub(crate) counter: &'a Counter,
    /// What does it, if this process has not got the user's rights.
    pub(crate) part: Option<&'a Part>,
}

/// Delivers one message.
pub(crate) fn deliver(
    place: &Place<'_>,
    preamble: &str,
    content: &ContentOpener,
    clock: &dyn Clock,
) -> Outcome {
    match write(place, preamble, content, clock) {
        Ok(()) => Outcome::new(Delivery::Delivered, Status::OK, place.mailer, "Sent"),
        Err(error) => {
            let status = match error.raw_os_error() {
                Some(libc::EDQUOT | libc::EFBIG) => Status::new(4, 2, 2),
                Some(libc::ENOSPC) => Status::new(4, 3, 1),
                _ => Status::new(4, 2, 0),
            };
            let text = format!(
                "Deferred: {}: {}",
                place.maildir.display(),
                describe(&error)
            );
            Outcome::new(Delivery::Deferred, status, place.mailer, text)
        }
    }
}

fn write(
    place: &Place<'_>,
    preamble: &str,
    content: &ContentOpener,
    clock: &dyn Clock,
) -> io::Result<()> {
    let now = clock.unix_ms();
    let name = format!(
        "{}.M{}P{}Q{}.{}",
        now / 1000,
        now % 1000,
        std::process::id(),
        place.counter.0.fetch_add(1, Ordering::Relaxed),
        place.host_name.replace(['/', ':'], "_")
    );
    let at = MaildirFile {
        maildir: place.maildir.to_owned(),
        who: place.who,
        name,
    };
    let file = match place.part {
        Some(part) => part.maildir_file(&at)?,
        None => make(&at)?,
    };
    let mut out = BufWriter::with_capacity(64 << 10, file);
    let written = (|| {
        out.write_all(preamble.as_bytes())?;
        mbox::copy_as(Form::PLAIN, content()?, &mut out).map_err(|error| match error {
            CopyError::Content(error) | CopyError::Mailbox(error) => error,
        })?;
        out.flush()?;
        out.get_ref().sync_data()?;
        match place.part {
            Some(part) => part.maildir_keep(&at)?,
            None => keep(&at)?,
        }
        .sync_all()
    })();
    if written.is_err() {
        match place.part {
            Some(part) => part.maildir_drop(&at),
            None => forget(&at),
        }
    }
    written
}

/// Makes a file in `tmp` with its user's rights, and the Maildir, if it is missing.
///
/// # Errors
/// The system's, or a symbolic link in the way; temporary.
pub(crate) fn make(at: &MaildirFile) -> io::Result<File> {
    as_user(at.who, || {
        prepare(&at.maildir)?;
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(at.maildir.join("tmp").join(&at.name))
    })
}

/// Moves a file from `tmp` to `new` with its user's rights; gives `new`, to be synced.
///
/// # Errors
/// The system's; temporary.
pub(crate) fn keep(at: &MaildirFile) -> io::Result<File> {
    as_user(at.who, || {
        let [tmp, new] = ["tmp", "new"].map(|folder| at.maildir.join(folder));
        fs::rename(tmp.join(&at.name), new.join(&at.name))?;
        File::open(new)
    })
}

/// Removes a file from `tmp`; one that stays does no harm.
pub(crate) fn forget(at: &MaildirFile) {
    as_user(at.who, || {
        let _ = fs::remove_file(at.maildir.join("tmp").join(&at.name));
    });
}

/// Makes the folders that are missing.
fn prepare(maildir: &Path) -> io::Result<()> {
    let [tmp, new, cur] = ["tmp", "new", "cur"].map(|name| maildir.join(name));
    if !new.is_dir() {
        for folder in [maildir, &tmp, &new, &cur] {
            match DirBuilder::new().mode(0o700).create(folder) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        // I5: the names of the folders, before a message in them counts.
        File::open(maildir)?.sync_all()?;
        if let Some(parent) = maildir.parent() {
            File::open(parent)?.sync_all()?;
        }
    }
    for folder in [&tmp, &new] {
        if folder.symlink_metadata()?.is_symlink() {
            return Err(io::Error::other(
                "a folder of the Maildir is a symbolic link",
            ));
        }
    }
    Ok(())
}
