//! Pools with an SLO: what the deadline plan makes of a scene.

use std::time::Duration;

use proptest::prelude::*;

use super::{super::*, scene::*};
use crate::config::{PoolConfig, SloConfig, Start};

/// An SLO of 300 s: 275 s to begin within.
fn slo_pool() -> PoolConfig {
    let slo = SloConfig {
        targets: vec![seconds(300)],
        pods_per_node: None,
        max_pending: None,
        start: Start::Immediate,
    };
    PoolConfig { slo: Some(slo), max_workers: Some(40), ..pool("p") }
}

fn slo(change: impl FnOnce(&mut SloConfig)) -> PoolConfig {
    let mut pool = slo_pool();
    change(pool.slo.as_mut().unwrap());
    pool
}

/// Work of one second a message, nodes that take 100 s, room that is found in 10 s.
fn estimates() -> Estimates {
    Estimates {
        service_time: Some(ServiceTime { mean_ms: 1000.0, weight: 200.0, recent_ms: None }),
        lead_times_ms: vec![10_000],
        cold_lead_times_ms: vec![100_000],
        ..Estimates::default()
    }
}

fn experienced(ready: u64, workers: impl Into<Vec<Worker>>) -> Scene {
    Scene {
        pool: slo_pool(),
        queues: vec![("q", known(waiting(ready)))],
        state: PoolState { estimates: estimates(), ..PoolState::default() },
        ..Scene::with_workers(workers)
    }
}

fn inexperienced(workers: impl Into<Vec<Worker>>) -> Scene {
    Scene { state: PoolState::default(), ..experienced(3, workers) }
}

fn on(node: &str, worker: Worker) -> Worker {
    Worker { node: Some(node.to_owned()), ..worker }
}

fn at_risk(ready: u64, age: f64) -> LaunchReason {
    LaunchReason::DeadlineAtRisk { ready, age: Duration::from_secs_f64(age), slo: seconds(300) }
}

fn hold(hold: Hold) -> Decision {
    Decision::Hold(hold)
}

fn on_time(slack: f64) -> Decision {
    hold(Hold::OnTime { slack: Duration::from_secs_f64(slack) })
}

fn launched(decision: &Decision) -> usize {
    if let Decision::Launch(launch) = decision { launch.slots.len() } else { 0 }
}

#[test]
fn while_nobody_knows_how_long_work_takes_workers_come_one_by_one() {
    let learning = LaunchReason::Learning { ready: 3 };
    let wait = |cause| hold(Hold::WaitingForPending { pending: 1, age: seconds(30), cause, detail: None });
    check(vec![
        ("nobody lives", inexperienced([]), launches([0], learning)),
        ("one is pending", inexperienced([starting(1)]), wait(PendingCause::Starting)),
        ("one works, and messages wait", inexperienced([ready(1)]), launches([1], learning)),
    ]);
}

#[test]
fn deadlines_decide_not_depth() {
    fn at_most(maximum: u32, ready: u64, workers: impl Into<Vec<Worker>>) -> Scene {
        let pool = PoolConfig { max_workers: Some(maximum), ..slo_pool() };
        Scene { pool, ..experienced(ready, workers) }
    }
    check(vec![
        // Five seconds old, and a node's 100 s.
        ("from zero at once", experienced(1, []), launches([0], at_risk(1, 105.0))),
        (
            "no more workers than messages",
            Scene { pool: slo(|slo| slo.pods_per_node = Some(4)), ..experienced(2, []) },
            launches([0, 1], at_risk(2, 100.0 + 5.0 + 0.5)),
        ),
        (
            "no more workers than have a message to take, where each takes two at once",
            Scene {
                pool: PoolConfig { concurrency: 2, ..slo(|slo| slo.pods_per_node = Some(4)) },
                ..experienced(3, [])
            },
            launches([0, 1], at_risk(3, 100.0 + 5.0 + 0.5)),
        ),
        (
            "whole nodes",
            Scene { pool: slo(|slo| slo.pods_per_node = Some(4)), ..experienced(201, []) },
            launches([0, 1, 2, 3], at_risk(201, 100.0 + 5.0 + 50.0)),
        ),
        (
            "whole nodes as learned",
            Scene {
                state: PoolState {
                    estimates: Estimates { pods_per_node: Some(3), ..estimates() },
                    ..PoolState::default()
                },
                ..experienced(201, [])
            },
            launches([0, 1, 2], at_risk(201, 100.0 + 5.0 + 200.0 / 3.0)),
        ),
        // Half a message in work, and 100 before the last.
        ("in time", experienced(101, [ready(1)]), on_time(275.0 - 5.0 - 100.5)),
        (
            "never above the maximum",
            at_most(3, 500, []),
            launches([0, 1, 2], at_risk(500, 105.0 + 499.0 / 3.0)),
        ),
        ("at the maximum", at_most(1, 500, [ready(1)]), hold(Hold::AtMaximum { occupied: 1, maximum: 1 })),
        (
            "what is late whatever comes",
            Scene { since: seconds(900), ..experienced(1, [ready(1)]) },
            hold(Hold::NothingHelps { age: Duration::from_millis(900_500), slo: seconds(300) }),
        ),
        ("nothing waits", experienced(0, [ready(1)]), hold(Hold::Empty)),
    ]);
}

