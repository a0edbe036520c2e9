//! The saturation guard: what is behind the workers is busy.

use proptest::prelude::*;

use super::{super::*, scene::*};
use crate::{
    config::{PoolConfig, SloConfig, Start},
    time::Time,
};

/// A pool with work, seen second by second.
struct Watched {
    pool: PoolConfig,
    memory: Memory,
    observation: Observation,
    now: Time,
    counters: Counters,
}

impl Watched {
    fn new(saturation_guard: bool) -> Self {
        let scene = base();
        let pool = PoolConfig { saturation_guard, max_workers: None, ..pool("p") };
        let counters = Counters { acknowledged: Some(1000), unacked: Some(0), ..Counters::default() };
        let (memory, observation) = (Memory::default(), scene.observation());
        Self { pool, memory, observation, now: NOW, counters }
    }

    /// `ready` messages wait for `seconds` in which `workers` are ready, `done` messages are done a second and
    /// `unacked` ones are in flight.
    fn see(&mut self, seconds_seen: u64, ready_messages: u64, workers: u64, done: u64, unacked: u64) {
        for _ in 0..seconds_seen {
            let at = self.now;
            self.counters.unacked = Some(unacked);
            let value = QueueFacts::Present { ready: ready_messages, consumers: workers };
            let workers = (1..=workers).map(ready).collect();
            self.observation.queues = [("q".to_owned(), Fact::Known { value, at })].into();
            self.observation.counters =
                [("q".to_owned(), Fact::Known { value: self.counters.clone(), at })].into();
            self.observation.workers = Fact::Known { value: workers, at };
            if let Fact::Known { at: known, .. } = &mut self.observation.state {
                *known = at;
            }
            let config = config(vec![self.pool.clone()]);
            self.memory = remember(std::mem::take(&mut self.memory), &self.observation, &config);
            self.now = at + seconds(1);
            self.counters.acknowledged = self.counters.acknowledged.map(|total| total + done);
        }
    }

    fn decide(&self) -> Decision {
        let config = config(vec![self.pool.clone()]);
        decide(&self.memory, &self.observation, &config, self.now - seconds(1))["p"].clone()
    }

    fn reason(&self) -> &'static str {
        self.decide().as_str()
    }
}

/// Three workers did ten messages a second of 0.3 s; five do eleven (one more than a gain) or `done` of them.
fn five_do(done: u64, unacked: u64) -> Watched {
    let mut watched = Watched::new(true);
    watched.see(10, 100, 3, 10, 3);
    watched.see(10, 100, 5, done, unacked);
    watched
}

#[test]
fn no_launch_where_the_last_two_workers_only_made_work_slower() {
    // 0.3 s a message, then 0.5 s; no more a second.
    let Decision::Hold(hold) = five_do(10, 5).decide() else { panic!("launched") };
    let expected = Hold::DownstreamSaturated {
        workers: [3, 5],
        per_minute: [600, 600],
        service: [std::time::Duration::from_millis(300), std::time::Duration::from_millis(500)],
    };
    assert_eq!(hold, expected);
    assert_eq!(five_do(11, 11).reason(), "DepthAbove", "a gain of a tenth is one");
    assert_eq!(five_do(10, 4).reason(), "DownstreamSaturated");
    assert_eq!(five_do(10, 3).reason(), "DepthAbove", "no slower");
}

#[test]
fn the_guard_is_off_unless_asked_for() {
    let mut watched = five_do(10, 5);
    watched.pool.saturation_guard = false;
    assert_eq!(watched.reason(), "DepthAbove");
    assert!(!PoolConfig { ..pool("p") }.saturation_guard);
}

#[test]
fn a_comparison_goes_back_two_workers_or_more() {
    let mut watched = Watched::new(true);
    watched.see(10, 100, 3, 10, 3);
    watched.see(10, 100, 4, 10, 9);
    assert_eq!(watched.reason(), "DepthAbove", "one worker more tells nothing");
    watched.see(3, 100, 5, 10, 9);
    watched.see(10, 100, 6, 10, 9);
    assert_eq!(watched.reason(), "DepthAbove", "as slow as with 4");
    watched.see(10, 100, 8, 10, 14);
    assert_eq!(watched.reason(), "DownstreamSaturated", "slower than with 6");
    let mut watched = Watched::new(true);
    watched.see(10, 100, 3, 10, 3);
    watched.see(3, 100, 5, 10, 9);
    watched.see(10, 100, 6, 10, 9);
    assert_eq!(watched.reason(), "DownstreamSaturated", "with 5 there was no time to measure");
}

