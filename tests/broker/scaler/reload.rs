//! Changes of the configuration while the scaler runs.

use anyhow::{Context, Result, ensure};
use mayfly_tests::{Bed, Kind, eventually, on_each_release};
use serde_json::{Value, json};

use super::{LONG, SOON, ends, fleet, ready};

on_each_release!(
    changed_limits_take_effect_and_a_bad_file_changes_nothing,
    pools_come_and_go_and_workers_of_a_removed_one_are_left_alone,
);

async fn changed_limits_take_effect_and_a_bad_file_changes_nothing(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    client.declare(&bed.queue, Kind::Quorum).await?;
    client.publish(&bed.queue, 10).await?;
    let fleet = fleet(bed, "fleet", LONG, &json!({ "launch_interval": "100ms", "max_workers": 1 }))?;
    let mut scaler = fleet.scaler("scaler", &[])?;
    scaler.decides("AtMaximum", SOON).await?;

    let change = |key: &str, value: Value| -> Result<()> {
        let mut config = fleet.read_config()?;
        config["pools"][0][key] = value;
        fleet.write_config(&config.to_string())
    };
    change("max_workers", json!(2))?;
    fleet.workers_when("two workers are ready", SOON, |workers| ready(workers) == 2).await?;
    scaler.decides("AtMaximum", SOON).await?;

    // A bad one: nothing changes, and everybody is told.
    let sound = fleet.read_config()?;
    change("max_workers", json!("plenty"))?;
    let refused = eventually("the refusal is told", SOON, async || {
        Ok(scaler.page().await?["refused"]["error"].as_str().map(str::to_owned))
    })
    .await?;
    ensure!(refused.starts_with("pools[0].max_workers: "), "{refused}");
    let text = fleet.explain("explain", &scaler, &[]).await?;
    ensure!(text.contains("configuration refused at") && text.contains(&refused), "{text}");
    ensure!(metric(&scaler.metrics().await?, "mayfly_scaler_config_refused") == Some("1".to_owned()));
    scaler.decides("AtMaximum", SOON).await?;
    ensure!(fleet.workers()?.len() == 2);

    // What a process rests on cannot change.
    let mut moved = sound.clone();
    moved["instance"] = json!("other");
    fleet.write_config(&moved.to_string())?;
    eventually("the next refusal is told", SOON, async || {
        let page = scaler.page().await?;
        let error = page["refused"]["error"].as_str().unwrap_or_default();
        Ok(error.starts_with("instance cannot change while the scaler runs").then_some(()))
    })
    .await?;

    fleet.write_config(&sound.to_string())?;
    change("target_queue_size", json!(100))?;
    change("max_workers", json!(5))?;
    scaler.decides("BelowThreshold", SOON).await?;
    ensure!(scaler.page().await?["refused"].is_null(), "{}", scaler.page().await?);
    ensure!(fleet.workers()?.len() == 2);
    let changes = metric(&scaler.metrics().await?, "mayfly_scaler_config_changes_total");
    ensure!(changes.is_some_and(|changes| ["2", "3"].contains(&&*changes)));
    let refusals = scaler.process.log_objects()?;
    let refusals = refusals.iter().filter(|line| line["level"] == "ERROR").count();
    ensure!(refusals == 2, "{refusals} errors: {}", scaler.process.log_tail());
    ends(&mut scaler.process).await?;
    client.close().await
}

async fn pools_come_and_go_and_workers_of_a_removed_one_are_left_alone(bed: &Bed) -> Result<()> {
    let client = bed.client().await?;
    let other = bed.queue_name("other");
    client.declare(&bed.queue, Kind::Quorum).await?;
    client.declare(&other, Kind::Quorum).await?;
    client.publish(&bed.queue, 10).await?;
    client.publish(&other, 10).await?;
    let fleet = fleet(bed, "fleet", LONG, &json!({ "launch_interval": "100ms", "max_workers": 1 }))?;
    let mut scaler = fleet.scaler("scaler", &[])?;
    scaler.decides("AtMaximum", SOON).await?;
    let before = fleet.running();
    ensure!(before.len() == 1);

    // Its pool goes; another one comes, under a quota in which the worker that lives still counts.
    let mut config = fleet.read_config()?;
    let pool = &mut config["pools"][0];
    (pool["name"], pool["queues"], pool["max_workers"]) =
        (json!("other"), json!([{ "name": other }]), json!(5));
    let mut command = pool["worker"]["command"].as_array().context("no command")?.clone();
    for word in &mut command {
        if *word == json!(bed.queue) {
            *word = json!(other);
        }
    }
    pool["worker"]["command"] = json!(command);
    config["quota"] = json!(3);
    fleet.write_config(&config.to_string())?;
    let reason = async || {
        let page = scaler.page().await?;
        anyhow::Ok(page["pools"]["other"]["reason"].as_str().map(str::to_owned))
    };
    eventually("the new pool fills the quota", SOON, async || {
        Ok((reason().await?.as_deref() == Some("QuotaReached")).then_some(()))
    })
    .await?;
    ensure!(scaler.page().await?["pools"]["pool"].is_null(), "the removed pool is still decided for");
    let workers = fleet.workers()?;
    let of = |pool: &str| workers.iter().filter(|worker| worker.name.contains(pool)).count();
    ensure!((of("-pool-"), of("-other-")) == (1, 2), "{workers:?}");
    ensure!(before.iter().all(|pid| fleet.running().contains(pid)), "the removed pool's worker was ended");
    ends(&mut scaler.process).await?;
    client.close().await
}

/// The value of a metric without labels.
fn metric(page: &str, name: &str) -> Option<String> {
    page.lines().find_map(|line| Some(line.strip_prefix(name)?.strip_prefix(' ')?.to_owned()))
}
