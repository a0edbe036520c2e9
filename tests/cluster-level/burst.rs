//! The main job: a burst of messages, workers one at a time, a node that comes late, a scaler that dies.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use mayfly_tests::{
    eventually, ids,
    kubernetes::{Outcome, Phase, Workers},
};
use serde_json::json;

use crate::site::{self, Machine, Requests, SCRIPT_LIMIT, Site};

/// How long the new node takes to come.
const NODE_DELAY: Duration = Duration::from_secs(20);
/// How long the whole burst may take.
const BURST_LIMIT: Duration = Duration::from_mins(5);
/// How long something that takes seconds may take here.
const SOON: Duration = Duration::from_secs(60);
/// How long the idle scaler is measured.
const IDLE: Duration = Duration::from_secs(30);

#[test]
fn a_burst_is_done_once_while_a_node_comes_late_and_the_scaler_dies() {
    site::run("burst", async |site| {
        let node = Machine::absent(site).await?;
        let room = site.half_of_node_zero().await?;
        let requests = Requests::of_scaler(site).await?;
        let worker = json!({ "resources": { "requests": { "cpu": room } } });
        let mut values = site.values(&json!({ "max_workers": 4 }), &worker);
        // The other node goes before the end.
        values["scaler"] = json!({ "nodeSelector": { "kubernetes.io/hostname": "node-0" } });
        site.install("install", &values).await?;
        let watcher = site.watcher().await?;
        let mut workers = site.workers();

        let begun = requests.read().await?;
        let published = site.publish(200).await?;
        site.tell("200 messages are published");
        let third = waits_for_room(&mut workers).await?;
        site.tell("the third worker finds no room");
        site.announce_node(&third).await?;
        site.kill_scaler().await?;
        // The cloud takes its time; the third waits, and nobody else.
        tokio::time::sleep(NODE_DELAY).await;
        workers.look().await?;
        ensure!(workers.iter().count() == 3, "launched while one waits:\n{workers}");
        node.start().await?;
        site.tell("the new node is there");
        let on_new_node = |workers: &Workers| {
            workers
                .iter()
                .any(|worker| worker.node.as_deref() == Some(site::NODE) && worker.phase == Phase::Ready)
        };
        look_until(&mut workers, "a worker is ready on the new node", SOON, on_new_node).await?;
        site.delete_scaler().await?;

        look_until(&mut workers, "all is done", BURST_LIMIT, |workers| workers.done() == published).await?;
        let working = requests.read().await?.rate_since(&begun);
        site.tell("all is done");
        let all_ended = |workers: &Workers| workers.alive().next().is_none() && workers.unread().is_empty();
        look_until(&mut workers, "no worker is left", SOON, all_ended).await?;

        ids::assert_same("published", &published, "done", &workers.done())?;
        let runs: usize = workers.iter().map(|worker| worker.log.done.len()).sum();
        ensure!(runs == published.len(), "{runs} runs of {} messages", published.len());
        for worker in workers.iter() {
            ensure!(worker.outcome == Some(Outcome::Complete), "not complete: {worker:?}");
            ensure!(worker.reason.as_deref() == Some("idle"), "ended otherwise: {worker:?}");
        }
        let history = watcher.history()?;
        history.assert_pending_at_most(1)?;
        history.assert_occupied_at_most(4)?;
        let launched = history.launches().len();
        ensure!(launched >= 3, "only {launched} workers");
        let serials: Vec<_> = workers.iter().filter_map(|worker| worker.serial).collect();
        let next = site.state().await?["pools"]["work"]["next_serial"].as_u64().context("no next serial")?;
        ensure!(
            serials.len() == launched && serials.iter().all(|serial| *serial < next),
            "serials {serials:?}"
        );
        nothing_waits(site).await?;
        let idle = idle_rate(site, &requests).await?;
        site.tell(&format!(
            "requests to the API server: {working:.2}/s with {launched} workers, {idle:.2}/s idle"
        ));
        ensure!(working > 0.0 && working <= 4.0, "working: {working:.2} requests/s");
        ensure!(idle > 0.0 && idle <= 0.3, "idle at zero: {idle:.2} requests/s");

        node.remove().await?;
        site.tell("uninstalling under two busy workers and one that finds no room");
        uninstall_waits_for_busy_workers(site, &mut workers).await?;
        site.is_clean().await
    });
}

/// Waits until a worker finds no room; the name of its pod.
async fn waits_for_room(workers: &mut Workers) -> Result<String> {
    eventually("a worker finds no room", SOON, async || {
        workers.look().await?;
        let waiting =
            workers.iter().find(|worker| worker.phase == Phase::Pending("Unschedulable".to_owned()));
        Ok(waiting.and_then(|worker| worker.pod.clone()))
    })
    .await
}

/// Looks again and again until `condition` holds.
pub(crate) async fn look_until(
    workers: &mut Workers,
    what: &str,
    limit: Duration,
    mut condition: impl FnMut(&Workers) -> bool,
) -> Result<()> {
    let outcome = eventually(what, limit, async || {
        workers.look().await?;
        Ok(condition(workers).then_some(()))
    })
    .await;
    outcome.map_err(|error| anyhow!("{error:#}\n{workers}"))
}

/// The broker holds no message and no consumer of ours.
async fn nothing_waits(site: &Site) -> Result<()> {
    let (broker, _forward) = site.broker().await?;
    eventually("the queue is empty, and nobody consumes", SOON, async || {
        let depth = broker.depth(&site.namespace).await?;
        ensure!(depth.ready == 0 && depth.consumers == 0, "{depth:?}");
        Ok(Some(()))
    })
    .await?;
    broker.close().await
}

/// Requests of the scaler from when it has seen the last worker's end, by the API server's own count.
async fn idle_rate(site: &Site, requests: &Requests) -> Result<f64> {
    eventually("the scaler has seen all ends", SOON, async || {
        let status = site.status().await?;
        let counts = status["counts"].as_object().context("the number of workers is unknown")?;
        Ok(counts.values().all(|count| count == 0).then_some(()))
    })
    .await?;
    let before = requests.read().await?;
    tokio::time::sleep(IDLE).await;
    Ok(requests.read().await?.rate_since(&before))
}

async fn uninstall_waits_for_busy_workers(site: &Site, workers: &mut Workers) -> Result<()> {
    let before = workers.done();
    let published = site.publish(30).await?;
    let busy = |workers: &Workers| workers.alive().filter(|worker| !worker.log.done.is_empty()).count() == 2;
    look_until(workers, "two workers are busy", SOON, busy).await?;
    // It cannot start behind our back, so whoever does the work has a log that can be read to its end.
    waits_for_room(workers).await?;
    let mut uninstall = site.script("uninstall").spawn("uninstall")?;
    let all_done = |workers: &Workers| workers.done().difference(&before).count() == published.len();
    look_until(workers, "their work is done", SCRIPT_LIMIT, all_done).await?;
    ensure!(
        uninstall.ended()?.is_none(),
        "it did not wait for workers that were busy or idle for less than 5 s"
    );
    uninstall.exits_with(0, SCRIPT_LIMIT).await?;
    let done = workers.done().difference(&before).cloned().collect();
    ids::assert_same("published", &published, "done", &done)
}
