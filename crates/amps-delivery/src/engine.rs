//! One publisher and its links, one after the other.
//!
//! [`Delivery`] knows what goes out and what is settled; this knows when: in which order things
//! are taken in, when a link must go, how long to wait for the next one, when to give up. Whoever
//! has sockets, tasks and clocks drives it and decides nothing of that: see the crate's page for
//! the loop.

mod attempts;
mod held;
mod overdue;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use amps_store::{Batch, PublishStore, ReadError, Rebase, StoreError};

use crate::backoff::DelayStrategy;
use crate::capabilities::{Capabilities, Require};
use crate::delivery::{self, Delivery, DropReason, Input, NotSent, Now, Totals, Verdict};
use crate::event::{ConnectionState, LinkEnd};
use crate::link::{Answer, Heard, Link, Sink, Up, Words};
use crate::queue::Queue;
use crate::transport::Identity;

use attempts::Attempts;
use held::TurnedDown;
use overdue::{Overdue, Waits};

/// How an [`Engine`] behaves.
#[derive(Clone, Debug)]
pub struct Config {
    /// What is sent and settled, and how much at once.
    pub delivery: delivery::Config,
    /// Time for opening a link.
    pub connect_timeout: Duration,
    /// No more attempts once no link was up for so long: attempts and waits count. None: for
    /// ever.
    pub give_up_after: Option<Duration>,
    /// Where each message has an ack of its own: how long a server may say nothing of any, from
    /// the moment the oldest without an answer was written; three times as long if it answers
    /// others. Then the link ends, and nothing is said of the message.
    pub ack_deadline: Duration,
    /// What a success has to mean. None: whatever it does.
    pub require: Option<Require>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            delivery: delivery::Config::default(),
            connect_timeout: Duration::from_secs(10),
            give_up_after: None,
            ack_deadline: Duration::from_secs(10),
            require: None,
        }
    }
}

/// Something to carry out, or to pass on. In this order.
#[derive(Debug)]
#[non_exhaustive]
pub enum Output {
    /// Choose a server and open a link to it; answer with [`Engine::connected`], or with
    /// [`Engine::no_server`].
    Connect,
    /// The attempt is over: drop it.
    Abandon,
    /// Do this where waiting for the device holds nobody up, and answer with [`Engine::done`].
    /// There is no other before that.
    Job(Job),
    /// The server accepted the logon.
    Up,
    /// The connection moved on.
    State(ConnectionState),
    /// A link ended, or could not be opened.
    LinkEnded {
        /// Why.
        why: LinkEnd,
        /// How long until the next attempt; none: there is no other.
        retry_in: Option<Duration>,
    },
    /// No more attempts are made. Everything that needs no link goes on.
    GaveUp {
        /// Who gave up.
        why: &'static str,
    },
    /// What became of messages and flushes, and what there is to watch. What delivery wants done
    /// is done here and not passed on: grants, rebases, dropped links.
    Told {
        /// What delivery says.
        what: delivery::Output,
        /// The words that a refusal came with, if a server refused.
        answer: Option<Box<Answer>>,
    },
    /// A stored message cannot be sent, and nothing behind it is.
    Damaged {
        /// The message.
        sequence: u64,
        /// What is wrong with it.
        error: String,
    },
    /// A close is over, and its flush counted this, which no other flush counts again.
    Closed(delivery::Flushed),
    /// It is over: close the store with this. Nothing follows.
    Over {
        /// The highest sequence handed to a link, in this run or before: what
        /// [`PublishStore::close`] wants to know.
        handed_over: u64,
    },
}

/// A store call that waits for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// [`PublishStore::raise_grant`].
    RaiseGrant(u64),
    /// [`PublishStore::rebase`].
    Rebase(u64),
}

/// What became of a [`Job`].
#[derive(Debug)]
pub enum JobDone {
    /// The grant.
    Raised(Result<(), StoreError>),
    /// The rebase.
    Rebased(Result<Rebase, StoreError>),
}

