//! An SMTP client's dialogue (L2).

use std::time::Duration;

/// How long the client waits for each step, Sendmail's `Timeout.*` (RFC 5321 4.5.3.2 gives the least of them).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SmtpTimeouts {
    /// `Timeout.connect`: a TCP connection to one address.
    pub connect: Duration,
    /// `Timeout.iconnect`: the same in a message's first attempt.
    pub iconnect: Duration,
    /// `Timeout.initial`: the greeting.
    pub initial: Duration,
    /// `Timeout.helo`: the reply to EHLO or HELO.
    pub helo: Duration,
    /// `Timeout.mail`: the reply to MAIL.
    pub mail: Duration,
    /// `Timeout.rcpt`: the reply to each RCPT.
    pub rcpt: Duration,
    /// `Timeout.datainit`: the reply to DATA.
    pub datainit: Duration,
    /// `Timeout.datablock`: each block of content to be taken.
    pub datablock: Duration,
    /// `Timeout.datafinal`: the reply to the final dot.
    pub datafinal: Duration,
    /// `Timeout.rset`: the reply to RSET.
    pub rset: Duration,
    /// `Timeout.quit`: the reply to QUIT.
    pub quit: Duration,
}

impl Default for SmtpTimeouts {
    /// Sendmail's defaults.
    fn default() -> Self {
        const MINUTE: Duration = Duration::from_secs(60);
        const HOUR: Duration = Duration::from_secs(3600);
        Self {
            connect: 5 * MINUTE,
            iconnect: 5 * MINUTE,
            initial: 5 * MINUTE,
            helo: 5 * MINUTE,
            mail: 10 * MINUTE,
            rcpt: HOUR,
            datainit: 5 * MINUTE,
            datablock: HOUR,
            datafinal: HOUR,
            rset: 5 * MINUTE,
            quit: 2 * MINUTE,
        }
    }
}
