//! What is seen of the broker: how many messages wait, and what it counts.

pub(crate) mod counters;
mod lane;
mod probe;
mod queues;

use std::{collections::BTreeMap, time::Duration};

use crate::{
    policy::{Counters, Fact, Observation, QueueFacts, StateRecord, Unknown, Worker},
    time::Time,
};

pub use counters::CounterWatch;
pub use queues::QueueWatch;
pub(crate) use queues::{most_refused, too_few_channels};

/// What is known of each queue.
type FactsByName = BTreeMap<String, Fact<QueueFacts>>;

/// What is seen of the broker, by queue.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sight {
    /// Every configured queue.
    pub queues: FactsByName,
    /// Of every configured queue Q what waits in `Q.suspect`.
    pub suspects: FactsByName,
    /// What the broker counts.
    pub counters: BTreeMap<String, Fact<Counters>>,
}

/// What is told of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// What waits in it.
    Queue,
    /// What waits in its `Q.suspect`.
    Suspects,
}

// === impl Sight ===

impl Sight {
    /// Before the first look at `queues`.
    fn unseen(queues: impl IntoIterator<Item = String>, since: Time) -> Self {
        let unseen = Fact::Unknown(Unknown::not_yet_seen(since));
        let queues: FactsByName = queues.into_iter().map(|queue| (queue, unseen.clone())).collect();
        Self { suspects: queues.clone(), queues, counters: BTreeMap::new() }
    }

    /// With what is known of the fleet it is one look at the world.
    #[must_use]
    pub fn observation(self, workers: Fact<Vec<Worker>>, state: Fact<StateRecord>) -> Observation {
        let Self { queues, suspects, counters } = self;
        Observation { queues, suspects, counters, workers, state, missing_templates: BTreeMap::new() }
    }

    fn part(&mut self, part: Part) -> &mut FactsByName {
        match part {
            Part::Queue => &mut self.queues,
            Part::Suspects => &mut self.suspects,
        }
    }
}

/// Spreads an interval by ±10 %, so that replicas don't look in step.
#[derive(Debug, Default)]
pub struct Jitter(std::hash::RandomState, u64);

// === impl Jitter ===

impl Jitter {
    /// `interval` ± 10 %.
    pub fn spread(&mut self, interval: Duration) -> Duration {
        use std::hash::BuildHasher;
        self.1 += 1;
        // A keyed hash of a counter: random enough to be out of step, without a generator of random numbers.
        let part = u32::try_from(self.0.hash_one(self.1) % 2001).unwrap_or(1000);
        interval.mul_f64(0.9 + f64::from(part) / 10_000.0)
    }
}
