//! Why a worker does not get ready, or ends: what waits, what holds, what is a failure.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::ResourceQuota;
use mayfly_tests::{
    control_plane::{Script, Space},
    each_in_a_space, until,
};
use serde_json::{Value, json};

use crate::{SOON, each_once, ends, idle, in_order, is_over, ready, tells, waiting};

/// How long a full cluster is watched.
const A_WHILE: Duration = Duration::from_secs(15);
/// After a refusal for want of room, the next try is this much later.
const RETRY: Duration = Duration::from_secs(5);
/// An image that a registry refuses is a failure after this time, here.
const REGISTRY_PATIENCE: &str = "30s";

each_in_a_space!(
    a_full_quota_of_jobs_holds_and_a_higher_one_resumes,
    a_full_quota_of_pods_holds_and_a_higher_one_resumes,
    an_image_that_can_never_be_used_is_a_failure_that_names_it,
    an_image_that_the_registry_refuses_is_told_and_given_up_in_the_end,
    a_crash_at_start_is_a_failure_that_names_it,
    a_disruption_is_no_failure,
    node_groups_that_cannot_grow_are_known_from_the_autoscalers_status,
);

/// As the cluster autoscaler writes it.
const STATUS: &str = "\
time: 2026-11-23 12:00:00.000000000 +0000 UTC
autoscalerStatus: Running
clusterWide:
  scaleUp:
    status: Backoff
nodeGroups:
- name: spot
  health:
    status: Healthy
    cloudProviderTarget: 1
    minSize: 0
    maxSize: 20
  scaleUp:
    status: Backoff
    backoffInfo:
      errorCode: RESOURCE_POOL_EXHAUSTED
      errorMessage: the zone has no more of these
  scaleDown:
    status: NoCandidates
";

async fn quota(space: &Space<'_>, resource: &str, hard: u32) -> Result<()> {
    let quota =
        json!({ "metadata": { "name": "quota" }, "spec": { "hard": { (resource): hard.to_string() } } });
    space.create::<ResourceQuota>(quota).await?;
    until("the quota counts", SOON, async || {
        let quota = space.api::<ResourceQuota>().get("quota").await?;
        Ok(quota.status.and_then(|status| status.used).is_some_and(|used| used.contains_key(resource)))
    })
    .await
}

async fn raise(space: &Space<'_>, resource: &str, hard: u32) -> Result<()> {
    let changes = json!({ "spec": { "hard": { (resource): hard.to_string() } } });
    space.patch::<ResourceQuota>("quota", &changes).await.map(drop)
}

async fn a_full_quota_of_jobs_holds_and_a_higher_one_resumes(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 10).await?;
    space.kubelet.node("a", 10).await?;
    quota(space, "count/jobs.batch", 1).await?;
    space.configure(&json!({ "launch_interval": "500ms", "max_workers": 2 }))?;
    let mut scaler = space.scaler("scaler", &[])?;
    space.jobs_when("one worker is ready", SOON, |jobs| ready(jobs) == 1).await?;
    let status = scaler.decides("AtCapacity", SOON).await?;
    ensure!(
        status["text"].as_str().is_some_and(|text| text.contains("exceeded quota")),
        "{}",
        status["text"]
    );
    let refused =
        || space.proxy.matching(|request| request.is("create", "jobs") && !request.succeeded()).len();
    let before = refused();
    tokio::time::sleep(A_WHILE).await;
    let tries = refused() - before;
    let allowed = A_WHILE.as_secs().div_ceil(RETRY.as_secs());
    ensure!(tries as u64 <= allowed, "{tries} tries in {A_WHILE:?}");
    ensure!(tries > 0, "no try in {A_WHILE:?}: how would it learn of room?");
    ensure!(!crate::events::told(space).await?.contains_key("Resumed"), "a try for room was told as room");
    ensure!(space.jobs().await?.len() == 1);
    ensure!(space.state().await?["failures"]["count"] == 0, "want of room is no failure");
    raise(space, "count/jobs.batch", 5).await?;
    space.jobs_when("two workers are ready", SOON, |jobs| ready(jobs) == 2).await?;
    scaler.decides("AtMaximum", SOON).await?;
    each_once(space, &space.jobs().await?)?;
    ends(&mut scaler.process).await?;
    client.close().await
}

