//! One mailbox file (L2): opened safely, locked, appended to, synced. Everything here blocks on the disk and on locks,
//! and runs on the blocking pool.
//!
//! Guarantees: a mailbox is a regular file with one link that belongs to its user, reached without following a
//! symbolic link; anything else is left alone. While it is open here, both locks that mail programs use are held: the
//! file `MAILBOX.lock`, and a record lock on the whole file. A message that could not be written whole is cut off
//! again, by the process that wrote it, while it holds the locks, and only if nobody wrote behind it. What a crash left
//! behind is never cut: the next message begins with the line ends that set it apart. [`OpenMailbox::sync`] covers all
//! that was appended, and the name of a new mailbox (I5).
//! Limits: [`LOCK_STALE_AGE`], the wait the caller gives. Sources: mail.local(8), fcntl(2) open file description locks.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::MailboxOwner;
use super::mbox::{self, CopyError};
use crate::clock::Clock;
use crate::privileged::Part;
use crate::status::{Status, Verdict};

/// A lock file older than this was left behind by a program that died, and is removed.
pub(crate) const LOCK_STALE_AGE: Duration = Duration::from_secs(300);
/// The most that is read of a lock file, in bytes.
const LOCK_CONTENT_BYTES_MAX: u64 = 256;
/// First and longest pause between two tries to get a lock.
const LOCK_PAUSE_MIN: Duration = Duration::from_millis(5);
const LOCK_PAUSE_MAX: Duration = Duration::from_millis(500);
/// Bytes gathered before they are written.
const WRITE_BYTES: usize = 64 * 1024;

/// Why a mailbox took no message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MailboxError {
    /// It is not what a mailbox must be.
    #[error("mailbox {path} {what}")]
    Refused { path: PathBuf, what: String },
    /// Another program held a lock for all of the wait.
    #[error("mailbox {path} is locked")]
    Locked { path: PathBuf },
    /// The system refused.
    #[error("{path}: {}", describe(source))]
    Io { path: PathBuf, source: io::Error },
    /// The message's content could not be read.
    #[error("content of the message: {}", describe(.0))]
    Content(#[source] io::Error),
}

impl MailboxError {
    /// Always temporary: each is trouble of this host's own, that somebody can mend while the mail waits (I9).
    pub(crate) fn verdict(&self) -> Verdict {
        Verdict::Temporary
    }

    /// The enhanced status code of a deferral for this reason.
    pub(crate) fn status(&self) -> Status {
        match self {
            Self::Refused { .. } | Self::Locked { .. } => Status::new(4, 2, 0),
            Self::Content(_) => Status::new(4, 3, 0),
            Self::Io { source, .. } => match source.raw_os_error().map(Errno::from_raw) {
                // Mailbox full; mail system full.
                Some(Errno::EDQUOT | Errno::EFBIG) => Status::new(4, 2, 2),
                Some(Errno::ENOSPC) => Status::new(4, 3, 1),
                _ => Status::new(4, 3, 0),
            },
        }
    }
}

/// The system's words for an error, without its number.
pub(crate) fn describe(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(
        || error.to_string(),
        |number| Errno::from_raw(number).desc().to_owned(),
    )
}

/// A mailbox with its locks held, until it is dropped.
#[derive(Debug)]
pub(crate) struct OpenMailbox {
    path: PathBuf,
    file: File,
    /// Size when the locks were taken.
    opened_bytes: u64,
    /// Bytes of the whole messages appended since.
    appended_bytes: u64,
    is_new: bool,
    /// Its directory, where it is open already.
    directory: Option<File>,
    _lock: Option<Lock>,
}

/// The lock file of an open mailbox; it goes when this is dropped.
#[derive(Debug)]
enum Lock {
    Ours { _file: LockFile },
    Parts { _lock: PartLock },
}

/// A lock file that the privileged part made.
#[derive(Debug)]
struct PartLock {
    part: Arc<Part>,
    user: String,
}

impl Drop for PartLock {
    fn drop(&mut self) {
        self.part.unlock(&self.user);
    }
}

