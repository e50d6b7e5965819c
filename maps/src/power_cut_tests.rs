//! A power cut at every call of a map build: afterwards there is the old map or the new one, whole.
//!
//! The build runs on real files behind a [`Disk`] that keeps what is durable apart from what is written, as
//! `tests/support/sim_storage.rs` does for the spool: a file's bytes are durable when it is synced, and of what was not, any
//! sectors may be there; names change in order, and of those not synced any prefix may be there. Every state a cut at
//! a call may leave is laid out in a fresh directory and loaded. That the check can fail is shown by disks that leave a sync out.

use crate::publish::{Disk, RealDisk};
use crate::records::hash64;
use crate::{DuplicatePolicy, LoadOptions, MapBuilder, MapKind, PublishOptions, Snapshot, load};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

const SECTOR: usize = 512;
/// Subsets of unsynced sectors tried in each state, beside none and all.
const SUBSETS: u64 = 6;
const ENTRIES: usize = 900;
/// Length of a value that makes the file one that is written by a thread.
const LARGE: usize = 2 << 20;

/// A promise that a disk breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    FileSyncDoesNothing,
    RenameBeforeSync,
}

#[derive(Debug, Clone)]
enum NameChange {
    Link(OsString),
    Rename(OsString, OsString),
    Unlink(OsString),
}

#[derive(Default)]
struct State {
    calls: usize,
    /// Content of synced files, by name at that time: renames carry it along.
    durable: BTreeMap<OsString, Vec<u8>>,
    names: Vec<NameChange>,
    /// How many of the changes of names are durable.
    durable_names: usize,
}

/// A disk whose power goes at a call: that call and all later ones fail and leave nothing behind.
struct CutDisk {
    cut_at: usize,
    fault: Fault,
    state: RefCell<State>,
}

fn name(path: &Path) -> OsString {
    path.file_name().unwrap().to_os_string()
}

impl CutDisk {
    fn call(&self) -> io::Result<()> {
        let mut state = self.state.borrow_mut();
        state.calls += 1;
        if state.calls >= self.cut_at {
            return Err(io::Error::other("power is gone"));
        }
        Ok(())
    }
}

impl Disk for CutDisk {
    fn create(&self, path: &Path) -> io::Result<File> {
        self.call()?;
        let file = RealDisk.create(path)?;
        self.state
            .borrow_mut()
            .names
            .push(NameChange::Link(name(path)));
        Ok(file)
    }

