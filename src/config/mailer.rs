//! Mailers of one's own, as lines of a sendmail.cf define them: `procmail, P=/usr/bin/procmail, F=DFMSPhnu9, A=procmail
//! -Y -m $h $f $u`.
//!
//! Pure text to value. What is not known, a field or a flag, is an error that names it. Source: op.me 5.4.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use super::duration::{TimeUnit, parse_time};
use super::size::ByteSize;

/// The flags that are honoured, with what each does.
pub const FLAGS: &[(char, &str)] = &[
    ('0', "no MX records are looked up for the host"),
    (
        '5',
        "rule set 5 of unknown local names: the router's answer for this mailer's users stands",
    ),
    ('7', "the eighth bit of every byte is cleared"),
    (
        '8',
        "bodies of eight bits go as they are, which they always do",
    ),
    ('9', "no body is converted, which none ever is"),
    ('/', "addresses may be files, which the router decides"),
    (
        ':',
        "addresses may be :include: files, which the router decides",
    ),
    (
        '@',
        "addresses are looked up in the user database, which the router decides",
    ),
    (
        'A',
        "addresses are looked up in the aliases, which the router decides",
    ),
    ('D', "the header has Date, which every accepted message has"),
    (
        'E',
        "lines of the body that begin with From are quoted as >From",
    ),
    ('F', "the header has From, which every accepted message has"),
    (
        'M',
        "the header has Message-Id, which every accepted message has",
    ),
    ('P', "the header begins with Return-Path"),
    (
        'S',
        "the program is not run as the sender: it runs as U= says, or as the recipient",
    ),
    ('X', "lines that begin with a dot get another one"),
    ('b', "an empty line ends the message"),
    (
        'e',
        "an expensive mailer: the same as others, as HoldExpensive is not supported",
    ),
    ('f', "the program gets -f with the sender"),
    ('h', "upper case in the host is kept"),
    ('l', "the mailer is local: delivery is final"),
    ('m', "one run serves several recipients"),
    ('n', "no From line begins the message"),
    ('o', "the program runs as the recipient's user"),
    (
        'q',
        "VRFY answers 250 for its users, which the router decides",
    ),
    ('r', "the program gets -r with the sender"),
    ('s', "quotation marks are taken off the user"),
    ('u', "upper case in the user is kept"),
    ('w', "the user must have an account"),
    ('z', "the mailer speaks LMTP"),
    ('|', "addresses may be programs, which the router decides"),
];

/// What each process of a program may use up; `None`: as much as may be used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ProgramLimits {
    /// Time of a processor.
    pub cpu: Option<Duration>,
    /// Address space.
    pub memory: Option<ByteSize>,
}

/// How long a program may take, unless W= says otherwise.
pub const TIME_LIMIT: Duration = Duration::from_secs(3600);
/// The longest W=: less than an attempt may take altogether.
pub const TIME_LIMIT_MAX: Duration = Duration::from_secs(3 * 3600);
/// Where smrsh finds the programs that it may run, unless it is told.
pub const SMRSH_DIRECTORY: &str = "/usr/lib/sm.bin";
/// The most words of A=.
pub const ARGUMENTS_MAX: usize = 64;

/// What stands for a value in arguments and directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Macro {
    /// `$u`: the recipient.
    User,
    /// `$h`: the host, or what stood after `+` in a local address.
    Host,
    /// `$f`, `$g`: the sender.
    Sender,
    /// `$z`: the recipient's home.
    Home,
    /// `$j`, `$w`: this host's full name.
    HostName,
    /// `$m`: this host's domain.
    Domain,
    /// `$i`: the queue id.
    QueueId,
    /// `$r`: the protocol the message came by.
    Protocol,
    /// `$s`: the name the client gave, and `${client_name}`.
    ClientName,
    /// `${client_addr}`.
    ClientAddress,
    /// `${msg_size}`: bytes.
    MessageSize,
    /// `${nrcpts}`: recipients of the message.
    RecipientCount,
    /// `$v`: the version.
    Version,
}

impl Macro {
    fn by_name(name: &str) -> Option<Self> {
        Some(match name {
            "u" => Self::User,
            "h" => Self::Host,
            "f" | "g" | "mail_addr" => Self::Sender,
            "z" => Self::Home,
            "j" | "w" => Self::HostName,
            "m" => Self::Domain,
            "i" => Self::QueueId,
            "r" => Self::Protocol,
            "s" | "client_name" => Self::ClientName,
            "client_addr" => Self::ClientAddress,
            "msg_size" => Self::MessageSize,
            "nrcpts" => Self::RecipientCount,
            "v" => Self::Version,
            _ => return None,
        })
    }
}

/// A text with macros in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Value(Macro),
}

impl Template {
    /// Reads `$u`, `${client_addr}` and `$$`.
    ///
    /// # Errors
    /// A macro that is not known, by its name.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            plain.push_str(before);
            let mut letters = after.chars();
            let (name, tail) = match letters.next() {
                Some('$') => {
                    plain.push('$');
                    rest = letters.as_str();
                    continue;
                }
                Some('{') => letters
                    .as_str()
                    .split_once('}')
                    .ok_or_else(|| format!("`${{' without `}}' in `{text}'"))?,
                Some(letter) => after.split_at(letter.len_utf8()),
                None => return Err(format!("`$' ends `{text}'")),
            };
            let value =
                Macro::by_name(name).ok_or_else(|| format!("macro `{name}' is not known"))?;
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain)));
            }
            parts.push(Part::Value(value));
            rest = tail;
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Self(parts))
    }

    /// The text, with what `value` says for each macro.
    #[must_use]
    pub fn expand(&self, value: impl Fn(Macro) -> String) -> String {
        self.0
            .iter()
            .map(|part| match part {
                Part::Text(text) => text.clone(),
                Part::Value(of) => value(*of),
            })
            .collect()
    }

    /// Whether a macro stands in it.
    #[must_use]
    pub fn has(&self, wanted: Macro) -> bool {
        self.0.contains(&Part::Value(wanted))
    }
}

