//! The NATS client protocol, as much of it as a publisher needs: bytes to frames and back.
//!
//! <https://docs.nats.io/reference/reference-protocols/nats-protocol>. What a server sends is
//! bounded here, whatever it says of itself: a line by [`MAX_LINE`], what follows it by the limit
//! that the decoder is given.

use std::io::Write as _;

/// The longest control line that is read. What a server says of itself grows with the addresses
/// in its cluster; no other line is nearly as long.
pub const MAX_LINE: usize = 64 * 1024;

/// How much room there is for one read, at least.
const READ: usize = 64 * 1024;

/// A frame from a server, in the buffer of its decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// What the server says of itself: JSON.
    Info(&'a [u8]),
    /// A message.
    Msg(Msg<'a>),
    /// It wants a [`PONG`].
    Ping,
    /// It got our [`PING`], and everything in front of it.
    Pong,
    /// It took a line; only servers that were asked to be verbose say so.
    Ok,
    /// Something is wrong, in its words.
    Err(&'a str),
}

/// A message from a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msg<'a> {
    /// Where it was sent to.
    pub subject: &'a str,
    /// Where it is to be answered.
    pub reply: Option<&'a str>,
    /// Its headers, from `NATS/1.0` to the empty line; empty: none.
    pub headers: &'a [u8],
    /// The rest.
    pub payload: &'a [u8],
}

impl Msg<'_> {
    /// The status in the first line of the headers, which tells what a server says by itself: 503 is
    /// that nobody listens.
    pub fn status(&self) -> Option<u16> {
        let line = self.headers.split(|byte| *byte == b'\r').next()?;
        let text = std::str::from_utf8(line).ok()?.strip_prefix("NATS/1.0")?;
        text.split_ascii_whitespace().next()?.parse().ok()
    }

    /// That line, in words.
    pub fn status_line(&self) -> String {
        let line = self.headers.split(|byte| *byte == b'\r').next();
        let line = String::from_utf8_lossy(line.unwrap_or_default());
        let words = line.strip_prefix("NATS/1.0").unwrap_or(&line);
        words.trim().to_owned()
    }
}

/// The value of the first header that is so called, if it is text.
pub fn header<'a>(headers: &'a [u8], name: &str) -> Option<&'a str> {
    let text = std::str::from_utf8(headers).ok()?;
    text.split("\r\n").skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key == name).then_some(value.trim())
    })
}

/// Bytes that are not of this protocol, or more than this side takes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CodecError {
    /// A line has no end.
    #[error("a line longer than {MAX_LINE} bytes")]
    LongLine,
    /// A line that no server sends to its clients.
    #[error("a line that begins with {0:?}")]
    UnknownLine(String),
    /// A line whose parts make no sense.
    #[error("a malformed {0} line")]
    Malformed(&'static str),
    /// A message is larger than what is taken.
    #[error("a message of {0} bytes, where at most {1} are taken")]
    TooLarge(usize, usize),
    /// A message does not end where its line says.
    #[error("a message does not end where its length says")]
    NoEnd,
}

/// Cuts a stream of bytes into frames, however it was chunked.
#[derive(Debug)]
pub struct Decoder {
    bytes: Vec<u8>,
    /// From here to there there is something to read.
    from: usize,
    to: usize,
    /// So much was looked through for the end of a line, in vain.
    scanned: usize,
    largest: usize,
}

impl Decoder {
    /// A decoder that takes messages of so many bytes, headers included.
    pub fn new(largest: usize) -> Self {
        Decoder {
            bytes: Vec::new(),
            from: 0,
            to: 0,
            scanned: 0,
            largest,
        }
    }

    /// Takes messages of so many bytes from now on.
    pub fn set_largest(&mut self, largest: usize) {
        self.largest = largest;
    }

