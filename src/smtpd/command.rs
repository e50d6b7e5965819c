//! Commands and their parameters: from a line to a typed command, or to the reply that refuses it.
//!
//! Pure. A line is what came before its CRLF, already known to be ASCII without NUL or CR. Verbs compare without
//! case. Sources: RFC 5321 4.1.1, RFC 1870 (SIZE), RFC 6152 (BODY), RFC 3461 4 (RET, ENVID, NOTIFY, ORCPT); texts and
//! codes of refusals are Sendmail's, which programs know. Limits: [`SHOWN_BYTES_MAX`], [`PARAMETER_BYTES_MAX`].

use crate::address::{Address, AddressError, PATH_BYTES_MAX, ReversePath};
use crate::envelope::{BodyType, DsnReturn, Notify};
use crate::status::{Reply, Status};

/// An address in a reply or log line is shortened to about this many bytes.
pub(super) const SHOWN_BYTES_MAX: usize = 203;
/// Longest value of a parameter, in bytes (RFC 3461 4.2 and 4.4 ask for 100 and 500).
const PARAMETER_BYTES_MAX: usize = 1000;

/// A command, with what follows its verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command<'a> {
    Helo {
        is_extended: bool,
        name: &'a str,
    },
    Mail(&'a str),
    Rcpt(&'a str),
    Data,
    Rset,
    Noop,
    Vrfy(&'a str),
    Expn(&'a str),
    Help(&'a str),
    Verb,
    Quit,
    /// Known, but this server does not have it.
    NotBuilt,
    Unknown,
}

impl<'a> Command<'a> {
    pub(super) fn parse(line: &'a str) -> Self {
        let line = line.trim_start_matches([' ', '\t']);
        let end = line.find([' ', '\t']).unwrap_or(line.len());
        let (verb, rest) = line.split_at(end);
        let rest = rest.trim_matches([' ', '\t']);
        // Sendmail and some clients write `MAIL From:` or `RCPT To:`; the verb alone decides here.
        let is = |name: &str| verb.eq_ignore_ascii_case(name);
        match verb.len() {
            4 if is("HELO") => Self::Helo {
                is_extended: false,
                name: rest,
            },
            4 if is("EHLO") => Self::Helo {
                is_extended: true,
                name: rest,
            },
            4 if is("MAIL") => Self::Mail(rest),
            4 if is("RCPT") => Self::Rcpt(rest),
            4 if is("DATA") => Self::Data,
            4 if is("RSET") => Self::Rset,
            4 if is("NOOP") => Self::Noop,
            4 if is("VRFY") => Self::Vrfy(rest),
            4 if is("EXPN") => Self::Expn(rest),
            4 if is("HELP") => Self::Help(rest),
            4 if is("VERB") => Self::Verb,
            4 if is("QUIT") => Self::Quit,
            4 if ["SEND", "SAML", "SOML", "TURN", "ETRN", "AUTH"]
                .iter()
                .any(|v| is(v)) =>
            {
                Self::NotBuilt
            }
            8 if is("STARTTLS") => Self::NotBuilt,
            _ => Self::Unknown,
        }
    }

    /// Sendmail's name for it in log lines.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Helo {
                is_extended: false, ..
            } => "helo",
            Self::Helo { .. } => "ehlo",
            Self::Mail(_) => "mail",
            Self::Rcpt(_) => "rcpt",
            Self::Data => "data",
            Self::Rset => "rset",
            Self::Noop => "noop",
            Self::Vrfy(_) => "vrfy",
            Self::Expn(_) => "expn",
            Self::Help(_) => "help",
            Self::Verb => "verb",
            Self::Quit => "quit",
            Self::NotBuilt | Self::Unknown => "unknown",
        }
    }
}

/// The path of a MAIL or RCPT command as it was written, and what follows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Path<'a> {
    /// With the angle brackets, if there were any: what replies repeat.
    pub(super) shown: &'a str,
    /// Without them.
    pub(super) inner: &'a str,
    pub(super) parameters: &'a str,
}

impl Path<'_> {
    pub(super) fn has_brackets(&self) -> bool {
        self.shown.starts_with('<')
    }
}

