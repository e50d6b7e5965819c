//! A place of its own for programs that root runs: with users, files and directories that the system does not have.
//!
//! The users are in a passwd file that is mounted over the system's in a mount namespace, and so is the place where all
//! lives, so that nothing of the system changes and no directory on the way is anybody's. Needs root and unshare(1).

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test program uses a part; a test may panic"
)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

/// Where the place is seen by the daemon; its own directory is elsewhere.
pub const PLACE: &str = "/mnt";
pub const DAEMON_UID: u32 = 52_001;
pub const BOB: u32 = 52_002;
pub const EVE: u32 = 52_003;

pub struct Place {
    root: tempfile::TempDir,
}

/// Whether there is what a place needs; says so if not.
pub fn can_run() -> bool {
    if nix::unistd::geteuid().is_root()
        && Command::new("unshare")
            .args(["--mount", "true"])
            .status()
            .is_ok_and(|status| status.success())
    {
        return true;
    }
    println!("SKIPPED: needs root and unshare");
    false
}

impl Place {
    pub fn new() -> Self {
        let place = Self {
            root: tempfile::tempdir().unwrap(),
        };
        fs::set_permissions(place.path(""), fs::Permissions::from_mode(0o755)).unwrap();
        for folder in ["home", "mail", "etc", "run", "home/bob", "home/eve"] {
            fs::create_dir(place.path(folder)).unwrap();
            fs::set_permissions(place.path(folder), fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::create_dir(place.path("mqueue")).unwrap();
        fs::set_permissions(place.path("mqueue"), fs::Permissions::from_mode(0o700)).unwrap();
        chown(place.path("home/bob"), Some(BOB), Some(BOB)).unwrap();
        chown(place.path("home/eve"), Some(EVE), Some(EVE)).unwrap();
        place.write(
            "etc/passwd",
            &format!(
                "root:x:0:0:root:{PLACE}/root:/bin/sh\n\
                 nobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n\
                 smmsp:x:{DAEMON_UID}:{DAEMON_UID}::/:/usr/sbin/nologin\n\
                 mail:x:8:8:mail:/var/mail:/usr/sbin/nologin\n\
                 bob:x:{BOB}:{BOB}:Bob:{PLACE}/home/bob:/bin/sh\n\
                 eve:x:{EVE}:{EVE}:Eve:{PLACE}/home/eve:/bin/sh\n"
            ),
        );
        place.write(
            "etc/group",
            &format!(
                "root:x:0:\nmail:x:8:\nnogroup:x:65534:\nsmmsp:x:{DAEMON_UID}:\nbob:x:{BOB}:\neve:x:{EVE}:\nextra:x:52009:bob\n"
            ),
        );
        // Root's, as logrotate makes it.
        place.write("log", "");
        place.write("etc/local-host-names", "localhost\n");
        place.write("etc/aliases", "postmaster: root\n");
        place.write("etc/shells", "/bin/sh\n");
        place.write(
            "sendmail.toml",
            &format!(
                "queue_directory = \"{PLACE}/mqueue\"\n\
                 mailbox_directory = \"{PLACE}/mail\"\n\
                 pid_file = \"{PLACE}/pid\"\n\
                 control_socket_name = \"{PLACE}/run/control\"\n\
                 smtp_address_file = \"{PLACE}/run/smtp\"\n\
                 shells_file = \"{PLACE}/etc/shells\"\n\
                 local_host_names = \"{PLACE}/etc/local-host-names\"\n\
                 alias_file = [\"{PLACE}/etc/aliases\"]\n\
                 log_file = \"{PLACE}/log\"\n\
                 daemon_port_options = [\"Name=MTA, Addr=127.0.0.1, Port=0\"]\n"
            ),
        );
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o644)).unwrap();
    }

    pub fn write_as(&self, uid: u32, name: &str, text: &str) {
        self.write(name, text);
        chown(self.path(name), Some(uid), Some(uid)).unwrap();
    }

    pub fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// A command that runs a script of the shell in the place, with `$SENDMAIL` and the system's users replaced.
    pub fn command(&self, script: &str) -> Command {
        let script = format!(
            "mount --bind '{root}' {PLACE} && mount --bind {PLACE}/etc/passwd /etc/passwd && \
             mount --bind {PLACE}/etc/group /etc/group && {script}",
            root = self.root.path().display(),
        );
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-c", &script])
            .env("SENDMAIL", env!("CARGO_BIN_EXE_sendmail"))
            .env("LC_ALL", "C")
            .stdin(Stdio::null());
        command
    }

    /// Runs a script to its end.
    pub fn run(&self, script: &str) -> Output {
        self.command(script).output().unwrap()
    }
}
