//! Carries out what the [`Engine`](amps_delivery::Engine) decided.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::time::Duration;

use amps_delivery::{Answer, Job, Output};
use amps_store::Rejection;
use tokio::sync::mpsc;
use tracing::Span;

use super::{Driver, Running, Wanted};
use crate::amps::Stray;
use crate::delivery::{Note, Output as Told, Via};
use crate::event::{ConnectionState, Event, LinkEnd};
use crate::failed::UnhandledAck;
use crate::offers::PAGE;
use crate::panics::{self, CHOOSER};
use crate::protocol::{AckKind, AckKinds, Reason, Status};
use crate::receipt::Outcome;
use crate::shared::unix_micros;
use crate::wire::asked_id;

impl Driver {
    pub(super) fn carry_out(&mut self) {
        for stray in self.shared.desk.take_strays() {
            let span = self.work.span.clone();
            span.in_scope(|| self.stray(stray));
        }
        let mut outputs = VecDeque::new();
        loop {
            while let Some(output) = self.engine.output() {
                outputs.push_back(output);
            }
            let Some(output) = outputs.pop_front() else {
                return;
            };
            let totals = self.engine.totals();
            self.shared.meter.totals(&mut self.work.counted, totals);
            self.shared.set_totals(totals);
            if matches!(output, Output::LinkEnded { .. }) {
                // That it ended is told outside of it.
                self.work.span = Span::none();
            }
            let span = self.work.span.clone();
            span.in_scope(|| self.output(output));
        }
    }

    fn stray(&mut self, stray: Stray) {
        match stray {
            Stray::Server(info) => {
                self.shared
                    .status
                    .send_modify(|status| status.server_info = info);
            }
            Stray::Unhandled(ack) => self.nobodys(ack),
            Stray::UnreadableField(field) => self.unreadable_field(field),
        }
    }

    fn output(&mut self, output: Output) {
        match output {
            Output::Connect => self.choose(),
            Output::Abandon => self.work.abandoned = true,
            Output::Job(job) => self.start(job),
            Output::Up => self.logged_on(),
            Output::State(state) => self.state(state),
            Output::LinkEnded { why, retry_in } => self.link_ended(why, retry_in),
            Output::GaveUp { why } => {
                tracing::error!(why, "no more attempts to connect are made");
                self.shared
                    .status
                    .send_modify(|status| status.gave_up = Some(why));
                self.shared.event(Event::GaveUp { why });
            }
            Output::Told { what, answer } => self.tell(what, answer.as_deref()),
            Output::Damaged { sequence, error } => self.damaged(sequence, error),
            // Nobody was told what its flush counted: it is the next one's to tell.
            Output::Closed(counted) => drop(self.counted(counted)),
            Output::Over { handed_over } => {
                self.work.abandoned = true;
                self.work.wanted = Some(Wanted::End(handed_over));
            }
            // The engine and this driver are of one version.
            other => tracing::error!(?other, "the engine wants what this driver does not know"),
        }
    }

    fn choose(&mut self) {
        let chosen = panics::call(CHOOSER, || self.servers.current());
        let server = match &chosen {
            Ok(Some(server)) => server.name(),
            Ok(None) => return self.engine.no_server(),
            Err(_) => String::new(),
        };
        self.work.span = tracing::info_span!("link", %server);
        let all = panics::call(CHOOSER, || self.servers.len());
        let all = self.told(all).unwrap_or_default();
        self.engine.tries(&server, all);
        self.work.server = server;
        match chosen {
            Ok(chosen) => {
                self.work.chosen.clone_from(&chosen);
                let span = self.work.span.clone();
                span.in_scope(|| self.state(ConnectionState::Connecting));
                self.work.wanted = chosen.map(Wanted::Connect);
            }
            Err(panic) => {
                self.work.chosen = None;
                let now = self.now();
                let end = LinkEnd::Panicked(panic);
                self.engine.lose(self.store.as_ref(), now, end);
            }
        }
    }

    /// Has a store call done that waits for the device.
    fn start(&mut self, job: Job) {
        let Some(helper) = &self.shared.helper else {
            return;
        };
        let store = self.store.clone();
        let call = helper.call(move || job.run(store.as_ref()));
        self.work.running = Some(Running { job, call });
    }

    fn logged_on(&mut self) {
        let heard = match &self.work.chosen {
            Some(server) => panics::call(CHOOSER, || self.servers.succeeded(server)),
            None => Ok(()),
        };
        if let Err(panic) = heard {
            let now = self.now();
            let end = LinkEnd::Panicked(panic);
            return self.engine.lose(self.store.as_ref(), now, end);
        }
        self.state(ConnectionState::LoggedOn);
        self.tell_link();
        self.tell_logon();
    }