    /// Where bytes are to be read to; say [`filled`](Self::filled) afterwards.
    pub fn space(&mut self) -> &mut [u8] {
        if self.from > 0 && self.bytes.len() - self.to < READ {
            self.bytes.copy_within(self.from..self.to, 0);
            self.to -= self.from;
            self.from = 0;
        }
        if self.bytes.len() - self.to < READ {
            // A large message: only what came counts, not what was promised.
            let grown = (self.to + READ).max(self.bytes.len());
            self.bytes.resize(grown, 0);
        } else if self.to == 0 && self.bytes.len() > 16 * READ {
            self.bytes = vec![0; READ];
        }
        &mut self.bytes[self.to..]
    }

    /// So many bytes were read to [`space`](Self::space).
    pub fn filled(&mut self, count: usize) {
        self.to = (self.to + count).min(self.bytes.len());
    }

    /// Takes bytes in.
    pub fn extend(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let space = self.space();
            let count = bytes.len().min(space.len());
            space[..count].copy_from_slice(&bytes[..count]);
            self.filled(count);
            bytes = &bytes[count..];
        }
    }

    /// Whether a frame has begun and has no end yet.
    pub fn is_inside(&self) -> bool {
        self.from < self.to
    }

    /// The next frame; none: more bytes are needed.
    ///
    /// # Errors
    /// The stream is of no use any more.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, CodecError> {
        let waiting = &self.bytes[self.from..self.to];
        let Some(end) = find_newline(waiting, self.scanned) else {
            self.scanned = waiting.len();
            return match waiting.len() > MAX_LINE {
                true => Err(CodecError::LongLine),
                false => Ok(None),
            };
        };
        // A message that has begun looks for its line again when more came; that is cheap.
        self.scanned = 0;
        if end > MAX_LINE {
            return Err(CodecError::LongLine);
        }
        let line = waiting[..end]
            .strip_suffix(b"\r")
            .unwrap_or(&waiting[..end]);
        let sizes = match Sizes::of(line)? {
            None => {
                let (line_at, line_len) = (self.from, line.len());
                self.from += end + 1;
                return line_frame(&self.bytes[line_at..line_at + line_len]).map(Some);
            }
            Some(sizes) => sizes,
        };
        if sizes.total > self.largest {
            return Err(CodecError::TooLarge(sizes.total, self.largest));
        }
        let (body, all) = (end + 1, end + 1 + sizes.total + 2);
        if waiting.len() < all {
            return Ok(None);
        }
        let at = self.from;
        self.from += all;
        let frame = &self.bytes[at..at + all];
        if &frame[all - 2..] != b"\r\n" {
            return Err(CodecError::NoEnd);
        }
        let text = |(from, to): (usize, usize)| {
            std::str::from_utf8(&frame[from..to]).map_err(|_| CodecError::Malformed("MSG"))
        };
        Ok(Some(Frame::Msg(Msg {
            subject: text(sizes.subject)?,
            reply: sizes.reply.map(text).transpose()?,
            headers: &frame[body..body + sizes.headers],
            payload: &frame[body + sizes.headers..body + sizes.total],
        })))
    }
}

fn find_newline(bytes: &[u8], from: usize) -> Option<usize> {
    let found = bytes.get(from..)?.iter().position(|byte| *byte == b'\n');
    found.map(|at| from + at)
}

/// What the line of a message says: where its subject and where to answer stand, and lengths.
struct Sizes {
    subject: (usize, usize),
    reply: Option<(usize, usize)>,
    headers: usize,
    total: usize,
}

impl Sizes {
    /// None: it is not the line of a message.
    fn of(line: &[u8]) -> Result<Option<Self>, CodecError> {
        let has_headers = match verb(line).0 {
            b"MSG" => false,
            b"HMSG" => true,
            _ => return Ok(None),
        };
        let malformed = || match has_headers {
            true => CodecError::Malformed("HMSG"),
            false => CodecError::Malformed("MSG"),
        };
        let blank = |byte: &u8| *byte == b' ' || *byte == b'\t';
        let (mut parts, mut at) = (Vec::with_capacity(6), 0);
        for part in line.split(blank) {
            if !part.is_empty() {
                parts.push((at, at + part.len()));
            }
            at += part.len() + 1;
        }
        let lengths = 1 + usize::from(has_headers);
        // The verb, subject, id of the subscription, perhaps where to answer, lengths.
        let has_reply = match parts.len().checked_sub(3 + lengths) {
            Some(0) => false,
            Some(1) => true,
            _ => return Err(malformed()),
        };
        let length = |behind: usize| {
            let (from, to) = parts[parts.len() - 1 - behind];
            number(&line[from..to]).ok_or_else(malformed)
        };
        let total = length(0)?;
        let headers = if has_headers { length(1)? } else { 0 };
        if headers > total {
            return Err(malformed());
        }
        Ok(Some(Sizes {
            subject: parts[1],
            reply: has_reply.then(|| parts[3]),
            headers,
            total,
        }))
    }
}

