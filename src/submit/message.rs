//! A submission put together: envelope, completed header and body, ready to be sent or stored. Pure but for reading
//! a large body back.
//!
//! The envelope keeps addresses as they were given, so that log and queue listing show `alice` and `bob` as the user
//! wrote them; [`Submission::on_wire`] is the same with this host's name added, as SMTP needs it.
//!
//! Source: RFC 6409 6 and 8; RFC 3461 for the parameters.

use std::io::{Cursor, Read};

use super::body::Body;
use super::collect::Collected;
use super::header::Completion;
use super::recipients::Named;
use super::sender::Sender;
use crate::address::list;
use crate::address::{Address, AddressError, Domain, ReversePath};
use crate::envelope::{
    Arrival, BodyType, ControllingUser, DsnReturn, Envelope, MessageId, Notify, Recipient,
};

/// What a submission asks for besides sender, recipients and text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parameters {
    /// `-N`
    pub notify: Notify,
    /// `-R`
    pub dsn_return: DsnReturn,
    /// `-V`
    pub envelope_id: Option<String>,
    /// `-B`
    pub body_type: BodyType,
    /// The protocol that `-p` or `-oMr` names; empty if none.
    pub protocol: String,
    /// The host that `-p` or `-oMs` names; empty if none.
    pub from_host: String,
    /// `-G`
    pub is_gateway: bool,
}

/// Where and by whom a submission is made.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'a> {
    /// This host's name.
    pub host: &'a str,
    /// Program and version for the Received field.
    pub version: &'a str,
    /// Now, Unix milliseconds.
    pub unix_ms: u64,
    /// Who runs the program.
    pub submitter: &'a ControllingUser,
}

/// A message to be sent.
#[derive(Debug, Clone)]
pub struct Submission {
    /// The id it is logged under.
    pub id: MessageId,
    /// Its envelope, addresses as given.
    pub envelope: Envelope,
    /// How each recipient of the envelope was written.
    pub shown: Vec<String>,
    /// Class by its Precedence field.
    pub class: i32,
    /// Size as read, line ends counted as one byte.
    pub message_bytes: u64,
    /// Completed, CRLF after each line, without the empty line that ends it; empty if the body holds it too.
    header: Vec<u8>,
    body: Body,
}

/// The parts a [`Submission`] is made of.
#[derive(Debug)]
pub struct Parts<'a> {
    /// The id it is to have.
    pub id: MessageId,
    /// Who sends.
    pub sender: &'a Sender,
    /// The sender's full name.
    pub full_name: Option<&'a str>,
    /// To whom.
    pub recipients: &'a [Named],
    /// What was read.
    pub collected: &'a Collected,
    /// What is asked for.
    pub parameters: &'a Parameters,
    /// Texts for X-Authentication-Warning.
    pub warnings: &'a [String],
}

