//! vacation in a sandbox, with the daemon and the `.forward` that operators' notes have.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../tests/support/fed.rs"]
mod fed;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use fed::fed;

const DEADLINE: Duration = Duration::from_secs(60);

fn vacation() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_vacation"))
}

/// The sandbox's daemon; ended with the test.
struct Mta {
    folder: tempfile::TempDir,
    daemon: Child,
}

impl Drop for Mta {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

impl Mta {
    /// `None`, said aloud, where sendmail was not built beside vacation (a run of this package alone).
    fn start() -> Option<Self> {
        let sendmail = vacation().with_file_name("sendmail");
        if !sendmail.is_file() {
            println!("SKIPPED: {} is not built", sendmail.display());
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let sandbox = folder.path().join("s");
        let made = Command::new(&sendmail)
            .arg("--sandbox")
            .arg(&sandbox)
            .arg("-bi")
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let passwd = sandbox.join("etc/passwd");
        let mut users = fs::read_to_string(&passwd).unwrap();
        for user in ["fazi", "alice", "carol"] {
            users.push_str(&format!("{user}:x:0:0::/home/{user}:/bin/sh\n"));
            fs::create_dir_all(sandbox.join("home").join(user)).unwrap();
        }
        fs::write(passwd, users).unwrap();
        let daemon = Command::new(&sendmail)
            .arg("--sandbox")
            .arg(&sandbox)
            .args(["-bD", "-O", "DaemonPortOptions=Port=0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mta = Self { folder, daemon };
        wait_for("the daemon", || mta.path("run/smtp").exists().then_some(()));
        Some(mta)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("s").join(name)
    }

    fn home(&self, name: &str, text: &str) {
        fs::write(self.path("home/fazi").join(name), text).unwrap();
    }

    fn mail(&self, user: &str) -> String {
        fs::read_to_string(self.path("var/mail").join(user)).unwrap_or_default()
    }

    fn send(&self, from: &str, header: &str) {
        let mut command = Command::new(vacation().with_file_name("sendmail"));
        command
            .arg("--sandbox")
            .arg(self.path(""))
            .args(["-f", from, "fazi"]);
        let output = fed(&mut command, &format!("{header}\n\nbody\n"));
        assert!(output.status.success(), "{output:?}");
    }

    fn vacation(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = Command::new(vacation());
        command.arg("--sandbox").arg(self.path("")).args(arguments);
        fed(&mut command, input)
    }

    fn programs_ended(&self) -> usize {
        let log = fs::read_to_string(self.path("var/log/maillog")).unwrap_or_default();
        log.lines()
            .filter(|line| line.contains("mailer=prog"))
            .count()
    }
}

fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = condition() {
            return found;
        }
        assert!(start.elapsed() < DEADLINE, "waited for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_forward_of_the_notes_answers_each_sender_once_and_keeps_the_mail() {
    let Some(mta) = Mta::start() else { return };
    mta.home(
        ".forward",
        &format!("\\fazi, \"|{} -t0 fazi\"\n", vacation().display()),
    );
    mta.home(
        ".vacation.msg",
        "Subject: away\n\nHi Thanks for you mail \"$SUBJECT\"!\nhai i am on vacation\n",
    );
    mta.send("alice", "To: fazi\nSubject: hello $x");
    let answer = wait_for("an answer", || {
        let mail = mta.mail("alice");
        mail.contains("on vacation").then_some(mail)
    });
    assert!(answer.contains("\nSubject: away\n"), "{answer}");
    assert!(
        answer.contains("Hi Thanks for you mail \"hello $x\"!\n"),
        "{answer}"
    );
    assert!(
        answer.contains("\nAuto-Submitted: auto-replied\n"),
        "{answer}"
    );
    assert!(answer.starts_with("From fazi@"), "{answer}");
    // Again within the interval, and what is never answered.
    let mut ended = 1;
    for header in [
        "To: fazi\nSubject: again",
        "To: somebody-else\nSubject: not to the user",
        "To: fazi\nPrecedence: bulk",
        "To: fazi\nList-Id: x",
        "To: fazi\nAuto-Submitted: auto-generated",
    ] {
        let from = if header.contains("again") {
            "alice"
        } else {
            "carol"
        };
        mta.send(from, header);
        ended += 1;
        wait_for("the program's end", || {
            (mta.programs_ended() == ended).then_some(())
        });
    }
    assert_eq!(mta.mail("alice").matches("on vacation").count(), 1);
    assert_eq!(mta.mail("carol"), "");
    wait_for("all of the mail in the mailbox", || {
        (mta.mail("fazi").matches("\nbody\n").count() == ended).then_some(())
    });
    let listed = text(&mta.vacation(&["-l", "fazi"], "").stdout);
    assert!(listed.starts_with("alice@"), "{listed}");
    assert_eq!(listed.lines().count(), 1, "{listed}");
}

#[test]
fn of_two_at_once_one_answers() {
    let Some(mta) = Mta::start() else { return };
    mta.home(".vacation.msg", "I am on vacation\n");
    let letter = "From carol Sun Nov 22 17:45:01 2026\nTo: fazi\nSubject: x\n\nbody\n";
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let output = mta.vacation(&["fazi"], letter);
                assert!(output.status.success(), "{output:?}");
            });
        }
    });
    wait_for("an answer", || {
        mta.mail("carol").contains("on vacation").then_some(())
    });
    let queued = mta.path("var/spool/mqueue-client/drop");
    let left = fs::read_dir(queued).map_or(0, |files| files.count());
    assert_eq!(mta.mail("carol").matches("on vacation").count() + left, 1);
}

