//! From the fate of recipients to the exit code of `sendmail`.
//!
//! Source: sysexits(3); Sendmail's table of texts for them.

use crate::envelope::Outcome;
use crate::status::ExitCode;

/// The text of `stat=` that Sendmail has for each code.
const TEXTS: [(&str, ExitCode); 13] = [
    ("Command line usage error", ExitCode::Usage),
    ("Data format error", ExitCode::DataErr),
    ("Cannot open input", ExitCode::NoInput),
    ("User unknown", ExitCode::NoUser),
    ("Host unknown", ExitCode::NoHost),
    ("Service unavailable", ExitCode::Unavailable),
    ("Internal error", ExitCode::Software),
    ("Operating system error", ExitCode::OsErr),
    ("System file missing", ExitCode::OsFile),
    ("Can't create output", ExitCode::CantCreat),
    ("I/O error", ExitCode::IoErr),
    ("Insufficient permission", ExitCode::NoPerm),
    ("Local configuration error", ExitCode::Config),
];

/// The exit code for a recipient that failed.
pub(super) fn of_failure(outcome: &Outcome) -> ExitCode {
    TEXTS
        .iter()
        .find(|(text, _)| outcome.text.starts_with(text))
        .map_or_else(|| of_status(outcome), |(_, code)| *code)
}

fn of_status(outcome: &Outcome) -> ExitCode {
    match (outcome.status.subject, outcome.status.detail) {
        (1, 1 | 3 | 6) => ExitCode::NoUser,
        (1, 2) => ExitCode::NoHost,
        (5 | 6, _) => ExitCode::DataErr,
        _ => ExitCode::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::Delivery;
    use crate::status::Status;

    #[test]
    fn texts_decide_and_status_codes_help_out() {
        let code = |status: &str, text: &str| {
            of_failure(&Outcome::new(
                Delivery::Failed,
                Status::parse(status).unwrap(),
                "relay",
                text,
            ))
        };
        assert_eq!(code("5.7.1", "User unknown"), ExitCode::NoUser);
        assert_eq!(code("5.1.8", "Data format error"), ExitCode::DataErr);
        assert_eq!(code("5.2.3", "Service unavailable"), ExitCode::Unavailable);
        assert_eq!(code("5.1.1", "something else"), ExitCode::NoUser);
        assert_eq!(code("5.0.0", "something else"), ExitCode::Unavailable);
    }
}
