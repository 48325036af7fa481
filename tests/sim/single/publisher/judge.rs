//! What must be true of a publisher: of its store at each open, and of all that it says of a message.

use amps_client::Via;
use amps_client::delivery::MAY_BE_STORED;
use amps_store::Store;

use super::super::super::ledger::{self, Fate};
use super::super::link::lock;
use super::{Around, Publisher, tell};

impl Publisher {
    /// What the store holds is what the book says.
    pub(super) fn compare(&mut self, store: &Store, durable: Option<u64>) {
        let survives = |ordinal: u64| durable.is_none_or(|durable| ordinal <= durable);
        for (sequence, message) in &mut self.book.messages {
            let there = store.is_unsettled(*sequence);
            match message.fate {
                Fate::Unsettled if there => {}
                Fate::Unsettled => {
                    let gone = !survives(message.ordinal);
                    assert!(gone, "unsettled message {sequence} is gone");
                    message.fate = Fate::Lost;
                }
                Fate::Persisted(_) if there => {
                    assert!(durable.is_some(), "settled message {sequence} is back");
                    message.fate = Fate::Unsettled;
                }
                Fate::Rejected(ordinal) if there => {
                    let gone = ordinal.is_none_or(|ordinal| !survives(ordinal));
                    assert!(gone, "refused message {sequence} is unsettled again");
                    message.fate = Fate::Unsettled;
                    self.book.refusals.remove(sequence);
                }
                Fate::Lost => assert!(!there, "lost message {sequence} is back"),
                // Both went, and with them all that says that the number was used.
                Fate::Rejected(_) if !survives(message.ordinal) => {
                    message.fate = Fate::Lost;
                    self.book.refusals.remove(sequence);
                }
                Fate::Persisted(_) | Fate::Rejected(_) => {}
            }
        }
        let unsettled = self.book.unsettled().count() as u64;
        assert_eq!(store.bounds().unsettled, unsettled, "messages are invented");
    }

    /// An ack that was read for a message that had gone out has settled it.
    pub(super) fn what_was_heard_counts(&mut self) {
        let process = self.process.as_mut().expect("runs");
        for wire in std::mem::take(&mut process.read.fresh) {
            let book = &self.book;
            let left = book.unsettled().find(|one| book.wire(*one) == wire);
            assert_eq!(left, None, "an ack of {wire} was read and did nothing");
        }
    }

    /// A message is called persisted: there is evidence, and it is true.
    pub(super) fn persisted(&mut self, around: &Around<'_>, sequence: u64, via: Via) {
        let process = self.process.as_mut().expect("runs");
        let wire = self.book.wire(sequence);
        let (read, reach) = (&process.read, self.book.wire(self.book.reach));
        let said = match via {
            Via::Ack => read.stored.contains(&wire),
            Via::Duplicate => read.duplicates.contains(&wire),
            Via::Found => read.found.contains(&wire),
            Via::Logon => read.mark.is_some_and(|mark| wire <= mark && mark <= reach),
            other => panic!("no such evidence: {other:?}"),
        };
        assert!(
            said && wire <= reach,
            "{sequence} ({wire}), via {via:?}: {read:?}"
        );
        let message = self.book.messages.get_mut(&sequence).expect("published");
        assert_eq!(message.fate, Fate::Unsettled, "{sequence} is settled twice");
        let body = &message.body;
        let stored = around.nodes.iter().any(|node| node.stored(body));
        let refused = around.nodes.iter().any(|node| node.refused.contains(body));
        assert!(
            stored || via == Via::Logon && refused,
            "{sequence} is called persisted via {via:?}, and no server ever had it"
        );
        message.fate = Fate::Persisted(via);
        let counts = &mut process.counts;
        match via {
            Via::Ack => counts.persisted += 1,
            Via::Duplicate => counts.duplicates += 1,
            Via::Found => counts.found += 1,
            _ => counts.persisted_at_logon += 1,
        }
    }

    pub(super) fn refused(
        &mut self,
        around: &mut Around<'_>,
        sequence: u64,
        reason: String,
        late: bool,
        ordinal: Option<u64>,
    ) {
        tell!(around, "is refused {sequence}: {reason}, late {late}");
        let process = self.process.as_mut().expect("runs");
        let wire = self.book.wire(sequence);
        let Some(message) = self.book.messages.get_mut(&sequence) else {
            panic!("{sequence} is refused and was never published");
        };
        let by_nobody = reason.starts_with("given up");
        if reason.starts_with("not sent") {
            let mut all = 0..around.nodes.len();
            let by_all = all.all(|server| self.turned_down.contains(&(sequence, server)));
            assert!(by_all, "{sequence} is refused, and a server may take it");
            assert!(sequence > self.book.reach, "{sequence} may have been sent");
        } else if !by_nobody {
            let words = reason.strip_prefix(MAY_BE_STORED).unwrap_or(&reason);
            let expected = ledger::refusal(&message.body);
            let expected = expected.unwrap_or_else(|| panic!("{sequence} is refused by nobody"));
            assert!(
                expected.starts_with(&words[..words.len().min(50)]),
                "{reason}"
            );
            assert!(
                around
                    .nodes
                    .iter()
                    .any(|node| node.refused.contains(&message.body)),
                "{sequence} is refused by nobody"
            );
        }
        if let (true, Some(channel)) = (by_nobody, &process.channel) {
            lock(channel).gave_up(wire);
        }
        match late {
            true => assert!(message.fate != Fate::Unsettled),
            false => {
                assert_eq!(message.fate, Fate::Unsettled);
                message.fate = Fate::Rejected(ordinal);
                process.counts.rejected += 1;
            }
        }
        self.book.refusals.insert(sequence, (reason, ordinal));
    }
}
