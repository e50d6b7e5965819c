//! The real daemon on a disk that is really full: a small file system of its own, mounted for the test (SPOOL 6, I8).
//!
//! Mail is refused with 452 and nothing that was acknowledged is lost; what waits is listed, delivered and recorded while
//! the disk stays full; a daemon that is killed meanwhile starts again; and when there is room, mail is taken again without
//! anybody's help. Full means in turn: less free than `MinFreeBlocks`; no room for a segment; no inode for one.
//!
//! Root gets ext4 on a loop device, others a tmpfs in a user namespace; either is in a mount namespace that ends with the
//! test. Where neither can be had, a test says SKIPPED on standard error, which `.ci/run` does not accept from root.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/daemon.rs"]
mod daemon;

use std::collections::HashSet;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

use daemon::{Sandbox, SmtpClient, wait_for};
use diligence::address::ReversePath;
use diligence::clock::SystemClock;
use diligence::envelope::{Envelope, Recipient};
use diligence::spool::storage::OsStorage;
use diligence::spool::{Spool, SpoolError, SpoolOptions};
use nix::sys::signal::Signal;

/// Bytes of the disk: room for a handful of a sandbox's segments of 4 MiB.
const DISK_BYTES: u64 = 40 << 20;
/// Inodes of a disk that is to run out of them.
const INODES: &str = "32";
/// More messages than the disk holds of the large ones.
const MESSAGES_MAX: usize = 200;
/// Lines of a message that fills the disk.
const LARGE_LINES: usize = 5000;

/// What a daemon logs that waits for room to start.
const NO_ROOM: &str = "the daemon starts when there is room";

const ELSEWHERE: &str = "somebody@elsewhere.example";

/// What runs out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Want {
    /// Free blocks above `MinFreeBlocks`; segments still have room.
    FreeBlocks,
    /// Room for another segment.
    Room,
    /// An inode for another segment.
    Inodes,
}

/// A sandbox whose queue lies on a small disk of its own.
struct SmallDisk {
    sandbox: Sandbox,
    /// The process that keeps the mounts; ends when its input does, also if this process dies.
    keeper: Child,
    is_root: bool,
    fillers: Vec<PathBuf>,
}

/// A daemon on it.
struct OnSmallDisk {
    child: Child,
    address: SocketAddr,
}

impl SmallDisk {
    /// Makes the sandbox and mounts the disk in it; `None`, said loudly, where that is not possible.
    fn new(test: &str, want: Want) -> Option<Self> {
        let sandbox = Sandbox::new();
        // Makes the sandbox.
        assert!(sandbox.start().stop().success());
        let is_root = nix::unistd::geteuid().is_root();
        if want == Want::Inodes && !is_root {
            return skipped(test, "only root has ext4");
        }
        let queue = sandbox.path().join("var/spool/mqueue");
        fs::remove_dir_all(&queue).unwrap();
        fs::create_dir(&queue).unwrap();
        let image = sandbox.path().join("disk.img");
        let mut keeper = Command::new("unshare");
        keeper.args(if is_root { &["-m"][..] } else { &["-rm"] });
        keeper.args(["--propagation", "private", "sh", "-c"]);
        if is_root {
            fs::File::create(&image)
                .unwrap()
                .set_len(DISK_BYTES)
                .unwrap();
            let inodes = match want {
                Want::Inodes => &["-N", INODES][..],
                _ => &[],
            };
            let made = Command::new("mkfs.ext4")
                .args(["-q", "-F", "-m", "0"])
                .args(inodes)
                .arg(&image)
                .output();
            if !made.is_ok_and(|output| output.status.success()) {
                return skipped(test, "no mkfs.ext4");
            }
            keeper.arg("mount -o loop \"$1\" \"$2\" && chmod 700 \"$2\" && echo ready && exec cat");
        } else {
            keeper.arg("mount -t tmpfs -o size=$0,mode=700 none \"$2\" && echo ready && exec cat");
        }
        let mut keeper = keeper
            .arg(DISK_BYTES.to_string())
            .args([&image, &queue])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(keeper.stdout.as_mut().unwrap())
            .read_line(&mut said)
            .unwrap();
        if said != "ready\n" {
            keeper.wait().unwrap();
            return skipped(test, "no mount namespace, or nothing to mount");
        }
        Some(Self {
            sandbox,
            keeper,
            is_root,
            fillers: Vec::new(),
        })
    }

