//! `dead.letter`: where a message goes that could neither be sent nor mailed back.
//!
//! The message is added to the file as mailboxes hold it (a `From ` line, LF, an empty line after it) and synced. A
//! failed write is cut off again. The file must be a regular file of the user with one name, and is not followed
//! through a link, as the program may have rights the user has not. Blocks: disk.
//!
//! Source: sendmail(8) (FILES), Sendmail's savemail().

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, OFlags, flock};

/// Adds a message to the file at `path`, which must belong to `uid` or be made.
///
/// # Errors
/// The system's, and `PermissionDenied` if the file is not the user's own.
/// # Durability
/// Synced when it returns.
pub fn save(path: &Path, uid: u32, from_line: &str, content: &mut dyn Read) -> io::Result<()> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .custom_flags(flags.bits().cast_signed())
        .open(path)?;
    let found = file.metadata()?;
    if !found.is_file() || found.nlink() != 1 || found.uid() != uid {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "not a regular file of the user with one name",
        ));
    }
    flock(&file, FlockOperation::LockExclusive)?;
    let end = file.metadata()?.len();
    if let Err(error) = write(&mut file, from_line, content) {
        // Half a message would look like a whole one; if even this fails there is nothing better to do.
        let _ = file.set_len(end);
        return Err(error);
    }
    file.sync_all()
}

fn write(file: &mut File, from_line: &str, content: &mut dyn Read) -> io::Result<()> {
    let mut out = BufWriter::new(file);
    writeln!(out, "{from_line}")?;
    // How much of `From ` the line has matched so far; pieces of the content may end anywhere.
    const FROM: &[u8] = b"From ";
    let mut matched = Some(0_usize);
    for byte in BufReader::new(content).bytes() {
        let byte = byte?;
        if let Some(count) = matched {
            if FROM.get(count) == Some(&byte) {
                matched = Some(count + 1);
                if count + 1 == FROM.len() {
                    out.write_all(b">From ")?;
                    matched = None;
                }
                continue;
            }
            out.write_all(FROM.get(..count).unwrap_or_default())?;
            matched = None;
        }
        // Every CR of a content is half of CRLF.
        if byte != b'\r' {
            out.write_all(&[byte])?;
        }
        if byte == b'\n' {
            matched = Some(0);
        }
    }
    if let Some(count) = matched {
        out.write_all(FROM.get(..count).unwrap_or_default())?;
    }
    out.write_all(b"\n")?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_added_as_a_mailbox_holds_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dead.letter");
        let uid = folder.path().metadata().unwrap().uid();
        for _ in 0..2 {
            let mut content: &[u8] = b"Subject: x\r\n\r\nFrom here\r\n.\r\n";
            save(
                &path,
                uid,
                "From alice  Sun Nov 22 17:12:53 2026",
                &mut content,
            )
            .unwrap();
        }
        let one = "From alice  Sun Nov 22 17:12:53 2026\nSubject: x\n\n>From here\n.\n\n";
        assert_eq!(std::fs::read_to_string(&path).unwrap(), one.repeat(2));
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
    }

    #[test]
    fn links_and_files_of_others_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let uid = folder.path().metadata().unwrap().uid();
        let target = folder.path().join("target");
        std::fs::write(&target, "old").unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(save(&link, uid, "From x", &mut &b"x"[..]).is_err());
        assert!(save(&target, uid.wrapping_add(1), "From x", &mut &b"x"[..]).is_err());
        let second = folder.path().join("second");
        std::fs::hard_link(&target, second).unwrap();
        assert!(save(&target, uid, "From x", &mut &b"x"[..]).is_err());
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "old");
    }

    #[test]
    fn a_failed_write_leaves_no_half_message() {
        struct Broken(usize);
        impl Read for Broken {
            fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
                if self.0 == 0 {
                    return Err(io::Error::other("broken"));
                }
                self.0 -= 1;
                into.fill(b'x');
                Ok(into.len())
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("dead.letter");
        let uid = folder.path().metadata().unwrap().uid();
        save(&path, uid, "From x", &mut &b"whole\r\n"[..]).unwrap();
        let before = std::fs::read(&path).unwrap();
        assert!(save(&path, uid, "From x", &mut Broken(5)).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }
}
