//! Sizes, ages and counts of the engine, each with its default.

use std::time::Duration;

use super::file_system::FootingPolicy;

/// Settings of a spool. All sizes in bytes.
#[derive(Debug, Clone)]
pub struct SpoolOptions {
    /// Size of a segment file: 1 MiB to 1 GiB (smaller in tests, at least 64 KiB), a multiple of 4096.
    pub segment_bytes: u64,
    /// Most bytes of frames in one batch, the one tuning value (SPOOL 4).
    pub batch_bytes_max: u64,
    /// Most bytes that wait for the writer before sessions are asked to stop reading.
    pub queue_bytes_max: u64,
    /// Most live messages; beyond it new ones are refused for a time.
    pub messages_max: u64,
    /// Most files kept ready to become segments, while mail comes in so fast that checkpoints are due by their bytes: as
    /// many die at once as two checkpoints are apart. A quarter of it otherwise, at least two.
    pub spares_max: usize,
    /// Bytes that must stay free on the file system.
    pub free_bytes_min: u64,
    /// How long an outcome may wait for a batch to ride in.
    pub outcome_delay: Duration,
    /// How long the journal is idle before a Pulse proves its last batch durable.
    pub pulse_delay: Duration,
    /// A checkpoint is written after this many bytes of journal, or four times the last checkpoint if that is more.
    pub checkpoint_bytes: u64,
    /// A checkpoint is written after this time if anything changed.
    pub checkpoint_interval: Duration,
    /// How long a segment rests after it is sealed before what lives in it may be moved out: by its generation, hot,
    /// warm, cold (SPOOL 8).
    pub relocation_rest: [Duration; 3],
    /// Segments of which less than this share lives are emptied, in per cent.
    pub relocation_share: u64,
    /// Most bytes moved in a second.
    pub relocation_rate: u64,
    /// Due times read from disk are believed up to this far ahead (SPOOL 6: clock jumps).
    pub due_ahead_max: Duration,
    /// Process id that queue ids show.
    pub process_id: u32,
    /// What is asked of the file system.
    pub footing: FootingPolicy,
}

impl Default for SpoolOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            batch_bytes_max: 4 << 20,
            queue_bytes_max: 32 << 20,
            messages_max: 10_000_000,
            spares_max: 12,
            free_bytes_min: 0,
            outcome_delay: Duration::from_millis(20),
            pulse_delay: Duration::from_millis(100),
            checkpoint_bytes: 256 << 20,
            checkpoint_interval: Duration::from_secs(60),
            relocation_rest: [
                Duration::from_secs(15 * 60),
                Duration::from_secs(3600),
                Duration::from_secs(3600),
            ],
            relocation_share: 45,
            relocation_rate: 8 << 20,
            due_ahead_max: Duration::from_secs(24 * 3600),
            process_id: std::process::id(),
            footing: FootingPolicy::Durable,
        }
    }
}
