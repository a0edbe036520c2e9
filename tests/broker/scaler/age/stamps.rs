//! Publishers' stamps against the truth: what waited before the scaler came is in no history of counters.

use anyhow::{Context, Result, ensure};
use mayfly_tests::{Bed, Kind, bed::rounds, eventually, on_each_release};
use serde_json::json;

use super::{
    super::{LONG, SOON, fleet},
    Scene,
    truth::{Settle, Truth},
};

/// As the table has it.
const SOURCE: &str = "head_stamp";
const UNATTENDED: &str = "unattended";

on_each_release!(where_history_is_missing_the_publishers_stamp_tells_the_age);

async fn where_history_is_missing_the_publishers_stamp_tells_the_age(bed: &Bed) -> Result<()> {
    let long = rounds(60).max(6);
    let node = bed.own_node().await?;
    let truth = Truth::of(node.broker(), "stamped", Kind::Classic).await?.stamped();
    let mut scene =
        Scene { node, truths: vec![(Kind::Classic, truth)], scalers: Vec::new(), told: Vec::new() };
    // More than is taken until the end, so that the head is always one of these.
    let backlog = u64::try_from(2 * long)?;
    scene.phase("before", 4, async |truth, _| truth.publish(backlog).await).await?;
    // The management plugin tells of it up to ten seconds late: to a scaler that came sooner it would be arriving.
    scene.phase("before", 15, async |_, _| Ok(())).await?;
    let url = format!("http://127.0.0.1:{}", scene.node.broker().ports.management);
    let changes = json!({
        "queues": [{ "name": "stamped" }], "max_workers": 0, "counters": { "management": url },
    });
    let mut fleet = fleet(bed, "stamps", LONG, &changes)?;
    fleet.url = scene.node.broker().url();
    let scaler = fleet.scaler("scaler-stamps", &[])?;
    eventually("the age is told from the stamp", SOON, async || {
        let age = scaler.status().await?["queues"]["stamped"]["age"].clone();
        ensure!(age["source"] == SOURCE, "{age}");
        Ok(Some(()))
    })
    .await?;
    scene.scalers.push((SOURCE, scaler));
    let played = played(&mut scene, long).await;
    let table = scene.judged(bed.release);
    table.print();
    played.context("the queue was not played with")?;
    scene.end().await?;
    table.judge_stamps(SOURCE, UNATTENDED)
}

async fn played(scene: &mut Scene, long: usize) -> Result<()> {
    scene.phase(UNATTENDED, long, async |truth, _| truth.publish(1).await).await?;
    scene
        .phase("draining", long, async |truth, second| {
            if second == 0 {
                truth.consume(std::time::Duration::from_secs(1), Settle::Ack).await?;
            }
            if second + 1 == long { truth.leave().await } else { Ok(()) }
        })
        .await
}
