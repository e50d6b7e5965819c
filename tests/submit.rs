//! The built `sendmail` as a submitter, as cron, PHP and mail readers call it, in a sandbox of its own: with an MTA that
//! a test plays on loopback, and without one. Also `newaliases` and `-bs`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/fed.rs"]
mod fed;

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::JoinHandle;
use std::time::Duration;

use fed::fed;

use tempfile::TempDir;

/// How long the played MTA waits for its client.
const WAIT: Duration = Duration::from_secs(60);

struct Sandbox {
    folder: TempDir,
}

impl Sandbox {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let sandbox = Self { folder };
        // The first use makes it.
        sandbox.run(&["-bi"], "");
        sandbox
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("sandbox").join(name)
    }

    fn run(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sendmail"));
        command
            .arg("--sandbox")
            .arg(self.path(""))
            .args(arguments)
            .env_remove("NAME")
            .env_remove("DILIGENCE_SANDBOX");
        fed(&mut command, input)
    }

    fn drops(&self) -> Vec<PathBuf> {
        let Ok(entries) = std::fs::read_dir(self.path("var/spool/clientmqueue/drop")) else {
            return Vec::new();
        };
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("var/log/maillog")).unwrap_or_default()
    }

    fn dead_letter(&self) -> PathBuf {
        self.path("home").join(login()).join("dead.letter")
    }

    /// Plays the MTA for one connection; recipients whose name begins with `nosuch` are refused, with `later` deferred.
    fn mta(&self) -> Mta {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::fs::write(self.path("run/smtp"), format!("{address}\n")).unwrap();
        Mta {
            thread: std::thread::spawn(move || serve(&listener.accept().unwrap().0)),
        }
    }
}

struct Mta {
    thread: JoinHandle<Vec<String>>,
}

impl Mta {
    /// The lines the client sent.
    fn lines(self) -> Vec<String> {
        self.thread.join().unwrap()
    }
}

fn serve(stream: &TcpStream) -> Vec<String> {
    stream.set_read_timeout(Some(WAIT)).unwrap();
    let mut out = stream.try_clone().unwrap();
    let mut say = |line: &str| out.write_all(format!("{line}\r\n").as_bytes()).unwrap();
    say("220 h.test ESMTP");
    let mut lines = Vec::new();
    let mut is_data = false;
    let mut accepted = 0;
    for line in BufReader::new(stream).lines() {
        let line = line.unwrap();
        lines.push(line.clone());
        let verb = line.get(..4).unwrap_or(&line).to_ascii_uppercase();
        if is_data {
            if line == "." {
                is_data = false;
                say("050 <bob@h.test>... Sent");
                say("250 2.0.0 QID1 Message accepted for delivery");
            }
            continue;
        }
        match verb.as_str() {
            "EHLO" => {
                accepted = 0;
                for line in [
                    "250-h.test",
                    "250-ENHANCEDSTATUSCODES",
                    "250-PIPELINING",
                    "250-VERB",
                    "250-SIZE",
                    "250 DSN",
                ] {
                    say(line);
                }
            }
            "RCPT" if line.contains("<nosuch") => say("550 5.1.1 <nosuch@h.test>... User unknown"),
            "RCPT" if line.contains("<later") => say("451 4.7.1 try later"),
            "RCPT" => {
                accepted += 1;
                say("250 2.1.5 Recipient ok");
            }
            "DATA" if accepted == 0 => say("503 5.0.0 Need RCPT (recipient)"),
            "DATA" => {
                is_data = true;
                say("354 go ahead");
            }
            "RSET" | "MAIL" => {
                accepted = 0;
                say("250 2.0.0 ok");
            }
            "QUIT" => {
                say("221 2.0.0 closing");
                break;
            }
            _ => say("250 2.0.0 ok"),
        }
    }
    lines
}

