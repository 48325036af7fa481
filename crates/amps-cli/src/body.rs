//! Payloads in JSON: text where it is text, base64 where it is not.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use crate::terminal::{self, is_obeyed};

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
    let (mut end, mut left) = (0, limit);
    for chunk in payload.utf8_chunks() {
        if let Some((at, _)) = chunk.valid().char_indices().nth(left) {
            end += at;
            break;
        }
        left -= chunk.valid().chars().count();
        // Each byte that is no text is shown by itself.
        let bytes = chunk.invalid().len().min(left);
        left -= bytes;
        end += chunk.valid().len() + bytes;
    }
    let mut out = terminal::field(payload.get(..end).unwrap_or(payload));
    if end < payload.len() {
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
        assert_eq!(short(b"abc\ndef", 5), "abc\\nd…");
        assert_eq!(short(b"abc", 3), "abc");
        assert_eq!(short(b"", 0), "");
        for limit in 0..=6 {
            let bytes = b"\xc3\xa9\xff\xfe\0\\x";
            let whole = ["é", "\\xff", "\\xfe", "\\x00", "\\\\", "x"];
            let more = if limit < whole.len() { "…" } else { "" };
            assert_eq!(short(bytes, limit), whole[..limit].concat() + more);
        }
    }
}
