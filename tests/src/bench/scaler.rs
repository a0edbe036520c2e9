//! The scaler: what it costs while there is nothing to do.

use std::{fs, time::Duration};

use anyhow::Result;
use mayfly_tests::{Kind, Process, until};
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use crate::{
    report::Figure,
    stage::Stage,
    usage::{memory, processor_seconds},
};

/// DESIGN's targets: megabytes resident, percent of one core.
const MEMORY_TARGET: f64 = 15.0;
const PROCESSOR_TARGET: f64 = 1.0;
/// The scaler's default; the bare client asks as often.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);
const START_LIMIT: Duration = Duration::from_secs(20);
/// What a start costs shall not count.
const SETTLE: Duration = Duration::from_secs(2);

pub(crate) async fn measure(stage: &Stage, quick: bool, figures: &mut Vec<Figure>) -> Result<()> {
    let (windows, length) = if quick { (2, Duration::from_secs(5)) } else { (4, Duration::from_secs(10)) };
    let client = stage.node.broker().client().await?;
    client.declare("idle", Kind::Quorum).await?;

    let mut scaler = start(stage)?;
    until("the scaler watches the queue", START_LIMIT, async || {
        if let Some(status) = scaler.ended()? {
            anyhow::bail!("it ended with {status}\n{}", scaler.log_tail());
        }
        Ok(stage.node.broker().connections().await?.iter().any(|it| it.name.contains("scaler")))
    })
    .await?;
    sleep(SETTLE).await;
    let (mut processor, mut resident) = (Vec::new(), Vec::new());
    for number in 1..=windows {
        eprintln!("idle scaler, {length:?}, {number} of {windows}");
        processor.push(
            percent(scaler.pid(), async {
                sleep(length).await;
                Ok(())
            })
            .await?,
        );
        resident.push(memory(scaler.pid())?.resident);
    }
    let peak = memory(scaler.pid())?.peak;
    scaler.kill().await?;

    let mut bare = Vec::new();
    for number in 1..=windows {
        eprintln!("bare client, {length:?}, {number} of {windows}");
        let ask = async {
            let end = Instant::now() + length;
            let mut ticks = interval(CHECK_INTERVAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while ticks.tick().await < end {
                client.depth("idle").await?;
            }
            Ok(())
        };
        bare.push(percent(i32::try_from(std::process::id())?, ask).await?);
    }
    client.close().await?;

    figures.extend([
        Figure::new("scaler", "processor, one queue, nothing to do", "% of a core", mean(&processor))
            .with_spread(&processor)
            .against(mean(&bare))
            .at_most(PROCESSOR_TARGET),
        Figure::median("scaler", "resident memory, nothing to do", "MB", &resident).at_most(MEMORY_TARGET),
        Figure::new("scaler", "resident memory, peak", "MB", peak),
    ]);
    Ok(())
}

fn start(stage: &Stage) -> Result<Process> {
    let config = json!({
        "instance": "bench",
        "broker": { "url_env": "MAYFLY_BROKER_URL" },
        "launcher": { "process": { "directory": stage.directory.path().join("scaler") } },
        "pools": [{
            "name": "bench",
            "queues": [{ "name": "idle" }],
            "worker": { "command": ["mayfly-worker", "sleep", "--queue", "idle"] },
        }],
    });
    let path = stage.directory.path().join("mayfly.yaml");
    // JSON is YAML.
    fs::write(&path, serde_json::to_vec_pretty(&config)?)?;
    fs::create_dir(stage.directory.path().join("scaler"))?;
    stage.program("mayfly-scaler")?.arg("run").arg(path).spawn("scaler")
}

/// How much of a core process `pid` uses meanwhile. Processor time is counted in hundredths of a second.
async fn percent(pid: i32, meanwhile: impl Future<Output = Result<()>>) -> Result<f64> {
    let (before, begun) = (processor_seconds(pid)?, Instant::now());
    meanwhile.await?;
    Ok(100.0 * (processor_seconds(pid)? - before) / begun.elapsed().as_secs_f64())
}

fn mean(samples: &[f64]) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a handful")]
    let count = samples.len() as f64;
    samples.iter().sum::<f64>() / count
}
