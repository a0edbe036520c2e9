//! The state record: the scaler's only durable memory, replaced as a whole by compare-and-swap.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};

use super::{Arrivals, Batch, QueueMarks};
use crate::time::Time;

/// The version of [`StateRecord`] that this build writes and reads.
pub const RECORD_VERSION: u32 = 1;
/// A remaining cool-down is never believed to be longer than this many times its cap.
const COOLDOWN_SLACK: f64 = 1.2;
/// After a launch was refused for want of room, the next one is tried after this.
const CAPACITY_RETRY: Duration = Duration::from_secs(5);

/// One record per instance. An unknown field or a higher version means that a newer scaler wrote it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateRecord {
    /// [`RECORD_VERSION`] of its writer.
    pub version: u32,
    /// Raised by every write: what a compare-and-swap compares (process launcher).
    pub revision: u64,
    /// The second it was initialised; part of every Job name, so that a lost record never leads back to a
    /// name that was used.
    pub epoch: u64,
    /// No launch at all, of no pool, by a person's will. Scalers that don't know this field hold while it is
    /// set, as they do at any field of a newer one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// Every pool that ever launched.
    pub pools: BTreeMap<String, PoolState>,
}

/// What is remembered of one pool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolState {
    /// The next launch's serial. Never goes back.
    pub next_serial: u64,
    /// When the last settled launch was intended.
    pub last_settled_launch: Option<Time>,
    /// Failures that have not been forgiven.
    pub failures: Failures,
    /// No launch before this.
    pub cooldown_until: Option<Time>,
    /// How the last failure came about; kept when it is forgiven.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<LastFailure>,
    /// The last launch was refused for want of room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at_capacity: Option<Capacity>,
    /// No launch of this pool, by a person's will.
    pub paused: bool,
    /// Launches that are decided, but not yet seen as Jobs.
    pub intents: Vec<Intent>,
    /// Serials of ended workers whose outcome was counted, while their Job exists.
    pub judged: Vec<u64>,
    /// What was learned.
    pub estimates: Estimates,
}

/// A refusal for want of room.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capacity {
    /// No launch before this.
    pub until: Time,
    /// What the cluster said.
    pub detail: String,
}

/// How a failure came about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LastFailure {
    /// When it was counted.
    pub at: Time,
    /// The Job's name.
    pub worker: String,
    /// Why, in words.
    pub why: String,
    /// The last lines that the worker wrote, where the cluster keeps them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_words: Option<String>,
}

/// Failures in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failures {
    /// How many.
    pub count: u32,
    /// When the last one was.
    pub last: Option<Time>,
}

/// A launch that is decided. Its serial fixes the Job's name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intent {
    /// Its serial.
    pub serial: u64,
    /// Its slot.
    pub slot: u32,
    /// Why, for people and Events.
    pub reason: String,
    /// When it was decided.
    pub stamp: Time,
    /// The scaler process that decided it.
    pub by: String,
}

/// What was learned; written at most once a minute.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Estimates {
    /// Work per done message, by what ended workers reported.
    pub service_time: Option<ServiceTime>,
    /// The same by what the broker counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted_service_time: Option<ServiceTime>,
    /// The last lead times (launch to ready) of workers that found room, oldest first, at most 20, in
    /// milliseconds.
    pub lead_times_ms: Vec<u64>,
    /// The same of workers that had to wait for their node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cold_lead_times_ms: Vec<u64>,
    /// The most workers of the pool that were seen on one node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods_per_node: Option<u32>,
    /// Per queue, how fast messages arrive.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub arrivals: BTreeMap<String, Arrivals>,
    /// Per queue with an SLO, how old what waits is.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub waiting: BTreeMap<String, Vec<Batch>>,
    /// Per queue, what the age of its oldest message is counted from.
    pub queues: BTreeMap<String, QueueMarks>,
}

/// Work per done message.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceTime {
    /// Mean over about the last 200 done messages, in milliseconds.
    pub mean_ms: f64,
    /// Done messages that it rests on, up to 200.
    pub weight: f64,
    /// A mean that follows a change within about 40 done messages, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recent_ms: Option<f64>,
}

// === impl Intent ===

impl Intent {
    /// Nobody asks for the Job of an older one.
    pub const COMPLETE_UNTIL: Duration = Duration::from_secs(60);
    /// One without a Job is withdrawn at this age: no request is expected to be on its way for as long as that.
    pub const WITHDRAW_AFTER: Duration = Duration::from_secs(120);
}

