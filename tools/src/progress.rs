//! How far a long build has come, on standard error where that is a terminal, and nothing anywhere else.
//!
//! Where standard input is a file, a bar; else the bytes read. It is gone when the build is done.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{BufRead, IsTerminal};

/// Pictures a second; a build that is done sooner shows none.
const PICTURES_A_SECOND: u8 = 4;

/// A bar, or nothing.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// `is_quiet`: something else is printed meanwhile, which a bar would garble.
    #[must_use]
    pub fn new(is_quiet: bool) -> Self {
        let is_shown = !is_quiet && std::io::stderr().is_terminal();
        if !is_shown {
            return Self {
                bar: ProgressBar::hidden(),
            };
        }
        let total = std::fs::metadata("/proc/self/fd/0")
            .ok()
            .filter(|meta| meta.is_file() && meta.len() > 0)
            .map(|meta| meta.len());
        let target = ProgressDrawTarget::stderr_with_hz(PICTURES_A_SECOND);
        let bar = ProgressBar::with_draw_target(total, target);
        let form = match total {
            Some(_) => "{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            None => "{spinner} {bytes} {bytes_per_sec}",
        };
        if let Ok(style) = ProgressStyle::with_template(form) {
            bar.set_style(style);
        }
        Self { bar }
    }

    /// The input, each read of which moves the bar.
    pub fn watch<R: BufRead>(&self, input: R) -> impl BufRead + use<R> {
        self.bar.wrap_read(input)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn what_is_watched_is_read_as_it_is() {
        let progress = Progress::new(true);
        let mut text = String::new();
        progress
            .watch(&b"a\nb\n"[..])
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "a\nb\n");
        assert_eq!(progress.bar.position(), 4);
    }
}