async fn a_full_quota_of_pods_holds_and_a_higher_one_resumes(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 10).await?;
    space.kubelet.node("a", 10).await?;
    quota(space, "pods", 1).await?;
    space.configure(&json!({ "launch_interval": "500ms", "max_workers": 3 }))?;
    let mut scaler = space.scaler("scaler", &[])?;
    space.jobs_when("one worker is ready", SOON, |jobs| ready(jobs) == 1).await?;
    let status = scaler.decides("AtCapacity", SOON).await?;
    ensure!(
        status["text"].as_str().is_some_and(|text| text.contains("exceeded quota")),
        "{}",
        status["text"]
    );
    let end = tokio::time::Instant::now() + A_WHILE;
    while tokio::time::Instant::now() < end {
        // The second one stays, as the probe for room; there is no third.
        let jobs = space.jobs().await?;
        ensure!(jobs.len() == 2 && jobs.iter().all(|job| job.ended.is_none()), "{jobs:?}");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    ensure!(space.state().await?["failures"]["count"] == 0, "want of room is no failure");
    raise(space, "pods", 5).await?;
    // The Job controller tries again by itself, up to a minute later.
    space.jobs_when("three workers are ready", 2 * SOON, |jobs| ready(jobs) == 3).await?;
    scaler.decides("AtMaximum", SOON).await?;
    in_order(&space.jobs().await?, Duration::from_millis(500))?;
    ends(&mut scaler.process).await?;
    client.close().await
}

async fn an_image_that_can_never_be_used_is_a_failure_that_names_it(space: &Space<'_>) -> Result<()> {
    let message = "Failed to apply default image tag \"Worker:X\": couldn't parse image name".to_owned();
    space.kubelet.all(Script::Stuck { reason: "InvalidImageName", message });
    failure(space, &["image refused", "InvalidImageName"], true).await?;
    // It never started, so its pod may go; the Job stays.
    let removals = space.proxy.matching(|request| request.is("delete", "pods") && request.succeeded());
    ensure!(!removals.is_empty(), "its pod was not removed");
    ensure!(space.proxy.matching(|request| request.is("delete", "jobs")).is_empty(), "a Job was deleted");
    Ok(())
}

