//! The programs in one: what `sendmail` does as a daemon, as a submitter, as `mailq`, `newaliases` and the like (L5).
//!
//! [`crate::cli`] says which program a command line asks for; each file here is one of them and returns an exit code,
//! which `main` ends with.

pub mod background;
pub mod mailq;
pub mod newaliases;
pub mod open_spool;
pub mod run_file;
pub mod submit;
pub mod verify;