/// Takes `FROM:` or `TO:` and the path off an argument.
pub(super) fn parse_path<'a>(argument: &'a str, keyword: &str) -> Result<Path<'a>, Reply> {
    let word_end = argument.find([':', ' ', '\t']).unwrap_or(argument.len());
    let (word, rest) = argument.split_at(word_end);
    let rest = rest.trim_start_matches([' ', '\t']);
    let rest = rest
        .strip_prefix(':')
        .map(|r| r.trim_start_matches([' ', '\t']));
    let text = match rest {
        Some(text) if word.eq_ignore_ascii_case(keyword) && !text.is_empty() => text,
        _ => return Err(syntax_error(word)),
    };
    let end = if text.starts_with('<') {
        match closing_bracket(text) {
            Some(at) => at + 1,
            None => {
                return Err(Reply::new(
                    553,
                    Status::new(5, 0, 0),
                    format!("{}... Unbalanced '<'", shorten(text)),
                ));
            }
        }
    } else {
        text.find([' ', '\t']).unwrap_or(text.len())
    };
    let (shown, parameters) = text.split_at(end);
    if !parameters.is_empty() && !parameters.starts_with([' ', '\t']) {
        return Err(syntax_error(parameters));
    }
    let inner = shown
        .strip_prefix('<')
        .and_then(|inner| inner.strip_suffix('>'))
        .unwrap_or(shown);
    Ok(Path {
        shown,
        inner,
        parameters: parameters.trim_matches([' ', '\t']),
    })
}

/// The position of the `>` that closes the `<` at the start, quoted strings and escapes skipped.
fn closing_bracket(text: &str) -> Option<usize> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    for (at, byte) in text.bytes().enumerate() {
        if is_escaped {
            is_escaped = false;
            continue;
        }
        match byte {
            b'\\' => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            b'>' if !is_quoted => return Some(at),
            _ => {}
        }
    }
    None
}

fn syntax_error(scanning: &str) -> Reply {
    Reply::new(
        501,
        Status::new(5, 5, 2),
        format!(
            "Syntax error in parameters scanning \"{}\"",
            shorten(scanning)
        ),
    )
}

/// The sender that a path names.
pub(super) fn parse_sender(path: &Path<'_>) -> Result<ReversePath, Reply> {
    ReversePath::parse(path.inner).map_err(|error| address_refusal(path, error))
}

/// The recipient that a path names.
pub(super) fn parse_recipient(path: &Path<'_>) -> Result<Address, Reply> {
    Address::parse(path.inner).map_err(|error| address_refusal(path, error))
}

fn address_refusal(path: &Path<'_>, error: AddressError) -> Reply {
    let domain = path.inner.rsplit_once('@').map(|(_, domain)| domain);
    let (subject, detail, text) = match error {
        AddressError::Empty => (0, 0, "User address required"),
        AddressError::TooLong if path.inner.len() > PATH_BYTES_MAX => (1, 1, "Address too long"),
        AddressError::TooLong => (1, 0, "Address too long"),
        _ if domain == Some("") => (1, 3, "Hostname required"),
        _ if path.inner.matches('@').count() > 1 && !path.inner.contains('"') => {
            (1, 3, "Invalid route address")
        }
        AddressError::Domain | AddressError::Literal => (1, 2, "Invalid host name"),
        AddressError::Brackets => (0, 0, "Unbalanced '<'"),
        AddressError::Quotes => (0, 0, "Unbalanced '\"'"),
        AddressError::LocalPart => (1, 3, "Invalid address"),
    };
    Reply::new(
        553,
        Status::new(5, subject, detail),
        format!("{}... {text}", shorten(path.shown)),
    )
}

/// What MAIL may say besides the sender.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct MailParameters {
    pub(super) declared_bytes: Option<u64>,
    pub(super) body_type: BodyType,
    pub(super) dsn_return: DsnReturn,
    pub(super) envelope_id: Option<String>,
}

