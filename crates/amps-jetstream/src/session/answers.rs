//! What the answers to messages lead to.

use amps_delivery::{Evidence, Heard, LinkEnd, Sink, Words, cut};

use super::Session;
use crate::codec::Msg;
use crate::flight::Sent;
use crate::verdict::{Verdict, verdict};

impl Session {
    /// An answer to the message that went out under this name.
    pub(super) fn answered(
        &mut self,
        name: u64,
        msg: &Msg<'_>,
        sink: &mut dyn Sink,
    ) -> Result<(), LinkEnd> {
        // One that has its answer keeps it.
        let Some(sent) = self.flight.get(name) else {
            return Ok(());
        };
        let verdict = verdict(&self.bound, msg.status(), msg.payload);
        if verdict == Verdict::NotAnAnswer {
            // Whoever listens to the subject sees where the answer goes. The server's is to come.
            return Ok(());
        }
        self.flight.answered(name);
        let wire = sent.wire;
        match verdict {
            Verdict::Stored { place } => self.stored(sent, place, Evidence::Stored, sink),
            Verdict::Known { place } => self.stored(sent, place, Evidence::Duplicate, sink),
            Verdict::Refused(error) => {
                if let Some(chain) = &mut self.chain {
                    chain.refused();
                }
                sink.heard(Heard::Refused {
                    wire,
                    reason: &error.description,
                    may_be_stored: sent.again && self.doubtful,
                    words: Words {
                        kind: Some(&error.err_code.to_string()),
                        id: None,
                        reason_cut: cut(&error.description) != error.description,
                    },
                });
            }
            Verdict::OutOfTurn(why) => {
                let chain = self.chain.as_mut();
                let at_once = chain.is_some_and(|chain| chain.not_stored(wire));
                let why = &why;
                sink.heard(Heard::TryAgain { wire, why, at_once });
            }
            Verdict::TryAgain(why) => self.turned_away(wire, &why, sink),
            Verdict::LineStopped(why) => {
                self.turned_away(wire, &why, sink);
                sink.heard(Heard::LineStopped { why: &why });
            }
            Verdict::NotAnAnswer => {}
        }
        Ok(())
    }

    fn stored(&mut self, sent: Sent, place: u64, evidence: Evidence, sink: &mut dyn Sink) {
        let wire = sent.wire;
        if let (Some(chain), Some(expected)) = (&mut self.chain, sent.expected) {
            chain.stored(wire, expected, place);
        }
        if !sent.unasked {
            sink.heard(Heard::One { wire, evidence });
        }
    }

    fn turned_away(&mut self, wire: u64, why: &str, sink: &mut dyn Sink) {
        if let Some(chain) = &mut self.chain {
            chain.not_stored(wire);
        }
        sink.heard(Heard::TryAgain {
            wire,
            why,
            at_once: false,
        });
    }
}
