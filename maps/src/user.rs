//! Class `user`: accounts of the system, by login name.
//!
//! `-v` chooses what is answered: name (or 1), passwd (2), uid (3), gid (4), gecos (5), dir (6), shell (7); the name
//! without it. With a word after the switches that is a file in passwd(5) form, which is read in place of the system's.
//! An account that does not exist is absent; a lookup that failed is trouble (I9).
//!
//! Blocks: NSS for as long as its modules like. Limits: [`PASSWD_BYTES_MAX`]. Source: sendmail's op.me 5.12, passwd(5).

#![deny(clippy::indexing_slicing)]

use crate::load::{Emptiness, read_locked};
use crate::open_map::{ClassMap, not_listed};
use crate::{Definition, MapClass, MapError, PairVisitor, SpecError, Verdict};
use nix::unistd::User;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest file in passwd(5) form, in bytes.
const PASSWD_BYTES_MAX: usize = 16 << 20;
/// Longest name looked up, in bytes; longer ones do not exist.
const NAME_BYTES_MAX: usize = 256;
/// How long a file of accounts that is locked is waited for.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// Names of the fields, as passwd(5) orders them.
const FIELDS: [&str; 7] = ["name", "passwd", "uid", "gid", "gecos", "dir", "shell"];

/// Accounts.
pub(crate) struct UserMap {
    /// From 0, in the order of passwd(5).
    field: usize,
    file: Option<PathBuf>,
}

impl UserMap {
    pub(crate) fn new(definition: &Definition) -> Result<Self, SpecError> {
        let field = match definition.value('v') {
            None => 0,
            Some(wanted) => FIELDS
                .iter()
                .position(|name| name.eq_ignore_ascii_case(wanted))
                .or_else(|| {
                    let number = wanted.parse::<usize>().ok()?.checked_sub(1)?;
                    (number < FIELDS.len()).then_some(number)
                })
                .ok_or_else(|| {
                    definition.bad_value(
                        'v',
                        "expected name, passwd, uid, gid, gecos, dir, shell, or a number from 1 to 7",
                    )
                })?,
        };
        let file = (!definition.rest.is_empty()).then(|| PathBuf::from(&definition.rest));
        Ok(Self { field, file })
    }

    fn of_system(&self, name: &str) -> Result<Option<Vec<u8>>, MapError> {
        let user = User::from_name(name).map_err(|error| MapError::Remote {
            path: PathBuf::from("user"),
            detail: format!("looking up {name}: {}", error.desc()),
            verdict: Verdict::Temporary,
        })?;
        Ok(user.map(|user| match self.field {
            1 => user.passwd.to_bytes().to_vec(),
            2 => user.uid.to_string().into_bytes(),
            3 => user.gid.to_string().into_bytes(),
            4 => user.gecos.to_bytes().to_vec(),
            5 => user.dir.as_os_str().as_bytes().to_vec(),
            6 => user.shell.as_os_str().as_bytes().to_vec(),
            _ => user.name.into_bytes(),
        }))
    }

    /// Calls `f` with the fields of each account of the file until it breaks.
    fn each_line(
        file: &Path,
        f: &mut dyn FnMut(&[&[u8]]) -> ControlFlow<()>,
    ) -> Result<(), MapError> {
        let (text, _) = read_locked(file, &LOCK_WAIT.into(), Emptiness::Allowed)?;
        if text.len() > PASSWD_BYTES_MAX {
            return Err(MapError::unsupported(file, "the file is too long"));
        }
        for line in text.split(|&byte| byte == b'\n') {
            if line.is_empty() || line.starts_with(b"#") {
                continue;
            }
            let fields: Vec<&[u8]> = line.split(|&byte| byte == b':').collect();
            if fields.len() != FIELDS.len() {
                return Err(MapError::damaged(file, "a line is not in passwd(5) form"));
            }
            if f(&fields).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl ClassMap for UserMap {
    fn find(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        let name = match std::str::from_utf8(key) {
            Ok(name) if name.len() <= NAME_BYTES_MAX && !name.contains(['\0', ':', '/']) => name,
            // What cannot be a name has no account.
            _ => return Ok(None),
        };
        let Some(file) = &self.file else {
            return self.of_system(name);
        };
        let mut found = None;
        Self::each_line(file, &mut |fields| {
            if fields.first() != Some(&key) {
                return ControlFlow::Continue(());
            }
            found = fields.get(self.field).map(|field| field.to_vec());
            ControlFlow::Break(())
        })?;
        Ok(found)
    }

    fn each(&self, f: &mut PairVisitor<'_>) -> Result<(), MapError> {
        let Some(file) = &self.file else {
            return Err(not_listed(MapClass::User));
        };
        Self::each_line(
            file,
            &mut |fields| match (fields.first(), fields.get(self.field)) {
                (Some(name), Some(value)) => f(name, value),
                _ => ControlFlow::Continue(()),
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(text: &str) -> Result<UserMap, SpecError> {
        UserMap::new(&Definition::parse(text).unwrap())
    }

    #[test]
    fn the_system_knows_root() {
        for (switches, value) in [
            ("", "root"),
            ("-v uid", "0"),
            ("-v3", "0"),
            ("-v dir", "/root"),
        ] {
            let map = open(&format!("user {switches}")).unwrap();
            assert_eq!(map.find(b"root").unwrap().unwrap(), value.as_bytes());
        }
        let map = open("user").unwrap();
        assert_eq!(map.find(b"no-such-user-here").unwrap(), None);
        assert_eq!(map.find(b"a\0b").unwrap(), None);
        assert!(map.each(&mut |_, _| ControlFlow::Continue(())).is_err());
        assert!(open("user -v shoe").is_err());
        assert!(open("user -v 8").is_err());
    }

    #[test]
    fn a_file_of_accounts_serves_as_well() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passwd");
        let text = format!("user -v shell {}", path.display());
        let map = open(&text).unwrap();
        assert!(map.find(b"alice").is_err());
        std::fs::write(&path, "# c\nbob:x:1:1::/:/b\nalice:x:2:2:A:/a:/bin/sh\n").unwrap();
        assert_eq!(map.find(b"alice").unwrap().unwrap(), b"/bin/sh");
        assert_eq!(map.find(b"carol").unwrap(), None);
        std::fs::write(&path, "alice:x\n").unwrap();
        assert!(map.find(b"alice").is_err());
    }
}
