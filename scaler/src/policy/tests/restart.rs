//! A scaler that is killed at some tick and starts again with nothing but the record, against one that never
//! was: whole runs, in the same world.

use std::time::Duration;

use proptest::{prelude::*, test_runner::TestCaseError};

use super::{
    super::*,
    scene::*,
    world::{Event, TICK, World},
};
use crate::{
    config::{Config, PoolConfig, SloConfig, Start},
    time::Time,
};

/// A launch: pool, serial, slot, when it was decided.
type Launched = (String, u64, u32, Time);

/// Runs `config` with one scaler for `millis`, with what comes at the beginning; killed after `killed` ticks.
fn run(
    config: &Config,
    begin: &[Event],
    prepare: impl Fn(&mut World),
    millis: u64,
    killed: Option<u64>,
) -> Result<World, TestCaseError> {
    let mut world = World::alone(config.clone());
    prepare(&mut world);
    for event in begin {
        world.apply(event);
    }
    let before = killed.map_or(millis, |ticks| ticks * TICK).min(millis);
    world.run(before)?;
    if killed.is_some() {
        world.apply(&Event::Restart(false));
    }
    world.run(millis - before)?;
    Ok(world)
}

fn launched(world: &World) -> Vec<Launched> {
    let mut launched: Vec<Launched> = Vec::new();
    for post in &world.sent {
        let Intent { serial, slot, stamp, .. } = post.intent;
        let launch = (post.pool.clone(), serial, slot, stamp);
        // One that was asked for twice was launched once.
        if !launched.contains(&launch) {
            launched.push(launch);
        }
    }
    launched.sort();
    launched
}

prop_compose! {
    fn classic(name: &'static str)(
        launch_interval in prop_oneof![Just(0), 250..6000_u64],
        scale_increment in 1..4_u32,
        max_workers in 1..7_u32,
    ) -> PoolConfig {
        PoolConfig {
            launch_interval: Duration::from_millis(launch_interval),
            scale_increment,
            max_workers: Some(max_workers),
            ..pool(name)
        }
    }
}

proptest! {
    #![proptest_config(cases(150))]
    #[test]
    fn a_classic_pool_launches_the_same_after_a_restart_at_most_a_pass_later(
        pools in (classic("p0"), classic("p1")),
        quota in prop::option::of(1..9_u32),
        (post, node, start) in (0..3000_u16, 0..6000_u16, 0..3000_u16),
        killed in 0..120_u64,
    ) {
        let config = Config { quota, ..config(vec![pools.0, pools.1]) };
        // More than all of them can do meanwhile.
        let begin =
            [Event::Delays { post, node, start }, Event::Publish(false, 250), Event::Publish(true, 250)];
        let undisturbed = launched(&run(&config, &begin, |_| {}, 30_000, None)?);
        let restarted = launched(&run(&config, &begin, |_| {}, 30_000 + TICK, Some(killed))?);
        for (index, (pool, serial, slot, at)) in undisturbed.iter().enumerate() {
            let Some((other_pool, other_serial, other_slot, later)) = restarted.get(index) else {
                return Err(TestCaseError::fail(format!("{pool} {serial} was never launched")));
            };
            prop_assert_eq!((pool, serial, slot), (other_pool, other_serial, other_slot));
            prop_assert!(later >= at && later.since(*at) <= Duration::from_millis(TICK), "{pool} {serial}: {at}, {later}");
        }
        let end = NOW + Duration::from_millis(30_000 - TICK);
        let more: Vec<_> = restarted.iter().skip(undisturbed.len()).filter(|(.., at)| *at <= end).collect();
        prop_assert!(more.is_empty(), "launched by the restarted one alone: {more:?}");
    }
}

