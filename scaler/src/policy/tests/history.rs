//! Random histories of a whole fleet; what must never happen is checked at every step by [`World`].

use std::time::Duration;

use proptest::prelude::*;

use super::{
    super::PendingCause,
    scene::*,
    world::{Event, World},
};
use crate::config::{Config, PoolConfig, SloConfig, Start};

fn stuck() -> impl Strategy<Value = PendingCause> {
    prop_oneof![
        Just(PendingCause::Quota),
        Just(PendingCause::NoRoom),
        Just(PendingCause::CreateRefused),
        Just(PendingCause::BadImage),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (any::<bool>(), 1..12_u8).prop_map(|(second, n)| Event::Publish(second, n)),
        2 => (0..8000_u16).prop_map(Event::BrokerDown),
        2 => (0..40_000_u16).prop_map(Event::ClusterDown),
        3 => any::<bool>().prop_map(Event::Restart),
        3 => (0..12_000_u16, 0..20_000_u16, 0..5000_u16)
            .prop_map(|(post, node, start)| Event::Delays { post, node, start }),
        2 => (0..3_u8).prop_map(Event::LosePosts),
        3 => any::<u8>().prop_map(Event::Replay),
        3 => any::<u8>().prop_map(Event::Fail),
        1 => any::<u8>().prop_map(Event::LoseNode),
        3 => (any::<u8>(), stuck()).prop_map(|(index, cause)| Event::Stick(index, cause)),
        1 => any::<(bool, bool)>().prop_map(|(second, paused)| Event::Pause(second, paused)),
    ]
}

prop_compose! {
    fn some_pool(name: &'static str)(
        target_queue_size in prop_oneof![Just(0), 1..8_u64],
        force in 1..20_u64,
        launch_interval in prop_oneof![Just(0), 250..12_000_u64],
        scale_increment in 1..4_u32,
        max_pending_while_scaling in 1..5_u32,
        skip_futile in any::<bool>(),
        max_workers in prop_oneof![1 => Just(None), 4 => (0..7_u32).prop_map(Some)],
        min_workers in 0..3_u32,
        cooldown in 1..20_u64,
        slo in prop::option::of((2..120_u64, prop::option::of(1..5_u32), prop::option::of(1..4_u32), any::<bool>())),
    ) -> PoolConfig {
        let slo = slo.map(|(target, pods_per_node, max_pending, latest)| SloConfig {
            targets: vec![seconds(target)],
            pods_per_node,
            max_pending,
            start: if latest { Start::Latest } else { Start::Immediate },
        });
        PoolConfig {
            slo,
            target_queue_size,
            force_empty_queue_interval: seconds(force),
            launch_interval: Duration::from_millis(launch_interval),
            scale_increment,
            max_pending_while_scaling,
            skip_futile,
            min_workers: min_workers.min(max_workers.unwrap_or(2)),
            max_workers,
            withdraw_after: seconds(2),
            cooldown_base: seconds(cooldown),
            cooldown_cap: seconds(cooldown * 4),
            ..pool(name)
        }
    }
}

prop_compose! {
    fn some_config()(first in some_pool("p0"), second in some_pool("p1"), quota in prop::option::of(1..9_u32)) -> Config {
        Config { quota, ..config(vec![first, second]) }
    }
}

proptest! {
    #![proptest_config(cases(120))]
    #[test]
    fn whatever_happens_no_limit_pace_or_pause_is_broken_and_no_restart_launches_more(
        config in some_config(),
        history in prop::collection::vec((0..6000_u64, event()), 1..60),
    ) {
        let mut world = World::new(config);
        for (pause, event) in &history {
            world.run(*pause)?;
            world.apply(event);
        }
        world.run(20_000)?;
    }
}

#[test]
fn a_burst_is_done_by_workers_that_come_one_at_a_time_and_go_by_themselves() {
    let mut world = World::new(config(vec![
        PoolConfig { launch_interval: seconds(1), max_workers: Some(4), ..pool("p0") },
        pool("p1"),
    ]));
    world.apply(&Event::Publish(false, 60));
    world.run(120_000).unwrap();
    assert_eq!((world.done, world.waiting(), world.alive()), (60, 0, 0));
    assert_eq!((world.launched, world.most), (4, 4));
}

#[test]
fn a_burst_with_an_slo_is_learned_from_planned_and_done_and_all_workers_leave() {
    let slo = SloConfig {
        targets: vec![seconds(60)],
        pods_per_node: None,
        max_pending: None,
        start: Start::Immediate,
    };
    let pool0 = PoolConfig { slo: Some(slo), max_workers: Some(30), ..pool("p0") };
    let mut world = World::new(config(vec![pool0, pool("p1")]));
    world.apply(&Event::Publish(false, 10));
    world.run(60_000).unwrap();
    assert_eq!((world.done, world.alive()), (10, 0), "one by one, until the first has ended");
    let learning = world.launched;
    world.apply(&Event::Publish(false, 200));
    world.run(120_000).unwrap();
    assert_eq!((world.done, world.waiting(), world.alive()), (210, 0, 0));
    // 300 s of work in 47 s less a start: about seven.
    let planned = world.launched - learning;
    assert!((6..=12).contains(&planned), "{planned} workers");
}

#[test]
fn a_request_that_was_lost_is_made_good_by_whoever_comes_first() {
    let mut world =
        World::new(config(vec![PoolConfig { launch_interval: seconds(60), ..pool("p0") }, pool("p1")]));
    world.apply(&Event::LosePosts(1));
    world.apply(&Event::Publish(false, 3));
    world.run(4000).unwrap();
    assert_eq!(world.launched, 0);
    world.run(40_000).unwrap();
    assert_eq!((world.done, world.launched, world.alive()), (3, 1, 0));
}
