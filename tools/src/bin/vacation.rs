//! vacation: answers mail for a user who is away, each sender once in an interval.
//!
//! Who was answered when is a map, `~/.vacation.db`. An answer is recorded, durably, before it is sent, all under one
//! lock (`.vacation.lock` beside the map), so that of two that run at once one answers; a crash between the two costs one
//! answer, never two. Blocks: disk, the lock, and sendmail. Limits: [`MESSAGE_BYTES_MAX`], [`LOCK_WAIT`].
//! Source: vacation(1) of Sendmail 8.17, transcript 61.

use diligence::users::Users;
use diligence_maps::{DuplicatePolicy, MapBuilder, MapKind, PublishOptions, open_direct};
use diligence_tools::arguments::{Given, Grammar, OptionsEnd, parse};
use diligence_tools::setting::{EX_CANTCREAT, EX_DATAERR, find_sandbox, load_config};
use diligence_tools::stop::{Stop, end};
use diligence_tools::vacation::{Header, answer, is_robot};
use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const USAGE: &str = "usage: vacation [-i] [-a alias] [-C cfpath] [-d] [-f db] [-j] [-l] [-m msg] [-R returnaddr] [-r interval] [-s sender] [-t time] [-U] [-x] [-z] login\n";
/// sysexits(3): no such user.
const EX_NOUSER: u8 = 67;
/// sysexits(3): try again.
const EX_TEMPFAIL: u8 = 75;
const GRAMMAR: Grammar<'static> = Grammar {
    flags: "dIijlUxz",
    values: "aCfmRrst",
    long_flags: &[],
    long_values: &["sandbox"],
    end: OptionsEnd::FirstWord,
};
/// The key the interval is kept under. Source: Sendmail's vacation.c.
const INTERVAL_KEY: &[u8] = b"__VACATION__INTERVAL__TIMER__";
const WEEK: i64 = 7 * 86_400;
/// Stands for never again.
const INFINITE: i64 = i64::MAX;
/// The longest message of a user's that is sent, in bytes.
const MESSAGE_BYTES_MAX: u64 = 1 << 20;
/// How long another vacation of the user's is waited for.
const LOCK_WAIT: Duration = Duration::from_secs(60);
const LOCK_PAUSE: Duration = Duration::from_millis(20);
/// How long a program that rebuilds the map is waited for.
const MAP_WAIT: Duration = Duration::from_secs(10);

fn stop(exit: u8, text: impl std::fmt::Display) -> Stop {
    Stop::new("vacation", exit, text)
}

fn usage(text: &str) -> Stop {
    Stop::usage("vacation", text, USAGE)
}

fn main() -> ExitCode {
    end(run())
}

/// What the command line asks for.
#[derive(Default)]
struct Wanted {
    aliases: Vec<String>,
    database: Option<PathBuf>,
    message: Option<PathBuf>,
    interval: Option<i64>,
    sender: Option<String>,
    return_address: Option<String>,
    begins: bool,
    answers_all: bool,
    lists: bool,
    excludes: bool,
    needs_no_account: bool,
    is_null: bool,
    is_debug: bool,
    login: Option<String>,
}

