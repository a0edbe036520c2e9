//! Rows of facts that only a cloud or a kubelet shows, played with their exact words: what is told, what follows.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Patch, PatchParams};
use mayfly_tests::{
    control_plane::{Script, Space},
    each_in_a_space,
    fleet::Scaler,
    until,
};
use serde_json::json;

use crate::{SOON, ends, ready, say, tells, waiting};

each_in_a_space!(
    what_autoscalers_say_is_told_and_followed,
    a_worker_that_fits_no_node_is_given_up,
    a_worker_that_is_too_large_for_karpenter_is_given_up_although_nodes_that_are_there_are_full,
    a_scheduler_that_fails_is_waited_for_and_then_the_worker_is_given_up,
    a_template_that_cannot_be_used_is_a_failure_that_says_why,
    a_scheduling_gate_is_waited_for_until_it_is_lifted,
    a_volume_that_cannot_be_mounted_is_told_and_given_up,
    an_image_that_is_being_pulled_is_told,
    a_sidecar_that_crashes_before_the_worker_starts_is_a_failure,
    a_container_runtime_that_fails_is_given_up,
    a_pod_that_the_cluster_refuses_is_a_failure,
    a_node_that_refuses_a_worker_costs_nothing,
);

/// A scaler whose first worker's pod has come.
async fn with_a_pod(space: &Space<'_>, changes: serde_json::Value) -> Result<(Scaler, Pod)> {
    let mut pool = json!({ "launch_interval": "500ms", "max_workers": 3 });
    for (key, value) in changes.as_object().into_iter().flatten() {
        pool[key] = value.clone();
    }
    space.configure(&pool)?;
    let scaler = space.scaler("scaler", &[])?;
    until("a pod is there", SOON, async || Ok(!space.pods().await?.is_empty())).await?;
    let pod = space.pods().await?.pop().context("it is gone again")?;
    Ok((scaler, pod))
}

/// A failure is counted, told with these words, and the pool cools down.
async fn fails(space: &Space<'_>, scaler: &Scaler, words: &str) -> Result<()> {
    until("the failure is counted", SOON, async || Ok(space.state().await?["failures"]["count"] == 1))
        .await?;
    scaler.decides("CoolingDown", SOON).await?;
    until("the failure is told", SOON, async || {
        let lines = scaler.process.log_objects()?;
        Ok(lines
            .iter()
            .any(|line| line["message"] == "worker failed" && line["why"].to_string().contains(words)))
    })
    .await
}

