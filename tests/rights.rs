//! What may run as whom (ARCHITECTURE.md, "Rights"), with a daemon that root starts and users of its own.
//!
//! In a place of its own (`support/place.rs`), which needs root and unshare(1); without them it says that it is skipped.
//! `.ci/run` runs it as root.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/place.rs"]
mod place;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use daemon::wait_for;
use place::{BOB, DAEMON_UID, EVE, PLACE, Place, can_run};

struct Running {
    /// The privileged part.
    part: Child,
    address: SocketAddr,
}

/// Starts the daemon in the foreground.
fn start(place: &Place) -> Running {
    start_after(place, "true")
}

/// Starts it after a command in its mount namespace.
fn start_after(place: &Place, prepare: &str) -> Running {
    let part = spawn(place, prepare);
    let address = wait_for("the daemon's address", || {
        place.text("run/smtp").lines().next()?.parse().ok()
    });
    Running { part, address }
}

fn spawn(place: &Place, prepare: &str) -> Child {
    let _ = fs::remove_file(place.path("run/smtp"));
    place
        .command(&format!(
            "{{ \"$SENDMAIL\" -C {PLACE}/sendmail.toml -bi >/dev/null || true; }} && {prepare} && exec \"$SENDMAIL\" -C {PLACE}/sendmail.toml -bD"
        ))
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn log_says(place: &Place, what: &str) -> String {
    wait_for(what, || {
        let log = place.text("log");
        log.contains(what).then_some(log)
    })
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

impl Drop for Running {
    /// A test that failed leaves nothing running: the daemon ends with its part.
    fn drop(&mut self) {
        let _ = self.part.kill();
        let _ = self.part.wait();
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
    let config = place.text("sendmail.toml") + "program_memory_limit = \"512MiB\"\n";
    place.write("sendmail.toml", &config);
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
             (ulimit -c; ulimit -v) >{PLACE}/home/eve/limits\n\
             (echo x >{PLACE}/home/bob/owned) 2>/dev/null\n(echo x >{PLACE}/mqueue/owned) 2>/dev/null\nls {PLACE}/mqueue >{PLACE}/home/eve/queue 2>/dev/null\nexit 0\n"
        ),
    );
    fs::set_permissions(
        place.path("home/eve/run"),
        fs::Permissions::from_mode(0o755),
    )
    .unwrap();
    let running = start(&place);

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
    wait_for("eve's limits", || {
        (place.text("home/eve/limits") == "0\n524288\n").then_some(())
    });
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
    let running = start(&place);
    running.send(&["bob", "eve"], "linked");
    let log = log_says(&place, "is a symbolic link");
    assert!(log.contains("stat=Deferred"), "{log}");
    log_says(&place, "mailbox /mnt/mail/eve");
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
    log_says(&place, "Can't create output");
    assert_eq!(place.text("home/bob/secret"), "bob's own\n");
    running.stop();
}

/// The part's refusal, which names the directory, once could not be sent, and each such message took a connection with it.
#[test]
fn a_link_to_a_name_that_is_no_text_costs_nobody_elses_mail() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    if !can_run() {
        return;
    }
    let place = Place::new();
    let folder = place.path("home/bob").join(OsStr::from_bytes(b"d\xff"));
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o775)).unwrap();
    fs::write(folder.join("f"), "eve\n").unwrap();
    for path in [&folder, &folder.join("f")] {
        chown(path, Some(BOB), Some(BOB)).unwrap();
    }
    let target = Path::new(PLACE)
        .join("home/bob")
        .join(OsStr::from_bytes(b"d\xff/f"));
    symlink(target, place.path("home/bob/.forward")).unwrap();
    let running = start(&place);
    for number in 0..3 {
        let text = format!("for both {number}");
        running.send(&["bob", "eve"], &text);
        for user in ["bob", "eve"] {
            wait_for(&text, || {
                place
                    .text(&format!("mail/{user}"))
                    .contains(&text)
                    .then_some(())
            });
        }
    }
    let part = i32::try_from(running.part.id()).unwrap();
    assert_eq!(status_line(part, "Threads:"), ["33"]);
    running.stop();
}

/// What a list's folder gave it as a group opened that group's folders to whoever owned the list.
#[test]
fn a_lists_group_gives_its_owner_no_rights() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    // A group that bob is in, and eve is not.
    let extra = 52_009;
    fs::create_dir(place.path("lists")).unwrap();
    place.write("lists/open", "bob\n");
    chown(place.path("lists"), Some(0), Some(extra)).unwrap();
    chown(place.path("lists/open"), Some(EVE), Some(extra)).unwrap();
    let allow = |mode| {
        fs::set_permissions(place.path("lists"), fs::Permissions::from_mode(mode)).unwrap();
    };
    allow(0o750);
    place.write(
        "etc/aliases",
        &format!("postmaster: root\nlist: :include:{PLACE}/lists/open\n"),
    );
    let running = start(&place);
    running.send(&["list"], "through eve's list");
    let log = log_says(&place, "Permission denied");
    assert!(log.contains("/lists/open"), "{log}");
    allow(0o755);
    running.send(&["list"], "open to all");
    wait_for("bob's mail", || {
        place.text("mail/bob").contains("open to all").then_some(())
    });
    assert!(!place.text("mail/bob").contains("through eve's"));
    running.stop();
}

