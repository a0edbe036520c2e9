//! The numbers that a pool's decision rests on, each with what tells it: for people.

use std::time::Duration;

use mayfly_broker::suspect_queue;
use serde::{Deserialize, Serialize};

use crate::{
    config::PoolConfig,
    policy::{
        Age, AgeSource, Counts, Fact, LeadTimes, Memory, Observation, QueueFacts, ServiceSource, Unknown,
    },
    time::Time,
};

/// One number, or why there is none.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Input {
    /// What it is.
    pub what: String,
    /// The queue that it is told of; the pool as a whole if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<String>,
    /// The number: of messages, of workers, of seconds, of messages a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// The number with its unit and bounds, or why there is none.
    pub text: String,
    /// What tells it.
    pub source: String,
    /// Whether it is estimated, not read.
    pub estimate: bool,
}

/// Who asks the broker for depths.
const LOOKS: &str = AgeSource::Looks.as_str();
/// Who is asked for what it counts.
const COUNTERS: &str = AgeSource::Counters.as_str();

/// All of them for one pool.
pub(super) fn of(pool: &PoolConfig, memory: &Memory, observation: &Observation, now: Time) -> Vec<Input> {
    let mut inputs = Vec::new();
    for queue in &pool.queues {
        inputs.extend(of_queue(queue, memory, observation, now));
    }
    inputs.extend(of_workers(pool, memory, observation, now));
    inputs
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn of_queue(queue: &str, memory: &Memory, observation: &Observation, now: Time) -> Vec<Input> {
    let mut inputs = Vec::new();
    if let Some(facts) = observation.queues.get(queue) {
        inputs.push(depth("ready", queue, facts, now));
    }
    if let Some(age) = memory.age(queue, now) {
        inputs.push(Input::age("oldest message", queue, age));
    }
    match observation.counters.get(queue) {
        Some(Fact::Known { value, at }) => {
            inputs.extend(value.unacked.map(|unacked| {
                let text = format!("{unacked}{}", ago(*at, now));
                Input::read("in flight", text, COUNTERS).with(unacked as f64).of(queue)
            }));
        }
        Some(Fact::Unknown(unknown)) => {
            inputs.push(Input::read("in flight", unknown.to_string(), COUNTERS).of(queue));
        }
        None => {}
    }
    if let Some(arrivals) = memory.arrivals(queue) {
        let rate = arrivals.per_second();
        let text = format!("{rate:.2} messages/s");
        let source = if memory.arrivals_are_counted(queue) { COUNTERS } else { "changes of the depth" };
        inputs.push(Input::estimate("arrivals", text, source).with(rate).of(queue));
    }
    let suspects = suspect_queue(queue);
    if let Some(facts @ Fact::Known { value: QueueFacts::Present { ready: 1.., .. }, .. }) =
        observation.suspects.get(queue)
    {
        inputs.push(depth("ready", &suspects, facts, now));
        inputs
            .extend(memory.suspects_age(queue, now).map(|age| Input::age("oldest message", &suspects, age)));
    }
    inputs
}

fn of_workers(pool: &PoolConfig, memory: &Memory, observation: &Observation, now: Time) -> Vec<Input> {
    let (workers, record) = match (&observation.workers, &observation.state) {
        (Fact::Known { value, at }, Fact::Known { value: record, .. }) => ((value, *at), record),
        (workers, state) => {
            let unknown = |what, why: Option<&Unknown>, source| {
                why.map(|why| Input::read(what, why.to_string(), source))
            };
            return [
                unknown("workers", workers.unknown(), "the launcher"),
                unknown("state record", state.unknown(), "where it is kept"),
            ]
            .into_iter()
            .flatten()
            .collect();
        }
    };
    let (workers, listed) = workers;
    let state = record.pool(&pool.name);
    let counts = Counts::of(&pool.name, workers, &state);
    let Counts { pending, ready, draining, lost } = counts;
    let text =
        format!("{ready} ready, {pending} pending, {draining} ending, {lost} lost{}", ago(listed, now));
    let mut inputs = vec![Input::read("workers", text, "the launcher").with(f64::from(counts.occupied()))];
    let service = memory.service_time(&pool.name, &state.estimates);
    let source = service.map_or(ServiceSource::Reports, |(_, source)| source).as_str();
    let service = service.map(|(time, _)| time.seconds());
    inputs.push(Input::seconds("service time", service, "a message", source));
    let own: Vec<_> = workers.iter().filter(|worker| worker.pool == pool.name).collect();
    let LeadTimes { warm, cold } = state.estimates.lead_times(&own);
    for (what, lead) in [("lead time", warm), ("lead time with a node", cold)] {
        let lead = lead.as_ref().map(Duration::as_secs_f64);
        inputs.push(Input::seconds(what, lead, "from launch to ready", "earlier launches"));
    }
    inputs
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn depth(what: &str, queue: &str, facts: &Fact<QueueFacts>, now: Time) -> Input {
    let (text, value) = match facts {
        Fact::Known { value: QueueFacts::Present { ready, consumers }, at } => {
            (format!("{ready}, {consumers} consumers{}", ago(*at, now)), Some(*ready as f64))
        }
        Fact::Known { value: QueueFacts::Missing, at } => {
            (format!("the queue does not exist{}", ago(*at, now)), None)
        }
        Fact::Unknown(unknown) => (unknown.to_string(), None),
    };
    Input { value, ..Input::read(what, text, LOOKS).of(queue) }
}

/// How long ago it was, where that matters.
fn ago(at: Time, now: Time) -> String {
    match now.since(at).as_secs_f64() {
        seconds if seconds < 1.0 => String::new(),
        seconds => format!(", {seconds:.0} s ago"),
    }
}

// === impl Input ===

impl Input {
    fn read(what: &str, text: String, source: &str) -> Self {
        let (what, source) = (what.to_owned(), source.to_owned());
        Self { what, queue: None, value: None, text, source, estimate: false }
    }

    fn estimate(what: &str, text: String, source: &str) -> Self {
        Self { estimate: true, ..Self::read(what, text, source) }
    }

    fn with(self, value: f64) -> Self {
        Self { value: Some(value), ..self }
    }

    fn of(self, queue: &str) -> Self {
        Self { queue: Some(queue.to_owned()), ..self }
    }

    fn age(what: &str, queue: &str, age: Age) -> Self {
        let Age { at_least, at_most, estimate, source } = age;
        let most = at_most.map_or_else(
            || "no upper bound".to_owned(),
            |most| format!("at most {:.1} s", most.as_secs_f64()),
        );
        let text =
            format!("{:.1} s, at least {:.1} s, {most}", estimate.as_secs_f64(), at_least.as_secs_f64());
        Self::estimate(what, text, source.as_str()).with(estimate.as_secs_f64()).of(queue)
    }

    /// A learned time.
    fn seconds(what: &str, seconds: Option<f64>, of: &str, source: &str) -> Self {
        match seconds {
            Some(seconds) => Self::estimate(what, format!("{seconds:.2} s {of}"), source).with(seconds),
            None => Self::read(what, "not known yet".to_owned(), source),
        }
    }
}
