//! The scaler's configuration, as decided on: parsed, defaults filled in, impossible combinations refused.

mod checked;
mod counters;
mod deadlines;
mod error;
mod overrides;
mod raw;
mod schedule;
mod schema;
mod slo;
mod values;

use std::{
    collections::BTreeMap,
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use mayfly_broker::BrokerArgs;
use mayfly_service::tls::TlsFiles;

#[cfg(test)]
pub(crate) use self::schedule::scheduled;
pub use counters::{CounterSource, CountersConfig};
pub use error::ConfigError;
pub use overrides::Overrides;
pub use schedule::{Limits, Window};
pub use schema::schema;
pub use slo::{SloConfig, Start};
pub(crate) use values::words;

use crate::policy::Deadlines;

/// All of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The instance's name: part of every Job name and label.
    pub instance: String,
    /// Time between two looks at the queues (jittered by ±10 %).
    pub check_interval: Duration,
    /// Where the broker's URL stands.
    pub broker: BrokerSource,
    /// Whom to trust over TLS besides the system's authorities, and our certificate.
    pub broker_tls: TlsFiles,
    /// Where the broker's counters are read, if anywhere.
    pub counters: Option<CountersConfig>,
    /// Where workers run.
    pub launcher: LauncherConfig,
    /// Most workers over all pools.
    pub quota: Option<u32>,
    /// The pools, names unique.
    pub pools: Vec<PoolConfig>,
}

/// Where the broker's URL stands; the URL itself is never in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BrokerSource {
    /// In this file, for example a mounted Secret.
    UrlFile(PathBuf),
    /// In this environment variable.
    UrlEnv(String),
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
    /// As Jobs of a Kubernetes cluster.
    Kubernetes {
        /// Holds templates, Jobs and the state record; where the scaler itself runs, or the kubeconfig's, if
        /// absent.
        namespace: Option<String>,
        /// Whether the cluster autoscaler's status is read.
        autoscaler_status: bool,
    },
}

/// One pool: queues, a worker template, limits.
///
/// The earlier system's names stand in the file with their units: `check_trigger_interval` is
/// `launch_interval`, a bare number there is seconds; a bare number in `force_empty_queue_interval` is
/// milliseconds. Every other duration without a unit is refused.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolConfig {
    /// Its name, unique.
    pub name: String,
    /// Its queues, at least one, in the order in which its workers serve them.
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
    /// Hold when the last two workers brought no more throughput, only slower work, by the broker's counters.
    pub saturation_guard: bool,
    /// Workers kept warm.
    pub min_workers: u32,
    /// Most workers occupied at any time; `None` is unlimited, 0 launches nothing.
    pub max_workers: Option<u32>,
    /// Other limits at certain times; of overlapping windows the first one counts.
    pub schedule: Vec<Window>,
    /// A pending worker that nothing needs for this long is taken back.
    pub withdraw_after: Duration,
    /// First cool-down after a failure.
    pub cooldown_base: Duration,
    /// Longest cool-down.
    pub cooldown_cap: Duration,
    /// How long each cause of not being ready may last.
    pub deadlines: Deadlines,
    /// Its part of the quota, against the other pools'.
    pub weight: u32,
    /// Whether slot i consumes with priority −i, so that surplus workers idle out.
    pub packing: bool,
    /// How to keep a promise on waiting times; `None` is a classic pool, which looks at depth and age.
    pub slo: Option<SloConfig>,
    /// Messages that a worker serves at once.
    pub concurrency: u32,
    /// What tells that a worker is ready.
    pub ready_by: ReadyBy,
    /// What a worker of this pool is.
    pub worker: WorkerTemplate,
}

/// What tells that a worker is ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ReadyBy {
    /// It says so itself: its readiness probe, or its status lines.
    #[default]
    Probe,
    /// The number of consumers of the pool's queue: for images without a readiness probe.
    Consumers,
}

/// What a worker is. Its `Debug` form names the variables of `env` without their values.
#[derive(Clone, PartialEq, Eq)]
pub enum WorkerTemplate {
    /// A local command.
    Process {
        /// Program and arguments; not empty.
        command: Vec<String>,
        /// Added to the scaler's own environment.
        env: BTreeMap<String, String>,
    },
    /// The suspended `CronJob` of this name, whose `jobTemplate` is copied.
    CronJob(String),
}

/// Idle limit of warm workers (slots below `min_workers`).
pub const WARM_IDLE: Duration = Duration::from_mins(10);

/// Time between two looks at the queues, unless configured.
pub const DEFAULT_CHECK_INTERVAL: Duration = Duration::from_millis(250);
/// The environment variable that holds the broker's URL, unless configured.
pub const DEFAULT_URL_ENV: &str = "MAYFLY_BROKER_URL";

// === impl Config ===

impl Config {
    /// Reads and checks the file at `path`; `overrides` stand above it.
    ///
    /// # Errors
    /// The first mistake, with its path.
    pub fn load(path: &Path, overrides: &Overrides) -> Result<Self, ConfigError> {
        Self::parse(&Self::read(path)?, overrides)
    }

