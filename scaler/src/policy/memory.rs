//! What one scaler process remembers between looks.

use std::collections::{BTreeMap, btree_map::Entry};

use super::{
    Age, Arrivals, Counts, Fact, Observation, Phase, PoolState, QueueFacts, QueueMarks,
    age::{QueueMemory, WATCH_GAP},
    arrivals::{self, ArrivalMemory},
};
use crate::{config::Config, time::Time};

/// The memory over all queues and pools. Only [`remember`] makes a new one.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Memory {
    queues: BTreeMap<String, QueueMemory>,
    arrivals: BTreeMap<String, ArrivalMemory>,
    /// By pool: since when all its queues are known to be empty.
    empty_since: BTreeMap<String, Time>,
}

/// Folds an observation into the memory. Parts that were folded in before change nothing, so parts may be
/// of different age.
#[must_use]
pub fn remember(memory: Memory, observation: &Observation, config: &Config) -> Memory {
    let Memory { mut queues, mut arrivals, mut empty_since } = memory;
    for pool in &config.pools {
        arrivals::observe(&mut arrivals, pool, observation);
        let mut emptiness = Emptiness::default();
        for queue in &pool.queues {
            let seen = observation.queues.get(queue);
            match seen {
                Some(Fact::Known { value, at }) => emptiness.fold(*value, *at),
                _ => emptiness.unknown = true,
            }
            let Some(Fact::Known { value: facts, at }) = seen else { continue };
            let remembered = match queues.entry(queue.clone()) {
                Entry::Occupied(known) => known.into_mut(),
                // A queue's memory begins with what was persisted, so not before that was read.
                Entry::Vacant(new) => match resumed(observation, &pool.name, queue, *facts, *at) {
                    Some(memory) => new.insert(memory),
                    None => continue,
                },
            };
            remembered.observe(*facts, *at);
            if let Fact::Known { value: workers, at } = &observation.workers
                && Counts::of(&pool.name, workers, &PoolState::default()).occupied() == 0
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
    Memory { queues, arrivals, empty_since }
}

/// What a new process that looked at `looked` may believe of a queue; `None` while state or workers are
/// unknown.
fn resumed(
    observation: &Observation,
    pool: &str,
    queue: &str,
    facts: QueueFacts,
    looked: Time,
) -> Option<QueueMemory> {
    let state = observation.state.known()?.pool(pool);
    let Fact::Known { value: workers, at: listed } = &observation.workers else { return None };
    let mut marks = state.estimates.queues.get(queue).copied().unwrap_or_default();
    // While nobody looked, a consumer may have taken the message that the wait is counted from. Ended workers
    // are listed for some minutes, in which marks are written several times.
    let attended = matches!(facts, QueueFacts::Present { consumers, .. } if consumers > 0)
        || !state.intents.is_empty()
        || looked.since(*listed) > WATCH_GAP;
    let undisturbed = |since: &Time| {
        !attended
            && state.last_launch().is_none_or(|last| last < *since)
            && workers
                .iter()
                .filter(|worker| worker.pool == pool)
                .all(|worker| matches!(&worker.phase, Phase::Finished(ending) if ending.at < *since))
    };
    marks.turned = marks.turned.filter(undisturbed);
    Some(QueueMemory::resumed(marks))
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

    /// How fast messages arrive in the queue; `None` before it was looked at.
    #[must_use]
    pub fn arrivals(&self, queue: &str) -> Option<Arrivals> {
        self.arrivals.get(queue).map(|memory| memory.rates)
    }

    /// Since when all queues of the pool are known to be empty.
    #[must_use]
    pub fn empty_since(&self, pool: &str) -> Option<Time> {
        self.empty_since.get(pool).copied()
    }
}