impl OpenMailbox {
    /// Opens a mailbox, making it if need be, and takes its locks.
    ///
    /// # Errors
    /// [`MailboxError::Refused`], [`MailboxError::Locked`] after `wait_max`, [`MailboxError::Io`]; all temporary.
    pub(crate) fn open(
        path: &Path,
        owner: MailboxOwner,
        wait_max: Duration,
        clock: &dyn Clock,
    ) -> Result<Self, MailboxError> {
        let deadline = clock.monotonic().saturating_add(wait_max);
        let mut pause = Pause::new(path, deadline, clock);
        let lock = LockFile::take(path, &mut pause)?;
        loop {
            let (file, is_new) = match open_existing(path, owner)? {
                Some(file) => (file, false),
                None => match create(path, owner)? {
                    Some(file) => (file, true),
                    // Somebody else made it in between.
                    None => {
                        pause.wait()?;
                        continue;
                    }
                },
            };
            while !try_lock(&file).map_err(|e| io_error(path, e))? {
                pause.wait()?;
            }
            // While waiting, the file may have been replaced by another of that name.
            let metadata = file.metadata().map_err(|e| io_error(path, e))?;
            if is_same(path, &metadata) {
                return Ok(Self {
                    path: path.to_owned(),
                    file,
                    opened_bytes: metadata.len(),
                    appended_bytes: 0,
                    is_new,
                    directory: None,
                    _lock: Some(Lock::Ours { _file: lock }),
                });
            }
            pause.wait()?;
        }
    }

    /// As [`Self::open`], for a process without the rights: the privileged part opens it and keeps the lock file.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub(crate) fn open_by(
        part: &Arc<Part>,
        path: &Path,
        user: &str,
        wait_max: Duration,
        clock: &dyn Clock,
    ) -> Result<Self, MailboxError> {
        let deadline = clock.monotonic().saturating_add(wait_max);
        let mut pause = Pause::new(path, deadline, clock);
        while !part.lock(user).map_err(|e| io_error(path, e))? {
            pause.wait()?;
        }
        let lock = PartLock {
            part: Arc::clone(part),
            user: user.to_owned(),
        };
        loop {
            let opened = part.mailbox(user).map_err(|e| io_error(path, e))?;
            while !try_lock(&opened.file).map_err(|e| io_error(path, e))? {
                pause.wait()?;
            }
            let metadata = opened.file.metadata().map_err(|e| io_error(path, e))?;
            let is_same = part.is_mailbox(user, metadata.dev(), metadata.ino());
            if is_same.map_err(|e| io_error(path, e))? {
                return Ok(Self {
                    path: path.to_owned(),
                    file: opened.file,
                    opened_bytes: metadata.len(),
                    appended_bytes: 0,
                    is_new: opened.directory.is_some(),
                    directory: opened.directory,
                    _lock: Some(Lock::Parts { _lock: lock }),
                });
            }
            pause.wait()?;
        }
    }

    /// Takes a file that is open already, for appending, and its record lock; with its own directory if it was just made.
    ///
    /// # Errors
    /// [`MailboxError::Locked`] after `wait_max`, [`MailboxError::Io`]; all temporary.
    pub(crate) fn of_file(
        path: &Path,
        file: File,
        directory: Option<File>,
        wait_max: Duration,
        clock: &dyn Clock,
    ) -> Result<Self, MailboxError> {
        let deadline = clock.monotonic().saturating_add(wait_max);
        let mut pause = Pause::new(path, deadline, clock);
        let is_flocked = || {
            let request = rustix::fs::FlockOperation::NonBlockingLockExclusive;
            rustix::fs::flock(&file, request).is_ok()
        };
        while !(try_lock(&file).map_err(|e| io_error(path, e))? && is_flocked()) {
            pause.wait()?;
        }
        let opened_bytes = file.metadata().map_err(|e| io_error(path, e))?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            opened_bytes,
            appended_bytes: 0,
            is_new: directory.is_some(),
            directory,
            _lock: None,
        })
    }

    /// Appends one message: the preamble, then the content in mailbox form. After an error the mailbox is as it was
    /// before the call, unless cutting back failed too.
    ///
    /// # Durability
    /// None before [`Self::sync`].
    ///
    /// # Errors
    /// [`MailboxError::Io`], [`MailboxError::Content`].
    pub(crate) fn append(
        &mut self,
        preamble: &str,
        content: impl Read,
    ) -> Result<(), MailboxError> {
        let metadata = self.file.metadata();
        let end = metadata.map_err(|e| io_error(&self.path, e))?.len();
        let mut out = Counted {
            file: &self.file,
            bytes: 0,
        };
        let result = write_message(&mut out, end, preamble, content);
        let written = out.bytes;
        match result {
            Ok(()) => {
                self.appended_bytes = self.appended_bytes.saturating_add(written);
                Ok(())
            }
            Err(error) => {
                self.cut_back(end, written);
                Err(match error {
                    CopyError::Content(source) => MailboxError::Content(source),
                    CopyError::Mailbox(source) => io_error(&self.path, source),
                })
            }
        }
    }

    /// Makes durable all that was appended, and a new mailbox's name.
    ///
    /// # Errors
    /// [`MailboxError::Io`]: nothing that was appended counts as delivered; it has been cut off again where possible,
    /// so that the next attempt does not double it.
    pub(crate) fn sync(&mut self) -> Result<(), MailboxError> {
        let synced = self.file.sync_data().and_then(|()| {
            if !self.is_new {
                return Ok(());
            }
            match &self.directory {
                Some(directory) => directory.sync_all(),
                None => File::open(self.path.parent().unwrap_or(Path::new(".")))?.sync_all(),
            }
        });
        if let Err(source) = synced {
            self.cut_back(self.opened_bytes, self.appended_bytes);
            return Err(io_error(&self.path, source));
        }
        self.is_new = false;
        Ok(())
    }

    /// Cuts the file back to `to` bytes, if it ends `written` bytes behind that: else somebody wrote without a lock, and
    /// their bytes are not ours to cut. Failing is harmless: the next message is set apart from what is left.
    fn cut_back(&self, to: u64, written: u64) {
        let is_ours = self
            .file
            .metadata()
            .is_ok_and(|m| Some(m.len()) == to.checked_add(written));
        if is_ours && written > 0 {
            let _ = self.file.set_len(to);
        }
    }
}

