//! The map class ldap against a real slapd, and the router against a map over the network.
//!
//! slapd is the one that `.ci/peers` unpacks under target/peers, or the system's; where there is none, the test says so
//! and ends. It listens on a socket in the test's own folder.

#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![cfg(feature = "ldap")]

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use diligence::netmaps::{NetMaps, NetOptions};
use diligence_maps::{Definition, HandleOptions, MapSet, OpenMap};

const ENTRIES: &str = "dn: o=test\nobjectClass: organization\no: test\n\n\
    dn: cn=alice,o=test\nobjectClass: inetOrgPerson\ncn: alice\nsn: A\nmail: alice@example.test\nmail: a@example.test\n\n\
    dn: cn=bob,o=test\nobjectClass: inetOrgPerson\ncn: bob\nsn: B\nmail: bob@example.test\ntitle: b*\n\n\
    dn: cn=bobby,o=test\nobjectClass: inetOrgPerson\ncn: bobby\nsn: B\nmail: bobby@example.test\n";

/// A slapd, ended with the test.
struct Slapd {
    child: Child,
}

impl Slapd {
    fn start(program: &Path, dir: &Path) -> Self {
        let address = format!(
            "ldapi://{}",
            dir.join("s").display().to_string().replace('/', "%2F")
        );
        let child = Command::new(program)
            .args(["-d", "0", "-f"])
            .arg(dir.join("slapd.conf"))
            .args(["-h", &address])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let started = Self { child };
        for _ in 0..1000 {
            if UnixStream::connect(dir.join("s")).is_ok() {
                return started;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("slapd does not listen");
    }
}

impl Drop for Slapd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program, and the folder of its schemas.
fn slapd() -> Option<(PathBuf, PathBuf)> {
    let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/peers");
    let places = [
        (peers.join("bin/slapd"), peers.join("root/etc/ldap/schema")),
        (
            PathBuf::from("/usr/sbin/slapd"),
            PathBuf::from("/etc/ldap/schema"),
        ),
    ];
    places.into_iter().find(|(program, _)| program.exists())
}

/// A directory with a few entries, made by slapd itself.
fn directory(program: &Path, schemas: &Path, dir: &Path) {
    let shown = dir.display();
    let mut conf = String::new();
    for schema in ["core", "cosine", "inetorgperson"] {
        conf.push_str(&format!("include {}/{schema}.schema\n", schemas.display()));
    }
    conf.push_str(&format!(
        "pidfile {shown}/pid\nargsfile {shown}/args\ndatabase ldif\nsuffix \"o=test\"\ndirectory {shown}/db\n\
         rootdn \"cn=admin,o=test\"\nrootpw secret\naccess to attrs=title by dn=\"cn=admin,o=test\" read by * none\n\
         access to * by * read\n"
    ));
    std::fs::write(dir.join("slapd.conf"), conf).unwrap();
    std::fs::create_dir(dir.join("db")).unwrap();
    std::fs::write(dir.join("entries"), ENTRIES).unwrap();
    let added = Command::new(program)
        .args(["-T", "add", "-f"])
        .arg(dir.join("slapd.conf"))
        .arg("-l")
        .arg(dir.join("entries"))
        .output()
        .unwrap();
    assert!(
        added.status.success(),
        "{}",
        String::from_utf8_lossy(&added.stderr)
    );
}

#[test]
fn a_directory_is_asked_and_its_trouble_is_no_absence() {
    let Some((program, schemas)) = slapd() else {
        eprintln!("SKIPPED: no slapd; .ci/peers unpacks one");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    directory(&program, &schemas, dir.path());
    let server = Slapd::start(&program, dir.path());
    std::fs::write(dir.path().join("password"), "secret\n").unwrap();
    std::fs::write(dir.path().join("wrong"), "guess\n").unwrap();
    let set = MapSet::new(
        Arc::new(NetMaps::new(NetOptions::default())),
        HandleOptions::default(),
    );
    let socket = dir
        .path()
        .join("s")
        .display()
        .to_string()
        .replace('/', "%2F");
    let open = |switches: &str| -> Arc<OpenMap> {
        let text = format!("ldap -H ldapi://{socket} -b o=test {switches}");
        set.open(&Definition::parse(&text).unwrap()).unwrap()
    };
    let ask = |switches: &str, key: &str| {
        open(switches)
            .ask(key.as_bytes())
            .map(|found| found.map(|value| String::from_utf8(value).unwrap()))
    };
    let mail = "-k (cn=%0) -v mail";
    assert_eq!(ask(mail, "BOB").unwrap().unwrap(), "bob@example.test");
    assert_eq!(ask(mail, "nobody").unwrap(), None);
    // A key is never a pattern.
    assert_eq!(ask(mail, "bob*").unwrap(), None);
    assert_eq!(ask(mail, "*)(cn=bob").unwrap(), None);
    let all = ask(&format!("{mail} -z,"), "alice").unwrap().unwrap();
    assert!(
        all == "alice@example.test,a@example.test" || all == "a@example.test,alice@example.test"
    );
    assert_eq!(ask(&format!("-1 {mail}"), "alice").unwrap(), None);
    assert_eq!(ask("-1 -k (cn=%0*) -v mail", "bob").unwrap(), None);
    assert_eq!(
        ask("-k (cn=%0) -v mail -n", "bob").unwrap().unwrap(),
        "mail"
    );
    let named = ask("-k (cn=%0) -v sn -V=", "bob");
    assert_eq!(named.unwrap().unwrap(), "sn=B");
    assert_eq!(ask(&format!("{mail} -s base"), "bob").unwrap(), None);
    assert!(ask("-k (cn=%0) -v mail -s base -b o=nowhere", "bob").is_err());
    assert!(ask("-k (cn=%0", "bob").is_err());
    // Who may read what is the server's to say; a password that is refused is trouble.
    let file = |name: &str| {
        let path = dir.path().join(name);
        format!(
            "-k (cn=%0) -v title -d cn=admin,o=test -P {}",
            path.display()
        )
    };
    assert_eq!(ask("-k (cn=%0) -v title", "bob").unwrap(), None);
    assert_eq!(ask(&file("password"), "bob").unwrap().unwrap(), "b*");
    assert!(ask(&file("wrong"), "bob").is_err());
    assert!(ask(&file("missing"), "bob").is_err());
    // A connection that is kept survives the server's restart; while it is down, nothing is absent.
    let kept = open(mail);
    assert!(kept.ask(b"bob").unwrap().is_some());
    drop(server);
    let _ = std::fs::remove_file(dir.path().join("s"));
    assert!(kept.ask(b"bob").is_err());
    let _server = Slapd::start(&program, dir.path());
    assert!(kept.ask(b"bob").unwrap().is_some());
    assert_eq!(kept.ask(b"nobody").unwrap(), None);
}
