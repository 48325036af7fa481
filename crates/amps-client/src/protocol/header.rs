//! Headers: one flat JSON-like object at the start of a frame (`docs/protocol.md` §2).

use std::borrow::Cow;

use super::Reason;
use super::ack::{AckKind, AckKinds, Status};
use super::reader::{HeaderError, HeaderErrorKind, Reader, Value};

/// The longest header accepted unless told otherwise: 1 MiB, room for the longest filter
/// or list of keys anyone sends, far below what could hurt.
pub const DEFAULT_MAX_HEADER: usize = 1024 * 1024;

/// The command a frame carries (`docs/protocol.md` §2.2).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verb<'a> {
    /// `p` or `publish`: a publish, or a delivered message.
    Publish,
    /// `delta_publish`.
    DeltaPublish,
    /// `sow_delete`, also the acknowledgement of a queue message.
    SowDelete,
    /// `logon`.
    Logon,
    /// `flush`.
    Flush,
    /// `heartbeat`.
    Heartbeat,
    /// `subscribe`.
    Subscribe,
    /// `delta_subscribe`.
    DeltaSubscribe,
    /// `unsubscribe`.
    Unsubscribe,
    /// `sow`: a query, or a frame of records that answers one.
    Sow,
    /// `sow_and_subscribe`.
    SowAndSubscribe,
    /// `sow_and_delta_subscribe`.
    SowAndDeltaSubscribe,
    /// `ack`.
    Ack,
    /// `oof`.
    Oof,
    /// `group_begin`.
    GroupBegin,
    /// `group_end`.
    GroupEnd,
    /// Anything else.
    Other(Cow<'a, str>),
}

impl<'a> Verb<'a> {
    fn from_wire(word: Cow<'a, str>) -> Self {
        match &*word {
            "p" | "publish" => Verb::Publish,
            "ack" => Verb::Ack,
            "delta_publish" => Verb::DeltaPublish,
            "sow_delete" => Verb::SowDelete,
            "logon" => Verb::Logon,
            "flush" => Verb::Flush,
            "heartbeat" => Verb::Heartbeat,
            "subscribe" => Verb::Subscribe,
            "delta_subscribe" => Verb::DeltaSubscribe,
            "unsubscribe" => Verb::Unsubscribe,
            "sow" => Verb::Sow,
            "sow_and_subscribe" => Verb::SowAndSubscribe,
            "sow_and_delta_subscribe" => Verb::SowAndDeltaSubscribe,
            "oof" => Verb::Oof,
            "group_begin" => Verb::GroupBegin,
            "group_end" => Verb::GroupEnd,
            _ => Verb::Other(word),
        }
    }

    /// The command as servers write it.
    pub fn as_str(&self) -> &str {
        match self {
            Verb::Publish => "p",
            Verb::Ack => "ack",
            Verb::DeltaPublish => "delta_publish",
            Verb::SowDelete => "sow_delete",
            Verb::Logon => "logon",
            Verb::Flush => "flush",
            Verb::Heartbeat => "heartbeat",
            Verb::Subscribe => "subscribe",
            Verb::DeltaSubscribe => "delta_subscribe",
            Verb::Unsubscribe => "unsubscribe",
            Verb::Sow => "sow",
            Verb::SowAndSubscribe => "sow_and_subscribe",
            Verb::SowAndDeltaSubscribe => "sow_and_delta_subscribe",
            Verb::Oof => "oof",
            Verb::GroupBegin => "group_begin",
            Verb::GroupEnd => "group_end",
            Verb::Other(word) => word,
        }
    }
}