/// The directory of a file that was just made was opened without the user's further groups, and the first mail bounced.
#[test]
fn a_file_is_made_where_one_of_the_users_groups_may_write() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    fs::create_dir(place.path("shared")).unwrap();
    chown(place.path("shared"), Some(0), Some(52_009)).unwrap();
    fs::set_permissions(place.path("shared"), fs::Permissions::from_mode(0o770)).unwrap();
    place.write_as(BOB, "home/bob/.forward", &format!("{PLACE}/shared/copy\n"));
    let running = start(&place);
    running.send(&["bob"], "the first");
    let log = log_says(&place, "mailer=*file*");
    assert!(log.contains("stat=Sent"), "{log}");
    assert!(place.text("shared/copy").contains("the first"));
    assert_eq!(owner_and_mode(&place.path("shared/copy")), (BOB, 0o600));
    running.stop();
}

/// A daemon that owned its folder could have root's scripts end any process.
#[test]
fn the_folder_of_the_pid_file_is_not_given_away() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    let config = place.text("sendmail.toml");
    let beside = format!("pid_file = \"{PLACE}/run/pid\"");
    let config = config.replace(&format!("pid_file = \"{PLACE}/pid\""), &beside);
    place.write("sendmail.toml", &config);
    let refused = place.run(&format!(
        "exec timeout 60 \"$SENDMAIL\" -C {PLACE}/sendmail.toml -bD"
    ));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned() + &place.text("log");
    assert!(!refused.status.success());
    assert!(
        said.contains("pid_file /mnt/run/pid must not be in the folder"),
        "{said}"
    );
    assert_eq!(owner_and_mode(&place.path("run")), (0, 0o755));
    // The operator may have given it.
    chown(place.path("run"), Some(DAEMON_UID), Some(DAEMON_UID)).unwrap();
    let running = start(&place);
    assert_eq!(owner_and_mode(&place.path("run/pid")), (0, 0o600));
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
    let mut running = start(&place);
    running.send(&["bob"], "kept");
    log_says(&place, "is a symbolic link");
    let daemon = running.daemon();
    kill(Pid::from_raw(daemon), Signal::SIGKILL).unwrap();
    assert!(!running.part.wait().unwrap().success());
    assert!(!place.path("pid").exists());

    let mut running = start(&place);
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
    let running = start(&place);
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
    let running = start_after(
        &place,
        &format!(
            "exec 3<>/dev/fuse && mount -i -t fuse hangs {PLACE}/home/bob -o fd=3,rootmode=40000,user_id=0,group_id=0,allow_other && \
         {{ timeout 300 cat {PLACE}/release >/dev/null & exec 3>&-; }}"
        ),
    );
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
    let log = log_says(&place, "no answer from the privileged part within 5 s");
    assert!(log.contains("Deferred"), "{log}");
    // Then nobody waits for it any more.
    running.send(&["bob"], "waits as well");
    log_says(&place, &format!("the files of user {BOB} do not answer"));
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

