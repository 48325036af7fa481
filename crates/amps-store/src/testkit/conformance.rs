//! What every [`PublishStore`] has to promise, as a suite of tests for your own store.
//!
//! The promises are written at the trait; here each is tested from outside. The repository runs
//! the suite against the file, the memory store, the simulated disk and a store written for the
//! purpose. The suite cannot cut the power: what a power cut leaves must be tested by the store's
//! own tests.
//!
//! ```
//! use amps_store::testkit::conformance::Suite;
//! use amps_store::{Options, Store};
//!
//! // A store whose contents survive: a place for each test, opened again and again.
//! Suite::persistent(|| {
//!     let dir = tempfile::tempdir().unwrap();
//!     let options = Options::new().capacity(256 << 10).client_name("suite");
//!     move || Store::open(dir.path().join("store"), options.clone()).unwrap()
//! })
//! .check();
//!
//! // A store whose contents are gone when it is dropped.
//! let options = Options::new().capacity(256 << 10).client_name("suite");
//! Suite::volatile(|| Store::memory(options.clone()).unwrap()).check();
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a suite of tests fails by panicking"
)]

use std::ops::ControlFlow;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::{
    AppendError, Appended, Batch, Envelope, MAX_REASON, MAX_TAG, Operation, Origin, PublishStore,
    Rejected, Signal, StoreError, StoredMessage,
};

/// How long to wait for something that should come at once.
const PATIENCE: Duration = Duration::from_secs(30);

/// The suite, for stores of one kind. Each method is one section, and panics if the store breaks
/// a promise; [`check`](Suite::check) runs all sections that apply.
///
/// A store under test is empty when it is opened first, and only the suite uses it. It must have
/// room for a hundred messages of a hundred bytes, but for no more than 64 MiB.
pub struct Suite<F, S> {
    fresh: F,
    survives: bool,
    upkeep: fn(&S),
}

