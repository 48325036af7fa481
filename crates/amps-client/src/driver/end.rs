//! How the driver ends: closed in order, or by a panic or with its runtime.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use amps_store::StoreError;
use tokio::time::Instant;

use super::Driver;
use crate::error::CloseReport;
use crate::event::{ConnectionState, Event, LinkEnd};
use crate::helper::NotDone;
use crate::shared::{End, Shared, left_in};

/// Notices that the driver ended without an end: it panicked in a store of the user's, or its
/// runtime was shut down. Nobody must wait then for what cannot come any more.
pub(crate) struct DeathWatch {
    shared: Arc<Shared>,
    armed: bool,
}

impl DeathWatch {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        DeathWatch {
            shared,
            armed: true,
        }
    }
}

impl Drop for DeathWatch {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let why = match std::thread::panicking() {
            true => "the client's task panicked, most likely in a store of your own",
            false => "the client's runtime was shut down",
        };
        self.shared.meter.connected(false);
        tracing::error!(client = %self.shared.name, why, "the client ended without being closed");
        self.shared.closed.store(true, Ordering::Release);
        if let Some(queue) = &self.shared.queue {
            queue.end();
        }
        self.shared.offers.stop();
        self.shared.watched.close();
        self.shared.room.notify_waiters();
        self.shared.status.send_modify(|status| {
            status.state = ConnectionState::Shutdown;
            let end = LinkEnd::ClientFailed(why.to_owned());
            status.last = Some((status.server.clone(), end));
        });
        self.shared.end.send_replace(End::Failed);
        self.shared.event(Event::ClientFailed { why });
        self.shared.event(Event::State {
            state: ConnectionState::Shutdown,
            server: self.shared.status.borrow().server.clone(),
        });
    }
}

/// How long the end of a client may take beyond its deadline, for a last sync.
const GRACE: Duration = Duration::from_secs(1);

impl Driver {
    pub(super) async fn finish(mut self, handed_over: u64) {
        self.shared.closed.store(true, Ordering::Release);
        // What was asked before the end is answered, and flushes by what they know.
        self.inbox.asks.close();
        while let Ok(ask) = self.inbox.asks.try_recv() {
            self.ask(ask);
        }
        self.carry_out();
        self.slot.finish();
        // Who asks from here on either finds this said, or is found by `take_requests`.
        self.shared.mailbox.finishing.store(true, Ordering::SeqCst);
        let late = self.shared.mailbox.requests().close.take();
        let closing = match (self.work.closing.take(), late) {
            (Some(closing), late) => Some(closing.and(late)),
            (None, late) => late,
        };
        let now = Instant::now();
        let until = closing.map_or(now, |closing| closing.until);
        let wait = closing.is_some_and(|closing| closing.wait_for_handler);
        if let (true, Some(task)) = (wait, self.handler_task.take()) {
            // Refusals that came last still reach their handler. One that is busy at the
            // deadline finishes on its own; what is left is offered at the next open.
            self.shared.offers.finish();
            let _ = tokio::time::timeout_at(until, task).await;
        }
        if wait {
            self.hand_to_last_chance(until).await;
        }
        let offered = self.shared.offers.open(self.store.as_ref(), u64::MAX);
        let handlers = offered + self.shared.unheard.open();
        self.shared.offers.stop();
        // The last look, while the store can be read.
        self.work.gauges_at = Duration::ZERO;
        self.read_gauges();
        let last = until.max(now) + GRACE;
        if let Some(mut running) = self.work.running.take() {
            let _ = tokio::time::timeout_at(last, running.done()).await;
        }
        let mut report = self.close_store(last, handed_over).await;
        report.handlers = handlers;
        if let Some(error) = &report.error {
            tracing::warn!(%error, "the store was not closed cleanly");
        }
        self.slot.close();
        self.shared.watched.close();
        self.shared.room.notify_waiters();
        self.state(ConnectionState::Shutdown);
        self.watch.armed = false;
        let end = self.shared.end.clone();
        // The store's lock goes with its last handle: whoever gets the report may open the
        // store again at once.
        drop(self);
        end.send_replace(End::Closed(report));
    }

    /// Waits until the last-chance handler has returned from everything, refusals of earlier runs
    /// that did not fit into its queue at once included.
    async fn hand_to_last_chance(&mut self, until: Instant) {
        loop {
            self.tell_earlier();
            let unheard = &self.shared.unheard;
            let busy = unheard.returned(|| false, Some(until)).await > 0;
            if busy || self.work.earlier_from.is_none() {
                return;
            }
        }
    }

    async fn close_store(&mut self, last: Instant, handed_over: u64) -> CloseReport {
        let Some(store) = self.shared.store().cloned() else {
            return CloseReport {
                left: self.work.unsent,
                clean: true,
                ..CloseReport::default()
            };
        };
        let (left, unrecorded) = (left_in(store.as_ref()), store.unrecorded());
        let close = move || {
            let closed = store.close(handed_over);
            // Behind the close: a publish may have come in just before it, and its last mark may
            // cover what nothing else had noted.
            (closed, left_in(store.as_ref()), store.unrecorded())
        };
        let what = "close the store";
        let failed = |error: &str| StoreError::Io {
            what,
            error: error.to_owned(),
        };
        let closing = async {
            match &self.shared.helper {
                Some(helper) => helper.call(close).await,
                None => Err(NotDone::NoThread),
            }
        };
        let (closed, left, unrecorded) = match tokio::time::timeout_at(last, closing).await {
            Ok(Ok(closed)) => closed,
            Ok(Err(why)) => (Err(why.of_store(what)), left, unrecorded),
            Err(_) => {
                let error = failed("the device did not answer in time");
                (Err(error), left, unrecorded)
            }
        };
        CloseReport {
            left,
            unrecorded,
            handlers: 0,
            clean: closed.is_ok(),
            pending: false,
            error: closed.err(),
        }
    }
}
