//! A template becomes a Job, or is refused by name.

use serde_json::{Value, json};

use super::{
    super::template::{TemplateError, build},
    merged,
};
use crate::{
    config::{PoolConfig, WorkerTemplate},
    launcher::Plan,
    time::Time,
};

fn plan() -> Plan {
    Plan {
        name: "mayfly-p-abcd-7".to_owned(),
        pool: "p".to_owned(),
        serial: 7,
        slot: 2,
        reason: "3 messages wait, more than 0".to_owned(),
        stamp: Time::from_millis(1_785_585_600_123),
        service_time: None,
    }
}

fn pool() -> PoolConfig {
    PoolConfig::with_defaults("p", "q", WorkerTemplate::CronJob("mayfly-p".to_owned()))
}

/// No more than the API server demands.
fn least() -> Value {
    json!({ "spec": { "jobTemplate": { "spec": { "template": { "spec": {
        "restartPolicy": "Never",
        "containers": [{ "name": "worker", "image": "mayfly-worker:1" }],
    } } } } } })
}

fn with(changes: Value) -> Value {
    merged(least(), json!({ "spec": { "jobTemplate": changes } }))
}

fn built(template: &Value) -> Value {
    build(template, "mayfly", &pool(), &plan()).unwrap().job
}

fn refusal(template: &Value) -> String {
    build(template, "mayfly", &pool(), &plan()).unwrap_err().to_string()
}

#[test]
fn a_silent_template_gets_every_default() {
    let labels = json!({
        "app.kubernetes.io/name": "mayfly-worker",
        "app.kubernetes.io/component": "worker",
        "app.kubernetes.io/managed-by": "mayfly-scaler",
        "app.kubernetes.io/instance": "mayfly",
        "mayfly/pool": "p",
        "mayfly/slot": "2",
        "mayfly/serial": "7",
    });
    let expected = json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": "mayfly-p-abcd-7",
            "labels": labels,
            "annotations": {
                "mayfly/reason": "3 messages wait, more than 0",
                "mayfly/intended-at": "2026-08-01T12:00:00.123Z",
            },
        },
        "spec": {
            "parallelism": 1,
            "completions": 1,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "ttlSecondsAfterFinished": 300,
            "template": {
                "metadata": {
                    "labels": labels,
                    "annotations": {
                        "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
                        "karpenter.sh/do-not-disrupt": "true",
                    },
                },
                "spec": {
                    "restartPolicy": "Never",
                    "containers": [{
                        "name": "worker",
                        "image": "mayfly-worker:1",
                        "env": [
                            { "name": "MAYFLY_INSTANCE", "value": "mayfly" },
                            { "name": "MAYFLY_POOL", "value": "p" },
                            { "name": "MAYFLY_SERIAL", "value": "7" },
                            { "name": "MAYFLY_SLOT", "value": "2" },
                        ],
                    }],
                },
            },
        },
    });
    assert_eq!(built(&least()), expected);
}

