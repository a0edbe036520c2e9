//! What messages cost that come at a steady pace.

use std::time::Duration;

use anyhow::{Result, ensure};
use mayfly_tests::{Client, Kind, Signal};
use tokio::time::Instant;

use super::{Scale, run::EXIT_LIMIT};
use crate::{backlog::pace, report::Figure, stage::Stage, usage::processor_seconds, watched::Watched};

/// DESIGN's target, in percent of one core.
const TARGET: f64 = 10.0;
/// 1,000 messages a second.
const GAP: Duration = Duration::from_millis(1);
/// Until it has found its way.
const WARM_UP: Duration = Duration::from_secs(2);
/// The share of the pace that must be kept for the figure to count.
const KEPT: f64 = 0.95;

pub(super) async fn measure(stage: &Stage, client: &Client, scale: Scale) -> Result<Vec<Figure>> {
    let queue = "paced";
    let length = Duration::from_secs(scale.paced_seconds);
    client.declare(queue, Kind::Quorum).await?;
    let program = stage.program("mayfly-worker")?.args(["noop", "--queue", queue]);
    let mut worker = Watched::spawn(stage, program, queue)?;
    worker.until_ready().await?;
    pace(client, queue, GAP, WARM_UP).await?;
    let mut samples = Vec::new();
    for window in 1..=scale.rounds {
        eprintln!("quorum queue, 1,000 messages a second for {length:?}, {window} of {}", scale.rounds);
        let (before, begun) = (processor_seconds(worker.process.pid())?, Instant::now());
        let count = pace(client, queue, GAP, length).await?;
        let used = processor_seconds(worker.process.pid())? - before;
        let took = begun.elapsed().as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let rate = count as f64 / took;
        let kept = rate * GAP.as_secs_f64();
        ensure!(kept >= KEPT, "only {rate:.0} messages a second could be published");
        samples.push(100.0 * used / took);
    }
    ensure!(worker.process.ended()?.is_none(), "the worker has ended\n{}", worker.process.log_tail());
    worker.process.signal(Signal::TERM)?;
    worker.process.exits_with(0, EXIT_LIMIT).await?;
    let case = "processor at 1,000 messages/s, no work";
    Ok(vec![Figure::median("worker", case, "% of a core", &samples).at_most(TARGET)])
}
