//! What `--print-config` shows: every option with its value, its default and
//! where the value came from, as TOML that can be used as a configuration.

use std::fmt::Write as _;

use super::options::{OPTIONS, OptionDef};
use super::value::Shown;
use super::{Config, Origin};

impl Config {
    /// Every option as one line of TOML, with a comment that says where the
    /// value came from and, where it differs, what the default is. Never blocks.
    #[must_use]
    pub fn report(&self) -> String {
        let defaults = Self::defaults(self.role, self.sandbox.as_deref());
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# configuration file: {}", self.file.display());
        if let Some(dir) = &self.sandbox {
            let _ = writeln!(text, "# sandbox: {}", dir.display());
        }
        for (index, option) in OPTIONS.iter().enumerate() {
            let value = toml_value(&option.show(self));
            let default = toml_value(&option.show(&defaults));
            let origin = match self.origin(index) {
                Origin::Default => "default".to_owned(),
                Origin::File { line } => format!("{}:{line}", self.file.display()),
                Origin::CommandLine(typed) => format!("command line: {}", printable(typed)),
            };
            let _ = write!(text, "{} = {value} # {origin}", option.key);
            if value != default {
                let _ = write!(text, "; default {default}");
            }
            text.push('\n');
        }
        for (name, spec) in &self.route.maps {
            let file = self.file.display();
            let _ = writeln!(text, "map.{} = {} # {file}", quoted(name), quoted(spec));
        }
        text
    }
}

/// The table as the OPTIONS section of sendmail.toml(5), in man(7) macros.
#[must_use]
pub fn manual_entries() -> String {
    let mut text = String::new();
    for option in OPTIONS {
        text.push_str(&manual_entry(option));
    }
    text
}

fn manual_entry(option: &OptionDef) -> String {
    let mut text = String::new();
    let _ = writeln!(text, ".TP\n.B {}", roff(option.key));
    let _ = writeln!(text, "{}", roff(option.text));
    let _ = writeln!(text, "Type: {}.", roff(&option.type_text()));
    let default = |role, is_sandbox| {
        let default = option.default_for(role, is_sandbox);
        if default.is_empty() {
            "none".to_owned()
        } else {
            format!("\\(lq{}\\(rq", roff(default))
        }
    };
    use super::Role::{Msp, Mta};
    let _ = write!(text, "Default: {}", default(Mta, false));
    for (is_shown, role, is_sandbox, name) in [
        (true, Msp, false, "submit.toml"),
        (true, Mta, true, "in a sandbox"),
        (true, Msp, true, "submit.toml of a sandbox"),
    ] {
        let differs = option.default_for(role, is_sandbox) != option.default_for(Mta, false);
        let is_told = role == Msp
            && is_sandbox
            && option.default_for(role, true) == option.default_for(Mta, true);
        if is_shown && differs && !is_told {
            let _ = write!(text, "; {name}: {}", default(role, is_sandbox));
        }
    }
    text.push_str(".\n");
    let letter = option
        .letter
        .map_or_else(String::new, |letter| format!(" or \\-o{letter}"));
    let name = if option.name.is_empty() {
        option.key
    } else {
        option.name
    };
    let _ = writeln!(text, "Command line: \\-O {}{letter}.", roff(name));
    text
}

fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    if text.starts_with(['.', '\'']) {
        format!("\\&{text}")
    } else {
        text
    }
}

fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

fn toml_value(shown: &Shown) -> String {
    match shown {
        Shown::Text(text) => quoted(text),
        Shown::Bare(text) => text.clone(),
        Shown::List(list) => {
            let parts: Vec<String> = list.iter().map(|part| quoted(part)).collect();
            format!("[{}]", parts.join(", "))
        }
    }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{Override, Request, Role};
    use super::*;

    #[test]
    fn what_is_printed_can_be_read_back() {
        let overrides = [
            Override::from_assignment("Timeout.queuereturn=3d"),
            Override::from_assignment("DaemonPortOptions=Port=2526,Addr=127.0.0.1"),
        ];
        let request = Request {
            sandbox: Some(Path::new("/sand/box")),
            overrides: &overrides,
            ..Request::default()
        };
        let path = Path::new("/sand/box/etc/mail/sendmail.toml");
        let config = Config::from_text(&request, path, "smart_host = \"[::1]\"\n").unwrap();
        let report = config.report();
        assert!(report.contains("smart_host = \"[::1]\" # /sand/box/etc/mail/sendmail.toml:1"));
        assert!(report.contains(
            "timeout.queue_return = \"3d\" # command line: -OTimeout.queuereturn=3d; default \"5d\""
        ));
        let plain = Request {
            overrides: &[],
            ..request
        };
        let again = Config::from_text(&plain, path, &report).unwrap();
        assert_eq!(again.route, config.route);
        assert_eq!(again.smtpd, config.smtpd);
        assert_eq!(again.queue, config.queue);
        assert_eq!(again.paths, config.paths);
    }

    #[test]
    fn the_manual_page_holds_the_table_as_it_is() {
        let page = include_str!("../../tools/man/sendmail.toml.5");
        assert!(
            page.contains(&manual_entries()),
            "tools/man/sendmail.toml.5 is not made from the table; put this in it:\n{}",
            manual_entries()
        );
        assert_eq!(
            Config::defaults(Role::Mta, None).report().lines().count(),
            OPTIONS.len() + 1
        );
    }
}
