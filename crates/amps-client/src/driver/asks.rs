//! What a handle asks for, and the answers that are under way.

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Driver;
use crate::delivery::Flushed;
use crate::error::{CommandError, FlushError, FlushReport};
use crate::event::LinkEnd;
use crate::mailbox::{Ask, Counted};

pub(super) type FlushReply = oneshot::Sender<Result<Counted, FlushError>>;

impl Driver {
    pub(super) fn ask(&mut self, ask: Ask) {
        match ask {
            Ask::Flush {
                through,
                until,
                reply,
            } => self.flush(through, until, reply),
            Ask::AllowRebase => {
                let now = self.now();
                self.engine.allow_rebase(self.store.as_ref(), now);
            }
            // Numbers without a store are nobody's to name.
            Ask::GiveUp { done, .. } if self.shared.store().is_none() => drop(done.send(false)),
            Ask::GiveUp { sequence, done } => {
                let reason = "given up by the application; the server may have it";
                let now = self.now();
                self.engine
                    .give_up(self.store.as_ref(), now, sequence, reason);
                self.carry_out();
                let store = self.shared.store();
                let waits = store.is_some_and(|store| {
                    store
                        .rejections(sequence, 1)
                        .first()
                        .is_some_and(|r| r.sequence == sequence)
                });
                // The caller may have stopped waiting.
                let _ = done.send(waits);
            }
        }
    }

    fn flush(&mut self, through: u64, until: Option<Instant>, reply: FlushReply) {
        self.forget_cancelled_flushes();
        self.work.next_id += 1;
        let id = self.work.next_id;
        self.work.flushes.insert(id, reply);
        let until = until.map(|until| self.shared.since_start(until));
        let now = self.now();
        self.engine
            .flush(self.store.as_ref(), now, id, through, until);
    }

    /// Drops flushes that nobody waits for any more: at most as many are kept as were
    /// waited for at once.
    fn forget_cancelled_flushes(&mut self) {
        let flushes = self.work.flushes.iter();
        let cancelled = flushes.filter(|(_, reply)| reply.is_closed());
        let cancelled: Vec<u64> = cancelled.map(|(id, _)| *id).collect();
        let now = self.now();
        for id in cancelled {
            self.work.flushes.remove(&id);
            self.engine.cancel_flush(self.store.as_ref(), now, id);
        }
    }

    pub(super) fn flushed(&mut self, id: u64, flushed: Flushed) {
        let Some(reply) = self.work.flushes.remove(&id) else {
            return;
        };
        let result = match flushed.left {
            left if left > 0 && self.engine.is_over() => {
                let waiting = self.shared.rejections();
                Err(FlushError::Closed(FlushReport::new(flushed, waiting)))
            }
            _ => Ok(self.counted(flushed)),
        };
        // The caller may have stopped waiting.
        drop(reply.send(result));
    }

    pub(super) fn counted(&self, flushed: Flushed) -> Counted {
        Counted::new(flushed, &self.shared.uncounted)
    }

    /// Why a subscription would wait for nobody knows how long.
    pub(super) fn cannot_be_reached(&self) -> Option<CommandError> {
        let status = self.shared.status.borrow();
        let row = status.servers.max(1);
        let gone = status.gave_up.is_some() || self.work.failed >= row;
        if !gone || self.shared.desk.is_up() {
            return None;
        }
        let (server, why) = status.last.clone().unwrap_or_else(|| {
            let why = status.gave_up.unwrap_or_default().to_owned();
            (self.work.server.clone(), LinkEnd::Connect(why))
        });
        Some(CommandError::Unreachable { server, why })
    }
}
