//! What the README's first command promises, with the real programs in a sandbox: mail comes in by SMTP and by
//! `sendmail`, is delivered, logged and listed, survives SIGKILL, and the daemon stops and restarts when told.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/daemon.rs"]
mod daemon;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;

use daemon::{Daemon, Sandbox, wait_for};
use diligence::control::change::Change;
use diligence::control::selection::{Kind, Selection};
use diligence::control::{ControlError, Conversation, Frame, Request};
use nix::sys::signal::Signal;

/// Waits until the mailbox of the sandbox's user holds this.
fn wait_for_mail(sandbox: &Sandbox, text: &str) -> String {
    wait_for(&format!("{text:?} in the mailbox"), || {
        let mailbox = sandbox.mailbox();
        mailbox.contains(text).then_some(mailbox)
    })
}

/// Waits until the daemon's queue is listed as empty.
fn wait_for_empty_queue(sandbox: &Sandbox) {
    wait_for("an empty queue", || {
        sandbox.mailq().contains("is empty").then_some(())
    });
}

/// The lines of the maillog that an operator greps by queue id.
fn log_lines(sandbox: &Sandbox, id: &str) -> Vec<String> {
    sandbox
        .text("var/log/maillog")
        .lines()
        .filter(|line| line.contains(&format!(" {id}: ")))
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_message_by_smtp_is_delivered_and_leaves_two_log_lines() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.start();
    let user = sandbox.user();
    let mut client = daemon.client().unwrap();
    let id = client
        .send(
            "stranger@client.example.test",
            &["postmaster"],
            "Subject: by smtp\n\nhello over the wire",
        )
        .unwrap();
    assert_eq!(id.len(), 14, "{id}");
    let mailbox = wait_for_mail(&sandbox, "hello over the wire");
    assert!(mailbox.starts_with("From stranger@client.example.test  "));
    assert!(mailbox.contains("\nReturn-Path: <stranger@client.example.test>\n"));
    assert!(mailbox.contains(&format!("with ESMTP id {id}\n")));
    assert!(mailbox.contains("\nSubject: by smtp\n"));
    assert!(!mailbox.contains('\r'));
    let mode = std::fs::metadata(sandbox.path().join("var/mail").join(&user))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let lines = wait_for("the two log lines", || {
        let lines = log_lines(&sandbox, &id);
        (lines.len() >= 2).then_some(lines)
    });
    assert_eq!(lines.len(), 2, "{lines:#?}");
    let from = &lines[0];
    assert!(from.contains(": from=<stranger@client.example.test>, size="));
    assert!(from.contains(", nrcpts=1, msgid=<"));
    assert!(from.contains(", proto=ESMTP, daemon=MTA, relay="));
    let to = &lines[1];
    assert!(to.contains(", mailer=local, pri="), "{to}");
    assert!(to.contains(", dsn=2.0.0, stat=Sent"), "{to}");
    wait_for_empty_queue(&sandbox);
    assert!(daemon.stop().success());
}

#[test]
fn a_submission_is_shown_and_delivered() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.start();
    let output = sandbox.run(
        "sendmail",
        &["-v", "postmaster"],
        "Subject: hi\n\nhello from the command line\n",
    );
    assert!(output.status.success(), "{output:?}");
    let shown = String::from_utf8(output.stdout).unwrap();
    for expected in [
        "postmaster... Connecting to ",
        "\n220 ",
        "\n>>> EHLO ",
        "\n>>> MAIL From:<",
        "\n>>> RCPT To:<postmaster@",
        "\n>>> DATA\n",
        "\n354 ",
        "\n>>> .\n",
        "postmaster... Sent (",
        "\n>>> QUIT\n",
    ] {
        assert!(shown.contains(expected), "no {expected:?} in:\n{shown}");
    }
    let mailbox = wait_for_mail(&sandbox, "hello from the command line");
    assert!(mailbox.contains("\nSubject: hi\n"));
    assert!(mailbox.contains("\nMessage-Id: <"), "{mailbox}");
    assert!(mailbox.contains("/Submit) id ") || mailbox.contains("@localhost)"));
    assert!(daemon.stop().success());
}

