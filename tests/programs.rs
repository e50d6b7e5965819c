//! Programs that nobody here wrote take our mail, read it, or read our log: s-nail, procmail, Dovecot, logwatch.
//!
//! procmail, Dovecot and logwatch come from `.ci/peers`, which unpacks them; they run beneath a `/usr` of their own that
//! has them in it. A test whose program is not there, or that may not have such a `/usr`, says that it is skipped.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/daemon.rs"]
mod daemon;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use daemon::{Daemon, Sandbox, wait_for};
use diligence_maps::{DuplicatePolicy, MapBuilder, MapKind, PublishOptions};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, getgid, getuid};

/// A sandbox with users bob, carol and dave, who have this process's rights.
struct Site {
    sandbox: Sandbox,
}

impl Site {
    fn new(aliases: &str, settings: &str) -> Self {
        let sandbox = Sandbox::new();
        sandbox.run("sendmail", &["-bi"], "");
        let site = Self { sandbox };
        let passwd = site.path("etc/passwd");
        let mut users = fs::read_to_string(&passwd).unwrap();
        for user in ["bob", "carol", "dave"] {
            let home = site.path("home").join(user);
            fs::create_dir_all(&home).unwrap();
            let (uid, gid, home) = (getuid(), getgid(), home.display());
            users.push_str(&format!("{user}:x:{uid}:{gid}::{home}:/bin/sh\n"));
        }
        fs::write(passwd, users).unwrap();
        fs::write(site.path("etc/mail/aliases"), site.filled(aliases)).unwrap();
        let built = site.sandbox.run("newaliases", &[], "");
        assert!(built.status.success(), "{built:?}");
        site.sandbox.configure(&site.filled(settings));
        site
    }

    fn path(&self, name: &str) -> PathBuf {
        self.sandbox.path().join(name)
    }

    /// A text with the sandbox's path for BOX.
    fn filled(&self, text: &str) -> String {
        text.replace("BOX", &self.sandbox.path().display().to_string())
    }

    fn script(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, self.filled(text)).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn log(&self) -> String {
        self.sandbox.text("var/log/maillog")
    }

    /// Waits for a line of the log with all of these parts.
    fn wait_for_line(&self, parts: &[&str]) -> String {
        wait_for(&format!("{parts:?} in the log"), || {
            let log = self.log();
            let line = log
                .lines()
                .find(|line| parts.iter().all(|part| line.contains(part)));
            line.map(str::to_owned)
        })
    }

    fn send(&self, daemon: &Daemon, to: &str, content: &str) -> String {
        let mut client = daemon.client().unwrap();
        client
            .send("s@sender.example.test", &[to], content)
            .unwrap()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("the log:\n{}", self.log());
            println!("Dovecot's:\n{}", self.sandbox.text("dovecot/log"));
        }
    }
}

/// The wrapper of `.ci/peers` that runs a program beneath a `/usr` with the unpacked ones in it, if `file` is among them
/// and such a `/usr` can be had here.
fn as_installed(file: &str) -> Option<PathBuf> {
    let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/peers");
    let wrapper = peers.join("bin/as-installed");
    if !peers.join("root").join(file).exists() || !wrapper.exists() {
        println!("SKIPPED: {file} is not there (.ci/peers)");
        return None;
    }
    let output = Command::new(&wrapper).arg("true").output().unwrap();
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        println!("SKIPPED: no mounts of one's own here: {why}");
        return None;
    }
    Some(wrapper)
}

fn s_nail(arguments: &[&str]) -> Option<String> {
    let found = Command::new("s-nail")
        .args(["-n", "-R"])
        .args(arguments)
        .env("TZ", "UTC")
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .output();
    let Ok(output) = found else {
        println!("SKIPPED: s-nail is not there");
        return None;
    };
    Some(format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    ))
}

