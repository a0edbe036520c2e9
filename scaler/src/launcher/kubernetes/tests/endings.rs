//! How workers end, as the cluster keeps it.

use std::time::Duration;

use mayfly_service::report::{ExitReason, ExitReport};
use serde_json::json;

use super::{super::ending::ending, *};
use crate::policy::{Ending, Verdict};

fn report() -> ExitReport {
    ExitReport { done: 3, messages: 3, startup_ms: Some(1500), ..ExitReport::new(ExitReason::Idle) }
}

fn message(report: &ExitReport) -> String {
    serde_json::to_string(report).unwrap()
}

fn of(job: &Job, pod: &Pod) -> Ending {
    ending(job, Some(pod), true, NOW)
}

fn text(ending: &Ending) -> String {
    match ending.verdict() {
        Verdict::Failed(text) => format!("failed: {text}"),
        Verdict::Disrupted(text) => format!("disrupted: {text}"),
        other => format!("{other:?}"),
    }
}

#[test]
fn a_worker_that_ended_in_order_is_known_by_its_report() {
    let job = job(ended("Complete", "CompletionsReached"));
    let pod = pod_in("Succeeded", &[], terminated(0, "Completed", &message(&report())));
    let expected = Ending {
        at: at(3),
        started: true,
        // Intended 60 s ago, started 40 s ago, and 1.5 s later it was ready.
        lead_time: Some(Duration::from_millis(21_500)),
        exit_code: Some(0),
        report: Some(report()),
        detail: None,
        last_words: None,
        disrupted: false,
    };
    assert_eq!(of(&job, &pod), expected);
}

#[test]
fn a_report_that_is_cut_or_garbage_is_none() {
    let job = job(ended("Failed", "BackoffLimitExceeded"));
    let whole = message(&report());
    for garbage in ["", "Killed", &whole[..whole.len() / 2]] {
        let pod = pod_in("Failed", &[], terminated(70, "Error", garbage));
        let ending = of(&job, &pod);
        assert_eq!((ending.report.as_ref(), ending.lead_time, ending.exit_code), (None, None, Some(70)));
        assert_eq!(text(&ending), "failed: ended with exit code 70 without a report");
    }
}

#[test]
fn what_a_worker_wrote_last_is_kept_where_it_left_no_report_and_not_more_of_it() {
    let job = job(ended("Failed", "BackoffLimitExceeded"));
    let words =
        |code, message: &str| of(&job, &pod_in("Failed", &[], terminated(code, "Error", message))).last_words;
    assert_eq!(words(3, "first\nlast\n").as_deref(), Some("first\nlast"));
    assert_eq!(words(3, "bell \u{7}\r\nlast").as_deref(), Some("bell\nlast"));
    assert_eq!(words(3, " \n"), None);
    assert_eq!(words(70, &message(&report())), None, "a report tells itself");
    let lines = (0..50).map(|n| format!("line {n}")).collect::<Vec<_>>();
    assert_eq!(words(3, &lines.join("\n")), Some(lines[40..].join("\n")));
    let long = words(3, &"ü".repeat(4000)).unwrap();
    assert!(long.len() <= 1024 && long.ends_with('ü'), "{}", long.len());
}

#[test]
fn a_bad_end_is_told_with_what_the_cluster_says() {
    let failed = || job(ended("Failed", "BackoffLimitExceeded"));
    let init = pod(json!({ "status": {
        "phase": "Failed",
        "initContainerStatuses": [merged(terminated(3, "Error", "no route"), json!({ "name": "fetch" }))],
        "containerStatuses": [waiting("PodInitializing", "")],
    } }));
    let disrupted = |reason: &str| {
        pod(json!({ "status": {
            "phase": "Failed",
            "conditions": [{ "type": "DisruptionTarget", "status": "True", "reason": reason,
                "message": "words" }],
            "containerStatuses": [terminated(137, "Error", "")],
        } }))
    };
    let table = vec![
        (
            "row 23: the command does not exist",
            pod_in("Failed", &[], terminated(128, "StartError", "exec: \"/x\": no such file")),
            "failed: ended with exit code 128 without a report; StartError: exec: \"/x\": no such file",
        ),
        (
            "row 25: out of memory",
            pod_in("Failed", &[], terminated(137, "OOMKilled", "")),
            "failed: ended with exit code 137 without a report; OOMKilled",
        ),
        (
            "row 25: it crashes",
            pod_in("Failed", &[], terminated(3, "Error", "")),
            "failed: ended with exit code 3 without a report",
        ),
        ("an init container fails", init, "failed: ended without a report; container fetch ended with 3"),
        (
            "row 27: the kubelet had no room after all",
            pod(json!({ "status": { "phase": "Failed", "reason": "OutOfcpu", "message": "words" } })),
            "NeverStarted",
        ),
        (
            "row 28: preempted",
            disrupted("PreemptionByScheduler"),
            "disrupted: ended with exit code 137 without a report; PreemptionByScheduler: words",
        ),
        (
            "row 28: evicted by the kubelet",
            pod(json!({ "status": { "phase": "Failed", "reason": "Evicted", "message": "low on memory",
                "containerStatuses": [terminated(137, "Error", "")] } })),
            "disrupted: ended with exit code 137 without a report; Evicted: low on memory",
        ),
        (
            "somebody deleted its pod",
            pod(json!({ "metadata": { "deletionTimestamp": ago(9) }, "status": { "phase": "Failed",
                "containerStatuses": [terminated(137, "Error", "")] } })),
            "disrupted: ended with exit code 137 without a report; its pod was deleted",
        ),
    ];
    for (name, pod, expected) in table {
        assert_eq!(text(&of(&failed(), &pod)), expected, "{name}");
    }
}

#[test]
fn a_worker_whose_pod_is_gone_was_taken_away() {
    let failed = job(ended("Failed", "BackoffLimitExceeded"));
    assert_eq!(
        text(&ending(&failed, None, false, NOW)),
        "disrupted: ended without a report; its pod is gone"
    );
    // It was seen running before.
    let seen = pod_in("Running", &[], running());
    assert_eq!(
        text(&ending(&failed, Some(&seen), false, NOW)),
        "disrupted: ended without a report; its pod is gone"
    );
    // It was seen not to have started: removed by us, most likely.
    let waiting = pod_in("Pending", &[], waiting("ImagePullBackOff", ""));
    assert_eq!(ending(&failed, Some(&waiting), false, NOW).verdict(), Verdict::NeverStarted);
    // There never was one.
    let podless = job(json!({ "conditions": [{ "type": "Failed", "status": "True" }] }));
    assert_eq!(ending(&podless, None, false, NOW).verdict(), Verdict::NeverStarted);
}

#[test]
fn a_limit_that_people_set_is_named() {
    let late = job(ended("Failed", "DeadlineExceeded"));
    let seen = pod_in("Running", &[], running());
    assert_eq!(
        text(&ending(&late, Some(&seen), false, NOW)),
        "failed: ended without a report; DeadlineExceeded"
    );
}

#[test]
fn the_worker_is_found_among_other_containers() {
    let job = job(ended("Complete", "CompletionsReached"));
    let helper = merged(terminated(1, "Error", "x"), json!({ "name": "helper" }));
    let worker = terminated(0, "Completed", &message(&report()));
    let pod = pod(json!({ "status": { "phase": "Succeeded", "containerStatuses": [helper, worker] } }));
    assert_eq!(of(&job, &pod).report, Some(report()));
}
