//! A thousand queues, looked at every second, nothing to do. Each has its queue for suspects, as
//! `mayfly-publisher declare` makes it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mayfly_tests::{Kind, eventually, fleet::get};
use serde_json::Value;
use tokio::time::sleep;

use super::{SETTLE, START_LIMIT, connected, mean, start, watched};
use crate::{report::Figure, stage::Stage, usage::memory};

const QUEUES: usize = 1000;
/// DESIGN's targets: milliseconds a pass, megabytes resident, percent of one core.
const PASS_TARGET: f64 = 1000.0;
const MEMORY_TARGET: f64 = 64.0;
const PROCESSOR_TARGET: f64 = 5.0;

pub(super) async fn measure(stage: &Stage, quick: bool) -> Result<Vec<Figure>> {
    let (windows, length) = if quick { (2, Duration::from_secs(3)) } else { (4, Duration::from_secs(15)) };
    let looks = if quick { 5 } else { 15 };
    let client = stage.node.broker().client().await?;
    eprintln!("declaring {QUEUES} queues");
    let queues: Vec<String> = (0..QUEUES).map(|number| format!("many-{number}")).collect();
    for queue in &queues {
        client.declare(queue, Kind::Classic).await?;
        client.declare(&format!("{queue}.suspect"), Kind::Classic).await?;
    }
    let admin = mayfly_tests::node::free_port()?;
    let listen = format!("127.0.0.1:{admin}");
    let mut scaler = start(stage, "many", "1s", &queues, &["sleep", "1h"], &["--admin-listen", &listen])?;
    connected(stage, &mut scaler).await?;
    eventually("all queues were seen", START_LIMIT, async || Ok(pass(&page(admin).await?))).await?;
    sleep(SETTLE).await;

    let (mut processor, mut resident) = (Vec::new(), Vec::new());
    for number in 1..=windows {
        eprintln!("{QUEUES} queues, {length:?}, {number} of {windows}");
        let (used, held) = watched(scaler.pid(), length).await?;
        processor.push(used);
        resident.push(held);
    }
    // The page is large: asked for only now, as it costs the scaler something.
    let mut passes = Vec::new();
    while passes.len() < looks {
        ensure!(scaler.ended()?.is_none(), "the scaler ended\n{}", scaler.log_tail());
        passes.extend(pass(&page(admin).await?));
        sleep(Duration::from_millis(1300)).await;
    }
    let peak = memory(scaler.pid())?.peak;
    scaler.kill().await?;
    for queue in &queues {
        client.delete(queue).await?;
        client.delete(&format!("{queue}.suspect")).await?;
    }
    client.close().await?;
    Ok(vec![
        Figure::median(
            "scaler",
            "1,000 queues: from the first question of a pass to the last",
            "ms",
            &passes,
        )
        .at_most(PASS_TARGET),
        Figure::new("scaler", "1,000 queues: processor, a pass a second", "% of a core", mean(&processor))
            .with_spread(&processor)
            .at_most(PROCESSOR_TARGET),
        Figure::median("scaler", "1,000 queues: resident memory", "MB", &resident).at_most(MEMORY_TARGET),
        Figure::new("scaler", "1,000 queues: resident memory, peak", "MB", peak),
    ])
}

async fn page(admin: u16) -> Result<Value> {
    Ok(serde_json::from_str(&get(admin, "/status").await?)?)
}

/// How long the pass took that a status page shows, in milliseconds; `None` where it shows parts of two, or not
/// all queues.
fn pass(page: &Value) -> Option<f64> {
    let asked = |pool: &Value| {
        let queue = pool["queues"].as_object()?.values().next()?;
        let at = queue["facts"]["known"]["at"].as_str()?;
        let at = humantime::parse_rfc3339(at).context("no time").ok()?;
        Some(at.duration_since(std::time::UNIX_EPOCH).ok()?.as_secs_f64() * 1000.0)
    };
    let pools = page["pools"].as_object()?;
    let times = pools.values().map(asked).collect::<Option<Vec<f64>>>()?;
    let first = times.iter().copied().fold(f64::INFINITY, f64::min);
    let last = times.iter().copied().fold(0.0, f64::max);
    (times.len() == QUEUES).then_some(last - first)
}
