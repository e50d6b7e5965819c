//! The sandbox: everything the mail system has, in one folder of the caller's.
//!
//! ```text
//! DIR/etc/mail/   sendmail.toml submit.toml aliases access local-host-names relay-domains trusted-users
//! DIR/etc/passwd  users beside those of the system
//! DIR/home/USER   homes                 DIR/var/mail/USER       mailboxes
//! DIR/var/spool/  mqueue clientmqueue   DIR/var/log/maillog     DIR/run/   pid file, sockets, addresses
//! ```
//!
//! [`open`] makes what is missing and never changes a file that exists. It
//! refuses a folder that does not belong to the caller, that group or others
//! may write, that is something else than a sandbox, or whose layout leads out
//! of it by symbolic links. It needs no privileges and does the same for root.
//!
//! Blocks: disk. Files appear whole under their names: each is written under
//! another name first and then linked, so that two programs may make one
//! sandbox at the same time.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User, getegid, geteuid};

/// The environment variable that names a sandbox.
pub const SANDBOX_VARIABLE: &str = "DILIGENCE_SANDBOX";
/// The user that mail for root goes to when the caller is root or nameless.
const FALLBACK_USER: &str = "postie";
/// Group or others may write.
const WRITABLE_BY_OTHERS: u32 = 0o022;

const DIRECTORIES: &[&str] = &[
    "etc",
    "etc/mail",
    "home",
    "run",
    "var",
    "var/log",
    "var/mail",
    "var/spool",
    "var/spool/clientmqueue",
    "var/spool/mqueue",
];

/// What tells a sandbox from any other folder: it is the last thing made.
const MARK: &str = "etc/mail/sendmail.toml";

const SENDMAIL_TOML: &str = r#"# The mail transfer agent's configuration, of this sandbox: see sendmail.toml(5).
# What is not set here has its default; `sendmail --sandbox DIR --print-config` shows all of them.
# Paths are relative to the sandbox's folder.

# A sandbox contacts nothing but this machine. Mail for other hosts stays queued until you
# name a host on this machine that takes it, or allow any host:
#smart_host = "[127.0.0.1]:2526"
#remote = true

#daemon_port_options = ["Name=MTA, Addr=127.0.0.1, Port=2525"]

#[timeout]
#queue_warn = "4h"
#queue_return = "5d"
"#;

const SUBMIT_TOML: &str = "# The mail submission program's configuration (sendmail -Ac), of this sandbox: see sendmail.toml(5).
# It finds the daemon by the addresses that the daemon writes to run/smtp.
";

const ACCESS: &str =
    "# Who may connect, send and be relayed: KEY, a tab, and OK, RELAY, REJECT, SKIP or
# ERROR:D.S.N:\"CODE text\". After a change: makemap hash access < access
# From:spammer.example\tREJECT
";

const LOCAL_HOST_NAMES: &str =
    "# Names that are this host, one a line, besides its own. Mail for them is delivered here.
localhost
";

const RELAY_DOMAINS: &str =
    "# Domains that may relay, and be relayed to, through this host, one a line.
";

const TRUSTED_USERS: &str = "# Users who may set any sender address without a warning, one a line.
root
daemon
";

/// Whether a sandbox that is not there is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// Make it: the first use by `sendmail`.
    Make,
    /// Refuse it: programs that only look.
    Refuse,
}

/// Why a folder is not used as a sandbox. All permanent: the caller has to do
/// something about it; except [`SandboxError::Io`], whose cause may pass.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A call of the system failed.
    #[error("sandbox: cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Nothing is there, and nothing was to be made.
    #[error("{} is not a sandbox: nothing is there", .0.display())]
    Absent(PathBuf),
    /// The path has something that a map specification cannot hold.
    #[error("the path of sandbox {} has a blank, a comma, a control character or is not UTF-8", .0.display())]
    Name(PathBuf),
    /// The folder holds other things.
    #[error("{} is not a sandbox, and it is not empty: {found} is in it", path.display())]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// Something that no sandbox has.
        found: String,
    },
    /// A folder of the layout is not a directory, or is a symbolic link.
    #[error("sandbox: {} is not a directory", .0.display())]
    NotDirectory(PathBuf),
    /// Not the caller's.
    #[error("sandbox: {} belongs to user {owner}, not to you", path.display())]
    Owner {
        /// The folder.
        path: PathBuf,
        /// Its owner's id.
        owner: u32,
    },
    /// Others could change what is in it.
    #[error(
        "sandbox: group or others may write {} (mode {mode:04o}); chmod go-w it",
        path.display()
    )]
    Writable {
        /// The folder.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
}

