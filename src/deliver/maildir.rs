//! Maildirs (L2): each message a file of its own, in no need of locks.
//!
//! Order: written under a unique name in `tmp`, synced, renamed into `new`, `new` synced; then it is delivered. Messages
//! that wait for one Maildir have their files synced side by side and share the sync of `new`. A crash
//! leaves files in `tmp`, which mail readers remove when they are 36 hours old, or messages, whose delivery is then repeated (I6).
//! The folders are made if they are missing, with mode 0700. All of it is done with the user's rights, and no symbolic
//! link below the Maildir's own path is followed. What waits takes no place of what may be attempted at once.
//! Limits: [`LIMITS`], [`SYNCS_MAX`].
//! Source: maildir(5), <https://cr.yp.to/proto/maildir.html>.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::libc;
use tokio::sync::oneshot;

use super::mailbox::describe;
use super::mbox::{self, CopyError, Form};
use super::turns::{Limits, Turns};
use super::{Attempt, ContentOpener};
use crate::clock::Clock;
use crate::envelope::{Delivery, Outcome};
use crate::privileged::Part;
use crate::privileged::wire::MaildirFile;
use crate::safe_file::{Who, as_user};
use crate::status::Status;

/// How Maildirs are served. A batch has that many files open.
const LIMITS: Limits = Limits {
    workers: 16,
    waiting: 10_000,
    batch_jobs: 64,
    batch_bytes: 16 << 20,
};
/// Files of a batch that are synced at once.
const SYNCS_MAX: usize = 8;

/// Where messages are put, and by whom.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    /// The mailer's name, as the log shows it.
    pub(crate) mailer: String,
    pub(crate) maildir: PathBuf,
    pub(crate) who: Who,
}

/// All Maildirs.
pub(crate) struct Maildirs {
    turns: Arc<Turns<Place, Job>>,
}

/// One message for one Maildir.
struct Job {
    preamble: String,
    content: ContentOpener,
    done: oneshot::Sender<Outcome>,
}

struct Shared {
    host_name: String,
    clock: Arc<dyn Clock>,
    /// What does it, if this process has not got the user's rights.
    part: Option<Arc<Part>>,
    /// Tells messages of one process and moment apart.
    counter: AtomicU64,
}

/// A message in `tmp`.
struct Written {
    job: Job,
    at: MaildirFile,
    file: File,
    /// How its sync ended; an error before it began.
    synced: io::Result<()>,
}

impl Maildirs {
    pub(crate) fn new(host_name: &str, clock: Arc<dyn Clock>, part: Option<Arc<Part>>) -> Self {
        let shared = Shared {
            host_name: host_name.replace(['/', ':'], "_"),
            clock,
            part,
            counter: AtomicU64::new(0),
        };
        let serve = move |_: &Turns<Place, Job>, place: &Place, batch| shared.serve(place, batch);
        Self {
            turns: Turns::new(LIMITS, serve),
        }
    }

    /// Has a message put into a Maildir.
    pub(crate) fn enqueue(
        &self,
        place: Place,
        preamble: String,
        attempt: &Attempt,
    ) -> Result<oneshot::Receiver<Outcome>, Outcome> {
        let (done, receiver) = oneshot::channel();
        let job = Job {
            preamble,
            content: Arc::clone(&attempt.content),
            done,
        };
        let mailer = place.mailer.clone();
        self.turns
            .push(place, attempt.content_bytes, job)
            .map_err(|_| {
                let text = "Deferred: too many messages wait for the Maildir";
                Outcome::new(Delivery::Deferred, Status::new(4, 2, 0), &mailer, text)
            })?;
        Ok(receiver)
    }
}

