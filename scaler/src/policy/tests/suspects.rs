//! What waits in `Q.suspect` counts as the pool's need.

use super::{super::*, scene::*};

/// An empty queue, and these suspects.
fn suspected(suspects: Fact<QueueFacts>) -> Scene {
    Scene { queues: vec![("q", known(waiting(0)))], suspects: vec![("q", suspects)], ..base() }
}

fn hold_unknown(queue: &str, unknown: Unknown) -> Decision {
    Decision::Hold(Hold::Unknown { what: UnknownWhat::Queue(queue.to_owned()), unknown })
}

#[test]
fn suspects_are_need_as_far_as_they_are_known() {
    let seen = |value, at| Fact::Known { value, at: ago(at) };
    let stale = |since| Unknown { why: Why::Stale, detail: "the last answer is too old".to_owned(), since };
    let empty = || Decision::Hold(Hold::Empty);
    check(vec![
        ("suspects alone get a worker", suspected(known(waiting(3))), launches([0], DEPTH)),
        (
            "suspects are added to what waits",
            Scene { queues: vec![("q", known(waiting(1)))], ..suspected(known(waiting(2))) },
            launches([0], DEPTH),
        ),
        ("no suspects, no need", suspected(known(waiting(0))), empty()),
        ("with none there they are looked at more rarely", suspected(seen(waiting(0), 5)), empty()),
        ("no queue for suspects", suspected(known(QueueFacts::Missing)), empty()),
        ("it is asked for once a minute", suspected(seen(QueueFacts::Missing, 90)), empty()),
        (
            "then it is not known any more",
            suspected(seen(QueueFacts::Missing, 91)),
            hold_unknown("q.suspect", stale(ago(91))),
        ),
        ("suspects seen long ago", suspected(seen(waiting(3), 6)), hold_unknown("q.suspect", stale(ago(6)))),
        (
            "suspects that may not be looked at",
            suspected(unknown(Why::Forbidden)),
            hold_unknown("q.suspect", the_unknown(Why::Forbidden)),
        ),
        (
            "suspects that may not be looked at hold back no launch",
            Scene { queues: vec![("q", known(waiting(3)))], ..suspected(unknown(Why::Forbidden)) },
            launches([0], DEPTH),
        ),
        (
            "suspects of a queue that is missing: a worker could not start",
            Scene { queues: vec![("q", known(QueueFacts::Missing))], ..suspected(known(waiting(3))) },
            Decision::Hold(Hold::QueueMissing { queue: "q".to_owned() }),
        ),
    ]);
}

#[test]
fn suspects_have_an_age_of_their_own_and_the_greater_one_counts() {
    let mut scene = suspected(known(waiting(1)));
    scene.pool.target_queue_size = 10;
    scene.pool.force_empty_queue_interval = seconds(4);
    let old = LaunchReason::MessageTooOld { ready: 1, age: seconds(5), limit: seconds(4) };
    assert_eq!(scene.memory().suspects_age("q", NOW).map(|age| age.estimate), Some(seconds(5)));
    assert_eq!(scene.memory().age("q", NOW), None);
    assert_eq!(scene.decide(), launches([0], old));
}

#[test]
fn a_pending_worker_is_not_taken_back_while_suspects_wait_or_are_unknown() {
    let with =
        |suspects| Scene { workers: known(vec![unstarted(1)]), since: seconds(60), ..suspected(suspects) };
    let taken = with(known(waiting(0))).decide();
    assert!(matches!(taken, Decision::Withdraw(_)), "{taken}");
    for suspects in [known(waiting(1)), unknown(Why::Unreachable)] {
        let kept = with(suspects).decide();
        assert!(matches!(kept, Decision::Hold(_)), "{kept}");
    }
}

/// A worker takes a suspect alone and puts it back at the tail when it dies, without being seen at the queue.
#[test]
fn while_a_worker_may_live_the_wait_of_suspects_proves_no_age() {
    let at_least = |workers: Vec<Worker>| {
        let mut memory = Memory::default();
        let scene = Scene { workers: known(workers), ..suspected(known(waiting(2))) };
        for look in 0..5 {
            let mut observation = scene.observation();
            for fact in observation.queues.values_mut().chain(observation.suspects.values_mut()) {
                let Fact::Known { at, .. } = fact else { continue };
                *at = ago(4 - look);
            }
            memory = remember(memory, &observation, &scene.config());
        }
        memory.suspects_age("q", NOW).unwrap().at_least
    };
    assert_eq!(at_least(Vec::new()), seconds(4));
    assert_eq!(at_least(vec![ready(1)]), seconds(0));
}

#[test]
fn what_the_age_of_suspects_is_counted_from_survives_a_restart() {
    let scene = suspected(known(waiting(2)));
    let pool = pool("p");
    let marks: Vec<_> = scene.memory().marks(&pool).collect();
    let names: Vec<_> = marks.iter().map(|(name, _)| &**name).collect();
    assert_eq!(names, ["q", "q.suspect"]);
    let estimates = Estimates { queues: marks.into_iter().collect(), ..Estimates::default() };
    let restarted = Scene { state: PoolState { estimates, ..PoolState::default() }, ..scene };
    let memory = remember(Memory::default(), &restarted.observation(), &restarted.config());
    assert_eq!(memory.suspects_age("q", NOW).unwrap().estimate, seconds(5));
}
