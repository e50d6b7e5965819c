//! Class `ldap`: a directory.
//!
//! `ldap -1 -h ldap.example -b "o=Example" -k (&(objectClass=mailUser)(mail=%0)) -v mailHost`. %0 (or %s) in the filter
//! is the key, its special characters escaped. The value is the first value of the attributes of -v that an entry has;
//! with -z all of them, of all entries, with that character between them.
//!
//! | switch | means |
//! |---|---|
//! | -h -p, -H | hosts to try in order and their port, or an address `ldap://host:port`, `ldapi://` |
//! | -b -s | where the search begins; its scope: base, one, sub |
//! | -k -v | filter; attributes, with commas |
//! | -d -M -P | name to bind as; method: none or simple; file whose first line is the password |
//! | -1 -n -V | more than one match is none; names of attributes instead of values; `name` + -V + value |
//! | -r -l -Z -c | when to follow aliases: never, always, search, find; limits of time in seconds and entries; time to connect |
//! | -w -R | version, which is 3; referrals are not followed, which they never are here |
//!
//! There is no TLS in this build: `ldaps:` is refused. Guarantee: a server that cannot be reached, refuses to bind or
//! answers anything but success is trouble and never absence (I9). One connection is kept and shared; a lookup that finds
//! it broken makes a new one, once. Blocks: up to 60 seconds. Limits: [`ENTRIES_MAX`], [`VALUE_BYTES_MAX`].
//! Source: sendmail's op.me 5.12 and cf/README "USING LDAP", RFC 4511, RFC 4515.

#![deny(clippy::indexing_slicing)]

use std::sync::Arc;
use std::time::Duration;

use diligence_maps::{ClassMap, Definition, MapError, PairVisitor, SpecError};
use ldap3::{
    DerefAliases, Ldap, LdapConnAsync, LdapConnSettings, LdapError, Scope, SearchEntry,
    SearchOptions,
};
use tokio::sync::Mutex;

use super::{NetOptions, Network, is_loopback, remote, separator};

/// Most entries asked for, unless -Z says otherwise.
const ENTRIES_MAX: u64 = 1_000;
/// Longest value made of several, in bytes.
const VALUE_BYTES_MAX: usize = 1_000_000;
/// How long a lookup may take, unless -l says otherwise.
const TIME_LIMIT: Duration = Duration::from_secs(30);
/// How long connecting to one host may take, unless -c says otherwise.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Longest password file read, in bytes.
const PASSWORD_BYTES_MAX: usize = 4096;

/// A directory.
pub(super) struct LdapMap {
    server: Arc<Server>,
    network: Arc<Network>,
    limit: Duration,
}

struct Server {
    label: String,
    addresses: Vec<String>,
    base: String,
    scope: Scope,
    filter: String,
    attributes: Vec<String>,
    bind: Option<(String, Option<String>)>,
    connect_limit: Duration,
    time_limit: Duration,
    entries_max: i32,
    deref: DerefAliases,
    separator: Option<char>,
    name_separator: Option<String>,
    is_single: bool,
    names_only: bool,
    kept: Mutex<Option<Ldap>>,
}

