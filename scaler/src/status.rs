//! What the scaler sees and decides, as JSON for `GET /status`. Not stable yet.

mod inputs;

use std::{collections::BTreeMap, sync::Arc};

use axum::{Json, Router, http::StatusCode, response::IntoResponse, routing::get};
use serde::Serialize;
use tokio::sync::watch;

pub use inputs::Input;

use crate::{
    config::{Config, PoolConfig},
    policy::{
        Age, Counters, Counts, Decision, Fact, LastFailure, Memory, Observation, QueueFacts, Unknown, Worker,
    },
    setup::Refused,
    time::Time,
};

/// What was seen and decided at once: the page is drawn up from it, when somebody asks.
#[derive(Debug, Clone)]
pub struct Seen {
    /// By what it was decided.
    pub config: Arc<Config>,
    /// What was seen before.
    pub memory: Arc<Memory>,
    /// What is seen.
    pub observation: Observation,
    /// By pool.
    pub decisions: BTreeMap<String, Decision>,
    /// When.
    pub at: Time,
    /// Whether the scaler only tells what it would do.
    pub dry_run: bool,
    /// The configuration's file as it is now, where it was refused.
    pub refused: Option<Refused>,
}

/// The whole page.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// The instance.
    pub instance: String,
    /// When this was seen and decided.
    pub at: Time,
    /// Whether the scaler only tells what it would do.
    pub dry_run: bool,
    /// The configuration's file as it is now, where it was refused; the one before stays in force.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refused>,
    /// What of the fleet is unknown, and why; empty when all is known.
    pub unknown: BTreeMap<&'static str, Unknown>,
    /// By pool.
    pub pools: BTreeMap<String, PoolStatus>,
}

/// One pool.
#[derive(Debug, Clone, Serialize)]
pub struct PoolStatus {
    /// Its queues.
    pub queues: BTreeMap<String, QueueStatus>,
    /// How many workers are in which state; absent while they are unknown.
    pub counts: Option<Counts>,
    /// Its workers; absent while they are unknown.
    pub workers: Option<Vec<Worker>>,
    /// `launch`, `withdraw` or `hold`.
    pub decision: &'static str,
    /// The reason's name.
    pub reason: &'static str,
    /// The decision in words.
    pub text: String,
    /// What would have to change for the next launch, in words: "launches …".
    pub launches: String,
    /// The numbers that the decision rests on, each with its source.
    pub inputs: Vec<Input>,
    /// The next serial: launches so far + 1.
    pub next_serial: Option<u64>,
    /// Failures in a row.
    pub failures: Option<u32>,
    /// How the last failure came about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<LastFailure>,
}

/// One queue.
#[derive(Debug, Clone, Serialize)]
pub struct QueueStatus {
    /// What is known of it, or why not.
    pub facts: Fact<QueueFacts>,
    /// The age of its oldest ready message; absent when none is known to wait.
    pub age: Option<Age>,
    /// What waits in `Q.suspect`; absent before it was looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suspects: Option<SuspectsStatus>,
    /// What the broker counts; absent where it offers nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counters: Option<Fact<Counters>>,
}

/// The suspects of one queue: they count as the pool's need.
#[derive(Debug, Clone, Serialize)]
pub struct SuspectsStatus {
    /// What is known of the queue that they wait in, or why not.
    pub facts: Fact<QueueFacts>,
    /// The age of the oldest of them; absent when none is known to wait.
    pub age: Option<Age>,
}

// === impl Status ===

impl Status {
    /// Draws up the page.
    #[must_use]
    pub fn of(seen: &Seen) -> Self {
        let Seen { config, memory, observation, decisions, at, dry_run, refused } = seen;
        let now = *at;
        let Observation { queues, suspects, counters, workers, state, missing_templates: _ } = observation;
        let mut unknown = BTreeMap::new();
        if let Fact::Unknown(why) = workers {
            unknown.insert("workers", why.clone());
        }
        if let Fact::Unknown(why) = state {
            unknown.insert("state", why.clone());
        }
        let pool_status = |pool: &PoolConfig, decision: &Decision| {
            let (name, queue_names) = (&*pool.name, &pool.queues);
            let own = |worker: &&Worker| worker.pool == name;
            let state = state.known().map(|record| record.pool(name));
            let judged = state.clone().unwrap_or_default();
            PoolStatus {
                queues: queue_names
                    .iter()
                    .filter_map(|queue| {
                        let suspects = suspects.get(queue).cloned();
                        let status = QueueStatus {
                            facts: queues.get(queue)?.clone(),
                            age: memory.age(queue, now),
                            suspects: suspects
                                .map(|facts| SuspectsStatus { facts, age: memory.suspects_age(queue, now) }),
                            counters: counters.get(queue).cloned(),
                        };
                        Some((queue.clone(), status))
                    })
                    .collect(),
                counts: workers.known().map(|workers| Counts::of(name, workers, &judged)),
                workers: workers.known().map(|workers| workers.iter().filter(own).cloned().collect()),
                decision: decision.kind(),
                reason: decision.as_str(),
                text: decision.to_string(),
                launches: decision.advice(name),
                inputs: inputs::of(pool, memory, observation, now),
                next_serial: state.as_ref().map(|state| state.next_serial),
                failures: state.as_ref().map(|state| state.failures.count),
                last_failure: state.and_then(|state| state.last_failure),
            }
        };
        let pools = config
            .pools
            .iter()
            .filter_map(|pool| {
                let decision = decisions.get(&pool.name)?;
                Some((pool.name.clone(), pool_status(pool, decision)))
            })
            .collect();
        let (instance, refused) = (config.instance.clone(), refused.clone());
        Self { instance, at: now, dry_run: *dry_run, refused, unknown, pools }
    }
}

/// `GET /status`.
pub fn routes(seen: watch::Receiver<Option<Arc<Seen>>>) -> Router {
    let page = move || async move {
        let seen = seen.borrow().clone();
        seen.map_or_else(
            || (StatusCode::SERVICE_UNAVAILABLE, "nothing seen yet\n").into_response(),
            |seen| Json(Status::of(&seen)).into_response(),
        )
    };
    Router::new().route("/status", get(page))
}
