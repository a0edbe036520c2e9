//! Objects as clusters show them.
#![expect(clippy::needless_pass_by_value, reason = "fixtures are written where they are used")]

mod endings;
mod memory;
mod phases;
mod rows;
mod template;

use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{Event, Pod},
};
use serde_json::{Value, json};

use crate::time::Time;

/// 2026-08-01T12:00:00Z.
const NOW: Time = Time::from_millis(1_785_585_600_000);

/// What RFC 3339 has for so many seconds before [`NOW`].
fn ago(seconds: u64) -> String {
    at(seconds).to_string()
}

fn at(seconds: u64) -> Time {
    NOW - std::time::Duration::from_secs(seconds)
}

/// Lays `over` over `base`, object by object; `null` removes.
fn merged(mut base: Value, over: Value) -> Value {
    match (&mut base, over) {
        (Value::Object(fields), Value::Object(over)) => {
            for (key, value) in over {
                let merged = match fields.remove(&key) {
                    Some(before) => merged(before, value),
                    None => value,
                };
                if !merged.is_null() {
                    fields.insert(key, merged);
                }
            }
            base
        }
        (_, over) => over,
    }
}

/// A Job of ours, intended 60 s ago and made a second later, with `status`.
fn job(status: Value) -> Job {
    job_with(json!({ "status": status }))
}

fn job_with(changes: Value) -> Job {
    let base = json!({
        "metadata": {
            "name": "mayfly-p-abcd-7",
            "uid": "job-7",
            "creationTimestamp": ago(59),
            "labels": {
                "app.kubernetes.io/instance": "mayfly",
                "mayfly/pool": "p", "mayfly/serial": "7", "mayfly/slot": "2",
            },
            "annotations": { "mayfly/intended-at": ago(60), "mayfly/reason": "3 messages wait, more than 0" },
        },
        "spec": { "template": {} },
        "status": {},
    });
    serde_json::from_value(merged(base, changes)).unwrap()
}

fn ended(kind: &str, reason: &str) -> Value {
    let count = if kind == "Failed" { "failed" } else { "succeeded" };
    json!({ (count): 1, "conditions": [
        { "type": kind, "status": "True", "reason": reason, "lastTransitionTime": ago(1) },
    ] })
}

/// The Job's pod on a node, made 58 s ago, with `changes`.
fn pod(changes: Value) -> Pod {
    let base = json!({
        "metadata": {
            "name": "mayfly-p-abcd-7-xxxxx",
            "uid": "pod-7",
            "creationTimestamp": ago(58),
            "labels": {
                "controller-uid": "job-7",
                "mayfly/pool": "p", "mayfly/serial": "7", "mayfly/slot": "2",
            },
        },
        "spec": { "nodeName": "node-1", "containers": [{ "name": "worker" }, { "name": "helper" }] },
        "status": { "phase": "Pending" },
    });
    serde_json::from_value(merged(base, changes)).unwrap()
}

/// A pod with these conditions and this state of its worker's container.
fn pod_in(phase: &str, conditions: &[(&str, &str, u64)], container: Value) -> Pod {
    let conditions: Vec<_> = conditions
        .iter()
        .map(|(kind, status, turned)| {
            json!({ "type": kind, "status": status, "lastTransitionTime": ago(*turned) })
        })
        .collect();
    let statuses = if container.is_null() { json!([]) } else { json!([container]) };
    pod(json!({ "status": { "phase": phase, "conditions": conditions, "containerStatuses": statuses } }))
}

/// The status of a container in this state.
fn container(name: &str, state: Value) -> Value {
    json!({
        "name": name, "image": "mayfly-worker:1", "imageID": "", "ready": false, "restartCount": 0,
        "state": state,
    })
}

fn waiting(reason: &str, message: &str) -> Value {
    container("worker", json!({ "waiting": { "reason": reason, "message": message } }))
}

fn running() -> Value {
    container("worker", json!({ "running": { "startedAt": ago(40) } }))
}

fn terminated(code: i32, reason: &str, message: &str) -> Value {
    let ended = json!({
        "exitCode": code, "reason": reason, "message": message, "startedAt": ago(40), "finishedAt": ago(3),
    });
    container("worker", json!({ "terminated": ended }))
}

fn event(reason: &str, message: &str, seconds: u64) -> Event {
    serde_json::from_value(json!({
        "metadata": {}, "involvedObject": {}, "reason": reason, "message": message,
        "firstTimestamp": ago(seconds), "lastTimestamp": ago(seconds),
    }))
    .unwrap()
}