impl Shared {
    /// Puts a batch into a Maildir with one sync of its folder.
    fn serve(&self, place: &Place, batch: Vec<Job>) {
        let mut written = Vec::with_capacity(batch.len());
        for job in batch {
            match self.write(place, &job) {
                Ok((at, file)) => written.push(Written {
                    job,
                    at,
                    file,
                    synced: Err(io::Error::other("no thread to sync it")),
                }),
                Err(error) => answer(place, job, Err(&error)),
            }
        }
        sync(&mut written);
        // The folder, from the last that was moved: they all have the same.
        let mut new = None;
        let mut kept = Vec::with_capacity(written.len());
        for Written {
            job, at, synced, ..
        } in written
        {
            match synced.and_then(|()| self.keep(&at)) {
                Ok(folder) => {
                    new = Some(folder);
                    kept.push(job);
                }
                Err(error) => {
                    self.forget(&at);
                    answer(place, job, Err(&error));
                }
            }
        }
        // I5: the names, before a message counts.
        let named = new.map_or(Ok(()), |folder| folder.sync_all());
        for job in kept {
            answer(place, job, named.as_ref().copied());
        }
    }

    /// Writes a message into `tmp`.
    fn write(&self, place: &Place, job: &Job) -> io::Result<(MaildirFile, File)> {
        let now = self.clock.unix_ms();
        let name = format!(
            "{}.M{}P{}Q{}.{}",
            now / 1000,
            now % 1000,
            std::process::id(),
            self.counter.fetch_add(1, Ordering::Relaxed),
            self.host_name
        );
        let at = MaildirFile {
            maildir: place.maildir.clone(),
            who: place.who,
            name,
        };
        let file = match &self.part {
            Some(part) => part.maildir_file(&at)?,
            None => make(&at)?,
        };
        let mut out = BufWriter::with_capacity(64 << 10, file);
        let written = (|| {
            out.write_all(job.preamble.as_bytes())?;
            mbox::copy_as(Form::PLAIN, (job.content)()?, &mut out).map_err(
                |error| match error {
                    CopyError::Content(error) | CopyError::Mailbox(error) => error,
                },
            )?;
            out.flush()
        })();
        let (file, _) = out.into_parts();
        match written {
            Ok(()) => Ok((at, file)),
            Err(error) => {
                self.forget(&at);
                Err(error)
            }
        }
    }

    fn keep(&self, at: &MaildirFile) -> io::Result<File> {
        match &self.part {
            Some(part) => part.maildir_keep(at),
            None => keep(at),
        }
    }

    fn forget(&self, at: &MaildirFile) {
        match &self.part {
            Some(part) => part.maildir_drop(at),
            None => forget(at),
        }
    }
}

/// Syncs each file, some at once: their flushes are one to the disk.
fn sync(written: &mut [Written]) {
    let sync_some = |some: &mut [Written]| {
        for written in some {
            written.synced = written.file.sync_data();
        }
    };
    let share = written.len().div_ceil(SYNCS_MAX).max(1);
    let mut shares = written.chunks_mut(share);
    let first = shares.next();
    std::thread::scope(|scope| {
        for some in shares {
            // What no thread can be had for stays unsynced, and waits.
            let _ = std::thread::Builder::new().spawn_scoped(scope, move || sync_some(some));
        }
        if let Some(some) = first {
            sync_some(some);
        }
    });
}

fn answer(place: &Place, job: Job, ended: Result<(), &io::Error>) {
    let outcome = match ended {
        Ok(()) => Outcome::new(Delivery::Delivered, Status::OK, &place.mailer, "Sent"),
        Err(error) => {
            let status = match error.raw_os_error() {
                Some(libc::EDQUOT | libc::EFBIG) => Status::new(4, 2, 2),
                Some(libc::ENOSPC) => Status::new(4, 3, 1),
                _ => Status::new(4, 2, 0),
            };
            let maildir = place.maildir.display();
            let text = format!("Deferred: {maildir}: {}", describe(error));
            Outcome::new(Delivery::Deferred, status, &place.mailer, text)
        }
    };
    // Nobody waits if the attempt was given up; the delivery stands all the same (I6).
    let _ = job.done.send(outcome);
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
