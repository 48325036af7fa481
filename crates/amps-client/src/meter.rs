//! What a client counts for the `metrics` facade, as `docs/metrics.md` lists it; nothing without
//! the feature of that name.

use std::time::Duration;

use amps_store::Bounds;

use crate::delivery::Totals;
use crate::protocol::ReasonKind;

#[cfg(feature = "metrics")]
pub(crate) use on::Meter;

#[cfg(feature = "metrics")]
mod on {
    use metrics::{Counter, Gauge, Histogram, Unit};

    use super::{Bounds, Duration, ReasonKind, Totals};

    /// Every series of one client. They are made, with a value, when the client is opened: an
    /// alert on a series that appears with its first event would miss that event.
    pub(crate) struct Meter {
        published: Counter,
        sent: Counter,
        resent: Counter,
        persisted: Counter,
        persisted_at_logon: Counter,
        duplicates: Counter,
        found: Counter,
        rejected: Vec<(ReasonKind, Counter)>,
        late: Counter,
        unattributed: Counter,
        logons: Counter,
        links_lost: Counter,
        room_waits: Counter,
        connected: Gauge,
        unsettled: Gauge,
        oldest: Gauge,
        in_flight: Gauge,
        refusals: Gauge,
        store_bytes: Gauge,
        store_limit: Gauge,
        publish_to_ack: Histogram,
        sync: Histogram,
    }

    /// The kinds of refusals, with their values of the label `kind`. Words that the server made
    /// up itself are of the last kind.
    const KINDS: [(ReasonKind, &str); 13] = [
        (ReasonKind::None, "none"),
        (ReasonKind::Duplicate, "duplicate"),
        (ReasonKind::BadFilter, "bad_filter"),
        (ReasonKind::BadRegexTopic, "bad_regex_topic"),
        (
            ReasonKind::SubscriptionAlreadyExists,
            "subscription_already_exists",
        ),
        (ReasonKind::InvalidTopic, "invalid_topic"),
        (ReasonKind::NameInUse, "name_in_use"),
        (ReasonKind::AuthFailure, "auth_failure"),
        (ReasonKind::NotEntitled, "not_entitled"),
        (ReasonKind::InvalidMessage, "invalid_message"),
        (ReasonKind::UnknownCommand, "unknown_command"),
        (ReasonKind::ReplicationFailed, "replication_failed"),
        (ReasonKind::Other, "other"),
    ];

    impl Meter {
        pub(crate) fn new(client: &str) -> Self {
            let counter = |name: &'static str, what: &'static str| {
                metrics::describe_counter!(name, Unit::Count, what);
                let counter = metrics::counter!(name, "client" => client.to_owned());
                counter.increment(0);
                counter
            };
            let gauge = |name: &'static str, unit: Unit, what: &'static str| {
                metrics::describe_gauge!(name, unit, what);
                let gauge = metrics::gauge!(name, "client" => client.to_owned());
                gauge.set(0.0);
                gauge
            };
            let seconds = |name: &'static str, what: &'static str| {
                metrics::describe_histogram!(name, Unit::Seconds, what);
                metrics::histogram!(name, "client" => client.to_owned())
            };
            let rejected = "amps_client_rejected_total";
            metrics::describe_counter!(
                rejected,
                Unit::Count,
                "Messages refused, with the refusal in the store, by the kind of the reason"
            );
            let of_kind = |(kind, label): (ReasonKind, &'static str)| {
                let labels = [("client", client.to_owned()), ("kind", label.to_owned())];
                let counter = metrics::counter!(rejected, &labels);
                counter.increment(0);
                (kind, counter)
            };
            Meter {
                rejected: KINDS.into_iter().map(of_kind).collect(),
                published: counter("amps_client_published_total", "Messages accepted"),
                sent: counter(
                    "amps_client_sent_total",
                    "Messages handed to a connection, each time they were",
                ),
                resent: counter(
                    "amps_client_resent_total",
                    "Messages handed to a connection although they may have been sent before",
                ),
                persisted: counter(
                    "amps_client_persisted_total",
                    "Messages settled as a success by an ack",
                ),
                persisted_at_logon: counter(
                    "amps_client_persisted_at_logon_total",
                    "Messages settled as a success at a logon, without any ack",
                ),
                duplicates: counter(
                    "amps_client_duplicates_total",
                    "Messages settled because the server had seen their ids before",
                ),
                found: counter(
                    "amps_client_found_total",
                    "Messages settled because the server was asked for them and holds them",
                ),
                late: counter(
                    "amps_client_late_refusals_total",
                    "Refusals that came after a success",
                ),
                unattributed: counter(
                    "amps_client_unattributed_total",
                    "Refusals that named no message",
                ),
                logons: counter("amps_client_logons_total", "Logons accepted"),
                links_lost: counter(
                    "amps_client_links_lost_total",
                    "Connections lost, and attempts to connect that failed",
                ),
                room_waits: counter(
                    "amps_client_room_waits_total",
                    "Publishes and requeues that had to wait for room",
                ),
                connected: gauge(
                    "amps_client_connected",
                    Unit::Count,
                    "1 from a logon until its connection ends, else 0",
                ),
                unsettled: gauge(
                    "amps_client_unsettled",
                    Unit::Count,
                    "Messages in the store that wait to be settled",
                ),
                oldest: gauge(
                    "amps_client_oldest_unsettled_seconds",
                    Unit::Seconds,
                    "Since the oldest unsettled message was published, 0 if there is none",
                ),
                in_flight: gauge(
                    "amps_client_in_flight",
                    Unit::Count,
                    "Messages on this connection without an answer",
                ),
                refusals: gauge(
                    "amps_client_refusals_waiting",
                    Unit::Count,
                    "Refusals in the store that wait for the application",
                ),
                store_bytes: gauge(
                    "amps_client_store_bytes",
                    Unit::Bytes,
                    "Bytes taken in the store, with the room charged for their future",
                ),
                store_limit: gauge(
                    "amps_client_store_limit_bytes",
                    Unit::Bytes,
                    "The most that amps_client_store_bytes may become",
                ),
                publish_to_ack: seconds(
                    "amps_client_publish_to_ack_seconds",
                    "From the publish of a message to the ack that settled it",
                ),
                sync: seconds(
                    "amps_client_sync_seconds",
                    "How long the device took for a sync of the store",
                ),
            }
        }

