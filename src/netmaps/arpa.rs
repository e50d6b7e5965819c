//! Class `arpa`: an address in the order in which DNS has it, so that a zone's name can be put behind it (-a).
//!
//! `192.0.2.1` becomes `1.2.0.192`; `IPv6:2001:db8::1` (or without `IPv6:`) its 32 nibbles from the last to the first.
//! Anything else is absent. Never blocks. Source: sendmail's op.me 5.12, RFC 1035 3.5, RFC 3596 2.5.

#![deny(clippy::indexing_slicing)]

use std::fmt::Write as _;
use std::net::IpAddr;

use diligence_maps::{ClassMap, MapError, PairVisitor};

/// Addresses turned round.
pub(super) struct ArpaMap;

impl ClassMap for ArpaMap {
    fn find(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        let text = String::from_utf8_lossy(key);
        let bare = match text.get(..5) {
            Some(tag) if tag.eq_ignore_ascii_case("ipv6:") => text.get(5..).unwrap_or_default(),
            _ => &text,
        };
        let Ok(address) = bare.parse::<IpAddr>() else {
            return Ok(None);
        };
        let mut turned = String::new();
        match address {
            IpAddr::V4(address) => {
                let [a, b, c, d] = address.octets();
                let _ = write!(turned, "{d}.{c}.{b}.{a}");
            }
            IpAddr::V6(address) => {
                for byte in address.octets().iter().rev() {
                    let dot = if turned.is_empty() { "" } else { "." };
                    let _ = write!(turned, "{dot}{:x}.{:x}", byte & 0xF, byte >> 4);
                }
            }
        }
        Ok(Some(turned.into_bytes()))
    }

    fn each(&self, f: &mut PairVisitor<'_>) -> Result<(), MapError> {
        super::not_listed("arpa", f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_turned_round() {
        let find = |key: &str| {
            let found = ArpaMap.find(key.as_bytes()).unwrap();
            found.map(|value| String::from_utf8(value).unwrap())
        };
        assert_eq!(find("192.0.2.1").unwrap(), "1.2.0.192");
        let six = "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2";
        assert_eq!(find("ipv6:2001:db8::1").unwrap(), six);
        assert_eq!(find("2001:db8::1").unwrap(), six);
        assert_eq!(find("host.example"), None);
        assert_eq!(find("1.2.3"), None);
    }
}