/// What a mailer speaks to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// P= is a program: it gets the message on its standard input, or speaks LMTP there with `F=z`.
    Program(String),
    /// `P=[IPC]` with `F=z`: an LMTP server on a Unix socket, `A=FILE PATH`.
    LmtpUnix(String),
    /// `P=[IPC]` with `F=z`: an LMTP server, `A=TCP HOST PORT`.
    LmtpTcp {
        /// A name or an address, or `$h`.
        host: Template,
        /// Its port.
        port: u16,
    },
    /// `P=[MAILDIR]`: a Maildir, `A=MAILDIR PATH`, with the macros of arguments.
    Maildir(Template),
}

/// What ends a line of what a mailer gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LineEnd {
    /// `\n`
    #[default]
    Lf,
    /// `\r\n`
    CrLf,
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
    pub arguments: Vec<Template>,
    /// D=: working directories, the first that can be entered is; macros as in arguments.
    pub directories: Vec<Template>,
    /// E=: what ends a line.
    pub line_end: LineEnd,
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
            line_end: LineEnd::Lf,
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
                let is_known = |c: char| FLAGS.iter().any(|(flag, _)| *flag == c);
                if let Some(unknown) = value.chars().find(|c| !is_known(*c)) {
                    return Err(format!(
                        "mailer {name}: unknown flag `{unknown}' in F={value}"
                    ));
                }
                self.flags = value.chars().collect();
            }
            "D" | "Directory" => {
                self.directories = value
                    .split(':')
                    .map(|directory| Template::parse(directory.trim()))
                    .collect::<Result<_, _>>()
                    .map_err(|why| format!("mailer {name}: D={value}: {why}"))?;
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
                if self.time_limit > TIME_LIMIT_MAX {
                    return Err(format!("mailer {name}: W={value} is more than 3h"));
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
                self.line_end = match value {
                    "\\n" => LineEnd::Lf,
                    "\\r\\n" => LineEnd::CrLf,
                    _ => {
                        let what = "is neither \\n nor \\r\\n (with the backslashes)";
                        return Err(format!("mailer {name}: E={value} {what}"));
                    }
                };
            }
            "S" | "Sender" | "R" | "Recipient" => {
                return Err(format!(
                    "mailer {name}: {key}= is not honoured: there are no rule sets, addresses are rewritten as masquerade_as and genericstable say"
                ));
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
        if words.len() > ARGUMENTS_MAX {
            return Err(format!(
                "mailer {name}: more than {ARGUMENTS_MAX} arguments"
            ));
        }
        let of_arguments = |why: String| format!("mailer {name}: A=: {why}");
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
                host: Template::parse(host).map_err(of_arguments)?,
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
                Transport::Maildir(Template::parse(path).map_err(of_arguments)?)
            }
            ("[MAILDIR]", _) => return Err(format!("mailer {name}: A= is not MAILDIR PATH")),
            (path, [_, ..]) if path.starts_with('/') => {
                let transport = Transport::Program(path.to_owned());
                self.arguments = words
                    .iter()
                    .map(|word| Template::parse(word))
                    .collect::<Result<_, _>>()
                    .map_err(of_arguments)?;
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
        let words: Vec<String> = mailer
            .arguments
            .iter()
            .map(|word| word.expand(|of| format!("[{of:?}]")))
            .collect();
        assert_eq!(words, ["procmail", "-a", "[Host]", "-d", "[User],x"]);
        assert!(mailer.has('n') && mailer.has('|') && !mailer.has('E'));
        assert_eq!(mailer.time_limit, Duration::from_secs(300));
        assert_eq!(mailer.message_bytes_max, Some(1000));
        assert_eq!(mailer.to_string(), line);
        let lmtp = MailerDefinition::parse("dovecot, P=[IPC], F=lsDFMz, A=FILE /run/lmtp").unwrap();
        assert_eq!(lmtp.transport, Transport::LmtpUnix("/run/lmtp".into()));
        let dir = MailerDefinition::parse("md, P=[MAILDIR], A=MAILDIR $z/Maildir").unwrap();
        assert_eq!(
            dir.transport,
            Transport::Maildir(Template::parse("$z/Maildir").unwrap())
        );
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
            (
                "x, P=/x, S=EnvFromL, A=x",
                "S= is not honoured: there are no rule sets",
            ),
            ("x, P=[IPC], A=TCP $h", "needs F=z"),
            ("x, P=[IPC], F=z, A=TCP h smtp", "`smtp' is not a port"),
            ("x, P=/x, W=0, A=x", "leaves no time"),
            ("x, P=/x, W=4h, A=x", "more than 3h"),
            ("x, P=/x, A=x $q", "macro `q' is not known"),
            ("x, P=/x, A=x ${what}", "macro `what' is not known"),
            ("x, P=/x, A=x ${u", "without `}'"),
            ("x, P=/x, A=x $", "`$' ends"),
            ("x, P=/x, D=$y, A=x", "D=$y: macro `y'"),
            ("x, P=/x, E=\\t, A=x", "E=\\t is neither"),
            ("x, P=/x, F=c, A=x", "unknown flag `c'"),
        ] {
            let error = MailerDefinition::parse(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
