//! Keeps the source tree in the shape that ARCHITECTURE.md describes.
//!
//! Checks, by reading the source text: which module imports which (the table [`ROOMS`]), which library is named where
//! ([`LIBRARIES`]), that the spool, the queue and the router reach neither files for writing nor clocks past their
//! seams, that the top level is fixed, that no file has a name that says nothing, and that every file opens with
//! `//!`; and that ARCHITECTURE.md has the same tables. The checks themselves are tested on text that breaks each rule.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// L0: pure words, known to everybody above.
const L0: [&str; 4] = ["address", "envelope", "status", "clock"];

/// Each module of `src/`, and what it may import of ours besides itself (ARCHITECTURE.md, section 2).
/// `L0` stands for the four of [`L0`], `*` for everything.
const ROOMS: &[(&str, &[&str])] = &[
    ("address", &["envelope", "status"]),
    ("envelope", &["address", "status"]),
    ("status", &["address", "envelope"]),
    ("clock", &[]),
    ("config", &["L0"]),
    ("maillog", &["L0"]),
    ("spool", &["L0"]),
    ("users", &["L0"]),
    ("dns", &["L0"]),
    ("netmaps", &["L0", "dns"]),
    ("safe_file", &["L0"]),
    ("privileged", &["L0", "safe_file"]),
    ("route", &["L0", "config", "users", "safe_file"]),
    (
        "deliver",
        &[
            "L0",
            "config",
            "maillog",
            "users",
            "dns",
            "safe_file",
            "privileged",
        ],
    ),
    (
        "queue",
        &["L0", "config", "maillog", "spool", "route", "deliver"],
    ),
    (
        "smtpd",
        &["L0", "config", "maillog", "spool", "route", "dns"],
    ),
    (
        "submit",
        &["L0", "config", "maillog", "spool", "route", "users"],
    ),
    ("control", &["L0", "config", "maillog", "spool", "queue"]),
    ("cli", &["*"]),
    ("programs", &["*"]),
    ("lib", &[]),
    ("main", &["*"]),
];

/// Libraries that only some places may name. A place is a path below the workspace, a folder if it ends in `/`.
const LIBRARIES: &[(&str, &[&str])] = &[
    (
        "tokio",
        &[
            "src/main.rs",
            "src/smtpd/",
            "src/queue/",
            "src/deliver/",
            "src/control/",
            "src/netmaps/",
            "src/programs/",
        ],
    ),
    (
        "hickory_resolver",
        &["src/dns.rs", "src/dns/", "src/netmaps/"],
    ),
    ("mail_parser", &["tests/"]),
    ("clap", &["src/cli.rs", "src/cli/", "tools/"]),
    ("toml", &["src/config/"]),
    ("crc32fast", &["src/spool/", "maps/"]),
    ("memmap2", &["maps/"]),
    ("redb", &["maps/", "benches/"]),
    ("lmdb", &["maps/", "benches/"]),
    (
        "diligence_maps",
        &[
            "src/route/",
            "src/netmaps/",
            "src/config/",
            "src/programs/",
            "src/cli.rs",
            "tools/",
            "maps/",
            "benches/",
        ],
    ),
    ("ldap3", &["src/netmaps/"]),
    ("rusqlite", &["src/netmaps/"]),
    ("shuttle", &["src/spool/"]),
    ("anyhow", &["tools/"]),
];

/// Folders where files are written and clocks are read only through `Storage` and `Clock`, and the files excepted.
const SEALED: [&str; 3] = ["src/spool/", "src/queue/", "src/route/"];
const SEALED_BUT: [&str; 2] = ["src/spool/storage.rs", "src/spool/drop_file.rs"];

/// Calls that write to the file system or read a clock.
const DIRECT: &[&str] = &[
    "fs::write",
    "fs::rename",
    "fs::remove",
    "fs::create_dir",
    "fs::hard_link",
    "fs::copy",
    "fs::set_permissions",
    "fs::symlink",
    "fs::chown",
    "fs::renameat",
    "fs::unlink",
    "fs::mkdir",
    "fs::ftruncate",
    "fs::fsync",
    "fs::fdatasync",
    "fs::fallocate",
    "File::create",
    "File::options",
    "OpenOptions",
    "OFlags::WRONLY",
    "OFlags::RDWR",
    "OFlags::CREATE",
    "O_WRONLY",
    "O_RDWR",
    "O_CREAT",
    "DirBuilder",
    "tokio::fs",
    "tempfile::",
    "SystemTime::now",
    "std::time::Instant::now",
    "clock_gettime",
];

