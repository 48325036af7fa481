//! Carries out what [`Delivery`](crate::delivery::Delivery) decided.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Duration;

use amps_store::Rejection;
use tokio::sync::mpsc;

use super::{Driver, Job};
use crate::delivery::{DropReason, Note, Output, Via};
use crate::event::{ConnectionState, Event, LinkEnd};
use crate::failed::UnhandledAck;
use crate::offers::PAGE;
use crate::protocol::{Reason, Status};
use crate::receipt::Outcome;
use crate::shared::unix_micros;

impl Driver {
    pub(super) fn carry_out(&mut self) {
        let Some(delivery) = &mut self.delivery else {
            return;
        };
        let mut outputs = VecDeque::new();
        while let Some(output) = delivery.poll() {
            outputs.push_back(output);
        }
        if outputs.is_empty() {
            return;
        }
        let totals = delivery.totals();
        self.shared.meter.totals(&mut self.work.counted, totals);
        self.shared.set_totals(totals);
        for output in outputs {
            self.output(output);
        }
    }

    fn output(&mut self, output: Output) {
        match output {
            Output::RaiseGrant { to } => self.work.jobs.push_back(Job::RaiseGrant(to)),
            Output::Rebase { above } => self.work.jobs.push_back(Job::Rebase(above)),
            Output::DropLink { why } => self.work.drop_link = Some(link_end(why)),
            Output::SettledThrough { through, via } => {
                for age in self.work.sampled.settled_through(through, unix_micros()) {
                    self.acked(age, via);
                }
                if let Some(watched) = &self.shared.watched {
                    watched.book.settled_through(through, via);
                }
            }
            Output::Settled { sequence, via } => {
                if let Some(age) = self.work.sampled.settled(sequence, unix_micros()) {
                    self.acked(age, via);
                }
                self.resolve(sequence, Outcome::Persisted { via });
            }
            Output::Refused {
                sequence,
                reason,
                late,
                attempts,
                ordinal: _,
            } => {
                self.refused(sequence, Reason::new(reason), late, attempts);
            }
            Output::RefusalNotLogged {
                sequence,
                reason,
                attempts: _,
            } => {
                let reason = Reason::new(reason);
                tracing::warn!(sequence, %reason, "no room for a late refusal");
                self.last_chance(Some(sequence), None, reason.clone(), false);
                self.shared
                    .event(Event::RefusalNotLogged { sequence, reason });
            }
            Output::Unattributed { figure, reason } => {
                let reason = Reason::new(reason);
                tracing::error!(figure, %reason, "a refusal names no message of this client; publish_ids makes such servers safe");
                self.last_chance(None, figure, reason.clone(), false);
                self.shared.event(Event::Unattributed { figure, reason });
            }
            Output::Flushed { id, result } => self.flushed(id, result),
            Output::Note(note) => self.note(note),
        }
    }

    fn acked(&self, age: Duration, via: Via) {
        if via == Via::Ack {
            self.shared.meter.acked(age);
        }
    }

    fn refused(&mut self, sequence: u64, reason: Reason, late: bool, attempts: u32) {
        if !late {
            self.work.sampled.settled(sequence, 0);
            self.shared.meter.rejected(reason.kind());
            self.resolve(
                sequence,
                Outcome::Rejected {
                    reason: reason.clone(),
                },
            );
        }
        self.shared.offers.refused(sequence, attempts);
        self.shared.event(Event::Refused {
            sequence,
            reason: reason.clone(),
            late,
            earlier_run: false,
        });
        if self.settings.has_handler {
            return;
        }
        tracing::warn!(sequence, %reason, late, "a message was refused; it waits in the store");
        if self.work.earlier_from.is_some_and(|from| sequence >= from) {
            self.work.told.insert(sequence);
        }
        self.last_chance(Some(sequence), None, reason, true);
    }

    /// Without a failed-write handler: tells of refusals that wait since an earlier run, as many
    /// as the last-chance handler has room for.
    pub(super) fn tell_earlier(&mut self) {
        let Some(mut from) = self.work.earlier_from else {
            return;
        };
        // Before that, the handler could be called by a client the application does not have yet.
        if !self.shared.mailbox.opened.load(Ordering::Acquire) {
            return;
        }
        let store = self.shared.store().filter(|_| !self.settings.has_handler);
        let store = store.cloned();
        while let Some(store) = &store {
            if self.unhandled.capacity() < PAGE && !self.unhandled.is_closed() {
                // The bell rings when the handler has caught up.
                return;
            }
            let page = store.rejections(from, PAGE);
            let Some(last) = page.last().map(|found| found.sequence) else {
                break;
            };
            for found in page {
                if !self.work.told.contains(&found.sequence) {
                    self.earlier(found);
                }
            }
            from = last + 1;
            self.work.earlier_from = Some(from);
            self.work.told = self.work.told.split_off(&from);
        }
        if from == 0 {
            // The first stream of events has missed nothing.
            drop(self.shared.take_early());
        }
        self.shared.mailbox.untold.store(false, Ordering::Release);
        self.work.earlier_from = None;
        self.work.told.clear();
    }

