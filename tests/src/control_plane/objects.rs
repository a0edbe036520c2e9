//! What a user installs, as the chart would render it for one pool, in a namespace of a test's own.

use serde_json::{Value, json};

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

/// The documented Role: every verb that a scaler may use, and none beside.
pub(super) fn role() -> Value {
    let rule = |group: &str, resource: &str, verbs: &[&str]| json!({ "apiGroups": [group], "resources": [resource], "verbs": verbs });
    json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": { "name": SCALER },
        "rules": [
            rule("batch", "jobs", &["create", "get", "list", "watch", "delete"]),
            rule("batch", "cronjobs", &["get"]),
            rule("", "pods", &["get", "list", "watch", "delete"]),
            rule("", "events", &["list", "create", "patch"]),
            rule("events.k8s.io", "events", &["list", "create", "patch"]),
            {
                "apiGroups": [""], "resources": ["configmaps"], "resourceNames": [STATE],
                "verbs": ["get", "update"],
            },
        ],
    })
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
