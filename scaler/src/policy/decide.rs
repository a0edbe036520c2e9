//! What to do about a pool: the classic policy (facts/scaling §3.2).

use std::{collections::BTreeMap, time::Duration};

use super::{
    Action, Decision, Hold, Intent, Launch, LaunchReason, Memory, MissingTemplate, Observation, PendingCause,
    Phase, PoolState, UnknownWhat, Withdraw, Worker, need::Need, saturation::Saturated,
};
use crate::{
    config::{Config, Limits, PoolConfig},
    time::Time,
};

/// A first decision accepts workers and state up to this old, so that an idle cadence does not slow a cold
/// start; a launch needs a fresh listing on top.
pub const LISTING_STALE_AFTER: Duration = Duration::from_secs(30);
/// Lead time where none was ever measured.
const LEAD_PRIOR: Duration = Duration::from_mins(2);

/// How many workers of a pool are in which state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Counts {
    /// Never been ready, not finished; intents included.
    pub pending: u32,
    /// Ready.
    pub ready: u32,
    /// End themselves, or were given up and are being removed.
    pub draining: u32,
    /// On a lost node.
    pub lost: u32,
}

/// One pool, all that a decision looks at.
pub(super) struct Scene<'a> {
    pub(super) pool: &'a PoolConfig,
    /// The limits that hold now.
    pub(super) limits: Limits,
    pub(super) state: &'a PoolState,
    pub(super) memory: &'a Memory,
    /// The pool's workers.
    pub(super) workers: Vec<&'a Worker>,
    /// All pools' workers.
    pub(super) everybody: &'a [Worker],
    pub(super) counts: Counts,
    pub(super) need: Need,
    /// Its worker template, where that is missing.
    pub(super) missing_template: Option<&'a MissingTemplate>,
    pub(super) now: Time,
}

/// Decides for every configured pool, without regard to the quota.
#[must_use]
pub fn decide(
    memory: &Memory,
    observation: &Observation,
    config: &Config,
    now: Time,
) -> BTreeMap<String, Decision> {
    let mut workers = observation.workers_by_pool();
    config
        .pools
        .iter()
        .map(|pool| {
            let state = observation.state.known().map(|record| record.pool(&pool.name)).unwrap_or_default();
            let own = workers.remove(&*pool.name).unwrap_or_default();
            (pool.name.clone(), decision(memory, observation, config, (pool, own), &state, now))
        })
        .collect()
}

/// Decides for one pool as if its state were `state`.
#[must_use]
pub fn decide_pool(
    memory: &Memory,
    observation: &Observation,
    config: &Config,
    pool: &PoolConfig,
    state: &PoolState,
    now: Time,
) -> Decision {
    decision(memory, observation, config, (pool, observation.workers_of(&pool.name)), state, now)
}

fn decision(
    memory: &Memory,
    observation: &Observation,
    config: &Config,
    (pool, own): (&PoolConfig, Vec<&Worker>),
    state: &PoolState,
    now: Time,
) -> Decision {
    let scene = match Scene::of((pool, own), state, memory, observation, config, now) {
        Ok(scene) => scene,
        Err(hold) => return Decision::Hold(hold),
    };
    let everything = observation.state.known().is_some_and(|record| record.paused);
    if everything || state.paused {
        return Decision::Hold(Hold::Paused { everything });
    }
    if let Some(withdraw) = scene.withdraw() {
        return Decision::Withdraw(withdraw);
    }
    match scene.launch() {
        Ok(launch) => Decision::Launch(launch),
        Err(hold) => Decision::Hold(hold),
    }
}

// === impl Counts ===

impl Counts {
    /// Counts the pool's workers, and those intents that are not seen as Jobs.
    #[must_use]
    pub fn of<'a>(
        pool: &str,
        workers: impl IntoIterator<Item = &'a Worker, IntoIter: Clone>,
        state: &PoolState,
    ) -> Self {
        let mut counts = Self::default();
        let own = workers.into_iter().filter(|worker| worker.pool == pool);
        for worker in own.clone() {
            match worker.phase {
                Phase::Pending { .. } if state.has_given_up(worker) => counts.draining += 1,
                Phase::Pending { .. } => counts.pending += 1,
                Phase::Ready { .. } => counts.ready += 1,
                Phase::Draining => counts.draining += 1,
                Phase::Lost => counts.lost += 1,
                Phase::Finished(_) => {}
            }
        }
        for intent in &state.intents {
            let seen = own.clone().any(|worker| worker.serial == Some(intent.serial));
            counts.pending += u32::from(!seen);
        }
        counts
    }

    /// Workers that serve the queue now or soon.
    #[must_use]
    pub const fn useful(&self) -> u32 {
        self.pending + self.ready
    }

    /// Workers that take a place.
    #[must_use]
    pub const fn occupied(&self) -> u32 {
        self.useful() + self.draining + self.lost
    }
}

