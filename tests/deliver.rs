//! Delivery as its callers see it: reports, mailboxes, programs, files, and SMTP against servers that misbehave. Loopback only.
#![expect(clippy::unwrap_used, reason = "a test ends with its first surprise")]

#[path = "deliver/batches.rs"]
mod batches;
#[path = "deliver/dns.rs"]
mod dns;
#[path = "deliver/dsn.rs"]
mod dsn;
#[path = "deliver/lmtp.rs"]
mod lmtp;
#[path = "deliver/mailbox.rs"]
mod mailbox;
#[path = "deliver/program.rs"]
mod program;
#[path = "deliver/server.rs"]
mod server;
#[path = "deliver/setup.rs"]
mod setup;
#[path = "deliver/smtp.rs"]
mod smtp;
