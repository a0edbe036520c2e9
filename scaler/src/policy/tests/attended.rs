//! Pools whose workers cannot say themselves that they are ready.

use super::{super::*, scene::*};
use crate::config::{PoolConfig, ReadyBy};

/// A pool that goes by consumers, with these workers, as many consumers, and three messages waiting.
fn seen(consumers: u64, workers: Vec<Worker>) -> Scene {
    let facts = QueueFacts::Present { ready: 3, consumers };
    Scene {
        pool: PoolConfig { ready_by: ReadyBy::Consumers, max_workers: Some(9), ..pool("p") },
        queues: vec![("q", known(facts))],
        ..Scene::with_workers(workers)
    }
}

/// The serials of those that count as ready after these looks, one after the other.
fn ready_after(looks: &[Scene]) -> Vec<u64> {
    let config = looks[0].config();
    let remembered =
        looks.iter().fold(Memory::default(), |memory, scene| remember(memory, &scene.observation(), &config));
    let Fact::Known { value, .. } = remembered.counted(looks[looks.len() - 1].workers.clone()) else {
        panic!("workers are unknown")
    };
    let is_ready = |worker: &&Worker| matches!(worker.phase, Phase::Ready { .. });
    value.iter().filter(is_ready).filter_map(|worker| worker.serial).collect()
}

/// A worker that runs since so many seconds.
fn running(serial: u64, since: u64) -> Worker {
    worker(serial, Phase::Ready { since: ago(since) })
}

#[test]
fn as_many_workers_are_ready_as_there_are_consumers_the_longest_running_first() {
    let three = || vec![running(1, 30), running(2, 40), running(3, 20)];
    for (consumers, expected) in
        [(0, vec![]), (1, vec![2]), (2, vec![1, 2]), (3, vec![1, 2, 3]), (9, vec![1, 2, 3])]
    {
        assert_eq!(ready_after(&[seen(consumers, three())]), expected, "{consumers} consumers");
    }
}

#[test]
fn once_ready_a_worker_stays_ready_and_its_consumer_is_not_lent_to_another_one() {
    let first = || running(1, 30);
    assert_eq!(ready_after(&[seen(1, vec![first()]), seen(0, vec![first()])]), [1]);
    assert_eq!(ready_after(&[seen(1, vec![first()]), seen(1, vec![first(), running(2, 60)])]), [1]);
    // Nor while it ends, but then.
    let draining = worker(1, Phase::Draining);
    assert_eq!(ready_after(&[seen(1, vec![first()]), seen(1, vec![draining, running(2, 5)])]), [0; 0]);
    assert_eq!(ready_after(&[seen(1, vec![first()]), seen(1, vec![running(2, 5)])]), [2]);
}

#[test]
fn consumers_that_were_counted_before_the_workers_prove_nothing() {
    let mut scene = seen(1, vec![running(1, 30)]);
    let facts = QueueFacts::Present { ready: 3, consumers: 1 };
    scene.queues = vec![("q", Fact::Known { value: facts, at: ago(1) })];
    assert_eq!(ready_after(&[scene]), [0; 0]);
    let unknown = Scene { queues: vec![("q", unknown(Why::Unreachable))], ..seen(1, vec![running(1, 30)]) };
    assert_eq!(ready_after(&[unknown]), [0; 0]);
}

#[test]
fn of_several_queues_that_with_the_most_consumers_counts() {
    let facts = |consumers| known(QueueFacts::Present { ready: 3, consumers });
    let two = Scene {
        queues: vec![("a", facts(1)), ("b", facts(2))],
        ..seen(0, vec![running(1, 30), running(2, 30), running(3, 30)])
    };
    assert_eq!(ready_after(&[two]), [1, 2]);
}

#[test]
fn a_pool_that_goes_by_probes_does_not_care() {
    let scene = seen(0, vec![running(1, 30)]);
    assert_eq!(ready_after(&[Scene { pool: pool("p"), ..scene }]), [1]);
}

#[test]
fn no_other_is_launched_beside_a_worker_without_a_consumer() {
    let decision = |consumers: u64| {
        let scene = seen(consumers, vec![running(1, 30)]);
        let memory = scene.memory();
        let mut observation = scene.observation();
        observation.workers = memory.counted(observation.workers);
        decide(&memory, &observation, &scene.config(), NOW)["p"].clone()
    };
    let Decision::Hold(Hold::WaitingForPending { pending: 1, cause, .. }) = decision(0) else {
        panic!("{:?}", decision(0))
    };
    assert_eq!(cause, PendingCause::NoConsumer);
    assert_eq!(decision(1), launches([1], DEPTH));
}