/// All messages of a folder as mutt sees them, one behind the other. It wants a terminal, which script(1) gives it.
fn mutt(folder: &Path) -> Option<String> {
    let is_there = |program: &str| {
        let found = Command::new(program).arg("--version").output();
        found.is_ok_and(|output| output.status.success())
    };
    if !is_there("mutt") || !is_there("script") {
        println!("SKIPPED: mutt or script is not there");
        return None;
    }
    let own = tempfile::tempdir().unwrap();
    let (settings, out) = (own.path().join("muttrc"), own.path().join("out"));
    // A folder that is there: mutt would ask whether to make it.
    let folders = own.path().display();
    fs::write(
        &settings,
        format!("set folder={folders}\nset wait_key=no\nset pipe_split=no\nset pipe_sep=\"\"\n"),
    )
    .unwrap();
    let keys = format!(
        "<tag-pattern>~A<enter><tag-prefix><pipe-message>cat >{}<enter><exit>",
        out.display()
    );
    let command = format!(
        "mutt -n -R -F {} -f {} -e 'push \"{keys}\"'",
        settings.display(),
        folder.display()
    );
    let mut running = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .env("HOME", own.path())
        .env("TERM", "xterm")
        .env("LC_ALL", "C.UTF-8")
        // Open as long as mutt runs: the end of it would be a key.
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let status = wait_for("mutt's end", || running.try_wait().unwrap());
    assert!(status.success(), "mutt: {status}");
    Some(fs::read_to_string(&out).unwrap_or_default())
}

/// The lines that begin with `Subject:`.
fn subjects(text: &str) -> Vec<&str> {
    text.lines()
        .filter_map(|line| line.strip_prefix("Subject: "))
        .collect()
}

/// A content whose lines a reader of mailboxes could take for the next message.
const TREACHEROUS: &str = "Subject: second\n\nline one\nFrom a@b Mon Jan  1 00:00:00 2001\n\n\
                           From here on\n>From there\nthe end";

#[test]
fn s_nail_and_mutt_read_our_mailboxes_and_maildirs() {
    let site = Site::new("postmaster: bob\n", "");
    let daemon = site.sandbox.start();
    for content in ["Subject: first\n\nbody", TREACHEROUS, "Subject: third\n\n"] {
        let id = site.send(&daemon, "bob", content);
        site.wait_for_line(&[&id, "stat=Sent"]);
    }
    daemon.stop();
    let mailbox = site.path("var/mail/bob").display().to_string();
    let body =
        "\nline one\n>From a@b Mon Jan  1 00:00:00 2001\n\n>From here on\n>From there\nthe end\n";
    if let Some(text) = mutt(Path::new(&mailbox)) {
        assert_eq!(subjects(&text), ["first", "second", "third"], "{text}");
        assert!(text.contains(body), "{text}");
    }
    let Some(headers) = s_nail(&["-H", "-f", &mailbox]) else {
        return;
    };
    let lines: Vec<_> = headers.lines().filter(|l| l.contains("s@sender")).collect();
    assert_eq!(lines.len(), 3, "{headers}");
    for (line, subject) in lines.iter().zip(["first", "second", "third"]) {
        assert!(line.contains(subject), "{headers}");
    }
    let text = s_nail(&["-Y", "type 2", "-Y", "exit", "-f", &mailbox]).unwrap();
    assert!(text.contains(body), "{text}");
    assert!(text.trim_end().ends_with("the end"), "{text}");

    let site = Site::new(
        "postmaster: bob\n",
        "mailer = [\"md, P=[MAILDIR], F=lw, A=MAILDIR $z/Maildir\"]\nlocal_mailer = \"md\"",
    );
    let daemon = site.sandbox.start();
    for content in ["Subject: first\n\nbody", TREACHEROUS] {
        let id = site.send(&daemon, "bob", content);
        site.wait_for_line(&[&id, "stat=Sent"]);
    }
    daemon.stop();
    if let Some(text) = mutt(&site.path("home/bob/Maildir")) {
        let mut found = subjects(&text);
        found.sort_unstable();
        assert_eq!(found, ["first", "second"], "{text}");
        assert!(text.contains("\nline one\nFrom a@b "), "{text}");
    }
    let maildir = format!("maildir://{}", site.path("home/bob/Maildir").display());
    let headers = s_nail(&["-H", "-f", &maildir]).unwrap();
    let lines: Vec<_> = headers.lines().filter(|l| l.contains("s@sender")).collect();
    assert_eq!(lines.len(), 2, "{headers}");
    let text = s_nail(&["-Y", "type 2", "-Y", "exit", "-f", &maildir]).unwrap();
    assert!(text.contains("\nline one\nFrom a@b "), "{text}");
    assert!(text.trim_end().ends_with("the end"), "{text}");
}

