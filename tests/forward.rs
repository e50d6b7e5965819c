//! Aliases, `.forward`s, lists, programs and files, with the real programs in a sandbox: what transcripts 02, 04 and 62 show.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/daemon.rs"]
mod daemon;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use daemon::{Daemon, Sandbox, wait_for};

/// A sandbox with more users, aliases of the test's own, and files as it likes.
struct Site {
    sandbox: Sandbox,
}

impl Site {
    fn new(aliases: &str) -> Self {
        let sandbox = Sandbox::new();
        sandbox.run("sendmail", &["-bi"], "");
        let site = Self { sandbox };
        let passwd = site.path("etc/passwd");
        let mut users = fs::read_to_string(&passwd).unwrap();
        for user in ["bob", "carol", "dave", "erin"] {
            users.push_str(&format!("{user}:x:0:0::/home/{user}:/bin/sh\n"));
            fs::create_dir_all(site.path(&format!("home/{user}"))).unwrap();
        }
        fs::write(passwd, users).unwrap();
        let home = site.path("home").display().to_string();
        site.aliases(&aliases.replace("HOME", &home));
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.sandbox.path().join(name)
    }

    fn aliases(&self, text: &str) {
        fs::write(self.path("etc/mail/aliases"), text).unwrap();
        let built = self.sandbox.run("newaliases", &[], "");
        assert!(built.status.success(), "{built:?}");
    }

