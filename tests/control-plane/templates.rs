//! A pool's worker template: it may come late, go, and change; what it says reaches the pods.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::{
    batch::v1::{CronJob, Job},
    core::v1::Pod,
};
use kube::api::DeleteParams;
use mayfly_tests::{control_plane::Space, each_in_a_space, until};
use serde_json::{Value, json};

use crate::{SOON, alive, ends, events::is_told, ready, tells, waiting};

/// The pool's template.
const TEMPLATE: &str = "test-pool";
/// A missing template is looked for this often.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// How long a pool without a template is watched.
const A_WHILE: Duration = Duration::from_secs(12);

each_in_a_space!(
    a_template_that_comes_late_or_goes_is_waited_for_and_is_no_failure,
    a_changed_template_is_for_new_workers_and_the_others_end_by_themselves,
    all_that_a_template_says_reaches_the_pod,
);

/// Deletes the template; what would create it again.
async fn without_template(space: &Space<'_>) -> Result<Value> {
    let templates = space.api::<CronJob>();
    let template = serde_json::to_value(templates.get(TEMPLATE).await?)?;
    templates.delete(TEMPLATE, &DeleteParams::background()).await?;
    until("the template is gone", SOON, async || Ok(templates.get_opt(TEMPLATE).await?.is_none())).await?;
    let metadata = json!({ "name": TEMPLATE, "labels": template["metadata"]["labels"] });
    Ok(json!({ "metadata": metadata, "spec": template["spec"] }))
}

async fn a_template_that_comes_late_or_goes_is_waited_for_and_is_no_failure(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 10).await?;
    space.kubelet.node("a", 5).await?;
    let template = without_template(space).await?;
    let limited_to = |most: u32| json!({ "launch_interval": "500ms", "max_workers": most });
    space.configure(&limited_to(2))?;
    let mut scaler = space.scaler("scaler", &[])?;
    tells(space, &scaler, "TemplateMissing", "worker template test-pool does not exist").await?;
    let status = scaler.status().await?;
    ensure!(status["launches"].to_string().contains("when CronJob test-pool is there"), "{status}");
    let asked = || space.proxy.matching(|request| request.is("get", "cronjobs")).len();
    let before = asked();
    tokio::time::sleep(A_WHILE).await;
    let asked = asked() - before;
    ensure!(asked > 0, "nobody looks for it");
    ensure!(asked as u64 <= A_WHILE.as_secs().div_ceil(LOOK_AGAIN.as_secs()), "asked {asked} times");
    let state = space.state().await?;
    ensure!(state["failures"]["count"] == 0, "what may come yet is no failure: {state}");
    ensure!(state["next_serial"] == 2 && state["intents"] == json!([]), "it tries without end: {state}");
    ensure!(space.jobs().await?.is_empty());

    space.create::<CronJob>(template.clone()).await?;
    space.jobs_when("two are ready", SOON, |jobs| ready(jobs) == 2).await?;
    is_told(space, "Resumed", "the template is there").await?;

    without_template(space).await?;
    space.configure(&limited_to(3))?;
    tells(space, &scaler, "TemplateMissing", "test-pool").await?;
    let jobs = space.jobs().await?;
    ensure!(jobs.len() == 2 && ready(&jobs) == 2, "workers live on without it: {jobs:?}");
    space.create::<CronJob>(template).await?;
    space.jobs_when("a third one is ready", SOON, |jobs| ready(jobs) == 3).await?;
    let state = space.state().await?;
    ensure!(state["failures"]["count"] == 0 && state["cooldown_until"].is_null(), "{state}");
    ends(&mut scaler.process).await?;
    client.close().await
}