fn login() -> String {
    let id = Command::new("id").arg("-un").output().unwrap();
    String::from_utf8(id.stdout).unwrap().trim().to_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn data(lines: &[String]) -> Vec<&str> {
    lines
        .iter()
        .skip_while(|line| *line != "DATA")
        .skip(1)
        .take_while(|line| *line != ".")
        .map(String::as_str)
        .collect()
}

#[test]
fn without_a_daemon_the_message_is_stored_and_the_user_told() {
    let sandbox = Sandbox::new();
    // The port of a listener that is gone refuses connections.
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    std::fs::write(sandbox.path("run/smtp"), format!("{free}\n")).unwrap();
    let output = sandbox.run(
        &["-v", "bob"],
        "Subject: verbose\n\nhello bob\n.\nnot read\n",
    );
    assert_eq!(code(&output), 0);
    assert_eq!(
        stdout(&output),
        "bob... Connecting to [127.0.0.1] via relay...\n\
         bob... Deferred: Connection refused by [127.0.0.1]\n"
    );
    assert_eq!(sandbox.drops().len(), 1);
    let log = sandbox.log();
    let me = login();
    assert!(
        log.contains(&format!("from={me}, size=28, class=0, nrcpts=1, msgid=<"))
            && log.contains(&format!(", relay={me}@localhost\n")),
        "{log}"
    );
    assert!(
        log.contains("mailer=relay, pri=30028, relay=[127.0.0.1] [127.0.0.1], dsn=4.4.1, stat=Deferred: Connection refused by [127.0.0.1]"),
        "{log}"
    );
}

#[test]
fn verbose_shows_the_whole_dialogue_with_the_daemon() {
    let sandbox = Sandbox::new();
    let mta = sandbox.mta();
    let output = sandbox.run(&["-v", "bob"], "Subject: verbose\n\nhello bob\n");
    assert_eq!(code(&output), 0, "{}", stdout(&output));
    let shown = stdout(&output);
    let kinds: Vec<&str> = shown
        .lines()
        .map(|line| line.split_once(" From:").map_or(line, |(head, _)| head))
        .map(|line| line.split_once(" To:").map_or(line, |(head, _)| head))
        .map(|line| {
            if line.starts_with(">>> EHLO") {
                ">>> EHLO"
            } else {
                line
            }
        })
        .collect();
    assert_eq!(
        kinds,
        [
            "bob... Connecting to [127.0.0.1] via relay...",
            "220 h.test ESMTP",
            ">>> EHLO",
            "250-h.test",
            "250-ENHANCEDSTATUSCODES",
            "250-PIPELINING",
            "250-VERB",
            "250-SIZE",
            "250 DSN",
            ">>> VERB",
            "250 2.0.0 ok",
            ">>> MAIL",
            "250 2.0.0 ok",
            ">>> RCPT",
            ">>> DATA",
            "250 2.1.5 Recipient ok",
            "354 go ahead",
            ">>> .",
            "050 <bob@h.test>... Sent",
            "250 2.0.0 QID1 Message accepted for delivery",
            "bob... Sent (QID1 Message accepted for delivery)",
            "Closing connection to [127.0.0.1]",
            ">>> QUIT",
            "221 2.0.0 closing",
        ]
    );
    assert!(sandbox.drops().is_empty());
    let lines = mta.lines();
    let content = data(&lines);
    let me = login();
    assert!(content[0].starts_with(&format!("Received: (from {me}@localhost)")));
    assert!(content[1].starts_with("\tby ") && content[1].contains("/Submit) id "));
    assert!(content[2].starts_with("\tfor bob; "));
    let names: Vec<&str> = content[3..]
        .iter()
        .map(|l| l.split(':').next().unwrap())
        .collect();
    assert_eq!(
        names,
        ["Date", "From", "Message-Id", "Subject", "", "hello bob"]
    );
}

#[test]
fn header_recipients_are_sent_to_and_bcc_is_not_shown() {
    let sandbox = Sandbox::new();
    let mta = sandbox.mta();
    let output = sandbox.run(
        &["-t", "-i"],
        "To: bob\nCc: Carol <carol@x.test>\nBcc: dave\nSubject: t\n\n.\nx\n",
    );
    assert_eq!(code(&output), 0);
    let lines = mta.lines();
    let recipients: Vec<&str> = lines
        .iter()
        .filter_map(|line| line.strip_prefix("RCPT To:<"))
        .map(|rest| rest.split(['@', '>']).next().unwrap())
        .collect();
    assert_eq!(recipients, ["dave", "carol", "bob"]);
    let content = data(&lines);
    assert!(content.contains(&"Cc: Carol <carol@x.test>"), "{content:?}");
    assert!(content.iter().any(|line| line.starts_with("To: bob@")));
    assert!(!content.iter().any(|line| line.contains("dave")));
    // With -i the dot is a line like any other, doubled on the wire.
    assert!(content.ends_with(&["..", "x"]), "{content:?}");
}

#[test]
fn cron_and_php_style_calls_set_name_and_sender() {
    let sandbox = Sandbox::new();
    let mta = sandbox.mta();
    let output = sandbox.run(
        &["-FCronDaemon", "-i", "-B8BITMIME", "-oem", "root"],
        "From: \"(Cron Daemon)\" <root>\nTo: root\nSubject: Cron\n\nx\n",
    );
    assert_eq!(code(&output), 0, "{}", stdout(&output));
    assert!(
        mta.lines()
            .iter()
            .any(|line| line.starts_with("From: \"(Cron Daemon)\" <root@"))
    );

    let mta = sandbox.mta();
    let output = sandbox.run(
        &["-t", "-i", "-f", "web@x.test"],
        "To: bob@x.test\r\nSubject: php\r\n\r\nbody\r\n",
    );
    assert_eq!(code(&output), 0);
    let lines = mta.lines();
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("MAIL From:<web@x.test>"))
    );
    assert!(data(&lines).contains(&"From: web@x.test"));
}

