//! What may run as whom (ARCHITECTURE.md, "Rights"), with a daemon that root starts and users of its own.
//!
//! The users are in a passwd file that is mounted over the system's in a mount namespace, and so is the place where all
//! lives, so that nothing of the system changes and no directory on the way is anybody's. Needs root and unshare(1);
//! without them it says that it is skipped. `.ci/run` runs it as root.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/daemon.rs"]
mod daemon;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use daemon::wait_for;

/// Where the place is seen by the daemon; its own directory is elsewhere.
const PLACE: &str = "/mnt";
const DAEMON_UID: u32 = 52_001;
const BOB: u32 = 52_002;
const EVE: u32 = 52_003;

struct Place {
    root: tempfile::TempDir,
}

struct Running {
    /// The privileged part.
    part: Child,
    address: SocketAddr,
}

fn can_run() -> bool {
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
    fn new() -> Self {
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
        place.write("log", "");
        chown(place.path("log"), Some(DAEMON_UID), Some(DAEMON_UID)).unwrap();
        place.write("etc/local-host-names", "localhost\n");
        place.write("etc/aliases", "postmaster: root\n");
        place.write("etc/shells", "/bin/sh\n");
        place.write(
            "sendmail.toml",
            &format!(
                "run_as_user = \"smmsp\"\n\
                 queue_directory = \"{PLACE}/mqueue\"\n\
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

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o644)).unwrap();
    }

    fn write_as(&self, uid: u32, name: &str, text: &str) {
        self.write(name, text);
        chown(self.path(name), Some(uid), Some(uid)).unwrap();
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Starts the daemon in the foreground.
    fn start(&self) -> Running {
        self.start_after("true")
    }

    /// Starts it after a command in its mount namespace.
    fn start_after(&self, prepare: &str) -> Running {
        let _ = fs::remove_file(self.path("run/smtp"));
        let script = format!(
            "mount --bind '{root}' {PLACE} && mount --bind {PLACE}/etc/passwd /etc/passwd && \
             mount --bind {PLACE}/etc/group /etc/group && '{sendmail}' -C {PLACE}/sendmail.toml -bi >/dev/null && {prepare} && exec '{sendmail}' -C {PLACE}/sendmail.toml -bD",
            root = self.root.path().display(),
            sendmail = env!("CARGO_BIN_EXE_sendmail"),
        );
        let part = Command::new("unshare")
            .args(["--mount", "sh", "-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let address = wait_for("the daemon's address", || {
            self.text("run/smtp").lines().next()?.parse().ok()
        });
        Running { part, address }
    }

    fn log_says(&self, what: &str) -> String {
        wait_for(what, || {
            let log = self.text("log");
            log.contains(what).then_some(log)
        })
    }
}

impl Running {
    /// Sends a message and waits until it is accepted.
    fn send(&self, to: &[&str], text: &str) {
        let stream = TcpStream::connect(self.address).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut say = |line: &str, code: &str| {
            if !line.is_empty() {
                write!(&stream, "{line}\r\n").unwrap();
            }
            let mut answer = String::new();
            loop {
                answer.clear();
                reader.read_line(&mut answer).unwrap();
                if answer.get(3..4) != Some("-") {
                    break;
                }
            }
            assert!(answer.starts_with(code), "{line}: {answer}");
        };
        say("", "220");
        say("EHLO client", "250");
        say("MAIL FROM:<>", "250");
        for one in to {
            say(&format!("RCPT TO:<{one}>"), "250");
        }
        say("DATA", "354");
        say(&format!("Subject: {text}\r\n\r\n{text}\r\n."), "250");
        say("QUIT", "221");
    }

    /// The daemon's process id: the only child that the part has while no program runs.
    fn daemon(&self) -> i32 {
        let part = self.part.id();
        let children = format!("/proc/{part}/task/{part}/children");
        wait_for("the daemon", || {
            fs::read_to_string(&children)
                .ok()?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        })
    }

    fn stop(mut self) {
        let part = nix::unistd::Pid::from_raw(i32::try_from(self.part.id()).unwrap());
        nix::sys::signal::kill(part, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(self.part.wait().unwrap().success());
    }
}

/// A line of /proc/PID/status.
fn status_line(process: i32, name: &str) -> Vec<String> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().skip(1).map(str::to_owned).collect()
}

fn owner_and_mode(path: &Path) -> (u32, u32) {
    let seen = path.symlink_metadata().unwrap();
    (seen.uid(), seen.mode() & 0o7777)
}

#[test]
fn each_delivery_has_its_users_rights_and_the_daemon_has_none() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    // What eve's program may do, and whom it is.
    place.write_as(
        EVE,
        "home/eve/.forward",
        &format!("\"|{PLACE}/home/eve/run\", {PLACE}/home/eve/copy\n"),
    );
    place.write_as(
        EVE,
        "home/eve/run",
        &format!(
            "#!/bin/sh\ncat >/dev/null\nid >{PLACE}/home/eve/id\ngrep -E '^(Uid|Gid|CapEff)' /proc/self/status >>{PLACE}/home/eve/id\n\
             (echo x >{PLACE}/home/bob/owned) 2>/dev/null\n(echo x >{PLACE}/mqueue/owned) 2>/dev/null\nls {PLACE}/mqueue >{PLACE}/home/eve/queue 2>/dev/null\nexit 0\n"
        ),
    );
    fs::set_permissions(
        place.path("home/eve/run"),
        fs::Permissions::from_mode(0o755),
    )
    .unwrap();
    let running = place.start();

    let daemon = running.daemon();
    let expected = vec![DAEMON_UID.to_string(); 4];
    assert_eq!(status_line(daemon, "Uid:"), expected);
    assert_eq!(status_line(daemon, "Gid:"), expected);
    assert_eq!(status_line(daemon, "Groups:"), [DAEMON_UID.to_string()]);
    for capabilities in ["CapPrm:", "CapEff:", "CapInh:", "CapAmb:"] {
        assert_eq!(status_line(daemon, capabilities), ["0000000000000000"]);
    }
    assert_eq!(status_line(daemon, "NoNewPrivs:"), ["1"]);
    let part = i32::try_from(running.part.id()).unwrap();
    // One for each connection, and the one that waits for the daemon's end.
    assert_eq!(status_line(part, "Threads:"), ["33"]);
    assert_eq!(owner_and_mode(&place.path("mqueue")), (DAEMON_UID, 0o700));
    let pid = place.text("pid");
    assert_eq!(pid.lines().next(), Some(part.to_string().as_str()));

    running.send(&["bob", "eve", "root"], "first");
    for user in ["bob", "root"] {
        wait_for(user, || {
            place
                .text(&format!("mail/{user}"))
                .contains("first")
                .then_some(())
        });
    }
    assert_eq!(owner_and_mode(&place.path("mail/bob")), (BOB, 0o600));
    assert_eq!(owner_and_mode(&place.path("mail/root")), (0, 0o600));
    wait_for("the lock to go", || {
        (!place.path("mail/bob.lock").exists()).then_some(())
    });
    let id = wait_for("eve's program", || {
        let id = place.text("home/eve/id");
        id.contains("CapEff").then_some(id)
    });
    assert!(
        id.starts_with(&format!(
            "uid={EVE}(eve) gid={EVE}(eve) groups={EVE}(eve)\n"
        )),
        "{id}"
    );
    assert!(id.contains("CapEff:\t0000000000000000"), "{id}");
    wait_for("eve's copy", || {
        place.text("home/eve/copy").contains("first").then_some(())
    });
    assert_eq!(owner_and_mode(&place.path("home/eve/copy")), (EVE, 0o600));
    for forbidden in ["home/bob/owned", "mqueue/owned"] {
        assert!(!place.path(forbidden).exists(), "{forbidden}");
    }
    assert_eq!(place.text("home/eve/queue"), "");
    running.stop();
    assert!(!place.path("pid").exists());
}

