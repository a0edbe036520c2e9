//! What a decision costs: the policy alone, on a fleet as it is on an ordinary day. Processor time, which does
//! not depend on what else the machine does.

use std::hint::black_box;

use anyhow::Result;
use mayfly_scaler::policy::Sample;

use crate::{report::Figure, usage::processor_seconds};

/// DESIGN's target, in microseconds a pool.
const TARGET: f64 = 10.0;
const POOLS: u32 = 100;
/// Processor time is counted in hundredths of a second.
const ROUND_SECONDS: f64 = 0.5;

pub(super) fn measure(quick: bool) -> Result<Vec<Figure>> {
    let rounds = if quick { 3 } else { 7 };
    let figure = |case: &str, slo: bool| -> Result<Figure> {
        eprintln!("{case}, {rounds} rounds");
        let sample = Sample::new(POOLS, slo);
        let samples = (0..rounds).map(|_| round(&sample)).collect::<Result<Vec<_>>>()?;
        Ok(Figure::median("scaler", case, "µs a pool", &samples).at_most(TARGET))
    };
    Ok(vec![figure("decide(), classic", false)?, figure("decide(), with an slo", true)?])
}

fn round(sample: &Sample) -> Result<f64> {
    let own = i32::try_from(std::process::id())?;
    let (begun, mut decisions) = (processor_seconds(own)?, 0.0);
    loop {
        for _ in 0..10 {
            black_box(black_box(sample).decide());
            decisions += f64::from(POOLS);
        }
        let used = processor_seconds(own)? - begun;
        if used >= ROUND_SECONDS {
            return Ok(used * 1e6 / decisions);
        }
    }
}
