//! The scaler's configuration, as decided on: parsed, defaults filled in, impossible combinations refused.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

/// All of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The instance's name: part of every Job name and label.
    pub instance: String,
    /// Time between two looks at the queues (jittered by ±10 %).
    pub check_interval: Duration,
    /// Where workers run.
    pub launcher: LauncherConfig,
    /// Most workers over all pools.
    pub quota: Option<u32>,
    /// The pools, names unique.
    pub pools: Vec<PoolConfig>,
}

/// Where workers run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LauncherConfig {
    /// As child processes of this machine.
    Process {
        /// Holds the state record and the workers' files; made if absent.
        directory: PathBuf,
        /// How long a worker waits before it starts, imitating a node that has to be provisioned.
        start_delay: Duration,
    },
}

/// One pool: queues, a worker template, limits. Meanings: facts of the parameter table in the README.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolConfig {
    /// Its name, unique.
    pub name: String,
    /// Its queues (one, for now).
    pub queues: Vec<String>,
    /// More ready messages than this launch a worker.
    pub target_queue_size: u64,
    /// A message older than this launches a worker whatever the depth.
    pub force_empty_queue_interval: Duration,
    /// Least time between two launches.
    pub launch_interval: Duration,
    /// Workers launched at once, and pending at once.
    pub scale_increment: u32,
    /// Pending workers allowed while all of them wait for a node that is known to come.
    pub max_pending_while_scaling: u32,
    /// Hold when the workers there would drain the queue before a new one is ready.
    pub skip_futile: bool,
    /// Workers kept warm.
    pub min_workers: u32,
    /// Most workers occupied at any time; `None` is unlimited, 0 launches nothing.
    pub max_workers: Option<u32>,
    /// A pending worker that nothing needs for this long is taken back.
    pub withdraw_after: Duration,
    /// First cool-down after a failure.
    pub cooldown_base: Duration,
    /// Longest cool-down.
    pub cooldown_cap: Duration,
    /// Its part of the quota, against the other pools'.
    pub weight: u32,
    /// Whether slot i consumes with priority −i, so that surplus workers idle out.
    pub packing: bool,
    /// What a worker of this pool is.
    pub worker: WorkerTemplate,
}

/// What a worker is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkerTemplate {
    /// A local command.
    Process {
        /// Program and arguments; not empty.
        command: Vec<String>,
        /// Added to the scaler's own environment.
        env: BTreeMap<String, String>,
    },
}

/// Idle limit of warm workers (slots below `min_workers`).
pub const WARM_IDLE: Duration = Duration::from_secs(600);

// === impl PoolConfig ===

impl PoolConfig {
    /// A pool with every parameter at its default.
    #[must_use]
    pub fn with_defaults(name: &str, queue: &str, worker: WorkerTemplate) -> Self {
        Self {
            name: name.to_owned(),
            queues: vec![queue.to_owned()],
            target_queue_size: 0,
            force_empty_queue_interval: Duration::from_secs(60),
            launch_interval: Duration::from_secs(10),
            scale_increment: 1,
            max_pending_while_scaling: 1,
            skip_futile: false,
            min_workers: 0,
            max_workers: Some(10),
            withdraw_after: Duration::from_secs(10),
            cooldown_base: Duration::from_secs(10),
            cooldown_cap: Duration::from_secs(360),
            weight: 1,
            packing: true,
            worker,
        }
    }
}
