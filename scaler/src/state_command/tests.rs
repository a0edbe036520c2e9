use std::collections::BTreeMap;

use super::*;
use crate::{
    config::{PoolConfig, WorkerTemplate},
    launcher::{Cadence, LaunchError, Launched, Plan, Removed},
    policy::{Decision, Fact, Hold, Memory, Observation, Phase, QueueFacts, Worker, decide, remember},
};

/// Workers that are there, whatever is asked.
struct There(Vec<Worker>);

impl Launcher for There {
    async fn list(&self, _: Look, _: Time) -> Result<Vec<Worker>, LaunchError> {
        Ok(self.0.clone())
    }

    async fn launch(&self, _: &Plan, _: &PoolConfig) -> Result<Launched, LaunchError> {
        unreachable!("a state command launches nothing")
    }

    async fn remove(&self, _: &Worker, _: Time) -> Result<Removed, LaunchError> {
        unreachable!("nor does it remove anything")
    }

    async fn tidy(&self, _: &[Worker], _: &[Worker], _: Time) -> Result<(), LaunchError> {
        unreachable!("nor does it tidy up")
    }

    fn cadence(&self) -> Cadence {
        unreachable!("nor does it come again")
    }
}

fn config(pools: &[&str]) -> Config {
    let pool = |name: &&str| {
        let worker = WorkerTemplate::Process { command: vec!["worker".to_owned()], env: BTreeMap::new() };
        PoolConfig::with_defaults(name, &format!("q-{name}"), worker)
    };
    Config::with_pools(pools.iter().map(pool).collect())
}

fn nobody() -> There {
    There(Vec::new())
}

fn somebody() -> There {
    let now = Clock::start().now();
    There(vec![Worker {
        name: "mayfly-a-0000-1".to_owned(),
        pool: "a".to_owned(),
        serial: Some(1),
        slot: Some(0),
        launched: now,
        reason: None,
        node: None,
        cold: false,
        generation: None,
        phase: Phase::Ready { since: now },
    }])
}

fn place() -> (tempfile::TempDir, FileState) {
    let directory = tempfile::tempdir().unwrap();
    let state = FileState::new(directory.path());
    (directory, state)
}

/// What is decided by this record for pools in whose queues something waits.
async fn decided(state: &FileState, config: &Config) -> BTreeMap<String, Decision> {
    let now = Clock::start().now();
    let facts = QueueFacts::Present { ready: 3, consumers: 0 };
    let queues = config.pools.iter().flat_map(|pool| &pool.queues);
    let observation = Observation {
        missing_templates: BTreeMap::new(),
        queues: queues.map(|queue| (queue.clone(), Fact::Known { value: facts, at: now })).collect(),
        suspects: BTreeMap::new(),
        counters: BTreeMap::new(),
        workers: Fact::Known { value: Vec::new(), at: now },
        state: Fact::Known { value: state.read().await.unwrap().unwrap(), at: now },
    };
    let memory = remember(Memory::default(), &observation, config);
    decide(&memory, &observation, config, now)
}

const EVERYTHING: Decision = Decision::Hold(Hold::Paused { everything: true });

#[tokio::test]
async fn a_pause_of_everything_holds_also_a_pool_that_is_configured_later() {
    let (_directory, state) = place();
    pause(&state, &nobody(), &config(&["a"]), None, true).await.unwrap();
    let later = decided(&state, &config(&["a", "b"])).await;
    assert_eq!(later, [("a".to_owned(), EVERYTHING), ("b".to_owned(), EVERYTHING)].into());
    assert!(show(&state, Output::Text, Clock::start().now()).await.unwrap().contains("everything is paused"));
}

#[tokio::test]
async fn to_resume_everything_leaves_alone_what_was_paused_by_name() {
    let (_directory, state) = place();
    let config = config(&["a", "b"]);
    pause(&state, &nobody(), &config, Some("a"), true).await.unwrap();
    pause(&state, &nobody(), &config, None, true).await.unwrap();
    let told = pause(&state, &nobody(), &config, None, false).await.unwrap();
    assert_eq!(told, "everything: resumed, but for pools paused by name: a");
    let decided = decided(&state, &config).await;
    assert_eq!(decided["a"], Decision::Hold(Hold::Paused { everything: false }));
    assert_eq!(decided["b"].kind(), "launch");
}

#[tokio::test]
async fn to_resume_a_pool_while_everything_is_paused_says_that_it_still_is() {
    let (_directory, state) = place();
    let config = config(&["a"]);
    pause(&state, &nobody(), &config, Some("a"), true).await.unwrap();
    pause(&state, &nobody(), &config, None, true).await.unwrap();
    let told = pause(&state, &nobody(), &config, Some("a"), false).await.unwrap();
    assert_eq!(told, "a: resumed, but everything is paused: see `state resume` without a pool");
    assert_eq!(decided(&state, &config).await["a"], EVERYTHING);
}

#[tokio::test]
async fn a_pause_writes_no_new_record_beside_workers_so_that_scalers_still_hold_for_the_lost_one() {
    let (_directory, state) = place();
    for pool in [None, Some("a")] {
        for paused in [true, false] {
            let refused = pause(&state, &somebody(), &config(&["a"]), pool, paused).await.unwrap_err();
            assert!(refused.to_string().contains("`state repair`"), "{refused}");
            assert_eq!(state.read().await.unwrap(), None);
        }
    }
}

#[tokio::test]
async fn a_scaler_that_does_not_know_the_pause_of_everything_takes_the_record_for_a_newer_one() {
    let mut record = StateRecord::new(Clock::start().now());
    let fields = |record: &StateRecord| serde_json::to_value(record).unwrap().as_object().unwrap().len();
    let before = fields(&record);
    record.paused = true;
    assert_eq!(fields(&record), before + 1, "set, it is a field that an older scaler does not know");
}
