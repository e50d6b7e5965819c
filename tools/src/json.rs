//! JSON as the tools print it: one value on one line. Writing only; pure. Source: RFC 8259.

use std::fmt::Write;

/// A JSON value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Json {
    /// `null`
    Null,
    /// `true` or `false`
    Flag(bool),
    /// A whole number.
    Number(u64),
    /// A string.
    Text(String),
    /// An array.
    List(Vec<Self>),
    /// An object, its members in this order.
    Object(Vec<(&'static str, Self)>),
}

/// Writes a value. Control characters are escaped, everything else is UTF-8.
pub fn write_json(out: &mut String, value: &Json) {
    match value {
        Json::Null => out.push_str("null"),
        Json::Flag(flag) => out.push_str(if *flag { "true" } else { "false" }),
        Json::Number(number) => out.push_str(&number.to_string()),
        Json::Text(text) => write_text(out, text),
        Json::List(values) => {
            out.push('[');
            for (at, value) in values.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                write_json(out, value);
            }
            out.push(']');
        }
        Json::Object(members) => {
            out.push('{');
            for (at, (name, value)) in members.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                write_text(out, name);
                out.push(':');
                write_json(out, value);
            }
            out.push('}');
        }
    }
}

fn write_text(out: &mut String, text: &str) {
    out.push('"');
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // C1 controls too: a terminal may act on them.
            other if other.is_control() => {
                // Writing to a String does not fail.
                let _ = write!(out, "\\u{:04x}", u32::from(other));
            }
            other => out.push(other),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_end_a_string_or_steer_a_terminal_is_escaped() {
        let mut out = String::new();
        let value = Json::Object(vec![
            (
                "a",
                Json::List(vec![Json::Number(u64::MAX), Json::Null, Json::Flag(true)]),
            ),
            (
                "b",
                Json::Text("\"\\\n\r\t\u{1b}[2J\u{9b}\u{7f}é".to_owned()),
            ),
        ]);
        write_json(&mut out, &value);
        assert_eq!(
            out,
            "{\"a\":[18446744073709551615,null,true],\"b\":\"\\\"\\\\\\n\\r\\t\\u001b[2J\\u009b\\u007fé\"}"
        );
    }
}
