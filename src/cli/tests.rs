//! Command lines that people and programs type, and what becomes of them.

use std::time::Duration;

use super::*;
use crate::config::Config;
use crate::config::Request;
use crate::control::selection::Kind;

fn parse_as(name: &str, line: &str) -> Result<Invocation, CliError> {
    let words: Vec<OsString> = std::iter::once(name)
        .chain(line.split(' ').filter(|word| !word.is_empty()))
        .map(OsString::from)
        .collect();
    Invocation::parse(&words)
}

fn parse(line: &str) -> Invocation {
    parse_as("sendmail", line).unwrap_or_else(|error| panic!("{line}: {error}"))
}

fn refused(line: &str) -> String {
    match parse_as("sendmail", line) {
        Ok(invocation) => panic!("{line}: {invocation:?}"),
        Err(error) => {
            assert_eq!(error.exit(), crate::status::ExitCode::Usage);
            error.to_string()
        }
    }
}

#[test]
fn what_programs_pass_is_understood() {
    // cron, PHP, mail(1), mutt, git send-email, the MSP's queue runner.
    for line in [
        "-FCronDaemon -i -odi -oem -oi -t",
        "-t -i",
        "-oi -oem -odb -f ann bob",
        "-i -fann -- bob carol",
        "-oem -oi -odq -ov -om -t",
        "-oee -oep -oeq -oew -odi bob",
        "-ti -f ann@example.test",
        "-U -G -Am bob",
    ] {
        let invocation = parse(line);
        assert_eq!(invocation.mode, Mode::Deliver, "{line}");
        let request = Request {
            role: invocation.role(),
            overrides: &invocation.overrides,
            ..Request::default()
        };
        Config::from_text(&request, Path::new("x"), "").unwrap();
    }
    let runner = parse("-L sm-msp-queue -Ac -q30m");
    assert_eq!(runner.role(), Role::Msp);
    assert_eq!(runner.syslog_tag.as_deref(), Some("sm-msp-queue"));
    let run = runner.queue_run.unwrap();
    assert_eq!(run.timing, QueueTiming::Every(Duration::from_secs(1_800)));
    let daemon = parse("-L sm-mta -bd -q1h");
    assert_eq!((daemon.mode, daemon.role()), (Mode::Daemon, Role::Mta));
    assert!(daemon.queue_run.is_some());
}

#[test]
fn the_readmes_commands_are_understood() {
    let daemon = parse("--sandbox ./sandbox -bD");
    assert_eq!(daemon.mode, Mode::DaemonForeground);
    assert_eq!(daemon.sandbox, Some(PathBuf::from("./sandbox")));
    let submit = parse("--sandbox ./sandbox -v postmaster");
    assert_eq!(submit.recipients, ["postmaster"]);
    assert_eq!(submit.role(), Role::Msp);
    let mailq = parse_as("target/release/mailq", "--sandbox ./sandbox").unwrap();
    assert_eq!((mailq.mode, mailq.role()), (Mode::PrintQueue, Role::Mta));
}

#[test]
fn the_name_stands_for_a_mode() {
    for (name, mode) in [
        ("mailq", Mode::PrintQueue),
        ("/usr/bin/newaliases", Mode::RebuildAliases),
        ("smtpd", Mode::Daemon),
    ] {
        assert_eq!(parse_as(name, "").unwrap().mode, mode);
    }
    assert_eq!(parse_as("-sendmail", "bob").unwrap().mode, Mode::Deliver);
    let error = parse_as("hoststat", "").unwrap_err();
    assert_eq!(
        error.to_string(),
        "sendmail: hoststat is not supported: host status"
    );
    assert!(parse_as("/usr/bin/purgestat", "").is_err());
    assert_eq!(Invocation::parse(&[]), Err(CliError::NoRecipients));
}

#[test]
fn the_last_mode_counts_and_the_role_follows() {
    for (line, mode, role) in [
        ("bob", Mode::Deliver, Role::Msp),
        ("-bs", Mode::SmtpSession, Role::Msp),
        ("-bs -Am", Mode::SmtpSession, Role::Mta),
        ("-bv bob", Mode::Verify, Role::Mta),
        ("-bp", Mode::PrintQueue, Role::Mta),
        ("-bp -Ac", Mode::PrintQueue, Role::Msp),
        ("-bi", Mode::RebuildAliases, Role::Mta),
        ("-q", Mode::Deliver, Role::Mta),
        ("-bd -bD", Mode::DaemonForeground, Role::Mta),
        ("-b m bob", Mode::Deliver, Role::Msp),
    ] {
        let invocation = parse(line);
        assert_eq!((invocation.mode, invocation.role()), (mode, role), "{line}");
    }
}