/// Rows 8 to 10 and 12 to 14, each followed by one of another cause or of other words.
async fn what_autoscalers_say_is_told_and_followed(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 10).await?;
    let (mut scaler, pod) = with_a_pod(space, json!({})).await?;
    tells(space, &scaler, "WaitingForPending", "no room on any node").await?;
    let (autoscaler, karpenter) = ("cluster-autoscaler", "karpenter");
    let words = [
        (
            autoscaler,
            "NotTriggerScaleUp",
            "pod didn't trigger scale-up: 1 max node group size reached, 2 node(s) didn't match Pod's node \
             affinity/selector",
            "AtCapacity",
            "max node group size reached, 2 node(s)",
        ),
        (
            autoscaler,
            "TriggeredScaleUp",
            "pod triggered scale-up: [{workers 0->1 (max: 3)}]",
            "WaitingForPending",
            "node coming",
        ),
        (
            autoscaler,
            "NotTriggerScaleUp",
            "pod didn't trigger scale-up: 1 max total nodes in cluster reached",
            "AtCapacity",
            "the autoscaler is at its limit: pod didn't trigger scale-up: 1 max total nodes",
        ),
        (
            autoscaler,
            "NotTriggerScaleUp",
            "pod didn't trigger scale-up: 1 in backoff after failed scale-up",
            "AtCapacity",
            "the cloud has no node now",
        ),
        (
            autoscaler,
            "NotTriggerScaleUp",
            "pod didn't trigger scale-up: 1 exceeded quota: \"compute\", resources: cpu",
            "AtCapacity",
            "the autoscaler is at its limit: pod didn't trigger scale-up: 1 exceeded quota",
        ),
        (
            autoscaler,
            "NotTriggerScaleUp",
            "pod didn't trigger scale-up: 2 not ready for scale-up, 1 node(s) had untolerated taint",
            "AtCapacity",
            "the cloud has no node now: pod didn't trigger scale-up: 2 not ready for scale-up",
        ),
        (
            karpenter,
            "Nominated",
            "Pod should schedule on: nodeclaim/x, node/y",
            "WaitingForPending",
            "node coming",
        ),
        (
            "gke-cluster-autoscaler",
            "FailedScaleUp",
            "Node scale up in zones europe-west1-b associated with this pod failed: GCE out of resources. Pod is \
             at risk of not being scheduled.",
            "AtCapacity",
            "the cloud has no node now: Node scale up in zones europe-west1-b associated with this pod failed: GCE \
             out of resources",
        ),
        (
            karpenter,
            "FailedScheduling",
            "Failed to schedule pod, all available instance types exceed limits for nodepool: \"default\"",
            "AtCapacity",
            "the autoscaler is at its limit: Failed to schedule pod, all available",
        ),
        (
            "gke-cluster-autoscaler",
            "FailedScaleUp",
            "Node scale up in zones europe-west1-b associated with this pod failed: GCE quota exceeded. Pod is at \
             risk of not being scheduled.",
            "AtCapacity",
            "GCE quota exceeded",
        ),
        (
            karpenter,
            "FailedScheduling",
            "Failed to schedule pod, node limits have been exhausted for nodepool \"default\"",
            "AtCapacity",
            "the autoscaler is at its limit: Failed to schedule pod, node limits",
        ),
    ];
    for (number, (component, reason, message, decision, told)) in (1..).zip(words) {
        say(space, &pod, number, component, reason, message).await?;
        tells(space, &scaler, decision, told).await.with_context(|| message.to_owned())?;
        ensure!(space.jobs().await?.len() == 1, "launched although {message}");
    }
    ensure!(space.state().await?["failures"]["count"] == 0, "want of room is no failure");
    // The same worker finds room in the end, and the pool goes on by itself.
    space.kubelet.node("a", 3).await?;
    let jobs = space.jobs_when("three are ready", SOON, |jobs| ready(jobs) == 3).await?;
    ensure!(jobs.len() == 3, "{jobs:?}");
    ends(&mut scaler.process).await?;
    client.close().await
}

/// Row 11.
async fn a_worker_that_fits_no_node_is_given_up(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 10).await?;
    let (mut scaler, pod) = with_a_pod(space, json!({ "deadlines": { "misfit": "65s" } })).await?;
    let message = "pod didn't trigger scale-up: 2 node(s) didn't match Pod's node affinity/selector";
    say(space, &pod, 1, "cluster-autoscaler", "NotTriggerScaleUp", message).await?;
    tells(space, &scaler, "WaitingForPending", "fits no node").await?;
    fails(space, &scaler, "fits no node").await?;
    // Once it has cooled down, another one comes.
    until("its pod is gone", SOON, async || {
        Ok(space.pods().await?.iter().all(|other| other.metadata.uid != pod.metadata.uid))
    })
    .await?;
    ends(&mut scaler.process).await?;
    client.close().await
}

/// Row 14.
async fn a_worker_that_is_too_large_for_karpenter_is_given_up_although_nodes_that_are_there_are_full(
    space: &Space<'_>,
) -> Result<()> {
    let client = waiting(space, 10).await?;
    space.kubelet.node("full", 0).await?;
    let (mut scaler, pod) = with_a_pod(space, json!({ "deadlines": { "misfit": "65s" } })).await?;
    tells(space, &scaler, "WaitingForPending", "Insufficient cpu").await?;
    let message = "Failed to schedule pod, no instance type has enough resources, requirements=karpenter.sh/nodepool \
                   In [default], resources={\"cpu\":\"1\",\"pods\":\"1\"}";
    say(space, &pod, 1, "karpenter", "FailedScheduling", message).await?;
    tells(space, &scaler, "WaitingForPending", "fits no node: Failed to schedule pod, no instance type")
        .await?;
    fails(space, &scaler, "no instance type has enough resources").await?;
    ends(&mut scaler.process).await?;
    client.close().await
}

