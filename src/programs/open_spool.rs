//! A spool opened by this process, with the thread that writes it.
//!
//! The journal is written by a thread of its own, never by one of the runtime. When that thread ends without having
//! been told to, the journal is poisoned (I3) and [`OpenSpool::ended`] says so. Blocks: opening and closing, disk.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::watch;

use crate::clock::Clock;
use crate::config::{SpoolFileSystem, SpoolSettings};
use crate::maillog::{Maillog, QueueId, Severity};
use crate::spool::storage::OsStorage;
use crate::spool::{FootingPolicy, Spool, SpoolError, SpoolOptions};

/// Bytes of the blocks that `MinFreeBlocks` counts.
const BLOCK_BYTES: u64 = 1024;

/// Why a spool could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory, or a thread, could not be had.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// The system's error.
        source: io::Error,
    },
    /// The engine refused.
    #[error("{directory}: {source}")]
    Spool {
        /// The spool's directory.
        directory: String,
        /// Why.
        source: SpoolError,
    },
}

impl OpenError {
    /// Whether another process owns the spool.
    #[must_use]
    pub const fn is_locked(&self) -> bool {
        matches!(
            self,
            Self::Spool {
                source: SpoolError::Locked,
                ..
            }
        )
    }

    /// Whether the spool's directory is where no spool may be: a matter of configuration.
    #[must_use]
    pub const fn is_misplaced(&self) -> bool {
        matches!(
            self,
            Self::Spool {
                source: SpoolError::UnfitFileSystem(_),
                ..
            }
        )
    }
}

impl OpenError {
    /// Whether there is no room for what a start has to write; it passes when the disk has some again.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        matches!(
            self,
            Self::Spool {
                source: SpoolError::Full(_),
                ..
            }
        )
    }
}

/// An open spool and its writer's thread.
pub struct OpenSpool {
    /// The handle to share.
    pub spool: Spool,
    writer: JoinHandle<()>,
    ended: watch::Receiver<bool>,
}

impl OpenSpool {
    /// Opens the spool in `directory`, replays it, tells the log what recovery found, and starts the writer.
    ///
    /// # Errors
    /// [`OpenError`]; [`OpenError::is_locked`] if another process owns it.
    pub fn open(
        directory: &Path,
        settings: &SpoolSettings,
        clock: Arc<dyn Clock>,
        maillog: &Maillog,
    ) -> Result<Self, OpenError> {
        let io_error = |source| OpenError::Io {
            what: directory.display().to_string(),
            source,
        };
        let storage = OsStorage::open(directory)
            .map_err(io_error)?
            .with_file_mode(settings.queue_file_mode);
        let options = SpoolOptions {
            segment_bytes: settings.segment_size.as_bytes(),
            free_bytes_min: u64::from(settings.min_free_blocks).saturating_mul(BLOCK_BYTES),
            footing: match settings.file_system {
                SpoolFileSystem::Durable => FootingPolicy::Durable,
                SpoolFileSystem::Memory => FootingPolicy::Memory,
                SpoolFileSystem::Any => FootingPolicy::Any,
            },
            ..SpoolOptions::default()
        };
        let (spool, writer, report) =
            Spool::open(Arc::new(storage), clock, options).map_err(|source| OpenError::Spool {
                directory: directory.display().to_string(),
                source,
            })?;
        let severity = if report.is_damaged {
            Severity::Critical
        } else {
            Severity::Notice
        };
        for remark in &report.remarks {
            let text = format!("{}: {remark}", directory.display());
            maillog.write(severity, 0, QueueId::None, &text);
        }
        let (tell, ended) = watch::channel(false);
        let writer = std::thread::Builder::new()
            .name("spool-writer".into())
            .spawn(move || {
                writer.run();
                // Nobody listens any more when the process is closing.
                let _ = tell.send(true);
            })
            .map_err(io_error)?;
        Ok(Self {
            spool,
            writer,
            ended,
        })
    }

    /// Resolves when the writer has ended, be it told to or poisoned.
    #[must_use]
    pub fn ended(&self) -> watch::Receiver<bool> {
        self.ended.clone()
    }

    /// Writes what waits, a Seal and a checkpoint, and ends the writer. Blocks: disk.
    ///
    /// # Durability
    /// Everything that was committed is; the next start reads the checkpoint.
    pub fn close(self) {
        self.spool.close();
        // A writer that panicked has ended the process already.
        let _ = self.writer.join();
    }
}
