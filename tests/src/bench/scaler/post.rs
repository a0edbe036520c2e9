//! From a confirmed publish to the POST of the Job, as it comes in before a real API server: many pools, each of
//! which is idle and then launches once.

use std::time::Duration;

use anyhow::{Context, Result};
use mayfly_tests::{
    Bed, Client,
    control_plane::{Script, Space},
};
use tokio::time::{Instant, sleep};

use super::{SETTLE, START_LIMIT, launch};
use crate::{report::Figure, stage::Stage};

/// The scaler sends the API server four requests a second in the long run, after a burst of twelve, and a launch with all
/// that follows is fourteen.
const APART: Duration = Duration::from_millis(3500);
/// Room for all workers, which stay until the end.
const ROOM: u32 = 1000;

pub(super) async fn measure(stage: &Stage, quick: bool) -> Result<Vec<Figure>> {
    let bed = Bed::on(stage.node.broker().clone())?;
    let space = Space::make(&bed).await?;
    let latencies = latencies(&space, if quick { 10 } else { 200 }).await;
    space.clean().await?;
    Ok(launch::figures("publish confirmed → Job POST at the API server", &latencies?))
}

async fn latencies(space: &Space<'_>, pools: usize) -> Result<Vec<f64>> {
    let client = space.bed.client().await?;
    let queues = launch::declare(&client, "post", pools).await?;
    space.configure_queues(&queues)?;
    space.kubelet.all(Script::Works);
    space.kubelet.node("a", ROOM).await?;
    let mut scaler = space.scaler("scaler", &[])?;
    let outcome = cold_starts(space, &client, &queues).await;
    if outcome.is_err() {
        eprintln!("--- the scaler:\n{}", scaler.process.log_tail());
    }
    scaler.process.kill().await?;
    launch::delete(&client, &queues).await?;
    client.close().await?;
    outcome
}

async fn cold_starts(space: &Space<'_>, client: &Client, queues: &[String]) -> Result<Vec<f64>> {
    // It has begun to look once it has asked for its Jobs.
    space.proxy.seen("the scaler has started", START_LIMIT, |request| request.is("list", "jobs")).await?;
    sleep(SETTLE).await;
    let mut latencies = Vec::new();
    for queue in queues {
        sleep(APART + launch::somewhere()).await;
        client.publish_one(queue, "first", b"").await?;
        let confirmed = Instant::now();
        let of_pool = |name: &str| {
            name.strip_prefix("test-").is_some_and(|rest| {
                rest.strip_prefix(queue.as_str())
                    .is_some_and(|rest| rest.starts_with('-') && rest.matches('-').count() == 2)
            })
        };
        let post = space
            .proxy
            .seen(queue, START_LIMIT, |request| {
                request.is("create", "jobs") && request.name.as_deref().is_some_and(of_pool)
            })
            .await
            .with_context(|| format!("no Job for {queue}"))?;
        // Its worker is played, and one is enough.
        client.take_all(queue, 1, START_LIMIT).await?;
        // The scaler may see the message before we see its confirm.
        latencies.push(post.at.duration_since(confirmed).as_secs_f64() * 1000.0);
    }
    Ok(latencies)
}
