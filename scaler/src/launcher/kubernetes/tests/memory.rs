//! Most looks ask for Jobs only, and lose nothing by it.

use std::time::Duration;

use serde_json::json;

use super::{super::memory::Memory, *};
use crate::policy::{PendingCause, Phase, Verdict, Worker};

fn later(seconds: u64) -> Time {
    NOW + Duration::from_secs(seconds)
}

fn only(memory: &Memory, now: Time) -> Worker {
    let workers = memory.workers(now);
    assert_eq!(workers.len(), 1, "{workers:?}");
    workers.into_iter().next().unwrap()
}

fn ready_pod() -> Pod {
    pod_in("Running", &[("Ready", "True", 5), ("ContainersReady", "True", 5)], running())
}

/// A memory that has seen a ready worker.
fn of_a_ready_worker() -> Memory {
    let mut memory = Memory::default();
    memory.take_jobs(vec![job(json!({ "active": 1, "ready": 1 }))]);
    memory.take_pods(vec![ready_pod()], NOW);
    memory
}

#[test]
fn pods_are_asked_for_at_start_for_the_pending_and_when_a_job_has_news() {
    let mut memory = Memory::default();
    assert!(memory.wants_pods(NOW), "at start");
    memory.take_jobs(vec![]);
    memory.take_pods(vec![], NOW);
    assert!(!memory.wants_pods(later(1000)), "nothing is there");
    memory.take_jobs(vec![job(json!({}))]);
    assert!(memory.wants_pods(NOW), "a new Job");
    memory.take_pods(vec![pod_in("Running", &[], running())], NOW);
    assert!(!memory.wants_pods(later(1)));
    assert!(memory.wants_pods(later(2)), "it is pending");
    memory.take_jobs(vec![job(json!({ "active": 1, "ready": 1 }))]);
    assert!(memory.wants_pods(NOW), "its Job tells something new");
    memory.take_pods(vec![ready_pod()], NOW);
    assert!(!memory.wants_pods(later(1000)), "a ready one is left alone");
    memory.take_jobs(vec![job(json!({ "active": 1, "ready": 0 }))]);
    assert!(memory.wants_pods(later(1000)), "its ready count fell");
    memory.take_jobs(vec![job(ended("Complete", "CompletionsReached"))]);
    assert!(memory.wants_pods(NOW), "it ended, and its report is not known");
    memory.take_pods(vec![pod_in("Succeeded", &[], terminated(0, "Completed", ""))], NOW);
    assert!(!memory.wants_pods(later(1000)));
}

#[test]
fn a_worker_is_known_by_its_jobs_labels() {
    let worker = only(&of_a_ready_worker(), NOW);
    let expected = Worker {
        name: "mayfly-p-abcd-7".to_owned(),
        pool: "p".to_owned(),
        serial: Some(7),
        slot: Some(2),
        launched: at(60),
        reason: Some("3 messages wait, more than 0".to_owned()),
        node: Some("node-1".to_owned()),
        cold: false,
        generation: None,
        phase: Phase::Ready { since: at(5) },
    };
    assert_eq!(worker, expected);
}

#[test]
fn what_people_made_by_hand_has_neither_serial_nor_slot() {
    let mut memory = Memory::default();
    let by_hand =
        job_with(json!({ "metadata": { "labels": { "mayfly/serial": null, "mayfly/slot": null } } }));
    memory.take_jobs(vec![by_hand]);
    let worker = only(&memory, NOW);
    assert_eq!((&*worker.pool, worker.serial, worker.slot), ("p", None, None));
    // A copy of one of ours has its labels, but not its name.
    memory.take_jobs(vec![job_with(json!({ "metadata": { "name": "mayfly-p-copy" } }))]);
    assert_eq!((only(&memory, NOW).serial, only(&memory, NOW).slot), (None, None));
}

#[test]
fn an_ended_workers_report_outlives_its_pod() {
    let mut memory = of_a_ready_worker();
    memory.take_jobs(vec![job(ended("Failed", "BackoffLimitExceeded"))]);
    memory.take_pods(vec![pod_in("Failed", &[], terminated(78, "Error", ""))], NOW);
    let Phase::Finished(ending) = only(&memory, NOW).phase else { panic!("not finished") };
    assert_eq!(ending.exit_code, Some(78));
    memory.take_pods(vec![], later(1));
    assert_eq!(only(&memory, later(1)).phase, Phase::Finished(ending), "its pod is gone");
    memory.take_jobs(vec![]);
    assert_eq!(memory.workers(later(2)), [], "and its Job");
    assert!(!memory.wants_pods(later(2)), "its end was known");
}

