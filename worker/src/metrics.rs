//! A worker's figures for Prometheus. They say what its log lines say: an outcome counts when it was written to
//! the broker, while the exit report counts what is certain.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicI64},
    time::Duration,
};

use mayfly_broker::Message;
use mayfly_service::{metrics::Registry, report::now_ms};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::Gauge,
        histogram::Histogram,
    },
    registry::Unit,
};
use tokio::time::Instant;

use crate::tally::Settled;

/// All of them; clones are the same ones. They count whether anybody asks or not.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    outcomes: Family<[(&'static str, &'static str); 1], Counter>,
    /// The same counters by outcome, so that a message costs no look-up.
    by_outcome: [Counter; OUTCOMES.len()],
    handler: Histogram,
    wait: Histogram,
    redeliveries: Counter,
    suspects: Counter,
    reconnects: Counter,
    in_flight: Gauge<i64, AtomicI64>,
    ready: Gauge<i64, AtomicI64>,
    idle: Idle,
}

/// Time without a message in flight, running on while it lasts.
#[derive(Debug, Clone, Default)]
struct Idle(Arc<Mutex<Span>>);

#[derive(Debug, Default)]
struct Span {
    before: Duration,
    since: Option<Instant>,
}

const OUTCOMES: [Settled; 7] = [
    Settled::Done,
    Settled::Known,
    Settled::Retried,
    Settled::DeadLettered,
    Settled::Suspected,
    Settled::GivenBack,
    Settled::Lost,
];
/// From what needs no process to what needs a night, in seconds.
const HANDLER_BUCKETS: [f64; 15] =
    [0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 900.0, 1800.0, 7200.0, 28800.0];
/// From a busy worker's to that of a batch that was held back, in seconds.
const WAIT_BUCKETS: [f64; 14] =
    [0.01, 0.05, 0.25, 1.0, 2.5, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0, 86400.0];

/// Its place in [`OUTCOMES`].
const fn index(settled: Settled) -> usize {
    match settled {
        Settled::Done => 0,
        Settled::Known => 1,
        Settled::Retried => 2,
        Settled::DeadLettered => 3,
        Settled::Suspected => 4,
        Settled::GivenBack => 5,
        Settled::Lost => 6,
    }
}

// === impl Metrics ===

impl Default for Metrics {
    fn default() -> Self {
        let outcomes = Family::<_, Counter>::default();
        // All of them from the start: a rate over what appears later lacks its first events.
        let by_outcome =
            OUTCOMES.map(|outcome| outcomes.get_or_create(&[("outcome", outcome.as_str())]).clone());
        Self {
            outcomes,
            by_outcome,
            handler: Histogram::new(HANDLER_BUCKETS),
            wait: Histogram::new(WAIT_BUCKETS),
            redeliveries: Counter::default(),
            suspects: Counter::default(),
            reconnects: Counter::default(),
            in_flight: Gauge::default(),
            ready: Gauge::default(),
            idle: Idle::default(),
        }
    }
}

impl Metrics {
    /// Everything under its name, with the pool as a label where there is one.
    pub(crate) fn registry(&self, pool: Option<&str>) -> Registry {
        let Self {
            outcomes,
            by_outcome: _,
            handler,
            wait,
            redeliveries,
            suspects,
            reconnects,
            in_flight,
            ready,
            idle,
        } = self.clone();
        let labels = pool.map(|pool| ("pool".into(), pool.to_owned().into()));
        let mut registry = Registry::with_prefix_and_labels("mayfly_worker", labels.into_iter());
        registry.register("messages", "Messages that left this worker, by what became of them", outcomes);
        registry.register_with_unit("handler", "Time in the handler, per message", Unit::Seconds, handler);
        let help = "From publishing to the handler's begin, of messages that say when they were published";
        registry.register_with_unit("wait", help, Unit::Seconds, wait);
        registry.register("redeliveries", "Deliveries of messages that somebody had before", redeliveries);
        registry.register("suspects", "Messages handled alone, because a worker died over them", suspects);
        registry.register("reconnects", "Connections made after one was lost", reconnects);
        registry.register("in_flight", "Messages delivered and not settled", in_flight);
        registry.register("ready", "Whether the consumer was registered once", ready);
        registry.register_collector(Box::new(idle));
        registry
    }

    /// A consumer is registered, for the first time or anew.
    pub(crate) fn connected(&self) {
        if self.ready.set(1) == 1 {
            self.reconnects.inc();
        }
        self.in_flight(0);
    }

    /// A message was delivered, the `in_flight`th that is not settled.
    pub(crate) fn delivered(&self, message: &Message, in_flight: usize) {
        if message.redelivered {
            self.redeliveries.inc();
        }
        self.in_flight(in_flight);
    }