impl MailParameters {
    /// `takes_dsn` is false where the operator does not want receipts.
    pub(super) fn parse(text: &str, takes_dsn: bool) -> Result<Self, Reply> {
        let mut out = Self::default();
        for word in text.split_ascii_whitespace() {
            let (key, value) = key_and_value(word);
            if key.eq_ignore_ascii_case("SIZE") {
                let value = required(value, "SIZE")?;
                if value.starts_with('-') {
                    return Err(Reply::new(
                        552,
                        Status::new(5, 2, 3),
                        "Message size invalid",
                    ));
                }
                out.declared_bytes = Some(leading_number(value));
            } else if key.eq_ignore_ascii_case("BODY") {
                let value = required(value, "BODY")?;
                out.body_type = if value.eq_ignore_ascii_case("7BIT") {
                    BodyType::SevenBit
                } else if value.eq_ignore_ascii_case("8BITMIME") {
                    BodyType::EightBitMime
                } else {
                    return Err(bad_value(&format!("Unknown BODY type {}", shorten(value))));
                };
            } else if key.eq_ignore_ascii_case("RET") {
                allow_dsn(takes_dsn, "RET")?;
                let value = required(value, "RET")?;
                if out.dsn_return != DsnReturn::Unspecified {
                    return Err(duplicate("RET"));
                }
                out.dsn_return = if value.eq_ignore_ascii_case("FULL") {
                    DsnReturn::Full
                } else if value.eq_ignore_ascii_case("HDRS") {
                    DsnReturn::Headers
                } else {
                    return Err(bad_value(&format!(
                        "Bad argument \"{}\" to RET",
                        shorten(value)
                    )));
                };
            } else if key.eq_ignore_ascii_case("ENVID") {
                allow_dsn(takes_dsn, "ENVID")?;
                let value = required(value, "ENVID")?;
                if !is_xtext(value) {
                    return Err(bad_value("Syntax error in ENVID parameter value"));
                }
                if out.envelope_id.is_some() {
                    return Err(duplicate("ENVID"));
                }
                out.envelope_id = Some(value.to_owned());
            } else {
                return Err(unrecognized(key));
            }
        }
        Ok(out)
    }
}

/// What RCPT may say besides the recipient.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct RcptParameters {
    pub(super) notify: Notify,
    pub(super) original_recipient: Option<String>,
}

impl RcptParameters {
    pub(super) fn parse(text: &str, takes_dsn: bool) -> Result<Self, Reply> {
        let mut out = Self::default();
        for word in text.split_ascii_whitespace() {
            let (key, value) = key_and_value(word);
            if key.eq_ignore_ascii_case("NOTIFY") {
                allow_dsn(takes_dsn, "NOTIFY")?;
                out.notify = parse_notify(required(value, "NOTIFY")?)?;
            } else if key.eq_ignore_ascii_case("ORCPT") {
                allow_dsn(takes_dsn, "ORCPT")?;
                let value = required(value, "ORCPT")?;
                let is_typed = value.split_once(';').is_some_and(|(kind, rest)| {
                    !kind.is_empty() && is_xtext(kind) && is_xtext(rest)
                });
                if !is_typed {
                    return Err(bad_value("Syntax error in ORCPT parameter value"));
                }
                if out.original_recipient.is_some() {
                    return Err(duplicate("ORCPT"));
                }
                out.original_recipient = Some(value.to_owned());
            } else {
                return Err(unrecognized(key));
            }
        }
        Ok(out)
    }
}

/// RFC 3461 4.1: NEVER stands alone.
fn parse_notify(value: &str) -> Result<Notify, Reply> {
    if value.eq_ignore_ascii_case("NEVER") {
        return Ok(Notify::Never);
    }
    let (mut success, mut failure, mut delay) = (false, false, false);
    for word in value.split(',') {
        if word.eq_ignore_ascii_case("SUCCESS") {
            success = true;
        } else if word.eq_ignore_ascii_case("FAILURE") {
            failure = true;
        } else if word.eq_ignore_ascii_case("DELAY") {
            delay = true;
        } else {
            // Two blanks, as Sendmail prints it.
            return Err(bad_value(&format!(
                "Bad argument \"{}\"  to NOTIFY",
                shorten(word)
            )));
        }
    }
    Ok(Notify::When {
        success,
        failure,
        delay,
    })
}

fn key_and_value(word: &str) -> (&str, Option<&str>) {
    match word.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (word, None),
    }
}

fn required<'a>(value: Option<&'a str>, key: &str) -> Result<&'a str, Reply> {
    match value {
        Some(value) if value.len() > PARAMETER_BYTES_MAX => {
            Err(bad_value(&format!("{key} value too long")))
        }
        Some(value) if !value.is_empty() => Ok(value),
        _ => Err(Reply::new(
            501,
            Status::new(5, 5, 2),
            format!("{key} requires a value"),
        )),
    }
}

fn allow_dsn(takes_dsn: bool, key: &str) -> Result<(), Reply> {
    if takes_dsn {
        return Ok(());
    }
    Err(Reply::new(
        504,
        Status::new(5, 7, 0),
        format!("Sorry, {key} not supported, we do not allow DSN"),
    ))
}

