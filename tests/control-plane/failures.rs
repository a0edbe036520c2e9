//! What is kept of workers that failed.

use anyhow::{Result, ensure};
use k8s_openapi::api::batch::v1::Job;
use mayfly_tests::{
    control_plane::{Script, Space, WorkerJob},
    each_in_a_space, until,
};
use serde_json::{Value, json};

use crate::{SOON, ends, waiting};

/// So many failed Jobs of a pool are kept.
const KEPT: u64 = 10;

each_in_a_space!(of_many_failed_jobs_the_newest_are_kept);

/// A Job as the scaler makes it, whose launch was decided ten minutes ago.
fn old_job(template: &Value, serial: u64) -> Value {
    let ago = std::time::SystemTime::now() - std::time::Duration::from_secs(600 - serial);
    let mut job = json!({ "metadata": template["metadata"], "spec": template["spec"] });
    job["metadata"]["name"] = json!(format!("test-pool-zzzz-{serial}"));
    job["metadata"]["labels"]["mayfly/serial"] = json!(serial.to_string());
    job["metadata"]["labels"]["mayfly/slot"] = json!("0");
    job["metadata"]["annotations"] =
        json!({ "mayfly/intended-at": humantime::format_rfc3339_seconds(ago).to_string() });
    job
}

async fn of_many_failed_jobs_the_newest_are_kept(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 0).await?;
    space.kubelet.node("a", 20).await?;
    space.kubelet.all(Script::Ends { code: 1, report: None });
    let template = space.api::<k8s_openapi::api::batch::v1::CronJob>().get("test-pool").await?;
    let template = serde_json::to_value(template.spec.map(|spec| spec.job_template))?;
    for serial in 1..=KEPT + 3 {
        space.create::<Job>(old_job(&template, serial)).await?;
    }
    let all_failed = |jobs: &[WorkerJob]| jobs.iter().all(|job| job.ended.as_deref() == Some("Failed"));
    space.jobs_when("all have failed", SOON, all_failed).await?;
    let mut scaler = space.scaler("scaler", &[])?;
    until("all are counted", SOON, async || {
        Ok(space.state().await?["judged"].as_array().is_some_and(|judged| judged.len() as u64 == KEPT + 3))
    })
    .await?;
    ensure!(space.jobs().await?.len() as u64 == KEPT + 3, "removed before they were counted");
    // With the next failure there is something to do, and each time some of the oldest go.
    for serial in [KEPT + 4, KEPT + 5] {
        space.create::<Job>(old_job(&template, serial)).await?;
        until("it is counted", SOON, async || {
            let judged = &space.state().await?["judged"];
            Ok(judged.as_array().is_some_and(|judged| judged.contains(&json!(serial))))
        })
        .await?;
    }
    let jobs = space.jobs_when("the oldest are gone", SOON, |jobs| jobs.len() as u64 <= KEPT + 1).await?;
    let left: Vec<_> = jobs.iter().filter_map(|job| job.serial).collect();
    ensure!(left.iter().copied().eq(5..=KEPT + 5), "{left:?}");
    let deletions = space.proxy.matching(|one| one.is("delete", "jobs"));
    ensure!(deletions.len() == 4 && deletions.iter().all(mayfly_tests::control_plane::Request::succeeded));
    until("their pods are gone as well", SOON, async || Ok(space.pods().await?.len() == jobs.len())).await?;
    let state = space.state().await?;
    ensure!(state["next_serial"] == KEPT + 6, "{state}");
    ends(&mut scaler.process).await?;
    client.close().await
}
