//! `sendmail -Q` and `-qQ` with the real programs in a sandbox, after transcript 20: with a daemon, without one, and what the
//! access map quarantined.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/daemon.rs"]
mod daemon;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use daemon::{Daemon, Sandbox, wait_for};

/// Accepts without delivering.
const QUEUE_ONLY: [&str; 2] = ["-O", "DeliveryMode=queue"];

/// Runs `sendmail`, which must succeed, and gives its standard output.
fn sendmail(sandbox: &Sandbox, arguments: &[&str]) -> String {
    let output = sandbox.run("sendmail", arguments, "");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    assert!(output.stderr.is_empty(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn quarantined(sandbox: &Sandbox) -> String {
    let output = sandbox.run("mailq", &["-qQ"], "");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn total(listing: &str) -> &str {
    listing.trim_end().rsplit(' ').next().unwrap()
}

fn send(daemon: &Daemon, from: &str, subject: &str) -> String {
    let content = format!("Subject: {subject}\n\nbody\n");
    let mut client = daemon.client().unwrap();
    client.send(from, &["postmaster"], &content).unwrap()
}

fn wait_for_mail(sandbox: &Sandbox, subject: &str) {
    let line = format!("Subject: {subject}\n");
    wait_for(subject, || sandbox.mailbox().contains(&line).then_some(()));
}

#[test]
fn a_daemon_quarantines_runs_around_and_releases() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.start_with(&QUEUE_ONLY);
    let held = send(&daemon, "alice@gold.example.test", "held");
    let other = send(&daemon, "bob@silver.example.test", "other");
    let chosen = format!("-qI{held}");
    assert_eq!(sendmail(&sandbox, &["-Qspam suspect", &chosen]), "");
    let listing = quarantined(&sandbox);
    assert_eq!(total(&listing), "1", "{listing}");
    assert!(listing.contains(" (1 request)\n"), "{listing}");
    assert!(
        listing.contains("<alice@gold.example.test>\n     QUARANTINE: spam suspect\n"),
        "{listing}"
    );
    assert_eq!(total(&sandbox.mailq()), "1");
    assert!(sandbox.mailq().contains(&other));
    // Limits on the reason; case does not count.
    let some = sandbox.run("mailq", &["-qQSUSPECT"], "");
    assert_eq!(total(&String::from_utf8(some.stdout).unwrap()), "1");
    let none = sandbox.run("mailq", &["-qQother"], "");
    assert_eq!(total(&String::from_utf8(none.stdout).unwrap()), "0");

    // A run leaves it alone, and so does one that names it without -qQ.
    sendmail(&sandbox, &["-q"]);
    wait_for_mail(&sandbox, "other");
    assert_eq!(sendmail(&sandbox, &["-v", "-q", &chosen]), "");

    // The reason outlives a restart, with and without an owner.
    assert!(daemon.stop().success());
    assert!(quarantined(&sandbox).contains("     QUARANTINE: spam suspect\n"));
    let daemon = sandbox.start_with(&QUEUE_ONLY);
    assert!(quarantined(&sandbox).contains("     QUARANTINE: spam suspect\n"));

    // The same reason again is no change, another one is.
    sendmail(&sandbox, &["-Qspam suspect", "-qQ"]);
    sendmail(&sandbox, &["-Qreason\ntwo", "-qQ", &chosen]);
    assert!(quarantined(&sandbox).contains("     QUARANTINE: reason two\n"));
    daemon.kill();
    let daemon = sandbox.start_with(&QUEUE_ONLY);
    assert!(quarantined(&sandbox).contains("     QUARANTINE: reason two\n"));

    // Nothing is released that is not selected.
    sendmail(&sandbox, &["-Q", "-qQ", "-qInosuch"]);
    sendmail(&sandbox, &["-Q"]);
    assert_eq!(total(&quarantined(&sandbox)), "1");
    sendmail(&sandbox, &["-Q", "-qQ"]);
    assert_eq!(total(&quarantined(&sandbox)), "0");
    assert_eq!(total(&sandbox.mailq()), "1");
    assert!(!sandbox.mailbox().contains("Subject: held\n"));
    sendmail(&sandbox, &["-q"]);
    wait_for_mail(&sandbox, "held");
    let log = sandbox.text("var/log/maillog");
    let changes: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("quarantine"))
        .filter_map(|line| line.split_once("]: ").map(|(_, text)| text))
        .collect();
    let expected = [
        "quarantine=spam suspect",
        "quarantine=reason two",
        "unquarantine",
    ];
    assert_eq!(changes, expected.map(|text| format!("{held}: {text}")));
    assert!(daemon.stop().success());
}

#[test]
fn without_a_daemon_the_program_does_it_itself() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.start_with(&QUEUE_ONLY);
    for number in 0..3 {
        send(
            &daemon,
            &format!("s{number}@gold.example.test"),
            &format!("no. {number}"),
        );
    }
    assert!(daemon.stop().success());
    // With a reason and no selection, everything.
    sendmail(&sandbox, &["-Qall"]);
    assert_eq!(total(&quarantined(&sandbox)), "3");
    assert_eq!(total(&sandbox.mailq()), "0");
    sendmail(&sandbox, &["-Q", "-qQ", "-qSs0@"]);
    sendmail(&sandbox, &["-q"]);
    wait_for_mail(&sandbox, "no. 0");
    assert_eq!(total(&quarantined(&sandbox)), "2");
    // A run of the quarantined tries them.
    let shown = sendmail(&sandbox, &["-v", "-qQ", "-qSs1@"]);
    assert!(shown.contains("(sequence 1 of 1)\n"), "{shown}");
    assert!(shown.contains("... Connecting to local...\n"), "{shown}");
    assert!(shown.ends_with("... Sent\n"), "{shown}");
    wait_for_mail(&sandbox, "no. 1");
    let left = quarantined(&sandbox);
    assert_eq!(total(&left), "1", "{left}");
    assert!(left.contains("<s2@gold.example.test>"), "{left}");
    assert!(!sandbox.mailbox().contains("Subject: no. 2\n"));
    // The same by a daemon.
    let daemon = sandbox.start();
    assert_eq!(total(&quarantined(&sandbox)), "1");
    let shown = sendmail(&sandbox, &["-v", "-qQ"]);
    assert!(shown.ends_with("... Sent\n"), "{shown}");
    wait_for_mail(&sandbox, "no. 2");
    assert!(daemon.stop().success());
}

#[test]
fn what_the_access_map_quarantines_is_listed_with_its_value_and_released_for_good() {
    let sandbox = Sandbox::new();
    drop(sandbox.start());
    let access = sandbox.path().join("access");
    std::fs::write(
        &access,
        "From:quar@sender.test\tQUARANTINE:looks_like_spam\n",
    )
    .unwrap();
    sandbox.configure(&format!("access_db = \"text {}\"", access.display()));
    let daemon = sandbox.start();
    let id = send(&daemon, "quar@sender.test", "by access");
    let listing = quarantined(&sandbox);
    assert!(listing.contains(&id), "{listing}");
    assert!(
        listing.contains("<quar@sender.test>\n     QUARANTINE: looks_like_spam\n"),
        "{listing}"
    );
    daemon.kill();
    let daemon = sandbox.start();
    assert!(quarantined(&sandbox).contains("     QUARANTINE: looks_like_spam\n"));
    assert!(!sandbox.mailbox().contains("Subject: by access\n"));
    sendmail(&sandbox, &["-Q", "-qQ", &format!("-qI{id}")]);
    wait_for_mail(&sandbox, "by access");
    assert_eq!(total(&quarantined(&sandbox)), "0");
    assert!(daemon.stop().success());
}

#[test]
fn a_released_message_of_the_access_map_is_not_quarantined_again_by_a_restart() {
    let sandbox = Sandbox::new();
    drop(sandbox.start());
    let access = sandbox.path().join("access");
    std::fs::write(
        &access,
        "From:quar@sender.test\tQUARANTINE:looks_like_spam\n",
    )
    .unwrap();
    sandbox.configure(&format!("access_db = \"text {}\"", access.display()));
    let daemon = sandbox.start_with(&QUEUE_ONLY);
    send(&daemon, "quar@sender.test", "released");
    sendmail(&sandbox, &["-Q", "-qQ"]);
    daemon.kill();
    assert_eq!(total(&quarantined(&sandbox)), "0");
    assert_eq!(total(&sandbox.mailq()), "1");
    let daemon = sandbox.start();
    wait_for_mail(&sandbox, "released");
    assert!(daemon.stop().success());
}

#[test]
fn others_than_the_queues_user_are_refused_in_sendmails_words() {
    if !nix::unistd::geteuid().is_root() {
        println!("SKIPPED: needs root, to be somebody else");
        return;
    }
    // Where another user may come: the program itself, too.
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join("sendmail");
    // By another process: a file that this one has open for writing is handed on by the forks of the other tests, and can't
    // be run meanwhile.
    let copied = Command::new("cp")
        .args([env!("CARGO_BIN_EXE_sendmail").as_ref(), program.as_os_str()])
        .status();
    assert!(copied.unwrap().success());
    std::fs::create_dir(folder.path().join("mqueue")).unwrap();
    let config = folder.path().join("sendmail.toml");
    let here = folder.path().display();
    std::fs::write(
        &config,
        format!("queue_directory = \"{here}/mqueue\"\nlog_file = \"{here}/maillog\"\n"),
    )
    .unwrap();
    let output = Command::new(&program)
        .arg("-C")
        .arg(&config)
        .args(["-Qx", "-qInone"])
        .uid(54_321)
        .gid(54_321)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64), "{output:?}");
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "Permission denied (real uid not trusted)\n"
    );
}
