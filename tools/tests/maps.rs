//! makemap, editmap and praliases as programs: what they print and end with.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

const SOURCE: &str = "# comment line\nkey1\tvalue1\nKey2  value two with spaces \nkey3 v3\n\n   indented value-of-indented\nKEY4:\tv4\nuser@example.test\t  bob\n";

/// Runs a program in `dir` and answers its exit status, standard output and standard error, one after the other.
fn run(dir: &Path, line: &str, input: &str) -> String {
    let mut words = line.split(' ');
    let program = match words.next().unwrap() {
        "makemap" => env!("CARGO_BIN_EXE_makemap"),
        "editmap" => env!("CARGO_BIN_EXE_editmap"),
        "praliases" => env!("CARGO_BIN_EXE_praliases"),
        other => panic!("{other}"),
    };
    let mut child = Command::new(program)
        .args(
            words
                .filter(|word| !word.is_empty())
                .map(|word| word.replace('_', " ")),
        )
        .current_dir(dir)
        .env_remove("DILIGENCE_SANDBOX")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that refuses its command line ends without reading.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let done = child.wait_with_output().unwrap();
    let mut text = format!("{}\n", done.status.code().unwrap());
    let _ = write!(
        text,
        "{}{}",
        String::from_utf8_lossy(&done.stdout),
        String::from_utf8_lossy(&done.stderr)
    );
    text
}

#[test]
fn bad_lines_are_reported_and_the_rest_is_built() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for kind in ["hash", "btree"] {
        assert_eq!(
            run(dir, &format!("makemap {kind} m"), SOURCE),
            "65\nmakemap: m: line 6: syntax error (leading space)\n"
        );
        let dumped = run(dir, &format!("makemap -u {kind} m"), "");
        let mut lines: Vec<&str> = dumped.lines().collect();
        lines.sort_unstable();
        assert_eq!(
            lines,
            [
                "0",
                "key1\tvalue1",
                "key2\tvalue two with spaces ",
                "key3\tv3",
                "key4:\tv4",
                "user@example.test\tbob"
            ]
        );
    }
    assert_eq!(
        run(dir, "makemap hash m", "good yes\nkeyonly\n:colon x\n"),
        "65\nmakemap: m: line 2: no RHS for LHS keyonly\n"
    );
    assert_eq!(run(dir, "makemap -e hash m", "good yes\nkeyonly\n"), "0\n");
    assert_eq!(run(dir, "editmap -q hash m keyonly", ""), "0\n\n");
}

#[test]
fn duplicate_keys_follow_the_switches() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let source = "a 1\nb 2\na 3\n";
    for (switch, built, dumped) in [
        (
            "",
            "65\nmakemap: m: line 3: key a: duplicate key\n",
            "0\na\t1\nb\t2\n",
        ),
        ("-r", "0\n", "0\na\t3\nb\t2\n"),
        ("-d", "0\n", "0\na\t1\na\t3\nb\t2\n"),
        (
            "-vr",
            "0\nkey=`a', val=`1'\nkey=`b', val=`2'\nkey=`a', val=`3'\n",
            "0\na\t3\nb\t2\n",
        ),
    ] {
        assert_eq!(
            run(dir, &format!("makemap {switch} btree m"), source),
            built,
            "{switch}"
        );
        assert_eq!(run(dir, "makemap -u btree m", ""), dumped, "{switch}");
    }
    run(dir, "makemap btree m", "k 1\n");
    assert_eq!(
        run(dir, "makemap -o btree m", "new 2\nk changed\n"),
        "65\nmakemap: m: line 2: key k: duplicate key\n"
    );
    assert_eq!(run(dir, "makemap -o -r btree m", "k changed\n"), "0\n");
    assert_eq!(
        run(dir, "makemap -u -t : btree m", ""),
        "0\nk:changed\nnew:2\n"
    );
}

#[test]
fn case_comment_delimiter_and_nul_follow_the_switches() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    assert_eq!(
        run(
            dir,
            "makemap -f -D % -t : btree m.db",
            "% c\nKey:v 1\n#k:v\n"
        ),
        "0\n"
    );
    assert!(dir.join("m.db").exists());
    assert_eq!(run(dir, "makemap -u btree m", ""), "0\n#k\tv\nKey\tv 1\n");
    assert_eq!(run(dir, "makemap -N hash n", "k v\n"), "0\n");
    assert_eq!(run(dir, "editmap -N -q hash n K", ""), "0\nv\n");
    assert_eq!(
        run(dir, "editmap -q hash n K", ""),
        "69\neditmap: couldn't find key k in map n\n"
    );
}