    fn earlier(&mut self, found: Rejection) {
        let (sequence, reason) = (found.sequence, Reason::new(found.reason));
        self.shared.event(Event::Refused {
            sequence,
            reason: reason.clone(),
            late: found.late,
            earlier_run: true,
        });
        self.unhandled(UnhandledAck {
            command: "ack".to_owned(),
            kind: None,
            status: Some(Status::Failure),
            reason,
            reason_cut: found.reason_cut,
            sequence: Some(sequence),
            figure: None,
            command_id: None,
            subscription: None,
            waits_in_store: true,
            earlier_run: true,
        });
    }

    fn resolve(&self, sequence: u64, outcome: Outcome) {
        if let Some(watched) = &self.shared.watched {
            watched.book.settled_one(sequence, outcome);
        }
    }

    fn last_chance(
        &mut self,
        sequence: Option<u64>,
        figure: Option<u64>,
        reason: Reason,
        waits_in_store: bool,
    ) {
        // What the application gives up is refused without an ack.
        let ack = self.work.refusal.as_ref();
        self.unhandled(UnhandledAck {
            command: "ack".to_owned(),
            kind: ack.and_then(|ack| ack.kind),
            status: Some(Status::Failure),
            reason,
            reason_cut: ack.is_some_and(|ack| ack.reason_cut),
            sequence,
            figure: figure.or(ack.and_then(|ack| ack.figure)),
            command_id: ack.and_then(|ack| ack.command_id.clone()),
            subscription: None,
            waits_in_store,
            earlier_run: false,
        });
    }

    /// Passes on an ack that belongs to nothing, unless it is the one that a message without a
    /// store asked for.
    pub(super) fn nobodys(&mut self, ack: UnhandledAck) {
        let ack = match self.delivery {
            Some(_) => ack,
            None => match self.direct_ack(ack) {
                Some(ack) => ack,
                None => return,
            },
        };
        tracing::debug!(%ack, "nothing takes it");
        self.unhandled(ack);
    }

    /// One field of a frame meant nothing; the rest of it counts.
    pub(super) fn unreadable_field(&mut self, field: String) {
        tracing::warn!(%field, "the server sent a field that cannot be read");
        self.shared.event(Event::UnreadableField { field });
    }

    pub(super) fn unhandled(&mut self, ack: UnhandledAck) {
        if let Err(mpsc::error::TrySendError::Full(ack)) = self.unhandled.try_send(ack) {
            tracing::warn!(
                %ack,
                "the last-chance handler is too slow; an ack was dropped"
            );
            let error = "it is too slow, and an ack was dropped".to_owned();
            self.shared.event(Event::LastChanceFailed { error });
        }
    }

    fn note(&mut self, note: Note) {
        let event = match note {
            Note::PublishGap {
                server,
                settled,
                unknown_publisher,
            } => {
                tracing::error!(
                    server,
                    settled,
                    unknown_publisher,
                    "publish gap: the server has less than it acknowledged"
                );
                Event::PublishGap {
                    server,
                    settled,
                    unknown_publisher,
                }
            }
            Note::ForeignFigure {
                figure,
                may_have_sent,
            } => {
                tracing::warn!(
                    figure,
                    may_have_sent,
                    "the server speaks of messages this store never sent"
                );
                Event::ForeignFigure {
                    figure,
                    may_have_sent,
                }
            }
            Note::Rebased {
                from,
                first_wire,
                possible_duplicates,
            } => {
                tracing::warn!(
                    from,
                    first_wire,
                    possible_duplicates,
                    "numbering above the server's figure"
                );
                Event::Rebased {
                    from,
                    first_wire,
                    possible_duplicates,
                }
            }
            Note::NameShared { figure, stopped } => {
                tracing::error!(
                    figure,
                    stopped,
                    "another publisher seems to use this client name"
                );
                Event::NameShared { figure, stopped }
            }
            Note::Stalled { sequence, links } => {
                tracing::warn!(
                    sequence,
                    links,
                    "the same message was unsettled on every one of the latest links"
                );
                Event::Stalled { sequence, links }
            }
            Note::Unreadable { sequence, error } => {
                tracing::error!(sequence, %error, "a stored message cannot be sent");
                Event::Unreadable {
                    sequence,
                    error: error.to_string(),
                }
            }
            Note::Replayed => return self.state(ConnectionState::PublishReplayed),
            Note::StoreFailed { doing, error } => {
                tracing::error!(doing, %error, "the store failed");
                Event::StoreFailed {
                    doing,
                    error: error.to_string(),
                }
            }
            Note::SendingStopped { through } => {
                tracing::error!(through, "nothing above is sent for now");
                Event::SendingStopped { through }
            }
            Note::SendingResumed => {
                tracing::info!("sending goes on");
                Event::SendingResumed
            }
        };
        self.shared.event(event);
    }
}

fn link_end(why: DropReason) -> LinkEnd {
    match why {
        DropReason::ForeignFigure => LinkEnd::ForeignFigure,
        DropReason::BadFigure => LinkEnd::BadFigure,
        DropReason::NoNumbersLeft => LinkEnd::NoNumbersLeft,
        DropReason::PublishGap => LinkEnd::PublishGap,
        DropReason::StoreFailed => LinkEnd::Store("it could not write a rebase".to_owned()),
    }
}
