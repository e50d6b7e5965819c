//! On which file systems a spool opens: real mounts, in a mount namespace of their own.
//!
//! Needs root and unshare(1); where either is missing, or the kernel does not let it, the test says so and ends. The
//! decision itself is tested without mounts in `src/spool/file_system.rs`.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use diligence::clock::SystemClock;
use diligence::spool::storage::OsStorage;
use diligence::spool::{FootingPolicy, Spool, SpoolError, SpoolOptions};

/// Names the folder to try, for the process inside of the namespace.
const FOLDER_VARIABLE: &str = "DILIGENCE_TEST_MOUNTS";

fn open(folder: &Path, footing: FootingPolicy) -> Result<Vec<String>, SpoolError> {
    let options = SpoolOptions {
        segment_bytes: 1 << 20,
        footing,
        ..SpoolOptions::default()
    };
    let storage = Arc::new(OsStorage::open(folder).unwrap());
    let (spool, writer, report) = Spool::open(storage, Arc::new(SystemClock::new()), options)?;
    spool.close();
    writer.run();
    Ok(report.remarks)
}

/// Runs `name`, an ignored test of this file, after `mounts`, in a mount namespace. False if it can't be had.
fn in_namespace(name: &str, mounts: &str) -> bool {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: mounting needs root");
        return false;
    }
    let folder = tempfile::tempdir().unwrap();
    let script = format!("set -e; cd \"$0\"; {mounts}; exec \"$@\"");
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private", "sh", "-c", &script])
        .arg(folder.path());
    // First without the test, to see whether the mounts can be had here.
    let tried = command.arg("true").output();
    if !tried.as_ref().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no such mount here: {tried:?}");
        return false;
    }
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", &script])
        .arg(folder.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture"])
        .env(FOLDER_VARIABLE, folder.path())
        .output()
        .unwrap();
    let shown = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{shown}");
    assert!(shown.contains("1 passed"), "{shown}");
    true
}

fn folder() -> std::path::PathBuf {
    std::env::var_os(FOLDER_VARIABLE).unwrap().into()
}

#[test]
fn a_spool_in_memory_opens_and_says_so() {
    in_namespace("inside_of_tmpfs", "mkdir -p m; mount -t tmpfs tmpfs m");
}

#[test]
#[ignore = "run by another test, inside of its mount namespace"]
fn inside_of_tmpfs() {
    let folder = folder().join("m");
    let remarks = open(&folder, FootingPolicy::Durable).unwrap();
    assert!(
        remarks.iter().any(|r| r.contains("tmpfs: it is in memory")),
        "{remarks:?}"
    );
    assert_eq!(
        open(&folder, FootingPolicy::Memory).unwrap(),
        Vec::<String>::new()
    );
}

#[test]
fn a_spool_on_a_volatile_overlay_is_refused_unless_forced() {
    let layers = "mkdir -p t m; mount -t tmpfs tmpfs t; mkdir t/l t/u t/w; \
                  mount -t overlay overlay -o lowerdir=t/l,upperdir=t/u,workdir=t/w";
    let volatile = format!("{layers},volatile m");
    in_namespace("inside_of_volatile_overlay", &volatile);
    in_namespace("inside_of_ordinary_overlay", &format!("{layers} m"));
}

#[test]
#[ignore = "run by another test, inside of its mount namespace"]
fn inside_of_volatile_overlay() {
    let folder = folder().join("m");
    match open(&folder, FootingPolicy::Durable) {
        Err(SpoolError::UnfitFileSystem(what)) => {
            assert!(what.starts_with("overlay: "), "{what}");
            assert!(what.contains("volatile"), "{what}");
        }
        other => panic!("{other:?}"),
    }
    let files = std::fs::read_dir(&folder).unwrap().count();
    assert_eq!(files, 0, "a refusal leaves nothing");
    let remarks = open(&folder, FootingPolicy::Any).unwrap();
    assert!(
        remarks.iter().any(|r| r.contains("taken as told")),
        "{remarks:?}"
    );
}

#[test]
#[ignore = "run by another test, inside of its mount namespace"]
fn inside_of_ordinary_overlay() {
    let remarks = open(&folder().join("m"), FootingPolicy::Durable).unwrap();
    assert_eq!(remarks, Vec::<String>::new());
}
