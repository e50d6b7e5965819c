//! `.forward` files: which there are for a user, and what the one that counts says.
//!
//! The paths of the option `forward_path` are tried in order; the first that can be used counts. One that is there and
//! is not safe is passed over and logged with the reason, as Sendmail does; one that can't be read for now makes the
//! mail wait (I9). Blocks: disk. Source: forward(5), op.me 4.8.

#![deny(clippy::indexing_slicing)]

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use super::{RouteError, Router};
use crate::safe_file::{Purpose, ReadRequest, Text, Who};
use crate::status::Verdict;
use crate::users::User;

/// A file of targets, read.
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) owner: Who,
    pub(super) is_writable_by_others: bool,
    bytes: Vec<u8>,
}

impl Found {
    pub(super) fn new(path: &Path, text: Text) -> Self {
        Self {
            path: path.to_owned(),
            owner: text.owner,
            is_writable_by_others: text.is_writable_by_others,
            bytes: text.bytes,
        }
    }

    /// The lines that name targets, with their numbers from 1: no comments and none that are empty.
    pub(super) fn lines(&self) -> impl Iterator<Item = (usize, Cow<'_, str>)> {
        self.bytes
            .split(|byte| *byte == b'\n')
            .enumerate()
            .map(|(at, line)| (at + 1, line.strip_suffix(b"\r").unwrap_or(line)))
            .filter(|(_, line)| !line.is_empty() && !line.starts_with(b"#"))
            .map(|(number, line)| (number, without_comment(String::from_utf8_lossy(line))))
            .filter(|(_, line)| !line.trim().is_empty())
    }
}

/// A line as far as ` #@#`, Sendmail's comment that may stand anywhere. Source: op.me 4.8 and Sendmail's include().
fn without_comment(line: Cow<'_, str>) -> Cow<'_, str> {
    let is_space = |c: char| c.is_ascii_whitespace();
    let end = line.match_indices("#@#").find_map(|(at, mark)| {
        let before = line.get(..at)?;
        let after = line.get(at + mark.len()..)?;
        let stands_alone =
            before.ends_with(is_space) && (after.is_empty() || after.starts_with(is_space));
        stands_alone.then(|| before.trim_end().len())
    });
    match end {
        Some(end) => Cow::Owned(line.get(..end).unwrap_or_default().to_owned()),
        None => line,
    }
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
            let refusal = match (self.read_as)(&ReadRequest {
                path: &path,
                purpose: Purpose::Forward,
                who: Some(who),
                lenience: self.lenience.forward,
                trusted,
            }) {
                Ok(text) => {
                    let found = Found::new(&path, text);
                    // An empty one says nothing, and the mailbox gets it.
                    let says_something = found.lines().next().is_some();
                    return Ok(says_something.then_some(found));
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
            if refusal.directory().is_none() || self.warns_of_directories {
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
    fn comments_are_sendmails() {
        let text = Text {
            bytes: b"# c\n\nbob\r\n  carol  #@# y\n  # x\na#@#b, c #@#d\n#@#\n #@#\nlast\xff #@#"
                .to_vec(),
            owner: Who { uid: 1, gid: 1 },
            is_writable_by_others: false,
        };
        let found = Found::new(Path::new("/f"), text);
        let lines: Vec<_> = found
            .lines()
            .map(|(number, line)| (number, line.into_owned()))
            .collect();
        let expected = [
            (3, "bob"),
            (4, "  carol"),
            // Neither begins the line, so neither is a comment.
            (5, "  # x"),
            (6, "a#@#b, c #@#d"),
            (9, "last\u{fffd}"),
        ];
        let expected: Vec<_> = expected.map(|(at, line)| (at, line.to_owned())).into();
        assert_eq!(lines, expected);
    }
}