    /// The queue's folder, seen from outside of the namespace.
    fn queue(&self) -> PathBuf {
        let inside = self.sandbox.path().join("var/spool/mqueue");
        let root = PathBuf::from(format!("/proc/{}/root", self.keeper.id()));
        root.join(inside.strip_prefix("/").unwrap())
    }

    /// `sendmail` in the namespace.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.keeper.id().to_string(), "-m"]);
        if !self.is_root {
            command.args(["-U", "--preserve-credentials"]);
        }
        command
            .arg("--")
            .arg(env!("CARGO_BIN_EXE_sendmail"))
            .arg("--sandbox")
            .arg(self.sandbox.path())
            .args(arguments)
            .env_remove("DILIGENCE_SANDBOX")
            .env("TZ", "UTC")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let output = self.command(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        output
    }

    fn start(&self, min_free_blocks: u32) -> OnSmallDisk {
        let mut child = self.spawn(min_free_blocks);
        let address = self.wait_for_start(&mut child);
        OnSmallDisk { child, address }
    }

    fn wait_for_start(&self, child: &mut Child) -> SocketAddr {
        wait_for("run/smtp of the daemon", || {
            assert_eq!(child.try_wait().unwrap(), None, "the daemon ended");
            self.address()
        })
    }

    fn address(&self) -> Option<SocketAddr> {
        self.sandbox.text("run/smtp").lines().next()?.parse().ok()
    }

    fn log(&self) -> String {
        self.sandbox.text("var/log/maillog")
    }

