//! What the driver of a client does, one thing after the other: connect, read, hand over to
//! delivery, carry out what it decides. The process may die between any two.

use std::time::Duration;

use amps_client::DelayStrategy as _;
use amps_client::delivery::{Input, NotSent, Note, Output, Room, ToSend};
use amps_client::protocol::{AckKind, FrameDecoder, Header, Status};
use amps_client::session::{Credentials, Received};
use amps_store::testkit::{begin_step, end_step, has_failed, is_under_way, step};
use amps_store::{AppendError, Batch, Envelope, Level, PublishStore, StoreError, StoredMessage};

use super::super::ledger;
use super::super::link::{Arrival, Link};
use super::super::tap::{Bounds, Tap, is_about_publishes};
use super::{Around, Died, Job, JobDone, Publisher, Read, at, settled, trace};

impl Publisher {
    /// A place where the process may die.
    pub(super) fn point(&mut self) -> Result<(), Died> {
        point(&mut self.dies_in)
    }

    /// Publishes one message; `None`: the store took none.
    pub fn publish(&mut self, around: &mut Around<'_>) -> Option<u64> {
        let process = self.process.as_ref()?;
        let next = process.store.bounds().next;
        let body = ledger::body(around.seed, self.id, self.book.lineage, self.run, next);
        self.publish_body(around, body, &[])
    }

    /// Publishes these bytes with a user tag.
    pub fn publish_body(
        &mut self,
        around: &mut Around<'_>,
        body: Vec<u8>,
        tag: &[u8],
    ) -> Option<u64> {
        let process = self.process.as_mut()?;
        let envelope = Envelope {
            user_tag: tag.into(),
            ..Envelope::publish("orders")
        };
        let mut turns = 0;
        let appended = loop {
            match process.store.append(&envelope, &body) {
                Ok(appended) => break appended,
                Err(AppendError::Full { .. } | AppendError::MakingRoom { .. }) if turns < 8 => {
                    turns += 1;
                    // A failure shows in has_failed.
                    let _ = step(&process.store);
                }
                Err(
                    AppendError::Full { .. }
                    | AppendError::MakingRoom { .. }
                    | AppendError::NoSpace { .. }
                    | AppendError::Store(StoreError::SyncFailed(_)),
                ) => return None,
                Err(error) => panic!("append: {error}"),
            }
        };
        trace!(around, "p{} publishes {}", self.id, appended.sequence);
        self.book
            .appended(appended.sequence, body, appended.ordinal);
        Some(appended.sequence)
    }

    /// Asks for a flush.
    pub fn flush(&mut self, around: &mut Around<'_>, until: Option<Duration>) -> Option<u64> {
        let process = self.process.as_mut()?;
        process.next_flush += 1;
        let id = process.next_flush;
        let through = process.store.bounds().last;
        process.flushes.insert(id, (through, until));
        self.input(around, Input::Flush { id, through, until });
        Some(id)
    }

    /// Everything that is due, once.
    ///
    /// # Errors
    /// The process died on the way.
    pub fn pump(&mut self, around: &mut Around<'_>) -> Result<(), Died> {
        if self.process.is_none() {
            return Ok(());
        }
        self.upkeep(around);
        self.jobs(around)?;
        let process = self.process.as_mut().expect("runs");
        let (link, is_due) = (process.link, around.now >= process.retry_at);
        match link {
            None => {
                // As in the driver, an attempt to connect holds up no flush.
                self.input(around, Input::Tick);
                if is_due {
                    self.connect(around)?;
                }
            }
            Some(id) => self.serve(around, id)?,
        }
        self.offer(around)?;
        self.check_flushes(around);
        Ok(())
    }

