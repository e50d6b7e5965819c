//! `dont_blame_sendmail`: which unsafe files the operator lets pass, by Sendmail's names.
//!
//! Each name lifts one refusal of files that others could change or put in place. A name whose refusal this program
//! does not make, or does not lift, is an error, as is one that nobody knows: who writes it relies on it.
//! Touches nothing, never blocks. Source: Installation and Operation Guide, DontBlameSendmail.

use std::fmt;

use diligence_maps::Safety;

/// One refusal that is lifted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Blameless {
    /// `.forward`s in directories that their group may write.
    ForwardFileInGroupWritableDirPath = 1,
    /// `.forward`s in directories that anybody may write.
    ForwardFileInUnsafeDirPath = 1 << 1,
    /// Alias files and maps that their group may write.
    GroupWritableAliasFile = 1 << 2,
    /// Directories that their group may write are safe for every file.
    GroupWritableDirPathSafe = 1 << 3,
    /// `.forward`s that their group may write.
    GroupWritableForwardFile = 1 << 4,
    /// Lists that their group may write.
    GroupWritableIncludeFile = 1 << 5,
    /// Lists in directories that their group may write.
    IncludeFileInGroupWritableDirPath = 1 << 6,
    /// Lists in directories that anybody may write.
    IncludeFileInUnsafeDirPath = 1 << 7,
    /// Links to `.forward`s in directories that others may write.
    LinkedForwardFileInWritableDir = 1 << 8,
    /// Links to lists in directories that others may write.
    LinkedIncludeFileInWritableDir = 1 << 9,
    /// Links to maps in directories that others may write.
    LinkedMapInWritableDir = 1 << 10,
    /// Maps in directories that others may write.
    MapInUnsafeDirPath = 1 << 11,
    /// Directories that anybody may write are safe if they are sticky.
    TrustStickyBit = 1 << 12,
    /// Alias files and maps that anybody may write.
    WorldWritableAliasFile = 1 << 13,
    /// `.forward`s that anybody may write.
    WorldWritableForwardFile = 1 << 14,
    /// Lists that anybody may write.
    WorldWritableIncludeFile = 1 << 15,
    /// Class files in directories that others may write.
    ClassFileInUnsafeDirPath = 1 << 16,
    /// No word in the log on `.forward`s that are passed over because of a directory.
    DontWarnForwardFileInUnsafeDirPath = 1 << 17,
    /// Mail is appended to files that have another name as well.
    FileDeliveryToHardLink = 1 << 18,
    /// Mail is appended to files through symbolic links.
    FileDeliveryToSymLink = 1 << 19,
    /// `.forward`s in directories that anybody may write may name programs and files.
    ForwardFileInUnsafeDirPathSafe = 1 << 20,
    /// `.forward`s that their group may write may name programs and files.
    GroupWritableForwardFileSafe = 1 << 21,
    /// Lists that their group may write may name programs and files.
    GroupWritableIncludeFileSafe = 1 << 22,
    /// Lists in directories that anybody may write may name programs and files.
    IncludeFileInUnsafeDirPathSafe = 1 << 23,
    /// Links to class files in directories that others may write.
    LinkedClassFileInWritableDir = 1 << 24,
}

impl Blameless {
    const ALL: [(Self, &'static str); 25] = [
        (Self::ClassFileInUnsafeDirPath, "ClassFileInUnsafeDirPath"),
        (
            Self::DontWarnForwardFileInUnsafeDirPath,
            "DontWarnForwardFileInUnsafeDirPath",
        ),
        (Self::FileDeliveryToHardLink, "FileDeliveryToHardLink"),
        (Self::FileDeliveryToSymLink, "FileDeliveryToSymLink"),
        (
            Self::ForwardFileInGroupWritableDirPath,
            "ForwardFileInGroupWritableDirPath",
        ),
        (
            Self::ForwardFileInUnsafeDirPath,
            "ForwardFileInUnsafeDirPath",
        ),
        (
            Self::ForwardFileInUnsafeDirPathSafe,
            "ForwardFileInUnsafeDirPathSafe",
        ),
        (Self::GroupWritableAliasFile, "GroupWritableAliasFile"),
        (Self::GroupWritableDirPathSafe, "GroupWritableDirPathSafe"),
        (Self::GroupWritableForwardFile, "GroupWritableForwardFile"),
        (
            Self::GroupWritableForwardFileSafe,
            "GroupWritableForwardFileSafe",
        ),
        (Self::GroupWritableIncludeFile, "GroupWritableIncludeFile"),
        (
            Self::GroupWritableIncludeFileSafe,
            "GroupWritableIncludeFileSafe",
        ),
        (
            Self::IncludeFileInGroupWritableDirPath,
            "IncludeFileInGroupWritableDirPath",
        ),
        (
            Self::IncludeFileInUnsafeDirPath,
            "IncludeFileInUnsafeDirPath",
        ),
        (
            Self::IncludeFileInUnsafeDirPathSafe,
            "IncludeFileInUnsafeDirPathSafe",
        ),
        (
            Self::LinkedClassFileInWritableDir,
            "LinkedClassFileInWritableDir",
        ),
        (
            Self::LinkedForwardFileInWritableDir,
            "LinkedForwardFileInWritableDir",
        ),
        (
            Self::LinkedIncludeFileInWritableDir,
            "LinkedIncludeFileInWritableDir",
        ),
        (Self::LinkedMapInWritableDir, "LinkedMapInWritableDir"),
        (Self::MapInUnsafeDirPath, "MapInUnsafeDirPath"),
        (Self::TrustStickyBit, "TrustStickyBit"),
        (Self::WorldWritableAliasFile, "WorldWritableAliasFile"),
        (Self::WorldWritableForwardFile, "WorldWritableForwardFile"),
        (Self::WorldWritableIncludeFile, "WorldWritableIncludeFile"),
    ];
}

/// Sendmail's names for what this program does not refuse, or refuses whatever is said.
const NOT_HONOURED: [&str; 16] = [
    "AssumeSafeChown",
    "ErrorHeaderInUnsafeDirPath",
    "GroupReadableKeyFile",
    "GroupReadableSASLDBFile",
    "GroupWritableSASLDBFile",
    "HelpFileInUnsafeDirPath",
    "InsufficientEntropy",
    "LinkedAliasFileInWritableDir",
    "LinkedServiceSwitchFileInWritableDir",
    "NonRootSafeAddr",
    "RunProgramInUnsafeDirPath",
    "RunWritableProgram",
    "WriteMapToHardLink",
    "WriteMapToSymLink",
    "WriteStatsToHardLink",
    "WriteStatsToSymLink",
];

/// What is let pass; nothing, by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DontBlame(u32);

impl DontBlame {
    /// Whether a refusal is lifted.
    #[must_use]
    pub const fn has(self, name: Blameless) -> bool {
        self.0 & name as u32 != 0
    }

