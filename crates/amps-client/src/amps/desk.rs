//! The desk: handles leave commands and subscriptions here for the link, and find the answers.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use amps_delivery::{ConnectionState, Heard, Now, Queue, Sink};
use tokio::sync::{mpsc, oneshot};

use super::readers::{Entry, Placing, Readers};
use crate::error::CommandError;
use crate::failed::UnhandledAck;
use crate::requests::{Answer, Request, Subscribe};
use crate::session::{Expired, MAX_WAITING, Received, ServerInfo, Session};
use crate::subscription::{Leave, Subscription, SubscriptionEnd};

/// How many questions may wait for the link.
const ASKS: usize = 256;

/// Bytes of commands that may wait for the stream. Whoever asks for more has to wait.
const COMMANDS_LIMIT: usize = 1 << 20;

pub(crate) type Reply = oneshot::Sender<Result<Answer, CommandError>>;

/// What a handle asks the server for.
pub(crate) enum Ask {
    Command {
        request: Box<Request>,
        /// Deadline, in terms of [`Now::at`].
        until: Duration,
        behind: Option<Behind>,
        reply: Reply,
    },
    Subscribe {
        spec: Subscribe,
        placing: Placing,
    },
}

/// A place in the order of messages: a command is sent after everything accepted before it.
pub(crate) struct Behind {
    queue: Arc<Queue>,
    last: u64,
}

impl Behind {
    /// Everything that the queue has taken by now.
    pub(crate) fn all(queue: &Arc<Queue>) -> Self {
        Behind {
            queue: queue.clone(),
            last: queue.last(),
        }
    }

    /// The last message that is before it.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// The link has taken everything that is before it: what goes out now is behind.
    fn is_reached(&self) -> bool {
        self.queue.has_handed_over(self.last)
    }
}

impl Ask {
    fn has_to_wait(&self) -> bool {
        match self {
            Ask::Command { behind, .. } => behind.as_ref().is_some_and(|b| !b.is_reached()),
            Ask::Subscribe { .. } => false,
        }
    }
}

/// What a server says that concerns no publish, no command and no subscription.
#[derive(Clone, Debug)]
pub(crate) enum Stray {
    /// It accepted the logon, and says this about itself.
    Server(ServerInfo),
    /// An ack that nothing takes.
    Unhandled(UnhandledAck),
    /// A field that cannot be read; its key.
    UnreadableField(String),
}

/// The side of the handles.
pub(crate) struct Desk {
    asks: mpsc::Sender<Ask>,
    /// There are links that serve it.
    is_served: bool,
    up: AtomicBool,
    left: Mutex<Left>,
    /// Since the last look. No more than one read can bring, since whoever lets the link read
    /// looks afterwards.
    strays: Mutex<Vec<Stray>>,
}

/// Subscriptions whose reader is gone; at most as many as there are subscriptions.
#[derive(Default)]
struct Left {
    subscriptions: Vec<u64>,
    link: Option<Waker>,
}

impl Desk {
    /// A desk, and what serves it.
    pub(crate) fn new(session: Session) -> (Arc<Desk>, Arc<Slot>) {
        let (asks, asked) = mpsc::channel(ASKS);
        let desk = Arc::new(Desk::with(asks, true));
        let sitting = Sitting {
            session,
            replies: BTreeMap::new(),
            readers: Readers::default(),
            asked,
            held: VecDeque::new(),
            desk: desk.clone(),
        };
        let slot = Slot(Mutex::new(Some(sitting)));
        (desk, Arc::new(slot))
    }

    /// The desk of a client whose servers take neither commands nor subscriptions.
    pub(crate) fn unserved() -> (Arc<Desk>, Arc<Slot>) {
        let (asks, _) = mpsc::channel(1);
        (Arc::new(Desk::with(asks, false)), Arc::default())
    }

    fn with(asks: mpsc::Sender<Ask>, is_served: bool) -> Self {
        Desk {
            asks,
            is_served,
            up: AtomicBool::new(false),
            left: Mutex::default(),
            strays: Mutex::default(),
        }
    }

    /// Leaves a question; waits while too many are queued.
    ///
    /// # Errors
    /// Not connected (for a command), or the client is closed.
    pub(crate) async fn ask(&self, ask: Ask) -> Result<(), CommandError> {
        self.may_ask(&ask)?;
        self.asks.send(ask).await.map_err(|_| CommandError::Closed)
    }

    /// As [`ask`](Self::ask), but never waits.
    pub(crate) fn try_ask(&self, ask: Ask) -> Result<(), CommandError> {
        self.may_ask(&ask)?;
        self.asks.try_send(ask).map_err(|_| CommandError::TooMany)
    }

