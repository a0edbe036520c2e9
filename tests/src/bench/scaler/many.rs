//! A thousand queues, looked at every second, nothing to do. Each has its queue for suspects, as
//! `mayfly-publisher declare` makes it.

use std::time::Duration;

use anyhow::{Result, ensure};
use mayfly_tests::{Kind, Process, eventually, fleet::get};
use serde_json::Value;
use tokio::time::sleep;

use super::{SETTLE, START_LIMIT, connected, mean, start, watched};
use crate::{report::Figure, stage::Stage, usage::memory};

const QUEUES: usize = 1000;
/// DESIGN's targets: milliseconds a pass, megabytes resident, percent of one core.
const PASS_TARGET: f64 = 1000.0;
const MEMORY_TARGET: f64 = 64.0;
const PROCESSOR_TARGET: f64 = 5.0;
/// The log filter by which the scaler tells how long each look took.
const LOOKS: &str = "info,mayfly_scaler::observe::queues=trace";

pub(super) async fn measure(stage: &Stage, quick: bool) -> Result<Vec<Figure>> {
    let (windows, length) = if quick { (2, Duration::from_secs(3)) } else { (4, Duration::from_secs(15)) };
    let client = stage.node.broker().client().await?;
    eprintln!("declaring {QUEUES} queues");
    let queues: Vec<String> = (0..QUEUES).map(|number| format!("many-{number}")).collect();
    for queue in &queues {
        client.declare(queue, Kind::Classic).await?;
        client.declare(&format!("{queue}.suspect"), Kind::Classic).await?;
    }
    let admin = mayfly_tests::node::free_port()?;
    let listen = format!("127.0.0.1:{admin}");
    let arguments = ["--admin-listen", &listen, "--log", LOOKS, "--log-format", "json"];
    let mut scaler = start(stage, "many", "1s", &queues, &["sleep", "1h"], &arguments)?;
    connected(stage, &mut scaler).await?;
    eventually("all queues were seen", START_LIMIT, async || {
        Ok(shows_all(&serde_json::from_str(&get(admin, "/status").await?)?))
    })
    .await?;
    sleep(SETTLE).await;

    let (mut processor, mut resident) = (Vec::new(), Vec::new());
    for number in 1..=windows {
        eprintln!("{QUEUES} queues, {length:?}, {number} of {windows}");
        let (used, held) = watched(scaler.pid(), length).await?;
        processor.push(used);
        resident.push(held);
    }
    let passes = passes(&scaler)?;
    ensure!(!passes.is_empty(), "no pass was told\n{}", scaler.log_tail());
    let peak = memory(scaler.pid())?.peak;
    scaler.kill().await?;
    for queue in &queues {
        client.delete(queue).await?;
        client.delete(&format!("{queue}.suspect")).await?;
    }
    client.close().await?;
    Ok(vec![
        Figure::median("scaler", "1,000 queues: a whole pass", "ms", &passes).at_most(PASS_TARGET),
        Figure::new("scaler", "1,000 queues: processor, a pass a second", "% of a core", mean(&processor))
            .with_spread(&processor)
            .at_most(PROCESSOR_TARGET),
        Figure::median("scaler", "1,000 queues: resident memory", "MB", &resident).at_most(MEMORY_TARGET),
        Figure::new("scaler", "1,000 queues: resident memory, peak", "MB", peak),
    ])
}

/// Whether the page shows all queues.
fn shows_all(page: &Value) -> Option<()> {
    let known = |pool: &&Value| {
        pool["queues"]
            .as_object()
            .is_some_and(|queues| queues.values().any(|queue| queue["facts"]["known"].is_object()))
    };
    (page["pools"].as_object()?.values().filter(known).count() == QUEUES).then_some(())
}

/// How long each look at all queues took, from the first question to the last answer, in milliseconds.
fn passes(scaler: &Process) -> Result<Vec<f64>> {
    Ok(scaler.log_objects()?.iter().filter_map(|line| line["took_ms"].as_f64()).collect())
}
