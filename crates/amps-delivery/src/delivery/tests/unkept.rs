//! Without a store.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::queue::{Queue, Turned};

struct Without {
    queue: Arc<Queue>,
    delivery: Delivery,
    now: Now,
    batch: Batch,
    /// How often there was room for somebody who had been turned away.
    room: Arc<AtomicU64>,
}

fn without(most_unacked: u64) -> Without {
    let queue = Arc::new(Queue::new(NAME, most_unacked));
    let room = Arc::new(AtomicU64::new(0));
    let told = room.clone();
    queue.observe(Arc::new(move |_| {
        told.fetch_add(1, Ordering::Relaxed);
        ControlFlow::Continue(())
    }));
    Without {
        delivery: Delivery::without_store(queue.clone(), Config::default()),
        queue,
        now: Now {
            at: Duration::from_secs(1),
            unix_micros: 1,
        },
        batch: Batch::default(),
        room,
    }
}

impl Without {
    fn input(&mut self, input: Input<'_>) -> Vec<Output> {
        self.delivery.handle(self.queue.as_ref(), self.now, input);
        std::iter::from_fn(|| self.delivery.poll()).collect()
    }

    fn logon(&mut self, figure: Option<u64>) {
        let told = self.input(Input::LoggedOn {
            resume: Resume::figure(figure),
            acks: Acks::Figures,
        });
        assert!(matches!(told[..], [Output::Note(Note::Replayed)]));
    }

    /// A logon of a server that acks each message by itself.
    fn single(&mut self, resume: Resume) {
        let acks = Acks::Single;
        let told = self.input(Input::LoggedOn { resume, acks });
        assert!(matches!(told[..], [Output::Note(Note::Replayed)]));
    }

    fn publish(&self, asks: bool) -> Result<u64, Turned> {
        self.queue.push(&Envelope::publish("orders"), b"1", asks)
    }

    /// What goes out next, of so many at most: its number, and the ack it wants.
    fn send(&mut self, messages: usize) -> Vec<(u64, AckWish)> {
        let mut sent = Vec::new();
        let send = |next: &ToSend<'_>| {
            assert!(!next.again && next.message.sequence == next.sequence);
            sent.push((next.sequence, next.ack));
            Ok::<_, ()>(())
        };
        let (queue, batch) = (self.queue.as_ref(), &mut self.batch);
        let handed = self
            .delivery
            .hand_over(queue, self.now, few(messages), batch, send);
        assert_eq!(handed.unwrap(), sent.len());
        sent
    }

    fn hears(
        &mut self,
        figure: Option<u64>,
        sequence: Option<u64>,
        verdict: Verdict<'_>,
    ) -> Vec<Output> {
        let mut told = self.input(Input::Ack(PublishAck {
            figure,
            sequence,
            verdict,
        }));
        told.extend(self.input(Input::AcksEnd));
        told
    }

    fn persisted(&mut self, sequence: u64) -> Vec<Output> {
        self.hears(None, Some(sequence), Verdict::Persisted)
    }

    fn flush(&mut self) -> Vec<Output> {
        let (id, through, until) = (1, u64::MAX, None);
        self.input(Input::Flush { id, through, until })
    }
}

fn flushed(told: &[Output]) -> Option<Flushed> {
    told.iter().find_map(|output| match output {
        Output::Flushed { result, .. } => Some(*result),
        _ => None,
    })
}

#[test]
fn what_asks_for_no_ack_is_done_with_when_a_link_took_it() {
    let mut without = without(10);
    assert!(matches!(without.publish(true), Err(Turned::Offline)));
    // What a server counts under the name is nothing of ours.
    without.logon(Some(1 << 40));
    for asks in [false, true, false] {
        without.publish(asks).unwrap();
    }
    assert_eq!(without.queue.bounds().unsettled, 3);
    assert_eq!(without.queue.unacked(u64::MAX), 1);
    assert!(flushed(&without.flush()).is_none());
    assert_eq!(without.send(1), [(1, AckWish::Unasked)]);
    let rest = [(2, AckWish::Asked), (3, AckWish::Unasked)];
    assert_eq!(without.send(9), rest);
    assert!(without.send(9).is_empty());
    assert_eq!(without.delivery.in_flight(), 1);
    let bounds = without.queue.bounds();
    assert_eq!((bounds.unsettled, bounds.first_unsettled), (1, Some(2)));
    let told = without.persisted(2);
    assert!(matches!(told[0], Output::Settled { sequence: 2, .. }));
    let expected = Flushed {
        persisted: 1,
        unknown: 2,
        ..Flushed::default()
    };
    assert_eq!(flushed(&told), Some(expected));
    assert_eq!(without.delivery.in_flight(), 0);
}

