//! Which file systems can keep a spool's promises: a sync that means the disk, a rename that is atomic, a lock.
//!
//! The decision is a pure function of what statfs(2) and /proc/self/mountinfo say; [`super::storage::OsStorage`] reads
//! those two. A file system over a network or in another process is refused by its name, as is an overlay that was
//! mounted not to sync; one in memory, or without write barriers, is warned about. What is not listed is believed.
//! Limits: [`MOUNTINFO_BYTES_MAX`]. Sources: statfs(2), proc_pid_mountinfo(5), the kernel's overlayfs.rst.

/// Most bytes of /proc/self/mountinfo that are read.
pub(super) const MOUNTINFO_BYTES_MAX: u64 = 16 << 20;

/// What the file system under a spool is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Footing {
    /// Nothing speaks against it.
    Firm,
    /// It works, but what was synced may not survive a power cut or a restart of the machine.
    Fleeting {
        /// The file system's name and why, such as `tmpfs: it is in memory alone`.
        what: String,
        /// Whether it is in memory by its nature, as a test or a sandbox may well want.
        is_memory: bool,
    },
    /// It can't keep the promises.
    Unfit {
        /// The file system's name and why, such as `nfs: it is on another machine`.
        what: String,
    },
}

/// What is asked of the file system when a spool is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FootingPolicy {
    /// Refuse an unfit one, remark on a fleeting one.
    #[default]
    Durable,
    /// The same, but one in memory is meant to be there.
    Memory,
    /// Take any, and remark on an unfit one.
    Any,
}

/// Why a file system is on the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nature {
    Network,
    UserSpace,
    Memory,
    Overlay,
    /// A disk's, whose options are looked at.
    Disk,
}

/// Numbers of statfs(2), the name used where mountinfo has none, and what it is.
const KNOWN: &[(u64, &str, Nature)] = &[
    (0x6969, "nfs", Nature::Network),
    (0x517b, "smbfs", Nature::Network),
    (0xff53_4d42, "cifs", Nature::Network),
    (0xfe53_4d42, "smb3", Nature::Network),
    (0x0102_1997, "9p", Nature::Network),
    (0x5346_414f, "afs", Nature::Network),
    (0x6b41_4653, "afs", Nature::Network),
    (0x7375_7245, "coda", Nature::Network),
    (0x00c3_6400, "ceph", Nature::Network),
    (0x564c, "ncpfs", Nature::Network),
    (0x0bd0_0bd0, "lustre", Nature::Network),
    (0x786f_4256, "vboxsf", Nature::Network),
    (0x6573_5546, "fuse", Nature::UserSpace),
    (0x0102_1994, "tmpfs", Nature::Memory),
    (0x8584_58f6, "ramfs", Nature::Memory),
    (0x794c_7630, "overlay", Nature::Overlay),
    (0xef53, "ext4", Nature::Disk),
    (0x9123_683e, "btrfs", Nature::Disk),
    (0x5846_5342, "xfs", Nature::Disk),
];

/// A mount as mountinfo shows it.
struct Mount<'a> {
    kind: &'a str,
    /// Of the mount and of the file system.
    options: Vec<&'a str>,
}

/// The mount with this id; `None` if the text has no such line.
fn find_mount(mountinfo: &str, mount_id: u64) -> Option<Mount<'_>> {
    mountinfo.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ');
        if before.next()?.parse() != Ok(mount_id) {
            return None;
        }
        // Parent, device, root and mount point lie between.
        let of_mount = before.nth(4)?;
        let mut after = after.split(' ');
        let kind = after.next()?;
        let of_file_system = after.nth(1).unwrap_or_default();
        Some(Mount {
            kind,
            options: of_mount
                .split(',')
                .chain(of_file_system.split(','))
                .collect(),
        })
    })
}

/// Judges a file system by its number in statfs(2) and by the line of mountinfo with this mount id.
///
/// Pure. Where there is no such line (no /proc), the number alone decides.
#[must_use]
pub fn judge(magic: u64, mountinfo: &str, mount_id: Option<u64>) -> Footing {
    let mount = mount_id.and_then(|id| find_mount(mountinfo, id));
    let Some((_, known_as, nature)) = KNOWN.iter().find(|(number, ..)| *number == magic) else {
        return Footing::Firm;
    };
    let name = mount.as_ref().map_or(*known_as, |mount| mount.kind);
    let has = |wanted: &[&str]| {
        mount
            .as_ref()
            .is_some_and(|mount| mount.options.iter().any(|option| wanted.contains(option)))
    };
    let unfit = |why: &str| Footing::Unfit {
        what: format!("{name}: {why}"),
    };
    match nature {
        Nature::Network => unfit("it is on another machine, and a sync or a lock may not reach it"),
        Nature::UserSpace => unfit("another process keeps it, and a sync may mean nothing"),
        Nature::Memory => Footing::Fleeting {
            what: format!("{name}: it is in memory, and mail in it ends with the machine"),
            is_memory: true,
        },
        // `fsync=volatile` is how Linux 6.15 and later show it.
        Nature::Overlay if has(&["volatile", "fsync=volatile"]) => {
            unfit("it is mounted volatile, so that a sync does nothing")
        }
        Nature::Overlay if mount.is_none() => Footing::Fleeting {
            what: format!("{name}: whether it is mounted volatile can't be told without /proc"),
            is_memory: false,
        },
        Nature::Disk if has(&["nobarrier", "barrier=0"]) => Footing::Fleeting {
            what: format!(
                "{name}: it is mounted without write barriers, so that a power cut may undo a sync"
            ),
            is_memory: false,
        },
        Nature::Overlay | Nature::Disk => Footing::Firm,
    }
}

