//! Tests of the rules, as whoever runs them; those for other users need root.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

fn me() -> Who {
    Who {
        uid: Uid::effective().as_raw(),
        gid: Gid::effective().as_raw(),
    }
}

const NOBODY: Who = Who {
    uid: 65534,
    gid: 65534,
};

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::set_permissions(place.0.path(), fs::Permissions::from_mode(0o755)).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn file(&self, name: &str, mode: u32) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, "bob\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn directory(&self, name: &str, mode: u32) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn request<'a>(&'a self, path: &'a Path) -> ReadRequest<'a> {
        ReadRequest {
            path,
            purpose: Purpose::Forward,
            who: Some(me()),
            lenience: Lenience::default(),
            trusted: Some(self.0.path()),
        }
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>, String> {
        said(read(&self.request(path)))
    }

    fn read_leniently(&self, path: &Path, lenience: Lenience) -> Result<Vec<u8>, String> {
        let request = ReadRequest {
            lenience,
            ..self.request(path)
        };
        said(read(&request))
    }
}

fn said(result: Result<Text, Refusal>) -> Result<Vec<u8>, String> {
    result
        .map(|text| text.bytes)
        .map_err(|refusal| refusal.to_string())
}

fn append(path: &Path, who: Who) -> Result<bool, String> {
    append_leniently(path, who, &Lenience::default())
}

fn append_leniently(path: &Path, who: Who, lenience: &Lenience) -> Result<bool, String> {
    open_append(path, who, lenience)
        .map(|(_, directory)| directory.is_some())
        .map_err(|refusal| refusal.to_string())
}

fn refused<T: std::fmt::Debug>(result: Result<T, String>, why: &str) {
    assert_eq!(result.unwrap_err(), why);
}

#[test]
fn what_others_could_have_written_is_not_read() {
    let place = Place::new();
    assert_eq!(place.read(&place.file("good", 0o644)).unwrap(), b"bob\n");
    refused(
        place.read(&place.file("group", 0o664)),
        "Group writable file",
    );
    refused(
        place.read(&place.file("world", 0o646)),
        "World writable file",
    );
    // As Sendmail has it, the group comes first.
    refused(
        place.read(&place.file("both", 0o666)),
        "Group writable file",
    );
    for (name, mode, why) in [
        ("open", 0o757, "World writable directory"),
        ("groups", 0o775, "Group writable directory"),
        ("sticky", 0o1777, "World writable directory"),
    ] {
        let directory = place.directory(name, 0o755);
        let path = place.file(&format!("{name}/forward"), 0o600);
        assert!(place.read(&path).is_ok());
        fs::set_permissions(&directory, fs::Permissions::from_mode(mode)).unwrap();
        let refusal = read(&place.request(&path)).unwrap_err();
        assert_eq!(refusal.to_string(), why);
        assert_eq!(refusal.directory(), Some(directory.as_path()));
        assert_eq!(refusal.verdict(), Verdict::Permanent);
    }
}

#[test]
fn lenience_lets_pass_what_it_names_and_nothing_else() {
    let place = Place::new();
    let group = place.file("group", 0o664);
    let of_group = Lenience {
        group_writable_file: true,
        ..Lenience::default()
    };
    assert!(place.read_leniently(&group, of_group).is_ok());
    let text = read(&ReadRequest {
        lenience: of_group,
        ..place.request(&group)
    });
    assert!(text.unwrap().is_writable_by_others);
    refused(
        place.read_leniently(&place.file("both", 0o666), of_group),
        "World writable file",
    );
    place.directory("shared", 0o755);
    let path = place.file("shared/forward", 0o644);
    let linked = place.path("shared/linked");
    symlink(&path, &linked).unwrap();
    fs::set_permissions(place.path("shared"), fs::Permissions::from_mode(0o775)).unwrap();
    let of_directory = Lenience {
        group_writable_directory: true,
        ..Lenience::default()
    };
    assert!(place.read_leniently(&path, of_directory).is_ok());
    // Where others may write, links are theirs to make.
    refused(
        place.read_leniently(&linked, of_directory),
        "Symbolic links not allowed",
    );
    let hard = place.path("shared/hard");
    fs::hard_link(&path, &hard).unwrap();
    refused(
        place.read_leniently(&hard, of_directory),
        "Hard links not allowed",
    );
    let of_links = Lenience {
        link_in_writable_directory: true,
        ..of_directory
    };
    assert!(place.read_leniently(&linked, of_links).is_ok());
    assert!(place.read_leniently(&hard, of_links).is_ok());
    fs::set_permissions(place.path("shared"), fs::Permissions::from_mode(0o1777)).unwrap();
    refused(
        place.read_leniently(&path, of_directory),
        "World writable directory",
    );
    let of_sticky = Lenience {
        sticky_directory: true,
        ..Lenience::default()
    };
    fs::remove_file(&hard).unwrap();
    assert!(place.read_leniently(&path, of_sticky).is_ok());
    let of_any = Lenience {
        unsafe_directory: true,
        ..Lenience::default()
    };
    assert!(place.read_leniently(&path, of_any).is_ok());
}

