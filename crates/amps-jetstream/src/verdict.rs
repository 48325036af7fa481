//! What an answer to a message means: stored, known before, refused, try again, or that nothing
//! gets through.
//!
//! Codes are those of the server's list of errors (`server/errors.json` of nats-server), and their
//! meaning here is what versions 2.9.10 and 2.14.0 do. What is refused for good stands in a list;
//! whatever is new in a later version is none of it, so that no message is given up for a reason that
//! nobody here has read.

use serde::Deserialize;

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is in the stream.
    Stored {
        /// Its place there.
        place: u64,
    },
    /// Its id was seen before, and what came now was dropped.
    Known {
        /// Where the server says that it stored it then; it need not be there any more.
        place: u64,
    },
    /// It was refused, and will be whenever it is sent.
    Refused(ApiError),
    /// It is not in its turn: something before it was not stored, or something else was.
    OutOfTurn(String),
    /// It was not taken now.
    TryAgain(String),
    /// The server takes nothing of this kind, whatever it is.
    LineStopped(String),
    /// It says nothing of this message: somebody else listens to the subject, and answered.
    NotAnAnswer,
}

/// An answer, as servers write it.
#[derive(Debug, Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    stream: Option<std::borrow::Cow<'a, str>>,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    #[serde(borrow)]
    domain: Option<std::borrow::Cow<'a, str>>,
    error: Option<ApiError>,
}

/// An error, as servers write it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
pub struct ApiError {
    /// Its class, as in HTTP.
    #[serde(default)]
    pub code: u16,
    /// Which one it is.
    #[serde(default)]
    pub err_code: u32,
    /// In words.
    #[serde(default)]
    pub description: String,
}

impl ApiError {
    /// In words, with the code that stands for them.
    pub fn words(&self) -> String {
        format!("{} ({})", self.description, self.err_code)
    }
}

/// No stream takes the subject, or the one that does has no leader now: the answer is the same.
const NO_RESPONDERS: u16 = 503;

/// The class of errors of a server that is given more than it takes at once.
const TOO_MUCH_AT_ONCE: u16 = 429;

/// The message expected another stream.
pub(crate) const OTHER_STREAM: u32 = 10_060;

/// The stream that answers, and the domain it is in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bound {
    /// The stream's name.
    pub stream: String,
    /// The domain, if answers name one.
    pub domain: Option<String>,
}

/// What an answer means: the status that its headers have, and its body.
pub fn verdict(bound: &Bound, status: Option<u16>, body: &[u8]) -> Verdict {
    if status == Some(NO_RESPONDERS) && body.is_empty() {
        let why = "no stream takes its subject, or the stream has no leader now";
        return Verdict::TryAgain(why.to_owned());
    }
    let Ok(answer) = serde_json::from_slice::<Answer<'_>>(body) else {
        return Verdict::NotAnAnswer;
    };
    if let Some(error) = &answer.error
        && error.err_code == OTHER_STREAM
    {
        return Verdict::LineStopped(error.words());
    }
    let domain = bound.domain.as_deref();
    if answer.stream.as_deref() != Some(bound.stream.as_str())
        || domain.is_some() && answer.domain.as_deref() != domain
    {
        return Verdict::NotAnAnswer;
    }
    match answer.error {
        Some(error) => of_error(error),
        // Nothing is stored in place 0.
        None if answer.seq == 0 => Verdict::NotAnAnswer,
        None if answer.duplicate => Verdict::Known { place: answer.seq },
        None => Verdict::Stored { place: answer.seq },
    }
}

