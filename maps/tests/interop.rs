//! Files of ours read by libdb, files of libdb's read by us.
//!
//! Needs Debian's db5.3-util, perl with its DB_File, and python3-bsddb3. A test that finds its program missing prints that
//! it is skipped. PEER_ENTRIES (10000) is the size of the largest map that is exchanged with perl.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod support;

use diligence_maps::{Map, MapKind, open_direct};
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use support::{Model, Rng, add_duplicates, assert_same, awkward, listed, read, seed, write};

const KINDS: [MapKind; 2] = [MapKind::Hash, MapKind::Btree];

/// Prints every pair of a file as libdb's cursor gives it, `+hex hex`, then what libdb's get answers for every key it
/// is asked for on standard input, `=hex hex`, or `-hex` if it finds none. DB_File opens either kind.
const PERL: &str = r#"
use DB_File;
my ($path, $type) = @ARGV;
my %map;
my $db = tie(%map, "DB_File", $path, 0, 0, $type eq "hash" ? $DB_HASH : $DB_BTREE) or die "open: $!";
my ($key, $value) = ("", "");
for (my $st = $db->seq($key, $value, R_FIRST); $st == 0; $st = $db->seq($key, $value, R_NEXT)) {
    print "+", unpack("H*", $key), " ", unpack("H*", $value), "\n";
}
while (my $wanted = <STDIN>) {
    chomp $wanted;
    my $key = pack("H*", $wanted);
    my $value;
    if ($db->get($key, $value) == 0) { print "=$wanted ", unpack("H*", $value), "\n" } else { print "-$wanted\n" }
}
"#;

/// The same by python, through libdb's own interface.
const PYTHON: &str = r#"
import sys
from bsddb3 import db
path, kind = sys.argv[1:]
map = db.DB()
map.open(path, None, db.DB_HASH if kind == "hash" else db.DB_BTREE, db.DB_RDONLY)
out = []
cursor = map.cursor()
pair = cursor.first()
while pair:
    out.append("+%s %s\n" % (pair[0].hex(), pair[1].hex()))
    pair = cursor.next()
sys.stdout.writelines(out)
for line in sys.stdin:
    wanted = line.strip()
    value = map.get(bytes.fromhex(wanted))
    print("-" + wanted if value is None else "=%s %s" % (wanted, value.hex()))
"#;

/// Stores the pairs of standard input, `hex hex`, in a new file.
const PERL_STORE: &str = r#"
use DB_File;
use Fcntl;
my ($path, $type) = @ARGV;
my %map;
my $db = tie(%map, "DB_File", $path, O_RDWR|O_CREAT, 0644, $type eq "hash" ? $DB_HASH : $DB_BTREE) or die "open: $!";
while (<STDIN>) {
    chomp;
    my ($key, $value) = split / /, $_, -1;
    $db->put(pack("H*", $key), pack("H*", $value)) == 0 or die "put: $!";
}
undef $db;
untie %map or die "close: $!";
"#;

const PYTHON_STORE: &str = r#"
import sys
from bsddb3 import db
path, kind = sys.argv[1:]
map = db.DB()
map.open(path, None, db.DB_HASH if kind == "hash" else db.DB_BTREE, db.DB_CREATE)
for line in sys.stdin:
    key, value = line.rstrip("\n").split(" ")
    map.put(bytes.fromhex(key), bytes.fromhex(value))
map.close()
"#;

/// A language's interface to libdb: how its programs are run, the one that reads, the one that stores.
#[derive(Clone, Copy)]
struct Binding {
    program: &'static str,
    flag: &'static str,
    reads: &'static str,
    stores: &'static str,
}

const BY_PERL: Binding = Binding {
    program: "perl",
    flag: "-e",
    reads: PERL,
    stores: PERL_STORE,
};
// Debian's own, which its module is built for.
const BY_PYTHON: Binding = Binding {
    program: "/usr/bin/python3",
    flag: "-c",
    reads: PYTHON,
    stores: PYTHON_STORE,
};