    fn write(&self, name: &str, mode: u32, text: &str) -> PathBuf {
        let path = self.path(name);
        let home = self.path("home").display().to_string();
        fs::write(&path, text.replace("HOME", &home)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    /// What `sendmail -bv` prints, with the sandbox's path left out, and its exit code.
    fn verify(&self, arguments: &[&str]) -> (String, i32) {
        let all: Vec<&str> = ["-bv"].iter().chain(arguments).copied().collect();
        let output = self.sandbox.run("sendmail", &all, "");
        let text = String::from_utf8(output.stdout).unwrap();
        let home = self.path("home").display().to_string();
        (text.replace(&home, "HOME"), output.status.code().unwrap())
    }

    fn expect(&self, address: &str, lines: &[&str], code: i32) {
        let (text, found) = self.verify(&[address]);
        assert_eq!(text.lines().collect::<Vec<_>>(), lines, "-bv {address}");
        assert_eq!(found, code, "-bv {address}: {text}");
    }

    fn log(&self) -> String {
        self.sandbox.text("var/log/maillog")
    }

    fn send(&self, daemon: &Daemon, to: &str) -> String {
        let mut client = daemon.client().unwrap();
        client
            .send(
                "s@sender.example.test",
                &[to],
                "Subject: x\n\nbody\nFrom line",
            )
            .unwrap()
    }

    fn wait_for_line(&self, id: &str, part: &str) -> String {
        wait_for(&format!("{part:?} in the log of {id}"), || {
            let log = self.log();
            let line = log.lines().find(|l| l.contains(id) && l.contains(part));
            line.map(str::to_owned)
        })
    }
}

#[test]
fn every_address_is_verified_as_in_the_transcripts() {
    let transcript = include_str!("fixtures/verify.txt");
    let site = Site::new("postmaster: root\n");
    let lists = site.path("lists").display().to_string();
    let (head, answers) = transcript.split_once("--answers--\n").unwrap();
    let aliases = head.split_once("--aliases--\n").unwrap().1;
    fs::create_dir(&lists).unwrap();
    fs::set_permissions(&lists, fs::Permissions::from_mode(0o755)).unwrap();
    let list =
        "# a comment line\nalice, bob\n\"|/bin/cat\"\n/var/log/incfile\n\nnosuch1\nx@ok.test\n";
    site.write("lists/list1", 0o644, list);
    site.write("lists/badperm", 0o666, "alice\n");
    site.aliases(&aliases.replace("LISTS", &lists));
    let passwd = site.path("etc/passwd");
    let mut users = fs::read_to_string(&passwd).unwrap();
    for user in ["root", "alice"] {
        users.push_str(&format!("{user}:x:0:0::/home/{user}:/bin/sh\n"));
        fs::create_dir_all(site.path(&format!("home/{user}"))).unwrap();
    }
    fs::write(passwd, users).unwrap();
    site.sandbox
        .configure("host_name = \"gold.example.test\"\n");
    fs::write(site.path("etc/mail/local-host-names"), "gold\n").unwrap();
    let mut count = 0;
    for case in answers.split("$\t").filter(|case| !case.is_empty()) {
        let (arguments, rest) = case.split_once('\n').unwrap();
        let arguments: Vec<&str> = arguments.split('\t').collect();
        let arguments: Vec<String> = arguments
            .iter()
            .map(|argument| argument.replace("LISTS", &lists))
            .collect();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (lines, code) = rest.trim_end().rsplit_once("exit ").unwrap();
        let output = site.sandbox.run("sendmail", &arguments, "");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap().replace(&lists, "LISTS");
        assert_eq!(said, lines, "{arguments:?}");
        let code: i32 = code.parse().unwrap();
        assert_eq!(output.status.code().unwrap(), code, "{arguments:?}");
        count += 1;
    }
    assert!(count > 60, "{count} cases");
}

#[test]
fn every_kind_of_forward_is_verified_as_sendmail_does() {
    let site = Site::new("postmaster: bob\n");
    let mailbox = |user: &str| format!("{user}... deliverable: mailer local, user {user}");
    let dave = mailbox("dave");
    let bob = mailbox("bob");
    site.expect("dave", &[&dave], 0);
    let forward = |text: &str| site.write("home/dave/.forward", 0o644, text);
    forward("bob\n");
    site.expect("dave", &[&bob], 0);
    site.expect("dave+ext", &[&bob], 0);
    site.expect(
        "\\dave",
        &["\\dave... deliverable: mailer local, user \\dave"],
        0,
    );
    forward("\"|/bin/cat > /dev/null\"\n");
    let prog = "\"|/bin/cat > /dev/null\"... deliverable: mailer prog, user |/bin/cat > /dev/null";
    site.expect("dave", &[prog], 0);
    forward("HOME/dave/mbox\n");
    site.expect(
        "dave",
        &["HOME/dave/mbox... deliverable: mailer *file*, user HOME/dave/mbox"],
        0,
    );
    // Only a # that begins the line makes it a comment, or #@# on its own.
    forward("# comment\n\nbob\ncarol, erin # x\n");
    let odd = "HOME/dave/.forward: line 4: erin # x... User unknown";
    site.expect("dave", &[odd, &bob, &mailbox("carol")], 67);
    forward("# comment\n\nbob\ncarol, erin #@# x\n");
    site.expect("dave", &[&bob, &mailbox("erin"), &mailbox("carol")], 0);
    forward("nosuchuser\n");
    let unknown = "HOME/dave/.forward: line 1: nosuchuser... User unknown";
    site.expect("dave", &[unknown], 67);
    forward("");
    site.expect("dave", &[&dave], 0);
    // Forwarding to itself means the mailbox, with what else stands there.
    forward("dave, bob\n");
    site.expect("dave", &[&dave, &bob], 0);
    forward("dave+x\n");
    let plussed = "dave+x... deliverable: mailer local, host x, user dave";
    site.expect("dave", &[plussed], 0);
    // A loop ends at the first of its names that is a user.
    forward("erin\n");
    site.write("home/erin/.forward", 0o644, "dave\n");
    site.expect("dave", &[&dave], 0);
    site.write("home/dave/list", 0o644, "bob\n");
    forward(":include:HOME/dave/list\n");
    site.expect("dave", &[&bob], 0);
    let (text, _) = site.verify(&["-v", "dave"]);
    assert!(
        text.starts_with(
            "HOME/dave/.forward: line 1: forwarding to :include:HOME/dave/list\n\
             HOME/dave/.forward: line 1: :include:HOME/dave/list... including file HOME/dave/list\n\
             HOME/dave/list: line 1: sending to bob\n"
        ),
        "{text}"
    );
}

#[test]
fn a_forward_that_is_not_safe_is_passed_over_and_logged_with_its_reason() {
    let site = Site::new("postmaster: bob\n");
    let dave = "dave... deliverable: mailer local, user dave";
    let path = site.path("home/dave/.forward");
    let passed_over = |why: &str| {
        site.expect("dave", &[dave], 0);
        let line = format!("forward {}: {why}", path.display());
        assert!(site.log().contains(&line), "{line}: {}", site.log());
        let _ = fs::remove_file(&path);
        let _ = fs::remove_dir(&path);
    };
    site.write("home/dave/.forward", 0o664, "bob\n");
    passed_over("Group writable file");
    site.write("home/dave/.forward", 0o646, "bob\n");
    passed_over("World writable file");
    // A link counts as what it leads to, and so does the way there.
    let target = site.write("home/dave/elsewhere", 0o664, "bob\n");
    symlink(&target, &path).unwrap();
    passed_over("Group writable file");
    fs::create_dir(site.path("home/dave/open")).unwrap();
    site.write("home/dave/open/forward", 0o644, "bob\n");
    fs::set_permissions(
        site.path("home/dave/open"),
        fs::Permissions::from_mode(0o777),
    )
    .unwrap();
    symlink("open/forward", &path).unwrap();
    passed_over("World writable directory");
    symlink(".forward", &path).unwrap();
    passed_over("Too many levels of symbolic links");
    fs::create_dir(&path).unwrap();
    passed_over("Regular files only");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o644)).unwrap();
    passed_over("Regular files only");
    site.write("home/dave/.forward", 0o644, "bob\n");
    fs::set_permissions(site.path("home/dave"), fs::Permissions::from_mode(0o757)).unwrap();
    passed_over("World writable directory");
}

