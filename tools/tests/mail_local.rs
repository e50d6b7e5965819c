//! mail.local as a program: messages from standard input, LMTP, and what it refuses. Source: transcript 62 part 7.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../tests/support/fed.rs"]
mod fed;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use fed::fed;

/// A sandbox with the users bob and carol.
struct Site {
    folder: tempfile::TempDir,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let site = Self { folder };
        let made = diligence::config::sandbox::open(
            &site.path(""),
            diligence::config::sandbox::Missing::Make,
        );
        made.unwrap();
        let passwd = site.path("etc/passwd");
        let mut users = fs::read_to_string(&passwd).unwrap();
        for user in ["bob", "carol"] {
            users.push_str(&format!("{user}:x:0:0::/home/{user}:/bin/sh\n"));
            fs::create_dir_all(site.path(&format!("home/{user}"))).unwrap();
        }
        fs::write(passwd, users).unwrap();
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("s").join(name)
    }

    fn run(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mail-local"));
        command
            .args(arguments)
            .env("DILIGENCE_SANDBOX", self.path(""));
        fed(&mut command, input)
    }

    fn mailbox(&self, user: &str) -> PathBuf {
        let mut folders = ["var/mail", "var/spool/mail"]
            .iter()
            .map(|at| self.path(at));
        folders.find(|at| at.is_dir()).unwrap().join(user)
    }
}

fn messages(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    text.split("From a@b.test  ")
        .skip(1)
        .map(|message| message.split_once('\n').unwrap().1.to_owned())
        .collect()
}

#[test]
fn a_message_goes_into_every_mailbox_and_is_quoted() {
    let site = Site::new();
    let input = "Subject: direct\n\nFrom z\nx\n";
    let output = site.run(&["-f", "a@b.test", "-d", "bob", "carol"], input);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    for user in ["bob", "carol"] {
        assert_eq!(
            messages(&site.mailbox(user)),
            ["Return-Path: <a@b.test>\nSubject: direct\n\n>From z\nx\n\n"]
        );
    }
}

#[test]
fn unknown_users_and_wrong_arguments_end_with_69_as_sendmails() {
    let site = Site::new();
    let output = site.run(&["-d", "nosuch"], "x\n");
    assert_eq!(output.status.code(), Some(69));
    assert_eq!(output.stderr, b"mail.local: nosuch: User unknown\n");
    let output = site.run(&[], "");
    assert_eq!(output.status.code(), Some(69));
    assert_eq!(
        output.stderr,
        b"mail.local: usage: mail.local [-7] [-b] [-d] [-l] [-f from|-r from] [-h filename] user ...\n"
    );
}

#[test]
fn what_is_no_mailbox_is_tried_again_later() {
    let site = Site::new();
    let secret = site.path("secret");
    fs::write(&secret, "old\n").unwrap();
    symlink(&secret, site.mailbox("bob")).unwrap();
    fs::hard_link(&secret, site.mailbox("carol")).unwrap();
    for user in ["bob", "carol"] {
        let output = site.run(&["-f", "a@b.test", user], "x\n");
        assert_eq!(output.status.code(), Some(75), "{output:?}");
    }
    assert_eq!(fs::read_to_string(&secret).unwrap(), "old\n");
    let output = site.run(&["-h", "box", "-f", "a@b.test", "bob"], "x\n\nbody\n");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(
        messages(&site.path("home/bob/box")),
        ["Return-Path: <a@b.test>\nx\n\nbody\n\n"]
    );
}

/// The dialogue of the transcript, and what RFC 2033 asks for beside it.
#[test]
fn lmtp_answers_for_each_recipient() {
    let site = Site::new();
    let input = "LHLO x\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<bob>\r\nRCPT TO:<nosuch>\r\nRCPT TO:<carol+x@h>\r\nDATA\r\n\
                 Subject: lmtp\r\n\r\nFrom y\r\n..dot\r\n.\r\nRSET\r\nBOGUS\r\nVRFY bob\r\nNOOP\r\nRCPT TO:<bob>\r\n\
                 DATA\r\nMAIL FROM:<>\r\nDATA\r\nMAIL FROM:<>\r\nRCPT bob\r\nQUIT\r\n";
    let output = site.run(&["-l"], input);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = text.split_terminator("\r\n");
    let greeting = lines.next().unwrap();
    assert!(
        greeting.starts_with("220 ") && greeting.ends_with(" LMTP ready"),
        "{greeting}"
    );
    assert!(lines.next().unwrap().starts_with("250-"));
    assert_eq!(
        lines.collect::<Vec<_>>(),
        [
            "250-8BITMIME",
            "250-ENHANCEDSTATUSCODES",
            "250 PIPELINING",
            "250 2.5.0 Ok",
            "250 2.1.5 Ok",
            "550 5.1.1 User unknown",
            "250 2.1.5 Ok",
            "354 Go ahead",
            "250 2.1.5 bob Ok",
            "250 2.1.5 carol Ok",
            "250 2.0.0 Ok",
            "500 5.5.2 Syntax error",
            "252 2.3.3 Try RCPT to attempt delivery",
            "250 2.0.0 Ok",
            "503 5.5.1 Need MAIL command",
            "503 5.5.1 Need MAIL command",
            "250 2.5.0 Ok",
            "503 5.5.1 No recipients",
            "503 5.5.1 Nested MAIL command",
            "501 5.5.4 Syntax error in parameters",
            "221 2.0.0 Bye",
        ]
    );
    assert_eq!(
        messages(&site.mailbox("bob")),
        ["Return-Path: <a@b.test>\nSubject: lmtp\n\n>From y\n.dot\n\n"]
    );
}

#[test]
fn a_message_that_breaks_off_is_not_delivered() {
    let site = Site::new();
    let input = "LHLO x\r\nMAIL FROM:<a@b.test>\r\nRCPT TO:<bob>\r\nDATA\r\nSubject: cut\r\n\r\nbo";
    let output = site.run(&["-l"], input);
    assert_eq!(output.status.code(), Some(75));
    assert!(!site.mailbox("bob").exists());
    let long = format!("LHLO {}\r\nQUIT\r\n", "x".repeat(100_000));
    let output = site.run(&["-7l"], &long);
    assert!(
        String::from_utf8(output.stdout)
            .unwrap()
            .contains("500 5.5.2 Line too long")
    );
}