#[test]
fn procmail_is_the_local_mailer_from_submission_to_mailbox() {
    let Some(wrapper) = as_installed("usr/bin/procmail") else {
        return;
    };
    let site = Site::new(
        "postmaster: bob\n",
        "mailer = [\"procmail, P=BOX/procmail, F=lsDFMAw5:/|@qSPfhn9, A=procmail -Y -a $h -d $u\"]\n\
         local_mailer = \"procmail\"",
    );
    // procmail looks users up where the system does, and has the folder of mailboxes compiled in.
    site.script(
        "procmail",
        &format!(
            "#!/bin/sh\nexec {} /bin/sh -c 'mount --bind BOX/etc/passwd /etc/passwd && \
             mount --bind BOX/var/mail /var/mail && exec procmail \"$@\"' procmail \"$@\"\n",
            wrapper.display()
        ),
    );
    site.script(
        "home/carol/.procmailrc",
        "LOGFILE=$HOME/procmail.log\nDETAIL=$1\n:0\n* ^Subject: list\n$HOME/lists-$DETAIL\n\n\
         :0\n* ^Subject: no\n{\n  EXITCODE=77\n  :0\n  /dev/null\n}\n\
         :0\n* ^Subject: later\n{\n  EXITCODE=75\n  :0\n  /dev/null\n}\n",
    );
    fs::set_permissions(
        site.path("home/carol/.procmailrc"),
        fs::Permissions::from_mode(0o644),
    )
    .unwrap();
    let daemon = site.sandbox.start();
    // The notes' way: submission, daemon, procmail, mailbox.
    let sent = site.sandbox.run(
        "sendmail",
        &["-i", "bob"],
        "Subject: way\n\nhello\nFrom nobody\n",
    );
    assert!(sent.status.success(), "{sent:?}");
    site.wait_for_line(&["to=<bob@", "mailer=local", "stat=Sent"]);
    let mailbox = site.sandbox.text("var/mail/bob");
    assert!(mailbox.starts_with("From "), "{mailbox}");
    assert!(mailbox.contains("\nReturn-Path: <"), "{mailbox}");
    assert!(mailbox.contains("\nhello\n>From nobody\n"), "{mailbox}");

    let id = site.send(&daemon, "carol+rust", "Subject: list\n\nfor the list");
    site.wait_for_line(&[&id, "mailer=local", "dsn=2.0.0, stat=Sent"]);
    let filed = site.sandbox.text("home/carol/lists-rust");
    assert!(filed.starts_with("From s@sender.example.test "), "{filed}");
    assert!(filed.ends_with("\nfor the list\n\n"), "{filed}");
    let id = site.send(&daemon, "carol", "Subject: no\n\nx");
    site.wait_for_line(&[&id, "dsn=5.0.0, stat=Insufficient permission"]);
    let id = site.send(&daemon, "carol", "Subject: later\n\nx");
    site.wait_for_line(&[&id, "dsn=4.0.0, stat=Deferred: local mailer ("]);
    daemon.stop();
}

/// A Dovecot with its LMTP server, all of whose files are in one folder.
struct Dovecot {
    child: Child,
}

