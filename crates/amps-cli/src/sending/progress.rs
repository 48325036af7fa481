//! A progress line on a terminal, nothing elsewhere.

use std::time::Duration;

use amps_client::Client;
use tokio::task::JoinHandle;

use crate::output::{has_terminal, status};

/// Between two looks at the client's counts.
const TICK: Duration = Duration::from_millis(200);

/// Shows how far a run is until it is finished or dropped.
pub(super) struct Progress {
    ticker: Option<JoinHandle<()>>,
}

impl Progress {
    /// Starts showing when standard error is a terminal.
    pub(super) fn start(client: &Client) -> Self {
        if !has_terminal() {
            return Progress { ticker: None };
        }
        let client = client.clone();
        let ticker = tokio::spawn(async move {
            let mut tick = tokio::time::interval(TICK);
            loop {
                tick.tick().await;
                let health = client.health();
                let counts = health.counts;
                status(&format!(
                    "published {}  persisted {}  rejected {}  waiting {}  {:?}",
                    counts.published,
                    counts.persisted + counts.persisted_at_logon,
                    counts.rejected,
                    health.unsettled,
                    health.state,
                ));
            }
        });
        Progress {
            ticker: Some(ticker),
        }
    }

    /// Takes the line away.
    pub(super) fn finish(&mut self) {
        if let Some(ticker) = self.ticker.take() {
            ticker.abort();
            status("");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}