// === impl StateRecord ===

impl StateRecord {
    /// A record of an instance that never launched.
    #[must_use]
    pub const fn new(now: Time) -> Self {
        Self {
            version: RECORD_VERSION,
            revision: 0,
            epoch: now.as_millis() / 1000,
            paused: false,
            pools: BTreeMap::new(),
        }
    }

    /// The pool's state; a fresh one if it never launched.
    #[must_use]
    pub fn pool(&self, name: &str) -> PoolState {
        self.pools.get(name).cloned().unwrap_or_default()
    }

    /// The pool's state, for changing.
    pub fn pool_mut(&mut self, name: &str) -> &mut PoolState {
        self.pools.entry(name.to_owned()).or_default()
    }

    /// The record as it may be believed at `now`: stamps from the future become now, and a remaining
    /// cool-down is cut to 1.2 × its cap (`cooldown_cap` by pool).
    #[must_use]
    pub fn normalized(mut self, now: Time, cooldown_cap: impl Fn(&str) -> Duration) -> Self {
        for (name, pool) in &mut self.pools {
            let latest = now + cooldown_cap(name).mul_f64(COOLDOWN_SLACK);
            pool.cooldown_until = pool.cooldown_until.map(|until| until.min(latest));
            if let Some(capacity) = &mut pool.at_capacity {
                capacity.until = capacity.until.min(now + CAPACITY_RETRY);
            }
            pool.last_settled_launch = pool.last_settled_launch.map(|at| at.min(now));
            pool.failures.last = pool.failures.last.map(|at| at.min(now));
            for intent in &mut pool.intents {
                intent.stamp = intent.stamp.min(now);
            }
            for marks in pool.estimates.queues.values_mut() {
                marks.cut_to(now);
            }
            for arrivals in pool.estimates.arrivals.values_mut() {
                arrivals.cut_to(now);
            }
            for batch in pool.estimates.waiting.values_mut().flatten() {
                batch.since = batch.since.min(now);
            }
        }
        self
    }

    /// Whether `other` differs in more than what is written at leisure.
    #[must_use]
    pub fn differs_in_substance(&self, other: &Self) -> bool {
        let substance = |record: &Self| {
            let mut record = record.clone();
            record.revision = 0;
            for pool in record.pools.values_mut() {
                pool.estimates.queues.clear();
                pool.estimates.arrivals.clear();
                pool.estimates.waiting.clear();
                pool.estimates.counted_service_time = None;
            }
            record.pools.retain(|_, pool| *pool != PoolState::default());
            record
        };
        substance(self) != substance(other)
    }
}

// === impl PoolState ===

impl Default for PoolState {
    fn default() -> Self {
        Self {
            next_serial: 1,
            last_settled_launch: None,
            failures: Failures::default(),
            cooldown_until: None,
            last_failure: None,
            at_capacity: None,
            paused: false,
            intents: Vec::new(),
            judged: Vec::new(),
            estimates: Estimates::default(),
        }
    }
}

impl PoolState {
    /// The last launch that counts for pacing: settled, or intended.
    #[must_use]
    pub fn last_launch(&self) -> Option<Time> {
        self.intents.iter().map(|intent| intent.stamp).chain(self.last_settled_launch).max()
    }

    /// Notes that the cluster has no room now. No failure, no cool-down.
    pub fn hold_for_room(&mut self, detail: String, now: Time) {
        self.at_capacity = Some(Capacity { until: now + CAPACITY_RETRY, detail });
    }

    /// The same without the intent `serial`: what a decision on completing that intent looks at.
    #[must_use]
    pub fn without_intent(&self, serial: u64) -> Self {
        let mut state = self.clone();
        state.intents.retain(|intent| intent.serial != serial);
        state
    }
}

/// The Job's name: `<instance>-<pool>-<hash4>-<serial>`. The hash is of instance, pool and epoch, so that a
/// name never returns even if serials had to start again.
#[must_use]
pub fn job_name(instance: &str, pool: &str, epoch: u64, serial: u64) -> String {
    // FNV-1a, 64 bit (Fowler, Noll, Vo): stable over versions and machines, which std's hasher is not.
    let text = format!("{instance}\0{pool}\0{epoch}");
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut rest = hash ^ (hash >> 32);
    let mut digits = String::with_capacity(4);
    for _ in 0..4 {
        digits.extend(char::from_digit(u32::try_from(rest % 36).unwrap_or(0), 36));
        rest /= 36;
    }
    format!("{instance}-{pool}-{digits}-{serial}")
}