#[test]
fn nothing_settles_a_message_but_an_ack_that_names_it_on_its_link() {
    let mut without = without(10);
    without.logon(None);
    for asks in [true, false, true, true] {
        without.publish(asks).unwrap();
    }
    without.send(3);
    // A figure, a message that asked for nothing, one that was not handed over, one that there is
    // not: whatever else comes with them.
    for (figure, sequence) in [(Some(3), None), (Some(3), Some(2)), (Some(1), Some(4))] {
        for verdict in [Verdict::Persisted, Verdict::Refused("no")] {
            let told = without.hears(figure, sequence, verdict);
            let settles = |output: &Output| match output {
                Output::Untaken { sequence: named } => Some(*named) != sequence,
                Output::Unattributed { figure: named, .. } => *named != figure,
                _ => true,
            };
            assert!(!told.iter().any(settles), "{told:?}");
            let is_told = sequence.is_some() || verdict != Verdict::Persisted;
            assert_eq!(told.len(), usize::from(is_told));
        }
    }
    let stray = without.hears(None, None, Verdict::Stray("no"));
    assert!(matches!(stray[..], [Output::Unattributed { .. }]));
    assert_eq!(without.queue.unacked(u64::MAX), 3);
    // A figure that no publisher can have reached ends no link here.
    let told = without.hears(Some(u64::MAX), Some(3), Verdict::Persisted);
    assert!(matches!(told[..], [Output::Settled { sequence: 3, .. }]));
    let told = without.hears(Some(1 << 40), Some(1), Verdict::Refused("no"));
    assert!(
        matches!(
            told[..],
            [Output::Refused {
                sequence: 1,
                late: false,
                attempts: 1,
                ..
            }]
        ),
        "{told:?}"
    );
    assert_eq!(without.queue.rejections(0, 9).len(), 1);
    // The same again.
    let told = without.persisted(1);
    assert!(matches!(told[..], [Output::Untaken { sequence: 1 }]));
    let totals = without.delivery.totals();
    assert_eq!((totals.persisted, totals.rejected), (1, 1));
    assert_eq!((totals.unattributed, totals.resent), (4, 0));
    assert_eq!(without.delivery.settled_by_servers(), 2);
}

#[test]
fn a_server_that_acks_each_message_by_itself_settles_those_that_asked_and_no_others() {
    let mut without = without(10);
    for resume in [Resume::ById, Resume::HighWater(9)] {
        // What it knows of earlier messages is nothing of ours.
        without.single(resume);
        without.input(Input::LinkLost);
    }
    without.single(Resume::Unknown);
    for asks in [true, false, true, true, true] {
        without.publish(asks).unwrap();
    }
    without.send(9);
    let evidence = Evidence::Stored;
    let mut told = Vec::new();
    for wire in [3, 1, 1, 2] {
        told.extend(without.input(Input::One { wire, evidence }));
    }
    told.extend(without.input(Input::AcksEnd));
    assert!(
        matches!(
            told[..],
            [
                Output::Untaken { sequence: 2 },
                Output::Settled { sequence: 1, .. },
                Output::Settled { sequence: 3, .. },
            ]
        ),
        "{told:?}"
    );
    // A mark covers nothing here, however high it is.
    assert!(without.input(Input::Mark { wire: 1 << 40 }).is_empty());
    // There is no other time that it could go out: to be turned away is to be refused.
    let (wire, why, at_once) = (4, "full", false);
    let told = without.input(Input::TryAgain { wire, why, at_once });
    assert!(
        matches!(&told[..], [Output::Refused { sequence: 4, reason, .. }] if reason == "full"),
        "{told:?}"
    );
    without.publish(false).unwrap();
    assert_eq!(without.send(9), [(6, AckWish::Unasked)]);
    assert_eq!(without.queue.unacked(u64::MAX), 1);
}

#[test]
fn a_message_that_the_link_can_never_take_is_refused_and_those_behind_it_go_out() {
    for asks in [true, false] {
        let mut without = without(10);
        without.single(Resume::Unknown);
        without.publish(asks).unwrap();
        without.publish(true).unwrap();
        let (store, now) = (without.queue.clone(), without.now);
        without.delivery.unsendable(1, "too large");
        let drained = without.delivery.drained(store.as_ref());
        assert!(matches!(
            drained,
            Some(Drained::Unsendable { sequence: 1, .. })
        ));
        assert!(without.flush().is_empty());
        let refused = without
            .delivery
            .refuse_unsendable(store.as_ref(), now, 1, "too large");
        assert!(refused);
        let told: Vec<_> = std::iter::from_fn(|| without.delivery.poll()).collect();
        let word = "not sent: too large";
        let is_told = |output: &Output| match output {
            Output::Refused {
                sequence, reason, ..
            } => asks && *sequence == 1 && reason == word,
            Output::Unattributed { reason, .. } => !asks && reason == word,
            _ => false,
        };
        assert!(matches!(&told[..], [one] if is_told(one)), "{told:?}");
        assert_eq!(without.send(9), [(2, AckWish::Asked)]);
        let told = without.input(Input::One {
            wire: 2,
            evidence: Evidence::Stored,
        });
        assert!(told.is_empty());
        let told = without.input(Input::AcksEnd);
        let expected = Flushed {
            persisted: 1,
            rejected: u64::from(asks),
            unknown: u64::from(!asks),
            ..Flushed::default()
        };
        assert_eq!(flushed(&told), Some(expected));
        assert_eq!(without.delivery.in_flight(), 0);
    }
}