    /// When [`pump`](Self::pump) has something to do.
    pub fn deadline(&self) -> Option<Duration> {
        let process = self.process.as_ref()?;
        let job = match (&process.running, process.jobs.is_empty()) {
            _ if process.hold_jobs => None,
            (Some((at, _)), _) => Some(*at),
            (None, false) => Some(Duration::ZERO),
            (None, true) => None,
        };
        let retry = process.link.is_none().then_some(process.retry_at);
        let device = match process.idle {
            true => process.device_done,
            false => process.device_done.or(Some(Duration::ZERO)),
        };
        [
            job,
            device,
            retry,
            process.session.deadline(),
            process.delivery.deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    pub(super) fn upkeep(&mut self, around: &mut Around<'_>) {
        let process = self.process.as_mut().expect("runs");
        // A call that waited for the device has ended what was under way.
        let under_way = process.device_done.filter(|_| is_under_way(&process.store));
        process.device_done = under_way;
        // Failures show in has_failed.
        match under_way {
            Some(done) if done <= around.now => {
                let _ = end_step(&process.store);
                process.device_done = None;
                process.idle = false;
            }
            // As a settlement that waits for room does.
            Some(_) if around.rng.one_in(4) => drop(begin_step(&process.store)),
            Some(_) => {}
            None if around.rng.one_in(2) => {
                process.idle = !begin_step(&process.store).unwrap_or(false);
                if is_under_way(&process.store) {
                    let time = match self.settings.slow_device && around.rng.one_in(4) {
                        true => around.now + Duration::from_millis(around.rng.below(1500)),
                        false => around.delay(),
                    };
                    self.process.as_mut().expect("runs").device_done = Some(time);
                }
            }
            None => process.idle = false,
        }
        let reused = self.disk.reused_before_its_stamp();
        assert_eq!(
            reused, None,
            "a segment is used before its stamp is durable"
        );
        let process = self.process.as_mut().expect("runs");
        if has_failed(&process.store) && !std::mem::replace(&mut process.sync_failed, true) {
            trace!(around, "p{} cannot sync any more", self.id);
            self.input(around, Input::SyncFailed);
        }
    }

    pub(super) fn jobs(&mut self, around: &mut Around<'_>) -> Result<(), Died> {
        let process = self.process.as_mut().expect("runs");
        if process.hold_jobs {
            return Ok(());
        }
        if process.running.is_none()
            && let Some(job) = process.jobs.pop_front()
        {
            let due = match self.settings.slow_device && around.rng.one_in(4) {
                true => around.now + Duration::from_millis(around.rng.below(1500)),
                false => around.delay(),
            };
            process.running = Some((due, job));
        }
        let Some((_, job)) = process.running.take_if(|(due, _)| *due <= around.now) else {
            return Ok(());
        };
        self.point()?;
        let process = self.process.as_mut().expect("runs");
        let done = match job {
            Job::Raise(to) => {
                let raised = process.store.raise_grant(to);
                if raised.is_ok() {
                    self.book.grant = self.book.grant.max(to);
                }
                trace!(around, "p{} grant {to}: {raised:?}", self.id);
                JobDone::Raised(raised)
            }
            Job::Rebase(above) => {
                let rebased = process.store.rebase(above);
                match &rebased {
                    Ok(rebase) => self.book.rebased(*rebase),
                    // The write that failed may have reached the disk all the same.
                    Err(_) => self.rebase_in_doubt = true,
                }
                trace!(around, "p{} rebase above {above}: {rebased:?}", self.id);
                JobDone::Rebased(rebased)
            }
        };
        self.point()?;
        match done {
            JobDone::Raised(result) => self.input(around, Input::GrantRaised(result)),
            JobDone::Rebased(result) => self.input(around, Input::Rebased(result)),
        }
        Ok(())
    }

    pub(super) fn connect(&mut self, around: &mut Around<'_>) -> Result<(), Died> {
        let server = self.settings.servers[self.server % self.settings.servers.len()];
        let process = self.process.as_mut().expect("runs");
        process.logged_on_at = None;
        process.settled_before = settled(&process.delivery);
        process.decoder = FrameDecoder::new();
        process.out.clear();
        process.read = Read::default();
        if !around.servers[server].up {
            self.link_ended(around, "the server is down");
            return Ok(());
        }
        let at_server = around.servers[server].connect(around.now);
        let id = *around.next_link;
        *around.next_link += 1;
        process.watch.connected();
        let bounds = Bounds {
            messages: self.settings.delivery.max_in_flight,
            bytes: self.settings.delivery.max_in_flight_bytes,
        };
        let link = Link {
            publisher: self.id,
            server,
            at_server,
            up: Default::default(),
            down: Default::default(),
            tap: Tap::new(bounds),
        };
        around.links.insert(id, link);
        process.link = Some(id);
        trace!(
            around,
            "p{} connects to server {server}, link {id}", self.id
        );
        process
            .session
            .connected(around.now, None, &credentials("pw"), &mut process.out)
            .expect("a small frame");
        self.point()?;
        self.write(around)
    }

    pub(super) fn serve(&mut self, around: &mut Around<'_>, id: u64) -> Result<(), Died> {
        loop {
            let arrival = match around.links.get_mut(&id) {
                Some(link) => link.read(around.now),
                None => Some(Arrival::End),
            };
            match arrival {
                Some(Arrival::Bytes(bytes)) => {
                    // As a socket would: any piece may be read alone.
                    let part = around.rng.below(bytes.len() as u64 + 1) as usize;
                    for piece in [&bytes[..part], &bytes[part..]] {
                        self.process.as_mut().expect("runs").decoder.push(piece);
                        if let Err(why) = self.read(around)? {
                            self.link_ended(around, why);
                            return Ok(());
                        }
                    }
                    self.point()?;
                }
                Some(Arrival::End) => {
                    self.link_ended(around, "closed");
                    return Ok(());
                }
                None => break,
            }
        }
        let process = self.process.as_mut().expect("runs");
        if process
            .session
            .deadline()
            .is_some_and(|at| around.now >= at)
        {
            let ticked = process
                .session
                .tick(around.now, &mut process.out, &mut |_| {});
            if let Err(expired) = ticked {
                let why = format!("{expired:?}");
                self.link_ended(around, &why);
                return Ok(());
            }
        }
        self.input(around, Input::Tick);
        if std::mem::take(&mut self.process.as_mut().expect("runs").drop_link) {
            self.link_ended(around, "dropped");
            return Ok(());
        }
        self.fill(around)?;
        let process = self.process.as_mut().expect("runs");
        let waits = process.delivery.in_flight() > 0;
        process.session.publishes_wait(around.now, waits);
        self.write(around)
    }

    pub(super) fn read(
        &mut self,
        around: &mut Around<'_>,
    ) -> Result<Result<(), &'static str>, Died> {
        loop {
            let process = self.process.as_mut().expect("runs");
            let Some(frame) = process.decoder.next_frame().expect("servers send frames") else {
                break;
            };
            process.read.take_in(&frame, process.delivery.is_live());
            let now = at(around.now);
            let mut refused = false;
            let mut challenge = None;
            let (delivery, store) = (&mut process.delivery, &process.store);
            let read = &mut process.read;
            let logged_on_at = &mut process.logged_on_at;
            let watch = &mut process.watch;
            let name = self.id;
            let received = process.session.receive(
                around.now,
                &frame,
                &mut process.out,
                &mut |item| match item {
                    Received::Ack(ack) => {
                        trace!(around, "p{name} reads {ack:?}");
                        delivery.handle(store, now, Input::Ack(ack));
                    }
                    Received::LoggedOn { figure } => {
                        trace!(around, "p{name} is logged on, figure {figure:?}");
                        read.is_logged_on = true;
                        read.logon = figure;
                        watch.logged_on(store.bounds().last);
                        *logged_on_at = Some(around.now);
                        delivery.handle(store, now, Input::LoggedOn { figure });
                    }
                    Received::LogonRefused(_) => refused = true,
                    Received::Challenge(asked) => challenge = Some(asked),
                    _ => {}
                },
            );
            if received.is_err() {
                process.watch.counts.no_frames += 1;
                return Ok(Err("no header"));
            }
            if let Some(asked) = challenge {
                // Typing errors are human.
                let password = if around.rng.one_in(4) { "wp" } else { "pw" };
                let asked = asked.password.unwrap_or_default();
                let answer = credentials(&format!("{asked}:{password}"));
                process.watch.counts.challenges += 1;
                process
                    .session
                    .answer_challenge(around.now, &answer, &mut process.out)
                    .expect("a small frame");
            }
            process.watch.counts.refused_logons += u64::from(refused);
            self.outputs(around);
            self.point()?;
            if refused {
                return Ok(Err("logon refused"));
            }
            if self.process.as_mut().expect("runs").drop_link {
                break;
            }
        }
        self.input(around, Input::AcksEnd);
        self.acks_count();
        Ok(Ok(()))
    }

    pub(super) fn fill(&mut self, around: &mut Around<'_>) -> Result<(), Died> {
        // A socket takes so much at a time.
        let most = 1 + around.rng.below(20);
        let waiting = self
            .process
            .as_ref()
            .and_then(|p| around.links.get(&p.link?))
            .map_or(0, |link| link.up.waiting());
        if waiting > 16 << 10 {
            return Ok(());
        }
        let room = Room {
            messages: most as usize,
            bytes: 16 << 10,
        };
        let mut batch = Batch::default();
        let process = self.process.as_mut().expect("runs");
        let store = &process.store;
        let send = |next: &ToSend<'_>| {
            if store.level() == Level::Disk {
                let durable = store.durable().sequence;
                assert!(
                    next.sequence <= durable,
                    "{} goes out, {durable} is durable",
                    next.sequence
                );
            }
            process
                .watch
                .handed_over(next.sequence, next.again, around.now);
            self.book.went_out(next.sequence, next.wire);
            process.reach = process.reach.max(next.sequence);
            let body = next.message.payload();
            assert!(
                body == self.book.messages[&next.sequence].body,
                "other bytes go out as {}",
                next.sequence
            );
            around.wires.went_out(&self.settings.name, body, next.wire);
            trace!(
                around,
                "p{} sends {} as {}", self.id, next.sequence, next.wire
            );
            let encoded = process.encoder.encode(next, &mut process.out);
            encoded.expect("a small frame");
            point(&mut self.dies_in)
        };
        let sent = process
            .delivery
            .hand_over(store, at(around.now), room, &mut batch, send);
        match sent {
            Ok(_) => {}
            Err(NotSent::Refused { error: died, .. }) => return Err(died),
            Err(NotSent::Read(error)) => panic!("{error}"),
        }
        process.watch.resent(process.delivery.totals().resent);
        self.outputs(around);
        Ok(())
    }

