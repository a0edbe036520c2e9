//! The age of the oldest message: a queue is simulated with every publish time known, and what looks tell of
//! it is held against the truth.

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;

use super::{super::*, scene::*};
use crate::{config::Config, time::Time};

/// Time between two looks.
const LOOK: u64 = 250;

/// What may happen to a queue and its workers.
#[derive(Debug, Clone)]
enum Event {
    Publish(u8),
    Purge,
    Delete,
    Launch,
    Register(u8),
    Take(u8),
    Ack(u8),
    Drain(u8),
    Kill(u8),
    /// The scaler is away for so many milliseconds and comes back with what it had persisted.
    Restart(u16),
    Persist,
    List,
}

/// One worker as the truth knows it.
#[derive(Debug, Clone)]
struct Sim {
    consumes: bool,
    drains: bool,
    /// A look saw it consume: a consumer that no look ever sees may deceive.
    was_seen: bool,
    /// Publish time of the message in its hands.
    holds: Option<u64>,
}

/// The truth, and the scaler that looks at it.
struct World {
    now: u64,
    exists: bool,
    /// Publish times, oldest first.
    ready: Vec<u64>,
    /// Emptied since the last look: refilling it unseen may deceive.
    was_emptied: bool,
    workers: Vec<Sim>,
    next_look: u64,
    away_until: u64,
    listing: Fact<Vec<Worker>>,
    persisted: QueueMarks,
    memory: Memory,
    config: Config,
}

// === impl World ===

impl World {
    fn new() -> Self {
        Self {
            now: 0,
            exists: true,
            ready: Vec::new(),
            was_emptied: false,
            workers: Vec::new(),
            next_look: 0,
            away_until: 0,
            listing: unknown(Why::NotYetSeen),
            persisted: QueueMarks::default(),
            memory: Memory::default(),
            config: base().config(),
        }
    }

    fn time(&self) -> Time {
        NOW + Duration::from_millis(self.now)
    }

    fn run_until(&mut self, until: u64) -> Result<(), TestCaseError> {
        while self.next_look <= until {
            self.now = self.next_look;
            self.next_look += LOOK;
            for worker in &mut self.workers {
                worker.was_seen |= worker.consumes;
            }
            self.was_emptied = false;
            if self.now >= self.away_until {
                self.look()?;
            }
        }
        self.now = until;
        Ok(())
    }

    fn look(&mut self) -> Result<(), TestCaseError> {
        let consumers = self.workers.iter().filter(|worker| worker.consumes).count();
        let facts = if self.exists {
            QueueFacts::Present {
                ready: self.ready.len().try_into().unwrap(),
                consumers: consumers.try_into().unwrap(),
            }
        } else {
            QueueFacts::Missing
        };
        let mut record = StateRecord::new(NOW);
        record.pool_mut("p").estimates.queues.insert("q".to_owned(), self.persisted);
        let observation = Observation {
            missing_templates: BTreeMap::new(),
            queues: [("q".to_owned(), Fact::Known { value: facts, at: self.time() })].into(),
            suspects: BTreeMap::new(),
            counters: BTreeMap::new(),
            workers: self.listing.clone(),
            state: Fact::Known { value: record, at: self.time() },
        };
        self.memory = remember(std::mem::take(&mut self.memory), &observation, &self.config);
        let age = self.memory.age("q", self.time());
        let Some(oldest) = self.ready.first() else {
            prop_assert_eq!(age, None);
            return Ok(());
        };
        // A process that has not seen workers and state yet knows no age.
        let Some(Age { at_least, at_most, estimate, .. }) = age else {
            prop_assert!(matches!(self.listing, Fact::Unknown(_)));
            return Ok(());
        };
        let truth = Duration::from_millis(self.now - oldest);
        let bounds = at_least..=at_most.unwrap_or(Duration::MAX);
        prop_assert!(bounds.contains(&truth), "{truth:?} is not within {bounds:?} at {}", self.now);
        prop_assert!(bounds.contains(&estimate), "{estimate:?} is not within {bounds:?} at {}", self.now);
        Ok(())
    }

    fn list(&mut self) {
        let listed = self.workers.iter().enumerate().map(|(index, sim)| {
            let phase = match (sim.drains, sim.consumes) {
                (true, _) => Phase::Draining,
                (_, true) => Phase::Ready { since: self.time() },
                _ => pending(true, PendingCause::Starting, self.time()),
            };
            worker(index as u64 + 1, phase)
        });
        self.listing = Fact::Known { value: listed.collect(), at: self.time() };
    }

    fn worker(&mut self, index: u8) -> Option<&mut Sim> {
        let count = self.workers.len();
        self.workers.get_mut(usize::from(index) % count.max(1))
    }

    fn give_back(&mut self, message: Option<u64>) {
        // A broker puts it back to where it came from.
        self.ready.extend(message.filter(|_| self.exists));
        self.ready.sort_unstable();
    }

