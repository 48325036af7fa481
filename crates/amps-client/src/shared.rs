//! What the client's handles, its driver and its receipts have in common.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use amps_delivery::{Admits, Capabilities, Queue, Turned};
use amps_store::{AppendError, Envelope, Place, PublishStore, Signal, Unrecorded};
use tokio::sync::{Notify, broadcast, watch};
use tokio::time::Instant;

use crate::amps::Desk;
use crate::delivery::{Flushed, Totals};
use crate::error::{CloseReport, PublishFailure};
use crate::event::{ConnectionState, Event, LinkEnd};
use crate::helper::Helper;
use crate::mailbox::Mailbox;
use crate::message::{Message, size};
use crate::meter::Meter;
use crate::offers::Offers;
use crate::protocol::Reason;
use crate::receipt::{Receipt, Watched};
use crate::session::ServerInfo;
use crate::unheard::Unheard;

/// What happened before a stream of events begins, and must be told in it all the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    /// The store's file is not where it was.
    pub(crate) moved: Option<Event>,
    /// The backlog is above its high watermark.
    pub(crate) filling: Option<Event>,
}

pub(crate) struct Shared {
    pub(crate) name: String,
    pub(crate) meter: Meter,
    /// For calls of the store that wait for its device. It exists whenever there is a store.
    pub(crate) helper: Option<Helper>,
    pub(crate) watched: Arc<Watched>,
    /// What stands in the place of a store, without one: what is watched is this.
    pub(crate) queue: Option<Arc<Queue>>,
    pub(crate) mailbox: Mailbox,
    /// For whatever goes to a server without passing the store.
    pub(crate) desk: Arc<Desk>,
    /// Times are counted from here.
    pub(crate) start: Instant,
    pub(crate) room: Arc<Notify>,
    pub(crate) status: watch::Sender<LinkStatus>,
    /// What the store found when it was opened, for the start of every stream of events.
    pub(crate) at_open: Vec<Event>,
    /// The present state, for the start of every stream of events.
    pub(crate) standing: Mutex<Standing>,
    pub(crate) events: broadcast::Sender<Event>,
    pub(crate) command_timeout: Duration,
    /// How the client ended.
    pub(crate) end: Arc<watch::Sender<End>>,
    /// For the first stream of events: it receives from before anything was told of earlier runs.
    pub(crate) early: Mutex<Option<broadcast::Receiver<Event>>>,
    pub(crate) closed: AtomicBool,
    pub(crate) sync_failed: AtomicBool,
    pub(crate) store_gone: AtomicBool,
    /// Without a store: accepted, but never handed to a link.
    pub(crate) unsent: AtomicU64,
    pub(crate) totals: Mutex<Totals>,
    /// What a flush counted but could not report, because its caller had gone.
    pub(crate) uncounted: Arc<Mutex<Flushed>>,
    pub(crate) offers: Offers,
    pub(crate) unheard: Arc<Unheard>,
    pub(crate) max_message: usize,
    /// What looks at each message, if something has to.
    pub(crate) admits: Option<Arc<dyn Admits>>,
}

/// The state of the connection, for those who wait for it.
#[derive(Clone, Debug, Default)]
pub(crate) struct LinkStatus {
    pub(crate) state: ConnectionState,
    pub(crate) server: String,
    /// What the server said about itself at the last logon.
    pub(crate) server_info: ServerInfo,
    /// What the last link that was up was good for, and what it said of itself.
    pub(crate) capabilities: Option<Capabilities>,
    pub(crate) about: String,
    /// How the last attempt ended, and where.
    pub(crate) last: Option<(String, LinkEnd)>,
    /// No more attempts are made, for this reason.
    pub(crate) gave_up: Option<&'static str>,
    /// Logons refused in a row.
    pub(crate) refused: usize,
    /// Logons refused in all.
    pub(crate) refusals: u64,
    /// The last logon that was refused, where and why, unless one was accepted since.
    pub(crate) logon_refused: Option<(String, Reason)>,
    /// Servers to try in turn.
    pub(crate) servers: usize,
    pub(crate) logons: u64,
}

/// How a client ended, or that it did not.
#[derive(Clone, Debug, Default)]
pub(crate) enum End {
    #[default]
    Running,
    Closed(CloseReport),
    /// Its task is gone, and nothing was closed.
    Failed,
}

/// Messages that the next open of this store finds unsettled.
pub(crate) fn left_in(store: &dyn PublishStore) -> u64 {
    store.bounds().unsettled + store.unrecorded().messages
}

impl Shared {
    pub(crate) fn store(&self) -> Option<&Arc<dyn PublishStore>> {
        self.queue.is_none().then_some(&self.watched.store)
    }

    /// A message's number as applications know it: 0 without a store.
    pub(crate) fn public(&self, sequence: u64) -> u64 {
        match self.queue {
            None => sequence,
            Some(_) => 0,
        }
    }

    /// What the store holds in memory only.
    pub(crate) fn unrecorded(&self) -> Unrecorded {
        self.store()
            .map(|store| store.unrecorded())
            .unwrap_or_default()
    }

    /// Messages that the next open of the store finds unsettled.
    pub(crate) fn left(&self) -> u64 {
        self.store().map_or(0, |store| left_in(store.as_ref()))
    }

    /// Refusals that wait in the store.
    pub(crate) fn rejections(&self) -> u64 {
        self.store().map_or(0, |store| store.bounds().rejections)
    }

    /// Stores a message, or hands it to the link if there is no store. Never waits.
    pub(crate) fn accept(&self, message: &Message) -> Result<Receipt, PublishFailure> {
        message.check()?;
        match &self.queue {
            None => {
                let mut envelope = message.envelope();
                envelope.published_at = unix_micros();
                self.append(&envelope, message.payload())
            }
            Some(queue) => self.push(queue, message),
        }
    }