#[test]
fn the_envelope_is_read() {
    let invocation =
        parse("-f <> -FAnn -N success,delay -R hdrs -V QQ+2B314 -B8bitmime -h3 -G bob");
    let envelope = invocation.envelope;
    assert_eq!(envelope.sender.as_deref(), Some("<>"));
    assert_eq!(envelope.full_name.as_deref(), Some("Ann"));
    assert_eq!(
        envelope.notify,
        Notify::When {
            success: true,
            failure: false,
            delay: true
        }
    );
    assert_eq!(envelope.dsn_return, DsnReturn::Headers);
    assert_eq!(envelope.envelope_id.as_deref(), Some("QQ+2B314"));
    assert_eq!(envelope.body_type, BodyType::EightBitMime);
    assert_eq!(envelope.hop_count, 3);
    assert!(envelope.is_gateway);
    assert_eq!(parse("-N never bob").envelope.notify, Notify::Never);
    assert_eq!(parse("-r ann bob").envelope.sender.as_deref(), Some("ann"));
}

#[test]
fn mistakes_have_sendmails_texts() {
    for (line, text) in [
        ("", "Recipient names must be specified"),
        ("-bv", "Recipient names must be specified"),
        ("-f a -f b bob", "More than one \"from\" person"),
        ("-f a -r b bob", "More than one \"from\" person"),
        ("-N bogus bob", "Invalid -N argument"),
        ("-N never,success bob", "Invalid -N argument"),
        ("-N success -N delay bob", "Duplicate -N flag"),
        ("-R bogus bob", "Invalid -R value"),
        ("-R full -R full bob", "Duplicate -R flag"),
        ("-V a=b bob", "Invalid syntax in -V flag"),
        ("-V a+4 bob", "Invalid syntax in -V flag"),
        ("-V a -V b bob", "Duplicate -V flag"),
        ("-B bogus bob", "Illegal body type bogus"),
        ("-h many bob", "Bad hop count (many)"),
        ("-bX bob", "Invalid operation mode X"),
        ("-b", "Invalid operation mode  "),
        ("-q10x", "Invalid time unit `x'"),
        ("-qGnosuch", "Queue group nosuch unknown"),
    ] {
        assert_eq!(refused(line), text, "{line}");
        assert!(
            parse_as("sendmail", line)
                .unwrap_err()
                .is_on_standard_output()
        );
    }
    assert_eq!(refused("-E bob"), "sendmail: illegal option -- E");
    assert!(!CliError::IllegalOption('E').is_on_standard_output());
}

#[test]
fn what_is_not_built_is_refused_by_name() {
    for (line, named) in [
        ("-bt", "-bt"),
        ("-ba", "-ba"),
        ("-bh", "-bh"),
        ("-bH", "-bH"),
        ("-bP", "-bP"),
        ("-bz", "-bz"),
        ("-D /tmp/x bob", "-D"),
        ("-I", "-I"),
        ("-Mx bob", "-M"),
        ("-n bob", "-n"),
        ("-p ESMTP:x bob", "-p"),
        ("-X /tmp/x bob", "-X"),
        ("-x bob", "-x"),
        ("-d21.4 bob", "-d21.4"),
        ("-d bob", "-d"),
    ] {
        let text = refused(line);
        assert!(
            text.starts_with(&format!("sendmail: {named} is not supported")),
            "{text}"
        );
    }
    for line in ["-Ax bob", "-L a[b] bob", "-o", "-O =x bob", "--nosuch bob"] {
        refused(line);
    }
    let config_of = |line: &str| {
        let invocation = parse(line);
        let request = Request {
            overrides: &invocation.overrides,
            ..Request::default()
        };
        Config::from_text(&request, Path::new("x"), "").map_err(|error| error.to_string())
    };
    assert!(
        config_of("-c bob")
            .unwrap_err()
            .contains("HoldExpensive is not supported")
    );
    assert!(
        config_of("-s bob")
            .unwrap_err()
            .contains("SaveFromLine is not supported")
    );
    assert!(config_of("-e q -m -i -T 3d bob").is_ok());
}

