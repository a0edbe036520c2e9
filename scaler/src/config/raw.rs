//! The YAML form. Every scalar is read as its text, so that one place converts it, and can name the path,
//! the bad value and what is allowed.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    counters::RawCounters,
    deadlines::RawDeadlines,
    schema::{EarlierNumber, EarlierSpan, Limit, ReadyWord, Scalar, Span, StartWord},
};

/// The file.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Config")]
pub(super) struct RawConfig {
    /// A name for this scaler and all that it launches.
    #[schemars(with = "String")]
    pub(super) instance: Option<String>,
    /// Time between two looks at the queues: 250ms unless given.
    #[schemars(with = "Span")]
    pub(super) check_interval: Option<String>,
    /// Where the broker's URL stands, and the files for its TLS.
    #[schemars(with = "RawBroker")]
    pub(super) broker: Option<RawBroker>,
    /// Where the broker's counters are read: the age of messages is told by them to the second.
    #[schemars(with = "RawCounters")]
    pub(super) counters: Option<RawCounters>,
    /// Where workers run.
    #[schemars(with = "RawLauncher")]
    pub(super) launcher: Option<RawLauncher>,
    /// Most workers over all pools; no limit unless given.
    #[schemars(with = "u32")]
    pub(super) quota: Option<String>,
    /// Queues, each with what works on them and how much of it.
    pub(super) pools: Vec<RawPool>,
}

/// Where the broker's URL stands, and the files for its TLS.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Broker")]
pub(super) struct RawBroker {
    /// The file that holds the broker's URL.
    #[schemars(with = "String")]
    pub(super) url_file: Option<String>,
    /// The environment variable that holds the broker's URL: `MAYFLY_BROKER_URL` unless given.
    #[schemars(with = "String")]
    pub(super) url_env: Option<String>,
    /// Certificates of authorities (PEM) that are trusted besides the system's.
    #[schemars(with = "String")]
    pub(super) ca_file: Option<String>,
    /// Our certificate (PEM), where the broker asks for one.
    #[schemars(with = "String")]
    pub(super) cert_file: Option<String>,
    /// The key of our certificate (PEM).
    #[schemars(with = "String")]
    pub(super) key_file: Option<String>,
}

/// Where workers run.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Launcher")]
pub(super) struct RawLauncher {
    /// As child processes of this machine.
    #[schemars(with = "RawProcess")]
    pub(super) process: Option<RawProcess>,
    /// As Jobs of a Kubernetes cluster.
    #[schemars(with = "RawKubernetes")]
    pub(super) kubernetes: Option<RawKubernetes>,
}

/// The Kubernetes launcher.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Kubernetes")]
pub(super) struct RawKubernetes {
    /// Holds templates, Jobs and the state record: the scaler's own unless given.
    #[schemars(with = "String")]
    pub(super) namespace: Option<String>,
    /// Whether to read what the cluster autoscaler says of its node groups, in its `ConfigMap` of
    /// namespace kube-system: workers for which no node can come are known as such at once. Needs the permission.
    pub(super) autoscaler_status: bool,
}

/// The process launcher.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Process")]
pub(super) struct RawProcess {
    /// Holds the state record and the workers' files; made if absent.
    #[schemars(with = "String")]
    pub(super) directory: Option<String>,
    /// How long a worker waits before it starts, imitating a node that has to be provisioned.
    #[schemars(with = "Span")]
    pub(super) start_delay: Option<String>,
}

