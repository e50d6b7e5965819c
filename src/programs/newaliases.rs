//! Rebuilding alias maps: `newaliases`, `sendmail -bi`, `sendmail -v -bi`.
//!
//! Looks the installation over first, as Sendmail does when it reads its configuration: the file of local host names
//! and the queue directory must be there, else nothing is rebuilt. Lines in error are named and left out; the rest is
//! published, whole and on disk, or the old map stays. Prints on standard output, as programs expect. Blocks: disk.
//!
//! Source: newaliases(1), aliases(5).

use std::cell::RefCell;
use std::collections::HashSet;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use diligence_maps::alias::{
    AliasRemark, AliasTotals, Severity as RemarkSeverity, build_alias_map,
};
use diligence_maps::{
    Definition, MapClass, MapError, MapKind, MapSpec, PublishError, PublishOptions, SpecError,
};

use super::privileged_part;
use super::submit::say;
use crate::config::host::HostName;
use crate::config::options::OPTIONS;
use crate::config::{Blameless, Config, Origin};
use crate::maillog::{Maillog, QueueId, Severity, level_of};
use crate::route::ListLenience;
use crate::safe_file::{self, Purpose, ReadRequest, Who};
use crate::status::ExitCode;
use crate::users::Users;

/// Rebuilds every alias map of the configuration. Only root may, and in a sandbox its owner.
///
/// Blocks: disk, and the lock of another program that is rebuilding.
#[must_use]
pub fn run(config: &Config) -> ExitCode {
    let name = HostName::find(&config.host);
    let maillog = super::wiring::open_maillog(config, &name);
    let uid = nix::unistd::getuid();
    if !uid.is_root() && config.sandbox.is_none() {
        say("Permission denied (real uid not trusted)");
        maillog.write(
            Severity::Alert,
            level_of::ALWAYS,
            QueueId::Omitted,
            &format!("user {uid} attempted to rebuild the alias map"),
        );
        return ExitCode::Usage;
    }
    let users = Users::new(
        config.paths.passwd_file.as_deref(),
        config.paths.home_directory.as_deref(),
    );
    let user = match users.by_uid(uid.as_raw()) {
        Ok(Some(user)) => user.name,
        // The name is for the log alone.
        Ok(None) | Err(_) => uid.to_string(),
    };
    let rebuild = Rebuild {
        config,
        maillog,
        user,
    };
    let local_names = match rebuild.look_over(&name) {
        Ok(local_names) => local_names,
        Err(text) => {
            rebuild.complain(&text);
            return ExitCode::Config;
        }
    };
    let mut code = ExitCode::Ok;
    for spec in &config.route.alias_files {
        let outcome = rebuild.one(spec, &local_names);
        if outcome != ExitCode::Ok {
            code = outcome;
        } else if let Err(text) = rebuild.let_daemon_read(spec) {
            rebuild.complain(&text);
            code = ExitCode::OsErr;
        }
    }
    code
}

/// The file to build for an alias map; `None` for a class that nothing is built for.
fn alias_file(text: &str) -> Result<Option<MapSpec>, SpecError> {
    let definition = Definition::parse_alias(text)?;
    match definition.class {
        MapClass::File(kind) if kind.is_writable() => definition.into_file().map(Some),
        MapClass::Implicit => {
            let mut spec = MapSpec::new(MapKind::Hash, &definition.rest);
            spec.switches = definition.switches;
            Ok(Some(spec))
        }
        _ => Ok(None),
    }
}

struct Rebuild<'a> {
    config: &'a Config,
    maillog: Maillog,
    user: String,
}

