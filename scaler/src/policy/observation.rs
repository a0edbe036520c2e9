//! What was seen, and what could not be seen: unknown is a value with a name, never zero.

use std::{collections::BTreeMap, time::Duration};

use mayfly_service::report::ExitReport;
use serde::Serialize;

use super::{PendingCause, StateRecord};
use crate::time::{Time, as_optional_seconds};

/// Something observed, with the moment of it, or the reason why it could not be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fact<T> {
    /// Observed.
    Known {
        /// What.
        value: T,
        /// When the question was sent.
        at: Time,
    },
    /// Not observed.
    Unknown(Unknown),
}

/// An observation that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unknown {
    /// Why.
    pub why: Why,
    /// The error with its causes, for people.
    pub detail: String,
    /// Since when.
    pub since: Time,
}

/// Why something is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Not looked at yet.
    NotYetSeen,
    /// No answer, or no connection.
    Unreachable,
    /// We have no permission.
    Forbidden,
    /// The answer is too old.
    Stale,
    /// The state record is damaged, written by a newer scaler, or lost beside live workers.
    Unusable,
}

/// Which part of the observation is unknown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum UnknownWhat {
    /// The workers.
    Workers,
    /// The state record.
    State,
    /// This queue.
    Queue(String),
}

/// What is known of one queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum QueueFacts {
    /// It exists.
    Present {
        /// Messages waiting.
        ready: u64,
        /// Registered consumers.
        consumers: u64,
    },
    /// It does not exist: adds no need, and is not an error.
    Missing,
}

/// What the broker counts for one queue, where it offers that. Each is absent where it is not offered.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Counters {
    /// When the last answer that this rests on was complete.
    pub answered: Time,
    /// How long before it was asked for the rest may have been so; zero where the source tells what is.
    #[serde(skip)]
    pub late: Duration,
    /// Messages that came into the queue by publishing, counted from anywhere: only differences tell something,
    /// and a fall means that the counting began anew.
    pub published: Option<u64>,
    /// How often the broker began to count anew and `published` was carried on.
    pub restarts: u64,
    /// The same of its retry queues, by their delays: after that their messages come back.
    #[serde(skip)]
    pub returns: Vec<(Duration, u64)>,
    /// Messages acknowledged, counted in the same way.
    pub acknowledged: Option<u64>,
    /// Messages in flight; some seconds old.
    pub unacked: Option<u64>,
    /// The publisher's stamp of the head message (classic queues, stamped messages only). It may also be that
    /// of a message in flight, and some seconds old.
    pub head_stamp: Option<Time>,
}

/// One look at the world. Parts may be of different age.
#[derive(Debug, Clone, PartialEq)]
pub struct Observation {
    /// Every configured queue.
    pub queues: BTreeMap<String, Fact<QueueFacts>>,
    /// Of every configured queue Q what waits in `Q.suspect`, by the name of Q. It counts as the pool's need.
    pub suspects: BTreeMap<String, Fact<QueueFacts>>,
    /// What the broker counts, by queue; empty where it offers nothing.
    pub counters: BTreeMap<String, Fact<Counters>>,
    /// All workers of the instance.
    pub workers: Fact<Vec<Worker>>,
    /// The state record, judged.
    pub state: Fact<StateRecord>,
    /// By pool: its worker template, where that is known to be missing.
    pub missing_templates: BTreeMap<String, MissingTemplate>,
}

/// A worker template that is not there: the pool waits for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MissingTemplate {
    /// Its name.
    pub name: String,
    /// Since when it is missed.
    pub since: Time,
}

/// One worker as its launcher lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Worker {
    /// The Job's name.
    pub name: String,
    /// Its pool.
    pub pool: String,
    /// The number in its name; `None` if a person started it.
    pub serial: Option<u64>,
    /// Its slot; `None` if a person started it.
    pub slot: Option<u32>,
    /// When it was launched: the intent's stamp.
    pub launched: Time,
    /// Why it was launched; `None` if a person started it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Its node, once it has one and where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Whether it had to wait for its node, as far as is known.
    pub cold: bool,
    /// The generation of the template that it was made from, where templates have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Where it is in its life.
    pub phase: Phase,
}

