//! Class `null`: holds nothing, so that a map that rules ask can be left out. Never blocks, never fails.
//!
//! Source: sendmail's op.me 5.12.

use crate::open_map::ClassMap;
use crate::{MapError, PairVisitor};

/// A map without keys.
pub(crate) struct NullMap;

impl ClassMap for NullMap {
    fn find(&self, _: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        Ok(None)
    }

    fn each(&self, _: &mut PairVisitor<'_>) -> Result<(), MapError> {
        Ok(())
    }
}
