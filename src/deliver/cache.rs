//! Idle connections, kept a short while for the next message to the same hop (L2).
//!
//! Guarantees: a connection is given out only if the server has neither closed it nor said anything since; it is given
//! to one user at a time; one that is not used again is closed with QUIT within the time it may be idle. Whether it
//! still works is known only when it is used: the caller falls back to a new one.
//! Limits: the number kept and the idle time are the caller's (`ConnectionCacheSize`, `ConnectionCacheTimeout`), a
//! connection's uses [`TRANSACTIONS_MAX`], the wait for the reply to QUIT [`QUIT_TIME_MAX`].

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::Verbose;
use super::client::SmtpClient;

/// Messages sent over one connection; servers tend to have a limit of their own.
pub const TRANSACTIONS_MAX: u32 = 500;
/// Longest wait for the reply to QUIT, which nothing depends on.
pub const QUIT_TIME_MAX: Duration = Duration::from_secs(5);

/// Connections that wait for their next message.
pub(crate) struct ConnectionCache {
    kept: Mutex<Kept>,
    size: usize,
    idle_max: Duration,
}

#[derive(Default)]
struct Kept {
    entries: Vec<Entry>,
    /// Half idle times gone by.
    tick: u64,
    /// Whether a task watches over the entries' age.
    is_watched: bool,
}

struct Entry {
    key: String,
    client: SmtpClient,
    tick: u64,
}

impl ConnectionCache {
    pub(crate) fn new(size: usize, idle_max: Duration) -> Arc<Self> {
        Arc::new(Self {
            kept: Mutex::new(Kept::default()),
            size,
            idle_max,
        })
    }

    /// Takes the connection to a hop that was used last, if there is a good one.
    pub(crate) fn take(&self, key: &str) -> Option<SmtpClient> {
        let mut kept = self.lock();
        while let Some(at) = kept.entries.iter().rposition(|entry| entry.key == key) {
            let client = kept.entries.remove(at).client;
            if client.is_quiet() {
                return Some(client);
            }
        }
        None
    }

    /// Keeps a connection, or closes it where it cannot be kept. Needs a runtime.
    pub(crate) fn put(self: &Arc<Self>, key: &str, mut client: SmtpClient) {
        if !client.is_usable() {
            return;
        }
        // Who watched the last message must not be held on to by the next.
        client.set_verbose(None);
        if self.size == 0 || client.transactions() >= TRANSACTIONS_MAX {
            tokio::spawn(client.quit(QUIT_TIME_MAX));
            return;
        }
        let mut kept = self.lock();
        if kept.entries.len() >= self.size {
            let oldest = kept.entries.remove(0).client;
            tokio::spawn(oldest.quit(QUIT_TIME_MAX));
        }
        let tick = kept.tick;
        kept.entries.push(Entry {
            key: key.to_owned(),
            client,
            tick,
        });
        if !std::mem::replace(&mut kept.is_watched, true) {
            tokio::spawn(Arc::clone(self).watch());
        }
    }

    /// Closes what is kept, and waits for the servers to say goodbye. `verbose` is told how.
    pub(crate) async fn close(&self, verbose: Option<&Verbose>) {
        let entries = std::mem::take(&mut self.lock().entries);
        let closing: Vec<_> = entries
            .into_iter()
            .map(|mut entry| {
                entry.client.set_verbose(verbose.cloned());
                tokio::spawn(entry.client.quit(QUIT_TIME_MAX))
            })
            .collect();
        for task in closing {
            // A task that did not end well has closed its connection all the same.
            let _ = task.await;
        }
    }

    /// Closes connections whose time is up, while there are any. An entry has seen at least one half idle time begin
    /// and end when it goes, and two at most.
    async fn watch(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.idle_max / 2).await;
            let (expired, is_done) = {
                let mut kept = self.lock();
                kept.tick = kept.tick.wrapping_add(1);
                let tick = kept.tick;
                let (old, young): (Vec<Entry>, Vec<Entry>) = std::mem::take(&mut kept.entries)
                    .into_iter()
                    .partition(|entry| tick.wrapping_sub(entry.tick) >= 2);
                kept.entries = young;
                kept.is_watched = !kept.entries.is_empty();
                (old, !kept.is_watched)
            };
            for entry in expired {
                tokio::spawn(entry.client.quit(QUIT_TIME_MAX));
            }
            if is_done {
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
