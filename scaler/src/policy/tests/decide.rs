//! Every reason to launch and to hold (facts: the pseudo-code of the policy, top to bottom).

use super::{super::*, scene::*};
use crate::config::{PoolConfig, SloConfig, Start, scheduled};

fn hold(hold: Hold) -> Decision {
    Decision::Hold(hold)
}

fn pending_for_30_s(pending: u32, cause: PendingCause) -> Decision {
    hold(Hold::WaitingForPending { pending, age: seconds(30), cause, detail: None })
}

#[test]
fn what_is_unknown_or_stale_never_launches() {
    let holds = |what: UnknownWhat, unknown: Unknown| hold(Hold::Unknown { what, unknown });
    let stale = |since| Unknown { why: Why::Stale, detail: "the last answer is too old".to_owned(), since };
    let queue = || UnknownWhat::Queue("q".to_owned());
    check(vec![
        (
            "workers could not be listed",
            Scene { workers: unknown(Why::Unreachable), ..base() },
            holds(UnknownWhat::Workers, the_unknown(Why::Unreachable)),
        ),
        (
            "the listing is older than 30 s",
            Scene { workers: Fact::Known { value: Vec::new(), at: ago(31) }, ..base() },
            holds(UnknownWhat::Workers, stale(ago(31))),
        ),
        (
            "a listing of 30 s is accepted, so that an idle cadence does not slow a cold start",
            Scene { workers: Fact::Known { value: Vec::new(), at: ago(30) }, ..base() },
            launches([0], DEPTH),
        ),
        (
            "the state cannot be read",
            Scene { state_known: unknown(Why::Unusable), ..base() },
            holds(UnknownWhat::State, the_unknown(Why::Unusable)),
        ),
        (
            "the state was read more than 30 s ago",
            Scene { state_known: Fact::Known { value: (), at: ago(31) }, ..base() },
            holds(UnknownWhat::State, stale(ago(31))),
        ),
        (
            "the only queue is forbidden",
            Scene { queues: vec![("q", unknown(Why::Forbidden))], ..base() },
            holds(queue(), the_unknown(Why::Forbidden)),
        ),
        (
            "the depth is older than 2 s",
            Scene { queues: vec![("q", Fact::Known { value: waiting(3), at: ago(3) })], ..base() },
            holds(queue(), stale(ago(3))),
        ),
        (
            "a depth of 2 s is fresh",
            Scene { queues: vec![("q", Fact::Known { value: waiting(3), at: ago(2) })], ..base() },
            launches([0], DEPTH),
        ),
        (
            "unknown workers hold even below the minimum",
            Scene {
                pool: PoolConfig { min_workers: 1, ..pool("p") },
                workers: unknown(Why::Unreachable),
                ..base()
            },
            holds(UnknownWhat::Workers, the_unknown(Why::Unreachable)),
        ),
        (
            "with no queue known not even the minimum is launched",
            Scene {
                pool: PoolConfig { min_workers: 1, ..pool("p") },
                queues: vec![("q", unknown(Why::Unreachable))],
                ..base()
            },
            holds(queue(), the_unknown(Why::Unreachable)),
        ),
    ]);
}

#[test]
fn of_several_queues_the_known_ones_count() {
    let q = |first, second| Scene { queues: vec![("a", first), ("b", second)], ..base() };
    let sum = LaunchReason::DepthAbove { ready: 5, target: 0 };
    check(vec![
        ("depths add up", q(known(waiting(2)), known(waiting(3))), launches([0], sum)),
        (
            "an unknown queue adds no need",
            q(unknown(Why::Forbidden), known(waiting(3))),
            launches([0], DEPTH),
        ),
        (
            "a missing queue adds no need",
            q(known(QueueFacts::Missing), known(waiting(3))),
            launches([0], DEPTH),
        ),
        (
            "an empty queue beside an unknown one proves nothing",
            q(known(waiting(0)), unknown(Why::Forbidden)),
            hold(Hold::Unknown {
                what: UnknownWhat::Queue("b".to_owned()),
                unknown: the_unknown(Why::Forbidden),
            }),
        ),
        (
            "an empty queue beside a missing one is empty",
            q(known(waiting(0)), known(QueueFacts::Missing)),
            hold(Hold::Empty),
        ),
        (
            "where no queue exists the first is named",
            q(known(QueueFacts::Missing), known(QueueFacts::Missing)),
            hold(Hold::QueueMissing { queue: "a".to_owned() }),
        ),
    ]);
}

