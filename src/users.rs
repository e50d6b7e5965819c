//! Who has an account: NSS, and beside it a file in passwd(5) form.
//!
//! A sandbox has both: its `etc/passwd` is asked first, every home is
//! `home/USER` in its folder, and every user carries the ids of the process,
//! because nobody changes user there. An answer "no such user" and a lookup
//! that did not work never look alike (I9).
//!
//! Blocks: NSS may ask files or the network for as long as its modules like;
//! callers on a runtime use the blocking pool. Touches NSS and the one file.
//! Limits: [`USER_NAME_LEN_MAX`], [`PASSWD_FILE_LEN_MAX`].
//! Source: passwd(5), getpwnam(3).

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;

use crate::status::Verdict;

/// The longest user name looked up, in bytes; longer ones do not exist.
pub const USER_NAME_LEN_MAX: usize = 256;
/// The longest file of users, in bytes.
pub const PASSWD_FILE_LEN_MAX: u64 = 16 << 20;

/// One account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The login name, as the source of the account spells it.
    pub name: String,
    /// The user id to act with for this user.
    pub uid: u32,
    /// The group id to act with for this user.
    pub gid: u32,
    /// The person's name: the gecos field up to its first comma, with `&`
    /// standing for the capitalised login name.
    pub full_name: String,
    /// The home directory.
    pub home: PathBuf,
    /// The login shell.
    pub shell: PathBuf,
}

/// Why a lookup did not work.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// NSS reported an error.
    #[error("looking up user {name}: {source}")]
    Nss {
        /// The user (a name, or an id as text) that was asked for.
        name: String,
        /// What NSS said.
        source: Errno,
    },
    /// The file of users cannot be read.
    #[error("reading {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A line of the file of users is not in passwd(5) form.
    #[error("{}:{line}: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl UsersError {
    /// Always temporary: whether the user exists is not known.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        Verdict::Temporary
    }
}

/// Where users are looked up. Cheap to share; lookups do not exclude each
/// other but for the moment of comparing the file's state.
#[derive(Debug, Default)]
pub struct Users {
    passwd_file: Option<PathBuf>,
    home_directory: Option<PathBuf>,
    /// Ids that stand for everybody's, in a sandbox.
    acting_ids: Option<(u32, u32)>,
    table: Mutex<Option<(FileState, Arc<Table>)>>,
}

type Table = HashMap<String, User>;

