//! Makes text from outside harmless for a terminal: it must not move the cursor, change the
//! title, send answers in the user's name, or forge a line.

use std::fmt::Write as _;

/// What a terminal would obey, or what would turn text around, except for a newline or a tab.
pub(crate) fn is_obeyed(c: char) -> bool {
    let turns =
        matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    (c.is_control() && !matches!(c, '\n' | '\t')) || turns
}

/// One line: newlines are shown as escapes too.
pub(crate) fn line(bytes: &[u8]) -> String {
    escaped(bytes, |c| is_obeyed(c) || c == '\n')
}

/// A value among others on a line, wherever that goes: what is in it can be told apart from what
/// is not, so backslashes are escaped as well.
pub(crate) fn field(bytes: &[u8]) -> String {
    escaped(bytes, |c| is_obeyed(c) || matches!(c, '\n' | '\t' | '\\'))
}

/// Text that may have several lines.
pub(crate) fn text(bytes: &[u8]) -> String {
    escaped(bytes, is_obeyed)
}

/// The same JSON, but harmless: what its writer left in strings as it is, is written as an escape
/// of JSON.
pub(crate) fn json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match is_obeyed(c) {
            // All of them are in the basic plane.
            true => _ = write!(out, "\\u{:04x}", u32::from(c)),
            false => out.push(c),
        }
    }
    out
}

fn escaped(bytes: &[u8], is_bad: impl Fn(char) -> bool) -> String {
    let mut out = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\n' if is_bad(c) => out.push_str("\\n"),
                '\t' if is_bad(c) => out.push_str("\\t"),
                '\\' if is_bad(c) => out.push_str("\\\\"),
                c if !is_bad(c) => out.push(c),
                c if c.is_ascii() => _ = write!(out, "\\x{:02x}", u32::from(c)),
                c => _ = write!(out, "\\u{{{:x}}}", u32::from(c)),
            }
        }
        for byte in chunk.invalid() {
            _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_is_given_nothing_to_obey() {
        assert_eq!(line(b"a\tb\x1b]0;me\x07\n"), "a\tb\\x1b]0;me\\x07\\n");
        assert_eq!(text(b"caf\xc3\xa9\r\n\xff\x7f"), "café\\x0d\n\\xff\\x7f");
        assert_eq!(field(b"\t\n\0\xfe\\x00"), "\\t\\n\\x00\\xfe\\\\x00");
        // CSI as one character, and text that runs backwards.
        assert_eq!(text("\u{9b}2J \u{202e}".as_bytes()), "\\u{9b}2J \\u{202e}");
    }

    #[test]
    fn json_stays_what_it_was() {
        let value = serde_json::json!({ "text": "\u{9b}2J\u{7f}\u{1b}é\u{202e}" });
        let shown = json(&value.to_string());
        assert!(!shown.chars().any(is_obeyed), "{shown}");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&shown).unwrap(),
            value
        );
    }
}