#[test]
fn directories_of_forwards_are_passed_over_in_silence_if_asked_for() {
    let site = Site::new("postmaster: bob\n");
    site.sandbox
        .configure("dont_blame_sendmail = [\"DontWarnForwardFileInUnsafeDirPath\"]\n");
    let path = site.write("home/dave/.forward", 0o644, "bob\n");
    fs::set_permissions(site.path("home/dave"), fs::Permissions::from_mode(0o757)).unwrap();
    let dave = "dave... deliverable: mailer local, user dave";
    site.expect("dave", &[dave], 0);
    let line = format!("forward {}: ", path.display());
    assert!(!site.log().contains(&line), "{}", site.log());
    // What is wrong with the file itself is told all the same.
    fs::set_permissions(site.path("home/dave"), fs::Permissions::from_mode(0o755)).unwrap();
    site.write("home/dave/.forward", 0o646, "bob\n");
    site.expect("dave", &[dave], 0);
    let line = format!("{line}World writable file");
    assert!(site.log().contains(&line), "{}", site.log());
}

#[test]
fn lists_give_their_members_and_say_where_they_are_wrong() {
    let site = Site::new(
        "list: :include:HOME/list1\nlist2: :include:HOME/missing\nlist3: :include:HOME/bad\n\
         rel: :include:relative\nboth: :include:HOME/missing, bob\nnest: :include:HOME/nest\n\
         empty: :include:/dev/null\n",
    );
    let text = "# a comment line\ndave, bob\n\"|/bin/cat\"\nHOME/incfile\n\nnosuch1\nx@ok.test\n";
    site.write("home/list1", 0o644, text);
    site.write("home/bad", 0o666, "bob\n");
    site.write(
        "home/nest",
        0o644,
        ":include:HOME/list1\n:include:HOME/nest\n",
    );
    let members = [
        "HOME/list1: line 6: nosuch1... User unknown",
        "bob... deliverable: mailer local, user bob",
        "dave... deliverable: mailer local, user dave",
        "\"|/bin/cat\"... deliverable: mailer prog, user |/bin/cat",
        "HOME/incfile... deliverable: mailer *file*, user HOME/incfile",
        "x@ok.test... deliverable: mailer esmtp, host ok.test, user x@ok.test",
    ];
    site.expect("list", &members, 67);
    site.expect("nest", &members, 67);
    site.expect(
        "list2",
        &[":include:HOME/missing... Cannot open HOME/missing: No such file or directory"],
        64,
    );
    site.expect(
        "list3",
        &[":include:HOME/bad... Cannot open HOME/bad: Group writable file"],
        64,
    );
    site.expect(
        "rel",
        &[":include:relative... Cannot open relative: Permission denied"],
        64,
    );
    // What can be delivered is, and the rest is reported.
    let daemon = site.sandbox.start();
    let id = site.send(&daemon, "both");
    site.wait_for_line(&id, "to=bob,");
    let failed = site.wait_for_line(&id, "to=:include:");
    assert!(failed.contains("dsn=5.2.4, stat="), "{failed}");
    assert!(failed.contains("No such file or directory"), "{failed}");
    // Alone, the list is named where the alias is meant.
    let id = site.send(&daemon, "list2");
    let missing = site.path("home/missing");
    let missing = missing.display();
    let text =
        format!("DSN: :include:{missing}... Cannot open {missing}: No such file or directory");
    site.wait_for_line(&id, &text);
    daemon.stop();
}

