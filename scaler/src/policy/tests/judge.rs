//! What a listing proves is folded into the record, once.

use mayfly_service::report::{ExitReason, ExitReport};

use super::{super::*, scene::*};
use crate::config::{Config, PoolConfig};

fn the_config() -> Config {
    config(vec![pool("p")])
}

fn record(state: PoolState) -> StateRecord {
    let mut record = StateRecord::new(ago(10_000));
    record.pools.insert("p".to_owned(), state);
    record
}

fn judged(state: PoolState, workers: &[Worker]) -> (PoolState, Vec<(String, Verdict)>) {
    let Judgement { record, verdicts } = judge(&record(state), workers, &the_config(), NOW);
    (record.pool("p"), verdicts)
}

fn failures_after(endings: &[Ending]) -> u32 {
    let workers: Vec<_> =
        (1..).zip(endings).map(|(serial, ending)| finished(serial, ending.clone())).collect();
    judged(PoolState::default(), &workers).0.failures.count
}

fn ended(exit_code: Option<u8>, done: u64, was_ready: bool) -> Ending {
    let report = ExitReport {
        done,
        messages: done,
        startup_ms: was_ready.then_some(100),
        ..ExitReport::new(ExitReason::Internal)
    };
    Ending { exit_code, report: Some(report), ..ending(0) }
}

#[test]
fn what_counts_as_a_failure() {
    let table = [
        ("idle, without a message", ended(Some(0), 0, true), false),
        ("idle before ready: asked to stop", ended(Some(0), 0, false), false),
        ("broker lost after ready: a disruption", ended(Some(69), 0, true), false),
        ("broker never reached", ended(Some(69), 0, false), true),
        ("starved or a defect, nothing done", ended(Some(70), 0, true), true),
        ("starved or a defect, something done", ended(Some(70), 1, true), false),
        ("gave up waiting, always", ended(Some(75), 9, true), true),
        ("refused by configuration, always", ended(Some(78), 9, true), true),
        ("without an exit code, something done", ended(None, 1, true), false),
        ("without an exit code, nothing done", ended(None, 0, true), true),
        ("without a report", Ending { report: None, exit_code: None, ..ending(0) }, true),
        ("never started", Ending { report: None, exit_code: None, started: false, ..ending(0) }, false),
        (
            "could not be spawned",
            Ending {
                started: false,
                report: Some(ExitReport::new(ExitReason::SpawnFailed)),
                exit_code: Some(78),
                ..ending(0)
            },
            true,
        ),
    ];
    for (name, ending, failed) in table {
        assert_eq!(matches!(ending.verdict(), Verdict::Failed(_)), failed, "{name}");
        assert_eq!(failures_after(std::slice::from_ref(&ending)), u32::from(failed), "{name}");
    }
}

#[test]
fn a_worker_that_never_started_burns_its_serial_and_is_no_failure() {
    let never = Ending { report: None, exit_code: None, started: false, ..ending(0) };
    assert_eq!(never.verdict(), Verdict::NeverStarted);
    let state = PoolState { next_serial: 5, intents: vec![intent(4, ago(9))], ..PoolState::default() };
    let (state, verdicts) = judged(state, &[finished(4, never)]);
    assert_eq!((state.next_serial, state.failures.count, state.cooldown_until), (5, 0, None));
    assert_eq!(state.judged, [4]);
    assert_eq!(verdicts.len(), 1);
}

#[test]
fn a_withdrawn_worker_is_no_failure() {
    let withdrawn = Ending {
        report: Some(ExitReport::new(ExitReason::Withdrawn)),
        exit_code: Some(0),
        started: false,
        ..ending(0)
    };
    assert_eq!(withdrawn.verdict(), Verdict::Fine(Some(ExitReason::Withdrawn)));
    assert_eq!(failures_after(&[withdrawn]), 0);
}

#[test]
fn an_outcome_is_counted_once_however_often_it_is_seen() {
    let workers = [finished(1, broken(78)), finished(2, broken(78))];
    let (once, verdicts) = judged(PoolState::default(), &workers);
    assert_eq!((once.failures.count, verdicts.len()), (2, 2));
    let mut state = once.clone();
    for _ in 0..3 {
        let (again, verdicts) = judged(state, &workers);
        assert_eq!(again, once);
        assert!(verdicts.is_empty());
        state = again;
    }
}

#[test]
fn a_judged_serial_is_forgotten_when_its_job_is_gone_and_not_before() {
    let workers = [finished(1, broken(78)), finished(2, ending(0)), ready(3)];
    let (state, _) = judged(PoolState::default(), &workers);
    assert_eq!(state.judged, [1, 2]);
    let (state, _) = judged(state, &workers[1..]);
    assert_eq!(state.judged, [2]);
    assert_eq!(state.failures.count, 1);
    let (state, _) = judged(state, &[]);
    assert!(state.judged.is_empty());
}

#[test]
fn intents_are_settled_when_their_job_is_seen_whatever_its_phase() {
    for phase in [
        pending(false, PendingCause::NodeComing, NOW),
        Phase::Ready { since: NOW },
        Phase::Finished(ending(1)),
    ] {
        let state = PoolState {
            intents: vec![intent(1, ago(20)), intent(2, ago(5))],
            last_settled_launch: Some(ago(90)),
            next_serial: 3,
            ..PoolState::default()
        };
        let (state, _) = judged(state, &[worker(1, phase)]);
        assert_eq!(state.intents, [intent(2, ago(5))]);
        assert_eq!(state.last_settled_launch, Some(ago(20)));
        assert_eq!(state.last_launch(), Some(ago(5)));
    }
}

