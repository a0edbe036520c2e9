//! Where a worker is in its life, as Job and pod show it.

use serde_json::json;

use super::{
    super::phase::{Seen, has_run_anything, has_started, phase, waited_for_node},
    *,
};
use crate::policy::{PendingCause, Phase};

fn bare(job: &Job) -> Seen<'_> {
    Seen { job, pod: None, lost_pod: false, ready_since: None, said: None }
}

fn with(pod: &Pod) -> Option<Phase> {
    let job = job(json!({ "active": 1 }));
    phase(Seen { pod: Some(pod), ..bare(&job) }, NOW)
}

#[expect(clippy::unnecessary_wraps, reason = "compared with what is wrapped")]
fn pending(started: bool, cause: PendingCause, since: u64, detail: Option<&str>) -> Option<Phase> {
    Some(Phase::Pending { started, cause, since: at(since), detail: detail.map(str::to_owned) })
}

const UNSCHEDULED: &str = "0/2 nodes are available: 2 Insufficient cpu.";

fn unscheduled() -> Pod {
    let condition = json!({
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
        "message": UNSCHEDULED, "lastTransitionTime": ago(50),
    });
    pod(json!({ "spec": { "nodeName": null }, "status": { "conditions": [condition] } }))
}

#[test]
fn a_pod_that_found_no_room_at_first_waited_for_a_node() {
    let scheduled = |turned| pod_in("Pending", &[("PodScheduled", "True", turned)], Value::Null);
    // The pod was made 58 s ago.
    for (name, pod, waited) in [
        ("not looked at by the scheduler yet", pod(json!({ "spec": { "nodeName": null } })), false),
        ("no room so far", unscheduled(), true),
        ("scheduled at once", scheduled(58), false),
        ("by a slow scheduler", scheduled(55), false),
        ("when room came", scheduled(54), true),
    ] {
        assert_eq!(waited_for_node(&pod), waited, "{name}");
    }
}

#[test]
fn once_ready_a_worker_stays_ready() {
    let ready = pod_in("Running", &[("Ready", "True", 20), ("ContainersReady", "True", 20)], running());
    assert_eq!(with(&ready), Some(Phase::Ready { since: at(20) }));
    // It fell while nobody looked: its readiness turned after its container had started.
    let fell = pod_in("Running", &[("Ready", "False", 10), ("ContainersReady", "False", 10)], running());
    assert_eq!(with(&fell), Some(Phase::Ready { since: at(10) }));
    let never = pod_in("Running", &[("Ready", "False", 45), ("ContainersReady", "False", 45)], running());
    assert!(matches!(with(&never), Some(Phase::Pending { started: true, .. })));
    // Seen ready earlier: whatever it looks like now.
    let job = job(json!({}));
    let remembered = Seen { pod: Some(&never), ready_since: Some(at(30)), ..bare(&job) };
    assert_eq!(phase(remembered, NOW), Some(Phase::Ready { since: at(30) }));
}

#[test]
fn a_lost_node_is_told_from_a_worker_that_is_not_ready() {
    // The node controller turns off the pod's readiness, nobody that of its containers.
    let lost = [("Ready", "False", 10), ("ContainersReady", "True", 30)];
    assert_eq!(with(&pod_in("Running", &lost, running())), Some(Phase::Lost));
    let gated = merged(
        serde_json::to_value(pod_in("Running", &lost, running())).unwrap(),
        json!({ "spec": { "readinessGates": [{ "conditionType": "x" }] } }),
    );
    let gated: Pod = serde_json::from_value(gated).unwrap();
    assert_ne!(with(&gated), Some(Phase::Lost), "a readiness gate does the same");
    let deleted = |seconds: u64, scheduled: bool| {
        let node = if scheduled { json!("node-1") } else { Value::Null };
        pod(json!({
            "metadata": { "deletionTimestamp": ago(seconds) },
            "spec": { "nodeName": node }, "status": { "phase": "Running" },
        }))
    };
    assert_eq!(with(&deleted(59, true)), Some(Phase::Draining));
    assert_eq!(with(&deleted(60, true)), Some(Phase::Lost), "it hangs");
    assert_eq!(with(&deleted(600, false)), Some(Phase::Draining), "nothing but bookkeeping is late");
}

