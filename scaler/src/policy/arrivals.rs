//! How fast messages arrive (facts/scaling §3.1): by the broker's counters, else by changes of depth and what is
//! done meanwhile.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Batch, Counters, Counts, Fact, Observation, PoolState, QueueFacts, age, waiting::Waiting};
use crate::{config::PoolConfig, time::Time};

/// How long the two rates take to follow a change by two thirds.
const WINDOWS: [Duration; 2] = [Duration::from_mins(1), Duration::from_mins(5)];
/// What was persisted longer ago tells nothing of the present.
const FORGOTTEN_AFTER: Duration = Duration::from_mins(5);
/// Slower arrivals than this, per second, are none.
const NEGLIGIBLE: f64 = 0.01;
/// A change by this part is worth a write.
const NOTABLE: f64 = 0.2;

/// How fast messages arrive in one queue. Persisted with the estimates.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arrivals {
    /// Messages per second over about a minute; below zero where more was done than expected.
    pub minute: f64,
    /// The same over about five minutes.
    pub five_minutes: f64,
    /// When it was last brought up to date.
    pub at: Time,
}

/// What is remembered of the arrivals in one queue.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ArrivalMemory {
    pub(super) rates: Arrivals,
    /// What waits, by age; kept for queues with an SLO only.
    pub(super) waiting: Waiting,
    /// The last look: when, and how many messages were ready.
    seen: Option<(Time, u64)>,
    /// The last reading of counters, while that is fresh: when, how many had come, how often the counting had
    /// begun anew.
    counted: Option<(Time, u64, u64)>,
}

// === impl Arrivals ===

impl Arrivals {
    /// Messages per second: the lower of both rates, so that growth counts once it persists. The queue already
    /// holds what a burst brought.
    #[must_use]
    pub fn per_second(&self) -> f64 {
        let rate = self.minute.min(self.five_minutes);
        if rate < NEGLIGIBLE { 0.0 } else { rate }
    }

    /// Whether `other` says something else, as far as planning goes.
    #[must_use]
    pub fn differs_notably(&self, other: &Self) -> bool {
        let (a, b) = (self.per_second(), other.per_second());
        (a - b).abs() > NOTABLE * a.max(b)
    }

    pub(super) fn cut_to(&mut self, now: Time) {
        self.at = self.at.min(now);
    }

    /// Folds in `count` arrivals since the last time.
    fn fold(&mut self, count: f64, at: Time) {
        let elapsed = at.since(self.at).as_secs_f64();
        if elapsed <= 0.0 {
            return;
        }
        let follow = |rate: f64, window: Duration| {
            let followed = 1.0 - (-elapsed / window.as_secs_f64()).exp();
            (count / elapsed - rate).mul_add(followed, rate)
        };
        let [minute, five_minutes] = WINDOWS;
        self.minute = follow(self.minute, minute);
        self.five_minutes = follow(self.five_minutes, five_minutes);
        self.at = at;
    }
}

// === impl ArrivalMemory ===

impl ArrivalMemory {
    /// A memory that begins at `now` with what was persisted.
    fn resumed(persisted: Option<&Arrivals>, waiting: Option<&Vec<Batch>>, now: Time) -> Self {
        let Some(rates) = persisted.filter(|rates| now.since(rates.at) <= FORGOTTEN_AFTER) else {
            let rates = Arrivals { at: now, ..Arrivals::default() };
            return Self { rates, waiting: Waiting::default(), seen: None, counted: None };
        };
        let waiting = Waiting::resumed(waiting.map_or(&[], Vec::as_slice));
        Self { rates: *rates, waiting, seen: None, counted: None }
    }

    /// Folds in a look; `served` is how many messages per second were taken out meanwhile, as far as known.
    /// A look that was folded in before changes nothing.
    #[expect(clippy::cast_precision_loss, reason = "an estimate, not an account")]
    fn observe(&mut self, ready: u64, served: f64, by_age: bool, at: Time) {
        // Before the first look this is when things were persisted.
        let before = self.seen.map_or(self.rates.at, |(seen, _)| seen);
        let mut taken = 0.0;
        if self.counted.is_some_and(|(counted, ..)| at.since(counted) > age::COUNTERS_STALE_AFTER) {
            self.counted = None;
            self.rates.at = before;
        }
        match self.seen {
            Some((seen, _)) if at <= seen => return,
            // Not clamped at zero: of what is done little is certain, and errors must cancel out.
            Some((seen, last)) => {
                taken = served * at.since(seen).as_secs_f64();
                if self.counted.is_none() {
                    self.rates.fold(ready as f64 - last as f64 + taken, at);
                }
            }
            None => self.rates.at = at,
        }
        if by_age {
            self.waiting.turn(ready, taken, before);
        }
        self.seen = Some((at, ready));
    }

    /// Folds in what the broker counted. What was folded in before changes nothing.
    #[expect(clippy::cast_precision_loss, reason = "an estimate, not an account")]
    fn count(&mut self, counters: &Counters, at: Time) {
        let Some(published) = counters.published else { return };
        // What comes back from a retry queue is work once more.
        let total = counters.returns.iter().fold(published, |total, (_, count)| total.saturating_add(*count));
        match self.counted {
            Some((counted, ..)) if at <= counted => return,
            Some((_, before, restarts)) if restarts == counters.restarts && before <= total => {
                self.rates.fold((total - before) as f64, at);
            }
            // What came before the counting, or while it began anew, is not known.
            _ => self.rates.at = at,
        }
        self.counted = Some((at, total, counters.restarts));
    }

    /// Whether the rates come from the broker's counters.
    pub(super) const fn is_counted(&self) -> bool {
        self.counted.is_some()
    }

    fn waited(&self) -> bool {
        self.seen.is_some_and(|(_, ready)| ready > 0)
    }
}

/// Folds one pool's part of an observation into the memory of arrivals.
pub(super) fn observe(
    arrivals: &mut BTreeMap<String, ArrivalMemory>,
    pool: &PoolConfig,
    observation: &Observation,
    service: impl Fn(&PoolState) -> Option<f64>,
) {
    // A memory begins with what was persisted, so not before that was read.
    let (Some(record), Some(workers)) = (observation.state.known(), observation.workers.known()) else {
        return;
    };
    let none = PoolState::default();
    let state = record.pools.get(&pool.name).unwrap_or(&none);
    let ready_workers = Counts::of(&pool.name, workers, state).ready;
    let estimates = &state.estimates;
    let slots = f64::from(ready_workers) * f64::from(pool.concurrency);
    let mut capacity = service(state).filter(|service| *service > 0.0).map_or(0.0, |service| slots / service);
    for queue in &pool.queues {
        let Some(Fact::Known { value, at }) = observation.queues.get(queue) else { continue };
        let ready = if let QueueFacts::Present { ready, .. } = value { *ready } else { 0 };
        let memory = arrivals.entry(queue.clone()).or_insert_with(|| {
            ArrivalMemory::resumed(estimates.arrivals.get(queue), estimates.waiting.get(queue), *at)
        });
        // Workers are all busy while something waits; they serve the first queue where that is so.
        let served = if ready > 0 && memory.waited() { std::mem::take(&mut capacity) } else { 0.0 };
        memory.observe(ready, served, pool.slo.is_some(), *at);
        if let Some(Fact::Known { value, at: counted }) = observation.counters.get(queue)
            && at.since(*counted) <= age::COUNTERS_STALE_AFTER
        {
            memory.count(value, *counted);
        }
    }
}
