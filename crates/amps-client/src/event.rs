//! What an application may want to watch: one stream, which may lose events and counts those.

use std::collections::VecDeque;
use std::time::Duration;

use amps_store::{DamagedRange, Place, RecoveryReport};
use tokio::sync::broadcast;

use crate::protocol::Reason;

use amps_delivery::Order;
pub use amps_delivery::{ConnectionState, LinkEnd};

/// Something that happened. Numbers are sequences of the store, unless they are described as the
/// server's.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// Found at open: a power cut left a hole in the log. Intact records behind it were set
    /// aside, and their messages are not sent. `amps store repair FILE --to NEW`, on a copy of
    /// the file as it was before this open, recovers them.
    SetAside {
        /// How many records.
        records: u64,
        /// Lowest and highest sequence of the messages among them.
        sequences: Option<(u64, u64)>,
    },
    /// Found at open: the refusal of this message is among the records that were set aside. A
    /// server does not repeat a refusal.
    RefusalSetAside {
        /// The refused message.
        sequence: u64,
    },
    /// Found at open: a range of the log is damaged.
    Damaged {
        /// Where it starts in the file.
        offset: u64,
        /// Bytes up to the next intact record.
        bytes: u64,
        /// Messages given out there that may be missing: the lowest and the highest possible one.
        sequences: Option<(u64, u64)>,
        /// A copy or a refusal of an earlier message may be missing as well.
        earlier: bool,
        /// What stood there was needed, and is given up (`Recovery::Salvage`). Otherwise its
        /// neighbours prove that nothing needed stood there.
        needed: bool,
    },
    /// Found at open: an earlier open gave these messages up.
    GivenUp {
        /// Lowest sequence.
        first: u64,
        /// Highest sequence.
        last: u64,
    },
    /// The state of the connection changed.
    State {
        /// The new state.
        state: ConnectionState,
        /// The server that the state is about, without its credentials.
        server: String,
    },
    /// A server accepted the logon.
    LinkUp {
        /// The server, without its credentials.
        server: String,
        /// Whether messages can overtake each other there.
        order: Order,
        /// What the link says of itself, as in `Health::about`.
        about: String,
    },
    /// A link ended, or could not be opened.
    LinkLost {
        /// The server, without its credentials.
        server: String,
        /// Why.
        why: LinkEnd,
        /// How long the client waits before the next attempt; `None`: it makes no more.
        retry_in: Option<Duration>,
    },
    /// No server takes messages. Reported when a link is lost or the first attempt fails, and
    /// then once a minute as long as messages wait. Single attempts are in
    /// [`LinkLost`](Self::LinkLost).
    Outage {
        /// The server tried last, without its credentials.
        server: String,
        /// How the last attempt ended.
        why: LinkEnd,
        /// Attempts that failed, including the link that was lost; 1 when the outage begins.
        attempts: u32,
        /// How long it has lasted.
        lasted: Duration,
        /// Messages that wait in the store.
        waiting: u64,
        /// How long the oldest of them has waited, by the wall clock, if it says when it was
        /// published.
        oldest: Option<Duration>,
    },
    /// A server accepted the logon after an [`Outage`](Self::Outage).
    OutageOver {
        /// The server, without its credentials.
        server: String,
        /// Attempts that had failed, including the link that was lost.
        attempts: u32,
        /// How long the outage was.
        lasted: Duration,
        /// Messages that wait in the store and are sent now.
        waiting: u64,
    },
    /// More outages began within a minute or two than are reported one by one: servers accept the
    /// logon, but the link is lost soon afterwards.
    Flapping {
        /// The server of the last link, without its credentials.
        server: String,
        /// How that link ended.
        why: LinkEnd,
        /// Outages that began.
        links: u32,
        /// Messages that wait in the store.
        waiting: u64,
    },
    /// Messages wait, and the server has settled none of them for a minute although there is a
    /// link. Reported once a minute.
    Stuck {
        /// The server, without its credentials.
        server: String,
        /// Messages that wait.
        waiting: u64,
        /// As in [`Outage`](Self::Outage).
        oldest: Option<Duration>,
    },
    /// No more attempts to connect are made: the delay strategy or the server chooser gave up, or
    /// the time of [`Builder::give_up_after`](crate::Builder::give_up_after) is over. Publishes
    /// are still accepted into the store. To connect again, close the client and open it anew.
    GaveUp {
        /// Who gave up.
        why: &'static str,
    },
    /// The server has less than it acknowledged before. Messages `server + 1 ..= settled` may be
    /// missing there, and cannot be sent again any more.
    PublishGap {
        /// The server's figure, as a sequence.
        server: u64,
        /// What was settled before.
        settled: u64,
        /// The figure was 0: the server does not know this publisher at all.
        unknown_publisher: bool,
    },
    /// The server's figure is higher than anything this store can have sent: another publisher
    /// uses the name, or the store is an old copy. Nothing was settled by that figure.
    ForeignFigure {
        /// The server's own number.
        figure: u64,
        /// The highest sequence this store may have sent.
        may_have_sent: u64,
    },
    /// Numbers on the wire go on above the server's figure from now on. Messages that were sent
    /// before under their old numbers may reach the server twice.
    Rebased {
        /// The first sequence that is renumbered.
        from: u64,
        /// The number on the wire that it gets: above the server's figure, with room for what the
        /// server may hold beyond that.
        first_wire: u64,
        /// Unsettled messages that may have been sent before, and so may become duplicates.
        possible_duplicates: u64,
    },
    /// Another live publisher seems to use the same client name. Give each a name of its own.
    NameShared {
        /// The server's own number that shows this.
        figure: u64,
        /// Sending stopped until [`Client::allow_rebase`](crate::Client::allow_rebase) or
        /// the next open.
        stopped: bool,
    },
    /// The same message was the first unsettled one when several links ended, and may be what
    /// makes the server end them; or it was turned away several times in a row; or it
    /// [cannot be sent](Self::Unsendable).
    Stalled {
        /// The message.
        sequence: u64,
        /// Links lost in a row with it at the head, times it was turned away in a row, or servers
        /// that cannot take it.
        links: u32,
    },
    /// The server did not take a message for now: it goes out again after a while, and everything
    /// behind it. Told once until something is settled. No AMPS server does that.
    TurnedAway {
        /// The message.
        sequence: u64,
        /// The server's reason.
        reason: Reason,
    },
    /// The server takes no messages, whatever they are; what waits goes out when it does. Told
    /// once until something is settled. No AMPS server says that.
    LineStopped {
        /// The server's reason.
        reason: Reason,
    },
    /// A message can never be sent to this server. If none of the servers can take it, and none
    /// was ever sent it, it becomes a refusal; else another server is tried.
    Unsendable {
        /// The message.
        sequence: u64,
        /// Why.
        error: String,
    },
    /// A refusal that names no message of this client (without a store, none that waits for an
    /// ack), so that it is not known what was refused.
    /// [`Builder::publish_ids`](crate::Builder::publish_ids) makes such servers safe.
    Unattributed {
        /// The server's own number, if it sent one.
        figure: Option<u64>,
        /// The server's reason.
        reason: Reason,
    },
    /// The server sent a field that cannot be read, such as a sequence that is no number. An ack
    /// without a readable sequence settles nothing, and a refusal without one is
    /// [`Unattributed`](Self::Unattributed); whatever else the frame says counts.
    UnreadableField {
        /// The field's key on the wire.
        field: String,
    },
    /// Without a store: messages were accepted but never handed to the link that ended. They are
    /// lost. What was written just before the link ended may be lost as well; that cannot be
    /// known.
    Unsent {
        /// How many.
        messages: u64,
    },
    /// A late refusal came when the log had no room for it. The last-chance handler got it.
    RefusalNotLogged {
        /// The message.
        sequence: u64,
        /// The server's reason.
        reason: Reason,
    },
    /// A message was refused after the store's device had failed, and the log had no room to note
    /// it: the refusal waits in memory, for the failed-write handler or an evacuation, and ends
    /// with this process. The next open finds the message unsettled, unless the refusal is late,
    /// and sends it again. [`Refused`](Self::Refused) follows.
    RefusalHeld {
        /// The message.
        sequence: u64,
        /// The server's reason.
        reason: Reason,
        /// It came after a success that covered the message.
        late: bool,
    },
    /// A message was refused. The refusal is in the log, and waits for the failed-write handler
    /// or an operator, unless [`RefusalHeld`](Self::RefusalHeld) was told before. Without a store
    /// nothing keeps it.
    Refused {
        /// The message; 0 without a store, where its receipt and the handler say which it is.
        sequence: u64,
        /// The server's reason.
        reason: Reason,
        /// It came after a success that covered the message; the success stands.
        late: bool,
        /// An earlier run received it, and there is no failed-write handler that it could be
        /// offered to.
        earlier_run: bool,
    },
    /// The store failed. The error says what follows from that.
    StoreFailed {
        /// What could not be done, as in "settle messages".
        doing: &'static str,
        /// What the store reported.
        error: String,
    },
    /// The store's file was moved, or is back in its place. With [`Place::Gone`] it was removed:
    /// publishes are refused with `StoreError::Gone`, and what is stored is still sent, but is
    /// lost with this process unless `Store::evacuate` saves it.
    StoreMoved {
        /// Where it is now.
        place: Place,
    },
    /// The backlog crossed a watermark of the store (`amps_store::Options::watermarks`, 50 and 80
    /// percent unless set): the store is filling up, or has room again. Each watermark is
    /// reported once and then not again until the other one was.
    Watermark {
        /// The high watermark was reached from below; otherwise the low one from above.
        high: bool,
        /// Bytes taken by what is unsettled or refused, with the room charged for its future.
        live_bytes: u64,
        /// The most `live_bytes` may become.
        limit_bytes: u64,
    },
    /// Nothing above `through` is sent for now: the store cannot make anything durable any more,
    /// or could not raise its send grant, which is tried again until
    /// [`SendingResumed`](Self::SendingResumed). [`StoreFailed`](Self::StoreFailed) says what
    /// failed.
    SendingStopped {
        /// Highest sequence that may still be sent.
        through: u64,
    },
    /// The store could raise its send grant after all, and sending goes on.
    SendingResumed,
    /// A stored message cannot be read, and so not be sent by this program. If its record is damaged, nothing behind it is sent until
    /// it is repaired or given up. If it is intact but this program does not know the version of
    /// its envelope, it waits for an operator like a refused message, no handler is offered it,
    /// and what is behind it is sent.
    Unreadable {
        /// The message.
        sequence: u64,
        /// What the store reported.
        error: String,
    },
    /// The last-chance handler panicked, or is so slow that an ack was dropped.
    LastChanceFailed {
        /// What happened.
        error: String,
    },
    /// The client's task ended although nobody closed the client: a store of the application's
    /// own panicked in it, or its runtime was shut down. Nothing more is sent, publishes are
    /// refused, and receipts say `Unknown`; what is unsettled stays in the store. Drop the client
    /// and open another one.
    ClientFailed {
        /// What is known of the cause.
        why: &'static str,
    },
    /// A failed-write handler returned an error or panicked. The refusal waits; without a store
    /// nothing keeps it, and it is lost.
    HandlerFailed {
        /// The message; 0 without a store.
        sequence: u64,
        /// The handler's error.
        error: String,
    },
}

