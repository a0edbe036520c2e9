//! The quota and its fair parts.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{super::*, scene::*};
use crate::config::{Config, PoolConfig};

/// A pool: weight, workers that it has, launches that it wishes.
type Party = (u32, u32, u32);

fn parties(quota: Option<u32>, parties: &[Party]) -> (Config, Observation, BTreeMap<String, Decision>) {
    let name = |index: usize| format!("p{index}");
    let pools = parties
        .iter()
        .enumerate()
        .map(|(index, (weight, ..))| PoolConfig { weight: *weight, ..pool(&name(index)) })
        .collect();
    let workers = parties
        .iter()
        .enumerate()
        .flat_map(|(index, (_, held, _))| {
            (1..=u64::from(*held)).map(move |serial| Worker { pool: name(index), ..ready(serial) })
        })
        .collect();
    let decisions = parties
        .iter()
        .enumerate()
        .map(|(index, (_, held, wished))| {
            let decision = match wished {
                0 => Decision::Hold(Hold::Empty),
                n => launches((*held..held + n).collect::<Vec<_>>(), DEPTH),
            };
            (name(index), decision)
        })
        .collect();
    let observation = Observation {
        missing_templates: BTreeMap::new(),
        queues: BTreeMap::new(),
        suspects: BTreeMap::new(),
        counters: BTreeMap::new(),
        workers: known(workers),
        state: known(StateRecord::new(ago(100))),
    };
    (Config { quota, ..config(pools) }, observation, decisions)
}

fn granted(decision: &Decision) -> u32 {
    match decision {
        Decision::Launch(launch) => u32::try_from(launch.slots.len()).unwrap(),
        _ => 0,
    }
}

fn grants(quota: u32, of: &[Party]) -> Vec<u32> {
    let (config, observation, decisions) = parties(Some(quota), of);
    share(decisions, &observation, &config).values().map(granted).collect()
}

#[test]
fn the_quota_is_divided_by_need_and_weight() {
    let table: [(&str, u32, Vec<Party>, Vec<u32>); 9] = [
        ("room for all", 10, vec![(1, 2, 3), (1, 0, 4)], vec![3, 4]),
        ("halves", 10, vec![(1, 0, 9), (1, 0, 9)], vec![5, 5]),
        ("by weight", 9, vec![(2, 0, 9), (1, 0, 9)], vec![6, 3]),
        ("an idle part is lent", 10, vec![(1, 0, 9), (1, 0, 0)], vec![9, 0]),
        ("who has more than its part waits", 10, vec![(1, 7, 9), (1, 1, 9)], vec![0, 2]),
        ("a noisy pool never takes another's part", 10, vec![(1, 0, 100), (1, 0, 2)], vec![8, 2]),
        ("the last place goes to the emptier one", 5, vec![(1, 2, 1), (1, 2, 0), (1, 0, 1)], vec![0, 0, 1]),
        ("the emptiest for its weight comes first", 8, vec![(1, 2, 3), (2, 3, 3), (1, 0, 3)], vec![0, 1, 2]),
        ("nothing is free", 3, vec![(1, 2, 1), (1, 1, 1)], vec![0, 0]),
    ];
    for (name, quota, parties, expected) in table {
        assert_eq!(grants(quota, &parties), expected, "{name}");
    }
}

fn late(by: u64) -> LaunchReason {
    LaunchReason::DeadlineAtRisk { ready: 3, age: seconds(by), slo: seconds(100) }
}

#[test]
fn among_equals_the_later_one_is_served_first_then_who_waits_longer() {
    let grants = |reasons: [LaunchReason; 3], launched: [Option<u64>; 3]| {
        let (config, mut observation, mut decisions) = parties(Some(3), &[(1, 0, 3), (1, 0, 3), (1, 0, 3)]);
        let config = Config { quota: Some(1), ..config };
        let Fact::Known { value: record, .. } = &mut observation.state else { unreachable!() };
        for (index, (reason, launched)) in reasons.into_iter().zip(launched).enumerate() {
            let name = format!("p{index}");
            record.pool_mut(&name).last_settled_launch = launched.map(ago);
            if let Some(Decision::Launch(launch)) = decisions.get_mut(&name) {
                launch.reason = reason;
            }
        }
        share(decisions, &observation, &config).values().map(granted).collect::<Vec<_>>()
    };
    let too_old = LaunchReason::MessageTooOld { ready: 3, age: seconds(61), limit: seconds(60) };
    assert_eq!(grants([late(50), late(120), too_old], [None; 3]), [0, 1, 0]);
    assert_eq!(
        grants([late(50), late(101), too_old], [None; 3]),
        [0, 0, 1],
        "61 of 60 is more than 101 of 100"
    );
    assert_eq!(grants([DEPTH; 3], [None; 3]), [1, 0, 0], "as in the file");
    assert_eq!(grants([DEPTH; 3], [Some(5), Some(7), Some(6)]), [0, 1, 0]);
    assert_eq!(grants([DEPTH; 3], [Some(5), Some(7), None]), [0, 0, 1], "never served");
}

