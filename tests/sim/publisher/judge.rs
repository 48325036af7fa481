//! What must be true of a publisher: of its store at each open, and of all that its client
//! says of a message.

use std::collections::BTreeMap;

use amps_client::Via;
use amps_store::{Batch, MAX_REASON, PublishStore, Rebase};

use super::super::ledger::{self, Fate, Refusal};
use super::{Around, Publisher, trace};

impl Publisher {
    /// Compares what the store holds with the book. `durable`: what a power cut had to
    /// leave; none: nothing was lost.
    pub(super) fn compare(&mut self, durable: Option<u64>) {
        let failed = std::mem::take(&mut self.failed);
        let store = &self.process.as_ref().expect("open").store;
        let mut found = BTreeMap::new();
        let mut all = Batch::new(usize::MAX, usize::MAX);
        store.read_unsettled(1, u64::MAX, &mut all).expect("intact");
        for message in all.iter() {
            found.insert(message.sequence, message.payload().to_vec());
        }
        let waiting: BTreeMap<u64, String> = store
            .rejections(0, usize::MAX)
            .into_iter()
            .map(|r| (r.sequence, r.reason))
            .collect();
        for (sequence, body) in &found {
            let message = self.book.messages.get(sequence);
            let message = message.unwrap_or_else(|| panic!("message {sequence} is invented"));
            assert!(*body == message.body, "message {sequence} has other bytes");
        }
        for sequence in waiting.keys() {
            assert!(
                self.book.refusals.contains_key(sequence),
                "refusal of {sequence} is invented"
            );
        }
        let book = &mut self.book;
        for (sequence, message) in &mut book.messages {
            let there = found.contains_key(sequence);
            match message.fate {
                Fate::Unsettled if there => {}
                Fate::Unsettled => {
                    let sure = durable.is_none_or(|durable| message.ordinal <= durable);
                    assert!(!sure, "unsettled message {sequence} is gone");
                    message.fate = Fate::Lost;
                }
                Fate::Persisted(_) if there => {
                    assert!(
                        durable.is_some() || failed,
                        "settled message {sequence} is back after a process crash"
                    );
                    message.fate = Fate::Unsettled;
                }
                Fate::Rejected(ordinal) if there => {
                    let sure = survives(ordinal, durable);
                    assert!(!sure, "refused message {sequence} is unsettled again");
                    message.fate = Fate::Unsettled;
                    book.refusals.remove(sequence);
                }
                Fate::Rejected(_) if !waiting.contains_key(sequence) => {
                    // Both went, and with them all that says that the number was used.
                    if durable.is_some_and(|durable| message.ordinal > durable) {
                        message.fate = Fate::Lost;
                        if book.refusals.get(sequence).is_some_and(|r| r.accepted) {
                            book.refusals.remove(sequence);
                        }
                    }
                }
                Fate::Lost => assert!(!there, "lost message {sequence} is back"),
                Fate::Persisted(_) | Fate::Rejected(_) => {}
            }
        }
        let mut gone = Vec::new();
        for (sequence, refusal) in &mut book.refusals {
            let waits = |refusal: &Refusal| {
                let waiting = waiting.get(sequence);
                waiting.is_some_and(|reason| refusal.reason.starts_with(reason))
            };
            while !survives(refusal.ordinal, durable)
                && !waits(refusal)
                && let Some(before) = refusal.before.take()
            {
                *refusal = *before;
            }
            let sure = survives(refusal.ordinal, durable);
            match waiting.get(sequence) {
                Some(reason) => {
                    assert!(
                        !refusal.accepted || durable.is_some() || failed,
                        "refusal of {sequence} is back after it was accepted"
                    );
                    refusal.accepted = false;
                    assert!(
                        refusal.reason.starts_with(reason),
                        "refusal of {sequence}: {reason}"
                    );
                }
                None if refusal.accepted => {}
                None => {
                    assert!(!sure, "refusal of {sequence} is gone");
                    gone.push(*sequence);
                }
            }
        }
        for sequence in gone {
            book.refusals.remove(&sequence);
            if let Some(message) = book.messages.get_mut(&sequence)
                && matches!(message.fate, Fate::Rejected(_))
            {
                let sure = durable.is_none_or(|durable| message.ordinal <= durable);
                assert!(!sure, "message {sequence} went with its refusal");
                message.fate = Fate::Lost;
            }
        }
    }