/// Where a worker is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Never been ready since its Job was made, or resumed; not finished.
    Pending {
        /// Whether a process of it, or a container that may hold a message, has started: if so, it is never
        /// taken back nor given up.
        started: bool,
        /// Why it is not ready yet.
        cause: PendingCause,
        /// Since when this is the cause, as far as known.
        since: Time,
        /// What the cluster says about it, for people.
        #[serde(skip_serializing_if = "Option::is_none")]
        detail: Option<String>,
    },
    /// Its consumer is registered, or was: once ready it stays so here.
    Ready {
        /// When it became ready.
        since: Time,
    },
    /// Ends itself.
    Draining,
    /// Its node is lost.
    Lost,
    /// Ended.
    Finished(Ending),
}

/// How a worker ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ending {
    /// When, as far as known.
    pub at: Time,
    /// Whether its process ever started.
    pub started: bool,
    /// Launch to ready, if it ever was.
    #[serde(serialize_with = "as_optional_seconds")]
    pub lead_time: Option<Duration>,
    /// Its exit code, if known.
    pub exit_code: Option<u8>,
    /// Its report; `None` if it died without one.
    pub report: Option<ExitReport>,
    /// What the cluster says about its end, where that tells more than an exit code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The last lines that it wrote, where it died without a report and the cluster keeps them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_words: Option<String>,
    /// Whether the cluster took it away (its node lost or drained, itself evicted): nobody's failure.
    pub disrupted: bool,
}

// === impl Observation ===

impl Observation {
    /// The pool's workers, as far as workers are known.
    pub(super) fn workers_of(&self, pool: &str) -> Vec<&Worker> {
        self.workers.known().into_iter().flatten().filter(|worker| worker.pool == pool).collect()
    }

    /// The same for all pools at once: gone through once, however many there are.
    pub(super) fn workers_by_pool(&self) -> BTreeMap<&str, Vec<&Worker>> {
        let mut workers: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for worker in self.workers.known().into_iter().flatten() {
            workers.entry(&*worker.pool).or_default().push(worker);
        }
        workers
    }

    /// When the latest part of it was seen; `None` if nothing is known.
    pub(super) fn latest(&self) -> Option<Time> {
        let of_queues = self.queues.values().filter_map(Fact::at);
        of_queues.chain(self.workers.at()).chain(self.state.at()).max()
    }
}

// === impl Fact ===

impl<T> Fact<T> {
    /// The value, if it is known and not older than `limit`.
    pub fn fresh(&self, now: Time, limit: Duration) -> Result<&T, Unknown> {
        match self {
            Self::Known { value, at } if now.since(*at) <= limit => Ok(value),
            Self::Known { at, .. } => {
                Err(Unknown { why: Why::Stale, detail: "the last answer is too old".to_owned(), since: *at })
            }
            Self::Unknown(unknown) => Err(unknown.clone()),
        }
    }

    /// When it was observed.
    pub const fn at(&self) -> Option<Time> {
        match self {
            Self::Known { at, .. } => Some(*at),
            Self::Unknown(_) => None,
        }
    }

    /// Why it is not known, if so.
    pub const fn unknown(&self) -> Option<&Unknown> {
        match self {
            Self::Known { .. } => None,
            Self::Unknown(unknown) => Some(unknown),
        }
    }

    /// The value whatever its age.
    pub const fn known(&self) -> Option<&T> {
        match self {
            Self::Known { value, .. } => Some(value),
            Self::Unknown(_) => None,
        }
    }
}

// === impl Unknown ===

impl Unknown {
    /// Before the first look.
    #[must_use]
    pub const fn not_yet_seen(since: Time) -> Self {
        Self { why: Why::NotYetSeen, detail: String::new(), since }
    }
}

impl std::fmt::Display for Unknown {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &*self.detail {
            "" => formatter.write_str(self.why.as_str()),
            detail => write!(formatter, "{}: {detail}", self.why.as_str()),
        }
    }
}

// === impl Why ===

impl Why {
    /// The name used in logs, metrics and pages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotYetSeen => "not looked at yet",
            Self::Unreachable => "unreachable",
            Self::Forbidden => "forbidden",
            Self::Stale => "stale",
            Self::Unusable => "unusable",
        }
    }
}

// === impl UnknownWhat ===

impl std::fmt::Display for UnknownWhat {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Workers => formatter.write_str("workers"),
            Self::State => formatter.write_str("state record"),
            Self::Queue(name) => write!(formatter, "queue {name}"),
        }
    }
}