#[test]
fn mail_of_the_null_sender_gets_no_from_field() {
    let sandbox = Sandbox::new();
    let fields = |lines: &[String], sender: &str| {
        let mail = format!("MAIL From:<{sender}>");
        assert!(
            lines.iter().any(|line| line.starts_with(&mail)),
            "{lines:?}"
        );
        let content = data(lines);
        assert!(content.contains(&"Subject: t"), "{content:?}");
        content
            .iter()
            .filter(|line| line.to_ascii_lowercase().starts_with("from:"))
            .count()
    };
    for (sender, count) in [("<>", 0), ("web@x.test", 1)] {
        let mta = sandbox.mta();
        let output = sandbox.run(&["-f", sender, "bob"], "Subject: t\n\nx\n");
        assert_eq!(code(&output), 0, "{}", stdout(&output));
        let sender = sender.trim_matches(['<', '>']);
        assert_eq!(fields(&mta.lines(), sender), count, "-f {sender:?}");
    }
    for (sender, has_one) in [("", false), ("alice@x.test", true)] {
        let before = sandbox.drops();
        let script = format!(
            "EHLO x\r\nMAIL FROM:<{sender}>\r\nRCPT TO:<bob@x.test>\r\nDATA\r\nSubject: t\r\n\r\nhi\r\n.\r\nQUIT\r\n"
        );
        let output = sandbox.run(&["-bs"], &script);
        assert!(stdout(&output).contains("Message accepted"), "{output:?}");
        let mut new = sandbox.drops();
        new.retain(|path| !before.contains(path));
        let [path] = new.as_slice() else {
            panic!("one message, not {new:?}");
        };
        let bytes = std::fs::read(path).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("\nSubject: t\r\n"), "{text}");
        assert_eq!(text.contains("\nFrom: "), has_one, "-bs {sender:?}: {text}");
    }
}

#[test]
fn refusals_end_with_the_code_and_report_of_the_error_mode() {
    let sandbox = Sandbox::new();
    let text = "Subject: opt\n\nhello\n";

    let mta = sandbox.mta();
    let output = sandbox.run(&["-oep", "nosuch"], text);
    assert_eq!(code(&output), 67);
    let path = sandbox.dead_letter();
    assert_eq!(
        stdout(&output),
        format!("{0}... Saved message in {0}\n", path.display())
    );
    assert!(
        std::fs::read_to_string(&path)
            .unwrap()
            .ends_with("\nhello\n\n")
    );
    mta.lines();

    std::fs::remove_file(&path).unwrap();
    let mta = sandbox.mta();
    let output = sandbox.run(&["-oeq", "nosuch"], text);
    assert_eq!((code(&output), stdout(&output).as_str()), (67, ""));
    assert!(!path.exists());
    mta.lines();

    for (mode, expected) in [("-oem", 67), ("-oew", 67), ("-oee", 0)] {
        let mta = sandbox.mta();
        let output = sandbox.run(&[mode, "nosuch"], text);
        assert_eq!(
            (code(&output), stdout(&output).as_str()),
            (expected, ""),
            "{mode}"
        );
        let lines = mta.lines();
        assert!(
            lines.iter().any(|line| line.starts_with("MAIL From:<>")),
            "{lines:?}"
        );
        assert!(lines.iter().any(|line| line == "Status: 5.1.1"));
        assert!(!path.exists());
    }
    assert!(sandbox.drops().is_empty());
}