#[test]
fn maps_and_classes_that_root_alone_may_read_are_read_and_seen_to_change() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    let config = place.text("sendmail.toml").replace(
        &format!("[\"{PLACE}/etc/aliases\"]"),
        &format!("[\"{PLACE}/etc/aliases\", \"text:{PLACE}/etc/lists\"]"),
    );
    place.write("sendmail.toml", &config);
    let secret = |name: &str, text: &str| {
        // As makemap does: another file in its place.
        place.write("etc/new", text);
        fs::set_permissions(place.path("etc/new"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::rename(place.path("etc/new"), place.path(name)).unwrap();
    };
    secret("etc/lists", "list bob\n");
    secret("etc/local-host-names", "localhost\nfirst.test\n");
    let running = start(&place);
    assert_eq!(
        status_line(running.daemon(), "Uid:"),
        vec![DAEMON_UID.to_string(); 4]
    );
    running.send(&["list@first.test"], "to bob");
    wait_for("bob's mail", || {
        place.text("mail/bob").contains("to bob").then_some(())
    });
    secret("etc/lists", "list eve\n");
    secret("etc/local-host-names", "localhost\nsecond.test\n");
    running.send(&["list@second.test"], "to eve");
    wait_for("eve's mail", || {
        place.text("mail/eve").contains("to eve").then_some(())
    });
    running.stop();
}

#[test]
fn without_an_account_or_when_told_so_the_daemon_stays_root_and_says_why() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    let config = place.text("sendmail.toml");
    let passwd = place.text("etc/passwd");
    place.write("etc/passwd", &passwd.replace("smmsp:", "somebody:"));
    let running = start(&place);
    assert_eq!(owner_and_mode(&place.path("mqueue")).0, 0);
    let log = place.text("log");
    assert!(log.contains("root's rights are kept"), "{log}");
    running.send(&["bob"], "of root");
    wait_for("bob's mail", || {
        place.text("mail/bob").contains("of root").then_some(())
    });
    assert_eq!(owner_and_mode(&place.path("mail/bob")), (BOB, 0o600));
    running.stop();

    place.write("etc/passwd", &passwd);
    place.write("log", "");
    place.write(
        "sendmail.toml",
        &format!("run_as_user = \"root\"\n{config}"),
    );
    let running = start(&place);
    assert_eq!(owner_and_mode(&place.path("mqueue")).0, 0);
    assert!(!place.text("log").contains("rights are kept"));
    running.stop();
    // A group of its own choice.
    place.write(
        "sendmail.toml",
        &format!("run_as_user = \"smmsp:extra\"\n{config}"),
    );
    let running = start(&place);
    let daemon = running.daemon();
    assert_eq!(status_line(daemon, "Uid:"), vec![DAEMON_UID.to_string(); 4]);
    assert_eq!(status_line(daemon, "Gid:"), vec!["52009"; 4]);
    running.stop();
    // One that is named must be there.
    place.write(
        "sendmail.toml",
        &format!("run_as_user = \"nemo\"\n{config}"),
    );
    let mut refused = spawn(&place, "true");
    assert_eq!(refused.wait().unwrap().code(), Some(78));
    log_says(&place, "run_as_user: no user nemo");
}

/// Ports below 1024 are root's to bind; after the daemon has given root up, its part starts it anew.
#[test]
fn a_daemon_that_starts_anew_binds_its_low_port_again() {
    use nix::sys::signal::{Signal, kill};
    if !can_run() {
        return;
    }
    let place = Place::new();
    let port = (600..1024)
        .rev()
        .find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok())
        .unwrap();
    let config = place.text("sendmail.toml");
    place.write(
        "sendmail.toml",
        &config.replace("Port=0", &format!("Port={port}")),
    );
    let running = start(&place);
    assert_eq!(running.address.port(), port);
    let part = nix::unistd::Pid::from_raw(i32::try_from(running.part.id()).unwrap());
    for _ in 0..2 {
        let before = running.daemon();
        assert_eq!(status_line(before, "Uid:"), vec![DAEMON_UID.to_string(); 4]);
        fs::remove_file(place.path("run/smtp")).unwrap();
        kill(part, Signal::SIGHUP).unwrap();
        wait_for("the new daemon", || {
            (!place.text("run/smtp").is_empty() && running.daemon() != before).then_some(())
        });
    }
    running.send(&["bob"], "after all");
    wait_for("bob's mail", || {
        place.text("mail/bob").contains("after all").then_some(())
    });
    running.stop();
}

#[test]
fn a_queue_run_of_roots_has_no_more_rights_than_the_daemon() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    let config = place.text("sendmail.toml");
    place.write(
        "sendmail.toml",
        &format!("delivery_mode = \"queue\"\n{config}"),
    );
    place.write_as(
        EVE,
        "home/eve/.forward",
        &format!("\"|{PLACE}/home/eve/run\"\n"),
    );
    // The parent of its shell is the part, whose other child is the run.
    place.write_as(
        EVE,
        "home/eve/run",
        &format!(
            "#!/bin/sh\ncat >/dev/null\nid >{PLACE}/home/eve/id\nset -- $(cat /proc/$PPID/stat)\nfor one in $(cat /proc/$4/task/*/children); do grep -E '^(Name|Uid|CapEff|NoNewPrivs)' /proc/$one/status; done >{PLACE}/home/eve/family\nexit 0\n"
        ),
    );
    fs::set_permissions(
        place.path("home/eve/run"),
        fs::Permissions::from_mode(0o755),
    )
    .unwrap();
    let running = start(&place);
    running.send(&["bob", "eve"], "later");
    running.stop();
    assert!(!place.path("mail/bob").exists());
    // Another has left a file behind.
    place.write("mqueue/left", "");
    let ran = place.run(&format!(
        "exec \"$SENDMAIL\" -C {PLACE}/sendmail.toml -q -v"
    ));
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(ran.status.success(), "{ran:?}");
    assert!(said.contains("Sent"), "{said}");
    assert!(place.text("mail/bob").contains("later"));
    assert_eq!(owner_and_mode(&place.path("mail/bob")), (BOB, 0o600));
    let id = place.text("home/eve/id");
    assert!(
        id.starts_with(&format!("uid={EVE}(eve) gid={EVE}(eve)")),
        "{id}"
    );
    let family = place.text("home/eve/family");
    let run = format!("Uid:\t{DAEMON_UID}\t{DAEMON_UID}\t{DAEMON_UID}\t{DAEMON_UID}");
    assert!(family.contains(&run), "{family}");
    for entry in fs::read_dir(place.path("mqueue")).unwrap() {
        let path = entry.unwrap().path();
        assert_eq!(path.metadata().unwrap().uid(), DAEMON_UID, "{path:?}");
    }
}