#[test]
fn a_pool_with_an_slo_is_guarded_as_well() {
    let mut watched = Watched::new(true);
    let slo = SloConfig {
        targets: vec![seconds(600)],
        pods_per_node: None,
        max_pending: None,
        start: Start::Immediate,
    };
    watched.pool.slo = Some(slo);
    watched.see(10, 100_000, 3, 10, 3);
    watched.see(10, 100_000, 5, 10, 5);
    assert_eq!(watched.reason(), "DownstreamSaturated");
    watched.pool.saturation_guard = false;
    assert_eq!(watched.reason(), "DeadlineAtRisk");
}

#[test]
fn workers_that_wait_for_work_have_no_pace() {
    let mut watched = Watched::new(true);
    watched.see(10, 100, 3, 10, 3);
    watched.see(10, 0, 5, 10, 5);
    watched.see(1, 100, 5, 10, 5);
    assert_eq!(watched.reason(), "DepthAbove");
}

#[test]
fn what_was_done_with_another_number_of_workers_is_no_part_of_a_pace() {
    let mut watched = Watched::new(true);
    watched.see(10, 100, 3, 10, 3);
    for _ in 0..3 {
        watched.see(3, 100, 4, 10, 5);
        watched.see(3, 100, 5, 10, 5);
    }
    assert_eq!(watched.reason(), "DepthAbove");
}

#[test]
fn between_two_readings_as_much_is_in_flight_as_at_both_of_them_on_average() {
    let mut watched = Watched::new(true);
    watched.see(10, 100, 3, 10, 3);
    watched.see(1, 100, 5, 10, 100);
    watched.see(5, 100, 5, 10, 0);
    assert_eq!(watched.reason(), "DownstreamSaturated", "1 s a message");
}

#[test]
fn what_is_not_measured_holds_nothing() {
    // Without counters.
    let mut watched = Watched::new(true);
    watched.counters = Counters::default();
    watched.see(10, 100, 3, 10, 3);
    watched.see(10, 100, 5, 10, 9);
    assert_eq!(watched.reason(), "DepthAbove");
    // While nothing waits, workers are slow for want of work.
    let mut watched = Watched::new(true);
    watched.see(10, 100, 3, 10, 3);
    watched.see(10, 0, 5, 1, 5);
    watched.see(1, 100, 5, 1, 5);
    assert_eq!(watched.reason(), "DepthAbove");
    // For too short a time.
    let mut watched = five_do(10, 5);
    watched.see(3, 100, 7, 10, 20);
    assert_eq!(watched.reason(), "DepthAbove");
    // With too few messages.
    let mut watched = Watched::new(true);
    watched.see(10, 100, 3, 1, 3);
    watched.see(10, 100, 5, 1, 9);
    assert_eq!(watched.reason(), "DepthAbove");
}

#[test]
fn counters_that_begin_anew_begin_the_measurement_anew() {
    let mut watched = Watched::new(true);
    watched.see(10, 100, 3, 10, 3);
    watched.see(4, 100, 5, 10, 9);
    watched.counters.acknowledged = Some(0);
    watched.see(4, 100, 5, 10, 9);
    assert_eq!(watched.reason(), "DepthAbove");
    watched.see(2, 100, 5, 10, 9);
    assert_eq!(watched.reason(), "DownstreamSaturated");
}

#[test]
fn it_is_tried_again_after_ten_minutes_and_at_once_when_work_gets_quicker() {
    let mut watched = five_do(10, 5);
    watched.see(560, 100, 5, 10, 5);
    assert_eq!(watched.reason(), "DownstreamSaturated");
    watched.see(100, 100, 5, 10, 5);
    assert_eq!(watched.reason(), "DepthAbove");
    let mut watched = five_do(10, 5);
    watched.see(10, 100, 5, 20, 5);
    assert_eq!(watched.reason(), "DepthAbove");
}

#[test]
fn workers_are_kept_warm_all_the_same() {
    let mut watched = five_do(10, 5);
    watched.pool.min_workers = 6;
    assert_eq!(watched.reason(), "BelowMinimum");
}

proptest! {
    #![proptest_config(cases(200))]
    #[test]
    fn it_holds_if_and_only_if_throughput_did_not_rise_and_work_got_slower(
        done in (4..40_u64, 4..40_u64),
        unacked in (1..40_u64, 1..40_u64),
        guard in any::<bool>(),
    ) {
        let mut watched = Watched::new(guard);
        watched.see(10, 100, 3, done.0, unacked.0);
        watched.see(10, 100, 5, done.1, unacked.1);
        // In whole numbers: less than a tenth more a second, more than 30 % more time a message.
        let gained = done.1 * 10 >= done.0 * 11;
        let slowed = unacked.1 * done.0 * 10 > unacked.0 * done.1 * 13;
        let expected = if guard && !gained && slowed { "DownstreamSaturated" } else { "DepthAbove" };
        prop_assert_eq!(watched.reason(), expected);
    }
}