#[test]
fn what_others_could_have_written_acts_for_nobody_unless_it_is_called_safe() {
    let place = Place::new();
    let group = place.file("group", 0o664);
    let anybody = place.file("anybody", 0o646);
    place.directory("open", 0o755);
    let within = place.file("open/forward", 0o644);
    fs::set_permissions(place.path("open"), fs::Permissions::from_mode(0o777)).unwrap();
    let acts = |path: &Path, lenience: Lenience| {
        let request = ReadRequest {
            lenience,
            ..place.request(path)
        };
        !read(&request).unwrap().is_writable_by_others
    };
    let let_pass = Lenience {
        group_writable_file: true,
        world_writable_file: true,
        unsafe_directory: true,
        ..Lenience::default()
    };
    let safe_file = Lenience {
        group_writable_file_is_safe: true,
        ..let_pass
    };
    let safe_directory = Lenience {
        unsafe_directory_is_safe: true,
        ..let_pass
    };
    for (path, lenience, expected) in [
        (&group, let_pass, false),
        (&group, safe_directory, false),
        (&group, safe_file, true),
        (&anybody, safe_file, false),
        (&within, let_pass, false),
        (&within, safe_file, false),
        (&within, safe_directory, true),
    ] {
        assert_eq!(acts(path, lenience), expected, "{path:?} {lenience:?}");
    }
    // Directories of a group that is let pass by name are safe, as in Sendmail.
    fs::set_permissions(place.path("open"), fs::Permissions::from_mode(0o775)).unwrap();
    let of_group = Lenience {
        group_writable_directory: true,
        ..Lenience::default()
    };
    assert!(acts(&within, of_group));
    // Calling it safe lets nothing pass by itself.
    let safe_alone = Lenience {
        group_writable_file_is_safe: true,
        unsafe_directory_is_safe: true,
        ..Lenience::default()
    };
    refused(
        place.read_leniently(&group, safe_alone),
        "Group writable file",
    );
    refused(
        place.read_leniently(&within, safe_alone),
        "Group writable directory",
    );
}

#[test]
fn links_are_followed_where_nobody_else_could_have_made_them() {
    let place = Place::new();
    let good = place.file("good", 0o644);
    let link = place.path("link");
    symlink("good", &link).unwrap();
    assert_eq!(place.read(&link).unwrap(), b"bob\n");
    place.directory("sub", 0o755);
    symlink("../sub/../good", place.path("sub/up")).unwrap();
    symlink(place.path("sub"), place.path("through")).unwrap();
    assert_eq!(place.read(&place.path("through/up")).unwrap(), b"bob\n");
    // The way that a link leads is looked at, too.
    place.directory("open", 0o777);
    place.file("open/forward", 0o644);
    symlink("open/forward", place.path("into")).unwrap();
    refused(place.read(&place.path("into")), "World writable directory");
    symlink("round", place.path("round")).unwrap();
    let refusal = read(&place.request(&place.path("round"))).unwrap_err();
    assert_eq!(refusal.to_string(), "Too many levels of symbolic links");
    assert_eq!(refusal.verdict(), Verdict::Permanent);
    fs::hard_link(&good, place.path("hard")).unwrap();
    assert!(place.read(&good).is_ok());
}

