//! A publish store as a user may write it: a map behind a lock. What it keeps is in `Contents`,
//! which stands for a file, a database or whatever else survives the process.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use amps_store::{
    AppendError, Appended, Batch, Bounds, Durable, Envelope, Level, MAX_REASON, MAX_TAG, Numbers,
    Observer, Origin, PublishStore, ReadError, Rebase, Rejected, Rejection, Signal, StoreError,
    StoredMessage,
};

/// The most that `Contents::live` may become.
const LIMIT: u64 = 1 << 20;

/// Charged for each message beside its payload: envelope, refusal, everything.
const CHARGE: u64 = 1 << 10;

/// What survives.
#[derive(Default)]
pub(crate) struct Contents {
    /// Unsettled and refused messages; the others are forgotten.
    messages: BTreeMap<u64, Kept>,
    live: u64,
    last: u64,
    /// The next message gets the number after this one.
    before: u64,
    /// Numbers up to here were granted at some time.
    number_floor: u64,
    ordinal: u64,
    grant: u64,
    rebase: Option<Rebase>,
    tag: Option<Vec<u8>>,
}

struct Kept {
    envelope: Envelope<'static>,
    payload: Vec<u8>,
    refusal: Option<Rejection>,
}

/// The place of a store. Clones are the same place.
pub(crate) type Place = Arc<Mutex<Contents>>;

/// The store, open.
pub(crate) struct OwnStore {
    place: Place,
    run: Mutex<Run>,
    found_grant: u64,
    first_of_run: u64,
}

/// What does not survive.
#[derive(Default)]
struct Run {
    observers: Vec<Observer>,
    /// Somebody waits for room.
    full: bool,
    closed: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Contents {
    fn next(&self) -> u64 {
        self.before + 1
    }

    fn unsettled(&self) -> impl DoubleEndedIterator<Item = u64> + '_ {
        let unsettled = self.messages.iter().filter(|(_, m)| m.refusal.is_none());
        unsettled.map(|(sequence, _)| *sequence)
    }

    fn remove(&mut self, sequence: u64) {
        if let Some(message) = self.messages.remove(&sequence) {
            self.live -= message.payload.len() as u64 + CHARGE;
        }
        self.ordinal += 1;
    }
}

impl OwnStore {
    pub(crate) fn open(place: &Place) -> Self {
        let mut contents = lock(place);
        // Any number that was granted may have been sent.
        contents.before = contents.last.max(contents.number_floor).max(contents.grant);
        let (found_grant, first_of_run) = (contents.grant, contents.next());
        drop(contents);
        OwnStore {
            place: place.clone(),
            run: Mutex::default(),
            found_grant,
            first_of_run,
        }
    }

    fn contents(&self) -> Result<MutexGuard<'_, Contents>, StoreError> {
        match lock(&self.run).closed {
            true => Err(StoreError::Closed),
            false => Ok(lock(&self.place)),
        }
    }

    /// Called without holding a lock, since observers call back.
    fn signal(&self, signal: Signal) {
        let observers = std::mem::take(&mut lock(&self.run).observers);
        let kept = observers.into_iter().filter(|o| o(signal).is_continue());
        let kept: Vec<_> = kept.collect();
        lock(&self.run).observers.extend(kept);
    }

    fn freed(&self) {
        if std::mem::take(&mut lock(&self.run).full) {
            self.signal(Signal::Room);
        }
    }
}

impl PublishStore for OwnStore {
    fn append(&self, envelope: &Envelope<'_>, payload: &[u8]) -> Result<Appended, AppendError> {
        // Only `set` knows how to say that a tag is too long.
        if envelope.user_tag.len() > MAX_TAG {
            StoredMessage::new().set(0, envelope, payload)?;
        }
        let mut contents = self.contents()?;
        let needed = payload.len() as u64 + CHARGE;
        if needed > LIMIT {
            return Err(AppendError::TooLarge { needed, max: LIMIT });
        }
        if contents.live + needed > LIMIT {
            lock(&self.run).full = true;
            return Err(AppendError::Full {
                live: contents.live,
                limit: LIMIT,
                needed,
            });
        }
        let sequence = contents.next();
        (contents.last, contents.before) = (sequence, sequence);
        contents.live += needed;
        contents.ordinal += 1;
        match envelope.origin {
            Origin::Publish => contents.tag = Some(envelope.user_tag.to_vec()),
            Origin::Requeue { accepts } => contents.remove(accepts),
            Origin::Import => {}
        }
        let kept = Kept {
            envelope: envelope.clone().into_owned(),
            payload: payload.to_vec(),
            refusal: None,
        };
        contents.messages.insert(sequence, kept);
        Ok(Appended {
            sequence,
            ordinal: contents.ordinal,
        })
    }

    fn read_unsettled(&self, from: u64, through: u64, into: &mut Batch) -> Result<(), ReadError> {
        into.clear();
        let contents = self.contents()?;
        let asked = contents
            .unsettled()
            .filter(|s| (from..=through).contains(s));
        for sequence in asked {
            let message = &contents.messages[&sequence];
            // Its tag was checked when it was stored.
            let pushed = into.push(sequence, &message.envelope, &message.payload);
            if !pushed.is_ok_and(|pushed| pushed) {
                break;
            }
        }
        Ok(())
    }

    fn get(&self, sequence: u64, into: &mut StoredMessage) -> Result<bool, ReadError> {
        let contents = self.contents()?;
        let message = contents.messages.get(&sequence);
        // Its tag was checked when it was stored.
        Ok(message.is_some_and(|m| into.set(sequence, &m.envelope, &m.payload).is_ok()))
    }