#[test]
fn of_several_queues_the_oldest_message_decides_the_age() {
    let scene = Scene {
        pool: PoolConfig { target_queue_size: 9, ..pool("p") },
        queues: vec![("a", known(waiting(1))), ("b", known(waiting(1)))],
        ..base()
    };
    let config = scene.config();
    let looks = [(90, 0, 0), (71, 0, 0), (70, 0, 1), (5, 1, 1), (0, 1, 1)];
    for swapped in [false, true] {
        let memory = looks.iter().fold(Memory::default(), |memory, &(age, a, b)| {
            let (a, b) = if swapped { (b, a) } else { (a, b) };
            let mut seen = scene.observation();
            for (queue, ready) in [("a", a), ("b", b)] {
                seen.queues.insert(queue.to_owned(), Fact::Known { value: waiting(ready), at: ago(age) });
            }
            remember(memory, &seen, &config)
        });
        let reason = LaunchReason::MessageTooOld { ready: 2, age: seconds(71), limit: seconds(60) };
        assert_eq!(decide(&memory, &scene.observation(), &config, NOW)["p"], launches([0], reason));
    }
}

#[test]
fn depth_alone_launches_strictly_above_the_target() {
    let with_target = |target, count| Scene {
        pool: PoolConfig { target_queue_size: target, ..pool("p") },
        queues: vec![("q", known(waiting(count)))],
        ..base()
    };
    let below =
        |ready, target| hold(Hold::BelowThreshold { ready, target, age: seconds(5), limit: seconds(60) });
    check(vec![
        ("nothing waits", with_target(0, 0), hold(Hold::Empty)),
        (
            "one message is enough for target 0",
            with_target(0, 1),
            launches([0], LaunchReason::DepthAbove { ready: 1, target: 0 }),
        ),
        ("as many as the target are not enough", with_target(50, 50), below(50, 50)),
        (
            "one more is",
            with_target(50, 51),
            launches([0], LaunchReason::DepthAbove { ready: 51, target: 50 }),
        ),
    ]);
}

#[test]
fn a_small_batch_is_held_back_until_it_is_old_enough() {
    let small = |age: u64| Scene {
        pool: PoolConfig { target_queue_size: 50, ..pool("p") },
        since: seconds(age),
        ..base()
    };
    let busy = |age: u64, last_launch: u64| Scene {
        workers: known(vec![ready(1)]),
        state: PoolState { last_settled_launch: Some(ago(last_launch)), ..PoolState::default() },
        ..small(age)
    };
    let held =
        |age: u64| hold(Hold::BelowThreshold { ready: 3, target: 50, age: seconds(age), limit: seconds(60) });
    let old = |age: u64| LaunchReason::MessageTooOld { ready: 3, age: seconds(age), limit: seconds(60) };
    let draining = worker(1, Phase::Draining);
    check(vec![
        ("too young", small(5), held(5)),
        ("exactly the interval is not older", small(60), held(60)),
        ("older than the interval", small(61), launches([0], old(61))),
        (
            "a worker on a two-hour job does not keep it waiting for ever",
            busy(61, 61),
            launches([1], old(61)),
        ),
        ("but with useful workers alive one launch an interval is enough", busy(61, 59), held(61)),
        ("too young with a worker alive", busy(30, 100), held(30)),
        (
            "a draining worker serves nobody any more",
            Scene { workers: known(vec![draining]), ..busy(61, 20) },
            launches([1], old(61)),
        ),
    ]);
}