    fn may_ask(&self, ask: &Ask) -> Result<(), CommandError> {
        match ask {
            _ if !self.is_served => Err(CommandError::Unsupported),
            _ if self.asks.is_closed() => Err(CommandError::Closed),
            Ask::Subscribe { .. } => Ok(()),
            Ask::Command { .. } if self.is_up() => Ok(()),
            Ask::Command { .. } => Err(CommandError::NotConnected),
        }
    }

    pub(super) fn set_up(&self, up: bool) {
        self.up.store(up, Ordering::Release);
    }

    /// Whether links of this client take commands at all.
    pub(crate) fn is_served(&self) -> bool {
        self.is_served
    }

    /// Whether there is a link that takes commands.
    pub(crate) fn is_up(&self) -> bool {
        self.up.load(Ordering::Acquire)
    }

    pub(super) fn stray(&self, stray: Stray) {
        lock(&self.strays).push(stray);
    }

    /// What came since the last look.
    pub(crate) fn take_strays(&self) -> Vec<Stray> {
        std::mem::take(&mut lock(&self.strays))
    }

    fn left(&self) -> MutexGuard<'_, Left> {
        lock(&self.left)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Leave for Desk {
    fn leave(&self, subscription: u64) {
        let mut left = self.left();
        left.subscriptions.push(subscription);
        let link = left.link.take();
        drop(left);
        if let Some(link) = link {
            link.wake();
        }
    }
}

/// Where the sitting is kept between two links, if there is one.
#[derive(Default)]
pub(crate) struct Slot(Mutex<Option<Sitting>>);

impl Slot {
    pub(crate) fn take(&self) -> Option<Sitting> {
        lock(&self.0).take()
    }

    pub(crate) fn give_back(&self, sitting: Sitting) {
        *lock(&self.0) = Some(sitting);
    }

    /// Serves what needs no link, between two links. `unreachable`: why no server can be asked to
    /// place a subscription.
    pub(crate) fn serve(&self, unreachable: Option<&CommandError>) {
        if let Some(sitting) = &mut *lock(&self.0) {
            sitting.serve_offline(unreachable);
        }
    }

    /// No more questions will be asked. There must be no link any more.
    pub(crate) fn finish(&self) {
        if let Some(sitting) = &mut *lock(&self.0) {
            sitting.asked.close();
            // Their callers learn that the client is closed.
            while sitting.asked.try_recv().is_ok() {}
        }
    }

    /// The client ends, and every subscription with it.
    pub(crate) fn close(&self) {
        if let Some(mut sitting) = self.take() {
            sitting.readers.close();
        }
    }
}

/// What outlives a link: the session, whoever waits for its answers, and readers of
/// subscriptions.
pub(crate) struct Sitting {
    pub(super) session: Session,
    pub(super) replies: BTreeMap<u64, Reply>,
    pub(super) readers: Readers,
    asked: mpsc::Receiver<Ask>,
    /// Commands that wait for the link to take what was accepted before them; no more than may
    /// wait for an answer.
    held: VecDeque<Ask>,
    pub(super) desk: Arc<Desk>,
}

impl Sitting {
    /// Does what is due.
    ///
    /// # Errors
    /// The link must be given up.
    pub(super) fn tick(
        &mut self,
        now: Now,
        out: &mut Vec<u8>,
        sink: &mut dyn Sink,
    ) -> Result<(), Expired> {
        let (replies, readers) = (&mut self.replies, &mut self.readers);
        let mut ear = |item: Received<'_>| match item {
            Received::HeartbeatInitiated => {
                sink.heard(Heard::State(ConnectionState::HeartbeatInitiated));
            }
            Received::Resubscribed => sink.heard(Heard::State(ConnectionState::Resubscribed)),
            other => answered(replies, readers, other),
        };
        self.session.tick(now.at, out, &mut ear)
    }

    /// Takes questions as long as there is room for their bytes; returns whether there was one.
    pub(super) fn serve(&mut self, cx: &mut Context<'_>, now: Now, out: &mut Vec<u8>) -> bool {
        let mut left = self.desk.left();
        let subscriptions = std::mem::take(&mut left.subscriptions);
        left.link = Some(cx.waker().clone());
        drop(left);
        let mut any = self.end(subscriptions, out);
        while self.held.front().is_some_and(|ask| !ask.has_to_wait())
            && let Some(ask) = self.held.pop_front()
        {
            any = true;
            self.take(now, ask, out);
        }
        while out.len() < COMMANDS_LIMIT {
            // `None`: all handles are gone.
            let Poll::Ready(Some(ask)) = self.asked.poll_recv(cx) else {
                break;
            };
            any = true;
            match ask.has_to_wait() {
                true => self.hold(ask),
                false => self.take(now, ask, out),
            }
        }
        any
    }