#[test]
fn what_is_deferred_is_stored_and_what_is_taken_is_not_sent_again() {
    let sandbox = Sandbox::new();
    let mta = sandbox.mta();
    let output = sandbox.run(&["bob", "later"], "Subject: x\n\nx\n");
    assert_eq!((code(&output), stdout(&output).as_str()), (0, ""));
    mta.lines();
    let drops = sandbox.drops();
    assert_eq!(drops.len(), 1);
    let bytes = std::fs::read(&drops[0]).unwrap();
    let holds = |text: &str| {
        bytes
            .windows(text.len())
            .any(|part| part == text.as_bytes())
    };
    assert!(holds("later@") && !holds("bob@"));
}

#[test]
fn queue_only_does_not_connect() {
    let sandbox = Sandbox::new();
    let output = sandbox.run(&["-odq", "bob"], "Subject: x\n\nx\n");
    assert_eq!(code(&output), 0);
    assert_eq!(sandbox.drops().len(), 1);
    assert!(
        sandbox
            .log()
            .contains("mailer=relay, pri=30014, stat=queued"),
        "{}",
        sandbox.log()
    );
}

#[test]
fn bad_command_lines_and_content_store_nothing() {
    let sandbox = Sandbox::new();
    for (arguments, input, expected, text) in [
        (&[][..], "x", 64, "Recipient names must be specified"),
        (&["bob@"], "x\n", 64, "bob@... Hostname required"),
        (
            &["-oep", "|/bin/cat"],
            "x\n",
            64,
            "Cannot mail directly to programs",
        ),
        (
            &["-t"],
            "Subject: x\n\nx\n",
            64,
            "No recipient addresses found in header",
        ),
        (&["-f", "a@b@c", "bob"], "x\n", 64, "Invalid route address"),
        (&["bob"], "\na\0b\n", 65, "NUL byte not allowed"),
        (&["-h", "30", "bob"], "x\n", 69, "dead.letter"),
    ] {
        let output = sandbox.run(arguments, input);
        let shown = stdout(&output) + &String::from_utf8_lossy(&output.stderr);
        assert_eq!(code(&output), expected, "{arguments:?}: {shown}");
        assert!(shown.contains(text), "{arguments:?}: {shown}");
    }
    assert!(sandbox.drops().is_empty());
}

#[test]
fn a_session_on_standard_input_stores_before_its_250() {
    let sandbox = Sandbox::new();
    let script = "EHLO x\r\nMAIL FROM:<alice@x.test>\r\nRCPT TO:<bob@x.test>\r\nDATA\r\nSubject: x\r\n\r\nhi\r\n.\r\nQUIT\r\n";
    let output = sandbox.run(&["-bs"], script);
    assert_eq!(code(&output), 0);
    let shown = stdout(&output);
    assert!(shown.contains("\r\n250 2.0.0 ") && shown.contains("Message accepted for delivery"));
    assert_eq!(sandbox.drops().len(), 1);

    // Cut off before the final dot: nothing was promised, nothing is kept.
    let output = sandbox.run(&["-bs"], script.split("hi\r\n").next().unwrap());
    assert!(!stdout(&output).contains("Message accepted"));
    assert_eq!(sandbox.drops().len(), 1);
}

#[test]
fn newaliases_prints_totals_warnings_and_errors() {
    let sandbox = Sandbox::new();
    let source = sandbox.path("etc/mail/aliases");
    let rebuild = |text: &str| {
        std::fs::write(&source, text).unwrap();
        let output = sandbox.run(&["-bi"], "");
        (code(&output), stdout(&output))
    };
    let name = canonical(&source);
    assert_eq!(
        rebuild("root: alice\ndup: alice\ndup: bob\n"),
        (
            0,
            format!(
                "{name}: line 3: dup... Warning: duplicate alias name dup\n\
                 {name}: 3 aliases, longest 5 bytes, 23 bytes total\n"
            )
        )
    );
    assert_eq!(
        rebuild("good: alice\nbadline alice\nother: bob\n"),
        (
            70,
            format!(
                "{name}: line 2: missing colon\n{name}: 2 aliases, longest 5 bytes, 17 bytes total\n"
            )
        )
    );
    let log = sandbox.log();
    assert!(
        log.contains(&format!("alias database {name} rebuilt by {}", login())),
        "{log}"
    );
}

fn canonical(path: &Path) -> String {
    path.canonicalize().unwrap().display().to_string()
}
