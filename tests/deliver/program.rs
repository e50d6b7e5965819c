//! Programs as mailers: what they are given, what their end means, and programs that misbehave; files; definitions.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use diligence::clock::{Clock, SystemClock};
use diligence::config::ByteSize;
use diligence::config::mailer::{MailerDefinition, ProgramLimits};
use diligence::deliver::{Attempt, Destination, Mailers};
use diligence::envelope::{ControllingUser, Delivery, Outcome};
use diligence::status::Status;

use crate::setup::{Lines, attempt, mailers, options};

const CONTENT: &[u8] = b"Subject: s\r\nReturn-Path: <forged>\r\n\r\nbody\r\nFrom x\r\n.dot\r\n";

/// An attempt for one command, as an alias leads to it.
fn command(command: &str) -> Attempt {
    let mut attempt = attempt(&[command], CONTENT);
    for recipient in &mut attempt.recipients {
        recipient.recipient.target = format!("\"|{command}\"");
        recipient.recipient.has_brackets = false;
    }
    attempt
}

async fn run(mailers: &Mailers, attempt: Attempt) -> Outcome {
    let all = mailers.attempt(&Destination::Programs, attempt).await;
    assert_eq!(all.len(), 1);
    all.into_iter().next().unwrap().1
}

/// Mailers whose programs may take this long.
fn limited(folder: &Path, time_limit: Duration) -> Mailers {
    let mut options = options(folder);
    options.named.time_limit = time_limit;
    mailers(options)
}

/// Mailers with one definition as the local mailer, called `own`.
fn defined(folder: &Path, definition: &str) -> Mailers {
    let mut options = options(folder);
    let definition = MailerDefinition::parse(&format!("own, {definition}")).unwrap();
    options.named.local = Some("own".to_owned());
    options.named.mailers.push(definition);
    mailers(options)
}

/// A program that writes down what it is given, as the one of the transcripts does.
fn envdump(folder: &Path) -> String {
    let path = folder.join("envdump");
    let out = folder.join("out");
    let script = format!(
        "#!/bin/sh\n{{ echo \"args($#):\"; for a in \"$@\"; do echo \"  [$a]\"; done; echo \"cwd: $(pwd)\"; echo env:; \
         /usr/bin/env | /usr/bin/sort | /bin/grep -v '^_='; echo 'stdin:'; /bin/cat; echo end; }} > {}\n",
        out.display()
    );
    fs::write(&path, script).unwrap();
    make_executable(&path);
    path.display().to_string()
}

