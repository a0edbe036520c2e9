//! Black-box tests of the scaler on a real Kubernetes control plane: API server, controllers and scheduler are
//! real, kubelets and the node autoscaler are played. Run them with `bin/test control-plane`.
//!
//! A test is an `async fn(&Space) -> Result<()>` named in `each_in_a_space!`. Whatever it does, a request that
//! the documented Role does not allow fails it.

mod budget;
mod causes;
mod disruptions;
mod events;
mod failures;
mod harness;
mod kills;
mod launches;
mod outages;
mod rows;
mod state;
mod storm;
mod takeback;
mod templates;
mod workers;

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{Event, Pod};
use mayfly_service::report::{ExitReason, ExitReport};
use mayfly_tests::{
    Client, Kind, Process, Signal,
    control_plane::{Script, Space, WorkerJob},
    fleet::Scaler,
    until,
};
use serde_json::json;

/// For what takes a few seconds on an idle machine.
const SOON: Duration = Duration::from_secs(60);

/// The space's queue with so many messages waiting. Workers are played: nobody takes them.
async fn waiting(space: &Space<'_>, messages: usize) -> Result<Client> {
    let client = space.bed.client().await?;
    client.declare(&space.bed.queue, Kind::Classic).await?;
    client.publish(&space.bed.queue, messages).await?;
    Ok(client)
}

async fn ends(scaler: &mut Process) -> Result<()> {
    scaler.signal(Signal::TERM)?;
    scaler.exits_with(0, SOON).await
}

fn ready(jobs: &[WorkerJob]) -> usize {
    jobs.iter().filter(|job| job.ready).count()
}

fn alive(jobs: &[WorkerJob]) -> usize {
    jobs.iter().filter(|job| job.ended.is_none()).count()
}

/// Serials run from 1 without a gap, and two launches in a row are at least `interval` apart.
fn in_order(jobs: &[WorkerJob], interval: Duration) -> Result<()> {
    let serials: Vec<_> = jobs.iter().map(|job| job.serial.unwrap_or(0)).collect();
    ensure!(serials.iter().copied().eq(1..=serials.len() as u64), "serials {serials:?}");
    for pair in jobs.windows(2) {
        let [first, second] = pair else { continue };
        let apart = Duration::from_millis(second.stamp.saturating_sub(first.stamp));
        ensure!(apart >= interval, "launches {} and {} are {apart:?} apart", first.name, second.name);
    }
    Ok(())
}

/// No name was created twice, and what was created is what is there.
fn each_once(space: &Space<'_>, jobs: &[WorkerJob]) -> Result<()> {
    let created = space.proxy.matching(|request| request.is("create", "jobs") && request.succeeded());
    let names: BTreeSet<_> = created.iter().filter_map(|request| request.name.as_deref()).collect();
    ensure!(names.len() == created.len(), "{} creations of {} names", created.len(), names.len());
    let there: BTreeSet<_> = jobs.iter().map(|job| &*job.name).collect();
    ensure!(names == there, "created {names:?}, there {there:?}");
    Ok(())
}

/// Waits until the pool's decision and its text are these.
async fn tells(space: &Space<'_>, scaler: &Scaler, reason: &str, words: &str) -> Result<()> {
    until(&format!("it tells {words:?}"), SOON, async || {
        let status = scaler.status().await?;
        let text = status["text"].as_str().unwrap_or_default();
        ensure!(status["reason"] == reason, "it is {}: {text}; {:?}", status["reason"], space.kubelet.seen());
        ensure!(text.contains(words), "it tells {text:?}");
        Ok(true)
    })
    .await
}

/// An Event about the pod as `component` writes it; `number` of them are newer than those of lower numbers.
async fn say(
    space: &Space<'_>,
    pod: &Pod,
    number: u64,
    component: &str,
    reason: &str,
    message: &str,
) -> Result<()> {
    let at = std::time::SystemTime::now() - Duration::from_secs(60) + Duration::from_secs(number);
    let at = humantime::format_rfc3339_seconds(at).to_string();
    let event = json!({
        "metadata": { "generateName": "said-" }, "type": "Normal", "reason": reason, "message": message,
        "involvedObject": {
            "apiVersion": "v1", "kind": "Pod", "name": pod.metadata.name, "namespace": space.namespace,
            "uid": pod.metadata.uid,
        },
        "source": { "component": component }, "reportingComponent": component,
        "firstTimestamp": at, "lastTimestamp": at, "count": 1,
    });
    space.create::<Event>(event).await.map(drop)
}

/// The end of a worker that has done so many messages and found no more.
fn idle(done: u64) -> Script {
    let report = ExitReport {
        messages: done,
        done,
        busy_ms: done * 100,
        startup_ms: Some(500),
        ..ExitReport::new(ExitReason::Idle)
    };
    Script::Ends { code: 0, report: Some(report) }
}

fn is_over(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// Lets all workers that are there end as idle ones do; those to come work again.
async fn end_all(space: &Space<'_>) -> Result<()> {
    let there: BTreeSet<_> =
        space.jobs().await?.into_iter().filter(|job| job.ended.is_none()).map(|job| job.name).collect();
    for name in &there {
        space.kubelet.job(name, idle(5));
    }
    let ended = |jobs: &[WorkerJob]| !jobs.iter().any(|job| job.ended.is_none() && there.contains(&job.name));
    space.jobs_when("all workers that were there have ended", SOON, ended).await.map(drop)
}