impl LdapMap {
    pub(super) fn new(
        definition: &Definition,
        options: &NetOptions,
        network: Arc<Network>,
    ) -> Result<Self, SpecError> {
        let seconds = |letter, default: Duration| {
            definition
                .number(letter, 1, 600)
                .map(|number| number.map_or(default, Duration::from_secs))
        };
        let addresses = addresses(definition)?;
        let is_far = |address: &String| {
            let host = address
                .strip_prefix("ldap://")
                .map(|rest| rest.rsplit_once(':').map_or(rest, |(host, _)| host));
            host.is_some_and(|host| !is_loopback(host))
        };
        if options.loopback_only && addresses.iter().any(is_far) {
            return Err(definition.bad_value('h', "a sandbox contacts no other host"));
        }
        let filter = definition
            .value('k')
            .ok_or_else(|| definition.bad_value('k', "the class ldap needs a filter"))?;
        let scope = match definition.value('s') {
            None | Some("sub") => Scope::Subtree,
            Some("base") => Scope::Base,
            Some("one") => Scope::OneLevel,
            Some(_) => return Err(definition.bad_value('s', "expected base, one or sub")),
        };
        let deref = match definition.value('r') {
            None | Some("never") => DerefAliases::Never,
            Some("always") => DerefAliases::Always,
            Some("search") => DerefAliases::Searching,
            Some("find") => DerefAliases::Finding,
            Some(_) => {
                return Err(definition.bad_value('r', "expected never, always, search or find"));
            }
        };
        if definition.value('w').is_some_and(|version| version != "3") {
            return Err(definition.bad_value('w', "only version 3 of LDAP is spoken"));
        }
        let bind = match definition
            .value('M')
            .map(str::to_ascii_lowercase)
            .as_deref()
        {
            None if definition.value('d').is_none() => None,
            Some("none" | "ldap_auth_none") => None,
            None | Some("simple" | "ldap_auth_simple") => {
                let name = definition.value('d').unwrap_or_default().to_owned();
                Some((name, definition.value('P').map(str::to_owned)))
            }
            Some(_) => return Err(definition.bad_value('M', "expected none or simple")),
        };
        let attributes: Vec<String> = definition
            .value('v')
            .unwrap_or_default()
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect();
        if attributes.iter().any(|name| name.contains(':')) {
            return Err(definition.bad_value('v', "types of attributes are not supported"));
        }
        let entries_max = definition.number('Z', 1, 1_000_000)?.unwrap_or(ENTRIES_MAX);
        let time_limit = seconds('l', TIME_LIMIT)?;
        let connect_limit = seconds('c', CONNECT_LIMIT)?;
        let hosts = u32::try_from(addresses.len()).unwrap_or(1);
        Ok(Self {
            server: Arc::new(Server {
                label: addresses.join(" "),
                addresses,
                base: definition.value('b').unwrap_or_default().to_owned(),
                scope,
                filter: filter.to_owned(),
                attributes,
                bind,
                connect_limit,
                time_limit,
                entries_max: i32::try_from(entries_max).unwrap_or(i32::MAX),
                deref,
                separator: separator(definition)?,
                name_separator: definition.value('V').map(str::to_owned),
                is_single: definition.has('1'),
                names_only: definition.has('n'),
                kept: Mutex::new(None),
            }),
            network,
            limit: time_limit + connect_limit * hosts,
        })
    }
}

/// The servers to try in order, as addresses.
fn addresses(definition: &Definition) -> Result<Vec<String>, SpecError> {
    if let Some(address) = definition.value('H') {
        if address.starts_with("ldaps:") {
            return Err(definition.bad_value('H', "TLS is not built in: use ldap:// or ldapi://"));
        }
        if !address.starts_with("ldap://") && !address.starts_with("ldapi://") {
            return Err(definition.bad_value('H', "expected ldap:// or ldapi://"));
        }
        return Ok(vec![address.to_owned()]);
    }
    let port = definition.number('p', 1, 65_535)?.unwrap_or(389);
    let hosts = definition.value('h').unwrap_or("localhost");
    let addresses: Vec<String> = hosts
        .split([' ', ','])
        .filter(|host| !host.is_empty())
        .map(|host| format!("ldap://{host}:{port}"))
        .collect();
    if addresses.is_empty() {
        return Err(definition.bad_value('h', "expected the name of a host"));
    }
    Ok(addresses)
}

impl ClassMap for LdapMap {
    fn find(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        let server = Arc::clone(&self.server);
        let filter = filter_for(&server.filter, key);
        self.network
            .run(&self.server.label, self.limit, async move {
                server.ask(&filter).await
            })
    }

    fn each(&self, f: &mut PairVisitor<'_>) -> Result<(), MapError> {
        super::not_listed(&self.server.label, f)
    }
}

