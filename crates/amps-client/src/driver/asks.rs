//! What a handle asks for, and the answers that are under way.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::Driver;
use super::readers::Entry;
use crate::delivery::{Flushed, Input};
use crate::error::{CommandError, FlushError, FlushReport};
use crate::event::LinkEnd;
use crate::mailbox::{Ask, Counted};
use crate::requests::{Answer, Request, Subscribe};
use crate::session::MAX_WAITING;
use crate::subscription::Subscription;

pub(super) enum FlushReply {
    Caller(oneshot::Sender<Result<Counted, FlushError>>),
    Close,
}

pub(super) enum CommandReply {
    Answer(oneshot::Sender<Result<Answer, CommandError>>),
    Flush(oneshot::Sender<Result<Counted, FlushError>>),
    Close,
}

impl CommandReply {
    fn is_waited_for(&self) -> bool {
        match self {
            CommandReply::Answer(reply) => !reply.is_closed(),
            CommandReply::Flush(reply) => !reply.is_closed(),
            CommandReply::Close => true,
        }
    }
}

/// Longer than any client waits, and no time that overflows.
const NO_LIMIT: Duration = Duration::from_secs(365 * 86_400);

impl Driver {
    pub(super) fn ask(&mut self, ask: Ask) {
        match ask {
            Ask::Flush {
                through,
                until,
                reply,
            } => match self.delivery {
                Some(_) => self.flush(through, until, FlushReply::Caller(reply)),
                None => self.server_flush(until, CommandReply::Flush(reply)),
            },
            Ask::Command {
                request,
                until,
                reply,
            } => {
                let reply = CommandReply::Answer(reply);
                match Instant::now() < until {
                    true => self.command(&request, until, reply),
                    // It waited for the link; now it would come as a surprise.
                    false => self.command_done(reply, Err(CommandError::Timeout)),
                }
            }
            Ask::Subscribe { spec, reply } => self.subscribe(spec, reply),
            Ask::AllowRebase => self.input(Input::AllowRebase),
            Ask::GiveUp { sequence, done } => {
                let reason = "given up by the application; the server may have it";
                self.input(Input::GiveUp { sequence, reason });
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

    pub(super) fn flush(&mut self, through: u64, until: Option<Instant>, reply: FlushReply) {
        self.forget_cancelled_flushes();
        self.work.next_id += 1;
        let id = self.work.next_id;
        self.work.flushes.insert(id, reply);
        let until = self.since_start(until);
        self.input(Input::Flush { id, through, until });
    }

    /// Drops flushes that nobody waits for any more: at most as many are kept as were
    /// waited for at once.
    fn forget_cancelled_flushes(&mut self) {
        let cancelled: Vec<u64> = self
            .work
            .flushes
            .iter()
            .filter(|(_, reply)| matches!(reply, FlushReply::Caller(to) if to.is_closed()))
            .map(|(id, _)| *id)
            .collect();
        for id in cancelled {
            self.work.flushes.remove(&id);
            self.input(Input::FlushCancelled { id });
        }
    }

    pub(super) fn flushed(&mut self, id: u64, flushed: Flushed) {
        match self.work.flushes.remove(&id) {
            // The caller may have stopped waiting.
            Some(FlushReply::Caller(reply)) => drop(reply.send(match flushed.left {
                left if left > 0 && self.work.stopped => {
                    let waiting = self.shared.rejections();
                    Err(FlushError::Closed(FlushReport::new(flushed, waiting)))
                }
                _ => Ok(self.counted(flushed)),
            })),
            Some(FlushReply::Close) => {
                drop(self.counted(flushed));
                self.work.stopped = true;
            }
            None => {}
        }
    }

    fn counted(&self, flushed: Flushed) -> Counted {
        Counted::new(flushed, &self.shared.uncounted)
    }

    pub(super) fn server_flush(&mut self, until: Option<Instant>, reply: CommandReply) {
        let now = self.work.start.elapsed();
        // Without a limit, none; not that of other commands.
        let until = self.since_start(until).or(Some(now + NO_LIMIT));
        let request = Request::new("flush");
        self.forget_cancelled_commands();
        // Behind what was accepted before, and like that only behind a logon.
        let given = {
            let mut direct = self.shared.direct();
            match direct.flushes < MAX_WAITING {
                true => {
                    direct.flushes += 1;
                    self.session
                        .command(now, &request, until, &mut direct.bytes)
                }
                false => Err(CommandError::TooMany),
            }
        };
        self.commanded(given, reply);
    }

    pub(super) fn command(&mut self, request: &Request, until: Instant, reply: CommandReply) {
        self.forget_cancelled_commands();
        let (now, until) = (self.work.start.elapsed(), self.since_start(Some(until)));
        let given = self
            .session
            .command(now, request, until, &mut self.work.out);
        self.commanded(given, reply);
    }

    /// When all places for answers are taken, those that nobody waits for any more are given
    /// up; answers that come all the same belong to nothing.
    fn forget_cancelled_commands(&mut self) {
        if self.session.waiting() < MAX_WAITING {
            return;
        }
        let session = &mut self.session;
        self.work.commands.retain(|id, reply| {
            let waits = reply.is_waited_for();
            if !waits {
                session.forget(*id);
            }
            waits
        });
    }

    fn commanded(&mut self, given: Result<Option<u64>, CommandError>, reply: CommandReply) {
        match given {
            Ok(Some(id)) => drop(self.work.commands.insert(id, reply)),
            Ok(None) => self.command_done(reply, Ok(Answer::default())),
            Err(error) => self.command_done(reply, Err(error)),
        }
    }

    pub(super) fn since_start(&self, until: Option<Instant>) -> Option<Duration> {
        until.map(|until| until.saturating_duration_since(self.work.start))
    }

    pub(super) fn command_done(
        &mut self,
        reply: CommandReply,
        result: Result<Answer, CommandError>,
    ) {
        // A caller may have stopped waiting.
        match reply {
            CommandReply::Answer(reply) => drop(reply.send(result)),
            CommandReply::Flush(reply) => {
                let result = match result {
                    Ok(_) => Ok(self.counted(Flushed::default())),
                    Err(CommandError::Timeout) => Err(FlushError::Timeout {
                        left: 0,
                        handlers: 0,
                    }),
                    Err(error) => Err(FlushError::Command(error)),
                };
                drop(reply.send(result));
            }
            CommandReply::Close => self.work.flushed = true,
        }
    }

    /// Why a subscription would wait for nobody knows how long.
    fn cannot_be_reached(&self) -> Option<CommandError> {
        let status = self.shared.status.borrow();
        let row = status.servers.max(1);
        let gone = status.gave_up.is_some() || self.work.failed >= row;
        if !gone || self.session.is_logged_on() {
            return None;
        }
        let (server, why) = status.last.clone().unwrap_or_else(|| {
            let why = status.gave_up.unwrap_or_default().to_owned();
            (self.work.server.clone(), LinkEnd::Connect(why))
        });
        Some(CommandError::Unreachable { server, why })
    }

    /// Tells those who wait for the first placing of a subscription, if it is so.
    pub(super) fn tell_if_unreachable(&mut self) {
        let Some(error) = self.cannot_be_reached() else {
            return;
        };
        for subscription in self.work.readers.cannot_be_placed(&error) {
            self.session.unsubscribe(subscription, &mut self.work.out);
        }
    }

    fn subscribe(
        &mut self,
        spec: Subscribe,
        reply: oneshot::Sender<Result<Subscription, CommandError>>,
    ) {
        if let Some(error) = self.cannot_be_reached() {
            // The caller may have stopped waiting.
            return drop(reply.send(Err(error)));
        }
        let (messages, receiver) = mpsc::channel(spec.buffer);
        let (end, ended) = oneshot::channel();
        let (held, limit) = (Arc::<AtomicUsize>::default(), spec.buffer_bytes);
        let query = spec.is_query();
        let now = self.work.start.elapsed();
        let id = self.session.subscribe(now, spec, &mut self.work.out);
        let client = Arc::downgrade(&self.shared);
        let subscription = Subscription {
            id,
            messages: receiver,
            held: held.clone(),
            end: ended,
            ended: false,
            query,
            client,
        };
        let placing = Some((reply, subscription));
        let entry = Entry {
            messages,
            held,
            limit,
            topic: "".into(),
            end,
            placing,
        };
        self.work.readers.insert(id, entry);
    }
}
