//! Payloads in debug output: a program that prints an error must not print what it publishes.

use std::fmt;

/// Shows how long some bytes are, and the first 32 of them at most.
pub struct Excerpt<'a>(pub &'a [u8]);

/// Bytes of a payload that are shown.
const SHOWN: usize = 32;

impl fmt::Debug for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shown, rest) = self.0.split_at(self.0.len().min(SHOWN));
        let dots = if rest.is_empty() { "" } else { "..." };
        let bytes = self.0.len();
        write!(f, "{bytes} bytes: \"{}{dots}\"", shown.escape_ascii())
    }
}

/// `Debug` for a type with a payload, of which it shows no more than an [`Excerpt`].
#[doc(hidden)]
#[macro_export]
macro_rules! debug_with_excerpt {
    ($name:ident: $type:ty, [$($field:ident),* $(,)?], $payload:ident) => {
        impl ::std::fmt::Debug for $type {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.debug_struct(stringify!($name))
                    $(.field(stringify!($field), &self.$field))*
                    .field(stringify!($payload), &$crate::Excerpt(&self.$payload))
                    .finish()
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Envelope, StoredMessage};

    #[test]
    fn at_most_32_bytes_of_a_payload_are_shown_and_its_length() {
        assert_eq!(format!("{:?}", Excerpt(b"a\"\n")), r#"3 bytes: "a\"\n""#);
        assert_eq!(format!("{:?}", Excerpt(b"")), r#"0 bytes: """#);
        let payload = [b"x".repeat(32), b"SECRET".to_vec()].concat();
        let mut stored = StoredMessage::new();
        stored
            .set(7, &Envelope::publish("orders"), &payload)
            .unwrap();
        for shown in [format!("{stored:?}"), format!("{stored:#?}")] {
            assert!(!shown.contains("SECRET"), "{shown}");
            assert!(shown.contains("38 bytes: \"xxx"), "{shown}");
            assert!(shown.contains("orders") && shown.contains('7'), "{shown}");
        }
    }
}