impl Submission {
    /// Puts a submission together.
    ///
    /// # Errors
    /// [`AddressError`] if the sender is no address; permanent.
    pub fn new(parts: &Parts<'_>, origin: Origin<'_>) -> Result<Self, AddressError> {
        let queue_id = parts.id.to_string();
        let reverse_path = match &parts.sender.address {
            Some(address) => ReversePath::Mailbox(Address::parse(address)?),
            None => ReversePath::Null,
        };
        let on_wire = reverse_path
            .address()
            .map(|address| qualified(&address.to_string(), origin.host));
        let sole_recipient = match parts.recipients {
            [only] => Some(only.address.as_str()),
            _ => None,
        };
        let header = parts.collected.header.complete(&Completion {
            host: origin.host,
            version: origin.version,
            queue_id: &queue_id,
            unix_ms: origin.unix_ms,
            submitter: &origin.submitter.name,
            protocol: &parts.parameters.protocol,
            from_host: &parts.parameters.from_host,
            sender: on_wire.as_deref(),
            full_name: parts.full_name,
            sole_recipient,
            warnings: parts.warnings,
            is_gateway: parts.parameters.is_gateway,
        });
        let recipients = parts
            .recipients
            .iter()
            .map(|named| recipient(named, parts.parameters, origin))
            .collect();
        let mut envelope = Envelope::new(reverse_path, recipients);
        envelope.has_brackets = false;
        envelope.body_type = parts.parameters.body_type;
        envelope.dsn_return = parts.parameters.dsn_return;
        envelope
            .envelope_id
            .clone_from(&parts.parameters.envelope_id);
        envelope.body_bytes = parts.collected.body_bytes;
        envelope.arrival = Arrival {
            unix_ms: origin.unix_ms,
            protocol: parts.parameters.protocol.clone(),
            submitter: Some(origin.submitter.clone()),
            message_id_field: parts
                .collected
                .header
                .text("message-id")
                .unwrap_or_else(|| message_id(&header)),
            ..Arrival::default()
        };
        Ok(Self {
            id: parts.id,
            envelope,
            shown: parts.recipients.iter().map(|n| n.shown.clone()).collect(),
            class: parts.collected.header.class(),
            message_bytes: parts.collected.message_bytes,
            header,
            body: parts.collected.body.clone(),
        })
    }

    /// A message whose header and body came together, CRLF, from an SMTP session.
    #[must_use]
    pub fn of_content(
        id: MessageId,
        envelope: Envelope,
        content: Body,
        message_bytes: u64,
    ) -> Self {
        Self {
            id,
            shown: envelope.recipients.iter().map(Recipient::shown).collect(),
            envelope,
            class: 0,
            message_bytes,
            header: Vec::new(),
            body: content,
        }
    }

    /// A reader of header and body as they will be sent: CRLF, dots not doubled. Reading blocks: disk, if the body
    /// is large.
    #[must_use]
    pub fn content(&self) -> Box<dyn Read + Send> {
        if self.header.is_empty() {
            return self.body.open();
        }
        let mut head = self.header.clone();
        head.extend_from_slice(b"\r\n");
        Box::new(Cursor::new(head).chain(self.body.open()))
    }

    /// Size of the content in bytes.
    #[must_use]
    pub fn content_bytes(&self) -> u64 {
        let separator_bytes = if self.header.is_empty() { 0 } else { 2 };
        u64::try_from(self.header.len())
            .unwrap_or(u64::MAX)
            .saturating_add(separator_bytes)
            .saturating_add(self.body.len_bytes())
    }

    /// The envelope with this host's name added to addresses that have no domain.
    #[must_use]
    pub fn on_wire(&self, host: &str) -> Envelope {
        let mut envelope = self.envelope.clone();
        if let (ReversePath::Mailbox(address), Ok(domain)) =
            (&envelope.reverse_path, Domain::parse(host))
            && address.domain().is_none()
        {
            envelope.reverse_path = ReversePath::Mailbox(address.with_domain(domain));
        }
        for recipient in &mut envelope.recipients {
            recipient.target = qualified(&recipient.target, host);
        }
        envelope
    }
}

fn recipient(named: &Named, parameters: &Parameters, origin: Origin<'_>) -> Recipient {
    let mut recipient = Recipient::new(named.address.clone());
    recipient.has_brackets = false;
    recipient.controlling_user = Some(origin.submitter.clone());
    recipient.notify = parameters.notify;
    if parameters.notify != Notify::Unspecified {
        // RFC 3461 5.2.1: the address as the submitter gave it, so that reports can name it.
        let original = xtext(&qualified(&named.address, origin.host));
        recipient.original_recipient = Some(format!("rfc822;{original}"));
    }
    recipient
}

/// The address with this host's domain if it has none.
#[must_use]
pub fn qualified(address: &str, host: &str) -> String {
    let mut out = address.to_owned();
    // One address: the insertion, if any, goes to its end.
    for (at, insert) in list::completions(address.as_bytes(), host)
        .into_iter()
        .rev()
    {
        out.insert_str(at, &insert);
    }
    out
}