impl Dovecot {
    /// Knows bob and carol.
    fn start(wrapper: &Path, folder: &Path, port: u16) -> Self {
        for name in ["base", "state"] {
            fs::create_dir_all(folder.join(name)).unwrap();
        }
        let here = folder.display();
        let (mut uid, mut gid) = (getuid(), getgid());
        let home = folder.join("home");
        fs::create_dir_all(&home).unwrap();
        if uid.is_root() {
            // Mail of root's is none that Dovecot takes; its user has to get at the folder.
            (uid, gid) = (Uid::from_raw(65534), Gid::from_raw(65534));
            nix::unistd::chown(&home, Some(uid), Some(gid)).unwrap();
            for above in folder.ancestors().take(3) {
                fs::set_permissions(above, fs::Permissions::from_mode(0o755)).unwrap();
            }
        }
        let mut users = String::new();
        for user in ["bob", "carol"] {
            users.push_str(&format!("{user}:{{PLAIN}}x\n"));
        }
        fs::write(folder.join("users"), users).unwrap();
        fs::write(
            folder.join("dovecot.conf"),
            format!(
                "protocols = lmtp\nbase_dir = {here}/base\nstate_dir = {here}/state\nlog_path = {here}/log\nssl = no\n\
                 default_login_user = root\ndefault_internal_user = root\ndefault_internal_group = root\n\
                 first_valid_uid = 0\nfirst_valid_gid = 0\nmail_location = maildir:~/Maildir\n\
                 mail_plugin_dir = /usr/lib/dovecot/modules\npostmaster_address = postmaster@example.test\n\
                 hostname = dovecot.example.test\nauth_username_format = %Ln\n\
                 passdb {{\n driver = passwd-file\n args = {here}/users\n}}\n\
                 userdb {{\n driver = static\n args = uid={uid} gid={gid} home={here}/home/%n\n}}\n\
                 service lmtp {{\n unix_listener {here}/lmtp {{\n  mode = 0600\n }}\n \
                 inet_listener lmtp {{\n  address = 127.0.0.1\n  port = {port}\n }}\n}}\n"
            ),
        )
        .unwrap();
        let mut child = Command::new(wrapper)
            .args(["dovecot", "-F", "-c"])
            .arg(folder.join("dovecot.conf"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        wait_for("Dovecot's socket", || {
            assert_eq!(child.try_wait().unwrap(), None, "Dovecot ended");
            std::os::unix::net::UnixStream::connect(folder.join("lmtp")).ok()
        });
        Self { child }
    }

    fn stop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        let _ = kill(pid, Signal::SIGTERM);
        wait_for("Dovecot's end", || self.child.try_wait().unwrap());
    }
}

impl Drop for Dovecot {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
            let _ = kill(pid, Signal::SIGTERM);
            let _ = self.child.wait();
        }
    }
}

/// The messages of a Maildir's `new`.
fn new_mail(maildir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(maildir.join("new")) else {
        return Vec::new();
    };
    entries
        .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect()
}

#[test]
fn dovecot_takes_local_mail_over_lmtp() {
    let Some(wrapper) = as_installed("usr/lib/dovecot/lmtp") else {
        return;
    };
    // A port nobody has: asked of the system, and given back a moment before Dovecot takes it.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    for transport in [
        "A=FILE BOX/dovecot/lmtp".to_owned(),
        format!("A=TCP 127.0.0.1 {port}"),
    ] {
        let site = Site::new(
            "both: bob, carol\nhalf: bob, dave\npostmaster: carol\n",
            &format!(
                "mailer = [\"dovecot, P=[IPC], F=lsDFMAw5:/|@qSXzn9, {transport}\"]\nlocal_mailer = \"dovecot\""
            ),
        );
        let folder = site.path("dovecot");
        let mut dovecot = Dovecot::start(&wrapper, &folder, port);
        let daemon = site.sandbox.start();
        let id = site.send(&daemon, "both", TREACHEROUS);
        let line = site.wait_for_line(&[&id, "bob", "stat=Sent"]);
        assert!(line.contains("mailer=local"), "{line}");
        site.wait_for_line(&[&id, "carol", "stat=Sent"]);
        for user in ["bob", "carol"] {
            let mail = new_mail(&folder.join("home").join(user).join("Maildir"));
            let [mail] = mail.as_slice() else {
                panic!("{mail:?}");
            };
            assert!(
                mail.contains("Return-Path: <s@sender.example.test>"),
                "{mail}"
            );
            assert!(
                mail.replace('\r', "").ends_with(
                    "From a@b Mon Jan  1 00:00:00 2001\n\nFrom here on\n>From there\nthe end\n"
                ),
                "{mail}"
            );
        }
        // One that Dovecot does not know fails, beside one that it does.
        let id = site.send(&daemon, "half", "Subject: half\n\nx");
        site.wait_for_line(&[&id, "to=bob", "stat=Sent"]);
        let line = site.wait_for_line(&[&id, "to=dave", "dsn=5.1.1"]);
        assert!(line.contains("stat=User unknown"), "{line}");
        // With Dovecot gone the mail waits, and is delivered when it is there again.
        dovecot.stop();
        let id = site.send(&daemon, "bob", "Subject: waits\n\nx");
        wait_for("the deferral in the queue", || {
            site.sandbox
                .mailq()
                .contains("Connection refused")
                .then_some(())
        });
        let mut dovecot = Dovecot::start(&wrapper, &folder, port);
        site.sandbox.run("sendmail", &["-q"], "");
        site.wait_for_line(&[&id, "stat=Sent"]);
        daemon.stop();
        dovecot.stop();
    }
}