/// Names that say nothing about what a file holds.
const VAGUE: [&str; 7] = [
    "utils", "common", "helpers", "misc", "manager", "handler", "service",
];

/// Folders of the top level, besides those that Git ignores or that begin with a dot.
const TOP_FOLDERS: [&str; 5] = ["src", "maps", "tools", "benches", "tests"];
/// Files of the top level, besides those that begin with a dot.
const TOP_FILES: [&str; 10] = [
    "Cargo.toml",
    "Cargo.lock",
    "LICENSE-MIT",
    "LICENSE-APACHE",
    "README.md",
    "CHANGELOG.md",
    "ARCHITECTURE.md",
    "clippy.toml",
    "rustfmt.toml",
    "deny.toml",
];
/// What may begin with a dot at the top level.
const TOP_DOTTED: [&str; 6] = [
    ".git",
    ".gitignore",
    ".gitattributes",
    ".ci",
    ".cargo",
    ".github",
];

#[test]
fn modules_import_only_what_the_table_grants() {
    let mut complaints = Vec::new();
    for (name, text) in sources(&["src"]) {
        complaints.extend(import_complaints(&name, &text));
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn libraries_are_named_only_where_they_belong() {
    let mut complaints = Vec::new();
    for (name, text) in sources(&["src", "maps", "tools", "benches"]) {
        complaints.extend(library_complaints(&name, &text));
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn engine_queue_and_router_reach_disk_and_clock_through_their_seams() {
    let mut complaints = Vec::new();
    for (name, text) in sources(&["src"]) {
        complaints.extend(direct_call_complaints(&name, &text));
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn files_say_what_they_are() {
    let mut complaints = Vec::new();
    for (name, text) in sources(&["src", "maps", "tools", "benches", "tests"]) {
        complaints.extend(file_complaints(&name, &text));
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn the_top_level_is_fixed() {
    let ignored: BTreeSet<String> = fs::read_to_string(root().join(".gitignore"))
        .unwrap_or_default()
        .lines()
        .map(|line| line.trim_matches('/').to_owned())
        .collect();
    for entry in fs::read_dir(root()).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if ignored.contains(&name) {
            continue;
        }
        let is_known = if name.starts_with('.') {
            TOP_DOTTED.contains(&name.as_str())
        } else if entry.file_type().unwrap().is_dir() {
            TOP_FOLDERS.contains(&name.as_str())
        } else {
            TOP_FILES.contains(&name.as_str())
        };
        assert!(is_known, "{name} does not belong at the top level");
    }
}

#[test]
fn every_module_of_the_library_has_a_row_in_the_table() {
    let lib = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let declared = lib
        .lines()
        .filter_map(|line| line.trim().strip_prefix("pub mod "))
        .filter_map(|rest| rest.strip_suffix(';'));
    let mut count = 0;
    for room in declared {
        assert!(
            ROOMS.iter().any(|(known, _)| *known == room),
            "{room} has no row"
        );
        count += 1;
    }
    assert!(count >= 5, "src/lib.rs declares only {count} modules?");
}

#[test]
fn the_document_has_the_same_tables() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let as_rows = |table: &[(&str, &[&str])]| -> Vec<(String, String)> {
        let row = |(name, cells): &(&str, &[&str])| ((*name).to_owned(), cells.join(", "));
        table.iter().map(row).collect()
    };
    assert_eq!(
        table_below(&text, "| module | may import |"),
        as_rows(ROOMS)
    );
    assert_eq!(
        table_below(&text, "| library | only in |"),
        as_rows(LIBRARIES)
    );
}

#[test]
fn every_dependency_is_accounted_for() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let rows = table_below(&text, "| crate | what for |");
    let known: BTreeSet<&str> = rows.iter().flat_map(|(name, _)| name.split(", ")).collect();
    let mut count = 0;
    for manifest in ["Cargo.toml", "maps/Cargo.toml", "tools/Cargo.toml"] {
        let manifest = fs::read_to_string(root().join(manifest)).unwrap();
        for name in dependencies(&manifest) {
            assert!(
                name.starts_with("diligence") || known.contains(name),
                "{name} has no line in ARCHITECTURE.md"
            );
            count += 1;
        }
    }
    assert!(count >= 10, "the manifests name only {count} dependencies?");
}

#[test]
fn every_program_has_a_manual_page_and_pages_name_pages_that_are_there() {
    let folder = root().join("tools/man");
    let mut programs = vec!["sendmail".to_owned()];
    for entry in fs::read_dir(root().join("tools/src/bin")).unwrap() {
        let path = entry.unwrap().path();
        programs.push(path.file_stem().unwrap().to_string_lossy().into_owned());
    }
    for program in programs {
        let is_there = ["1", "8"]
            .iter()
            .any(|section| folder.join(format!("{program}.{section}")).exists());
        assert!(is_there, "{program} has no manual page");
    }
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        for page in pages_named(&fs::read_to_string(&path).unwrap()) {
            let is_there = folder.join(&page).exists();
            assert!(is_there, "{} names {page}", path.display());
        }
    }
}

#[test]
fn the_checks_find_what_they_are_for() {
    let imports = |name: &str, text: &str| import_complaints(name, text).len();
    assert_eq!(
        imports("src/spool/journal.rs", "use crate::queue::Queue;"),
        1
    );
    assert_eq!(
        imports("src/spool/mod.rs", "let q = crate::config::load();"),
        1
    );
    assert_eq!(
        imports(
            "src/deliver/mod.rs",
            "use crate::{\n    clock::Clock,\n    spool::{Spool, Lease},\n};"
        ),
        1
    );
    assert_eq!(imports("src/route/mod.rs", "use super::spool::Spool;"), 1);
    assert_eq!(
        imports("src/queue/mod.rs", "use diligence::smtpd::Server;"),
        1
    );
    assert_eq!(
        imports("src/queue/mod.rs", "use crate::{spool, route::Router};"),
        0
    );
    assert_eq!(
        imports(
            "src/spool/mod.rs",
            "// as crate::queue does it\n/* crate::queue */ use crate::clock::Clock;"
        ),
        0
    );
    assert_eq!(imports("src/unheard_of.rs", ""), 1);

    let libraries = |name: &str, text: &str| library_complaints(name, text).len();
    assert_eq!(libraries("src/spool/mod.rs", "use tokio::sync::mpsc;"), 1);
    assert_eq!(
        libraries("src/route/mod.rs", "let s = ::tokio::time::sleep(d);"),
        1
    );
    assert_eq!(
        libraries("src/queue/runner.rs", "use tokio::sync::mpsc;"),
        0
    );
    assert_eq!(libraries("src/queue/runner.rs", "use my_tokio::sync;"), 0);

    let direct = |name: &str, text: &str| direct_call_complaints(name, text).len();
    assert_eq!(
        direct("src/route/mod.rs", "std::fs::write(path, b\"\")?;"),
        1
    );
    assert_eq!(
        direct(
            "src/queue/mod.rs",
            "use std::time::{Duration, Instant};\nlet t = Instant::now();"
        ),
        1
    );
    assert_eq!(
        direct(
            "src/queue/mod.rs",
            "use tokio::time::Instant;\nlet t = Instant::now();"
        ),
        0
    );
    assert_eq!(direct("src/spool/storage.rs", "OpenOptions::new()"), 0);
    assert_eq!(
        direct(
            "src/route/mod.rs",
            "fn f() {}\n#[cfg(test)]\nmod tests { fs::write(a, b) }"
        ),
        0
    );
    assert_eq!(direct("src/deliver/local.rs", "OpenOptions::new()"), 0);

    let text = "| a | b |\n\n| crate | for |\n|---|---|\n| `x`, y | `p`, q | r |\n| z |  |\n\nrest | of | it";
    let rows = [("x, y", "p, q"), ("z", "")].map(|(a, b)| (a.to_owned(), b.to_owned()));
    assert_eq!(table_below(text, "| crate |"), rows);
    assert_eq!(
        dependencies(
            "[package]\nname = \"n\"\n[dependencies]\na.workspace = true\n[dev-dependencies]\nb = \"1\"\n[lints]\nc = 1"
        ),
        ["a", "b"]
    );

    let page = ".BR else (1)\n.SH \"SEE ALSO\"\n.BR a (1),\n.BR b.toml (5)\n";
    assert_eq!(pages_named(page), ["a.1", "b.toml.5"]);

    let file = |name: &str, text: &str| file_complaints(name, text).len();
    assert_eq!(file("src/route/helpers.rs", "//! x"), 1);
    assert_eq!(file("src/util/mod.rs", "//! x"), 1);
    assert_eq!(file("src/route/mod.rs", "use x;\n//! x"), 1);
    assert_eq!(file("src/route/mod.rs", "//! x"), 0);
}

/// What `name` imports of ours without being granted it.
fn import_complaints(name: &str, text: &str) -> Vec<String> {
    let room = room_of(name);
    let Some((_, granted)) = ROOMS.iter().find(|(known, _)| *known == room) else {
        return vec![format!(
            "{name}: `{room}` has no row in the table of tests/tidy.rs"
        )];
    };
    if granted.contains(&"*") {
        return Vec::new();
    }
    let code = without_comments(text);
    let mut complaints = Vec::new();
    for prefix in ["crate::", "diligence::", "super::"] {
        for imported in paths_after(&code, prefix) {
            let Some((other, _)) = ROOMS.iter().find(|(known, _)| *known == imported) else {
                continue;
            };
            let is_granted = *other == room
                || granted.contains(other)
                || (granted.contains(&"L0") && L0.contains(other));
            // `super::` reaches another room only where no neighbour has that name.
            let is_neighbour = prefix == "super::" && has_neighbour(name, other);
            if !is_granted && !is_neighbour {
                complaints.push(format!("{name}: `{room}` may not import `{other}`"));
            }
        }
    }
    complaints
}

/// Which libraries `name` uses without belonging to their places.
fn library_complaints(name: &str, text: &str) -> Vec<String> {
    let code = without_comments(text);
    let mut complaints = Vec::new();
    for (library, places) in LIBRARIES {
        let is_granted = places
            .iter()
            .any(|place| name == *place || (place.ends_with('/') && name.starts_with(place)));
        if !is_granted && names_crate(&code, library) {
            complaints.push(format!("{name}: `{library}` may not be named here"));
        }
    }
    complaints
}

/// Which calls of `name` go past `Storage` and `Clock`, tests left out.
fn direct_call_complaints(name: &str, text: &str) -> Vec<String> {
    if !SEALED.iter().any(|folder| name.starts_with(folder)) || SEALED_BUT.contains(&name) {
        return Vec::new();
    }
    let code = without_comments(text);
    let code = code.split("#[cfg(test)]").next().unwrap_or_default();
    let mut complaints: Vec<String> = DIRECT
        .iter()
        .filter(|call| code.contains(*call))
        .map(|call| format!("{name}: `{call}` goes past the seam"))
        .collect();
    let has_tokio_instant = code.contains("tokio::time::Instant")
        || paths_after(code, "tokio::time::").contains(&"Instant".to_owned());
    if code.contains("Instant::now") && !has_tokio_instant && complaints.is_empty() {
        complaints.push(format!("{name}: `Instant::now` goes past the clock"));
    }
    complaints
}

/// What is wrong with the name and the opening of `name`.
fn file_complaints(name: &str, text: &str) -> Vec<String> {
    let mut complaints = Vec::new();
    let is_vague = Path::new(name).with_extension("").iter().any(|part| {
        let part = part.to_string_lossy();
        part == "util" || VAGUE.iter().any(|vague| part == *vague)
    });
    if is_vague {
        complaints.push(format!("{name}: a name that does not say what is inside"));
    }
    if !text.starts_with("//!") {
        complaints.push(format!("{name}: does not open with `//!`"));
    }
    complaints
}

/// The first two cells of each row of the table whose heading begins so, without backquotes.
fn table_below(text: &str, heading: &str) -> Vec<(String, String)> {
    let mut lines = text.lines().skip_while(|line| !line.starts_with(heading));
    let rows = lines.by_ref().skip(2).take_while(|l| l.starts_with('|'));
    rows.map(|row| {
        let row = row.replace('`', "");
        let mut cells = row.split('|').skip(1).map(|cell| cell.trim().to_owned());
        (cells.next().unwrap(), cells.next().unwrap())
    })
    .collect()
}

/// The files of the manual pages that a page's last section refers to.
fn pages_named(page: &str) -> Vec<String> {
    page.lines()
        .skip_while(|line| line.replace('"', "") != ".SH SEE ALSO")
        .filter_map(|line| line.strip_prefix(".BR "))
        .filter_map(|reference| reference.trim_end_matches([',', '.']).split_once(" ("))
        .map(|(name, section)| format!("{name}.{}", section.trim_end_matches(')')))
        .collect()
}

/// The dependencies that a manifest names, those of tests included.
fn dependencies(manifest: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut is_inside = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            is_inside = matches!(line, "[dependencies]" | "[dev-dependencies]");
        } else if is_inside && !line.starts_with('#') && !line.trim().is_empty() {
            names.extend(line.split(['.', ' ', '=']).next());
        }
    }
    names
}

/// The module of `src/` that a file belongs to: `spool` for `src/spool/journal.rs` and for `src/spool.rs`.
fn room_of(name: &str) -> String {
    name.trim_start_matches("src/")
        .split('/')
        .next()
        .unwrap_or_default()
        .trim_end_matches(".rs")
        .to_owned()
}

/// Whether a file or folder named `module` lies in the room of `name`.
fn has_neighbour(name: &str, module: &str) -> bool {
    let folder = root().join("src").join(room_of(name));
    folder.join(format!("{module}.rs")).exists() || folder.join(module).exists()
}

/// The first path segments that follow `prefix` anywhere in `code`, those of a `{...}` group included.
fn paths_after(code: &str, prefix: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        let is_whole = !code[..at]
            .chars()
            .next_back()
            .is_some_and(|c| c.is_alphanumeric() || c == '_');
        if !is_whole {
            continue;
        }
        let rest = &code[at + prefix.len()..];
        match rest.strip_prefix('{') {
            None => found.push(identifier(rest)),
            Some(group) => found.extend(group_heads(group)),
        }
    }
    found
}

/// The first segment of each member of a `{a::b, c::{d, e}}` group, given from behind its opening brace.
fn group_heads(group: &str) -> Vec<String> {
    let mut heads = Vec::new();
    let mut depth = 0_u32;
    let mut is_at_head = true;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => is_at_head = true,
            c if c.is_whitespace() => {}
            _ if depth == 0 && is_at_head => {
                heads.push(identifier(&group[at..]));
                is_at_head = false;
            }
            _ => {}
        }
    }
    heads
}

