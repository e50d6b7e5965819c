//! Delivery to other hosts by SMTP (L2).

use std::sync::Arc;
use std::time::Duration;

use super::{Attempt, NextHop, Results, SmtpTimeouts};
use crate::clock::Clock;
use crate::dns::Resolver;

/// The port of SMTP.
pub const SMTP_PORT: u16 = 25;

/// Whether a name is one of this host's own, so that its mail hosts of equal and worse preference are no way on
/// (RFC 5321 5.1). Names come in lower case, without final dot. Must not block.
pub type OwnName = Arc<dyn Fn(&str) -> bool + Send + Sync>;

/// Settings of the SMTP client.
#[derive(Clone)]
pub struct SmtpOptions {
    /// What EHLO and HELO say.
    pub helo_name: String,
    /// The port where a hop names none; [`SMTP_PORT`].
    pub port: u16,
    /// Whether addresses other than loopback are never contacted, as in a sandbox without `remote = true`.
    pub loopback_only: bool,
    /// Names of this host.
    pub own_name: OwnName,
    /// Time limits.
    pub timeouts: SmtpTimeouts,
    /// `ConnectionCacheSize`: idle connections kept; 0 keeps none.
    pub cache_size: usize,
    /// `ConnectionCacheTimeout`: how long an idle connection is kept.
    pub cache_idle_max: Duration,
}

/// The mailers `esmtp` and `relay`.
pub(crate) struct SmtpMailer {
    _options: SmtpOptions,
}

impl SmtpMailer {
    pub(crate) fn new(
        options: SmtpOptions,
        _resolver: Arc<dyn Resolver>,
        _clock: Arc<dyn Clock>,
    ) -> Self {
        Self { _options: options }
    }

    pub(crate) async fn deliver(
        &self,
        _mailer: &str,
        _hop: &NextHop,
        _attempt: &Attempt,
        _results: &mut Results,
    ) {
    }

    pub(crate) async fn close_idle(&self) {}
}