/// What an error says of a message.
fn of_error(error: ApiError) -> Verdict {
    let words = error.words();
    match error.err_code {
        // Larger than the stream takes, its headers larger than any stream does; a lifetime where
        // the stream allows none.
        10_054 | 10_097 | 10_166 => Verdict::Refused(error),
        // The last id or the last place in the stream is another one.
        10_070 | 10_071 | 10_164 => Verdict::OutOfTurn(words),
        // Full; the same id is under way.
        10_077 | 10_158 => Verdict::TryAgain(words),
        // It has no room, no leader, no peers: for now.
        _ if error.code >= 500 || error.code == TOO_MUCH_AT_ONCE => Verdict::TryAgain(words),
        // Sealed, not allowed, and what nobody here has read.
        _ => Verdict::LineStopped(words),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound() -> Bound {
        Bound {
            stream: "S".to_owned(),
            domain: None,
        }
    }

    fn of(body: &str) -> Verdict {
        verdict(&bound(), None, body.as_bytes())
    }

    #[test]
    fn a_success_names_its_place() {
        // As 2.9.10 and 2.14.0 write it.
        for body in [r#"{"stream":"S", "seq":7}"#, r#"{"stream":"S","seq":7}"#] {
            assert_eq!(of(body), Verdict::Stored { place: 7 });
        }
        let again = r#"{"stream":"S", "seq":7,"duplicate": true}"#;
        assert_eq!(of(again), Verdict::Known { place: 7 });
        let in_domain = r#"{"stream":"S","domain":"hub","seq":7}"#;
        assert_eq!(of(in_domain), Verdict::Stored { place: 7 });
    }

    #[test]
    fn each_code_means_one_thing() {
        #[derive(Clone, Copy, Debug)]
        enum Means {
            Refused,
            OutOfTurn,
            TryAgain,
            LineStopped,
        }
        use Means::*;
        // Class, code, words; as the servers' list has them.
        for (code, err_code, description, means) in [
            (400, 10_054, "message size exceeds maximum allowed", Refused),
            (
                400,
                10_097,
                "header size exceeds maximum allowed of 64k",
                Refused,
            ),
            (400, 10_166, "per-message TTL is disabled", Refused),
            (400, 10_070, "wrong last msg ID: a", OutOfTurn),
            (400, 10_071, "wrong last sequence: 7", OutOfTurn),
            (400, 10_164, "wrong last sequence", OutOfTurn),
            (503, 10_077, "maximum bytes exceeded", TryAgain),
            (409, 10_158, "duplicate message id is in process", TryAgain),
            (429, 10_167, "too many requests", TryAgain),
            (
                503,
                10_008,
                "JetStream system temporarily unavailable",
                TryAgain,
            ),
            (503, 10_023, "insufficient resources", TryAgain),
            (
                500,
                10_047,
                "insufficient storage resources available",
                TryAgain,
            ),
            (503, 10_076, "JetStream not enabled", TryAgain),
            (599, 99_999, "of a later version", TryAgain),
            (400, 10_060, "expected stream does not match", LineStopped),
            (
                400,
                10_109,
                "invalid operation on sealed stream",
                LineStopped,
            ),
            (400, 99_999, "of a later version", LineStopped),
            (0, 0, "", LineStopped),
        ] {
            let error = ApiError {
                code,
                err_code,
                description: description.to_owned(),
            };
            let body = format!(
                "{{\"error\":{{\"code\":{code},\"err_code\":{err_code},\
                 \"description\":\"{description}\"}},\"stream\":\"S\",\"seq\":0}}"
            );
            let words = format!("{description} ({err_code})");
            let expected = match means {
                Refused => Verdict::Refused(error),
                OutOfTurn => Verdict::OutOfTurn(words),
                TryAgain => Verdict::TryAgain(words),
                LineStopped => Verdict::LineStopped(words),
            };
            assert_eq!(of(&body), expected, "{err_code}");
        }
    }

    #[test]
    fn nobody_listening_is_try_again_and_no_refusal() {
        let told = verdict(&bound(), Some(503), b"");
        assert!(matches!(told, Verdict::TryAgain(_)));
    }

    #[test]
    fn only_the_stream_itself_can_answer() {
        for body in [
            "",
            "+OK",
            "{}",
            "null",
            "[]",
            r#"{"seq":7}"#,
            r#"{"stream":"S"}"#,
            r#"{"stream":"S","seq":0}"#,
            r#"{"stream":"S","seq":-1}"#,
            r#"{"stream":"T","seq":7}"#,
            r#"{"stream":7,"seq":7}"#,
            r#"{"error":{"code":400,"err_code":10054,"description":"x"}}"#,
            r#"{"error":{"code":400,"err_code":10054,"description":"x"},"stream":"T"}"#,
        ] {
            assert_eq!(of(body), Verdict::NotAnAnswer, "{body}");
        }
        // Another stream may take the subject by now; then it says so.
        let other = r#"{"error":{"code":400,"err_code":10060,"description":"x"},"stream":"T"}"#;
        assert!(matches!(of(other), Verdict::LineStopped(_)));
        let hub = Bound {
            domain: Some("hub".to_owned()),
            ..bound()
        };
        let here = br#"{"stream":"S","domain":"hub","seq":7}"#;
        assert_eq!(verdict(&hub, None, here), Verdict::Stored { place: 7 });
        for elsewhere in [
            &br#"{"stream":"S","domain":"leaf","seq":7}"#[..],
            br#"{"stream":"S","seq":7}"#,
        ] {
            assert_eq!(verdict(&hub, None, elsewhere), Verdict::NotAnAnswer);
        }
        // A status is nothing without its empty body.
        let both = verdict(&bound(), Some(503), br#"{"stream":"S","seq":7}"#);
        assert_eq!(both, Verdict::Stored { place: 7 });
    }
}