fn run() -> Result<(), Stop> {
    let parsed = parse(&GRAMMAR, std::env::args_os().skip(1)).map_err(|text| usage(&text))?;
    let mut wanted = Wanted::default();
    let mut sandbox: Option<OsString> = None;
    for given in parsed.options {
        let (letter, value) = match given {
            Given::Letter(letter, value) => (letter, value.unwrap_or_default()),
            Given::Long(_, value) => {
                sandbox = value;
                continue;
            }
        };
        let text = value.to_string_lossy().into_owned();
        match letter {
            'a' => wanted.aliases.push(text),
            'f' => wanted.database = Some(value.into()),
            'm' => wanted.message = Some(value.into()),
            'r' => wanted.interval = Some(interval(&text)?),
            's' => wanted.sender = Some(text),
            'R' => wanted.return_address = Some(text),
            'I' | 'i' => wanted.begins = true,
            'j' => wanted.answers_all = true,
            'l' => wanted.lists = true,
            'x' => wanted.excludes = true,
            'U' => wanted.needs_no_account = true,
            'z' => wanted.is_null = true,
            'd' => wanted.is_debug = true,
            // -t is SunOS's and does nothing, as in Sendmail (transcript 61); -C names a configuration that nothing is taken of.
            _ => {}
        }
    }
    let mut words = parsed.words.into_iter();
    wanted.login = words.next().map(|word| word.to_string_lossy().into_owned());
    if words.next().is_some() {
        return Err(usage(""));
    }
    if wanted.login.is_none() && !(wanted.begins || wanted.lists || wanted.excludes) {
        return Err(usage(""));
    }
    let sandbox =
        find_sandbox(sandbox.as_deref()).map_err(|refusal| Stop::refused("vacation", &refusal))?;
    let config = load_config(None, sandbox.as_deref())
        .map_err(|refusal| Stop::refused("vacation", &refusal))?;
    let users = Users::new(
        config.paths.passwd_file.as_deref(),
        config.paths.home_directory.as_deref(),
    );
    let found = match &wanted.login {
        Some(login) => users.lookup(login),
        None => users.by_uid(rustix::process::getuid().as_raw()),
    };
    let found = found.map_err(|error| stop(EX_TEMPFAIL, error))?;
    let (login, home) = match (&found, &wanted.login) {
        (Some(user), _) => (user.name.clone(), user.home.clone()),
        (None, Some(login)) if wanted.needs_no_account => (login.clone(), PathBuf::from(".")),
        (None, Some(login)) => return Err(stop(EX_NOUSER, format!("no such user {login}."))),
        (None, None) => return Err(stop(EX_NOUSER, "no such user.")),
    };
    let database = home.join(
        wanted
            .database
            .clone()
            .unwrap_or_else(|| ".vacation".into()),
    );
    let mut book = Book::open(&database, wanted.begins)?;
    if let Some(interval) = wanted.interval {
        book.set(INTERVAL_KEY, interval)?;
    }
    if wanted.excludes {
        return book.exclude(io::stdin().lock());
    }
    if wanted.lists {
        return book.list(io::stdout().lock());
    }
    if wanted.begins || wanted.login.is_none() {
        return book.save();
    }
    reply(&wanted, &login, &home, book, sandbox.as_deref())
}

/// Answers the message on standard input, if it is to be answered.
fn reply(
    wanted: &Wanted,
    login: &str,
    home: &Path,
    mut book: Book,
    sandbox: Option<&Path>,
) -> Result<(), Stop> {
    let input = io::stdin().lock();
    let mut input = BufReader::new(input);
    let header =
        Header::read(&mut input).map_err(|e| stop(EX_TEMPFAIL, diligence_maps::io_text(&e)))?;
    // Read to its end: who writes it to us is not to find the pipe closed.
    let _ = io::copy(&mut input, &mut io::sink());
    let debug = |text: &str| {
        if wanted.is_debug {
            eprintln!("vacation: {text}");
        }
    };
    let mut names = wanted.aliases.clone();
    names.push(login.to_owned());
    if !wanted.answers_all && !header.is_to(&names) {
        debug("not answered: not to this user");
        return Ok(());
    }
    let Some(sender) = wanted.sender.clone().or_else(|| header.from.clone()) else {
        return Err(stop(EX_DATAERR, "no initial \"From\" line."));
    };
    if let Some(why) = header.unanswerable {
        debug(&format!("not answered: {why}"));
        return Ok(());
    }
    if is_robot(&sender) {
        debug(&format!("not answered: {sender} reads no answers"));
        return Ok(());
    }
    let is_own = sender
        .split('@')
        .next()
        .is_some_and(|local| local.eq_ignore_ascii_case(login));
    let key = sender.to_lowercase();
    if is_own && wanted.sender.is_none() && header.is_to(std::slice::from_ref(&sender)) {
        debug("not answered: from the user");
        return Ok(());
    }
    if !book.is_due(key.as_bytes()) {
        debug(&format!("not answered: {sender} was answered not long ago"));
        return Ok(());
    }
    let path = home.join(
        wanted
            .message
            .clone()
            .unwrap_or_else(|| ".vacation.msg".into()),
    );
    let mut message = String::new();
    File::open(&path)
        .and_then(|file| file.take(MESSAGE_BYTES_MAX).read_to_string(&mut message))
        .map_err(|e| {
            stop(
                66,
                format!("no {}: {}", path.display(), diligence_maps::io_text(&e)),
            )
        })?;
    // Recorded first: twice is worse than not at all.
    book.set(key.as_bytes(), now())?;
    book.save()?;
    let from = match (&wanted.return_address, wanted.is_null) {
        (Some(address), _) => address.as_str(),
        (None, true) => "<>",
        (None, false) => login,
    };
    send(from, &sender, &answer(&sender, &header, &message), sandbox)
}