impl<F, P, S> Suite<F, S>
where
    F: FnMut() -> P,
    P: FnMut() -> S,
    S: PublishStore,
{
    /// For stores whose contents are there at the next open. `fresh` makes a place without a
    /// store; the function that it returns opens the store there, and is called again once the
    /// previous one was closed or dropped.
    pub fn persistent(fresh: F) -> Self {
        Suite {
            fresh,
            survives: true,
            upkeep: |_| {},
        }
    }

    /// Sets a function that is called while the suite waits, for stores that do nothing by
    /// themselves.
    #[must_use]
    pub fn upkeep(mut self, upkeep: fn(&S)) -> Self {
        self.upkeep = upkeep;
        self
    }

    /// Runs every section that applies.
    ///
    /// # Panics
    /// If the store breaks a promise.
    pub fn check(mut self) {
        self.numbering();
        self.reading();
        self.settling();
        self.refusing();
        self.requeueing();
        self.granting_and_rebasing();
        self.resuming();
        self.filling();
        self.becoming_durable();
        self.closing();
        if self.survives {
            self.reopening_after_a_close();
            self.reopening_after_a_crash();
        }
    }

    /// Sequences and ordinals rise, are known in advance from the bounds, and are in order
    /// whichever thread appends.
    ///
    /// # Panics
    /// If the store breaks one of these promises.
    pub fn numbering(&mut self) {
        let upkeep = self.upkeep;
        let mut open = (self.fresh)();
        let store = open();
        let first = store.numbers().first_of_run;
        let bounds = store.bounds();
        assert!(first > 0, "sequences start above 0");
        assert_eq!(
            (bounds.next, bounds.last, bounds.unsettled),
            (first, 0, 0),
            "an empty store"
        );
        let mut before = append(upkeep, &store, 1);
        assert_eq!(before.sequence, first, "the bounds told the number");
        for n in 2..=20 {
            let at = append(upkeep, &store, n);
            assert_eq!(at.sequence, before.sequence + 1, "sequences rise by one");
            assert!(at.ordinal > before.ordinal, "ordinals rise");
            before = at;
        }
        let bounds = store.bounds();
        assert_eq!(
            (bounds.last, bounds.next, bounds.unsettled),
            (before.sequence, before.sequence + 1, 20)
        );
        assert_eq!(bounds.first_unsettled, Some(first));
        let tag = vec![0; MAX_TAG + 1];
        let envelope = Envelope {
            user_tag: tag.into(),
            ..Envelope::publish("t")
        };
        let refused = store.append(&envelope, b"x");
        assert!(
            matches!(refused, Err(AppendError::Envelope(_))),
            "a user tag that is too long: {refused:?}"
        );
        assert_eq!(store.bounds(), bounds, "a refused message used no number");

        let store = Arc::new(store);
        let threads: Vec<_> = (0..4u64)
            .map(|thread| {
                let store = store.clone();
                std::thread::spawn(move || {
                    let append = |n| append(upkeep, &*store, thread * 1000 + n).sequence;
                    (0..20).map(append).collect::<Vec<_>>()
                })
            })
            .collect();
        let mut given = Vec::new();
        for (thread, handle) in threads.into_iter().enumerate() {
            let sequences = handle.join().expect("a thread that appends");
            assert!(sequences.is_sorted(), "in order of the calls of one thread");
            for (n, sequence) in sequences.iter().enumerate() {
                assert_eq!(
                    text(&*store, *sequence),
                    body(thread as u64 * 1000 + n as u64)
                );
            }
            given.extend(sequences);
        }
        given.sort_unstable();
        let expected: Vec<u64> = (before.sequence + 1..=before.sequence + 80).collect();
        assert_eq!(given, expected, "each number once");
    }

    /// Messages come back byte for byte, in order, and only those that are asked for.
    ///
    /// # Panics
    /// If the store breaks one of these promises.
    pub fn reading(&mut self) {
        let mut open = (self.fresh)();
        let store = open();
        let operations = [
            Operation::Publish,
            Operation::DeltaPublish,
            Operation::SowDeleteByFilter,
            Operation::SowDeleteByKeys,
            Operation::SowDeleteByData,
        ];
        let large = vec![0xA5; 500];
        let payloads: [&[u8]; 4] = [b"", b"x", &[0, 0xFF, b'\n', 0], &large];
        let mut given = Vec::new();
        for (n, operation) in operations.into_iter().cycle().take(20).enumerate() {
            let full = n % 3 == 0;
            let envelope = Envelope {
                operation,
                topic: format!("topic/{n}/\u{e9}").into(),
                correlation_id: full.then(|| "Y29y".into()),
                expiration: full.then_some(n as u32 * 1000),
                sow_key: full.then(|| format!("k{n}").into()),
                selector: (n % 2 == 0).then(|| "/id = 1".into()),
                options: full.then(|| "replace".into()),
                published_at: n as u64 * 1_000_000,
                user_tag: n.to_string().into_bytes().into(),
                origin: match n % 4 {
                    3 => Origin::Import,
                    _ => Origin::Publish,
                },
            };
            let payload = payloads[n % 4];
            let at = store.append(&envelope, payload).expect("room");
            given.push((at.sequence, envelope, payload));
        }
        let (first, last) = (given[0].0, given[19].0);
        let mut buffer = StoredMessage::new();
        // With the same buffer, a large message before a small one and the other way round.
        for (sequence, envelope, payload) in given.iter().chain(given.iter().rev()) {
            assert!(store.get(*sequence, &mut buffer).expect("reads"));
            assert_eq!(buffer.sequence, *sequence);
            assert_eq!(buffer.envelope().expect("whole"), *envelope);
            assert_eq!(buffer.payload(), *payload);
        }
        for nothing in [0, last + 1, u64::MAX] {
            assert!(
                !store.get(nothing, &mut buffer).expect("reads"),
                "{nothing}"
            );
        }
        let mut walked = Vec::new();
        let mut from = 0;
        // One at a time, several at once, and with room for fewer bytes than one of them has: the
        // first is always taken.
        for (messages, bytes) in [(1, usize::MAX), (7, usize::MAX), (usize::MAX, 1)] {
            let mut batch = Batch::new(messages, bytes);
            loop {
                store
                    .read_unsettled(from, u64::MAX, &mut batch)
                    .expect("reads");
                if batch.is_empty() {
                    break;
                }
                assert!(batch.len() <= messages && (bytes > 1 || batch.len() == 1));
                for message in batch.iter() {
                    let (sequence, envelope, payload) = &given[(message.sequence - first) as usize];
                    assert_eq!(message.sequence, *sequence);
                    assert_eq!(message.envelope().expect("whole"), *envelope);
                    assert_eq!(message.payload(), *payload);
                    walked.push(message.sequence);
                    from = message.sequence + 1;
                }
            }
            assert_eq!(walked, (first..=last).collect::<Vec<_>>(), "all, in order");
            walked.clear();
            from = 0;
        }
        let mut batch = Batch::default();
        let mut read = |from, through| {
            store
                .read_unsettled(from, through, &mut batch)
                .expect("reads");
            batch.iter().map(|m| m.sequence).collect::<Vec<_>>()
        };
        assert_eq!(read(first + 3, first + 3), [first + 3]);
        assert!(read(first + 4, first + 3).is_empty(), "an empty range");
        assert!(read(last + 1, u64::MAX).is_empty());
        store.settle(&[first + 3]).expect("settles");
        store.reject(first + 4, "no", 1).expect("refuses");
        assert_eq!(
            read(first + 2, first + 6),
            [first + 2, first + 5, first + 6],
            "only unsettled ones"
        );
        assert!(read(first + 3, first + 4).is_empty());
    }

    /// A prefix or single messages are settled, each counted once, and no message that comes
    /// later.
    ///
    /// # Panics
    /// If the store breaks one of these promises.
    pub fn settling(&mut self) {
        let upkeep = self.upkeep;
        let mut open = (self.fresh)();
        let store = open();
        let first = appended(upkeep, &store, 10);
        let settle = |sequences: &[u64]| store.settle(sequences).expect("settles");
        let through = |sequence| store.settle_through(sequence).expect("settles");
        assert_eq!(through(0), 0);
        assert_eq!(through(first + 1), 2);
        assert_eq!(through(first + 1), 0, "each message settles once");
        assert_eq!(through(first), 0);
        assert_eq!(store.bounds().floor, first + 1);
        assert_eq!(
            settle(&[first + 5, first + 3, first + 5, first, 0, u64::MAX]),
            2
        );
        assert_eq!(settle(&[]), 0);
        let bounds = store.bounds();
        assert_eq!(
            (bounds.floor, bounds.first_unsettled, bounds.unsettled),
            (first + 1, Some(first + 2), 6)
        );
        assert!(!store.is_unsettled(first + 3) && store.is_unsettled(first + 4));
        assert!(!store.is_unsettled(0) && !store.is_unsettled(first + 10));
        assert_eq!(settle(&[first + 2]), 1);
        assert_eq!(
            store.bounds().floor,
            first + 3,
            "the floor passes over what is settled"
        );
        assert_eq!(through(u64::MAX), 5, "and nothing that does not exist");
        let bounds = store.bounds();
        assert_eq!((bounds.first_unsettled, bounds.unsettled), (None, 0));
        assert_eq!((bounds.floor, bounds.last), (first + 9, first + 9));
        let late = append(upkeep, &store, 11).sequence;
        assert!(store.is_unsettled(late), "what comes later is unsettled");
        assert_eq!(store.bounds().first_unsettled, Some(late));
    }

    /// A refusal settles one message, waits for the application, and nothing overrides it.
    ///
    /// # Panics
    /// If the store breaks one of these promises.
    pub fn refusing(&mut self) {
        let upkeep = self.upkeep;
        let mut open = (self.fresh)();
        let store = open();
        let first = appended(upkeep, &store, 8);
        let reject = |sequence, reason: &str| store.reject(sequence, reason, 77).expect("refuses");
        let refused = reject(first + 2, "not entitled");
        assert!(
            matches!(refused, Rejected::Logged { late: false, .. }),
            "{refused:?}"
        );
        assert_eq!(reject(first + 2, "again"), Rejected::Known);
        assert_eq!(reject(0, "whose?"), Rejected::Unknown);
        assert_eq!(reject(first + 8, "whose?"), Rejected::Unknown);
        assert!(!store.is_unsettled(first + 2));
        assert_eq!(
            (store.bounds().unsettled, store.bounds().rejections),
            (7, 1)
        );
        let long = "\u{e9}".repeat(MAX_REASON);
        reject(first, &long);
        reject(first + 5, "");
        assert_eq!(store.settle_through(first + 5).expect("settles"), 3);
        let waiting = store.rejections(0, usize::MAX);
        let seen: Vec<_> = waiting
            .iter()
            .map(|r| {
                (
                    r.sequence - first,
                    r.reason.as_str(),
                    r.reason_cut,
                    r.at,
                    r.late,
                )
            })
            .collect();
        let cut = "\u{e9}".repeat(MAX_REASON / 2);
        assert_eq!(
            seen,
            [
                (0, cut.as_str(), true, 77, false),
                (2, "not entitled", false, 77, false),
                (5, "", false, 77, false)
            ],
            "no success overrides a refusal"
        );
        let page = |from, limit| -> Vec<u64> {
            let page = store.rejections(from, limit);
            page.into_iter().map(|r| r.sequence - first).collect()
        };
        assert_eq!(page(first + 1, 1), [2]);
        assert_eq!(page(first + 3, 9), [5]);
        assert!(page(first + 6, 9).is_empty() && page(0, 0).is_empty());
        assert_eq!(store.settle(&[first + 2]).expect("settles"), 0);
        for n in [0, 2, 5] {
            assert_eq!(
                text(&store, first + n),
                body(n + 1),
                "its message waits with it"
            );
        }
        let late = reject(first + 1, "too late");
        match late {
            Rejected::Logged { late, .. } => {
                assert!(late);
                assert!(store.rejections(first + 1, 1)[0].late);
                assert!(store.accept(first + 1).expect("accepts"));
            }
            other => assert_eq!(other, Rejected::NoRoom),
        }
        assert!(store.accept(first + 2).expect("accepts"));
        assert!(!store.accept(first + 2).expect("accepts"), "once");
        assert!(!store.accept(first + 6).expect("accepts"), "none waits");
        assert_eq!(page(0, 9), [0, 5]);
        assert_eq!(store.bounds().rejections, 2);
        assert!(!store.is_unsettled(first + 2), "accepted is settled");
        assert_eq!(store.bounds().floor, first + 5);
    }

    /// A refused message goes out again under a new number, and its refusal is gone in the same
    /// step.
    ///
    /// # Panics
    /// If the store breaks one of these promises.
    pub fn requeueing(&mut self) {
        let upkeep = self.upkeep;
        let mut open = (self.fresh)();
        let store = open();
        let first = appended(upkeep, &store, 3);
        assert_eq!(
            store.requeue(first, 5).expect("answers"),
            None,
            "none waits"
        );
        store.reject(first + 1, "no", 1).expect("refuses");
        let tag = store.resume_tag();
        let again = store
            .requeue(first + 1, 99)
            .expect("room")
            .expect("it waits");
        assert_eq!(again.sequence, first + 3);
        assert!(store.rejections(0, 9).is_empty());
        assert_eq!(store.requeue(first + 1, 99).expect("answers"), None);
        assert!(store.is_unsettled(again.sequence) && !store.is_unsettled(first + 1));
        let mut message = StoredMessage::new();
        assert!(store.get(again.sequence, &mut message).expect("reads"));
        assert_eq!(message.payload(), body(2).as_bytes());
        let origin = Origin::Requeue { accepts: first + 1 };
        let expected = Envelope {
            origin,
            published_at: 99,
            ..envelope(2)
        };
        assert_eq!(message.envelope().expect("whole"), expected);
        assert_eq!(store.resume_tag(), tag, "only publishes move it");
    }

    /// The grant only rises, a rebase starts at the first unsettled message, and numbers stay in
    /// their range.
    ///
    /// # Panics
    /// If the store breaks one of these promises.
    pub fn granting_and_rebasing(&mut self) {
        let upkeep = self.upkeep;
        let mut open = (self.fresh)();
        let store = open();
        let first = appended(upkeep, &store, 5);
        let numbers = store.numbers();
        assert_eq!((numbers.grant, numbers.found_grant), (0, 0));
        assert_eq!(numbers.rebase, None);
        store.raise_grant(first + 100).expect("raises");
        let grant = store.numbers().grant;
        assert!(grant >= first + 100);
        store.raise_grant(first).expect("no need");
        assert_eq!(store.numbers().grant, grant, "it never falls");
        let beyond = store.raise_grant(1 << 63);
        assert!(
            matches!(beyond, Err(StoreError::OutOfRange(_))),
            "{beyond:?}"
        );
        assert_eq!(store.numbers().grant, grant);
        store.settle_through(first + 1).expect("settles");
        let rebase = store.rebase(5000).expect("rebases");
        assert_eq!(rebase.from, first + 2, "the first unsettled message");
        assert_eq!(rebase.from.cast_signed() + rebase.delta, 5001);
        let numbers = store.numbers();
        assert_eq!((numbers.rebase, numbers.grant), (Some(rebase), first + 1));
        for above in [(1 << 63) - 1, u64::MAX] {
            let beyond = store.rebase(above);
            assert!(
                matches!(beyond, Err(StoreError::OutOfRange(_))),
                "{beyond:?}"
            );
        }
        assert_eq!(store.numbers(), numbers, "nothing changed");
        store.settle_through(u64::MAX).expect("settles");
        let rebase = store.rebase(9).expect("rebases");
        assert_eq!(rebase.from, first + 5, "or the next one");
        assert_eq!(
            rebase.from.cast_signed() + rebase.delta,
            10,
            "downwards, too"
        );
        assert_eq!(append(upkeep, &store, 6).sequence, first + 5);
    }

    /// The resume point is the tag of the last publish, and nothing else moves it.
    ///
    /// # Panics
    /// If the store breaks one of these promises.
    pub fn resuming(&mut self) {
        let upkeep = self.upkeep;
        let mut open = (self.fresh)();
        let store = open();
        assert_eq!(store.resume_tag(), None);
        let first = appended(upkeep, &store, 3);
        assert_eq!(store.resume_tag().as_deref(), Some(&b"3"[..]));
        let import = Envelope {
            origin: Origin::Import,
            user_tag: b"imported".into(),
            ..Envelope::publish("t")
        };
        store.append(&import, b"x").expect("room");
        assert_eq!(store.resume_tag().as_deref(), Some(&b"3"[..]));
        store.settle_through(first + 3).expect("settles");
        assert_eq!(
            store.resume_tag().as_deref(),
            Some(&b"3"[..]),
            "settled or not"
        );
    }

    /// A full store refuses, changes nothing, still settles, and has room again afterwards.
    ///
    /// # Panics
    /// If the store breaks one of these promises.
    pub fn filling(&mut self) {
        let mut open = (self.fresh)();
        let store = open();
        let limit = store.bounds().limit_bytes;
        assert!((1..=64 << 20).contains(&limit), "a bound: {limit}");
        let huge = vec![0; limit as usize + 1];
        let refused = store.append(&Envelope::publish("t"), &huge).unwrap_err();
        assert!(!refused.is_retryable(), "it never fits: {refused}");
        assert_eq!(store.bounds().last, 0);
        let signals = hear(&store);
        let payload = [7; 1000];
        // A store that grows may need a moment; one that settles nothing is full in the end.
        let fill = |store: &S| {
            let mut idle = 0;
            let mut count = 0;
            while idle < 2 {
                match store.append(&Envelope::publish("t"), &payload) {
                    Ok(_) => (idle, count) = (0, count + 1),
                    Err(error) => {
                        assert!(error.is_retryable(), "only full: {error}");
                        (self.upkeep)(store);
                        idle = match signals.recv_timeout(Duration::from_millis(200)) {
                            Ok(Signal::Room) => 0,
                            _ => idle + 1,
                        };
                    }
                }
                assert!(store.bounds().live_bytes <= limit);
            }
            count
        };
        let mut count = fill(&store);
        assert!(count > 0 && count * 1000 <= limit, "{count} messages");
        // One append is turned away, and hears of nothing afterwards.
        while signals.try_recv().is_ok() || store.append(&Envelope::publish("t"), &payload).is_ok()
        {
            count = store.bounds().unsettled;
        }
        // Another caller that finds room meanwhile must not consume its wake-up.
        count += u64::from(store.append(&Envelope::publish("t"), b"").is_ok());
        let bounds = store.bounds();
        assert_eq!((bounds.unsettled, bounds.last), (count, bounds.next - 1));
        // Although the store is full, what was charged in advance finds its room.
        let first = bounds.first_unsettled.expect("some");
        let refused = store.reject(first, "no", 1).expect("room was charged");
        assert!(matches!(refused, Rejected::Logged { .. }), "{refused:?}");
        assert!(store.accept(first).expect("room was charged"));
        store.raise_grant(bounds.last).expect("takes no room");
        assert_eq!(store.settle_through(u64::MAX).expect("settles"), count - 1);
        (self.upkeep)(&store);
        // Settling gave the room back. Whoever waits for it tries again whenever it is signalled,
        // and need not try at other times.
        for refused in 0.. {
            let mut told = std::iter::from_fn(|| signals.recv_timeout(PATIENCE).ok());
            let room = told.any(|signal| signal == Signal::Room);
            assert!(room, "who was turned away is not told of room");
            let Err(error) = store.append(&Envelope::publish("t"), &payload) else {
                break;
            };
            assert!(error.is_retryable(), "{error}");
            assert!(refused < 1000, "no room comes back: {error}");
            (self.upkeep)(&store);
        }
    }

    /// A sync covers what was there, is signalled, and may be requested without waiting.
    ///
    /// # Panics
    /// If the store breaks one of these promises.
    pub fn becoming_durable(&mut self) {
        let upkeep = self.upkeep;
        let mut open = (self.fresh)();
        let store = Arc::new(open());
        let signals = hear(&*store);
        let once = Arc::new(Mutex::new(0));
        let counter = once.clone();
        store.observe(Arc::new(move |_| {
            *counter.lock().unwrap_or_else(PoisonError::into_inner) += 1;
            ControlFlow::Break(())
        }));
        // An observer may call back.
        let inside = store.clone();
        store.observe(Arc::new(move |_| {
            inside.bounds();
            ControlFlow::Continue(())
        }));
        let at = append(upkeep, &*store, 1);
        if !self.survives {
            let refused = store.request_sync();
            assert!(matches!(refused, Err(StoreError::InMemory)), "{refused:?}");
            let refused = store.sync();
            assert!(matches!(refused, Err(StoreError::InMemory)), "{refused:?}");
            assert_eq!(store.durable().sequence, 0, "nothing is durable in memory");
            return;
        }
        let durable = store.sync().expect("syncs");
        assert!(durable.sequence >= at.sequence && durable.ordinal >= at.ordinal);
        let now = store.durable();
        assert!(now.sequence >= durable.sequence && now.ordinal >= durable.ordinal);
        let at = append(upkeep, &*store, 2);
        store.request_sync().expect("it can be synced");
        while store.durable().sequence < at.sequence {
            (self.upkeep)(&store);
            signals.recv_timeout(PATIENCE).expect("a signal follows");
        }
        assert!(store.durable().ordinal >= at.ordinal);
        let refused = store.reject(at.sequence, "no", 1).expect("refuses");
        let Rejected::Logged { ordinal, .. } = refused else {
            panic!("{refused:?}");
        };
        assert!(
            store.sync().expect("syncs").ordinal >= ordinal,
            "a refusal, too"
        );
        let heard = *once.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(heard <= 1, "who breaks is forgotten: called {heard} times");
    }

    /// A closed store changes nothing any more, and says so.
    ///
    /// # Panics
    /// If the store breaks one of these promises.
    pub fn closing(&mut self) {
        let upkeep = self.upkeep;
        let mut open = (self.fresh)();
        let store = open();
        let first = appended(upkeep, &store, 3);
        store.settle_through(first).expect("settles");
        store.close(first + 1).expect("closes");
        let bounds = store.bounds();
        assert_eq!((bounds.unsettled, bounds.last), (2, first + 2));
        assert_eq!(
            store.durable().sequence >= first + 2,
            self.survives,
            "a close syncs what can be synced"
        );
        let closed = |error: &StoreError| matches!(error, StoreError::Closed);
        assert!(matches!(
            store.append(&Envelope::publish("t"), b"x"),
            Err(AppendError::Store(error)) if closed(&error)
        ));
        assert!(
            store
                .read_unsettled(0, u64::MAX, &mut Batch::default())
                .is_err()
        );
        assert!(store.get(first + 1, &mut StoredMessage::new()).is_err());
        assert!(store.settle_through(first + 2).is_err_and(|e| closed(&e)));
        assert!(store.settle(&[first + 1]).is_err_and(|e| closed(&e)));
        assert!(store.reject(first + 1, "no", 1).is_err_and(|e| closed(&e)));
        assert!(store.accept(first + 1).is_err_and(|e| closed(&e)));
        assert!(store.raise_grant(first + 50).is_err_and(|e| closed(&e)));
        assert!(store.rebase(7).is_err_and(|e| closed(&e)));
        assert_eq!(store.bounds(), bounds);
    }

    /// After a close the next open goes on where this run ended: nothing settled comes back, and
    /// no number is skipped.
    ///
    /// # Panics
    /// If the store breaks one of these promises.
    pub fn reopening_after_a_close(&mut self) {
        let upkeep = self.upkeep;
        let mut open = (self.fresh)();
        let store = open();
        let name = store.client_name();
        assert!(!name.is_empty());
        let identity = store.identity();
        if identity.is_some() {
            let other = (self.fresh)()().identity();
            assert_ne!(other, identity, "another store has this identity");
        }
        let first = appended(upkeep, &store, 10);
        store.settle_through(first + 2).expect("settles");
        store.settle(&[first + 5]).expect("settles");
        store
            .reject(first + 3, "not entitled", 77)
            .expect("refuses");
        store.reject(first + 6, "taken over", 78).expect("refuses");
        store.accept(first + 6).expect("accepts");
        let rebase = store.rebase(5000).expect("rebases");
        store.raise_grant(first + 1000).expect("raises");
        store.close(first + 7).expect("closes");
        drop(store);
        let store = open();
        assert_eq!(store.client_name(), name);
        assert_eq!(store.identity(), identity);
        assert_eq!(unsettled(&store), [4, 7, 8, 9].map(|n| first + n));
        assert_eq!(text(&store, first + 7), body(8));
        let waiting = store.rejections(0, 9);
        assert_eq!(waiting.len(), 1);
        assert_eq!(
            (
                waiting[0].sequence,
                waiting[0].reason.as_str(),
                waiting[0].at
            ),
            (first + 3, "not entitled", 77)
        );
        assert_eq!(text(&store, first + 3), body(4));
        assert_eq!(store.resume_tag().as_deref(), Some(&b"10"[..]));
        let numbers = store.numbers();
        assert_eq!(numbers.rebase, Some(rebase));
        assert_eq!(numbers.found_grant, first + 7, "what was handed over");
        assert_eq!(numbers.first_of_run, first + 10, "no number is skipped");
        assert_eq!(append(upkeep, &store, 11).sequence, first + 10);
    }

    /// After the process died, every change that a call returned from is there, and the next
    /// number is above whatever may have been sent.
    ///
    /// # Panics
    /// If the store breaks one of these promises.
    pub fn reopening_after_a_crash(&mut self) {
        let upkeep = self.upkeep;
        let mut open = (self.fresh)();
        let store = open();
        let first = appended(upkeep, &store, 6);
        store.settle(&[first + 1]).expect("settles");
        store.reject(first + 2, "no", 7).expect("refuses");
        store.raise_grant(first + 500).expect("raises");
        let grant = store.numbers().grant;
        drop(store);
        let store = open();
        assert_eq!(unsettled(&store), [0, 3, 4, 5].map(|n| first + n));
        assert_eq!(store.rejections(0, 9).len(), 1);
        let numbers = store.numbers();
        assert_eq!(numbers.found_grant, grant);
        assert!(
            numbers.first_of_run > grant,
            "any of those may have been sent"
        );
        let next = append(upkeep, &store, 7).sequence;
        assert_eq!(next, numbers.first_of_run);
        let again = store
            .requeue(first + 2, 1)
            .expect("room")
            .expect("it waits");
        assert_eq!(again.sequence, next + 1);
        store.settle_through(first + 3).expect("settles");
        drop(store);
        let store = open();
        let left = [first + 4, first + 5, next, next + 1];
        assert_eq!(unsettled(&store), left, "nothing settled comes back");
        assert!(store.rejections(0, 9).is_empty(), "the requeue accepted it");
        assert_eq!(text(&store, next + 1), body(3));
        assert!(append(upkeep, &store, 8).sequence > next + 1);
    }
}

