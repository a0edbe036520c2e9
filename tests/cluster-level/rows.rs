//! Workers that do not get ready, for reasons that only a kubelet and a container runtime give: what is told of
//! each, and what follows. All at once, a pool each, on node 0.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{batch::v1::CronJob, core::v1::Pod};
use kube::{
    Api,
    api::{ListParams, Patch, PatchParams},
};
use mayfly_tests::{eventually, until};
use serde_json::{Value, json};

use crate::site::{self, Site};

/// The last one is given up after its deadline, and its pod has a grace.
const SOON: Duration = Duration::from_mins(2);

/// One of facts' rows, as a pool whose worker cannot start.
struct Row {
    pool: &'static str,
    /// Laid over the pool's worker.
    worker: Value,
    /// Laid over the pool.
    limits: Value,
    /// What is said of the failure, all of it.
    told: &'static [&'static str],
    /// Whether its pod is removed by the scaler, or has ended by itself.
    removed: bool,
}

#[test]
fn workers_that_do_not_get_ready_are_told_by_their_cause_and_given_up() {
    site::run("rows", async |site| {
        let rows = rows(site);
        let pools: Vec<_> = rows.iter().map(|row| pool(site, row.pool, &row.limits, &row.worker)).collect();
        let huge = json!({ "resources": { "requests": { "cpu": "1000" } } });
        let refused = pool(site, "row27", &json!({ "launch_interval": "20s" }), &huge);
        let mut values = site.values(&json!({}), &json!({}));
        values["scaler"] = json!({ "nodeSelector": { "kubernetes.io/hostname": "node-0" } });
        values["pools"] = pools.into_iter().chain([refused]).collect();
        site.install("install", &values).await?;
        // The chart has no value for what only a scheduler should decide.
        let node = json!({ "nodeName": "node-0" });
        let past_the_scheduler =
            json!({ "spec": { "jobTemplate": { "spec": { "template": { "spec": node } } } } });
        let templates = Api::<CronJob>::namespaced(site.client.clone(), &site.namespace);
        let template = format!("{}-row27", site.namespace);
        let patch = Patch::Merge(&past_the_scheduler);
        templates.patch(&template, &PatchParams::default(), &patch).await.context("change a template")?;

        let (broker, _forward) = site.broker().await?;
        for name in rows.iter().map(|row| row.pool).chain(["row27"]) {
            broker.publish(&queue(site, name), 1).await?;
        }
        is_told_while_it_lasts(site).await?;
        for row in &rows {
            is_given_up(site, row).await.with_context(|| row.pool.to_owned())?;
        }
        costs_nothing(site).await?;
        broker.close().await
    });
}

fn queue(site: &Site, pool: &str) -> String {
    format!("{}.{pool}", site.namespace)
}

fn pool(site: &Site, name: &str, limits: &Value, worker: &Value) -> Value {
    let mut pool = json!({
        "name": name,
        "queue": queue(site, name),
        "declare": true,
        "max_workers": 1,
        "launch_interval": "1s",
        // One failure each is enough.
        "cooldown_base": "5m",
        "worker": {
            "handler": { "sleep": "1s" },
            "resources": { "requests": { "cpu": "1m" } },
            "nodeSelector": { "kubernetes.io/hostname": "node-0" },
            "terminationGracePeriodSeconds": 20,
        },
    });
    for (key, value) in limits.as_object().into_iter().flatten() {
        pool[key] = value.clone();
    }
    for (key, value) in worker.as_object().into_iter().flatten() {
        pool["worker"][key] = value.clone();
    }
    pool
}