/// The filter with the key in its place; RFC 4515 3 says what is escaped. `%%` is a percent sign.
fn filter_for(filter: &str, key: &[u8]) -> String {
    let mut out = String::with_capacity(filter.len() + key.len());
    let mut rest = filter.chars().peekable();
    while let Some(character) = rest.next() {
        match (character, rest.peek()) {
            ('%', Some('0' | 's')) => {
                rest.next();
                for &byte in key {
                    if byte.is_ascii_alphanumeric() || b"@.-_+=/ ".contains(&byte) {
                        out.push(char::from(byte));
                    } else {
                        out.push_str(&format!("\\{byte:02x}"));
                    }
                }
            }
            ('%', Some('%')) => {
                rest.next();
                out.push('%');
            }
            _ => out.push(character),
        }
    }
    out
}

impl Server {
    async fn ask(&self, filter: &str) -> Result<Option<Vec<u8>>, MapError> {
        let kept = self.kept.lock().await.clone();
        if let Some(mut ldap) = kept
            && !ldap.is_closed()
        {
            match self.search(&mut ldap, filter).await {
                // The connection broke; a fresh one decides.
                Err(
                    LdapError::Io { .. }
                    | LdapError::EndOfStream
                    | LdapError::OpSend { .. }
                    | LdapError::ResultRecv { .. },
                ) => {}
                answer => return answer.map_err(|error| self.trouble(&error)),
            }
        }
        let mut ldap = self.connect().await?;
        *self.kept.lock().await = Some(ldap.clone());
        let answer = self.search(&mut ldap, filter).await;
        answer.map_err(|error| self.trouble(&error))
    }

    fn trouble(&self, error: &LdapError) -> MapError {
        remote(&self.label, error.to_string())
    }

    async fn connect(&self) -> Result<Ldap, MapError> {
        let mut last = remote(&self.label, "no host");
        for address in &self.addresses {
            let settings = LdapConnSettings::new().set_conn_timeout(self.connect_limit);
            match LdapConnAsync::with_settings(settings, address).await {
                Ok((connection, mut ldap)) => {
                    // Ends with the connection.
                    tokio::spawn(async move {
                        let _ = connection.drive().await;
                    });
                    self.bind(&mut ldap).await?;
                    return Ok(ldap);
                }
                Err(error) => last = self.trouble(&error),
            }
        }
        Err(last)
    }

    async fn bind(&self, ldap: &mut Ldap) -> Result<(), MapError> {
        let Some((name, file)) = &self.bind else {
            return Ok(());
        };
        let password = match file {
            None => String::new(),
            Some(file) => {
                let text = std::fs::read(file).map_err(|error| {
                    remote(
                        &self.label,
                        format!("{file}: {}", diligence_maps::io_text(&error)),
                    )
                })?;
                let head = text.get(..text.len().min(PASSWORD_BYTES_MAX));
                let text = String::from_utf8_lossy(head.unwrap_or_default()).into_owned();
                text.lines().next().unwrap_or_default().to_owned()
            }
        };
        let bound = ldap.simple_bind(name, &password).await;
        bound
            .and_then(ldap3::LdapResult::success)
            .map_err(|error| self.trouble(&error))?;
        Ok(())
    }

