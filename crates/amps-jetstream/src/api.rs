//! What a server is asked about streams, and its answers.
//!
//! <https://docs.nats.io/reference/reference-protocols/nats_api_reference>. Everything asked here is
//! answered by the stream's leader, which knows the last of it. The direct way to read messages
//! (`DIRECT.GET`) is answered by any copy, and a copy may be behind.

use std::borrow::Cow;
use std::time::Duration;

use amps_delivery::LinkEnd;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::codec::header;
use crate::verdict::ApiError;

/// Where requests go, without a domain.
pub const API: &str = "$JS.API";

/// A stream as it is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NewStream<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it takes.
    pub subjects: [&'a str; 1],
    /// Whose it is.
    pub description: &'a str,
    /// `file`.
    pub storage: &'static str,
    /// How many servers hold it.
    pub num_replicas: u32,
    /// `old` when it is full; here nothing limits it.
    pub discard: &'static str,
}

/// What is asked.
#[derive(Clone, Debug)]
pub enum Ask<'a> {
    /// Which streams take this subject.
    Names(&'a str),
    /// How this stream is set up and what it holds.
    Info(&'a str),
    /// Make a stream.
    Create(NewStream<'a>),
    /// The message in this place of a stream.
    Get(&'a str, u64),
    /// Make something that reads messages of this subject in a stream, from this place on. It
    /// acknowledges nothing, and the server forgets it when nobody has read for a minute.
    Consume(&'a str, &'a str, u64),
    /// So many messages of a stream, by what reads it, as soon as there are some in that time.
    Next(&'a str, &'a str, u32, Duration),
}

impl Ask<'_> {
    /// Where it goes, and what it says.
    pub fn request(&self, api: &str) -> (String, Vec<u8>) {
        let (operation, body) = match self {
            Ask::Names(subject) => (
                "STREAM.NAMES".to_owned(),
                serde_json::json!({ "subject": subject }).to_string(),
            ),
            Ask::Info(stream) => (format!("STREAM.INFO.{stream}"), String::new()),
            Ask::Create(new) => (
                format!("STREAM.CREATE.{}", new.name),
                serde_json::json!(new).to_string(),
            ),
            Ask::Get(stream, place) => (
                format!("STREAM.MSG.GET.{stream}"),
                serde_json::json!({ "seq": place }).to_string(),
            ),
            Ask::Consume(stream, subject, from) => (
                format!("CONSUMER.CREATE.{stream}"),
                serde_json::json!({
                    "stream_name": stream,
                    "config": {
                        "deliver_policy": "by_start_sequence",
                        "opt_start_seq": from,
                        "ack_policy": "none",
                        "filter_subject": subject,
                        "inactive_threshold": 60_000_000_000_u64,
                    },
                })
                .to_string(),
            ),
            Ask::Next(stream, consumer, batch, wait) => (
                format!("CONSUMER.MSG.NEXT.{stream}.{consumer}"),
                serde_json::json!({ "batch": batch, "expires": wait.as_nanos() as u64 })
                    .to_string(),
            ),
        };
        (format!("{api}.{operation}"), body.into_bytes())
    }
}

/// Whether a stream can be so called: the name is a part of subjects.
pub fn is_stream_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_graphic() && !b".*>/\\".contains(&byte);
    !name.is_empty() && name.len() <= 255 && name.bytes().all(plain)
}

pub(crate) fn check_name(name: &str) -> Result<(), LinkEnd> {
    match is_stream_name(name) {
        true => Ok(()),
        false => Err(LinkEnd::Unusable(format!(
            "no stream can be called {name:?}"
        ))),
    }
}

/// An answer that could not be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AnswerError {
    /// The server says that something is wrong.
    #[error("{}", .0.words())]
    Refused(ApiError),
    /// It is not what was asked for.
    #[error("an answer that makes no sense: {0}")]
    Malformed(String),
}

impl AnswerError {
    /// The code of the error, if the server sent one.
    pub fn code(&self) -> Option<u32> {
        match self {
            AnswerError::Refused(error) => Some(error.err_code),
            AnswerError::Malformed(_) => None,
        }
    }
}

/// There is no such message.
pub const NO_MESSAGE: u32 = 10_037;

/// There is no such stream.
pub const NO_STREAM: u32 = 10_059;

/// There is a stream of that name, and it is another one.
pub const NAME_IN_USE: u32 = 10_058;

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, AnswerError> {
    #[derive(Deserialize)]
    struct Failed {
        error: Option<ApiError>,
    }
    let malformed = |error: serde_json::Error| AnswerError::Malformed(error.to_string());
    let failed: Failed = serde_json::from_slice(body).map_err(malformed)?;
    match failed.error {
        Some(error) => Err(AnswerError::Refused(error)),
        None => serde_json::from_slice(body).map_err(malformed),
    }
}

