//! What drives the client's engine in the place of a runtime: it lets time pass, connects, does
//! store calls, and checks everything that is handed over, heard and told. The process may die
//! in the middle of anything.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use amps_client::LinkEnd;
use amps_client::chooser::ServerChooser as _;
use amps_client::delivery::{Note, Output as Told};
use amps_client::protocol::{AckKind, FrameDecoder, Header, Status};
use amps_delivery::{Job, JobDone, Output};
use amps_store::testkit::{begin_step, end_step, has_failed, is_under_way, step};
use amps_store::{AppendError, Envelope, Level, PublishStore, StoreError, StoredMessage};

use super::super::link::{Arrival, Link};
use super::super::tap::{Bounds, Tap, is_about_publishes};
use super::super::{Rng, ledger};
use super::socket::Socket;
use super::{Around, Died, Publisher, Read, UnderWay, at, trace};

impl Publisher {
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
        let now = at(around.now);
        process
            .engine
            .flush(&process.store, now, id, through, until);
        self.outputs(around);
        Some(id)
    }

    /// An operator gives up on a message.
    pub fn give_up(&mut self, around: &mut Around<'_>, sequence: u64, reason: &str) {
        let process = self.process.as_mut().expect("runs");
        let now = at(around.now);
        process
            .engine
            .give_up(&process.store, now, sequence, reason);
        self.outputs(around);
    }

    /// An operator allows one more rebase.
    pub fn allow_rebase(&mut self, around: &mut Around<'_>) {
        let process = self.process.as_mut().expect("runs");
        process.rebases_left = 1;
        process.engine.allow_rebase(&process.store, at(around.now));
        self.outputs(around);
    }

    /// Everything that is due, once.
    ///
    /// # Errors
    /// The process died on the way.
    pub fn pump(&mut self, around: &mut Around<'_>) -> Result<(), Died> {
        if self.process.is_none() {
            return Ok(());
        }
        let pumped = catch_unwind(AssertUnwindSafe(|| self.work(around)));
        pumped.map_err(|panic| match panic.downcast::<Died>() {
            Ok(died) => *died,
            Err(panic) => resume_unwind(panic),
        })
    }

    /// When [`pump`](Self::pump) has something to do.
    pub fn deadline(&self) -> Option<Duration> {
        let process = self.process.as_ref()?;
        let job = process.job.as_ref().filter(|_| !process.hold_jobs);
        let job = job.map(|job| {
            if job.done.is_some() {
                job.told_at
            } else {
                job.done_at
            }
        });
        let device = match process.idle {
            true => process.device_done,
            false => process.device_done.or(Some(Duration::ZERO)),
        };
        let held = process.socket.as_ref().is_some_and(Socket::is_held);
        let held = held.then_some(Duration::ZERO);
        [job, device, held, process.engine.deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    fn work(&mut self, around: &mut Around<'_>) {
        self.upkeep(around);
        self.job(around);
        self.takes(around);
        let mut cx = Context::from_waker(Waker::noop());
        loop {
            let now = at(around.now);
            let process = self.process.as_mut().expect("runs");
            process.engine.turn(&process.store, now);
            self.handed_over(around);
            let told = self.outputs(around);
            self.bring(around);
            let process = self.process.as_mut().expect("runs");
            let was_live = process.engine.is_live();
            let polled = process.engine.poll(&mut cx, &process.store, now);
            // A link writes first.
            self.send_off(around);
            self.read(around, was_live);
            let told = self.outputs(around) || told;
            self.send_end(around);
            if polled.is_ready() {
                self.acks_count();
            } else if !told {
                break;
            }
        }
        self.offer(around);
        self.check_flushes(around);
    }

    /// How much the system takes of what is written now, and the link of what is stored.
    fn takes(&mut self, around: &mut Around<'_>) {
        let process = self.process.as_ref().expect("runs");
        let link = process.link.and_then(|id| around.links.get(&id));
        let (Some(link), Some(socket)) = (link, &process.socket) else {
            return;
        };
        let bytes = match link.up.waiting() > 16 << 10 {
            true => 0,
            false => 1 + around.rng.below(16 << 10) as usize,
        };
        socket.takes(bytes, 1 + around.rng.below(20) as usize);
    }

    /// The next that arrived is there to be read: what one thing leads to is carried out before
    /// the next is read.
    fn bring(&mut self, around: &mut Around<'_>) {
        let process = self.process.as_ref().expect("runs");
        let (Some(id), Some(socket)) = (process.link, &process.socket) else {
            return;
        };
        if !socket.is_read() {
            return;
        }
        let arrival = match around.links.get_mut(&id) {
            Some(link) => link.down.next(around.now),
            None => Some(Arrival::End),
        };
        match arrival {
            Some(Arrival::Bytes(bytes)) => socket.arrives(&bytes),
            Some(Arrival::End) => socket.ends(),
            None => {}
        }
    }

    /// What was written is on its way.
    fn send_off(&mut self, around: &mut Around<'_>) {
        let at = around.delay();
        let process = self.process.as_mut().expect("runs");
        let link = process.link.and_then(|id| around.links.get_mut(&id));
        let (Some(link), Some(socket)) = (link, &process.socket) else {
            return;
        };
        let bytes = socket.take_outgoing();
        if !bytes.is_empty() {
            link.write(around.now, at, bytes);
        }
    }

    /// If the process has closed its link, that is on its way too.
    fn send_end(&mut self, around: &mut Around<'_>) {
        let process = self.process.as_mut().expect("runs");
        if !process.socket.as_ref().is_some_and(Socket::is_closed) {
            return;
        }
        process.socket = None;
        let link = process.link.take();
        if let Some(link) = link.and_then(|id| around.links.get_mut(&id)) {
            link.up.end(around.now);
            self.counts.heard(&link.tap);
        }
    }

    /// Looks at the messages that the link took. Nothing of them is written before its next poll.
    fn handed_over(&mut self, around: &mut Around<'_>) {
        let process = self.process.as_mut().expect("runs");
        let Some(socket) = process.socket.clone() else {
            return;
        };
        let mut link = process.link.and_then(|id| around.links.get_mut(&id));
        for sent in socket.take_sent() {
            if let Some(link) = &mut link {
                link.tap.takes(sent.wire, sent.body.len() as u64);
            }
            if process.store.level() == Level::Disk {
                let durable = process.store.durable().sequence;
                assert!(
                    sent.sequence <= durable,
                    "{} goes out, {durable} is durable",
                    sent.sequence
                );
            }
            process
                .watch
                .handed_over(sent.sequence, sent.again, around.now);
            self.book.went_out(sent.sequence, sent.wire);
            process.reach = process.reach.max(sent.sequence);
            assert!(
                sent.body == self.book.messages[&sent.sequence].body,
                "other bytes go out as {}",
                sent.sequence
            );
            around
                .wires
                .went_out(&self.settings.name, &sent.body, sent.wire);
            trace!(
                around,
                "p{} sends {} as {}", self.id, sent.sequence, sent.wire
            );
        }
        process.watch.resent(process.engine.totals().resent);
    }

    /// What was read is evidence, whatever the client makes of it.
    fn read(&mut self, around: &mut Around<'_>, was_live: bool) {
        let process = self.process.as_mut().expect("runs");
        let Some(socket) = process.socket.clone() else {
            return;
        };
        let logon = socket.take_up();
        if let Some(figure) = logon {
            trace!(around, "p{} is logged on, figure {figure:?}", self.id);
            process.watch.logged_on(process.store.bounds().last);
        }
        let bytes = socket.take_read();
        if let Some(link) = process.link.and_then(|id| around.links.get_mut(&id)) {
            link.tap.reads(&bytes);
        }
        process.decoder.push(&bytes);
        while let Ok(Some(frame)) = process.decoder.next_frame() {
            if !process.read.take_in(&frame, was_live, logon) {
                break;
            }
        }
        if let Some(figure) = logon {
            process.read.is_logged_on = true;
            process.read.logon = figure;
        }
    }

    /// Carries out what the engine wants, and checks what it tells; whether there was something.
    pub(super) fn outputs(&mut self, around: &mut Around<'_>) -> bool {
        let mut any = false;
        while let Some(output) = self.process.as_mut().expect("runs").engine.output() {
            any = true;
            self.output(around, output);
        }
        let process = self.process.as_mut().expect("runs");
        let totals = process.engine.totals();
        assert_eq!(
            (totals.persisted, totals.persisted_at_logon, totals.rejected),
            self.book.counts,
            "the totals are not what the outcomes say"
        );
        any
    }

    fn output(&mut self, around: &mut Around<'_>, output: Output) {
        let process = self.process.as_mut().expect("runs");
        match output {
            Output::Connect => self.connect(around),
            Output::Abandon => panic!("a connection is there at once, or not at all"),
            Output::Job(job) => {
                let slow = self.settings.slow_device && around.rng.one_in(4);
                let mut time = || match slow {
                    true => around.now + Duration::from_millis(around.rng.below(1500)),
                    false => around.delay(),
                };
                let (one, other) = (time(), time());
                process.job = Some(UnderWay {
                    job,
                    done_at: one.min(other),
                    told_at: one.max(other),
                    done: None,
                });
            }
            Output::Up => process.chooser.succeeded(&process.server),
            Output::State(_) => {}
            Output::LinkEnded { why, .. } => self.link_ended(around, &why),
            Output::GaveUp { why } => panic!("it gives up: {why}"),
            Output::Told { what, .. } => self.told(around, what),
            Output::Damaged { sequence, error } => panic!("{sequence} cannot be sent: {error}"),
            Output::Over { handed_over } => process.over = Some(handed_over),
            other => panic!("unknown output {other:?}"),
        }
    }

    fn connect(&mut self, around: &mut Around<'_>) {
        let process = self.process.as_mut().expect("runs");
        process.server = process.chooser.current().expect("servers");
        let server = usize::from(process.server.uri.port() - super::PORT);
        let all = &self.settings.servers;
        self.server = all.iter().position(|s| *s == server).expect("one of them");
        process.decoder = FrameDecoder::new();
        process.read = Read::default();
        process.watch.connected();
        process.notes_before = self.notes.len();
        let socket = around.servers[server].up.then(|| {
            let at_server = around.servers[server].connect(around.now);
            let id = *around.next_link;
            *around.next_link += 1;
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
            let socket = Socket::new(Rng::new(around.rng.bits()), self.points.clone());
            socket.takes(1 << 16, 1 + around.rng.below(20) as usize);
            socket
        });
        process.sockets.next(socket.clone());
        process.socket = socket.clone();
        let opened = {
            let opening = pin!(process.transport.connect(&process.server));
            match opening.poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(opened) => opened,
                Poll::Pending => panic!("a connection is there at once, or not at all"),
            }
        };
        let opened = opened.map(|link| socket.expect("it is open").watch(link));
        let now = at(around.now);
        process.engine.connected(&process.store, now, opened);
        self.points.pass();
    }

    fn link_ended(&mut self, around: &mut Around<'_>, why: &LinkEnd) {
        let process = self.process.as_mut().expect("runs");
        trace!(around, "p{} loses its link: {why}", self.id);
        process.chooser.failed(&process.server, why);
        let dropped = matches!(
            why,
            LinkEnd::ForeignFigure
                | LinkEnd::BadFigure
                | LinkEnd::PublishGap
                | LinkEnd::NoNumbersLeft
        );
        if dropped {
            // What was read with the word that ended it need not count.
            process.read.fresh.clear();
        }
        let counts = &mut process.watch.counts;
        counts.refused_logons += u64::from(matches!(why, LinkEnd::LogonRefused(_)));
        counts.no_frames += u64::from(matches!(why, LinkEnd::Protocol(_)));
        counts.challenges += process
            .challenges
            .swap(0, std::sync::atomic::Ordering::Relaxed);
        let first = process.store.bounds().first_unsettled;
        let told = &self.notes[process.notes_before..];
        process.watch.link_lost(!dropped, first, told);
        process.notes_before = self.notes.len();
    }

    /// A store call that waits for the device: it is done at some moment, and known to be at a
    /// later one.
    fn job(&mut self, around: &mut Around<'_>) {
        let process = self.process.as_mut().expect("runs");
        let Some(under_way) = &mut process.job else {
            return;
        };
        if process.hold_jobs {
            return;
        }
        if under_way.done.is_none() && around.now >= under_way.done_at {
            self.points.pass();
            let done = under_way.job.run(&process.store);
            trace!(around, "p{} {:?}: {done:?}", self.id, under_way.job);
            match (&done, under_way.job) {
                (JobDone::Raised(Ok(())), Job::RaiseGrant(to)) => {
                    self.book.grant = self.book.grant.max(to);
                }
                (JobDone::Rebased(Ok(rebase)), _) => self.book.rebased(*rebase),
                // The write that failed may have reached the disk all the same.
                (JobDone::Rebased(Err(_)), _) => self.rebase_in_doubt = true,
                (JobDone::Raised(_), _) => {}
            }
            under_way.done = Some(done);
            self.points.pass();
        }
        let is_told = under_way.done.is_some() && around.now >= under_way.told_at;
        if !is_told {
            return;
        }
        let done = process.job.take().and_then(|job| job.done).expect("done");
        process.engine.done(&process.store, at(around.now), done);
        self.outputs(around);
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
            let process = self.process.as_mut().expect("runs");
            process.engine.sync_failed(&process.store, at(around.now));
            self.outputs(around);
        }
    }

    fn told(&mut self, around: &mut Around<'_>, told: Told) {
        let process = self.process.as_mut().expect("runs");
        match told {
            Told::SettledThrough { through, via } => {
                trace!(around, "p{} settles through {through} via {via:?}", self.id);
                for sequence in self.book.unsettled_through(through) {
                    self.persisted(around, sequence, via);
                }
            }
            Told::Settled { sequence, via } => {
                trace!(around, "p{} settles {sequence} via {via:?}", self.id);
                self.persisted(around, sequence, via);
            }
            Told::Refused {
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
            Told::RefusalNotLogged { .. } => {}
            Told::Lost { .. } | Told::Untaken { .. } => panic!("{told:?}, and there is a store"),
            Told::Unattributed { figure, reason } => self.unattributed.push((figure, reason)),
            Told::Flushed { id, result } => {
                let left = result.left;
                let (target, until) = process.flushes.remove(&id).expect("it was asked for");
                let open = self.book.unsettled_through(target).len() as u64;
                assert_eq!(left, open, "flush through {target}");
                let over = until.is_some_and(|until| around.now >= until);
                let over = over || process.is_closing;
                assert!(left == 0 || over, "a flush ends early");
                process.flushed.push((id, left));
            }
            Told::Note(note) => {
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
            Told::RaiseGrant { .. } | Told::Rebase { .. } | Told::DropLink { .. } => {
                panic!("{told:?} is the engine's to carry out")
            }
        }
    }

    /// Calls the failed-write handler for the lowest refusal that waits.
    fn offer(&mut self, around: &mut Around<'_>) {
        let process = self.process.as_mut().expect("runs");
        if self.settings.no_handler || process.hold_jobs {
            return;
        }
        let open = process
            .store
            .rejections(0, usize::MAX)
            .into_iter()
            .find(|r| !process.declined.contains(&r.sequence));
        let Some(rejection) = open else { return };
        if process.store.level() == Level::Disk && process.store.sync().is_err() {
            return;
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
        self.points.pass();
        let process = self.process.as_mut().expect("runs");
        if self.settings.declines > 0 && around.rng.one_in(self.settings.declines) {
            process.declined.insert(sequence);
            return;
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
        self.points.pass();
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

impl Read {
    /// Takes in what can be evidence for an outcome. `logon`: the server accepted it with this
    /// figure in one of the frames that were read together. `false`: the frame has no header,
    /// and what comes behind it is not read.
    fn take_in(&mut self, frame: &[u8], live: bool, logon: Option<Option<u64>>) -> bool {
        let Ok((header, _)) = Header::parse(frame) else {
            return false;
        };
        if !self.is_logged_on {
            let accepted = header.ack_kind() == Some(AckKind::Processed)
                && header.status == Some(Status::Success);
            if let (Some(figure), true) = (logon, accepted) {
                self.is_logged_on = true;
                self.logon = figure;
            }
            return true;
        }
        if !is_about_publishes(&header) {
            return true;
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
        true
    }
}