fn identifier(text: &str) -> String {
    text.chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}

/// Whether `code` has a path that begins with the crate `library`.
fn names_crate(code: &str, library: &str) -> bool {
    code.match_indices(library).any(|(at, _)| {
        let before = code[..at].trim_end_matches("::");
        let starts = !before
            .chars()
            .next_back()
            .is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':' || c == '.');
        // A local module of the same name is reached through a path and so does not count.
        let is_path_inside = code[..at].ends_with("::") && !before.is_empty() && {
            before.ends_with(|c: char| c.is_alphanumeric() || c == '_')
        };
        starts && !is_path_inside && code[at + library.len()..].starts_with("::")
    })
}

/// The text without `//` and `/* */` comments and without the insides of string literals.
fn without_comments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if rest.starts_with("//") {
            rest = rest.find('\n').map_or("", |end| &rest[end..]);
        } else if rest.starts_with("/*") {
            rest = rest.find("*/").map_or("", |end| &rest[end + 2..]);
        } else if let Some(literal) = rest.strip_prefix("r#\"") {
            rest = literal.find("\"#").map_or("", |end| &literal[end + 2..]);
            out.push_str("\"\"");
        } else if rest.starts_with("'\"'") {
            rest = &rest[3..];
            out.push_str("' '");
        } else if let Some(literal) = rest.strip_prefix('"') {
            rest = behind_string(literal);
            out.push_str("\"\"");
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    out
}

/// What follows a string literal, given from behind its opening quote.
fn behind_string(text: &str) -> &str {
    let mut is_escaped = false;
    for (at, c) in text.char_indices() {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return &text[at + 1..],
            _ => {}
        }
    }
    ""
}

/// The name below the workspace and the text of every Rust file in `folders`.
fn sources(folders: &[&str]) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut waiting: Vec<PathBuf> = folders.iter().map(|f| root().join(f)).collect();
    while let Some(folder) = waiting.pop() {
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root()).unwrap().to_string_lossy();
                found.push((name.into_owned(), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(!found.is_empty(), "no source found in {folders:?}");
    found.sort();
    found
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