#[test]
fn a_late_start_waits_for_the_last_moment() {
    let late = |since| Scene {
        pool: slo(|slo| slo.start = Start::Latest),
        since: seconds(since),
        ..experienced(1, [])
    };
    check(vec![
        ("fresh", late(5), hold(Hold::Batching { launch_by: in_future(170) })),
        ("nearly", late(170), hold(Hold::Batching { launch_by: in_future(5) })),
        ("now", late(171), launches([0], at_risk(1, 271.0))),
    ]);
}

#[test]
fn pending_workers_are_expected_by_their_kind_and_age() {
    let decide = |worker: Worker| experienced(251, [worker]).decide();
    // Launched 30 s ago: room is found in 10 s, overdue in 2 s; a node takes 70 s more; 250 s of work.
    assert_eq!(decide(on("a", starting(1))), on_time(275.0 - 5.0 - 252.0));
    let waits = Worker { cold: true, ..starting(1) };
    assert!(matches!(decide(waits), Decision::Hold(Hold::Batching { .. })), "50 s late: more than 8 %");
    assert!(matches!(decide(unstarted(1)), Decision::Hold(Hold::Batching { .. })), "its node is coming");
    let young = PoolState { intents: vec![intent(1, ago(1))], ..experienced(251, []).state };
    let intended = Scene { state: young, ..experienced(251, []) };
    assert!(matches!(intended.decide(), Decision::Hold(Hold::Batching { .. })), "no room is known");
    let young = PoolState { intents: vec![intent(1, ago(1))], ..experienced(100, []).state };
    let enough = Scene { state: young, since: seconds(60), ..experienced(100, []) };
    assert!(matches!(enough.decide(), Decision::Hold(Hold::OnTime { .. })), "it is counted on");
    let old = PoolState { intents: vec![intent(1, ago(61))], ..experienced(1, []).state };
    let lost = Scene { state: old, since: seconds(200), ..experienced(2, []) };
    assert_eq!(launched(&lost.decide()), 1, "an intent that never becomes a worker is not counted on");
}

#[test]
fn no_more_workers_are_pending_than_may_be() {
    let scene = |workers: Vec<Worker>| Scene {
        pool: slo(|slo| slo.max_pending = Some(2)),
        since: seconds(200),
        ..experienced(2000, workers)
    };
    assert_eq!(launched(&scene(vec![]).decide()), 2);
    assert_eq!(launched(&scene(vec![starting(1)]).decide()), 1);
    let both = scene(vec![starting(1), starting(2)]).decide();
    assert!(matches!(both, Decision::Hold(Hold::WaitingForPending { .. })), "{both}");
    assert_eq!(launched(&scene(vec![ready(1), starting(2)]).decide()), 1, "ready ones are not pending");
}

#[test]
fn room_on_nodes_that_are_paid_for_is_used_first() {
    let four = |slo: &mut SloConfig| slo.pods_per_node = Some(4);
    let scene = |ready_messages, workers: Vec<Worker>| Scene {
        pool: slo(four),
        ..experienced(ready_messages, workers)
    };
    // It is urgent; two more that begin after 10 s are enough, and the third place is paid for as well.
    let urgent = Scene { since: seconds(200), ..scene(200, vec![on("a", ready(1))]) };
    assert_eq!(launched(&urgent.decide()), 3, "{}", urgent.decide());
    let short = Scene { since: seconds(265), ..scene(17, vec![on("a", ready(1))]) };
    assert_eq!(launched(&short.decide()), 1, "not enough for more: {}", short.decide());
    let other = on("a", Worker { pool: "other".to_owned(), ..ready(9) });
    let crowded = Scene {
        since: seconds(200),
        ..scene(200, vec![on("a", ready(1)), other.clone(), other.clone(), other])
    };
    assert_eq!(launched(&crowded.decide()), 4, "other pools' workers take room: {}", crowded.decide());
    // In time, but three free places are paid for: 100 s of work less what is done before they begin.
    let paid = scene(100, vec![on("a", ready(1))]);
    let top_up = LaunchReason::TopUp { ready: 100, drains_in: seconds(100) };
    assert_eq!(paid.decide(), launches([1, 2, 3], top_up));
    let short = scene(17, vec![on("a", ready(1))]);
    assert_eq!(launched(&short.decide()), 1, "each is to have 10 s of work: {}", short.decide());
    // More need never gets less of what is paid for, though more is late, or a node would do later.
    for messages in [260, 271, 500, 1000] {
        let more = scene(messages, vec![on("a", ready(1))]);
        assert_eq!(launched(&more.decide()), 3, "{messages}: {}", more.decide());
    }
    let late = Scene { since: seconds(400), ..scene(20, vec![on("a", ready(1))]) };
    assert_eq!(
        launched(&late.decide()),
        2,
        "also where nothing helps those that are late: {}",
        late.decide()
    );
    let pending = scene(100, vec![on("a", ready(1)), on("a", starting(2))]);
    assert_eq!(launched(&pending.decide()), 0, "one after the other: {}", pending.decide());
}