/// What is bad news in what a store found when it was opened.
pub(crate) fn found_at_open(report: &RecoveryReport) -> Vec<Event> {
    let mut events = Vec::new();
    if report.set_aside > 0 {
        events.push(Event::SetAside {
            records: report.set_aside,
            sequences: report.set_aside_sequences,
        });
    }
    let refusals = report.set_aside_rejections.iter();
    events.extend(refusals.map(|sequence| Event::RefusalSetAside {
        sequence: *sequence,
    }));
    let damaged = |range: &DamagedRange, needed| Event::Damaged {
        offset: range.offset,
        bytes: range.bytes,
        sequences: range.sequences,
        earlier: range.earlier,
        needed,
    };
    events.extend(report.damaged.iter().map(|range| damaged(range, true)));
    events.extend(report.ignored.iter().map(|range| damaged(range, false)));
    let lost = report.lost.iter().filter(|(_, last)| *last > 0);
    events.extend(lost.map(|&(first, last)| Event::GivenUp { first, last }));
    events
}

/// One of [`found_at_open`], in words for a log.
pub(crate) fn found_in_words(event: &Event) -> String {
    let messages = |sequences: &Option<(u64, u64)>| match sequences {
        Some((first, last)) => format!(", messages {first} to {last} perhaps among them"),
        None => String::new(),
    };
    match event {
        Event::SetAside { records, sequences } => format!(
            "{records} intact record(s) behind a hole that a power cut left are set aside and not \
             sent{}",
            messages(sequences)
        ),
        Event::RefusalSetAside { sequence } => {
            format!("the refusal of message {sequence} is among what is set aside")
        }
        Event::Damaged {
            offset,
            bytes,
            sequences,
            needed,
            ..
        } => format!(
            "{bytes} byte(s) are damaged at offset {offset}{}; {}",
            messages(sequences),
            match needed {
                true => "they are given up",
                false => "nothing needed stood there",
            }
        ),
        Event::GivenUp { first, last } => {
            format!("messages {first} to {last} were damaged, and an earlier open gave them up")
        }
        _ => String::new(),
    }
}

