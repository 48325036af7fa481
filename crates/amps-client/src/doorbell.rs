//! Waking the driver, at the cost of one load while it is awake.

#[cfg(not(all(amps_loom, test)))]
use std::sync::atomic::{AtomicBool, Ordering, fence};

#[cfg(all(amps_loom, test))]
use loom::sync::atomic::{AtomicBool, Ordering, fence};

use tokio::sync::Notify;

#[derive(Default)]
pub(crate) struct Doorbell {
    sleep: Sleep,
    notify: Notify,
}

impl Doorbell {
    /// There is something to send.
    #[inline]
    pub(crate) fn ring(&self) {
        if self.sleep.ends() {
            self.notify.notify_one();
        }
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

/// Whether the driver sleeps.
struct Sleep(AtomicBool);

impl Default for Sleep {
    fn default() -> Self {
        Sleep(AtomicBool::new(false))
    }
}

impl Sleep {
    fn begins(&self) {
        self.0.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    fn is_over(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// After something was left for the driver: whether it has to be woken. One caller is told.
    #[inline]
    fn ends(&self) -> bool {
        // Pairs with the fence in `begins`: either this sees the driver asleep, or the driver's
        // last look sees what was left before this call.
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Relaxed)
    }
}

/// `RUSTFLAGS="--cfg amps_loom" cargo test --release -p amps-client --lib doorbell`: every
/// order that the memory model allows.
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
                        // The store's lock orders more than this.
                        left.fetch_add(1, Ordering::Relaxed);
                        sleep.ends()
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
