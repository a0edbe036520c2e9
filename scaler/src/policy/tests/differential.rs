//! The classic policy against the port of the earlier loop, launch by launch, each in a world of its own.

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;

use super::{
    super::*,
    earlier_loop::{EarlierLoop, Seen},
    scene::*,
};
use crate::config::{Config, PoolConfig};

/// The earlier system's interval between two checks.
const CHECK: u64 = 10_000;
/// It has workers that end after so long without a message.
const IDLE: u64 = 20_000;
const STEP: u64 = 500;

/// A worker of the simulated cluster.
#[derive(Debug, Clone)]
struct Pod {
    serial: u64,
    launched: u64,
    ready_at: u64,
    /// What it works on is done then.
    busy_until: Option<u64>,
    idle_since: u64,
}

/// What comes and how long things take.
#[derive(Debug, Clone)]
struct Trace {
    /// Pause before it in milliseconds, and how many messages come.
    arrivals: Vec<(u64, u64)>,
    boot: u64,
    work: u64,
}

/// The launches that `decide` makes: when, and how many.
fn launches_of(trace: &Trace, mut decide: impl FnMut(u64, u64, &[Pod]) -> u32) -> Vec<(u64, u32)> {
    let mut pods: Vec<Pod> = Vec::new();
    let (mut ready, mut serial, mut launches) = (0, 0, Vec::new());
    let mut arrivals = trace.arrivals.iter();
    let mut next = arrivals.next().copied();
    let mut at = next.map_or(0, |(pause, _)| pause);
    let end: u64 = trace.arrivals.iter().map(|(pause, _)| pause).sum::<u64>() + 600_000;
    for now in (0..end).step_by(usize::try_from(STEP).unwrap()) {
        while let Some((_, count)) = next.filter(|_| at <= now) {
            ready += count;
            next = arrivals.next().copied();
            at += next.map_or(0, |(pause, _)| pause);
        }
        for pod in pods.iter_mut().filter(|pod| pod.ready_at <= now) {
            if pod.busy_until.is_some_and(|until| until <= now) {
                (pod.busy_until, pod.idle_since) = (None, now);
            }
            if pod.busy_until.is_none() && ready > 0 {
                ready -= 1;
                pod.busy_until = Some(now + trace.work);
            }
        }
        pods.retain(|pod| pod.ready_at > now || pod.busy_until.is_some() || now - pod.idle_since < IDLE);
        if now % CHECK == 0 {
            let count = decide(now, ready, &pods);
            for _ in 0..count {
                serial += 1;
                let ready_at = now + trace.boot;
                pods.push(Pod { serial, launched: now, ready_at, busy_until: None, idle_since: ready_at });
            }
            if count > 0 {
                launches.push((now, count));
            }
        }
    }
    launches
}

fn by_the_earlier_loop(trace: &Trace, mut earlier: EarlierLoop) -> Vec<(u64, u32)> {
    launches_of(trace, |now_ms, ready, pods| {
        let running = u32::try_from(pods.iter().filter(|pod| pod.ready_at <= now_ms).count()).unwrap();
        let pending = u32::try_from(pods.len()).unwrap() - running;
        earlier.check(Seen { now_ms, ready, pending, running })
    })
}

fn by_the_policy(trace: &Trace, pool: &PoolConfig) -> Vec<(u64, u32)> {
    let mut memory = Memory::default();
    let mut record = StateRecord::new(NOW);
    let base = Config { check_interval: Duration::from_millis(CHECK), ..config(vec![pool.clone()]) };
    launches_of(trace, |now, ready, pods| {
        let time = |millis| NOW + Duration::from_millis(millis);
        let at = time(now);
        let workers = pods.iter().map(|pod| {
            let phase = if pod.ready_at <= now {
                Phase::Ready { since: time(pod.ready_at) }
            } else {
                pending(true, PendingCause::Starting, time(pod.launched))
            };
            Worker { launched: time(pod.launched), ..worker(pod.serial, phase) }
        });
        // The age rule of the earlier system looks only when nothing lives.
        let mut config = base.clone();
        if !pods.is_empty() {
            config.pools[0].force_empty_queue_interval = Duration::from_hours(1000);
        }
        let observation = Observation {
            missing_templates: BTreeMap::new(),
            queues: [("q".to_owned(), Fact::Known { value: waiting(ready), at })].into(),
            suspects: BTreeMap::new(),
            counters: BTreeMap::new(),
            workers: Fact::Known { value: workers.collect(), at },
            state: Fact::Known { value: record.clone(), at },
        };
        memory = remember(std::mem::take(&mut memory), &observation, &config);
        match decide(&memory, &observation, &config, at).remove("p") {
            Some(Decision::Launch(launch)) => {
                record.pool_mut("p").last_settled_launch = Some(at);
                u32::try_from(launch.slots.len()).unwrap()
            }
            _ => 0,
        }
    })
}

fn both(trace: &Trace, target: u64, force_ms: u64) -> [Vec<(u64, u32)>; 2] {
    let pool = PoolConfig {
        target_queue_size: target,
        force_empty_queue_interval: Duration::from_millis(force_ms),
        launch_interval: Duration::ZERO,
        max_workers: None,
        ..pool("p")
    };
    [by_the_earlier_loop(trace, EarlierLoop::new(target, force_ms)), by_the_policy(trace, &pool)]
}

#[test]
fn the_earlier_systems_demo_runs_as_it_did() {
    // 200 messages of a second: one worker per check, while one is there to wait for.
    let trace = Trace { arrivals: vec![(1000, 200)], boot: 3000, work: 1000 };
    let [earlier, ours] = both(&trace, 0, 60_000);
    assert_eq!(earlier, (1..=7).map(|check| (check * CHECK, 1)).collect::<Vec<_>>());
    assert_eq!(ours, earlier);
}

proptest! {
    #![proptest_config(cases(200))]
    #[test]
    fn every_launch_is_one_of_the_earlier_loop_and_the_other_way_round(
        arrivals in prop::collection::vec((0..90_000_u64, 1..60_u64), 1..25),
        boot in 0..200_000_u64,
        work in 500..60_000_u64,
        target in prop_oneof![Just(0), 1..20_u64],
        force_ms in 1000..200_000_u64,
    ) {
        let trace = Trace { arrivals, boot, work };
        let [earlier, ours] = both(&trace, target, force_ms);
        prop_assert!(target > 0 || !earlier.is_empty(), "something comes, so somebody is launched");
        prop_assert_eq!(ours, earlier);
    }
}
