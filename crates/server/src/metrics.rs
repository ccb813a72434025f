//! What is counted, for `GET /metrics` in Prometheus' text format. Every name is written down here and nowhere else.

use std::sync::Arc;

use gitstafette_core::event::{ClientId, Sequence};
use gitstafette_core::store::Statistics;
use gitstafette_proto::convert::RelayState;
use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

/// How many clients have a line of their own: client ids are the clients' choice, and a label's values must be bounded.
/// Those that lag furthest are shown.
const CLIENTS: usize = 100;
/// The bounds of the histogram of webhooks' durations, in seconds: from an fsync of a good disk to GitHub's patience.
const DURATIONS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 2.5, 10.0];

/// The server's counters. One per server, no globals.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    /// Webhooks by the HTTP status they were answered with.
    pub(crate) webhooks: IntCounterVec,
    /// Bytes of bodies of stored webhooks.
    pub(crate) webhook_bytes: IntCounter,
    /// From a webhook's request to its answer.
    pub(crate) webhook_duration: Histogram,
    /// Events sent to subscribers.
    pub(crate) events_sent: IntCounter,
    /// Events that are too large for the old client that they were for.
    pub(crate) held_back: IntCounter,
    /// Outcomes that clients reported, by result.
    pub(crate) outcomes: IntCounterVec,
    /// Events that subscribers will never get: removed by retention before they acknowledged them, or damaged.
    pub(crate) missed: IntCounter,
    /// Events that operators had delivered again.
    pub(crate) redelivered: IntCounter,
    /// Streams that ended, by reason.
    pub(crate) streams_ended: IntCounterVec,
    /// Events of other servers, by what became of them.
    pub(crate) relayed: IntCounterVec,
    sampled: Sampled,
}

/// What is looked up when it is asked for.
#[derive(Debug)]
struct Sampled {
    attached: IntGauge,
    lag: IntGaugeVec,
    relay_connected: IntGaugeVec,
    relay_lag: IntGaugeVec,
    events: IntGauge,
    bytes: IntGauge,
    disk: IntGauge,
    first: IntGauge,
    head: IntGauge,
    removed: IntGauge,
    damaged: IntGauge,
    writable: IntGauge,
    resident: IntGauge,
}

/// What the gauges are set from.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) statistics: Statistics,
    pub(crate) attached: usize,
    /// Clients and how far they lag, in events.
    pub(crate) lags: Vec<(ClientId, u64)>,
    /// How the relays are doing.
    pub(crate) relays: Vec<RelayState>,
}

/// Makes a metric and registers it. Names and labels are constants: what could go wrong is wrong at every start.
macro_rules! registered {
    ($registry:expr, $metric:expr) => {{
        let metric = $metric.expect("the metric's name and labels are valid");
        $registry.register(Box::new(metric.clone())).expect("each metric is registered once");
        metric
    }};
}

impl Metrics {
    /// All at zero.
    pub(crate) fn new() -> Arc<Self> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| registered!(registry, IntCounter::new(name, help));
        let counters = |name: &str, help: &str, label: &str| {
            registered!(registry, IntCounterVec::new(Opts::new(name, help), &[label]))
        };
        let durations = HistogramOpts::new(
            "gitstafette_webhook_duration_seconds",
            "From a webhook's request to its answer, stored or refused.",
        );
        let metrics = Self {
            webhooks: counters(
                "gitstafette_webhooks_total",
                "Webhooks by the HTTP status they were answered with.",
                "status",
            ),
            webhook_bytes: counter(
                "gitstafette_webhook_bytes_total",
                "Bytes of the bodies of stored webhooks.",
            ),
            webhook_duration: registered!(
                registry,
                Histogram::with_opts(durations.buckets(DURATIONS.to_vec()))
            ),
            events_sent: counter("gitstafette_events_sent_total", "Events sent to subscribers."),
            held_back: counter(
                "gitstafette_events_held_back_total",
                "Events that were larger than a client of the Go implementation takes: dead letters.",
            ),
            outcomes: counters(
                "gitstafette_outcomes_total",
                "Outcomes that clients reported: delivered, failed (a dead letter) or filtered.",
                "result",
            ),
            missed: counter(
                "gitstafette_events_missed_total",
                "Events, at most, that subscribers will never get: removed by retention before they acknowledged them, or damaged.",
            ),
            redelivered: counter(
                "gitstafette_events_redelivered_total",
                "Events that operators had delivered again.",
            ),
            streams_ended: counters(
                "gitstafette_streams_ended_total",
                "Streams of subscribers that ended, by reason.",
                "reason",
            ),
            relayed: counters(
                "gitstafette_relayed_events_total",
                "Events of other servers: stored, repeat, loop, too_many_hops, not_watched, too_large or refused (not signed as it must be).",
                "result",
            ),
            sampled: Sampled::new(&registry),
            registry,
        };
        // A counter that is absent until it counts cannot be alerted on.
        for result in ["delivered", "failed", "filtered"] {
            drop(metrics.outcomes.with_label_values(&[result]));
        }
        for result in ["stored", "repeat", "loop", "too_many_hops", "not_watched", "too_large", "refused"] {
            drop(metrics.relayed.with_label_values(&[result]));
        }
        Arc::new(metrics)
    }

    /// The text of all metrics, and its content type.
    pub(crate) fn render(&self, sample: Sample) -> (Vec<u8>, String) {
        self.sampled.set(sample);
        let encoder = TextEncoder::new();
        let mut text = Vec::new();
        if let Err(error) = encoder.encode(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "the metrics cannot be written");
        }
        (text, encoder.format_type().to_owned())
    }
}