/// The streams that take a subject: none or one, since no two take the same.
///
/// # Errors
/// The answer cannot be used.
pub fn names(body: &[u8]) -> Result<Vec<String>, AnswerError> {
    #[derive(Deserialize)]
    struct Names {
        streams: Option<Vec<String>>,
    }
    let names: Names = parse(body)?;
    Ok(names.streams.unwrap_or_default())
}

/// How a stream is set up and what it holds.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct StreamInfo {
    /// How it is set up.
    pub config: StreamConfig,
    /// What it holds.
    pub state: StreamState,
    /// When it was made: another time, another stream.
    #[serde(default)]
    pub created: String,
    /// The domain of the server that answered.
    pub domain: Option<String>,
}

/// How a stream is set up, as far as a publisher has to know.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct StreamConfig {
    /// Its name.
    pub name: String,
    /// What it is for, in the words of who made it.
    #[serde(default)]
    pub description: String,
    /// `file` or `memory`.
    #[serde(default)]
    pub storage: String,
    /// How many servers hold it.
    #[serde(default)]
    pub num_replicas: u32,
    /// The largest message, headers included; none: -1.
    #[serde(default)]
    pub max_msg_size: i64,
    /// It never acks.
    #[serde(default)]
    pub no_ack: bool,
    /// It takes no more.
    #[serde(default)]
    pub sealed: bool,
    /// It copies another stream and takes nothing else.
    pub mirror: Option<serde::de::IgnoredAny>,
    /// Messages may have a lifetime of their own.
    #[serde(default)]
    pub allow_msg_ttl: bool,
}

/// What a stream holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct StreamState {
    /// How many messages.
    #[serde(default)]
    pub messages: u64,
    /// The place of the first, or of the next if it holds none.
    #[serde(default)]
    pub first_seq: u64,
    /// The place of the last that it ever stored.
    #[serde(default)]
    pub last_seq: u64,
}

/// How a stream is set up and what it holds: the answer to [`Ask::Info`] and [`Ask::Create`].
///
/// # Errors
/// The answer cannot be used.
pub fn info(body: &[u8]) -> Result<StreamInfo, AnswerError> {
    parse(body)
}

/// A stored message, as far as it is looked at: its body is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its place.
    pub place: u64,
    /// Its id, if it has one.
    pub id: Option<String>,
    /// When it was stored: microseconds since the Unix epoch; none if the server says it in a way
    /// that is not known here.
    pub stored_at: Option<u64>,
}

/// The message in a place of a stream; none: there is none.
///
/// # Errors
/// The answer cannot be used.
pub fn message(body: &[u8]) -> Result<Option<Stored>, AnswerError> {
    #[derive(Deserialize)]
    struct Got<'a> {
        #[serde(borrow)]
        message: Message<'a>,
    }
    #[derive(Deserialize)]
    struct Message<'a> {
        seq: u64,
        #[serde(borrow)]
        hdrs: Option<Cow<'a, str>>,
        #[serde(borrow)]
        time: Option<Cow<'a, str>>,
    }
    let message = match parse::<Got<'_>>(body) {
        Ok(got) => got.message,
        Err(error) if error.code() == Some(NO_MESSAGE) => return Ok(None),
        Err(error) => return Err(error),
    };
    let headers = match &message.hdrs {
        None => Vec::new(),
        Some(hdrs) => STANDARD
            .decode(hdrs.as_bytes())
            .map_err(|error| AnswerError::Malformed(error.to_string()))?,
    };
    Ok(Some(Stored {
        place: message.seq,
        id: header(&headers, MSG_ID).map(str::to_owned),
        stored_at: message.time.as_deref().and_then(unix_micros),
    }))
}

/// The name of what was made to read a stream: the answer to [`Ask::Consume`].
///
/// # Errors
/// The answer cannot be used.
pub fn consumer(body: &[u8]) -> Result<String, AnswerError> {
    #[derive(Deserialize)]
    struct Consumer {
        name: String,
    }
    parse(body).map(|consumer: Consumer| consumer.name)
}

/// What the subject says that a message of [`Ask::Next`] is to be acknowledged at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The message's place in the stream.
    pub place: u64,
    /// The how manieth it is for what reads.
    pub number: u64,
}