#[test]
fn links_lead_to_nobody_elses_files() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    place.write_as(BOB, "home/bob/secret", "bob's own\n");
    place.write("etc/target", "root's own\n");
    fs::set_permissions(
        place.path("home/bob/secret"),
        fs::Permissions::from_mode(0o600),
    )
    .unwrap();
    symlink(format!("{PLACE}/etc/target"), place.path("mail/bob")).unwrap();
    fs::hard_link(place.path("home/bob/secret"), place.path("mail/eve")).unwrap();
    let running = place.start();
    running.send(&["bob", "eve"], "linked");
    let log = place.log_says("is a symbolic link");
    assert!(log.contains("stat=Deferred"), "{log}");
    place.log_says("mailbox /mnt/mail/eve");
    assert_eq!(place.text("etc/target"), "root's own\n");
    assert_eq!(place.text("home/bob/secret"), "bob's own\n");
    // What eve's .forward names is opened with eve's rights.
    fs::remove_file(place.path("mail/bob")).unwrap();
    place.write_as(
        EVE,
        "home/eve/.forward",
        &format!("{PLACE}/home/bob/secret\n"),
    );
    running.send(&["eve"], "stolen");
    place.log_says("Can't create output");
    assert_eq!(place.text("home/bob/secret"), "bob's own\n");
    running.stop();
}