/// A header, read from the start of a frame. Fields are named by their long names, as in
/// `docs/protocol.md` §2.1; strings borrow from the frame unless they held an escape.
///
/// Both spellings of every key are read, unknown keys are ignored, and of a key that
/// comes twice the last counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header<'a> {
    /// Bytes the header takes in the frame; the body starts there.
    pub length: usize,
    /// `c`: the command. Absent in the record headers of a `sow` frame.
    pub verb: Option<Verb<'a>>,
    /// `cid`: the command's id, echoed in its acks, absent from conflated ones.
    pub command_id: Option<Cow<'a, str>>,
    /// `t`: the topic.
    pub topic: Option<Cow<'a, str>>,
    /// `a`: the acks asked for; in an ack, its one kind.
    pub acks: AckKinds,
    /// `s`: the sequence on the wire.
    pub sequence: Option<u64>,
    /// `e`: lifetime of the record, in seconds.
    pub expiration: Option<u64>,
    /// `k`: the SOW key.
    pub sow_key: Option<Cow<'a, str>>,
    /// `x`: correlation id.
    pub correlation_id: Option<Cow<'a, str>>,
    /// `o`: options, a comma list.
    pub options: Option<Cow<'a, str>>,
    /// `f`: content filter.
    pub filter: Option<Cow<'a, str>>,
    /// `bm`: bookmark.
    pub bookmark: Option<Cow<'a, str>>,
    /// `bs`: records per `sow` frame.
    pub batch_size: Option<u64>,
    /// `lp`: when the lease of a queue message ends.
    pub lease_period: Option<Cow<'a, str>>,
    /// `l`: bytes of a record's body in a `sow` frame.
    pub message_length: Option<u64>,
    /// `ts`: time of the message.
    pub timestamp: Option<Cow<'a, str>>,
    /// `version`: version of the client or the server.
    pub version: Option<Cow<'a, str>>,
    /// `pw`: password, or the challenge to answer.
    pub password: Option<Cow<'a, str>>,
    /// `user_id`.
    pub user_id: Option<Cow<'a, str>>,
    /// `client_name`.
    pub client_name: Option<Cow<'a, str>>,
    /// `mt`: message type of the connection.
    pub message_type: Option<Cow<'a, str>>,
    /// `status` of an ack.
    pub status: Option<Status>,
    /// `reason` of an ack or an `oof`; see [`Header::reason`].
    pub reason_text: Option<Cow<'a, str>>,
    /// `sub_id`.
    pub sub_id: Option<Cow<'a, str>>,
    /// `sids`: the subscriptions a delivered message matched.
    pub sub_ids: Option<Cow<'a, str>>,
    /// `query_id`.
    pub query_id: Option<Cow<'a, str>>,
    /// `sow_keys`: keys to delete.
    pub sow_keys: Option<Cow<'a, str>>,
    /// `orderby`.
    pub order_by: Option<Cow<'a, str>>,
    /// `top_n`.
    pub top_n: Option<u64>,
    /// `matches` of a `stats` ack.
    pub matches: Option<u64>,
    /// `topic_matches` of a `stats` or `completed` ack.
    pub topic_matches: Option<u64>,
    /// `records_inserted` of a `stats` ack.
    pub records_inserted: Option<u64>,
    /// `records_updated` of a `stats` ack.
    pub records_updated: Option<u64>,
    /// `records_deleted` of a `stats` ack.
    pub records_deleted: Option<u64>,
    /// `records_returned` of a `stats` or `completed` ack.
    pub records_returned: Option<u64>,
    /// `gseq`: number of the group in a SOW answer.
    pub group_sequence: Option<u64>,
    /// `uri` of a redirect, which no documentation describes (`docs/protocol.md` §5.5).
    pub uri: Option<Cow<'a, str>>,
    /// The key of the last field that could not be read; only from [`Header::salvage`]. A
    /// number like that is absent, and a text is one that names nothing.
    pub unreadable: Option<String>,
}

impl<'a> Header<'a> {
    /// Reads the header at the start of `frame` and returns it with the body, which is
    /// everything behind the closing brace.
    ///
    /// # Errors
    /// The bytes are not a flat object, or the header is longer than [`DEFAULT_MAX_HEADER`].
    pub fn parse(frame: &'a [u8]) -> Result<(Header<'a>, &'a [u8]), HeaderError> {
        Header::parse_with_limit(frame, DEFAULT_MAX_HEADER)
    }

