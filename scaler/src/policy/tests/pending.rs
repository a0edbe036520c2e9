//! A worker that gets no further: waited for, taken as a sign that there is no room, or given up.

use super::{super::*, scene::*};
use crate::config::PoolConfig;

const ALL: [PendingCause; 25] = [
    PendingCause::Intended,
    PendingCause::Creating,
    PendingCause::Suspended,
    PendingCause::Quota,
    PendingCause::CreateRefused,
    PendingCause::NodeComing,
    PendingCause::NoRoom,
    PendingCause::NodesAtLimit,
    PendingCause::NodesRefused,
    PendingCause::Misfit,
    PendingCause::Gated,
    PendingCause::SchedulerError,
    PendingCause::Preempting,
    PendingCause::Starting,
    PendingCause::Volumes,
    PendingCause::Network,
    PendingCause::Pulling,
    PendingCause::Initializing,
    PendingCause::ImagePull,
    PendingCause::BadImage,
    PendingCause::BadConfiguration,
    PendingCause::RuntimeError,
    PendingCause::CrashLoop,
    PendingCause::NotReady,
    PendingCause::NoConsumer,
];

fn stuck(serial: u64, cause: PendingCause, for_seconds: u64) -> Worker {
    let phase = Phase::Pending {
        started: false,
        cause,
        since: ago(for_seconds),
        detail: Some("the cluster's words".to_owned()),
    };
    Worker { launched: ago(for_seconds), ..worker(serial, phase) }
}

fn at_capacity(cause: PendingCause) -> Decision {
    Decision::Hold(Hold::AtCapacity { cause, detail: Some("the cluster's words".to_owned()) })
}

fn judged(state: PoolState, workers: &[Worker]) -> (PoolState, Vec<Verdict>) {
    let mut record = StateRecord::new(ago(10_000));
    record.pools.insert("p".to_owned(), state);
    let Judgement { record, verdicts } = judge(&record, workers, &config(vec![pool("p")]), NOW);
    (record.pool("p"), verdicts.into_iter().map(|(_, verdict)| verdict).collect())
}

#[test]
fn each_cause_has_its_own_patience() {
    use Action::{Fail, Hold, Wait};
    // What to do at once, and from which second on it is something else.
    let table = [
        (PendingCause::Intended, Wait, None),
        (PendingCause::Creating, Wait, None),
        (PendingCause::Suspended, Hold, None),
        (PendingCause::Quota, Hold, None),
        (PendingCause::CreateRefused, Fail, None),
        (PendingCause::NodeComing, Wait, Some((1200, Hold))),
        (PendingCause::NoRoom, Wait, Some((300, Hold))),
        (PendingCause::NodesAtLimit, Hold, None),
        (PendingCause::NodesRefused, Hold, None),
        (PendingCause::Misfit, Wait, Some((120, Fail))),
        (PendingCause::Gated, Wait, None),
        (PendingCause::SchedulerError, Wait, Some((300, Fail))),
        (PendingCause::Preempting, Wait, Some((300, Hold))),
        (PendingCause::Starting, Wait, Some((300, Fail))),
        (PendingCause::Volumes, Wait, Some((180, Fail))),
        (PendingCause::Network, Wait, Some((180, Fail))),
        (PendingCause::Pulling, Wait, Some((900, Fail))),
        (PendingCause::Initializing, Wait, Some((900, Fail))),
        (PendingCause::ImagePull, Wait, Some((300, Fail))),
        (PendingCause::BadImage, Fail, None),
        (PendingCause::BadConfiguration, Wait, Some((30, Fail))),
        (PendingCause::RuntimeError, Wait, Some((120, Fail))),
        (PendingCause::CrashLoop, Fail, None),
        (PendingCause::NotReady, Wait, None),
        (PendingCause::NoConsumer, Wait, None),
    ];
    let action = |cause: PendingCause, waited: u64| cause.action(seconds(waited), &Deadlines::default());
    assert_eq!(table.map(|(cause, ..)| cause), ALL);
    for (cause, at_once, later) in table {
        assert_eq!(action(cause, 0), at_once, "{cause:?} at once");
        let (limit, then) = later.unwrap_or((1_000_000, at_once));
        assert_eq!(action(cause, limit - 1), at_once, "{cause:?} before {limit} s");
        assert_eq!(action(cause, limit), then, "{cause:?} after {limit} s");
    }
}