    /// A message is called persisted: there must be evidence.
    pub(super) fn persisted(&mut self, around: &Around<'_>, sequence: u64, via: Via) {
        let process = self.process.as_ref().expect("runs");
        let book = &self.book;
        let wire = book.sent.get(&sequence).or(book.elsewhere.get(&sequence));
        let wire = wire.copied();
        // Another's figure within what may have been sent cannot be told from our own.
        let unknown = self.settings.shared.then_some(0);
        let wire = wire
            .or(unknown)
            .unwrap_or_else(|| panic!("{sequence} is settled and was never sent"));
        let read = &process.read;
        // What a server says beyond that is not about this store.
        let reach = book.wire(process.reach);
        let covered = match via {
            Via::Ack => {
                let figure = read.acked.range(wire..).next();
                figure.is_some_and(|figure| *figure <= reach) || read.acked_ids.contains(&sequence)
            }
            // Below the first number of a rebase a figure says nothing new, and everything
            // below its first message was settled before (`docs/promises.md`,
            // Numbers).
            Via::Logon => read.logon.is_some_and(|f| {
                let before = |r: Rebase| sequence < r.from && f < book.wire(r.from);
                wire <= f && f <= reach || book.rebase.is_some_and(before)
            }),
            other => panic!("AMPS gives no such evidence: {other:?}"),
        };
        assert!(
            covered,
            "{sequence} ({wire} on the wire) is settled via {via:?} by {read:?}"
        );
        let message = self.book.messages.get_mut(&sequence).expect("published");
        assert_eq!(message.fate, Fate::Unsettled, "{sequence} is settled twice");
        message.fate = Fate::Persisted(via);
        match via {
            Via::Ack => self.book.counts.0 += 1,
            _ => self.book.counts.1 += 1,
        }
        if self.settings.shared {
            return;
        }
        let name = &self.settings.name;
        // The one it has its link to, or had: what was read last may count behind the end.
        let all = &self.settings.servers;
        let server = Some(all[self.server % all.len()]);
        let holds = |server: usize| around.servers[server].holds(name, &message.body);
        let wires = around.wires.of(name, &message.body);
        let refused = |server: usize| around.servers[server].refused(name, &wires);
        let mut all = self.settings.servers.iter().copied();
        if self.settings.nameless && server.is_some_and(&refused) {
            self.misnamed += 1;
        }
        let true_word = match via {
            // One that forgot a refusal covers its number with the next success.
            Via::Ack if all.len() == 1 => server.is_some_and(|server| {
                let model = &around.servers[server];
                // And so does one that knew it at the logon and did not say.
                let forgot = model.forgets > 0 || model.manners.lower_logons;
                holds(server) || (forgot || self.settings.nameless) && refused(server)
            }),
            // A replica that was given what followed drops the message as a duplicate and
            // covers it all the same: the word of the servers, not the client's.
            Via::Ack => all.any(|server| holds(server) || refused(server)),
            _ => all.any(|server| holds(server) || refused(server)),
        };
        assert!(
            true_word,
            "{sequence} is called persisted via {via:?}, and no server has it"
        );
        message.was_persisted = true;
    }

    pub(super) fn refused(
        &mut self,
        around: &mut Around<'_>,
        sequence: u64,
        reason: String,
        late: bool,
        ordinal: Option<u64>,
    ) {
        trace!(
            around,
            "p{} is refused {sequence}, late {late}, ordinal {ordinal:?}", self.id
        );
        let process = self.process.as_ref().expect("runs");
        let book = &self.book;
        let wire = book.sent.get(&sequence).or(book.elsewhere.get(&sequence));
        let wire = wire.copied();
        if self.settings.shared {
            // Another's refusal may bear a number that an unclean stop skipped here.
            self.book.skipped(sequence);
        }
        let message = self.book.messages.get_mut(&sequence).expect("published");
        let read = &process.read;
        let said = wire.is_some_and(|wire| read.refused.contains(&wire))
            || read.refused_ids.contains(&sequence);
        let given_up = reason.starts_with("given up");
        if given_up {
            self.book.gave_up.insert(sequence);
            let link = process.link.and_then(|id| around.links.get_mut(&id));
            if let (Some(link), Some(wire)) = (link, wire) {
                link.tap.gave_up(wire);
            }
        }
        let said = said || self.settings.shared;
        assert!(said || given_up, "{sequence} was refused by nobody");
        if !self.settings.shared
            && !given_up
            && let Some(expected) = ledger::refusal(&message.body)
        {
            let kept = expected.len().min(MAX_REASON);
            assert_eq!(reason, expected[..kept]);
        }
        match late {
            // A power cut may have taken the message, or an operator given it up, and the
            // server had it all the same.
            true => assert!(message.fate != Fate::Unsettled),
            false => {
                assert_eq!(message.fate, Fate::Unsettled);
                message.fate = Fate::Rejected(ordinal);
                self.book.counts.2 += 1;
            }
        }
        let refusal = Refusal {
            reason,
            ordinal,
            late,
            handled: 0,
            accepted: false,
            before: self.book.refusals.remove(&sequence).map(Box::new),
        };
        self.book.refusals.insert(sequence, refusal);
    }

    /// Every ack that was read while messages could go out has been applied, however the link
    /// ended.
    pub(super) fn acks_count(&mut self) {
        let process = self.process.as_mut().expect("runs");
        let fresh = std::mem::take(&mut process.read.fresh);
        let book = &self.book;
        for figure in fresh {
            // Another numbering's, or about messages that were never sent.
            let below = |r: Rebase| figure < book.wire(r.from);
            if book.rebase.is_some_and(below) || figure > book.wire(process.reach) {
                continue;
            }
            process.watch.counts.acks_applied += 1;
            let mut open = book.unsettled_through(process.reach).into_iter();
            let left = open.find(|sequence| book.wire(*sequence) <= figure);
            assert_eq!(left, None, "an ack of {figure} was read and did nothing");
        }
    }

    pub(super) fn check_flushes(&self, around: &Around<'_>) {
        let Some(process) = &self.process else { return };
        for (id, (target, until)) in &process.flushes {
            let open = self.book.unsettled_through(*target).len();
            assert!(
                open > 0,
                "flush {id} waits although everything it covers is settled"
            );
            assert!(
                until.is_none_or(|until| until > around.now),
                "flush {id} is overdue"
            );
        }
    }
}

/// Whether a record is there after a crash. `durable`: what a power cut had to leave; none:
/// a process crash, which loses nothing that was logged.
fn survives(ordinal: Option<u64>, durable: Option<u64>) -> bool {
    ordinal.is_some_and(|ordinal| durable.is_none_or(|durable| ordinal <= durable))
}
