//! The options whose values are words: delivery mode, error mode, privacy
//! flags, remote delivery.
//!
//! Pure values: nothing is read, nothing blocks.
//!
//! Source: sendmail(8), Installation and Operation Guide 5.6
//! (DeliveryMode, ErrorMode, PrivacyOptions).

use std::fmt;

/// When an accepted message is first tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeliveryMode {
    /// `b`: at once, without the submitter waiting for it.
    #[default]
    Background,
    /// `i`: at once, and the submitter waits for the first attempt.
    Interactive,
    /// `q`: at the next queue run.
    Queue,
    /// `d`: at the next queue run, and no name is looked up before that.
    Deferred,
}

impl DeliveryMode {
    /// Sendmail's word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Background => "background",
            Self::Interactive => "interactive",
            Self::Queue => "queue",
            Self::Deferred => "deferred",
        }
    }

    /// By its first letter, which is all that Sendmail looks at.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text.trim().chars().next()?.to_ascii_lowercase() {
            'b' => Some(Self::Background),
            'i' => Some(Self::Interactive),
            'q' => Some(Self::Queue),
            'd' => Some(Self::Deferred),
            _ => None,
        }
    }
}

/// How a submitter is told about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ErrorMode {
    /// `p`: print the error (the default).
    #[default]
    Print,
    /// `q`: say nothing, only the exit code tells.
    Quiet,
    /// `m`: mail the error back.
    MailBack,
    /// `w`: write to the sender's terminal; as Sendmail does when the sender
    /// has none, mail it back.
    Write,
    /// `e`: mail the error back and exit with status 0 always.
    MailBackExitZero,
}

impl ErrorMode {
    /// Sendmail's letter for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Print => "print",
            Self::Quiet => "quiet",
            Self::MailBack => "mail",
            Self::Write => "write",
            Self::MailBackExitZero => "exitzero",
        }
    }

    /// By its first letter, which is all that Sendmail looks at.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text.trim().chars().next()?.to_ascii_lowercase() {
            'p' => Some(Self::Print),
            'q' => Some(Self::Quiet),
            'm' => Some(Self::MailBack),
            'w' => Some(Self::Write),
            'e' => Some(Self::MailBackExitZero),
            _ => None,
        }
    }
}

/// Which hosts mail may be carried to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Remote {
    /// Any host: by smart host or MX.
    #[default]
    Allowed,
    /// Loopback addresses only (the rule of a sandbox): other mail stays
    /// queued and says why.
    LoopbackOnly,
}

/// What is asked of the file system under a spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SpoolFileSystem {
    /// One that keeps what was synced: others are refused, one in memory is
    /// warned about.
    #[default]
    Durable,
    /// The same, but one in memory is meant.
    Memory,
    /// Any: what would be refused is warned about.
    Any,
}

impl SpoolFileSystem {
    /// The option's word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Durable => "durable",
            Self::Memory => "memory",
            Self::Any => "any",
        }
    }

    /// By its word.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Durable, Self::Memory, Self::Any]
            .into_iter()
            .find(|one| one.name() == text.trim())
    }
}

/// One flag of `PrivacyOptions`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Privacy {
    /// A client has to greet before MAIL.
    NeedMailHelo = 1,
    /// A client has to greet before EXPN.
    NeedExpnHelo = 1 << 1,
    /// A client has to greet before VRFY.
    NeedVrfyHelo = 1 << 2,
    /// EXPN is refused.
    NoExpn = 1 << 3,
    /// VRFY is refused.
    NoVrfy = 1 << 4,
    /// ETRN is refused.
    NoEtrn = 1 << 5,
    /// VERB is refused.
    NoVerb = 1 << 6,
    /// `mailq` is for members of the queue directory's group only.
    RestrictMailq = 1 << 7,
    /// Queue runs are for the queue directory's owner only.
    RestrictQrun = 1 << 8,
    /// `-bv` and `-v` for ordinary users do not show expansions.
    RestrictExpand = 1 << 9,
    /// DSNs of success are not sent.
    NoReceipts = 1 << 10,
    /// DSNs return headers only.
    NoBodyReturn = 1 << 11,
    /// Suspicious submissions get an `X-Authentication-Warning` header.
    AuthWarnings = 1 << 12,
    /// DSNs do not name the address that an alias led to.
    NoActualRecipient = 1 << 13,
}

