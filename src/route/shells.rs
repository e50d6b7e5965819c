//! Which shells let a user have programs run and files written by mail: shells(5).
//!
//! Blocks: disk. Limits: [`SHELLS_BYTES_MAX`]. Source: Sendmail's usershellok(), op.me 4.9.5.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// The longest file of shells that is read, in bytes.
const SHELLS_BYTES_MAX: u64 = 1 << 20;
/// Stands in the file where every shell will do.
const ANY: &str = "/SENDMAIL/ANY/SHELL/";
/// What counts where there is no such file. Source: getusershell(3).
const DEFAULT: &str = "/bin/sh\n/bin/csh\n";

/// Whether a login shell is one of the file's. A file that can't be read allows none.
pub(super) fn is_valid(shell: &Path, file: &Path) -> bool {
    let read = File::open(file).and_then(|file| {
        let mut text = String::new();
        file.take(SHELLS_BYTES_MAX).read_to_string(&mut text)?;
        Ok(text)
    });
    let text = match read {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => DEFAULT.to_owned(),
        Err(_) => return false,
    };
    let shell = if shell.as_os_str().is_empty() {
        Path::new("/bin/sh")
    } else {
        shell
    };
    text.lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .any(|line| line == ANY || (!line.is_empty() && Path::new(line) == shell))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_shells_are_valid() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("shells");
        assert!(is_valid(Path::new("/bin/sh"), &file));
        assert!(is_valid(Path::new(""), &file));
        std::fs::write(&file, "# shells\n/bin/bash # usual\n").unwrap();
        assert!(is_valid(Path::new("/bin/bash"), &file));
        assert!(!is_valid(Path::new("/usr/sbin/nologin"), &file));
        std::fs::write(&file, format!("{ANY}\n")).unwrap();
        assert!(is_valid(Path::new("/usr/sbin/nologin"), &file));
    }
}
