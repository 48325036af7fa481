//! Under which id a message is stored: `client:store:wire:published_at`, numbers in base 36.
//!
//! A server drops a message whose id it has seen, whatever its body is. So an id names one message
//! and no other: the client's name and the store's identity say whose it is, the number on the wire
//! which, and the time of the publish tells two messages apart that copies of one store, put back
//! from a backup, number alike. A copy or a repair keeps all four; a rebase changes the number,
//! which is what it is for.

/// Whose ids are written and recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids {
    /// `client:store:`
    prefix: String,
}

/// What an id says of a message of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ours {
    /// The number on the wire.
    pub wire: u64,
    /// When it was published: microseconds since the Unix epoch.
    pub published_at: u64,
}

/// The longest text of a number in base 36.
const DIGITS: usize = 13;

impl Ids {
    /// The ids of this client's store.
    pub fn new(client: &str, store: u64) -> Self {
        let mut prefix = Vec::with_capacity(client.len() + DIGITS + 2);
        escape(&mut prefix, client.as_bytes(), |byte| {
            byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)
        });
        prefix.push(b':');
        base36(&mut prefix, store);
        prefix.push(b':');
        Ids {
            // Escaped bytes are ASCII.
            prefix: String::from_utf8_lossy(&prefix).into_owned(),
        }
    }

    /// What every id of ours begins with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Appends the id of a message.
    pub fn write(&self, out: &mut Vec<u8>, wire: u64, published_at: u64) {
        out.extend_from_slice(self.prefix.as_bytes());
        base36(out, wire);
        out.push(b':');
        base36(out, published_at);
    }

    /// What an id says, if it is one of ours.
    pub fn read(&self, id: &str) -> Option<Ours> {
        let (wire, published_at) = id.strip_prefix(&self.prefix)?.split_once(':')?;
        Some(Ours {
            wire: from_base36(wire)?,
            published_at: from_base36(published_at)?,
        })
    }
}

/// Appends a number in base 36.
pub(crate) fn base36(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [b'0'; DIGITS];
    let mut at = DIGITS;
    loop {
        at -= 1;
        digits[at] = b"0123456789abcdefghijklmnopqrstuvwxyz"[(number % 36) as usize];
        number /= 36;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// A number as [`base36`] writes it, and in no other way: two texts are two ids.
pub(crate) fn from_base36(text: &str) -> Option<u64> {
    let digit = |byte: u8| byte.is_ascii_digit() || byte.is_ascii_lowercase();
    let canonical = text == "0" || !text.starts_with('0');
    let plain = canonical && text.bytes().all(digit);
    plain.then(|| u64::from_str_radix(text, 36).ok()).flatten()
}

/// Appends text with what is not `plain`, and the percent sign, as `%XX`.
pub(crate) fn escape(out: &mut Vec<u8>, text: &[u8], plain: impl Fn(u8) -> bool) {
    for &byte in text {
        match byte != b'%' && plain(byte) {
            true => out.push(byte),
            false => {
                out.push(b'%');
                for half in [byte >> 4, byte & 15] {
                    out.push(b"0123456789ABCDEF"[usize::from(half)]);
                }
            }
        }
    }
}

/// What [`escape`] made of text, with any bytes behind percent signs that are of UTF-8.
pub(crate) fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, behind)) = rest.split_first() {
        rest = behind;
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let (hex, behind) = rest.split_at_checked(2)?;
        let plain = hex.iter().all(u8::is_ascii_hexdigit);
        let hex = std::str::from_utf8(hex).ok().filter(|_| plain)?;
        out.push(u8::from_str_radix(hex, 16).ok()?);
        rest = behind;
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(client: &str, store: u64, wire: u64, published_at: u64) -> String {
        let mut out = Vec::new();
        Ids::new(client, store).write(&mut out, wire, published_at);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn an_id_has_these_bytes() {
        assert_eq!(id("desk-1", 0, 1, 36), "desk-1:0:1:10");
        assert_eq!(
            id("a:b %\r\n", 35, 1_295, u64::MAX),
            "a%3Ab%20%25%0D%0A:z:zz:3w5e11264sgsf"
        );
        assert_eq!(id("é", 1, 0, 0), "%C3%A9:1:0:0");
    }

    #[test]
    fn what_is_not_ours_is_nobodys() {
        let ids = Ids::new("me", 7);
        let ours = |wire, published_at| Some(Ours { wire, published_at });
        assert_eq!(ids.read("me:7:zz:10"), ours(1_295, 36));
        for foreign in [
            "",
            "me:7:",
            "me:7:1",
            "me:7:1:",
            "me:7::1",
            "me:8:1:1",
            "you:7:1:1",
            "me:7:1:1:1",
            "me:7:+1:1",
            "me:7:01:1",
            "me:7:A:1",
            "me:7: 1:1",
            "me:7:3w5e11264sgsg:1",
            "Me:7:1:1",
        ] {
            assert_eq!(ids.read(foreign), None, "{foreign}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_and_names_one_message(
            a in (".{0,8}", any::<u64>(), any::<u64>(), any::<u64>()),
            b in (".{0,8}", any::<u64>(), any::<u64>(), any::<u64>()),
        ) {
            let written = id(&a.0, a.1, a.2, a.3);
            let read = Ids::new(&a.0, a.1).read(&written);
            prop_assert_eq!(read, Some(Ours { wire: a.2, published_at: a.3 }));
            prop_assert!(written.bytes().all(|byte| byte.is_ascii_graphic()));
            prop_assert_eq!(a == b, written == id(&b.0, b.1, b.2, b.3));
            if (&b.0, b.1) != (&a.0, a.1) {
                prop_assert_eq!(Ids::new(&b.0, b.1).read(&written), None);
            }
        }
    }
}
