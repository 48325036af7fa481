//! Counters and gauges for the `metrics` facade, as the crate's page lists them; nothing
//! without the feature of that name.

use amps_store::Bounds;

use crate::delivery::Totals;

#[derive(Debug, Default)]
pub(crate) struct Meter {
    #[cfg(feature = "metrics")]
    last: Totals,
}

#[cfg(feature = "metrics")]
impl Meter {
    pub(crate) fn totals(&mut self, name: &str, totals: Totals) {
        let last = std::mem::replace(&mut self.last, totals);
        let count = |metric: &'static str, now: u64, before: u64| {
            if now > before {
                metrics::counter!(metric, "client" => name.to_owned()).increment(now - before);
            }
        };
        count("amps_client_sent_total", totals.sent, last.sent);
        count("amps_client_resent_total", totals.resent, last.resent);
        count(
            "amps_client_persisted_total",
            totals.persisted,
            last.persisted,
        );
        count(
            "amps_client_persisted_at_logon_total",
            totals.persisted_at_logon,
            last.persisted_at_logon,
        );
        count("amps_client_rejected_total", totals.rejected, last.rejected);
        count("amps_client_late_refusals_total", totals.late, last.late);
        count(
            "amps_client_unattributed_total",
            totals.unattributed,
            last.unattributed,
        );
    }

    pub(crate) fn gauges(&self, name: &str, in_flight: u64, bounds: Bounds) {
        let gauge = |metric: &'static str, value: u64| {
            metrics::gauge!(metric, "client" => name.to_owned()).set(value as f64);
        };
        gauge("amps_client_unsettled", bounds.unsettled);
        gauge("amps_client_store_bytes", bounds.live_bytes);
        gauge("amps_client_in_flight", in_flight);
    }

    pub(crate) fn logged_on(&self, name: &str) {
        metrics::counter!("amps_client_logons_total", "client" => name.to_owned()).increment(1);
    }

    pub(crate) fn link_lost(&self, name: &str) {
        metrics::counter!("amps_client_links_lost_total", "client" => name.to_owned()).increment(1);
    }
}

#[cfg(not(feature = "metrics"))]
impl Meter {
    pub(crate) fn totals(&mut self, _: &str, _: Totals) {}

    pub(crate) fn gauges(&self, _: &str, _: u64, _: Bounds) {}

    pub(crate) fn logged_on(&self, _: &str) {}

    pub(crate) fn link_lost(&self, _: &str) {}
}
