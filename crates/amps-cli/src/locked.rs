//! A store that another process has open: how long to wait for it, and what ends the waiting.

use std::time::Duration;

use amps_store::{OpenError, Store};
use tokio::time::{Instant, sleep_until};

use crate::failure::{Exit, Failure};
use crate::output::say;
use crate::signals::Stop;

/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// Opens a store, and tries again this long while another process has it. The first signal ends
/// the waiting, since nothing was begun.
///
/// # Errors
/// As [`Failure::open`].
pub(crate) async fn open(
    open: impl Fn() -> Result<Store, OpenError>,
    patience: Duration,
    stop: &Stop,
) -> Result<Store, Failure> {
    let begun = Instant::now();
    loop {
        let error = match open() {
            Err(error @ OpenError::Locked { .. }) => error,
            opened => {
                let store = opened.map_err(|e| Failure::open(&e))?;
                tell_conversion(&store);
                return Ok(store);
            }
        };
        let waited = begun.elapsed();
        if waited >= patience {
            return Err(Failure::open(&error));
        }
        let next = Instant::now() + PAUSE.min(patience - waited);
        tokio::select! {
            biased;
            () = stop.first() => {
                let signal = stop.asked().unwrap_or("a signal");
                let why = format!("{signal} ended the wait for it: {error}");
                return Err(Failure::new(Exit::Locked, why));
            }
            () = sleep_until(next) => {}
        }
    }
}

/// There is no way back, so whoever still has the older program must be told now.
fn tell_conversion(store: &Store) {
    if let Some(version) = store.report().converted_from {
        say(&format!(
            "note: the store was of format {version} and is of the format of this program now: an older \
             one cannot open it any more"
        ));
    }
}