/// What a list manager's wrapper does, and what it insists on: its arguments, a mailbox's first line, plain line ends,
/// no environment but its own. It sends the list's mail by `sendmail`, with the list's own sender.
const LIST_MANAGER: &str = r#"#!/usr/bin/perl
use strict;
sub refuse { my ($code, $why) = @_; print "list manager: $why\n"; exit $code; }
@ARGV == 2 && $ARGV[0] eq "post" or refuse(64, "usage: mailman post LIST");
for (keys %ENV) { /^(AGENT|TZ|PWD|SHLVL|_|PATH|OLDPWD|DILIGENCE_\w+)$/ or refuse(78, "who set $_ in the environment?"); }
$ENV{AGENT} eq "sendmail" or refuse(78, "no AGENT");
my @lines = <STDIN>;
shift(@lines) =~ /^From (\S+)  ?\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d \d{4}$/ or refuse(65, "no From line");
my $sender = $1;
grep { /\r/ } @lines and refuse(65, "a carriage return");
$ARGV[1] eq "closed" and refuse(77, "<$sender> may not post to $ARGV[1]");
my $body = 0;
for (@lines) { $body ||= /^$/; s/^Subject: /Subject: [$ARGV[1]] / unless $body; }
$ENV{PATH} = "/usr/bin:/bin";
open(my $out, "|-", "SENDMAIL", "--sandbox", "BOX", "-i", "-f", "$ARGV[1]-bounces\@lists.example.test", "bob", "carol")
    or refuse(75, "sendmail: $!");
print $out "List-Id: <$ARGV[1].lists.example.test>\n", @lines;
close($out) or refuse(75, "sendmail ended with $?");
"#;

#[test]
fn a_list_managers_pipe_gets_a_post_and_sends_it_to_the_members() {
    let site = Site::new(
        "postmaster: bob\nrustics: \"|BOX/mailman post rustics\"\nclosed: \"|BOX/mailman post closed\"\n",
        "",
    );
    site.script(
        "mailman",
        &LIST_MANAGER.replace("SENDMAIL", env!("CARGO_BIN_EXE_sendmail")),
    );
    let daemon = site.sandbox.start();
    let id = site.send(
        &daemon,
        "rustics",
        "To: rustics\nSubject: hello\n\nSubject: body",
    );
    site.wait_for_line(&[&id, "mailer=prog", "stat=Sent"]);
    for user in ["bob", "carol"] {
        let mail = wait_for("a member's copy", || {
            let text = site.sandbox.text(&format!("var/mail/{user}"));
            text.ends_with("\nSubject: body\n\n").then_some(text)
        });
        assert!(
            mail.starts_with("From rustics-bounces@lists.example.test "),
            "{mail}"
        );
        assert!(mail.contains("\nSubject: [rustics] hello\n"), "{mail}");
        assert!(
            mail.contains("\nList-Id: <rustics.lists.example.test>\n"),
            "{mail}"
        );
    }
    let id = site.send(&daemon, "closed", "Subject: x\n\nx");
    site.wait_for_line(&[&id, "dsn=5.0.0, stat=Insufficient permission"]);
    daemon.stop();
}