    pub(super) fn write(&mut self, around: &mut Around<'_>) -> Result<(), Died> {
        let at = around.delay();
        let process = self.process.as_mut().expect("runs");
        let Some(link) = process.link.and_then(|id| around.links.get_mut(&id)) else {
            return Ok(());
        };
        if !process.out.is_empty() {
            link.write(around.now, at, std::mem::take(&mut process.out));
            process.session.wrote(around.now);
        }
        Ok(())
    }

    pub(super) fn link_ended(&mut self, around: &mut Around<'_>, why: &str) {
        let process = self.process.as_mut().expect("runs");
        trace!(around, "p{} loses its link: {why}", self.id);
        if let Some(link) = process.link.take().and_then(|id| around.links.get_mut(&id)) {
            link.up.end(around.now);
            self.counts.heard(&link.tap);
        }
        process.session.disconnected(&mut |_| {});
        process.drop_link = false;
        process.out.clear();
        let (live, told) = (process.delivery.is_live(), self.notes.len());
        self.input(around, Input::LinkLost);
        self.acks_count();
        let process = self.process.as_mut().expect("runs");
        let first = process.store.bounds().first_unsettled;
        process.watch.link_lost(live, first, &self.notes[told..]);
        let healthy = Duration::from_secs(10);
        if settled(&process.delivery) > process.settled_before
            || process
                .logged_on_at
                .is_some_and(|at| around.now - at >= healthy)
        {
            process.backoff.reset();
        }
        self.server += 1;
        let delay = match process.delivery.wants_longest_delay() {
            true => process.backoff.longest_delay(),
            false => process.backoff.next_delay(),
        };
        process.retry_at = around.now + delay.expect("it never gives up");
    }