    pub(crate) fn append(
        &self,
        envelope: &Envelope<'_>,
        payload: &[u8],
    ) -> Result<Receipt, PublishFailure> {
        self.may_publish(size(envelope, payload))?;
        self.admit(envelope, payload)?;
        let watched = &self.watched;
        let append = || {
            watched
                .store
                .append(envelope, payload)
                .map(|appended| appended.sequence)
        };
        let receipt = watched.register(append)?;
        self.mailbox.doorbell.ring_for_message();
        Ok(receipt)
    }

    /// Takes a message for the link, to be sent and, unless it asks for an ack, forgotten.
    fn push(&self, queue: &Queue, message: &Message) -> Result<Receipt, PublishFailure> {
        let bytes = message.size();
        self.may_publish(bytes)?;
        // What a store keeps too long to be sent, an operator can look at; here nobody would know.
        if !message.fits_a_frame() {
            let max = u32::MAX as usize;
            return Err(PublishFailure::TooLarge { bytes, max });
        }
        let mut envelope = message.envelope();
        self.admit(&envelope, message.payload())?;
        let receipt = match message.asks_for_ack() {
            false => {
                queue.push(&envelope, message.payload(), false)?;
                Receipt::unknown()
            }
            true => {
                envelope.published_at = unix_micros();
                let push = || queue.push(&envelope, message.payload(), true);
                self.watched.register_asked(push)?
            }
        };
        self.mailbox.doorbell.ring_for_message();
        Ok(receipt)
    }

    fn may_publish(&self, bytes: usize) -> Result<(), PublishFailure> {
        if self.closed.load(Ordering::Acquire) {
            return Err(PublishFailure::Closed);
        }
        match bytes > self.max_message {
            true => Err(PublishFailure::TooLarge {
                bytes,
                max: self.max_message,
            }),
            false => Ok(()),
        }
    }

    fn admit(&self, envelope: &Envelope<'_>, payload: &[u8]) -> Result<(), PublishFailure> {
        let Some(admits) = &self.admits else {
            return Ok(());
        };
        let admitted = admits.admit(envelope, payload);
        admitted.map_err(|never| PublishFailure::Unsendable(never.why))
    }

    /// Handles a signal of the store. Called from the store's threads.
    pub(crate) fn signal(&self, signal: Signal) {
        match signal {
            Signal::Room => self.room.notify_waiters(),
            Signal::Durable => {
                self.durable_moved();
                self.mailbox.doorbell.ring();
            }
            Signal::SyncFailed => {
                self.watched.sync_failed.store(true, Ordering::Release);
                self.sync_failed.store(true, Ordering::Release);
                self.durable_moved();
                // There may never be room again; whoever waits for it finds out by trying.
                self.room.notify_waiters();
                self.mailbox.doorbell.ring_always();
            }
            Signal::Watermark {
                high,
                live_bytes,
                limit_bytes,
            } => {
                let event = Event::Watermark {
                    high,
                    live_bytes,
                    limit_bytes,
                };
                self.standing().filling = high.then(|| event.clone());
                self.event(event);
            }
            Signal::Moved(place) => {
                let event = Event::StoreMoved { place };
                self.standing().moved = (place != Place::There).then(|| event.clone());
                if place == Place::Gone {
                    self.watched.gone.store(true, Ordering::Release);
                    self.store_gone.store(true, Ordering::Release);
                    self.durable_moved();
                    // No room will come any more; whoever waits for it finds out by trying.
                    self.room.notify_waiters();
                }
                self.event(event);
                self.mailbox.doorbell.ring_always();
            }
        }
    }

    pub(crate) fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn durable_moved(&self) {
        self.watched.durable.send_modify(|moves| *moves += 1);
    }

    /// The application has the client now: what waited for that begins.
    pub(crate) fn release(&self) {
        if !self.mailbox.opened.swap(true, Ordering::AcqRel) {
            self.offers.release();
            self.mailbox.doorbell.ring_always();
        }
    }

    /// The receiver for the first stream of events, once only.
    pub(crate) fn take_early(&self) -> Option<broadcast::Receiver<Event>> {
        self.early
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    pub(crate) fn event(&self, event: Event) {
        // It is no error that nobody listens.
        let _ = self.events.send(event);
    }

    /// A moment, in terms of [`Now::at`](crate::delivery::Now::at).
    pub(crate) fn since_start(&self, until: Instant) -> Duration {
        until.saturating_duration_since(self.start)
    }

    pub(crate) fn totals(&self) -> Totals {
        *self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_totals(&self, totals: Totals) {
        *self.totals.lock().unwrap_or_else(PoisonError::into_inner) = totals;
    }
}

/// No time limit is longer than this: beyond it sums of times could overflow.
pub(crate) const YEAR: Duration = Duration::from_secs(365 * 86_400);

/// The wall clock in microseconds since the Unix epoch.
pub(crate) fn unix_micros() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| {
        let micros = since.as_secs().saturating_mul(1_000_000);
        micros.saturating_add(since.subsec_micros().into())
    })
}

impl From<Turned> for PublishFailure {
    fn from(turned: Turned) -> Self {
        match turned {
            Turned::Full => PublishFailure::Full,
            Turned::Unacked(most) => PublishFailure::Unacked(most),
            Turned::Envelope(error) => PublishFailure::Store(AppendError::Envelope(error)),
            // There is no other.
            Turned::Offline | _ => PublishFailure::NotConnected,
        }
    }
}
