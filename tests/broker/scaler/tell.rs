//! What the scaler tells: of its decisions, and of what it would do.

use anyhow::{Result, ensure};
use mayfly_tests::{Bed, Kind, on_each_release, until};
use serde_json::{Value, json};

use super::{LONG, SOON, ends, fleet, ready};

on_each_release!(
    it_explains_what_it_sees_and_what_a_launch_needs,
    a_dry_run_tells_what_it_would_do_and_does_nothing,
    a_dry_run_goes_along_with_a_scaler_that_works,
);

async fn it_explains_what_it_sees_and_what_a_launch_needs(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    client.declare(&bed.queue, Kind::Quorum).await?;
    client.publish(&bed.queue, 3).await?;
    let fleet = fleet(bed, "fleet", LONG, &json!({ "target_queue_size": 5 }))?;
    let mut scaler = fleet.scaler("scaler", &[])?;
    scaler.decides("BelowThreshold", SOON).await?;
    let text = fleet.explain("explain", &scaler, &["pool"]).await?;
    for part in [
        "pool pool: BelowThreshold",
        "launches                 when more than 5 messages wait (now 3)",
        "3, 0 consumers (looks at the queue)",
        "0 ready, 0 pending",
    ] {
        ensure!(text.contains(part), "{part:?} is missing in: {text}");
    }
    for paused in [&["pause", "pool"][..], &["pause"]] {
        fleet.state_command(&paused.join("-"), paused).await?;
        let after = format!("after: mayfly-scaler state CONFIGURATION resume {}", paused[1..].join(" "));
        let after = after.trim_end();
        until("it tells what ends the pause", SOON, async || {
            Ok(scaler.page().await?["pools"]["pool"]["launches"] == after)
        })
        .await?;
        let name = format!("{}-json", paused.join("-"));
        let page = fleet.explain(&name, &scaler, &["--output", "json"]).await?;
        let page: Value = serde_json::from_str(&page)?;
        ensure!(page["pools"]["pool"]["launches"] == after, "{page}");
    }

    let unknown = bed.program("mayfly-scaler")?.args(["explain", "other", "--admin"]);
    let unknown = unknown.arg(format!("127.0.0.1:{}", scaler.admin()));
    let mut unknown = unknown.run("unknown", SOON).await?;
    unknown.exits_with(64, SOON).await?;
    ends(&mut scaler.process).await?;
    let gone = bed.program("mayfly-scaler")?.args(["explain", "--admin"]);
    let mut gone = gone.arg(format!("127.0.0.1:{}", scaler.admin())).run("gone", SOON).await?;
    gone.exits_with(69, SOON).await?;
    ensure!(gone.log()?.contains("--admin-listen"), "{}", gone.log()?);
    client.close().await
}

async fn a_dry_run_tells_what_it_would_do_and_does_nothing(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    client.declare(&bed.queue, Kind::Quorum).await?;
    client.publish(&bed.queue, 10).await?;
    let fleet = fleet(bed, "fleet", LONG, &json!({}))?;
    let before = entries(&fleet.directory)?;
    let mut scaler = fleet.scaler("scaler", &[("MAYFLY_DRY_RUN", "true")])?;
    let status = scaler.decides("DepthAbove", SOON).await?;
    ensure!(status["decision"] == "launch", "{status}");
    let text = fleet.explain("explain", &scaler, &[]).await?;
    ensure!(text.contains("dry run: it only tells, and launches nothing"), "{text}");
    // It has had time for several acts by then.
    let seen = |page: &Value| page["at"].as_str().map(str::to_owned);
    let first = seen(&scaler.page().await?);
    until("it has decided again", SOON, async || Ok(seen(&scaler.page().await?) != first)).await?;
    ends(&mut scaler.process).await?;
    let told = scaler.process.log_objects()?;
    let told = told
        .iter()
        .filter(|line| line["message"] == "dry run: would launch 1: 10 messages wait, more than 0");
    ensure!(told.count() == 1, "{}", scaler.process.log_tail());
    let after = entries(&fleet.directory)?;
    ensure!(before == after, "{before:?}, then {after:?}");
    ensure!(client.depth(&bed.queue).await?.ready == 10);
    client.close().await
}

async fn a_dry_run_goes_along_with_a_scaler_that_works(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    client.declare(&bed.queue, Kind::Quorum).await?;
    let changes = json!({ "launch_interval": "100ms", "max_workers": 2, "withdraw_after": "1s" });
    let fleet = fleet(bed, "fleet", LONG, &changes)?;
    let mut working = fleet.scaler("working", &[])?;
    let mut dry = fleet.scaler("dry", &[("MAYFLY_DRY_RUN", "true")])?;
    dry.decides("Empty", SOON).await?;
    client.publish(&bed.queue, 10).await?;
    fleet.workers_when("two workers are ready", SOON, |workers| ready(workers) == 2).await?;
    for scaler in [&working, &dry] {
        scaler.decides("AtMaximum", SOON).await?;
    }
    let launched = working.launches()?;
    ensure!((launched, dry.launches()?) == (2, 0), "{launched}");
    ends(&mut dry.process).await?;
    ends(&mut working.process).await?;
    client.close().await
}

fn entries(directory: &std::path::Path) -> Result<Vec<std::path::PathBuf>> {
    let mut entries =
        std::fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    entries.sort();
    Ok(entries)
}