    /// Hands something to delivery, and carries out what it decides.
    pub fn input(&mut self, around: &mut Around<'_>, input: Input<'_>) {
        let process = self.process.as_mut().expect("runs");
        if let Input::AllowRebase = input {
            process.rebases_left = 1;
        }
        process
            .delivery
            .handle(&process.store, at(around.now), input);
        self.outputs(around);
    }

    pub(super) fn outputs(&mut self, around: &mut Around<'_>) {
        while let Some(output) = self.process.as_mut().expect("runs").delivery.poll() {
            self.output(around, output);
        }
        let process = self.process.as_ref().expect("runs");
        let totals = process.delivery.totals();
        assert_eq!(
            (totals.persisted, totals.persisted_at_logon, totals.rejected),
            self.book.counts,
            "the totals are not what the outcomes say"
        );
    }

    pub(super) fn output(&mut self, around: &mut Around<'_>, output: Output) {
        let process = self.process.as_mut().expect("runs");
        match output {
            Output::RaiseGrant { to } => process.jobs.push_back(Job::Raise(to)),
            Output::Rebase { above } => process.jobs.push_back(Job::Rebase(above)),
            Output::DropLink { .. } => process.drop_link = true,
            Output::SettledThrough { through, via } => {
                trace!(around, "p{} settles through {through} via {via:?}", self.id);
                for sequence in self.book.unsettled_through(through) {
                    self.persisted(around, sequence, via);
                }
            }
            Output::Settled { sequence, via } => {
                trace!(around, "p{} settles {sequence} via {via:?}", self.id);
                self.persisted(around, sequence, via);
            }
            Output::Refused {
                sequence,
                reason,
                late,
                ordinal,
                attempts,
            } => {
                // A number that no message has (it was another's, or went with a power cut) may
                // lie among those that were handed over.
                let message = self.book.messages.get(&sequence);
                if message.is_some_and(|message| message.fate != ledger::Fate::Lost) {
                    process.watch.refused(sequence, attempts, late);
                }
                self.refused(around, sequence, reason, late, ordinal);
            }
            Output::RefusalNotLogged { .. } => {}
            Output::Unattributed { figure, reason } => self.unattributed.push((figure, reason)),
            Output::Flushed { id, result } => {
                let left = result.left;
                let (target, until) = process.flushes.remove(&id).expect("it was asked for");
                let open = self.book.unsettled_through(target).len() as u64;
                assert_eq!(left, open, "flush through {target}");
                let over = until.is_some_and(|until| around.now >= until);
                assert!(left == 0 || over, "a flush ends early");
                process.flushed.push((id, left));
            }
            Output::Note(note) => {
                trace!(around, "p{} notes {note:?}", self.id);
                if let Note::Rebased {
                    from,
                    possible_duplicates,
                    ..
                } = note
                {
                    process.watch.rebased(from, possible_duplicates, &self.book);
                    process.reach = from - 1;
                    let left = process.rebases_left.checked_sub(1);
                    process.rebases_left = left.expect("a second rebase that nobody asked for");
                }
                self.notes.push(note);
            }
        }
    }

