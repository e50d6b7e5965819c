//! makemap, editmap and praliases as programs: what they print and end with.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

#[path = "../../tests/support/fed.rs"]
mod fed;

use std::fmt::Write as _;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use fed::fed;

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
    let mut command = Command::new(program);
    command
        .args(
            words
                .filter(|word| !word.is_empty())
                .map(|word| word.replace('_', " ")),
        )
        .current_dir(dir)
        .env_remove("DILIGENCE_SANDBOX");
    let done = fed(&mut command, input);
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
fn a_command_line_is_read_as_sendmails_tools_read_it() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    // Options may stand behind the words, as glibc's getopt has it.
    assert_eq!(
        run(dir, "makemap hash m -v", "a 1\n"),
        "0\nkey=`a', val=`1'\n"
    );
    assert_eq!(run(dir, "editmap hash m a -q", ""), "0\n1\n");
    assert!(
        run(dir, "editmap -u hash m a -z", "")
            .starts_with("64\neditmap: invalid option -- 'z'\nUsage")
    );
    assert_eq!(run(dir, "editmap -u hash m -- a -z", ""), "0\n");
    assert_eq!(run(dir, "editmap -q hash m a", ""), "0\n-z\n");
    // The first character counts; none is no delimiter.
    assert_eq!(
        run(dir, "makemap -v -t :; hash m", "k:v;w\n"),
        "0\nkey=`k', val=`v;w'\n"
    );
    let empty = Command::new(env!("CARGO_BIN_EXE_makemap"))
        .args(["-v", "-t", "", "hash", "m"])
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(empty.stderr, b"Invalid separator\n");
    assert!(empty.status.success());
    // -d and -r together keep all values.
    assert_eq!(run(dir, "makemap -d -r btree m", "a 1\na 2\n"), "0\n");
    assert_eq!(run(dir, "makemap -u btree m", ""), "0\na\t1\na\t2\n");
    // Sendmail's usage, and ours behind it.
    for (line, usage) in [
        (
            "makemap",
            "64\nUsage: makemap [-C cffile] [-N] [-c cachesize] [-D commentchar]\n               \
             [-d] [-e] [-f] [-i type] [-l] [-o] [-r] [-s] [-t delimiter]\n               \
             [-u] [-v] type mapname\n",
        ),
        (
            "editmap",
            "64\nUsage: editmap [-C cffile] [-N] [-f] [-q|-u|-x] maptype mapname key [ \"value ...\" ]\n",
        ),
        (
            "praliases -x",
            "64\npraliases: invalid option -- 'x'\nusage: praliases [-C cffile] [-f aliasfile] [key ...]\n",
        ),
    ] {
        assert!(run(dir, line, "").starts_with(usage), "{line}");
    }
}

#[test]
fn adding_keeps_every_value_of_a_map_of_several() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for kind in ["hash", "btree", "cdb"] {
        let line = |switches: &str| format!("makemap {switches} {kind} m");
        assert_eq!(run(dir, &line("-d"), "a 1\na 2\nb 3\n"), "0\n");
        assert_eq!(
            run(dir, &line("-o"), "c 4\na 5\n"),
            "65\nmakemap: m: line 2: key a: duplicate key\n"
        );
        let listed = |text: &str| {
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort_unstable();
            lines
        };
        let dumped = listed(&run(dir, &line("-u"), ""));
        assert_eq!(dumped, ["0", "a\t1", "a\t2", "b\t3", "c\t4"], "{kind}");
        // As with libdb, to replace is to add where several values are kept.
        assert_eq!(run(dir, &line("-o -r"), "a 5\n"), "0\n");
        let dumped = listed(&run(dir, &line("-u"), ""));
        assert_eq!(
            dumped,
            ["0", "a\t1", "a\t2", "a\t5", "b\t3", "c\t4"],
            "{kind}"
        );
    }
    // A cdb map that holds one value a key is not taken for one of several.
    assert_eq!(run(dir, "makemap cdb single", "a 1\n"), "0\n");
    assert_eq!(run(dir, "makemap -o -r cdb single", "a 2\n"), "0\n");
    assert_eq!(run(dir, "makemap -u cdb single", ""), "0\na\t2\n");
    assert_eq!(
        run(dir, "makemap -o hash nothing", "a 1\n"),
        "73\nmakemap: error opening type hash map nothing: No such file or directory\n"
    );
}

#[test]
fn the_configuration_says_what_a_map_is() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let shown = dir.display();
    std::fs::write(
        dir.join("c.toml"),
        format!(
            "alias_file = \"btree:{shown}/al\"\naccess_db = \"hash {shown}/acc\"\n\
             virtusertable = \"cdb {shown}/v\"\n[map]\nmine = \"lmdb {shown}/mine\"\n"
        ),
    )
    .unwrap();
    for (name, kind) in [
        ("al", "btree"),
        ("acc", "hash"),
        ("v", "cdb"),
        ("mine", "lmdb"),
    ] {
        let line = format!("makemap -C c.toml -f cf {name}");
        assert_eq!(run(dir, &line, "a 1\n"), "0\n", "{name}");
        let dumped = run(dir, &format!("makemap -u {kind} {name}"), "");
        assert_eq!(dumped, "0\na\t1\n", "{name}");
    }
    assert_eq!(
        run(dir, "makemap -C c.toml cf other", "a 1\n"),
        "65\nmakemap: mapfile other: not found in c.toml\n"
    );
    assert_eq!(
        run(dir, "makemap -C c.toml -i btree cf other", "a 1\n"),
        "0\n"
    );
    assert_eq!(run(dir, "makemap -u btree other", ""), "0\na\t1\n");
}