impl Job {
    /// Does it; waits for the device.
    pub fn run(self, store: &dyn PublishStore) -> JobDone {
        match self {
            Job::RaiseGrant(to) => JobDone::Raised(store.raise_grant(to)),
            Job::Rebase(above) => JobDone::Rebased(store.rebase(above)),
        }
    }
}

/// The engine. See the module's page.
pub struct Engine {
    delivery: Delivery,
    attempts: Attempts,
    connect_timeout: Duration,
    ack_deadline: Duration,
    require: Option<Require>,
    /// How many servers there are, 0 if that is not known, and the name of the one that is tried.
    servers: usize,
    server: String,
    turned_down: TurnedDown,
    /// The store's identity, or that of this run.
    identity: u64,
    place: Place,
    batch: Batch,
    jobs: VecDeque<Job>,
    running: bool,
    /// Delivery wants the link gone.
    drop: Option<DropReason>,
    /// The application closes, and this is when it is over at the latest.
    closing: Option<Duration>,
    /// What delivery said of refusals, with the words they came with.
    refused: Refused,
    /// Messages were handed over since the link was polled.
    handed: bool,
    outputs: VecDeque<Output>,
}

type Refused = VecDeque<(delivery::Output, Option<Box<Answer>>)>;

enum Place {
    /// No link; the next attempt is at this moment.
    Idle { until: Duration },
    /// A link is being opened, until this moment at the latest.
    Opening { until: Duration },
    /// There is one.
    Linked(Linked),
    /// No more attempts.
    GaveUp,
    /// No more anything.
    Over,
}

struct Linked {
    link: Box<dyn Link>,
    /// When the server accepted the logon.
    up_at: Option<Duration>,
    /// What servers had settled or refused before.
    settled: u64,
    /// What it is good for, once it is up.
    capabilities: Option<Capabilities>,
    /// What a success means on it is not what is required.
    unmet: Option<String>,
    overdue: Overdue,
    /// When the server has taken too long to answer, if nothing more is heard.
    overdue_at: Option<Duration>,
    /// When what was turned away goes out again.
    again_at: Option<Duration>,
}

/// The flush that a close is.
const CLOSE: u64 = u64::MAX;

impl Engine {
    /// An engine for a store that was just opened, before anything is published to it in this
    /// run.
    pub fn new(
        store: &dyn PublishStore,
        config: Config,
        backoff: Box<dyn DelayStrategy>,
        now: Now,
    ) -> Self {
        let delivery = Delivery::new(store, config.delivery.clone());
        Engine::with(delivery, store.identity(), config, backoff, now)
    }

    /// An engine for what stands in a queue, which is the store that it is given from here on.
    pub fn without_store(
        queue: Arc<Queue>,
        config: Config,
        backoff: Box<dyn DelayStrategy>,
        now: Now,
    ) -> Self {
        let delivery = Delivery::without_store(queue, config.delivery.clone());
        Engine::with(delivery, None, config, backoff, now)
    }

    fn with(
        delivery: Delivery,
        identity: Option<u64>,
        config: Config,
        backoff: Box<dyn DelayStrategy>,
        now: Now,
    ) -> Self {
        Engine {
            identity: identity.unwrap_or_else(|| RandomState::new().hash_one(now.at)),
            ack_deadline: config.ack_deadline,
            require: config.require,
            servers: 0,
            server: String::new(),
            turned_down: TurnedDown::default(),
            delivery,
            attempts: Attempts::new(backoff, config.give_up_after, now.at),
            connect_timeout: config.connect_timeout,
            place: Place::Idle { until: now.at },
            batch: Batch::default(),
            jobs: VecDeque::new(),
            running: false,
            drop: None,
            closing: None,
            refused: VecDeque::new(),
            handed: false,
            outputs: VecDeque::new(),
        }
    }

