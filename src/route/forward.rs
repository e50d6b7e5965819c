//! `.forward` files: which there are for a user, and what the one that counts says.
//!
//! The paths of the option `forward_path` are tried in order; the first that can be used counts. One that is there and
//! is not safe is passed over and logged with the reason, as Sendmail does; one that can't be read for now makes the
//! mail wait (I9). Blocks: disk. Source: forward(5), op.me 4.8.

#![deny(clippy::indexing_slicing)]

use std::path::{Path, PathBuf};

use super::{RouteError, Router};
use crate::safe_file::{self, Lenience, Purpose, ReadRequest, Text, Who};
use crate::status::Verdict;
use crate::users::User;

/// A line that names targets.
pub(super) struct Line {
    /// Counted from 1.
    pub(super) number: usize,
    pub(super) text: String,
}

/// A file of targets, read.
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) owner: Who,
    /// Without comments and empty lines.
    pub(super) lines: Vec<Line>,
}

impl Found {
    pub(super) fn new(path: &Path, text: Text) -> Self {
        let lines = String::from_utf8_lossy(&text.bytes)
            .lines()
            .enumerate()
            .map(|(at, line)| (at + 1, line.trim()))
            .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
            .map(|(number, line)| Line {
                number,
                text: without_comment(line).to_owned(),
            })
            .collect();
        Self {
            path: path.to_owned(),
            owner: text.owner,
            lines,
        }
    }
}

/// A line as far as a `#` that follows white space. Source: Sendmail's include().
fn without_comment(line: &str) -> &str {
    if line.starts_with(['"', '|']) {
        // The `#` may be the command's.
        return line;
    }
    let comment = line.match_indices('#').find(|(at, _)| {
        line.get(..*at)
            .is_some_and(|before| before.ends_with([' ', '\t']))
    });
    comment
        .and_then(|(at, _)| line.get(..at))
        .unwrap_or(line)
        .trim_end()
}

impl Router {
    /// What a user forwards to; `None`: nothing.
    pub(super) fn forward_of(
        &self,
        user: &User,
        detail: Option<&str>,
    ) -> Result<Option<Found>, RouteError> {
        let who = Who {
            uid: user.uid,
            gid: user.gid,
        };
        for template in &self.options.forward_path {
            let Some(path) = self.forward_file(template, user, detail) else {
                continue;
            };
            let trusted = self.options.sandbox.as_deref();
            let refusal = match safe_file::read(&ReadRequest {
                path: &path,
                purpose: Purpose::Forward,
                who: Some(who),
                lenience: Lenience::default(),
                trusted,
            }) {
                Ok(text) => {
                    let found = Found::new(&path, text);
                    // An empty one says nothing, and the mailbox gets it.
                    return Ok((!found.lines.is_empty()).then_some(found));
                }
                Err(refusal) => refusal,
            };
            if refusal.is_missing() {
                continue;
            }
            if refusal.verdict() == Verdict::Temporary {
                return Err(RouteError::Lookup {
                    table: format!("forward {}", path.display()),
                    detail: format!("transient error: {refusal}"),
                });
            }
            // A directory that is not safe may lead to nothing: that is no news.
            let is_there = safe_file::as_user(who, || path.symlink_metadata().is_ok());
            if is_there {
                (self.notice)(&format!("forward {}: {refusal}", path.display()));
            }
        }
        Ok(None)
    }

    /// A path of `forward_path` for a user. `None` if it has a macro that is empty here.
    fn forward_file(&self, template: &str, user: &User, detail: Option<&str>) -> Option<PathBuf> {
        let mut path = String::with_capacity(template.len() + 32);
        let mut rest = template.chars();
        while let Some(c) = rest.next() {
            if c != '$' {
                path.push(c);
                continue;
            }
            match rest.next()? {
                'z' => path.push_str(user.home.to_str()?),
                'u' => path.push_str(&user.name),
                'w' => path.push_str(self.host_name.split('.').next().unwrap_or_default()),
                'j' => path.push_str(&self.host_name),
                // A detail is the sender's choice: it must not lead out of the directory.
                'h' => match detail {
                    Some(detail) if !detail.is_empty() && !detail.contains(['/', '\0']) => {
                        path.push_str(detail);
                    }
                    _ => return None,
                },
                _ => return None,
            }
        }
        Some(PathBuf::from(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_end_lines_outside_commands() {
        assert_eq!(without_comment("carol, erin # x"), "carol, erin");
        assert_eq!(without_comment("a#b"), "a#b");
        assert_eq!(without_comment("\"|cmd # x\""), "\"|cmd # x\"");
        let text = Text {
            bytes: b"# c\n\nbob\r\n  carol  # y\n".to_vec(),
            owner: Who { uid: 1, gid: 1 },
            is_writable_by_others: false,
        };
        let found = Found::new(Path::new("/f"), text);
        let lines: Vec<_> = found
            .lines
            .iter()
            .map(|l| (l.number, l.text.as_str()))
            .collect();
        assert_eq!(lines, [(3, "bob"), (4, "carol")]);
    }
}
