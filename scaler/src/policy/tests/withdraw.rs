//! What nothing needs any more is taken back, if it has not started.

use super::{super::*, scene::*};
use crate::config::PoolConfig;

fn empty_for(age: u64, workers: Vec<Worker>) -> Scene {
    Scene { queues: vec![("q", known(waiting(0)))], since: seconds(age), ..Scene::with_workers(workers) }
}

fn takes(workers: &[u64], unneeded_for: u64) -> Decision {
    Decision::Withdraw(Withdraw {
        workers: workers.iter().map(|serial| format!("worker-{serial}")).collect(),
        unneeded_for: seconds(unneeded_for),
    })
}

#[test]
fn pending_workers_are_taken_back_when_nothing_waited_for_long_enough() {
    let empty = Decision::Hold(Hold::Empty);
    let warm =
        |minimum, scene: Scene| Scene { pool: PoolConfig { min_workers: minimum, ..pool("p") }, ..scene };
    let just_launched = Worker { launched: ago(4), ..unstarted(2) };
    let initializing = worker(1, pending(false, PendingCause::Initializing, ago(30)));
    let by_hand = Worker { serial: None, slot: None, ..unstarted(1) };
    check(vec![
        ("not long enough", empty_for(9, vec![unstarted(1)]), empty.clone()),
        ("long enough", empty_for(10, vec![unstarted(1)]), takes(&[1], 10)),
        (
            "newest first",
            empty_for(12, vec![unstarted(1), unstarted(3), unstarted(2)]),
            takes(&[3, 2, 1], 12),
        ),
        ("never one that has started", empty_for(12, vec![starting(1), unstarted(2)]), takes(&[2], 12)),
        (
            "never one whose init containers run",
            empty_for(12, vec![initializing, unstarted(2)]),
            takes(&[2], 12),
        ),
        ("never a ready one", empty_for(12, vec![ready(1)]), empty.clone()),
        ("never one that a person started", empty_for(12, vec![by_hand]), empty.clone()),
        (
            "never below the minimum",
            warm(1, empty_for(12, vec![unstarted(1), unstarted(2)])),
            takes(&[2], 12),
        ),
        (
            "ready ones count for the minimum",
            warm(1, empty_for(12, vec![ready(1), unstarted(2)])),
            takes(&[2], 12),
        ),
        (
            "none when only the minimum lives",
            warm(2, empty_for(12, vec![unstarted(1), unstarted(2)])),
            empty.clone(),
        ),
        (
            "one that somebody launched a moment ago has its chance",
            empty_for(12, vec![unstarted(1), just_launched]),
            takes(&[1], 12),
        ),
        (
            "not while the depth is stale",
            Scene {
                queues: vec![("q", Fact::Known { value: waiting(0), at: ago(3) })],
                ..empty_for(12, vec![unstarted(1)])
            },
            Decision::Hold(Hold::Unknown {
                what: UnknownWhat::Queue("q".to_owned()),
                unknown: Unknown {
                    why: Why::Stale,
                    detail: "the last answer is too old".to_owned(),
                    since: ago(3),
                },
            }),
        ),
        (
            "not while another queue of the pool is unknown",
            Scene {
                queues: vec![("q", known(waiting(0))), ("r", unknown(Why::Forbidden))],
                ..empty_for(12, vec![unstarted(1)])
            },
            Decision::Hold(Hold::Unknown {
                what: UnknownWhat::Queue("r".to_owned()),
                unknown: the_unknown(Why::Forbidden),
            }),
        ),
        (
            "a missing queue needs nobody",
            Scene { queues: vec![("q", known(QueueFacts::Missing))], ..empty_for(12, vec![unstarted(1)]) },
            takes(&[1], 12),
        ),
        (
            "also while cooling down",
            Scene {
                state: PoolState { cooldown_until: Some(in_future(5)), ..PoolState::default() },
                ..empty_for(12, vec![unstarted(1)])
            },
            takes(&[1], 12),
        ),
        (
            "not while paused: a person decides",
            Scene {
                state: PoolState { paused: true, ..PoolState::default() },
                ..empty_for(12, vec![unstarted(1)])
            },
            Decision::Hold(Hold::Paused { everything: false }),
        ),
        (
            "an open intent cannot be taken back, but counts for the minimum",
            Scene {
                state: PoolState { intents: vec![intent(9, ago(30))], ..PoolState::default() },
                ..warm(1, empty_for(12, vec![unstarted(1)]))
            },
            takes(&[1], 12),
        ),
    ]);
}

#[test]
fn an_unknown_look_in_between_begins_the_wait_anew() {
    let scene = empty_for(60, vec![unstarted(1)]);
    let config = scene.config();
    let memory = scene.memory();
    assert_eq!(memory.empty_since("p"), Some(ago(60)));
    let mut blind = scene.observation();
    blind.queues.insert("q".to_owned(), unknown(Why::Unreachable));
    let memory = remember(remember(memory, &blind, &config), &scene.observation(), &config);
    assert_eq!(memory.empty_since("p"), Some(NOW));
}

#[test]
fn one_empty_queue_does_not_begin_the_wait_while_another_is_unknown() {
    let scene = empty_for(60, vec![unstarted(1)]);
    let half = Scene { queues: vec![("q", known(waiting(0))), ("r", unknown(Why::Forbidden))], ..scene };
    let memory = remember(Memory::default(), &half.observation(), &half.config());
    assert_eq!(memory.empty_since("p"), None);
}