/// Row 15.
async fn a_scheduler_that_fails_is_waited_for_and_then_the_worker_is_given_up(
    space: &Space<'_>,
) -> Result<()> {
    let client = waiting(space, 10).await?;
    // Another one than that of the cluster, which would write its own word over ours.
    let ours = json!({ "schedulerName": "played" });
    space
        .patch_template(&json!({ "spec": { "jobTemplate": { "spec": { "template": { "spec": ours } } } } }))
        .await?;
    let (mut scaler, pod) = with_a_pod(space, json!({ "deadlines": { "scheduler_error": "10s" } })).await?;
    let name = pod.metadata.name.context("a pod without a name")?;
    let now = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
    let condition = json!({
        "type": "PodScheduled", "status": "False", "reason": "SchedulerError", "message": "binding rejected",
        "lastTransitionTime": now,
    });
    let status = Patch::Strategic(json!({ "status": { "conditions": [condition] } }));
    space.api::<Pod>().patch_status(&name, &PatchParams::default(), &status).await?;
    tells(space, &scaler, "WaitingForPending", "scheduler error: binding rejected").await?;
    fails(space, &scaler, "scheduler error: binding rejected").await?;
    ends(&mut scaler.process).await?;
    client.close().await
}

/// Row 2: Kubernetes would start its container again and again.
async fn a_template_that_cannot_be_used_is_a_failure_that_says_why(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 10).await?;
    space.kubelet.node("a", 3).await?;
    let restarts = |policy: &str| {
        let pod = json!({ "restartPolicy": policy });
        json!({ "spec": { "jobTemplate": { "spec": { "template": { "spec": pod } } } } })
    };
    space.patch_template(&restarts("OnFailure")).await?;
    space.configure(&json!({ "launch_interval": "500ms", "max_workers": 1, "cooldown_base": "3s" }))?;
    let mut scaler = space.scaler("scaler", &[])?;
    scaler.decides("CoolingDown", SOON).await?;
    until("it is told why", SOON, async || {
        let why = scaler.status().await?["last_failure"]["why"].to_string();
        Ok(why.contains("restartPolicy is OnFailure, but it must be Never"))
    })
    .await?;
    ensure!(space.jobs().await?.is_empty(), "{:?}", space.jobs().await?);
    space.patch_template(&restarts("Never")).await?;
    space.jobs_when("it goes on by itself", SOON, |jobs| ready(jobs) == 1).await?;
    ends(&mut scaler.process).await?;
    client.close().await
}

/// Row 15, for real.
async fn a_scheduling_gate_is_waited_for_until_it_is_lifted(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 1).await?;
    space.kubelet.node("a", 3).await?;
    let gates = json!({ "schedulingGates": [{ "name": "example.com/queued" }] });
    space
        .patch_template(&json!({ "spec": { "jobTemplate": { "spec": { "template": { "spec": gates } } } } }))
        .await?;
    let (mut scaler, pod) = with_a_pod(space, json!({})).await?;
    tells(space, &scaler, "WaitingForPending", "scheduling gated").await?;
    let name = pod.metadata.name.context("a pod without a name")?;
    space.patch::<Pod>(&name, &json!({ "spec": { "schedulingGates": null } })).await?;
    space.jobs_when("it is ready", SOON, |jobs| ready(jobs) == 1).await?;
    ends(&mut scaler.process).await?;
    client.close().await
}

/// Row 17.
async fn a_volume_that_cannot_be_mounted_is_told_and_given_up(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 10).await?;
    space.kubelet.node("a", 3).await?;
    space.kubelet.all(Script::Prepares);
    let (mut scaler, pod) = with_a_pod(space, json!({ "deadlines": { "volumes": "10s" } })).await?;
    let message = "MountVolume.SetUp failed for volume \"v\" : secret \"x\" not found";
    say(space, &pod, 1, "kubelet", "FailedMount", message).await?;
    tells(space, &scaler, "WaitingForPending", "volumes not mounted").await?;
    tells(space, &scaler, "WaitingForPending", "secret \"x\" not found").await?;
    fails(space, &scaler, "secret \\\"x\\\" not found").await?;
    ends(&mut scaler.process).await?;
    client.close().await
}