impl Delivery {
    /// `$JS.ACK.stream.consumer.times.place.number.time.pending`; in front of the stream there may be
    /// the domain and the account.
    pub fn read(reply: &str) -> Option<Self> {
        let parts: Vec<&str> = reply.strip_prefix("$JS.ACK.")?.split('.').collect();
        let at = match parts.len() {
            7 => 3,
            9.. => 5,
            _ => return None,
        };
        let part = |at: usize| parts.get(at)?.parse().ok();
        Some(Delivery {
            place: part(at)?,
            number: part(at + 1)?,
        })
    }
}

/// The header with a message's id.
pub const MSG_ID: &str = "Nats-Msg-Id";

/// Microseconds since the Unix epoch of a time like `2026-11-30T20:09:38.357465031Z`.
fn unix_micros(text: &str) -> Option<u64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let mut date = date.split('-').map(|part| part.parse::<u64>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (clock, fraction) = time.split_once('.').unwrap_or((time, ""));
    let mut clock = clock.split(':').map(|part| part.parse::<u64>().ok());
    let (hour, minute, second) = (clock.next()??, clock.next()??, clock.next()??);
    let plain = fraction.len() <= 9 && fraction.bytes().all(|byte| byte.is_ascii_digit());
    if !(1970..=9999).contains(&year) || !(1..=12).contains(&month) || !plain {
        return None;
    }
    if !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let micros: u64 = format!("{fraction:0<6}").get(..6)?.parse().ok()?;
    // Days by the civil calendar, with years that begin in March.
    let (year, month) = match month > 2 {
        true => (year, month - 3),
        false => (year - 1, month + 9),
    };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day - 1;
    let seconds = ((days - 719_468) * 24 + hour) * 3_600 + minute * 60 + second;
    Some(seconds * 1_000_000 + micros)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn asked(ask: Ask<'_>) -> (String, String) {
        let (subject, body) = ask.request(API);
        (subject, String::from_utf8(body).unwrap())
    }

    #[test]
    fn questions_have_these_bytes() {
        for (ask, subject, body) in [
            (
                Ask::Names("a.b"),
                "$JS.API.STREAM.NAMES",
                r#"{"subject":"a.b"}"#,
            ),
            (Ask::Info("S"), "$JS.API.STREAM.INFO.S", ""),
            (Ask::Get("S", 7), "$JS.API.STREAM.MSG.GET.S", r#"{"seq":7}"#),
            (
                Ask::Next("S", "C", 7, Duration::from_millis(1)),
                "$JS.API.CONSUMER.MSG.NEXT.S.C",
                r#"{"batch":7,"expires":1000000}"#,
            ),
        ] {
            assert_eq!(asked(ask), (subject.to_owned(), body.to_owned()));
        }
        let new = NewStream {
            name: "S",
            subjects: ["a"],
            description: "of \"me\"",
            storage: "file",
            num_replicas: 3,
            discard: "old",
        };
        let (subject, body) = asked(Ask::Create(new));
        assert_eq!(subject, "$JS.API.STREAM.CREATE.S");
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(
            body,
            serde_json::json!({
                "name": "S", "subjects": ["a"], "description": "of \"me\"", "storage": "file",
                "num_replicas": 3, "discard": "old",
            })
        );
    }

    #[test]
    fn a_message_that_is_read_says_where_it_is() {
        let read = |reply| Delivery::read(reply).map(|one| (one.place, one.number));
        let short = "$JS.ACK.S.C.1.7.3.1700000000000000000.0";
        assert_eq!(read(short), Some((7, 3)));
        let long = "$JS.ACK.hub.A1.S.C.1.7.3.1700000000000000000.0.xyz";
        assert_eq!(read(long), Some((7, 3)));
        for none in [
            "",
            "a",
            "$JS.ACK.S.C.1.x.3.4.0",
            "$JS.ACK.S.C.1.7.3.4",
            "$JS.ACK.",
        ] {
            assert_eq!(read(none), None, "{none}");
        }
    }

    /// As 2.9.10 and 2.14.0 answer.
    #[test]
    fn answers_of_both_servers_are_understood() {
        let none = br#"{"type":"io.nats.jetstream.api.v1.stream_names_response","total":0,"offset":0,"limit":1024,"streams":null}"#;
        assert_eq!(names(none), Ok(vec![]));
        let one = br#"{"total":1,"offset":0,"limit":1024,"streams":["A"]}"#;
        assert_eq!(names(one), Ok(vec!["A".to_owned()]));

        let told = br#"{"type":"io.nats.jetstream.api.v1.stream_info_response","config":{"name":"A","description":"d","subjects":["a"],"retention":"limits","max_msg_size":-1,"discard":"old","storage":"file","num_replicas":3,"duplicate_window":120000000000,"sealed":false,"allow_msg_ttl":true,"metadata":{"_nats.level":"4"}},"created":"2026-11-30T20:09:38.424007777Z","state":{"messages":2,"bytes":0,"first_seq":6,"first_ts":"0001-01-01T00:00:00Z","last_seq":7,"consumer_count":0},"domain":"hub","cluster":{"leader":"n1"}}"#;
        let told = info(told).unwrap();
        let config = StreamConfig {
            name: "A".to_owned(),
            description: "d".to_owned(),
            storage: "file".to_owned(),
            num_replicas: 3,
            max_msg_size: -1,
            allow_msg_ttl: true,
            ..StreamConfig::default()
        };
        let state = StreamState {
            messages: 2,
            first_seq: 6,
            last_seq: 7,
        };
        let expected = StreamInfo {
            config,
            state,
            created: "2026-11-30T20:09:38.424007777Z".to_owned(),
            domain: Some("hub".to_owned()),
        };
        assert_eq!(told, expected);
        let odd = br#"{"config":{"name":"A","no_ack":true,"sealed":true,"mirror":{"name":"B"}},"state":{}}"#;
        let odd = info(odd).unwrap().config;
        assert!(odd.no_ack && odd.sealed && odd.mirror.is_some());

        let got = br#"{"type":"io.nats.jetstream.api.v1.stream_msg_get_response","message":{"subject":"b","seq":1,"hdrs":"TkFUUy8xLjANCk5hdHMtTXNnLUlkOiA5DQoNCg==","data":"eA==","time":"2026-11-30T20:09:38.357465031Z"}}"#;
        let stored = Stored {
            place: 1,
            id: Some("9".to_owned()),
            stored_at: Some(1_796_069_378_357_465),
        };
        assert_eq!(message(got), Ok(Some(stored)));
        let bare = br#"{"message":{"subject":"b","seq":2,"data":"eA==","time":"?"}}"#;
        let stored = Stored {
            place: 2,
            id: None,
            stored_at: None,
        };
        assert_eq!(message(bare), Ok(Some(stored)));
        let none = br#"{"error":{"code":404,"err_code":10037,"description":"no message found"}}"#;
        assert_eq!(message(none), Ok(None));
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        let gone = br#"{"error":{"code":404,"err_code":10059,"description":"stream not found"},"total":0}"#;
        let error = info(gone).unwrap_err();
        assert_eq!(error.code(), Some(NO_STREAM));
        assert_eq!(error.to_string(), "stream not found (10059)");
        for body in [&b""[..], b"[]", b"{}", b"{\"config\":7}", b"\xff"] {
            assert!(matches!(info(body), Err(AnswerError::Malformed(_))));
            assert!(matches!(message(body), Err(AnswerError::Malformed(_))));
        }
        let bad = br#"{"message":{"seq":1,"hdrs":"!"}}"#;
        assert!(matches!(message(bad), Err(AnswerError::Malformed(_))));
        assert!(names(b"{\"streams\":7}").is_err());
    }

    #[test]
    fn names_of_streams_are_parts_of_subjects() {
        for good in ["ORDERS", "a-b_c", "x"] {
            assert!(is_stream_name(good), "{good}");
        }
        let long = "x".repeat(256);
        for bad in [
            "", "a.b", "a b", "a*", ">", "a/b", "a\\b", "a\r\n", "é", &long,
        ] {
            assert!(!is_stream_name(bad), "{bad}");
        }
    }

    #[test]
    fn times_are_read() {
        for (text, micros) in [
            ("1970-01-01T00:00:00Z", Some(0)),
            ("1970-01-01T00:00:00.000001Z", Some(1)),
            ("2000-02-29T12:34:56.5Z", Some(951_827_696_500_000)),
            (
                "2026-11-30T20:09:38.357465031Z",
                Some(1_796_069_378_357_465),
            ),
            ("0001-01-01T00:00:00Z", None),
            ("2026-13-01T00:00:00Z", None),
            ("2026-11-30T20:09:38", None),
            ("2026-11-30T24:09:38Z", None),
            ("2026-11-30T20:09:38.x9Z", None),
            ("yesterday", None),
            ("", None),
        ] {
            assert_eq!(unix_micros(text), micros, "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_does_harm(body in ".{0,60}") {
            let _ = (info(body.as_bytes()), names(body.as_bytes()), message(body.as_bytes()));
            let _ = unix_micros(&body);
        }
    }
}