// === impl Scene ===

impl<'a> Scene<'a> {
    /// The pool as observed with its `own` workers, with its state as `state`; unknown while workers or state are.
    pub(super) fn of(
        (pool, own): (&'a PoolConfig, Vec<&'a Worker>),
        state: &'a PoolState,
        memory: &'a Memory,
        observation: &'a Observation,
        config: &Config,
        now: Time,
    ) -> Result<Self, Hold> {
        let unknown = |what| move |unknown| Hold::Unknown { what, unknown };
        observation.state.fresh(now, LISTING_STALE_AFTER).map_err(unknown(UnknownWhat::State))?;
        let workers =
            observation.workers.fresh(now, LISTING_STALE_AFTER).map_err(unknown(UnknownWhat::Workers))?;
        Ok(Scene {
            pool,
            limits: pool.limits(now),
            state,
            memory,
            counts: Counts::of(&pool.name, own.iter().copied(), state),
            workers: own,
            everybody: workers,
            need: Need::of(pool, memory, observation, config, now),
            missing_template: observation.missing_templates.get(&pool.name),
            now,
        })
    }
}

impl Scene<'_> {
    /// Workers that have not started, though nothing needed them for `withdraw_after`.
    fn withdraw(&self) -> Option<Withdraw> {
        // A queue that is not known now may hold messages: its last emptiness proves nothing.
        if self.need.unknown.is_some() {
            return None;
        }
        let (surplus, since) = match &self.pool.slo {
            Some(slo) => {
                let known = self.memory.surplus(&self.pool.name)?;
                (known.least().min(self.surplus(slo)), known.since())
            }
            None if self.need.ready > 0 => return None,
            None => (u32::MAX, self.memory.empty_since(&self.pool.name)?),
        };
        // Somebody else may have launched a worker for a message that we never saw.
        let unneeded_for = |worker: &Worker| self.now.since(since.max(worker.launched));
        let mut unneeded = self.withdrawable();
        unneeded.retain(|worker| unneeded_for(worker) >= self.pool.withdraw_after);
        unneeded.truncate(usize::try_from(surplus).unwrap_or(usize::MAX));
        let newest = unneeded_for(unneeded.first()?);
        Some(Withdraw {
            workers: unneeded.into_iter().map(|worker| worker.name.clone()).collect(),
            unneeded_for: newest,
        })
    }

    /// Workers that may be taken back: those that have not started, above the minimum. First those without a
    /// node, which it would have to come for; then the newest.
    pub(super) fn withdrawable(&self) -> Vec<&Worker> {
        let mut unstarted: Vec<_> = self
            .workers
            .iter()
            .copied()
            .filter(|worker| {
                worker.serial.is_some()
                    && worker.is_removable(self.now)
                    && !worker.is_initializing()
                    && !self.state.has_given_up(worker)
            })
            .collect();
        unstarted.sort_by_key(|worker| (worker.node.is_some(), std::cmp::Reverse(worker.serial)));
        let above = self.counts.useful().saturating_sub(self.limits.min_workers);
        unstarted.truncate(usize::try_from(above).unwrap_or(usize::MAX));
        unstarted
    }

    fn launch(&self) -> Result<Launch, Hold> {
        let Self { pool, limits, state, counts, need, now, .. } = self;
        if let Some(until) = state.cooldown_until.filter(|until| now < until) {
            return Err(Hold::CoolingDown {
                until,
                failures: state.failures.standing(*now, pool.cooldown_cap),
            });
        }
        let occupied = counts.occupied();
        let room = limits.max_workers.map_or(u32::MAX, |maximum| maximum.saturating_sub(occupied));
        let below_minimum = counts.useful() < limits.min_workers;
        if let Some(maximum) = limits.max_workers
            && room == 0
            && (need.ready > 0 || below_minimum)
        {
            return Err(Hold::AtMaximum { occupied, maximum });
        }
        if need.ready > 0 || below_minimum {
            if let Some(MissingTemplate { name, since }) = self.missing_template {
                return Err(Hold::TemplateMissing { template: name.clone(), since: *since });
            }
            self.room()?;
        }
        let paced = self.pacing(pool.launch_interval);
        if below_minimum && need.any_known && counts.pending < pool.scale_increment && paced.is_none() {
            let minimum = limits.min_workers;
            let useful = counts.useful();
            let count = (minimum - useful).min(pool.scale_increment - counts.pending).min(room);
            return Ok(self.launch_of(count, LaunchReason::BelowMinimum { useful, minimum }));
        }
        if need.ready == 0 {
            return Err(self.nothing_waits());
        }
        if self.a_worker_came_since_the_look() {
            return Err(Hold::WaitingForLook);
        }
        if let Some(slo) = &pool.slo {
            let launch = self.planned(slo, room)?;
            return self.saturated().map_or(Ok(launch), Err);
        }
        let gate = self.gate();
        if counts.pending >= gate {
            return Err(self.waiting_for_pending());
        }
        if let Some(until) = paced {
            return Err(Hold::Pacing { until });
        }
        let reason = self.classic_reason()?;
        if let Some(hold) = self.futile().or_else(|| self.saturated()) {
            return Err(hold);
        }
        Ok(self.launch_of(pool.scale_increment.min(room).min(gate - counts.pending), reason))
    }

    /// Holds while the cluster has no room. The worker that waits for it is the probe: it goes on by itself.
    fn room(&self) -> Result<(), Hold> {
        let mut pending = self.pending();
        if let Some((_, cause, detail)) =
            pending.find(|(worker, ..)| worker.phase.action(self.now, &self.pool.deadlines) == Action::Hold)
        {
            return Err(Hold::AtCapacity { cause, detail: detail.cloned() });
        }
        match &self.state.at_capacity {
            Some(capacity) if self.now < capacity.until => {
                Err(Hold::AtCapacity { cause: PendingCause::Quota, detail: Some(capacity.detail.clone()) })
            }
            _ => Ok(()),
        }
    }

    /// The workers that are expected to become ready, each with its cause and what the cluster says.
    pub(super) fn pending(&self) -> impl Iterator<Item = (&Worker, PendingCause, Option<&String>)> {
        self.workers.iter().filter(|worker| !self.state.has_given_up(worker)).filter_map(|worker| {
            match &worker.phase {
                Phase::Pending { cause, detail, .. } => Some((*worker, *cause, detail.as_ref())),
                _ => None,
            }
        })
    }

    /// Whether what waited at the last look may be in the hands of a worker by now that was not ready then.
    fn a_worker_came_since_the_look(&self) -> bool {
        let since_the_look = |since| self.need.seen.is_some_and(|seen| seen < since) && since <= self.now;
        self.workers
            .iter()
            .any(|worker| matches!(worker.phase, Phase::Ready { since } if since_the_look(since)))
    }

    fn nothing_waits(&self) -> Hold {
        match (&self.need.unknown, &self.need.all_missing) {
            (Some((queue, unknown)), _) => {
                Hold::Unknown { what: UnknownWhat::Queue(queue.clone()), unknown: unknown.clone() }
            }
            (None, Some(queue)) => Hold::QueueMissing { queue: queue.clone() },
            (None, None) => Hold::Empty,
        }
    }

    /// The earlier system's two rules: depth, and age of the oldest message.
    fn classic_reason(&self) -> Result<LaunchReason, Hold> {
        let Self { pool, counts, need, .. } = self;
        let (ready, target) = (need.ready, pool.target_queue_size);
        let (age, limit) = (need.age(), pool.force_empty_queue_interval);
        if ready > target {
            return Ok(LaunchReason::DepthAbove { ready, target });
        }
        // With workers alive the age rule adds at most one per interval: one that is busy with a two-hour job
        // must not keep a small batch waiting, nor call for a new worker at every look.
        if age > limit && (counts.useful() == 0 || self.pacing(limit).is_none()) {
            return Ok(LaunchReason::MessageTooOld { ready, age, limit });
        }
        Err(Hold::BelowThreshold { ready, target, age, limit })
    }

    /// Holds when the workers there drain the queue before a new one would be ready.
    fn futile(&self) -> Option<Hold> {
        let Self { pool, state, counts, need, .. } = self;
        let service = self.service()?;
        if !pool.skip_futile || counts.useful() == 0 {
            return None;
        }
        // What is in work is half done.
        #[expect(clippy::cast_precision_loss, reason = "an estimate of seconds, not an account")]
        let messages = need.ready as f64 + self.in_work() / 2.0;
        let drains = messages * service / f64::from(counts.useful());
        let drains_in = Duration::try_from_secs_f64(drains).unwrap_or(Duration::MAX);
        let lead = state.estimates.lead_time().unwrap_or(LEAD_PRIOR);
        (drains_in <= lead).then_some(Hold::WouldArriveTooLate { drains_in, lead })
    }

    /// Holds when the last two workers brought nothing but slower work.
    fn saturated(&self) -> Option<Hold> {
        let Self { pool, memory, counts, now, .. } = self;
        let saturated = memory.saturated(&pool.name, counts.ready, *now).filter(|_| pool.saturation_guard);
        let Saturated { workers, paces } = saturated?;
        Some(Hold::DownstreamSaturated {
            workers,
            per_minute: paces.map(|pace| rounded(pace.throughput * 60.0)),
            service: paces.map(|pace| Duration::try_from_secs_f64(pace.service).unwrap_or(Duration::MAX)),
        })
    }

    /// Seconds that one worker is busy for each message that it takes, several at once counted as a part each;
    /// `None` while nobody knows how long work takes.
    pub(super) fn service(&self) -> Option<f64> {
        let (time, _) = self.memory.service_time(&self.pool.name, &self.state.estimates)?;
        Some(time.seconds() / f64::from(self.pool.concurrency))
    }

    /// Messages in work: ready workers have their hands full.
    pub(super) fn in_work(&self) -> f64 {
        f64::from(self.counts.ready) * f64::from(self.pool.concurrency)
    }

    /// How many workers may be pending.
    fn gate(&self) -> u32 {
        let unready = self.pending().map(|(_, cause, _)| cause);
        let mut pending = unready.chain(self.unseen_intents().map(|_| PendingCause::Intended)).peekable();
        let nodes_coming = pending.peek().is_some() && pending.all(|cause| cause == PendingCause::NodeComing);
        let while_scaling = if nodes_coming { self.pool.max_pending_while_scaling } else { 1 };
        self.pool.scale_increment.max(while_scaling)
    }

    pub(super) fn unseen_intents(&self) -> impl Iterator<Item = &Intent> {
        let seen = |intent: &&Intent| self.workers.iter().any(|worker| worker.serial == Some(intent.serial));
        self.state.intents.iter().filter(move |intent| !seen(intent))
    }

    pub(super) fn waiting_for_pending(&self) -> Hold {
        let pending = self.pending().map(|(worker, cause, detail)| (worker.launched, cause, detail));
        let intended = self.unseen_intents().map(|intent| (intent.stamp, PendingCause::Intended, None));
        let (since, cause, detail) = pending.chain(intended).min_by_key(|(since, ..)| *since).unwrap_or((
            self.now,
            PendingCause::Intended,
            None,
        ));
        Hold::WaitingForPending {
            pending: self.counts.pending,
            age: self.now.since(since),
            cause,
            detail: detail.cloned(),
        }
    }

    /// When the next launch may be, if `interval` since the last one is not over.
    fn pacing(&self, interval: Duration) -> Option<Time> {
        self.state.last_launch().map(|last| last + interval).filter(|until| self.now < *until)
    }

    pub(super) fn launch_of(&self, count: u32, reason: LaunchReason) -> Launch {
        let taken: Vec<u32> = self
            .workers
            .iter()
            .filter(|worker| !matches!(worker.phase, Phase::Finished(_)))
            .filter_map(|worker| worker.slot)
            .chain(self.state.intents.iter().map(|intent| intent.slot))
            .collect();
        let slots =
            (0..).filter(|slot| !taken.contains(slot)).take(usize::try_from(count).unwrap_or(0)).collect();
        Launch { slots, reason }
    }
}

/// A whole number of messages.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates where it must")]
fn rounded(messages: f64) -> u64 {
    messages.round() as u64
}
