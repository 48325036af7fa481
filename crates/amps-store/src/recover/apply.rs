//! What one record of the log says. M1 to M7 are rows of `store-format.md` §5.

use super::{Recovery, Refusal};
use crate::envelope::{Envelope, Origin};
use crate::format::{Epoch, Kind, LostBody, Mark, settled_sequences};
use crate::recover::scan::{Seen, Source};
use crate::state::index::Entry;

impl<S: Source + ?Sized> Recovery<'_, S> {
    /// Takes a record of the log into account. Returns whether it is the mark of a clean close.
    pub(super) fn apply(&mut self, seen: &Seen) -> Result<bool, Refusal> {
        let header = seen.header;
        let entry = Entry::new(seen.offset, header.stride());
        self.meet(seen)?;
        self.count(seen)?;
        match header.kind {
            // M1
            Kind::Publish | Kind::Copy => {
                self.out.state.message(header.sequence, entry);
                // A copy accepts no refusal. What its original accepted was logged before the
                // original and is gone with it, and what was logged between the two still waits.
                if header.kind == Kind::Publish && !header.quiet {
                    self.tagged.push(seen.offset);
                } else if header.kind == Kind::Publish
                    && let Some(Origin::Requeue { accepts }) =
                        self.envelope(seen)?.map(|e| e.origin)
                    // A message cannot have been refused before it was stored, and would settle
                    // itself.
                    && accepts < header.sequence
                {
                    self.accept(accepts);
                }
            }
            // M7
            Kind::Original => self.out.state.settled_message(header.sequence, entry),
            // M2
            Kind::Settlement => {
                let sequences: Option<Vec<u64>> =
                    settled_sequences(self.scanner.body(seen)?).map(Iterator::collect);
                if sequences.is_none() {
                    self.out.meaningless.get_or_insert(*seen);
                }
                self.out
                    .state
                    .settle(&sequences.unwrap_or_default(), |_, _| {});
            }
            // M4
            Kind::Rejection => self.out.state.reject(header.sequence, entry),
            // M5
            Kind::Acceptance => {
                self.accept(header.sequence);
            }
            // M3
            Kind::Mark | Kind::Epoch => {
                if let Some(epoch) = self.epoch(seen)? {
                    self.out.next = self.out.next.max(epoch.first_after);
                }
                if let Some(mark) = self.mark(seen)? {
                    self.out.state.settle_through(mark.floor);
                    self.out.durable = self.out.durable.max(mark.durable);
                    self.out.oldest_needed = self.out.oldest_needed.max(mark.oldest_needed);
                    self.out.next = self.out.next.max(mark.next);
                    self.tagged.clear();
                    if let Some(tag) = mark.tag {
                        self.tag = Some(tag.as_bytes().to_vec());
                    }
                    return Ok(mark.clean);
                }
            }
            // M6
            Kind::Lost => {
                let lost = self.lost(seen)?;
                self.out.lost.extend(lost);
            }
        }
        Ok(false)
    }

    /// Remembers the numbers in an intact record, whether or not it is part of the log: none of
    /// them may be given out again.
    pub(super) fn meet(&mut self, seen: &Seen) -> Result<(), Refusal> {
        self.out.max_ordinal = self.out.max_ordinal.max(seen.ordinal());
        self.out.max_generation = self.out.max_generation.max(seen.header.generation);
        let mut told = seen.header.sequence;
        if let Some(epoch) = self.epoch(seen)? {
            told = told.max(epoch.first_after.saturating_sub(1));
        }
        if let Some(mark) = self.mark(seen)? {
            told = told.max(mark.floor).max(mark.next.saturating_sub(1));
        }
        self.out.max_sequence = self.out.max_sequence.max(told);
        Ok(())
    }

    /// Remembers the sequence that comes next in this generation.
    fn count(&mut self, seen: &Seen) -> Result<(), Refusal> {
        let generation = seen.header.generation;
        let follows = seen.ordinal() == self.out.last_ordinal + 1;
        let said = match seen.kind() {
            Kind::Publish => Some(seen.header.sequence + 1),
            Kind::Epoch => self.epoch(seen)?.map(|e| e.first_after),
            _ => self.mark(seen)?.map(|m| m.next),
        };
        self.counting = match said {
            Some(next) => Some((generation, next)),
            None => self.counting.filter(|c| follows && c.0 == generation),
        };
        Ok(())
    }

    /// An acceptance settles its message even if the refusal is no longer in the log: the message
    /// may have been copied ahead while the refusal waited, and the refusal's segment freed after
    /// it was accepted.
    fn accept(&mut self, sequence: u64) {
        if !self.out.state.accept(sequence) {
            self.out.state.accepted_before(sequence);
        }
    }

    pub(super) fn envelope(&mut self, seen: &Seen) -> Result<Option<Envelope<'static>>, Refusal> {
        let len = seen.header.envelope_len as usize;
        let body = self.scanner.body(seen)?;
        Ok(Envelope::decode(&body[..len])
            .ok()
            .map(Envelope::into_owned))
    }

    pub(super) fn epoch(&mut self, seen: &Seen) -> Result<Option<Epoch>, Refusal> {
        Ok(match seen.kind() {
            Kind::Epoch => Epoch::decode(self.scanner.body(seen)?, seen.ordinal()),
            _ => None,
        })
    }

    pub(super) fn mark(&mut self, seen: &Seen) -> Result<Option<Mark>, Refusal> {
        let mark = match seen.kind() {
            Kind::Mark => Mark::decode(self.scanner.body(seen)?, seen.ordinal()),
            _ => self.epoch(seen)?.map(|e| e.mark),
        };
        if mark.is_none() && matches!(seen.kind(), Kind::Mark | Kind::Epoch) {
            self.out.meaningless.get_or_insert(*seen);
        }
        Ok(mark)
    }

    pub(super) fn lost(&mut self, seen: &Seen) -> Result<Option<LostBody>, Refusal> {
        let lost = match seen.kind() {
            Kind::Lost => LostBody::decode(self.scanner.body(seen)?),
            _ => None,
        };
        // What is lost was written before the record that names it. A lost record that names its
        // own ordinal, or later ones, names no gap; it is reported all the same.
        Ok(lost.map(|lost| match lost.last_ordinal < seen.ordinal() {
            true => lost,
            false => LostBody {
                first_ordinal: 0,
                last_ordinal: 0,
                ..lost
            },
        }))
    }
}