    /// The text of the file at `path`.
    ///
    /// # Errors
    /// [`ConfigError::Unreadable`].
    pub fn read(path: &Path) -> Result<String, ConfigError> {
        std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })
    }

    /// What of `other` differs and cannot change while a scaler runs, by the names of the keys: what it is
    /// called, where its workers and its state are, which broker it watches.
    #[must_use]
    pub fn fixed_differences(&self, other: &Self) -> Vec<&'static str> {
        let Self {
            instance,
            check_interval: _,
            broker,
            counters: _,
            broker_tls,
            launcher,
            quota: _,
            pools: _,
        } = self;
        let differs = [
            ("instance", *instance != other.instance),
            ("broker", *broker != other.broker || *broker_tls != other.broker_tls),
            ("launcher", *launcher != other.launcher),
        ];
        differs.into_iter().filter_map(|(key, differs)| differs.then_some(key)).collect()
    }

    /// Checks the YAML `text`; `overrides` stand above it.
    ///
    /// # Errors
    /// The first mistake, with its path.
    pub fn parse(text: &str, overrides: &Overrides) -> Result<Self, ConfigError> {
        let mut at = String::new();
        let parsed = serde_saphyr::with_deserializer_from_str(text, |deserializer| {
            serde_path_to_error::deserialize(deserializer).map_err(|error| {
                at = error.path().to_string();
                error.into_inner()
            })
        });
        let mut raw: raw::RawConfig =
            parsed.map_err(|error| ConfigError::malformed(&at, error.without_snippet()))?;
        overrides.apply(&mut raw)?;
        raw.checked()
    }

    /// One of `pools` with what is usual otherwise; workers are processes. For samples and tests.
    pub(crate) fn with_pools(pools: Vec<PoolConfig>) -> Self {
        Self {
            instance: "mayfly".to_owned(),
            check_interval: DEFAULT_CHECK_INTERVAL,
            broker: BrokerSource::default(),
            counters: None,
            broker_tls: TlsFiles::default(),
            launcher: LauncherConfig::Process { directory: "/nowhere".into(), start_delay: Duration::ZERO },
            quota: None,
            pools,
        }
    }

    /// The pool of this name.
    #[must_use]
    pub fn pool(&self, name: &str) -> Option<&PoolConfig> {
        self.pools.iter().find(|pool| pool.name == name)
    }

    /// How to reach the broker, with the flags (or their environment variables) standing above the file.
    #[must_use]
    pub fn broker_args(&self, flags: &BrokerArgs) -> BrokerArgs {
        let TlsFiles { ca, cert, key } = &self.broker_tls;
        let args = self.broker.under(flags);
        BrokerArgs {
            broker_ca_file: args.broker_ca_file.or_else(|| ca.clone()),
            broker_cert_file: args.broker_cert_file.or_else(|| cert.clone()),
            broker_key_file: args.broker_key_file.or_else(|| key.clone()),
            ..args
        }
    }
}

// === impl BrokerSource ===

impl BrokerSource {
    /// Where to look, with the flags (or their environment variables) standing above the file.
    #[must_use]
    pub fn under(&self, flags: &BrokerArgs) -> BrokerArgs {
        let flags_are_silent = flags.broker_url_file.is_none() && flags.broker_url_env == DEFAULT_URL_ENV;
        match self {
            Self::UrlFile(file) if flags_are_silent => {
                BrokerArgs { broker_url_file: Some(file.clone()), ..flags.clone() }
            }
            Self::UrlEnv(variable) if flags_are_silent => {
                BrokerArgs { broker_url_file: None, broker_url_env: variable.clone(), ..flags.clone() }
            }
            _ => flags.clone(),
        }
    }
}

impl Default for BrokerSource {
    fn default() -> Self {
        Self::UrlEnv(DEFAULT_URL_ENV.to_owned())
    }
}

// === impl WorkerTemplate ===

impl fmt::Debug for WorkerTemplate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process { command, env } => formatter
                .debug_struct("Process")
                .field("command", command)
                .field("env", &env.keys().collect::<Vec<_>>())
                .finish(),
            Self::CronJob(name) => formatter.debug_tuple("CronJob").field(name).finish(),
        }
    }
}

// === impl PoolConfig ===

impl PoolConfig {
    /// A pool with every parameter at its default.
    #[must_use]
    pub fn with_defaults(name: &str, queue: &str, worker: WorkerTemplate) -> Self {
        Self {
            name: name.to_owned(),
            queues: vec![queue.to_owned()],
            target_queue_size: 0,
            force_empty_queue_interval: Duration::from_mins(1),
            launch_interval: Duration::from_secs(10),
            scale_increment: 1,
            max_pending_while_scaling: 1,
            skip_futile: false,
            saturation_guard: false,
            min_workers: 0,
            max_workers: Some(10),
            schedule: Vec::new(),
            withdraw_after: Duration::from_secs(10),
            cooldown_base: Duration::from_secs(10),
            cooldown_cap: Duration::from_mins(6),
            deadlines: Deadlines::default(),
            weight: 1,
            packing: true,
            slo: None,
            concurrency: 1,
            ready_by: ReadyBy::default(),
            worker,
        }
    }
}

#[cfg(test)]
mod tests;