#[test]
fn a_pod_that_vanishes_is_not_taken_for_one_that_never_came() {
    let mut memory = of_a_ready_worker();
    memory.take_jobs(vec![job(json!({ "terminating": 1 }))]);
    memory.take_pods(vec![], NOW);
    assert_eq!(only(&memory, NOW).phase, Phase::Draining);
    memory.take_jobs(vec![job(ended("Failed", "BackoffLimitExceeded"))]);
    memory.take_pods(vec![], NOW);
    let Phase::Finished(ending) = only(&memory, NOW).phase else { panic!("not finished") };
    assert!(matches!(ending.verdict(), Verdict::Disrupted(_)), "{ending:?}");
}

/// The worker's Job once somebody has suspended it, or resumed it, so many seconds ago.
fn suspended(suspend: bool, seconds: u64) -> Job {
    let status = if suspend { "True" } else { "False" };
    let condition = json!({ "type": "Suspended", "status": status, "lastTransitionTime": ago(seconds) });
    job_with(json!({ "spec": { "suspend": suspend }, "status": { "conditions": [condition] } }))
}

/// The Job's next pod: it has just found its node.
fn next_pod() -> Pod {
    let next = merged(
        serde_json::to_value(pod_in("Pending", &[("PodScheduled", "True", 1)], Value::Null)).unwrap(),
        json!({ "metadata": { "uid": "pod-8", "creationTimestamp": ago(2) } }),
    );
    serde_json::from_value(next).unwrap()
}

#[test]
fn what_was_known_of_a_worker_is_forgotten_when_its_job_is_suspended_and_resumed() {
    let cause = |memory: &Memory| match only(memory, NOW).phase {
        Phase::Pending { cause, .. } => cause,
        other => panic!("{other:?}"),
    };
    let mut memory = of_a_ready_worker();
    memory.take_jobs(vec![suspended(true, 9)]);
    memory.take_pods(vec![], NOW);
    assert_eq!(cause(&memory), PendingCause::Suspended);
    memory.take_jobs(vec![suspended(false, 3)]);
    assert_eq!(cause(&memory), PendingCause::Creating, "its pod has yet to come");
    memory.take_pods(vec![next_pod()], NOW);
    assert_eq!(cause(&memory), PendingCause::Starting, "it was another pod that was ready");
    // Between two looks.
    let mut memory = of_a_ready_worker();
    memory.take_jobs(vec![suspended(false, 3)]);
    memory.take_pods(vec![], NOW);
    assert_eq!(cause(&memory), PendingCause::Creating);
    let mut memory = of_a_ready_worker();
    memory.take_jobs(vec![suspended(false, 3)]);
    memory.take_pods(vec![next_pod()], NOW);
    assert_eq!(cause(&memory), PendingCause::Starting);
    // It was resumed before the pod that is gone now was there: that one was lost, and its Job fails.
    memory.take_jobs(vec![suspended(false, 58)]);
    memory.take_pods(vec![], NOW);
    assert_eq!(only(&memory, NOW).phase, Phase::Draining);
}

#[test]
fn a_pod_whose_job_is_gone_counts_until_it_has_ended() {
    let mut memory = of_a_ready_worker();
    memory.take_jobs(vec![]);
    assert!(memory.wants_pods(NOW), "nobody knows what its pod does");
    memory.take_pods(vec![ready_pod()], NOW);
    let orphan = only(&memory, NOW);
    assert_eq!((orphan.serial, orphan.phase), (Some(7), Phase::Ready { since: at(5) }));
    assert!(memory.wants_pods(NOW), "nothing but the pod tells of its end");
    let terminating = merged(
        serde_json::to_value(ready_pod()).unwrap(),
        json!({ "metadata": { "deletionTimestamp": ago(1) } }),
    );
    memory.take_pods(vec![serde_json::from_value(terminating).unwrap()], NOW);
    assert_eq!(only(&memory, NOW).phase, Phase::Draining);
    memory.take_pods(vec![pod_in("Failed", &[], terminated(0, "Completed", ""))], NOW);
    assert_eq!(memory.workers(NOW), []);
    assert!(!memory.wants_pods(NOW));
}