    fn sync_file(&self, _file: &File, path: &Path) -> io::Result<()> {
        self.call()?;
        if self.fault != Fault::FileSyncDoesNothing {
            let bytes = std::fs::read(path)?;
            self.state.borrow_mut().durable.insert(name(path), bytes);
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call()?;
        let mut state = self.state.borrow_mut();
        state.names.push(NameChange::Rename(name(from), name(to)));
        if self.fault == Fault::RenameBeforeSync {
            // As a file system that writes names out before the bytes they name were asked to be.
            state.durable.remove(&name(from));
        }
        RealDisk.rename(from, to)
    }

    fn sync_directory(&self, _path: &Path) -> io::Result<()> {
        self.call()?;
        let mut state = self.state.borrow_mut();
        state.durable_names = state.names.len();
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.call()?;
        self.state
            .borrow_mut()
            .names
            .push(NameChange::Unlink(name(path)));
        RealDisk.remove(path)
    }
}

/// The value of an entry; `first_len` is about how long that of the first one is.
fn value(i: usize, generation: char, first_len: usize) -> String {
    let len = if i == 0 { first_len } else { i % 90 };
    format!("generation {generation} {}", "x".repeat(len))
}

fn builder(kind: MapKind, generation: char, first_len: usize) -> MapBuilder {
    let mut builder = MapBuilder::new(kind, DuplicatePolicy::KeepFirst).unwrap();
    for i in 0..ENTRIES {
        let value = value(i, generation, first_len);
        builder
            .insert(format!("user{i}").as_bytes(), value.as_bytes())
            .unwrap();
    }
    builder
}

/// Which generation a map is, if it is all of one.
fn generation(map: &Snapshot, first_len: usize) -> Option<char> {
    let is_all_of = |generation: &char| {
        (0..ENTRIES).all(|i| {
            let wanted = value(i, *generation, first_len);
            map.get(format!("user{i}").as_bytes()) == Some(wanted.as_bytes())
        })
    };
    let is_whole = map.len() == ENTRIES as u64;
    ['1', '2'].into_iter().find(is_all_of).filter(|_| is_whole)
}

/// What a file may hold after a cut, when `written` was not synced: none, some or all of its sectors.
fn torn(written: &[u8], choice: u64) -> Vec<u8> {
    let mut bytes = vec![0; written.len()];
    for (number, sector) in (0_u64..).zip(written.chunks(SECTOR)) {
        let is_there = match choice {
            0 => false,
            1 => true,
            _ => hash64(choice, &number.to_le_bytes()) & 1 == 1,
        };
        if is_there {
            let at = usize::try_from(number).unwrap() * SECTOR;
            bytes[at..at + sector.len()].copy_from_slice(sector);
        }
    }
    bytes
}

/// Cuts the power at one call of a rebuild; answers the calls made, and the generations found over all states it may leave.
fn cut(
    kind: MapKind,
    first_len: usize,
    cut_at: usize,
    fault: Fault,
) -> (usize, bool, Vec<Option<char>>) {
    let dir = tempfile::tempdir().unwrap();
    let dest = kind.file_of(&dir.path().join("m"));
    builder(kind, '1', first_len)
        .publish(&dest, &PublishOptions::default())
        .unwrap();
    let old = std::fs::read(&dest).unwrap();
    let disk = CutDisk {
        cut_at,
        fault,
        state: RefCell::default(),
    };
    let options = PublishOptions {
        lock_wait: Duration::from_secs(5),
        ..PublishOptions::default()
    };
    let is_done = builder(kind, '2', first_len)
        .publish_on(&disk, &dest, &options)
        .is_ok();
    let state = disk.state.into_inner();

    let mut found = Vec::new();
    for names in state.durable_names..=state.names.len() {
        for choice in 0..2 + SUBSETS {
            // Inodes by name: what is durable of each.
            let mut there: BTreeMap<OsString, (PathBuf, Vec<u8>)> = BTreeMap::new();
            there.insert(name(&dest), (PathBuf::new(), old.clone()));
            for change in &state.names[..names] {
                match change {
                    NameChange::Link(new) => {
                        let written = written(dir.path(), &dest, new, &state);
                        let bytes = match state.durable.get(new) {
                            Some(bytes) => bytes.clone(),
                            None => torn(&written, choice),
                        };
                        there.insert(new.clone(), (PathBuf::new(), bytes));
                    }
                    NameChange::Rename(from, to) => {
                        let inode = there.remove(from).unwrap();
                        there.insert(to.clone(), inode);
                    }
                    NameChange::Unlink(gone) => {
                        there.remove(gone);
                    }
                }
            }
            let after = tempfile::tempdir().unwrap();
            for (name, (_, bytes)) in &there {
                std::fs::write(after.path().join(name), bytes).unwrap();
            }
            let path = after.path().join(name(&dest));
            let loaded = load(
                kind,
                &path,
                &LoadOptions {
                    lock_wait: Duration::ZERO,
                    ..LoadOptions::default()
                },
            );
            found.push(loaded.ok().and_then(|map| generation(&map, first_len)));
        }
    }
    (state.calls, is_done, found)
}

/// The bytes written to the file that was created as `new`, wherever it is named now; none if it was removed.
fn written(dir: &Path, dest: &Path, new: &OsString, state: &State) -> Vec<u8> {
    let is_renamed = state
        .names
        .iter()
        .any(|change| matches!(change, NameChange::Rename(from, _) if from == new));
    let path = if is_renamed {
        dest.to_path_buf()
    } else {
        dir.join(new)
    };
    std::fs::read(path).unwrap_or_default()
}

#[test]
fn after_a_cut_at_any_call_there_is_the_old_map_or_the_new() {
    let small = MapKind::writable().iter().map(|&kind| (kind, 0));
    for (kind, first_len) in small.chain([(MapKind::Hash, LARGE), (MapKind::Btree, LARGE)]) {
        let mut cut_at = 1;
        loop {
            let (calls, is_done, found) = cut(kind, first_len, cut_at, Fault::None);
            for generation in &found {
                assert!(
                    generation.is_some(),
                    "{kind}: cut at call {cut_at}: neither the old map nor the new"
                );
            }
            if is_done {
                assert!(
                    found.iter().all(|generation| *generation == Some('2')),
                    "{kind}: done, and not durable"
                );
                assert!(calls >= 4, "create, sync, rename, sync the directory");
                break;
            }
            cut_at += 1;
            assert!(cut_at < 100);
        }
    }
}

#[test]
fn a_sync_left_out_is_found() {
    for fault in [Fault::FileSyncDoesNothing, Fault::RenameBeforeSync] {
        let found: Vec<Option<char>> = (1..8)
            .flat_map(|cut_at| cut(MapKind::Hash, 0, cut_at, fault).2)
            .collect();
        assert!(found.contains(&None), "{fault:?} was not noticed");
    }
}