#[test]
fn one_worker_at_a_time_while_one_is_pending() {
    let gate = |increment, scaling, workers: Vec<Worker>| Scene {
        pool: PoolConfig { scale_increment: increment, max_pending_while_scaling: scaling, ..pool("p") },
        ..Scene::with_workers(workers)
    };
    let coming = PendingCause::NodeComing;
    check(vec![
        (
            "one that starts blocks the next",
            gate(1, 1, vec![starting(1)]),
            pending_for_30_s(1, PendingCause::Starting),
        ),
        ("so does one whose node is coming", gate(1, 1, vec![unstarted(1)]), pending_for_30_s(1, coming)),
        ("a ready one does not", gate(1, 1, vec![ready(1)]), launches([1], DEPTH)),
        (
            "nor one of another pool",
            gate(1, 1, vec![Worker { pool: "other".to_owned(), ..starting(1) }]),
            launches([0], DEPTH),
        ),
        ("an increment of 3 launches 3", gate(3, 1, vec![]), launches([0, 1, 2], DEPTH)),
        ("and fills up to 3 pending", gate(3, 1, vec![starting(1)]), launches([1, 2], DEPTH)),
        (
            "but no more",
            gate(3, 1, vec![starting(1), starting(2), starting(3)]),
            pending_for_30_s(3, PendingCause::Starting),
        ),
        (
            "while all wait for a node a higher gate holds",
            gate(1, 3, vec![unstarted(1)]),
            launches([1], DEPTH),
        ),
        (
            "up to its limit",
            gate(1, 3, vec![unstarted(1), unstarted(2), unstarted(3)]),
            pending_for_30_s(3, coming),
        ),
        (
            "one that starts already closes it",
            gate(1, 3, vec![unstarted(1), starting(2)]),
            pending_for_30_s(2, coming),
        ),
        ("with none pending the higher gate is not used", gate(1, 3, vec![]), launches([0], DEPTH)),
    ]);
}

#[test]
fn an_intent_counts_as_pending_and_keeps_its_slot_until_its_job_is_seen() {
    let intended = |intents: Vec<Intent>, workers: Vec<Worker>, increment| Scene {
        pool: PoolConfig { scale_increment: increment, ..pool("p") },
        state: PoolState { intents, next_serial: 9, ..PoolState::default() },
        ..Scene::with_workers(workers)
    };
    check(vec![
        (
            "not seen as a Job",
            intended(vec![intent(1, ago(30))], vec![], 1),
            pending_for_30_s(1, PendingCause::Intended),
        ),
        (
            "seen as a Job it counts once",
            intended(vec![intent(1, ago(30))], vec![starting(1)], 1),
            pending_for_30_s(1, PendingCause::Starting),
        ),
        ("its slot is taken", intended(vec![intent(1, ago(30))], vec![], 3), launches([1, 2], DEPTH)),
        (
            "an unseen intent closes the higher gate: nobody knows of a node for it",
            Scene {
                pool: PoolConfig { max_pending_while_scaling: 5, ..pool("p") },
                ..intended(vec![intent(2, ago(30))], vec![unstarted(1)], 1)
            },
            pending_for_30_s(2, PendingCause::NodeComing),
        ),
    ]);
}

#[test]
fn launches_keep_their_distance_from_settled_and_intended_ones() {
    let paced = |settled: Option<u64>, intents: Vec<Intent>| Scene {
        pool: PoolConfig { scale_increment: 5, ..pool("p") },
        state: PoolState { last_settled_launch: settled.map(ago), intents, ..PoolState::default() },
        ..base()
    };
    let until = |seconds| hold(Hold::Pacing { until: in_future(seconds) });
    check(vec![
        ("never launched", paced(None, vec![]), launches([0, 1, 2, 3, 4], DEPTH)),
        ("9 s after a settled launch", paced(Some(9), vec![]), until(1)),
        ("10 s after it", paced(Some(10), vec![]), launches([0, 1, 2, 3, 4], DEPTH)),
        ("an intent is a launch", paced(Some(100), vec![intent(1, ago(4))]), until(6)),
        ("the later of both counts", paced(Some(2), vec![intent(1, ago(4))]), until(8)),
    ]);
}

