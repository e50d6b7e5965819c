//! The installation as root has it: what transcript 02 shows of newaliases, `-bi` and `-bv`.
//!
//! In a place of its own (`support/place.rs`), which needs root and unshare(1); without them it says that it is skipped.
//! `.ci/run` runs it as root.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/place.rs"]
mod place;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use place::{BOB, PLACE, Place, can_run};

/// What a script prints in the place, whose path is left out, with the exit code of each of its programs.
fn says(place: &Place, script: &str) -> String {
    let prelude = format!(
        "m=\"$SENDMAIL -C {PLACE}/sendmail.toml\"; cd {PLACE}; a=etc/aliases; \
         t() {{ \"$@\" 2>&1; echo \"exit $?\"; }}\n"
    );
    let output = place.run(&format!("true\n{prelude}{script}"));
    let said = [output.stdout, output.stderr].concat();
    String::from_utf8(said)
        .unwrap()
        .replace(&format!("{PLACE}/"), "")
}

fn place() -> Option<Place> {
    can_run().then(Place::new)
}

#[test]
fn alias_files_are_rebuilt_and_their_faults_named() {
    let Some(place) = place() else { return };
    for (text, expected) in [
        (
            "# comment\nMAILER-DAEMON: postmaster\npostmaster: root\nSupport:\tbob\ninfo:\tbob, eve,\n\troot\n\
             list: :include:/etc/mail/lists/list1\nabuse: root,/var/log/abuse\nprog: \"|/usr/bin/vacation alice\"\n",
            "etc/aliases: 7 aliases, longest 30 bytes, 153 bytes total\nexit 0\n",
        ),
        (
            "root: bob\ndup: bob\ndup: eve\nDUP: root\n",
            "etc/aliases: line 3: dup... Warning: duplicate alias name dup\n\
             etc/aliases: line 4: DUP... Warning: duplicate alias name dup\n\
             etc/aliases: 4 aliases, longest 4 bytes, 26 bytes total\nexit 0\n",
        ),
        (
            "good: alice\nbadline alice\nother: bob\n",
            "etc/aliases: line 2: missing colon\n\
             etc/aliases: 2 aliases, longest 5 bytes, 17 bytes total\nexit 70\n",
        ),
        (
            "empty:\n: alice\nok: bob\n",
            "etc/aliases: line 1: empty:... missing value for alias\n\
             etc/aliases: line 2: : alice... illegal alias name\n\
             etc/aliases: 1 aliases, longest 3 bytes, 5 bytes total\nexit 70\n",
        ),
        (
            "   stray: alice\nok: bob\n",
            "etc/aliases: line 1: Non-continuation line starts with space\n\
             etc/aliases: 1 aliases, longest 3 bytes, 5 bytes total\nexit 70\n",
        ),
        (
            "user@remote.test: alice\nok: bob\n",
            "etc/aliases: line 1: user@remote.test... cannot alias non-local names\n\
             etc/aliases: 1 aliases, longest 3 bytes, 5 bytes total\nexit 70\n",
        ),
        // Neither a loop nor a list that is not there is looked for.
        (
            "a: b\nb: c\nc: a\nself: self\n",
            "etc/aliases: 4 aliases, longest 4 bytes, 14 bytes total\nexit 0\n",
        ),
        (
            "inc: :include:/etc/mail/lists/missing\nrel: :include:relative\n",
            "etc/aliases: 2 aliases, longest 32 bytes, 55 bytes total\nexit 0\n",
        ),
        // The last line needs no end.
        (
            "A: alice\n\nB: bob,\n  carol,\n\tdave\n# c\nlast: erin",
            "etc/aliases: 3 aliases, longest 17 bytes, 32 bytes total\nexit 0\n",
        ),
        (
            "list: alice,bob\nowner-list: carol\nlist-request: owner-list\n",
            "etc/aliases: 3 aliases, longest 10 bytes, 50 bytes total\nexit 0\n",
        ),
    ] {
        place.write("etc/aliases", text);
        assert_eq!(says(&place, "t $m -v -bi"), expected, "{text}");
    }
    let long: Vec<String> = (0..400).map(|n| format!("user{n}@ok.test")).collect();
    place.write(
        "etc/aliases",
        &format!("long: {}\nok: alice\n", long.join(", ")),
    );
    let expected = "etc/aliases: 2 aliases, longest 6688 bytes, 6699 bytes total\nexit 0\n";
    assert_eq!(says(&place, "t $m -bi extra words"), expected);
    let log = place.text("log");
    for line in [
        "alias database /mnt/etc/aliases rebuilt by root",
        "/mnt/etc/aliases: 2 aliases, longest 6688 bytes, 6699 bytes total",
        "NOQUEUE: SYSERR(root): /mnt/etc/aliases: line 2: missing colon",
        "NOQUEUE: SYSERR(root): /mnt/etc/aliases: line 1: Non-continuation line starts with space",
    ] {
        assert!(log.contains(line), "{line}: {log}");
    }
}