/// Row 18.
async fn an_image_that_is_being_pulled_is_told(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 1).await?;
    space.kubelet.node("a", 3).await?;
    space.kubelet.all(Script::Pulls);
    let (mut scaler, _) = with_a_pod(space, json!({})).await?;
    tells(space, &scaler, "WaitingForPending", "pulling its image").await?;
    space.kubelet.all(Script::Works);
    space.jobs_when("it is ready", SOON, |jobs| ready(jobs) == 1).await?;
    ends(&mut scaler.process).await?;
    client.close().await
}

/// Row 24.
async fn a_sidecar_that_crashes_before_the_worker_starts_is_a_failure(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 10).await?;
    space.kubelet.node("a", 3).await?;
    space.kubelet.all(Script::SidecarCrashes);
    let sidecar = json!({ "name": "proxy", "image": "proxy:test", "restartPolicy": "Always" });
    let pod = json!({ "initContainers": [sidecar] });
    space
        .patch_template(&json!({ "spec": { "jobTemplate": { "spec": { "template": { "spec": pod } } } } }))
        .await?;
    let (mut scaler, _) = with_a_pod(space, json!({})).await?;
    fails(space, &scaler, "back-off 10s restarting failed container=proxy").await?;
    until("its pod is gone", SOON, async || Ok(space.pods().await?.iter().all(crate::is_over))).await?;
    ends(&mut scaler.process).await?;
    client.close().await
}

/// Row 22.
async fn a_container_runtime_that_fails_is_given_up(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 10).await?;
    space.kubelet.node("a", 3).await?;
    let message = "context deadline exceeded".to_owned();
    space.kubelet.all(Script::Stuck { reason: "CreateContainerError", message });
    let (mut scaler, _) = with_a_pod(space, json!({ "deadlines": { "runtime": "5s" } })).await?;
    tells(space, &scaler, "WaitingForPending", "container runtime fails").await?;
    fails(space, &scaler, "CreateContainerError").await?;
    ends(&mut scaler.process).await?;
    client.close().await
}

/// Row 6, for real.
async fn a_pod_that_the_cluster_refuses_is_a_failure(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 10).await?;
    let account = json!({ "serviceAccountName": "missing" });
    space
        .patch_template(
            &json!({ "spec": { "jobTemplate": { "spec": { "template": { "spec": account } } } } }),
        )
        .await?;
    space.configure(&json!({ "launch_interval": "500ms", "max_workers": 3 }))?;
    let mut scaler = space.scaler("scaler", &[])?;
    fails(space, &scaler, "error looking up service account").await?;
    ensure!(space.jobs().await?.len() == 1, "launched while cooling down");
    ends(&mut scaler.process).await?;
    client.close().await
}

/// Row 27.
async fn a_node_that_refuses_a_worker_costs_nothing(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 1).await?;
    space.kubelet.node("a", 3).await?;
    space.kubelet.all(Script::Rejected);
    let mut scaler = {
        space.configure(&json!({ "launch_interval": "2s", "max_workers": 1 }))?;
        space.scaler("scaler", &[])?
    };
    let first =
        space.jobs_when("one is refused", SOON, |jobs| jobs.iter().any(|job| job.ended.is_some())).await?;
    space.kubelet.all(Script::Works);
    let jobs = space.jobs_when("another is ready", SOON, |jobs| ready(jobs) == 1).await?;
    ensure!(jobs.len() > first.len() || jobs.len() > 1, "{jobs:?}");
    let pause = Duration::from_millis(jobs[1].stamp.saturating_sub(jobs[0].stamp));
    ensure!(pause < Duration::from_secs(10), "it cooled down: {pause:?}");
    ensure!(space.state().await?["failures"]["count"] == 0, "{}", space.state().await?);
    ends(&mut scaler.process).await?;
    client.close().await
}
