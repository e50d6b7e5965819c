//! Mailers of one's own, as lines of a sendmail.cf define them: `procmail, P=/usr/bin/procmail, F=DFMSPhnu9, A=procmail
//! -Y -m $h $f $u`.
//!
//! Pure text to value. What is not known, a field or a flag, is an error that names it. Source: op.me 5.4.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use super::duration::{TimeUnit, parse_time};

/// Flags that change what is done, or say what is done anyway.
const FLAGS: &str = "0235789:/@ACDEFLMPSXabcdefhijklmnopqrsuwxz|";
/// How long a program may take, unless W= says otherwise.
pub const TIME_LIMIT: Duration = Duration::from_secs(3600);

/// What a mailer speaks to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// P= is a program: it gets the message on its standard input.
    Program(String),
    /// `P=[IPC]` with `F=z`: an LMTP server on a Unix socket, `A=FILE PATH`.
    LmtpUnix(String),
    /// `P=[IPC]` with `F=z`: an LMTP server, `A=TCP HOST PORT`.
    LmtpTcp {
        /// A name or an address, or `$h`.
        host: String,
        /// Its port.
        port: u16,
    },
    /// `P=[MAILDIR]`: a Maildir, `A=MAILDIR PATH`, with the macros of arguments.
    Maildir(String),
}

/// A mailer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MailerDefinition {
    /// Its name, as mailertables and the log know it.
    pub name: String,
    /// What it speaks to.
    pub transport: Transport,
    /// F=.
    pub flags: BTreeSet<char>,
    /// A=, without what a [`Transport`] took of it.
    pub arguments: Vec<String>,
    /// D=: working directories, the first that can be entered is; macros as in arguments.
    pub directories: Vec<String>,
    /// U=: `USER[:GROUP]` it runs as.
    pub user: Option<String>,
    /// M=: the longest message in bytes.
    pub message_bytes_max: Option<u64>,
    /// W=: how long it may take.
    pub time_limit: Duration,
    text: String,
}

impl MailerDefinition {
    /// Whether a flag is set.
    #[must_use]
    pub fn has(&self, flag: char) -> bool {
        self.flags.contains(&flag)
    }