fn make_executable(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// What `envdump` wrote, without the date of the `From ` line.
fn dumped(folder: &Path) -> String {
    let text = fs::read_to_string(folder.join("out")).unwrap();
    let mut out = String::new();
    for line in text.lines() {
        match line.strip_prefix("From alice@gold.example.test ") {
            Some(date) => {
                assert!(!date.starts_with(' ') && date.contains(':'), "{line}");
                out.push_str("From alice DATE");
            }
            None => out.push_str(line),
        }
        out.push('\n');
    }
    out
}

#[tokio::test]
async fn a_command_gets_sendmails_environment_directory_and_message() {
    let folder = tempfile::tempdir().unwrap();
    let path = envdump(folder.path());
    let lines = Lines::default();
    let mut attempt = command(&format!("{path} one 'two three'"));
    attempt.verbose = Some(lines.sink());
    let outcome = run(&mailers(options(folder.path())), attempt).await;
    assert_eq!(
        (outcome.text.as_str(), outcome.mailer.as_str()),
        ("Sent", "prog")
    );
    assert_eq!(outcome.status, Status::OK);
    assert_eq!(
        dumped(folder.path()),
        "args(2):\n  [one]\n  [two three]\ncwd: /\nenv:\nAGENT=sendmail\nPWD=/\nstdin:\nFrom alice DATE\nSubject: s\n\n\
         body\nFrom x\n.dot\nend\n"
    );
    let shown = format!("\"|{path} one 'two three'\"");
    assert_eq!(
        lines.said(),
        [
            format!("{shown}... Connecting to prog..."),
            format!("{shown}... Sent")
        ]
    );
}

#[tokio::test]
async fn procmail_as_local_mailer_gets_its_real_arguments() {
    let folder = tempfile::tempdir().unwrap();
    let path = envdump(folder.path());
    let mailers = defined(
        folder.path(),
        &format!("P={path}, F=lsDFMAw5:/|@qSPfhn9, A=procmail -Y -a $h -d $u"),
    );
    let mut attempt = attempt(&["root"], CONTENT);
    attempt.recipients[0].recipient.target = "root+det.Ail".to_owned();
    let all = mailers.attempt(&Destination::Mailbox, attempt).await;
    let outcome = &all[0].1;
    assert_eq!(
        (outcome.text.as_str(), outcome.mailer.as_str()),
        ("Sent", "local")
    );
    assert_eq!(outcome.relay, "det.Ail");
    let dumped = dumped(folder.path());
    assert!(
        dumped.starts_with(
            "args(7):\n  [-f]\n  [alice@gold.example.test]\n  [-Y]\n  [-a]\n  [det.Ail]\n  [-d]\n  [root]\n"
        ),
        "{dumped}"
    );
    // No From_ line, Return-Path as the flags say, and no forged one.
    assert!(
        dumped.ends_with(
            "stdin:\nReturn-Path: <alice@gold.example.test>\nSubject: s\n\nbody\nFrom x\n.dot\nend\n"
        ),
        "{dumped}"
    );
}

#[tokio::test]
async fn a_mailers_flags_shape_the_message_and_the_runs() {
    let folder = tempfile::tempdir().unwrap();
    let path = envdump(folder.path());
    let definition = format!("P={path}, F=lmsnEXb7, E=\\r\\n, A=x -q $i $u ${{nrcpts}}");
    let mailers = defined(folder.path(), &definition);
    let content: &[u8] = b"A: \xe4\r\n\r\nFrom x\r\n.dot\r\n";
    let attempt = attempt(&["Bob", "\"c d\""], content);
    let id = attempt.id.to_string();
    let own = Destination::Named {
        mailer: "own".to_owned(),
        host: String::new(),
    };
    let all = mailers.attempt(&own, attempt).await;
    assert!(
        all.iter().all(|(_, outcome)| outcome.text == "Sent"),
        "{all:?}"
    );
    let text = dumped(folder.path());
    assert!(
        text.starts_with(&format!(
            "args(5):\n  [-q]\n  [{id}]\n  [bob]\n  [c d]\n  [2]\n"
        )),
        "{text}"
    );
    assert!(
        fs::read_to_string(folder.path().join("out"))
            .unwrap()
            .ends_with("stdin:\nA: d\r\n\r\n>From x\r\n..dot\r\n\r\nend\n"),
        "{text}"
    );
}

#[tokio::test]
async fn users_without_an_account_and_messages_beyond_the_size_fail() {
    let folder = tempfile::tempdir().unwrap();
    for (definition, user, status, text) in [
        (
            "P=/bin/true, F=lw, A=true $u",
            "nosuchuser-x",
            Status::NO_USER,
            "User unknown",
        ),
        (
            "P=/bin/true, F=lw, M=10, A=true $u",
            "root",
            Status::new(5, 2, 3),
            "Message is too large; 10 bytes max",
        ),
    ] {
        let all = defined(folder.path(), definition)
            .attempt(&Destination::Mailbox, attempt(&[user], CONTENT))
            .await;
        let outcome = &all[0].1;
        assert_eq!(outcome.result, Delivery::Failed, "{user}");
        assert_eq!((outcome.status, outcome.text.as_str()), (status, text));
    }
}

#[tokio::test]
async fn the_exit_code_decides_and_output_goes_to_the_report() {
    let folder = tempfile::tempdir().unwrap();
    let mailers = mailers(options(folder.path()));
    let lines = Lines::default();
    let mut failing = command("echo on stdout; echo on stderr >&2; exit 69");
    failing.verbose = Some(lines.sink());
    let outcome = run(&mailers, failing).await;
    assert_eq!(outcome.result, Delivery::Failed);
    assert_eq!(outcome.text, "Service unavailable");
    let program = outcome.program.unwrap();
    assert_eq!(program.exit_code, 69);
    assert_eq!(program.output, ["on stdout", "on stderr"]);
    // A failure is for the report, not for who watches.
    assert_eq!(lines.said().len(), 1);
    let outcome = run(&mailers, command("exit 75")).await;
    assert_eq!(outcome.result, Delivery::Deferred);
    assert_eq!(
        outcome.text,
        "Deferred: prog mailer (/bin/sh) exited with EX_TEMPFAIL"
    );
    let outcome = run(&mailers, command("kill -SEGV $$")).await;
    assert_eq!(outcome.result, Delivery::Deferred);
    assert_eq!(
        outcome.text,
        "Deferred: prog mailer (/bin/sh) died with signal 11"
    );
}

#[tokio::test]
async fn a_program_may_use_up_what_it_is_given_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let says = "ulimit -Sc; ulimit -St; ulimit -Sv; exit 69";
    let said = async |mailers: &Mailers| run(mailers, command(says)).await.program.unwrap().output;
    let plain = said(&mailers(options(folder.path()))).await;
    assert_eq!(plain[0], "0");
    let mut options = options(folder.path());
    options.named.limits = ProgramLimits {
        cpu: Some(Duration::from_secs(1)),
        memory: Some(ByteSize::mib(512)),
    };
    let mailers = mailers(options);
    assert_eq!(said(&mailers).await, ["0", "1", "524288"]);
    // SIGXCPU.
    let outcome = run(&mailers, command("while :; do :; done")).await;
    assert_eq!(outcome.result, Delivery::Deferred);
    assert_eq!(
        outcome.text,
        "Deferred: prog mailer (/bin/sh) died with signal 24"
    );
}

