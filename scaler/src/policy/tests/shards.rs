//! Eight pools of five promises each under one quota, in virtual time; one of them is noisy.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use super::{super::*, scene::*};
use crate::{
    config::{Config, PoolConfig, SloConfig, Start},
    time::Time,
};

const POOLS: usize = 8;
/// How long a run lasts, in seconds.
const PLAYED: u64 = 2400;
/// The promises of each pool, served in this order, in seconds: each can be missed several times over in a run.
const SLOS: [u64; 5] = [60, 120, 240, 480, 800];
const QUOTA: u32 = 24;
/// From a launch to a ready worker, and an idle worker's time.
const LEAD: u64 = 8;
const IDLE: u64 = 20;
const NOISY: &str = "p0";

/// A worker as it truly is, in seconds.
struct Truth {
    pool: String,
    serial: u64,
    slot: u32,
    launched: u64,
    busy_until: u64,
    idle_since: u64,
}

/// The fleet, second by second. A message takes a second.
struct Shards {
    now: u64,
    config: Config,
    record: StateRecord,
    memory: Memory,
    workers: Vec<Truth>,
    /// By queue, when each message came.
    waiting: BTreeMap<String, VecDeque<u64>>,
    /// By pool and class: messages that began, and those of them that began too late.
    begun: BTreeMap<String, [(u64, u64); 5]>,
    /// A generator of numbers that look random (Numerical Recipes' constants).
    seed: u32,
}

fn time(second: u64) -> Time {
    NOW + Duration::from_secs(second)
}

// === impl Shards ===

impl Shards {
    fn new(most: u32) -> Self {
        let targets = SLOS.map(seconds).to_vec();
        let pools = (0..POOLS).map(|number| PoolConfig {
            queues: (0..SLOS.len()).map(|class| format!("q{number}-{class}")).collect(),
            slo: Some(SloConfig {
                targets: targets.clone(),
                pods_per_node: None,
                max_pending: None,
                start: Start::Immediate,
            }),
            max_workers: Some(if number == 0 { most } else { QUOTA }),
            ..pool(&format!("p{number}"))
        });
        let config = Config { quota: Some(QUOTA), ..config(pools.collect()) };
        let mut record = StateRecord::new(NOW);
        let mut waiting = BTreeMap::new();
        for pool in &config.pools {
            record.pool_mut(&pool.name).estimates = Estimates {
                service_time: Some(ServiceTime { mean_ms: 1000.0, weight: 200.0, recent_ms: None }),
                lead_times_ms: vec![LEAD * 1000; 20],
                cold_lead_times_ms: vec![LEAD * 1000; 20],
                ..Estimates::default()
            };
            waiting.extend(pool.queues.iter().map(|queue| (queue.clone(), VecDeque::new())));
        }
        let begun = config.pools.iter().map(|pool| (pool.name.clone(), [(0, 0); 5])).collect();
        Self {
            now: 0,
            config,
            record,
            memory: Memory::default(),
            workers: Vec::new(),
            waiting,
            begun,
            seed: 1,
        }
    }

    /// `per_mille` messages in a thousand seconds come to the queue, one a second at most.
    fn trickle(&mut self, queue: &str, per_mille: u32) {
        self.seed = self.seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        if (self.seed >> 8) % 1000 < per_mille {
            self.publish(queue, 1);
        }
    }

    fn publish(&mut self, queue: &str, count: usize) {
        self.waiting.get_mut(queue).unwrap().extend(std::iter::repeat_n(self.now, count));
    }

    fn step(&mut self) {
        self.now += 1;
        let Self { now, config, waiting, begun, workers, .. } = self;
        for worker in workers.iter_mut().filter(|worker| worker.launched + LEAD <= *now) {
            if worker.busy_until > *now {
                continue;
            }
            let pool = config.pool(&worker.pool).unwrap();
            let next = pool.queues.iter().enumerate().find_map(|(class, queue)| {
                waiting.get_mut(queue)?.pop_front().map(|came| (class, *now - came))
            });
            if let Some((class, age)) = next {
                let (all, late) = &mut begun.get_mut(&worker.pool).unwrap()[class];
                *all += 1;
                *late += u64::from(age > SLOS[class]);
                worker.busy_until = *now + 1;
                worker.idle_since = worker.busy_until;
            }
        }
        self.workers.retain(|worker| worker.idle_since.max(worker.launched + LEAD) + IDLE > self.now);
        self.scale();
    }

