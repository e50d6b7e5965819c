//! Class `sequence`: other maps, asked in order; the first hit counts.
//!
//! Guarantee: a member that did not work is remembered while the later ones are asked, and if none of them has the key,
//! the answer is its trouble and not absence (I9). Each member is asked with its own switches, but for -T, which belongs
//! to whoever is asked first. Blocks: as its members do, one after the other. Limit: `STACK_MAX` members.
//!
//! Source: sendmail's op.me 5.12.

use crate::open_map::ClassMap;
use crate::{MapError, OpenMap, PairVisitor};
use std::sync::Arc;

/// Maps asked in order.
pub(crate) struct SequenceMap {
    members: Vec<Arc<OpenMap>>,
}

impl SequenceMap {
    pub(crate) fn new(members: Vec<Arc<OpenMap>>) -> Self {
        Self { members }
    }
}

impl ClassMap for SequenceMap {
    fn find(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        let mut trouble = None;
        for member in &self.members {
            match member.ask(key) {
                Ok(None) => {}
                Ok(found) => return Ok(found),
                Err(error) => trouble = trouble.or(Some(error)),
            }
        }
        trouble.map_or(Ok(None), Err)
    }

    /// The pairs of all members, in order; a key that two of them have comes twice, the one that counts first.
    fn each(&self, f: &mut PairVisitor<'_>) -> Result<(), MapError> {
        let mut goes_on = true;
        for member in &self.members {
            member.each(&mut |key, value| {
                let flow = f(key, value);
                goes_on = flow.is_continue();
                flow
            })?;
            if !goes_on {
                break;
            }
        }
        Ok(())
    }

    fn takes_folded_keys(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Definition, HandleOptions, MapSet, NoOpener};
    use std::ops::ControlFlow;

    #[test]
    fn listing_ends_where_it_is_told_to() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("t"), "a 1\n").unwrap();
        let mut set = MapSet::new(Arc::new(NoOpener), HandleOptions::default());
        let text = format!("text {}/t", dir.path().display());
        set.define("t", Definition::parse(&text).unwrap());
        let map = set
            .open(&Definition::parse("sequence t t").unwrap())
            .unwrap();
        let count = |most: usize| {
            let mut seen = 0;
            map.each(&mut |_, _| {
                seen += 1;
                if seen < most {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            })
            .unwrap();
            seen
        };
        assert_eq!((count(9), count(1)), (2, 1));
    }
}