impl Privacy {
    const ALL: [(Self, &'static str); 14] = [
        (Self::NeedMailHelo, "needmailhelo"),
        (Self::NeedExpnHelo, "needexpnhelo"),
        (Self::NeedVrfyHelo, "needvrfyhelo"),
        (Self::NoExpn, "noexpn"),
        (Self::NoVrfy, "novrfy"),
        (Self::NoEtrn, "noetrn"),
        (Self::NoVerb, "noverb"),
        (Self::RestrictMailq, "restrictmailq"),
        (Self::RestrictQrun, "restrictqrun"),
        (Self::RestrictExpand, "restrictexpand"),
        (Self::NoReceipts, "noreceipts"),
        (Self::NoBodyReturn, "nobodyreturn"),
        (Self::AuthWarnings, "authwarnings"),
        (Self::NoActualRecipient, "noactualrecipient"),
    ];

    /// What `goaway` stands for: all but the flags about receipts, restricted
    /// commands, ETRN and the body and recipients in DSNs.
    const GOAWAY: [Self; 7] = [
        Self::NeedMailHelo,
        Self::NeedExpnHelo,
        Self::NeedVrfyHelo,
        Self::NoExpn,
        Self::NoVrfy,
        Self::NoVerb,
        Self::AuthWarnings,
    ];
}

/// The set of `PrivacyOptions` in force; empty means `public`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PrivacyOptions(u16);

impl PrivacyOptions {
    /// Whether `flag` is set.
    #[must_use]
    pub const fn has(self, flag: Privacy) -> bool {
        self.0 & flag as u16 != 0
    }

    /// Every flag of either set. Options on the command line add to those in
    /// the file, as in Sendmail: they may tighten, never loosen.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Reads words separated by commas or blanks; case does not matter.
    ///
    /// # Errors
    /// The first word that is not a privacy flag.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut set = Self::default();
        for word in text.split([',', ' ', '\t']).filter(|word| !word.is_empty()) {
            let folded = word.to_ascii_lowercase();
            match folded.as_str() {
                "public" => {}
                "goaway" => {
                    for flag in Privacy::GOAWAY {
                        set.0 |= flag as u16;
                    }
                }
                _ => match Privacy::ALL.iter().find(|(_, name)| *name == folded) {
                    Some((flag, _)) => set.0 |= *flag as u16,
                    None => return Err(word.to_owned()),
                },
            }
        }
        Ok(set)
    }

    /// Every word that [`PrivacyOptions::parse`] knows.
    pub fn words() -> impl Iterator<Item = &'static str> {
        ["public", "goaway"]
            .into_iter()
            .chain(Privacy::ALL.iter().map(|(_, name)| *name))
    }
}

/// The set as words separated by commas; `public` when it is empty.
impl fmt::Display for PrivacyOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("public");
        }
        let mut separator = "";
        for (flag, name) in Privacy::ALL {
            if self.has(flag) {
                write!(f, "{separator}{name}")?;
                separator = ",";
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_go_by_their_first_letter() {
        assert_eq!(DeliveryMode::parse("b"), Some(DeliveryMode::Background));
        assert_eq!(DeliveryMode::parse("Queue"), Some(DeliveryMode::Queue));
        assert_eq!(DeliveryMode::parse("x"), None);
        assert_eq!(DeliveryMode::parse(""), None);
        assert_eq!(ErrorMode::parse("m"), Some(ErrorMode::MailBack));
        assert_eq!(ErrorMode::parse("z"), None);
        for mode in [
            DeliveryMode::Background,
            DeliveryMode::Interactive,
            DeliveryMode::Queue,
            DeliveryMode::Deferred,
        ] {
            assert_eq!(DeliveryMode::parse(mode.name()), Some(mode));
        }
        for mode in [
            ErrorMode::Print,
            ErrorMode::Quiet,
            ErrorMode::MailBack,
            ErrorMode::Write,
            ErrorMode::MailBackExitZero,
        ] {
            assert_eq!(ErrorMode::parse(mode.name()), Some(mode));
        }
    }

    #[test]
    fn privacy_words_read_back_as_they_are_printed() {
        let set = PrivacyOptions::parse("authwarnings, NoExpn restrictqrun").unwrap();
        assert!(set.has(Privacy::AuthWarnings));
        assert!(set.has(Privacy::NoExpn));
        assert!(!set.has(Privacy::NoVrfy));
        assert_eq!(PrivacyOptions::parse(&set.to_string()), Ok(set));
        assert_eq!(PrivacyOptions::default().to_string(), "public");
        for word in PrivacyOptions::words() {
            assert!(PrivacyOptions::parse(word).is_ok(), "{word}");
        }
    }

    #[test]
    fn goaway_leaves_etrn_and_the_queue_open() {
        let set = PrivacyOptions::parse("goaway").unwrap();
        assert!(set.has(Privacy::NoVrfy) && set.has(Privacy::AuthWarnings));
        assert!(!set.has(Privacy::NoEtrn) && !set.has(Privacy::RestrictMailq));
    }

    #[test]
    fn an_unknown_privacy_word_is_named() {
        assert_eq!(
            PrivacyOptions::parse("noexpn,nosuch"),
            Err("nosuch".to_owned())
        );
    }
}