fn bad_value(text: &str) -> Reply {
    Reply::new(501, Status::new(5, 5, 4), text)
}

fn duplicate(key: &str) -> Reply {
    Reply::new(
        501,
        Status::new(5, 5, 0),
        format!("Duplicate {key} parameter"),
    )
}

fn unrecognized(key: &str) -> Reply {
    Reply::new(
        555,
        Status::new(5, 5, 4),
        format!("{} parameter unrecognized", shorten(key)),
    )
}

/// The digits at the start as a number: what follows them is ignored, no digits are 0, as strtol has it.
fn leading_number(text: &str) -> u64 {
    text.bytes()
        .take_while(u8::is_ascii_digit)
        .fold(0_u64, |n, digit| {
            n.saturating_mul(10).saturating_add(u64::from(digit - b'0'))
        })
}

/// RFC 3461 4: printable ASCII without `+` and `=`, or `+` and two hexadecimal digits in upper case.
fn is_xtext(text: &str) -> bool {
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let is_good = match byte {
            b'+' => {
                let is_hex = |b: Option<u8>| {
                    b.is_some_and(|b| b.is_ascii_digit() || (b'A'..=b'F').contains(&b))
                };
                is_hex(bytes.next()) && is_hex(bytes.next())
            }
            b'=' => false,
            _ => byte.is_ascii_graphic(),
        };
        if !is_good {
            return false;
        }
    }
    true
}