/// What a policy makes of a file system: a remark for the log, or why it is refused.
pub(super) fn admit(footing: Footing, policy: FootingPolicy) -> Result<Option<String>, String> {
    match (footing, policy) {
        (Footing::Firm, _) => Ok(None),
        (
            Footing::Fleeting {
                is_memory: true, ..
            },
            FootingPolicy::Memory | FootingPolicy::Any,
        ) => Ok(None),
        (Footing::Fleeting { what, .. }, _) => Ok(Some(format!("file system {what}"))),
        (Footing::Unfit { what }, FootingPolicy::Any) => {
            Ok(Some(format!("file system {what}; taken as told")))
        }
        (Footing::Unfit { what }, _) => Err(what),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
21 1 254:0 / / rw,relatime - ext4 /dev/root rw
22 21 0:20 / /proc rw,nosuid,nodev,noexec,relatime shared:12 - proc proc rw
30 21 0:39 / /dev/shm rw,nosuid,nodev shared:4 - tmpfs tmpfs rw
31 21 0:51 / /home/a\\040b rw,relatime shared:9 master:3 - nfs4 server:/export rw,vers=4.2,hard
32 21 0:52 / /m rw,relatime - fuse.sshfs user@host:/ rw,user_id=0
33 21 0:53 / /o rw,relatime - overlay overlay rw,lowerdir=/l,upperdir=/u,workdir=/w,volatile
34 21 0:54 / /p rw,relatime - overlay overlay rw,lowerdir=/l,upperdir=/u,workdir=/w,uuid=on,fsync=volatile
35 21 0:55 / /q rw,relatime - overlay overlay rw,lowerdir=/l/volatile,upperdir=/u,workdir=/w
36 21 254:1 / /r rw,relatime - ext4 /dev/vdb rw,nobarrier
37 21 254:1 / /s rw,relatime - ext3 /dev/vdb rw,barrier=0
38 21 0:56 / /t rw,relatime - cifs //server/share rw
39 21 0:57 / /u rw,relatime - 9p hostshare rw,trans=virtio
40 21 0:58 / /v rw,relatime - virtiofs hostshare rw
";

    fn at(magic: u64, id: u64) -> Footing {
        judge(magic, MOUNTS, Some(id))
    }

    #[test]
    fn what_cannot_keep_the_promises_is_refused_by_its_name() {
        for (magic, id, name) in [
            (0x6969, 31, "nfs4: "),
            (0x6573_5546, 32, "fuse.sshfs: "),
            (0x6573_5546, 40, "virtiofs: "),
            (0x794c_7630, 33, "overlay: "),
            (0x794c_7630, 34, "overlay: "),
            (0xff53_4d42, 38, "cifs: "),
            (0xfe53_4d42, 38, "cifs: "),
            (0x0102_1997, 39, "9p: "),
        ] {
            let Footing::Unfit { what } = at(magic, id) else {
                panic!("{name}")
            };
            assert!(what.starts_with(name), "{what}");
            assert_eq!(
                admit(at(magic, id), FootingPolicy::Durable),
                Err(what.clone())
            );
            assert_eq!(admit(at(magic, id), FootingPolicy::Memory), Err(what));
            let forced = admit(at(magic, id), FootingPolicy::Any).unwrap().unwrap();
            assert!(forced.contains("as told"), "{forced}");
        }
    }

    #[test]
    fn memory_and_missing_barriers_are_remarked_on() {
        let memory = at(0x0102_1994, 30);
        assert!(
            matches!(&memory, Footing::Fleeting { what, is_memory: true } if what.starts_with("tmpfs: "))
        );
        assert!(
            admit(memory.clone(), FootingPolicy::Durable)
                .unwrap()
                .is_some()
        );
        assert_eq!(admit(memory.clone(), FootingPolicy::Memory), Ok(None));
        assert_eq!(admit(memory, FootingPolicy::Any), Ok(None));
        for id in [36, 37] {
            for policy in [
                FootingPolicy::Durable,
                FootingPolicy::Memory,
                FootingPolicy::Any,
            ] {
                let remark = admit(at(0xef53, id), policy).unwrap().unwrap();
                assert!(remark.contains("barriers"), "{remark}");
            }
        }
    }

    #[test]
    fn disks_and_ordinary_overlays_are_taken() {
        assert_eq!(at(0xef53, 21), Footing::Firm);
        assert_eq!(at(0x794c_7630, 35), Footing::Firm);
        assert_eq!(
            at(0x2fc1_2fc1, 21),
            Footing::Firm,
            "an unknown one is believed"
        );
        assert_eq!(admit(Footing::Firm, FootingPolicy::Durable), Ok(None));
    }

    #[test]
    fn without_proc_the_number_decides() {
        for (mountinfo, id) in [
            ("", Some(31)),
            (MOUNTS, None),
            ("garbage\n - x\n31", Some(31)),
        ] {
            assert!(
                matches!(judge(0x6969, mountinfo, id), Footing::Unfit { what } if what.starts_with("nfs: "))
            );
            assert_eq!(judge(0xef53, mountinfo, id), Footing::Firm);
            assert!(matches!(
                judge(0x794c_7630, mountinfo, id),
                Footing::Fleeting {
                    is_memory: false,
                    ..
                }
            ));
        }
    }
}
