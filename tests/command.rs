//! The command line from outside: what sendmail(8) promises is what the program understands.
//!
//! Uses the public interface only; touches a temporary folder.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::ffi::OsString;
use std::path::Path;

use diligence::cli::{CliError, Invocation, Mode, QueueTiming};
use diligence::config::sandbox::{self, Missing};
use diligence::config::{Config, ConfigError, DeliveryMode, Remote, Request, Role};
use diligence::status::ExitCode;

const MANUAL: &str = include_str!("../tools/man/sendmail.8");

/// Values that the flags which need one are happy with.
const VALUES: &[(char, &str)] = &[
    ('A', "c"),
    ('B', "7BIT"),
    ('b', "m"),
    ('d', "0.1"),
    ('h', "3"),
    ('N', "never"),
    ('O', "LogLevel=9"),
    ('o', "i"),
    ('q', ""),
    ('R', "hdrs"),
    ('T', "3d"),
    ('e', "m"),
];

fn parse(words: &[&str]) -> Result<Invocation, CliError> {
    let line: Vec<OsString> = std::iter::once("sendmail")
        .chain(words.iter().copied())
        .map(OsString::from)
        .collect();
    Invocation::parse(&line)
}

/// The configuration that a command line gets in a new sandbox.
fn configure(words: &[&str]) -> Result<Config, ConfigError> {
    let parent = tempfile::tempdir().unwrap();
    let made = sandbox::open(&parent.path().join("sandbox"), Missing::Make).unwrap();
    let invocation = parse(words).unwrap();
    Config::load(&Request {
        role: invocation.role(),
        file: invocation.config_file.as_deref(),
        sandbox: Some(&made.dir),
        overrides: &invocation.overrides,
    })
}

/// Whether the manual has a paragraph for a flag: a line after `.TP` that begins with it.
fn is_in_manual(flag: &str) -> bool {
    let escaped = flag.replace('-', "\\-");
    let mut after_tag = false;
    MANUAL.lines().any(|line| {
        let is_tag = after_tag;
        after_tag = line == ".TP";
        is_tag
            && line
                .split([' ', '"', ','])
                .any(|word| word.trim_start_matches("\\fB").starts_with(&escaped))
    })
}

#[test]
fn every_flag_is_in_the_manual_or_refused() {
    for letter in ('A'..='Z').chain('a'..='z') {
        let value = VALUES.iter().find(|(known, _)| *known == letter);
        let flag = format!("-{letter}");
        let attached = format!("{flag}{}", value.map_or("", |(_, value)| value));
        let attempts = [
            parse(&[&attached]),
            parse(&[&attached, "bob"]),
            parse(&[&flag, "x", "bob"]),
        ];
        let is_understood = attempts.iter().any(Result::is_ok);
        // Old short forms of options, which sendmail(8) no longer lists either.
        let is_old = matches!(letter, 'c' | 'e' | 'm' | 's' | 'T');
        assert_eq!(
            is_understood && !is_old,
            is_in_manual(&flag),
            "{flag}: {attempts:?}"
        );
        if !is_understood {
            assert!(
                attempts
                    .iter()
                    .flat_map(|attempt| attempt.as_ref().err())
                    .all(|error| error.exit() == ExitCode::Usage)
            );
        }
    }
}

#[test]
fn every_mode_is_in_the_manual_or_refused() {
    for letter in ('A'..='Z').chain('a'..='z') {
        let flag = format!("-b{letter}");
        let is_understood = parse(&[&flag]).is_ok() || parse(&[&flag, "bob"]).is_ok();
        assert_eq!(is_understood, is_in_manual(&flag), "{flag}");
    }
}

#[test]
fn every_long_option_is_in_the_manual_and_known() {
    for long in [
        "--sandbox",
        "--check-config",
        "--print-config",
        "--version",
        "--help",
    ] {
        assert!(is_in_manual(long), "{long}");
        assert!(
            parse(&[long]).is_ok() || parse(&[long, "dir", "bob"]).is_ok(),
            "{long}"
        );
    }
}

#[test]
fn the_command_line_stands_above_the_sandboxs_file() {
    let config = configure(&[
        "-odq",
        "-OTimeout.queuereturn=2d",
        "-bD",
        "-O",
        "DaemonPortOptions=Port=0",
    ])
    .unwrap();
    assert_eq!(config.queue.delivery_mode, DeliveryMode::Queue);
    assert_eq!(config.queue.retry.queue_return.as_secs(), 2 * 86_400);
    let ports: Vec<String> = config
        .smtpd
        .daemon_ports
        .iter()
        .map(|port| port.socket_address().to_string())
        .collect();
    assert_eq!(ports, ["127.0.0.1:0"]);
    assert_eq!(config.route.remote, Remote::LoopbackOnly);
}

#[test]
fn a_sandbox_listens_on_its_own_port_and_nothing_lies_outside_of_it() {
    let config = configure(&["-bD"]).unwrap();
    assert_eq!(config.smtpd.daemon_ports.len(), 1);
    assert_eq!(
        config.smtpd.daemon_ports[0].socket_address().to_string(),
        "127.0.0.1:2525"
    );
    let dir = config.sandbox.clone().unwrap();
    for option in diligence::config::options::OPTIONS {
        use diligence::config::options::Shown;
        let texts = match option.show(&config) {
            Shown::Text(text) | Shown::Bare(text) => vec![text],
            Shown::List(list) => list,
        };
        for path in texts
            .iter()
            .flat_map(|text| text.split_whitespace())
            .filter(|word| word.starts_with('/'))
        {
            // Forwarding files are users', whose homes are in the sandbox; a shell is the system's.
            let is_elsewhere = ["forward_path", "local_shell"].contains(&option.key);
            let is_inside = Path::new(path).starts_with(&dir);
            assert!(is_inside || is_elsewhere, "{}: {path}", option.key);
        }
    }
}

#[test]
fn an_option_that_would_leave_the_sandbox_is_refused() {
    for option in [
        "QueueDirectory=/var/spool/mqueue",
        "AliasFile=/etc/aliases",
        "DaemonPortOptions=Addr=0.0.0.0",
    ] {
        let error = configure(&["-O", option, "bob"]).unwrap_err();
        assert_eq!(error.exit(), ExitCode::Usage, "{error}");
    }
}

#[test]
fn submitter_and_daemon_read_the_two_files_and_the_two_queues() {
    let submitter = configure(&["bob"]).unwrap();
    assert_eq!(submitter.role, Role::Msp);
    assert!(submitter.file.ends_with("etc/mail/submit.toml"));
    assert!(
        submitter
            .paths
            .queue_directory
            .ends_with("var/spool/clientmqueue")
    );
    let daemon = configure(&["-bd", "-q1h"]).unwrap();
    assert!(daemon.file.ends_with("etc/mail/sendmail.toml"));
    assert!(daemon.paths.queue_directory.ends_with("var/spool/mqueue"));
    let one_hour = std::time::Duration::from_secs(3_600);
    let invocation = parse(&["-bd", "-q1h"]).unwrap();
    assert_eq!(invocation.mode, Mode::Daemon);
    assert_eq!(
        invocation.queue_run.unwrap().timing,
        QueueTiming::Every(one_hour)
    );
}