    fn bounds(&self) -> Bounds {
        let contents = lock(&self.place);
        let first_unsettled = contents.unsettled().next();
        let unsettled = contents.unsettled().count() as u64;
        Bounds {
            first_unsettled,
            last: contents.last,
            next: contents.next(),
            floor: first_unsettled.map_or(contents.last, |first| first - 1),
            unsettled,
            rejections: contents.messages.len() as u64 - unsettled,
            live_bytes: contents.live,
            limit_bytes: LIMIT,
        }
    }

    fn is_unsettled(&self, sequence: u64) -> bool {
        let contents = lock(&self.place);
        let message = contents.messages.get(&sequence);
        message.is_some_and(|message| message.refusal.is_none())
    }

    fn settle_through(&self, sequence: u64) -> Result<u64, StoreError> {
        let all: Vec<u64> = self
            .contents()?
            .unsettled()
            .take_while(|s| *s <= sequence)
            .collect();
        self.settle(&all)
    }

    fn settle(&self, sequences: &[u64]) -> Result<u64, StoreError> {
        let mut contents = self.contents()?;
        let before = contents.messages.len();
        for sequence in sequences {
            let message = contents.messages.get(sequence);
            if message.is_some_and(|message| message.refusal.is_none()) {
                contents.remove(*sequence);
            }
        }
        let settled = before - contents.messages.len();
        drop(contents);
        self.freed();
        Ok(settled as u64)
    }

    fn reject(&self, sequence: u64, reason: &str, at: u64) -> Result<Rejected, StoreError> {
        let mut contents = self.contents()?;
        if sequence == 0 || sequence > contents.last {
            return Ok(Rejected::Unknown);
        }
        let ordinal = contents.ordinal + 1;
        let Some(message) = contents.messages.get_mut(&sequence) else {
            // Settled and forgotten: there is nothing left to hand back.
            return Ok(Rejected::NoRoom);
        };
        if message.refusal.is_some() {
            return Ok(Rejected::Known);
        }
        let mut end = reason.len().min(MAX_REASON);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        message.refusal = Some(Rejection {
            sequence,
            reason: reason[..end].to_owned(),
            reason_cut: end < reason.len(),
            at,
            late: false,
        });
        contents.ordinal = ordinal;
        Ok(Rejected::Logged {
            ordinal,
            late: false,
        })
    }

    fn accept(&self, sequence: u64) -> Result<bool, StoreError> {
        let mut contents = self.contents()?;
        let message = contents.messages.get(&sequence);
        let waits = message.is_some_and(|message| message.refusal.is_some());
        if waits {
            contents.remove(sequence);
        }
        drop(contents);
        self.freed();
        Ok(waits)
    }

    fn requeue(&self, sequence: u64, now: u64) -> Result<Option<Appended>, AppendError> {
        let (mut envelope, payload) = match self.contents()?.messages.get(&sequence) {
            Some(m) if m.refusal.is_some() => (m.envelope.clone(), m.payload.clone()),
            _ => return Ok(None),
        };
        envelope.origin = Origin::Requeue { accepts: sequence };
        envelope.published_at = now;
        self.append(&envelope, &payload).map(Some)
    }

    fn rejections(&self, from: u64, limit: usize) -> Vec<Rejection> {
        let contents = lock(&self.place);
        let refused = contents.messages.range(from..);
        let refused = refused.filter_map(|(_, message)| message.refusal.clone());
        refused.take(limit).collect()
    }

    fn numbers(&self) -> Numbers {
        let contents = lock(&self.place);
        Numbers {
            grant: contents.grant,
            found_grant: self.found_grant,
            first_of_run: self.first_of_run,
            rebase: contents.rebase,
        }
    }

    fn raise_grant(&self, to: u64) -> Result<(), StoreError> {
        if to >= 1 << 63 {
            return Err(StoreError::OutOfRange(to));
        }
        let mut contents = self.contents()?;
        contents.grant = contents.grant.max(to);
        Ok(())
    }

    fn rebase(&self, above: u64) -> Result<Rebase, StoreError> {
        let mut contents = self.contents()?;
        if above >= (1 << 63) - 1 {
            return Err(StoreError::OutOfRange(above));
        }
        let from = contents.unsettled().next().unwrap_or(contents.next());
        let delta = (above + 1).cast_signed() - from.cast_signed();
        let rebase = Rebase { from, delta };
        // In one step. The old grant remains a lower bound for the next number.
        contents.number_floor = contents.number_floor.max(contents.grant);
        (contents.rebase, contents.grant) = (Some(rebase), from - 1);
        Ok(rebase)
    }

    fn level(&self) -> Level {
        Level::Os
    }

    fn durable(&self) -> Durable {
        // It is as durable as it gets, at once.
        let contents = lock(&self.place);
        Durable {
            ordinal: contents.ordinal,
            sequence: contents.last,
        }
    }

    fn request_sync(&self) -> Result<(), StoreError> {
        drop(self.contents()?);
        self.signal(Signal::Durable);
        Ok(())
    }

    fn sync(&self) -> Result<Durable, StoreError> {
        self.request_sync()?;
        Ok(self.durable())
    }

    fn observe(&self, observer: Observer) {
        lock(&self.run).observers.push(observer);
    }

    fn client_name(&self) -> String {
        "own".to_owned()
    }

    fn resume_tag(&self) -> Option<Vec<u8>> {
        lock(&self.place).tag.clone().filter(|tag| !tag.is_empty())
    }

    fn close(&self, handed_over: u64) -> Result<(), StoreError> {
        let floor = self.bounds().floor;
        let mut contents = self.contents()?;
        contents.grant = contents.grant.min(handed_over.max(floor));
        drop(contents);
        lock(&self.run).closed = true;
        Ok(())
    }
}
