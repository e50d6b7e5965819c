//! `-q` and what may be attached to it: when to run the queue, and which
//! messages.
//!
//! Source: sendmail(8), `-q[!]{G,I,Q,R,S}substr`, `-q[time]`, `-qp[time]`, `-qf`.

use std::time::Duration;

use super::CliError;
use crate::config::duration::{TimeUnit, parse_time};
use crate::control::selection::{Field, Kind, Limit, Selection};

/// The one queue group there is.
const QUEUE_GROUP: &str = "mqueue";
/// The longest time between two queue runs.
const QUEUE_INTERVAL_MAX: Duration = Duration::from_secs(7 * 86_400);
/// How often `-qp` without a time looks at the queue.
const PERSISTENT_INTERVAL: Duration = Duration::from_secs(1);

/// When the queue is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueTiming {
    /// `-q`, `-qI..`: once, now.
    Once,
    /// `-qf`: once, now, and the command ends when the run does.
    Foreground,
    /// `-q30m`, `-qp30m`: again and again, first at once.
    Every(Duration),
}

/// Every `-q` of a command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueRun {
    /// When.
    pub timing: QueueTiming,
    /// Which messages.
    pub selection: Selection,
}

impl QueueRun {
    /// Adds what follows one `-q` to those before it. Limits add up; of several
    /// times the last one counts.
    pub(super) fn add(before: Option<Self>, text: &str) -> Result<Self, CliError> {
        let mut run = before.unwrap_or_else(|| Self {
            timing: QueueTiming::Once,
            selection: Selection::all(Kind::Normal),
        });
        let bad = |reason| CliError::QueueFlag {
            text: text.to_owned(),
            reason,
        };
        let (is_negated, rest) = match text.strip_prefix('!') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let mut letters = rest.chars();
        let first = letters.next();
        let value = letters.as_str();
        let field = match first {
            Some('I') => Some(Field::Id),
            Some('R') => Some(Field::Recipient),
            Some('S') => Some(Field::Sender),
            Some('Q') if is_negated || !value.is_empty() => Some(Field::Quarantine),
            _ => None,
        };
        if let Some(field) = field {
            if value.is_empty() {
                return Err(bad("a substring is missing"));
            }
            if field == Field::Quarantine {
                run.selection.kind = Kind::Quarantined;
            }
            let limit = Limit::new(field, is_negated, value)
                .ok_or_else(|| bad("substring is too long or has a control character"))?;
            if !run.selection.push(limit) {
                return Err(bad("too many limits"));
            }
            return Ok(run);
        }
        if is_negated {
            return Err(bad("! stands before I, Q, R or S"));
        }
        match (first, value) {
            (None, "") => {}
            (Some('f'), "") => run.timing = QueueTiming::Foreground,
            (Some('Q'), "") => run.selection.kind = Kind::Quarantined,
            (Some('L'), "") => run.selection.kind = Kind::Lost,
            (Some('G'), QUEUE_GROUP) => {}
            (Some('G'), group) => return Err(CliError::QueueGroup(group.to_owned())),
            (Some('p'), "") => run.timing = QueueTiming::Every(PERSISTENT_INTERVAL),
            (Some('p'), time) => run.timing = timing(time)?,
            _ => run.timing = timing(text)?,
        }
        Ok(run)
    }
}

fn timing(text: &str) -> Result<QueueTiming, CliError> {
    // A plain number counts minutes.
    let every = parse_time(text, TimeUnit::Minutes).map_err(CliError::QueueTime)?;
    if every > QUEUE_INTERVAL_MAX {
        return Err(CliError::QueueTime(
            crate::config::duration::TimeError::TooLong,
        ));
    }
    // `-q0` is the bare `-q`.
    Ok(if every.is_zero() {
        QueueTiming::Once
    } else {
        QueueTiming::Every(every)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(texts: &[&str]) -> Result<QueueRun, CliError> {
        let mut run = None;
        for text in texts {
            run = Some(QueueRun::add(run, text)?);
        }
        Ok(run.unwrap())
    }

    #[test]
    fn times_count_minutes_and_make_the_run_repeat() {
        let every = |seconds| QueueTiming::Every(Duration::from_secs(seconds));
        assert_eq!(parse(&[""]).unwrap().timing, QueueTiming::Once);
        assert_eq!(parse(&["0"]).unwrap().timing, QueueTiming::Once);
        assert_eq!(parse(&["30m"]).unwrap().timing, every(1_800));
        assert_eq!(parse(&["1h30"]).unwrap().timing, every(5_400));
        assert_eq!(parse(&["p1h"]).unwrap().timing, every(3_600));
        assert_eq!(parse(&["p"]).unwrap().timing, every(1));
        assert_eq!(parse(&["f"]).unwrap().timing, QueueTiming::Foreground);
    }

    #[test]
    fn limits_add_up() {
        let run = parse(&["", "Rdead", "!Ssender", "Iabc", "Gmqueue"]).unwrap();
        assert_eq!(run.selection.to_words(), ["N", "Rdead", "!Ssender", "Iabc"]);
        assert_eq!(parse(&["Q"]).unwrap().selection.kind, Kind::Quarantined);
        assert_eq!(
            parse(&["Qspam"]).unwrap().selection.to_words(),
            ["Q", "Qspam"]
        );
        assert_eq!(parse(&["L"]).unwrap().selection.kind, Kind::Lost);
    }

    #[test]
    fn bad_ones_have_sendmails_text_or_a_reason() {
        let text = |flag| parse(&[flag]).unwrap_err().to_string();
        assert_eq!(text("X"), "Invalid time unit `X'");
        assert_eq!(text("10x"), "Invalid time unit `x'");
        assert_eq!(text("Gnosuch"), "Queue group nosuch unknown");
        assert_eq!(text("!"), "-q!: ! stands before I, Q, R or S");
        assert!(text("I").contains("substring is missing"));
        assert!(text("99999w").contains("too long"));
        assert!(text(&format!("I{}", "x".repeat(1_000))).contains("too long"));
    }
}
