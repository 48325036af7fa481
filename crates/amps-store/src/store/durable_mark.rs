//! What is durable, for readers without the store's lock.

#[cfg(not(all(amps_loom, test)))]
use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(all(amps_loom, test))]
use loom::sync::atomic::{AtomicU64, Ordering};

use crate::api::Durable;

/// The highest ordinal and the highest sequence that are durable; both only rise.
pub(crate) struct DurableMark {
    ordinal: AtomicU64,
    sequence: AtomicU64,
}

impl DurableMark {
    pub(crate) fn new(durable: Durable) -> Self {
        DurableMark {
            ordinal: AtomicU64::new(durable.ordinal),
            sequence: AtomicU64::new(durable.sequence),
        }
    }

    /// Raises the mark. Whoever sees the ordinal also sees the sequence that goes with it, or a
    /// later one.
    pub(crate) fn raise(&self, durable: Durable) {
        self.sequence.fetch_max(durable.sequence, Ordering::Release);
        self.ordinal.fetch_max(durable.ordinal, Ordering::Release);
    }

    pub(crate) fn get(&self) -> Durable {
        let ordinal = self.ordinal.load(Ordering::Acquire);
        let sequence = self.sequence.load(Ordering::Acquire);
        Durable { ordinal, sequence }
    }
}

/// Run with `RUSTFLAGS="--cfg amps_loom" cargo test --release -p amps-store --lib durable_mark`:
/// tries every order that the memory model allows.
#[cfg(all(amps_loom, test))]
mod tests {
    use loom::sync::Arc;
    use loom::thread;

    use super::*;

    fn durable(ordinal: u64, sequence: u64) -> Durable {
        Durable { ordinal, sequence }
    }

    #[test]
    fn who_sees_an_ordinal_sees_its_sequence_and_nothing_falls() {
        loom::model(|| {
            let mark = Arc::new(DurableMark::new(durable(1, 10)));
            // The store raises it under its lock, so never twice at once.
            let raised = mark.clone();
            let writer = thread::spawn(move || {
                raised.raise(durable(2, 20));
                raised.raise(durable(3, 30));
            });
            let first = mark.get();
            let second = mark.get();
            for seen in [first, second] {
                assert!(seen.sequence >= 10 * seen.ordinal, "{seen:?}");
            }
            assert!(first.ordinal <= second.ordinal && first.sequence <= second.sequence);
            writer.join().unwrap();
            assert_eq!(mark.get(), durable(3, 30));
        });
    }
}