/// What tells one state of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileState {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Users {
    /// The users of the system.
    #[must_use]
    pub fn of_system() -> Self {
        Self::default()
    }

    /// The users of the configuration's `passwd_file` and of the system. With a
    /// `home_directory` (a sandbox's) homes lie in it and everybody has the
    /// ids of this process.
    #[must_use]
    pub fn new(passwd_file: Option<&Path>, home_directory: Option<&Path>) -> Self {
        let acting_ids = home_directory.map(|_| {
            (
                nix::unistd::geteuid().as_raw(),
                nix::unistd::getegid().as_raw(),
            )
        });
        Self {
            passwd_file: passwd_file.map(Path::to_owned),
            home_directory: home_directory.map(Path::to_owned),
            acting_ids,
            table: Mutex::new(None),
        }
    }

    /// Whether everybody acts with this process's ids, as in a sandbox.
    #[must_use]
    pub fn act_as_one(&self) -> bool {
        self.acting_ids.is_some()
    }

    /// The user of this name; one with capitals is also tried in lower case,
    /// as Sendmail does.
    ///
    /// Blocks: disk and whatever NSS does.
    ///
    /// # Errors
    /// [`UsersError`], always temporary: the user may exist.
    pub fn lookup(&self, name: &str) -> Result<Option<User>, UsersError> {
        let is_possible = (1..=USER_NAME_LEN_MAX).contains(&name.len())
            && !name.contains(['/', ':', '\0', '\n'])
            && name != "."
            && name != "..";
        if !is_possible {
            return Ok(None);
        }
        if let Some(user) = self.lookup_exact(name)? {
            return Ok(Some(user));
        }
        let folded = name.to_ascii_lowercase();
        if folded == name {
            return Ok(None);
        }
        self.lookup_exact(&folded)
    }

    /// The user of this id; the first of several.
    ///
    /// Blocks: disk and whatever NSS does.
    ///
    /// # Errors
    /// As [`Users::lookup`].
    pub fn by_uid(&self, uid: u32) -> Result<Option<User>, UsersError> {
        let found = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid));
        if let Some(user) = nss_answer(found, || uid.to_string())? {
            return Ok(Some(self.placed(user)));
        }
        let Some(table) = self.passwd_table()? else {
            return Ok(None);
        };
        let mut named: Vec<&User> = table.values().filter(|user| user.uid == uid).collect();
        named.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(named.first().map(|user| self.placed((*user).clone())))
    }

    fn lookup_exact(&self, name: &str) -> Result<Option<User>, UsersError> {
        if let Some(table) = self.passwd_table()?
            && let Some(user) = table.get(name)
        {
            return Ok(Some(self.placed(user.clone())));
        }
        let found = nix::unistd::User::from_name(name);
        Ok(nss_answer(found, || name.to_owned())?.map(|user| self.placed(user)))
    }

    /// Moves the home into the sandbox and sets the ids that are acted with.
    fn placed(&self, mut user: User) -> User {
        if let Some(directory) = &self.home_directory {
            user.home = directory.join(&user.name);
        }
        if let Some((uid, gid)) = self.acting_ids {
            user.uid = uid;
            user.gid = gid;
        }
        user
    }

    /// The file's users, read again when the file has changed.
    fn passwd_table(&self) -> Result<Option<Arc<Table>>, UsersError> {
        let Some(path) = &self.passwd_file else {
            return Ok(None);
        };
        let failed = |source| UsersError::Read {
            path: path.clone(),
            source,
        };
        let state = FileState::of(&std::fs::metadata(path).map_err(failed)?);
        {
            let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((known, table)) = &*table
                && *known == state
            {
                return Ok(Some(Arc::clone(table)));
            }
        }
        let file = File::open(path).map_err(failed)?;
        // Of the file that is read, in case it was replaced meanwhile.
        let state = FileState::of(&file.metadata().map_err(failed)?);
        let mut text = String::new();
        file.take(PASSWD_FILE_LEN_MAX + 1)
            .read_to_string(&mut text)
            .map_err(failed)?;
        if u64::try_from(text.len()).unwrap_or(u64::MAX) > PASSWD_FILE_LEN_MAX {
            return Err(failed(io::Error::from(io::ErrorKind::FileTooLarge)));
        }
        let table = parse_passwd(&text).map_err(|(line, reason)| UsersError::Line {
            path: path.clone(),
            line,
            reason,
        })?;
        let table = Arc::new(table);
        *self.table.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((state, Arc::clone(&table)));
        Ok(Some(table))
    }
}

impl FileState {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Tells "there is none" from "could not be asked".
fn nss_answer(
    answer: Result<Option<nix::unistd::User>, Errno>,
    name: impl FnOnce() -> String,
) -> Result<Option<User>, UsersError> {
    match answer {
        Ok(Some(user)) => Ok(Some(User {
            full_name: full_name(&user.gecos.to_string_lossy(), &user.name),
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
            home: user.dir,
            shell: user.shell,
            name: user.name,
        })),
        // getpwnam(3): these two mean that the name was not found.
        Ok(None) | Err(Errno::ENOENT | Errno::ESRCH) => Ok(None),
        Err(source) => Err(UsersError::Nss {
            name: name(),
            source,
        }),
    }
}

fn full_name(gecos: &str, login: &str) -> String {
    let name = gecos.split(',').next().unwrap_or_default().trim();
    if !name.contains('&') {
        return name.to_owned();
    }
    let mut letters = login.chars();
    let capitalised: String = letters
        .next()
        .map(|first| first.to_ascii_uppercase())
        .into_iter()
        .chain(letters)
        .collect();
    name.replace('&', &capitalised)
}

/// Reads passwd(5) lines; empty ones and those that begin with `#` are left
/// out. Of a name that comes twice the first counts, as in NSS.
fn parse_passwd(text: &str) -> Result<Table, (usize, &'static str)> {
    let mut table = Table::new();
    for (index, line) in text.lines().enumerate() {
        let line_number = index + 1;
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        let fields: Vec<&str> = line.split(':').collect();
        let &[name, _password, uid, gid, gecos, home, shell] = fields.as_slice() else {
            return Err((line_number, "has not seven fields separated by colons"));
        };
        if name.is_empty() || name.len() > USER_NAME_LEN_MAX || name.contains(['/', '\0', ' ']) {
            return Err((line_number, "is not a user name in its first field"));
        }
        let number = |text: &str| text.parse::<u32>().ok().filter(|id| *id != u32::MAX);
        let (Some(uid), Some(gid)) = (number(uid), number(gid)) else {
            return Err((line_number, "has no numbers as user and group id"));
        };
        table.entry(name.to_owned()).or_insert_with(|| User {
            name: name.to_owned(),
            uid,
            gid,
            full_name: full_name(gecos, name),
            home: PathBuf::from(home),
            shell: PathBuf::from(shell),
        });
    }
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(text: &str) -> (tempfile::TempDir, Users) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("passwd");
        std::fs::write(&file, text).unwrap();
        let users = Users::new(Some(&file), Some(&dir.path().join("home")));
        (dir, users)
    }

