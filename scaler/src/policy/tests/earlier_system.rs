//! The earlier system's defects that concern the scaler must not come back.

use super::{super::*, scene::*};
use crate::config::{Config, Overrides, PoolConfig};

#[test]
fn defect_1_an_interval_that_was_read_as_text_breaks_the_age_rule() {
    let text = "
instance: m
launcher: { process: { directory: d } }
pools:
- name: p
  queues: [{ name: q }]
  target_queue_size: \"50\"
  force_empty_queue_interval: \"60000\"
  check_trigger_interval: \"10\"
  worker: { command: [w] }
";
    let pool = Config::parse(text, &Overrides::default()).unwrap().pools.remove(0);
    let aged = Scene { pool, since: seconds(61), ..base() };
    let reason = LaunchReason::MessageTooOld { ready: 3, age: seconds(61), limit: seconds(60) };
    assert_eq!(aged.decide(), launches([0], reason));
}

#[test]
fn defect_2_an_error_while_counting_launches_duplicates() {
    for why in [Why::NotYetSeen, Why::Unreachable, Why::Forbidden, Why::Stale, Why::Unusable] {
        let blind = Scene { workers: unknown(why), ..base() };
        assert!(matches!(blind.decide(), Decision::Hold(Hold::Unknown { .. })), "{why:?}");
        let forgetful = Scene { state_known: unknown(why), ..base() };
        assert!(matches!(forgetful.decide(), Decision::Hold(Hold::Unknown { .. })), "{why:?}");
    }
}

#[test]
fn defect_3_one_start_that_cannot_succeed_blocks_scaling_for_ever() {
    // A pod whose image is no image stays pending; one whose image cannot be pulled is waited for a while. One
    // that runs and gets no further ends at its start deadline.
    let bad_image = worker(1, pending(false, PendingCause::BadImage, ago(1)));
    let no_pull = |since| worker(1, pending(false, PendingCause::ImagePull, since));
    for stuck in [bad_image, no_pull(ago(301)), finished(1, broken(69))] {
        let judged = judge(&StateRecord::new(ago(100)), std::slice::from_ref(&stuck), &base().config(), NOW);
        let state = judged.record.pool("p");
        let until = state.cooldown_until.unwrap();
        let cooling = Scene { state: state.clone(), ..Scene::with_workers([stuck.clone()]) };
        assert_eq!(cooling.decide(), Decision::Hold(Hold::CoolingDown { until, failures: 1 }));
        // It is given up, so that it blocks nothing even while it is still there.
        let over = Scene { state: PoolState { cooldown_until: Some(NOW), ..state }, ..cooling };
        let slot = u32::from(!matches!(stuck.phase, Phase::Finished(_)));
        assert_eq!(over.decide(), launches([slot], DEPTH));
    }
    let waited_for = Scene::with_workers([no_pull(ago(60))]);
    assert!(matches!(waited_for.decide(), Decision::Hold(Hold::WaitingForPending { .. })));
}

#[test]
fn defect_4_a_job_whose_pod_does_not_exist_yet_is_not_counted() {
    let intended = PoolState { intents: vec![intent(1, ago(30))], ..PoolState::default() };
    let not_seen = Scene { state: intended, ..base() };
    assert!(matches!(not_seen.decide(), Decision::Hold(Hold::WaitingForPending { pending: 1, .. })));
    let no_process = Scene::with_workers([unstarted(1)]);
    assert!(matches!(no_process.decide(), Decision::Hold(Hold::WaitingForPending { pending: 1, .. })));
}

#[test]
fn defect_5_a_worker_is_ended_amid_a_message_that_takes_longer_than_its_idle_time() {
    // That is the worker's part (`idle` in mayfly-worker). The scaler's: it takes back nothing that has started,
    // however long it is at work and nothing waits.
    let working = [ready(1), starting(2), worker(3, Phase::Draining)];
    let empty = Scene {
        queues: vec![("q", known(waiting(0)))],
        since: seconds(7200),
        ..Scene::with_workers(working)
    };
    assert_eq!(empty.decide(), Decision::Hold(Hold::Empty));
    let unstarted = Scene { workers: known(vec![ready(1), unstarted(2)]), ..empty };
    let Decision::Withdraw(withdraw) = unstarted.decide() else { unreachable!("{}", unstarted.decide()) };
    assert_eq!(withdraw.workers, ["worker-2"]);
}

#[test]
fn defect_6_neither_a_cap_nor_a_back_off() {
    let full =
        Scene { pool: PoolConfig { max_workers: Some(1), ..pool("p") }, ..Scene::with_workers([ready(1)]) };
    assert_eq!(full.decide(), Decision::Hold(Hold::AtMaximum { occupied: 1, maximum: 1 }));
    let mut state = PoolState::default();
    state.fail(&pool("p"), NOW);
    assert!(state.cooldown_until > Some(NOW));
}

#[test]
fn defect_7_a_broker_that_goes_away_ends_the_scaler() {
    // It is a state like any other: held with its reason, and over when the next answer comes.
    let gone = Scene { queues: vec![("q", unknown(Why::Unreachable))], ..base() };
    assert!(matches!(gone.decide(), Decision::Hold(Hold::Unknown { what: UnknownWhat::Queue(_), .. })));
    let config = gone.config();
    let memory = remember(gone.memory(), &base().observation(), &config);
    assert_eq!(decide(&memory, &base().observation(), &config, NOW)["p"], launches([0], DEPTH));
}
