//! What the small programs beside sendmail share: reading their command lines, and finding the sandbox and the
//! configuration.

pub mod arguments;
pub mod setting;
