//! mapd and maplookup as programs: what clients are answered, and that trouble is never absence.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// The server, ended with the test.
struct Server {
    child: Child,
    addresses: Vec<String>,
}

impl Server {
    fn start(config: &Path, listens: usize) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_mapd"))
            .arg("-C")
            .arg(config)
            .env_remove("DILIGENCE_SANDBOX")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let addresses = (0..listens)
            .map(|_| {
                let line = lines.next().unwrap().unwrap();
                line.strip_prefix("mapd: listening on ").unwrap().to_owned()
            })
            .collect();
        Self { child, addresses }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A configuration with a few maps, and what they are made of; the folder lies in a sticky one that everybody may write to.
fn installation(dir: &Path, more: &str) -> std::path::PathBuf {
    std::fs::write(dir.join("users"), "Alice one\nbob two words\n").unwrap();
    let path = dir.display();
    let config = dir.join("sendmail.toml");
    let text = format!(
        "alias_file = \"stab:{path}/aliases\"\naccess_db = \"text -o -T<TMPF> {path}/access\"\nlog_file = \"{path}/log\"\ndont_blame_sendmail = \"TrustStickyBit\"\n{more}\n\
         [map]\nusers = \"text -v1 {path}/users\"\nbroken = \"hash -T<TMPF> {path}/none\"\nboth = \"sequence users broken\"\nodd = \"regex -aodd ^x\"\n"
    );
    std::fs::write(&config, text).unwrap();
    std::fs::write(dir.join("aliases"), "root: alice, bob\n").unwrap();
    config
}

fn netstring(text: &str) -> String {
    format!("{}:{text},", text.len())
}

/// Reads one answer.
fn answer(stream: &mut impl Read) -> String {
    let mut len = 0;
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        match byte[0] {
            b':' => break,
            digit => len = len * 10 + usize::from(digit - b'0'),
        }
    }
    let mut text = vec![0; len + 1];
    stream.read_exact(&mut text).unwrap();
    assert_eq!(text.pop(), Some(b','));
    String::from_utf8(text).unwrap()
}

#[test]
fn clients_are_answered_in_order_and_trouble_is_temp() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("maps");
    let more = format!(
        "mapd.listen = [\"unix:{}\", \"inet:0@127.0.0.1\"]",
        socket.display()
    );
    let config = installation(dir.path(), &more);
    let server = Server::start(&config, 2);
    let mut unix = UnixStream::connect(&socket).unwrap();
    let asked: Vec<(&str, &str)> = vec![
        ("users ALICE", "OK one"),
        ("users bob", "OK two"),
        ("users a b", "NOTFOUND "),
        ("both carol", "TEMP "),
        ("both alice", "OK one"),
        ("broken x", "TEMP "),
        ("nothing x", "TEMP "),
        ("users", "TEMP "),
        ("odd xyz", "OK odd"),
        ("aliases Root", "OK alice, bob"),
        ("aliases @", "NOTFOUND "),
        ("access a.test", "NOTFOUND "),
    ];
    // All at once, in pieces that respect no boundary.
    let all: String = asked
        .iter()
        .map(|(request, _)| netstring(request))
        .collect();
    for piece in all.as_bytes().chunks(7) {
        unix.write_all(piece).unwrap();
    }
    for (request, wanted) in &asked {
        let got = answer(&mut unix);
        let is_right = match wanted.strip_suffix(' ') {
            Some("TEMP") => got.starts_with("TEMP "),
            _ => got == *wanted,
        };
        assert!(is_right, "{request}: {got}");
    }
    // A rebuilt map is seen by the next lookup.
    std::fs::write(dir.path().join("users"), "alice changed\n").unwrap();
    unix.write_all(netstring("users alice").as_bytes()).unwrap();
    assert_eq!(answer(&mut unix), "OK changed");
    // The other listener; what is no request ends the connection.
    let address = server.addresses[1].strip_prefix("inet:").unwrap();
    let (port, host) = address.split_once('@').unwrap();
    let mut inet = TcpStream::connect((host, port.parse::<u16>().unwrap())).unwrap();
    inet.write_all(b"11:users alice,GET /").unwrap();
    assert_eq!(answer(&mut inet), "OK changed");
    assert_eq!(inet.read(&mut [0]).unwrap(), 0);
    // Over our own class socket, by the program for scripts.
    let name = format!("unix:{}:users", socket.display());
    assert_eq!(
        lookup(&config, &["socket", &name, "alice"], "").1,
        "changed\n"
    );
    let broken = format!("unix:{}:broken", socket.display());
    assert_eq!(lookup(&config, &["socket", &broken, "alice"], "").0, 75);
    // A second server does not take the first one's place.
    let second = Command::new(env!("CARGO_BIN_EXE_mapd"))
        .arg("-C")
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert_eq!(second.code(), Some(69));
}

/// Runs maplookup; its exit status and standard output.
fn lookup(config: &Path, words: &[&str], input: &str) -> (i32, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_maplookup"))
        .arg("-C")
        .arg(config)
        .args(words)
        .env_remove("DILIGENCE_SANDBOX")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let done = child.wait_with_output().unwrap();
    let text = String::from_utf8(done.stdout).unwrap();
    (done.status.code().unwrap(), text)
}