/// A sandbox that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// Its folder: absolute, without symbolic links.
    pub dir: PathBuf,
    /// Whether this call made it.
    pub is_new: bool,
    /// The user that mail for root goes to in a sandbox made now.
    pub first_user: String,
}

/// Checks the sandbox at `dir` and makes what is missing of it.
///
/// Set-id rights have to be given up before.
/// Blocks: disk.
///
/// # Errors
/// [`SandboxError`].
///
/// # Durability
/// None: a sandbox half made when the power fails is completed by the next
/// call, because the file that marks it is made last.
pub fn open(dir: &Path, missing: Missing) -> Result<Sandbox, SandboxError> {
    let caller = geteuid();
    if missing == Missing::Make {
        make_directory(dir)?;
    }
    let dir = match fs::canonicalize(dir) {
        Ok(path) => path,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(SandboxError::Absent(dir.to_owned()));
        }
        Err(source) => return Err(failed("find", dir, source)),
    };
    // Its text goes into map specifications, where words end at blanks and commas.
    if dir
        .to_str()
        .is_none_or(|text| text.contains(|c: char| c.is_control() || c.is_whitespace() || c == ','))
    {
        return Err(SandboxError::Name(dir));
    }
    check_directory(&dir, caller)?;
    let is_new = !dir.join(MARK).exists();
    let first_user = first_user(caller);
    if is_new {
        refuse_foreign(&dir)?;
        if missing == Missing::Refuse {
            return Err(SandboxError::Absent(dir));
        }
    }
    for name in DIRECTORIES {
        let path = dir.join(name);
        make_directory(&path)?;
        check_directory(&path, caller)?;
    }
    if is_new {
        make_directory(&dir.join("home").join(&first_user))?;
    }
    for (name, text) in [
        ("etc/mail/submit.toml", SUBMIT_TOML),
        ("etc/mail/access", ACCESS),
        ("etc/mail/local-host-names", LOCAL_HOST_NAMES),
        ("etc/mail/relay-domains", RELAY_DOMAINS),
        ("etc/mail/trusted-users", TRUSTED_USERS),
    ] {
        make_file(&dir, name, text)?;
    }
    make_file(&dir, "etc/mail/aliases", &aliases(&first_user))?;
    make_file(&dir, "etc/passwd", &passwd(&first_user, caller))?;
    make_file(&dir, MARK, SENDMAIL_TOML)?;
    Ok(Sandbox {
        dir,
        is_new,
        first_user,
    })
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> SandboxError {
    SandboxError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

fn make_directory(path: &Path) -> Result<(), SandboxError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(source) => Err(failed("make directory", path, source)),
    }
}

fn check_directory(path: &Path, caller: Uid) -> Result<(), SandboxError> {
    let metadata = fs::symlink_metadata(path).map_err(|source| failed("look at", path, source))?;
    if !metadata.is_dir() {
        return Err(SandboxError::NotDirectory(path.to_owned()));
    }
    if metadata.uid() != caller.as_raw() {
        return Err(SandboxError::Owner {
            path: path.to_owned(),
            owner: metadata.uid(),
        });
    }
    if metadata.mode() & WRITABLE_BY_OTHERS != 0 {
        return Err(SandboxError::Writable {
            path: path.to_owned(),
            mode: metadata.mode() & 0o7777,
        });
    }
    Ok(())
}