    /// Calls the failed-write handler for the lowest refusal that waits.
    pub(super) fn offer(&mut self, around: &mut Around<'_>) -> Result<(), Died> {
        let process = self.process.as_mut().expect("runs");
        if self.settings.no_handler || process.hold_jobs {
            return Ok(());
        }
        let open = process
            .store
            .rejections(0, usize::MAX)
            .into_iter()
            .find(|r| !process.declined.contains(&r.sequence));
        let Some(rejection) = open else { return Ok(()) };
        if process.store.level() == Level::Disk && process.store.sync().is_err() {
            return Ok(());
        }
        let sequence = rejection.sequence;
        let mut original = StoredMessage::new();
        let there = process.store.get(sequence, &mut original).expect("intact");
        let original = original.payload();
        let message = &self.book.messages[&sequence];
        let refusal = self
            .book
            .refusals
            .get_mut(&sequence)
            .expect("it was refused");
        assert!(there || refusal.late, "the original of {sequence} is gone");
        assert!(
            !there || original == message.body,
            "{sequence} comes back with other bytes"
        );
        assert!(refusal.reason.starts_with(&rejection.reason));
        assert_eq!(refusal.late, rejection.late);
        refusal.handled += 1;
        let earlier = sequence < process.first_of_run;
        self.handled.push((sequence, rejection.late, earlier));
        trace!(around, "p{} handles the refusal of {sequence}", self.id);
        self.point()?;
        let process = self.process.as_mut().expect("runs");
        if self.settings.declines > 0 && around.rng.one_in(self.settings.declines) {
            process.declined.insert(sequence);
            return Ok(());
        }
        match process.store.accept(sequence) {
            Ok(accepted) => {
                assert!(accepted, "it waits");
                self.book
                    .refusals
                    .get_mut(&sequence)
                    .expect("refused")
                    .accepted = true;
            }
            Err(_) => drop(process.declined.insert(sequence)),
        }
        self.point()
    }

