//! Workers that cannot start, upgrades, two replicas, and an end that does not wait.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mayfly_tests::{
    Signal, eventually, ids,
    ids::Ids,
    kubernetes::{Outcome, Workers},
};
use serde_json::{Value, json};

use crate::{
    burst::look_until,
    site::{self, SCRIPT_LIMIT, Site},
};

const SOON: Duration = Duration::from_secs(60);
/// Two failures with their cool-downs fit in, a storm would be seen.
const STORM: Duration = Duration::from_secs(15);

#[test]
fn workers_that_cannot_start_make_no_storm_and_an_upgrade_keeps_what_is_known() {
    site::run("failures", async |site| {
        let watcher = site.watcher().await?;
        let mut workers = site.workers();
        let missing = json!({ "image": "mayfly-worker:missing", "imagePullPolicy": "Never" });
        site.install("install", &values(site, &missing)).await?;
        let published = site.publish(6).await?;
        let told = eventually("the missing image is a failure, and told", SOON, async || {
            let status = site.status().await?;
            ensure!(status["failures"].as_u64() >= Some(1), "no failure yet: {status}");
            let phases =
                status["workers"].as_array().into_iter().flatten().map(|worker| worker["phase"].to_string());
            Ok(phases.into_iter().find(|phase| phase.contains("mayfly-worker:missing")))
        })
        .await?;
        site.tell(&format!("of a missing image the scaler says: {told}"));
        no_storm(&mut workers).await?;
        let before = site.state().await?;

        site.tell("upgrading to workers that crash");
        site.install("upgrade-crash", &values(site, &json!({ "args": ["--bogus"] }))).await?;
        let after = site.state().await?;
        ensure!(before["epoch"] == after["epoch"], "the upgrade reset the state: {before} {after}");
        let serial = |state: &Value| state["pools"]["work"]["next_serial"].as_u64().context("no next serial");
        ensure!(serial(&before)? <= serial(&after)?, "serials went back: {before} {after}");
        let crashed = |workers: &Workers| workers.iter().any(|worker| worker.exit_code == Some(64));
        look_until(&mut workers, "a worker crashes at its start", SOON, crashed).await?;
        no_storm(&mut workers).await?;

        site.tell("upgrading to a command in an image that lacks the worker");
        // Nothing is in it but the publisher, nothing can be written, and it runs as nobody in particular.
        let command = json!({ "exec": ["/mayfly-publisher", "--version"] });
        let foreign = json!({ "image": site.image("mayfly-publisher"), "handler": command });
        site.install("upgrade-foreign", &values(site, &foreign)).await?;
        look_until(&mut workers, "all is done", SCRIPT_LIMIT, |workers| workers.done() == published).await?;
        ensure!(site.scalers().await?.len() == 2, "two replicas");
        let history = watcher.history()?;
        history.assert_pending_at_most(1)?;
        let complete =
            |workers: &Workers| workers.iter().any(|worker| worker.outcome == Some(Outcome::Complete));
        look_until(&mut workers, "a worker completes", SOON, complete).await?;
        eventually("failures are forgotten with the first done message", SOON, async || {
            let state = site.state().await?;
            ensure!(state["pools"]["work"]["failures"]["count"] == 0, "{state}");
            Ok(Some(()))
        })
        .await?;

        site.tell("upgrading to workers that take their time");
        site.install("upgrade-good", &values(site, &json!({ "handler": { "sleep": "2s" } }))).await?;

        site.tell("uninstalling under busy workers, at once");
        uninstall_now_gives_back(site, &mut workers).await?;
        watcher.history()?.assert_pending_at_most(1)?;
        site.is_clean().await
    });
}

/// Two scalers, on node 0, where there is always room.
fn values(site: &Site, worker: &Value) -> Value {
    let mut worker = worker.clone();
    worker["resources"] = json!({ "requests": { "cpu": "10m" } });
    worker["nodeSelector"] = json!({ "kubernetes.io/hostname": "node-0" });
    let pool =
        json!({ "max_workers": 3, "launch_interval": "1s", "cooldown_base": "4s", "cooldown_cap": "8s" });
    let mut values = site.values(&pool, &worker);
    values["scaler"] = json!({ "replicas": 2, "nodeSelector": { "kubernetes.io/hostname": "node-0" } });
    values
}

/// With cool-downs of 4 s, then 8 s, there are at most three launches in 15 s.
async fn no_storm(workers: &mut Workers) -> Result<()> {
    workers.look().await?;
    let before = workers.iter().count();
    tokio::time::sleep(STORM).await;
    workers.look().await?;
    let launched = workers.iter().count() - before;
    ensure!(launched <= 3, "{launched} launches in {STORM:?} of workers that cannot start");
    Ok(())
}

async fn uninstall_now_gives_back(site: &Site, workers: &mut Workers) -> Result<()> {
    // More than is done until the scripts have come and gone, however slow the machine.
    let published = site.publish(300).await?;
    let before = workers.done();
    // Workers' own words, to the last; the pods will be gone.
    let mut logs = site.script("logs").arg("workers").spawn("logs-workers")?;
    look_until(workers, "three workers are busy", SOON, |workers| {
        workers.alive().filter(|worker| !worker.log.done.is_empty()).count() == 3
    })
    .await?;
    let uninstall = site.script("uninstall").arg("--now");
    uninstall.run("uninstall-now", SCRIPT_LIMIT).await?.exits_with(0, Duration::ZERO).await?;
    logs.signal(Signal::TERM)?;
    logs.exits_with(130, SOON).await?;
    let done = done_in(&logs.stdout()?);
    let (broker, _forward) = site.broker().await?;
    let waiting = broker.depth(&site.namespace).await?.ready as usize;
    let waiting = broker.take_all(&site.namespace, waiting, SOON).await?;
    broker.close().await?;
    let done: Ids = done.difference(&before).cloned().collect();
    site.tell(&format!("uninstall --now: {} done, {} given back or never taken", done.len(), waiting.len()));
    ensure!(!waiting.is_empty(), "nothing was left to give back");
    let kept: Ids = done.union(&waiting).cloned().collect();
    ids::assert_same("published", &published, "done or waiting", &kept)
}

/// The ids of done messages in what `bin/logs workers` shows.
fn done_in(text: &str) -> Ids {
    let objects =
        text.lines().filter_map(|line| serde_json::from_str::<Value>(&line[line.find('{')?..]).ok());
    let done = objects.filter(|line| line["target"] == "mayfly_worker::message" && line["outcome"] == "done");
    done.filter_map(|line| Some(line["id"].as_str()?.to_owned())).collect()
}