#[test]
fn each_queue_has_its_own_promise() {
    let queues = |urgent: u64, bulk: u64| Scene {
        pool: slo(|slo| slo.targets = vec![seconds(300), seconds(3600)]),
        queues: vec![("a", known(waiting(urgent))), ("b", known(waiting(bulk)))],
        ..experienced(0, [ready(1)])
    };
    assert!(matches!(after(5, &queues(30, 3000)), Decision::Hold(Hold::OnTime { .. })));
    let batching = |scene| matches!(after(5, &scene), Decision::Hold(Hold::Batching { .. }));
    assert!(batching(queues(290, 3000)), "the urgent ones would begin too late");
    assert!(batching(queues(30, 3500)), "the others would, behind them");
    assert!(!batching(queues(0, 3400)), "alone they do not");
    let gone =
        Scene { queues: vec![("a", unknown(Why::Forbidden)), ("b", known(waiting(3000)))], ..queues(0, 0) };
    assert!(matches!(after(5, &gone), Decision::Hold(Hold::OnTime { .. })), "what is known counts");
}

/// What is decided `later` seconds after the same was seen for the first time.
fn after(later: u64, scene: &Scene) -> Decision {
    let config = scene.config();
    let mut first = scene.observation();
    let mut observation = scene.observation();
    for (seen, at) in [(&mut first, ago(later)), (&mut observation, NOW)] {
        for fact in seen.queues.values_mut() {
            if let Fact::Known { at: seen, .. } = fact {
                *seen = at;
            }
        }
        if let Fact::Known { at: seen, .. } = &mut seen.workers {
            *seen = at;
        }
        if let Fact::Known { at: seen, .. } = &mut seen.state {
            *seen = at;
        }
    }
    let memory = remember(remember(Memory::default(), &first, &config), &observation, &config);
    decide(&memory, &observation, &config, NOW).remove("p").unwrap()
}

fn withdrawn(decision: &Decision) -> Vec<&str> {
    match decision {
        Decision::Withdraw(withdraw) => withdraw.workers.iter().map(String::as_str).collect(),
        _ => Vec::new(),
    }
}

#[test]
fn pending_workers_that_would_find_nothing_are_taken_back() {
    let scene = |ready_messages, serials: u64| {
        experienced(ready_messages, (1..=serials).map(unstarted).collect::<Vec<_>>())
    };
    let learning =
        |ready_messages, serials| Scene { state: PoolState::default(), ..scene(ready_messages, serials) };
    assert_eq!(withdrawn(&after(9, &learning(2, 3))), [""; 0], "not for long enough");
    assert_eq!(withdrawn(&after(10, &learning(2, 3))), ["worker-3"]);
    assert_eq!(withdrawn(&after(10, &scene(0, 2))), ["worker-2", "worker-1"]);
    let blind =
        Scene { queues: vec![("q", known(waiting(0))), ("r", unknown(Why::Forbidden))], ..scene(0, 2) };
    let blind = Scene { pool: slo(|slo| slo.targets = vec![seconds(300); 2]), ..blind };
    assert_eq!(withdrawn(&after(10, &blind)), [""; 0], "something may wait where nobody sees");
}

#[test]
fn pending_workers_that_the_plan_holds_without_are_taken_back_by_whole_nodes() {
    let four = |slo: &mut SloConfig| slo.pods_per_node = Some(4);
    let scene = |ready_messages, serials: u64| Scene {
        pool: slo(four),
        ..experienced(ready_messages, (1..=serials).map(unstarted).collect::<Vec<_>>())
    };
    // Two do; the two that share their node are free.
    let names = ["worker-8", "worker-7", "worker-6", "worker-5"];
    assert_eq!(withdrawn(&after(10, &scene(250, 8))), names);
    assert_eq!(withdrawn(&after(10, &scene(250, 4))), [""; 0]);
    assert_eq!(withdrawn(&after(10, &scene(900, 8))), [""; 0], "six are needed");
    let paid_for = Scene { pool: slo(four), ..experienced(100, [on("a", ready(1)), on("a", unstarted(2))]) };
    assert_eq!(withdrawn(&after(10, &paid_for)), [""; 0], "its node is there anyway");
    let at_least =
        |minimum| Scene { pool: PoolConfig { min_workers: minimum, ..slo(four) }, ..scene(250, 8) };
    assert_eq!(withdrawn(&after(10, &at_least(4))), names);
    assert_eq!(withdrawn(&after(10, &at_least(5))), [""; 0], "a part of a node frees none");
}

