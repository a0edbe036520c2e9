//! However much waits and however late nodes come: no more workers than there is room for, and one.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::batch::v1::Job;
use mayfly_tests::{
    bed::rounds,
    control_plane::{Request, Script, Space, WorkerJob},
    each_in_a_space, until,
};
use serde_json::json;
use tokio::time::Instant;

use crate::{SOON, each_once, ends, idle, ready, say, tells, waiting};

/// How long a hold is watched.
const A_WHILE: Duration = Duration::from_secs(15);
/// So long a node takes to come where the figures are reported.
const NODE: Duration = Duration::from_secs(180);
/// How often there is room again where the figures are reported.
const ROOMS: usize = 20;
/// A pool resumes so soon after there is room.
const RESUMES: Duration = Duration::from_secs(5);

each_in_a_space!(
    one_message_and_a_node_that_comes_late_make_one_job_ever,
    five_hundred_messages_make_one_job_more_than_there_is_room_for,
    several_workers_may_wait_for_nodes_that_are_known_to_come,
    a_suspended_job_is_pending_and_no_failure,
    a_job_that_is_suspended_again_is_waited_for_until_it_is_resumed,
);

/// So many Jobs at most, at any time of this long.
async fn never_more(space: &Space<'_>, jobs: usize, lasts: Duration) -> Result<()> {
    let end = Instant::now() + lasts;
    while Instant::now() < end {
        let now = space.jobs().await?.len();
        ensure!(now <= jobs, "{now} Jobs, at most {jobs}");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    Ok(())
}

async fn one_message_and_a_node_that_comes_late_make_one_job_ever(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 1).await?;
    // All that could make a second one: no pacing, an age that is passed at once, two scalers.
    let eager =
        json!({ "launch_interval": "100ms", "force_empty_queue_interval": "1s", "scale_increment": 1 });
    space.configure(&eager)?;
    let mut first = space.scaler("first", &[])?;
    let mut second = space.scaler("second", &[])?;
    let jobs = space.jobs_when("a worker is launched", SOON, |jobs| jobs.len() == 1).await?;
    never_more(space, 1, if rounds(20) == 20 { NODE } else { A_WHILE }).await?;
    // As a real worker does, it takes the message when it is ready, and not later.
    space.kubelet.all(Script::Starts);
    space.kubelet.node("a", 10).await?;
    space.kubelet.sees(&jobs[0].name, "starts", SOON).await?;
    never_more(space, 1, Duration::from_secs(5)).await?;
    client.take_all(&space.bed.queue, 1, SOON).await?;
    space.kubelet.all(Script::Works);
    space.jobs_when("it is ready", SOON, |jobs| ready(jobs) == 1).await?;
    space.kubelet.job(&jobs[0].name, idle(1));
    space.jobs_when("it has ended", SOON, |jobs| jobs[0].ended.is_some()).await?;
    first.decides("Empty", SOON).await?;
    second.decides("Empty", SOON).await?;
    never_more(space, 1, Duration::from_secs(5)).await?;
    ends(&mut first.process).await?;
    ends(&mut second.process).await?;
    client.close().await
}

async fn five_hundred_messages_make_one_job_more_than_there_is_room_for(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 500).await?;
    space.kubelet.node("a", 5).await?;
    space.configure(&json!({ "launch_interval": "200ms", "max_workers": 50 }))?;
    let mut scaler = space.scaler("scaler", &[])?;
    let full = |jobs: &[WorkerJob]| ready(jobs) == 5 && jobs.len() == 6;
    let jobs = space.jobs_when("there is no more room", 2 * SOON, full).await?;
    tells(space, &scaler, "WaitingForPending", "no room on any node").await?;
    let of_probe = |pod: &k8s_openapi::api::core::v1::Pod| {
        pod.metadata.labels.as_ref().and_then(|labels| labels.get("job-name")) == Some(&jobs[5].name)
    };
    let probe = space.pods().await?.into_iter().find(of_probe).context("the sixth has no pod")?;
    let words = "pod didn't trigger scale-up: 1 max node group size reached";
    say(space, &probe, 1, "cluster-autoscaler", "NotTriggerScaleUp", words).await?;
    tells(space, &scaler, "AtCapacity", "the autoscaler is at its limit").await?;
    never_more(space, 6, A_WHILE).await?;
    ensure!(space.state().await?["failures"]["count"] == 0, "want of room is no failure");

    let mut resumed = Vec::new();
    for round in 1..=rounds(ROOMS) {
        space.kubelet.node(&format!("b{round}"), 2).await?;
        let room = Instant::now();
        let is_launch =
            |request: &Request| request.at > room && request.is("create", "jobs") && request.succeeded();
        let launch = space.proxy.seen("the next launch", SOON, is_launch).await?;
        resumed.push(launch.at - room);
        let places = 5 + 2 * round;
        let full = |jobs: &[WorkerJob]| ready(jobs) == places && jobs.len() == places + 1;
        space.jobs_when("there is no more room again", SOON, full).await?;
    }
    resumed.sort();
    let (median, slowest) = (resumed[resumed.len() / 2], resumed[resumed.len() - 1]);
    eprintln!("resumed {} times: {median:?} after there was room, at most {slowest:?}", resumed.len());
    // The machine is busy with other tests where figures are not reported.
    let allowed = if rounds(ROOMS) == ROOMS { RESUMES } else { 2 * RESUMES };
    ensure!(slowest <= allowed, "resumed only {slowest:?} after there was room");
    never_more(space, 6 + 2 * rounds(ROOMS), Duration::from_secs(5)).await?;
    each_once(space, &space.jobs().await?)?;
    ends(&mut scaler.process).await?;
    client.close().await
}