#[test]
fn a_submission_without_a_daemon_is_delivered_by_the_next_one() {
    let sandbox = Sandbox::new();
    // Makes the sandbox.
    assert!(sandbox.start().stop().success());
    let output = sandbox.run("sendmail", &["postmaster"], "Subject: later\n\ndropped\n");
    assert!(output.status.success(), "{output:?}");
    let listing = sandbox.run("mailq", &["-Ac"], "");
    let listing = String::from_utf8(listing.stdout).unwrap();
    assert!(listing.contains("Total requests: 1"), "{listing}");
    assert!(listing.contains("postmaster"), "{listing}");
    let daemon = sandbox.start();
    wait_for_mail(&sandbox, "dropped");
    wait_for("an empty client queue", || {
        let output = sandbox.run("mailq", &["-Ac"], "");
        String::from_utf8_lossy(&output.stdout)
            .contains("is empty")
            .then_some(())
    });
    assert!(daemon.stop().success());
    assert_eq!(sandbox.mailbox().matches("dropped").count(), 1);
}

/// A message for a host elsewhere, which a sandbox keeps.
fn send_elsewhere(daemon: &Daemon) -> String {
    daemon
        .client()
        .unwrap()
        .send(
            "sender@client.example.test",
            &["somebody@elsewhere.example"],
            "Subject: far away\n\nx",
        )
        .unwrap()
}

#[test]
fn mailq_shows_the_same_with_and_without_a_daemon_and_after_a_kill() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.start();
    let id = send_elsewhere(&daemon);
    let running = wait_for("the reason in the listing", || {
        let listing = sandbox.mailq();
        (listing.contains("                 (") && !listing.contains('*')).then_some(listing)
    });
    assert!(running.contains(&format!("\n{id}  ")), "{running}");
    assert!(running.contains(" <sender@client.example.test>\n"));
    assert!(running.contains("\n\t\t\t\t\t <somebody@elsewhere.example>\n"));
    assert!(running.ends_with("\t\tTotal requests: 1\n"), "{running}");
    let text =
        |arguments: &[&str]| String::from_utf8(sandbox.run("mailq", arguments, "").stdout).unwrap();
    assert_eq!(text(&["-qRelsewhere"]), running);
    assert!(text(&["-qRnosuch"]).contains("is empty"));
    assert!(text(&["-q!Relsewhere"]).contains("is empty"));
    assert!(text(&["-v"]).contains("-Priority-"));
    daemon.kill();
    let alone = sandbox.mailq();
    assert_eq!(alone.replace("  (", " ("), running.replace("  (", " ("));
    let daemon = sandbox.start();
    assert!(sandbox.mailq().contains(&id));
    assert!(daemon.stop().success());
    assert!(sandbox.mailq().contains(&id));
}

#[test]
fn the_daemon_says_where_it_is_and_its_files_go_with_it() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.start();
    let pid_file = wait_for("the pid file", || {
        let text = sandbox.text("run/sendmail.pid");
        (!text.is_empty()).then_some(text)
    });
    let mut lines = pid_file.lines();
    assert_eq!(lines.next().unwrap(), daemon.pid().to_string());
    assert!(lines.next().unwrap().contains("sendmail --sandbox "));
    let address = daemon.address();
    let (status, printed) = daemon.stop_and_read();
    assert!(status.success());
    assert!(printed.contains(&address.to_string()), "{printed}");
    for expected in ["var/mail", "var/log/maillog", "mailq", "-v postmaster"] {
        assert!(printed.contains(expected), "no {expected} in:\n{printed}");
    }
    for name in ["run/sendmail.pid", "run/smtp", "run/control"] {
        assert!(!sandbox.path().join(name).exists(), "{name} is left");
    }
}

#[test]
fn hangup_restarts_the_daemon_in_its_process() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.start();
    let id = send_elsewhere(&daemon);
    daemon.signal(Signal::SIGHUP);
    wait_for("the second start in the log", || {
        let log = sandbox.text("var/log/maillog");
        (log.matches("starting daemon").count() == 2).then_some(())
    });
    assert!(sandbox.text("var/log/maillog").contains("due to signal"));
    let address = wait_for("the new address", || {
        sandbox.text("run/smtp").lines().next()?.parse().ok()
    });
    daemon::SmtpClient::connect(address).unwrap();
    assert!(sandbox.mailq().contains(&id));
    assert!(daemon.stop().success());
}