proptest! {
    #![proptest_config(cases(150))]
    /// What is known of an age may be lost with the process, so it begins anew: docs/age.md.
    #[test]
    fn by_the_age_of_messages_a_pool_launches_the_same_at_most_the_interval_after_a_restart(
        interval in 1..12_u64,
        scale_increment in 1..4_u32,
        messages in 1..200_u8,
        keeps_nothing in any::<bool>(),
        killed in 0..160_u64,
    ) {
        let first = PoolConfig {
            target_queue_size: 1000,
            force_empty_queue_interval: seconds(interval),
            launch_interval: Duration::ZERO,
            scale_increment,
            ..pool("p0")
        };
        let config = config(vec![first, pool("p1")]);
        // Nobody gets ready, so nothing is taken.
        let begin =
            [Event::Delays { post: 10, node: u16::MAX, start: 0 }, Event::Publish(false, messages)];
        let prepare = |world: &mut World| world.keeps_nothing = keeps_nothing;
        let undisturbed = launched(&run(&config, &begin, prepare, 40_000, None)?);
        let restarted = launched(&run(&config, &begin, prepare, 55_000, Some(killed))?);
        prop_assert!(!undisturbed.is_empty());
        let restart = NOW + Duration::from_millis(killed * TICK);
        let pass = Duration::from_millis(2 * TICK);
        let mut is_next = true;
        for (index, launch) in undisturbed.iter().enumerate() {
            let Some(again) = restarted.get(index) else {
                return Err(TestCaseError::fail(format!("{launch:?} never came")));
            };
            let (at, later) = (launch.3, again.3);
            prop_assert_eq!((launch.1, launch.2), (again.1, again.2));
            if at <= restart - pass {
                prop_assert_eq!(at, later, "before the restart");
            } else if std::mem::take(&mut is_next) {
                let latest = at.max(restart + seconds(interval)) + pass;
                prop_assert!(at <= later && later <= latest, "{at}, {later}, restart at {restart}");
            } else {
                prop_assert!(at <= later, "{at}, {later}");
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(40))]
    #[test]
    fn a_pool_with_an_slo_keeps_its_limits_and_stays_within_one_worker_over_a_restart(
        slo in 20..200_u64,
        per_node in prop::option::of(1..5_u32),
        latest in any::<bool>(),
        max_workers in 1..12_u32,
        messages in 1..140_u8,
        node in 0..8000_u16,
        killed in 0..120_u64,
    ) {
        let slo = SloConfig {
            targets: vec![seconds(slo)],
            pods_per_node: per_node,
            max_pending: None,
            start: if latest { Start::Latest } else { Start::Immediate },
        };
        let first = PoolConfig { slo: Some(slo), max_workers: Some(max_workers), ..pool("p0") };
        let config = config(vec![first, pool("p1")]);
        let experienced = |world: &mut World| {
            world.record.pool_mut("p0").estimates = Estimates {
                service_time: Some(ServiceTime { mean_ms: 1500.0, weight: 200.0, recent_ms: None }),
                lead_times_ms: vec![5000; 20],
                cold_lead_times_ms: vec![5000 + u64::from(node); 20],
                ..Estimates::default()
            };
        };
        let begin = [Event::Delays { post: 10, node, start: 500 }, Event::Publish(false, messages)];
        // The limits are checked at every step of both.
        let undisturbed = run(&config, &begin, experienced, 240_000, None)?;
        let restarted = run(&config, &begin, experienced, 240_000, Some(killed))?;
        prop_assert_eq!((undisturbed.done, restarted.done), (u64::from(messages), u64::from(messages)));
        let apart = undisturbed.launched.abs_diff(restarted.launched);
        prop_assert!(apart <= 1, "{} workers, and {} after a restart", undisturbed.launched, restarted.launched);
    }
}

/// Without them a pool would take what waits for young, and what arrives for nothing.
#[test]
fn how_old_each_message_is_and_how_fast_they_come_outlives_a_restart() {
    let slo = SloConfig {
        targets: vec![seconds(36_000)],
        pods_per_node: None,
        max_pending: None,
        start: Start::Latest,
    };
    let first = PoolConfig { slo: Some(slo), ..pool("p0") };
    let mut world = World::alone(config(vec![first, pool("p1")]));
    world.record.pool_mut("p0").estimates.service_time =
        Some(ServiceTime { mean_ms: 1500.0, weight: 200.0, recent_ms: None });
    for _ in 0..30 {
        world.apply(&Event::Publish(false, 1));
        world.run(2000).unwrap();
    }
    let told = |world: &World| {
        let memory = &world.scalers[0].memory;
        (memory.arrivals("q0").unwrap().minute, memory.waiting("q0", world.ready["q0"], world.time()))
    };
    let (rate, before) = told(&world);
    assert_eq!(world.launched, 0, "it would be of no use yet");
    assert!(rate > 0.2 && before[0].1 >= 55.0, "{rate}, {before:?}");
    // Ten more come while nobody looks.
    let away = 10_000;
    for event in [Event::BrokerDown(away), Event::Restart(false), Event::Publish(false, 10)] {
        world.apply(&event);
    }
    world.run(u64::from(away) + 500).unwrap();
    let (rate_after, after) = told(&world);
    assert!((rate_after - rate).abs() < 0.1 * rate, "{rate}, then {rate_after}");
    assert!(after[0].1 >= before[0].1 + 10.0, "{before:?}, then {after:?}");
    assert!(after.iter().all(|(_, age)| *age >= 10.0), "none is taken for younger than it is: {after:?}");
}
