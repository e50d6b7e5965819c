//! Set-id rights: whether this process has any, and giving them up.
//!
//! Installed set-group-id, `sendmail` trusts neither its environment nor an
//! option that names files: the variable that names a sandbox is ignored, and
//! `--sandbox`, `-C` and unsafe `-O` first give the rights up, as Sendmail does.
//!
//! Touches the process's ids and reads `/proc/self/auxv`; blocks never but for
//! that. Source: sendmail(8) `-C`, `-O`; getauxval(3) `AT_SECURE`.

use std::io;

use nix::unistd::{getegid, geteuid, getgid, getuid, setresgid, setresuid};

/// The entry of the auxiliary vector that says "executed with more rights than
/// the caller has". Source: `linux/auxvec.h`.
const AT_SECURE: usize = 23;
/// Bytes of one word of the auxiliary vector; an entry is two.
const AUXV_WORD_BYTES: usize = size_of::<usize>();

/// Whether this process runs with rights that its caller does not have.
#[must_use]
pub fn has_set_id_rights() -> bool {
    if getuid() != geteuid() || getgid() != getegid() {
        return true;
    }
    match std::fs::read("/proc/self/auxv") {
        Ok(auxv) => is_secure(&auxv),
        // Without /proc the ids are all there is to go by. A process whose own
        // vector is kept from it has such rights (file capabilities).
        Err(error) => error.kind() == io::ErrorKind::PermissionDenied,
    }
}

/// Becomes the caller for good: the real ids in place of the effective ones.
/// Does nothing without set-id rights.
///
/// # Errors
/// The system's; the process must then end, for it still has the rights.
pub fn give_up_rights() -> io::Result<()> {
    let (uid, gid) = (getuid(), getgid());
    // The group first: once the user is an ordinary one it can't be set.
    setresgid(gid, gid, gid).map_err(io::Error::from)?;
    setresuid(uid, uid, uid).map_err(io::Error::from)?;
    if geteuid() == uid && getegid() == gid {
        Ok(())
    } else {
        Err(io::Error::from(io::ErrorKind::PermissionDenied))
    }
}

fn is_secure(auxv: &[u8]) -> bool {
    let word = |bytes: &[u8]| bytes.try_into().map_or(0, usize::from_ne_bytes);
    auxv.chunks_exact(2 * AUXV_WORD_BYTES).any(|entry| {
        let (kind, value) = entry.split_at(AUXV_WORD_BYTES);
        word(kind) == AT_SECURE && word(value) != 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_has_no_set_id_rights_and_can_give_them_up() {
        assert!(!has_set_id_rights());
        give_up_rights().unwrap();
    }

    #[test]
    fn the_auxiliary_vector_is_read_in_the_machines_words() {
        let entry = |kind: usize, value: usize| {
            let mut bytes = kind.to_ne_bytes().to_vec();
            bytes.extend_from_slice(&value.to_ne_bytes());
            bytes
        };
        let plain = [entry(6, 4_096), entry(23, 0), entry(0, 0)].concat();
        let secure = [entry(6, 4_096), entry(23, 1), entry(0, 0)].concat();
        assert!(!is_secure(&plain));
        assert!(is_secure(&secure));
        assert!(!is_secure(&secure[..20]));
        assert!(!is_secure(b""));
    }
}
