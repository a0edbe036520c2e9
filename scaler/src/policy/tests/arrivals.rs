//! How fast messages arrive.

use proptest::prelude::*;

use super::{super::*, scene::*};
use crate::{config::Config, time::Time};

/// A pool with these queues, looked at four times a second.
struct Watch {
    config: Config,
    observation: Observation,
    memory: Memory,
    millis: u64,
}

// === impl Watch ===

impl Watch {
    fn new(queues: &[&'static str], workers: impl Into<Vec<Worker>>, service_seconds: f64) -> Self {
        let time = ServiceTime { mean_ms: service_seconds * 1000.0, weight: 200.0, recent_ms: None };
        let estimates = Estimates { service_time: Some(time), ..Estimates::default() };
        let scene = Scene {
            queues: queues.iter().map(|queue| (*queue, known(waiting(0)))).collect(),
            state: PoolState { estimates, ..PoolState::default() },
            ..Scene::with_workers(workers)
        };
        Self {
            config: scene.config(),
            observation: scene.observation(),
            memory: Memory::default(),
            millis: 0,
        }
    }

    fn now(&self) -> Time {
        NOW + std::time::Duration::from_millis(self.millis)
    }

    fn look(&mut self, depths: &[u64]) {
        self.millis += 250;
        let at = self.now();
        for (queue, ready) in self.config.pools[0].queues.iter().zip(depths) {
            self.observation.queues.insert(queue.clone(), Fact::Known { value: waiting(*ready), at });
        }
        self.memory = remember(std::mem::take(&mut self.memory), &self.observation, &self.config);
    }

    fn per_second(&self, queue: &str) -> f64 {
        self.memory.arrivals(queue).unwrap().per_second()
    }

    /// A process that starts now with nothing but what was persisted.
    fn restart(&mut self, asleep: u64) {
        let arrivals = self.memory.arrivals("q").unwrap();
        let Fact::Known { value: record, .. } = &mut self.observation.state else { unreachable!() };
        record.pool_mut("p").estimates.arrivals.insert("q".to_owned(), arrivals);
        self.memory = Memory::default();
        self.millis += asleep * 1000;
    }
}

fn near(value: f64, expected: f64) -> bool {
    (value - expected).abs() <= 0.1 * expected.max(0.1)
}

#[test]
fn a_steady_stream_is_known_after_some_minutes() {
    let mut watch = Watch::new(&["q"], [], 1.0);
    for look in 0..4 * 900 {
        watch.look(&[look / 2]);
    }
    assert!(near(watch.per_second("q"), 2.0), "{}", watch.per_second("q"));
}

#[test]
fn a_burst_is_no_stream_and_is_soon_forgotten() {
    let mut watch = Watch::new(&["q"], [], 1.0);
    watch.look(&[0]);
    watch.look(&[200]);
    assert!(watch.per_second("q") < 0.7, "200 in five minutes at most: {}", watch.per_second("q"));
    for _ in 0..4 * 300 {
        watch.look(&[200]);
    }
    assert!(watch.per_second("q") < 0.05, "{}", watch.per_second("q"));
}

#[test]
fn what_workers_take_out_meanwhile_counts_as_arrived() {
    // Four workers, half a second of work each: what is level although they serve 8 per second gets 8.
    let mut watch = Watch::new(&["q"], [ready(1), ready(2), ready(3), ready(4)], 0.5);
    for _ in 0..4 * 900 {
        watch.look(&[50]);
    }
    assert!(near(watch.per_second("q"), 8.0), "{}", watch.per_second("q"));
}

#[test]
fn a_queue_that_is_only_drained_gets_nothing() {
    // One worker takes a message every second; between looks that is a step of one or nothing.
    let mut watch = Watch::new(&["q"], [ready(1)], 1.0);
    watch.look(&[1000]);
    for look in 0..4 * 900 {
        watch.look(&[1000 - look / 4]);
        assert!(watch.per_second("q") < 0.02, "{} after {look} looks", watch.per_second("q"));
    }
}

#[test]
fn workers_serve_the_first_queue_in_which_something_waits() {
    let mut watch = Watch::new(&["a", "b"], [ready(1), ready(2)], 1.0);
    for _ in 0..4 * 900 {
        watch.look(&[10, 10]);
    }
    assert!(near(watch.per_second("a"), 2.0), "{}", watch.per_second("a"));
    assert!(near(watch.per_second("b"), 0.0), "{}", watch.per_second("b"));
    for _ in 0..4 * 1800 {
        watch.look(&[0, 10]);
    }
    assert!(near(watch.per_second("b"), 2.0), "{}", watch.per_second("b"));
}

#[test]
fn a_restart_goes_on_with_what_was_persisted_unless_it_is_old() {
    for (asleep, kept) in [(5, true), (299, true), (301, false)] {
        let mut watch = Watch::new(&["q"], [], 1.0);
        for look in 0..4 * 900 {
            watch.look(&[look / 2]);
        }
        let before = watch.per_second("q");
        watch.restart(asleep);
        watch.look(&[7]);
        let expected = if kept { before } else { 0.0 };
        assert!(near(watch.per_second("q"), expected), "after {asleep} s: {}", watch.per_second("q"));
    }
}

proptest! {
    #![proptest_config(cases(100))]
    #[test]
    fn whatever_is_seen_rates_stay_finite_and_a_look_counts_once(
        looks in prop::collection::vec((0..40_u64, any::<u32>(), any::<u32>()), 1..40),
        service in prop_oneof![Just(0.0), 0.001..100.0],
    ) {
        let mut watch = Watch::new(&["a", "b"], [ready(1)], service);
        for (pause, a, b) in looks {
            watch.millis += pause * 1000;
            watch.look(&[u64::from(a), u64::from(b)]);
            let again = remember(watch.memory.clone(), &watch.observation, &watch.config);
            prop_assert_eq!(&again, &watch.memory);
            for queue in ["a", "b"] {
                let rates = watch.memory.arrivals(queue).unwrap();
                prop_assert!(rates.minute.is_finite() && rates.five_minutes.is_finite());
                prop_assert!(rates.per_second() >= 0.0);
            }
        }
    }
}
