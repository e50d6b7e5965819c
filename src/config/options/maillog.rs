//! The maillog.
//!
//! A part of the table of options, see [`options`](super). Pure values: nothing is read, nothing blocks.

use super::OptionDef;
use crate::config::value::Access;

/// The longest tag of log lines, in bytes. RFC 3164 4.1.3.
const SYSLOG_TAG_LEN_MAX: usize = 32;

pub(super) const MAILLOG: &[OptionDef] = &[
    OptionDef::new(
        "log_level",
        "9",
        Access::Count {
            field: |c| &mut c.log.log_level,
            min: 0,
            max: 98,
        },
        "How much is logged.",
    )
    .named("LogLevel")
    .letter('L')
    .safe(),
    OptionDef::new(
        "syslog_tag",
        "sendmail",
        Access::Form {
            form: "1 to 32 letters, digits and -_./",
            set: |c, text| {
                c.log.syslog_tag = syslog_tag(text)?;
                Ok(())
            },
            show: |c| c.log.syslog_tag.clone(),
        },
        "The name that log lines begin with; -L sets it.",
    ),
    OptionDef::new(
        "log_file",
        "",
        Access::PathOrNone(|c| &mut c.log.file),
        "The file that log lines are appended to; empty: syslog.",
    )
    .sandbox("var/log/maillog"),
    OptionDef::new(
        "log_socket",
        "/dev/log",
        Access::Path(|c| &mut c.log.socket),
        "The socket of syslog.",
    )
    .sandbox("run/log"),
];

/// A tag that cannot be taken for another part of a log line.
pub(crate) fn syslog_tag(text: &str) -> Result<String, String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    if (1..=SYSLOG_TAG_LEN_MAX).contains(&text.len()) && text.chars().all(is_plain) {
        Ok(text.to_owned())
    } else {
        Err(format!(
            "`{text}' is not a name of 1 to {SYSLOG_TAG_LEN_MAX} letters, digits, `-', `_', `.' or `/'"
        ))
    }
}
