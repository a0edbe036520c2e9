//! What one scaler process remembers between looks.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    time::Duration,
};

use mayfly_broker::suspect_queue;

use super::{
    Age, Arrivals, Batch, Counts, Estimates, Fact, Observation, Phase, PoolState, QueueFacts, QueueMarks,
    ServiceTime, Why, Worker,
    age::{QueueMemory, WATCH_GAP},
    arrivals::{self, ArrivalMemory},
    attended::Attended,
    decide::Scene,
    saturation::{PaceMemory, Saturated},
    served::{Served, ServiceSource},
    surplus::Surplus,
};
use crate::{
    config::{Config, PoolConfig},
    time::Time,
};

/// The memory over all queues and pools. Only [`remember`] makes a new one.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Memory {
    queues: BTreeMap<String, QueueMemory>,
    arrivals: BTreeMap<String, ArrivalMemory>,
    /// By the queue that they are suspects of.
    suspects: BTreeMap<String, QueueMemory>,
    /// By pool: how long work takes, as far as the broker's counters tell.
    served: BTreeMap<String, Served>,
    /// By pool with an SLO: how many pending workers nothing needed, at least, since when.
    surplus: BTreeMap<String, Surplus>,
    /// By pool with a saturation guard: what it got done with how many workers.
    paces: BTreeMap<String, PaceMemory>,
    /// By pool: since when all its queues are known to be empty.
    empty_since: BTreeMap<String, Time>,
    attended: Attended,
    /// By queue that was out of reach: since when it is known again, if it is.
    back: BTreeMap<String, Option<Time>>,
}

/// One pool while its queues are folded in.
struct Pool<'a> {
    name: &'a str,
    observation: &'a Observation,
    /// When no worker of it was occupied, if that is so and known.
    workerless: Option<Time>,
    emptiness: Emptiness,
}

/// Folds an observation into the memory. Parts that were folded in before change nothing, so parts may be
/// of different age.
#[must_use]
pub fn remember(memory: Memory, observation: &Observation, config: &Config) -> Memory {
    let Memory {
        mut queues,
        mut arrivals,
        mut suspects,
        mut served,
        surplus,
        mut paces,
        mut empty_since,
        attended,
        mut back,
    } = memory;
    for (queue, fact) in &observation.queues {
        match fact {
            Fact::Unknown(unknown) if unknown.why == Why::Unreachable => {
                back.insert(queue.clone(), None);
            }
            Fact::Known { at, .. } => {
                back.entry(queue.clone()).and_modify(|back| *back = back.or(Some(*at)));
            }
            Fact::Unknown(_) => {}
        }
    }
    let attended = attended.observe(observation, config);
    for pool in &config.pools {
        if pool.saturation_guard {
            paces.entry(pool.name.clone()).or_default().observe(pool, observation);
        }
        let served = served.entry(pool.name.clone()).or_default();
        served.observe(pool, observation, config.counters.is_some());
        let service = |state: &PoolState| Some(served.or_reported(&state.estimates)?.0.seconds());
        arrivals::observe(&mut arrivals, pool, observation, service);
        let mut folding = Pool::of(&pool.name, observation);
        for queue in &pool.queues {
            let seen = observation.queues.get(queue);
            folding.counters(&mut queues, queue);
            folding.queue(&mut queues, queue, queue, seen);
            // Without the queue itself its suspects need nobody.
            if let Some(seen) = observation.suspects.get(queue).filter(|_| is_present(seen)) {
                folding.suspects(&mut suspects, queue, seen);
            }
        }
        match folding.emptiness.empty_at() {
            Some(at) => {
                empty_since.entry(pool.name.clone()).or_insert(at);
            }
            None => {
                empty_since.remove(&pool.name);
            }
        }
    }
    let memory = Memory { queues, arrivals, suspects, served, surplus, paces, empty_since, attended, back };
    let surplus = remember_surplus(&memory, observation, config);
    Memory { surplus, ..memory }
}

/// How many pending workers nothing needs, by pool with an SLO, and since when it was never fewer.
fn remember_surplus(
    memory: &Memory,
    observation: &Observation,
    config: &Config,
) -> BTreeMap<String, Surplus> {
    // Once for all pools: they go through all queues and all workers.
    let (latest, mut workers) = (observation.latest(), observation.workers_by_pool());
    let surplus_of = |pool: &PoolConfig| {
        let (slo, now) = (pool.slo.as_ref()?, latest?);
        let state = observation.state.known()?.pool(&pool.name);
        let own = workers.remove(&*pool.name).unwrap_or_default();
        let scene = Scene::of((pool, own), &state, memory, observation, config, now).ok()?;
        let surplus = Some(scene.surplus(slo)).filter(|surplus| *surplus > 0)?;
        let before = memory.surplus.get(&pool.name).cloned();
        Some((pool.name.clone(), Surplus::observe(before, surplus, pool.withdraw_after, now)))
    };
    config.pools.iter().filter_map(surplus_of).collect()
}