    #[test]
    fn users_of_the_file_stand_beside_those_of_the_system() {
        let (dir, users) = sandbox("# comment\n\npostie:x:1:1:& Man,Room 1:/home/p:/bin/sh\n");
        let postie = users.lookup("postie").unwrap().unwrap();
        assert_eq!(postie.full_name, "Postie Man");
        assert_eq!(postie.home, dir.path().join("home/postie"));
        assert_eq!(postie.uid, nix::unistd::geteuid().as_raw());
        let root = users.lookup("root").unwrap().unwrap();
        assert_eq!(root.home, dir.path().join("home/root"));
        assert_eq!(users.lookup("nosuchuser-xyz").unwrap(), None);
    }

    #[test]
    fn capitals_are_tried_in_lower_case_too() {
        let (_dir, users) = sandbox("ann:x:1:1::/h:/s\nBob:x:2:2::/h:/s\n");
        assert_eq!(users.lookup("ANN").unwrap().unwrap().name, "ann");
        assert_eq!(users.lookup("Bob").unwrap().unwrap().name, "Bob");
        assert_eq!(users.lookup("bob").unwrap(), None);
    }

    #[test]
    fn a_changed_file_is_read_again() {
        let (dir, users) = sandbox("ann:x:1:1::/h:/s\n");
        assert_eq!(users.lookup("eve").unwrap(), None);
        std::fs::write(
            dir.path().join("passwd"),
            "eve-x:x:1:1::/h:/s\neve:x:1:1::/h:/s\n",
        )
        .unwrap();
        assert!(users.lookup("eve").unwrap().is_some());
        assert_eq!(users.lookup("ann").unwrap(), None);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_no_answer() {
        let (dir, users) = sandbox("ann:x:1:1::/h\n");
        let error = users.lookup("bob").unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("passwd:1: has not seven fields separated by colons")
        );
        assert_eq!(error.verdict(), Verdict::Temporary);
        std::fs::remove_file(dir.path().join("passwd")).unwrap();
        assert!(users.lookup("root").is_err());
    }

    #[test]
    fn an_nss_failure_is_not_an_absent_user() {
        let ask = |answer| nss_answer(answer, || "ann".to_owned());
        assert!(matches!(ask(Ok(None)), Ok(None)));
        assert!(matches!(ask(Err(Errno::ENOENT)), Ok(None)));
        for errno in [
            Errno::EIO,
            Errno::EMFILE,
            Errno::ETIMEDOUT,
            Errno::ECONNREFUSED,
        ] {
            assert!(ask(Err(errno)).is_err(), "{errno}");
        }
    }

    #[test]
    fn names_that_could_be_paths_do_not_exist() {
        let users = Users::of_system();
        for name in ["", ".", "..", "a/b", "a:b", "a\0b", &"x".repeat(300)] {
            assert_eq!(users.lookup(name).unwrap(), None);
        }
    }

    #[test]
    fn the_systems_users_are_found_by_name_and_id() {
        let users = Users::of_system();
        let root = users.lookup("root").unwrap().unwrap();
        assert_eq!(root.uid, 0);
        assert_eq!(users.by_uid(0).unwrap().unwrap().name, "root");
        assert_eq!(users.by_uid(4_000_000_123).unwrap(), None);
    }

    #[test]
    fn bad_lines_of_a_passwd_file_are_named() {
        for (text, line) in [
            ("a:x:1:1::/h:/s\nb:x:one:1::/h:/s", 2),
            (":x:1:1::/h:/s", 1),
            ("a/b:x:1:1::/h:/s", 1),
            ("a:x:1:4294967295::/h:/s", 1),
            ("a:x:1:1::/h:/s:", 1),
        ] {
            assert_eq!(parse_passwd(text).unwrap_err().0, line, "{text}");
        }
    }
}