#[test]
fn a_second_daemon_on_the_same_queue_is_refused_and_the_first_goes_on() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.start();
    let output = sandbox.run("sendmail", &["-bD", "-O", "DaemonPortOptions=Port=0"], "");
    assert!(!output.status.success());
    assert!(!output.stderr.is_empty());
    assert!(daemon.client().is_ok());
    // A queue run does not fail on the lock: it asks the owner.
    let output = sandbox.run("sendmail", &["-q"], "");
    assert!(output.status.success(), "{output:?}");
    assert!(daemon.stop().success());
}

/// Transcript 60, part 18: the queue is empty after the run.
#[test]
fn a_queue_run_without_a_daemon_delivers_the_reports_that_come_of_it() {
    let sandbox = Sandbox::new();
    sandbox.start().stop();
    let aliases = sandbox.path().join("etc/mail/aliases");
    let text = sandbox.text("etc/mail/aliases") + "fails: \"|exit 69\"\n";
    std::fs::write(aliases, text).unwrap();
    assert!(sandbox.run("newaliases", &[], "").status.success());
    let daemon = sandbox.start_with(&["-O", "DeliveryMode=queueonly"]);
    let mut client = daemon.client().unwrap();
    client
        .send(
            &format!("{}@localhost", sandbox.user()),
            &["fails"],
            "Subject: mine\n\nx",
        )
        .unwrap();
    // Whose report can't be delivered either: the postmaster's, then.
    client
        .send("nosuchuser@localhost", &["fails"], "Subject: lost\n\nx")
        .unwrap();
    drop(client);
    assert!(daemon.stop().success());
    assert_eq!(sandbox.mailbox(), "");
    let output = sandbox.run("sendmail", &["-q"], "");
    assert!(output.status.success(), "{output:?}");
    let mailbox = sandbox.mailbox();
    for subject in ["Returned mail", "Postmaster notify"] {
        let line = format!("Subject: {subject}: see transcript for details");
        assert!(mailbox.contains(&line), "{mailbox}");
    }
    assert_eq!(
        mailbox.matches("From MAILER-DAEMON@").count(),
        2,
        "{mailbox}"
    );
    let listed = sandbox.mailq();
    assert!(listed.contains("Total requests: 0"), "{listed}");
}

#[test]
fn a_background_daemon_listens_when_its_starter_returns() {
    let sandbox = Sandbox::new();
    assert!(sandbox.start().stop().success());
    let status = sandbox
        .command("sendmail")
        .args(["-bd", "-O", "DaemonPortOptions=Port=0"])
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
    let pid: i32 = sandbox
        .text("run/sendmail.pid")
        .lines()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let address = sandbox.text("run/smtp").lines().next().unwrap().parse();
    daemon::SmtpClient::connect(address.unwrap()).unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM).unwrap();
    wait_for("the end of the background daemon", || {
        (!sandbox.path().join("run/sendmail.pid").exists()).then_some(())
    });
}

#[test]
fn the_control_socket_answers_its_owner_and_refuses_nonsense() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.start();
    let socket = sandbox.path().join("run/control");
    let id = send_elsewhere(&daemon);
    let ask = |request: &Request| -> Result<Vec<Frame>, ControlError> {
        let mut conversation = Conversation::begin(&socket, request)?;
        let mut frames = Vec::new();
        while let Some(frame) = conversation.next_frame()? {
            frames.push(frame);
        }
        Ok(frames)
    };
    let status = ask(&Request::Status).unwrap();
    assert!(
        status.contains(&Frame::Text("messages 1".into())),
        "{status:?}"
    );
    let selection = Selection::from_words(["N", "Relsewhere"]).unwrap();
    let removed = ask(&Request::Change {
        change: Change::Remove,
        selection,
    })
    .unwrap();
    assert_eq!(removed, [Frame::Text(format!("{id} removed"))]);
    let listing = ask(&Request::List(Selection::all(Kind::Normal))).unwrap();
    assert_eq!(listing.len(), 1, "{listing:?}");

    let talk = |words: &[u8]| {
        let mut stream = UnixStream::connect(&socket).unwrap();
        std::io::Write::write_all(&mut stream, words).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        std::io::Read::read_to_end(&mut stream, &mut answer).unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    };
    assert!(talk(b"help\n").starts_with("Help for smcontrol:"));
    assert_eq!(talk(b"bogus\n"), "Bad command (bogus)\r\n");
    assert!(talk(&[255; 64]).contains("bad request"));
    assert!(talk(b"\x05\0\0\0Rdrop").contains("bad request"));
    ask(&Request::Shutdown).unwrap();
    assert!(daemon.wait().success());
}

