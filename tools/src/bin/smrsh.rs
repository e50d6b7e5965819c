//! smrsh: the restricted shell that runs the commands of aliases and `.forward` files.
//!
//! Guarantees: the only programs that a command can name are those in one directory, whatever path it gives, and `exec`,
//! `exit` and `echo`; no character that a shell could make another command, a redirection or a substitution of gets through, but `&&` and `||`,
//! behind which the same rules hold. What passes is given to `/bin/sh` with PATH in its environment and nothing else
//! (and the sandbox, where there is one). Each refusal is said on standard error and logged at LOG_CRIT, and ends with
//! 69 (EX_UNAVAILABLE).
//! Limits: [`COMMAND_BYTES_MAX`]. Source: smrsh(8) of Sendmail 8.17, transcript 62 part 2.

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Where programs are, unless `-d` says otherwise.
const DIRECTORY: &str = "/usr/lib/sm.bin";
/// The PATH that programs get.
const PATH: &str = "/usr/bin:/bin";
/// The longest command.
const COMMAND_BYTES_MAX: usize = 8192;
/// Characters that are refused.
const SPECIALS: &[u8] = b"<|>^();&`$\r\n";
/// The one variable that is passed on: what a program of a sandbox sends is to stay in it.
const SANDBOX_VARIABLE: &str = "DILIGENCE_SANDBOX";
/// Source: sysexits(3).
const EX_USAGE: i32 = 64;
const EX_UNAVAILABLE: i32 = 69;
const EX_OSFILE: i32 = 72;

/// What is said, and what is logged.
#[derive(Debug, PartialEq, Eq)]
struct Refusal {
    said: Vec<u8>,
    logged: Vec<u8>,
}

fn main() {
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_else(|| OsString::from("smrsh"));
    let arguments: Vec<OsString> = arguments.collect();
    let (directory, command) = match arguments.as_slice() {
        [c, command] if c == "-c" => (OsStr::new(DIRECTORY), command),
        [d, directory, c, command] if d == "-d" && c == "-c" && is_absolute(directory) => {
            (directory.as_os_str(), command)
        }
        _ => usage(&name),
    };
    let line = match restrict(command.as_bytes(), Path::new(directory)) {
        Ok(line) if line.is_empty() => usage(&name),
        Ok(line) => line,
        Err(refusal) => refuse(&name, &refusal),
    };
    let mut shell = Command::new("/bin/sh");
    shell.arg("-c").arg(OsString::from_vec(line));
    shell.env_clear().env("PATH", PATH);
    if let Some(sandbox) = std::env::var_os(SANDBOX_VARIABLE) {
        shell.env(SANDBOX_VARIABLE, sandbox);
    }
    let error = shell.exec();
    log(format!("Cannot exec /bin/sh: {error}").as_bytes());
    std::process::exit(EX_OSFILE);
}

fn is_absolute(directory: &OsStr) -> bool {
    directory.as_bytes().starts_with(b"/")
}

fn usage(name: &OsStr) -> ! {
    say(&[b"Usage: ", name.as_bytes(), b" -c command\n"]);
    log(b"usage");
    std::process::exit(EX_USAGE);
}

fn refuse(name: &OsStr, refusal: &Refusal) -> ! {
    say(&[name.as_bytes(), b": ", &refusal.said, b"\n"]);
    log(&refusal.logged);
    std::process::exit(EX_UNAVAILABLE);
}

/// The command as the shell gets it.
fn restrict(command: &[u8], directory: &Path) -> Result<Vec<u8>, Refusal> {
    let uid = rustix::process::getuid().as_raw();
    let refused = |said: Vec<u8>, logged: &[&[u8]]| {
        let mut line = format!("uid {uid}: ").into_bytes();
        logged.iter().for_each(|part| line.extend_from_slice(part));
        Err(Refusal { said, logged: line })
    };
    if command.len() > COMMAND_BYTES_MAX || command.contains(&0) {
        let shown = command.get(..40).unwrap_or(command);
        return refused(
            b"command too long".to_vec(),
            &[b"command too long: ", shown],
        );
    }
    let mut line = Vec::new();
    let mut rest = command;
    let mut wants_program = false;
    loop {
        rest = rest.trim_ascii_start();
        if rest.is_empty() {
            break;
        }
        let end = position(rest, b" \t").unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        // Whatever path is given, the last part of it is looked for in the one directory.
        let base = word
            .rsplit(|byte| *byte & 0x7f == b'/')
            .next()
            .unwrap_or(word);
        if word == b"exec" && !after.is_empty() {
            line.extend_from_slice(b"exec ");
            rest = after;
            wants_program = true;
            continue;
        }
        if matches!(word, b"exit" | b"echo") {
            line.extend_from_slice(word);
        } else {
            let path = directory.join(OsStr::from_bytes(base));
            if let Some(why) = unavailable(&path) {
                let mut said = [b"\"", base, b"\" not available for sendmail programs"].concat();
                let mut used = [b"attempt to use \"", base, b"\""].concat();
                if !why.is_empty() {
                    said.extend_from_slice(format!(" ({why})").as_bytes());
                    used.extend_from_slice(format!(" ({why})").as_bytes());
                }
                return refused(said, &[&used]);
            }
            line.extend_from_slice(path.as_os_str().as_bytes());
        }
        wants_program = false;
        let Some(at) = position(after, SPECIALS) else {
            line.extend_from_slice(after);
            break;
        };
        let (before, special) = after.split_at(at);
        match special {
            [b'&', b'&', next @ ..] | [b'|', b'|', next @ ..] => {
                line.extend_from_slice(before);
                line.extend_from_slice(special.get(..2).unwrap_or_default());
                rest = next;
            }
            _ => {
                let first = special.get(..1).unwrap_or_default();
                let said = [b"cannot use ", first, b" in command"].concat();
                return refused(
                    said,
                    &[b"attempt to use ", first, b" in command: ", command],
                );
            }
        }
    }
    if wants_program {
        return refused(
            b"missing command to exec".to_vec(),
            &[b"missing command to exec"],
        );
    }
    Ok(line)
}