#[tokio::test]
async fn a_program_that_is_not_there_defers() {
    let folder = tempfile::tempdir().unwrap();
    let mailers = defined(folder.path(), "P=/nonexistent/deliver, F=l, A=deliver $u");
    let all = mailers
        .attempt(&Destination::Mailbox, attempt(&["root"], CONTENT))
        .await;
    let outcome = &all[0].1;
    assert_eq!(outcome.result, Delivery::Deferred);
    assert!(
        outcome.text.ends_with("No such file or directory"),
        "{}",
        outcome.text
    );
    let unknown = Destination::Named {
        mailer: "what".to_owned(),
        host: String::new(),
    };
    let all = mailers.attempt(&unknown, attempt(&["root"], CONTENT)).await;
    assert_eq!(all[0].1.text, "Deferred: no mailer what is defined");
}

/// Megabytes of content, more than a pipe holds.
fn large(mut attempt: Attempt) -> Attempt {
    let content: Arc<[u8]> = b"A: b\r\n\r\n"
        .iter()
        .copied()
        .chain(
            b"0123456789abcdef\r\n"
                .iter()
                .copied()
                .cycle()
                .take(18 * 100_000),
        )
        .collect();
    attempt.content_bytes = u64::try_from(content.len()).unwrap();
    attempt.content = Arc::new(move || Ok(Box::new(io::Cursor::new(Arc::clone(&content)))));
    attempt
}

#[tokio::test]
async fn a_program_that_never_reads_may_still_say_that_it_has_delivered() {
    let folder = tempfile::tempdir().unwrap();
    let mailers = mailers(options(folder.path()));
    let outcome = run(&mailers, large(command("exit 0"))).await;
    assert_eq!(outcome.text, "Sent");
    let outcome = run(&mailers, large(command("exec <&-; exit 67"))).await;
    assert_eq!(outcome.text, "User unknown");
}

#[tokio::test]
async fn a_program_that_never_ends_is_killed_with_all_it_started() {
    let folder = tempfile::tempdir().unwrap();
    let mailers = limited(folder.path(), Duration::from_millis(300));
    let mark = folder.path().join("pids");
    // Neither reads nor ends, and has a child that ignores signals.
    let script = format!(
        "trap '' TERM; (trap '' TERM HUP; sh -c 'echo $PPID' >> {0}; while :; do sleep 1000; done) & \
         echo $$ >> {0}; while :; do sleep 1000; done",
        mark.display()
    );
    let clock = SystemClock::new();
    let begun = clock.monotonic();
    let outcome = run(&mailers, large(command(&script))).await;
    assert!(clock.monotonic() - begun < Duration::from_secs(30));
    assert_eq!(outcome.result, Delivery::Deferred);
    assert_eq!(outcome.status, Status::new(4, 0, 0));
    assert_eq!(
        outcome.text,
        "Deferred: prog mailer (/bin/sh) took longer than 0 s"
    );
    wait_until_gone(&mark);
}

/// Waits until the processes whose ids stand in a file are gone or dead.
fn wait_until_gone(mark: &Path) {
    let clock = SystemClock::new();
    let deadline = clock.monotonic() + Duration::from_secs(30);
    let text = fs::read_to_string(mark).unwrap();
    assert!(!text.is_empty());
    for pid in text.lines() {
        let is_alive = || {
            fs::read_to_string(format!("/proc/{pid}/stat"))
                .is_ok_and(|stat| !stat.contains(") Z ") && !stat.contains(") X "))
        };
        while is_alive() {
            assert!(clock.monotonic() < deadline, "process {pid} lives");
            std::thread::yield_now();
        }
    }
}