    /// Work on a message begins, alone if it is suspect.
    pub(crate) fn began(&self, message: &Message, alone: bool) {
        if alone {
            self.suspects.inc();
        }
        if let Some(published) = message.published_ms() {
            let waited = Duration::from_millis(now_ms().saturating_sub(published));
            self.wait.observe(waited.as_secs_f64());
        }
    }

    /// The work on a message has ended; no time at all: it did not come to its handler.
    pub(crate) fn handled(&self, busy: Duration) {
        if !busy.is_zero() {
            self.handler.observe(busy.as_secs_f64());
        }
    }

    /// A message is settled; `in_flight` are left.
    pub(crate) fn settled(&self, settled: Settled, in_flight: usize) {
        self.by_outcome[index(settled)].inc();
        self.in_flight(in_flight);
    }

    fn in_flight(&self, count: usize) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        let before = self.in_flight.set(count);
        if count == 0 || before == 0 {
            self.idle.is(count == 0);
        }
    }
}

// === impl Idle ===

impl Idle {
    fn is(&self, idle: bool) {
        let mut span = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if idle {
            span.since.get_or_insert_with(Instant::now);
        } else if let Some(since) = span.since.take() {
            span.before += since.elapsed();
        }
    }

    fn total(&self) -> Duration {
        let span = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        span.before + span.since.map(|since| since.elapsed()).unwrap_or_default()
    }
}

impl Collector for Idle {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let counter: ConstCounter<f64> = ConstCounter::new(self.total().as_secs_f64());
        let help = "Time without a message in flight";
        let encoder = encoder.encode_descriptor("idle", help, Some(&Unit::Seconds), counter.metric_type())?;
        counter.encode(encoder)
    }
}

#[cfg(test)]
mod tests {
    use lapin::{BasicProperties, message::Delivery};
    use prometheus_client::encoding::text::encode;

    use super::*;

    fn told(metrics: &Metrics) -> String {
        let mut text = String::new();
        encode(&mut text, &metrics.registry(Some("documents"))).unwrap();
        text
    }

    #[test]
    fn every_outcome_has_a_counter_of_its_own() {
        for (at, outcome) in OUTCOMES.into_iter().enumerate() {
            assert_eq!(index(outcome), at, "{}", outcome.as_str());
        }
    }

    #[test]
    fn a_message_that_says_when_it_was_published_tells_how_long_it_waited() {
        let metrics = Metrics::default();
        let mut delivery = Delivery::mock(1, "".into(), "q".into(), false, Vec::new());
        delivery.properties = BasicProperties::default().with_timestamp(now_ms() / 1000 - 90);
        metrics.began(&Message::from(delivery), false);
        let told = told(&metrics);
        for line in [
            r#"mayfly_worker_wait_seconds_count{pool="documents"} 1"#,
            r#"mayfly_worker_wait_seconds_bucket{pool="documents",le="60.0"} 0"#,
            r#"mayfly_worker_wait_seconds_bucket{pool="documents",le="120.0"} 1"#,
        ] {
            assert!(told.lines().any(|told| told == line), "no {line} in\n{told}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_happens_to_messages_is_counted_under_settled_names() {
        let metrics = Metrics::default();
        metrics.connected();
        tokio::time::advance(Duration::from_secs(5)).await;
        let message = Message::from(Delivery::mock(1, "".into(), "q".into(), true, Vec::new()));
        metrics.delivered(&message, 1);
        tokio::time::advance(Duration::from_secs(60)).await;
        metrics.began(&message, true);
        metrics.handled(Duration::from_secs(2));
        metrics.settled(Settled::Retried, 0);
        tokio::time::advance(Duration::from_secs(1)).await;
        metrics.connected();
        let told = told(&metrics);
        for line in [
            r#"mayfly_worker_messages_total{pool="documents",outcome="retried"} 1"#,
            r#"mayfly_worker_messages_total{pool="documents",outcome="done"} 0"#,
            r#"mayfly_worker_handler_seconds_bucket{pool="documents",le="1.0"} 0"#,
            r#"mayfly_worker_handler_seconds_bucket{pool="documents",le="2.5"} 1"#,
            r#"mayfly_worker_wait_seconds_count{pool="documents"} 0"#,
            r#"mayfly_worker_redeliveries_total{pool="documents"} 1"#,
            r#"mayfly_worker_suspects_total{pool="documents"} 1"#,
            r#"mayfly_worker_reconnects_total{pool="documents"} 1"#,
            r#"mayfly_worker_in_flight{pool="documents"} 0"#,
            r#"mayfly_worker_ready{pool="documents"} 1"#,
            r#"mayfly_worker_idle_seconds_total{pool="documents"} 6.0"#,
        ] {
            assert!(told.lines().any(|told| told == line), "no {line} in\n{told}");
        }
    }
}
