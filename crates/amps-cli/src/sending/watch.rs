//! What is reported while a run goes on: a progress line on a terminal, a status now and then,
//! and what a signal does.

use std::sync::Arc;
use std::time::Duration;

use amps_client::{Client, ConnectionState};
use tokio::time::{Instant, sleep_until};

use crate::output::{SideOutput, has_terminal, object, say, status};
use crate::signals::Stop;
use crate::units::span;

/// Pause between two looks at the client's counts, on a terminal.
const TICK: Duration = Duration::from_millis(200);

/// Reports until its task is aborted.
pub(super) struct Watch {
    pub(super) client: Client,
    pub(super) out: Arc<SideOutput>,
    pub(super) stop: Stop,
    pub(super) every: Option<Duration>,
    pub(super) in_memory: bool,
    pub(super) flush_timeout: Duration,
}

impl Watch {
    pub(super) async fn run(self) {
        let mut tick = has_terminal().then(Instant::now);
        // A timer cannot be finer, and without a pause this would keep a processor busy.
        let every = self.every.map(|every| every.max(Duration::from_millis(1)));
        let mut next = every.map(|every| Instant::now() + every);
        let mut told = false;
        loop {
            tokio::select! {
                () = self.stop.first(), if !told => {
                    told = true;
                    self.tell_signal();
                }
                () = at(tick) => {
                    self.show();
                    tick = Some(Instant::now() + TICK);
                }
                () = at(next) => {
                    self.tell();
                    next = every.map(|every| Instant::now() + every);
                }
            }
        }
    }

    fn show(&self) {
        let health = self.client.health();
        let counts = health.counts;
        status(&format!(
            "published {}  persisted {}  rejected {}  waiting {}  {}",
            counts.published,
            counts.persisted + counts.persisted_at_logon,
            counts.rejected,
            health.unsettled,
            state(health.state),
        ));
    }

    /// Lossy: nobody waits for a reader that does not read it.
    fn tell(&self) {
        let health = self.client.health();
        let counts = health.counts;
        if self.out.is_json() {
            self.out.object_if_room(object! {
                "event": "status",
                "published": counts.published,
                "persisted": counts.persisted,
                "persisted_at_logon": counts.persisted_at_logon,
                "rejected": counts.rejected,
                "resent": counts.resent,
                "waiting": health.unsettled,
                "waiting_bytes": health.live_bytes,
                "limit_bytes": health.limit_bytes,
                "state": state(health.state),
                "server": health.server,
            });
        } else {
            say(&format!(
                "status: published {}, persisted {}, rejected {}, {} message(s) wait; {} {}",
                counts.published,
                counts.persisted + counts.persisted_at_logon,
                counts.rejected,
                health.unsettled,
                state(health.state),
                health.server,
            ));
        }
    }

    fn tell_signal(&self) {
        let waiting = self.client.health().unsettled;
        let signal = self.stop.asked().unwrap_or("a signal");
        let them = match (waiting, self.in_memory) {
            (0, _) => "nothing waits for an acknowledgement".to_owned(),
            (n, true) => format!(
                "{n} message(s) wait for an acknowledgement, for {} at most; they are in memory \
                 only, and what is not acknowledged by then is lost",
                span(self.flush_timeout)
            ),
            (n, false) => format!(
                "{n} message(s) wait for an acknowledgement, for {} at most",
                span(self.flush_timeout)
            ),
        };
        say(&format!(
            "note: {signal}: no more is read; {them}. A second signal ends the run now"
        ));
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

fn state(state: ConnectionState) -> &'static str {
    match state {
        ConnectionState::Disconnected => "disconnected",
        ConnectionState::Connecting => "connecting",
        ConnectionState::Connected => "connected",
        ConnectionState::LoggedOn
        | ConnectionState::HeartbeatInitiated
        | ConnectionState::PublishReplayed
        | ConnectionState::Resubscribed => "logged_on",
        ConnectionState::Shutdown => "shutdown",
        _ => "unknown",
    }
}
