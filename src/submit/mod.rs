//! Local submission (L4): from what a program writes to `sendmail`'s standard input to a message that can be sent.
//!
//! [`collect`] reads header and body under Sendmail's rules for dots and line ends; [`header`] completes the header
//! (Received, Date, From, Message-Id) without touching what is there; [`recipients`] takes them from arguments
//! and, for `-t`, from the header; [`sender`] says who sends. How the message then leaves (SMTP to the daemon, or a
//! drop file) is the business of `programs::submit`.
//!
//! Synchronous; touches standard input and files of its own user only. Every size has a limit named in its file.

pub mod body;
pub mod collect;
pub mod dead_letter;
pub mod header;
pub mod message;
pub mod recipients;
pub mod sender;