impl Rebuild<'_> {
    /// Prints an error and logs it as the system's.
    fn complain(&self, text: &str) {
        say(text);
        self.maillog.system_error(None, &self.user, text);
    }

    /// Gives a map that was built to the group of the daemon that `run_as_user` makes; nobody else can read it.
    fn let_daemon_read(&self, spec: &str) -> Result<(), String> {
        let rights =
            privileged_part::daemon_rights(self.config).map_err(|error| error.to_string())?;
        let (Some(daemon), Ok(Some(spec))) = (rights.user(), alias_file(spec)) else {
            return Ok(());
        };
        let file = spec.file();
        std::os::unix::fs::lchown(&file, None, Some(daemon.gid))
            .map_err(|error| format!("{}: {}", file.display(), reason(&error)))
    }

    /// What has to be there before anything is rebuilt; the names of this host.
    fn look_over(&self, name: &HostName) -> Result<HashSet<String>, String> {
        let path = &self.config.route.local_host_names;
        let mut names: HashSet<String> = name.aliases.iter().cloned().collect();
        names.insert(name.full.to_ascii_lowercase());
        let text = self.read_class(path).map_err(|reason| {
            format!(
                "{}fileclass: cannot open '{}': {reason}",
                self.place_of("local_host_names"),
                path.display()
            )
        })?;
        for line in text.lines() {
            let line = line.split('#').next().unwrap_or_default();
            names.extend(line.split_ascii_whitespace().map(str::to_ascii_lowercase));
        }
        let queue = &self.config.paths.queue_directory;
        std::fs::read_dir(queue)
            .map_err(|error| format!("can not chdir({}/): {}", queue.display(), reason(&error)))?;
        Ok(names)
    }

    fn read_class(&self, path: &Path) -> Result<String, String> {
        let route = &self.config.route;
        let text = safe_file::read(&ReadRequest {
            path,
            purpose: Purpose::Class,
            who: Some(Who {
                uid: nix::unistd::geteuid().as_raw(),
                gid: nix::unistd::getegid().as_raw(),
            }),
            lenience: ListLenience::of(route.dont_blame).class,
            trusted: route.sandbox.as_deref(),
        })
        .map_err(|refusal| refusal.to_string())?;
        Ok(String::from_utf8_lossy(&text.bytes).into_owned())
    }

    /// Where the value of an option was set: `FILE: line N: `, or the file alone for a default.
    fn place_of(&self, key: &str) -> String {
        let file = self.config.file.display();
        let origin = OPTIONS
            .iter()
            .position(|option| option.key == key)
            .map_or(&Origin::Default, |index| self.config.origin(index));
        match origin {
            Origin::File { line } => format!("{file}: line {line}: "),
            Origin::Default => format!("{file}: "),
            Origin::CommandLine(typed) => format!("{typed}: "),
        }
    }

    /// Rebuilds one map.
    fn one(&self, spec: &str, local_names: &HashSet<String>) -> ExitCode {
        let spec = match alias_file(spec) {
            Ok(Some(spec)) => spec,
            // Nothing of it is built from a file: a directory, a sequence, a text.
            Ok(None) => return ExitCode::Ok,
            Err(error) => {
                self.complain(&format!("{spec}: {error}"));
                return ExitCode::Config;
            }
        };
        let source = spec.name.as_path();
        let shown = source.display().to_string();
        if let Some(why) = self.source_fault(source) {
            self.complain(&format!("newaliases: cannot open {shown}: {why}"));
            return ExitCode::NoInput;
        }
        let is_local = |domain: &[u8]| {
            local_names.contains(&String::from_utf8_lossy(domain).to_ascii_lowercase())
        };
        let errors = RefCell::new(Vec::new());
        let mut remark = |remark: &AliasRemark| {
            let text = remark.to_string();
            say(&text);
            if remark.severity == RemarkSeverity::Error {
                errors.borrow_mut().push(text);
            }
        };
        let built = build_alias_map(
            &[source],
            &spec,
            &PublishOptions::default(),
            &is_local,
            &mut remark,
        );
        for text in errors.borrow().iter() {
            self.maillog.system_error(None, &self.user, text);
        }
        match built {
            Ok(totals) => self.done(&shown, totals),
            Err(error) => self.not_published(&shown, &error),
        }
    }

    fn done(&self, shown: &str, totals: AliasTotals) -> ExitCode {
        say(&format!("{shown}: {totals}"));
        self.maillog.aliases_rebuilt(
            shown,
            &self.user,
            totals.aliases,
            totals.longest_bytes,
            totals.total_bytes,
        );
        if totals.errors > 0 {
            ExitCode::Software
        } else {
            ExitCode::Ok
        }
    }

    fn not_published(&self, shown: &str, error: &PublishError) -> ExitCode {
        self.complain(&format!(
            "newaliases: cannot create {shown}: {}",
            error.detail()
        ));
        match error {
            PublishError::Map(MapError::Locked { .. }) => ExitCode::TempFail,
            PublishError::Refused { .. } => ExitCode::NoPerm,
            PublishError::Io { .. } | PublishError::Map(_) => ExitCode::CantCreat,
        }
    }

    /// Why a source may not be read: what others can write must not decide where mail goes.
    fn source_fault(&self, source: &Path) -> Option<String> {
        let metadata = match std::fs::metadata(source) {
            Ok(metadata) => metadata,
            Err(error) => return Some(reason(&error)),
        };
        if !metadata.is_file() {
            return Some("Not a regular file".to_owned());
        }
        if self.config.sandbox.is_some() {
            return None;
        }
        let mode = metadata.permissions().mode();
        let blame = self.config.route.dont_blame;
        if mode & 0o020 != 0 && !blame.has(Blameless::GroupWritableAliasFile) {
            return Some("Group writable file".to_owned());
        }
        if mode & 0o002 != 0 && !blame.has(Blameless::WorldWritableAliasFile) {
            return Some("World writable file".to_owned());
        }
        // Root reads everything; who took the right to read away meant it.
        (mode & 0o444 == 0).then(|| "Permission denied".to_owned())
    }
}

