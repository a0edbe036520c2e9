//! What a scaler asks of the API server (DESIGN §4), counted by the proxy.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Result, ensure};
use mayfly_tests::{
    control_plane::{Request, Space},
    each_in_a_space,
};
use serde_json::json;
use tokio::time::Instant;

use crate::{SOON, alive, end_all, ends, ready, waiting};

/// How long requests are counted.
const COUNTED: Duration = Duration::from_secs(40);
/// Requests in ten seconds, at zero.
const IDLE: u64 = 3;
/// Requests in one second, at work.
const WORKING: u64 = 4;

each_in_a_space!(an_idle_scaler_asks_little, a_working_scaler_asks_within_its_budget);

async fn an_idle_scaler_asks_little(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 0).await?;
    let mut first = space.scaler("first", &[])?;
    let mut second = space.scaler("second", &[])?;
    first.decides("Empty", SOON).await?;
    second.decides("Empty", SOON).await?;
    let begun = Instant::now();
    tokio::time::sleep(COUNTED).await;
    for name in ["first", "second"] {
        let asked = asked(space, name, begun);
        ensure!(asked.len() as u64 <= IDLE * COUNTED.as_secs() / 10, "{name}: {}", table(&asked));
        ensure!(!asked.is_empty(), "{name} asks nothing: is it there?");
        eprintln!("idle: {} requests in {COUNTED:?}: {}", asked.len(), table(&asked));
    }
    ends(&mut first.process).await?;
    ends(&mut second.process).await?;
    client.close().await
}

async fn a_working_scaler_asks_within_its_budget(space: &Space<'_>) -> Result<()> {
    let client = waiting(space, 100).await?;
    space.kubelet.node("a", 20).await?;
    space.configure(&json!({ "launch_interval": "500ms", "max_workers": 6 }))?;
    let begun = Instant::now();
    let mut first = space.scaler("first", &[])?;
    let mut second = space.scaler("second", &[])?;
    // Launches, workers that end and are followed by others, and then one that waits for a node.
    space.jobs_when("six workers are ready", 2 * SOON, |jobs| ready(jobs) == 6).await?;
    end_all(space).await?;
    space.kubelet.clean().await?;
    space.jobs_when("one waits for a node", SOON, |jobs| jobs.len() > 6 && alive(jobs) > 0).await?;
    tokio::time::sleep_until(begun + COUNTED).await;
    let took = begun.elapsed();
    for name in ["first", "second"] {
        let asked = asked(space, name, begun);
        eprintln!("working: {} requests in {took:?}: {}", asked.len(), table(&asked));
        // At start it asks for everything once.
        ensure!(asked.len() as u64 <= WORKING * took.as_secs() + 10, "{name}: {}", table(&asked));
        for window in asked.windows(1 + 10 * usize::try_from(WORKING)? + 10) {
            let took = window[window.len() - 1].at - window[0].at;
            ensure!(took >= Duration::from_secs(10), "{name}: {} requests in {took:?}", window.len());
        }
    }
    ends(&mut first.process).await?;
    ends(&mut second.process).await?;
    client.close().await
}

fn asked(space: &Space<'_>, name: &str, since: Instant) -> Vec<Request> {
    space.proxy.matching(|request| request.client == name && request.at >= since)
}

/// How often what was asked.
fn table(requests: &[Request]) -> String {
    let mut counts = BTreeMap::new();
    for request in requests {
        *counts.entry(format!("{} {}", request.verb, request.resource)).or_insert(0) += 1;
    }
    format!("{counts:?}")
}