#[test]
fn what_is_no_regular_file_is_never_opened() {
    let place = Place::new();
    refused(place.read(place.0.path()), "Regular files only");
    let anywhere = Lenience {
        unsafe_directory: true,
        ..Lenience::default()
    };
    for device in ["/dev/null", "/dev/zero"] {
        let result = place.read_leniently(Path::new(device), anywhere);
        refused(result, "Regular files only");
    }
    refused(place.read(Path::new("/")), "Regular files only");
    let fifo = place.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    refused(place.read(&fifo), "Regular files only");
    refused(append(&fifo, me()), "Regular files only");
    refused(place.read(Path::new("relative")), "Permission denied");
    refused(append(Path::new("relative"), me()), "Permission denied");
    let missing = read(&place.request(&place.path("missing"))).unwrap_err();
    assert!(missing.is_missing());
    assert_eq!(missing.to_string(), "No such file or directory");
    let through = place.file("file", 0o644).join("x");
    assert!(read(&place.request(&through)).unwrap_err().is_missing());
    let deep = format!("/{}", "a/".repeat(walk::STEPS_MAX + 1));
    let refusal = open_append(Path::new(&deep), me(), &Lenience::default()).unwrap_err();
    assert_eq!(refusal.verdict(), Verdict::Permanent);
}

#[test]
fn a_file_that_is_too_large_is_trouble_for_now() {
    let place = Place::new();
    let path = place.file("large", 0o644);
    let file = File::options().write(true).open(&path).unwrap();
    file.set_len(READ_BYTES_MAX + 1).unwrap();
    let refusal = read(&place.request(&path)).unwrap_err();
    assert_eq!(refusal.to_string(), "File too large");
    assert_eq!(refusal.verdict(), Verdict::Temporary);
}

