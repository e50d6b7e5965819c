//! Messages of a spool as files that other programs read: content as RFC 5322, the envelope as JSON.
//!
//! Every file is new (an existing one is never touched), readable by its owner alone, and synced with its folder before
//! anybody is told that it is there. Blocks: disk. Memory: one chunk of content.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use diligence::envelope::{BodyType, DsnReturn, Notify, Recipient, RecipientState};
use diligence::spool::{ContentReader, StoredMessage};

use crate::json::{Json, write_json};

/// What could not be written, and why.
#[derive(Debug)]
pub struct ExportError {
    /// The file.
    pub path: PathBuf,
    /// The system's error; of kind `InvalidData` when the content is damaged.
    pub source: io::Error,
}

/// Writes `ID.eml` and `ID.json` into `folder`. If one can't be finished, neither is left.
///
/// # Errors
/// [`ExportError`]; of kind `AlreadyExists` if one of the files is there.
/// # Durability
/// Both files are synced; their names are with the folder's next sync ([`sync_folder`]).
pub fn export(
    folder: &Path,
    message: &StoredMessage,
    content: &mut ContentReader,
) -> Result<(), ExportError> {
    let content_path = folder.join(format!("{}.eml", message.id));
    let envelope_path = folder.join(format!("{}.json", message.id));
    let written = write_new(&content_path, &mut |file| {
        loop {
            let chunk = content.next_chunk()?;
            if chunk.is_empty() {
                return Ok(());
            }
            file.write_all(&chunk)?;
        }
    });
    written.map_err(|source| ExportError {
        path: content_path.clone(),
        source,
    })?;
    let text = envelope_json(message);
    write_new(&envelope_path, &mut |file| file.write_all(text.as_bytes())).map_err(|source| {
        // An envelope that is missing would make the content look like all there was.
        let _ = std::fs::remove_file(&content_path);
        ExportError {
            path: envelope_path.clone(),
            source,
        }
    })
}

/// Makes the names of exported files durable.
///
/// # Errors
/// [`ExportError`].
pub fn sync_folder(folder: &Path) -> Result<(), ExportError> {
    File::open(folder)
        .and_then(|handle| handle.sync_all())
        .map_err(|source| ExportError {
            path: folder.to_owned(),
            source,
        })
}

fn write_new(path: &Path, fill: &mut dyn FnMut(&mut File) -> io::Result<()>) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    let filled = fill(&mut file).and_then(|()| file.sync_all());
    if filled.is_err() {
        // It is ours: nobody else can have made it.
        let _ = std::fs::remove_file(path);
    }
    filled
}

/// The envelope and the state of the recipients as one JSON object.
#[must_use]
pub fn envelope_json(message: &StoredMessage) -> String {
    let envelope = &message.envelope;
    let arrival = &envelope.arrival;
    let optional = |value: Option<String>| value.map_or(Json::Null, Json::Text);
    let recipients = message
        .recipients
        .iter()
        .map(|(recipient, state)| recipient_json(recipient, state))
        .collect();
    let mut fields = vec![
        ("id", Json::Text(message.id.to_string())),
        ("from", Json::Text(envelope.sender_shown())),
        ("content_bytes", Json::Number(message.content_bytes)),
        ("arrival_unix_ms", Json::Number(arrival.unix_ms)),
        ("due_unix_ms", Json::Number(message.due_unix_ms)),
        ("held", Json::Flag(message.is_held)),
        ("quarantine", optional(envelope.quarantine.clone())),
        ("warned", Json::Flag(message.has_warned)),
        (
            "body",
            match envelope.body_type {
                BodyType::Unspecified => Json::Null,
                BodyType::SevenBit => Json::Text("7BIT".to_owned()),
                BodyType::EightBitMime => Json::Text("8BITMIME".to_owned()),
            },
        ),
        (
            "ret",
            match envelope.dsn_return {
                DsnReturn::Unspecified => Json::Null,
                DsnReturn::Full => Json::Text("FULL".to_owned()),
                DsnReturn::Headers => Json::Text("HDRS".to_owned()),
            },
        ),
        ("envid", optional(envelope.envelope_id.clone())),
        ("protocol", Json::Text(arrival.protocol.clone())),
        ("helo", Json::Text(arrival.helo.clone())),
        ("client_name", optional(arrival.client_name.clone())),
        (
            "client_address",
            optional(arrival.client_address.map(|address| address.to_string())),
        ),
    ];
    if let Some(submitter) = &arrival.submitter {
        fields.push(("submitter", Json::Text(submitter.name.clone())));
        fields.push(("uid", Json::Number(u64::from(submitter.uid))));
    }
    fields.push(("recipients", Json::List(recipients)));
    let mut text = String::new();
    write_json(&mut text, &Json::Object(fields));
    text.push('\n');
    text
}