    fn apply(&mut self, event: &Event) {
        match *event {
            Event::Publish(count) => {
                if !self.was_emptied {
                    self.exists = true;
                    self.ready.extend(std::iter::repeat_n(self.now, count.into()));
                }
            }
            Event::Purge => {
                self.ready.clear();
                self.was_emptied = true;
            }
            Event::Delete => {
                self.ready.clear();
                self.was_emptied = true;
                self.exists = false;
                // Their deliveries are void, and they are cancelled.
                for worker in &mut self.workers {
                    worker.holds = None;
                    worker.drains |= worker.consumes;
                    worker.consumes = false;
                }
            }
            Event::Launch => {
                self.workers.push(Sim { consumes: false, drains: false, was_seen: false, holds: None });
            }
            Event::Register(index) => {
                let exists = self.exists;
                if let Some(worker) = self.worker(index) {
                    worker.consumes |= exists && !worker.drains;
                }
            }
            Event::Take(index) => {
                let oldest = self.ready.first().copied();
                if let Some(worker) = self.worker(index)
                    && worker.consumes
                    && worker.holds.is_none()
                    && oldest.is_some()
                {
                    worker.holds = oldest;
                    self.ready.remove(0);
                }
            }
            Event::Ack(index) => {
                if let Some(worker) = self.worker(index) {
                    worker.holds = None;
                }
            }
            Event::Drain(index) => {
                if let Some(worker) = self.worker(index)
                    && worker.was_seen
                {
                    worker.consumes = false;
                    worker.drains = true;
                }
            }
            Event::Kill(index) => {
                let index = usize::from(index) % self.workers.len().max(1);
                if self.workers.get(index).is_some_and(|worker| worker.was_seen || !worker.consumes) {
                    let worker = self.workers.remove(index);
                    self.give_back(worker.holds);
                }
            }
            Event::Restart(away) => {
                self.away_until = self.now + u64::from(away);
                self.memory = Memory::default();
                self.listing = unknown(Why::NotYetSeen);
            }
            Event::Persist => self.persisted = marks(&self.memory).unwrap_or(self.persisted),
            Event::List => self.list(),
        }
    }
}

fn marks(memory: &Memory) -> Option<QueueMarks> {
    let pool = pool("p");
    memory.marks(&pool).find(|(queue, _)| queue == "q").map(|(_, marks)| marks)
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (1..4_u8).prop_map(Event::Publish),
        1 => Just(Event::Purge),
        1 => Just(Event::Delete),
        3 => Just(Event::Launch),
        4 => any::<u8>().prop_map(Event::Register),
        6 => any::<u8>().prop_map(Event::Take),
        4 => any::<u8>().prop_map(Event::Ack),
        2 => any::<u8>().prop_map(Event::Drain),
        4 => any::<u8>().prop_map(Event::Kill),
        1 => (0..8000_u16).prop_map(Event::Restart),
        2 => Just(Event::Persist),
        6 => Just(Event::List),
    ]
}

proptest! {
    #![proptest_config(cases(500))]
    #[test]
    fn the_truth_lies_within_the_bounds_and_so_does_the_estimate(
        history in prop::collection::vec((0..900_u64, event()), 0..150),
    ) {
        let mut world = World::new();
        for (pause, event) in &history {
            world.run_until(world.now + pause)?;
            world.apply(event);
        }
        world.run_until(world.now + 4 * LOOK)?;
    }
}

/// Looks at the queue, 250 ms apart.
fn looks(memory: Memory, from: u64, seen: impl IntoIterator<Item = QueueFacts>) -> (Memory, Time) {
    let scene = base();
    let mut at = NOW + Duration::from_millis(from);
    let mut memory = memory;
    for facts in seen {
        let mut observation = scene.observation();
        observation.queues.insert("q".to_owned(), Fact::Known { value: facts, at });
        observation.workers = Fact::Known { value: vec![ready(1)], at };
        memory = remember(memory, &observation, &scene.config());
        at = at + Duration::from_millis(LOOK);
    }
    (memory, at - Duration::from_millis(LOOK))
}

const fn consumed(ready: u64) -> QueueFacts {
    QueueFacts::Present { ready, consumers: 1 }
}

#[test]
fn the_estimate_counts_from_the_last_fall_so_that_one_long_job_does_not_hide_a_small_batch() {
    let seen = std::iter::once(consumed(5)).chain(std::iter::repeat_n(consumed(4), 41));
    let (memory, now) = looks(Memory::default(), 0, seen);
    let age = memory.age("q", now).unwrap();
    assert_eq!((age.at_least, age.at_most, age.estimate), (Duration::ZERO, None, seconds(10)));
}

#[test]
fn without_a_consumer_the_wait_itself_proves_an_age_and_a_fall_begins_it_anew() {
    let (memory, now) = looks(Memory::default(), 0, std::iter::repeat_n(waiting(5), 41));
    assert_eq!(memory.age("q", now).unwrap().at_least, seconds(10));
    let (memory, now) = looks(memory, 10_250, [waiting(4), waiting(4), waiting(4), waiting(4), waiting(9)]);
    assert_eq!(memory.age("q", now).unwrap().at_least, seconds(1));
    let (memory, now) = looks(memory, 60_000, [waiting(9)]);
    assert_eq!(memory.age("q", now).unwrap().at_least, Duration::ZERO, "nobody looked for long");
}