#[test]
fn what_waited_before_a_worker_became_ready_is_looked_at_again() {
    let slo = SloConfig {
        targets: vec![seconds(60)],
        pods_per_node: None,
        max_pending: None,
        start: Start::Immediate,
    };
    let came = |since| worker(1, Phase::Ready { since });
    let seen = |at, workers: Vec<Worker>| Scene {
        queues: vec![("q", Fact::Known { value: waiting(1), at })],
        ..Scene::with_workers(workers)
    };
    let with_slo = |scene: Scene| Scene { pool: PoolConfig { slo: Some(slo.clone()), ..pool("p") }, ..scene };
    let one = LaunchReason::DepthAbove { ready: 1, target: 0 };
    let learning = LaunchReason::Learning { ready: 1 };
    check(vec![
        ("ready after the look", seen(ago(2), vec![came(ago(1))]), hold(Hold::WaitingForLook)),
        ("with an slo", with_slo(seen(ago(2), vec![came(ago(1))])), hold(Hold::WaitingForLook)),
        ("ready just now", seen(ago(1), vec![came(NOW)]), hold(Hold::WaitingForLook)),
        ("looked at since", seen(ago(1), vec![came(ago(1))]), launches([1], one)),
        ("looked at since, with an slo", with_slo(seen(NOW, vec![came(ago(1))])), launches([1], learning)),
        ("a clock ahead of ours proves nothing", seen(ago(1), vec![came(in_future(1))]), launches([1], one)),
        (
            "nothing waits",
            Scene {
                queues: vec![("q", Fact::Known { value: waiting(0), at: ago(2) })],
                ..Scene::with_workers([came(ago(1))])
            },
            hold(Hold::Empty),
        ),
        (
            "the older of two looks counts",
            Scene {
                queues: vec![("q", Fact::Known { value: waiting(1), at: ago(2) }), ("r", known(waiting(1)))],
                ..seen(NOW, vec![came(ago(1))])
            },
            hold(Hold::WaitingForLook),
        ),
        (
            "but only of those that found something",
            Scene {
                queues: vec![("q", Fact::Known { value: waiting(0), at: ago(2) }), ("r", known(waiting(1)))],
                ..seen(NOW, vec![came(ago(1))])
            },
            launches([1], one),
        ),
        (
            "suspects wait as well",
            Scene {
                suspects: vec![("q", Fact::Known { value: waiting(1), at: ago(2) })],
                queues: vec![("q", known(waiting(0)))],
                ..seen(NOW, vec![came(ago(1))])
            },
            hold(Hold::WaitingForLook),
        ),
    ]);
}

#[test]
fn an_intent_that_is_completed_does_not_pace_or_block_itself() {
    let state = PoolState { intents: vec![intent(1, ago(6))], next_serial: 2, ..PoolState::default() };
    let scene = Scene { state: state.clone(), ..base() };
    assert!(matches!(scene.decide(), Decision::Hold(Hold::WaitingForPending { .. })));
    let config = scene.config();
    let without = state.without_intent(1);
    let completing =
        decide_pool(&scene.memory(), &scene.observation(), &config, &config.pools[0], &without, NOW);
    assert_eq!(completing, launches([0], DEPTH));
}

#[test]
fn limits_count_every_occupied_worker() {
    let three = || vec![ready(1), worker(2, Phase::Draining), worker(3, Phase::Lost)];
    let at_most = |most, workers: Vec<Worker>| Scene {
        pool: PoolConfig { max_workers: most, ..pool("p") },
        ..Scene::with_workers(workers)
    };
    let full = |occupied, maximum| hold(Hold::AtMaximum { occupied, maximum });
    let by_hand = Worker { serial: None, slot: None, ..ready(9) };
    check(vec![
        ("draining and lost ones occupy", at_most(Some(3), three()), full(3, 3)),
        ("one place left", at_most(Some(4), three()), launches([3], DEPTH)),
        (
            "a finished one leaves its place and its slot",
            at_most(Some(1), vec![finished(1, ending(1))]),
            launches([0], DEPTH),
        ),
        ("one started by hand occupies, without a slot", at_most(Some(1), vec![by_hand.clone()]), full(1, 1)),
        ("and leaves all slots free", at_most(Some(2), vec![by_hand]), launches([0], DEPTH)),
        ("0 launches nothing", at_most(Some(0), vec![]), full(0, 0)),
        ("a lowered limit takes nobody away", at_most(Some(2), three()), full(3, 2)),
        ("unlimited", at_most(None, three()), launches([3], DEPTH)),
        (
            "the limit cuts an increment",
            Scene {
                pool: PoolConfig { max_workers: Some(2), scale_increment: 5, ..pool("p") },
                ..Scene::with_workers([ready(1)])
            },
            launches([1], DEPTH),
        ),
        (
            "full but nothing waits: that is the reason told",
            Scene { queues: vec![("q", known(waiting(0)))], ..at_most(Some(1), vec![ready(1)]) },
            hold(Hold::Empty),
        ),
    ]);
}