/// Refuses a folder that holds anything a half-made sandbox does not.
fn refuse_foreign(dir: &Path) -> Result<(), SandboxError> {
    let entries = fs::read_dir(dir).map_err(|source| failed("read", dir, source))?;
    for entry in entries {
        let entry = entry.map_err(|source| failed("read", dir, source))?;
        let name = entry.file_name();
        let is_ours = DIRECTORIES.iter().any(|known| name == *known);
        if !is_ours {
            return Err(SandboxError::Foreign {
                path: dir.to_owned(),
                found: name.to_string_lossy().into_owned(),
            });
        }
    }
    Ok(())
}

/// Makes `DIR/name` with this text unless it is there.
fn make_file(dir: &Path, name: &str, text: &str) -> Result<(), SandboxError> {
    let path = dir.join(name);
    if fs::symlink_metadata(&path).is_ok() {
        return Ok(());
    }
    let temporary = path.with_extension(format!("tmp-{}", std::process::id()));
    let written = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    // A link, unlike a rename, never takes the place of what another process
    // made, and an operator perhaps changed, meanwhile.
    let linked = written.and_then(|()| match fs::hard_link(&temporary, &path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    });
    let removed = fs::remove_file(&temporary);
    linked
        .and(removed)
        .map_err(|source| failed("make file", &path, source))
}

/// The caller's name where that is an ordinary user's, who then has a mailbox.
fn first_user(caller: Uid) -> String {
    if caller.is_root() {
        return FALLBACK_USER.to_owned();
    }
    User::from_uid(caller)
        .ok()
        .flatten()
        .map(|user| user.name)
        .filter(|name| {
            !name.is_empty()
                && !name.starts_with('-')
                && name
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
                && !matches!(
                    name.to_ascii_lowercase().as_str(),
                    "root" | "postmaster" | "mailer-daemon"
                )
        })
        .unwrap_or_else(|| FALLBACK_USER.to_owned())
}

fn passwd(first_user: &str, caller: Uid) -> String {
    format!(
        "# Users of this sandbox, in passwd(5) form, beside those of the system:\n\
         # name:x:uid:gid:full name:home:shell. Every home is home/NAME in the sandbox's folder.\n\
         {first_user}:x:{caller}:{group}:&:/home/{first_user}:/bin/sh\n",
        group = getegid(),
    )
}