#[test]
fn either_half_killed_ends_the_other_and_nothing_is_lost() {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    if !can_run() {
        return;
    }
    let place = Place::new();
    // A mailbox that can't be had keeps the message in the queue.
    symlink("/nonexistent", place.path("mail/bob")).unwrap();
    let mut running = place.start();
    running.send(&["bob"], "kept");
    place.log_says("is a symbolic link");
    let daemon = running.daemon();
    kill(Pid::from_raw(daemon), Signal::SIGKILL).unwrap();
    assert!(!running.part.wait().unwrap().success());
    assert!(!place.path("pid").exists());

    let mut running = place.start();
    let daemon = running.daemon();
    running.part.kill().unwrap();
    running.part.wait().unwrap();
    wait_for("the daemon to end with its part", || {
        (kill(Pid::from_raw(daemon), None).is_err()
            || fs::read_to_string(format!("/proc/{daemon}/stat"))
                .is_ok_and(|stat| stat.contains(") Z ")))
        .then_some(())
    });

    fs::remove_file(place.path("mail/bob")).unwrap();
    let running = place.start();
    // An alarm, passed on by the part, runs the queue.
    let part = Pid::from_raw(i32::try_from(running.part.id()).unwrap());
    kill(part, Signal::SIGALRM).unwrap();
    wait_for("the message", || {
        place.text("mail/bob").contains("kept").then_some(())
    });
    // And HUP starts it anew, with the same rights.
    let before = running.daemon();
    let _ = fs::remove_file(place.path("run/smtp"));
    kill(part, Signal::SIGHUP).unwrap();
    wait_for("the new daemon", || {
        (!place.text("run/smtp").is_empty() && running.daemon() != before).then_some(())
    });
    assert_eq!(
        status_line(running.daemon(), "Uid:"),
        vec![DAEMON_UID.to_string(); 4]
    );
    running.stop();
}

/// A file system that never answers, as that of a server that is gone, is one of FUSE's that nobody serves.
#[test]
fn a_home_that_hangs_holds_up_nobody_elses_mail() {
    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;
    if !can_run() {
        return;
    }
    if !Path::new("/dev/fuse").exists() {
        println!("SKIPPED: needs /dev/fuse");
        return;
    }
    let place = Place::new();
    let config = place.text("sendmail.toml") + "[timeout]\nfileopen = \"5s\"\n";
    place.write("sendmail.toml", &config);
    let release = place.path("release");
    nix::unistd::mkfifo(&release, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let running = place.start_after(&format!(
        "exec 3<>/dev/fuse && mount -i -t fuse hangs {PLACE}/home/bob -o fd=3,rootmode=40000,user_id=0,group_id=0,allow_other && \
         {{ timeout 300 cat {PLACE}/release >/dev/null & exec 3>&-; }}"
    ));
    // More than may be asked for at once for one user.
    for number in 0..6 {
        running.send(&["bob"], &format!("waits {number}"));
    }
    for number in 0..3 {
        let text = format!("passes {number}");
        running.send(&["eve"], &text);
        wait_for(&text, || {
            place.text("mail/eve").contains(&text).then_some(())
        });
    }
    let log = place.log_says("no answer from the privileged part within 5 s");
    assert!(log.contains("Deferred"), "{log}");
    // Then nobody waits for it any more.
    running.send(&["bob"], "waits as well");
    place.log_says(&format!("the files of user {BOB} do not answer"));
    running.send(&["eve"], "still passes");
    wait_for("eve's mail", || {
        place
            .text("mail/eve")
            .contains("still passes")
            .then_some(())
    });
    assert!(!place.path("mail/bob").exists());

    // The server is back.
    fs::write(&release, "").unwrap();
    let part = running.part.id().to_string();
    let home = format!("{PLACE}/home/bob");
    wait_for("the file system to go", || {
        Command::new("nsenter")
            .args(["-t", &part, "-m", "umount", &home])
            .status()
            .is_ok_and(|status| status.success())
            .then_some(())
    });
    let part = Pid::from_raw(i32::try_from(running.part.id()).unwrap());
    wait_for("bob's mail", || {
        // An alarm runs the queue.
        kill(part, Signal::SIGALRM).unwrap();
        let mailbox = place.text("mail/bob");
        (0..6)
            .map(|number| format!("waits {number}"))
            .chain(["waits as well".to_owned()])
            .all(|text| mailbox.contains(&text))
            .then_some(())
    });
    running.stop();
}