/// The text, or its beginning and end with `...` between if it is longer than [`SHOWN_BYTES_MAX`].
pub(super) fn shorten(text: &str) -> String {
    const HALF: usize = (SHOWN_BYTES_MAX - 3) / 2;
    if text.len() <= SHOWN_BYTES_MAX {
        return text.to_owned();
    }
    let head = text.get(..HALF).unwrap_or_default();
    let tail = text.get(text.len() - HALF..).unwrap_or_default();
    format!("{head}...{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(reply: Reply) -> String {
        reply.to_line()
    }

    #[test]
    fn verbs_compare_without_case_and_blanks_around_are_dropped() {
        assert_eq!(Command::parse("  nOOp x "), Command::Noop);
        assert_eq!(
            Command::parse("ehlo  h.test\t"),
            Command::Helo {
                is_extended: true,
                name: "h.test"
            }
        );
        assert_eq!(
            Command::parse("MAIL FROM:<a> X"),
            Command::Mail("FROM:<a> X")
        );
        assert_eq!(Command::parse(""), Command::Unknown);
        assert_eq!(Command::parse("STARTTLS"), Command::NotBuilt);
        assert_eq!(Command::parse("BDAT 3"), Command::Unknown);
    }

    #[test]
    fn paths_end_at_the_bracket_and_keep_what_was_written() {
        let path = parse_path("from: <\"a> b\"@h.test>  SIZE=1", "FROM").unwrap();
        assert_eq!(path.shown, "<\"a> b\"@h.test>");
        assert_eq!(path.inner, "\"a> b\"@h.test");
        assert_eq!(path.parameters, "SIZE=1");
        let bare = parse_path("TO:alice", "TO").unwrap();
        assert_eq!((bare.shown, bare.inner), ("alice", "alice"));
        assert!(!bare.has_brackets());
        for (argument, word) in [("", ""), ("TO", "TO"), ("TO:", "TO"), ("FROM:<a>", "FROM")] {
            assert_eq!(
                line(parse_path(argument, "TO").unwrap_err()),
                format!("501 5.5.2 Syntax error in parameters scanning \"{word}\"")
            );
        }
        assert_eq!(
            line(parse_path("TO:<alice", "TO").unwrap_err()),
            "553 5.0.0 <alice... Unbalanced '<'"
        );
        assert!(parse_path("TO:<a@b>x", "TO").is_err());
    }

    #[test]
    fn bad_addresses_are_refused_with_sendmails_texts() {
        for (text, expected) in [
            (
                "<s@sender..test>",
                "553 5.1.2 <s@sender..test>... Invalid host name",
            ),
            ("<s@>", "553 5.1.3 <s@>... Hostname required"),
            (
                "<s@@sender.test>",
                "553 5.1.3 <s@@sender.test>... Invalid route address",
            ),
            (
                "<a@b@c.test>",
                "553 5.1.3 <a@b@c.test>... Invalid route address",
            ),
            ("<>", "553 5.0.0 <>... User address required"),
            ("<\"a@b>", "553 5.0.0 <\"a@b>... Unbalanced '<'"),
        ] {
            let refusal = parse_path(&format!("TO:{text}"), "TO")
                .and_then(|path| parse_recipient(&path).map(|_| ()));
            assert_eq!(line(refusal.unwrap_err()), expected);
        }
        let long = format!("FROM:<{}@sender.test>", "a".repeat(1500));
        let refusal = parse_sender(&parse_path(&long, "FROM").unwrap()).unwrap_err();
        assert!(
            line(refusal.clone()).starts_with("553 5.1.1 <aaa"),
            "{refusal:?}"
        );
        assert!(line(refusal).ends_with("... Address too long"));
    }

    #[test]
    fn mail_parameters_are_checked() {
        let parse = |text: &str| MailParameters::parse(text, true);
        let good = parse("size=10 BODY=8BITMIME ret=hdrs ENVID=abc+20x").unwrap();
        assert_eq!(good.declared_bytes, Some(10));
        assert_eq!(good.body_type, BodyType::EightBitMime);
        assert_eq!(good.dsn_return, DsnReturn::Headers);
        assert_eq!(good.envelope_id.as_deref(), Some("abc+20x"));
        assert_eq!(parse("SIZE=abc").unwrap().declared_bytes, Some(0));
        assert_eq!(
            parse("SIZE=99999999999999999999999")
                .unwrap()
                .declared_bytes,
            Some(u64::MAX)
        );
        for (text, expected) in [
            ("SIZE", "501 5.5.2 SIZE requires a value"),
            ("SIZE=-1", "552 5.2.3 Message size invalid"),
            ("BODY", "501 5.5.2 BODY requires a value"),
            ("BODY=BINARYMIME", "501 5.5.4 Unknown BODY type BINARYMIME"),
            ("RET=FULL RET=HDRS", "501 5.5.0 Duplicate RET parameter"),
            (
                "ENVID=+zz",
                "501 5.5.4 Syntax error in ENVID parameter value",
            ),
            ("ENVID=a ENVID=b", "501 5.5.0 Duplicate ENVID parameter"),
            ("SMTPUTF8", "555 5.5.4 SMTPUTF8 parameter unrecognized"),
            ("AUTH=<>", "555 5.5.4 AUTH parameter unrecognized"),
            ("X=1", "555 5.5.4 X parameter unrecognized"),
        ] {
            assert_eq!(line(parse(text).unwrap_err()), expected);
        }
        assert_eq!(
            line(MailParameters::parse("RET=FULL", false).unwrap_err()),
            "504 5.7.0 Sorry, RET not supported, we do not allow DSN"
        );
    }

    #[test]
    fn rcpt_parameters_are_checked() {
        let parse = |text: &str| RcptParameters::parse(text, true);
        let good = parse("NOTIFY=SUCCESS,DELAY ORCPT=rfc822;a+2Bb@c.test").unwrap();
        assert!(good.notify.on_success() && good.notify.on_delay() && !good.notify.on_failure());
        assert_eq!(
            good.original_recipient.as_deref(),
            Some("rfc822;a+2Bb@c.test")
        );
        assert_eq!(
            parse("NOTIFY=NEVER NOTIFY=NEVER").unwrap().notify,
            Notify::Never
        );
        for (text, expected) in [
            ("NOTIFY", "501 5.5.2 NOTIFY requires a value"),
            (
                "NOTIFY=NEVER,SUCCESS",
                "501 5.5.4 Bad argument \"NEVER\"  to NOTIFY",
            ),
            ("ORCPT", "501 5.5.2 ORCPT requires a value"),
            ("ORCPT=x", "501 5.5.4 Syntax error in ORCPT parameter value"),
            ("JUNK", "555 5.5.4 JUNK parameter unrecognized"),
        ] {
            assert_eq!(line(parse(text).unwrap_err()), expected);
        }
    }

    #[test]
    fn long_texts_are_shortened_in_the_middle() {
        let shown = shorten(&"x".repeat(400));
        assert_eq!(shown.len(), SHOWN_BYTES_MAX);
        assert!(shown.contains("x...x"));
        assert_eq!(shorten("short"), "short");
    }
}
