//! What ended workers teach (facts/scaling §3.1, §3.2b): service time, lead times, how many share a node.

use std::{collections::BTreeMap, time::Duration};

use super::{Ending, Estimates, Phase, ServiceTime, Worker};

/// Lead times remembered, of each kind.
const LEAD_TIMES: usize = 20;
/// Done messages that the service time's mean rests on.
const SERVICE_WINDOW: f64 = 200.0;
/// Done messages after which the recent service time has followed a change by two thirds.
const RECENT_WINDOW: f64 = 40.0;
/// Done messages before which the recent service time is noise.
const RECENT_FROM: f64 = 30.0;

/// A change by this part is worth a write.
const NOTABLE: f64 = 0.05;

/// Launch to ready, for workers that find room and for those that wait for a node first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeadTimes {
    /// The 80th percentile; `None` if none was measured.
    pub warm: Option<Duration>,
    /// The 70th percentile; `None` if none was measured.
    pub cold: Option<Duration>,
}

// === impl Estimates ===

impl Estimates {
    /// Folds in a worker that ended in `ending`; `cold` if it had to wait for its node.
    pub(super) fn learn(&mut self, ending: &Ending, cold: bool) {
        if let Some(lead_time) = ending.lead_time {
            let kind = if cold { &mut self.cold_lead_times_ms } else { &mut self.lead_times_ms };
            kind.push(u64::try_from(lead_time.as_millis()).unwrap_or(u64::MAX));
            let surplus = kind.len().saturating_sub(LEAD_TIMES);
            kind.drain(..surplus);
        }
        if let Some(report) = ending.report.as_ref().filter(|report| report.done > 0) {
            // Handler time of retried and dead-lettered messages is in busy_ms as well.
            let handled = report.done + report.retried + report.dead_lettered;
            #[expect(clippy::cast_precision_loss, reason = "an estimate, not an account")]
            let (mean_ms, done) = (report.busy_ms as f64 / handled as f64, report.done as f64);
            self.service_time = Some(ServiceTime::folded(self.service_time, mean_ms, done));
        }
    }

    /// Folds in how many of a pool's workers share a node now: the most ever seen is what fits.
    pub(super) fn learn_places<'a>(&mut self, workers: impl Iterator<Item = &'a Worker>) {
        let most = on_nodes(workers).into_values().max();
        self.pods_per_node = self.pods_per_node.max(most);
    }

    /// The 80th percentile of all remembered lead times; `None` if none was measured.
    #[must_use]
    pub fn lead_time(&self) -> Option<Duration> {
        percentile(self.lead_times_ms.iter().chain(&self.cold_lead_times_ms).copied(), 8)
    }

    /// Lead times, those of the ready `workers` included: they are remembered only once they have ended.
    #[must_use]
    pub fn lead_times(&self, workers: &[&Worker]) -> LeadTimes {
        let of = |cold: bool, remembered: &[u64], tenths: usize| {
            let living =
                workers.iter().filter(|worker| worker.cold == cold).filter_map(|worker| worker.lead_ms());
            // The living are the younger ones: of all, the last count.
            let mut all: Vec<_> = remembered.iter().copied().chain(living).collect();
            let surplus = all.len().saturating_sub(LEAD_TIMES);
            percentile(all.drain(surplus..), tenths)
        };
        LeadTimes { warm: of(false, &self.lead_times_ms, 8), cold: of(true, &self.cold_lead_times_ms, 7) }
    }
}

/// How many of `workers` live on each node that hosts any.
pub(super) fn on_nodes<'a>(workers: impl Iterator<Item = &'a Worker>) -> BTreeMap<&'a str, u32> {
    let mut hosted = BTreeMap::new();
    for worker in workers.filter(|worker| !matches!(worker.phase, Phase::Finished(_) | Phase::Lost)) {
        if let Some(node) = &worker.node {
            *hosted.entry(&**node).or_default() += 1;
        }
    }
    hosted
}

/// The least value that `tenths` of ten do not exceed.
fn percentile(values: impl Iterator<Item = u64>, tenths: usize) -> Option<Duration> {
    let mut sorted: Vec<_> = values.collect();
    sorted.sort_unstable();
    let index = (sorted.len() * tenths).div_ceil(10).checked_sub(1)?;
    sorted.get(index).map(|millis| Duration::from_millis(*millis))
}

// === impl Worker ===

impl Worker {
    /// Launch to ready in milliseconds, while it is ready.
    fn lead_ms(&self) -> Option<u64> {
        let Phase::Ready { since } = self.phase else { return None };
        u64::try_from(since.since(self.launched).as_millis()).ok().filter(|lead| *lead > 0)
    }
}

// === impl ServiceTime ===

impl ServiceTime {
    /// A mean over about the last [`SERVICE_WINDOW`] done messages, and one that forgets sooner: a further mean
    /// weighs as much as the messages that it is of.
    pub(super) fn folded(before: Option<Self>, mean_ms: f64, done: f64) -> Self {
        let weight = done.min(SERVICE_WINDOW);
        let Some(before) = before else { return Self { mean_ms, weight, recent_ms: Some(mean_ms) } };
        let kept = before.weight.min(SERVICE_WINDOW - weight);
        let recent = before.recent_ms.unwrap_or(before.mean_ms);
        let followed = 1.0 - (-done / RECENT_WINDOW).exp();
        Self {
            mean_ms: (before.mean_ms * kept + mean_ms * weight) / (kept + weight),
            weight: kept + weight,
            recent_ms: Some(recent + (mean_ms - recent) * followed),
        }
    }

    /// Whether `other` says something else, as far as planning goes.
    #[must_use]
    pub fn differs_notably(&self, other: &Self) -> bool {
        let (a, b) = (self.seconds(), other.seconds());
        (a - b).abs() > NOTABLE * a.max(b)
    }

    /// What to plan with, in seconds: the greater of both means, so that an increase is followed soon, and a
    /// decrease when it has lasted.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        let recent = self.recent_ms.filter(|_| self.weight >= RECENT_FROM);
        recent.map_or(self.mean_ms, |recent| recent.max(self.mean_ms)) / 1000.0
    }
}
