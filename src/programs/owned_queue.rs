//! A queue that this process owns: its spool, what works on it, and its control socket.
//!
//! The MTA's daemon has one, a client queue's runner has one, and a sandbox's daemon has both. Starting needs a tokio
//! runtime; stopping is in two steps, first what runs on the runtime, then the journal, so that everything that was
//! acknowledged is written, sealed and checkpointed at the end.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::open_spool::OpenSpool;
use super::wiring::System;
use crate::config::{Config, Privacy, PrivacyOptions};
use crate::control::server::{ControlServer, Order, Owner};
use crate::deliver::Mailers;
use crate::maillog::{Maillog, QueueId, Severity};
use crate::queue::{Queue, QueueHandle, QueueSettings};
use crate::route::Router;
use crate::spool::Spool;

/// How often what the spool wants an operator to know is looked for.
const REMARKS_INTERVAL: Duration = Duration::from_secs(5);

/// A queue at work.
pub struct OwnedQueue {
    /// What works on it.
    pub queue: Arc<QueueHandle>,
    open: OpenSpool,
    directory: PathBuf,
    privacy: PrivacyOptions,
    system: System,
    tasks: Vec<JoinHandle<()>>,
}

impl OwnedQueue {
    /// Starts to work on an open spool. Needs a tokio runtime to be entered.
    #[must_use]
    pub fn start(
        open: OpenSpool,
        config: &Config,
        system: &System,
        router: &Arc<Router>,
        mailers: Mailers,
        run_interval: Option<Duration>,
    ) -> Self {
        let settings = QueueSettings::new(
            &config.queue,
            run_interval,
            router.host_name(),
            !config.smtpd.privacy.has(Privacy::NoBodyReturn),
        );
        let queue = Queue::start(
            open.spool.clone(),
            Arc::clone(router),
            mailers,
            settings,
            Arc::clone(&system.clock),
            system.maillog.clone(),
        );
        let remarks = tokio::spawn(log_remarks(open.spool.clone(), system.maillog.clone()));
        Self {
            queue: Arc::new(queue),
            open,
            directory: config.paths.queue_directory.clone(),
            privacy: config.smtpd.privacy,
            system: system.clone(),
            tasks: vec![remarks],
        }
    }

    /// The spool.
    #[must_use]
    pub fn spool(&self) -> &Spool {
        &self.open.spool
    }

    /// Resolves to true when the journal's writer has ended.
    #[must_use]
    pub fn ended(&self) -> watch::Receiver<bool> {
        self.open.ended()
    }

    /// Runs a task until the queue stops.
    pub fn keep(&mut self, task: JoinHandle<()>) {
        self.tasks.push(task);
    }

    /// Answers on the control socket until the queue stops.
    ///
    /// # Errors
    /// As [`ControlServer::bind`].
    pub fn answer_on(
        &mut self,
        socket: &std::path::Path,
        orders: mpsc::Sender<Order>,
    ) -> io::Result<()> {
        let server = ControlServer::bind(socket)?;
        let owner = Owner {
            spool: self.open.spool.clone(),
            queue: Arc::clone(&self.queue),
            directory: self.directory.clone(),
            clock: Arc::clone(&self.system.clock),
            privacy: self.privacy,
            maillog: self.system.maillog.clone(),
            orders,
        };
        self.tasks.push(tokio::spawn(server.serve(Arc::new(owner))));
        Ok(())
    }

    /// Ends what runs on the runtime; the spool is left for [`OpenSpool::close`], which blocks.
    pub async fn stop(self) -> OpenSpool {
        self.queue.shutdown().await;
        for task in self.tasks {
            task.abort();
            // It was told to end; how it did does not matter.
            let _ = task.await;
        }
        self.open
    }
}

/// Tells the log what the spool has noticed.
async fn log_remarks(spool: Spool, maillog: Maillog) {
    loop {
        tokio::time::sleep(REMARKS_INTERVAL).await;
        for remark in spool.take_remarks() {
            maillog.write(Severity::Error, 0, QueueId::None, &remark);
        }
    }
}