    /// As [`Header::parse`] with another cap on the header, in bytes.
    ///
    /// # Errors
    /// As [`Header::parse`].
    pub fn parse_with_limit(
        frame: &'a [u8],
        max: usize,
    ) -> Result<(Header<'a>, &'a [u8]), HeaderError> {
        let bounded = &frame[..frame.len().min(max)];
        let mut header = Header::default();
        let mut reader = Reader::new(bounded);
        let length = reader.object(|key, value| header.set(key, value).map(drop));
        header.length = length.map_err(|error| match error.kind {
            HeaderErrorKind::UnexpectedEnd if bounded.len() < frame.len() => HeaderError {
                at: max,
                kind: HeaderErrorKind::TooLong { max },
            },
            _ => error,
        })?;
        let body = &frame[header.length..];
        Ok((header, body))
    }

    /// As [`Header::parse`], for what a server sends: one odd field must not cost what the
    /// others say. An ended link would be answered at the next logon with a figure that covers
    /// what an ack on it refused, and a server that means its odd field sends it again.
    ///
    /// Of an ack everything is read that can be, however long its header is: a text that is not
    /// UTF-8, has an escape that means nothing or many of them is kept as far as it goes. Of
    /// other frames only a number may be unreadable: half a topic or bookmark helps nobody.
    /// A sequence above 2⁶⁴ is read as 2⁶⁴ − 1, which no publisher can reach either.
    ///
    /// # Errors
    /// As [`Header::parse`].
    pub fn salvage(frame: &'a [u8]) -> Result<(Header<'a>, &'a [u8]), HeaderError> {
        let error = match Header::parse(frame) {
            Err(error) => error,
            whole => return whole,
        };
        let mut header = Header::default();
        let mut texts = true;
        let length = Reader::lenient(frame).object(|key, value| {
            let spoiled = matches!(value, Value::Spoiled(_));
            let beyond = matches!(key, "s" | "seq") && value.is_beyond();
            match header.set(key, value) {
                Err(_) if beyond => header.sequence = Some(u64::MAX),
                Ok(true) if spoiled && key == "reason" => texts = false,
                Ok(true) if spoiled => {
                    texts = false;
                    header.unreadable = Some(key.to_owned());
                }
                Err(_) => header.unreadable = Some(key.to_owned()),
                Ok(_) => {}
            }
            Ok(())
        });
        header.length = length.map_err(|_| error.clone())?;
        let is_ack = header.verb == Some(Verb::Ack);
        match is_ack || (texts && header.length <= DEFAULT_MAX_HEADER) {
            true => {
                let body = &frame[header.length..];
                Ok((header, body))
            }
            false => Err(error),
        }
    }

    /// The kind of an ack frame.
    pub fn ack_kind(&self) -> Option<AckKind> {
        self.acks.single()
    }

    /// The reason, [`Reason::none`] when the frame gives none.
    pub fn reason(&self) -> Reason {
        Reason::new(self.reason_text.as_deref().unwrap_or_default())
    }

    /// Takes in one member. `false`: nobody knows the key.
    fn set(&mut self, key: &str, value: Value<'a>) -> Result<bool, HeaderErrorKind> {
        let text = match key {
            "c" | "cmd" => {
                self.verb = value.text().map(Verb::from_wire);
                return Ok(true);
            }
            "a" | "ack_type" => {
                self.acks = value
                    .text()
                    .map_or(AckKinds::NONE, |list| AckKinds::from_wire(&list));
                return Ok(true);
            }
            "status" => {
                self.status = value.text().map(|word| Status::from_wire(&word));
                return Ok(true);
            }
            "cid" | "cmd_id" => &mut self.command_id,
            "t" | "topic" => &mut self.topic,
            "k" | "sow_key" => &mut self.sow_key,
            "x" | "correlation_id" => &mut self.correlation_id,
            "o" | "opts" => &mut self.options,
            "f" | "filter" => &mut self.filter,
            "bm" | "bookmark" => &mut self.bookmark,
            "lp" | "leaseperiod" => &mut self.lease_period,
            "ts" | "timestamp" => &mut self.timestamp,
            "v" | "version" => &mut self.version,
            "pw" | "password" => &mut self.password,
            "user_id" => &mut self.user_id,
            "client_name" => &mut self.client_name,
            "mt" | "message_type" => &mut self.message_type,
            "reason" => &mut self.reason_text,
            "sub_id" => &mut self.sub_id,
            "sids" => &mut self.sub_ids,
            "query_id" => &mut self.query_id,
            "sow_keys" => &mut self.sow_keys,
            "orderby" => &mut self.order_by,
            "uri" => &mut self.uri,
            _ => return self.set_number(key, value),
        };
        *text = value.text();
        Ok(true)
    }