#[test]
fn maplookup_tells_absence_from_trouble() {
    let dir = tempfile::tempdir().unwrap();
    let config = installation(dir.path(), "");
    let users = dir.path().join("users").display().to_string();
    let ask = |words: &[&str], input: &str| lookup(&config, words, input);
    assert_eq!(ask(&["text", &users, "ALICE"], ""), (0, "one\n".into()));
    assert_eq!(ask(&["text", &users, "carol"], ""), (1, String::new()));
    assert_eq!(
        ask(&["text", &users], "bob\ncarol\nalice"),
        (1, "bob\ttwo\nalice\tone\n".into())
    );
    assert_eq!(ask(&["hash", &users, "x"], "").0, 75);
    assert_eq!(ask(&["hash", "/no/such/map", "x"], "").0, 75);
    assert_eq!(ask(&["cf", "both", "x"], "").0, 75);
    assert_eq!(ask(&["cf", "users", "bob"], "").0, 0);
    assert_eq!(ask(&["cf", "nothing", "x"], "").0, 78);
    assert_eq!(ask(&["hsah", "x", "x"], "").0, 78);
    assert_eq!(ask(&["text"], "").0, 64);
    let json =
        "{\"key\":\"bob\",\"found\":true,\"value\":\"two\"}\n{\"key\":\"x\",\"found\":false}\n";
    assert_eq!(
        ask(&["--json", "cf", "users", "bob", "x"], ""),
        (1, json.into())
    );
    let (code, text) = ask(&["--json", "cf", "broken", "x"], "");
    assert_eq!(code, 75);
    assert!(text.starts_with("{\"key\":\"x\",\"error\":\""), "{text}");
    let words = ["regex -s1", "^(.*)@", "Me@x"];
    assert_eq!(ask(&words, ""), (0, "Me\n".into()));
    assert_eq!(ask(&["arpa", "", "192.0.2.1"], "").1, "1.2.0.192\n");
}

/// A name server on a port of its own until the process ends: `host.test` has an address and a mail host, nobody else
/// anything.
fn name_server() -> std::net::SocketAddr {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            // The question: labels up to an empty one, then type and class.
            let name_len = buffer[12..len].iter().position(|&byte| byte == 0).unwrap() + 1;
            let name = buffer[12..12 + name_len].to_ascii_lowercase();
            let kind = buffer[12 + name_len + 1];
            let data: Option<&[u8]> = match kind {
                _ if name != b"\x04host\x04test\0" => None,
                1 => Some(&[192, 0, 2, 1]),
                15 => Some(b"\0\x0a\x02mx\x04test\0"),
                _ => Some(&[]),
            };
            let mut reply = buffer[..12 + name_len + 4].to_vec();
            reply[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 0, 0, 0, 0, 0]);
            match data {
                // There is no such name.
                None => reply[3] = 0x83,
                Some([]) => {}
                Some(data) => {
                    reply[7] = 1;
                    reply.extend_from_slice(&[0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 60, 0]);
                    reply.push(u8::try_from(data.len()).unwrap());
                    reply.extend_from_slice(data);
                }
            }
            let _ = socket.send_to(&reply, from);
        }
    });
    address
}

