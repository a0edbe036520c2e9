//! How long a message takes, and how fast they come, by what the broker counts.

use std::time::Duration;

use proptest::prelude::*;

use super::{super::*, scene::*};
use crate::{
    config::{Config, CounterSource, CountersConfig, PoolConfig},
    time::Time,
};

/// A pool whose consumers take `work` for a message and always find one, looked at four times a second and
/// counted twice.
struct Served {
    config: Config,
    observation: Observation,
    memory: Memory,
    millis: u64,
    ready: u64,
    consumers: u64,
    late: Duration,
    counts: bool,
}

impl Served {
    fn new(consumers: u64) -> Self {
        let scene = base();
        Self {
            config: scene.config(),
            observation: scene.observation(),
            memory: Memory::default(),
            millis: 0,
            ready: 100,
            consumers,
            late: Duration::ZERO,
            counts: true,
        }
    }

    fn now(&self) -> Time {
        NOW + Duration::from_millis(self.millis)
    }

    /// A look after 250 ms; so many messages are published and acknowledged by now.
    fn look(&mut self, published: u64, acknowledged: u64) {
        self.millis += 250;
        let at = self.now();
        let value = QueueFacts::Present { ready: self.ready, consumers: self.consumers };
        self.observation.queues.insert("q".to_owned(), Fact::Known { value, at });
        self.observation.workers = Fact::Known { value: vec![ready(1)], at };
        if self.counts && self.millis.is_multiple_of(500) {
            let value = Counters {
                answered: at,
                late: self.late,
                published: Some(published),
                acknowledged: Some(acknowledged),
                ..Counters::default()
            };
            self.observation.counters.insert("q".to_owned(), Fact::Known { value, at });
        }
        self.memory = remember(std::mem::take(&mut self.memory), &self.observation, &self.config);
    }

    /// Lets time pass while all consumers work, having begun together, `work` milliseconds for a message.
    fn work(&mut self, seconds: u64, work: u64) {
        for _ in 0..seconds * 4 {
            let done = (self.millis + 250) / work * self.consumers;
            self.look(0, done);
        }
    }

    /// As the plan takes it.
    fn told(&self) -> Option<(f64, ServiceSource)> {
        let estimates = Estimates {
            service_time: Some(ServiceTime { mean_ms: 77_000.0, weight: 9.0, recent_ms: None }),
            ..Estimates::default()
        };
        self.memory.service_time("p", &estimates).map(|(time, source)| (time.seconds(), source))
    }

    /// A new process with nothing but the record, which is written in between.
    fn restart(&mut self, counters_configured: bool) {
        let mut record = self.observation.state.known().unwrap().clone();
        self.memory.keep(&self.config.pools[0], &mut record.pool_mut("p").estimates);
        self.observation.state = Fact::Known { value: record, at: self.now() };
        self.observation.counters.clear();
        self.memory = Memory::default();
        self.config.counters = counters_configured.then(|| CountersConfig {
            source: CounterSource::Prometheus,
            urls: vec!["http://h:15692".to_owned()],
            user: None,
            password_file: None,
            ca_file: None,
        });
        self.counts = false;
        self.look(0, 0);
    }

    #[track_caller]
    fn is_counted(&self, expected: f64) {
        let (seconds, source) = self.told().unwrap();
        assert_eq!(source, ServiceSource::Counters);
        assert!((seconds - expected).abs() <= 0.15 * expected, "{seconds}, not {expected}");
    }

    #[track_caller]
    fn is_reported(&self) {
        assert_eq!(self.told(), Some((77.0, ServiceSource::Reports)));
    }
}

#[test]
fn the_first_worker_s_messages_tell_how_long_work_takes_before_it_has_ended() {
    let mut pool = Served::new(1);
    pool.work(2, 3000);
    pool.is_reported();
    pool.work(20, 3000);
    pool.is_counted(3.0);
}

proptest! {
    #![proptest_config(cases(50))]
    #[test]
    fn a_new_process_tells_the_same_service_time_from_the_same_source(
        consumers in 1..6_u64,
        work in 500..5000_u64,
        lasts in 10..60_u64,
        idle in 0..10_u64,
    ) {
        let mut pool = Served::new(consumers);
        pool.work(lasts, work);
        // It scales to zero in between.
        (pool.ready, pool.consumers) = (0, 0);
        for _ in 0..idle * 4 {
            pool.look(0, 1000);
        }
        let before = pool.told();
        pool.restart(true);
        prop_assert_eq!(pool.told(), before);
    }
}

#[test]
fn a_new_process_that_reads_no_counters_goes_by_reports() {
    let learned = || {
        let mut pool = Served::new(1);
        pool.work(30, 3000);
        pool.is_counted(3.0);
        pool
    };
    let mut without = learned();
    without.restart(false);
    without.is_reported();
    let mut silent = learned();
    silent.restart(true);
    silent.is_counted(3.0);
    for _ in 0..21 * 4 {
        silent.look(0, 0);
    }
    silent.is_reported();
}

#[test]
fn a_new_process_goes_on_learning_from_what_it_was_told() {
    let mut pool = Served::new(1);
    pool.work(60, 3000);
    pool.restart(true);
    pool.counts = true;
    pool.work(30, 1000);
    let (seconds, source) = pool.told().unwrap();
    assert_eq!(source, ServiceSource::Counters);
    assert!(seconds > 1.2, "{seconds}: what was learned before still weighs");
}

#[test]
fn workers_that_began_together_are_waited_for_until_each_has_done_one() {
    let mut pool = Served::new(10);
    for done in [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 7, 7] {
        pool.look(0, done);
        pool.is_reported();
    }
    pool.look(0, 10);
    pool.look(0, 10);
    pool.is_counted(6.0);
}

#[test]
fn several_messages_at_once_make_each_no_shorter() {
    let mut pool = Served::new(1);
    pool.config.pools = vec![PoolConfig { concurrency: 4, ..pool.config.pools.remove(0) }];
    for look in 1..=80 {
        pool.look(0, look * 250 / 2000 * 4);
    }
    pool.is_counted(2.0);
}

#[test]
fn where_nothing_waits_or_the_source_is_late_workers_reports_tell_it() {
    let mut idle = Served::new(1);
    idle.ready = 0;
    idle.work(20, 1000);
    idle.is_reported();
    let mut late = Served::new(1);
    late.late = seconds(10);
    late.work(20, 1000);
    late.is_reported();
}

#[test]
fn counters_that_are_no_longer_read_tell_nothing() {
    let mut pool = Served::new(1);
    pool.work(10, 1000);
    pool.is_counted(1.0);
    pool.counts = false;
    pool.work(25, 1000);
    pool.is_reported();
}

#[test]
fn counted_arrivals_need_no_guess_of_what_was_taken() {
    let mut pool = Served::new(1);
    for look in 1..=4 * 900 {
        // The depth is level, and nobody knows how long work takes.
        pool.look(look * 2, 0);
    }
    let rate = pool.memory.arrivals("q").unwrap().per_second();
    assert!(pool.memory.arrivals_are_counted("q"));
    assert!((rate - 8.0).abs() < 0.5, "{rate}");
    pool.counts = false;
    pool.work(25, 1000);
    assert!(!pool.memory.arrivals_are_counted("q"));
    let soon = pool.memory.arrivals("q").unwrap().per_second();
    assert!(soon <= rate && soon > 0.0, "{soon} after {rate}");
}