#[test]
fn what_cannot_be_done_is_refused_with_the_right_status() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    assert!(run(dir, "makemap", "").starts_with("64\nUsage: makemap [-C cffile]"));
    assert!(run(dir, "makemap hash m extra", "").starts_with("64\nUsage"));
    assert!(
        run(dir, "makemap -z hash m", "").starts_with("64\nmakemap: invalid option -- 'z'\nUsage")
    );
    assert_eq!(
        run(dir, "makemap -l", ""),
        "0\nhash\nbtree\ncdb\nlmdb\nredb\nfixed\nimplicit\n"
    );
    assert_eq!(
        run(dir, "makemap foo m", ""),
        "73\nmakemap: error opening type foo map m: Unknown database type\n"
    );
    assert_eq!(
        run(dir, "makemap -C /nonexist.toml hash m", "a b\n"),
        "66\nmakemap: /nonexist.toml: No such file or directory\n"
    );
    assert_eq!(
        run(dir, "makemap hash /no/such/dir/m", "a b\n"),
        "73\nmakemap: error opening type hash map /no/such/dir/m: No such file or directory\n"
    );
    assert_eq!(
        run(dir, "makemap -u hash gone", ""),
        "73\nmakemap: error opening type hash map gone: No such file or directory\n"
    );
    run(dir, "makemap hash m", "a b\n");
    assert!(
        run(dir, "makemap -u btree m", "")
            .starts_with("73\nmakemap: error opening type btree map m: Invalid argument")
    );
    assert!(
        run(dir, "editmap -q btree m a", "")
            .starts_with("73\neditmap: error opening type btree map m: Invalid argument")
    );
    std::os::unix::fs::symlink("m.db", dir.join("link.db")).unwrap();
    assert_eq!(
        run(dir, "makemap hash link", "a c\n"),
        "73\nmakemap: error opening type hash map link: Symbolic links not allowed\n"
    );
    assert_eq!(run(dir, "makemap -s hash link", "a c\n"), "0\n");
    assert!(dir.join("link.db").is_symlink());
    assert_eq!(run(dir, "editmap -q hash m a", ""), "0\nc\n");
}

#[test]
fn editmap_changes_one_key() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    run(dir, "makemap hash m", SOURCE);
    assert_eq!(run(dir, "editmap -q hash m KEY1", ""), "0\nvalue1\n");
    assert_eq!(
        run(dir, "editmap -f -q hash m KEY1", ""),
        "69\neditmap: couldn't find key KEY1 in map m\n"
    );
    assert_eq!(run(dir, "editmap -u hash m key1 newval", ""), "0\n");
    assert_eq!(run(dir, "editmap -u hash m brand-new two_words", ""), "0\n");
    assert_eq!(run(dir, "editmap -q hash m key1", ""), "0\nnewval\n");
    assert_eq!(
        run(dir, "editmap -q hash m brand-new", ""),
        "0\ntwo words\n"
    );
    assert_eq!(run(dir, "editmap -x hash m key1", ""), "0\n");
    assert_eq!(
        run(dir, "editmap -x hash m key1", ""),
        "0\neditmap: key key1 doesn't exist in map m\n"
    );
    assert!(run(dir, "editmap -u hash m k", "").starts_with("64\nUsage"));
    assert!(run(dir, "editmap -q -x hash m k", "").starts_with("64\nUsage"));
    assert!(run(dir, "editmap", "").starts_with("64\nUsage: editmap"));
    assert!(
        run(dir, "editmap -q hash nofile k", "")
            .starts_with("73\neditmap: error opening type hash map nofile: No such file")
    );
}