impl<S: PublishStore> Suite<(), S> {
    /// For stores whose contents are gone when they are dropped; `fresh` makes an empty one.
    pub fn volatile(
        mut fresh: impl FnMut() -> S,
    ) -> Suite<impl FnMut() -> Box<dyn FnMut() -> S>, S> {
        Suite {
            fresh: move || {
                let mut store = Some(fresh());
                let open = move || store.take().expect("a volatile store is opened once");
                Box::new(open) as Box<dyn FnMut() -> S>
            },
            survives: false,
            upkeep: |_| {},
        }
    }
}

fn body(n: u64) -> String {
    format!("message {n}")
}

fn envelope(n: u64) -> Envelope<'static> {
    Envelope {
        published_at: n,
        user_tag: n.to_string().into_bytes().into(),
        correlation_id: Some("Y29y".into()),
        ..Envelope::publish("orders")
    }
}

/// Appends a small message. A store that grows may need a moment for it.
fn append<S: PublishStore>(upkeep: fn(&S), store: &S, n: u64) -> Appended {
    let mut waiting: Option<(Receiver<Signal>, u32)> = None;
    loop {
        let error = match store.append(&envelope(n), body(n).as_bytes()) {
            Ok(appended) => return appended,
            Err(error) => error,
        };
        assert!(error.is_retryable(), "room for a small message: {error}");
        let (signals, refused) = waiting.get_or_insert_with(|| (hear(store), 0));
        *refused += 1;
        assert!(*refused < 1000, "room for a small message: {error}");
        upkeep(store);
        // A wait that ends without a signal tries again all the same.
        let _ = signals.recv_timeout(PATIENCE / 1000);
    }
}

/// Appends this many messages; returns the sequence of the first.
fn appended<S: PublishStore>(upkeep: fn(&S), store: &S, count: u64) -> u64 {
    let first = append(upkeep, store, 1).sequence;
    for n in 2..=count {
        append(upkeep, store, n);
    }
    first
}

fn text(store: &impl PublishStore, sequence: u64) -> String {
    let mut message = StoredMessage::new();
    assert!(store.get(sequence, &mut message).expect("reads"));
    String::from_utf8(message.payload().to_vec()).expect("text")
}

fn unsettled(store: &impl PublishStore) -> Vec<u64> {
    let mut batch = Batch::new(usize::MAX, usize::MAX);
    store
        .read_unsettled(0, u64::MAX, &mut batch)
        .expect("reads");
    batch.iter().map(|message| message.sequence).collect()
}

fn hear(store: &impl PublishStore) -> Receiver<Signal> {
    let (tell, told) = channel();
    store.observe(Arc::new(move |signal| {
        // A receiver that is gone needs no more signals.
        match tell.send(signal) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }));
    told
}
