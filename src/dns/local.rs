//! Names that need no name server (L1): the file of local names, and `localhost`.
//!
//! The file is read again when its time or size has changed; while it cannot be read, what was known stays known.
//! May touch: that file, with a short read on the calling thread. Limits: [`HOSTS_FILE_BYTES_MAX`].
//! Sources: hosts(5), RFC 6761 6.3.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use super::folded;

/// Bytes read of the file of local names.
pub const HOSTS_FILE_BYTES_MAX: u64 = 1 << 20;

/// The file of local names, read again when it has changed; and `localhost`.
pub(super) struct LocalNames {
    path: Option<PathBuf>,
    table: Mutex<HostsTable>,
}

#[derive(Default)]
struct HostsTable {
    /// Modification time and size of the file when it was read.
    version: Option<(SystemTime, u64)>,
    addresses: HashMap<String, Vec<IpAddr>>,
    names: HashMap<IpAddr, Vec<String>>,
}

impl LocalNames {
    pub(super) fn new(path: Option<PathBuf>) -> Self {
        Self {
            path,
            table: Mutex::new(HostsTable::default()),
        }
    }

    pub(super) fn addresses(&self, host: &str) -> Vec<IpAddr> {
        if host == "localhost" || host.ends_with(".localhost") {
            return vec![
                IpAddr::V4(Ipv4Addr::LOCALHOST),
                IpAddr::V6(Ipv6Addr::LOCALHOST),
            ];
        }
        self.with_table(|table| table.addresses.get(host).cloned().unwrap_or_default())
    }

    pub(super) fn names(&self, address: IpAddr) -> Vec<String> {
        let found = self.with_table(|table| table.names.get(&address).cloned().unwrap_or_default());
        if found.is_empty() && (address == Ipv4Addr::LOCALHOST || address == Ipv6Addr::LOCALHOST) {
            return vec!["localhost".to_owned()];
        }
        found
    }

    /// Runs `f` on the table, reading the file first if it has changed. A file that cannot be read leaves the table
    /// as it was: names that were known do not vanish because of a passing error.
    fn with_table<T>(&self, f: impl FnOnce(&HostsTable) -> T) -> T {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = &self.path {
            let version = std::fs::metadata(path)
                .ok()
                .and_then(|m| Some((m.modified().ok()?, m.len())));
            if version.is_some()
                && version != table.version
                && let Ok(read) = HostsTable::read(path)
            {
                *table = HostsTable { version, ..read };
            }
        }
        f(&table)
    }
}

impl HostsTable {
    fn read(path: &Path) -> std::io::Result<Self> {
        let mut bytes = Vec::new();
        File::open(path)?
            .take(HOSTS_FILE_BYTES_MAX)
            .read_to_end(&mut bytes)?;
        Ok(Self::parse(&String::from_utf8_lossy(&bytes)))
    }

    /// hosts(5): an address, then names; `#` starts a comment. Lines that are neither are skipped.
    fn parse(text: &str) -> Self {
        let mut table = Self::default();
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_ascii_whitespace();
            let Some(address) = words.next().and_then(|w| w.parse::<IpAddr>().ok()) else {
                continue;
            };
            for name in words.map(folded) {
                table
                    .addresses
                    .entry(name.clone())
                    .or_default()
                    .push(address);
                table.names.entry(address).or_default().push(name);
            }
        }
        for addresses in table.addresses.values_mut() {
            addresses.sort_by_key(IpAddr::is_ipv6);
            addresses.dedup();
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_names_come_from_the_file_and_localhost_always_exists() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hosts");
        std::fs::write(
            &path,
            "::2 six.test\n192.0.2.7 Gold.Example.TEST gold # not this\n192.0.2.8 six.test\nrubbish x\n",
        )
        .unwrap();
        let names = LocalNames::new(Some(path.clone()));
        assert_eq!(
            names.addresses("gold.example.test"),
            ["192.0.2.7".parse::<IpAddr>().unwrap()]
        );
        assert_eq!(names.addresses("not"), Vec::<IpAddr>::new());
        let six = names.addresses("six.test");
        assert!(six[0].is_ipv4() && six[1].is_ipv6());
        assert_eq!(
            names.names("192.0.2.7".parse().unwrap()),
            ["gold.example.test", "gold"]
        );
        assert!(names.addresses("localhost").iter().all(IpAddr::is_loopback));
        std::fs::write(&path, "192.0.2.9 gold\n").unwrap();
        assert_eq!(
            names.addresses("gold"),
            ["192.0.2.9".parse::<IpAddr>().unwrap()]
        );
        std::fs::remove_file(&path).unwrap();
        assert_eq!(names.addresses("gold").len(), 1, "kept on a read error");
    }
}