async fn several_workers_may_wait_for_nodes_that_are_known_to_come(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 20).await?;
    space.configure(&json!({ "launch_interval": "200ms", "max_pending_while_scaling": 3 }))?;
    let mut scaler = space.scaler("scaler", &[])?;
    for number in 1..=3 {
        space.jobs_when("one more is launched", SOON, |jobs| jobs.len() == number).await?;
        // Without a promise for the last one there is no other.
        until("its pod is there", SOON, async || Ok(space.pods().await?.len() == number)).await?;
        never_more(space, number, Duration::from_secs(3)).await?;
        for pod in space.pods().await? {
            let words = "pod triggered scale-up: [{workers 0->1 (max: 3)}]";
            say(space, &pod, 1, "cluster-autoscaler", "TriggeredScaleUp", words).await?;
        }
    }
    tells(space, &scaler, "WaitingForPending", "3 workers pending").await?;
    never_more(space, 3, A_WHILE).await?;
    space.kubelet.node("a", 3).await?;
    space.jobs_when("all three are ready", SOON, |jobs| ready(jobs) == 3).await?;
    ends(&mut scaler.process).await?;
    client.close().await
}

/// As Kueue does it: the Job is suspended until there is quota for it.
async fn a_suspended_job_is_pending_and_no_failure(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 10).await?;
    space.kubelet.node("a", 10).await?;
    let queue = json!({ "kueue.x-k8s.io/queue-name": "work" });
    space
        .patch_template(&json!({ "spec": { "jobTemplate": {
            "metadata": { "labels": queue }, "spec": { "suspend": true },
        } } }))
        .await?;
    space.configure(&json!({ "launch_interval": "200ms", "max_workers": 3 }))?;
    let mut scaler = space.scaler("scaler", &[])?;
    tells(space, &scaler, "AtCapacity", "job suspended").await?;
    never_more(space, 1, A_WHILE).await?;
    let jobs = space.jobs().await?;
    let labels = jobs[0].job.metadata.labels.clone().unwrap_or_default();
    ensure!(labels.get("kueue.x-k8s.io/queue-name").is_some_and(|queue| queue == "work"), "{labels:?}");
    let state = space.state().await?;
    ensure!(state["failures"]["count"] == 0 && state["judged"] == json!([]), "{state}");
    space.patch::<Job>(&jobs[0].name, &json!({ "spec": { "suspend": false } })).await?;
    space.jobs_when("it is ready", SOON, |jobs| ready(jobs) == 1).await?;
    ends(&mut scaler.process).await?;
    client.close().await
}

/// As Kueue does it to make room for others: the Job's pod goes, the Job does not fail, and later it gets another one.
async fn a_job_that_is_suspended_again_is_waited_for_until_it_is_resumed(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 10).await?;
    space.kubelet.node("a", 10).await?;
    let limited_to = |most: u32| json!({ "launch_interval": "200ms", "max_workers": most });
    space.configure(&limited_to(1))?;
    let mut scaler = space.scaler("scaler", &[])?;
    let name = space.jobs_when("it is ready", SOON, |jobs| ready(jobs) == 1).await?.remove(0).name;
    scaler.decides("AtMaximum", SOON).await?;
    let suspend = |suspend: bool| json!({ "spec": { "suspend": suspend } });
    let counts = async |pending: u32, ready: u32| {
        let counts = json!({ "pending": pending, "ready": ready, "draining": 0, "lost": 0 });
        until("it is counted", SOON, async || Ok(scaler.status().await?["counts"] == counts)).await
    };
    // It takes its time to end.
    space.kubelet.job(&name, Script::Lingers);
    space.patch::<Job>(&name, &suspend(true)).await?;
    counts(1, 0).await?;
    space.configure(&limited_to(3))?;
    tells(space, &scaler, "WaitingForPending", "job suspended").await?;
    never_more(space, 1, Duration::from_secs(5)).await?;
    space.kubelet.job(&name, Script::Prepares);
    until("its pod is gone", SOON, async || Ok(space.pods().await?.is_empty())).await?;
    tells(space, &scaler, "AtCapacity", "job suspended").await?;
    never_more(space, 1, A_WHILE).await?;
    space.patch::<Job>(&name, &suspend(false)).await?;
    // What was true of the pod before is not of the next one.
    tells(space, &scaler, "WaitingForPending", "starting").await?;
    counts(1, 0).await?;
    never_more(space, 1, Duration::from_secs(5)).await?;
    space.kubelet.job(&name, Script::Works);
    let jobs = space.jobs_when("the pool goes on", SOON, |jobs| ready(jobs) == 3).await?;
    ensure!(jobs.len() == 3, "{jobs:?}");
    let state = space.state().await?;
    ensure!(state["failures"]["count"] == 0 && state["judged"] == json!([]), "{state}");
    ends(&mut scaler.process).await?;
    client.close().await
}