/// The first word, and what follows the blanks behind it.
fn verb(line: &[u8]) -> (&[u8], &[u8]) {
    let blank = |byte: &u8| *byte == b' ' || *byte == b'\t';
    let end = line.iter().position(blank).unwrap_or(line.len());
    let rest = &line[end..];
    let at = rest.iter().position(|byte| !blank(byte));
    (&line[..end], &rest[at.unwrap_or(rest.len())..])
}

/// A length, in digits and nothing else.
fn number(digits: &[u8]) -> Option<usize> {
    let plain = !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(digits).ok().filter(|_| plain)?;
    text.parse().ok()
}

fn line_frame(line: &[u8]) -> Result<Frame<'_>, CodecError> {
    let (verb, rest) = verb(line);
    if verb.eq_ignore_ascii_case(b"INFO") {
        return Ok(Frame::Info(rest));
    }
    if verb.eq_ignore_ascii_case(b"PING") {
        return Ok(Frame::Ping);
    }
    if verb.eq_ignore_ascii_case(b"PONG") {
        return Ok(Frame::Pong);
    }
    if verb.eq_ignore_ascii_case(b"+OK") {
        return Ok(Frame::Ok);
    }
    if verb.eq_ignore_ascii_case(b"-ERR") {
        let text = std::str::from_utf8(rest).map_err(|_| CodecError::Malformed("-ERR"))?;
        return Ok(Frame::Err(text.trim_matches('\'')));
    }
    let begin = &verb[..verb.len().min(16)];
    let begin = String::from_utf8_lossy(begin).into_owned();
    Err(CodecError::UnknownLine(begin))
}

/// Asks a server for a [`PONG`].
pub const PING: &[u8] = b"PING\r\n";

/// Answers a server's [`PING`].
pub const PONG: &[u8] = b"PONG\r\n";

/// Subscribes to a subject, under an id.
pub fn sub(out: &mut Vec<u8>, subject: &str, id: u32) {
    for part in ["SUB ", subject, " "] {
        out.extend_from_slice(part.as_bytes());
    }
    decimal(out, id.into());
    out.extend_from_slice(b"\r\n");
}

/// A message without headers, and where to answer it.
pub fn publish(out: &mut Vec<u8>, subject: &str, reply: &str, payload: &[u8]) {
    for part in ["PUB ", subject, " ", reply, " "] {
        out.extend_from_slice(part.as_bytes());
    }
    decimal(out, payload.len() as u64);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
}

/// A message with headers: from `NATS/1.0` to the empty line. No subject, reply or header may hold
/// a line's end; who makes them sees to that.
pub fn publish_with_headers(
    out: &mut Vec<u8>,
    subject: &str,
    reply: &[u8],
    headers: &[u8],
    payload: &[u8],
) {
    out.reserve(subject.len() + reply.len() + headers.len() + payload.len() + 64);
    for part in [b"HPUB ", subject.as_bytes(), b" ", reply, b" "] {
        out.extend_from_slice(part);
    }
    decimal(out, headers.len() as u64);
    out.push(b' ');
    decimal(out, (headers.len() + payload.len()) as u64);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(headers);
    out.extend_from_slice(payload);
    out.extend_from_slice(b"\r\n");
}

