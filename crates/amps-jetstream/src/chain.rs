//! Messages that are stored in one order, without holes: each names the place behind which it
//! belongs.
//!
//! A message carries `Nats-Expected-Last-Sequence`: the place of the stream's last message as it
//! will be when all before it are stored. A server stores it there or not at all. So many can be
//! under way at once, and if one is not stored, none behind it is.
//!
//! There is a second header that seems to say the same, `Nats-Expected-Last-Msg-Id`. The crate's page
//! says what a server did with it.

/// Where the next message belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    /// The place of the last message once everything under way is stored.
    last: u64,
    /// Something was not stored, or not where it should be: nothing more goes out until the
    /// stream was looked at.
    broken: bool,
    /// The first message, by its number, that is not where it belongs.
    turned_away: Option<u64>,
}

impl Chain {
    /// Behind the message in this place.
    pub(crate) fn behind(last: u64) -> Self {
        Chain {
            last,
            broken: false,
            turned_away: None,
        }
    }

    /// Takes a message in; what it expects to be the last place.
    pub(crate) fn add(&mut self) -> u64 {
        let expected = self.last;
        // A server may name any place.
        self.last = self.last.wrapping_add(1);
        expected
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.broken
    }

    /// This message, which expected that, is in this place.
    pub(crate) fn stored(&mut self, wire: u64, expected: u64, place: u64) {
        if place != expected.wrapping_add(1) {
            self.not_stored(wire);
        }
    }

    /// This message was not stored, or not where it belongs; whether one before it was to blame.
    pub(crate) fn not_stored(&mut self, wire: u64) -> bool {
        let first = self.turned_away.unwrap_or(wire);
        self.turned_away = Some(first.min(wire));
        std::mem::replace(&mut self.broken, true)
    }

    /// This message never will be stored.
    pub(crate) fn refused(&mut self) {
        self.broken = true;
    }

    /// The first message that is not where it belongs.
    pub(crate) fn turned_away(&self) -> Option<u64> {
        self.turned_away
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_message_expects_the_one_before_it() {
        let mut chain = Chain::behind(7);
        assert_eq!([chain.add(), chain.add(), chain.add()], [7, 8, 9]);
        chain.stored(12, 7, 8);
        chain.stored(13, 8, 9);
        assert!(!chain.is_broken());
    }

    #[test]
    fn no_place_is_too_high() {
        let mut chain = Chain::behind(u64::MAX);
        assert_eq!([chain.add(), chain.add()], [u64::MAX, 0]);
        chain.stored(1, u64::MAX, 0);
        assert!(!chain.is_broken());
    }

    #[test]
    fn what_is_not_stored_breaks_it_and_only_the_first_is_to_blame() {
        let mut chain = Chain::behind(0);
        assert!(!chain.not_stored(12), "it is to blame itself");
        assert!(chain.is_broken());
        assert!(chain.not_stored(13));
        assert!(chain.not_stored(11));
        assert_eq!(chain.turned_away(), Some(11));

        let mut refused = Chain::behind(0);
        refused.refused();
        assert!(refused.not_stored(13), "the refused one is to blame");

        let mut elsewhere = Chain::behind(0);
        elsewhere.stored(12, 0, 2);
        assert!(elsewhere.is_broken());
        assert_eq!(elsewhere.turned_away(), Some(12));
    }
}
