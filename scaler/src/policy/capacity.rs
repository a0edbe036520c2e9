//! Workers over time: how much work they can have done by when.

/// When how many workers begin to serve, in seconds from now, the soonest first.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Capacity {
    joining: Vec<(f64, u32)>,
}

// === impl Capacity ===

impl Capacity {
    /// `workers` join in `after` seconds.
    pub(super) fn join(&mut self, after: f64, workers: u32) {
        if workers > 0 {
            let place = self.joining.partition_point(|(soonest, _)| *soonest <= after);
            self.joining.insert(place, (after, workers));
        }
    }

    /// Seconds until `work` seconds of work are done, and the next can begin, while other work takes `load`
    /// workers all the time; infinite if that is never.
    pub(super) fn until(&self, work: f64, load: f64) -> f64 {
        let (mut time, mut done, mut speed) = (0.0, 0.0, -load);
        for (after, workers) in &self.joining {
            if speed > 0.0 {
                let finished = time + (work - done) / speed;
                if finished <= *after {
                    return finished;
                }
                done += speed * (after - time);
            }
            time = *after;
            speed += f64::from(*workers);
        }
        if speed > 0.0 { time + (work - done) / speed } else { f64::INFINITY }
    }
}
