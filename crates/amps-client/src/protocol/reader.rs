//! Flat JSON-like objects, as they stand in frames, and what can be wrong with them
//! (`docs/protocol.md` §2).

use std::borrow::Cow;

/// A header that cannot be read. The frame's end is known from its length, but a peer that
/// sends such a header cannot be followed; servers close the connection
/// (`docs/protocol.md` §1).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bad header at byte {at}: {kind}")]
pub struct HeaderError {
    /// Offset in the frame where reading stopped.
    pub at: usize,
    /// What was wrong there.
    pub kind: HeaderErrorKind,
}

/// What can be wrong with a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderErrorKind {
    /// The frame ended inside the header.
    #[error("the frame ends inside the header")]
    UnexpectedEnd,
    /// The header is longer than this side accepts.
    #[error("the header is longer than {max} bytes")]
    TooLong {
        /// The cap in force, in bytes.
        max: usize,
    },
    /// Another byte was needed here.
    #[error("expected {expected}")]
    Expected {
        /// What was needed.
        expected: &'static str,
    },
    /// A value is an object or an array; headers are flat.
    #[error("nested values are not allowed")]
    Nested,
    /// A string is not UTF-8.
    #[error("the string is not UTF-8")]
    BadUtf8,
    /// A string holds an escape that means nothing.
    #[error("unknown escape")]
    BadEscape,
    /// A value is neither a string nor a number nor `true`, `false`, `null`.
    #[error("not a value")]
    BadValue,
    /// A number is signed, fractional, or above 2⁶⁴ − 1.
    #[error("not an unsigned 64-bit number")]
    BadNumber,
    /// A record in a `sow` frame does not say how long its body is.
    #[error("the record has no length")]
    MissingLength,
    /// A record in a `sow` frame claims more bytes than the frame holds.
    #[error("the record's body reaches beyond the frame")]
    RecordTooLong,
}

/// The value of a member.
pub(super) enum Value<'a> {
    Text(Cow<'a, str>),
    Bare(&'a str),
    Null,
    /// Only from a lenient reader: what could be made of a value that cannot be read, never
    /// empty and never equal to what a peer could have meant.
    Spoiled(String),
}

impl<'a> Value<'a> {
    pub(super) fn text(self) -> Option<Cow<'a, str>> {
        match self {
            Value::Text(text) => Some(text),
            Value::Bare(text) => Some(Cow::Borrowed(text)),
            Value::Null => None,
            Value::Spoiled(text) => Some(Cow::Owned(text)),
        }
    }

    pub(super) fn number(self) -> Result<Option<u64>, HeaderErrorKind> {
        let Some(text) = self.text() else {
            return Ok(None);
        };
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(HeaderErrorKind::BadNumber);
        }
        text.parse()
            .map(Some)
            .map_err(|_| HeaderErrorKind::BadNumber)
    }

    /// Whether it is a number above 2⁶⁴ − 1.
    pub(super) fn is_beyond(&self) -> bool {
        let text = match self {
            Value::Text(text) => text,
            Value::Bare(text) => *text,
            Value::Null | Value::Spoiled(_) => return false,
        };
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits && text.parse::<u64>().is_err()
    }
}

/// What a lenient reader copies of one text with escapes; it scans the rest.
const KEPT: usize = 64 * 1024;

