//! What a user installs, as the chart would render it for one pool, in a namespace of a test's own.

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// Where the chart says what a scaler may do.
const RBAC: &str = include_str!("../../../charts/mayfly/templates/rbac.yaml");
/// The instance of every test; namespaces keep them apart.
pub(super) const INSTANCE: &str = "test";
/// Its only pool.
pub(super) const POOL: &str = "pool";
/// The name of everything that belongs to the scaler.
pub(super) const SCALER: &str = "test-scaler";
/// The worker template.
pub(super) const TEMPLATE: &str = "test-pool";
/// The state record's `ConfigMap`.
pub(super) const STATE: &str = "test-state";
/// The node label by which a test's pods find the test's nodes.
pub(super) const NODES: &str = "mayfly.test/space";

/// The labels of Jobs and their pods.
pub(super) fn labels() -> Value {
    json!({
        "app.kubernetes.io/name": "mayfly-worker",
        "app.kubernetes.io/instance": INSTANCE,
        "app.kubernetes.io/component": "worker",
        "mayfly/pool": POOL,
    })
}

pub(super) fn service_account() -> Value {
    json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": SCALER } })
}

/// The chart's own Role: every verb that a scaler may use, and none beside.
pub(super) fn role() -> Result<Value> {
    let is_role = |document: &&str| document.contains("\nkind: Role\n");
    let document = RBAC.split("\n---\n").find(is_role).context("no Role in the chart")?;
    let (_, rules) = document.split_once("\nrules:\n").context("no rules in the chart's Role")?;
    let rules = rules.replace("{{ $instance }}", INSTANCE);
    let rules: Value = serde_saphyr::from_str(&rules).context("rules of the chart's Role")?;
    Ok(json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": { "name": SCALER },
        "rules": rules,
    }))
}

pub(super) fn role_binding(namespace: &str) -> Value {
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": { "name": SCALER },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": SCALER },
        "subjects": [{ "kind": "ServiceAccount", "name": SCALER, "namespace": namespace }],
    })
}

/// The question whether whoever asks may read the state record.
pub(super) fn may_get_state(namespace: &str) -> Value {
    json!({ "spec": { "resourceAttributes": {
        "namespace": namespace, "verb": "get", "resource": "configmaps", "name": STATE,
    } } })
}

/// The state record as the chart renders it: no data, so that nothing ever resets it.
pub(super) fn state() -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": STATE } })
}

/// The worker template: a suspended `CronJob` whose workers take one CPU each, on the test's own nodes.
pub(super) fn template(namespace: &str) -> Value {
    json!({
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": { "name": TEMPLATE, "labels": labels() },
        "spec": {
            "schedule": "0 0 31 2 *",
            "suspend": true,
            "jobTemplate": {
                "metadata": { "labels": labels() },
                "spec": {
                    "backoffLimit": 0,
                    "ttlSecondsAfterFinished": 300,
                    "podReplacementPolicy": "Failed",
                    "template": {
                        "metadata": { "labels": labels() },
                        "spec": {
                            "restartPolicy": "Never",
                            "automountServiceAccountToken": false,
                            "nodeSelector": { NODES: namespace },
                            "terminationGracePeriodSeconds": 30,
                            "containers": [{
                                "name": "worker",
                                "image": "mayfly-worker:test",
                                "resources": { "requests": { "cpu": "1" } },
                                "env": [{ "name": "MAYFLY_QUEUE", "value": "documents" }],
                            }],
                        },
                    },
                },
            },
        },
    })
}

/// A node that is there and ready, with room for so many workers.
pub(super) fn node(name: &str, namespace: &str, workers: u32) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": name, "labels": { NODES: namespace, "kubernetes.io/hostname": name } },
        "status": node_status(workers),
    })
}

/// The status that its kubelet would report.
pub(super) fn node_status(workers: u32) -> Value {
    let room = json!({ "cpu": workers.to_string(), "memory": "64Gi", "pods": "110" });
    json!({
        "capacity": room,
        "allocatable": room,
        "conditions": [{
            "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "played by a test",
            "lastHeartbeatTime": now(), "lastTransitionTime": now(),
        }],
    })
}

/// A node's sign of life.
pub(super) fn lease(node: &str) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": { "name": node },
        "spec": { "holderIdentity": node, "leaseDurationSeconds": 40, "renewTime": now() },
    })
}

/// The wall clock as Kubernetes writes it.
pub(super) fn now() -> String {
    humantime::format_rfc3339_micros(std::time::SystemTime::now()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_role_is_that_of_the_chart_and_names_the_one_state_record() {
        let role = role().unwrap();
        let rules = role["rules"].as_array().unwrap();
        let of = |resource: &str| rules.iter().find(|rule| rule["resources"] == json!([resource])).unwrap();
        assert_eq!(of("configmaps")["resourceNames"], json!([STATE]));
        assert_eq!(of("cronjobs")["verbs"], json!(["get"]));
    }
}