fn is_present(seen: Option<&Fact<QueueFacts>>) -> bool {
    matches!(seen, Some(Fact::Known { value: QueueFacts::Present { .. }, .. }))
}

// === impl Pool ===

impl<'a> Pool<'a> {
    fn of(name: &'a str, observation: &'a Observation) -> Self {
        let workerless = match &observation.workers {
            Fact::Known { value: workers, at }
                if Counts::of(name, workers, &PoolState::default()).occupied() == 0 =>
            {
                Some(*at)
            }
            _ => None,
        };
        Self { name, observation, workerless, emptiness: Emptiness::default() }
    }

    /// Folds in one look at a queue, remembered under `key` and persisted under `name`.
    fn queue(
        &mut self,
        memories: &mut BTreeMap<String, QueueMemory>,
        key: &str,
        name: &str,
        seen: Option<&Fact<QueueFacts>>,
    ) {
        let Some(Fact::Known { value: facts, at }) = seen else {
            self.emptiness.unknown = true;
            return;
        };
        self.emptiness.fold(*facts, *at);
        let remembered = match memories.entry(key.to_owned()) {
            Entry::Occupied(known) => known.into_mut(),
            // A queue's memory begins with what was persisted, so not before that was read.
            Entry::Vacant(new) => match resumed(self.observation, self.name, name, *facts, *at) {
                Some(memory) => new.insert(memory),
                None => return,
            },
        };
        remembered.observe(*facts, *at);
        if let Some(at) = self.workerless {
            remembered.observe_no_workers(at);
        }
    }

    /// Folds in what the broker counts. It was asked for before the last look at the queue, or after it.
    fn counters(&self, memories: &mut BTreeMap<String, QueueMemory>, queue: &str) {
        if let Some(Fact::Known { value, at }) = self.observation.counters.get(queue)
            && let Some(remembered) = memories.get_mut(queue)
        {
            remembered.observe_counters(value, *at);
        }
    }

    /// Folds in one look at the suspects of `queue`. A worker takes one and puts it back at the tail without
    /// being seen as a consumer of them, so while any may live their wait proves no age.
    fn suspects(
        &mut self,
        memories: &mut BTreeMap<String, QueueMemory>,
        queue: &str,
        seen: &Fact<QueueFacts>,
    ) {
        let mut seen = seen.clone();
        if let Fact::Known { value: QueueFacts::Present { consumers, .. }, .. } = &mut seen
            && self.workerless.is_none()
        {
            *consumers = (*consumers).max(1);
        }
        self.queue(memories, queue, &suspect_queue(queue), Some(&seen));
    }
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
    /// What of it concerns the queues and pools of `config`.
    #[must_use]
    pub fn of(mut self, config: &Config) -> Self {
        let queues: BTreeSet<_> = config.pools.iter().flat_map(|pool| &pool.queues).collect();
        let Self { queues: ages, arrivals, suspects, served, surplus, paces, empty_since, attended: _, back } =
            &mut self;
        back.retain(|queue, _| queues.contains(queue));
        ages.retain(|queue, _| queues.contains(queue));
        arrivals.retain(|queue, _| queues.contains(queue));
        suspects.retain(|queue, _| queues.contains(queue));
        served.retain(|pool, _| config.pool(pool).is_some());
        surplus.retain(|pool, _| config.pool(pool).is_some());
        paces.retain(|pool, _| config.pool(pool).is_some_and(|pool| pool.saturation_guard));
        empty_since.retain(|pool, _| config.pool(pool).is_some());
        self
    }

    /// The workers as they count: where a pool goes by consumers, one without is not ready yet, whatever its
    /// launcher lists.
    #[must_use]
    pub fn counted(&self, workers: Fact<Vec<Worker>>) -> Fact<Vec<Worker>> {
        match workers {
            Fact::Known { value, at } => Fact::Known { value: self.attended.counted(value), at },
            unknown @ Fact::Unknown(_) => unknown,
        }
    }

    /// The age of the queue's oldest ready message; `None` when none is known to wait.
    #[must_use]
    pub fn age(&self, queue: &str, now: Time) -> Option<Age> {
        self.queues.get(queue)?.age(now)
    }