fn write_message(
    out: &mut Counted<'_>,
    end: u64,
    preamble: &str,
    content: impl Read,
) -> Result<(), CopyError> {
    let separator = separator(out.file, end).map_err(CopyError::Mailbox)?;
    let mut buffered = BufWriter::with_capacity(WRITE_BYTES, out);
    let result = buffered
        .write_all(separator)
        .and_then(|()| buffered.write_all(preamble.as_bytes()))
        .map_err(CopyError::Mailbox)
        .and_then(|()| mbox::copy(content, &mut buffered))
        .and_then(|()| buffered.flush().map_err(CopyError::Mailbox));
    if result.is_err() {
        // What is still in the buffer must not be written after all.
        let _ = buffered.into_parts();
    }
    result
}

/// The line ends that set the next message apart from what the file ends in.
fn separator(file: &File, end: u64) -> io::Result<&'static [u8]> {
    let mut tail = [0; 2];
    let length = usize::try_from(end.min(2)).unwrap_or(2);
    let Some(tail) = tail.get_mut(..length) else {
        return Ok(b"");
    };
    file.read_exact_at(tail, end.saturating_sub(2))?;
    Ok(match tail {
        [] | [b'\n', b'\n'] => b"",
        [.., b'\n'] => b"\n",
        _ => b"\n\n",
    })
}

/// Counts what the file took.
struct Counted<'a> {
    file: &'a File,
    bytes: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = (&*self.file).write(bytes)?;
        self.bytes = self
            .bytes
            .saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Opens a mailbox that is there; `None` if there is none.
pub(crate) fn open_existing(
    path: &Path,
    owner: MailboxOwner,
) -> Result<Option<File>, MailboxError> {
    let metadata = match path.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_error(path, e)),
    };
    // Before it is opened: opening a device or a FIFO may do something.
    check(path, &metadata, owner)?;
    let opened = OpenOptions::new()
        .read(true)
        .append(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_error(path, e)),
    };
    let metadata = file.metadata().map_err(|e| io_error(path, e))?;
    check(path, &metadata, owner)?;
    if metadata.uid() != owner.uid {
        fchown(&file, Some(owner.uid), Some(owner.gid)).map_err(|e| io_error(path, e))?;
    }
    Ok(Some(file))
}

