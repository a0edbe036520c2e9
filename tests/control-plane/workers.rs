//! Which workers count, and what is done with those that are not needed.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::batch::v1::Job;
use kube::api::DeleteParams;
use mayfly_tests::{
    control_plane::{Act, Rule, Script, Space},
    each_in_a_space, until,
};
use serde_json::json;

use crate::{SOON, alive, each_once, end_all, ends, idle, in_order, ready, tells, waiting};

/// For what must not happen: several times as long as it would take.
const A_WHILE: Duration = Duration::from_secs(10);

each_in_a_space!(
    never_are_two_workers_pending_while_nodes_come_late,
    a_job_made_by_hand_counts_as_occupied,
    a_pod_whose_job_is_gone_counts_as_occupied,
    a_worker_whose_job_a_person_deletes_counts_until_its_pod_is_gone,
    a_worker_that_nothing_needs_any_more_is_taken_back_before_it_starts,
    a_worker_that_has_just_started_is_not_taken_back,
    a_busy_worker_is_left_alone_whatever_happens_to_the_queue,
    the_documented_role_is_enough_for_a_whole_life,
    without_a_probe_a_worker_is_ready_when_its_queue_has_a_consumer,
);

async fn never_are_two_workers_pending_while_nodes_come_late(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 10).await?;
    space.configure(&json!({ "launch_interval": "500ms", "max_workers": 3 }))?;
    let mut scaler = space.scaler("scaler", &[])?;
    for number in 1..=3 {
        let jobs = space.jobs_when("one more is launched", SOON, |jobs| jobs.len() == number).await?;
        // With the third one the limit is reached, ready or not.
        let reason = if number < 3 { "WaitingForPending" } else { "AtMaximum" };
        let status = scaler.decides(reason, SOON).await?;
        // So long the node takes to come.
        tokio::time::sleep(Duration::from_secs(3)).await;
        let now = space.jobs().await?;
        ensure!(now.len() == number, "{} workers, {number} nodes to come: {status}", now.len());
        ensure!(ready(&now) == number - 1, "{now:?}");
        space.kubelet.node(&format!("node-{number}"), 1).await?;
        space.kubelet.sees(&jobs[number - 1].name, "works", SOON).await?;
    }
    scaler.decides("AtMaximum", SOON).await?;
    let jobs = space.jobs().await?;
    in_order(&jobs, Duration::from_millis(500))?;
    each_once(space, &jobs)?;
    // To the millisecond: no launch before the one before it was ready.
    for (job, next) in jobs.iter().zip(&jobs[1..]) {
        let was_ready = space.kubelet.sees(&job.name, "works", SOON).await?;
        let created = space.proxy.matching(|request| request.is("create", "jobs"));
        let created = created.iter().find(|request| request.name.as_deref() == Some(&*next.name));
        let created = created.context("launched past the proxy")?.at;
        ensure!(created > was_ready, "{} was launched while {} was pending", next.name, job.name);
    }
    ends(&mut scaler.process).await?;
    client.close().await
}

async fn a_job_made_by_hand_counts_as_occupied(space: &Space<'_>) -> Result<()> {
    space.kubelet.node("a", 10).await?;
    space.create_by_hand("by-hand").await?;
    space.jobs_when("it is ready", SOON, |jobs| ready(jobs) == 1).await?;
    let client = waiting(space, 10).await?;
    space.configure(&json!({ "launch_interval": "500ms", "max_workers": 2 }))?;
    let mut scaler = space.scaler("scaler", &[])?;
    space.jobs_when("two are ready", SOON, |jobs| ready(jobs) == 2).await?;
    let status = scaler.decides("AtMaximum", SOON).await?;
    ensure!(status["text"].as_str().is_some_and(|text| text.contains("2 of at most 2")), "{status}");
    stays(space, 2, "one was made by hand").await?;
    // Its end makes room, and is nobody's failure.
    space.kubelet.job("by-hand", Script::Ends { code: 1, report: None });
    let jobs = space.jobs_when("three are there", SOON, |jobs| jobs.len() == 3 && ready(jobs) == 2).await?;
    ensure!(jobs.iter().filter(|job| job.serial.is_none()).count() == 1, "{jobs:?}");
    ends(&mut scaler.process).await?;
    client.close().await
}

async fn a_pod_whose_job_is_gone_counts_as_occupied(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 10).await?;
    space.kubelet.node("a", 10).await?;
    space.configure(&json!({ "launch_interval": "500ms", "max_workers": 1 }))?;
    let mut scaler = space.scaler("scaler", &[])?;
    let jobs = space.jobs_when("a worker is ready", SOON, |jobs| ready(jobs) == 1).await?;
    let orphan = DeleteParams {
        propagation_policy: Some(kube::api::PropagationPolicy::Orphan),
        ..DeleteParams::default()
    };
    space.api::<Job>().delete(&jobs[0].name, &orphan).await?;
    space.jobs_when("the Job is gone", SOON, <[_]>::is_empty).await?;
    ensure!(space.pods().await?.len() == 1, "its pod is gone as well");
    stays(space, 0, "the pod is still there").await?;
    let status = scaler.decides("AtMaximum", SOON).await?;
    ensure!(status["text"].as_str().is_some_and(|text| text.contains("1 of at most 1")), "{status}");
    // With its end there is room again.
    space.kubelet.job(&jobs[0].name, idle(1));
    let next = space.jobs_when("the next one is there", SOON, |jobs| jobs.len() == 1).await?;
    ensure!(next[0].serial == Some(2), "{next:?}");
    ends(&mut scaler.process).await?;
    client.close().await
}

