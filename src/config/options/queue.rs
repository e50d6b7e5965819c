//! When messages are tried, and the spool's files.
//!
//! A part of the table of options, see [`options`](super). Pure values: nothing is read, nothing blocks.

use std::time::Duration;

use super::{DAY, OptionDef, SECOND};
use crate::config::duration::TimeUnit;
use crate::config::modes::{DeliveryMode, SpoolFileSystem};
use crate::config::size::ByteSize;
use crate::config::value::Access;

pub(super) const QUEUE: &[OptionDef] = &[
    OptionDef::new(
        "delivery_mode",
        "background",
        Access::Form {
            form: "background, interactive, queue or deferred",
            set: |c, text| {
                c.queue.delivery_mode = DeliveryMode::parse(text)
                    .ok_or_else(|| format!("`{text}' is not a delivery mode"))?;
                Ok(())
            },
            show: |c| c.queue.delivery_mode.name().to_owned(),
        },
        "When a new message is first tried.",
    )
    .named("DeliveryMode")
    .letter('d')
    .msp("interactive")
    .safe(),
    OptionDef::new(
        "max_queue_children",
        "64",
        Access::Count {
            field: |c| &mut c.queue.max_queue_children,
            min: 1,
            max: 10_000,
        },
        "Messages delivered at once.",
    )
    .named("MaxQueueChildren"),
    OptionDef::new(
        "min_queue_age",
        "5m",
        Access::Time {
            field: |c| &mut c.queue.retry.min_queue_age,
            unit: TimeUnit::Minutes,
            min: SECOND,
            max: DAY,
        },
        "The wait after the first failed attempt; it doubles after each further one.",
    )
    .named("MinQueueAge")
    .safe(),
    OptionDef::new(
        "max_queue_age",
        "4h",
        Access::Time {
            field: |c| &mut c.queue.retry.max_queue_age,
            unit: TimeUnit::Minutes,
            min: SECOND,
            max: Duration::from_secs(7 * 86_400),
        },
        "The longest wait between two attempts.",
    )
    .named("MaxQueueAge"),
    OptionDef::new(
        "timeout.queue_warn",
        "4h",
        Access::TimeOrNever {
            field: |c| &mut c.queue.retry.queue_warn,
            unit: TimeUnit::Hours,
            max: Duration::from_secs(60 * 86_400),
        },
        "Age of a message at which its sender is warned of the delay.",
    )
    .named("Timeout.queuewarn")
    .safe(),
    OptionDef::new(
        "timeout.queue_return",
        "5d",
        Access::Time {
            field: |c| &mut c.queue.retry.queue_return,
            unit: TimeUnit::Days,
            min: SECOND,
            max: Duration::from_secs(60 * 86_400),
        },
        "Age of a message at which it is returned to its sender; \"now\" is 1s.",
    )
    .named("Timeout.queuereturn")
    .letter('T')
    .safe(),
    OptionDef::new(
        "double_bounce_address",
        "postmaster",
        Access::TextOrNone(|c| &mut c.queue.double_bounce_address),
        "Who gets a report that cannot be delivered to the sender.",
    )
    .named("DoubleBounceAddress"),
    OptionDef::new(
        "postmaster_copy",
        "",
        Access::TextOrNone(|c| &mut c.queue.postmaster_copy),
        "Who gets a copy, without the body, of every report of failure.",
    )
    .named("PostmasterCopy")
    .letter('P'),
    OptionDef::new(
        "segment_size",
        "64M",
        Access::Size {
            field: |c| &mut c.spool.segment_size,
            min: ByteSize::mib(1),
            max: ByteSize::gib(1),
        },
        "Bytes of one file of the journal.",
    )
    .msp("4M")
    .sandbox("4M"),
    OptionDef::new(
        "min_free_blocks",
        "100",
        Access::Count {
            field: |c| &mut c.spool.min_free_blocks,
            min: 0,
            max: u32::MAX,
        },
        "Free blocks of 1,024 bytes below which mail is answered 452.",
    )
    .named("MinFreeBlocks")
    .letter('b')
    .safe(),
    OptionDef::new(
        "spool_file_system",
        "durable",
        Access::Form {
            form: "durable, memory or any",
            set: |c, text| {
                c.spool.file_system = SpoolFileSystem::parse(text)
                    .ok_or_else(|| format!("`{text}' is not durable, memory or any"))?;
                Ok(())
            },
            show: |c| c.spool.file_system.name().to_owned(),
        },
        "Refuse a spool on NFS, FUSE and the like, warn of one in memory; memory: do not warn; any: do not refuse.",
    )
    .sandbox("memory"),
    OptionDef::new(
        "max_drop_files_per_user",
        "10000",
        Access::CountOrNone {
            field: |c| &mut c.spool.max_drop_files_per_user,
            max: 1_000_000,
        },
        "Messages that one user may have waiting as files for the client queue; a further one is refused with 75.",
    ),
    OptionDef::new(
        "queue_file_mode",
        "0600",
        Access::Form {
            form: "octal permission bits, 0600, 0640 or 0660",
            set: |c, text| {
                let mode = u32::from_str_radix(text.trim(), 8).ok();
                let mode = mode.filter(|mode| matches!(mode, 0o600 | 0o640 | 0o660));
                c.spool.queue_file_mode =
                    mode.ok_or_else(|| format!("`{text}' is not 0600, 0640 or 0660"))?;
                Ok(())
            },
            show: |c| format!("{:04o}", c.spool.queue_file_mode),
        },
        "Permission bits of the files made in the spool, whatever the umask; drop files have their own.",
    )
    .named("QueueFileMode")
    .msp("0660")
    .sandbox("0600")
    .sandbox_msp("0600"),
];