#[tokio::test]
async fn a_program_that_writes_without_end_is_cut_off_at_its_time_and_its_output_at_a_bound() {
    let folder = tempfile::tempdir().unwrap();
    let mailers = limited(folder.path(), Duration::from_millis(500));
    let outcome = run(&mailers, command("yes")).await;
    assert_eq!(outcome.result, Delivery::Deferred);
    assert!(outcome.text.contains("took longer"), "{}", outcome.text);
    let mailers = limited(folder.path(), Duration::from_secs(60));
    let outcome = run(&mailers, command("yes | head -c 3000000; exit 65")).await;
    assert_eq!(outcome.text, "Data format error");
    let output = outcome.program.unwrap().output;
    assert_eq!(output.len(), diligence::deliver::program::OUTPUT_LINES_MAX);
    let outcome = run(
        &mailers,
        command("head -c 3000000 /dev/zero | tr '\\0' x; exit 65"),
    )
    .await;
    let output = outcome.program.unwrap().output;
    assert_eq!(output.len(), 1);
    assert_eq!(
        output[0].len(),
        diligence::deliver::program::OUTPUT_BYTES_MAX
    );
}

#[tokio::test]
async fn a_program_that_forks_and_stays_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let mailers = mailers(options(folder.path()));
    let mark = folder.path().join("pids");
    let clock = SystemClock::new();
    let begun = clock.monotonic();
    // The child holds the pipes and outlives its parent.
    let script = format!(
        "(trap '' HUP; while :; do sleep 1000; done) & echo $! > {}; echo said; exit 70",
        mark.display()
    );
    let outcome = run(&mailers, command(&script)).await;
    assert_eq!(outcome.text, "Internal error");
    assert_eq!(outcome.program.unwrap().output, ["said"]);
    assert!(clock.monotonic() - begun < Duration::from_secs(30));
    wait_until_gone(&mark);
    // One that leaves the group lives on, and nobody waits for it either.
    let mark = folder.path().join("daemon");
    let script = format!(
        "setsid sh -c 'echo $$ > {0}; sleep 1000' & until [ -s {0} ]; do :; done",
        mark.display()
    );
    let outcome = run(&mailers, command(&script)).await;
    assert_eq!(outcome.text, "Sent");
    let pid: i32 = fs::read_to_string(&mark).unwrap().trim().parse().unwrap();
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
}

/// A message that cannot be read whole must never look whole to the program.
#[tokio::test]
async fn a_program_never_sees_the_end_of_a_message_that_could_not_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let mailers = mailers(options(folder.path()));
    let out = folder.path().join("took");
    let mut attempt = command(&format!("cat > /dev/null; echo whole > {}", out.display()));
    attempt.content = Arc::new(|| {
        Ok(Box::new(io::Read::chain(
            io::Cursor::new(b"Subject: s\r\n\r\n".repeat(20_000)),
            Failing,
        )))
    });
    let outcome = run(&mailers, attempt).await;
    assert_eq!(outcome.result, Delivery::Deferred);
    assert!(!out.exists());
}

/// A reader that fails.
struct Failing;

impl io::Read for Failing {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("the disk is gone"))
    }
}

#[tokio::test]
async fn discard_and_error_need_no_program() {
    let folder = tempfile::tempdir().unwrap();
    let mailers = mailers(options(folder.path()));
    let to = |mailer: &str, host: &str| Destination::Named {
        mailer: mailer.to_owned(),
        host: host.to_owned(),
    };
    let all = mailers
        .attempt(&to("discard", ""), attempt(&["x"], CONTENT))
        .await;
    assert_eq!(all[0].1.result, Delivery::Delivered);
    let all = mailers
        .attempt(
            &to("error", "5.1.1"),
            attempt(&["550 Nobody here"], CONTENT),
        )
        .await;
    let outcome = &all[0].1;
    assert_eq!(outcome.result, Delivery::Failed);
    assert_eq!(
        (outcome.status, outcome.text.as_str()),
        (Status::NO_USER, "Nobody here")
    );
}

