//! Who sends: the user who runs the program, or whom `-f` names, and the name people know them by. Pure.
//!
//! Source: sendmail(8) (`-f`, `-F`, ENVIRONMENT).

use crate::address::list::{self, AddressFault};

/// Longest full name taken, in bytes.
const NAME_BYTES_MAX: usize = 256;

/// The sender of a submission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sender {
    /// As given, for the log: `alice`, `other@sender.test`; empty for the null sender.
    pub shown: String,
    /// The address, with or without a domain; `None` for the null sender.
    pub address: Option<String>,
    /// The text for X-Authentication-Warning, if the submitter may not be who this says.
    pub warning: Option<String>,
}

/// Finds the sender. `given` is the argument of `-f` or `-r`, `login` the user who runs the program, `is_trusted`
/// whether that user may set any sender without a remark.
///
/// # Errors
/// The address's fault; permanent.
pub fn sender(given: Option<&str>, login: &str, is_trusted: bool) -> Result<Sender, AddressFault> {
    let Some(given) = given else {
        return Ok(Sender {
            shown: login.to_owned(),
            address: Some(login.to_owned()),
            warning: None,
        });
    };
    let given = given.trim();
    let is_null = given.is_empty() || given == "<>";
    let address = if is_null {
        None
    } else {
        Some(list::single(given)?)
    };
    let is_self = address.as_deref() == Some(login);
    let shown = super::recipients::on_one_line(given.as_bytes());
    let warning = (!is_trusted && !is_self).then(|| {
        let set = if is_null { "<>" } else { shown.as_str() };
        format!("{login} set sender to {set} using -f")
    });
    Ok(Sender {
        shown: if is_null { String::new() } else { shown },
        address,
        warning,
    })
}

/// The full name of the sender: what `-F` says, else the header's Full-Name field, else, for users who send as
/// themselves, the environment's `NAME` or the name in their account.
#[must_use]
pub fn full_name(
    option: Option<&str>,
    field: Option<&str>,
    own: Option<OwnName<'_>>,
) -> Option<String> {
    let from_own = |own: OwnName<'_>| {
        own.environment
            .map(ToOwned::to_owned)
            .filter(|name| !name.trim().is_empty())
            .or_else(|| Some(own.account.to_owned()))
    };
    option
        .map(ToOwned::to_owned)
        .or_else(|| field.map(ToOwned::to_owned))
        .or_else(|| own.and_then(from_own))
        .map(|name| clean(&name))
        .filter(|name| !name.is_empty())
}

/// Where a user's own name is found.
#[derive(Debug, Clone, Copy)]
pub struct OwnName<'a> {
    /// `NAME` of the environment.
    pub environment: Option<&'a str>,
    /// The name in the user's account ([`crate::users::User::full_name`]).
    pub account: &'a str,
}

/// Without control characters, which could end the field, and of bounded length.
fn clean(name: &str) -> String {
    let mut name = super::recipients::on_one_line(name.as_bytes());
    while name.len() > NAME_BYTES_MAX {
        name.pop();
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_strangers_to_the_name_are_warned_about() {
        let warning =
            |given: &str, is_trusted| sender(Some(given), "alice", is_trusted).unwrap().warning;
        assert_eq!(
            warning("carol", false).as_deref(),
            Some("alice set sender to carol using -f")
        );
        assert_eq!(
            warning("<>", false).as_deref(),
            Some("alice set sender to <> using -f")
        );
        assert_eq!(warning("alice", false), None);
        assert_eq!(warning("carol", true), None);
        let own = sender(None, "alice", false).unwrap();
        assert_eq!((own.shown.as_str(), own.warning), ("alice", None));
    }

    #[test]
    fn senders_are_one_address_or_none() {
        let parsed = sender(Some("x y"), "alice", false).unwrap();
        assert_eq!(parsed.address.as_deref(), Some("x.y"));
        assert_eq!(
            parsed.warning.as_deref(),
            Some("alice set sender to x y using -f")
        );
        for null in ["", " ", "<>"] {
            assert_eq!(sender(Some(null), "root", true).unwrap().address, None);
        }
        assert!(sender(Some("a, b"), "root", true).is_err());
        assert!(sender(Some("a@"), "root", true).is_err());
        assert!(sender(Some("|prog"), "root", true).is_err());
    }

    #[test]
    fn names_come_from_the_first_place_that_has_one() {
        let own = |account| {
            Some(OwnName {
                environment: None,
                account,
            })
        };
        assert_eq!(
            full_name(None, None, own("Dave Builder")).as_deref(),
            Some("Dave Builder")
        );
        assert_eq!(
            full_name(Some("CronDaemon"), Some("x"), own("y")).as_deref(),
            Some("CronDaemon")
        );
        assert_eq!(
            full_name(None, Some("Foo Bar"), own("y")).as_deref(),
            Some("Foo Bar")
        );
        assert_eq!(full_name(None, None, own(" ")), None);
        assert_eq!(full_name(None, None, None), None);
        let env = OwnName {
            environment: Some("Env Name"),
            account: "y",
        };
        assert_eq!(
            full_name(None, None, Some(env)).as_deref(),
            Some("Env Name")
        );
    }

    #[test]
    fn a_name_cannot_end_the_field_it_stands_in() {
        assert_eq!(
            full_name(Some("x\r\nBcc: evil@x.test"), None, None).as_deref(),
            Some("x Bcc: evil@x.test")
        );
        assert!(
            full_name(Some(&"é".repeat(1_000)), None, None)
                .unwrap()
                .len()
                <= NAME_BYTES_MAX
        );
    }
}
