//! The client queue: what users submitted while the MTA did not answer (SPOOL 9).
//!
//! Its owner absorbs the drop files that submitters leave and hands everything to the MTA over SMTP; it knows no other
//! way to deliver. The submitter is the drop file's owner, whatever its content says. Bad files are set aside and told
//! to the log. Blocks: disk, on the blocking pool.

use std::collections::HashSet;
use std::fs::{DirBuilder, Permissions};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::unistd::Uid;

use super::DROP_FOLDER;
use super::wiring::System;
use crate::config::Config;
use crate::config::endpoint::SMTP_PORT;
use crate::envelope::Envelope;
use crate::maillog::{QueueId, Severity};
use crate::route::{Hop, RelayTo};
use crate::spool::Spool;
use crate::spool::drop_file::{self, DropError};
use crate::status::Verdict;
use crate::users::Users;

/// Who may drop files may not list them.
const DROP_FOLDER_MODE: u32 = 0o730;
/// How often the drop folder is looked at.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// The most bytes that a drop file has beyond its message's content.
const OVERHEAD_BYTES_MAX: u64 = 32 << 20;
/// Most files that the log is told of only once.
const TOLD_MAX: usize = 1000;
/// The longest file of addresses, in bytes.
const ADDRESS_FILE_BYTES_MAX: u64 = 4096;

/// Takes drop files into a client queue.
#[derive(Clone)]
pub struct Absorber {
    folder: PathBuf,
    bytes_max: u64,
    spool: Spool,
    users: Arc<Users>,
    system: System,
    /// Names of files that stay though they should not, of which the log has been told.
    told: Arc<Mutex<HashSet<String>>>,
}

impl Absorber {
    /// An absorber of what is dropped for the queue in `directory`.
    #[must_use]
    pub fn new(directory: &Path, config: &Config, spool: Spool, system: &System) -> Self {
        let message_bytes_max = config.smtpd.limits.max_message_size;
        Self {
            folder: directory.join(DROP_FOLDER),
            bytes_max: message_bytes_max.map_or(u64::MAX, |size| {
                size.as_bytes().saturating_add(OVERHEAD_BYTES_MAX)
            }),
            spool,
            users: Arc::clone(&system.users),
            system: system.clone(),
            told: Arc::default(),
        }
    }

    /// Settles what an earlier owner left, and makes the folder if it is missing. Call it once, before anything of the
    /// queue is attempted. Blocks: disk.
    ///
    /// # Errors
    /// As [`drop_file::settle`].
    pub fn settle(&self) -> Result<(), DropError> {
        if let Err(error) = make_drop_folder(&self.folder) {
            self.log(
                Severity::Error,
                &format!("{}: {error}", self.folder.display()),
            );
        }
        drop_file::settle(&self.spool, &self.folder)
    }

    /// Takes what is there now; gives how many messages that were. Blocks: disk.
    pub fn absorb_all(&self) -> usize {
        let names = match drop_file::list_in_turns(&self.folder) {
            Ok(names) => names,
            Err(error) => {
                self.log(
                    Severity::Error,
                    &format!("{}: {error}", self.folder.display()),
                );
                return 0;
            }
        };
        let mut count = 0;
        for name in names {
            let mut complete = |envelope: &mut Envelope| self.name_submitter(envelope);
            let absorbed = drop_file::absorb(
                &self.spool,
                &self.folder,
                &name,
                self.bytes_max,
                &mut complete,
            );
            match absorbed {
                Ok(Some(message)) => {
                    count += 1;
                    let text = format!("submitted as {}", message.submitted_as);
                    let maillog = &self.system.maillog;
                    maillog.write(Severity::Info, 9, QueueId::Known(message.id), &text);
                }
                Ok(None) => {}
                // Bad, or larger than the spool takes.
                Err(error) if error.verdict() == Verdict::Permanent => {
                    self.log(Severity::Warning, &format!("drop file {error}; set aside"));
                    if let Err(error) = drop_file::set_aside(&self.folder, &name) {
                        self.complain(&name, &error);
                    }
                }
                // It stays, and is taken by a later look. One that can't be read keeps none of the others back.
                Err(error @ DropError::Io { .. }) => self.complain(&name, &error),
                Err(error) => {
                    self.log(Severity::Error, &format!("drop file {name}: {error}"));
                    break;
                }
            }
        }
        count
    }