fn aliases(first_user: &str) -> String {
    format!(
        "# Aliases: NAME: RECIPIENT, RECIPIENT .. as aliases(5) says. After a change run newaliases.\n\
         \n\
         # Reports that nobody else can be given come from and go to MAILER-DAEMON.\n\
         MAILER-DAEMON: postmaster\n\
         \n\
         # Every mail system has a postmaster (RFC 5321 4.5.1): a person who reads this mail.\n\
         postmaster: root\n\
         \n\
         # Nobody should read mail as root. This user's mailbox is var/mail/{first_user}.\n\
         root: {first_user}\n"
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::super::{Config, Request, Role};
    use super::*;

    fn new_dir() -> (tempfile::TempDir, PathBuf) {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("sandbox");
        (parent, dir)
    }

    #[test]
    fn the_first_use_makes_the_layout_and_the_second_changes_nothing() {
        let (_parent, dir) = new_dir();
        let made = open(&dir, Missing::Make).unwrap();
        assert!(made.is_new);
        for name in DIRECTORIES {
            assert!(made.dir.join(name).is_dir(), "{name}");
        }
        let aliases = made.dir.join("etc/mail/aliases");
        let text = fs::read_to_string(&aliases).unwrap();
        assert!(text.contains(&format!("root: {}\n", made.first_user)));
        let passwd = fs::read_to_string(made.dir.join("etc/passwd")).unwrap();
        assert!(passwd.contains(&format!("\n{}:x:", made.first_user)));
        fs::write(&aliases, "postmaster: eve\n").unwrap();
        let again = open(&dir, Missing::Make).unwrap();
        assert!(!again.is_new);
        assert_eq!(fs::read_to_string(&aliases).unwrap(), "postmaster: eve\n");
        let etc_mail = fs::read_dir(made.dir.join("etc/mail")).unwrap();
        assert_eq!(etc_mail.count(), 7);
    }

    #[test]
    fn what_is_made_is_a_valid_configuration_of_both_roles() {
        let (_parent, dir) = new_dir();
        let sandbox = open(&dir, Missing::Make).unwrap();
        for role in [Role::Mta, Role::Msp] {
            let request = Request {
                role,
                sandbox: Some(&sandbox.dir),
                ..Request::default()
            };
            let config = Config::load(&request).unwrap();
            assert!(config.paths.queue_directory.is_dir());
        }
        // The settings that the file offers in comments are valid, too.
        let text = SENDMAIL_TOML.replace("\n#", "\n");
        let settings: String = text
            .lines()
            .filter(|line| line.contains('=') || line.starts_with('['))
            .map(|line| format!("{line}\n"))
            .collect();
        let request = Request {
            sandbox: Some(&sandbox.dir),
            ..Request::default()
        };
        let config = Config::from_text(&request, Path::new("x"), &settings).unwrap();
        assert!(config.route.smart_host.is_some());
    }

    #[test]
    fn a_half_made_sandbox_is_completed() {
        let (_parent, dir) = new_dir();
        make_directory(&dir).unwrap();
        make_directory(&dir.join("etc")).unwrap();
        assert!(open(&dir, Missing::Make).unwrap().is_new);
        fs::remove_file(dir.join("etc/mail/aliases")).unwrap();
        fs::remove_dir(dir.join("var/mail")).unwrap();
        assert!(!open(&dir, Missing::Make).unwrap().is_new);
        assert!(dir.join("etc/mail/aliases").exists() && dir.join("var/mail").exists());
    }

    #[test]
    fn a_folder_with_other_things_is_not_taken() {
        let (_parent, dir) = new_dir();
        make_directory(&dir).unwrap();
        fs::write(dir.join("thesis.tex"), "x").unwrap();
        let error = open(&dir, Missing::Make).unwrap_err();
        assert!(matches!(error, SandboxError::Foreign { .. }), "{error}");
        assert!(!dir.join("etc").exists());
    }

    #[test]
    fn a_folder_that_others_may_write_is_refused() {
        let (_parent, dir) = new_dir();
        open(&dir, Missing::Make).unwrap();
        for (name, mode) in [("", 0o720), ("", 0o702), ("var/spool/mqueue", 0o777)] {
            let path = dir.join(name);
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = open(&dir, Missing::Make).unwrap_err();
            assert!(matches!(error, SandboxError::Writable { .. }), "{error}");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        }
        open(&dir, Missing::Make).unwrap();
    }

    #[test]
    fn a_layout_that_leads_out_of_the_folder_is_refused() {
        let (parent, dir) = new_dir();
        open(&dir, Missing::Make).unwrap();
        fs::remove_dir(dir.join("var/mail")).unwrap();
        symlink(parent.path(), dir.join("var/mail")).unwrap();
        let error = open(&dir, Missing::Make).unwrap_err();
        assert!(matches!(error, SandboxError::NotDirectory(_)), "{error}");
    }

    #[test]
    fn another_users_folder_is_refused() {
        let (_parent, dir) = new_dir();
        open(&dir, Missing::Make).unwrap();
        let stranger = Uid::from_raw(geteuid().as_raw() + 1);
        let error = check_directory(&dir, stranger).unwrap_err();
        assert!(matches!(error, SandboxError::Owner { .. }), "{error}");
    }

    #[test]
    fn a_program_that_only_looks_makes_nothing() {
        let (_parent, dir) = new_dir();
        let error = open(&dir, Missing::Refuse).unwrap_err();
        assert!(matches!(error, SandboxError::Absent(_)), "{error}");
        assert!(!dir.exists());
        make_directory(&dir).unwrap();
        assert!(open(&dir, Missing::Refuse).is_err());
        assert!(!dir.join("etc").exists());
    }

    #[test]
    fn mail_for_root_goes_to_an_unprivileged_user() {
        assert_eq!(first_user(Uid::from_raw(0)), FALLBACK_USER);
        assert_eq!(first_user(Uid::from_raw(4_000_000_321)), FALLBACK_USER);
        assert!(aliases("ann").ends_with("\nroot: ann\n"));
    }
}
