//! Carries out what [`Delivery`](crate::delivery::Delivery) decided.

use std::collections::VecDeque;

use tokio::sync::mpsc;

use super::{Driver, Job};
use crate::delivery::{DropReason, Note, Output};
use crate::event::{ConnectionState, Event, LinkEnd};
use crate::failed::UnhandledAck;
use crate::protocol::{AckKind, Reason, Status};
use crate::receipt::Outcome;

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
        self.work.meter.totals(&self.shared.name, totals);
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
                if let Some(watched) = &self.shared.watched {
                    watched.book.settled_through(through, via);
                }
            }
            Output::Settled { sequence, via } => {
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
                tracing::error!(?figure, %reason, "a refusal names no message of this client; publish_ids makes such servers safe");
                self.last_chance(None, figure, reason.clone(), false);
                self.shared.event(Event::Unattributed { figure, reason });
            }
            Output::Flushed { id, result } => self.flushed(id, result),
            Output::Note(note) => self.note(note),
        }
    }

    fn refused(&mut self, sequence: u64, reason: Reason, late: bool, attempts: u32) {
        if !late {
            self.resolve(
                sequence,
                Outcome::Rejected {
                    reason: reason.clone(),
                },
            );
        }
        self.shared.offers.refused(sequence, attempts);
        if self.settings.has_handler {
            return;
        }
        tracing::warn!(sequence, %reason, late, "a message was refused; it waits in the store");
        self.last_chance(Some(sequence), None, reason, true);
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
        self.unhandled(UnhandledAck {
            command: "ack".to_owned(),
            kind: Some(AckKind::Persisted),
            status: Some(Status::Failure),
            reason,
            sequence,
            figure,
            command_id: None,
            subscription: None,
            waits_in_store,
        });
    }

    /// Passes on an ack that belongs to nothing. Without a store, a refusal without a
    /// command id is the only word about a publish that there will ever be.
    pub(super) fn nobodys(&mut self, ack: UnhandledAck) {
        let refused =
            ack.command == "ack" && ack.status == Some(Status::Failure) && ack.command_id.is_none();
        if self.delivery.is_none() && refused {
            tracing::error!(figure = ?ack.figure, reason = %ack.reason, "a message was refused; without a store nothing says which");
            let mut totals = self.shared.totals();
            totals.unattributed += 1;
            self.shared.set_totals(totals);
            self.shared.event(Event::Unattributed {
                figure: ack.figure,
                reason: ack.reason.clone(),
            });
        } else {
            tracing::debug!(?ack, "nothing takes it");
        }
        self.unhandled(ack);
    }

    /// One field of a frame meant nothing; the rest of it counts.
    pub(super) fn unreadable_field(&mut self, field: String) {
        tracing::warn!(field, "the server sent a field that cannot be read");
        self.shared.event(Event::UnreadableField { field });
    }

    pub(super) fn unhandled(&mut self, ack: UnhandledAck) {
        if let Err(mpsc::error::TrySendError::Full(ack)) = self.unhandled.try_send(ack) {
            tracing::warn!(
                ?ack,
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
