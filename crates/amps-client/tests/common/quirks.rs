//! A store that behaves as a test says.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use amps_store::{
    AppendError, Appended, Batch, Bounds, Durable, Envelope, Level, Numbers, Observer,
    PublishStore, ReadError, Rebase, Rejected, Rejection, Store, StoreError, StoredMessage,
    Unrecorded,
};

type Hook<T> = Option<Box<dyn Fn() -> T + Send + Sync>>;

/// A store in memory, except for what a test does in its place.
pub struct Quirks {
    pub store: Store,
    /// Nothing becomes durable, however often that is asked for, until this is true.
    pub durable: Option<Arc<AtomicBool>>,
    /// What to do before a close.
    pub close: Hook<()>,
    /// The outcome of raising the grant, if it should be another one.
    pub raise_grant: Hook<Option<StoreError>>,
    /// The error of reading the next messages, if that should fail.
    pub read_unsettled: Hook<Option<ReadError>>,
    /// The outcome of a refusal, if it should be another one.
    pub reject: Hook<Option<Rejected>>,
    /// What to do before a sync, whether it is waited for or not.
    pub before_sync: Hook<()>,
    /// The error of a sync, if it should fail.
    pub sync: Hook<Option<StoreError>>,
    /// How many appends found no room.
    pub turned_away: Arc<AtomicU64>,
}

impl Quirks {
    pub fn of(store: Store) -> Self {
        Quirks {
            store,
            durable: None,
            close: None,
            raise_grant: None,
            read_unsettled: None,
            reject: None,
            before_sync: None,
            sync: None,
            turned_away: Arc::default(),
        }
    }
}

impl Quirks {
    fn is_durable(&self) -> bool {
        let durable = self.durable.as_ref();
        durable.is_none_or(|durable| durable.load(Ordering::SeqCst))
    }
}

fn ask<T>(hook: &Hook<Option<T>>) -> Option<T> {
    hook.as_ref().and_then(|hook| hook())
}

impl PublishStore for Quirks {
    fn durable(&self) -> Durable {
        match self.is_durable() {
            true => self.store.durable(),
            false => Durable::default(),
        }
    }

    fn request_sync(&self) -> Result<(), StoreError> {
        if let Some(hook) = &self.before_sync {
            hook();
        }
        match self.is_durable() {
            true => self.store.request_sync(),
            false => Ok(()),
        }
    }

    fn sync(&self) -> Result<Durable, StoreError> {
        if let Some(hook) = &self.before_sync {
            hook();
        }
        match ask(&self.sync) {
            Some(error) => Err(error),
            None if !self.is_durable() => Ok(self.durable()),
            None => self.store.sync(),
        }
    }

    fn append(&self, envelope: &Envelope<'_>, payload: &[u8]) -> Result<Appended, AppendError> {
        let appended = self.store.append(envelope, payload);
        let turned_away = u64::from(appended.is_err());
        self.turned_away.fetch_add(turned_away, Ordering::SeqCst);
        appended
    }

    fn read_unsettled(&self, from: u64, through: u64, into: &mut Batch) -> Result<(), ReadError> {
        match ask(&self.read_unsettled) {
            Some(error) => Err(error),
            None => self.store.read_unsettled(from, through, into),
        }
    }

    fn get(&self, sequence: u64, into: &mut StoredMessage) -> Result<bool, ReadError> {
        self.store.get(sequence, into)
    }

    fn bounds(&self) -> Bounds {
        self.store.bounds()
    }

    fn is_unsettled(&self, sequence: u64) -> bool {
        self.store.is_unsettled(sequence)
    }

    fn settle_through(&self, sequence: u64) -> Result<u64, StoreError> {
        self.store.settle_through(sequence)
    }

    fn settle(&self, sequences: &[u64]) -> Result<u64, StoreError> {
        self.store.settle(sequences)
    }

    fn reject(&self, sequence: u64, reason: &str, at: u64) -> Result<Rejected, StoreError> {
        match ask(&self.reject) {
            Some(rejected) => Ok(rejected),
            None => self.store.reject(sequence, reason, at),
        }
    }

    fn accept(&self, sequence: u64) -> Result<bool, StoreError> {
        self.store.accept(sequence)
    }

    fn requeue(&self, sequence: u64, now: u64) -> Result<Option<Appended>, AppendError> {
        self.store.requeue(sequence, now)
    }

    fn rejections(&self, from: u64, limit: usize) -> Vec<Rejection> {
        self.store.rejections(from, limit)
    }

    fn numbers(&self) -> Numbers {
        self.store.numbers()
    }

    fn raise_grant(&self, to: u64) -> Result<(), StoreError> {
        match ask(&self.raise_grant) {
            Some(error) => Err(error),
            None => self.store.raise_grant(to),
        }
    }

    fn rebase(&self, figure: u64) -> Result<Rebase, StoreError> {
        self.store.rebase(figure)
    }

    fn level(&self) -> Level {
        self.store.level()
    }

    fn unrecorded(&self) -> Unrecorded {
        self.store.unrecorded()
    }

    fn recovery(&self) -> Option<&amps_store::RecoveryReport> {
        self.store.recovery()
    }

    fn observe(&self, observer: Observer) {
        self.store.observe(observer);
    }

    fn client_name(&self) -> String {
        self.store.client_name()
    }

    fn resume_tag(&self) -> Option<Vec<u8>> {
        self.store.resume_tag()
    }

    fn close(&self, handed_over: u64) -> Result<(), StoreError> {
        if let Some(hook) = &self.close {
            hook();
        }
        self.store.close(handed_over)
    }
}