    fn set_number(&mut self, key: &str, value: Value<'a>) -> Result<bool, HeaderErrorKind> {
        let number = match key {
            "s" | "seq" => &mut self.sequence,
            "e" | "expiration" => &mut self.expiration,
            "bs" | "batch_size" => &mut self.batch_size,
            "l" | "msg_len" => &mut self.message_length,
            "top_n" => &mut self.top_n,
            "matches" => &mut self.matches,
            "topic_matches" => &mut self.topic_matches,
            "records_inserted" => &mut self.records_inserted,
            "records_updated" => &mut self.records_updated,
            "records_deleted" => &mut self.records_deleted,
            "records_returned" => &mut self.records_returned,
            "gseq" => &mut self.group_sequence,
            _ => return Ok(false),
        };
        let read = value.number();
        // Of a key that comes twice the last counts, readable or not.
        *number = read.ok().flatten();
        read.map(|_| true)
    }
}

/// One record of a `sow` frame.
#[derive(Clone, PartialEq, Eq)]
pub struct SowRecord<'a> {
    /// The record's own header.
    pub header: Header<'a>,
    /// The record's body.
    pub body: &'a [u8],
}

amps_store::debug_with_excerpt!(SowRecord: SowRecord<'_>, [header], body);

/// The records of a `sow` frame: each a header that says in `l` how many bytes of body
/// follow it (`docs/protocol.md` §1, §8). Ends behind the first error.
#[derive(Clone)]
pub struct SowRecords<'a> {
    body: &'a [u8],
    at: usize,
}

amps_store::debug_with_excerpt!(SowRecords: SowRecords<'_>, [at], body);

impl<'a> SowRecords<'a> {
    /// The records in `body`, which is what [`Header::parse`] left of the frame.
    pub fn new(body: &'a [u8]) -> Self {
        SowRecords { body, at: 0 }
    }

    fn record(&mut self) -> Result<SowRecord<'a>, HeaderError> {
        let start = self.at;
        let (header, rest) = Header::salvage(&self.body[start..]).map_err(|error| HeaderError {
            at: start + error.at,
            ..error
        })?;
        let body_at = start + header.length;
        let fail = |kind| HeaderError { at: body_at, kind };
        let length = header
            .message_length
            .ok_or(fail(HeaderErrorKind::MissingLength))?;
        let body = usize::try_from(length)
            .ok()
            .and_then(|length| rest.get(..length))
            .ok_or(fail(HeaderErrorKind::RecordTooLong))?;
        self.at = body_at + body.len();
        Ok(SowRecord { header, body })
    }
}

