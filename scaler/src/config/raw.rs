//! The YAML form. Every scalar is read as its text, so that one place converts it, and can name the path,
//! the bad value and what is allowed.

use std::collections::BTreeMap;

use serde::{Deserialize, de::IgnoredAny};

/// The file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawConfig {
    pub(super) instance: Option<String>,
    pub(super) check_interval: Option<String>,
    pub(super) broker: Option<RawBroker>,
    pub(super) counters: Option<IgnoredAny>,
    pub(super) launcher: Option<RawLauncher>,
    pub(super) quota: Option<String>,
    pub(super) pools: Vec<RawPool>,
}

/// Where the broker's URL stands, and the files for its TLS.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawBroker {
    pub(super) url_file: Option<String>,
    pub(super) url_env: Option<String>,
    pub(super) ca_file: Option<String>,
    pub(super) cert_file: Option<String>,
    pub(super) key_file: Option<String>,
}

/// Where workers run.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawLauncher {
    pub(super) process: Option<RawProcess>,
    pub(super) kubernetes: Option<RawKubernetes>,
}

/// The Kubernetes launcher.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawKubernetes {
    pub(super) namespace: Option<String>,
}

/// The process launcher.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawProcess {
    pub(super) directory: Option<String>,
    pub(super) start_delay: Option<String>,
}

/// One pool.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawPool {
    pub(super) name: Option<String>,
    pub(super) queues: Vec<RawQueue>,
    pub(super) target_queue_size: Option<String>,
    pub(super) force_empty_queue_interval: Option<String>,
    pub(super) launch_interval: Option<String>,
    /// The earlier system's name of `launch_interval`.
    pub(super) check_trigger_interval: Option<String>,
    pub(super) scale_increment: Option<String>,
    pub(super) max_pending_while_scaling: Option<String>,
    pub(super) skip_futile: Option<String>,
    pub(super) min_workers: Option<String>,
    pub(super) max_workers: Option<String>,
    pub(super) withdraw_after: Option<String>,
    pub(super) cooldown_base: Option<String>,
    pub(super) cooldown_cap: Option<String>,
    pub(super) pods_per_node: Option<String>,
    pub(super) start: Option<String>,
    pub(super) packing: Option<String>,
    pub(super) weight: Option<String>,
    pub(super) worker: Option<RawWorker>,
}

/// One queue.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawQueue {
    pub(super) name: Option<String>,
    pub(super) slo: Option<String>,
}

/// The worker.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawWorker {
    pub(super) template: Option<String>,
    pub(super) command: Option<Vec<String>>,
    pub(super) env: Option<BTreeMap<String, String>>,
}