async fn a_worker_whose_job_a_person_deletes_counts_until_its_pod_is_gone(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 10).await?;
    space.kubelet.node("a", 10).await?;
    space.configure(&json!({ "launch_interval": "500ms", "max_workers": 2 }))?;
    let mut scaler = space.scaler("scaler", &[])?;
    let jobs = space.jobs_when("two are ready", SOON, |jobs| ready(jobs) == 2).await?;
    // Nothing is launched, so that only routine looks tell of it.
    client.take_all(&space.bed.queue, 10, SOON).await?;
    scaler.decides("Empty", SOON).await?;
    space.kubelet.job(&jobs[0].name, Script::Lingers);
    space.api::<Job>().delete(&jobs[0].name, &DeleteParams::background()).await?;
    let counts = json!({ "pending": 0, "ready": 1, "draining": 1, "lost": 0 });
    until("it is ending", SOON, async || Ok(scaler.status().await?["counts"] == counts)).await?;
    ensure!(space.jobs().await?.len() == 1, "its Job is still there");
    client.publish(&space.bed.queue, 10).await?;
    tells(space, &scaler, "AtMaximum", "2 of at most 2").await?;
    stays(space, 1, "its pod is still there").await?;
    ensure!(scaler.status().await?["counts"] == counts, "{}", scaler.status().await?["counts"]);
    space.kubelet.job(&jobs[0].name, Script::Works);
    let jobs = space.jobs_when("another one takes its place", SOON, |jobs| ready(jobs) == 2).await?;
    ensure!(jobs.iter().filter_map(|job| job.serial).eq([2, 3]), "{jobs:?}");
    ends(&mut scaler.process).await?;
    client.close().await
}

async fn a_worker_that_nothing_needs_any_more_is_taken_back_before_it_starts(
    space: &Space<'_>,
) -> Result<()> {
    let client = waiting(space, 1).await?;
    space.configure(&json!({ "launch_interval": "500ms", "withdraw_after": "1s" }))?;
    let mut scaler = space.scaler("scaler", &[])?;
    until("its pod is there, without a node", SOON, async || Ok(space.pods().await?.len() == 1)).await?;
    client.take_all(&space.bed.queue, 1, SOON).await?;
    until("its pod is gone", SOON, async || Ok(space.pods().await?.is_empty())).await?;
    until("its end is counted", SOON, async || Ok(space.state().await?["judged"] == json!([1]))).await?;
    let state = space.state().await?;
    ensure!(state["failures"]["count"] == 0, "taken back is not a failure: {state}");
    // The Job stays, as a record.
    let jobs = space.jobs().await?;
    ensure!(jobs.len() == 1 && jobs[0].ended.as_deref() == Some("Failed"), "{jobs:?}");
    ensure!(space.proxy.matching(|request| request.is("delete", "jobs")).is_empty(), "a Job was deleted");
    scaler.decides("Empty", SOON).await?;
    client.publish(&space.bed.queue, 1).await?;
    space.kubelet.node("a", 1).await?;
    let jobs = space.jobs_when("the next one is ready", SOON, |jobs| ready(jobs) == 1).await?;
    ensure!(jobs.len() == 2, "{jobs:?}");
    ends(&mut scaler.process).await?;
    client.close().await
}

async fn a_worker_that_has_just_started_is_not_taken_back(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 1).await?;
    space.configure(&json!({ "launch_interval": "500ms", "withdraw_after": "1s" }))?;
    space.proxy.rule(Rule::new("delete", "pods", Act::Pause));
    let mut scaler = space.scaler("scaler", &[])?;
    let jobs = space.jobs_when("it is launched", SOON, |jobs| jobs.len() == 1).await?;
    client.take_all(&space.bed.queue, 1, SOON).await?;
    let removal = space.proxy.seen("its removal", SOON, |request| request.is("delete", "pods")).await?;
    // While the removal is on its way, the node comes and the worker starts.
    space.kubelet.node("a", 1).await?;
    space.kubelet.sees(&jobs[0].name, "works", SOON).await?;
    ensure!(removal.status.is_none());
    space.proxy.release();
    until("the removal came too late", SOON, async || {
        let removals =
            space.proxy.matching(|request| request.is("delete", "pods") && request.status.is_some());
        Ok(!removals.is_empty())
    })
    .await?;
    scaler.decides("Empty", SOON).await?;
    stays_ready(space, 1).await?;
    let removals = space.proxy.matching(|request| request.verb == "delete");
    ensure!(
        removals.iter().all(|request| request.status == Some(409) || request.status.is_none()),
        "{removals:?}"
    );
    ends(&mut scaler.process).await?;
    client.close().await
}

