//! One queue, nothing to do.

use std::time::Duration;

use anyhow::Result;
use mayfly_tests::Kind;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::{SETTLE, connected, mean, percent, start, watched};
use crate::{report::Figure, stage::Stage, usage::memory};

/// DESIGN's targets: megabytes resident, percent of one core.
const MEMORY_TARGET: f64 = 15.0;
const PROCESSOR_TARGET: f64 = 1.0;
/// The scaler's default; the bare client asks as often.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);

pub(super) async fn measure(stage: &Stage, quick: bool, figures: &mut Vec<Figure>) -> Result<()> {
    let (windows, length) = if quick { (2, Duration::from_secs(3)) } else { (4, Duration::from_secs(10)) };
    let client = stage.node.broker().client().await?;
    client.declare("idle", Kind::Quorum).await?;

    let command = ["mayfly-worker", "sleep", "--queue", "idle"];
    let mut scaler = start(stage, "idle", "250ms", &["idle".to_owned()], &command, &[])?;
    connected(stage, &mut scaler).await?;
    sleep(SETTLE).await;
    let (mut processor, mut resident) = (Vec::new(), Vec::new());
    for number in 1..=windows {
        eprintln!("idle scaler, {length:?}, {number} of {windows}");
        let (used, held) = watched(scaler.pid(), length).await?;
        processor.push(used);
        resident.push(held);
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