    /// The same, and one more refusal lifted.
    #[must_use]
    pub const fn with(self, name: Blameless) -> Self {
        Self(self.0 | name as u32)
    }

    /// Adds one name, in any case; `safe` adds nothing.
    ///
    /// # Errors
    /// In words, if the name is unknown or not honoured.
    pub fn add(&mut self, word: &str) -> Result<(), String> {
        let is_it = |name: &str| name.eq_ignore_ascii_case(word);
        if is_it("safe") {
            return Ok(());
        }
        if let Some((name, _)) = Blameless::ALL.iter().find(|(_, name)| is_it(name)) {
            *self = self.with(*name);
            return Ok(());
        }
        if let Some(name) = NOT_HONOURED.into_iter().find(|name| is_it(name)) {
            return Err(format!("`{name}' of DontBlameSendmail is not honoured"));
        }
        let known = Blameless::ALL.iter().map(|(_, name)| *name);
        let hint = super::file::nearest(word, known)
            .map_or_else(String::new, |near| format!("; did you mean `{near}'?"));
        Err(format!("`{word}' is not a name of DontBlameSendmail{hint}"))
    }

    /// The names in force; `safe` alone if there are none.
    #[must_use]
    pub fn names(self) -> Vec<String> {
        let mut names: Vec<String> = Blameless::ALL
            .iter()
            .filter(|(name, _)| self.has(*name))
            .map(|(_, text)| (*text).to_owned())
            .collect();
        if names.is_empty() {
            names.push("safe".to_owned());
        }
        names
    }

    /// Which map files are refused.
    #[must_use]
    pub const fn map_safety(self) -> Safety {
        Safety {
            group_writable_dir_path_safe: self.has(Blameless::GroupWritableDirPathSafe),
            trust_sticky_bit: self.has(Blameless::TrustStickyBit),
            map_in_unsafe_dir_path: self.has(Blameless::MapInUnsafeDirPath),
            group_writable_alias_file: self.has(Blameless::GroupWritableAliasFile),
            world_writable_alias_file: self.has(Blameless::WorldWritableAliasFile),
            linked_map_in_writable_dir: self.has(Blameless::LinkedMapInWritableDir),
        }
    }
}

/// The names, separated by commas.
impl fmt::Display for DontBlame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_in_any_case_and_read_back_as_they_are_printed() {
        let mut set = DontBlame::default();
        assert_eq!(set.to_string(), "safe");
        for (name, text) in Blameless::ALL {
            assert!(!set.has(name));
            set.add(&text.to_uppercase()).unwrap();
            assert!(set.has(name));
        }
        let mut again = DontBlame::default();
        for name in set.names() {
            again.add(&name).unwrap();
        }
        assert_eq!(again, set);
        assert_eq!(set.map_safety(), Safety::UNCHECKED);
        assert_eq!(DontBlame::default().map_safety(), Safety::default());
    }

    #[test]
    fn what_is_not_honoured_and_what_nobody_knows_is_named() {
        let mut set = DontBlame::default();
        assert!(
            set.add("writemaptosymlink")
                .is_err_and(|text| text.contains("`WriteMapToSymLink'"))
        );
        assert!(
            set.add("TrustStickBit")
                .is_err_and(|text| text.contains("did you mean `TrustStickyBit'"))
        );
        assert_eq!(set, DontBlame::default());
    }
}
