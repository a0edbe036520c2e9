//! A pool's template and a plan become a Job. Pure.
//!
//! The template is copied as it stands in the cluster, with fields that this program does not know.

use serde_json::{Map, Value, json};

use mayfly_service::contract;

use super::names::{self, GENERATION, INTENDED_AT, REASON};
use crate::{
    config::{PoolConfig, WARM_IDLE},
    launcher::Plan,
};

/// The container that gets the worker's environment; the first one if none has this name.
const WORKER: &str = "worker";
/// An ended Job stays at least so long: its outcome is read from it.
const LEAST_TTL: u64 = 300;
/// Annotations that keep a node with a busy worker on it from being emptied.
const STAY: [(&str, &str); 2] =
    [("cluster-autoscaler.kubernetes.io/safe-to-evict", "false"), ("karpenter.sh/do-not-disrupt", "true")];

/// A template that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TemplateError {
    /// A part is missing.
    #[error("it has no {0}")]
    Missing(&'static str),
    /// A part would break the promise that one launch is one worker.
    #[error("{field} is {value}, but it must be {wanted}: {why}")]
    Refused { field: &'static str, value: String, wanted: &'static str, why: &'static str },
}

/// A Job to create, and what of the template was changed that people may not expect.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Built {
    pub(super) job: Value,
    pub(super) remarks: Vec<String>,
}

/// Builds the Job of `plan` from the `CronJob` `template`.
pub(super) fn build(
    template: &Value,
    instance: &str,
    pool: &PoolConfig,
    plan: &Plan,
) -> Result<Built, TemplateError> {
    let mut remarks = Vec::new();
    let job_template = template.pointer("/spec/jobTemplate").ok_or(TemplateError::Missing("jobTemplate"))?;
    let mut spec = job_template.get("spec").cloned().ok_or(TemplateError::Missing("jobTemplate.spec"))?;
    refuse(&spec)?;
    let pod = spec.get_mut("template").ok_or(TemplateError::Missing("pod template"))?;
    let labels = names::labels(instance, plan);
    put(pod, "labels", labels.iter().map(|(key, value)| (*key, value.clone())));
    fill(pod, "annotations", STAY);
    set_environment(pod, &environment(instance, pool, plan))?;

    let fields = object(&mut spec);
    for ours in ["selector", "manualSelector", "completionMode", "managedBy"] {
        fields.remove(ours);
    }
    fields.insert("parallelism".to_owned(), json!(1));
    fields.insert("completions".to_owned(), json!(1));
    let silent = |value: Option<&Value>| value.is_none_or(Value::is_null);
    for (field, default) in [("backoffLimit", json!(0)), ("podReplacementPolicy", json!("Failed"))] {
        if silent(fields.get(field)) {
            fields.insert(field.to_owned(), default);
        }
    }
    let ttl = fields.get("ttlSecondsAfterFinished").and_then(Value::as_u64);
    if let Some(ttl) = ttl.filter(|ttl| *ttl < LEAST_TTL) {
        remarks.push(format!(
            "ttlSecondsAfterFinished {ttl} is raised to {LEAST_TTL}: outcomes are read from ended jobs"
        ));
    }
    fields.insert("ttlSecondsAfterFinished".to_owned(), json!(ttl.unwrap_or(0).max(LEAST_TTL)));

    let mut holder = json!({ "metadata": job_template.get("metadata").cloned().unwrap_or_default() });
    let generation = template.pointer("/metadata/generation").and_then(Value::as_u64);
    let generation = generation.map(|generation| (GENERATION, generation.to_string()));
    put(&mut holder, "labels", labels.into_iter().chain(generation));
    let told = [(REASON, plan.reason.clone()), (INTENDED_AT, plan.stamp.to_string())];
    put(&mut holder, "annotations", told.into_iter());
    let metadata = &holder["metadata"];
    let job = json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": plan.name,
            "labels": metadata["labels"],
            "annotations": metadata["annotations"],
        },
        "spec": spec,
    });
    Ok(Built { job, remarks })
}

