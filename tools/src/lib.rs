//! What the small programs beside sendmail share: reading their command lines, finding the sandbox and the
//! configuration, and writing messages out.

pub mod arguments;
pub mod conversion;
pub mod export;
pub mod json;
pub mod progress;
pub mod setting;