#[test]
fn who_gets_nothing_is_told_why_and_who_gets_less_keeps_its_lowest_slots() {
    let (config, observation, decisions) = parties(Some(3), &[(1, 0, 3), (1, 2, 1)]);
    let shared = share(decisions, &observation, &config);
    assert_eq!(shared["p0"], launches([0], DEPTH));
    let held = |age, limit| Hold::QuotaReached { occupied: 2, quota: 3, part: 1, age, limit };
    assert_eq!(shared["p1"], Decision::Hold(held(None, None)));
    let (config, observation, mut decisions) = parties(Some(3), &[(1, 0, 3), (1, 2, 1)]);
    if let Some(Decision::Launch(launch)) = decisions.get_mut("p1") {
        launch.reason = late(150);
    }
    let shared = share(decisions, &observation, &config);
    assert_eq!(shared["p1"], Decision::Hold(held(Some(seconds(150)), Some(seconds(100)))));
}

#[test]
fn without_a_quota_nothing_changes() {
    let (config, observation, decisions) = parties(None, &[(1, 50, 30), (1, 0, 0)]);
    assert_eq!(share(decisions.clone(), &observation, &config), decisions);
}

#[test]
fn intents_and_workers_of_pools_that_are_gone_take_places() {
    let (config, mut observation, decisions) = parties(Some(5), &[(1, 1, 9)]);
    let Fact::Known { value: workers, .. } = &mut observation.workers else { unreachable!() };
    workers.push(Worker { pool: "gone".to_owned(), ..worker(1, Phase::Draining) });
    workers.push(Worker { pool: "gone".to_owned(), ..finished(2, ending(1)) });
    let Fact::Known { value: record, .. } = &mut observation.state else { unreachable!() };
    record.pool_mut("p0").intents.push(intent(9, ago(1)));
    record.pool_mut("lost").intents.push(intent(1, ago(1)));
    // One ready and one intended here, one draining and one intended elsewhere: one place is left.
    assert_eq!(granted(&share(decisions, &observation, &config)["p0"]), 1);
}

proptest! {
    #![proptest_config(cases(500))]
    #[test]
    fn the_quota_holds_is_used_up_and_is_fair(
        quota in 0..40_u32,
        of in prop::collection::vec((1..5_u32, 0..12_u32, 0..12_u32), 1..6),
        lateness in prop::collection::vec(prop::option::of(0..400_u64), 6),
    ) {
        let (config, observation, mut decisions) = parties(Some(quota), &of);
        for (decision, lateness) in decisions.values_mut().zip(lateness) {
            if let (Decision::Launch(launch), Some(by)) = (decision, lateness) {
                launch.reason = late(by);
            }
        }
        let grants: Vec<_> = share(decisions, &observation, &config).values().map(granted).collect();
        let held: u32 = of.iter().map(|(_, held, _)| held).sum();
        let wished: u32 = of.iter().map(|(.., wished)| wished).sum();
        let given: u32 = grants.iter().sum();
        prop_assert_eq!(given, wished.min(quota.saturating_sub(held)), "all that is free is used, no more");
        for ((.., wished), granted) in of.iter().zip(&grants) {
            prop_assert!(granted <= wished);
        }
        // A pool that was given a place it held at or above its fair part, while another below its part
        // still wishes, would have taken that one's place.
        let weights: u32 = of.iter().filter(|(.., wished)| *wished > 0).map(|(weight, ..)| weight).sum();
        let part = |weight: u32| f64::from(quota) * f64::from(weight) / f64::from(weights);
        let starving = of.iter().zip(&grants).any(|((weight, held, wished), granted)| {
            granted < wished && f64::from(held + granted) < part(*weight)
        });
        for ((weight, held, _), granted) in of.iter().zip(&grants) {
            let last_place_was_beyond = *granted > 0 && f64::from(held + granted - 1) >= part(*weight);
            prop_assert!(!(starving && last_place_was_beyond), "{of:?} under {quota}: {grants:?}");
        }
    }
}