/// A stream of [`Event`]s. However late it is asked for, it starts with what the store found when
/// it was opened, with [`Event::StoreMoved`] if the file is not where it was, and with
/// [`Event::Watermark`] if the backlog is above the high one. The first stream that is asked for
/// also has the [refusals of earlier runs](Event::Refused) that were reported before. Everything
/// else it has only from then on. It never holds the client up: when its reader is slow, the
/// oldest events are dropped and counted.
#[derive(Debug)]
pub struct Events {
    at_open: VecDeque<Event>,
    receiver: broadcast::Receiver<Event>,
    dropped: u64,
}

impl Events {
    pub(crate) fn new(
        at_open: &[Event],
        standing: impl IntoIterator<Item = Event>,
        receiver: broadcast::Receiver<Event>,
    ) -> Self {
        Events {
            at_open: at_open.iter().cloned().chain(standing).collect(),
            receiver,
            dropped: 0,
        }
    }

    /// Takes what an earlier run left out of the events so far. There are never more of them than
    /// the stream keeps for a slow reader.
    pub(crate) fn pass_to_now(&mut self) {
        let mut told = self.receiver.len() as u64;
        while told > 0 {
            match self.receiver.try_recv() {
                Ok(event) => {
                    told -= 1;
                    if let Event::Refused {
                        earlier_run: true, ..
                    } = event
                    {
                        self.at_open.push_back(event);
                    }
                }
                Err(broadcast::error::TryRecvError::Lagged(count)) => {
                    told = told.saturating_sub(count);
                    self.dropped += count;
                }
                Err(_) => return,
            }
        }
    }

    /// The next event; `None` once the client is gone.
    ///
    /// Cancel safe: a cancelled call takes no event.
    pub async fn next(&mut self) -> Option<Event> {
        if let Some(event) = self.at_open.pop_front() {
            return Some(event);
        }
        loop {
            match self.receiver.recv().await {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Lagged(count)) => self.dropped += count,
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    }

    /// The next event, if one is there.
    pub fn try_next(&mut self) -> Option<Event> {
        if let Some(event) = self.at_open.pop_front() {
            return Some(event);
        }
        loop {
            match self.receiver.try_recv() {
                Ok(event) => return Some(event),
                Err(broadcast::error::TryRecvError::Lagged(count)) => self.dropped += count,
                Err(_) => return None,
            }
        }
    }

    /// How many events this stream has dropped so far.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}