/// The system's words for an error, without its number.
fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => nix::errno::Errno::from_raw(number).desc().to_owned(),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::config::Role;
    use std::sync::Arc;

    #[test]
    fn what_is_missing_or_writable_by_others_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let mut config = Config::defaults(Role::Mta, None);
        config.file = at("sendmail.toml");
        config.route.dont_blame.add("TrustStickyBit").unwrap();
        config.route.local_host_names = at("local-host-names");
        config.paths.queue_directory = at("mqueue");
        let name = HostName::find(&config.host);
        let look = |config: &Config| {
            let rebuild = Rebuild {
                config,
                maillog: Maillog::discarding(Arc::new(SystemClock::new())),
                user: "root".to_owned(),
            };
            let source = config.file.parent().unwrap().join("aliases");
            (rebuild.look_over(&name), rebuild.source_fault(&source))
        };
        let (looked, fault) = look(&config);
        assert_eq!(
            looked.unwrap_err(),
            format!(
                "{}: fileclass: cannot open '{}': No such file or directory",
                at("sendmail.toml").display(),
                at("local-host-names").display()
            )
        );
        assert_eq!(fault.as_deref(), Some("No such file or directory"));

        std::fs::write(at("local-host-names"), "Mail.Example.TEST # x\n").unwrap();
        std::fs::write(at("aliases"), "").unwrap();
        let mode =
            |mode| std::fs::set_permissions(at("aliases"), std::fs::Permissions::from_mode(mode));
        mode(0o664).unwrap();
        let (looked, fault) = look(&config);
        assert_eq!(
            looked.unwrap_err(),
            format!(
                "can not chdir({}/): No such file or directory",
                at("mqueue").display()
            )
        );
        assert_eq!(fault.as_deref(), Some("Group writable file"));

        std::fs::create_dir(at("mqueue")).unwrap();
        mode(0o644).unwrap();
        let (looked, fault) = look(&config);
        assert!(looked.unwrap().contains("mail.example.test"));
        assert_eq!(fault, None);
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o775)).unwrap();
        assert!(
            look(&config)
                .0
                .unwrap_err()
                .ends_with("': Group writable directory")
        );
    }
}
