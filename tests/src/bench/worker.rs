//! The worker: how fast it is there, what it holds, what it adds to a message.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mayfly_service::report::StatusLine;
use mayfly_tests::{Client, Kind, Signal};
use tokio::time::{Instant, sleep};

use crate::{
    baseline::{Bare, PREFETCH},
    report::{Figure, quantile},
    stage::Stage,
    usage::memory,
    watched::Watched,
};

/// DESIGN's targets: from exec to the registered consumer, and resident while idle.
const START_TARGET: f64 = 20.0;
const MEMORY_TARGET: f64 = 10.0;
/// How long a worker sits idle before its memory is read.
const SETTLE: Duration = Duration::from_millis(100);
/// How long an idle worker stays; taken off the time that it needed.
const MAX_IDLE: Duration = Duration::from_millis(500);
const EXIT_LIMIT: Duration = Duration::from_secs(10);

pub(crate) async fn measure(stage: &Stage, quick: bool) -> Result<Vec<Figure>> {
    let (starts, rounds, messages) = if quick { (30, 3, 5_000) } else { (100, 5, 30_000) };
    let client = stage.node.broker().client().await?;
    let mut figures = starting(stage, &client, starts).await?;
    for (kind, name) in [(Kind::Classic, "classic"), (Kind::Quorum, "quorum")] {
        figures.extend(throughput(stage, &client, kind, name, rounds, messages).await?);
    }
    client.close().await?;
    Ok(figures)
}

/// Starts workers one after the other, each beside a bare client.
async fn starting(stage: &Stage, client: &Client, starts: usize) -> Result<Vec<Figure>> {
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
    let figure = |case, unit, samples: &[f64]| Figure::median("worker", case, unit, samples);
    let start = "exec to consumer registered";
    Ok(vec![
        figure(start, "ms", &times).against(quantile(&bare, 0.5)).at_most(START_TARGET),
        Figure::new("worker", &format!("{start}, 90th percentile"), "ms", quantile(&times, 0.9))
            .against(quantile(&bare, 0.9)),
        figure("resident memory, idle", "MB", &resident).at_most(MEMORY_TARGET),
        figure("resident memory, peak until idle", "MB", &peak),
    ])
}

/// Messages a second with a handler that does nothing, and what memory that takes.
async fn throughput(
    stage: &Stage,
    client: &Client,
    kind: Kind,
    name: &str,
    rounds: usize,
    messages: usize,
) -> Result<Vec<Figure>> {
    client.declare(name, kind).await?;
    let [mut rates, mut bare, mut peaks] = [const { Vec::new() }; 3];
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let rate = |took: Duration| messages as f64 / took.as_secs_f64();
    for round in 1..=rounds {
        eprintln!("{name} queue, {messages} messages, round {round} of {rounds}");
        client.publish(name, messages).await?;
        let mut consumer = Bare::register(&stage.url(), name).await?;
        bare.push(rate(consumer.take(messages).await?));
        consumer.close().await?;

        client.publish(name, messages).await?;
        let program = stage
            .program("mayfly-worker")?
            .args(["sleep", "--queue", name, "--for", "0s"])
            .args(["--prefetch", &PREFETCH.to_string()])
            .args(["--max-idle", &humantime::format_duration(MAX_IDLE).to_string()]);
        let mut worker = Watched::spawn(stage, program, &format!("{name}-{round}"))?;
        let ready = worker.until_ready().await?;
        let (idle, _) = worker.until(|line| matches!(line, StatusLine::Draining { .. })).await?;
        let (_, line) = worker.until(|line| matches!(line, StatusLine::Exit { .. })).await?;
        let StatusLine::Exit { report, .. } = line else { anyhow::bail!("{line:?}") };
        ensure!(report.done == messages as u64, "{} of {messages} messages done", report.done);
        worker.process.exits_with(0, EXIT_LIMIT).await?;
        // It drains when it has been idle for so long since the last message.
        let took = (idle - ready).checked_sub(MAX_IDLE).context("idle too early")?;
        rates.push(rate(took));
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        peaks.push(report.peak_memory as f64 / 1e6);
    }
    Ok(vec![
        Figure::median("worker", &format!("{name} queue, no work"), "messages/s", &rates)
            .against(quantile(&bare, 0.5)),
        Figure::median("worker", &format!("{name} queue, peak memory"), "MB", &peaks),
    ])
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
