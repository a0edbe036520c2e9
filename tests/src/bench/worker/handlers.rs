//! What a message costs that a process works on: a new one for each, or one that stays.

use anyhow::Result;
use mayfly_tests::{Client, process::program_path};

use super::{
    Scale,
    run::{Arguments, baseline, empty},
};
use crate::{backlog::fill, report::Figure, stage::Stage};

/// DESIGN's targets: the ratio to the same processes without messages, and messages a second.
const EXEC_TARGET: f64 = 0.9;
const STDIO_TARGET: f64 = 5_000.0;
const EXEC_CONCURRENCIES: [&str; 2] = ["1", "2"];
const STDIO_CONCURRENCY: &str = "16";

/// Who runs a process for each message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Runner {
    Worker,
    /// Nobody takes messages.
    Processes,
    /// With its broker on the same processors, a client can't be faster.
    Bare,
}

const RUNNERS: [Runner; 3] = [Runner::Worker, Runner::Processes, Runner::Bare];

/// A process for each message.
pub(super) async fn measure_exec(
    stage: &Stage,
    client: &Client,
    scale: Scale,
    figures: &mut Vec<Figure>,
) -> Result<()> {
    for concurrency in EXEC_CONCURRENCIES {
        figures.extend(exec(stage, client, scale, concurrency).await?);
    }
    Ok(())
}

/// A worker that finds nothing creates its queue and those for failures.
async fn declare(stage: &Stage, queue: &str, arguments: Arguments<'_>) -> Result<()> {
    empty(stage, &format!("{queue}-declare"), queue, 0, arguments).await.map(drop)
}

async fn exec(stage: &Stage, client: &Client, scale: Scale, concurrency: &str) -> Result<[Figure; 2]> {
    let queue = format!("exec-{concurrency}");
    let command = program_path("bench-swallow")?;
    let options = ["--declare", "--concurrency", concurrency];
    let arguments = Arguments { handler: "exec", options: &options, command: Some(&command) };
    declare(stage, &queue, arguments).await?;
    let count = scale.commands;
    let [mut worker, mut processes, mut bare] = [const { Vec::new() }; 3];
    for round in 1..=scale.rounds {
        eprintln!("a process for each message, concurrency {concurrency}, round {round} of {}", scale.rounds);
        let mut runners = RUNNERS;
        if round % 2 == 0 {
            runners.reverse();
        }
        for runner in runners {
            let name = format!("exec-{concurrency}-{round}-{runner:?}");
            if runner != Runner::Processes {
                fill(client, &queue, count).await?;
            }
            let all = count.to_string();
            let common = ["--count", &all, "--concurrency", concurrency, "--program"];
            match runner {
                Runner::Worker => worker.push(empty(stage, &name, &queue, count, arguments).await?.rate),
                Runner::Processes => {
                    let program = stage.baseline()?.arg("spawning").args(common).arg(&command);
                    processes.push(baseline(program, &name, count).await?);
                }
                Runner::Bare => {
                    let program = stage.baseline()?.args(["running", "--queue", &queue]).args(common);
                    bare.push(baseline(program.arg(&command), &name, count).await?);
                }
            }
        }
    }
    let paired = |what: &str, theirs: &[f64]| {
        let case = format!("exec, concurrency {concurrency}, {what}");
        Figure::paired("worker", &case, "messages/s", &worker, theirs)
    };
    Ok([
        paired("to the same processes without messages", &processes).at_least_times(EXEC_TARGET),
        paired("to a bare client that runs them", &bare),
    ])
}

/// One child that answers at once.
pub(super) async fn measure_stdio(stage: &Stage, client: &Client, scale: Scale) -> Result<Figure> {
    let queue = "stdio";
    let command = program_path("bench-echo")?;
    let options = ["--declare", "--concurrency", STDIO_CONCURRENCY];
    let arguments = Arguments { handler: "stdio", options: &options, command: Some(&command) };
    declare(stage, queue, arguments).await?;
    let mut rates = Vec::new();
    for round in 1..=scale.rounds {
        eprintln!("one child for all messages, round {round} of {}", scale.rounds);
        fill(client, queue, scale.messages).await?;
        rates.push(empty(stage, &format!("stdio-{round}"), queue, scale.messages, arguments).await?.rate);
    }
    let case = format!("stdio, concurrency {STDIO_CONCURRENCY}");
    Ok(Figure::median("worker", &case, "messages/s", &rates).at_least(STDIO_TARGET))
}
