//! Wakes the driver when it sleeps; while it is awake, a publish only increments a count.

#[cfg(not(all(amps_loom, test)))]
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

#[cfg(all(amps_loom, test))]
use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::Notify;

#[derive(Default)]
pub(crate) struct Doorbell {
    sleep: Sleep,
    notify: Notify,
}

impl Doorbell {
    /// A message was accepted.
    #[inline]
    pub(crate) fn ring_for_message(&self) {
        self.ring_and_count(1);
    }

    /// There is something to send.
    pub(crate) fn ring(&self) {
        self.ring_and_count(0);
    }

    #[inline]
    fn ring_and_count(&self, messages: u64) {
        if self.sleep.ends(messages) {
            self.notify.notify_one();
        }
    }

    /// The messages accepted.
    pub(crate) fn messages(&self) -> u64 {
        self.sleep.messages.load(Ordering::Relaxed)
    }

    /// Something happened that must not wait for the driver's next look.
    pub(crate) fn ring_always(&self) {
        self.notify.notify_one();
    }

    /// The driver is about to sleep; it must look for work once more afterwards.
    pub(crate) fn arm(&self) {
        self.sleep.begins();
    }

    /// The driver is awake.
    pub(crate) fn disarm(&self) {
        self.sleep.is_over();
    }

    pub(crate) async fn rung(&self) {
        self.notify.notified().await;
    }
}

/// Whether the driver sleeps, together with the count of messages that were left for it.
struct Sleep {
    asleep: AtomicBool,
    messages: AtomicU64,
}

impl Default for Sleep {
    fn default() -> Self {
        Sleep {
            asleep: AtomicBool::new(false),
            messages: AtomicU64::new(0),
        }
    }
}

impl Sleep {
    fn begins(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        self.messages.fetch_add(0, Ordering::AcqRel);
    }

    fn is_over(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// Called after something was left for the driver; returns whether it has to be woken. Only
    /// one caller gets that answer.
    #[inline]
    fn ends(&self, messages: u64) -> bool {
        // Each change of the count sees the one before it, and everything that came before that.
        // So either this call sees that the driver is asleep, or the driver's last look, which
        // follows a change in `begins`, sees what was left before this call.
        self.messages.fetch_add(messages, Ordering::AcqRel);
        self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed)
    }
}

/// Run with `RUSTFLAGS="--cfg amps_loom" cargo test --release -p amps-client --lib doorbell`:
/// tries every order that the memory model allows.
#[cfg(all(amps_loom, test))]
mod tests {
    use loom::sync::Arc;
    use loom::sync::atomic::AtomicUsize;
    use loom::thread;

    use super::*;

    #[test]
    fn what_is_left_is_seen_or_the_driver_is_woken_once() {
        loom::model(|| {
            let sleep = Arc::new(Sleep::default());
            let left = Arc::new(AtomicUsize::new(0));
            let publishers: Vec<_> = (0..2)
                .map(|_| {
                    let (sleep, left) = (sleep.clone(), left.clone());
                    thread::spawn(move || {
                        // In the client the store's lock orders more than this.
                        left.fetch_add(1, Ordering::Relaxed);
                        sleep.ends(1)
                    })
                })
                .collect();
            sleep.begins();
            let seen = left.load(Ordering::Relaxed);
            let woken = publishers.into_iter().map(|p| p.join().unwrap());
            let woken = woken.filter(|woken| *woken).count();
            assert!(seen == 2 || woken > 0, "it sleeps, and {seen} were seen");
            assert!(woken <= 1);
        });
    }
}
