//! Payloads in JSON: text where it is text, base64 where it is not.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use crate::terminal::is_obeyed;

/// Adds `payload` as `"text"` if it is UTF-8, otherwise as `"base64"`.
pub(crate) fn insert(object: &mut Map<String, Value>, payload: &[u8]) {
    match std::str::from_utf8(payload) {
        Ok(text) => object.insert("text".to_owned(), text.into()),
        Err(_) => object.insert("base64".to_owned(), STANDARD.encode(payload).into()),
    };
}

/// A payload for a person: the text, or a hex dump of sixteen bytes a line.
pub(crate) fn for_people(payload: &[u8]) -> String {
    match std::str::from_utf8(payload) {
        Ok(text) => text.to_owned(),
        Err(_) => hex(payload),
    }
}

/// Text that is harmless on a terminal; `None` if the terminal would obey some of it.
pub(crate) fn harmless(payload: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(payload).ok()?;
    (!text.chars().any(is_obeyed)).then_some(text)
}

/// A hex dump of sixteen bytes a line.
pub(crate) fn hex(payload: &[u8]) -> String {
    let mut out = String::new();
    for (i, line) in payload.chunks(16).enumerate() {
        let hex: Vec<String> = line.iter().map(|b| format!("{b:02x}")).collect();
        let text: String = line
            .iter()
            .map(|&b| {
                if (0x20..0x7f).contains(&b) {
                    b as char
                } else {
                    '.'
                }
            })
            .collect();
        if i > 0 {
            out.push('\n');
        }
        out.push_str(&format!("{:08x}  {:<47}  {text}", i * 16, hex.join(" ")));
    }
    out
}

/// The first `limit` characters, on one line, for lists.
pub(crate) fn short(payload: &[u8], limit: usize) -> String {
    let text = String::from_utf8_lossy(payload);
    let mut out: String = text
        .chars()
        .take(limit)
        .map(|c| match c.is_control() || is_obeyed(c) {
            true => '\u{fffd}',
            false => c,
        })
        .collect();
    if text.chars().nth(limit).is_some() {
        out.push('…');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_are_no_text_become_base64() {
        let mut object = Map::new();
        insert(&mut object, b"caf\xc3\xa9");
        assert_eq!(Value::Object(object).to_string(), r#"{"text":"café"}"#);
        let mut object = Map::new();
        insert(&mut object, b"\xff\x00A");
        assert_eq!(Value::Object(object).to_string(), r#"{"base64":"/wBB"}"#);
    }

    #[test]
    fn people_get_text_or_hex() {
        assert_eq!(for_people(b"{\"a\":1}"), "{\"a\":1}");
        let dump = for_people(b"\xffA\x00");
        assert_eq!(dump, format!("00000000  {:<47}  .A.", "ff 41 00"));
        assert_eq!(short(b"abc\ndef", 5), "abc\u{fffd}d…");
        assert_eq!(short(b"abc", 3), "abc");
    }
}
