//! The client, as applications hold it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use amps_delivery::Capabilities;
use amps_store::{Bounds, Envelope, PublishStore};
use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::amps::{self, Behind};
use crate::error::{
    CloseReport, CommandError, FlushError, FlushReport, LogonError, PublishError, PublishFailure,
};
use crate::event::{ConnectionState, Events, LinkEnd};
use crate::handlers::{Failed, is_handling};
use crate::mailbox::{Ask, CloseRequest, Counted};
use crate::message::{Message, check_topic};
use crate::protocol::Reason;
use crate::receipt::Receipt;
use crate::requests::{Answer, Request, Subscribe};
use crate::session::ServerInfo;
use crate::shared::{End, Shared, YEAR, unix_micros};
use crate::subscription::Subscription;

/// A publisher (and subscriber) of one AMPS instance or a group of them.
///
/// Cheap to clone; clones are one client. Every method may be called from any thread and
/// from inside any handler. When the last clone is dropped without
/// [`close`](Client::close), the client ends at once; what is unsettled stays in the store.
/// A handler that holds a clone keeps the client alive.
#[derive(Clone)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
    /// Tells the driver when the last handle is gone.
    pub(crate) _alive: Arc<Alive>,
}

pub(crate) struct Alive(pub(crate) Arc<Shared>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.mailbox.dropped.store(true, Ordering::Release);
        self.0.mailbox.doorbell.ring_always();
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("name", &self.shared.name)
            .finish_non_exhaustive()
    }
}

/// Counts of this run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Messages accepted by `publish` and similar calls.
    pub published: u64,
    /// Settled as a success by an ack.
    pub persisted: u64,
    /// Settled as a success at a logon without any ack: persisted, or refused with a
    /// refusal that was lost.
    pub persisted_at_logon: u64,
    /// Settled because the server had seen the message's id before; no AMPS server says that.
    pub duplicates: u64,
    /// Settled because the server was asked for the message by its id after a link had ended, and
    /// holds it; no AMPS server is asked.
    pub found: u64,
    /// Messages that may be stored twice: they went out again, and the server, which may have had
    /// them, could not say so. At AMPS those that a rebase sent under other numbers.
    pub possible_duplicates: u64,
    /// Refused, with the refusal in the log, or in memory where that could not take it
    /// ([`Health::unrecorded_refusals`]); without a store, by the ack that was asked for.
    pub rejected: u64,
    /// Sent although they may have been sent before, under the same number or another.
    pub resent: u64,
    /// Refusals that came after a success.
    pub late: u64,
    /// Refusals that named no message.
    pub unattributed: u64,
    /// Without a store: accepted, but never handed to a link.
    pub unsent: u64,
}

/// The state of a client at one moment.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Health {
    /// Where the connection stands.
    pub state: ConnectionState,
    /// The server that the state is about, without its credentials.
    pub server: String,
    /// What the server said about itself at the last logon: its version, and its hash of this
    /// client's name.
    pub server_info: ServerInfo,
    /// What the last link that was up was good for: whether messages can overtake each other, what a
    /// success means.
    pub capabilities: Option<Capabilities>,
    /// What that link said of itself, in words: where it led to, and why it was as it was. AMPS says
    /// nothing.
    pub about: String,
    /// How the last link or attempt ended, and at which server.
    pub last_error: Option<(String, LinkEnd)>,
    /// No more attempts to connect are made, for this reason.
    pub gave_up: Option<&'static str>,
    /// The last logon that a server refused, where and why; none if one was accepted since.
    pub logon_refused: Option<(String, Reason)>,
    /// Logons accepted in this run.
    pub logons: u64,
    /// Messages in the store that are not settled; without a store, those that wait for the acks
    /// they asked for.
    pub unsettled: u64,
    /// Sequence of the first of them.
    pub first_unsettled: Option<u64>,
    /// Refusals that wait for the application.
    pub rejections: u64,
    /// Bytes taken in the store, with the room charged for their future.
    pub live_bytes: u64,
    /// The most `live_bytes` may become.
    pub limit_bytes: u64,
    /// A sync failed: nothing in this store can be made durable any more.
    pub sync_failed: bool,
    /// The store's file was removed. The store takes nothing more; what it holds is still sent,
    /// but is lost with this process unless it is evacuated.
    pub store_gone: bool,
    /// Messages that are settled or refused here, and that the log could not note so after a sync
    /// failed: the next open finds them unsettled and sends them again. Not counted in `unsettled`.
    pub unrecorded_messages: u64,
    /// Of `rejections`, those that the log could not note: they end with this process.
    pub unrecorded_refusals: u64,
    /// Numbers of this run.
    pub counts: Counts,
}