#[test]
fn flags_do_what_sendmails_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let run =
        |arguments: &[&str], input: &str| fed(Command::new(vacation()).args(arguments), input);
    let database = path("db");
    let code = |output: &Output| output.status.code().unwrap();
    assert_eq!(code(&run(&["-i", "-f", &database], "")), 0);
    assert!(Path::new(&path("db.db")).exists());
    assert_eq!(code(&run(&["-r", "3", "-f", &database], "")), 64);
    for (interval, expected) in [
        ("3", 0),
        ("0", 0),
        ("2d", 0),
        ("1w", 0),
        ("4h", 0),
        ("infinite", 0),
        ("x", 0),
        ("3x", 64),
        ("-1", 64),
        ("", 64),
    ] {
        let run = run(&["-r", interval, "-i", "-f", &database], "");
        assert_eq!(code(&run), expected, "-r {interval}");
    }
    assert_eq!(code(&run(&["-T", "x", "root"], "")), 64);
    assert_eq!(code(&run(&[], "")), 64);
    assert_eq!(code(&run(&["no-such-user-here"], "")), 67);
    assert_eq!(
        code(&run(&["-x", "-f", &database], "carol@x.test\n@list.test\n")),
        0
    );
    let listed = text(&run(&["-l", "-f", &database], "").stdout);
    let shown = "carol@x.test                             (exclusion)\n";
    assert!(listed.contains(shown), "{listed}");
    // No sender: nothing can be answered. What is not to the user is passed over before that is seen.
    for (input, expected) in [("To: root\n\nx\n", 65), ("Subject: x\n\nx\n", 0), ("", 0)] {
        let run = run(&["-U", "-d", "-f", &database, "root"], input);
        assert_eq!(code(&run), expected, "{input:?}");
    }
    // Excluded, by address and by domain: not answered, whatever the message file.
    for sender in ["carol@x.test", "zed@list.test"] {
        let arguments = [
            "-j",
            "-s",
            sender,
            "-m",
            "/nonexistent",
            "-f",
            &database,
            "root",
        ];
        assert_eq!(code(&run(&arguments, "To: root\n\nx\n")), 0, "{sender}");
    }
    let arguments = [
        "-j",
        "-s",
        "new@y.test",
        "-m",
        "/nonexistent",
        "-f",
        &database,
        "root",
    ];
    assert_eq!(code(&run(&arguments, "To: root\n\nx\n")), 66);
}