    async fn search(&self, ldap: &mut Ldap, filter: &str) -> Result<Option<Vec<u8>>, LdapError> {
        let seconds = i32::try_from(self.time_limit.as_secs()).unwrap_or(i32::MAX);
        let options = SearchOptions::new()
            .deref(self.deref)
            .sizelimit(self.entries_max)
            .timelimit(seconds)
            .typesonly(self.names_only);
        let attributes = if self.attributes.is_empty() {
            vec!["*".to_owned()]
        } else {
            self.attributes.clone()
        };
        let (entries, _) = ldap
            .with_search_options(options)
            .with_timeout(self.time_limit)
            .search(&self.base, self.scope, filter, attributes)
            .await?
            .success()?;
        let entries: Vec<SearchEntry> = entries
            .into_iter()
            .filter(|entry| !entry.is_ref() && !entry.is_intermediate())
            .map(SearchEntry::construct)
            .collect();
        if self.is_single && entries.len() > 1 {
            return Ok(None);
        }
        let mut values: Vec<Vec<u8>> = Vec::new();
        for entry in &entries {
            self.values_of(entry, &mut values);
        }
        if self.is_single && values.len() > 1 {
            return Ok(None);
        }
        let mut joined: Option<Vec<u8>> = None;
        for value in values {
            match (&mut joined, self.separator) {
                (None, _) => joined = Some(value),
                (Some(joined), Some(separator)) => {
                    joined.extend_from_slice(separator.to_string().as_bytes());
                    joined.extend_from_slice(&value);
                }
                (Some(_), None) => break,
            }
            if joined
                .as_ref()
                .is_some_and(|joined| joined.len() > VALUE_BYTES_MAX)
            {
                return Err(LdapError::from(std::io::Error::other(format!(
                    "the values are longer than {VALUE_BYTES_MAX} bytes"
                ))));
            }
        }
        Ok(joined)
    }

    /// The values of an entry in the order of -v, or of their names where there is none.
    fn values_of(&self, entry: &SearchEntry, values: &mut Vec<Vec<u8>>) {
        let mut names: Vec<&String> = entry.attrs.keys().chain(entry.bin_attrs.keys()).collect();
        names.sort();
        names.dedup();
        let place = |name: &String| {
            let same = |wanted: &String| wanted.eq_ignore_ascii_case(name);
            self.attributes.iter().position(same)
        };
        names.sort_by_key(|name| place(name).unwrap_or(usize::MAX));
        for name in names {
            if self.names_only {
                values.push(name.clone().into_bytes());
                continue;
            }
            let texts = entry.attrs.get(name).into_iter().flatten();
            let bytes = entry.bin_attrs.get(name).into_iter().flatten();
            let all = texts
                .map(|text| text.as_bytes())
                .chain(bytes.map(Vec::as_slice));
            for value in all {
                values.push(match &self.name_separator {
                    None => value.to_vec(),
                    Some(between) => [name.as_bytes(), between.as_bytes(), value].concat(),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netmaps::NetMaps;
    use diligence_maps::Opener;

    #[test]
    fn keys_cannot_change_the_filter() {
        let filter = "(&(a=%0)(b=%s)(c=100%%))";
        assert_eq!(
            filter_for(filter, b"x*)(|(y"),
            r"(&(a=x\2a\29\28\7c\28y)(b=x\2a\29\28\7c\28y)(c=100%))"
        );
        assert_eq!(filter_for("(m=%0)", b"\xc3\xa4\0"), r"(m=\c3\a4\00)");
    }

    #[test]
    fn what_is_not_built_is_refused() {
        let maps = NetMaps::new(NetOptions::default());
        let open = |text: &str| maps.open(&Definition::parse(text).unwrap()).map(|_| ());
        for (text, named) in [
            ("ldap -H ldaps://h -k (a=%0)", "TLS"),
            ("ldap -H http://h -k (a=%0)", "ldap://"),
            ("ldap -h h", "filter"),
            ("ldap -k (a=%0) -M krbv4", "simple"),
            ("ldap -k (a=%0) -w 2", "version 3"),
            ("ldap -k (a=%0) -s all", "base"),
            ("ldap -k (a=%0) -v mail:DN", "types"),
        ] {
            let error = open(text).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
        open("ldap -1 -R -n -h \"a b\" -p 3890 -b o=x -k (a=%0) -v x,y -d cn=z -P /f -l5 -Z10 -c 2 -V= -z, -r find").unwrap();
    }

    #[test]
    fn a_server_that_is_not_there_is_trouble() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let maps = NetMaps::new(NetOptions::default());
        let text = format!("ldap -h 127.0.0.1 -p {port} -c 1 -l1 -k (a=%0)");
        let map = maps
            .open(&Definition::parse(&text).unwrap())
            .unwrap()
            .unwrap();
        assert!(map.find(b"k").is_err());
    }
}