    fn spawn(&self, min_free_blocks: u32) -> Child {
        let _ = fs::remove_file(self.sandbox.path().join("run/smtp"));
        self.command(&[
            "-bD",
            "-odq",
            "-O",
            "DaemonPortOptions=Port=0",
            "-O",
            &format!("MinFreeBlocks={min_free_blocks}"),
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
    }

    fn listing(&self) -> String {
        String::from_utf8(self.run(&["-bp"]).stdout).unwrap()
    }

    fn queued_ids(&self) -> HashSet<String> {
        self.listing()
            .lines()
            .filter(|line| line.starts_with(|c: char| c.is_ascii_digit()) && line.len() > 14)
            .map(|line| line[..14].to_owned())
            .collect()
    }

    /// Takes all room, or all inodes, that are left.
    fn fill(&mut self, want: Want) {
        if want == Want::Inodes {
            loop {
                let path = self.queue().join(format!("filler-{}", self.fillers.len()));
                match fs::File::create(&path) {
                    Ok(_) => self.fillers.push(path),
                    Err(error) => return assert_full(&error),
                }
            }
        }
        let path = self.queue().join("filler");
        let mut file = fs::File::create(&path).unwrap();
        self.fillers.push(path);
        let mut piece = vec![0x55; 1 << 20];
        loop {
            match file.write_all(&piece).and_then(|()| file.sync_data()) {
                Ok(()) => {}
                // The last blocks as well.
                Err(error) if piece.len() > 512 => {
                    assert_full(&error);
                    piece.truncate(piece.len() / 2);
                }
                Err(error) => return assert_full(&error),
            }
        }
    }

    fn make_room(&mut self) {
        for path in self.fillers.drain(..) {
            fs::remove_file(path).unwrap();
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

impl OnSmallDisk {
    fn stop(mut self) {
        let pid = i32::try_from(self.child.id()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM).unwrap();
        let status = wait_for("the daemon's end", || self.child.try_wait().unwrap());
        assert!(status.success(), "{status}");
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for OnSmallDisk {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn skipped<T>(test: &str, why: &str) -> Option<T> {
    // Past libtest, which keeps what a passing test prints.
    let text = format!("\nSKIPPED: {test}: {why}\n");
    io::stderr().write_all(text.as_bytes()).unwrap();
    None
}

fn assert_full(error: &io::Error) {
    assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
}

fn content(token: &str, lines: usize) -> String {
    let line = "0123456789abcdefghijklmnopqrstuvwxyz0123456789abcdefghijklmnopqrstuvwxyz\n";
    format!("Subject: {token}\n\n{}end {token}", line.repeat(lines))
}

fn send(address: SocketAddr, to: &str, token: &str, lines: usize) -> io::Result<String> {
    let mut client = SmtpClient::connect(address)?;
    client.send("sender@client.example.test", &[to], &content(token, lines))
}

/// What `MAIL` is answered.
fn answer_to_mail(address: SocketAddr) -> String {
    let mut client = SmtpClient::connect(address).unwrap();
    match client.command("MAIL FROM:<sender@client.example.test>", "250") {
        Ok(reply) => reply,
        Err(error) => error.to_string(),
    }
}

/// The whole story; what differs is what the disk runs out of.
fn a_full_disk(test: &str, want: Want) {
    let Some(mut disk) = SmallDisk::new(test, want) else {
        return;
    };
    let min_free_blocks = if want == Want::FreeBlocks { 100 } else { 0 };
    let daemon = disk.start(min_free_blocks);
    let mut here = Vec::new();
    let mut elsewhere = HashSet::new();
    for number in 0..10 {
        here.push(send(daemon.address, "postmaster", &format!("token{number}"), 2).unwrap());
        elsewhere.insert(send(daemon.address, ELSEWHERE, "x", 2).unwrap());
    }
    // A dialogue that begins before and ends after.
    let mut early = SmtpClient::connect(daemon.address).unwrap();
    early
        .command("MAIL FROM:<sender@client.example.test>", "250")
        .unwrap();
    early
        .command(&format!("RCPT TO:<{ELSEWHERE}>"), "250")
        .unwrap();
    disk.fill(want);
    let refusal = match want {
        Want::FreeBlocks => wait_for("a refusal", || {
            Some(answer_to_mail(daemon.address)).filter(|reply| !reply.starts_with("250"))
        }),
        // Until the segments that exist are full.
        Want::Room | Want::Inodes => (0..MESSAGES_MAX)
            .find_map(
                |_| match send(daemon.address, ELSEWHERE, "large", LARGE_LINES) {
                    Ok(id) => {
                        elsewhere.insert(id);
                        None
                    }
                    Err(error) => Some(error.to_string()),
                },
            )
            .expect("the disk is never full"),
    };
    assert!(refusal.starts_with("452 "), "{want:?}: {refusal}");
    early.command("DATA", "354").unwrap();
    match early.command("Subject: early\r\n\r\nx\r\n.", "250") {
        Ok(reply) => {
            elsewhere.insert(reply.split_whitespace().nth(2).unwrap().to_owned());
        }
        Err(error) => assert!(error.to_string().starts_with("452 "), "{error}"),
    }

    // Listed, delivered, recorded, removed, while it stays full.
    let queued = disk.queued_ids();
    assert!(elsewhere.is_subset(&queued), "{want:?}");
    assert!(here.iter().all(|id| queued.contains(id)), "{want:?}");
    disk.run(&["-q"]);
    wait_for("local deliveries on a full disk", || {
        let left = disk.queued_ids();
        here.iter().all(|id| !left.contains(id)).then_some(())
    });
    assert_delivered_once(&disk, here.len());
    assert!(answer_to_mail(daemon.address).starts_with("452 "));

    // Killed and started on the full disk, again and again: nothing is lost, nothing comes back. A start needs a segment;
    // one that finds no room for it waits.
    let mut daemon = Some(daemon);
    let mut child = None;
    for kill in 1..=3 {
        if let Some(running) = daemon.take() {
            running.kill();
        }
        let waits = disk.log().matches(NO_ROOM).count();
        let mut started = disk.spawn(min_free_blocks);
        let address = wait_for("a start, or the wait for room", || {
            assert_eq!(started.try_wait().unwrap(), None, "the daemon ended");
            let address = disk.address();
            let is_waiting = disk.log().matches(NO_ROOM).count() > waits;
            (address.is_some() || is_waiting).then_some(address)
        });
        let left = disk.queued_ids();
        assert!(elsewhere.is_subset(&left), "{want:?}: after kill {kill}");
        assert!(
            here.iter().all(|id| !left.contains(id)),
            "{want:?}: after kill {kill}"
        );
        match address {
            Some(address) => {
                assert!(answer_to_mail(address).starts_with("452 "));
                daemon = Some(OnSmallDisk {
                    child: started,
                    address,
                });
            }
            None => {
                child = Some(started);
                break;
            }
        }
    }

    disk.make_room();
    let daemon = match (daemon, child) {
        (Some(daemon), _) => daemon,
        (None, Some(mut child)) => {
            let address = disk.wait_for_start(&mut child);
            OnSmallDisk { child, address }
        }
        (None, None) => unreachable!("either runs or waits"),
    };
    wait_for("room again", || {
        answer_to_mail(daemon.address)
            .starts_with("250")
            .then_some(())
    });
    // Room at MAIL is a look ahead: while spares are being made it may be gone again at the end of DATA.
    let id = wait_for("mail accepted afterwards", || {
        send(daemon.address, "postmaster", "afterwards", LARGE_LINES).ok()
    });
    disk.run(&["-q"]);
    wait_for("a delivery afterwards", || {
        (!disk.queued_ids().contains(&id)).then_some(())
    });
    assert!(disk.sandbox.mailbox().contains("\nend afterwards\n"));
    assert_delivered_once(&disk, here.len());
    daemon.stop();
    assert!(elsewhere.is_subset(&disk.queued_ids()));
}

fn assert_delivered_once(disk: &SmallDisk, count: usize) {
    let mailbox = disk.sandbox.mailbox();
    for number in 0..count {
        let copies = mailbox.matches(&format!("\nend token{number}\n")).count();
        assert_eq!(copies, 1, "token{number}");
    }
}

#[test]
fn fewer_free_blocks_than_asked_for_refuse_mail_until_there_are_more() {
    a_full_disk("fewer free blocks than asked for", Want::FreeBlocks);
}

#[test]
fn no_room_for_a_segment_refuses_mail_and_lets_the_queue_drain() {
    a_full_disk("no room for a segment", Want::Room);
}

#[test]
fn no_inode_for_a_segment_refuses_mail_and_lets_the_queue_drain() {
    a_full_disk("no inode for a segment", Want::Inodes);
}

#[test]
fn the_queue_on_the_full_disk_is_listed_without_a_daemon() {
    let Some(mut disk) = SmallDisk::new("a listing of a full disk", Want::FreeBlocks) else {
        return;
    };
    let daemon = disk.start(0);
    let id = send(daemon.address, ELSEWHERE, "x", 2).unwrap();
    disk.fill(Want::Room);
    daemon.kill();
    assert_eq!(disk.queued_ids(), HashSet::from([id]));
}

#[test]
fn more_messages_than_the_limit_are_refused_until_some_are_gone() {
    let folder = tempfile::tempdir().unwrap();
    let (spool, writer, _) = Spool::open(
        Arc::new(OsStorage::open(folder.path()).unwrap()),
        Arc::new(SystemClock::new()),
        SpoolOptions {
            segment_bytes: 1 << 20,
            messages_max: 2,
            ..SpoolOptions::default()
        },
    )
    .unwrap();
    let writer = std::thread::spawn(move || writer.run());
    let accept = || {
        let transaction = spool.begin()?;
        transaction
            .commit(Envelope::new(
                ReversePath::Null,
                vec![Recipient::new("bob")],
            ))
            .wait()
    };
    let first = accept().unwrap();
    accept().unwrap();
    assert!(matches!(accept(), Err(SpoolError::TooMany(2))));
    spool.remove(first).unwrap().wait().unwrap();
    accept().unwrap();
    assert!(matches!(spool.accepting(), Err(SpoolError::TooMany(2))));
    spool.close();
    writer.join().unwrap();
}
