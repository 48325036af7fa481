//! Writing headers without intermediate strings.

use super::ack::AckKinds;
use super::frame::{FrameError, append_frame};

pub(super) struct HeaderWriter<'b> {
    out: &'b mut Vec<u8>,
    first: bool,
}

impl HeaderWriter<'_> {
    #[inline(always)]
    pub(super) fn text(&mut self, key: &str, value: &str) {
        self.key(key);
        write_string(self.out, value);
    }

    pub(super) fn text_if(&mut self, key: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.text(key, value);
        }
    }

    #[inline(always)]
    pub(super) fn number(&mut self, key: &str, value: u64) {
        self.key(key);
        write_number(self.out, value);
    }

    pub(super) fn number_if(&mut self, key: &str, value: Option<u64>) {
        if let Some(value) = value {
            self.number(key, value);
        }
    }

    pub(super) fn acks(&mut self, acks: AckKinds) {
        if !acks.is_empty() {
            self.key("a");
            self.out.push(b'"');
            acks.write(self.out);
            self.out.push(b'"');
        }
    }

    /// Where the next field goes.
    pub(super) fn end(&self) -> usize {
        self.out.len()
    }

    /// Inlined, the parts have lengths that are known.
    #[inline(always)]
    fn key(&mut self, key: &str) {
        self.out
            .extend_from_slice(if self.first { b"\"".as_slice() } else { b",\"" });
        self.first = false;
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
    }
}

/// Appends a frame: a header that starts with the command, then `body`.
pub(super) fn frame(
    out: &mut Vec<u8>,
    command: &str,
    body: &[u8],
    fields: impl FnOnce(&mut HeaderWriter<'_>),
) -> Result<(), FrameError> {
    append_frame(out, |out| {
        object(out, command, fields);
        out.extend_from_slice(body);
    })
}

pub(super) fn object(out: &mut Vec<u8>, command: &str, fields: impl FnOnce(&mut HeaderWriter<'_>)) {
    record(out, |header| {
        header.text("c", command);
        fields(header);
    });
}

/// Appends a header without a command, as the records of a `sow` frame have.
pub(super) fn record(out: &mut Vec<u8>, fields: impl FnOnce(&mut HeaderWriter<'_>)) {
    out.push(b'{');
    fields(&mut HeaderWriter { out, first: true });
    out.push(b'}');
}

fn write_string(out: &mut Vec<u8>, value: &str) {
    out.push(b'"');
    let mut rest = value.as_bytes();
    // Most are written as they are, and finding that out without a way out in between takes
    // a few steps for many bytes.
    let clean = rest
        .iter()
        .fold(true, |clean, byte| clean & !is_escaped(*byte));
    while !clean && let Some(at) = rest.iter().position(|byte| is_escaped(*byte)) {
        out.extend_from_slice(&rest[..at]);
        write_escape(out, rest[at]);
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

#[inline]
fn is_escaped(byte: u8) -> bool {
    (byte < 0x20) | (byte == b'"') | (byte == b'\\')
}

fn write_escape(out: &mut Vec<u8>, byte: u8) {
    let short = match byte {
        b'"' | b'\\' => byte,
        0x08 => b'b',
        0x0c => b'f',
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        _ => {
            let hex = |digit: u8| {
                if digit < 10 {
                    b'0' + digit
                } else {
                    b'a' + digit - 10
                }
            };
            out.extend_from_slice(&[b'\\', b'u', b'0', b'0', hex(byte >> 4), hex(byte & 15)]);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

fn write_number(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [0; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (value % 10) as u8;
        value /= 10;
        if value == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_in_full() {
        for value in [0, 1, 9, 10, 1234567890, u64::MAX] {
            let mut out = Vec::new();
            write_number(&mut out, value);
            assert_eq!(out, value.to_string().as_bytes());
        }
    }

    #[test]
    fn strings_are_escaped_as_documented() {
        let mut out = Vec::new();
        write_string(&mut out, "or\"d\\ers\u{1}\n\u{1f}é");
        assert_eq!(out, "\"or\\\"d\\\\ers\\u0001\\n\\u001fé\"".as_bytes());
    }
}