#[test]
fn what_a_template_says_stays_known_to_us_or_not() {
    let said = with(json!({
        "metadata": { "labels": { "team": "documents" }, "annotations": { "note": "x" } },
        "spec": {
            "ttlSecondsAfterFinished": 3600,
            "podReplacementPolicy": "TerminatingOrFailed",
            "suspend": true,
            "aFieldOfTomorrow": { "deep": [1, 2] },
            "template": {
                "metadata": { "annotations": {
                    "cluster-autoscaler.kubernetes.io/safe-to-evict": "on-completion",
                } },
                "spec": { "terminationGracePeriodSeconds": 90, "resourcesOfTomorrow": { "cpu": "1" } },
            },
        },
    }));
    let job = built(&said);
    assert_eq!(job["metadata"]["labels"]["team"], "documents");
    assert_eq!(job["metadata"]["annotations"]["note"], "x");
    let spec = &job["spec"];
    assert_eq!(spec["ttlSecondsAfterFinished"], 3600);
    assert_eq!(spec["podReplacementPolicy"], "TerminatingOrFailed");
    assert_eq!(spec["suspend"], true);
    assert_eq!(spec["aFieldOfTomorrow"], json!({ "deep": [1, 2] }));
    assert_eq!(spec["template"]["spec"]["resourcesOfTomorrow"], json!({ "cpu": "1" }));
    assert_eq!(spec["template"]["spec"]["terminationGracePeriodSeconds"], 90);
    let annotations = &spec["template"]["metadata"]["annotations"];
    assert_eq!(annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"], "on-completion");
    assert_eq!(annotations["karpenter.sh/do-not-disrupt"], "true");
}

#[test]
fn one_job_is_one_worker_whatever_the_template_says() {
    let many = with(json!({
        "metadata": { "labels": { "mayfly/pool": "other", "app.kubernetes.io/instance": "other" } },
        "spec": {
            "parallelism": 5, "completions": 9, "completionMode": "Indexed", "manualSelector": true,
            "selector": { "matchLabels": { "a": "b" } }, "managedBy": "someone/else",
        },
    }));
    let job = built(&many);
    assert_eq!((&job["spec"]["parallelism"], &job["spec"]["completions"]), (&json!(1), &json!(1)));
    for gone in ["completionMode", "manualSelector", "selector", "managedBy"] {
        assert!(job["spec"].get(gone).is_none(), "{gone}");
    }
    assert_eq!(job["metadata"]["labels"]["mayfly/pool"], "p");
    assert_eq!(job["metadata"]["labels"]["app.kubernetes.io/instance"], "mayfly");
}

#[test]
fn a_short_ttl_is_raised_and_that_is_said() {
    let short = with(json!({ "spec": { "ttlSecondsAfterFinished": 0 } }));
    let built = build(&short, "mayfly", &pool(), &plan()).unwrap();
    assert_eq!(built.job["spec"]["ttlSecondsAfterFinished"], 300);
    assert_eq!(
        built.remarks,
        ["ttlSecondsAfterFinished 0 is raised to 300: outcomes are read from ended jobs"]
    );
}

#[test]
fn what_would_start_workers_without_us_is_refused_by_name() {
    let table = [
        (
            with(json!({ "spec": { "template": { "spec": { "restartPolicy": "OnFailure" } } } })),
            "restartPolicy is OnFailure, but it must be Never: only the scaler, which knows the queue, starts workers",
        ),
        (
            with(json!({ "spec": { "template": { "spec": { "restartPolicy": null } } } })),
            "restartPolicy is absent, but it must be Never: only the scaler, which knows the queue, starts workers",
        ),
        (
            with(json!({ "spec": { "backoffLimit": 6 } })),
            "backoffLimit is 6, but it must be 0: only the scaler, which knows the queue, starts workers",
        ),
        (
            with(json!({ "spec": { "podFailurePolicy": { "rules": [{ "action": "Ignore" }] } } })),
            "podFailurePolicy is a rule with the action Ignore, but it must be without it: it would start a \
             worker again whatever the queue holds",
        ),
    ];
    for (template, expected) in table {
        assert_eq!(refusal(&template), expected);
    }
    let zero = with(json!({ "spec": { "backoffLimit": 0 } }));
    assert_eq!(built(&zero)["spec"]["backoffLimit"], 0);
}

#[test]
fn a_template_that_is_none_is_refused_without_panic() {
    let table = [
        (json!({}), TemplateError::Missing("jobTemplate")),
        (json!({ "spec": { "jobTemplate": {} } }), TemplateError::Missing("jobTemplate.spec")),
        (
            with(json!({ "spec": { "template": { "spec": { "containers": null } } } })),
            TemplateError::Missing("container"),
        ),
        (
            with(json!({ "spec": { "template": { "spec": { "containers": [] } } } })),
            TemplateError::Missing("container"),
        ),
    ];
    for (template, expected) in table {
        assert_eq!(build(&template, "mayfly", &pool(), &plan()), Err(expected), "{template}");
    }
}

#[test]
fn the_worker_is_told_who_it_is_and_keeps_what_it_is_told_elsewhere() {
    let template = with(json!({ "spec": { "template": { "spec": { "containers": [
        { "name": "helper" },
        { "name": "worker", "env": [
            { "name": "MAYFLY_QUEUE", "value": "documents" },
            { "name": "MAYFLY_SLOT", "valueFrom": { "fieldRef": { "fieldPath": "x" } } },
        ] },
    ] } } } }));
    let service_time = Some(std::time::Duration::from_millis(1500));
    let warm = PoolConfig { min_workers: 3, ..pool() };
    let job = build(&template, "mayfly", &warm, &Plan { service_time, ..plan() }).unwrap().job;
    let containers = &job["spec"]["template"]["spec"]["containers"];
    assert_eq!(containers[0], json!({ "name": "helper" }));
    assert_eq!(
        containers[1]["env"],
        json!([
            { "name": "MAYFLY_QUEUE", "value": "documents" },
            { "name": "MAYFLY_INSTANCE", "value": "mayfly" },
            { "name": "MAYFLY_POOL", "value": "p" },
            { "name": "MAYFLY_SERIAL", "value": "7" },
            { "name": "MAYFLY_SLOT", "value": "2" },
            { "name": "MAYFLY_MAX_IDLE", "value": "10m" },
            { "name": "MAYFLY_SERVICE_TIME_HINT", "value": "1s 500ms" },
        ])
    );
    let loose = PoolConfig { packing: false, ..pool() };
    let job = build(&least(), "mayfly", &loose, &plan()).unwrap().job;
    let names = job["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap();
    assert!(names.iter().all(|variable| variable["name"] != "MAYFLY_SLOT"), "{names:?}");
}

#[test]
fn the_generation_of_the_template_is_noted_on_the_job() {
    let template = merged(least(), json!({ "metadata": { "generation": 7 } }));
    let job = built(&template);
    assert_eq!(job["metadata"]["labels"]["mayfly/template-generation"], "7");
    let metadata = serde_json::from_value(job["metadata"].clone()).unwrap();
    assert_eq!(super::super::names::generation(&metadata), Some(7));
    assert_eq!(job["spec"]["template"]["metadata"]["labels"]["mayfly/template-generation"], Value::Null);
}
