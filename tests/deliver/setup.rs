//! Mailers and attempts for tests.

use std::io::{self, Cursor};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use diligence::address::{Address, ReversePath};
use diligence::clock::SystemClock;
use diligence::deliver::{
    Attempt, DeliverOptions, DeliveryRecipient, MailboxOptions, MailboxOwner, Mailers,
    NamedOptions, OwnerLookup, Place, SmtpOptions, SmtpTimeouts, Verbose,
};
use diligence::dns::{Resolver, TableResolver};
use diligence::envelope::{Envelope, MessageId, Recipient, RecipientId};
use diligence::safe_file::{Lenience, Who};

/// Options with a mailbox directory, for loopback.
pub(crate) fn options(directory: &Path) -> DeliverOptions {
    DeliverOptions {
        host_name: "gold.example.test".to_owned(),
        mailboxes: MailboxOptions {
            directory: directory.to_owned(),
            lock_wait_max: Duration::from_millis(50),
            file_lenience: Lenience::default(),
            part: None,
        },
        named: NamedOptions {
            default_user: own_ids(),
            ..NamedOptions::default()
        },
        smtp: SmtpOptions {
            helo_name: "gold.example.test".to_owned(),
            port: 25,
            loopback_only: true,
            own_name: Arc::new(|name| name == "gold.example.test"),
            rules: None,
            timeouts: SmtpTimeouts::default(),
            cache_size: 4,
            cache_idle_max: Duration::from_secs(60),
        },
    }
}

/// The ids of this process, as which programs run that act for nobody.
fn own_ids() -> Who {
    Who {
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
    }
}

/// Whose mailboxes these are: the process's own user's, but for names that begin with `no`, which do not exist, and
/// `trouble`, which cannot be looked up.
pub(crate) fn owners() -> OwnerLookup {
    Arc::new(|user| match user {
        "trouble" => Err(io::Error::other("the directory server is away")),
        user if user.starts_with("no") => Ok(None),
        _ => Ok(Some(MailboxOwner {
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
        })),
    })
}

/// Mailers with these options and an empty name table.
pub(crate) fn mailers(options: DeliverOptions) -> Mailers {
    mailers_with(options, Arc::new(TableResolver::new()))
}

/// Mailers with these options and this name table.
pub(crate) fn mailers_with(options: DeliverOptions, resolver: Arc<dyn Resolver>) -> Mailers {
    Mailers::new(options, owners(), resolver, Arc::new(SystemClock::new()))
}

/// A message from `alice@gold.example.test` for these users or addresses.
pub(crate) fn attempt(users: &[&str], content: &[u8]) -> Attempt {
    let sender = Address::parse("alice@gold.example.test").unwrap();
    let recipients: Vec<Recipient> = users.iter().map(|u| Recipient::new(*u)).collect();
    let content: Arc<[u8]> = content.into();
    Attempt {
        id: MessageId::from_number(1),
        envelope: Arc::new(Envelope::new(
            ReversePath::Mailbox(sender),
            recipients.clone(),
        )),
        recipients: recipients
            .into_iter()
            .zip(0..)
            .map(|(recipient, number)| DeliveryRecipient {
                id: RecipientId(number),
                user: recipient.target.clone(),
                recipient,
            })
            .collect(),
        content_bytes: u64::try_from(content.len()).unwrap(),
        content: Arc::new(move || Ok(Box::new(Cursor::new(Arc::clone(&content))))),
        is_first: true,
        verbose: None,
        place: Place::default(),
    }
}

/// Collects verbose lines.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    /// What an attempt is given to speak to.
    pub(crate) fn sink(&self) -> Verbose {
        let lines = Arc::clone(&self.0);
        Arc::new(move |line| lines.lock().unwrap().push(line.to_owned()))
    }

    /// What was said.
    pub(crate) fn said(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}
