//! Topics as subjects.
//!
//! A topic that can be a subject is one: `orders` and `orders.eu` stay as they are. Everything else
//! becomes `%XX`, in capital hexadecimal digits, byte by byte: blanks and control characters, the
//! wildcards `*` and `>`, the percent sign itself, everything beyond ASCII, a dot that would leave a
//! token empty (the first, the last, one behind another), and a `$` or `_` in front, which begin the
//! server's own subjects and inboxes. So two topics never become one subject, and a subject leads
//! back to its topic.

use crate::ids::{escape, unescape};

/// The longest subject. A server's limit for a line is some 4 KiB, and the line also holds where to
/// answer.
pub const MAX_SUBJECT: usize = 2_048;

/// A topic that has no subject.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubjectError {
    /// There is nothing to name.
    #[error("an empty topic has no subject")]
    Empty,
    /// Its subject is too long for a server's line.
    #[error(
        "the topic's subject has {0} bytes, and {MAX_SUBJECT} are the most that go into a line of \
         the protocol; use a shorter topic"
    )]
    TooLong(usize),
}

/// The subject of a topic.
///
/// # Errors
/// The topic is empty, or too long.
pub fn subject(topic: &str) -> Result<String, SubjectError> {
    let bytes = topic.as_bytes();
    if bytes.is_empty() {
        return Err(SubjectError::Empty);
    }
    let mut out = Vec::with_capacity(bytes.len());
    for (at, &byte) in bytes.iter().enumerate() {
        let plain = match byte {
            b'.' => at > 0 && at + 1 < bytes.len() && bytes[at - 1] != b'.',
            b'$' | b'_' => at > 0,
            b'*' | b'>' => false,
            other => other.is_ascii_graphic(),
        };
        escape(&mut out, &[byte], |_| plain);
    }
    if out.len() > MAX_SUBJECT {
        return Err(SubjectError::TooLong(out.len()));
    }
    // What is beyond ASCII was escaped.
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// Whether a topic has a subject: as [`subject`], without making it.
///
/// # Errors
/// The topic is empty, or too long.
pub fn check(topic: &str) -> Result<(), SubjectError> {
    // A byte becomes three at most.
    match topic.len() {
        0 => Err(SubjectError::Empty),
        1..=SHORT => Ok(()),
        _ => subject(topic).map(drop),
    }
}

/// The longest topic that has a subject whatever its bytes are.
const SHORT: usize = MAX_SUBJECT / 3;

/// The topic that a subject came from, if one did.
pub fn topic(subject: &str) -> Option<String> {
    let topic = unescape(subject)?;
    // Only what this side writes: one topic, one subject.
    (self::subject(&topic).ok()? == subject).then_some(topic)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_can_be_a_subject_is_one_and_the_rest_is_written_out() {
        for (topic, expected) in [
            ("orders", "orders"),
            ("orders.eu", "orders.eu"),
            ("/orders/eu-1_a", "/orders/eu-1_a"),
            ("a b\t\r\n", "a%20b%09%0D%0A"),
            ("a.*.>", "a.%2A.%3E"),
            ("100%", "100%25"),
            (".a..b.", "%2Ea.%2Eb%2E"),
            (".", "%2E"),
            ("$JS.API", "%24JS.API"),
            ("_INBOX.x", "%5FINBOX.x"),
            ("a$_", "a$_"),
            ("é", "%C3%A9"),
        ] {
            assert_eq!(subject(topic).as_deref(), Ok(expected), "{topic}");
            assert_eq!(self::topic(expected).as_deref(), Some(topic));
        }
        assert_eq!(topic("%41"), None, "no topic becomes that");
        assert_eq!(topic("a%4"), None);
        assert_eq!(topic("%+1"), None);
    }

    #[test]
    fn a_line_has_room_for_every_subject() {
        assert_eq!(subject(""), Err(SubjectError::Empty));
        let longest = "x".repeat(MAX_SUBJECT);
        assert_eq!(subject(&longest).as_deref(), Ok(longest.as_str()));
        let topic = "é".repeat(MAX_SUBJECT / 6 + 1);
        assert_eq!(subject(&topic), Err(SubjectError::TooLong(2_052)));
        assert_eq!(check(&topic), Err(SubjectError::TooLong(2_052)));
        assert_eq!(check(""), Err(SubjectError::Empty));
        assert_eq!(check(&longest), Ok(()));
        let short = "%".repeat(SHORT);
        assert!(check(&short).is_ok() && subject(&short).is_ok());
    }

    proptest! {
        #[test]
        fn subjects_are_valid_and_lead_back(topic in "[ -~é.*>$_%]{1,40}") {
            let subject = subject(&topic).unwrap();
            prop_assert_eq!(self::topic(&subject), Some(topic));
            let tokens = subject.split('.');
            for token in tokens {
                prop_assert!(!token.is_empty());
                prop_assert!(token.bytes().all(|byte| byte.is_ascii_graphic()));
                prop_assert!(!token.contains(['*', '>']));
            }
        }
    }
}