/// Makes a new mailbox; `None` if somebody else did so first.
pub(crate) fn create(path: &Path, owner: MailboxOwner) -> Result<Option<File>, MailboxError> {
    let created = OpenOptions::new()
        .read(true)
        .append(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path);
    let file = match created {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(None),
        Err(e) => return Err(io_error(path, e)),
    };
    if nix::unistd::geteuid().as_raw() != owner.uid {
        fchown(&file, Some(owner.uid), Some(owner.gid)).map_err(|e| io_error(path, e))?;
    }
    Ok(Some(file))
}

/// Refuses what is no mailbox of this user.
fn check(path: &Path, metadata: &Metadata, owner: MailboxOwner) -> Result<(), MailboxError> {
    let refused = |what: String| {
        Err(MailboxError::Refused {
            path: path.to_owned(),
            what,
        })
    };
    if metadata.file_type().is_symlink() {
        return refused("is a symbolic link".to_owned());
    }
    if !metadata.is_file() {
        return refused("is not a regular file".to_owned());
    }
    if metadata.nlink() != 1 {
        return refused(format!("has {} links", metadata.nlink()));
    }
    // A crash between making a mailbox and giving it to its user leaves an empty one of root's: it is taken on.
    let is_unfinished = metadata.uid() == 0
        && nix::unistd::geteuid().is_root()
        && metadata.len() == 0
        && metadata.mode() & 0o7777 == 0o600;
    if metadata.uid() != owner.uid && !is_unfinished {
        return refused(format!(
            "belongs to user id {}, not {}",
            metadata.uid(),
            owner.uid
        ));
    }
    Ok(())
}

/// Whether the name still leads to this file, and no other does.
pub(crate) fn is_same(path: &Path, opened: &Metadata) -> bool {
    opened.nlink() == 1
        && path
            .symlink_metadata()
            .is_ok_and(|named| named.dev() == opened.dev() && named.ino() == opened.ino())
}

/// Takes a write lock on the whole file; `false` if another program has one. It lasts until the file is closed, and
/// excludes record locks of other programs (fcntl(2)) as well as our own other opens.
fn try_lock(file: &File) -> io::Result<bool> {
    let lock = libc::flock {
        l_type: i16::try_from(libc::F_WRLCK).unwrap_or(1),
        l_whence: i16::try_from(libc::SEEK_SET).unwrap_or(0),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&lock)) {
        Ok(_) => Ok(true),
        Err(Errno::EACCES | Errno::EAGAIN | Errno::EINTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// `MAILBOX.lock`, removed when dropped.
#[derive(Debug)]
pub(crate) struct LockFile {
    path: PathBuf,
    /// Device and inode, so that only our own file is removed.
    id: (u64, u64),
}

impl LockFile {
    fn take(mailbox: &Path, pause: &mut Pause<'_>) -> Result<Self, MailboxError> {
        loop {
            match Self::try_take(mailbox, pause.clock)? {
                Some(lock) => return Ok(lock),
                None => pause.wait()?,
            }
        }
    }

    /// Makes the lock file of a mailbox; `None` if somebody else has it.
    ///
    /// # Errors
    /// [`MailboxError::Io`].
    pub(crate) fn try_take(
        mailbox: &Path,
        clock: &dyn Clock,
    ) -> Result<Option<Self>, MailboxError> {
        let mut name = mailbox.as_os_str().to_owned();
        name.push(".lock");
        let path = PathBuf::from(name);
        loop {
            match make_lock_file(&path) {
                Ok(file) => {
                    let metadata = file.metadata().map_err(|e| io_error(&path, e))?;
                    return Ok(Some(Self {
                        path,
                        id: (metadata.dev(), metadata.ino()),
                    }));
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    if !remove_stale(&path, clock) {
                        return Ok(None);
                    }
                }
                Err(e) => return Err(io_error(&path, e)),
            }
        }
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        let is_ours = self
            .path
            .symlink_metadata()
            .is_ok_and(|m| (m.dev(), m.ino()) == self.id);
        if is_ours {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Makes a lock file, which appears under its name with its content or not at all, so that a crash leaves none that
/// nobody can tell to be dead. File systems that can't make unnamed files get it in two steps.
fn make_lock_file(path: &Path) -> io::Result<File> {
    use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, open};
    let folder = path.parent().unwrap_or(Path::new("/"));
    let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
    if let Ok(file) = open(folder, flags, Mode::from_raw_mode(0o600)) {
        let mut file = File::from(file);
        // The content only helps others to find out who died; a full disk does not make the lock less held.
        let _ = file.write_all(lock_content(std::process::id()).as_bytes());
        let unnamed = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&file));
        match linkat(CWD, unnamed, CWD, path, AtFlags::SYMLINK_FOLLOW) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::EXIST) => return Err(io::ErrorKind::AlreadyExists.into()),
            // Without /proc.
            Err(_) => {}
        }
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)?;
    let _ = file.write_all(lock_content(std::process::id()).as_bytes());
    Ok(file)
}

