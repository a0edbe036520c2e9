//! The age of the oldest message where the broker counts: known publish times against what is told.

use std::time::Duration;

use super::{super::*, scene::*};
use crate::time::Time;

/// A queue of which every publish time is known, looked at each 250 ms and counted each second.
struct Counting {
    now: u64,
    /// Publish times of what waits, oldest first.
    ready: Vec<u64>,
    /// What the broker has counted.
    published: u64,
    /// What went to the retry queue of 5 s, and when each comes back.
    retried: u64,
    returning: Vec<u64>,
    consumers: u64,
    /// Whether the broker counts what is published.
    counts: bool,
    stamp: Option<Time>,
    memory: Memory,
}

impl Counting {
    fn new() -> Self {
        Self {
            now: 0,
            ready: Vec::new(),
            published: 0,
            retried: 0,
            returning: Vec::new(),
            consumers: 1,
            counts: true,
            stamp: None,
            memory: Memory::default(),
        }
    }

    fn time(&self) -> Time {
        NOW + Duration::from_millis(self.now)
    }

    fn publish(&mut self, count: u64) {
        self.published += count;
        self.ready.extend((0..count).map(|_| self.now));
    }

    /// The oldest so many go.
    fn take(&mut self, count: usize) -> Vec<u64> {
        self.ready.drain(..count.min(self.ready.len())).collect()
    }

    /// One goes to the retry queue, whose messages come back after 5 s.
    fn retry(&mut self) {
        self.take(1);
        self.retried += 1;
        self.returning.push(self.now + 5000);
    }

    /// Lets `millis` pass in steps of 250.
    fn pass(&mut self, millis: u64) {
        for _ in 0..millis / 250 {
            self.now += 250;
            let now = self.now;
            let back = self.returning.iter().filter(|at| **at <= now).count();
            self.ready.extend(self.returning.drain(..back));
            self.look();
        }
    }

    fn look(&mut self) {
        let at = self.time();
        let scene = base();
        let mut observation = scene.observation();
        let ready = self.ready.len().try_into().unwrap();
        let facts = QueueFacts::Present { ready, consumers: self.consumers };
        observation.queues.insert("q".to_owned(), Fact::Known { value: facts, at });
        observation.workers = Fact::Known { value: vec![super::scene::ready(1)], at };
        let counted = at - Duration::from_millis(self.now % 1000);
        if self.now.is_multiple_of(1000) {
            let value = Counters {
                answered: counted,
                late: Duration::ZERO,
                published: self.counts.then_some(self.published),
                restarts: 0,
                returns: Some((seconds(5), self.retried))
                    .filter(|(_, retried)| *retried > 0)
                    .into_iter()
                    .collect(),
                acknowledged: None,
                unacked: None,
                head_stamp: self.stamp,
            };
            observation.counters.insert("q".to_owned(), Fact::Known { value, at: counted });
        }
        self.memory = remember(std::mem::take(&mut self.memory), &observation, &scene.config());
    }

    fn age(&self) -> Age {
        self.memory.age("q", self.time()).unwrap()
    }

    fn truth(&self) -> Duration {
        Duration::from_millis(self.now - self.ready[0])
    }

    /// The truth is told from counters, to a second.
    #[track_caller]
    fn is_right(&self) {
        let (age, truth) = (self.age(), self.truth());
        assert_eq!(age.source, AgeSource::Counters);
        assert!(age.estimate.abs_diff(truth) <= seconds(1), "{truth:?}, not {age:?}");
        assert!(age.at_least <= truth && truth <= age.at_most.unwrap(), "{truth:?} is not within {age:?}");
    }
}

/// A queue that was seen empty, then ten messages, one each second, while another consumer takes none.
fn ten_seconds() -> Counting {
    let mut queue = Counting::new();
    queue.pass(2000);
    for _ in 0..10 {
        queue.publish(1);
        queue.pass(1000);
    }
    queue
}

#[test]
fn a_queue_that_grows_and_drains_is_told_to_the_second_whoever_consumes() {
    let mut queue = ten_seconds();
    queue.is_right();
    for _ in 0..9 {
        queue.take(1);
        queue.pass(1000);
        queue.is_right();
        // Without the counter a fall makes the wait begin anew.
        queue.publish(1);
        queue.pass(1000);
        queue.is_right();
    }
}

#[test]
fn a_burst_behind_an_old_message_makes_it_no_younger_and_no_older() {
    let mut queue = ten_seconds();
    for _ in 0..5 {
        queue.publish(1000);
        queue.pass(250);
        assert!(queue.age().estimate.abs_diff(queue.truth()) <= seconds(1), "{:?}", queue.age());
    }
    queue.pass(1000);
    queue.is_right();
    queue.take(4000);
    queue.pass(1000);
    queue.is_right();
}