/// Hands an answer to sendmail: the one beside this program, or the system's.
fn send(from: &str, to: &str, text: &str, sandbox: Option<&Path>) -> Result<(), Stop> {
    let beside = std::env::current_exe()
        .ok()
        .map(|path| path.with_file_name("sendmail"))
        .filter(|path| path.is_file());
    let program = beside.unwrap_or_else(|| PathBuf::from("/usr/sbin/sendmail"));
    let failed = |what: String| stop(EX_TEMPFAIL, what);
    let mut command = Command::new(&program);
    if let Some(sandbox) = sandbox {
        command.arg("--sandbox").arg(sandbox);
    }
    let mut child = command
        .args(["-oi", "-f", from, "--", to])
        .stdin(Stdio::piped())
        .spawn()
        .map_err(|e| {
            failed(format!(
                "can't run {}: {}",
                program.display(),
                diligence_maps::io_text(&e)
            ))
        })?;
    if let Some(mut stdin) = child.stdin.take() {
        // What went wrong shows in the exit code.
        let _ = stdin.write_all(text.as_bytes());
    }
    let ended = child
        .wait()
        .map_err(|e| failed(diligence_maps::io_text(&e)))?;
    match ended.success() {
        true => Ok(()),
        false => Err(failed(format!("{} ended with {ended}", program.display()))),
    }
}

/// Days, or for ever.
fn interval(text: &str) -> Result<i64, Stop> {
    let digits = text.find(|c: char| !c.is_ascii_digit());
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    // vacation(1): what is no number means never again.
    if number.is_empty() && !unit.is_empty() && !unit.starts_with('-') {
        return Ok(INFINITE);
    }
    let seconds: i64 = match unit {
        "w" => WEEK,
        "" | "d" => 86_400,
        "h" => 3_600,
        "m" => 60,
        "s" => 1,
        _ => return Err(usage("")),
    };
    number
        .parse::<i64>()
        .map(|number| number.saturating_mul(seconds))
        .map_err(|_| usage(""))
}

fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
        })
}

/// Who was answered when, under its lock.
struct Book {
    path: PathBuf,
    entries: MapBuilder,
    /// Held until the end.
    _lock: File,
}

impl Book {
    /// Opens the map, or begins a new one.
    fn open(name: &Path, begins: bool) -> Result<Self, Stop> {
        let path = MapKind::Hash.file_of(name);
        let lock = lock(&name.with_extension("lock"))?;
        let trouble = |error: diligence_maps::MapError| {
            stop(
                EX_CANTCREAT,
                format!("{}: {}", path.display(), error.detail()),
            )
        };
        let mut entries =
            MapBuilder::new(MapKind::Hash, DuplicatePolicy::ReplaceWithLast).map_err(trouble)?;
        if begins || !path.exists() {
            return Ok(Self {
                path,
                entries,
                _lock: lock,
            });
        }
        let map = open_direct(&path, MAP_WAIT).map_err(trouble)?;
        entries.insert_all(&map).map_err(trouble)?;
        drop(map);
        Ok(Self {
            path,
            entries,
            _lock: lock,
        })
    }

