//! Messages a second with a handler that does nothing: what the worker itself adds.

use anyhow::{Context, Result};
use mayfly_tests::{Client, Kind, Program};

use super::{
    Scale,
    run::{Arguments, Emptied, baseline, empty},
};
use crate::{backlog::fill, baseline::PREFETCH, report::Figure, stage::Stage};

/// DESIGN's targets, as ratios: to the bare client, and to one that takes one message at a time.
const BARE_TARGET: f64 = 0.95;
const PIKA_TARGETS: [(Kind, f64); 2] = [(Kind::Classic, 4.0), (Kind::Quorum, 10.0)];
/// Names a Python that has pika.
const PYTHON: &str = "MAYFLY_BENCH_PYTHON";
const PIKA_CONSUMER: &str = include_str!("../pika.py");

/// Who takes a queue's messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Taker {
    Bare,
    /// With the bare client's prefetch.
    Worker,
    /// With the prefetch that it finds by itself.
    WorkerByItself,
    Pika,
}

const TAKERS: [Taker; 4] = [Taker::Bare, Taker::Worker, Taker::WorkerByItself, Taker::Pika];

pub(super) async fn measure(
    stage: &Stage,
    client: &Client,
    scale: Scale,
    figures: &mut Vec<Figure>,
) -> Result<()> {
    for (kind, pika_target) in PIKA_TARGETS {
        figures.extend(measure_kind(stage, client, scale, kind, pika_target).await?);
    }
    Ok(())
}

async fn measure_kind(
    stage: &Stage,
    client: &Client,
    scale: Scale,
    kind: Kind,
    pika_target: f64,
) -> Result<Vec<Figure>> {
    let queue = match kind {
        Kind::Classic => "classic",
        Kind::Quorum => "quorum",
    };
    client.declare(queue, kind).await?;
    let [mut bare, mut worker, mut by_itself, mut pika, mut peaks] = [const { Vec::new() }; 5];
    for round in 1..=scale.rounds {
        eprintln!("{queue} queue, no work, round {round} of {}", scale.rounds);
        let mut takers = TAKERS;
        if round % 2 == 0 {
            takers.reverse();
        }
        for taker in takers {
            let count = if taker == Taker::Pika { scale.single_messages } else { scale.messages };
            fill(client, queue, count).await?;
            let name = format!("{queue}-{round}-{taker:?}");
            match taker {
                Taker::Bare => bare.push(baseline(bare_client(stage, queue, count)?, &name, count).await?),
                Taker::Pika => pika.push(baseline(pika_client(stage, queue, count)?, &name, count).await?),
                Taker::Worker => {
                    let prefetch = PREFETCH.to_string();
                    let Emptied { rate, peak } =
                        empty(stage, &name, queue, count, no_work(&["--prefetch", &prefetch])).await?;
                    worker.push(rate);
                    peaks.push(peak);
                }
                Taker::WorkerByItself => {
                    by_itself.push(empty(stage, &name, queue, count, no_work(&[])).await?.rate);
                }
            }
        }
    }
    let case = format!("{queue} queue, no work");
    let paired = |what: &str, ours: &[f64], theirs: &[f64]| {
        Figure::paired("worker", &format!("{case}, {what}"), "messages/s", ours, theirs)
    };
    Ok(vec![
        paired("to a bare client, prefetch 100", &worker, &bare).at_least_times(BARE_TARGET),
        paired("to a bare client, prefetch by itself", &by_itself, &bare),
        paired("to pika, prefetch 1", &worker, &pika).at_least_times(pika_target),
        Figure::median("worker", &format!("{case}, peak memory"), "MB", &peaks),
    ])
}

const fn no_work<'a>(options: &'a [&'a str]) -> Arguments<'a> {
    Arguments { handler: "noop", options, command: None }
}

fn bare_client(stage: &Stage, queue: &str, count: usize) -> Result<Program> {
    Ok(stage.baseline()?.args(["bare", "--queue", queue, "--count", &count.to_string()]))
}

fn pika_client(stage: &Stage, queue: &str, count: usize) -> Result<Program> {
    let python = std::env::var_os(PYTHON)
        .with_context(|| format!("{PYTHON} does not name a Python that has pika: run bin/bench"))?;
    Ok(Program::new(python.as_ref(), stage.directory.path())
        .args(["-c", PIKA_CONSUMER, &stage.url(), queue])
        .arg(count.to_string()))
}