#[test]
fn what_has_no_meaning_is_refused_not_ignored() {
    assert_eq!(refused("-bd bob"), "recipients have no meaning with -bd");
    assert_eq!(refused("-bp bob"), "recipients have no meaning with -bp");
    assert_eq!(refused("-q bob"), "recipients have no meaning with -q");
    // Transcript 02: a rebuild passes over what stands behind it.
    assert_eq!(parse("-bi extra words").mode, Mode::RebuildAliases);
    assert_eq!(refused("-bs -t"), "-t has no meaning with -bs");
    assert_eq!(refused("-q -t"), "-t has no meaning with -q");
}

#[test]
fn inspection_needs_nothing_else() {
    for (line, inspection) in [
        ("--check-config", Inspection::CheckConfig),
        ("-bC", Inspection::CheckConfig),
        ("--print-config -Ac", Inspection::PrintConfig),
        ("--version", Inspection::Version),
        ("--help", Inspection::Help),
    ] {
        assert_eq!(parse(line).inspection, Some(inspection), "{line}");
    }
    assert!(parse("-d0.1 bob").shows_version);
    assert!(parse("-d0 -bp").shows_version);
}

#[test]
fn an_empty_recipient_is_one_and_words_after_the_first_are_recipients() {
    let words = ["sendmail", ""].map(OsString::from);
    assert_eq!(Invocation::parse(&words).unwrap().recipients, [""]);
    assert_eq!(parse("bob -v").recipients, ["bob", "-v"]);
}

#[test]
fn bytes_that_are_no_text_are_refused_but_in_a_name() {
    use std::os::unix::ffi::OsStringExt;
    let raw = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    let error = Invocation::parse(&[raw(b"sendmail"), raw(b"b\xe9")]).unwrap_err();
    assert!(error.to_string().contains("is not UTF-8"));
    let named = [raw(b"sendmail"), raw(b"-FAndr\xe9"), raw(b"bob")];
    let invocation = Invocation::parse(&named).unwrap();
    assert_eq!(invocation.envelope.full_name.as_deref(), Some("André"));
    let file = [raw(b"sendmail"), raw(b"-C/\xe9"), raw(b"bob")];
    assert!(Invocation::parse(&file).unwrap().config_file.is_some());
}

#[test]
fn set_id_rights_are_not_used_for_what_names_files() {
    for line in [
        "--sandbox x bob",
        "-C /x bob",
        "-oQ/tmp bob",
        "-OAliasFile=/x bob",
    ] {
        assert!(parse(line).asks_for_own_rights(), "{line}");
    }
    for line in [
        "bob",
        "-oi -odq -oem -v -OLogLevel=15 -OMinFreeBlocks=1 bob",
    ] {
        assert!(!parse(line).asks_for_own_rights(), "{line}");
    }
}

#[test]
fn the_environment_names_a_sandbox_unless_rights_are_at_stake() {
    let variable = Some(OsStr::new("/env"));
    let plain = parse("bob");
    assert_eq!(
        plain.sandbox_dir(variable, false),
        Some(PathBuf::from("/env"))
    );
    assert_eq!(plain.sandbox_dir(variable, true), None);
    assert_eq!(plain.sandbox_dir(Some(OsStr::new("")), false), None);
    assert_eq!(plain.sandbox_dir(None, false), None);
    let given = parse("--sandbox /given bob");
    assert_eq!(
        given.sandbox_dir(variable, false),
        Some(PathBuf::from("/given"))
    );
}

#[test]
fn q_with_a_reason_quarantines_and_without_one_releases() {
    let all = parse("-Qall");
    assert_eq!(all.quarantine, Reason::new("all").map(Change::Hold));
    assert_eq!(all.role(), Role::Mta);
    let some = parse("-Q -qQ -qIx -Ac");
    assert_eq!(some.quarantine, Some(Change::Release));
    assert_eq!(some.role(), Role::Msp);
    let run = some.queue_run.unwrap();
    assert_eq!(run.selection.kind, Kind::Quarantined);
    for (line, text) in [
        ("-Qx -bd", "Can not use -Q with -bd"),
        ("-bp -Q", "Can not use -Q with -bp"),
        ("-Qx -q30m", "-qTIME has no meaning with -Q"),
        ("-Qx bob", "recipients have no meaning with -Q"),
        ("-Qx -t", "-t has no meaning with -Q"),
    ] {
        assert_eq!(refused(line), text, "{line}");
    }
    let long = format!("-Q{}", "x".repeat(600));
    assert!(refused(&long).starts_with("Invalid -Q value"));
}
