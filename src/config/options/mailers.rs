//! How mail is handed over: mailers, their programs, the SMTP client's time limits.
//!
//! A part of the table of options, see [`options`](super). Pure values: nothing is read, nothing blocks.

use std::time::Duration;

use super::{DAY, OptionDef, SECOND};
use crate::config::Config;
use crate::config::duration::TimeUnit;
use crate::config::mailer::{MailerDefinition, TIME_LIMIT_MAX};
use crate::config::size::ByteSize;
use crate::config::value::Access;

pub(super) const MAILERS: &[OptionDef] = &[
    OptionDef::new(
        "helo_name",
        "",
        Access::Domain(|c| &mut c.deliver.helo_name),
        "The name given in HELO and EHLO.",
    )
    .named("HeloName"),
    OptionDef::new(
        "default_user",
        "mail:mail",
        Access::Text(|c| &mut c.route.default_user),
        "USER or USER:GROUP that mailers run as when no user's rights apply.",
    )
    .named("DefaultUser")
    .letter('u'),
    OptionDef::new(
        "run_as_user",
        "",
        Access::TextOrNone(|c| &mut c.deliver.run_as_user),
        "Whom the daemon becomes, as USER or USER:GROUP, once its ports are bound, if it is started by root; a small process beside it keeps root's rights, acts for users and opens maps that only root may read. Empty: the owner of the client queue, if that is what is run, or the first that exists of diligence, smmta and smmsp; where none does, the daemon stays root and logs an alert. \"root\": it stays root.",
    )
    .named("RunAsUser"),
    OptionDef::new(
        "local_shell",
        "/bin/sh",
        // A program of the system, in a sandbox as well.
        Access::Form {
            form: "absolute path",
            set: |c, text| {
                if !text.starts_with('/') {
                    return Err(format!("`{text}' is not an absolute path"));
                }
                c.deliver.local_shell = text.into();
                Ok(())
            },
            show: |c| c.deliver.local_shell.display().to_string(),
        },
        "What gets the commands of aliases and .forwards (mailer prog), as -c COMMAND: a shell, or smrsh(8).",
    ),
    OptionDef::new(
        "smrsh_directory",
        "/usr/lib/sm.bin",
        Access::Path(|c| &mut c.deliver.smrsh_directory),
        "Where smrsh(8), if it is local_shell, finds the programs that it may run.",
    )
    .sandbox("etc/mail/smrsh"),
    OptionDef::new(
        "program_time_limit",
        "1h",
        Access::Time {
            field: |c| &mut c.deliver.program_time_limit,
            unit: TimeUnit::Minutes,
            min: SECOND,
            max: TIME_LIMIT_MAX,
        },
        "How long a command of an alias or a .forward may take before it is killed and tried again later.",
    ),
    OptionDef::new(
        "program_cpu_limit",
        "0",
        Access::TimeOrNever {
            field: |c| &mut c.deliver.program_limits.cpu,
            unit: TimeUnit::Seconds,
            max: DAY,
        },
        "How much time of a processor each process of a program may use; one that needs more is ended and the mail tried again later. No program dumps core.",
    ),
    OptionDef::new(
        "program_memory_limit",
        "0",
        Access::SizeOrNone {
            field: |c| &mut c.deliver.program_limits.memory,
            max: ByteSize::gib(1024),
        },
        "How much memory each process of a program may have, as address space.",
    ),
    OptionDef::new(
        "mailer",
        "",
        Access::Several {
            form: "NAME, P=PROGRAM, F=FLAGS, A=ARGUMENTS, as the M lines of a sendmail.cf",
            separator: None,
            clear: |c| {
                c.deliver.mailers.clear();
                c.route.mailers.clear();
            },
            add: |c, text| {
                let mailer = MailerDefinition::parse(text)?;
                if c.deliver.mailers.iter().any(|m| m.name == mailer.name) {
                    return Err(format!("mailer {} is defined twice", mailer.name));
                }
                c.route.mailers.push(mailer.name.clone());
                c.deliver.mailers.push(mailer);
                Ok(())
            },
            show: |c| c.deliver.mailers.iter().map(ToString::to_string).collect(),
        },
        "A mailer of one's own, for local_mailer and mailertables.",
    ),
    OptionDef::new(
        "local_mailer",
        "",
        Access::TextOrNone(|c| &mut c.deliver.local_mailer),
        "The mailer that delivers to users of this host, one of `mailer'; empty: mailboxes in mailbox_directory.",
    ),
    client_timeout(
        "timeout.connect",
        "5m",
        |c| &mut c.deliver.timeouts.connect,
        "How long the client waits for a connection.",
    )
    .named("Timeout.connect"),
    client_timeout(
        "timeout.iconnect",
        "5m",
        |c| &mut c.deliver.timeouts.iconnect,
        "The same for a message's first attempt.",
    )
    .named("Timeout.iconnect")
    .msp("5s"),
    client_timeout(
        "timeout.initial",
        "5m",
        |c| &mut c.deliver.timeouts.initial,
        "How long the client waits for the greeting.",
    )
    .named("Timeout.initial"),
    client_timeout(
        "timeout.helo",
        "5m",
        |c| &mut c.deliver.timeouts.helo,
        "How long the client waits for the reply to HELO or EHLO.",
    )
    .named("Timeout.helo"),
    client_timeout(
        "timeout.mail",
        "10m",
        |c| &mut c.deliver.timeouts.mail,
        "How long the client waits for the reply to MAIL.",
    )
    .named("Timeout.mail"),
    client_timeout(
        "timeout.rcpt",
        "1h",
        |c| &mut c.deliver.timeouts.rcpt,
        "How long the client waits for the reply to RCPT.",
    )
    .named("Timeout.rcpt"),
    client_timeout(
        "timeout.datainit",
        "5m",
        |c| &mut c.deliver.timeouts.datainit,
        "How long the client waits for the reply to DATA.",
    )
    .named("Timeout.datainit"),
    client_timeout(
        "timeout.datafinal",
        "1h",
        |c| &mut c.deliver.timeouts.datafinal,
        "How long the client waits for the reply to the final dot.",
    )
    .named("Timeout.datafinal"),
    client_timeout(
        "timeout.rset",
        "5m",
        |c| &mut c.deliver.timeouts.rset,
        "How long the client waits for the reply to RSET.",
    )
    .named("Timeout.rset"),
    client_timeout(
        "timeout.quit",
        "2m",
        |c| &mut c.deliver.timeouts.quit,
        "How long the client waits for the reply to QUIT.",
    )
    .named("Timeout.quit"),
    client_timeout(
        "timeout.fileopen",
        "60s",
        |c| &mut c.deliver.file_open_limit,
        "How long the privileged part (run_as_user) may take to open a user's file, as a .forward or a mailbox, or to start a program; then the mail waits, and the user's files are not asked for again until they answer.",
    )
    .named("Timeout.fileopen"),
];

const fn client_timeout(
    key: &'static str,
    default: &'static str,
    field: fn(&mut Config) -> &mut Duration,
    text: &'static str,
) -> OptionDef {
    let access = Access::Time {
        field,
        unit: TimeUnit::Minutes,
        min: SECOND,
        max: DAY,
    };
    OptionDef::new(key, default, access, text).safe()
}
