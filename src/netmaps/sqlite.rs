//! Class `sqlite`: one statement over an SQLite database.
//!
//! `sqlite -Q"SELECT dest FROM alias WHERE addr = ?1" /var/lib/mail/users.sqlite`. The statement reads only, and has one
//! parameter, which is the key. The first column of the first row is the value; of all rows, with -z between them. NULL
//! is no value. The database is opened for reading; one that was replaced under its name is opened again.
//!
//! Guarantee: a database that is missing (but for -o), that others may write, that is busy beyond -d (10 seconds without it), or damaged, or a statement
//! that fails, is trouble and never absence (I9). Blocks: on disk, and on who writes the database, up to the time limit.
//! Limits: [`ROWS_MAX`], [`VALUE_BYTES_MAX`], [`STEPS_MAX`], [`IDLE_MAX`]. Source: sqlite.org, `lang_select`, `c3ref/open`.

#![deny(clippy::indexing_slicing)]

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use diligence_maps::{ClassMap, Definition, MapError, PairVisitor, Safety, SpecError, Verdict};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};

use super::{TIME_LIMIT, separator};

/// Most rows joined by -z.
const ROWS_MAX: usize = 1_000;
/// Longest value, in bytes.
const VALUE_BYTES_MAX: usize = 1_000_000;
/// Most steps of SQLite's machine for one lookup; a statement that reads a large table row by row ends there.
const STEPS_MAX: u64 = 50_000_000;
/// Steps between two looks at that limit.
const STEPS_BETWEEN: i32 = 100_000;
/// Connections kept for the next lookup.
const IDLE_MAX: usize = 8;

/// A database and its statement.
pub(super) struct SqliteMap {
    path: PathBuf,
    statement: String,
    separator: Option<char>,
    is_optional: bool,
    limit: Duration,
    safety: Safety,
    idle: Mutex<Vec<Open>>,
}

/// A connection, and the file that it is one to.
struct Open {
    connection: Connection,
    file: (u64, u64),
}

impl SqliteMap {
    pub(super) fn new(definition: &Definition, safety: Safety) -> Result<Self, SpecError> {
        let statement = definition
            .value('Q')
            .ok_or_else(|| definition.bad_value('Q', "the class sqlite needs a statement"))?;
        Ok(Self {
            path: PathBuf::from(&definition.rest),
            statement: statement.to_owned(),
            separator: separator(definition)?,
            is_optional: definition.switches.is_optional,
            limit: definition.switches.time_limit.unwrap_or(TIME_LIMIT),
            safety,
            idle: Mutex::default(),
        })
    }

    fn trouble(&self, error: &rusqlite::Error) -> MapError {
        use rusqlite::ErrorCode;
        let (path, detail) = (self.path.clone(), error.to_string());
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                MapError::Damaged { path, detail }
            }
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                MapError::Locked { path, detail }
            }
            Some(ErrorCode::OperationInterrupted) => MapError::Timeout { path, detail },
            _ => MapError::Remote {
                path,
                detail,
                verdict: Verdict::Temporary,
            },
        }
    }

    /// A connection to the file that has the name now; `None`: there is none, and there need not be.
    fn connection(&self) -> Result<Option<Open>, MapError> {
        let meta = match std::fs::metadata(&self.path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && self.is_optional => {
                return Ok(None);
            }
            Err(error) => {
                return Err(MapError::Open {
                    path: self.path.clone(),
                    kind: error.kind(),
                    detail: diligence_maps::io_text(&error),
                });
            }
        };
        // SQLite opens the file itself; in directories that only their owners write, the name leads to the same one.
        self.safety.check(&self.path, &meta)?;
        let file = (meta.dev(), meta.ino());
        {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.retain(|open| open.file == file);
            if let Some(open) = idle.pop() {
                return Ok(Some(open));
            }
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connect = || {
            let connection = Connection::open_with_flags(&self.path, flags)?;
            connection.busy_timeout(self.limit)?;
            Ok(connection)
        };
        let connection = connect().map_err(|error| self.trouble(&error))?;
        Ok(Some(Open { connection, file }))
    }

    fn ask(&self, connection: &mut Connection, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        let failed = |error: &rusqlite::Error| self.trouble(error);
        let mut rounds = 0;
        let round = move || {
            rounds += 1;
            rounds * u64::from(STEPS_BETWEEN.unsigned_abs()) > STEPS_MAX
        };
        connection
            .progress_handler(STEPS_BETWEEN, Some(round))
            .map_err(|error| failed(&error))?;
        let mut statement = connection
            .prepare(&self.statement)
            .map_err(|error| failed(&error))?;
        if !statement.readonly() || statement.parameter_count() != 1 {
            return Err(MapError::Unsupported {
                path: self.path.clone(),
                detail: "the statement of -Q does not read only, with one parameter".into(),
            });
        }
        let bound = match std::str::from_utf8(key) {
            Ok(text) => statement.raw_bind_parameter(1, text),
            Err(_) => statement.raw_bind_parameter(1, key),
        };
        bound.map_err(|error| failed(&error))?;
        let mut rows = statement.raw_query();
        let mut value: Option<Vec<u8>> = None;
        let mut count = 0;
        while let Some(row) = rows.next().map_err(|error| failed(&error))? {
            let part = match row.get_ref(0).map_err(|error| failed(&error))? {
                ValueRef::Null => continue,
                ValueRef::Integer(number) => number.to_string().into_bytes(),
                ValueRef::Real(number) => number.to_string().into_bytes(),
                ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes.to_vec(),
            };
            let joined = value.get_or_insert_default();
            if count > 0 {
                let separator = self.separator.map(String::from).unwrap_or_default();
                joined.extend_from_slice(separator.as_bytes());
            }
            joined.extend_from_slice(&part);
            count += 1;
            if joined.len() > VALUE_BYTES_MAX || count > ROWS_MAX {
                return Err(MapError::Unsupported {
                    path: self.path.clone(),
                    detail: format!("more than {ROWS_MAX} rows, or {VALUE_BYTES_MAX} bytes"),
                });
            }
            if self.separator.is_none() {
                break;
            }
        }
        Ok(value)
    }
}

