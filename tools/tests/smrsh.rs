//! smrsh as a program: usage, exit codes, what its programs are given. Source: transcript 62 part 2.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

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