#[test]
fn what_a_link_leaves_open_is_unknown_and_goes_out_on_no_other() {
    let mut without = without(10);
    without.logon(None);
    for asks in [true, true, false, true, false] {
        without.publish(asks).unwrap();
    }
    without.send(3);
    assert!(flushed(&without.flush()).is_none());
    without.persisted(1);
    let told = without.input(Input::LinkLost);
    assert!(
        matches!(
            told[0],
            Output::Lost {
                through: 5,
                unsent: 2
            }
        ),
        "{told:?}"
    );
    let expected = Flushed {
        persisted: 1,
        unknown: 4,
        ..Flushed::default()
    };
    assert_eq!(flushed(&told), Some(expected));
    assert!(matches!(without.publish(false), Err(Turned::Offline)));
    assert!(without.input(Input::LinkLost).is_empty(), "it is told once");
    without.logon(None);
    assert!(without.send(9).is_empty());
    assert_eq!(without.publish(true).unwrap(), 6, "no number twice");
    assert_eq!(without.send(9), [(6, AckWish::Asked)]);
    for of_before in [2, 4] {
        let told = without.persisted(of_before);
        assert!(matches!(told[..], [Output::Untaken { .. }]), "{told:?}");
    }
    let told = without.persisted(6);
    assert!(matches!(told[..], [Output::Settled { sequence: 6, .. }]));
}

#[test]
fn what_waits_is_bounded_and_who_was_turned_away_hears_of_room() {
    let mut without = without(2);
    without.logon(None);
    for _ in 0..2 {
        without.publish(true).unwrap();
    }
    assert!(matches!(without.publish(true), Err(Turned::Unacked(2))));
    let room = |without: &Without| without.room.load(Ordering::Relaxed);
    without.publish(false).unwrap();
    without.send(9);
    without.hears(None, Some(1), Verdict::Refused("no"));
    // Its place is taken until somebody took the refusal over; and then nobody waits for more.
    assert!(matches!(without.publish(true), Err(Turned::Unacked(2))));
    let before = room(&without);
    assert!(without.queue.accept(1).unwrap());
    assert!(!without.queue.accept(1).unwrap());
    assert_eq!(room(&without), before + 1);
    without.persisted(2);
    assert_eq!(room(&without), before + 1);
    without.publish(true).unwrap();
    // Bytes: the last one may exceed them.
    let large = vec![0; 3 << 20];
    let envelope = Envelope::publish("orders");
    without.queue.push(&envelope, &large, false).unwrap();
    assert!(matches!(without.publish(false), Err(Turned::Full)));
    assert_eq!(without.send(1).len(), 1);
    assert_eq!(room(&without), before + 2, "it tries again");
    assert!(matches!(without.publish(false), Err(Turned::Full)));
    assert_eq!(without.send(1).len(), 1);
    assert_eq!(room(&without), before + 3);
    assert!(without.publish(false).is_ok());
    let small = (0u64..).find(|_| without.publish(false).is_err());
    let small = small.unwrap();
    assert!((5_000..10_000).contains(&small), "each costs: {small}");
    without.input(Input::LinkLost);
    assert_eq!(room(&without), before + 4, "there is no link to wait for");
    assert_eq!(without.queue.bounds().live_bytes, 0);
}

/// In whatever pieces a link takes them.
#[test]
fn messages_go_out_in_order_and_whole() {
    let mut without = without(u64::MAX);
    without.logon(None);
    let mut rng = Rng::new(1);
    let (mut published, mut sent) = (Vec::new(), Vec::new());
    let topics: Vec<String> = (0..5).map(|n| "t".repeat(1 << (2 * n))).collect();
    while sent.len() < 3000 {
        for _ in 0..rng.below(100) {
            let topic = &topics[rng.below(5) as usize];
            let length = match rng.one_in(50) {
                true => rng.below(40_000),
                false => rng.below(400),
            };
            let payload = vec![rng.below(256) as u8; length as usize];
            let asks = rng.one_in(2);
            let envelope = Envelope::publish(topic.as_str());
            if let Ok(sequence) = without.queue.push(&envelope, &payload, asks) {
                published.push((sequence, topic.clone(), payload, asks));
            }
        }
        let room = Room {
            messages: 1 + rng.below(90) as usize,
            bytes: 1 + rng.below(30_000) as usize,
        };
        let fails_at = rng.one_in(4).then(|| sent.len() as u64 + rng.below(5));
        let send = |next: &ToSend<'_>| {
            if fails_at == Some(sent.len() as u64) {
                return Err(());
            }
            let topic = next.message.envelope().unwrap().topic.into_owned();
            let payload = next.message.payload().to_vec();
            sent.push((next.sequence, topic, payload, next.ack == AckWish::Asked));
            Ok(())
        };
        let (queue, batch) = (without.queue.as_ref(), &mut without.batch);
        let handed = without
            .delivery
            .hand_over(queue, without.now, room, batch, send);
        drop(handed);
        assert!(without.queue.has_handed_over(sent.len() as u64));
        assert!(!without.queue.has_handed_over(sent.len() as u64 + 1));
    }
    assert_eq!(sent, published[..sent.len()]);
}