impl ClassMap for SqliteMap {
    fn find(&self, key: &[u8]) -> Result<Option<Vec<u8>>, MapError> {
        let Some(mut open) = self.connection()? else {
            return Ok(None);
        };
        let found = self.ask(&mut open.connection, key)?;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_MAX {
            idle.push(open);
        }
        Ok(found)
    }

    fn each(&self, f: &mut PairVisitor<'_>) -> Result<(), MapError> {
        super::not_listed(&self.path.display().to_string(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(text: &str) -> SqliteMap {
        SqliteMap::new(&Definition::parse(text).unwrap(), Safety::UNCHECKED).unwrap()
    }

    #[test]
    fn a_database_that_others_may_write_is_not_asked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.sqlite");
        let database = Connection::open(&path).unwrap();
        database.execute_batch("CREATE TABLE t (k, v)").unwrap();
        let text = format!(
            "sqlite -o -Q\"SELECT v FROM t WHERE k = ?1\" {}",
            path.display()
        );
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o664);
        std::fs::set_permissions(&path, mode).unwrap();
        assert_eq!(open(&text).find(b"a").unwrap(), None);
        // The test's own directory lies in one that is sticky and world-writable.
        let mut safety = Safety::default();
        assert!(safety.lift("TrustStickyBit"));
        let strict = SqliteMap::new(&Definition::parse(&text).unwrap(), safety).unwrap();
        let refused = || strict.find(b"a").unwrap_err().detail().to_owned();
        assert_eq!(refused(), "Group writable file");
        // A connection that was kept answered on after the file had been opened to others.
        let set_mode = |mode| {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(&path, mode).unwrap();
        };
        set_mode(0o644);
        assert_eq!(strict.find(b"a").unwrap(), None);
        set_mode(0o664);
        assert_eq!(refused(), "Group writable file");
    }

    #[test]
    fn a_statement_finds_values() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.sqlite");
        let statement = "-Q\"SELECT v FROM t WHERE k = ?1 ORDER BY rowid\"";
        let map = open(&format!("sqlite {statement} {}", path.display()));
        let joined = open(&format!("sqlite -z, {statement} {}", path.display()));
        let optional = open(&format!("sqlite -o {statement} {}", path.display()));
        assert!(map.find(b"a").unwrap_err().is_missing());
        assert_eq!(optional.find(b"a").unwrap(), None);
        let make = |path: &std::path::Path, value: &str| {
            let database = Connection::open(path).unwrap();
            database
                .execute_batch(&format!(
                    "CREATE TABLE t (k, v); INSERT INTO t VALUES ('a', '{value}'), ('a', 2), ('n', NULL), (X'ff', 'b');"
                ))
                .unwrap();
            database
        };
        drop(make(&path, "one"));
        assert_eq!(map.find(b"a").unwrap().unwrap(), b"one");
        assert_eq!(joined.find(b"a").unwrap().unwrap(), b"one,2");
        assert_eq!(map.find(b"\xff").unwrap().unwrap(), b"b");
        assert_eq!(map.find(b"n").unwrap(), None);
        assert_eq!(map.find(b"' OR 1=1").unwrap(), None);
        // Replaced by rename, as a careful writer does it.
        let next = dir.path().join("next");
        drop(make(&next, "two"));
        std::fs::rename(&next, &path).unwrap();
        assert_eq!(map.find(b"a").unwrap().unwrap(), b"two");
    }

    #[test]
    fn trouble_is_never_absence() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.sqlite");
        let shown = path.display();
        std::fs::write(
            &path,
            "this is no database, and long enough to be seen as none",
        )
        .unwrap();
        let map = open(&format!("sqlite -o -Q\"SELECT 1 WHERE ?1 = 1\" {shown}"));
        assert!(map.find(b"a").is_err());
        std::fs::remove_file(&path).unwrap();
        let writer = Connection::open(&path).unwrap();
        writer.execute_batch("CREATE TABLE t (k, v)").unwrap();
        let find =
            |statement: &str| open(&format!("sqlite -d1 -Q\"{statement}\" {shown}")).find(b"a");
        assert_eq!(find("SELECT v FROM t WHERE k = ?1").unwrap(), None);
        assert!(find("SELECT v FROM nothing WHERE k = ?1").is_err());
        assert!(find("INSERT INTO t VALUES (?1, 1)").is_err());
        assert!(find("SELECT v FROM t").is_err());
        let endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c) SELECT x FROM c WHERE x < 0 AND ?1 = 'a'";
        assert!(find(endless).is_err());
        writer.execute_batch("BEGIN EXCLUSIVE").unwrap();
        let busy = find("SELECT v FROM t WHERE k = ?1").unwrap_err();
        assert!(matches!(busy, MapError::Locked { .. }), "{busy}");
        let bare = Definition::parse("sqlite /x").unwrap();
        assert!(SqliteMap::new(&bare, Safety::UNCHECKED).is_err());
    }
}