    fn scale(&mut self) {
        let at = time(self.now);
        let queues = self.waiting.iter().map(|(queue, messages)| {
            let facts = waiting(u64::try_from(messages.len()).unwrap());
            (queue.clone(), Fact::Known { value: facts, at })
        });
        let observation = Observation {
            missing_templates: BTreeMap::new(),
            queues: queues.collect(),
            suspects: BTreeMap::new(),
            counters: BTreeMap::new(),
            workers: Fact::Known { value: self.listed(), at },
            state: Fact::Known { value: self.record.clone(), at },
        };
        self.memory = remember(std::mem::take(&mut self.memory), &observation, &self.config);
        let decisions = decide(&self.memory, &observation, &self.config, at);
        for (pool, decision) in share(decisions, &observation, &self.config) {
            match decision {
                Decision::Launch(Launch { slots, .. }) => {
                    for slot in slots {
                        let state = self.record.pool_mut(&pool);
                        let (serial, launched) = (state.next_serial, self.now);
                        state.next_serial += 1;
                        state.last_settled_launch = Some(at);
                        let pool = pool.clone();
                        self.workers.push(Truth {
                            pool,
                            serial,
                            slot,
                            launched,
                            busy_until: 0,
                            idle_since: 0,
                        });
                    }
                }
                Decision::Withdraw(Withdraw { workers, .. }) => {
                    self.workers.retain(|worker| !workers.contains(&worker.name()));
                }
                Decision::Hold(_) => {}
            }
        }
    }

    fn listed(&self) -> Vec<Worker> {
        let listed = |worker: &Truth| {
            let ready = worker.launched + LEAD;
            let launched = time(worker.launched);
            let phase = if ready <= self.now {
                Phase::Ready { since: time(ready) }
            } else {
                pending(false, PendingCause::Starting, launched)
            };
            Worker {
                name: worker.name(),
                pool: worker.pool.clone(),
                serial: Some(worker.serial),
                slot: Some(worker.slot),
                launched,
                reason: None,
                node: None,
                cold: false,
                generation: None,
                phase,
            }
        };
        self.workers.iter().map(listed).collect()
    }
}

impl Truth {
    fn name(&self) -> String {
        format!("{}-{}", self.pool, self.serial)
    }
}

/// Forty minutes, in which the first pool may have at most `most` workers and gets more than all of them could do
/// from second `noise_from` on; the others get `first` messages at once, then `rates` (by class, in a thousand
/// seconds), and now and then `urgent` messages in one go.
fn played(most: u32, noise_from: u64, first: usize, rates: [u32; 5], urgent: usize) -> Shards {
    let mut shards = Shards::new(most);
    for number in 1..POOLS {
        shards.publish(&format!("q{number}-0"), first);
    }
    for second in 0..PLAYED {
        for number in 1..POOLS {
            for (class, per_mille) in rates.into_iter().enumerate() {
                shards.trickle(&format!("q{number}-{class}"), per_mille);
            }
            // One pool after the other.
            if second % 280 == 40 * u64::try_from(number).unwrap() - 40 {
                shards.publish(&format!("q{number}-0"), urgent);
            }
        }
        if second >= noise_from {
            shards.publish("q0-0", 50);
        }
        shards.step();
        assert!(shards.workers.len() <= 24, "{} workers in second {second}", shards.workers.len());
    }
    let (begun, late) = shards.begun[NOISY][0];
    assert!(late * 10 > begun * 8, "the noise was none: {late} of {begun} late");
    shards
}

// === impl Shards ===

impl Shards {
    /// Whatever began did so in time, and what still waits is not late yet.
    fn assert_nobody_else_was_late(&self) {
        for (pool, classes) in self.begun.iter().filter(|(pool, _)| *pool != NOISY) {
            let queues = &self.config.pool(pool).unwrap().queues;
            for ((queue, (begun, late)), slo) in queues.iter().zip(classes).zip(SLOS) {
                assert!(*begun > 150, "{queue}: {begun} begun");
                assert_eq!(*late, 0, "{queue}: {late} of {begun} late");
                let overdue = self.waiting[queue].iter().filter(|came| self.now - **came > slo).count();
                assert_eq!(overdue, 0, "{queue}: {overdue} wait for longer than {slo} s");
            }
        }
    }
}

#[test]
fn a_noisy_pool_within_its_own_limit_makes_no_other_pool_miss_its_promises() {
    // Three times its part. Nobody is ended for another pool's sake: this limits what is lent to one that is never
    // idle, so that there is room when another one needs more than it has.
    played(10, 120, 0, [400, 300, 200, 100, 100], 60).assert_nobody_else_was_late();
}

#[test]
fn from_zero_a_noisy_pool_gets_no_more_than_the_others_leave_of_their_parts() {
    // All need their whole part at once, and go on to need it.
    played(QUOTA, 0, 120, [800, 700, 500, 400, 200], 0).assert_nobody_else_was_late();
}
