//! What a decision costs: the policy alone, on a fleet as it is on an ordinary day. Processor time, which does
//! not depend on what else the machine does.

use std::hint::black_box;

use anyhow::Result;
use mayfly_scaler::policy::Sample;

use crate::{report::Figure, usage::processor_seconds};

/// DESIGN's target, in microseconds a pool.
const TARGET: f64 = 10.0;
const POOLS: u32 = 100;
const MANY: u32 = 1_000;
/// Processor time is counted in hundredths of a second.
const ROUND_SECONDS: f64 = 0.5;

pub(super) fn measure(quick: bool) -> Result<Vec<Figure>> {
    let rounds = if quick { 3 } else { 7 };
    // What waits with an slo of five minutes is on time, or asks for a search of what to launch.
    let cases = [
        ("decide(), classic", POOLS, 200, false),
        ("decide(), classic, 1,000 pools", MANY, 200, false),
        ("decide(), with an slo, on time", POOLS, 200, true),
        ("decide(), with an slo, too late", POOLS, 2_000, true),
    ];
    let figure = |(case, pools, waiting, slo)| {
        eprintln!("{case}, {rounds} rounds");
        let sample = Sample::new(pools, waiting, slo);
        let samples = (0..rounds).map(|_| round(&sample, pools)).collect::<Result<Vec<_>>>()?;
        Ok(Figure::median("scaler", case, "µs a pool", &samples).at_most(TARGET))
    };
    cases.into_iter().map(figure).collect()
}

fn round(sample: &Sample, pools: u32) -> Result<f64> {
    let own = i32::try_from(std::process::id())?;
    let (begun, mut decisions) = (processor_seconds(own)?, 0.0);
    loop {
        for _ in 0..10 {
            black_box(black_box(sample).decide());
            decisions += f64::from(pools);
        }
        let used = processor_seconds(own)? - begun;
        if used >= ROUND_SECONDS {
            return Ok(used * 1e6 / decisions);
        }
    }
}
