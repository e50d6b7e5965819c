//! The SMTP server (L4): sessions as pure state machines, and the sockets that drive them.
//!
//! [`Session`] turns bytes into replies and questions and knows no socket, so transcripts test it alone and
//! `sendmail -bs` runs it on standard input. [`connection`] answers its questions from spool and [`gate`], and
//! [`Server`] listens. A message is answered `250` only when its commit has been synced (I1); whatever ends a session
//! before that leaves nothing of the message.
//!
//! Sources: RFC 5321, 1870 (SIZE), 2034 (enhanced status codes), 2920 (pipelining), 3461 (DSN), 6152 (8BITMIME).
//! Touches the network through tokio alone.

#![deny(clippy::indexing_slicing)]

mod command;
pub mod connection;
mod data;
pub mod gate;
mod header;
mod help;
mod message;
pub mod names;
mod server;
mod session;
mod settings;

pub use connection::{Backend, FreeBytes, Stopping, Watch};
pub use server::{BACKLOG_MIN, ConnectionLimits, GRACE, Listen, Server, ServerError};
pub use session::{COMMAND_BYTES_MAX, Session, Step};
pub use settings::{ClientLoad, Limits, LogLine, Peer, Privacy, Settings, Timeouts};