fn recipient_json(recipient: &Recipient, state: &RecipientState) -> Json {
    let word = match state {
        RecipientState::Expanded => "expanded",
        RecipientState::Delivered => "delivered",
        RecipientState::Failed => "failed",
        RecipientState::Pending { .. } => "pending",
    };
    let mut fields = vec![
        ("to", Json::Text(recipient.target.clone())),
        ("state", Json::Text(word.to_owned())),
    ];
    if let Some(parent) = recipient.parent {
        fields.push(("parent", Json::Number(u64::from(parent.0))));
    }
    if let Some(original) = &recipient.original_recipient {
        fields.push(("orcpt", Json::Text(original.clone())));
    }
    let notify = match recipient.notify {
        Notify::Unspecified => None,
        Notify::Never => Some("NEVER".to_owned()),
        Notify::When {
            success,
            failure,
            delay,
        } => {
            let words = [(success, "SUCCESS"), (failure, "FAILURE"), (delay, "DELAY")];
            let named: Vec<&str> = words
                .iter()
                .filter(|(is_set, _)| *is_set)
                .map(|(_, word)| *word)
                .collect();
            Some(named.join(","))
        }
    };
    if let Some(notify) = notify {
        fields.push(("notify", Json::Text(notify)));
    }
    if let RecipientState::Pending { last, tries } = state {
        fields.push(("tries", Json::Number(u64::from(*tries))));
        if let Some(last) = last {
            fields.push(("stat", Json::Text(last.text.clone())));
        }
    }
    Json::Object(fields)
}

#[cfg(test)]
mod tests {
    use super::*;
    use diligence::address::ReversePath;
    use diligence::envelope::{Envelope, MessageId};

    #[test]
    fn an_envelope_is_one_line_of_json() {
        let mut recipient = Recipient::new("b\"ob@x.test");
        recipient.notify = Notify::When {
            success: true,
            failure: true,
            delay: false,
        };
        let message = StoredMessage {
            id: MessageId::from_number(0),
            envelope: Envelope::new(ReversePath::Null, vec![recipient.clone()]),
            recipients: vec![(
                recipient,
                RecipientState::Pending {
                    last: None,
                    tries: 0,
                },
            )],
            due_unix_ms: 7,
            is_held: true,
            hold_reason: None,
            has_warned: false,
            is_leased: false,
            content_bytes: 12,
        };
        let text = envelope_json(&message);
        assert!(text.starts_with("{\"id\":\""), "{text}");
        assert!(text.contains("\"from\":\"<>\""), "{text}");
        assert!(
            text.contains(
                "\"recipients\":[{\"to\":\"b\\\"ob@x.test\",\"state\":\"pending\",\"notify\":\"SUCCESS,FAILURE\",\"tries\":0}]"
            ),
            "{text}"
        );
        assert_eq!(text.lines().count(), 1);
    }

    #[test]
    fn a_file_that_is_there_is_never_touched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, "old").unwrap();
        let error = write_new(&path, &mut |file| file.write_all(b"new")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        let other = folder.path().join("b");
        write_new(&other, &mut |_| Err(io::Error::other("no"))).unwrap_err();
        assert!(!other.exists(), "nothing half done is left");
    }
}