async fn a_changed_template_is_for_new_workers_and_the_others_end_by_themselves(
    space: &Space<'_>,
) -> Result<()> {
    let client = waiting(space, 10).await?;
    space.kubelet.node("a", 5).await?;
    let limited_to = |most: u32| json!({ "launch_interval": "500ms", "max_workers": most });
    space.configure(&limited_to(1))?;
    let mut scaler = space.scaler("scaler", &[])?;
    space.jobs_when("one is ready", SOON, |jobs| ready(jobs) == 1).await?;
    let changed = json!({ "metadata": { "annotations": { "version": "new" } } });
    space.patch_template(&json!({ "spec": { "jobTemplate": { "spec": { "template": changed } } } })).await?;
    space.configure(&limited_to(2))?;
    let jobs = space.jobs_when("two are ready", SOON, |jobs| ready(jobs) == 2).await?;
    until("generations are told", SOON, async || {
        let status = scaler.status().await?;
        let workers = status["workers"].as_array().context("no workers")?;
        Ok(workers.iter().map(|worker| &worker["generation"]).eq([1, 2].iter()))
    })
    .await?;
    let version = |index: usize| {
        let spec = jobs[index].job.spec.as_ref();
        let metadata = spec.and_then(|spec| spec.template.metadata.as_ref());
        metadata.and_then(|metadata| metadata.annotations.as_ref()?.get("version").cloned())
    };
    ensure!((version(0), version(1).as_deref()) == (None, Some("new")), "{jobs:?}");
    ensure!(alive(&jobs) == 2);
    let deleted = space.proxy.matching(|request| request.verb == "delete");
    ensure!(deleted.is_empty(), "{deleted:?}");
    ends(&mut scaler.process).await?;
    client.close().await
}

async fn all_that_a_template_says_reaches_the_pod(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 1).await?;
    space.kubelet.node("a", 5).await?;
    let pod = json!({
        "priorityClassName": space.priority(77).await?,
        "nodeSelector": { "kubernetes.io/hostname": format!("{}-a", space.namespace) },
        "tolerations": [{ "key": "burst", "operator": "Exists", "effect": "NoSchedule" }],
        "topologySpreadConstraints": [{
            "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": { "matchLabels": { "mayfly/pool": "pool" } },
        }],
        "initContainers": [{ "name": "server", "image": "server:test", "restartPolicy": "Always" }],
    });
    let queue = json!({ "kueue.x-k8s.io/queue-name": "burst" });
    let job = json!({
        "metadata": { "labels": queue },
        "spec": { "suspend": true, "template": { "metadata": { "labels": queue }, "spec": pod } },
    });
    space.patch_template(&json!({ "spec": { "jobTemplate": job } })).await?;
    space.configure(&json!({ "launch_interval": "500ms", "max_workers": 2 }))?;
    let mut scaler = space.scaler("scaler", &[])?;
    // Kueue lets it in when its queue has room.
    tells(space, &scaler, "AtCapacity", "job suspended").await?;
    let made = space.jobs().await?.pop().context("there is no job")?;
    let labels = made.job.metadata.labels.as_ref().context("a job without labels")?;
    ensure!(labels.get("kueue.x-k8s.io/queue-name").is_some_and(|queue| queue == "burst"), "{labels:?}");
    space.patch::<Job>(&made.name, &json!({ "spec": { "suspend": false } })).await?;
    space.jobs_when("it is ready", SOON, |jobs| ready(jobs) == 1).await?;
    let made = serde_json::to_value::<Pod>(space.pods().await?.pop().context("there is no pod")?)?;
    ensure!(made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "burst", "{made}");
    let spec = &made["spec"];
    ensure!(spec["priority"] == 77, "{spec}");
    ensure!(spec["nodeSelector"]["mayfly.test/space"] == space.namespace, "{spec}");
    ensure!(spec["nodeSelector"]["kubernetes.io/hostname"] == pod["nodeSelector"]["kubernetes.io/hostname"]);
    let tolerations = spec["tolerations"].as_array().context("no tolerations")?;
    ensure!(tolerations.contains(&pod["tolerations"][0]), "{spec}");
    ensure!(spec["topologySpreadConstraints"] == pod["topologySpreadConstraints"], "{spec}");
    let sidecar = &spec["initContainers"][0];
    ensure!(sidecar["restartPolicy"] == "Always" && sidecar["name"] == "server", "{spec}");
    ensure!(space.state().await?["failures"]["count"] == 0, "a suspended job is no failure");
    ends(&mut scaler.process).await?;
    client.close().await
}