fn is_installed(program: &str, probe: &[&str]) -> bool {
    let found = Command::new(program)
        .args(probe)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !found {
        println!("SKIPPED: {program} {} does not run here", probe.join(" "));
    }
    found
}

fn has_db_util() -> bool {
    is_installed("db5.3_verify", &["-V"])
}

fn has_perl() -> bool {
    is_installed("perl", &["-MDB_File", "-e", "0"])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

/// Verification must print its success line and nothing else: wrong order is only printed, with status 0.
fn verify(path: &Path) {
    let done = Command::new("db5.3_verify").arg(path).output().unwrap();
    let text =
        String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{text}");
    let expected = format!("BDB5105 Verification of {} succeeded.\n", path.display());
    assert_eq!(text, expected);
}

/// Lists a file through libdb and asks for every key of the model.
fn check_by_libdb(kind: MapKind, path: &Path, model: &Model, what: &str) {
    check_by(BY_PERL, kind, path, model, what);
}

fn check_by(binding: Binding, kind: MapKind, path: &Path, model: &Model, what: &str) {
    let wanted: String = model.keys().map(|key| hex(key) + "\n").collect();
    let keys = path.with_extension("keys");
    std::fs::write(&keys, wanted).unwrap();
    let done = Command::new(binding.program)
        .args([binding.flag, binding.reads])
        .arg(path)
        .arg(kind.name())
        .stdin(std::fs::File::open(&keys).unwrap())
        .output()
        .unwrap();
    assert!(
        done.status.success(),
        "{what}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
    let mut seen = Model::new();
    let mut answered = 0;
    for line in std::str::from_utf8(&done.stdout).unwrap().lines() {
        let (key, value) = line[1..].split_once(' ').unwrap_or((&line[1..], ""));
        let (key, value) = (unhex(key), unhex(value));
        match &line[..1] {
            "+" => seen.entry(key).or_default().push(value),
            "=" => {
                answered += 1;
                assert!(
                    model[&key][0] == value,
                    "{what}: libdb's get gives another value"
                );
            }
            _ => panic!(
                "{what}: libdb's get does not find a key of {} bytes: {line:.60}",
                key.len()
            ),
        }
    }
    assert_eq!(answered, model.len(), "{what}");
    assert_same(&seen, model, what);
}

fn peer_entries() -> usize {
    let text = std::env::var("PEER_ENTRIES").ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(10_000)
}

/// So many entries, the awkward ones among them: empty and binary values and keys, trailing NULs, values of many pages.
fn exchanged(entries: usize, rng: &mut Rng) -> Model {
    let mut model = match entries {
        1 => Model::new(),
        _ => awkward(entries.min(10_000), false, rng),
    };
    let mut i = 0;
    while model.len() < entries {
        let key = format!("plain{i}.user@host{}.test", i % 97);
        model.insert(key.into_bytes(), vec![format!("box{i}").into_bytes()]);
        i += 1;
    }
    model
}

/// Files of ours read by a binding, files of its read by us, of one entry, ten thousand, and as many as asked for.
fn exchange(binding: Binding, largest: usize) {
    let mut rng = Rng(seed());
    let dir = tempfile::tempdir().unwrap();
    let mut sizes = vec![1, 10_000, largest];
    sizes.dedup();
    for entries in sizes {
        let model = exchanged(entries, &mut rng);
        let mut pairs = String::new();
        for (key, values) in &model {
            let _ = writeln!(pairs, "{} {}", hex(key), hex(&values[0]));
        }
        let input = dir.path().join("pairs");
        std::fs::write(&input, pairs).unwrap();
        for kind in KINDS {
            let what = format!("{}, {kind}, {entries} entries", binding.program);
            let ours = dir.path().join("ours.db");
            write(kind, &model, &ours);
            verify(&ours);
            check_by(binding, kind, &ours, &model, &what);
            let theirs = dir.path().join("theirs.db");
            let _ = std::fs::remove_file(&theirs);
            let done = Command::new(binding.program)
                .args([binding.flag, binding.stores])
                .arg(&theirs)
                .arg(kind.name())
                .stdin(std::fs::File::open(&input).unwrap())
                .output()
                .unwrap();
            let errors = String::from_utf8_lossy(&done.stderr);
            assert!(done.status.success(), "{what}: {errors}");
            let snapshot = read(&theirs).unwrap();
            assert_same(&listed(&snapshot).unwrap(), &model, &what);
            let direct = open_direct(&theirs, Duration::ZERO).unwrap();
            assert_eq!(direct.kind(), kind, "{what}");
            for (key, values) in &model {
                assert!(snapshot.get(key) == Some(&values[0][..]), "{what}");
            }
            for (key, values) in model.iter().step_by(7) {
                let found = direct.lookup(key).unwrap();
                assert!(found.as_deref() == Some(&values[0][..]), "{what}");
            }
            assert_eq!(direct.lookup(b"nobody has this key").unwrap(), None);
        }
    }
}

#[test]
fn files_are_exchanged_with_perl() {
    if has_db_util() && has_perl() {
        exchange(BY_PERL, peer_entries());
    }
}

#[test]
fn files_are_exchanged_with_python() {
    if has_db_util() && is_installed(BY_PYTHON.program, &["-c", "import bsddb3"]) {
        exchange(BY_PYTHON, 10_000);
    }
}

#[test]
fn libdb_reads_what_we_write() {
    if !has_db_util() || !has_perl() {
        return;
    }
    let mut rng = Rng(seed());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.db");
    for count in [0, 1, 100, 5000] {
        for (long_keys, duplicates) in [(false, false), (true, false), (false, true), (true, true)]
        {
            let mut model = awkward(count, long_keys, &mut rng);
            if duplicates {
                add_duplicates(&mut model, &mut rng);
            }
            for kind in KINDS {
                let what = format!(
                    "{kind}, {count} entries, long keys {long_keys}, duplicates {duplicates}"
                );
                write(kind, &model, &path);
                verify(&path);
                check_by_libdb(kind, &path, &model, &what);
            }
        }
    }
}

#[test]
fn libdb_reads_a_tree_of_duplicates_of_several_levels() {
    if !has_db_util() || !has_perl() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.db");
    let mut model = Model::new();
    let values = (0..60_000)
        .map(|i| format!("value {i} of one key").into_bytes())
        .collect();
    model.insert(b"many".to_vec(), values);
    for kind in KINDS {
        write(kind, &model, &path);
        verify(&path);
        check_by_libdb(kind, &path, &model, kind.name());
    }
}

#[test]
fn libdb_can_go_on_with_what_we_wrote() {
    if !has_db_util() || !has_perl() {
        return;
    }
    const ADD: &str = r#"
use DB_File;
my ($path, $type) = @ARGV;
my %map;
tie(%map, "DB_File", $path, 2, 0, $type eq "hash" ? $DB_HASH : $DB_BTREE) or die "open: $!";
$map{"added$_"} = "by libdb $_" for 1..20000;
delete $map{"user8"};
"#;
    let mut rng = Rng(seed());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.db");
    for kind in KINDS {
        let mut model = awkward(1000, false, &mut rng);
        write(kind, &model, &path);
        let done = Command::new("perl")
            .args(["-e", ADD])
            .arg(&path)
            .arg(kind.name())
            .output()
            .unwrap();
        assert!(
            done.status.success(),
            "{}",
            String::from_utf8_lossy(&done.stderr)
        );
        for i in 1..=20_000 {
            let value = format!("by libdb {i}").into_bytes();
            model.insert(format!("added{i}").into_bytes(), vec![value]);
        }
        assert!(model.remove(&b"user8"[..]).is_some());
        verify(&path);
        assert_same(&listed(&read(&path).unwrap()).unwrap(), &model, kind.name());
        let direct = open_direct(&path, Duration::ZERO).unwrap();
        for (key, values) in &model {
            assert!(
                direct.lookup(key).unwrap().as_deref() == Some(&values[0][..]),
                "{kind}"
            );
        }
    }
}

/// A model in the text form db5.3_load -T reads.
fn load_text(model: &Model) -> String {
    let mut text = String::new();
    for (key, values) in model {
        for value in values {
            for bytes in [key, value] {
                for byte in bytes {
                    let _ = write!(text, "\\{byte:02x}");
                }
                text.push('\n');
            }
        }
    }
    text
}

#[test]
fn we_read_what_libdb_writes() {
    if !has_db_util() {
        return;
    }
    let mut rng = Rng(seed());
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("input");
    // Long keys are left out of hash files with short ones: libdb itself loses keys on pages that mix them.
    let plain = awkward(1500, false, &mut rng);
    let mut several = plain.clone();
    // Nor does it keep apart duplicates whose first value is off-page; both sizes are those of the smallest page.
    several.retain(|key, values| key.len() < 100 && values[0].len() < 100);
    add_duplicates(&mut several, &mut rng);
    for values in several.values_mut() {
        values.retain(|value| value.len() < 100);
    }
    for kind in KINDS {
        for page_size in ["512", "4096", "65536"] {
            for order in ["1234", "4321"] {
                for checksum in ["0", "1"] {
                    for duplicates in [false, true] {
                        let model = if duplicates { &several } else { &plain };
                        std::fs::write(&input, load_text(model)).unwrap();
                        let what = format!(
                            "{kind}, pages of {page_size}, order {order}, checksums {checksum}, duplicates {duplicates}"
                        );
                        let path = dir.path().join("theirs.db");
                        let _ = std::fs::remove_file(&path);
                        let mut load = Command::new("db5.3_load");
                        load.args(["-T", "-t", kind.name(), "-f"]).arg(&input);
                        load.args(["-c", &format!("db_pagesize={page_size}")]);
                        load.args(["-c", &format!("db_lorder={order}")]);
                        if checksum == "1" {
                            load.args(["-c", "chksum=1"]);
                        }
                        if duplicates {
                            load.args(["-c", "duplicates=1"]);
                        }
                        let done = load.arg(&path).output().unwrap();
                        assert!(
                            done.status.success(),
                            "{what}: {}",
                            String::from_utf8_lossy(&done.stderr)
                        );
                        let snapshot =
                            read(&path).unwrap_or_else(|error| panic!("{what}: {error}"));
                        assert_same(&listed(&snapshot).unwrap(), model, &what);
                        let direct = open_direct(&path, Duration::ZERO).unwrap();
                        assert_eq!(direct.kind(), kind);
                        assert_eq!(direct.allows_duplicates(), duplicates);
                        let step = if page_size == "4096" { 1 } else { 23 };
                        for (key, values) in model.iter().step_by(step) {
                            let found = direct
                                .lookup(key)
                                .unwrap_or_else(|error| panic!("{what}: {error}"));
                            assert!(
                                found.as_deref() == Some(&values[0][..]),
                                "{what}: key of {} bytes",
                                key.len()
                            );
                            assert!(snapshot.get(key) == Some(&values[0][..]), "{what}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn long_keys_of_libdb_are_read() {
    if !has_db_util() {
        return;
    }
    let mut rng = Rng(seed());
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("input");
    let mut model = awkward(2000, true, &mut rng);
    model.retain(|key, _| key.len() > 1100);
    assert!(model.len() > 100);
    std::fs::write(&input, load_text(&model)).unwrap();
    for kind in KINDS {
        let path = dir.path().join(format!("{kind}.db"));
        let done = Command::new("db5.3_load")
            .args(["-T", "-t", kind.name(), "-f"])
            .arg(&input)
            .arg(&path)
            .output()
            .unwrap();
        assert!(done.status.success());
        assert_same(&listed(&read(&path).unwrap()).unwrap(), &model, kind.name());
        let direct = open_direct(&path, Duration::ZERO).unwrap();
        for (key, values) in &model {
            assert!(
                direct.lookup(key).unwrap().as_deref() == Some(&values[0][..]),
                "{kind}"
            );
        }
    }
}
