//! Locks on map files, as the programs that share them take them.
//!
//! Sendmail's and Postfix's tools guard Berkeley DB and cdb files with flock(2); Postfix guards an LMDB file, and redb
//! its own, with fcntl(2) record locks over the whole file. Record locks are taken here per open file description
//! (OFD), which keep off other processes' traditional ones, and which closing another descriptor of the same file does
//! not drop. Nothing here waits; [`crate::patience`] does. A lock ends with the file it was taken on.

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use std::fs::{File, TryLockError};
use std::io;

/// How a file is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// With other readers.
    Shared,
    /// Alone.
    Exclusive,
}

/// Takes the flock lock; `false`: somebody else holds it.
pub(crate) fn try_flock(file: &File, mode: Mode) -> io::Result<bool> {
    let taken = match mode {
        Mode::Shared => file.try_lock_shared(),
        Mode::Exclusive => file.try_lock(),
    };
    match taken {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Takes the fcntl lock over the whole file, for which an exclusive one needs a file open for writing; `false`:
/// somebody else holds it.
pub(crate) fn try_record(file: &File, mode: Mode) -> io::Result<bool> {
    let kind = match mode {
        Mode::Shared => libc::F_RDLCK,
        Mode::Exclusive => libc::F_WRLCK,
    };
    let range = libc::flock {
        l_type: libc::c_short::try_from(kind).unwrap_or(0),
        l_whence: libc::c_short::try_from(libc::SEEK_SET).unwrap_or(0),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&range)) {
        Ok(_) => Ok(true),
        Err(nix::Error::EAGAIN | nix::Error::EACCES) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;

    #[test]
    fn an_exclusive_lock_keeps_others_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m");
        std::fs::write(&path, "x").unwrap();
        let open = || {
            OpenOptions::new()
                .read(true)
                .write(true)
                .open(&path)
                .unwrap()
        };
        for try_lock in [try_flock, try_record] {
            let (first, second) = (open(), open());
            assert!(try_lock(&first, Mode::Shared).unwrap());
            assert!(try_lock(&second, Mode::Shared).unwrap());
            assert!(!try_lock(&second, Mode::Exclusive).unwrap());
            drop(first);
            assert!(try_lock(&second, Mode::Exclusive).unwrap());
            // Another descriptor of this process comes and goes: the lock stays.
            drop(open());
            assert!(!try_lock(&open(), Mode::Shared).unwrap());
        }
    }
}