/// Refuses what would make Kubernetes start workers on its own account.
fn refuse(spec: &Value) -> Result<(), TemplateError> {
    let restart = spec.pointer("/template/spec/restartPolicy");
    if restart != Some(&json!("Never")) {
        return Err(TemplateError::Refused {
            field: "restartPolicy",
            value: restart.map_or_else(|| "absent".to_owned(), as_text),
            wanted: "Never",
            why: "only the scaler, which knows the queue, starts workers",
        });
    }
    if let Some(limit) =
        spec.get("backoffLimit").filter(|limit| limit.as_u64() != Some(0) && !limit.is_null())
    {
        return Err(TemplateError::Refused {
            field: "backoffLimit",
            value: as_text(limit),
            wanted: "0",
            why: "only the scaler, which knows the queue, starts workers",
        });
    }
    let rules = spec.pointer("/podFailurePolicy/rules").and_then(Value::as_array);
    if rules.is_some_and(|rules| rules.iter().any(|rule| rule["action"] == "Ignore")) {
        return Err(TemplateError::Refused {
            field: "podFailurePolicy",
            value: "a rule with the action Ignore".to_owned(),
            wanted: "without it",
            why: "it would start a worker again whatever the queue holds",
        });
    }
    Ok(())
}

/// What the worker is told about itself.
fn environment(instance: &str, pool: &PoolConfig, plan: &Plan) -> Vec<(&'static str, String)> {
    let mut environment = vec![
        (contract::INSTANCE, instance.to_owned()),
        (contract::POOL, plan.pool.clone()),
        (contract::SERIAL, plan.serial.to_string()),
    ];
    if pool.packing {
        environment.push((contract::SLOT, plan.slot.to_string()));
    }
    if plan.slot < pool.limits(plan.stamp).min_workers {
        environment.push((contract::MAX_IDLE, humantime::format_duration(WARM_IDLE).to_string()));
    }
    if let Some(hint) = plan.service_time {
        environment.push((contract::SERVICE_TIME_HINT, humantime::format_duration(hint).to_string()));
    }
    environment
}

fn set_environment(pod: &mut Value, environment: &[(&str, String)]) -> Result<(), TemplateError> {
    let containers = pod.pointer_mut("/spec/containers").and_then(Value::as_array_mut);
    let containers = containers.filter(|all| !all.is_empty()).ok_or(TemplateError::Missing("container"))?;
    let worker = containers.iter().position(|container| container["name"] == WORKER).unwrap_or(0);
    let variables = object(&mut containers[worker]).entry("env").or_insert_with(|| json!([]));
    if !variables.is_array() {
        *variables = json!([]);
    }
    let Some(variables) = variables.as_array_mut() else { return Ok(()) };
    variables.retain(|variable| environment.iter().all(|(name, _)| variable["name"] != *name));
    variables.extend(environment.iter().map(|(name, value)| json!({ "name": name, "value": value })));
    Ok(())
}

/// Sets entries of `metadata.<map>`.
fn put<'a>(holder: &mut Value, map: &str, entries: impl Iterator<Item = (&'a str, String)>) {
    let map = metadata_map(holder, map);
    map.extend(entries.map(|(key, value)| (key.to_owned(), Value::String(value))));
}

/// Sets those entries of `metadata.<map>` that are silent.
fn fill<'a>(holder: &mut Value, map: &str, entries: impl IntoIterator<Item = (&'a str, &'a str)>) {
    let map = metadata_map(holder, map);
    for (key, value) in entries {
        map.entry(key).or_insert_with(|| json!(value));
    }
}

fn metadata_map<'a>(holder: &'a mut Value, map: &str) -> &'a mut Map<String, Value> {
    let metadata = object(holder).entry("metadata").or_insert_with(|| json!({}));
    object(object(metadata).entry(map).or_insert_with(|| json!({})))
}

/// The object that `value` is, or becomes.
fn object(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        // It was made an object above.
        _ => unreachable!("not an object"),
    }
}

fn as_text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