#[test]
fn a_job_between_its_states_is_draining() {
    let over = pod_in("Succeeded", &[], terminated(0, "Completed", ""));
    let pods_end = job(json!({ "active": 1 }));
    assert_eq!(phase(Seen { pod: Some(&over), ..bare(&pods_end) }, NOW), Some(Phase::Draining));
    let gone = job(json!({ "terminating": 1 }));
    assert_eq!(phase(Seen { lost_pod: true, ..bare(&gone) }, NOW), Some(Phase::Draining));
    let deleted = job_with(json!({ "metadata": { "deletionTimestamp": ago(1) } }));
    assert_eq!(phase(bare(&deleted), NOW), Some(Phase::Draining));
    let deciding = job(json!({ "conditions": [{ "type": "FailureTarget", "status": "True" }] }));
    assert_eq!(phase(bare(&deciding), NOW), Some(Phase::Draining));
    // Its pod still terminates: it takes its place until that is over.
    let failed = job(ended("Failed", "BackoffLimitExceeded"));
    let terminating = pod(json!({ "metadata": { "deletionTimestamp": ago(1) } }));
    assert_eq!(phase(Seen { pod: Some(&terminating), ..bare(&failed) }, NOW), Some(Phase::Draining));
    assert_eq!(phase(bare(&failed), NOW), None);
    assert_eq!(phase(Seen { pod: Some(&over), ..bare(&failed) }, NOW), None);
}

#[test]
fn a_suspended_job_waits_for_whoever_suspended_it() {
    let suspended = job_with(json!({ "spec": { "suspend": true } }));
    assert_eq!(phase(bare(&suspended), NOW), pending(false, PendingCause::Suspended, 59, None));
}

#[test]
fn a_job_that_is_suspended_again_waits_as_soon_as_its_worker_has_to_go() {
    let condition = json!({ "type": "Suspended", "status": "True", "lastTransitionTime": ago(7) });
    let suspended = |more: Value| {
        let changes = json!({ "spec": { "suspend": true }, "status": { "conditions": [condition] } });
        job_with(merged(changes, more))
    };
    let job = suspended(json!({}));
    let gone = Seen { lost_pod: true, ready_since: Some(at(30)), ..bare(&job) };
    assert_eq!(phase(gone, NOW), pending(false, PendingCause::Suspended, 7, None));
    // Its Job is not done with it: another worker beside the two would be one too many.
    let terminating = merged(
        serde_json::to_value(pod_in("Running", &[("Ready", "True", 20)], running())).unwrap(),
        json!({ "metadata": { "deletionTimestamp": ago(1) } }),
    );
    let terminating: Pod = serde_json::from_value(terminating).unwrap();
    let leaves = Seen { pod: Some(&terminating), ready_since: Some(at(20)), ..bare(&job) };
    assert_eq!(phase(leaves, NOW), pending(true, PendingCause::Suspended, 7, None));
    let over = pod_in("Failed", &[], terminated(143, "Error", ""));
    let left = Seen { pod: Some(&over), ..bare(&job) };
    assert_eq!(phase(left, NOW), pending(false, PendingCause::Suspended, 7, None));
    // Nobody has told it to go yet.
    let ready = pod_in("Running", &[("Ready", "True", 20)], running());
    assert_eq!(phase(Seen { pod: Some(&ready), ..bare(&job) }, NOW), Some(Phase::Ready { since: at(20) }));
    for (name, over) in [
        ("deleted", json!({ "metadata": { "deletionTimestamp": ago(1) } })),
        ("decided", json!({ "status": { "conditions": [{ "type": "FailureTarget", "status": "True" }] } })),
    ] {
        let job = suspended(over);
        assert_eq!(phase(Seen { lost_pod: true, ..bare(&job) }, NOW), Some(Phase::Draining), "{name}");
    }
}

#[test]
fn what_ran_before_the_workers_own_container_holds_no_message() {
    let table = [
        ("nothing known", pod(json!({})), false),
        ("waiting", pod_in("Pending", &[], waiting("ImagePullBackOff", "")), false),
        ("running", pod_in("Running", &[], running()), true),
        ("ended", pod_in("Failed", &[], terminated(1, "Error", "")), true),
        (
            "waiting again",
            pod_in("Pending", &[], merged(waiting("CrashLoopBackOff", ""), json!({ "restartCount": 1 }))),
            true,
        ),
        (
            "an init container",
            pod(json!({ "status": {
                "initContainerStatuses": [terminated(0, "Completed", "")],
                "containerStatuses": [waiting("ErrImageNeverPull", "")],
            } })),
            false,
        ),
    ];
    for (name, pod, expected) in table {
        assert_eq!(has_started(&pod), expected, "{name}");
        assert_eq!(has_run_anything(&pod), expected || name == "an init container", "{name}");
    }
}

#[test]
fn a_stamp_from_the_future_is_now() {
    let early = pod_in("Running", &[("Ready", "True", 0)], running());
    let tomorrow = at(0) - std::time::Duration::from_secs(86_400);
    let job = job(json!({}));
    assert_eq!(
        phase(Seen { pod: Some(&early), ..bare(&job) }, tomorrow),
        Some(Phase::Ready { since: tomorrow })
    );
}