/// How often the log says that this message was tried.
fn attempts(sandbox: &Sandbox, id: &str) -> usize {
    log_lines(sandbox, id)
        .iter()
        .filter(|line| line.contains(", stat="))
        .count()
}

#[test]
fn alarm_runs_the_queue_dump_writes_the_state_and_interrupt_stops() {
    let sandbox = Sandbox::new();
    let daemon = sandbox.start();
    let id = send_elsewhere(&daemon);
    wait_for("the first attempt", || {
        (attempts(&sandbox, &id) == 1).then_some(())
    });
    wait_for("an attempt after SIGALRM", || {
        // A signal that comes while the first attempt is still being recorded runs nothing.
        daemon.signal(Signal::SIGALRM);
        (attempts(&sandbox, &id) > 1).then_some(())
    });
    daemon.signal(Signal::SIGUSR1);
    let log = wait_for("the state in the log", || {
        let log = sandbox.text("var/log/maillog");
        log.contains("--- end of state dump ---").then_some(log)
    });
    assert!(log.contains("--- dumping state on user signal: $j = "));
    assert!(log.contains("var/spool/mqueue/lock"), "{log}");
    assert!(daemon.client().is_ok(), "it goes on");
    daemon.signal(Signal::SIGINT);
    assert!(daemon.wait().success());
    assert!(sandbox.mailq().contains(&id));
}

#[test]
fn a_busy_port_is_an_error_in_the_foreground_and_waited_for_in_the_background() {
    let sandbox = Sandbox::new();
    assert!(sandbox.start().stop().success());
    let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = busy.local_addr().unwrap().port();
    let options = format!("DaemonPortOptions=Addr=127.0.0.1,Port={port}");
    let output = sandbox.run("sendmail", &["-bD", "-O", &options], "");
    assert_eq!(output.status.code(), Some(71), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains(&format!("127.0.0.1:{port}")), "{text}");
    assert!(text.contains("Address already in use"), "{text}");
    let logged = "SYSERR(root): opendaemonsocket: daemon MTA: cannot bind: Address already in use";
    let count = || sandbox.text("var/log/maillog").matches(logged).count();
    assert_eq!(count(), 1);
    assert!(!sandbox.path().join("run/sendmail.pid").exists());

    let mut starter = sandbox
        .command("sendmail")
        .args(["-bd", "-O", &options])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_for("the background daemon to find the port busy", || {
        (count() == 2).then_some(())
    });
    drop(busy);
    let status = wait_for("its start", || starter.try_wait().unwrap());
    assert!(status.success(), "{status}");
    let daemon = sandbox.background();
    assert!(daemon::SmtpClient::connect(sandbox.address()).is_ok());
    daemon.stop();
}

#[test]
fn the_pid_file_is_the_background_daemons_alone_and_survives_a_second_one() {
    let sandbox = Sandbox::new();
    assert!(sandbox.start().stop().success());
    let daemon = sandbox.start_in_background(&["-q30m"]);
    let path = sandbox.path().join("run/sendmail.pid");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let text = sandbox.text("run/sendmail.pid");
    let (pid, command) = text.split_once('\n').unwrap();
    assert_eq!(pid, daemon.pid().to_string());
    assert!(command.contains(" -bd "), "{command}");
    assert!(command.ends_with(" -q30m\n"), "{command}");
    let log = sandbox.text("var/log/maillog");
    assert!(log.contains(": SMTP+queueing@00:30:00"), "{log}");
    let output = sandbox.run("sendmail", &["-bD", "-O", "DaemonPortOptions=Port=0"], "");
    assert_eq!(output.status.code(), Some(75), "{output:?}");
    assert_eq!(sandbox.text("run/sendmail.pid"), text);
    daemon.stop();
    assert!(!path.exists());
}