#[test]
fn unsafe_places_are_warned_of_and_links_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let mode = |name: &str, mode| {
        std::fs::set_permissions(dir.join(name), Permissions::from_mode(mode)).unwrap();
    };
    std::fs::create_dir(dir.join("open")).unwrap();
    mode("open", 0o777);
    let warning = "WARNING: World writable directory open\n";
    for line in [
        "makemap hash open/m",
        "makemap -s hash open/m",
        "makemap -u hash open/m",
        "praliases -f open/m",
    ] {
        assert_eq!(run(dir, line, ""), format!("0\n{warning}"), "{line}");
    }
    assert_eq!(
        run(dir, "editmap -u hash open/m a 1", ""),
        format!("0\n{warning}")
    );
    mode("open", 0o775);
    assert_eq!(
        run(dir, "editmap -q hash open/m a", ""),
        "0\n1\nWARNING: Group writable directory open\n"
    );
    std::fs::write(
        dir.join("c.toml"),
        "dont_blame_sendmail = \"GroupWritableDirPathSafe\"\n",
    )
    .unwrap();
    assert_eq!(run(dir, "editmap -C c.toml -q hash open/m a", ""), "0\n1\n");
    // Links.
    run(dir, "makemap hash m", "a 1\n");
    std::os::unix::fs::symlink("m.db", dir.join("link.db")).unwrap();
    for line in [
        "makemap -u hash link",
        "makemap -o hash link",
        "editmap -q hash link a",
        "editmap -u hash link a 2",
    ] {
        let program = line.split(' ').next().unwrap();
        let refused = format!(
            "73\n{program}: error opening type hash map link: Symbolic links not allowed\n"
        );
        assert_eq!(run(dir, line, ""), refused, "{line}");
    }
    assert_eq!(run(dir, "makemap -s -u hash link", ""), "0\na\t1\n");
    std::fs::hard_link(dir.join("m.db"), dir.join("hard.db")).unwrap();
    for line in [
        "makemap hash m",
        "makemap -u hash m",
        "editmap -q hash m a",
        "editmap -x hash m a",
    ] {
        let program = line.split(' ').next().unwrap();
        let refused =
            format!("73\n{program}: error opening type hash map m: Hard links not allowed\n");
        assert_eq!(run(dir, line, ""), refused, "{line}");
    }
    assert!(
        run(dir, "makemap --convert hash:m btree:x", "")
            .starts_with("73\nmakemap: hash:m: Hard links")
    );
    std::fs::remove_file(dir.join("hard.db")).unwrap();
    // What may not be written, or read, is left alone, by root as well.
    mode("m.db", 0o400);
    let denied = "73\nmakemap: error opening type hash map m: Permission denied\n";
    assert_eq!(run(dir, "makemap hash m", "b 1\n"), denied);
    assert_eq!(run(dir, "makemap -u hash m", ""), "0\na\t1\n");
    mode("m.db", 0);
    assert_eq!(run(dir, "makemap -u hash m", ""), denied);
    assert_eq!(
        run(dir, "praliases -f m", ""),
        "0\npraliases: m: open: Permission denied\n"
    );
    std::fs::create_dir(dir.join("d.db")).unwrap();
    assert_eq!(
        run(dir, "makemap hash d", ""),
        "73\nmakemap: error opening type hash map d: Regular files only\n"
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
    // A map that is not there is made by -u, and by nothing else.
    assert_eq!(
        run(dir, "editmap -x hash new key1", ""),
        "0\neditmap: key key1 doesn't exist in map new\n"
    );
    assert!(!dir.join("new.db").exists());
    assert_eq!(run(dir, "editmap -u implicit new K v", ""), "0\n");
    assert_eq!(run(dir, "editmap -q hash new k", ""), "0\nv\n");
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
    // A text has the mode of any new map; it was once written by other rules.
    let mode = |name: &str| {
        std::fs::metadata(dir.join(name))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(mode("plain"), 0o640);
    std::fs::set_permissions(dir.join("plain"), Permissions::from_mode(0o664)).unwrap();
    assert_eq!(run(dir, "makemap --convert btree:n text:plain", ""), "0\n");
    assert_eq!(mode("plain"), 0o644);
    let plain = std::fs::read_to_string(dir.join("plain")).unwrap();
    assert_eq!(plain, "a\t1\nb\ttwo words\nc\t3\n");
    // What cannot be is refused, and leaves what was there.
    assert!(run(dir, "makemap --convert hash:none hash:uids", "").starts_with("73\n"));
    assert!(run(dir, "makemap --convert regex:x hash:uids", "").starts_with("73\n"));
    assert!(run(dir, "makemap --convert hash:m sequence:x", "").starts_with("78\n"));
    assert!(run(dir, "makemap -u --convert hash:m btree:x", "").starts_with("64\n"));
    assert_eq!(run(dir, "editmap -q hash uids y", ""), "0\n2\n");
}

/// The maps that an alias map is made of were once those of the system's configuration, whatever -C said.
#[test]
fn praliases_knows_the_maps_of_its_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let shown = dir.display();
    let config = format!("alias_file = \"sequence:one\"\n[map]\none = \"hash {shown}/one\"\n");
    std::fs::write(dir.join("c.toml"), config).unwrap();
    std::fs::write(dir.join("wrong.toml"), "no_such_option = 1\n").unwrap();
    assert_eq!(run(dir, "makemap hash one", "root alice\n"), "0\n");
    for line in ["praliases -C c.toml", "praliases -C c.toml -f sequence:one"] {
        assert_eq!(run(dir, line, ""), "0\nroot:alice\n", "{line}");
    }
    let refused = run(dir, "praliases -C wrong.toml -f sequence:one", "");
    assert!(
        refused.starts_with("78\npraliases: wrong.toml"),
        "{refused}"
    );
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
