//! The state record in its `ConfigMap`: what happens when somebody damages it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mayfly_tests::{control_plane::Space, each_in_a_space, eventually, fleet::Scaler};
use serde_json::{Value, json};

use crate::{SOON, each_once, end_all, ends, in_order, ready, waiting};

/// How long a hold is watched.
const A_WHILE: Duration = Duration::from_secs(10);
/// A record that is lost beside live workers is rebuilt after this time.
const REBUILT_AFTER: Duration = Duration::from_secs(120);

each_in_a_space!(
    a_missing_state_record_holds_until_it_is_back,
    an_emptied_state_record_holds_and_is_rebuilt_without_going_back,
    a_damaged_state_record_holds_until_it_is_repaired,
    an_empty_state_record_is_a_beginning,
);

/// A scaler that could launch one more at any moment.
async fn wanting(space: &Space<'_>) -> Result<Scaler> {
    space.kubelet.node("a", 10).await?;
    space.configure(&json!({ "launch_interval": "500ms", "max_workers": 2 }))?;
    let scaler = space.scaler("scaler", &[])?;
    space.jobs_when("two workers are ready", SOON, |jobs| ready(jobs) == 2).await?;
    scaler.decides("AtMaximum", SOON).await?;
    Ok(scaler)
}

/// It says `words`, and launches nothing although there would be room.
async fn holds(space: &Space<'_>, scaler: &Scaler, words: &[&str]) -> Result<Value> {
    let status = eventually("it tells what is unknown", SOON, async || {
        let status = scaler.status().await?;
        let text = status["text"].as_str().context("no text")?;
        ensure!(status["reason"] == "Unknown", "it is {}: {text}", status["reason"]);
        ensure!(words.iter().all(|word| text.contains(word)), "it does not tell {words:?} but {text:?}");
        Ok(Some(status))
    })
    .await?;
    let before = space.jobs().await?.len();
    let end = tokio::time::Instant::now() + A_WHILE;
    while tokio::time::Instant::now() < end {
        let status = scaler.status().await?;
        ensure!(status["decision"] == "hold", "{status}");
        ensure!(space.jobs().await?.len() == before, "launched without a record");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    Ok(status)
}

async fn a_missing_state_record_holds_until_it_is_back(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 10).await?;
    let mut scaler = wanting(space).await?;
    let record = space.record().await?.context("no record")?;
    space.delete_state().await?;
    end_all(space).await?;
    holds(space, &scaler, &["state record", "test-state"]).await?;
    space.create_state().await?;
    space.overwrite_state(json!({ "state.json": record })).await?;
    space.jobs_when("two more are ready", SOON, |jobs| ready(jobs) == 2).await?;
    let jobs = space.jobs().await?;
    ensure!(jobs.len() == 4, "{} workers", jobs.len());
    in_order(&jobs, Duration::from_millis(500))?;
    each_once(space, &jobs)?;
    ends(&mut scaler.process).await?;
    client.close().await
}

async fn an_emptied_state_record_holds_and_is_rebuilt_without_going_back(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 10).await?;
    let mut scaler = wanting(space).await?;
    ends(&mut scaler.process).await?;
    let jobs = space.jobs().await?;
    space.overwrite_state(json!({ "state.json": null })).await?;
    // One leaves: there is need, and room.
    space.kubelet.job(&jobs[0].name, crate::idle(1));
    space.jobs_when("one worker is left", SOON, |jobs| ready(jobs) == 1).await?;
    let mut scaler = space.scaler("second", &[])?;
    holds(space, &scaler, &["state record"]).await?;
    let limit = REBUILT_AFTER + SOON;
    let jobs =
        space.jobs_when("a third one is ready", limit, |jobs| jobs.len() == 3 && ready(jobs) == 2).await?;
    ensure!(jobs[2].serial == Some(3), "serials went back: {jobs:?}");
    let name =
        |job: &mayfly_tests::control_plane::WorkerJob| job.name.trim_end_matches(char::is_numeric).to_owned();
    ensure!(name(&jobs[2]) != name(&jobs[0]), "a new record makes names that were used: {}", jobs[2].name);
    let log = scaler.process.log()?;
    ensure!(log.contains("pause and cool-down"), "the loss is not told: {}", scaler.process.log_tail());
    ends(&mut scaler.process).await?;
    client.close().await
}

async fn a_damaged_state_record_holds_until_it_is_repaired(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 10).await?;
    let mut scaler = wanting(space).await?;
    space.overwrite_state(json!({ "state.json": "not a record" })).await?;
    end_all(space).await?;
    holds(space, &scaler, &["damaged", "test-state"]).await?;
    space.state_command("repair", &["repair"], 0).await?;
    let jobs = space.jobs_when("two more are ready", SOON, |jobs| ready(jobs) == 2).await?;
    let serials: Vec<_> = jobs.iter().filter_map(|job| job.serial).collect();
    ensure!(serials == [1, 2, 3, 4], "{serials:?}");
    ends(&mut scaler.process).await?;
    client.close().await
}

async fn an_empty_state_record_is_a_beginning(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 10).await?;
    // As the chart renders it: there is no data at all.
    let mut scaler = wanting(space).await?;
    let state = space.state().await?;
    ensure!(state["next_serial"] == 3, "{state}");
    ends(&mut scaler.process).await?;
    client.close().await
}
