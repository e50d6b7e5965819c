//! Delivery as its callers see it: reports, mailboxes, and SMTP against servers that misbehave. Loopback only.

#[path = "deliver/dsn.rs"]
mod dsn;
