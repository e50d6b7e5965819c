//! Postfix's proxymap(8) on a hash map, under a master(8) of its own in a private folder, and a client of it.
//!
//! The programs are those `.ci/peers` unpacks; nothing is installed. master wants to be root. It is ended, with what it
//! started, when the value is dropped.
//!
//! The protocol: names and values, each ended by NUL, and an empty name after the last; the server greets with its
//! protocol's name. Requests are answered one at a time. Source: proxymap(8), and what the programs send.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, geteuid, kill_process_group};

/// The user `daemon`, as whom proxymap serves.
const DAEMON: u32 = 1;
/// What Postfix's own clients ask for: that the table is locked while it is read, and keys folded.
const FLAGS: &str = "16448";

/// A running proxymap.
pub(crate) struct Proxymap {
    master: Child,
    socket: PathBuf,
    table: String,
}

impl Proxymap {
    /// Starts one that serves the hash map `map` (without `.db`), with its files in `dir`; if it cannot be, says why.
    pub(crate) fn start(dir: &Path, map: &Path) -> Result<Self, String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/peers/root");
        let programs = root.join("usr/lib/postfix/sbin");
        if !programs.join("proxymap").exists() {
            return Err("Postfix is missing; .ci/peers unpacks it".into());
        }
        if !geteuid().is_root() {
            return Err("Postfix's master wants to be root".into());
        }
        let table = format!("hash:{}", map.display());
        lay_out(dir, &root, &table).map_err(|error| error.to_string())?;
        let master = Command::new(programs.join("master"))
            .arg("-c")
            .arg(dir.join("etc"))
            .arg("-d")
            .env("LD_LIBRARY_PATH", libraries(&root))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|error| error.to_string())?;
        Ok(Self {
            master,
            socket: dir.join("queue/private/proxymap"),
            table,
        })
    }

    /// Whether it takes connections by now.
    pub(crate) fn is_ready(&self) -> bool {
        UnixStream::connect(&self.socket).is_ok()
    }

    /// A connection to it.
    pub(crate) fn connect(&self) -> ProxymapClient {
        let mut client = ProxymapClient {
            stream: UnixStream::connect(&self.socket).unwrap(),
            request: format!(
                "request\0lookup\0table\0{}\0flags\0{FLAGS}\0key\0",
                self.table
            )
            .into_bytes(),
            prefix: 0,
            reply: Vec::new(),
        };
        client.prefix = client.request.len();
        client.receive();
        assert!(client.reply.starts_with(b"protocol\0"), "no greeting");
        client
    }
}

impl Drop for Proxymap {
    fn drop(&mut self) {
        if let Some(group) = i32::try_from(self.master.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::TERM);
        }
        let _ = self.master.wait();
    }
}

/// Folders and settings. Everything lies under `dir`, which proxymap's user must be able to enter.
fn lay_out(dir: &Path, root: &Path, table: &str) -> std::io::Result<()> {
    for folder in ["etc", "data", "queue/pid", "queue/private", "queue/public"] {
        fs::create_dir_all(dir.join(folder))?;
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    for folder in ["data", "queue/private"] {
        chown(dir.join(folder), Some(DAEMON), None)?;
    }
    let (dir, root) = (dir.display(), root.display());
    let main = format!(
        "compatibility_level = 3.6\nmail_owner = daemon\nsetgid_group = mail\ndefault_privs = nobody\n\
         myhostname = bench.example.test\ninet_interfaces = 127.0.0.1\ninet_protocols = ipv4\nmaillog_file =\n\
         queue_directory = {dir}/queue\ndata_directory = {dir}/data\nmeta_directory = {dir}/etc\n\
         daemon_directory = {root}/usr/lib/postfix/sbin\ncommand_directory = {root}/usr/sbin\n\
         shlib_directory = {root}/usr/lib/postfix\nimport_environment = MAIL_CONFIG LD_LIBRARY_PATH\n\
         proxy_read_maps = proxy:{table}\n"
    );
    fs::write(format!("{dir}/etc/main.cf"), main)?;
    fs::write(format!("{dir}/etc/dynamicmaps.cf"), "")?;
    fs::write(
        format!("{dir}/etc/master.cf"),
        "proxymap unix - - n - - proxymap\n",
    )
}

/// Where the unpacked programs find their libraries.
fn libraries(root: &Path) -> String {
    let mut found = vec![root.join("usr/lib/postfix")];
    for parent in ["usr/lib", "lib"] {
        let folders = fs::read_dir(root.join(parent)).into_iter().flatten();
        found.extend(
            folders
                .flatten()
                .map(|entry| entry.path())
                .filter(|path| path.to_string_lossy().ends_with("-linux-gnu")),
        );
    }
    let texts: Vec<_> = found.iter().map(|path| path.to_string_lossy()).collect();
    texts.join(":")
}

/// One connection.
pub(crate) struct ProxymapClient {
    stream: UnixStream,
    /// The request, of which the first `prefix` bytes are the same for every key.
    request: Vec<u8>,
    prefix: usize,
    reply: Vec<u8>,
}

impl ProxymapClient {
    /// Looks a key up; whether it is there.
    pub(crate) fn lookup(&mut self, key: &[u8]) -> bool {
        self.request.truncate(self.prefix);
        self.request.extend_from_slice(key);
        self.request.extend_from_slice(b"\0\0");
        self.stream.write_all(&self.request).unwrap();
        self.receive();
        let is_found = self.reply.starts_with(b"status\x000\0value\0");
        let is_absent = self.reply == *b"status\x001\0value\0\0\0";
        assert!(
            is_found || is_absent,
            "{}",
            String::from_utf8_lossy(&self.reply)
        );
        is_found
    }

    /// Reads a whole reply: names and values up to an empty name.
    fn receive(&mut self) {
        self.reply.clear();
        let mut piece = [0; 4096];
        while !is_whole(&self.reply) {
            let read = self.stream.read(&mut piece).unwrap();
            assert!(read > 0, "proxymap closed the connection");
            self.reply.extend_from_slice(&piece[..read]);
        }
    }
}

fn is_whole(reply: &[u8]) -> bool {
    let mut fields = reply.split_inclusive(|&byte| byte == 0);
    loop {
        match fields.next() {
            Some(b"\0") => return true,
            Some(name) if name.ends_with(b"\0") => {}
            _ => return false,
        }
        // Its value.
        if !fields.next().is_some_and(|value| value.ends_with(b"\0")) {
            return false;
        }
    }
}