#[tokio::test]
async fn a_file_is_appended_to_with_a_line_of_its_own_for_each_message() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let mailers = mailers(options(folder.path()));
    let lines = Lines::default();
    let mut attempt = attempt(&[&path.display().to_string()], CONTENT);
    attempt.verbose = Some(lines.sink());
    for recipient in &mut attempt.recipients {
        recipient.recipient.has_brackets = false;
        recipient.recipient.controlling_user = Some(own_user());
    }
    let stored = "Return-Path: <alice@gold.example.test>\nSubject: s\n\nbody\n>From x\n.dot\n\n";
    for count in 1..=2 {
        let all = mailers.attempt(&Destination::Files, attempt.clone()).await;
        let outcome = &all[0].1;
        assert_eq!(
            (outcome.text.as_str(), outcome.mailer.as_str()),
            ("Sent", "*file*")
        );
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(
            text.matches("From alice@gold.example.test ").count(),
            count,
            "{text}"
        );
        assert!(text.ends_with(stored), "{text}");
    }
    // As a crash leaves it: cut in the middle of a line. What is there stays, and the next message stands apart.
    fs::write(&path, "From x Sun\nSubj").unwrap();
    mailers.attempt(&Destination::Files, attempt.clone()).await;
    let text = fs::read_to_string(&path).unwrap();
    assert!(
        text.starts_with("From x Sun\nSubj\n\nFrom alice@"),
        "{text}"
    );
    // Sendmail says nothing of connecting to a file.
    let shown = path.display();
    assert_eq!(lines.said()[0], format!("{shown}... Sent"));
    // Another program's lock is waited for, and then the mail waits.
    let held = fs::File::open(&path).unwrap();
    held.lock().unwrap();
    let all = mailers.attempt(&Destination::Files, attempt.clone()).await;
    assert_eq!(all[0].1.result, Delivery::Deferred);
    assert!(all[0].1.text.ends_with("is locked"), "{}", all[0].1.text);
    held.unlock().unwrap();
    let all = mailers.attempt(&Destination::Files, attempt).await;
    assert_eq!(all[0].1.result, Delivery::Delivered);
}

/// The user of this process, as whom its files are written.
fn own_user() -> ControllingUser {
    ControllingUser {
        name: "x".to_owned(),
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
    }
}

#[tokio::test]
async fn what_is_no_target_is_refused_as_sendmail_does_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    // The default user, whom a root's files are written as, may write here.
    make_writable(folder.path());
    let at = |name: &str| folder.path().join(name);
    let with_mode = |name: &str, mode: u32| {
        use std::os::unix::fs::PermissionsExt;
        fs::write(at(name), "old\n").unwrap();
        fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    with_mode("fexec", 0o777);
    with_mode("gexec", 0o676);
    with_mode("fsuid", 0o4666);
    with_mode("fsgid", 0o2666);
    with_mode("hard1", 0o666);
    with_mode("f666", 0o666);
    fs::hard_link(at("hard1"), at("hard2")).unwrap();
    std::os::unix::fs::symlink("f666", at("sym")).unwrap();
    std::os::unix::fs::symlink("missing", at("dangling")).unwrap();
    fs::create_dir(at("fdir")).unwrap();
    nix::unistd::mkfifo(&at("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mailers = mailers(options(folder.path()));
    let targets = [
        "fexec", "gexec", "fsuid", "fsgid", "hard1", "sym", "dangling", "fdir", "fifo", "no/such",
        "f666/x",
    ];
    let others = ["/dev/full", "/dev/tty"].map(std::path::PathBuf::from);
    let sent = |path: std::path::PathBuf| {
        let mailers = mailers.clone();
        async move {
            let attempt = attempt(&[&path.display().to_string()], CONTENT);
            let all = mailers.attempt(&Destination::Files, attempt).await;
            all.into_iter().next().unwrap().1
        }
    };
    for path in targets.map(at).into_iter().chain(others) {
        let outcome = sent(path.clone()).await;
        assert_eq!(outcome.result, Delivery::Failed, "{}", path.display());
        assert_eq!(outcome.text, "Can't create output", "{}", path.display());
        assert_eq!(outcome.status.to_string(), "5.0.0");
        assert_eq!(outcome.program.unwrap().exit_code, 73);
    }
    assert!(!at("missing").exists());
    assert_eq!(fs::read_to_string(at("hard1")).unwrap(), "old\n");
    for good in [at("f666"), std::path::PathBuf::from("/dev/null")] {
        assert_eq!(sent(good).await.text, "Sent");
    }
    assert!(
        fs::read_to_string(at("f666"))
            .unwrap()
            .starts_with("old\n\nFrom alice")
    );
}

fn make_writable(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).unwrap();
}