    /// Publishes the lowest refused message again.
    pub fn requeue(&mut self, around: &mut Around<'_>) -> Option<u64> {
        let process = self.process.as_mut()?;
        let sequence = self.book.waiting().first().copied()?;
        let appended = process.store.requeue(sequence, 1).ok().flatten()?;
        trace!(
            around,
            "p{} publishes {sequence} again as {}", self.id, appended.sequence
        );
        let body = self.book.messages[&sequence].body.clone();
        self.book
            .appended(appended.sequence, body, appended.ordinal);
        let refusal = self.book.refusals.get_mut(&sequence).expect("it waits");
        refusal.accepted = true;
        refusal.handled += 1;
        Some(appended.sequence)
    }
}

fn point(dies_in: &mut Option<u32>) -> Result<(), Died> {
    match dies_in {
        Some(0) => Err(Died),
        Some(n) => {
            *n -= 1;
            Ok(())
        }
        None => Ok(()),
    }
}

fn credentials(password: &str) -> Credentials {
    Credentials {
        user: Some("ann".to_owned()),
        password: Some(password.to_owned()),
    }
}

impl Read {
    /// Takes in what can be evidence for an outcome.
    fn take_in(&mut self, frame: &[u8], live: bool) {
        let Ok((header, _)) = Header::parse(frame) else {
            return;
        };
        if !self.is_logged_on || !is_about_publishes(&header) {
            return;
        }
        let id: Option<u64> = header.command_id.as_deref().and_then(|id| id.parse().ok());
        match (header.ack_kind(), header.status) {
            (Some(AckKind::Persisted), Some(Status::Success)) => {
                self.acked.extend(header.sequence);
                self.acked_ids.extend(id);
                self.fresh.extend(header.sequence.filter(|_| live));
            }
            (Some(_), Some(Status::Failure)) => {
                self.refused.extend(header.sequence);
                self.refused_ids.extend(id);
            }
            _ => {}
        }
    }
}