/// Why a program cannot be run; without a word of its own if it may not.
fn unavailable(path: &Path) -> Option<&'static str> {
    match path.metadata() {
        Err(_) => Some("stat failed"),
        Ok(metadata) if !metadata.is_file() => Some("not a file"),
        Ok(metadata) if metadata.permissions().mode() & 0o111 == 0 => Some(""),
        Ok(_) => {
            let access = rustix::fs::access(path, rustix::fs::Access::EXEC_OK);
            access.is_err().then_some("")
        }
    }
}

fn position(text: &[u8], of: &[u8]) -> Option<usize> {
    text.iter().position(|byte| of.contains(byte))
}

fn say(parts: &[&[u8]]) {
    // Nobody is left to be told that standard error is gone.
    let _ = std::io::stderr().write_all(&parts.concat());
}

/// One line to syslog at mail.crit; a syslogd that is not there, or does not read, costs the line alone. In a sandbox
/// what is said on standard error reaches its log.
fn log(text: &[u8]) {
    if std::env::var_os(SANDBOX_VARIABLE).is_some() {
        return;
    }
    let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
    let stamp = diligence_tools::local_time(i64::try_from(now.as_secs()).unwrap_or_default());
    let stamp = stamp.get(4..19).unwrap_or_default();
    let mut line = format!("<18>{stamp} smrsh: ").into_bytes();
    line.extend(
        text.iter()
            .map(|byte| if byte.is_ascii_control() { b' ' } else { *byte }),
    );
    let sent = UnixDatagram::unbound().and_then(|socket| {
        socket.set_nonblocking(true)?;
        socket.send_to(&line, "/dev/log")
    });
    // A refusal stands whether it is logged or not.
    let _ = sent;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, mode) in [("envdump", 0o755), ("plain", 0o644)] {
            std::fs::write(folder.path().join(name), "#!/bin/sh\n").unwrap();
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(folder.path().join(name), mode).unwrap();
        }
        std::fs::create_dir(folder.path().join("dir")).unwrap();
        folder
    }

    #[test]
    fn commands_are_confined_to_the_directory() {
        let folder = site();
        let at = folder.path().display();
        for (command, line) in [
            ("envdump", format!("{at}/envdump")),
            ("/bin/envdump x", format!("{at}/envdump x")),
            ("  ../../envdump  a 'b c'", format!("{at}/envdump  a 'b c'")),
            ("exec envdump", format!("exec {at}/envdump")),
            ("exit 75", "exit 75".to_owned()),
            ("envdump #comment", format!("{at}/envdump #comment")),
            (
                "envdump \"quoted arg\"",
                format!("{at}/envdump \"quoted arg\""),
            ),
            (
                "envdump a || /x/envdump b && exit 1",
                format!("{at}/envdump a ||{at}/envdump b &&exit 1"),
            ),
            ("", String::new()),
            (" \t", String::new()),
        ] {
            let found = restrict(command.as_bytes(), folder.path()).unwrap();
            assert_eq!(String::from_utf8(found).unwrap(), line, "{command}");
        }
    }

    #[test]
    fn everything_else_is_refused_in_smrshs_words() {
        let folder = site();
        for (command, said) in [
            ("envdump | cat", "cannot use | in command"),
            ("envdump `id`", "cannot use ` in command"),
            ("envdump > /tmp/x", "cannot use > in command"),
            ("envdump < /tmp/x", "cannot use < in command"),
            ("envdump a\nb", "cannot use \n in command"),
            ("envdump a\rb", "cannot use \r in command"),
            ("envdump 'a' $HOME", "cannot use $ in command"),
            ("envdump '$x'", "cannot use $ in command"),
            ("envdump (x)", "cannot use ( in command"),
            ("envdump a; envdump", "cannot use ; in command"),
            ("envdump a & envdump", "cannot use & in command"),
            ("envdump a ^ b", "cannot use ^ in command"),
            (
                "../../bin/cat",
                "\"cat\" not available for sendmail programs (stat failed)",
            ),
            (
                "if true; then envdump; fi",
                "\"if\" not available for sendmail programs (stat failed)",
            ),
            (
                "|envdump",
                "\"|envdump\" not available for sendmail programs (stat failed)",
            ),
            (
                "envdump;id",
                "\"envdump;id\" not available for sendmail programs (stat failed)",
            ),
            (
                "envdump && cat",
                "\"cat\" not available for sendmail programs (stat failed)",
            ),
            (
                "dir",
                "\"dir\" not available for sendmail programs (not a file)",
            ),
            (
                "x/",
                "\"\" not available for sendmail programs (not a file)",
            ),
            ("plain", "\"plain\" not available for sendmail programs"),
            ("exec ", "missing command to exec"),
        ] {
            let refusal = restrict(command.as_bytes(), folder.path()).unwrap_err();
            assert_eq!(
                String::from_utf8(refusal.said).unwrap(),
                said,
                "{command:?}"
            );
        }
        let long = vec![b'x'; COMMAND_BYTES_MAX + 1];
        assert!(restrict(&long, folder.path()).is_err());
        let refusal = restrict(b"envdump one 'two' $HOME", folder.path()).unwrap_err();
        let uid = rustix::process::getuid().as_raw();
        assert_eq!(
            String::from_utf8(refusal.logged).unwrap(),
            format!("uid {uid}: attempt to use $ in command: envdump one 'two' $HOME")
        );
    }
}
