//! Small files that a running daemon leaves for others to find it by: its process id, its SMTP addresses.
//!
//! A file appears whole under its name (written under another and renamed) and goes when the daemon stops. Nothing
//! here is synced: a file of a daemon that a power cut ended is of no use. Blocks: disk.

use std::ffi::OsString;
use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A published file; it is removed when this is dropped.
pub struct RunFile {
    path: PathBuf,
    content: Vec<u8>,
}

impl RunFile {
    /// Publishes `content` under `path`, in place of whatever has that name. Makes the directory if there is none.
    ///
    /// # Errors
    /// The system's, for the directory, the file or its new name.
    pub fn publish(path: &Path, content: Vec<u8>, mode: u32) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(parent)?;
        }
        let mut unfinished = path.as_os_str().to_owned();
        unfinished.push(format!(".tmp-{}", std::process::id()));
        let unfinished = PathBuf::from(unfinished);
        let _ = std::fs::remove_file(&unfinished);
        // A new file, never one that somebody put in its place as a link.
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&unfinished)?;
        file.write_all(&content)?;
        std::fs::rename(&unfinished, path)?;
        Ok(Self {
            path: path.to_owned(),
            content,
        })
    }
}

impl Drop for RunFile {
    fn drop(&mut self) {
        // Another daemon may have put its own in the same place.
        if std::fs::read(&self.path).is_ok_and(|found| found == self.content) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// What Sendmail's pid file holds: the process id, and the command line as it was typed.
#[must_use]
pub fn pid_file_content(command_line: &[OsString]) -> Vec<u8> {
    let mut content = format!("{}\n", std::process::id()).into_bytes();
    let words: Vec<&[u8]> = command_line.iter().map(|word| word.as_bytes()).collect();
    content.extend(words.join(&b' '));
    content.push(b'\n');
    content
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_appear_whole_with_their_mode_and_go_with_their_daemon() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run/sendmail.pid");
        let words = ["/usr/sbin/sendmail", "-bd", "-q1h"].map(OsString::from);
        let file = RunFile::publish(&path, pid_file_content(&words), 0o600).unwrap();
        let content = std::fs::read(&path).unwrap();
        assert_eq!(
            content,
            format!("{}\n/usr/sbin/sendmail -bd -q1h\n", std::process::id()).into_bytes()
        );
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn the_file_of_a_successor_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("smtp");
        let old = RunFile::publish(&path, b"old".to_vec(), 0o644).unwrap();
        let new = RunFile::publish(&path, b"new".to_vec(), 0o644).unwrap();
        drop(old);
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        drop(new);
        assert!(!path.exists());
    }
}