    /// Does what is due, and gives the link as much as it takes.
    pub fn turn(&mut self, store: &dyn PublishStore, now: Now) {
        match self.place {
            Place::Idle { until } if now.at >= until => {
                let until = now.at + self.connect_timeout;
                self.place = Place::Opening { until };
                self.outputs.push_back(Output::Connect);
            }
            Place::Opening { until } if now.at >= until => {
                self.outputs.push_back(Output::Abandon);
                self.ended(store, now, LinkEnd::ConnectTimeout);
            }
            _ => {}
        }
        self.input(store, now, Input::Tick);
        if self.closing.is_some_and(|until| now.at >= until) {
            return self.stop(store, now);
        }
        loop {
            self.fill(store, now);
            if !self.look_at_hold(store, now) {
                break;
            }
        }
        self.note_overdue(store);
    }

    /// Lets the link write and read, once. Without a link it is pending, and no waker is called.
    pub fn poll(&mut self, cx: &mut Context<'_>, store: &dyn PublishStore, now: Now) -> Poll<()> {
        let Place::Linked(linked) = &mut self.place else {
            return Poll::Pending;
        };
        let mut ear = Ear {
            delivery: &mut self.delivery,
            store,
            now,
            require: self.require.as_ref(),
            up_at: &mut linked.up_at,
            capabilities: &mut linked.capabilities,
            unmet: &mut linked.unmet,
            overdue: &mut linked.overdue,
            refused: &mut self.refused,
            outputs: &mut self.outputs,
        };
        self.handed = false;
        let Poll::Ready(polled) = linked.link.poll(cx, now, &mut ear) else {
            // What is there to be read was read: what is not answered now is overdue.
            return match self.look_at_overdue(store, now) {
                true => Poll::Ready(()),
                false => Poll::Pending,
            };
        };
        if let Ok(progress) = &polled
            && let Some(through) = progress.through
        {
            linked.overdue.wrote(through, now.at);
        }
        let unmet = linked.unmet.take();
        // What was read with the end, or before the word that ends it, counts: it is told first,
        // and so is that the link must go.
        match polled {
            Ok(progress) if !progress.read => self.carry_out(store, now),
            Err(_) if planted!(AcksDroppedWithLink) => self.carry_out(store, now),
            _ => self.input(store, now, Input::AcksEnd),
        }
        let end = unmet.map(LinkEnd::Requirement).or(polled.err());
        if let Some(end) = end
            && self.is_linked()
        {
            self.ended(store, now, end);
        } else {
            self.look_at_overdue(store, now);
        }
        Poll::Ready(())
    }