async fn an_image_that_the_registry_refuses_is_told_and_given_up_in_the_end(space: &Space<'_>) -> Result<()> {
    let message = "Back-off pulling image \"mayfly-worker:test\": not found".to_owned();
    space.kubelet.all(Script::Stuck { reason: "ImagePullBackOff", message });
    let client = waiting(space, 10).await?;
    space.kubelet.node("a", 10).await?;
    let deadlines = json!({ "image_pull": REGISTRY_PATIENCE });
    space.configure(&json!({ "launch_interval": "500ms", "max_workers": 3, "deadlines": deadlines }))?;
    let mut scaler = space.scaler("scaler", &[])?;
    tells(space, &scaler, "WaitingForPending", "image cannot be pulled").await?;
    tells(space, &scaler, "WaitingForPending", "not found").await?;
    // A registry may come back: minutes are given to it.
    let end = tokio::time::Instant::now() + A_WHILE;
    while tokio::time::Instant::now() < end {
        ensure!(space.jobs().await?.len() == 1);
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    ensure!(space.state().await?["failures"]["count"] == 0, "{}", space.state().await?);
    until("it is given up", SOON, async || Ok(space.state().await?["failures"]["count"] == 1)).await?;
    scaler.decides("CoolingDown", SOON).await?;
    ends(&mut scaler.process).await?;
    client.close().await
}

async fn a_crash_at_start_is_a_failure_that_names_it(space: &Space<'_>) -> Result<()> {
    space.kubelet.all(Script::Ends { code: 3, report: None });
    failure(space, &["exit code 3"], false).await
}

/// The first worker fails, the pool cools down, tells why, and tries again; the second one fails as well, and
/// it cools down for longer; the third one works, and all is forgiven.
async fn failure(space: &Space<'_>, words: &[&str], removed: bool) -> Result<()> {
    let client = waiting(space, 10).await?;
    space.kubelet.node("a", 10).await?;
    let changes = json!({ "launch_interval": "500ms", "max_workers": 1, "cooldown_base": "3s" });
    space.configure(&changes)?;
    let mut scaler = space.scaler("scaler", &[])?;
    // Whoever of the two sees a failure first counts it, and nobody counts it again.
    let mut other = space.scaler("other", &[])?;
    for count in 1..=2 {
        until(
            "the failure is counted",
            SOON,
            async || Ok(space.state().await?["failures"]["count"] == count),
        )
        .await?;
        let status = scaler.decides("CoolingDown", SOON).await?;
        ensure!(status["failures"] == count, "{status}");
        other.decides("CoolingDown", SOON).await?;
        // It decides before it has written and told what it judged.
        let failures = || {
            let logs = [scaler.process.log_objects()?, other.process.log_objects()?].concat();
            Ok::<_, anyhow::Error>(told(&logs, "worker failed"))
        };
        until("the failure is told", SOON, async || Ok(failures()?.len() == count)).await?;
        let last = scaler.status().await?["last_failure"].clone();
        for word in words {
            ensure!(last["why"].to_string().contains(word), "{word:?} is not in {last}");
            ensure!(
                failures()?.iter().all(|line| line.contains(word)),
                "{word:?} is not in {:?}",
                failures()?
            );
        }
        ensure!(space.jobs().await?.len() == count, "launched while cooling down");
    }
    if removed {
        until("no pod is left", SOON, async || Ok(space.pods().await?.iter().all(is_over))).await?;
    }
    space.kubelet.all(Script::Works);
    let jobs = space.jobs_when("the third one works", SOON, |jobs| ready(jobs) == 1).await?;
    ensure!(jobs.len() == 3, "{jobs:?}");
    // 3 s, then 6 s, each with some jitter on top.
    in_order(&jobs[..2], Duration::from_secs(3))?;
    ensure!(jobs[2].stamp - jobs[1].stamp >= 6000, "{jobs:?}");
    space.kubelet.job(&jobs[2].name, idle(1));
    until("all is forgiven", SOON, async || Ok(space.state().await?["failures"]["count"] == 0)).await?;
    ends(&mut other.process).await?;
    ends(&mut scaler.process).await?;
    client.close().await
}

async fn a_disruption_is_no_failure(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 10).await?;
    space.kubelet.node("a", 10).await?;
    space.configure(&json!({ "launch_interval": "500ms", "max_workers": 1 }))?;
    let mut scaler = space.scaler("scaler", &[])?;
    let jobs = space.jobs_when("a worker is ready", SOON, |jobs| ready(jobs) == 1).await?;
    space.kubelet.job(&jobs[0].name, Script::Disrupted);
    let jobs =
        space.jobs_when("another one is ready", SOON, |jobs| jobs.len() == 2 && ready(jobs) == 1).await?;
    // Also before it was ever ready.
    space.kubelet.all(Script::Prepares);
    space.kubelet.job(&jobs[1].name, Script::Disrupted);
    let jobs = space.jobs_when("a third one is there", SOON, |jobs| jobs.len() == 3).await?;
    space.kubelet.sees(&jobs[2].name, "prepares", SOON).await?;
    space.kubelet.job(&jobs[2].name, Script::Disrupted);
    space.kubelet.all(Script::Works);
    space.jobs_when("a fourth one is ready", SOON, |jobs| jobs.len() == 4 && ready(jobs) == 1).await?;
    let state = space.state().await?;
    ensure!(state["failures"]["count"] == 0, "a disruption counts as a failure: {state}");
    ends(&mut scaler.process).await?;
    client.close().await
}

/// The log lines with this message.
fn told(log: &[Value], message: &str) -> Vec<String> {
    log.iter().filter(|line| line["message"] == message).map(Value::to_string).collect()
}

async fn node_groups_that_cannot_grow_are_known_from_the_autoscalers_status(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 10).await?;
    let (before, _) = STATUS.split_once("    status: Backoff\n    backoffInfo").context("no backoff")?;
    let full =
        before.replace("cloudProviderTarget: 1", "cloudProviderTarget: 20") + "    status: NoActivity\n";
    space.autoscaler_says(&full).await?;
    space.configure_on(&json!({ "autoscaler_status": true }), &json!({ "launch_interval": "500ms" }))?;
    let mut scaler = space.scaler("scaler", &[])?;
    tells(space, &scaler, "AtCapacity", "node group spot has 20 of at most 20 nodes").await?;
    space.autoscaler_says(STATUS).await?;
    tells(
        space,
        &scaler,
        "AtCapacity",
        "node group spot is in backoff: RESOURCE_POOL_EXHAUSTED: the zone has no",
    )
    .await?;
    space.kubelet.node("a", 10).await?;
    space.jobs_when("with room it goes on", SOON, |jobs| ready(jobs) > 1).await?;
    ends(&mut scaler.process).await?;
    client.close().await
}
