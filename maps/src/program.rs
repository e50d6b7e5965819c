//! Class `program`: a program that is run for each lookup, the key being its last argument.
//!
//! No shell comes between: the words after the switches are the program and its arguments. The first line it prints is
//! the value; nothing printed is absence, as is an exit status that says "not here". It runs with the rights of this
//! process, an environment of nothing but PATH, no standard input, and its own process group, which is killed at the
//! time limit (-d, 30 seconds without it).
//!
//! | it ends with | answer |
//! |---|---|
//! | 0 | the first line, or absence if there is none |
//! | 1 to 69, but for 64 | absent (`EX_NOUSER`, `EX_NOHOST`, `EX_UNAVAILABLE`, ..) |
//! | 64, 70 and above | trouble: the program itself did not work (`EX_USAGE`, `EX_SOFTWARE`, `EX_TEMPFAIL`, ..) |
//! | a signal, the time limit, too much output | trouble |
//!
//! Sendmail takes every status but 75, and a signal, for absence; a program that breaks would bounce mail that way (I9).
//!
//! Blocks: as long as the program runs, up to the time limit. Limits: [`OUTPUT_BYTES_MAX`].
//! Source: sendmail's op.me 5.12, sysexits(3).

#![deny(clippy::indexing_slicing)]

use crate::open_map::{ClassMap, not_listed};
use crate::{Definition, MapClass, MapError, PairVisitor, SpecError, Verdict, io_text};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Most bytes a program may print for one lookup.
pub const OUTPUT_BYTES_MAX: usize = 64 << 10;
/// How long a program may run, unless -d says otherwise.
const TIME_LIMIT: Duration = Duration::from_secs(30);
/// Where programs find other programs.
const PATH: &str = "/usr/bin:/bin:/usr/sbin:/sbin";

/// A program to be asked.
pub(crate) struct ProgramMap {
    path: PathBuf,
    arguments: Vec<String>,
    time_limit: Duration,
}

impl ProgramMap {
    pub(crate) fn new(definition: &Definition) -> Result<Self, SpecError> {
        let mut words = definition.rest.split_ascii_whitespace();
        let path = PathBuf::from(words.next().unwrap_or_default());
        if !path.is_absolute() {
            return Err(definition.bad_argument("the program is not an absolute path"));
        }
        Ok(Self {
            path,
            arguments: words.map(str::to_owned).collect(),
            time_limit: definition.switches.time_limit.unwrap_or(TIME_LIMIT),
        })
    }

    fn trouble(&self, detail: impl Into<String>) -> MapError {
        MapError::Remote {
            path: self.path.clone(),
            detail: detail.into(),
            verdict: Verdict::Temporary,
        }
    }

    fn run(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        let deadline = Instant::now() + self.time_limit;
        let child = Command::new(&self.path)
            .args(&self.arguments)
            .arg(OsStr::from_bytes(key))
            .env_clear()
            .env("PATH", PATH)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|error| MapError::open(&self.path, &error))?;
        let mut running = Running { child: Some(child) };
        let output = self.read(&mut running, deadline)?;
        let status = running
            .wait(deadline)
            .map_err(|error| self.trouble(io_text(&error)))?
            .ok_or_else(|| self.too_late())?;
        match status.code() {
            Some(0) => {
                let line = output
                    .split(|&byte| byte == b'\n')
                    .next()
                    .unwrap_or_default();
                Ok((!output.is_empty()).then(|| line.to_vec()))
            }
            Some(code @ 1..=69) if code != 64 => Ok(None),
            Some(code) => Err(self.trouble(format!("ended with status {code}"))),
            None => Err(self.trouble(format!("was killed ({status})"))),
        }
    }

    fn too_late(&self) -> MapError {
        MapError::Timeout {
            path: self.path.clone(),
            detail: format!("not done in {} s", self.time_limit.as_secs()),
        }
    }

    /// All that the program prints, up to its end.
    fn read(&self, running: &mut Running, deadline: Instant) -> Result<Vec<u8>, MapError> {
        let mut output = Vec::new();
        let Some(mut pipe) = running.child.as_mut().and_then(|child| child.stdout.take()) else {
            return Ok(output);
        };
        let mut piece = [0; 4096];
        loop {
            match is_ready(&pipe, deadline) {
                Ok(true) => {}
                Ok(false) => return Err(self.too_late()),
                Err(error) => return Err(self.trouble(io_text(&error))),
            }
            let read = match pipe.read(&mut piece) {
                Ok(0) => return Ok(output),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(self.trouble(io_text(&error))),
            };
            output.extend_from_slice(piece.get(..read).unwrap_or_default());
            if output.len() > OUTPUT_BYTES_MAX {
                return Err(self.trouble(format!("printed more than {OUTPUT_BYTES_MAX} bytes")));
            }
        }
    }
}