#[test]
fn slots_are_the_lowest_free_ones() {
    let scene = |workers: Vec<Worker>| Scene {
        pool: PoolConfig { scale_increment: 2, ..pool("p") },
        ..Scene::with_workers(workers)
    };
    check(vec![
        ("gaps are filled", scene(vec![ready(2), ready(4)]), launches([0, 2], DEPTH)),
        (
            "lost and draining ones keep theirs",
            scene(vec![worker(1, Phase::Lost), worker(2, Phase::Draining)]),
            launches([2, 3], DEPTH),
        ),
    ]);
}

#[test]
fn warm_workers_are_launched_while_below_the_minimum() {
    let warm = |minimum, workers: Vec<Worker>| Scene {
        pool: PoolConfig { min_workers: minimum, ..pool("p") },
        queues: vec![("q", known(waiting(0)))],
        ..Scene::with_workers(workers)
    };
    let below = |useful, minimum| LaunchReason::BelowMinimum { useful, minimum };
    check(vec![
        ("none lives and nothing waits", warm(2, vec![]), launches([0], below(0, 2))),
        ("one is pending: one at a time holds here too", warm(2, vec![starting(1)]), hold(Hold::Empty)),
        ("one is ready", warm(2, vec![ready(1)]), launches([1], below(1, 2))),
        (
            "a draining one is not useful",
            warm(1, vec![worker(1, Phase::Draining)]),
            launches([1], below(0, 1)),
        ),
        ("enough", warm(2, vec![ready(1), ready(2)]), hold(Hold::Empty)),
        (
            "a missing queue is a known one",
            Scene { queues: vec![("q", known(QueueFacts::Missing))], ..warm(1, vec![]) },
            launches([0], below(0, 1)),
        ),
        (
            "with a higher increment no more than are wanted",
            Scene {
                pool: PoolConfig { min_workers: 2, scale_increment: 5, ..pool("p") },
                ..warm(2, vec![ready(1)])
            },
            launches([1], below(1, 2)),
        ),
        (
            "and no more than are allowed",
            Scene {
                pool: PoolConfig { min_workers: 3, max_workers: Some(3), scale_increment: 5, ..pool("p") },
                ..warm(3, vec![worker(1, Phase::Draining), ready(2)])
            },
            launches([2], below(1, 3)),
        ),
        (
            "no room",
            Scene {
                pool: PoolConfig { min_workers: 1, max_workers: Some(1), ..pool("p") },
                ..warm(1, vec![worker(1, Phase::Lost)])
            },
            hold(Hold::AtMaximum { occupied: 1, maximum: 1 }),
        ),
        (
            "paced like every launch",
            Scene {
                state: PoolState { last_settled_launch: Some(ago(9)), ..PoolState::default() },
                ..warm(1, vec![])
            },
            hold(Hold::Empty),
        ),
    ]);
}

#[test]
fn pause_and_cool_down_hold_before_everything_that_launches() {
    let cooling = PoolState {
        cooldown_until: Some(in_future(7)),
        failures: Failures { count: 2, last: Some(ago(3)) },
        ..PoolState::default()
    };
    let paused = PoolState { paused: true, ..cooling.clone() };
    let over = PoolState { cooldown_until: Some(NOW), ..cooling.clone() };
    let until = hold(Hold::CoolingDown { until: in_future(7), failures: 2 });
    check(vec![
        ("paused", Scene { state: paused, ..base() }, hold(Hold::Paused { everything: false })),
        ("cooling down", Scene { state: cooling.clone(), ..base() }, until.clone()),
        (
            "cooling down below the minimum",
            Scene { pool: PoolConfig { min_workers: 1, ..pool("p") }, state: cooling, ..base() },
            until,
        ),
        ("the cool-down is over", Scene { state: over, ..base() }, launches([0], DEPTH)),
    ]);
}