#[test]
fn a_look_that_was_folded_in_before_changes_nothing() {
    let scene = base();
    let memory = scene.memory();
    assert_eq!(remember(memory.clone(), &scene.observation(), &scene.config()), memory);
    let mut late = scene.observation();
    late.queues.insert("q".to_owned(), Fact::Known { value: waiting(1), at: ago(1) });
    late.workers = unknown(Why::Unreachable);
    assert_eq!(remember(memory.clone(), &late, &scene.config()), memory, "nor does one that comes too late");
}

/// The estimate of a process that comes back to three waiting messages, 30 s after the wait was persisted
/// as begun 40 s ago.
fn resumed_estimate(facts: QueueFacts, workers: Vec<Worker>, last_launch: Option<Time>) -> Duration {
    let marks = QueueMarks { quiet: Some(ago(50)), turned: Some(ago(40)) };
    let estimates = Estimates { queues: [("q".to_owned(), marks)].into(), ..Estimates::default() };
    let scene = Scene {
        queues: vec![("q", known(facts))],
        state: PoolState { estimates, last_settled_launch: last_launch, ..PoolState::default() },
        ..Scene::with_workers(workers)
    };
    let memory = remember(Memory::default(), &scene.observation(), &scene.config());
    memory.age("q", NOW).unwrap().estimate
}

#[test]
fn a_restart_does_not_begin_a_wait_anew_unless_a_worker_may_have_ended_it_meanwhile() {
    let ended = |at| finished(1, Ending { at, ..ending(1) });
    assert_eq!(resumed_estimate(waiting(3), vec![], None), seconds(40));
    assert_eq!(resumed_estimate(waiting(3), vec![ended(ago(45))], Some(ago(60))), seconds(40));
    let zero = Duration::ZERO;
    assert_eq!(resumed_estimate(consumed(3), vec![], None), zero, "somebody consumes");
    assert_eq!(resumed_estimate(waiting(3), vec![ready(1)], Some(ago(60))), zero, "a worker lives");
    assert_eq!(resumed_estimate(waiting(3), vec![ended(ago(20))], Some(ago(60))), zero, "one lived");
    assert_eq!(resumed_estimate(waiting(3), vec![], Some(ago(20))), zero, "one was launched");
    let intended = |state: &mut PoolState| state.intents.push(intent(1, ago(45)));
    assert_eq!(resumed_estimate_after(intended, NOW), zero, "one may be there");
    assert_eq!(resumed_estimate_after(|_| {}, ago(2)), seconds(40));
    assert_eq!(resumed_estimate_after(|_| {}, ago(3)), zero, "one may have come since the listing");
}

fn resumed_estimate_after(change: impl FnOnce(&mut PoolState), listed: Time) -> Duration {
    let marks = QueueMarks { quiet: Some(ago(50)), turned: Some(ago(40)) };
    let estimates = Estimates { queues: [("q".to_owned(), marks)].into(), ..Estimates::default() };
    let mut scene = Scene {
        state: PoolState { estimates, ..PoolState::default() },
        workers: Fact::Known { value: Vec::new(), at: listed },
        ..base()
    };
    change(&mut scene.state);
    let memory = remember(Memory::default(), &scene.observation(), &scene.config());
    memory.age("q", NOW).unwrap().estimate
}

#[test]
fn an_estimate_stays_within_what_is_proven() {
    // Persisted marks may be of different age: the bound wins over the guess.
    let marks = QueueMarks { quiet: Some(ago(30)), turned: Some(ago(40)) };
    let estimates = Estimates { queues: [("q".to_owned(), marks)].into(), ..Estimates::default() };
    let scene = Scene { state: PoolState { estimates, ..PoolState::default() }, ..base() };
    let memory = remember(Memory::default(), &scene.observation(), &scene.config());
    let age = Age {
        at_least: Duration::ZERO,
        at_most: Some(seconds(30)),
        estimate: seconds(30),
        source: AgeSource::Looks,
    };
    assert_eq!(memory.age("q", NOW), Some(age));
}

#[test]
fn it_was_quiet_only_when_looks_before_and_after_the_listing_saw_nothing() {
    let scene = base();
    let millis = |millis| NOW + Duration::from_millis(millis);
    let fold = |memory, looked, ready, listed| {
        let mut observation = scene.observation();
        observation.queues.insert("q".to_owned(), Fact::Known { value: waiting(ready), at: millis(looked) });
        observation.workers = Fact::Known { value: Vec::new(), at: millis(listed) };
        remember(memory, &observation, &scene.config())
    };
    let quiet = |memory: &Memory| marks(memory).unwrap().quiet;
    let listed_later = fold(Memory::default(), 0, 0, 100);
    assert_eq!(quiet(&listed_later), None, "a worker may have given something back at 50");
    let given_back = fold(listed_later.clone(), 250, 1, 100);
    assert_eq!(quiet(&given_back), None, "and so it was");
    assert_eq!(quiet(&fold(listed_later.clone(), 250, 0, 350)), Some(millis(100)));
    let gap = fold(listed_later, 5000, 0, 100);
    assert_eq!(quiet(&gap), None, "nobody looked for long");
}
