//! From exec to the registered consumer, and what an idle worker holds.

use std::time::Duration;

use anyhow::{Result, ensure};
use mayfly_tests::{Client, Kind, Signal};
use tokio::time::{Instant, sleep};

use super::run::EXIT_LIMIT;
use crate::{
    baseline::Bare,
    report::{Figure, quantile},
    stage::Stage,
    usage::memory,
    watched::Watched,
};

/// DESIGN's targets, in milliseconds and megabytes.
const START_TARGET: f64 = 20.0;
const MEMORY_TARGET: f64 = 10.0;
/// How long a worker sits idle before its memory is read.
const SETTLE: Duration = Duration::from_millis(100);

/// Starts workers one after the other, each beside a bare client.
pub(super) async fn measure(stage: &Stage, client: &Client, starts: usize) -> Result<Vec<Figure>> {
    client.declare("starts", Kind::Quorum).await?;
    let [mut times, mut bare, mut resident, mut peak] = [const { Vec::new() }; 4];
    for number in 1..=starts {
        if number % 10 == 1 {
            eprintln!("start {number} of {starts}");
        }
        let program = stage.program("mayfly-worker")?.args(["sleep", "--queue", "starts"]);
        let mut worker = Watched::spawn(stage, program, &format!("start-{number}"))?;
        let ready = worker.until_ready().await?;
        times.push(milliseconds(ready - worker.begun));
        ensure!(client.depth("starts").await?.consumers == 1, "the broker sees no consumer");
        sleep(SETTLE).await;
        let memory = memory(worker.process.pid())?;
        resident.push(memory.resident);
        peak.push(memory.peak);
        worker.process.signal(Signal::TERM)?;
        worker.process.exits_with(0, EXIT_LIMIT).await?;

        let begun = Instant::now();
        let consumer = Bare::register(&stage.url(), "starts").await?;
        bare.push(milliseconds(begun.elapsed()));
        consumer.close().await?;
    }
    let start = "exec to consumer registered";
    Ok(vec![
        Figure::paired("worker", start, "ms", &times, &bare).at_most(START_TARGET),
        Figure::new("worker", &format!("{start}, 90th percentile"), "ms", quantile(&times, 0.9))
            .against(quantile(&bare, 0.9)),
        Figure::median("worker", "resident memory, idle", "MB", &resident).at_most(MEMORY_TARGET),
        Figure::median("worker", "resident memory, peak until idle", "MB", &peak),
    ])
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