impl Client {
    /// The client's name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Publishes `payload` to `topic`. As [`send`](Self::send), without a [`Message`] to
    /// build.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn publish(
        &self,
        topic: &str,
        payload: impl Into<Bytes>,
    ) -> Result<Receipt, PublishError> {
        let payload = payload.into();
        let failure = match self.publish_now(topic, &payload) {
            None => return self.send(Message::publish(topic.to_owned(), payload)).await,
            Some(Ok(receipt)) => return Ok(receipt),
            Some(Err(failure)) => failure,
        };
        let message = Message::publish(topic.to_owned(), payload);
        self.wait_for_room(PublishError::new(failure, message), None)
            .await
    }

    /// Stores a message if there is a store. This is a function of its own because otherwise its
    /// local values would take room in the future of its caller.
    fn publish_now(&self, topic: &str, payload: &[u8]) -> Option<Result<Receipt, PublishFailure>> {
        self.shared.store()?;
        if let Err(bad) = check_topic(topic) {
            return Some(Err(PublishFailure::Message(bad)));
        }
        let mut envelope = Envelope::publish(topic);
        envelope.published_at = unix_micros();
        Some(self.shared.append(&envelope, payload))
    }

    /// As [`publish`](Self::publish), but never waits.
    ///
    /// # Errors
    /// As [`send`](Self::send); a full store is one of them.
    pub fn try_publish(
        &self,
        topic: &str,
        payload: impl Into<Bytes>,
    ) -> Result<Receipt, PublishError> {
        self.try_send(Message::publish(topic.to_owned(), payload))
    }

    /// Merges `payload` into the record of `topic` that it identifies. As
    /// [`send`](Self::send) of [`Message::delta_publish`].
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn delta_publish(
        &self,
        topic: &str,
        payload: impl Into<Bytes>,
    ) -> Result<Receipt, PublishError> {
        self.send(Message::delta_publish(topic.to_owned(), payload))
            .await
    }

    /// Deletes the records of `topic` that match `filter` at the time when the server processes
    /// the command. As [`send`](Self::send) of [`Message::sow_delete_by_filter`].
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn sow_delete_by_filter(
        &self,
        topic: &str,
        filter: impl Into<String>,
    ) -> Result<Receipt, PublishError> {
        self.send(Message::sow_delete_by_filter(topic.to_owned(), filter))
            .await
    }

    /// Deletes the records of `topic` with these keys, which are the server's own. As
    /// [`send`](Self::send) of [`Message::sow_delete_by_keys`].
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn sow_delete_by_keys<K: AsRef<str>>(
        &self,
        topic: &str,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<Receipt, PublishError> {
        self.send(Message::sow_delete_by_keys(topic.to_owned(), keys))
            .await
    }

    /// Deletes the record of `topic` that `data` identifies. As [`send`](Self::send) of
    /// [`Message::sow_delete_by_data`].
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn sow_delete_by_data(
        &self,
        topic: &str,
        data: impl Into<Bytes>,
    ) -> Result<Receipt, PublishError> {
        self.send(Message::sow_delete_by_data(topic.to_owned(), data))
            .await
    }

    /// Stores a message, to be sent as soon as the server can take it. If the store is full it
    /// waits for room there, and for nothing else; without a store it waits for room in the send
    /// buffer. Inside a handler it never waits.
    ///
    /// Once this has returned, a process crash loses nothing; `receipt.durable()` covers a power
    /// cut. The receipt tells what becomes of the message, and the failed-write handler is called
    /// if it is refused.
    ///
    /// Cancel safe: a cancelled call has stored nothing, since storing and returning the receipt
    /// are one step.
    ///
    /// # Errors
    /// A [`PublishError`], which hands the message back and says whether trying again
    /// makes sense.
    pub async fn send(&self, message: Message) -> Result<Receipt, PublishError> {
        match self.try_send(message) {
            Ok(receipt) => Ok(receipt),
            Err(error) => self.wait_for_room(error, None).await,
        }
    }

    /// As [`send`](Self::send), but waits for room no longer than `timeout`.
    ///
    /// Cancel safe, as [`send`](Self::send).
    ///
    /// # Errors
    /// As [`send`](Self::send), and [`PublishFailure::Deadline`].
    ///
    /// # Panics
    /// When it waits outside a tokio runtime with a clock.
    pub async fn send_deadline(
        &self,
        message: Message,
        timeout: Duration,
    ) -> Result<Receipt, PublishError> {
        match self.try_send(message) {
            Ok(receipt) => Ok(receipt),
            Err(error) => {
                // A timeout that overflows counts as no limit.
                let deadline = Instant::now().checked_add(timeout);
                self.wait_for_room(error, deadline).await
            }
        }
    }

    /// As [`send`](Self::send), but never waits.
    ///
    /// # Errors
    /// As [`send`](Self::send); a full store is one of them.
    pub fn try_send(&self, message: Message) -> Result<Receipt, PublishError> {
        self.shared
            .accept(&message)
            .map_err(|failure| PublishError::new(failure, message))
    }

    async fn wait_for_room(
        &self,
        mut error: PublishError,
        deadline: Option<Instant>,
    ) -> Result<Receipt, PublishError> {
        let mut waits = false;
        loop {
            // A handler that waits for room may wait for itself: acks free room, and a refusal is
            // an ack that waits for its handler.
            if !error.is_for_room() || is_handling(&self.shared) {
                return Err(error);
            }
            // Registered before the next try, so that room that comes in between is not missed.
            let room = self.shared.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            error = match self.try_send(*error.message) {
                Ok(receipt) => return Ok(receipt),
                Err(error) if !error.is_for_room() => return Err(error),
                Err(error) => error,
            };
            if !std::mem::replace(&mut waits, true) {
                self.shared.meter.waits_for_room();
            }
            let Some(deadline) = deadline else {
                room.await;
                continue;
            };
            if timeout_at(deadline, room).await.is_err() {
                return Err(PublishError {
                    reason: PublishFailure::Deadline(Box::new(error.reason)),
                    message: error.message,
                });
            }
        }
    }

    /// Waits until everything stored before this call is settled, over any number of reconnects.
    /// A message that was refused counts as settled once the failed-write handler has returned
    /// for it, whether or not it took the refusal over; inside a handler, or without one, once
    /// the refusal is in the log. Refusals of earlier runs that are still to be offered are
    /// included. The last-chance handler has returned, too, from whatever came for it before.
    /// Without a store it asks the server to confirm that it has processed everything,
    /// and waits for the acks that messages asked for.
    ///
    /// If a handler waits for another task that flushes, the flush waits for the handler in turn,
    /// and only the timeout ends it.
    ///
    /// Cancel safe: only the waiting ends.
    ///
    /// # Errors
    /// [`FlushError::Timeout`], with what is left, which stays in the store and is still sent,
    /// and with how many handlers have not returned.
    #[tracing::instrument(level = "debug", skip_all, fields(client = %self.shared.name))]
    pub async fn publish_flush(&self, timeout: Duration) -> Result<FlushReport, FlushError> {
        self.shared.release();
        let until = Instant::now().checked_add(timeout);
        let store = &self.shared.watched.store;
        let through = match &self.shared.queue {
            None => store.bounds().last,
            // Nobody can be asked: what asked for an ack waits for it.
            Some(queue) if !self.shared.desk.is_served() => queue.last(),
            Some(queue) => self.confirm(Behind::all(queue), until).await?,
        };
        let counted = self.ask_flush(through, until).await?;
        let handlers = match is_handling(&self.shared) {
            true => 0,
            false => {
                let (offers, unheard) = (&self.shared.offers, &self.shared.unheard);
                let still_to_pass = || self.shared.mailbox.untold.load(Ordering::Acquire);
                let refused = offers.returned(store.as_ref(), through, until).await;
                refused + unheard.returned(still_to_pass, until).await
            }
        };
        match (counted.left(), handlers) {
            (0, 0) => Ok(FlushReport::new(counted.tell(), self.shared.rejections())),
            (left, handlers) => Err(FlushError::Timeout { left, handlers }),
        }
    }

    /// Without a store: has the server confirm what was accepted before; the last of it.
    async fn confirm(&self, behind: Behind, until: Option<Instant>) -> Result<u64, FlushError> {
        let through = behind.last();
        let until = until.unwrap_or_else(|| Instant::now() + YEAR);
        let flush = Request::new("flush");
        match self.command_once(flush, until, Some(behind)).await {
            Ok(_) => Ok(through),
            Err(CommandError::Timeout) => {
                let handlers = match is_handling(&self.shared) {
                    true => 0,
                    false => {
                        let store = self.shared.watched.store.as_ref();
                        self.shared.offers.open(store, through) + self.shared.unheard.open()
                    }
                };
                let left = self.unacked(through);
                Err(FlushError::Timeout { left, handlers })
            }
            Err(CommandError::Closed) => Err(FlushError::Closed(self.report_now())),
            Err(error) => Err(FlushError::Command(error)),
        }
    }

    /// Without a store: messages up to `through` that wait for the acks they asked for.
    fn unacked(&self, through: u64) -> u64 {
        let queue = self.shared.queue.as_ref();
        queue.map_or(0, |queue| queue.unacked(through))
    }

    async fn ask_flush(&self, through: u64, until: Option<Instant>) -> Result<Counted, FlushError> {
        let (reply, answer) = oneshot::channel();
        let closed = || FlushError::Closed(self.report_now());
        let ask = Ask::Flush {
            through,
            until,
            reply,
        };
        self.shared
            .mailbox
            .asks
            .send(ask)
            .await
            .map_err(|_| closed())?;
        answer.await.map_err(|_| closed())?
    }

    /// The report of a client that has ended: what becomes of single messages is not counted any
    /// more.
    pub(crate) fn report_now(&self) -> FlushReport {
        FlushReport {
            left: self.shared.left(),
            waiting: self.shared.rejections(),
            ..FlushReport::default()
        }
    }

    /// Waits until a server accepts the logon.
    ///
    /// Cancel safe.
    ///
    /// # Panics
    /// When it waits outside a tokio runtime with a clock.
    ///
    /// # Errors
    /// [`LogonError::Refused`] as soon as every server in turn has refused;
    /// [`LogonError::Deadline`] at the deadline. The client goes on trying, unless it was told to
    /// give up at some point and has done so: [`LogonError::GaveUp`].
    #[tracing::instrument(level = "debug", skip_all, fields(client = %self.shared.name))]
    pub async fn wait_logged_on(&self, deadline: Duration) -> Result<(), LogonError> {
        self.shared.release();
        let mut status = self.shared.status.subscribe();
        let until = Instant::now().checked_add(deadline);
        let (logons, refusals) = {
            let before = status.borrow();
            (before.logons, before.refusals)
        };
        loop {
            {
                let now = status.borrow_and_update();
                match now.state {
                    ConnectionState::Shutdown => return Err(LogonError::Closed),
                    // The link may be gone again before anybody looks.
                    _ if now.logons > logons => return Ok(()),
                    ConnectionState::Disconnected
                    | ConnectionState::Connecting
                    | ConnectionState::Connected => {}
                    _ => return Ok(()),
                }
                // While an attempt is under way, refusals before it say nothing about its
                // outcome.
                let told = now.state == ConnectionState::Disconnected
                    || now.refusals - refusals >= now.servers.max(1) as u64;
                if told
                    && now.refused >= now.servers.max(1)
                    && let Some((server, LinkEnd::LogonRefused(reason))) = &now.last
                {
                    let (server, reason) = (server.clone(), reason.clone());
                    return Err(LogonError::Refused { server, reason });
                }
                if let Some(why) = now.gave_up {
                    let last = now.last.clone();
                    return Err(LogonError::GaveUp { why, last });
                }
            }
            let changed = match until {
                Some(until) => timeout_at(until, status.changed()).await,
                None => Ok(status.changed().await),
            };
            match changed {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(LogonError::Closed),
                Err(_) => {
                    let last = status.borrow().last.clone();
                    return Err(match last {
                        Some((server, LinkEnd::LogonRefused(reason))) => {
                            LogonError::Refused { server, reason }
                        }
                        last => LogonError::Deadline {
                            within: deadline,
                            last,
                        },
                    });
                }
            }
        }
    }

    /// Ends the client: accepts nothing more, waits until everything is settled, the
    /// failed-write handler has returned for every refusal and the last-chance handler from
    /// everything that came for it, or until the deadline, and then closes the store. Never hangs: when the disk is slow it takes at most about a second
    /// longer than the deadline. Never discards: what is left is sent after the next open. Inside
    /// a handler it does not wait for that handler.
    ///
    /// If it is called several times the earliest deadline counts, and all calls get the same
    /// report, including those after the client is closed. Receipts without an outcome then say
    /// `Unknown`, and so do, without a store, those of messages whose acks have not come.
    /// Cancelling the call does not stop the closing.
    #[tracing::instrument(level = "debug", skip_all, fields(client = %self.shared.name))]
    pub async fn close(&self, deadline: Duration) -> CloseReport {
        self.shared.release();
        let until = Instant::now() + deadline.min(YEAR);
        let in_handler = is_handling(&self.shared);
        self.shared.closed.store(true, Ordering::Release);
        self.shared.room.notify_waiters();
        let request = CloseRequest {
            until,
            wait_for_handler: !in_handler,
        };
        let mut end = self.shared.end.subscribe();
        self.shared
            .mailbox
            .request(|requests| requests.close = Some(request.and(requests.close)));
        if in_handler && self.shared.mailbox.finishing.load(Ordering::SeqCst) {
            // Another call that closes waits for this handler, and may do so until its deadline.
            return CloseReport {
                left: self.shared.left(),
                unrecorded: self.shared.unrecorded(),
                pending: true,
                ..CloseReport::default()
            };
        }
        // This fails only once the last handle of the client is gone, and `self` is one.
        let ended = end.wait_for(|end| !matches!(end, End::Running)).await;
        match ended.as_deref() {
            Ok(End::Closed(report)) => report.clone(),
            Ok(End::Failed | End::Running) | Err(_) => CloseReport {
                left: self.shared.left(),
                unrecorded: self.shared.unrecorded(),
                ..CloseReport::default()
            },
        }
    }

    /// What happens to this client from now on. The stream begins with what its store found when
    /// it was opened, and with whether its file was moved and whether it is filling up. Without a
    /// failed-write handler the first stream also begins with the refusals of earlier runs that
    /// were reported before it was asked for, at most the latest 1,024.
    pub fn events(&self) -> Events {
        let early = self.shared.take_early();
        let first = early.is_some();
        let receiver = early.unwrap_or_else(|| self.shared.events.subscribe());
        let standing = self.shared.standing().clone();
        let standing = standing.moved.into_iter().chain(standing.filling);
        let mut events = Events::new(&self.shared.at_open, standing, receiver);
        if first {
            events.pass_to_now();
        }
        self.shared.release();
        events
    }

    /// The present state of the client.
    pub fn health(&self) -> Health {
        let bounds = self.bounds();
        let unrecorded = self.shared.unrecorded();
        let totals = self.shared.totals();
        let status = self.shared.status.borrow();
        Health {
            state: status.state,
            server: status.server.clone(),
            server_info: status.server_info.clone(),
            capabilities: status.capabilities.clone(),
            about: status.about.clone(),
            last_error: status.last.clone(),
            gave_up: status.gave_up,
            logon_refused: status.logon_refused.clone(),
            logons: status.logons,
            unsettled: bounds.unsettled + self.unacked(u64::MAX),
            first_unsettled: bounds.first_unsettled,
            rejections: bounds.rejections,
            live_bytes: bounds.live_bytes,
            limit_bytes: bounds.limit_bytes,
            sync_failed: self.shared.sync_failed.load(Ordering::Acquire),
            store_gone: self.shared.store_gone.load(Ordering::Acquire),
            unrecorded_messages: unrecorded.messages,
            unrecorded_refusals: unrecorded.refusals,
            counts: Counts {
                published: self.shared.mailbox.doorbell.messages(),
                persisted: totals.persisted,
                persisted_at_logon: totals.persisted_at_logon,
                duplicates: totals.duplicates,
                found: totals.found,
                possible_duplicates: totals.possible_duplicates,
                rejected: totals.rejected,
                resent: totals.resent,
                late: totals.late,
                unattributed: totals.unattributed,
                unsent: self.shared.unsent.load(Ordering::Relaxed),
            },
        }
    }

    fn bounds(&self) -> Bounds {
        self.shared
            .store()
            .map(|store| store.bounds())
            .unwrap_or_default()
    }

    /// The store, if there is one.
    pub fn store(&self) -> Option<&Arc<dyn PublishStore>> {
        self.shared.store()
    }

    /// Subscribes, or queries. If a server is just being connected to, it waits for the logon.
    /// Once placed, the subscription is placed again after every reconnect.
    ///
    /// Cancelling the call gives the subscription up.
    ///
    /// # Errors
    /// The server refused it or did not answer in time, or the client is closed. Also
    /// [`CommandError::Unreachable`], as soon as every server in turn could not be connected to
    /// or refused the logon; if nobody listens that is at once. To wait for a server, call
    /// [`wait_logged_on`](Self::wait_logged_on) first.
    #[tracing::instrument(level = "debug", skip_all, fields(client = %self.shared.name, topic = %subscribe.topic))]
    pub async fn subscribe(&self, subscribe: Subscribe) -> Result<Subscription, CommandError> {
        if subscribe.topic.is_empty() {
            return Err(CommandError::Bad("the topic is empty"));
        }
        self.may_ask(subscribe.size())?;
        let (placing, placed) = oneshot::channel();
        let ask = amps::Ask::Subscribe {
            spec: subscribe,
            placing,
        };
        self.shared.desk.ask(ask).await?;
        // Without a link only the driver looks there.
        self.shared.mailbox.doorbell.ring_always();
        placed.await.map_err(|_| CommandError::Closed)?
    }

    /// Sends a command of any name and waits for its acks, at most as long as the command
    /// timeout. That includes the time while the link takes no bytes; a command whose time is up
    /// by then is not sent.
    ///
    /// If the call is cancelled, the command may or may not be sent.
    ///
    /// # Errors
    /// The server refused it or did not answer in time. Unless it is to be [sent
    /// again](Request::retry), also: there is no connection, or it was lost before the answer
    /// came.
    ///
    /// # Panics
    /// Outside a tokio runtime with a clock.
    #[tracing::instrument(level = "debug", skip_all, fields(client = %self.shared.name, command = %request.name))]
    pub async fn command(&self, mut request: Request) -> Result<Answer, CommandError> {
        if matches!(
            request.name.as_str(),
            "" | "logon" | "publish" | "p" | "delta_publish"
        ) {
            return Err(CommandError::Bad(
                "this command has its own method, or no name",
            ));
        }
        self.may_ask(request.size())?;
        let timeout = request.timeout.unwrap_or(self.shared.command_timeout);
        let until = Instant::now() + timeout.min(YEAR);
        let mut status = self.shared.status.subscribe();
        loop {
            let logons = status.borrow_and_update().logons;
            let again = request.retry.then(|| request.clone());
            let answer = self.command_once(request, until, None).await;
            let lost = matches!(
                answer,
                Err(CommandError::NotConnected | CommandError::Disconnected)
            );
            request = match (again, lost) {
                (Some(again), true) => again,
                _ => return answer,
            };
            // Wait for another logon than the one whose link was lost, or for the end of the
            // client.
            let ready = status
                .wait_for(|now| now.logons > logons || now.state == ConnectionState::Shutdown);
            match timeout_at(until, ready).await {
                Ok(Ok(now)) if now.state != ConnectionState::Shutdown => {}
                Ok(_) => return Err(CommandError::Closed),
                Err(_) => return Err(CommandError::Timeout),
            }
        }
    }

    async fn command_once(
        &self,
        request: Request,
        until: Instant,
        behind: Option<Behind>,
    ) -> Result<Answer, CommandError> {
        let (reply, answer) = oneshot::channel();
        let ask = amps::Ask::Command {
            request: request.into(),
            until: self.shared.since_start(until),
            behind,
            reply,
        };
        let answered = async {
            self.shared.desk.ask(ask).await?;
            answer.await.map_err(|_| CommandError::Closed)?
        };
        let timed_out = Err(CommandError::Timeout);
        timeout_at(until, answered).await.unwrap_or(timed_out)
    }

    fn may_ask(&self, bytes: usize) -> Result<(), CommandError> {
        let max = self.shared.max_message;
        match bytes > max {
            true => Err(CommandError::TooLarge { bytes, max }),
            false => Ok(()),
        }
    }

    async fn ask(&self, ask: Ask) -> Result<(), CommandError> {
        self.shared
            .mailbox
            .asks
            .send(ask)
            .await
            .map_err(|_: mpsc::error::SendError<Ask>| CommandError::Closed)
    }

    /// The refusals that wait, and what can be done with them.
    pub fn failed(&self) -> Failed<'_> {
        self.shared.release();
        Failed {
            shared: &self.shared,
        }
    }

    /// Allows one more rebase in this run, after [`Event::NameShared`](crate::Event) said
    /// that sending stopped. Make sure first that nobody else publishes under this name.
    pub async fn allow_rebase(&self) -> Result<(), CommandError> {
        self.ask(Ask::AllowRebase).await
    }
}