async fn a_busy_worker_is_left_alone_whatever_happens_to_the_queue(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 1).await?;
    space.configure(&json!({ "launch_interval": "500ms", "withdraw_after": "1s", "max_workers": 2 }))?;
    space.kubelet.node("a", 10).await?;
    // The first one's container runs, but it is not ready yet: it may have a message any moment.
    space.kubelet.all(Script::Starts);
    let mut scaler = space.scaler("scaler", &[])?;
    let jobs = space.jobs_when("it is launched", SOON, |jobs| jobs.len() == 1).await?;
    space.kubelet.sees(&jobs[0].name, "starts", SOON).await?;
    client.take_all(&space.bed.queue, 1, SOON).await?;
    scaler.decides("Empty", SOON).await?;
    stays(space, 1, "it has started").await?;
    client.delete(&space.bed.queue).await?;
    scaler.decides("QueueMissing", SOON).await?;
    ends(&mut scaler.process).await?;
    let mut scaler = space.scaler("second", &[])?;
    scaler.decides("QueueMissing", SOON).await?;
    stays(space, 1, "it has started").await?;
    ensure!(alive(&space.jobs().await?) == 1);
    let removals = space.proxy.matching(|request| request.verb == "delete");
    ensure!(removals.is_empty(), "{removals:?}");
    ends(&mut scaler.process).await?;
    client.close().await
}

async fn the_documented_role_is_enough_for_a_whole_life(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 10).await?;
    space.configure(&json!({ "launch_interval": "500ms", "max_workers": 1, "withdraw_after": "1s" }))?;
    space.kubelet.node("a", 10).await?;
    let mut scaler = space.scaler("scaler", &[])?;
    space.jobs_when("a worker is ready", SOON, |jobs| ready(jobs) == 1).await?;
    let shown = space.state_command("show", &["show"], 0).await?.stdout()?;
    ensure!(shown.contains("pool"), "{shown}");
    space.state_command("pause", &["pause", "pool"], 0).await?;
    end_all(space).await?;
    scaler.decides("Paused", SOON).await?;
    ensure!(space.jobs().await?.len() == 1, "launched while paused");
    space.state_command("resume", &["resume", "pool"], 0).await?;
    space.jobs_when("the next one is ready", SOON, |jobs| ready(jobs) == 1).await?;
    space.state_command("repair", &["repair"], 0).await?;
    // One that is taken back, too: this needs the right to delete.
    end_all(space).await?;
    space.kubelet.clean().await?;
    space.jobs_when("one waits for a node", SOON, |jobs| alive(jobs) == 1).await?;
    client.take_all(&space.bed.queue, 10, SOON).await?;
    let removal =
        |request: &mayfly_tests::control_plane::Request| request.is("delete", "pods") && request.succeeded();
    space.proxy.seen("it is taken back", SOON, removal).await?;
    // What is forbidden is looked for at the end of every test.
    ends(&mut scaler.process).await?;
    client.close().await
}

/// No more and no fewer Jobs than this for a while.
async fn stays(space: &Space<'_>, jobs: usize, why: &str) -> Result<()> {
    let end = tokio::time::Instant::now() + A_WHILE;
    while tokio::time::Instant::now() < end {
        let now = space.jobs().await?.len();
        ensure!(now == jobs, "{now} Jobs instead of {jobs}, although {why}");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    Ok(())
}

/// So many workers stay ready for a while.
async fn stays_ready(space: &Space<'_>, workers: usize) -> Result<()> {
    let end = tokio::time::Instant::now() + A_WHILE;
    while tokio::time::Instant::now() < end {
        let now = ready(&space.jobs().await?);
        ensure!(now == workers, "{now} ready workers instead of {workers}");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    Ok(())
}

/// A worker whose image has no readiness probe: Kubernetes calls it ready as soon as it runs.
async fn without_a_probe_a_worker_is_ready_when_its_queue_has_a_consumer(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 10).await?;
    space.kubelet.node("a", 5).await?;
    space.configure(&json!({ "launch_interval": "500ms", "max_workers": 2, "ready_by": "consumers" }))?;
    let mut scaler = space.scaler("scaler", &[])?;
    space.jobs_when("it runs", SOON, |jobs| ready(jobs) == 1).await?;
    tells(space, &scaler, "WaitingForPending", "running, no consumer at its queue").await?;
    ensure!(space.jobs().await?.len() == 1, "launched beside a worker that takes nothing");
    // Its program connects at last.
    let consumer = client.keep_one(&space.bed.queue).await?;
    space.jobs_when("the next one is launched", SOON, |jobs| jobs.len() == 2).await?;
    scaler.decides("AtMaximum", SOON).await?;
    let counts = scaler.status().await?["counts"].clone();
    ensure!(counts["ready"] == 1 && counts["pending"] == 1, "{counts}");
    drop(consumer);
    ends(&mut scaler.process).await?;
    client.close().await
}