fn rows(site: &Site) -> Vec<Row> {
    let ours = site.image("mayfly-worker");
    let deadline = |name: &str| json!({ "deadlines": { (name): "5s" } });
    let none = json!({});
    let endless = json!({
        "name": "fetch", "image": site::BROKER_IMAGE, "command": ["sleep", "3600"],
        "securityContext": { "runAsUser": 65532 },
    });
    let secret = json!({ "secretKeyRef": { "name": "missing", "key": "x" } });
    let profile = json!({ "type": "Localhost", "localhostProfile": "missing.json" });
    vec![
        Row {
            pool: "row17",
            worker: json!({
                "volumes": [{ "name": "x", "secret": { "secretName": "missing" } }],
                "volumeMounts": [{ "name": "x", "mountPath": "/x" }],
            }),
            limits: deadline("volumes"),
            told: &["volumes not mounted", "secret \"missing\" not found"],
            removed: true,
        },
        Row {
            pool: "row19",
            worker: json!({ "initContainers": [endless] }),
            limits: deadline("initializing"),
            told: &["init containers not done", "container fetch"],
            removed: true,
        },
        Row {
            // Its init container, which brings the worker, has run by then.
            pool: "row20",
            worker: json!({ "image": "registry.invalid/worker:1", "imagePullPolicy": "IfNotPresent" }),
            limits: deadline("image_pull"),
            told: &["image cannot be pulled", "registry.invalid/worker:1"],
            removed: true,
        },
        Row {
            pool: "row21-name",
            worker: json!({ "image": "Worker:X" }),
            limits: none.clone(),
            told: &["image refused", "InvalidImageName", "Worker:X"],
            removed: true,
        },
        Row {
            pool: "row21-never",
            worker: json!({ "image": "mayfly-worker:missing", "imagePullPolicy": "Never" }),
            limits: none.clone(),
            told: &["image refused", "ErrImageNeverPull", "mayfly-worker:missing"],
            removed: true,
        },
        Row {
            pool: "row21-secret",
            worker: json!({ "env": [{ "name": "X", "valueFrom": secret }] }),
            limits: deadline("configuration"),
            told: &["container cannot be configured", "secret \"missing\" not found"],
            removed: true,
        },
        Row {
            pool: "row22",
            worker: json!({ "securityContext": { "seccompProfile": profile } }),
            limits: deadline("runtime"),
            told: &["container runtime fails", "CreateContainerError"],
            removed: true,
        },
        Row {
            pool: "row23",
            worker: json!({ "image": ours, "program": "/missing" }),
            limits: none.clone(),
            told: &["StartError", "no such file or directory"],
            removed: false,
        },
        Row {
            pool: "row25",
            worker: json!({ "args": ["--bogus"] }),
            limits: none.clone(),
            told: &["exit code 64", "--bogus"],
            removed: false,
        },
        Row {
            pool: "row26",
            worker: json!({ "start_deadline": "10s", "args": ["--broker-url-file=/tmp/url"], "initContainers": [{
                "name": "url", "image": site::BROKER_IMAGE,
                "command": ["sh", "-c", "printf amqp://guest:guest@127.0.0.1:1/ > /tmp/url"],
                "securityContext": { "runAsUser": 65532 },
                "volumeMounts": [{ "name": "mayfly-tmp", "mountPath": "/tmp" }],
            }] }),
            limits: none,
            told: &["exit code 69"],
            removed: false,
        },
    ]
}

/// Row 26: a worker that cannot reach its broker ends itself; until then that is told.
async fn is_told_while_it_lasts(site: &Site) -> Result<()> {
    eventually("a worker that runs and is not ready is told of", SOON, async || {
        let status = site.status_of("row26").await?;
        Ok(status["text"].as_str().filter(|text| text.contains("1 of at most 1")).and_then(|_| {
            let text = status["workers"].to_string();
            text.contains("not_ready").then_some(())
        }))
    })
    .await
}

async fn is_given_up(site: &Site, row: &Row) -> Result<()> {
    let failure = eventually("it is given up", SOON, async || {
        let status = site.status_of(row.pool).await?;
        let failure = status["last_failure"].clone();
        ensure!(!failure.is_null(), "no failure: {}; {}", status["text"], status["workers"]);
        Ok(Some(failure))
    })
    .await?;
    let text = failure.to_string().replace("\\\"", "\"");
    site.tell(&format!("{}: {}", row.pool, failure["why"]));
    for words in row.told {
        ensure!(text.contains(words), "{words:?} is not in {text}");
    }
    let status = site.status_of(row.pool).await?;
    ensure!(status["reason"] == "CoolingDown", "{}: {}", status["reason"], status["text"]);
    ensure!(status["failures"] == 1 && status["next_serial"] == 2, "{status}");
    let pods = Api::<Pod>::namespaced(site.client.clone(), &site.namespace);
    let its = ListParams::default().labels(&format!("mayfly/pool={}", row.pool));
    if row.removed {
        let removed = async || Ok(pods.list(&its).await?.items.is_empty());
        until("its pod is gone", SOON, removed).await?;
    } else {
        ensure!(pods.list(&its).await?.items.len() == 1, "a pod that has run was removed");
    }
    Ok(())
}

/// Row 27: a kubelet that has no room for what somebody placed on it refuses that; nobody's failure.
async fn costs_nothing(site: &Site) -> Result<()> {
    eventually("the kubelet refuses one", SOON, async || {
        let status = site.status_of("row27").await?;
        let workers = status["workers"].to_string();
        ensure!(status["failures"] == 0, "{}", status["last_failure"]);
        Ok(workers.contains("OutOfcpu").then_some(()))
    })
    .await
}