/// One pool.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Pool")]
pub(super) struct RawPool {
    /// Its name: part of every Job's name.
    #[schemars(with = "String")]
    pub(super) name: Option<String>,
    /// What its workers take from, the first one first. All of them have an `slo` or none.
    pub(super) queues: Vec<RawQueue>,
    /// More ready messages than this launch a worker: 0 unless given. Without `slo`.
    #[schemars(with = "EarlierNumber")]
    pub(super) target_queue_size: Option<String>,
    /// A message older than this launches a worker whatever the depth: 60s unless given; a bare number is milliseconds. Without `slo`.
    #[schemars(with = "EarlierSpan")]
    pub(super) force_empty_queue_interval: Option<String>,
    /// Least time between two launches: 10s unless given. With `slo` only for workers kept warm.
    #[schemars(with = "Span")]
    pub(super) launch_interval: Option<String>,
    /// The earlier system's name of `launch_interval`; a bare number is seconds.
    #[schemars(with = "EarlierSpan")]
    pub(super) check_trigger_interval: Option<String>,
    /// Workers launched at once, and pending at once: 1 unless given.
    #[schemars(with = "u32", range(min = 1, max = 100))]
    pub(super) scale_increment: Option<String>,
    /// Pending workers allowed while all of them wait for a node that is known to come: 1 unless given. Without `slo`.
    #[schemars(with = "u32", range(min = 1, max = 100))]
    pub(super) max_pending_while_scaling: Option<String>,
    /// Hold when the workers there would drain the queue before a new one is ready. Without `slo`.
    #[schemars(with = "bool")]
    pub(super) skip_futile: Option<String>,
    /// Hold when the last two workers brought no more throughput, only slower work. Needs `counters`.
    #[schemars(with = "bool")]
    pub(super) saturation_guard: Option<String>,
    /// Workers kept warm: 0 unless given.
    #[schemars(with = "u32", range(max = 100_000))]
    pub(super) min_workers: Option<String>,
    /// Most workers at any time: 10 unless given; 0 launches nothing, `unlimited` is allowed.
    #[schemars(with = "Limit")]
    pub(super) max_workers: Option<String>,
    /// Other limits at certain times; of overlapping windows the first one counts.
    pub(super) schedule: Vec<RawWindow>,
    /// A worker that has not started and that nothing needs for this long is taken back: 10s unless given.
    #[schemars(with = "Span")]
    pub(super) withdraw_after: Option<String>,
    /// First cool-down after a failure: 10s unless given.
    #[schemars(with = "Span")]
    pub(super) cooldown_base: Option<String>,
    /// Longest cool-down: 6m unless given.
    #[schemars(with = "Span")]
    pub(super) cooldown_cap: Option<String>,
    /// How long each cause of not being ready may last before it is acted upon.
    pub(super) deadlines: RawDeadlines,
    /// Workers that fit on one node; learned unless given. With `slo`.
    #[schemars(with = "u32", range(min = 1, max = 1000))]
    pub(super) pods_per_node: Option<String>,
    /// Most workers pending at once: as many as `max_workers` unless given. With `slo`.
    #[schemars(with = "u32", range(min = 1, max = 100_000))]
    pub(super) max_pending: Option<String>,
    /// When to launch where nobody lives: at once, or at the last moment that does. With `slo`.
    #[schemars(with = "StartWord")]
    pub(super) start: Option<String>,
    /// Whether lower slots are served first, so that surplus workers run dry: true unless given.
    #[schemars(with = "bool")]
    pub(super) packing: Option<String>,
    /// What tells that a worker is ready: its own readiness probe unless given, or the number of its queue's consumers, for images that have no probe.
    #[schemars(with = "ReadyWord")]
    pub(super) ready_by: Option<String>,
    /// Its part of the quota, against the other pools': 1 unless given.
    #[schemars(with = "u32", range(min = 1, max = 1000))]
    pub(super) weight: Option<String>,
    /// What works on its messages.
    #[schemars(with = "RawWorker")]
    pub(super) worker: Option<RawWorker>,
}

/// Other limits at certain times.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Window")]
pub(super) struct RawWindow {
    /// When it begins, as a cron expression: minute, hour, day of the month, month, day of the week.
    #[schemars(with = "String")]
    pub(super) start: Option<String>,
    /// When it ends, as a cron expression.
    #[schemars(with = "String")]
    pub(super) end: Option<String>,
    /// Where these times are told, such as Europe/Berlin: UTC unless given.
    #[schemars(with = "String")]
    pub(super) time_zone: Option<String>,
    /// Workers kept warm meanwhile.
    #[schemars(with = "u32", range(max = 100_000))]
    pub(super) min_workers: Option<String>,
    /// Most workers meanwhile.
    #[schemars(with = "Limit")]
    pub(super) max_workers: Option<String>,
}

/// One queue.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Queue")]
pub(super) struct RawQueue {
    /// Its name.
    #[schemars(with = "String")]
    pub(super) name: Option<String>,
    /// No message is to wait longer than this before it begins.
    #[schemars(with = "Span")]
    pub(super) slo: Option<String>,
}

/// The worker.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Worker")]
pub(super) struct RawWorker {
    /// Messages that it serves at once: 1 unless given. The scaler plans with it; local processes are told.
    #[schemars(with = "u32", range(min = 1, max = 1000))]
    pub(super) concurrency: Option<String>,
    /// Kubernetes: the suspended `CronJob` whose Job is copied.
    #[schemars(with = "String")]
    pub(super) template: Option<String>,
    /// Local processes: program and arguments.
    #[schemars(with = "Vec<Scalar>")]
    pub(super) command: Option<Vec<String>>,
    /// Local processes: added to the scaler's own environment.
    #[schemars(with = "BTreeMap<String, Scalar>")]
    pub(super) env: Option<BTreeMap<String, String>>,
}