    /// The next thing to carry out or to pass on.
    pub fn output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`turn`](Self::turn) and [`poll`](Self::poll) at the latest, in terms of
    /// [`Now::at`].
    pub fn deadline(&self) -> Option<Duration> {
        let place = match &self.place {
            Place::Idle { until } | Place::Opening { until } => Some(*until),
            Place::Linked(linked) => linked.deadline(),
            Place::GaveUp => None,
            Place::Over => return None,
        };
        [place, self.delivery.deadline(), self.closing]
            .into_iter()
            .flatten()
            .min()
    }

    /// What came of [`Output::Connect`]. A link that comes too late is dropped.
    pub fn connected(
        &mut self,
        store: &dyn PublishStore,
        now: Now,
        opened: Result<Box<dyn Link>, LinkEnd>,
    ) {
        if !matches!(self.place, Place::Opening { .. }) {
            return;
        }
        match opened {
            Ok(link) => {
                self.place = Place::Linked(Linked {
                    link,
                    up_at: None,
                    settled: self.delivery.settled_by_servers(),
                    capabilities: None,
                    unmet: None,
                    overdue: Overdue::new(self.ack_deadline),
                    overdue_at: None,
                    again_at: None,
                });
                self.outputs
                    .push_back(Output::State(ConnectionState::Connected));
            }
            Err(end) => self.ended(store, now, end),
        }
    }

    /// Which server is tried, and how many there are to try in turn, 0 if that is not known: what a
    /// message that one can never take has to know of the others. Servers are told apart by name.
    pub fn tries(&mut self, server: &str, servers: usize) {
        server.clone_into(&mut self.server);
        self.servers = servers;
    }

    /// Who publishes: what a [`Transport`](crate::Transport) is given for the next link.
    pub fn identity(&self, store: &dyn PublishStore) -> Identity {
        let first_unsettled = store.bounds().first_unsettled;
        // Behind a rebase that is the number before its first one: what the numbering before it
        // reached is not above that.
        let next = self.delivery.wire(self.delivery.handed_over() + 1);
        Identity {
            client: store.client_name(),
            store: self.identity,
            may_have_sent: next - 1,
            first_unsettled: first_unsettled.map(|first| self.delivery.wire(first)),
        }
    }

    /// What the link is good for, once it is up.
    pub fn capabilities(&self) -> Option<&Capabilities> {
        match &self.place {
            Place::Linked(linked) => linked.capabilities.as_ref(),
            _ => None,
        }
    }

    /// What the link says of itself, once it is up.
    pub fn about(&self) -> String {
        match &self.place {
            Place::Linked(linked) if linked.capabilities.is_some() => linked.link.about(),
            _ => String::new(),
        }
    }

    /// There is no server to connect to, and never will be.
    pub fn no_server(&mut self) {
        if matches!(self.place, Place::Opening { .. }) {
            self.give_up_for_good("the server chooser names no server");
        }
    }

    /// What came of [`Output::Job`].
    pub fn done(&mut self, store: &dyn PublishStore, now: Now, done: JobDone) {
        self.running = false;
        let input = match done {
            JobDone::Raised(result) => Input::GrantRaised(result),
            JobDone::Rebased(result) => Input::Rebased(result),
        };
        self.input(store, now, input);
    }

    /// The store can make nothing durable any more.
    pub fn sync_failed(&mut self, store: &dyn PublishStore, now: Now) {
        self.input(store, now, Input::SyncFailed);
    }

    /// The store's file is gone.
    pub fn store_gone(&mut self, store: &dyn PublishStore, now: Now) {
        self.input(store, now, Input::StoreGone);
    }

    /// Tells ([`delivery::Output::Flushed`]) when everything stored up to `through` is settled, or when it
    /// is `until`; none waits for ever. `id` is the caller's, and not `u64::MAX`.
    pub fn flush(
        &mut self,
        store: &dyn PublishStore,
        now: Now,
        id: u64,
        through: u64,
        until: Option<Duration>,
    ) {
        self.input(store, now, Input::Flush { id, through, until });
        if matches!(self.place, Place::Over) {
            self.input(store, now, Input::Closing);
        }
    }

    /// Nobody waits for this flush any more.
    pub fn cancel_flush(&mut self, store: &dyn PublishStore, now: Now, id: u64) {
        self.input(store, now, Input::FlushCancelled { id });
    }

    /// An operator gives up on a message that no server will settle: it becomes a refusal, and
    /// what is behind it goes on. The server may have it all the same.
    pub fn give_up(&mut self, store: &dyn PublishStore, now: Now, sequence: u64, reason: &str) {
        self.input(store, now, Input::GiveUp { sequence, reason });
    }

    /// The application allows one more rebase in this run.
    pub fn allow_rebase(&mut self, store: &dyn PublishStore, now: Now) {
        self.input(store, now, Input::AllowRebase);
    }

    /// Ends when everything stored is settled, at `until` at the latest; of several calls the
    /// earliest counts.
    pub fn close(&mut self, store: &dyn PublishStore, now: Now, until: Duration) {
        if matches!(self.place, Place::Over) {
            return;
        }
        let begun = self.closing.is_some();
        self.closing = Some(self.closing.map_or(until, |before| before.min(until)));
        if !begun {
            let (id, through, until) = (CLOSE, u64::MAX, Some(until));
            self.input(store, now, Input::Flush { id, through, until });
        }
    }

    /// Ends now, whatever is left.
    pub fn stop(&mut self, store: &dyn PublishStore, now: Now) {
        match std::mem::replace(&mut self.place, Place::Over) {
            Place::Over => return,
            Place::Opening { .. } => self.outputs.push_back(Output::Abandon),
            Place::Idle { .. } | Place::Linked(_) | Place::GaveUp => {}
        }
        self.jobs.clear();
        self.input(store, now, Input::LinkLost);
        self.input(store, now, Input::Closing);
        self.outputs.push_back(Output::Over {
            handed_over: self.delivery.handed_over(),
        });
    }

    /// The link, or the attempt to open one, must go for a reason of the caller's.
    pub fn lose(&mut self, store: &dyn PublishStore, now: Now, why: LinkEnd) {
        match self.place {
            Place::Opening { .. } => self.outputs.push_back(Output::Abandon),
            Place::Linked(_) => {}
            Place::Idle { .. } | Place::GaveUp | Place::Over => return,
        }
        self.ended(store, now, why);
    }

    /// Whether nothing moves until something happens: then who stores a message has to call
    /// [`turn`](Self::turn). It is not when the link takes no more, and then what is stored
    /// waits for that anyway.
    pub fn is_idle(&self) -> bool {
        match &self.place {
            Place::Linked(linked) => !self.handed && !linked.link.room().is_none(),
            _ => false,
        }
    }

    /// How many unsettled messages may have been sent before, at most.
    pub fn may_be_sent_again(&self, store: &dyn PublishStore) -> u64 {
        self.delivery.may_be_sent_again(store)
    }

    /// Totals of this run.
    pub fn totals(&self) -> Totals {
        self.delivery.totals()
    }

    /// Messages on this link without an answer.
    pub fn in_flight(&self) -> u64 {
        self.delivery.in_flight()
    }

    /// Whether messages may go out now.
    pub fn is_live(&self) -> bool {
        self.delivery.is_live()
    }

    /// Whether it has a link.
    pub fn is_linked(&self) -> bool {
        matches!(self.place, Place::Linked(_))
    }

    /// Whether it ended.
    pub fn is_over(&self) -> bool {
        matches!(self.place, Place::Over)
    }

    fn input(&mut self, store: &dyn PublishStore, now: Now, input: Input<'_>) {
        self.delivery.handle(store, now, input);
        self.carry_out(store, now);
    }

    /// Takes out what delivery decided.
    fn carry_out(&mut self, store: &dyn PublishStore, now: Now) {
        let mut closed = false;
        while let Some((output, answer)) = self.next_decided() {
            let output = match output {
                delivery::Output::RaiseGrant { to } => {
                    self.jobs.push_back(Job::RaiseGrant(to));
                    continue;
                }
                delivery::Output::Rebase { above } => {
                    self.jobs.push_back(Job::Rebase(above));
                    continue;
                }
                delivery::Output::DropLink { why } => {
                    self.drop.get_or_insert(why);
                    continue;
                }
                delivery::Output::Flushed { id: CLOSE, result } => {
                    closed = true;
                    Output::Closed(result)
                }
                what => Output::Told { what, answer },
            };
            self.outputs.push_back(output);
        }
        if let Some(why) = self.drop.take()
            && self.is_linked()
        {
            self.ended(store, now, link_end(why));
        }
        if closed {
            self.stop(store, now);
        }
        if !self.running
            && !self.is_over()
            && let Some(job) = self.jobs.pop_front()
        {
            self.running = true;
            self.outputs.push_back(Output::Job(job));
        }
    }

    fn next_decided(&mut self) -> Option<(delivery::Output, Option<Box<Answer>>)> {
        let refused = self.refused.pop_front();
        refused.or_else(|| Some((self.delivery.poll()?, None)))
    }

    fn fill(&mut self, store: &dyn PublishStore, now: Now) {
        let Place::Linked(linked) = &mut self.place else {
            return;
        };
        // What is due may be its end: then nothing more is handed to it.
        if linked.link.deadline().is_some_and(|at| now.at >= at) {
            return;
        }
        let end = loop {
            let room = linked.link.room();
            if room.is_none() {
                break None;
            }
            let link = &mut linked.link;
            let overdue = &mut linked.overdue;
            let recalled = self
                .delivery
                .recall(store, now, room, &mut self.batch, |messages| {
                    overdue.asked(now.at);
                    link.recall(now, messages);
                });
            match recalled {
                Ok(true) => {
                    self.handed = true;
                    continue;
                }
                Ok(false) => {}
                Err(error) => break Some(cannot_read(&mut self.outputs, error)),
            }
            let handed = self
                .delivery
                .hand_over(store, now, room, &mut self.batch, |message| {
                    link.send(now, message)
                });
            match handed {
                Ok(0) => break None,
                Ok(_) => self.handed = true,
                Err(NotSent::Read(error)) => break Some(cannot_read(&mut self.outputs, error)),
                Err(NotSent::Refused { sequence, error }) => {
                    self.delivery.unsendable(sequence, &error.why);
                    break None;
                }
            }
        };
        linked.link.waits(now, self.delivery.in_flight());
        self.carry_out(store, now);
        if let Some(end) = end {
            self.ended(store, now, end);
        }
    }

    /// Takes in the end of a link, or of an attempt.
    fn ended(&mut self, store: &dyn PublishStore, now: Now, why: LinkEnd) {
        // Time alone will not mend what stopped a line, or what no server can take.
        let stuck = self.delivery.line_is_stopped() || self.is_turned_down(&why);
        let (was_up, healthy) = match std::mem::replace(&mut self.place, Place::GaveUp) {
            Place::Over => {
                self.place = Place::Over;
                return;
            }
            Place::Linked(mut linked) => {
                if planted!(WrittenAfterEnd) {
                    held::write_on(&mut linked, now);
                }
                // Nothing of it leaves the process from here on.
                drop(linked.link);
                self.input(store, now, Input::LinkLost);
                let settled = self.delivery.settled_by_servers() > linked.settled;
                let healthy = settled || linked.up_at.is_some_and(|at| lived(at, now));
                (linked.up_at.is_some(), healthy)
            }
            Place::Idle { .. } | Place::Opening { .. } | Place::GaveUp => {
                self.input(store, now, Input::LinkLost);
                (false, false)
            }
        };
        if matches!(self.place, Place::Over) {
            // What was settled last was all that a close waited for.
            return;
        }
        let longest = stuck || self.delivery.wants_longest_delay();
        let next = self.attempts.next(now.at, was_up, healthy, longest);
        let retry_in = next.ok();
        self.outputs.push_back(Output::LinkEnded { why, retry_in });
        match next {
            Ok(delay) => {
                let until = now.at + delay;
                self.place = Place::Idle { until };
            }
            Err(why) => self.give_up_for_good(why),
        }
    }

    fn give_up_for_good(&mut self, why: &'static str) {
        self.place = Place::GaveUp;
        self.outputs.push_back(Output::GaveUp { why });
    }
}

