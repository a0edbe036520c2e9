//! A broker that was away gives back what workers had in hand.

use super::{super::*, scene::*};
use crate::{
    config::{PoolConfig, SloConfig, Start},
    time::Time,
};

/// Two workers are ready.
fn scene() -> Scene {
    Scene {
        pool: PoolConfig { launch_interval: seconds(0), ..pool("p") },
        ..Scene::with_workers([ready(1), ready(2)])
    }
}

/// What is decided `after` the broker was there again, with these consumers of one message; it was away before if so
/// told.
fn decided(scene: &Scene, away: bool, after: u64, consumers: u64) -> Decision {
    decided_of(scene, away, after, &[("q", consumers)])
}

/// The same of several queues, with a message in each.
fn decided_of(scene: &Scene, away: bool, after: u64, consumers: &[(&'static str, u64)]) -> Decision {
    let queues = consumers.iter().map(|(queue, _)| (*queue, known(waiting(0)))).collect();
    let scene = Scene { queues, ..scene.clone() };
    let config = scene.config();
    let sight = |queue: &dyn Fn(u64) -> Fact<QueueFacts>, at: Time| {
        let mut observation = scene.observation();
        for (name, consumers) in consumers {
            observation.queues.insert((*name).to_owned(), queue(*consumers));
        }
        observation.workers = Fact::Known { value: scene.workers.known().unwrap().clone(), at };
        observation.state = Fact::Known { value: StateRecord::new(ago(10_000)), at };
        observation
    };
    let back = |at| move |consumers| Fact::Known { value: QueueFacts::Present { ready: 1, consumers }, at };
    let mut memory = Memory::default();
    if away {
        memory = remember(memory, &sight(&|_| unknown(Why::Unreachable), ago(1)), &config);
    }
    memory = remember(memory, &sight(&back(NOW), NOW), &config);
    let now = in_future(after);
    let observation = sight(&back(now), now);
    memory = remember(memory, &observation, &config);
    decide(&memory, &observation, &config, now)["p"].clone()
}

fn launched(decision: &Decision) -> bool {
    matches!(decision, Decision::Launch(_))
}

#[test]
fn what_a_broker_gives_back_waits_for_the_workers_that_had_it() {
    let scene = scene();
    let held = decided(&scene, true, 1, 1);
    assert!(held.to_string().contains("1 of 2 workers are connected again"), "{held}");
    assert!(launched(&decided(&scene, true, 1, 2)), "they are back, and have not taken it");
    assert!(launched(&decided(&scene, true, 30, 1)), "they do not come back");
    assert!(launched(&decided(&scene, false, 1, 1)), "it was never away");
}

#[test]
fn so_it_does_where_a_pool_has_several_queues() {
    let scene = scene();
    let of = |after, first, second| decided_of(&scene, true, after, &[("q", first), ("r", second)]);
    let held = of(1, 1, 1);
    assert!(held.to_string().contains("1 of 2 workers are connected again"), "{held}");
    assert!(launched(&of(1, 2, 2)), "they are back, and have taken neither message");
    assert!(
        launched(&of(1, 2, 0)),
        "they are back, and take from the first alone as long as something waits there"
    );
    assert!(launched(&of(30, 1, 1)), "they do not come back");
}

#[test]
fn so_it_does_where_a_queue_has_an_slo() {
    let slo = SloConfig {
        targets: vec![seconds(1)],
        pods_per_node: None,
        max_pending: None,
        start: Start::Immediate,
    };
    let scene = Scene { pool: PoolConfig { slo: Some(slo), ..scene().pool }, ..scene() };
    let held = decided(&scene, true, 1, 1);
    assert!(held.to_string().contains("1 of 2 workers are connected again"), "{held}");
    let back = decided(&scene, true, 1, 2);
    assert!(!back.to_string().contains("connected again"), "{back}");
}

#[test]
fn without_a_worker_that_could_come_back_what_waits_is_new_work() {
    let scene = Scene { workers: known(vec![finished(1, ending(1)), starting(2)]), ..scene() };
    let decision = decided(&scene, true, 1, 0);
    assert!(!decision.to_string().contains("connected again"), "{decision}");
}
