//! Workers of images that cannot say themselves when they are ready: as many of them are as the pool's queue has
//! consumers. Pure.

use std::collections::{BTreeMap, BTreeSet};

use super::{Fact, Observation, PendingCause, Phase, QueueFacts, Worker};
use crate::{
    config::{Config, PoolConfig, ReadyBy},
    time::Time,
};

/// By pool that goes by consumers: its workers that were counted as ready. Once ready a worker stays so.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Attended(BTreeMap<String, BTreeSet<String>>);

// === impl Attended ===

impl Attended {
    /// Folds in one look.
    pub(super) fn observe(mut self, observation: &Observation, config: &Config) -> Self {
        self.0.retain(|pool, _| config.pool(pool).is_some_and(goes_by_consumers));
        let Fact::Known { value: workers, at: listed } = &observation.workers else { return self };
        for pool in config.pools.iter().filter(|pool| goes_by_consumers(pool)) {
            let ready = self.0.entry(pool.name.clone()).or_default();
            let own = || workers.iter().filter(|worker| worker.pool == pool.name);
            let lives =
                |name: &str| own().any(|one| one.name == name && !matches!(one.phase, Phase::Finished(_)));
            ready.retain(|name| lives(name));
            let Some(consumers) = consumers(pool, observation, *listed) else { continue };
            let mut running: Vec<_> = own()
                .filter_map(|worker| match worker.phase {
                    Phase::Ready { since } if !ready.contains(&worker.name) => {
                        Some((since, worker.serial, &worker.name))
                    }
                    _ => None,
                })
                .collect();
            running.sort();
            // Who was ready before, and still lives, has its consumer.
            let more = usize::try_from(consumers).unwrap_or(usize::MAX).saturating_sub(ready.len());
            ready.extend(running.into_iter().take(more).map(|(.., name)| name.clone()));
        }
        self
    }

    /// The workers, those that run without a consumer as not ready yet.
    pub(super) fn counted(&self, mut workers: Vec<Worker>) -> Vec<Worker> {
        for worker in &mut workers {
            let Some(ready) = self.0.get(&worker.pool) else { continue };
            if let Phase::Ready { since } = worker.phase
                && !ready.contains(&worker.name)
            {
                let cause = PendingCause::NoConsumer;
                worker.phase = Phase::Pending { started: true, cause, since, detail: None };
            }
        }
        workers
    }
}

fn goes_by_consumers(pool: &PoolConfig) -> bool {
    pool.ready_by == ReadyBy::Consumers
}

/// How many workers of the pool have a consumer, if that was looked at since the workers were listed: before, it
/// may be the consumer of one that has ended since. A worker may take from all queues of its pool, so that with
/// the most of them counts.
fn consumers(pool: &PoolConfig, observation: &Observation, listed: Time) -> Option<u64> {
    let of_queue = |queue: &String| match observation.queues.get(queue)? {
        Fact::Known { value: QueueFacts::Present { consumers, .. }, at } if *at >= listed => Some(*consumers),
        _ => None,
    };
    pool.queues.iter().filter_map(of_queue).max()
}
