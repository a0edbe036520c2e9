//! Nodes that are cut off and lost under busy workers.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mayfly_tests::{
    eventually,
    kubernetes::{Outcome, Phase, Worker, Workers},
    until,
};
use serde_json::{Value, json};

use crate::{
    burst::look_until,
    site::{self, Machine, Site},
};

/// What a message takes: long enough to lose a node while one is worked on, and to know which.
const WORK: Duration = Duration::from_secs(3);
/// How many run at once.
const WORKERS: usize = 3;
/// How long something that takes seconds may take here.
const SOON: Duration = Duration::from_mins(2);
/// How long work and ends of workers may take.
const DONE_LIMIT: Duration = Duration::from_mins(4);

#[test]
fn a_node_that_is_cut_off_or_lost_under_a_busy_worker_costs_no_message() {
    site::run("nodes", async |site| {
        let node = Machine::absent(site).await?;
        let room = site.half_of_node_zero().await?;
        // Room for one there, for two on node 0.
        node.start_with(&["--node-cpu", &room]).await?;
        let worker = json!({
            "handler": { "sleep": humantime::format_duration(WORK).to_string() },
            "resources": { "requests": { "cpu": room } },
        });
        let pool = json!({ "max_workers": WORKERS, "launch_interval": "1s" });
        let mut values = site.values(&pool, &worker);
        values["scaler"] = json!({ "nodeSelector": { "kubernetes.io/hostname": "node-0" } });
        site.install("install", &values).await?;
        let watcher = site.watcher().await?;
        let mut workers = site.workers();

        let mut published = site.publish(45).await?;
        let all_busy = |workers: &Workers| {
            workers.alive().filter(|worker| worker.phase == Phase::Ready).count() == WORKERS
        };
        look_until(&mut workers, "all workers are ready", SOON, all_busy).await?;
        ensure!(on_node_one(&workers).is_some(), "no worker is on node 1:\n{workers}");

        site.tell("cutting node 1 off");
        node.cut().await?;
        let status = site.status().await?;
        ensure!(occupied(&status)? == WORKERS as u64, "a worker that cannot be reached counts: {status}");
        let lost = async |count: u64| Ok(site.status().await?["counts"]["lost"] == count);
        until("its worker counts as lost", SOON, async || lost(1).await).await?;
        site.tell("reconnecting it");
        node.heal().await?;
        until("its worker serves again", SOON, async || lost(0).await).await?;

        published.append(&mut site.publish(30).await?);
        let (lost, settled) = freshly_settled(&mut workers).await?;
        let gone = node.kill().await?;
        // What it can have settled without our having seen it; nothing, unless the machine is slow.
        let unseen = (gone - settled).as_secs() / WORK.as_secs();
        site.tell(&format!("lost node 1 with {lost}"));
        node.forget().await?;

        let missing = |workers: &Workers| published.difference(&workers.done()).count() as u64;
        look_until(&mut workers, "all is done elsewhere", DONE_LIMIT, |workers| missing(workers) <= unseen)
            .await?;
        site.tell(&format!(
            "{} messages are done, {} known so by an empty queue only",
            published.len(),
            missing(&workers)
        ));
        look_until(&mut workers, "no worker is left", DONE_LIMIT, |workers| workers.alive().next().is_none())
            .await?;
        nothing_is_left(site).await?;

        let history = watcher.history()?;
        history.assert_pending_at_most(1)?;
        history.assert_occupied_at_most(WORKERS)?;
        for worker in workers.iter() {
            let is_as_expected = if worker.name == lost {
                history.disruptions.contains_key(&lost) && matches!(worker.outcome, Some(Outcome::Failed(_)))
            } else {
                worker.outcome == Some(Outcome::Complete)
            };
            ensure!(is_as_expected, "ended otherwise: {worker:?}, {:?}", history.disruptions);
        }
        let state = site.state().await?;
        ensure!(state["pools"]["work"]["failures"]["count"] == 0, "a lost node is no failure: {state}");
        Ok(())
    });
}

fn on_node_one(workers: &Workers) -> Option<&Worker> {
    workers.alive().find(|worker| worker.node.as_deref() == Some(site::NODE) && worker.phase == Phase::Ready)
}

/// Waits until the worker on node 1 has just settled a message, and so has begun the next: its name, and
/// since when at the earliest.
async fn freshly_settled(workers: &mut Workers) -> Result<(String, Instant)> {
    let mut before = None;
    eventually("the worker on node 1 settles a message", SOON, async || {
        let asked = Instant::now();
        workers.look().await?;
        let worker = on_node_one(workers).context("there is none")?;
        let settled = worker.log.done.len();
        let earlier = before.replace((settled, asked));
        let fresh = earlier.filter(|(before, _)| settled > *before);
        Ok(fresh.map(|(_, since)| (worker.name.clone(), since)))
    })
    .await
}

fn occupied(status: &Value) -> Result<u64> {
    let counts = status["counts"].as_object().context("the number of workers is unknown")?;
    Ok(counts.values().filter_map(Value::as_u64).sum())
}

/// Every message was acknowledged, and none was put elsewhere: so all are done, whatever logs can be read.
async fn nothing_is_left(site: &Site) -> Result<()> {
    let (broker, _forward) = site.broker().await?;
    for suffix in ["", ".dead", ".retry.5s", ".retry.30s", ".retry.2m", ".retry.10m"] {
        let queue = format!("{}{suffix}", site.namespace);
        let depth = broker.depth(&queue).await.with_context(|| queue.clone())?;
        ensure!(depth.ready == 0 && depth.consumers == 0, "{queue}: {depth:?}");
    }
    broker.close().await
}
