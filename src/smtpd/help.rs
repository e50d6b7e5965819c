//! What HELP answers. Pure text, of what this server has and nothing else.
//!
//! Source: RFC 5321 4.1.1.8; the shape of the reply (214, its last line) is Sendmail's.

use super::settings::VERSION;
use crate::status::{Reply, Status};

const STATUS: Status = Status::new(2, 0, 0);
const LAST_LINE: &str = "End of HELP info";

/// Topics, each with the lines that explain it.
const TOPICS: &[(&str, &[&str])] = &[
    (
        "HELO",
        &[
            "HELO <host name>",
            "\tOpens a session. The name is the client's own.",
        ],
    ),
    (
        "EHLO",
        &[
            "EHLO <host name>",
            "\tOpens a session; the reply lists the extensions that may be used.",
        ],
    ),
    (
        "MAIL",
        &[
            "MAIL FROM:<sender> [ SIZE=<bytes> ] [ BODY={ 7BIT | 8BITMIME } ]",
            "\tBegins a message. <> is the sender of reports. See also DSN.",
        ],
    ),
    (
        "RCPT",
        &[
            "RCPT TO:<recipient>",
            "\tAdds a recipient; may be given many times. See also DSN.",
        ],
    ),
    (
        "DATA",
        &[
            "DATA",
            "\tThe message follows, header and body, up to a line of one dot.",
        ],
    ),
    ("RSET", &["RSET", "\tForgets the message begun."]),
    ("NOOP", &["NOOP", "\tDoes nothing."]),
    ("QUIT", &["QUIT", "\tEnds the session."]),
    ("HELP", &["HELP [ <topic> ]", "\tExplains."]),
    (
        "VRFY",
        &[
            "VRFY <recipient>",
            "\tSays whether mail to an address is taken.",
        ],
    ),
    (
        "EXPN",
        &["EXPN <recipient>", "\tLists whom an alias stands for."],
    ),
    (
        "VERB",
        &[
            "VERB",
            "\tShows the delivery in lines of code 050 before the reply to DATA.",
            "\tFor clients on this host only.",
        ],
    ),
    (
        "DSN",
        &[
            "MAIL FROM:<sender> [ RET={ FULL | HDRS } ] [ ENVID=<id> ]",
            "RCPT TO:<recipient> [ NOTIFY={ NEVER | SUCCESS,FAILURE,DELAY } ]",
            "\t[ ORCPT=<type>;<address> ]",
            "\tWhich delivery reports are wanted (RFC 3461).",
        ],
    ),
];

/// The reply to HELP with this argument.
pub(super) fn reply(topic: &str) -> Reply {
    if topic.is_empty() {
        return overview();
    }
    match TOPICS
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(topic))
    {
        Some((_, lines)) => Reply {
            code: 214,
            status: Some(STATUS),
            lines: lines
                .iter()
                .chain([&LAST_LINE])
                .map(|line| (*line).to_owned())
                .collect(),
        },
        None => Reply::new(
            504,
            Status::new(5, 3, 0),
            format!("HELP topic \"{}\" unknown", super::command::shorten(topic)),
        ),
    }
}

fn overview() -> Reply {
    let mut lines = vec![
        format!("This is Diligence version {VERSION}"),
        "Topics:".to_owned(),
    ];
    lines.extend(TOPICS.chunks(5).map(|row| {
        row.iter().fold(String::new(), |mut line, (name, _)| {
            line.push('\t');
            line.push_str(name);
            line
        })
    }));
    lines.push("For more, HELP <topic>. People are reached as postmaster.".to_owned());
    lines.push(LAST_LINE.to_owned());
    Reply {
        code: 214,
        status: Some(STATUS),
        lines,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_topic_of_the_overview_is_explained() {
        let overview = reply("").to_wire();
        for (name, _) in TOPICS {
            assert!(overview.contains(&format!("\t{name}")), "{name}");
            let text = reply(&name.to_lowercase()).to_wire();
            assert!(text.ends_with("214 2.0.0 End of HELP info\r\n"), "{text}");
        }
        assert_eq!(
            reply("topic-none").to_line(),
            "504 5.3.0 HELP topic \"topic-none\" unknown"
        );
    }
}