impl<'a> Iterator for SowRecords<'a> {
    type Item = Result<SowRecord<'a>, HeaderError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.body.len() {
            return None;
        }
        let record = self.record();
        if record.is_err() {
            self.at = self.body.len();
        }
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(frame: &[u8]) -> (usize, HeaderErrorKind) {
        let error = Header::parse(frame).unwrap_err();
        (error.at, error.kind)
    }

    #[test]
    fn both_spellings_whitespace_and_order_do_not_matter() {
        let short = br#"{"c":"p","cid":"9","t":"orders","s":7,"a":"persisted","e":60}{}"#;
        let long = b" { \"expiration\" : 60 ,\n\"seq\":7, \"ack_type\":\"persisted\",\
            \"topic\":\"orders\",\"cmd_id\":\"9\",\"cmd\":\"publish\" }{}";
        let (a, body_a) = Header::parse(short).unwrap();
        let (b, body_b) = Header::parse(long).unwrap();
        assert_eq!((body_a, body_b), (&b"{}"[..], &b"{}"[..]));
        assert_eq!(
            a,
            Header {
                length: a.length,
                ..b
            }
        );
        assert_eq!(a.verb, Some(Verb::Publish));
        assert_eq!((a.sequence, a.expiration), (Some(7), Some(60)));
    }

    #[test]
    fn strings_are_borrowed_unless_escaped() {
        let (header, _) =
            Header::parse(br#"{"t":"plain","k":"or\"d\\ers\u00e9\ud83d\ude00"}"#).unwrap();
        assert!(matches!(header.topic, Some(Cow::Borrowed("plain"))));
        assert_eq!(header.sow_key.as_deref(), Some("or\"d\\ers\u{e9}\u{1f600}"));
    }

    #[test]
    fn the_genuine_logon_ack_is_read() {
        let ack = br#"{"c":"ack","cid":"0","s":0,"bm":"7094790850998930143|0|","client_name":"pubber","a":"processed",
 "status":"success","reason":"authentication disabled","version":"5.2.1.17.717892.e742467"}"#;
        let (header, body) = Header::parse(ack).unwrap();
        assert!(body.is_empty());
        assert_eq!(header.verb, Some(Verb::Ack));
        assert_eq!(header.ack_kind(), Some(AckKind::Processed));
        assert_eq!(
            (header.status, header.sequence),
            (Some(Status::Success), Some(0))
        );
        assert_eq!(header.reason().as_str(), "authentication disabled");
        assert_eq!(header.version.as_deref(), Some("5.2.1.17.717892.e742467"));
    }

    #[test]
    fn unknown_keys_and_odd_scalars_are_ignored() {
        let (header, body) =
            Header::parse(br#"{"zz":-1.5e3,"yy":true,"xx":null,"t":null,"c":"mystery"}rest"#)
                .unwrap();
        assert_eq!(header.verb, Some(Verb::Other("mystery".into())));
        assert_eq!(header.topic, None);
        assert_eq!(body, b"rest");
        assert_eq!(Header::parse(b"{}").unwrap().0.verb, None);
    }

    #[test]
    fn numbers_are_checked() {
        let (header, _) = Header::parse(br#"{"s":18446744073709551615}"#).unwrap();
        assert_eq!(header.sequence, Some(u64::MAX));
        for bad in [
            "18446744073709551616",
            "-1",
            "1.0",
            "1e3",
            "\"x\"",
            "true",
            "\"\"",
        ] {
            let frame = format!("{{\"s\":{bad}}}");
            assert_eq!(
                kind(frame.as_bytes()),
                (5, HeaderErrorKind::BadNumber),
                "{bad}"
            );
        }
    }

    #[test]
    fn each_fault_has_its_place_and_kind() {
        assert_eq!(kind(b""), (0, HeaderErrorKind::UnexpectedEnd));
        assert_eq!(
            kind(b"x"),
            (0, HeaderErrorKind::Expected { expected: "'{'" })
        );
        assert_eq!(kind(b"{\"c\":{}}"), (5, HeaderErrorKind::Nested));
        assert_eq!(kind(b"{\"c\":[1]}"), (5, HeaderErrorKind::Nested));
        assert_eq!(kind(b"{\"c\":\"a\xff\"}"), (7, HeaderErrorKind::BadUtf8));
        assert_eq!(kind(b"{\"c\":\"\\q\"}"), (7, HeaderErrorKind::BadEscape));
        assert_eq!(
            kind(b"{\"c\":\"\\ud800x\"}"),
            (7, HeaderErrorKind::BadEscape)
        );
        assert_eq!(
            kind(b"{\"c\":\"\\udc00\"}"),
            (7, HeaderErrorKind::BadEscape)
        );
        assert_eq!(kind(b"{\"c\":nope}"), (5, HeaderErrorKind::BadValue));
        assert_eq!(kind(b"{\"c\":\"p\""), (8, HeaderErrorKind::UnexpectedEnd));
        assert_eq!(
            kind(b"{\"c\":\"p\",}"),
            (9, HeaderErrorKind::Expected { expected: "a key" })
        );
        assert_eq!(
            kind(b"{\"c\":\"p\" \"t\"}"),
            (
                9,
                HeaderErrorKind::Expected {
                    expected: "',' or '}'"
                }
            )
        );
    }

    #[test]
    fn an_endless_header_is_cut() {
        let mut frame = b"{\"c\":\"".to_vec();
        frame.resize(5000, b'x');
        let error = Header::parse_with_limit(&frame, 1000).unwrap_err();
        assert_eq!(
            error,
            HeaderError {
                at: 1000,
                kind: HeaderErrorKind::TooLong { max: 1000 }
            }
        );
    }

    /// A refusal with one odd field ended the link; the next logon's figure covered the refused
    /// message, and it counted as persisted.
    #[test]
    fn an_ack_is_read_as_far_as_it_can_be() {
        let read = |fields: &[u8]| {
            let frame = [
                br#"{"c":"ack","cid":"7","#,
                fields,
                br#","status":"failure"}"#,
            ]
            .concat();
            assert!(Header::parse(&frame).is_err());
            let (header, body) = Header::salvage(&frame).unwrap();
            assert!(body.is_empty());
            assert_eq!(header.status, Some(Status::Failure));
            let reason = header.reason_text.as_deref().map(str::to_owned);
            (header.sequence, reason, header.unreadable)
        };
        let odd = |key: &str| Some(key.to_owned());
        for number in [
            "-1",
            "1e1",
            "1.0",
            "true",
            "\"\"",
            "\" 10\"",
            "+10",
            "{\"s\":[1,\"}\"]}",
            "[]",
        ] {
            let fields = format!("\"s\":5,\"s\":{number}");
            assert_eq!(read(fields.as_bytes()), (None, None, odd("s")), "{number}");
        }
        // What is beyond 64 bits is beyond what a publisher can reach.
        for number in ["18446744073709551616", "\"99999999999999999999\""] {
            let fields = format!("\"s\":{number}");
            assert_eq!(read(fields.as_bytes()), (Some(u64::MAX), None, None));
        }
        assert_eq!(
            read(br#""s":3,"matches":-1"#),
            (Some(3), None, odd("matches"))
        );
        let reason = |text: &str| (Some(3), Some(text.to_owned()), None);
        assert_eq!(
            read(b"\"s\":3,\"reason\":\"caf\xe9!\""),
            reason("caf\u{fffd}!")
        );
        assert_eq!(
            read(br#""s":3,"reason":"a\q\ud800b\u00g1""#),
            reason("a\u{fffd}\u{fffd}b\u{fffd}g1")
        );
        assert_eq!(read(br#""s":3,"reason":{"why":"}"}"#), reason("\u{fffd}"));
        // Unknown keys are nobody's loss.
        assert_eq!(read(br#""s":3,"zz":[{}],"yy":"\q""#), (Some(3), None, None));
    }

    #[test]
    fn an_unreadable_command_id_names_nobody() {
        for id in [&b"\"c7\\q\""[..], b"\"\xff\"", b"{}", b"nope"] {
            let frame = [&b"{\"c\":\"ack\",\"cid\":"[..], id, b"}"].concat();
            let (header, _) = Header::salvage(&frame).unwrap();
            let id = header.command_id.unwrap();
            assert!(id.contains('\u{fffd}'), "{id}");
            assert_eq!(header.unreadable.as_deref(), Some("cid"));
        }
    }

    #[test]
    fn an_ack_may_have_a_header_of_any_length() {
        for text in ["x", "\\u00e9"] {
            let long = text.repeat(2 * DEFAULT_MAX_HEADER / text.len());
            let frame = format!(
                r#"{{"c":"ack","reason":"{long}","a":"persisted","status":"failure","s":5}}"#
            );
            assert!(matches!(
                Header::parse(frame.as_bytes()).unwrap_err().kind,
                HeaderErrorKind::TooLong { .. }
            ));
            let (header, _) = Header::salvage(frame.as_bytes()).unwrap();
            assert_eq!(
                (header.sequence, header.ack_kind()),
                (Some(5), Some(AckKind::Persisted))
            );
            assert!(header.reason_text.unwrap().len() >= 128);
            assert_eq!(header.unreadable, None);
            // Half an id is none, and said to be.
            let id = "\\u0063".repeat(DEFAULT_MAX_HEADER / 4);
            let frame = format!(r#"{{"c":"ack","cid":"{id}"}}"#);
            let (header, _) = Header::salvage(frame.as_bytes()).unwrap();
            assert_eq!(header.unreadable.as_deref(), Some("cid"));
            assert!(header.command_id.unwrap().len() < DEFAULT_MAX_HEADER / 4);
            // Not of a message: half a topic is no topic.
            let frame = format!(r#"{{"c":"p","t":"{long}","sub_id":"s1"}}"#);
            assert!(Header::salvage(frame.as_bytes()).is_err());
        }
    }

    #[test]
    fn of_a_message_only_numbers_may_be_odd() {
        let (header, body) =
            Header::salvage(br#"{"c":"p","t":"t","e":-1,"sub_id":"s1"}body"#).unwrap();
        assert_eq!((header.expiration, body), (None, &b"body"[..]));
        assert_eq!(header.topic.as_deref(), Some("t"));
        for frame in [
            &b"{\"c\":\"p\",\"t\":\"\xff\"}"[..],
            b"{\"c\":\"p\",\"bm\":\"\\q\"}",
            b"{\"c\":\"p\",\"t\":{}}",
            b"{\"c\":\"oof\",\"reason\":\"\\q\"}",
            b"{\"c\":\"ack\",\"\\q\":1}",
            b"{\"c\":\"ack\",\"s\":-1",
            b"{\"c\":\"ack\",\"s\":[}",
            b"{\"c\":\"ack\",\"s\":1]}",
        ] {
            let strict = Header::parse(frame).unwrap_err();
            assert_eq!(Header::salvage(frame).unwrap_err(), strict);
        }
    }

    #[test]
    fn sow_frames_hold_several_records() {
        let frame = br#"{"c":"sow","query_id":"1","t":"orders"}{"k":"1","l":8}{"id":1}{"k":"2","l":0}{"k":"3","l":2}{}"#;
        let (header, body) = Header::parse(frame).unwrap();
        assert_eq!(header.verb, Some(Verb::Sow));
        let records: Vec<_> = SowRecords::new(body).map(Result::unwrap).collect();
        let seen: Vec<_> = records
            .iter()
            .map(|r| (r.header.sow_key.as_deref().unwrap(), r.body))
            .collect();
        assert_eq!(seen, [("1", &b"{\"id\":1}"[..]), ("2", b""), ("3", b"{}")]);
    }

    #[test]
    fn sow_records_that_lie_end_the_frame() {
        for (body, kind, at) in [
            (&b"{\"k\":\"1\"}{}"[..], HeaderErrorKind::MissingLength, 9),
            (b"{\"l\":3}{}", HeaderErrorKind::RecordTooLong, 7),
            (
                b"{\"l\":18446744073709551615}{}",
                HeaderErrorKind::RecordTooLong,
                26,
            ),
            (
                b"{\"l\":2}{}!",
                HeaderErrorKind::Expected { expected: "'{'" },
                9,
            ),
        ] {
            let mut records = SowRecords::new(body);
            let error = records.find_map(Result::err).unwrap();
            assert_eq!((error.kind, error.at), (kind, at));
            assert!(records.next().is_none());
        }
    }
}