/// What a lock file holds: the process id, for people and for liblockfile, and where that id means a process: the
/// running system and its namespace of process ids.
fn lock_content(process: u32) -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let space = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    format!("{process}\n{} {}\n", boot.trim(), space.display())
}

/// Removes a lock file that is older than [`LOCK_STALE_AGE`], or whose program, one of ours on this system, has died;
/// whether it did. The record lock still keeps two deliveries of ours apart should two processes do this at once.
fn remove_stale(path: &Path, clock: &dyn Clock) -> bool {
    let Ok(metadata) = path.symlink_metadata() else {
        return false;
    };
    let modified_ms = u64::try_from(metadata.mtime())
        .unwrap_or(0)
        .saturating_mul(1000);
    let age_ms = clock.unix_ms().saturating_sub(modified_ms);
    let is_old = u128::from(age_ms) > LOCK_STALE_AGE.as_millis();
    (is_old || (metadata.is_file() && is_of_dead_process(path)))
        && std::fs::remove_file(path).is_ok()
}

/// Whether a lock file is one of ours, made on this running system by a process that is no more.
fn is_of_dead_process(path: &Path) -> bool {
    let mut content = String::new();
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path);
    let Ok(file) = opened else {
        return false;
    };
    if file
        .take(LOCK_CONTENT_BYTES_MAX)
        .read_to_string(&mut content)
        .is_err()
    {
        return false;
    }
    let Some(process) = content
        .lines()
        .next()
        .and_then(|line| line.parse::<u32>().ok())
    else {
        return false;
    };
    let Some(pid) = i32::try_from(process)
        .ok()
        .filter(|pid| *pid > 0 && content == lock_content(process))
    else {
        return false;
    };
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None) == Err(Errno::ESRCH)
}

/// Pauses between tries, until the deadline.
struct Pause<'a> {
    path: &'a Path,
    deadline: Duration,
    clock: &'a dyn Clock,
    next: Duration,
}

impl<'a> Pause<'a> {
    fn new(path: &'a Path, deadline: Duration, clock: &'a dyn Clock) -> Self {
        Self {
            path,
            deadline,
            clock,
            next: LOCK_PAUSE_MIN,
        }
    }

    fn wait(&mut self) -> Result<(), MailboxError> {
        let left = self.deadline.saturating_sub(self.clock.monotonic());
        if left.is_zero() {
            return Err(MailboxError::Locked {
                path: self.path.to_owned(),
            });
        }
        std::thread::sleep(self.next.min(left));
        self.next = (self.next * 2).min(LOCK_PAUSE_MAX);
        Ok(())
    }
}

fn io_error(path: &Path, source: io::Error) -> MailboxError {
    MailboxError::Io {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;

    /// After a kill the next daemon must not wait minutes for the lock of the last one.
    #[test]
    fn a_lock_of_a_dead_process_of_ours_is_stale_at_once_and_others_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bob.lock");
        let clock = SystemClock::new();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let dead = child.id();
        child.wait().unwrap();
        let is_stale = |content: &str| {
            std::fs::write(&path, content).unwrap();
            remove_stale(&path, &clock)
        };
        assert!(is_stale(&lock_content(dead)));
        assert!(!path.exists());
        for kept in [
            lock_content(std::process::id()),
            format!("{dead}\n"),
            format!("{dead}\nanother-boot pid:[1]\n"),
            String::new(),
            "0".to_owned(),
        ] {
            assert!(!is_stale(&kept), "{kept:?}");
            assert!(path.exists());
        }
        std::fs::remove_file(&path).unwrap();
        drop(make_lock_file(&path).unwrap());
        let content = std::fs::read_to_string(&path).unwrap();
        assert_eq!(content, lock_content(std::process::id()));
        let taken = make_lock_file(&path).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
    }
}