#[test]
fn messages_that_are_given_back_are_as_old_as_before() {
    let mut queue = ten_seconds();
    let held = queue.take(5);
    queue.pass(3000);
    queue.is_right();
    queue.ready.splice(0..0, held);
    queue.pass(2000);
    queue.is_right();
}

#[test]
fn what_a_consumer_gives_back_when_it_leaves_is_told_at_once() {
    let mut queue = ten_seconds();
    queue.pass(250);
    let held = queue.take(5);
    queue.pass(2000);
    queue.ready.splice(0..0, held);
    queue.consumers = 0;
    queue.pass(250);
    queue.is_right();
    let all = queue.take(10);
    queue.consumers = 1;
    queue.pass(2250);
    queue.ready.splice(0..0, all);
    queue.consumers = 0;
    queue.pass(250);
    queue.is_right();
}

#[test]
fn new_messages_while_another_consumer_leaves_are_told_as_new_by_the_next_reading() {
    let mut queue = ten_seconds();
    queue.take(5);
    queue.consumers = 0;
    queue.publish(3);
    queue.pass(1000);
    queue.is_right();
}

#[test]
fn a_purge_leaves_nothing_of_the_old_age() {
    let mut queue = ten_seconds();
    queue.ready.clear();
    queue.pass(500);
    queue.publish(3);
    queue.pass(3000);
    queue.is_right();
}

#[test]
fn a_counter_that_begins_anew_loses_no_history_and_proves_nothing_of_before() {
    let mut queue = ten_seconds();
    queue.published = 0;
    queue.pass(1000);
    queue.publish(2);
    queue.pass(1000);
    assert!(queue.age().estimate.abs_diff(queue.truth()) <= seconds(1), "{:?}", queue.age());
    assert_eq!(queue.age().at_least, Duration::ZERO);
    queue.take(10);
    queue.pass(2000);
    queue.is_right();
}

#[test]
fn a_queue_that_is_deleted_and_declared_anew_begins_anew_whether_its_counter_does_or_not() {
    for survives in [true, false] {
        let mut queue = ten_seconds();
        queue.ready.clear();
        queue.published = if survives { queue.published } else { 0 };
        queue.pass(1000);
        queue.publish(4);
        queue.pass(5000);
        queue.is_right();
    }
}

#[test]
fn what_comes_back_from_a_retry_queue_is_as_old_as_its_return() {
    let mut queue = ten_seconds();
    queue.pass(500);
    for _ in 0..10 {
        queue.retry();
        queue.pass(1000);
    }
    // All of the first ten are gone or went round.
    queue.pass(3500);
    queue.is_right();
    assert!(queue.truth() <= seconds(9), "{:?}", queue.truth());
}

#[test]
fn what_waited_before_the_counting_began_is_left_to_looks() {
    let mut queue = Counting::new();
    queue.publish(20);
    queue.pass(5000);
    queue.publish(5);
    queue.pass(5000);
    assert_eq!(queue.age().source, AgeSource::Looks);
    queue.take(20);
    queue.pass(2000);
    queue.is_right();
}

#[test]
fn counters_that_are_no_longer_read_say_nothing() {
    let mut queue = ten_seconds();
    queue.counts = false;
    queue.pass(30_000);
    assert_eq!(queue.age().source, AgeSource::Looks);
}

#[test]
fn a_history_of_hours_is_kept_in_little_space() {
    let mut queue = Counting::new();
    queue.pass(1000);
    for _ in 0..4000 {
        queue.publish(1);
        queue.pass(1000);
    }
    let (age, truth) = (queue.age(), queue.truth());
    assert!(age.estimate.abs_diff(truth) <= truth / 20, "{truth:?}, not {age:?}");
}

/// A queue with a message that its publisher stamped so many seconds ago, 20 s after that became known.
fn stamped(stamp: Time, consumers: u64) -> Age {
    let mut queue = Counting::new();
    queue.consumers = consumers;
    queue.publish(2);
    queue.counts = false;
    queue.stamp = Some(stamp);
    queue.pass(20_000);
    queue.age()
}

#[test]
fn a_stamp_is_an_upper_bound_and_the_age_itself_while_nothing_is_in_flight() {
    let age = stamped(NOW - seconds(30), 1);
    assert_eq!((age.source, age.at_most), (AgeSource::HeadStamp, Some(seconds(50))));
    assert!(age.estimate < seconds(50), "one in flight may be what was stamped: {age:?}");
    assert_eq!(stamped(NOW - seconds(30), 0).estimate, seconds(50));
}

#[test]
fn a_stamp_from_the_future_is_taken_for_now_unless_looks_prove_more() {
    let age = stamped(NOW + seconds(3600), 1);
    assert_eq!((age.at_least, age.at_most, age.estimate), (seconds(0), Some(seconds(0)), seconds(0)));
    let unattended = stamped(NOW + seconds(3600), 0);
    assert!(unattended.at_least > seconds(19), "{unattended:?}");
    assert_eq!(unattended.estimate, unattended.at_least);
}
