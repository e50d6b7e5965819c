//! Who a submission goes to: from the arguments of the command line and, with `-t`, from the header.
//!
//! Duplicates are suppressed. A later list goes in front of an earlier one, as in Sendmail, whose order the log and
//! the dialogue show. Pure. Limit: [`RECIPIENTS_MAX`].
//!
//! Source: sendmail(8), `-t`.

use std::collections::HashSet;

use crate::address::Address;
use crate::address::list::{AddressFault, scan};

/// Most recipients of one submission.
pub const RECIPIENTS_MAX: usize = 100_000;

/// A recipient as given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// As written, with name and comments, on one line: what log and verbose output show.
    pub shown: String,
    /// The address alone.
    pub address: String,
}

/// Something given as a recipient that is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// As written, on one line.
    pub shown: String,
    /// Why.
    pub fault: AddressFault,
}

/// All recipients of a submission.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recipients {
    /// Those to send to.
    pub named: Vec<Named>,
    /// Those that cannot be sent to, in the order found.
    pub refused: Vec<Refused>,
}

impl Recipients {
    /// Takes the addresses from these lists, in order.
    pub fn gather<'a>(lists: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut out = Self::default();
        let mut seen = HashSet::new();
        for list in lists {
            let mut front = Vec::new();
            for entry in scan(list) {
                let raw = list.get(entry.span).unwrap_or_default();
                let shown = on_one_line(raw);
                let fault = match entry.fault {
                    None if seen.len() >= RECIPIENTS_MAX => Some(AddressFault::TooMany),
                    fault => fault,
                };
                match fault {
                    Some(fault) => out.refused.push(Refused { shown, fault }),
                    None => {
                        if seen.insert(identity(&entry.address)) {
                            front.push(Named {
                                shown,
                                address: entry.address,
                            });
                        }
                    }
                }
            }
            front.append(&mut out.named);
            out.named = front;
        }
        out
    }

    /// Whether nobody was named at all, not even wrongly.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.named.is_empty() && self.refused.is_empty()
    }
}

/// What two ways of writing the same mailbox have in common: domains compare without case.
fn identity(address: &str) -> String {
    match Address::parse(address) {
        Ok(parsed) => match parsed.domain() {
            Some(domain) => format!("{}@{}", parsed.local(), domain.folded()),
            None => parsed.local().to_owned(),
        },
        Err(_) => address.to_owned(),
    }
}

/// Text for one line of log or terminal: folding and control characters become blanks.
pub(super) fn on_one_line(raw: &[u8]) -> String {
    let text = String::from_utf8_lossy(raw);
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            if !out.ends_with(' ') {
                out.push(' ');
            }
        } else {
            out.push(c);
        }
    }
    out.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gather(lists: &[&str]) -> Recipients {
        Recipients::gather(lists.iter().map(|list| list.as_bytes()))
    }

    fn shown(recipients: &Recipients) -> Vec<&str> {
        recipients.named.iter().map(|n| n.shown.as_str()).collect()
    }

    #[test]
    fn later_lists_go_in_front_and_each_keeps_its_order() {
        assert_eq!(
            shown(&gather(&["bob", "carol", "nosuchuser"])),
            ["nosuchuser", "carol", "bob"]
        );
        assert_eq!(
            shown(&gather(&["dave", " bob, carol"])),
            ["bob", "carol", "dave"]
        );
        assert_eq!(
            shown(&gather(&[" bob", " Carol <carol>", " dave"])),
            ["dave", "Carol <carol>", "bob"]
        );
    }

    #[test]
    fn the_same_mailbox_is_sent_to_once() {
        let all = gather(&["bob, Bob B <bob>, x@H.test, x@h.TEST., X@h.test"]);
        let addresses: Vec<_> = all.named.iter().map(|n| n.address.as_str()).collect();
        assert_eq!(addresses, ["bob", "x@H.test", "X@h.test"]);
    }

    #[test]
    fn bad_recipients_are_kept_apart_and_shown_on_one_line() {
        let all = gather(&["bob@, ok@h.test,\r\n\tCarol\r\n\t<c@d@e>"]);
        assert_eq!(shown(&all), ["ok@h.test"]);
        let refused: Vec<_> = all
            .refused
            .iter()
            .map(|r| (r.shown.as_str(), r.fault.clone()))
            .collect();
        assert_eq!(
            refused,
            [
                ("bob@", AddressFault::HostnameRequired),
                ("Carol <c@d@e>", AddressFault::InvalidRoute)
            ]
        );
        assert!(gather(&["", " , "]).is_empty());
    }
}
