//! Copying one map into another of any class that can be written.
//!
//! The new map takes the old one's place whole and on disk, or not at all. Keys and values of files are copied as they
//! are stored, a trailing NUL included. Blocks on disk, and on the class that is read. Source: makemap(8) --convert.

use crate::map_place::{LOCK_WAIT, open_text, warn_of_directories};
use crate::setting::{EX_CANTCREAT, EX_CONFIG, EX_DATAERR, Refusal};
use diligence::config::Config;
use diligence::programs::wiring::map_opener;
use diligence_maps::{
    Access, Definition, DuplicatePolicy, HandleOptions, Inserted, Map, MapBuilder, MapClass,
    MapError, MapKind, MapSet, PairVisitor, PublishOptions, Safety, SpecError, check_place,
    open_direct, publish_text,
};
use std::ops::ControlFlow;
use std::path::Path;

/// Copies the map `from` into the map `to`, both `class:switches name`; the keys that were there already, as far as the
/// policy leaves them out.
///
/// # Errors
/// [`Refusal`], naming the map; the old one is then as it was.
///
/// # Durability
/// When this returns, the new map and its name are on disk.
pub fn convert_map(
    config: &Config,
    from: &str,
    to: &str,
    policy: DuplicatePolicy,
    with_nul: bool,
    options: &PublishOptions,
) -> Result<Vec<String>, Refusal> {
    let refused = |text: &str, error: SpecError| Refusal {
        text: format!("{text}: {error}"),
        exit: EX_CONFIG,
    };
    let source = Definition::parse_alias(from).map_err(|error| refused(from, error))?;
    let target = Definition::parse_alias(to).map_err(|error| refused(to, error))?;
    let target = target.into_file().map_err(|error| refused(to, error))?;
    let dest = target.file();
    let cannot_create = |detail: &str| Refusal {
        text: format!("{to}: {detail}"),
        exit: EX_CANTCREAT,
    };
    let (safety, sandbox) = (
        config.route.dont_blame.map_safety(),
        config.sandbox.as_deref(),
    );
    if source.class.is_of_a_file() {
        warn_of_directories(&source.label(), safety, sandbox);
    }
    warn_of_directories(&dest, safety, sandbox);
    check_place(&dest, options).map_err(|error| cannot_create(&error.detail()))?;
    // Text keeps what any kind keeps; its policies are those of the builder, which is not published then.
    let kind = match target.kind {
        MapKind::Text => MapKind::Hash,
        kind => kind,
    };
    let mut builder =
        MapBuilder::new(kind, policy).map_err(|error| cannot_create(error.detail()))?;
    let mut text = Vec::new();
    let mut duplicates = Vec::new();
    let mut trouble: Option<Refusal> = None;
    let (mut key_buffer, mut value_buffer) = (Vec::new(), Vec::new());
    let mut take = |key: &[u8], value: &[u8]| {
        fill(&mut key_buffer, key, with_nul);
        fill(&mut value_buffer, value, with_nul);
        match builder.insert(&key_buffer, &value_buffer) {
            Ok(Inserted::KeptFirst) => {
                let shown = key.strip_suffix(b"\0").unwrap_or(key);
                duplicates.push(String::from_utf8_lossy(shown).into_owned());
            }
            Ok(Inserted::Added | Inserted::Replaced) => {}
            Err(error) => {
                trouble = Some(cannot_create(error.detail()));
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    };
    let refuses_links = options.refuses_links;
    read_all(config, &source, refuses_links, &mut take).map_err(|error| match error {
        Unread::Spec(error) => refused(from, error),
        Unread::Map(error) => Refusal {
            text: format!("{from}: {}", open_text(&error)),
            exit: EX_CANTCREAT,
        },
    })?;
    if let Some(refusal) = trouble {
        return Err(refusal);
    }
    if target.kind != MapKind::Text {
        builder
            .publish(&dest, options)
            .map_err(|error| cannot_create(&error.detail()))?;
        return Ok(duplicates);
    }
    let separator = target.columns.delimiter.unwrap_or(b'\t');
    let mut bad = None;
    builder.each(&mut |key, value| {
        let key = key.strip_suffix(b"\0").unwrap_or(key);
        let value = value.strip_suffix(b"\0").unwrap_or(value);
        let is_bad = |byte: &u8| matches!(byte, b'\n' | 0);
        if key.is_empty()
            || key.contains(&separator)
            || key.starts_with(b"#")
            || key.iter().chain(value).any(is_bad)
        {
            bad = Some(String::from_utf8_lossy(key).into_owned());
            return ControlFlow::Break(());
        }
        text.extend_from_slice(key);
        text.push(separator);
        text.extend_from_slice(value);
        text.push(b'\n');
        ControlFlow::Continue(())
    });
    if let Some(key) = bad {
        return Err(Refusal {
            text: format!("{to}: the entry of key {key} cannot be written as a line of text"),
            exit: EX_DATAERR,
        });
    }
    publish_text(&dest, &text, options).map_err(|error| cannot_create(&error.detail()))?;
    Ok(duplicates)
}

fn fill(buffer: &mut Vec<u8>, bytes: &[u8], with_nul: bool) {
    buffer.clear();
    buffer.extend_from_slice(bytes);
    if with_nul && bytes.last() != Some(&0) {
        buffer.push(0);
    }
}

/// Why a source was not read.
enum Unread {
    Spec(SpecError),
    Map(MapError),
}

fn read_all(
    config: &Config,
    source: &Definition,
    refuses_links: bool,
    take: &mut PairVisitor<'_>,
) -> Result<(), Unread> {
    if let MapClass::File(kind) = source.class
        && kind != MapKind::Text
    {
        let access = Access {
            refuses_links,
            ..Access::from(LOCK_WAIT)
        };
        let map = open_direct(&kind.file_of(Path::new(&source.rest)), access);
        return map.and_then(|map| map.each(take)).map_err(Unread::Map);
    }
    let options = HandleOptions {
        lock_wait: LOCK_WAIT,
        ..HandleOptions::default()
    };
    let mut set = MapSet::new(map_opener(config, Safety::UNCHECKED), options);
    for (name, text) in &config.route.maps {
        set.define(name.clone(), Definition::parse(text).map_err(Unread::Spec)?);
    }
    let map = set.open(source).map_err(Unread::Spec)?;
    map.each(take).map_err(Unread::Map)
}
