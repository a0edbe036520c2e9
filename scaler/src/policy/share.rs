//! Divides the quota over the pools that wish to launch (facts/scaling §3.3): nobody takes another's fair
//! part, an idle part is lent.

use std::collections::BTreeMap;

use super::{Counts, Decision, Hold, Launch, Observation};
use crate::config::{Config, PoolConfig};

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
    let mut granted: BTreeMap<&str, u32> = BTreeMap::new();
    while free > 0 {
        let wishing = config
            .pools
            .iter()
            .filter(|pool| wish(&decisions, &pool.name) > granted.get(&*pool.name).copied().unwrap_or(0));
        let held =
            |pool: &PoolConfig| occupied_by[&*pool.name] + granted.get(&*pool.name).copied().unwrap_or(0);
        // The least of held ÷ weight first, in integers: whoever is below its fair part (quota · weight ÷ all
        // weights) is before everybody who is not.
        let fill = |one: &PoolConfig, other: &PoolConfig| u64::from(held(one)) * u64::from(other.weight);
        let Some(next) = wishing.min_by(|a, b| fill(a, b).cmp(&fill(b, a))) else { break };
        *granted.entry(&next.name).or_default() += 1;
        free -= 1;
    }
    for (name, decision) in &mut decisions {
        if let Decision::Launch(Launch { slots, .. }) = decision {
            slots.truncate(usize::try_from(granted.get(&**name).copied().unwrap_or(0)).unwrap_or(0));
            if slots.is_empty() {
                *decision = Decision::Hold(Hold::QuotaReached { occupied, quota });
            }
        }
    }
    decisions
}

fn wish(decisions: &BTreeMap<String, Decision>, pool: &str) -> u32 {
    match decisions.get(pool) {
        Some(Decision::Launch(launch)) => u32::try_from(launch.slots.len()).unwrap_or(u32::MAX),
        _ => 0,
    }
}