fn cannot_read(outputs: &mut VecDeque<Output>, error: ReadError) -> LinkEnd {
    let told = error.to_string();
    if let ReadError::Damaged { sequence, .. } = error {
        let error = told.clone();
        outputs.push_back(Output::Damaged { sequence, error });
    }
    LinkEnd::Store(told)
}

/// A link that lived this long after its logon was good.
const HEALTHY: Duration = Duration::from_secs(10);

fn lived(up_at: Duration, now: Now) -> bool {
    now.at.saturating_sub(up_at) >= HEALTHY
}

/// Hands what is heard to delivery as it comes.
struct Ear<'a> {
    delivery: &'a mut Delivery,
    store: &'a dyn PublishStore,
    now: Now,
    require: Option<&'a Require>,
    up_at: &'a mut Option<Duration>,
    capabilities: &'a mut Option<Capabilities>,
    unmet: &'a mut Option<String>,
    overdue: &'a mut Overdue,
    refused: &'a mut Refused,
    outputs: &'a mut VecDeque<Output>,
}

impl Sink for Ear<'_> {
    fn heard(&mut self, heard: Heard<'_>) {
        let input = match heard {
            Heard::Ack { ack, words } if ack.verdict != Verdict::Persisted => {
                return self.refusal(Input::Ack(ack), ack.figure, words);
            }
            Heard::Ack { ack, .. } => Input::Ack(ack),
            Heard::Up(up) => return self.up(up),
            Heard::Changed(capabilities) => return self.changed(capabilities),
            Heard::One { wire, evidence } => {
                self.overdue.heard(self.now.at);
                Input::One { wire, evidence }
            }
            Heard::Through { wire } => {
                self.overdue.heard(self.now.at);
                Input::Mark { wire }
            }
            Heard::Refused {
                wire,
                reason,
                may_be_stored,
                words,
            } => {
                self.overdue.heard(self.now.at);
                let input = Input::Refused {
                    wire,
                    reason,
                    may_be_stored,
                };
                return self.refusal(input, None, words);
            }
            Heard::TryAgain { wire, why, at_once } => {
                self.overdue.heard(self.now.at);
                Input::TryAgain { wire, why, at_once }
            }
            Heard::LineStopped { why } => Input::LineStopped { why },
            Heard::LineFree => Input::LineFree,
            Heard::Found { wire } => {
                self.overdue.heard(self.now.at);
                Input::Found { wire }
            }
            Heard::Absent { wire } => {
                self.overdue.heard(self.now.at);
                Input::Absent { wire }
            }
            Heard::State(state) => return self.outputs.push_back(Output::State(state)),
        };
        self.delivery.handle(self.store, self.now, input);
    }
}