#[test]
fn what_others_may_write_or_nobody_may_read_is_not_rebuilt() {
    let Some(place) = place() else { return };
    place.write("etc/aliases", "root: bob\n");
    let built = "etc/aliases: 1 aliases, longest 3 bytes, 7 bytes total\nexit 0\n";
    let to_bob = "bob... deliverable: mailer local, user bob\nexit 0\n";
    let refused = |why: &str| format!("newaliases: cannot open etc/aliases: {why}\nexit 66\n");
    for (script, expected) in [
        ("chmod 664 $a; t $m -bi; chmod 644 $a", refused("Group writable file")),
        ("chmod 666 $a; t $m -bi; chmod 644 $a", refused("Group writable file")),
        ("chmod 646 $a; t $m -bi; chmod 644 $a", refused("World writable file")),
        ("chmod 000 $a; t $m -bi; chmod 644 $a", refused("Permission denied")),
        ("mv $a x; t $m -v -bi; mv x $a", refused("No such file or directory")),
        ("chown 52002 $a; t $m -bi; t $m -bv root; chown 0 $a", format!("{built}{to_bob}")),
        // Without the database the text is read, and with one that others may write nothing is.
        ("mv $a.db x; t $m -bv root; mv x $a.db; t $m -bv root", format!("{to_bob}{to_bob}")),
        ("touch $a; t $m -bv root", to_bob.to_owned()),
        ("chmod 664 $a.db; t $m -bi; t $m -bv root", format!("{built}{to_bob}")),
        (
            "chmod g+w etc; t $m -bi; t $m -bv root; chmod g-w etc",
            "sendmail.toml: line 7: fileclass: cannot open 'etc/local-host-names': Group writable directory\nexit 78\n\
             fileclass: cannot open 'etc/local-host-names': Group writable directory\nexit 78\n"
                .to_owned(),
        ),
        (
            "chmod o+w etc; t $m -v -bi; chmod o-w etc",
            "sendmail.toml: line 7: fileclass: cannot open 'etc/local-host-names': World writable directory\nexit 78\n"
                .to_owned(),
        ),
        ("chmod 666 etc/local-host-names; t $m -bi", built.to_owned()),
        (
            "mv etc/local-host-names x; t $m -v -bi; mv x etc/local-host-names",
            "sendmail.toml: line 7: fileclass: cannot open 'etc/local-host-names': No such file or directory\nexit 78\n"
                .to_owned(),
        ),
        (
            "mv mqueue x; t $m -v -bi; mv x mqueue",
            "can not chdir(mqueue/): No such file or directory\nexit 78\n".to_owned(),
        ),
        (
            "chmod g+w sendmail.toml; t $m -v -bi; chmod g-w sendmail.toml",
            format!("sendmail.toml: WARNING: dangerous write permissions\n{built}"),
        ),
    ] {
        assert_eq!(says(&place, script), expected, "{script}");
    }
    let missing = says(&place, "t $SENDMAIL -C /nonexistent.cf -bi");
    assert!(
        missing.contains("/nonexistent.cf: No such file or directory")
            && missing.ends_with("exit 78\n"),
        "{missing}"
    );
}

#[test]
fn who_is_not_root_rebuilds_nothing_and_is_answered_from_the_text() {
    let Some(place) = place() else { return };
    place.write("etc/aliases", "support: bob\ninfo: support, eve\n");
    says(&place, "$m -bi");
    fs::set_permissions(
        place.path("etc/aliases.db"),
        fs::Permissions::from_mode(0o640),
    )
    .unwrap();
    fs::set_permissions(place.path("log"), fs::Permissions::from_mode(0o666)).unwrap();
    let as_bob = |arguments: &str| {
        let reuid = format!("setpriv --reuid {BOB} --regid {BOB} --clear-groups");
        says(&place, &format!("t {reuid} $m {arguments}"))
    };
    assert_eq!(
        as_bob("-bi"),
        "Permission denied (real uid not trusted)\nexit 64\n"
    );
    assert!(
        place
            .text("log")
            .contains(&format!("user {BOB} attempted to rebuild the alias map"))
    );
    let notice = "Notice: -bv may give misleading output for non-privileged user\n";
    assert_eq!(
        as_bob("-bv support"),
        format!("{notice}bob... deliverable: mailer local, user bob\nexit 0\n")
    );
    assert_eq!(
        as_bob("-bv -v info nosuchuser"),
        format!(
            "{notice}WARNING: cannot open alias database etc/aliases; reading text version\n\
             info... aliased to support, eve\nsupport... aliased to bob\nnosuchuser... User unknown\n\
             eve... deliverable: mailer local, user eve\nbob... deliverable: mailer local, user bob\nexit 67\n"
        )
    );
}
