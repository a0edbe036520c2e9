//! How long each cause of a worker's not being ready may last.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    ConfigError,
    schema::Span,
    values::{ANY_DURATION, Bare, duration},
};
use crate::policy::Deadlines;

/// How long each cause of not being ready may last before it is acted upon.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Deadlines")]
pub(super) struct RawDeadlines {
    /// A node without a promise, until the pool reports that it is at capacity: 5m unless given.
    #[schemars(with = "Span")]
    pub(super) no_room: Option<String>,
    /// The same where an autoscaler said that a node is coming: 20m unless given.
    #[schemars(with = "Span")]
    pub(super) node_coming: Option<String>,
    /// An autoscaler that says that the worker fits no node, until it is given up: 2m unless given.
    #[schemars(with = "Span")]
    pub(super) misfit: Option<String>,
    /// A scheduler that fails over the worker, until it is given up: 5m unless given.
    #[schemars(with = "Span")]
    pub(super) scheduler_error: Option<String>,
    /// Volumes that cannot be mounted, until the worker is given up: 3m unless given.
    #[schemars(with = "Span")]
    pub(super) volumes: Option<String>,
    /// A network that cannot be set up, until the worker is given up: 3m unless given.
    #[schemars(with = "Span")]
    pub(super) network: Option<String>,
    /// A start on a node of which nothing else is known, until the worker is given up: 5m unless given.
    #[schemars(with = "Span")]
    pub(super) starting: Option<String>,
    /// Init containers and sidecars that are not done, until the worker is given up: 15m unless given.
    #[schemars(with = "Span")]
    pub(super) initializing: Option<String>,
    /// An image that is being pulled, until the worker is given up: 15m unless given.
    #[schemars(with = "Span")]
    pub(super) pulling: Option<String>,
    /// A registry that refuses the image, until the worker is given up: 5m unless given.
    #[schemars(with = "Span")]
    pub(super) image_pull: Option<String>,
    /// A missing Secret or `ConfigMap`, until the worker is given up: 30s unless given.
    #[schemars(with = "Span")]
    pub(super) configuration: Option<String>,
    /// A container runtime that fails, until the worker is given up: 2m unless given.
    #[schemars(with = "Span")]
    pub(super) runtime: Option<String>,
}

// === impl RawDeadlines ===

impl RawDeadlines {
    pub(super) fn checked(self, path: &str) -> Result<Deadlines, ConfigError> {
        let Self {
            no_room,
            node_coming,
            misfit,
            scheduler_error,
            volumes,
            network,
            starting,
            initializing,
            pulling,
            image_pull,
            configuration,
            runtime,
        } = self;
        let given = |key: &str, text: Option<String>, default| {
            text.map_or(Ok(default), |text| {
                duration(&format!("{path}.{key}"), &text, Bare::Refused, ANY_DURATION)
            })
        };
        let defaults = Deadlines::default();
        Ok(Deadlines {
            no_room: given("no_room", no_room, defaults.no_room)?,
            node_coming: given("node_coming", node_coming, defaults.node_coming)?,
            misfit: given("misfit", misfit, defaults.misfit)?,
            scheduler_error: given("scheduler_error", scheduler_error, defaults.scheduler_error)?,
            volumes: given("volumes", volumes, defaults.volumes)?,
            network: given("network", network, defaults.network)?,
            starting: given("starting", starting, defaults.starting)?,
            initializing: given("initializing", initializing, defaults.initializing)?,
            pulling: given("pulling", pulling, defaults.pulling)?,
            image_pull: given("image_pull", image_pull, defaults.image_pull)?,
            configuration: given("configuration", configuration, defaults.configuration)?,
            runtime: given("runtime", runtime, defaults.runtime)?,
        })
    }
}
