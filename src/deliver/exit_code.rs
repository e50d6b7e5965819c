//! What a program's exit code means for a recipient (L2): outcome, status, Sendmail's words. Pure.
//!
//! The codes are those of sysexits(3). 71, 74 and 75 defer; every other code but 0 is the program's word that the
//! message cannot be delivered. A program that a signal ended has said nothing: it is tried again.
//! Source: Sendmail 8.17's table of mailer exit codes.

use crate::envelope::{Delivery, Outcome, ProgramEnd};
use crate::status::Status;

/// The file or mailbox cannot be written (sysexits EX_CANTCREAT).
pub(crate) const CANT_CREATE: i32 = 73;
/// Try again later (sysexits EX_TEMPFAIL).
pub(crate) const TEMPORARY_FAILURE: i32 = 75;

/// How a mailer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// The outcome for the recipients of a program of the mailer `mailer`, which was started from `path`.
pub(crate) fn outcome(mailer: &str, path: &str, end: End, output: Vec<String>) -> Outcome {
    let (result, status, text) = match end {
        End::Code(0) => (Delivery::Delivered, Status::OK, "Sent".to_owned()),
        End::Code(TEMPORARY_FAILURE) => (
            Delivery::Deferred,
            Status::new(4, 0, 0),
            format!("Deferred: {mailer} mailer ({path}) exited with EX_TEMPFAIL"),
        ),
        End::Signal(signal) => (
            Delivery::Deferred,
            Status::new(4, 0, 0),
            format!("Deferred: {mailer} mailer ({path}) died with signal {signal}"),
        ),
        End::Code(code) => match named(code) {
            Some((status, text)) if status.class == 4 => {
                (Delivery::Deferred, status, text.to_owned())
            }
            Some((status, text)) => (Delivery::Failed, status, text.to_owned()),
            None => (
                Delivery::Failed,
                Status::new(5, 3, 0),
                format!("unknown mailer error {code}"),
            ),
        },
    };
    let mut outcome = Outcome::new(result, status, mailer, text);
    outcome.program = Some(Box::new(ProgramEnd {
        exit_code: match end {
            End::Code(code) => code,
            End::Signal(_) => TEMPORARY_FAILURE,
        },
        output,
    }));
    outcome
}

/// Status and words of the codes that have some.
fn named(code: i32) -> Option<(Status, &'static str)> {
    Some(match code {
        64 => (Status::new(5, 0, 0), "Command line usage error"),
        65 => (Status::new(5, 6, 0), "Data format error"),
        66 => (Status::new(5, 3, 0), "Cannot open input"),
        67 => (Status::NO_USER, "User unknown"),
        68 => (Status::new(5, 1, 2), "Host unknown"),
        69 => (Status::new(5, 0, 0), "Service unavailable"),
        70 => (Status::new(5, 3, 0), "Internal error"),
        71 => (Status::new(4, 0, 0), "Operating system error"),
        72 => (Status::new(5, 3, 5), "System file missing"),
        73 => (Status::new(5, 0, 0), "Can't create output"),
        74 => (Status::new(4, 0, 0), "I/O error"),
        76 => (Status::new(5, 5, 0), "Remote protocol error"),
        77 => (Status::new(5, 0, 0), "Insufficient permission"),
        78 => (Status::new(5, 3, 5), "Local configuration error"),
        _ => return None,
    })
}

/// The status that a report gives for an exit code; it differs from the log's, as in Sendmail.
pub(crate) fn report_status(code: i32) -> Option<Status> {
    Some(match code {
        64 => Status::new(5, 5, 4),
        65 => Status::new(5, 5, 2),
        67 => Status::NO_USER,
        68 => Status::new(5, 1, 2),
        66 | 73 | 77 => Status::new(5, 3, 0),
        69 | 70 | 72 | 76 | 78 => Status::new(5, 5, 0),
        71 | 74 => Status::new(4, 5, 0),
        75 => Status::new(4, 2, 0),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the real Sendmail logged them, code by code.
    #[test]
    fn exit_codes_come_out_as_sendmail_logs_them() {
        for (code, result, dsn, text) in [
            (0, Delivery::Delivered, "2.0.0", "Sent"),
            (1, Delivery::Failed, "5.3.0", "unknown mailer error 1"),
            (2, Delivery::Failed, "5.3.0", "unknown mailer error 2"),
            (64, Delivery::Failed, "5.0.0", "Command line usage error"),
            (65, Delivery::Failed, "5.6.0", "Data format error"),
            (67, Delivery::Failed, "5.1.1", "User unknown"),
            (68, Delivery::Failed, "5.1.2", "Host unknown"),
            (69, Delivery::Failed, "5.0.0", "Service unavailable"),
            (70, Delivery::Failed, "5.3.0", "Internal error"),
            (71, Delivery::Deferred, "4.0.0", "Operating system error"),
            (72, Delivery::Failed, "5.3.5", "System file missing"),
            (73, Delivery::Failed, "5.0.0", "Can't create output"),
            (74, Delivery::Deferred, "4.0.0", "I/O error"),
            (
                75,
                Delivery::Deferred,
                "4.0.0",
                "Deferred: prog mailer (/usr/libexec/sendmail/smrsh) exited with EX_TEMPFAIL",
            ),
            (77, Delivery::Failed, "5.0.0", "Insufficient permission"),
            (78, Delivery::Failed, "5.3.5", "Local configuration error"),
            (99, Delivery::Failed, "5.3.0", "unknown mailer error 99"),
            (127, Delivery::Failed, "5.3.0", "unknown mailer error 127"),
            (137, Delivery::Failed, "5.3.0", "unknown mailer error 137"),
            (255, Delivery::Failed, "5.3.0", "unknown mailer error 255"),
        ] {
            let path = "/usr/libexec/sendmail/smrsh";
            let outcome = outcome("prog", path, End::Code(code), Vec::new());
            assert_eq!(outcome.result, result, "{code}");
            assert_eq!(outcome.status.to_string(), dsn, "{code}");
            assert_eq!(outcome.text, text, "{code}");
            assert_eq!(outcome.program.unwrap().exit_code, code);
        }
        let killed = outcome("prog", "/x", End::Signal(9), Vec::new());
        assert_eq!(killed.result, Delivery::Deferred);
        assert_eq!(killed.text, "Deferred: prog mailer (/x) died with signal 9");
    }

    #[test]
    fn reports_have_sendmails_own_status_for_an_exit_code() {
        assert_eq!(report_status(69), Some(Status::new(5, 5, 0)));
        assert_eq!(report_status(73), Some(Status::new(5, 3, 0)));
        assert_eq!(report_status(99), None);
    }
}
