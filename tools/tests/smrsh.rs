//! smrsh as a program: usage, exit codes, what its programs are given. Source: transcript 62 part 2.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../tests/support/fed.rs"]
mod fed;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use fed::fed;

/// A directory of programs, `envdump` and `rcprog` among them.
fn programs() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, script) in [
        (
            "envdump",
            "#!/bin/sh\necho \"args($#):\"; for a in \"$@\"; do echo \"  [$a]\"; done; /usr/bin/env | /usr/bin/sort | /bin/grep -v '^_='\n",
        ),
        ("rcprog", "#!/bin/sh\nexit $1\n"),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    folder
}

fn smrsh(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_smrsh"))
        .arg0("/usr/libexec/sendmail/smrsh")
        .args(arguments)
        .env("EVIL", "1")
        .env_remove("DILIGENCE_SANDBOX")
        .current_dir("/")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn programs_get_their_arguments_and_a_clean_environment() {
    let folder = programs();
    let directory = folder.path().to_str().unwrap();
    let output = smrsh(&[
        "-d",
        directory,
        "-c",
        "/bin/envdump a \"quoted arg\" #comment",
    ]);
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "args(2):\n  [a]\n  [quoted arg]\nPATH=/usr/bin:/bin\nPWD=/\n"
    );
    assert_eq!(output.status.code(), Some(0));
    for (command, code) in [
        ("exit 75", 75),
        ("rcprog 67", 67),
        ("exec rcprog 255", 255),
        ("rcprog 1 || exit 75", 75),
        ("rcprog 0 && rcprog 3", 3),
    ] {
        let output = smrsh(&["-d", directory, "-c", command]);
        assert_eq!(output.status.code(), Some(code), "{command}: {output:?}");
    }
}

#[test]
fn refusals_and_usage_are_said_under_the_name_it_was_called_by() {
    let folder = programs();
    let directory = folder.path().to_str().unwrap();
    for (arguments, said, code) in [
        (
            vec![],
            "Usage: /usr/libexec/sendmail/smrsh -c command\n",
            64,
        ),
        (
            vec!["-c"],
            "Usage: /usr/libexec/sendmail/smrsh -c command\n",
            64,
        ),
        (
            vec!["-c", ""],
            "Usage: /usr/libexec/sendmail/smrsh -c command\n",
            64,
        ),
        (
            vec!["-d", "bin", "-c", "x"],
            "Usage: /usr/libexec/sendmail/smrsh -c command\n",
            64,
        ),
        (
            vec!["-d", directory, "-c", "envdump | cat"],
            "/usr/libexec/sendmail/smrsh: cannot use | in command\n",
            69,
        ),
        (
            vec!["-c", "../../bin/no-such-program-here"],
            "/usr/libexec/sendmail/smrsh: \"no-such-program-here\" not available for sendmail programs (stat failed)\n",
            69,
        ),
    ] {
        let output = smrsh(&arguments);
        assert_eq!(
            String::from_utf8(output.stderr).unwrap(),
            said,
            "{arguments:?}"
        );
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert!(output.stdout.is_empty());
    }
}

/// A daemon of a sandbox whose commands smrsh runs; ended with the test.
struct Mta {
    folder: tempfile::TempDir,
    sendmail: PathBuf,
    daemon: Option<Child>,
}

impl Drop for Mta {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

impl Mta {
    /// `None`, said aloud, where sendmail was not built beside smrsh (a run of this package alone).
    fn start(aliases: &str) -> Option<Self> {
        let sendmail = PathBuf::from(env!("CARGO_BIN_EXE_smrsh")).with_file_name("sendmail");
        if !sendmail.is_file() {
            println!("SKIPPED: {} is not built", sendmail.display());
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let mut mta = Self {
            folder,
            sendmail,
            daemon: None,
        };
        assert!(mta.run(&["-bi"], "").status.success());
        fs::write(mta.path("etc/mail/aliases"), aliases).unwrap();
        assert!(mta.run(&["-bi"], "").status.success());
        let directory = mta.path("etc/mail/smrsh");
        fs::create_dir_all(&directory).unwrap();
        for entry in fs::read_dir(programs().path()).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, directory.join(path.file_name().unwrap())).unwrap();
        }
        let mut command = mta.command(&["-bD", "-O", "DaemonPortOptions=Port=0"]);
        let shell = format!("local_shell={}", env!("CARGO_BIN_EXE_smrsh"));
        command.args(["-O", &shell]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        mta.daemon = Some(command.spawn().unwrap());
        mta.wait_for("the daemon", |mta| mta.path("run/smtp").exists());
        Some(mta)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("s").join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.sendmail);
        command.arg("--sandbox").arg(self.path("")).args(arguments);
        command
    }

    fn run(&self, arguments: &[&str], input: &str) -> Output {
        fed(&mut self.command(arguments), input)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("var/log/maillog")).unwrap_or_default()
    }

    fn wait_for(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !condition(self) {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "waited for {what}: {}",
                self.log()
            );
            std::thread::yield_now();
        }
    }
}

/// Transcript 62, parts 1 and 4: what smrsh refuses fails, with its words in log and report; what it runs says by its exit
/// code what becomes of the mail.
#[test]
fn commands_of_aliases_are_run_by_smrsh_and_nothing_else() {
    let aliases = "postmaster: root\npipe: \"|envdump one 'two three' $HOME\"\ngood: \"|/usr/bin/rcprog 0\"\n\
                   later: \"|rcprog 75\"\nother: \"|/bin/cat\"\n";
    let Some(mta) = Mta::start(aliases) else {
        return;
    };
    for (user, part) in [
        (
            "pipe",
            "mailer=prog, pri=, dsn=5.0.0, stat=Service unavailable",
        ),
        ("good", "mailer=prog, pri=, dsn=2.0.0, stat=Sent"),
        (
            "later",
            concat!(
                "mailer=prog, pri=, dsn=4.0.0, stat=Deferred: prog mailer (",
                env!("CARGO_BIN_EXE_smrsh"),
                ") exited with EX_TEMPFAIL"
            ),
        ),
        (
            "other",
            "mailer=prog, pri=, dsn=5.0.0, stat=Service unavailable",
        ),
    ] {
        let output = mta.run(
            &["-f", "s@sender.example.test", user],
            "Subject: s\n\nbody\n",
        );
        assert!(output.status.success(), "{output:?}");
        mta.wait_for(user, |mta| {
            mta.log().lines().any(|line| {
                // The priority depends on the size.
                let Some((before, rest)) = line.split_once("pri=") else {
                    return false;
                };
                let after = rest.trim_start_matches(|c: char| c.is_ascii_digit());
                line.contains("to=\"|") && format!("{before}pri={after}").contains(part)
            })
        });
    }
    mta.wait_for("what smrsh said", |mta| {
        let log = mta.log();
        log.contains("prog: smrsh: cannot use $ in command")
            && log
                .contains("prog: smrsh: \"cat\" not available for sendmail programs (stat failed)")
    });
}