    fn time_of(&self, key: &[u8]) -> Option<i64> {
        let value = self.entries.get(key)?;
        value.first_chunk().map(|bytes| i64::from_ne_bytes(*bytes))
    }

    fn set(&mut self, key: &[u8], value: i64) -> Result<(), Stop> {
        self.entries.remove(key);
        let inserted = self.entries.insert(key, &value.to_ne_bytes());
        inserted
            .map(|_| ())
            .map_err(|error| stop(EX_CANTCREAT, error.detail()))
    }

    /// Whether a sender may be answered again. Neither an exclusion nor an endless interval ever ends.
    fn is_due(&self, key: &[u8]) -> bool {
        let interval = self.time_of(INTERVAL_KEY).unwrap_or(WEEK);
        let domain = key
            .iter()
            .position(|byte| *byte == b'@')
            .and_then(|at| key.get(at..));
        if domain.is_some_and(|domain| self.time_of(domain) == Some(INFINITE)) {
            return false;
        }
        match self.time_of(key) {
            None => true,
            Some(at) => {
                interval != INFINITE && at != INFINITE && at.saturating_add(interval) <= now()
            }
        }
    }

    /// Takes addresses, one a line, that are never answered; `@domain` stands for a domain.
    fn exclude(mut self, input: impl BufRead) -> Result<(), Stop> {
        for line in input.lines() {
            let line = line.map_err(|e| stop(EX_DATAERR, diligence_maps::io_text(&e)))?;
            let address = line.trim().to_lowercase();
            if !address.is_empty() {
                self.set(address.as_bytes(), INFINITE)?;
            }
        }
        self.save()
    }

    /// Prints everybody, and when.
    fn list(&self, mut out: impl Write) -> Result<(), Stop> {
        let mut lines = Vec::new();
        self.entries.each(&mut |key, value| {
            if key != INTERVAL_KEY {
                let at = value
                    .first_chunk()
                    .map_or(0, |bytes| i64::from_ne_bytes(*bytes));
                let shown = match at {
                    INFINITE => "(exclusion)".to_owned(),
                    at => diligence_tools::local_time(at),
                };
                lines.push(format!("{:<40} {shown}\n", String::from_utf8_lossy(key)));
            }
            ControlFlow::Continue(())
        });
        lines.sort();
        out.write_all(lines.concat().as_bytes()).map_err(|e| {
            stop(
                diligence_tools::setting::EX_IOERR,
                diligence_maps::io_text(&e),
            )
        })
    }

    /// Publishes the map: synced, and whole at every moment.
    fn save(self) -> Result<(), Stop> {
        let published = self.entries.publish(&self.path, &PublishOptions::default());
        published.map(|_| ()).map_err(|error| {
            stop(
                EX_CANTCREAT,
                format!("{}: {}", self.path.display(), error.detail()),
            )
        })
    }
}

/// Takes the user's lock, waiting for another vacation.
fn lock(path: &Path) -> Result<File, Stop> {
    let failed = |error: &io::Error| {
        stop(
            EX_CANTCREAT,
            format!("{}: {}", path.display(), diligence_maps::io_text(error)),
        )
    };
    let file = OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| failed(&error))?;
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(failed(&error)),
            Err(TryLockError::WouldBlock) if start.elapsed() < LOCK_WAIT => {
                std::thread::sleep(LOCK_PAUSE)
            }
            Err(TryLockError::WouldBlock) => {
                return Err(stop(EX_TEMPFAIL, "another vacation holds the lock"));
            }
        }
    }
}