#[test]
fn settling_an_older_intent_never_moves_the_last_launch_back() {
    let state = PoolState {
        intents: vec![intent(1, ago(20))],
        last_settled_launch: Some(ago(3)),
        ..PoolState::default()
    };
    let (state, _) = judged(state, &[ready(1)]);
    assert_eq!(state.last_settled_launch, Some(ago(3)));
}

#[test]
fn a_job_of_another_pool_with_the_same_serial_settles_nothing() {
    let state = PoolState { intents: vec![intent(1, ago(20))], ..PoolState::default() };
    let (state, _) = judged(state, &[Worker { pool: "other".to_owned(), ..ready(1) }]);
    assert_eq!(state.intents.len(), 1);
}

#[test]
fn a_serial_seen_is_never_given_again() {
    let (state, _) = judged(PoolState::default(), &[ready(7), ready(3)]);
    assert_eq!(state.next_serial, 8);
    let (state, _) = judged(state, &[]);
    assert_eq!(state.next_serial, 8);
}

#[test]
fn workers_that_people_started_are_not_judged() {
    let by_hand = Worker { serial: None, slot: None, ..finished(1, broken(78)) };
    let (state, verdicts) = judged(PoolState::default(), &[by_hand]);
    assert_eq!(state, PoolState::default());
    assert!(verdicts.is_empty());
}

#[test]
fn the_first_done_message_forgives_everything() {
    let failed = PoolState {
        failures: Failures { count: 6, last: Some(ago(5)) },
        cooldown_until: Some(in_future(300)),
        ..PoolState::default()
    };
    let (state, _) = judged(failed.clone(), &[finished(1, ending(1))]);
    assert_eq!((state.failures, state.cooldown_until), (Failures::default(), None));
    let (state, _) = judged(failed, &[finished(1, ending(0))]);
    assert_eq!(state.failures.count, 6, "a worker without a done message proves nothing");
}

#[test]
fn a_failure_after_the_done_messages_counts_from_one() {
    let failed = PoolState { failures: Failures { count: 6, last: Some(ago(5)) }, ..PoolState::default() };
    let earlier = Ending { at: ago(9), ..ending(3) };
    let later = Ending { at: ago(2), ..broken(78) };
    // The order of the listing is not the order of events.
    let (state, _) = judged(failed.clone(), &[finished(1, later.clone()), finished(2, earlier.clone())]);
    assert_eq!(state.failures.count, 1);
    let swapped =
        [finished(1, Ending { at: ago(9), ..later }), finished(2, Ending { at: ago(2), ..earlier })];
    let (state, _) = judged(failed, &swapped);
    assert_eq!(state.failures.count, 0);
}

#[test]
fn the_cool_down_doubles_up_to_its_cap_with_at_most_a_fifth_of_jitter() {
    let config = PoolConfig { cooldown_base: seconds(10), cooldown_cap: seconds(360), ..pool("p") };
    for name in ["p", "images", "a-longer-name", "z9"] {
        let pool = PoolConfig { name: name.to_owned(), ..config.clone() };
        let mut state = PoolState::default();
        for (count, pure) in (1..).zip([10, 20, 40, 80, 160, 320, 360, 360, 360]) {
            state.fail(&pool, NOW);
            let lasts = state.cooldown_until.unwrap().since(NOW);
            let bounds = seconds(pure)..=seconds(pure).mul_f64(1.2);
            assert!(bounds.contains(&lasts), "{name}: failure {count} cools down for {lasts:?}");
            assert_eq!(state.failures, Failures { count, last: Some(NOW) });
            let mut same = PoolState {
                failures: Failures { count: count - 1, last: Some(NOW) },
                ..PoolState::default()
            };
            same.fail(&pool, NOW);
            assert_eq!(same.cooldown_until, state.cooldown_until, "the jitter is no accident");
        }
    }
    let jitters: std::collections::BTreeSet<_> = (0..20)
        .map(|n| {
            let mut state = PoolState::default();
            state.fail(&PoolConfig { name: format!("pool-{n}"), ..config.clone() }, NOW);
            state.cooldown_until
        })
        .collect();
    assert!(jitters.len() > 10, "pools that fail together try again together");
}

#[test]
fn any_number_of_failures_is_borne() {
    let mut state =
        PoolState { failures: Failures { count: u32::MAX - 1, last: Some(NOW) }, ..PoolState::default() };
    for _ in 0..3 {
        state.fail(&pool("p"), NOW);
    }
    assert_eq!(state.failures.count, u32::MAX);
    assert!(state.cooldown_until.unwrap() <= NOW + seconds(360).mul_f64(1.2));
}

#[test]
fn one_failure_is_forgiven_per_cap_without_one() {
    let failures = Failures { count: 3, last: Some(NOW) };
    let cap = seconds(360);
    let table = [(0, 3), (359, 3), (360, 2), (719, 2), (720, 1), (1080, 0), (99_999, 0)];
    for (later, standing) in table {
        assert_eq!(failures.standing(in_future(later), cap), standing, "after {later} s");
    }
    let mut state = PoolState { failures, ..PoolState::default() };
    state.fail(&pool("p"), in_future(720));
    assert_eq!(state.failures, Failures { count: 2, last: Some(in_future(720)) });
}

#[test]
fn pools_that_are_no_longer_configured_are_settled_as_well() {
    let mut record = record(PoolState::default());
    record
        .pools
        .insert("old".to_owned(), PoolState { intents: vec![intent(1, ago(9))], ..PoolState::default() });
    let old = Worker { pool: "old".to_owned(), ..finished(1, broken(78)) };
    let judged = judge(&record, &[old], &the_config(), NOW).record.pool("old");
    assert!(judged.intents.is_empty());
    assert_eq!(judged.judged, [1]);
}