#[test]
fn a_worker_that_would_arrive_too_late_is_not_launched_where_asked_for() {
    let estimates = |mean_ms, lead: u64| Estimates {
        service_time: Some(ServiceTime { mean_ms, weight: 50.0, recent_ms: None }),
        lead_times_ms: vec![lead * 1000],
        ..Estimates::default()
    };
    let futile = |asked, workers: Vec<Worker>, estimates: Estimates| Scene {
        pool: PoolConfig { skip_futile: asked, ..pool("p") },
        state: PoolState { estimates, ..PoolState::default() },
        ..Scene::with_workers(workers)
    };
    let late = |drains_ms, lead| {
        hold(Hold::WouldArriveTooLate {
            drains_in: std::time::Duration::from_millis(drains_ms),
            lead: seconds(lead),
        })
    };
    check(vec![
        // (3 waiting + half a message in flight) × 1 s by one worker.
        ("drained before", futile(true, vec![ready(1)], estimates(1000.0, 4)), late(3500, 4)),
        ("not drained before", futile(true, vec![ready(1)], estimates(1000.0, 3)), launches([1], DEPTH)),
        (
            "two workers are twice as fast",
            futile(true, vec![ready(1), ready(2)], estimates(1000.0, 2)),
            late(2000, 2),
        ),
        ("not asked for", futile(false, vec![ready(1)], estimates(1000.0, 4)), launches([1], DEPTH)),
        ("nobody lives", futile(true, vec![], estimates(1000.0, 4)), launches([0], DEPTH)),
        ("service time unknown", futile(true, vec![ready(1)], Estimates::default()), launches([1], DEPTH)),
        (
            "lead time unknown: 120 s",
            futile(true, vec![ready(1)], Estimates { lead_times_ms: vec![], ..estimates(1000.0, 0) }),
            late(3500, 120),
        ),
    ]);
}

#[test]
fn every_decision_has_a_name_and_a_sentence() {
    let sentence = |scene: Scene| {
        let decision = scene.decide();
        format!("{} {}: {decision}", decision.kind(), decision.as_str())
    };
    assert_eq!(sentence(base()), "launch DepthAbove: launch 1: 3 messages wait, more than 0");
    let state = PoolState { paused: true, ..PoolState::default() };
    assert_eq!(sentence(Scene { state, ..base() }), "hold Paused: hold: the pool is paused");
}

#[test]
fn a_pool_without_its_template_waits_for_it_and_only_where_it_would_launch() {
    let since = ago(60);
    let decision = |scene: &Scene| {
        let mut observation = scene.observation();
        let missing = MissingTemplate { name: "mayfly-p".to_owned(), since };
        observation.missing_templates.insert("p".to_owned(), missing);
        decide(&scene.memory(), &observation, &scene.config(), NOW)["p"].clone()
    };
    let waits = Decision::Hold(Hold::TemplateMissing { template: "mayfly-p".to_owned(), since });
    assert_eq!(decision(&base()), waits);
    // What else is so comes first, where it would hold in any case.
    let empty = Scene { queues: vec![("q", known(waiting(0)))], ..base() };
    assert_eq!(decision(&empty), Decision::Hold(Hold::Empty));
    let full =
        Scene { pool: PoolConfig { max_workers: Some(1), ..pool("p") }, ..Scene::with_workers([ready(1)]) };
    assert_eq!(decision(&full), Decision::Hold(Hold::AtMaximum { occupied: 1, maximum: 1 }));
    assert_eq!(base().decide(), launches([0], DEPTH), "with its template it launches");
}

#[test]
fn a_schedule_changes_the_limits_that_a_decision_goes_by() {
    // It is 2027-01-15T08:00:00Z, a Friday.
    let scene = |window: &str, workers: Vec<Worker>| {
        let pool = PoolConfig { schedule: scheduled(window), max_workers: Some(3), ..pool("p") };
        Scene { pool, ..Scene::with_workers(workers) }
    };
    let below = LaunchReason::BelowMinimum { useful: 1, minimum: 2 };
    let (now, over) = ("start: 0 7 * * fri, end: 0 9 * * fri", "start: 0 7 * * thu, end: 0 9 * * thu");
    let with = |window: &str, limits: &str| format!("{{ {window}, {limits} }}");
    let idle = |window: &str| Scene {
        queues: vec![("q", known(waiting(0)))],
        ..scene(&with(window, "min_workers: 2"), vec![ready(1)])
    };
    check(vec![
        (
            "nothing is launched within a window of none",
            scene(&with(now, "max_workers: 0"), vec![]),
            hold(Hold::AtMaximum { occupied: 0, maximum: 0 }),
        ),
        ("but before and after it", scene(&with(over, "max_workers: 0"), vec![]), launches([0], DEPTH)),
        (
            "a maximum that is lowered counts those that are there",
            scene(&with(now, "max_workers: 1"), vec![ready(1), ready(2)]),
            hold(Hold::AtMaximum { occupied: 2, maximum: 1 }),
        ),
        ("a minimum that is raised is filled though nothing waits", idle(now), launches([1], below)),
        ("and not outside of its window", idle(over), hold(Hold::Empty)),
    ]);
}
