//! Divides the quota over the pools that wish to launch (facts/scaling §3.3): nobody takes another's fair
//! part, an idle part is lent.

use std::{collections::BTreeMap, time::Duration};

use super::{Counts, Decision, Hold, Launch, LaunchReason, Observation};
use crate::{
    config::{Config, PoolConfig},
    time::Time,
};

/// What decides who gets the next place.
struct Claim {
    is_below_its_part: bool,
    /// How late it is, measured by its promise.
    lateness: f64,
    held: u64,
    weight: u64,
    /// When it launched last.
    served: Option<Time>,
}

/// Trims launches to the quota. Everything else passes unchanged.
#[must_use]
pub fn share(
    mut decisions: BTreeMap<String, Decision>,
    observation: &Observation,
    config: &Config,
) -> BTreeMap<String, Decision> {
    let (Some(quota), Some(workers), Some(record)) =
        (config.quota, observation.workers.known(), observation.state.known())
    else {
        return decisions;
    };
    let occupied_by: BTreeMap<&str, u32> = config
        .pools
        .iter()
        .map(|pool| (&*pool.name, Counts::of(&pool.name, workers, &record.pool(&pool.name)).occupied()))
        .collect();
    // Workers of pools that are no longer configured take places as well.
    let strangers = workers
        .iter()
        .map(|worker| &*worker.pool)
        .chain(record.pools.keys().map(String::as_str))
        .filter(|pool| !occupied_by.contains_key(pool))
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .map(|pool| Counts::of(pool, workers, &record.pool(pool)).occupied());
    let occupied = occupied_by.values().copied().chain(strangers).sum::<u32>();
    let mut free = quota.saturating_sub(occupied);
    let weights: u64 = config
        .pools
        .iter()
        .filter(|pool| wish(&decisions, &pool.name) > 0)
        .map(|pool| u64::from(pool.weight))
        .sum();
    let mut granted: BTreeMap<&str, u32> = BTreeMap::new();
    while free > 0 {
        let wishing = config
            .pools
            .iter()
            .filter(|pool| wish(&decisions, &pool.name) > granted.get(&*pool.name).copied().unwrap_or(0));
        let claim = |pool: &PoolConfig| {
            let held = occupied_by[&*pool.name] + granted.get(&*pool.name).copied().unwrap_or(0);
            Claim {
                is_below_its_part: u64::from(held) * weights < u64::from(quota) * u64::from(pool.weight),
                lateness: decisions.get(&pool.name).map_or(0.0, lateness),
                held: u64::from(held),
                weight: u64::from(pool.weight),
                served: record.pool(&pool.name).last_launch(),
            }
        };
        // Of equals the one that stands first in the file.
        let next = wishing
            .map(|pool| (claim(pool), pool))
            .reduce(|first, other| if other.0.goes_before(&first.0) { other } else { first });
        let Some((_, next)) = next else { break };
        *granted.entry(&next.name).or_default() += 1;
        free -= 1;
    }
    let granted: BTreeMap<String, u32> =
        granted.into_iter().map(|(name, count)| (name.to_owned(), count)).collect();
    for (name, decision) in &mut decisions {
        if let Decision::Launch(Launch { slots, .. }) = decision {
            slots.truncate(usize::try_from(granted.get(name).copied().unwrap_or(0)).unwrap_or(0));
            if slots.is_empty() {
                let weight = config.pool(name).map_or(0, |pool| u64::from(pool.weight));
                let part = (u64::from(quota) * weight).checked_div(weights).unwrap_or(0);
                let part = u32::try_from(part).unwrap_or(quota);
                let (age, limit) = latest(decision).unzip();
                *decision = Decision::Hold(Hold::QuotaReached { occupied, quota, part, age, limit });
            }
        }
    }
    decisions
}

/// How old the latest message of a pool is or will be, and how old it may be, as far as its wish tells.
const fn latest(decision: &Decision) -> Option<(Duration, Duration)> {
    let Decision::Launch(launch) = decision else { return None };
    match launch.reason {
        LaunchReason::DeadlineAtRisk { age, slo: limit, .. }
        | LaunchReason::MessageTooOld { age, limit, .. } => Some((age, limit)),
        _ => None,
    }
}

/// The one measured by the other.
fn lateness(decision: &Decision) -> f64 {
    latest(decision)
        .map_or(0.0, |(age, limit)| age.as_secs_f64() / limit.as_secs_f64().max(f64::MIN_POSITIVE))
}

// === impl Claim ===

impl Claim {
    /// Whether its pool gets a place before the other's: whoever is below its fair part (quota · weight ÷ all
    /// weights) before everybody who is not; then the later one, the emptier one for its weight, and the one
    /// that was served longer ago.
    fn goes_before(&self, other: &Self) -> bool {
        other
            .is_below_its_part
            .cmp(&self.is_below_its_part)
            .then(other.lateness.total_cmp(&self.lateness))
            .then((self.held * other.weight).cmp(&(other.held * self.weight)))
            .then(self.served.cmp(&other.served))
            .is_lt()
    }
}

fn wish(decisions: &BTreeMap<String, Decision>, pool: &str) -> u32 {
    match decisions.get(pool) {
        Some(Decision::Launch(launch)) => u32::try_from(launch.slots.len()).unwrap_or(u32::MAX),
        _ => 0,
    }
}