#[test]
fn nobody_mails_to_programs_files_and_lists_directly() {
    let site = Site::new("postmaster: bob\n");
    for (target, what) in [
        ("\"|/bin/cat\"", "programs"),
        ("/etc/passwd", "files"),
        (":include:/etc/list", ":include:s"),
    ] {
        let line = format!("{target}... Cannot mail directly to {what}");
        site.expect(target, &[&line], 64);
    }
}

#[test]
fn programs_and_files_get_the_message_and_their_exit_codes_count() {
    let site = Site::new(
        "pipe: \"|cat > HOME/pipe.out; echo said\"\nfile: HOME/file.out\nmixed: bob, HOME/file.out\n\
         exec: HOME/exec\nnull: /dev/null\nr64: \"|exit 64\"\nr67: \"|exit 67\"\nr69: \"|echo not today; exit 69\"\n\
         r75: \"|exit 75\"\nr99: \"|exit 99\"\nrsig: \"|kill -9 $$\"\nr71: \"|exit 71\"\nnever: \"|exec sleep 1000\"\n\
         reads: \"|exit 0\"\nloud: \"|yes\"\nstays: \"|sleep 1000 & echo $! > HOME/stays.pid; exit 0\"\n",
    );
    site.write("home/exec", 0o755, "old\n");
    site.sandbox.configure("program_time_limit = \"2s\"\n");
    let daemon = site.sandbox.start();
    let sent = |to: &str, part: &str| {
        let id = site.send(&daemon, to);
        site.wait_for_line(&id, part)
    };
    let line = sent("pipe", "mailer=prog");
    assert!(line.contains("ctladdr=<pipe>"), "{line}");
    assert!(line.contains("dsn=2.0.0, stat=Sent"), "{line}");
    let piped = site.sandbox.text("home/pipe.out");
    assert!(piped.starts_with("From s@sender.example.test "), "{piped}");
    assert!(
        piped.ends_with("\nSubject: x\n\nbody\nFrom line\n"),
        "{piped}"
    );
    assert!(!piped.contains('\r'));
    sent("file", "mailer=*file*, pri=");
    let file = site.sandbox.text("home/file.out");
    assert!(file.starts_with("From s@sender.example.test "), "{file}");
    assert!(
        file.contains("\nReturn-Path: <s@sender.example.test>\n"),
        "{file}"
    );
    assert!(file.ends_with("\nbody\n>From line\n\n"), "{file}");
    let mode = fs::metadata(site.path("home/file.out"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    sent("mixed", "to=bob, ");
    let line = sent("exec", "mailer=*file*");
    assert!(
        line.contains("dsn=5.0.0, stat=Can't create output"),
        "{line}"
    );
    assert_eq!(site.sandbox.text("home/exec"), "old\n");
    sent("null", "to=/dev/null, ");
    for (to, part) in [
        ("r64", "dsn=5.0.0, stat=Command line usage error"),
        ("r67", "dsn=5.1.1, stat=User unknown"),
        ("r69", "dsn=5.0.0, stat=Service unavailable"),
        ("r71", "dsn=4.0.0, stat=Operating system error"),
        (
            "r75",
            "dsn=4.0.0, stat=Deferred: prog mailer (/bin/sh) exited with EX_TEMPFAIL",
        ),
        ("r99", "dsn=5.3.0, stat=unknown mailer error 99"),
        (
            "rsig",
            "dsn=4.0.0, stat=Deferred: prog mailer (/bin/sh) died with signal 9",
        ),
        (
            "never",
            "dsn=4.0.0, stat=Deferred: prog mailer (/bin/sh) took longer than 2 s",
        ),
        (
            "loud",
            "dsn=4.0.0, stat=Deferred: prog mailer (/bin/sh) took longer than 2 s",
        ),
        ("reads", "dsn=2.0.0, stat=Sent"),
        ("stays", "dsn=2.0.0, stat=Sent"),
    ] {
        sent(to, part);
    }
    let stays: i32 = site.sandbox.text("home/stays.pid").trim().parse().unwrap();
    // What it left behind is its own affair; here it is ours.
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(stays),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    daemon.stop();
}

#[test]
fn a_report_shows_what_the_program_said_and_goes_to_the_owner_of_the_list() {
    let site =
        Site::new("owned: \"|echo not today; exit 69\"\nowner-owned: carol\npostmaster: bob\n");
    let daemon = site.sandbox.start();
    site.send(&daemon, "owned");
    let report = wait_for("a report", || {
        let text = fs::read_to_string(site.path("var/mail/carol")).ok()?;
        text.contains("multipart/report").then_some(text)
    });
    assert!(
        report.contains("\nnot today\n554 5.0.0 Service unavailable\n"),
        "{report}"
    );
    assert!(
        report.contains("\"|echo not today; exit 69\"\n"),
        "{report}"
    );
    // Transcript 60: what a program is has no domain.
    let fields: Vec<&str> = report
        .lines()
        .skip_while(|line| !line.starts_with("Final-Recipient: RFC822; owned@"))
        .skip(1)
        .take_while(|line| !line.starts_with("Last-Attempt"))
        .collect();
    let expected = [
        "X-Actual-Recipient: X-Unix; |echo not today; exit 69",
        "Action: failed",
        "Status: 5.5.0",
        "Diagnostic-Code: X-Unix; 69",
    ];
    assert_eq!(fields, expected, "{report}");
    assert!(
        !site.path("var/mail/bob").exists(),
        "the sender is not told"
    );
    daemon.stop();
}

#[test]
fn what_a_list_with_an_owner_delivers_has_the_owner_as_sender() {
    let site = Site::new("owned: bob\nowner-owned: carol, dave\n");
    let daemon = site.sandbox.start();
    site.send(&daemon, "owned");
    let mail = wait_for("the mail", || {
        let text = fs::read_to_string(site.path("var/mail/bob")).ok()?;
        text.contains("body").then_some(text)
    });
    assert!(mail.starts_with("From owner-owned@"), "{mail}");
    daemon.stop();
}

#[test]
fn local_mail_goes_to_maildirs_when_a_mailer_says_so() {
    let site = Site::new("postmaster: bob\n");
    site.sandbox.configure(
        "mailer = [\"md, P=[MAILDIR], F=lw, A=MAILDIR $z/Maildir\"]\nlocal_mailer = \"md\"\n",
    );
    let daemon = site.sandbox.start();
    let id = site.send(&daemon, "bob");
    let line = site.wait_for_line(&id, "stat=Sent");
    assert!(line.contains("mailer=local"), "{line}");
    let mut found = fs::read_dir(site.path("home/bob/Maildir/new")).unwrap();
    let text = fs::read_to_string(found.next().unwrap().unwrap().path()).unwrap();
    assert!(
        text.starts_with("Return-Path: <s@sender.example.test>\n"),
        "{text}"
    );
    assert_eq!(
        fs::read_dir(site.path("home/bob/Maildir/tmp"))
            .unwrap()
            .count(),
        0
    );
    daemon.stop();
}

#[test]
fn local_mail_goes_to_procmail_with_its_arguments_when_a_mailer_says_so() {
    let site = Site::new("postmaster: bob\n");
    let out = site.path("home/args");
    let script = site.write(
        "home/deliver",
        0o755,
        &format!(
            "#!/bin/sh\necho \"$@\" > {0}\necho $AGENT >> {0}\ncat >> {0}\n",
            out.display()
        ),
    );
    site.sandbox.configure(&format!(
        "mailer = [\"procmail, P={}, F=lsDFMAw5:/|@qSPfhn9, A=procmail -a $h -d $u\"]\nlocal_mailer = \"procmail\"\n",
        script.display()
    ));
    let daemon = site.sandbox.start();
    let id = site.send(&daemon, "bob+det.ail");
    let line = site.wait_for_line(&id, "stat=Sent");
    assert!(line.contains("mailer=local"), "{line}");
    let said = fs::read_to_string(&out).unwrap();
    assert!(
        said.starts_with("-f s@sender.example.test -a det.ail -d bob\nsendmail\nReturn-Path: "),
        "{said}"
    );
    daemon.stop();
}

#[test]
fn a_list_that_is_larger_than_a_record_reaches_everybody_once() {
    const MEMBERS: usize = 6_000;
    let site = Site::new("big: :include:HOME/big\npostmaster: bob\n");
    // An update may have a quarter of a segment: this list takes several, the outcomes too.
    site.sandbox.configure("segment_size = \"1M\"\n");
    let mut members = String::from("bob\n");
    for member in 0..MEMBERS {
        members.push_str(&format!(
            "member{member:05}@somewhere.far.away.example.test\n"
        ));
    }
    members.push_str("nosuch1\n");
    site.write("home/big", 0o644, &members);
    let daemon = site.sandbox.start();
    let id = site.send(&daemon, "big");
    site.wait_for_line(&id, "member05999@");
    // Local mail waits for the whole expansion, too.
    site.wait_for_line(&id, "to=bob,");
    let listed = wait_for("every member in the listing, deferred", || {
        let output = site.sandbox.run("mailq", &[], "");
        let text = String::from_utf8(output.stdout).unwrap();
        let count = text.matches("@somewhere.far.away.").count();
        (count >= MEMBERS && !text.contains(":rest:")).then_some(text)
    });
    daemon.stop();
    for member in 0..MEMBERS {
        let address = format!("member{member:05}@");
        assert_eq!(listed.matches(&address).count(), 1, "{address}");
    }
    let log = site.log();
    assert!(!log.contains("not recorded"), "{log}");
    let mailbox = fs::read_to_string(site.path("var/mail/bob")).unwrap();
    assert_eq!(mailbox.matches("\nSubject: x\n").count(), 1, "{mailbox}");
    // The spool holds it as it was, once more after a start.
    let daemon = site.sandbox.start();
    let output = site.sandbox.run("mailq", &[], "");
    let text = String::from_utf8(output.stdout).unwrap();
    let count = text.matches("@somewhere.far.away.").count();
    assert_eq!(count, MEMBERS);
    daemon.stop();
}

#[test]
fn names_of_dont_blame_sendmail_let_pass_what_they_say_and_no_more() {
    let site = Site::new("soft: HOME/soft\nhard: HOME/hard\n");
    site.write("home/target", 0o600, "");
    symlink(site.path("home/target"), site.path("home/soft")).unwrap();
    site.write("home/one", 0o600, "");
    fs::hard_link(site.path("home/one"), site.path("home/hard")).unwrap();
    let forward = "\"|cat > HOME/dave/out\", bob\n";
    site.write("home/dave/.forward", 0o664, forward);
    let home = |user: &str, mode| {
        let path = site.path(&format!("home/{user}"));
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    site.write(
        "home/erin/.forward",
        0o644,
        "\"|cat > HOME/erin/out\", bob\n",
    );
    home("erin", 0o777);
    let outcomes = |daemon: &Daemon, expected: [&str; 4]| {
        for (to, part) in ["soft", "hard", "dave", "erin"].iter().zip(expected) {
            let id = site.send(daemon, to);
            site.wait_for_line(&id, part);
        }
    };
    // The mailbox gets what a file that is passed over would have sent elsewhere.
    let daemon = site.sandbox.start();
    let refused = "stat=Can't create output";
    outcomes(&daemon, [refused, refused, "mailer=local", "mailer=local"]);
    daemon.stop();
    let set = |names: &str| {
        let path = site.path("etc/mail/sendmail.toml");
        let text = fs::read_to_string(&path).unwrap();
        let kept: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with("dont_blame_sendmail"))
            .collect();
        let text = format!("dont_blame_sendmail = {names}\n{}\n", kept.join("\n"));
        fs::write(path, text).unwrap();
    };
    // Read, but what it names acts for nobody.
    set(
        "[\"FileDeliveryToSymLink\", \"GroupWritableForwardFile\", \"ForwardFileInUnsafeDirPath\"]",
    );
    let daemon = site.sandbox.start();
    let unsafe_address = "stat=Unsafe for mailing to programs";
    outcomes(
        &daemon,
        ["stat=Sent", refused, unsafe_address, unsafe_address],
    );
    daemon.stop();
    assert!(site.sandbox.text("home/target").contains("body"));
    assert_eq!(site.sandbox.text("home/dave/out"), "");
    assert_eq!(site.sandbox.text("home/erin/out"), "");
    set(
        "[\"FileDeliveryToHardLink\", \"GroupWritableForwardFile\", \"GroupWritableForwardFileSafe\", \
         \"ForwardFileInUnsafeDirPath\", \"ForwardFileInUnsafeDirPathSafe\"]",
    );
    let daemon = site.sandbox.start();
    let ran = "mailer=prog, pri=";
    outcomes(&daemon, [refused, "stat=Sent", ran, ran]);
    daemon.stop();
    assert!(site.sandbox.text("home/one").contains("body"));
    for user in ["dave", "erin"] {
        assert!(
            site.sandbox
                .text(&format!("home/{user}/out"))
                .contains("body")
        );
    }
}

#[test]
fn lines_of_a_megabyte_are_bounded_and_each_has_its_outcome() {
    const MEGABYTE: usize = 1 << 20;
    let site = Site::new("postmaster: bob\n");
    let repeated = |text: &str| text.repeat(MEGABYTE / text.len() + 1);
    // One alias of a megabyte: names, one over and over, and one that is a megabyte long.
    let names: Vec<String> = (0..60_000).map(|n| format!("m{n:05}@ok.test")).collect();
    let many = repeated("bob,          ");
    let long = repeated("x");
    let deep = repeated("(");
    let open = format!("\"{}", repeated("y"));
    site.aliases(&format!(
        "wide: {}\nsame: {many} erin\nlong: bob, {long}\nname{long}: bob\ndeep: {deep} bob\nopen: {open}\n",
        names.join(", ")
    ));
    let (text, code) = site.verify(&["wide"]);
    assert_eq!((text.lines().count(), code), (60_000, 0));
    site.expect(
        "same",
        &[
            "erin... deliverable: mailer local, user erin",
            "bob... deliverable: mailer local, user bob",
        ],
        0,
    );
    let daemon = site.sandbox.start();
    // What the log and the listing show of it is short.
    let outcome = |to: &str, parts: &[&str]| {
        let id = site.send(&daemon, to);
        for part in parts {
            let line = site.wait_for_line(&id, part);
            assert!(line.len() < 4096, "{} bytes", line.len());
        }
        id
    };
    outcome("same", &["to=erin,bob,"]);
    outcome("long", &["to=bob,", "stat=User unknown"]);
    outcome("deep", &["stat="]);
    outcome("open", &["stat="]);
    let forward = |text: &str| {
        site.write("home/dave/.forward", 0o644, text);
    };
    forward(&format!("#{long}\n{many}\n"));
    outcome("dave", &["to=bob,"]);
    forward(&format!("bob, {long}\n"));
    outcome("dave", &["to=bob,", "stat=User unknown"]);
    forward(&format!("|{long}\n"));
    outcome("dave", &["mailer=prog"]);
    forward(&format!("/{}\n", repeated("d/")));
    outcome("dave", &["stat=Can't create output"]);
    forward(&format!("{deep}\nbob\n"));
    outcome("dave", &["stat="]);
    // Too many targets in one line, or in all: the mail waits, and nobody gets a part of it.
    forward(&format!("{}\n", "a,".repeat(100_001)));
    let id = outcome("dave", &["line 1: too many targets"]);
    assert!(!site.log().contains(&format!("{id}: to=a,")));
    // As large as it may be is read, beyond that it waits.
    forward(&"bob\n".repeat((32 << 20) / 4 + 1));
    outcome("dave", &["stat=Deferred: forward ", "File too large"]);
    // What is sound is delivered meanwhile.
    fs::remove_file(site.path("home/dave/.forward")).unwrap();
    outcome("erin", &["to=<erin>,"]);
    daemon.stop();
}
