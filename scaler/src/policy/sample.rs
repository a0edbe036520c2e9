//! A fleet as it is on an ordinary day, for measuring what a decision costs.

use std::{collections::BTreeMap, time::Duration};

use super::{
    Decision, Estimates, Fact, Memory, Observation, PendingCause, Phase, QueueFacts, ServiceTime,
    StateRecord, Worker, decide, remember,
};
use crate::{
    config::{Config, PoolConfig, SloConfig, Start, WorkerTemplate},
    time::Time,
};

/// Looks that a sample remembers.
const LOOKS: u64 = 100;
/// Workers of each pool; the last one is pending.
const WORKERS: u32 = 4;

/// Everything that one decision over all pools rests on.
#[derive(Debug)]
pub struct Sample {
    config: Config,
    memory: Memory,
    observation: Observation,
    now: Time,
}

// === impl Sample ===

impl Sample {
    /// `pools` pools of one queue each, with about `waiting` messages, workers that work and one that is pending;
    /// with an SLO or without.
    #[must_use]
    pub fn new(pools: u32, waiting: u64, slo: bool) -> Self {
        let mut now = Time::from_millis(1_800_000_000_000);
        let slo = slo.then(|| SloConfig {
            targets: vec![Duration::from_mins(5)],
            pods_per_node: Some(4),
            max_pending: None,
            start: Start::Immediate,
        });
        let mut config = Config::with_pools(Vec::new());
        let mut record = StateRecord::new(now);
        let mut workers = Vec::new();
        for number in 0..pools {
            let name = format!("p{number}");
            let template = WorkerTemplate::CronJob(name.clone());
            config
                .pools
                .push(PoolConfig { slo: slo.clone(), ..PoolConfig::with_defaults(&name, &name, template) });
            let time = ServiceTime { mean_ms: 1000.0, weight: 200.0, recent_ms: Some(1100.0) };
            record.pool_mut(&name).estimates = Estimates {
                service_time: Some(time),
                lead_times_ms: (0..20).map(|n| 8000 + n * 100).collect(),
                cold_lead_times_ms: (0..20).map(|n| 90_000 + n * 1000).collect(),
                ..Estimates::default()
            };
            workers.extend((0..WORKERS).map(|slot| Worker {
                name: format!("{name}-{slot}"),
                pool: name.clone(),
                serial: Some(u64::from(slot) + 1),
                slot: Some(slot),
                launched: now,
                reason: None,
                node: Some(format!("node-{}", slot / 2)),
                cold: slot % 2 == 0,
                generation: None,
                phase: if slot + 1 < WORKERS {
                    Phase::Ready { since: now }
                } else {
                    let cause = PendingCause::Pulling;
                    Phase::Pending { started: false, cause, since: now, detail: None }
                },
            }));
        }
        let mut memory = Memory::default();
        let mut observation = Observation {
            missing_templates: BTreeMap::new(),
            queues: BTreeMap::new(),
            suspects: BTreeMap::new(),
            counters: BTreeMap::new(),
            workers: Fact::Known { value: workers, at: now },
            state: Fact::Known { value: record, at: now },
        };
        for look in 0..LOOKS {
            now = now + config.check_interval;
            let facts = QueueFacts::Present { ready: waiting + look * 37 % 100, consumers: 3 };
            for pool in &config.pools {
                observation.queues.insert(pool.name.clone(), Fact::Known { value: facts, at: now });
            }
            memory = remember(memory, &observation, &config);
        }
        Self { config, memory, observation, now }
    }

    /// Decides once for every pool.
    #[must_use]
    pub fn decide(&self) -> BTreeMap<String, Decision> {
        decide(&self.memory, &self.observation, &self.config, self.now)
    }

    /// Remembers the present look once more, as a tick does before it decides.
    pub fn remember(&mut self) {
        self.memory = remember(std::mem::take(&mut self.memory), &self.observation, &self.config);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_decides_for_every_pool_and_has_more_to_weigh_than_that_nothing_waits() {
        for (waiting, slo, expected) in
            [(200, false, "WaitingForPending"), (200, true, "OnTime"), (2_000, true, "DeadlineAtRisk")]
        {
            let mut sample = Sample::new(3, waiting, slo);
            sample.remember();
            let decisions = sample.decide();
            assert_eq!(decisions.values().map(Decision::as_str).collect::<Vec<_>>(), [expected; 3]);
        }
    }
}