/// Reads one object from the start of some bytes.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    lenient: bool,
    /// The text read last is not what the peer wrote.
    spoiled: bool,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Reader {
            bytes,
            at: 0,
            lenient: false,
            spoiled: false,
        }
    }

    /// A reader that goes on behind a value which cannot be read, as long as it is clear where
    /// the value ends. Keys must be sound.
    pub(super) fn lenient(bytes: &'a [u8]) -> Self {
        Reader {
            lenient: true,
            ..Reader::new(bytes)
        }
    }

    /// Reads the object at the start, member by member; its length in bytes.
    pub(super) fn object(
        &mut self,
        mut set: impl FnMut(&str, Value<'a>) -> Result<(), HeaderErrorKind>,
    ) -> Result<usize, HeaderError> {
        self.expect(b'{', "'{'")?;
        if self.peek()? == b'}' {
            self.at += 1;
            return Ok(self.at);
        }
        loop {
            if self.peek()? != b'"' {
                return Err(self.expected("a key"));
            }
            self.spoiled = false;
            let key = self.string()?;
            if self.spoiled {
                return Err(self.expected("a key"));
            }
            self.expect(b':', "':'")?;
            self.peek()?;
            let at = self.at;
            let value = self.value()?;
            set(&key, value).map_err(|kind| HeaderError { at, kind })?;
            match self.peek()? {
                b',' => self.at += 1,
                b'}' => break,
                _ => return Err(self.expected("',' or '}'")),
            }
        }
        self.at += 1;
        Ok(self.at)
    }

    fn value(&mut self) -> Result<Value<'a>, HeaderError> {
        let start = self.at;
        self.spoiled = false;
        let value = match self.peek()? {
            b'"' => self.string().map(Value::Text),
            b'{' | b'[' => Err(self.fail(HeaderErrorKind::Nested)),
            _ => self.bare(),
        };
        match value {
            Ok(Value::Text(text)) if self.spoiled => Ok(Value::Spoiled(text.into_owned())),
            Err(HeaderError {
                kind: HeaderErrorKind::Nested | HeaderErrorKind::BadValue,
                ..
            }) if self.lenient => {
                self.at = start;
                self.skip()?;
                Ok(Value::Spoiled(char::REPLACEMENT_CHARACTER.into()))
            }
            value => value,
        }
    }

    /// Goes behind a value of whatever form: to the comma or brace that ends the member.
    fn skip(&mut self) -> Result<(), HeaderError> {
        let mut depth = 0u64;
        loop {
            match self.byte()? {
                b',' | b'}' | b']' if depth == 0 => return Ok(()),
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                b'"' => {
                    self.string()?;
                    continue;
                }
                _ => {}
            }
            self.at += 1;
        }
    }

    fn bare(&mut self) -> Result<Value<'a>, HeaderError> {
        let start = self.at;
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
        let length = self.bytes[start..]
            .iter()
            .take_while(|byte| plain(byte))
            .count();
        self.at += length;
        let bad = HeaderError {
            at: start,
            kind: HeaderErrorKind::BadValue,
        };
        let text = std::str::from_utf8(&self.bytes[start..self.at]).map_err(|_| bad.clone())?;
        match text {
            "null" => Ok(Value::Null),
            "true" | "false" => Ok(Value::Bare(text)),
            _ if text.starts_with(|c: char| c.is_ascii_digit() || c == '-') => {
                Ok(Value::Bare(text))
            }
            _ => Err(bad),
        }
    }

    fn string(&mut self) -> Result<Cow<'a, str>, HeaderError> {
        self.at += 1;
        let first = self.utf8_run()?;
        if self.byte()? == b'"' {
            self.at += 1;
            return Ok(first);
        }
        let mut text = first.into_owned();
        while self.byte()? == b'\\' {
            self.at += 1;
            let escaped = match self.escape() {
                Err(HeaderError {
                    kind: HeaderErrorKind::BadEscape,
                    ..
                }) if self.lenient => {
                    self.spoiled = true;
                    char::REPLACEMENT_CHARACTER
                }
                escaped => escaped?,
            };
            let run = self.utf8_run()?;
            if self.lenient && text.len() >= KEPT {
                self.spoiled = true;
                continue;
            }
            text.push(escaped);
            text.push_str(&run);
        }
        self.at += 1;
        Ok(Cow::Owned(text))
    }

    fn utf8_run(&mut self) -> Result<Cow<'a, str>, HeaderError> {
        let start = self.at;
        let run = self.run();
        match utf8(run, start) {
            Ok(text) => Ok(Cow::Borrowed(text)),
            Err(_) if self.lenient => {
                self.spoiled = true;
                Ok(String::from_utf8_lossy(run))
            }
            Err(error) => Err(error),
        }
    }

    fn run(&mut self) -> &'a [u8] {
        let rest = &self.bytes[self.at..];
        let length = rest
            .iter()
            .take_while(|byte| !matches!(byte, b'"' | b'\\'))
            .count();
        self.at += length;
        &rest[..length]
    }

    fn escape(&mut self) -> Result<char, HeaderError> {
        let byte = self.byte()?;
        let start = self.at;
        self.at += 1;
        Ok(match byte {
            b'"' | b'\\' | b'/' => char::from(byte),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let bad = HeaderError {
                    at: start,
                    kind: HeaderErrorKind::BadEscape,
                };
                let first = self.hex4()?;
                let code = if (0xD800..0xDC00).contains(&first) {
                    for expected in *b"\\u" {
                        if self.byte()? != expected {
                            return Err(bad);
                        }
                        self.at += 1;
                    }
                    let second = self.hex4()?;
                    if !(0xDC00..0xE000).contains(&second) {
                        return Err(bad);
                    }
                    0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00)
                } else {
                    first
                };
                char::from_u32(code).ok_or(bad)?
            }
            _ => {
                return Err(HeaderError {
                    at: start,
                    kind: HeaderErrorKind::BadEscape,
                });
            }
        })
    }

    fn hex4(&mut self) -> Result<u32, HeaderError> {
        let mut code = 0;
        for _ in 0..4 {
            let digit = char::from(self.byte()?).to_digit(16);
            code = code * 16 + digit.ok_or(self.fail(HeaderErrorKind::BadEscape))?;
            self.at += 1;
        }
        Ok(code)
    }

    fn expect(&mut self, byte: u8, expected: &'static str) -> Result<(), HeaderError> {
        if self.peek()? != byte {
            return Err(self.expected(expected));
        }
        self.at += 1;
        Ok(())
    }

    fn peek(&mut self) -> Result<u8, HeaderError> {
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
        self.byte()
    }

    fn byte(&self) -> Result<u8, HeaderError> {
        self.bytes
            .get(self.at)
            .copied()
            .ok_or(self.fail(HeaderErrorKind::UnexpectedEnd))
    }

    fn expected(&self, expected: &'static str) -> HeaderError {
        self.fail(HeaderErrorKind::Expected { expected })
    }

    fn fail(&self, kind: HeaderErrorKind) -> HeaderError {
        HeaderError { at: self.at, kind }
    }
}

fn utf8(bytes: &[u8], at: usize) -> Result<&str, HeaderError> {
    std::str::from_utf8(bytes).map_err(|error| HeaderError {
        at: at + error.valid_up_to(),
        kind: HeaderErrorKind::BadUtf8,
    })
}