#[test]
fn files_that_are_programs_or_not_files_are_not_appended_to() {
    let place = Place::new();
    let at = |path: &Path| append(path, me());
    refused(
        at(&place.file("exec", 0o755)),
        "Executable files not allowed",
    );
    refused(
        at(&place.file("exec1", 0o645)),
        "Executable files not allowed",
    );
    refused(at(&place.file("suid", 0o4644)), "Set-id files not allowed");
    refused(at(place.0.path()), "Regular files only");
    assert!(at(&place.path("new")).unwrap());
    let mode = fs::metadata(place.path("new"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(!at(&place.path("new")).unwrap());
    let old = place.file("old", 0o644);
    assert!(!at(&old).unwrap());
    symlink(&old, place.path("link")).unwrap();
    refused(at(&place.path("link")), "Symbolic links not allowed");
    let dangling = place.path("dangling");
    symlink(place.path("made"), &dangling).unwrap();
    refused(at(&dangling), "Symbolic links not allowed");
    assert!(!place.path("made").exists());
    fs::hard_link(&old, place.path("hard")).unwrap();
    refused(at(&old), "Hard links not allowed");
    let lenient = Lenience {
        symbolic_link: true,
        hard_link: true,
        ..Lenience::default()
    };
    assert!(append_leniently(&place.path("link"), me(), &lenient).is_ok());
    assert!(at(Path::new("/dev/null")).is_ok());
    refused(at(Path::new("/dev/zero")), "Regular files only");
    refused(at(&place.path("none/new")), "No such file or directory");
}

#[test]
fn with_roots_rights_a_file_is_opened_with_its_users() {
    if !Uid::effective().is_root() {
        eprintln!("SKIPPED: needs root");
        return;
    }
    let place = Place::new();
    let path = place.file("roots", 0o600);
    refused(append(&path, NOBODY), "Permission denied");
    refused(append(&place.path("new"), NOBODY), "Permission denied");
    let as_nobody = |path: &Path, who| {
        let request = ReadRequest {
            who,
            ..place.request(path)
        };
        said(read(&request))
    };
    refused(as_nobody(&path, Some(NOBODY)), "Permission denied");
    // A `.forward` of root's may be another's, one of a third user's not.
    assert!(as_nobody(&place.file("readable", 0o644), Some(NOBODY)).is_ok());
    let third = place.file("third", 0o644);
    std::os::unix::fs::chown(&third, Some(1234), Some(1234)).unwrap();
    refused(as_nobody(&third, Some(NOBODY)), "Permission denied");
    // With its owner's rights a list is read that nobody else may read; whose it is is told.
    fs::set_permissions(&third, fs::Permissions::from_mode(0o600)).unwrap();
    let text = read(&ReadRequest {
        purpose: Purpose::Include,
        who: None,
        ..place.request(&third)
    })
    .unwrap();
    assert_eq!(
        text.owner,
        Who {
            uid: 1234,
            gid: 1234
        }
    );
    // Ways that the user may not go are not gone with root's rights.
    place.directory("closed", 0o700);
    let inside = place.file("closed/forward", 0o666);
    refused(as_nobody(&inside, Some(NOBODY)), "Permission denied");
    refused(append(&inside, NOBODY), "Permission denied");
    // What is made is the user's.
    let home = place.directory("home", 0o755);
    std::os::unix::fs::chown(&home, Some(NOBODY.uid), Some(NOBODY.gid)).unwrap();
    assert!(append(&home.join("new"), NOBODY).unwrap());
    let made = fs::metadata(home.join("new")).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!((made.uid(), made.gid()), (NOBODY.uid, NOBODY.gid));
    // In a directory that the user may not read, too: it is given to be synced all the same.
    let unread = place.directory("unread", 0o300);
    std::os::unix::fs::chown(&unread, Some(NOBODY.uid), Some(NOBODY.gid)).unwrap();
    let (_, directory) = open_append(&unread.join("new"), NOBODY, &Lenience::default()).unwrap();
    let directory = directory.unwrap();
    directory.sync_all().unwrap();
    let ino = |seen: fs::Metadata| seen.ino();
    assert_eq!(
        ino(directory.metadata().unwrap()),
        ino(unread.metadata().unwrap())
    );
    // The rights are back.
    assert!(append(&path, me()).is_ok());
    assert!(fs::write(place.path("roots-again"), "x").is_ok());
}

#[test]
fn groups_besides_the_users_own_count() {
    if !Uid::effective().is_root() {
        eprintln!("SKIPPED: needs root");
        return;
    }
    let place = Place::new();
    let path = place.file("shared", 0o640);
    std::os::unix::fs::chown(&path, Some(0), Some(4321)).unwrap();
    let open = || File::open(&path).map(|_| ()).map_err(|error| error.kind());
    assert_eq!(as_user(NOBODY, open), Err(io::ErrorKind::PermissionDenied));
    assert_eq!(as_member(NOBODY, &[4321], open), Ok(()));
    let groups = rustix::process::getgroups().unwrap();
    as_member(NOBODY, &[4321], || ());
    assert_eq!(rustix::process::getgroups().unwrap(), groups);
}

#[test]
fn a_file_that_is_exchanged_while_it_is_opened_is_never_taken_for_the_other() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let place = Place::new();
    let path = place.file("forward", 0o644);
    let secret = place.path("secret");
    fs::write(&secret, "secret\n").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o664)).unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let attacker = scope.spawn(|| {
            let (spare, link) = (place.path("spare"), place.path("made"));
            let mut swaps = 0_u32;
            while !is_over.load(Ordering::Relaxed) {
                // By turns a link to what may not be read, that file itself, and an honest file.
                let _ = fs::remove_file(&link);
                let _ = symlink(&secret, &link);
                let _ = fs::rename(&link, &path);
                let _ = fs::hard_link(&secret, &spare);
                let _ = fs::rename(&spare, &path);
                let _ = fs::write(&spare, "bob\n");
                let _ = fs::rename(&spare, &path);
                swaps += 1;
            }
            swaps
        });
        let (mut read_well, mut refusals) = (0, 0);
        // Bounded by the number of tries, not by time.
        for _ in 0..20_000 {
            match place.read(&path) {
                Ok(bytes) => {
                    assert!(bytes.is_empty() || bytes == b"bob\n", "{bytes:?}");
                    read_well += 1;
                }
                Err(_) => refusals += 1,
            }
        }
        is_over.store(true, Ordering::Relaxed);
        let swaps = attacker.join().unwrap();
        println!("{read_well} read, {refusals} refused, {swaps} swaps");
    });
}