/// Whether there is something to read, or an end, before the deadline.
fn is_ready(fd: &impl AsFd, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut fds = [PollFd::new(fd, PollFlags::IN)];
        match poll(&mut fds, Some(&left)) {
            Ok(0) => {}
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// A child that does not outlive this value.
struct Running {
    child: Option<Child>,
}

impl Running {
    /// The exit status; `None` at the deadline.
    fn wait(&mut self, deadline: Instant) -> io::Result<Option<std::process::ExitStatus>> {
        let Some(child) = &mut self.child else {
            return Ok(None);
        };
        let pid = i32::try_from(child.id())
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| io::Error::other("no process id"))?;
        let fd = pidfd_open(pid, PidfdFlags::empty())?;
        if !is_ready(&fd, deadline)? {
            return Ok(None);
        }
        let status = child.wait()?;
        self.child = None;
        Ok(Some(status))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It is not reaped yet, so its number, which is that of its group, is still its own.
            if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
                let _ = kill_process_group(pid, Signal::KILL);
            }
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl ClassMap for ProgramMap {
    fn find(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        if key.contains(&0) {
            return Err(self.trouble("the key holds a NUL, which no argument can"));
        }
        self.run(key)
    }

    fn each(&self, _: &mut PairVisitor<'_>) -> Result<(), MapError> {
        Err(not_listed(MapClass::Program))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(text: &str, switches: &str) -> (tempfile::TempDir, ProgramMap) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        std::fs::write(&path, text).unwrap();
        // By the shell's own name: a script just written may still be open for writing in a child of another test.
        let text = format!("program {switches} /bin/sh {} one", path.display());
        let map = ProgramMap::new(&Definition::parse(&text).unwrap()).unwrap();
        (dir, map)
    }

    #[test]
    fn the_first_line_is_the_value() {
        let (_dir, map) = script("echo \"$1:$2:$HOME\"; echo more", "");
        assert_eq!(
            map.find(b"a; b$(c)").unwrap().unwrap(),
            b"one:a; b$(c):".to_vec()
        );
        let (_dir, map) = script("exit 0", "");
        assert_eq!(map.find(b"k").unwrap(), None);
        let (_dir, map) = script("echo", "");
        assert_eq!(map.find(b"k").unwrap().unwrap(), b"");
        assert!(map.find(b"a\0").is_err());
    }

    #[test]
    fn exit_codes_tell_absence_from_trouble() {
        for (code, is_absent) in [(1, true), (67, true), (69, true), (64, false), (75, false)] {
            let (_dir, map) = script(&format!("echo x; exit {code}"), "");
            assert_eq!(
                map.find(b"k").is_ok_and(|v| v.is_none()),
                is_absent,
                "{code}"
            );
            assert_eq!(map.find(b"k").is_err(), !is_absent, "{code}");
        }
        let (_dir, map) = script("kill -9 $$", "");
        assert!(map.find(b"k").is_err());
        let nothing = Definition::parse("program /no/such/program").unwrap();
        let nothing = ProgramMap::new(&nothing).unwrap();
        assert!(nothing.find(b"k").is_err());
        let relative = Definition::parse("program cat").unwrap();
        assert!(ProgramMap::new(&relative).is_err());
    }

    #[test]
    fn time_and_output_have_limits() {
        let (_dir, map) = script("sleep 60 & exec sleep 60", "-d1");
        assert!(matches!(map.find(b"k"), Err(MapError::Timeout { .. })));
        let (_dir, map) = script("exec yes", "");
        let error = map.find(b"k").unwrap_err();
        assert!(error.to_string().contains("more than"), "{error}");
    }
}