        /// Counts what is new in `totals` since `before`.
        pub(crate) fn totals(&self, before: &mut Totals, totals: Totals) {
            let last = std::mem::replace(before, totals);
            let count = |counter: &Counter, now: u64, before: u64| {
                counter.increment(now.saturating_sub(before));
            };
            count(&self.sent, totals.sent, last.sent);
            count(&self.resent, totals.resent, last.resent);
            count(&self.persisted, totals.persisted, last.persisted);
            count(
                &self.persisted_at_logon,
                totals.persisted_at_logon,
                last.persisted_at_logon,
            );
            count(&self.duplicates, totals.duplicates, last.duplicates);
            count(&self.found, totals.found, last.found);
            count(&self.late, totals.late, last.late);
            count(&self.unattributed, totals.unattributed, last.unattributed);
        }

        pub(crate) fn published(&self, before: &mut u64, now: u64) {
            let last = std::mem::replace(before, now);
            self.published.increment(now.saturating_sub(last));
        }

        pub(crate) fn rejected(&self, kind: ReasonKind) {
            let of_kind = self.rejected.iter().find(|(known, _)| *known == kind);
            let counter = of_kind.or(self.rejected.last());
            if let Some((_, counter)) = counter {
                counter.increment(1);
            }
        }

        /// Without a store no refusal has a message that is known.
        pub(crate) fn gauges(&self, in_flight: u64, oldest: Option<Duration>, bounds: Bounds) {
            let count = |gauge: &Gauge, value: u64| gauge.set(value as f64);
            count(&self.unsettled, bounds.unsettled);
            count(&self.refusals, bounds.rejections);
            count(&self.store_bytes, bounds.live_bytes);
            count(&self.store_limit, bounds.limit_bytes);
            count(&self.in_flight, in_flight);
            self.oldest.set(oldest.unwrap_or_default().as_secs_f64());
        }

        pub(crate) fn connected(&self, connected: bool) {
            self.connected.set(f64::from(u8::from(connected)));
        }

        pub(crate) fn logged_on(&self) {
            self.logons.increment(1);
        }

        pub(crate) fn link_lost(&self) {
            self.links_lost.increment(1);
        }

        pub(crate) fn waits_for_room(&self) {
            self.room_waits.increment(1);
        }

        pub(crate) fn acked(&self, after: Duration) {
            self.publish_to_ack.record(after.as_secs_f64());
        }

        pub(crate) fn synced(&self, took: Duration) {
            self.sync.record(took.as_secs_f64());
        }
    }
}

#[cfg(not(feature = "metrics"))]
pub(crate) struct Meter;

#[cfg(not(feature = "metrics"))]
impl Meter {
    pub(crate) fn new(_: &str) -> Self {
        Meter
    }

    pub(crate) fn totals(&self, _: &mut Totals, _: Totals) {}

    pub(crate) fn published(&self, _: &mut u64, _: u64) {}

    pub(crate) fn rejected(&self, _: ReasonKind) {}

    pub(crate) fn gauges(&self, _: u64, _: Option<Duration>, _: Bounds) {}

    pub(crate) fn connected(&self, _: bool) {}

    pub(crate) fn logged_on(&self) {}

    pub(crate) fn link_lost(&self) {}

    pub(crate) fn waits_for_room(&self) {}

    pub(crate) fn acked(&self, _: Duration) {}

    pub(crate) fn synced(&self, _: Duration) {}
}
