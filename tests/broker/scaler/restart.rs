//! A broker that restarts gives back what workers have in hand: that is no new work.

use std::{collections::BTreeSet, time::Duration};

use anyhow::{Result, ensure};
use mayfly_tests::{Bed, Kind, bed::rounds, ids, on_each_release, until};
use serde_json::{Value, json};

use super::{SOON, ends, fleet, ready};

/// What a message takes where the figures are reported, and in the gate.
const WORK: [&str; 2] = ["60s", "10s"];
/// Workers that are busy when the broker goes.
const WORKERS: usize = 3;
/// For all to be done again.
const DONE: Duration = Duration::from_secs(180);

on_each_release!(
    a_broker_restarted_under_long_work_makes_no_surplus_launch,
    a_broker_restarted_under_long_work_with_an_slo_makes_no_surplus_launch,
);

async fn a_broker_restarted_under_long_work_makes_no_surplus_launch(bed: &Bed) -> Result<()> {
    restarted(bed, &json!({})).await
}

async fn a_broker_restarted_under_long_work_with_an_slo_makes_no_surplus_launch(bed: &Bed) -> Result<()> {
    // What waits is late at once: whoever counted it would launch.
    restarted(bed, &json!({ "slo": "1s" })).await
}

/// All workers are busy, and there is room for more, when the broker is restarted.
async fn restarted(bed: &Bed, promise: &Value) -> Result<()> {
    let mut node = bed.own_node().await?;
    let client = node.broker().client().await?;
    client.declare(&bed.queue, Kind::Quorum).await?;
    let published = client.publish(&bed.queue, WORKERS).await?;
    client.close().await?;
    let work = if rounds(20) == 20 { WORK[0] } else { WORK[1] };
    let mut queue = promise.clone();
    queue["name"] = json!(bed.queue);
    let changes = json!({ "queues": [queue], "launch_interval": "100ms", "max_workers": 3 * WORKERS });
    let mut fleet = fleet(bed, "fleet", work, &changes)?;
    fleet.url = node.broker().url();
    let mut scaler = fleet.scaler("scaler", &[])?;
    fleet.workers_when("all messages are in work", SOON, |workers| ready(workers) == WORKERS).await?;
    scaler.decides("Empty", SOON).await?;
    node.stop().await?;
    scaler.decides("Unknown", SOON).await?;
    node.start_again().await?;
    until("all is done", DONE, async || Ok(BTreeSet::from_iter(fleet.done()?).len() == WORKERS)).await?;
    ids::assert_same("published", &published, "done", &BTreeSet::from_iter(fleet.done()?))?;
    let launched = fleet.workers()?.len();
    ensure!(launched == WORKERS, "{} surplus launches", launched - WORKERS);
    ends(&mut scaler.process).await
}
