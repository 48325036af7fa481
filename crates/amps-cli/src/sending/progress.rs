//! A progress line on a terminal, nothing elsewhere.

use std::io::IsTerminal as _;
use std::time::Duration;

use amps_client::Client;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::task::JoinHandle;

/// Between two looks at the client's counts.
const TICK: Duration = Duration::from_millis(100);

/// Shows how far a run is until it is finished or dropped.
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    ticker: Option<JoinHandle<()>>,
}

impl Progress {
    /// Starts showing when standard error is a terminal.
    pub(super) fn start(client: &Client) -> Self {
        if !std::io::stderr().is_terminal() {
            return Progress {
                bar: None,
                ticker: None,
            };
        }
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
            bar.set_style(style);
        }
        let (shown, client) = (bar.clone(), client.clone());
        let ticker = tokio::spawn(async move {
            let mut tick = tokio::time::interval(TICK);
            loop {
                tick.tick().await;
                let health = client.health();
                let counts = health.counts;
                shown.set_message(format!(
                    "published {}  persisted {}  rejected {}  waiting {}  {:?}",
                    counts.published,
                    counts.persisted + counts.persisted_at_logon,
                    counts.rejected,
                    health.unsettled,
                    health.state,
                ));
                shown.tick();
            }
        });
        Progress {
            bar: Some(bar),
            ticker: Some(ticker),
        }
    }

    /// The bar, for others who write to the terminal.
    pub(super) fn bar(&self) -> Option<ProgressBar> {
        self.bar.clone()
    }

    /// Writes a line to standard error without tearing the bar.
    pub(super) fn say(&self, text: &str) {
        say(self.bar.as_ref(), text);
    }

    /// Takes the bar away.
    pub(super) fn finish(&self) {
        if let Some(ticker) = &self.ticker {
            ticker.abort();
        }
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Writes a line to standard error, above the bar if there is one.
pub(super) fn say(bar: Option<&ProgressBar>, text: &str) {
    match bar {
        Some(bar) => bar.suspend(|| eprintln!("{text}")),
        None => eprintln!("{text}"),
    }
}