/// RFC 3461 4: bytes that could be taken for syntax as `+XX`.
fn xtext(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if matches!(byte, b'!'..=b'~') && byte != b'+' && byte != b'=' {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("+{byte:02X}"));
        }
    }
    out
}

fn message_id(header: &[u8]) -> String {
    const NAME: &[u8] = b"Message-Id: ";
    header
        .split(|b| *b == b'\n')
        .find_map(|line| line.strip_prefix(NAME))
        .map(|value| String::from_utf8_lossy(value).trim().to_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::collect::{CollectOptions, collect};
    use super::super::recipients::Recipients;
    use super::super::sender::sender;
    use super::*;

    fn submission(input: &str, to: &[&str], parameters: &Parameters) -> Submission {
        let folder = tempfile::tempdir().unwrap();
        let options = CollectOptions {
            ends_at_dot: true,
            header_bytes_max: 32_768,
            message_bytes_max: None,
            is_seven_bit: false,
        };
        let collected = collect(&mut input.as_bytes(), options, folder.path()).unwrap();
        let recipients = Recipients::gather(to.iter().map(|r| r.as_bytes()));
        let user = ControllingUser {
            name: "alice".to_owned(),
            uid: 1000,
            gid: 1000,
        };
        let parts = Parts {
            id: MessageId::first_of(1_795_367_553, 758),
            sender: &sender(None, "alice", false).unwrap(),
            full_name: None,
            recipients: &recipients.named,
            collected: &collected,
            parameters,
            warnings: &[],
        };
        let origin = Origin {
            host: "gold.example.test",
            version: "8/8/Submit",
            unix_ms: 1_795_367_553_000,
            submitter: &user,
        };
        Submission::new(&parts, origin).unwrap()
    }

    #[test]
    fn shown_addresses_stay_short_and_wire_addresses_are_full() {
        let made = submission(
            "Subject: test one\n\nhello bob\n",
            &["bob"],
            &Parameters::default(),
        );
        assert_eq!(made.envelope.sender_shown(), "alice");
        assert_eq!(made.envelope.recipients[0].shown(), "bob");
        assert_eq!((made.message_bytes, made.envelope.body_bytes), (29, 10));
        let wire = made.on_wire("gold.example.test");
        assert_eq!(wire.reverse_path.to_string(), "<alice@gold.example.test>");
        assert_eq!(wire.recipients[0].target, "bob@gold.example.test");
        assert_eq!(
            made.envelope.arrival.message_id_field,
            format!("<202611221712.{}@gold.example.test>", made.id)
        );
    }

    #[test]
    fn the_content_is_header_empty_line_and_body_and_its_size_is_known() {
        let made = submission(
            "Message-Id: <a@b>\n\nhello\n",
            &["bob", "x@y.test"],
            &Parameters::default(),
        );
        let mut content = String::new();
        made.content().read_to_string(&mut content).unwrap();
        assert_eq!(u64::try_from(content.len()).unwrap(), made.content_bytes());
        assert!(content.ends_with("Message-Id: <a@b>\r\n\r\nhello\r\n"));
        assert_eq!(made.envelope.arrival.message_id_field, "<a@b>");
        assert_eq!(made.shown, ["x@y.test", "bob"]);
    }

    #[test]
    fn dsn_parameters_reach_the_envelope() {
        let parameters = Parameters {
            notify: Notify::Never,
            dsn_return: DsnReturn::Headers,
            envelope_id: Some("ENV1".to_owned()),
            ..Parameters::default()
        };
        let made = submission("\n", &["a+b"], &parameters);
        assert_eq!(made.envelope.envelope_id.as_deref(), Some("ENV1"));
        assert_eq!(made.envelope.dsn_return, DsnReturn::Headers);
        let recipient = &made.envelope.recipients[0];
        assert_eq!(recipient.notify, Notify::Never);
        assert_eq!(
            recipient.original_recipient.as_deref(),
            Some("rfc822;a+2Bb@gold.example.test")
        );
    }
}