    /// Reads a definition.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, rest) = text
            .split_once(',')
            .ok_or_else(|| format!("`{text}' is not NAME, P=.., A=.."))?;
        let name = name.trim();
        if name.is_empty()
            || !name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
        {
            return Err(format!("`{name}' is not a name for a mailer"));
        }
        let (mut program, mut arguments) = (None, None);
        let mut found = Self {
            name: name.to_owned(),
            transport: Transport::Program(String::new()),
            flags: BTreeSet::new(),
            arguments: Vec::new(),
            directories: Vec::new(),
            user: None,
            message_bytes_max: None,
            time_limit: TIME_LIMIT,
            text: text.to_owned(),
        };
        let mut rest = rest.trim_start();
        while !rest.is_empty() {
            let (key, after) = rest
                .split_once('=')
                .ok_or_else(|| format!("mailer {name}: `{rest}' is not FIELD=VALUE"))?;
            // A= takes all that is left: arguments have commas of their own.
            let (value, next) = match key.trim() {
                "A" | "Argv" => (after, ""),
                _ => after.split_once(',').unwrap_or((after, "")),
            };
            found.field(key.trim(), value.trim(), &mut program, &mut arguments)?;
            rest = next.trim_start();
        }
        let program = program.ok_or_else(|| format!("mailer {name}: P= is missing"))?;
        let arguments = arguments.ok_or_else(|| format!("mailer {name}: A= is missing"))?;
        found.set_transport(&program, arguments)?;
        Ok(found)
    }

    fn field(
        &mut self,
        key: &str,
        value: &str,
        program: &mut Option<String>,
        arguments: &mut Option<Vec<String>>,
    ) -> Result<(), String> {
        let name = &self.name;
        match key {
            "P" | "Path" => *program = Some(value.to_owned()),
            "A" | "Argv" => {
                *arguments = Some(value.split_ascii_whitespace().map(str::to_owned).collect());
            }
            "F" | "Flags" => {
                if let Some(unknown) = value.chars().find(|c| !FLAGS.contains(*c)) {
                    return Err(format!(
                        "mailer {name}: unknown flag `{unknown}' in F={value}"
                    ));
                }
                self.flags = value.chars().collect();
            }
            "D" | "Directory" => {
                self.directories = value.split(':').map(|d| d.trim().to_owned()).collect();
            }
            "U" | "Userid" => self.user = Some(value.to_owned()),
            "M" | "Maxsize" => {
                let bytes: u64 = value
                    .parse()
                    .map_err(|_| format!("mailer {name}: M={value} is not a number of bytes"))?;
                self.message_bytes_max = (bytes > 0).then_some(bytes);
            }
            "W" | "Wait" => {
                self.time_limit = parse_time(value, TimeUnit::Seconds)
                    .map_err(|why| format!("mailer {name}: W={value}: {why}"))?;
                if self.time_limit.is_zero() {
                    return Err(format!("mailer {name}: W=0 leaves no time"));
                }
            }
            "T" | "Type" => {
                if value.split('/').count() != 3 {
                    return Err(format!(
                        "mailer {name}: T={value} is not MTA/ADDRESS/DIAGNOSTIC"
                    ));
                }
            }
            "E" | "Eol" => {
                if value != "\\n" {
                    return Err(format!("mailer {name}: E={value}: lines end in \\n here"));
                }
            }
            other => {
                return Err(format!("mailer {name}: {other}= is not honoured"));
            }
        }
        Ok(())
    }

    fn set_transport(&mut self, program: &str, arguments: Vec<String>) -> Result<(), String> {
        let name = &self.name;
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        self.transport = match (program, words.as_slice()) {
            ("[IPC]", _) if !self.has('z') => {
                return Err(format!(
                    "mailer {name}: P=[IPC] needs F=z; other hosts are reached by smart_host and mailertable"
                ));
            }
            ("[IPC]", ["FILE", path]) if path.starts_with('/') => {
                Transport::LmtpUnix((*path).to_owned())
            }
            ("[IPC]", ["TCP", host, port]) => Transport::LmtpTcp {
                host: (*host).to_owned(),
                port: port
                    .parse()
                    .map_err(|_| format!("mailer {name}: `{port}' is not a port"))?,
            },
            ("[IPC]", _) => {
                return Err(format!(
                    "mailer {name}: A= is neither FILE PATH nor TCP HOST PORT"
                ));
            }
            ("[MAILDIR]", ["MAILDIR", path]) if path.starts_with(['/', '$']) => {
                Transport::Maildir((*path).to_owned())
            }
            ("[MAILDIR]", _) => return Err(format!("mailer {name}: A= is not MAILDIR PATH")),
            (path, [_, ..]) if path.starts_with('/') => {
                let transport = Transport::Program(path.to_owned());
                self.arguments = arguments;
                transport
            }
            (path, _) if path.starts_with('/') => {
                return Err(format!("mailer {name}: A= is empty"));
            }
            _ => return Err(format!("mailer {name}: P={program} is no absolute path")),
        };
        Ok(())
    }
}

impl fmt::Display for MailerDefinition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_read_as_sendmail_cf_has_them() {
        let line = "procmail, P=/usr/bin/procmail, F=lsDFMAw5:/|@qSPfhn9, T=DNS/RFC822/X-Unix, W=5m, M=1000, A=procmail -a $h -d $u,x";
        let mailer = MailerDefinition::parse(line).unwrap();
        assert_eq!(mailer.name, "procmail");
        assert_eq!(
            mailer.transport,
            Transport::Program("/usr/bin/procmail".into())
        );
        assert_eq!(mailer.arguments, ["procmail", "-a", "$h", "-d", "$u,x"]);
        assert!(mailer.has('n') && mailer.has('|') && !mailer.has('E'));
        assert_eq!(mailer.time_limit, Duration::from_secs(300));
        assert_eq!(mailer.message_bytes_max, Some(1000));
        assert_eq!(mailer.to_string(), line);
        let lmtp = MailerDefinition::parse("dovecot, P=[IPC], F=lsDFMz, A=FILE /run/lmtp").unwrap();
        assert_eq!(lmtp.transport, Transport::LmtpUnix("/run/lmtp".into()));
        let dir = MailerDefinition::parse("md, P=[MAILDIR], A=MAILDIR $z/Maildir").unwrap();
        assert_eq!(dir.transport, Transport::Maildir("$z/Maildir".into()));
    }

    #[test]
    fn what_is_not_known_is_named() {
        for (text, part) in [
            ("x", "is not NAME"),
            ("a b, P=/x, A=x", "not a name"),
            ("x, A=x", "P= is missing"),
            ("x, P=/x", "A= is missing"),
            ("x, P=x, A=x", "no absolute path"),
            ("x, P=/x, F=l?, A=x", "unknown flag `?'"),
            ("x, P=/x, Q=1, A=x", "Q= is not honoured"),
            ("x, P=[IPC], A=TCP $h", "needs F=z"),
            ("x, P=[IPC], F=z, A=TCP h smtp", "`smtp' is not a port"),
            ("x, P=/x, W=0, A=x", "leaves no time"),
        ] {
            let error = MailerDefinition::parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