#[test]
fn a_pools_own_deadlines_are_those_that_count() {
    let patient = || {
        let deadlines = Deadlines { no_room: seconds(600), runtime: seconds(600), ..Deadlines::default() };
        PoolConfig { deadlines, scale_increment: 5, ..pool("p") }
    };
    let beside = |worker: Worker| Scene { pool: patient(), ..Scene::with_workers([worker]) };
    check(vec![
        ("not yet", beside(stuck(1, PendingCause::NoRoom, 599)), launches([1, 2, 3, 4], DEPTH)),
        ("by then", beside(stuck(1, PendingCause::NoRoom, 600)), at_capacity(PendingCause::NoRoom)),
    ]);
    for (waited, failures) in [(599, 0), (600, 1)] {
        let mut record = StateRecord::new(ago(10_000));
        record.pool_mut("p").next_serial = 2;
        let workers = [stuck(1, PendingCause::RuntimeError, waited)];
        let judged = judge(&record, &workers, &config(vec![patient()]), NOW).record;
        assert_eq!(judged.pool("p").failures.count, failures, "{waited} s");
    }
}

#[test]
fn what_has_started_is_waited_for_whatever_its_state() {
    for cause in ALL {
        assert_eq!(
            pending(true, cause, ago(100_000)).action(NOW, &Deadlines::default()),
            Action::Wait,
            "{cause:?}"
        );
        let started = worker(1, pending(true, cause, ago(100_000)));
        assert!(!started.is_removable(NOW), "{cause:?}");
        let (state, verdicts) = judged(PoolState::default(), &[started]);
        assert_eq!((state.failures.count, verdicts), (0, vec![]), "{cause:?}");
    }
}

#[test]
fn a_worker_without_room_is_the_probe_and_no_other_is_launched_beside_it() {
    let wide = || PoolConfig { scale_increment: 5, max_pending_while_scaling: 5, ..pool("p") };
    let beside = |worker: Worker| Scene { pool: wide(), ..Scene::with_workers([worker]) };
    check(vec![
        (
            "quota of the namespace",
            beside(stuck(1, PendingCause::Quota, 0)),
            at_capacity(PendingCause::Quota),
        ),
        ("suspended", beside(stuck(1, PendingCause::Suspended, 0)), at_capacity(PendingCause::Suspended)),
        (
            "no node for five minutes",
            beside(stuck(1, PendingCause::NoRoom, 300)),
            at_capacity(PendingCause::NoRoom),
        ),
        ("not before", beside(stuck(1, PendingCause::NoRoom, 299)), launches([1, 2, 3, 4], DEPTH)),
        (
            "a promised node may take longer",
            beside(stuck(1, PendingCause::NodeComing, 1199)),
            launches([1, 2, 3, 4], DEPTH),
        ),
        (
            "but not for ever",
            beside(stuck(1, PendingCause::NodeComing, 1200)),
            at_capacity(PendingCause::NodeComing),
        ),
        (
            "also below the minimum",
            Scene {
                pool: PoolConfig { min_workers: 3, ..wide() },
                queues: vec![("q", known(waiting(0)))],
                ..Scene::with_workers([stuck(1, PendingCause::Quota, 0)])
            },
            at_capacity(PendingCause::Quota),
        ),
        (
            "with nothing to do there is nothing to tell",
            Scene {
                queues: vec![("q", known(waiting(0)))],
                ..Scene::with_workers([stuck(1, PendingCause::Quota, 0)])
            },
            Decision::Hold(Hold::Empty),
        ),
        (
            "another pool's room is not ours",
            beside(Worker { pool: "other".to_owned(), ..stuck(1, PendingCause::Quota, 0) }),
            launches([0, 1, 2, 3, 4], DEPTH),
        ),
    ]);
}

#[test]
fn a_launch_refused_for_want_of_room_is_tried_again_after_five_seconds_and_is_no_failure() {
    let mut state = PoolState { intents: vec![], ..PoolState::default() };
    state.hold_for_room("the cluster's words".to_owned(), ago(4));
    assert_eq!((state.failures.count, state.cooldown_until), (0, None));
    let refused = |state: &PoolState| Scene { state: state.clone(), ..base() };
    check(vec![("held", refused(&state), at_capacity(PendingCause::Quota))]);
    state.hold_for_room("the cluster's words".to_owned(), ago(5));
    check(vec![("tried again", refused(&state), launches([0], DEPTH))]);
}