    /// Looks at the folder again and again.
    pub async fn watch(self) {
        loop {
            let here = self.clone();
            // A panic there ends the process.
            let _ = tokio::task::spawn_blocking(move || here.absorb_all()).await;
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Tells the log what is wrong with a file that stays, once.
    fn complain(&self, name: &str, error: &DropError) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.len() >= TOLD_MAX {
            told.clear();
        }
        if told.insert(name.to_owned()) {
            self.log(Severity::Error, &format!("drop file {error}"));
        }
    }

    /// Gives the submitter, whose number the file's owner told, a name.
    fn name_submitter(&self, envelope: &mut Envelope) {
        if let Some(submitter) = &mut envelope.arrival.submitter
            && let Ok(Some(user)) = self.users.by_uid(submitter.uid)
        {
            submitter.name = user.name;
        }
    }

    fn log(&self, severity: Severity, text: &str) {
        self.system.maillog.write(severity, 0, QueueId::None, text);
    }
}

/// Makes the folder of drop files, for the client queue's owner and with its group's right to drop files, not to list
/// them. Only the owner and root do; for others, whose files are not to lie in a folder of their own, nothing happens.
///
/// # Errors
/// The system's.
///
/// # Durability
/// When this returns the folder is on disk. It appears with its rights, by rename; a crash before leaves `drop.new-PID`.
pub fn make_drop_folder(folder: &Path) -> io::Result<()> {
    let Some(queue) = folder.parent().filter(|_| !folder.exists()) else {
        return Ok(());
    };
    let owner = std::fs::metadata(queue)?;
    let own = Uid::effective();
    if !own.is_root() && own.as_raw() != owner.uid() {
        return Ok(());
    }
    let new = queue.join(format!("{DROP_FOLDER}.new-{}", std::process::id()));
    // What a crash left is as good as new.
    match DirBuilder::new().mode(0o700).create(&new) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    chown(&new, Some(owner.uid()), Some(owner.gid()))?;
    std::fs::set_permissions(&new, Permissions::from_mode(DROP_FOLDER_MODE))?;
    match std::fs::rename(&new, folder) {
        // Somebody else was first.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => std::fs::remove_dir(&new),
        renamed => renamed,
    }?;
    std::fs::File::open(queue)?.sync_all()
}

/// Where the MTA listens: at the first of the addresses its daemon wrote down, or where the configuration says, or at
/// port 25 of this host. Read anew for each message, as a daemon may come back elsewhere.
#[must_use]
pub fn relay_to_mta(config: &Config) -> RelayTo {
    let file = config.paths.smtp_address_file.clone();
    let host = config.submit.mta_host.clone();
    Arc::new(move || match read_address(&file) {
        Ok(Some(address)) => Ok(hop_to(address)),
        Ok(None) => Ok(match &host {
            Some(host) => Hop::Host {
                name: host.host.clone(),
                port: Some(host.port),
            },
            None => hop_to(SocketAddr::from((Ipv4Addr::LOCALHOST, SMTP_PORT))),
        }),
        Err(error) => Err(format!("Deferred: {}: {error}", file.display())),
    })
}

/// The first address that the daemon wrote down; `None` if there is no file, and so no such daemon.
fn read_address(file: &Path) -> io::Result<Option<SocketAddr>> {
    use io::Read;
    let mut text = String::new();
    match std::fs::File::open(file) {
        Ok(file) => file
            .take(ADDRESS_FILE_BYTES_MAX)
            .read_to_string(&mut text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(text.lines().find_map(|line| line.trim().parse().ok()))
}

/// A hop to an address that this host listens on.
#[must_use]
pub fn hop_to(address: SocketAddr) -> Hop {
    let ip = match address.ip() {
        IpAddr::V4(four) if four.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(six) if six.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    Hop::Host {
        name: match ip {
            IpAddr::V4(four) => format!("[{four}]"),
            IpAddr::V6(six) => format!("[IPv6:{six}]"),
        },
        port: Some(address.port()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mta_is_where_its_daemon_wrote_or_where_the_configuration_says() {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::defaults(crate::config::Role::Msp, None);
        config.paths.smtp_address_file = folder.path().join("smtp");
        config.submit.mta_host = None;
        let to = relay_to_mta(&config);
        let host = |name: &str, port| Hop::Host {
            name: name.to_owned(),
            port: Some(port),
        };
        assert_eq!(to(), Ok(host("[127.0.0.1]", 25)));
        std::fs::write(folder.path().join("smtp"), "[::]:2525\n127.0.0.1:26\n").unwrap();
        assert_eq!(to(), Ok(host("[IPv6:::1]", 2525)));
        std::fs::remove_file(folder.path().join("smtp")).unwrap();
        std::fs::create_dir(folder.path().join("smtp")).unwrap();
        assert!(to().is_err());
    }
}
