//! What the scheduler and the node controller do to workers, for real: preemption, eviction, a node that nobody
//! hears of.

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::EvictParams;
use mayfly_tests::{
    control_plane::{Script, Space},
    each_in_a_space, until,
};
use serde_json::{Value, json};

use crate::{SOON, alive, ends, ready, tells, waiting};

each_in_a_space!(
    a_worker_that_others_are_evicted_for_is_waited_for_and_one_that_is_evicted_for_others_is_no_failure,
    a_worker_that_is_evicted_is_no_failure,
    a_worker_on_a_lost_node_keeps_its_place_and_serves_again_when_its_node_comes_back,
);

/// A pod that takes the room of one worker, played as the Job of its name is.
async fn other(space: &Space<'_>, name: &str, priority: Option<&str>) -> Result<Pod> {
    let pod = json!({
        "metadata": { "name": name, "labels": { "job-name": name } },
        "spec": {
            "priorityClassName": priority,
            "nodeSelector": { "mayfly.test/space": space.namespace },
            "terminationGracePeriodSeconds": 600,
            "containers": [{
                "name": "other", "image": "other:test", "resources": { "requests": { "cpu": "1" } },
            }],
        },
    });
    space.create::<Pod>(pod).await
}

/// How the worker of this Job ended, as the status page says.
fn end_of(status: &Value, job: &str) -> Result<Value> {
    let mut workers = status["workers"].as_array().into_iter().flatten();
    let worker = workers.find(|worker| worker["name"] == job).context("the worker is not told of")?;
    Ok(worker["phase"]["finished"].clone())
}

/// Rows 16 and 28.
async fn a_worker_that_others_are_evicted_for_is_waited_for_and_one_that_is_evicted_for_others_is_no_failure(
    space: &Space<'_>,
) -> Result<()> {
    let client = waiting(space, 10).await?;
    let node = space.kubelet.node("a", 1).await?;
    space.kubelet.job("low", Script::Lingers);
    other(space, "low", None).await?;
    space.kubelet.sees("low", "works", SOON).await?;
    let higher = space.priority(2000).await?;
    let ours = json!({ "priorityClassName": space.priority(1000).await? });
    space
        .patch_template(&json!({ "spec": { "jobTemplate": { "spec": { "template": { "spec": ours } } } } }))
        .await?;
    space.configure(&json!({ "launch_interval": "500ms", "max_workers": 1 }))?;
    let mut scaler = space.scaler("scaler", &[])?;
    tells(space, &scaler, "AtMaximum", "1 of at most 1").await?;
    until("it is told that another one leaves", SOON, async || {
        let workers = scaler.status().await?["workers"].to_string();
        Ok(workers.contains("preempting") && workers.contains(&format!("on node {node}")))
    })
    .await?;
    space.kubelet.job("low", Script::Works);
    let first = space.jobs_when("it is ready", SOON, |jobs| ready(jobs) == 1).await?.remove(0);

    // Now it is in the way itself, and ends as it is asked to.
    space.kubelet.job(&first.name, Script::Lingers);
    other(space, "high", Some(&higher)).await?;
    until("it is ending", SOON, async || Ok(scaler.status().await?["counts"]["draining"] == 1)).await?;
    space.kubelet.job(&first.name, Script::Works);
    space.kubelet.sees("high", "works", SOON).await?;
    space.jobs_when("another one waits for room", SOON, |jobs| jobs.len() == 2 && alive(jobs) == 1).await?;
    let ended = end_of(&scaler.status().await?, &first.name)?;
    ensure!(ended["disrupted"] == true, "{ended}");
    ensure!(ended["detail"].to_string().contains("PreemptionByScheduler"), "{ended}");
    ensure!(space.state().await?["failures"]["count"] == 0, "{}", space.state().await?);
    ends(&mut scaler.process).await?;
    client.close().await
}

/// Row 28.
async fn a_worker_that_is_evicted_is_no_failure(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 10).await?;
    space.kubelet.node("a", 3).await?;
    space.configure(&json!({ "launch_interval": "500ms", "max_workers": 1 }))?;
    let mut scaler = space.scaler("scaler", &[])?;
    let first = space.jobs_when("it is ready", SOON, |jobs| ready(jobs) == 1).await?.remove(0);
    let pod = space.pods().await?.pop().and_then(|pod| pod.metadata.name).context("it has no pod")?;
    space.api::<Pod>().evict(&pod, &EvictParams::default()).await?;
    space.jobs_when("another one is ready", SOON, |jobs| jobs.len() == 2 && ready(jobs) == 1).await?;
    let ended = end_of(&scaler.status().await?, &first.name)?;
    ensure!(ended["detail"].to_string().contains("EvictionByEvictionAPI"), "{ended}");
    ensure!(space.state().await?["failures"]["count"] == 0, "{}", space.state().await?);
    ends(&mut scaler.process).await?;
    client.close().await
}

/// Row 29.
async fn a_worker_on_a_lost_node_keeps_its_place_and_serves_again_when_its_node_comes_back(
    space: &Space<'_>,
) -> Result<()> {
    let client = waiting(space, 10).await?;
    let node = space.kubelet.node("a", 1).await?;
    space.kubelet.node("b", 1).await?;
    space.configure(&json!({ "launch_interval": "500ms", "max_workers": 2 }))?;
    let mut scaler = space.scaler("scaler", &[])?;
    space.jobs_when("two are ready", SOON, |jobs| ready(jobs) == 2).await?;
    space.kubelet.lose(&node);
    let counts = |lost: u32| json!({ "pending": 0, "ready": 2 - lost, "draining": 0, "lost": lost });
    until("one is lost", SOON, async || Ok(scaler.status().await?["counts"] == counts(1))).await?;
    // Nobody knows whether it still works: another one would be one too many.
    tells(space, &scaler, "AtMaximum", "2 of at most 2").await?;
    ensure!(space.jobs().await?.len() == 2, "launched beside a worker that may live");
    space.kubelet.heal(&node, 1).await?;
    until("it is back", SOON, async || Ok(scaler.status().await?["counts"] == counts(0))).await?;
    let jobs = space.jobs().await?;
    ensure!(jobs.len() == 2 && alive(&jobs) == 2, "{jobs:?}");
    ensure!(space.state().await?["failures"]["count"] == 0, "{}", space.state().await?);
    ends(&mut scaler.process).await?;
    client.close().await
}