    fn hold(&mut self, ask: Ask) {
        if self.held.len() >= MAX_WAITING {
            // Those that nobody waits for any more.
            self.held
                .retain(|held| matches!(held, Ask::Command { reply, .. } if !reply.is_closed()));
        }
        match ask {
            Ask::Command { reply, .. } if self.held.len() >= MAX_WAITING => {
                drop(reply.send(Err(CommandError::TooMany)));
            }
            ask => self.held.push_back(ask),
        }
    }

    fn end(&mut self, subscriptions: Vec<u64>, out: &mut Vec<u8>) -> bool {
        let any = !subscriptions.is_empty();
        for subscription in subscriptions {
            self.readers.remove(subscription);
            self.session.unsubscribe(subscription, out);
        }
        any
    }

    fn serve_offline(&mut self, unreachable: Option<&CommandError>) {
        // Without a link nothing is written.
        let mut out = Vec::new();
        let left = std::mem::take(&mut self.desk.left().subscriptions);
        self.end(left, &mut out);
        for held in std::mem::take(&mut self.held) {
            if let Ask::Command { reply, .. } = held {
                drop(reply.send(Err(CommandError::Disconnected)));
            }
        }
        while let Ok(ask) = self.asked.try_recv() {
            self.take(Now::default(), ask, &mut out);
        }
        if let Some(error) = unreachable {
            for subscription in self.readers.cannot_be_placed(error) {
                self.session.unsubscribe(subscription, &mut out);
            }
        }
    }

    fn take(&mut self, now: Now, ask: Ask, out: &mut Vec<u8>) {
        let (given, reply) = match ask {
            Ask::Subscribe { spec, placing } => return self.subscribe(now, spec, placing, out),
            // It waited for the link, and now its caller does not expect it any more.
            Ask::Command { until, reply, .. } if now.at >= until => {
                (Err(CommandError::Timeout), reply)
            }
            Ask::Command {
                request,
                until,
                reply,
                ..
            } => {
                self.forget_cancelled();
                let given = self.session.command(now.at, &request, Some(until), out);
                (given, reply)
            }
        };
        match given {
            Ok(Some(id)) => drop(self.replies.insert(id, reply)),
            Ok(None) => drop(reply.send(Ok(Answer::default()))),
            Err(error) => drop(reply.send(Err(error))),
        }
    }

    fn subscribe(&mut self, now: Now, spec: Subscribe, placing: Placing, out: &mut Vec<u8>) {
        let (messages, receiver) = mpsc::channel(spec.buffer);
        let (end, ended) = oneshot::channel();
        let (held, limit) = (Arc::<AtomicUsize>::default(), spec.buffer_bytes);
        let query = spec.is_query();
        let id = self.session.subscribe(now.at, spec, out);
        let desk = Arc::downgrade(&self.desk);
        let subscription = Subscription {
            id,
            messages: receiver,
            held: held.clone(),
            end: ended,
            ended: false,
            query,
            client: desk,
        };
        let entry = Entry {
            messages,
            held,
            limit,
            topic: "".into(),
            end,
            placing: Some((placing, subscription)),
        };
        self.readers.insert(id, entry);
    }

    /// When all places for answers are taken, gives up those whose caller has stopped waiting. If
    /// their answers come all the same, nothing takes them.
    fn forget_cancelled(&mut self) {
        if self.session.waiting() < MAX_WAITING {
            return;
        }
        let session = &mut self.session;
        self.replies.retain(|id, reply| {
            let waits = !reply.is_closed();
            if !waits {
                session.forget(*id);
            }
            waits
        });
    }

    /// The link is gone: commands fail, subscriptions wait for the next link.
    pub(super) fn link_ended(&mut self) {
        self.desk.set_up(false);
        let (replies, readers) = (&mut self.replies, &mut self.readers);
        self.session
            .disconnected(&mut |item| answered(replies, readers, item));
        self.serve_offline(None);
    }
}

/// Answers that came for commands and subscriptions.
pub(super) fn answered(
    replies: &mut BTreeMap<u64, Reply>,
    readers: &mut Readers,
    item: Received<'_>,
) {
    match item {
        Received::Done { id, result } => match replies.remove(&id) {
            // Its caller may have stopped waiting.
            Some(reply) => drop(reply.send(result)),
            None => readers.placed(id, result),
        },
        Received::SubscriptionEnded {
            subscription,
            error,
        } => readers.end(subscription, error.map(SubscriptionEnd::Command)),
        _ => {}
    }
}