    /// What the link is like. One that ended meanwhile is not told of.
    fn tell_link(&mut self) {
        let Some(capabilities) = self.engine.capabilities() else {
            return;
        };
        let (order, about) = (capabilities.order, self.engine.about());
        self.shared.status.send_modify(|status| {
            status.capabilities = Some(capabilities.clone());
            status.about.clone_from(&about);
        });
        if !about.is_empty() {
            tracing::info!(about, "the link is up");
        }
        self.shared.event(Event::LinkUp {
            server: self.work.server.clone(),
            order,
            about,
        });
    }

    fn damaged(&mut self, sequence: u64, error: String) {
        // Every link ends with it.
        if self.work.unreadable.replace(sequence) != Some(sequence) {
            tracing::error!(sequence, %error, "a stored message cannot be sent");
        }
        self.shared.event(Event::Unreadable { sequence, error });
    }

    fn tell(&mut self, told: Told, answer: Option<&Answer>) {
        match told {
            Told::RaiseGrant { .. } | Told::Rebase { .. } | Told::DropLink { .. } => {
                // The engine carries these out itself.
            }
            Told::SettledThrough { through, via } => {
                let ages = self.work.sampled().settled_through(through, unix_micros());
                for age in ages {
                    self.acked(age, via);
                }
                self.shared.watched.book.settled_through(through, via);
            }
            Told::Settled { sequence, via } => {
                let age = self.work.sampled().settled(sequence, unix_micros());
                if let Some(age) = age {
                    self.acked(age, via);
                }
                self.resolve(sequence, Outcome::Persisted { via });
            }
            Told::Refused {
                sequence,
                reason,
                late,
                attempts,
                ordinal,
            } => {
                let (reason, is_logged) = (Reason::new(reason), ordinal.is_some());
                if !is_logged {
                    tracing::error!(sequence, %reason, late, "a refusal is in memory only: the store's device failed, and its log has no room");
                    let reason = reason.clone();
                    self.shared.event(Event::RefusalHeld {
                        sequence,
                        reason,
                        late,
                    });
                }
                self.refused(sequence, reason, late, attempts, is_logged, answer);
            }
            Told::RefusalNotLogged {
                sequence,
                reason,
                attempts: _,
            } => {
                let reason = Reason::new(reason);
                tracing::warn!(sequence, %reason, "no room for a late refusal");
                self.last_chance(Some(sequence), answer, reason.clone(), false);
                self.shared
                    .event(Event::RefusalNotLogged { sequence, reason });
            }
            Told::Unattributed { figure, reason } => {
                let reason = Reason::new(reason);
                let command_id = answer.and_then(|answer| answer.id.as_deref());
                match self.shared.queue {
                    None => {
                        tracing::error!(figure, %reason, "a refusal names no message of this client for sure");
                    }
                    Some(_) => {
                        tracing::error!(figure, command_id, %reason, "a message was refused; without a store nothing says which");
                    }
                }
                self.last_chance(None, answer, reason.clone(), false);
                self.shared.event(Event::Unattributed { figure, reason });
            }
            Told::Lost { through, unsent } => self.lost(through, unsent),
            Told::Untaken { sequence } => self.nobodys(UnhandledAck {
                command: "ack".to_owned(),
                kind: Some(AckKind::Persisted),
                status: Some(Status::Success),
                reason: Reason::none(),
                reason_cut: false,
                sequence: None,
                figure: None,
                command_id: Some(asked_id(sequence)),
                subscription: None,
                waits_in_store: false,
                earlier_run: false,
            }),
            Told::Flushed { id, result } => self.flushed(id, result),
            Told::Note(note) => self.note(note),
        }
    }

    fn acked(&self, age: Duration, via: Via) {
        if via == Via::Ack {
            self.shared.meter.acked(age);
        }
    }