#[test]
fn a_hopeless_worker_is_a_failure_once_and_its_end_is_not_counted_again() {
    let hopeless = stuck(1, PendingCause::BadImage, 7);
    let (state, verdicts) = judged(PoolState::default(), std::slice::from_ref(&hopeless));
    assert_eq!(
        verdicts,
        [Verdict::Failed("given up after 7 s: image refused: the cluster's words".to_owned())]
    );
    assert_eq!((state.failures.count, &*state.judged), (1, &[1][..]));
    assert!(state.cooldown_until.is_some());
    let (again, verdicts) = judged(state.clone(), &[hopeless]);
    assert_eq!((again, verdicts), (state.clone(), vec![]));
    // It is removed, and its Job ends.
    for ending in [Ending { started: false, report: None, exit_code: None, ..ending(0) }, broken(78)] {
        let (ended, verdicts) = judged(state.clone(), &[finished(1, ending)]);
        assert_eq!((ended, verdicts), (state.clone(), vec![]));
    }
}

#[test]
fn a_worker_given_up_takes_a_place_until_it_is_gone_but_blocks_nobody() {
    let given_up = |more: PoolConfig, workers: Vec<Worker>| Scene {
        pool: more,
        state: PoolState { judged: vec![1], next_serial: 3, ..PoolState::default() },
        ..Scene::with_workers(workers)
    };
    let bad = || stuck(1, PendingCause::BadImage, 60);
    let counts = Counts::of("p", &[bad()], &PoolState { judged: vec![1], ..PoolState::default() });
    assert_eq!(counts, Counts { draining: 1, ..Counts::default() });
    check(vec![
        ("the next one is launched", given_up(pool("p"), vec![bad()]), launches([1], DEPTH)),
        (
            "within the limit",
            given_up(PoolConfig { max_workers: Some(1), ..pool("p") }, vec![bad()]),
            Decision::Hold(Hold::AtMaximum { occupied: 1, maximum: 1 }),
        ),
        (
            "what it waits for is nobody's want of room",
            given_up(pool("p"), vec![stuck(1, PendingCause::Quota, 60)]),
            launches([1], DEPTH),
        ),
    ]);
}

#[test]
fn a_job_without_a_pod_is_removed_only_when_no_pod_can_come_any_more() {
    let podless = [
        PendingCause::Intended,
        PendingCause::Creating,
        PendingCause::Suspended,
        PendingCause::Quota,
        PendingCause::CreateRefused,
    ];
    for cause in ALL {
        let has_pod = !podless.contains(&cause);
        assert_eq!(stuck(1, cause, 119).is_removable(NOW), has_pod, "{cause:?}");
        assert!(stuck(1, cause, 120).is_removable(NOW), "{cause:?}");
    }
    let empty = |worker: Worker| Scene {
        queues: vec![("q", known(waiting(0)))],
        since: seconds(1000),
        ..Scene::with_workers([worker])
    };
    let taken =
        Decision::Withdraw(Withdraw { workers: vec!["worker-1".to_owned()], unneeded_for: seconds(120) });
    check(vec![
        ("too young", empty(stuck(1, PendingCause::Quota, 119)), Decision::Hold(Hold::Empty)),
        ("old enough", empty(stuck(1, PendingCause::Quota, 120)), taken),
    ]);
}

#[test]
fn what_the_cluster_took_away_is_no_failure() {
    let taken = |ending: Ending| Ending { disrupted: true, detail: Some("its node".to_owned()), ..ending };
    let table = [
        ("killed while it worked", taken(Ending { report: None, exit_code: Some(137), ..ending(0) }), true),
        ("gone without a trace", taken(Ending { report: None, exit_code: None, ..ending(0) }), true),
        ("it ended by itself in time", taken(ending(3)), false),
        (
            "before it started",
            taken(Ending { started: false, report: None, exit_code: None, ..ending(0) }),
            false,
        ),
    ];
    for (name, ending, disrupted) in table {
        assert_eq!(matches!(ending.verdict(), Verdict::Disrupted(_)), disrupted, "{name}");
        let (state, _) = judged(PoolState::default(), &[finished(1, ending)]);
        assert_eq!((state.failures.count, &*state.judged), (0, &[1][..]), "{name}");
    }
}

#[test]
fn a_verdict_tells_all_that_is_known() {
    let text = |ending: Ending| match ending.verdict() {
        Verdict::Failed(text) | Verdict::Disrupted(text) => text,
        other => format!("{other:?}"),
    };
    let silent = Ending { report: None, exit_code: None, ..ending(0) };
    assert_eq!(text(silent.clone()), "ended without a report");
    let killed = Ending { exit_code: Some(137), detail: Some("OOMKilled".to_owned()), ..silent };
    assert_eq!(text(killed), "ended with exit code 137 without a report; OOMKilled");
    assert_eq!(text(broken(78)), "ended with exit code 78 (misconfigured)");
}
