//! Which messages of the queue are meant: the `-qI`, `-qR`, `-qS` and `-qQ` of sendmail(8). Pure values.
//!
//! A message is selected if for each kind of limit that is given at least one limit of that kind holds; a limit on
//! recipients holds if it holds for any one of them, also when negated, as in Sendmail. Limits are substrings,
//! compared without case. At most [`LIMITS_MAX`] limits of [`PATTERN_BYTES_MAX`] bytes.
//!
//! Source: sendmail(8), `-q[!]{G,I,Q,R,S}substr`.

use crate::control::listing::Listed;

/// The most limits that one selection may have.
pub const LIMITS_MAX: usize = 64;
/// The longest substring of a limit, in bytes.
pub const PATTERN_BYTES_MAX: usize = 512;

/// What a limit looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// `I`: the queue id.
    Id,
    /// `R`: a recipient that is still to be delivered.
    Recipient,
    /// `S`: the sender.
    Sender,
    /// `Q`: the quarantine reason.
    Quarantine,
}

impl Field {
    const ALL: [Self; 4] = [Self::Id, Self::Recipient, Self::Sender, Self::Quarantine];

    /// Sendmail's letter for it.
    #[must_use]
    pub const fn letter(self) -> char {
        match self {
            Self::Id => 'I',
            Self::Recipient => 'R',
            Self::Sender => 'S',
            Self::Quarantine => 'Q',
        }
    }

    fn of_letter(letter: char) -> Option<Self> {
        Self::ALL.into_iter().find(|field| field.letter() == letter)
    }
}

/// One `-q[!]Xsubstr`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    field: Field,
    is_negated: bool,
    /// In lower case.
    pattern: String,
}

impl Limit {
    /// A limit; `None` if the pattern is longer than [`PATTERN_BYTES_MAX`] or holds a control character.
    #[must_use]
    pub fn new(field: Field, is_negated: bool, pattern: &str) -> Option<Self> {
        let is_good =
            pattern.len() <= PATTERN_BYTES_MAX && !pattern.contains(|c: char| c.is_control());
        is_good.then(|| Self {
            field,
            is_negated,
            pattern: pattern.to_ascii_lowercase(),
        })
    }

    fn holds_for(&self, text: &str) -> bool {
        contains_folded(text, &self.pattern) != self.is_negated
    }
}

/// Whether ordinary or quarantined messages are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// Those that are not quarantined.
    #[default]
    Normal,
    /// `-qQ`: the quarantined ones alone.
    Quarantined,
    /// `-qL`: what could not be read. The journal keeps no such messages apart, so there are none.
    Lost,
}

/// The messages that a listing, a queue run or an order of the operator is about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selection {
    /// Ordinary, quarantined, or lost ones.
    pub kind: Kind,
    limits: Vec<Limit>,
}

impl Selection {
    /// Every message of this kind.
    #[must_use]
    pub const fn all(kind: Kind) -> Self {
        Self {
            kind,
            limits: Vec::new(),
        }
    }

    /// Adds a limit; false if there are [`LIMITS_MAX`] already.
    #[must_use]
    pub fn push(&mut self, limit: Limit) -> bool {
        let has_room = self.limits.len() < LIMITS_MAX;
        if has_room {
            self.limits.push(limit);
        }
        has_room
    }