#[test]
fn a_client_queue_runner_takes_what_was_dropped_and_hands_it_over_when_the_mta_is_back() {
    let sandbox = Sandbox::new();
    assert!(sandbox.start().stop().success());
    let status = sandbox
        .command("sendmail")
        .args(["-Ac", "-q30m"])
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
    let runner = sandbox.background_in("run/sm-client.pid");
    let output = sandbox.run("sendmail", &["postmaster"], "Subject: later\n\ndropped\n");
    assert!(output.status.success(), "{output:?}");
    wait_for("the drop file to be absorbed", || {
        let folder = sandbox.path().join("var/spool/clientmqueue/drop");
        let is_empty = std::fs::read_dir(folder).unwrap().next().is_none();
        is_empty.then_some(())
    });
    let listing = || {
        let output = sandbox.run("mailq", &["-Ac"], "");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    wait_for("a deferral, as there is no MTA", || {
        let listing = listing();
        (listing.contains("Deferred") && listing.contains("Total requests: 1")).then_some(())
    });
    // The MTA of a sandbox leaves the client queue to its runner.
    let daemon = sandbox.start();
    assert!(listing().contains("Total requests: 1"));
    let output = sandbox.run("sendmail", &["-Ac", "-q"], "");
    assert!(output.status.success(), "{output:?}");
    wait_for_mail(&sandbox, "dropped");
    wait_for("an empty client queue", || {
        listing().contains("is empty").then_some(())
    });
    assert!(daemon.stop().success());
    assert!(runner.is_running(), "the runner ended with the MTA");
    runner.stop();
    assert_eq!(sandbox.mailbox().matches("dropped").count(), 1);
    assert!(!sandbox.path().join("run/sm-client.pid").exists());
}

/// A client that hangs up as soon as it has asked leaves no change without its line in the log.
#[test]
fn changes_are_logged_whether_or_not_the_client_stays() {
    const COUNT: usize = 20;
    let sandbox = Sandbox::new();
    let daemon = sandbox.start_with(&["-O", "DeliveryMode=queue"]);
    let ids: Vec<String> = (0..COUNT).map(|_| send_elsewhere(&daemon)).collect();
    let request = Request::Change {
        change: Change::Remove,
        selection: Selection::all(Kind::Normal),
    };
    let socket = sandbox.path().join("run/control");
    drop(Conversation::begin(&socket, &request).unwrap());
    wait_for("a line for each", || {
        let log = sandbox.text("var/log/maillog");
        let is_logged = |id: &String| log.contains(&format!("{id}: removed by the operator"));
        ids.iter().all(is_logged).then_some(())
    });
    assert!(daemon.stop().success());
}

/// Names the control socket to [`list_as_another_user`].
const SOCKET_VARIABLE: &str = "DAEMON_TEST_CONTROL_SOCKET";

/// The other user's side of the next test, which runs this program anew.
#[test]
#[ignore = "a part of another test, which runs it"]
fn list_as_another_user() {
    let socket = std::env::var(SOCKET_VARIABLE).unwrap();
    let request = Request::List(Selection::all(Kind::Normal));
    let mut conversation = Conversation::begin(Path::new(&socket), &request).unwrap();
    loop {
        match conversation.next_frame() {
            Ok(Some(frame)) => println!("{frame:?}"),
            Ok(None) => break,
            Err(error) => {
                println!("{error}");
                break;
            }
        }
    }
}

#[test]
fn restrictmailq_keeps_the_queue_from_other_users() {
    use std::os::unix::process::CommandExt;
    if !nix::unistd::geteuid().is_root() {
        // Only root can be another user.
        return;
    }
    let sandbox = Sandbox::new();
    assert!(sandbox.start().stop().success());
    let folder = sandbox.path().parent().unwrap().to_owned();
    let program = folder.join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    for path in [
        &folder,
        &sandbox.path(),
        &sandbox.path().join("run"),
        &program,
    ] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let list = || {
        let output = std::process::Command::new(&program)
            .args([
                "--exact",
                "list_as_another_user",
                "--ignored",
                "--nocapture",
            ])
            .env(SOCKET_VARIABLE, sandbox.path().join("run/control"))
            .current_dir("/")
            .uid(65534)
            .gid(65534)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let daemon = sandbox.start();
    let id = send_elsewhere(&daemon);
    let shown = list();
    assert!(shown.contains("Message("), "{shown}");
    assert!(daemon.stop().success());

    let daemon = sandbox.start_with(&["-O", "PrivacyOptions=restrictmailq"]);
    let shown = list();
    assert!(
        shown.contains("You are not permitted to see the queue"),
        "{shown}"
    );
    assert!(!shown.contains("Message("), "{shown}");
    assert!(sandbox.mailq().contains(&id), "its owner may");
    assert!(daemon.stop().success());
}