#[test]
fn alias_sources_are_recognised_and_access_maps_never_taken_for_them() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let aliases = "# c\nRoot: alice\ninfo: alice,\n bob\nbroken line\n";
    assert_eq!(
        run(dir, "makemap -v hash aliases", aliases),
        "65\nmakemap: aliases: the source is an alias file; building an alias map as newaliases does\n\
         aliases: 2 aliases, longest 10 bytes, 23 bytes total\nmakemap: aliases: line 5: missing colon\n"
    );
    assert_eq!(
        run(dir, "praliases -f aliases INFO none", ""),
        "0\nINFO:alice, bob\nnone: No such key\n"
    );
    assert_eq!(run(dir, "editmap -N -q hash aliases @", ""), "0\n@\n");
    assert_eq!(run(dir, "makemap -o hash aliases", "more: bob\n"), "0\n");
    assert_eq!(
        run(dir, "praliases -f aliases root more", ""),
        "0\nroot:alice\nmore:bob\n"
    );
    assert_eq!(run(dir, "makemap hash aliases.sales", "a: b\n"), "0\n");
    assert_eq!(run(dir, "praliases -f aliases.sales", ""), "0\na:b\n");
    assert_eq!(run(dir, "makemap --aliases hash other", "a: b\n"), "0\n");
    assert_eq!(run(dir, "praliases -f other", ""), "0\na:b\n");
    // The same text under another name, or another text under this one, is makemap's own syntax.
    assert_eq!(
        run(
            dir,
            "makemap hash access",
            "ClientRate: 10\nConnect:x REJECT\n"
        ),
        "0\n"
    );
    assert_eq!(
        run(dir, "editmap -q hash access ClientRate:", ""),
        "0\n10\n"
    );
    assert_eq!(run(dir, "makemap hash aliases", "root alice\n"), "0\n");
    assert_eq!(run(dir, "editmap -q hash aliases root", ""), "0\nalice\n");
    assert_eq!(run(dir, "makemap -f hash aliases", "Root: alice\n"), "0\n");
    assert_eq!(
        run(dir, "editmap -f -q hash aliases Root:", ""),
        "0\nalice\n"
    );
    assert!(
        run(dir, "makemap --aliases -d hash aliases", "")
            .starts_with("64\nmakemap: --aliases cannot be used")
    );
}

#[test]
fn praliases_reports_maps_it_cannot_read() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    assert_eq!(
        run(dir, "praliases -f nothing", ""),
        "0\npraliases: nothing: open: No such file or directory\n"
    );
    assert_eq!(
        run(dir, "praliases -C /nonexist.toml", ""),
        "66\npraliases: /nonexist.toml: No such file or directory\n"
    );
    assert!(
        run(dir, "praliases -x", "")
            .starts_with("64\npraliases: invalid option -- 'x'\nusage: praliases")
    );
    assert!(run(dir, "praliases --sandbox /nonexist", "").starts_with("78\npraliases: "));
}

#[test]
fn maps_are_converted_between_classes() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    assert_eq!(
        run(dir, "makemap -N hash m", "a 1\nb two words\nc 3\n"),
        "0\n"
    );
    for to in ["btree", "cdb", "lmdb", "redb", "fixed"] {
        let line = format!("makemap --convert hash:m {to}:n");
        assert_eq!(run(dir, &line, ""), "0\n", "{to}");
        let dumped = run(dir, &format!("makemap -u {to} n"), "");
        let mut lines: Vec<&str> = dumped.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["0", "a\t1", "b\ttwo words", "c\t3"], "{to}");
        // The trailing NUL came along.
        assert_eq!(run(dir, &format!("editmap -N -q {to} n a"), ""), "0\n1\n");
    }
    std::fs::write(dir.join("passwd"), "x:p:1\ny:p:2\nx:p:3\n").unwrap();
    assert_eq!(
        run(dir, "makemap --convert text:-z:_-v2_passwd hash:uids", ""),
        "65\nmakemap: text:-z: -v2 passwd: key x: duplicate key\n"
    );
    assert_eq!(run(dir, "editmap -q hash uids y", ""), "0\n2\n");
    assert_eq!(run(dir, "makemap --convert btree:n text:plain", ""), "0\n");
    let plain = std::fs::read_to_string(dir.join("plain")).unwrap();
    assert_eq!(plain, "a\t1\nb\ttwo words\nc\t3\n");
    // What cannot be is refused, and leaves what was there.
    assert!(run(dir, "makemap --convert hash:none hash:uids", "").starts_with("73\n"));
    assert!(run(dir, "makemap --convert regex:x hash:uids", "").starts_with("73\n"));
    assert!(run(dir, "makemap --convert hash:m sequence:x", "").starts_with("78\n"));
    assert!(run(dir, "makemap -u --convert hash:m btree:x", "").starts_with("64\n"));
    assert_eq!(run(dir, "editmap -q hash uids y", ""), "0\n2\n");
}

#[test]
fn praliases_reads_alias_files_that_have_no_database() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    std::fs::write(dir.join("a"), "root: alice\nbad line\n").unwrap();
    assert_eq!(run(dir, "praliases -f stab:a", ""), "0\nroot:alice\n");
    assert_eq!(
        run(dir, "praliases -f implicit:a Root x", ""),
        "0\nRoot:alice\nx: No such key\n"
    );
    assert_eq!(
        run(dir, "praliases -f stab:none", ""),
        "0\npraliases: none: open: No such file or directory\n"
    );
}