#[test]
fn logwatch_knows_every_line_of_our_log() {
    let Some(wrapper) = as_installed("usr/share/logwatch/scripts/services/sendmail") else {
        return;
    };
    let site = Site::new(
        "postmaster: bob\npipe: \"|exit 69\"\nlater: \"|exit 75\"\nlist: bob, carol\nfile: BOX/file.out\n",
        "host_name = \"mx.example.test\"",
    );
    let mut map = MapBuilder::new(MapKind::Hash, DuplicatePolicy::KeepFirst).unwrap();
    map.insert(b"to:forbidden.example.test", b"REJECT").unwrap();
    map.insert(b"from:spam.example.test", b"REJECT").unwrap();
    map.publish(&site.path("etc/mail/access.db"), &PublishOptions::default())
        .unwrap();
    let daemon = site.sandbox.start();
    let sent = site
        .sandbox
        .run("sendmail", &["-i", "bob"], "Subject: x\n\nx\n");
    assert!(sent.status.success(), "{sent:?}");
    for (to, part) in [
        ("bob", "stat=Sent"),
        ("list", "stat=Sent"),
        ("file", "stat=Sent"),
        ("pipe", "stat=Service unavailable"),
        ("later", "stat=Deferred"),
    ] {
        let id = site.send(&daemon, to, "Subject: x\n\nx");
        site.wait_for_line(&[&id, part]);
    }
    let mut client = daemon.client().unwrap();
    client
        .command("MAIL FROM:<s@sender.example.test>", "250")
        .unwrap();
    client.command("RCPT TO:<nosuchuser>", "550").unwrap();
    client
        .command("RCPT TO:<x@forbidden.example.test>", "550")
        .unwrap();
    // No VRFY: its line, which is Sendmail's to the letter, is one that logwatch does not know of anybody.
    client.command("HELP", "214").unwrap();
    client.command("NONSENSE", "500").unwrap();
    client.command("RCPT TO:<bob>", "250").unwrap();
    drop(client);
    let mut client = daemon.client().unwrap();
    client
        .command("MAIL FROM:<s@spam.example.test>", "55")
        .unwrap();
    drop(client);
    let mut client = daemon.client().unwrap();
    client.command("QUIT", "221").unwrap();
    site.wait_for_line(&["did not issue MAIL/EXPN/VRFY/ETRN"]);
    site.wait_for_line(&["nosuchuser", "User unknown"]);
    site.wait_for_line(&["ruleset=check_rcpt", "forbidden.example.test"]);
    site.sandbox.run("sendmail", &["-q"], "");
    daemon.stop();
    // The report about what the pipe refused has gone out, to a sender that has no host: that, too, is in the log.
    let log = site.log();
    for part in ["starting daemon", "stat=Sent", "DSN: "] {
        assert!(log.contains(part), "{part}: {log}");
    }
    // Where Debian's logwatch looks.
    fs::create_dir(site.path("logs")).unwrap();
    fs::copy(site.path("var/log/maillog"), site.path("logs/mail.log")).unwrap();
    let output = Command::new(wrapper)
        .args(["perl", "/usr/share/logwatch/scripts/logwatch.pl"])
        .args([
            "--service",
            "sendmail",
            "--range",
            "all",
            "--detail",
            "high",
        ])
        .args(["--output", "stdout", "--format", "text", "--logdir"])
        .arg(site.path("logs"))
        .output()
        .unwrap();
    let report = String::from_utf8_lossy(&output.stdout);
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(complaints, "");
    for part in [
        "sendmail Begin",
        "Bytes Transferred",
        "forbidden.example.test",
    ] {
        assert!(
            report.to_lowercase().contains(&part.to_lowercase()),
            "{part}: {report}\n{log}"
        );
    }
    assert!(!report.contains("Unmatched Entries"), "{report}\n{log}");
}
