//! From a confirmed publish to the launch: many pools, each launches once, at a random instant of the scaler's
//! interval.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    time::{Duration, SystemTime},
};

use anyhow::{Context, Result};
use mayfly_tests::{Client, Kind, Signal, eventually, fleet::running_workers};
use rustix::process::kill_process;
use serde_json::Value;
use tokio::time::sleep;

use super::{SETTLE, START_LIMIT, connected, place, start};
use crate::{
    report::{Figure, quantile},
    stage::Stage,
};

/// The scaler's default.
const CHECK_INTERVAL: f64 = 250.0;
/// DESIGN's target of the 99th percentile, in milliseconds.
const TARGET: f64 = 1.1 * CHECK_INTERVAL + 100.0;

pub(super) async fn measure(stage: &Stage, quick: bool) -> Result<Vec<Figure>> {
    let client = stage.node.broker().client().await?;
    let queues = declare(&client, "start", if quick { 20 } else { 200 }).await?;
    let mut scaler = start(stage, "launch", "250ms", &queues, &["sleep", "1h"], &[])?;
    connected(stage, &mut scaler).await?;
    sleep(SETTLE).await;
    let workers = mayfly_scaler::launcher::process::workers_directory(&place(stage, "launch"));
    let mut latencies = Vec::new();
    for queue in &queues {
        sleep(somewhere()).await;
        client.publish_one(queue, "first", b"").await?;
        let confirmed = SystemTime::now();
        let launched =
            eventually("the worker is launched", START_LIMIT, async || Ok(launches(&workers)?.remove(queue)))
                .await?;
        // The scaler may see the message before we see its confirm.
        latencies.push(launched.duration_since(confirmed).unwrap_or_default().as_secs_f64() * 1000.0);
    }
    scaler.kill().await?;
    for pid in running_workers(&place(stage, "launch")) {
        // It may have ended by itself.
        let _ = kill_process(pid, Signal::KILL);
    }
    delete(&client, &queues).await?;
    client.close().await?;
    Ok(figures("publish confirmed → worker launched (local process)", &latencies))
}

/// Declares so many queues with what workers declare beside them, as a queue that was worked on before has it.
pub(super) async fn declare(client: &Client, name: &str, count: usize) -> Result<Vec<String>> {
    let queues: Vec<String> = (0..count).map(|number| format!("{name}-{number}")).collect();
    for queue in &queues {
        client.declare(queue, Kind::Quorum).await?;
        client.declare(&format!("{queue}.suspect"), Kind::Classic).await?;
    }
    eprintln!("{count} cold starts, one after the other");
    Ok(queues)
}

pub(super) async fn delete(client: &Client, queues: &[String]) -> Result<()> {
    for queue in queues {
        client.delete(queue).await?;
        client.delete(&format!("{queue}.suspect")).await?;
    }
    Ok(())
}

pub(super) fn figures(case: &str, latencies: &[f64]) -> Vec<Figure> {
    let count = latencies.len();
    vec![
        Figure::new("scaler", &format!("{case}, p99 of {count}"), "ms", quantile(latencies, 0.99))
            .at_most(TARGET),
        Figure::median("scaler", case, "ms", latencies),
    ]
}

/// A moment within two intervals, out of step with them.
pub(super) fn somewhere() -> Duration {
    use std::hash::BuildHasher;
    let random = std::hash::RandomState::new().hash_one(());
    Duration::from_millis(random % 500)
}

/// When each pool's worker was launched: its file is written then, and then linked to its name.
fn launches(workers: &Path) -> Result<BTreeMap<String, SystemTime>> {
    let mut launches = BTreeMap::new();
    for entry in fs::read_dir(workers).into_iter().flatten() {
        let path = entry?.path();
        if path.extension().is_none() {
            let text = fs::read_to_string(&path)?;
            let header: Value = serde_json::from_str(text.lines().next().context("an empty worker file")?)?;
            let pool = header["pool"].as_str().context("no pool")?.to_owned();
            launches.insert(pool, fs::metadata(&path)?.modified()?);
        }
    }
    Ok(launches)
}