    /// Whether every message of its kind is meant.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.limits.is_empty()
    }

    /// Whether this message is meant.
    #[must_use]
    pub fn holds_for(&self, message: &Listed) -> bool {
        let is_kind = match self.kind {
            Kind::Normal => message.quarantine.is_none(),
            Kind::Quarantined => message.quarantine.is_some(),
            Kind::Lost => false,
        };
        is_kind
            && self.holds_in(Field::Id, |limit| limit.holds_for(&message.id.to_string()))
            && self.holds_in(Field::Sender, |limit| limit.holds_for(&message.sender))
            && self.holds_in(Field::Quarantine, |limit| {
                limit.holds_for(message.quarantine.as_deref().unwrap_or_default())
            })
            && self.holds_in(Field::Recipient, |limit| {
                message.recipients.iter().any(|r| limit.holds_for(&r.shown))
            })
    }

    /// Whether no limit of this field is given or at least one holds.
    fn holds_in(&self, field: Field, holds: impl Fn(&Limit) -> bool) -> bool {
        let mut has_any = false;
        for limit in self.limits.iter().filter(|limit| limit.field == field) {
            if holds(limit) {
                return true;
            }
            has_any = true;
        }
        !has_any
    }

    /// The words of a request, read back by [`Selection::from_words`]: `N`, `Q` or `L`, then one for each limit.
    #[must_use]
    pub fn to_words(&self) -> Vec<String> {
        let kind = match self.kind {
            Kind::Normal => "N",
            Kind::Quarantined => "Q",
            Kind::Lost => "L",
        };
        let limits = self.limits.iter().map(|limit| {
            let mark = if limit.is_negated { "!" } else { "" };
            format!("{mark}{}{}", limit.field.letter(), limit.pattern)
        });
        std::iter::once(kind.to_owned()).chain(limits).collect()
    }

    /// Reads the words of a request. `None` if one of them is wrong or they are too many.
    #[must_use]
    pub fn from_words<'w>(words: impl IntoIterator<Item = &'w str>) -> Option<Self> {
        let mut words = words.into_iter();
        let kind = match words.next()? {
            "N" => Kind::Normal,
            "Q" => Kind::Quarantined,
            "L" => Kind::Lost,
            _ => return None,
        };
        let mut selection = Self::all(kind);
        for word in words {
            let (is_negated, word) = match word.strip_prefix('!') {
                Some(rest) => (true, rest),
                None => (false, word),
            };
            let mut chars = word.chars();
            let field = Field::of_letter(chars.next()?)?;
            let limit = Limit::new(field, is_negated, chars.as_str())?;
            if !selection.push(limit) {
                return None;
            }
        }
        Some(selection)
    }
}

/// Whether `text` contains `pattern`, which is in lower case, without regard to ASCII case.
fn contains_folded(text: &str, pattern: &str) -> bool {
    pattern.is_empty()
        || text
            .as_bytes()
            .windows(pattern.len())
            .any(|window| window.eq_ignore_ascii_case(pattern.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::listing::tests::listed;

    fn selection(words: &[&str]) -> Selection {
        Selection::from_words(words.iter().copied()).unwrap()
    }

    #[test]
    fn limits_of_one_kind_are_alternatives_and_kinds_add_up() {
        let message = listed(
            "<alice@gold.example.test>",
            &["<b@dead.test>", "<c@TEMPFAIL.test>"],
        );
        for (words, expected) in [
            (&["N"][..], true),
            (&["N", "Rtempfail"], true),
            (&["N", "Rnosuch"], false),
            (&["N", "Rnosuch", "Rdead"], true),
            (&["N", "Rdead", "Ssender"], false),
            (&["N", "Rdead", "SALICE"], true),
            // Negated, a limit still holds if it holds for any one recipient.
            (&["N", "!Rdead"], true),
            (&["N", "!Rtest"], false),
            (&["Q"], false),
            (&["L"], false),
        ] {
            assert_eq!(selection(words).holds_for(&message), expected, "{words:?}");
        }
    }

    #[test]
    fn quarantined_messages_are_a_kind_of_their_own() {
        let mut message = listed("a", &["b"]);
        message.quarantine = Some("spam suspect".into());
        assert!(!selection(&["N"]).holds_for(&message));
        assert!(selection(&["Q"]).holds_for(&message));
        assert!(selection(&["Q", "Qspam"]).holds_for(&message));
        assert!(!selection(&["Q", "Qother"]).holds_for(&message));
    }

    #[test]
    fn words_read_back_and_bad_ones_are_refused() {
        let words = ["Q", "I6AMHG", "!Rdead", "Salice"];
        let read = selection(&words);
        assert_eq!(
            selection(
                &read
                    .to_words()
                    .iter()
                    .map(String::as_str)
                    .collect::<Vec<_>>()
            ),
            read
        );
        for bad in [
            &[][..],
            &["X"],
            &["N", "Xfoo"],
            &["N", ""],
            &["N", "!"],
            &["N", "Ra\nb"],
        ] {
            assert_eq!(Selection::from_words(bad.iter().copied()), None, "{bad:?}");
        }
        let many = vec!["Ra"; LIMITS_MAX + 1];
        assert_eq!(
            Selection::from_words(std::iter::once("N").chain(many)),
            None
        );
    }
}