#[test]
fn every_class_is_reached_from_the_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().display();
    std::fs::write(dir.path().join("columns"), "p:one:two\n").unwrap();
    std::fs::write(dir.path().join("names"), "Root: alice\n").unwrap();
    let passwd = "carol:x:7:8:Carol C:/home/carol:/bin/sh\n";
    std::fs::write(dir.path().join("passwd"), passwd).unwrap();
    for kind in ["hash", "btree", "cdb", "lmdb", "redb", "fixed"] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_makemap"))
            .arg(kind)
            .arg(format!("m-{kind}"))
            .current_dir(dir.path())
            .env_remove("DILIGENCE_SANDBOX")
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"K v1\n").unwrap();
        assert!(child.wait().unwrap().success());
    }
    let maps = format!(
        "hash = \"hash {path}/m-hash\"\nbtree = \"btree -a! {path}/m-btree\"\ncdb = \"cdb {path}/m-cdb\"\n\
         lmdb = \"lmdb {path}/m-lmdb\"\nredb = \"redb {path}/m-redb\"\nfixed = \"fixed {path}/m-fixed\"\n\
         text = \"text -k0 -v2 -z: {path}/columns\"\nimplicit = \"implicit {path}/names\"\n\
         stab = \"stab {path}/names\"\nnull = \"null\"\nsequence = \"sequence null hash\"\n\
         switch = \"switch sw\"\n\"sw.files\" = \"stab {path}/names\"\nregex = \"regex -b -a@M ^[0-9]\\\\{{1,\\\\}}$\"\n\
         user = \"user -v dir {path}/passwd\"\nprogram = \"program /bin/echo got\"\n\
         host = \"host\"\ndns = \"dns -R A\"\nbestmx = \"bestmx\"\narpa = \"arpa\"\n\
         socket = \"socket unix:{path}/nobody:x\"\nldap = \"ldap -H ldapi://%2Fnowhere -b o=x -k (cn=%0) -v mail\"\n\
         sqlite = \"sqlite -Q\\\"SELECT 1 WHERE ?1 = 'x'\\\" {path}/none.sqlite\"\n\
         optional = \"sqlite -o -Q\\\"SELECT 1 WHERE ?1 = 'x'\\\" {path}/none.sqlite\"\n\
         quiet = \"hash -t {path}/none\"\ngone = \"hash {path}/none\"\nwaived = \"hash -o {path}/none\"\n"
    );
    let server = name_server();
    let config = dir.path().join("sendmail.toml");
    let text = format!(
        "log_file = \"{path}/log\"\nresolver = \"{server}\"\ndont_blame_sendmail = \"TrustStickyBit\"\n[map]\n{maps}"
    );
    std::fs::write(&config, text).unwrap();
    // Status 0: found, 1: absent, 75: the map does not work.
    let asked = [
        ("hash", "K", 0, "v1"),
        ("btree", "k", 0, "v1!"),
        ("cdb", "k", 0, "v1"),
        ("lmdb", "k", 0, "v1"),
        ("redb", "k", 0, "v1"),
        ("fixed", "k", 0, "v1"),
        ("fixed", "other", 1, ""),
        ("text", "P", 0, "two"),
        ("implicit", "root", 0, "alice"),
        ("stab", "ROOT", 0, "alice"),
        ("null", "k", 1, ""),
        ("sequence", "k", 0, "v1"),
        ("switch", "root", 0, "alice"),
        ("switch", "k", 1, ""),
        ("regex", "123", 0, "@M"),
        ("regex", "12x", 1, ""),
        ("user", "carol", 0, "/home/carol"),
        ("user", "nobody-at-all", 1, ""),
        ("program", "k", 0, "got k"),
        ("host", "host.test", 0, "host.test"),
        ("host", "none.test", 1, ""),
        ("dns", "host.test", 0, "192.0.2.1"),
        ("dns", "none.test", 1, ""),
        ("bestmx", "host.test", 0, "mx.test"),
        ("bestmx", "none.test", 1, ""),
        ("arpa", "192.0.2.1", 0, "1.2.0.192"),
        ("socket", "k", 75, ""),
        ("ldap", "k", 75, ""),
        ("sqlite", "k", 75, ""),
        ("optional", "k", 1, ""),
        ("gone", "k", 75, ""),
        ("quiet", "k", 1, ""),
        ("waived", "k", 1, ""),
    ];
    for (name, key, code, value) in asked {
        let (got, text) = lookup(&config, &["cf", name, key], "");
        assert_eq!((got, text.trim_end()), (code, value), "{name} {key}");
    }
}

/// What the mail system would refuse is refused; a file that is named on the command line is its caller's choice.
#[test]
fn maplookup_checks_maps_of_the_configuration_as_the_mail_system_does() {
    let dir = tempfile::tempdir().unwrap();
    let config = installation(dir.path(), "");
    let users = dir.path().join("users");
    let mode = |mode| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(&users, mode).unwrap();
    };
    mode(0o644);
    assert_eq!(lookup(&config, &["cf", "users", "alice"], "").0, 0);
    mode(0o664);
    assert_eq!(lookup(&config, &["cf", "users", "alice"], "").0, 75);
    assert_eq!(lookup(&config, &["cf", "users"], "alice\n").0, 75);
    let named = users.display().to_string();
    assert_eq!(lookup(&config, &["text", &named, "alice"], "").0, 0);
}

/// Postfix's own client: the one that .ci/peers unpacks, or the system's; where there is none, the test says so and ends.
#[test]
fn postfix_is_answered() {
    let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/peers/bin/postmap");
    let Some(postmap) = [peers, "/usr/sbin/postmap".into()]
        .into_iter()
        .find(|program| program.exists())
    else {
        eprintln!("SKIPPED: no postmap; .ci/peers unpacks one");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("maps");
    let more = format!("mapd.listen = \"unix:{}\"", socket.display());
    let config = installation(dir.path(), &more);
    let _server = Server::start(&config, 1);
    let ask = |name: &str, key: &str| {
        let table = format!("socketmap:unix:{}:{name}", socket.display());
        let done = Command::new(&postmap)
            .args(["-q", key, &table])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        (done.status.code(), text, done.stderr.is_empty())
    };
    assert_eq!(ask("users", "ALICE"), (Some(0), "one\n".into(), true));
    assert_eq!(
        ask("aliases", "root"),
        (Some(0), "alice, bob\n".into(), true)
    );
    // Absent: status 1 and not a word. Trouble: status 1, and it says so.
    assert_eq!(ask("users", "carol"), (Some(1), String::new(), true));
    for name in ["broken", "both", "nothing"] {
        assert_eq!(
            ask(name, "carol"),
            (Some(1), String::new(), false),
            "{name}"
        );
    }
}