/// Ends a queue runner that went into the background, by the number in its pid file.
struct Runner(i32);

impl Drop for Runner {
    fn drop(&mut self) {
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.0),
            nix::sys::signal::Signal::SIGTERM,
        );
    }
}

/// As in an installation: `sendmail` is set-group-id smmsp, and root starts the client queue's runner.
#[test]
fn the_client_queues_runner_has_the_rights_of_its_queues_owner() {
    if !can_run() {
        return;
    }
    let place = Place::new();
    fs::create_dir(place.path("client")).unwrap();
    chown(place.path("client"), Some(DAEMON_UID), Some(DAEMON_UID)).unwrap();
    fs::set_permissions(place.path("client"), fs::Permissions::from_mode(0o770)).unwrap();
    let program = place.path("sendmail");
    fs::copy(env!("CARGO_BIN_EXE_sendmail"), &program).unwrap();
    chown(&program, Some(0), Some(DAEMON_UID)).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o2755)).unwrap();
    fs::create_dir(place.path("etc/mail")).unwrap();
    // Another account that the daemon would become, but the queue is not its own.
    for (file, line) in [
        (
            "etc/passwd",
            "diligence:x:52007:52007::/:/usr/sbin/nologin\n",
        ),
        ("etc/group", "diligence:x:52007:\n"),
    ] {
        place.write(file, &(place.text(file) + line));
    }
    place.write(
        "etc/mail/submit.toml",
        &format!(
            "queue_directory = \"{PLACE}/client\"\npid_file = \"{PLACE}/client/pid\"\n\
             control_socket_name = \"{PLACE}/client/control\"\nsmtp_address_file = \"{PLACE}/run/smtp\"\n\
             log_file = \"{PLACE}/log\"\n"
        ),
    );
    let in_etc = |script: &str| {
        let ran = place.run(&format!("mount --bind {PLACE}/etc /etc && {script}"));
        assert!(ran.status.success(), "{script}: {ran:?}");
    };
    in_etc(&format!("{PLACE}/sendmail -Ac -q1h"));
    let part: i32 = place
        .text("client/pid")
        .lines()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let _runner = Runner(part);
    assert_eq!(owner_and_mode(&place.path("client/pid")), (0, 0o600));
    let runner = wait_for("the runner", || {
        let children = fs::read_to_string(format!("/proc/{part}/task/{part}/children")).ok()?;
        children.split_whitespace().next()?.parse().ok()
    });
    for ids in ["Uid:", "Gid:"] {
        assert_eq!(status_line(runner, ids), vec![DAEMON_UID.to_string(); 4]);
    }
    assert_eq!(status_line(runner, "NoNewPrivs:"), ["1"]);

    // Its owner makes the folder of drop files.
    let drop_folder = place.path("client/drop");
    wait_for("the folder of drop files", || {
        drop_folder.exists().then_some(())
    });
    assert_eq!(owner_and_mode(&drop_folder), (DAEMON_UID, 0o730));
    assert_eq!(fs::metadata(&drop_folder).unwrap().gid(), DAEMON_UID);
    // Nobody listens yet: what eve sends waits in a queue that she can't look into.
    in_etc(&format!(
        "printf 'Subject: hi\\n\\nsubmitted\\n' | setpriv --reuid {EVE} --regid {EVE} --clear-groups {PLACE}/sendmail bob"
    ));
    in_etc(&format!(
        "! setpriv --reuid {EVE} --regid {EVE} --clear-groups ls {PLACE}/client {PLACE}/client/drop 2>/dev/null"
    ));
    assert!(!place.path("mail/bob").exists());
    let running = start(&place);
    let mailbox = wait_for("bob's mail", || {
        // Root's run asks the runner, over its socket.
        in_etc(&format!("{PLACE}/sendmail -Ac -q"));
        let mailbox = place.text("mail/bob");
        mailbox.contains("submitted").then_some(mailbox)
    });
    assert!(mailbox.starts_with("From eve@"), "{mailbox}");
    running.stop();
}
