//! What waits in a pool's queues, as far as it is known: an unknown or missing queue adds no need.

use std::{collections::BTreeMap, time::Duration};

use mayfly_broker::suspect_queue;

use super::{Age, Fact, Memory, Observation, Phase, QueueFacts, Unknown, Why, Worker};
use crate::{
    config::{Config, PoolConfig},
    time::Time,
};

/// The least age at which a depth is stale.
pub const DEPTH_STALE_AFTER: Duration = Duration::from_secs(2);
/// The age at which "the queue is missing" is stale: such a queue is looked at every 5 to 8 s only.
const MISSING_STALE_AFTER: Duration = Duration::from_secs(10);
/// The age at which what is known of suspects is stale: with none there they are looked at every second or
/// two only …
const SUSPECTS_STALE_AFTER: Duration = Duration::from_secs(5);
/// … and a queue for them that is missing once a minute.
const NO_SUSPECTS_STALE_AFTER: Duration = Duration::from_secs(90);

/// Workers connect again within this time (`reconnect_for`), or end.
const WORKERS_RETURN_WITHIN: Duration = Duration::from_secs(30);

/// What waits in a pool's queues.
#[derive(Debug, Default)]
pub(super) struct Need {
    /// Ready messages over the known queues.
    pub(super) ready: u64,
    /// The same by queue.
    pub(super) queues: BTreeMap<String, QueueNeed>,
    /// When the oldest of the looks was sent that found them.
    pub(super) seen: Option<Time>,
    /// The greatest estimated age over the known queues.
    pub(super) age: Option<Age>,
    /// The first queue that is unknown.
    pub(super) unknown: Option<(String, Unknown)>,
    /// The first queue that is missing, if no queue exists.
    pub(super) all_missing: Option<String>,
    /// Whether at least one queue is known.
    pub(super) any_known: bool,
}

/// What waits in one queue.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct QueueNeed {
    /// Ready messages in it.
    pub(super) ready: u64,
    /// Suspects of it.
    pub(super) suspects: u64,
    /// The oldest suspect's estimated age.
    pub(super) suspects_age: Duration,
}

// === impl Need ===

impl Need {
    /// What waits at `now` in the queues of `pool`.
    pub(super) fn of(
        pool: &PoolConfig,
        memory: &Memory,
        observation: &Observation,
        config: &Config,
        now: Time,
    ) -> Self {
        let stale = depth_stale_after(config);
        let mut need = Self::default();
        let mut missing = None;
        let mut present = false;
        for queue in &pool.queues {
            let not_yet_seen = Fact::Unknown(Unknown::not_yet_seen(now));
            let fact = observation.queues.get(queue).unwrap_or(&not_yet_seen);
            let missing_now = matches!(fact.known(), Some(QueueFacts::Missing));
            match fact.fresh(now, if missing_now { stale.max(MISSING_STALE_AFTER) } else { stale }) {
                Ok(QueueFacts::Present { ready, .. }) => {
                    present = true;
                    if let Some(unknown) = returning(pool, queue, memory, observation, now) {
                        need.unknown = need.unknown.or_else(|| Some((queue.clone(), unknown)));
                        continue;
                    }
                    need.add(*ready, fact.at(), memory.age(queue, now));
                    need.queues.insert(queue.clone(), QueueNeed { ready: *ready, ..QueueNeed::default() });
                    // Without the queue itself no worker starts, so its suspects need none either.
                    if let Some(fact) = observation.suspects.get(queue) {
                        need.add_suspects(queue, fact, memory, stale, now);
                    }
                }
                Ok(QueueFacts::Missing) => missing = missing.or_else(|| Some(queue.clone())),
                Err(unknown) => need.unknown = need.unknown.or_else(|| Some((queue.clone(), unknown))),
            }
        }
        need.any_known = present || missing.is_some();
        need.all_missing = missing.filter(|_| !present && need.unknown.is_none());
        need
    }

    /// What is not known of suspects is told; a pool without a queue for them is none the worse.
    fn add_suspects(
        &mut self,
        queue: &str,
        fact: &Fact<QueueFacts>,
        memory: &Memory,
        stale: Duration,
        now: Time,
    ) {
        let missing = matches!(fact.known(), Some(QueueFacts::Missing));
        let stale = stale.max(if missing { NO_SUSPECTS_STALE_AFTER } else { SUSPECTS_STALE_AFTER });
        match fact.fresh(now, stale) {
            Ok(QueueFacts::Present { ready, .. }) => {
                let age = memory.suspects_age(queue, now);
                self.add(*ready, fact.at(), age);
                if let Some(need) = self.queues.get_mut(queue) {
                    need.suspects = *ready;
                    need.suspects_age = age.map_or(Duration::ZERO, |age| age.estimate);
                }
            }
            Err(unknown) if self.unknown.is_none() => self.unknown = Some((suspect_queue(queue), unknown)),
            Ok(QueueFacts::Missing) | Err(_) => {}
        }
    }

    fn add(&mut self, ready: u64, seen: Option<Time>, age: Option<Age>) {
        self.ready += ready;
        if ready > 0 {
            self.seen = self.seen.into_iter().chain(seen).min();
        }
        if age.map(|age| age.estimate) > self.age.map(|age| age.estimate) {
            self.age = age;
        }
    }

    /// The greatest estimated age; zero where none is known.
    pub(super) fn age(&self) -> Duration {
        self.age.map_or(Duration::ZERO, |age| age.estimate)
    }
}

/// After the broker was away, what its workers had in hand waits again until they are back: that is no new work.
/// A worker may take from several queues of its pool, or for a while from some of them only: it is back where any
/// queue has as many consumers as there are workers.
fn returning(
    pool: &PoolConfig,
    queue: &str,
    memory: &Memory,
    observation: &Observation,
    now: Time,
) -> Option<Unknown> {
    let since = memory.back_since(queue).filter(|since| now.since(*since) < WORKERS_RETURN_WITHIN)?;
    let is_ready = |worker: &&Worker| worker.pool == pool.name && matches!(worker.phase, Phase::Ready { .. });
    let workers = observation.workers.known()?.iter().filter(is_ready).count() as u64;
    let consumers = pool.queues.iter().filter_map(|queue| match observation.queues.get(queue)?.known()? {
        QueueFacts::Present { consumers, .. } => Some(*consumers),
        QueueFacts::Missing => None,
    });
    let consumers = consumers.max().unwrap_or(0);
    let detail = format!("it is back; {consumers} of {workers} workers are connected again");
    (consumers < workers).then_some(Unknown { why: Why::Unreachable, detail, since })
}

/// A depth older than this is stale: three looks, at least 2 s.
fn depth_stale_after(config: &Config) -> Duration {
    (3 * config.check_interval).max(DEPTH_STALE_AFTER)
}
