//! The worker: how fast it is there, what it holds, what it adds to a message.

mod handlers;
mod paced;
mod run;
mod start;
mod throughput;

use anyhow::Result;
use clap::ValueEnum;
use mayfly_tests::process::program_path;

use crate::{report::Figure, stage::Stage};

/// What is measured, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// The program's size.
    Size,
    /// From exec to the registered consumer, and the memory of an idle worker.
    Start,
    /// Messages a second with a handler that does nothing.
    Throughput,
    /// Processor time at 1,000 messages a second.
    Paced,
    /// Messages a second with a process for each.
    Exec,
    /// Messages a second with one child for all.
    Stdio,
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Scale {
    starts: usize,
    rounds: usize,
    /// For those who take 100 at once; a multiple of 50.
    messages: usize,
    /// For those who take one at a time.
    single_messages: usize,
    /// For a process each.
    commands: usize,
    /// A round.
    paced_seconds: u64,
}

/// DESIGN's target, in megabytes.
const SIZE_TARGET: f64 = 10.0;

const FULL: Scale = Scale {
    starts: 50,
    rounds: 7,
    messages: 30_000,
    single_messages: 5_000,
    commands: 2_000,
    paced_seconds: 5,
};
const QUICK: Scale =
    Scale { starts: 10, rounds: 3, messages: 15_000, single_messages: 500, commands: 500, paced_seconds: 2 };

pub(crate) async fn measure(
    stage: &Stage,
    quick: bool,
    only: Option<Part>,
    figures: &mut Vec<Figure>,
) -> Result<()> {
    let scale = if quick { QUICK } else { FULL };
    let client = stage.node.broker().client().await?;
    for part in Part::value_variants() {
        if only.is_some_and(|only| only != *part) {
            continue;
        }
        match part {
            Part::Size => figures.push(size()?),
            Part::Start => figures.extend(start::measure(stage, &client, scale.starts).await?),
            Part::Throughput => throughput::measure(stage, &client, scale, figures).await?,
            Part::Paced => figures.extend(paced::measure(stage, &client, scale).await?),
            Part::Exec => handlers::measure_exec(stage, &client, scale, figures).await?,
            Part::Stdio => figures.push(handlers::measure_stdio(stage, &client, scale).await?),
        }
    }
    client.close().await
}

/// The image holds nothing else.
fn size() -> Result<Figure> {
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let size = std::fs::metadata(program_path("mayfly-worker")?)?.len() as f64 / 1e6;
    Ok(Figure::new("worker", "size of the program, all that its image holds", "MB", size)
        .at_most(SIZE_TARGET))
}
