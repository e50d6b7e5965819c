//! Submission on the command line.
//!
//! A part of the table of options, see [`options`](super). Pure values: nothing is read, nothing blocks.

use super::{OptionDef, host_or_none, shown_host};
use crate::config::modes::ErrorMode;
use crate::config::value::Access;

pub(super) const SUBMISSION: &[OptionDef] = &[
    OptionDef::new(
        "trusted_users",
        "/etc/mail/trusted-users",
        Access::Path(|c| &mut c.submit.trusted_users),
        "Users who may set any sender without a warning (class t), one a line.",
    )
    .sandbox("etc/mail/trusted-users"),
    OptionDef::new(
        "mta_host",
        "",
        Access::Form {
            form: "[address]:port, empty for what the address file says, then [127.0.0.1]",
            set: |c, text| {
                c.submit.mta_host = host_or_none(text)?;
                Ok(())
            },
            show: |c| shown_host(c.submit.mta_host.as_ref()),
        },
        "Where submitted mail is handed over.",
    ),
    OptionDef::new(
        "error_mode",
        "print",
        Access::Form {
            form: "print, quiet, mail, write or exitzero",
            set: |c, text| {
                c.submit.error_mode = ErrorMode::parse(text)
                    .ok_or_else(|| format!("`{text}' is not an error mode"))?;
                Ok(())
            },
            show: |c| c.submit.error_mode.name().to_owned(),
        },
        "How a submitter is told about errors.",
    )
    .named("ErrorMode")
    .letter('e')
    .safe(),
    OptionDef::new(
        "ignore_dots",
        "false",
        Access::Flag(|c| &mut c.submit.ignore_dots),
        "Whether a line with only a dot is part of a submitted message.",
    )
    .named("IgnoreDots")
    .letter('i')
    .safe(),
    OptionDef::new(
        "verbose",
        "false",
        Access::Flag(|c| &mut c.submit.verbose),
        "Whether the SMTP dialogue is shown.",
    )
    .named("Verbose")
    .letter('v')
    .safe(),
];
