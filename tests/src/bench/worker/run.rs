//! Workers and baselines that empty a queue, and how fast they do.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use mayfly_service::report::StatusLine;
use mayfly_tests::{Process, Program};

use crate::{stage::Stage, watched::Watched};

/// How long an idle worker stays; taken off the time that it needed.
const MAX_IDLE: Duration = Duration::from_millis(300);
pub(super) const EXIT_LIMIT: Duration = Duration::from_secs(10);
/// How long a baseline may take.
const LIMIT: Duration = Duration::from_mins(2);

/// A worker's command line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arguments<'a> {
    /// The subcommand.
    pub(super) handler: &'a str,
    pub(super) options: &'a [&'a str],
    pub(super) command: Option<&'a Path>,
}

/// What a worker needed to empty a queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Emptied {
    /// Messages a second.
    pub(super) rate: f64,
    /// The most memory that it held, in megabytes.
    pub(super) peak: f64,
}

/// Runs a worker until it has emptied `queue`, which holds `count` messages.
pub(super) async fn empty(
    stage: &Stage,
    name: &str,
    queue: &str,
    count: usize,
    arguments: Arguments<'_>,
) -> Result<Emptied> {
    let program = stage
        .program("mayfly-worker")?
        .arg(arguments.handler)
        .args(["--queue", queue, "--max-idle", &humantime::format_duration(MAX_IDLE).to_string()])
        .args(arguments.options);
    let program = match arguments.command {
        Some(command) => program.arg("--").arg(command),
        None => program,
    };
    let mut worker = Watched::spawn(stage, program, name)?;
    let (_, ready) = worker.until(|line| matches!(line, StatusLine::Ready { .. })).await?;
    let (_, draining) = worker.until(|line| matches!(line, StatusLine::Draining { .. })).await?;
    let (_, line) = worker.until(|line| matches!(line, StatusLine::Exit { .. })).await?;
    let StatusLine::Exit { report, .. } = line else { anyhow::bail!("{line:?}") };
    ensure!(report.done == count as u64, "{} of {count} messages done", report.done);
    worker.process.exits_with(0, EXIT_LIMIT).await?;
    // By its own clock: on a busy machine its lines are read late. It drains when it has been idle for so long
    // since the last message, and has looked at its queue: some milliseconds more than a baseline needs.
    let took = time(&draining).saturating_sub(time(&ready)).saturating_sub(MAX_IDLE);
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    let peak = report.peak_memory as f64 / 1e6;
    Ok(Emptied { rate: rate(count, took), peak })
}

/// When the worker wrote it, since the Unix epoch.
const fn time(line: &StatusLine) -> Duration {
    let (StatusLine::Started { at, .. }
    | StatusLine::Ready { at }
    | StatusLine::Draining { at }
    | StatusLine::Exit { at, .. }) = line;
    Duration::from_millis(*at)
}

/// Runs a baseline, which prints the seconds that it took for `count` of them.
pub(super) async fn baseline(program: Program, name: &str, count: usize) -> Result<f64> {
    let mut process: Process = program.spawn(name)?;
    process.exits_with(0, LIMIT).await?;
    let seconds: f64 = process.stdout()?.trim().parse().with_context(|| process.log_tail())?;
    Ok(rate(count, Duration::try_from_secs_f64(seconds)?))
}

fn rate(count: usize, took: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let count = count as f64;
    count / took.as_secs_f64()
}