#[test]
fn every_decision_by_deadline_has_a_sentence() {
    let sentence = |scene: Scene| {
        let decision = scene.decide();
        (decision.as_str(), decision.to_string())
    };
    insta::assert_debug_snapshot!([
        sentence(inexperienced([])),
        sentence(experienced(1, [])),
        sentence(experienced(101, [ready(1)])),
        sentence(Scene { pool: slo(|slo| slo.start = Start::Latest), ..experienced(1, []) }),
        sentence(Scene { since: seconds(900), ..experienced(1, [ready(1)]) }),
        sentence(Scene { pool: slo(|slo| slo.pods_per_node = Some(4)), ..experienced(100, [on("a", ready(1))]) }),
    ], @r#"
    [
        (
            "Learning",
            "launch 1: 3 messages wait, how long one takes is to be learned",
        ),
        (
            "DeadlineAtRisk",
            "launch 1: 1 messages wait; with this the latest begins 105.0 s after it came, of 300.0 s",
        ),
        (
            "OnTime",
            "hold: all begins in time, with 169.5 s to spare",
        ),
        (
            "Batching",
            "hold: a launch is needed by 2027-01-15T08:02:50.000Z, not before",
        ),
        (
            "NothingHelps",
            "hold: the latest begins 900.5 s after it came, of 300.0 s, whatever is launched",
        ),
        (
            "TopUp",
            "launch 3: 100 messages wait, drained in 100.0 s; nodes that are paid for have room",
        ),
    ]
    "#);
}

proptest! {
    #![proptest_config(cases(500))]
    #[test]
    fn from_zero_more_messages_or_a_longer_wait_never_launch_fewer(
        ready in 1..3000_u64,
        more in 0..3000_u64,
        since in 1..30_u64,
        longer in 0..600_u64,
        service_ms in 1.0..100_000.0,
        per_node in prop::option::of(1..9_u32),
        target in 1..4000_u64,
        max_workers in prop::option::of(0..60_u32),
    ) {
        let launched = |ready, since| {
            let pool = slo(|slo| {
                slo.pods_per_node = per_node;
                slo.targets = vec![seconds(target)];
            });
            let mut state = PoolState { estimates: estimates(), ..PoolState::default() };
            state.estimates.service_time = Some(ServiceTime { mean_ms: service_ms, weight: 200.0, recent_ms: None });
            let queues = vec![("q", known(waiting(ready)))];
            let scene = Scene { pool: PoolConfig { max_workers, ..pool }, queues, state, ..base() };
            launched(&after(since, &scene))
        };
        prop_assert!(launched(ready, since) <= launched(ready + more, since + longer));
        prop_assert!(max_workers == Some(0) || launched(ready, since) > 0, "an immediate start waits for nothing");
    }

    /// What more need may do is to put a larger step off, of which a smaller one could not be: then it comes by its
    /// last moment.
    #[test]
    fn beside_living_workers_more_messages_never_launch_fewer(
        messages in 1..2000_u64,
        more in 0..2000_u64,
        since in 1..400_u64,
        service_ms in 1.0..20_000.0,
        per_node in 1..9_u32,
        target in 20..2000_u64,
        (working, coming, nodes) in (1..6_u64, 0..3_u64, 1..4_u64),
    ) {
        let decided = |messages| {
            let pool = slo(|slo| {
                slo.pods_per_node = Some(per_node);
                slo.targets = vec![seconds(target)];
            });
            let worker = |serial| match serial {
                serial if serial <= working => on(&format!("n{}", serial % nodes), ready(serial)),
                serial => unstarted(serial),
            };
            let scene = experienced(messages, (1..=working + coming).map(worker).collect::<Vec<_>>());
            let mut state = scene.state.clone();
            state.estimates.service_time = Some(ServiceTime { mean_ms: service_ms, weight: 200.0, recent_ms: None });
            Scene { pool, state, since: seconds(since), ..scene }.decide()
        };
        let (less, more) = (decided(messages), decided(messages + more));
        let by_deadline = matches!(&less, Decision::Launch(Launch { reason: LaunchReason::DeadlineAtRisk { .. }, .. }));
        let put_off = matches!(more, Decision::Hold(Hold::Batching { .. }))
            || matches!(&more, Decision::Launch(Launch { reason: LaunchReason::TopUp { .. }, .. }));
        prop_assert!(launched(&less) <= launched(&more) || (by_deadline && put_off), "{less}, with more {more}");
    }
}
