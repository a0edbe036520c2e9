//! Workers that are launched together and find no room are taken back when the others have done the work.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use mayfly_tests::{
    eventually, ids,
    kubernetes::{Outcome, Phase, Worker},
};
use serde_json::json;

use crate::{
    burst::look_until,
    site::{self, Site},
};

/// What a worker takes of node 0, which has room for so many.
const PLACE: &str = "mayfly.test/place";
const ROOM: usize = 8;
/// Workers that are launched together.
const ALL: usize = 50;
/// Messages of a second each: too many for any number of workers to be in time.
const MESSAGES: usize = 200;
/// How long what takes seconds may take.
const SOON: Duration = Duration::from_mins(2);
/// The idle time-out.
const IDLE: Duration = Duration::from_secs(5);

#[test]
fn workers_that_found_no_room_are_taken_back_when_the_others_have_done_the_work() {
    site::run("takeback", async |site| {
        make_room(site).await?;
        let pool = json!({ "slo": "5s", "max_workers": ALL, "pods_per_node": ALL, "withdraw_after": "1s" });
        let places = json!({ "cpu": "1m", (PLACE): "1" });
        let worker = json!({ "max_idle": format!("{}s", IDLE.as_secs()), "resources": { "requests": places, "limits": { (PLACE): "1" } } });
        site.install("install", &site.values(&pool, &worker)).await?;
        let mut workers = site.workers();
        let mut published = site.publish(1).await?;
        eventually("it is learned what a message takes", SOON, async || {
            workers.look().await?;
            let estimates = &site.state().await?["pools"]["work"]["estimates"];
            Ok((!estimates["service_time"].is_null()).then_some(()))
        })
        .await?;
        let first: BTreeSet<_> = workers.iter().map(|worker| worker.name.clone()).collect();

        published.extend(site.publish(MESSAGES).await?);
        let is_of_the_burst = |worker: &&Worker| !first.contains(&worker.name);
        look_until(&mut workers, "as many work as there is room for", SOON, |workers| {
            let ready = |worker: &&Worker| worker.phase == Phase::Ready;
            workers.alive().filter(is_of_the_burst).count() == ALL
                && workers.alive().filter(ready).count() == ROOM
        })
        .await?;
        let stamps: BTreeSet<_> =
            workers.iter().filter(is_of_the_burst).map(|worker| worker.launched).collect();
        ensure!(stamps.len() == 1, "launched by {} decisions", stamps.len());
        site.tell(&format!("{ALL} workers are launched at once, {ROOM} of them work"));
        look_until(&mut workers, "all is done", SOON, |workers| workers.done() == published).await?;
        let emptied = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        let all_ended = |workers: &mayfly_tests::kubernetes::Workers| {
            workers.alive().next().is_none() && workers.unread().is_empty()
        };
        look_until(&mut workers, "no worker is left", SOON, all_ended).await?;

        ids::assert_same("published", &published, "done", &workers.done())?;
        let burst: Vec<_> = workers.iter().filter(is_of_the_burst).collect();
        let (ran, waited): (Vec<_>, Vec<_>) = burst.into_iter().partition(|worker| worker.node.is_some());
        ensure!(ran.len() == ROOM, "{} of {ROOM} found a node:\n{workers}", ran.len());
        for worker in &waited {
            let taken_back = matches!(worker.outcome, Some(Outcome::Failed(_))) && !worker.log.has_begun;
            ensure!(taken_back, "not taken back: {worker:?}");
        }
        let empty_handed = ran.iter().filter(|worker| worker.log.done.is_empty()).count();
        let last = ran.iter().filter_map(|worker| worker.ended).max().context("none has ended")?;
        let left_after = Duration::from_millis(last).saturating_sub(emptied);
        site.tell(&format!(
            "{} were taken back, {empty_handed} came for nothing, the last one left {:.0} s after all was done",
            waited.len(),
            left_after.as_secs_f64()
        ));
        ensure!(empty_handed <= 1, "{empty_handed} came for nothing");
        ensure!(left_after < 2 * IDLE, "the last one stayed for {left_after:?}");
        let state = site.state().await?;
        ensure!(state["pools"]["work"]["failures"]["count"] == 0, "taken back is not a failure: {state}");
        site.script("uninstall")
            .run("uninstall", site::SCRIPT_LIMIT)
            .await?
            .exits_with(0, Duration::ZERO)
            .await
    });
}

/// Gives node 0 room for [`ROOM`] workers; others don't ask for it.
async fn make_room(site: &Site) -> Result<()> {
    let nodes = Api::<Node>::all(site.client.clone());
    let places = json!({ (PLACE): ROOM.to_string() });
    let patch = Patch::Merge(json!({ "status": { "capacity": places, "allocatable": places } }));
    nodes.patch_status("node-0", &PatchParams::default(), &patch).await.context("change node 0")?;
    Ok(())
}