#[test]
fn events_are_asked_for_where_a_job_has_no_pod_or_a_pod_no_node() {
    let mut memory = Memory::default();
    let young = job_with(json!({ "metadata": { "creationTimestamp": ago(2) } }));
    memory.take_jobs(vec![young.clone()]);
    memory.take_pods(vec![], NOW);
    assert!(memory.silent(NOW).is_empty(), "it is too early to ask");
    let asked = |object: &str| vec![("job-7".to_owned(), object.to_owned())];
    assert_eq!(memory.silent(later(1)), asked("job-7"));
    let refused = [event("FailedCreate", "pods is forbidden: exceeded quota: q", 1)];
    memory.take_events("job-7", "job-7".to_owned(), Some(&refused), later(1));
    let cause = |memory: &Memory| match only(memory, later(1)).phase {
        Phase::Pending { cause, .. } => Some(cause),
        _ => None,
    };
    assert_eq!(cause(&memory), Some(PendingCause::Quota));
    assert!(memory.silent(later(5)).is_empty(), "not so often");
    assert_eq!(memory.silent(later(6)), asked("job-7"));
    // Its pod comes, and has no node: what was said about the Job is past.
    let condition = json!({ "type": "PodScheduled", "status": "False", "reason": "Unschedulable" });
    let unscheduled = pod(json!({ "spec": { "nodeName": null }, "status": { "conditions": [condition] } }));
    memory.take_pods(vec![unscheduled], later(1));
    assert_eq!(cause(&memory), Some(PendingCause::NoRoom));
    assert_eq!(memory.silent(later(1)), asked("pod-7"));
    memory.take_events("job-7", "pod-7".to_owned(), Some(&[event("TriggeredScaleUp", "x", 1)]), later(1));
    assert_eq!(cause(&memory), Some(PendingCause::NodeComing));
    memory.take_pods(vec![ready_pod()], later(1));
    assert!(memory.silent(later(1000)).is_empty(), "it has a node");
}

#[test]
fn of_several_pods_of_one_job_the_living_one_counts() {
    let mut memory = Memory::default();
    memory.take_jobs(vec![job(json!({ "active": 1 }))]);
    let over = pod_in("Failed", &[], terminated(1, "Error", ""));
    for pods in [vec![over.clone(), ready_pod()], vec![ready_pod(), over]] {
        memory.take_pods(pods, NOW);
        assert_eq!(only(&memory, NOW).phase, Phase::Ready { since: at(5) });
    }
}

#[test]
fn a_cause_on_the_node_has_its_time_from_when_it_is_seen_and_not_from_the_node() {
    let mut memory = Memory::default();
    memory.take_jobs(vec![job(json!({ "active": 1 }))]);
    let stuck = |container| pod_in("Pending", &[("PodScheduled", "True", 45)], container);
    let pending = |memory: &Memory, now| match only(memory, now).phase {
        Phase::Pending { cause, since, .. } => (cause, since),
        other => panic!("{other:?}"),
    };
    // Seen for the first time: it may be so for as long as it has its node.
    memory.take_pods(vec![stuck(waiting("ContainerCreating", ""))], NOW);
    assert_eq!(pending(&memory, NOW), (PendingCause::Starting, at(45)));
    for second in [100, 130] {
        memory.take_pods(vec![stuck(waiting("CreateContainerError", "x"))], later(second));
        assert_eq!(
            pending(&memory, later(second)),
            (PendingCause::RuntimeError, later(100)),
            "at {second} s"
        );
    }
}

#[test]
fn events_that_cannot_be_read_change_nothing_and_are_asked_for_again() {
    let mut memory = Memory::default();
    memory.take_jobs(vec![job(json!({ "active": 1 }))]);
    let creating = pod_in("Pending", &[("PodScheduled", "True", 45)], waiting("ContainerCreating", ""));
    memory.take_pods(vec![creating], NOW);
    let asked = vec![("job-7".to_owned(), "pod-7".to_owned())];
    assert_eq!(memory.silent(NOW), asked);
    let mount = [event("FailedMount", "no secret", 1)];
    memory.take_events("job-7", "pod-7".to_owned(), Some(&mount), NOW);
    let cause = |memory: &Memory| match only(memory, NOW).phase {
        Phase::Pending { cause, .. } => cause,
        other => panic!("{other:?}"),
    };
    assert_eq!(cause(&memory), PendingCause::Volumes);
    assert_eq!(memory.silent(later(5)), asked, "it is still not clear");
    memory.take_events("job-7", "pod-7".to_owned(), None, later(5));
    assert_eq!(cause(&memory), PendingCause::Volumes);
    assert!(memory.silent(later(9)).is_empty() && memory.silent(later(10)) == asked);
}