    fn refused(
        &mut self,
        sequence: u64,
        reason: Reason,
        late: bool,
        attempts: u32,
        is_logged: bool,
        answer: Option<&Answer>,
    ) {
        if !late {
            self.work.sampled().settled(sequence, 0);
            self.shared.meter.rejected(reason.kind());
            self.resolve(
                sequence,
                Outcome::Rejected {
                    reason: reason.clone(),
                },
            );
        }
        if self.has_handler || self.shared.queue.is_none() {
            self.shared.offers.refused(sequence, attempts);
        }
        self.shared.event(Event::Refused {
            sequence: self.shared.public(sequence),
            reason: reason.clone(),
            late,
            earlier_run: false,
        });
        if self.has_handler {
            return;
        }
        if self.shared.queue.is_some() {
            // Nobody else will take it over.
            if let Err(error) = self.store.accept(sequence) {
                tracing::warn!(%error, "a refusal keeps its place");
            }
            let command_id = answer.and_then(|answer| answer.id.as_deref());
            tracing::warn!(command_id, %reason, "a message was refused; without a store it is gone");
            return self.last_chance(None, answer, reason, false);
        }
        if is_logged {
            tracing::warn!(sequence, %reason, late, "a message was refused; it waits in the store");
        }
        if self.work.earlier_from.is_some_and(|from| sequence >= from) {
            self.work.told.insert(sequence);
        }
        self.last_chance(Some(sequence), answer, reason, is_logged);
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
        let store = self.shared.store().filter(|_| !self.has_handler);
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
        self.shared.unheard.all_passed();
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

    /// Without a store: a link ended, and with it what any ack could have said.
    fn lost(&mut self, through: u64, unsent: u64) {
        self.shared.watched.book.lost_through(through);
        if unsent == 0 {
            return;
        }
        tracing::warn!(messages = unsent, "accepted without a store, and not sent");
        self.shared.unsent.fetch_add(unsent, Ordering::Relaxed);
        if self.engine.is_over() {
            self.work.unsent += unsent;
        }
        self.shared.event(Event::Unsent { messages: unsent });
    }

    fn resolve(&self, sequence: u64, outcome: Outcome) {
        self.shared.watched.book.settled_one(sequence, outcome);
    }

    fn last_chance(
        &mut self,
        sequence: Option<u64>,
        answer: Option<&Answer>,
        reason: Reason,
        waits_in_store: bool,
    ) {
        // What the application gives up is refused without one.
        let kind = answer.and_then(|answer| answer.kind.as_deref());
        self.unhandled(UnhandledAck {
            command: "ack".to_owned(),
            kind: kind.and_then(|kind| AckKinds::from_wire(kind).iter().next()),
            status: Some(Status::Failure),
            reason,
            reason_cut: answer.is_some_and(|answer| answer.reason_cut),
            sequence,
            figure: answer.and_then(|answer| answer.figure),
            command_id: answer.and_then(|answer| answer.id.clone()),
            subscription: None,
            waits_in_store,
            earlier_run: false,
        });
    }

    /// Passes on an ack that belongs to nothing.
    pub(super) fn nobodys(&mut self, ack: UnhandledAck) {
        tracing::debug!(%ack, "nothing takes it");
        self.unhandled(ack);
    }

    /// One field of a frame meant nothing; the rest of it counts.
    pub(super) fn unreadable_field(&mut self, field: String) {
        tracing::warn!(%field, "the server sent a field that cannot be read");
        self.shared.event(Event::UnreadableField { field });
    }

    pub(super) fn unhandled(&mut self, ack: UnhandledAck) {
        // Counted first: the handler may be through with it before this returns.
        self.shared.unheard.passed();
        let passed = self.unhandled.try_send(ack);
        if passed.is_err() {
            self.shared.unheard.heard();
        }
        if let Err(mpsc::error::TrySendError::Full(ack)) = passed {
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
                    "the same message was unsettled on every one of the latest links, or turned away over and over"
                );
                Event::Stalled { sequence, links }
            }
            Note::TurnedAway { sequence, why } => {
                tracing::warn!(sequence, %why, "the server did not take a message; it goes out again after a while");
                let reason = Reason::new(why);
                Event::TurnedAway { sequence, reason }
            }
            Note::LineStopped { why } => {
                tracing::error!(%why, "the server takes no messages");
                let reason = Reason::new(why);
                Event::LineStopped { reason }
            }
            Note::Unsendable { sequence, why } => {
                tracing::error!(sequence, %why, "a message cannot be sent to this server");
                Event::Unsendable {
                    sequence,
                    error: why,
                }
            }
            Note::Unreadable { sequence, error } => {
                tracing::error!(sequence, %error, "a stored message cannot be sent");
                if !self.shared.offers.tells_unreadable(sequence) {
                    return;
                }
                Event::Unreadable {
                    sequence,
                    error: error.to_string(),
                }
            }
            // Without a store nothing is.
            Note::Replayed if self.shared.store().is_none() => return,
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