/// A number in digits.
pub(crate) fn decimal(out: &mut Vec<u8>, number: u64) {
    // Writing to memory does not fail.
    let _ = write!(out, "{number}");
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A frame that borrows nothing.
    fn owned(frame: Frame<'_>) -> String {
        match frame {
            Frame::Info(json) => format!("info {}", String::from_utf8_lossy(json)),
            Frame::Msg(msg) => format!(
                "msg {} {:?} {:?} {:?}",
                msg.subject,
                msg.reply.unwrap_or_default(),
                String::from_utf8_lossy(msg.headers),
                String::from_utf8_lossy(msg.payload)
            ),
            Frame::Err(text) => format!("err {text}"),
            other => format!("{other:?}"),
        }
    }

    fn all(decoder: &mut Decoder) -> Result<Vec<String>, CodecError> {
        let mut found = Vec::new();
        while let Some(frame) = decoder.next_frame()? {
            found.push(owned(frame));
        }
        Ok(found)
    }

    fn decode(bytes: &[u8]) -> Result<Vec<String>, CodecError> {
        let mut decoder = Decoder::new(1 << 20);
        decoder.extend(bytes);
        all(&mut decoder)
    }

    const SERVER: &[u8] = b"INFO {\"server_id\":\"N\",\"max_payload\":1048576}\r\n\
        PONG\r\nping\r\n+OK\r\n\
        MSG _INBOX.a.7 1 26\r\n{\"stream\": \"S\", \"seq\": 11}\r\n\
        MSG _INBOX.a.8 1 reply.to 0\r\n\r\n\
        HMSG _INBOX.a.9 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n\
        HMSG  x\t1  y 12 17\r\nNATS/1.0\r\n\r\na\r\nb \r\n\
        -ERR 'Authorization Violation'\r\n";

    const FRAMES: [&str; 9] = [
        "info {\"server_id\":\"N\",\"max_payload\":1048576}",
        "Pong",
        "Ping",
        "Ok",
        "msg _INBOX.a.7 \"\" \"\" \"{\\\"stream\\\": \\\"S\\\", \\\"seq\\\": 11}\"",
        "msg _INBOX.a.8 \"reply.to\" \"\" \"\"",
        "msg _INBOX.a.9 \"\" \"NATS/1.0 503\\r\\n\\r\\n\" \"\"",
        "msg x \"y\" \"NATS/1.0\\r\\n\\r\\n\" \"a\\r\\nb \"",
        "err Authorization Violation",
    ];

    #[test]
    fn what_a_server_sends_is_cut_into_frames() {
        assert_eq!(decode(SERVER).unwrap(), FRAMES);
    }

    proptest! {
        #[test]
        fn chunking_changes_nothing(cuts in prop::collection::vec(1..40_usize, 0..200)) {
            let mut decoder = Decoder::new(1 << 20);
            let (mut rest, mut found) = (SERVER, Vec::new());
            for cut in cuts {
                let (chunk, behind) = rest.split_at(cut.min(rest.len()));
                decoder.extend(chunk);
                found.extend(all(&mut decoder).unwrap());
                rest = behind;
            }
            decoder.extend(rest);
            found.extend(all(&mut decoder).unwrap());
            prop_assert_eq!(found, FRAMES);
            prop_assert!(!decoder.is_inside());
        }

        #[test]
        fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..400), at in 0..300_usize) {
            // Bytes of any kind, and good ones with some of them changed.
            let _ = decode(&bytes);
            let mut changed = SERVER.to_vec();
            for (to, from) in changed.iter_mut().skip(at).zip(bytes) {
                *to = from;
            }
            let _ = decode(&changed);
        }
    }

    #[test]
    fn every_byte_may_come_alone() {
        let mut decoder = Decoder::new(1 << 20);
        let mut found = Vec::new();
        for byte in SERVER {
            decoder.extend(&[*byte]);
            found.extend(all(&mut decoder).unwrap());
        }
        assert_eq!(found, FRAMES);
    }

    #[test]
    fn a_server_cannot_make_this_side_keep_more_than_it_takes() {
        let endless = vec![b'x'; MAX_LINE + 1];
        assert_eq!(decode(&endless), Err(CodecError::LongLine));
        let mut ended = endless.clone();
        ended.push(b'\n');
        assert_eq!(decode(&ended), Err(CodecError::LongLine));
        let too_large = CodecError::TooLarge(1 << 20 | 1, 1 << 20);
        assert_eq!(decode(b"MSG a 1 1048577\r\n"), Err(too_large));
        // What is promised takes no room before it comes.
        let mut decoder = Decoder::new(1 << 40);
        decoder.extend(b"MSG a 1 1099511627776\r\nabc");
        assert_eq!(decoder.next_frame(), Ok(None));
        assert!(decoder.bytes.len() <= 2 * READ, "{}", decoder.bytes.len());
    }

    #[test]
    fn room_of_a_large_message_is_given_back() {
        let mut decoder = Decoder::new(1 << 30);
        let size = 64 * READ;
        decoder.extend(format!("MSG a 1 {size}\r\n").as_bytes());
        decoder.extend(&vec![b'x'; size]);
        decoder.extend(b"\r\nPING\r\n");
        assert_eq!(all(&mut decoder).unwrap().len(), 2);
        let _ = decoder.space();
        assert!(decoder.bytes.len() <= 2 * READ, "{}", decoder.bytes.len());
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        for (bytes, error) in [
            (&b"HELO\r\n"[..], CodecError::UnknownLine("HELO".into())),
            (b"\r\n", CodecError::UnknownLine(String::new())),
            (b"MSG a 1\r\n", CodecError::Malformed("MSG")),
            (b"MSG a 1 b 2 3\r\n", CodecError::Malformed("MSG")),
            (b"MSG a 1 -2\r\n", CodecError::Malformed("MSG")),
            (
                b"MSG a 1 99999999999999999999\r\n",
                CodecError::Malformed("MSG"),
            ),
            (b"HMSG a 1 5\r\n", CodecError::Malformed("HMSG")),
            (b"HMSG a 1 6 5\r\n", CodecError::Malformed("HMSG")),
            (b"MSG a 1 2\r\nxyz\r\n", CodecError::NoEnd),
            (b"-ERR \xff\r\n", CodecError::Malformed("-ERR")),
        ] {
            assert_eq!(decode(bytes), Err(error), "{bytes:?}");
        }
    }

    #[test]
    fn what_is_sent_has_these_bytes() {
        let mut out = Vec::new();
        sub(&mut out, "_INBOX.a.>", 1);
        publish(&mut out, "$JS.API.STREAM.NAMES", "_INBOX.a.q1", b"{}");
        let headers = b"NATS/1.0\r\nNats-Msg-Id: a:b:1:2\r\n\r\n";
        publish_with_headers(&mut out, "orders", b"_INBOX.a.0", headers, b"a\r\nb");
        out.extend_from_slice(PING);
        out.extend_from_slice(PONG);
        let expected = "SUB _INBOX.a.> 1\r\n\
            PUB $JS.API.STREAM.NAMES _INBOX.a.q1 2\r\n{}\r\n\
            HPUB orders _INBOX.a.0 34 38\r\nNATS/1.0\r\nNats-Msg-Id: a:b:1:2\r\n\r\na\r\nb\r\n\
            PING\r\nPONG\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn headers_and_status_are_found() {
        let headers = b"NATS/1.0 503 No Responders\r\nNats-Msg-Id: a:b\r\nX:y\r\n\r\n";
        let msg = |headers| Msg {
            subject: "s",
            reply: None,
            headers,
            payload: b"",
        };
        assert_eq!(msg(headers).status(), Some(503));
        assert_eq!(msg(headers).status_line(), "503 No Responders");
        assert_eq!(msg(&headers[..0]).status(), None);
        assert_eq!(msg(&b"NATS/1.0\r\n\r\n"[..]).status(), None);
        assert_eq!(header(headers, "Nats-Msg-Id"), Some("a:b"));
        assert_eq!(header(headers, "X"), Some("y"));
        assert_eq!(header(headers, "nats-msg-id"), None, "names have cases");
        assert_eq!(header(b"NATS/1.0\r\nA: \xff\r\n\r\n", "A"), None);
    }
}