impl Ear<'_> {
    fn up(&mut self, up: Up<'_>) {
        if self.up_at.is_some() {
            return;
        }
        *self.up_at = Some(self.now.at);
        self.changed(up.capabilities);
        if self.unmet.is_some() {
            return;
        }
        self.outputs.push_back(Output::Up);
        let input = Input::LoggedOn {
            resume: up.resume,
            acks: up.capabilities.acks,
        };
        self.delivery.handle(self.store, self.now, input);
    }

    fn changed(&mut self, capabilities: &Capabilities) {
        *self.capabilities = Some(capabilities.clone());
        let judged = self
            .require
            .map_or(Ok(()), |require| require.judge(&capabilities.meaning));
        if let Err(why) = judged {
            // What was heard before had the meaning of before.
            self.delivery.handle(self.store, self.now, Input::Unusable);
            self.unmet.get_or_insert(why);
        }
    }

    /// What it leads to is taken out at once, to go with the words it came in.
    fn refusal(&mut self, input: Input<'_>, figure: Option<u64>, words: Words<'_>) {
        while let Some(before) = self.delivery.poll() {
            self.refused.push_back((before, None));
        }
        self.delivery.handle(self.store, self.now, input);
        while let Some(what) = self.delivery.poll() {
            let answer = tells_of_a_refusal(&what).then(|| {
                Box::new(Answer {
                    kind: words.kind.map(str::to_owned),
                    id: words.id.map(str::to_owned),
                    figure,
                    reason_cut: words.reason_cut,
                })
            });
            self.refused.push_back((what, answer));
        }
    }
}

fn tells_of_a_refusal(output: &delivery::Output) -> bool {
    matches!(
        output,
        delivery::Output::Refused { .. }
            | delivery::Output::RefusalNotLogged { .. }
            | delivery::Output::Unattributed { .. }
    )
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
