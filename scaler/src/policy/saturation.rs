//! The saturation guard (facts/scaling §3.3): where the last two workers brought no more throughput, only
//! slower work, what is behind them is busy, and a further one would slow it down more.

use std::{collections::BTreeMap, time::Duration};

use super::{Counts, Fact, Observation, PoolState, QueueFacts};
use crate::{config::PoolConfig, time::Time};

/// A measurement takes at least so long …
const WINDOW: Duration = Duration::from_secs(5);
/// … and so many messages.
const LEAST_MESSAGES: u64 = 20;
/// What was measured longer ago is tried again: what is behind the workers may have grown.
const FORGOTTEN_AFTER: Duration = Duration::from_mins(10);
/// Workers that a comparison goes back, at least: of some numbers there is no measurement, as launches follow
/// each other.
const STEP: u32 = 2;
/// Throughput that rose by less than this part has not risen.
const LEAST_GAIN: f64 = 0.1;
/// Work that became slower by more than this part was slowed down.
const MOST_SLOWDOWN: f64 = 0.3;

/// What a pool got done with so many workers while messages waited all the time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Pace {
    /// Messages a second.
    pub(super) throughput: f64,
    /// Seconds a message, by what was in flight.
    pub(super) service: f64,
    /// When the measurement ended.
    at: Time,
}

/// What the last two workers brought.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Saturated {
    /// Ready workers then and now.
    pub(super) workers: [u32; 2],
    /// What they got done.
    pub(super) paces: [Pace; 2],
}

/// What is remembered of one pool: the last pace with each number of workers.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct PaceMemory {
    paces: BTreeMap<u32, Pace>,
    window: Option<Window>,
}

/// A measurement under way.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Window {
    workers: u32,
    begun: Time,
    last: Reading,
    messages: u64,
    /// ∫ in flight dt.
    in_flight_seconds: f64,
}

/// The pool's counters at one moment.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Reading {
    at: Time,
    acknowledged: u64,
    unacked: u64,
}

// === impl Reading ===

impl Reading {
    /// The sum over the pool's queues; `None` where a counter is not known.
    fn of(pool: &PoolConfig, observation: &Observation) -> Option<Self> {
        let mut sum: Option<Self> = None;
        for queue in &pool.queues {
            let Fact::Known { value, at } = observation.counters.get(queue)? else { return None };
            let (acknowledged, unacked) = (value.acknowledged?, value.unacked?);
            let before = sum.unwrap_or(Self { at: *at, acknowledged: 0, unacked: 0 });
            sum = Some(Self {
                at: before.at.max(*at),
                acknowledged: before.acknowledged + acknowledged,
                unacked: before.unacked + unacked,
            });
        }
        sum
    }
}

// === impl PaceMemory ===

impl PaceMemory {
    /// Folds in a look at the pool; a look that was folded in before changes nothing.
    pub(super) fn observe(&mut self, pool: &PoolConfig, observation: &Observation) {
        let workers = observation
            .workers
            .known()
            .map(|workers| Counts::of(&pool.name, workers, &PoolState::default()).ready);
        let (Some(workers), Some(reading)) = (workers, Reading::of(pool, observation)) else {
            self.window = None;
            return;
        };
        let waits = pool.queues.iter().any(|queue| {
            let fact = observation.queues.get(queue).and_then(Fact::known);
            matches!(fact, Some(QueueFacts::Present { ready: 1.., .. }))
        });
        // Workers that wait for work have no pace.
        if workers == 0 || !waits {
            self.window = None;
            return;
        }
        let begun = Window { workers, begun: reading.at, last: reading, messages: 0, in_flight_seconds: 0.0 };
        let Some(window) = self.window.filter(|window| window.workers == workers) else {
            self.window = Some(begun);
            return;
        };
        // The counting began anew.
        let Some(messages) = reading.acknowledged.checked_sub(window.last.acknowledged) else {
            self.window = Some(begun);
            return;
        };
        if reading.at <= window.last.at {
            return;
        }
        let window = window.with(reading, messages);
        match window.pace() {
            Some(pace) => {
                self.paces.insert(workers, pace);
                self.window = Some(begun);
            }
            None => self.window = Some(window),
        }
    }

    /// Whether the last two or more of `workers` ready ones brought nothing but slower work.
    pub(super) fn saturated(&self, workers: u32, now: Time) -> Option<Saturated> {
        let recent = |pace: &Pace| now.since(pace.at) <= FORGOTTEN_AFTER;
        let pace = *self.paces.get(&workers).filter(|pace| recent(pace))?;
        let fewer = self.paces.range(..=workers.checked_sub(STEP)?).rev();
        let (few, before) = fewer.map(|(few, before)| (*few, *before)).find(|(_, before)| recent(before))?;
        let gained = pace.throughput >= before.throughput * (1.0 + LEAST_GAIN);
        let slowed = pace.service > before.service * (1.0 + MOST_SLOWDOWN);
        (!gained && slowed).then_some(Saturated { workers: [few, workers], paces: [before, pace] })
    }
}

// === impl Window ===

impl Window {
    #[expect(clippy::cast_precision_loss, reason = "an estimate, not an account")]
    fn with(self, reading: Reading, messages: u64) -> Self {
        let elapsed = reading.at.since(self.last.at).as_secs_f64();
        let in_flight = f64::midpoint(self.last.unacked as f64, reading.unacked as f64);
        Self {
            last: reading,
            messages: self.messages + messages,
            in_flight_seconds: in_flight.mul_add(elapsed, self.in_flight_seconds),
            ..self
        }
    }

    /// What was measured, once that is enough.
    #[expect(clippy::cast_precision_loss, reason = "an estimate, not an account")]
    fn pace(&self) -> Option<Pace> {
        let took = self.last.at.since(self.begun);
        (took >= WINDOW && self.messages >= LEAST_MESSAGES).then(|| Pace {
            throughput: self.messages as f64 / took.as_secs_f64(),
            service: self.in_flight_seconds / self.messages as f64,
            at: self.last.at,
        })
    }
}
