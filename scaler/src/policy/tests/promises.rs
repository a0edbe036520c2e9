//! What must never happen in a [`World`].

use std::{collections::BTreeMap, time::Duration};

use proptest::{prelude::*, test_runner::TestCaseError};

use super::{
    super::*,
    world::{Checked, World},
};

// === impl World ===

impl World {
    /// Never above a limit, whatever is on its way; never two workers of one slot.
    pub(super) fn check_limits(&self) -> Checked {
        let mut all = 0;
        for pool in &self.config.pools {
            let state = self.record.pool(&pool.name);
            let counts = Counts::of(&pool.name, &self.workers(), &state);
            all += counts.occupied();
            let most = pool.max_workers.unwrap_or(u32::MAX);
            prop_assert!(counts.occupied() <= most, "{counts:?} in {} at {}", pool.name, self.now);
            // What a launch may make of them is checked there; causes change while they are pending.
            let gate = match &pool.slo {
                None => pool.scale_increment.max(pool.max_pending_while_scaling),
                // Workers kept warm come by the increment, whatever the plan may have pending.
                Some(slo) => slo.max_pending.map_or(u32::MAX, |most| most.max(pool.scale_increment)),
            };
            prop_assert!(counts.pending <= gate, "{counts:?} in {} at {}", pool.name, self.now);
            let mut slots: Vec<_> = self
                .jobs
                .iter()
                .filter(|job| job.worker.pool == pool.name)
                .filter(|job| !matches!(job.worker.phase, Phase::Finished(_)))
                .map(|job| job.worker.slot)
                .collect();
            slots.sort_unstable();
            let count = slots.len();
            slots.dedup();
            prop_assert_eq!(slots.len(), count, "a slot is there twice");
        }
        let quota = self.config.quota.unwrap_or(u32::MAX);
        prop_assert!(all <= quota, "{all} workers, the quota is {quota}, at {}", self.now);
        Ok(())
    }

    /// No decision rests on what is not known, or was seen too long ago.
    pub(super) fn check_known(
        &self,
        observation: &Observation,
        decisions: &BTreeMap<String, Decision>,
    ) -> Checked {
        let now = self.time();
        let fleet_is_known = observation.workers.fresh(now, LISTING_STALE_AFTER).is_ok()
            && observation.state.fresh(now, LISTING_STALE_AFTER).is_ok();
        for pool in &self.config.pools {
            let decision = &decisions[&pool.name];
            let queue = observation.queues.get(&pool.queues[0]);
            let is_known =
                fleet_is_known && queue.is_some_and(|queue| queue.fresh(now, DEPTH_STALE_AFTER).is_ok());
            let holds = matches!(decision, Decision::Hold(_));
            prop_assert!(
                is_known || holds,
                "{} would {decision} on unknown facts at {}",
                pool.name,
                self.now
            );
        }
        Ok(())
    }

    /// A launch rests on fresh facts, keeps its distance, and respects pause and cool-down. A classic pool has no
    /// more than `scale_increment` pending with it, but while all that were pending are known to wait for a node.
    pub(super) fn check_launch(
        &self,
        observation: &Observation,
        pool: &str,
        state: &PoolState,
        Launch { slots, reason }: &Launch,
    ) -> Checked {
        let time = self.time();
        let pool = self.config.pool(pool).unwrap();
        let Some(Fact::Known { at, .. }) = observation.queues.get(&pool.queues[0]) else {
            return Err(TestCaseError::fail("launched on an unknown queue"));
        };
        prop_assert!(time.since(*at) <= DEPTH_STALE_AFTER, "launched on a stale depth");
        prop_assert!(state.cooldown_until.is_none_or(|until| until <= time), "launched while cooling down");
        prop_assert!(!state.paused, "launched while paused");
        let no_room = |worker: &&Worker| {
            worker.pool == pool.name
                && !state.has_given_up(worker)
                && worker.phase.action(time, &Deadlines::default()) == Action::Hold
        };
        let probe = observation.workers.known().into_iter().flatten().find(no_room);
        prop_assert!(probe.is_none(), "launched beside {probe:?}");
        let since = state.last_launch().map_or(Duration::MAX, |last| time.since(last));
        let paced = pool.slo.is_none() || matches!(reason, LaunchReason::BelowMinimum { .. });
        prop_assert!(!paced || since >= pool.launch_interval, "launched {since:?} after the last");
        let own = || observation.workers.known().into_iter().flatten().filter(|it| it.pool == pool.name);
        let mut pending: Vec<_> = own()
            .filter(|worker| !state.has_given_up(worker))
            .filter_map(|worker| match worker.phase {
                Phase::Pending { cause, .. } => Some(cause),
                _ => None,
            })
            .collect();
        let is_seen = |intent: &&Intent| own().any(|worker| worker.serial == Some(intent.serial));
        pending.extend(state.intents.iter().filter(|it| !is_seen(it)).map(|_| PendingCause::Intended));
        let all_wait = !pending.is_empty() && pending.iter().all(|cause| *cause == PendingCause::NodeComing);
        let gate = if all_wait {
            pool.max_pending_while_scaling.max(pool.scale_increment)
        } else {
            pool.scale_increment
        };
        let with_it = pending.len() + slots.len();
        prop_assert!(
            pool.slo.is_some() || with_it <= gate as usize,
            "{with_it} pending: {pending:?} and {slots:?}"
        );
        Ok(())
    }

    /// A process that starts now, with nothing but the record, launches nothing and takes nothing back that
    /// neither replica would have, had it never been restarted. (It would begin with a fresh listing.)
    pub(super) fn check_restart(&self, observation: &Observation) -> Checked {
        if !matches!(observation.workers, Fact::Known { at, .. } if at == self.time()) {
            return Ok(());
        }
        let memory = remember(Memory::default(), observation, &self.config);
        let decisions = |memory: &Memory| decide(memory, observation, &self.config, self.time());
        let restarted = decisions(&memory);
        let witnesses = self.witnesses.each_ref().map(decisions);
        for (pool, restarted) in &restarted {
            let kind = restarted.kind();
            let [first, second] = witnesses.each_ref().map(|decisions| &decisions[pool]);
            prop_assert!(
                kind == "hold"
                    || kind == first.kind()
                    || kind == second.kind()
                    || is_one_by_deadline(restarted),
                "{pool}: a restart would {restarted}, not {first} or {second}, at {}",
                self.now
            );
        }
        Ok(())
    }
}

/// By deadlines a restart may launch one worker more: of what waits it knows less well how old it is.
fn is_one_by_deadline(decision: &Decision) -> bool {
    matches!(decision, Decision::Launch(Launch { slots, reason: LaunchReason::DeadlineAtRisk { .. } }) if slots.len() <= 1)
}
