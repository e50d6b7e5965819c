//! Diligence, a mail transfer agent that stands in Sendmail's place, built round one storage engine.
//!
//! ```text
//!  L5 programs     main  cli  programs                    and the tools crate
//!  L4 front-ends   smtpd  submit
//!  L3 queue        scheduler  runner  retry               the only place where storage meets delivery
//!  L2 policy       route              |  deliver          who gets it  |  how it is handed over
//!  L1 engine       spool              |  config  maillog  users  dns  netmaps  safe_file  privileged
//!  L0 words        address  envelope  status  clock       values and seams, no I/O but the clock
//! ```
//!
//! A module imports lower floors only, as far as the table in ARCHITECTURE.md grants it; `tests/tidy.rs` checks that.

pub mod address;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod deliver;
pub mod dns;
pub mod envelope;
pub mod maillog;
pub mod netmaps;
pub mod privileged;
pub mod programs;
pub mod queue;
pub mod route;
pub mod safe_file;
pub mod smtpd;
pub mod spool;
pub mod status;
pub mod submit;
pub mod users;
