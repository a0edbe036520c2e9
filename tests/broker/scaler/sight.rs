//! What the scaler sees of the broker.

use anyhow::{Result, ensure};
use mayfly_tests::{Bed, on_each_release};
use serde_json::json;

use super::{LONG, SOON, ends, fleet};

on_each_release!(a_pool_whose_only_messages_wait_as_suspects_gets_a_worker);

async fn a_pool_whose_only_messages_wait_as_suspects_gets_a_worker(bed: &Bed) -> Result<()> {
    let declare = bed.program("mayfly-publisher")?.args(["declare", &bed.queue]);
    declare.run("declare", SOON).await?.exits_with(0, SOON).await?;
    let fleet = fleet(bed, "fleet", LONG, &json!({}))?;
    let mut scaler = fleet.scaler("scaler", &[])?;
    scaler.decides("Empty", SOON).await?;
    let client = bed.client().await?;
    client.publish(&format!("{}.suspect", bed.queue), 1).await?;
    fleet.workers_when("a worker is launched", SOON, |workers| !workers.is_empty()).await?;
    // It may have been launched for what it says only: the queue itself stays empty.
    ensure!(client.depth(&bed.queue).await?.ready == 0);
    let reason = fleet.workers()?.first().map(|worker| worker.reason.clone());
    ensure!(reason.as_deref() == Some("1 messages wait, more than 0"), "{reason:?}");
    ends(&mut scaler.process).await?;
    client.close().await
}
