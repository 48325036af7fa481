//! What SIGTERM, SIGINT and SIGHUP ask for: the first one ends the input here, the second one
//! ends the command now, and a third one ends the process where it stands.

use std::io::{self, PipeReader};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::failure::Failure;

const ASKING: [(i32, &str); 3] = [(15, "SIGTERM"), (2, "SIGINT"), (1, "SIGHUP")];

/// Which signals have come. Clones share this.
#[derive(Clone)]
pub(crate) struct Stop {
    seen: watch::Receiver<Seen>,
    /// The first signal closes the other end, which wakes whoever polls this one.
    wakes: Arc<PipeReader>,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    signals: u32,
    first: Option<&'static str>,
}

impl Stop {
    /// Listens from now on. A signal that was ignored when the process began (`nohup`, a
    /// background job of a script) stays ignored.
    ///
    /// # Errors
    /// The operating system has no resources for it.
    pub(crate) fn listen() -> Result<Self, Failure> {
        let wrong = |e: io::Error| Failure::other(format!("cannot wait for signals: {e}"));
        let ignored = ignored();
        let mut signals = Vec::new();
        for (number, name) in ASKING {
            if ignored & (1 << (number - 1)) == 0 {
                let kind = SignalKind::from_raw(number);
                signals.push((number, name, signal(kind).map_err(wrong)?));
            }
        }
        let (wakes, asleep) = io::pipe().map_err(wrong)?;
        let mut asleep = Some(asleep);
        let (say, seen) = watch::channel(Seen::default());
        tokio::spawn(async move {
            loop {
                let (number, name) = next(&mut signals).await;
                say.send_modify(|seen| {
                    seen.signals += 1;
                    seen.first.get_or_insert(name);
                });
                drop(asleep.take());
                if say.borrow().signals > 2 {
                    std::process::exit(128 + number);
                }
            }
        });
        Ok(Stop {
            seen,
            wakes: Arc::new(wakes),
        })
    }

    /// The first signal, once it has come.
    pub(crate) fn asked(&self) -> Option<&'static str> {
        self.seen.borrow().first
    }

    /// Whether a second one has come.
    pub(crate) fn is_repeated(&self) -> bool {
        self.seen.borrow().signals > 1
    }

    /// Waits for the first signal. Cancel safe.
    pub(crate) async fn first(&self) {
        self.nth(1).await;
    }

    /// Waits for the second signal. Cancel safe.
    pub(crate) async fn second(&self) {
        self.nth(2).await;
    }

    async fn nth(&self, n: u32) {
        let mut seen = self.seen.clone();
        if seen.wait_for(|seen| seen.signals >= n).await.is_err() {
            // The runtime is shutting down.
            std::future::pending::<()>().await;
        }
    }

    /// Hangs up with the first signal: for a poll together with other descriptors.
    pub(crate) fn wakes(&self) -> BorrowedFd<'_> {
        self.wakes.as_fd()
    }
}

async fn next(signals: &mut [(i32, &'static str, Signal)]) -> (i32, &'static str) {
    std::future::poll_fn(|context| {
        for (number, name, signal) in signals.iter_mut() {
            if let std::task::Poll::Ready(Some(())) = signal.poll_recv(context) {
                return std::task::Poll::Ready((*number, *name));
            }
        }
        std::task::Poll::Pending
    })
    .await
}

/// The set of signals that this process was told to ignore, one bit each. Without `/proc`, none
/// counts as ignored.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .map(str::trim);
    mask.and_then(|mask| u64::from_str_radix(mask, 16).ok())
        .unwrap_or(0)
}