#[test]
fn of_many_stuck_workers_two_are_asked_about_at_a_time_and_all_in_turn() {
    let mut memory = Memory::default();
    let numbered = |number: u64| {
        job_with(json!({ "metadata": { "name": format!("j-{number}"), "uid": format!("u-{number}") } }))
    };
    memory.take_jobs((1..=5).map(numbered).collect());
    memory.take_pods(vec![], NOW);
    let mut asked = std::collections::BTreeSet::new();
    for second in 0..3 {
        let silent = memory.silent(later(second));
        assert!(silent.len() <= 2, "{silent:?}");
        for (uid, object) in silent {
            memory.take_events(&uid, object, Some(&[]), later(second));
            asked.insert(uid);
        }
    }
    assert_eq!(asked.len(), 5);
}

#[test]
fn a_job_that_came_after_its_launch_was_written_off_is_told_once() {
    let made = |seconds: u64| job_with(json!({ "metadata": { "creationTimestamp": ago(seconds) } }));
    let mut memory = Memory::default();
    assert_eq!(memory.take_jobs(vec![made(59)]), []);
    let late = || {
        job_with(json!({ "metadata": {
        "name": "mayfly-p-abcd-8", "uid": "job-8",
        "annotations": { "mayfly/intended-at": ago(190) }, "creationTimestamp": ago(60),
    } }))
    };
    assert_eq!(
        memory.take_jobs(vec![made(59), late()]),
        [("mayfly-p-abcd-8".to_owned(), Duration::from_secs(130))]
    );
    assert_eq!(memory.take_jobs(vec![made(59), late()]), [], "it was told");
}

#[test]
fn of_failed_jobs_the_newest_ten_are_kept_and_only_what_is_counted_and_long_over_goes() {
    let failed = |serial: u64, seconds: u64| {
        let name = format!("mayfly-p-abcd-{serial}");
        job_with(json!({
            "metadata": {
                "name": name, "uid": format!("job-{serial}"),
                "labels": { "mayfly/serial": serial.to_string() },
                "annotations": { "mayfly/intended-at": ago(seconds) }, "creationTimestamp": ago(seconds),
            },
            "status": ended("Failed", "BackoffLimitExceeded"),
        }))
    };
    let surplus = |jobs: Vec<Job>, uncounted: &str| {
        let mut memory = Memory::default();
        memory.take_jobs(jobs);
        memory.take_pods(vec![], NOW);
        let mut counted = memory.workers(NOW);
        counted.retain(|worker| worker.name != uncounted);
        let names = memory.failed_surplus(&counted, NOW).into_iter().filter_map(|metadata| metadata.name);
        names.collect::<Vec<_>>()
    };
    let old =
        |jobs: std::ops::RangeInclusive<u64>| jobs.map(|serial| failed(serial, 1000 - serial)).collect();
    assert_eq!(surplus(old(1..=10), ""), [""; 0]);
    assert_eq!(surplus(old(1..=12), ""), ["mayfly-p-abcd-1", "mayfly-p-abcd-2"]);
    assert_eq!(
        surplus(old(1..=12), "mayfly-p-abcd-1"),
        ["mayfly-p-abcd-2"],
        "its outcome is not in the record"
    );
    let young = (1..=12).map(|serial| failed(serial, if serial == 1 { 180 } else { 179 })).collect();
    assert_eq!(surplus(young, ""), ["mayfly-p-abcd-1"], "a request for the others may still arrive");
    let mut others: Vec<Job> = old(1..=12);
    others[0].status = job(ended("Complete", "CompletionsReached")).status;
    assert_eq!(surplus(others, ""), ["mayfly-p-abcd-2"], "what did its part goes by its time alone");
}
