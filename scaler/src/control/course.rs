//! What one act is going to do: pure, decided on what the act has read afresh.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    config::Config,
    launcher::Plan,
    policy::{
        Decision, Fact, Intent, Launch, Memory, Observation, StateRecord, Worker, decide, decide_pool,
        job_name, share,
    },
    time::Time,
};

/// From this age on a launch that is seen is settled in the record for that alone.
const SETTLE_AFTER: Duration = Duration::from_secs(4);
/// From this age on anybody may complete an intent.
const COMPLETE_AFTER: Duration = Duration::from_secs(5);
/// An intent without a Job is withdrawn only by a process that has known it for at least this long.
const WITHDRAW_KNOWN_FOR: Duration = Duration::from_secs(15);

/// When this process first saw each open intent, by pool and serial.
pub(super) type IntentsSeen = BTreeMap<(String, u64), Time>;

/// All that a course depends on, besides the record.
#[derive(Debug, Clone, Copy)]
pub(super) struct Decider<'a> {
    pub(super) config: &'a Config,
    pub(super) memory: &'a Memory,
    /// With the record as judged.
    pub(super) observation: &'a Observation,
    /// This process, in the intents that it writes.
    pub(super) me: &'a str,
    pub(super) now: Time,
}

/// The record to write, and then what to do.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Course {
    pub(super) record: StateRecord,
    pub(super) posts: Vec<Plan>,
    pub(super) removals: Vec<Worker>,
}

/// Whether somebody may have to complete or withdraw this intent by now.
pub(super) fn is_left_open(intent: &Intent, now: Time) -> bool {
    let age = now.since(intent.stamp);
    (COMPLETE_AFTER..=Intent::COMPLETE_UNTIL).contains(&age) || age >= Intent::WITHDRAW_AFTER
}

/// Whether what the workers teach has to be written soon. That launches are settled has time until anybody
/// would complete them: mostly the next launch writes that along.
pub(super) fn is_worth_an_act(stored: &StateRecord, judged: &StateRecord, now: Time) -> bool {
    let mut lenient = stored.clone();
    for (name, state) in &mut lenient.pools {
        let judged = judged.pool(name);
        let has_time = |intent: &Intent| now.since(intent.stamp) < SETTLE_AFTER;
        if state.intents.iter().all(|intent| judged.intents.contains(intent) || has_time(intent)) {
            state.intents = judged.intents;
            state.last_settled_launch = judged.last_settled_launch;
        }
    }
    judged.differs_in_substance(&lenient)
}

/// Workers that were counted as failures before they started, and that can be removed by now.
pub(super) fn given_up<'a>(
    record: &StateRecord,
    workers: &'a [Worker],
    now: Time,
) -> impl Iterator<Item = &'a Worker> {
    workers
        .iter()
        .filter(move |worker| worker.is_removable(now) && record.pool(&worker.pool).has_given_up(worker))
}

// === impl Course ===

impl Course {
    /// Whether it writes new intents.
    pub(super) fn has_launches(&self, now: Time) -> bool {
        self.record.pools.values().flat_map(|state| &state.intents).any(|intent| intent.stamp == now)
    }
}

// === impl Decider ===

