//! The scaler: what it costs while there is nothing to do, with one queue and with many, what a decision costs,
//! and how long after a publish a worker is launched.

mod decide;
mod idle;
mod launch;
mod many;
mod post;

use std::{fs, path::PathBuf, time::Duration};

use anyhow::Result;
use clap::ValueEnum;
use mayfly_tests::{Process, until};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    report::Figure,
    stage::Stage,
    usage::{memory, processor_seconds},
};

/// What is measured, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// What a decision costs.
    Decide,
    /// One queue, looked at every 250 ms.
    Idle,
    /// A thousand queues, looked at every second.
    Many,
    /// From a confirmed publish to the launch of a worker by the process launcher.
    Launch,
    /// From a confirmed publish to the Job's POST at an API server.
    Post,
}

const START_LIMIT: Duration = Duration::from_secs(60);
/// What a start costs shall not count.
const SETTLE: Duration = Duration::from_secs(2);

pub(crate) async fn measure(
    stage: &Stage,
    quick: bool,
    only: Option<Part>,
    figures: &mut Vec<Figure>,
) -> Result<()> {
    for part in Part::value_variants() {
        if only.is_some_and(|only| only != *part) {
            continue;
        }
        match part {
            Part::Decide => figures.extend(decide::measure(quick)?),
            Part::Idle => idle::measure(stage, quick, figures).await?,
            Part::Many => figures.extend(many::measure(stage, quick).await?),
            Part::Launch => figures.extend(launch::measure(stage, quick).await?),
            Part::Post => figures.extend(post::measure(stage, quick).await?),
        }
    }
    Ok(())
}

/// Workers' place of the scaler named `name`.
fn place(stage: &Stage, name: &str) -> PathBuf {
    stage.directory.path().join(name)
}

/// A scaler that looks at `queues` every `check_interval`, one pool each, with workers that run `command`.
fn start(
    stage: &Stage,
    name: &str,
    check_interval: &str,
    queues: &[String],
    command: &[&str],
    arguments: &[&str],
) -> Result<Process> {
    let pool = |queue: &String| json!({ "name": queue, "queues": [{ "name": queue }], "worker": { "command": command } });
    let config = json!({
        "instance": "bench",
        "check_interval": check_interval,
        "broker": { "url_env": "MAYFLY_BROKER_URL" },
        "launcher": { "process": { "directory": place(stage, name) } },
        "pools": queues.iter().map(pool).collect::<Vec<Value>>(),
    });
    let path = place(stage, name).with_extension("yaml");
    // JSON is YAML.
    fs::write(&path, serde_json::to_vec_pretty(&config)?)?;
    fs::create_dir(place(stage, name))?;
    stage.program("mayfly-scaler")?.arg("run").arg(path).args(arguments).spawn(name)
}

/// Waits until `scaler` is connected to the broker.
async fn connected(stage: &Stage, scaler: &mut Process) -> Result<()> {
    until("the scaler watches its queues", START_LIMIT, async || {
        if let Some(status) = scaler.ended()? {
            anyhow::bail!("it ended with {status}\n{}", scaler.log_tail());
        }
        Ok(stage.node.broker().connections().await?.iter().any(|it| it.name.contains("scaler")))
    })
    .await
}

/// How much of a core process `pid` uses meanwhile. Processor time is counted in hundredths of a second.
async fn percent(pid: i32, meanwhile: impl Future<Output = Result<()>>) -> Result<f64> {
    let (before, begun) = (processor_seconds(pid)?, Instant::now());
    meanwhile.await?;
    Ok(100.0 * (processor_seconds(pid)? - before) / begun.elapsed().as_secs_f64())
}

/// For so long: how much of a core process `pid` uses, and the megabytes that it holds at the end.
async fn watched(pid: i32, length: Duration) -> Result<(f64, f64)> {
    let pause = async {
        sleep(length).await;
        Ok(())
    };
    Ok((percent(pid, pause).await?, memory(pid)?.resident))
}

fn mean(samples: &[f64]) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let count = samples.len() as f64;
    samples.iter().sum::<f64>() / count
}
