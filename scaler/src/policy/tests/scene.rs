//! One pool `p` with queue `q`, built from few words.

use std::{collections::BTreeMap, time::Duration};

use mayfly_service::report::{ExitReason, ExitReport};
use proptest::test_runner::{Config as ProptestConfig, RngSeed};

use super::super::*;
use crate::{
    config::{Config, PoolConfig, WorkerTemplate},
    time::Time,
};

pub(super) const NOW: Time = Time::from_millis(1_800_000_000_000);

pub(super) fn ago(seconds: u64) -> Time {
    NOW - Duration::from_secs(seconds)
}

pub(super) fn in_future(seconds: u64) -> Time {
    NOW + Duration::from_secs(seconds)
}

pub(super) const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub(super) fn pool(name: &str) -> PoolConfig {
    let worker = WorkerTemplate::Process { command: vec!["worker".to_owned()], env: BTreeMap::new() };
    PoolConfig::with_defaults(name, &name.replace('p', "q"), worker)
}

pub(super) fn config(pools: Vec<PoolConfig>) -> Config {
    Config::with_pools(pools)
}

pub(super) const fn known<T>(value: T) -> Fact<T> {
    Fact::Known { value, at: NOW }
}

pub(super) fn unknown<T>(why: Why) -> Fact<T> {
    Fact::Unknown(the_unknown(why))
}

pub(super) fn the_unknown(why: Why) -> Unknown {
    Unknown { why, detail: "no answer".to_owned(), since: ago(3) }
}

pub(super) const fn waiting(ready: u64) -> QueueFacts {
    QueueFacts::Present { ready, consumers: 0 }
}

pub(super) fn worker(serial: u64, phase: Phase) -> Worker {
    Worker {
        name: format!("worker-{serial}"),
        pool: "p".to_owned(),
        serial: Some(serial),
        slot: Some(u32::try_from(serial).unwrap() - 1),
        launched: ago(30),
        reason: None,
        node: None,
        cold: false,
        generation: None,
        phase,
    }
}

pub(super) const fn pending(started: bool, cause: PendingCause, since: Time) -> Phase {
    Phase::Pending { started, cause, since, detail: None }
}

pub(super) fn starting(serial: u64) -> Worker {
    worker(serial, pending(true, PendingCause::Starting, ago(30)))
}

pub(super) fn unstarted(serial: u64) -> Worker {
    worker(serial, pending(false, PendingCause::NodeComing, ago(30)))
}

pub(super) fn ready(serial: u64) -> Worker {
    worker(serial, Phase::Ready { since: ago(20) })
}

pub(super) fn finished(serial: u64, ending: Ending) -> Worker {
    worker(serial, Phase::Finished(ending))
}

/// A worker that was ready, did `done` messages of a second each, and left with code 0 at the end of its idle
/// time.
pub(super) fn ending(done: u64) -> Ending {
    let report = ExitReport {
        messages: done,
        done,
        busy_ms: done * 1000,
        startup_ms: Some(100),
        ..ExitReport::new(ExitReason::Idle)
    };
    Ending {
        at: ago(1),
        started: true,
        lead_time: Some(seconds(3)),
        exit_code: Some(0),
        report: Some(report),
        detail: None,
        last_words: None,
        disrupted: false,
    }
}

/// A worker that broke off with `code` before it was ready.
pub(super) fn broken(code: u8) -> Ending {
    Ending {
        lead_time: None,
        exit_code: Some(code),
        report: Some(ExitReport::new(ExitReason::Misconfigured)),
        ..ending(0)
    }
}

pub(super) fn intent(serial: u64, stamp: Time) -> Intent {
    Intent {
        serial,
        slot: u32::try_from(serial).unwrap() - 1,
        reason: "DepthAbove".to_owned(),
        stamp,
        by: "somebody".to_owned(),
    }
}

/// Everything that one decision on pool `p` rests on.
#[derive(Clone)]
pub(super) struct Scene {
    pub(super) pool: PoolConfig,
    pub(super) queues: Vec<(&'static str, Fact<QueueFacts>)>,
    pub(super) suspects: Vec<(&'static str, Fact<QueueFacts>)>,
    /// Since when the messages wait (or, with none, the queue is empty) as far as looks tell.
    pub(super) since: Duration,
    pub(super) workers: Fact<Vec<Worker>>,
    pub(super) state: PoolState,
    pub(super) state_known: Fact<()>,
}

/// Three messages wait for 5 s, nothing lives, nothing was ever launched.
pub(super) fn base() -> Scene {
    Scene {
        pool: pool("p"),
        queues: vec![("q", known(waiting(3)))],
        suspects: Vec::new(),
        since: seconds(5),
        workers: known(Vec::new()),
        state: PoolState::default(),
        state_known: known(()),
    }
}

// === impl Scene ===

impl Scene {
    pub(super) fn with_workers(workers: impl Into<Vec<Worker>>) -> Self {
        Self { workers: known(workers.into()), ..base() }
    }

    pub(super) fn observation(&self) -> Observation {
        let mut record = StateRecord::new(ago(10_000));
        record.pools.insert("p".to_owned(), self.state.clone());
        Observation {
            missing_templates: BTreeMap::new(),
            queues: self.queues.iter().map(|(name, fact)| ((*name).to_owned(), fact.clone())).collect(),
            suspects: self.suspects.iter().map(|(name, fact)| ((*name).to_owned(), fact.clone())).collect(),
            counters: BTreeMap::new(),
            workers: self.workers.clone(),
            state: match &self.state_known {
                Fact::Known { at, .. } => Fact::Known { value: record, at: *at },
                Fact::Unknown(unknown) => Fact::Unknown(unknown.clone()),
            },
        }
    }

    pub(super) fn config(&self) -> Config {
        let queues = self.queues.iter().map(|(name, _)| (*name).to_owned()).collect();
        config(vec![PoolConfig { queues, ..self.pool.clone() }])
    }

    /// A memory of one look that saw the queues empty, `since` ago, and of the present one.
    pub(super) fn memory(&self) -> Memory {
        let config = self.config();
        let mut earlier = self.observation();
        for fact in earlier.queues.values_mut().chain(earlier.suspects.values_mut()) {
            *fact = Fact::Known { value: waiting(0), at: NOW - self.since };
        }
        // The first look needs workers and state; both were seen then.
        earlier.workers = Fact::Known { value: Vec::new(), at: NOW - self.since };
        earlier.state = Fact::Known { value: StateRecord::new(ago(10_000)), at: NOW - self.since };
        let memory = remember(Memory::default(), &earlier, &config);
        remember(memory, &self.observation(), &config)
    }

    pub(super) fn decide(&self) -> Decision {
        let decisions = decide(&self.memory(), &self.observation(), &self.config(), NOW);
        decisions["p"].clone()
    }
}

/// A decision to launch.
pub(super) fn launches(slots: impl Into<Vec<u32>>, reason: LaunchReason) -> Decision {
    Decision::Launch(Launch { slots: slots.into(), reason })
}

pub(super) const DEPTH: LaunchReason = LaunchReason::DepthAbove { ready: 3, target: 0 };

/// Checks every row and names the one that fails.
pub(super) fn check(rows: Vec<(&str, Scene, Decision)>) {
    for (name, scene, expected) in rows {
        assert_eq!(scene.decide(), expected, "{name}");
    }
}

/// So many cases, always the same ones; `PROPTEST_CASES` and `PROPTEST_RNG_SEED` ask for others.
pub(super) fn cases(count: u32) -> ProptestConfig {
    let mut config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = count;
    }
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(1);
    }
    config
}