impl Decider<'_> {
    /// Decides for all pools and writes it into the record.
    pub(super) fn course(&self, judged: &StateRecord, seen: &IntentsSeen) -> Course {
        let Self { config, memory, observation, now, .. } = *self;
        let workers = observation.workers.known().map_or(&[][..], Vec::as_slice);
        let removals = given_up(judged, workers, now).cloned().collect();
        let mut course = Course { record: judged.clone(), posts: Vec::new(), removals };
        for (pool, state) in &judged.pools {
            for intent in &state.intents {
                self.withdraw_stale(pool, intent, seen, &mut course);
            }
            self.complete(pool, &state.intents, judged, &mut course);
        }
        for (pool, decision) in share(decide(memory, observation, config, now), observation, config) {
            match decision {
                Decision::Launch(launch) => self.launch(&pool, &launch, &mut course),
                Decision::Withdraw(withdraw) => {
                    let unneeded = workers.iter().filter(|worker| withdraw.workers.contains(&worker.name));
                    course.removals.extend(unneeded.cloned());
                }
                Decision::Hold(_) => {}
            }
        }
        course
    }

    fn launch(&self, pool: &str, launch: &Launch, course: &mut Course) {
        for slot in &launch.slots {
            let state = course.record.pool_mut(pool);
            let intent = Intent {
                serial: state.next_serial,
                slot: *slot,
                reason: launch.reason.to_string(),
                stamp: self.now,
                by: self.me.to_owned(),
            };
            state.next_serial += 1;
            // This launch is the next try; it tells whether there is room now.
            state.at_capacity = None;
            state.intents.push(intent.clone());
            course.posts.push(self.plan(pool, &intent, &course.record));
        }
    }

    /// Withdraws an intent whose Job can no longer be expected.
    fn withdraw_stale(&self, pool: &str, intent: &Intent, seen: &IntentsSeen, course: &mut Course) {
        let age = self.now.since(intent.stamp);
        let known_for = seen.get(&(pool.to_owned(), intent.serial)).map(|seen| self.now.since(*seen));
        if age >= Intent::WITHDRAW_AFTER && known_for.is_some_and(|known| known >= WITHDRAW_KNOWN_FOR) {
            tracing::warn!(pool, serial = intent.serial, "launch withdrawn: its job never came to be");
            let state = course.record.pool_mut(pool);
            *state = state.without_intent(intent.serial);
        }
    }

    /// Completes intents that were left open: as many as the pool would launch if none of them had been written.
    /// They are looked at together, since what needs all of them may not miss any single one.
    fn complete(&self, pool: &str, intents: &[Intent], judged: &StateRecord, course: &mut Course) {
        let is_open = |intent: &&Intent| {
            (COMPLETE_AFTER..=Intent::COMPLETE_UNTIL).contains(&self.now.since(intent.stamp))
        };
        let open: Vec<_> = intents.iter().filter(is_open).collect();
        if open.is_empty() {
            return;
        }
        let wanted = self.wanted_without(pool, &open, judged);
        for intent in open.into_iter().take(wanted) {
            tracing::info!(pool, serial = intent.serial, by = intent.by, "completing a launch left open");
            course.posts.push(self.plan(pool, intent, judged));
        }
    }

    /// How many the pool would launch if `intents` had not been written.
    fn wanted_without(&self, pool: &str, intents: &[&Intent], judged: &StateRecord) -> usize {
        let Self { config, memory, observation, now, .. } = *self;
        let Some(pool_config) = config.pool(pool) else { return 0 };
        let mut without = judged.clone();
        let serials = intents.iter().map(|intent| intent.serial);
        let state = serials.fold(judged.pool(pool), |state, serial| state.without_intent(serial));
        *without.pool_mut(pool) = state.clone();
        let observation =
            Observation { state: Fact::Known { value: without, at: now }, ..observation.clone() };
        let decision = decide_pool(memory, &observation, config, pool_config, &state, now);
        match share([(pool.to_owned(), decision)].into(), &observation, config).remove(pool) {
            Some(Decision::Launch(launch)) => launch.slots.len(),
            _ => 0,
        }
    }

    fn plan(&self, pool: &str, intent: &Intent, record: &StateRecord) -> Plan {
        let service_time = self.memory.service_time(pool, &record.pool(pool).estimates);
        Plan {
            name: job_name(&self.config.instance, pool, record.epoch, intent.serial),
            pool: pool.to_owned(),
            serial: intent.serial,
            slot: intent.slot,
            reason: intent.reason.clone(),
            stamp: intent.stamp,
            service_time: service_time.and_then(|(time, _)| Duration::try_from_secs_f64(time.seconds()).ok()),
        }
    }

    /// Puts what was learned since the last write into the record.
    pub(super) fn keep_estimates(&self, record: &mut StateRecord) {
        for pool in &self.config.pools {
            self.memory.keep(pool, &mut record.pool_mut(&pool.name).estimates);
        }
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::{
        config::{PoolConfig, SloConfig, Start, WorkerTemplate},
        policy::{PendingCause, Phase, PoolState, QueueFacts, ServiceTime, remember},
    };

    const NOW: Time = Time::from_millis(1_800_000_000_000);

    fn config() -> Config {
        let worker = WorkerTemplate::Process { command: vec!["worker".to_owned()], env: BTreeMap::new() };
        Config::with_pools(vec![PoolConfig::with_defaults("a", "queue", worker)])
    }

    /// The course with one intent of pool `pool` that is this old, `ready` messages waiting, and the intent
    /// known to this process for `known_for`.
    fn course(pool: &str, age: u64, ready: u64, known_for: u64) -> Course {
        let config = config();
        let mut record = StateRecord::new(NOW);
        let intent = Intent {
            serial: 7,
            slot: 0,
            reason: "a test".to_owned(),
            stamp: NOW - Duration::from_secs(age),
            by: "somebody else".to_owned(),
        };
        record.pool_mut(pool).next_serial = 8;
        record.pool_mut(pool).intents.push(intent);
        let facts = Fact::Known { value: QueueFacts::Present { ready, consumers: 0 }, at: NOW };
        let observation = Observation {
            missing_templates: BTreeMap::new(),
            queues: [("queue".to_owned(), facts)].into(),
            suspects: BTreeMap::new(),
            counters: BTreeMap::new(),
            workers: Fact::Known { value: Vec::new(), at: NOW },
            state: Fact::Known { value: record.clone(), at: NOW },
        };
        let memory = remember(Memory::default(), &observation, &config);
        let decider =
            Decider { config: &config, memory: &memory, observation: &observation, me: "me", now: NOW };
        let seen = [((pool.to_owned(), 7), NOW - Duration::from_secs(known_for))].into();
        decider.course(&record, &seen)
    }

    fn posts(course: &Course) -> Vec<u64> {
        course.posts.iter().map(|plan| plan.serial).collect()
    }

    fn intents(course: &Course, pool: &str) -> Vec<u64> {
        course.record.pool(pool).intents.iter().map(|intent| intent.serial).collect()
    }

    #[test]
    fn an_open_intent_is_completed_between_5_and_60_seconds_and_never_later() {
        for (age, completed) in [(0, false), (4, false), (5, true), (60, true), (61, false), (119, false)] {
            let course = course("a", age, 1, 600);
            assert_eq!(posts(&course), if completed { vec![7] } else { vec![] }, "{age} s");
            assert_eq!(intents(&course, "a"), [7], "{age} s");
        }
    }

    #[test]
    fn what_is_left_open_of_a_burst_is_completed_although_no_single_launch_is_missed() {
        let mut config = config();
        let slo = SloConfig {
            targets: vec![Duration::from_secs(60)],
            pods_per_node: Some(50),
            max_pending: None,
            start: Start::Immediate,
        };
        config.pools[0].slo = Some(slo);
        config.pools[0].max_workers = Some(50);
        let mut record = StateRecord::new(NOW);
        let state = record.pool_mut("a");
        state.next_serial = 51;
        state.estimates.service_time =
            Some(ServiceTime { mean_ms: 60_000.0, weight: 100.0, recent_ms: None });
        // Thirty of fifty were asked for before the listing became too old.
        let intent = |serial: u64| Intent {
            serial,
            slot: u32::try_from(serial).unwrap(),
            reason: "a test".to_owned(),
            stamp: NOW - Duration::from_secs(6),
            by: "me".to_owned(),
        };
        state.intents = (31..=50).map(intent).collect();
        let pending = |serial: u64| Worker {
            name: format!("a-{serial}"),
            pool: "a".to_owned(),
            serial: Some(serial),
            slot: u32::try_from(serial).ok(),
            launched: NOW - Duration::from_secs(6),
            reason: None,
            node: None,
            cold: false,
            generation: None,
            phase: Phase::Pending {
                started: false,
                cause: PendingCause::NoRoom,
                since: NOW - Duration::from_secs(5),
                detail: None,
            },
        };
        let facts = QueueFacts::Present { ready: 50, consumers: 0 };
        let observation = Observation {
            queues: [("queue".to_owned(), Fact::Known { value: facts, at: NOW })].into(),
            suspects: BTreeMap::new(),
            missing_templates: BTreeMap::new(),
            counters: BTreeMap::new(),
            workers: Fact::Known { value: (1..=30).map(pending).collect(), at: NOW },
            state: Fact::Known { value: record.clone(), at: NOW },
        };
        let memory = remember(Memory::default(), &observation, &config);
        let decider =
            Decider { config: &config, memory: &memory, observation: &observation, me: "me", now: NOW };
        let course = decider.course(&record, &IntentsSeen::new());
        // As many as would be launched if those thirty were all.
        let none = PoolState { intents: Vec::new(), ..record.pool("a") };
        let decision = decide_pool(&memory, &observation, &config, &config.pools[0], &none, NOW);
        let Decision::Launch(launch) = decision else { unreachable!("{decision}") };
        let wanted = u64::try_from(launch.slots.len()).unwrap();
        assert!(wanted > 10, "{wanted}");
        assert_eq!(posts(&course), (31..31 + wanted).collect::<Vec<_>>());
        assert_eq!(course.record.pool("a").next_serial, 51, "nothing new is launched");
    }

    #[test]
    fn an_open_intent_that_nothing_needs_any_more_is_not_completed() {
        assert_eq!(posts(&course("a", 10, 0, 600)), [0; 0]);
    }

    #[test]
    fn an_intent_whose_job_never_came_is_withdrawn_after_two_minutes_and_its_serial_is_burnt() {
        let course = course("a", 120, 0, 15);
        assert_eq!(intents(&course, "a"), [0; 0]);
        assert_eq!(course.record.pool("a").next_serial, 8);
        assert_eq!(posts(&course), [0; 0]);
    }

    #[test]
    fn an_old_intent_that_this_process_has_just_met_is_not_withdrawn_yet() {
        assert_eq!(intents(&course("a", 3600, 0, 14), "a"), [7]);
    }

    #[test]
    fn an_intent_of_a_pool_that_is_no_longer_configured_is_withdrawn_and_never_completed() {
        assert_eq!(posts(&course("gone", 10, 1, 600)).len(), 1, "pool a launches, the other one does not");
        assert_eq!(intents(&course("gone", 10, 1, 600), "gone"), [7]);
        assert_eq!(intents(&course("gone", 120, 0, 600), "gone"), [0; 0]);
    }

    #[test]
    fn a_launch_takes_the_next_serial_and_names_its_writer() {
        let course = course("gone", 10, 1, 600);
        let written = &course.record.pool("a").intents[0];
        assert_eq!((written.serial, written.slot, &*written.by, written.stamp), (1, 0, "me", NOW));
        assert_eq!(course.posts[0].name, job_name("mayfly", "a", course.record.epoch, 1));
        assert!(course.has_launches(NOW));
    }
}
