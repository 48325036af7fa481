//! What is said of outages and of what waits: words that [`Outages`] chose, for the log and for
//! who watches events.

use std::time::Duration;

use amps_store::StoredMessage;

use super::Driver;
use crate::event::{Event, LinkEnd};
use crate::outage::{Backlog, Word};
use crate::shared::unix_micros;

/// The first unsettled message, and when it was published: microseconds since the Unix epoch, 0 if
/// that is not known.
#[derive(Debug, Default)]
pub(super) struct Head {
    sequence: u64,
    published_at: u64,
}

impl Driver {
    /// How long the oldest unsettled message has been in the store, by the wall clock.
    pub(super) fn oldest(&mut self) -> Option<Duration> {
        let store = self.shared.store()?;
        let sequence = store.bounds().first_unsettled?;
        if self.work.head.sequence != sequence {
            let mut stored = StoredMessage::new();
            let published_at = match store.get(sequence, &mut stored) {
                Ok(true) => stored
                    .envelope()
                    .map_or(0, |envelope| envelope.published_at),
                // Whoever sends it tells what is wrong with it.
                Ok(false) | Err(_) => 0,
            };
            self.work.head = Head {
                sequence,
                published_at,
            };
        }
        let at = self.work.head.published_at;
        (at > 0).then(|| Duration::from_micros(unix_micros().saturating_sub(at)))
    }

    /// Says it if something has waited for too long.
    pub(super) fn look_at_backlog(&mut self) {
        let now = self.shared.start.elapsed();
        if !self.work.outages.is_due(now) {
            return;
        }
        let found = Backlog {
            waiting: self.waiting(),
            settled: {
                let totals = self.shared.totals();
                let otherwise = totals.duplicates + totals.found + totals.rejected;
                totals.persisted + totals.persisted_at_logon + otherwise
            },
        };
        if let Some(word) = self.work.outages.look(now, found) {
            self.tell_outage(word);
        }
    }

    /// A link was lost, or an attempt failed.
    pub(super) fn count_outage(&mut self) {
        if let Some(word) = self.work.outages.lost(self.shared.start.elapsed()) {
            self.tell_outage(word);
        }
    }

    fn tell_outage(&mut self, word: Word) {
        let (waiting, oldest) = (self.waiting(), self.oldest());
        let oldest_s = oldest.map(|oldest| oldest.as_secs());
        let attempts = self.work.outages.attempts();
        let last = self.shared.status.borrow().last.clone();
        let (server, why) = last.unwrap_or_else(|| (self.work.server.clone(), LinkEnd::Closed));
        match word {
            Word::Began => {
                tracing::warn!(%server, %why, waiting, oldest_s, attempts, "no connection; trying again");
                self.outage_event(server, why, attempts, Duration::ZERO, waiting, oldest);
            }
            Word::GoesOn { lasted, attempts } => {
                let for_s = lasted.as_secs();
                tracing::warn!(%server, %why, waiting, oldest_s, attempts, for_s, "still no connection, and messages wait");
                self.outage_event(server, why, attempts, lasted, waiting, oldest);
            }
            Word::Flaps { links } => {
                tracing::warn!(%server, %why, waiting, oldest_s, links, "connections are lost soon after their logon");
                self.shared.event(Event::Flapping {
                    server,
                    why,
                    links,
                    waiting,
                });
            }
            Word::Stuck => {
                let server = self.work.server.clone();
                tracing::warn!(
                    %server,
                    waiting,
                    oldest_s,
                    "connected, and no message was settled for a minute"
                );
                self.shared.event(Event::Stuck {
                    server,
                    waiting,
                    oldest,
                });
            }
        }
    }

    fn outage_event(
        &self,
        server: String,
        why: LinkEnd,
        attempts: u32,
        lasted: Duration,
        waiting: u64,
        oldest: Option<Duration>,
    ) {
        self.shared.event(Event::Outage {
            server,
            why,
            attempts,
            lasted,
            waiting,
            oldest,
        });
    }

    /// A server accepted the logon.
    pub(super) fn tell_logon(&mut self) {
        let told = self.work.outages.logged_on(self.shared.start.elapsed());
        if !told.tell {
            return;
        }
        let (server, waiting) = (self.work.server.clone(), self.waiting());
        let again = self.engine.may_be_sent_again(self.store.as_ref());
        let outage_s = told.over.map(|over| over.lasted.as_secs());
        let attempts = told.over.map(|over| over.attempts);
        tracing::info!(%server, waiting, again, outage_s, attempts, "logged on");
        if let Some(over) = told.over {
            self.shared.event(Event::OutageOver {
                server,
                attempts: over.attempts,
                lasted: over.lasted,
                waiting,
            });
        }
    }

    fn waiting(&self) -> u64 {
        let store = self.shared.store();
        store.map_or(0, |store| store.bounds().unsettled)
    }
}