    /// The age of the oldest suspect of the queue; `None` when none is known to wait.
    #[must_use]
    pub fn suspects_age(&self, queue: &str, now: Time) -> Option<Age> {
        self.suspects.get(queue)?.age(now)
    }

    /// What of the memory of a pool's queues is worth persisting, by the names of the queues: the suspects'
    /// own one is that of their queue.
    pub fn marks<'a>(&'a self, pool: &'a PoolConfig) -> impl Iterator<Item = (String, QueueMarks)> + 'a {
        let queues = pool.queues.iter().filter_map(|queue| Some((queue.clone(), self.queues.get(queue)?)));
        let suspects =
            pool.queues.iter().filter_map(|queue| Some((suspect_queue(queue), self.suspects.get(queue)?)));
        queues.chain(suspects).map(|(name, memory)| (name, memory.marks))
    }

    /// How fast messages arrive in the queue; `None` before it was looked at.
    #[must_use]
    pub fn arrivals(&self, queue: &str) -> Option<Arrivals> {
        self.arrivals.get(queue).map(|memory| memory.rates)
    }

    /// Whether that comes from the broker's counters, not from changes of the depth.
    #[must_use]
    pub fn arrivals_are_counted(&self, queue: &str) -> bool {
        self.arrivals.get(queue).is_some_and(ArrivalMemory::is_counted)
    }

    /// How long a message takes in this pool, and what tells it: the broker's counters if they do, else what was
    /// learned from the reports of ended workers.
    #[must_use]
    pub fn service_time(&self, pool: &str, estimates: &Estimates) -> Option<(ServiceTime, ServiceSource)> {
        match self.served.get(pool) {
            Some(served) => served.or_reported(estimates),
            None => Served::default().or_reported(estimates),
        }
    }

    /// What waits in the queue, the oldest first: how many messages, and how old they are in seconds; `ready`
    /// in all. No age is beyond what is known of the oldest.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "an estimate, not an account")]
    pub(super) fn waiting(&self, queue: &str, ready: u64, now: Time) -> Vec<(f64, f64)> {
        let most = self.age(queue, now).and_then(|age| age.at_most).unwrap_or(Duration::MAX);
        let age = |batch: &Batch| now.since(batch.since).min(most).as_secs_f64();
        match self.arrivals.get(queue).map(|memory| memory.waiting.batches()) {
            Some(batches) if !batches.is_empty() => {
                batches.iter().map(|batch| (batch.count, age(batch))).collect()
            }
            _ if ready == 0 => Vec::new(),
            _ => vec![(ready as f64, self.age(queue, now).map_or(0.0, |age| age.estimate.as_secs_f64()))],
        }
    }

    /// What of the service time is worth persisting: what counters told.
    #[must_use]
    pub fn counted_service_time(&self, pool: &str) -> Option<ServiceTime> {
        self.served.get(pool)?.counted()
    }

    /// Whether something waits whose age is worth persisting from time to time.
    #[must_use]
    pub fn ages(&self, queue: &str) -> bool {
        self.arrivals.get(queue).is_some_and(|memory| !memory.waiting.batches().is_empty())
    }

    /// Puts what was learned of the pool's queues into its estimates.
    pub fn keep(&self, pool: &PoolConfig, estimates: &mut Estimates) {
        estimates.queues.extend(self.marks(pool));
        estimates.counted_service_time =
            self.counted_service_time(&pool.name).or(estimates.counted_service_time);
        for queue in &pool.queues {
            let Some(memory) = self.arrivals.get(queue) else { continue };
            estimates.arrivals.insert(queue.clone(), memory.rates);
            if memory.waiting.batches().is_empty() {
                estimates.waiting.remove(queue);
            } else {
                estimates.waiting.insert(queue.clone(), memory.waiting.persisted());
            }
        }
    }

    /// How many pending workers of a pool with an SLO nothing needs, if there are any.
    pub(super) fn surplus(&self, pool: &str) -> Option<&Surplus> {
        self.surplus.get(pool)
    }

    /// Whether the last two of a pool's ready `workers` brought nothing but slower work.
    pub(super) fn saturated(&self, pool: &str, workers: u32, now: Time) -> Option<Saturated> {
        self.paces.get(pool)?.saturated(workers, now)
    }

    /// Since when a queue that was out of reach is known again.
    pub(super) fn back_since(&self, queue: &str) -> Option<Time> {
        self.back.get(queue).copied().flatten()
    }

    /// Since when all queues of the pool are known to be empty.
    #[must_use]
    pub fn empty_since(&self, pool: &str) -> Option<Time> {
        self.empty_since.get(pool).copied()
    }
}