impl Sampled {
    fn new(registry: &Registry) -> Self {
        let gauge = |name: &str, help: &str| registered!(registry, IntGauge::new(name, help));
        let relay = |name: &str, help: &str| {
            registered!(registry, IntGaugeVec::new(Opts::new(name, help), &["relay", "direction"]))
        };
        let lag = Opts::new(
            "gitstafette_subscription_lag_events",
            "Events of the log beyond the client's cursor; the clients that lag furthest.",
        );
        Self {
            attached: gauge("gitstafette_subscriptions_attached", "Clients that are attached."),
            lag: registered!(registry, IntGaugeVec::new(lag, &["client_id"])),
            relay_connected: relay(
                "gitstafette_relay_connected",
                "1 if the relay works: its subscription stands, and what it hands on is taken; else 0.",
            ),
            relay_lag: relay(
                "gitstafette_relay_lag_events",
                "Events beyond the relay's cursor, of the log that it draws from.",
            ),
            events: gauge("gitstafette_store_events", "Events in the store."),
            bytes: gauge("gitstafette_store_bytes", "Bytes of their headers and bodies."),
            disk: gauge("gitstafette_store_disk_bytes", "Bytes of the store's files."),
            first: gauge("gitstafette_store_first_sequence", "The oldest event, or 0."),
            head: gauge("gitstafette_store_head_sequence", "The newest event ever accepted."),
            removed: gauge(
                "gitstafette_store_removed_events",
                "Events that retention has removed since the start.",
            ),
            damaged: gauge(
                "gitstafette_store_damaged_events",
                "Stored events that were found damaged since the start.",
            ),
            writable: gauge("gitstafette_store_writable", "1 if the last write was durable, else 0."),
            resident: gauge("process_resident_memory_bytes", "Resident memory of the process."),
        }
    }

    fn set(&self, sample: Sample) {
        let Sample { statistics, attached, mut lags, relays } = sample;
        let set = |gauge: &IntGauge, value: u64| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        set(&self.attached, attached as u64);
        set(&self.events, statistics.events);
        set(&self.bytes, statistics.bytes);
        set(&self.disk, statistics.disk_bytes);
        set(&self.first, statistics.first.get());
        set(&self.head, statistics.head.get());
        set(&self.removed, statistics.removed);
        set(&self.damaged, statistics.damaged);
        set(&self.writable, u64::from(statistics.writable));
        set(&self.resident, resident_bytes().unwrap_or_default());
        for relay in relays {
            let labels = [relay.name.as_str(), relay.direction.as_str()];
            set(&self.relay_connected.with_label_values(&labels), u64::from(relay.connected));
            set(&self.relay_lag.with_label_values(&labels), relay.lag);
        }
        lags.sort_unstable_by_key(|(_, lag)| std::cmp::Reverse(*lag));
        self.lag.reset();
        for (client, lag) in lags.iter().take(CLIENTS) {
            set(&self.lag.with_label_values(&[client.as_str()]), *lag);
        }
    }
}

/// How many events of the log lie beyond a cursor. Sequences may have gaps, so this is an upper bound.
pub(crate) fn lag(cursor: Sequence, statistics: &Statistics) -> u64 {
    statistics.head.get().saturating_sub(cursor.get()).min(statistics.events)
}

/// Resident memory, where Linux tells (proc_pid_status(5), VmRSS in kB).
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_a_line_for_each_and_a_bounded_number_of_clients() {
        let metrics = Metrics::new();
        metrics.webhooks.with_label_values(&["201"]).inc();
        let lags = (0..150).map(|number| (format!("client-{number}").parse().unwrap(), number)).collect();
        let statistics = Statistics { events: 7, writable: true, ..Statistics::default() };
        let (text, content_type) =
            metrics.render(Sample { statistics, attached: 3, lags, relays: Vec::new() });
        let text = String::from_utf8(text).unwrap();
        assert!(content_type.starts_with("text/plain"), "{content_type}");
        for line in [
            "gitstafette_webhooks_total{status=\"201\"} 1",
            "gitstafette_outcomes_total{result=\"failed\"} 0",
            "gitstafette_store_events 7",
            "gitstafette_store_writable 1",
            "gitstafette_subscriptions_attached 3",
            "gitstafette_subscription_lag_events{client_id=\"client-149\"} 149",
        ] {
            assert!(text.lines().any(|other| other == line), "{line} is not in {text}");
        }
        assert_eq!(text.matches("gitstafette_subscription_lag_events{").count(), CLIENTS);
    }

    #[test]
    fn lag_is_no_more_than_what_is_there() {
        let statistics = Statistics { events: 5, head: Sequence::new(100), ..Statistics::default() };
        assert_eq!(lag(Sequence::new(98), &statistics), 2);
        assert_eq!(lag(Sequence::new(3), &statistics), 5);
        assert_eq!(lag(Sequence::new(200), &statistics), 0);
    }
}
