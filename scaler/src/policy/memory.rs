//! What one scaler process remembers between looks.

use std::collections::BTreeMap;

use super::{Age, Counts, Fact, Observation, QueueFacts, QueueMarks, age::QueueMemory};
use crate::{config::Config, time::Time};

/// The memory over all queues and pools. Only [`remember`] makes a new one.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Memory {
    queues: BTreeMap<String, QueueMemory>,
    /// By pool: since when all its queues are known to be empty.
    empty_since: BTreeMap<String, Time>,
}

/// Folds an observation into the memory. Parts that were folded in before change nothing, so parts may be
/// of different age.
#[must_use]
pub fn remember(memory: Memory, observation: &Observation, config: &Config) -> Memory {
    let Memory { mut queues, mut empty_since } = memory;
    for pool in &config.pools {
        let mut emptiness = Emptiness::default();
        for queue in &pool.queues {
            let remembered = queues.entry(queue.clone()).or_default();
            if remembered.is_fresh()
                && let Some(marks) = persisted_marks(observation, &pool.name, queue)
            {
                *remembered = QueueMemory::resumed(marks);
            }
            match observation.queues.get(queue) {
                Some(Fact::Known { value, at }) => {
                    remembered.observe(*value, *at);
                    emptiness.fold(*value, *at);
                }
                _ => emptiness.unknown = true,
            }
            if let Fact::Known { value: workers, at } = &observation.workers
                && Counts::of(&pool.name, workers, &[]).useful() == 0
            {
                remembered.observe_no_workers(*at);
            }
        }
        match emptiness.empty_at() {
            Some(at) => {
                empty_since.entry(pool.name.clone()).or_insert(at);
            }
            None => {
                empty_since.remove(&pool.name);
            }
        }
    }
    Memory { queues, empty_since }
}

fn persisted_marks(observation: &Observation, pool: &str, queue: &str) -> Option<QueueMarks> {
    observation.state.known()?.pools.get(pool)?.estimates.queues.get(queue).copied()
}

/// Whether all queues of a pool are known to be empty, and since when that is so at least.
#[derive(Default)]
struct Emptiness {
    unknown: bool,
    waiting: bool,
    at: Option<Time>,
}

// === impl Emptiness ===

impl Emptiness {
    fn fold(&mut self, facts: QueueFacts, at: Time) {
        self.waiting |= matches!(facts, QueueFacts::Present { ready, .. } if ready > 0);
        self.at = self.at.max(Some(at));
    }

    fn empty_at(&self) -> Option<Time> {
        self.at.filter(|_| !self.unknown && !self.waiting)
    }
}

// === impl Memory ===

impl Memory {
    /// The age of the queue's oldest ready message; `None` when none is known to wait.
    #[must_use]
    pub fn age(&self, queue: &str, now: Time) -> Option<Age> {
        self.queues.get(queue)?.age(now)
    }

    /// What of a queue's memory is worth persisting.
    #[must_use]
    pub fn marks(&self, queue: &str) -> Option<QueueMarks> {
        self.queues.get(queue).map(|memory| memory.marks)
    }

    /// Since when all queues of the pool are known to be empty.
    #[must_use]
    pub fn empty_since(&self, pool: &str) -> Option<Time> {
        self.empty_since.get(pool).copied()
    }
}
